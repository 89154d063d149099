#ifndef TIERCEL_OBJECT_H
#define TIERCEL_OBJECT_H

#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/check.h"
#include "tiercel/codec.h"
#include "tiercel/rcbuf.h"
#include "tiercel/slice.h"
#include "tiercel/status.h"

/* A key with its value. One allocation for a small string: header, optional fields, key
 * and value together; larger values and other types hang on a pointer behind the header.
 * An object is reached through its shard's table and touched only under the shard's lock;
 * nothing here locks.
 *
 *   | header 8 | expire_ms 6? | origin 8? | pointer or int64 8? | key length 4? | value length 2? | key | value? | expire_ms 8? |
 */
enum obj_type {
    /* The numbers are in the disk format. */
    OBJ_NONE = 0, /* a negative entry: the upstream lately did not have the key */
    OBJ_STRING = 1,
    OBJ_LIST = 2,
    OBJ_SET = 3,
    OBJ_ZSET = 4,
    OBJ_HASH = 5,
    OBJ_STREAM = 6,
    OBJ_RESIDENCY = 15 /* not a value: the tier layer's record of a key that is under way (tier.h) */
};

enum obj_enc {
    ENC_EMBED = 0,    /* string: value behind the key */
    ENC_INT = 1,      /* string: an int64 */
    ENC_RAW = 2,      /* string: a struct rcbuf */
    ENC_PTR = 3,      /* OBJ_RESIDENCY */
    ENC_LISTPACK = 4, /* hash, sorted set: a listpack */
    ENC_INTSET = 5,   /* set: sorted integers */
    ENC_BIG = 6       /* any type but string: a structure of its own */
};

#define OBJ_F_EXPIRE 1u       /* has expire_ms */
#define OBJ_F_ORIGIN 2u       /* has origin: a copy of an upstream's key, and which link vouches for it */
#define OBJ_F_LONGKEY 4u      /* key length in a field of its own */
#define OBJ_F_PACKED 8u       /* the value is a zstd frame: EMBED (raw length in its first 4 bytes) or RAW */
#define OBJ_F_MODIFIED 16u    /* changed in place: OBJECT ENCODING says raw, as after APPEND */
#define OBJ_F_EXPIRE_ROOM 32u /* the layout has the field, whether or not there is an expiry now */
/* The tier layer's; a new object has none of them. */
#define OBJ_F_SAVING 8u   /* not of a string: it is being saved in parts; who changes it clears this */
#define OBJ_F_LEAVING 64u /* its record waits in the disk's queue; it goes with the commit, unless read before */
#define OBJ_F_OWED 128u   /* the disk has an older version, and the journal owes it this one */
#define OBJ_F_REUSED 128u /* of a copy of an upstream key, which no journal has: it was read since it was fetched */

struct object {
    uint8_t type : 4, enc : 4;
    uint8_t flags;
    uint16_t inc;                    /* low bits of the database's incarnation */
    uint32_t access : 24, klen8 : 8; /* eviction data of the policy in force */
};

#define OBJ_EMBED_MAX 4096 /* longer values become a struct rcbuf */

/* A key as a command names it, with what was computed from it once. */
struct key {
    const char *ptr;
    uint32_t len;
    uint16_t db;
    uint16_t inc; /* low bits of incarnation */
    uint64_t hash;
};

static inline struct slice key_slice(const struct key *k)
{
    return SLICE(k->ptr, k->len);
}

/* expire_ms: absolute wall time, 0 = none. origin: 0 = none. */
struct object *object_new_string(const struct key *key, struct slice value, int64_t expire_ms, uint64_t origin);
struct object *object_new_int(const struct key *key, int64_t value, int64_t expire_ms, uint64_t origin);
/* Takes the reference; value->raw_len != 0 means packed. Small values are embedded. */
struct object *object_new_rcbuf(const struct key *key, struct rcbuf *value, int64_t expire_ms, uint64_t origin);
struct object *object_new_none(const struct key *key, int64_t expire_ms, uint64_t origin);
struct object *object_new_ptr(const struct key *key, enum obj_type type, enum obj_enc enc, void *ptr, int64_t expire_ms,
                              uint64_t origin);
void object_free(struct object *o); /* with its value; NULL is ignored */

/* The same value under another name, database or expiry. object_rename moves the value and
 * frees `o`; object_copy copies it (an rcbuf is shared). Access data goes along. */
struct object *object_rename(struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin);
struct object *object_copy(const struct object *o, const struct key *key, int64_t expire_ms, uint64_t origin);

struct slice object_key(const struct object *o);
int64_t object_expire(const struct object *o);             /* 0 = none */
uint64_t object_origin(const struct object *o);            /* 0 = none */
void object_set_origin(struct object *o, uint64_t origin); /* of one that has an origin */
void *object_ptr(const struct object *o);                  /* all but ENC_EMBED and ENC_INT */
int64_t object_int(const struct object *o);                /* ENC_INT */

/* The value has moved, or has another encoding now. What was there is the caller's. Not of a string. */
void object_set_ptr(struct object *o, enum obj_enc enc, void *ptr);

static inline bool object_key_is(const struct object *o, const struct key *k)
{
    struct slice name = object_key(o);
    return o->inc == k->inc && slice_eq(name, key_slice(k));
}

static inline bool object_expired(const struct object *o, int64_t now_ms)
{
    return UNLIKELY(o->flags & OBJ_F_EXPIRE) && object_expire(o) <= now_ms;
}

/* Changes expire_ms where the object has room for one; else makes a larger object, frees
 * the old one, and returns it: the caller puts it in the table. 0 clears. */
struct object *object_set_expire(struct object *o, int64_t expire_ms);

/* Makes these the value and the expiry (0 = none), in place: if it is a plain embedded string that
 * a new object for them would fit in exactly, and without an origin. Else false, and nothing is changed. */
bool object_overwrite(struct object *o, struct slice value, int64_t expire_ms);
/* The same of one that is an int. */
bool object_overwrite_int(struct object *o, int64_t value, int64_t expire_ms);

/* What it costs: the object, its value, allocator slack included. */
size_t object_bytes(const struct object *o);

/* Bytes of the value: as clients see it, and as it is kept, compressed where it is. Of other types than
 * strings both are about what their serial form takes. O(1). */
size_t object_plain_len(const struct object *o);
size_t object_stored_len(const struct object *o);

/* ---- string values ---- */
#define OBJ_SCRATCH 24
size_t object_string_len(const struct object *o); /* plain length; O(1) also when packed */
/* Plain bytes: in the object, in `scratch` (an int) or in the codec's scratch (packed).
 * ST_CORRUPT: a packed value that does not unpack. Valid until the codec's next call. */
enum status object_string(const struct object *o, struct codec *codec, char scratch[OBJ_SCRATCH], struct slice *out);
/* A string's plain bytes, at least `len` of them (zeros behind what there was), to be changed where they are. *o may
 * become another object (the old one is freed, its key and fields are kept): the caller puts it in the table. NULL: it is
 * damaged, and nothing was done. */
char *object_edit(struct object **o, struct codec *codec, size_t len);
/* What OBJECT ENCODING says. */
const char *object_encoding_name(const struct object *o);
const char *object_type_name(enum obj_type type); /* "none", "string", "list", ... */

/* ---- all other types (type_list.h, type_hash.h, ...) ---- */
size_t object_len(const struct object *o); /* elements; O(1). Of a string: 1 */

/* From the start to the stop values of many elements are freed by a thread in the background; before and after it
 * object_free() does all of it. Stop: when no other thread frees any more. */
bool object_lazy_start(void); /* false: no thread is to be had */
void object_lazy_stop(void);
struct object_lazy {
    int64_t pending, pending_bytes, freed; /* values; what those take, about; values since the start */
};
void object_lazy_figures(struct object_lazy *out); /* any thread */
int64_t object_lazy_bytes(void);                   /* pending_bytes */

/* Beyond these a value is no longer kept in its compact encoding: the settings of Redis's names. */
struct obj_limits {
    size_t hash_entries, hash_value;
    size_t set_intset;
    size_t zset_entries, zset_value;
    int list_size;
    size_t stream_bytes, stream_entries;
};

/* ---- serial form: what the disk tier stores as a payload ----
 * A version byte, then the type's own form; of other types than strings that is Redis's (rdb.h). A string that
 * is an rcbuf can be stored without copying it: object_serial_ref() gives the prefix and the rcbuf (referenced)
 * instead. */
#define OBJ_SERIAL_VERSION 2
void object_serialise(const struct object *o, struct buf *out);
/* The same in parts of about `bytes`, for values of many elements: appends the next one; true: it was the last. The
 * object must be as it was at the first one. */
struct object_parts {
    uint64_t at; /* the type's own; 0 = nothing was written yet */
};
bool object_is_parted(const struct object *o); /* not a string */
bool object_serialise_part(const struct object *o, struct object_parts *parts, size_t bytes, struct buf *out);
/* false: not an ENC_RAW string; use object_serialise(). */
bool object_serial_ref(const struct object *o, struct buf *prefix, struct rcbuf **value);
/* ST_CORRUPT: not a serial form of this version (a newer version included). */
enum status object_parse(enum obj_type type, const struct key *key, struct slice serial, int64_t expire_ms,
                         uint64_t origin, struct object **out);
/* The same of what may be large, with rests (pace.h). */
struct pace;
enum status object_parse_paced(enum obj_type type, const struct key *key, struct slice serial, int64_t expire_ms,
                               uint64_t origin, struct pace *pace, struct object **out);

#endif
