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
#include "tiercel/type_hash.h"
#include "tiercel/type_set.h"

/* Sets and hashes against arrays: index i stands for a text, and says what there is of it. */
#define TEXTS 1500
#define SLOTS 4096

static uint64_t seed = 11;
static const struct key key = {.ptr = "k", .len = 1, .inc = 5};
static const struct obj_limits usual = {.hash_entries = 128, .hash_value = 64, .set_intset = 512};

struct texts {
    char text[TEXTS][700];
    struct slice s[TEXTS];
    size_t slot[SLOTS]; /* index + 1 */
};
static struct texts ints, mixed, words; /* integers only; with others and long ones; short ones */

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

static size_t *slot_of(struct texts *t, struct slice s)
{
    size_t i = (size_t)hash_bytes(0, s.ptr, s.len) % SLOTS;

    while (t->slot[i] && !slice_eq(t->s[t->slot[i] - 1], s))
        i = (i + 1) % SLOTS;
    return &t->slot[i];
}

static size_t index_of(struct texts *t, struct slice s)
{
    size_t i = *slot_of(t, s);

    assert_int_not_equal(i, 0);
    return i - 1;
}

static void texts_make(struct texts *t)
{
    for (size_t i = 0; i < TEXTS; i++) {
        long long n = (long long)i;
        long long number = i % 3 == 0 ? n - 700 : i % 3 == 1 ? n * 100000 : n * -4611686018427387;
        char *out = t->text[i];
        size_t len = 0;
        if (t == &ints || i % 4 == 0)
            len = (size_t)snprintf(out, 700, "%lld", number);
        else if (i != 1)
            len = (size_t)snprintf(out, 700, "text %zu", i);
        while (t == &mixed && i % 50 == 2 && len < 40 + i % 600)
            out[len++] = (char)i;
        t->s[i] = SLICE(out, len);
        size_t *slot = slot_of(t, t->s[i]);
        assert_int_equal(*slot, 0);
        *slot = i + 1;
    }
}

/* The same value through its serial form, as it comes from outside (lim), or from the own disk. */
static struct object *round_trip(const struct object *o, const struct obj_limits *lim)
{
    struct buf serial;

    buf_init(&serial, MEM_OTHER);
    object_serialise(o, &serial);
    assert_in_range(object_stored_len(o), 1, 2 * serial.len + 64);
    struct object *back = rdb_parse(SLICE(serial.ptr + 2, serial.len - 2), lim, &key, 0, 0);
    assert_non_null(back);
    assert_int_equal(back->type, o->type);
    assert_int_equal(object_len(back), object_len(o));
    if (!lim)
        assert_int_equal(back->enc, o->enc);
    buf_deinit(&serial);
    return back;
}

/* One of three that are equal, now and then; the others are freed. */
static struct object *another(struct object *o)
{
    struct object *some[3] = {o, object_copy(o, &key, 0, 0), round_trip(o, below(2) ? &usual : NULL)};
    size_t stays = below(3);

    for (size_t i = 0; i < 3; i++)
        if (i != stays)
            object_free(some[i]);
    return some[stays];
}

/* Elements that were handed out. */
struct seen {
    struct texts *t;
    unsigned times[TEXTS];
    size_t n;
};

static void see(void *arg, struct slice s)
{
    struct seen *seen = arg;

    seen->times[index_of(seen->t, s)]++;
    seen->n++;
}

/* n different ones, all of them there. */
static void seen_is_some(const struct seen *seen, const bool *has, size_t n)
{
    assert_int_equal(seen->n, n);
    for (size_t i = 0; i < TEXTS; i++)
        assert_in_range(seen->times[i], 0, has[i]);
}

/* ---- sets ---- */

struct set_model {
    struct object *o;
    struct texts *t;
    bool has[TEXTS];
    size_t n;
};

static void set_check(const struct set_model *m)
{
    struct seen seen = {.t = m->t};

    assert_int_equal(object_len(m->o), m->n);
    set_each(m->o, see, &seen);
    seen_is_some(&seen, m->has, m->n);
    for (size_t i = 0; i < TEXTS; i++)
        assert_int_equal(set_has(m->o, m->t->s[i]), m->has[i]);
    assert_false(set_has(m->o, SLICE_LIT("nobody")) || set_has(m->o, SLICE_LIT("007")));
}

static void set_change(struct set_model *m, size_t i, bool in)
{
    bool changed = in ? set_add(m->o, m->t->s[i], usual.set_intset) : set_remove(m->o, m->t->s[i]);

    assert_int_equal(changed, m->has[i] != in);
    m->n += (size_t)in - (size_t)m->has[i];
    m->has[i] = in;
}

static void set_draw(struct set_model *m)
{
    struct seen some = {.t = m->t}, popped = {.t = m->t};
    size_t n = below(m->n + 1);
    char text[NUM_I64_MAX];

    assert_true(m->has[index_of(m->t, set_random(m->o, &seed, text))]);
    set_sample(m->o, n, &seed, see, &some);
    seen_is_some(&some, m->has, n);
    n = below(4) ? below(m->n / 8 + 1) : below(m->n);
    set_pop(m->o, n, usual.set_intset, &seed, see, &popped);
    seen_is_some(&popped, m->has, n);
    for (size_t i = 0; i < TEXTS; i++)
        m->has[i] = m->has[i] && !popped.times[i];
    m->n -= n;
}

static void set_round(struct texts *t, size_t texts, size_t grow)
{
    static struct set_model m;

    m = (struct set_model){.o = set_new(&key, t->s[0]), .t = t};
    for (int step = 0; step < 6000; step++) {
        set_change(&m, below(texts), below(100) < (step / 1500 % 2 ? 100 - grow : grow));
        if (step % 300 == 299 && m.n > 0) {
            set_check(&m);
            m.o = another(m.o);
            set_check(&m);
            set_draw(&m);
            set_check(&m);
        }
    }
    object_free(m.o);
}

static void test_sets_against_model(void **state)
{
    int64_t before = mem_class_bytes(MEM_DATA);
    (void)state;

    for (size_t grow = 55; grow < 100; grow += 20) {
        set_round(&ints, 20, grow);
        set_round(&ints, 400, grow);
        set_round(&ints, TEXTS, grow);
        set_round(&mixed, 20, grow);
        set_round(&mixed, TEXTS, grow);
    }
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

static void count_one(void *arg, struct slice member)
{
    struct seen *seen = arg;

    seen->n += member.ptr != NULL;
}

static void set_encoding_is(const struct object *o, const char *want)
{
    assert_string_equal(object_encoding_name(o), want);
}

static void test_set_encodings(void **state)
{
    struct object *o = set_new(&key, SLICE_LIT("1"));
    (void)state;

    for (int64_t i = 0; i < 512; i++) {
        char text[NUM_I64_MAX];
        assert_true(set_add(o, SLICE(text, num_format_i64(text, i)), 512));
        assert_false(set_add(o, SLICE(text, num_format_i64(text, i)), 512));
    }
    set_encoding_is(o, "intset");
    assert_int_equal(object_stored_len(o), 8 + 512 * 2);
    struct object *copy = object_copy(o, &key, 0, 0), *lower = round_trip(o, &(struct obj_limits){.set_intset = 511});
    set_encoding_is(lower, "hashtable");
    assert_true(set_add(o, SLICE_LIT("512"), 512)); /* one too many */
    set_encoding_is(o, "hashtable");
    assert_true(set_add(copy, SLICE_LIT("9223372036854775808"), 512)); /* no integer of 64 bits */
    set_encoding_is(copy, "hashtable");
    assert_true(set_remove(copy, SLICE_LIT("9223372036854775808")));
    set_encoding_is(copy, "hashtable"); /* and stays it */
    struct object *back = round_trip(copy, &usual);
    set_encoding_is(back, "intset"); /* which Redis would choose */
    object_free(back);
    struct seen seen = {.t = &words, .n = 0};
    set_pop(copy, 400, 512, &seed, count_one, &seen);
    set_encoding_is(copy, "hashtable");
    set_pop(copy, 94, 17, &seed, count_one, &seen);
    set_encoding_is(copy, "hashtable"); /* too many for that limit */
    set_pop(copy, 15, 512, &seed, count_one, &seen);
    set_encoding_is(copy, "intset");
    assert_int_equal(seen.n, 509);
    object_free(o);
    object_free(copy);
    object_free(lower);
}

/* ---- hashes ---- */

struct hash_model {
    struct object *o;
    struct texts *t;
    size_t value[TEXTS]; /* index + 1; 0: no such field */
    size_t n;
};

static void see_field(void *arg, struct slice field, struct slice value)
{
    (void)value;
    see(arg, field);
}

static void hash_check(const struct hash_model *m)
{
    char scratch[NUM_I64_MAX];
    struct slice field, value;
    size_t n = 0;

    assert_int_equal(object_len(m->o), m->n);
    struct hash_iter it = hash_iter(m->o);
    for (; hash_next(&it, &field, &value); n++) {
        size_t i = index_of(m->t, field);
        assert_int_not_equal(m->value[i], 0);
        assert_true(slice_eq(value, m->t->s[m->value[i] - 1]));
    }
    assert_int_equal(n, m->n);
    for (size_t i = 0; i < TEXTS; i++) {
        assert_int_equal(hash_get(m->o, m->t->s[i], scratch, &value), m->value[i] != 0);
        if (m->value[i])
            assert_true(slice_eq(value, m->t->s[m->value[i] - 1]));
    }
    assert_false(hash_has(m->o, SLICE_LIT("nobody")));
}

static void hash_change(struct hash_model *m, size_t i, bool in)
{
    size_t v = below(TEXTS);

    if (in)
        assert_int_equal(hash_set(m->o, m->t->s[i], m->t->s[v], &usual), m->value[i] == 0);
    else
        assert_int_equal(hash_delete(m->o, m->t->s[i]), m->value[i] != 0);
    m->n += (size_t)in - (m->value[i] != 0);
    m->value[i] = in ? v + 1 : 0;
}

static bool see_more(void *arg, struct slice field, struct slice value)
{
    struct seen *seen = arg;

    see_field(seen, field, value);
    return seen->n != 300;
}

static void hash_chance(const struct hash_model *m)
{
    struct seen some = {.t = m->t}, again = {.t = m->t};
    size_t n = below(m->n + 1);
    bool has[TEXTS];

    for (size_t i = 0; i < TEXTS; i++)
        has[i] = m->value[i] != 0;
    hash_sample(m->o, n, &seed, see_field, &some);
    seen_is_some(&some, has, n);
    hash_draw(m->o, 700, &seed, see_more, &again);
    assert_int_equal(again.n, 300);
    for (size_t i = 0; i < TEXTS; i++)
        assert_true(again.times[i] == 0 || has[i]);
}

static void hash_round(struct texts *t, size_t texts, size_t grow)
{
    static struct hash_model m;

    m = (struct hash_model){.o = hash_new(&key), .t = t};
    for (int step = 0; step < 6000; step++) {
        hash_change(&m, below(texts), below(100) < (step / 1500 % 2 ? 100 - grow : grow));
        if (step % 300 == 299 && m.n > 0) {
            hash_check(&m);
            m.o = another(m.o);
            hash_check(&m);
            hash_chance(&m);
        }
    }
    object_free(m.o);
}

static void test_hashes_against_model(void **state)
{
    int64_t before = mem_class_bytes(MEM_DATA);
    (void)state;

    for (size_t grow = 55; grow < 100; grow += 20) {
        hash_round(&words, 20, grow);
        hash_round(&words, 100, grow);
        hash_round(&words, TEXTS, grow);
        hash_round(&mixed, 20, grow);
        hash_round(&mixed, TEXTS, grow);
    }
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

static void test_hash_encodings(void **state)
{
    struct object *o = hash_new(&key);
    char big[66] = {0};
    (void)state;

    for (size_t i = 0; i < 128; i++)
        assert_true(hash_set(o, words.s[i], words.s[i], &usual));
    assert_false(hash_set(o, words.s[5], SLICE(big, 64), &usual));
    assert_string_equal(object_encoding_name(o), "listpack");
    struct object *copy = object_copy(o, &key, 0, 0);
    struct object *lower = round_trip(o, &(struct obj_limits){.hash_entries = 127, .hash_value = 64});
    assert_string_equal(object_encoding_name(lower), "hashtable");
    assert_true(hash_set(o, words.s[128], words.s[0], &usual));
    assert_string_equal(object_encoding_name(o), "hashtable");
    assert_false(hash_set(copy, words.s[1], SLICE(big, 65), &usual));
    assert_string_equal(object_encoding_name(copy), "hashtable");
    assert_true(hash_delete(copy, words.s[1]));
    assert_string_equal(object_encoding_name(copy), "hashtable");
    struct object *back = round_trip(copy, &usual);
    assert_string_equal(object_encoding_name(back), "listpack");
    object_free(back);
    object_free(o);
    object_free(copy);
    object_free(lower);
}

/* ---- fields that expire ---- */

struct timed_model {
    struct hash_model m;
    int64_t at[TEXTS], now;
};

static void timed_check(const struct timed_model *tm)
{
    int64_t at;

    hash_check(&tm->m);
    for (size_t i = 0; i < TEXTS; i++) {
        assert_int_equal(hash_field_expiry(tm->m.o, tm->m.t->s[i], &at), tm->m.value[i] != 0);
        assert_int_equal(at, tm->m.value[i] ? tm->at[i] : 0);
    }
}

static void timed_step(struct timed_model *tm, size_t i)
{
    struct hash_model *m = &tm->m;
    size_t v = below(TEXTS), gone = 0;

    switch (below(12)) {
    case 0: hash_change(m, i, false); break;
    case 1:
    case 2:
    case 3:
        hash_change(m, i, true);
        tm->at[i] = 0;
        break;
    case 4:
        if (!m->value[i])
            tm->at[i] = 0;
        assert_int_equal(hash_update(m->o, m->t->s[i], m->t->s[v], &usual), m->value[i] == 0);
        m->n += m->value[i] == 0;
        m->value[i] = v + 1;
        break;
    case 5:
        tm->now += (int64_t)below(20);
        for (size_t k = 0; k < TEXTS; k++) {
            if (!m->value[k] || !tm->at[k] || tm->at[k] > tm->now)
                continue;
            m->value[k] = 0;
            gone++;
        }
        m->n -= gone;
        size_t few = hash_expire_fields(m->o, tm->now, 2);
        assert_int_equal(few, gone < 2 ? gone : 2);
        assert_int_equal(hash_expire_fields(m->o, tm->now, SIZE_MAX), gone - few);
        int64_t next = hash_first_expiry(m->o);
        assert_true(next == 0 || next > tm->now);
        break;
    default:
        if (m->value[i]) {
            tm->at[i] = below(6) ? tm->now + 1 + (int64_t)below(1000) : 0;
            hash_set_field_expiry(m->o, m->t->s[i], tm->at[i]);
        }
    }
}

static void test_fields_expire(void **state)
{
    static struct timed_model tm;
    int64_t before = mem_class_bytes(MEM_DATA);
    (void)state;

    for (int round = 0; round < 8; round++) {
        size_t texts = round % 2 ? TEXTS : 30;
        tm = (struct timed_model){.m = {.o = hash_new(&key), .t = round < 4 ? &words : &mixed}, .now = 1700000000000};
        for (int step = 0; step < 8000; step++) {
            timed_step(&tm, below(texts));
            if (step % 400 == 399 && tm.m.n > 0) {
                timed_check(&tm);
                tm.m.o = another(tm.m.o);
                timed_check(&tm);
            }
        }
        tm.m.n -= hash_expire_fields(tm.m.o, HASH_EXPIRY_MAX, SIZE_MAX);
        assert_int_equal(object_len(tm.m.o), tm.m.n);
        object_free(tm.m.o);
    }
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

/* ---- walks while others change things ---- */

static uint64_t scan(const struct object *o, uint64_t cursor, struct seen *seen)
{
    return o->type == OBJ_SET ? set_scan(o, cursor, see, seen) : hash_scan(o, cursor, see_field, seen);
}

static void change(struct object *o, size_t i, bool in)
{
    if (o->type == OBJ_SET)
        in ? set_add(o, mixed.s[i], 0) : set_remove(o, mixed.s[i]);
    else if (in)
        hash_set(o, mixed.s[i], mixed.s[below(TEXTS)], &(struct obj_limits){.hash_entries = 0});
    else
        hash_delete(o, mixed.s[i]);
}

/* Every third one stays from the beginning to the end, and must be met. */
static void test_scan_meets_what_stays(void **state)
{
    (void)state;
    for (int round = 0; round < 60; round++) {
        struct object *o = round % 2 ? set_new(&key, mixed.s[1]) : hash_new(&key);
        struct seen seen = {.t = &mixed};
        uint64_t cursor = 0;
        size_t others = round % 4 < 2 ? TEXTS : 100; /* it grows, or it shrinks */
        for (size_t i = 0; i < TEXTS; i++)
            if (i % 3 == 0 || others == 100)
                change(o, i, true);
        do {
            cursor = scan(o, cursor, &seen);
            for (int i = 0; i < round; i++) {
                size_t which = below(TEXTS);
                if (which % 3 != 0)
                    change(o, which, others == TEXTS || below(10) == 0);
            }
        } while (cursor != 0);
        for (size_t i = 0; i < TEXTS; i += 3)
            assert_in_range(seen.times[i], 1, 3);
        object_free(o);
    }
}

/* ---- chance ---- */

/* 100 draws for each there is. */
static void distribution_is_even(const struct object *o, size_t n, size_t at_once)
{
    struct seen seen = {.t = &mixed};
    char text[NUM_I64_MAX];

    while (seen.n < 100 * n)
        if (at_once)
            set_sample(o, at_once, &seed, see, &seen);
        else
            see(&seen, set_random(o, &seed, text));
    for (size_t i = 0; i < n; i++)
        assert_in_range(seen.times[i], 35, 190);
}

static void test_chance_is_fair(void **state)
{
    struct object *big = set_new(&key, mixed.s[1]);
    (void)state;

    for (size_t i = 0; i < 400; i++)
        set_add(big, mixed.s[i], 0);
    distribution_is_even(big, 400, 0);
    distribution_is_even(big, 400, 1);
    distribution_is_even(big, 400, 100);
    distribution_is_even(big, 400, 300);
    object_free(big);

    struct object *small = set_new(&key, ints.s[0]);
    struct seen seen = {.t = &ints};
    for (size_t i = 0; i < 100; i++)
        set_add(small, ints.s[i], 512);
    for (int i = 0; i < 1000; i++)
        set_sample(small, 10, &seed, see, &seen);
    for (size_t i = 0; i < 100; i++)
        assert_in_range(seen.times[i], 50, 160);
    object_free(small);
}

/* ---- what comes from outside ---- */

static struct object *parse(const char *bytes, size_t len, const struct obj_limits *lim)
{
    return rdb_parse(SLICE(bytes, len), lim, &key, 0, 0);
}

#define REFUSED(lit) assert_null(parse(lit, sizeof(lit) - 1, below(2) ? &usual : NULL))

static void test_damaged(void **state)
{
    (void)state;
    REFUSED("\x02");                                                               /* a set: nothing */
    REFUSED("\x02\x00");                                                           /* empty */
    REFUSED("\x02\x02\x01\x61\x01\x61");                                           /* a member twice */
    REFUSED("\x02\x02\xc0\x05\x01\x35");                                           /* the same, in other words */
    REFUSED("\x02\x81\xff\xff\xff\xff\xff\xff\xff\xff\x01\x61");                   /* claims too many */
    REFUSED("\x02\x80\x7f\xff\xff\xff\x01\x61");                                   /* the same */
    REFUSED("\x0b\x08\x02\0\0\0\0\0\0\0");                                         /* an intset: empty */
    REFUSED("\x0b\x0c\x02\0\0\0\x02\0\0\0\x02\0\x01\0");                           /* not sorted */
    REFUSED("\x0b\x0c\x02\0\0\0\x02\0\0\0\x02\0\x02\0");                           /* a member twice */
    REFUSED("\x0b\x0c\x03\0\0\0\x02\0\0\0\x02\0\x03\0");                           /* no such width */
    REFUSED("\x0b\x0c\x02\0\0\0\x03\0\0\0\x02\0\x03\0");                           /* another length */
    REFUSED("\x0b\x04\x02\0\0\0");                                                 /* half a head */
    REFUSED("\x04\x00");                                                           /* a hash: empty */
    REFUSED("\x04\x01\x01\x61");                                                   /* no value */
    REFUSED("\x04\x02\x01\x61\x01\x62\x01\x61\x01\x63");                           /* a field twice */
    REFUSED("\x04\x81\xff\xff\xff\xff\xff\xff\xff\xff\x01\x61\x01\x62");           /* claims too many */
    REFUSED("\x10\x07\x07\0\0\0\0\0\xff");                                         /* a listpack: empty */
    REFUSED("\x10\x09\x09\0\0\0\x01\0\x01\x01\xff");                               /* one element */
    REFUSED("\x10\x0f\x0f\0\0\0\x04\0\x01\x01\x02\x01\x01\x01\x03\x01\xff");       /* a field twice */
    REFUSED("\x18\x05\0\0\0\0\0\0\0\0");                                           /* one that expires: empty */
    REFUSED("\x18\x05\0\0\0\0\0\0\0\x02\x01\x01\x61\x01\x62\x00\x01\x61\x01\x62"); /* a field twice */
    REFUSED("\x18\0\0\0\0\0\0\0\0\x01\x01\x01\x61\x01\x62");                       /* before time began */
    REFUSED("\x18\x05\0\0\0\0\0\0\0\x01\x81\x7f\xff\xff\xff\xff\xff\xff\xff\x01\x61\x01\x62"); /* after it ends */
    REFUSED("\x19\x05\0\0\0\0\0\0\0\x0b\x0b\0\0\0\x02\0\x01\x01\x01\x01\xff");                 /* no times */
    REFUSED("\x09\x01\xff");                                                                   /* a zipmap: no count */
    REFUSED("\x09\x02\0\xff");                                                                 /* empty */
    REFUSED("\x09\x07\x02\x01\x61\x01\0\x62\xff");                                             /* another count */
    REFUSED("\x09\x07\x01\x01\x61\x01\x01\x62\xff");             /* unused bytes that are not there */
    REFUSED("\x09\x07\x01\x09\x61\x01\0\x62\xff");               /* longer than it is */
    REFUSED("\x09\x0b\x02\x01\x61\x01\0\x62\x01\x61\x00\0\xff"); /* a field twice */
}

static void holds(struct object *o, const char *encoding, const char *field, const char *want)
{
    char scratch[NUM_I64_MAX];
    struct slice value;

    assert_non_null(o);
    assert_string_equal(object_encoding_name(o), encoding);
    assert_true(hash_get(o, slice_str(field), scratch, &value));
    assert_true(slice_is(value, want));
    object_free(o);
}

#define PARSED(lit, lim) parse(lit, sizeof(lit) - 1, lim)
#define ZIPMAP "\x09\x0f\x02\x01\x61\x01\x02\x62zz\x02\x63\x63\x01\0\x37\xff"
#define ZIPLIST "\x0d\x10\x10\0\0\0\x0d\0\0\0\x02\0\0\x01\x61\x03\xf8\xff"

static void test_old_forms(void **state)
{
    static const struct obj_limits none = {.hash_entries = 0, .hash_value = 64};
    (void)state;

    holds(PARSED(ZIPMAP, &usual), "listpack", "a", "b");
    holds(PARSED(ZIPMAP, NULL), "listpack", "cc", "7");
    holds(PARSED("\x18\x05\0\0\0\0\0\0\0\x02\x01\x01\x61\x01\x62\x00\x01\x63\x01\x64", &usual), "hashtable", "a", "b");
    holds(PARSED("\x19\x05\0\0\0\0\0\0\0\x0e\x0e\0\0\0\x03\0\x81\x61\x02\x07\x01\x05\x01\xff", NULL), "hashtable", "a",
          "7");
    holds(PARSED(ZIPMAP, &none), "hashtable", "cc", "7");
    holds(PARSED(ZIPLIST, &usual), "listpack", "a", "7");
    holds(PARSED(ZIPLIST, &none), "hashtable", "a", "7");
    holds(PARSED("\x04\x02\xc0\x05\xc0\x07\x01\x61\x01\x62", &usual), "listpack", "5", "7");
    holds(PARSED("\x04\x02\xc0\x05\xc0\x07\x01\x61\x01\x62", NULL), "hashtable", "5", "7");
}

/* Whatever bytes there are: refused, or usable. */
static void test_noise(void **state)
{
    static const char types[] = {RDB_SET,          RDB_SET_INTSET,    RDB_HASH,          RDB_HASH_ZIPMAP,
                                 RDB_HASH_ZIPLIST, RDB_HASH_LISTPACK, RDB_HASH_METADATA, RDB_HASH_LISTPACK_EX};
    int64_t before = mem_class_bytes(MEM_DATA);
    (void)state;

    for (int round = 0; round < 60000; round++) {
        struct buf b;
        buf_init(&b, MEM_OTHER);
        if (round % 2) { /* a good one, with a few bytes changed */
            struct object *o = round % 4 == 1 ? set_new(&key, ints.s[0]) : hash_new(&key);
            struct texts *t = below(2) ? &ints : &words;
            for (size_t i = below(40) + 1; i-- > 0;)
                if (o->type == OBJ_SET)
                    set_add(o, t->s[below(200)], 30);
                else
                    hash_set(o, t->s[below(200)], words.s[below(200)], &(struct obj_limits){30, 64, 0, 0, 0, 0, 0, 0});
            if (o->type == OBJ_HASH && below(2)) {
                hash_set(o, words.s[7], words.s[8], &usual);
                hash_set_field_expiry(o, words.s[7], 1 + (int64_t)below(1000));
            }
            object_serialise(o, &b);
            buf_consume(&b, 2);
            object_free(o);
            for (size_t i = below(3) + 1; i-- > 0;)
                b.ptr[below(b.len)] = (char)rng_next(&seed);
        } else {
            buf_byte(&b, types[below(sizeof(types))]);
            for (size_t i = below(30); i-- > 0;)
                buf_byte(&b, (char)(below(2) ? below(4) : rng_next(&seed)));
        }
        struct object *o = parse(b.ptr, b.len, round % 3 ? &usual : NULL);
        buf_deinit(&b);
        if (!o || (o->type != OBJ_SET && o->type != OBJ_HASH)) { /* the byte that was changed was the type's */
            object_free(o);
            continue;
        }
        struct object *copy = object_copy(o, &key, 0, 0), *back = round_trip(o, NULL);
        assert_in_range(object_len(o), 1, 200);
        object_free(copy);
        object_free(back);
        object_free(o);
    }
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

/* ---- memory ---- */

static void test_bytes(void **state)
{
    struct object *set = set_new(&key, words.s[1]), *hash = hash_new(&key);
    int64_t before = mem_class_bytes(MEM_DATA);
    size_t counted = object_bytes(set) + object_bytes(hash);
    (void)state;

    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 500; i++) {
            struct slice text = mixed.s[below(TEXTS)];
            below(3) ? (void)set_add(set, text, 512) : (void)set_remove(set, text);
            below(3) ? (void)hash_set(hash, text, mixed.s[below(TEXTS)], &usual) : (void)hash_delete(hash, text);
            if (round > 10 && hash_has(hash, text))
                hash_set_field_expiry(hash, text, (int64_t)below(3) * 1000 + 1);
        }
        int64_t more = (int64_t)(object_bytes(set) + object_bytes(hash) - counted);
        assert_int_equal(mem_class_bytes(MEM_DATA) - before, more);
    }
    object_free(set);
    object_free(hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sets_against_model),
        cmocka_unit_test(test_set_encodings),
        cmocka_unit_test(test_hashes_against_model),
        cmocka_unit_test(test_hash_encodings),
        cmocka_unit_test(test_scan_meets_what_stays),
        cmocka_unit_test(test_chance_is_fair),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_old_forms),
        cmocka_unit_test(test_fields_expire),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_bytes),
    };
    texts_make(&ints);
    texts_make(&mixed);
    texts_make(&words);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
