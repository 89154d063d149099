/* EVAL and its kin, SCRIPT. Scripts run as transactions do: the shards of their keys are locked before they start, and
 * what they call runs on them. Whose keys are not all in KEYS runs with every shard locked; if then a key is not in
 * memory, and nothing was written yet, it is stopped, waits for the key without locks, and runs again from its start. */
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "tiercel/log.h"
#include "tiercel/num.h"
#include "tiercel/sha1.h"
#include "tiercel/stats.h"

#include "cmd/script_priv.h"

#define RERUNS_MAX 16  /* from then on what is missing is read from disk at once */
#define SERVE_US 10000 /* how often a script that takes too long lets others in */

static const char no_script[] = "NOSCRIPT No matching script. Please use EVAL.";

/* ---- arguments ---- */

static bool by_sha(const struct command *cmd)
{
    return cmd->id == CMDID_evalsha || cmd->id == CMDID_evalsha_ro;
}

static bool is_read_only(const struct command *cmd)
{
    return cmd->id == CMDID_eval_ro || cmd->id == CMDID_evalsha_ro;
}

/* NULL: the error was replied. */
static struct compiled *prepare(struct script_worker *sw, struct call *c, int *nkeys)
{
    struct compiled *k;
    int64_t n;

    if (by_sha(c->cmd) && c->argv[1].len != 40) {
        call_error(c, no_script);
        return NULL;
    }
    if (!call_arg_i64(c, 2, &n, NULL))
        return NULL;
    if (n > c->argc - 3) {
        call_error(c, "ERR Number of keys can't be greater than number of args");
        return NULL;
    }
    if (n < 0) {
        call_error(c, "ERR Number of keys can't be negative");
        return NULL;
    }
    *nkeys = (int)n;
    if (by_sha(c->cmd)) {
        k = script_of_sha(sw, c, c->argv[1]);
        if (!k && !c->failed)
            call_error(c, no_script);
    } else {
        k = script_of_body(sw, c, c->argv[1]);
    }
    if (!k)
        return NULL;
    unsigned flags = k->script->flags;
    if (flags & SCRIPT_HAS_FLAGS && !(flags & SCRIPT_NO_WRITES)) {
        if (is_read_only(c->cmd)) {
            call_error(c, "ERR Can not execute a script with write flag using *_ro command.");
            return NULL;
        }
        if (c->oom && !(flags & SCRIPT_ALLOW_OOM)) {
            call_error(c, c->in_exec ? "OOM allow-oom flag is not set on the script, can not run it when used memory > "
                                       "'maxmemory'"
                                     : "OOM command not allowed when used memory > 'maxmemory'.");
            return NULL;
        }
    }
    return k;
}

const struct call *script_caller(const struct worker *w)
{
    const struct script_worker *sw = atomic_load_explicit(&w->cmd_worker->script, memory_order_relaxed);

    return sw && sw->run ? sw->run->c : NULL;
}

bool script_wants_all(struct worker *w, const struct command *cmd, int argc, const struct slice *argv)
{
    char sha[41];
    struct script *s = NULL;

    if (argc < 3)
        return false;
    if (by_sha(cmd)) {
        if (!script_sha_lower(argv[1], sha))
            return false;
    } else {
        sha1_hex(argv[1], sha);
    }
    s = scripts_find(w->cmd->scripts, sha);
    if (!s)
        return !by_sha(cmd) && !script_is_declared(argv[1]);
    bool world = s->world;
    script_unref(s);
    return world;
}

/* ---- a run ---- */

static void push_strings(lua_State *L, const char *name, const struct slice *argv, int n)
{
    lua_pushstring(L, name);
    lua_createtable(L, n, 0);
    for (int i = 0; i < n; i++) {
        lua_pushlstring(L, argv[i].ptr, argv[i].len);
        lua_rawseti(L, -2, i + 1);
    }
    lua_rawset(L, STACK_GLOBALS);
}

/* The field of the error on top, which stays there: its text, or NULL. Valid as long as the error. */
static const char *error_field(lua_State *L, const char *name)
{
    lua_pushstring(L, name);
    lua_rawget(L, -2);
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
    lua_pop(L, 1); /* the table keeps it */
    return text;
}

static void reply_error_of_run(struct script_worker *sw, lua_State *L, struct call *c)
{
    struct buf text;
    bool counted = false;

    buf_init(&text, MEM_OTHER);
    if (lua_istable(L, -1)) {
        const char *err = error_field(L, "err"), *source = error_field(L, "source");
        lua_pushliteral(L, "line");
        lua_rawget(L, -2);
        int line = (int)lua_tointeger(L, -1);
        lua_pop(L, 1);
        lua_pushliteral(L, "ignore_error_stats_update");
        lua_rawget(L, -2);
        counted = lua_toboolean(L, -1);
        lua_pop(L, 1);
        buf_printf(&text, "%s script: %s", err ? err : "ERR unknown error", sw->run->script->sha);
        if (source)
            buf_printf(&text, ", on %s:%d.", source, line);
    } else {
        const char *err = lua_tostring(L, -1);
        buf_printf(&text, "ERR %s script: %s", err ? err : "unknown error", sw->run->script->sha);
    }
    buf_byte(&text, '\0');
    if (counted) {
        c->failed = true;
        reply_error(&c->r, text.ptr);
    } else {
        call_error(c, text.ptr);
    }
    buf_deinit(&text);
}

bool script_over_time(struct script_worker *sw)
{
    struct worker *w = sw->w;
    int64_t limit = w->conf->busy_reply_threshold;

    if (!atomic_load_explicit(&sw->slow, memory_order_relaxed)) {
        if (limit <= 0 || clock_mono_us() - sw->run->begin_us < limit * 1000)
            return false;
        atomic_store(&sw->slow, true);
        atomic_fetch_add(&w->cmd->slow_scripts, 1);
        log_warning(
            "script",
            "slow script: still running after %lld ms; SCRIPT KILL ends it if it has not written. Its name is %s",
            (long long)(clock_mono_us() - sw->run->begin_us) / 1000, sw->run->script->sha);
    }
    int64_t now = clock_mono_us();
    if (w->cmd->ops.serve_while_busy && now - sw->served_us >= SERVE_US) {
        sw->served_us = now;
        sw->strict = false;
        w->cmd->ops.serve_while_busy(w);
        sw->strict = true;
    }
    return atomic_load(&sw->die) || (atomic_load(&sw->kill) && !atomic_load(&sw->wrote));
}

static void collect(struct script_worker *sw)
{
    if (sw->bytes > sw->collect) {
        push_strings(sw->lua, "KEYS", NULL, 0);
        push_strings(sw->lua, "ARGV", NULL, 0);
        lua_gc(sw->lua, LUA_GCCOLLECT, 0);
        sw->collect = sw->bytes * 2 > SCRIPT_COLLECT_BYTES ? sw->bytes * 2 : SCRIPT_COLLECT_BYTES;
    }
    atomic_store_explicit(&sw->bytes_seen, sw->bytes, memory_order_relaxed);
}

/* All that it needs is locked. Replies, unless it is to run again: run->abort. */
static void run_locked(struct script_worker *sw, struct compiled *k, struct call *c, struct script_run *run, int nkeys)
{
    struct session *s = c->s;
    lua_State *L = sw->lua;
    int db = s->db;

    run->c = c;
    run->script = k->script;
    run->main = L;
    run->proto = 2;
    run->abort = ABORT_NOT;
    run->read_only = is_read_only(c->cmd) || k->script->flags & SCRIPT_NO_WRITES;
    run->begin_us = LIKELY(sw->w->mono_us != 0) ? sw->w->mono_us : clock_mono_us();
    sw->run = run;
    monitor_script(c);
    atomic_store_explicit(&sw->wrote, false, memory_order_relaxed);
    atomic_store_explicit(&sw->kill, false, memory_order_relaxed);
    script_lua_begin(sw);
    push_strings(L, "KEYS", c->argv + 3, nkeys);
    push_strings(L, "ARGV", c->argv + 3 + nkeys, c->argc - 3 - nkeys);
    lua_rawgeti(L, LUA_REGISTRYINDEX, k->ref);
    sw->strict = true;
    int rc = lua_pcall(L, 0, 1, STACK_ON_ERROR);
    sw->strict = false;
    s->db = db;
    s->last_cmd = c->cmd;
    if (UNLIKELY(run->abort != ABORT_NOT))
        script_lua_rearm(sw);
    if (run->abort == ABORT_NOT || run->abort == ABORT_KILLED) {
        if (LIKELY(rc == 0))
            script_reply_value(sw, L, &c->r);
        else
            reply_error_of_run(sw, L, c);
    }
    lua_settop(L, STACK_GLOBALS);
    if (UNLIKELY(sw->out.head != NULL))
        chain_deinit(&sw->out);
    if (UNLIKELY(atomic_load_explicit(&sw->slow, memory_order_relaxed))) {
        atomic_store(&sw->slow, false);
        atomic_fetch_sub(&sw->w->cmd->slow_scripts, 1);
    }
    sw->run = NULL;
    collect(sw);
}

/* ---- EVAL on its own ---- */

static struct script_worker *missing_noted(struct worker *w)
{
    struct script_worker *sw = atomic_load_explicit(&w->cmd_worker->script, memory_order_relaxed);
    return sw && sw->missing.len > 0 ? sw : NULL;
}

struct noted { /* of a key that is waited for; its name follows */
    uint32_t len;
    uint16_t db;
};

static void note_missing(struct script_worker *sw, struct slice name, int db)
{
    struct noted note = {(uint32_t)name.len, (uint16_t)db};

    sw->missing.len = 0;
    buf_append(&sw->missing, &note, sizeof(note));
    buf_slice_append(&sw->missing, name);
}

static int count_noted(const struct buf *b)
{
    int n = 0;

    for (size_t at = 0; b && at < b->len; n++) {
        struct noted note;
        memcpy(&note, b->ptr + at, sizeof(note));
        at += sizeof(note) + note.len;
    }
    return n;
}

void script_prepare(struct parked *p)
{
    struct worker *w = p->s->w;
    struct script_worker *sw = missing_noted(w);
    const struct command *cmd = dispatch_find(p->argc, p->argv);
    int n = dispatch_key_count(cmd, p->argc), more;

    if (sw) {
        if (!p->more) {
            p->more = mem_calloc(MEM_CLIENT, sizeof(*p->more));
            buf_init(p->more, MEM_CLIENT);
        }
        buf_slice_append(p->more, buf_slice(&sw->missing));
        sw->missing.len = 0;
    }
    struct call_key *keys = dispatch_scratch_keys(w, n);
    n = dispatch_keys(w, cmd, p->argc, p->argv, p->s->db, keys, n);
    more = count_noted(p->more);
    p->waits = mem_calloc(MEM_CLIENT, (size_t)(n + more + 1) * sizeof(*p->waits));
    p->treq.waits = p->waits;
    p->treq.nwaits = n + more;
    for (int i = 0; i < n; i++)
        p->waits[i].key = keys[i].key;
    size_t at = 0;
    for (int i = n; i < n + more; i++) {
        struct noted note;
        memcpy(&note, p->more->ptr + at, sizeof(note));
        at += sizeof(note);
        mem_key_init(w->tier->mem, note.db, SLICE(p->more->ptr + at, note.len), &p->waits[i].key);
        at += note.len;
    }
    for (int i = 0; i < n + more; i++)
        p->waits[i].need = TIER_VALUE;
}

void script_forget(struct parked *p)
{
    if (!p->more)
        return;
    buf_deinit(p->more);
    mem_free(MEM_CLIENT, p->more);
}

/* What the keys beyond KEYS came to. */
static enum status waits_status(const struct parked *p, int nkeys)
{
    for (int i = nkeys; p && p->waits && i < p->treq.nwaits; i++)
        if (p->waits[i].st != ST_OK && p->waits[i].st != ST_NOT_FOUND)
            return p->waits[i].st;
    return ST_OK;
}

/* The script was stopped. ST_OK: it can run again now; ST_PENDING: it has to wait. */
static enum status rerun(struct script_worker *sw, struct script_run *run, struct compiled *k, bool *world, int *reruns)
{
    struct key key;

    if (run->abort == ABORT_WORLD) {
        *world = true;
        return ST_OK;
    }
    (void)k;
    if (++*reruns >= RERUNS_MAX) {
        run->at_once = true;
        return ST_OK;
    }
    struct slice name = buf_slice(&run->missing);
    mem_key_init(sw->w->tier->mem, (unsigned)run->missing_db, name, &key);
    if (tier_fault_inline(sw->w, &key, TIER_VALUE))
        return ST_OK;
    note_missing(sw, name, run->missing_db);
    return ST_PENDING;
}

/* Locks and runs, until it has run to its end. */
static enum status eval_locked(struct script_worker *sw, struct compiled *k, struct call *c, int nkeys)
{
    struct worker *w = c->w;
    const struct tier_wait *waits = c->parked ? c->parked->waits : NULL;
    struct script_run run = {.oom = c->oom, .may_write = c->unwritable ? ST_IO : ST_OK};
    bool tried = false, world = k->script->world;
    int reruns = c->parked ? c->parked->faults : 0;
    struct lockset set;
    enum status st;

    buf_init(&run.missing, MEM_OTHER);
    run.at_once = reruns >= RERUNS_MAX;
    c->keys = dispatch_scratch_keys(w, nkeys);
    do {
        c->nkeys = nkeys ? dispatch_keys(w, c->cmd, c->argc, c->argv, c->s->db, c->keys, nkeys) : 0;
        if (UNLIKELY(!dispatch_lock(w, &set, c->keys, c->nkeys, world))) {
            st = ST_BUSY;
            break;
        }
        st = dispatch_resolve(w, c->keys, c->nkeys, waits);
        if (LIKELY(st == ST_OK))
            st = waits_status(c->parked, c->nkeys);
        if (UNLIKELY(st != ST_OK)) {
            dispatch_unlock(w, &set);
            if (c->nkeys > 0 && dispatch_resolve_again(c, st, &tried))
                continue;
            break;
        }
        run.locks = &set;
        run_locked(sw, k, c, &run, nkeys);
        block_serve(c, &set);
        dispatch_unlock(w, &set);
        if (LIKELY(run.abort == ABORT_NOT || run.abort == ABORT_KILLED))
            break;
        st = rerun(sw, &run, k, &world, &reruns);
    } while (st != ST_PENDING);
    buf_deinit(&run.missing);
    return st;
}

enum dispatch_rc script_eval(struct call *c)
{
    struct worker *w = c->w;
    int64_t start = LIKELY(w->mono_us != 0) ? w->mono_us : clock_mono_us();
    struct script_worker *sw = script_worker(w);
    int nkeys;
    struct compiled *k = prepare(sw, c, &nkeys);

    if (LIKELY(k != NULL)) {
        bool writes = !is_read_only(c->cmd) && !(k->script->flags & SCRIPT_NO_WRITES);
        if (writes || block_groups(w))
            tier_group_begin(w);
        enum status st = eval_locked(sw, k, c, nkeys);
        tier_group_end(w);
        if (st == ST_PENDING)
            return DISPATCH_FAULT;
        if (UNLIKELY(st != ST_OK))
            dispatch_fault_error(c, st);
    }
    dispatch_ran(c, start);
    return DISPATCH_DONE;
}

/* ---- EVAL within EXEC, which has the locks ---- */

static void eval_in_exec(struct call *c)
{
    struct script_worker *sw = script_worker(c->w);
    int nkeys;
    struct compiled *k = prepare(sw, c, &nkeys);
    struct script_run run = {
        .oom = c->oom, .may_write = c->unwritable ? ST_IO : ST_OK, .at_once = true, .locks = c->w->cmd_worker->locks};

    if (k)
        run_locked(sw, k, c, &run, nkeys);
}

void cmd_eval(struct call *c)
{
    eval_in_exec(c);
}

void cmd_evalsha(struct call *c)
{
    eval_in_exec(c);
}

void cmd_eval_ro(struct call *c)
{
    eval_in_exec(c);
}

void cmd_evalsha_ro(struct call *c)
{
    eval_in_exec(c);
}

int cmd_eval_keys(int argc, const struct slice *argv, int *pos, int max)
{
    int64_t n;

    if (argc < 3 || !num_parse_i64(argv[2], &n) || n < 0 || n > argc - 3 || n > max)
        return -1;
    for (int i = 0; i < (int)n; i++)
        pos[i] = 3 + i;
    return (int)n;
}

/* ---- SCRIPT ---- */

void cmd_script_load(struct call *c)
{
    struct script_worker *sw = script_worker(c->w);
    struct compiled *k = script_of_body(sw, c, c->argv[2]);

    if (!k)
        return;
    scripts_add(c->w->cmd->scripts, k->script); /* it may have been displaced there */
    reply_bulk_str(&c->r, k->script->sha);
}

void cmd_script_exists(struct call *c)
{
    char sha[41];

    reply_array(&c->r, c->argc - 2);
    for (int i = 2; i < c->argc; i++) {
        struct script *s = script_sha_lower(c->argv[i], sha) ? scripts_find(c->w->cmd->scripts, sha) : NULL;
        reply_int(&c->r, s != NULL);
        if (s)
            script_unref(s);
    }
}

void cmd_script_flush(struct call *c)
{
    if (c->argc > 3 || (c->argc == 3 && !call_arg_is(c, 2, "sync") && !call_arg_is(c, 2, "async"))) {
        call_error(c, "ERR SCRIPT FLUSH only support SYNC|ASYNC option");
        return;
    }
    scripts_flush(c->w->cmd->scripts);
    reply_simple(&c->r, "OK");
}

enum script_kill script_kill(const struct cmd *cmd, bool whatever)
{
    bool slow = false, written = false;

    for (int i = 0; i < cmd->nworkers; i++) {
        struct script_worker *sw = atomic_load(&cmd->workers[i]->cmd_worker->script);
        if (!sw)
            continue;
        if (whatever)
            atomic_store(&sw->die, true);
        if (!atomic_load(&sw->slow))
            continue;
        slow = true;
        if (atomic_load(&sw->wrote))
            written = true;
        else
            atomic_store(&sw->kill, true);
    }
    return !slow ? SCRIPT_KILL_NONE : written ? SCRIPT_KILL_WRITTEN : SCRIPT_KILL_DONE;
}

void cmd_script_kill(struct call *c)
{
    switch (script_kill(c->w->cmd, false)) {
    case SCRIPT_KILL_NONE: call_error(c, "NOTBUSY No scripts in execution right now."); break;
    case SCRIPT_KILL_WRITTEN:
        call_error(c,
                   "UNKILLABLE Sorry the script already executed write commands against the dataset. You can either "
                   "wait the script termination or kill the server in a hard way using the SHUTDOWN NOSAVE command.");
        break;
    case SCRIPT_KILL_DONE: reply_simple(&c->r, "OK"); break;
    }
}

bool session_feed_busy(struct session *s, const struct request *req)
{
    struct worker *w = s->w;
    struct call c = {.w = w, .s = s, .argc = req->argc, .argv = req->argv, .now_ms = w->now_ms};
    bool known = req->argc > 0 && (c.cmd = dispatch_find(req->argc, req->argv)) != NULL;

    if (req->argc == 0 || s->flags & (SESSION_REPLY_OFF | SESSION_REPLY_SKIP | SESSION_BLOCKED) ||
        !list_empty(&s->queue))
        return false;
    c.r = (struct reply){&s->out, s->proto};
    if (known && s->flags & SESSION_AUTHENTICATED && !(s->flags & SESSION_MULTI) &&
        ((c.cmd->id == CMDID_script_kill && req->argc == 2) || c.cmd->id == CMDID_shutdown)) {
        c.cmd->run(&c);
    } else if (known && c.cmd->id == CMDID_auth && req->argc >= 2) {
        c.cmd->run(&c);
    } else {
        call_error(&c, s->flags & SESSION_AUTHENTICATED ? SCRIPT_BUSY : "NOAUTH Authentication required.");
        multi_abort(s);
    }
    return true;
}

/* The debugger steps through a script while the server waits: not here. */
void cmd_script_debug(struct call *c)
{
    if (call_arg_is(c, 2, "no"))
        reply_simple(&c->r, "OK");
    else if (call_arg_is(c, 2, "yes") || call_arg_is(c, 2, "sync"))
        call_error(c, "ERR the script debugger is not available");
    else
        call_error(c, "ERR Use SCRIPT DEBUG YES/SYNC/NO");
}

void cmd_script_help(struct call *c)
{
    cmd_container_help(c);
}
