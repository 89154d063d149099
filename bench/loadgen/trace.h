#ifndef LOADGEN_TRACE_H
#define LOADGEN_TRACE_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

/* A recorded sequence of accesses. The file is CSV with a head line, plain or compressed with zstd; columns
 * are found by name: `key`, and if there are any `op` (get or set), `value_size` (bytes, 0 = unknown) and
 * `ttl_s` (0 = none). The trace's keys get numbers in the order in which they first appear. */
struct trace_access {
    uint32_t key;
    uint32_t size;
    uint32_t ttl_s;
    bool set;
};

struct trace {
    struct trace_access *access;
    size_t len;
    uint64_t keys; /* distinct ones */
};

/* "-" reads standard input. false: err says why. */
bool trace_load(const char *path, struct trace *out, char err[256]);
void trace_unload(struct trace *t);

#endif
