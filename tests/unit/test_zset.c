#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "tiercel/geohash.h"
#include "tiercel/hash.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"
#include "tiercel/type_zset.h"

/* Sorted sets against a sorted array, in both encodings; geohashes against what redis-server says. */

static uint64_t seed = 5;
static const struct key key = {.ptr = "key", .len = 3};
static const struct obj_limits small = {.zset_entries = 128, .zset_value = 64};
static const struct obj_limits always = {.zset_entries = SIZE_MAX, .zset_value = SIZE_MAX};
static const struct obj_limits never = {.zset_entries = 0};

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

/* ---- the model: an array in order ---- */

#define MODEL_MAX 3000
#define NAME_MAX_LEN 20

struct pair {
    char name[NAME_MAX_LEN];
    size_t len;
    double score;
};
static struct pair model[MODEL_MAX];
static size_t count;

static int order(double a, struct slice x, double b, struct slice y)
{
    size_t n = x.len < y.len ? x.len : y.len;
    int c = memcmp(x.ptr, y.ptr, n);

    if (a != b)
        return a < b ? -1 : 1;
    return c ? c : (x.len > y.len) - (x.len < y.len);
}

static struct slice name_of(const struct pair *p)
{
    return SLICE(p->name, p->len);
}

static size_t model_find(struct slice name)
{
    size_t i = 0;

    while (i < count && !slice_eq(name_of(&model[i]), name))
        i++;
    return i;
}

static void model_remove(size_t first, size_t n)
{
    memmove(model + first, model + first + n, (count - first - n) * sizeof(model[0]));
    count -= n;
}

static void model_add(struct slice name, double score)
{
    size_t i = 0;

    while (i < count && order(model[i].score, name_of(&model[i]), score, name) < 0)
        i++;
    assert_true(count < MODEL_MAX);
    memmove(model + i + 1, model + i, (count - i) * sizeof(model[0]));
    memcpy(model[i].name, name.ptr, name.len);
    model[i].len = name.len;
    model[i].score = score;
    count++;
}

/* ---- drawing ---- */

static struct slice draw_name(char out[NAME_MAX_LEN], size_t names)
{
    size_t n = below(names);
    int len = n % 3 == 0 ? snprintf(out, NAME_MAX_LEN, "%zu", n) : snprintf(out, NAME_MAX_LEN, "name %zx", n);

    if (n % 7 == 1)
        out[2] = (char)(n % 256);
    return SLICE(out, n == 5 ? 0 : (size_t)len);
}

static double draw_score(void)
{
    static const double odd[] = {0,    -0.0,     1e21,     -1e21, 3.0e-5, 0.1, 5e18, 4611686018427387904.0,
                                 1e17, INFINITY, -INFINITY};
    size_t how = below(10);

    if (how < 5)
        return (double)below(30) - 10;
    if (how < 8)
        return (double)(int64_t)rng_next(&seed) / 1e12;
    return odd[below(sizeof(odd) / sizeof(odd[0]))];
}

/* ---- comparing ---- */

static void same_members(const struct object *o)
{
    struct zset_iter it;
    size_t start = count ? below(count) : 0, i = 0;

    assert_int_equal(object_len(o), count);
    zset_seek(o, 0, false, &it);
    for (i = 0; zset_next(&it); i++) {
        assert_true(i < count && slice_eq(it.name, name_of(&model[i])));
        assert_true(it.score == model[i].score);
    }
    assert_int_equal(i, count);
    if (count == 0)
        return;
    zset_seek(o, start, true, &it);
    for (i = start; zset_next(&it); i--)
        assert_true(slice_eq(it.name, name_of(&model[i])));
    assert_int_equal(i, SIZE_MAX);
    zset_seek(o, count, false, &it);
    assert_false(zset_next(&it));
}

static bool in_range(const struct zset_range *r, const struct pair *p)
{
    if (r->lex) {
        int low = r->min.inf ? -r->min.inf : order(0, name_of(p), 0, r->min.name);
        int high = r->max.inf ? -r->max.inf : order(0, name_of(p), 0, r->max.name);
        return (low > 0 || (low == 0 && !r->min.open)) && (high < 0 || (high == 0 && !r->max.open));
    }
    return (r->min.open ? p->score > r->min.score : p->score >= r->min.score) &&
           (r->max.open ? p->score < r->max.score : p->score <= r->max.score);
}

static size_t same_range(const struct object *o, const struct zset_range *r, size_t *first)
{
    size_t n = 0, at = 0;

    for (size_t i = 0; i < count; i++)
        if (in_range(r, &model[i]) && n++ == 0)
            at = i;
    assert_int_equal(zset_find_range(o, r, false, first), n);
    assert_true(n == 0 || *first == at);
    assert_int_equal(zset_find_range(o, r, true, first), n);
    assert_true(n == 0 || *first == at);
    return n;
}

static struct object *round_trip(struct object *o, const struct obj_limits *lim)
{
    struct buf out;

    buf_init(&out, MEM_OTHER);
    assert_true(rdb_dump(o, NULL, &out));
    struct slice value;
    assert_true(rdb_undump(buf_slice(&out), &value));
    struct object *back = rdb_parse(value, lim, &key, 0, 0);
    assert_non_null(back);
    assert_int_equal(back->type, OBJ_ZSET);
    if (!lim)
        assert_int_equal(back->enc, o->enc);
    buf_deinit(&out);
    object_free(o);
    return back;
}

/* ---- random operations ---- */

static void set_one(struct object *o, size_t names, bool one_score)
{
    char text[NAME_MAX_LEN];
    struct slice name = draw_name(text, names);
    double score = one_score ? 0 : draw_score(), had = 0, got = score;
    size_t at = model_find(name);
    bool is = at < count;

    had = is ? model[at].score : 0;
    unsigned how = below(4) ? 0 : 1u << below(5);
    enum zset_result res = zset_add(o, name, &got, how, below(2) ? &small : &always);
    double want = is && how & ZSET_INCR ? had + score : score;
    if (!is && how & ZSET_XX) {
        assert_int_equal(res, ZSET_NOTHING);
    } else if (!is) {
        assert_int_equal(res, ZSET_ADDED);
        model_add(name, score);
    } else if (isnan(want)) {
        assert_int_equal(res, ZSET_NAN);
    } else if (how & ZSET_NX || (how & ZSET_GT && want <= had) || (how & ZSET_LT && want >= had)) {
        assert_int_equal(res, ZSET_NOTHING);
    } else {
        assert_int_equal(res, want == had ? ZSET_SAME : ZSET_UPDATED);
        assert_true(got == want);
        model_remove(at, 1);
        model_add(name, want);
    }
}

static void look_up(const struct object *o, size_t names)
{
    char text[NAME_MAX_LEN];
    struct slice name = draw_name(text, names);
    size_t at = model_find(name), rank;
    double score;

    assert_int_equal(zset_score(o, name, &score), at < count);
    assert_int_equal(zset_rank(o, name, &rank), at < count);
    assert_true(at == count || (rank == at && score == model[at].score));
}

static struct zset_range draw_range(bool lex, char text[2][NAME_MAX_LEN], size_t names)
{
    struct zset_range r = {.lex = lex, .min.open = below(2), .max.open = below(2)};

    r.min.score = draw_score();
    r.max.score = draw_score();
    r.min.name = draw_name(text[0], names);
    r.max.name = draw_name(text[1], names);
    if (below(4) == 0)
        r.min.inf = below(2) ? 1 : -1;
    if (below(4) == 0)
        r.max.inf = below(2) ? 1 : -1;
    return r;
}

static void remove_some(struct object *o, size_t names, bool one_score)
{
    char text[NAME_MAX_LEN], bounds[2][NAME_MAX_LEN];
    size_t first = 0, n;

    if (below(12)) {
        struct slice name = draw_name(text, names);
        size_t at = model_find(name);
        assert_int_equal(zset_remove(o, name), at < count);
        if (at < count)
            model_remove(at, 1);
        return;
    }
    struct zset_range r = draw_range(one_score, bounds, names);
    n = same_range(o, &r, &first);
    if (n > 200)
        n = 200;
    zset_remove_ranks(o, first, n);
    if (n)
        model_remove(first, n);
}

static void random_operations(const struct obj_limits *lim, size_t names, bool one_score, int steps)
{
    struct object *o = zset_new(&key, lim, 0);
    char bounds[2][NAME_MAX_LEN];
    size_t first;

    count = 0;
    for (int i = 0; i < steps; i++) {
        size_t how = below(20);
        if (how < 11)
            set_one(o, names, one_score);
        else if (how < 14)
            remove_some(o, names, one_score);
        else if (how < 18)
            look_up(o, names);
        struct zset_range r = draw_range(one_score, bounds, names);
        if (how == 18)
            same_range(o, &r, &first);
        if (i % 97 == 0)
            same_members(o);
        if (i % 499 == 0 && count) {
            struct object *twin = object_copy(o, &key, 0, 0);
            same_members(twin);
            object_free(o);
            o = round_trip(twin, below(2) ? NULL : lim);
            same_members(o);
        }
    }
    same_members(o);
    while (count) { /* until nothing is left */
        size_t n = below(40) + 1, at = below(count);
        if (n > count - at)
            n = count - at;
        zset_remove_ranks(o, at, n);
        model_remove(at, n);
        if (below(10) == 0)
            same_members(o);
    }
    same_members(o);
    object_free(o);
}

static void test_small(void **state)
{
    (void)state;
    random_operations(&always, 60, false, 8000);
    random_operations(&always, 60, true, 4000);
}

static void test_growing(void **state)
{
    (void)state;
    random_operations(&small, 300, false, 8000);
    random_operations(&small, 300, true, 4000);
}

static void test_large(void **state)
{
    (void)state;
    random_operations(&never, 2500, false, 20000);
    random_operations(&never, 2500, true, 10000);
}

/* ---- memory and order of a large one ---- */

static size_t grow(struct object *o, size_t n, int direction)
{
    char text[NAME_MAX_LEN];

    for (size_t i = 0; i < n; i++) {
        double score = direction == 0 ? (double)(rng_next(&seed) >> 11) : direction > 0 ? (double)i : -(double)i;
        int len = snprintf(text, sizeof(text), "m:%08zu", i);
        assert_int_equal(zset_add(o, SLICE(text, (size_t)len), &score, 0, &never), ZSET_ADDED);
    }
    assert_int_equal(object_len(o), n);
    return object_bytes(o) / n;
}

static void test_memory(void **state)
{
    (void)state;
    for (int direction = -1; direction <= 1; direction++) {
        struct object *o = zset_new(&key, &never, 0);
        size_t bytes = grow(o, 1 << 17, direction), n = object_len(o), rank;
        print_message("%zu bytes per member of 10 bytes, %s\n", bytes,
                      direction < 0 ? "descending"
                      : direction   ? "ascending"
                                    : "at random");
        assert_true(bytes <= (direction ? 56 : 64)); /* Redis: about 95 */
        for (size_t i = 0; i < 2000; i++) {
            struct zset_iter it;
            size_t at = below(n);
            zset_seek(o, at, false, &it);
            assert_true(zset_next(&it));
            assert_true(zset_rank(o, it.name, &rank) && rank == at);
        }
        size_t before = object_bytes(o);
        zset_remove_ranks(o, 1000, n - 2000);
        assert_true(object_bytes(o) < before / 3); /* the dict's table is still on its way */
        o = round_trip(o, NULL);
        assert_int_equal(object_len(o), 2000);
        object_free(o);
    }
}

static void take(void *arg, struct slice name, struct slice score)
{
    size_t at = model_find(name);
    double v;
    (void)score;

    assert_true(at < count && num_parse_double(score, &v) && v == model[at].score);
    ++*(size_t *)arg;
}

static void test_scan(void **state)
{
    struct object *o = zset_new(&key, &never, 0);
    size_t met = 0;
    uint64_t cursor = 0;
    (void)state;

    count = 0;
    for (int i = 0; i < 2000; i++)
        set_one(o, 1000, false);
    do
        cursor = zset_scan(o, cursor, take, &met);
    while (cursor);
    assert_int_equal(met, count);
    object_free(o);
}

/* ---- what encodings look like, and what may be loaded ---- */

static void test_listpack_form(void **state)
{
    struct object *o = zset_new(&key, &small, 1);
    double score[] = {1.5, 3, -0.0, 1e21, -INFINITY};
    const char *names[] = {"b", "a", "17", "z", "y"};
    const char *want[] = {"y", "-inf", "17", "0", "b", "1.5", "a", "3", "z", "1e+21"};
    char scratch[NUM_I64_MAX];
    (void)state;

    for (int i = 0; i < 5; i++)
        zset_add(o, slice_str(names[i]), &score[i], 0, &small);
    assert_int_equal(o->enc, ENC_LISTPACK);
    const unsigned char *lp = object_ptr(o), *p = listpack_first(lp);
    for (int i = 0; i < 10; i++, p = listpack_next(lp, p))
        assert_true(slice_eq(listpack_str(p, scratch), slice_str(want[i])));
    assert_null(p);
    assert_string_equal(object_encoding_name(o), "listpack");
    char longer[65] = "x";
    zset_add(o, SLICE(longer, 65), &score[0], 0, &small);
    assert_string_equal(object_encoding_name(o), "skiplist");
    o = round_trip(o, &always); /* and back, when it is loaded */
    assert_string_equal(object_encoding_name(o), "listpack");
    object_free(o);
}

static struct object *load(const struct buf *b, const struct obj_limits *lim)
{
    return rdb_parse(buf_slice(b), lim, &key, 0, 0);
}

static struct buf listpack_of(int n, const char *const *elems)
{
    unsigned char *lp = listpack_new(0);
    struct buf b;

    buf_init(&b, MEM_OTHER);
    for (int i = 0; i < n; i++)
        lp = listpack_append(lp, slice_str(elems[i]));
    buf_byte(&b, RDB_ZSET_LISTPACK);
    rdb_put_raw(&b, listpack_slice(lp));
    listpack_free(lp);
    return b;
}

static void load_listpack(int n, const char *const *elems, bool good)
{
    struct buf b = listpack_of(n, elems);
    struct object *o = load(&b, &small);

    assert_int_equal(o != NULL, good);
    if (o) {
        struct zset_iter it;
        zset_seek(o, 0, false, &it);
        assert_true(zset_next(&it) && slice_eq(it.name, SLICE_LIT("a")) && it.score == 1);
    }
    object_free(o);
    buf_deinit(&b);
}

static void test_load_listpack(void **state)
{
    (void)state;
    load_listpack(4, (const char *[]){"a", "1", "b", "2"}, true);
    load_listpack(4, (const char *[]){"b", "2", "a", "1"}, true); /* sorted again */
    load_listpack(3, (const char *[]){"a", "1", "b"}, false);
    load_listpack(4, (const char *[]){"a", "1", "a", "2"}, false);
    load_listpack(2, (const char *[]){"a", "nan"}, false);
    load_listpack(2, (const char *[]){"a", "b"}, false);
    load_listpack(0, NULL, false);
}

static void load_zset2(int n, const char *const *names, const double *scores, bool good)
{
    struct buf b;

    buf_init(&b, MEM_OTHER);
    buf_byte(&b, RDB_ZSET_2);
    rdb_put_len(&b, (uint64_t)n);
    for (int i = 0; i < n; i++) {
        rdb_put_string(&b, slice_str(names[i]));
        rdb_put_double(&b, scores[i]);
    }
    struct object *o = load(&b, &small);
    assert_int_equal(o != NULL, good);
    object_free(o);
    o = load(&b, NULL);
    assert_true(!o || o->enc == ENC_BIG);
    object_free(o);
    buf_deinit(&b);
}

static void test_load_entries(void **state)
{
    const char *two[] = {"a", "b"}, *same[] = {"a", "a"};
    (void)state;

    load_zset2(2, two, (double[]){1, INFINITY}, true);
    load_zset2(2, two, (double[]){1, NAN}, false);
    load_zset2(2, same, (double[]){1, 2}, false);
    load_zset2(0, NULL, NULL, false);

    /* A length that is not there. */
    struct buf b;
    buf_init(&b, MEM_OTHER);
    buf_byte(&b, RDB_ZSET);
    rdb_put_len(&b, UINT64_MAX / 2);
    assert_null(load(&b, &small));
    b.len = 1; /* text scores: "0.25", infinity */
    rdb_put_len(&b, 2);
    rdb_put_string(&b, SLICE_LIT("x"));
    buf_append(&b,
               "\4"
               "0.25",
               5);
    rdb_put_string(&b, SLICE_LIT("y"));
    buf_byte(&b, (char)254);
    struct object *o = load(&b, &small);
    double score;
    assert_true(o && zset_score(o, SLICE_LIT("x"), &score) && score == 0.25);
    assert_true(zset_score(o, SLICE_LIT("y"), &score) && score == INFINITY);
    object_free(o);
    buf_deinit(&b);
}

static void test_noise(void **state)
{
    static const unsigned char types[] = {RDB_ZSET, RDB_ZSET_2, RDB_ZSET_ZIPLIST, RDB_ZSET_LISTPACK};
    (void)state;

    for (int i = 0; i < 20000; i++) {
        struct object *o = zset_new(&key, below(2) ? &never : &small, 0);
        struct buf b;
        count = 0;
        for (size_t n = below(10) + 1; n > 0; n--)
            set_one(o, 20, false);
        if (count == 0)
            model_add(SLICE_LIT("x"), 1), zset_add(o, SLICE_LIT("x"), &(double){1}, 0, &small);
        buf_init(&b, MEM_OTHER);
        assert_true(rdb_dump(o, NULL, &b));
        b.len -= 10;
        object_free(o);
        for (size_t n = below(4) + 1; n > 0; n--)
            b.ptr[below(b.len)] = (char)below(256);
        if (below(2))
            b.ptr[0] = (char)types[below(4)];
        if (below(4) == 0)
            b.len = below(b.len + 1);
        o = load(&b, below(2) ? &small : NULL);
        if (o && o->type == OBJ_ZSET) {
            struct zset_iter it;
            size_t n = 0;
            zset_seek(o, 0, false, &it);
            while (zset_next(&it))
                n++;
            assert_int_equal(n, object_len(o));
            assert_true(n > 0);
        }
        object_free(o);
        buf_deinit(&b);
    }
}

/* ---- places ---- */

static void test_geohash(void **state)
{
    /* What redis-server 7.0.15 makes of them. */
    static const struct {
        struct geo_point p;
        uint64_t score;
        const char *text;
    } known[] = {
        {{13.361389, 38.115556}, 3479099956230698, "sqc8b49rny0"},
        {{15.087269, 37.502669}, 3479447370796909, "sqdtr74hyu0"},
        {{0, 0}, 3377699720527872, "s0000000000"},
        {{-122.27652, 37.805186}, 1367952638197536, "9q9p1d0znt0"},
        {{-180, -85.05112878}, 0, "00bh0hbj200"},
        {{180, 85.05112878}, 13510798882111488, "bp05b5048p0"},
    };
    char text[GEO_HASH_TEXT];
    (void)state;

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        assert_int_equal(geo_encode(known[i].p), known[i].score);
        geo_text((double)known[i].score, text);
        assert_memory_equal(text, known[i].text, GEO_HASH_TEXT);
        assert_true(geo_distance(known[i].p, geo_decode((double)known[i].score)) < 1 || known[i].score >> 52);
    }
    assert_true(fabs(geo_distance(geo_decode(3479099956230698), geo_decode(3479447370796909)) - 166274.1516) < 0.0001);
    assert_false(geo_valid((struct geo_point){0, 86}) || geo_valid((struct geo_point){180.1, 0}));
}

/* Every place that is within a shape is in one of its cells. */
static void test_geo_cover(void **state)
{
    size_t within = 0;
    (void)state;

    for (int i = 0; i < 20000; i++) {
        double at_most = pow(10, (double)below(600) / 100);
        struct geo_shape s = {.center = {(double)below(340000) / 1000 - 170, (double)below(140000) / 1000 - 70},
                              .box = below(2),
                              .radius = at_most,
                              .width = at_most * (double)(below(20) + 1) / 10,
                              .height = at_most * (double)(below(20) + 1) / 10,
                              .unit = 1};
        double spread = at_most / 111000, distance;
        struct geo_point p = {s.center.lon + spread * ((double)below(4000) / 1000 - 2),
                              s.center.lat + spread * ((double)below(2000) / 1000 - 1)};
        if (!geo_valid(p))
            continue;
        uint64_t score = geo_encode(p);
        if (!geo_within(&s, geo_decode((double)score), &distance))
            continue;
        struct geo_cell cell[GEO_CELLS];
        int n = geo_cover(&s, cell), in = 0;
        for (int k = 0; k < n; k++)
            in += score >= cell[k].min && score < cell[k].max;
        assert_int_equal(in, 1);
        within++;
    }
    assert_true(within > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),         cmocka_unit_test(test_growing),      cmocka_unit_test(test_large),
        cmocka_unit_test(test_memory),        cmocka_unit_test(test_scan),         cmocka_unit_test(test_listpack_form),
        cmocka_unit_test(test_load_listpack), cmocka_unit_test(test_load_entries), cmocka_unit_test(test_noise),
        cmocka_unit_test(test_geohash),       cmocka_unit_test(test_geo_cover),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
