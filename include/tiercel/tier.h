#ifndef TIERCEL_TIER_H
#define TIERCEL_TIER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/conf.h"
#include "tiercel/disk.h"
#include "tiercel/list.h"
#include "tiercel/mbox.h"
#include "tiercel/mem.h"
#include "tiercel/object.h"
#include "tiercel/status.h"
#include "tiercel/worker.h"

/* Residency: the key space as virtual memory. A command names keys; this layer makes them
 * resident in memory, from disk or from the upstream, and moves cold ones down.
 *
 * States of a key. A key that is more than plainly absent has one entry in its shard's
 * table, changed only under the shard's lock. The plain states cost nothing beside the
 * object; the others hang on a `struct residency` (an OBJ_RESIDENCY object in the table).
 *
 *   ABSENT     no entry, and the disk index does not have it
 *   ON_DISK    no entry; the disk index has it
 *   NEGATIVE   an OBJ_NONE object: the upstream lately did not have it, until its expiry
 *   FETCHING   a fetch is under way; waiters; `value` is a suspect copy, or NULL
 *   RESIDENT   the object itself. Clean: the disk has a committed record of this very value, or
 *              it is a copy of an upstream key. Dirty: neither. (Derived from the index; only
 *              what the journal still owes is marked in the object, OBJ_F_OWED.)
 *   PINNED     RESIDENT, and requests wait to use it: not evicted
 *   DEMOTING   a resident object whose record waits in the disk's queue (its slot is pending),
 *              and which leaves memory with the commit (OBJ_F_LEAVING); readable; may be pinned too
 *
 *   from       event                                   to
 *   ---------  --------------------------------------  --------------------------------------------
 *   ABSENT     write                                   RESIDENT (dirty)
 *              read, with an upstream                  FETCHING
 *   ON_DISK    read or update                          FETCHING
 *              replace or delete                       RESIDENT (dirty) or ABSENT, tombstone
 *              block dropped, record expired           ABSENT
 *   NEGATIVE   its time, eviction, invalidation        ABSENT
 *   FETCHING   fetched                                 PINNED for its waiters (RESIDENT when none is left)
 *              not there                               ABSENT, or NEGATIVE with an upstream
 *              failed                                  ABSENT or ON_DISK; the suspect copy stays under
 *                                                      stale-if-error; waiters get the error
 *              local replace or delete                 RESIDENT or ABSENT; detached, waiters run again
 *              own write upstream, invalidation,       detached (no-keep, not joinable): its waiters get what
 *              generation change                       it brings, later requests start another fetch
 *              flush, swap of its database             goes on under its incarnation; its waiters run again
 *   RESIDENT   a request waits for other keys          PINNED
 *              a suspect, asked for                    FETCHING; what is pinned or demoting is detached, and
 *                                                      a copy of it becomes the suspect
 *              evicted, clean                          ON_DISK or ABSENT
 *              evicted, dirty                          DEMOTING (ABSENT without a disk tier)
 *              write                                   RESIDENT (dirty): forget the disk copy, tombstone
 *              delete, expiry, invalidation            ABSENT, tombstone if the disk has it
 *   RESIDENT   a hit past its rule's time (refresh)    FETCHING, and served from `value` while that is fresh enough;
 *   or PINNED                                          pins stay
 *   PINNED     last waiter ran                         RESIDENT
 *   DEMOTING   committed, not touched meanwhile        ON_DISK
 *              committed, read meanwhile or pinned     RESIDENT or PINNED (clean)
 *              commit failed                           RESIDENT (dirty)
 *              write or delete                         RESIDENT (dirty) or ABSENT, tombstone
 *
 * A *detached* residency has left the table; it lives until its fetch and its waiters let
 * go, and a completion that finds it detached changes no table: that is what the sequence
 * numbers of the design amount to here, since a residency is never attached twice.
 *
 * With `appendonly yes` every write is appended to the disk's log at once, under the lock
 * that its handler holds, instead of a tombstone; a large list that changed in place (see
 * TIER_JOURNAL_NOW) is *owed* for a while: the disk keeps the older version so long.
 *
 * Demotion removes the object after the commit, if the index still names the block that the
 * commit has written: whatever changed the key has replaced that slot. tests/unit/test_tier.c takes the table row by row, test_tier_model.c
 * walks all of it with delays and failures at every step. */

struct tier_worker;
struct upstream;
struct residency;

struct tier_shard {
    uint32_t watched; /* WATCHes and blocked clients registered here: change() is called only when > 0 */
};

/* Why change() is called. FIELDS: some of a hash have expired; EMPTIED: with the last of them the key went. */
enum tier_change { TIER_WRITTEN, TIER_DELETED, TIER_EXPIRED, TIER_EVICTED, TIER_FIELDS, TIER_EMPTIED };

/* With appendonly: a list larger than this is not written once per change but once per commit. */
#define TIER_JOURNAL_NOW 4096

struct tier_options {
    struct mem *mem;
    struct disk *disk; /* NULL: none. Set with tier_set_disk() once it is open */
    bool upstream;
    int nworkers;
};

/* Settings that threads without a conf snapshot need too; stored relaxed. */
struct tier_limits {
    _Atomic int64_t maxmemory, inflight_max, disk_queue_max, negative_ttl_ms, stale_if_error_ms, tracked_keys_max;
    _Atomic int64_t upstream_max_object;
    _Atomic int64_t disk_min_value, disk_max_value;
    _Atomic int policy, samples, lfu_log_factor, lfu_decay_time, disk_stall_ms;
    _Atomic bool journal, journal_always; /* appendonly yes; and appendfsync always */
};

struct tier {
    struct mem *mem;
    struct disk *disk;
    bool has_upstream;
    /* A foreign write is seen at most this late: the watchdog's period, the time its answer may
     * take, and a timer's slack. A copy whose link was found lost by then is a suspect. In ttl mode
     * it is the other one. */
    int64_t coherence_bound_ms, coherence_ttl_ms;
    int nworkers;
    struct tier_shard *shard; /* parallel to mem->shard, under the same locks */
    struct tier_limits limit;
    struct tier_policy *policy; /* what maxmemory-policy adaptive knows */
    /* The command layer's, set before the loops run: a key of a shard with registrations
     * changed, or (see `events`) any did. Shard locked; must not block. Any thread: w is the worker
     * whose it is, NULL on others (the disk's writer). */
    void (*change)(void *arg, struct worker *w, const struct key *key, enum tier_change why);
    /* With an upstream, and TIER_EVENT_ALL: a key changed there, held here or not (after change() of what was held); its
     * shard need not be locked. NULL: all did, or nothing vouches for any more; all shards are locked. A worker's thread. */
    void (*foreign)(void *arg, struct worker *w, const struct slice *name);
    _Atomic unsigned events; /* enum tier_events: tier_set_events() */
    void *change_arg;
    struct worker **workers;
    _Atomic uint32_t *generation;                    /* [nworkers]; 0 = none now */
    _Atomic int64_t *tracking;                       /* [nworkers] of the upstream's tracking table, about */
    _Atomic int64_t *lost_ms;                        /* [nworkers] when the last one ended, wall */
    _Atomic int64_t inflight_urgent, inflight_ahead; /* bytes of requests that wait, see tier_fault() */
    _Atomic int64_t demoting_bytes, tracked_keys;
    _Atomic int64_t fetched_size; /* running mean of fetched objects, bytes */
    _Atomic int admission_waiters, room_waiting;
    _Atomic int fetches;                /* under way: the disk is not closed before they ended */
    _Atomic int64_t disk_full_since_ms; /* mono; when an append found the queue full; 0 = has room */
    _Atomic uint64_t settled_event,
        failed_event;          /* of the disk's log; failed_event: the end of the last failed commit */
    _Atomic bool paying;       /* a commit is put together: nothing more is owed (journal.c) */
    _Atomic bool held_back;    /* something was owed since the last commit was put together */
    struct buf paying_serial;  /* the disk's writer thread's */
    _Atomic bool owed_large;   /* something large is owed */
    pthread_mutex_t parting;   /* OBJ_F_SAVING is in use: by a save, or by the disk's writer thread. Above all locks */
    _Atomic bool journal_debt; /* writes that the disk did not take: tier_save_start() once it is well */
    struct saver *saver;
    struct tier_big *big;           /* demotes large values (big.c); NULL without a disk */
    struct stats_block *disk_stats; /* of the disk's writer thread */
};

struct tier *tier_create(const struct tier_options *opt, const struct conf *conf);
void tier_set_disk(struct tier *t, struct disk *disk);
/* The disk tier's callbacks (disk.h), arg = struct tier *. */
void tier_disk_owner(struct tier *t, struct disk_owner *out);
/* What the settings say about records on disk: disk_options.retain and .thorough. */
enum disk_retain tier_retain(const struct conf *c);
bool tier_thorough(const struct conf *c);
void tier_destroy(struct tier *t); /* after the loops ended; the disk is closed by the caller before */
/* On the worker's thread: its upstream connections (opt NULL: none). */
struct upstream_options;
void tier_worker_init(struct tier *t, struct worker *w, const struct upstream_options *opt);
void tier_worker_stop(struct worker *w); /* closes the upstream; the loop turns until its handles are gone */
void tier_worker_deinit(struct worker *w);
/* Periodic. */
void tier_worker_tick(struct worker *w);
/* Expiry (if `expire`), reclaim, and what is too much for maxmemory, for about so long. true: there is more. */
bool tier_worker_sweep(struct worker *w, bool expire, int64_t slice_us);
void tier_conf_changed(struct tier *t, const struct conf *conf); /* any thread */
struct upstream *tier_upstream(struct worker *w);                /* NULL = standalone */

/* ---- resolving: the hit path ---- */

/* How often the links that vouch for copies are asked whether they live. */
#define TIER_WATCHDOG_MS 500
#define TIER_WATCHDOG_TIMEOUT_MS 500 /* and how long they have to answer, whatever upstream-timeout-ms is */

/* Bytes that may be queued for the disk, given an eighth of maxmemory. */
#define TIER_DISK_QUEUE(eighth) \
    ((size_t)((eighth) < (1 << 20) ? (1 << 20) : (eighth) > (16 << 20) ? (16 << 20) : (eighth)))

enum tier_need {
    TIER_VALUE,    /* the object */
    TIER_PRESENCE, /* whether it exists, in any tier */
    TIER_NOTHING   /* it is going to be replaced */
};
struct tier_found {
    struct object *obj; /* usable until the lock is let go */
    uint32_t block;     /* with ST_PENDING: where the disk has it; 0 = not known */
    bool on_disk;       /* obj NULL: exists on disk (PRESENCE and NOTHING) */
    bool kept;          /* obj is in the table */
};
/* With an upstream: will it tell when the key changes? obj: what tier_resolve_locked() found, in the table or NULL. Shard
 * locked. */
bool tier_vouched_locked(struct worker *w, const struct key *key, const struct object *obj);
struct tier_wait;
/* Shard locked. `wait`: what tier_fault() brought for this key, or NULL. ST_PENDING: unlock,
 * call tier_fault(). An error status: what the fetch failed with. Never allocates on a hit. */
enum status tier_resolve_locked(struct worker *w, struct mem_shard *shard, const struct key *key, enum tier_need need,
                                const struct tier_wait *wait, struct tier_found *out);

/* ---- faulting in ---- */

struct tier_request;
struct tier_wait {
    struct list link; /* among the residency's waiters */
    struct key key;   /* ptr: the request's own memory */
    struct tier_request *req;
    struct residency *res; /* pinned or waited for; NULL = none */
    enum status st;        /* ST_OK; ST_NOT_FOUND: known absent; else the failure */
    bool waiting;          /* linked */
    uint8_t need;          /* enum tier_need */
};
/* The keys of one waiting request. Owned by its worker; embedded by the owner. */
struct tier_request {
    struct mbox_msg msg;
    struct list admission; /* waiting for inflight-max-bytes */
    struct worker *w;
    _Atomic int pending;
    bool cancelled;
    bool urgent;
    int64_t charge; /* its share of inflight-max-bytes */
    int nwaits;
    struct tier_wait *waits;
    void (*ready)(struct tier_request *req); /* the worker's thread */
    _Atomic int64_t upstream_us; /* since when (clock_mono_us()) a key was waited for upstream; 0: none was */
    _Atomic bool has_error;      /* the first failure writes it */
    char error[160];             /* the upstream's text when a wait's st is ST_BAD */
};

/* The worker's thread, no lock held. Pins what is resident and starts or joins a fetch for
 * the rest; waits[].key and .need are set by the caller. ST_OK: nothing to wait for (run
 * now); ST_PENDING: ready() will be called, exactly once. `urgent`: it is the oldest of its
 * client. Others are look-ahead, and get ST_BUSY (nothing was done) while half of
 * inflight-max-bytes is taken by such. An urgent request waits while the limit is reached,
 * unless no other urgent one is in flight: so the oldest always get on. */
enum status tier_fault(struct worker *w, struct tier_request *req, bool urgent);
/* Before a request is made to wait for a key: brings it in from disk, if that can be done without
 * waiting. The worker's thread, no lock held. true: resolving it again is worth it. */
bool tier_fault_inline(struct worker *w, const struct key *key, enum tier_need need);

/* The key's shard and perhaps others are locked, and what runs cannot be stopped any more: reads it from disk now. false:
 * it could not be read. */
bool tier_fault_now_locked(struct worker *w, struct mem_shard *shard, const struct key *key);

/* What the disk has of a key, for one request that only reads it: in a full memory something else
 * would have to go for it. The owner frees `obj`. */
struct tier_copy {
    struct object *obj;
    uint64_t hash;
    uint32_t block;
};
/* The same as tier_fault_inline() for a key in that block, which may leave a copy instead. */
bool tier_read_inline(struct worker *w, const struct key *key, uint32_t block, struct tier_copy *copy);
/* Is the copy what the key has now? */
bool tier_copy_is_current_locked(struct worker *w, struct mem_shard *shard, const struct key *key,
                                 const struct tier_copy *copy);
/* After the request ran (or gave up): unpins. */
void tier_release(struct worker *w, struct tier_request *req);
/* The client went while ready() was outstanding (else: tier_release()). true: nothing refers to the request any more, free it. false: ready()
 * will be called with `cancelled` set; free it there. */
bool tier_cancel(struct worker *w, struct tier_request *req);

/* The value compressed as the settings say, counted; NULL when it stays plain. The worker's
 * thread; best before any lock is taken. */
struct rcbuf *tier_pack(struct worker *w, struct slice value);

/* ---- changing: shard locked; any worker ---- */

/* Makes `o` the key's value. Frees what was there. */
void tier_put_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *o);
/* true: it existed in some tier. */
bool tier_delete_locked(struct worker *w, struct mem_shard *shard, const struct key *key, enum tier_change why);
/* keys' resident object was changed in place, or (o != old) is to be replaced by `o`, its
 * successor made from it (object_set_expire()); `old` is already freed then. had_expire: before the change. */
void tier_changed_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *old,
                         struct object *o, bool had_expire);
/* The same, but for those who watch the key (tier.change). */
void tier_changed_quietly_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *old,
                                 struct object *o, bool had_expire);
/* Fields of keys' resident hash have got an expiry: from now on the sweep looks at it. */
void tier_fields_timed_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *o);
/* n fields of it have expired and were removed: counts and tells. Nothing is written for it, for who reads the value from disk
 * comes to the same. */
void tier_fields_expired_locked(struct worker *w, struct mem_shard *shard, const struct key *key, size_t n);
/* All shards locked. */
void tier_flush_db_locked(struct worker *w, unsigned db);
void tier_swap_db_locked(struct worker *w, unsigned a, unsigned b);

/* ---- keys that are not the upstream's (space.c) ----
 * With an upstream, a key whose rule says write=local lives only here, in a key space beside that of its database:
 * key.db is then mem->databases + db. It is resolved, evicted, expired and kept on disk as without an upstream. */

/* By the worker's rules. Its thread. */
bool tier_name_is_local(const struct worker *w, struct slice name);
unsigned tier_space_of(const struct worker *w, unsigned db, struct slice name);
/* Where a key of this name is: what mem_key_init() wants to know. */
static inline unsigned tier_space(const struct worker *w, unsigned db, struct slice name)
{
    return LIKELY(!w->conf->rules_local) ? db : tier_space_of(w, db, name);
}
static inline bool tier_key_is_local(const struct tier *t, const struct key *key)
{
    return key->db >= t->mem->databases;
}
/* Is there an upstream whose key it is? */
static inline bool tier_key_is_upstream(const struct tier *t, const struct key *key)
{
    return t->has_upstream && key->db < t->mem->databases;
}
int64_t tier_local_keys(const struct tier *t);          /* any thread */
void tier_flush_local_locked(struct worker *w, int db); /* all shards locked; db -1: of all databases */

/* A write of this key was sent to the upstream, or was answered: drops the local copy, and a
 * fetch under way is neither kept nor joined; and foreign() is told. No lock held. */
void tier_forget_upstream(struct worker *w, unsigned db, struct slice name);
void tier_forget_all_upstream(struct worker *w);
/* A read of a part of this upstream key (HGET, LRANGE, ...) could not be answered here: if that happens again, the whole
 * of it is fetched in the background. No lock held. */
void tier_want(struct worker *w, const struct key *key);
/* After an answer of the upstream to something that may have changed any key: done(arg) comes on this thread when no
 * worker holds a copy that is older and that anybody vouches for. Never before it returns; no lock held. */
void tier_fence(struct worker *w, void (*done)(void *arg), void *arg);

/* ---- durability ---- */

/* What else change() is called for, in any tier. Any thread. */
enum tier_events {
    TIER_EVENT_GONE = 1 << 0,  /* every key that expires or is evicted */
    TIER_EVENT_ALL = 1 << 1,   /* every change */
    TIER_EVENT_FIELDS = 1 << 2 /* every hash in memory of which fields expire */
};
void tier_set_events(struct tier *t, enum tier_events which, bool on);

/* Before a command that writes, with appendonly. No lock held. ST_OK; ST_PENDING: too much
 * waits to be written, see tier_wait_room(); ST_IO: `always`, and the disk cannot be written. */
enum status tier_may_write(struct worker *w);
/* Around a command or transaction that writes several keys: all of it is on disk, or nothing.
 * Begin before its shards are locked. Does nothing without appendonly. */
void tier_group_begin(struct worker *w);
void tier_group_end(struct worker *w);
/* May several keys be changed now so that they are on disk together: without appendonly, or within a group. */
bool tier_grouped(const struct worker *w);
/* The key's shard is locked: what the journal owes of it is written now, because another worker's
 * client will be told of it. */
void tier_pay_locked(struct worker *w, const struct key *key);
/* With appendfsync always: a wait for the commit of what was done. `since` is what tier_sync_since()
 * said when it was done; a commit that failed since then fails the wait. */
struct tier_sync_wait {
    struct list link;
    uint64_t since, event;
    /* The worker's thread. !ok: it could not be written. */
    void (*done)(struct tier_sync_wait *sw, bool ok);
};
uint64_t tier_sync_since(const struct worker *w);                   /* of the command that runs */
bool tier_sync_needed(struct worker *w, struct tier_sync_wait *sw); /* fills in `event` */
void tier_wait_sync(struct worker *w, struct tier_sync_wait *sw);
void tier_cancel_sync(struct worker *w, struct tier_sync_wait *sw);

/* SAVE, BGSAVE, BGREWRITEAOF: writes what is dirty in memory to the disk, and waits until it
 * is there, on a thread of its own. ST_BUSY: one runs already; ST_IO: no disk tier. done() is
 * called on that thread. NULL: nobody asks. */
enum status tier_save_start(struct tier *t, void (*done)(void *arg, bool ok), void *arg);
struct tier_save_figures {
    bool running, last_ok;    /* last_ok: true before the first */
    int64_t started_ms;       /* of the one that runs, wall clock; 0 = none */
    int64_t last_save_s;      /* LASTSAVE: when the last good one ended; at first the start of the server */
    int64_t last_duration_s;  /* -1 = none yet */
    int64_t saves;            /* good ones */
    int64_t changes;          /* writes of keys since the last good one began */
    int64_t written, total;   /* keys, of the one that runs */
    bool journal;             /* appendonly */
    bool journal_ok;          /* the last commit could be written */
    uint64_t journal_waiting; /* bytes not yet on disk */
};
void tier_get_save_figures(struct tier *t, struct tier_save_figures *out); /* any thread */

/* ---- a file of Redis (load.c) ---- */

struct tier_load {
    /* What to do with a library of functions. false: *err says why the file cannot be loaded. NULL: they are left out. */
    bool (*library)(void *arg, struct slice source, char err[256]);
    void *arg;
    int64_t keys, expired, libraries; /* loaded; keys left out, for their time has come */
};
/* Before the loops run, as worker `w`: loads an RDB file of Redis, up to 7.0's version. ST_NOT_FOUND: there is none. Else
 * err says why not, and some of its keys may be there. */
enum status tier_load_rdb(struct worker *w, const char *path, const struct obj_limits *lim, struct tier_load *out,
                          char err[256]);

/* ---- memory ---- */

/* Before a command that may add data. No lock held. ST_OK; ST_FULL: answer OOM; ST_PENDING:
 * the disk queue is full, or all that could go is in use: try again when tier_wait_room() says
 * so, at the latest after a tick. */
enum status tier_make_room(struct worker *w);
bool tier_has_room(struct worker *w); /* surely: nothing has to be made */
/* Called once, on this worker's thread, when the disk queue has room again. */
struct tier_room_wait {
    struct list link;
    struct tier *tier; /* set by tier_wait_room() */
    void (*ready)(struct tier_room_wait *rw);
};
void tier_wait_room(struct worker *w, struct tier_room_wait *rw);
void tier_cancel_room(struct tier_room_wait *rw);

/* An access by a client: the policy's eviction data. Shard locked. */
void tier_touch_locked(struct worker *w, struct object *o);
/* As if it was last used so long ago, or used so often (0 to 255); -1: not said. What the policy in force has no figure
 * for changes nothing. */
void tier_set_access_locked(struct worker *w, struct object *o, int64_t idle_s, int freq);
int64_t tier_object_idle_ms(struct worker *w, const struct object *o);
int tier_object_freq(struct worker *w, const struct object *o);

/* ---- walking the key space (KEYS, SCAN, RANDOMKEY) ---- */

/* One step from `cursor` (a hash): all keys of one bucket's range, in memory and on disk. Takes and
 * leaves the shard's lock (locked: all are locked already). mem_fn gets objects under the lock; disk_fn
 * gets slots that are not in memory, until it returns false. *next: 0 = done. */
void tier_scan_step(struct worker *w, bool locked, uint64_t cursor, uint64_t *next,
                    void (*mem_fn)(void *arg, const struct object *o),
                    bool (*disk_fn)(void *arg, const struct disk_slot *slot), void *arg);

/* ---- for INFO ---- */
struct tier_figures {
    int64_t upstream_copies; /* in memory and on disk: tracked-keys-max */
    int64_t tracking_table;  /* keys of ours in the upstream's tracking table, about */
    int64_t local_keys;      /* with an upstream: in memory and on disk, of write=local rules */
    int64_t memory_keys, memory_bytes, disk_keys, disk_bytes, demoting_bytes, inflight_bytes;
    bool disk_on, disk_healthy;
    const char *upstream_state; /* "none", "up", "degraded" (some workers), "down" */
    const char *coherence_mode; /* "tracking", "broadcast", "ttl", "none" */
    char coherence_reason[240]; /* why it is not the one that was asked for; "" = it is */
    const char *breaker;        /* of the worker that is worst off: "closed", "half-open", "open" */
    int64_t breaker_opens, breaker_refused, pins, subscriptions; /* of all workers */
    int64_t coherence_bound_ms;
    int64_t disk_queue_bytes, disk_commits, disk_index_bytes, disk_corrupt, disk_io_errors, disk_written_bytes;
};
void tier_get_figures(struct tier *t, struct tier_figures *out); /* any thread */

/* A clean stop: ends a save that runs, then appends every dirty object, hottest first, within the
 * time. After the loops stopped reading. Returns how many could not be written, or -1: the disk failed. */
int64_t tier_write_out(struct tier *t, int64_t timeout_ms);
/* Ends a save that runs and demotions of large values, and starts no others. Before the disk is closed. */
void tier_save_stop(struct tier *t);

#endif
