#include "tiercel/type_zset.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "object_priv.h"
#include "tiercel/listpack.h"
#include "tiercel/pace.h"
#include "tiercel/rdb.h"

/* The value of ENC_BIG. The dict and the tree link the same entries. */
struct zbig {
    struct dict dict;
    struct zset_tree tree;
    size_t bytes; /* of the entries */
    size_t text;  /* of the names */
};

struct zset_draft {
    struct zbig big;  /* its tree is made last */
    struct buf order; /* struct zset_entry *: as they came, which mostly is their order or its reverse */
    size_t longest;
};

static unsigned char *lp_of(const struct object *o)
{
    return object_ptr(o);
}

static struct zbig *big_of(const struct object *o)
{
    return object_ptr(o);
}

static bool is_big(const struct object *o)
{
    return o->enc == ENC_BIG;
}

/* ---- scores in a listpack ------------------------------------------------------------ */

/* As text that a listpack keeps as an integer where it is one of those that Redis keeps so, and else has as it is. */
static struct slice score_text(double score, char out[NUM_F64_SHORT])
{
    int64_t whole;

    if (fabs(score) > (double)(INT64_MAX / 2) || (double)(whole = (int64_t)score) != score)
        return SLICE(out, num_format_f64(out, score));
    return SLICE(out, num_format_i64(out, whole));
}

/* false: it is no score. */
static bool score_read(const unsigned char *p, double *score)
{
    struct listpack_value v;

    listpack_get(p, &v);
    if (!v.str.ptr) {
        *score = (double)v.num;
        return true;
    }
    return num_parse_double(v.str, score);
}

static double score_at(const unsigned char *p)
{
    double score = 0;

    CHECK(score_read(p, &score));
    return score;
}

/* ---- large ones ---------------------------------------------------------------------- */

static struct slice entry_key(const struct dict_entry *e)
{
    return zset_entry_name((const struct zset_entry *)e);
}

static void big_init(struct zbig *z)
{
    *z = (struct zbig){.bytes = 0};
    dict_init(&z->dict, entry_key);
}

static struct zbig *big_create(void)
{
    struct zbig *z = mem_alloc(MEM_DATA, sizeof(*z));

    big_init(z);
    return z;
}

static void entry_free(void *arg, struct dict_entry *link)
{
    struct zset_entry *e = (struct zset_entry *)link;
    (void)arg;

    mem_free_sized(MEM_DATA, e, zset_entry_bytes(zset_entry_name(e).len));
}

static void big_clear(struct zbig *z)
{
    ztree_clear(&z->tree);
    dict_clear(&z->dict, entry_free, NULL);
}

static void big_destroy(struct zbig *z)
{
    big_clear(z);
    mem_free(MEM_DATA, z);
}

/* Into the dict only. */
static struct zset_entry *big_name(struct zbig *z, struct slice name, double score)
{
    CHECK(name.len <= UINT32_MAX);
    struct zset_entry *e = mem_alloc(MEM_DATA, zset_entry_bytes(name.len));
    uint32_t len = (uint32_t)name.len;
    e->score = score;
    e->text[0] = (unsigned char)(len < ZSET_LEN_LONG ? len : ZSET_LEN_LONG);
    if (len >= ZSET_LEN_LONG)
        memcpy(e->text + 1, &len, sizeof(len));
    if (len)
        memcpy((char *)(uintptr_t)zset_entry_name(e).ptr, name.ptr, len);
    dict_add(&z->dict, &e->link);
    z->bytes += mem_usable_sized(e, zset_entry_bytes(name.len));
    z->text += name.len;
    return e;
}

static void big_add(struct zbig *z, struct slice name, double score)
{
    ztree_add(&z->tree, big_name(z, name, score));
}

static void big_remove(struct zbig *z, struct zset_entry *e)
{
    struct slice name = zset_entry_name(e);

    ztree_remove(&z->tree, e);
    CHECK(dict_remove(&z->dict, name) == &e->link);
    z->bytes -= mem_usable_sized(e, zset_entry_bytes(name.len));
    z->text -= name.len;
    entry_free(NULL, &e->link);
}

static struct zset_entry *big_find(const struct zbig *z, struct slice name)
{
    return (struct zset_entry *)dict_find(&z->dict, name);
}

static void to_big(struct object *o)
{
    unsigned char *lp = lp_of(o);
    struct zbig *z = big_create();
    char scratch[NUM_I64_MAX];

    for (unsigned char *p = listpack_first(lp), *s; p; p = listpack_next(lp, s)) {
        s = listpack_next(lp, p);
        big_add(z, listpack_str(p, scratch), score_at(s));
    }
    listpack_free(lp);
    object_set_ptr(o, ENC_BIG, z);
}

/* ---- small ones ---------------------------------------------------------------------- */

static unsigned char *lp_find(unsigned char *lp, struct slice name)
{
    return listpack_find(lp, listpack_first(lp), name, 1);
}

static unsigned char *lp_append(unsigned char *lp, struct slice name, double score)
{
    char text[NUM_F64_SHORT];

    lp = listpack_append(lp, name);
    return listpack_append(lp, score_text(score, text));
}

/* The first member that belongs behind it. */
static unsigned char *lp_behind(unsigned char *lp, struct slice name, double score)
{
    char scratch[NUM_I64_MAX];

    for (unsigned char *p = listpack_first(lp), *s; p; p = listpack_next(lp, s)) {
        s = listpack_next(lp, p);
        double other = score_at(s);
        if (other > score || (other == score && slice_order(listpack_str(p, scratch), name) > 0))
            return p;
    }
    return NULL;
}

static unsigned char *lp_add(unsigned char *lp, struct slice name, double score)
{
    char text[NUM_F64_SHORT];
    unsigned char *p = lp_behind(lp, name, score);

    if (!p)
        return lp_append(lp, name, score);
    lp = listpack_insert(lp, p, name, &p);
    return listpack_insert(lp, listpack_next(lp, p), score_text(score, text), NULL);
}

static size_t lp_rank(const unsigned char *lp, const unsigned char *member)
{
    size_t rank = 0;

    for (const unsigned char *p = listpack_first(lp); p != member; rank++)
        p = listpack_next(lp, listpack_next(lp, p));
    return rank;
}

/* ---- members ------------------------------------------------------------------------- */

struct object *zset_new(const struct key *key, const struct obj_limits *lim, size_t name_len)
{
    if (lim->zset_entries == 0 || name_len > lim->zset_value)
        return object_new_ptr(key, OBJ_ZSET, ENC_BIG, big_create(), 0, 0);
    return object_new_ptr(key, OBJ_ZSET, ENC_LISTPACK, listpack_new(0), 0, 0);
}

bool zset_score(const struct object *o, struct slice name, double *score)
{
    if (is_big(o)) {
        const struct zset_entry *e = big_find(big_of(o), name);
        if (e)
            *score = e->score;
        return e != NULL;
    }
    const unsigned char *p = lp_find(lp_of(o), name);
    if (p)
        *score = score_at(listpack_next(lp_of(o), p));
    return p != NULL;
}

bool zset_rank(const struct object *o, struct slice name, size_t *rank)
{
    if (is_big(o)) {
        const struct zset_entry *e = big_find(big_of(o), name);
        if (e)
            *rank = ztree_rank(&big_of(o)->tree, e);
        return e != NULL;
    }
    const unsigned char *p = lp_find(lp_of(o), name);
    if (p)
        *rank = lp_rank(lp_of(o), p);
    return p != NULL;
}

/* Of one that is there: may it be changed, and to what? UPDATED: to another score than it has. */
static enum zset_result rescore(double now, double *score, unsigned how)
{
    double to = how & ZSET_INCR ? now + *score : *score;

    if (how & ZSET_NX)
        return ZSET_NOTHING;
    if (isnan(to))
        return ZSET_NAN;
    if ((how & ZSET_LT && to >= now) || (how & ZSET_GT && to <= now))
        return ZSET_NOTHING;
    *score = to;
    return to != now ? ZSET_UPDATED : ZSET_SAME;
}

static enum zset_result big_set(struct zbig *z, struct slice name, double *score, unsigned how)
{
    struct zset_entry *e = big_find(z, name);

    if (e) {
        enum zset_result res = rescore(e->score, score, how);
        if (res == ZSET_UPDATED)
            ztree_rescore(&z->tree, e, *score);
        return res;
    }
    if (how & ZSET_XX)
        return ZSET_NOTHING;
    big_add(z, name, *score);
    return ZSET_ADDED;
}

static bool lp_takes(const unsigned char *lp, struct slice name, const struct obj_limits *lim)
{
    return name.len <= lim->zset_value && listpack_len(lp) / 2 < lim->zset_entries &&
           listpack_bytes(lp) + name.len + 2 * NUM_F64_SHORT <= LISTPACK_SAFE_BYTES;
}

enum zset_result zset_add(struct object *o, struct slice name, double *score, unsigned how,
                          const struct obj_limits *lim)
{
    if (is_big(o))
        return big_set(big_of(o), name, score, how);
    unsigned char *lp = lp_of(o), *p = lp_find(lp, name);
    if (p) {
        enum zset_result res = rescore(score_at(listpack_next(lp, p)), score, how);
        if (res == ZSET_UPDATED) {
            lp = listpack_remove(lp, p, 2, NULL);
            object_set_ptr(o, ENC_LISTPACK, lp_add(lp, name, *score));
        }
        return res;
    }
    if (how & ZSET_XX)
        return ZSET_NOTHING;
    if (lp_takes(lp, name, lim)) {
        object_set_ptr(o, ENC_LISTPACK, lp_add(lp, name, *score));
    } else {
        to_big(o);
        big_add(big_of(o), name, *score);
    }
    return ZSET_ADDED;
}

bool zset_remove(struct object *o, struct slice name)
{
    if (is_big(o)) {
        struct zset_entry *e = big_find(big_of(o), name);
        if (e)
            big_remove(big_of(o), e);
        return e != NULL;
    }
    unsigned char *p = lp_find(lp_of(o), name);
    if (p)
        object_set_ptr(o, ENC_LISTPACK, listpack_remove(lp_of(o), p, 2, NULL));
    return p != NULL;
}

void zset_remove_ranks(struct object *o, size_t first, size_t n)
{
    if (is_big(o)) {
        struct zbig *z = big_of(o);
        while (n-- > 0)
            big_remove(z, ztree_entry(ztree_at(&z->tree, first)));
    } else if (n > 0) {
        unsigned char *lp = lp_of(o);
        object_set_ptr(o, ENC_LISTPACK, listpack_remove(lp, listpack_at(lp, (long)first * 2), n * 2, NULL));
    }
}

/* ---- in order ------------------------------------------------------------------------ */

void zset_seek(const struct object *o, size_t rank, bool back, struct zset_iter *it)
{
    *it = (struct zset_iter){.back = back};
    if (is_big(o)) {
        struct zset_place place = ztree_at(&big_of(o)->tree, rank);
        it->leaf = place.leaf;
        it->at = place.at;
    } else {
        it->lp = lp_of(o);
        it->p = rank > LONG_MAX / 2 ? NULL : listpack_at(it->lp, (long)rank * 2);
    }
}

bool zset_next(struct zset_iter *it)
{
    if (it->leaf) {
        struct zset_place place = {it->leaf, it->at};
        const struct zset_entry *e = ztree_entry(place);
        it->name = zset_entry_name(e);
        it->score = e->score;
        place = ztree_step(place, it->back);
        it->leaf = place.leaf;
        it->at = place.at;
        return true;
    }
    if (!it->p)
        return false;
    const unsigned char *s = listpack_next(it->lp, it->p);
    it->name = listpack_str(it->p, it->scratch);
    it->score = score_at(s);
    if (!it->back)
        it->p = listpack_next(it->lp, s);
    else if ((it->p = listpack_prev(it->lp, it->p)) != NULL)
        it->p = listpack_prev(it->lp, it->p);
    return true;
}

/* How a member lies to a bound: < 0, 0, > 0. */
static int against(const struct zset_range *r, const struct zset_bound *b, double score, struct slice name)
{
    if (r->lex)
        return b->inf ? -b->inf : slice_order(name, b->name);
    return (score > b->score) - (score < b->score);
}

static bool below_min(const void *arg, double score, struct slice name)
{
    const struct zset_range *r = arg;
    int c = against(r, &r->min, score, name);

    return c < 0 || (c == 0 && r->min.open);
}

static bool not_above_max(const void *arg, double score, struct slice name)
{
    const struct zset_range *r = arg;
    int c = against(r, &r->max, score, name);

    return c < 0 || (c == 0 && !r->max.open);
}

/* Where all scores are equal, as they should be for a range by lex, both directions find the same: from the first that
 * is not below the range to before the next above it, or from the last that is not above it down to the next below. */
static size_t lp_find_range(const struct object *o, const struct zset_range *r, bool back, size_t *first)
{
    struct zset_iter it;
    size_t i, run = 0, n = 0; /* run: the length of the run that are not below, up to here */
    bool begun = false, ended = false, inside = false;

    zset_seek(o, 0, false, &it);
    for (i = 0; zset_next(&it); i++) {
        bool low = below_min(r, it.score, it.name), fits = not_above_max(r, it.score, it.name);
        run = low ? 0 : run + 1;
        if (i == 0 && !fits)
            return 0;
        inside = !low;
        if (back) {
            if (fits) {
                n = run;
                *first = i + 1 - run;
            }
            continue;
        }
        if (!begun && !low) {
            begun = true;
            *first = i;
        }
        ended |= begun && !fits;
        n += begun && !ended;
    }
    return inside ? n : 0;
}

size_t zset_find_range(const struct object *o, const struct zset_range *r, bool back, size_t *first)
{
    *first = 0;
    if (!is_big(o))
        return lp_find_range(o, r, back, first);
    const struct zset_tree *t = &big_of(o)->tree;
    *first = ztree_count(t, below_min, r);
    size_t end = ztree_count(t, not_above_max, r);
    return end > *first ? end - *first : 0;
}

struct scan {
    void (*fn)(void *arg, struct slice name, struct slice score);
    void *arg;
};

static void scan_entry(void *arg, struct dict_entry *link)
{
    const struct zset_entry *e = (const struct zset_entry *)link;
    const struct scan *s = arg;
    char text[NUM_F64_SHORT];

    s->fn(s->arg, zset_entry_name(e), SLICE(text, num_format_f64(text, e->score)));
}

uint64_t zset_scan(const struct object *o, uint64_t cursor,
                   void (*fn)(void *arg, struct slice name, struct slice score), void *arg)
{
    struct scan s = {fn, arg};
    char name[NUM_I64_MAX], score[NUM_I64_MAX];

    if (is_big(o))
        return dict_scan(&big_of(o)->dict, cursor, scan_entry, &s);
    const unsigned char *lp = lp_of(o);
    for (const unsigned char *p = listpack_first(lp), *v; p; p = listpack_next(lp, v)) {
        v = listpack_next(lp, p);
        fn(arg, listpack_str(p, name), listpack_str(v, score));
    }
    return 0;
}

/* ---- drafts -------------------------------------------------------------------------- */

struct zset_draft *zset_draft_create(void)
{
    struct zset_draft *d = mem_alloc(MEM_OTHER, sizeof(*d));

    big_init(&d->big);
    buf_init(&d->order, MEM_OTHER);
    d->longest = 0;
    return d;
}

void zset_draft_destroy(struct zset_draft *d)
{
    big_clear(&d->big);
    buf_deinit(&d->order);
    mem_free(MEM_OTHER, d);
}

size_t zset_draft_len(const struct zset_draft *d)
{
    return d->big.dict.count;
}

double *zset_draft_place(struct zset_draft *d, struct slice name, bool *added)
{
    struct zset_entry *e = big_find(&d->big, name);

    *added = !e;
    if (!e) {
        e = big_name(&d->big, name, 0);
        buf_append(&d->order, &e, sizeof(e));
        if (name.len > d->longest)
            d->longest = name.len;
    }
    return &e->score;
}

static int entry_compare(const void *a, const void *b)
{
    const struct zset_entry *x = *(struct zset_entry *const *)a, *y = *(struct zset_entry *const *)b;

    return zset_compare(x->score, zset_entry_name(x), y->score, zset_entry_name(y));
}

#define ENTRY_COST 100 /* of looking at one, in units of pace.h */

static bool in_order(struct zset_entry *const *all, size_t n, struct pace *pace)
{
    for (size_t i = 1; i < n; i++) {
        if (entry_compare(&all[i - 1], &all[i]) > 0)
            return false;
        pace_spend(pace, ENTRY_COST);
    }
    return true;
}

/* All of them, in the draft's own memory. */
static struct zset_entry **draft_sorted(struct zset_draft *d, struct pace *pace)
{
    struct zset_entry **all = (struct zset_entry **)(void *)d->order.ptr;
    size_t n = zset_draft_len(d);

    if (n > 1 && entry_compare(&all[0], &all[n - 1]) > 0) {
        for (size_t i = 0; i < n / 2; i++) {
            struct zset_entry *e = all[i];
            all[i] = all[n - 1 - i];
            all[n - 1 - i] = e;
        }
    }
    if (!in_order(all, n, pace)) /* what is ours is in order */
        qsort(all, n, sizeof(*all), entry_compare);
    return all;
}

/* Takes the draft. lim NULL: ENC_BIG. */
static void *draft_value(struct zset_draft *d, const struct obj_limits *lim, enum obj_enc *enc, struct pace *pace)
{
    size_t n = zset_draft_len(d);
    struct zset_entry **all = draft_sorted(d, pace);
    void *value;

    if (lim && n <= lim->zset_entries && d->longest <= lim->zset_value &&
        d->big.text + n * 2 * NUM_F64_SHORT <= LISTPACK_SAFE_BYTES) {
        unsigned char *lp = listpack_new(0);
        for (size_t i = 0; i < n; i++)
            lp = lp_append(lp, zset_entry_name(all[i]), all[i]->score);
        *enc = ENC_LISTPACK;
        value = lp;
    } else {
        struct zbig *z = mem_alloc(MEM_DATA, sizeof(*z));
        *z = d->big;
        for (size_t i = 0; i < n; i++) {
            ztree_add(&z->tree, all[i]);
            pace_spend(pace, ENTRY_COST);
        }
        big_init(&d->big);
        *enc = ENC_BIG;
        value = z;
    }
    zset_draft_destroy(d);
    return value;
}

struct object *zset_draft_finish(struct zset_draft *d, const struct key *key, const struct obj_limits *lim)
{
    enum obj_enc enc;
    void *value = draft_value(d, lim, &enc, NULL);

    return object_new_ptr(key, OBJ_ZSET, enc, value, 0, 0);
}

/* ---- as a type of object ------------------------------------------------------------- */

static const char *zset_encoding(enum obj_enc enc)
{
    return enc == ENC_BIG ? "skiplist" : "listpack";
}

static void zset_destroy(enum obj_enc enc, void *value)
{
    if (enc == ENC_BIG)
        big_destroy(value);
    else
        listpack_free(value);
}

static void *zset_copy(enum obj_enc enc, const void *value)
{
    const struct zbig *from = value;

    if (enc != ENC_BIG)
        return listpack_copy(value);
    struct zbig *z = big_create();
    dict_reserve(&z->dict, from->dict.count);
    for (struct zset_place p = ztree_at(&from->tree, 0); p.leaf; p = ztree_step(p, false))
        big_add(z, zset_entry_name(ztree_entry(p)), ztree_entry(p)->score);
    return z;
}

static size_t zset_bytes(enum obj_enc enc, const void *value)
{
    const struct zbig *z = value;

    if (enc != ENC_BIG)
        return listpack_usable(value);
    return mem_usable_sized(z, sizeof(*z)) + z->bytes + z->tree.bytes + dict_bytes(&z->dict);
}

static size_t zset_len(enum obj_enc enc, const void *value)
{
    return enc == ENC_BIG ? ((const struct zbig *)value)->dict.count : listpack_len(value) / 2;
}

static size_t zset_stored(enum obj_enc enc, const void *value)
{
    const struct zbig *z = value;

    return enc == ENC_BIG ? z->text + z->dict.count * 9 : listpack_bytes(value);
}

/* *at: how many were written. The highest comes first, as Redis has it. */
static bool zset_save_part(enum obj_enc enc, const void *value, uint64_t *at, size_t bytes, struct buf *out)
{
    const struct zbig *z = value;
    size_t start = out->len;

    if (enc != ENC_BIG) {
        buf_byte(out, RDB_ZSET_LISTPACK);
        rdb_put_raw(out, listpack_slice(value));
        return true;
    }
    if (*at == 0) {
        buf_byte(out, RDB_ZSET_2);
        rdb_put_len(out, z->dict.count);
    }
    struct zset_place p = ztree_at(&z->tree, z->tree.count - 1 - (size_t)*at);
    for (; p.leaf && out->len - start < bytes; p = ztree_step(p, true), ++*at) {
        rdb_put_string(out, zset_entry_name(ztree_entry(p)));
        rdb_put_double(out, ztree_entry(p)->score);
    }
    return !p.leaf;
}

static bool draft_take(struct zset_draft *d, struct slice name, double score)
{
    bool added;

    *zset_draft_place(d, name, &added) = score;
    return added && !isnan(score);
}

static bool load_entries(struct rdb_reader *in, bool text, struct zset_draft *d)
{
    struct slice name;
    double score = 0;
    bool added;
    uint64_t n;

    if (!rdb_get_len(in, &n) || n == 0)
        return false;
    while (n-- > 0) {
        if (!rdb_get_string(in, &name))
            return false;
        double *place = zset_draft_place(d, name, &added); /* before the name is overwritten */
        if (!added || !(text ? rdb_get_text_double(in, &score) : rdb_get_double(in, &score)) || isnan(score))
            return false;
        *place = score;
    }
    return true;
}

struct ziplist {
    struct zset_draft *d;
    struct buf name;
    bool half; /* it has a name, and the score is to come */
};

static bool ziplist_elem(void *arg, struct slice elem)
{
    struct ziplist *z = arg;
    double score;

    z->half = !z->half;
    if (z->half) {
        z->name.len = 0;
        buf_slice_append(&z->name, elem);
        return true;
    }
    return num_parse_double(elem, &score) && draft_take(z->d, buf_slice(&z->name), score);
}

static bool load_ziplist(struct slice bytes, struct zset_draft *d)
{
    struct ziplist z = {.d = d};

    buf_init(&z.name, MEM_OTHER);
    bool ok = rdb_ziplist_each(bytes, ziplist_elem, &z) && !z.half && zset_draft_len(d) > 0;
    buf_deinit(&z.name);
    return ok;
}

/* d NULL: no member is looked for twice. *sorted: in their order. */
static bool read_listpack(const unsigned char *lp, struct zset_draft *d, bool *sorted)
{
    char scratch[2][NUM_I64_MAX];
    struct slice before = SLICE_NONE;
    double low = 0, score;
    int turn = 0;

    *sorted = true;
    for (const unsigned char *p = listpack_first(lp), *s; p; p = listpack_next(lp, s), turn = !turn) {
        s = listpack_next(lp, p);
        if (!s || !score_read(s, &score))
            return false;
        struct slice name = listpack_str(p, scratch[turn]);
        if (before.ptr && zset_compare(low, before, score, name) >= 0)
            *sorted = false;
        if (d && !draft_take(d, name, score))
            return false;
        before = name;
        low = score;
    }
    return before.ptr != NULL;
}

/* Ours from disk are only checked for what would be dangerous. */
static bool load_listpack(struct slice bytes, const struct obj_limits *lim, struct zset_draft *d, bool *as_is)
{
    const unsigned char *lp = (const unsigned char *)bytes.ptr;
    bool sorted;

    if (!listpack_valid(bytes) || !read_listpack(lp, lim ? d : NULL, &sorted) || (!lim && !sorted))
        return false;
    *as_is = sorted && (!lim || zset_draft_len(d) <= lim->zset_entries);
    return true;
}

static bool zset_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc,
                      void **value)
{
    struct zset_draft *d = zset_draft_create();
    struct obj_limits any_length = lim ? *lim : (struct obj_limits){.zset_entries = SIZE_MAX};
    struct slice bytes = SLICE_NONE;
    bool ok, as_is = false;

    any_length.zset_value = SIZE_MAX; /* what was compact stays so, if it has not too many members */
    if (rdb_type == RDB_ZSET_LISTPACK || rdb_type == RDB_ZSET_ZIPLIST) {
        ok = rdb_get_string(in, &bytes) &&
             (rdb_type == RDB_ZSET_LISTPACK ? load_listpack(bytes, lim, d, &as_is) : load_ziplist(bytes, d));
        lim = &any_length;
    } else {
        ok = load_entries(in, rdb_type == RDB_ZSET, d);
    }
    if (!ok || as_is)
        zset_draft_destroy(d);
    if (!ok)
        return false;
    if (as_is) {
        *enc = ENC_LISTPACK;
        *value = listpack_from(bytes);
    } else {
        *value = draft_value(d, lim, enc, in->pace);
    }
    return true;
}

const struct object_ops zset_ops = {
    .name = "zset",
    .encoding = zset_encoding,
    .destroy = zset_destroy,
    .copy = zset_copy,
    .bytes = zset_bytes,
    .len = zset_len,
    .stored = zset_stored,
    .save_part = zset_save_part,
    .load = zset_load,
};
