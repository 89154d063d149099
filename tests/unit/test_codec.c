#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/codec.h"
#include "tiercel/hash.h"

static const struct codec_options on = {.enabled = true, .threshold = 100, .level = 3};
static uint64_t seed = 11;
static char value[2 << 20];

static struct slice text_make(size_t len)
{
    for (size_t i = 0; i < len; i++)
        value[i] = "{\"id\": 1234, \"name\": \"some name\"}, "[i % 35] + (char)(rng_next(&seed) % 16 == 0);
    return SLICE(value, len);
}

static struct slice noise_make(size_t len)
{
    for (size_t i = 0; i < len; i++)
        value[i] = (char)rng_next(&seed);
    return SLICE(value, len);
}

static int setup(void **state)
{
    *state = codec_create();
    return 0;
}

static int teardown(void **state)
{
    codec_destroy(*state);
    codec_destroy(NULL);
    return 0;
}

static void test_round_trip(void **state)
{
    struct codec *c = *state;
    for (size_t len = 100; len <= sizeof(value); len = len * 3 + 1) {
        struct slice plain = text_make(len);
        struct rcbuf *packed = codec_pack(c, &on, plain);
        assert_non_null(packed);
        assert_int_equal(packed->raw_len, len);
        assert_true(packed->len <= len - len / 8);
        struct rcbuf *back = codec_unpack(c, rcbuf_slice(packed), len);
        assert_non_null(back);
        assert_int_equal(back->raw_len, 0);
        assert_true(slice_eq(rcbuf_slice(back), plain));
        struct slice scratch;
        assert_int_equal(codec_unpack_scratch(c, rcbuf_slice(packed), len, &scratch), ST_OK);
        assert_true(slice_eq(scratch, plain));
        rcbuf_unref(back);
        rcbuf_unref(packed);
    }
}

static void test_not_worth_it(void **state)
{
    struct codec *c = *state;
    struct codec_options off = on;
    off.enabled = false;
    assert_null(codec_pack(c, &off, text_make(5000)));
    assert_null(codec_pack(c, &on, text_make(99)));
    assert_null(codec_pack(c, &on, SLICE_NONE));
    assert_null(codec_pack(c, &on, noise_make(1000)));
    assert_null(codec_pack(c, &on, noise_make(1000000)));
    /* Saves something, but less than an eighth. */
    noise_make(10000);
    memset(value, 'x', 1000);
    assert_null(codec_pack(c, &on, SLICE(value, 10000)));
    memset(value, 'x', 1500);
    struct rcbuf *packed = codec_pack(c, &on, SLICE(value, 10000));
    assert_non_null(packed);
    rcbuf_unref(packed);
}

static void test_sample_looks_at_three_places(void **state)
{
    struct codec *c = *state;
    noise_make(100000);
    memset(value, 'x', 40000);
    struct rcbuf *start = codec_pack(c, &on, SLICE(value, 100000));
    noise_make(100000);
    memset(value + 60000, 'x', 40000);
    struct rcbuf *end = codec_pack(c, &on, SLICE(value, 100000));
    noise_make(100000);
    memset(value + 30000, 'x', 40000);
    struct rcbuf *middle = codec_pack(c, &on, SLICE(value, 100000));
    assert_true(start && end && middle);
    rcbuf_unref(start);
    rcbuf_unref(end);
    rcbuf_unref(middle);
}

static void test_damage_is_seen(void **state)
{
    struct codec *c = *state;
    struct slice plain = text_make(20000), out;
    struct rcbuf *packed = codec_pack(c, &on, plain);
    struct slice frame = rcbuf_slice(packed);
    assert_non_null(packed);
    assert_null(codec_unpack(c, frame, 19999));
    assert_null(codec_unpack(c, frame, 20001));
    assert_null(codec_unpack(c, frame, 0));
    assert_null(codec_unpack(c, frame, SIZE_MAX));
    assert_null(codec_unpack(c, SLICE_LIT(""), 20000));
    assert_int_equal(codec_unpack_scratch(c, frame, SIZE_MAX / 2, &out), ST_CORRUPT);
    for (size_t len = 0; len < frame.len; len += 7)
        assert_null(codec_unpack(c, SLICE(frame.ptr, len), 20000));
    int refused = 0;
    for (int i = 0; i < 3000; i++) { /* any damage: refused, or other bytes of the right length */
        size_t at = (size_t)(rng_next(&seed) % frame.len);
        char was = packed->data[at];
        packed->data[at] = (char)rng_next(&seed);
        struct rcbuf *back = codec_unpack(c, frame, 20000);
        refused += !back;
        rcbuf_unref(back);
        packed->data[at] = was;
    }
    assert_true(refused > 100);
    rcbuf_unref(packed);
}

static void test_large_scratch_is_given_back(void **state)
{
    struct codec *c = *state;
    int64_t before = mem_class_bytes(MEM_OTHER);
    struct rcbuf *packed = codec_pack(c, &on, text_make(sizeof(value)));
    struct slice out;
    assert_int_equal(codec_unpack_scratch(c, rcbuf_slice(packed), sizeof(value), &out), ST_OK);
    assert_true(mem_class_bytes(MEM_OTHER) - before > 1 << 20);
    rcbuf_unref(packed);
    packed = codec_pack(c, &on, text_make(5000));
    assert_true(mem_class_bytes(MEM_OTHER) - before < 100000);
    rcbuf_unref(packed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_worth_it, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sample_looks_at_three_places, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_scratch_is_given_back, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
