#ifndef TIERCEL_OBJECT_PRIV_H
#define TIERCEL_OBJECT_PRIV_H

#include "tiercel/object.h"
#include "tiercel/type_stream.h"

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
    /* Redis's form of it: the type byte, then the body. */
    void (*save)(enum obj_enc enc, const void *value, struct buf *out);
    /* Reads a body of that RDB type, which is one of this object type's. lim NULL: any size may have any encoding.
     * false: it is damaged, or empty; nothing is left behind. What comes from outside is checked byte by byte. */
    bool (*load)(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value);
};
extern const struct object_ops list_ops, set_ops, zset_ops, hash_ops, stream_ops;

/* NULL: a string, or no value. */
const struct object_ops *object_ops_of(enum obj_type type);

/* ---- what the files of streams share (type_stream.c, stream_group.c, stream_save.c) ---- */

/* Flags of an entry. */
#define STREAM_DELETED 1
#define STREAM_SAME_FIELDS 2

int64_t stream_lp_int(const unsigned char *p); /* of an element that is a number */
/* Takes the listpack; the ID is greater than those before. */
void stream_push_node(struct stream *s, struct stream_id id, unsigned char *lp);

void *stream_copy(enum obj_enc enc, const void *value);
void stream_save(enum obj_enc enc, const void *value, struct buf *out);
bool stream_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value);

#endif
