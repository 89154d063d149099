/* Transactions: MULTI EXEC DISCARD WATCH UNWATCH (https://redis.io/docs/interact/transactions). */
#include "tiercel/clock.h"
#include "tiercel/num.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"

#include "cmd/cmd_priv.h"

#define MULTI_BYTES_MAX (512LL << 20) /* of one client's queued commands */

struct queued {
    const struct command *cmd;
    int argc;
    struct slice *argv; /* one allocation with the bytes behind */
};

/* A watched key: in its shard's registry, under that shard's lock; and in the session's list. */
struct watch {
    struct list link;
    struct list own;
    struct key key; /* ptr: name */
    struct multi *multi;
    char name[];
};

struct multi {
    struct queued *cmds;
    int n, cap;
    size_t bytes;
    struct list watches;
    _Atomic bool dirty; /* a watched key changed; set under the key's shard lock by any thread */
};

static struct multi *multi_of(struct session *s)
{
    if (!s->multi) {
        s->multi = mem_calloc(MEM_CLIENT, sizeof(*s->multi));
        list_init(&s->multi->watches);
    }
    return s->multi;
}

int multi_length(const struct session *s)
{
    return s->flags & SESSION_MULTI ? (s->multi ? s->multi->n : 0) : -1;
}

size_t multi_bytes(const struct session *s)
{
    return s->multi ? sizeof(*s->multi) + s->multi->bytes + (size_t)s->multi->cap * sizeof(struct queued) : 0;
}

void multi_queue(struct call *c)
{
    struct multi *m = multi_of(c->s);
    size_t bytes = (size_t)c->argc * sizeof(struct slice);

    for (int i = 0; i < c->argc; i++)
        bytes += c->argv[i].len;
    if ((int64_t)(m->bytes + bytes) > MULTI_BYTES_MAX) {
        call_error(c, "ERR the transaction is too large");
        multi_abort(c->s);
        return;
    }
    if (m->n == m->cap) {
        m->cap = m->cap ? m->cap * 2 : 8;
        m->cmds = mem_realloc(MEM_CLIENT, m->cmds, (size_t)m->cap * sizeof(*m->cmds));
    }
    struct queued *q = &m->cmds[m->n++];
    q->cmd = c->cmd;
    q->argc = c->argc;
    q->argv = mem_alloc(MEM_CLIENT, bytes);
    char *to = (char *)(q->argv + c->argc);
    for (int i = 0; i < c->argc; i++) {
        if (c->argv[i].len)
            memcpy(to, c->argv[i].ptr, c->argv[i].len);
        q->argv[i] = SLICE(to, c->argv[i].len);
        to += c->argv[i].len;
    }
    m->bytes += bytes;
    reply_simple(&c->r, "QUEUED");
}

bool multi_watches(const struct session *s)
{
    return s->multi && !list_empty(&s->multi->watches);
}

bool multi_each(const struct session *s,
                bool (*fn)(void *arg, const struct command *cmd, int argc, const struct slice *argv), void *arg)
{
    for (int i = 0; s->multi && i < s->multi->n; i++)
        if (!fn(arg, s->multi->cmds[i].cmd, s->multi->cmds[i].argc, s->multi->cmds[i].argv))
            return false;
    return true;
}

void multi_abort(struct session *s)
{
    if (s->flags & SESSION_MULTI)
        s->flags |= SESSION_DIRTY_EXEC;
}

static void commands_free(struct multi *m)
{
    for (int i = 0; i < m->n; i++)
        mem_free(MEM_CLIENT, m->cmds[i].argv);
    m->n = 0;
    m->bytes = 0;
}

/* ---- watching ---- */

/* The shard that has the watch, locked. NULL: not while a script takes so long, and `wait` is false. */
static struct mem_shard *lock_watch(struct worker *w, const struct watch *watch, bool wait)
{
    for (;;) { /* a flush moves watches between shards, under all locks: look again once locked */
        uint64_t hash = __atomic_load_n(&watch->key.hash, __ATOMIC_RELAXED);
        struct mem_shard *shard = mem_shard_of(w->tier->mem, hash);
        if (wait)
            mem_lock(shard);
        else if (!mem_lock_unless(shard, &w->cmd->slow_scripts))
            return NULL;
        if (watch->key.hash == hash)
            return shard;
        mem_unlock(shard);
    }
}

/* false: some of them later. */
static bool unwatch(struct session *s, bool wait)
{
    struct multi *m = s->multi;

    while (m && !list_empty(&m->watches)) {
        struct watch *watch = LIST_ENTRY(m->watches.next, struct watch, own);
        struct mem_shard *shard = lock_watch(s->w, watch, wait);
        if (UNLIKELY(!shard))
            return false;
        list_remove(&watch->link);
        s->w->tier->shard[shard->index].watched--;
        mem_unlock(shard);
        list_remove(&watch->own);
        mem_free(MEM_CLIENT, watch);
    }
    if (m)
        atomic_store(&m->dirty, false);
    return true;
}

void multi_unwatch(struct session *s)
{
    if (LIKELY(unwatch(s, false)))
        s->flags &= ~(uint32_t)SESSION_UNWATCH;
    else
        s->flags |= SESSION_UNWATCH;
}

void multi_discard(struct session *s)
{
    if (s->multi)
        commands_free(s->multi);
    multi_unwatch(s);
    s->flags &= ~(uint32_t)(SESSION_MULTI | SESSION_DIRTY_EXEC);
}

void multi_destroy(struct session *s)
{
    multi_discard(s);
    unwatch(s, true);
    if (s->multi)
        mem_free(MEM_CLIENT, s->multi->cmds);
    mem_free(MEM_CLIENT, s->multi);
    s->multi = NULL;
}

static bool watching(const struct multi *m, const struct key *key)
{
    for (struct list *l = m->watches.next; l != &m->watches; l = l->next) {
        const struct key *k = &LIST_ENTRY(l, struct watch, own)->key;
        if (k->db == key->db && slice_eq(key_slice(k), key_slice(key)))
            return true;
    }
    return false;
}

/* The keys' shards are locked by dispatch. */
void cmd_watch(struct call *c)
{
    struct multi *m = multi_of(c->s);
    struct tier *t = c->w->tier;

    if (c->s->flags & SESSION_MULTI) {
        call_error(c, "ERR WATCH inside MULTI is not allowed");
        return;
    }
    for (int i = 0; i < c->nkeys; i++) {
        const struct key *key = &c->keys[i].key;
        if (watching(m, key))
            continue;
        struct watch *watch = mem_calloc(MEM_CLIENT, sizeof(*watch) + key->len);
        memcpy(watch->name, key->ptr, key->len);
        watch->key = *key;
        watch->key.ptr = watch->name;
        watch->multi = m;
        struct mem_shard *shard = mem_shard_of(t->mem, key->hash);
        list_push_back(&c->w->cmd->registry[shard->index].watches, &watch->link);
        list_push_back(&m->watches, &watch->own);
        t->shard[shard->index].watched++;
    }
    reply_simple(&c->r, "OK");
}

void cmd_unwatch(struct call *c)
{
    if (c->in_exec) { /* EXEC has let go of them, and holds locks */
        reply_simple(&c->r, "OK");
        return;
    }
    multi_unwatch(c->s);
    reply_simple(&c->r, "OK");
}

void cmd_key_changed(void *arg, struct worker *w, const struct key *key, enum tier_change why)
{
    struct cmd *cmd = arg;
    struct list *watches = &cmd->registry[mem_shard_of(cmd->tier->mem, key->hash)->index].watches;

    for (struct list *l = watches->next; l != watches; l = l->next) {
        struct watch *watch = LIST_ENTRY(l, struct watch, link);
        if (watch->key.hash == key->hash && slice_eq(key_slice(&watch->key), key_slice(key)))
            atomic_store(&watch->multi->dirty, true);
    }
    notify_change(cmd, key, why);
    tracking_key_changed(cmd->tracking, w, key_slice(key), why, tier_key_is_upstream(cmd->tier, key));
}

void watch_touch_db(struct worker *w, int db, bool swapped)
{
    struct tier *t = w->tier;

    for (unsigned i = 0; i < t->mem->shards; i++) {
        struct list *watches = &w->cmd->registry[i].watches;
        for (struct list *l = watches->next; l != watches; l = l->next) {
            struct watch *watch = LIST_ENTRY(l, struct watch, link);
            struct tier_found found;
            if (watch->key.db != db)
                continue;
            bool dirty = atomic_load(&watch->multi->dirty);
            enum status st = tier_resolve_locked(w, &t->mem->shard[i], &watch->key, TIER_PRESENCE, NULL, &found);
            if (st != ST_OK || found.obj || found.on_disk)
                atomic_store(&watch->multi->dirty, true);
            else if (swapped) /* one that came expired goes: as if it had not come */
                atomic_store(&watch->multi->dirty, dirty);
        }
    }
}

void watch_rehash(struct worker *w)
{
    struct tier *t = w->tier;
    struct list all, *l;

    list_init(&all);
    for (unsigned i = 0; i < t->mem->shards; i++)
        while ((l = list_pop_front(&w->cmd->registry[i].watches))) {
            t->shard[i].watched--;
            list_push_back(&all, l);
        }
    while ((l = list_pop_front(&all))) {
        struct watch *watch = LIST_ENTRY(l, struct watch, link);
        struct key key;
        mem_key_init(t->mem, watch->key.db, key_slice(&watch->key), &key);
        watch->key.inc = key.inc;
        __atomic_store_n(&watch->key.hash, key.hash, __ATOMIC_RELAXED);
        unsigned i = mem_shard_of(t->mem, key.hash)->index;
        list_push_back(&w->cmd->registry[i].watches, &watch->link);
        t->shard[i].watched++;
    }
}

/* ---- the transaction ---- */

void cmd_multi(struct call *c)
{
    if (c->s->flags & SESSION_MULTI) {
        call_error(c, "ERR MULTI calls can not be nested");
        return;
    }
    multi_of(c->s);
    c->s->flags |= SESSION_MULTI;
    reply_simple(&c->r, "OK");
}

void cmd_discard(struct call *c)
{
    if (!(c->s->flags & SESSION_MULTI)) {
        call_error(c, "ERR DISCARD without MULTI");
        return;
    }
    multi_discard(c->s);
    reply_simple(&c->r, "OK");
}

bool multi_needs_all_shards(const struct command *cmd)
{
    return cmd->flags & CMD_ALL_SHARDS || cmd->id == CMDID_keys || cmd->id == CMDID_scan || cmd->id == CMDID_randomkey;
}

/* All keys that EXEC will use, the watched ones first; `all`: it needs every shard. SELECT
 * within the transaction changes the database of what follows. With max 0: an upper bound. */
int multi_exec_keys(struct session *s, struct call_key *keys, int max, bool *all)
{
    struct multi *m = s->multi;
    int n = 0, db = s->db;

    *all = false;
    if (!m)
        return 0;
    for (struct list *l = m->watches.next; l != &m->watches; l = l->next, n++) {
        struct watch *watch = LIST_ENTRY(l, struct watch, own);
        if (n < max) {
            keys[n] = (struct call_key){.access = KEY_PRESENCE};
            mem_key_init(s->w->tier->mem, watch->key.db, key_slice(&watch->key), &keys[n].key);
        }
    }
    for (int i = 0; i < m->n; i++) {
        const struct queued *q = &m->cmds[i];
        *all |= multi_needs_all_shards(q->cmd) || rerun_wants_all(q->cmd, q->argc, q->argv) ||
                (q->cmd->flags & CMD_SCRIPT && script_wants_all(s->w, q->cmd, q->argc, q->argv));
        if (q->cmd->id == CMDID_select) {
            int64_t to;
            if (num_parse_i64(q->argv[1], &to) && to >= 0 && to < s->w->conf->databases)
                db = (int)to;
            continue;
        }
        int count = dispatch_key_count(q->cmd, q->argc);
        if (max == 0)
            n += count;
        else if (count > 0)
            n += dispatch_keys(s->w, q->cmd, q->argc, q->argv, db, keys + n, max - n);
    }
    return n;
}

/* All of them were brought in before, but for those that a SWAPDB of the same transaction has brought: these are read from
 * disk at once. */
static bool resolve_now(struct worker *w, struct call_key *keys, int n)
{
    if (LIKELY(dispatch_resolve(w, keys, n, NULL) == ST_OK))
        return true;
    for (int i = 0; i < n; i++) {
        enum status st = dispatch_resolve(w, &keys[i], 1, NULL);
        if (st == ST_PENDING && tier_fault_now_locked(w, mem_shard_of(w->tier->mem, keys[i].key.hash), &keys[i].key))
            st = dispatch_resolve(w, &keys[i], 1, NULL);
        if (st != ST_OK)
            return false;
    }
    return true;
}

/* Runs the queued commands; every key is locked. */
static void exec_commands(struct call *c, struct call_key *keys)
{
    struct session *s = c->s;
    struct multi *m = s->multi;

    for (int i = 0; i < m->n; i++) {
        const struct queued *q = &m->cmds[i];
        struct call sub = {.w = c->w, .s = s, .cmd = q->cmd, .argc = q->argc, .argv = q->argv, .now_ms = c->now_ms};
        sub.r = (struct reply){c->r.out, s->proto};
        sub.in_exec = true;
        sub.oom = c->oom;
        sub.unwritable = c->unwritable;
        sub.keys = keys;
        sub.nkeys = dispatch_key_count(q->cmd, q->argc);
        if (sub.nkeys)
            sub.nkeys = dispatch_keys(c->w, q->cmd, q->argc, q->argv, s->db, keys, sub.nkeys);
        if (UNLIKELY(!acl_admit_queued(&sub)))
            continue;
        if (LIKELY(resolve_now(c->w, keys, sub.nkeys)))
            dispatch_call(&sub);
        else
            dispatch_fault_error(&sub, ST_IO);
        if (q->cmd->flags & CMD_ALL_SHARDS) { /* at once: the commands behind it change keys by their new hashes */
            watch_rehash(c->w);
            block_rehash(c->w);
        }
    }
}

static void exec_finish(struct call *c, bool aborted)
{
    if (aborted)
        reply_null_array(&c->r);
    multi_discard(c->s);
}

/* ST_PENDING: it has to wait for keys. */
static enum status exec(struct call *c)
{
    struct session *s = c->s;
    struct lockset set;
    enum status st;
    bool all;

    if (!(s->flags & SESSION_MULTI)) {
        call_error(c, "ERR EXEC without MULTI");
        return ST_OK;
    }
    if (s->flags & SESSION_DIRTY_EXEC) {
        call_error(c, "EXECABORT Transaction discarded because of previous errors.");
        multi_discard(s);
        return ST_OK;
    }
    struct multi *m = multi_of(s);
    if (atomic_load(&m->dirty)) {
        exec_finish(c, true);
        return ST_OK;
    }
    int max = multi_exec_keys(s, NULL, 0, &all);
    struct call_key *keys = mem_alloc(MEM_CLIENT, (size_t)(max + 1) * sizeof(*keys));
    tier_group_begin(c->w);
    do {
        int n = max ? multi_exec_keys(s, keys, max, &all) : 0;
        if (UNLIKELY(!dispatch_lock(c->w, &set, keys, n, all))) {
            st = ST_BUSY;
            break;
        }
        st = dispatch_resolve(c->w, keys, n, c->parked ? c->parked->waits : NULL);
        if (st == ST_OK)
            break;
        dispatch_unlock(c->w, &set);
    } while (st == ST_CANCELLED);
    if (st == ST_OK) {
        /* Resolving removed what had expired, which marks it; from here nothing else can. */
        bool dirty = atomic_load(&m->dirty);
        if (!dirty) {
            reply_array(&c->r, m->n);
            s->flags &= ~(uint32_t)SESSION_MULTI; /* what runs now is not queued again */
            c->w->cmd_worker->locks = &set;
            exec_commands(c, keys);
            block_serve(c, &set);
        }
        dispatch_unlock(c->w, &set);
        exec_finish(c, dirty);
        monitor_note(c);
    }
    tier_group_end(c->w);
    mem_free(MEM_CLIENT, keys);
    if (UNLIKELY(st == ST_BUSY)) {
        call_errorf(c, "EXECABORT Transaction discarded because of: %s", script_busy(c->w->cmd));
        multi_discard(s);
    } else if (UNLIKELY(st != ST_OK && st != ST_PENDING)) {
        dispatch_fault_error(c, st);
        multi_discard(s);
    }
    return st;
}

enum dispatch_rc multi_exec(struct call *c)
{
    struct worker *w = c->w;
    int64_t start = LIKELY(w->mono_us != 0) ? w->mono_us : clock_mono_us();

    if (exec(c) == ST_PENDING)
        return DISPATCH_FAULT;
    dispatch_ran(c, start);
    return DISPATCH_DONE;
}

void cmd_exec(struct call *c)
{
    call_error(c, "ERR EXEC is run by dispatch"); /* never reached: process() takes EXEC aside */
}
