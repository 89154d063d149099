/* maxmemory-policy adaptive: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache
 * eviction", SOSP 2023) without its queues, by sampling as in Redis. A new object is on probation; most are
 * never used again, and go from there soon. One that was used at least twice when its turn comes is moved to
 * the main part, which is a CLOCK of two bits. An object whose hash is among the ghosts, those that lately went from
 * probation, comes to the main part at once.
 *
 * A queue is an order: instead of links, an object has the time at which it joined its part, and the victim
 * is the oldest of a sample and of what earlier samples left over. In `access`: 21 bits of that time, one that
 * says which part, two that count uses. A hit costs less than under LFU.
 *
 * The share of memory that is on probation adapts as in ARC (Megiddo, Modha: "ARC: a self-tuning, low overhead
 * replacement cache", FAST 2003): it grows when what has just gone from there is wanted again, and shrinks when what has just
 * gone from the main part is. It is estimated from the samples, so nothing has to be counted where objects come and go.
 *
 * Time is counted in objects that came, about 2048 ticks for as many as memory holds: so precision depends neither on the
 * rate of requests nor on the clock. It wraps when memory was renewed some 1,000 times; an object in the main part that
 * nothing touched and that no sample met in all that time looks younger than it is. */
#include "tiercel/alloc.h"
#include "tier_priv.h"

#define FREQ_MAX 3u
#define MAIN 4u
#define TIME_SHIFT 3
#define TIME_MASK 0x1fffffu
#define TICKS_LOG 11

#define PROMOTE_FREQ 2

/* Part of the objects, in 1/1000. */
#define PROBATION_START 100
#define PROBATION_MIN 80
#define PROBATION_MAX 250
/* What a ghost that is asked for adds and takes, in 1/1000 of an object. */
#define GHOST_ADDS 100
#define GHOST_TAKES 300
/* A ghost counts while fewer than this have followed, in 1/1000 of the objects in memory. */
#define GHOST_ADMITS 1000
#define GHOST_ADAPTS 500

/* ---- ghosts: a table of 4 bytes each, without locks; what is lost in a race is a hint ----
 * A bucket is a cache line, and the oldest in it is replaced. */
enum ghost_kind { GHOST_NONE, GHOST_PROBATION, GHOST_COUNTED, GHOST_MAIN };

#define GHOST_WAYS 16
#define GHOST_TICK_BITS 13
#define GHOST_TICK_MASK ((1u << GHOST_TICK_BITS) - 1)
#define GHOST_TAG_MASK 0x1ffffu

struct ghost_bucket {
    _Atomic uint32_t entry[GHOST_WAYS]; /* tag 17, kind 2, tick 13; 0 = free */
};

#define SEGMENTS 32

struct tier_policy {
    _Atomic uint64_t inserted, clock; /* objects that came; ticks */
    _Atomic uint64_t ghosts;          /* that went from probation, ever */
    _Atomic uint64_t objects;         /* in memory, lately */
    _Atomic uint64_t probation;       /* objects wanted there, times 1000 */
    /* The table grows by its own size and keeps what it has: nobody has to wait until nobody reads it. */
    _Atomic unsigned segments;
    struct ghost_bucket *_Atomic segment[SEGMENTS]; /* of 1, 1, 2, 4, 8... buckets */
};

#define LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define STORE(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)

static unsigned log2_of(uint64_t n)
{
    return n > 1 ? 63 - (unsigned)__builtin_clzll(n) : 0;
}

static uint64_t segment_buckets(unsigned k)
{
    return k == 0 ? 1 : 1ULL << (k - 1);
}

struct tier_policy *tier_policy_create(void)
{
    return mem_calloc(MEM_OTHER, sizeof(struct tier_policy));
}

void tier_policy_destroy(struct tier_policy *p)
{
    for (unsigned k = 0; k < SEGMENTS; k++)
        mem_free(MEM_DATA, LOAD(p->segment[k]));
    mem_free(MEM_OTHER, p);
}

/* Any thread. */
static void ghosts_grow(struct tier_policy *p, uint64_t objects)
{
    for (;;) {
        unsigned k = atomic_load(&p->segments);
        if (k == SEGMENTS || (k > 0 && (uint64_t)GHOST_WAYS << (k - 1) >= objects * GHOST_ADMITS / 1000))
            return;
        struct ghost_bucket *none = NULL, *new = mem_calloc(MEM_DATA, segment_buckets(k) * sizeof(struct ghost_bucket));
        if (atomic_compare_exchange_strong(&p->segment[k], &none, new))
            atomic_store(&p->segments, k + 1);
        else
            mem_free(MEM_DATA, new); /* another worker is at it */
    }
}

static struct ghost_bucket *ghost_bucket(struct tier_policy *p, uint64_t hash)
{
    unsigned segments = atomic_load_explicit(&p->segments, memory_order_acquire);

    if (segments == 0)
        return NULL;
    uint64_t i = hash & ((1ULL << (segments - 1)) - 1);
    unsigned k = i == 0 ? 0 : log2_of(i) + 1;
    struct ghost_bucket *first = LOAD(p->segment[k]);
    return first + (i - (k == 0 ? 0 : segment_buckets(k)));
}

static unsigned ghost_shift(uint64_t objects)
{
    unsigned log = log2_of(objects);
    return log > TICKS_LOG ? log - TICKS_LOG : 0;
}

static uint32_t ghost_tick(const struct tier_policy *p)
{
    return (uint32_t)(LOAD(p->ghosts) >> ghost_shift(LOAD(p->objects))) & GHOST_TICK_MASK;
}

static uint32_t ghost_make(uint64_t hash, enum ghost_kind kind, uint32_t tick)
{
    return (uint32_t)((hash >> 40) & GHOST_TAG_MASK) << (GHOST_TICK_BITS + 2) | (uint32_t)kind << GHOST_TICK_BITS |
           tick;
}

static enum ghost_kind ghost_kind(uint32_t entry)
{
    return (enum ghost_kind)(entry >> GHOST_TICK_BITS & 3);
}

static _Atomic uint32_t *ghost_find(struct ghost_bucket *b, uint64_t hash)
{
    uint32_t tag = ghost_make(hash, GHOST_NONE, 0) >> (GHOST_TICK_BITS + 2);

    for (int i = 0; i < GHOST_WAYS; i++) {
        uint32_t entry = LOAD(b->entry[i]);
        if (entry >> (GHOST_TICK_BITS + 2) == tag && ghost_kind(entry) != GHOST_NONE)
            return &b->entry[i];
    }
    return NULL;
}

static void ghost_add(struct tier_policy *p, uint64_t hash, enum ghost_kind kind)
{
    struct ghost_bucket *b = ghost_bucket(p, hash);

    if (!b)
        return;
    uint32_t now = ghost_tick(p), oldest_age = 0;
    _Atomic uint32_t *place = ghost_find(b, hash);
    for (int i = 0; !place && i < GHOST_WAYS; i++)
        if (LOAD(b->entry[i]) == 0)
            place = &b->entry[i];
    for (int i = 0; !place && i < GHOST_WAYS; i++)
        if (((now - LOAD(b->entry[i])) & GHOST_TICK_MASK) >= oldest_age)
            oldest_age = (now - LOAD(b->entry[i])) & GHOST_TICK_MASK;
    for (int i = 0; !place && i < GHOST_WAYS; i++)
        if (((now - LOAD(b->entry[i])) & GHOST_TICK_MASK) == oldest_age)
            place = &b->entry[i];
    if (place)
        STORE(*place, ghost_make(hash, kind, now));
}

static void probation_adapt(struct tier_policy *p, int64_t milli, uint64_t objects)
{
    int64_t n = (int64_t)objects, wanted = (int64_t)LOAD(p->probation) + milli;

    if (wanted < n * PROBATION_MIN)
        wanted = n * PROBATION_MIN;
    if (wanted > n * PROBATION_MAX)
        wanted = n * PROBATION_MAX;
    STORE(p->probation, (uint64_t)wanted);
}

/* Is it to come to the main part? */
static bool ghost_returns(struct tier_policy *p, uint64_t hash)
{
    struct ghost_bucket *b = ghost_bucket(p, hash);
    _Atomic uint32_t *place = b ? ghost_find(b, hash) : NULL;

    if (!place)
        return false;
    uint64_t objects = LOAD(p->objects);
    uint32_t entry = LOAD(*place);
    uint64_t followed = (uint64_t)((ghost_tick(p) - entry) & GHOST_TICK_MASK) << ghost_shift(objects);
    enum ghost_kind kind = ghost_kind(entry);
    if (kind != GHOST_COUNTED && followed * 1000 <= objects * GHOST_ADAPTS)
        probation_adapt(p, kind == GHOST_MAIN ? -GHOST_TAKES : GHOST_ADDS, objects);
    /* It stays until it is replaced: what came may be a copy that is not kept. */
    STORE(*place, kind == GHOST_MAIN ? 0 : ghost_make(hash, GHOST_COUNTED, entry & GHOST_TICK_MASK));
    return kind != GHOST_MAIN && followed * 1000 <= objects * GHOST_ADMITS;
}

/* ---- eviction data ---- */

static uint32_t now_and(const struct tier_policy *p, uint32_t bits)
{
    return (uint32_t)(LOAD(p->clock) & TIME_MASK) << TIME_SHIFT | bits;
}

uint32_t tier_policy_new(struct tier *t, const struct object *o)
{
    struct tier_policy *p = t->policy;
    uint64_t n = atomic_fetch_add_explicit(&p->inserted, 1, memory_order_relaxed) + 1;
    unsigned log = log2_of(LOAD(p->objects)), shift = log > TICKS_LOG ? log - TICKS_LOG : 0;

    if ((n & ((1ULL << shift) - 1)) == 0)
        atomic_fetch_add_explicit(&p->clock, 1, memory_order_relaxed);
    if (LOAD(p->segments) == 0) /* nothing was evicted yet */
        return now_and(p, 0);
    return now_and(p, ghost_returns(p, mem_object_hash(t->mem, o)) ? MAIN : 0);
}

bool tier_policy_in_main(const struct object *o)
{
    return o->access & MAIN;
}

unsigned tier_policy_cold(const struct object *o)
{
    return (o->access & MAIN ? 0 : FREQ_MAX + 1) + FREQ_MAX - (o->access & FREQ_MAX);
}

/* When it joined its part, in ticks since the start; larger is older. */
uint64_t tier_policy_score(const struct tier *t, const struct object *o)
{
    uint64_t now = LOAD(t->policy->clock), age = (now - (o->access >> TIME_SHIFT)) & TIME_MASK;

    return UINT64_MAX - TIME_MASK - now + age;
}

/* ---- choosing ---- */

#define RECOUNT 1024

static void recount(struct worker *w)
{
    struct tier *t = w->tier;
    struct tier_policy *p = t->policy;
    uint64_t n = 0;

    for (unsigned i = 0; i < t->mem->shards; i++)
        n += LOAD(t->mem->shard[i].count);
    if (LOAD(p->probation) == 0)
        STORE(p->probation, n * PROBATION_START);
    STORE(p->objects, n);
    probation_adapt(p, 0, n);
    ghosts_grow(p, n);
}

void tier_policy_begin(struct worker *w)
{
    struct policy_worker *pw = &w->tier_worker->policy;

    if (pw->evictions++ % RECOUNT == 0)
        recount(w);
}

/* Of `seen` objects in a sample, so many were on probation. */
void tier_policy_sampled(struct worker *w, size_t seen, size_t on_probation)
{
    struct policy_worker *pw = &w->tier_worker->policy;
    uint64_t samples = LOAD(w->tier->policy->objects) / 64; /* to average over */

    if (seen == 0)
        return;
    samples = samples < 4 ? 4 : samples > 256 ? 256 : samples;
    pw->share += ((float)on_probation / (float)seen - pw->share) / (float)samples;
}

bool tier_policy_takes_probation(const struct worker *w)
{
    const struct tier_policy *p = w->tier->policy;

    return (double)w->tier_worker->policy.share * (double)LOAD(p->objects) * 1000 >= (double)LOAD(p->probation);
}

bool tier_policy_spares_locked(struct worker *w, struct object *o)
{
    const struct tier_policy *p = w->tier->policy;
    unsigned freq = o->access & FREQ_MAX;

    if (o->access & MAIN) {
        if (freq == 0)
            return false;
        o->access = now_and(p, MAIN | (freq - 1)) & 0xffffff;
        return true;
    }
    if (freq < PROMOTE_FREQ)
        return false;
    o->access = now_and(p, MAIN) & 0xffffff;
    return true;
}

void tier_policy_evicted(struct worker *w, uint64_t hash, bool from_main)
{
    struct tier_policy *p = w->tier->policy;

    if (!from_main)
        atomic_fetch_add_explicit(&p->ghosts, 1, memory_order_relaxed);
    ghost_add(p, hash, from_main ? GHOST_MAIN : GHOST_PROBATION);
}
