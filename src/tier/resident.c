/* The table of states in tier.h, seen from commands: resolving a key, and changing it. */
#include "tiercel/codec.h"
#include "tier_priv.h"

/* ---- residencies ---- */

struct residency *residency_of(const struct object *node)
{
    return object_ptr(node);
}

void residency_unref(struct residency *r)
{
    CHECK(r->refs > 0);
    if (--r->refs > 0)
        return;
    CHECK(!r->attached && list_empty(&r->waiters));
    object_free(r->value);
    mem_free(MEM_DATA, r);
}

/* Puts a residency in the table: in `slot`, whose object becomes its value, or in a new one. */
struct residency *residency_attach_locked(struct tier *t, struct mem_shard *shard, const struct key *key,
                                          mem_slot *slot, struct object *value)
{
    struct residency *r = mem_calloc(MEM_DATA, sizeof(*r));

    r->refs = 1;
    r->attached = true;
    r->hash = key->hash;
    r->value = value;
    r->node = object_new_ptr(key, OBJ_RESIDENCY, ENC_PTR, r, 0, 0);
    list_init(&r->waiters);
    if (slot)
        mem_replace_locked(slot, r->node);
    else
        mem_insert_locked(t->mem, shard, key->hash, r->node);
    return r;
}

static mem_slot *residency_slot_locked(struct tier *t, struct mem_shard *shard, const struct residency *r)
{
    mem_slot *slot = mem_find_object_locked(t->mem, shard, r->hash, r->node);
    CHECK(slot);
    return slot;
}

static void residency_left_table(struct residency *r)
{
    object_free(r->node);
    r->node = NULL;
    r->attached = false;
    residency_unref(r);
}

/* Takes it out of the table for good; whoever still waits for it or pins it keeps it. */
void residency_detach_locked(struct tier *t, struct mem_shard *shard, struct residency *r)
{
    mem_remove_locked(t->mem, shard, r->hash, residency_slot_locked(t, shard, r));
    residency_left_table(r);
}

/* Puts its value in the table in its stead. */
void residency_unwrap_locked(struct tier *t, struct mem_shard *shard, struct residency *r)
{
    struct object *value = r->value;

    CHECK(value && !r->pins && !r->fetching);
    r->value = NULL;
    mem_replace_locked(residency_slot_locked(t, shard, r), value);
    residency_left_table(r);
}

/* ---- what an object is worth ---- */

bool tier_origin_current(const struct tier *t, uint64_t origin)
{
    uint32_t worker = tier_origin_worker(origin);

    if (worker >= (uint32_t)t->nworkers)
        return false;
    uint32_t generation = atomic_load_explicit(&t->generation[worker], memory_order_acquire);
    return generation != 0 && (tier_origin((int)worker, generation) ^ origin) >> ORIGIN_STAMP_BITS == 0;
}

enum liveness tier_liveness(struct worker *w, const struct object *o)
{
    struct tier *t = w->tier;

    if (object_expired(o, w->now_ms))
        return GONE;
    if (o->flags & OBJ_F_ORIGIN) {
        uint64_t origin = object_origin(o);
        if (!tier_origin_current(t, origin))
            return o->type == OBJ_NONE ? GONE : SUSPECT;
        if (UNLIKELY(tier_origin_stamped(origin)) && tier_stamp_reached(origin, w->now_ms))
            return tier_age(w, o);
    }
    return o->type == OBJ_NONE ? NEGATIVE_LIVE : LIVE;
}

bool tier_vouched_locked(struct worker *w, const struct key *key, const struct object *obj)
{
    struct tier *t = w->tier;

    if (tier_key_is_local(t, key))
        return true;
    if (obj)
        return obj->flags & OBJ_F_ORIGIN && tier_origin_current(t, object_origin(obj));
    mem_slot *slot = mem_find_locked(t->mem, tier_shard_of(t, key->hash), key);
    const struct object *o = slot ? mem_object(*slot) : NULL;
    if (o && o->type == OBJ_RESIDENCY)
        o = residency_of(o)->fetching ? NULL : residency_of(o)->value;
    return o && tier_liveness(w, o) == NEGATIVE_LIVE;
}

/* No generation now on the worker's own link: asking the upstream cannot work. */
static bool upstream_away(const struct worker *w)
{
    return atomic_load_explicit(&w->tier->generation[w->id], memory_order_relaxed) == 0;
}

/* ---- resolving ---- */

static enum status found(struct worker *w, struct object *o, bool kept, struct tier_found *out)
{
    out->obj = o;
    out->kept = kept;
    stats_inc(w->stats, STAT_tier_memory_hits);
    return ST_OK;
}

/* The entry is not simply alive. */
static enum status resolve_slow_locked(struct worker *w, struct mem_shard *shard, const struct key *key,
                                       struct object *o, struct tier_found *out)
{
    o->flags &= (uint8_t)~OBJ_F_LEAVING;
    if (o->flags & OBJ_F_ORIGIN)
        o->flags |= OBJ_F_REUSED;
    switch (tier_liveness(w, o)) {
    case STALE: stats_inc(w->stats, STAT_tier_stale_served); /* fall through */
    case AGING: tier_refresh_locked(w, shard, key);          /* fall through */
    case LIVE: return found(w, o, true, out);
    case NEGATIVE_LIVE: stats_inc(w->stats, STAT_tier_negative_hits); return ST_OK;
    case OLD:
    case SUSPECT:
        if (!upstream_away(w) || !tier_stale_allowed(w, o))
            return ST_PENDING;
        stats_inc(w->stats, STAT_tier_stale_hits);
        return found(w, o, true, out);
    case GONE: tier_delete_locked(w, shard, key, TIER_EXPIRED); break;
    }
    return tier_key_is_upstream(w->tier, key) ? ST_PENDING : ST_OK;
}

/* No usable entry in memory. */
static enum status resolve_absent_locked(struct worker *w, const struct key *key, enum tier_need need,
                                         struct tier_found *out)
{
    struct tier *t = w->tier;
    uint32_t block;
    bool has_expire;

    if (t->disk) {
        if (disk_find_locked(t->disk, key->hash, &block, &has_expire)) {
            if (need == TIER_VALUE || (need == TIER_PRESENCE && has_expire) || tier_key_is_upstream(t, key)) {
                out->block = block;
                return ST_PENDING;
            }
            out->on_disk = true;
            return ST_OK;
        }
        stats_inc(w->stats, STAT_tier_disk_filter_negatives);
    }
    return tier_key_is_upstream(t, key) ? ST_PENDING : ST_OK;
}

/* What the fault brought decides, where the table cannot: an answer of the upstream that was
 * not kept is still the answer to the request that waited for it. */
static bool resolve_from_wait(struct worker *w, const struct tier_wait *wait, struct tier_found *out, enum status *st)
{
    if (wait->st != ST_OK && wait->st != ST_NOT_FOUND) {
        *st = wait->st;
        return true;
    }
    if (!tier_key_is_upstream(w->tier, &wait->key))
        return false;
    *st = ST_OK;
    if (wait->st == ST_NOT_FOUND)
        return true;
    if (!wait->res || !wait->res->value)
        return false;
    if (!object_expired(wait->res->value, w->now_ms) && wait->res->value->type != OBJ_NONE) {
        out->obj = wait->res->value;
        out->kept = wait->res->attached;
    }
    return true;
}

enum status tier_resolve_locked(struct worker *w, struct mem_shard *shard, const struct key *key, enum tier_need need,
                                const struct tier_wait *wait, struct tier_found *out)
{
    struct tier *t = w->tier;
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    enum status st;

    *out = (struct tier_found){.kept = true};
    /* Its hash is another one when the database was flushed or swapped meanwhile: then what was
     * waited for belongs to another shard's lock, and is not an answer any more. */
    if (UNLIKELY(wait != NULL) && wait->key.hash == key->hash) {
        if (resolve_from_wait(w, wait, out, &st))
            return st;
        if (wait->res)
            stats_inc(w->stats, STAT_tier_memory_refound);
    }
    if (LIKELY(slot != NULL)) {
        struct object *o = mem_object(*slot);
        if (UNLIKELY(o->type == OBJ_RESIDENCY)) {
            struct residency *r = residency_of(o);
            if (r->fetching && !r->refresh)
                return need == TIER_NOTHING && !tier_key_is_upstream(t, key) ? resolve_absent_locked(w, key, need, out)
                                                                             : ST_PENDING;
            o = r->value;
        }
        if (LIKELY(o->type != OBJ_NONE && !(o->flags & (OBJ_F_EXPIRE | OBJ_F_ORIGIN | OBJ_F_LEAVING))))
            return found(w, o, true, out);
        return resolve_slow_locked(w, shard, key, o, out);
    }
    stats_inc(w->stats, STAT_tier_memory_misses);
    return resolve_absent_locked(w, key, need, out);
}

/* ---- compression ---- */

struct rcbuf *tier_pack(struct worker *w, struct slice value)
{
    return tier_pack_as(w, value, COMPRESS_DEFAULT);
}

struct rcbuf *tier_pack_as(struct worker *w, struct slice value, enum rule_compress how)
{
    const struct conf *conf = w->conf;
    bool enabled = how == COMPRESS_DEFAULT ? conf->compression == COMPRESSION_ZSTD : how == COMPRESS_YES;
    struct codec_options opt = {enabled, (size_t)conf->compression_threshold, (int)conf->compression_level};

    if (LIKELY(!opt.enabled || value.len < opt.threshold))
        return NULL;
    struct rcbuf *packed = codec_pack(w->codec, &opt, value);
    if (packed) {
        stats_inc(w->stats, STAT_compression_values);
        stats_add(w->stats, STAT_compression_bytes_in, value.len);
        stats_add(w->stats, STAT_compression_bytes_out, packed->len);
    }
    return packed;
}

/* ---- changing ---- */

static inline unsigned events(const struct tier *t)
{
    return atomic_load_explicit(&t->events, memory_order_relaxed);
}

void tier_notify_locked(struct tier *t, struct worker *w, struct mem_shard *shard, const struct key *key,
                        enum tier_change why)
{
    static const unsigned also[] = {[TIER_EXPIRED] = TIER_EVENT_GONE,
                                    [TIER_EVICTED] = TIER_EVENT_GONE,
                                    [TIER_FIELDS] = TIER_EVENT_FIELDS,
                                    [TIER_EMPTIED] = TIER_EVENT_FIELDS};
    unsigned which = TIER_EVENT_ALL | also[why];

    if (UNLIKELY(t->shard[shard->index].watched > 0 || events(t) & which))
        t->change(t->change_arg, w, key, why);
}

void tier_set_events(struct tier *t, enum tier_events which, bool on)
{
    bool names;

    if (on)
        atomic_fetch_or(&t->events, (unsigned)which);
    else
        atomic_fetch_and(&t->events, ~(unsigned)which);
    if (!t->disk)
        return;
    do { /* somebody else may be at it */
        names = atomic_load(&t->events) & (TIER_EVENT_GONE | TIER_EVENT_ALL);
        disk_set_names(t->disk, names);
    } while (names != !!(atomic_load(&t->events) & (TIER_EVENT_GONE | TIER_EVENT_ALL)));
}

/* An object leaves memory (it is about to be freed). */
void tier_object_gone(struct tier *t, const struct object *o)
{
    if (o->flags & OBJ_F_ORIGIN && o->type != OBJ_NONE)
        atomic_fetch_sub_explicit(&t->tracked_keys, 1, memory_order_relaxed);
}

bool tier_forget_disk_locked(struct tier *t, uint64_t hash, bool *had_expire)
{
    *had_expire = false;
    return t->disk && disk_forget_locked(t->disk, hash, had_expire);
}

/* Takes the key's entry out of the table, frees it, forgets its disk copy (`replaced`: only
 * looks for one, a new record will take its place). What it was is left in *existed and
 * *expires; the slot is gone. */
static void clear_locked(struct worker *w, struct mem_shard *shard, const struct key *key, bool replaced, bool *existed,
                         bool *expires)
{
    struct tier *t = w->tier;
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    struct object *value = slot ? mem_object(*slot) : NULL;
    bool disk_expires = false;
    uint32_t block;

    *existed = *expires = false;
    if (value && value->type == OBJ_RESIDENCY) {
        struct residency *r = residency_of(value);
        r->refs++;
        if (r->value) { /* while it fetches: a suspect that is being asked for anew */
            *existed = r->fetching || r->value->type != OBJ_NONE;
            *expires = object_expire(r->value) != 0;
            tier_object_gone(t, r->value);
        }
        residency_detach_locked(t, shard, r);
        if (r->fetching && !tier_key_is_upstream(t, key))
            tier_wake_waiters_locked(w, r, ST_OK, NULL);
        residency_unref(r);
    } else if (value) {
        *existed = value->type != OBJ_NONE;
        *expires = object_expire(value) != 0;
        mem_remove_locked(t->mem, shard, key->hash, slot);
        tier_object_gone(t, value);
        object_free(value);
    }
    bool on_disk = replaced ? t->disk && disk_find_locked(t->disk, key->hash, &block, &disk_expires)
                            : tier_forget_disk_locked(t, key->hash, &disk_expires);
    if (on_disk && !*existed) {
        *existed = true;
        *expires = disk_expires;
    }
}

static bool counted(const struct object *o)
{
    return o->type != OBJ_NONE;
}

void tier_put_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *o)
{
    struct tier *t = w->tier;
    bool existed, expires, journal = tier_journals(t, o);
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    struct object *old = slot ? mem_object(*slot) : NULL;

    tier_access_init(t, o, w->now_ms);
    if (old && old->type != OBJ_RESIDENCY) { /* the common overwrite: no change of the table */
        existed = counted(old);
        expires = object_expire(old) != 0;
        if (existed) { /* an overwrite is an access, not a new key */
            o->access = old->access;
            tier_touch_locked(w, o);
        }
        if (journal && !(old->flags & OBJ_F_ORIGIN))
            o->flags |= old->flags & OBJ_F_OWED; /* it is noted already */
        mem_replace_locked(slot, o);
        bool disk_expires;
        if (!journal)
            tier_forget_disk_locked(t, key->hash, &disk_expires);
        tier_object_gone(t, old);
        object_free(old);
    } else {
        clear_locked(w, shard, key, journal, &existed, &expires);
        mem_insert_locked(t->mem, shard, key->hash, o);
    }
    if (o->flags & OBJ_F_ORIGIN && counted(o))
        atomic_fetch_add_explicit(&t->tracked_keys, 1, memory_order_relaxed);
    mem_db_count(t->mem, key->db, (int)counted(o) - existed,
                 (counted(o) && object_expire(o) != 0) - (existed && expires));
    stats_inc(w->stats, STAT_tier_changes);
    if (UNLIKELY(journal))
        tier_journal_locked(w, key, o);
    tier_notify_locked(t, w, shard, key, TIER_WRITTEN);
}

bool tier_delete_locked(struct worker *w, struct mem_shard *shard, const struct key *key, enum tier_change why)
{
    bool existed, expires;
    struct key told = *key;
    char *name = NULL;

    if (UNLIKELY(w->tier->shard[shard->index].watched > 0 || events(w->tier) != 0)) {
        name = mem_alloc(MEM_OTHER, key->len ? key->len : 1); /* the key may be that of the object that goes */
        memcpy(name, key->ptr, key->len);
        told.ptr = name;
    }
    clear_locked(w, shard, key, false, &existed, &expires);
    if (existed) {
        mem_db_count(w->tier->mem, told.db, -1, -(int)expires);
        stats_inc(w->stats, STAT_tier_changes);
        if (why == TIER_EXPIRED)
            stats_inc(w->stats, STAT_expired_keys);
        tier_notify_locked(w->tier, w, shard, &told, why);
    }
    mem_free(MEM_OTHER, name);
    return existed;
}

/* Also when it is the same, and its expiry has come or gone. */
static void replace_object_locked(struct tier *t, struct mem_shard *shard, const struct key *key, struct object *old,
                                  struct object *o)
{
    mem_slot *slot = mem_find_object_locked(t->mem, shard, key->hash, old);

    if (slot) {
        mem_replace_locked(slot, o);
        return;
    }
    slot = mem_find_locked(t->mem, shard, key); /* pinned */
    CHECK(slot && mem_object(*slot)->type == OBJ_RESIDENCY);
    struct residency *r = residency_of(mem_object(*slot));
    CHECK(r->value == old);
    r->value = o;
}

void tier_changed_quietly_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *old,
                                 struct object *o, bool had_expire)
{
    struct tier *t = w->tier;
    bool disk_expires;

    if (UNLIKELY(o != old || had_expire != !!(o->flags & OBJ_F_EXPIRE))) /* else the table has it as it is */
        replace_object_locked(t, shard, key, old, o);
    o->flags &= (uint8_t)(o->type == OBJ_STRING ? ~OBJ_F_LEAVING : ~(OBJ_F_LEAVING | OBJ_F_SAVING));
    if (UNLIKELY(tier_journals(t, o)))
        tier_journal_locked(w, key, o);
    else
        tier_forget_disk_locked(t, key->hash, &disk_expires);
    mem_db_count(t->mem, key->db, 0, (object_expire(o) != 0) - had_expire);
    stats_inc(w->stats, STAT_tier_changes);
}

void tier_changed_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *old,
                         struct object *o, bool had_expire)
{
    tier_changed_quietly_locked(w, shard, key, old, o, had_expire);
    tier_notify_locked(w->tier, w, shard, key, TIER_WRITTEN);
}

void tier_fields_timed_locked(struct worker *w, struct mem_shard *shard, const struct key *key, struct object *o)
{
    replace_object_locked(w->tier, shard, key, o, o);
}

void tier_fields_expired_locked(struct worker *w, struct mem_shard *shard, const struct key *key, size_t n)
{
    stats_add(w->stats, STAT_expired_subkeys, n);
    tier_notify_locked(w->tier, w, shard, key, TIER_FIELDS);
}

void tier_flush_db_locked(struct worker *w, unsigned db)
{
    struct tier *t = w->tier;

    if (UNLIKELY(mem_db_flush_collides_locked(t->mem))) /* once in 65536 flushes */
        tier_sweep_dead_locked(w);
    uint32_t inc = mem_db_flush_locked(t->mem, db);
    if (t->disk)
        disk_set_incarnation(t->disk, db, inc);
}

void tier_swap_db_locked(struct worker *w, unsigned a, unsigned b)
{
    struct tier *t = w->tier;

    mem_db_swap_locked(t->mem, a, b);
    if (t->disk) {
        disk_set_incarnation(t->disk, a, atomic_load(&t->mem->db[a].incarnation));
        disk_set_incarnation(t->disk, b, atomic_load(&t->mem->db[b].incarnation));
    }
}
