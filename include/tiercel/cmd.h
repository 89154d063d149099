#ifndef TIERCEL_CMD_H
#define TIERCEL_CMD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiercel/chain.h"
#include "tiercel/command.h"
#include "tiercel/conf.h"
#include "tiercel/keyspace.h"
#include "tiercel/list.h"
#include "tiercel/session.h"
#include "tiercel/stats.h"
#include "tiercel/worker.h"

/* What the command layer shares between workers, and its part of each worker. */

struct acl;
struct slowlog;
struct latency;
struct pubsub;
struct tracking;
struct warm;
struct persist;
struct scripts;
struct functions;
struct script_worker;
struct lockset;

/* What main offers to commands that act on the whole process. */
struct cmd_server_ops {
    /* SHUTDOWN: starts an orderly stop. Any worker's thread. */
    void (*shutdown)(void *arg, bool save, bool now);
    void *arg;
    /* A script takes long: answers those of the worker's clients that can be answered meanwhile. May be NULL. */
    void (*serve_while_busy)(struct worker *w);
    /* CONFIG SET of what is about TLS, before it counts: false, with err, when the files it names cannot be used. Any
     * worker's thread, one at a time. May be NULL. */
    bool (*reload_tls)(void *arg, const struct conf *next, char err[256]);
    /* CONFIG SET has made this snapshot. Any worker's thread, conf_lock held. May be NULL. */
    void (*conf_changed)(void *arg, const struct conf *next);
};

struct cmd {
    struct worker **workers;
    int nworkers;
    struct tier *tier;
    struct cmd_server_ops ops;
    int64_t started_ms, started_mono_ms;
    char run_id[41];
    int tcp_port;
    const char *executable;

    pthread_mutex_t conf_lock; /* serialises CONFIG SET; guards `conf` */
    struct conf *conf;         /* newest snapshot */
    _Atomic uint64_t next_client_id;
    _Atomic int64_t pause_until_ms; /* CLIENT PAUSE: wall time, 0 = none */
    _Atomic bool pause_all;         /* else writes only */
    _Atomic bool active_expire;     /* DEBUG SET-ACTIVE-EXPIRE */
    _Atomic int block_moves;        /* clients that wait for one key and will change another (block.c) */

    _Atomic int monitors;    /* clients that are told of every command (monitor.c) */
    _Atomic unsigned notify; /* notify-keyspace-events in force: enum conf_notify; 0 = nothing is published */

    struct registry *registry; /* per shard: watched and waited-for keys (multi.c, block.c) */
    struct slowlog *slowlog;
    struct latency *latency;
    struct pubsub *pubsub;
    struct tracking *tracking;
    struct warm *warm;
    struct persist *persist;
    struct scripts *scripts;     /* script.c */
    struct functions *functions; /* function_set.c */
    struct acl *acl;
    _Atomic uint64_t acl_generation; /* raised by each change of users */
    _Atomic int slow_scripts;        /* over busy-reply-threshold: nobody waits for what they have locked */
    _Atomic int slow_functions;      /* those of them that are functions */
};

#define CMD_HIST_BUCKETS STATS_HIST_BUCKETS /* powers of two in microseconds, as LATENCY HISTOGRAM shows them */

/* Written by the worker's thread, read by others with relaxed loads. */
struct cmd_stat {
    _Atomic uint64_t calls, usec, rejected, failed;
    _Atomic uint64_t hist[CMD_HIST_BUCKETS]; /* hist[i]: calls of at most 1 << i us (and over the one before) */
};

struct cmd_worker {
    struct cmd *cmd;
    struct list sessions;
    _Atomic int monitors;   /* of these */
    struct cmd_stat *stat;  /* [command_count] */
    struct errstat *errors; /* error codes seen, for INFO errorstats (errstat.c) */
    struct inbox *inbox;    /* messages for its sessions (inbox.c) */
    struct pubsub_worker *pubsub;
    struct tracking_worker *tracking;
    struct dispatch_scratch *scratch;      /* dispatch.c */
    struct chain_pool replies;             /* of the sessions' `out` */
    const struct request *ahead;           /* what runs, while it is in the reader's hands: its key may be hashed */
    struct script_worker *_Atomic script;  /* its worker's; figures and SCRIPT KILL look at it */
    struct script_worker *_Atomic library; /* the same for functions */
    const struct lockset *locks;           /* within EXEC: its own */
    struct buf ready;      /* struct key and name: what somebody may wait for, of this command (block.c) */
    struct buf ready_name; /* of the one whose turn it is */
    struct buf locked;     /* uint32_t: shards locked to serve those (block.c) */
    struct buf missing;    /* what the command that was stopped waits for next (rerun.c) */
};

/* Before the loops run; the main thread. Takes the users. */
struct cmd *cmd_create(struct tier *tier, struct conf *conf, struct acl *acl, const struct cmd_server_ops *ops);
void cmd_destroy(struct cmd *cmd);
void cmd_worker_init(struct cmd *cmd, struct worker *w);
void cmd_worker_deinit(struct worker *w);
void cmd_worker_tick(struct worker *w); /* periodic */

/* Libraries of functions, before the loops run; the main thread, with a worker to try them in. */

/* Keeps them in a file of `dir` from now on, and reads what that has. ST_NOT_FOUND: it has none yet. */
enum status cmd_functions_open(struct worker *w, const char *dir, char err[256]);
bool cmd_functions_add(struct worker *w, struct slice source, char err[256]); /* one library */

/* A snapshot that differs in what only main looks at (a secret that was read again); taken over. conf_lock held, while the
 * loops run. */
void cmd_replace_conf(struct cmd *cmd, struct conf *next);

/* For /metrics; any thread. */
#define ERRSTAT_NAME 32
struct errstat_code {
    char name[ERRSTAT_NAME];
    uint64_t count;
};
/* Error codes that were replied, all workers together, by name; *out is freed with mem_free(MEM_OTHER). Returns how many. */
int errstat_sum(const struct cmd *cmd, struct errstat_code **out);
void slowlog_get_figures(struct slowlog *log, int64_t *length, int64_t *last_id);
/* How long commands on keys took in memory, what they waited for other tiers not counted. */
void cmd_memory_latency(const struct cmd *cmd, struct stats_hist_sum *out);

/* The encodings' limits, as the settings say. */
struct obj_limits cmd_obj_limits(const struct conf *conf);

#endif
