#include "tiercel/type_list.h"

#include "object_priv.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"

struct qnode {
    unsigned char *data; /* a listpack, or the bytes of one element */
    uint32_t count;      /* 0: plain */
    uint32_t size;       /* of data: as it was allocated; plain: the element's length */
};

/* node[first, first + n) are in use; free room is kept at both ends. */
struct qlist {
    struct qnode *node;
    size_t first, n, cap;
    size_t len;           /* elements */
    size_t memory, bytes; /* of all nodes' data: as allocated, and what is in them */
};

#define LISTPACK_EMPTY 7
#define ELEM_ROOM 14       /* at most what a listpack keeps beside an element's bytes */
#define COUNTED_BYTES 8192 /* of a node whose elements are counted */
#define NODE_BYTES_MAX 65536

/* ---- nodes ---- */

static bool fits(size_t bytes, size_t count, size_t len, int size)
{
    static const size_t most[] = {4096, 8192, 16384, 32768, NODE_BYTES_MAX};

    if (size >= 0)
        return bytes + len + ELEM_ROOM <= COUNTED_BYTES && count < (size > 1 ? (size_t)size : 1);
    return bytes + len + ELEM_ROOM <= most[size < -5 ? 4 : -size - 1];
}

static struct qnode *node_at(const struct qlist *q, size_t i)
{
    return &q->node[q->first + i];
}

static size_t node_count(const struct qnode *n)
{
    return n->count ? n->count : 1;
}

static size_t node_bytes(const struct qnode *n)
{
    return n->count ? listpack_bytes(n->data) : n->size;
}

static size_t node_memory(const struct qnode *n)
{
    return n->count ? n->size : mem_usable(n->data);
}

static void sums_add(struct qlist *q, const struct qnode *n)
{
    q->len += node_count(n);
    q->bytes += node_bytes(n);
    q->memory += node_memory(n);
}

static void sums_sub(struct qlist *q, const struct qnode *n)
{
    q->len -= node_count(n);
    q->bytes -= node_bytes(n);
    q->memory -= node_memory(n);
}

/* Around each change of a packed node's listpack. */
static unsigned char *node_open(struct qlist *q, size_t i)
{
    sums_sub(q, node_at(q, i));
    return node_at(q, i)->data;
}

static void node_close(struct qlist *q, size_t i, unsigned char *lp, size_t count)
{
    struct qnode *n = node_at(q, i);

    *n = (struct qnode){lp, (uint32_t)count, (uint32_t)listpack_usable(lp)};
    sums_add(q, n);
}

static struct qnode node_packed(unsigned char *lp)
{
    return (struct qnode){lp, (uint32_t)listpack_len(lp), (uint32_t)listpack_usable(lp)};
}

static struct qnode node_plain(struct slice elem)
{
    struct qnode n = {.data = mem_alloc(MEM_DATA, elem.len), .size = (uint32_t)elem.len};

    CHECK(elem.len <= UINT32_MAX);
    if (elem.len)
        memcpy(n.data, elem.ptr, elem.len);
    return n;
}

static struct qnode node_of_one(struct slice elem, int size)
{
    if (!fits(LISTPACK_EMPTY, 0, elem.len, size))
        return node_plain(elem);
    return node_packed(listpack_append(listpack_new(elem.len + 2), elem));
}

static bool node_takes(const struct qnode *n, struct slice elem, int size)
{
    return n->count && fits(listpack_bytes(n->data), n->count, elem.len, size);
}

/* ---- their array ---- */

static void array_move(struct qlist *q, size_t cap, size_t first)
{
    if (cap == q->cap) {
        memmove(q->node + first, q->node + q->first, q->n * sizeof(*q->node));
    } else {
        struct qnode *node = mem_alloc(MEM_DATA, cap * sizeof(*node));
        if (q->n)
            memcpy(node + first, q->node + q->first, q->n * sizeof(*node));
        mem_free(MEM_DATA, q->node);
        q->node = node;
        q->cap = cap;
    }
    q->first = first;
}

/* Room for one more at an end. Three quarters of what is free go to the end that is added to, the rest to the other:
 * whichever way that alternates, a move comes once in a constant fraction of the length. */
static void array_room(struct qlist *q, bool left)
{
    size_t cap = q->cap;

    if (cap - q->n < 1 + q->n / 2)
        cap = q->n + 2 + q->n / 2;
    size_t spare = cap - q->n - 1;
    array_move(q, cap, left ? 1 + spare - spare / 4 : spare / 4);
}

static void node_add(struct qlist *q, size_t at, struct qnode n)
{
    bool left = at < q->n - at;

    if ((left ? q->first : q->cap - q->first - q->n) == 0)
        array_room(q, left);
    if (left) {
        q->first--;
        memmove(q->node + q->first, q->node + q->first + 1, at * sizeof(n));
    } else {
        memmove(node_at(q, at + 1), node_at(q, at), (q->n - at) * sizeof(n));
    }
    q->n++;
    *node_at(q, at) = n;
    sums_add(q, &n);
}

/* Takes nodes out that are in none of the sums any more. */
static void array_cut(struct qlist *q, size_t at, size_t n)
{
    size_t behind = q->n - at - n;

    if (at < behind) {
        memmove(node_at(q, n), node_at(q, 0), at * sizeof(*q->node));
        q->first += n;
    } else {
        memmove(node_at(q, at), node_at(q, at + n), behind * sizeof(*q->node));
    }
    q->n -= n;
    if (q->cap > 16 && q->n < q->cap / 4)
        array_move(q, q->n * 2 + 2, q->n / 2 + 1);
}

static void nodes_free(struct qlist *q, size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++) {
        sums_sub(q, node_at(q, i));
        mem_free(MEM_DATA, node_at(q, i)->data);
    }
    array_cut(q, at, n);
}

static void nodes_destroy(struct qlist *q)
{
    for (size_t i = 0; i < q->n; i++)
        mem_free(MEM_DATA, node_at(q, i)->data);
    mem_free(MEM_DATA, q->node);
    mem_free(MEM_DATA, q);
}

static struct qlist *nodes_copy(const struct qlist *q)
{
    struct qlist *copy = mem_calloc(MEM_DATA, sizeof(*copy));

    array_move(copy, q->n, 0);
    for (size_t i = 0; i < q->n; i++) {
        const struct qnode *n = node_at(q, i);
        node_add(copy, i, n->count ? node_packed(listpack_copy(n->data)) : node_plain(SLICE((char *)n->data, n->size)));
    }
    return copy;
}

/* ---- changing ---- */

/* Behind node i - 1 and before node i. */
static void nodes_add(struct qlist *q, size_t i, struct slice elem, int size)
{
    if (i > 0 && node_takes(node_at(q, i - 1), elem, size)) {
        size_t count = node_at(q, i - 1)->count;
        unsigned char *lp = node_open(q, i - 1);
        node_close(q, i - 1, listpack_push(lp, false, elem), count + 1);
    } else if (i < q->n && node_takes(node_at(q, i), elem, size)) {
        size_t count = node_at(q, i)->count;
        unsigned char *lp = node_open(q, i);
        node_close(q, i, listpack_push(lp, true, elem), count + 1);
    } else {
        node_add(q, i, node_of_one(elem, size));
    }
}

/* Before `p`, which is neither first nor behind the last of its node, which is full. */
static void nodes_split(struct qlist *q, size_t i, unsigned char *p)
{
    unsigned char *lp = node_open(q, i), *tail = listpack_copy(lp);
    size_t count = node_at(q, i)->count, before = 0;

    for (const unsigned char *at = listpack_first(lp); at != p; at = listpack_next(lp, at))
        before++;
    tail = listpack_remove(tail, listpack_first(tail), before, NULL);
    node_close(q, i, listpack_remove(lp, p, count - before, NULL), before);
    node_add(q, i + 1, node_packed(tail));
}

/* The listpack becomes the first node: positions in it stay. */
static struct qlist *list_grow(struct object *o)
{
    struct qlist *q = mem_calloc(MEM_DATA, sizeof(*q));
    unsigned char *lp = object_ptr(o);

    if (listpack_len(lp))
        node_add(q, 0, node_packed(lp));
    else
        listpack_free(lp);
    object_set_ptr(o, ENC_BIG, q);
    return q;
}

struct object *qlist_create(const struct key *key)
{
    return object_new_ptr(key, OBJ_LIST, ENC_LISTPACK, listpack_new(0), 0, 0);
}

void qlist_push(struct object *o, bool left, struct slice elem, int size)
{
    struct qlist *q;

    if (LIKELY(o->enc == ENC_LISTPACK)) {
        unsigned char *lp = object_ptr(o);
        if (LIKELY(fits(listpack_bytes(lp), listpack_len(lp), elem.len, size))) {
            unsigned char *now = listpack_push(lp, left, elem);
            if (now != lp)
                object_set_ptr(o, ENC_LISTPACK, now);
            return;
        }
        q = list_grow(o);
    } else {
        q = object_ptr(o);
    }
    nodes_add(q, left ? 0 : q->n, elem, size);
}

static unsigned char *listpack_trim(unsigned char *lp, size_t n, bool left)
{
    return listpack_remove(lp, left ? listpack_first(lp) : listpack_at(lp, -(long)n), n, NULL);
}

static void nodes_trim(struct qlist *q, size_t n, bool left)
{
    size_t whole = 0;

    while (n && whole < q->n) {
        size_t count = node_count(node_at(q, left ? whole : q->n - 1 - whole));
        if (count > n)
            break;
        n -= count;
        whole++;
    }
    if (whole)
        nodes_free(q, left ? 0 : q->n - whole, whole);
    if (n) {
        size_t i = left ? 0 : q->n - 1, count = node_at(q, i)->count;
        unsigned char *lp = node_open(q, i);
        node_close(q, i, listpack_trim(lp, n, left), count - n);
    }
}

void qlist_trim(struct object *o, size_t left, size_t right)
{
    if (o->enc == ENC_LISTPACK) {
        unsigned char *lp = object_ptr(o), *now = lp;
        if (left)
            now = listpack_trim(now, left, true);
        if (right)
            now = listpack_trim(now, right, false);
        if (now != lp)
            object_set_ptr(o, ENC_LISTPACK, now);
        return;
    }
    nodes_trim(object_ptr(o), left, true);
    nodes_trim(object_ptr(o), right, false);
}

void qlist_insert(const struct qlist_pos *at, bool after, struct slice elem, int size)
{
    struct qlist *q = at->q;
    unsigned char *lp = q ? node_at(q, at->node)->data : object_ptr(at->o), *p = at->p;

    if (!p) {
        nodes_add(q, at->node + after, elem, size);
        return;
    }
    size_t i = at->node, count = q ? node_at(q, i)->count : listpack_len(lp);
    if (after)
        p = listpack_next(lp, p);
    if (fits(listpack_bytes(lp), count, elem.len, size)) {
        if (q)
            node_open(q, i);
        lp = listpack_insert(lp, p, elem, NULL);
        if (q)
            node_close(q, i, lp, count + 1);
        else
            object_set_ptr(at->o, ENC_LISTPACK, lp);
        return;
    }
    if (!q)
        q = list_grow(at->o);
    bool first = p && p == listpack_first(lp);
    if (p && !first)
        nodes_split(q, i, p);
    nodes_add(q, i + !first, elem, size);
}

void qlist_set(struct object *o, size_t index, struct slice elem, int size)
{
    struct qlist_pos at;

    qlist_seek(o, index, &at);
    unsigned char *lp = at.q ? node_at(at.q, at.node)->data : object_ptr(o);
    if (at.p && fits(listpack_bytes(lp), 0, elem.len, size)) {
        if (!at.q) {
            object_set_ptr(o, ENC_LISTPACK, listpack_replace(lp, at.p, elem, NULL));
            return;
        }
        size_t count = node_at(at.q, at.node)->count;
        node_open(at.q, at.node);
        node_close(at.q, at.node, listpack_replace(lp, at.p, elem, NULL), count);
        return;
    }
    qlist_insert(&at, true, elem, size);
    qlist_seek(o, index, &at);
    if (!at.p) {
        nodes_free(at.q, at.node, 1);
    } else { /* the list is not one listpack: an element did not fit in */
        size_t count = node_at(at.q, at.node)->count;
        if (count == 1) {
            nodes_free(at.q, at.node, 1);
            return;
        }
        lp = node_open(at.q, at.node);
        node_close(at.q, at.node, listpack_remove(lp, at.p, 1, NULL), count - 1);
    }
}

/* ---- removing by value ---- */

static bool elem_is(const unsigned char *p, const struct qlist_wanted *want)
{
    struct listpack_value v;

    listpack_get(p, &v);
    return v.str.ptr ? slice_eq(v.str, want->text) : want->is_num && v.num == want->num;
}

static bool plain_is(const struct qnode *n, const struct qlist_wanted *want)
{
    return slice_eq(SLICE((const char *)n->data, n->size), want->text);
}

/* Those that stand next to one another go at once. */
static unsigned char *remove_forward(unsigned char *lp, const struct qlist_wanted *want, size_t max, size_t *removed)
{
    unsigned char *p = listpack_first(lp);

    while (p && *removed < max) {
        size_t run = 0;
        unsigned char *end = p;
        while (end && run < max - *removed && elem_is(end, want)) {
            end = listpack_next(lp, end);
            run++;
        }
        if (run) {
            lp = listpack_remove(lp, p, run, &p);
            *removed += run;
        } else {
            p = listpack_next(lp, p);
        }
    }
    return lp;
}

static unsigned char *remove_backward(unsigned char *lp, const struct qlist_wanted *want, size_t max, size_t *removed)
{
    unsigned char *p = listpack_last(lp);

    while (p && *removed < max) {
        size_t run = 0;
        unsigned char *start = NULL;
        while (p && run < max - *removed && elem_is(p, want)) {
            start = p;
            p = listpack_prev(lp, p);
            run++;
        }
        if (run) {
            size_t offset = p ? (size_t)(p - lp) : 0;
            lp = listpack_remove(lp, start, run, NULL);
            p = p ? lp + offset : NULL;
            *removed += run;
        } else {
            p = listpack_prev(lp, p);
        }
    }
    return lp;
}

static size_t node_remove(struct qlist *q, size_t i, const struct qlist_wanted *want, size_t max, bool back)
{
    struct qnode *n = node_at(q, i);
    size_t count = n->count, removed = 0;

    if (count == 0)
        return plain_is(n, want);
    unsigned char *lp = node_open(q, i);
    lp = back ? remove_backward(lp, want, max, &removed) : remove_forward(lp, want, max, &removed);
    if (removed == count) { /* the caller frees it: one that is counted in the sums */
        node_close(q, i, lp, 1);
        return removed;
    }
    node_close(q, i, lp, count - removed);
    return removed;
}

size_t qlist_remove(struct object *o, struct slice elem, size_t max, bool from_right)
{
    struct qlist_wanted want = qlist_want(elem);
    size_t removed = 0;

    if (o->enc == ENC_LISTPACK) {
        unsigned char *lp = object_ptr(o);
        lp = from_right ? remove_backward(lp, &want, max, &removed) : remove_forward(lp, &want, max, &removed);
        object_set_ptr(o, ENC_LISTPACK, lp);
        return removed;
    }
    struct qlist *q = object_ptr(o);
    for (size_t i = from_right ? q->n : 0; removed < max && (from_right ? i > 0 : i < q->n);) {
        size_t at = from_right ? i - 1 : i, count = node_count(node_at(q, at));
        size_t n = node_remove(q, at, &want, max - removed, from_right);
        removed += n;
        if (n == count)
            nodes_free(q, at, 1);
        if (from_right)
            i--;
        else
            i += n != count;
    }
    return removed;
}

/* ---- positions ---- */

static void pos_enter(struct qlist_pos *at, bool from_right)
{
    const struct qnode *n = node_at(at->q, at->node);

    at->p = n->count == 0 ? NULL : from_right ? listpack_last(n->data) : listpack_first(n->data);
}

void qlist_seek(struct object *o, size_t index, struct qlist_pos *at)
{
    *at = (struct qlist_pos){.o = o};
    if (o->enc == ENC_LISTPACK) {
        at->p = listpack_at(object_ptr(o), (long)index);
        CHECK(at->p != NULL);
        return;
    }
    struct qlist *q = at->q = object_ptr(o);
    CHECK(index < q->len);
    size_t start = 0;
    if (index < q->len / 2) {
        while (index - start >= node_count(node_at(q, at->node)))
            start += node_count(node_at(q, at->node++));
    } else {
        start = q->len;
        at->node = q->n;
        while (start > index)
            start -= node_count(node_at(q, --at->node));
    }
    const struct qnode *n = node_at(q, at->node);
    at->p = n->count ? listpack_at(n->data, (long)(index - start)) : NULL;
}

bool qlist_step(struct qlist_pos *at, bool back)
{
    if (at->p) {
        const unsigned char *lp = at->q ? node_at(at->q, at->node)->data : object_ptr(at->o);
        at->p = back ? listpack_prev(lp, at->p) : listpack_next(lp, at->p);
        if (at->p)
            return true;
    }
    if (!at->q || (back ? at->node == 0 : at->node + 1 == at->q->n))
        return false;
    if (back)
        at->node--;
    else
        at->node++;
    pos_enter(at, back);
    return true;
}

struct slice qlist_get(const struct qlist_pos *at, char scratch[NUM_I64_MAX])
{
    if (LIKELY(at->p != NULL))
        return listpack_str(at->p, scratch);
    const struct qnode *n = node_at(at->q, at->node);
    return SLICE((const char *)n->data, n->size);
}

struct qlist_wanted qlist_want(struct slice elem)
{
    struct qlist_wanted want = {.text = elem};

    want.is_num = elem.len != 0 && elem.len < NUM_I64_MAX && num_parse_i64(elem, &want.num);
    return want;
}

bool qlist_is(const struct qlist_pos *at, const struct qlist_wanted *want)
{
    return at->p ? elem_is(at->p, want) : plain_is(node_at(at->q, at->node), want);
}

/* ---- as a type of object ---- */

static const char *ops_encoding(enum obj_enc enc)
{
    (void)enc;
    return "quicklist";
}

static void ops_destroy(enum obj_enc enc, void *value)
{
    if (enc == ENC_LISTPACK)
        listpack_free(value);
    else
        nodes_destroy(value);
}

static void *ops_copy(enum obj_enc enc, const void *value)
{
    if (enc == ENC_LISTPACK)
        return listpack_copy(value);
    return nodes_copy(value);
}

static size_t ops_bytes(enum obj_enc enc, const void *value)
{
    const struct qlist *q = value;

    if (enc == ENC_LISTPACK)
        return listpack_usable(value);
    return mem_usable(q) + mem_usable(q->node) + q->memory;
}

static size_t ops_len(enum obj_enc enc, const void *value)
{
    return enc == ENC_LISTPACK ? listpack_len(value) : ((const struct qlist *)value)->len;
}

static size_t ops_stored(enum obj_enc enc, const void *value)
{
    const struct qlist *q = value;

    return enc == ENC_LISTPACK ? listpack_bytes(value) : q->bytes + q->n * 4;
}

/* What RDB_LIST_QUICKLIST_2 says before a node. */
#define NODE_PLAIN 1
#define NODE_PACKED 2

static void ops_save(enum obj_enc enc, const void *value, struct buf *out)
{
    const struct qlist *q = value;

    buf_byte(out, RDB_LIST_QUICKLIST_2);
    if (enc == ENC_LISTPACK) {
        rdb_put_len(out, 1);
        rdb_put_len(out, NODE_PACKED);
        rdb_put_raw(out, listpack_slice(value));
        return;
    }
    rdb_put_len(out, q->n);
    for (size_t i = 0; i < q->n; i++) {
        const struct qnode *n = node_at(q, i);
        rdb_put_len(out, n->count ? NODE_PACKED : NODE_PLAIN);
        rdb_put_raw(out, SLICE((const char *)n->data, node_bytes(n)));
    }
}

struct loading {
    struct qlist *q;
    int size;
};

static bool load_elem(void *arg, struct slice elem)
{
    struct loading *l = arg;

    nodes_add(l->q, l->q->n, elem, l->size);
    return true;
}

/* One that is longer than any node is made of pieces. */
static bool load_listpack(struct loading *l, struct slice bytes)
{
    char scratch[NUM_I64_MAX];

    if (!listpack_valid(bytes))
        return false;
    const unsigned char *lp = (const unsigned char *)bytes.ptr;
    if (!listpack_first(lp)) /* Redis skips them, too */
        return true;
    if (bytes.len <= NODE_BYTES_MAX) {
        node_add(l->q, l->q->n, node_packed(listpack_from(bytes)));
        return true;
    }
    for (const unsigned char *p = listpack_first(lp); p; p = listpack_next(lp, p))
        load_elem(l, listpack_str(p, scratch));
    return true;
}

static bool load_node(struct loading *l, struct rdb_reader *in, int rdb_type)
{
    struct slice bytes;
    uint64_t container = NODE_PACKED;

    if (rdb_type == RDB_LIST_QUICKLIST_2 &&
        (!rdb_get_len(in, &container) || (container != NODE_PLAIN && container != NODE_PACKED)))
        return false;
    if (!rdb_get_string(in, &bytes))
        return false;
    switch (rdb_type) {
    case RDB_LIST: return load_elem(l, bytes);
    case RDB_LIST_QUICKLIST: return rdb_ziplist_each(bytes, load_elem, l);
    default:
        if (container == NODE_PACKED)
            return load_listpack(l, bytes);
        node_add(l->q, l->q->n, node_plain(bytes));
        return true;
    }
}

static bool load_all(struct loading *l, struct rdb_reader *in, int rdb_type)
{
    struct slice bytes;
    uint64_t n;

    if (rdb_type == RDB_LIST_ZIPLIST)
        return rdb_get_string(in, &bytes) && rdb_ziplist_each(bytes, load_elem, l);
    if (!rdb_get_len(in, &n))
        return false;
    while (n-- > 0)
        if (!load_node(l, in, rdb_type))
            return false;
    return true;
}

static bool ops_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    struct loading l = {mem_calloc(MEM_DATA, sizeof(*l.q)), lim ? lim->list_size : -2};

    if (!load_all(&l, in, rdb_type) || l.q->len == 0) {
        nodes_destroy(l.q);
        return false;
    }
    *enc = ENC_BIG;
    *value = l.q;
    if (l.q->n == 1 && node_at(l.q, 0)->count) {
        *enc = ENC_LISTPACK;
        *value = node_at(l.q, 0)->data;
        array_cut(l.q, 0, 1);
        nodes_destroy(l.q);
    }
    return true;
}

const struct object_ops list_ops = {
    .name = "list",
    .encoding = ops_encoding,
    .destroy = ops_destroy,
    .copy = ops_copy,
    .bytes = ops_bytes,
    .len = ops_len,
    .stored = ops_stored,
    .save = ops_save,
    .load = ops_load,
};
