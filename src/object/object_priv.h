#ifndef TIERCEL_OBJECT_PRIV_H
#define TIERCEL_OBJECT_PRIV_H

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

/* The serial form of a list: elements as | length 4 | bytes |. plist_parse() returns NULL
 * when `in` is not one, or is empty. */
void plist_serialise(const struct plist *l, struct buf *out);
struct plist *plist_parse(struct slice in);

#endif
