/* Client tracking in broadcasting mode: clients are told of all keys that begin with a prefix. Shared is how many clients of
 * which worker have which prefix; who they are is the worker's own. A change goes once to each worker that has somebody
 * for it, which collects what came together: per prefix a client gets one message, with the names in order. */
#include <stdlib.h>

#include "cmd/cmd_priv.h"
#include "cmd/tracking_priv.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"

struct prefix {
    struct node node;
    size_t len, clients;
    uint32_t *of; /* per worker */
    char *name;
};

/* A prefix as one worker sees it. */
struct local_prefix {
    struct node node;
    struct list subs;
    struct buf noted; /* struct noted */
    size_t len;
    char name[];
};

struct prefix_sub {
    struct list in_prefix, in_client;
    struct local_prefix *p;
    struct tracker *tracker;
};

struct change {
    struct inbox_msg in;
    uint64_t writer; /* the client that did it, if it tracks; else 0 */
    size_t len;
    char name[];
};

struct noted {
    const struct change *c;
    size_t seq;
};

/* ---- lengths ---- */

void lengths_add(struct lengths *l, size_t len)
{
    for (size_t i = 0; i < l->n; i++) {
        if (l->of[i].len == len) {
            l->of[i].n++;
            return;
        }
    }
    l->of = mem_realloc(MEM_OTHER, l->of, (l->n + 1) * sizeof(*l->of));
    l->of[l->n].len = len;
    l->of[l->n++].n = 1;
}

void lengths_remove(struct lengths *l, size_t len)
{
    size_t i = 0;

    while (l->of[i].len != len)
        CHECK(++i < l->n);
    if (--l->of[i].n == 0)
        l->of[i] = l->of[--l->n];
}

/* ---- shared ---- */

static struct prefix *prefix_find(const struct tracking *t, uint64_t hash, struct slice name)
{
    for (struct node *n = table_first(&t->prefixes, hash); n; n = n->next) {
        struct prefix *p = NODE(n, struct prefix);
        if (n->hash == hash && slice_eq(SLICE(p->name, p->len), name))
            return p;
    }
    return NULL;
}

static void count_in(struct tracking *t, struct worker *w, uint64_t hash, struct slice name)
{
    size_t workers = (size_t)t->tier->nworkers;

    pthread_rwlock_wrlock(&t->prefix_lock);
    struct prefix *p = prefix_find(t, hash, name);
    if (!p) {
        p = mem_calloc(MEM_OTHER, sizeof(*p) + workers * sizeof(*p->of) + name.len);
        p->node.hash = hash;
        p->len = name.len;
        p->of = (uint32_t *)(p + 1);
        p->name = (char *)(p->of + workers);
        if (name.len)
            memcpy(p->name, name.ptr, name.len);
        table_add(&t->prefixes, &p->node);
        lengths_add(&t->lengths, p->len);
        atomic_fetch_add(&t->nprefixes, 1);
    }
    p->clients++;
    p->of[w->id]++;
    pthread_rwlock_unlock(&t->prefix_lock);
}

static void count_out(struct tracking *t, const struct worker *w, uint64_t hash, struct slice name)
{
    pthread_rwlock_wrlock(&t->prefix_lock);
    struct prefix *p = prefix_find(t, hash, name);
    CHECK(p && p->of[w->id] > 0);
    p->of[w->id]--;
    if (--p->clients == 0) {
        table_remove(&t->prefixes, &p->node);
        lengths_remove(&t->lengths, p->len);
        atomic_fetch_sub(&t->nprefixes, 1);
        mem_free(MEM_OTHER, p);
    }
    pthread_rwlock_unlock(&t->prefix_lock);
}

static void change_deliver(struct worker *w, struct inbox_msg *in, const struct session *within);

static void change_free(struct inbox_msg *in)
{
    mem_free(MEM_OTHER, in);
}

void prefixes_changed(struct tracking *t, uint64_t writer, struct slice name)
{
    bool to[TRACKING_WORKERS] = {false};
    unsigned workers = (unsigned)t->tier->nworkers, n = 0;

    pthread_rwlock_rdlock(&t->prefix_lock);
    for (size_t i = 0; i < t->lengths.n; i++) {
        size_t len = t->lengths.of[i].len;
        if (len > name.len)
            continue;
        const struct prefix *p = prefix_find(t, hash_bytes(t->seed, name.ptr, len), SLICE(name.ptr, len));
        for (unsigned w = 0; p && w < workers; w++) {
            n += p->of[w] > 0 && !to[w];
            to[w] |= p->of[w] > 0;
        }
    }
    if (n > 0) {
        struct change *c = mem_alloc(MEM_OTHER, sizeof(*c) + name.len);
        *c = (struct change){.in = {n, change_deliver, change_free}, .writer = writer, .len = name.len};
        if (name.len)
            memcpy(c->name, name.ptr, name.len);
        for (unsigned w = 0; w < workers; w++)
            if (to[w])
                inbox_append(t->tier->workers[w], &c->in);
    }
    pthread_rwlock_unlock(&t->prefix_lock);
}

/* ---- a worker's ---- */

static struct local_prefix *local_find(const struct tracking_worker *tw, uint64_t hash, struct slice name)
{
    for (struct node *n = table_first(&tw->prefixes, hash); n; n = n->next) {
        struct local_prefix *p = NODE(n, struct local_prefix);
        if (n->hash == hash && slice_eq(SLICE(p->name, p->len), name))
            return p;
    }
    return NULL;
}

bool prefix_add(struct tracker *tr, struct slice name)
{
    struct tracking_worker *tw = tr->w->cmd_worker->tracking;
    uint64_t hash = hash_bytes(tw->t->seed, name.ptr, name.len);
    struct local_prefix *p = local_find(tw, hash, name);

    for (struct list *l = tr->prefixes.next; p && l != &tr->prefixes; l = l->next)
        if (LIST_ENTRY(l, struct prefix_sub, in_client)->p == p)
            return false;
    if (!p) {
        p = mem_calloc(MEM_OTHER, sizeof(*p) + name.len);
        p->node.hash = hash;
        p->len = name.len;
        if (name.len)
            memcpy(p->name, name.ptr, name.len);
        list_init(&p->subs);
        buf_init(&p->noted, MEM_OTHER);
        table_add(&tw->prefixes, &p->node);
        lengths_add(&tw->lengths, p->len);
    }
    struct prefix_sub *sub = mem_calloc(MEM_CLIENT, sizeof(*sub));
    sub->p = p;
    sub->tracker = tr;
    list_push_back(&p->subs, &sub->in_prefix);
    list_push_back(&tr->prefixes, &sub->in_client);
    count_in(tw->t, tr->w, hash, name);
    return true;
}

void prefixes_clear(struct tracker *tr)
{
    struct tracking_worker *tw = tr->w->cmd_worker->tracking;
    struct list *l;

    while ((l = list_pop_front(&tr->prefixes))) {
        struct prefix_sub *sub = LIST_ENTRY(l, struct prefix_sub, in_client);
        struct local_prefix *p = sub->p;
        count_out(tw->t, tr->w, p->node.hash, SLICE(p->name, p->len));
        list_remove(&sub->in_prefix);
        mem_free(MEM_CLIENT, sub);
        if (!list_empty(&p->subs))
            continue;
        table_remove(&tw->prefixes, &p->node);
        lengths_remove(&tw->lengths, p->len);
        mem_free(MEM_OTHER, p);
    }
}

struct slice prefix_name(const struct list *in_client)
{
    const struct local_prefix *p = LIST_ENTRY(in_client, struct prefix_sub, in_client)->p;
    return SLICE(p->name, p->len);
}

size_t prefix_count(const struct tracker *tr)
{
    size_t n = 0;

    for (const struct list *l = tr->prefixes.next; l != &tr->prefixes; l = l->next)
        n++;
    return n;
}

/* ---- what came together ---- */

static void change_deliver(struct worker *w, struct inbox_msg *in, const struct session *within)
{
    struct tracking_worker *tw = w->cmd_worker->tracking;
    struct change *c = (struct change *)(void *)in;
    bool wanted = false;
    (void)within;

    for (size_t i = 0; i < tw->lengths.n; i++) {
        size_t len = tw->lengths.of[i].len;
        if (len > c->len)
            continue;
        struct local_prefix *p = local_find(tw, hash_bytes(tw->t->seed, c->name, len), SLICE(c->name, len));
        if (!p)
            continue;
        if (p->noted.len == 0)
            buf_append(&tw->touched, &p, sizeof(struct local_prefix *));
        struct noted noted = {c, p->noted.len};
        buf_append(&p->noted, &noted, sizeof(noted));
        wanted = true;
    }
    if (wanted) {
        atomic_fetch_add_explicit(&c->in.refs, 1, memory_order_relaxed);
        buf_append(&tw->changes, &c, sizeof(struct change *));
    }
}

static int bytes_compare(const char *a, size_t alen, const char *b, size_t blen)
{
    int by = memcmp(a, b, alen < blen ? alen : blen);
    return by ? by : alen < blen ? -1 : alen > blen;
}

static int touched_compare(const void *a, const void *b)
{
    const struct local_prefix *x = *(struct local_prefix *const *)a, *y = *(struct local_prefix *const *)b;
    return bytes_compare(x->name, x->len, y->name, y->len);
}

static int noted_compare(const void *a, const void *b)
{
    const struct noted *x = a, *y = b;
    int by = bytes_compare(x->c->name, x->c->len, y->c->name, y->c->len);
    return by ? by : x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* Names in order, each once, with its last change. Returns how many. */
static size_t noted_sort(struct noted *of, size_t n)
{
    size_t kept = 0;

    qsort(of, n, sizeof(*of), noted_compare);
    for (size_t i = 0; i < n; i++) {
        const struct change *c = of[i].c, *next = i + 1 < n ? of[i + 1].c : NULL;
        if (!next || !slice_eq(SLICE(c->name, c->len), SLICE(next->name, next->len)))
            of[kept++] = of[i];
    }
    return kept;
}

/* All names but those that client `but` changed itself. Returns how many. */
static size_t noted_encode(struct buf *out, const struct noted *of, size_t n, uint64_t but)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += but == 0 || of[i].c->writer != but;
    out->len = 0;
    buf_printf(out, "*%zu\r\n", count);
    for (size_t i = 0; i < n; i++) {
        const struct change *c = of[i].c;
        if (but != 0 && c->writer == but)
            continue;
        buf_printf(out, "$%zu\r\n", c->len);
        buf_append(out, c->name, c->len);
        buf_append(out, "\r\n", 2);
    }
    return count;
}

static void tell(const struct tracker *tr, struct slice value, const struct session *within)
{
    struct target to;

    if (tr->redirect == 0)
        tracking_push(tr->s, false, PUSH_KEYS, 0, value, within);
    else if (tracking_route(tracking_of(tr->w), tr->id, &to))
        tracking_send(PUSH_KEYS, 0, &to, 1, value);
}

static void prefix_tell(struct local_prefix *p, struct buf *all, struct buf *some, const struct session *within)
{
    struct noted *of = (struct noted *)(void *)p->noted.ptr;
    size_t n = noted_sort(of, p->noted.len / sizeof(*of));

    noted_encode(all, of, n, 0);
    for (struct list *l = p->subs.next; l != &p->subs; l = l->next) {
        const struct tracker *tr = LIST_ENTRY(l, struct prefix_sub, in_prefix)->tracker;
        if (!(atomic_load(&tr->mode) & TRACKING_NOLOOP))
            tell(tr, buf_slice(all), within);
        else if (noted_encode(some, of, n, tr->id) > 0)
            tell(tr, buf_slice(some), within);
    }
    buf_deinit(&p->noted);
}

void prefixes_deliver(struct worker *w, const struct session *within)
{
    struct tracking_worker *tw = w->cmd_worker->tracking;
    struct buf all, some;

    if (LIKELY(tw->touched.len == 0))
        return;
    struct local_prefix **p = (struct local_prefix **)(void *)tw->touched.ptr;
    size_t n = tw->touched.len / sizeof(struct local_prefix *);
    qsort(p, n, sizeof(struct local_prefix *), touched_compare);
    buf_init(&all, MEM_OTHER);
    buf_init(&some, MEM_OTHER);
    for (size_t i = 0; i < n; i++)
        prefix_tell(p[i], &all, &some, within);
    buf_deinit(&all);
    buf_deinit(&some);
    struct change **c = (struct change **)(void *)tw->changes.ptr;
    for (size_t i = 0; i < tw->changes.len / sizeof(struct change *); i++)
        inbox_unref(&c[i]->in);
    buf_deinit(&tw->touched);
    buf_deinit(&tw->changes);
}
