/* Faulting in: waiting requests, fetches shared between them, and their completion. */
#include <stdio.h>

#include "tiercel/clock.h"
#include "tier_priv.h"

#define FETCHED_SIZE_INIT 1024 /* what a fetched object is taken to weigh before any was seen */

/* ---- how long the tiers take ---- */

void tier_fetch_asks(struct fetch *f, enum stats_id waiting)
{
    f->since_us = clock_mono_us();
    stats_inc(f->w->stats, waiting);
}

void tier_fetch_answered(struct fetch *f, enum stats_id waiting, enum stats_hist_id hist, bool timed)
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

    tier_fetch_asks(f, STAT_tier_disk_reads_waiting);
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
        tier_fetch_upstream(LIST_ENTRY(l, struct fetch, link));
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
    if (!on_disk && !tier_key_is_upstream(t, &wait->key))
        return;
    if (on_disk && !tier_key_is_upstream(t, &wait->key) && wait->need == TIER_PRESENCE && !has_expire)
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

void tier_fetch_free(struct fetch *f)
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

void tier_install_locked(struct worker *w, struct mem_shard *shard, struct residency *r, struct object *o)
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

void tier_fetch_failed_locked(struct worker *w, struct mem_shard *shard, struct residency *r, enum status st,
                              const char *error)
{
    r->fetching = r->refresh = false;
    tier_wake_waiters_locked(w, r, st, error);
    if (r->attached)
        residency_detach_locked(w->tier, shard, r);
}

void tier_count_fetched(struct worker *w, const struct key *key, int keys, bool expires)
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
        tier_count_fetched(w, &f->key, -1, has_expire);
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
    bool upstream = tier_key_is_upstream(t, &f->key);
    bool current = o && !expired && (!(o->flags & OBJ_F_ORIGIN) ? !upstream : is_live(tier_liveness(w, o)));

    f->found = NULL;
    if (current && r->attached) {
        tier_count_disk_hit(w, o, true);
        if (!disk_find_locked(t->disk, f->key.hash, &block, &has_expire)) /* its block was dropped meanwhile */
            tier_count_fetched(w, &f->key, 1, object_expire(o) != 0);
        tier_install_locked(w, shard, r, o);
        return true;
    }
    stats_inc(w->stats, STAT_tier_disk_misses);
    if (f->st != ST_IO && r->attached && (!o || expired || !upstream))
        drop_index_locked(w, shard, f, expired);
    if (upstream) {
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
        tier_fetch_failed_locked(w, shard, r, ST_IO, "disk read failed");
    else
        tier_fetch_failed_locked(w, shard, r, r->attached ? ST_NOT_FOUND : ST_OK, NULL);
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

void tier_installed(struct worker *w)
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
    tier_fetch_answered(f, STAT_tier_disk_reads_waiting, HIST_disk, f->found != NULL);
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
        tier_fetch_free(f);
        tier_installed(w);
    } else {
        tier_fetch_upstream(f);
    }
}

void tier_fault_init(struct tier_worker *tw)
{
    list_init(&tw->reads);
    list_init(&tw->upstream_now);
    list_init(&tw->admission);
    list_init(&tw->room_waiters);
}
