#ifndef TIERCEL_OBJECT_PRIV_H
#define TIERCEL_OBJECT_PRIV_H

#include "tiercel/dict.h"
#include "tiercel/num.h"
#include "tiercel/object.h"

/* A packed EMBED value is | raw length 4 | frame |; the value length field counts both. */
#define EMBED_RAW_LEN 4

/* The value as it is stored: plain bytes, or a frame with its raw length (0 = plain).
 * Only for ENC_EMBED and ENC_RAW. */
struct slice object_stored(const struct object *o, size_t *raw_len);

/* An embedded packed string; the frame and its raw length fit. */
struct object *object_new_packed(const struct key *key, struct slice frame, uint32_t raw_len, int64_t expire_ms,
                                 uint64_t origin);

/* Whether a value of this size, packed from raw_len bytes (0 = plain), belongs inside the object. */
static inline bool object_embeds(size_t len, size_t raw_len)
{
    return len + (raw_len ? EMBED_RAW_LEN : 0) <= OBJ_EMBED_MAX && raw_len <= UINT32_MAX;
}

/* What the types other than strings do, each in a file of its own. `value` is what the object's pointer holds. */
struct rdb_reader;
struct object_ops {
    const char *name;                          /* TYPE */
    const char *(*encoding)(enum obj_enc enc); /* OBJECT ENCODING */
    void (*destroy)(enum obj_enc enc, void *value);
    void *(*copy)(enum obj_enc enc, const void *value);
    size_t (*bytes)(enum obj_enc enc, const void *value);  /* of memory; O(1) */
    size_t (*len)(enum obj_enc enc, const void *value);    /* elements; O(1) */
    size_t (*stored)(enum obj_enc enc, const void *value); /* bytes of its serial form, about; O(1) */
    /* Redis's form of it: the type byte, then the body; one of the two is NULL (value_save()). In parts of about `bytes`:
     * *at is 0 at the first one, and not after it; true: that was the last. */
    void (*save)(enum obj_enc enc, const void *value, struct buf *out);
    bool (*save_part)(enum obj_enc enc, const void *value, uint64_t *at, size_t bytes, struct buf *out);
    /* Reads a body of that RDB type, which is one of this object type's. lim NULL: any size may have any encoding.
     * false: it is damaged, or empty; nothing is left behind. What comes from outside is checked byte by byte. */
    bool (*load)(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value);
};
extern const struct object_ops list_ops, set_ops, zset_ops, hash_ops, stream_ops;

/* All of it. */
void value_save(const struct object_ops *ops, enum obj_enc enc, const void *value, struct buf *out);
/* For save_part: entries of a dict, each appended by fn to `out`. */
struct dict;
struct dict_entry;
bool dict_save_part(const struct dict *d, uint64_t *at, size_t bytes, void (*fn)(void *out, struct dict_entry *e),
                    struct buf *out);

/* Frees a value, at once or in the background (lazy.c). */
void value_destroy(const struct object_ops *ops, enum obj_enc enc, void *value);

/* NULL: a string, or no value. */
const struct object_ops *object_ops_of(enum obj_type type);

/* Lengths within the entries of sets and hashes: a byte, or 254 and four. None begins with 255. */
#define ENTRY_LEN_BYTE 254u

static inline size_t entry_len_bytes(size_t len)
{
    return len < ENTRY_LEN_BYTE ? 1 : 1 + sizeof(uint32_t);
}

static inline char *entry_len_put(char *at, size_t len)
{
    uint32_t len32 = (uint32_t)len;

    CHECK(len <= UINT32_MAX);
    *at = (char)(len < ENTRY_LEN_BYTE ? len : ENTRY_LEN_BYTE);
    if (len >= ENTRY_LEN_BYTE)
        memcpy(at + 1, &len32, sizeof(len32));
    return at + entry_len_bytes(len);
}

static inline const char *entry_len_get(const char *at, size_t *len)
{
    uint32_t len32;

    *len = (unsigned char)*at;
    if (LIKELY(*len < ENTRY_LEN_BYTE))
        return at + 1;
    memcpy(&len32, at + 1, sizeof(len32));
    *len = len32;
    return at + 1 + sizeof(len32);
}

/* ---- what type_hash.c and hash_load.c share ---- */

/* Many fields, or some that expire. */
struct hash {
    struct dict fields;
    size_t bytes;             /* of all fields' allocations */
    size_t text;              /* of the fields and values themselves */
    struct dict_entry **heap; /* those that expire, the soonest first: a binary heap */
    size_t timed, room;       /* how many, and how many it has room for */
};

struct hash *hash_big_new(void);
void hash_big_free(struct hash *h);
#define HASH_KEEP (-1) /* when it expires is as it was */
/* true: the field is new. at_ms 0: it does not expire. */
bool hash_big_set(struct hash *h, struct slice name, struct slice value, int64_t at_ms);
/* A hash table of the same fields, in place of the listpack. NULL: one is there twice. */
struct hash *hash_big_from_small(unsigned char *lp);

/* Few fields: a listpack of fields and values in turn. */
size_t hash_small_len(const unsigned char *lp);
/* The field at p, and the value behind it. Returns the next field's place. */
const unsigned char *hash_small_read(const unsigned char *lp, const unsigned char *p, char scratch[2][NUM_I64_MAX],
                                     struct slice *name, struct slice *value);
/* May it stay a listpack with these? */
bool hash_small_takes(const unsigned char *lp, struct slice name, struct slice value, const struct obj_limits *lim);

void hash_destroy(enum obj_enc enc, void *value);
bool hash_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value);

#endif
