#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include <cmocka.h>

#include "tiercel/alloc.h"
#include "tiercel/buf.h"
#include "tiercel/chain.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/glob.h"
#include "tiercel/hash.h"
#include "tiercel/list.h"
#include "tiercel/num.h"
#include "tiercel/pace.h"
#include "tiercel/rcbuf.h"
#include "tiercel/status.h"

static uint64_t seed = 42;

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

/* ---- status, clock -------------------------------------------------------------------- */

static void test_status_texts(void **state)
{
    (void)state;
    assert_string_equal(status_text(ST_OK), "ok");
    assert_string_equal(status_text(ST_CORRUPT), "checksum or format mismatch");
    assert_string_equal(status_text((enum status)999), "unknown status");
}

static void test_clock_units_agree(void **state)
{
    (void)state;
    int64_t us = clock_wall_us(), ms = clock_wall_ms();
    assert_true(ms - us / 1000 >= 0 && ms - us / 1000 < 1000);
    assert_true(us > 1600000000LL * 1000000);
    us = clock_mono_us();
    ms = clock_mono_ms();
    assert_true(ms - us / 1000 >= 0 && ms - us / 1000 < 1000);
    assert_true(clock_mono_us() >= us);
}

/* ---- alloc ------------------------------------------------------------------------------ */

static void test_alloc_counts_by_class(void **state)
{
    (void)state;
    int64_t data = mem_class_bytes(MEM_DATA), client = mem_class_bytes(MEM_CLIENT), used = mem_used_bytes();
    void *a = mem_alloc(MEM_DATA, 1000);
    void *b = mem_calloc(MEM_CLIENT, 5000);
    assert_true(mem_usable(a) >= 1000 && mem_usable(b) >= 5000);
    assert_int_equal(mem_class_bytes(MEM_DATA) - data, mem_usable(a));
    assert_int_equal(mem_class_bytes(MEM_CLIENT) - client, mem_usable(b));
    assert_int_equal(mem_used_bytes() - used, mem_usable(a) + mem_usable(b));
    for (size_t i = 0; i < 5000; i++)
        assert_int_equal(((char *)b)[i], 0);

    a = mem_realloc(MEM_DATA, a, 100000);
    assert_int_equal(mem_class_bytes(MEM_DATA) - data, mem_usable(a));
    a = mem_realloc(MEM_DATA, a, 10);
    assert_int_equal(mem_class_bytes(MEM_DATA) - data, mem_usable(a));
    assert_true(mem_peak_bytes() >= mem_used_bytes());
    mem_free(MEM_DATA, a);
    mem_free(MEM_CLIENT, b);
    mem_free(MEM_CLIENT, NULL);
    assert_int_equal(mem_used_bytes(), used);
}

static void test_alloc_every_size_balances(void **state)
{
    (void)state;
    int64_t data = mem_class_bytes(MEM_DATA);
    for (size_t size = 0; size < 70000; size = size * 9 / 8 + 1) {
        void *p = mem_alloc(MEM_DATA, size);
        void *q = mem_calloc(MEM_DATA, size);
        assert_int_equal(mem_class_bytes(MEM_DATA) - data, mem_usable(p) + mem_usable(q));
        q = mem_realloc(MEM_DATA, q, size / 2);
        mem_free(MEM_DATA, p);
        mem_free(MEM_DATA, q);
        assert_int_equal(mem_class_bytes(MEM_DATA), data);
    }
}

#define SHARED 200
static void *shared[SHARED];

static void *thread_allocs(void *arg)
{
    for (int i = 0; i < SHARED; i++)
        shared[i] = mem_alloc(MEM_OTHER, 64 + (size_t)i);
    return arg;
}

static void *thread_frees(void *arg)
{
    for (int i = 0; i < SHARED; i++)
        mem_free(MEM_OTHER, shared[i]);
    return arg;
}

static void run_thread(void *(*fn)(void *))
{
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, fn, NULL), 0);
    pthread_join(t, NULL);
}

static void test_alloc_counts_outlive_threads(void **state)
{
    (void)state;
    int64_t other = mem_class_bytes(MEM_OTHER), held = 0, used = 0;
    for (int round = 0; round < 50; round++) {
        run_thread(thread_allocs);
        held = 0;
        for (int i = 0; i < SHARED; i++)
            held += (int64_t)mem_usable(shared[i]);
        assert_int_equal(mem_class_bytes(MEM_OTHER) - other, held);
        used = mem_used_bytes();
        run_thread(thread_frees);
        assert_int_equal(mem_class_bytes(MEM_OTHER), other);
    }
    assert_true(mem_used_bytes() < used && mem_peak_bytes() >= used);
}

static void test_alloc_name_and_purge(void **state)
{
    (void)state;
#ifdef TIERCEL_JEMALLOC
    assert_memory_equal(mem_allocator_name(), "jemalloc-5", 10);
#else
    assert_string_equal(mem_allocator_name(), "libc");
#endif
    mem_purge();
    char *copy = mem_strdup(MEM_OTHER, "text");
    assert_string_equal(copy, "text");
    mem_free(MEM_OTHER, copy);
}

/* ---- buf, rcbuf ------------------------------------------------------------------------- */

static void test_buf_append_consume(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, MEM_CLIENT);
    int64_t before = mem_class_bytes(MEM_CLIENT);
    buf_append(&b, NULL, 0);
    assert_null(b.ptr);
    for (int i = 0; i < 1000; i++)
        buf_printf(&b, "%d,", i);
    buf_byte(&b, '!');
    assert_int_equal(b.len, 3891);
    assert_memory_equal(b.ptr, "0,1,2,3,", 8);
    buf_consume(&b, 8);
    assert_memory_equal(b.ptr, "4,5,", 4);
    buf_consume(&b, b.len - 1);
    assert_int_equal(b.len, 1);
    assert_int_equal(b.ptr[0], '!');
    buf_slice_append(&b, SLICE_LIT("xyz"));
    assert_true(slice_eq(buf_slice(&b), SLICE_LIT("!xyz")));
    buf_deinit(&b);
    assert_int_equal(mem_class_bytes(MEM_CLIENT), before);
}

static void test_buf_printf_longer_than_room(void **state)
{
    (void)state;
    struct buf b;
    char text[5000];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    buf_init(&b, MEM_OTHER);
    buf_printf(&b, "<%s>", text);
    assert_int_equal(b.len, sizeof(text) + 1);
    assert_int_equal(b.ptr[b.len - 1], '>');
    buf_deinit(&b);
}

static void *thread_unref(void *arg)
{
    rcbuf_unref(arg);
    return NULL;
}

static void test_rcbuf_freed_by_last(void **state)
{
    (void)state;
    int64_t before = mem_class_bytes(MEM_DATA);
    struct rcbuf *b = rcbuf_copy(SLICE_LIT("value"));
    assert_int_equal(b->raw_len, 0);
    assert_true(slice_eq(rcbuf_slice(b), SLICE_LIT("value")));
    pthread_t t;
    rcbuf_ref(b);
    pthread_create(&t, NULL, thread_unref, b);
    rcbuf_unref(b);
    pthread_join(t, NULL);
    rcbuf_unref(NULL);
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

/* ---- chain ------------------------------------------------------------------------------ */

/* Reads up to `n` bytes off the chain as a socket would, at most `max` pieces at a time. */
static void chain_drain(struct chain *c, struct buf *to, size_t n, int max)
{
    struct iovec iov[8];
    while (n && !chain_empty(c)) {
        int pieces = chain_iov(c, iov, max);
        assert_true(pieces > 0);
        size_t took = 0;
        for (int i = 0; i < pieces && took < n; i++) {
            size_t len = iov[i].iov_len < n - took ? iov[i].iov_len : n - took;
            buf_append(to, iov[i].iov_base, len);
            took += len;
        }
        chain_consume(c, took);
        n -= took;
    }
}

static void chain_feed_random(struct chain *c, struct buf *expected)
{
    static char bytes[40000];
    size_t len = below(10) ? below(300) : below(sizeof(bytes));
    for (size_t i = 0; i < len; i++)
        bytes[i] = (char)rng_next(&seed);
    switch (below(4)) {
    case 0: chain_append(c, bytes, len); break;
    case 1:
        memcpy(chain_reserve(c, len + 100), bytes, len);
        chain_commit(c, len);
        break;
    case 2: chain_append_ref(c, rcbuf_copy(SLICE(bytes, len)), false); break;
    default: {
        struct chain other;
        chain_init(&other);
        chain_append(&other, bytes, len);
        chain_move(c, &other);
        assert_true(chain_empty(&other));
        chain_deinit(&other);
    }
    }
    buf_append(expected, bytes, len);
}

static void test_chain_is_a_queue_of_bytes(void **state)
{
    (void)state;
    int64_t client = mem_class_bytes(MEM_CLIENT), data = mem_class_bytes(MEM_DATA);
    for (int round = 0; round < 60; round++) {
        struct chain c;
        struct buf expected, got;
        chain_init(&c);
        buf_init(&expected, MEM_OTHER);
        buf_init(&got, MEM_OTHER);
        for (int i = 0; i < 60; i++) {
            chain_feed_random(&c, &expected);
            assert_int_equal(c.bytes, expected.len - got.len);
            if (below(3) == 0)
                chain_drain(&c, &got, below(20000), 1 + (int)below(8));
        }
        if (round % 2) { /* else dropped half way */
            chain_drain(&c, &got, SIZE_MAX, 8);
            assert_int_equal(got.len, expected.len);
            assert_null(c.head);
        }
        assert_memory_equal(got.ptr, expected.ptr, got.len);
        chain_deinit(&c);
        buf_deinit(&expected);
        buf_deinit(&got);
    }
    assert_int_equal(mem_class_bytes(MEM_CLIENT), client);
    assert_int_equal(mem_class_bytes(MEM_DATA), data);
}

static struct rcbuf *inflate_double(void *arg, const struct rcbuf *packed)
{
    if (*(bool *)arg)
        return NULL;
    struct rcbuf *plain = rcbuf_create(packed->len * 2);
    memcpy(plain->data, packed->data, packed->len);
    memcpy(plain->data + packed->len, packed->data, packed->len);
    return plain;
}

static void test_chain_unpack(void **state)
{
    (void)state;
    bool fail = false;
    for (int round = 0; round < 2; round++) {
        struct chain c;
        struct buf got;
        struct iovec iov[8];
        chain_init(&c);
        buf_init(&got, MEM_OTHER);
        chain_append(&c, "<", 1);
        for (int i = 0; i < 2; i++) {
            struct rcbuf *b = rcbuf_copy(SLICE_LIT("ab"));
            b->raw_len = 4;
            chain_append_ref(&c, b, true);
            chain_append(&c, ">", 1);
        }
        assert_int_equal(c.bytes, 11);
        assert_int_equal(c.npacked, 2);
        assert_int_equal(chain_iov(&c, iov, 8), 1); /* nothing behind a packed piece may be sent */
        assert_int_equal(chain_unpack(&c, inflate_double, &fail), !fail);
        if (!fail) {
            assert_int_equal(c.npacked, 0);
            chain_drain(&c, &got, SIZE_MAX, 8);
            assert_true(slice_eq(buf_slice(&got), SLICE_LIT("<abab>abab>")));
        }
        chain_deinit(&c);
        buf_deinit(&got);
        fail = true;
    }
}

/* ---- hash --------------------------------------------------------------------------------- */

static void test_hash_key_depends_on_everything(void **state)
{
    (void)state;
    struct slice key = SLICE_LIT("user:1000");
    uint64_t h = hash_key(1, 0, key);
    assert_true(h == hash_key(1, 0, key));
    assert_true(h != hash_key(2, 0, key));
    assert_true(h != hash_key(1, 1, key));
    assert_true(h != hash_key(1, 0, SLICE_LIT("user:1001")));
    assert_true(hash_key(1, 1, key) != hash_key(0, 0, key)); /* incarnation and seed do not cancel out */
    assert_true(hash_key(1, 0, SLICE_NONE) == hash_key(1, 0, SLICE_LIT("")));
    assert_true(hash_bytes(7, "a", 1) != hash_bytes(8, "a", 1));
}

/* ---- num ------------------------------------------------------------------------------------ */

static bool in_a_hurry(void *arg)
{
    ++*(int *)arg;
    return true;
}

/* What is done in slices comes to the same. */
static void test_pace(void **state)
{
    (void)state;
    size_t len = 3 << 20;
    char *from = calloc(1, len), *to = calloc(1, len);
    int asked = 0;
    struct pace p = {.hurry = in_a_hurry, .arg = &asked};
    for (size_t i = 0; i < len; i++)
        from[i] = (char)rng_next(&seed);
    pace_begin(&p);
    for (size_t n = len; n > 0; n /= 3) {
        memset(to, 0, len);
        pace_copy(&p, to, from, n);
        assert_memory_equal(to, from, n);
        assert_true(hash_bytes_paced(7, from, n, &p) == hash_bytes(7, from, n));
        assert_true(hash_bytes_paced(7, from, n, NULL) == hash_bytes(7, from, n));
    }
    assert_true(p.rests == 0); /* who is in a hurry does not rest */
    pace_spend(NULL, SIZE_MAX);
    free(from);
    free(to);
}

static void test_num_parse_i64(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok;
        int64_t v;
    } cases[] = {
        {"0", true, 0},
        {"7", true, 7},
        {"-1", true, -1},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"18446744073709551616", false, 0},
        {"99999999999999999999", false, 0},
        {"100000000000000000000", false, 0},
        {"", false, 0},
        {"-", false, 0},
        {"-0", false, 0},
        {"+1", false, 0},
        {"01", false, 0},
        {"-01", false, 0},
        {" 1", false, 0},
        {"1 ", false, 0},
        {"1a", false, 0},
        {"0x1", false, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int64_t v = 0;
        if (num_parse_i64(slice_str(cases[i].text), &v) != cases[i].ok || v != cases[i].v)
            fail_msg("%s", cases[i].text);
    }
    uint64_t u;
    assert_true(num_parse_u64(SLICE_LIT("18446744073709551615"), &u) && u == UINT64_MAX);
    assert_false(num_parse_u64(SLICE_LIT("18446744073709551616"), &u));
    assert_false(num_parse_u64(SLICE_LIT("-1"), &u));
}

static void num_round_trip(int64_t v)
{
    char text[NUM_I64_MAX], expected[32];
    int64_t back;
    size_t len = num_format_i64(text, v);
    int want = snprintf(expected, sizeof(expected), "%lld", (long long)v);
    assert_int_equal(len, want);
    assert_memory_equal(text, expected, len);
    assert_true(num_parse_i64(SLICE(text, len), &back) && back == v);
    len = num_format_u64(text, (uint64_t)v);
    want = snprintf(expected, sizeof(expected), "%llu", (unsigned long long)v);
    assert_int_equal(len, want);
    assert_memory_equal(text, expected, len);
}

static void test_num_format_round_trip(void **state)
{
    (void)state;
    num_round_trip(0);
    num_round_trip(INT64_MIN);
    num_round_trip(INT64_MAX);
    int64_t power = 1;
    for (int i = 0; i < 18; i++, power *= 10) {
        num_round_trip(power);
        num_round_trip(power - 1);
        num_round_trip(-power);
    }
    for (int i = 0; i < 10000; i++)
        num_round_trip((int64_t)(rng_next(&seed) >> below(64)));
}

static bool f64_text(const char *text, char out[NUM_F64_MAX])
{
    long double v;
    if (!num_parse_f64(slice_str(text), &v))
        return false;
    out[num_format_f64_human(out, v)] = '\0';
    return true;
}

static void test_num_f64(void **state)
{
    (void)state;
    static const struct {
        const char *text, *human; /* NULL: no number */
    } cases[] = {
        {"1", "1"},        {"0.1", "0.1"},
        {"-0", "0"},       {"-0.0000000000000000001", "0"},
        {"3.0e3", "3000"}, {"+5", "5"},
        {".5", "0.5"},     {"5.", "5"},
        {"0x10", "16"},    {"1e20", "100000000000000000000"},
        {"10.50", "10.5"}, {"inf", "inf"},
        {"-inf", "-inf"},  {"1e-4950", "0"},
        {"1e-4960", NULL}, {"1e5000", NULL},
        {"nan", NULL},     {"", NULL},
        {" 1", NULL},      {"1 ", NULL},
        {"0.1e", NULL},    {"abc", NULL},
    };
    char out[NUM_F64_MAX];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bool ok = f64_text(cases[i].text, out);
        if (ok != (cases[i].human != NULL) || (ok && strcmp(out, cases[i].human) != 0))
            fail_msg("%s -> %s", cases[i].text, ok ? out : "no number");
    }
    assert_true(f64_text("1.18e4932", out));
    assert_int_equal(strlen(out), 4933);
    long double v;
    assert_false(num_parse_f64(SLICE("1\0", 2), &v));
}

static void test_num_parse_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok;
        uint64_t v;
    } cases[] = {
        {"0", true, 0},
        {"1000b", true, 1000},
        {"1k", true, 1000},
        {"1KB", true, 1024},
        {"64mb", true, 64ull << 20},
        {"2M", true, 2000000},
        {"1g", true, 1000000000},
        {"3Gb", true, 3ull << 30},
        {"18446744073709551615", true, UINT64_MAX},
        {"18446744073709551616", false, 0},
        {"17179869184gb", false, 0},
        {"", false, 0},
        {"kb", false, 0},
        {"-1", false, 0},
        {"1 kb", false, 0},
        {"50%", false, 0},
        {"1kbb", false, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t v = 0;
        if (num_parse_bytes(slice_str(cases[i].text), &v) != cases[i].ok || (cases[i].ok && v != cases[i].v))
            fail_msg("%s", cases[i].text);
    }
}

/* ---- glob ------------------------------------------------------------------------------------ */

/* What redis-server 7.0.15 answers to KEYS. */
static const struct {
    const char *pattern, *text;
    bool match;
} globs[] = {
    {"h?llo", "hello", true},
    {"h?llo", "hllo", false},
    {"h*llo", "heeeello", true},
    {"h*llo", "hllo", true},
    {"h[ae]llo", "hallo", true},
    {"h[ae]llo", "hillo", false},
    {"h[^e]llo", "hello", false},
    {"h[^e]llo", "hallo", true},
    {"h[a-c]llo", "hbllo", true},
    {"h[c-a]llo", "hbllo", true}, /* a reversed range */
    {"h[c-a]llo", "hdllo", false},
    {"h\\*llo", "h*llo", true},
    {"h\\*llo", "hello", false},
    {"h\\", "h\\", true}, /* nothing left to escape */
    {"[\\]]", "]", true}, /* an escape in a class */
    {"[a\\-z]", "-", true},
    {"[a\\-z]", "b", false},
    {"[]a]", "]", false}, /* an empty class matches nothing */
    {"[^]", "x", true},   /* and its opposite everything */
    {"[abc", "b", true},  /* no end: what there is counts */
    {"[abc", "bc", false},
    {"[", "[", false},
    {"[^", "a", true},
    {"[a-", "-", true},
    {"[a-]", "]", true}, /* a range up to ']', and no end */
    {"[a-]", "-", false},
    {"*", "x", true},
    {"*", "", false},
    {"**", "", false},
    {"", "", true},
    {"", "x", false},
    {"x*", "x", true},
    {"x***", "x", true},
    {"x*y", "x", false},
    {"*a*b*c*", "xxaxxbxxcxx", true},
    {"*a*b*c*", "xxaxxcxxbxx", false},
    {"*[ab]?", "xxbz", true},
    {"a*\\*", "abc*", true},
};

static void test_glob_as_redis(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(globs) / sizeof(globs[0]); i++) {
        if (glob_match(slice_str(globs[i].pattern), slice_str(globs[i].text), false) != globs[i].match)
            fail_msg("%s %s", globs[i].pattern, globs[i].text);
    }
    assert_true(glob_match(SLICE_LIT("a\0?"), SLICE_LIT("a\0b"), false));
    assert_false(glob_match(SLICE_LIT("a\0?"), SLICE_LIT("a\1b"), false));
}

static void test_glob_nocase(void **state)
{
    (void)state;
    assert_true(glob_match(SLICE_LIT("HEL*"), SLICE_LIT("hello"), true));
    assert_false(glob_match(SLICE_LIT("HEL*"), SLICE_LIT("hello"), false));
    assert_true(glob_match(SLICE_LIT("[A-C]x"), SLICE_LIT("bX"), true));
    assert_true(glob_match(SLICE_LIT("[ABC]"), SLICE_LIT("c"), true));
    assert_false(glob_match(SLICE_LIT("[\\A]"), SLICE_LIT("a"), true));
}

/* Obviously right, and exponential. */
static bool stars_match(const char *p, const char *t)
{
    if (*p == '*')
        return stars_match(p + 1, t) || (*t && stars_match(p, t + 1));
    if (!*p || !*t)
        return !*p && !*t;
    return (*p == '?' || *p == *t) && stars_match(p + 1, t + 1);
}

static void test_glob_stars_against_model(void **state)
{
    (void)state;
    char pattern[9], text[13];
    int matches = 0;
    for (int round = 0; round < 100000; round++) {
        size_t np = below(8), nt = 1 + below(12);
        for (size_t i = 0; i < np; i++)
            pattern[i] = "ab*?*"[below(5)];
        for (size_t i = 0; i < nt; i++)
            text[i] = "ab"[below(2)];
        pattern[np] = text[nt] = '\0';
        bool want = stars_match(pattern, text);
        matches += want;
        if (glob_match(slice_str(pattern), slice_str(text), false) != want)
            fail_msg("%s %s", pattern, text);
    }
    assert_true(matches > 10000);
}

static void test_glob_work_is_bounded(void **state)
{
    (void)state;
    char pattern[201], text[5001];
    for (int i = 0; i < 200; i++)
        pattern[i] = i % 2 ? 'a' : '*';
    memset(text, 'a', 5000);
    pattern[200] = text[5000] = '\0';
    pattern[199] = 'b';
    int64_t start = clock_mono_ms();
    assert_false(glob_match(slice_str(pattern), slice_str(text), false));
    assert_true(clock_mono_ms() - start < 2000); /* the exponential way never ends */
}

/* ---- list -------------------------------------------------------------------------------------- */

static void test_list_order(void **state)
{
    (void)state;
    struct list a, b, links[4];
    list_init(&a);
    list_init(&b);
    list_push_back(&a, &links[1]);
    list_push_front(&a, &links[0]);
    list_push_back(&b, &links[2]);
    list_push_back(&b, &links[3]);
    list_splice(&a, &b);
    assert_true(list_empty(&b));
    list_splice(&a, &b);
    list_remove(&links[1]);
    list_remove(&links[1]); /* in no list: nothing happens */
    assert_ptr_equal(list_pop_front(&a), &links[0]);
    assert_ptr_equal(list_pop_front(&a), &links[2]);
    assert_ptr_equal(list_pop_front(&a), &links[3]);
    assert_null(list_pop_front(&a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_texts),
        cmocka_unit_test(test_clock_units_agree),
        cmocka_unit_test(test_alloc_counts_by_class),
        cmocka_unit_test(test_alloc_every_size_balances),
        cmocka_unit_test(test_alloc_counts_outlive_threads),
        cmocka_unit_test(test_alloc_name_and_purge),
        cmocka_unit_test(test_buf_append_consume),
        cmocka_unit_test(test_buf_printf_longer_than_room),
        cmocka_unit_test(test_rcbuf_freed_by_last),
        cmocka_unit_test(test_chain_is_a_queue_of_bytes),
        cmocka_unit_test(test_chain_unpack),
        cmocka_unit_test(test_hash_key_depends_on_everything),
        cmocka_unit_test(test_pace),
        cmocka_unit_test(test_num_parse_i64),
        cmocka_unit_test(test_num_format_round_trip),
        cmocka_unit_test(test_num_f64),
        cmocka_unit_test(test_num_parse_bytes),
        cmocka_unit_test(test_glob_as_redis),
        cmocka_unit_test(test_glob_nocase),
        cmocka_unit_test(test_glob_stars_against_model),
        cmocka_unit_test(test_glob_work_is_bounded),
        cmocka_unit_test(test_list_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
