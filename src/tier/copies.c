/* tracked-keys-max: how many copies of upstream keys are held, over memory and disk, and dropping what is too much. */
#include "tiercel/hash.h"
#include "tier_priv.h"

#define DROPS_PER_CALL 16 /* a fetch brings one; the rest is for a limit that was lowered */
#define DISK_TRIES 8      /* places of the index that are looked at for a copy that is on disk alone */
#define DISK_SLOTS 8

/* With an upstream every key is a copy, but for those in spaces of their own. Negative entries do not count as keys. */
int64_t tier_copies(const struct tier *t)
{
    int64_t n = 0;

    for (unsigned db = 0; db < t->mem->databases; db++)
        n += atomic_load_explicit(&t->mem->db[db].keys, memory_order_relaxed);
    return n;
}

struct finding {
    const struct tier *t;
    uint64_t bits;
    bool found;
};

static void find_fn(void *arg, struct object *o)
{
    struct finding *f = arg;

    f->found |= disk_hash_bits(f->t->disk, mem_object_hash(f->t->mem, o)) == f->bits;
}

/* In memory in any state, a fetch of it under way too. */
static bool has_entry_locked(const struct tier *t, struct mem_shard *shard, uint64_t hash)
{
    struct finding f = {.t = t, .bits = disk_hash_bits(t->disk, hash)};
    uint64_t end;

    mem_scan_locked(t->mem, shard, hash, &end, find_fn, &f);
    return f.found;
}

/* Some slot behind `at`, in its shard, of a key that has no entry in memory. */
static bool find_slot(struct tier *t, uint64_t at, struct disk_slot *out)
{
    struct mem_shard *shard = tier_shard_of(t, at);
    struct disk_slot slots[DISK_SLOTS];
    uint64_t next;
    bool found = false;

    mem_lock(shard);
    size_t n = disk_scan_locked(t->disk, shard->index, at, UINT64_MAX, slots, DISK_SLOTS, &next);
    for (size_t i = 0; i < n && !found; i++) {
        found = tier_shard_of(t, slots[i].hash) == shard && !has_entry_locked(t, shard, slots[i].hash);
        *out = slots[i];
    }
    mem_unlock(shard);
    return found;
}

struct slot_read {
    struct disk_read rd;
    uint32_t incarnation;
    struct buf name;
    bool ok;
};

static void slot_read_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct slot_read *sr = LIST_ENTRY(rd, struct slot_read, rd);

    sr->ok = st == ST_OK;
    if (!sr->ok)
        return;
    sr->incarnation = rec->incarnation;
    buf_slice_append(&sr->name, key_slice(&rec->key));
}

/* Only the record tells whose key it is. */
static bool drop_slot(struct worker *w, const struct disk_slot *slot)
{
    struct tier *t = w->tier;
    struct slot_read sr = {.rd = {.key = {.hash = slot->hash},
                                  .block = slot->block,
                                  .header_only = true,
                                  .quiet = true,
                                  .done = slot_read_done}};
    struct key key;
    uint32_t block;
    bool has_expire, dropped = false;

    buf_init(&sr.name, MEM_OTHER);
    int db = disk_read_inline(t->disk, &sr.rd) && sr.ok ? mem_db_of(t->mem, (uint16_t)sr.incarnation) : -1;
    if (db >= 0 && (unsigned)db < t->mem->databases) {
        mem_key_init(t->mem, (unsigned)db, buf_slice(&sr.name), &key);
        struct mem_shard *shard = tier_shard_of(t, key.hash);
        mem_lock(shard);
        dropped = mem_key_current(t->mem, &key) && !mem_find_locked(t->mem, shard, &key) &&
                  disk_find_locked(t->disk, key.hash, &block, &has_expire) && block == slot->block &&
                  tier_delete_locked(w, shard, &key, TIER_EVICTED);
        mem_unlock(shard);
    }
    buf_deinit(&sr.name);
    if (dropped) {
        stats_inc(w->stats, STAT_tier_copies_dropped);
        stats_inc(w->stats, STAT_evicted_keys);
    }
    return dropped;
}

/* What is on disk alone is colder than what is in memory. Only what can be had without waiting. */
static bool drop_from_disk(struct worker *w)
{
    struct disk_slot slot;

    for (int i = 0; w->tier->disk && i < DISK_TRIES; i++)
        if (find_slot(w->tier, rng_next(&w->rng), &slot) && drop_slot(w, &slot))
            return true;
    return false;
}

void tier_bound_copies(struct worker *w)
{
    struct tier *t = w->tier;
    int64_t max = atomic_load_explicit(&t->limit.tracked_keys_max, memory_order_relaxed);

    for (int i = 0; i < DROPS_PER_CALL && tier_copies(t) > max; i++)
        if (!drop_from_disk(w) && !tier_drop_coldest(w))
            return;
}

/* ---- what the upstream remembers of it ---- */

int64_t tier_tracking(const struct tier *t)
{
    int64_t n = 0;

    for (int i = 0; i < t->nworkers; i++)
        n += atomic_load_explicit(&t->tracking[i], memory_order_relaxed);
    return n;
}

void tier_tracking_update(struct worker *w)
{
    const struct upstream *up = w->tier_worker->up;

    atomic_store_explicit(&w->tier->tracking[w->id], up ? upstream_tracked(up) : 0, memory_order_relaxed);
}
