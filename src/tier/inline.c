/* Faulting in without waiting: reads of what is in the page cache, on the loop's thread. */
#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "tier_priv.h"

#define INLINE_STAYS 8 /* while memory is full, one in so many stays there */

struct inline_read {
    struct disk_read rd;
    struct object *found;
    enum status failed;
};

static void inline_read_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct inline_read *ir = LIST_ENTRY(rd, struct inline_read, rd);

    if (st == ST_OK)
        st = object_parse(rec->type, &rd->key, rec->payload, rec->expire_ms, rec->origin, &ir->found);
    ir->failed = st;
}

/* The key is on disk, and has no entry in memory. */
static bool only_on_disk_locked(const struct tier *t, struct mem_shard *shard, const struct key *key, uint32_t *block,
                                bool *has_expire)
{
    return mem_key_current(t->mem, key) && !mem_find_locked(t->mem, shard, key) &&
           disk_find_locked(t->disk, key->hash, block, has_expire);
}

/* The read holds neither a lock nor a place among the fetches. But a block is deleted only after
 * its slots were dropped, and a key that changes gets an entry or loses its slot: what was read
 * is its value if its slot is what it was. */
static bool install_inline(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *o,
                           uint32_t block)
{
    struct tier *t = w->tier;
    uint32_t now;
    bool has_expire;

    tier_access_init(t, o, w->now_ms);
    tier_learn_size(t, o);
    mem_lock(shard);
    bool same = only_on_disk_locked(t, shard, key, &now, &has_expire) && now == block;
    if (LIKELY(same)) {
        tier_count_disk_hit(w, o, true);
        stats_inc(w->stats, STAT_tier_memory_refound); /* it will be found the next moment */
        mem_insert_locked(t->mem, shard, key->hash, o);
        if (o->flags & OBJ_F_ORIGIN)
            atomic_fetch_add_explicit(&t->tracked_keys, 1, memory_order_relaxed);
    }
    mem_unlock(shard);
    return same;
}

/* In a full memory something else has to go for what comes. A key that can be had from the page
 * cache is not worth that each time: if it is hot, its turn will come soon. */
static bool stays_in_memory(struct worker *w)
{
    return !tier_over_mark(w->tier) || rng_next(&w->rng) % INLINE_STAYS == 0;
}

/* A copy of an upstream's key: if somebody vouches for it, or it may bridge the outage there is. */
static bool may_serve(struct worker *w, const struct key *key, const struct object *o)
{
    const struct tier *t = w->tier;

    if (LIKELY(!tier_key_is_upstream(t, key)))
        return !(o->flags & OBJ_F_ORIGIN);
    if (!(o->flags & OBJ_F_ORIGIN))
        return false;
    switch (tier_liveness(w, o)) {
    case LIVE: return true;
    case SUSPECT:
    case OLD: return atomic_load_explicit(&t->generation[w->id], memory_order_relaxed) == 0 && tier_stale_allowed(w, o);
    default: return false; /* one that ages is brought into memory, where it is refreshed */
    }
}

/* NULL: not without waiting, or the record is of no use. */
static struct object *read_inline(struct worker *w, const struct key *key, uint32_t block)
{
    struct tier *t = w->tier;
    struct inline_read ir = {
        .rd = {.key = *key,
               .incarnation = atomic_load_explicit(&t->mem->full_inc[key->inc], memory_order_relaxed),
               .block = block,
               .done = inline_read_done}};

    int64_t start_us = clock_mono_us();
    if (!disk_read_inline(t->disk, &ir.rd) || !ir.found)
        return NULL;
    stats_time(w->stats, HIST_disk, clock_mono_us() - start_us);
    if (LIKELY(!object_expired(ir.found, w->now_ms) && may_serve(w, key, ir.found)))
        return ir.found;
    object_free(ir.found);
    return NULL;
}

bool tier_fault_inline(struct worker *w, const struct key *key, enum tier_need need)
{
    struct tier *t = w->tier;
    struct mem_shard *shard = tier_shard_of(t, key->hash);
    uint32_t block;
    bool has_expire = false;

    if (need == TIER_NOTHING)
        return true;
    if (!t->disk)
        return false;
    (void)tier_make_room(w);
    if (tier_over_limit(t)) /* what waits is bounded by inflight-max-bytes */
        return false;
    mem_lock(shard);
    bool on_disk = only_on_disk_locked(t, shard, key, &block, &has_expire);
    bool nowhere = !on_disk && tier_key_is_upstream(t, key) && mem_key_current(t->mem, key) &&
                   !mem_find_locked(t->mem, shard, key);
    mem_unlock(shard);
    if (nowhere) /* nowhere here, that is */
        return false;
    if (!on_disk || (need == TIER_PRESENCE && !has_expire && !tier_key_is_upstream(t, key)))
        return true;
    struct object *o = read_inline(w, key, block);
    if (!o)
        return false;
    if (!install_inline(w, shard, key, o, block))
        object_free(o);
    return true;
}

bool tier_fault_now_locked(struct worker *w, struct mem_shard *shard, const struct key *key)
{
    struct tier *t = w->tier;
    struct inline_read ir = {.rd = {.key = *key, .done = inline_read_done}};
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    bool has_expire;

    if (!t->disk || tier_key_is_upstream(t, key))
        return false;
    if (slot) { /* others wait for it already: they look again, and the fetch changes nothing */
        struct residency *r = mem_object(*slot)->type == OBJ_RESIDENCY ? residency_of(mem_object(*slot)) : NULL;
        if (!r || !r->fetching)
            return true;
        r->refs++;
        residency_detach_locked(t, shard, r);
        tier_wake_waiters_locked(w, r, ST_OK, NULL);
        residency_unref(r);
    }
    if (!disk_find_locked(t->disk, key->hash, &ir.rd.block, &has_expire))
        return true;
    ir.rd.incarnation = atomic_load_explicit(&t->mem->full_inc[key->inc], memory_order_relaxed);
    stats_inc(w->stats, STAT_tier_disk_reads_at_once);
    disk_read_now(t->disk, &ir.rd);
    if (!ir.found) {
        if (ir.failed != ST_IO && disk_drop_locked(t->disk, key->hash, ir.rd.block))
            mem_db_count(t->mem, key->db, -1, has_expire ? -1 : 0);
        return ir.failed != ST_IO;
    }
    tier_access_init(t, ir.found, w->now_ms);
    tier_learn_size(t, ir.found);
    tier_count_disk_hit(w, ir.found, true);
    mem_insert_locked(t->mem, shard, key->hash, ir.found);
    return true;
}

bool tier_read_inline(struct worker *w, const struct key *key, uint32_t block, struct tier_copy *copy)
{
    struct tier *t = w->tier;

    if (block == 0 || !t->disk || tier_key_is_upstream(t, key) || stays_in_memory(w))
        return tier_fault_inline(w, key, TIER_VALUE);
    *copy = (struct tier_copy){.obj = read_inline(w, key, block), .hash = key->hash, .block = block};
    if (!copy->obj)
        return false;
    tier_access_init(t, copy->obj, w->now_ms);
    tier_learn_size(t, copy->obj);
    return true;
}

bool tier_copy_is_current_locked(struct worker *w, struct mem_shard *shard, const struct key *key,
                                 const struct tier_copy *copy)
{
    uint32_t block;
    bool has_expire;

    if (key->hash != copy->hash || !only_on_disk_locked(w->tier, shard, key, &block, &has_expire) ||
        block != copy->block)
        return false;
    tier_count_disk_hit(w, copy->obj, false);
    return true;
}
