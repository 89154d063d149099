/* Leaving memory: eviction data, choice of victims, demotion, and what the disk reports. */
#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "tier_priv.h"

/* ---- eviction data: 24 bits in each object ----
 * LRU policies: a clock of LRU_UNIT_MS ticks, which wraps after about six days; an object
 * untouched for longer than that looks younger than it is. Fine ticks matter more: Redis's
 * clock of one second costs an LRU several points of hit ratio under load.
 * LFU policies: Redis's logarithmic counter (https://redis.io/docs/reference/eviction):
 * minutes of the last decay in the upper 16 bits, the counter in the lower 8. */
#define LRU_UNIT_MS 32
#define ACCESS_MASK 0xffffffu
#define LFU_INIT 5

static uint32_t lru_clock(int64_t now_ms)
{
    return (uint32_t)(now_ms / LRU_UNIT_MS) & ACCESS_MASK;
}

static uint32_t lfu_minutes(int64_t now_ms)
{
    return (uint32_t)(now_ms / 60000) & 0xffff;
}

static bool policy_is_lfu(int policy)
{
    return policy == POLICY_VOLATILE_LFU || policy == POLICY_ALLKEYS_LFU;
}

static bool policy_is_random(int policy)
{
    return policy == POLICY_VOLATILE_RANDOM || policy == POLICY_ALLKEYS_RANDOM;
}

static bool policy_is_volatile(int policy)
{
    return policy == POLICY_VOLATILE_LRU || policy == POLICY_VOLATILE_LFU || policy == POLICY_VOLATILE_RANDOM ||
           policy == POLICY_VOLATILE_TTL;
}

static unsigned lfu_counter(const struct tier *t, const struct object *o, int64_t now_ms)
{
    unsigned counter = o->access & 0xff, decay = (unsigned)t->limit.lfu_decay_time;
    unsigned passed = (lfu_minutes(now_ms) - (o->access >> 8)) & 0xffff;
    unsigned periods = decay ? passed / decay : 0;

    return periods > counter ? 0 : counter - periods;
}

void tier_access_init(struct tier *t, struct object *o, int64_t now_ms)
{
    int policy = atomic_load_explicit(&t->limit.policy, memory_order_relaxed);

    if (policy == POLICY_ADAPTIVE)
        o->access = tier_policy_new(t, o) & ACCESS_MASK;
    else if (policy_is_lfu(policy))
        o->access = ((lfu_minutes(now_ms) << 8) | LFU_INIT) & ACCESS_MASK;
    else
        o->access = lru_clock(now_ms) & ACCESS_MASK;
}

void tier_touch_locked(struct worker *w, struct object *o)
{
    struct tier *t = w->tier;
    int policy = atomic_load_explicit(&t->limit.policy, memory_order_relaxed);

    if (policy == POLICY_ADAPTIVE) {
        o->access = tier_policy_used(o->access) & ACCESS_MASK;
        return;
    }
    if (LIKELY(!policy_is_lfu(policy))) {
        o->access = lru_clock(w->now_ms) & ACCESS_MASK;
        return;
    }
    unsigned counter = lfu_counter(t, o, w->now_ms);
    if (counter < 255) {
        double base = counter > LFU_INIT ? counter - LFU_INIT : 0;
        double p = 1.0 / (base * t->limit.lfu_log_factor + 1);
        if ((double)(rng_next(&w->rng) >> 11) / 9007199254740992.0 < p)
            counter++;
    }
    o->access = ((lfu_minutes(w->now_ms) << 8) | counter) & ACCESS_MASK;
}

void tier_set_access_locked(struct worker *w, struct object *o, int64_t idle_s, int freq)
{
    int policy = atomic_load_explicit(&w->tier->limit.policy, memory_order_relaxed);

    if (policy == POLICY_ADAPTIVE)
        return;
    if (policy_is_lfu(policy)) {
        if (freq >= 0)
            o->access = ((lfu_minutes(w->now_ms) << 8) | (unsigned)freq) & ACCESS_MASK;
    } else if (idle_s >= 0) {
        int64_t most = (int64_t)ACCESS_MASK * LRU_UNIT_MS / 1000;
        uint32_t idle = (uint32_t)((idle_s < most ? idle_s : most) * 1000 / LRU_UNIT_MS);
        o->access = (lru_clock(w->now_ms) - idle) & ACCESS_MASK;
    }
}

int64_t tier_object_idle_ms(struct worker *w, const struct object *o)
{
    /* Adaptive does not know when it was last used: 0 s, and for those who compare, an order. */
    if (atomic_load_explicit(&w->tier->limit.policy, memory_order_relaxed) == POLICY_ADAPTIVE)
        return tier_policy_cold(o);
    return (int64_t)((lru_clock(w->now_ms) - o->access) & ACCESS_MASK) * LRU_UNIT_MS;
}

int tier_object_freq(struct worker *w, const struct object *o)
{
    return (int)lfu_counter(w->tier, o, w->now_ms);
}

/* ---- choosing ---- */

/* Larger: rather evicted. What has not been used since has no smaller score later. */
static uint64_t victim_score(struct worker *w, const struct object *o, int policy)
{
    switch (policy) {
    case POLICY_VOLATILE_LFU:
    case POLICY_ALLKEYS_LFU: return 255 - lfu_counter(w->tier, o, w->now_ms);
    case POLICY_VOLATILE_TTL: return o->flags & OBJ_F_EXPIRE ? UINT64_MAX - (uint64_t)object_expire(o) : 0;
    case POLICY_VOLATILE_RANDOM:
    case POLICY_ALLKEYS_RANDOM: return rng_next(&w->rng);
    case POLICY_ADAPTIVE: return tier_policy_score(w->tier, o);
    default: { /* when it was used last, so that scores of different times compare */
        uint64_t now = (uint64_t)(w->now_ms / LRU_UNIT_MS);
        return UINT64_MAX - ACCESS_MASK - now + ((now - o->access) & ACCESS_MASK);
    }
    }
}

/* Ascending by score: the first is the least wanted. */
static bool pool_wants(const struct evict_pool *pool, uint64_t score)
{
    return pool->n < POOL_SIZE || score > pool->entry[0].score;
}

static void pool_add(struct evict_pool *pool, uint64_t score, uint64_t hash, const struct object *o)
{
    unsigned i = pool->n;

    for (unsigned k = 0; k < pool->n; k++)
        if (pool->entry[k].obj == o)
            return;
    if (pool->n == POOL_SIZE) {
        memmove(&pool->entry[0], &pool->entry[1], (POOL_SIZE - 1) * sizeof(pool->entry[0]));
        i = POOL_SIZE - 1;
    } else {
        pool->n++;
    }
    while (i > 0 && pool->entry[i - 1].score >= score) { /* of equals, what was met first goes first */
        pool->entry[i] = pool->entry[i - 1];
        i--;
    }
    pool->entry[i].score = score;
    pool->entry[i].hash = hash;
    pool->entry[i].obj = o;
}

/* Only objects with an expiry may go, when going means being lost. */
static bool only_volatile(const struct tier *t, int policy)
{
    return !t->disk && policy_is_volatile(policy);
}

/* tracked-keys-max is about copies, and takes nothing else. */
static bool is_no_copy(const struct worker *w, const struct object *o)
{
    return w->tier_worker->dropping && !(o->flags & OBJ_F_ORIGIN);
}

#define SAMPLE_MAX 64
#define SPARSE_TRIES 2048

/* Each shard's turn comes equally often. Policies that know an age or a use make up for it; random takes
 * of two shards the one with more objects, or some would grow old and full, and others stay empty. */
static uint64_t next_sample(struct worker *w, int policy)
{
    const struct mem *m = w->tier->mem;
    uint64_t random = rng_next(&w->rng);

    if (UNLIKELY(policy_is_random(policy))) {
        uint64_t other = random << 32 | random >> 32;
        const struct mem_shard *a = &m->shard[random >> (64 - m->shard_bits)],
                               *b = &m->shard[other >> (64 - m->shard_bits)];
        if (atomic_load_explicit(&a->count, memory_order_relaxed) <
            atomic_load_explicit(&b->count, memory_order_relaxed))
            random = other;
    }
    mem_prefetch_sample(m, random);
    return random;
}

/* A shard at random that is not empty: of few objects most shards have none. */
static struct mem_shard *shard_at_random(struct worker *w, int policy, uint64_t *random)
{
    struct tier *t = w->tier;

    for (int tries = 0; tries < SPARSE_TRIES; tries++) {
        *random = w->tier_worker->pool.next;
        w->tier_worker->pool.next = next_sample(w, policy);
        struct mem_shard *shard = &t->mem->shard[*random >> (64 - t->mem->shard_bits)];
        if (LIKELY(atomic_load_explicit(&shard->count, memory_order_relaxed) > 0))
            return shard;
    }
    return NULL;
}

/* false: memory is as good as empty. */
static bool pool_sample(struct worker *w, int policy)
{
    struct tier *t = w->tier;
    struct object *sample[SAMPLE_MAX];
    size_t want = (size_t)t->limit.samples, got = 0, on_probation = 0;

    for (int tries = 0; tries < 16 && got < want; tries++) {
        uint64_t random;
        struct mem_shard *shard = shard_at_random(w, policy, &random);
        if (UNLIKELY(!shard))
            return got > 0;
        mem_lock(shard);
        /* Whole buckets, of which some are left out at random: the first slots are no better than the last ones. */
        size_t n = mem_sample_locked(shard, random, sample, (want + 7) & ~(size_t)7);
        size_t take = n < want - got ? n : want - got, first = (random >> 24 & 0xffff) * n >> 16;
        for (size_t i = 0; i < take; i++) /* to wait for them once, not one after another */
            __builtin_prefetch(sample[first + i < n ? first + i : first + i - n], 1);
        for (size_t i = 0; i < take; i++) {
            const struct object *o = sample[first + i < n ? first + i : first + i - n];
            if (o->type == OBJ_RESIDENCY || o->flags & OBJ_F_LEAVING || is_no_copy(w, o) ||
                (only_volatile(t, policy) && !(o->flags & OBJ_F_EXPIRE)))
                continue;
            uint64_t score = victim_score(w, o, policy);
            struct evict_pool *pool = &w->tier_worker->pool;
            if (policy == POLICY_ADAPTIVE && !tier_policy_in_main(o)) {
                pool = &w->tier_worker->policy.probation;
                on_probation++;
            }
            if (pool_wants(pool, score))
                pool_add(pool, score, mem_object_hash(t->mem, o), o);
            got++;
        }
        mem_unlock(shard);
    }
    if (policy == POLICY_ADAPTIVE)
        tier_policy_sampled(w, got, on_probation);
    return true;
}

/* ---- demotion ---- */

enum evict_rc { EVICT_DONE, EVICT_NONE, EVICT_QUEUE_FULL };

enum status tier_append_leaving_locked(struct tier *t, struct stats_block *stats, struct object *o,
                                       struct disk_record *rec)
{
    rec->ticket = (uint64_t)(uintptr_t)o;
    rec->note = (uint32_t)object_bytes(o);
    enum status st = disk_append_locked(t->disk, rec);
    if (st != ST_OK)
        return st;
    tier_big_leaves_locked(t, o);
    o->flags |= OBJ_F_LEAVING;
    if (!(o->flags & OBJ_F_ORIGIN))
        o->flags &= (uint8_t)~OBJ_F_OWED;
    atomic_fetch_add_explicit(&t->demoting_bytes, rec->note, memory_order_relaxed);
    stats_inc(stats, STAT_tier_demotions);
    return ST_OK;
}

static enum status demote_locked(struct worker *w, const struct key *key, struct object *o)
{
    struct tier *t = w->tier;
    struct disk_record rec;

    if (UNLIKELY(tier_is_big(t, o))) {
        tier_demote_big_locked(t, key, o);
        return ST_OK;
    }
    tier_fill_record(t, key, o, &w->tier_worker->serial, &rec);
    enum status st = tier_append_leaving_locked(t, w->stats, o, &rec);
    rcbuf_unref(rec.payload_ref);
    return st;
}

static void drop_locked(struct worker *w, struct mem_shard *shard, const struct key *key, mem_slot *slot, bool lost)
{
    struct tier *t = w->tier;
    struct object *o = mem_object(*slot);
    int db = mem_db_of(t->mem, o->inc);

    if (lost && o->type != OBJ_NONE && db >= 0) {
        mem_db_count(t->mem, (unsigned)db, -1, o->flags & OBJ_F_EXPIRE ? -1 : 0);
        stats_inc(w->stats, STAT_evicted_keys);
        tier_notify_locked(t, w, shard, key, TIER_EVICTED);
    }
    mem_remove_locked(t->mem, shard, key->hash, slot);
    tier_object_gone(t, o);
    object_free(o);
}

/* May a dirty object be dropped when the disk cannot take it? */
static bool may_drop(int policy, const struct object *o)
{
    return policy != POLICY_NOEVICTION && (!policy_is_volatile(policy) || o->flags & OBJ_F_EXPIRE);
}

/* ---- admission: what is not worth a write ---- */

#define ADMIT_TTL_MS 1000 /* a record with less to live would hardly be read */

static size_t value_bytes(const struct object *o)
{
    return o->type == OBJ_STRING ? object_string_len(o) : object_bytes(o);
}

/* Why it is not written: a counter, or STAT_COUNT when it is. */
static enum stats_id refused(const struct worker *w, const struct object *o)
{
    const struct tier *t = w->tier;
    size_t size = value_bytes(o);

    if (o->flags & OBJ_F_EXPIRE && object_expire(o) - w->now_ms < ADMIT_TTL_MS)
        return STAT_tier_admission_expiring;
    if (o->flags & OBJ_F_ORIGIN && !(o->flags & OBJ_F_REUSED) && tier_origin_current(t, object_origin(o)))
        return STAT_tier_admission_unread;
    if (size < (size_t)t->limit.disk_min_value || size > (size_t)t->limit.disk_max_value)
        return STAT_tier_admission_size;
    return STAT_COUNT;
}

/* It has to leave memory, and the disk does not have it. `stalled`: the disk's queue was full
 * for too long; dirty victims are dropped, counted. */
static enum evict_rc evict_dirty_locked(struct worker *w, struct mem_shard *shard, const struct key *key,
                                        mem_slot *slot, int policy, bool stalled)
{
    struct tier *t = w->tier;
    struct object *o = mem_object(*slot);
    enum stats_id why = refused(w, o);

    if (UNLIKELY(why != STAT_COUNT)) {
        bool had_expire;
        if (!may_drop(policy, o))
            return EVICT_NONE;
        stats_inc(w->stats, why);
        tier_forget_disk_locked(t, key->hash, &had_expire); /* what the journal wrote earlier is out of date */
        drop_locked(w, shard, key, slot, true);
        return EVICT_DONE;
    }
    enum status st = demote_locked(w, key, o);
    if (st == ST_OK)
        return EVICT_DONE;
    if (st == ST_FULL && !stalled && disk_queue_bytes(t->disk) > 0) {
        int64_t none = 0;
        atomic_compare_exchange_strong(&t->disk_full_since_ms, &none, clock_mono_ms());
        return EVICT_QUEUE_FULL;
    }
    if (!may_drop(policy, o))
        return EVICT_NONE;
    bool had_expire;
    stats_inc(w->stats, STAT_tier_dirty_drops);
    tier_forget_disk_locked(t, key->hash, &had_expire);
    drop_locked(w, shard, key, slot, true);
    return EVICT_DONE;
}

static enum evict_rc evict_locked(struct worker *w, struct mem_shard *shard, mem_slot *slot, int policy, bool stalled)
{
    struct tier *t = w->tier;
    struct object *o = mem_object(*slot);
    struct key key;
    uint32_t block;
    bool has_expire;

    /* The pool knows objects by their address: this may be another one by now, or have changed. */
    if (o->type == OBJ_RESIDENCY || o->flags & OBJ_F_LEAVING || is_no_copy(w, o) ||
        (only_volatile(t, policy) && !(o->flags & OBJ_F_EXPIRE)))
        return EVICT_NONE;
    mem_object_key(t->mem, o, &key);
    if (o->type == OBJ_NONE || mem_db_of(t->mem, o->inc) < 0) {
        drop_locked(w, shard, &key, slot, false);
        return EVICT_DONE;
    }
    if (object_expired(o, w->now_ms)) {
        tier_delete_locked(w, shard, &key, TIER_EXPIRED);
        return EVICT_DONE;
    }
    if (!t->disk || w->tier_worker->dropping) {
        if (t->disk)
            tier_forget_disk_locked(t, key.hash, &has_expire);
        stats_inc(w->stats, t->disk ? STAT_tier_dirty_drops : STAT_tier_lone_drops);
        drop_locked(w, shard, &key, slot, true);
        return EVICT_DONE;
    }
    if (tier_dirty_locked(t, o, key.hash))
        return evict_dirty_locked(w, shard, &key, slot, policy, stalled);
    if (!disk_find_locked(t->disk, key.hash, &block, &has_expire))
        return EVICT_NONE; /* its record is on its way to the disk */
    stats_inc(w->stats, STAT_tier_clean_drops);
    drop_locked(w, shard, &key, slot, false);
    return EVICT_DONE;
}

#define SPARES_MAX 32 /* of one eviction; then even what was used goes */

/* The pool's best goes, unless it went or was used meanwhile. *spared: those that may stay yet. */
static enum evict_rc evict_best(struct worker *w, struct evict_pool *pool, int policy, bool stalled, int *spared)
{
    struct tier *t = w->tier;
    enum evict_rc rc = EVICT_NONE;
    uint64_t hash = pool->entry[--pool->n].hash, score = pool->entry[pool->n].score;
    struct mem_shard *shard = tier_shard_of(t, hash);

    mem_lock(shard);
    mem_slot *slot = mem_find_object_locked(t->mem, shard, hash, pool->entry[pool->n].obj);
    if (slot) {
        struct object *o = mem_object(*slot);
        if (policy != POLICY_ADAPTIVE) {
            if (policy_is_random(policy) || victim_score(w, o, policy) >= score)
                rc = evict_locked(w, shard, slot, policy, stalled);
        } else if (victim_score(w, o, policy) >= score &&
                   tier_policy_in_main(o) == (pool != &w->tier_worker->policy.probation)) {
            bool from_main = tier_policy_in_main(o);
            if (*spared < SPARES_MAX && tier_policy_spares_locked(w, o))
                ++*spared;
            else if ((rc = evict_locked(w, shard, slot, policy, stalled)) == EVICT_DONE)
                tier_policy_evicted(w, hash, from_main);
        }
    }
    mem_unlock(shard);
    return rc;
}

static enum evict_rc evict_one(struct worker *w, int policy, bool stalled)
{
    struct evict_pool *pool = &w->tier_worker->pool, *probation = &w->tier_worker->policy.probation;
    int spared = 0;

    if (policy == POLICY_ADAPTIVE)
        tier_policy_begin(w);
    for (int tries = 0; tries < 8 + spared; tries++) {
        if (!pool_sample(w, policy) && pool->n + probation->n == 0)
            return EVICT_NONE;
        struct evict_pool *from = pool;
        if (policy == POLICY_ADAPTIVE && (probation->n > 0 && (pool->n == 0 || tier_policy_takes_probation(w))))
            from = probation;
        int before = spared;
        while (from->n > 0 && spared == before) {
            enum evict_rc rc = evict_best(w, from, policy, stalled, &spared);
            if (rc != EVICT_NONE)
                return rc;
        }
    }
    return EVICT_NONE;
}

/* The policy that drops any key, and reads eviction data as this one writes them. */
static int policy_for_all(int policy)
{
    switch (policy) {
    case POLICY_VOLATILE_LFU: return POLICY_ALLKEYS_LFU;
    case POLICY_VOLATILE_RANDOM: return POLICY_ALLKEYS_RANDOM;
    case POLICY_NOEVICTION:
    case POLICY_VOLATILE_TTL:
    case POLICY_VOLATILE_LRU: return POLICY_ALLKEYS_LRU;
    default: return policy;
    }
}

bool tier_drop_coldest(struct worker *w)
{
    struct tier_worker *tw = w->tier_worker;

    tw->dropping = true;
    enum evict_rc rc =
        evict_one(w, policy_for_all(atomic_load_explicit(&w->tier->limit.policy, memory_order_relaxed)), false);
    tw->dropping = false;
    return rc == EVICT_DONE;
}

/* ---- keeping to maxmemory ---- */

#define EVICT_PER_CALL 64

#define ALLOCATOR_PART 12

/* What evicting leaves free. Beside a disk: its queue; and a part for the allocator, because as the
 * disk's index grows objects go, and leave holes that it cannot use. */
static int64_t room_beside(const struct tier *t, int64_t limit)
{
    int64_t queue = atomic_load_explicit(&t->limit.disk_queue_max, memory_order_relaxed);
    return t->disk ? (queue < limit / 8 ? queue : limit / 8) + limit / ALLOCATOR_PART : 0;
}

int64_t tier_mark(const struct tier *t)
{
    int64_t limit = atomic_load_explicit(&t->limit.maxmemory, memory_order_relaxed);

    return limit - room_beside(t, limit);
}

bool tier_over_limit(struct tier *t)
{
    int64_t limit = atomic_load_explicit(&t->limit.maxmemory, memory_order_relaxed);

    return limit > 0 && mem_class_bytes(MEM_DATA) > limit;
}

/* What a commit will free: objects being demoted, and their copies in the disk's queue. And what is being freed. */
static int64_t soon_free(struct tier *t)
{
    return (t->disk ? t->demoting_bytes + (int64_t)disk_queue_bytes(t->disk) : 0) + object_lazy_bytes();
}

/* Above the lower mark, not counting what is being demoted. */
int64_t tier_over_mark(struct tier *t)
{
    int64_t limit = atomic_load_explicit(&t->limit.maxmemory, memory_order_relaxed);
    int64_t over = limit > 0 ? mem_class_bytes(MEM_DATA) - soon_free(t) - tier_mark(t) : 0;

    return over > 0 ? over : 0;
}

bool tier_has_room(struct worker *w)
{
    struct tier *t = w->tier;
    int64_t limit = atomic_load_explicit(&t->limit.maxmemory, memory_order_relaxed);

    if (UNLIKELY(atomic_load_explicit(&t->limit.journal, memory_order_relaxed)) || t->has_upstream)
        return false;
    return limit <= 0 || mem_class_bytes(MEM_DATA) <= limit - room_beside(t, limit);
}

/* What is being demoted will be free soon, and is not counted against the lower mark; so
 * writes seldom meet the upper one, maxmemory itself, where they must wait. */
enum status tier_make_room(struct worker *w)
{
    struct tier *t = w->tier;
    int64_t limit = atomic_load_explicit(&t->limit.maxmemory, memory_order_relaxed);
    int policy = atomic_load_explicit(&t->limit.policy, memory_order_relaxed);

    if (UNLIKELY(t->limit.journal) && t->disk && disk_quota_full(t->disk))
        return ST_FULL; /* what is written has to be on disk too */
    if (limit <= 0)
        return ST_OK;
    int64_t soft = limit - room_beside(t, limit);
    int64_t used = mem_class_bytes(MEM_DATA);
    if (LIKELY(used <= soft) || (used - soon_free(t) <= soft && used <= limit))
        return ST_OK;
    if (policy == POLICY_NOEVICTION && !t->disk)
        return used > limit ? ST_FULL : ST_OK;
    int64_t full_since = t->disk_full_since_ms;
    bool stalled = full_since != 0 && clock_mono_ms() - full_since >= t->limit.disk_stall_ms;
    enum evict_rc rc = EVICT_DONE;
    for (int i = 0; i < EVICT_PER_CALL && rc == EVICT_DONE; i++) {
        rc = evict_one(w, policy, stalled);
        used = mem_class_bytes(MEM_DATA);
        if (used - soon_free(t) <= soft)
            break;
    }
    if (used <= limit)
        return ST_OK;
    if (soon_free(t) > 0) { /* what the journal has queued, too: until its commit it cannot be dropped */
        if (t->disk)
            disk_hurry(t->disk);
        return stalled ? ST_OK : ST_PENDING;
    }
    if (rc != EVICT_NONE)
        return ST_OK;
    /* The oldest requests of other clients use what there is, and let go of it in any case: they do not wait for room
     * while they hold it. */
    return atomic_load(&t->inflight_urgent) > 0 ? ST_PENDING : ST_FULL;
}

/* ---- what the disk reports, on its writer thread ---- */

/* The record of an object that was to leave memory. */
static void commit_one_locked(struct tier *t, struct mem_shard *shard, const struct disk_done *item, bool ok)
{
    uint32_t block;
    bool has_expire;
    mem_slot *slot = mem_find_object_locked(t->mem, shard, item->hash, (const struct object *)(uintptr_t)item->ticket);

    if (!ok)
        disk_drop_locked(t->disk, item->hash, item->block);
    if (!slot) /* it went, or requests wait to use it */
        return;
    struct object *o = mem_object(*slot);
    if (!(o->flags & OBJ_F_LEAVING) || mem_object_hash(t->mem, o) != item->hash)
        return; /* read or changed meanwhile; or another object, at the same address */
    o->flags &= (uint8_t)~OBJ_F_LEAVING;
    if (!ok || !disk_find_locked(t->disk, item->hash, &block, &has_expire) || block != item->block)
        return;
    mem_remove_locked(t->mem, shard, item->hash, slot);
    tier_object_gone(t, o);
    object_free(o);
}

#define COMMITTED_AHEAD 4 /* items whose lines are on their way meanwhile */

void tier_committed(void *arg, const struct disk_done *items, size_t n, enum status st)
{
    struct tier *t = arg;

    for (size_t i = 0; i < n; i++) {
        const struct disk_done *item = &items[i];
        struct mem_shard *shard = tier_shard_of(t, item->hash);
        if (item->ticket == 0 && st == ST_OK)
            continue;
        if (i + COMMITTED_AHEAD < n) {
            mem_prefetch_bucket(t->mem, item[COMMITTED_AHEAD].hash);
            __builtin_prefetch((const void *)(uintptr_t)item[COMMITTED_AHEAD].ticket, 1);
        }
        mem_lock(shard);
        if (item->ticket != 0)
            commit_one_locked(t, shard, item, st == ST_OK);
        else
            disk_drop_locked(t->disk, item->hash, item->block);
        mem_unlock(shard);
        atomic_fetch_sub_explicit(&t->demoting_bytes, item->note, memory_order_relaxed);
    }
    if (st != ST_OK && t->limit.journal)
        atomic_store(&t->journal_debt, true);
    tier_wake_room(t);
}

struct presence {
    const struct tier *t;
    uint64_t bits;
    bool found;
};

static void presence_fn(void *arg, struct object *o)
{
    struct presence *p = arg;

    if (o->type == OBJ_RESIDENCY) {
        struct residency *r = residency_of(o);
        p->found |= r->value && disk_hash_bits(p->t->disk, r->hash) == p->bits;
    } else if (o->type != OBJ_NONE && mem_db_of(p->t->mem, o->inc) >= 0) {
        p->found |= disk_hash_bits(p->t->disk, mem_object_hash(p->t->mem, o)) == p->bits;
    }
}

static bool in_memory_locked(const struct tier *t, struct mem_shard *shard, uint64_t hash)
{
    struct presence p = {.t = t, .bits = disk_hash_bits(t->disk, hash)};
    uint64_t end;

    mem_scan_locked(t->mem, shard, hash, &end, presence_fn, &p);
    return p.found;
}

static int gone_db(const struct tier *t, const struct disk_gone *gone)
{
    int db = mem_db_of(t->mem, (uint16_t)gone->incarnation);

    return db >= 0 && atomic_load(&t->mem->db[db].incarnation) == gone->incarnation ? db : -1;
}

static void gone_notify_locked(struct tier *t, struct mem_shard *shard, const struct disk_gone *gone, int db)
{
    struct key key = {.ptr = gone->name.ptr,
                      .len = (uint32_t)gone->name.len,
                      .db = (uint16_t)db,
                      .inc = (uint16_t)gone->incarnation,
                      .hash = gone->hash};

    if (key.ptr)
        tier_notify_locked(t, NULL, shard, &key, gone->expired ? TIER_EXPIRED : TIER_EVICTED);
}

/* Records that leave the disk. What is in memory too becomes dirty by that; the rest is lost. */
void tier_dropped(void *arg, const struct disk_gone *items, size_t n)
{
    struct tier *t = arg;

    for (size_t i = 0; i < n; i++) {
        const struct disk_gone *gone = &items[i];
        struct mem_shard *shard = tier_shard_of(t, gone->hash);
        mem_lock(shard);
        int db = gone_db(t, gone);
        if (disk_drop_locked(t->disk, gone->hash, gone->block) && db >= 0) {
            if (in_memory_locked(t, shard, gone->hash)) {
                if (t->limit.journal && !gone->expired)
                    atomic_store(&t->journal_debt, true);
            } else {
                mem_db_count(t->mem, (unsigned)db, -1, gone->has_expire ? -1 : 0);
                stats_inc(t->disk_stats, gone->expired ? STAT_expired_keys : STAT_evicted_keys);
                gone_notify_locked(t, shard, gone, db);
            }
        }
        mem_unlock(shard);
    }
}

/* With appendonly, what is in memory keeps its copy on disk. */
bool tier_keep_locked(void *arg, const struct disk_gone *rec)
{
    struct tier *t = arg;

    return t->limit.journal && gone_db(t, rec) >= 0 && in_memory_locked(t, tier_shard_of(t, rec->hash), rec->hash);
}
