#include "tiercel/type_hash.h"

#include "object_priv.h"
#include "tiercel/hash.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"

/* ---- many fields, or some that expire ---- */

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

struct hash *hash_big_new(void)
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

bool hash_big_set(struct hash *h, struct slice name, struct slice value, int64_t at_ms)
{
    struct dict_entry **place = dict_place(&h->fields, name), *old;
    struct slice same, was;

    if (!place) {
        dict_add(&h->fields, field_new(h, name, value, at_ms == HASH_KEEP ? 0 : at_ms));
        return true;
    }
    old = *place;
    if (at_ms == HASH_KEEP)
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

void hash_big_free(struct hash *h)
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

const unsigned char *hash_small_read(const unsigned char *lp, const unsigned char *p, char scratch[2][NUM_I64_MAX],
                                     struct slice *name, struct slice *value)
{
    *name = listpack_str(p, scratch[0]);
    p = listpack_next(lp, p);
    *value = listpack_str(p, scratch[1]);
    return listpack_next(lp, p);
}

size_t hash_small_len(const unsigned char *lp)
{
    return listpack_len(lp) / 2;
}

struct hash *hash_big_from_small(unsigned char *lp)
{
    struct hash *h = hash_big_new();
    char scratch[2][NUM_I64_MAX];
    struct slice name, value;

    dict_reserve(&h->fields, hash_small_len(lp) + 1);
    for (const unsigned char *p = listpack_first(lp); p;) {
        p = hash_small_read(lp, p, scratch, &name, &value);
        if (!hash_big_set(h, name, value, 0)) {
            hash_big_free(h);
            h = NULL;
            break;
        }
    }
    listpack_free(lp);
    return h;
}

static void grow(enum obj_enc *enc, void **value)
{
    struct hash *h = hash_big_from_small(*value);

    CHECK(h != NULL);
    *enc = ENC_BIG;
    *value = h;
}

bool hash_small_takes(const unsigned char *lp, struct slice name, struct slice value, const struct obj_limits *lim)
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

    if (enc == ENC_LISTPACK && !hash_small_takes(is, field, value, lim))
        grow(&enc, &is);
    if (enc == ENC_LISTPACK) {
        is = small_set(is, field, value, &is_new);
        if (hash_small_len(is) > lim->hash_entries)
            grow(&enc, &is);
    } else {
        is_new = hash_big_set(is, field, value, at_ms);
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
    return set(o, field, value, HASH_KEEP, lim);
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
        hash_big_set(h, field, value, at_ms);
    }
}

int64_t hash_first_expiry(const struct object *o)
{
    const struct hash *h = object_ptr(o);

    return o->enc == ENC_BIG && h->timed > 0 ? field_at(h->heap[0]) : 0;
}

size_t hash_expire_fields(struct object *o, int64_t now_ms, size_t max)
{
    struct hash *h = object_ptr(o);
    size_t n = 0;

    if (o->enc == ENC_LISTPACK)
        return 0;
    for (; n < max && h->timed > 0 && field_at(h->heap[0]) <= now_ms; n++)
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
    it->small = hash_small_read(object_ptr(it->o), it->small, it->scratch, field, value);
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
            hash_small_read(lp, listpack_at(lp, (long)(rng_next(rng) % len * 2)), scratch, &name, &value);
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

void hash_destroy(enum obj_enc enc, void *value)
{
    if (enc == ENC_LISTPACK)
        listpack_free(value);
    else
        hash_big_free(value);
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
    struct hash *h = hash_big_new();
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
    return enc == ENC_LISTPACK ? hash_small_len(value) : ((const struct hash *)value)->fields.count;
}

static size_t hash_stored(enum obj_enc enc, const void *value)
{
    const struct hash *h = value;

    return enc == ENC_LISTPACK ? listpack_bytes(value) : h->text + 2 * h->fields.count + 4 * h->timed;
}

static void save_field(void *arg, struct dict_entry *e)
{
    struct slice name, value;

    field_read(e, &name, &value);
    rdb_put_string(arg, name);
    rdb_put_string(arg, value);
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

static bool hash_save_part(enum obj_enc enc, const void *value, uint64_t *at, size_t bytes, struct buf *out)
{
    const struct hash *h = value;

    if (enc == ENC_LISTPACK) {
        buf_byte(out, RDB_HASH_LISTPACK);
        rdb_put_raw(out, listpack_slice(value));
        return true;
    }
    if (h->timed) {
        save_timed(h, out);
        return true;
    }
    if (*at == 0) {
        buf_byte(out, RDB_HASH);
        rdb_put_len(out, h->fields.count);
    }
    return dict_save_part(&h->fields, at, bytes, save_field, out);
}

const struct object_ops hash_ops = {
    .name = "hash",
    .encoding = hash_encoding,
    .destroy = hash_destroy,
    .copy = hash_copy,
    .bytes = hash_bytes_used,
    .len = hash_len,
    .stored = hash_stored,
    .save_part = hash_save_part,
    .load = hash_load,
};
