#include "tiercel/dict.h"

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"

#define BITS_MIN 2
#define CURSOR_BITS 48
#define MOVE 4            /* buckets moved with each change; as many as 2 are enough to be done in time */
#define RANDOM_PLACES 8   /* of a bucket; chains are hardly ever longer */
#define RANDOM_TRIES 4096 /* places without an entry, before those near one are looked at */
#define RANDOM_SAMPLE 15  /* of these one is taken */

static uint64_t seed;

__attribute__((constructor)) static void seed_init(void)
{
    random_bytes(&seed, sizeof(seed));
}

static uint64_t hash_of(struct slice key)
{
    return hash_bytes(seed, key.ptr, key.len);
}

static size_t buckets(const struct dict_table *t)
{
    return t->bucket ? (size_t)1 << t->bits : 0;
}

static size_t index_in(const struct dict_table *t, uint64_t hash)
{
    return t->bits ? (size_t)(hash >> (64 - t->bits)) : 0;
}

static void table_make(struct dict_table *t, unsigned bits)
{
    t->bits = bits;
    t->bucket = mem_calloc(MEM_DATA, sizeof(struct dict_entry *) << bits);
}

/* The table that has that hash now, and where in it. */
static struct dict_entry **bucket_of(const struct dict *d, uint64_t hash)
{
    size_t i = index_in(&d->now, hash);

    if (d->next.bucket && i < d->moved)
        return &d->next.bucket[index_in(&d->next, hash)];
    return &d->now.bucket[i];
}

void dict_init(struct dict *d, struct slice (*key)(const struct dict_entry *e))
{
    *d = (struct dict){.key = key};
}

static void table_clear(struct dict_table *t, void (*free_entry)(void *arg, struct dict_entry *e), void *arg)
{
    for (size_t i = 0; free_entry && i < buckets(t); i++)
        for (struct dict_entry *e = t->bucket[i], *next; e; e = next) {
            next = e->next;
            free_entry(arg, e);
        }
    mem_free(MEM_DATA, t->bucket);
    *t = (struct dict_table){.bucket = NULL};
}

void dict_clear(struct dict *d, void (*free_entry)(void *arg, struct dict_entry *e), void *arg)
{
    table_clear(&d->now, free_entry, arg);
    table_clear(&d->next, free_entry, arg);
    d->count = d->moved = 0;
}

size_t dict_bytes(const struct dict *d)
{
    return (d->now.bucket ? mem_usable(d->now.bucket) : 0) + (d->next.bucket ? mem_usable(d->next.bucket) : 0);
}

/* ---- size ---- */

static void move_one(struct dict *d)
{
    struct dict_entry *e = d->now.bucket[d->moved], *next;

    d->now.bucket[d->moved++] = NULL;
    for (; e; e = next) {
        next = e->next;
        struct dict_entry **to = &d->next.bucket[index_in(&d->next, hash_of(d->key(e)))];
        e->next = *to;
        *to = e;
    }
}

/* When the table is halved two buckets are one: they move together, or a hash would be looked for in the wrong table. */
static void move_some(struct dict *d)
{
    if (!d->next.bucket)
        return;
    for (int i = 0; i < MOVE && d->moved < buckets(&d->now); i++)
        move_one(d);
    if (d->moved < buckets(&d->now))
        return;
    mem_free(MEM_DATA, d->now.bucket);
    d->now = d->next;
    d->next = (struct dict_table){.bucket = NULL};
    d->moved = 0;
}

static void resize(struct dict *d, unsigned bits)
{
    table_make(&d->next, bits);
    d->moved = 0;
    move_some(d);
}

void dict_reserve(struct dict *d, size_t count)
{
    unsigned bits = BITS_MIN;

    CHECK(d->count == 0 && !d->next.bucket);
    while (bits < 40 && (size_t)1 << bits < count)
        bits++;
    mem_free(MEM_DATA, d->now.bucket);
    table_make(&d->now, bits);
}

/* ---- entries ---- */

struct dict_entry **dict_place(struct dict *d, struct slice key)
{
    if (d->count == 0)
        return NULL;
    for (struct dict_entry **e = bucket_of(d, hash_of(key)); *e; e = &(*e)->next)
        if (slice_eq(d->key(*e), key))
            return e;
    return NULL;
}

struct dict_entry *dict_find(const struct dict *d, struct slice key)
{
    struct dict_entry **e = dict_place((struct dict *)(uintptr_t)d, key);

    return e ? *e : NULL;
}

void dict_add(struct dict *d, struct dict_entry *e)
{
    if (!d->now.bucket)
        table_make(&d->now, BITS_MIN);
    move_some(d);
    if (!d->next.bucket && d->count >= buckets(&d->now))
        resize(d, d->now.bits + 1);
    struct dict_entry **to = bucket_of(d, hash_of(d->key(e)));
    e->next = *to;
    *to = e;
    d->count++;
}

struct dict_entry *dict_remove(struct dict *d, struct slice key)
{
    move_some(d);
    struct dict_entry **place = dict_place(d, key), *e;

    if (!place)
        return NULL;
    e = *place;
    *place = e->next;
    d->count--;
    if (!d->next.bucket && d->now.bits > BITS_MIN && d->count < buckets(&d->now) / 8)
        resize(d, d->now.bits - 1);
    return e;
}

/* ---- walking ---- */

uint64_t dict_scan(const struct dict *d, uint64_t cursor, void (*fn)(void *arg, struct dict_entry *e), void *arg)
{
    uint64_t hash = cursor << (64 - CURSOR_BITS);

    if (d->count == 0)
        return 0;
    bool in_next = d->next.bucket && index_in(&d->now, hash) < d->moved;
    const struct dict_table *t = in_next ? &d->next : &d->now;
    size_t i = index_in(t, hash);
    for (struct dict_entry *e = t->bucket[i], *next; e; e = next) {
        next = e->next;
        fn(arg, e);
    }
    if (t->bits > CURSOR_BITS || i + 1 == buckets(t))
        return 0;
    return (uint64_t)(i + 1) << (CURSOR_BITS - t->bits);
}

struct collected {
    bool (*fn)(void *arg, struct dict_entry *e);
    void *arg;
    bool stop;
};

static void collect(void *arg, struct dict_entry *e)
{
    struct collected *c = arg;

    if (!c->stop)
        c->stop = !c->fn(c->arg, e);
}

void dict_each(const struct dict *d, bool (*fn)(void *arg, struct dict_entry *e), void *arg)
{
    struct collected c = {.fn = fn, .arg = arg};
    uint64_t cursor = 0;

    do
        cursor = dict_scan(d, cursor, collect, &c);
    while (cursor != 0 && !c.stop);
}

/* The one that has the bucket of that cursor. */
static const struct dict_table *table_at(const struct dict *d, uint64_t cursor)
{
    return d->next.bucket && index_in(&d->now, cursor << (64 - CURSOR_BITS)) < d->moved ? &d->next : &d->now;
}

/* The first entry of the bucket of that cursor, and the cursor of the next. */
static struct dict_entry *bucket_at(const struct dict *d, uint64_t *cursor)
{
    const struct dict_table *t = table_at(d, *cursor);
    size_t i = index_in(t, *cursor << (64 - CURSOR_BITS));

    *cursor = i + 1 == buckets(t) ? 0 : (uint64_t)(i + 1) << (CURSOR_BITS - t->bits);
    return t->bucket[i];
}

struct dict_entry *dict_next(struct dict_iter *it)
{
    if (it->e)
        it->e = it->e->next;
    while (!it->e && it->d->count != 0 && !(it->started && it->cursor == 0)) {
        it->started = true;
        it->e = bucket_at(it->d, &it->cursor);
    }
    return it->e;
}

/* Some of those that are near a place at random. */
static struct dict_entry *random_nearby(const struct dict *d, uint64_t *rng)
{
    struct dict_entry *some[RANDOM_SAMPLE];
    size_t n = 0;

    uint64_t cursor = rng_next(rng) >> (64 - CURSOR_BITS);
    while (n == 0)
        for (struct dict_entry *e = bucket_at(d, &cursor); e && n < RANDOM_SAMPLE; e = e->next)
            some[n++] = e;
    return some[rng_next(rng) % n];
}

/* A place in a bucket at random, until there is an entry at it: so all are as likely, whatever they share a bucket
 * with. While the table is moved, buckets of the smaller one have twice as many places. */
struct dict_entry *dict_random(const struct dict *d, uint64_t *rng)
{
    unsigned bits = d->next.bucket && d->next.bits > d->now.bits ? d->next.bits : d->now.bits;

    if (d->count == 0)
        return NULL;
    for (int tries = 0; tries < RANDOM_TRIES; tries++) {
        uint64_t cursor = rng_next(rng) >> (64 - CURSOR_BITS);
        size_t place = rng_next(rng) % ((size_t)RANDOM_PLACES << (bits - table_at(d, cursor)->bits));
        struct dict_entry *e = bucket_at(d, &cursor);
        for (; e && place > 0; place--)
            e = e->next;
        if (e)
            return e;
    }
    return random_nearby(d, rng); /* it is nearly empty */
}

/* One walk: each is taken as often as there are still to be taken of those that are left. */
static void sample_walk(const struct dict *d, size_t n, uint64_t *rng, struct dict_entry **out)
{
    struct dict_iter it = dict_iter(d);

    for (size_t left = d->count; n > 0; left--) {
        struct dict_entry *e = dict_next(&it);
        if (rng_next(rng) % left >= n)
            continue;
        *out++ = e;
        n--;
    }
}

/* Is it among those that were taken? If not, it is now. */
static bool taken(struct dict_entry **set, size_t slots, struct dict_entry *e)
{
    size_t i = (size_t)((uintptr_t)e * 0x9e3779b97f4a7c15ULL >> 20) & (slots - 1);

    for (; set[i]; i = (i + 1) & (slots - 1))
        if (set[i] == e)
            return true;
    set[i] = e;
    return false;
}

#define SAMPLE_FEW 16 /* at most one of so many is drawn by itself: cheaper than a walk */

struct dict_entry **dict_sample(const struct dict *d, size_t n, uint64_t *rng)
{
    if (n > d->count)
        n = d->count;
    struct dict_entry **out = mem_alloc(MEM_OTHER, (n ? n : 1) * sizeof(struct dict_entry *));
    if (n >= d->count / SAMPLE_FEW) {
        sample_walk(d, n, rng, out);
        return out;
    }
    size_t slots = 4;
    while (slots < 2 * n)
        slots *= 2;
    struct dict_entry **set = mem_calloc(MEM_OTHER, slots * sizeof(struct dict_entry *));
    for (size_t i = 0; i < n;) {
        out[i] = dict_random(d, rng);
        i += !taken(set, slots, out[i]);
    }
    mem_free(MEM_OTHER, set);
    return out;
}
