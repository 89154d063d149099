/* appendonly, saving and admission, on the fake disk of tier_world.h. */
#include "tier_world.h"

#include "tier/tier_priv.h"
#include "tiercel/type_list.h"

static struct world *wd;
static struct worker *w;

/* ---- the key space --------------------------------------------------------------------------- */

static struct key key_of(const char *name)
{
    struct key k;
    mem_key_init(wd->mem, 0, slice_str(name), &k);
    return k;
}

static struct mem_shard *shard_of(const struct key *k)
{
    return mem_shard_of(wd->mem, k->hash);
}

static void put_object(const char *name, struct object *o, const struct key *k)
{
    (void)name;
    tier_may_write(w);
    mem_lock(shard_of(k));
    tier_put_locked(w, shard_of(k), k, o);
    mem_unlock(shard_of(k));
}

static void put(const char *name, const char *value)
{
    struct key k = key_of(name);
    put_object(name, object_new_string(&k, slice_str(value), 0, 0), &k);
}

static void put_list(const char *name, size_t bytes)
{
    struct key k = key_of(name);
    struct object *o = qlist_create(&k);
    char *elem = calloc(1, bytes);
    qlist_push(o, false, SLICE(elem, bytes), -2);
    free(elem);
    put_object(name, o, &k);
}

static struct object *entry(const char *name)
{
    struct key k = key_of(name);
    mem_slot *slot = mem_find_locked(wd->mem, shard_of(&k), &k);
    return slot ? mem_object(*slot) : NULL;
}

static void push_at(const char *name, bool head)
{
    struct key k = key_of(name);
    mem_lock(shard_of(&k));
    struct object *o = entry(name);
    qlist_push(o, head, SLICE_LIT("x"), -2);
    tier_changed_locked(w, shard_of(&k), &k, o, o, false);
    mem_unlock(shard_of(&k));
}

static void push(const char *name)
{
    push_at(name, false);
}

static bool del(const char *name)
{
    struct key k = key_of(name);
    mem_lock(shard_of(&k));
    bool existed = tier_delete_locked(w, shard_of(&k), &k, TIER_DELETED);
    mem_unlock(shard_of(&k));
    return existed;
}

static bool on_disk(const char *name)
{
    struct key k = key_of(name);
    uint32_t block;
    bool has_expire;
    return disk_find_locked(wd->disk, k.hash, &block, &has_expire);
}

static void commit(enum status st)
{
    fake_commit(wd->disk, SIZE_MAX, st);
}

static void squeeze(void)
{
    atomic_store(&wd->tier->limit.maxmemory, 1);
    tier_make_room(w);
    atomic_store(&wd->tier->limit.maxmemory, 0);
}

static void wait_for_save(void)
{
    struct tier_save_figures f;
    do {
        usleep(100);
        tier_get_save_figures(wd->tier, &f);
    } while (f.running);
}

static int with_journal(void **state)
{
    (void)state;
    wd = world_create(1, true, false);
    w = world_worker(wd, 0);
    atomic_store(&wd->tier->limit.journal, true);
    return 0;
}

static int with_disk(void **state)
{
    with_journal(state);
    atomic_store(&wd->tier->limit.journal, false);
    return 0;
}

static int finish(void **state)
{
    (void)state;
    tier_save_stop(wd->tier);
    commit(ST_OK);
    world_destroy(wd);
    return 0;
}

/* ---- the journal ------------------------------------------------------------------------------ */

static void test_each_write_is_appended(void **state)
{
    (void)state;
    put("a", "1");
    assert_int_equal(wd->disk->nrec, 1);
    assert_false(on_disk("a"));
    commit(ST_OK);
    assert_true(on_disk("a"));
    assert_non_null(entry("a")); /* nobody wants it to leave */
    put("a", "2");
    put("a", "3");
    assert_int_equal(wd->disk->nrec, 3);
    assert_int_equal(wd->disk->tombstones, 0); /* the new record ends the old one */
    commit(ST_OK);
    squeeze(); /* clean: no write of its own */
    assert_null(entry("a"));
    assert_int_equal(wd->disk->nrec, 3);
    put("a", "4"); /* over one that is only on disk: still one key */
    assert_int_equal(atomic_load(&wd->mem->db[0].keys), 1);
    assert_int_equal(wd->disk->tombstones, 0);
    assert_true(del("a"));
    assert_int_equal(wd->disk->tombstones, 1);
    assert_int_equal(atomic_load(&wd->mem->db[0].keys), 0);
    commit(ST_OK);
    assert_false(on_disk("a"));
}

/* What waits for its commit cannot leave memory. */
static void test_pending_stays(void **state)
{
    (void)state;
    put("a", "1");
    atomic_store(&wd->tier->limit.maxmemory, 1);
    assert_int_equal(tier_make_room(w), ST_PENDING);
    assert_true(wd->disk->hurries > 0);
    assert_non_null(entry("a"));
    commit(ST_OK);
    tier_make_room(w);
    assert_null(entry("a"));
    atomic_store(&wd->tier->limit.maxmemory, 0);
}

static void test_large_list_is_owed(void **state)
{
    (void)state;
    put_list("l", 100);
    push("l"); /* small: at once */
    assert_int_equal(wd->disk->nrec, 2);
    put_list("l", 2 * TIER_JOURNAL_NOW);
    size_t before = wd->disk->nrec;
    tier_flush_owed(w);
    assert_int_equal(wd->disk->nrec, before + 1);
    commit(ST_OK);
    assert_true(on_disk("l"));
    for (int i = 0; i < 10; i++)
        push("l");
    assert_int_equal(wd->disk->nrec, before + 1);
    assert_true(on_disk("l")); /* the older version, until the next one is there */
    squeeze();                 /* owed is dirty: it is written on its way out */
    assert_int_equal(wd->disk->nrec, before + 2);
    commit(ST_OK);
    assert_null(entry("l"));
    tier_flush_owed(w); /* paid already */
    assert_int_equal(wd->disk->nrec, before + 2);

    put_list("m", 2 * TIER_JOURNAL_NOW);
    del("m");
    before = wd->disk->nrec;
    tier_flush_owed(w);
    assert_int_equal(wd->disk->nrec, before);
}

static void test_refused_append(void **state)
{
    (void)state;
    put("a", "1");
    commit(ST_OK);
    wd->disk->append_st = ST_IO;
    put("a", "2");
    assert_false(on_disk("a")); /* the older value must not come back */
    assert_int_equal(wd->disk->tombstones, 1);
    assert_true(atomic_load(&wd->tier->journal_debt));
    wd->disk->append_st = ST_OK;
    tier_pay_debt(wd->tier); /* writes what is dirty, on a thread of its own */
    wait_for_save();
    assert_true(on_disk("a"));
    assert_false(atomic_load(&wd->tier->journal_debt));
}

static void test_failed_commit(void **state)
{
    (void)state;
    put("a", "1");
    commit(ST_IO);
    assert_false(on_disk("a"));
    assert_non_null(entry("a"));
    assert_true(atomic_load(&wd->tier->journal_debt));
    put("b", "1");
    commit(ST_OK); /* and with the first good one the debt is paid */
    wait_for_save();
    assert_true(on_disk("a"));
    assert_true(on_disk("b"));
}

static void test_back_pressure(void **state)
{
    (void)state;
    atomic_store(&wd->tier->limit.disk_queue_max, 10);
    put("a", "0123456789");
    assert_int_equal(tier_may_write(w), ST_PENDING);
    put("b", "1"); /* what was begun is not refused */
    assert_int_equal(wd->disk->nrec, 2);
    commit(ST_OK);
    assert_int_equal(tier_may_write(w), ST_OK);
    wd->disk->unhealthy = true;
    assert_int_equal(tier_may_write(w), ST_OK); /* memory serves on */
    atomic_store(&wd->tier->limit.journal_always, true);
    assert_int_equal(tier_may_write(w), ST_IO);
    wd->disk->quota_full = true;
    atomic_store(&wd->tier->limit.maxmemory, 1 << 30);
    assert_int_equal(tier_make_room(w), ST_FULL);
    atomic_store(&wd->tier->limit.maxmemory, 0);
}

/* ---- acknowledging ---------------------------------------------------------------------------- */

static int synced;
static bool synced_well;

static void on_sync(struct tier_sync_wait *sw, bool ok)
{
    (void)sw;
    synced++;
    synced_well = ok;
}

static bool wait_sync(struct tier_sync_wait *sw)
{
    *sw = (struct tier_sync_wait){.since = tier_sync_since(w), .done = on_sync};
    synced = 0;
    if (!tier_sync_needed(w, sw))
        return false;
    tier_wait_sync(w, sw);
    return true;
}

static void test_waits_for_commit(void **state)
{
    (void)state;
    struct tier_sync_wait sw;
    put("a", "1");
    assert_true(wait_sync(&sw));
    world_turn(wd);
    assert_int_equal(synced, 0);
    commit(ST_OK);
    world_turn(wd);
    assert_int_equal(synced, 1);
    assert_true(synced_well);
    assert_false(wait_sync(&sw)); /* nothing new */

    put("a", "2"); /* committed before anybody asks */
    commit(ST_OK);
    assert_false(wait_sync(&sw));

    put_list("l", 2 * TIER_JOURNAL_NOW); /* what is owed is paid before it is waited for */
    assert_true(wait_sync(&sw));
    commit(ST_OK);
    world_turn(wd);
    assert_int_equal(synced, 1);
    assert_true(on_disk("l"));

    put("a", "3");
    assert_true(wait_sync(&sw));
    tier_cancel_sync(w, &sw);
    commit(ST_OK);
    world_turn(wd);
    assert_int_equal(synced, 0);
}

static void test_failures_are_told(void **state)
{
    (void)state;
    struct tier_sync_wait sw;
    put("a", "1");
    assert_true(wait_sync(&sw));
    commit(ST_IO);
    world_turn(wd);
    assert_int_equal(synced, 1);
    assert_false(synced_well);

    put("a", "2"); /* failed before anybody asks, and a later commit went well */
    commit(ST_IO);
    struct key k = key_of("b");
    mem_lock(shard_of(&k));
    tier_put_locked(w, shard_of(&k), &k, object_new_string(&k, SLICE_LIT("1"), 0, 0));
    mem_unlock(shard_of(&k));
    commit(ST_OK);
    wait_for_save(); /* which the commit began: what it appends would fail below */
    assert_true(wait_sync(&sw));
    world_turn(wd);
    assert_int_equal(synced, 1);
    assert_false(synced_well);

    put("c", "1"); /* the next one is none of that */
    assert_true(wait_sync(&sw));
    commit(ST_OK);
    world_turn(wd);
    assert_true(synced_well);

    wd->disk->append_st = ST_IO; /* refused at once */
    put("d", "1");
    wd->disk->append_st = ST_OK;
    assert_true(wait_sync(&sw));
    world_turn(wd);
    assert_int_equal(synced, 1);
    assert_false(synced_well);
}

static void test_groups(void **state)
{
    (void)state;
    tier_group_begin(w);
    put("a", "1");
    put_list("l", 2 * TIER_JOURNAL_NOW);
    assert_int_equal(wd->disk->groups, 1);
    assert_int_equal(wd->disk->nrec, 1);
    tier_group_end(w);
    assert_int_equal(wd->disk->groups, 0);
    assert_int_equal(wd->disk->nrec, 2); /* what is owed belongs to the group */
    atomic_store(&wd->tier->limit.journal, false);
    tier_group_begin(w);
    assert_int_equal(wd->disk->groups, 0);
    tier_group_end(w);
}

/* What is written late stands behind later changes: no commit may end between, whoever wrote it. */
static void test_what_was_held_back_is_told(void **state)
{
    (void)state;
    struct tier *t = wd->tier;
    put("a", "1");
    assert_false(tier_committing(t, true)); /* nothing was */
    put_list("l", 2 * TIER_JOURNAL_NOW);    /* while a commit is put together nothing is owed */
    assert_int_equal(wd->disk->nrec, 2);
    assert_false(tier_committing(t, false));
    assert_false(tier_committing(t, true));
    tier_committing(t, false);

    put_list("l", 2 * TIER_JOURNAL_NOW); /* written by the commit itself */
    assert_true(tier_committing(t, true));
    assert_int_equal(wd->disk->nrec, 3);
    tier_committing(t, false);

    put_list("l", 2 * TIER_JOURNAL_NOW); /* by the worker, in one piece */
    put("a", "2");
    tier_flush_owed(w);
    assert_int_equal(wd->disk->nrec, 5);
    assert_false(wd->disk->rec[3].in_group);
    assert_true(wd->disk->rec[4].in_group);
    assert_int_equal(wd->disk->groups, 0);
    assert_true(tier_committing(t, true));
    tier_committing(t, false);

    put_list("l", 2 * TIER_JOURNAL_NOW); /* on its way out */
    squeeze();
    assert_true(tier_committing(t, true));
    tier_committing(t, false);

    put_list("m", 2 * TIER_JOURNAL_NOW); /* never: it is gone */
    del("m");
    assert_true(tier_committing(t, true));
    tier_committing(t, false);
}

/* ---- large values of many elements -------------------------------------------------------------- */

static bool in_memory(const char *name)
{
    struct key k = key_of(name);
    mem_lock(shard_of(&k));
    bool found = entry(name) != NULL;
    mem_unlock(shard_of(&k));
    return found;
}

static bool known_to_disk(const char *name)
{
    struct key k = key_of(name);
    mem_lock(shard_of(&k));
    bool found = on_disk(name);
    mem_unlock(shard_of(&k));
    return found;
}

static void wait_until_none_is_demoted(void)
{
    while (atomic_load(&wd->tier->demoting_bytes) > 0) {
        commit(ST_OK);
        usleep(100);
    }
}

static void test_large_list_leaves(void **state)
{
    (void)state;
    put_list("big", 400000);
    squeeze();
    while (disk_queue_bytes(wd->disk) == 0) /* serialised by a thread of its own */
        usleep(100);
    assert_true(in_memory("big"));
    wait_until_none_is_demoted();
    assert_false(in_memory("big"));
    assert_true(known_to_disk("big"));
}

/* The disk does not take it: it is not serialised again and again, but dropped, where that is allowed. */
static void test_large_list_is_refused(void **state)
{
    (void)state;
    put_list("big", 400000);
    wd->disk->append_st = ST_TOO_LARGE;
    squeeze();
    wait_until_none_is_demoted();
    assert_true(in_memory("big"));
    squeeze();
    assert_false(in_memory("big"));
    assert_false(known_to_disk("big"));
    wd->disk->append_st = ST_OK;
}

/* Changed, deleted, or made anew while it is to leave: what is there stays. */
static void test_large_list_stays(void **state)
{
    (void)state;
    for (int i = 0; i < 300; i++) {
        put_list("big", 270000 + i * 1000);
        squeeze();
        usleep((useconds_t)(i % 50) * 10);
        if (i % 3 == 0) {
            push("big");
        } else {
            del("big");
            put_list("big", i % 3 == 1 ? 300000 : 100);
        }
        if (i % 3 == 2)
            squeeze();
        commit(ST_OK);
        assert_true(in_memory("big") || (i % 3 == 2 && known_to_disk("big")));
    }
    wait_until_none_is_demoted();
}

/* ---- saving ----------------------------------------------------------------------------------- */

static _Atomic int saves;

static void on_save(void *arg, bool ok)
{
    (void)arg;
    assert_true(ok);
    atomic_fetch_add(&saves, 1);
}

static void test_save(void **state)
{
    (void)state;
    struct tier_save_figures f;
    atomic_store(&saves, 0);
    tier_get_save_figures(wd->tier, &f);
    int64_t changes = f.changes;
    put("a", "1");
    put("b", "2");
    put_list("l", 10000);
    tier_get_save_figures(wd->tier, &f);
    assert_int_equal(f.changes - changes, 3);
    assert_int_equal(f.saves, 0);
    assert_true(f.last_ok);
    assert_int_equal(tier_save_start(wd->tier, on_save, NULL), ST_OK);
    while (atomic_load(&saves) == 0)
        usleep(100);
    assert_true(on_disk("a") && on_disk("b") && on_disk("l"));
    assert_non_null(entry("a"));
    tier_get_save_figures(wd->tier, &f);
    assert_int_equal(f.saves, 1);
    assert_int_equal(f.changes, 0);
    assert_false(f.running);
    assert_true(f.last_save_s >= clock_wall_ms() / 1000 - 5);

    put("a", "3"); /* only what changed since is written again */
    size_t before = wd->disk->nrec;
    assert_int_equal(tier_save_start(wd->tier, on_save, NULL), ST_OK);
    while (atomic_load(&saves) == 1)
        usleep(100);
    assert_int_equal(wd->disk->nrec, before + 1);
    tier_save_stop(wd->tier);
    assert_int_equal(tier_save_start(wd->tier, NULL, NULL), ST_BUSY); /* the server stops */
}

/* Of many elements; then in parts. */
static void put_long_list(const char *name, int n)
{
    struct key k = key_of(name);
    struct object *o = qlist_create(&k);
    char elem[100];
    memset(elem, 'e', sizeof(elem));
    for (int i = 0; i < n; i++) {
        snprintf(elem, sizeof(elem), "%d", i);
        qlist_push(o, false, SLICE(elem, sizeof(elem)), -2);
    }
    put_object(name, o, &k);
}

/* What a save wrote is the value as it was then; and when it was changed meanwhile, it is what it is now. */
static void test_save_of_a_large_list(void **state)
{
    (void)state;
    struct key k = key_of("big");
    for (int i = 0; i < 60; i++) {
        bool change = i % 3 != 0, anew = i % 3 == 2;
        put_long_list("big", 4000);
        assert_int_equal(tier_save_start(wd->tier, NULL, NULL), ST_OK);
        usleep((useconds_t)(i / 3) * 100);
        if (anew) {
            del("big");
            put_long_list("big", 5000);
        } else if (change) {
            push_at("big", true); /* where it is saved first */
        }
        wait_for_save();
        if (change && !known_to_disk("big")) /* it was saved before */
            continue;
        const struct fake_rec *r = &wd->disk->rec[wd->disk->nrec - 1];
        struct object *o;
        assert_true(slice_eq(key_slice(&r->r.key), SLICE_LIT("big")));
        assert_int_equal(object_parse(OBJ_LIST, &k, r->r.payload, 0, 0, &o), ST_OK);
        assert_int_equal(object_len(o), anew ? 5000 : change ? 4001 : 4000);
        object_free(o);
    }
    assert_int_equal(atomic_load(&wd->tier->demoting_bytes), 0);
}

struct pusher {
    pthread_t thread;
    int n;
    useconds_t pause;
};

static void *pusher_main(void *arg)
{
    struct pusher *p = arg;
    for (int i = 0; i < p->n; i++) {
        usleep(p->pause);
        push_at("big", true);
    }
    return NULL;
}

static size_t newest_len(void)
{
    const struct fake_rec *r = &wd->disk->rec[wd->disk->nrec - 1];
    struct key k = key_of("big");
    struct object *o;
    assert_true(slice_eq(key_slice(&r->r.key), SLICE_LIT("big")));
    assert_int_equal(object_parse(OBJ_LIST, &k, r->r.payload, 0, 0, &o), ST_OK);
    size_t len = object_len(o);
    object_free(o);
    return len;
}

/* A commit has a large value as it is, though it is written in parts, and others may change it meanwhile. */
static void test_commit_of_a_large_list(void **state)
{
    (void)state;
    int64_t writes = (int64_t)stats_sum(STAT_tier_journal_writes);
    put_long_list("big", 4000);
    assert_true(atomic_load(&wd->tier->owed_large));
    tier_committing(wd->tier, true);
    assert_int_equal(newest_len(), 4000);
    assert_int_equal((int64_t)stats_sum(STAT_tier_journal_writes) - writes, 1); /* not once more at once */
    tier_committing(wd->tier, false);
    for (int i = 0; i < 30; i++) {
        struct pusher p = {.n = 1 + i % 3, .pause = (useconds_t)(i / 3) * 100};
        put_long_list("big", 4000);
        pthread_create(&p.thread, NULL, pusher_main, &p);
        tier_committing(wd->tier, true);
        struct key k = key_of("big");
        mem_lock(shard_of(&k)); /* while it is put together what changes is written at once */
        assert_int_equal(newest_len(), object_len(entry("big")));
        assert_false(entry("big")->flags & OBJ_F_OWED);
        mem_unlock(shard_of(&k));
        pthread_join(p.thread, NULL);
        assert_int_equal(newest_len(), 4000 + p.n);
        tier_committing(wd->tier, false);
    }
}

/* ---- admission -------------------------------------------------------------------------------- */

static void test_admission(void **state)
{
    (void)state;
    struct key k = key_of("soon");
    put_object("soon", object_new_string(&k, SLICE_LIT("1"), w->now_ms + 500, 0), &k);
    put("tiny", "1");
    put("right", "0123456789");
    put("huge", "01234567890123456789012345678901234567890123456789");
    atomic_store(&wd->tier->limit.disk_min_value, 2);
    atomic_store(&wd->tier->limit.disk_max_value, 40);
    int64_t expiring = (int64_t)stats_sum(STAT_tier_admission_expiring);
    int64_t size = (int64_t)stats_sum(STAT_tier_admission_size);
    squeeze();
    commit(ST_OK);
    assert_int_equal(wd->disk->nrec, 1);
    assert_true(on_disk("right"));
    assert_null(entry("soon"));
    assert_null(entry("tiny"));
    assert_null(entry("huge"));
    assert_int_equal((int64_t)stats_sum(STAT_tier_admission_expiring) - expiring, 1);
    assert_int_equal((int64_t)stats_sum(STAT_tier_admission_size) - size, 2);
    assert_int_equal(atomic_load(&wd->mem->db[0].keys), 1);

    put("tiny", "1"); /* what may not be dropped stays in memory */
    atomic_store(&wd->tier->limit.policy, POLICY_NOEVICTION);
    squeeze();
    assert_non_null(entry("tiny"));
    assert_int_equal(wd->disk->nrec, 1);
}

static void test_expired_on_disk_is_told(void **state)
{
    (void)state;
    struct key k = key_of("a");
    put("a", "1");
    squeeze();
    commit(ST_OK);
    assert_true(on_disk("a"));
    struct disk_gone gone = {.hash = k.hash,
                             .block = 1,
                             .incarnation = atomic_load(&wd->mem->db[0].incarnation),
                             .expired = true,
                             .name = SLICE_LIT("a")};
    wd->disk->owner.dropped(wd->disk->owner.arg, &gone, 1);
    assert_int_equal(wd->changes[TIER_EXPIRED], 1);
    assert_string_equal(wd->changed_key, "a");
    assert_int_equal(atomic_load(&wd->mem->db[0].keys), 0);
}

static void test_keeps_what_is_in_memory(void **state)
{
    (void)state;
    put("a", "1");
    commit(ST_OK);
    struct key k = key_of("a");
    struct disk_gone gone = {.hash = k.hash, .block = 1, .incarnation = atomic_load(&wd->mem->db[0].incarnation)};
    assert_true(wd->disk->owner.keep_locked(wd->disk->owner.arg, &gone));
    squeeze();
    assert_null(entry("a"));
    assert_false(wd->disk->owner.keep_locked(wd->disk->owner.arg, &gone));
}

int main(void)
{
#define ROW(test, setup) cmocka_unit_test_setup_teardown(test, setup, finish)
    const struct CMUnitTest tests[] = {
        ROW(test_each_write_is_appended, with_journal),
        ROW(test_pending_stays, with_journal),
        ROW(test_large_list_is_owed, with_journal),
        ROW(test_refused_append, with_journal),
        ROW(test_failed_commit, with_journal),
        ROW(test_back_pressure, with_journal),
        ROW(test_waits_for_commit, with_journal),
        ROW(test_failures_are_told, with_journal),
        ROW(test_groups, with_journal),
        ROW(test_large_list_leaves, with_disk),
        ROW(test_large_list_is_refused, with_disk),
        ROW(test_large_list_stays, with_disk),
        ROW(test_what_was_held_back_is_told, with_journal),
        ROW(test_save, with_disk),
        ROW(test_commit_of_a_large_list, with_journal),
        ROW(test_save_of_a_large_list, with_disk),
        ROW(test_admission, with_disk),
        ROW(test_expired_on_disk_is_told, with_disk),
        ROW(test_keeps_what_is_in_memory, with_journal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
