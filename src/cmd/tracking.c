/* Client tracking: see include/tiercel/tracking.h for how it agrees with changes of keys. */
#include "cmd/tracking_priv.h"

#include "cmd/cmd_priv.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"
#include "tiercel/pubsub.h"

#define EVICT_AT_ONCE 100      /* names over the limit that one reader drops */
#define EVICT_PER_TICK 10000   /* and that the periodic work does */
#define FREE_PER_TICK 10000    /* buckets of what a flush has dropped */
#define LINGER_TICKS 100       /* without a client: how long names are kept for those that come back */
#define OWN_FLUSHED UINT32_MAX /* in place of a name's length */

/* A key and who has read it. */
struct readers {
    struct node node;
    uint64_t *id; /* ascending */
    size_t n, cap;
    uint64_t one; /* where `id` points while there is one */
    size_t len;
    char name[];
};

static void readers_free(struct readers *r)
{
    if (r->id != &r->one)
        mem_free(MEM_OTHER, r->id);
    mem_free(MEM_OTHER, r);
}

static struct readers *readers_find(const struct table *t, uint64_t hash, struct slice name)
{
    for (struct node *n = table_first(t, hash); n; n = n->next) {
        struct readers *r = NODE(n, struct readers);
        if (n->hash == hash && slice_eq(SLICE(r->name, r->len), name))
            return r;
    }
    return NULL;
}

/* false: it was there. */
static bool readers_add(struct readers *r, uint64_t id)
{
    size_t low = 0, high = r->n;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (r->id[mid] == id)
            return false;
        if (r->id[mid] < id)
            low = mid + 1;
        else
            high = mid;
    }
    if (r->n == r->cap) {
        uint64_t *old = r->id;
        r->cap = r->cap * 2;
        r->id = mem_realloc(MEM_OTHER, old == &r->one ? NULL : old, r->cap * sizeof(*r->id));
        if (old == &r->one)
            r->id[0] = r->one;
    }
    memmove(r->id + low + 1, r->id + low, (r->n - low) * sizeof(*r->id));
    r->id[low] = id;
    r->n++;
    return true;
}

/* ---- clients ---- */

static struct tracker *tracker_find_locked(const struct tracking_shard *shard, uint64_t hash, uint64_t id)
{
    for (struct node *n = table_first(&shard->clients, hash); n; n = n->next)
        if (NODE(n, struct tracker)->id == id)
            return NODE(n, struct tracker);
    return NULL;
}

/* NULL: it is gone. The shard is left locked in any case. */
static struct tracker *tracker_lock(struct tracking *t, uint64_t id, struct tracking_shard **shard)
{
    uint64_t hash = tracking_client_hash(id);

    *shard = tracking_shard_of(t, hash);
    pthread_mutex_lock(&(*shard)->client_lock);
    return tracker_find_locked(*shard, hash, id);
}

static struct worker *client_worker(struct tracking *t, uint64_t id)
{
    struct tracking_shard *shard;
    const struct tracker *tr = tracker_lock(t, id, &shard);
    struct worker *w = tr ? tr->w : NULL;

    pthread_mutex_unlock(&shard->client_lock);
    return w;
}

bool tracking_client_exists(struct tracking *t, uint64_t id)
{
    return client_worker(t, id) != NULL;
}

/* A session of this thread's worker. */
static struct session *client_session(struct worker *w, uint64_t id)
{
    struct tracking_shard *shard;
    const struct tracker *tr = tracker_lock(tracking_of(w), id, &shard);
    struct session *s = tr && tr->w == w ? tr->s : NULL;

    pthread_mutex_unlock(&shard->client_lock);
    return s;
}

void tracking_session_created(struct session *s)
{
    struct tracking *t = tracking_of(s->w);
    struct tracker *tr = mem_calloc(MEM_CLIENT, sizeof(*tr));
    struct tracking_shard *shard;

    tr->id = s->id;
    tr->s = s;
    tr->w = s->w;
    tr->node.hash = tracking_client_hash(tr->id);
    list_init(&tr->prefixes);
    buf_init(&tr->queued, MEM_CLIENT);
    s->tracker = tr;
    tracker_lock(t, tr->id, &shard);
    table_add(&shard->clients, &tr->node);
    pthread_mutex_unlock(&shard->client_lock);
}

void tracking_session_gone(struct session *s)
{
    struct tracker *tr = s->tracker;
    struct tracking_shard *shard;

    tracking_off(s);
    passing_session_gone(s);
    tracker_lock(tracking_of(s->w), tr->id, &shard);
    table_remove(&shard->clients, &tr->node);
    pthread_mutex_unlock(&shard->client_lock);
    mem_free(MEM_CLIENT, tr);
    s->tracker = NULL;
}

/* ---- on and off ---- */

/* Off again only when nobody tracks and the names of those who did are gone. */
static void listen_as_needed(struct tracking *t)
{
    pthread_mutex_lock(&t->events_lock);
    bool wanted = atomic_load(&t->nclients) > 0 || atomic_load(&t->nkeys) > 0;
    if (wanted != t->listening) {
        t->listening = wanted;
        tier_set_events(t->tier, TIER_EVENT_ALL, wanted);
    }
    pthread_mutex_unlock(&t->events_lock);
}

void tracking_set(struct session *s, unsigned mode, uint64_t redirect)
{
    struct tracking *t = tracking_of(s->w);
    struct tracker *tr = s->tracker;
    struct tracking_shard *shard;
    bool was = tr->mode & TRACKING_ON, is = mode & TRACKING_ON;

    if (is && !was) {
        atomic_fetch_add(&t->nclients, 1);
        listen_as_needed(t);
    }
    tracker_lock(t, tr->id, &shard);
    atomic_store(&tr->mode, mode);
    tr->redirect = redirect;
    pthread_mutex_unlock(&shard->client_lock);
    if (is) {
        s->flags |= SESSION_TRACKING;
    } else {
        s->flags &= ~(uint32_t)(SESSION_TRACKING | SESSION_CACHING);
        if (was)
            atomic_fetch_sub(&t->nclients, 1);
    }
}

void tracking_off(struct session *s)
{
    if (!(s->flags & SESSION_TRACKING))
        return;
    prefixes_clear(s->tracker);
    tracking_set(s, 0, s->tracker->redirect);
}

const char *tracking_flags(const struct session *s)
{
    unsigned mode = atomic_load(&s->tracker->mode);
    bool bcast = mode & TRACKING_BCAST;

    if (!(mode & TRACKING_ON))
        return "";
    return mode & TRACKING_BROKEN ? (bcast ? "tRB" : "tR") : bcast ? "tB" : "t";
}

int64_t tracking_redirect(const struct session *s)
{
    return s->flags & SESSION_TRACKING ? (int64_t)s->tracker->redirect : -1;
}

/* ---- sending ---- */

static void push_deliver(struct worker *w, struct inbox_msg *in, const struct session *within)
{
    const struct push *p = (const struct push *)(const void *)in;

    for (size_t i = 0; i < p->ntargets; i++) {
        if (p->target[i].w != w)
            continue;
        struct session *s = client_session(w, p->target[i].id);
        if (s)
            tracking_push(s, p->target[i].redirected, p->kind, p->lost, SLICE(p->value, p->len), within);
    }
}

static void push_free(struct inbox_msg *in)
{
    mem_free(MEM_OTHER, in);
}

void tracking_send(enum push_kind kind, uint64_t lost, const struct target *target, size_t n, struct slice value)
{
    struct worker *to[TRACKING_WORKERS];
    unsigned nto = 0;

    for (size_t i = 0; i < n; i++) {
        unsigned j = 0;
        while (j < nto && to[j] != target[i].w)
            j++;
        if (j == nto) {
            CHECK(nto < TRACKING_WORKERS);
            to[nto++] = target[i].w;
        }
    }
    if (nto == 0)
        return;
    struct push *p = mem_alloc(MEM_OTHER, sizeof(*p) + n * sizeof(*target) + value.len);
    *p = (struct push){
        .in = {nto, push_deliver, push_free}, .kind = kind, .lost = lost, .ntargets = n, .len = value.len};
    p->target = (struct target *)(p + 1);
    p->value = (char *)(p->target + n);
    memcpy(p->target, target, n * sizeof(*target));
    if (value.len)
        memcpy(p->value, value.ptr, value.len);
    for (unsigned i = 0; i < nto; i++)
        inbox_append(to[i], &p->in);
}

void tracking_push(struct session *s, bool redirected, enum push_kind kind, uint64_t lost, struct slice value,
                   const struct session *within)
{
    static const char in_resp2[] = "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n";
    static const char in_resp3[] = ">2\r\n$10\r\ninvalidate\r\n";
    bool resp3 = s->proto > 2;

    if (!resp3 && (kind == PUSH_BROKEN || !redirected || !session_subscribed(s)))
        return; /* there is no way to tell it */
    struct chain *out = inbox_out(s, session_obuf_class(s), within);
    if (!out)
        return;
    if (kind == PUSH_BROKEN) {
        struct reply r = {.out = out, .proto = s->proto};
        reply_push(&r, 2);
        reply_bulk_str(&r, "tracking-redir-broken");
        reply_int(&r, (int64_t)lost);
        return;
    }
    if (resp3)
        chain_append(out, in_resp3, sizeof(in_resp3) - 1);
    else
        chain_append(out, in_resp2, sizeof(in_resp2) - 1);
    if (kind == PUSH_KEYS) {
        chain_append(out, value.ptr, value.len);
    } else {
        struct reply r = {.out = out, .proto = s->proto};
        reply_null(&r);
    }
}

/* Where messages for `self`, which tracks, go. */
static bool route(struct tracking *t, const struct target *self, uint64_t redirect, struct target *out)
{
    if (redirect == 0) {
        *out = *self;
        return true;
    }
    *out = (struct target){redirect, client_worker(t, redirect), true};
    if (out->w)
        return true;
    struct tracking_shard *shard;
    struct tracker *tr = tracker_lock(t, self->id, &shard);
    if (tr && tr->redirect == redirect)
        atomic_fetch_or(&tr->mode, TRACKING_BROKEN);
    pthread_mutex_unlock(&shard->client_lock);
    if (tr)
        tracking_send(PUSH_BROKEN, redirect, self, 1, SLICE_NONE);
    return false;
}

bool tracking_route(struct tracking *t, uint64_t id, struct target *out)
{
    struct tracking_shard *shard;
    const struct tracker *tr = tracker_lock(t, id, &shard);
    struct target self = {id, tr ? tr->w : NULL, false};
    uint64_t redirect = tr ? tr->redirect : 0;

    pthread_mutex_unlock(&shard->client_lock);
    return self.w && route(t, &self, redirect, out);
}

void tracking_encode(struct buf *b, struct slice name)
{
    buf_printf(b, "*1\r\n$%zu\r\n", name.len);
    buf_slice_append(b, name);
    buf_append(b, "\r\n", 2);
}

/* ---- what a client is told of its own request ---- */

static void own_note(struct tracking_worker *tw, uint32_t len, const char *name)
{
    buf_append(&tw->own, &len, sizeof(len));
    if (len != OWN_FLUSHED)
        buf_append(&tw->own, name, len);
}

static void own_tell(struct session *s, enum push_kind kind, struct slice value)
{
    struct tracking *t = tracking_of(s->w);
    uint64_t redirect = s->tracker->redirect;
    struct target self = {s->id, s->w, false}, to;

    if (redirect != 0 && redirect != s->id && !tracking_client_exists(t, redirect)) {
        atomic_fetch_or(&s->tracker->mode, TRACKING_BROKEN);
        tracking_push(s, false, PUSH_BROKEN, redirect, SLICE_NONE, NULL);
    } else if (redirect == 0 || redirect == s->id) {
        tracking_push(s, redirect != 0, kind, 0, value, NULL);
    } else if (route(t, &self, redirect, &to)) {
        tracking_send(kind, 0, &to, 1, value);
    }
}

void tracking_begin(struct session *s)
{
    s->w->cmd_worker->tracking->current = s;
}

void tracking_end(struct session *s)
{
    struct tracking_worker *tw = s->w->cmd_worker->tracking;
    struct buf value;

    tw->current = NULL;
    if (LIKELY(tw->own.len == 0))
        return;
    buf_init(&value, MEM_OTHER);
    for (size_t at = 0; at < tw->own.len;) {
        uint32_t len;
        memcpy(&len, tw->own.ptr + at, sizeof(len));
        at += sizeof(len);
        if (len == OWN_FLUSHED) {
            own_tell(s, PUSH_FLUSHED, SLICE_NONE);
            continue;
        }
        value.len = 0;
        tracking_encode(&value, SLICE(tw->own.ptr + at, len));
        own_tell(s, PUSH_KEYS, buf_slice(&value));
        at += len;
    }
    buf_deinit(&value);
    buf_deinit(&tw->own);
}

void tracking_answered(struct session *s, const struct command *cmd)
{
    if (s->flags & SESSION_CACHING && !(s->flags & SESSION_MULTI) && !forward_in_multi(s) &&
        !(cmd && cmd->container == CMDID_client))
        s->flags &= ~(uint32_t)SESSION_CACHING;
    if (UNLIKELY(s->tracker->passing != NULL))
        passing_answered(s);
}

/* ---- reading ---- */

/* false: there was room for it. */
static bool note_reader(struct tracking *t, struct slice name, uint64_t id)
{
    uint64_t hash = hash_bytes(t->seed, name.ptr, name.len);
    struct tracking_shard *shard = tracking_shard_of(t, hash);
    bool fresh;

    pthread_mutex_lock(&shard->lock);
    struct readers *r = readers_find(&shard->keys, hash, name);
    if (!r) {
        r = mem_alloc(MEM_OTHER, sizeof(*r) + name.len);
        *r = (struct readers){.node = {.hash = hash}, .n = 1, .cap = 1, .one = id, .len = name.len};
        r->id = &r->one;
        if (name.len)
            memcpy(r->name, name.ptr, name.len);
        table_add(&shard->keys, &r->node);
        atomic_fetch_add_explicit(&t->nkeys, 1, memory_order_relaxed);
        fresh = true;
    } else {
        fresh = readers_add(r, id);
    }
    shard->items += fresh;
    atomic_fetch_add_explicit(&t->nitems, fresh, memory_order_relaxed);
    pthread_mutex_unlock(&shard->lock);
    size_t max = atomic_load_explicit(&t->max_keys, memory_order_relaxed);
    return max != 0 && atomic_load_explicit(&t->nkeys, memory_order_relaxed) > max;
}

static void evict(struct tracking *t, struct worker *w, size_t max, int effort);

bool tracking_wanted(const struct session *s)
{
    unsigned mode = atomic_load_explicit(&s->tracker->mode, memory_order_relaxed);
    bool caching = s->flags & SESSION_CACHING;

    return mode & TRACKING_ON && !(mode & TRACKING_BCAST) && !(mode & TRACKING_OPTIN && !caching) &&
           !(mode & TRACKING_OPTOUT && caching);
}

void tracking_note(struct worker *w, struct slice name, uint64_t id)
{
    struct tracking *t = tracking_of(w);

    if (UNLIKELY(note_reader(t, name, id)))
        evict(t, w, atomic_load(&t->max_keys), EVICT_AT_ONCE);
}

/* With an upstream: an answer for which nothing vouches must not be kept. */
static void tell_unvouched(const struct call *c)
{
    struct tracking_worker *tw = c->w->cmd_worker->tracking;

    for (int i = 0; i < c->nkeys; i++) {
        const struct call_key *k = &c->keys[i];
        if (!k->kept || !tier_vouched_locked(c->w, &k->key, k->obj))
            own_note(tw, (uint32_t)k->key.len, k->key.ptr);
    }
}

void tracking_read(const struct call *c)
{
    struct tracking *t = tracking_of(c->w);
    bool over = false;

    if (!(c->cmd->flags & CMD_READONLY) || c->cmd->flags & CMD_SCRIPT || !tracking_wanted(c->s))
        return;
    /* What a script reads counts as all that it has declared, and nothing else. */
    const struct call *keys = c->in_script ? script_caller(c->w) : c;
    for (int i = 0; i < keys->nkeys; i++)
        over |= note_reader(t, key_slice(&keys->keys[i].key), c->s->id);
    if (UNLIKELY(over))
        evict(t, c->w, atomic_load(&t->max_keys), EVICT_AT_ONCE + keys->nkeys);
    if (t->tier->has_upstream)
        tell_unvouched(c);
}

/* ---- changes ---- */

static void readers_unlink_locked(struct tracking *t, struct tracking_shard *shard, struct readers *r)
{
    table_remove(&shard->keys, &r->node);
    shard->items -= r->n;
    atomic_fetch_sub_explicit(&t->nkeys, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&t->nitems, r->n, memory_order_relaxed);
}

/* Everybody who has read the key is told; it is out of the table already. by_client: with NOLOOP the one that runs on this
 * thread knows. */
static void readers_tell(struct tracking *t, struct tracking_worker *tw, const struct readers *r, bool by_client)
{
    struct target few[16], *to = r->n <= 16 ? few : mem_alloc(MEM_OTHER, r->n * sizeof(*to));
    const struct session *current = tw ? tw->current : NULL;
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++) {
        struct tracking_shard *shard;
        const struct tracker *tr = tracker_lock(t, r->id[i], &shard);
        unsigned mode = tr ? atomic_load(&tr->mode) : 0;
        struct target self = {r->id[i], tr ? tr->w : NULL, false};
        uint64_t redirect = tr ? tr->redirect : 0;
        if (tr)
            passing_told_locked(tr, &(struct slice){r->name, r->len});
        pthread_mutex_unlock(&shard->client_lock);
        if (!(mode & TRACKING_ON) || mode & TRACKING_BCAST)
            continue;
        if (current && current->id == self.id) {
            if (!by_client || !(mode & TRACKING_NOLOOP))
                own_note(tw, (uint32_t)r->len, r->name);
        } else if (route(t, &self, redirect, &to[n])) {
            n++;
        }
    }
    if (n) {
        struct buf value;
        buf_init(&value, MEM_OTHER);
        tracking_encode(&value, SLICE(r->name, r->len));
        tracking_send(PUSH_KEYS, 0, to, n, buf_slice(&value));
        buf_deinit(&value);
    }
    if (to != few)
        mem_free(MEM_OTHER, to);
}

void tracking_key_changed(struct tracking *t, struct worker *w, struct slice name, enum tier_change why, bool upstream)
{
    struct tracking_worker *tw = w ? w->cmd_worker->tracking : NULL;
    bool written = why == TIER_WRITTEN || why == TIER_DELETED;

    if (upstream && (why == TIER_EVICTED || (tw && tw->quiet)))
        return; /* the upstream goes on watching it, and tells */
    /* In broadcasting mode NOLOOP does not reach what a script does, as in Redis. */
    if (atomic_load_explicit(&t->nprefixes, memory_order_relaxed) > 0)
        prefixes_changed(t, written && tw && tw->current && !script_caller(w) ? tw->current->id : 0, name);
    if (atomic_load_explicit(&t->nkeys, memory_order_relaxed) == 0)
        return;
    uint64_t hash = hash_bytes(t->seed, name.ptr, name.len);
    struct tracking_shard *shard = tracking_shard_of(t, hash);
    pthread_mutex_lock(&shard->lock);
    struct readers *r = readers_find(&shard->keys, hash, name);
    if (r)
        readers_unlink_locked(t, shard, r);
    pthread_mutex_unlock(&shard->lock);
    if (!r)
        return;
    /* NOLOOP: whether the upstream's message is about a client's own write or another's, nobody can tell. */
    readers_tell(t, tw, r, why != TIER_EVICTED && !upstream);
    readers_free(r);
}

/* ---- the limit ---- */

static uint64_t any(struct tracking *t)
{
    uint64_t state = atomic_fetch_add_explicit(&t->rng, 0x9e3779b97f4a7c15ULL, memory_order_relaxed);
    return rng_next(&state);
}

/* A name at random; NULL: the shard has none. */
static struct readers *pick(struct tracking *t, struct tracking_shard *shard)
{
    struct readers *r = NULL;

    pthread_mutex_lock(&shard->lock);
    if (shard->keys.count > 0) {
        size_t i = any(t);
        while (!shard->keys.bucket[i & (shard->keys.buckets - 1)])
            i++;
        r = NODE(shard->keys.bucket[i & (shard->keys.buckets - 1)], struct readers);
        readers_unlink_locked(t, shard, r);
    }
    pthread_mutex_unlock(&shard->lock);
    return r;
}

/* Names go until there are at most `max`, or so many went. Their readers must not keep what nobody will tell them of. */
static void evict(struct tracking *t, struct worker *w, size_t max, int effort)
{
    while (effort > 0 && atomic_load_explicit(&t->nkeys, memory_order_relaxed) > max) {
        size_t at = any(t);
        struct readers *r = NULL;
        for (size_t i = 0; i < TRACKING_SHARDS && !r; i++)
            r = pick(t, &t->shard[(at + i) % TRACKING_SHARDS]);
        if (!r)
            return;
        readers_tell(t, w ? w->cmd_worker->tracking : NULL, r, false);
        readers_free(r);
        effort--;
    }
}

/* ---- a flush ---- */

/* Everybody who tracks, with what it redirects to. */
static size_t collect_clients(struct tracking *t, struct buf *out)
{
    for (unsigned i = 0; i < TRACKING_SHARDS; i++) {
        struct tracking_shard *shard = &t->shard[i];
        pthread_mutex_lock(&shard->client_lock);
        for (size_t b = 0; b < shard->clients.buckets; b++) {
            for (struct node *n = shard->clients.bucket[b]; n; n = n->next) {
                const struct tracker *tr = NODE(n, struct tracker);
                passing_told_locked(tr, NULL);
                if (atomic_load(&tr->mode) & TRACKING_ON)
                    buf_append(out, &tr->id, sizeof(tr->id));
            }
        }
        pthread_mutex_unlock(&shard->client_lock);
    }
    return out->len / sizeof(uint64_t);
}

static void drop_names(struct tracking *t)
{
    for (unsigned i = 0; i < TRACKING_SHARDS; i++) {
        struct tracking_shard *shard = &t->shard[i];
        pthread_mutex_lock(&shard->lock);
        if (shard->keys.count > 0) {
            struct doomed *d = mem_calloc(MEM_OTHER, sizeof(*d));
            d->keys = shard->keys;
            shard->keys = (struct table){0};
            atomic_fetch_sub(&t->nkeys, d->keys.count);
            atomic_fetch_sub(&t->nitems, shard->items);
            shard->items = 0;
            pthread_mutex_lock(&t->doomed_lock);
            list_push_back(&t->doomed, &d->link);
            pthread_mutex_unlock(&t->doomed_lock);
        }
        pthread_mutex_unlock(&shard->lock);
    }
}

void tracking_flushed(struct worker *w)
{
    struct tracking_worker *tw = w->cmd_worker->tracking;
    struct tracking *t = tw->t;
    struct buf ids;

    if (tw->quiet)
        return;
    if (atomic_load(&t->nclients) > 0) {
        buf_init(&ids, MEM_OTHER);
        size_t n = collect_clients(t, &ids), nto = 0;
        struct target *to = mem_alloc(MEM_OTHER, (n + 1) * sizeof(*to));
        for (size_t i = 0; i < n; i++) {
            uint64_t id;
            memcpy(&id, ids.ptr + i * sizeof(id), sizeof(id));
            if (tw->current && tw->current->id == id)
                own_note(tw, OWN_FLUSHED, NULL);
            else
                nto += tracking_route(t, id, &to[nto]);
        }
        tracking_send(PUSH_FLUSHED, 0, to, nto, SLICE_NONE);
        mem_free(MEM_OTHER, to);
        buf_deinit(&ids);
    }
    if (atomic_load(&t->nkeys) > 0)
        drop_names(t);
}

void tracking_foreign(void *arg, struct worker *w, const struct slice *name)
{
    const struct cmd *cmd = arg;

    if (name)
        tracking_key_changed(cmd->tracking, w, *name, TIER_DELETED, true);
    else
        tracking_flushed(w);
}

void tracking_quiet(struct worker *w, bool on)
{
    w->cmd_worker->tracking->quiet = on;
}

/* ---- periodic ---- */

/* true: there is more. */
static bool doomed_free(struct tracking *t, size_t buckets)
{
    pthread_mutex_lock(&t->doomed_lock);
    struct list *l = list_pop_front(&t->doomed);
    pthread_mutex_unlock(&t->doomed_lock);
    if (!l)
        return false;
    struct doomed *d = LIST_ENTRY(l, struct doomed, link);
    for (; d->next < d->keys.buckets && buckets > 0; d->next++, buckets--) {
        for (struct node *n = d->keys.bucket[d->next], *next; n; n = next) {
            struct readers *r = NODE(n, struct readers);
            next = n->next;
            readers_free(r);
        }
    }
    if (d->next == d->keys.buckets) {
        mem_free(MEM_OTHER, d->keys.bucket);
        mem_free(MEM_OTHER, d);
    } else {
        pthread_mutex_lock(&t->doomed_lock);
        list_push_back(&t->doomed, &d->link);
        pthread_mutex_unlock(&t->doomed_lock);
    }
    return true;
}

void tracking_tick(struct tracking *t)
{
    for (int i = 0; i < FREE_PER_TICK / 256; i++)
        if (!doomed_free(t, 256))
            break;
    size_t max = atomic_load(&t->max_keys);
    bool nobody = atomic_load(&t->nclients) == 0;
    t->idle_ticks = nobody ? t->idle_ticks + 1 : 0;
    if (t->idle_ticks > LINGER_TICKS) {
        t->idle_ticks = LINGER_TICKS;
        evict(t, NULL, 0, EVICT_PER_TICK);
        listen_as_needed(t);
    } else if (max != 0) {
        evict(t, NULL, max, EVICT_PER_TICK);
    }
}

void tracking_conf_changed(struct tracking *t, const struct conf *conf)
{
    atomic_store(&t->max_keys, (size_t)conf->tracking_table_max_keys);
}

void tracking_get_figures(const struct tracking *t, struct tracking_figures *f)
{
    f->clients = (int64_t)atomic_load(&t->nclients);
    f->keys = (int64_t)atomic_load(&t->nkeys);
    f->items = (int64_t)atomic_load(&t->nitems);
    f->prefixes = (int64_t)atomic_load(&t->nprefixes);
}

/* ---- life ---- */

struct tracking *tracking_create(struct tier *tier)
{
    struct tracking *t = mem_calloc(MEM_OTHER, sizeof(*t));
    const size_t align = _Alignof(struct tracking_shard);

    t->tier = tier;
    t->shard_memory = mem_calloc(MEM_OTHER, TRACKING_SHARDS * sizeof(*t->shard) + align);
    uintptr_t at = (uintptr_t)t->shard_memory;
    t->shard = (struct tracking_shard *)((at + align - 1) / align * align);
    for (unsigned i = 0; i < TRACKING_SHARDS; i++) {
        CHECK(pthread_mutex_init(&t->shard[i].lock, NULL) == 0);
        CHECK(pthread_mutex_init(&t->shard[i].client_lock, NULL) == 0);
    }
    CHECK(pthread_mutex_init(&t->events_lock, NULL) == 0);
    CHECK(pthread_mutex_init(&t->doomed_lock, NULL) == 0);
    CHECK(pthread_rwlock_init(&t->prefix_lock, NULL) == 0);
    list_init(&t->doomed);
    random_bytes(&t->seed, sizeof(t->seed));
    t->rng = t->seed;
    return t;
}

void tracking_destroy(struct tracking *t)
{
    drop_names(t);
    while (doomed_free(t, SIZE_MAX))
        continue;
    for (unsigned i = 0; i < TRACKING_SHARDS; i++) {
        CHECK(t->shard[i].clients.count == 0);
        pthread_mutex_destroy(&t->shard[i].lock);
        pthread_mutex_destroy(&t->shard[i].client_lock);
    }
    CHECK(t->prefixes.count == 0);
    mem_free(MEM_OTHER, t->lengths.of);
    pthread_mutex_destroy(&t->events_lock);
    pthread_mutex_destroy(&t->doomed_lock);
    pthread_rwlock_destroy(&t->prefix_lock);
    mem_free(MEM_OTHER, t->shard_memory);
    mem_free(MEM_OTHER, t);
}

void tracking_worker_init(struct tracking *t, struct worker *w)
{
    struct tracking_worker *tw = mem_calloc(MEM_OTHER, sizeof(*tw));

    tw->w = w;
    tw->t = t;
    buf_init(&tw->own, MEM_OTHER);
    buf_init(&tw->touched, MEM_OTHER);
    buf_init(&tw->changes, MEM_OTHER);
    w->cmd_worker->tracking = tw;
    inbox_set_after(w, prefixes_deliver);
}

void tracking_worker_deinit(struct worker *w)
{
    struct tracking_worker *tw = w->cmd_worker->tracking;

    CHECK(tw->prefixes.count == 0);
    buf_deinit(&tw->own);
    buf_deinit(&tw->touched);
    buf_deinit(&tw->changes);
    mem_free(MEM_OTHER, tw->lengths.of);
    mem_free(MEM_OTHER, tw);
    w->cmd_worker->tracking = NULL;
}
