#include <stdlib.h>

#include "object_priv.h"
#include "tiercel/hash.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"
#include "tiercel/type_hash.h"

/* Hashes from the forms in which Redis has stored them. */

#define FEW 32 /* fields that are compared with one another; more by their hashes */

static int compare_hashes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Fields whose hashes are equal count as the same: with 64 bits and a seed that nobody knows, they are. */
static bool many_unique(const unsigned char *lp, size_t n)
{
    uint64_t *hashes = mem_alloc(MEM_OTHER, n * sizeof(*hashes)), seed;
    char scratch[2][NUM_I64_MAX];
    struct slice name, value;
    const unsigned char *p = listpack_first(lp);
    bool unique = true;

    random_bytes(&seed, sizeof(seed));
    for (size_t i = 0; i < n; i++) {
        p = hash_small_read(lp, p, scratch, &name, &value);
        hashes[i] = hash_bytes(seed, name.ptr, name.len);
    }
    qsort(hashes, n, sizeof(*hashes), compare_hashes);
    for (size_t i = 1; i < n && unique; i++)
        unique = hashes[i - 1] != hashes[i];
    mem_free(MEM_OTHER, hashes);
    return unique;
}

static bool fields_unique(const unsigned char *lp)
{
    size_t n = hash_small_len(lp);
    char scratch[2][NUM_I64_MAX];
    struct slice name, value;

    if (n > FEW)
        return many_unique(lp, n);
    for (const unsigned char *p = listpack_first(lp); p;) {
        p = hash_small_read(lp, p, scratch, &name, &value);
        if (p && listpack_find(lp, (unsigned char *)(uintptr_t)p, name, 1))
            return false;
    }
    return true;
}

/* Takes a listpack that came from outside, and makes it a hash if it is one: pairs, and no field twice. */
static bool finish_small(unsigned char *lp, bool keep, enum obj_enc *enc, void **value)
{
    size_t len = listpack_len(lp);

    *enc = keep ? ENC_LISTPACK : ENC_BIG;
    *value = lp;
    if (len == 0 || len % 2 != 0 || (keep && !fields_unique(lp))) {
        listpack_free(lp);
        return false;
    }
    if (!keep)
        *value = hash_big_from_small(lp);
    return *value != NULL;
}

static bool load_listpack(struct rdb_reader *in, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    struct slice s;

    if (!rdb_get_string(in, &s) || !listpack_valid(s))
        return false;
    unsigned char *lp = listpack_from(s);
    return finish_small(lp, !lim || hash_small_len(lp) <= lim->hash_entries, enc, value);
}

/* What an old form is turned into. */
struct gathered {
    unsigned char *lp;
    size_t longest;
};

static bool gather(void *arg, struct slice elem)
{
    struct gathered *g = arg;

    if (listpack_bytes(g->lp) + listpack_cost(elem) > LISTPACK_SAFE_BYTES)
        return false;
    g->lp = listpack_append(g->lp, elem);
    if (elem.len > g->longest)
        g->longest = elem.len;
    return true;
}

/* | pairs 1 (254: count them) | length, field, length, unused 1, value, that many unused | ... | 255 |; a length is a
 * byte, or 254 and four. */
static bool zipmap_len(const char **at, const char *end, size_t *len)
{
    uint32_t len32;
    unsigned char first = (unsigned char)**at;

    ++*at;
    *len = first;
    if (first < 254)
        return true;
    if (first == 255 || (size_t)(end - *at) < sizeof(len32))
        return false;
    memcpy(&len32, *at, sizeof(len32));
    *at += sizeof(len32);
    *len = len32;
    return true;
}

static bool zipmap_elem(const char **at, const char *end, bool is_value, struct gathered *g)
{
    size_t len, unused = 0;

    if (*at == end || !zipmap_len(at, end, &len))
        return false;
    if (is_value) {
        if (*at == end)
            return false;
        unused = (unsigned char)*(*at)++;
    }
    if ((size_t)(end - *at) < unused || (size_t)(end - *at) - unused < len || !gather(g, SLICE(*at, len)))
        return false;
    *at += len + unused;
    return true;
}

static bool zipmap_each(struct slice s, struct gathered *g)
{
    const char *at = s.ptr + 1, *end = s.ptr + s.len - 1;
    size_t n = 0;

    if (s.len < 2 || (unsigned char)*end != 255)
        return false;
    for (; at < end; n++)
        if (!zipmap_elem(&at, end, false, g) || !zipmap_elem(&at, end, true, g))
            return false;
    return (unsigned char)s.ptr[0] >= 254 || n == (unsigned char)s.ptr[0];
}

static bool load_old(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    struct gathered g = {.lp = listpack_new(0)};
    bool zipmap = rdb_type == RDB_HASH_ZIPMAP;
    struct slice s;

    if (!rdb_get_string(in, &s) || !(zipmap ? zipmap_each(s, &g) : rdb_ziplist_each(s, gather, &g))) {
        listpack_free(g.lp);
        return false;
    }
    bool keep = !lim || (hash_small_len(g.lp) <= lim->hash_entries && (!zipmap || g.longest <= lim->hash_value));
    return finish_small(g.lp, keep, enc, value);
}

/* The field is in in->text, where its value will be, if it does not stand in the input as it is. */
static bool load_pair(struct rdb_reader *in, struct buf *kept, struct slice *name, struct slice *value)
{
    if (!rdb_get_string(in, name))
        return false;
    if (name->ptr == in->text->ptr) {
        kept->len = 0;
        buf_slice_append(kept, *name);
        *name = buf_slice(kept);
    }
    return rdb_get_string(in, value);
}

static bool load_pairs(struct rdb_reader *in, uint64_t n, const struct obj_limits *lim, enum obj_enc *enc, void **is)
{
    struct slice name, value;
    struct buf kept;
    bool ok = true;

    buf_init(&kept, MEM_OTHER);
    while (ok && n-- > 0) {
        ok = load_pair(in, &kept, &name, &value);
        if (ok && *enc == ENC_LISTPACK && !hash_small_takes(*is, name, value, lim)) {
            *is = hash_big_from_small(*is);
            *enc = ENC_BIG;
            ok = *is != NULL;
        }
        if (ok && *enc == ENC_BIG)
            ok = hash_big_set(*is, name, value, 0);
        else if (ok)
            *is = listpack_append(listpack_append(*is, name), value);
    }
    buf_deinit(&kept);
    return ok;
}

static bool load_hash(struct rdb_reader *in, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    uint64_t n;

    if (!rdb_get_len(in, &n) || n == 0)
        return false;
    if (lim && n <= lim->hash_entries) {
        *enc = ENC_LISTPACK;
        *value = listpack_new(0);
    } else {
        struct hash *h = hash_big_new();
        if (n <= rdb_left(in) / 4) /* else it claims more than there is, or nearly */
            dict_reserve(&h->fields, (size_t)n);
        *enc = ENC_BIG;
        *value = h;
    }
    if (load_pairs(in, n, lim, enc, value) && (*enc == ENC_BIG || fields_unique(*value)))
        return true;
    if (*value)
        hash_destroy(*enc, *value);
    return false;
}

/* later: 0 = never, else one more than by how much. */
static bool expiry_of(int64_t first, uint64_t later, int64_t *at_ms)
{
    *at_ms = 0;
    if (later == 0)
        return true;
    if (first <= 0 || first > HASH_EXPIRY_MAX || later - 1 > (uint64_t)(HASH_EXPIRY_MAX - first))
        return false;
    *at_ms = first + (int64_t)(later - 1);
    return true;
}

/* RDB_HASH_METADATA: see save_timed(). */
static bool load_timed(struct rdb_reader *in, struct hash *h)
{
    struct slice name, value;
    struct buf kept;
    int64_t first, at_ms;
    uint64_t n, later;

    bool ok = rdb_get_i64(in, &first) && rdb_get_len(in, &n) && n > 0;
    buf_init(&kept, MEM_OTHER);
    while (ok && n-- > 0)
        ok = rdb_get_len(in, &later) && expiry_of(first, later, &at_ms) && load_pair(in, &kept, &name, &value) &&
             hash_big_set(h, name, value, at_ms);
    buf_deinit(&kept);
    return ok;
}

/* RDB_HASH_LISTPACK_EX: when the first one expires; a listpack of fields, values, and when each expires, or 0. */
static bool load_timed_listpack(struct rdb_reader *in, struct hash *h)
{
    char scratch[2][NUM_I64_MAX];
    struct slice s, name, value;
    struct listpack_value at;
    int64_t first;

    if (!rdb_get_i64(in, &first) || !rdb_get_string(in, &s) || !listpack_valid(s))
        return false;
    const unsigned char *lp = (const unsigned char *)s.ptr, *p = listpack_first(lp);
    if (listpack_len(lp) == 0 || listpack_len(lp) % 3 != 0)
        return false;
    while (p) {
        p = hash_small_read(lp, p, scratch, &name, &value);
        listpack_get(p, &at);
        if (at.str.ptr || at.num < 0 || at.num > HASH_EXPIRY_MAX || !hash_big_set(h, name, value, at.num))
            return false;
        p = listpack_next(lp, p);
    }
    return true;
}

static bool load_expiring(struct rdb_reader *in, int rdb_type, enum obj_enc *enc, void **value)
{
    struct hash *h = hash_big_new();

    *enc = ENC_BIG;
    *value = h;
    if (rdb_type == RDB_HASH_METADATA ? load_timed(in, h) : load_timed_listpack(in, h))
        return true;
    hash_big_free(h);
    return false;
}

bool hash_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    switch (rdb_type) {
    case RDB_HASH: return load_hash(in, lim, enc, value);
    case RDB_HASH_LISTPACK: return load_listpack(in, lim, enc, value);
    case RDB_HASH_METADATA:
    case RDB_HASH_LISTPACK_EX: return load_expiring(in, rdb_type, enc, value);
    default: return load_old(in, rdb_type, lim, enc, value);
    }
}
