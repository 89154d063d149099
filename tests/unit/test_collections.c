/* What types are made of: listpacks, hash tables within a value, Redis's serial primitives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/alloc.h"
#include "tiercel/dict.h"
#include "tiercel/hash.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"

static uint64_t seed = 11;

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

/* ---- listpacks against an array --------------------------------------------------------------- */

#define MODEL_MAX 300

static struct slice model[MODEL_MAX];
static size_t nmodel;

/* Numbers at the limits of all their forms, strings at those of theirs. */
static struct slice random_elem(void)
{
    static const int64_t edges[] = {0,         127,       128,       -1,        4095,    -4096,
                                    4096,      -4097,     INT16_MAX, INT16_MIN, 8388607, -8388608,
                                    INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN};
    static const size_t lengths[] = {0, 1, 5, 62, 63, 64, 100, 120, 126, 127, 128, 129, 4094, 4095, 4096, 5000, 17000};
    char *text = malloc(20000);
    size_t len;

    if (below(2)) {
        int64_t v = edges[below(sizeof(edges) / sizeof(*edges))];
        v = below(2) ? v : v < 0 ? v + (int64_t)below(3) : v - (int64_t)below(3);
        len = (size_t)snprintf(text, 32, "%lld", (long long)v);
        if (below(8) == 0)
            text[len++] = ' '; /* no number */
    } else {
        len = lengths[below(sizeof(lengths) / sizeof(*lengths))];
        for (size_t i = 0; i < len; i++)
            text[i] = (char)rng_next(&seed);
    }
    return SLICE(text, len);
}

static void model_insert(size_t at, struct slice elem)
{
    memmove(model + at + 1, model + at, (nmodel - at) * sizeof(*model));
    model[at] = elem;
    nmodel++;
}

static void model_remove(size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++)
        free((void *)(uintptr_t)model[i].ptr);
    memmove(model + at, model + at + n, (nmodel - at - n) * sizeof(*model));
    nmodel -= n;
}

static void assert_elem(const unsigned char *p, struct slice want)
{
    char scratch[NUM_I64_MAX];
    assert_non_null(p);
    assert_true(slice_eq(listpack_str(p, scratch), want));
    assert_true(listpack_is(p, want));
}

static void assert_is_model(const unsigned char *lp)
{
    size_t i = 0;
    assert_true(listpack_valid(listpack_slice(lp)));
    assert_int_equal(listpack_len(lp), nmodel);
    for (const unsigned char *p = listpack_first(lp); p; p = listpack_next(lp, p))
        assert_elem(p, model[i++]);
    assert_int_equal(i, nmodel);
    for (const unsigned char *p = listpack_last(lp); p; p = listpack_prev(lp, p))
        assert_elem(p, model[--i]);
    assert_int_equal(i, 0);
    assert_null(listpack_at(lp, (long)nmodel));
    assert_null(listpack_at(lp, -(long)nmodel - 1));
    if (nmodel) {
        size_t at = below(nmodel);
        assert_elem(listpack_at(lp, (long)at), model[at]);
        assert_elem(listpack_at(lp, (long)at - (long)nmodel), model[at]);
        unsigned char *found = listpack_find(lp, listpack_first(lp), model[at], 0);
        size_t first = 0;
        while (!slice_eq(model[first], model[at]))
            first++;
        assert_ptr_equal(found, listpack_at(lp, (long)first));
    }
    assert_null(listpack_find(lp, listpack_first(lp), SLICE_LIT("never there"), 0));
}

static unsigned char *random_change(unsigned char *lp)
{
    size_t at = below(nmodel + 1), n;
    unsigned char *p = at < nmodel ? listpack_at(lp, (long)at) : NULL, *where = NULL;
    struct slice elem;

    switch (below(8)) {
    case 0:
    case 1:
    case 2: /* insert */
        if (nmodel == MODEL_MAX)
            return lp;
        elem = random_elem();
        size_t before = listpack_bytes(lp);
        lp = listpack_insert(lp, p, elem, &where);
        assert_int_equal(listpack_bytes(lp) - before, listpack_cost(elem));
        model_insert(at, elem);
        assert_elem(where, elem);
        return lp;
    case 3:
        if (nmodel == MODEL_MAX)
            return lp;
        elem = random_elem();
        lp = below(2) ? (at = nmodel, listpack_append(lp, elem)) : (at = 0, listpack_prepend(lp, elem));
        model_insert(at, elem);
        return lp;
    case 4: /* replace */
        if (!p)
            return lp;
        elem = random_elem();
        lp = listpack_replace(lp, p, elem, &where);
        free((void *)(uintptr_t)model[at].ptr);
        model[at] = elem;
        assert_elem(where, elem);
        return lp;
    case 5:
        if (!p)
            return lp;
        lp = listpack_replace_int(lp, p, -77, &where);
        free((void *)(uintptr_t)model[at].ptr);
        model[at] = SLICE(strdup("-77"), 3);
        return lp;
    default: /* remove */
        n = below(4);
        if (!p)
            return lp;
        lp = listpack_remove(lp, p, n, &where);
        if (n > nmodel - at)
            n = nmodel - at;
        model_remove(at, n);
        if (n && at < nmodel)
            assert_elem(where, model[at]);
        else if (n)
            assert_null(where);
        return lp;
    }
}

static void test_listpack_model(void **state)
{
    (void)state;
    int64_t before = mem_class_bytes(MEM_DATA);
    for (int round = 0; round < 20; round++) {
        unsigned char *lp = listpack_new(below(2) * 100);
        for (int i = 0; i < 400; i++) {
            lp = random_change(lp);
            if (i % 10 == 0)
                assert_is_model(lp);
        }
        unsigned char *copy = listpack_copy(lp);
        assert_is_model(copy);
        copy = listpack_join(copy, lp);
        assert_int_equal(listpack_len(copy), 2 * nmodel);
        assert_true(listpack_valid(listpack_slice(copy)));
        listpack_free(copy);
        listpack_free(lp);
        model_remove(0, nmodel);
    }
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

/* More elements than the header can count. */
static void test_listpack_long(void **state)
{
    (void)state;
    unsigned char *lp = listpack_new(0);
    for (int i = 0; i < 70000; i++)
        lp = listpack_append_int(lp, i);
    assert_int_equal(listpack_len(lp), 70000);
    assert_true(listpack_valid(listpack_slice(lp)));
    assert_elem(listpack_at(lp, 65535), SLICE_LIT("65535"));
    assert_elem(listpack_at(lp, -1), SLICE_LIT("69999"));
    lp = listpack_remove(lp, listpack_at(lp, 100), 69990, NULL);
    assert_int_equal(listpack_len(lp), 100);
    assert_true(listpack_valid(listpack_slice(lp)));
    listpack_free(lp);
}

/* The bytes that Redis has for the same. */
static void test_listpack_bytes(void **state)
{
    (void)state;
    static const unsigned char want[] = {0x17, 0,    0, 0, 3, 0,    0x82, 'a',  'b', 3,   0x05,
                                         1,    0xf2, 0, 0, 1, 0x04, 0xdf, 0xff, 2,   0xff};
    unsigned char *lp = listpack_new(0);
    lp = listpack_append(lp, SLICE_LIT("ab"));
    lp = listpack_append(lp, SLICE_LIT("5"));
    lp = listpack_append(lp, SLICE_LIT("65536"));
    lp = listpack_append(lp, SLICE_LIT("-1"));
    unsigned char expect[sizeof(want)];
    memcpy(expect, want, sizeof(want));
    expect[0] = sizeof(want);
    expect[4] = 4;
    assert_int_equal(listpack_bytes(lp), sizeof(want));
    assert_memory_equal(lp, expect, sizeof(want));
    listpack_free(lp);
}

/* Bytes of clients: what is not one is refused, and what is taken can be walked. */
static void test_listpack_noise(void **state)
{
    (void)state;
    for (int i = 0; i < 60000; i++) {
        unsigned char *lp = listpack_new(0);
        for (size_t n = below(4); n > 0; n--) {
            struct slice elem = random_elem();
            lp = listpack_append(lp, SLICE(elem.ptr, elem.len < 100 ? elem.len : 100));
            free((void *)(uintptr_t)elem.ptr);
        }
        size_t len = listpack_bytes(lp);
        char *noise = malloc(len); /* of the exact size, so that reading on is seen */
        memcpy(noise, lp, len);
        listpack_free(lp);
        for (size_t n = below(3); n > 0; n--)
            noise[below(len)] = (char)rng_next(&seed);
        size_t cut = below(4) ? len : below(len + 1);
        char *bytes = malloc(cut + 1);
        memcpy(bytes, noise, cut);
        free(noise);
        bytes = realloc(bytes, cut ? cut : 1);
        if (listpack_valid(SLICE(bytes, cut))) {
            char scratch[NUM_I64_MAX];
            size_t n = 0;
            lp = listpack_from(SLICE(bytes, cut));
            for (unsigned char *p = listpack_first(lp); p; p = listpack_next(lp, p), n++)
                (void)listpack_str(p, scratch);
            for (unsigned char *p = listpack_last(lp); p; p = listpack_prev(lp, p))
                n--;
            assert_int_equal(n, 0);
            listpack_free(lp);
        }
        free(bytes);
    }
}

/* ---- hash tables ------------------------------------------------------------------------------ */

struct item {
    struct dict_entry entry;
    int stays;
    unsigned seen;
    size_t len;
    char name[16];
};

static struct slice item_key(const struct dict_entry *e)
{
    const struct item *it = (const struct item *)e;
    return SLICE(it->name, it->len);
}

static struct item *item_new(unsigned n)
{
    struct item *it = mem_calloc(MEM_DATA, sizeof(*it));
    it->len = (size_t)snprintf(it->name, sizeof(it->name), "item:%u", n);
    return it;
}

static void item_free(void *arg, struct dict_entry *e)
{
    (void)arg;
    mem_free(MEM_DATA, e);
}

#define ITEMS 5000

static void test_dict_model(void **state)
{
    (void)state;
    int64_t before = mem_class_bytes(MEM_DATA);
    struct item **there = calloc(ITEMS, sizeof(*there));
    struct dict d;
    size_t count = 0;

    dict_init(&d, item_key);
    for (int i = 0; i < 300000; i++) {
        /* It grows, shrinks, and grows again. */
        size_t n = below(ITEMS), want = i / 60000 % 2 ? 1 : 9;
        struct item probe = {.len = 0};
        probe.len = (size_t)snprintf(probe.name, sizeof(probe.name), "item:%zu", n);
        struct slice key = item_key(&probe.entry);
        assert_ptr_equal(dict_find(&d, key), there[n]);
        if (!there[n] && below(10) < want) {
            there[n] = item_new((unsigned)n);
            dict_add(&d, &there[n]->entry);
            count++;
        } else if (there[n] && below(10) >= want) {
            assert_ptr_equal(dict_remove(&d, key), there[n]);
            mem_free(MEM_DATA, there[n]);
            there[n] = NULL;
            count--;
        } else if (there[n] && below(4) == 0) { /* it moves in memory */
            struct dict_entry **place = dict_place(&d, key);
            struct item *moved = item_new((unsigned)n);
            moved->entry.next = (*place)->next;
            mem_free(MEM_DATA, *place);
            *place = &moved->entry;
            there[n] = moved;
        }
        assert_int_equal(d.count, count);
        if (i % 5000 == 0) {
            size_t seen = 0;
            for (struct dict_iter it = dict_iter(&d); dict_next(&it); seen++)
                ;
            assert_int_equal(seen, count);
            assert_true(count == 0 ? !dict_random(&d, &seed) : dict_random(&d, &seed) != NULL);
        }
    }
    dict_clear(&d, item_free, NULL);
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
    free(there);
}

static void mark(void *arg, struct dict_entry *e)
{
    (void)arg;
    ((struct item *)e)->seen++;
}

/* What is there from its start to its end, a walk meets, whatever comes and goes meanwhile. */
static void test_dict_scan(void **state)
{
    (void)state;
    for (int round = 0; round < 60; round++) {
        struct dict d;
        struct item *stay[200];
        unsigned next = 1000, first = 1000;
        uint64_t cursor = 0;
        dict_init(&d, item_key);
        for (unsigned i = 0; i < 200; i++) {
            stay[i] = item_new(i);
            dict_add(&d, &stay[i]->entry);
        }
        bool grows = round % 2;
        for (size_t i = grows ? 0 : 6000; i > 0; i--)
            dict_add(&d, &item_new(next++)->entry);
        do {
            cursor = dict_scan(&d, cursor, mark, NULL);
            for (size_t i = below(60); i > 0; i--) {
                if (grows && next < 7000) {
                    dict_add(&d, &item_new(next++)->entry);
                } else if (!grows && first < next) {
                    char name[16];
                    size_t len = (size_t)snprintf(name, sizeof(name), "item:%u", first++);
                    mem_free(MEM_DATA, dict_remove(&d, SLICE(name, len)));
                }
            }
        } while (cursor != 0);
        for (unsigned i = 0; i < 200; i++)
            assert_true(stay[i]->seen > 0);
        dict_clear(&d, item_free, NULL);
    }
}

static void test_dict_random_is_fair(void **state)
{
    (void)state;
    struct dict d;
    dict_init(&d, item_key);
    for (unsigned i = 0; i < 100; i++)
        dict_add(&d, &item_new(i)->entry);
    for (int i = 0; i < 100000; i++)
        mark(NULL, dict_random(&d, &seed));
    for (struct dict_iter it = dict_iter(&d); dict_next(&it);) {
        unsigned seen = ((struct item *)it.e)->seen; /* 1,000 of each, were it perfect */
        assert_in_range(seen, 750, 1300);
    }
    dict_clear(&d, item_free, NULL);
}

/* ---- Redis's serial primitives ------------------------------------------------------------------ */

static void test_rdb_primitives(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {0, 1, 63, 64, 16383, 16384, UINT32_MAX, 1ULL << 32, UINT64_MAX};
    static const char *const strings[] = {"",
                                          "a",
                                          "12",
                                          "-128",
                                          "127",
                                          "128",
                                          "32767",
                                          "-32769",
                                          "2147483647",
                                          "-2147483648",
                                          "2147483648",
                                          "007",
                                          "9223372036854775807"};
    struct buf out, text;
    buf_init(&out, MEM_OTHER);
    buf_init(&text, MEM_OTHER);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++)
        rdb_put_len(&out, lengths[i]);
    for (size_t i = 0; i < sizeof(strings) / sizeof(*strings); i++)
        rdb_put_string(&out, slice_str(strings[i]));
    rdb_put_double(&out, -1.5);
    rdb_put_i64(&out, INT64_MIN);
    for (size_t cut = 0; cut <= out.len; cut++) {
        char *exact = malloc(cut ? cut : 1);
        memcpy(exact, out.ptr, cut);
        struct rdb_reader in = {exact, exact + cut, &text, NULL};
        uint64_t len;
        struct slice s;
        double f;
        int64_t n;
        bool ok = true;
        for (size_t i = 0; ok && i < sizeof(lengths) / sizeof(*lengths); i++)
            ok = rdb_get_len(&in, &len) && len == lengths[i];
        for (size_t i = 0; ok && i < sizeof(strings) / sizeof(*strings); i++)
            ok = rdb_get_string(&in, &s) && slice_eq(s, slice_str(strings[i]));
        ok = ok && rdb_get_double(&in, &f) && f == -1.5 && rdb_get_i64(&in, &n) && n == INT64_MIN;
        assert_int_equal(ok, cut == out.len);
        free(exact);
    }
    buf_deinit(&out);
    buf_deinit(&text);
}

static void test_rdb_checksum(void **state)
{
    (void)state;
    /* The check value that its authors give. */
    assert_true(rdb_crc64(0, SLICE_LIT("123456789")) == 0xe9c6d914c4b8d9caULL);
    char bytes[100];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)i;
    for (size_t cut = 0; cut <= sizeof(bytes); cut++)
        assert_true(rdb_crc64(rdb_crc64(0, SLICE(bytes, cut)), SLICE(bytes + cut, sizeof(bytes) - cut)) ==
                    rdb_crc64(0, SLICE(bytes, sizeof(bytes))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listpack_model),      cmocka_unit_test(test_listpack_long),
        cmocka_unit_test(test_listpack_bytes),      cmocka_unit_test(test_listpack_noise),
        cmocka_unit_test(test_dict_model),          cmocka_unit_test(test_dict_scan),
        cmocka_unit_test(test_dict_random_is_fair), cmocka_unit_test(test_rdb_primitives),
        cmocka_unit_test(test_rdb_checksum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
