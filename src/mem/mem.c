#include "tiercel/mem.h"

#include <stdlib.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"
#include "tiercel/type_hash.h"

/* A slot: hash bits in 48..63, the object's address in 4..47, and two marks in the low
 * bits, which an allocator's alignment leaves free. */
#define SLOT_CHAIN 1ULL   /* the address is of a link, not of an object */
#define SLOT_EXPIRES 2ULL /* the object or a field of it expires: the sweep need not look at others */
#define SLOT_ADDRESS 0x0000fffffffffff0ULL
#define SLOT_TAG_SHIFT 48

/* A bucket is a cache line. One that overflows goes on in links of half a line: they hold little,
 * and so a table may be full. The last slot of a bucket or a link is where it goes on. */
#define SLOTS 8
#define LINK_SLOTS 4
#define MEAN_MAX 8 /* objects per bucket at which a table doubles: 10 bytes a key then, 16 right after */
/* Every so many insertions one old bucket is moved: no insertion waits long, few wait at all, and before the new
 * table is full the old one is empty twice over. A power of two. */
#define MOVE_EVERY 4

static uint64_t tag_of(uint64_t hash)
{
    return hash << SLOT_TAG_SHIFT; /* low bits: position uses the high ones */
}

static mem_slot *slot_link(mem_slot slot)
{
    return (mem_slot *)(uintptr_t)(slot & SLOT_ADDRESS);
}

struct object *mem_object(mem_slot slot)
{
    return (struct object *)(uintptr_t)(slot & SLOT_ADDRESS);
}

static bool has_timed_fields(const struct object *o)
{
    return UNLIKELY(o->type == OBJ_HASH) && hash_first_expiry(o) != 0;
}

static mem_slot slot_make(uint64_t tag, const struct object *o)
{
    return tag | (uint64_t)(uintptr_t)o | (o->flags & OBJ_F_EXPIRE || has_timed_fields(o) ? SLOT_EXPIRES : 0);
}

/* Not of a hash whose record is being written: what is in it has to stay, and it goes soon. Nor of a copy of an upstream's. */
static bool fields_due(const struct object *o, int64_t now_ms)
{
    return has_timed_fields(o) && !(o->flags & (OBJ_F_LEAVING | OBJ_F_ORIGIN)) && hash_first_expiry(o) <= now_ms;
}

static struct mem_bucket *table_create(unsigned bits)
{
    return mem_calloc(MEM_DATA, sizeof(struct mem_bucket) << bits);
}

struct mem *mem_create(unsigned shard_bits, unsigned databases, uint64_t seed, const uint32_t *incarnations)
{
    return mem_create_spaces(shard_bits, databases, databases, seed, incarnations);
}

struct mem *mem_create_spaces(unsigned shard_bits, unsigned databases, unsigned spaces, uint64_t seed,
                              const uint32_t *incarnations)
{
    struct mem *m = mem_calloc(MEM_OTHER, sizeof(*m));

    m->shard_bits = shard_bits;
    m->shards = 1u << shard_bits;
    m->databases = databases;
    m->spaces = spaces;
    m->seed = seed;
    void *shards = NULL;
    CHECK(posix_memalign(&shards, 64, m->shards * sizeof(struct mem_shard)) == 0);
    memset(shards, 0, m->shards * sizeof(struct mem_shard));
    m->shard = shards;
    for (unsigned i = 0; i < m->shards; i++) {
        pthread_mutex_init(&m->shard[i].lock, NULL);
        m->shard[i].index = i;
        m->shard[i].table = table_create(0);
    }
    m->db = mem_calloc(MEM_OTHER, spaces * sizeof(*m->db));
    m->db_of_inc = mem_calloc(MEM_OTHER, 65536 * sizeof(*m->db_of_inc));
    m->full_inc = mem_calloc(MEM_OTHER, 65536 * sizeof(*m->full_inc));
    m->lingering = mem_calloc(MEM_OTHER, 65536 * sizeof(*m->lingering));
    uint32_t last = 0;
    for (unsigned i = 0; i < spaces; i++)
        if (incarnations && incarnations[i] > last)
            last = incarnations[i];
    for (unsigned i = 0; i < spaces; i++) {
        uint32_t inc = incarnations && incarnations[i] ? incarnations[i] : ++last;
        atomic_store(&m->db[i].incarnation, inc);
        atomic_store(&m->db_of_inc[(uint16_t)inc], (uint16_t)(i + 1));
        atomic_store(&m->full_inc[(uint16_t)inc], inc);
    }
    atomic_store(&m->last_incarnation, last);
    return m;
}

static void slots_destroy(const mem_slot *slot, int n)
{
    for (int i = 0; i < n; i++) {
        if (slot[i] & SLOT_CHAIN) {
            slots_destroy(slot_link(slot[i]), LINK_SLOTS);
            mem_free(MEM_DATA, slot_link(slot[i]));
        } else if (slot[i]) {
            object_free(mem_object(slot[i]));
        }
    }
}

static void table_destroy(struct mem_bucket *table, unsigned bits)
{
    for (uint64_t i = 0; table && i < 1ULL << bits; i++)
        slots_destroy(table[i].slot, SLOTS);
    mem_free(MEM_DATA, table);
}

void mem_destroy(struct mem *m)
{
    for (unsigned i = 0; i < m->shards; i++) {
        struct mem_shard *s = &m->shard[i];
        table_destroy(s->table, s->bits);
        if (s->old)
            table_destroy(s->old, s->bits - 1);
        pthread_mutex_destroy(&s->lock);
    }
    free(m->shard);
    mem_free(MEM_OTHER, m->db);
    mem_free(MEM_OTHER, (void *)m->db_of_inc);
    mem_free(MEM_OTHER, (void *)m->full_inc);
    mem_free(MEM_OTHER, m->lingering);
    mem_free(MEM_OTHER, m);
}

/* ---- keys and databases ---- */

void mem_key_init(const struct mem *m, unsigned db, struct slice name, struct key *out)
{
    uint32_t inc = atomic_load_explicit(&m->db[db].incarnation, memory_order_relaxed);

    out->ptr = name.ptr;
    out->len = (uint32_t)name.len;
    out->db = (uint16_t)db;
    out->inc = (uint16_t)inc;
    out->hash = hash_key(m->seed, inc, name);
}

uint64_t mem_object_hash(const struct mem *m, const struct object *o)
{
    return hash_key(m->seed, atomic_load_explicit(&m->full_inc[o->inc], memory_order_relaxed), object_key(o));
}

void mem_object_key(const struct mem *m, const struct object *o, struct key *out)
{
    struct slice name = object_key(o);
    int db = mem_db_of(m, o->inc);

    out->ptr = name.ptr;
    out->len = (uint32_t)name.len;
    out->db = (uint16_t)(db < 0 ? 0 : db);
    out->inc = o->inc;
    out->hash = mem_object_hash(m, o);
}

bool mem_key_current(const struct mem *m, const struct key *key)
{
    return (uint16_t)atomic_load_explicit(&m->db[key->db].incarnation, memory_order_relaxed) == key->inc;
}

int mem_db_of(const struct mem *m, uint16_t inc)
{
    return (int)atomic_load_explicit(&m->db_of_inc[inc], memory_order_relaxed) - 1;
}

static uint32_t next_incarnation(const struct mem *m)
{
    uint32_t inc = atomic_load(&m->last_incarnation);

    do /* the low bits of a live incarnation are not given out twice */
        inc++;
    while (atomic_load(&m->db_of_inc[(uint16_t)inc]) != 0);
    return inc;
}

bool mem_db_flush_collides_locked(const struct mem *m)
{
    return m->lingering[(uint16_t)next_incarnation(m)];
}

void mem_swept_locked(struct mem *m)
{
    memset(m->lingering, 0, 65536 * sizeof(*m->lingering));
}

uint32_t mem_db_flush_locked(struct mem *m, unsigned db)
{
    uint32_t old = atomic_load(&m->db[db].incarnation), inc = next_incarnation(m);

    atomic_store(&m->last_incarnation, inc);
    m->lingering[(uint16_t)old] = true;
    atomic_store(&m->db_of_inc[(uint16_t)old], 0);
    atomic_store(&m->db_of_inc[(uint16_t)inc], (uint16_t)(db + 1));
    atomic_store(&m->full_inc[(uint16_t)inc], inc);
    atomic_store(&m->db[db].incarnation, inc);
    atomic_store(&m->db[db].keys, 0);
    atomic_store(&m->db[db].expires, 0);
    return inc;
}

void mem_db_swap_locked(struct mem *m, unsigned a, unsigned b)
{
    uint32_t inc_a = atomic_load(&m->db[a].incarnation), inc_b = atomic_load(&m->db[b].incarnation);
    int64_t keys = atomic_load(&m->db[a].keys), expires = atomic_load(&m->db[a].expires);

    if (a == b)
        return;
    atomic_store(&m->db[a].incarnation, inc_b);
    atomic_store(&m->db[b].incarnation, inc_a);
    atomic_store(&m->db_of_inc[(uint16_t)inc_b], (uint16_t)(a + 1));
    atomic_store(&m->db_of_inc[(uint16_t)inc_a], (uint16_t)(b + 1));
    atomic_store(&m->db[a].keys, atomic_load(&m->db[b].keys));
    atomic_store(&m->db[a].expires, atomic_load(&m->db[b].expires));
    atomic_store(&m->db[b].keys, keys);
    atomic_store(&m->db[b].expires, expires);
}

#define LOCK_STEP_NS 20000000L

bool mem_lock_waiting(struct mem_shard *s, const _Atomic int *give_up)
{
    struct timespec until;

    do {
        if (UNLIKELY(atomic_load_explicit(give_up, memory_order_relaxed) != 0))
            return false;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOCK_STEP_NS;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
    } while (pthread_mutex_timedlock(&s->lock, &until) != 0);
    return true;
}

bool mem_lock_all_unless(struct mem *m, const _Atomic int *give_up)
{
    for (unsigned i = 0; i < m->shards; i++) {
        if (LIKELY(mem_lock_unless(&m->shard[i], give_up)))
            continue;
        while (i-- > 0)
            mem_unlock(&m->shard[i]);
        return false;
    }
    return true;
}

void mem_lock_all(struct mem *m)
{
    for (unsigned i = 0; i < m->shards; i++)
        mem_lock(&m->shard[i]);
}

void mem_unlock_all(struct mem *m)
{
    for (unsigned i = m->shards; i-- > 0;)
        mem_unlock(&m->shard[i]);
}

/* ---- table ---- */

static uint64_t bucket_index(uint64_t hash, unsigned shard_bits, unsigned bits)
{
    return bits == 0 ? 0 : (hash << shard_bits) >> (64 - bits);
}

/* The bucket that holds, or would hold, the hash. */
static struct mem_bucket *bucket_of(const struct mem *m, const struct mem_shard *s, uint64_t hash)
{
    if (UNLIKELY(s->old != NULL)) {
        uint64_t i = bucket_index(hash, m->shard_bits, s->bits - 1);
        if (i >= s->moved)
            return &s->old[i];
    }
    return &s->table[bucket_index(hash, m->shard_bits, s->bits)];
}

mem_slot *mem_find_locked(const struct mem *m, struct mem_shard *s, const struct key *key)
{
    mem_slot *at = bucket_of(m, s, key->hash)->slot;
    uint64_t tag = tag_of(key->hash);

    for (int n = SLOTS;; n = LINK_SLOTS) {
        for (int i = 0; i < n; i++) {
            mem_slot slot = at[i];
            if ((slot ^ tag) >> SLOT_TAG_SHIFT == 0 && slot && !(slot & SLOT_CHAIN) &&
                object_key_is(mem_object(slot), key))
                return &at[i];
        }
        if (!(at[n - 1] & SLOT_CHAIN))
            return NULL;
        at = slot_link(at[n - 1]);
    }
}

mem_slot *mem_find_object_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, const struct object *o)
{
    mem_slot *at = bucket_of(m, s, hash)->slot;

    for (int n = SLOTS;; n = LINK_SLOTS) {
        for (int i = 0; i < n; i++)
            if (!(at[i] & SLOT_CHAIN) && mem_object(at[i]) == o)
                return &at[i];
        if (!(at[n - 1] & SLOT_CHAIN))
            return NULL;
        at = slot_link(at[n - 1]);
    }
}

void mem_prefetch_bucket(const struct mem *m, uint64_t hash)
{
    const struct mem_shard *s = mem_shard_of(m, hash);
    unsigned bits = atomic_load_explicit(&s->bits, memory_order_relaxed);

    /* While the table grows this may be the wrong line, or one of no use: no harm. */
    __builtin_prefetch(atomic_load_explicit(&s->table, memory_order_relaxed) + bucket_index(hash, m->shard_bits, bits));
}

void mem_prefetch_object(const struct mem *m, uint64_t hash)
{
    struct mem_shard *s = mem_shard_of(m, hash);

    if (pthread_mutex_trylock(&s->lock) != 0)
        return;
    const struct mem_bucket *b = bucket_of(m, s, hash);
    uint64_t tag = tag_of(hash);
    for (int i = 0; i < SLOTS; i++) {
        if ((b->slot[i] ^ tag) >> SLOT_TAG_SHIFT == 0) {
            const char *o = (const char *)mem_object(b->slot[i]);
            __builtin_prefetch(o);
            __builtin_prefetch(o + 64);
        }
    }
    if (b->slot[SLOTS - 1] & SLOT_CHAIN)
        __builtin_prefetch(slot_link(b->slot[SLOTS - 1]));
    mem_unlock(s);
}

static void bucket_add(struct mem_bucket *b, mem_slot slot)
{
    mem_slot *at = b->slot;

    for (int n = SLOTS;; n = LINK_SLOTS) {
        for (int i = 0; i < n; i++) {
            if (at[i] == 0) {
                at[i] = slot;
                return;
            }
        }
        if (!(at[n - 1] & SLOT_CHAIN)) {
            mem_slot *more = mem_calloc(MEM_DATA, LINK_SLOTS * sizeof(*more));
            more[0] = at[n - 1];
            at[n - 1] = (uint64_t)(uintptr_t)more | SLOT_CHAIN;
        }
        at = slot_link(at[n - 1]);
    }
}

/* Splits old bucket `i` into its two successors. The bit that decides is not in the slot, so
 * the key is hashed again: growth is rare and bounded, and slots are many. */
static void bucket_split(const struct mem *m, struct mem_shard *s, uint64_t i)
{
    mem_slot *at = s->old[i].slot;

    for (int n = SLOTS; at; n = LINK_SLOTS) {
        mem_slot *next = NULL;
        for (int k = 0; k < n; k++) /* to wait for them once, not one after another */
            __builtin_prefetch(mem_object(at[k]));
        for (int k = 0; k < n; k++) {
            mem_slot slot = at[k];
            at[k] = 0;
            if (slot & SLOT_CHAIN) {
                next = slot_link(slot);
            } else if (slot) {
                uint64_t hash = mem_object_hash(m, mem_object(slot));
                bucket_add(&s->table[bucket_index(hash, m->shard_bits, s->bits)], slot);
            }
        }
        if (n == LINK_SLOTS)
            mem_free(MEM_DATA, at);
        at = next;
    }
}

static void count_add(struct mem_shard *s, uint64_t n)
{
    atomic_store_explicit(&s->count, atomic_load_explicit(&s->count, memory_order_relaxed) + n, memory_order_relaxed);
}

static void grow_step(const struct mem *m, struct mem_shard *s)
{
    if (!s->old) {
        if (atomic_load_explicit(&s->count, memory_order_relaxed) < (uint64_t)MEAN_MAX << s->bits ||
            s->bits + m->shard_bits >= 44)
            return;
        s->old = s->table;
        s->moved = 0;
        s->sweep = 0;
        s->bits++;
        s->table = table_create(s->bits);
    }
    if (atomic_load_explicit(&s->count, memory_order_relaxed) % MOVE_EVERY != 0)
        return;
    bucket_split(m, s, s->moved++);
    if (s->moved == 1ULL << (s->bits - 1)) {
        mem_free(MEM_DATA, s->old);
        s->old = NULL;
    }
}

void mem_insert_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, struct object *o)
{
    grow_step(m, s);
    bucket_add(bucket_of(m, s, hash), slot_make(tag_of(hash), o));
    count_add(s, 1);
}

void mem_replace_locked(mem_slot *slot, struct object *o)
{
    *slot = slot_make(*slot >> SLOT_TAG_SHIFT << SLOT_TAG_SHIFT, o);
}

void mem_remove_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, mem_slot *slot)
{
    mem_slot *before = &bucket_of(m, s, hash)->slot[SLOTS - 1];

    count_add(s, (uint64_t)-1);
    *slot = 0;
    /* Give an emptied link back. */
    while (*before & SLOT_CHAIN) {
        mem_slot *at = slot_link(*before);
        if (slot < at || slot >= at + LINK_SLOTS) {
            before = &at[LINK_SLOTS - 1];
            continue;
        }
        for (int i = 0; i < LINK_SLOTS; i++)
            if (at[i])
                return;
        *before = 0;
        mem_free(MEM_DATA, at);
        return;
    }
}

/* ---- walking ---- */

void mem_scan_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, uint64_t *end,
                     void (*fn)(void *arg, struct object *o), void *arg)
{
    struct mem_bucket *b = bucket_of(m, s, hash);
    bool in_old = s->old && b >= s->old && b < s->old + (1ULL << (s->bits - 1));
    unsigned position_bits = m->shard_bits + s->bits - in_old;

    /* The bucket covers all hashes with these leading bits; the next one's first may wrap to 0. */
    *end = position_bits == 0 ? 0 : ((hash >> (64 - position_bits)) + 1) << (64 - position_bits);
    mem_slot *at = b->slot;
    for (int n = SLOTS;; n = LINK_SLOTS) {
        for (int i = 0; i < n; i++)
            if (at[i] && !(at[i] & SLOT_CHAIN))
                fn(arg, mem_object(at[i]));
        if (!(at[n - 1] & SLOT_CHAIN))
            return;
        at = slot_link(at[n - 1]);
    }
}

/* Is bucket number `i` of the table not moved yet? */
static bool in_old(const struct mem_shard *s, uint64_t i)
{
    return s->old && (i >> 1) >= s->moved;
}

/* Bucket number `i` of the buckets in use now: moved ones in the new table, the rest in the old. */
static struct mem_bucket *bucket_at(const struct mem_shard *s, uint64_t i)
{
    if (in_old(s, i))
        return &s->old[i >> 1];
    return &s->table[i];
}

static size_t bucket_collect(const struct mem_bucket *b, struct object **out, size_t max)
{
    const mem_slot *at = b->slot;
    size_t got = 0;

    for (int n = SLOTS;; n = LINK_SLOTS) {
        for (int i = 0; i < n && got < max; i++)
            if (at[i] && !(at[i] & SLOT_CHAIN))
                out[got++] = mem_object(at[i]);
        if (got == max || !(at[n - 1] & SLOT_CHAIN))
            return got;
        at = slot_link(at[n - 1]);
    }
}

/* A shard is chosen by the upper bits of a random number, a bucket by the lower ones. */
static uint64_t sample_index(uint64_t random, unsigned bits)
{
    return random & 0xffffffff & ((1ULL << bits) - 1);
}

void mem_prefetch_sample(const struct mem *m, uint64_t random)
{
    const struct mem_shard *s = &m->shard[random >> (64 - m->shard_bits)];
    unsigned bits = atomic_load_explicit(&s->bits, memory_order_relaxed);

    __builtin_prefetch(atomic_load_explicit(&s->table, memory_order_relaxed) + sample_index(random, bits));
}

size_t mem_sample_locked(const struct mem_shard *s, uint64_t random, struct object **out, size_t max)
{
    uint64_t mask = (1ULL << s->bits) - 1, first = sample_index(random, s->bits), i = first;
    size_t n = 0;

    for (int tries = 0; n < max && tries < 8 && (uint64_t)tries <= mask; tries++, i = (i + 1) & mask) {
        if (in_old(s, i) && ((i & 1) ? tries > 0 : i == (first ^ 1)))
            continue; /* the same old bucket again */
        n += bucket_collect(bucket_at(s, i), out + n, max - n);
    }
    return n;
}

size_t mem_sweep_locked(struct mem *m, struct mem_shard *s, unsigned buckets, int64_t now_ms, struct object **out,
                        size_t max, size_t *seen, bool *wrapped)
{
    size_t n = 0;
    bool all = false;

    *wrapped = false;
    for (unsigned k = 0; k < buckets && !*wrapped; k++) {
        const mem_slot *at = bucket_at(s, s->sweep)->slot;
        for (int slots = SLOTS;; slots = LINK_SLOTS) {
            for (int i = 0; i < slots; i++) {
                mem_slot slot = at[i];
                if (!slot || (slot & SLOT_CHAIN))
                    continue;
                struct object *o = mem_object(slot);
                bool due = false;
                if (slot & SLOT_EXPIRES) {
                    ++*seen;
                    due = object_expired(o, now_ms) || fields_due(o, now_ms);
                }
                if (!due && !(due = mem_db_of(m, o->inc) < 0))
                    continue;
                if (n == max) {
                    all = true;
                    break;
                }
                out[n++] = o;
            }
            if (all || !(at[slots - 1] & SLOT_CHAIN))
                break;
            at = slot_link(at[slots - 1]);
        }
        if (all)
            break; /* this bucket again next time: what was found is removed by then */
        /* An old bucket is the place of two: once is enough, and twice would report its objects twice. */
        s->sweep += in_old(s, s->sweep) ? 2 - (s->sweep & 1) : 1;
        if (s->sweep >> s->bits) {
            s->sweep = 0;
            *wrapped = true;
        }
    }
    return n;
}
