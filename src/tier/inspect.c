/* Where a key is, told without moving it (inspect.h). */
#include "tiercel/inspect.h"

#include "tier_priv.h"

#define REREADS 3 /* times a record that moved meanwhile is looked for again */

static void copy_of(const struct object *o, struct inspect_copy *out)
{
    *out = (struct inspect_copy){
        .present = true,
        .upstream = o->flags & OBJ_F_ORIGIN,
        .packed = o->type == OBJ_STRING && o->flags & OBJ_F_PACKED,
        .type = o->type,
        .encoding = object_encoding_name(o),
        .plain_len = (int64_t)object_plain_len(o),
        .stored_len = (int64_t)object_stored_len(o),
        .expire_ms = object_expire(o),
    };
}

/* ---- memory and the index ---- */

static void look_at_value_locked(struct inspection *in, const struct object *o)
{
    struct worker *w = in->w;
    int policy = atomic_load_explicit(&w->tier->limit.policy, memory_order_relaxed);

    copy_of(o, &in->memory);
    in->memory_bytes = (int64_t)object_bytes(o);
    if (policy == POLICY_VOLATILE_LFU || policy == POLICY_ALLKEYS_LFU)
        in->freq = tier_object_freq(w, o);
    else
        in->idle_ms = tier_object_idle_ms(w, o);
    bool owed = !in->memory.upstream && o->flags & OBJ_F_OWED;
    in->dirty = !in->memory.upstream && (!in->committed || owed);
}

static void look_at_object_locked(struct inspection *in, const struct object *o)
{
    const struct residency *r = o->type == OBJ_RESIDENCY ? residency_of(o) : NULL;

    if (r) {
        in->pinned = r->pins > 0;
        o = r->value;
    }
    if (!o) {
        in->state = INSPECT_FETCHING;
        return;
    }
    switch (tier_liveness(in->w, o)) {
    case STALE:
    case OLD: in->state = INSPECT_STALE; break;
    case AGING:
    case LIVE: in->state = o->flags & OBJ_F_LEAVING ? INSPECT_DEMOTING : INSPECT_RESIDENT; break;
    case NEGATIVE_LIVE: in->state = INSPECT_NEGATIVE; break;
    case SUSPECT: in->state = INSPECT_SUSPECT; break;
    case GONE: in->state = INSPECT_ABSENT; break;
    }
    if (o->type != OBJ_NONE && in->state != INSPECT_ABSENT)
        look_at_value_locked(in, o);
    if (r && r->fetching && !r->refresh)
        in->state = INSPECT_FETCHING;
}

static void look_locked(struct inspection *in, struct mem_shard *shard)
{
    struct tier *t = in->w->tier;
    bool has_expire;

    in->state = INSPECT_ABSENT;
    in->memory = in->disk = (struct inspect_copy){.present = false};
    in->memory_bytes = 0;
    in->idle_ms = in->freq = -1;
    in->dirty = in->pinned = false;
    in->block = 0;
    in->committed = t->disk && disk_find_locked(t->disk, in->key.hash, &in->block, &has_expire);
    if (t->disk && !in->committed)
        in->block = disk_pending_locked(t->disk, in->key.hash);
    in->disk_st = ST_NOT_FOUND;
    mem_slot *slot = mem_find_locked(t->mem, shard, &in->key);
    if (slot)
        look_at_object_locked(in, mem_object(*slot));
}

static void look(struct inspection *in)
{
    struct tier *t = in->w->tier;

    for (;;) {
        mem_key_init(t->mem, tier_space(in->w, in->db, in->name), in->name, &in->key);
        struct mem_shard *shard = tier_shard_of(t, in->key.hash);
        mem_lock(shard);
        bool current = mem_key_current(t->mem, &in->key);
        if (current)
            look_locked(in, shard);
        mem_unlock(shard);
        if (current)
            return;
    }
}

/* ---- the record ---- */

static void inspect_run(struct mbox_msg *msg, void *owner);

/* On a reader thread. */
static void record_read(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct inspection *in = LIST_ENTRY(rd, struct inspection, rd);
    struct object *o;

    in->disk_st = st;
    if (st == ST_OK) {
        in->disk_written_s = rec->written_s;
        in->disk_suspect = rec->origin != 0 && !tier_origin_current(in->w->tier, rec->origin);
        in->disk_st = object_parse_paced(rec->type, &in->key, rec->payload, rec->expire_ms, rec->origin, rd->pace, &o);
    }
    if (in->disk_st == ST_OK) {
        copy_of(o, &in->disk);
        in->disk.stored_len = (int64_t)rec->payload.len;
        object_free(o);
    }
    in->msg.run = inspect_run;
    mbox_post(in->w->mbox, &in->msg);
}

static void read_record(struct inspection *in)
{
    struct tier *t = in->w->tier;
    struct list reads;

    in->rd = (struct disk_read){
        .key = in->key,
        .incarnation = atomic_load_explicit(&t->mem->full_inc[in->key.inc], memory_order_relaxed),
        .block = in->block,
        .quiet = true,
        .done = record_read,
    };
    atomic_fetch_add(&t->fetches, 1); /* the disk stays open for it */
    list_init(&reads);
    list_push_back(&reads, &in->rd.link);
    disk_read_submit(t->disk, &reads);
}

static void inspect_run(struct mbox_msg *msg, void *owner)
{
    struct inspection *in = LIST_ENTRY(msg, struct inspection, msg);
    (void)owner;

    atomic_fetch_sub(&in->w->tier->fetches, 1);
    if (in->disk_st == ST_NOT_FOUND && in->tries++ < REREADS) {
        look(in);
        if (in->committed) {
            read_record(in);
            return;
        }
    }
    if (in->disk.present && in->disk.expire_ms != 0 && in->disk.expire_ms <= in->w->now_ms)
        in->disk.present = false;
    in->done(in);
}

enum status tier_inspect(struct worker *w, struct inspection *in)
{
    in->w = w;
    in->tries = 0;
    look(in);
    if (!in->committed)
        return ST_OK;
    read_record(in);
    return ST_PENDING;
}
