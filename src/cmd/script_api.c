/* redis.*: what a script may ask of the server. */
#include <math.h>
#include <stdio.h>

#include "tiercel/log.h"
#include "tiercel/num.h"
#include "tiercel/digest.h"
#include "tiercel/stats.h"
#include "tiercel/version.h"

#include "cmd/script_priv.h"

#define NUMBER_TEXT 32

/* ---- arguments ---- */

static int fail(lua_State *L, bool raise, const char *text)
{
    script_push_error(L, text, false);
    return raise ? lua_error(L) : 1;
}

/* An error that a command would have replied, counted like one. */
static int fail_counted(struct script_worker *sw, lua_State *L, bool raise, const char *text)
{
    call_count_error(sw->run->c, text);
    script_push_error(L, text, true);
    return raise ? lua_error(L) : 1;
}

static void args_reserve(struct script_worker *sw, int n)
{
    if (LIKELY(n <= sw->argv_cap))
        return;
    sw->argv_cap = n < 16 ? 16 : n;
    sw->argv = mem_realloc(MEM_OTHER, sw->argv, (size_t)sw->argv_cap * sizeof(*sw->argv));
    sw->numbers = mem_realloc(MEM_OTHER, sw->numbers, (size_t)sw->argv_cap * NUMBER_TEXT);
}

static struct slice number_text(char to[NUMBER_TEXT], lua_Number v)
{
    if (LIKELY(v > -1e15 && v < 1e15 && (lua_Number)(int64_t)v == v && (v != 0 || !signbit(v))))
        return SLICE(to, num_format_i64(to, (int64_t)v));
    int n = snprintf(to, NUMBER_TEXT, "%.17g", v);
    return SLICE(to, (size_t)n);
}

/* The call's arguments, which stay on the stack. NULL, or the error. */
static const char *args_read(struct script_worker *sw, lua_State *L, int *argc)
{
    int n = lua_gettop(L);

    if (n == 0)
        return "ERR Please specify at least one argument for this redis lib call";
    args_reserve(sw, n);
    for (int i = 0; i < n; i++) {
        int type = lua_type(L, i + 1);
        if (LIKELY(type == LUA_TSTRING)) {
            size_t len;
            const char *text = lua_tolstring(L, i + 1, &len);
            sw->argv[i] = SLICE(text, len);
        } else if (type == LUA_TNUMBER) {
            sw->argv[i] = number_text(sw->numbers + (size_t)i * NUMBER_TEXT, lua_tonumber(L, i + 1));
        } else {
            return "ERR Lua redis lib command arguments must be strings or integers";
        }
    }
    *argc = n;
    return NULL;
}

/* ---- redis.call(), redis.pcall() ---- */

/* NULL, or why the command may not run. */
static const char *refusal(const struct script_worker *sw, struct call *c)
{
    const struct script_run *run = sw->run;
    const struct command *cmd = c->cmd;
    int argc = c->argc;

    if (!cmd || (cmd->flags & CMD_CONTAINER && argc > 1))
        return "ERR Unknown Redis command called from script";
    if (!command_arity_fits(cmd, argc))
        return "ERR Wrong number of args calling Redis command from script";
    if (cmd->flags & (CMD_NOSCRIPT | CMD_NO_MULTI))
        return "ERR This Redis command is not allowed from script";
    const char *theirs = UNLIKELY(sw->w->tier->has_upstream) ? local_script_refusal(c) : NULL;
    if (UNLIKELY(theirs != NULL))
        return theirs;
    const char *denied = acl_script_refusal(c, true);
    if (UNLIKELY(denied != NULL))
        return denied;
    if (run->read_only && command_may_replicate(cmd))
        return "ERR Write commands are not allowed from read-only scripts.";
    if (cmd->flags & CMD_WRITE && run->may_write == ST_IO)
        return "MISCONF Errors writing to the AOF file";
    if (cmd->flags & CMD_DENYOOM && run->oom && !atomic_load_explicit(&sw->wrote, memory_order_relaxed) &&
        !(run->flags & SCRIPT_ALLOW_OOM))
        return "OOM command not allowed when used memory > 'maxmemory'.";
    return NULL;
}

static bool shard_locked(const struct script_worker *sw, uint64_t hash)
{
    const struct lockset *set = sw->run->locks;
    uint32_t index = mem_shard_of(sw->w->tier->mem, hash)->index;

    if (set->all)
        return true;
    for (int i = 0; i < set->n; i++)
        if (set->shard[i] == index)
            return true;
    return false;
}

/* Its keys are resident when it returns; else the script is to run again, or (false) they cannot be had. */
static bool keys_resolve(struct script_worker *sw, lua_State *L, struct call *sub)
{
    struct script_run *run = sw->run;
    int n = dispatch_key_count(sub->cmd, sub->argc);
    bool may_rerun = !run->c->in_exec && !atomic_load_explicit(&sw->wrote, memory_order_relaxed);

    if (!run->locks->all && (multi_needs_all_shards(sub->cmd) || rerun_wants_all(sub->cmd, sub->argc, sub->argv))) {
        if (may_rerun)
            script_raise_abort(L, ABORT_WORLD);
        return false;
    }
    if (n > sw->keys_cap) {
        sw->keys_cap = n < 16 ? 16 : n;
        sw->keys = mem_realloc(MEM_OTHER, sw->keys, (size_t)sw->keys_cap * sizeof(*sw->keys));
    }
    sub->keys = sw->keys;
    sub->nkeys = n ? dispatch_keys(sw->w, sub->cmd, sub->argc, sub->argv, sub->s->db, sw->keys, n) : 0;
    for (int i = 0; i < sub->nkeys; i++) {
        struct call_key *k = &sw->keys[i];
        if (UNLIKELY(!shard_locked(sw, k->key.hash))) {
            if (may_rerun)
                script_raise_abort(L, ABORT_WORLD);
            return false;
        }
        enum status st = dispatch_resolve(sw->w, k, 1, NULL);
        if (LIKELY(st == ST_OK))
            continue;
        if (st == ST_PENDING && may_rerun && !run->at_once) {
            run->missing.len = 0;
            buf_append(&run->missing, k->key.ptr, k->key.len);
            run->missing_db = k->key.db;
            script_raise_abort(L, ABORT_MISSING);
        }
        if (st != ST_PENDING || !tier_fault_now_locked(sw->w, mem_shard_of(sw->w->tier->mem, k->key.hash), &k->key) ||
            dispatch_resolve(sw->w, k, 1, NULL) != ST_OK)
            return false;
    }
    return true;
}

static int call_command(lua_State *L, bool raise)
{
    struct script_worker *sw = script_of(L);
    struct script_run *run = sw->run;
    int argc;

    if (!run)
        return luaL_error(L, "redis.call/pcall can only be called inside a script invocation");
    if (UNLIKELY(run->abort != ABORT_NOT))
        return script_raise_abort(L, run->abort);
    const char *text = args_read(sw, L, &argc);
    if (UNLIKELY(text != NULL))
        return fail(L, raise, text);
    const struct command *cmd = dispatch_find(argc, sw->argv);
    struct call sub = {.w = sw->w,
                       .s = run->c->s,
                       .cmd = cmd,
                       .argc = argc,
                       .argv = sw->argv,
                       .now_ms = run->c->now_ms,
                       .in_exec = true,
                       .in_script = true};
    text = refusal(sw, &sub);
    if (UNLIKELY(text != NULL))
        return fail_counted(sw, L, raise, text);
    if (UNLIKELY(!keys_resolve(sw, L, &sub)))
        return fail_counted(sw, L, raise, "ERR a key of this script could not be had");
    if (UNLIKELY(sw->out.head != NULL)) /* what an error of Lua's left there */
        chain_deinit(&sw->out);
    sub.r = (struct reply){&sw->out, run->proto};
    if (cmd->flags & CMD_WRITE)
        atomic_store_explicit(&sw->wrote, true, memory_order_relaxed);
    dispatch_call(&sub);
    if (UNLIKELY(cmd->flags & CMD_ALL_SHARDS)) {
        watch_rehash(sw->w);
        block_rehash(sw->w);
    }
    lua_settop(L, 0); /* the arguments have done their work, and may be as many as the stack holds */
    bool whole = script_push_reply(sw, L);
    chain_deinit(&sw->out);
    if (UNLIKELY(!whole))
        return fail_counted(sw, L, raise, "ERR a value could not be read");
    return raise && UNLIKELY(sub.failed) && lua_istable(L, -1) ? lua_error(L) : 1;
}

static int api_call(lua_State *L)
{
    return call_command(L, true);
}

static int api_pcall(lua_State *L)
{
    return call_command(L, false);
}

/* ---- the rest ---- */

static int api_error_reply(lua_State *L)
{
    if (lua_gettop(L) != 1 || lua_type(L, 1) != LUA_TSTRING)
        return fail(L, false, "ERR wrong number or type of arguments");
    size_t len;
    const char *text = lua_tolstring(L, 1, &len);
    const char *body = text[0] == '-' ? text + 1 : text;
    size_t n = len - (size_t)(body - text);
    while (n && (body[n - 1] == '\r' || body[n - 1] == '\n'))
        n--;
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "err");
    if (memchr(body, ' ', n)) { /* its first word is a code */
        lua_pushlstring(L, body, n);
    } else {
        lua_pushliteral(L, "ERR ");
        lua_pushlstring(L, body, n);
        lua_concat(L, 2);
    }
    lua_rawset(L, -3);
    return 1;
}

static int api_status_reply(lua_State *L)
{
    if (lua_gettop(L) != 1 || lua_type(L, 1) != LUA_TSTRING)
        return fail(L, false, "ERR wrong number or type of arguments");
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "ok");
    lua_pushvalue(L, 1);
    lua_rawset(L, -3);
    return 1;
}

static int api_sha1hex(lua_State *L)
{
    size_t len;
    char out[41];

    if (lua_gettop(L) != 1)
        return fail(L, true, "ERR wrong number of arguments");
    const char *text = lua_tolstring(L, 1, &len);
    sha1_hex(SLICE(text ? text : "", text ? len : 0), out);
    lua_pushlstring(L, out, 40);
    return 1;
}

static int api_log(lua_State *L)
{
    int argc = lua_gettop(L);

    if (argc < 2)
        return fail(L, true, "ERR redis.log() requires two arguments or more.");
    if (!lua_isnumber(L, 1))
        return fail(L, true, "ERR First argument must be a number (log level).");
    int level = (int)lua_tonumber(L, 1);
    if (level < LOG_DEBUG || level > LOG_WARNING)
        return fail(L, true, "ERR Invalid debug level.");
    if (!log_enabled((enum log_level)level, "script"))
        return 0;
    struct buf line;
    buf_init(&line, MEM_OTHER);
    for (int i = 2; i <= argc; i++) {
        size_t len;
        const char *text = lua_tolstring(L, i, &len);
        if (i > 2)
            buf_byte(&line, ' ');
        if (text)
            buf_append(&line, text, len < 65536 ? len : 65536);
    }
    LOG_AT((enum log_level)level, "script", "%.*s", (int)line.len, line.len ? line.ptr : "");
    buf_deinit(&line);
    return 0;
}

static int api_setresp(lua_State *L)
{
    if (lua_gettop(L) != 1)
        return fail(L, true, "ERR redis.setresp() requires one argument.");
    lua_Number proto = lua_tonumber(L, 1);
    if (proto != 2 && proto != 3)
        return fail(L, true, "ERR RESP version must be 2 or 3.");
    script_of(L)->run->proto = (int)proto;
    return 0;
}

static int api_set_repl(lua_State *L)
{
    if (lua_gettop(L) != 1)
        return fail(L, true, "ERR redis.set_repl() requires two arguments.");
    int flags = (int)lua_tonumber(L, 1);
    if (flags & ~3)
        return fail(L, true, "ERR Invalid replication flags. Use REPL_AOF, REPL_REPLICA, REPL_ALL or REPL_NONE.");
    return 0; /* nothing is replicated */
}

static int api_replicate_commands(lua_State *L)
{
    lua_pushboolean(L, 1);
    return 1;
}

static int api_breakpoint(lua_State *L)
{
    lua_pushboolean(L, 0);
    return 1;
}

static int api_debug(lua_State *L)
{
    (void)L;
    return 0;
}

static int api_acl_check_cmd(lua_State *L)
{
    struct script_worker *sw = script_of(L);
    int argc;
    const char *text = args_read(sw, L, &argc);

    if (text)
        return fail(L, true, text);
    const struct command *cmd = dispatch_find(argc, sw->argv);
    if (!cmd || (cmd->flags & CMD_CONTAINER && argc > 1))
        return fail(L, true, "ERR Invalid command passed to redis.acl_check_cmd()");
    struct call sub = {.w = sw->w, .s = sw->run->c->s, .cmd = cmd, .argc = argc, .argv = sw->argv};
    lua_pushboolean(L, acl_script_refusal(&sub, false) == NULL);
    return 1;
}

static void set_numbers(lua_State *L, bool loading)
{
    static const struct {
        const char *name;
        int value;
    } numbers[] = {{"LOG_DEBUG", LOG_DEBUG},
                   {"LOG_VERBOSE", LOG_VERBOSE},
                   {"LOG_NOTICE", LOG_NOTICE},
                   {"LOG_WARNING", LOG_WARNING},
                   {"REDIS_VERSION_NUM", 0x7000f},
                   {"REPL_NONE", 0}, /* from here on not for a library that is loaded */
                   {"REPL_AOF", 1},
                   {"REPL_SLAVE", 2},
                   {"REPL_REPLICA", 2},
                   {"REPL_ALL", 3}};
    size_t n = loading ? 5 : sizeof(numbers) / sizeof(numbers[0]);

    for (size_t i = 0; i < n; i++) {
        lua_pushinteger(L, numbers[i].value);
        lua_setfield(L, -2, numbers[i].name);
    }
    lua_pushliteral(L, TIERCEL_REDIS_VERSION);
    lua_setfield(L, -2, "REDIS_VERSION");
}

void script_api_open_loading(lua_State *L)
{
    static const luaL_Reg functions[] = {{"register_function", library_register}, {"log", api_log}, {NULL, NULL}};

    lua_newtable(L);
    luaL_register(L, NULL, functions);
    set_numbers(L, true);
}

void script_api_open(lua_State *L)
{
    static const luaL_Reg only_eval[] = {{"replicate_commands", api_replicate_commands},
                                         {"breakpoint", api_breakpoint},
                                         {"debug", api_debug},
                                         {NULL, NULL}};
    static const luaL_Reg functions[] = {{"call", api_call},
                                         {"pcall", api_pcall},
                                         {"error_reply", api_error_reply},
                                         {"status_reply", api_status_reply},
                                         {"sha1hex", api_sha1hex},
                                         {"log", api_log},
                                         {"setresp", api_setresp},
                                         {"set_repl", api_set_repl},
                                         {"acl_check_cmd", api_acl_check_cmd},
                                         {NULL, NULL}};

    lua_newtable(L);
    luaL_register(L, NULL, functions);
    if (!script_of(L)->functions)
        luaL_register(L, NULL, only_eval);
    set_numbers(L, false);
}
