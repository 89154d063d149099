/* Streams against plain arrays: entries, tombstones, trims, ranges, groups; the serial form, whole and damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/alloc.h"
#include "tiercel/hash.h"
#include "tiercel/rdb.h"
#include "tiercel/type_stream.h"

static uint64_t seed = 5;

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

#define ENTRIES 4000

static struct entry {
    struct stream_id id;
    int fields;
} model[ENTRIES];
static size_t nmodel;

static struct stream_id id_of(uint64_t ms, uint64_t seq)
{
    return (struct stream_id){ms, seq};
}

static bool same_id(struct stream_id a, struct stream_id b)
{
    return stream_id_cmp(a, b) == 0;
}

/* What an entry holds follows from its ID. */
static int make_pairs(struct stream_id id, struct slice pairs[8], char text[8][40])
{
    int nfields = 1 + (int)(id.seq % 4);
    for (int i = 0; i < nfields; i++) {
        size_t len = (size_t)snprintf(text[2 * i], 40, "field-%d", i + (id.ms % 7 == 0));
        pairs[2 * i] = SLICE(text[2 * i], len);
        len = (size_t)snprintf(text[2 * i + 1], 40, id.ms % 2 ? "%llu" : "value:%llu",
                               (unsigned long long)id.ms + (unsigned)i);
        pairs[2 * i + 1] = SLICE(text[2 * i + 1], len);
    }
    return nfields;
}

static void add(struct stream *s, const struct obj_limits *lim)
{
    struct stream_id id = s->last_id;
    struct slice pairs[8];
    char text[8][40];
    if (below(3))
        id.seq += 1 + below(3);
    else
        id = id_of(id.ms + 1 + below(100000), below(5));
    int nfields = make_pairs(id, pairs, text);
    assert_true(stream_append(s, lim, id, pairs, (size_t)nfields));
    model[nmodel++] = (struct entry){id, nfields};
}

static void model_remove(size_t at, size_t n)
{
    memmove(model + at, model + at + n, (nmodel - at - n) * sizeof(*model));
    nmodel -= n;
}

static void assert_entry(struct stream_walk *w, const struct entry *want)
{
    char fscratch[NUM_I64_MAX], vscratch[NUM_I64_MAX], text[8][40];
    struct slice field, value, pairs[8];
    assert_true(same_id(w->id, want->id));
    assert_int_equal(w->nfields, want->fields);
    make_pairs(want->id, pairs, text);
    for (int i = 0; i < want->fields; i++) {
        stream_walk_field(w, &field, &value, fscratch, vscratch);
        assert_true(slice_eq(field, pairs[2 * i]) && slice_eq(value, pairs[2 * i + 1]));
    }
}

static void assert_range(const struct stream *s, struct stream_id from, struct stream_id to)
{
    struct stream_walk w;
    size_t low = 0, high = nmodel;
    while (low < nmodel && stream_id_cmp(model[low].id, from) < 0)
        low++;
    while (high > 0 && stream_id_cmp(model[high - 1].id, to) > 0)
        high--;
    stream_walk_start(&w, s, from, to, false);
    for (size_t i = low; i < high; i++) {
        assert_true(stream_walk_next(&w));
        assert_entry(&w, &model[i]);
    }
    assert_false(stream_walk_next(&w));
    stream_walk_start(&w, s, from, to, true);
    for (size_t i = high; i > low; i--) {
        assert_true(stream_walk_next(&w));
        assert_entry(&w, &model[i - 1]);
    }
    assert_false(stream_walk_next(&w));
}

static struct stream_id some_id(void)
{
    if (nmodel == 0 || below(10) == 0)
        return id_of(below(1000000), below(5));
    struct stream_id id = model[below(nmodel)].id;
    if (below(3) == 0)
        id.seq += below(3);
    return id;
}

/* The running count of bytes, made anew. */
static size_t bytes_of(const struct stream *s)
{
    size_t sum = mem_usable(s) + (s->node ? mem_usable(s->node) : 0) + (s->group ? mem_usable(s->group) : 0);
    for (size_t i = 0; i < s->nnodes; i++)
        sum += mem_usable(s->node[s->first + i].lp);
    for (size_t i = 0; i < s->ngroups; i++) {
        const struct stream_group *g = s->group[i];
        sum += mem_usable(g) + (g->consumer ? mem_usable(g->consumer) : 0);
        for (size_t k = 0; k < g->nconsumers; k++)
            sum += mem_usable(g->consumer[k]);
        for (const struct stream_nack *n = stream_pel_from(&g->pel, STREAM_OF_GROUP, STREAM_ID_MIN); n;) {
            struct stream_id next = n->id;
            sum += mem_usable(n);
            n = stream_id_next(&next) ? stream_pel_from(&g->pel, STREAM_OF_GROUP, next) : NULL;
        }
    }
    return sum;
}

static struct key key_of(void)
{
    return (struct key){.ptr = "k", .len = 1};
}

/* Through the serial form it says the same; of noise nothing is left. */
static void assert_saves(struct stream *s)
{
    struct obj_limits lim = {.stream_bytes = 4096, .stream_entries = 100};
    struct key key = key_of();
    struct object *o = object_new_ptr(&key, OBJ_STREAM, ENC_BIG, s, 0, 0), *copy;
    struct buf first, second;
    struct slice value;
    buf_init(&first, MEM_OTHER);
    buf_init(&second, MEM_OTHER);
    assert_true(rdb_dump(o, NULL, &first));
    assert_true(rdb_undump(buf_slice(&first), &value));
    copy = rdb_parse(value, &lim, &key, 0, 0);
    assert_non_null(copy);
    struct stream *c = object_ptr(copy);
    assert_true(rdb_dump(copy, NULL, &second));
    assert_true(slice_eq(buf_slice(&first), buf_slice(&second)));
    assert_int_equal(c->bytes, bytes_of(c));
    assert_range(c, STREAM_ID_MIN, STREAM_ID_MAX);
    object_free(copy);
    for (int i = 0; i < 20; i++) {
        second.len = 0;
        buf_slice_append(&second, value);
        for (size_t n = 1 + below(3); n > 0; n--)
            second.ptr[1 + below(second.len - 1)] ^= (char)(1 << below(8));
        if (below(4) == 0)
            second.len = 1 + below(second.len - 1);
        copy = rdb_parse(buf_slice(&second), &lim, &key, 0, 0);
        if (copy) { /* still one: then it can be walked and changed */
            struct stream_walk w;
            size_t n = 0;
            c = object_ptr(copy);
            stream_walk_start(&w, c, STREAM_ID_MIN, STREAM_ID_MAX, true);
            while (stream_walk_next(&w))
                n++;
            assert_int_equal(n, c->length);
            struct stream_trim trim = {.maxlen = n / 2};
            stream_trim(c, &trim);
            assert_int_equal(c->bytes, bytes_of(c));
        }
        object_free(copy);
    }
    buf_deinit(&first);
    buf_deinit(&second);
    copy = object_copy(o, &key, 7, 0);
    object_free(copy);
    object_set_ptr(o, ENC_BIG, stream_create());
    object_free(o);
}

static void remove_some(struct stream *s)
{
    struct stream_id id = some_id();
    size_t at = 0;
    while (at < nmodel && !same_id(model[at].id, id))
        at++;
    assert_int_equal(stream_has(s, id), at < nmodel);
    assert_int_equal(stream_delete(s, id), at < nmodel);
    if (at < nmodel)
        model_remove(at, 1);
    stream_find_first(s);
}

static void trim_some(struct stream *s)
{
    struct stream_trim t = {
        .by_id = below(2), .approx = below(2), .maxlen = nmodel - (nmodel ? below(nmodel / 8 + 1) : 0)};
    size_t want = nmodel > t.maxlen ? nmodel - (size_t)t.maxlen : 0;
    if (t.by_id) {
        t.minid = nmodel ? model[below(nmodel / 8 + 1)].id : STREAM_ID_MIN;
        for (want = 0; want < nmodel && stream_id_cmp(model[want].id, t.minid) < 0;)
            want++;
    }
    int64_t got = stream_trim(s, &t);
    if (t.approx)
        assert_in_range(got, 0, want);
    else
        assert_int_equal(got, want);
    model_remove(0, (size_t)got);
}

static void test_entries(void **state)
{
    (void)state;
    int64_t before = mem_class_bytes(MEM_DATA);
    for (int round = 0; round < 6; round++) {
        struct obj_limits lim = {.stream_bytes = round % 2 ? 4096 : 300, .stream_entries = round % 3 ? 100 : 5};
        struct stream *s = stream_create();
        nmodel = 0;
        for (int i = 0; i < 6000; i++) {
            size_t what = below(100);
            if (what < 60 && nmodel < ENTRIES)
                add(s, &lim);
            else if (what < 97)
                remove_some(s);
            else if (what < 98)
                trim_some(s);
            assert_int_equal(s->length, nmodel);
            if (i % 100 == 0) {
                assert_int_equal(s->bytes, bytes_of(s));
                assert_range(s, some_id(), some_id());
                assert_true(same_id(s->first_id, nmodel ? model[0].id : STREAM_ID_MIN));
                assert_true(same_id(stream_last_entry(s), nmodel ? model[nmodel - 1].id : STREAM_ID_MIN));
            }
            if (i % 1000 == 0) {
                assert_range(s, STREAM_ID_MIN, STREAM_ID_MAX);
                assert_saves(s);
            }
        }
        stream_destroy(s);
    }
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

/* ---- groups ---- */

#define IDS 500
static int owner[3][IDS]; /* consumer + 1; 0: not pending */

static void assert_groups(const struct stream *s, struct stream_group *g[3], struct stream_consumer *c[3][4])
{
    size_t all = 0;
    for (int i = 0; i < 3; i++) {
        size_t n = 0, of[4] = {0};
        struct stream_id at = STREAM_ID_MIN;
        for (int k = 0; k < IDS; k++) {
            struct stream_nack *nack = stream_pel_find(g[i], id_of(1 + (uint64_t)k, 7));
            assert_int_equal(nack != NULL, owner[i][k] != 0);
            if (!nack)
                continue;
            assert_ptr_equal(nack, stream_pel_from(&g[i]->pel, STREAM_OF_GROUP, at));
            assert_ptr_equal(nack->consumer, c[i][owner[i][k] - 1]);
            assert_ptr_equal(nack, stream_pel_from(&nack->consumer->pel, STREAM_OF_CONSUMER, nack->id));
            at = id_of(nack->id.ms, nack->id.seq + 1);
            of[owner[i][k] - 1]++;
            n++;
        }
        assert_null(stream_pel_from(&g[i]->pel, STREAM_OF_GROUP, at));
        assert_int_equal(g[i]->pel.count, n);
        for (int k = 0; k < 4; k++)
            assert_int_equal(c[i][k]->pel.count, of[k]);
        all += n;
    }
    assert_int_equal(s->npending, all);
    assert_int_equal(s->bytes, bytes_of(s));
}

static void test_groups(void **state)
{
    (void)state;
    static const char *const names[] = {"b", "", "abc"};
    static const char *const people[] = {"x", "7", "xy", "a\0b"};
    int64_t before = mem_class_bytes(MEM_DATA);
    struct stream *s = stream_create();
    struct stream_group *g[3];
    struct stream_consumer *c[3][4];
    nmodel = 0;
    for (int i = 0; i < 3; i++) {
        g[i] = stream_group_create(s, slice_str(names[i]), STREAM_ID_MIN, i - 1);
        assert_null(stream_group_create(s, slice_str(names[i]), STREAM_ID_MIN, 0));
        for (int k = 0; k < 4; k++) {
            c[i][k] = stream_consumer_create(s, g[i], SLICE(people[k], k == 3 ? 3 : strlen(people[k])), 1000 + k);
            assert_null(stream_consumer_create(s, g[i], SLICE(people[k], k == 3 ? 3 : strlen(people[k])), 1));
        }
    }
    for (int i = 0; i < 60000; i++) {
        size_t at = below(3), k = below(IDS), who = below(4);
        struct stream_nack *nack = stream_pel_find(g[at], id_of(1 + k, 7));
        if (!nack && below(3))
            nack = stream_pel_add(s, g[at], c[at][who], id_of(1 + k, 7), (int64_t)k), owner[at][k] = 1 + (int)who;
        else if (nack && below(2))
            stream_pel_remove(s, g[at], nack), owner[at][k] = 0;
        else if (nack)
            stream_pel_give(nack, c[at][who]), owner[at][k] = 1 + (int)who;
        if (i % 3000 == 0) {
            assert_groups(s, g, c);
            assert_saves(s);
        }
    }
    stream_consumer_destroy(s, g[1], c[1][2]);
    assert_null(stream_consumer_find(g[1], slice_str("xy")));
    assert_int_equal(s->bytes, bytes_of(s));
    assert_true(stream_group_destroy(s, slice_str("b")));
    assert_false(stream_group_destroy(s, slice_str("b")));
    assert_int_equal(s->bytes, bytes_of(s));
    assert_saves(s);
    stream_destroy(s);
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

/* 100,000 pending ones, in order and at random. */
static void test_many_pending(void **state)
{
    (void)state;
    struct stream *s = stream_create();
    struct stream_group *g = stream_group_create(s, slice_str("g"), STREAM_ID_MIN, 0);
    struct stream_consumer *c = stream_consumer_create(s, g, slice_str("c"), 1);
    for (uint64_t i = 1; i <= 100000; i++)
        stream_pel_add(s, g, c, id_of(i, 0), 1);
    for (int i = 0; i < 100000; i++) {
        struct stream_nack *n = stream_pel_from(&g->pel, STREAM_OF_GROUP, id_of(below(100001), 0));
        if (n)
            stream_pel_remove(s, g, n);
    }
    assert_int_equal(s->npending, g->pel.count);
    assert_int_equal(c->pel.count, g->pel.count);
    stream_destroy(s);
}

/* IDs at the ends of what there is. */
static void test_edges(void **state)
{
    (void)state;
    struct obj_limits lim = {.stream_bytes = 4096, .stream_entries = 100};
    struct slice pair[2] = {SLICE_LIT("f"), SLICE_LIT("")};
    struct stream *s = stream_create();
    struct stream_id last = id_of(UINT64_MAX, UINT64_MAX - 1), id = STREAM_ID_MAX;
    struct stream_walk w;
    assert_false(stream_id_next(&id));
    id = STREAM_ID_MIN;
    assert_false(stream_id_prev(&id));
    assert_true(stream_append(s, &lim, id_of(0, 1), pair, 1));
    assert_true(stream_append(s, &lim, id_of(3, 0), pair, 1));
    assert_true(stream_append(s, &lim, last, pair, 1));
    assert_true(stream_append(s, &lim, STREAM_ID_MAX, pair, 1));
    assert_true(stream_has(s, last) && stream_has(s, STREAM_ID_MAX) && stream_has(s, id_of(3, 0)));
    stream_walk_start(&w, s, last, STREAM_ID_MAX, false);
    assert_true(stream_walk_next(&w) && stream_walk_next(&w) && !stream_walk_next(&w));
    assert_int_equal(s->nnodes, 1);
    assert_int_equal(stream_radix_nodes(s), 2);
    stream_destroy(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_many_pending),
        cmocka_unit_test(test_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
