/* The disk tier: its index, values of all sizes, the order of events, quota, expiry. */
#include "disk_shim.h"
#include "disk_world.h"

/* ---- index ---- */

static int compare_tag(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void index_agrees(const struct index_shard *s, const uint32_t *ref, const uint64_t *tags, size_t n)
{
    size_t pos = 0, count = 0, at = 0;
    uint64_t tag, *sorted = calloc(n, sizeof(*sorted));
    for (size_t i = 0; i < n; i++)
        if (ref[i] != 0)
            sorted[count++] = tags[i];
    qsort(sorted, count, sizeof(*sorted), compare_tag);
    uint32_t place;
    while (index_next(s, &pos, &tag, &place)) {
        assert_true(at < count);
        assert_true(tag == sorted[at]);
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
    static const size_t lens[] = {12,    13,    100,   1000,  2010,  2030,  2100,  4096,   16000,
                                  32700, 32768, 32769, 65000, 65519, 65520, 65521, 100000, 1000000};
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
        assert_true(find_block(w, g.rd.key.hash, &g.rd.block));
        disk_read_now(w->disk, &g.rd);
        assert_int_equal(g.st, ST_OK);
        assert_string_equal(g.name, name);
    }
    /* a block that never was, and one that has another key */
    g.rd.block += 1000;
    disk_read_now(w->disk, &g.rd);
    assert_int_equal(g.st, ST_NOT_FOUND);
    g.rd.key = world_key(w, 1, g.name);
    assert_true(find_block(w, g.rd.key.hash, &g.rd.block));
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

#define NEVER_MS 10000000 /* commits come when they are asked for */

static void test_pending(void **state)
{
    (void)state;
    struct world *w = world_new(4);
    struct disk_slot slot;
    uint64_t next;
    bool pending;
    w->opt.commit_ms = NEVER_MS;
    world_open(w);
    assert_int_equal(key_block(w, 0, &pending), 0);
    put_value(w, 0, 100, 0, 0);
    uint32_t first = key_block(w, 0, &pending);
    assert_true(first != 0 && pending);
    unsigned shard = (unsigned)(w->hashes[0] >> (64 - SHARD_BITS));
    assert_int_equal(disk_scan_locked(w->disk, shard, w->hashes[0], w->hashes[0], &slot, 1, &next), 1);
    assert_int_equal(slot.block, first);
    sync_ok(w);
    assert_true(key_block(w, 0, &pending) == first && !pending);
    /* a newer one: the older is not to be had any more, though it is in the file */
    put_value(w, 0, 100, 0, 0);
    assert_true(key_block(w, 0, &pending) != first && pending);
    assert_int_equal(key_block(w, 1, &pending), 0);
    forget_key(w, 0);
    assert_int_equal(key_block(w, 0, &pending), 0);
    put_value(w, 1, 100, 0, 0);
    put_value(w, 2, 50000, 12, 0);
    world_reopen(w);
    check_all(w);
    assert_true(w->keys[1].on_disk == 1 && w->keys[2].on_disk == 1 && w->keys[0].on_disk == 0);
    /* an append that is refused leaves the older slot */
    struct disk_record rec = {.key = {.hash = w->hashes[1], .ptr = "key:1", .len = 5}, .incarnation = world_inc(w)};
    rec.payload = SLICE("x", (size_t)3 << 30);
    assert_int_equal(disk_append_locked(w->disk, &rec), ST_TOO_LARGE);
    assert_true(key_block(w, 1, &pending) != 0 && !pending);
    world_free(w);
}

/* Where all records of a block were replaced within its batch, its data is not written; but it
 * still ends what is older. */
static void test_overwrites(void **state)
{
    (void)state;
    struct world *w = world_new(64);
    struct disk_stats before, after;
    w->opt.commit_ms = NEVER_MS;
    w->opt.commit_bytes = w->opt.queue_max_bytes = 16 * MB;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 1000, 0, 0);
    sync_ok(w);
    disk_get_stats(w->disk, &before);
    for (uint32_t i = 0; i < 64 * 100; i++) /* 6.4 MB */
        put_value(w, i % w->nkeys, 1000, 0, 0);
    for (uint32_t k = 0; k < 8; k++)
        forget_key(w, k);
    sync_ok(w);
    disk_get_stats(w->disk, &after);
    assert_true(after.written_bytes - before.written_bytes < MB);
    assert_true(after.block_bytes < before.block_bytes + 4 * 65536);
    check_all(w);
    world_reopen(w);
    check_all(w);
    assert_int_equal(w->keys[0].on_disk, 0);
    assert_int_equal(w->keys[8].on_disk, 101);
    /* not so when what replaced them is in a later batch */
    w->opt.commit_bytes = 128 * 1024;
    world_reopen(w);
    for (uint32_t i = 0; i < 64 * 20; i++)
        put_value(w, i % w->nkeys, 1000, 0, 0);
    world_reopen(w);
    check_all(w);
    world_free(w);
}

/* A block all of whose records were replaced stays until what replaced them is on disk. */
static void test_dead_block_stays(void **state)
{
    (void)state;
    struct world *w = world_new(2000);
    struct world *images[32];
    struct get g;
    int n = 0;
    w->opt.commit_bytes = 128 * 1024;
    world_open(w);
    for (uint32_t k = 0; k < 50; k++)
        put_value(w, k, 1000, 0, 0);
    sync_ok(w);
    shim_close_gate();
    for (uint32_t k = 100; k < 1200; k++) /* some commits' worth */
        put_value(w, k, 1000, 0, 0);
    for (uint32_t k = 0; k < 50; k++)
        put_value(w, k, 1000, 0, 0);
    disk_hurry(w->disk);
    while (disk_settled_event(w->disk) != disk_last_event(w->disk)) {
        if (!atomic_load(&shim.at_gate)) {
            usleep(100);
            continue;
        }
        assert_true(n < 32);
        images[n++] = world_image(w);
        shim_step();
    }
    shim_open_gate();
    assert_true(n > 2);
    while (n-- > 0) {
        world_open(images[n]);
        for (uint32_t k = 0; k < 50; k++) {
            uint32_t version = get_version(images[n], k, true, &g);
            assert_true(version == 1 || version == 2);
        }
        world_free(images[n]);
    }
    sync_ok(w);
    check_all(w);
    world_free(w);
}

static void test_written(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    struct get g;
    world_open(w);
    uint32_t from = (uint32_t)(clock_wall_ms() / 1000);
    put_value(w, 0, 100, 0, 0);
    sync_ok(w);
    uint32_t to = (uint32_t)(clock_wall_ms() / 1000);
    assert_int_equal(get_version(w, 0, true, &g), 1);
    uint32_t at = g.written_s;
    assert_true(at >= from && at <= to && g.block == g.rd.block);
    usleep(1100000);
    world_reopen(w);
    assert_int_equal(get_version(w, 0, false, &g), 1);
    assert_int_equal(g.written_s, at);
    world_free(w);
}

static void test_must(void **state)
{
    (void)state;
    struct world *w = world_new(3000);
    w->opt.commit_ms = NEVER_MS;
    w->opt.commit_bytes = w->opt.queue_max_bytes = MB;
    w->opt.max_bytes = 8 * MB;
    world_open(w);
    uint32_t k = 0;
    shim_close_gate(); /* the commit that the full queue starts */
    while (put_value(w, k, 1000, 0, 0) == ST_OK)
        k++;
    assert_true(k > 900 && k < 1100);
    for (uint32_t i = 0; i < 500; i++)
        assert_int_equal(put_record(w, k + i, 1000, 0, 0, true), ST_OK);
    assert_int_equal(put_value(w, 0, 1000, 0, 0), ST_FULL);
    assert_int_equal(w->keys[0].on_disk, 0);
    assert_int_equal(atomic_load(&w->rooms), 0);
    shim_open_gate();
    sync_ok(w);
    for (int i = 0; i < 500 && atomic_load(&w->rooms) == 0; i++)
        usleep(1000);
    assert_int_equal(atomic_load(&w->rooms), 1);
    assert_int_equal(put_value(w, 0, 1000, 0, 0), ST_OK);
    sync_ok(w);
    check_all(w);
    world_free(w);
}

/* ---- events and groups ---- */

static void test_settled(void **state)
{
    (void)state;
    struct world *w = world_new(100);
    w->opt.commit_ms = NEVER_MS;
    world_open(w);
    assert_int_equal(disk_last_event(w->disk), 0);
    for (uint32_t k = 0; k < 10; k++) {
        put_value(w, k, 100, 0, 0);
        assert_int_equal(disk_last_event(w->disk), k + 1);
    }
    forget_key(w, 0);
    forget_key(w, 50); /* had none: no event */
    assert_int_equal(disk_last_event(w->disk), 11);
    assert_int_equal(disk_settled_event(w->disk), 0);
    shim_close_gate();
    disk_hurry(w->disk);
    shim_wait_gate();
    put_value(w, 20, 100, 0, 0); /* while the others are being committed */
    assert_int_equal(atomic_load(&w->settled), 0);
    shim_open_gate();
    wait_settled(w, 11);
    assert_int_equal(atomic_load(&w->published), 10);
    assert_true(disk_settled_event(w->disk) == 11 && w->keys[1].on_disk == 1 && w->keys[20].pending == 1);
    disk_set_incarnation(w->disk, 3, 77);
    assert_int_equal(disk_last_event(w->disk), 13);
    sync_ok(w);
    wait_settled(w, 13);
    assert_int_equal(atomic_load(&w->settled_bad), 0);
    world_free(w);
}

static void *begin_group(void *arg)
{
    struct world *w = arg;
    disk_group_begin(w->disk);
    atomic_fetch_add(&w->rooms, 1);
    put_value(w, 2999, 100, 0, 0);
    disk_group_end(w->disk);
    return NULL;
}

static void test_group(void **state)
{
    (void)state;
    struct world *w = world_new(3000);
    pthread_t other;
    w->opt.commit_bytes = 128 * 1024; /* a group takes more */
    w->opt.commit_ms = 1;
    world_open(w);
    disk_group_begin(w->disk);
    for (uint32_t k = 0; k < 1000; k++)
        assert_int_equal(put_value(w, k, 1000, 0, 0), ST_OK);
    usleep(50000);
    assert_int_equal(commits(w), 0);
    /* the writer waits for the group, others that would begin one wait for the writer */
    pthread_create(&other, NULL, begin_group, w);
    usleep(50000);
    assert_int_equal(atomic_load(&w->rooms), 0);
    for (uint32_t k = 1000; k < 1500; k++)
        put_value(w, k, 1000, 0, 0);
    assert_int_equal(disk_settled_event(w->disk), 0);
    disk_group_end(w->disk);
    pthread_join(other, NULL);
    assert_int_equal(atomic_load(&w->rooms), 1);
    sync_ok(w);
    assert_true(commits(w) <= 2);
    check_all(w);
    /* without a group it takes several */
    uint64_t before = commits(w);
    for (uint32_t k = 0; k < 1500; k++)
        put_value(w, k, 1000, 0, 0);
    sync_ok(w);
    assert_true(commits(w) > before + 3);
    world_free(w);
}

/* ---- records carried forward ---- */

enum { KEPT, WRITTEN, DELETED, DROPPED, FLUSHED, HAPPENINGS };
enum { BEFORE, DURING, AFTER, MOMENTS }; /* the commit of the carried record */

static void happen(struct world *w, uint32_t k, int what, uint32_t block)
{
    pthread_mutex_t *m;
    switch (what) {
    case WRITTEN: put_value(w, k, 200, 0, 0); break;
    case DELETED: forget_key(w, k); break;
    case DROPPED: /* it expired, or a read found it damaged */
        m = world_lock(w, w->hashes[k]);
        assert_true(disk_drop_locked(w->disk, w->hashes[k], block));
        w->keys[k].on_disk = 0;
        pthread_mutex_unlock(m);
        break;
    case FLUSHED: disk_set_incarnation(w->disk, 0, 4711); break;
    default: break;
    }
}

static void carry_case(int what, int moment, size_t len, bool clean_stop)
{
    struct world *w = world_new(3);
    bool pending;
    struct get g;
    w->opt.commit_ms = NEVER_MS;
    world_open(w);
    for (uint32_t k = 0; k < 3; k++)
        put_value(w, k, k == 1 ? len : 100, 0, 0);
    sync_ok(w);
    uint64_t reported = atomic_load(&w->published);
    uint32_t from = key_block(w, 1, &pending);
    assert_true(carry_key(w, 1));
    assert_true(key_block(w, 1, &pending) == from && !pending);
    if (moment == BEFORE)
        happen(w, 1, what, from);
    if (moment == DURING) {
        shim_close_gate();
        disk_hurry(w->disk);
        shim_wait_gate();
        happen(w, 1, what, from);
        shim_open_gate();
    }
    sync_ok(w);
    if (what == KEPT || moment == AFTER) {
        assert_true(key_block(w, 1, &pending) > from && !pending);
        assert_int_equal(block_meta(w->disk, from)->live, from == key_block(w, 0, &pending) ? 2 : 0);
        assert_int_equal(get_version(w, 1, true, &g), 1);
        assert_int_equal(atomic_load(&w->published), reported);
    }
    if (moment == AFTER)
        happen(w, 1, what, key_block(w, 1, &pending));
    sync_ok(w);
    assert_int_equal(w->keys[1].on_disk, what == KEPT || what == FLUSHED ? 1 : what == WRITTEN ? 2 : 0);
    if (!clean_stop) {
        struct world *v = world_image(w);
        world_free(w);
        w = v;
        world_open(w);
    } else if (what != DROPPED || moment != AFTER) { /* a drop has no tombstone: its block has to go */
        world_reopen(w);
    }
    if (what == FLUSHED) {
        assert_int_equal(world_inc(w), 4711);
        assert_int_equal(key_block(w, 1, &pending), 0);
    } else if (what != DROPPED || moment != AFTER) {
        check_all(w);
    }
    world_free(w);
}

static void test_carry(void **state)
{
    (void)state;
    for (int what = 0; what < HAPPENINGS; what++)
        for (int moment = 0; moment < MOMENTS; moment++) {
            carry_case(what, moment, 100, true);
            carry_case(what, moment, 40000, false);
            carry_case(what, moment, 70000, what % 2);
        }
}

/* A slot that names another block is not carried; many at once; expiry goes with them. */
static void test_carry_many(void **state)
{
    (void)state;
    struct world *w = world_new(3000);
    struct disk_stats st;
    struct get g;
    int64_t expire = clock_wall_ms() + 1000000;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 200, 0, k % 2 ? expire : 0);
    sync_ok(w);
    put_value(w, 0, 200, 0, 0);
    assert_false(carry_key(w, 0)); /* pending */
    assert_false(queue_carry_locked(w->disk, w->hashes[1], w->disk->committed_head + 1, "", 0, 1, 0));
    for (uint32_t k = 1; k < w->nkeys; k += 3)
        assert_true(carry_key(w, k));
    sync_ok(w);
    disk_get_stats(w->disk, &st);
    assert_true(st.carried_keys == 1000 && st.carried_bytes > 200000 && st.appends == 3001 && st.keys == 3000);
    check_all(w);
    world_reopen(w);
    check_all(w);
    for (uint32_t k = 0; k < w->nkeys; k++) {
        get_version(w, k, true, &g);
        assert_int_equal(g.expire_ms, k % 2 ? expire : 0);
    }
    int64_t keys, expires;
    disk_loaded_keys(w->disk, 0, &keys, &expires);
    assert_true(keys == 3000 && expires == 1500);
    world_free(w);
}

/* A key of database 2. */
static uint64_t put_other(struct world *w, uint32_t k, int64_t expire_ms)
{
    char name[32];
    int len = snprintf(name, sizeof(name), "other:%u", k);
    uint32_t inc = disk_incarnation(w->disk, 2);
    uint64_t hash = hash_key(disk_hash_seed(w->disk), inc, SLICE(name, (size_t)len));
    struct disk_record rec = {.key = {.ptr = name, .len = (uint32_t)len, .hash = hash},
                              .incarnation = inc,
                              .type = OBJ_STRING,
                              .expire_ms = expire_ms,
                              .payload = {"x", 1}};
    pthread_mutex_t *m = world_lock(w, hash);
    assert_int_equal(disk_append_locked(w->disk, &rec), ST_OK);
    pthread_mutex_unlock(m);
    return hash;
}

/* A flush is on disk together with what was called before it, or later. */
static void test_flush_order(void **state)
{
    (void)state;
    struct world *w = world_new(2000);
    struct world *images[32];
    int n = 0, after = 0;
    w->opt.commit_bytes = 128 * 1024;
    world_open(w);
    shim_close_gate();
    for (uint32_t k = 0; k < 1000; k++)
        put_value(w, k, 1000, 0, 0);
    uint64_t hash = put_other(w, 1, 0);
    disk_set_incarnation(w->disk, 0, 4711);
    while (disk_settled_event(w->disk) != disk_last_event(w->disk)) {
        if (!atomic_load(&shim.at_gate)) {
            usleep(100);
            continue;
        }
        assert_true(n < 31);
        images[n++] = world_image(w);
        shim_step();
    }
    shim_open_gate();
    images[n++] = world_image(w);
    while (n-- > 0) {
        struct world *v = images[n];
        world_open(v);
        bool flushed = world_inc(v) == 4711;
        assert_true(flushed == find_block(v, hash, &(uint32_t){0}));
        after += flushed;
        world_free(v);
    }
    assert_true(after == 1);
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
    for (uint32_t k = 0; k < 100; k++) {
        put_other(w, k, k % 2 ? clock_wall_ms() + 1000000 : 0);
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
    w->opt.retain = DISK_RETAIN_ALL;
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

int main(void)
{
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
        cmocka_unit_test(test_pending),
        cmocka_unit_test(test_overwrites),
        cmocka_unit_test(test_dead_block_stays),
        cmocka_unit_test(test_flush_order),
        cmocka_unit_test(test_written),
        cmocka_unit_test(test_must),
        cmocka_unit_test(test_settled),
        cmocka_unit_test(test_group),
        cmocka_unit_test(test_carry),
        cmocka_unit_test(test_carry_many),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
