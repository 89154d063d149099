#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/stats.h"

static void test_sum_over_blocks(void **state)
{
    (void)state;
    struct stats_block *a = stats_block_create(), *b = stats_block_create();
    assert_ptr_not_equal(a, b);
    assert_int_equal((uintptr_t)a % 64, 0);
    assert_int_equal((uintptr_t)b % 64, 0);
    uint64_t before = stats_sum(STAT_keyspace_hits);
    stats_inc(a, STAT_keyspace_hits);
    stats_add(b, STAT_keyspace_hits, 41);
    assert_int_equal(stats_sum(STAT_keyspace_hits) - before, 42);
    assert_int_equal(stats_sum(STAT_keyspace_misses), 0);
}

static void test_reset_keeps_gauges(void **state)
{
    (void)state;
    struct stats_block *a = stats_block_create(), *b = stats_block_create();
    stats_add(a, STAT_expired_keys, 7);
    stats_add(a, STAT_connected_clients, 3);
    stats_reset();
    assert_int_equal(stats_sum(STAT_expired_keys), 0);
    assert_int_equal(stats_sum(STAT_connected_clients), 3);
    stats_inc(a, STAT_expired_keys);
    assert_int_equal(stats_sum(STAT_expired_keys), 1);
    /* A client accepted by one thread may be counted out by another. */
    stats_add(b, STAT_connected_clients, (uint64_t)-3);
    assert_int_equal(stats_sum(STAT_connected_clients), 0);
    stats_add(b, STAT_connected_clients, (uint64_t)-1);
    assert_int_equal(stats_sum(STAT_connected_clients), 0);
    stats_add(a, STAT_connected_clients, 1);
}

static uint64_t hist_count(enum stats_hist_id h, uint64_t *us)
{
    struct stats_hist_sum sum;
    uint64_t n = 0;
    stats_hist_sum(h, &sum);
    for (int i = 0; i < STATS_HIST_BUCKETS; i++)
        n += sum.bucket[i];
    *us = sum.us;
    return n;
}

static void test_durations(void **state)
{
    (void)state;
    static const struct {
        int64_t us;
        int bucket;
    } cases[] = {{-1, 0}, {0, 0}, {1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {1024, 10}, {1025, 11}, {INT64_MAX, 31}};
    struct stats_block *a = stats_block_create(), *b = stats_block_create();
    uint64_t us;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(stats_hist_bucket(cases[i].us), cases[i].bucket);
    stats_time(a, HIST_disk, 100);
    stats_time(b, HIST_disk, 28);
    stats_time(b, HIST_disk, -5); /* a clock that went back: counted, and adds nothing */
    assert_int_equal(hist_count(HIST_disk, &us), 3);
    assert_int_equal(us, 128);
    assert_int_equal(hist_count(HIST_upstream, &us), 0);
    stats_reset();
    assert_int_equal(hist_count(HIST_disk, &us), 0);
    assert_int_equal(us, 0);
    stats_time(a, HIST_disk, 7);
    assert_int_equal(hist_count(HIST_disk, &us), 1);
    assert_int_equal(us, 7);
    for (int h = 0; h < HIST_COUNT; h++)
        assert_true(strncmp(stats_hist_row((enum stats_hist_id)h)->metric, "tiercel_", 8) == 0);
}

static void test_rows(void **state)
{
    (void)state;
    for (int s = 0; s < STAT_COUNT; s++) {
        assert_true(strlen(stats_name((enum stats_id)s)) > 0);
        assert_true(strlen(stats_help((enum stats_id)s)) > 0);
        const char *metric = stats_metric((enum stats_id)s);
        if (metric[0] == '\0')
            continue;
        assert_true(strncmp(metric, "redis_", 6) == 0 || strncmp(metric, "tiercel_", 8) == 0);
        size_t len = strlen(metric);
        assert_int_equal(len > 6 && strcmp(metric + len - 6, "_total") == 0, !stats_is_gauge((enum stats_id)s));
        for (int t = 0; t < s; t++)
            assert_string_not_equal(metric, stats_metric((enum stats_id)t));
    }
    assert_string_equal(stats_name(STAT_keyspace_hits), "keyspace_hits");
    assert_true(stats_is_gauge(STAT_blocked_clients));
}

#define THREADS 8
#define ROUNDS 50000

static void *count(void *arg)
{
    struct stats_block *b = stats_block_create();
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        stats_inc(b, STAT_total_commands_processed);
        if (i % 1000 == 0)
            (void)stats_sum(STAT_total_commands_processed);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    stats_reset();
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, count, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(stats_sum(STAT_total_commands_processed), THREADS * ROUNDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_over_blocks), cmocka_unit_test(test_reset_keeps_gauges),
        cmocka_unit_test(test_durations),       cmocka_unit_test(test_rows),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
