#include "value.h"

#include <stdio.h>
#include <stdlib.h>

#include "tiercel/check.h"
#include "tiercel/hash.h"
#include "tiercel/num.h"

#define POOL_WORDS 32768 /* 256 KB of noise, which stay in a core's cache */
#define ROWS 4096
#define ROW_MAX 80
#define HASH_SEED 0x7469657263656c00ULL /* fixed: other runs check these values */

struct value_source {
    enum value_kind kind;
    uint64_t pool[POOL_WORDS];
    size_t row_len;
    char rows[ROWS * ROW_MAX];
};

/* ---- sizes ---- */

static bool parse_size(const char *text, size_t len, uint64_t *out)
{
    return num_parse_bytes(SLICE(text, len), out) && *out <= (uint64_t)512 << 20;
}

static bool parse_choices(const char *text, struct value_sizes *out)
{
    uint64_t sum = 0;

    out->min = UINT64_MAX;
    while (*text) {
        size_t len = strcspn(text, ",");
        const char *colon = memchr(text, ':', len);
        uint64_t weight, size;
        if (!colon || out->choices == VALUE_SIZES_MAX || !parse_size(text, (size_t)(colon - text), &size) ||
            !num_parse_u64(SLICE(colon + 1, len - (size_t)(colon + 1 - text)), &weight) || weight == 0 ||
            weight > 1000000)
            return false;
        sum += weight;
        out->size[out->choices] = size;
        out->upto[out->choices++] = sum;
        out->min = size < out->min ? size : out->min;
        out->max = size > out->max ? size : out->max;
        text += len;
        if (*text == ',' && *++text == '\0')
            return false;
    }
    return out->choices > 0;
}

bool value_sizes_parse(const char *text, struct value_sizes *out)
{
    const char *dash = strchr(text, '-');

    memset(out, 0, sizeof(*out));
    if (strchr(text, ':'))
        return parse_choices(text, out);
    if (!dash) {
        bool ok = parse_size(text, strlen(text), &out->min);
        out->max = out->min;
        return ok;
    }
    return parse_size(text, (size_t)(dash - text), &out->min) && parse_size(dash + 1, strlen(dash + 1), &out->max) &&
           out->min <= out->max;
}

uint64_t value_size(const struct value_sizes *s, uint64_t key_hash)
{
    uint64_t r, i = 0;

    if (s->min == s->max)
        return s->min;
    r = rng_next(&key_hash);
    if (s->choices == 0)
        return s->min + r % (s->max - s->min + 1);
    for (r %= s->upto[s->choices - 1]; r >= s->upto[i];)
        i++;
    return s->size[i];
}

/* ---- contents ---- */

/* A price's way through 4096 minutes. */
static void make_rows(struct value_source *v, uint64_t seed)
{
    double price = 187;

    for (unsigned i = 0; i < ROWS; i++) {
        char row[128];
        uint64_t r = rng_next(&seed);
        double open = price, close = price + (double)(r % 401) / 100 - 2;
        double high = (close > open ? close : open) + (double)(r >> 16 & 127) / 100;
        double low = (close < open ? close : open) - (double)(r >> 24 & 127) / 100;
        int n = snprintf(row, sizeof(row), "{\"t\":%u,\"o\":%.2f,\"h\":%.2f,\"l\":%.2f,\"c\":%.2f,\"v\":%u},",
                         1718000000 + i * 60, open, high, low, close, (unsigned)(100000 + (r >> 32) % 900000));
        CHECK(n > 0 && n < ROW_MAX && (i == 0 || (size_t)n == v->row_len));
        v->row_len = (size_t)n;
        memcpy(v->rows + i * v->row_len, row, v->row_len);
        price = close < 120 ? 140 : close > 900 ? 880 : close; /* three digits, so that rows are of one length */
    }
}

struct value_source *value_source_create(enum value_kind kind)
{
    struct value_source *v = calloc(1, sizeof(*v));
    uint64_t seed = HASH_SEED;

    CHECK(v);
    v->kind = kind;
    for (size_t i = 0; i < POOL_WORDS; i++)
        v->pool[i] = rng_next(&seed);
    if (kind == VALUE_JSON)
        make_rows(v, seed);
    return v;
}

void value_source_destroy(struct value_source *v)
{
    free(v);
}

uint64_t value_key_hash(struct slice key)
{
    return hash_bytes(HASH_SEED, key.ptr, key.len);
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t state = a ^ b * 0xff51afd7ed558ccdULL;
    return rng_next(&state);
}

/* Version in the upper half, in the lower what ties it to key and size. */
static uint64_t make_tag(uint64_t key_hash, size_t size, uint32_t version)
{
    return (uint64_t)version << 32 | (uint32_t)mix(key_hash ^ version, size);
}

/* The pool is masked anew for every value and for every time around it, so that neither one value nor
 * several together can be compressed. */
static void write_noise(const struct value_source *v, char *out, size_t size, uint64_t seed)
{
    size_t at = seed % POOL_WORDS;

    while (size) {
        uint64_t mask = rng_next(&seed);
        size_t words = size / 8 < POOL_WORDS - at ? size / 8 : POOL_WORDS - at;
        for (size_t i = 0; i < words; i++) {
            uint64_t w = v->pool[at + i] ^ mask;
            memcpy(out + i * 8, &w, 8);
        }
        out += words * 8;
        size -= words * 8;
        if (size < 8) {
            uint64_t w = rng_next(&seed);
            memcpy(out, &w, size);
            return;
        }
        at = 0;
    }
}

static void write_random(const struct value_source *v, char *out, size_t size, uint64_t key_hash, uint64_t tag)
{
    if (size < VALUE_TAG) {
        uint64_t w = mix(key_hash, size);
        memcpy(out, &w, size);
        return;
    }
    memcpy(out, &tag, VALUE_TAG);
    write_noise(v, out + VALUE_TAG, size - VALUE_TAG, mix(key_hash, tag));
}

/* {"key":"K","version":"0123456789abcdef","rows":[...]   } */
#define JSON_KEY "{\"key\":\""
#define JSON_VERSION "\",\"version\":\""
#define JSON_ROWS "\",\"rows\":["
#define JSON_END "]}"
#define JSON_FRAME (sizeof(JSON_KEY JSON_VERSION JSON_ROWS JSON_END) - 1 + 16)

static bool is_json(const struct value_source *v, size_t size, struct slice key)
{
    return v->kind == VALUE_JSON && size >= JSON_FRAME + key.len;
}

static size_t json_version_at(struct slice key)
{
    return sizeof(JSON_KEY JSON_VERSION) - 1 + key.len;
}

static char *put(char *out, const void *ptr, size_t len)
{
    memcpy(out, ptr, len);
    return out + len;
}

static void write_json(const struct value_source *v, char *out, size_t size, struct slice key, uint64_t tag)
{
    static const char hex[] = "0123456789abcdef";
    size_t room = size - JSON_FRAME - key.len, row = mix(tag, key.len) % ROWS, rows = (room + 1) / v->row_len;

    out = put(out, JSON_KEY, sizeof(JSON_KEY) - 1);
    out = put(out, key.ptr, key.len);
    out = put(out, JSON_VERSION, sizeof(JSON_VERSION) - 1);
    for (int shift = 60; shift >= 0; shift -= 4)
        *out++ = hex[tag >> shift & 15];
    out = put(out, JSON_ROWS, sizeof(JSON_ROWS) - 1);
    for (size_t left = rows; left;) {
        size_t n = left < ROWS - row ? left : ROWS - row;
        out = put(out, v->rows + row * v->row_len, n * v->row_len);
        left -= n;
        row = 0;
    }
    if (rows) {
        out--; /* the last row's comma */
        room -= rows * v->row_len - 1;
    }
    memset(out, ' ', room);
    put(out + room, JSON_END, sizeof(JSON_END) - 1);
}

static void write_tagged(const struct value_source *v, char *out, size_t size, struct slice key, uint64_t hash,
                         uint64_t tag)
{
    if (is_json(v, size, key))
        write_json(v, out, size, key, tag);
    else
        write_random(v, out, size, hash, tag);
}

void value_write(const struct value_source *v, char *out, size_t size, struct slice key, uint32_t version)
{
    uint64_t hash = value_key_hash(key);
    write_tagged(v, out, size, key, hash, make_tag(hash, size, version));
}

static bool read_hex(const char *text, uint64_t *out)
{
    *out = 0;
    for (int i = 0; i < 16; i++) {
        char c = text[i];
        if ((c < '0' || c > '9') && (c < 'a' || c > 'f'))
            return false;
        *out = *out << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return true;
}

const char *value_check(const struct value_source *v, struct slice value, struct slice key, char *scratch)
{
    uint64_t hash = value_key_hash(key), tag = 0;

    if (is_json(v, value.len, key)) {
        if (!read_hex(value.ptr + json_version_at(key), &tag))
            return "no value of this program";
    } else if (value.len >= VALUE_TAG) {
        memcpy(&tag, value.ptr, VALUE_TAG);
    }
    if (value.len >= VALUE_TAG && tag != make_tag(hash, value.len, (uint32_t)(tag >> 32)))
        return "the value of another key, cut short, or no value of this program";
    write_tagged(v, scratch, value.len, key, hash, tag);
    return memcmp(scratch, value.ptr, value.len) == 0 ? NULL : "damaged";
}
