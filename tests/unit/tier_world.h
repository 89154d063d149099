/* A key space for the tests of the tier layer: the real table and tier layer, workers with real
 * loops, and a disk and an upstream made of arrays, which do what the test says, when it says so. */
#ifndef TIERCEL_TESTS_TIER_WORLD_H
#define TIERCEL_TESTS_TIER_WORLD_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <uv.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/codec.h"
#include "tiercel/conf.h"
#include "tiercel/disk.h"
#include "tiercel/hash.h"
#include "tiercel/mem.h"
#include "tiercel/stats.h"
#include "tiercel/tier.h"
#include "tiercel/upstream.h"

#define WORLD_SHARD_BITS 2
#define WORLD_DBS 2
#define WORLD_WORKERS 4

/* ---- the disk -------------------------------------------------------------------------------
 * Every record is a block of its own. The log of appends and tombstones is kept, so that a test can
 * ask what a start after a crash would find. */

struct fake_rec {
    struct disk_record r; /* key.ptr, payload: malloc */
    uint64_t event;
    bool committed, gone;
    bool in_group;
};

struct fake_event {
    uint64_t hash;
    uint32_t block; /* 0: a tombstone */
    bool dropped;   /* the tier gave the place up: a read had said that nothing is there */
};

struct fake_index {
    struct disk_slot *v; /* by hash */
    size_t n, cap;
};

struct disk {
    unsigned shard_bits;
    struct fake_index *index;
    uint32_t incarnation[WORLD_DBS];
    pthread_mutex_t mu;
    pthread_cond_t wake;
    struct fake_rec *rec; /* rec[block - 1] */
    size_t nrec, cap_rec, reported, tail;
    struct fake_event *event;
    size_t nevents, cap_events, tombstones;
    _Atomic size_t queue_bytes;
    size_t queue_max;
    bool want_room, unhealthy, quota_full, names;
    int groups;            /* open */
    enum status append_st; /* what every append answers, when not ST_OK */
    uint64_t settled;
    _Atomic size_t hurries;
    struct list reads;
    size_t nreads; /* ever */
    struct disk_owner owner;
    uint64_t rng;
    /* With threads. Chances in a thousand. */
    int p_full, p_io, p_commit, p_corrupt, p_read_io, p_inline, max_delay_us;
    size_t max_live;
    bool stop, threaded;
    pthread_t writer, reader[2];
    /* A record is going to be lost, through no fault of the tier layer. Under no lock. */
    void (*losing)(void *arg, const struct disk_record *r);
    void *losing_arg;
};

static inline bool fake_chance(struct disk *d, int p)
{
    return p > 0 && rng_next(&d->rng) % 1000 < (uint64_t)p;
}

static inline struct fake_index *fake_index_of(const struct disk *d, uint64_t hash)
{
    return &d->index[hash >> (64 - d->shard_bits)];
}

static inline size_t fake_seek(const struct fake_index *x, uint64_t hash)
{
    size_t i = 0;
    while (i < x->n && x->v[i].hash < hash)
        i++;
    return i;
}

static inline struct disk_slot *fake_slot(const struct disk *d, uint64_t hash)
{
    struct fake_index *x = fake_index_of(d, hash);
    size_t i = fake_seek(x, hash);
    return i < x->n && x->v[i].hash == hash ? &x->v[i] : NULL;
}

static inline void fake_erase(const struct disk *d, struct disk_slot *s)
{
    struct fake_index *x = fake_index_of(d, s->hash);
    size_t i = (size_t)(s - x->v);
    memmove(s, s + 1, (x->n - i - 1) * sizeof(*s));
    x->n--;
}

static inline void fake_event_push(struct disk *d, uint64_t hash, uint32_t block, bool dropped)
{
    if (d->nevents == d->cap_events) {
        d->cap_events = d->cap_events ? d->cap_events * 2 : 64;
        d->event = realloc(d->event, d->cap_events * sizeof(*d->event));
    }
    d->event[d->nevents++] = (struct fake_event){hash, block, dropped};
    pthread_cond_broadcast(&d->wake);
    d->tombstones += block == 0;
}

uint64_t disk_hash_bits(const struct disk *d, uint64_t hash)
{
    (void)d;
    return hash;
}

static inline bool fake_committed(struct disk *d, uint32_t block)
{
    pthread_mutex_lock(&d->mu);
    bool yes = d->rec[block - 1].committed;
    pthread_mutex_unlock(&d->mu);
    return yes;
}

bool disk_find_locked(const struct disk *d, uint64_t hash, uint32_t *block, bool *has_expire)
{
    const struct disk_slot *s = fake_slot(d, hash);
    if (!s || !fake_committed((struct disk *)(uintptr_t)d, s->block))
        return false;
    *block = s->block;
    *has_expire = s->has_expire;
    return true;
}

uint32_t disk_pending_locked(const struct disk *d, uint64_t hash)
{
    const struct disk_slot *s = fake_slot(d, hash);
    return s && !fake_committed((struct disk *)(uintptr_t)d, s->block) ? s->block : 0;
}

bool disk_forget_locked(struct disk *d, uint64_t hash, bool *had_expire)
{
    struct disk_slot *s = fake_slot(d, hash);
    bool had = s != NULL;
    if (had_expire)
        *had_expire = s && s->has_expire;
    if (s) {
        fake_erase(d, s);
        pthread_mutex_lock(&d->mu);
        fake_event_push(d, hash, 0, false);
        pthread_mutex_unlock(&d->mu);
    }
    return had;
}

static inline void fake_enter(struct disk *d, uint64_t hash, uint32_t block, bool has_expire)
{
    struct disk_slot *s = fake_slot(d, hash);
    if (!s) {
        struct fake_index *x = fake_index_of(d, hash);
        if (x->n == x->cap) {
            x->cap = x->cap ? x->cap * 2 : 16;
            x->v = realloc(x->v, x->cap * sizeof(*x->v));
        }
        size_t i = fake_seek(x, hash);
        memmove(x->v + i + 1, x->v + i, (x->n - i) * sizeof(*x->v));
        x->n++;
        s = &x->v[i];
    }
    *s = (struct disk_slot){hash, block, has_expire};
}

bool disk_drop_locked(struct disk *d, uint64_t hash, uint32_t block)
{
    struct disk_slot *s = fake_slot(d, hash);
    if (!s || s->block != block)
        return false;
    fake_erase(d, s);
    pthread_mutex_lock(&d->mu);
    fake_event_push(d, hash, block, true);
    pthread_mutex_unlock(&d->mu);
    return true;
}

size_t disk_scan_locked(const struct disk *d, unsigned shard, uint64_t lo, uint64_t hi, struct disk_slot *out,
                        size_t max, uint64_t *next)
{
    const struct fake_index *x = &d->index[shard];
    size_t n = 0, i = fake_seek(x, lo);
    if (max > 2)
        max = 2; /* so that callers must go on */
    for (; i < x->n && x->v[i].hash <= hi && n < max; i++)
        out[n++] = x->v[i];
    *next = i < x->n && x->v[i].hash <= hi ? x->v[i].hash : hi + 1;
    return n;
}

enum status disk_append_locked(struct disk *d, const struct disk_record *rec)
{
    size_t ref_len = rec->payload_ref ? rec->payload_ref->len : 0, len = rec->payload.len + ref_len;
    enum status st = d->append_st;

    pthread_mutex_lock(&d->mu);
    if (st == ST_OK && fake_chance(d, d->p_io))
        st = ST_IO;
    if (st == ST_OK && !rec->must &&
        ((d->queue_bytes > 0 && d->queue_bytes + len > d->queue_max) || fake_chance(d, d->p_full))) {
        d->want_room = true;
        st = ST_FULL;
    }
    if (st != ST_OK) {
        pthread_mutex_unlock(&d->mu);
        return st;
    }
    if (d->nrec == d->cap_rec) {
        d->cap_rec = d->cap_rec ? d->cap_rec * 2 : 64;
        d->rec = realloc(d->rec, d->cap_rec * sizeof(*d->rec));
    }
    struct fake_rec *f = &d->rec[d->nrec++];
    *f = (struct fake_rec){.r = *rec, .in_group = d->groups > 0};
    char *bytes = malloc(rec->key.len + len + 1);
    if (rec->key.len)
        memcpy(bytes, rec->key.ptr, rec->key.len);
    if (rec->payload.len)
        memcpy(bytes + rec->key.len, rec->payload.ptr, rec->payload.len);
    if (ref_len)
        memcpy(bytes + rec->key.len + rec->payload.len, rec->payload_ref->data, ref_len);
    f->r.key.ptr = bytes;
    f->r.payload = SLICE(bytes + rec->key.len, len);
    f->r.payload_ref = NULL;
    atomic_fetch_add(&d->queue_bytes, len);
    uint32_t block = (uint32_t)d->nrec;
    fake_event_push(d, rec->key.hash, block, false);
    f->event = d->nevents;
    pthread_cond_broadcast(&d->wake);
    pthread_mutex_unlock(&d->mu);
    fake_enter(d, rec->key.hash, block, rec->expire_ms != 0);
    return ST_OK;
}

/* Reports up to `max` of what was appended. */
static inline size_t fake_commit(struct disk *d, size_t max, enum status st)
{
    pthread_mutex_lock(&d->mu);
    while (d->groups > 0 && d->threaded)
        pthread_cond_wait(&d->wake, &d->mu);
    size_t n = d->nrec - d->reported, bytes = 0;
    if (n > max)
        n = max;
    uint64_t event = d->reported + n == d->nrec ? d->nevents : n ? d->rec[d->reported + n - 1].event : 0;
    struct disk_done *done = malloc((n + 1) * sizeof(*done));
    for (size_t i = 0; i < n; i++) {
        struct fake_rec *f = &d->rec[d->reported + i];
        f->committed = st == ST_OK;
        bytes += f->r.payload.len;
        done[i] = (struct disk_done){f->r.key.hash, f->r.ticket, (uint32_t)(d->reported + i + 1), f->r.note};
    }
    d->reported += n;
    pthread_mutex_unlock(&d->mu);
    if (n > 0)
        d->owner.committed(d->owner.arg, done, n, st);
    free(done);
    if (event > d->settled) {
        pthread_mutex_lock(&d->mu);
        d->settled = event;
        pthread_mutex_unlock(&d->mu);
        d->owner.settled(d->owner.arg, event, st == ST_OK);
    }
    pthread_mutex_lock(&d->mu);
    atomic_fetch_sub(&d->queue_bytes, bytes);
    bool room = d->want_room && d->queue_bytes <= d->queue_max / 2;
    if (room)
        d->want_room = false;
    pthread_mutex_unlock(&d->mu);
    if (room)
        d->owner.room(d->owner.arg);
    return n;
}

/* The oldest blocks go. */
static inline void fake_drop(struct disk *d, size_t max)
{
    struct disk_gone gone[64];
    size_t n = 0, from, to;

    pthread_mutex_lock(&d->mu);
    from = to = d->tail;
    for (; to < d->reported && n < max && n < 64; to++) {
        struct fake_rec *f = &d->rec[to];
        if (!f->committed || f->gone)
            continue;
        gone[n] = (struct disk_gone){.hash = f->r.key.hash,
                                     .block = (uint32_t)(to + 1),
                                     .incarnation = f->r.incarnation,
                                     .has_expire = f->r.expire_ms != 0};
        if (d->names)
            gone[n].name = key_slice(&f->r.key);
        n++;
        if (d->losing)
            d->losing(d->losing_arg, &f->r);
    }
    pthread_mutex_unlock(&d->mu);
    if (n > 0)
        d->owner.dropped(d->owner.arg, gone, n);
    pthread_mutex_lock(&d->mu);
    for (size_t i = from; i < to; i++)
        d->rec[i].gone = true;
    d->tail = to;
    pthread_mutex_unlock(&d->mu);
}

static inline void fake_read(struct disk *d, struct disk_read *rd, enum status st)
{
    struct disk_record r;
    char *copy = NULL;

    pthread_mutex_lock(&d->mu);
    struct fake_rec *f = rd->block >= 1 && rd->block <= d->nrec ? &d->rec[rd->block - 1] : NULL;
    if (!f || !f->committed || f->gone || f->r.incarnation != rd->incarnation ||
        !slice_eq(key_slice(&f->r.key), key_slice(&rd->key)))
        st = ST_NOT_FOUND;
    if (st == ST_OK) {
        r = f->r;
        copy = malloc(r.key.len + r.payload.len + 1);
        memcpy(copy, r.key.ptr, r.key.len + r.payload.len);
        r.key.ptr = copy;
        r.payload.ptr = copy + r.key.len;
    } else if (st == ST_CORRUPT && d->losing) {
        d->losing(d->losing_arg, &f->r);
    }
    pthread_mutex_unlock(&d->mu);
    rd->done(rd, st, st == ST_OK ? &r : NULL);
    free(copy);
}

static inline struct disk_read *fake_read_pop(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    struct list *l = list_pop_front(&d->reads);
    pthread_mutex_unlock(&d->mu);
    return l ? LIST_ENTRY(l, struct disk_read, link) : NULL;
}

/* Answers the oldest read: with what is there, or with the failure. false: there is none. */
static inline bool fake_answer(struct disk *d, enum status st)
{
    struct disk_read *rd = fake_read_pop(d);
    if (rd)
        fake_read(d, rd, st);
    return rd != NULL;
}

void disk_read_submit(struct disk *d, struct list *reads)
{
    pthread_mutex_lock(&d->mu);
    for (struct list *l = reads->next; l != reads; l = l->next)
        d->nreads++;
    list_splice(&d->reads, reads);
    pthread_cond_broadcast(&d->wake);
    pthread_mutex_unlock(&d->mu);
}

void disk_read_now(struct disk *d, struct disk_read *rd)
{
    fake_read(d, rd, ST_OK);
}

bool disk_read_inline(struct disk *d, struct disk_read *rd)
{
    if (!d->p_inline || !fake_chance(d, d->p_inline))
        return false;
    fake_read(d, rd, ST_OK);
    return true;
}

void disk_ask_owner(struct disk *d)
{
    d->hurries++;
}

void disk_hurry(struct disk *d)
{
    d->hurries++; /* the fake writer is never idle */
}

uint64_t disk_last_event(const struct disk *d)
{
    struct disk *mine = (struct disk *)(uintptr_t)d;
    pthread_mutex_lock(&mine->mu);
    uint64_t event = d->nevents;
    pthread_mutex_unlock(&mine->mu);
    return event;
}

void disk_group_begin(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    d->groups++;
    pthread_mutex_unlock(&d->mu);
}

bool disk_group_try(struct disk *d)
{
    disk_group_begin(d);
    return true;
}

void disk_group_end(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    d->groups--;
    pthread_cond_broadcast(&d->wake);
    pthread_mutex_unlock(&d->mu);
}

bool disk_quota_full(const struct disk *d)
{
    return d->quota_full;
}

void disk_set_names(struct disk *d, bool wanted)
{
    d->names = wanted;
}

enum status disk_sync(struct disk *d, int64_t timeout_ms)
{
    for (int64_t until = clock_mono_ms() + timeout_ms; d->threaded && disk_queue_bytes(d) > 0;) {
        if (clock_mono_ms() > until)
            return ST_TIMEOUT;
        usleep(200);
    }
    while (!d->threaded && fake_commit(d, SIZE_MAX, ST_OK) > 0)
        ;
    return ST_OK;
}

void disk_set_incarnation(struct disk *d, unsigned db, uint32_t incarnation)
{
    d->incarnation[db] = incarnation;
}

uint32_t disk_incarnation(const struct disk *d, unsigned db)
{
    return d->incarnation[db];
}

void disk_loaded_keys(const struct disk *d, unsigned db, int64_t *keys, int64_t *expires)
{
    (void)d;
    (void)db;
    *keys = *expires = 0;
}

size_t disk_queue_bytes(const struct disk *d)
{
    return atomic_load(&d->queue_bytes);
}

bool disk_healthy(const struct disk *d)
{
    return !d->unhealthy;
}

void disk_get_stats(const struct disk *d, struct disk_stats *out)
{
    *out = (struct disk_stats){0};
    for (size_t i = 0; i < (size_t)1 << d->shard_bits; i++)
        out->keys += d->index[i].n;
}

void disk_set_max_bytes(struct disk *d, uint64_t max_bytes)
{
    (void)d;
    (void)max_bytes;
}

void disk_set_retain(struct disk *d, enum disk_retain retain, bool thorough)
{
    (void)d;
    (void)retain;
    (void)thorough;
}

static void *fake_writer(void *arg)
{
    struct disk *d = arg;

    pthread_mutex_lock(&d->mu);
    for (;;) {
        while (d->reported == d->nrec && d->settled >= d->nevents && !d->stop)
            pthread_cond_wait(&d->wake, &d->mu);
        if (d->reported == d->nrec && d->stop)
            break;
        useconds_t delay = d->max_delay_us ? (useconds_t)(rng_next(&d->rng) % (uint64_t)d->max_delay_us) : 0;
        size_t n = 1 + rng_next(&d->rng) % 32, live = d->reported - d->tail;
        enum status st = fake_chance(d, d->p_commit) ? ST_IO : ST_OK;
        pthread_mutex_unlock(&d->mu);
        if (delay)
            usleep(delay);
        fake_commit(d, n, st);
        if (d->max_live && live > d->max_live)
            fake_drop(d, live - d->max_live);
        pthread_mutex_lock(&d->mu);
    }
    pthread_mutex_unlock(&d->mu);
    return NULL;
}

static void *fake_reader(void *arg)
{
    struct disk *d = arg;

    pthread_mutex_lock(&d->mu);
    for (;;) {
        while (list_empty(&d->reads) && !d->stop)
            pthread_cond_wait(&d->wake, &d->mu);
        struct list *l = list_pop_front(&d->reads);
        if (!l)
            break;
        enum status st = fake_chance(d, d->p_corrupt) ? ST_CORRUPT : fake_chance(d, d->p_read_io) ? ST_IO : ST_OK;
        useconds_t delay = d->max_delay_us && rng_next(&d->rng) % 4 == 0
                               ? (useconds_t)(rng_next(&d->rng) % (uint64_t)d->max_delay_us)
                               : 0;
        pthread_mutex_unlock(&d->mu);
        if (delay)
            usleep(delay);
        fake_read(d, LIST_ENTRY(l, struct disk_read, link), st);
        pthread_mutex_lock(&d->mu);
    }
    pthread_mutex_unlock(&d->mu);
    return NULL;
}

static inline struct disk *fake_disk_create(unsigned shard_bits)
{
    struct disk *d = calloc(1, sizeof(*d));
    d->shard_bits = shard_bits;
    d->index = calloc((size_t)1 << shard_bits, sizeof(*d->index));
    d->queue_max = SIZE_MAX / 2;
    d->rng = 7;
    list_init(&d->reads);
    pthread_mutex_init(&d->mu, NULL);
    pthread_cond_init(&d->wake, NULL);
    return d;
}

static inline void fake_disk_start(struct disk *d)
{
    d->threaded = true;
    CHECK(pthread_create(&d->writer, NULL, fake_writer, d) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&d->reader[i], NULL, fake_reader, d) == 0);
}

static inline void fake_disk_stop(struct disk *d)
{
    if (!d->threaded)
        return;
    pthread_mutex_lock(&d->mu);
    d->stop = true;
    pthread_cond_broadcast(&d->wake);
    pthread_mutex_unlock(&d->mu);
    pthread_join(d->writer, NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(d->reader[i], NULL);
    d->threaded = false;
}

static inline void fake_disk_destroy(struct disk *d)
{
    fake_disk_stop(d);
    for (size_t i = 0; i < d->nrec; i++)
        free((void *)(uintptr_t)d->rec[i].r.key.ptr);
    for (size_t i = 0; i < (size_t)1 << d->shard_bits; i++)
        free(d->index[i].v);
    free(d->index);
    free(d->rec);
    free(d->event);
    pthread_mutex_destroy(&d->mu);
    pthread_cond_destroy(&d->wake);
    free(d);
}

/* ---- the upstream --------------------------------------------------------------------------- */

struct fake_fetch {
    struct list link;
    struct upstream_fetch *f;
    bool executed;  /* the server has read the key */
    enum status st; /* then */
    char value[32];
    int64_t pttl_ms;
};

struct upstream {
    struct upstream_events ev;
    struct list fetches; /* in the order in which they were sent */
    size_t nfetches;     /* ever */
    uint32_t generation, last_generation;
    bool fence_refused;
    void *arg; /* the test's */
};

struct upstream *upstream_create(struct uv_loop_s *loop, const struct upstream_options *opt,
                                 const struct upstream_events *ev)
{
    struct upstream *up = calloc(1, sizeof(*up));
    (void)loop;
    (void)opt;
    up->ev = *ev;
    list_init(&up->fetches);
    return up;
}

void upstream_fetch(struct upstream *up, struct upstream_fetch *f)
{
    up->nfetches++;
    if (up->generation == 0) {
        f->done(f, ST_UNAVAILABLE, SLICE_NONE, -1, 0);
        return;
    }
    struct fake_fetch *ff = calloc(1, sizeof(*ff));
    ff->f = f;
    f->sent_ms = clock_wall_ms();
    list_push_back(&up->fetches, &ff->link);
}

enum upstream_state upstream_state(const struct upstream *up)
{
    return up->generation ? UPSTREAM_UP : UPSTREAM_DOWN;
}

enum upstream_mode upstream_get_coherence(struct upstream *up, char reason[240])
{
    reason[0] = 0;
    return up->generation ? UPSTREAM_TRACKING : UPSTREAM_NONE;
}

const char *upstream_mode_name(enum upstream_mode mode)
{
    return mode == UPSTREAM_TRACKING ? "tracking" : "none";
}

void upstream_get_stats(const struct upstream *up, struct upstream_stats *out)
{
    (void)up;
    *out = (struct upstream_stats){0};
}

int64_t upstream_tracked(const struct upstream *up)
{
    (void)up;
    return 0;
}

uint32_t upstream_generation(const struct upstream *up)
{
    return up->generation;
}

void upstream_fence(struct upstream *up, struct upstream_fence *f)
{
    f->done(f, up->generation && !up->fence_refused ? ST_OK : ST_UNAVAILABLE);
}

/* All keys are small. */
void upstream_call(struct upstream *up, struct upstream_call *c, enum upstream_via via, int db, int argc,
                   const struct slice *argv)
{
    (void)via;
    (void)db;
    (void)argc;
    (void)argv;
    c->done(c, up->generation ? ST_OK : ST_UNAVAILABLE, up->generation ? SLICE_LIT(":100\r\n") : SLICE_NONE, false,
            up->generation != 0);
}

/* Answers the oldest fetch. */
static inline bool fake_up_answer(struct upstream *up, enum status st, const char *value, int64_t pttl_ms)
{
    struct list *l = list_pop_front(&up->fetches);
    if (!l)
        return false;
    struct fake_fetch *ff = LIST_ENTRY(l, struct fake_fetch, link);
    bool answered = st == ST_OK || st == ST_NOT_FOUND;
    ff->f->done(ff->f, st, value ? slice_str(value) : SLICE_NONE, pttl_ms, answered ? up->generation : 0);
    free(ff);
    return true;
}

static inline void fake_up_connect(struct upstream *up)
{
    up->generation = ++up->last_generation;
    up->ev.generation(up->ev.arg, up->generation);
}

static inline void fake_up_lose(struct upstream *up)
{
    up->generation = 0;
    up->ev.generation(up->ev.arg, 0);
    while (fake_up_answer(up, ST_UNAVAILABLE, NULL, -1))
        ;
}

void upstream_destroy(struct upstream *up)
{
    while (fake_up_answer(up, ST_CANCELLED, NULL, -1))
        ;
    free(up);
}

/* ---- workers and the whole -------------------------------------------------------------------- */

struct wworker {
    struct worker w;
    uv_loop_t uv;
};

struct world {
    struct conf *conf;
    struct mem *mem;
    struct tier *tier;
    struct disk *disk;
    int n;
    struct wworker worker[WORLD_WORKERS];
    int changes[4]; /* by enum tier_change */
    char changed_key[64];
};

static inline struct conf *world_conf(void)
{
    char *argv[] = {(char *)"tiercel", NULL}, *envp[] = {NULL};
    struct conf *c = NULL;
    struct buf err;
    bool exit_now;

    buf_init(&err, MEM_OTHER);
    CHECK(conf_load(1, argv, envp, &c, &exit_now, &err) == ST_OK && c);
    buf_deinit(&err);
    c->compression = COMPRESSION_NO;
    return c;
}

static inline void world_changed(void *arg, struct worker *w, const struct key *key, enum tier_change why)
{
    struct world *wd = arg;
    (void)w;
    wd->changes[why]++;
    size_t n = key->len < sizeof(wd->changed_key) ? key->len : sizeof(wd->changed_key) - 1;
    for (size_t i = 0; i < n; i++) /* byte by byte: sanitizers see it when the key is freed memory */
        wd->changed_key[i] = key->ptr[i];
    wd->changed_key[n] = '\0';
}

static inline struct world *world_create(int workers, bool disk, bool upstream)
{
    struct world *wd = calloc(1, sizeof(*wd));
    struct upstream_options uo = {.port = 1};

    wd->conf = world_conf();
    wd->n = workers;
    wd->mem = mem_create(WORLD_SHARD_BITS, WORLD_DBS, 99, NULL);
    struct tier_options opt = {.mem = wd->mem, .upstream = upstream, .nworkers = workers};
    wd->tier = tier_create(&opt, wd->conf);
    wd->tier->change = world_changed;
    wd->tier->change_arg = wd;
    for (unsigned i = 0; i < wd->mem->shards; i++)
        wd->tier->shard[i].watched = 1;
    for (int i = 0; i < workers; i++) {
        struct wworker *ww = &wd->worker[i];
        struct worker *w = &ww->w;
        CHECK(uv_loop_init(&ww->uv) == 0);
        w->id = i;
        w->loop = &ww->uv;
        w->mbox = mbox_create(&ww->uv, w);
        w->stats = stats_block_create();
        w->codec = codec_create();
        w->conf = conf_ref(wd->conf);
        w->now_ms = clock_wall_ms();
        w->rng = (uint64_t)i + 1;
        tier_worker_init(wd->tier, w, upstream ? &uo : NULL);
    }
    if (disk) {
        wd->disk = fake_disk_create(WORLD_SHARD_BITS);
        tier_disk_owner(wd->tier, &wd->disk->owner);
        tier_set_disk(wd->tier, wd->disk);
    }
    return wd;
}

static inline struct worker *world_worker(struct world *wd, int i)
{
    return &wd->worker[i].w;
}

/* All loops of a world without threads turn until nothing happens any more. */
static inline void world_turn(struct world *wd)
{
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < wd->n; i++)
            uv_run(&wd->worker[i].uv, UV_RUN_NOWAIT);
}

static inline void world_destroy(struct world *wd)
{
    if (wd->disk) {
        fake_disk_stop(wd->disk);
        disk_sync(wd->disk, 0);
        while (fake_answer(wd->disk, ST_OK))
            ;
        world_turn(wd);
    }
    for (int i = 0; i < wd->n; i++)
        tier_worker_stop(&wd->worker[i].w);
    for (int i = 0; i < wd->n; i++) {
        struct wworker *ww = &wd->worker[i];
        mbox_destroy(ww->w.mbox);
        uv_run(&ww->uv, UV_RUN_DEFAULT);
        tier_worker_deinit(&ww->w);
        codec_destroy(ww->w.codec);
        conf_unref(ww->w.conf);
        CHECK(uv_loop_close(&ww->uv) == 0);
    }
    CHECK(atomic_load(&wd->tier->fetches) == 0);
    CHECK(atomic_load(&wd->tier->inflight_urgent) == 0);
    CHECK(atomic_load(&wd->tier->inflight_ahead) == 0);
    CHECK(atomic_load(&wd->tier->demoting_bytes) == 0);
    CHECK(atomic_load(&wd->tier->admission_waiters) == 0);
    tier_destroy(wd->tier);
    mem_destroy(wd->mem);
    if (wd->disk)
        fake_disk_destroy(wd->disk);
    conf_unref(wd->conf);
    free(wd);
}

/* What a start after a crash would find must be what the index shows now: nothing is resurrected and
 * nothing is lost. At rest; of live incarnations. */
static inline void world_check_log(struct world *wd)
{
    struct disk *d = wd->disk;

    for (size_t i = d->nevents; i-- > 0;) {
        struct fake_event *e = &d->event[i];
        bool newest = true; /* only the last event of a hash that counts */
        if (e->block && !e->dropped && (!d->rec[e->block - 1].committed || d->rec[e->block - 1].gone))
            newest = false;
        uint64_t hash = e->hash;
        if (hash == 0 || !newest)
            continue;
        struct disk_slot *s = fake_slot(d, hash);
        if (e->block && !e->dropped) {
            int db = mem_db_of(wd->mem, (uint16_t)d->rec[e->block - 1].r.incarnation);
            CHECK(db < 0 || (s && s->block == e->block));
        } else if (e->block == 0) {
            CHECK(!s);
        }
        for (size_t k = 0; k <= i; k++) /* the others of this hash are history */
            if (d->event[k].hash == hash)
                d->event[k].hash = 0;
    }
}

#endif
