#include "tiercel/object.h"

#include "object_priv.h"
#include "tiercel/num.h"

_Static_assert(sizeof(struct object) == 8, "the header is 8 bytes");

/* Longer strings are "raw" in OBJECT ENCODING, as in Redis. */
#define EMBSTR_MAX 44

/* ---- layout --------------------------------------------------------------------------
 * Offsets follow from the header alone. Fields are where they fall: what is read goes through memcpy(). */

/* An expiry takes six bytes, which is a size class less than with eight for many an object: 47 bits for
 * milliseconds last until the year 6429. A later one is behind everything else, and the 48th bit says so for as
 * long as the object lives. */
#define EXPIRE_BYTES 6
#define EXPIRE_FAR (1ULL << 47)

static inline char *at(const struct object *o, size_t offset)
{
    return (char *)(uintptr_t)o + offset;
}

static inline size_t origin_offset(const struct object *o)
{
    return sizeof(*o) + (o->flags & OBJ_F_EXPIRE_ROOM ? EXPIRE_BYTES : 0);
}

static inline size_t payload_offset(const struct object *o)
{
    return origin_offset(o) + (o->flags & OBJ_F_ORIGIN ? 8 : 0);
}

static inline size_t klen_offset(const struct object *o)
{
    return payload_offset(o) + (o->enc == ENC_EMBED ? 0 : 8);
}

static inline size_t vlen_offset(const struct object *o)
{
    return klen_offset(o) + (o->flags & OBJ_F_LONGKEY ? 4 : 0);
}

static inline size_t key_offset(const struct object *o)
{
    return vlen_offset(o) + (o->enc == ENC_EMBED ? 2 : 0);
}

static inline size_t key_len(const struct object *o)
{
    uint32_t len = o->klen8;
    if (UNLIKELY(o->flags & OBJ_F_LONGKEY))
        memcpy(&len, at(o, klen_offset(o)), sizeof(len));
    return len;
}

struct slice object_key(const struct object *o)
{
    return SLICE(at(o, key_offset(o)), key_len(o));
}

static uint64_t expire_field(const struct object *o)
{
    uint32_t low;
    uint16_t high;
    memcpy(&low, at(o, sizeof(*o)), sizeof(low));
    memcpy(&high, at(o, sizeof(*o) + sizeof(low)), sizeof(high));
    return (uint64_t)high << 32 | low;
}

static bool expire_is_far(const struct object *o)
{
    return o->flags & OBJ_F_EXPIRE_ROOM && expire_field(o) & EXPIRE_FAR;
}

/* Where key and value end. */
static size_t end_offset(const struct object *o)
{
    uint16_t value_len = 0;
    if (o->enc == ENC_EMBED)
        memcpy(&value_len, at(o, vlen_offset(o)), sizeof(value_len));
    return key_offset(o) + key_len(o) + value_len;
}

int64_t object_expire(const struct object *o)
{
    if (!(o->flags & OBJ_F_EXPIRE))
        return 0;
    uint64_t ms = expire_field(o);
    if (UNLIKELY(ms & EXPIRE_FAR))
        memcpy(&ms, at(o, end_offset(o)), sizeof(ms));
    return (int64_t)ms;
}

static bool expire_needs_far(int64_t ms)
{
    return (uint64_t)ms >= EXPIRE_FAR;
}

/* The lengths are set, and there is room. */
static void expire_store(struct object *o, int64_t ms, bool far)
{
    uint64_t v = far ? EXPIRE_FAR : (uint64_t)ms;
    uint32_t low = (uint32_t)v;
    uint16_t high = (uint16_t)(v >> 32);
    memcpy(at(o, sizeof(*o)), &low, sizeof(low));
    memcpy(at(o, sizeof(*o) + sizeof(low)), &high, sizeof(high));
    if (UNLIKELY(far))
        memcpy(at(o, end_offset(o)), &ms, sizeof(ms));
    o->flags |= OBJ_F_EXPIRE;
}

void object_set_origin(struct object *o, uint64_t origin)
{
    CHECK(o->flags & OBJ_F_ORIGIN);
    memcpy(at(o, origin_offset(o)), &origin, sizeof(origin));
}

uint64_t object_origin(const struct object *o)
{
    uint64_t origin = 0;
    if (o->flags & OBJ_F_ORIGIN)
        memcpy(&origin, at(o, origin_offset(o)), sizeof(origin));
    return origin;
}

void *object_ptr(const struct object *o)
{
    void *ptr;
    CHECK(o->enc != ENC_EMBED && o->enc != ENC_INT);
    memcpy(&ptr, at(o, payload_offset(o)), sizeof(ptr));
    return ptr;
}

void object_set_ptr(struct object *o, enum obj_enc enc, void *ptr)
{
    CHECK(o->type != OBJ_STRING && o->enc != ENC_EMBED && enc >= ENC_PTR);
    o->enc = enc;
    memcpy(at(o, payload_offset(o)), &ptr, sizeof(ptr));
}

int64_t object_int(const struct object *o)
{
    int64_t v;
    CHECK(o->enc == ENC_INT);
    memcpy(&v, at(o, payload_offset(o)), sizeof(v));
    return v;
}

static char *embedded_at(const struct object *o)
{
    return at(o, key_offset(o) + key_len(o));
}

/* What is behind the key: all of an embedded value. */
static struct slice embedded(const struct object *o)
{
    uint16_t len;
    memcpy(&len, at(o, vlen_offset(o)), sizeof(len));
    return SLICE(embedded_at(o), len);
}

struct slice object_stored(const struct object *o, size_t *raw_len)
{
    *raw_len = 0;
    if (o->enc == ENC_RAW) {
        const struct rcbuf *b = object_ptr(o);
        *raw_len = b->raw_len;
        return rcbuf_slice(b);
    }
    CHECK(o->enc == ENC_EMBED);
    struct slice value = embedded(o);
    if (o->flags & OBJ_F_PACKED) {
        uint32_t raw;
        memcpy(&raw, value.ptr, sizeof(raw));
        *raw_len = raw;
        value = SLICE(value.ptr + EMBED_RAW_LEN, value.len - EMBED_RAW_LEN);
    }
    return value;
}

/* ---- making them --------------------------------------------------------------------- */

/* An object with everything but its value; value_len is of an embedded one. */
static struct object *object_new(enum obj_type type, enum obj_enc enc, const struct key *key, size_t value_len,
                                 int64_t expire_ms, uint64_t origin)
{
    struct object head = {.type = type, .enc = enc, .inc = key->inc};
    if (expire_ms)
        head.flags |= OBJ_F_EXPIRE | OBJ_F_EXPIRE_ROOM;
    if (origin)
        head.flags |= OBJ_F_ORIGIN;
    if (key->len > UINT8_MAX)
        head.flags |= OBJ_F_LONGKEY;
    else
        head.klen8 = key->len & UINT8_MAX;

    size_t key_at = key_offset(&head);
    bool far = expire_needs_far(expire_ms);
    struct object *o = mem_alloc(MEM_DATA, key_at + key->len + value_len + (far ? sizeof(expire_ms) : 0));
    *o = head;
    if (origin)
        memcpy(at(o, origin_offset(o)), &origin, sizeof(origin));
    if (head.flags & OBJ_F_LONGKEY)
        memcpy(at(o, klen_offset(o)), &key->len, sizeof(key->len));
    if (enc == ENC_EMBED) {
        uint16_t len = (uint16_t)value_len;
        memcpy(at(o, vlen_offset(o)), &len, sizeof(len));
    }
    if (key->len)
        memcpy(at(o, key_at), key->ptr, key->len);
    if (expire_ms)
        expire_store(o, expire_ms, far);
    return o;
}

static struct object *object_new_embed(const struct key *key, struct slice value, int64_t expire_ms, uint64_t origin)
{
    struct object *o = object_new(OBJ_STRING, ENC_EMBED, key, value.len, expire_ms, origin);
    if (value.len)
        memcpy(at(o, key_offset(o) + key->len), value.ptr, value.len);
    return o;
}

struct object *object_new_ptr(const struct key *key, enum obj_type type, enum obj_enc enc, void *ptr, int64_t expire_ms,
                              uint64_t origin)
{
    struct object *o = object_new(type, enc, key, 0, expire_ms, origin);
    memcpy(at(o, payload_offset(o)), &ptr, sizeof(ptr));
    return o;
}

struct object *object_new_packed(const struct key *key, struct slice frame, uint32_t raw_len, int64_t expire_ms,
                                 uint64_t origin)
{
    struct object *o = object_new(OBJ_STRING, ENC_EMBED, key, EMBED_RAW_LEN + frame.len, expire_ms, origin);
    char *value = at(o, key_offset(o) + key->len);
    memcpy(value, &raw_len, sizeof(raw_len));
    memcpy(value + EMBED_RAW_LEN, frame.ptr, frame.len);
    o->flags |= OBJ_F_PACKED;
    return o;
}

struct object *object_new_string(const struct key *key, struct slice value, int64_t expire_ms, uint64_t origin)
{
    if (object_embeds(value.len, 0))
        return object_new_embed(key, value, expire_ms, origin);
    return object_new_ptr(key, OBJ_STRING, ENC_RAW, rcbuf_copy(value), expire_ms, origin);
}

struct object *object_new_int(const struct key *key, int64_t value, int64_t expire_ms, uint64_t origin)
{
    struct object *o = object_new(OBJ_STRING, ENC_INT, key, 0, expire_ms, origin);
    memcpy(at(o, payload_offset(o)), &value, sizeof(value));
    return o;
}

struct object *object_new_rcbuf(const struct key *key, struct rcbuf *value, int64_t expire_ms, uint64_t origin)
{
    struct object *o;
    if (!object_embeds(value->len, value->raw_len)) {
        o = object_new_ptr(key, OBJ_STRING, ENC_RAW, value, expire_ms, origin);
        if (value->raw_len)
            o->flags |= OBJ_F_PACKED;
        return o;
    }
    if (value->raw_len)
        o = object_new_packed(key, rcbuf_slice(value), (uint32_t)value->raw_len, expire_ms, origin);
    else
        o = object_new_embed(key, rcbuf_slice(value), expire_ms, origin);
    rcbuf_unref(value);
    return o;
}

struct object *object_new_none(const struct key *key, int64_t expire_ms, uint64_t origin)
{
    return object_new(OBJ_NONE, ENC_EMBED, key, 0, expire_ms, origin);
}

static size_t shell_len(const struct object *o)
{
    return end_offset(o) + (expire_is_far(o) ? sizeof(int64_t) : 0);
}

static void object_free_shell(struct object *o)
{
    mem_free_sized(MEM_DATA, o, shell_len(o));
}

void object_free(struct object *o)
{
    if (!o)
        return;
    const struct object_ops *ops = object_ops_of(o->type);
    if (o->enc == ENC_RAW)
        rcbuf_unref(object_ptr(o));
    else if (UNLIKELY(ops != NULL))
        value_destroy(ops, o->enc, object_ptr(o));
    object_free_shell(o);
}

/* ---- the same value in another object -------------------------------------------------- */

/* What the value and its use say, whatever the key's name and fields are. */
static void traits_copy(struct object *to, const struct object *from)
{
    to->flags |= from->flags & (from->type == OBJ_STRING ? OBJ_F_PACKED | OBJ_F_MODIFIED : OBJ_F_MODIFIED);
    to->access = from->access;
}

/* A new object with the stored value of `o`: what it points at belongs to both, the caller
 * sees to that. */
static struct object *object_clone_shell(const struct object *o, const struct key *key, int64_t expire_ms,
                                         uint64_t origin)
{
    struct slice value = o->enc == ENC_EMBED ? embedded(o) : SLICE_NONE;
    struct object *n = object_new(o->type, o->enc, key, value.len, expire_ms, origin);
    if (o->enc != ENC_EMBED)
        memcpy(at(n, payload_offset(n)), at(o, payload_offset(o)), 8);
    else if (value.len)
        memcpy(at(n, key_offset(n) + key->len), value.ptr, value.len);
    traits_copy(n, o);
    return n;
}

struct object *object_rename(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin)
{
    struct object *n = object_clone_shell(o, key, expire_ms, origin);
    object_free_shell(o);
    return n;
}

struct object *object_copy(const struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin)
{
    CHECK(o->enc != ENC_PTR);
    struct object *n = object_clone_shell(o, key, expire_ms, origin);
    const struct object_ops *ops = object_ops_of(o->type);
    if (o->enc == ENC_RAW)
        rcbuf_ref(object_ptr(o));
    else if (ops)
        object_set_ptr(n, o->enc, ops->copy(o->enc, object_ptr(o)));
    return n;
}

/* May it have that expiry, where it is? */
static bool expire_fits(const struct object *o, int64_t ms)
{
    return ms == 0 || (o->flags & OBJ_F_EXPIRE_ROOM && (!expire_needs_far(ms) || expire_is_far(o)));
}

struct object *object_set_expire(struct object *o, int64_t expire_ms)
{
    if (!expire_ms) {
        o->flags &= (uint8_t)~OBJ_F_EXPIRE; /* the field stays: an expiry often comes back */
        return o;
    }
    if (!expire_fits(o, expire_ms)) {
        struct slice name = object_key(o);
        struct key key = {.ptr = name.ptr, .len = (uint32_t)name.len, .inc = o->inc};
        return object_rename(o, &key, expire_ms, object_origin(o));
    }
    expire_store(o, expire_ms, expire_is_far(o));
    return o;
}

/* After the value was replaced. */
static void overwritten(struct object *o, int64_t expire_ms)
{
    o->flags &= (uint8_t) ~(OBJ_F_MODIFIED | OBJ_F_EXPIRE);
    if (expire_ms)
        expire_store(o, expire_ms, expire_is_far(o));
}

bool object_overwrite(struct object *o, struct slice value, int64_t expire_ms)
{
    if (o->type != OBJ_STRING || o->enc != ENC_EMBED || o->flags & (OBJ_F_PACKED | OBJ_F_ORIGIN) ||
        value.len > OBJ_EMBED_MAX || !expire_fits(o, expire_ms))
        return false;
    size_t at_value = key_offset(o) + key_len(o), bytes = shell_len(o);
    if (!mem_is_as(bytes - embedded(o).len + value.len, bytes))
        return false;
    uint16_t len = (uint16_t)value.len;
    memcpy(at(o, vlen_offset(o)), &len, sizeof(len));
    memcpy(at(o, at_value), value.ptr, value.len);
    overwritten(o, expire_ms);
    return true;
}

bool object_overwrite_int(struct object *o, int64_t value, int64_t expire_ms)
{
    if (o->enc != ENC_INT || o->flags & OBJ_F_ORIGIN || !expire_fits(o, expire_ms))
        return false;
    memcpy(at(o, payload_offset(o)), &value, sizeof(value));
    overwritten(o, expire_ms);
    return true;
}

size_t object_bytes(const struct object *o)
{
    size_t bytes = mem_usable_sized(o, shell_len(o));
    const struct object_ops *ops = object_ops_of(o->type);
    if (o->enc == ENC_RAW)
        bytes += mem_usable(object_ptr(o));
    else if (UNLIKELY(ops != NULL))
        bytes += ops->bytes(o->enc, object_ptr(o));
    return bytes;
}

size_t object_plain_len(const struct object *o)
{
    return o->type == OBJ_STRING ? object_string_len(o) : object_stored_len(o);
}

size_t object_stored_len(const struct object *o)
{
    const struct object_ops *ops = object_ops_of(o->type);
    size_t raw_len;

    if (ops)
        return ops->stored(o->enc, object_ptr(o));
    return o->enc == ENC_INT ? sizeof(int64_t) : object_stored(o, &raw_len).len;
}

/* ---- strings --------------------------------------------------------------------------- */

size_t object_string_len(const struct object *o)
{
    CHECK(o->type == OBJ_STRING);
    if (o->enc == ENC_INT) {
        char text[NUM_I64_MAX];
        return num_format_i64(text, object_int(o));
    }
    size_t raw_len;
    struct slice stored = object_stored(o, &raw_len);
    return raw_len ? raw_len : stored.len;
}

enum status object_string(const struct object *o, struct codec *codec, char scratch[OBJ_SCRATCH], struct slice *out)
{
    CHECK(o->type == OBJ_STRING);
    if (LIKELY(o->enc == ENC_EMBED && !(o->flags & OBJ_F_PACKED))) {
        *out = embedded(o);
        return ST_OK;
    }
    if (o->enc == ENC_INT) {
        *out = SLICE(scratch, num_format_i64(scratch, object_int(o)));
        return ST_OK;
    }
    size_t raw_len;
    *out = object_stored(o, &raw_len);
    if (LIKELY(raw_len == 0))
        return ST_OK;
    return codec_unpack_scratch(codec, *out, raw_len, out);
}

/* Its bytes in a buffer that is nobody else's, zeros behind them up to `len`. */
static struct rcbuf *edit_copy(struct slice plain, size_t len)
{
    struct rcbuf *b = rcbuf_create(len);
    if (plain.len)
        memcpy(b->data, plain.ptr, plain.len);
    memset(b->data + plain.len, 0, len - plain.len);
    return b;
}

static char *edit_raw(struct object *o, size_t len)
{
    struct rcbuf *b = object_ptr(o);
    if (!rcbuf_is_mine(b)) {
        struct rcbuf *mine = edit_copy(rcbuf_slice(b), len > b->len ? len : b->len);
        rcbuf_unref(b);
        b = mine;
    } else if (len > b->len) {
        size_t before = b->len;
        b = rcbuf_resize(b, len);
        memset(b->data + before, 0, len - before);
    }
    memcpy(at(o, payload_offset(o)), &b, sizeof(b));
    return b->data;
}

char *object_edit(struct object **o, struct codec *codec, size_t len)
{
    char scratch[OBJ_SCRATCH];
    struct slice plain, name = object_key(*o);
    struct key key = {.ptr = name.ptr, .len = (uint32_t)name.len, .inc = (*o)->inc};

    if (object_string(*o, codec, scratch, &plain) != ST_OK)
        return NULL;
    (*o)->flags |= OBJ_F_MODIFIED;
    bool packed = (*o)->flags & OBJ_F_PACKED;
    if ((*o)->enc == ENC_RAW && !packed)
        return edit_raw(*o, len);
    if ((*o)->enc == ENC_EMBED && !packed && len <= plain.len)
        return embedded_at(*o);
    struct object *n = object_new_rcbuf(&key, edit_copy(plain, len > plain.len ? len : plain.len), object_expire(*o),
                                        object_origin(*o));
    n->access = (*o)->access;
    n->flags |= OBJ_F_MODIFIED;
    object_free(*o);
    *o = n;
    return n->enc == ENC_RAW ? ((struct rcbuf *)object_ptr(n))->data : embedded_at(n);
}

const char *object_encoding_name(const struct object *o)
{
    const struct object_ops *ops = object_ops_of(o->type);

    if (ops)
        return ops->encoding(o->enc);
    if (o->type != OBJ_STRING)
        return "unknown";
    if (o->enc == ENC_INT)
        return "int";
    return o->flags & OBJ_F_MODIFIED || object_string_len(o) > EMBSTR_MAX ? "raw" : "embstr";
}

/* ---- other types ------------------------------------------------------------------------ */

const struct object_ops *object_ops_of(enum obj_type type)
{
    static const struct object_ops *const ops[16] = {
        [OBJ_LIST] = &list_ops, [OBJ_SET] = &set_ops,       [OBJ_HASH] = &hash_ops,
        [OBJ_ZSET] = &zset_ops, [OBJ_STREAM] = &stream_ops,
    };

    return ops[type];
}

const char *object_type_name(enum obj_type type)
{
    const struct object_ops *ops = object_ops_of(type);

    return ops ? ops->name : type == OBJ_STRING ? "string" : "none";
}

size_t object_len(const struct object *o)
{
    const struct object_ops *ops = object_ops_of(o->type);

    return ops ? ops->len(o->enc, object_ptr(o)) : 1;
}
