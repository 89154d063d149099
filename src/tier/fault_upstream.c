/* What a fetch brings from the upstream, and dropping copies when keys change there. Waiting and sharing is fault.c's. */
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/rdb.h"
#include "tier_priv.h"

#define SETTLE_MS 20 /* until those who waited for a fetch have run */

/* A copy expires when it must be dead at the earliest: as if PTTL was answered when it was sent. Where the way there took
 * longer than the rest of its life that is over by now, but the value was alive when it was read: it is an answer to those
 * who wait, to be forgotten when it must be dead at the latest. */
static int64_t fetched_expire_ms(const struct upstream_fetch *uf, int64_t pttl_ms, uint32_t *generation)
{
    int64_t now_ms = clock_wall_ms(), expire_ms = uf->sent_ms + pttl_ms;

    if (pttl_ms < 0)
        return 0;
    if (expire_ms > now_ms + SETTLE_MS)
        return expire_ms;
    *generation = 0;
    return now_ms + (pttl_ms > 0 ? pttl_ms : 1);
}

static void count_copy(struct worker *w, const struct fetch *f, struct residency *r, const struct object *o)
{
    uint32_t block;
    bool expires = false;
    /* A suspect, or a disk copy, was counted as a key already. */
    bool was = r->value != NULL || (w->tier->disk && disk_find_locked(w->tier->disk, f->key.hash, &block, &expires));

    if (r->value)
        expires = object_expire(r->value) != 0;
    mem_db_count(w->tier->mem, f->key.db, (o->type != OBJ_NONE) - was,
                 (o->type != OBJ_NONE && object_expire(o) != 0) - (int)(was && expires));
}

static void discard_suspect(struct worker *w, struct residency *r)
{
    if (r->value) {
        if (r->attached)
            tier_object_gone(w->tier, r->value);
        object_free(r->value);
        r->value = NULL;
    }
}

/* What was held of the key, a suspect or on disk, is not to be kept. */
static void forget_copies_locked(struct worker *w, const struct fetch *f, struct residency *r)
{
    bool had = r->value != NULL, expires = had && object_expire(r->value) != 0, disk_expires;

    if (r->attached) {
        if (tier_forget_disk_locked(w->tier, f->key.hash, &disk_expires) && !had) {
            had = true;
            expires = disk_expires;
        }
        if (had)
            tier_count_fetched(w, &f->key, -1, expires);
    }
    discard_suspect(w, r);
}

/* Its answer: a value, or an OBJ_NONE. */
static void finish_upstream_locked(struct worker *w, struct mem_shard *shard, struct fetch *f, struct object *o,
                                   uint32_t generation, bool worth_keeping)
{
    struct tier *t = w->tier;
    struct residency *r = f->res;
    bool keep = r->attached && generation != 0 && tier_origin_current(t, tier_origin(w->id, generation)) &&
                mem_key_current(t->mem, &f->key) && worth_keeping;

    if (keep) {
        bool had_expire;
        count_copy(w, f, r, o);
        discard_suspect(w, r);
        tier_forget_disk_locked(t, f->key.hash, &had_expire);
    } else {
        forget_copies_locked(w, f, r);
        if (r->attached)
            residency_detach_locked(t, shard, r);
    }
    tier_install_locked(w, shard, r, o);
}

/* No answer: the suspect copy, where rules allow it, or the error. */
static void fail_upstream_locked(struct worker *w, struct mem_shard *shard, struct fetch *f, enum status st,
                                 const char *error)
{
    struct tier *t = w->tier;
    struct residency *r = f->res;

    stats_inc(w->stats, STAT_tier_upstream_errors);
    if (r->attached && r->value && st != ST_WRONGTYPE) {
        r->fetching = r->refresh = false;
        bool stale = tier_stale_allowed(w, r->value);
        if (stale) {
            stats_inc(w->stats, STAT_tier_stale_hits);
            tier_wake_waiters_locked(w, r, ST_OK, NULL);
        } else {
            struct object *suspect = r->value;
            r->value = NULL;
            tier_wake_waiters_locked(w, r, st, error);
            r->value = suspect;
        }
        if (r->pins == 0)
            residency_unwrap_locked(t, shard, r);
        return;
    }
    if (st == ST_WRONGTYPE)
        forget_copies_locked(w, f, r);
    else
        discard_suspect(w, r); /* detached: it was taken off the books when that happened */
    tier_fetch_failed_locked(w, shard, r, st, error);
}

static struct object *new_string(struct worker *w, const struct key *key, struct slice value,
                                 const struct rule_values *rule, int64_t expire_ms, uint64_t origin)
{
    struct rcbuf *packed = tier_pack_as(w, value, (enum rule_compress)rule->value[RULE_COMPRESS]);

    return packed ? object_new_rcbuf(key, packed, expire_ms, origin) : object_new_string(key, value, expire_ms, origin);
}

/* From DUMP's payload. NULL: of a version or type that is not known, or damaged. */
static struct object *new_from_dump(struct worker *w, const struct key *key, struct slice payload,
                                    const struct rule_values *rule, int64_t expire_ms, uint64_t origin)
{
    char scratch[OBJ_SCRATCH];
    struct slice value;

    if (!rdb_undump(payload, &value) || value.len == 0)
        return NULL;
    /* Fields that expire would go here by our clock, and unnoticed by those who are told of changes. */
    if (value.ptr[0] == RDB_HASH_METADATA || value.ptr[0] == RDB_HASH_LISTPACK_EX)
        return NULL;
    struct object *o = rdb_parse(value, NULL, key, expire_ms, origin);
    if (!o || o->type != OBJ_STRING || object_string(o, w->codec, scratch, &value) != ST_OK)
        return o;
    struct object *packed = new_string(w, key, value, rule, expire_ms, origin); /* as a GET would have made it */
    object_free(o);
    return packed;
}

static void refresh_ended(struct worker *w, const struct fetch *f, enum status st)
{
    w->tier_worker->refreshes--;
    if (st != ST_OK && st != ST_NOT_FOUND)
        tier_refresh_failed(w, f->key.hash);
}

static void upstream_fetch_done(struct upstream_fetch *uf, enum status st, struct slice value, int64_t pttl_ms,
                                uint32_t generation)
{
    struct fetch *f = LIST_ENTRY(uf, struct fetch, uf);
    struct worker *w = f->w;
    struct mem_shard *shard = tier_shard_of(w->tier, f->key.hash);
    struct object *o = NULL;
    struct rule_values rule;
    bool worth_keeping = true;
    char error[160] = "";

    tier_fetch_answered(f, STAT_tier_upstream_fetches_waiting, HIST_upstream,
                        st != ST_UNAVAILABLE && st != ST_CANCELLED);
    tier_rules(w, key_slice(&f->key), &rule);
    if (st == ST_OK) {
        int64_t expire_ms = fetched_expire_ms(uf, pttl_ms, &generation);
        uint64_t origin = tier_fresh_origin(w, &f->key, &rule, generation, uf->sent_ms);
        worth_keeping = (int64_t)value.len <= rule.value[RULE_MAX_OBJECT];
        if (f->uf.as == UPSTREAM_STRING)
            o = new_string(w, &f->key, value, &rule, expire_ms, origin);
        else if (worth_keeping)
            o = new_from_dump(w, &f->key, value, &rule, expire_ms, origin);
        if (worth_keeping && !o)
            tier_want_unreadable(w, f->key.hash);
        stats_inc(w->stats, STAT_tier_upstream_hits);
    } else if (st == ST_NOT_FOUND) {
        int64_t ttl_ms = rule.value[RULE_NEGATIVE_TTL];
        o = object_new_none(&f->key, w->now_ms + ttl_ms, tier_origin(w->id, generation));
        worth_keeping = ttl_ms > 0;
        stats_inc(w->stats, STAT_tier_upstream_misses);
    } else {
        snprintf(error, sizeof(error), "%.*s", (int)(value.len < 150 ? value.len : 150), value.len ? value.ptr : "");
    }
    if (f->whole && o)
        tier_want_fetched(w, f->key.hash, value.len);
    if (f->whole && st == ST_BAD) /* it does not hand out the value: NOPERM, a proxy without DUMP */
        tier_want_unreadable(w, f->key.hash);
    if ((f->whole && st == ST_BAD) || (st == ST_OK && !o)) /* who joined passes the command through */
        st = ST_WRONGTYPE;
    if (f->refresh)
        refresh_ended(w, f, st);
    mem_lock(shard);
    if (o)
        finish_upstream_locked(w, shard, f, o, generation, worth_keeping);
    else
        fail_upstream_locked(w, shard, f, st, error);
    residency_unref(f->res);
    mem_unlock(shard);
    tier_fetch_free(f);
    tier_installed(w);
}

/* The upstream has as many keys to remember for us as tracked-keys-max says, and forgets none before it changes. Whether
 * this one is among them nobody knows for certain, and of many keys that are not, many would be taken for one that is. */
static bool table_is_full(const struct tier *t)
{
    return tier_tracking(t) >= atomic_load_explicit(&t->limit.tracked_keys_max, memory_order_relaxed);
}

/* The first read of a key that is written around, or for which the upstream's table has no room: it is answered, not
 * kept, and the upstream does not track it. */
static bool fetch_is_first_touch(const struct fetch *f)
{
    struct rule_values rule;
    bool around = false;

    if (f->refresh || f->whole)
        return false;
    if (f->w->conf->rules != NULL) {
        tier_rules(f->w, key_slice(&f->key), &rule);
        around = rule.value[RULE_WRITE] == WRITE_AROUND;
    }
    return (around || table_is_full(f->w->tier)) && !tier_touch_twice(f->w, &f->key);
}

void tier_fetch_upstream(struct fetch *f)
{
    struct worker *w = f->w; /* the fetch may be over before this returns */
    struct upstream *up = w->tier_worker->up;

    atomic_store_explicit(&f->res->upstream_us, clock_mono_us(), memory_order_relaxed);
    f->uf.key = key_slice(&f->key);
    f->uf.db = f->key.db;
    if (f->whole)
        f->uf.as = UPSTREAM_DUMP;
    f->uf.done = upstream_fetch_done;
    stats_inc(f->w->stats, STAT_tier_upstream_requests);
    tier_fetch_asks(f, STAT_tier_upstream_fetches_waiting);
    if (!up) /* the server stops */
        upstream_fetch_done(&f->uf, ST_CANCELLED, SLICE_NONE, -1, 0);
    else if (fetch_is_first_touch(f))
        tier_fetch_untracked(up, &f->uf);
    else
        upstream_fetch(up, &f->uf);
    tier_tracking_update(w);
}

void tier_forget_upstream(struct worker *w, unsigned db, struct slice name)
{
    struct tier *t = w->tier;
    struct key key;
    bool current;

    do { /* again, when the database was flushed or swapped before the lock was had */
        mem_key_init(t->mem, db, name, &key);
        struct mem_shard *shard = tier_shard_of(t, key.hash);
        mem_lock(shard);
        current = mem_key_current(t->mem, &key);
        if (current)
            tier_delete_locked(w, shard, &key, TIER_DELETED);
        mem_unlock(shard);
    } while (!current);
    if (UNLIKELY(atomic_load_explicit(&t->events, memory_order_relaxed) & TIER_EVENT_ALL))
        t->foreign(t->change_arg, w, &name);
}

void tier_forget_all_upstream(struct worker *w)
{
    mem_lock_all(w->tier->mem);
    for (unsigned db = 0; db < w->tier->mem->databases; db++)
        tier_flush_db_locked(w, db);
    tier_foreign_all_locked(w);
    mem_unlock_all(w->tier->mem);
}

void tier_foreign_all_locked(struct worker *w)
{
    struct tier *t = w->tier;

    if (atomic_load_explicit(&t->events, memory_order_relaxed) & TIER_EVENT_ALL)
        t->foreign(t->change_arg, w, NULL);
}
