/* Writing out what only memory has: SAVE and its kin, on a thread of their own, with rests (pace.h), and the clean stop.
 * A large value is serialised in parts: who changes it meanwhile clears OBJ_F_SAVING, and it is begun anew. */
#include <stdlib.h>

#include "tiercel/clock.h"
#include "tiercel/log.h"
#include "tiercel/pace.h"
#include "tier_priv.h"

#define SYNC_STEP_MS 1000 /* how often a save that waits for the disk looks whether the server stops */
#define SAVE_ROOM_MS 50
#define BUCKET_UNITS 3000 /* for pace_spend() */
#define LARGE_TRIES 4     /* what changes all the time is then serialised at once */

struct saver {
    pthread_mutex_t mu; /* below all other locks */
    pthread_t thread;
    bool joinable, running, cancel;
    void (*done)(void *arg, bool ok);
    void *arg;
    int64_t started_ms, last_save_s, last_duration_s, saves;
    bool last_ok;
    uint64_t changes_then, changes_before; /* the counter when the last good one began, and when this one did */
    _Atomic int64_t written, total;
    _Atomic bool stop;
};

/* ---- what is dirty ---- */

static struct object *resident_value(struct object *o)
{
    if (o->type != OBJ_RESIDENCY)
        return o;
    struct residency *r = residency_of(o);
    return r->fetching ? NULL : r->value;
}

static bool worth_saving(const struct tier *t, const struct object *o, uint64_t hash, int64_t now_ms)
{
    return o->type != OBJ_NONE && mem_db_of(t->mem, o->inc) >= 0 && !object_expired(o, now_ms) &&
           tier_dirty_locked(t, o, hash);
}

static enum status save_record_locked(struct tier *t, struct object *o, const struct disk_record *rec)
{
    enum status st = disk_append_locked(t->disk, rec);

    if (st == ST_OK && !(o->flags & OBJ_F_ORIGIN))
        o->flags &= (uint8_t)~OBJ_F_OWED;
    return st;
}

static enum status save_locked(struct tier *t, struct object *o, struct buf *serial)
{
    struct disk_record rec;
    struct key key;

    mem_object_key(t->mem, o, &key);
    tier_fill_record(t, &key, o, serial, &rec);
    enum status st = save_record_locked(t, o, &rec);
    rcbuf_unref(rec.payload_ref);
    return st;
}

/* ---- in the background ---- */

struct save_step {
    struct tier *t;
    struct buf *serial;
    struct buf *large; /* struct key and name of what is to be saved in parts */
    int64_t now_ms;
    enum status st;
    int64_t written;
};

static void save_object(void *arg, struct object *o)
{
    struct save_step *s = arg;

    if (s->st != ST_OK || !(o = resident_value(o)) || o->flags & OBJ_F_ORIGIN)
        return;
    if (!worth_saving(s->t, o, mem_object_hash(s->t->mem, o), s->now_ms))
        return;
    if (UNLIKELY(tier_is_parted(o))) {
        struct key key;
        mem_object_key(s->t->mem, o, &key);
        buf_append(s->large, &key, sizeof(key));
        buf_append(s->large, key.ptr, key.len);
        return;
    }
    s->st = save_locked(s->t, o, s->serial);
    s->written += s->st == ST_OK;
    if (s->st == ST_TOO_LARGE)
        s->st = ST_OK; /* there is no disk large enough; it stays in memory */
}

static struct object *worth_locked(struct tier *t, struct mem_shard *shard, const struct key *key)
{
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    struct object *o = slot ? resident_value(mem_object(*slot)) : NULL;

    return o && worth_saving(t, o, key->hash, clock_wall_ms()) ? o : NULL;
}

static bool queue_has_no_room(const struct tier *t, enum status st)
{
    return st == ST_FULL && (disk_queue_bytes(t->disk) > 0 || !disk_quota_full(t->disk));
}

static enum status append_parts_locked(struct tier *t, const struct key *key, struct object *o,
                                       const struct tier_parts *parts)
{
    struct disk_record rec;

    tier_fill_head(t, key, o, &rec);
    rec.payload_ref = parts->whole;
    return save_record_locked(t, o, &rec);
}

/* ST_BUSY: it was changed meanwhile. */
static enum status save_parts(struct tier *t, struct saver *sv, const struct key *key, struct tier_parts *parts,
                              struct pace *pace)
{
    struct mem_shard *shard = tier_shard_of(t, key->hash);

    for (bool first = true; !atomic_load(&sv->stop); first = false) {
        bool last = parts->last;
        enum status st = ST_OK;
        mem_lock(shard);
        struct object *o = worth_locked(t, shard, key);
        bool same = o && object_is_parted(o) && (first || o->flags & OBJ_F_SAVING);
        if (same && last) {
            st = append_parts_locked(t, key, o, parts);
        } else if (same) {
            o->flags |= OBJ_F_SAVING;
            tier_parts_next_locked(parts, o);
        }
        mem_unlock(shard);
        if (!same)
            return o ? ST_BUSY : ST_OK;
        if (!last)
            tier_parts_take(parts, pace);
        else if (queue_has_no_room(t, st))
            disk_sync(t->disk, SAVE_ROOM_MS);
        else
            return st;
    }
    return ST_CANCELLED;
}

static enum status save_large(struct tier *t, struct saver *sv, const struct key *key, struct buf *serial,
                              struct pace *pace)
{
    struct mem_shard *shard = tier_shard_of(t, key->hash);
    enum status st = ST_BUSY;

    pthread_mutex_lock(&t->parting);
    for (int i = 0; i < LARGE_TRIES && st == ST_BUSY; i++) {
        struct tier_parts parts;
        tier_parts_init(&parts, t);
        st = save_parts(t, sv, key, &parts, pace);
        tier_parts_deinit(&parts);
    }
    pthread_mutex_unlock(&t->parting);
    if (st != ST_BUSY)
        return st;
    mem_lock(shard);
    struct object *o = worth_locked(t, shard, key);
    st = o ? save_locked(t, o, serial) : ST_OK;
    mem_unlock(shard);
    return st;
}

/* Those of one bucket. */
static enum status save_all_large(struct tier *t, struct saver *sv, struct buf *large, struct buf *serial,
                                  struct pace *pace)
{
    enum status st = ST_OK;

    for (size_t at = 0; at < large->len && st == ST_OK;) {
        struct key key;
        memcpy(&key, large->ptr + at, sizeof(key));
        key.ptr = large->ptr + at + sizeof(key);
        at += sizeof(key) + key.len;
        st = save_large(t, sv, &key, serial, pace);
        atomic_fetch_add(&sv->written, st == ST_OK);
        if (st == ST_TOO_LARGE)
            st = ST_OK;
    }
    return st;
}

static bool save_hurry(void *arg)
{
    return atomic_load_explicit(&((struct saver *)arg)->stop, memory_order_relaxed);
}

/* The whole table, bucket by bucket. ST_CANCELLED: the server stops. */
static enum status save_walk(struct tier *t, struct saver *sv)
{
    struct pace pace = {.hurry = save_hurry, .arg = sv};
    struct buf serial, large;
    enum status st = ST_OK;

    buf_init(&serial, MEM_OTHER);
    buf_init(&large, MEM_OTHER);
    pace_begin(&pace);
    for (uint64_t cursor = 0, next;; cursor = next) {
        struct mem_shard *shard = tier_shard_of(t, cursor);
        struct save_step s = {.t = t, .serial = &serial, .large = &large, .now_ms = clock_wall_ms()};
        large.len = 0;
        mem_lock(shard);
        mem_scan_locked(t->mem, shard, cursor, &next, save_object, &s);
        mem_unlock(shard);
        atomic_fetch_add(&sv->written, s.written);
        if (UNLIKELY(large.len > 0) && s.st == ST_OK)
            s.st = save_all_large(t, sv, &large, &serial, &pace);
        pace_spend(&pace, BUCKET_UNITS);
        if (atomic_load(&sv->stop)) {
            st = ST_CANCELLED;
            break;
        }
        if (queue_has_no_room(t, s.st)) {
            disk_sync(t->disk, SAVE_ROOM_MS); /* the queue has room then: the same bucket again */
            next = cursor;
            continue;
        }
        if (s.st != ST_OK) {
            st = s.st;
            break;
        }
        if (next == 0)
            break;
    }
    buf_deinit(&large);
    buf_deinit(&serial);
    return st;
}

static enum status save_sync(struct tier *t, const struct saver *sv)
{
    enum status st;

    do
        st = disk_sync(t->disk, SYNC_STEP_MS);
    while (st == ST_TIMEOUT && !atomic_load(&sv->stop));
    return st;
}

static void *save_main(void *arg)
{
    struct tier *t = arg;
    struct saver *sv = t->saver;

    pthread_setname_np(pthread_self(), "save");
    pace_thread_init();
    enum status st = save_walk(t, sv);
    if (st == ST_OK)
        st = save_sync(t, sv);
    pthread_mutex_lock(&sv->mu);
    int64_t now_ms = clock_wall_ms();
    sv->running = false;
    sv->last_ok = st == ST_OK;
    sv->last_duration_s = (now_ms - sv->started_ms) / 1000;
    if (st == ST_OK) {
        sv->saves++;
        sv->last_save_s = now_ms / 1000;
        sv->changes_then = sv->changes_before;
    }
    void (*done)(void *arg, bool ok) = sv->done;
    void *done_arg = sv->arg;
    pthread_mutex_unlock(&sv->mu);
    if (st == ST_OK)
        log_notice("tier", "saved: %lld objects written to disk", (long long)atomic_load(&sv->written));
    else if (st != ST_CANCELLED)
        log_warning("tier", "save failed: %s",
                    st == ST_FULL ? "the disk tier is full" : "the disk tier cannot be written");
    if (st != ST_OK && t->limit.journal)
        atomic_store(&t->journal_debt, true);
    if (done)
        done(done_arg, st == ST_OK);
    return NULL;
}

enum status tier_save_start(struct tier *t, void (*done)(void *arg, bool ok), void *arg)
{
    struct saver *sv = t->saver;
    enum status st = ST_OK;

    if (!t->disk)
        return ST_IO;
    pthread_mutex_lock(&sv->mu);
    if (sv->running || atomic_load(&sv->stop)) {
        st = ST_BUSY;
    } else {
        if (sv->joinable)
            pthread_join(sv->thread, NULL); /* it has ended, or is about to */
        sv->running = true;
        sv->done = done;
        sv->arg = arg;
        sv->started_ms = clock_wall_ms();
        sv->changes_before = stats_sum(STAT_tier_changes);
        atomic_store(&sv->written, 0);
        int64_t keys = 0;
        for (unsigned i = 0; i < t->mem->shards; i++)
            keys += (int64_t)atomic_load_explicit(&t->mem->shard[i].count, memory_order_relaxed);
        atomic_store(&sv->total, keys);
        sv->joinable = pthread_create(&sv->thread, NULL, save_main, t) == 0;
        if (!sv->joinable) {
            sv->running = false;
            st = ST_IO;
        }
    }
    pthread_mutex_unlock(&sv->mu);
    return st;
}

void tier_get_save_figures(struct tier *t, struct tier_save_figures *out)
{
    struct saver *sv = t->saver;

    pthread_mutex_lock(&sv->mu);
    *out = (struct tier_save_figures){
        .running = sv->running,
        .last_ok = sv->last_ok,
        .started_ms = sv->running ? sv->started_ms : 0,
        .last_save_s = sv->last_save_s,
        .last_duration_s = sv->last_duration_s,
        .saves = sv->saves,
        .changes = (int64_t)(stats_sum(STAT_tier_changes) - sv->changes_then),
        .written = atomic_load(&sv->written),
        .total = atomic_load(&sv->total),
    };
    pthread_mutex_unlock(&sv->mu);
    out->journal = t->limit.journal && t->disk;
    out->journal_ok = !t->disk || disk_healthy(t->disk);
    out->journal_waiting = t->disk ? disk_queue_bytes(t->disk) : 0;
}

void tier_save_init(struct tier *t)
{
    t->saver = mem_calloc(MEM_OTHER, sizeof(*t->saver));
    pthread_mutex_init(&t->saver->mu, NULL);
    pthread_mutex_init(&t->parting, NULL);
    t->saver->last_ok = true;
    t->saver->last_duration_s = -1;
    t->saver->last_save_s = clock_wall_ms() / 1000;
}

void tier_save_stop(struct tier *t)
{
    struct saver *sv = t->saver;

    atomic_store(&sv->stop, true);
    pthread_mutex_lock(&sv->mu);
    bool join = sv->joinable;
    sv->joinable = false;
    pthread_mutex_unlock(&sv->mu);
    if (join)
        pthread_join(sv->thread, NULL);
    tier_big_stop(t);
}

/* ---- at a clean stop: hottest first ---- */

struct hot {
    uint32_t coldness;
    uint64_t hash;
    struct object *obj;
};

struct hot_list {
    struct worker *w;
    struct hot *v;
    size_t n, cap;
};

static void hot_add(void *arg, struct object *o)
{
    struct hot_list *h = arg;
    struct tier *t = h->w->tier;

    if (!(o = resident_value(o)))
        return;
    uint64_t hash = mem_object_hash(t->mem, o);
    if (!worth_saving(t, o, hash, h->w->now_ms))
        return;
    if (h->n == h->cap) {
        h->cap = h->cap ? h->cap * 2 : 1024;
        h->v = mem_realloc(MEM_OTHER, h->v, h->cap * sizeof(*h->v));
    }
    int64_t cold = t->limit.policy == POLICY_ALLKEYS_LFU || t->limit.policy == POLICY_VOLATILE_LFU
                       ? 255 - tier_object_freq(h->w, o)
                       : tier_object_idle_ms(h->w, o);
    h->v[h->n++] = (struct hot){(uint32_t)(cold > UINT32_MAX ? UINT32_MAX : cold), hash, o};
}

static int hot_compare(const void *a, const void *b)
{
    const struct hot *x = a, *y = b;
    return x->coldness < y->coldness ? -1 : x->coldness > y->coldness;
}

static bool append_now(struct tier *t, const struct hot *h, struct buf *serial, int64_t until_ms)
{
    struct mem_shard *shard = tier_shard_of(t, h->hash);

    for (;;) {
        mem_lock(shard);
        enum status st = save_locked(t, h->obj, serial);
        mem_unlock(shard);
        if (st == ST_OK)
            return true;
        int64_t left = until_ms - clock_mono_ms();
        if (st != ST_FULL || left <= 0 || disk_queue_bytes(t->disk) == 0)
            return false;
        disk_sync(t->disk, left);
    }
}

int64_t tier_write_out(struct tier *t, int64_t timeout_ms)
{
    int64_t until = clock_mono_ms() + timeout_ms, lost = 0;
    struct worker *w = t->workers[0];
    struct hot_list h = {.w = w};
    struct buf serial;

    if (!t->disk)
        return 0;
    tier_save_stop(t);
    w->now_ms = clock_wall_ms();
    disk_sync(t->disk, timeout_ms); /* demotions under way settle first */
    for (uint64_t cursor = 0, next;; cursor = next) {
        struct mem_shard *shard = tier_shard_of(t, cursor);
        mem_lock(shard);
        mem_scan_locked(t->mem, shard, cursor, &next, hot_add, &h);
        mem_unlock(shard);
        if (next == 0)
            break;
    }
    if (h.n > 1)
        qsort(h.v, h.n, sizeof(*h.v), hot_compare);
    buf_init(&serial, MEM_OTHER);
    for (size_t i = 0; i < h.n; i++) {
        if (!append_now(t, &h.v[i], &serial, until)) {
            lost = (int64_t)(h.n - i);
            break;
        }
    }
    int64_t left = until - clock_mono_ms();
    if (disk_sync(t->disk, left > 100 ? left : 100) != ST_OK && lost == 0)
        lost = -1;
    buf_deinit(&serial);
    mem_free(MEM_OTHER, h.v);
    return lost;
}
