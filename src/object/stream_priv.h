#ifndef TIERCEL_STREAM_PRIV_H
#define TIERCEL_STREAM_PRIV_H

#include "object_priv.h"
#include "tiercel/type_stream.h"

/* What the files of streams share among themselves. */

/* Flags of an entry. */
#define STREAM_DELETED 1
#define STREAM_SAME_FIELDS 2

int64_t lp_int(const unsigned char *p); /* of an element that is a number */
/* Takes the listpack; the ID is greater than those before. */
void stream_push_node(struct stream *s, struct stream_id id, unsigned char *lp);

void *stream_copy(enum obj_enc enc, const void *value);
void stream_save(enum obj_enc enc, const void *value, struct buf *out);
bool stream_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value);

#endif
