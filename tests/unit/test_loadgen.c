/* tiercel-bench: histogram, replies, values, orders of keys, traces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <zstd.h>

#include "../../bench/loadgen/hist.h"
#include "../../bench/loadgen/keys.h"
#include "../../bench/loadgen/reply.h"
#include "../../bench/loadgen/trace.h"
#include "../../bench/loadgen/value.h"
#include "tiercel/hash.h"

/* ---- histogram ---- */

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Against the sorted values themselves, over seven orders of magnitude. */
static void test_percentiles(void **state)
{
    static uint64_t value[20000];
    static const double share[] = {0.001, 0.5, 0.9, 0.99, 0.999, 1};
    const size_t n = sizeof(value) / sizeof(value[0]);
    struct hist *h = calloc(1, sizeof(*h)), *half = calloc(2, sizeof(*half));
    uint64_t rng = 5, sum = 0;

    (void)state;
    for (size_t i = 0; i < n; i++) {
        value[i] = rng_next(&rng) >> (30 + rng_next(&rng) % 34);
        sum += value[i];
        hist_record(h, value[i]);
        hist_record(&half[i % 2], value[i]);
    }
    qsort(value, n, sizeof(value[0]), compare);
    hist_add(&half[0], &half[1]);
    assert_memory_equal(h, &half[0], sizeof(*h));
    assert_int_equal(h->count, n);
    assert_int_equal(h->sum, sum);
    assert_int_equal(h->min, value[0]);
    assert_int_equal(h->max, value[n - 1]);
    for (size_t i = 0; i < sizeof(share) / sizeof(share[0]); i++) {
        uint64_t got = hist_percentile(h, share[i]), exact = value[(size_t)(share[i] * (double)n + 0.5) - 1];
        assert_true(got >= exact && got <= exact + exact / HIST_SUB + 1);
    }
    free(h);
    free(half);
}

static void test_hist_limits(void **state)
{
    struct hist *h = calloc(3, sizeof(*h));

    (void)state;
    assert_int_equal(hist_percentile(h, 0.99), 0);
    for (unsigned shift = 0; shift < 64; shift++)
        assert_true(hist_index((uint64_t)1 << shift) < HIST_BUCKETS);
    assert_int_equal(hist_index(UINT64_MAX), HIST_BUCKETS - 1);
    for (uint64_t v = 1; v < 100000; v++) /* no gaps */
        assert_true(hist_index(v) == hist_index(v - 1) || hist_index(v) == hist_index(v - 1) + 1);
    hist_record(h, 1000);
    h[1] = h[0];
    hist_record(h, 70);
    hist_since(&h[2], &h[0], &h[1]);
    assert_int_equal(h[2].count, 1);
    assert_int_equal(h[2].max, 70);
    free(h);
}

/* ---- replies ---- */

/* What `in` says, read in pieces of `step` bytes: a letter for each value's kind, texts, '.' behind a reply. */
static void parse_all(const char *in, size_t step, char *out)
{
    struct reply_parser p;
    struct reply_event ev;
    size_t len = strlen(in);

    memset(&p, 0, sizeof(p));
    *out = '\0';
    for (size_t at = 0; at < len; at += step) {
        size_t n = len - at < step ? len - at : step;
        char *piece = malloc(n); /* of its own, so that reading on is seen */
        memcpy(piece, in + at, n);
        struct slice rest = SLICE(piece, n);
        enum reply_rc rc;
        while ((rc = reply_parse(&p, &rest, &ev)) == REPLY_OK) {
            char *end = out + strlen(out);
            if (ev.kind != REPLY_ARRAY)
                end += snprintf(end, 100, "%.*s", SLICE_FMT(ev.data));
            if (ev.last)
                end += snprintf(end, 2, "%c", "seibna"[ev.kind]);
            if (ev.end)
                memcpy(end, ".", 2);
        }
        free(piece);
        if (rc == REPLY_BAD) {
            memcpy(out + strlen(out), "!", 2);
            return;
        }
        assert_int_equal(rest.len, 0);
    }
}

static void test_replies(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"+OK\r\n-ERR no\r\n:12\r\n", "OKs.ERR noe.12i."},
        {"$5\r\nhello\r\n$0\r\n\r\n$-1\r\n", "hellob.b.-1n."},
        {"*3\r\n$1\r\na\r\n$-1\r\n*2\r\n:1\r\n:2\r\n+x\r\n", "aab-1na1i2i.xs."},
        {"*0\r\n*-1\r\n$2\r\n\r\n\r\n", "a.-1n.\r\nb."},
        {"hello\r\n", "!"},
        {"$x\r\n", "!"},
        {"$0\r\nab", "!"},
        {"\r\n", "!"},
    };
    char out[256];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (size_t step = 1; step < 40; step++) {
            parse_all(cases[i].in, step, out);
            assert_string_equal(out, cases[i].out);
        }
    }
}

/* ---- values ---- */

static void test_values(void **state)
{
    static char value[300000], scratch[300000], other[300000];
    static const size_t size[] = {0, 1, 7, 8, 9, 64, 100, 200, 1024, 4095, 300000};
    struct slice key = SLICE_LIT("key:000000000012"), foreign = SLICE_LIT("key:000000000013");

    (void)state;
    for (int kind = VALUE_RANDOM; kind <= VALUE_JSON; kind++) {
        struct value_source *v = value_source_create((enum value_kind)kind);
        for (size_t i = 0; i < sizeof(size) / sizeof(size[0]); i++) {
            struct slice s = SLICE(value, size[i]);
            value_write(v, value, s.len, key, 7);
            assert_null(value_check(v, s, key, scratch));
            value_write(v, other, s.len, key, 8);
            assert_int_equal(s.len >= VALUE_TAG, memcmp(value, other, s.len) != 0);
            assert_null(value_check(v, SLICE(other, s.len), key, scratch));
            if (s.len < VALUE_TAG)
                continue;
            assert_non_null(value_check(v, s, foreign, scratch));
            assert_non_null(value_check(v, SLICE(value, s.len - 1), key, scratch));
            value[s.len - 1] ^= 1;
            assert_non_null(value_check(v, s, key, scratch));
        }
        value_source_destroy(v);
    }
}

static size_t compressed(const char *ptr, size_t len)
{
    static char to[2 << 20];
    size_t n = ZSTD_compress(to, sizeof(to), ptr, len, 3);
    assert_false(ZSTD_isError(n));
    return n;
}

/* Also over many values together, as a block of a disk tier would be. */
static void test_values_compress_as_said(void **state)
{
    static char all[1 << 20];

    (void)state;
    for (int kind = VALUE_RANDOM; kind <= VALUE_JSON; kind++) {
        struct value_source *v = value_source_create((enum value_kind)kind);
        for (size_t i = 0; i < sizeof(all) / 1024; i++) {
            char name[17];
            snprintf(name, sizeof(name), "key:%012zu", i);
            value_write(v, all + i * 1024, 1024, SLICE(name, 16), (uint32_t)i);
        }
        assert_int_equal(compressed(all, 1024) < 700, kind == VALUE_JSON);
        assert_int_equal(compressed(all, sizeof(all)) < sizeof(all) * 9 / 10, kind == VALUE_JSON);
        value_write(v, all, sizeof(all), SLICE_LIT("k"), 1);
        assert_int_equal(compressed(all, sizeof(all)) < sizeof(all) * 9 / 10, kind == VALUE_JSON);
        value_source_destroy(v);
    }
}

static void test_sizes(void **state)
{
    struct value_sizes s;
    unsigned small = 0;

    (void)state;
    assert_true(value_sizes_parse("1kb", &s) && s.min == 1024 && value_size(&s, 5) == 1024);
    assert_true(value_sizes_parse("10-20", &s) && s.min == 10 && s.max == 20);
    for (uint64_t hash = 0; hash < 1000; hash++)
        assert_true(value_size(&s, hash) >= 10 && value_size(&s, hash) <= 20);
    assert_true(value_sizes_parse("64:3,1kb:1", &s) && s.min == 64 && s.max == 1024);
    for (uint64_t hash = 0; hash < 10000; hash++)
        small += value_size(&s, hash) == 64;
    assert_in_range(small, 7200, 7800);
    static const char *const bad[] = {"", "x", "20-10", "1-", "-1", "64:0", "64:1,", ":1", "64:1,7", "1gb"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(value_sizes_parse(bad[i], &s));
}

/* ---- keys ---- */

static void test_sequential(void **state)
{
    bool seen[103] = {false};
    struct key_source k;

    (void)state;
    for (unsigned part = 0; part < 4; part++) {
        keys_init(&k, KEYS_SEQUENTIAL, 103, 0, 1, part, 4);
        while (!keys_exhausted(&k)) {
            uint64_t id = keys_next(&k);
            assert_true(id < 103 && !seen[id]);
            seen[id] = true;
        }
    }
    for (unsigned i = 0; i < 103; i++)
        assert_true(seen[i]);
    for (unsigned part = 0; part < 3; part++) { /* more threads than keys; and on beyond the end */
        keys_init(&k, KEYS_SEQUENTIAL, 2, 0, 1, part, 3);
        assert_int_equal(keys_exhausted(&k), part == 2);
        for (unsigned i = 0; i < 5; i++)
            assert_true(keys_next(&k) < 2);
        assert_true(keys_exhausted(&k));
    }
}

/* Shares of the first ranks as the law has them. */
static void test_zipf(void **state)
{
    static const double exponent[] = {0.5, 0.99, 1, 1.5};
    enum { KEYS = 1000, DRAWS = 200000 };

    (void)state;
    for (size_t e = 0; e < sizeof(exponent) / sizeof(exponent[0]); e++) {
        static unsigned count[KEYS];
        struct key_source k;
        double sum = 0;
        memset(count, 0, sizeof(count));
        keys_init(&k, KEYS_ZIPF, KEYS, exponent[e], 1, 0, 1);
        for (unsigned i = 1; i <= KEYS; i++)
            sum += __builtin_pow(i, -exponent[e]);
        for (unsigned i = 0; i < DRAWS; i++)
            count[zipf_rank(&k.zipf, KEYS, &k.rng)]++;
        for (unsigned i = 1; i <= 10; i++) {
            double want = __builtin_pow(i, -exponent[e]) / sum * DRAWS, sigma = __builtin_sqrt(want);
            assert_true(count[i - 1] > want - 5 * sigma && count[i - 1] < want + 5 * sigma);
        }
        for (unsigned i = 0; i < 1000; i++)
            assert_true(keys_next(&k) < KEYS);
    }
}

/* ---- traces ---- */

static void write_file(const char *path, const char *ptr, size_t len)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(ptr, 1, len, f), len);
    fclose(f);
}

static void test_traces(void **state)
{
    static const char text[] =
        "time_s,key,key_size,value_size,op,ttl_s\n0,a,0,0,get,0\n0,b,0,512,set,60\r\n1,a,0,7,get,0";
    char path[] = "/tmp/loadgen-trace-XXXXXX", packed[512], err[256];
    struct trace t;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    size_t len = ZSTD_compress(packed, sizeof(packed), text, sizeof(text) - 1, 3);
    for (int zstd = 0; zstd < 2; zstd++) {
        write_file(path, zstd ? packed : text, zstd ? len : sizeof(text) - 1);
        assert_true(trace_load(path, &t, err));
        assert_int_equal(t.len, 3);
        assert_int_equal(t.keys, 2);
        assert_true(t.access[0].key == t.access[2].key && t.access[1].key == 1 && !t.access[0].set && t.access[1].set);
        assert_true(t.access[1].size == 512 && t.access[1].ttl_s == 60 && t.access[2].size == 7);
        trace_unload(&t);
    }
    write_file(path, packed, len - 3);
    assert_false(trace_load(path, &t, err));
    write_file(path, "key,op\na,pop\n", 13);
    assert_false(trace_load(path, &t, err));
    assert_non_null(strstr(err, "line 2"));
    write_file(path, "name\na\n", 7);
    assert_false(trace_load(path, &t, err));
    unlink(path);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentiles),
        cmocka_unit_test(test_hist_limits),
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_values_compress_as_said),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_sequential),
        cmocka_unit_test(test_zipf),
        cmocka_unit_test(test_traces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
