/* BLPOP and BRPOP. A client that finds nothing registers with the shards of its keys, under
 * their locks, which dispatch holds. Whoever makes an element available serves the oldest
 * waiting client at the end of its own command, still under the lock, so nobody can take it
 * in between, and the element goes out by the client's own loop.
 *
 * States, changed by compare-and-swap: WAITING -> SERVED (by any thread that holds the lock of
 * one of the keys) or GONE (by the client's own thread: timeout, unblock, end of connection). */
#include <math.h>

#include "tiercel/num.h"
#include "tiercel/stats.h"

#include "cmd/cmd_priv.h"

enum block_state { BLOCK_WAITING, BLOCK_SERVED, BLOCK_GONE };

struct block;

struct block_entry {
    struct list link; /* in the registry of its key's shard */
    struct key key;   /* ptr: the parked request's argument */
    struct block *b;
};

struct block {
    struct mbox_msg msg;
    struct session *s;
    struct worker *w;
    struct parked *p;
    struct mbox_timer *timer;
    _Atomic int state;
    bool left;
    bool orphan;    /* the client went while it was served: the message frees it */
    bool again;     /* the list is on disk: the command runs once more */
    uint64_t since; /* see session_wrote() */
    void (*reply)(struct call *c, void *arg);
    struct buf key, elem;
    int n;
    struct block_entry entry[];
};

static void entries_remove(struct block *b)
{
    struct tier *t = b->w->tier;

    for (int i = 0; i < b->n; i++) {
        struct block_entry *e = &b->entry[i];
        struct mem_shard *shard;
        for (;;) { /* a flush moves entries between shards, see watch_rehash() */
            uint64_t hash = __atomic_load_n(&e->key.hash, __ATOMIC_RELAXED);
            shard = mem_shard_of(t->mem, hash);
            mem_lock(shard);
            if (e->key.hash == hash)
                break;
            mem_unlock(shard);
        }
        list_remove(&e->link);
        t->shard[shard->index].watched--;
        mem_unlock(shard);
    }
}

static void block_free(struct block *b)
{
    if (b->timer)
        mbox_timer_cancel(b->timer);
    buf_deinit(&b->key);
    buf_deinit(&b->elem);
    mem_free(MEM_CLIENT, b);
}

static void block_end(struct block *b)
{
    entries_remove(b);
    b->s->flags &= ~(uint32_t)SESSION_BLOCKED;
    stats_add(b->w->stats, STAT_blocked_clients, (uint64_t)-1);
}

/* ---- endings, on the client's own thread ---- */

static void reply_served(struct call *c, void *arg)
{
    struct block *b = arg;

    session_wrote(c->s, b->since);
    reply_array(&c->r, 2);
    reply_bulk(&c->r, buf_slice(&b->key));
    reply_bulk(&c->r, buf_slice(&b->elem));
}

static void reply_timeout(struct call *c, void *arg)
{
    (void)arg;
    reply_null_array(&c->r);
}

static void reply_unblocked(struct call *c, void *arg)
{
    (void)arg;
    call_error(c, "UNBLOCKED client unblocked via CLIENT UNBLOCK");
}

static void block_served(struct mbox_msg *msg, void *owner)
{
    struct block *b = LIST_ENTRY(msg, struct block, msg);
    (void)owner;

    if (b->orphan) {
        block_free(b);
        return;
    }
    struct parked *p = b->p;
    bool again = b->again;
    block_end(b);
    if (!again)
        call_complete(p, b->reply, b);
    block_free(b);
    if (again) {
        p->state = PARKED_NEW;
        session_run(p->s);
    }
}

/* Sends the client its end. Whoever calls this has taken the block out of BLOCK_WAITING. */
static void block_send(struct block *b, void (*reply)(struct call *c, void *arg))
{
    b->reply = reply;
    b->msg.run = block_served;
    mbox_post(b->w->mbox, &b->msg);
}

static bool block_leave(struct block *b)
{
    int waiting = BLOCK_WAITING;
    return atomic_compare_exchange_strong(&b->state, &waiting, BLOCK_GONE);
}

static void block_timeout(void *arg)
{
    struct block *b = arg;
    struct parked *p = b->p;

    b->timer = NULL;
    if (!block_leave(b))
        return; /* its element is on the way */
    block_end(b);
    block_free(b);
    call_complete(p, reply_timeout, NULL);
}

static void block_cancel(void *arg)
{
    struct block *b = arg;
    bool left = block_leave(b);

    block_end(b);
    if (left)
        block_free(b);
    else
        b->orphan = true;
}

static const struct suspend_ops block_ops = {block_cancel};

bool block_unblock(struct session *s, bool error)
{
    if (!(s->flags & SESSION_BLOCKED) || list_empty(&s->queue))
        return false;
    struct parked *p = LIST_ENTRY(s->queue.next, struct parked, link);
    if (p->state != PARKED_LATER || p->ops != &block_ops)
        return false;
    struct block *b = p->ops_arg;
    if (!block_leave(b))
        return false;
    block_send(b, error ? reply_unblocked : reply_timeout); /* not here: within EXEC shards are locked */
    return true;
}

/* ---- serving, on whatever thread made the list longer ---- */

void block_signal(struct call *c, const struct call_key *k)
{
    struct worker *w = c->w;
    struct mem_shard *shard = mem_shard_of(w->tier->mem, k->key.hash);

    if (LIKELY(w->tier->shard[shard->index].watched == 0) || list_empty(&w->cmd->registry[shard->index].blocked))
        return;
    buf_append(&w->cmd_worker->ready, &k->key, sizeof(k->key));
}

static bool serve_one(struct worker *w, struct block_entry *e, struct call_key *k, int64_t now_ms)
{
    struct block *b = e->b;
    struct call c = {.w = w, .keys = k, .nkeys = 1, .now_ms = now_ms};
    int waiting = BLOCK_WAITING;

    if (atomic_load(&b->state) != BLOCK_WAITING || !k->obj || k->obj->type != OBJ_LIST)
        return false;
    if (!atomic_compare_exchange_strong(&b->state, &waiting, BLOCK_SERVED))
        return false;
    buf_slice_append(&b->key, key_slice(&e->key));
    b->since = atomic_load_explicit(&w->tier->settled_event, memory_order_relaxed);
    CHECK(list_pop_one(&c, 0, b->left, &b->elem));
    if (UNLIKELY(atomic_load_explicit(&w->tier->limit.journal_always, memory_order_relaxed)))
        tier_pay_locked(w, &k->key);
    block_send(b, reply_served);
    return true;
}

/* A list that came from another database may be on disk; those who wait for it fetch it themselves. */
static void serve_later(struct block_entry *e)
{
    if (block_leave(e->b)) {
        e->b->again = true;
        block_send(e->b, NULL);
    }
}

static void serve_key(struct worker *w, const struct key *key, int64_t now_ms)
{
    struct mem_shard *shard = mem_shard_of(w->tier->mem, key->hash);
    struct list *blocked = &w->cmd->registry[shard->index].blocked;
    struct call_key k = {.key = *key, .access = KEY_UPDATE};

    for (struct list *l = blocked->next, *next; l != blocked; l = next) {
        struct block_entry *e = LIST_ENTRY(l, struct block_entry, link);
        next = l->next;
        if (e->key.hash != key->hash || !slice_eq(key_slice(&e->key), key_slice(key)))
            continue;
        enum status st = dispatch_resolve(w, &k, 1, NULL);
        if (st == ST_PENDING)
            serve_later(e);
        else if (st != ST_OK || !k.obj)
            return;
        else
            serve_one(w, e, &k, now_ms);
    }
}

void block_serve_ready(struct worker *w, int64_t now_ms)
{
    struct buf *ready = &w->cmd_worker->ready;

    for (size_t at = 0; at < ready->len; at += sizeof(struct key)) {
        struct key key; /* popping may signal again, and move the buffer */
        memcpy(&key, ready->ptr + at, sizeof(key));
        serve_key(w, &key, now_ms);
    }
    ready->len = 0;
}

void block_rehash(struct worker *w)
{
    struct tier *t = w->tier;
    struct list all, *l;

    list_init(&all);
    for (unsigned i = 0; i < t->mem->shards; i++)
        while ((l = list_pop_front(&w->cmd->registry[i].blocked))) {
            t->shard[i].watched--;
            list_push_back(&all, l);
        }
    while ((l = list_pop_front(&all))) {
        struct block_entry *e = LIST_ENTRY(l, struct block_entry, link);
        struct key key;
        mem_key_init(t->mem, e->key.db, key_slice(&e->key), &key);
        e->key.inc = key.inc;
        __atomic_store_n(&e->key.hash, key.hash, __ATOMIC_RELAXED);
        unsigned i = mem_shard_of(t->mem, key.hash)->index;
        list_push_back(&w->cmd->registry[i].blocked, &e->link);
        t->shard[i].watched++;
        buf_append(&w->cmd_worker->ready, &e->key, sizeof(e->key)); /* the other database may have had the list */
    }
}

/* ---- the commands ---- */

static bool parse_timeout(struct call *c, int64_t *ms)
{
    long double seconds;

    if (!num_parse_f64(c->argv[c->argc - 1], &seconds)) {
        call_error(c, "ERR timeout is not a float or out of range");
        return false;
    }
    long double in_ms = ceill(seconds * 1000);
    if (in_ms > (long double)INT64_MAX - (long double)c->now_ms || isinf(in_ms)) {
        call_error(c, "ERR timeout is out of range");
        return false;
    }
    if (in_ms < 0) {
        call_error(c, "ERR timeout is negative");
        return false;
    }
    *ms = (int64_t)in_ms;
    return true;
}

static void wait_for_list(struct call *c, bool left, int64_t timeout_ms)
{
    struct block *b = mem_calloc(MEM_CLIENT, sizeof(*b) + (size_t)c->nkeys * sizeof(b->entry[0]));
    struct tier *t = c->w->tier;

    b->s = c->s;
    b->w = c->w;
    b->left = left;
    buf_init(&b->key, MEM_CLIENT);
    buf_init(&b->elem, MEM_CLIENT);
    b->p = call_suspend(c, &block_ops, b);
    for (int i = 0; i < c->nkeys; i++) {
        struct block_entry *e = &b->entry[i];
        unsigned shard = mem_shard_of(t->mem, c->keys[i].key.hash)->index;
        e->key = c->keys[i].key;
        e->key.ptr = b->p->argv[c->keys[i].arg].ptr; /* outlives the request's own buffer */
        e->b = b;
        list_push_back(&c->w->cmd->registry[shard].blocked, &e->link);
        t->shard[shard].watched++;
        b->n++;
    }
    c->s->flags |= SESSION_BLOCKED;
    stats_inc(c->w->stats, STAT_blocked_clients);
    if (timeout_ms > 0)
        b->timer = mbox_timer_start(c->w->mbox, timeout_ms, block_timeout, b);
}

static void pop_or_wait(struct call *c, bool left)
{
    int64_t timeout_ms;

    if (!parse_timeout(c, &timeout_ms))
        return;
    for (int i = 0; i < c->nkeys; i++) {
        struct object *o = ks_peek(c, i);
        struct buf elem;
        if (!o)
            continue;
        if (o->type != OBJ_LIST) {
            call_wrongtype(c);
            return;
        }
        buf_init(&elem, MEM_CLIENT);
        list_pop_one(c, i, left, &elem);
        reply_array(&c->r, 2);
        reply_bulk(&c->r, c->argv[c->keys[i].arg]);
        reply_bulk(&c->r, buf_slice(&elem));
        buf_deinit(&elem);
        return;
    }
    if (c->in_exec)
        reply_null_array(&c->r);
    else
        wait_for_list(c, left, timeout_ms);
}

void cmd_blpop(struct call *c)
{
    pop_or_wait(c, true);
}

void cmd_brpop(struct call *c)
{
    pop_or_wait(c, false);
}
