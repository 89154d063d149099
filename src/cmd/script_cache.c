/* The sources of scripts, which the process shares, and what each worker has compiled of them. */
#include "tiercel/hash.h"
#include "tiercel/digest.h"

#include "cmd/script_priv.h"

#define CACHED_MAX 10000 /* scripts; the oldest go */
#define CACHED_BYTES_MAX ((size_t)64 << 20)

/* ---- the cache of the process ---- */

struct scripts {
    pthread_mutex_t lock;
    struct list oldest;
    struct script *bucket[SCRIPT_BUCKETS];
    int count;
    size_t bytes;
    _Atomic uint64_t generation; /* SCRIPT FLUSH: what workers have compiled is void */
};

struct scripts *scripts_create(void)
{
    struct scripts *ss = mem_calloc(MEM_OTHER, sizeof(*ss));

    pthread_mutex_init(&ss->lock, NULL);
    list_init(&ss->oldest);
    return ss;
}

void script_unref(struct script *s)
{
    if (atomic_fetch_sub(&s->refs, 1) == 1)
        mem_free(MEM_OTHER, s);
}

static unsigned sha_bucket(const char *sha)
{
    unsigned v = 0;

    for (int i = 0; i < 5; i++)
        v = v << 4 | (unsigned)(sha[i] <= '9' ? sha[i] - '0' : (sha[i] - 'a' + 10) & 15);
    return v % SCRIPT_BUCKETS;
}

static void remove_locked(struct scripts *ss, struct script *s)
{
    struct script **at = &ss->bucket[sha_bucket(s->sha)];

    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    list_remove(&s->link);
    ss->count--;
    ss->bytes -= s->len + sizeof(*s);
    script_unref(s);
}

static void flush_locked(struct scripts *ss)
{
    while (!list_empty(&ss->oldest))
        remove_locked(ss, LIST_ENTRY(ss->oldest.next, struct script, link));
}

void scripts_destroy(struct scripts *ss)
{
    flush_locked(ss);
    pthread_mutex_destroy(&ss->lock);
    mem_free(MEM_OTHER, ss);
}

void scripts_flush(struct scripts *ss)
{
    pthread_mutex_lock(&ss->lock);
    flush_locked(ss);
    pthread_mutex_unlock(&ss->lock);
    atomic_fetch_add(&ss->generation, 1);
}

static struct script *find_locked(struct scripts *ss, const char *sha)
{
    struct script *s = ss->bucket[sha_bucket(sha)];

    while (s && memcmp(s->sha, sha, 40) != 0)
        s = s->next;
    return s;
}

struct script *scripts_find(struct scripts *ss, const char *sha)
{
    pthread_mutex_lock(&ss->lock);
    struct script *s = find_locked(ss, sha);
    if (s)
        atomic_fetch_add(&s->refs, 1);
    pthread_mutex_unlock(&ss->lock);
    return s;
}

void scripts_add(struct scripts *ss, struct script *s)
{
    pthread_mutex_lock(&ss->lock);
    if (!find_locked(ss, s->sha)) {
        atomic_fetch_add(&s->refs, 1);
        s->next = ss->bucket[sha_bucket(s->sha)];
        ss->bucket[sha_bucket(s->sha)] = s;
        list_push_back(&ss->oldest, &s->link);
        ss->count++;
        ss->bytes += s->len + sizeof(*s);
        while (ss->count > 1 && (ss->count > CACHED_MAX || ss->bytes > CACHED_BYTES_MAX))
            remove_locked(ss, LIST_ENTRY(ss->oldest.next, struct script, link));
    }
    pthread_mutex_unlock(&ss->lock);
}

void script_figures(const struct cmd *cmd, struct script_figures *f)
{
    struct scripts *ss = cmd->scripts;

    *f = (struct script_figures){0};
    pthread_mutex_lock(&ss->lock);
    f->scripts = ss->count;
    f->bytes = (int64_t)ss->bytes;
    pthread_mutex_unlock(&ss->lock);
    for (int i = 0; i < cmd->nworkers; i++) {
        struct script_worker *sw = atomic_load(&cmd->workers[i]->cmd_worker->script);
        struct script_worker *fw = atomic_load(&cmd->workers[i]->cmd_worker->library);
        f->vm_bytes += sw ? (int64_t)atomic_load_explicit(&sw->bytes_seen, memory_order_relaxed) : 0;
        f->vm_functions += fw ? (int64_t)atomic_load_explicit(&fw->bytes_seen, memory_order_relaxed) : 0;
    }
    functions_figures(cmd->functions, f);
}

/* ---- a worker's ---- */

static void compiled_drop(struct script_worker *sw)
{
    for (int i = 0; i < SCRIPT_BUCKETS; i++) {
        for (struct compiled *k = sw->by_sha[i], *next; k; k = next) {
            next = k->next_sha;
            script_unref(k->script);
            mem_free(MEM_OTHER, k);
        }
        sw->by_sha[i] = sw->by_body[i] = NULL;
    }
    sw->count = 0;
}

struct script_worker *script_worker_create(struct worker *w, bool functions)
{
    struct script_worker *sw = mem_calloc(MEM_OTHER, sizeof(*sw));

    sw->w = w;
    sw->functions = functions;
    sw->collect = SCRIPT_COLLECT_BYTES;
    chain_init(&sw->out);
    sw->out.pool = &w->cmd_worker->replies;
    buf_init(&sw->flat, MEM_OTHER);
    buf_init(&sw->packed, MEM_OTHER);
    return sw;
}

struct script_worker *script_worker(struct worker *w)
{
    struct script_worker *sw = atomic_load_explicit(&w->cmd_worker->script, memory_order_relaxed);
    uint64_t generation = atomic_load_explicit(&w->cmd->scripts->generation, memory_order_acquire);

    if (UNLIKELY(!sw)) {
        sw = script_worker_create(w, false);
        sw->generation = generation;
        atomic_store(&w->cmd_worker->script, sw);
    }
    if (UNLIKELY(sw->generation != generation || sw->count > CACHED_MAX)) {
        compiled_drop(sw);
        script_lua_destroy(sw);
        sw->generation = generation;
    }
    if (UNLIKELY(!sw->lua))
        script_lua_create(sw);
    return sw;
}

void script_worker_destroy(struct script_worker *sw)
{
    compiled_drop(sw);
    script_lua_destroy(sw);
    chain_deinit(&sw->out);
    buf_deinit(&sw->flat);
    buf_deinit(&sw->packed);
    mem_free(MEM_OTHER, sw->argv);
    mem_free(MEM_OTHER, sw->numbers);
    mem_free(MEM_OTHER, sw->keys);
    mem_free(MEM_OTHER, sw);
}

void script_worker_deinit(struct worker *w)
{
    struct script_worker *sw = atomic_exchange(&w->cmd_worker->script, NULL);

    if (sw)
        script_worker_destroy(sw);
    library_worker_deinit(w);
}

static struct compiled *compiled_by_body(struct script_worker *sw, struct slice body, uint64_t hash)
{
    for (struct compiled *k = sw->by_body[hash % SCRIPT_BUCKETS]; k; k = k->next_body)
        if (k->body_hash == hash && slice_eq(SLICE(k->script->source, k->script->len), body))
            return k;
    return NULL;
}

static struct compiled *compiled_by_sha(struct script_worker *sw, const char *sha)
{
    for (struct compiled *k = sw->by_sha[sha_bucket(sha)]; k; k = k->next_sha)
        if (memcmp(k->script->sha, sha, 40) == 0)
            return k;
    return NULL;
}

/* ---- making a script ---- */

static uint64_t body_hash(struct slice body)
{
    return hash_bytes(0, body.ptr, body.len);
}

/* Takes what stands before the next separator, and that. */
static struct slice take_field(struct slice *rest, const char *separators)
{
    size_t n = 0;

    while (n < rest->len && !strchr(separators, rest->ptr[n]))
        n++;
    struct slice field = SLICE(rest->ptr, n);
    size_t used = n < rest->len ? n + 1 : n;
    *rest = SLICE(rest->ptr + used, rest->len - used);
    return field;
}

const struct script_flag script_flags[] = {{"no-writes", SCRIPT_NO_WRITES},
                                           {"allow-oom", SCRIPT_ALLOW_OOM},
                                           {"allow-stale", SCRIPT_ALLOW_STALE},
                                           {"no-cluster", SCRIPT_NO_CLUSTER},
                                           {"allow-cross-slot-keys", SCRIPT_CROSS_SLOT},
                                           {NULL, 0}};

static bool flag_parse(struct call *c, struct slice name, unsigned *flags)
{
    for (const struct script_flag *f = script_flags; f->name; f++) {
        if (slice_eq(name, slice_str(f->name))) {
            *flags |= f->flag;
            return true;
        }
    }
    call_errorf(c, "ERR Unexpected flag in script shebang: %.*s", SLICE_FMT(name));
    return false;
}

static bool flags_parse(struct call *c, struct slice list, unsigned *flags)
{
    bool more = list.len > 0;

    while (more) {
        struct slice name = take_field(&list, ",");
        more = list.len > 0 || name.ptr[name.len] == ','; /* one more behind the last comma: empty */
        if (!flag_parse(c, name, flags))
            return false;
    }
    return true;
}

/* "#!lua flags=...". false: the error was replied. */
static bool shebang_parse(struct call *c, struct slice body, unsigned *flags, size_t *skip)
{
    struct slice word;

    *flags = 0;
    *skip = 0;
    if (body.len < 2 || memcmp(body.ptr, "#!", 2) != 0)
        return true;
    const char *end = memchr(body.ptr, '\n', body.len);
    if (!end) {
        call_error(c, "ERR Invalid script shebang");
        return false;
    }
    *skip = (size_t)(end - body.ptr);
    *flags = SCRIPT_HAS_FLAGS;
    struct slice line = SLICE(body.ptr, *skip);
    word = take_field(&line, " \t\r");
    if (!slice_eq(word, SLICE_LIT("#!lua"))) {
        call_errorf(c, "ERR Unexpected engine in script shebang: %.*s", SLICE_FMT(word));
        return false;
    }
    while (line.len > 0) {
        word = take_field(&line, " \t\r");
        if (word.len == 0)
            continue;
        if (word.len < 6 || memcmp(word.ptr, "flags=", 6) != 0) {
            call_errorf(c, "ERR Unknown lua shebang option: %.*s", SLICE_FMT(word));
            return false;
        }
        if (!flags_parse(c, SLICE(word.ptr + 6, word.len - 6), flags))
            return false;
    }
    return true;
}

/* Compiles it here. NULL: the error was replied. Takes the reference. */
static struct compiled *compile(struct script_worker *sw, struct call *c, struct script *s)
{
    lua_State *L = sw->lua;

    if (!script_lua_compile(sw, s)) {
        const char *text = lua_tostring(L, -1);
        call_errorf(c, "ERR Error compiling script (new function): %s", text ? text : "not enough memory");
        lua_settop(L, STACK_GLOBALS);
        script_unref(s);
        return NULL;
    }
    struct compiled *k = mem_calloc(MEM_OTHER, sizeof(*k));
    k->script = s;
    k->ref = luaL_ref(L, LUA_REGISTRYINDEX);
    k->body_hash = body_hash(SLICE(s->source, s->len));
    k->next_body = sw->by_body[k->body_hash % SCRIPT_BUCKETS];
    sw->by_body[k->body_hash % SCRIPT_BUCKETS] = k;
    k->next_sha = sw->by_sha[sha_bucket(s->sha)];
    sw->by_sha[sha_bucket(s->sha)] = k;
    sw->count++;
    return k;
}

struct compiled *script_of_body(struct script_worker *sw, struct call *c, struct slice body)
{
    struct compiled *k = compiled_by_body(sw, body, body_hash(body));
    unsigned flags;
    size_t skip;
    char sha[41];

    if (LIKELY(k != NULL))
        return k;
    if (!shebang_parse(c, body, &flags, &skip))
        return NULL;
    sha1_hex(body, sha);
    struct script *s = scripts_find(sw->w->cmd->scripts, sha);
    if (s)
        return compile(sw, c, s);
    s = mem_calloc(MEM_OTHER, sizeof(*s) + body.len);
    s->refs = 1;
    memcpy(s->sha, sha, sizeof(sha));
    s->flags = flags;
    s->skip = skip;
    s->len = body.len;
    if (body.len)
        memcpy(s->source, body.ptr, body.len);
    s->world = !script_is_declared(SLICE(s->source + skip, body.len - skip));
    k = compile(sw, c, s);
    if (k)
        scripts_add(sw->w->cmd->scripts, s);
    return k;
}

bool script_sha_lower(struct slice name, char sha[41])
{
    if (name.len != 40)
        return false;
    for (int i = 0; i < 40; i++)
        sha[i] = name.ptr[i] >= 'A' && name.ptr[i] <= 'Z' ? (char)(name.ptr[i] + 32) : name.ptr[i];
    sha[40] = '\0';
    return true;
}

struct compiled *script_of_sha(struct script_worker *sw, struct call *c, struct slice name)
{
    char sha[41];
    struct compiled *k = NULL;

    if (!script_sha_lower(name, sha) || (k = compiled_by_sha(sw, sha)))
        return k;
    struct script *s = scripts_find(sw->w->cmd->scripts, sha);
    return s ? compile(sw, c, s) : NULL;
}
