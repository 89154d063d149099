#ifndef TIERCEL_TIER_PRIV_H
#define TIERCEL_TIER_PRIV_H

#include "tiercel/check.h"
#include "tiercel/disk.h"
#include "tiercel/rules.h"
#include "tiercel/stats.h"
#include "tiercel/tier.h"
#include "tiercel/upstream.h"
#include "tiercel/warm.h"

/* The record of a key that is fetched or pinned. Everything in it is under the lock of the
 * shard of `hash`. References: one of the table while attached, one of its fetch, one of
 * every tier_wait that waits for it or pins it. */
struct residency {
    uint32_t refs;
    uint32_t pins;
    bool attached;
    bool fetching;
    bool refresh; /* fetching, while `value` is served as long as its freshness allows */
    uint64_t hash;
    struct object *value;        /* fetching: a suspect copy or NULL */
    struct object *node;         /* the OBJ_RESIDENCY object in the table, while attached */
    struct list waiters;         /* struct tier_wait */
    _Atomic int64_t upstream_us; /* since when its fetch waits for the upstream; 0: it does not */
};

#define POOL_SIZE 16
struct evict_pool {
    struct {
        uint64_t score; /* larger: rather evicted */
        uint64_t hash;
        const struct object *obj; /* only compared, never followed */
    } entry[POOL_SIZE];
    unsigned n;
    uint64_t next; /* at random, where the next sample is taken */
};

struct policy_worker {           /* policy.c */
    struct evict_pool probation; /* `pool` has those of the main part */
    uint64_t evictions;
    float share; /* of the objects that are on probation, as samples say */
};

#define REFRESHES_MAX 256    /* under way in the background, per worker */
#define REFRESH_FAILURES 256 /* keys remembered whose last refresh failed, per worker */
struct refresh_failure {     /* fresh.c */
    uint64_t hash;
    int64_t until_ms; /* wall */
};

struct tier_worker {
    struct worker *w;
    struct upstream *up;
    struct list reads;        /* struct fetch, to hand to the disk readers */
    struct list upstream_now; /* struct fetch, to send when no lock is held */
    struct mbox_msg reads_msg;
    bool reads_posted;
    struct list admission; /* tier_request.admission */
    struct mbox_msg admit_msg;
    _Atomic bool admit_posted;
    struct list room_waiters; /* tier_room_wait */
    struct mbox_msg room_msg;
    _Atomic bool room_posted;
    bool dropping; /* tier_drop_coldest() is at it */
    struct evict_pool pool;
    struct policy_worker policy;
    struct buf serial; /* scratch for demotion and journal */
    unsigned sweep_shard;
    pthread_mutex_t owed_mu; /* guards the next two; below the shard locks */
    struct buf owed;         /* struct key and name of what the journal owes, noted here (journal.c) */
    _Atomic int owed_n;
    bool in_group;
    uint64_t since;    /* settled_event before the last command that writes */
    bool unwritten;    /* the disk refused a write that was not acknowledged yet */
    struct list syncs; /* tier_sync_wait */
    _Atomic int sync_waiting;
    struct mbox_msg sync_msg;
    _Atomic bool sync_posted;
    struct list fence_next, fence_now; /* struct fence_part: to ask for, asked for (fence.c) */
    struct upstream_fence fence;
    bool fencing;
    int64_t fence_since_us;
    struct touch *touches; /* want.c; NULL until used */
    unsigned wants;        /* background fetches under way */
    int refreshes;         /* under way */
    struct mbox_msg refresh_msg;
    bool refresh_posted;
    struct refresh_failure refresh_failure[REFRESH_FAILURES];
    uint32_t *touched; /* touch.c; NULL until it is needed */
};

/* How an object in the table may be used now. */
enum liveness {
    LIVE,
    AGING,         /* a copy in the last part of its ttl: a hit refreshes it */
    STALE,         /* past its ttl, within stale-while-revalidate: served and refreshed */
    OLD,           /* past that: to be fetched, like a suspect */
    NEGATIVE_LIVE, /* known absent */
    SUSPECT,       /* a copy nobody vouches for */
    GONE           /* expired, or a negative entry whose time is over */
};

/* resident.c */
enum liveness tier_liveness(struct worker *w, const struct object *o);
bool tier_origin_current(const struct tier *t, uint64_t origin);
void tier_foreign_all_locked(struct worker *w); /* tier.foreign() of all keys; all shards locked */
struct residency *residency_of(const struct object *node);
struct residency *residency_attach_locked(struct tier *t, struct mem_shard *shard, const struct key *key,
                                          mem_slot *slot, struct object *value);
void residency_detach_locked(struct tier *t, struct mem_shard *shard, struct residency *r);
void residency_unwrap_locked(struct tier *t, struct mem_shard *shard, struct residency *r);
void residency_unref(struct residency *r);
void tier_object_gone(struct tier *t, const struct object *o);
bool tier_forget_disk_locked(struct tier *t, uint64_t hash, bool *had_expire);
/* w: the worker whose thread this is, or NULL. */
void tier_notify_locked(struct tier *t, struct worker *w, struct mem_shard *shard, const struct key *key,
                        enum tier_change why);

/* fresh.c */
/* What rules and settings say of a key. */
void tier_rules(struct worker *w, struct slice name, struct rule_values *out);
bool tier_stamp_reached(uint64_t origin, int64_t now_ms);
/* The origin of a copy that was fetched at since_ms. */
uint64_t tier_fresh_origin(struct worker *w, const struct key *key, const struct rule_values *v, uint32_t generation,
                           int64_t since_ms);
enum liveness tier_age(struct worker *w, const struct object *o); /* of a coherent copy whose stamp is reached */
bool tier_stale_allowed(struct worker *w, const struct object *o);
bool tier_refresh_waits(struct worker *w, uint64_t hash); /* the last one of this key failed just now */
void tier_refresh_failed(struct worker *w, uint64_t hash);

/* touch.c: was the key asked for lately? From now on it was. The worker's thread. */
bool tier_touch_twice(struct worker *w, const struct key *key);

/* untracked.c: upstream_fetch(), but for answering alone: generation 0. May call done() before it returns. */
void tier_fetch_untracked(struct upstream *up, struct upstream_fetch *uf);

/* copies.c: tracked-keys-max. No lock held. */
int64_t tier_copies(const struct tier *t);
void tier_bound_copies(struct worker *w);
int64_t tier_tracking(const struct tier *t); /* keys in the upstream's tracking table for us, about; any thread */
void tier_tracking_update(struct worker *w);
/* evict.c: the least wanted key in memory goes, from the disk too, whatever the policy. false: there is none. */
bool tier_drop_coldest(struct worker *w);

/* fault.c, and for fault_upstream.c: */
/* One fetch, from the disk or the upstream. Its worker's, except that a disk reader fills
 * in `found` and `st` before it posts it back. */
struct fetch {
    struct mbox_msg msg;
    struct list link;
    struct worker *w;
    struct residency *res;
    struct disk_read rd;
    struct upstream_fetch uf;
    struct key key; /* ptr: name */
    uint32_t incarnation;
    enum status st;
    bool whole;           /* in the background, whatever its type: tier_fetch_whole() */
    struct object *found; /* what the disk had */
    bool refresh;         /* nobody waits: see tier_refresh_locked() */
    int64_t since_us;     /* when the tier that is asked now was */
    char name[];
};

/* The fetched object becomes the key's value. */
void tier_install_locked(struct worker *w, struct mem_shard *shard, struct residency *r, struct object *o);
/* It is nowhere, or could not be had. */
void tier_fetch_failed_locked(struct worker *w, struct mem_shard *shard, struct residency *r, enum status st,
                              const char *error);
/* In the database that the key belongs to now: it may have been swapped or flushed since. */
void tier_count_fetched(struct worker *w, const struct key *key, int keys, bool expires);
void tier_fetch_free(struct fetch *f);
void tier_installed(struct worker *w); /* no lock held */
/* A tier is asked; it has answered (or not within its time). `timed`: it counts in the tier's histogram. */
void tier_fetch_asks(struct fetch *f, enum stats_id waiting);
void tier_fetch_answered(struct fetch *f, enum stats_id waiting, enum stats_hist_id hist, bool timed);
/* fault_upstream.c: no lock held; may complete at once. */
void tier_fetch_upstream(struct fetch *f);

/* fault.c */
/* The key's copy is fetched anew in the background, unless that is done already or must not be now. */
void tier_refresh_locked(struct worker *w, struct mem_shard *shard, const struct key *key);
struct rcbuf *tier_pack_as(struct worker *w, struct slice value, enum rule_compress how);
void tier_wake_waiters_locked(struct worker *w, struct residency *r, enum status st, const char *error);
void tier_fault_init(struct tier_worker *tw);
void tier_drop_room_waits(struct tier_worker *tw);
void tier_count_disk_hit(struct worker *w, const struct object *o, bool stays);
void tier_learn_size(struct tier *t, const struct object *o);

/* want.c */
void tier_want_unreadable(struct worker *w, uint64_t hash); /* the key's value was of no use: not again for a while */
/* It came, and was perhaps kept: when its copy is gone, it is asked for anew, the later the larger it is. */
void tier_want_fetched(struct worker *w, uint64_t hash, size_t bytes);
void tier_want_over(struct worker *w); /* a background fetch has ended */
/* fault.c: fetches the value, of whatever type, for nobody in particular, and then says tier_want_over(). No lock held.
 * false: there is no need to. */
bool tier_fetch_whole(struct worker *w, const struct key *key);

/* fence.c */
void tier_fence_init(struct tier_worker *tw);

/* parts.c */
#define TIER_BIG_BYTES (256 * 1024) /* of the serial form; smaller ones are serialised at once */
struct pace;
struct tier_parts {
    struct tier *t;
    struct object_parts at;
    struct buf part;     /* the newest one */
    struct rcbuf *whole; /* what was taken so far: `len` bytes of it; all of it after the last one. MEM_DATA */
    size_t len, about;
    bool last;
};
void tier_parts_init(struct tier_parts *p, struct tier *t);
/* Serialises the next part. The object is as it was at the first one. */
void tier_parts_next_locked(struct tier_parts *p, const struct object *o);
/* Takes it; may rest, so no lock is held. Once for each part. */
void tier_parts_take(struct tier_parts *p, struct pace *pace);
void tier_parts_deinit(struct tier_parts *p);
/* Is its serial form made in parts? */
static inline bool tier_is_parted(const struct object *o)
{
    return object_is_parted(o) && object_stored_len(o) >= TIER_BIG_BYTES;
}

/* big.c */
bool tier_big_start(struct tier *t); /* with a disk; false: no thread is to be had */
void tier_big_stop(struct tier *t);  /* what waits stays in memory; again: nothing */
bool tier_is_big(const struct tier *t, const struct object *o);
void tier_demote_big_locked(struct tier *t, const struct key *key, struct object *o);
void tier_big_leaves_locked(struct tier *t, const struct object *o); /* before OBJ_F_LEAVING is set */
/* evict.c: appends the record of an object that leaves with its commit. */
enum status tier_append_leaving_locked(struct tier *t, struct stats_block *stats, struct object *o,
                                       struct disk_record *rec);

/* sweep.c */
void tier_sweep_dead_locked(struct worker *w); /* all shards locked */

/* evict.c */
void tier_access_init(struct tier *t, struct object *o, int64_t now_ms);
void tier_committed(void *arg, const struct disk_done *items, size_t n, enum status st);
void tier_dropped(void *arg, const struct disk_gone *items, size_t n);
bool tier_keep_locked(void *arg, const struct disk_gone *rec);
void tier_room(void *arg);
void tier_wake_room(struct tier *t); /* memory became free; any thread */
bool tier_over_limit(struct tier *t);
int64_t tier_mark(const struct tier *t); /* of the bytes of MEM_DATA: evicting keeps it below; less than maxmemory */
int64_t tier_over_mark(struct tier *t);  /* bytes; 0: it is not */

/* policy.c: maxmemory-policy adaptive */
struct tier_policy *tier_policy_create(void);
void tier_policy_destroy(struct tier_policy *p);
uint32_t tier_policy_new(struct tier *t,
                         const struct object *o); /* eviction data of an object that comes; any thread */
bool tier_policy_in_main(const struct object *o);
uint64_t tier_policy_score(const struct tier *t, const struct object *o); /* larger: older in its part */
unsigned tier_policy_cold(const struct object *o);
void tier_policy_begin(struct worker *w); /* an eviction; no lock held */
void tier_policy_sampled(struct worker *w, size_t seen, size_t on_probation);
bool tier_policy_takes_probation(const struct worker *w); /* is the next victim to come from there? */
/* Its turn has come. true: it was used, and stays. */
bool tier_policy_spares_locked(struct worker *w, struct object *o);
void tier_policy_evicted(struct worker *w, uint64_t hash, bool from_main);
/* Eviction data after one more use. */
static inline uint32_t tier_policy_used(uint32_t access)
{
    return (access & 3) < 3 ? access + 1 : access;
}

/* journal.c */
void tier_journal_init(struct tier_worker *tw);
void tier_journal_deinit(struct tier_worker *tw);
/* What an object is on disk; *serial holds the payload. Unref rec->payload_ref afterwards. */
/* All but the payload. */
void tier_fill_head(const struct tier *t, const struct key *key, const struct object *o, struct disk_record *rec);
void tier_fill_record(const struct tier *t, const struct key *key, const struct object *o, struct buf *serial,
                      struct disk_record *rec);
/* Is the record of this object to be written by the journal? */
bool tier_journals(const struct tier *t, const struct object *o);
/* The key's new value, or its change in place, goes to the disk's log; now or with the next commit. */
void tier_journal_locked(struct worker *w, const struct key *key, struct object *o);
/* Has the disk no committed or queued record of this very value? */
bool tier_dirty_locked(const struct tier *t, const struct object *o, uint64_t hash);
void tier_flush_owed(struct worker *w); /* no lock held */
bool tier_committing(void *arg, bool begin);
void tier_settled(void *arg, uint64_t event, bool ok);
/* What could not be written is written, now that the disk is well. */
void tier_pay_debt(struct tier *t);

/* save.c */
void tier_save_init(struct tier *t);

/* warm_source.c: where a job's names come from. On the job's worker. */
struct warm_source;
enum warm_next {
    WARM_NEXT_NAME,
    WARM_NEXT_BAD,   /* one that cannot be a key */
    WARM_NEXT_LATER, /* wake() comes, or with *retry_ms > 0: ask again then */
    WARM_NEXT_NONE,  /* that was all */
    WARM_NEXT_BROKEN /* warm_source_error() says why */
};
enum status warm_source_create(struct worker *w, int db, const struct warm_spec *spec, void (*wake)(void *arg),
                               void *arg, struct warm_source **out, char err[WARM_ERROR_MAX]);
/* *name is valid until the next call, and until the loop turns. May call wake() before it returns. */
enum warm_next warm_source_next(struct warm_source *src, struct slice *name, int64_t *retry_ms);
const char *warm_source_error(const struct warm_source *src);
/* In keys or bytes; *total 0: unknown. */
void warm_source_progress(const struct warm_source *src, int64_t *done, int64_t *total);
bool warm_source_busy(const struct warm_source *src); /* it waits for wake(): must not be destroyed */
void warm_source_destroy(struct warm_source *src);

static inline struct mem_shard *tier_shard_of(const struct tier *t, uint64_t hash)
{
    return mem_shard_of(t->mem, hash);
}

/* An origin: worker + 1, the low bits of the generation, and when its rule has to be looked at (fresh.c; 0 = never). */
#define ORIGIN_STAMP_BITS 30
#define ORIGIN_GENERATION_BITS 26

static inline uint64_t tier_origin(int worker, uint32_t generation)
{
    uint64_t low = generation & ((1u << ORIGIN_GENERATION_BITS) - 1);
    return (uint64_t)(worker + 1) << (ORIGIN_STAMP_BITS + ORIGIN_GENERATION_BITS) | low << ORIGIN_STAMP_BITS;
}

/* Its worker's id; a very large number: none of ours. */
static inline uint32_t tier_origin_worker(uint64_t origin)
{
    return (uint32_t)(origin >> (ORIGIN_STAMP_BITS + ORIGIN_GENERATION_BITS)) - 1;
}

static inline bool tier_origin_stamped(uint64_t origin)
{
    return (origin & ((1u << ORIGIN_STAMP_BITS) - 1)) != 0;
}

#endif
