/* appendonly yes: every write goes to the disk's log, and with appendfsync always its reply
 * waits for the commit. */
#include <string.h>

#include "tiercel/clock.h"
#include "tiercel/pace.h"
#include "tier_priv.h"

#define SYNC_NEVER UINT64_MAX /* the event of a write that the disk refused */
#define OWED_MAX 1024         /* keys noted before they are written without waiting for more changes */

void tier_fill_head(const struct tier *t, const struct key *key, const struct object *o, struct disk_record *rec)
{
    *rec =
        (struct disk_record){.key = *key, .type = o->type, .expire_ms = object_expire(o), .origin = object_origin(o)};
    rec->incarnation = atomic_load_explicit(&t->mem->full_inc[o->inc], memory_order_relaxed);
}

void tier_fill_record(const struct tier *t, const struct key *key, const struct object *o, struct buf *serial,
                      struct disk_record *rec)
{
    tier_fill_head(t, key, o, rec);
    serial->len = 0;
    if (!object_serial_ref(o, serial, &rec->payload_ref))
        object_serialise(o, serial);
    rec->payload = buf_slice(serial);
}

bool tier_journals(const struct tier *t, const struct object *o)
{
    return UNLIKELY(atomic_load_explicit(&t->limit.journal, memory_order_relaxed)) && t->disk &&
           !(o->flags & OBJ_F_ORIGIN) && o->type != OBJ_NONE;
}

bool tier_dirty_locked(const struct tier *t, const struct object *o, uint64_t hash)
{
    uint32_t block;
    bool has_expire;

    if (!(o->flags & OBJ_F_ORIGIN) && o->flags & OBJ_F_OWED)
        return true;
    return !disk_find_locked(t->disk, hash, &block, &has_expire) && disk_pending_locked(t->disk, hash) == 0;
}

/* ---- writing ---- */

/* false: the disk did not take it. */
static bool append_record_locked(struct tier *t, struct stats_block *stats, const struct key *key, struct object *o,
                                 struct disk_record *rec)
{
    bool had_expire;

    rec->must = true;
    enum status st = disk_append_locked(t->disk, rec);
    o->flags &= (uint8_t) ~(OBJ_F_OWED | OBJ_F_LEAVING);
    if (st == ST_OK) {
        stats_inc(stats, STAT_tier_journal_writes);
        return true;
    }
    /* An older version must not come back for it. */
    disk_forget_locked(t->disk, key->hash, &had_expire);
    atomic_store(&t->journal_debt, true);
    return false;
}

static bool append_locked(struct tier *t, struct stats_block *stats, struct buf *serial, const struct key *key,
                          struct object *o)
{
    struct disk_record rec;

    tier_fill_record(t, key, o, serial, &rec);
    bool ok = append_record_locked(t, stats, key, o, &rec);
    rcbuf_unref(rec.payload_ref);
    return ok;
}

/* false: a commit is being put together, and must not be without it. */
static bool owe_locked(struct worker *w, const struct key *key, struct object *o)
{
    struct tier_worker *tw = w->tier_worker;

    o->flags &= (uint8_t)~OBJ_F_LEAVING;
    pthread_mutex_lock(&tw->owed_mu);
    bool may = !atomic_load(&w->tier->paying);
    if (may && !(o->flags & OBJ_F_OWED)) {
        o->flags |= OBJ_F_OWED;
        buf_append(&tw->owed, key, sizeof(*key));
        buf_append(&tw->owed, key->ptr, key->len);
        tw->owed_n++;
        atomic_store_explicit(&w->tier->held_back, true, memory_order_relaxed);
        if (UNLIKELY(tier_is_parted(o)))
            atomic_store(&w->tier->owed_large, true);
    }
    pthread_mutex_unlock(&tw->owed_mu);
    return may;
}

void tier_journal_locked(struct worker *w, const struct key *key, struct object *o)
{
    struct tier_worker *tw = w->tier_worker;

    if (o->type != OBJ_STRING && object_bytes(o) > TIER_JOURNAL_NOW && owe_locked(w, key, o))
        return;
    if (!append_locked(w->tier, w->stats, &tw->serial, key, o))
        tw->unwritten = true;
}

/* NULL: nothing is owed of it. */
static struct object *owed_locked(const struct tier *t, const struct key *key)
{
    mem_slot *slot = mem_find_locked(t->mem, tier_shard_of(t, key->hash), key);
    struct object *o = slot ? mem_object(*slot) : NULL;

    if (o && o->type == OBJ_RESIDENCY)
        o = residency_of(o)->fetching ? NULL : residency_of(o)->value;
    return o && !(o->flags & OBJ_F_ORIGIN) && o->flags & OBJ_F_OWED ? o : NULL;
}

static void pay_locked(struct tier *t, struct stats_block *stats, struct buf *serial, const struct key *key, bool *ok)
{
    struct object *o = owed_locked(t, key);

    if (o)
        *ok &= append_locked(t, stats, serial, key, o);
}

/* Goes on to the next key in a list of what is owed. */
static void take_key(const struct buf *owed, size_t *at, struct key *key)
{
    memcpy(key, owed->ptr + *at, sizeof(*key));
    key->ptr = owed->ptr + *at + sizeof(*key);
    *at += sizeof(*key) + key->len;
}

/* Writes what a worker noted; on that worker's thread, or on the disk's. */
static void pay_noted(struct tier_worker *tw, struct stats_block *stats, struct buf *serial, bool *ok)
{
    struct tier *t = tw->w->tier;
    struct buf owed;

    pthread_mutex_lock(&tw->owed_mu);
    owed = tw->owed;
    tw->owed_n = 0;
    buf_init(&tw->owed, MEM_OTHER);
    pthread_mutex_unlock(&tw->owed_mu);
    for (size_t at = 0; at < owed.len;) {
        struct key key;
        take_key(&owed, &at, &key);
        struct mem_shard *shard = tier_shard_of(t, key.hash);
        mem_lock(shard);
        pay_locked(t, stats, serial, &key, ok);
        mem_unlock(shard);
    }
    buf_deinit(&owed);
}

void tier_pay_locked(struct worker *w, const struct key *key)
{
    bool ok = true;

    pay_locked(w->tier, w->stats, &w->tier_worker->serial, key, &ok);
    w->tier_worker->unwritten |= !ok;
}

void tier_flush_owed(struct worker *w)
{
    struct tier_worker *tw = w->tier_worker;
    bool ok = true;

    if (LIKELY(atomic_load_explicit(&tw->owed_n, memory_order_relaxed) == 0)) /* only this thread adds */
        return;
    /* What was noted first may be written last: no commit is to come between. While one is put together nothing is owed. */
    if (!tw->in_group && !disk_group_try(w->tier->disk))
        return;
    pay_noted(tw, w->stats, &tw->serial, &ok);
    if (!tw->in_group)
        disk_group_end(w->tier->disk);
    tw->unwritten |= !ok;
}

/* ---- large values, before a commit is put together ----
 * To serialise one at once keeps everybody from its shard. So what is owed of large values is written in parts first, while
 * more may be owed. Nobody else makes a commit meanwhile, so this comes to the same as if it was written with the rest of
 * what is owed. Who changes such a value meanwhile clears OBJ_F_SAVING: it stays owed, and is written with that rest. */

/* A reply waits for the commit, or a write for room: no rests. */
static bool prepay_hurry(void *arg)
{
    const struct tier *t = arg;
    bool hurry = atomic_load_explicit(&t->room_waiting, memory_order_relaxed) > 0;

    for (int i = 0; i < t->nworkers && !hurry; i++) {
        const struct tier_worker *tw = t->workers[i] ? t->workers[i]->tier_worker : NULL;
        hurry = tw && atomic_load_explicit(&tw->sync_waiting, memory_order_relaxed) > 0;
    }
    return hurry;
}

static void prepay(struct tier *t, const struct key *key, struct pace *pace)
{
    struct mem_shard *shard = tier_shard_of(t, key->hash);
    struct tier_parts parts;
    bool more = true;

    tier_parts_init(&parts, t);
    for (bool first = true; more; first = false) {
        mem_lock(shard);
        struct object *o = owed_locked(t, key);
        if (!o || !tier_is_parted(o) || (!first && !(o->flags & OBJ_F_SAVING))) {
            more = false;
        } else if (parts.last) {
            struct disk_record rec;
            tier_fill_head(t, key, o, &rec);
            rec.payload_ref = parts.whole;
            append_record_locked(t, t->disk_stats, key, o, &rec);
            more = false;
        } else {
            o->flags |= OBJ_F_SAVING;
            tier_parts_next_locked(&parts, o);
        }
        mem_unlock(shard);
        if (more)
            tier_parts_take(&parts, pace);
    }
    tier_parts_deinit(&parts);
}

static void prepay_large(struct tier *t)
{
    struct pace pace = {.hurry = prepay_hurry, .arg = t};
    struct buf owed;

    if (pthread_mutex_trylock(&t->parting) != 0) /* a save is at it */
        return;
    buf_init(&owed, MEM_OTHER);
    for (int i = 0; i < t->nworkers; i++) {
        struct tier_worker *tw = t->workers[i] ? t->workers[i]->tier_worker : NULL;
        if (!tw)
            continue;
        pthread_mutex_lock(&tw->owed_mu);
        buf_slice_append(&owed, buf_slice(&tw->owed)); /* it stays noted: it may be changed again */
        pthread_mutex_unlock(&tw->owed_mu);
    }
    pace_begin(&pace);
    for (size_t at = 0; at < owed.len;) {
        struct key key;
        take_key(&owed, &at, &key);
        prepay(t, &key, &pace);
    }
    buf_deinit(&owed);
    pthread_mutex_unlock(&t->parting);
}

bool tier_committing(void *arg, bool begin)
{
    struct tier *t = arg;
    bool ok = true;

    if (begin && UNLIKELY(atomic_load(&t->owed_large)))
        prepay_large(t);
    atomic_store(&t->paying, begin);
    for (int i = 0; begin && i < t->nworkers; i++) {
        struct tier_worker *tw = t->workers[i] ? t->workers[i]->tier_worker : NULL;
        if (tw)
            pay_noted(tw, t->disk_stats, &t->paying_serial, &ok);
    }
    if (begin)
        atomic_store(&t->owed_large, false); /* nothing is owed now */
    /* Whoever wrote it, now or before, wrote it behind later changes. */
    return begin && atomic_exchange(&t->held_back, false);
}

enum status tier_may_write(struct worker *w)
{
    struct tier *t = w->tier;

    if (LIKELY(!atomic_load_explicit(&t->limit.journal, memory_order_relaxed)) || !t->disk)
        return ST_OK;
    w->tier_worker->since = atomic_load(&t->settled_event);
    if (!disk_healthy(t->disk))
        return atomic_load_explicit(&t->limit.journal_always, memory_order_relaxed) ? ST_IO : ST_OK;
    if (atomic_load_explicit(&w->tier_worker->owed_n, memory_order_relaxed) >= OWED_MAX)
        tier_flush_owed(w);
    int64_t queue = atomic_load_explicit(&t->limit.disk_queue_max, memory_order_relaxed);
    if ((int64_t)disk_queue_bytes(t->disk) < queue)
        return ST_OK;
    disk_hurry(t->disk);
    return ST_PENDING;
}

void tier_group_begin(struct worker *w)
{
    struct tier *t = w->tier;

    if (LIKELY(!atomic_load_explicit(&t->limit.journal, memory_order_relaxed)) || !t->disk)
        return;
    w->tier_worker->in_group = true;
    disk_group_begin(t->disk);
}

bool tier_grouped(const struct worker *w)
{
    const struct tier *t = w->tier;

    return w->tier_worker->in_group || !atomic_load_explicit(&t->limit.journal, memory_order_relaxed) || !t->disk;
}

void tier_group_end(struct worker *w)
{
    if (LIKELY(!w->tier_worker->in_group))
        return;
    tier_flush_owed(w); /* what the group changed belongs to it */
    disk_group_end(w->tier->disk);
    w->tier_worker->in_group = false;
}

/* ---- acknowledging ---- */

/* Did a commit fail that may have held what was done after `since`? */
static bool failed_since(const struct tier *t, uint64_t since)
{
    return atomic_load(&t->failed_event) > since;
}

uint64_t tier_sync_since(const struct worker *w)
{
    return w->tier_worker->since;
}

bool tier_sync_needed(struct worker *w, struct tier_sync_wait *sw)
{
    struct tier *t = w->tier;

    if (!t->disk)
        return false;
    tier_flush_owed(w);
    sw->event = w->tier_worker->unwritten ? SYNC_NEVER : disk_last_event(t->disk);
    return atomic_load(&t->settled_event) < sw->event || failed_since(t, sw->since);
}

static void sync_run(struct mbox_msg *msg, void *owner)
{
    struct tier_worker *tw = LIST_ENTRY(msg, struct tier_worker, sync_msg);
    struct tier *t = tw->w->tier;
    struct list waits, *l;
    (void)owner;

    atomic_store(&tw->sync_posted, false);
    tw->unwritten = false; /* whose writes it were wait here */
    uint64_t settled = atomic_load(&t->settled_event);
    list_init(&waits);
    list_splice(&waits, &tw->syncs);
    while ((l = list_pop_front(&waits))) {
        struct tier_sync_wait *sw = LIST_ENTRY(l, struct tier_sync_wait, link);
        if (sw->event > settled && sw->event != SYNC_NEVER) {
            list_push_back(&tw->syncs, &sw->link);
            continue;
        }
        bool ok = sw->event != SYNC_NEVER && !failed_since(t, sw->since);
        atomic_fetch_sub(&tw->sync_waiting, 1);
        sw->done(sw, ok);
    }
}

static void sync_post(struct tier_worker *tw)
{
    if (atomic_exchange(&tw->sync_posted, true))
        return;
    tw->sync_msg.run = sync_run;
    mbox_post(tw->w->mbox, &tw->sync_msg);
}

void tier_wait_sync(struct worker *w, struct tier_sync_wait *sw)
{
    struct tier_worker *tw = w->tier_worker;

    list_push_back(&tw->syncs, &sw->link);
    atomic_fetch_add(&tw->sync_waiting, 1);
    if (sw->event == SYNC_NEVER || atomic_load(&w->tier->settled_event) >= sw->event)
        sync_post(tw); /* it came between */
    else
        disk_hurry(w->tier->disk);
}

void tier_cancel_sync(struct worker *w, struct tier_sync_wait *sw)
{
    list_remove(&sw->link);
    atomic_fetch_sub(&w->tier_worker->sync_waiting, 1);
}

void tier_settled(void *arg, uint64_t event, bool ok)
{
    struct tier *t = arg;

    if (!ok) {
        atomic_store(&t->failed_event, event);
        if (t->limit.journal)
            atomic_store(&t->journal_debt, true);
    }
    atomic_store(&t->settled_event, event);
    for (int i = 0; i < t->nworkers; i++) {
        struct tier_worker *tw = t->workers[i] ? t->workers[i]->tier_worker : NULL;
        if (tw && atomic_load(&tw->sync_waiting) > 0)
            sync_post(tw);
    }
    if (ok)
        tier_pay_debt(t);
}

void tier_pay_debt(struct tier *t)
{
    if (LIKELY(!atomic_load(&t->journal_debt)) || !disk_healthy(t->disk))
        return;
    if (atomic_exchange(&t->journal_debt, false) && t->limit.journal && tier_save_start(t, NULL, NULL) != ST_OK)
        atomic_store(&t->journal_debt, true);
}

void tier_journal_init(struct tier_worker *tw)
{
    pthread_mutex_init(&tw->owed_mu, NULL);
    buf_init(&tw->owed, MEM_OTHER);
    list_init(&tw->syncs);
}

void tier_journal_deinit(struct tier_worker *tw)
{
    buf_deinit(&tw->owed);
    pthread_mutex_destroy(&tw->owed_mu);
}
