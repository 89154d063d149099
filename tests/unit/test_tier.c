/* The rows of the table of transitions in tier.h, one by one. The random walk over all of them is
 * test_tier_model.c. */
#include "tier_world.h"

#include "tiercel/rdb.h"

static struct world *wd;
static struct worker *w; /* the first */

/* ---- shorthand ------------------------------------------------------------------------------ */

static struct key key_db(unsigned db, const char *name)
{
    struct key k;
    mem_key_init(wd->mem, db, slice_str(name), &k);
    return k;
}

static struct key key_of(const char *name)
{
    return key_db(0, name);
}

static struct mem_shard *shard_of(const struct key *k)
{
    return mem_shard_of(wd->mem, k->hash);
}

static void put_expiring(const char *name, const char *value, int64_t expire_ms)
{
    struct key k = key_of(name);
    mem_lock(shard_of(&k));
    tier_put_locked(w, shard_of(&k), &k, object_new_string(&k, slice_str(value), expire_ms, 0));
    mem_unlock(shard_of(&k));
}

static void put(const char *name, const char *value)
{
    put_expiring(name, value, 0);
}

static bool del(const char *name)
{
    struct key k = key_of(name);
    mem_lock(shard_of(&k));
    bool existed = tier_delete_locked(w, shard_of(&k), &k, TIER_DELETED);
    mem_unlock(shard_of(&k));
    return existed;
}

/* What the table holds for the key, unresolved. NULL: no entry. */
static struct object *entry(const char *name)
{
    struct key k = key_of(name);
    mem_slot *slot = mem_find_locked(wd->mem, shard_of(&k), &k);
    return slot ? mem_object(*slot) : NULL;
}

static bool resident(const char *name)
{
    const struct object *o = entry(name);
    return o && o->type == OBJ_STRING;
}

static bool wrapped(const char *name) /* FETCHING or PINNED */
{
    const struct object *o = entry(name);
    return o && o->type == OBJ_RESIDENCY;
}

static bool leaving(const char *name) /* DEMOTING */
{
    return resident(name) && entry(name)->flags & OBJ_F_LEAVING;
}

static bool negative(const char *name)
{
    const struct object *o = entry(name);
    return o && o->type == OBJ_NONE;
}

static bool on_disk(const char *name) /* committed */
{
    struct key k = key_of(name);
    uint32_t block;
    bool has_expire;
    return disk_find_locked(wd->disk, k.hash, &block, &has_expire);
}

static struct tier_found found;
static char value[64]; /* what the last look() found */

/* A request's look at a key, after what it waited for (or NULL). */
static enum status look_as(struct worker *as, const char *name, enum tier_need need, const struct tier_wait *wait)
{
    char scratch[OBJ_SCRATCH];
    struct slice s = SLICE_NONE;
    struct key k = key_of(name);

    mem_lock(shard_of(&k));
    enum status st = tier_resolve_locked(as, shard_of(&k), &k, need, wait, &found);
    if (st == ST_OK && found.obj)
        assert_int_equal(object_string(found.obj, as->codec, scratch, &s), ST_OK);
    snprintf(value, sizeof(value), "%.*s", SLICE_FMT(s));
    mem_unlock(shard_of(&k));
    return st;
}

static enum status look(const char *name)
{
    return look_as(w, name, TIER_VALUE, NULL);
}

#define HAS(name, v)                         \
    do {                                     \
        assert_int_equal(look(name), ST_OK); \
        assert_non_null(found.obj);          \
        assert_string_equal(value, v);       \
    } while (0)
#define GONE(name)                           \
    do {                                     \
        assert_int_equal(look(name), ST_OK); \
        assert_null(found.obj);              \
        assert_false(found.on_disk);         \
    } while (0)

static int64_t keys(void)
{
    return atomic_load(&wd->mem->db[0].keys);
}

static int64_t expires(void)
{
    return atomic_load(&wd->mem->db[0].expires);
}

/* Everything that may go, goes; what must be written waits for a commit. */
static enum status squeeze(void)
{
    atomic_store(&wd->tier->limit.maxmemory, 1);
    enum status st = tier_make_room(w);
    atomic_store(&wd->tier->limit.maxmemory, 0);
    return st;
}

static void demote(void)
{
    squeeze();
    fake_commit(wd->disk, SIZE_MAX, ST_OK);
}

static void put_on_disk(const char *name, const char *v)
{
    put(name, v);
    demote();
    assert_null(entry(name));
    assert_true(on_disk(name));
}

/* ---- requests -------------------------------------------------------------------------------- */

#define REQ_KEYS 4

struct req {
    struct tier_request treq;
    struct tier_wait waits[REQ_KEYS];
    int ready;
    bool cancelled;
};

static void req_ready(struct tier_request *treq)
{
    struct req *r = LIST_ENTRY(treq, struct req, treq);
    assert_int_equal(atomic_load(&treq->pending), 0);
    r->ready++;
    r->cancelled = treq->cancelled;
}

static void req_init(struct req *r, int n, const char *const *names, enum tier_need need)
{
    memset(r, 0, sizeof(*r));
    list_init(&r->treq.admission);
    r->treq.ready = req_ready;
    r->treq.nwaits = n;
    r->treq.waits = r->waits;
    for (int i = 0; i < n; i++) {
        r->waits[i].key = key_of(names[i]);
        r->waits[i].need = (uint8_t)need;
    }
}

static enum status fault_as(struct worker *as, struct req *r, const char *name, enum tier_need need)
{
    req_init(r, 1, &name, need);
    return tier_fault(as, &r->treq, true);
}

static enum status fault(struct req *r, const char *name)
{
    return fault_as(w, r, name, TIER_VALUE);
}

static void release(struct req *r)
{
    tier_release(w, &r->treq);
    for (int i = 0; i < r->treq.nwaits; i++)
        assert_null(r->waits[i].res);
}

/* Hands the reads to the disk and has it answer them all. */
static void answer_reads(enum status st)
{
    world_turn(wd);
    while (fake_answer(wd->disk, st))
        ;
    world_turn(wd);
}

static struct upstream *up_of(int worker)
{
    return tier_upstream(world_worker(wd, worker));
}

/* ---- setting up ------------------------------------------------------------------------------ */

static int64_t data_before;

static int make(void **state, int workers, bool disk, bool upstream)
{
    (void)state;
    data_before = mem_class_bytes(MEM_DATA);
    wd = world_create(workers, disk, upstream);
    w = world_worker(wd, 0);
    for (int i = 0; upstream && i < workers; i++)
        fake_up_connect(up_of(i));
    return 0;
}

static int memory_only(void **state)
{
    return make(state, 1, false, false);
}

static int with_disk(void **state)
{
    return make(state, 1, true, false);
}

static int with_workers(void **state)
{
    return make(state, 3, true, false);
}

static int with_upstream(void **state)
{
    return make(state, 2, false, true);
}

static int with_all(void **state)
{
    return make(state, 2, true, true);
}

/* Each pinned thing was unpinned, each entry is a plain one; nothing leaks. */
static void at_rest(void *arg, struct object *o)
{
    (void)arg;
    assert_int_not_equal(o->type, OBJ_RESIDENCY);
}

static int finish(void **state)
{
    (void)state;
    if (wd->disk) {
        disk_sync(wd->disk, 0);
        answer_reads(ST_OK);
        world_check_log(wd);
    }
    for (uint64_t cursor = 0;;) {
        mem_scan_locked(wd->mem, mem_shard_of(wd->mem, cursor), cursor, &cursor, at_rest, NULL);
        if (cursor == 0)
            break;
    }
    world_destroy(wd);
    assert_int_equal(mem_class_bytes(MEM_DATA), data_before);
    return 0;
}

/* ---- ABSENT ---------------------------------------------------------------------------------- */

static void test_absent(void **state)
{
    (void)state;
    struct req r;
    GONE("a");
    assert_int_equal(fault(&r, "a"), ST_OK);
    assert_int_equal(r.waits[0].st, ST_NOT_FOUND);
    release(&r);
    assert_null(entry("a"));
    assert_false(del("a"));
    put("a", "1");
    assert_true(resident("a"));
    HAS("a", "1");
    assert_int_equal(keys(), 1);
    assert_true(del("a"));
    GONE("a");
    assert_int_equal(keys(), 0);
    assert_int_equal(wd->changes[TIER_WRITTEN], 1);
    assert_int_equal(wd->changes[TIER_DELETED], 1);
}

/* ---- RESIDENT -------------------------------------------------------------------------------- */

static void test_resident_expiry(void **state)
{
    (void)state;
    put_expiring("a", "1", w->now_ms + 1000);
    put_expiring("b", "1", w->now_ms + 1000);
    put_expiring("c", "1", w->now_ms + 1000);
    put_expiring("d", "1", w->now_ms + 9000);
    assert_int_equal(expires(), 4);
    HAS("a", "1");
    w->now_ms += 1000;
    GONE("a"); /* on access */
    assert_int_equal(keys(), 3);
    assert_string_equal(wd->changed_key, "a");
    int at = wd->changes[TIER_EXPIRED];
    squeeze(); /* by eviction: an expired victim has expired, it is not evicted */
    assert_true(wd->changes[TIER_EXPIRED] > at);
    assert_int_equal(keys(), expires());
    put_expiring("e", "1", w->now_ms + 1);
    w->now_ms += 2;
    while (tier_worker_sweep(w, true, 200)) /* by the sweep, which knows the key only from the object */
        ;
    assert_null(entry("e"));
    assert_string_equal(wd->changed_key, "e");
    assert_int_equal(keys(), expires());
}

static void test_resident_evicted_without_disk(void **state)
{
    (void)state;
    put("a", "1");
    put_expiring("b", "2", w->now_ms + 10000);
    assert_int_equal(squeeze(), ST_FULL); /* nothing left, and still over */
    GONE("a");
    GONE("b");
    assert_int_equal(keys(), 0);
    assert_int_equal(expires(), 0);
    assert_int_equal(wd->changes[TIER_EVICTED], 2);
}

static void test_noeviction(void **state)
{
    (void)state;
    atomic_store(&wd->tier->limit.policy, POLICY_NOEVICTION);
    put("a", "1");
    assert_int_equal(squeeze(), ST_FULL);
    HAS("a", "1");
}

/* A victim that was noted as volatile and became persistent meanwhile stays. */
static void test_volatile_changed_mind(void **state)
{
    (void)state;
    char name[16];
    atomic_store(&wd->tier->limit.policy, POLICY_VOLATILE_TTL);
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof(name), "v%d", i);
        put_expiring(name, "1", w->now_ms + 1000 + i);
    }
    /* One victim is enough: the others stay in the pool of candidates. */
    int64_t used = mem_class_bytes(MEM_DATA);
    atomic_store(&wd->tier->limit.maxmemory, used - 1);
    tier_make_room(w);
    atomic_store(&wd->tier->limit.maxmemory, 0);
    assert_int_equal(wd->changes[TIER_EVICTED], 1);
    int left = 0;
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof(name), "v%d", i);
        struct object *o = entry(name);
        if (!o)
            continue;
        struct key k = key_of(name);
        struct object *now = object_set_expire(o, 0);
        tier_changed_locked(w, shard_of(&k), &k, o, now, true);
        left++;
    }
    assert_int_equal(expires(), 0);
    squeeze();
    assert_int_equal(keys(), left);
}

static void test_resident_demoted(void **state)
{
    (void)state;
    put("a", "1");
    squeeze();
    assert_true(leaving("a")); /* dirty: to the queue */
    assert_true(atomic_load(&wd->tier->demoting_bytes) > 0);
    assert_false(on_disk("a"));
    fake_commit(wd->disk, SIZE_MAX, ST_OK);
    assert_null(entry("a"));
    assert_true(on_disk("a"));
    assert_int_equal(atomic_load(&wd->tier->demoting_bytes), 0);
    assert_int_equal(keys(), 1);
    assert_int_equal(wd->changes[TIER_EVICTED], 0); /* a demotion is no change */
}

static void test_resident_clean(void **state)
{
    (void)state;
    struct req r;
    put_on_disk("a", "1");
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    release(&r);
    assert_true(resident("a"));
    assert_true(on_disk("a"));
    size_t appends = wd->disk->nrec;
    squeeze(); /* clean: dropped without a write */
    assert_null(entry("a"));
    assert_int_equal(wd->disk->nrec, appends);
    assert_int_equal(keys(), 1);

    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    release(&r);
    put("a", "2"); /* a write makes it dirty */
    assert_false(on_disk("a"));
    assert_int_equal(wd->disk->tombstones, 1);
    put("a", "3"); /* only the first one needs a tombstone */
    assert_int_equal(wd->disk->tombstones, 1);
    demote();
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    release(&r);
    assert_true(del("a")); /* a delete likewise */
    assert_int_equal(wd->disk->tombstones, 2);
    GONE("a");
    assert_int_equal(keys(), 0);
}

/* A value that is a buffer of its own goes to the disk by reference; the reference comes back. */
static void test_large_values(void **state)
{
    (void)state;
    static char big[20000];
    struct req r;
    memset(big, 'x', sizeof(big) - 1);
    put("a", big);
    demote();
    assert_null(entry("a"));
    assert_int_equal(wd->disk->rec[0].r.payload.len, sizeof(big) - 1 + 2);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    assert_int_equal(look("a"), ST_OK);
    assert_int_equal(object_string_len(found.obj), sizeof(big) - 1);
    release(&r);
    del("a");
    put("b", big);
    assert_int_equal(tier_write_out(wd->tier, 1000), 0);
}

/* ---- ON_DISK --------------------------------------------------------------------------------- */

static void test_on_disk_read(void **state)
{
    (void)state;
    struct req r;
    put_on_disk("a", "1");
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    assert_true(wrapped("a"));
    assert_int_equal(look("a"), ST_PENDING);
    answer_reads(ST_OK);
    assert_int_equal(r.ready, 1);
    assert_int_equal(r.waits[0].st, ST_OK);
    assert_true(wrapped("a")); /* PINNED */
    HAS("a", "1");
    squeeze(); /* cannot take it */
    HAS("a", "1");
    release(&r);
    assert_true(resident("a"));
    HAS("a", "1");
    assert_int_equal(keys(), 1);
}

static void test_on_disk_replaced(void **state)
{
    (void)state;
    put_on_disk("a", "1");
    assert_int_equal(look_as(w, "a", TIER_NOTHING, NULL), ST_OK);
    assert_true(found.on_disk);
    put("a", "2");
    HAS("a", "2");
    assert_false(on_disk("a"));
    assert_int_equal(wd->disk->tombstones, 1);
    assert_int_equal(keys(), 1);
    put_on_disk("b", "1");
    assert_true(del("b"));
    assert_false(on_disk("b"));
    assert_int_equal(keys(), 1);
    GONE("b");
    assert_int_equal(wd->disk->nreads, 0);
}

static void test_on_disk_presence(void **state)
{
    (void)state;
    struct req r;
    put_on_disk("a", "1");
    assert_int_equal(look_as(w, "a", TIER_PRESENCE, NULL), ST_OK);
    assert_true(found.on_disk);
    assert_int_equal(fault_as(w, &r, "a", TIER_PRESENCE), ST_OK);
    release(&r);
    put_expiring("b", "1", w->now_ms + 1000);
    demote();
    assert_int_equal(look_as(w, "b", TIER_PRESENCE, NULL), ST_PENDING); /* it may have expired */
    assert_int_equal(fault_as(w, &r, "b", TIER_PRESENCE), ST_PENDING);
    answer_reads(ST_OK);
    assert_int_equal(look_as(w, "b", TIER_PRESENCE, &r.waits[0]), ST_OK);
    assert_non_null(found.obj);
    release(&r);
}

static void test_on_disk_dropped(void **state)
{
    (void)state;
    struct req r;
    put_on_disk("a", "1");
    put_expiring("b", "2", w->now_ms + 1000);
    demote();
    put_on_disk("c", "3");
    assert_int_equal(fault(&r, "c"), ST_PENDING); /* c is in memory too */
    answer_reads(ST_OK);
    fake_drop(wd->disk, 10);
    GONE("a");
    GONE("b");
    HAS("c", "3");
    assert_int_equal(keys(), 1);
    assert_int_equal(expires(), 0);
    release(&r);
    squeeze(); /* and is dirty by that */
    assert_true(leaving("c"));
    fake_commit(wd->disk, 10, ST_OK);
    assert_true(on_disk("c"));
    assert_int_equal(keys(), 1);
}

static void test_on_disk_expired(void **state)
{
    (void)state;
    struct req r;
    put_expiring("a", "1", w->now_ms + 1000);
    demote();
    w->now_ms += 1000;
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    assert_int_equal(r.waits[0].st, ST_NOT_FOUND);
    release(&r);
    GONE("a");
    assert_null(entry("a"));
    assert_int_equal(keys(), 0);
    assert_int_equal(expires(), 0);
}

/* ---- FETCHING from disk ---------------------------------------------------------------------- */

static void test_fetch_shared(void **state)
{
    (void)state;
    static struct req r[300];
    put_on_disk("a", "1");
    for (int i = 0; i < 300; i++)
        assert_int_equal(fault_as(world_worker(wd, i % 3), &r[i], "a", TIER_VALUE), ST_PENDING);
    answer_reads(ST_OK);
    assert_int_equal(wd->disk->nreads, 1);
    for (int i = 0; i < 300; i++) {
        assert_int_equal(r[i].ready, 1);
        tier_release(world_worker(wd, i % 3), &r[i].treq);
        assert_int_equal(wrapped("a"), i < 299);
    }
    HAS("a", "1");
}

static void test_fetch_cancelled(void **state)
{
    (void)state;
    struct req a, b;
    put_on_disk("a", "1");
    assert_int_equal(fault(&a, "a"), ST_PENDING);
    assert_int_equal(fault(&b, "a"), ST_PENDING);
    assert_true(tier_cancel(w, &a.treq)); /* nothing refers to it any more */
    memset(&a, 0xee, sizeof(a));
    world_turn(wd);
    fake_answer(wd->disk, ST_OK); /* the answer is on its way to the loop */
    world_turn(wd);
    assert_int_equal(b.ready, 1);
    release(&b);
    HAS("a", "1");
    squeeze();
    assert_int_equal(fault(&a, "a"), ST_PENDING); /* the only one */
    assert_true(tier_cancel(w, &a.treq));
    answer_reads(ST_OK);
    assert_true(resident("a"));
}

/* Between the answer and ready(). */
static void test_fetch_cancelled_late(void **state)
{
    (void)state;
    struct req a, b;
    struct worker *other = world_worker(wd, 1);
    put_on_disk("a", "1");
    assert_int_equal(fault_as(other, &b, "a", TIER_VALUE), ST_PENDING); /* its loop will complete the fetch */
    assert_int_equal(fault(&a, "a"), ST_PENDING);
    uv_run(other->loop, UV_RUN_NOWAIT);
    fake_answer(wd->disk, ST_OK);
    uv_run(other->loop, UV_RUN_NOWAIT);
    assert_int_equal(a.ready, 0);
    assert_false(tier_cancel(w, &a.treq)); /* its message is under way */
    world_turn(wd);
    assert_int_equal(a.ready, 1);
    assert_true(a.cancelled);
    tier_release(other, &b.treq);
    assert_true(resident("a"));
}

static void test_fetch_not_there(void **state)
{
    (void)state;
    const enum status st[] = {ST_NOT_FOUND, ST_CORRUPT};
    struct req r;
    for (int i = 0; i < 2; i++) {
        put_on_disk("a", "1");
        assert_int_equal(fault(&r, "a"), ST_PENDING);
        answer_reads(st[i]);
        assert_int_equal(r.ready, 1);
        assert_int_equal(r.waits[0].st, ST_NOT_FOUND);
        assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
        assert_null(found.obj);
        release(&r);
        GONE("a");
        assert_false(on_disk("a"));
        assert_int_equal(keys(), 0);
    }
}

static void test_fetch_failed(void **state)
{
    (void)state;
    struct req r;
    put_on_disk("a", "1");
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_IO);
    assert_int_equal(r.ready, 1);
    assert_int_equal(r.waits[0].st, ST_IO);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_IO);
    release(&r);
    assert_null(entry("a"));
    assert_true(on_disk("a"));
    assert_int_equal(keys(), 1);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    release(&r);
    HAS("a", "1");
}

/* A write or a delete overtakes a fetch: its waiters run again, and its completion changes nothing. */
static void test_fetch_overtaken(void **state)
{
    (void)state;
    struct req r;
    for (int deleted = 0; deleted < 2; deleted++) {
        put_on_disk("a", "1");
        assert_int_equal(fault(&r, "a"), ST_PENDING);
        world_turn(wd);
        assert_int_equal(look_as(w, "a", TIER_NOTHING, NULL), ST_OK);
        assert_true(found.on_disk);
        if (deleted)
            assert_true(del("a"));
        else
            put("a", "2");
        world_turn(wd);
        assert_int_equal(r.ready, 1);
        assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
        assert_string_equal(value, deleted ? "" : "2");
        release(&r);
        answer_reads(ST_OK);
        assert_int_equal(r.ready, 1);
        assert_int_equal(keys(), !deleted);
        if (deleted)
            GONE("a");
        else
            HAS("a", "2");
    }
}

/* The block goes while its record is being read: the reader has it still, and the key lives on, dirty. */
static void test_fetch_from_dropped_block(void **state)
{
    (void)state;
    struct req r;
    put_expiring("a", "1", w->now_ms + 100000);
    demote();
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    world_turn(wd);
    assert_true(fake_answer(wd->disk, ST_OK)); /* read, not yet delivered */
    fake_drop(wd->disk, 10);
    assert_int_equal(keys(), 0);
    world_turn(wd);
    HAS("a", "1");
    assert_int_equal(keys(), 1);
    assert_int_equal(expires(), 1);
    release(&r);
    squeeze();
    assert_true(leaving("a")); /* dirty */
}

static void flush(unsigned db)
{
    mem_lock_all(wd->mem);
    tier_flush_db_locked(w, db);
    mem_unlock_all(wd->mem);
}

static void swap(unsigned a, unsigned b)
{
    mem_lock_all(wd->mem);
    tier_swap_db_locked(w, a, b);
    mem_unlock_all(wd->mem);
}

static void sweep(void)
{
    for (int i = 0; i < 20; i++)
        for (int k = 0; k < wd->n; k++)
            tier_worker_sweep(world_worker(wd, k), true, 200);
}

static void test_fetch_and_flush(void **state)
{
    (void)state;
    struct req r;
    for (int swept = 0; swept < 2; swept++) {
        put_on_disk("a", "1");
        assert_int_equal(fault(&r, "a"), ST_PENDING);
        world_turn(wd);
        assert_true(fake_answer(wd->disk, ST_OK));
        flush(0);
        fake_drop(wd->disk, 10); /* the dead incarnation's record goes */
        if (swept)
            sweep();
        world_turn(wd);
        assert_int_equal(r.ready, 1);
        GONE("a");
        release(&r);
        assert_int_equal(keys(), 0); /* of the new incarnation */
        sweep();
    }
    uint64_t left = 0;
    for (unsigned i = 0; i < wd->mem->shards; i++)
        left += wd->mem->shard[i].count;
    assert_int_equal(left, 0);
}

/* The key moves to another database while it is being read: it is counted there. */
static void test_fetch_and_swap(void **state)
{
    (void)state;
    struct req r;
    for (int round = 0; round < 3; round++) {
        put_on_disk("a", "1");
        assert_int_equal(fault(&r, "a"), ST_PENDING);
        world_turn(wd);
        if (round == 1) {
            fake_answer(wd->disk, ST_OK);
            fake_drop(wd->disk, 10);
        }
        swap(0, 1);
        assert_int_equal(wd->mem->db[1].keys, round != 1);
        if (round == 0)
            answer_reads(ST_OK);
        else if (round == 1)
            world_turn(wd);
        else
            answer_reads(ST_CORRUPT);
        assert_int_equal(r.ready, 1);
        release(&r);
        assert_int_equal(wd->mem->db[0].keys, 0);
        assert_int_equal(wd->mem->db[1].keys, round != 2);
        swap(0, 1);
        if (round != 2)
            HAS("a", "1");
        assert_int_equal(keys(), round != 2);
        flush(0);
        sweep();
    }
}

/* ---- PINNED ---------------------------------------------------------------------------------- */

static void test_pinned_for_others(void **state)
{
    (void)state;
    struct req r;
    const char *const names[] = {"a", "b"};
    put_on_disk("b", "2");
    put("a", "1");
    req_init(&r, 2, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &r.treq, true), ST_PENDING);
    assert_true(wrapped("a")); /* waits for b with it */
    squeeze();
    HAS("a", "1");
    answer_reads(ST_OK);
    assert_int_equal(r.ready, 1);
    HAS("a", "1");
    HAS("b", "2");
    atomic_store(&wd->tier->limit.maxmemory, 1);
    release(&r); /* over the limit: b was fetched for this use only, a is dirty and stays */
    atomic_store(&wd->tier->limit.maxmemory, 0);
    assert_true(resident("a"));
    assert_null(entry("b"));
    assert_int_equal(keys(), 2);
}

static void test_pinned_twice(void **state)
{
    (void)state;
    struct req r;
    const char *const names[] = {"a", "a"};
    put_on_disk("a", "1");
    req_init(&r, 2, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &r.treq, true), ST_PENDING);
    answer_reads(ST_OK);
    assert_int_equal(r.ready, 1);
    release(&r);
    assert_true(resident("a"));
}

static void test_pinned_changed(void **state)
{
    (void)state;
    struct req r;
    put("a", "1");
    assert_int_equal(fault(&r, "a"), ST_OK);
    put("a", "2"); /* replaced: the pin holds what nobody sees any more */
    HAS("a", "2");
    release(&r);
    HAS("a", "2");

    assert_int_equal(fault(&r, "a"), ST_OK);
    struct key k = key_of("a");
    assert_int_equal(look("a"), ST_OK);
    struct object *old = found.obj, *now = object_set_expire(old, w->now_ms + 5000);
    tier_changed_locked(w, shard_of(&k), &k, old, now, false);
    assert_int_equal(expires(), 1);
    assert_true(wrapped("a"));
    HAS("a", "2");
    release(&r);
    assert_true(resident("a"));
    w->now_ms += 5000;
    GONE("a");
    assert_int_equal(keys(), 0);
    assert_int_equal(expires(), 0);

    put_expiring("b", "1", w->now_ms + 10);
    assert_int_equal(fault(&r, "b"), ST_OK);
    w->now_ms += 10; /* expires while it is pinned */
    GONE("b");
    release(&r);
    assert_null(entry("b"));
    assert_int_equal(keys(), 0);
}

/* ---- DEMOTING -------------------------------------------------------------------------------- */

static void test_demoting_read(void **state)
{
    (void)state;
    put("a", "1");
    squeeze();
    assert_true(leaving("a"));
    HAS("a", "1");
    assert_false(leaving("a"));
    fake_commit(wd->disk, 1, ST_OK);
    assert_true(resident("a")); /* wanted: stays, clean */
    assert_true(on_disk("a"));
    HAS("a", "1");
}

static void test_demoting_pinned(void **state)
{
    (void)state;
    struct req r;
    put("a", "1");
    squeeze();
    assert_int_equal(fault(&r, "a"), ST_OK);
    fake_commit(wd->disk, 1, ST_OK);
    assert_true(wrapped("a"));
    assert_true(on_disk("a"));
    HAS("a", "1");
    release(&r);
    assert_true(resident("a"));

    put("b", "1"); /* unpinned before the commit: somebody used it */
    squeeze();
    assert_int_equal(fault(&r, "b"), ST_OK);
    release(&r);
    assert_false(leaving("b"));
    fake_commit(wd->disk, 1, ST_OK);
    assert_true(resident("b"));
    assert_true(on_disk("b"));
}

static void test_demoting_failed(void **state)
{
    (void)state;
    struct req r;
    put("a", "1");
    squeeze();
    fake_commit(wd->disk, 1, ST_IO);
    assert_true(resident("a"));
    assert_false(on_disk("a"));
    HAS("a", "1");
    put("b", "1");
    squeeze();
    assert_int_equal(fault(&r, "b"), ST_OK);
    fake_commit(wd->disk, SIZE_MAX, ST_IO);
    HAS("b", "1");
    release(&r);
    assert_true(resident("b"));
    assert_int_equal(keys(), 2);
}

/* A write while it is on its way: what arrives on disk is history, and its tombstone is behind it. */
static void test_demoting_written(void **state)
{
    (void)state;
    put("a", "1");
    squeeze();
    put("a", "2");
    assert_true(resident("a"));
    assert_int_equal(wd->disk->tombstones, 1);
    fake_commit(wd->disk, 1, ST_OK);
    assert_false(on_disk("a"));
    HAS("a", "2");

    squeeze(); /* again, twice in the queue at once */
    put("a", "3");
    squeeze();
    assert_true(leaving("a"));
    fake_commit(wd->disk, 1, ST_OK); /* the older one */
    assert_true(leaving("a"));
    assert_false(on_disk("a"));
    fake_commit(wd->disk, 1, ST_OK);
    assert_true(on_disk("a"));
    struct req r;
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    HAS("a", "3");
    release(&r);
    assert_int_equal(keys(), 1);
}

static void test_demoting_deleted(void **state)
{
    (void)state;
    put("a", "1");
    squeeze();
    assert_true(del("a"));
    assert_int_equal(wd->disk->tombstones, 1);
    GONE("a");
    fake_commit(wd->disk, 1, ST_OK);
    GONE("a");
    assert_false(on_disk("a"));
    assert_int_equal(keys(), 0);
    assert_int_equal(atomic_load(&wd->tier->demoting_bytes), 0);

    put_expiring("b", "1", w->now_ms + 10);
    squeeze();
    w->now_ms += 10;
    GONE("b");
    fake_commit(wd->disk, 1, ST_OK);
    GONE("b");
    assert_int_equal(keys(), 0);
}

/* Changed in place: by an expiry, with and without a pin. */
static void test_demoting_changed(void **state)
{
    (void)state;
    struct req r;
    for (int pinned = 0; pinned < 2; pinned++) {
        struct key k = key_of("a");
        put("a", "1");
        squeeze();
        if (pinned)
            assert_int_equal(fault(&r, "a"), ST_OK);
        HAS("a", "1");
        struct object *old = found.obj, *now = object_set_expire(old, w->now_ms + 60000);
        tier_changed_locked(w, shard_of(&k), &k, old, now, false);
        assert_int_equal(wrapped("a"), pinned);
        fake_commit(wd->disk, 1, ST_OK);
        assert_false(on_disk("a"));
        assert_int_equal(expires(), 1);
        if (pinned)
            release(&r);
        assert_true(resident("a"));
        HAS("a", "1");
        del("a");
    }
}

static void test_demoting_and_flush(void **state)
{
    (void)state;
    for (int swept = 0; swept < 2; swept++) {
        put("a", "1");
        squeeze();
        flush(0);
        if (swept)
            sweep();
        fake_commit(wd->disk, 1, ST_OK);
        fake_drop(wd->disk, 10);
        GONE("a");
        assert_int_equal(keys(), 0);
        put("a", "2");
        HAS("a", "2");
        assert_int_equal(keys(), 1);
        del("a");
        sweep();
    }
    assert_int_equal(wd->disk->index[0].n + wd->disk->index[1].n + wd->disk->index[2].n + wd->disk->index[3].n, 0);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static int rooms;

static void room_ready(struct tier_room_wait *rw)
{
    (void)rw;
    rooms++;
}

static void test_queue_full(void **state)
{
    (void)state;
    struct tier_room_wait rw = {.ready = room_ready}, gone = {.ready = room_ready};
    rooms = 0;
    put("a", "1");
    put("b", "1");
    put("c", "1");
    wd->disk->queue_max = 4; /* one of them */
    assert_int_equal(squeeze(), ST_PENDING);
    assert_int_equal(wd->disk->nrec, 1);
    assert_int_equal(keys(), 3);
    tier_wait_room(w, &rw);
    tier_wait_room(w, &gone);
    tier_cancel_room(&gone);
    world_turn(wd);
    assert_int_equal(rooms, 0);
    fake_commit(wd->disk, 1, ST_OK);
    world_turn(wd);
    assert_int_equal(rooms, 1);
    assert_int_equal(keys(), 3);

    /* Full for too long: dropped, counted. */
    atomic_store(&wd->tier->limit.disk_stall_ms, 0);
    uint64_t drops = stats_sum(STAT_tier_dirty_drops);
    squeeze();
    squeeze();
    assert_int_equal(keys(), 2);
    assert_int_equal(wd->changes[TIER_EVICTED], 1);
    assert_int_equal(stats_sum(STAT_tier_dirty_drops), drops + 1);
}

static void test_disk_refuses(void **state)
{
    (void)state;
    put("a", "1");
    wd->disk->append_st = ST_IO;
    atomic_store(&wd->tier->limit.policy, POLICY_NOEVICTION);
    assert_int_equal(squeeze(), ST_FULL);
    HAS("a", "1");
    atomic_store(&wd->tier->limit.policy, POLICY_VOLATILE_LRU);
    squeeze();
    HAS("a", "1"); /* not volatile: may be moved, not lost */
    atomic_store(&wd->tier->limit.policy, POLICY_ALLKEYS_LRU);
    squeeze();
    GONE("a");
    assert_int_equal(keys(), 0);
}

/* A candidate for eviction is known by its address; what is there later may be another thing. */
static void test_candidate_replaced(void **state)
{
    (void)state;
    static struct req r[16];
    char name[32];
    for (int i = 0; i < 16; i++) { /* keys as long as a residency's node wants to be */
        snprintf(name, sizeof(name), "key:%d", i);
        put(name, "0123456789");
    }
    atomic_store(&wd->tier->limit.maxmemory, mem_class_bytes(MEM_DATA));
    w->now_ms += 1000;
    squeeze();
    fake_commit(wd->disk, SIZE_MAX, ST_IO); /* all back */
    int64_t used = mem_class_bytes(MEM_DATA);
    atomic_store(&wd->tier->limit.maxmemory, used - 1);
    tier_make_room(w); /* one victim, the rest of the pool is kept */
    for (int i = 0; i < 16; i++) {
        snprintf(name, sizeof(name), "key:%d", i);
        del(name);
        put(name, "another value, longer than the first");
        assert_int_equal(fault(&r[i], name), ST_OK); /* a node, maybe where the old object was */
    }
    squeeze();
    squeeze();
    for (int i = 0; i < 16; i++) {
        snprintf(name, sizeof(name), "key:%d", i);
        assert_true(wrapped(name));
        release(&r[i]);
        assert_true(resident(name));
    }
}

/* ---- inflight-max-bytes ------------------------------------------------------------------------ */

static void test_admission(void **state)
{
    (void)state;
    struct req a, b, c, ahead, x;
    const char *const names[] = {"a", "b"};
    put_on_disk("a", "1");
    put_on_disk("b", "2");
    atomic_store(&wd->tier->limit.inflight_max, 3000);
    req_init(&a, 2, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &a.treq, true), ST_PENDING);
    req_init(&ahead, 2, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &ahead.treq, false), ST_BUSY); /* half of it is for look-ahead */
    req_init(&b, 2, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &b.treq, true), ST_PENDING); /* waits to be admitted */
    req_init(&c, 1, names, TIER_VALUE);
    c.treq.nwaits = 2;
    c.waits[1] = c.waits[0];
    assert_int_equal(tier_fault(world_worker(wd, 1), &c.treq, true), ST_PENDING);
    req_init(&x, 2, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &x.treq, true), ST_PENDING);
    assert_true(tier_cancel(w, &x.treq));
    memset(&x, 0xee, sizeof(x));
    answer_reads(ST_OK);
    assert_int_equal(a.ready, 1);
    assert_int_equal(b.ready + c.ready, 0);
    atomic_store(&wd->tier->fetched_size, 1024); /* what it learned from two small values */
    release(&a);
    world_turn(wd);
    answer_reads(ST_OK);
    assert_int_equal(b.ready + c.ready, 1);
    if (b.ready)
        release(&b);
    else
        tier_release(world_worker(wd, 1), &c.treq);
    world_turn(wd);
    assert_int_equal(b.ready + c.ready, 2);
    if (b.treq.charge)
        release(&b);
    if (c.treq.charge)
        tier_release(world_worker(wd, 1), &c.treq);
    assert_int_equal(atomic_load(&wd->tier->inflight_urgent), 0);
}

/* One that is over the limit by itself goes alone: the oldest always get on. */
static void test_admission_alone(void **state)
{
    (void)state;
    struct req r, s;
    const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++)
        put_on_disk(names[i], "1");
    atomic_store(&wd->tier->limit.inflight_max, 1);
    req_init(&r, 3, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &r.treq, true), ST_PENDING);
    req_init(&s, 1, names, TIER_VALUE);
    assert_int_equal(tier_fault(w, &s.treq, true), ST_PENDING);
    answer_reads(ST_OK);
    assert_int_equal(r.ready, 1);
    assert_int_equal(s.ready, 0);
    release(&r);
    world_turn(wd);
    assert_int_equal(s.ready, 1);
    release(&s);
}

/* ---- the upstream ------------------------------------------------------------------------------ */

static void test_upstream_read(void **state)
{
    (void)state;
    struct req r, s;
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    assert_int_equal(fault_as(world_worker(wd, 1), &s, "a", TIER_VALUE), ST_PENDING);
    assert_int_equal(up_of(0)->nfetches + up_of(1)->nfetches, 1);
    fake_up_answer(up_of(0), ST_OK, "1", 5000);
    world_turn(wd);
    assert_int_equal(r.ready, 1);
    assert_int_equal(s.ready, 1);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
    assert_string_equal(value, "1");
    assert_true(found.kept);
    release(&r);
    tier_release(world_worker(wd, 1), &s.treq);
    assert_true(resident("a"));
    HAS("a", "1");
    assert_int_equal(keys(), 1);
    assert_int_equal(expires(), 1);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 1);
    assert_true(object_expire(found.obj) >= w->now_ms + 4000);
    tier_forget_upstream(w, 0, SLICE_LIT("a"));
    assert_null(entry("a"));
    assert_int_equal(keys(), 0);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
}

static void test_negative(void **state)
{
    (void)state;
    struct req r;
    for (int end = 0; end < 3; end++) {
        assert_int_equal(fault(&r, "a"), ST_PENDING);
        fake_up_answer(up_of(0), ST_NOT_FOUND, NULL, -1);
        world_turn(wd);
        assert_int_equal(r.waits[0].st, ST_NOT_FOUND);
        assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
        assert_null(found.obj);
        release(&r);
        assert_true(negative("a"));
        assert_int_equal(look("a"), ST_OK); /* no question asked */
        assert_null(found.obj);
        assert_int_equal(fault(&r, "a"), ST_OK);
        assert_int_equal(r.waits[0].st, ST_NOT_FOUND);
        release(&r);
        assert_int_equal(keys(), 0);
        if (end == 0) {
            w->now_ms += 1001;
            assert_int_equal(look("a"), ST_PENDING);
        } else if (end == 1) {
            squeeze();
        } else {
            up_of(1)->ev.invalidate(up_of(1)->ev.arg, SLICE_LIT("a"));
        }
        assert_null(entry("a"));
        assert_int_equal(keys(), 0);
    }
    atomic_store(&wd->tier->limit.negative_ttl_ms, 0);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_NOT_FOUND, NULL, -1);
    world_turn(wd);
    assert_null(entry("a"));
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
    release(&r);
}

static void test_upstream_failed(void **state)
{
    (void)state;
    struct req r;
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_BAD, "NOPERM no", -1);
    world_turn(wd);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_BAD);
    assert_string_equal(r.treq.error, "NOPERM no");
    release(&r);
    assert_null(entry("a"));
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_lose(up_of(0));
    world_turn(wd);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_UNAVAILABLE);
    release(&r);
    /* No connection: failed before tier_fault() returns, so there is nothing to wait for. */
    assert_int_equal(fault(&r, "a"), ST_OK);
    world_turn(wd);
    assert_int_equal(r.ready, 0);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_UNAVAILABLE);
    release(&r);
    assert_int_equal(keys(), 0);
}

/* The value of a fetch of worker 0 by DUMP; damaged: not as it was sent. */
static void answer_dump(const char *v, bool damaged)
{
    struct list *l = list_pop_front(&up_of(0)->fetches);
    assert_non_null(l);
    struct fake_fetch *ff = LIST_ENTRY(l, struct fake_fetch, link);
    assert_int_equal(ff->f->as, UPSTREAM_DUMP);
    struct key k = key_of("any");
    struct object *o = object_new_string(&k, slice_str(v), 0, 0);
    struct buf payload;
    buf_init(&payload, MEM_OTHER);
    assert_true(rdb_dump(o, w->codec, &payload));
    object_free(o);
    payload.ptr[2] = (char)(payload.ptr[2] ^ damaged);
    ff->f->done(ff->f, ST_OK, buf_slice(&payload), -1, up_of(0)->generation);
    buf_deinit(&payload);
    free(ff);
}

/* A key of which parts are read: the second time it is fetched whole, and kept as any other. */
static void test_wanted(void **state)
{
    (void)state;
    for (int how = 0; how < 6; how++) {
        char name[] = "a";
        name[0] = (char)('a' + how);
        size_t before = up_of(0)->nfetches;
        struct key k = key_of(name);
        struct req r;
        tier_want(w, &k);
        assert_int_equal(up_of(0)->nfetches, before);
        for (int i = 0; i < 3; i++)
            tier_want(w, &k); /* one fetch at a time */
        assert_int_equal(up_of(0)->nfetches, before + 1);
        switch (how) {
        case 0: /* and again, after it was changed */
            answer_dump("0", false);
            HAS(name, "0");
            tier_want(w, &k); /* it is here: nothing to be noted */
            up_of(1)->ev.invalidate(up_of(1)->ev.arg, slice_str(name));
            tier_want(w, &k);
            assert_int_equal(up_of(0)->nfetches, before + 1);
            tier_want(w, &k);
            assert_int_equal(up_of(0)->nfetches, before + 2);
            answer_dump("1", false);
            break;
        case 1:
            assert_int_equal(fault(&r, name), ST_PENDING); /* joins */
            assert_int_equal(up_of(0)->nfetches, before + 1);
            answer_dump("1", false);
            world_turn(wd);
            assert_int_equal(look_as(w, name, TIER_VALUE, &r.waits[0]), ST_OK);
            release(&r);
            break;
        case 2:
            tier_forget_upstream(w, 0, slice_str(name));
            answer_dump("1", false);
            break;
        case 3:
            up_of(1)->ev.invalidate(up_of(1)->ev.arg, slice_str(name));
            answer_dump("1", false);
            break;
        case 4: /* cannot be read: who joined passes its command through; not again for a while */
            assert_int_equal(fault(&r, name), ST_PENDING);
            answer_dump("1", true);
            world_turn(wd);
            assert_int_equal(look_as(w, name, TIER_VALUE, &r.waits[0]), ST_WRONGTYPE);
            release(&r);
            for (int i = 0; i < 100; i++)
                tier_want(w, &k);
            assert_int_equal(up_of(0)->nfetches, before + 1);
            w->now_ms += 61000;
            tier_want(w, &k);
            tier_want(w, &k);
            assert_int_equal(up_of(0)->nfetches, before + 2);
            fake_up_answer(up_of(0), ST_NOT_FOUND, NULL, -1);
            assert_true(negative(name));
            break;
        default: /* larger than what is kept: a string answers those who joined, the rest passes through */
            atomic_store(&wd->tier->limit.upstream_max_object, 10);
            assert_int_equal(fault(&r, name), ST_PENDING);
            answer_dump("longer than ten bytes", false);
            world_turn(wd);
            assert_int_equal(look_as(w, name, TIER_VALUE, &r.waits[0]), ST_WRONGTYPE);
            release(&r);
            assert_int_equal(fault(&r, name), ST_PENDING);
            fake_up_answer(up_of(0), ST_OK, "longer than ten bytes", -1);
            world_turn(wd);
            assert_int_equal(look_as(w, name, TIER_VALUE, &r.waits[0]), ST_OK);
            assert_false(found.kept);
            release(&r);
        }
        world_turn(wd);
        if (how < 2)
            HAS(name, "1");
        else if (how != 4)
            assert_null(entry(name));
    }
    assert_int_equal(keys(), 2);
}

static void fenced(void *arg)
{
    ++*(int *)arg;
}

/* A fence that fails: suspects are not served stale either; one that cannot be asked: no copies are left. */
static void test_fences(void **state)
{
    (void)state;
    struct req r;
    int done = 0;
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_OK, "1", -1);
    world_turn(wd);
    release(&r);
    tier_fence(w, fenced, &done);
    assert_int_equal(done, 0);
    world_turn(wd);
    assert_int_equal(done, 1);
    HAS("a", "1");
    fake_up_lose(up_of(0));
    HAS("a", "1"); /* stale */
    tier_fence(w, fenced, &done);
    tier_fence(w, fenced, &done);
    world_turn(wd);
    assert_int_equal(done, 3);
    assert_int_equal(look("a"), ST_PENDING);
    fake_up_connect(up_of(0));
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_OK, "2", -1);
    world_turn(wd);
    release(&r);
    HAS("a", "2");
    up_of(0)->fence_refused = true;
    tier_fence(w, fenced, &done);
    world_turn(wd);
    assert_int_equal(done, 4);
    assert_int_equal(keys(), 0);
}

/* Own write, invalidation, loss of the link, flush: who waited gets what was fetched, it is not kept,
 * and who comes later asks anew. */
static void test_upstream_detached(void **state)
{
    (void)state;
    struct req r, s;
    for (int how = 0; how < 4; how++) {
        assert_int_equal(fault(&r, "a"), ST_PENDING);
        switch (how) {
        case 0: tier_forget_upstream(w, 0, SLICE_LIT("a")); break;
        case 1: up_of(1)->ev.invalidate(up_of(1)->ev.arg, SLICE_LIT("a")); break;
        case 2: up_of(1)->ev.invalidate_all(up_of(1)->ev.arg); break;
        default: { /* the link of the fetch is replaced; the answer came over the old one */
            struct list *l = list_pop_front(&up_of(0)->fetches);
            uint32_t old = up_of(0)->generation;
            fake_up_lose(up_of(0));
            fake_up_connect(up_of(0));
            struct fake_fetch *ff = LIST_ENTRY(l, struct fake_fetch, link);
            ff->f->done(ff->f, ST_OK, SLICE_LIT("old"), -1, old);
            free(ff);
        }
        }
        if (how < 3) {
            assert_int_equal(fault(&s, "a"), ST_PENDING);
            assert_int_equal(up_of(0)->nfetches, 2 * how + 2); /* not joined */
            fake_up_answer(up_of(0), ST_OK, "old", -1);
        }
        world_turn(wd);
        assert_int_equal(r.ready, 1);
        if (how == 2) { /* the key is another one since the flush: the request waits again */
            assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_PENDING);
        } else {
            assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
            assert_string_equal(value, "old");
            assert_false(found.kept);
        }
        if (how < 3) {
            assert_int_equal(s.ready, 0);
            assert_int_equal(look("a"), ST_PENDING);
            fake_up_answer(up_of(0), ST_OK, "new", -1);
            world_turn(wd);
            assert_int_equal(look_as(w, "a", TIER_VALUE, &s.waits[0]), ST_OK);
            assert_string_equal(value, "new");
            release(&s);
            HAS("a", "new");
        } else {
            assert_null(entry("a"));
        }
        release(&r);
        assert_int_equal(keys(), how < 3);
        tier_forget_upstream(w, 0, SLICE_LIT("a"));
        assert_int_equal(keys(), 0);
        assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
        sweep();
    }
}

static void fetch_copy(const char *name, const char *v)
{
    struct req r;
    assert_int_equal(fault(&r, name), ST_PENDING);
    fake_up_answer(up_of(0), ST_OK, v, -1);
    world_turn(wd);
    release(&r);
    HAS(name, v);
}

/* A copy whose link was lost. */
static void test_suspect(void **state)
{
    (void)state;
    struct req r;
    fetch_copy("a", "1");
    fake_up_lose(up_of(0));
    fake_up_connect(up_of(0));
    assert_int_equal(look("a"), ST_PENDING); /* asked for anew */
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_OK, "2", -1);
    world_turn(wd);
    release(&r);
    HAS("a", "2");
    assert_int_equal(keys(), 1);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 1);

    fake_up_lose(up_of(0));
    HAS("a", "2"); /* stale-if-error */
    assert_int_equal(fault(&r, "a"), ST_OK);
    release(&r);
    atomic_store(&wd->tier->limit.stale_if_error_ms, 0);
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(fault(&r, "a"), ST_OK);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_UNAVAILABLE);
    release(&r);
    assert_int_equal(keys(), 1);

    /* The link is back, and the question fails: the suspect helps out where that is allowed. */
    fake_up_connect(up_of(0));
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_TIMEOUT, NULL, -1);
    world_turn(wd);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_TIMEOUT);
    release(&r);
    atomic_store(&wd->tier->limit.stale_if_error_ms, 1000000);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_TIMEOUT, NULL, -1);
    world_turn(wd);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
    assert_string_equal(value, "2");
    /* While it is pinned it is a suspect still: another asks anew. */
    struct req s;
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(fault(&s, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_OK, "3", -1);
    world_turn(wd);
    release(&s);
    release(&r);
    HAS("a", "3");
    assert_int_equal(keys(), 1);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 1);

    /* Gone upstream: gone here. */
    fake_up_lose(up_of(0));
    fake_up_connect(up_of(0));
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_NOT_FOUND, NULL, -1);
    world_turn(wd);
    release(&r);
    assert_true(negative("a"));
    assert_int_equal(keys(), 0);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
}

static void test_suspect_and_wrongtype(void **state)
{
    (void)state;
    struct req r;
    fetch_copy("a", "1");
    fake_up_lose(up_of(0));
    fake_up_connect(up_of(0));
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    fake_up_answer(up_of(0), ST_WRONGTYPE, NULL, -1);
    world_turn(wd);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_WRONGTYPE);
    release(&r);
    assert_null(entry("a"));
    assert_int_equal(keys(), 0);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
}

/* A suspect that is asked for anew when a flush takes it, and the sweep its entry. */
static void test_suspect_and_flush(void **state)
{
    (void)state;
    struct req r;
    fetch_copy("a", "1");
    fake_up_lose(up_of(0));
    fake_up_connect(up_of(0));
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    up_of(1)->ev.invalidate_all(up_of(1)->ev.arg);
    sweep();
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
    fake_up_answer(up_of(0), ST_OK, "2", -1);
    world_turn(wd);
    release(&r);
    assert_int_equal(keys(), 0);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
}

/* Copies on disk: current ones are read there, suspects only help out. */
static void test_copies_on_disk(void **state)
{
    (void)state;
    struct req r;
    fetch_copy("a", "1");
    demote();
    assert_null(entry("a"));
    assert_true(on_disk("a"));
    assert_int_equal(keys(), 1);
    assert_int_equal(look_as(w, "a", TIER_PRESENCE, NULL), ST_PENDING);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_OK);
    HAS("a", "1");
    release(&r);
    assert_int_equal(up_of(0)->nfetches, 1);
    squeeze();
    assert_null(entry("a"));

    fake_up_lose(up_of(0));
    fake_up_connect(up_of(0));
    assert_int_equal(fault(&r, "a"), ST_PENDING); /* disk, then upstream, then the suspect */
    answer_reads(ST_OK);
    assert_int_equal(r.ready, 0);
    fake_up_answer(up_of(0), ST_TIMEOUT, NULL, -1);
    world_turn(wd);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
    assert_string_equal(value, "1");
    release(&r);
    squeeze();
    assert_int_equal(keys(), 1);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);

    const enum status answer[] = {ST_NOT_FOUND, ST_WRONGTYPE, ST_OK};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(fault(&r, "a"), ST_PENDING);
        answer_reads(ST_OK);
        fake_up_answer(up_of(0), answer[i], "2", -1);
        world_turn(wd);
        release(&r);
        assert_false(on_disk("a"));
        assert_int_equal(keys(), i == 2);
        if (i == 2)
            break;
        tier_forget_upstream(w, 0, SLICE_LIT("a"));
        assert_int_equal(keys(), 0);
        fetch_copy("a", "1");
        demote();
        fake_up_lose(up_of(0));
        fake_up_connect(up_of(0));
    }
    /* The disk cannot be read, and what the upstream says is not to be kept. */
    HAS("a", "2");
    demote();
    assert_true(on_disk("a"));
    atomic_store(&wd->tier->limit.negative_ttl_ms, 0);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer_reads(ST_IO);
    fake_up_answer(up_of(0), ST_NOT_FOUND, NULL, -1);
    world_turn(wd);
    release(&r);
    assert_false(on_disk("a"));
    assert_int_equal(keys(), 0);
    /* Invalidated while the disk is being read. */
    fetch_copy("a", "1");
    demote();
    assert_true(on_disk("a"));
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    world_turn(wd);
    tier_forget_upstream(w, 0, SLICE_LIT("a"));
    assert_int_equal(keys(), 0);
    answer_reads(ST_OK);
    fake_up_answer(up_of(0), ST_OK, "2", -1);
    world_turn(wd);
    assert_int_equal(look_as(w, "a", TIER_VALUE, &r.waits[0]), ST_OK);
    assert_string_equal(value, "2");
    release(&r);
    assert_int_equal(keys(), 0);
}

static void test_tracked_max(void **state)
{
    (void)state;
    char name[16];
    atomic_store(&wd->tier->limit.tracked_keys_max, 10);
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof(name), "k%d", i);
        struct req r;
        assert_int_equal(fault(&r, name), ST_PENDING);
        fake_up_answer(up_of(0), ST_OK, "1", -1);
        world_turn(wd);
        release(&r);
        assert_in_range(atomic_load(&wd->tier->tracked_keys), 0, 11);
        assert_int_equal(atomic_load(&wd->tier->tracked_keys), keys());
    }
}

/* ---- walking, writing out ---------------------------------------------------------------------- */

static int seen_mem, seen_disk;

static void count_mem(void *arg, const struct object *o)
{
    (void)arg;
    (void)o;
    seen_mem++;
}

static bool count_disk(void *arg, const struct disk_slot *slot)
{
    (void)arg;
    (void)slot;
    seen_disk++;
    return true;
}

static void walk(void)
{
    uint64_t cursor = 0;
    seen_mem = seen_disk = 0;
    do
        tier_scan_step(w, false, cursor, &cursor, count_mem, count_disk, NULL);
    while (cursor != 0);
}

static void test_scan(void **state)
{
    (void)state;
    struct req r[10];
    char name[16];
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "k%d", i);
        put(name, "1");
        if (i == 59)
            while (keys() > 0 && (demote(), wd->disk->nrec < 60)) /* sixty on disk */
                ;
    }
    walk();
    assert_int_equal(seen_mem, 40);
    assert_int_equal(seen_disk, 60);
    for (int i = 0; i < 10; i++) { /* being fetched: on disk; fetched: in both, seen once */
        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(fault(&r[i], name), ST_PENDING);
    }
    walk();
    assert_int_equal(seen_mem, 40);
    assert_int_equal(seen_disk, 60);
    answer_reads(ST_OK);
    walk();
    assert_int_equal(seen_mem, 50);
    assert_int_equal(seen_disk, 50);
    for (int i = 0; i < 10; i++)
        release(&r[i]);
    walk();
    assert_int_equal(seen_mem + seen_disk, 100);
}

static void test_write_out(void **state)
{
    (void)state;
    put_on_disk("old", "1");
    put("a", "1");
    put_expiring("b", "2", w->now_ms + 100000);
    put_expiring("c", "3", w->now_ms + 1);
    usleep(3000);
    assert_int_equal(tier_write_out(wd->tier, 1000), 0);
    assert_int_equal(wd->disk->nrec, 3); /* not what is there, nor what has expired */
    assert_true(on_disk("a"));
    assert_true(on_disk("b"));
    assert_false(on_disk("c"));
    HAS("a", "1");
    GONE("c");
    assert_int_equal(keys(), 3);
}

int main(void)
{
#define ROW(test, setup) cmocka_unit_test_setup_teardown(test, setup, finish)
    const struct CMUnitTest tests[] = {
        ROW(test_absent, memory_only),
        ROW(test_absent, with_disk),
        ROW(test_resident_expiry, memory_only),
        ROW(test_resident_evicted_without_disk, memory_only),
        ROW(test_noeviction, memory_only),
        ROW(test_volatile_changed_mind, memory_only),
        ROW(test_resident_demoted, with_disk),
        ROW(test_resident_clean, with_disk),
        ROW(test_large_values, with_disk),
        ROW(test_on_disk_read, with_disk),
        ROW(test_on_disk_replaced, with_disk),
        ROW(test_on_disk_presence, with_disk),
        ROW(test_on_disk_dropped, with_disk),
        ROW(test_on_disk_expired, with_disk),
        ROW(test_fetch_shared, with_workers),
        ROW(test_fetch_cancelled, with_disk),
        ROW(test_fetch_cancelled_late, with_workers),
        ROW(test_fetch_not_there, with_disk),
        ROW(test_fetch_failed, with_disk),
        ROW(test_fetch_overtaken, with_disk),
        ROW(test_fetch_from_dropped_block, with_disk),
        ROW(test_fetch_and_flush, with_disk),
        ROW(test_fetch_and_swap, with_disk),
        ROW(test_pinned_for_others, with_disk),
        ROW(test_pinned_twice, with_disk),
        ROW(test_pinned_changed, with_disk),
        ROW(test_demoting_read, with_disk),
        ROW(test_demoting_pinned, with_disk),
        ROW(test_demoting_failed, with_disk),
        ROW(test_demoting_written, with_disk),
        ROW(test_demoting_deleted, with_disk),
        ROW(test_demoting_changed, with_disk),
        ROW(test_demoting_and_flush, with_disk),
        ROW(test_queue_full, with_disk),
        ROW(test_disk_refuses, with_disk),
        ROW(test_candidate_replaced, with_disk),
        ROW(test_admission, with_workers),
        ROW(test_admission_alone, with_disk),
        ROW(test_upstream_read, with_upstream),
        ROW(test_negative, with_upstream),
        ROW(test_upstream_failed, with_upstream),
        ROW(test_upstream_detached, with_upstream),
        ROW(test_wanted, with_upstream),
        ROW(test_wanted, with_all),
        ROW(test_fences, with_upstream),
        ROW(test_suspect, with_upstream),
        ROW(test_suspect_and_wrongtype, with_upstream),
        ROW(test_suspect_and_flush, with_upstream),
        ROW(test_copies_on_disk, with_all),
        ROW(test_tracked_max, with_upstream),
        ROW(test_scan, with_disk),
        ROW(test_write_out, with_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
