#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/hash.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"
#include "tiercel/type_list.h"

/* A list and its obvious model: an array of numbers, each of which stands for a text. */
#define MODEL_MAX 3000
struct model {
    struct object *list;
    int size;
    int numbers[MODEL_MAX + 1];
    size_t count;
};

static uint64_t seed = 11;
static const struct key key = {.ptr = "list", .len = 4, .inc = 7};
static char text[200000];

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

/* Few different ones, so that some repeat; numbers, short and long strings, some larger than a node. */
static struct slice elem_of(int number)
{
    size_t len = (size_t)snprintf(text, 100, "%d", number % 5 == 0 ? number * 1000003 : number);
    size_t want = number % 5 == 0     ? len
                  : number == 3       ? 0
                  : number % 101 == 1 ? 70000
                  : number % 31 == 1  ? 9000
                  : number % 7 == 2   ? 300
                                      : len + (size_t)number % 40;
    while (len < want)
        text[len] = (char)('a' + len % 26), len++;
    return SLICE(text, want);
}

static void elem_is(const struct qlist_pos *at, int number)
{
    char scratch[NUM_I64_MAX];
    struct slice want = elem_of(number);
    assert_true(slice_eq(qlist_get(at, scratch), want));
    struct qlist_wanted wanted = qlist_want(want), other = qlist_want(SLICE_LIT("no such"));
    assert_true(qlist_is(at, &wanted));
    assert_false(qlist_is(at, &other));
}

static void list_is_model(struct object *o, const struct model *m)
{
    struct qlist_pos at;
    assert_int_equal(qlist_len(o), m->count);
    if (m->count == 0)
        return;
    bool back = below(2);
    qlist_seek(o, back ? m->count - 1 : 0, &at);
    for (size_t i = 0; i < m->count; i++) {
        elem_is(&at, m->numbers[back ? m->count - 1 - i : i]);
        assert_int_equal(qlist_step(&at, back), i + 1 < m->count);
    }
    for (int i = 0; i < 5; i++) {
        size_t index = below(m->count);
        qlist_seek(o, index, &at);
        elem_is(&at, m->numbers[index]);
    }
}

static void model_insert(struct model *m, size_t at, int number)
{
    memmove(m->numbers + at + 1, m->numbers + at, (m->count - at) * sizeof(int));
    m->numbers[at] = number;
    m->count++;
}

static void model_cut(struct model *m, size_t at, size_t n)
{
    memmove(m->numbers + at, m->numbers + at + n, (m->count - at - n) * sizeof(int));
    m->count -= n;
}

static size_t model_remove(struct model *m, int number, size_t max, bool back)
{
    size_t removed = 0;
    for (size_t i = back ? m->count : 0; removed < max && (back ? i > 0 : i < m->count);) {
        size_t at = back ? i - 1 : i;
        if (m->numbers[at] == number) {
            model_cut(m, at, 1);
            removed++;
            i -= back;
        } else {
            i = back ? i - 1 : i + 1;
        }
    }
    return removed;
}

static void step(struct model *m, bool grow)
{
    int number = (int)below(400);
    size_t at = m->count ? below(m->count) : 0;
    struct qlist_pos pos;

    switch (below(12)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
        if (grow && m->count < MODEL_MAX) {
            bool left = below(2);
            qlist_push(m->list, left, elem_of(number), m->size);
            model_insert(m, left ? 0 : m->count, number);
        } else if (m->count) {
            bool left = below(2);
            qlist_trim(m->list, left, !left);
            model_cut(m, left ? 0 : m->count - 1, 1);
        }
        break;
    case 5:
    case 6:
    case 7:
        if (m->count && m->count < MODEL_MAX) {
            bool after = below(2);
            qlist_seek(m->list, at, &pos);
            qlist_insert(&pos, after, elem_of(number), m->size);
            model_insert(m, at + after, number);
        }
        break;
    case 8:
    case 9:
        if (m->count) {
            qlist_set(m->list, at, elem_of(number), m->size);
            m->numbers[at] = number;
        }
        break;
    case 10: {
        size_t max = below(3) ? 1 + below(3) : SIZE_MAX;
        bool back = below(2);
        assert_int_equal(qlist_remove(m->list, elem_of(number), max, back), model_remove(m, number, max, back));
        break;
    }
    default:
        if (m->count && below(grow ? 40 : 4) == 0) {
            size_t left = below(m->count + 1) / (1 + below(8)), right = below(m->count - left + 1) / (1 + below(8));
            qlist_trim(m->list, left, right);
            model_cut(m, m->count - right, right);
            model_cut(m, 0, left);
        }
    }
}

static struct object *reload(const struct object *o, const struct obj_limits *lim)
{
    struct buf dump, again;
    struct slice value;
    buf_init(&dump, MEM_OTHER);
    buf_init(&again, MEM_OTHER);
    assert_true(rdb_dump(o, NULL, &dump));
    assert_true(rdb_undump(buf_slice(&dump), &value));
    struct object *back = rdb_parse(value, lim, &key, 0, 0);
    assert_non_null(back);
    assert_true(rdb_dump(back, NULL, &again));
    assert_true(slice_eq(buf_slice(&dump), buf_slice(&again)));
    assert_in_range(object_stored_len(back), value.len / 2, value.len + value.len / 4 + 16);
    buf_deinit(&dump);
    buf_deinit(&again);
    return back;
}

static void check(struct model *m)
{
    list_is_model(m->list, m);
    if (m->count == 0)
        return;
    struct obj_limits lim = {.list_size = m->size};
    struct object *copy = object_copy(m->list, &key, 0, 0), *back = reload(m->list, below(2) ? &lim : NULL);
    list_is_model(copy, m);
    list_is_model(back, m);
    assert_in_range(object_bytes(back), 1, object_bytes(copy) * 11 / 10 + 100);
    assert_string_equal(object_encoding_name(back), "quicklist");
    object_free(m->list);
    object_free(copy);
    m->list = back;
}

static void test_against_model(void **state)
{
    static const int sizes[] = {-2, -1, -5, -9, 128, 3, 1, 0};
    int64_t before = mem_class_bytes(MEM_DATA);
    (void)state;
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        static struct model m;
        m = (struct model){.list = qlist_create(&key), .size = sizes[s]};
        for (int i = 0; i < 4000; i++) {
            step(&m, i / 500 % 3 != 2);
            if (i % 50 == 0)
                check(&m);
        }
        check(&m);
        object_free(m.list);
        assert_int_equal(mem_class_bytes(MEM_DATA), before);
    }
}

/* What object_bytes() says is what there is, in both encodings. */
static void test_bytes_are_right(void **state)
{
    int64_t before = mem_class_bytes(MEM_DATA);
    struct object *o = qlist_create(&key);
    (void)state;
    for (int i = 0; i < 3000; i++) {
        qlist_push(o, below(2), elem_of((int)below(400)), -1);
        if (i % 100 == 0)
            assert_int_equal(object_bytes(o), mem_class_bytes(MEM_DATA) - before);
    }
    while (qlist_len(o) > 10) {
        bool left = below(2);
        qlist_trim(o, left, !left);
        if (qlist_len(o) % 100 == 0)
            assert_int_equal(object_bytes(o), mem_class_bytes(MEM_DATA) - before);
    }
    qlist_remove(o, elem_of(1), SIZE_MAX, false);
    assert_int_equal(object_bytes(o), mem_class_bytes(MEM_DATA) - before);
    object_free(o);
}

static void test_a_small_one_is_one_allocation(void **state)
{
    struct object *o = qlist_create(&key);
    (void)state;
    for (int i = 0; i < 8; i++)
        qlist_push(o, false, SLICE_LIT("0123456789"), -2);
    assert_int_equal(o->enc, ENC_LISTPACK);
    assert_true(object_bytes(o) < 16 + 48 + 32 + 112); /* what it is in Redis */
    for (int i = 0; i < 2000; i++)
        qlist_push(o, false, SLICE_LIT("0123456789"), -2);
    assert_int_equal(o->enc, ENC_BIG);
    assert_true(object_bytes(o) < 2008 * 12 * 5 / 4 + 1000);
    qlist_trim(o, 0, 2000);
    assert_true(object_bytes(o) < 600);
    object_free(o);
}

static void test_a_queue_moves_through(void **state)
{
    struct object *o = qlist_create(&key);
    (void)state;
    for (int i = 0; i < 10000; i++)
        qlist_push(o, true, elem_of(7), 16);
    for (int i = 0; i < 100000; i++) {
        qlist_push(o, i % 20000 < 10000, elem_of(7), 16);
        qlist_trim(o, i % 20000 >= 10000, i % 20000 < 10000);
    }
    assert_int_equal(qlist_len(o), 10000);
    assert_true(object_bytes(o) < 10000 * 20 * 2);
    object_free(o);
}

static void test_a_million(void **state)
{
    struct object *o = qlist_create(&key);
    char number[32], scratch[NUM_I64_MAX];
    struct qlist_pos at;
    (void)state;
    for (int i = 0; i < 1000000; i++)
        qlist_push(o, i & 1, SLICE(number, (size_t)snprintf(number, sizeof(number), "element:%d", i)), -2);
    for (int i = 0; i < 10000; i++) {
        size_t index = below(1000000);
        long n = (long)index < 500000 ? 999999 - 2 * (long)index : 2 * ((long)index - 500000);
        qlist_seek(o, index, &at);
        assert_true(slice_eq(qlist_get(&at, scratch),
                             SLICE(number, (size_t)snprintf(number, sizeof(number), "element:%ld", n))));
    }
    for (int i = 0; i < 10000; i++) {
        qlist_seek(o, 400000, &at);
        qlist_insert(&at, i & 1, SLICE_LIT("x"), -2);
    }
    assert_int_equal(qlist_remove(o, SLICE_LIT("x"), SIZE_MAX, true), 10000);
    qlist_trim(o, 400000, 599990);
    assert_int_equal(qlist_len(o), 10);
    assert_true(object_bytes(o) < 30000);
    object_free(o);
}

/* ---- other forms ---- */

static struct object *parse(const struct buf *b)
{
    struct obj_limits lim = {.list_size = -2};
    return rdb_parse(buf_slice(b), &lim, &key, 0, 0);
}

static void is_abc(struct object *o)
{
    char scratch[NUM_I64_MAX];
    struct qlist_pos at;
    assert_non_null(o);
    assert_int_equal(qlist_len(o), 3);
    qlist_seek(o, 0, &at);
    assert_true(slice_eq(qlist_get(&at, scratch), SLICE_LIT("a")));
    qlist_step(&at, false);
    assert_true(slice_eq(qlist_get(&at, scratch), SLICE_LIT("1234")));
    qlist_step(&at, false);
    assert_true(slice_eq(qlist_get(&at, scratch), SLICE_LIT("c")));
    object_free(o);
}

/* 21 bytes, the last element at 17, 3 elements */
static const char ziplist[] = "\x15\0\0\0\x11\0\0\0\x03\0"
                              "\0\x01"
                              "a"
                              "\x03\xc0\xd2\x04"
                              "\x04\x01"
                              "c\xff";

static void test_older_forms(void **state)
{
    struct buf b;
    (void)state;
    buf_init(&b, MEM_OTHER);
    buf_byte(&b, RDB_LIST);
    rdb_put_len(&b, 3);
    rdb_put_string(&b, SLICE_LIT("a"));
    rdb_put_string(&b, SLICE_LIT("1234"));
    rdb_put_string(&b, SLICE_LIT("c"));
    is_abc(parse(&b));

    b.len = 0;
    buf_byte(&b, RDB_LIST_ZIPLIST);
    rdb_put_raw(&b, SLICE(ziplist, sizeof(ziplist) - 1));
    is_abc(parse(&b));

    b.len = 0;
    buf_byte(&b, RDB_LIST_QUICKLIST);
    rdb_put_len(&b, 1);
    rdb_put_raw(&b, SLICE(ziplist, sizeof(ziplist) - 1));
    is_abc(parse(&b));

    /* plain and packed nodes, one of them empty */
    unsigned char *lp = listpack_append(listpack_new(0), SLICE_LIT("1234")), *none = listpack_new(0);
    b.len = 0;
    buf_byte(&b, RDB_LIST_QUICKLIST_2);
    rdb_put_len(&b, 4);
    rdb_put_len(&b, 1);
    rdb_put_raw(&b, SLICE_LIT("a"));
    rdb_put_len(&b, 2);
    rdb_put_raw(&b, listpack_slice(lp));
    rdb_put_len(&b, 2);
    rdb_put_raw(&b, listpack_slice(none));
    rdb_put_len(&b, 1);
    rdb_put_raw(&b, SLICE_LIT("c"));
    is_abc(parse(&b));

    /* nothing in it, a container that is none, a node more than there are */
    b.len = 0;
    buf_byte(&b, RDB_LIST_QUICKLIST_2);
    rdb_put_len(&b, 1);
    rdb_put_len(&b, 2);
    rdb_put_raw(&b, listpack_slice(none));
    assert_null(parse(&b));
    b.ptr[2] = 3;
    assert_null(parse(&b));
    b.len = 0;
    buf_byte(&b, RDB_LIST_QUICKLIST_2);
    rdb_put_len(&b, 2);
    rdb_put_len(&b, 2);
    rdb_put_raw(&b, listpack_slice(lp));
    assert_null(parse(&b));
    listpack_free(lp);
    listpack_free(none);
    buf_deinit(&b);
}

static void test_a_node_too_long_is_split(void **state)
{
    unsigned char *lp = listpack_new(0);
    struct buf b;
    (void)state;
    for (int i = 0; i < 70000; i++)
        lp = listpack_append_int(lp, i);
    buf_init(&b, MEM_OTHER);
    buf_byte(&b, RDB_LIST_QUICKLIST_2);
    rdb_put_len(&b, 1);
    rdb_put_len(&b, 2);
    rdb_put_raw(&b, listpack_slice(lp));
    listpack_free(lp);
    struct object *o = parse(&b);
    assert_non_null(o);
    assert_int_equal(o->enc, ENC_BIG);
    assert_int_equal(qlist_len(o), 70000);
    object_free(reload(o, NULL));
    object_free(o);
    buf_deinit(&b);
}

static void test_noise(void **state)
{
    static const int types[] = {RDB_LIST, RDB_LIST_ZIPLIST, RDB_LIST_QUICKLIST, RDB_LIST_QUICKLIST_2};
    int64_t before = mem_class_bytes(MEM_DATA);
    struct model m = {.list = qlist_create(&key), .size = 4};
    struct buf good;
    (void)state;
    buf_init(&good, MEM_OTHER);
    for (int i = 0; i < 30; i++)
        qlist_push(m.list, false, SLICE("0123456789", below(10)), m.size);
    assert_true(rdb_dump(m.list, NULL, &good));
    object_free(m.list);
    for (int i = 0; i < 100000; i++) {
        bool bent = below(2); /* a good one with a few bytes changed, or nothing that makes sense */
        size_t len = bent ? good.len - 10 - below(4) : 1 + below(40);
        char *in = malloc(len); /* of the exact size, so that reading on is seen */
        if (bent)
            memcpy(in, good.ptr, len);
        for (size_t n = bent ? below(4) : len; n > 0; n--)
            in[below(len)] = (char)(below(2) ? below(8) : rng_next(&seed));
        if (!bent)
            in[0] = (char)types[below(4)];
        struct obj_limits lim = {.list_size = -1};
        struct object *o = rdb_parse(SLICE(in, len), below(2) ? &lim : NULL, &key, 0, 0);
        if (o && o->type == OBJ_LIST) {
            struct qlist_pos at;
            char scratch[NUM_I64_MAX];
            size_t n = 1;
            for (qlist_seek(o, 0, &at); qlist_get(&at, scratch).len <= len * 300 && qlist_step(&at, false);)
                n++;
            assert_int_equal(n, qlist_len(o));
        }
        object_free(o);
        free(in);
    }
    buf_deinit(&good);
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_model),
        cmocka_unit_test(test_bytes_are_right),
        cmocka_unit_test(test_a_small_one_is_one_allocation),
        cmocka_unit_test(test_a_queue_moves_through),
        cmocka_unit_test(test_a_million),
        cmocka_unit_test(test_older_forms),
        cmocka_unit_test(test_a_node_too_long_is_split),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
