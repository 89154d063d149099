#include "tiercel/hll.h"

#include <math.h>

#include "tiercel/check.h"

#define MAGIC "HYLL"
#define DENSE 0
#define SPARSE 1
#define INDEX_BITS 14
#define VALUE_BITS (64 - INDEX_BITS)
#define HASH_SEED 0xadc83b19ULL

/* Runs of a sparse one. */
#define ZERO_MAX 64
#define XZERO_MAX 16384
#define VALUE_MAX 32
#define VALUE_RUN_MAX 4
#define MERGE_SCAN 5 /* runs looked at for two that are one, from the one before a change on */

/* ---- header ---- */

void hll_new(struct buf *out)
{
    unsigned last = HLL_REGISTERS - 1;

    out->len = 0;
    buf_append(out, MAGIC, 4);
    buf_byte(out, SPARSE);
    buf_append(out, "\0\0\0\0\0\0\0\0\0\0\0", HLL_HEAD - 5);
    buf_byte(out, (char)(0x40 | last >> 8));
    buf_byte(out, (char)last);
}

bool hll_is_dense(struct slice s)
{
    return s.ptr[4] == DENSE;
}

bool hll_valid(struct slice s)
{
    if (s.len < HLL_HEAD || memcmp(s.ptr, MAGIC, 4) != 0)
        return false;
    return s.ptr[4] == DENSE ? s.len == HLL_DENSE_LEN : s.ptr[4] == SPARSE;
}

bool hll_cached(struct slice s, uint64_t *estimate)
{
    if (s.ptr[HLL_HEAD - 1] & 0x80)
        return false;
    memcpy(estimate, s.ptr + 8, sizeof(*estimate)); /* little endian, as serial.c sees to */
    return true;
}

void hll_set_cached(char *hll, uint64_t estimate)
{
    memcpy(hll + 8, &estimate, sizeof(estimate));
}

void hll_forget_cached(char *hll)
{
    hll[HLL_HEAD - 1] |= (char)0x80;
}

/* ---- elements ---- */

/* MurmurHash2 for 64 bits, variant A (Austin Appleby, public domain), which the registers of Redis are made with. */
static uint64_t murmur(struct slice s, uint64_t seed)
{
    const uint64_t m = 0xc6a4a7935bd1e995ULL;
    uint64_t h = seed ^ s.len * m, k;
    const char *p = s.ptr;
    size_t left = s.len;

    for (; left >= 8; p += 8, left -= 8) {
        memcpy(&k, p, 8);
        k *= m;
        k ^= k >> 47;
        h = (h ^ k * m) * m;
    }
    if (left) {
        k = 0;
        memcpy(&k, p, left);
        h = (h ^ k) * m;
    }
    h = (h ^ h >> 47) * m;
    return h ^ h >> 47;
}

void hll_place(struct slice elem, unsigned *reg, unsigned *value)
{
    uint64_t h = murmur(elem, HASH_SEED);

    *reg = (unsigned)(h & (HLL_REGISTERS - 1));
    *value = (unsigned)__builtin_ctzll(h >> INDEX_BITS | 1ULL << VALUE_BITS) + 1;
}

/* ---- dense registers: 6 bits each, the low ones first ---- */

unsigned hll_dense_get(const char *hll, unsigned reg)
{
    const unsigned char *p = (const unsigned char *)hll + HLL_HEAD + reg * 6 / 8;
    unsigned shift = reg * 6 % 8, v = p[0] >> shift;

    return (shift > 2 ? v | (unsigned)p[1] << (8 - shift) : v) & 63;
}

static void dense_set(char *hll, unsigned reg, unsigned value)
{
    unsigned char *p = (unsigned char *)hll + HLL_HEAD + reg * 6 / 8;
    unsigned shift = reg * 6 % 8;

    p[0] = (unsigned char)((p[0] & ~(63u << shift)) | value << shift);
    if (shift > 2)
        p[1] = (unsigned char)((p[1] & ~(63u >> (8 - shift))) | value >> (8 - shift));
}

bool hll_dense_raise(char *hll, unsigned reg, unsigned value)
{
    if (hll_dense_get(hll, reg) >= value)
        return false;
    dense_set(hll, reg, value);
    return true;
}

/* ---- sparse registers ---- */

struct run {
    size_t bytes; /* of the run itself: 1 or 2 */
    unsigned len, value;
};

static bool run_read(struct slice s, size_t at, struct run *r)
{
    unsigned c = (unsigned char)s.ptr[at];

    *r = (struct run){.bytes = 1, .len = (c & 0x3f) + 1};
    if (c & 0x80) {
        r->len = (c & 3) + 1;
        r->value = (c >> 2 & 31) + 1;
    } else if (c & 0x40) {
        if (at + 2 > s.len)
            return false;
        r->bytes = 2;
        r->len = ((c & 0x3f) << 8 | (unsigned char)s.ptr[at + 1]) + 1;
    }
    return true;
}

static size_t run_write(char *to, unsigned len, unsigned value)
{
    if (value) {
        to[0] = (char)(0x80 | (value - 1) << 2 | (len - 1));
        return 1;
    }
    if (len <= ZERO_MAX) {
        to[0] = (char)(len - 1);
        return 1;
    }
    to[0] = (char)(0x40 | (len - 1) >> 8);
    to[1] = (char)(len - 1);
    return 2;
}

/* Calls for all runs; false: they do not make up the registers. */
static bool runs_merge(struct slice s, uint8_t max[HLL_REGISTERS])
{
    unsigned reg = 0;
    struct run r;

    for (size_t at = HLL_HEAD; at < s.len; at += r.bytes, reg += r.len) {
        if (!run_read(s, at, &r) || r.len > HLL_REGISTERS - reg)
            return false;
        for (unsigned i = 0; r.value && i < r.len; i++)
            if (max[reg + i] < r.value)
                max[reg + i] = (uint8_t)r.value;
    }
    return reg == HLL_REGISTERS;
}

bool hll_merge(struct slice s, uint8_t max[HLL_REGISTERS])
{
    if (!hll_is_dense(s))
        return runs_merge(s, max);
    for (unsigned reg = 0; reg < HLL_REGISTERS; reg++) {
        unsigned v = hll_dense_get(s.ptr, reg);
        if (max[reg] < v)
            max[reg] = (uint8_t)v;
    }
    return true;
}

void hll_sparse_text(struct slice s, struct buf *out)
{
    struct run r;

    for (size_t at = HLL_HEAD; at < s.len; at += r.bytes) {
        if (!run_read(s, at, &r)) /* half of one: the other is taken for 0 */
            r = (struct run){2, (unsigned)(s.ptr[at] & 0x3f) << 8 | 1, 0};
        if (at > HLL_HEAD)
            buf_byte(out, ' ');
        if (r.value)
            buf_printf(out, "v:%u,%u", r.value, r.len);
        else
            buf_printf(out, "%c:%u", r.bytes == 2 ? 'Z' : 'z', r.len);
    }
}

void hll_to_dense(struct buf *hll)
{
    static _Thread_local uint8_t reg[HLL_REGISTERS];

    if (hll_is_dense(buf_slice(hll)))
        return;
    memset(reg, 0, sizeof(reg));
    CHECK(runs_merge(buf_slice(hll), reg));
    buf_reserve(hll, HLL_DENSE_LEN - HLL_HEAD);
    hll->ptr[4] = DENSE;
    hll->len = HLL_DENSE_LEN;
    memset(hll->ptr + HLL_HEAD, 0, HLL_DENSE_LEN - HLL_HEAD);
    for (unsigned i = 0; i < HLL_REGISTERS; i++)
        dense_set(hll->ptr, i, reg[i]);
}

/* Runs of the same value beside one another become one, as far as that is done here: in a few from `at` on. */
static void runs_join(struct buf *hll, size_t at)
{
    struct run a, b;

    for (int i = 0; i < MERGE_SCAN && at < hll->len; i++) {
        if (!run_read(buf_slice(hll), at, &a))
            return;
        bool two = a.value && at + 1 < hll->len && run_read(buf_slice(hll), at + 1, &b) && b.value == a.value &&
                   a.len + b.len <= VALUE_RUN_MAX;
        if (two) {
            run_write(hll->ptr + at + 1, a.len + b.len, a.value);
            memmove(hll->ptr + at, hll->ptr + at + 1, hll->len - at - 1);
            hll->len--;
        } else {
            at += a.bytes;
        }
    }
}

/* The run at `at`, whose first register is `first`, with that one register raised: as up to three runs. */
static size_t run_split(char out[6], const struct run *r, unsigned first, unsigned reg, unsigned value)
{
    unsigned before = reg - first, behind = first + r->len - 1 - reg;
    size_t n = before ? run_write(out, before, r->value) : 0;

    n += run_write(out + n, 1, value);
    return n + (behind ? run_write(out + n, behind, r->value) : 0);
}

static int raise_dense(struct buf *hll, unsigned reg, unsigned value)
{
    hll_to_dense(hll);
    return hll_dense_raise(hll->ptr, reg, value);
}

int hll_raise(struct buf *hll, unsigned reg, unsigned value, size_t sparse_max)
{
    static _Thread_local uint8_t whole[HLL_REGISTERS];
    struct slice s = buf_slice(hll);
    unsigned first = 0;
    size_t at = HLL_HEAD, before = HLL_HEAD;
    struct run r = {.len = 0};
    char runs[6];

    if (hll_is_dense(s))
        return hll_dense_raise(hll->ptr, reg, value);
    if (value > VALUE_MAX)
        return runs_merge(s, whole) ? raise_dense(hll, reg, value) : -1;
    for (;; before = at, at += r.bytes, first += r.len) {
        if (at >= s.len || !run_read(s, at, &r) || r.len > HLL_REGISTERS - first)
            return -1;
        if (reg < first + r.len)
            break;
    }
    if (r.value >= value)
        return 0;
    size_t n = run_split(runs, &r, first, reg, value);
    if (n > r.bytes && s.len + n - r.bytes > sparse_max)
        return runs_merge(s, whole) ? raise_dense(hll, reg, value) : -1;
    buf_reserve(hll, sizeof(runs));
    memmove(hll->ptr + at + n, hll->ptr + at + r.bytes, hll->len - at - r.bytes);
    memcpy(hll->ptr + at, runs, n);
    hll->len = hll->len + n - r.bytes;
    runs_join(hll, before);
    return 1;
}

/* ---- the estimate ---- */

static double sigma(double x)
{
    double y = 1, z = x, was;

    if (x == 1)
        return INFINITY;
    do {
        x *= x;
        was = z;
        z += x * y;
        y += y;
    } while (was != z);
    return z;
}

static double tau(double x)
{
    double y = 1, z = 1 - x, was;

    if (x == 0 || x == 1)
        return 0;
    do {
        x = sqrt(x);
        was = z;
        y *= 0.5;
        z -= (1 - x) * (1 - x) * y;
    } while (was != z);
    return z / 3;
}

uint64_t hll_estimate(const uint8_t reg[HLL_REGISTERS])
{
    const double m = HLL_REGISTERS, alpha = 0.721347520444481703680; /* 1 / (2 ln 2) */
    int having[64] = {0};

    for (unsigned i = 0; i < HLL_REGISTERS; i++)
        having[reg[i]]++;
    double z = m * tau((m - having[VALUE_BITS + 1]) / m);
    for (int k = VALUE_BITS; k >= 1; k--)
        z = (z + having[k]) * 0.5;
    z += m * sigma(having[0] / m);
    return (uint64_t)llroundl((long double)(alpha * m * m / z));
}
