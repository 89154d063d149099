/* What leaves memory: samples, the pool of candidates, and maxmemory-policy adaptive. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <uv.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/codec.h"
#include "tiercel/hash.h"
#include "tier/tier_priv.h"

#define WORKERS 3
#define START_MS 1700000000000

static struct mem *mem;
static struct tier *tier;
static struct conf *conf;
static struct {
    struct worker w;
    uv_loop_t loop;
} worker[WORKERS];
static struct worker *w; /* the first */
static int64_t object_size;

static struct conf *default_conf(void)
{
    char name[] = "tiercel";
    char *argv[] = {name, NULL}, *envp[] = {NULL};
    struct conf *c = NULL;
    struct buf err;
    bool exit_now;

    buf_init(&err, MEM_OTHER);
    CHECK(conf_load(1, argv, envp, &c, &exit_now, &err) == ST_OK && c);
    buf_deinit(&err);
    return c;
}

static void open_tier(unsigned shard_bits, int policy, int samples)
{
    conf = default_conf();
    conf->maxmemory = 0;
    conf->maxmemory_policy = policy;
    conf->maxmemory_samples = samples;
    mem = mem_create(shard_bits, 1, 5, NULL);
    struct tier_options opt = {.mem = mem, .nworkers = WORKERS};
    tier = tier_create(&opt, conf);
    atomic_store(&tier->limit.maxmemory, 0);
    for (int i = 0; i < WORKERS; i++) {
        struct worker *x = &worker[i].w;
        memset(&worker[i], 0, sizeof(worker[i]));
        CHECK(uv_loop_init(&worker[i].loop) == 0);
        x->id = i;
        x->loop = &worker[i].loop;
        x->mbox = mbox_create(x->loop, x);
        x->stats = stats_block_create();
        x->codec = codec_create();
        x->conf = conf_ref(conf);
        x->now_ms = START_MS;
        x->rng = (uint64_t)i + 1;
        tier_worker_init(tier, x, NULL);
    }
    w = &worker[0].w;
}

static void close_tier(void)
{
    for (int i = 0; i < WORKERS; i++) {
        struct worker *x = &worker[i].w;
        tier_worker_stop(x);
        mbox_destroy(x->mbox);
        uv_run(&worker[i].loop, UV_RUN_DEFAULT);
        tier_worker_deinit(x);
        codec_destroy(x->codec);
        conf_unref(x->conf);
        CHECK(uv_loop_close(&worker[i].loop) == 0);
    }
    tier_destroy(tier);
    mem_destroy(mem);
    conf_unref(conf);
}

static struct key key_of(char name[16], uint32_t number)
{
    struct key k;
    snprintf(name, 16, "key:%010u", number);
    mem_key_init(mem, 0, SLICE(name, 14), &k);
    return k;
}

static int64_t count(void)
{
    return atomic_load(&mem->db[0].keys);
}

/* NULL: not in memory. Nobody else is at work. */
static struct object *look(uint32_t number)
{
    char name[16];
    struct key k = key_of(name, number);
    struct mem_shard *shard = mem_shard_of(mem, k.hash);
    mem_lock(shard);
    mem_slot *slot = mem_find_locked(mem, shard, &k);
    struct object *o = slot ? mem_object(*slot) : NULL;
    mem_unlock(shard);
    return o;
}

static int resident(uint32_t from, uint32_t to)
{
    int n = 0;
    for (; from < to; from++)
        n += look(from) != NULL;
    return n;
}

/* As a client that caches; memory holds `capacity` objects. true: a hit. */
static bool use_as(struct worker *x, uint32_t number, int64_t capacity)
{
    char name[16];
    struct key k = key_of(name, number);
    struct mem_shard *shard = mem_shard_of(mem, k.hash);
    struct tier_found found;

    mem_lock(shard);
    CHECK(tier_resolve_locked(x, shard, &k, TIER_VALUE, NULL, &found) == ST_OK);
    if (found.obj)
        tier_touch_locked(x, found.obj);
    mem_unlock(shard);
    if (found.obj)
        return true;
    int64_t n = count();
    if (n >= capacity) {
        atomic_store(&tier->limit.maxmemory, mem_class_bytes(MEM_DATA) - (n - capacity + 1) * object_size);
        CHECK(tier_make_room(x) != ST_PENDING);
    }
    struct object *o = object_new_string(&k, slice_str("value of"), 0, 0);
    if (object_size == 0)
        object_size = (int64_t)object_bytes(o);
    mem_lock(shard);
    tier_put_locked(x, shard, &k, o);
    mem_unlock(shard);
    return false;
}

static bool use(uint32_t number, int64_t capacity)
{
    return use_as(w, number, capacity);
}

/* ---- samples --------------------------------------------------------------------------------- */

static void test_few_objects_in_many_shards(void **state)
{
    (void)state;
    open_tier(10, POLICY_ALLKEYS_LRU, 10);
    for (uint32_t i = 0; i < 2000; i++) {
        w->now_ms += 40;
        use(i, 8);
        assert_true(count() <= 8);
    }
    assert_true(resident(1990, 2000) >= 5); /* nearly the latest eight */
    close_tier();
}

/* Every place of a bucket is sampled, also those behind the first five of eight. */
static void test_nobody_is_passed_over(void **state)
{
    (void)state;
    open_tier(2, POLICY_ALLKEYS_RANDOM, 5);
    for (uint32_t i = 0; i < 25 * 2000; i++)
        use(i, 2000);
    assert_int_equal(resident(0, 2000), 0);
    close_tier();
}

static void test_pool_forgets_what_was_used(void **state)
{
    (void)state;
    open_tier(2, POLICY_ALLKEYS_LRU, 64);
    for (uint32_t i = 0; i < 12; i++) {
        w->now_ms += 1000;
        use(i, 12);
    }
    w->now_ms += 1000;
    use(100, 12); /* the pool has all of them now, the oldest went */
    assert_null(look(0));
    assert_true(use(1, 12));
    use(101, 12);
    assert_non_null(look(1));
    assert_null(look(2));
    close_tier();
}

/* ---- adaptive ---------------------------------------------------------------------------------- */

static void test_a_scan_passes_by(void **state)
{
    (void)state;
    for (int policy = POLICY_ALLKEYS_LRU; policy <= POLICY_ADAPTIVE; policy += POLICY_ADAPTIVE - POLICY_ALLKEYS_LRU) {
        open_tier(4, policy, 10);
        for (int round = 0; round < 6; round++)
            for (uint32_t i = 0; i < 500; i++) {
                w->now_ms += 40;
                use(i, 1000);
            }
        for (uint32_t i = 10000; i < 30000; i++) {
            w->now_ms += 40;
            use(i, 1000);
        }
        int left = resident(0, 500);
        if (policy == POLICY_ADAPTIVE)
            assert_true(left > 450);
        else
            assert_true(left < 10);
        close_tier();
    }
}

static void test_a_ghost_returns_to_the_main_part(void **state)
{
    (void)state;
    open_tier(4, POLICY_ADAPTIVE, 10);
    uint32_t next = 0, gone = 0;
    for (; next < 1500; next++)
        use(next, 1000);
    while (look(gone))
        gone++;
    assert_true(gone < 1500);
    use(gone, 1000);
    assert_true(tier_policy_in_main(look(gone)));
    use(1000000, 1000);
    assert_false(tier_policy_in_main(look(1000000)));
    for (; next < 8000; next++)
        use(next, 1000);
    for (gone = 0; look(gone);)
        gone++;
    use(gone, 1000);
    assert_false(tier_policy_in_main(look(gone))); /* that is long ago */
    close_tier();
}

static void test_used_on_probation(void **state)
{
    (void)state;
    open_tier(4, POLICY_ADAPTIVE, 10);
    for (uint32_t i = 0; i < 1000; i++)
        use(i, 1000);
    for (uint32_t i = 0; i < 50; i++)
        for (int k = 0; k < 9; k++)
            assert_true(use(i, 1000));
    assert_int_equal(look(0)->access & 3, 3); /* saturated */
    assert_false(tier_policy_in_main(look(0)));
    for (uint32_t i = 1000; i < 3000; i++)
        use(i, 1000);
    assert_true(resident(0, 50) >= 48);
    int in_main = 0;
    for (uint32_t i = 0; i < 50; i++)
        in_main += look(i) && tier_policy_in_main(look(i));
    assert_true(in_main >= 45);
    close_tier();
}

/* All were used as often as can be counted: something goes all the same, after a bounded search. */
static void test_all_hot(void **state)
{
    (void)state;
    open_tier(4, POLICY_ADAPTIVE, 5);
    for (int round = 0; round < 5; round++)
        for (uint32_t i = 0; i < 5000; i++)
            use(i, 5000);
    for (uint32_t i = 5000; i < 15000; i++) {
        use(i, 5000);
        assert_true(count() <= 5000);
    }
    close_tier();
}

static void test_policy_changes(void **state)
{
    (void)state;
    static const int policies[] = {POLICY_ADAPTIVE, POLICY_ALLKEYS_LRU, POLICY_ALLKEYS_LFU};

    open_tier(4, POLICY_ALLKEYS_LFU, 5);
    for (uint32_t i = 0; i < 9000; i++) {
        if (i % 1000 == 0)
            atomic_store(&tier->limit.policy, policies[i / 1000 % 3]);
        use(i % 3 ? i : i / 7, 500);
        assert_true(count() <= 500);
    }
    close_tier();
}

static void *use_many(void *arg)
{
    struct worker *x = arg;

    for (int i = 0; i < 30000; i++) {
        uint64_t r = rng_next(&x->rng);
        use_as(x, (uint32_t)(r % 4 ? r >> 32 & 0x3ff : r >> 32 & 0xffff), 2000);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t thread[WORKERS];

    open_tier(6, POLICY_ADAPTIVE, 5);
    use(0, 2000); /* object_size is known */
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&thread[i], NULL, use_many, &worker[i].w) == 0);
    for (int i = 0; i < WORKERS; i++)
        pthread_join(thread[i], NULL);
    assert_true(count() < 2500);
    assert_true(resident(0, 1024) > 900);
    close_tier();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_few_objects_in_many_shards),
        cmocka_unit_test(test_nobody_is_passed_over),
        cmocka_unit_test(test_pool_forgets_what_was_used),
        cmocka_unit_test(test_a_scan_passes_by),
        cmocka_unit_test(test_a_ghost_returns_to_the_main_part),
        cmocka_unit_test(test_used_on_probation),
        cmocka_unit_test(test_all_hot),
        cmocka_unit_test(test_policy_changes),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
