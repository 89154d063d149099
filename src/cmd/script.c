/* EVAL and its kin, FCALL, SCRIPT. Scripts run as transactions do: the shards of their keys are locked before they start, and
 * what they call runs on them. Whose keys are not all in KEYS runs with every shard locked; if then a key is not in
 * memory, and nothing was written yet, it is stopped, waits for the key without locks, and runs again from its start. */
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "tiercel/log.h"
#include "tiercel/num.h"
#include "tiercel/digest.h"
#include "tiercel/stats.h"

#include "cmd/script_priv.h"

#define SERVE_US 10000 /* how often a script that takes too long lets others in */

static const char no_script[] = "NOSCRIPT No matching script. Please use EVAL.";

/* ---- arguments ---- */

static bool by_sha(const struct command *cmd)
{
    return cmd->id == CMDID_evalsha || cmd->id == CMDID_evalsha_ro;
}

static bool is_read_only(const struct command *cmd)
{
    return cmd->id == CMDID_eval_ro || cmd->id == CMDID_evalsha_ro || cmd->id == CMDID_fcall_ro;
}

static bool is_function(const struct command *cmd)
{
    return cmd->id == CMDID_fcall || cmd->id == CMDID_fcall_ro;
}

bool script_flags_allow(struct call *c, unsigned flags)
{
    if (!(flags & SCRIPT_HAS_FLAGS) || flags & SCRIPT_NO_WRITES)
        return true;
    if (is_read_only(c->cmd)) {
        call_error(c, "ERR Can not execute a script with write flag using *_ro command.");
        return false;
    }
    if (c->oom && !(flags & SCRIPT_ALLOW_OOM)) {
        call_error(c, c->in_exec ? "OOM allow-oom flag is not set on the script, can not run it when used memory > "
                                   "'maxmemory'"
                                 : "OOM command not allowed when used memory > 'maxmemory'.");
        return false;
    }
    return true;
}

bool script_arg_keys(struct call *c, const char *err, int64_t *n)
{
    if (!call_arg_i64(c, 2, n, err))
        return false;
    if (*n > c->argc - 3)
        call_error(c, "ERR Number of keys can't be greater than number of args");
    else if (*n < 0)
        call_error(c, "ERR Number of keys can't be negative");
    else
        return true;
    return false;
}

/* false: the error was replied. */
static bool prepare(struct script_worker *sw, struct call *c, struct script_target *t, int *nkeys)
{
    struct compiled *k;
    int64_t n;

    if (by_sha(c->cmd) && c->argv[1].len != 40) {
        call_error(c, no_script);
        return false;
    }
    if (!script_arg_keys(c, NULL, &n))
        return false;
    *nkeys = (int)n;
    if (by_sha(c->cmd)) {
        k = script_of_sha(sw, c, c->argv[1]);
        if (!k && !c->failed)
            call_error(c, no_script);
    } else {
        k = script_of_body(sw, c, c->argv[1]);
    }
    if (!k)
        return false;
    *t = (struct script_target){k->script->sha, k->script->flags, k->script->world, k->ref};
    return script_flags_allow(c, t->flags);
}

const struct call *script_caller(const struct worker *w)
{
    const struct script_worker *sw = atomic_load_explicit(&w->cmd_worker->script, memory_order_relaxed);

    if (!sw || !sw->run)
        sw = atomic_load_explicit(&w->cmd_worker->library, memory_order_relaxed);
    return sw && sw->run ? sw->run->c : NULL;
}

bool script_wants_all(struct worker *w, const struct command *cmd, int argc, const struct slice *argv)
{
    char sha[41];
    struct script *s = NULL;

    if (is_function(cmd)) /* what it is to be by then nobody knows: it may be loaded anew meanwhile */
        return true;
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

static void push_strings(lua_State *L, const struct slice *argv, int n)
{
    lua_createtable(L, n, 0);
    for (int i = 0; i < n; i++) {
        lua_pushlstring(L, argv[i].ptr, argv[i].len);
        lua_rawseti(L, -2, i + 1);
    }
}

static void set_strings(lua_State *L, const char *name, const struct slice *argv, int n)
{
    lua_pushstring(L, name);
    push_strings(L, argv, n);
    lua_rawset(L, STACK_GLOBALS);
}

/* The function, and what it is called with: a script finds that in globals. Returns how many arguments. */
static int push_target(struct script_worker *sw, const struct script_target *t, const struct call *c, int nkeys)
{
    const struct slice *keys = c->argv + 3, *args = keys + nkeys;
    lua_State *L = sw->lua;
    int nargs = c->argc - 3 - nkeys;

    lua_rawgeti(L, LUA_REGISTRYINDEX, t->ref);
    if (sw->functions) {
        lua_pushstring(L, t->name);
        lua_rawget(L, -2);
        lua_remove(L, -2);
        push_strings(L, keys, nkeys);
        push_strings(L, args, nargs);
        return 2;
    }
    set_strings(L, "KEYS", keys, nkeys);
    set_strings(L, "ARGV", args, nargs);
    return 0;
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
        buf_printf(&text, "%s script: %s", err ? err : "ERR unknown error", sw->run->name);
        if (source)
            buf_printf(&text, ", on %s:%d.", source, line);
    } else {
        const char *err = lua_tostring(L, -1);
        buf_printf(&text, "ERR %s script: %s", err ? err : "unknown error", sw->run->name);
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
        if (sw->functions)
            function_running_note(sw->w, sw->run->name, sw->run->c, sw->run->begin_us, &sw->running);
        atomic_fetch_add(&w->cmd->slow_functions, sw->functions);
        atomic_fetch_add(&w->cmd->slow_scripts, 1);
        log_warning("script",
                    "slow script: still running after %lld ms; %s KILL ends it if it has not written. Its name is %s",
                    (long long)(clock_mono_us() - sw->run->begin_us) / 1000, sw->functions ? "FUNCTION" : "SCRIPT",
                    sw->run->name);
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

void script_collect(struct script_worker *sw)
{
    if (sw->bytes > sw->collect) {
        if (!sw->functions) {
            set_strings(sw->lua, "KEYS", NULL, 0);
            set_strings(sw->lua, "ARGV", NULL, 0);
        }
        lua_gc(sw->lua, LUA_GCCOLLECT, 0);
        sw->collect = sw->bytes * 2 > SCRIPT_COLLECT_BYTES ? sw->bytes * 2 : SCRIPT_COLLECT_BYTES;
    }
    atomic_store_explicit(&sw->bytes_seen, sw->bytes, memory_order_relaxed);
}

/* All that it needs is locked. Replies, unless it is to run again: run->abort. */
static void run_locked(struct script_worker *sw, const struct script_target *t, struct call *c, struct script_run *run,
                       int nkeys)
{
    struct session *s = c->s;
    lua_State *L = sw->lua;
    int db = s->db;

    run->c = c;
    run->name = t->name;
    run->flags = t->flags;
    run->main = L;
    run->proto = 2;
    run->abort = ABORT_NOT;
    run->read_only = is_read_only(c->cmd) || t->flags & SCRIPT_NO_WRITES;
    run->begin_us = LIKELY(sw->w->mono_us != 0) ? sw->w->mono_us : clock_mono_us();
    sw->run = run;
    monitor_script(c);
    atomic_store_explicit(&sw->wrote, false, memory_order_relaxed);
    atomic_store_explicit(&sw->kill, false, memory_order_relaxed);
    script_lua_begin(sw);
    int nargs = push_target(sw, t, c, nkeys);
    sw->strict = true;
    int rc = lua_pcall(L, nargs, 1, STACK_ON_ERROR);
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
        atomic_fetch_sub(&sw->w->cmd->slow_functions, sw->functions);
        function_running_end(sw->w, &sw->running);
    }
    sw->run = NULL;
    script_collect(sw);
}

/* ---- EVAL on its own ---- */

/* The script was stopped. ST_OK: it can run again now; ST_PENDING: it has to wait. */
static enum status rerun(struct script_worker *sw, struct script_run *run, bool *world, int *reruns)
{
    struct key key;

    if (run->abort == ABORT_WORLD) {
        *world = true;
        return ST_OK;
    }
    if (++*reruns >= RERUNS_MAX) {
        run->at_once = true;
        return ST_OK;
    }
    struct slice name = buf_slice(&run->missing);
    mem_key_init(sw->w->tier->mem, (unsigned)run->missing_db, name, &key);
    if (tier_fault_inline(sw->w, &key, TIER_VALUE))
        return ST_OK;
    rerun_note_only(sw->w, name, run->missing_db);
    return ST_PENDING;
}

/* Locks and runs, until it has run to its end. */
static enum status eval_locked(struct script_worker *sw, const struct script_target *t, struct call *c, int nkeys)
{
    struct worker *w = c->w;
    const struct tier_wait *waits = c->parked ? c->parked->waits : NULL;
    struct script_run run = {.oom = c->oom, .may_write = c->unwritable ? ST_IO : ST_OK};
    bool tried = false, world = t->world;
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
            st = rerun_waits_status(c->parked, c->nkeys);
        if (UNLIKELY(st != ST_OK)) {
            dispatch_unlock(w, &set);
            if (c->nkeys == 0 || !dispatch_resolve_again(c, st, &tried))
                break;
            st = ST_OK;
            continue;
        }
        run.locks = &set;
        run_locked(sw, t, c, &run, nkeys);
        block_serve(c, &set);
        dispatch_unlock(w, &set);
        if (LIKELY(run.abort == ABORT_NOT || run.abort == ABORT_KILLED))
            break;
        st = rerun(sw, &run, &world, &reruns);
    } while (st != ST_PENDING);
    buf_deinit(&run.missing);
    return st;
}

/* NULL: the error was replied. */
static struct script_worker *worker_prepared(struct call *c, struct script_target *t, int *nkeys)
{
    bool function = is_function(c->cmd);
    struct script_worker *sw = function ? library_worker(c->w) : script_worker(c->w);

    if (function ? library_prepare(sw, c, t, nkeys) : prepare(sw, c, t, nkeys))
        return sw;
    monitor_script(c); /* what does not run is shown, too */
    return NULL;
}

enum dispatch_rc script_eval(struct call *c)
{
    struct worker *w = c->w;
    int64_t start = LIKELY(w->mono_us != 0) ? w->mono_us : clock_mono_us();
    struct script_target t;
    int nkeys;
    struct script_worker *sw = worker_prepared(c, &t, &nkeys);

    if (LIKELY(sw != NULL)) {
        bool writes = !is_read_only(c->cmd) && !(t.flags & SCRIPT_NO_WRITES);
        if (writes || block_groups(w))
            tier_group_begin(w);
        enum status st = eval_locked(sw, &t, c, nkeys);
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
    struct script_target t;
    int nkeys;
    struct script_worker *sw = worker_prepared(c, &t, &nkeys);
    struct script_run run = {
        .oom = c->oom, .may_write = c->unwritable ? ST_IO : ST_OK, .at_once = true, .locks = c->w->cmd_worker->locks};

    if (sw)
        run_locked(sw, &t, c, &run, nkeys);
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

void cmd_fcall(struct call *c)
{
    eval_in_exec(c);
}

void cmd_fcall_ro(struct call *c)
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

static const char busy_script[] =
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.";
static const char busy_function[] =
    "BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.";

const char *script_busy(const struct cmd *cmd)
{
    int functions = atomic_load(&cmd->slow_functions);

    return functions > 0 && functions == atomic_load(&cmd->slow_scripts) ? busy_function : busy_script;
}

static struct script_worker *worker_of(const struct cmd *cmd, int i, bool functions)
{
    struct cmd_worker *cw = cmd->workers[i]->cmd_worker;

    return atomic_load(functions ? &cw->library : &cw->script);
}

void script_kill_all(const struct cmd *cmd)
{
    for (int i = 0; i < 2 * cmd->nworkers; i++) {
        struct script_worker *sw = worker_of(cmd, i / 2, i % 2);
        if (sw)
            atomic_store(&sw->die, true);
    }
}

void script_kill(struct call *c, bool functions)
{
    const struct cmd *cmd = c->w->cmd;
    bool killed = false, written = false, others = false;

    for (int i = 0; i < 2 * cmd->nworkers; i++) {
        struct script_worker *sw = worker_of(cmd, i / 2, i % 2);
        if (!sw || !atomic_load(&sw->slow))
            continue;
        if (atomic_load(&sw->wrote)) {
            written = true;
        } else if (sw->functions != functions) {
            others = true;
        } else {
            atomic_store(&sw->kill, true);
            killed = true;
        }
    }
    if (written)
        call_error(c,
                   "UNKILLABLE Sorry the script already executed write commands against the dataset. You can either "
                   "wait the script termination or kill the server in a hard way using the SHUTDOWN NOSAVE command.");
    else if (killed)
        reply_simple(&c->r, "OK");
    else
        call_error(c, !others ? "NOTBUSY No scripts in execution right now." : functions ? busy_script : busy_function);
}

void cmd_script_kill(struct call *c)
{
    script_kill(c, false);
}

static bool answers_while_busy(const struct command *cmd)
{
    return cmd->id == CMDID_script_kill || cmd->id == CMDID_function_kill || cmd->id == CMDID_function_stats;
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
        ((answers_while_busy(c.cmd) && req->argc == 2) || c.cmd->id == CMDID_shutdown)) {
        if (acl_allows(&c))
            c.cmd->run(&c);
    } else if (known && c.cmd->id == CMDID_auth && req->argc >= 2) {
        c.cmd->run(&c);
    } else if (!(s->flags & SESSION_AUTHENTICATED)) {
        call_error(&c, "NOAUTH Authentication required.");
    } else if (known && c.cmd->id == CMDID_multi && req->argc == 1) {
        if (acl_allows(&c))
            c.cmd->run(&c); /* what is queued is refused, and so none of it runs when the script has ended */
    } else if (known && c.cmd->id == CMDID_exec && s->flags & SESSION_MULTI) {
        call_errorf(&c, "EXECABORT Transaction discarded because of: %s", script_busy(w->cmd));
        multi_discard(s);
    } else {
        call_error(&c, script_busy(w->cmd));
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
