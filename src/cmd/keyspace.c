/* What handlers do with keys, values and errors (keyspace.h). */
#include <stdio.h>

#include "tiercel/num.h"
#include "tiercel/stats.h"

#include "cmd/cmd_priv.h"

#define REF_MIN (16 * 1024) /* shorter values are copied into the reply: cheaper than a segment of their own */

/* ---- errors ---- */

void call_error(struct call *c, const char *text)
{
    c->failed = true;
    call_count_error(c, text);
    reply_error(&c->r, text);
}

void call_count_error(struct call *c, const char *text)
{
    stats_inc(c->w->stats, STAT_total_error_replies);
    errstat_add(c->w, text);
}

void call_errorf(struct call *c, const char *fmt, ...)
{
    struct buf text;
    va_list ap;

    buf_init(&text, MEM_OTHER);
    va_start(ap, fmt);
    buf_vprintf(&text, fmt, ap);
    va_end(ap);
    buf_byte(&text, '\0');
    call_error(c, text.ptr);
    buf_deinit(&text);
}

void call_syntax(struct call *c)
{
    call_error(c, "ERR syntax error");
}

void call_wrongtype(struct call *c)
{
    call_error(c, "WRONGTYPE Operation against a key holding the wrong kind of value");
}

void call_not_int(struct call *c)
{
    call_error(c, "ERR value is not an integer or out of range");
}

bool call_arg_i64(struct call *c, int arg, int64_t *out, const char *err)
{
    if (num_parse_i64(c->argv[arg], out))
        return true;
    call_error(c, err ? err : "ERR value is not an integer or out of range");
    return false;
}

/* ---- keys ---- */

static struct mem_shard *shard_of(const struct call *c, const struct call_key *k)
{
    return mem_shard_of(c->w->tier->mem, k->key.hash);
}

struct object *ks_read(struct call *c, int i)
{
    struct call_key *k = &c->keys[i];

    if (LIKELY(k->obj != NULL)) {
        stats_inc(c->w->stats, STAT_keyspace_hits);
        tier_touch_locked(c->w, k->obj);
    } else {
        ks_lookup(c, i);
    }
    return k->obj;
}

bool ks_lookup(struct call *c, int i)
{
    hash_expire(c, i);
    if (ks_exists(c, i)) {
        stats_inc(c->w->stats, STAT_keyspace_hits);
        return true;
    }
    stats_inc(c->w->stats, STAT_keyspace_misses);
    ks_notify(c, i, NOTIFY_MISS, "keymiss");
    return false;
}

struct object *ks_peek(struct call *c, int i)
{
    return c->keys[i].obj;
}

bool ks_exists(const struct call *c, int i)
{
    return c->keys[i].obj || c->keys[i].on_disk;
}

/* A key that is named twice was resolved before its first value was stored. */
static bool key_is_new(const struct call *c, int i)
{
    const struct call_key *k = &c->keys[i];

    return !ks_exists(c, i) && !(c->nkeys > 1 && mem_find_locked(c->w->tier->mem, shard_of(c, k), &k->key));
}

void ks_put(struct call *c, int i, struct object *o)
{
    struct call_key *k = &c->keys[i];

    if (notify_wants(c->w->cmd, NOTIFY_NEW) && key_is_new(c, i))
        notify_publish(c->w->cmd, &k->key, "new");
    tier_put_locked(c->w, shard_of(c, k), &k->key, o);
    k->obj = o;
    k->on_disk = false;
    k->kept = true;
    block_signal(c, k);
}

bool ks_delete(struct call *c, int i)
{
    struct call_key *k = &c->keys[i];

    k->obj = NULL;
    k->on_disk = false;
    block_signal(c, k);
    return tier_delete_locked(c->w, shard_of(c, k), &k->key, TIER_DELETED);
}

void ks_changed(struct call *c, int i)
{
    struct call_key *k = &c->keys[i];

    if (object_len(k->obj) == 0 && k->obj->type != OBJ_STREAM) {
        ks_delete(c, i);
        ks_notify(c, i, NOTIFY_GENERIC, "del");
        return;
    }
    tier_changed_locked(c->w, shard_of(c, k), &k->key, k->obj, k->obj, object_expire(k->obj) != 0);
    tier_touch_locked(c->w, k->obj);
    if (k->obj->type != OBJ_STRING)
        block_signal(c, k);
}

void ks_changed_quietly(struct call *c, int i)
{
    struct call_key *k = &c->keys[i];

    tier_changed_quietly_locked(c->w, shard_of(c, k), &k->key, k->obj, k->obj, object_expire(k->obj) != 0);
    tier_touch_locked(c->w, k->obj);
}

bool ks_is(struct call *c, const struct object *o, enum obj_type type)
{
    if (!o || o->type == type)
        return true;
    call_wrongtype(c);
    return false;
}

struct obj_limits cmd_obj_limits(const struct conf *conf)
{
    return (struct obj_limits){
        .hash_entries = (size_t)conf->hash_max_listpack_entries,
        .hash_value = (size_t)conf->hash_max_listpack_value,
        .set_intset = (size_t)conf->set_max_intset_entries,
        .zset_entries = (size_t)conf->zset_max_listpack_entries,
        .zset_value = (size_t)conf->zset_max_listpack_value,
        .list_size = (int)conf->list_max_listpack_size,
        .stream_bytes = (size_t)conf->stream_node_max_bytes,
        .stream_entries = (size_t)conf->stream_node_max_entries,
    };
}

struct obj_limits ks_limits(const struct call *c)
{
    return cmd_obj_limits(c->w->conf);
}

void ks_expire(struct call *c, int i, int64_t expire_ms)
{
    struct call_key *k = &c->keys[i];
    struct object *old = k->obj;
    bool had = object_expire(old) != 0;

    if (expire_ms != 0 && expire_ms <= c->now_ms) {
        ks_delete(c, i);
        return;
    }
    k->obj = object_set_expire(old, expire_ms);
    tier_changed_locked(c->w, shard_of(c, k), &k->key, old, k->obj, had);
}

/* ---- strings ---- */

bool ks_string(struct call *c, struct object *o, char scratch[OBJ_SCRATCH], struct slice *out)
{
    if (o->type != OBJ_STRING) {
        call_wrongtype(c);
        return false;
    }
    if (object_string(o, c->w->codec, scratch, out) == ST_OK)
        return true;
    call_error(c, "ERR the stored value is damaged");
    return false;
}

void ks_reply_string(struct call *c, struct object *o)
{
    char scratch[OBJ_SCRATCH];
    struct slice value;

    if (o->type == OBJ_STRING && o->enc == ENC_RAW) {
        struct rcbuf *b = object_ptr(o);
        if (b->raw_len != 0 || b->len >= REF_MIN) {
            reply_bulk_ref(&c->r, rcbuf_ref(b));
            return;
        }
    }
    if (ks_string(c, o, scratch, &value))
        reply_bulk(&c->r, value);
}

/* The common overwrite, for which the table and the allocator have nothing to do: of what may be overwritten. */
static struct object *kept_object(const struct call *c, int i)
{
    const struct call_key *k = &c->keys[i];

    return k->kept && c->nkeys == 1 ? k->obj : NULL; /* of one that is named twice, obj is what it was before */
}

static void overwritten(struct call *c, int i, bool had_expire)
{
    struct call_key *k = &c->keys[i];

    tier_changed_locked(c->w, shard_of(c, k), &k->key, k->obj, k->obj, had_expire);
    tier_touch_locked(c->w, k->obj);
}

void ks_store_int(struct call *c, int i, int64_t value, int64_t expire_ms)
{
    struct object *o = kept_object(c, i);
    bool had_expire = o && o->flags & OBJ_F_EXPIRE;

    if (o && object_overwrite_int(o, value, expire_ms))
        overwritten(c, i, had_expire);
    else
        ks_put(c, i, object_new_int(&c->keys[i].key, value, expire_ms, 0));
}

static void store_string(struct call *c, int i, struct slice value, int64_t expire_ms)
{
    struct object *o = kept_object(c, i);
    bool had_expire = o && o->flags & OBJ_F_EXPIRE;

    if (o && object_overwrite(o, value, expire_ms))
        overwritten(c, i, had_expire);
    else
        ks_put(c, i, object_new_string(&c->keys[i].key, value, expire_ms, 0));
}

void ks_store_arg(struct call *c, int i, int arg, int64_t expire_ms)
{
    struct slice value = c->argv[arg];
    struct rcbuf *packed = NULL;
    int64_t number;

    if (value.len <= NUM_I64_MAX && num_parse_i64(value, &number)) {
        ks_store_int(c, i, number, expire_ms);
        return;
    }
    if (c->packed && c->packed_arg == arg) {
        packed = c->packed;
        c->packed = NULL;
    } else if (c->packed_arg != arg) { /* dispatch has not tried it */
        packed = tier_pack(c->w, value);
    }
    if (packed)
        ks_put(c, i, object_new_rcbuf(&c->keys[i].key, packed, expire_ms, 0));
    else
        store_string(c, i, value, expire_ms);
}

struct object *ks_string_from(struct call *c, int i, struct slice value, int64_t expire_ms)
{
    const struct key *key = &c->keys[i].key;
    struct rcbuf *packed = tier_pack(c->w, value);

    return packed ? object_new_rcbuf(key, packed, expire_ms, 0) : object_new_string(key, value, expire_ms, 0);
}

char *ks_edit(struct call *c, int i, size_t len, struct ks_edit *e)
{
    struct call_key *k = &c->keys[i];
    char *bytes;

    *e = (struct ks_edit){.old = k->obj, .obj = k->obj};
    if (!ks_is(c, k->obj, OBJ_STRING))
        return NULL;
    if (!k->obj)
        e->obj = object_new_string(&k->key, SLICE_LIT(""), 0, 0);
    bytes = object_edit(&e->obj, c->w->codec, len);
    if (!bytes)
        call_error(c, "ERR the stored value is damaged");
    return bytes;
}

void ks_edit_pack(struct call *c, int i, struct ks_edit *e)
{
    char scratch[OBJ_SCRATCH];
    struct slice plain;
    struct object *o;

    if (object_string(e->obj, c->w->codec, scratch, &plain) != ST_OK)
        return;
    struct rcbuf *packed = tier_pack(c->w, plain);
    if (!packed)
        return;
    o = object_new_rcbuf(&c->keys[i].key, packed, object_expire(e->obj), object_origin(e->obj));
    o->access = e->obj->access;
    o->flags |= OBJ_F_MODIFIED;
    object_free(e->obj);
    e->obj = o;
}

void ks_edited(struct call *c, int i, const struct ks_edit *e)
{
    struct call_key *k = &c->keys[i];

    if (!e->old) {
        ks_put(c, i, e->obj);
        return;
    }
    k->obj = e->obj;
    tier_changed_locked(c->w, shard_of(c, k), &k->key, e->old, e->obj, object_expire(e->obj) != 0);
    tier_touch_locked(c->w, e->obj);
}
