/* Libraries of functions in a worker's Lua state: what they register when they are loaded, and what FCALL calls.
 *
 * A library is loaded where FUNCTION LOAD came, to see what it registers, and by each other worker when a function of it
 * is first called there. So what its functions keep in local variables of the library is each worker's own. */
#include <strings.h>

#include "tiercel/clock.h"

#include "cmd/function_priv.h"
#include "cmd/script_priv.h"

struct library_load {
    struct function_lib *lib;
    int ref;          /* the functions by name */
    int64_t until_us; /* 0: without end */
};

/* ---- redis.register_function() ---- */

struct registration {
    int name, callback, description; /* where on the stack; 0: not given */
    unsigned flags;
};

static bool flags_read(lua_State *L, int table, unsigned *flags)
{
    for (int i = 1;; i++) {
        const struct script_flag *f = script_flags;
        lua_rawgeti(L, table, i);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            return true;
        }
        const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
        while (f->name && strcasecmp(f->name, text) != 0)
            f++;
        lua_pop(L, 1);
        if (!f->name)
            return false;
        *flags |= f->flag;
    }
}

/* The pair on top: NULL and its value is kept, or what is wrong with it. */
static const char *named_read(lua_State *L, struct registration *r)
{
    int value = lua_gettop(L);

    if (lua_type(L, -2) == LUA_TNUMBER)
        return "ERR unknown argument given to redis.register_function";
    if (lua_type(L, -2) != LUA_TSTRING)
        return "ERR named argument key given to redis.register_function is not a string";
    const char *key = lua_tostring(L, -2);
    if (strcasecmp(key, "function_name") == 0) {
        if (!lua_isstring(L, value))
            return "ERR function_name argument given to redis.register_function must be a string";
        lua_tostring(L, value);
        lua_replace(L, r->name = 2);
    } else if (strcasecmp(key, "description") == 0) {
        if (!lua_isstring(L, value))
            return "ERR description argument given to redis.register_function must be a string";
        lua_tostring(L, value);
        lua_replace(L, r->description = 3);
    } else if (strcasecmp(key, "callback") == 0) {
        if (!lua_isfunction(L, value))
            return "ERR callback argument given to redis.register_function must be a function";
        lua_replace(L, r->callback = 4);
    } else if (strcasecmp(key, "flags") == 0) {
        if (!lua_istable(L, value))
            return "ERR flags argument to redis.register_function must be a table representing function flags";
        if (!flags_read(L, value, &r->flags))
            return "ERR unknown flag given";
        lua_pop(L, 1);
    } else {
        return "ERR unknown argument given to redis.register_function";
    }
    return NULL;
}

static const char *registration_read(lua_State *L, struct registration *r)
{
    int argc = lua_gettop(L);

    if (argc < 1 || argc > 2)
        return "ERR wrong number of arguments to redis.register_function";
    if (argc == 2) {
        if (!lua_isstring(L, 1))
            return "ERR first argument to redis.register_function must be a string";
        if (!lua_isfunction(L, 2))
            return "ERR second argument to redis.register_function must be a function";
        r->name = 1;
        r->callback = 2;
        return NULL;
    }
    if (!lua_istable(L, 1))
        return "ERR calling redis.register_function with a single argument is only applicable to Lua table "
               "(representing named arguments).";
    lua_settop(L, 4); /* 2 to 4 are for what it names */
    for (lua_pushnil(L); lua_next(L, 1);) {
        const char *error = named_read(L, r);
        if (error)
            return error;
    }
    if (!r->name)
        return "ERR redis.register_function must get a function name argument";
    if (!r->callback)
        return "ERR redis.register_function must get a callback argument";
    return NULL;
}

static struct slice string_at(lua_State *L, int i)
{
    size_t len;
    const char *text = lua_tolstring(L, i, &len);

    return SLICE(text, len);
}

int library_register(lua_State *L)
{
    struct library_load *load = script_of(L)->load;
    struct registration r = {.flags = SCRIPT_HAS_FLAGS};
    const char *error = registration_read(L, &r);

    if (!error && !load)
        error = "ERR redis.register_function can only be called on FUNCTION LOAD command";
    if (!error && !function_name_ok(string_at(L, r.name)))
        error = "ERR Library names can only contain letters, numbers, or underscores(_) and must be at least one "
                "character long";
    if (!error) {
        lua_rawgeti(L, LUA_REGISTRYINDEX, load->ref);
        lua_pushvalue(L, r.name);
        lua_rawget(L, -2);
        if (!lua_isnil(L, -1))
            error = "ERR Function already exists in the library";
    }
    if (!error && load->lib->bytes > LIBRARIES_BYTES_MAX)
        error = "ERR the library is too large";
    if (error) {
        script_push_error(L, error, false);
        return lua_error(L);
    }
    lua_pop(L, 1);
    lua_pushvalue(L, r.name);
    lua_pushvalue(L, r.callback);
    lua_rawset(L, -3);
    function_lib_add(load->lib, string_at(L, r.name), r.description ? string_at(L, r.description) : SLICE_NONE,
                     r.flags);
    return 0;
}

void library_check_time(lua_State *L)
{
    const struct library_load *load = script_of(L)->load;

    if (load->until_us == 0 || clock_mono_us() < load->until_us)
        return;
    script_push_error(L, "ERR FUNCTION LOAD timeout", false);
    lua_error(L);
}

/* ---- loading ---- */

static void load_error(lua_State *L, const char *what, struct buf *err)
{
    const char *text, *code = "";

    if (lua_istable(L, -1)) {
        lua_pushliteral(L, "err");
        lua_rawget(L, -2);
        text = lua_tostring(L, -1);
    } else {
        text = lua_tostring(L, -1);
        code = *what == 'r' ? "ERR " : "";
    }
    buf_printf(err, "Error %s: %s%s", what, code, text ? text : "unknown error");
}

/* Its functions are left in the registry at *ref. NULL: *err says why. */
static struct function_lib *library_load(struct script_worker *sw, struct slice name, struct slice source, size_t skip,
                                         int64_t until_us, int *ref, struct buf *err)
{
    lua_State *L = sw->lua;
    struct library_load load = {function_lib_create(name, source, skip), LUA_NOREF, until_us};

    script_lua_begin(sw);
    lua_newtable(L);
    load.ref = luaL_ref(L, LUA_REGISTRYINDEX);
    script_lua_show(sw, true);
    sw->strict = true;
    if (luaL_loadbuffer(L, source.ptr + skip, source.len - skip, "@user_function") != 0) {
        load_error(L, "compiling function", err);
    } else {
        sw->load = &load;
        if (lua_pcall(L, 0, 0, 0) != 0)
            load_error(L, "registering functions", err);
        else if (load.lib->n == 0)
            buf_printf(err, "No functions registered");
        sw->load = NULL;
    }
    sw->strict = false;
    script_lua_show(sw, false);
    lua_settop(L, STACK_GLOBALS);
    if (err->len > 0)
        luaL_unref(L, LUA_REGISTRYINDEX, load.ref);
    script_collect(sw);
    if (err->len > 0) {
        function_lib_unref(load.lib);
        return NULL;
    }
    load.lib->world = !library_is_declared(SLICE(source.ptr + skip, source.len - skip));
    *ref = load.ref;
    return load.lib;
}

struct function_lib *library_new(struct worker *w, struct slice source, int64_t until_us, int *ref, struct buf *err)
{
    struct script_worker *sw = library_worker(w);
    struct function_lib *lib = NULL;
    struct buf name;
    size_t skip;

    if (source.len > LIBRARIES_BYTES_MAX) {
        buf_printf(err, "the library is larger than %zu bytes", LIBRARIES_BYTES_MAX);
        return NULL;
    }
    if (until_us && clock_mono_us() >= until_us) {
        buf_printf(err, "FUNCTION LOAD timeout");
        return NULL;
    }
    buf_init(&name, MEM_OTHER);
    if (function_header(source, &name, &skip, err))
        lib = library_load(sw, buf_slice(&name), source, skip, until_us, ref, err);
    buf_deinit(&name);
    return lib;
}

void library_keep(struct worker *w, const struct function_lib *lib, int ref)
{
    struct script_worker *sw = library_worker(w);
    int i = function_set_lib(sw->set, slice_str(lib->name));

    if (i >= 0 && sw->set->lib[i] == lib && sw->refs[i] == LUA_NOREF)
        sw->refs[i] = ref;
    else
        library_drop(w, ref);
}

void library_drop(struct worker *w, int ref)
{
    luaL_unref(library_worker(w)->lua, LUA_REGISTRYINDEX, ref);
}

/* ---- a worker's ---- */

/* Libraries that are still there keep what they are. */
static void worker_update(struct script_worker *sw)
{
    uint64_t generation;
    struct function_set *old = sw->set, *set = functions_get(sw->w->cmd->functions, &generation);
    int *refs = mem_alloc(MEM_OTHER, (size_t)(set->nlibs + 1) * sizeof(int));

    for (int i = 0; i < set->nlibs; i++)
        refs[i] = LUA_NOREF;
    for (int i = 0; old && i < old->nlibs; i++) {
        int now = function_set_lib(set, slice_str(old->lib[i]->name));
        if (now >= 0 && set->lib[now] == old->lib[i])
            refs[now] = sw->refs[i];
        else
            luaL_unref(sw->lua, LUA_REGISTRYINDEX, sw->refs[i]);
    }
    mem_free(MEM_OTHER, sw->refs);
    function_set_unref(old);
    sw->set = set;
    sw->refs = refs;
    sw->generation = generation;
}

struct script_worker *library_worker(struct worker *w)
{
    struct script_worker *sw = atomic_load_explicit(&w->cmd_worker->library, memory_order_relaxed);

    if (UNLIKELY(!sw)) {
        sw = script_worker_create(w, true);
        script_lua_create(sw);
        atomic_store(&w->cmd_worker->library, sw);
    }
    if (UNLIKELY(!sw->set || sw->generation != functions_generation(w->cmd->functions)))
        worker_update(sw);
    return sw;
}

void library_worker_deinit(struct worker *w)
{
    struct script_worker *sw = atomic_exchange(&w->cmd_worker->library, NULL);

    if (!sw)
        return;
    function_set_unref(sw->set);
    mem_free(MEM_OTHER, sw->refs);
    script_worker_destroy(sw);
}

/* ---- FCALL ---- */

static bool compiled_here(struct script_worker *sw, struct call *c, int which)
{
    const struct function_lib *lib = sw->set->lib[which];
    struct buf err;

    if (LIKELY(sw->refs[which] != LUA_NOREF))
        return true;
    buf_init(&err, MEM_OTHER);
    struct function_lib *again = library_load(sw, slice_str(lib->name), lib->source, lib->skip,
                                              clock_mono_us() + LIBRARY_LOAD_US, &sw->refs[which], &err);
    if (!again)
        call_errorf(c, "ERR %.*s", (int)err.len, err.ptr);
    function_lib_unref(again);
    buf_deinit(&err);
    return again != NULL;
}

bool library_prepare(struct script_worker *sw, struct call *c, struct script_target *t, int *nkeys)
{
    int which;
    const struct function *fn = function_set_find(sw->set, c->argv[1], &which);
    int64_t n;

    if (!fn) {
        call_error(c, "ERR Function not found");
        return false;
    }
    if (c->oom && !(fn->flags & (SCRIPT_ALLOW_OOM | SCRIPT_NO_WRITES)) && !c->in_exec) {
        call_error(c, "OOM command not allowed when used memory > 'maxmemory'.");
        return false;
    }
    if (!script_arg_keys(c, "ERR Bad number of keys provided", &n) || !script_flags_allow(c, fn->flags) ||
        !compiled_here(sw, c, which))
        return false;
    *nkeys = (int)n;
    *t = (struct script_target){fn->name, fn->flags, sw->set->lib[which]->world, sw->refs[which]};
    return true;
}
