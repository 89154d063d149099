/* The disk tier against a plain model of what each key's newest copy must be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk/disk_priv.h"

#define SHARD_BITS 4
#define SHARDS     (1u << SHARD_BITS)
#define KEYS_MAX   65536u
#define MB         (1u << 20)

/* ---- the owner: what the memory tier would be ---- */

struct entry {
    uint32_t version;  /* newest one made up so far */
    uint32_t pending;  /* appended, not settled yet; 0 = none */
    uint32_t on_disk;  /* published; 0 = none */
    uint64_t ticket;
    bool pending_expire;
};

struct world {
    struct disk *disk;
    struct disk_options opt;
    char dir[64];
    pthread_mutex_t lock[SHARDS];
    struct entry *keys;
    uint32_t nkeys;
    uint64_t *hashes; /* by key */
    uint32_t *by_hash;
    _Atomic uint64_t published, failed, dropped, rooms, notices, unhealthy, expired_wrong;
    pthread_mutex_t notice_mu;
    char last_notice[256];
};

static uint32_t world_inc(const struct world *w)
{
    return disk_incarnation(w->disk, 0);
}

static struct key world_key(const struct world *w, uint32_t k, char name[32])
{
    int len = snprintf(name, 32, "key:%u", k);
    uint32_t inc = world_inc(w);
    return (struct key){.ptr = name,
                        .len = (uint32_t)len,
                        .inc = (uint16_t)inc,
                        .hash = hash_key(disk_hash_seed(w->disk), inc, SLICE(name, (size_t)len))};
}

static uint32_t find_by_hash(const struct world *w, uint64_t hash)
{
    uint32_t mask = KEYS_MAX * 2 - 1;
    for (uint32_t i = (uint32_t)hash & mask; w->by_hash[i] != UINT32_MAX; i = (i + 1) & mask)
        if (w->hashes[w->by_hash[i]] == hash)
            return w->by_hash[i];
    return UINT32_MAX;
}

static pthread_mutex_t *world_lock(struct world *w, uint64_t hash)
{
    pthread_mutex_t *m = &w->lock[hash >> (64 - SHARD_BITS)];
    pthread_mutex_lock(m);
    return m;
}

static void on_committed(void *arg, const struct disk_done *items, size_t n, enum status st)
{
    struct world *w = arg;
    for (size_t i = 0; i < n; i++) {
        uint32_t k = find_by_hash(w, items[i].hash);
        if (k == UINT32_MAX)
            continue;
        pthread_mutex_t *m = world_lock(w, items[i].hash);
        struct entry *e = &w->keys[k];
        if (e->pending != 0 && e->ticket == items[i].ticket) {
            if (st == ST_OK) {
                disk_publish_locked(w->disk, items[i].hash, items[i].block, items[i].has_expire);
                e->on_disk = e->pending;
                CHECK(items[i].has_expire == e->pending_expire);
                atomic_fetch_add(&w->published, 1);
            } else {
                atomic_fetch_add(&w->failed, 1);
            }
            e->pending = 0;
        }
        pthread_mutex_unlock(m);
    }
}

static void on_dropped(void *arg, const struct disk_gone *items, size_t n)
{
    struct world *w = arg;
    for (size_t i = 0; i < n; i++) {
        uint32_t k = find_by_hash(w, items[i].hash);
        pthread_mutex_t *m = world_lock(w, items[i].hash);
        if (disk_drop_locked(w->disk, items[i].hash, items[i].block) && k != UINT32_MAX) {
            CHECK(w->keys[k].on_disk != 0);
            w->keys[k].on_disk = 0;
            atomic_fetch_add(&w->dropped, 1);
        }
        pthread_mutex_unlock(m);
    }
}

static void on_room(void *arg)
{
    struct world *w = arg;
    atomic_fetch_add(&w->rooms, 1);
}

static void on_notice(void *arg, bool healthy, const char *text)
{
    struct world *w = arg;
    atomic_fetch_add(&w->notices, 1);
    if (!healthy)
        atomic_fetch_add(&w->unhealthy, 1);
    pthread_mutex_lock(&w->notice_mu);
    snprintf(w->last_notice, sizeof(w->last_notice), "%s", text);
    pthread_mutex_unlock(&w->notice_mu);
}

static bool noticed(struct world *w, const char *text)
{
    pthread_mutex_lock(&w->notice_mu);
    bool is = strstr(w->last_notice, text) != NULL;
    pthread_mutex_unlock(&w->notice_mu);
    return is;
}

static struct world *world_new(uint32_t nkeys)
{
    struct world *w = calloc(1, sizeof(*w));
    CHECK(w != NULL && nkeys <= KEYS_MAX);
    snprintf(w->dir, sizeof(w->dir), "/tmp/tiercel-disk-XXXXXX");
    CHECK(mkdtemp(w->dir) != NULL);
    w->nkeys = nkeys;
    w->keys = calloc(nkeys, sizeof(*w->keys));
    w->hashes = calloc(nkeys, sizeof(*w->hashes));
    w->by_hash = malloc(KEYS_MAX * 2 * sizeof(*w->by_hash));
    memset(w->by_hash, 0xff, KEYS_MAX * 2 * sizeof(*w->by_hash));
    pthread_mutex_init(&w->notice_mu, NULL);
    for (unsigned i = 0; i < SHARDS; i++)
        pthread_mutex_init(&w->lock[i], NULL);
    w->opt = (struct disk_options){.dir = w->dir,
                                   .max_bytes = 256 * MB,
                                   .drop_oldest = true,
                                   .shard_bits = SHARD_BITS,
                                   .databases = 4,
                                   .readers = 2,
                                   .commit_ms = 20,
                                   .commit_bytes = MB,
                                   .queue_max_bytes = 64 * MB,
                                   .fresh_seed = 42,
                                   .owner = {w, on_committed, on_dropped, on_room, on_notice}};
    return w;
}

static void world_open(struct world *w)
{
    char err[256];
    enum status st = disk_open(&w->opt, &w->disk, err);
    if (st != ST_OK)
        print_message("disk_open: %s: %s\n", status_text(st), err);
    CHECK(st == ST_OK);
    memset(w->by_hash, 0xff, KEYS_MAX * 2 * sizeof(*w->by_hash));
    for (uint32_t k = 0; k < w->nkeys; k++) {
        char name[32];
        w->hashes[k] = world_key(w, k, name).hash;
        uint32_t i = (uint32_t)w->hashes[k] & (KEYS_MAX * 2 - 1);
        while (w->by_hash[i] != UINT32_MAX)
            i = (i + 1) & (KEYS_MAX * 2 - 1);
        w->by_hash[i] = k;
    }
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static void world_free(struct world *w)
{
    if (w->disk != NULL)
        disk_close(w->disk);
    nftw(w->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(w->keys);
    free(w->hashes);
    free(w->by_hash);
    free(w);
}

static void world_reopen(struct world *w)
{
    disk_close(w->disk);
    world_open(w);
}

/* ---- values that tell what they are ---- */

static void value_make(struct buf *b, uint32_t k, uint32_t version, size_t len)
{
    uint32_t head[3] = {k, version, (uint32_t)len};
    uint64_t seed = (uint64_t)k << 32 | version;
    buf_append(b, head, sizeof(head));
    while (b->len < len) {
        uint64_t r = rng_next(&seed);
        buf_append(b, &r, len - b->len < 8 ? len - b->len : 8);
    }
}

/* The version, or 0 where it is not a value of that key. */
static uint32_t value_version(struct slice s, uint32_t k)
{
    uint32_t head[3];
    struct buf b;
    if (s.len < sizeof(head))
        return 0;
    memcpy(head, s.ptr, sizeof(head));
    if (head[0] != k || head[2] != s.len)
        return 0;
    buf_init(&b, MEM_OTHER);
    value_make(&b, k, head[1], s.len);
    bool same = slice_eq(buf_slice(&b), s);
    buf_deinit(&b);
    return same ? head[1] : 0;
}

/* Appends the next version, `len` bytes of payload (at least 12), ref_from on as an rcbuf. */
static enum status put_value(struct world *w, uint32_t k, size_t len, size_t ref_from, int64_t expire_ms)
{
    char name[32];
    struct buf b;
    struct key key = world_key(w, k, name);
    buf_init(&b, MEM_OTHER);
    pthread_mutex_t *m = world_lock(w, key.hash);
    struct entry *e = &w->keys[k];
    bool had = disk_forget_locked(w->disk, key.hash, e->pending != 0, NULL);
    CHECK(had == (e->on_disk != 0));
    e->on_disk = e->pending = 0;
    value_make(&b, k, ++e->version, len < 12 ? 12 : len);
    size_t prefix = ref_from && ref_from < b.len ? ref_from : b.len;
    struct rcbuf *ref = prefix < b.len ? rcbuf_copy(SLICE(b.ptr + prefix, b.len - prefix)) : NULL;
    struct disk_record rec = {.key = key,
                              .incarnation = world_inc(w),
                              .type = OBJ_STRING,
                              .expire_ms = expire_ms,
                              .origin = e->version % 3 ? 0 : k + 1,
                              .payload = SLICE(b.ptr, prefix),
                              .payload_ref = ref,
                              .ticket = (uint64_t)k << 32 | e->version};
    enum status st = disk_append_locked(w->disk, &rec);
    if (st == ST_OK) {
        e->pending = e->version;
        e->ticket = rec.ticket;
        e->pending_expire = expire_ms != 0;
    }
    pthread_mutex_unlock(m);
    rcbuf_unref(ref);
    buf_deinit(&b);
    return st;
}

static void forget_key(struct world *w, uint32_t k)
{
    uint64_t hash = w->hashes[k];
    pthread_mutex_t *m = world_lock(w, hash);
    struct entry *e = &w->keys[k];
    bool had = disk_forget_locked(w->disk, hash, e->pending != 0, NULL);
    CHECK(had == (e->on_disk != 0));
    e->on_disk = e->pending = 0;
    pthread_mutex_unlock(m);
}

struct get {
    struct disk_read rd;
    struct world *w;
    char name[32];
    uint32_t k, version;
    enum status st;
    int64_t expire_ms;
    uint64_t origin;
    _Atomic bool ended;
};

static void get_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct get *g = (struct get *)rd;
    g->st = st;
    g->version = 0;
    if (st == ST_OK) {
        g->version = value_version(rec->payload, g->k);
        g->expire_ms = rec->expire_ms;
        g->origin = rec->origin;
        CHECK(g->version != 0 && rec->type == OBJ_STRING);
    }
    atomic_store(&g->ended, true);
}

/* The version on disk; 0 = none. Through the readers or on this thread. */
static uint32_t get_version(struct world *w, uint32_t k, bool now, struct get *g)
{
    *g = (struct get){.w = w, .k = k};
    g->rd.key = world_key(w, k, g->name);
    g->rd.incarnation = world_inc(w);
    g->rd.done = get_done;
    pthread_mutex_t *m = world_lock(w, g->rd.key.hash);
    bool found = disk_find_locked(w->disk, g->rd.key.hash, &g->rd.block, NULL);
    pthread_mutex_unlock(m);
    if (!found)
        return 0;
    if (now) {
        disk_read_now(w->disk, &g->rd);
    } else {
        struct list reads;
        list_init(&reads);
        list_push_back(&reads, &g->rd.link);
        disk_read_submit(w->disk, &reads);
        while (!atomic_load(&g->ended))
            usleep(20);
    }
    return g->version;
}

static void check_all(struct world *w)
{
    struct get g;
    for (uint32_t k = 0; k < w->nkeys; k++)
        CHECK(get_version(w, k, k % 8 != 0, &g) == w->keys[k].on_disk);
}

static void sync_ok(struct world *w)
{
    CHECK(disk_sync(w->disk, 20000) == ST_OK);
}

static uint64_t file_size(const struct world *w)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* ---- index ---- */

static int compare_tag(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void index_agrees(const struct index_shard *s, const uint32_t *ref, const uint64_t *tags, size_t n)
{
    size_t pos = 0, count = 0, at = 0;
    const uint64_t *slot;
    uint64_t *sorted = calloc(n, sizeof(*sorted));
    for (size_t i = 0; i < n; i++)
        if (ref[i] != 0)
            sorted[count++] = tags[i];
    qsort(sorted, count, sizeof(*sorted), compare_tag);
    while ((slot = index_next(s, &pos)) != NULL) {
        assert_true(at < count);
        assert_true(*slot >> PLACE_BITS == sorted[at]);
        at++;
    }
    assert_int_equal(at, count);
    assert_int_equal(PEEK(s->count), count);
    free(sorted);
}

static void index_model(uint64_t seed, uint64_t mask)
{
    enum { N = 6000 };
    static uint64_t tags[N];
    static uint32_t ref[N];
    struct index_shard s = {0};
    memset(ref, 0, sizeof(ref));
    for (size_t i = 0; i < N; i++) {
        bool again;
        do { /* distinct tags, the extremes among them */
            tags[i] = i == 0 ? 0 : i == 1 ? mask : rng_next(&seed) & mask;
            again = false;
            for (size_t j = i < 64 ? 0 : i - 64; j < i; j++)
                again |= tags[j] == tags[i];
        } while (again && i > 1);
    }
    qsort(tags, N, sizeof(*tags), compare_tag);
    size_t n = 1;
    for (size_t i = 1; i < N; i++)
        if (tags[i] != tags[n - 1])
            tags[n++] = tags[i];
    for (int round = 0; round < 60000; round++) {
        size_t i = rng_next(&seed) % n;
        uint32_t place, old = 0, put = (uint32_t)(rng_next(&seed) & PLACE_MASK) | 1;
        unsigned grow = round / 10000 % 2 ? 2 : 7; /* phases of growth and of shrinking */
        if (rng_next(&seed) % 10 < grow) {
            bool had = index_put(&s, tags[i], put, &old);
            assert_true(had == (ref[i] != 0) && (!had || old == ref[i]));
            ref[i] = put;
        } else if (rng_next(&seed) % 2) {
            bool had = index_remove(&s, tags[i], &old);
            assert_true(had == (ref[i] != 0) && (!had || old == ref[i]));
            ref[i] = 0;
        } else {
            uint32_t number = ref[i] & (PLACE_EXPIRE - 1);
            assert_false(index_remove_block(&s, tags[i], number + 1));
            if (ref[i] != 0)
                assert_true(index_remove_block(&s, tags[i], number));
            ref[i] = 0;
        }
        i = rng_next(&seed) % n;
        bool found = index_find(&s, tags[i], &place);
        assert_true(found == (ref[i] != 0) && (!found || place == ref[i]));
        if (round % 5000 == 0)
            index_agrees(&s, ref, tags, n);
    }
    index_agrees(&s, ref, tags, n);
    for (size_t i = 0; i < n; i++) {
        uint32_t old;
        index_remove(&s, tags[i], &old);
    }
    assert_null(s.slots);
}

static void test_index(void **state)
{
    (void)state;
    index_model(1, (1ULL << DISK_TAG_BITS) - 1);
    index_model(2, (1ULL << DISK_TAG_BITS) - 1);
    index_model(3, 0xffff); /* all at the front: long runs, the slack used up */
}

static void test_index_tail(void **state)
{
    struct index_shard s = {0};
    uint32_t old, place;
    (void)state;
    uint64_t top = (1ULL << DISK_TAG_BITS) - 1;
    for (uint64_t i = 0; i < 3000; i++)
        assert_false(index_put(&s, top - i, (uint32_t)i + 1, &old));
    for (uint64_t i = 0; i < 3000; i++)
        assert_true(index_find(&s, top - i, &place) && place == i + 1);
    index_clear(&s);
}

static void test_scan(void **state)
{
    (void)state;
    struct world *w = world_new(20000);
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        assert_int_equal(put_value(w, k, 20, 0, k % 2 ? 0 : clock_wall_ms() + 100000), ST_OK);
    sync_ok(w);
    uint64_t *sorted = malloc(w->nkeys * sizeof(*sorted)), seed = 7;
    for (uint32_t k = 0; k < w->nkeys; k++)
        sorted[k] = disk_hash_bits(w->disk, w->hashes[k]);
    qsort(sorted, w->nkeys, sizeof(*sorted), compare_tag);
    for (int round = 0; round < 300; round++) {
        uint64_t lo = rng_next(&seed), hi = round % 3 ? lo + (rng_next(&seed) >> 8) : UINT64_MAX;
        if (round == 0)
            lo = 0;
        if (hi < lo)
            hi = UINT64_MAX;
        size_t at = 0, max = round % 7 ? 1 + rng_next(&seed) % 50 : 5000;
        while (at < w->nkeys && sorted[at] < disk_hash_bits(w->disk, lo))
            at++;
        struct disk_slot *out = malloc(max * sizeof(*out));
        for (unsigned shard = 0; shard < SHARDS; shard++) {
            uint64_t cursor = lo, next;
            do {
                size_t n = disk_scan_locked(w->disk, shard, cursor, hi, out, max, &next);
                for (size_t i = 0; i < n; i++, at++)
                    assert_true(at < w->nkeys && out[i].hash == sorted[at]);
                cursor = next;
            } while (cursor != hi + 1);
        }
        assert_true(at == w->nkeys || sorted[at] > hi);
        free(out);
    }
    free(sorted);
    world_free(w);
}

/* ---- values ---- */

static void test_values(void **state)
{
    static const size_t lens[] = {12,    13,    100,   1000,  2010,  2030,   2100,    4096,   16000,
                                  32700, 32768, 32769, 65000, 65519, 65520,  65521,   100000, 1000000};
    enum { N = sizeof(lens) / sizeof(*lens) };
    struct get g;
    (void)state;
    struct world *w = world_new(N * 4);
    world_open(w);
    int64_t expire = clock_wall_ms() + 1000000;
    for (uint32_t k = 0; k < w->nkeys; k++)
        assert_int_equal(put_value(w, k, lens[k % N], k / N == 1 ? 1 : k / N == 2 ? 10 : 0, k % 2 ? expire : 0), ST_OK);
    sync_ok(w);
    for (int round = 0; round < 2; round++) {
        check_all(w);
        for (uint32_t k = 0; k < w->nkeys; k++) {
            assert_int_equal(get_version(w, k, true, &g), 1);
            assert_int_equal(g.expire_ms, k % 2 ? expire : 0);
            assert_int_equal(g.origin, 0);
        }
        world_reopen(w);
        int64_t keys, expires;
        disk_loaded_keys(w->disk, 0, &keys, &expires);
        assert_int_equal(keys, w->nkeys);
        assert_int_equal(expires, w->nkeys / 2);
    }
    put_value(w, 0, 100, 0, 0);
    put_value(w, 0, 100, 0, 0);
    sync_ok(w);
    assert_int_equal(get_version(w, 0, false, &g), 3);
    assert_int_equal(g.origin, 1);
    struct disk_record huge = {.key = world_key(w, 0, g.name), .payload = {g.name, (size_t)3 << 30}};
    assert_int_equal(disk_append_locked(w->disk, &huge), ST_TOO_LARGE);
    world_free(w);
}

static void any_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct get *g = (struct get *)rd;
    g->st = st;
    if (st == ST_OK) {
        CHECK(rec->key.len < sizeof(g->name) && rec->payload.len == 0);
        memcpy(g->name, rec->key.ptr, rec->key.len);
        g->name[rec->key.len] = '\0';
        g->expire_ms = rec->expire_ms;
    }
}

static void test_read_any(void **state)
{
    (void)state;
    struct world *w = world_new(500);
    struct get g = {.rd = {.header_only = true, .done = any_done}};
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 100, 0, 0);
    sync_ok(w);
    for (uint32_t k = 0; k < w->nkeys; k++) {
        char name[32];
        world_key(w, k, name);
        g.rd.key = (struct key){.hash = disk_hash_bits(w->disk, w->hashes[k])};
        assert_true(disk_find_locked(w->disk, g.rd.key.hash, &g.rd.block, NULL));
        disk_read_now(w->disk, &g.rd);
        assert_int_equal(g.st, ST_OK);
        assert_string_equal(g.name, name);
    }
    /* a block that never was, and one that has another key */
    g.rd.block += 1000;
    disk_read_now(w->disk, &g.rd);
    assert_int_equal(g.st, ST_NOT_FOUND);
    g.rd.key = world_key(w, 1, g.name);
    assert_true(disk_find_locked(w->disk, g.rd.key.hash, &g.rd.block, NULL));
    g.rd.incarnation = 77;
    disk_read_now(w->disk, &g.rd);
    assert_int_equal(g.st, ST_NOT_FOUND);
    world_free(w);
}

/* ---- order of events ---- */

static void test_order(void **state)
{
    (void)state;
    struct world *w = world_new(8);
    world_open(w);
    for (int across = 0; across < 2; across++) {
        for (uint32_t k = 0; k < 8; k++) {
            size_t len = k & 4 ? 50000 : 100; /* in entries of their own, too */
            put_value(w, k, len, 0, 0);
            if (across)
                sync_ok(w);
            if (k & 1)
                forget_key(w, k);
            if (across)
                sync_ok(w);
            if (k & 2)
                put_value(w, k, len, 0, 0);
        }
        sync_ok(w);
        check_all(w);
        world_reopen(w);
        check_all(w);
        for (uint32_t k = 0; k < 8; k++)
            forget_key(w, k);
        world_reopen(w);
        check_all(w);
    }
    int64_t keys, expires;
    disk_loaded_keys(w->disk, 0, &keys, &expires);
    assert_int_equal(keys, 0);
    world_free(w);
}

static void test_incarnations(void **state)
{
    (void)state;
    struct world *w = world_new(3000);
    struct disk_stats st;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 1000, 0, 0);
    /* another database, in the same blocks */
    char name[32];
    for (uint32_t k = 0; k < 100; k++) {
        int len = snprintf(name, sizeof(name), "other:%u", k);
        uint32_t inc = disk_incarnation(w->disk, 2);
        uint64_t hash = hash_key(disk_hash_seed(w->disk), inc, SLICE(name, (size_t)len));
        struct disk_record rec = {.key = {.ptr = name, .len = (uint32_t)len, .hash = hash},
                                  .incarnation = inc,
                                  .type = OBJ_STRING,
                                  .expire_ms = k % 2 ? clock_wall_ms() + 1000000 : 0,
                                  .payload = {"x", 1}};
        assert_int_equal(disk_append_locked(w->disk, &rec), ST_OK);
        put_value(w, k, 1000, 0, 0);
    }
    sync_ok(w);
    world_reopen(w);
    int64_t keys, expires;
    disk_loaded_keys(w->disk, 0, &keys, &expires);
    assert_int_equal(keys, 3000);
    disk_loaded_keys(w->disk, 2, &keys, &expires);
    assert_int_equal(keys, 100);
    assert_int_equal(expires, 50);
    /* a flush: dropped() reports all of database 0, and the space comes back */
    disk_get_stats(w->disk, &st);
    uint64_t before = st.block_bytes;
    assert_int_equal(st.keys, 3100);
    disk_set_incarnation(w->disk, 0, 1000);
    for (int i = 0; i < 500 && (st.keys > 100 || st.block_bytes > before / 3); i++) {
        usleep(10000);
        disk_get_stats(w->disk, &st);
    }
    assert_int_equal(st.keys, 100);
    assert_true(st.block_bytes <= before / 3);
    world_reopen(w);
    disk_loaded_keys(w->disk, 0, &keys, &expires);
    assert_int_equal(keys, 0);
    assert_int_equal(disk_incarnation(w->disk, 0), 1000);
    disk_loaded_keys(w->disk, 2, &keys, &expires);
    assert_int_equal(keys, 100);
    world_free(w);
}

static void test_expiry(void **state)
{
    (void)state;
    struct world *w = world_new(1000);
    struct disk_stats st;
    world_open(w);
    int64_t now = clock_wall_ms();
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 100, 0, k % 2 ? now + 100 : k % 4 ? 0 : now + 3600000);
    sync_ok(w);
    world_reopen(w); /* the earliest expiry of a block survives */
    for (int i = 0; i < 500; i++) {
        usleep(10000);
        disk_get_stats(w->disk, &st);
        if (st.keys == 500)
            break;
    }
    assert_int_equal(st.keys, 500);
    assert_int_equal(st.expired_keys, 500);
    check_all(w);
    world_free(w);
}

/* ---- quota ---- */

static void test_quota(void **state)
{
    (void)state;
    struct world *w = world_new(60000);
    w->opt.max_bytes = 8 * MB;
    w->opt.commit_bytes = 512 * 1024;
    w->opt.queue_max_bytes = 2 * MB;
    world_open(w);
    uint64_t seed = 3, refused = 0;
    for (uint32_t i = 0; i < 40000; i++) {
        enum status st;
        uint32_t k = i % w->nkeys;
        while ((st = put_value(w, k, 100 + rng_next(&seed) % 1900, 0, 0)) == ST_FULL) {
            refused++;
            usleep(500);
        }
        assert_int_equal(st, ST_OK);
    }
    sync_ok(w);
    assert_true(file_size(w) <= 8 * MB + 3 * MB);
    assert_true(atomic_load(&w->dropped) > 20000);
    assert_true(refused == 0 || atomic_load(&w->rooms) > 0);
    struct disk_stats st;
    disk_get_stats(w->disk, &st);
    assert_true(st.keys > 3000 && st.block_bytes <= 8 * MB);
    check_all(w);
    world_reopen(w);
    check_all(w);
    /* a smaller quota takes effect by itself */
    disk_set_max_bytes(w->disk, 4 * MB);
    for (int i = 0; i < 300 && st.block_bytes > 4 * MB; i++) {
        usleep(10000);
        disk_get_stats(w->disk, &st);
    }
    assert_true(st.block_bytes <= 4 * MB);
    check_all(w);
    world_free(w);
}

static void test_quota_refuses(void **state)
{
    (void)state;
    struct world *w = world_new(20000);
    w->opt.max_bytes = 4 * MB;
    w->opt.drop_oldest = false;
    world_open(w);
    uint32_t k = 0;
    while (k < w->nkeys && put_value(w, k, 1000, 0, 0) == ST_OK)
        k++;
    assert_true(k > 2000 && k < 6000);
    sync_ok(w);
    assert_int_equal(atomic_load(&w->dropped), 0);
    for (uint32_t i = 0; i < k; i++)
        forget_key(w, i);
    for (int i = 0; i < 500 && atomic_load(&w->rooms) == 0; i++)
        usleep(10000);
    assert_true(atomic_load(&w->rooms) > 0);
    assert_int_equal(put_value(w, 0, 1000, 0, 0), ST_OK);
    sync_ok(w);
    check_all(w);
    world_free(w);
}

/* ---- failures ---- */

static void test_write_failure(void **state)
{
    (void)state;
    struct world *w = world_new(2000);
    struct rlimit was, tight;
    signal(SIGXFSZ, SIG_IGN);
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 1000, 0, 0);
    sync_ok(w);
    getrlimit(RLIMIT_FSIZE, &was);
    tight = was;
    tight.rlim_cur = 4096; /* nothing but the first page can be written */
    setrlimit(RLIMIT_FSIZE, &tight);
    for (uint32_t k = 0; k < 1000; k++)
        put_value(w, k, 1000, 0, 0);
    assert_int_equal(disk_sync(w->disk, 10000), ST_IO);
    assert_false(disk_healthy(w->disk));
    assert_true(atomic_load(&w->unhealthy) == 1 && atomic_load(&w->failed) > 0);
    assert_int_equal(put_value(w, 0, 1000, 0, 0), ST_IO);
    forget_key(w, 1500); /* its tombstone waits */
    usleep(1300000);     /* one retry fails */
    assert_false(disk_healthy(w->disk));
    check_all(w); /* reading goes on */
    setrlimit(RLIMIT_FSIZE, &was);
    for (int i = 0; i < 500 && !noticed(w, "writable"); i++)
        usleep(10000);
    assert_true(disk_healthy(w->disk));
    check_all(w);
    assert_int_equal(put_value(w, 3, 1000, 0, 0), ST_OK);
    sync_ok(w);
    world_reopen(w);
    assert_int_equal(w->keys[0].on_disk, 0);
    assert_int_equal(w->keys[1500].on_disk, 0);
    check_all(w);
    world_free(w);
}

static void test_busy(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    char err[256];
    struct disk *second = NULL;
    world_open(w);
    assert_int_equal(disk_open(&w->opt, &second, err), ST_BUSY);
    assert_true(strstr(err, "in use") != NULL);
    world_free(w);
}

static void file_patch(const struct world *w, off_t at, const void *p, size_t len)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    if (p == NULL)
        CHECK(ftruncate(fd, at) == 0);
    else
        CHECK(pwrite(fd, p, len, at) == (ssize_t)len);
    close(fd);
}

static void fill(struct world *w, uint32_t n)
{
    memset(w->keys, 0, w->nkeys * sizeof(*w->keys));
    for (uint32_t k = 0; k < n; k++)
        put_value(w, k, 300, 0, 0);
    sync_ok(w);
    disk_close(w->disk);
    w->disk = NULL;
}

static void expect_fresh(struct world *w, const char *why)
{
    uint64_t before = atomic_load(&w->notices);
    struct disk_stats st;
    world_open(w);
    disk_get_stats(w->disk, &st);
    assert_int_equal(st.keys, 0);
    assert_true(atomic_load(&w->notices) == before + 1);
    assert_true(noticed(w, why));
    fill(w, 500);
}

static void meta_patch(const struct world *w, uint32_t version)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_val key = {7, (void *)(uintptr_t)"tiercel"}, val;
    char path[128], copy[4096];
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    CHECK(mdb_env_create(&env) == 0 && mdb_env_set_maxdbs(env, 4) == 0 && mdb_env_set_mapsize(env, 256 * MB) == 0);
    CHECK(mdb_env_open(env, path, MDB_NOSUBDIR, 0600) == 0 && mdb_txn_begin(env, NULL, 0, &txn) == 0);
    CHECK(mdb_dbi_open(txn, "meta", MDB_CREATE, &dbi) == 0);
    if (version == 0) {
        CHECK(mdb_drop(txn, dbi, 0) == 0);
    } else {
        CHECK(mdb_get(txn, dbi, &key, &val) == 0 && val.mv_size < sizeof(copy));
        memcpy(copy, val.mv_data, val.mv_size);
        memcpy(copy + 4, &version, 4);
        val.mv_data = copy;
        CHECK(mdb_put(txn, dbi, &key, &val, 0) == 0);
    }
    CHECK(mdb_txn_commit(txn) == 0);
    mdb_env_close(env);
}

static void test_set_aside(void **state)
{
    (void)state;
    struct world *w = world_new(1000);
    static char junk[300000];
    world_open(w);
    fill(w, 500);
    meta_patch(w, 2);
    expect_fresh(w, "another version");
    meta_patch(w, 0);
    expect_fresh(w, "not a file of ours");
    file_patch(w, (off_t)file_size(w) / 2 & ~4095, NULL, 0);
    expect_fresh(w, "truncated");
    file_patch(w, 100, NULL, 0);
    expect_fresh(w, "not a file of ours");
    file_patch(w, 4096 + 20, NULL, 0);
    expect_fresh(w, "truncated");
    uint64_t seed = 5;
    for (size_t i = 0; i < sizeof(junk); i++)
        junk[i] = (char)rng_next(&seed);
    file_patch(w, 0, junk, sizeof(junk));
    expect_fresh(w, "not a file of ours");
    /* an empty one is no reason for a notice */
    file_patch(w, 0, NULL, 0);
    world_open(w);
    fill(w, 500);
    world_open(w);
    check_all(w);
    world_free(w);
}

/* Wherever a page is overwritten: no crash, and no value that is not one. */
static void test_garbage(void **state)
{
    (void)state;
    uint64_t seed = 9;
    struct world *w = world_new(3000);
    for (int round = 0; round < 40; round++) {
        world_open(w);
        memset(w->keys, 0, w->nkeys * sizeof(*w->keys));
        for (uint32_t k = 0; k < w->nkeys; k++) { /* the model is not kept here */
            disk_forget_locked(w->disk, w->hashes[k], true, NULL);
            put_value(w, k, 40 + rng_next(&seed) % 400, 0, 0);
            if (k % 1000 == 0)
                sync_ok(w);
        }
        sync_ok(w);
        disk_close(w->disk);
        uint64_t pages = file_size(w) / 4096;
        for (int i = 0; i < 3; i++) {
            char junk[4096];
            size_t len = round % 2 ? sizeof(junk) : 1 + rng_next(&seed) % 16;
            for (size_t j = 0; j < len; j++)
                junk[j] = round % 5 == 0 ? 0 : (char)rng_next(&seed);
            uint64_t page = round % 4 == 0 ? 2 + rng_next(&seed) % 12 : rng_next(&seed) % pages;
            file_patch(w, (off_t)(page * 4096 + (len < 4096 ? rng_next(&seed) % 4000 : 0)), junk, len);
        }
        world_open(w);
        struct get g;
        for (uint32_t k = 0; k < w->nkeys; k++)
            get_version(w, k, true, &g); /* CHECKs what it gets */
        for (uint32_t k = 0; k < w->nkeys; k++)
            disk_forget_locked(w->disk, w->hashes[k], true, NULL);
        sync_ok(w);
        disk_close(w->disk);
        w->disk = NULL;
    }
    world_free(w);
}

/* ---- crash ---- */

#define CRASH_KEYS 400u

struct crash_log { /* shared with the child */
    _Atomic uint32_t issued[CRASH_KEYS]; /* event: version * 2 + (1: tombstone) */
    _Atomic uint32_t synced[CRASH_KEYS];
    _Atomic uint32_t rounds;
};

static struct crash_log *crash_map(const char *dir)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/log", dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct crash_log)) == 0);
    struct crash_log *log = mmap(NULL, sizeof(*log), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(log != MAP_FAILED);
    close(fd);
    return log;
}

static int crash_child(const char *dir, uint64_t seed)
{
    struct world *w = world_new(CRASH_KEYS);
    rmdir(w->dir);
    snprintf(w->dir, sizeof(w->dir), "%s", dir);
    w->opt.commit_ms = 2;
    w->opt.commit_bytes = 256 * 1024;
    world_open(w);
    struct crash_log *log = crash_map(dir);
    for (uint32_t k = 0; k < CRASH_KEYS; k++) {
        /* From here on what counts is what survived. */
        struct get g;
        uint32_t version = log->issued[k] / 2, v = get_version(w, k, true, &g);
        w->keys[k] = (struct entry){.version = version, .on_disk = v};
        atomic_store(&log->synced[k], v ? v * 2 : version * 2 + 1);
        atomic_store(&log->issued[k], v ? v * 2 : version * 2 + 1);
    }
    for (;;) {
        uint32_t n = 50 + (uint32_t)(rng_next(&seed) % 1000), snap[CRASH_KEYS];
        for (uint32_t i = 0; i < n; i++) {
            uint32_t k = (uint32_t)(rng_next(&seed) % CRASH_KEYS);
            if (rng_next(&seed) % 4 == 0) {
                atomic_store(&log->issued[k], w->keys[k].version * 2 + 1);
                forget_key(w, k);
            } else {
                /* the put forgets first, so the older version may be gone already */
                atomic_store(&log->issued[k], (w->keys[k].version + 1) * 2);
                put_value(w, k, rng_next(&seed) % 50 ? rng_next(&seed) % 3000 : 70000, 0, 0);
            }
        }
        for (uint32_t k = 0; k < CRASH_KEYS; k++)
            snap[k] = log->issued[k];
        if (disk_sync(w->disk, 10000) != ST_OK)
            _exit(3);
        for (uint32_t k = 0; k < CRASH_KEYS; k++)
            atomic_store(&log->synced[k], snap[k]);
        atomic_fetch_add(&log->rounds, 1);
        if (rng_next(&seed) % 40 == 0)
            _exit(0); /* an end without close */
    }
}

static void crash_check(struct world *w, const struct crash_log *log)
{
    struct get g;
    for (uint32_t k = 0; k < CRASH_KEYS; k++) {
        uint32_t issued = log->issued[k], synced = log->synced[k], v = get_version(w, k, true, &g);
        if (v != 0)
            CHECK(v * 2 >= synced && v * 2 <= issued); /* never older than what was synced */
        else if (issued == synced)
            CHECK(issued == 0 || (issued & 1)); /* nothing happened since: it must be there */
    }
}

static void test_crash(void **state)
{
    (void)state;
    struct world *w = world_new(CRASH_KEYS);
    struct crash_log *log = crash_map(w->dir);
    uint64_t seed = 11;
    uint32_t rounds = 0;
    for (int i = 0; i < 14; i++) {
        char arg[32];
        snprintf(arg, sizeof(arg), "%llu", (unsigned long long)rng_next(&seed));
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            execl("/proc/self/exe", "test_disk", "--crash-child", w->dir, arg, (char *)NULL);
            _exit(4);
        }
        usleep(60000 + (useconds_t)(rng_next(&seed) % 200000));
        int wstatus;
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, &wstatus, 0) == pid);
        CHECK(WIFSIGNALED(wstatus) ? WTERMSIG(wstatus) == SIGKILL : WEXITSTATUS(wstatus) == 0);
        world_open(w);
        crash_check(w, log);
        disk_close(w->disk);
        w->disk = NULL;
        rounds = log->rounds;
    }
    assert_true(rounds > 14);
    munmap(log, sizeof(*log));
    world_free(w);
}

/* ---- all at once ---- */

struct player {
    struct world *w;
    pthread_t thread;
    uint64_t seed;
    unsigned ops;
};

/* A read may find a newer record of the key in the same block, never another key's, and
 * finds nothing only if the copy was given up meanwhile. */
static void play_read(struct world *w, uint32_t k)
{
    struct get g = {.w = w, .k = k};
    struct list reads;
    g.rd.key = world_key(w, k, g.name);
    g.rd.incarnation = world_inc(w);
    g.rd.done = get_done;
    pthread_mutex_t *m = world_lock(w, g.rd.key.hash);
    bool found = disk_find_locked(w->disk, g.rd.key.hash, &g.rd.block, NULL);
    uint32_t want = w->keys[k].on_disk;
    CHECK(found == (want != 0));
    pthread_mutex_unlock(m);
    if (!found)
        return;
    list_init(&reads);
    list_push_back(&reads, &g.rd.link);
    disk_read_submit(w->disk, &reads);
    while (!atomic_load(&g.ended))
        usleep(10);
    if (g.st == ST_OK) {
        CHECK(g.version >= want);
        return;
    }
    CHECK(g.st == ST_NOT_FOUND);
    m = world_lock(w, g.rd.key.hash);
    CHECK(w->keys[k].on_disk != want);
    pthread_mutex_unlock(m);
}

static void *play(void *arg)
{
    struct player *p = arg;
    for (unsigned i = 0; i < p->ops; i++) {
        uint64_t r = rng_next(&p->seed);
        uint32_t k = (uint32_t)(r >> 32) % p->w->nkeys;
        unsigned what = r % 100;
        if (what < 45)
            put_value(p->w, k, r >> 8 & 0xfff, r & 0x10000 ? 50 : 0, r & 0x20000 ? clock_wall_ms() + 50 : 0);
        else if (what < 47)
            put_value(p->w, k, 40000 + (r >> 8 & 0xfff), 12, 0);
        else if (what < 65)
            forget_key(p->w, k);
        else
            play_read(p->w, k);
        if (what == 99 && i % 16 == 0)
            disk_sync(p->w->disk, 10000);
    }
    return NULL;
}

static void test_model(void **state)
{
    (void)state;
    struct world *w = world_new(2000);
    struct player p[4];
    w->opt.max_bytes = 6 * MB;
    w->opt.commit_bytes = 256 * 1024;
    w->opt.commit_ms = 3;
    w->opt.queue_max_bytes = MB;
    world_open(w);
    for (int round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 4; i++) {
            p[i] = (struct player){.w = w, .seed = (uint64_t)round * 100 + i, .ops = 4000};
            pthread_create(&p[i].thread, NULL, play, &p[i]);
        }
        for (unsigned i = 0; i < 4; i++)
            pthread_join(p[i].thread, NULL);
        sync_ok(w);
        disk_close(w->disk); /* first, so that the model stands still */
        struct entry *keys = malloc(w->nkeys * sizeof(*keys));
        memcpy(keys, w->keys, w->nkeys * sizeof(*keys));
        world_open(w);
        struct get g;
        for (uint32_t k = 0; k < w->nkeys; k++) {
            uint32_t v = get_version(w, k, true, &g);
            /* an expired copy may show again: its removal needs no tombstone */
            CHECK(v == keys[k].on_disk || (keys[k].on_disk == 0 && v == keys[k].version && g.expire_ms != 0) ||
                  (v == 0 && w->keys[k].on_disk == 0));
            w->keys[k].on_disk = 0;
            disk_forget_locked(w->disk, w->hashes[k], false, NULL);
        }
        free(keys);
    }
    assert_true(atomic_load(&w->dropped) > 0);
    world_free(w);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--crash-child") == 0)
        return crash_child(argv[2], strtoull(argv[3], NULL, 10));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_index_tail),
        cmocka_unit_test(test_scan),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_read_any),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_incarnations),
        cmocka_unit_test(test_expiry),
        cmocka_unit_test(test_quota),
        cmocka_unit_test(test_quota_refuses),
        cmocka_unit_test(test_write_failure),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_set_aside),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_crash),
        cmocka_unit_test(test_model),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
