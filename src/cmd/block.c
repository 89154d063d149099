/* Commands that wait for keys: the seam is described in cmd_priv.h. A client that finds nothing registers with the
 * shards of its keys, under their locks, which dispatch holds. Whoever makes a value available serves the oldest
 * waiting client at the end of its own command, still under the lock, so nobody can take it in between, and the reply
 * goes out by the client's own loop.
 *
 * States, changed by compare-and-swap:
 *   WAITING
 *   SERVED   by any thread that holds the lock of one of the keys: its reply is on the way
 *   CALLED   by such a thread: its command runs again on its own loop, which brings it back to WAITING, under the
 *            locks of all its keys, or ends it
 *   GONE     by the client's own thread: timeout, unblock, end of connection */
#include <math.h>

#include "tiercel/num.h"
#include "tiercel/stats.h"

#include "cmd/cmd_priv.h"

enum block_state { BLOCK_WAITING, BLOCK_SERVED, BLOCK_CALLED, BLOCK_GONE };

struct block_entry {
    struct list link; /* in the registry of its key's shard */
    struct key key;   /* ptr: the parked request's argument */
    int arg;
    struct block *b;
};

struct block {
    struct mbox_msg msg;
    struct worker *w;
    struct parked *p;
    const struct block_kind *kind;
    const struct command *cmd;
    void *data;
    struct mbox_timer *timer;
    _Atomic int state;
    bool failed;    /* it was answered with an error */
    bool orphan;    /* the client went while a message was under way, which frees it */
    uint64_t since; /* see session_wrote() */
    struct chain reply;
    /* How it ends: what the message says, or what it was told while its command was to run again. */
    void (*end)(struct call *c, void *arg);
    int n;
    struct block_entry entry[];
};

static void block_free(struct block *b)
{
    if (b->timer)
        mbox_timer_cancel(b->timer);
    chain_deinit(&b->reply);
    mem_free(MEM_CLIENT, b->data);
    mem_free(MEM_CLIENT, b);
}

static void entry_remove(struct block *b, struct block_entry *e, const struct mem_shard *shard)
{
    list_remove(&e->link);
    b->w->tier->shard[shard->index].watched--;
}

/* With its name: it may be a script's, or that of a client which is served and gone before its turn. */
static void ready_add(struct worker *w, const struct key *key)
{
    buf_append(&w->cmd_worker->ready, key, sizeof(*key));
    buf_slice_append(&w->cmd_worker->ready, key_slice(key));
}

/* What was kept for it may be for those behind it. */
static void entry_pass_on(struct block *b, struct block_entry *e, struct mem_shard *shard)
{
    ready_add(b->w, &e->key);
    block_serve_ready(b->w, b->w->now_ms, &(struct lockset){.n = 1, .shard = &shard->index});
}

/* No lock is held. */
static void entries_remove(struct block *b)
{
    struct tier *t = b->w->tier;
    bool called = atomic_load(&b->state) == BLOCK_CALLED;

    for (int i = 0; i < b->n; i++) {
        struct block_entry *e = &b->entry[i];
        struct mem_shard *shard;
        if (called)
            tier_group_begin(b->w);
        for (;;) { /* a flush moves entries between shards, see watch_rehash() */
            uint64_t hash = __atomic_load_n(&e->key.hash, __ATOMIC_RELAXED);
            shard = mem_shard_of(t->mem, hash);
            mem_lock(shard);
            if (e->key.hash == hash)
                break;
            mem_unlock(shard);
        }
        entry_remove(b, e, shard);
        if (called)
            entry_pass_on(b, e, shard);
        mem_unlock(shard);
        tier_group_end(b->w);
    }
    b->n = 0;
}

/* It waits no more; the client's own thread. */
static void block_leave(struct block *b)
{
    entries_remove(b);
    b->p->s->flags &= ~(uint32_t)SESSION_BLOCKED;
    stats_add(b->w->stats, STAT_blocked_clients, (uint64_t)-1);
    if (b->kind->dest)
        atomic_fetch_sub_explicit(&b->w->cmd->block_moves, 1, memory_order_relaxed);
}

/* ---- endings, on the client's own thread ---- */

static void reply_served(struct call *c, void *arg)
{
    struct block *b = arg;

    c->failed = b->failed;
    session_wrote(c->s, b->since);
    chain_move(c->r.out, &b->reply);
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

static void block_ended(struct mbox_msg *msg, void *owner)
{
    struct block *b = LIST_ENTRY(msg, struct block, msg);
    (void)owner;

    if (!b->orphan) {
        block_leave(b);
        call_complete(b->p, b->end, b);
    }
    block_free(b);
}

/* Sends the client its end. Whoever calls this has taken the block out of BLOCK_WAITING. */
static void block_send(struct block *b, void (*end)(struct call *c, void *arg))
{
    b->end = end;
    b->msg.run = block_ended;
    mbox_post(b->w->mbox, &b->msg);
}

static bool block_take(struct block *b, enum block_state to)
{
    int waiting = BLOCK_WAITING;
    return atomic_compare_exchange_strong(&b->state, &waiting, (int)to);
}

/* false: it ends already, otherwise. */
static bool block_tell(struct block *b, void (*end)(struct call *c, void *arg))
{
    if (atomic_load(&b->state) != BLOCK_CALLED)
        return false;
    b->end = end;
    return true;
}

static void block_timeout(void *arg)
{
    struct block *b = arg;
    struct parked *p = b->p;

    b->timer = NULL;
    if (!block_take(b, BLOCK_GONE)) {
        block_tell(b, reply_timeout);
        return;
    }
    block_leave(b);
    block_free(b);
    call_complete(p, reply_timeout, NULL);
}

static void block_cancel(void *arg)
{
    struct block *b = arg;
    bool mine = block_take(b, BLOCK_GONE);

    block_leave(b);
    if (mine)
        block_free(b);
    else
        b->orphan = true;
}

static const struct suspend_ops block_ops = {block_cancel};

bool block_unblock(struct session *s, bool error)
{
    void (*end)(struct call * c, void *arg) = error ? reply_unblocked : reply_timeout;

    if (!(s->flags & SESSION_BLOCKED) || list_empty(&s->queue))
        return false;
    struct parked *p = LIST_ENTRY(s->queue.next, struct parked, link);
    if (p->block)
        return block_tell(p->block, end);
    if (p->state != PARKED_LATER || p->ops != &block_ops)
        return false;
    struct block *b = p->ops_arg;
    if (!block_take(b, BLOCK_GONE))
        return block_tell(b, end);
    block_send(b, end); /* not here: within EXEC shards are locked */
    return true;
}

/* ---- running again ---- */

static void block_called(struct mbox_msg *msg, void *owner)
{
    struct block *b = LIST_ENTRY(msg, struct block, msg);
    struct parked *p = b->p;
    (void)owner;

    if (b->orphan) {
        block_free(b);
        return;
    }
    p->block = b;
    p->faults = 0;
    mem_free(MEM_CLIENT, p->waits);
    p->waits = NULL;
    p->state = PARKED_NEW;
    session_run(p->s);
}

/* false: it is gone, or served by somebody else. */
static bool block_call(struct block *b)
{
    if (!block_take(b, BLOCK_CALLED))
        return false;
    b->msg.run = block_called;
    mbox_post(b->w->mbox, &b->msg);
    return true;
}

bool block_is_over(struct parked *p)
{
    if (!p->block->end)
        return false;
    p->state = PARKED_LATER;
    call_complete(p, p->block->end, NULL);
    return true;
}

void block_end(struct parked *p)
{
    struct block *b = p->block;

    p->block = NULL;
    block_leave(b);
    block_free(b);
}

void block_ended_locked(struct call *c)
{
    struct block *b = c->parked->block;

    for (int i = 0; i < b->n; i++) {
        struct block_entry *e = &b->entry[i];
        entry_remove(b, e, mem_shard_of(c->w->tier->mem, e->key.hash));
        ready_add(c->w, &e->key);
    }
    b->n = 0;
}

bool block_again(const struct call *c)
{
    return c->parked && c->parked->block;
}

/* ---- serving, on whatever thread made something available ---- */

void block_signal(struct call *c, const struct call_key *k)
{
    struct worker *w = c->w;
    struct mem_shard *shard = mem_shard_of(w->tier->mem, k->key.hash);

    if (LIKELY(w->tier->shard[shard->index].watched == 0) || list_empty(&w->cmd->registry[shard->index].blocked))
        return;
    ready_add(w, &k->key);
}

static bool entry_is_of(const struct block_entry *e, const struct key *key)
{
    return e->key.hash == key->hash && slice_eq(key_slice(&e->key), key_slice(key));
}

#define TRY_LOCK_SPINS 200 /* locks are held for as long as a command takes */

/* The shards that a command holds, and those locked since to serve somebody. */
static bool lock_more(struct worker *w, const struct lockset *locks, unsigned shard)
{
    struct buf *more = &w->cmd_worker->locked;
    const uint32_t *held = (const uint32_t *)(const void *)more->ptr;
    uint32_t highest = 0;

    if (locks->all)
        return true;
    for (int i = 0; i < locks->n; i++) {
        highest = locks->shard[i] > highest ? locks->shard[i] : highest;
        if (locks->shard[i] == shard)
            return true;
    }
    for (size_t i = 0; i < more->len / sizeof(*held); i++) {
        highest = held[i] > highest ? held[i] : highest;
        if (held[i] == shard)
            return true;
    }
    struct mem_shard *s = &w->tier->mem->shard[shard];
    if (shard > highest) {
        mem_lock(s);
    } else { /* out of order: never wait */
        int tries = 0;
        while (!mem_trylock(s))
            if (++tries == TRY_LOCK_SPINS)
                return false;
    }
    buf_append(more, &(uint32_t){shard}, sizeof(uint32_t));
    return true;
}

static void unlock_more(struct worker *w)
{
    struct buf *more = &w->cmd_worker->locked;
    const uint32_t *held = (const uint32_t *)(const void *)more->ptr;

    for (size_t i = 0; i < more->len / sizeof(*held); i++)
        mem_unlock(&w->tier->mem->shard[held[i]]);
    more->len = 0;
}

/* The second key, locked and resident, if that can be had without waiting. */
static bool dest_resolve(struct worker *w, const struct block *b, unsigned db, struct call_key *k,
                         const struct lockset *locks)
{
    if (!tier_grouped(w))
        return false;
    *k = (struct call_key){.access = KEY_UPDATE, .arg = b->kind->dest};
    mem_key_init(w->tier->mem, db, b->p->argv[k->arg], &k->key);
    return lock_more(w, locks, mem_shard_of(w->tier->mem, k->key.hash)->index) &&
           dispatch_resolve(w, k, 1, NULL) == ST_OK;
}

static void serve(struct worker *w, struct block *b, struct call *c)
{
    b->since = atomic_load_explicit(&w->tier->settled_event, memory_order_relaxed);
    b->kind->serve(c, b->data);
    b->failed = c->failed;
    if (UNLIKELY(atomic_load_explicit(&w->tier->limit.journal_always, memory_order_relaxed)))
        for (int i = 0; i < c->nkeys; i++)
            tier_pay_locked(w, &c->keys[i].key);
    block_send(b, reply_served);
}

/* false: those behind it have to wait for it. */
static bool serve_entry(struct worker *w, struct block_entry *e, const struct call_key *k, int64_t now_ms,
                        const struct lockset *locks)
{
    struct block *b = e->b;
    struct call_key keys[2] = {*k};
    struct call c = {.w = w, .cmd = b->cmd, .keys = keys, .nkeys = 1, .now_ms = now_ms};

    bool gone = !k->obj || k->obj->type != b->kind->type;
    if (gone && !b->kind->gone)
        return true;
    int state = atomic_load(&b->state);
    if (state != BLOCK_WAITING)
        return state != BLOCK_CALLED;
    keys[0].arg = e->arg;
    c.argc = b->p->argc;
    c.argv = b->p->argv;
    c.r = (struct reply){&b->reply, b->p->s->proto};
    if (gone) {
        if (block_take(b, BLOCK_SERVED)) {
            b->since = atomic_load_explicit(&w->tier->settled_event, memory_order_relaxed);
            b->kind->gone(&c, b->data);
            b->failed = c.failed;
            block_send(b, reply_served);
        }
        return true;
    }
    if (b->kind->ready && !b->kind->ready(&c, b->data))
        return true;
    if (b->kind->dest) {
        if (!dest_resolve(w, b, k->key.db, &keys[1], locks))
            return !block_call(b);
        c.nkeys = 2;
    }
    if (block_take(b, BLOCK_SERVED))
        serve(w, b, &c);
    return true;
}

static void serve_key(struct worker *w, const struct key *key, int64_t now_ms, const struct lockset *locks)
{
    struct mem_shard *shard = mem_shard_of(w->tier->mem, key->hash);
    struct list *blocked = &w->cmd->registry[shard->index].blocked;
    struct call_key k = {.key = *key, .access = KEY_UPDATE};

    for (struct list *l = blocked->next, *next; l != blocked; l = next) {
        struct block_entry *e = LIST_ENTRY(l, struct block_entry, link);
        next = l->next;
        if (!entry_is_of(e, key))
            continue;
        enum status st = dispatch_resolve(w, &k, 1, NULL);
        if (st == ST_PENDING) { /* it came from another database and is on disk: the first one has it fetched */
            if (block_call(e->b) || atomic_load(&e->b->state) == BLOCK_CALLED)
                return;
        } else if (st != ST_OK || !serve_entry(w, e, &k, now_ms, locks)) {
            return;
        }
    }
}

void block_serve_ready(struct worker *w, int64_t now_ms, const struct lockset *locks)
{
    struct buf *ready = &w->cmd_worker->ready, *name = &w->cmd_worker->ready_name;

    for (size_t at = 0; at < ready->len;) {
        struct key key; /* serving may signal again, and move the buffer */
        memcpy(&key, ready->ptr + at, sizeof(key));
        at += sizeof(key);
        name->len = 0;
        buf_append(name, ready->ptr + at, key.len);
        at += key.len;
        key.ptr = name->ptr;
        serve_key(w, &key, now_ms, locks);
    }
    ready->len = 0;
    unlock_more(w);
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
        ready_add(w, &e->key); /* the other database may have had the key */
    }
}

/* ---- waiting ---- */

bool block_arg_timeout(struct call *c, int arg, int64_t *ms)
{
    long double seconds;

    if (!num_parse_f64(c->argv[arg], &seconds)) {
        call_error(c, "ERR timeout is not a float or out of range");
        return false;
    }
    long double in_ms = ceill(seconds * 1000);
    if (in_ms < 0 || in_ms >= 0x1p63L) { /* what Redis 7.0 says of too long ones, too */
        call_error(c, "ERR timeout is negative");
        return false;
    }
    *ms = (int64_t)in_ms;
    return true;
}

bool block_may_take(struct call *c, int i)
{
    const struct key *key = &c->keys[i].key;
    unsigned shard = mem_shard_of(c->w->tier->mem, key->hash)->index;
    const struct list *blocked = &c->w->cmd->registry[shard].blocked;

    if (LIKELY(c->w->tier->shard[shard].watched == 0) || c->in_exec)
        return true;
    for (const struct list *l = blocked->next; l != blocked; l = l->next) {
        const struct block_entry *e = LIST_ENTRY(l, struct block_entry, link);
        if (!entry_is_of(e, key))
            continue;
        if (c->parked && e->b == c->parked->block) /* its turn */
            return true;
        if (atomic_load(&e->b->state) == BLOCK_CALLED && c->keys[i].obj && c->keys[i].obj->type == e->b->kind->type)
            return false;
    }
    return true;
}

/* It has run again for nothing, and keeps its place. Those behind it were passed over for its sake. */
static void wait_on(struct call *c, struct block *b)
{
    call_suspend(c, &block_ops, b);
    c->parked->block = NULL;
    for (int i = 0; i < b->n; i++)
        ready_add(c->w, &b->entry[i].key);
    atomic_store(&b->state, BLOCK_WAITING);
}

void block_wait(struct call *c, const struct block_kind *kind, int nkeys, int64_t timeout_ms, void *data)
{
    struct tier *t = c->w->tier;

    c->s->flags |= SESSION_BLOCKED;
    if (block_again(c)) {
        mem_free(MEM_CLIENT, data);
        wait_on(c, c->parked->block);
        return;
    }
    struct block *b = mem_calloc(MEM_CLIENT, sizeof(*b) + (size_t)nkeys * sizeof(b->entry[0]));
    b->w = c->w;
    b->kind = kind;
    b->cmd = c->cmd;
    b->data = data;
    chain_init(&b->reply);
    b->p = call_suspend(c, &block_ops, b);
    for (int i = 0; i < nkeys; i++) {
        struct block_entry *e = &b->entry[i];
        unsigned shard = mem_shard_of(t->mem, c->keys[i].key.hash)->index;
        e->key = c->keys[i].key;
        e->arg = c->keys[i].arg;
        e->key.ptr = b->p->argv[e->arg].ptr; /* outlives the request's own buffer */
        e->b = b;
        list_push_back(&c->w->cmd->registry[shard].blocked, &e->link);
        t->shard[shard].watched++;
        b->n++;
    }
    stats_inc(c->w->stats, STAT_blocked_clients);
    if (kind->dest)
        atomic_fetch_add_explicit(&c->w->cmd->block_moves, 1, memory_order_relaxed);
    if (timeout_ms > 0)
        b->timer = mbox_timer_start(c->w->mbox, timeout_ms, block_timeout, b);
}
