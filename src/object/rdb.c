#include "tiercel/rdb.h"

#include <errno.h>
#include <lzf.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "object_priv.h"
#include "tiercel/num.h"
#include "tiercel/pace.h"

/* Lengths: two bits say how long. With both set the low six are a short form of a string instead. */
#define LEN_6 0x00
#define LEN_14 0x40
#define LEN_32 0x80
#define LEN_64 0x81
#define LEN_FORM 0xc0
#define FORM_INT8 0
#define FORM_INT16 1
#define FORM_INT32 2
#define FORM_LZF 3
#define STRING_MAX (1u << 30)
#define STRING_COST 300 /* of what becomes an element of its own, in units of pace.h */

/* ---- writing ---- */

static void put_big_endian(struct buf *out, uint64_t v, int bytes)
{
    for (int i = bytes; i-- > 0;)
        buf_byte(out, (char)(v >> (8 * i)));
}

static void put_little_endian(struct buf *out, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        buf_byte(out, (char)(v >> (8 * i)));
}

void rdb_put_len(struct buf *out, uint64_t len)
{
    if (len < 1 << 6) {
        buf_byte(out, (char)len);
    } else if (len < 1 << 14) {
        put_big_endian(out, LEN_14 << 8 | len, 2);
    } else if (len <= UINT32_MAX) {
        buf_byte(out, (char)LEN_32);
        put_big_endian(out, len, 4);
    } else {
        buf_byte(out, (char)LEN_64);
        put_big_endian(out, len, 8);
    }
}

void rdb_put_raw(struct buf *out, struct slice s)
{
    rdb_put_len(out, s.len);
    buf_slice_append(out, s);
}

void rdb_put_string(struct buf *out, struct slice s)
{
    int64_t v;

    if (s.len > 11 || !num_parse_i64(s, &v) || v < INT32_MIN || v > INT32_MAX) {
        rdb_put_raw(out, s);
        return;
    }
    int form = v >= INT8_MIN && v <= INT8_MAX ? FORM_INT8 : v >= INT16_MIN && v <= INT16_MAX ? FORM_INT16 : FORM_INT32;
    buf_byte(out, (char)(LEN_FORM | form));
    put_little_endian(out, (uint64_t)v, 1 << form);
}

void rdb_put_double(struct buf *out, double v)
{
    buf_append(out, &v, sizeof(v)); /* little endian, as serial.c sees to */
}

void rdb_put_i64(struct buf *out, int64_t v)
{
    put_little_endian(out, (uint64_t)v, 8);
}

/* ---- reading ---- */

static bool get_byte(struct rdb_reader *in, unsigned *byte)
{
    if (in->ptr == in->end)
        return false;
    *byte = (unsigned char)*in->ptr++;
    return true;
}

static bool get_big_endian(struct rdb_reader *in, int bytes, uint64_t *v)
{
    if (rdb_left(in) < (size_t)bytes)
        return false;
    *v = 0;
    for (int i = 0; i < bytes; i++)
        *v = *v << 8 | (unsigned char)*in->ptr++;
    return true;
}

static uint64_t little_endian(const char *p, int bytes)
{
    uint64_t v = 0;

    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)(unsigned char)p[i] << (8 * i);
    return v;
}

/* *form: of a string that is not plain bytes; else -1. */
static bool get_len_or_form(struct rdb_reader *in, uint64_t *len, int *form)
{
    unsigned first, second;

    *form = -1;
    if (!get_byte(in, &first))
        return false;
    switch (first & 0xc0) {
    case LEN_6: *len = first & 0x3f; return true;
    case LEN_14:
        if (!get_byte(in, &second))
            return false;
        *len = (uint64_t)(first & 0x3f) << 8 | second;
        return true;
    case LEN_32: return first == LEN_32 ? get_big_endian(in, 4, len) : first == LEN_64 && get_big_endian(in, 8, len);
    default: *form = (int)(first & 0x3f); return true;
    }
}

bool rdb_get_len(struct rdb_reader *in, uint64_t *len)
{
    int form;

    return get_len_or_form(in, len, &form) && form < 0;
}

static bool get_bytes(struct rdb_reader *in, uint64_t len, struct slice *s)
{
    if (len > rdb_left(in))
        return false;
    *s = SLICE(in->ptr, (size_t)len);
    in->ptr += len;
    return true;
}

static bool get_lzf(struct rdb_reader *in, struct slice *s)
{
    uint64_t packed, plain;
    struct slice frame;

    if (!rdb_get_len(in, &packed) || !rdb_get_len(in, &plain) || plain == 0 || plain > STRING_MAX ||
        packed > UINT32_MAX || !get_bytes(in, packed, &frame) ||
        plain / 300 > frame.len) /* more than it can pack: what it claims is not worth the memory */
        return false;
    in->text->len = 0;
    buf_reserve(in->text, (size_t)plain);
    if (lzf_decompress(frame.ptr, (unsigned)frame.len, in->text->ptr, (unsigned)plain) != plain)
        return false;
    in->text->len = (size_t)plain;
    *s = buf_slice(in->text);
    return true;
}

bool rdb_get_string(struct rdb_reader *in, struct slice *s)
{
    uint64_t len;
    int form;

    if (!get_len_or_form(in, &len, &form))
        return false;
    pace_spend(in->pace, STRING_COST + (form < 0 ? (size_t)len : 0)); /* and for what is made of it */
    if (form < 0)
        return get_bytes(in, len, s);
    if (form == FORM_LZF)
        return get_lzf(in, s);
    if (form > FORM_INT32 || !get_bytes(in, 1u << form, s))
        return false;
    int unused = 64 - (8 << form);
    int64_t v = (int64_t)(little_endian(s->ptr, 1 << form) << unused) >> unused;
    in->text->len = 0;
    buf_reserve(in->text, NUM_I64_MAX);
    in->text->len = num_format_i64(in->text->ptr, v);
    *s = buf_slice(in->text);
    return true;
}

bool rdb_get_i64(struct rdb_reader *in, int64_t *v)
{
    struct slice s;

    if (!get_bytes(in, 8, &s))
        return false;
    *v = (int64_t)little_endian(s.ptr, 8);
    return true;
}

bool rdb_get_double(struct rdb_reader *in, double *v)
{
    struct slice s;

    if (!get_bytes(in, sizeof(*v), &s))
        return false;
    memcpy(v, s.ptr, sizeof(*v));
    return true;
}

bool rdb_get_text_double(struct rdb_reader *in, double *v)
{
    char text[256];
    struct slice s;
    unsigned len;

    if (!get_byte(in, &len))
        return false;
    if (len >= 253) {
        *v = len == 253 ? NAN : len == 254 ? INFINITY : -INFINITY;
        return true;
    }
    if (!get_bytes(in, len, &s) || len == 0)
        return false;
    memcpy(text, s.ptr, len);
    text[len] = '\0';
    char *end;
    *v = strtod(text, &end);
    return end == text + len;
}

/* ---- ziplists ----
 *
 *   | bytes 4 | offset of the last element 4 | elements 2 | element ... | 255 |
 *
 * An element begins with the length of the one before it: 1 byte, or 254 and 4 bytes. */
#define ZIPLIST_HEAD 10

static bool ziplist_elem(const char **at, const char *end, struct slice *elem, char scratch[NUM_I64_MAX])
{
    const unsigned char *p = (const unsigned char *)*at;
    size_t left = (size_t)(end - *at), skip = *p == 254 ? 5 : 1;

    if (*p == 255 || left <= skip)
        return false;
    p += skip;
    left -= skip;
    size_t head, len = 0, num = 0;
    switch (*p >> 6) {
    case 0: head = 1, len = *p & 0x3f; break;
    case 1: head = 2, len = left < 2 ? left : (size_t)(*p & 0x3f) << 8 | p[1]; break;
    case 2: head = 5, len = left < 5 ? left : (size_t)p[1] << 24 | (size_t)p[2] << 16 | (size_t)p[3] << 8 | p[4]; break;
    default:
        head = 1;
        num = *p == 0xc0 ? 2 : *p == 0xd0 ? 4 : *p == 0xe0 ? 8 : *p == 0xf0 ? 3 : *p == 0xfe ? 1 : 0;
        if (num == 0 && (*p < 0xf1 || *p > 0xfd))
            return false;
    }
    if (head + num > left || len > left - head - num)
        return false;
    if (*p >> 6 != 3) {
        *elem = SLICE((const char *)p + head, len);
    } else {
        int unused = 64 - 8 * (int)num;
        int64_t v =
            num == 0 ? (*p & 0x0f) - 1 : (int64_t)(little_endian((const char *)p + 1, (int)num) << unused) >> unused;
        *elem = SLICE(scratch, num_format_i64(scratch, v));
    }
    *at = (const char *)p + head + num + len;
    return true;
}

bool rdb_ziplist_each(struct slice ziplist, bool (*fn)(void *arg, struct slice elem), void *arg)
{
    char scratch[NUM_I64_MAX];
    struct slice elem;

    if (ziplist.len <= ZIPLIST_HEAD || little_endian(ziplist.ptr, 4) != ziplist.len ||
        (unsigned char)ziplist.ptr[ziplist.len - 1] != 255)
        return false;
    size_t n = 0, want = (size_t)little_endian(ziplist.ptr + 8, 2);
    const char *end = ziplist.ptr + ziplist.len - 1;
    for (const char *p = ziplist.ptr + ZIPLIST_HEAD; p < end; n++)
        if (!ziplist_elem(&p, end, &elem, scratch) || !fn(arg, elem))
            return false;
    return want == UINT16_MAX || n == want;
}

/* ---- whole values ---- */

static enum obj_type type_of(int rdb_type)
{
    switch (rdb_type) {
    case RDB_STRING: return OBJ_STRING;
    case RDB_LIST:
    case RDB_LIST_ZIPLIST:
    case RDB_LIST_QUICKLIST:
    case RDB_LIST_QUICKLIST_2: return OBJ_LIST;
    case RDB_SET:
    case RDB_SET_INTSET: return OBJ_SET;
    case RDB_ZSET:
    case RDB_ZSET_2:
    case RDB_ZSET_ZIPLIST:
    case RDB_ZSET_LISTPACK: return OBJ_ZSET;
    case RDB_HASH:
    case RDB_HASH_ZIPMAP:
    case RDB_HASH_ZIPLIST:
    case RDB_HASH_LISTPACK:
    case RDB_HASH_METADATA:
    case RDB_HASH_LISTPACK_EX: return OBJ_HASH;
    case RDB_STREAM_LISTPACKS:
    case RDB_STREAM_LISTPACKS_2: return OBJ_STREAM;
    default: return OBJ_NONE;
    }
}

static struct object *parse_string(struct rdb_reader *in, const struct key *key, int64_t expire_ms, uint64_t origin)
{
    struct slice s;
    int64_t v;

    if (!rdb_get_string(in, &s))
        return NULL;
    if (s.len < NUM_I64_MAX && num_parse_i64(s, &v))
        return object_new_int(key, v, expire_ms, origin);
    return object_new_string(key, s, expire_ms, origin);
}

struct object *rdb_read(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, const struct key *key,
                        int64_t expire_ms, uint64_t origin)
{
    enum obj_type type = type_of(rdb_type);
    const struct object_ops *ops = object_ops_of(type);
    enum obj_enc enc;
    void *value;

    if (type == OBJ_STRING)
        return parse_string(in, key, expire_ms, origin);
    if (ops && ops->load(in, rdb_type, lim, &enc, &value))
        return object_new_ptr(key, type, enc, value, expire_ms, origin);
    return NULL;
}

struct object *rdb_parse(struct slice s, const struct obj_limits *lim, const struct key *key, int64_t expire_ms,
                         uint64_t origin)
{
    return rdb_parse_paced(s, lim, key, expire_ms, origin, NULL);
}

struct object *rdb_parse_paced(struct slice s, const struct obj_limits *lim, const struct key *key, int64_t expire_ms,
                               uint64_t origin, struct pace *pace)
{
    struct buf text;

    if (s.len == 0)
        return NULL;
    buf_init(&text, MEM_OTHER);
    struct rdb_reader in = {s.ptr + 1, s.ptr + s.len, &text, pace};
    struct object *o = rdb_read(&in, (unsigned char)s.ptr[0], lim, key, expire_ms, origin);
    buf_deinit(&text);
    if (o && rdb_left(&in) != 0) {
        object_free(o);
        o = NULL;
    }
    return o;
}

bool rdb_dump(const struct object *o, struct codec *codec, struct buf *out)
{
    const struct object_ops *ops = object_ops_of(o->type);
    char scratch[OBJ_SCRATCH];
    struct slice s;
    size_t start = out->len;

    if (ops) {
        value_save(ops, o->enc, object_ptr(o), out);
    } else {
        if (object_string(o, codec, scratch, &s) != ST_OK)
            return false;
        buf_byte(out, RDB_STRING);
        rdb_put_string(out, s);
    }
    rdb_put_foot(out, start);
    return true;
}

void rdb_put_foot(struct buf *out, size_t start)
{
    put_little_endian(out, RDB_VERSION, 2);
    put_little_endian(out, rdb_crc64(0, SLICE(out->ptr + start, out->len - start)), 8);
}

#define FOOT 10

bool rdb_undump(struct slice payload, struct slice *value)
{
    if (payload.len < FOOT)
        return false;
    const char *foot = payload.ptr + payload.len - FOOT;
    uint64_t crc = little_endian(foot + 2, 8);
    if (little_endian(foot, 2) > RDB_VERSION)
        return false;
    *value = SLICE(payload.ptr, payload.len - FOOT);
    return crc == 0 || crc == rdb_crc64(0, SLICE(payload.ptr, payload.len - 8)); /* 0: it was written without one */
}

/* ---- the checksum ---- */

#define CRC64_JONES 0x95ac9329ac4bc9b5ULL /* 0xad93d23594c935a9, its bits reversed */

static uint64_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void crc_init(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ CRC64_JONES : crc >> 1;
        crc_table[0][i] = crc;
    }
    for (unsigned i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_table[k][i] = crc_table[0][crc_table[k - 1][i] & 0xff] ^ crc_table[k - 1][i] >> 8;
}

/* Eight bytes at a time, by eight tables ("slicing"). */
uint64_t rdb_crc64(uint64_t crc, struct slice s)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t len = s.len;

    pthread_once(&crc_once, crc_init);
    for (; len >= 8; p += 8, len -= 8) {
        uint64_t v = crc ^ little_endian((const char *)p, 8);
        crc = 0;
        for (int k = 0; k < 8; k++)
            crc ^= crc_table[7 - k][v >> (8 * k) & 0xff];
    }
    for (; len > 0; p++, len--)
        crc = crc_table[0][(crc ^ *p) & 0xff] ^ crc >> 8;
    return crc;
}
