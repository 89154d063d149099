#include "object_priv.h"

#include "tiercel/alloc.h"
#include "tiercel/check.h"

#define LEAF_MAX 29  /* a leaf is 256 bytes */
#define INNER_MAX 31 /* an inner node is 1000 */

struct zset_leaf {
    unsigned n;
    struct zset_leaf *prev, *next;
    struct zset_entry *e[LEAF_MAX];
};

struct inner {
    unsigned n;
    double score[INNER_MAX];             /* of each child's first member, kept here to spare a cache miss */
    struct zset_entry *first[INNER_MAX]; /* that member */
    size_t count[INNER_MAX];
    void *child[INNER_MAX];
};

/* Where a node is split: members that come in order leave full nodes behind. */
enum edge { EDGE_NONE, EDGE_LEFT, EDGE_RIGHT };

int zset_compare(double a, struct slice a_name, double b, struct slice b_name)
{
    if (a != b)
        return a < b ? -1 : 1;
    return slice_order(a_name, b_name);
}

static inline int compare(double score, const struct zset_entry *a, const struct zset_entry *b)
{
    if (score != b->score)
        return score < b->score ? -1 : 1;
    return a == b ? 0 : slice_order(zset_entry_name(a), zset_entry_name(b));
}

static void *node_new(struct zset_tree *t, size_t bytes)
{
    void *node = mem_calloc(MEM_DATA, bytes);

    t->bytes += mem_usable_sized(node, bytes);
    return node;
}

static void node_free(struct zset_tree *t, void *node, size_t bytes)
{
    t->bytes -= mem_usable_sized(node, bytes);
    mem_free_sized(MEM_DATA, node, bytes);
}

static void clear(struct zset_tree *t, void *node, unsigned height)
{
    struct inner *in = node;

    for (unsigned i = 0; height > 0 && i < in->n; i++)
        clear(t, in->child[i], height - 1);
    node_free(t, node, height ? sizeof(struct inner) : sizeof(struct zset_leaf));
}

void ztree_clear(struct zset_tree *t)
{
    if (t->root)
        clear(t, t->root, t->height);
    *t = (struct zset_tree){.root = NULL};
}

/* ---- finding ---- */

/* The child in whose range it is. */
static unsigned child_of(const struct inner *in, const struct zset_entry *e)
{
    unsigned low = 1, high = in->n;

    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (compare(in->score[mid], in->first[mid], e) <= 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low - 1;
}

/* How many of the leaf are before it. */
static unsigned place_in(const struct zset_leaf *l, const struct zset_entry *e)
{
    unsigned low = 0, high = l->n;

    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (compare(l->e[mid]->score, l->e[mid], e) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

size_t ztree_rank(const struct zset_tree *t, const struct zset_entry *e)
{
    const void *node = t->root;
    size_t rank = 0;

    for (unsigned h = t->height; h > 0; h--) {
        const struct inner *in = node;
        unsigned i = child_of(in, e);
        for (unsigned k = 0; k < i; k++)
            rank += in->count[k];
        node = in->child[i];
    }
    const struct zset_leaf *l = node;
    unsigned at = place_in(l, e);
    CHECK(at < l->n && l->e[at] == e);
    return rank + at;
}

size_t ztree_count(const struct zset_tree *t, bool (*before)(const void *bound, double score, struct slice name),
                   const void *bound)
{
    const void *node = t->root;
    size_t count = 0;

    if (!node)
        return 0;
    for (unsigned h = t->height; h > 0; h--) {
        const struct inner *in = node;
        unsigned low = 1, high = in->n;
        while (low < high) {
            unsigned mid = (low + high) / 2;
            if (before(bound, in->score[mid], zset_entry_name(in->first[mid])))
                low = mid + 1;
            else
                high = mid;
        }
        for (unsigned k = 0; k + 1 < low; k++)
            count += in->count[k];
        node = in->child[low - 1];
    }
    const struct zset_leaf *l = node;
    unsigned low = 0, high = l->n;
    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (before(bound, l->e[mid]->score, zset_entry_name(l->e[mid])))
            low = mid + 1;
        else
            high = mid;
    }
    return count + low;
}

struct zset_place ztree_at(const struct zset_tree *t, size_t rank)
{
    const void *node = t->root;

    if (rank >= t->count)
        return (struct zset_place){.leaf = NULL};
    for (unsigned h = t->height; h > 0; h--) {
        const struct inner *in = node;
        unsigned i = 0;
        for (; rank >= in->count[i]; i++)
            rank -= in->count[i];
        node = in->child[i];
    }
    return (struct zset_place){node, (unsigned)rank};
}

struct zset_entry *ztree_entry(struct zset_place p)
{
    return p.leaf ? p.leaf->e[p.at] : NULL;
}

struct zset_place ztree_step(struct zset_place p, bool back)
{
    if (back) {
        if (p.at > 0)
            return (struct zset_place){p.leaf, p.at - 1};
        return (struct zset_place){p.leaf->prev, p.leaf->prev ? p.leaf->prev->n - 1 : 0};
    }
    if (p.at + 1 < p.leaf->n)
        return (struct zset_place){p.leaf, p.at + 1};
    return (struct zset_place){p.leaf->next, 0};
}

/* ---- adding ---- */

static struct zset_entry *first_of(const void *node, unsigned height)
{
    return height ? ((const struct inner *)node)->first[0] : ((const struct zset_leaf *)node)->e[0];
}

static size_t count_of(const void *node, unsigned height)
{
    const struct inner *in = node;
    size_t n = 0;

    if (height == 0)
        return ((const struct zset_leaf *)node)->n;
    for (unsigned i = 0; i < in->n; i++)
        n += in->count[i];
    return n;
}

/* After a change below it. height: of the children. */
static void first_note(struct inner *in, unsigned i, unsigned height)
{
    struct zset_entry *e = first_of(in->child[i], height);

    if (in->first[i] != e) {
        in->first[i] = e;
        in->score[i] = e->score;
    }
}

static void inner_gap(struct inner *in, unsigned at)
{
    size_t n = in->n - at;

    memmove(in->score + at + 1, in->score + at, n * sizeof(in->score[0]));
    memmove(in->first + at + 1, in->first + at, n * sizeof(in->first[0]));
    memmove(in->count + at + 1, in->count + at, n * sizeof(in->count[0]));
    memmove(in->child + at + 1, in->child + at, n * sizeof(in->child[0]));
    in->n++;
}

/* Children [from, n) to the end of another node. */
static void inner_move(struct inner *to, struct inner *from, unsigned at)
{
    size_t n = from->n - at;

    memcpy(to->score + to->n, from->score + at, n * sizeof(from->score[0]));
    memcpy(to->first + to->n, from->first + at, n * sizeof(from->first[0]));
    memcpy(to->count + to->n, from->count + at, n * sizeof(from->count[0]));
    memcpy(to->child + to->n, from->child + at, n * sizeof(from->child[0]));
    to->n += (unsigned)n;
    from->n = at;
}

/* How many of a full node stay in its left half, of which one becomes `at`. */
static unsigned split_at(unsigned n, unsigned at, enum edge edge)
{
    return edge == EDGE_RIGHT ? n : edge == EDGE_LEFT ? at : n / 2;
}

static void inner_put(struct inner *in, unsigned at, void *child, unsigned height)
{
    inner_gap(in, at);
    in->child[at] = child;
    in->first[at] = NULL;
    first_note(in, at, height);
    in->count[at] = count_of(child, height);
}

/* Returns the right half if it had to be split. height: of the child. */
static struct inner *inner_add(struct zset_tree *t, struct inner *in, unsigned at, void *child, unsigned height,
                               enum edge edge)
{
    struct inner *right = NULL;

    if (in->n == INNER_MAX) {
        unsigned keep = split_at(in->n, at, edge);
        right = node_new(t, sizeof(*right));
        inner_move(right, in, keep);
        if (at > keep || keep == INNER_MAX || (at == keep && edge == EDGE_LEFT)) {
            at -= keep;
            in = right;
        }
    }
    inner_put(in, at, child, height);
    return right;
}

static struct zset_leaf *leaf_add(struct zset_tree *t, struct zset_leaf *l, struct zset_entry *e, enum edge *edge)
{
    unsigned at = place_in(l, e);
    struct zset_leaf *right = NULL;

    CHECK(at == l->n || l->e[at] != e);
    if (l->n == LEAF_MAX) {
        *edge = at == l->n && !l->next ? EDGE_RIGHT : at == 0 && !l->prev ? EDGE_LEFT : EDGE_NONE;
        unsigned keep = split_at(l->n, at, *edge);
        right = node_new(t, sizeof(*right));
        right->n = l->n - keep;
        memcpy(right->e, l->e + keep, right->n * sizeof(l->e[0]));
        l->n = keep;
        right->next = l->next;
        right->prev = l;
        if (right->next)
            right->next->prev = right;
        l->next = right;
        if (at > keep || keep == LEAF_MAX) {
            at -= keep;
            l = right;
        }
    }
    memmove(l->e + at + 1, l->e + at, (l->n - at) * sizeof(l->e[0]));
    l->e[at] = e;
    l->n++;
    return right;
}

static void *add(struct zset_tree *t, void *node, unsigned height, struct zset_entry *e, enum edge *edge)
{
    struct inner *in = node;

    if (height == 0)
        return leaf_add(t, node, e, edge);
    unsigned i = child_of(in, e);
    void *right = add(t, in->child[i], height - 1, e, edge);
    first_note(in, i, height - 1);
    if (!right) {
        in->count[i]++;
        return NULL;
    }
    in->count[i] = count_of(in->child[i], height - 1);
    return inner_add(t, in, i + 1, right, height - 1, *edge);
}

void ztree_add(struct zset_tree *t, struct zset_entry *e)
{
    enum edge edge = EDGE_NONE;

    if (!t->root)
        t->root = node_new(t, sizeof(struct zset_leaf));
    void *right = add(t, t->root, t->height, e, &edge);
    if (right) {
        struct inner *root = node_new(t, sizeof(*root));
        inner_put(root, 0, t->root, t->height);
        inner_put(root, 1, right, t->height);
        t->root = root;
        t->height++;
    }
    t->count++;
}

/* ---- removing ---- */

static void leaf_unlink(struct zset_tree *t, struct zset_leaf *l)
{
    if (l->prev)
        l->prev->next = l->next;
    if (l->next)
        l->next->prev = l->prev;
    node_free(t, l, sizeof(*l));
}

static void inner_drop(struct inner *in, unsigned at)
{
    size_t n = --in->n - at;

    memmove(in->score + at, in->score + at + 1, n * sizeof(in->score[0]));
    memmove(in->first + at, in->first + at + 1, n * sizeof(in->first[0]));
    memmove(in->count + at, in->count + at + 1, n * sizeof(in->count[0]));
    memmove(in->child + at, in->child + at + 1, n * sizeof(in->child[0]));
}

static unsigned length_of(const void *node, unsigned height)
{
    return height ? ((const struct inner *)node)->n : ((const struct zset_leaf *)node)->n;
}

/* Two neighbours that are small become one, with room left: the next change shall not split it again. */
static bool merge(struct zset_tree *t, struct inner *in, unsigned i, unsigned height)
{
    unsigned max = height ? INNER_MAX : LEAF_MAX;

    if (i + 1 >= in->n || length_of(in->child[i], height) + length_of(in->child[i + 1], height) > max * 3 / 4)
        return false;
    if (height) {
        inner_move(in->child[i], in->child[i + 1], 0);
        node_free(t, in->child[i + 1], sizeof(struct inner));
    } else {
        struct zset_leaf *l = in->child[i], *right = in->child[i + 1];
        memcpy(l->e + l->n, right->e, right->n * sizeof(l->e[0]));
        l->n += right->n;
        leaf_unlink(t, right);
    }
    in->count[i] += in->count[i + 1];
    inner_drop(in, i + 1);
    return true;
}

static void drop(struct zset_tree *t, void *node, unsigned height, const struct zset_entry *e)
{
    struct inner *in = node;
    struct zset_leaf *l = node;

    if (height == 0) {
        unsigned at = place_in(l, e);
        CHECK(at < l->n && l->e[at] == e);
        memmove(l->e + at, l->e + at + 1, (--l->n - at) * sizeof(l->e[0]));
        return;
    }
    unsigned i = child_of(in, e), max = height > 1 ? INNER_MAX : LEAF_MAX;
    drop(t, in->child[i], height - 1, e);
    in->count[i]--;
    unsigned left = length_of(in->child[i], height - 1);
    if (left == 0) {
        if (height > 1)
            node_free(t, in->child[i], sizeof(struct inner));
        else
            leaf_unlink(t, in->child[i]);
        inner_drop(in, i);
        return;
    }
    first_note(in, i, height - 1);
    if (left <= max / 4 && !merge(t, in, i, height - 1) && i > 0)
        merge(t, in, i - 1, height - 1);
}

void ztree_remove(struct zset_tree *t, const struct zset_entry *e)
{
    drop(t, t->root, t->height, e);
    t->count--;
    if (t->count == 0) {
        ztree_clear(t);
        return;
    }
    while (t->height > 0 && ((struct inner *)t->root)->n == 1) {
        struct inner *root = t->root;
        t->root = root->child[0];
        t->height--;
        node_free(t, root, sizeof(*root));
    }
}

void ztree_rescore(struct zset_tree *t, struct zset_entry *e, double score)
{
    const void *node = t->root;

    for (unsigned h = t->height; h > 0; h--)
        node = ((const struct inner *)node)->child[child_of(node, e)];
    const struct zset_leaf *l = node;
    unsigned at = place_in(l, e);
    CHECK(at < l->n && l->e[at] == e);
    /* Inside a leaf no inner node knows of it, and its neighbours tell. */
    struct slice name = zset_entry_name(e);
    if (at > 0 && at + 1 < l->n && zset_compare(l->e[at - 1]->score, zset_entry_name(l->e[at - 1]), score, name) < 0 &&
        zset_compare(score, name, l->e[at + 1]->score, zset_entry_name(l->e[at + 1])) < 0) {
        e->score = score;
        return;
    }
    ztree_remove(t, e);
    e->score = score;
    ztree_add(t, e);
}
