#include "object_priv.h"
#include "tiercel/dict.h"
#include "tiercel/pace.h"
#include "tiercel/rdb.h"

/* | version 1 | form 1 | by form: |
 *   PLAIN   the bytes
 *   INT     int64 8
 *   PACKED  raw length 8 | one zstd frame
 *   REDIS   a type byte and a body as Redis has them in its RDB files (rdb.h)
 * Numbers are little endian, as is every machine this runs on. */
enum serial_form { FORM_PLAIN = 0, FORM_INT = 1, FORM_PACKED = 2, FORM_REDIS = 3 };

#define FORM_MODIFIED 0x80 /* OBJ_F_MODIFIED */
#define FORM_MASK 0x7f

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the disk format is little endian");

static void prefix_write(const struct object *o, enum serial_form form, struct buf *out)
{
    buf_byte(out, OBJ_SERIAL_VERSION);
    buf_byte(out, (char)(form | (o->flags & OBJ_F_MODIFIED ? FORM_MODIFIED : 0)));
}

/* The prefix of a string's stored bytes, which follow it as they are. */
static struct slice stored_prefix_write(const struct object *o, struct buf *out)
{
    size_t raw_len;
    struct slice stored = object_stored(o, &raw_len);
    prefix_write(o, raw_len ? FORM_PACKED : FORM_PLAIN, out);
    if (raw_len) {
        uint64_t raw = raw_len;
        buf_append(out, &raw, sizeof(raw));
    }
    return stored;
}

void object_serialise(const struct object *o, struct buf *out)
{
    const struct object_ops *ops = object_ops_of(o->type);
    if (ops) {
        prefix_write(o, FORM_REDIS, out);
        value_save(ops, o->enc, object_ptr(o), out);
        return;
    }
    CHECK(o->type == OBJ_STRING);
    if (o->enc == ENC_INT) {
        int64_t v = object_int(o);
        prefix_write(o, FORM_INT, out);
        buf_append(out, &v, sizeof(v));
        return;
    }
    buf_slice_append(out, stored_prefix_write(o, out));
}

void value_save(const struct object_ops *ops, enum obj_enc enc, const void *value, struct buf *out)
{
    uint64_t at = 0;

    if (ops->save)
        ops->save(enc, value, out);
    else
        CHECK(ops->save_part(enc, value, &at, SIZE_MAX, out));
}

bool dict_save_part(const struct dict *d, uint64_t *at, size_t bytes, void (*fn)(void *out, struct dict_entry *e),
                    struct buf *out)
{
    uint64_t cursor = *at ? *at - 1 : 0;
    size_t start = out->len;

    do
        cursor = dict_scan(d, cursor, fn, out);
    while (cursor != 0 && out->len - start < bytes);
    *at = cursor + 1;
    return cursor == 0;
}

bool object_is_parted(const struct object *o)
{
    return object_ops_of(o->type) != NULL;
}

bool object_serialise_part(const struct object *o, struct object_parts *parts, size_t bytes, struct buf *out)
{
    const struct object_ops *ops = object_ops_of(o->type);

    if (!ops->save_part) {
        object_serialise(o, out);
        return true;
    }
    if (parts->at == 0)
        prefix_write(o, FORM_REDIS, out);
    return ops->save_part(o->enc, object_ptr(o), &parts->at, bytes, out);
}

bool object_serial_ref(const struct object *o, struct buf *prefix, struct rcbuf **value)
{
    if (o->type != OBJ_STRING || o->enc != ENC_RAW)
        return false;
    stored_prefix_write(o, prefix);
    *value = rcbuf_ref(object_ptr(o));
    return true;
}

static struct rcbuf *copy_paced(struct slice from, struct pace *pace)
{
    struct rcbuf *b = rcbuf_create(from.len);

    pace_copy(pace, b->data, from.ptr, from.len);
    return b;
}

static struct object *parse_packed(const struct key *key, struct slice in, int64_t expire_ms, uint64_t origin,
                                   struct pace *pace)
{
    uint64_t raw_len;
    if (in.len <= sizeof(raw_len))
        return NULL;
    memcpy(&raw_len, in.ptr, sizeof(raw_len));
    struct slice frame = SLICE(in.ptr + sizeof(raw_len), in.len - sizeof(raw_len));
    /* Only what got smaller is packed. The frame itself is judged when it is unpacked. */
    if (raw_len <= frame.len)
        return NULL;
    if (object_embeds(frame.len, raw_len))
        return object_new_packed(key, frame, (uint32_t)raw_len, expire_ms, origin);
    struct rcbuf *b = copy_paced(frame, pace);
    b->raw_len = raw_len;
    return object_new_rcbuf(key, b, expire_ms, origin);
}

static struct object *parse_string(const struct key *key, int form, struct slice in, int64_t expire_ms, uint64_t origin,
                                   struct pace *pace)
{
    int64_t v;
    switch (form) {
    case FORM_PLAIN:
        if (!object_embeds(in.len, 0))
            return object_new_rcbuf(key, copy_paced(in, pace), expire_ms, origin);
        return object_new_string(key, in, expire_ms, origin);
    case FORM_PACKED: return parse_packed(key, in, expire_ms, origin, pace);
    case FORM_INT:
        if (in.len != sizeof(v))
            return NULL;
        memcpy(&v, in.ptr, sizeof(v));
        return object_new_int(key, v, expire_ms, origin);
    default: return NULL;
    }
}

enum status object_parse(enum obj_type type, const struct key *key, struct slice serial, int64_t expire_ms,
                         uint64_t origin, struct object **out)
{
    return object_parse_paced(type, key, serial, expire_ms, origin, NULL, out);
}

enum status object_parse_paced(enum obj_type type, const struct key *key, struct slice serial, int64_t expire_ms,
                               uint64_t origin, struct pace *pace, struct object **out)
{
    *out = NULL;
    if (serial.len < 2 || serial.ptr[0] != OBJ_SERIAL_VERSION)
        return ST_CORRUPT;
    int form = (unsigned char)serial.ptr[1] & FORM_MASK;
    struct slice in = SLICE(serial.ptr + 2, serial.len - 2);
    struct object *o = NULL;
    if (type == OBJ_STRING)
        o = parse_string(key, form, in, expire_ms, origin, pace);
    else if (form == FORM_REDIS)
        o = rdb_parse_paced(in, NULL, key, expire_ms, origin, pace);
    if (o && o->type != type) {
        object_free(o);
        o = NULL;
    }
    if (!o)
        return ST_CORRUPT;
    if ((unsigned char)serial.ptr[1] & FORM_MODIFIED)
        o->flags |= OBJ_F_MODIFIED;
    *out = o;
    return ST_OK;
}
