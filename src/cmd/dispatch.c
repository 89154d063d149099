/* From a request to its handler: checks, keys, locks, residency, statistics. */
#include <stdio.h>
#include <stdlib.h>

#include "tiercel/acl.h"
#include "tiercel/clock.h"
#include "tiercel/pubsub.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"

#include "cmd/cmd_priv.h"

#define KEYS_MAX (1024 * 1024) /* of one command, as the protocol limits its arguments */

/* Arrays that grow to the largest command seen and are used again. */
struct dispatch_scratch {
    struct call_key *keys;
    int keys_cap;
    int *pos;
    int pos_cap;
    struct lockset locks;
    int locks_cap;
};

void *dispatch_scratch_keys(struct worker *w, int n)
{
    struct dispatch_scratch *sc = w->cmd_worker->scratch;

    if (UNLIKELY(!sc))
        sc = w->cmd_worker->scratch = mem_calloc(MEM_OTHER, sizeof(*sc));
    if (UNLIKELY(n > sc->keys_cap)) {
        sc->keys_cap = n < 16 ? 16 : n;
        sc->keys = mem_realloc(MEM_OTHER, sc->keys, (size_t)sc->keys_cap * sizeof(*sc->keys));
    }
    return sc->keys;
}

static int *scratch_positions(struct worker *w, int n)
{
    struct dispatch_scratch *sc = w->cmd_worker->scratch;

    if (UNLIKELY(n > sc->pos_cap)) {
        sc->pos_cap = n < 16 ? 16 : n;
        sc->pos = mem_realloc(MEM_OTHER, sc->pos, (size_t)sc->pos_cap * sizeof(*sc->pos));
    }
    return sc->pos;
}

static void scratch_free(struct worker *w)
{
    struct dispatch_scratch *sc = w->cmd_worker->scratch;

    if (!sc)
        return;
    mem_free(MEM_OTHER, sc->keys);
    mem_free(MEM_OTHER, sc->pos);
    mem_free(MEM_OTHER, sc->locks.shard);
    mem_free(MEM_OTHER, sc);
    w->cmd_worker->scratch = NULL;
}

void dispatch_deinit(struct worker *w)
{
    scratch_free(w);
}

/* ---- finding the command ---- */

const struct command *dispatch_find(int argc, const struct slice *argv)
{
    const struct command *cmd = argc > 0 ? command_find(argv[0]) : NULL;

    if (cmd && UNLIKELY(cmd->flags & CMD_CONTAINER) && argc > 1) {
        const struct command *sub = command_find_sub(cmd, argv[1]);
        return sub ? sub : cmd;
    }
    return cmd;
}

/* ---- keys ---- */

enum tier_need dispatch_need(const struct worker *w, enum key_access access)
{
    switch (access) {
    case KEY_READ:
    case KEY_UPDATE: return TIER_VALUE;
    case KEY_PRESENCE: return TIER_PRESENCE;
    case KEY_REPLACE: /* whether a key on disk is new, or has expired */
        return notify_wants(w->cmd, NOTIFY_NEW | NOTIFY_EXPIRED) ? TIER_PRESENCE : TIER_NOTHING;
    default: return TIER_NOTHING;
    }
}

int dispatch_key_count(const struct command *cmd, int argc)
{
    int n;

    if (cmd->access == KEY_NONE) /* it has none, or only names one */
        return 0;
    if (cmd->id == CMDID_copy || cmd->id == CMDID_move)
        return 2;
    if (LIKELY(!cmd->find_keys)) {
        int last = cmd->last < 0 ? argc + cmd->last : cmd->last;
        n = last < cmd->first ? 0 : (last - cmd->first) / cmd->step + 1;
    } else {
        n = argc;
    }
    return n > KEYS_MAX ? KEYS_MAX : n;
}

/* COPY and MOVE name a key of another database. */
static int two_database_keys(struct worker *w, const struct command *cmd, int argc, const struct slice *argv, int db,
                             struct call_key *keys)
{
    bool copy = cmd->id == CMDID_copy;
    int to = argc < 3 ? -1 : copy ? cmd_copy_db(argc, argv, db) : cmd_move_db(argc, argv, db);

    if (to < 0 || to >= (int)w->tier->mem->databases)
        return 0; /* the handler replies the error */
    int second = copy ? 2 : 1;
    keys[0] = (struct call_key){.access = KEY_UPDATE, .arg = 1};
    keys[1] = (struct call_key){.access = KEY_UPDATE, .arg = second};
    mem_key_init(w->tier->mem, tier_space(w, (unsigned)db, argv[1]), argv[1], &keys[0].key);
    mem_key_init(w->tier->mem, tier_space(w, (unsigned)to, argv[second]), argv[second], &keys[1].key);
    return 2;
}

int dispatch_keys(struct worker *w, const struct command *cmd, int argc, const struct slice *argv, int db,
                  struct call_key *keys, int max)
{
    if (UNLIKELY(cmd->id == CMDID_copy || cmd->id == CMDID_move))
        return two_database_keys(w, cmd, argc, argv, db, keys);
    int *pos = scratch_positions(w, max);
    int n = command_keys(cmd, argc, argv, pos, max);
    enum key_access access = cmd->find_access ? cmd->find_access(argc, argv) : cmd->access;
    for (int i = 0; i < n; i++) {
        keys[i] = (struct call_key){.access = access, .arg = pos[i]};
        mem_key_init(w->tier->mem, tier_space(w, (unsigned)db, argv[pos[i]]), argv[pos[i]], &keys[i].key);
    }
    return n < 0 ? 0 : n;
}

void dispatch_prepare(struct parked *p)
{
    struct worker *w = p->s->w;
    const struct command *cmd = dispatch_find(p->argc, p->argv);
    struct call_key *keys;
    int n;

    if (cmd->flags & (CMD_SCRIPT | CMD_UNDECLARED)) {
        rerun_prepare(p);
        return;
    }
    if (cmd->id == CMDID_exec) {
        bool all;
        n = multi_exec_keys(p->s, NULL, 0, &all);
        keys = dispatch_scratch_keys(w, n);
        n = multi_exec_keys(p->s, keys, n, &all);
    } else {
        n = dispatch_key_count(cmd, p->argc);
        keys = dispatch_scratch_keys(w, n);
        n = dispatch_keys(w, cmd, p->argc, p->argv, p->s->db, keys, n);
    }
    p->waits = mem_calloc(MEM_CLIENT, (size_t)(n ? n : 1) * sizeof(*p->waits));
    p->treq.waits = p->waits;
    p->treq.nwaits = n;
    for (int i = 0; i < n; i++) {
        p->waits[i].key = keys[i].key;
        p->waits[i].need = (uint8_t)dispatch_need(w, keys[i].access);
    }
}

/* ---- locks ---- */

static int shard_compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

bool dispatch_lock(struct worker *w, struct lockset *set, const struct call_key *keys, int nkeys, bool all)
{
    struct mem *m = w->tier->mem;
    struct dispatch_scratch *sc = w->cmd_worker->scratch;

    *set = (struct lockset){.all = all};
    if (all)
        return mem_lock_all_unless(m, &w->cmd->slow_scripts);
    if (nkeys > sc->locks_cap) {
        sc->locks_cap = nkeys;
        sc->locks.shard = mem_realloc(MEM_OTHER, sc->locks.shard, (size_t)nkeys * sizeof(uint32_t));
    }
    set->shard = sc->locks.shard;
    for (int i = 0; i < nkeys; i++)
        set->shard[i] = mem_shard_of(m, keys[i].key.hash)->index;
    if (nkeys > 1)
        qsort(set->shard, (size_t)nkeys, sizeof(uint32_t), shard_compare);
    for (int i = 0; i < nkeys; i++)
        if (i == 0 || set->shard[i] != set->shard[i - 1])
            set->shard[set->n++] = set->shard[i];
    for (int i = 0; i < set->n; i++) {
        if (LIKELY(mem_lock_unless(&m->shard[set->shard[i]], &w->cmd->slow_scripts)))
            continue;
        set->n = i;
        dispatch_unlock(w, set);
        return false;
    }
    return true;
}

void dispatch_unlock(struct worker *w, struct lockset *set)
{
    struct mem *m = w->tier->mem;

    if (set->all) {
        mem_unlock_all(m);
        return;
    }
    for (int i = set->n; i-- > 0;)
        mem_unlock(&m->shard[set->shard[i]]);
}

static inline enum status resolve_key(struct worker *w, struct mem_shard *shard, struct call_key *k,
                                      const struct tier_wait *wait)
{
    struct tier_found found;

    if (UNLIKELY(!mem_key_current(w->tier->mem, &k->key))) /* its database was flushed or swapped since */
        return ST_CANCELLED;
    enum status st = tier_resolve_locked(w, shard, &k->key, dispatch_need(w, k->access), wait, &found);
    if (UNLIKELY(st != ST_OK)) {
        k->block = found.block;
        return st;
    }
    k->obj = found.obj;
    k->on_disk = found.on_disk;
    k->kept = found.kept;
    return ST_OK;
}

enum status dispatch_resolve(struct worker *w, struct call_key *keys, int nkeys, const struct tier_wait *waits)
{
    for (int i = 0; i < nkeys; i++) {
        struct mem_shard *shard = mem_shard_of(w->tier->mem, keys[i].key.hash);
        enum status st = resolve_key(w, shard, &keys[i], waits ? &waits[i] : NULL);
        if (UNLIKELY(st != ST_OK))
            return st;
    }
    return ST_OK;
}

/* ---- running ---- */

static void stat_add64(_Atomic uint64_t *v, uint64_t n)
{
    atomic_store_explicit(v, atomic_load_explicit(v, memory_order_relaxed) + n, memory_order_relaxed);
}

static void account(struct call *c, int64_t us)
{
    struct cmd_stat *st = &c->w->cmd_worker->stat[c->cmd->id];

    stat_add64(&st->calls, 1);
    stat_add64(&st->usec, (uint64_t)us);
    if (UNLIKELY(c->failed))
        stat_add64(&st->failed, 1);
    if (LIKELY(c->w->conf->latency_tracking))
        stat_add64(&st->hist[stats_hist_bucket(us)], 1);
    stats_inc(c->w->stats, STAT_total_commands_processed);
    int64_t slow = c->w->conf->slowlog_log_slower_than;
    if (UNLIKELY(slow >= 0 && (us >= slow || c->parked != NULL)))
        slow_command(c, us);
    int64_t spike = c->w->conf->latency_monitor_threshold;
    if (UNLIKELY(spike > 0 && us >= spike * 1000))
        latency_add(c->w->cmd, c->cmd->flags & CMD_FAST ? "fast-command" : "command", us / 1000);
}

void dispatch_call(struct call *c)
{
    struct worker *w = c->w;
    /* In a batch the end of one request is the start of the next: a clock costs as much as a lookup. */
    int64_t start = LIKELY(w->mono_us != 0) ? w->mono_us : clock_mono_us();

    c->s->last_cmd = c->cmd;
    c->cmd->run(c);
    if (UNLIKELY(c->s->flags & SESSION_TRACKING))
        tracking_read(c);
    dispatch_ran(c, start);
    monitor_note(c);
    if (c->cmd->flags & CMD_WRITE)
        session_wrote(c->s, tier_sync_since(w));
}

void dispatch_ran(struct call *c, int64_t start_us)
{
    struct worker *w = c->w;
    int64_t end = clock_mono_us();

    if (LIKELY(c->parked == NULL)) {
        account(c, end - start_us);
    } else {
        c->parked->us += end - start_us;
        if (!c->suspended)
            account(c, c->parked->us);
    }
    if (LIKELY(w->mono_us != 0))
        w->mono_us = end;
}

void dispatch_completed(struct call *c)
{
    if (LIKELY(c->cmd != NULL)) /* only the upstream knows it */
        account(c, c->parked->us);
}

void dispatch_fault_error(struct call *c, enum status st)
{
    const char *text = c->parked ? c->parked->treq.error : "";

    switch (st) {
    case ST_BUSY: call_error(c, script_busy(c->w->cmd)); break;
    case ST_TIMEOUT: call_error(c, "UPSTREAMTIMEOUT the upstream did not answer in time"); break;
    case ST_BAD: /* its own words: LOADING, NOPERM, ... */
        call_errorf(c, "%s", text[0] ? text : "ERR the upstream refused the request");
        break;
    case ST_IO: call_error(c, "IOERR the disk tier could not be read"); break;
    default: call_error(c, "UPSTREAMDOWN the upstream is not reachable and no copy of the key may be served");
    }
}

/* Which argument is a value worth compressing, before any lock is taken; 0: none. */
static int value_arg(const struct command *cmd)
{
    switch (cmd->id) {
    case CMDID_set:
    case CMDID_setnx:
    case CMDID_getset: return 2;
    case CMDID_setex:
    case CMDID_psetex: return 3;
    default: return 0;
    }
}

static void pack_value(struct call *c)
{
    int arg = value_arg(c->cmd);

    if (arg == 0)
        return;
    c->packed = tier_pack(c->w, c->argv[arg]);
    c->packed_arg = arg;
}

static enum dispatch_rc call_failed(struct call *c, enum status st)
{
    if (st == ST_PENDING)
        return UNLIKELY(c->cmd->flags & CMD_NEAR_PART) && c->w->tier->has_upstream && !c->local ? near_missed(c)
                                                                                                : DISPATCH_FAULT;
    if (st == ST_WRONGTYPE && c->w->tier->has_upstream) /* not a string: the upstream's business */
        return forward_send(c, ROUTE_WRITE_LINK);
    dispatch_fault_error(c, st);
    return c->suspended ? DISPATCH_LATER : DISPATCH_DONE;
}

/* What became of a call whose keys were resolved, or could not be. No lock is held. */
static inline enum dispatch_rc call_ended(struct call *c, enum status st)
{
    if (UNLIKELY(c->packed != NULL)) {
        rcbuf_unref(c->packed);
        c->packed = NULL;
    }
    if (UNLIKELY(st != ST_OK))
        return call_failed(c, st);
    return UNLIKELY(c->suspended) ? DISPATCH_LATER : DISPATCH_DONE;
}

#define INLINE_KEYS 16 /* a command with more waits for what is on disk */

/* Its keys could not be resolved, and nothing is locked: try again? copy: it has one key. */
static bool resolve_again(struct call *c, enum status st, bool *tried, struct tier_copy *copy)
{
    struct worker *w = c->w;

    if (st != ST_PENDING || *tried || c->nkeys > INLINE_KEYS)
        return st == ST_CANCELLED;
    *tried = true;
    if (copy && c->keys[0].access == KEY_READ) {
        if (!tier_read_inline(w, &c->keys[0].key, c->keys[0].block, copy))
            return false;
    } else {
        for (int i = 0; i < c->nkeys; i++)
            if (!tier_fault_inline(w, &c->keys[i].key, dispatch_need(w, c->keys[i].access)))
                return false;
    }
    if (LIKELY(w->mono_us != 0)) /* this is not the time of the command that follows */
        w->mono_us = clock_mono_us();
    return true;
}

bool dispatch_resolve_again(struct call *c, enum status st, bool *tried)
{
    return resolve_again(c, st, tried, NULL);
}

static enum dispatch_rc run_on_keys(struct call *c)
{
    struct worker *w = c->w;
    const struct tier_wait *waits = c->parked ? c->parked->waits : NULL;
    int n = dispatch_key_count(c->cmd, c->argc);
    struct lockset set;
    bool tried = false;
    enum status st;

    c->keys = dispatch_scratch_keys(w, n);
    if (c->cmd->flags & CMD_WRITE)
        tier_group_begin(w);
    do {
        c->nkeys = n ? dispatch_keys(w, c->cmd, c->argc, c->argv, c->s->db, c->keys, n) : 0;
        if (UNLIKELY(!dispatch_lock(w, &set, c->keys, c->nkeys, c->cmd->flags & CMD_ALL_SHARDS))) {
            st = ST_BUSY;
            break;
        }
        st = dispatch_resolve(w, c->keys, c->nkeys, waits);
        if (LIKELY(st == ST_OK))
            break;
        dispatch_unlock(w, &set);
    } while (c->nkeys > 0 && resolve_again(c, st, &tried, NULL));
    if (LIKELY(st == ST_OK)) {
        dispatch_call(c);
        if (UNLIKELY(c->cmd->flags & CMD_ALL_SHARDS)) {
            watch_rehash(w);
            block_rehash(w);
        }
        block_serve(c, &set);
        dispatch_unlock(w, &set);
    }
    tier_group_end(w);
    c->local = c->nkeys > 0 && tier_key_is_local(w->tier, &c->keys[0].key);
    return call_ended(c, st);
}

/* Most commands name one key, at a fixed place. */
static bool has_one_key(const struct call *c)
{
    const struct command *cmd = c->cmd;

    return cmd->access != KEY_NONE && cmd->last == cmd->first && !cmd->find_keys && !(cmd->flags & CMD_ALL_SHARDS) &&
           cmd->id != CMDID_move && c->argc > cmd->first;
}

static inline void one_key_init(const struct call *c, struct call_key *k)
{
    const struct request *ahead = c->w->cmd_worker->ahead;
    const struct mem *m = c->w->tier->mem;
    unsigned db = (unsigned)c->s->db;
    struct slice name = c->argv[k->arg];

    if (UNLIKELY(c->w->conf->rules_local))
        db = tier_space_of(c->w, db, name);
    if (ahead && ahead->argv == c->argv && k->arg == 1 && ahead->key_inc != 0 &&
        ahead->key_inc == atomic_load_explicit(&m->db[db].incarnation, memory_order_relaxed))
        mem_key_init_hashed(db, ahead->key_inc, ahead->key_hash, name, &k->key);
    else
        mem_key_init(m, db, name, &k->key);
}

/* run_on_keys() without its loops. */
static enum dispatch_rc run_on_one_key(struct call *c)
{
    struct worker *w = c->w;
    const struct command *cmd = c->cmd;
    const struct tier_wait *waits = c->parked ? c->parked->waits : NULL;
    struct call_key k = {.access = cmd->find_access ? cmd->find_access(c->argc, c->argv) : cmd->access,
                         .arg = cmd->first};
    struct mem_shard *shard;
    struct tier_copy copy = {.obj = NULL};
    bool tried = false;
    enum status st;

    if (value_arg(cmd))
        pack_value(c);
    c->keys = &k;
    c->nkeys = 1;
    bool grouped = cmd->flags & CMD_WRITE && block_groups(w);
    if (grouped)
        tier_group_begin(w);
    do {
        one_key_init(c, &k);
        shard = mem_shard_of(w->tier->mem, k.key.hash);
        if (UNLIKELY(!mem_lock_unless(shard, &w->cmd->slow_scripts))) {
            st = ST_BUSY;
            break;
        }
        if (UNLIKELY(copy.obj != NULL) && tier_copy_is_current_locked(w, shard, &k.key, &copy)) {
            k.obj = copy.obj;
            st = ST_OK;
        } else {
            st = resolve_key(w, shard, &k, waits);
        }
        if (LIKELY(st == ST_OK))
            break;
        mem_unlock(shard);
    } while (resolve_again(c, st, &tried, &copy));
    if (LIKELY(st == ST_OK)) {
        dispatch_call(c);
        block_serve(c, &(struct lockset){.n = 1, .shard = &shard->index});
        mem_unlock(shard);
    }
    if (grouped)
        tier_group_end(w);
    if (UNLIKELY(copy.obj != NULL))
        object_free(copy.obj);
    c->keys = NULL;
    c->local = tier_key_is_local(w->tier, &k.key);
    return call_ended(c, st);
}

/* ---- checks before a command runs, in Redis's order ---- */

static void unknown_command(struct call *c)
{
    struct buf args;

    buf_init(&args, MEM_OTHER);
    for (int i = 1; i < c->argc && args.len < 128; i++) {
        size_t room = 128 - args.len;
        buf_printf(&args, "'%.*s' ", (int)(c->argv[i].len < room ? c->argv[i].len : room), c->argv[i].ptr);
    }
    size_t name = c->argv[0].len < 128 ? c->argv[0].len : 128;
    call_errorf(c, "ERR unknown command '%.*s', with args beginning with: %.*s", (int)name, c->argv[0].ptr,
                (int)args.len, args.len ? args.ptr : "");
    buf_deinit(&args);
}

static void unknown_subcommand(struct call *c)
{
    char upper[32];
    size_t n = strlen(c->cmd->name);

    for (size_t i = 0; i <= n && i < sizeof(upper); i++)
        upper[i] = c->cmd->name[i] >= 'a' && c->cmd->name[i] <= 'z' ? (char)(c->cmd->name[i] - 32) : c->cmd->name[i];
    int len = (int)(c->argv[1].len < 128 ? c->argv[1].len : 128);
    call_errorf(c, "ERR unknown subcommand '%.*s'. Try %s HELP.", len, c->argv[1].ptr, upper);
}

/* Refuses a command before it runs. EXEC refused is the end of its transaction. */
void dispatch_refuse(struct call *c, const char *text)
{
    if (LIKELY(!c->cmd || c->cmd->id != CMDID_exec)) {
        call_error(c, text);
        return;
    }
    call_errorf(c, "EXECABORT Transaction discarded because of: %s", text + (strncmp(text, "ERR ", 4) == 0 ? 4 : 0));
    multi_discard(c->s);
}

static void refuse_unknown(struct call *c)
{
    if (!c->cmd) {
        unknown_command(c);
    } else if (c->cmd->flags & CMD_CONTAINER && c->argc > 1) {
        unknown_subcommand(c);
    } else {
        char text[128];
        snprintf(text, sizeof(text), "ERR wrong number of arguments for '%s' command", c->cmd->full);
        dispatch_refuse(c, text);
    }
}

/* false: an error was replied. */
static inline bool known(struct call *c)
{
    const struct command *cmd = c->cmd;

    if (LIKELY(cmd != NULL && !(cmd->flags & CMD_CONTAINER && c->argc > 1) && command_arity_fits(cmd, c->argc)))
        return true;
    refuse_unknown(c);
    return false;
}

static bool allowed(struct call *c)
{
    struct session *s = c->s;

    if (UNLIKELY(!(s->flags & SESSION_AUTHENTICATED)) && !(c->cmd && c->cmd->flags & CMD_NO_AUTH) && !s->auth &&
        !acl_default_open(c->w->cmd->acl)) {
        dispatch_refuse(c, "NOAUTH Authentication required.");
        return false;
    }
    if (UNLIKELY(s->flags & SESSION_MULTI) && c->cmd && c->cmd->flags & CMD_NO_MULTI) {
        call_error(c, "ERR Command not allowed inside a transaction");
        return false;
    }
    if (UNLIKELY(!acl_allows(c)))
        return false;
    if (UNLIKELY(!c->cmd))
        return true;
    if (UNLIKELY(s->pubsub != NULL || s->pin != NULL) && !(pubsub_allows(s, c->cmd) && forward_allows(s, c->cmd))) {
        pubsub_refuse(c);
        return false;
    }
    return true;
}

static bool runs_in_multi(const struct command *cmd)
{
    switch (cmd->id) {
    case CMDID_exec:
    case CMDID_discard:
    case CMDID_multi:
    case CMDID_watch:
    case CMDID_quit:
    case CMDID_reset: return true;
    default: return false;
    }
}

#define PAUSE_STEP_MS 20 /* how often a paused request looks whether CLIENT UNPAUSE came */

static int64_t paused_ms(const struct call *c)
{
    const struct cmd *cmd = c->w->cmd;
    int64_t until = atomic_load_explicit(&cmd->pause_until_ms, memory_order_relaxed);

    if (LIKELY(until == 0) || until <= c->now_ms)
        return 0;
    if (c->cmd && (c->cmd->id == CMDID_client_unpause || c->cmd->id == CMDID_client_pause))
        return 0;
    bool writes = !c->cmd || command_may_replicate(c->cmd) || c->cmd->flags & CMD_SCRIPT || c->cmd->id == CMDID_exec;
    if (!atomic_load(&cmd->pause_all) && !writes)
        return 0;
    return until - c->now_ms < PAUSE_STEP_MS ? until - c->now_ms : PAUSE_STEP_MS;
}

/* ---- the way of a request ---- */

void dispatch_rejected(const struct call *c)
{
    if (c->cmd)
        stat_add64(&c->w->cmd_worker->stat[c->cmd->id].rejected, 1);
}

static enum dispatch_rc reject(struct call *c)
{
    multi_abort(c->s);
    forward_abort(c->s);
    dispatch_rejected(c);
    return DISPATCH_DONE;
}

/* appendfsync always, and what would be acknowledged cannot be written. */
static enum dispatch_rc disk_refuses(struct call *c)
{
    char problem[256], text[320];

    disk_problem(c->w->tier->disk, problem);
    snprintf(text, sizeof(text), "MISCONF Errors writing to the AOF file: %s", problem);
    dispatch_refuse(c, text);
    return reject(c);
}

/* While a script takes too long, only what needs no key. */
static bool runs_while_busy(const struct command *cmd)
{
    switch (cmd->id) {
    case CMDID_discard: /* they let go of watched keys, under locks */
    case CMDID_unwatch:
    case CMDID_watch:
    case CMDID_reset: return false;
    default: return cmd->flags & CMD_ALLOW_BUSY && cmd->access == KEY_NONE;
    }
}

static enum status make_room(struct worker *w)
{
    enum status st = tier_make_room(w);

    if (LIKELY(w->mono_us != 0)) /* evicting is not the time of the command that follows */
        w->mono_us = clock_mono_us();
    return st;
}

/* What it found out that it needs is pinned, and may be more than there is room for: it would be let go while the request
 * waits for room, and looked for again for ever. */
static bool holds_found_keys(const struct call *c)
{
    return c->parked && c->parked->more && c->parked->state == PARKED_READY;
}

static enum dispatch_rc process(struct call *c)
{
    struct session *s = c->s;
    struct tier *t = c->w->tier;

    c->cmd = dispatch_find(c->argc, c->argv);
    /* What is unknown here an upstream may know. */
    if (UNLIKELY(!t->has_upstream || !((s->flags & SESSION_AUTHENTICATED) || s->auth)) && UNLIKELY(!known(c)))
        return reject(c);
    if (UNLIKELY(!allowed(c)))
        return reject(c);
    if (UNLIKELY(atomic_load_explicit(&c->w->cmd->slow_scripts, memory_order_relaxed) != 0) && c->cmd &&
        !runs_while_busy(c->cmd)) {
        dispatch_refuse(c, script_busy(c->w->cmd));
        return reject(c);
    }
    int64_t pause = paused_ms(c);
    if (UNLIKELY(pause > 0))
        return dispatch_wait_again(c, pause);
    enum local_route local = t->has_upstream ? LOCAL_NO : LOCAL_HERE;
    if (UNLIKELY(t->has_upstream) && UNLIKELY(c->w->conf->rules_local || s->multi)) {
        local = local_route(c);
        if (local == LOCAL_DONE)
            return reject(c);
        if (local == LOCAL_LEAVE)
            return forward_multi(c);
        if (local == LOCAL_HERE && !known(c))
            return reject(c);
    }
    if (UNLIKELY(local != LOCAL_HERE)) {
        enum dispatch_rc rc;
        if (UNLIKELY(s->auth != NULL) && auth_upstream_takes(c, &rc))
            return rc;
        enum forward_route route = forward_route(s, c->cmd, c->argc, c->argv);
        if (route == ROUTE_WRITE_LINK || route == ROUTE_PIN)
            return forward_send(c, route);
        if (!known(c))
            return reject(c);
        if (route == ROUTE_PART && c->parked && c->parked->through)
            return forward_send(c, ROUTE_WRITE_LINK);
    } else if (c->cmd->flags & (CMD_DENYOOM | CMD_SCRIPT) || c->cmd->id == CMDID_exec) {
        enum status st = LIKELY(tier_has_room(c->w)) ? ST_OK : make_room(c->w);
        if (UNLIKELY(st == ST_PENDING) && !(s->flags & SESSION_MULTI) && !holds_found_keys(c))
            return dispatch_wait_again(c, 0);
        c->oom = st == ST_FULL;
        if (UNLIKELY(c->oom && c->cmd->id != CMDID_exec && !(c->cmd->flags & CMD_SCRIPT))) {
            call_error(c, "OOM command not allowed when used memory > 'maxmemory'.");
            return reject(c);
        }
    }
    if (c->cmd->flags & (CMD_WRITE | CMD_SCRIPT) || c->cmd->id == CMDID_exec) {
        enum status st = tier_may_write(c->w);
        c->unwritable = st == ST_IO;
        if (UNLIKELY(c->unwritable) && !(c->cmd->flags & CMD_SCRIPT))
            return disk_refuses(c);
        if (UNLIKELY(st == ST_PENDING) && (!(s->flags & SESSION_MULTI) || c->cmd->id == CMDID_exec) &&
            !holds_found_keys(c))
            return dispatch_wait_again(c, 0);
    }
    if (UNLIKELY(s->flags & SESSION_MULTI) && !runs_in_multi(c->cmd)) {
        multi_queue(c);
        return DISPATCH_DONE;
    }
    if (UNLIKELY(c->cmd->id == CMDID_exec))
        return multi_exec(c);
    if (c->cmd->flags & CMD_SCRIPT)
        return script_eval(c);
    if (rerun_wants_all(c->cmd, c->argc, c->argv))
        return rerun_run(c);
    return LIKELY(has_one_key(c)) ? run_on_one_key(c) : run_on_keys(c);
}

enum dispatch_rc dispatch_run(struct session *s, int argc, const struct slice *argv, struct parked *p)
{
    struct call c = {.w = s->w, .s = s, .argc = argc, .argv = argv, .now_ms = s->w->now_ms, .parked = p};
    struct chain withheld;
    bool withhold = s->flags & (SESSION_REPLY_OFF | SESSION_REPLY_SKIP);

    if (argc == 0)
        return DISPATCH_DONE;
    if (UNLIKELY(!s->w->cmd_worker->scratch))
        dispatch_scratch_keys(s->w, 16);
    /* Sent ahead of its turn, it must not answer ahead of it. */
    struct chain *out = UNLIKELY(p && s->queue.next != &p->link) ? &p->reply : &s->out;
    c.r = (struct reply){out, s->proto};
    if (UNLIKELY(s->flags & SESSION_UNWATCH))
        multi_unwatch(s);
    if (UNLIKELY(withhold)) {
        chain_init(&withheld);
        c.r.out = &withheld;
    }
    bool tracking = s->flags & SESSION_TRACKING;
    if (UNLIKELY(tracking))
        tracking_begin(s);
    enum dispatch_rc rc = process(&c);
    if (UNLIKELY(withhold)) {
        if (rc == DISPATCH_DONE && !(s->flags & (SESSION_REPLY_OFF | SESSION_REPLY_SKIP)))
            chain_move(out, &withheld); /* CLIENT REPLY ON answers */
        chain_deinit(&withheld);
    }
    if (LIKELY(rc == DISPATCH_DONE) && UNLIKELY(s->flags & (SESSION_REPLY_SKIP | SESSION_SKIP_NEXT))) {
        s->flags &= ~(uint32_t)SESSION_REPLY_SKIP;
        if (s->flags & SESSION_SKIP_NEXT)
            s->flags = (s->flags & ~(uint32_t)SESSION_SKIP_NEXT) | SESSION_REPLY_SKIP;
    }
    if (UNLIKELY(tracking || s->flags & SESSION_TRACKING)) {
        tracking_end(s);
        if (rc == DISPATCH_DONE)
            tracking_answered(s, c.cmd);
    }
    return rc;
}
