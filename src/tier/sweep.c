/* Walks over the key space: expiry and reclaim in slices, SCAN's steps. */
#include "tiercel/clock.h"
#include "tiercel/type_hash.h"
#include "tier_priv.h"

#define SWEEP_BUCKETS 64 /* per hold of a shard's lock */
#define SWEEP_BATCH 64   /* objects removed per hold */
#define SWEEP_FIELDS 512 /* fields of hashes removed per hold */

/* ---- expiry and dead incarnations ---- */

/* Up to *fields of them, which becomes less. true: all that were due. */
static bool expire_fields_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *o,
                                 size_t *fields)
{
    size_t n = hash_expire_fields(o, w->now_ms, *fields);

    *fields -= n;
    if (n > 0)
        tier_fields_expired_locked(w, shard, key, n);
    if (object_len(o) == 0) {
        tier_delete_locked(w, shard, key, TIER_EMPTIED);
        return true;
    }
    int64_t next_ms = hash_first_expiry(o);
    return next_ms == 0 || next_ms > w->now_ms;
}

/* Of fields, *fields at most. true: nothing of it is due any more. */
static bool remove_due_locked(struct worker *w, struct mem_shard *shard, struct object *o, size_t *fields)
{
    struct tier *t = w->tier;
    struct key key;

    mem_object_key(t->mem, o, &key);
    if (mem_db_of(t->mem, o->inc) >= 0) {
        if (!object_expired(o, w->now_ms))
            return expire_fields_locked(w, shard, &key, o, fields);
        tier_delete_locked(w, shard, &key, TIER_EXPIRED);
        return true;
    }
    if (o->type == OBJ_RESIDENCY) {
        struct residency *r = residency_of(o);
        if (r->value)
            tier_object_gone(t, r->value);
        residency_detach_locked(t, shard, r);
        return true;
    }
    mem_slot *slot = mem_find_object_locked(t->mem, shard, key.hash, o);
    CHECK(slot);
    mem_remove_locked(t->mem, shard, key.hash, slot);
    tier_object_gone(t, o);
    object_free(o);
    return true;
}

/* Now all that the sweep would come to later. */
void tier_sweep_dead_locked(struct worker *w)
{
    struct tier *t = w->tier;
    struct object *batch[SWEEP_BATCH];
    size_t seen = 0, fields = SIZE_MAX;

    for (unsigned i = 0; i < t->mem->shards; i++) {
        struct mem_shard *shard = &t->mem->shard[i];
        bool wrapped = false;
        shard->sweep = 0;
        while (!wrapped) {
            size_t n = mem_sweep_locked(t->mem, shard, SWEEP_BUCKETS, w->now_ms, batch, SWEEP_BATCH, &seen, &wrapped);
            for (size_t k = 0; k < n; k++)
                remove_due_locked(w, shard, batch[k], &fields);
        }
    }
    mem_swept_locked(t->mem);
}

/* This worker's next shard. true: there is more to do here soon. */
static bool sweep_shard(struct worker *w, int64_t until_us, size_t *seen, size_t *due)
{
    struct tier *t = w->tier;
    struct tier_worker *tw = w->tier_worker;
    struct mem_shard *shard = &t->mem->shard[tw->sweep_shard % t->mem->shards];
    struct object *batch[SWEEP_BATCH];
    bool wrapped = false;

    while (!wrapped) {
        if (pthread_mutex_trylock(&shard->lock) != 0) /* a script may have it for long: another time */
            return false;
        size_t fields = SWEEP_FIELDS;
        uint64_t from = shard->sweep;
        size_t n = mem_sweep_locked(t->mem, shard, SWEEP_BUCKETS, w->now_ms, batch, SWEEP_BATCH, seen, &wrapped);
        bool all = true;
        for (size_t i = 0; i < n; i++)
            all &= remove_due_locked(w, shard, batch[i], &fields);
        if (!all) { /* a hash has many fields to go: here again */
            shard->sweep = from;
            wrapped = false;
        }
        mem_unlock(shard);
        *due += n;
        if (clock_mono_us() >= until_us && !wrapped)
            return true;
    }
    return false;
}

/* After maxmemory was lowered nobody may write for a while. true: there is more to do. */
static bool shed_memory(struct worker *w, int64_t until_us)
{
    struct tier *t = w->tier;

    for (int64_t over = tier_over_mark(t), left; over > 0; over = left) {
        if (tier_make_room(w) == ST_FULL || atomic_load(&t->disk_full_since_ms) != 0)
            return false; /* nothing may go, or the disk's queue is full: next time */
        left = tier_over_mark(t);
        if (left >= over) /* nothing went, or others write */
            return false;
        if (clock_mono_us() >= until_us)
            return left > 0;
    }
    return false;
}

void tier_worker_tick(struct worker *w)
{
    tier_drop_room_waits(w->tier_worker); /* a missed wake-up costs a tick, not a hang */
    if (UNLIKELY(atomic_load_explicit(&w->tier->owed_large, memory_order_relaxed)))
        disk_ask_owner(w->tier->disk); /* a loop would be long at it */
    else
        tier_flush_owed(w);
    if (!w->tier->has_upstream)
        return;
    tier_tracking_update(w);
    tier_bound_copies(w); /* after the limit was lowered */
}

bool tier_worker_sweep(struct worker *w, bool expire, int64_t slice_us)
{
    struct tier *t = w->tier;
    struct tier_worker *tw = w->tier_worker;
    int64_t until = clock_mono_us() + slice_us;
    size_t seen = 0, due = 0;

    bool more = shed_memory(w, until);
    if (!expire)
        return more;
    for (unsigned i = 0; i < t->mem->shards / (unsigned)t->nworkers + 1; i++) {
        if (tw->sweep_shard % (unsigned)t->nworkers != (unsigned)w->id % (unsigned)t->nworkers)
            tw->sweep_shard = (unsigned)w->id;
        if (sweep_shard(w, until, &seen, &due))
            break;
        tw->sweep_shard += (unsigned)t->nworkers;
        if (tw->sweep_shard >= t->mem->shards)
            tw->sweep_shard = (unsigned)w->id;
        if (clock_mono_us() >= until)
            break;
    }
    return more || (due > 0 && due * 10 > seen);
}

/* ---- SCAN ---- */

struct scan_state {
    struct worker *w;
    void (*mem_fn)(void *arg, const struct object *o);
    void *arg;
    uint64_t *seen; /* indexed hash bits of what is in memory */
    size_t n, cap;
};

static void scan_object(void *arg, struct object *o)
{
    struct scan_state *s = arg;
    const struct tier *t = s->w->tier;

    if (o->type == OBJ_RESIDENCY) {
        struct residency *r = residency_of(o);
        if (!r->value)
            return;
        o = r->value;
    }
    if (t->disk) {
        if (s->n == s->cap) {
            s->cap = s->cap ? s->cap * 2 : 16;
            s->seen = mem_realloc(MEM_OTHER, s->seen, s->cap * sizeof(*s->seen));
        }
        s->seen[s->n++] = disk_hash_bits(t->disk, mem_object_hash(t->mem, o));
    }
    if (o->type != OBJ_NONE)
        s->mem_fn(s->arg, o);
}

static bool scan_seen(const struct scan_state *s, uint64_t bits)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->seen[i] == bits)
            return true;
    return false;
}

void tier_scan_step(struct worker *w, bool locked, uint64_t cursor, uint64_t *next,
                    void (*mem_fn)(void *arg, const struct object *o),
                    bool (*disk_fn)(void *arg, const struct disk_slot *slot), void *arg)
{
    struct tier *t = w->tier;
    struct mem_shard *shard = tier_shard_of(t, cursor);
    struct scan_state s = {.w = w, .mem_fn = mem_fn, .arg = arg};
    struct disk_slot slots[64];

    if (!locked)
        mem_lock(shard);
    mem_scan_locked(t->mem, shard, cursor, next, scan_object, &s);
    if (t->disk) {
        uint64_t hi = *next - 1, at = cursor; /* next 0: up to the last hash */
        bool more = true;
        do {
            size_t n = disk_scan_locked(t->disk, shard->index, at, hi, slots, 64, &at);
            for (size_t i = 0; i < n && more; i++)
                if (!scan_seen(&s, slots[i].hash))
                    more = disk_fn(arg, &slots[i]);
        } while (more && at != 0 && at <= hi);
    }
    if (!locked)
        mem_unlock(shard);
    mem_free(MEM_OTHER, s.seen);
}
