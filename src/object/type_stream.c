#include "tiercel/type_stream.h"

#include "object_priv.h"
#include "tiercel/check.h"
#include "tiercel/listpack.h"

/* A node, in listpack elements:
 *
 *   entries | deleted | nfields | field ... | 0 |                                     the master entry
 *   flags | ms | seq | value ... | count |                                            with the master's fields
 *   flags | ms | seq | nfields | field | value ... | count |                          with its own
 *
 * ms and seq are relative to the node's ID; count: elements of the entry before it, to walk backwards. */
#define NODE_DEFAULT_BYTES LISTPACK_SAFE_BYTES
#define NODE_ROOM 128 /* for what is not in the fields: lengths, counts, IDs */

int64_t stream_lp_int(const unsigned char *p)
{
    struct listpack_value v;

    listpack_get(p, &v);
    return v.num;
}

static unsigned char *skip(const unsigned char *lp, unsigned char *p, int64_t n)
{
    while (n-- > 0)
        p = listpack_next(lp, p);
    return p;
}

/* ---- nodes ---- */

static struct stream_node *node_at(const struct stream *s, size_t i)
{
    return &s->node[s->first + i];
}

/* Its listpack is (or is about to be) another one: `sign` 1 counts it in, -1 out. */
static void node_count(struct stream *s, const unsigned char *lp, int sign)
{
    size_t bytes = listpack_usable(lp), packed = listpack_bytes(lp);

    s->bytes += sign > 0 ? bytes : -bytes;
    s->packed += sign > 0 ? packed : -packed;
}

static void nodes_resize(struct stream *s, size_t cap)
{
    struct stream_node *node = cap ? mem_alloc(MEM_DATA, cap * sizeof(*node)) : NULL;

    if (s->nnodes)
        memcpy(node, s->node + s->first, s->nnodes * sizeof(*node));
    s->bytes -= s->node ? mem_usable(s->node) : 0;
    mem_free(MEM_DATA, s->node);
    s->node = node;
    s->bytes += node ? mem_usable(node) : 0;
    s->first = 0;
    s->cap = cap;
}

void stream_push_node(struct stream *s, struct stream_id id, unsigned char *lp)
{
    if (s->first + s->nnodes == s->cap) {
        if (s->first > s->cap / 2) {
            memmove(s->node, s->node + s->first, s->nnodes * sizeof(*s->node));
            s->first = 0;
        } else {
            nodes_resize(s, s->cap < 2 ? s->cap + 1 : s->cap * 2);
        }
    }
    *node_at(s, s->nnodes++) = (struct stream_node){id, lp};
    node_count(s, lp, 1);
}

static void remove_node(struct stream *s, size_t i)
{
    struct stream_node *n = node_at(s, i);

    node_count(s, n->lp, -1);
    listpack_free(n->lp);
    if (i == 0)
        s->first++;
    else
        memmove(n, n + 1, (s->nnodes - i - 1) * sizeof(*n));
    s->nnodes--;
    if (s->nnodes <= s->cap / 4)
        nodes_resize(s, s->nnodes);
}

/* The last node whose ID is not greater; 0 if there is none. */
static size_t node_find(const struct stream *s, struct stream_id id)
{
    size_t low = 0, high = s->nnodes;

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (stream_id_cmp(node_at(s, mid)->id, id) <= 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low ? low - 1 : 0;
}

struct stream *stream_create(void)
{
    struct stream *s = mem_calloc(MEM_DATA, sizeof(*s));

    s->bytes = mem_usable(s);
    return s;
}

void stream_destroy(struct stream *s)
{
    if (!s)
        return;
    while (s->ngroups)
        stream_group_destroy(s, SLICE(s->group[s->ngroups - 1]->name, s->group[s->ngroups - 1]->len));
    for (size_t i = 0; i < s->nnodes; i++)
        listpack_free(node_at(s, i)->lp);
    mem_free(MEM_DATA, s->node);
    mem_free(MEM_DATA, s);
}

/* ---- walking ---- */

void stream_walk_start(struct stream_walk *w, const struct stream *s, struct stream_id from, struct stream_id to,
                       bool reverse)
{
    *w = (struct stream_walk){.s = s, .from = from, .to = to, .reverse = reverse};
    w->at = node_find(s, reverse ? to : from);
}

static unsigned char *master_read(struct stream_walk *w, const unsigned char *lp)
{
    unsigned char *p = skip(lp, listpack_first(lp), 2);

    w->nmaster = stream_lp_int(p);
    w->master = listpack_next(lp, p);
    return skip(lp, w->master, w->nmaster + 1);
}

/* The entry that ends before `end` (NULL: the listpack's end); NULL: it is the master entry that does. */
static unsigned char *entry_before(const unsigned char *lp, const unsigned char *end)
{
    unsigned char *p = end ? listpack_prev(lp, end) : listpack_last(lp);
    int64_t count = stream_lp_int(p);

    if (count == 0)
        return NULL;
    while (count-- > 0)
        p = listpack_prev(lp, p);
    return p;
}

/* Reads the entry at w->entry, and where its values begin. Returns its flags. */
static int64_t entry_read(struct stream_walk *w)
{
    const struct stream_node *n = node_at(w->s, w->at);
    unsigned char *p = w->entry;
    int64_t flags = stream_lp_int(p);

    p = listpack_next(n->lp, p);
    w->id.ms = n->id.ms + (uint64_t)stream_lp_int(p);
    p = listpack_next(n->lp, p);
    w->id.seq = n->id.seq + (uint64_t)stream_lp_int(p);
    p = listpack_next(n->lp, p);
    w->same = flags & STREAM_SAME_FIELDS;
    w->nfields = w->nmaster;
    if (!w->same) {
        w->nfields = stream_lp_int(p);
        p = listpack_next(n->lp, p);
    }
    w->field = w->same ? w->master : NULL;
    w->value = p;
    return flags;
}

static unsigned char *entry_after(const struct stream_walk *w, const unsigned char *lp)
{
    return skip(lp, w->entry, w->same ? w->nmaster + 4 : 2 * w->nfields + 5);
}

/* To the next one, tombstones too. false: there is none. */
static bool entry_step(struct stream_walk *w)
{
    while (w->at < w->s->nnodes) {
        const unsigned char *lp = node_at(w->s, w->at)->lp;
        if (!w->master) {
            w->entry = master_read(w, lp);
            if (w->reverse)
                w->entry = entry_before(lp, NULL);
        } else {
            w->entry = w->reverse ? entry_before(lp, w->entry) : entry_after(w, lp);
        }
        if (w->entry)
            return true;
        w->master = NULL;
        w->at = w->reverse ? w->at - 1 : w->at + 1; /* before the first: SIZE_MAX */
    }
    return false;
}

bool stream_walk_next(struct stream_walk *w)
{
    while (entry_step(w)) {
        if (entry_read(w) & STREAM_DELETED)
            continue;
        if (stream_id_cmp(w->id, w->reverse ? w->to : w->from) * (w->reverse ? -1 : 1) < 0)
            continue; /* before where it begins */
        if (stream_id_cmp(w->id, w->reverse ? w->from : w->to) * (w->reverse ? -1 : 1) <= 0)
            return true;
        w->at = w->s->nnodes;
        return false;
    }
    return false;
}

void stream_walk_field(struct stream_walk *w, struct slice *field, struct slice *value, char fscratch[NUM_I64_MAX],
                       char vscratch[NUM_I64_MAX])
{
    const unsigned char *lp = node_at(w->s, w->at)->lp;

    if (w->same) {
        *field = listpack_str(w->field, fscratch);
        w->field = listpack_next(lp, w->field);
    } else {
        *field = listpack_str(w->value, fscratch);
        w->value = listpack_next(lp, w->value);
    }
    *value = listpack_str(w->value, vscratch);
    w->value = listpack_next(lp, w->value);
}

bool stream_has(const struct stream *s, struct stream_id id)
{
    struct stream_walk w;

    stream_walk_start(&w, s, id, id, false);
    return stream_walk_next(&w);
}

void stream_find_first(struct stream *s)
{
    struct stream_walk w;

    stream_walk_start(&w, s, STREAM_ID_MIN, STREAM_ID_MAX, false);
    s->first_id = stream_walk_next(&w) ? w.id : STREAM_ID_MIN;
}

struct stream_id stream_last_entry(const struct stream *s)
{
    struct stream_walk w;

    stream_walk_start(&w, s, STREAM_ID_MIN, STREAM_ID_MAX, true);
    return stream_walk_next(&w) ? w.id : STREAM_ID_MIN;
}

/* ---- adding ---- */

static unsigned char *node_new(const struct slice *pairs, size_t nfields)
{
    unsigned char *lp = listpack_new(0);

    lp = listpack_append_int(lp, 0);
    lp = listpack_append_int(lp, 0);
    lp = listpack_append_int(lp, (int64_t)nfields);
    for (size_t i = 0; i < nfields; i++)
        lp = listpack_append(lp, pairs[2 * i]);
    return listpack_append_int(lp, 0);
}

static bool has_fields_of(const unsigned char *lp, const struct slice *pairs, size_t nfields)
{
    unsigned char *p = listpack_at(lp, 2);

    if (stream_lp_int(p) != (int64_t)nfields)
        return false;
    for (size_t i = 0; i < nfields; i++) {
        p = listpack_next(lp, p);
        if (!listpack_is(p, pairs[2 * i]))
            return false;
    }
    return true;
}

/* Adds to the counts of its entries and tombstones. */
static unsigned char *add_counts(unsigned char *lp, int64_t entries, int64_t deleted)
{
    unsigned char *p = listpack_first(lp);

    lp = listpack_replace_int(lp, p, stream_lp_int(p) + entries, &p);
    if (deleted) {
        p = listpack_next(lp, p);
        lp = listpack_replace_int(lp, p, stream_lp_int(p) + deleted, NULL);
    }
    return lp;
}

static bool node_is_full(const unsigned char *lp, const struct obj_limits *lim, size_t more, size_t cost)
{
    size_t most = lim->stream_bytes && lim->stream_bytes < NODE_DEFAULT_BYTES ? lim->stream_bytes : NODE_DEFAULT_BYTES;
    unsigned char *p = listpack_first(lp);

    if (listpack_bytes(lp) + more >= most || listpack_bytes(lp) + cost > LISTPACK_SAFE_BYTES)
        return true;
    return lim->stream_entries &&
           (size_t)(stream_lp_int(p) + stream_lp_int(listpack_next(lp, p))) >= lim->stream_entries;
}

bool stream_append(struct stream *s, const struct obj_limits *lim, struct stream_id id, const struct slice *pairs,
                   size_t nfields)
{
    size_t bytes = 0, cost = NODE_ROOM;

    CHECK(stream_id_cmp(id, s->last_id) > 0);
    for (size_t i = 0; i < 2 * nfields; i++) {
        if (pairs[i].len > LISTPACK_SAFE_BYTES)
            return false;
        bytes += pairs[i].len;
        cost += listpack_cost(pairs[i]);
    }
    if (cost > LISTPACK_SAFE_BYTES)
        return false;
    /* XSETID may put last_id before tombstones at the end: a node of nothing else is in the way then. */
    while (s->nnodes && stream_id_cmp(node_at(s, s->nnodes - 1)->id, id) >= 0)
        remove_node(s, s->nnodes - 1);
    if (s->nnodes == 0 || node_is_full(node_at(s, s->nnodes - 1)->lp, lim, bytes, cost))
        stream_push_node(s, id, node_new(pairs, nfields));
    struct stream_node *n = node_at(s, s->nnodes - 1);
    bool same = has_fields_of(n->lp, pairs, nfields);
    node_count(s, n->lp, -1);
    unsigned char *lp = add_counts(n->lp, 1, 0);
    lp = listpack_append_int(lp, same ? STREAM_SAME_FIELDS : 0);
    lp = listpack_append_int(lp, (int64_t)(id.ms - n->id.ms));
    lp = listpack_append_int(lp, (int64_t)(id.seq - n->id.seq));
    if (!same)
        lp = listpack_append_int(lp, (int64_t)nfields);
    for (size_t i = same ? 1 : 0; i < 2 * nfields; i += same ? 2 : 1)
        lp = listpack_append(lp, pairs[i]);
    n->lp = listpack_append_int(lp, (int64_t)(same ? nfields + 3 : 2 * nfields + 4));
    node_count(s, n->lp, 1);
    s->length++;
    s->entries_added++;
    s->last_id = id;
    if (s->length == 1)
        s->first_id = id;
    return true;
}

/* ---- deleting ---- */

bool stream_delete(struct stream *s, struct stream_id id)
{
    struct stream_walk w;

    stream_walk_start(&w, s, id, id, false);
    if (!stream_walk_next(&w))
        return false;
    struct stream_node *n = node_at(s, w.at);
    s->length--;
    if (stream_lp_int(listpack_first(n->lp)) == 1) {
        remove_node(s, w.at);
        return true;
    }
    node_count(s, n->lp, -1);
    n->lp = listpack_replace_int(n->lp, w.entry, stream_lp_int(w.entry) | STREAM_DELETED, NULL);
    n->lp = add_counts(n->lp, -1, 1);
    node_count(s, n->lp, 1);
    return true;
}

/* Of the last entry, though it be a tombstone. */
static struct stream_id node_last_id(const struct stream *s, size_t i)
{
    struct stream_walk w = {.s = s, .at = i, .reverse = true};

    if (!entry_step(&w) || w.at != i)
        return node_at(s, i)->id;
    entry_read(&w);
    return w.id;
}

/* Entries of the first node become tombstones, until there is enough. */
static int64_t trim_within(struct stream *s, const struct stream_trim *t)
{
    struct stream_walk w = {.s = s};
    struct stream_node *n = node_at(s, 0);
    int64_t deleted = 0;

    node_count(s, n->lp, -1);
    while (entry_step(&w) && w.at == 0) {
        int64_t flags = entry_read(&w);
        if (t->by_id ? stream_id_cmp(w.id, t->minid) >= 0 : s->length <= t->maxlen)
            break;
        if (flags & STREAM_DELETED)
            continue;
        n->lp = listpack_replace_int(n->lp, w.entry, flags | STREAM_DELETED, &w.entry); /* of the same length */
        s->length--;
        deleted++;
    }
    n->lp = add_counts(n->lp, -deleted, deleted);
    node_count(s, n->lp, 1);
    return deleted;
}

int64_t stream_trim(struct stream *s, const struct stream_trim *t)
{
    int64_t deleted = 0;

    while (s->nnodes && (t->by_id || s->length > t->maxlen)) {
        int64_t entries = stream_lp_int(listpack_first(node_at(s, 0)->lp));
        if (t->limit && deleted + entries > t->limit)
            break;
        bool whole =
            t->by_id ? stream_id_cmp(node_last_id(s, 0), t->minid) < 0 : s->length - (uint64_t)entries >= t->maxlen;
        if (!whole) {
            if (!t->approx)
                deleted += trim_within(s, t);
            break;
        }
        remove_node(s, 0);
        s->length -= (uint64_t)entries;
        deleted += entries;
    }
    if (deleted)
        stream_find_first(s);
    return deleted;
}

/* ---- as a radix tree would have it ---- */

#define KEY_BYTES 16

static void key_of(struct stream_id id, unsigned char key[KEY_BYTES])
{
    for (int i = 0; i < 8; i++) {
        key[i] = (unsigned char)(id.ms >> (56 - 8 * i));
        key[8 + i] = (unsigned char)(id.seq >> (56 - 8 * i));
    }
}

static int common(struct stream_id a, struct stream_id b)
{
    unsigned char x[KEY_BYTES], y[KEY_BYTES];
    int n = 0;

    key_of(a, x);
    key_of(b, y);
    while (n < KEY_BYTES && x[n] == y[n])
        n++;
    return n;
}

/* A node where keys part, a leaf for each key, and one for the bytes between two of those, if there are any. */
size_t stream_radix_nodes(const struct stream *s)
{
    int open[KEY_BYTES + 1], depth = 0, before = -1;
    size_t count = 0;

    if (s->nnodes < 2)
        return s->nnodes + 1;
    for (size_t i = 0; i < s->nnodes; i++) {
        int after = i + 1 < s->nnodes ? common(node_at(s, i)->id, node_at(s, i + 1)->id) : -1;
        int parts = before > after ? before : after;
        count += 1 + (KEY_BYTES - parts - 1 > 0);
        while (depth && open[depth - 1] > after) {
            int at = open[--depth], parent = depth && open[depth - 1] > after ? open[depth - 1] : after;
            count += 1 + (at - parent - 1 > 0);
        }
        if (after >= 0 && (depth == 0 || open[depth - 1] < after))
            open[depth++] = after;
        before = after;
    }
    return count;
}

/* ---- as a type of object ---- */

static const char *type_encoding(enum obj_enc enc)
{
    (void)enc;
    return "stream";
}

static void type_destroy(enum obj_enc enc, void *value)
{
    (void)enc;
    stream_destroy(value);
}

static size_t type_bytes(enum obj_enc enc, const void *value)
{
    (void)enc;
    return ((const struct stream *)value)->bytes;
}

static size_t type_len(enum obj_enc enc, const void *value)
{
    (void)enc;
    return (size_t)((const struct stream *)value)->length;
}

#define HEAD_BYTES 64    /* IDs and counts of a stream or a group */
#define NODE_BYTES 22    /* beside the listpack */
#define PENDING_BYTES 41 /* of one entry, in both lists */

static size_t type_stored(enum obj_enc enc, const void *value)
{
    const struct stream *s = value;
    (void)enc;

    return HEAD_BYTES * (1 + s->ngroups) + s->packed + NODE_BYTES * s->nnodes + PENDING_BYTES * s->npending;
}

const struct object_ops stream_ops = {
    .name = "stream",
    .encoding = type_encoding,
    .destroy = type_destroy,
    .copy = stream_copy,
    .bytes = type_bytes,
    .len = type_len,
    .stored = type_stored,
    .save = stream_save,
    .load = stream_load,
};
