#ifndef TIERCEL_HTTP_H
#define TIERCEL_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/disk.h"
#include "tiercel/stats.h"
#include "tiercel/status.h"
#include "tiercel/upstream.h"

/* The HTTP port: /metrics (Prometheus text), /healthz (200 while the process turns, whatever
 * the tiers do, and whatever a scrape waits for) and /readyz (200 or 503, with JSON). GET and HEAD only. It has
 * threads of its own; connections, their memory and their idle time are bounded.
 *
 * It is there before the tiers are and until they are gone: /readyz says "loading" until http_serve(),
 * and "stopping" after http_drain(); /metrics is 503 then. */
struct http_options {
    const char *bind; /* an address or name; "*" = all */
    int port;         /* 0: the system chooses, see http_port() */
    /* Called on one of its threads, one at a time, between http_serve() and http_drain(), with the former's arg: they read
     * what any thread may read. */
    void (*metrics)(void *arg, struct buf *out);
    bool (*ready)(void *arg, bool detail,
                  struct buf *json); /* fills in one JSON object; detail: with each tier's state */
};

struct http;

/* ST_BAD: err is one line (port in use, bad address). The options are copied. */
enum status http_start(const struct http_options *opt, struct http **out, char err[256]);
/* The callbacks may be called from now on; and no more when http_drain() returns, whatever is served after it. Any thread;
 * NULL is allowed. */
void http_serve(struct http *h, void *arg);
void http_drain(struct http *h);

/* Who gets /metrics, and detail from /readyz: with a token (at most HTTP_TOKEN_MAX bytes) whoever shows it
 * (Authorization: Bearer); without one everybody, but in protected mode only this host. At first: this host. Any thread;
 * NULL is allowed. */
struct http_access {
    const char *token; /* "" = none; not kept */
    bool protected_mode;
};
void http_set_access(struct http *h, const struct http_access *access);
bool http_is_local(const struct http *h); /* it listens on a loopback address only */
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

struct metrics_error {
    const char *code;
    uint64_t count;
};

/* What a family of counters is made of: the samples of one name, which differ by their labels. */
struct metrics_part {
    const char *labels; /* tier="disk",reason="quota" */
    uint64_t value;
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
    bool warming;
    int64_t slowlog_length, slowlog_last_id, tracking_clients, pubsub_channels, pubsub_patterns, lazyfree_pending;
    /* memory tier */
    int64_t memory_used, memory_rss, memory_peak, memory_max; /* bytes */
    int64_t memory_data, memory_clients, memory_other;        /* the classes of alloc.h */
    uint64_t memory_keys;
    int64_t memory_system, inflight_bytes, inflight_max, demoting_bytes;
    int64_t admission_waiting, room_waiting; /* requests */
    const struct stats_hist_sum *memory_latency;
    /* disk tier; NULL: none */
    const struct disk_stats *disk;
    bool disk_writable;
    uint64_t disk_max_bytes;
    struct metrics_persistence persistence;
    /* upstream tier; NULL: standalone. Sums over the workers. */
    const struct upstream_stats *upstream;
    int upstream_workers_up;
    const char *coherence_mode, *coherence_reason; /* reason NULL or "": it is what was asked for */
    bool coherence_fallback;                       /* copies are kept, but in another mode than asked for */
    int64_t coherence_bound_ms, tracked_keys, tracked_keys_max;

    const struct metrics_part *warm_jobs; /* by state */
    size_t nwarm_jobs;
    const struct metrics_part *evictions; /* by tier and reason */
    size_t nevictions;
    const struct metrics_part *warm_keys; /* by result */
    size_t nwarm_keys;
    const struct metrics_error *errors;
    size_t nerrors;

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
