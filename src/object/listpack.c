#include "tiercel/listpack.h"

#include "tiercel/alloc.h"
#include "tiercel/check.h"

/* ---- the format ----
 *
 *   0xxxxxxx                    a number, 7 bits
 *   10xxxxxx | bytes            a string, up to 63 bytes
 *   110xxxxx xxxxxxxx           a number, 13 bits, two's complement, high bits first
 *   1110xxxx xxxxxxxx | bytes   a string, up to 4095 bytes, high bits of the length first
 *   11110000 | 4 | bytes        a string, length little endian
 *   11110001 to 11110100        numbers of 2, 3, 4 and 8 bytes, little endian
 *   11111111                    the end
 *
 * Each is followed by its length, in 1 to 5 groups of 7 bits: the lowest is the last byte, and all but the
 * first byte have the high bit set, so that it can be read backwards. */
#define HEAD 6
#define END 0xff
#define LEN_UNKNOWN 65535
#define STR32 0xf0
#define INT16 0xf1
#define INT24 0xf2
#define INT32 0xf3
#define INT64 0xf4
#define ENC_MAX 9  /* bytes before a string's own, or a number */
#define BACK_MAX 5 /* of the length behind */
#define PUSH_SPARE_BELOW 256

static uint32_t u32_at(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void u32_put(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static void head_put(unsigned char *lp, size_t bytes, size_t len)
{
    u32_put(lp, (uint32_t)bytes);
    lp[4] = (unsigned char)(len < LEN_UNKNOWN ? len : LEN_UNKNOWN);
    lp[5] = (unsigned char)((len < LEN_UNKNOWN ? len : LEN_UNKNOWN) >> 8);
}

static size_t head_len(const unsigned char *lp)
{
    return (size_t)lp[4] | (size_t)lp[5] << 8;
}

/* An element about to be written: its first bytes, and those of the string if it is one. */
struct encoded {
    unsigned char head[ENC_MAX];
    size_t head_len;
    struct slice str;
    unsigned char back[BACK_MAX];
    size_t back_len;
};

static size_t back_len_of(size_t len)
{
    return len <= 127 ? 1 : len < 16384 ? 2 : len < 2097152 ? 3 : len < 268435456 ? 4 : 5;
}

static size_t encoded_len(const struct encoded *e)
{
    return e->head_len + e->str.len + e->back_len;
}

static void encode_back(struct encoded *e)
{
    size_t len = e->head_len + e->str.len;

    e->back_len = back_len_of(len);
    for (size_t i = 0; i < e->back_len; i++) /* the most significant first */
        e->back[i] = (unsigned char)((len >> 7 * (e->back_len - 1 - i) & 127) | (i > 0 ? 128 : 0));
}

static void encode_int(struct encoded *e, int64_t v)
{
    int bytes;

    e->str = SLICE_NONE;
    if (v >= 0 && v <= 127) {
        e->head[0] = (unsigned char)v;
        e->head_len = 1;
    } else if (v >= -4096 && v <= 4095) {
        e->head[0] = (unsigned char)(0xc0 | ((uint64_t)v >> 8 & 0x1f));
        e->head[1] = (unsigned char)v;
        e->head_len = 2;
    } else {
        bytes = v >= INT16_MIN && v <= INT16_MAX   ? 2
                : v >= -8388608 && v <= 8388607    ? 3
                : v >= INT32_MIN && v <= INT32_MAX ? 4
                                                   : 8;
        e->head[0] = (unsigned char)(bytes == 8 ? INT64 : INT16 + bytes - 2);
        for (int i = 0; i < bytes; i++)
            e->head[1 + i] = (unsigned char)((uint64_t)v >> (8 * i));
        e->head_len = 1 + (size_t)bytes;
    }
    encode_back(e);
}

static void encode(struct encoded *e, struct slice elem)
{
    int64_t v;

    if (elem.len != 0 && elem.len < NUM_I64_MAX && num_parse_i64(elem, &v)) {
        encode_int(e, v);
        return;
    }
    e->str = elem;
    if (elem.len < 64) {
        e->head[0] = (unsigned char)(0x80 | elem.len);
        e->head_len = 1;
    } else if (elem.len < 4096) {
        e->head[0] = (unsigned char)(0xe0 | elem.len >> 8);
        e->head[1] = (unsigned char)elem.len;
        e->head_len = 2;
    } else {
        CHECK(elem.len <= LISTPACK_SAFE_BYTES);
        e->head[0] = STR32;
        u32_put(e->head + 1, (uint32_t)elem.len);
        e->head_len = 5;
    }
    encode_back(e);
}

static void encoded_write(const struct encoded *e, unsigned char *to)
{
    memcpy(to, e->head, e->head_len);
    if (e->str.len)
        memmove(to + e->head_len, e->str.ptr, e->str.len);
    memcpy(to + e->head_len + e->str.len, e->back, e->back_len);
}

/* Length without the one behind; 0: no such element. `left`: bytes that there are. */
static size_t body_len(const unsigned char *p, size_t left)
{
    if (*p < 0x80)
        return 1;
    if (*p < 0xc0)
        return 1 + (size_t)(*p & 0x3f);
    if (*p < 0xe0)
        return 2;
    if (*p < 0xf0)
        return left < 2 ? 0 : 2 + ((size_t)(*p & 0x0f) << 8 | p[1]);
    switch (*p) {
    case STR32: return left < 5 ? 0 : 5 + (size_t)u32_at(p + 1);
    case INT16: return 3;
    case INT24: return 4;
    case INT32: return 5;
    case INT64: return 9;
    default: return 0;
    }
}

static size_t elem_len(const unsigned char *p)
{
    size_t body = body_len(p, SIZE_MAX);

    return body + back_len_of(body);
}

/* The length that ends before `end`; *used: how many bytes it takes, 0: it is none. */
static size_t back_read(const unsigned char *end, size_t most, size_t *used)
{
    size_t len = 0;

    for (size_t i = 0; i < BACK_MAX && i < most; i++) {
        unsigned char c = end[-1 - (long)i];
        len |= (size_t)(c & 127) << (7 * i);
        if (!(c & 128)) {
            *used = i + 1;
            return len;
        }
    }
    *used = 0;
    return 0;
}

/* ---- as a whole ---- */

unsigned char *listpack_new(size_t room)
{
    unsigned char *lp = mem_alloc(MEM_DATA, HEAD + 1 + room);

    head_put(lp, HEAD + 1, 0);
    lp[HEAD] = END;
    return lp;
}

void listpack_free(unsigned char *lp)
{
    mem_free(MEM_DATA, lp);
}

unsigned char *listpack_copy(const unsigned char *lp)
{
    return listpack_from(listpack_slice(lp));
}

unsigned char *listpack_from(struct slice bytes)
{
    unsigned char *lp = mem_alloc(MEM_DATA, bytes.len);

    memcpy(lp, bytes.ptr, bytes.len);
    return lp;
}

bool listpack_valid(struct slice bytes)
{
    const unsigned char *lp = (const unsigned char *)bytes.ptr, *p = lp + HEAD, *end = lp + bytes.len - 1;
    size_t n = 0;

    if (bytes.len < HEAD + 1 || bytes.len > LISTPACK_SAFE_BYTES || u32_at(lp) != bytes.len || *end != END)
        return false;
    while (p < end) {
        size_t left = (size_t)(end - p), body = body_len(p, left), used;
        if (body == 0 || body >= left)
            return false;
        size_t back = back_len_of(body);
        if (back > left - body || back_read(p + body + back, back, &used) != body || used != back)
            return false;
        p += body + back;
        n++;
    }
    return head_len(lp) == LEN_UNKNOWN || head_len(lp) == n;
}

size_t listpack_bytes(const unsigned char *lp)
{
    return u32_at(lp);
}

size_t listpack_usable(const unsigned char *lp)
{
    return mem_usable(lp);
}

size_t listpack_len(const unsigned char *lp)
{
    size_t n = head_len(lp);

    if (n < LEN_UNKNOWN)
        return n;
    n = 0;
    for (const unsigned char *p = listpack_first(lp); p; p = listpack_next(lp, p))
        n++;
    return n;
}

struct slice listpack_slice(const unsigned char *lp)
{
    return SLICE((const char *)lp, listpack_bytes(lp));
}

/* ---- walking ---- */

static unsigned char *pos(const unsigned char *p)
{
    return *p == END ? NULL : (unsigned char *)(uintptr_t)p;
}

unsigned char *listpack_first(const unsigned char *lp)
{
    return pos(lp + HEAD);
}

unsigned char *listpack_next(const unsigned char *lp, const unsigned char *p)
{
    (void)lp;
    return pos(p + elem_len(p));
}

/* The element that ends there. */
static unsigned char *before(const unsigned char *lp, const unsigned char *end)
{
    size_t used;

    if (end == lp + HEAD)
        return NULL;
    size_t body = back_read(end, BACK_MAX, &used);
    return (unsigned char *)(uintptr_t)(end - used - body);
}

unsigned char *listpack_last(const unsigned char *lp)
{
    return before(lp, lp + listpack_bytes(lp) - 1);
}

unsigned char *listpack_prev(const unsigned char *lp, const unsigned char *p)
{
    return before(lp, p);
}

unsigned char *listpack_at(const unsigned char *lp, long index)
{
    size_t n = head_len(lp);
    unsigned char *p;

    if (n < LEN_UNKNOWN) { /* from the nearer end */
        if (index >= (long)n || index < -(long)n)
            return NULL;
        if (index > (long)n / 2)
            index -= (long)n;
        else if (index < -(long)n / 2)
            index += (long)n;
    }
    if (index < 0) {
        for (p = listpack_last(lp); p && ++index < 0;)
            p = listpack_prev(lp, p);
        return p;
    }
    for (p = listpack_first(lp); p && index-- > 0;)
        p = listpack_next(lp, p);
    return p;
}

void listpack_get(const unsigned char *p, struct listpack_value *v)
{
    v->str = SLICE_NONE;
    if (*p < 0x80) {
        v->num = *p;
    } else if (*p < 0xc0) {
        v->str = SLICE((const char *)p + 1, *p & 0x3f);
    } else if (*p < 0xe0) {
        int n = (*p & 0x1f) << 8 | p[1];
        v->num = n >= 4096 ? n - 8192 : n;
    } else if (*p < 0xf0) {
        v->str = SLICE((const char *)p + 2, (size_t)(*p & 0x0f) << 8 | p[1]);
    } else if (*p == STR32) {
        v->str = SLICE((const char *)p + 5, u32_at(p + 1));
    } else {
        int bytes = *p == INT64 ? 8 : *p - INT16 + 2;
        uint64_t n = 0;
        for (int i = 0; i < bytes; i++)
            n |= (uint64_t)p[1 + i] << (8 * i);
        int unused = 64 - 8 * bytes;
        v->num = (int64_t)(n << unused) >> unused; /* the sign */
    }
}

struct slice listpack_str(const unsigned char *p, char scratch[NUM_I64_MAX])
{
    struct listpack_value v;

    listpack_get(p, &v);
    return v.str.ptr ? v.str : SLICE(scratch, num_format_i64(scratch, v.num));
}

bool listpack_is(const unsigned char *p, struct slice elem)
{
    struct listpack_value v;
    int64_t num;

    listpack_get(p, &v);
    if (v.str.ptr)
        return slice_eq(v.str, elem);
    return elem.len < NUM_I64_MAX && num_parse_i64(elem, &num) && num == v.num;
}

unsigned char *listpack_find(const unsigned char *lp, unsigned char *p, struct slice elem, unsigned skip)
{
    struct listpack_value v;
    int64_t num;
    bool is_num = elem.len != 0 && elem.len < NUM_I64_MAX && num_parse_i64(elem, &num);

    while (p) {
        listpack_get(p, &v);
        if (v.str.ptr ? slice_eq(v.str, elem) : is_num && num == v.num)
            return p;
        for (unsigned i = 0; p && i <= skip; i++)
            p = listpack_next(lp, p);
    }
    return NULL;
}

/* ---- changing ---- */

size_t listpack_cost(struct slice elem)
{
    struct encoded e;

    encode(&e, elem);
    return encoded_len(&e);
}

/* Makes the bytes [at, at + old) `len` long; returns where they are. The count stays. spare: what is allocated beyond
 * what it takes, if anything is. */
static unsigned char *make_room(unsigned char **lp, size_t at, size_t old, size_t len, size_t spare)
{
    size_t bytes = listpack_bytes(*lp), now = bytes - old + len;

    CHECK(now <= LISTPACK_SAFE_BYTES + ENC_MAX + BACK_MAX);
    if (len > old && now > mem_usable(*lp))
        *lp = mem_realloc(MEM_DATA, *lp, now + spare);
    memmove(*lp + at + len, *lp + at + old, bytes - at - old);
    if (len < old && now < mem_usable(*lp) / 4 * 3)
        *lp = mem_realloc(MEM_DATA, *lp, now);
    u32_put(*lp, (uint32_t)now);
    return *lp + at;
}

static void count(unsigned char *lp, long more)
{
    size_t n = head_len(lp);

    if (n < LEN_UNKNOWN)
        head_put(lp, listpack_bytes(lp), n + (size_t)more);
}

static unsigned char *put(unsigned char *lp, size_t at, size_t old, const struct encoded *e, unsigned char **where)
{
    unsigned char *p = make_room(&lp, at, old, encoded_len(e), 0);

    encoded_write(e, p);
    if (old == 0)
        count(lp, 1);
    if (where)
        *where = p;
    return lp;
}

static size_t offset_of(const unsigned char *lp, const unsigned char *p)
{
    return p ? (size_t)(p - lp) : listpack_bytes(lp) - 1;
}

unsigned char *listpack_insert(unsigned char *lp, unsigned char *p, struct slice elem, unsigned char **at)
{
    struct encoded e;

    encode(&e, elem);
    return put(lp, offset_of(lp, p), 0, &e, at);
}

unsigned char *listpack_replace(unsigned char *lp, unsigned char *p, struct slice elem, unsigned char **at)
{
    struct encoded e;

    encode(&e, elem);
    return put(lp, offset_of(lp, p), elem_len(p), &e, at);
}

unsigned char *listpack_push(unsigned char *lp, bool left, struct slice elem)
{
    struct encoded e;
    size_t bytes = listpack_bytes(lp);

    encode(&e, elem);
    size_t spare = bytes < PUSH_SPARE_BELOW ? bytes / 4 : 0; /* longer ones get some by the allocator's rounding */
    unsigned char *p = make_room(&lp, left ? HEAD : bytes - 1, 0, encoded_len(&e), spare);
    encoded_write(&e, p);
    count(lp, 1);
    return lp;
}

unsigned char *listpack_append(unsigned char *lp, struct slice elem)
{
    return listpack_insert(lp, NULL, elem, NULL);
}

unsigned char *listpack_prepend(unsigned char *lp, struct slice elem)
{
    return listpack_insert(lp, listpack_first(lp), elem, NULL);
}

unsigned char *listpack_append_int(unsigned char *lp, int64_t num)
{
    struct encoded e;

    encode_int(&e, num);
    return put(lp, offset_of(lp, NULL), 0, &e, NULL);
}

unsigned char *listpack_replace_int(unsigned char *lp, unsigned char *p, int64_t num, unsigned char **at)
{
    struct encoded e;

    encode_int(&e, num);
    return put(lp, offset_of(lp, p), elem_len(p), &e, at);
}

unsigned char *listpack_remove(unsigned char *lp, unsigned char *p, size_t n, unsigned char **at)
{
    const unsigned char *end = p;
    long removed = 0;

    while ((size_t)removed < n && end && *end != END) {
        end += elem_len(end);
        removed++;
    }
    if (removed == 0)
        return lp;
    p = make_room(&lp, offset_of(lp, p), (size_t)(end - p), 0, 0);
    count(lp, -removed);
    if (at)
        *at = pos(p);
    return lp;
}

unsigned char *listpack_join(unsigned char *lp, const unsigned char *more)
{
    size_t bytes = listpack_bytes(more) - HEAD - 1, n = listpack_len(lp) + listpack_len(more);
    unsigned char *p = make_room(&lp, listpack_bytes(lp) - 1, 0, bytes, 0);

    memcpy(p, more + HEAD, bytes);
    head_put(lp, listpack_bytes(lp), n);
    return lp;
}
