#ifndef TIERCEL_HTTP_H
#define TIERCEL_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/disk.h"
#include "tiercel/status.h"
#include "tiercel/upstream.h"

/* The HTTP port: /metrics (Prometheus text), /healthz (200 while the process turns, whatever
 * the tiers do) and /readyz (200 or 503, with JSON). GET and HEAD only. It has one thread of
 * its own; connections, their memory and their idle time are bounded. */
struct http_options {
    const char *bind; /* an address or name; "*" = all */
    int port;         /* 0: the system chooses, see http_port() */
    void *arg;
    /* Called on the HTTP thread, one at a time: they read what any thread may read. */
    void (*metrics)(void *arg, struct buf *out);
    bool (*ready)(void *arg, struct buf *json); /* fills in one JSON object, detail per tier */
};

struct http;

/* ST_BAD: err is one line (port in use, bad address). The options are copied. */
/* Could it listen now? ST_BAD: err. Leaves nothing open. */
enum status http_check(const struct http_options *opt, char err[256]);
enum status http_start(const struct http_options *opt, struct http **out, char err[256]);
/* Returns when the thread has ended; NULL is allowed. */
void http_stop(struct http *h);
int http_port(const struct http *h); /* the port really bound */

/* Figures of /metrics that tbl/stat.def has no rows for; who serves the page fills them in. */
struct metrics_db {
    int index;
    uint64_t keys, expiring;
};

struct metrics_command {
    const char *name; /* "get", "config|set" */
    uint64_t calls, failed_calls, rejected_calls, duration_us;
};

struct metrics_persistence {
    int64_t changes, saves, last_save_s, last_duration_s;
    bool saving, save_ok, journal, journal_ok;
};

struct metrics_source {
    /* the instance */
    const char *run_id, *os, *maxmemory_policy;
    int tcp_port;
    int64_t start_time_s, uptime_s;
    double cpu_sys_s, cpu_user_s;
    int64_t maxclients, threads;
    bool loading; /* warming or rebuilding the disk index */
    /* memory tier */
    int64_t memory_used, memory_rss, memory_peak, memory_max; /* bytes */
    int64_t memory_data, memory_clients, memory_other;        /* the classes of alloc.h */
    uint64_t memory_keys;
    /* disk tier; NULL: none */
    const struct disk_stats *disk;
    bool disk_writable;
    uint64_t disk_max_bytes;
    struct metrics_persistence persistence;
    /* upstream tier; NULL: standalone. Sums over the workers. */
    const struct upstream_stats *upstream;
    int upstream_workers_up;
    const char *coherence_mode, *coherence_reason; /* reason NULL or "": it is what was asked for */
    int64_t coherence_bound_ms, tracked_keys;

    const struct metrics_db *dbs;
    size_t ndbs;
    const struct metrics_command *commands;
    size_t ncommands;
};

/* The text of /metrics: these figures and the rows of stat.def. Any thread. */
void metrics_write(struct buf *out, const struct metrics_source *src);

/* Tells a service manager ("READY=1", "STATUS=...") by a datagram to $NOTIFY_SOCKET;
 * does nothing when that is unset. Never blocks. */
void notify_send(const char *state);

#endif
