#ifndef TIERCEL_RDB_H
#define TIERCEL_RDB_H

#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/object.h"

/* Values in the form that Redis keeps in RDB files and DUMP returns: a type byte, then a body of lengths and
 * strings (https://rdb.fnordig.de/file_format.html has most of it). What Redis 7.0 writes is written; what any Redis
 * up to 7.0 wrote is read. No locks, no state. */
#define RDB_VERSION 10 /* Redis 7.0 */

enum rdb_type {
    RDB_STRING = 0,
    RDB_LIST = 1,
    RDB_SET = 2,
    RDB_ZSET = 3, /* scores as text */
    RDB_HASH = 4,
    RDB_ZSET_2 = 5, /* scores as doubles */
    RDB_HASH_ZIPMAP = 9,
    RDB_LIST_ZIPLIST = 10,
    RDB_SET_INTSET = 11,
    RDB_ZSET_ZIPLIST = 12,
    RDB_HASH_ZIPLIST = 13,
    RDB_LIST_QUICKLIST = 14,
    RDB_STREAM_LISTPACKS = 15,
    RDB_HASH_LISTPACK = 16,
    RDB_ZSET_LISTPACK = 17,
    RDB_LIST_QUICKLIST_2 = 18,
    RDB_STREAM_LISTPACKS_2 = 19,
    /* Redis 7.4's, of hashes with fields that expire; the latter is only read. */
    RDB_HASH_METADATA = 24,
    RDB_HASH_LISTPACK_EX = 25
};

/* ---- writing: appends to `out` ---- */
void rdb_put_len(struct buf *out, uint64_t len);
void rdb_put_string(struct buf *out, struct slice s); /* short integers in their short form */
void rdb_put_raw(struct buf *out, struct slice s);    /* always as bytes */
void rdb_put_double(struct buf *out, double v);       /* 8 bytes */
void rdb_put_i64(struct buf *out, int64_t v);         /* 8 bytes */

/* ---- reading ---- */
struct rdb_reader {
    const char *ptr, *end;
    struct buf *text;  /* where strings are put together that are not stored as they are */
    struct pace *pace; /* NULL, or: reading rests now and then (pace.h) */
};

bool rdb_get_len(struct rdb_reader *in, uint64_t *len);
/* In the input where it stands there as it is, else in in->text: then valid until the next call. */
bool rdb_get_string(struct rdb_reader *in, struct slice *s);
bool rdb_get_double(struct rdb_reader *in, double *v);
bool rdb_get_text_double(struct rdb_reader *in, double *v); /* RDB_ZSET's */
bool rdb_get_i64(struct rdb_reader *in, int64_t *v);
static inline size_t rdb_left(const struct rdb_reader *in)
{
    return (size_t)(in->end - in->ptr);
}
/* Calls fn for each element of a ziplist, which is what small values were before Redis 7. false: it is damaged, or
 * fn said so. An element is a number where the ziplist has it as one. */
bool rdb_ziplist_each(struct slice ziplist, bool (*fn)(void *arg, struct slice elem), void *arg);

/* ---- whole values ---- */

/* A body of that type, which it takes off the input. NULL: it is damaged, or the type is not known. */
struct object *rdb_read(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, const struct key *key,
                        int64_t expire_ms, uint64_t origin);

/* A type byte and a body that takes all of `in`. lim: the encodings that Redis would choose; NULL: those that it
 * stands there with. NULL: it is damaged. */
struct object *rdb_parse(struct slice in, const struct obj_limits *lim, const struct key *key, int64_t expire_ms,
                         uint64_t origin);
/* The same of what may be large, with rests. */
struct object *rdb_parse_paced(struct slice in, const struct obj_limits *lim, const struct key *key, int64_t expire_ms,
                               uint64_t origin, struct pace *pace);
/* DUMP's payload: the value, RDB_VERSION in 2 bytes, CRC-64. codec: for a packed string. false: that is damaged. */
bool rdb_dump(const struct object *o, struct codec *codec, struct buf *out);
/* What payloads end with: the version and the checksum of what `out` has from `start` on. */
void rdb_put_foot(struct buf *out, size_t start);
/* Takes the version and checksum off a payload of RESTORE; false: they are not right. */
bool rdb_undump(struct slice payload, struct slice *value);
/* CRC-64 by Jones's polynomial, reflected, from 0: what DUMP and RDB files end with. */
uint64_t rdb_crc64(uint64_t crc, struct slice s);

#endif
