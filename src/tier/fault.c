/* Faulting in: waiting requests, fetches shared between them, and their completion. */
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/rdb.h"
#include "tier_priv.h"

#define FETCHED_SIZE_INIT 1024 /* what a fetched object is taken to weigh before any was seen */

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

/* ---- how long the tiers take ---- */

static void fetch_asks(struct fetch *f, enum stats_id waiting)
{
    f->since_us = clock_mono_us();
    stats_inc(f->w->stats, waiting);
}

/* Answered, or not within its time. */
static void fetch_answered(struct fetch *f, enum stats_id waiting, enum stats_hist_id hist, bool timed)
{
    stats_add(f->w->stats, waiting, (uint64_t)-1);
    if (timed)
        stats_time(f->w->stats, hist, clock_mono_us() - f->since_us);
}

/* ---- waiters ---- */

static void request_ready(struct mbox_msg *msg, void *owner)
{
    struct tier_request *req = LIST_ENTRY(msg, struct tier_request, msg);
    (void)owner;
    req->ready(req);
}

/* One thing less to wait for; the last one sends the request home. Any worker. */
static void request_settle(struct tier_request *req)
{
    if (atomic_fetch_sub_explicit(&req->pending, 1, memory_order_acq_rel) == 1) {
        req->msg.run = request_ready;
        mbox_post(req->w->mbox, &req->msg);
    }
}

/* Gives every waiter its answer. With ST_OK and a value each becomes a pin; the residency's
 * references go over to the pins. */
void tier_wake_waiters_locked(struct worker *w, struct residency *r, enum status st, const char *error)
{
    struct list *l;
    bool pin = st == ST_OK && r->value;
    int64_t upstream_us = atomic_load_explicit(&r->upstream_us, memory_order_relaxed);
    (void)w;

    while ((l = list_pop_front(&r->waiters))) {
        struct tier_wait *wait = LIST_ENTRY(l, struct tier_wait, link);
        wait->waiting = false;
        wait->st = st;
        if (upstream_us != 0)
            atomic_store_explicit(&wait->req->upstream_us, upstream_us, memory_order_relaxed);
        if (error && !atomic_exchange(&wait->req->has_error, true)) /* keys fail on several threads at once */
            snprintf(wait->req->error, sizeof(wait->req->error), "%s", error);
        if (pin) {
            r->pins++;
        } else {
            wait->res = NULL;
            residency_unref(r);
        }
        request_settle(wait->req);
    }
}

/* ---- starting ---- */

static void reads_run(struct mbox_msg *msg, void *owner)
{
    struct tier_worker *tw = LIST_ENTRY(msg, struct tier_worker, reads_msg);
    struct list batch;
    (void)owner;

    tw->reads_posted = false;
    list_init(&batch);
    struct list *l;
    while ((l = list_pop_front(&tw->reads)))
        list_push_back(&batch, &LIST_ENTRY(l, struct fetch, link)->rd.link);
    if (!list_empty(&batch))
        disk_read_submit(tw->w->tier->disk, &batch);
}

static void fetch_finish(struct mbox_msg *msg, void *owner);
static void fetch_upstream(struct fetch *f);

static void disk_read_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct fetch *f = LIST_ENTRY(rd, struct fetch, rd);

    if (st == ST_OK)
        st = object_parse_paced(rec->type, &f->key, rec->payload, rec->expire_ms, rec->origin, rd->pace, &f->found);
    f->st = st;
    f->msg.run = fetch_finish;
    mbox_post(f->w->mbox, &f->msg);
}

static struct fetch *fetch_create(struct worker *w, struct residency *r, const struct key *key)
{
    struct fetch *f = mem_calloc(MEM_CLIENT, sizeof(*f) + key->len);

    f->w = w;
    f->res = r;
    r->refs++;
    r->fetching = true;
    atomic_store_explicit(&r->upstream_us, 0, memory_order_relaxed);
    atomic_fetch_add(&w->tier->fetches, 1);
    memcpy(f->name, key->ptr, key->len);
    f->key = *key;
    f->key.ptr = f->name;
    f->incarnation = atomic_load_explicit(&w->tier->mem->full_inc[key->inc], memory_order_relaxed);
    return f;
}

static void fetch_read(struct fetch *f, uint32_t block)
{
    struct worker *w = f->w;
    struct tier_worker *tw = w->tier_worker;

    fetch_asks(f, STAT_tier_disk_reads_waiting);
    f->rd = (struct disk_read){.key = f->key, .incarnation = f->incarnation, .block = block, .done = disk_read_done};
    list_push_back(&tw->reads, &f->link);
    if (!tw->reads_posted) { /* one hand-over per loop iteration */
        tw->reads_posted = true;
        tw->reads_msg.run = reads_run;
        mbox_post(w->mbox, &tw->reads_msg);
    }
}

/* Queues the fetch of a key: from `block` on disk, or from the upstream. Sent when no lock is held. */
static struct fetch *fetch_start_locked(struct worker *w, struct residency *r, const struct key *key, bool on_disk,
                                        uint32_t block)
{
    struct fetch *f = fetch_create(w, r, key);

    if (on_disk)
        fetch_read(f, block);
    else
        list_push_back(&w->tier_worker->upstream_now, &f->link);
    return f;
}

static void send_upstream_now(struct tier_worker *tw)
{
    struct list *l;

    while ((l = list_pop_front(&tw->upstream_now)))
        fetch_upstream(LIST_ENTRY(l, struct fetch, link));
}

static void join_locked(struct tier_request *req, struct tier_wait *wait, struct residency *r)
{
    r->refs++;
    wait->res = r;
    wait->waiting = true;
    list_push_back(&r->waiters, &wait->link);
    atomic_fetch_add_explicit(&req->pending, 1, memory_order_relaxed);
}

static void pin_locked(struct tier_wait *wait, struct residency *r)
{
    r->refs++;
    r->pins++;
    r->value->flags &= (uint8_t)~OBJ_F_LEAVING;
    wait->res = r;
    wait->st = ST_OK;
}

/* Nothing in memory answers: fetch, unless it is nowhere. `slot`: a suspect copy to be replaced. */
static void miss_locked(struct worker *w, struct mem_shard *shard, struct tier_request *req, struct tier_wait *wait,
                        mem_slot *slot)
{
    struct tier *t = w->tier;
    uint32_t block = 0;
    bool has_expire, on_disk = !slot && t->disk && disk_find_locked(t->disk, wait->key.hash, &block, &has_expire);

    wait->st = ST_NOT_FOUND;
    if (!on_disk && !t->has_upstream)
        return;
    if (on_disk && !t->has_upstream && wait->need == TIER_PRESENCE && !has_expire)
        return;
    struct residency *r = residency_attach_locked(t, shard, &wait->key, slot, slot ? mem_object(*slot) : NULL);
    (void)fetch_start_locked(w, r, &wait->key, on_disk, block);
    join_locked(req, wait, r);
}

/* A suspect that others use stays with them; a copy of it takes its place. */
static mem_slot *suspect_apart_locked(struct tier *t, struct mem_shard *shard, const struct key *key,
                                      struct residency *r)
{
    struct object *copy = object_copy(r->value, key, object_expire(r->value), object_origin(r->value));

    residency_detach_locked(t, shard, r);
    mem_insert_locked(t->mem, shard, key->hash, copy);
    return mem_find_locked(t->mem, shard, key);
}

static bool is_live(enum liveness l)
{
    return l == LIVE || l == AGING || l == STALE;
}

static bool usable(struct worker *w, const struct object *o, enum liveness l)
{
    return is_live(l) ||
           ((l == SUSPECT || l == OLD) && atomic_load(&w->tier->generation[w->id]) == 0 && tier_stale_allowed(w, o));
}

static void fault_key_locked(struct worker *w, struct mem_shard *shard, struct tier_request *req,
                             struct tier_wait *wait)
{
    struct tier *t = w->tier;
    mem_slot *slot = mem_find_locked(t->mem, shard, &wait->key);
    struct object *o = slot ? mem_object(*slot) : NULL;
    struct residency *r = o && o->type == OBJ_RESIDENCY ? residency_of(o) : NULL;

    if (r)
        o = r->value;
    enum liveness l = o ? tier_liveness(w, o) : GONE;
    if (r && r->fetching && !(r->refresh && (l == GONE || usable(w, o, l)))) {
        stats_inc(w->stats, STAT_tier_coalesced_misses);
        join_locked(req, wait, r);
        return;
    }
    if (o && l == NEGATIVE_LIVE) {
        wait->st = ST_NOT_FOUND;
    } else if (o && usable(w, o, l)) {
        pin_locked(wait, r ? r : (r = residency_attach_locked(t, shard, &wait->key, slot, o)));
    } else if (o && (l == SUSPECT || l == OLD)) {
        stats_inc(w->stats, STAT_tier_suspects);
        miss_locked(w, shard, req, wait, r ? suspect_apart_locked(t, shard, &wait->key, r) : slot);
    } else {
        if (o)
            tier_delete_locked(w, shard, &wait->key, TIER_EXPIRED);
        miss_locked(w, shard, req, wait, NULL);
    }
}

static bool fetch_whole_locked(struct worker *w, struct mem_shard *shard, const struct key *key)
{
    struct tier *t = w->tier;
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    struct object *o = slot ? mem_object(*slot) : NULL;
    struct residency *r = o && o->type == OBJ_RESIDENCY ? residency_of(o) : NULL;
    uint32_t block = 0;
    bool has_expire;

    if (r && r->fetching)
        return false;
    if (r)
        o = r->value;
    enum liveness l = o ? tier_liveness(w, o) : GONE;
    if (l != SUSPECT && l != OLD && l != GONE)
        return false;
    if (l != GONE && r)
        slot = suspect_apart_locked(t, shard, key, r);
    if (l == GONE && o)
        tier_delete_locked(w, shard, key, TIER_EXPIRED);
    if (l == GONE)
        slot = NULL;
    bool on_disk = !slot && t->disk && disk_find_locked(t->disk, key->hash, &block, &has_expire);
    r = residency_attach_locked(t, shard, key, slot, slot ? mem_object(*slot) : NULL);
    fetch_start_locked(w, r, key, on_disk, block)->whole = true;
    return true;
}

bool tier_fetch_whole(struct worker *w, const struct key *key)
{
    struct mem_shard *shard = tier_shard_of(w->tier, key->hash);

    mem_lock(shard);
    bool started = mem_key_current(w->tier->mem, key) && fetch_whole_locked(w, shard, key);
    mem_unlock(shard);
    send_upstream_now(w->tier_worker);
    return started;
}

/* ---- refreshing ---- */

static void refresh_run(struct mbox_msg *msg, void *owner)
{
    struct tier_worker *tw = LIST_ENTRY(msg, struct tier_worker, refresh_msg);
    (void)owner;

    tw->refresh_posted = false;
    send_upstream_now(tw);
}

/* The copy stays where it is and is served, as the value of a residency that is being fetched: whatever makes a fetch
 * not worth keeping, and joins it, does so here too. */
void tier_refresh_locked(struct worker *w, struct mem_shard *shard, const struct key *key)
{
    struct tier *t = w->tier;
    struct tier_worker *tw = w->tier_worker;
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    struct object *o = mem_object(*slot);

    if (tw->refreshes >= REFRESHES_MAX || atomic_load_explicit(&t->generation[w->id], memory_order_relaxed) == 0 ||
        (o->type == OBJ_RESIDENCY && residency_of(o)->fetching) || tier_refresh_waits(w, key->hash))
        return;
    struct residency *r = o->type == OBJ_RESIDENCY ? residency_of(o) : residency_attach_locked(t, shard, key, slot, o);
    struct fetch *f = fetch_create(w, r, key);
    r->refresh = f->refresh = true;
    f->uf.as = r->value->type == OBJ_STRING ? UPSTREAM_STRING : UPSTREAM_DUMP;
    tw->refreshes++;
    stats_inc(w->stats, STAT_tier_refreshes);
    list_push_back(&tw->upstream_now, &f->link);
    if (!tw->refresh_posted) {
        tw->refresh_posted = true;
        tw->refresh_msg.run = refresh_run;
        mbox_post(w->mbox, &tw->refresh_msg);
    }
}

/* ---- inflight-max-bytes ---- */

static int64_t estimate(struct tier *t, const struct tier_request *req)
{
    int64_t each = atomic_load_explicit(&t->fetched_size, memory_order_relaxed);
    return (each ? each : FETCHED_SIZE_INIT) * req->nwaits;
}

static bool admit(struct tier *t, struct tier_request *req, bool urgent)
{
    int64_t max = atomic_load_explicit(&t->limit.inflight_max, memory_order_relaxed), want = estimate(t, req);
    _Atomic int64_t *taken = urgent ? &t->inflight_urgent : &t->inflight_ahead;
    int64_t now = atomic_load(taken);

    do {
        if (urgent ? now > 0 && now + want > max : now + want > max / 2)
            return false;
    } while (!atomic_compare_exchange_weak(taken, &now, now + want));
    req->urgent = urgent;
    req->charge = want;
    return true;
}

static void recharge(struct tier *t, struct tier_request *req, int64_t charge)
{
    atomic_fetch_add(req->urgent ? &t->inflight_urgent : &t->inflight_ahead, charge - req->charge);
    req->charge = charge;
}

/* Starts what was waiting for others to finish. */
static void admit_run(struct mbox_msg *msg, void *owner)
{
    struct tier_worker *tw = LIST_ENTRY(msg, struct tier_worker, admit_msg);
    (void)owner;

    atomic_store(&tw->admit_posted, false);
    while (!list_empty(&tw->admission)) {
        struct tier_request *req = LIST_ENTRY(tw->admission.next, struct tier_request, admission);
        if (tier_fault(tw->w, req, true) == ST_BUSY)
            break;
    }
}

static void wake_admission(struct tier *t)
{
    if (LIKELY(atomic_load(&t->admission_waiters) == 0))
        return;
    for (int i = 0; i < t->nworkers; i++) {
        struct tier_worker *tw = t->workers[i]->tier_worker;
        if (!atomic_exchange(&tw->admit_posted, true)) {
            tw->admit_msg.run = admit_run;
            mbox_post(t->workers[i]->mbox, &tw->admit_msg);
        }
    }
}

static void wait_for_admission(struct tier_worker *tw, struct tier_request *req)
{
    if (!list_empty(&req->admission))
        return;
    list_push_back(&tw->admission, &req->admission);
    atomic_fetch_add(&tw->w->tier->admission_waiters, 1);
}

static bool leave_admission(struct tier *t, struct tier_request *req)
{
    if (list_empty(&req->admission))
        return false;
    list_remove(&req->admission);
    atomic_fetch_sub(&t->admission_waiters, 1);
    return true;
}

/* ---- the request's view ---- */

enum status tier_fault(struct worker *w, struct tier_request *req, bool urgent)
{
    struct tier *t = w->tier;
    bool waited = !list_empty(&req->admission);

    req->w = w;
    if (!admit(t, req, urgent)) {
        if (!urgent || waited)
            return ST_BUSY;
        wait_for_admission(w->tier_worker, req);
        wake_admission(t); /* another's release may have come between */
        return ST_PENDING;
    }
    leave_admission(t, req);
    req->error[0] = '\0';
    atomic_store_explicit(&req->has_error, false, memory_order_relaxed);
    atomic_store_explicit(&req->upstream_us, 0, memory_order_relaxed);
    atomic_store_explicit(&req->pending, 1, memory_order_relaxed); /* ours, until all keys are seen to */
    for (int i = 0; i < req->nwaits; i++) {
        struct tier_wait *wait = &req->waits[i];
        struct mem_shard *shard = tier_shard_of(t, wait->key.hash);
        wait->req = req;
        wait->res = NULL;
        wait->waiting = false;
        wait->st = ST_OK;
        list_init(&wait->link);
        if (wait->need == TIER_NOTHING)
            continue;
        mem_lock(shard);
        if (mem_key_current(t->mem, &wait->key))
            fault_key_locked(w, shard, req, wait);
        mem_unlock(shard);
    }
    send_upstream_now(w->tier_worker);
    if (waited) { /* ready() was promised */
        request_settle(req);
        return ST_PENDING;
    }
    return atomic_fetch_sub_explicit(&req->pending, 1, memory_order_acq_rel) == 1 ? ST_OK : ST_PENDING;
}

static void unpin_locked(struct worker *w, struct mem_shard *shard, struct residency *r)
{
    struct tier *t = w->tier;
    uint32_t block;
    bool has_expire;

    CHECK(r->pins > 0);
    if (--r->pins == 0 && r->attached && !r->fetching) {
        /* Over the limit, what the disk still has need not stay: it was fetched for this use. */
        if (tier_over_limit(t) && t->disk && !tier_dirty_locked(t, r->value, r->hash) &&
            disk_find_locked(t->disk, r->hash, &block, &has_expire)) {
            stats_inc(w->stats, STAT_tier_clean_drops);
            tier_object_gone(t, r->value);
            residency_detach_locked(t, shard, r);
        } else {
            residency_unwrap_locked(t, shard, r);
        }
    }
    residency_unref(r);
}

void tier_release(struct worker *w, struct tier_request *req)
{
    for (int i = 0; i < req->nwaits; i++) {
        struct tier_wait *wait = &req->waits[i];
        if (!wait->res)
            continue;
        struct mem_shard *shard = tier_shard_of(w->tier, wait->key.hash);
        mem_lock(shard);
        unpin_locked(w, shard, wait->res);
        mem_unlock(shard);
        wait->res = NULL;
    }
    recharge(w->tier, req, 0);
    wake_admission(w->tier);
}

bool tier_cancel(struct worker *w, struct tier_request *req)
{
    req->cancelled = true;
    if (leave_admission(w->tier, req))
        return true;
    int settled = 0;
    for (int i = 0; i < req->nwaits; i++) {
        struct tier_wait *wait = &req->waits[i];
        struct mem_shard *shard = tier_shard_of(w->tier, wait->key.hash);
        mem_lock(shard); /* completions on other threads change the wait under it */
        if (wait->waiting) {
            list_remove(&wait->link);
            wait->waiting = false;
            residency_unref(wait->res);
            settled++;
        } else if (wait->res) {
            unpin_locked(w, shard, wait->res);
        }
        wait->res = NULL;
        mem_unlock(shard);
    }
    recharge(w->tier, req, 0);
    wake_admission(w->tier);
    /* Whoever brings pending to 0 decides: if it was not us, a message is on its way. */
    return settled > 0 && atomic_fetch_sub(&req->pending, settled) == settled;
}

/* ---- completion, on the worker that started the fetch ---- */

static void fetch_free(struct fetch *f)
{
    if (f->whole)
        tier_want_over(f->w);
    atomic_fetch_sub(&f->w->tier->fetches, 1);
    mem_free(MEM_CLIENT, f);
}

void tier_count_disk_hit(struct worker *w, const struct object *o, bool stays)
{
    stats_inc(w->stats, STAT_tier_disk_hits);
    stats_add(w->stats, STAT_tier_disk_hit_bytes, object_bytes(o));
    if (stays)
        stats_inc(w->stats, STAT_tier_promotions);
}

void tier_learn_size(struct tier *t, const struct object *o)
{
    int64_t mean = atomic_load_explicit(&t->fetched_size, memory_order_relaxed), size = (int64_t)object_bytes(o);
    atomic_store_explicit(&t->fetched_size, mean ? mean + (size - mean) / 16 : size, memory_order_relaxed);
}

/* The fetched object becomes the key's value. */
static void install_locked(struct worker *w, struct mem_shard *shard, struct residency *r, struct object *o)
{
    struct tier *t = w->tier;

    tier_access_init(t, o, w->now_ms);
    tier_learn_size(t, o);
    r->value = o;
    r->fetching = r->refresh = false;
    if (o->flags & OBJ_F_ORIGIN && o->type != OBJ_NONE && r->attached)
        atomic_fetch_add_explicit(&t->tracked_keys, 1, memory_order_relaxed);
    tier_wake_waiters_locked(w, r, o->type == OBJ_NONE ? ST_NOT_FOUND : ST_OK, NULL);
    if (r->attached && r->pins == 0)
        residency_unwrap_locked(t, shard, r);
}

/* It is nowhere, or could not be had. */
static void fail_locked(struct worker *w, struct mem_shard *shard, struct residency *r, enum status st,
                        const char *error)
{
    r->fetching = r->refresh = false;
    tier_wake_waiters_locked(w, r, st, error);
    if (r->attached)
        residency_detach_locked(w->tier, shard, r);
}

/* In the database that the key belongs to now: it may have been swapped or flushed since. */
static void count_key(struct worker *w, const struct key *key, int keys, bool expires)
{
    int db = mem_db_of(w->tier->mem, key->inc);

    if (db >= 0)
        mem_db_count(w->tier->mem, (unsigned)db, keys, expires ? keys : 0);
}

/* The index was wrong, or its record is dead by now. */
static void drop_index_locked(struct worker *w, struct mem_shard *shard, struct fetch *f, bool expired)
{
    struct tier *t = w->tier;
    int db = mem_db_of(t->mem, f->key.inc);
    uint32_t block;
    bool has_expire = false;

    if (disk_find_locked(t->disk, f->key.hash, &block, &has_expire) && block == f->rd.block &&
        disk_drop_locked(t->disk, f->key.hash, block)) {
        count_key(w, &f->key, -1, has_expire);
        if (expired && db >= 0) {
            struct key key = f->key;
            key.db = (uint16_t)db;
            stats_inc(w->stats, STAT_expired_keys);
            tier_notify_locked(t, w, shard, &key, TIER_EXPIRED);
        }
    }
}

/* What came from disk. true: done; false: the upstream is to be asked. */
static bool finish_disk_locked(struct worker *w, struct mem_shard *shard, struct fetch *f)
{
    struct tier *t = w->tier;
    struct residency *r = f->res;
    struct object *o = f->found;
    uint32_t block;
    bool has_expire, expired = o && object_expired(o, w->now_ms);
    bool current = o && !expired && (!(o->flags & OBJ_F_ORIGIN) ? !t->has_upstream : is_live(tier_liveness(w, o)));

    f->found = NULL;
    if (current && r->attached) {
        tier_count_disk_hit(w, o, true);
        if (!disk_find_locked(t->disk, f->key.hash, &block, &has_expire)) /* its block was dropped meanwhile */
            count_key(w, &f->key, 1, object_expire(o) != 0);
        install_locked(w, shard, r, o);
        return true;
    }
    stats_inc(w->stats, STAT_tier_disk_misses);
    if (f->st != ST_IO && r->attached && (!o || expired || !t->has_upstream))
        drop_index_locked(w, shard, f, expired);
    if (t->has_upstream) {
        if (o && !expired && o->flags & OBJ_F_ORIGIN && r->attached && !r->value) {
            r->value = o; /* a suspect: the upstream decides, stale-if-error may keep it */
            atomic_fetch_add_explicit(&t->tracked_keys, 1, memory_order_relaxed);
            o = NULL;
        }
        object_free(o);
        return false;
    }
    object_free(o);
    if (f->st == ST_IO)
        fail_locked(w, shard, r, ST_IO, "disk read failed");
    else
        fail_locked(w, shard, r, r->attached ? ST_NOT_FOUND : ST_OK, NULL);
    return true;
}

/* The record is not where it was when the read was sent: cleaning has moved it. */
static bool has_moved_locked(const struct fetch *f, uint32_t *block)
{
    const struct tier *t = f->w->tier;
    bool has_expire;

    return !f->found && f->res->attached && mem_key_current(t->mem, &f->key) &&
           disk_find_locked(t->disk, f->key.hash, block, &has_expire) && *block != f->rd.block;
}

static void after_install(struct worker *w)
{
    if (w->tier->has_upstream)
        tier_bound_copies(w);
    if (tier_over_limit(w->tier) || w->tier->has_upstream)
        (void)tier_make_room(w); /* best effort: the next write waits if it must */
}

static void fetch_finish(struct mbox_msg *msg, void *owner)
{
    struct fetch *f = LIST_ENTRY(msg, struct fetch, msg);
    struct worker *w = f->w;
    struct mem_shard *shard = tier_shard_of(w->tier, f->key.hash);
    (void)owner;

    uint32_t block;
    fetch_answered(f, STAT_tier_disk_reads_waiting, HIST_disk, f->found != NULL);
    mem_lock(shard);
    if (UNLIKELY(has_moved_locked(f, &block))) {
        mem_unlock(shard);
        fetch_read(f, block);
        return;
    }
    bool done = finish_disk_locked(w, shard, f);
    if (done)
        residency_unref(f->res);
    mem_unlock(shard);
    if (done) {
        if (f->whole) /* it was no larger when it went there */
            tier_want_fetched(w, f->key.hash, 0);
        fetch_free(f);
        after_install(w);
    } else {
        fetch_upstream(f);
    }
}

/* ---- the upstream's part ---- */

#define SETTLE_MS 20 /* until those who waited for a fetch have run */

/* A copy expires when it must be dead at the earliest: as if PTTL was answered when it was sent. Where the way there took
 * longer than the rest of its life that is over by now, but the value was alive when it was read: it is an answer to those
 * who wait, to be forgotten when it must be dead at the latest. */
static int64_t fetched_expire_ms(const struct upstream_fetch *uf, int64_t pttl_ms, uint32_t *generation)
{
    int64_t now_ms = clock_wall_ms(), expire_ms = uf->sent_ms + pttl_ms;

    if (pttl_ms < 0)
        return 0;
    if (expire_ms > now_ms + SETTLE_MS)
        return expire_ms;
    *generation = 0;
    return now_ms + (pttl_ms > 0 ? pttl_ms : 1);
}

static void count_copy(struct worker *w, const struct fetch *f, struct residency *r, const struct object *o)
{
    uint32_t block;
    bool expires = false;
    /* A suspect, or a disk copy, was counted as a key already. */
    bool was = r->value != NULL || (w->tier->disk && disk_find_locked(w->tier->disk, f->key.hash, &block, &expires));

    if (r->value)
        expires = object_expire(r->value) != 0;
    mem_db_count(w->tier->mem, f->key.db, (o->type != OBJ_NONE) - was,
                 (o->type != OBJ_NONE && object_expire(o) != 0) - (int)(was && expires));
}

static void discard_suspect(struct worker *w, struct residency *r)
{
    if (r->value) {
        if (r->attached)
            tier_object_gone(w->tier, r->value);
        object_free(r->value);
        r->value = NULL;
    }
}

/* What was held of the key, a suspect or on disk, is not to be kept. */
static void forget_copies_locked(struct worker *w, const struct fetch *f, struct residency *r)
{
    bool had = r->value != NULL, expires = had && object_expire(r->value) != 0, disk_expires;

    if (r->attached) {
        if (tier_forget_disk_locked(w->tier, f->key.hash, &disk_expires) && !had) {
            had = true;
            expires = disk_expires;
        }
        if (had)
            count_key(w, &f->key, -1, expires);
    }
    discard_suspect(w, r);
}

/* Its answer: a value, or an OBJ_NONE. */
static void finish_upstream_locked(struct worker *w, struct mem_shard *shard, struct fetch *f, struct object *o,
                                   uint32_t generation, bool worth_keeping)
{
    struct tier *t = w->tier;
    struct residency *r = f->res;
    bool keep = r->attached && generation != 0 && tier_origin_current(t, tier_origin(w->id, generation)) &&
                mem_key_current(t->mem, &f->key) && worth_keeping;

    if (keep) {
        bool had_expire;
        count_copy(w, f, r, o);
        discard_suspect(w, r);
        tier_forget_disk_locked(t, f->key.hash, &had_expire);
    } else {
        forget_copies_locked(w, f, r);
        if (r->attached)
            residency_detach_locked(t, shard, r);
    }
    install_locked(w, shard, r, o);
}

/* No answer: the suspect copy, where rules allow it, or the error. */
static void fail_upstream_locked(struct worker *w, struct mem_shard *shard, struct fetch *f, enum status st,
                                 const char *error)
{
    struct tier *t = w->tier;
    struct residency *r = f->res;

    stats_inc(w->stats, STAT_tier_upstream_errors);
    if (r->attached && r->value && st != ST_WRONGTYPE) {
        r->fetching = r->refresh = false;
        bool stale = tier_stale_allowed(w, r->value);
        if (stale) {
            stats_inc(w->stats, STAT_tier_stale_hits);
            tier_wake_waiters_locked(w, r, ST_OK, NULL);
        } else {
            struct object *suspect = r->value;
            r->value = NULL;
            tier_wake_waiters_locked(w, r, st, error);
            r->value = suspect;
        }
        if (r->pins == 0)
            residency_unwrap_locked(t, shard, r);
        return;
    }
    if (st == ST_WRONGTYPE)
        forget_copies_locked(w, f, r);
    else
        discard_suspect(w, r); /* detached: it was taken off the books when that happened */
    fail_locked(w, shard, r, st, error);
}

static struct object *new_string(struct worker *w, const struct key *key, struct slice value,
                                 const struct rule_values *rule, int64_t expire_ms, uint64_t origin)
{
    struct rcbuf *packed = tier_pack_as(w, value, (enum rule_compress)rule->value[RULE_COMPRESS]);

    return packed ? object_new_rcbuf(key, packed, expire_ms, origin) : object_new_string(key, value, expire_ms, origin);
}

/* From DUMP's payload. NULL: of a version or type that is not known, or damaged. */
static struct object *new_from_dump(struct worker *w, const struct key *key, struct slice payload,
                                    const struct rule_values *rule, int64_t expire_ms, uint64_t origin)
{
    char scratch[OBJ_SCRATCH];
    struct slice value;

    if (!rdb_undump(payload, &value) || value.len == 0)
        return NULL;
    /* Fields that expire would go here by our clock, and unnoticed by those who are told of changes. */
    if (value.ptr[0] == RDB_HASH_METADATA || value.ptr[0] == RDB_HASH_LISTPACK_EX)
        return NULL;
    struct object *o = rdb_parse(value, NULL, key, expire_ms, origin);
    if (!o || o->type != OBJ_STRING || object_string(o, w->codec, scratch, &value) != ST_OK)
        return o;
    struct object *packed = new_string(w, key, value, rule, expire_ms, origin); /* as a GET would have made it */
    object_free(o);
    return packed;
}

static void refresh_ended(struct worker *w, const struct fetch *f, enum status st)
{
    w->tier_worker->refreshes--;
    if (st != ST_OK && st != ST_NOT_FOUND)
        tier_refresh_failed(w, f->key.hash);
}

static void upstream_fetch_done(struct upstream_fetch *uf, enum status st, struct slice value, int64_t pttl_ms,
                                uint32_t generation)
{
    struct fetch *f = LIST_ENTRY(uf, struct fetch, uf);
    struct worker *w = f->w;
    struct mem_shard *shard = tier_shard_of(w->tier, f->key.hash);
    struct object *o = NULL;
    struct rule_values rule;
    bool worth_keeping = true;
    char error[160] = "";

    fetch_answered(f, STAT_tier_upstream_fetches_waiting, HIST_upstream, st != ST_UNAVAILABLE && st != ST_CANCELLED);
    tier_rules(w, key_slice(&f->key), &rule);
    if (st == ST_OK) {
        int64_t expire_ms = fetched_expire_ms(uf, pttl_ms, &generation);
        uint64_t origin = tier_fresh_origin(w, &f->key, &rule, generation, uf->sent_ms);
        worth_keeping = (int64_t)value.len <= rule.value[RULE_MAX_OBJECT];
        if (f->uf.as == UPSTREAM_STRING)
            o = new_string(w, &f->key, value, &rule, expire_ms, origin);
        else if (worth_keeping)
            o = new_from_dump(w, &f->key, value, &rule, expire_ms, origin);
        if (worth_keeping && !o)
            tier_want_unreadable(w, f->key.hash);
        stats_inc(w->stats, STAT_tier_upstream_hits);
    } else if (st == ST_NOT_FOUND) {
        int64_t ttl_ms = rule.value[RULE_NEGATIVE_TTL];
        o = object_new_none(&f->key, w->now_ms + ttl_ms, tier_origin(w->id, generation));
        worth_keeping = ttl_ms > 0;
        stats_inc(w->stats, STAT_tier_upstream_misses);
    } else {
        snprintf(error, sizeof(error), "%.*s", (int)(value.len < 150 ? value.len : 150), value.len ? value.ptr : "");
    }
    if (f->whole && o)
        tier_want_fetched(w, f->key.hash, value.len);
    if (f->whole && st == ST_BAD) /* it does not hand out the value: NOPERM, a proxy without DUMP */
        tier_want_unreadable(w, f->key.hash);
    if ((f->whole && st == ST_BAD) || (st == ST_OK && !o)) /* who joined passes the command through */
        st = ST_WRONGTYPE;
    if (f->refresh)
        refresh_ended(w, f, st);
    mem_lock(shard);
    if (o)
        finish_upstream_locked(w, shard, f, o, generation, worth_keeping);
    else
        fail_upstream_locked(w, shard, f, st, error);
    residency_unref(f->res);
    mem_unlock(shard);
    fetch_free(f);
    after_install(w);
}

/* The first read of a key that is written around: it is answered, not kept, and the upstream does not track it. */
static bool fetch_is_first_touch(const struct fetch *f)
{
    struct rule_values rule;

    if (f->refresh || f->whole || f->w->conf->rules == NULL)
        return false;
    tier_rules(f->w, key_slice(&f->key), &rule);
    return rule.value[RULE_WRITE] == WRITE_AROUND && !tier_touch_twice(f->w, &f->key);
}

/* No lock held; may complete at once. */
static void fetch_upstream(struct fetch *f)
{
    struct upstream *up = f->w->tier_worker->up;

    atomic_store_explicit(&f->res->upstream_us, clock_mono_us(), memory_order_relaxed);
    f->uf.key = key_slice(&f->key);
    f->uf.db = f->key.db;
    if (f->whole)
        f->uf.as = UPSTREAM_DUMP;
    f->uf.done = upstream_fetch_done;
    stats_inc(f->w->stats, STAT_tier_upstream_requests);
    fetch_asks(f, STAT_tier_upstream_fetches_waiting);
    if (!up) /* the server stops */
        upstream_fetch_done(&f->uf, ST_CANCELLED, SLICE_NONE, -1, 0);
    else if (fetch_is_first_touch(f))
        tier_fetch_untracked(up, &f->uf);
    else
        upstream_fetch(up, &f->uf);
}

void tier_forget_upstream(struct worker *w, unsigned db, struct slice name)
{
    struct tier *t = w->tier;
    struct key key;
    bool current;

    do { /* again, when the database was flushed or swapped before the lock was had */
        mem_key_init(t->mem, db, name, &key);
        struct mem_shard *shard = tier_shard_of(t, key.hash);
        mem_lock(shard);
        current = mem_key_current(t->mem, &key);
        if (current)
            tier_delete_locked(w, shard, &key, TIER_DELETED);
        mem_unlock(shard);
    } while (!current);
    if (UNLIKELY(atomic_load_explicit(&t->events, memory_order_relaxed) & TIER_EVENT_ALL))
        t->foreign(t->change_arg, w, &name);
}

void tier_forget_all_upstream(struct worker *w)
{
    mem_lock_all(w->tier->mem);
    for (unsigned db = 0; db < w->tier->mem->databases; db++)
        tier_flush_db_locked(w, db);
    tier_foreign_all_locked(w);
    mem_unlock_all(w->tier->mem);
}

void tier_foreign_all_locked(struct worker *w)
{
    struct tier *t = w->tier;

    if (atomic_load_explicit(&t->events, memory_order_relaxed) & TIER_EVENT_ALL)
        t->foreign(t->change_arg, w, NULL);
}

void tier_fault_init(struct tier_worker *tw)
{
    list_init(&tw->reads);
    list_init(&tw->upstream_now);
    list_init(&tw->admission);
    list_init(&tw->room_waiters);
}
