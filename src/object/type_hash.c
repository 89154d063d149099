#include "tiercel/type_hash.h"

#include <stdlib.h>

#include "object_priv.h"
#include "tiercel/hash.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"

/* ---- many fields, or some that expire ---- */

struct hash {
    struct dict fields;
    size_t bytes;             /* of all fields' allocations */
    size_t text;              /* of the fields and values themselves */
    struct dict_entry **heap; /* those that expire, the soonest first: a binary heap */
    size_t timed, room;       /* how many, and how many it has room for */
};

/* One allocation: both lengths, the field, its value; before them 255 and when it expires, if it does. */
struct field {
    struct dict_entry link;
    char rest[];
};

#define TIMED 0xff
struct timing {
    int64_t at_ms;
    uint32_t place; /* in the heap */
} __attribute__((packed));

static size_t field_bytes(size_t name, size_t value, bool timed)
{
    return sizeof(struct field) + (timed ? 1 + sizeof(struct timing) : 0) + entry_len_bytes(name) +
           entry_len_bytes(value) + name + value;
}

/* NULL: it does not expire. */
static struct timing *field_timing(const struct dict_entry *e)
{
    char *rest = ((struct field *)(uintptr_t)e)->rest;

    return (unsigned char)*rest == TIMED ? (struct timing *)(void *)(rest + 1) : NULL;
}

static int64_t field_at(const struct dict_entry *e)
{
    const struct timing *t = field_timing(e);

    return t ? t->at_ms : 0;
}

static void field_read(const struct dict_entry *e, struct slice *name, struct slice *value)
{
    const char *at = ((const struct field *)e)->rest;

    if (UNLIKELY((unsigned char)*at == TIMED))
        at += 1 + sizeof(struct timing);
    at = entry_len_get(at, &name->len);
    name->ptr = entry_len_get(at, &value->len);
    value->ptr = name->ptr + name->len;
}

static struct slice field_name(const struct dict_entry *e)
{
    struct slice name, value;

    field_read(e, &name, &value);
    return name;
}

static size_t field_size(const struct dict_entry *e)
{
    struct slice name, value;

    field_read(e, &name, &value);
    return field_bytes(name.len, value.len, field_timing(e) != NULL);
}

/* ---- those that expire ---- */

static void heap_put(struct hash *h, size_t i, struct dict_entry *e)
{
    h->heap[i] = e;
    field_timing(e)->place = (uint32_t)i;
}

/* Puts e where place i is now, or nearer the root or the leaves, as its time says. */
static void heap_sift(struct hash *h, size_t i, struct dict_entry *e)
{
    int64_t at = field_at(e);

    for (; i > 0 && field_at(h->heap[(i - 1) / 2]) > at; i = (i - 1) / 2)
        heap_put(h, i, h->heap[(i - 1) / 2]);
    for (size_t child; (child = 2 * i + 1) < h->timed; i = child) {
        if (child + 1 < h->timed && field_at(h->heap[child + 1]) < field_at(h->heap[child]))
            child++;
        if (field_at(h->heap[child]) >= at)
            break;
        heap_put(h, i, h->heap[child]);
    }
    heap_put(h, i, e);
}

static void heap_add(struct hash *h, struct dict_entry *e)
{
    CHECK(h->timed < UINT32_MAX);
    if (h->timed == h->room) {
        h->room = h->room ? 2 * h->room : 4;
        h->heap = mem_realloc(MEM_DATA, h->heap, h->room * sizeof(struct dict_entry *));
    }
    h->timed++;
    heap_sift(h, h->timed - 1, e);
}

static void heap_remove(struct hash *h, const struct dict_entry *e)
{
    size_t i = field_timing(e)->place;
    struct dict_entry *last = h->heap[--h->timed];

    if (last != e)
        heap_sift(h, i, last);
    if (h->timed == 0) {
        mem_free(MEM_DATA, h->heap);
        h->heap = NULL;
        h->room = 0;
    }
}

/* ---- fields ---- */

static void copy_text(char *at, struct slice s)
{
    if (s.len)
        memcpy(at, s.ptr, s.len);
}

/* It counts for the hash from now on. at_ms 0: it does not expire. */
static struct dict_entry *field_new(struct hash *h, struct slice name, struct slice value, int64_t at_ms)
{
    size_t bytes = field_bytes(name.len, value.len, at_ms != 0);
    struct field *f = mem_alloc(MEM_DATA, bytes);
    char *at = f->rest;

    if (at_ms) {
        *at = (char)TIMED;
        field_timing(&f->link)->at_ms = at_ms;
        at += 1 + sizeof(struct timing);
        heap_add(h, &f->link);
    }
    at = entry_len_put(entry_len_put(at, name.len), value.len);
    copy_text(at, name);
    copy_text(at + name.len, value);
    h->bytes += mem_usable_sized(f, bytes);
    h->text += name.len + value.len;
    return &f->link;
}

static void field_free(struct hash *h, struct dict_entry *e)
{
    struct slice name, value;
    size_t bytes = field_size(e);

    field_read(e, &name, &value);
    if (field_timing(e))
        heap_remove(h, e);
    h->bytes -= mem_usable_sized(e, bytes);
    h->text -= name.len + value.len;
    mem_free_sized(MEM_DATA, e, bytes);
}

static struct hash *big_new(void)
{
    struct hash *h = mem_calloc(MEM_DATA, sizeof(*h));

    dict_init(&h->fields, field_name);
    return h;
}

static bool big_get(const struct hash *h, struct slice name, struct slice *value)
{
    struct slice same;
    const struct dict_entry *e = dict_find(&h->fields, name);

    if (e)
        field_read(e, &same, value);
    return e != NULL;
}

#define KEEP (-1) /* when it expires is as it was */

/* true: the field is new. */
static bool big_set(struct hash *h, struct slice name, struct slice value, int64_t at_ms)
{
    struct dict_entry **place = dict_place(&h->fields, name), *old;
    struct slice same, was;

    if (!place) {
        dict_add(&h->fields, field_new(h, name, value, at_ms == KEEP ? 0 : at_ms));
        return true;
    }
    old = *place;
    if (at_ms == KEEP)
        at_ms = field_at(old);
    field_read(old, &same, &was);
    if (was.len == value.len && at_ms == field_at(old)) {
        if (was.ptr != value.ptr)
            copy_text((char *)(uintptr_t)was.ptr, value);
        return false;
    }
    *place = field_new(h, same, value, at_ms);
    (*place)->next = old->next;
    field_free(h, old);
    return false;
}

static bool big_delete(struct hash *h, struct slice name)
{
    struct dict_entry *e = dict_remove(&h->fields, name);

    if (e)
        field_free(h, e);
    return e != NULL;
}

static void big_free_field(void *arg, struct dict_entry *e)
{
    (void)arg;
    mem_free_sized(MEM_DATA, e, field_size(e));
}

static void big_free(struct hash *h)
{
    dict_clear(&h->fields, big_free_field, NULL);
    mem_free(MEM_DATA, h->heap);
    mem_free(MEM_DATA, h);
}

/* ---- few: a listpack of fields and values in turn ---- */

static unsigned char *small_find(const unsigned char *lp, struct slice name)
{
    unsigned char *p = listpack_first(lp);

    return p ? listpack_find(lp, p, name, 1) : NULL;
}

static unsigned char *small_set(unsigned char *lp, struct slice name, struct slice value, bool *is_new)
{
    unsigned char *p = small_find(lp, name);

    *is_new = !p;
    if (p)
        return listpack_replace(lp, listpack_next(lp, p), value, NULL);
    return listpack_append(listpack_append(lp, name), value);
}

/* One field, and the value behind it. Returns the next field's place. */
static const unsigned char *small_read(const unsigned char *lp, const unsigned char *p, char scratch[2][NUM_I64_MAX],
                                       struct slice *name, struct slice *value)
{
    *name = listpack_str(p, scratch[0]);
    p = listpack_next(lp, p);
    *value = listpack_str(p, scratch[1]);
    return listpack_next(lp, p);
}

static size_t small_len(const unsigned char *lp)
{
    return listpack_len(lp) / 2;
}

/* A hash table of the same fields, in place of the listpack. NULL: one is there twice. */
static struct hash *big_from_small(unsigned char *lp)
{
    struct hash *h = big_new();
    char scratch[2][NUM_I64_MAX];
    struct slice name, value;

    dict_reserve(&h->fields, small_len(lp) + 1);
    for (const unsigned char *p = listpack_first(lp); p;) {
        p = small_read(lp, p, scratch, &name, &value);
        if (!big_set(h, name, value, 0)) {
            big_free(h);
            h = NULL;
            break;
        }
    }
    listpack_free(lp);
    return h;
}

static void grow(enum obj_enc *enc, void **value)
{
    struct hash *h = big_from_small(*value);

    CHECK(h != NULL);
    *enc = ENC_BIG;
    *value = h;
}

static bool small_takes(const unsigned char *lp, struct slice name, struct slice value, const struct obj_limits *lim)
{
    return name.len <= lim->hash_value && value.len <= lim->hash_value &&
           listpack_bytes(lp) + listpack_cost(name) + listpack_cost(value) <= LISTPACK_SAFE_BYTES;
}

/* ---- hashes ---- */

struct object *hash_new(const struct key *key)
{
    return object_new_ptr(key, OBJ_HASH, ENC_LISTPACK, listpack_new(0), 0, 0);
}

bool hash_get(const struct object *o, struct slice field, char scratch[NUM_I64_MAX], struct slice *value)
{
    if (o->enc == ENC_BIG)
        return big_get(object_ptr(o), field, value);
    const unsigned char *lp = object_ptr(o), *p = small_find(lp, field);
    if (p)
        *value = listpack_str(listpack_next(lp, p), scratch);
    return p != NULL;
}

bool hash_has(const struct object *o, struct slice field)
{
    char scratch[NUM_I64_MAX];
    struct slice value;

    return hash_get(o, field, scratch, &value);
}

static bool set(struct object *o, struct slice field, struct slice value, int64_t at_ms, const struct obj_limits *lim)
{
    enum obj_enc enc = o->enc;
    void *is = object_ptr(o);
    bool is_new;

    if (enc == ENC_LISTPACK && !small_takes(is, field, value, lim))
        grow(&enc, &is);
    if (enc == ENC_LISTPACK) {
        is = small_set(is, field, value, &is_new);
        if (small_len(is) > lim->hash_entries)
            grow(&enc, &is);
    } else {
        is_new = big_set(is, field, value, at_ms);
    }
    object_set_ptr(o, enc, is);
    return is_new;
}

bool hash_set(struct object *o, struct slice field, struct slice value, const struct obj_limits *lim)
{
    return set(o, field, value, 0, lim);
}

bool hash_update(struct object *o, struct slice field, struct slice value, const struct obj_limits *lim)
{
    return set(o, field, value, KEEP, lim);
}

bool hash_delete(struct object *o, struct slice field)
{
    if (o->enc == ENC_BIG)
        return big_delete(object_ptr(o), field);
    unsigned char *lp = object_ptr(o), *p = small_find(lp, field);
    if (p)
        object_set_ptr(o, ENC_LISTPACK, listpack_remove(lp, p, 2, NULL));
    return p != NULL;
}

/* ---- expiry of fields ---- */

bool hash_field_expiry(const struct object *o, struct slice field, int64_t *at_ms)
{
    *at_ms = 0;
    if (o->enc == ENC_LISTPACK)
        return small_find(object_ptr(o), field) != NULL;
    const struct dict_entry *e = dict_find(&((struct hash *)object_ptr(o))->fields, field);
    if (e)
        *at_ms = field_at(e);
    return e != NULL;
}

void hash_set_field_expiry(struct object *o, struct slice field, int64_t at_ms)
{
    enum obj_enc enc = o->enc;
    void *is = object_ptr(o);
    struct slice value;

    if (enc == ENC_LISTPACK) {
        if (!at_ms)
            return;
        grow(&enc, &is);
        object_set_ptr(o, enc, is);
    }
    struct hash *h = is;
    struct dict_entry *e = dict_find(&h->fields, field);
    CHECK(e != NULL);
    struct timing *t = field_timing(e);
    if (t && at_ms) {
        t->at_ms = at_ms;
        heap_sift(h, t->place, e);
    } else {
        CHECK(big_get(h, field, &value));
        big_set(h, field, value, at_ms);
    }
}

size_t hash_expire_fields(struct object *o, int64_t now_ms)
{
    struct hash *h = object_ptr(o);
    size_t n = 0;

    if (o->enc == ENC_LISTPACK)
        return 0;
    for (; h->timed > 0 && field_at(h->heap[0]) <= now_ms; n++)
        big_delete(h, field_name(h->heap[0]));
    return n;
}

/* ---- walking ---- */

struct hash_iter hash_iter(const struct object *o)
{
    struct hash_iter it = {.o = o};

    if (o->enc == ENC_BIG)
        it.big = dict_iter(&((struct hash *)object_ptr(o))->fields);
    else
        it.small = listpack_first(object_ptr(o));
    return it;
}

bool hash_next(struct hash_iter *it, struct slice *field, struct slice *value)
{
    if (it->o->enc == ENC_BIG) {
        const struct dict_entry *e = dict_next(&it->big);
        if (e)
            field_read(e, field, value);
        return e != NULL;
    }
    if (!it->small)
        return false;
    it->small = small_read(object_ptr(it->o), it->small, it->scratch, field, value);
    return true;
}

struct step {
    hash_field_fn *fn;
    void *arg;
};

static void step_field(void *arg, struct dict_entry *e)
{
    const struct step *step = arg;
    struct slice name, value;

    field_read(e, &name, &value);
    step->fn(step->arg, name, value);
}

uint64_t hash_scan(const struct object *o, uint64_t cursor, hash_field_fn *fn, void *arg)
{
    struct step step = {fn, arg};
    struct slice name, value;

    if (o->enc == ENC_BIG)
        return dict_scan(&((struct hash *)object_ptr(o))->fields, cursor, step_field, &step);
    struct hash_iter it = hash_iter(o);
    while (hash_next(&it, &name, &value))
        fn(arg, name, value);
    return 0;
}

/* ---- chance ---- */

void hash_draw(const struct object *o, size_t n, uint64_t *rng,
               bool (*fn)(void *arg, struct slice field, struct slice value), void *arg)
{
    size_t len = object_len(o);
    char scratch[2][NUM_I64_MAX];
    struct slice name, value;

    CHECK(len > 0);
    for (bool more = true; more && n > 0; n--) {
        if (o->enc == ENC_BIG) {
            field_read(dict_random(&((struct hash *)object_ptr(o))->fields, rng), &name, &value);
        } else {
            const unsigned char *lp = object_ptr(o);
            small_read(lp, listpack_at(lp, (long)(rng_next(rng) % len * 2)), scratch, &name, &value);
        }
        more = fn(arg, name, value);
    }
}

void hash_sample(const struct object *o, size_t n, uint64_t *rng, hash_field_fn *fn, void *arg)
{
    size_t left = object_len(o);
    struct slice name, value;

    CHECK(n <= left);
    if (o->enc == ENC_BIG) {
        struct step step = {fn, arg};
        struct dict_entry **some = dict_sample(&((struct hash *)object_ptr(o))->fields, n, rng);
        for (size_t i = 0; i < n; i++)
            step_field(&step, some[i]);
        mem_free(MEM_OTHER, some);
        return;
    }
    struct hash_iter it = hash_iter(o);
    for (; n > 0 && hash_next(&it, &name, &value); left--) {
        if (rng_next(rng) % left >= n) /* of those that are left, n are still to be taken */
            continue;
        fn(arg, name, value);
        n--;
    }
}

/* ---- as a type of object ---- */

static const char *hash_encoding(enum obj_enc enc)
{
    return enc == ENC_LISTPACK ? "listpack" : "hashtable";
}

static void hash_destroy(enum obj_enc enc, void *value)
{
    if (enc == ENC_LISTPACK)
        listpack_free(value);
    else
        big_free(value);
}

static bool copy_field(void *arg, struct dict_entry *e)
{
    struct slice name, value;

    field_read(e, &name, &value);
    struct hash *h = arg;
    dict_add(&h->fields, field_new(h, name, value, field_at(e)));
    return true;
}

static void *hash_copy(enum obj_enc enc, const void *value)
{
    if (enc == ENC_LISTPACK)
        return listpack_copy(value);
    const struct hash *from = value;
    struct hash *h = big_new();
    dict_reserve(&h->fields, from->fields.count);
    dict_each(&from->fields, copy_field, h);
    return h;
}

static size_t hash_bytes_used(enum obj_enc enc, const void *value)
{
    const struct hash *h = value;

    if (enc == ENC_LISTPACK)
        return listpack_usable(value);
    return mem_usable(h) + h->bytes + dict_bytes(&h->fields) + (h->heap ? mem_usable(h->heap) : 0);
}

static size_t hash_len(enum obj_enc enc, const void *value)
{
    return enc == ENC_LISTPACK ? small_len(value) : ((const struct hash *)value)->fields.count;
}

static size_t hash_stored(enum obj_enc enc, const void *value)
{
    const struct hash *h = value;

    return enc == ENC_LISTPACK ? listpack_bytes(value) : h->text + 2 * h->fields.count + 4 * h->timed;
}

static bool save_field(void *arg, struct dict_entry *e)
{
    struct slice name, value;

    field_read(e, &name, &value);
    rdb_put_string(arg, name);
    rdb_put_string(arg, value);
    return true;
}

/* As Redis 7.4 has it: when the first one expires, and of each by how much later, and one, or 0 if it does not. */
static void save_timed(const struct hash *h, struct buf *out)
{
    int64_t first = field_at(h->heap[0]);
    struct dict_iter it = dict_iter(&h->fields);

    buf_byte(out, RDB_HASH_METADATA);
    rdb_put_i64(out, first);
    rdb_put_len(out, h->fields.count);
    for (struct dict_entry *e; (e = dict_next(&it));) {
        int64_t at = field_at(e);
        rdb_put_len(out, at ? (uint64_t)(at - first) + 1 : 0);
        save_field(out, e);
    }
}

static void hash_save(enum obj_enc enc, const void *value, struct buf *out)
{
    const struct hash *h = value;

    if (enc == ENC_LISTPACK) {
        buf_byte(out, RDB_HASH_LISTPACK);
        rdb_put_raw(out, listpack_slice(value));
    } else if (h->timed) {
        save_timed(h, out);
    } else {
        buf_byte(out, RDB_HASH);
        rdb_put_len(out, h->fields.count);
        dict_each(&h->fields, save_field, out);
    }
}

/* ---- reading it ---- */

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
        p = small_read(lp, p, scratch, &name, &value);
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
    size_t n = small_len(lp);
    char scratch[2][NUM_I64_MAX];
    struct slice name, value;

    if (n > FEW)
        return many_unique(lp, n);
    for (const unsigned char *p = listpack_first(lp); p;) {
        p = small_read(lp, p, scratch, &name, &value);
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
        *value = big_from_small(lp);
    return *value != NULL;
}

static bool load_listpack(struct rdb_reader *in, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    struct slice s;

    if (!rdb_get_string(in, &s) || !listpack_valid(s))
        return false;
    unsigned char *lp = listpack_from(s);
    return finish_small(lp, !lim || small_len(lp) <= lim->hash_entries, enc, value);
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
    bool keep = !lim || (small_len(g.lp) <= lim->hash_entries && (!zipmap || g.longest <= lim->hash_value));
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
        if (ok && *enc == ENC_LISTPACK && !small_takes(*is, name, value, lim)) {
            *is = big_from_small(*is);
            *enc = ENC_BIG;
            ok = *is != NULL;
        }
        if (ok && *enc == ENC_BIG)
            ok = big_set(*is, name, value, 0);
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
        struct hash *h = big_new();
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
             big_set(h, name, value, at_ms);
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
        p = small_read(lp, p, scratch, &name, &value);
        listpack_get(p, &at);
        if (at.str.ptr || at.num < 0 || at.num > HASH_EXPIRY_MAX || !big_set(h, name, value, at.num))
            return false;
        p = listpack_next(lp, p);
    }
    return true;
}

static bool load_expiring(struct rdb_reader *in, int rdb_type, enum obj_enc *enc, void **value)
{
    struct hash *h = big_new();

    *enc = ENC_BIG;
    *value = h;
    if (rdb_type == RDB_HASH_METADATA ? load_timed(in, h) : load_timed_listpack(in, h))
        return true;
    big_free(h);
    return false;
}

static bool hash_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc,
                      void **value)
{
    switch (rdb_type) {
    case RDB_HASH: return load_hash(in, lim, enc, value);
    case RDB_HASH_LISTPACK: return load_listpack(in, lim, enc, value);
    case RDB_HASH_METADATA:
    case RDB_HASH_LISTPACK_EX: return load_expiring(in, rdb_type, enc, value);
    default: return load_old(in, rdb_type, lim, enc, value);
    }
}

const struct object_ops hash_ops = {
    .name = "hash",
    .encoding = hash_encoding,
    .destroy = hash_destroy,
    .copy = hash_copy,
    .bytes = hash_bytes_used,
    .len = hash_len,
    .stored = hash_stored,
    .save = hash_save,
    .load = hash_load,
};
