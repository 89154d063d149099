/* A worker's Lua state: what a script may use, how much memory and how much time.
 *
 * Tables that scripts share are read-only to them: a script sees an empty table in whose metatable the real one is. The
 * few functions that get at a table past its metatable are replaced by ones that look first. */
#include <lua.h>

#include <lua-bitop.h>
#include <lua-cjson.h>
#include <lualib.h>
#include <stdlib.h>

#include "tiercel/clock.h"

#include "cmd/script_priv.h"

#define LIMIT_MAX ((size_t)1 << 30)
#define LIMIT_MIN ((size_t)64 << 20)
#define PATTERN_MAX 4096 /* matching recurses once per item */
#define KEY_STRINGS "string metatable"
#define KEY_GLOBALS "globals"
#define KEY_LOADING "globals while loading"

static const char protected_mark; /* its address: the key of the real table in a read-only one's metatable */

struct script_worker *script_of(lua_State *L)
{
    void *ud;
    (void)lua_getallocf(L, &ud);
    return ud;
}

/* ---- memory ---- */

static void *script_alloc(void *ud, void *ptr, size_t osize, size_t nsize)
{
    struct script_worker *sw = ud;

    if (nsize == 0) {
        if (ptr)
            mem_free_sized(MEM_OTHER, ptr, osize);
        sw->bytes -= ptr ? osize : 0;
        return NULL;
    }
    if (UNLIKELY(sw->strict) && nsize > osize && sw->bytes + (nsize - osize) > sw->limit)
        return NULL;
    sw->bytes += nsize - (ptr ? osize : 0);
    return ptr ? mem_realloc(MEM_OTHER, ptr, nsize) : mem_alloc(MEM_OTHER, nsize);
}

static size_t memory_limit(const struct script_worker *sw)
{
    int64_t max = atomic_load_explicit(&sw->w->tier->limit.maxmemory, memory_order_relaxed);
    size_t half = max > 0 ? (size_t)max / 2 : LIMIT_MAX;

    return half < LIMIT_MIN ? LIMIT_MIN : half > LIMIT_MAX ? LIMIT_MAX : half;
}

/* ---- errors ---- */

void script_push_error(lua_State *L, const char *text, bool counted)
{
    lua_createtable(L, 0, 4);
    lua_pushliteral(L, "err");
    lua_pushstring(L, text);
    lua_rawset(L, -3);
    if (counted) {
        lua_pushliteral(L, "ignore_error_stats_update");
        lua_pushboolean(L, 1);
        lua_rawset(L, -3);
    }
}

static void hook(lua_State *L, lua_Debug *ar);

int script_raise_abort(lua_State *L, enum script_abort why)
{
    struct script_run *run = script_of(L)->run;

    if (run->abort == ABORT_NOT)
        run->abort = why;
    lua_sethook(L, hook, LUA_MASKCOUNT, 1);
    lua_sethook(run->main, hook, LUA_MASKCOUNT, 1);
    script_push_error(
        L, why == ABORT_KILLED ? "ERR Script killed by user with SCRIPT KILL..." : "ERR the script is run again",
        false);
    return lua_error(L);
}

/* Where the error was raised goes with it. */
static int on_error(lua_State *L)
{
    lua_Debug ar;
    bool known = lua_getstack(L, 1, &ar) && lua_getinfo(L, "Sl", &ar);

    if (known && strcmp(ar.what, "C") == 0)
        known = lua_getstack(L, 2, &ar) && lua_getinfo(L, "Sl", &ar);
    if (!lua_istable(L, 1)) {
        lua_settop(L, 1);
        lua_getfield(L, LUA_REGISTRYINDEX, "tostring");
        lua_insert(L, 1);
        lua_call(L, 1, 1);
        lua_pushliteral(L, "ERR ");
        lua_insert(L, 1);
        lua_concat(L, 2);
        script_push_error(L, lua_tostring(L, 1), false);
    } else {
        lua_settop(L, 1);
    }
    if (known) {
        lua_pushliteral(L, "source");
        lua_pushstring(L, ar.source);
        lua_rawset(L, -3);
        lua_pushliteral(L, "line");
        lua_pushinteger(L, ar.currentline);
        lua_rawset(L, -3);
    }
    return 1;
}

/* ---- time ---- */

static void hook(lua_State *L, lua_Debug *ar)
{
    struct script_worker *sw = script_of(L);
    struct script_run *run = sw->run;
    (void)ar;

    if (UNLIKELY(!run)) {
        if (sw->load)
            library_check_time(L);
        return;
    }
    if (run->abort != ABORT_NOT)
        script_raise_abort(L, run->abort);
    if (script_over_time(sw))
        script_raise_abort(L, ABORT_KILLED);
}

/* ---- what protects the shared tables ---- */

/* Is value `i` a read-only table? Then the real one is pushed. */
static bool is_protected(lua_State *L, int i)
{
    if (!lua_istable(L, i) || !lua_getmetatable(L, i))
        return false;
    lua_pushlightuserdata(L, (void *)&protected_mark);
    lua_rawget(L, -2);
    lua_remove(L, -2);
    if (!lua_isnil(L, -1))
        return true;
    lua_pop(L, 1);
    return false;
}

static int refuse_write(lua_State *L)
{
    return luaL_error(L, "Attempt to modify a readonly table");
}

/* In place of the table on top: its read-only form. */
static void protect(lua_State *L)
{
    lua_newtable(L);
    lua_createtable(L, 0, 3);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, refuse_write);
    lua_setfield(L, -2, "__newindex");
    lua_pushlightuserdata(L, (void *)&protected_mark);
    lua_pushvalue(L, -4);
    lua_rawset(L, -3);
    lua_setmetatable(L, -2);
    lua_remove(L, -2);
}

/* The function in whose place this one is. */
static int call_original(lua_State *L)
{
    return lua_tocfunction(L, lua_upvalueindex(1))(L);
}

static int guarded_write(lua_State *L)
{
    if (is_protected(L, 1)) {
        lua_pushliteral(L, "Attempt to modify a readonly table");
        return lua_error(L);
    }
    return call_original(L);
}

static int guarded_rawget(lua_State *L)
{
    luaL_checkany(L, 2);
    if (!is_protected(L, 1))
        return call_original(L);
    lua_pushvalue(L, 2);
    lua_rawget(L, -2);
    return 1;
}

static int guarded_getmetatable(lua_State *L)
{
    luaL_checkany(L, 1);
    if (lua_type(L, 1) == LUA_TSTRING) {
        lua_getfield(L, LUA_REGISTRYINDEX, KEY_STRINGS);
        return 1;
    }
    if (!is_protected(L, 1))
        return call_original(L);
    if (!lua_getmetatable(L, -1)) { /* only that of the globals has one */
        lua_pushnil(L);
        return 1;
    }
    lua_newtable(L);
    protect(L);
    return 1;
}

/* A read-only table is walked as a copy. */
static int guarded_pairs(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    if (is_protected(L, 1)) {
        lua_newtable(L);
        for (lua_pushnil(L); lua_next(L, -3); lua_pop(L, 1)) {
            lua_pushvalue(L, -2);
            lua_pushvalue(L, -2);
            lua_rawset(L, -5);
        }
        lua_replace(L, 1);
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, 1);
    lua_pushnil(L);
    return 3;
}

static int guarded_pattern(lua_State *L)
{
    size_t len = 0;

    if (lua_isstring(L, 2))
        lua_tolstring(L, 2, &len);
    if (len > PATTERN_MAX)
        return luaL_error(L, "pattern too complex");
    return call_original(L);
}

static int guarded_rep(lua_State *L)
{
    size_t len;
    luaL_checklstring(L, 1, &len);
    lua_Number n = luaL_checknumber(L, 2);

    if (len == 0 || n < 1) {
        lua_pushliteral(L, "");
        return 1;
    }
    if ((lua_Number)len * n > (lua_Number)script_of(L)->limit)
        return luaL_error(L, "not enough memory");
    return call_original(L);
}

static int guarded_collect(lua_State *L)
{
    static const char *const allowed[] = {"count", "collect", "step", NULL};
    const char *what = luaL_optstring(L, 1, "collect");

    for (int i = 0; allowed[i]; i++)
        if (strcmp(what, allowed[i]) == 0)
            return call_original(L);
    lua_pushinteger(L, 0);
    return 1;
}

/* Precompiled code is not checked by Lua. */
static int load_text(lua_State *L, const char *text, size_t len, const char *name)
{
    if (len && text[0] == LUA_SIGNATURE[0]) {
        lua_pushnil(L);
        lua_pushliteral(L, "[string \"\033LuaQ\"]:1: unexpected symbol near 'char(27)'");
        return 2;
    }
    if (luaL_loadbuffer(L, text, len, name) == 0)
        return 1;
    lua_pushnil(L);
    lua_insert(L, -2);
    return 2;
}

static int guarded_loadstring(lua_State *L)
{
    size_t len;
    const char *text = luaL_checklstring(L, 1, &len);

    return load_text(L, text, len, luaL_optstring(L, 2, text));
}

static int guarded_load(lua_State *L)
{
    size_t len;
    const char *name = luaL_optstring(L, 2, "=(load)");

    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 2);
    lua_pushliteral(L, "");
    for (;;) {
        lua_pushvalue(L, 1);
        lua_call(L, 0, 1);
        if (lua_isnil(L, -1) || (lua_isstring(L, -1) && lua_objlen(L, -1) == 0))
            break;
        if (!lua_isstring(L, -1))
            return luaL_error(L, "reader function must return a string");
        lua_concat(L, 2);
    }
    lua_pop(L, 1);
    const char *text = lua_tolstring(L, 3, &len);
    return load_text(L, text, len, name);
}

/* Errors are texts to scripts, as they were before they were tables. */
static int guarded_pcall(lua_State *L)
{
    luaL_checkany(L, 1);
    int rc = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
    if (rc == 0) {
        lua_pushboolean(L, 1);
        lua_insert(L, 1);
        return lua_gettop(L);
    }
    if (lua_istable(L, -1)) {
        lua_pushliteral(L, "err");
        lua_rawget(L, -2);
        if (lua_isstring(L, -1))
            lua_replace(L, -2);
        else
            lua_pop(L, 1);
    }
    lua_pushboolean(L, 0);
    lua_insert(L, -2);
    return 2;
}

static int no_such_global(lua_State *L)
{
    return luaL_error(L, "Script attempted to access nonexistent global variable '%s'", luaL_checkstring(L, 2));
}

/* ---- mathematics: libc's numbers, as redis-server draws them ---- */

static unsigned short *dice(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

static void dice_seed(unsigned short state[3], uint32_t seed)
{
    state[0] = 0x330e;
    state[1] = (unsigned short)seed;
    state[2] = (unsigned short)(seed >> 16);
}

static int math_random(lua_State *L)
{
    lua_Number r = (lua_Number)(nrand48(dice(L)) % INT32_MAX) / INT32_MAX;

    switch (lua_gettop(L)) {
    case 0: lua_pushnumber(L, r); return 1;
    case 1: {
        int u = luaL_checkint(L, 1);
        luaL_argcheck(L, 1 <= u, 1, "interval is empty");
        lua_pushnumber(L, __builtin_floor(r * u) + 1);
        return 1;
    }
    case 2: {
        int l = luaL_checkint(L, 1), u = luaL_checkint(L, 2);
        luaL_argcheck(L, l <= u, 2, "interval is empty");
        lua_pushnumber(L, __builtin_floor(r * ((lua_Number)u - l + 1)) + l);
        return 1;
    }
    default: return luaL_error(L, "wrong number of arguments");
    }
}

static int math_randomseed(lua_State *L)
{
    dice_seed(dice(L), (uint32_t)luaL_checkint(L, 1));
    return 0;
}

/* ---- cjson ---- */

/* At most how many bytes a value becomes: they are not counted by Lua. Counting ends past `max`; -1: nested too
 * deeply, which cjson finds itself. */
static double json_weight(lua_State *L, double max, int depth)
{
    double sum = 2;

    if (lua_type(L, -1) == LUA_TSTRING)
        return 2 + 6 * (double)lua_objlen(L, -1);
    if (lua_type(L, -1) != LUA_TTABLE)
        return 24;
    if (depth > 1000 || !lua_checkstack(L, 4))
        return -1;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        double value = json_weight(L, max - sum, depth + 1);
        sum = value < 0 ? value : sum + value + 8;
        if (value >= 0 && lua_type(L, -2) == LUA_TSTRING)
            sum += 6 * (double)lua_objlen(L, -2);
        if (sum < 0 || sum > max) {
            lua_pop(L, 2);
            break;
        }
    }
    return sum;
}

static int guarded_encode(lua_State *L)
{
    int n = lua_gettop(L);
    double max = 6.0 * (double)script_of(L)->limit; /* a byte may become six */

    if (n == 1 && lua_istable(L, 1) && json_weight(L, max, 0) > max)
        return luaL_error(L, "not enough memory");
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    if (lua_pcall(L, n, LUA_MULTRET, 0) == 0)
        return lua_gettop(L);
    if (lua_type(L, -1) == LUA_TSTRING) { /* it names the place of its caller, which is here */
        luaL_where(L, 1);
        lua_insert(L, -2);
        lua_concat(L, 2);
    }
    return lua_error(L);
}

/* ---- making it ---- */

static void keep(lua_State *L, int to, const char *const *names)
{
    for (; *names; names++) {
        lua_getfield(L, LUA_GLOBALSINDEX, *names);
        lua_setfield(L, to, *names);
    }
}

/* Field `name` of the table on top gets `guard` around it. */
static void guard(lua_State *L, const char *name, lua_CFunction with)
{
    lua_getfield(L, -1, name);
    lua_pushcclosure(L, with, 1);
    lua_setfield(L, -2, name);
}

static void guard_libraries(lua_State *L)
{
    static const unsigned short first[3] = {0x330e, 0xabcd, 0x1234};
    static const char *const patterns[] = {"find", "match", "gmatch", "gfind", "gsub", NULL};

    lua_getfield(L, LUA_GLOBALSINDEX, "table");
    guard(L, "insert", guarded_write);
    guard(L, "remove", guarded_write);
    guard(L, "sort", guarded_write);
    lua_pop(L, 1);
    lua_getfield(L, LUA_GLOBALSINDEX, "string");
    for (int i = 0; patterns[i]; i++)
        guard(L, patterns[i], guarded_pattern);
    guard(L, "rep", guarded_rep);
    lua_pop(L, 1);
    lua_getfield(L, LUA_GLOBALSINDEX, "cjson");
    guard(L, "encode", guarded_encode);
    lua_pushnil(L);
    lua_setfield(L, -2, "new"); /* its encode() would not be guarded */
    lua_pop(L, 1);
    lua_getfield(L, LUA_GLOBALSINDEX, "math");
    memcpy(lua_newuserdata(L, sizeof(first)), first, sizeof(first));
    lua_pushvalue(L, -1);
    lua_pushcclosure(L, math_random, 1);
    lua_setfield(L, -3, "random");
    lua_pushcclosure(L, math_randomseed, 1);
    lua_setfield(L, -2, "randomseed");
    lua_pop(L, 1);
}

static void guard_globals(lua_State *L)
{
    guard(L, "rawset", guarded_write);
    guard(L, "setmetatable", guarded_write);
    guard(L, "rawget", guarded_rawget);
    guard(L, "getmetatable", guarded_getmetatable);
    guard(L, "collectgarbage", guarded_collect);
    guard(L, "loadstring", guarded_loadstring);
    guard(L, "load", guarded_load);
    lua_getfield(L, -1, "next");
    lua_pushcclosure(L, guarded_pairs, 1);
    lua_setfield(L, -2, "pairs");
    guard(L, "pcall", guarded_pcall);
}

static void refuse_unknown(lua_State *L)
{
    lua_newtable(L);
    lua_pushcfunction(L, no_such_global);
    lua_setfield(L, -2, "__index");
    lua_setmetatable(L, -2);
}

/* The globals of a library that is loaded: `redis` with what registers functions, and nothing else. */
static void open_loading(lua_State *L)
{
    lua_newtable(L);
    script_api_open_loading(L);
    refuse_unknown(L);
    protect(L);
    lua_setfield(L, -2, "redis");
    refuse_unknown(L);
    lua_setfield(L, LUA_REGISTRYINDEX, KEY_LOADING);
}

static int open_all(lua_State *L)
{
    static const char *const functions[] = {
        "xpcall",   "tostring",     "setmetatable", "next",  "assert", "tonumber",   "rawequal", "collectgarbage",
        "rawset",   "getmetatable", "pcall",        "type",  "select", "unpack",     "gcinfo",   "rawget",
        "_VERSION", "ipairs",       "pairs",        "error", "load",   "loadstring", NULL};
    static const char *const tables[] = {"string", "table",    "math",   "coroutine", "cjson",
                                         "bit",    "cmsgpack", "struct", "redis",     NULL};
    static const lua_CFunction libraries[] = {luaopen_base, luaopen_table, luaopen_string, luaopen_math, luaopen_bit};

    for (size_t i = 0; i < sizeof(libraries) / sizeof(libraries[0]); i++) {
        lua_pushcfunction(L, libraries[i]);
        lua_pushliteral(L, "");
        lua_call(L, 1, 0);
    }
    lua_pushcfunction(L, luaopen_cjson);
    lua_call(L, 0, 1);
    lua_setfield(L, LUA_GLOBALSINDEX, "cjson");
    script_open_msgpack(L);
    lua_setfield(L, LUA_GLOBALSINDEX, "cmsgpack");
    script_open_struct(L);
    lua_setfield(L, LUA_GLOBALSINDEX, "struct");
    script_api_open(L);
    lua_setfield(L, LUA_GLOBALSINDEX, "redis");
    guard_libraries(L);

    lua_newtable(L); /* what scripts see of it all */
    int globals = lua_gettop(L);
    keep(L, globals, functions);
    guard_globals(L);
    for (int i = 0; tables[i]; i++) {
        lua_getfield(L, LUA_GLOBALSINDEX, tables[i]);
        protect(L);
        lua_setfield(L, globals, tables[i]);
    }
    lua_getfield(L, globals, "tostring");
    lua_setfield(L, LUA_REGISTRYINDEX, "tostring");
    if (script_of(L)->functions) {
        open_loading(L);
    } else {
        lua_pushcfunction(L, on_error);
        lua_setfield(L, globals, "__redis__err__handler");
    }

    lua_newtable(L);
    lua_getfield(L, globals, "string");
    lua_setfield(L, -2, "__index");
    protect(L);
    lua_setfield(L, LUA_REGISTRYINDEX, KEY_STRINGS);

    lua_pushvalue(L, globals);
    lua_setfield(L, LUA_REGISTRYINDEX, KEY_GLOBALS);
    lua_pushvalue(L, globals);
    refuse_unknown(L);
    protect(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, globals, "_G");
    lua_replace(L, LUA_GLOBALSINDEX);
    lua_pushcfunction(L, on_error);
    lua_pushvalue(L, globals);
    return 2;
}

bool script_lua_create(struct script_worker *sw)
{
    sw->limit = memory_limit(sw);
    lua_State *L = sw->lua = lua_newstate(script_alloc, sw);
    CHECK(L != NULL);
    lua_pushcfunction(L, open_all);
    lua_call(L, 0, 2);
    CHECK(lua_gettop(L) == STACK_GLOBALS);
    lua_sethook(L, hook, LUA_MASKCOUNT, SCRIPT_HOOK_STEPS);
    return true;
}

void script_lua_destroy(struct script_worker *sw)
{
    if (sw->lua)
        lua_close(sw->lua);
    sw->lua = NULL;
}

bool script_lua_compile(struct script_worker *sw, const struct script *s)
{
    lua_State *L = sw->lua;
    const char *text = s->source + s->skip;
    size_t len = s->len - s->skip;

    if (len && text[0] == LUA_SIGNATURE[0]) {
        lua_pushliteral(L, "user_script:1: unexpected symbol near 'char(27)'");
        return false;
    }
    sw->strict = true;
    int rc = luaL_loadbuffer(L, text, len, "@user_script");
    sw->strict = false;
    return rc == 0;
}

void script_lua_show(struct script_worker *sw, bool loading)
{
    lua_State *L = sw->lua;

    CHECK(lua_getmetatable(L, LUA_GLOBALSINDEX));
    lua_getfield(L, LUA_REGISTRYINDEX, loading ? KEY_LOADING : KEY_GLOBALS);
    lua_pushvalue(L, -1);
    lua_setfield(L, -3, "__index");
    lua_pushlightuserdata(L, (void *)&protected_mark);
    lua_insert(L, -2);
    lua_rawset(L, -3);
    lua_pop(L, 1);
}

void script_lua_begin(struct script_worker *sw)
{
    sw->limit = memory_limit(sw);
}

void script_lua_rearm(struct script_worker *sw)
{
    lua_sethook(sw->lua, hook, LUA_MASKCOUNT, SCRIPT_HOOK_STEPS);
}
