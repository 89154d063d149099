#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/hash.h"
#include "tiercel/type_list.h"
#include "tiercel/num.h"
#include "tiercel/object.h"

static uint64_t seed = 3;
static struct codec *codec;
static char bytes[200000], names[70000];

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

static struct key key_of(struct slice name)
{
    return (struct key){.ptr = name.ptr, .len = (uint32_t)name.len, .inc = 77};
}

static struct rcbuf *pack(struct slice plain)
{
    struct codec_options opt = {.enabled = true, .threshold = 64, .level = 1};
    struct rcbuf *b = codec_pack(codec, &opt, plain);
    assert_non_null(b);
    return b;
}

/* Bytes that zstd makes about half as long. */
static struct slice compressible(size_t len)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (char)('a' + below(12));
    return SLICE(bytes, len);
}

static void string_is(const struct object *o, struct slice want)
{
    char scratch[OBJ_SCRATCH];
    struct slice got;
    assert_int_equal(o->type, OBJ_STRING);
    assert_int_equal(object_string(o, codec, scratch, &got), ST_OK);
    assert_true(slice_eq(got, want));
    assert_int_equal(object_string_len(o), want.len);
    assert_int_equal(object_plain_len(o), want.len);
    if (o->flags & OBJ_F_PACKED)
        assert_in_range(object_stored_len(o), 1, want.len - 1);
    else
        assert_int_equal(object_stored_len(o), o->enc == ENC_INT ? sizeof(int64_t) : want.len);
}

static void head_is(const struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin)
{
    assert_true(slice_eq(object_key(o), key_slice(key)));
    assert_true(object_key_is(o, key));
    assert_int_equal(object_expire(o), expire_ms);
    assert_int_equal(object_origin(o), origin);
    assert_int_equal(!!(o->flags & OBJ_F_EXPIRE), expire_ms != 0);
    assert_int_equal(object_expired(o, expire_ms), expire_ms != 0);
    assert_false(object_expired(o, expire_ms - 1));
}

/* ---- strings: every kind with every head ------------------------------------------------- */

enum kind { EMPTY, SHORT, EMBED_LONGEST, LONG, INT, PACKED_EMBED, PACKED_LONG, KINDS };

static struct object *string_make(enum kind kind, const struct key *key, int64_t expire_ms, uint64_t origin,
                                  struct slice *plain)
{
    static const size_t lengths[KINDS] = {0, 11, OBJ_EMBED_MAX, OBJ_EMBED_MAX + 1, 0, 1500, 60000};
    *plain = compressible(lengths[kind]);
    switch (kind) {
    case INT:
        *plain = SLICE(bytes, num_format_i64(bytes, -1234567));
        return object_new_int(key, -1234567, expire_ms, origin);
    case PACKED_EMBED:
    case PACKED_LONG: return object_new_rcbuf(key, pack(*plain), expire_ms, origin);
    case SHORT: return object_new_rcbuf(key, rcbuf_copy(*plain), expire_ms, origin);
    default: return object_new_string(key, *plain, expire_ms, origin);
    }
}

static void kinds_each(void (*fn)(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin,
                                  struct slice plain))
{
    static const size_t name_lengths[] = {0, 1, 255, 256, 65536};
    int64_t before = mem_class_bytes(MEM_DATA);
    for (enum kind kind = EMPTY; kind < KINDS; kind++) {
        for (int head = 0; head < 20; head++) {
            struct key key = key_of(SLICE(names, name_lengths[head / 4]));
            int64_t expire_ms = head & 1 ? 1700000000000 : 0;
            uint64_t origin = head & 2 ? 0xfedcba9876543210 : 0;
            struct slice plain;
            struct object *o = string_make(kind, &key, expire_ms, origin, &plain);
            o->access = 0xabcdef;
            fn(o, &key, expire_ms, origin, plain);
            assert_int_equal(mem_class_bytes(MEM_DATA), before);
        }
    }
}

static void use_as_made(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin, struct slice plain)
{
    head_is(o, key, expire_ms, origin);
    string_is(o, plain);
    struct key other = *key;
    other.inc++;
    assert_false(object_key_is(o, &other));
    if (plain.len > OBJ_EMBED_MAX)
        assert_int_equal(o->enc, ENC_RAW);
    assert_int_equal(!!(o->flags & OBJ_F_PACKED), plain.len == 1500 || plain.len == 60000);
    object_free(o);
}

static void test_string_kinds(void **state)
{
    (void)state;
    kinds_each(use_as_made);
}

static void use_expire(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin, struct slice plain)
{
    (void)expire_ms;
    o->flags |= OBJ_F_MODIFIED;
    for (int round = 0; round < 2; round++) {
        o = object_set_expire(o, 5000 + round);
        head_is(o, key, 5000 + round, origin);
        string_is(o, plain);
        struct object *same = object_set_expire(o, 0);
        assert_ptr_equal(same, o);
        head_is(o, key, 0, origin);
        assert_ptr_equal(object_set_expire(o, 6000), o); /* the room is kept */
        assert_int_equal(object_expire(o), 6000);
    }
    assert_int_equal(o->access, 0xabcdef);
    assert_true(o->flags & OBJ_F_MODIFIED);
    object_free(o);
}

static void test_string_expire_changes(void **state)
{
    (void)state;
    kinds_each(use_expire);
}

/* All there are, one after another in the same object, whose value stays. */
static void use_any_expire(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin,
                           struct slice plain)
{
    static const int64_t some[] = {1,
                                   77,
                                   UINT32_MAX,
                                   (int64_t)UINT32_MAX + 1,
                                   1700000000123,
                                   (1LL << 47) - 1,
                                   1LL << 47,
                                   5,
                                   (1LL << 48) + 3,
                                   INT64_MAX,
                                   1,
                                   0,
                                   INT64_MAX - 1,
                                   0};
    (void)expire_ms;
    for (size_t i = 0; i < sizeof(some) / sizeof(*some); i++) {
        o = object_set_expire(o, some[i]);
        head_is(o, key, some[i], origin);
        struct object *copy = object_copy(o, key, INT64_MAX - (int64_t)i, origin);
        head_is(copy, key, INT64_MAX - (int64_t)i, origin);
        string_is(copy, plain);
        object_free(copy);
    }
    string_is(o, plain);
    object_free(o);
}

static void test_expire_range(void **state)
{
    (void)state;
    kinds_each(use_any_expire);
    struct key key = {.ptr = "k", .len = 1, .inc = 1};
    struct object *o = object_new_string(&key, SLICE("01234567", 8), INT64_MAX, 0);
    assert_true(object_overwrite(o, SLICE("76543210", 8), 12) && object_expire(o) == 12);
    assert_true(object_overwrite(o, SLICE("01234567", 8), INT64_MAX) && object_expire(o) == INT64_MAX);
    object_free(o);
    o = object_new_string(&key, SLICE("01234567", 8), 5, 0);
    assert_false(object_overwrite(o, SLICE("76543210", 8), INT64_MAX));
    assert_false(object_overwrite_int(o, 1, 5));
    object_free(o);
    o = object_new_int(&key, 7, 5, 0);
    assert_true(object_overwrite_int(o, -8, 0) && object_int(o) == -8 && object_expire(o) == 0);
    assert_true(object_overwrite_int(o, 9, 77) && object_int(o) == 9 && object_expire(o) == 77);
    assert_false(object_overwrite_int(o, 10, INT64_MAX));
    assert_int_equal(object_int(o), 9);
    object_free(o);
    o = object_new_int(&key, 7, 0, 0);
    assert_false(object_overwrite_int(o, 8, 5));
    object_free(o);
}

static void use_rename(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin, struct slice plain)
{
    struct key other = key_of(SLICE(names + 1, 300));
    struct object *copy = object_copy(o, &other, 9000, 0);
    head_is(copy, &other, 9000, 0);
    string_is(copy, plain);
    assert_int_equal(copy->access, 0xabcdef);
    o = object_rename(o, &other, 0, 5);
    head_is(o, &other, 0, 5);
    string_is(o, plain);
    o = object_rename(o, key, expire_ms, origin);
    object_free(copy);
    head_is(o, key, expire_ms, origin);
    string_is(o, plain);
    assert_int_equal(o->access, 0xabcdef);
    object_free(o);
}

static void test_overwrite(void **state)
{
    (void)state;
    char text[300], out[OBJ_SCRATCH];
    memset(text, 'x', sizeof(text));
    for (size_t len = 0; len < 200; len += 7) {
        for (size_t next = 0; next < 200; next += 3) {
            for (int expires = 0; expires < 4; expires++) {
                struct key key = key_of(SLICE("some:key", 8));
                struct object *o = object_new_string(&key, SLICE(text, len), expires & 1 ? 77 : 0, 0);
                struct object *same = object_new_string(&key, SLICE(text + 1, next), expires & 2 ? 99 : 0, 0);
                size_t weight = object_bytes(o);
                struct slice value;
                text[1] = 'y';
                bool done = object_overwrite(o, SLICE(text + 1, next), expires & 2 ? 99 : 0);
                if (done) { /* as a new one, but for room for an expiry */
                    assert_int_equal(object_bytes(o), weight);
                    assert_true((expires & 1) || object_bytes(same) == weight);
                    assert_int_equal(object_expire(o), object_expire(same));
                    assert_int_equal(object_string(o, NULL, out, &value), ST_OK);
                    assert_true(slice_eq(value, SLICE(text + 1, next)));
                } else {
                    assert_true(next != len || expires == 2);
                    assert_int_equal(object_expire(o), expires & 1 ? 77 : 0);
                    assert_int_equal(object_string_len(o), len);
                }
                text[1] = 'x';
                object_free(o);
                object_free(same);
            }
        }
    }
    struct key key = key_of(SLICE("k", 1));
    struct object *copy = object_new_string(&key, SLICE("value", 5), 0, 7), *number = object_new_int(&key, 1, 0, 0);
    assert_false(object_overwrite(copy, SLICE("other", 5), 0)); /* the upstream's */
    assert_false(object_overwrite(number, SLICE("other", 5), 0));
    object_free(copy);
    object_free(number);
}

static void test_string_rename_and_copy(void **state)
{
    (void)state;
    kinds_each(use_rename);
}

static void use_serial(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin, struct slice plain)
{
    struct buf serial, again;
    struct object *back;
    struct rcbuf *value;
    buf_init(&serial, MEM_OTHER);
    buf_init(&again, MEM_OTHER);
    o->flags |= expire_ms ? OBJ_F_MODIFIED : 0;
    object_serialise(o, &serial);
    if (o->flags & OBJ_F_PACKED)
        assert_true(serial.len < plain.len); /* stays packed */
    assert_int_equal(object_serial_ref(o, &again, &value), o->enc == ENC_RAW);
    if (o->enc == ENC_RAW) {
        assert_ptr_equal(value, object_ptr(o));
        buf_slice_append(&again, rcbuf_slice(value));
        rcbuf_unref(value);
        assert_true(slice_eq(buf_slice(&again), buf_slice(&serial)));
    }
    assert_int_equal(object_parse(OBJ_STRING, key, buf_slice(&serial), expire_ms, origin, &back), ST_OK);
    head_is(back, key, expire_ms, origin);
    string_is(back, plain);
    assert_int_equal(back->enc, o->enc);
    assert_int_equal(back->flags, o->flags);
    assert_int_equal(object_bytes(back), object_bytes(o));
    again.len = 0;
    object_serialise(back, &again);
    assert_true(slice_eq(buf_slice(&again), buf_slice(&serial)));
    object_free(back);
    object_free(o);
    buf_deinit(&serial);
    buf_deinit(&again);
}

static void test_string_serial(void **state)
{
    (void)state;
    kinds_each(use_serial);
}

static void test_sizes(void **state)
{
    (void)state;
    struct key key = key_of(SLICE_LIT("0123456789abcdef"));
    struct object *o = object_new_string(&key, SLICE_LIT("0123456789"), 0, 0);
    assert_int_equal(sizeof(struct object), 8);
    assert_int_equal(object_bytes(o), mem_usable(o));
    assert_true(object_bytes(o) <= 48); /* 8 + 2 + 16 + 10, and the allocator's steps */
    object_free(o);
    o = object_new_string(&key, SLICE(bytes, 10000), 0, 0);
    assert_int_equal(object_bytes(o), mem_usable(o) + mem_usable(object_ptr(o)));
    object_free(o);
    object_free(NULL);
}

static void test_damaged_packed_string(void **state)
{
    (void)state;
    struct key key = key_of(SLICE_LIT("k"));
    char scratch[OBJ_SCRATCH];
    struct slice got;
    struct rcbuf *b = pack(compressible(3000));
    b->data[b->len / 2] ^= 0x55;
    b->data[b->len - 1] ^= 0x55;
    b->raw_len = 3001;
    struct object *o = object_new_rcbuf(&key, b, 0, 0);
    assert_int_equal(object_string_len(o), 3001);
    assert_int_equal(object_string(o, codec, scratch, &got), ST_CORRUPT);
    object_free(o);
}

static void encoding_is(struct object *o, const char *want)
{
    assert_string_equal(object_encoding_name(o), want);
    object_free(o);
}

static void test_names(void **state)
{
    (void)state;
    struct key key = key_of(SLICE_LIT("k"));
    encoding_is(object_new_int(&key, 1, 0, 0), "int");
    encoding_is(object_new_string(&key, SLICE(bytes, 44), 0, 0), "embstr");
    encoding_is(object_new_string(&key, SLICE(bytes, 45), 0, 0), "raw");
    encoding_is(qlist_create(&key), "quicklist");
    struct object *o = object_new_string(&key, SLICE_LIT("short"), 0, 0);
    o->flags |= OBJ_F_MODIFIED;
    encoding_is(o, "raw");
    assert_string_equal(object_type_name(OBJ_STRING), "string");
    assert_string_equal(object_type_name(OBJ_LIST), "list");
    assert_string_equal(object_type_name(OBJ_NONE), "none");
}

static void test_none_and_ptr(void **state)
{
    (void)state;
    int64_t before = mem_class_bytes(MEM_DATA);
    struct key key = key_of(SLICE_LIT("absent"));
    struct object *o = object_new_none(&key, 123, 9);
    assert_int_equal(o->type, OBJ_NONE);
    head_is(o, &key, 123, 9);
    object_free(o);
    int mine = 5;
    o = object_new_ptr(&key, OBJ_RESIDENCY, ENC_PTR, &mine, 0, 0);
    o = object_set_expire(o, 77);
    head_is(o, &key, 77, 0);
    assert_ptr_equal(object_ptr(o), &mine);
    object_free(o); /* what it points at is not its own */
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

/* ---- parsing garbage ------------------------------------------------------------------------ */

static void corrupt(enum obj_type type, struct slice serial)
{
    struct key key = key_of(SLICE_LIT("k"));
    struct object *o = (struct object *)bytes;
    assert_int_equal(object_parse(type, &key, serial, 0, 0, &o), ST_CORRUPT);
    assert_null(o);
}

static void test_parse_refuses(void **state)
{
    (void)state;
    corrupt(OBJ_STRING, SLICE_NONE);
    corrupt(OBJ_STRING, SLICE_LIT("\x02"));
    corrupt(OBJ_STRING, SLICE_LIT("\x03\x00"
                                  "abc")); /* a newer version */
    corrupt(OBJ_STRING, SLICE_LIT("\x02\x07"
                                  "abc"));
    corrupt(OBJ_STRING, SLICE_LIT("\x02\x01"
                                  "1234567"));
    corrupt(OBJ_STRING, SLICE_LIT("\x02\x02"
                                  "12345678"));                      /* no frame */
    corrupt(OBJ_STRING, SLICE_LIT("\x02\x02\x03\0\0\0\0\0\0\0abc")); /* longer than plain */
    corrupt(OBJ_STRING, SLICE_LIT("\x02\x03\x01\x01\x01"
                                  "a")); /* a list */
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x00"
                                "abc")); /* a string */
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x03"));
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x03\x01"));
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x03\x01\x00")); /* empty */
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x03\x01\x02\x01"
                                "a"));
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x03\x01\x01\x01"
                                "ab"));
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x03\x01\xff\xff\xff\xff"));
    corrupt(OBJ_LIST, SLICE_LIT("\x02\x03\x7f\x01\x01"
                                "a")); /* of no type */
    corrupt(OBJ_NONE, SLICE_LIT("\x02\x00"));
    corrupt((enum obj_type)9, SLICE_LIT("\x02\x00"));
}

static void test_parse_survives_noise(void **state)
{
    (void)state;
    struct key key = key_of(SLICE_LIT("k"));
    char scratch[OBJ_SCRATCH];
    for (int i = 0; i < 100000; i++) {
        size_t len = below(40);
        char *noise = malloc(len + 1); /* of the exact size, so that reading on is seen */
        for (size_t j = 0; j < len; j++)
            noise[j] = (char)(below(2) ? below(5) : rng_next(&seed));
        if (len > 1 && below(4)) {
            noise[0] = OBJ_SERIAL_VERSION;
            noise[1] = (char)below(4);
        }
        struct object *o;
        struct slice got;
        enum obj_type type = below(2) ? OBJ_STRING : OBJ_LIST;
        if (object_parse(type, &key, SLICE(noise, len), 0, 0, &o) == ST_OK) {
            if (type == OBJ_STRING)
                object_string(o, codec, scratch, &got);
            object_free(o);
        }
        free(noise);
    }
}

static int setup(void **state)
{
    (void)state;
    codec = codec_create();
    for (size_t i = 0; i < sizeof(names); i++)
        names[i] = (char)('A' + i % 26);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    codec_destroy(codec);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_string_kinds),
        cmocka_unit_test(test_string_expire_changes),
        cmocka_unit_test(test_expire_range),
        cmocka_unit_test(test_overwrite),
        cmocka_unit_test(test_string_rename_and_copy),
        cmocka_unit_test(test_string_serial),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_damaged_packed_string),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_none_and_ptr),
        cmocka_unit_test(test_parse_refuses),
        cmocka_unit_test(test_parse_survives_noise),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
