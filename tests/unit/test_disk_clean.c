/* The disk tier when its quota is reached: what stays, what goes, and what that costs. */
#include "disk_shim.h"
#include "disk_world.h"

#define QUOTA (8u * MB)
#define WAIT_MS 5000

static struct world *clean_world(uint32_t nkeys, enum disk_retain retain, bool thorough)
{
    struct world *w = world_new(nkeys);
    w->opt.max_bytes = QUOTA;
    w->opt.commit_bytes = 256 * 1024;
    w->opt.queue_max_bytes = 2 * MB;
    w->opt.commit_ms = 5;
    w->opt.retain = retain;
    w->opt.thorough = thorough;
    return w;
}

static struct disk_stats stats(const struct world *w)
{
    struct disk_stats st;
    disk_get_stats(w->disk, &st);
    return st;
}

/* Waits while there is no room. Others are refused meanwhile: that is how an owner behaves. */
static bool put_waiting(struct world *w, uint32_t k, size_t len, int64_t expire_ms)
{
    for (int i = 0; i < WAIT_MS * 2; i++) {
        enum status st = put_value(w, k, len, 0, expire_ms);
        if (st == ST_OK)
            return true;
        CHECK(st == ST_FULL);
        if (disk_quota_full(w->disk))
            return false;
        usleep(500);
    }
    CHECK(!"room came");
    return false;
}

static void reopen_same(struct world *w)
{
    int64_t keys, expires, before = 0;
    sync_ok(w);
    check_all(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        before += w->keys[k].on_disk != 0;
    world_reopen(w);
    disk_loaded_keys(w->disk, 0, &keys, &expires);
    assert_int_equal(keys, before);
    check_all(w);
}

/* ---- nothing may be dropped ---- */

static void test_overwrites(void **state)
{
    static const size_t lens[] = {1000, 100, 20000, 70000};
    (void)state;
    for (int round = 0; round < 4; round++) {
        size_t len = lens[round];
        struct world *w = clean_world((uint32_t)(QUOTA / 2 / (len + 60)), DISK_RETAIN_ALL, round % 2);
        uint64_t seed = 5, plateau = 0, bytes = 0;
        world_open(w);
        for (uint32_t k = 0; k < w->nkeys; k++)
            assert_true(put_waiting(w, k, len, 0));
        while (bytes < (len == 1000 ? 5ull : 3ull) * QUOTA) {
            assert_true(put_waiting(w, (uint32_t)(rng_next(&seed) % w->nkeys), len, 0));
            bytes += len;
            if (plateau == 0 && bytes > 2ull * QUOTA)
                plateau = file_size(w);
        }
        sync_ok(w);
        assert_int_equal(atomic_load(&w->dropped), 0);
        assert_true(file_size(w) <= plateau + plateau / 8 && file_size(w) <= QUOTA + 3 * MB);
        assert_true(len > LARGE_PAYLOAD || stats(w).carried_keys > 0);
        reopen_same(w);
        assert_int_equal(stats(w).keys, w->nkeys);
        world_free(w);
    }
}

static void test_full(void **state)
{
    (void)state;
    struct world *w = clean_world(20000, DISK_RETAIN_ALL, true);
    uint64_t seed = 7;
    uint32_t k = 0;
    world_open(w);
    while (k < w->nkeys && put_waiting(w, k, 1000, 0))
        k++;
    assert_true(disk_quota_full(w->disk));
    assert_true(k > QUOTA * 3 / 4 / 1060 && k < QUOTA / 1060);
    uint64_t carried = stats(w).carried_bytes;
    usleep(600000); /* nothing is done in vain */
    assert_true(stats(w).carried_bytes == carried && disk_quota_full(w->disk));
    assert_int_equal(put_value(w, k, 1000, 0, 0), ST_FULL);
    assert_int_equal(put_record(w, k, 1000, 0, 0, true), ST_OK); /* this one must */
    /* every other key goes: no block is dead, and half the room comes back */
    uint64_t rooms = atomic_load(&w->rooms);
    for (uint32_t i = 0; i < k; i++)
        if (rng_next(&seed) % 2)
            forget_key(w, i);
    for (int i = 0; i < WAIT_MS && (disk_quota_full(w->disk) || atomic_load(&w->rooms) == rooms); i++)
        usleep(1000);
    assert_true(!disk_quota_full(w->disk) && atomic_load(&w->rooms) > rooms);
    uint32_t more = 0;
    while (k + 1 + more < w->nkeys && put_waiting(w, k + 1 + more, 1000, 0))
        more++;
    assert_true(more > k / 4);
    sync_ok(w);
    assert_int_equal(atomic_load(&w->dropped), 0);
    assert_true(file_size(w) <= QUOTA + 2 * MB);
    reopen_same(w);
    world_free(w);
}

/* With appendonly nothing refuses: the writers wait for what disk_queue_bytes() says. */
static void test_must(void **state)
{
    (void)state;
    struct world *w = clean_world(QUOTA * 7 / 10 / 1060, DISK_RETAIN_HOT, true);
    uint64_t seed = 8;
    world_open(w);
    for (uint32_t i = 0; i < 5u * QUOTA / 1060; i++) {
        uint32_t k = i < w->nkeys ? i : (uint32_t)(rng_next(&seed) % w->nkeys);
        for (int ms = 0; disk_queue_bytes(w->disk) > MB && ms < WAIT_MS; ms++)
            usleep(1000);
        assert_int_equal(put_record(w, k, 1000, 0, 0, true), ST_OK);
        assert_false(disk_quota_full(w->disk));
    }
    sync_ok(w);
    assert_int_equal(atomic_load(&w->dropped), 0); /* what lives fits */
    assert_true(file_size(w) <= QUOTA + 3 * MB);
    reopen_same(w);
    world_free(w);
}

/* ---- some may be dropped ---- */

static void test_persistent(void **state)
{
    (void)state;
    struct world *w = clean_world(60000, DISK_RETAIN_PERSISTENT, true);
    int64_t expire = clock_wall_ms() + 1000000;
    uint32_t keep = QUOTA * 3 / 10 / 1060, k = 0;
    struct get g;
    world_open(w);
    for (; k < 3u * QUOTA / 1060; k++) /* among each other */
        assert_true(put_waiting(w, k, 1000, k % 10 == 0 && k / 10 < keep ? 0 : expire));
    sync_ok(w);
    uint64_t dropped = atomic_load(&w->dropped);
    assert_true(dropped > 0);
    for (uint32_t i = 0; i < k; i += 10)
        assert_true(i / 10 >= keep || get_version(w, i, true, &g) != 0);
    reopen_same(w);
    /* what does not expire fills it in the end */
    uint32_t more = 0;
    while (put_waiting(w, k + more, 1000, 0))
        more++;
    assert_true(disk_quota_full(w->disk));
    assert_true(more > QUOTA / 2 / 1060);
    sync_ok(w);
    for (uint32_t i = k; i < k + more; i++)
        assert_true(get_version(w, i, true, &g) != 0);
    assert_true(file_size(w) <= QUOTA + 2 * MB);
    reopen_same(w);
    world_free(w);
}

static bool keep_some(void *arg, const struct disk_gone *rec)
{
    struct world *w = arg;
    uint32_t k = find_by_hash(w, rec->hash);
    CHECK(k != UINT32_MAX && rec->name.ptr != NULL);
    CHECK(pthread_mutex_trylock(&w->lock[rec->hash >> (64 - SHARD_BITS)]) == EBUSY);
    return k < QUOTA * 3 / 10 / 1060;
}

/* Live data does not fit: the oldest goes, but for what the owner holds. */
static void test_keep(void **state)
{
    (void)state;
    struct world *w = clean_world(4u * QUOTA / 1060, DISK_RETAIN_HOT, true);
    struct get g;
    w->keep_locked = keep_some;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        assert_true(put_waiting(w, k, 1000, 0));
    sync_ok(w);
    for (uint32_t k = 0; k < w->nkeys; k++) {
        bool kept = get_version(w, k, true, &g) != 0;
        assert_true(kept || k >= QUOTA * 3 / 10 / 1060);
        assert_true(!kept || k < QUOTA * 3 / 10 / 1060 + 64 || k > w->nkeys / 2);
    }
    assert_true(atomic_load(&w->dropped) > 0);
    reopen_same(w);
    world_free(w);
}

static bool keep_all(void *arg, const struct disk_gone *rec)
{
    (void)arg, (void)rec;
    return true;
}

static void test_keep_all(void **state)
{
    (void)state;
    struct world *w = clean_world(4u * QUOTA / 1060, DISK_RETAIN_HOT, true);
    w->keep_locked = keep_all;
    world_open(w);
    uint32_t k = 0;
    while (k < w->nkeys && put_waiting(w, k, 1000, 0))
        k++;
    assert_true(disk_quota_full(w->disk) && k < w->nkeys);
    assert_int_equal(atomic_load(&w->dropped), 0);
    reopen_same(w);
    world_free(w);
}

/* ---- a plain cache ---- */

/* Reads it until the reader has noted it. */
static void read_key(struct world *w, uint32_t k)
{
    struct get g;
    get_version(w, k, k % 16 != 0, &g);
}

static void test_second_chance(void **state)
{
    (void)state;
    struct world *w = clean_world(6u * QUOTA / 1060, DISK_RETAIN_HOT, false);
    uint32_t hot = QUOTA / 20 / 1060, alive = 0;
    struct get g;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++) {
        assert_true(put_waiting(w, k, 1000, 0));
        if (k % 100 == 99) /* cleaning is not left behind */
            sync_ok(w);
        if (k % 400 == 399)
            for (uint32_t i = 0; i < hot && i < k; i++)
                read_key(w, i);
    }
    sync_ok(w);
    for (uint32_t k = 0; k < hot; k++)
        alive += get_version(w, k, true, &g) != 0;
    assert_true(alive > hot * 9 / 10);
    for (uint32_t k = hot; k < w->nkeys / 2; k++)
        assert_true(k < hot + 64 || get_version(w, k, true, &g) == 0);
    struct disk_stats st = stats(w);
    assert_true(st.carried_bytes < st.appended_bytes / 4);
    reopen_same(w);
    world_free(w);
}

/* Everything is read all the time: what that may cost is bounded. */
static void test_all_read(void **state)
{
    (void)state;
    struct world *w = clean_world(6u * QUOTA / 1060, DISK_RETAIN_HOT, false);
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++) {
        assert_true(put_waiting(w, k, 1000, 0));
        if (k % 400 == 399) {
            sync_ok(w);
            for (uint32_t i = k - 399; i <= k; i++)
                read_key(w, i);
        }
    }
    sync_ok(w);
    struct disk_stats st = stats(w);
    assert_true(st.carried_bytes > 0);
    assert_true(st.carried_bytes < st.appended_bytes / 7 + MB);
    assert_true(st.written_bytes < st.appended_bytes * 13 / 10 + MB);
    assert_true(file_size(w) <= QUOTA + 2 * MB);
    reopen_same(w);
    world_free(w);
}

/* Overwrites leave garbage: cleaning that comes before dropping. */
static void test_plain_garbage(void **state)
{
    (void)state;
    struct world *w = clean_world(QUOTA * 4 / 10 / 1060, DISK_RETAIN_HOT, false);
    uint64_t seed = 9;
    world_open(w);
    for (uint32_t i = 0; i < 5u * QUOTA / 1060; i++) {
        assert_true(put_waiting(w, i < w->nkeys ? i : (uint32_t)(rng_next(&seed) % w->nkeys), 1000, 0));
        if (i % 200 == 0) /* cleaning is not left behind */
            sync_ok(w);
    }
    sync_ok(w);
    struct disk_stats st = stats(w);
    assert_true(st.keys > w->nkeys * 9u / 10);
    assert_true(st.carried_bytes > 0 && st.carried_bytes < st.appended_bytes * 3 / 10);
    reopen_same(w);
    world_free(w);
}

/* ---- names ---- */

static _Atomic uint64_t named, nameless, expired;

static void see_names(struct world *w, const struct disk_gone *items, size_t n)
{
    (void)w;
    for (size_t i = 0; i < n; i++) {
        const struct disk_gone *gone = &items[i];
        char name[32];
        if (gone->name.ptr != NULL) {
            uint64_t hash = hash_key(disk_hash_seed(w->disk), gone->incarnation, gone->name);
            CHECK(hash == gone->hash && gone->name.len < sizeof(name));
            atomic_fetch_add(&named, 1);
        } else {
            atomic_fetch_add(&nameless, 1);
        }
        CHECK(!gone->expired || (gone->name.ptr != NULL && gone->has_expire));
        atomic_fetch_add(&expired, gone->expired);
    }
}

static void test_names(void **state)
{
    (void)state;
    for (int wanted = 0; wanted < 2; wanted++) {
        struct world *w = clean_world(3u * QUOTA / 1060, DISK_RETAIN_HOT, false);
        w->dropped_first = see_names;
        named = nameless = expired = 0;
        world_open(w);
        disk_set_names(w->disk, wanted);
        int64_t soon = clock_wall_ms() + 200;
        for (uint32_t k = 0; k < 200; k++)
            assert_true(put_waiting(w, k, 1000, soon));
        sync_ok(w);
        for (int i = 0; i < WAIT_MS && atomic_load(&w->dropped) < 200; i++)
            usleep(1000);
        assert_int_equal(expired, 200);
        assert_int_equal(stats(w).expired_keys, 200);
        assert_int_equal(stats(w).dropped_keys, 0);
        for (uint32_t k = 200; k < w->nkeys; k++)
            assert_true(put_waiting(w, k, 1000, 0));
        sync_ok(w);
        assert_true(wanted ? nameless == 0 && named > 1000 : named == 200 && nameless > 1000);
        reopen_same(w);
        world_free(w);
    }
}

/* What has expired and was not swept yet is met by the cleaner. */
static void test_expired(void **state)
{
    (void)state;
    struct world *w = clean_world(QUOTA / 1060, DISK_RETAIN_ALL, true);
    uint64_t seed = 10;
    w->dropped_first = see_names;
    named = nameless = expired = 0;
    world_open(w);
    for (uint32_t i = 0; i < 4u * QUOTA / 1060; i++) {
        uint32_t k = (uint32_t)(rng_next(&seed) % w->nkeys);
        int64_t expire = k % 2 ? clock_wall_ms() + (int64_t)(rng_next(&seed) % 300) : 0;
        assert_true(put_waiting(w, k, 1000, expire));
    }
    sync_ok(w);
    assert_true(expired > 0);
    assert_int_equal(nameless, 0);
    struct disk_stats st = stats(w);
    assert_int_equal(st.dropped_keys, 0);
    assert_int_equal(st.expired_keys, atomic_load(&w->dropped));
    check_all(w);
    world_free(w);
}

/* ---- the quota ---- */

static void test_shrink(void **state)
{
    (void)state;
    for (int all = 0; all < 2; all++) {
        struct world *w = clean_world(16000, all ? DISK_RETAIN_ALL : DISK_RETAIN_HOT, all);
        uint64_t seed = 12;
        w->opt.max_bytes = 4 * QUOTA;
        world_open(w);
        for (uint32_t k = 0; k < w->nkeys; k++)
            assert_true(put_waiting(w, k, 1000, 0));
        for (uint32_t k = 0; k < w->nkeys; k++)
            if (rng_next(&seed) % 4 != 0)
                forget_key(w, k);
        sync_ok(w);
        uint64_t left = stats(w).keys;
        disk_set_max_bytes(w->disk, QUOTA);
        for (int i = 0; i < WAIT_MS && PEEK(w->disk->used_bytes) > QUOTA; i++)
            usleep(1000);
        assert_true(PEEK(w->disk->used_bytes) <= QUOTA);
        assert_true(all ? stats(w).keys == left : stats(w).keys > left / 4);
        reopen_same(w);
        world_free(w);
    }
}

static void test_live_bytes(void **state)
{
    (void)state;
    struct world *w = clean_world(4000, DISK_RETAIN_ALL, true);
    w->opt.max_bytes = 64 * MB;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        assert_true(put_waiting(w, k, 1000, 0));
    for (uint32_t k = 0; k < w->nkeys; k += 4)
        forget_key(w, k);
    sync_ok(w);
    uint64_t want = 3000ull * 1080;
    for (int i = 0; i < WAIT_MS && (stats(w).live_bytes > want * 11 / 10 || stats(w).live_bytes < want * 9 / 10); i++)
        usleep(1000);
    assert_true(stats(w).live_bytes < want * 11 / 10 && stats(w).live_bytes > want * 9 / 10);
    assert_true(stats(w).live_bytes < stats(w).block_bytes);
    world_free(w);
}

/* What never changes lies at the tail: the keys entries behind it must not pile up. */
static void test_tail(void **state)
{
    (void)state;
    struct world *w = clean_world(24000, DISK_RETAIN_ALL, true);
    uint64_t seed = 14, keys_bytes = UINT64_MAX;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        assert_true(put_waiting(w, k, 100, 0));
    uint64_t tail = PEEK(w->disk->tail);
    /* It may be behind for a while. */
    for (uint32_t i = 0; i < 200000 || (keys_bytes >= QUOTA / 5 && i < 1000000); i++) {
        assert_true(put_waiting(w, w->nkeys / 2 + (uint32_t)(rng_next(&seed) % (w->nkeys / 2)), 100, 0));
        if (i % 10000 == 9999) {
            sync_ok(w);
            keys_bytes = PEEK(w->disk->used_bytes) - stats(w).block_bytes;
        }
    }
    sync_ok(w);
    assert_int_equal(atomic_load(&w->dropped), 0);
    assert_true(PEEK(w->disk->tail) > tail);
    assert_true(keys_bytes < QUOTA / 5);
    reopen_same(w);
    world_free(w);
}

/* ---- all at once ---- */

struct player {
    struct world *w;
    pthread_t thread;
    uint64_t seed;
    unsigned ops;
    bool spoilt, spoils; /* commits fail, now and then; it sees to that */
};

static pthread_rwlock_t flushing = PTHREAD_RWLOCK_INITIALIZER;

static void flush_world(struct world *w)
{
    pthread_rwlock_wrlock(&flushing);
    for (unsigned i = 0; i < SHARDS; i++)
        pthread_mutex_lock(&w->lock[i]);
    disk_set_incarnation(w->disk, 0, world_inc(w) + 100);
    memset(w->by_hash, 0xff, KEYS_MAX * 2 * sizeof(*w->by_hash));
    for (uint32_t k = 0; k < w->nkeys; k++) {
        char name[32];
        w->hashes[k] = world_key(w, k, name).hash;
        uint32_t i = (uint32_t)w->hashes[k] & (KEYS_MAX * 2 - 1);
        while (w->by_hash[i] != UINT32_MAX)
            i = (i + 1) & (KEYS_MAX * 2 - 1);
        w->by_hash[i] = k;
        w->keys[k].on_disk = w->keys[k].pending = 0;
    }
    for (unsigned i = 0; i < SHARDS; i++)
        pthread_mutex_unlock(&w->lock[i]);
    pthread_rwlock_unlock(&flushing);
}

static void *play(void *arg)
{
    struct player *p = arg;
    struct world *w = p->w;
    for (unsigned i = 0; i < p->ops; i++) {
        uint64_t r = rng_next(&p->seed);
        uint32_t k = (uint32_t)(r >> 32) % w->nkeys;
        size_t len = r % 64 == 0 ? 40000 : 12 + r / 64 % 1500;
        pthread_rwlock_rdlock(&flushing);
        if (r % 8 == 0) {
            forget_key(w, k);
        } else if (r % 8 == 1) {
            read_key(w, k);
        } else {
            enum status st = put_value(w, k, len, 0, r % 5 == 0 ? clock_wall_ms() + 1000000 : 0);
            CHECK(st == ST_OK || st == ST_FULL || (st == ST_IO && p->spoilt));
            if (st != ST_OK)
                usleep(200);
        }
        pthread_rwlock_unlock(&flushing);
        if (r % 8192 == 3)
            flush_world(w);
        if (p->spoils && i % 500 == 0)
            atomic_store(&shim.fail, r % 4 == 0 ? SHIM_WRITE | SHIM_SYNC : 0);
    }
    return NULL;
}

static void test_interleaved(void **state)
{
    static const struct {
        enum disk_retain retain;
        bool thorough;
    } modes[] = {
        {DISK_RETAIN_ALL, true}, {DISK_RETAIN_HOT, true}, {DISK_RETAIN_PERSISTENT, true}, {DISK_RETAIN_HOT, false}};
    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        struct world *w = clean_world(i % 2 ? 16000 : 5000, modes[i % 4].retain, modes[i % 4].thorough);
        struct player p[2];
        bool spoilt = i >= 4;
        w->retry_us = 5000;
        world_open(w);
        for (int round = 0; round < (spoilt ? 1 : 2); round++) {
            for (unsigned j = 0; j < 2; j++) {
                p[j] = (struct player){.w = w,
                                       .seed = i * 10 + j + (unsigned)round * 100,
                                       .ops = 12000,
                                       .spoilt = spoilt,
                                       .spoils = spoilt && j == 0};
                CHECK(pthread_create(&p[j].thread, NULL, play, &p[j]) == 0);
            }
            for (unsigned j = 0; j < 2; j++)
                pthread_join(p[j].thread, NULL);
            atomic_store(&shim.fail, 0);
            wait_healthy(w, true);
            sync_ok(w);
            assert_true(spoilt || file_size(w) <= QUOTA + QUOTA / 2);
            reopen_same(w);
        }
        if (modes[i % 4].retain == DISK_RETAIN_ALL)
            assert_int_equal(atomic_load(&w->dropped), 0);
        assert_true(spoilt == (atomic_load(&w->failed) != 0));
        world_free(w);
    }
}

/* ---- crash ---- */

#define CRASH_KEYS 4000u

struct ledger {                                              /* shared with the child */
    _Atomic uint32_t issued[CRASH_KEYS], synced[CRASH_KEYS]; /* version * 2 + (1: tombstone) */
    _Atomic uint32_t rounds;
};

static struct ledger *ledger_map(const char *dir)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/ledger", dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct ledger)) == 0);
    struct ledger *log = mmap(NULL, sizeof(*log), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(log != MAP_FAILED);
    close(fd);
    return log;
}

static struct world *crash_world(void)
{
    return clean_world(CRASH_KEYS, DISK_RETAIN_ALL, true); /* of 1 KB: half the quota */
}

static int crash_child(const char *dir, uint64_t seed)
{
    struct world *w = crash_world();
    rmdir(w->dir);
    snprintf(w->dir, sizeof(w->dir), "%s", dir);
    world_open(w);
    struct ledger *log = ledger_map(dir);
    for (uint32_t k = 0; k < CRASH_KEYS; k++) { /* from here on what counts is what survived */
        struct get g;
        uint32_t version = log->issued[k] / 2, v = get_version(w, k, true, &g);
        w->keys[k] = (struct entry){.version = version, .on_disk = v};
        uint32_t is = v ? v * 2 : version * 2 + 1;
        atomic_store(&log->synced[k], is);
        atomic_store(&log->issued[k], is);
    }
    for (;;) {
        static uint32_t snap[CRASH_KEYS];
        for (uint32_t n = 500 + (uint32_t)(rng_next(&seed) % 1500); n > 0; n--) {
            uint32_t k = (uint32_t)(rng_next(&seed) % CRASH_KEYS);
            if (rng_next(&seed) % 8 == 0) {
                atomic_store(&log->issued[k], w->keys[k].version * 2 + 1);
                forget_key(w, k);
                continue;
            }
            while (put_value(w, k, 600 + rng_next(&seed) % 800, 0, 0) == ST_FULL) {
                /* the refused one has ended the older */
                atomic_store(&log->issued[k], w->keys[k].version * 2 + 1);
                usleep(500);
            }
            atomic_store(&log->issued[k], w->keys[k].version * 2);
        }
        for (uint32_t k = 0; k < CRASH_KEYS; k++)
            snap[k] = log->issued[k];
        if (disk_sync(w->disk, 10000) != ST_OK || atomic_load(&w->dropped) != 0)
            _exit(3);
        for (uint32_t k = 0; k < CRASH_KEYS; k++)
            atomic_store(&log->synced[k], snap[k]);
        atomic_fetch_add(&log->rounds, 1);
    }
}

static void crash_check(struct world *w, const struct ledger *log)
{
    struct get g;
    for (uint32_t k = 0; k < CRASH_KEYS; k++) {
        uint32_t issued = log->issued[k], synced = log->synced[k], v = get_version(w, k, true, &g);
        /* The put that was under way may be there, and is not noted. */
        if (v != 0)
            CHECK(v * 2 >= synced && v * 2 <= issued + 3);
        else if (issued == synced)
            CHECK(issued == 0 || (issued & 1) || log->rounds == 0);
    }
}

static void test_crash(void **state)
{
    (void)state;
    struct world *w = crash_world();
    struct ledger *log = ledger_map(w->dir);
    uint64_t seed = 11;
    for (int i = 0; i < 10; i++) {
        char arg[32];
        uint32_t rounds = log->rounds;
        snprintf(arg, sizeof(arg), "%llu", (unsigned long long)rng_next(&seed));
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            execl("/proc/self/exe", "test_disk_clean", "--crash-child", w->dir, arg, (char *)NULL);
            _exit(4);
        }
        for (int ms = 0; ms < 60000 && log->rounds < rounds + 10; ms++)
            usleep(1000); /* the quota is reached, and cleaning is at work */
        usleep((useconds_t)(rng_next(&seed) % 200000));
        int wstatus;
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, &wstatus, 0) == pid);
        CHECK(WIFSIGNALED(wstatus) && WTERMSIG(wstatus) == SIGKILL);
        assert_true(log->rounds >= rounds + 10);
        world_open(w);
        crash_check(w, log);
        disk_close(w->disk);
        w->disk = NULL;
        assert_true(file_size(w) <= QUOTA + 2 * MB);
    }
    munmap(log, sizeof(*log));
    world_free(w);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--crash-child") == 0)
        return crash_child(argv[2], strtoull(argv[3], NULL, 10));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overwrites),    cmocka_unit_test(test_full),     cmocka_unit_test(test_must),
        cmocka_unit_test(test_persistent),    cmocka_unit_test(test_keep),     cmocka_unit_test(test_keep_all),
        cmocka_unit_test(test_second_chance), cmocka_unit_test(test_all_read), cmocka_unit_test(test_plain_garbage),
        cmocka_unit_test(test_names),         cmocka_unit_test(test_expired),  cmocka_unit_test(test_shrink),
        cmocka_unit_test(test_live_bytes),    cmocka_unit_test(test_tail),     cmocka_unit_test(test_interleaved),
        cmocka_unit_test(test_crash),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
