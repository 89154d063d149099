#ifndef CMD_SCRIPT_PRIV_H
#define CMD_SCRIPT_PRIV_H

#include <lauxlib.h>
#include <lua.h>

#include "cmd/cmd_priv.h"
#include "cmd/function_priv.h"

/* Scripts: a cache of sources that the process shares, and per worker a Lua state, made at its first use, with what
 * was compiled of them. Functions: libraries that the process shares (function_priv.h), and per worker another state.
 *
 *   script.c          EVAL, FCALL and SCRIPT: locks, and what a script waits for
 *   script_library.c  a worker's libraries: what they register, and FCALL's side of it
 *   script_cache.c    sources and what was compiled
 *   script_lua.c      the state: its sandbox, memory and time
 *   script_api.c      redis.*
 *   script_reply.c    replies to Lua values and back
 *   script_scan.c     does a script take its keys from KEYS only?
 *   script_msgpack.c, script_struct.c
 */

/* Flags of a "#!lua flags=" line. */
enum script_flags {
    SCRIPT_NO_WRITES = 1 << 0,
    SCRIPT_ALLOW_OOM = 1 << 1,
    SCRIPT_HAS_FLAGS = 1 << 2, /* it has such a line, or is a function */
    SCRIPT_ALLOW_STALE = 1 << 3,
    SCRIPT_NO_CLUSTER = 1 << 4,
    SCRIPT_CROSS_SLOT = 1 << 5
};
struct script_flag {
    const char *name;
    unsigned flag;
};
extern const struct script_flag script_flags[]; /* to one without a name */

/* A source. Does not change once it is in the cache; counted. */
struct script {
    _Atomic int refs;
    struct list link;    /* of the cache, oldest first */
    struct script *next; /* in its bucket */
    char sha[41];
    unsigned flags;
    bool world;  /* may name keys that are not in KEYS: all shards are locked */
    size_t skip; /* of its first line, which is not Lua's */
    size_t len;
    char source[];
};

struct compiled {
    struct compiled *next_body, *next_sha;
    struct script *script;
    uint64_t body_hash;
    int ref; /* of its function, in the registry */
};

#define SCRIPT_BUCKETS 1024

enum script_abort {
    ABORT_NOT,
    ABORT_MISSING, /* a key is not in memory: `missing`, and the script runs again */
    ABORT_WORLD,   /* it needs other shards than are locked, and runs again */
    ABORT_KILLED
};

/* What is to run. */
struct script_target {
    const char *name; /* in messages: a script's SHA1, or the function's name */
    unsigned flags;   /* enum script_flags */
    bool world;
    int ref; /* in the registry: the script's function, or a library's table of functions by name */
};

/* One run. Its worker's; what other threads read is atomic. */
struct script_run {
    struct call *c;
    const char *name;
    unsigned flags;
    lua_State *main;
    const struct lockset *locks;
    int proto;           /* redis.setresp() */
    bool read_only, oom; /* oom: memory was full when it began */
    enum status may_write;
    bool at_once; /* keys are read from disk at once */
    enum script_abort abort;
    struct buf missing; /* name */
    int missing_db;
    int64_t begin_us;
};

struct library_load;

struct script_worker {
    struct worker *w;
    bool functions; /* the state of functions, not of scripts */
    lua_State *lua; /* NULL: none yet */
    uint64_t generation;
    size_t bytes, limit;
    bool strict; /* a script runs: the limit holds */
    int count;
    struct compiled *by_body[SCRIPT_BUCKETS], *by_sha[SCRIPT_BUCKETS];
    struct script_run *run; /* NULL: none */

    /* Of functions: the libraries that this worker knows, and where in the registry each one's functions are. */
    struct function_set *set;
    int *refs;                 /* LUA_NOREF: not compiled here */
    struct library_load *load; /* one registers its functions */
    struct function_running *running;

    /* Of redis.call(): used again. */
    struct slice *argv;
    char *numbers;
    int argv_cap;
    struct call_key *keys;
    int keys_cap;
    struct chain out;
    struct buf flat;
    struct buf packed; /* cmsgpack.pack() */
    int64_t served_us;
    size_t collect; /* bytes at which the state is cleaned */

    _Atomic size_t bytes_seen; /* for INFO */
    /* For SCRIPT KILL, which comes on other threads. */
    _Atomic bool slow, wrote, kill, die; /* die: whatever it has written */
};

/* ---- script_lua.c ---- */
#define SCRIPT_HOOK_STEPS 100000
/* Positions at the bottom of the state's stack. */
enum { STACK_ON_ERROR = 1, STACK_GLOBALS };
struct script_worker *script_of(lua_State *L);
bool script_lua_create(struct script_worker *sw);
void script_lua_destroy(struct script_worker *sw);
/* Leaves the function on the stack; false: an error text. */
bool script_lua_compile(struct script_worker *sw, const struct script *s);
/* While a library is loaded it sees other globals than when its functions run. */
void script_lua_show(struct script_worker *sw, bool loading);
/* Before each run, and after one that was stopped. */
void script_lua_begin(struct script_worker *sw);
void script_lua_rearm(struct script_worker *sw);
/* Makes every further instruction of the script fail. Raises. */
int script_raise_abort(lua_State *L, enum script_abort why);
void script_push_error(lua_State *L, const char *text, bool counted);

/* ---- script_cache.c ---- */
#define SCRIPT_COLLECT_BYTES ((size_t)8 << 20) /* a state that grew so large is cleaned after the run */
/* This worker's, made at the first use; with nothing in it after SCRIPT FLUSH. */
struct script_worker *script_worker(struct worker *w);
struct script_worker *script_worker_create(struct worker *w, bool functions); /* without a Lua state */
void script_worker_destroy(struct script_worker *sw);
/* The script of a source, whoever had it first. NULL: the error was replied. */
struct compiled *script_of_body(struct script_worker *sw, struct call *c, struct slice body);
/* NULL: there is none, or (c->failed) the error was replied. */
struct compiled *script_of_sha(struct script_worker *sw, struct call *c, struct slice name);
bool script_sha_lower(struct slice name, char sha[41]); /* false: that is none */
void script_unref(struct script *s);
struct script *scripts_find(struct scripts *ss, const char *sha); /* with a reference, or NULL */
void scripts_add(struct scripts *ss, struct script *s);           /* the caller keeps its reference */
void scripts_flush(struct scripts *ss);

/* ---- script.c ---- */
void script_collect(struct script_worker *sw); /* after a run: cleans a state that has grown */
/* Now and then while a script runs: true when it was told to end. */
bool script_over_time(struct script_worker *sw);

/* false: the error was replied; the first for numkeys (err: if it is no number), the other for where it may run. */
bool script_arg_keys(struct call *c, const char *err, int64_t *n);
bool script_flags_allow(struct call *c, unsigned flags);

/* ---- script_api.c ---- */
void script_api_open(lua_State *L);         /* leaves the table `redis` on the stack */
void script_api_open_loading(lua_State *L); /* the one that a library sees while it is loaded */

/* ---- script_library.c ---- */
/* This worker's for functions, with the libraries as they are now. */
struct script_worker *library_worker(struct worker *w);
/* What FCALL is to run. false: the error was replied. */
bool library_prepare(struct script_worker *sw, struct call *c, struct script_target *t, int *nkeys);
int library_register(lua_State *L); /* redis.register_function() */
void library_check_time(lua_State *L);

/* ---- script_reply.c ---- */
/* The reply in the chain, one Lua value. false: it was not to be had. */
bool script_push_reply(struct script_worker *sw, lua_State *L);
/* Replies the value on top of the stack and takes it. */
void script_reply_value(struct script_worker *sw, lua_State *L, struct reply *r);

/* ---- script_scan.c ---- */
bool script_is_declared(struct slice source);
bool library_is_declared(struct slice source);

int script_open_msgpack(lua_State *L);
int script_open_struct(lua_State *L);

#endif
