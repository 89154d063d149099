/* The memory tier's table against a plain array: what it holds, what a walk sees while it grows, what
 * sampling and sweeping find, databases. */
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
#include "tiercel/mem.h"
#include "tiercel/type_hash.h"

#define SHARD_BITS 2
#define DBS 4
#define NAMES 12000

static uint64_t seed = 1;
static struct mem *m;
static char *names[NAMES];
static uint32_t name_len[NAMES];

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

/* Names that differ in length only, share long prefixes, hold any byte, or are too long for a length byte. */
static void name_make(size_t i)
{
    static char buf[6000];
    size_t len;

    if (i < 400) { /* each a prefix of the next; the first is empty */
        len = i;
        memset(buf, 'p', len);
    } else if (i < 420) {
        len = 5000 + (i - 400);
        memset(buf, 'q', len);
    } else if (i < 520) { /* 255 and 256 apart only by the last bytes */
        memset(buf, 0, 257);
        len = 254 + i % 3;
        buf[len - 1] = (char)i;
    } else {
        len = (size_t)snprintf(buf, sizeof(buf), "key:%zu", i);
    }
    names[i] = malloc(len + 1);
    memcpy(names[i], buf, len);
    name_len[i] = (uint32_t)len;
}

static struct key key_of(unsigned db, size_t i)
{
    struct key k;
    mem_key_init(m, db, SLICE(names[i], name_len[i]), &k);
    return k;
}

static struct mem_shard *shard_of(const struct key *k)
{
    return mem_shard_of(m, k->hash);
}

/* The value is the number of the name, so that whoever meets an object knows which it is. */
static struct object *object_of(const struct key *k, size_t i, int64_t expire_ms)
{
    return object_new_int(k, (int64_t)i, expire_ms, 0);
}

static struct object *put_expiring(unsigned db, size_t i, int64_t expire_ms)
{
    struct key k = key_of(db, i);
    struct object *o = object_of(&k, i, expire_ms);
    mem_insert_locked(m, shard_of(&k), k.hash, o);
    return o;
}

static struct object *put(unsigned db, size_t i)
{
    return put_expiring(db, i, 0);
}

static struct object *find(unsigned db, size_t i)
{
    struct key k = key_of(db, i);
    mem_slot *slot = mem_find_locked(m, shard_of(&k), &k);
    return slot ? mem_object(*slot) : NULL;
}

static void take(struct object *o)
{
    uint64_t hash = mem_object_hash(m, o);
    struct mem_shard *s = mem_shard_of(m, hash);
    mem_slot *slot = mem_find_object_locked(m, s, hash, o);
    assert_non_null(slot);
    mem_remove_locked(m, s, hash, slot);
    object_free(o);
}

static uint64_t count_all(void)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < m->shards; i++)
        n += m->shard[i].count;
    return n;
}

static int setup(void **state)
{
    (void)state;
    m = mem_create(SHARD_BITS, DBS, 42, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mem_destroy(m);
    return 0;
}

/* ---- a reference ---------------------------------------------------------------------------- */

static struct object *model[DBS][NAMES];

static void model_agrees(void)
{
    uint64_t n = 0;
    for (unsigned db = 0; db < DBS; db++) {
        for (size_t i = 0; i < NAMES; i++) {
            assert_ptr_equal(find(db, i), model[db][i]);
            n += model[db][i] != NULL;
        }
    }
    assert_int_equal(count_all(), n);
}

static void step(unsigned db, size_t i)
{
    struct key k = key_of(db, i);
    struct mem_shard *s = shard_of(&k);
    mem_slot *slot = mem_find_locked(m, s, &k);
    struct object *have = model[db][i];

    assert_ptr_equal(slot ? mem_object(*slot) : NULL, have);
    if (!have) {
        assert_null(mem_find_object_locked(m, s, k.hash, (const struct object *)(const void *)names[i]));
        model[db][i] = put_expiring(db, i, (int64_t)below(2) * 1000);
        return;
    }
    assert_ptr_equal(mem_find_object_locked(m, s, k.hash, have), slot);
    assert_int_equal(mem_object_hash(m, have), k.hash);
    if (below(3) == 0) {
        model[db][i] = object_of(&k, i, (int64_t)below(2) * 1000);
        mem_replace_locked(slot, model[db][i]);
    } else {
        mem_remove_locked(m, s, k.hash, slot);
        model[db][i] = NULL;
    }
    object_free(have);
}

static void test_reference(void **state)
{
    (void)state;
    memset(model, 0, sizeof(model));
    for (size_t n = 0; n < 200000; n++) {
        /* More and more names, so that tables grow while all else goes on. */
        size_t span = 50 + n * (NAMES - 50) / 200000;
        step((unsigned)below(DBS), below(span));
        if (n % 50000 == 49999)
            model_agrees();
    }
}

/* ---- walking -------------------------------------------------------------------------------- */

static unsigned visits[NAMES];

static void visit(void *arg, struct object *o)
{
    (void)arg;
    visits[object_int(o)]++;
}

/* What is there throughout is seen exactly once, whatever comes and goes, and however the tables grow. */
static void walk(size_t before, size_t during)
{
    size_t added = before;
    memset(visits, 0, sizeof(visits));
    for (size_t i = 0; i < before; i++)
        put(0, i);
    size_t steps = 0;
    for (uint64_t cursor = 0, next;; cursor = next) {
        mem_scan_locked(m, mem_shard_of(m, cursor), cursor, &next, visit, NULL);
        for (size_t k = below(4); k > 0 && added < before + during; k--)
            put(0, added++);
        if (below(2) && added > before)
            take(find(0, --added));
        steps++;
        if (next == 0)
            break;
        assert_true(next > cursor);
    }
    assert_true(steps >= m->shards);
    for (size_t i = 0; i < before; i++)
        assert_int_equal(visits[i], 1);
    while (added > 0)
        take(find(0, --added));
    assert_int_equal(count_all(), 0);
}

static void test_walk(void **state)
{
    (void)state;
    walk(0, 0);
    walk(1, 100);
    walk(60, 500);
    walk(1000, 8000);
    walk(4000, NAMES - 4000);
}

/* A cursor taken in a small table is good in a large one. */
static void test_cursor_outlives_growth(void **state)
{
    (void)state;
    size_t n = 200;
    memset(visits, 0, sizeof(visits));
    for (size_t i = 0; i < n; i++)
        put(0, i);
    uint64_t cursor = 0, next;
    for (int k = 0; k < 7; k++) {
        mem_scan_locked(m, mem_shard_of(m, cursor), cursor, &next, visit, NULL);
        cursor = next;
    }
    for (size_t i = n; i < NAMES; i++)
        put(0, i);
    do
        mem_scan_locked(m, mem_shard_of(m, cursor), cursor, &cursor, visit, NULL);
    while (cursor != 0);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(visits[i], 1);
}

/* ---- collisions ----------------------------------------------------------------------------- */

#define CROWD 90

/* Objects that share a bucket at any size these tables reach. */
static size_t crowd_find(size_t *out, size_t max)
{
    size_t n = 0;
    uint64_t prefix = key_of(0, 700).hash >> 57;
    for (size_t i = 0; i < NAMES && n < max; i++)
        if (key_of(0, i).hash >> 57 == prefix)
            out[n++] = i;
    return n;
}

static void test_chains(void **state)
{
    (void)state;
    size_t who[CROWD], n = crowd_find(who, CROWD);
    bool in[CROWD] = {false};
    assert_true(n > 40);
    for (int round = 0; round < 4000; round++) {
        size_t i = below(n);
        if (in[i])
            take(find(0, who[i]));
        else
            put(0, who[i]);
        in[i] = !in[i];
        if (round % 200 == 0)
            for (size_t k = 0; k < n; k++)
                assert_int_equal(find(0, who[k]) != NULL, in[k]);
    }
    for (size_t k = 0; k < n; k++) /* fill, so that the chain is long, then empty from the front */
        if (!in[k])
            put(0, who[k]);
    for (size_t k = 0; k < n; k++) {
        take(find(0, who[k]));
        for (size_t j = 0; j < n; j++)
            assert_int_equal(find(0, who[j]) != NULL, j > k);
    }
    assert_int_equal(count_all(), 0);
}

/* Chains are split with their bucket when the table grows. */
static void test_chains_and_growth(void **state)
{
    (void)state;
    size_t who[CROWD], n = crowd_find(who, CROWD);
    bool crowded[NAMES] = {false};
    for (size_t k = 0; k < n; k++) {
        put(0, who[k]);
        crowded[who[k]] = true;
    }
    for (size_t i = 0; i < NAMES; i++)
        if (!crowded[i])
            put(0, i);
    for (size_t i = 0; i < NAMES; i++)
        assert_int_equal(object_int(find(0, i)), (int64_t)i);
    assert_int_equal(count_all(), NAMES);
}

/* Two keys with the same bucket and the same bits in their slots are told apart by their names. */
static void test_equal_tags(void **state)
{
    (void)state;
    unsigned pairs = 0;
    uint64_t *hash = malloc(NAMES * sizeof(*hash));
    for (size_t i = 0; i < NAMES; i++)
        hash[i] = key_of(0, i).hash;
    for (size_t i = 0; i < NAMES; i++) {
        for (size_t j = 0; j < i; j++) {
            if ((hash[i] ^ hash[j]) & 0xffff || (hash[i] ^ hash[j]) >> 58)
                continue;
            struct object *a = put(0, i);
            assert_null(find(0, j));
            struct object *b = put(0, j);
            assert_ptr_equal(find(0, i), a);
            assert_ptr_equal(find(0, j), b);
            take(a);
            assert_null(find(0, i));
            assert_ptr_equal(find(0, j), b);
            take(b);
            pairs++;
        }
    }
    free(hash);
    assert_true(pairs > 0);
}

/* ---- sampling ------------------------------------------------------------------------------- */

static bool growing(void)
{
    for (unsigned i = 0; i < m->shards; i++)
        if (m->shard[i].old)
            return true;
    return false;
}

static void sample_round(size_t n)
{
    struct object *out[16];
    for (unsigned s = 0; s < m->shards; s++) {
        size_t max = 1 + below(16), got = mem_sample_locked(&m->shard[s], rng_next(&seed), out, max);
        assert_true(got <= max);
        for (size_t i = 0; i < got; i++) {
            for (size_t j = 0; j < i; j++)
                assert_ptr_not_equal(out[i], out[j]);
            assert_true((size_t)object_int(out[i]) < n);
            assert_ptr_equal(find(0, (size_t)object_int(out[i])), out[i]);
            visits[object_int(out[i])]++;
        }
    }
}

static void test_sampling(void **state)
{
    (void)state;
    size_t n = 0, while_growing = 0;
    sample_round(0);
    while (n < 3000) {
        put(0, n++);
        while_growing += growing();
        sample_round(n);
    }
    assert_true(while_growing > 10);
    memset(visits, 0, sizeof(visits));
    for (int i = 0; i < 20000; i++)
        sample_round(n);
    size_t never = 0; /* every object has its chance */
    for (size_t i = 0; i < n; i++)
        never += visits[i] == 0;
    assert_true(never < n / 100);
}

/* ---- sweeping ------------------------------------------------------------------------------- */

/* Until every shard was gone round from wherever it was; returns what was due. */
static size_t sweep_all(unsigned buckets, size_t max, int64_t now_ms)
{
    struct object *out[64];
    size_t found = 0, seen = 0;
    for (unsigned s = 0; s < m->shards; s++) {
        for (int rounds = 0; rounds < 2;) {
            bool wrapped;
            size_t n = mem_sweep_locked(m, &m->shard[s], buckets, now_ms, out, max, &seen, &wrapped);
            assert_true(n <= max);
            for (size_t i = 0; i < n; i++) {
                for (size_t j = 0; j < i; j++)
                    assert_ptr_not_equal(out[i], out[j]);
                assert_true(object_expired(out[i], now_ms) || mem_db_of(m, out[i]->inc) < 0);
            }
            for (size_t i = 0; i < n; i++)
                take(out[i]);
            found += n;
            rounds += wrapped;
        }
    }
    return found;
}

static void test_sweep(void **state)
{
    (void)state;
    size_t n = 0, due = 0, while_growing = 0;
    for (int round = 0; round < 300; round++) {
        for (size_t k = below(40); k > 0 && n < NAMES; k--, n++) {
            int64_t expire = (int64_t)below(3) * 1000; /* never, at 1000, at 2000 */
            put_expiring(0, n, expire);
            due += expire == 1000;
        }
        while_growing += growing();
        assert_int_equal(sweep_all(1 + (unsigned)below(8), 1 + below(64), 1500), due);
        due = 0;
    }
    assert_true(while_growing > 5);
    size_t left = count_all();
    assert_true(left > 0);
    for (size_t i = 0; i < n; i++) {
        struct object *o = find(0, i);
        assert_true(!o || object_expire(o) != 1000);
    }
    assert_int_equal(sweep_all(64, 64, 999), 0);
    assert_int_equal(count_all(), left);
}

/* The mark in the slot follows an expiry that comes and goes in place. */
static void test_sweep_after_replace(void **state)
{
    (void)state;
    struct object *o = put_expiring(0, 1, 1000);
    struct key k = key_of(0, 1);
    o = object_set_expire(o, 0);
    mem_replace_locked(mem_find_locked(m, shard_of(&k), &k), o);
    assert_int_equal(sweep_all(64, 64, 5000), 0);
    o = object_set_expire(o, 3000);
    mem_replace_locked(mem_find_locked(m, shard_of(&k), &k), o);
    assert_int_equal(sweep_all(64, 64, 5000), 1);
}

static bool sweep_finds(const struct object *o, int64_t now_ms)
{
    struct key k = key_of(0, 1);
    struct object *out[1] = {NULL};
    size_t n = 0, seen = 0;

    for (bool wrapped = false; n == 0 && !wrapped;)
        n = mem_sweep_locked(m, shard_of(&k), 64, now_ms, out, 1, &seen, &wrapped);
    shard_of(&k)->sweep = 0;
    return n == 1 && out[0] == o;
}

/* Hashes are marked when they are put into the table, or again after fields have got an expiry. */
static void test_sweep_finds_fields(void **state)
{
    (void)state;
    const struct obj_limits lim = {.hash_entries = 128, .hash_value = 64};
    struct key k = key_of(0, 1);
    struct object *o = hash_new(&k);
    hash_set(o, SLICE_LIT("f"), SLICE_LIT("v"), &lim);
    hash_set(o, SLICE_LIT("g"), SLICE_LIT("v"), &lim);
    mem_insert_locked(m, shard_of(&k), k.hash, o);
    hash_set_field_expiry(o, SLICE_LIT("f"), 1000);
    hash_set_field_expiry(o, SLICE_LIT("g"), 2000);
    assert_false(sweep_finds(o, 5000));
    mem_replace_locked(mem_find_locked(m, shard_of(&k), &k), o);
    assert_false(sweep_finds(o, 999));
    assert_true(sweep_finds(o, 1000));
    o->flags |= OBJ_F_LEAVING;
    assert_false(sweep_finds(o, 1000));
    o->flags &= (uint8_t)~OBJ_F_LEAVING;
    assert_int_equal(hash_expire_fields(o, 1000, SIZE_MAX), 1);
    assert_false(sweep_finds(o, 1999));
    assert_true(sweep_finds(o, 2000));
}

/* ---- databases ------------------------------------------------------------------------------ */

static void test_flush(void **state)
{
    (void)state;
    size_t n = 2000;
    for (size_t i = 0; i < n; i++) {
        put(0, i);
        put(1, i);
    }
    mem_db_count(m, 0, (int)n, 3);
    mem_db_count(m, 1, (int)n, 0);
    struct key old = key_of(0, 5), other = key_of(1, 5);
    assert_true(mem_key_current(m, &old));
    mem_lock_all(m);
    uint32_t inc = mem_db_flush_locked(m, 0);
    mem_unlock_all(m);
    assert_int_equal(inc, atomic_load(&m->db[0].incarnation));
    assert_false(mem_key_current(m, &old));
    assert_true(mem_key_current(m, &other));
    assert_int_equal(mem_db_of(m, old.inc), -1);
    assert_int_equal(mem_db_of(m, (uint16_t)inc), 0);
    assert_int_equal(m->db[0].keys, 0);
    assert_int_equal(m->db[0].expires, 0);
    assert_int_equal(m->db[1].keys, n);
    for (size_t i = 0; i < n; i++) {
        assert_null(find(0, i));
        assert_non_null(find(1, i));
        if (i % 2)
            put(0, i); /* beside its dead namesake */
    }
    struct key k;
    mem_object_key(m, find(1, 7), &k);
    assert_int_equal(k.db, 1);
    assert_int_equal(k.hash, key_of(1, 7).hash);
    assert_int_equal(sweep_all(3, 10, 0), n); /* the dead ones, whatever their expiry */
    for (size_t i = 0; i < n; i++)
        assert_int_equal(find(0, i) != NULL, i % 2);
}

static void test_swap(void **state)
{
    (void)state;
    struct object *a = put(0, 1), *b = put(1, 2);
    struct key ka = key_of(0, 1);
    mem_db_count(m, 0, 1, 0);
    mem_db_count(m, 1, 5, 4);
    mem_db_swap_locked(m, 0, 1);
    assert_false(mem_key_current(m, &ka));
    assert_int_equal(mem_db_of(m, ka.inc), 1);
    assert_ptr_equal(find(1, 1), a);
    assert_ptr_equal(find(0, 2), b);
    assert_null(find(0, 1));
    assert_int_equal(m->db[0].keys, 5);
    assert_int_equal(m->db[0].expires, 4);
    assert_int_equal(m->db[1].keys, 1);
    mem_db_swap_locked(m, 1, 1);
    assert_ptr_equal(find(1, 1), a);
    assert_int_equal(m->db[1].keys, 1);
    mem_db_flush_locked(m, 1);
    assert_null(find(1, 1));
    assert_ptr_equal(find(0, 2), b);
}

/* A table made with the incarnations of an earlier run finds the same hashes again. */
static void test_incarnations_kept(void **state)
{
    (void)state;
    uint32_t given[DBS] = {70000, 3, 0, 9}; /* 0: a fresh one */
    struct mem *other = mem_create(SHARD_BITS, DBS, 42, given);
    for (unsigned db = 0; db < DBS; db++)
        assert_true(given[db] == 0 || atomic_load(&other->db[db].incarnation) == given[db]);
    assert_int_equal(atomic_load(&other->db[2].incarnation), 70001);
    struct key k;
    mem_key_init(other, 0, SLICE_LIT("x"), &k);
    assert_int_equal(k.hash, hash_key(42, 70000, SLICE_LIT("x")));
    assert_int_equal(k.inc, (uint16_t)70000);
    assert_true(mem_db_flush_locked(other, 1) > 70001);
    mem_destroy(other);
}

/* Numbers whose low 16 bits are those of a live incarnation are passed over. */
static void test_incarnations_wrap(void **state)
{
    (void)state;
    struct key stays = key_of(1, 3);
    struct object *o = put(1, 3);
    for (int i = 0; i < 70000; i++) {
        uint32_t inc = mem_db_flush_locked(m, 0);
        assert_int_equal(mem_db_of(m, (uint16_t)inc), 0);
    }
    assert_true(mem_key_current(m, &stays));
    assert_ptr_equal(find(1, 3), o);
    assert_int_equal(mem_object_hash(m, o), stays.hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reference, setup, teardown),
        cmocka_unit_test_setup_teardown(test_walk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cursor_outlives_growth, setup, teardown),
        cmocka_unit_test_setup_teardown(test_chains, setup, teardown),
        cmocka_unit_test_setup_teardown(test_chains_and_growth, setup, teardown),
        cmocka_unit_test_setup_teardown(test_equal_tags, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sampling, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sweep, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sweep_after_replace, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sweep_finds_fields, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flush, setup, teardown),
        cmocka_unit_test_setup_teardown(test_swap, setup, teardown),
        cmocka_unit_test_setup_teardown(test_incarnations_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_incarnations_wrap, setup, teardown),
    };
    for (size_t i = 0; i < NAMES; i++)
        name_make(i);
    int64_t before = mem_class_bytes(MEM_DATA);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (mem_class_bytes(MEM_DATA) != before) {
        fprintf(stderr, "%lld bytes of data were not freed\n", (long long)(mem_class_bytes(MEM_DATA) - before));
        rc = 1;
    }
    for (size_t i = 0; i < NAMES; i++)
        free(names[i]);
    return rc;
}
