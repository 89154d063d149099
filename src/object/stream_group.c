/* Consumer groups of streams: who was delivered what. */
#include "object_priv.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"

static int name_cmp(const char *name, size_t len, struct slice other)
{
    size_t least = len < other.len ? len : other.len;
    int c = least ? memcmp(name, other.ptr, least) : 0;

    return c ? c : len < other.len ? -1 : len > other.len;
}

/* Groups and consumers stand in arrays that are sorted by name, with room up to the next power of two. */
static void **array_room(struct stream *s, void **array, size_t n)
{
    if (n & (n - 1))
        return array;
    s->bytes -= array ? mem_usable(array) : 0;
    array = mem_realloc(MEM_DATA, array, (n ? 2 * n : 1) * sizeof(*array));
    s->bytes += mem_usable(array);
    return array;
}

/* ---- entries that are pending ----
 * A treap: ordered by ID, and a heap by random priorities, so that it is about balanced. */

static struct stream_nack *tree_find(struct stream_nack *n, int t, struct stream_id id)
{
    int c;

    while (n && (c = stream_id_cmp(id, n->id)) != 0)
        n = c < 0 ? n->left[t] : n->right[t];
    return n;
}

static void tree_add(struct stream_pel *pel, int t, struct stream_nack *n)
{
    struct stream_nack **at = &pel->root, *rest, **low = &n->left[t], **high = &n->right[t];

    while (*at && (*at)->priority >= n->priority)
        at = stream_id_cmp(n->id, (*at)->id) < 0 ? &(*at)->left[t] : &(*at)->right[t];
    rest = *at; /* is split in two */
    *at = n;
    while (rest) {
        if (stream_id_cmp(rest->id, n->id) < 0) {
            *low = rest;
            low = &rest->right[t];
            rest = *low;
        } else {
            *high = rest;
            high = &rest->left[t];
            rest = *high;
        }
    }
    *low = *high = NULL;
    pel->count++;
}

static void tree_remove(struct stream_pel *pel, int t, struct stream_nack *n)
{
    struct stream_nack **at = &pel->root, *low = n->left[t], *high = n->right[t];

    while (*at != n)
        at = stream_id_cmp(n->id, (*at)->id) < 0 ? &(*at)->left[t] : &(*at)->right[t];
    while (low && high) {
        if (low->priority >= high->priority) {
            *at = low;
            at = &low->right[t];
            low = *at;
        } else {
            *at = high;
            at = &high->left[t];
            high = *at;
        }
    }
    *at = low ? low : high;
    pel->count--;
}

struct stream_nack *stream_pel_find(const struct stream_group *g, struct stream_id id)
{
    return tree_find(g->pel.root, STREAM_OF_GROUP, id);
}

struct stream_nack *stream_pel_from(const struct stream_pel *pel, int tree, struct stream_id id)
{
    struct stream_nack *n = pel->root, *found = NULL;

    while (n) {
        if (stream_id_cmp(n->id, id) >= 0) {
            found = n;
            n = n->left[tree];
        } else {
            n = n->right[tree];
        }
    }
    return found;
}

struct stream_nack *stream_pel_last(const struct stream_pel *pel, int tree)
{
    struct stream_nack *n = pel->root;

    while (n && n->right[tree])
        n = n->right[tree];
    return n;
}

struct stream_nack *stream_pel_add(struct stream *s, struct stream_group *g, struct stream_consumer *c,
                                   struct stream_id id, int64_t now_ms)
{
    struct stream_nack *n = mem_calloc(MEM_DATA, sizeof(*n));

    n->id = id;
    n->delivered_ms = now_ms;
    n->deliveries = 1;
    n->priority = (uint32_t)(rng_next(&g->rng) >> 32);
    tree_add(&g->pel, STREAM_OF_GROUP, n);
    if (c)
        stream_pel_give(n, c);
    s->bytes += mem_usable(n);
    s->npending++;
    return n;
}

void stream_pel_give(struct stream_nack *n, struct stream_consumer *c)
{
    if (n->consumer == c)
        return;
    if (n->consumer)
        tree_remove(&n->consumer->pel, STREAM_OF_CONSUMER, n);
    n->consumer = c;
    tree_add(&c->pel, STREAM_OF_CONSUMER, n);
}

static void nack_free(struct stream *s, struct stream_nack *n)
{
    s->bytes -= mem_usable(n);
    s->npending--;
    mem_free(MEM_DATA, n);
}

void stream_pel_remove(struct stream *s, struct stream_group *g, struct stream_nack *n)
{
    tree_remove(&g->pel, STREAM_OF_GROUP, n);
    if (n->consumer)
        tree_remove(&n->consumer->pel, STREAM_OF_CONSUMER, n);
    nack_free(s, n);
}

/* All of a group's, which goes. */
static void pel_free(struct stream *s, struct stream_nack *n)
{
    while (n) {
        struct stream_nack *right = n->right[STREAM_OF_GROUP];
        pel_free(s, n->left[STREAM_OF_GROUP]);
        nack_free(s, n);
        n = right;
    }
}

/* ---- consumers ---- */

/* *at: where it is, or would be. */
static bool consumer_find(const struct stream_group *g, struct slice name, size_t *at)
{
    size_t low = 0, high = g->nconsumers;

    while (low < high) {
        size_t mid = (low + high) / 2;
        int c = name_cmp(g->consumer[mid]->name, g->consumer[mid]->len, name);
        if (c == 0) {
            *at = mid;
            return true;
        }
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    *at = low;
    return false;
}

struct stream_consumer *stream_consumer_find(const struct stream_group *g, struct slice name)
{
    size_t at;

    return consumer_find(g, name, &at) ? g->consumer[at] : NULL;
}

struct stream_consumer *stream_consumer_create(struct stream *s, struct stream_group *g, struct slice name,
                                               int64_t now_ms)
{
    size_t at;

    if (consumer_find(g, name, &at))
        return NULL;
    struct stream_consumer *c = mem_calloc(MEM_DATA, sizeof(*c) + name.len);
    c->seen_ms = now_ms;
    c->len = name.len;
    if (name.len)
        memcpy(c->name, name.ptr, name.len);
    g->consumer = (struct stream_consumer **)array_room(s, (void **)g->consumer, g->nconsumers);
    memmove(g->consumer + at + 1, g->consumer + at, (g->nconsumers - at) * sizeof(struct stream_consumer *));
    g->consumer[at] = c;
    g->nconsumers++;
    s->bytes += mem_usable(c);
    return c;
}

static void consumer_free(struct stream *s, struct stream_consumer *c)
{
    s->bytes -= mem_usable(c);
    mem_free(MEM_DATA, c);
}

void stream_consumer_destroy(struct stream *s, struct stream_group *g, struct stream_consumer *c)
{
    size_t at;

    while (c->pel.root)
        stream_pel_remove(s, g, c->pel.root);
    CHECK(consumer_find(g, SLICE(c->name, c->len), &at));
    g->nconsumers--;
    memmove(g->consumer + at, g->consumer + at + 1, (g->nconsumers - at) * sizeof(struct stream_consumer *));
    consumer_free(s, c);
}

/* ---- groups ---- */

static bool group_find(const struct stream *s, struct slice name, size_t *at)
{
    size_t low = 0, high = s->ngroups;

    while (low < high) {
        size_t mid = (low + high) / 2;
        int c = name_cmp(s->group[mid]->name, s->group[mid]->len, name);
        if (c == 0) {
            *at = mid;
            return true;
        }
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    *at = low;
    return false;
}

struct stream_group *stream_group_find(const struct stream *s, struct slice name)
{
    size_t at;

    return group_find(s, name, &at) ? s->group[at] : NULL;
}

struct stream_group *stream_group_create(struct stream *s, struct slice name, struct stream_id last_id,
                                         int64_t entries_read)
{
    size_t at;

    if (group_find(s, name, &at))
        return NULL;
    struct stream_group *g = mem_calloc(MEM_DATA, sizeof(*g) + name.len);
    g->last_id = last_id;
    g->entries_read = entries_read;
    g->rng = (uint64_t)(uintptr_t)g;
    g->len = name.len;
    if (name.len)
        memcpy(g->name, name.ptr, name.len);
    s->group = (struct stream_group **)array_room(s, (void **)s->group, s->ngroups);
    memmove(s->group + at + 1, s->group + at, (s->ngroups - at) * sizeof(struct stream_group *));
    s->group[at] = g;
    s->ngroups++;
    s->bytes += mem_usable(g);
    return g;
}

bool stream_group_destroy(struct stream *s, struct slice name)
{
    size_t at;

    if (!group_find(s, name, &at))
        return false;
    struct stream_group *g = s->group[at];
    s->ngroups--;
    memmove(s->group + at, s->group + at + 1, (s->ngroups - at) * sizeof(struct stream_group *));
    if (s->ngroups == 0) {
        s->bytes -= mem_usable(s->group);
        mem_free(MEM_DATA, s->group);
        s->group = NULL;
    }
    pel_free(s, g->pel.root);
    for (size_t i = 0; i < g->nconsumers; i++)
        consumer_free(s, g->consumer[i]);
    s->bytes -= g->consumer ? mem_usable(g->consumer) : 0;
    mem_free(MEM_DATA, g->consumer);
    s->bytes -= mem_usable(g);
    mem_free(MEM_DATA, g);
    return true;
}

/* ---- how far a group is ----
 * How many entries precede one is known exactly only where nothing between it and the last one was deleted. */

static bool tombstone_from(const struct stream *s, struct stream_id id)
{
    return s->length && stream_id_cmp(s->first_id, s->max_deleted) <= 0 &&
           stream_id_cmp(s->max_deleted, STREAM_ID_MIN) != 0 && stream_id_cmp(id, s->max_deleted) <= 0;
}

int64_t stream_count_until(const struct stream *s, struct stream_id id)
{
    int to_last = stream_id_cmp(id, s->last_id), to_first = stream_id_cmp(id, s->first_id);

    if (s->entries_added == 0)
        return 0;
    if (s->length == 0 && to_last <= 0)
        return (int64_t)s->entries_added;
    if (to_last == 0)
        return (int64_t)s->entries_added;
    if (to_last > 0)
        return STREAM_NOT_KNOWN;
    if (stream_id_cmp(s->max_deleted, STREAM_ID_MIN) == 0 || stream_id_cmp(s->max_deleted, s->first_id) < 0) {
        if (to_first < 0)
            return (int64_t)(s->entries_added - s->length);
        if (to_first == 0)
            return (int64_t)(s->entries_added - s->length + 1);
    }
    return STREAM_NOT_KNOWN;
}

void stream_group_advance(const struct stream *s, struct stream_group *g, struct stream_id id)
{
    if (g->entries_read != STREAM_NOT_KNOWN && !tombstone_from(s, id))
        g->entries_read = (int64_t)((uint64_t)g->entries_read + 1);
    else if (s->entries_added)
        g->entries_read = stream_count_until(s, id);
    g->last_id = id;
}

bool stream_group_lag(const struct stream *s, const struct stream_group *g, int64_t *lag)
{
    int64_t read = g->entries_read;

    *lag = 0;
    if (s->entries_added == 0)
        return true;
    if (read == STREAM_NOT_KNOWN || tombstone_from(s, g->last_id))
        read = stream_count_until(s, g->last_id);
    if (read == STREAM_NOT_KNOWN)
        return false;
    *lag = (int64_t)(s->entries_added - (uint64_t)read);
    return true;
}
