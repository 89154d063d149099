#ifndef HIT_RATIO_H
#define HIT_RATIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../loadgen/trace.h"

/* ---- replay.c: a trace through the memory tier ---- */
struct replay {
    const struct trace *trace;
    int policy; /* enum conf_maxmemory_policy */
    int samples;
    uint64_t capacity; /* objects */
    uint64_t rate;     /* accesses a second of the simulated clock */
};
struct replay_result {
    uint64_t misses;
    double ns; /* of CPU, per access */
};
void replay_trace(const struct replay *r, struct replay_result *out);

/* ---- reference.c: the tables of the traces' README.md ---- */
#define SHARES 4
struct reference {
    char policy[16];
    double miss[SHARES];
};
struct references {
    struct reference row[32];
    size_t n;
};
/* The first table under the heading of this trace. false: there is none. */
bool references_load(const char *readme, const char *trace, struct references *out);
const struct reference *references_find(const struct references *refs, const char *policy);

#endif
