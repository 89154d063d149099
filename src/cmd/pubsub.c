/* Publish and subscribe: see include/tiercel/pubsub.h for how workers agree on an order. */
#include "tiercel/pubsub.h"

#include <pthread.h>
#include <stdatomic.h>

#include "cmd/cmd_priv.h"
#include "tiercel/check.h"
#include "tiercel/cmd.h"
#include "tiercel/glob.h"
#include "tiercel/hash.h"
#include "tiercel/inbox.h"
#include "tiercel/keyspace.h"
#include "tiercel/mbox.h"
#include "tiercel/resp.h"
#include "tiercel/table.h"

#define CHANNEL_SHARDS 64
#define TARGETS_MAX 128                   /* worker threads at most (conf.def: threads) */
#define PAYLOAD_SHARED ((size_t)16 << 10) /* larger payloads are not copied for each subscriber */

/* Shard channels (SSUBSCRIBE) are names of their own, which patterns do not see. */
enum kind { CHANNEL, PATTERN, SHARD, KINDS };

/* ---- what is shared ------------------------------------------------------------------------------ */

struct interest {
    struct pubsub_worker *pw;
    size_t clients; /* never 0 */
};

/* A channel or pattern that somebody subscribed to. Under its shard's or the patterns' lock. */
struct topic {
    struct node node;
    struct list link; /* patterns only: in pubsub.pattern_list */
    struct interest *who;
    size_t nwho, cap, clients;
    size_t len;
    char name[];
};

struct channel_shard {
    _Alignas(64) pthread_mutex_t lock;
    struct table channels, shard_channels;
};

struct pubsub {
    struct channel_shard *shard; /* CHANNEL_SHARDS */
    void *shard_memory;
    pthread_rwlock_t pattern_lock; /* PUBLISH reads */
    struct table patterns;
    struct list pattern_list;
    _Atomic size_t npatterns; /* 0 spares PUBLISH the lock */
    uint64_t seed;
};

/* ---- what is a worker's -------------------------------------------------------------------------- */

struct message {
    struct inbox_msg in;
    uint64_t hash; /* of the channel */
    size_t channel_len, len;
    enum kind kind;
    bool patterns;        /* pattern subscribers were counted */
    struct rcbuf *shared; /* a large payload; else it is behind the channel */
    char bytes[];
};

/* A topic as one worker sees it. */
struct local_topic {
    struct node node;
    struct list link; /* patterns only: in pubsub_worker.patterns */
    struct list subs;
    size_t len;
    char name[];
};

struct sub {
    struct node node; /* in the client's table */
    struct list in_topic, in_client;
    struct local_topic *topic;
    struct session *s;
};

struct pubsub_client {
    struct session *s;
    struct table table[KINDS];
    struct list subs[KINDS]; /* in the order of subscription */
    size_t bytes;
};

struct pubsub_worker {
    struct worker *w;
    struct pubsub *ps;
    struct table topics[KINDS];
    struct list patterns;
    struct buf frame[2];
};

static struct pubsub_worker *worker_of(const struct session *s)
{
    return s->w->cmd_worker->pubsub;
}

/* ---- messages and inboxes ------------------------------------------------------------------------ */

static void message_deliver(struct worker *w, struct inbox_msg *in, const struct session *within);

static void message_free(struct inbox_msg *in)
{
    struct message *m = (struct message *)(void *)in;

    rcbuf_unref(m->shared);
    mem_free(MEM_OTHER, m);
}

static struct message *message_create(enum kind kind, uint64_t hash, struct slice channel, struct slice payload,
                                      bool patterns, unsigned refs)
{
    bool shared = payload.len > PAYLOAD_SHARED;
    struct message *m = mem_alloc(MEM_OTHER, sizeof(*m) + channel.len + (shared ? 0 : payload.len));
    *m = (struct message){.in = {refs, message_deliver, message_free},
                          .kind = kind,
                          .hash = hash,
                          .channel_len = channel.len,
                          .len = payload.len,
                          .patterns = patterns};
    if (channel.len)
        memcpy(m->bytes, channel.ptr, channel.len);
    if (shared)
        m->shared = rcbuf_copy(payload);
    else if (payload.len)
        memcpy(m->bytes + channel.len, payload.ptr, payload.len);
    return m;
}

/* ---- delivery: the worker's thread --------------------------------------------------------------- */

/* The message up to its payload, or all of it when the payload is small. */
static void frame_write(struct buf *f, const struct message *m, const struct local_topic *pattern, int proto)
{
    f->len = 0;
    char mark = proto == 3 ? '>' : '*';
    if (pattern) {
        buf_printf(f, "%c4\r\n$8\r\npmessage\r\n$%zu\r\n", mark, pattern->len);
        buf_append(f, pattern->name, pattern->len);
        buf_append(f, "\r\n", 2);
    } else {
        buf_printf(f, "%c3\r\n%s\r\n", mark, m->kind == SHARD ? "$8\r\nsmessage" : "$7\r\nmessage");
    }
    buf_printf(f, "$%zu\r\n", m->channel_len);
    buf_append(f, m->bytes, m->channel_len);
    buf_printf(f, "\r\n$%zu\r\n", m->len);
    if (!m->shared) {
        buf_append(f, m->bytes + m->channel_len, m->len);
        buf_append(f, "\r\n", 2);
    }
}

static void topic_deliver(struct pubsub_worker *pw, const struct local_topic *t, const struct message *m, bool pattern,
                          const struct session *within)
{
    bool built[2] = {false, false};
    for (struct list *l = t->subs.next; l != &t->subs; l = l->next) {
        struct session *s = LIST_ENTRY(l, struct sub, in_topic)->s;
        struct chain *out = inbox_out(s, OBUF_PUBSUB, within);
        if (!out)
            continue;
        int f = s->proto == 3;
        if (!built[f])
            frame_write(&pw->frame[f], m, pattern ? t : NULL, s->proto);
        built[f] = true;
        chain_append(out, pw->frame[f].ptr, pw->frame[f].len);
        if (m->shared) {
            chain_append_ref(out, rcbuf_ref(m->shared), false);
            chain_append(out, "\r\n", 2);
        }
    }
}

static struct local_topic *local_find(struct pubsub_worker *pw, enum kind kind, uint64_t hash, struct slice name)
{
    for (struct node *n = table_first(&pw->topics[kind], hash); n; n = n->next) {
        struct local_topic *t = NODE(n, struct local_topic);
        if (n->hash == hash && slice_eq(SLICE(t->name, t->len), name))
            return t;
    }
    return NULL;
}

static void message_deliver(struct worker *w, struct inbox_msg *in, const struct session *within)
{
    struct pubsub_worker *pw = w->cmd_worker->pubsub;
    const struct message *m = (const struct message *)(const void *)in;
    struct slice channel = SLICE(m->bytes, m->channel_len);
    struct local_topic *t = local_find(pw, m->kind, m->hash, channel);
    if (t)
        topic_deliver(pw, t, m, false, within);
    if (!m->patterns)
        return;
    for (struct list *l = pw->patterns.next; l != &pw->patterns; l = l->next) {
        t = LIST_ENTRY(l, struct local_topic, link);
        if (glob_match(SLICE(t->name, t->len), channel, false))
            topic_deliver(pw, t, m, true, within);
    }
}

/* ---- the shared tables --------------------------------------------------------------------------- */

static struct topic *topic_find(const struct table *t, uint64_t hash, struct slice name)
{
    for (struct node *n = table_first(t, hash); n; n = n->next) {
        struct topic *topic = NODE(n, struct topic);
        if (n->hash == hash && slice_eq(SLICE(topic->name, topic->len), name))
            return topic;
    }
    return NULL;
}

static struct table *table_lock(struct pubsub *ps, enum kind kind, uint64_t hash)
{
    if (kind == PATTERN) {
        pthread_rwlock_wrlock(&ps->pattern_lock);
        return &ps->patterns;
    }
    struct channel_shard *shard = &ps->shard[hash >> 58];
    pthread_mutex_lock(&shard->lock);
    return kind == SHARD ? &shard->shard_channels : &shard->channels;
}

static void table_unlock(struct pubsub *ps, enum kind kind, uint64_t hash)
{
    if (kind == PATTERN)
        pthread_rwlock_unlock(&ps->pattern_lock);
    else
        pthread_mutex_unlock(&ps->shard[hash >> 58].lock);
}

static void topic_count_in_locked(struct pubsub *ps, struct table *t, enum kind kind, uint64_t hash, struct slice name,
                                  struct pubsub_worker *pw)
{
    struct topic *topic = topic_find(t, hash, name);
    if (!topic) {
        topic = mem_calloc(MEM_OTHER, sizeof(*topic) + name.len);
        topic->node.hash = hash;
        topic->len = name.len;
        if (name.len)
            memcpy(topic->name, name.ptr, name.len);
        list_init(&topic->link);
        table_add(t, &topic->node);
        if (kind == PATTERN) {
            list_push_back(&ps->pattern_list, &topic->link);
            atomic_fetch_add(&ps->npatterns, 1);
        }
    }
    topic->clients++;
    for (size_t i = 0; i < topic->nwho; i++) {
        if (topic->who[i].pw == pw) {
            topic->who[i].clients++;
            return;
        }
    }
    if (topic->nwho == topic->cap) {
        topic->cap = topic->cap ? topic->cap * 2 : 1;
        topic->who = mem_realloc(MEM_OTHER, topic->who, topic->cap * sizeof(*topic->who));
    }
    topic->who[topic->nwho++] = (struct interest){pw, 1};
}

static void topic_count_out_locked(struct pubsub *ps, struct table *t, enum kind kind, uint64_t hash, struct slice name,
                                   struct pubsub_worker *pw)
{
    struct topic *topic = topic_find(t, hash, name);
    CHECK(topic);
    size_t i = 0;
    while (topic->who[i].pw != pw)
        CHECK(++i < topic->nwho);
    if (--topic->who[i].clients == 0)
        topic->who[i] = topic->who[--topic->nwho];
    if (--topic->clients > 0)
        return;
    if (kind == PATTERN) {
        list_remove(&topic->link);
        atomic_fetch_sub(&ps->npatterns, 1);
    }
    table_remove(t, &topic->node);
    mem_free(MEM_OTHER, topic->who);
    mem_free(MEM_OTHER, topic);
}

/* Counts one subscriber of this worker in or out. `before` (or NULL) receives the messages that
 * were published before. */
static void topic_count(struct pubsub_worker *pw, enum kind kind, uint64_t hash, struct slice name, bool in,
                        struct list *before)
{
    struct table *t = table_lock(pw->ps, kind, hash);
    if (in)
        topic_count_in_locked(pw->ps, t, kind, hash, name, pw);
    else
        topic_count_out_locked(pw->ps, t, kind, hash, name, pw);
    if (before)
        inbox_take(pw->w, before);
    table_unlock(pw->ps, kind, hash);
}

/* ---- publishing ---------------------------------------------------------------------------------- */

struct targets {
    struct pubsub_worker *pw[TARGETS_MAX];
    unsigned n;
    size_t receivers;
};

static void targets_add(struct targets *to, const struct topic *topic)
{
    to->receivers += topic->clients;
    for (size_t i = 0; i < topic->nwho; i++) {
        unsigned j = 0;
        while (j < to->n && to->pw[j] != topic->who[i].pw)
            j++;
        if (j == to->n) {
            CHECK(to->n < TARGETS_MAX);
            to->pw[to->n++] = topic->who[i].pw;
        }
    }
}

static void targets_send(const struct targets *to, enum kind kind, uint64_t hash, struct slice channel,
                         struct slice payload, bool patterns)
{
    if (to->n == 0)
        return;
    struct message *m = message_create(kind, hash, channel, payload, patterns, to->n);
    for (unsigned i = 0; i < to->n; i++)
        inbox_append(to->pw[i]->w, &m->in);
}

static size_t publish(struct pubsub *ps, enum kind kind, struct slice channel, struct slice payload)
{
    uint64_t hash = hash_bytes(ps->seed, channel.ptr, channel.len);
    struct targets to;
    to.n = 0;
    to.receivers = 0;
    struct table *t = table_lock(ps, kind, hash);
    const struct topic *topic = topic_find(t, hash, channel);
    if (topic)
        targets_add(&to, topic);
    bool patterns = kind == CHANNEL && atomic_load(&ps->npatterns) != 0;
    if (patterns) {
        /* Held until the message is in the inboxes: who subscribes to a pattern meanwhile is
         * either counted here, or takes the message out before it is in. */
        pthread_rwlock_rdlock(&ps->pattern_lock);
        for (struct list *l = ps->pattern_list.next; l != &ps->pattern_list; l = l->next) {
            topic = LIST_ENTRY(l, struct topic, link);
            if (glob_match(SLICE(topic->name, topic->len), channel, false))
                targets_add(&to, topic);
        }
    }
    targets_send(&to, kind, hash, channel, payload, patterns);
    if (patterns)
        pthread_rwlock_unlock(&ps->pattern_lock);
    table_unlock(ps, kind, hash);
    return to.receivers;
}

size_t pubsub_publish(struct pubsub *ps, struct slice channel, struct slice payload)
{
    return publish(ps, CHANNEL, channel, payload);
}

static void publish_command(struct call *c, enum kind kind)
{
    struct pubsub_worker *pw = worker_of(c->s);
    size_t n = publish(pw->ps, kind, c->argv[1], c->argv[2]);
    /* Subscribers on this worker have the message before the publisher has its reply, as in
     * Redis; within EXEC it must not get between the replies. */
    if (!c->in_exec)
        inbox_drain(pw->w, NULL);
    reply_int(&c->r, (int64_t)n);
}

void cmd_publish(struct call *c)
{
    publish_command(c, CHANNEL);
}

void cmd_spublish(struct call *c)
{
    publish_command(c, SHARD);
}

/* ---- subscribing --------------------------------------------------------------------------------- */

static struct pubsub_client *client_of(struct session *s)
{
    if (!s->pubsub) {
        struct pubsub_client *pc = mem_calloc(MEM_CLIENT, sizeof(*pc));
        pc->s = s;
        for (int k = 0; k < KINDS; k++)
            list_init(&pc->subs[k]);
        s->pubsub = pc;
    }
    return s->pubsub;
}

static struct sub *sub_find(const struct session *s, enum kind kind, uint64_t hash, struct slice name)
{
    if (!s->pubsub)
        return NULL;
    for (struct node *n = table_first(&s->pubsub->table[kind], hash); n; n = n->next) {
        struct sub *sub = NODE(n, struct sub);
        if (n->hash == hash && slice_eq(SLICE(sub->topic->name, sub->topic->len), name))
            return sub;
    }
    return NULL;
}

/* What a subscription costs, as if nobody shared its name. */
static size_t sub_bytes(const struct local_topic *t)
{
    return sizeof(struct sub) + sizeof(struct topic) + sizeof(*t) + 2 * t->len;
}

static void sub_add(struct pubsub_worker *pw, struct session *s, enum kind kind, uint64_t hash, struct slice name)
{
    struct pubsub_client *pc = client_of(s);
    struct local_topic *t = local_find(pw, kind, hash, name);
    if (!t) {
        t = mem_calloc(MEM_OTHER, sizeof(*t) + name.len);
        t->node.hash = hash;
        t->len = name.len;
        if (name.len)
            memcpy(t->name, name.ptr, name.len);
        list_init(&t->subs);
        list_init(&t->link);
        table_add(&pw->topics[kind], &t->node);
        if (kind == PATTERN)
            list_push_back(&pw->patterns, &t->link);
    }
    struct sub *sub = mem_calloc(MEM_CLIENT, sizeof(*sub));
    sub->node.hash = hash;
    sub->topic = t;
    sub->s = s;
    list_push_back(&t->subs, &sub->in_topic);
    list_push_back(&pc->subs[kind], &sub->in_client);
    table_add(&pc->table[kind], &sub->node);
    pc->bytes += sub_bytes(t);
}

static void sub_remove(struct pubsub_worker *pw, struct sub *sub, enum kind kind)
{
    struct pubsub_client *pc = sub->s->pubsub;
    struct local_topic *t = sub->topic;
    list_remove(&sub->in_topic);
    list_remove(&sub->in_client);
    table_remove(&pc->table[kind], &sub->node);
    pc->bytes -= sub_bytes(t);
    mem_free(MEM_CLIENT, sub);
    if (!list_empty(&t->subs))
        return;
    list_remove(&t->link);
    table_remove(&pw->topics[kind], &t->node);
    mem_free(MEM_OTHER, t);
}

static size_t client_count(const struct pubsub_client *pc)
{
    return pc ? pc->table[CHANNEL].count + pc->table[PATTERN].count : 0;
}

static size_t client_count_of(const struct pubsub_client *pc, enum kind kind)
{
    return kind != SHARD ? client_count(pc) : pc ? pc->table[SHARD].count : 0;
}

/* Confirmations are no replies: CLIENT REPLY OFF and SKIP do not withhold them. */
static void confirm(struct call *c, enum kind kind, const char *what, const struct slice *name)
{
    bool withheld = c->s->flags & (SESSION_REPLY_OFF | SESSION_REPLY_SKIP);
    struct reply r = {.out = withheld ? &c->s->out : c->r.out, .proto = c->r.proto};
    reply_push(&r, 3);
    reply_bulk_str(&r, what);
    if (name)
        reply_bulk(&r, *name);
    else
        reply_null(&r);
    reply_int(&r, (int64_t)client_count_of(c->s->pubsub, kind));
}

static void subscribe(struct call *c, enum kind kind, const char *what)
{
    struct pubsub_worker *pw = worker_of(c->s);
    for (int i = 1; i < c->argc; i++) {
        struct slice name = c->argv[i];
        uint64_t hash = hash_bytes(pw->ps->seed, name.ptr, name.len);
        if (!sub_find(c->s, kind, hash, name)) {
            struct list before;
            list_init(&before);
            topic_count(pw, kind, hash, name, true, &before);
            inbox_deliver(pw->w, &before, inbox_within(c));
            sub_add(pw, c->s, kind, hash, name);
        }
        confirm(c, kind, what, &name);
    }
}

static void unsubscribe_one(struct call *c, enum kind kind, struct slice name, const char *what)
{
    struct pubsub_worker *pw = worker_of(c->s);
    uint64_t hash = hash_bytes(pw->ps->seed, name.ptr, name.len);
    struct sub *sub = sub_find(c->s, kind, hash, name);
    if (!sub) {
        confirm(c, kind, what, &name);
        return;
    }
    struct list before;
    list_init(&before);
    topic_count(pw, kind, hash, name, false, &before);
    inbox_deliver(pw->w, &before, inbox_within(c));
    /* The name may be the topic's own. */
    struct buf last;
    buf_init(&last, MEM_OTHER);
    buf_slice_append(&last, name);
    sub_remove(pw, sub, kind);
    struct slice gone = buf_slice(&last);
    confirm(c, kind, what, &gone);
    buf_deinit(&last);
}

static void unsubscribe(struct call *c, enum kind kind, const char *what)
{
    struct pubsub_client *pc = c->s->pubsub;
    if (c->argc > 1) {
        for (int i = 1; i < c->argc; i++)
            unsubscribe_one(c, kind, c->argv[i], what);
        return;
    }
    if (!pc || list_empty(&pc->subs[kind])) {
        confirm(c, kind, what, NULL);
        return;
    }
    for (size_t n = pc->table[kind].count; n > 0; n--) {
        const struct local_topic *t = LIST_ENTRY(pc->subs[kind].next, struct sub, in_client)->topic;
        unsubscribe_one(c, kind, SLICE(t->name, t->len), what);
    }
}

void cmd_subscribe(struct call *c)
{
    subscribe(c, CHANNEL, "subscribe");
}

void cmd_psubscribe(struct call *c)
{
    subscribe(c, PATTERN, "psubscribe");
}

void cmd_unsubscribe(struct call *c)
{
    unsubscribe(c, CHANNEL, "unsubscribe");
}

void cmd_punsubscribe(struct call *c)
{
    unsubscribe(c, PATTERN, "punsubscribe");
}

void cmd_ssubscribe(struct call *c)
{
    subscribe(c, SHARD, "ssubscribe");
}

void cmd_sunsubscribe(struct call *c)
{
    unsubscribe(c, SHARD, "sunsubscribe");
}

void pubsub_session_each(const struct session *s, void (*fn)(void *arg, struct slice name, bool is_pattern), void *arg)
{
    for (enum kind k = CHANNEL; s->pubsub && k < KINDS; k++)
        for (struct list *l = s->pubsub->subs[k].next; l != &s->pubsub->subs[k]; l = l->next) {
            const struct local_topic *t = LIST_ENTRY(l, struct sub, in_client)->topic;
            fn(arg, SLICE(t->name, t->len), k == PATTERN);
        }
}

void pubsub_unsubscribe_all(struct session *s)
{
    struct pubsub_client *pc = s->pubsub;
    if (!pc)
        return;
    struct pubsub_worker *pw = worker_of(s);
    for (enum kind k = CHANNEL; k < KINDS; k++) {
        while (!list_empty(&pc->subs[k])) {
            struct sub *sub = LIST_ENTRY(pc->subs[k].next, struct sub, in_client);
            topic_count(pw, k, sub->node.hash, SLICE(sub->topic->name, sub->topic->len), false, NULL);
            sub_remove(pw, sub, k);
        }
    }
}

void pubsub_session_gone(struct session *s)
{
    struct pubsub_client *pc = s->pubsub;
    if (!pc)
        return;
    pubsub_unsubscribe_all(s);
    mem_free(MEM_CLIENT, pc);
    s->pubsub = NULL;
}

/* ---- questions ----------------------------------------------------------------------------------- */

bool pubsub_active(const struct session *s)
{
    return client_count(s->pubsub) + pubsub_session_shard_channels(s) != 0;
}

size_t pubsub_session_bytes(const struct session *s)
{
    return s->pubsub ? sizeof(*s->pubsub) + s->pubsub->bytes : 0;
}

size_t pubsub_session_channels(const struct session *s)
{
    return s->pubsub ? s->pubsub->table[CHANNEL].count : 0;
}

size_t pubsub_session_patterns(const struct session *s)
{
    return s->pubsub ? s->pubsub->table[PATTERN].count : 0;
}

size_t pubsub_session_shard_channels(const struct session *s)
{
    return s->pubsub ? s->pubsub->table[SHARD].count : 0;
}

/* ---- life ---------------------------------------------------------------------------------------- */

struct pubsub *pubsub_create(void)
{
    struct pubsub *ps = mem_calloc(MEM_OTHER, sizeof(*ps));
    const size_t align = _Alignof(struct channel_shard);
    ps->shard_memory = mem_calloc(MEM_OTHER, CHANNEL_SHARDS * sizeof(*ps->shard) + align);
    uintptr_t at = (uintptr_t)ps->shard_memory;
    ps->shard = (struct channel_shard *)((at + align - 1) / align * align);
    for (unsigned i = 0; i < CHANNEL_SHARDS; i++)
        CHECK(pthread_mutex_init(&ps->shard[i].lock, NULL) == 0);
    CHECK(pthread_rwlock_init(&ps->pattern_lock, NULL) == 0);
    list_init(&ps->pattern_list);
    random_bytes(&ps->seed, sizeof(ps->seed));
    return ps;
}

void pubsub_destroy(struct pubsub *ps)
{
    for (unsigned i = 0; i < CHANNEL_SHARDS; i++) {
        CHECK(ps->shard[i].channels.count == 0 && ps->shard[i].shard_channels.count == 0);
        pthread_mutex_destroy(&ps->shard[i].lock);
    }
    CHECK(ps->patterns.count == 0);
    pthread_rwlock_destroy(&ps->pattern_lock);
    mem_free(MEM_OTHER, ps->shard_memory);
    mem_free(MEM_OTHER, ps);
}

void pubsub_worker_init(struct pubsub *ps, struct worker *w)
{
    CHECK(w->id < TARGETS_MAX);
    struct pubsub_worker *pw = mem_calloc(MEM_OTHER, sizeof(*pw));
    pw->w = w;
    pw->ps = ps;
    list_init(&pw->patterns);
    buf_init(&pw->frame[0], MEM_OTHER);
    buf_init(&pw->frame[1], MEM_OTHER);
    w->cmd_worker->pubsub = pw;
}

void pubsub_worker_deinit(struct worker *w)
{
    struct pubsub_worker *pw = w->cmd_worker->pubsub;
    if (!pw)
        return;
    CHECK(pw->topics[CHANNEL].count == 0 && pw->topics[PATTERN].count == 0 && pw->topics[SHARD].count == 0);
    w->cmd_worker->pubsub = NULL;
    buf_deinit(&pw->frame[0]);
    buf_deinit(&pw->frame[1]);
    mem_free(MEM_OTHER, pw);
}

size_t pubsub_channels(struct pubsub *ps)
{
    size_t n = 0;
    for (unsigned i = 0; i < CHANNEL_SHARDS; i++) {
        pthread_mutex_lock(&ps->shard[i].lock);
        n += ps->shard[i].channels.count;
        pthread_mutex_unlock(&ps->shard[i].lock);
    }
    return n;
}

void pubsub_channels_each(struct pubsub *ps, bool sharded, void (*fn)(void *arg, struct slice channel), void *arg)
{
    for (unsigned i = 0; i < CHANNEL_SHARDS; i++) {
        struct channel_shard *shard = &ps->shard[i];
        pthread_mutex_lock(&shard->lock);
        const struct table *t = sharded ? &shard->shard_channels : &shard->channels;
        for (size_t b = 0; b < t->buckets; b++) {
            for (struct node *n = t->bucket[b]; n; n = n->next)
                fn(arg, SLICE(NODE(n, struct topic)->name, NODE(n, struct topic)->len));
        }
        pthread_mutex_unlock(&shard->lock);
    }
}

size_t pubsub_subscribers(struct pubsub *ps, bool sharded, struct slice channel)
{
    enum kind kind = sharded ? SHARD : CHANNEL;
    uint64_t hash = hash_bytes(ps->seed, channel.ptr, channel.len);
    const struct topic *t = topic_find(table_lock(ps, kind, hash), hash, channel);
    size_t n = t ? t->clients : 0;
    table_unlock(ps, kind, hash);
    return n;
}

size_t pubsub_patterns(struct pubsub *ps)
{
    return atomic_load(&ps->npatterns);
}
