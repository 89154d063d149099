/* Libraries of functions: what their first lines say, snapshots of them all, and changes. */
#include <ctype.h>
#include <stdlib.h>
#include <strings.h>

#include "tiercel/clock.h"

#include "cmd/function_priv.h"

struct functions {
    pthread_mutex_t change; /* one change at a time; held while the file is written */
    char *path;             /* of it; NULL: none */
    pthread_mutex_t lock;   /* guards what follows; taken within `change` */
    struct function_set *set;
    struct list running;
    _Atomic uint64_t generation;
};

/* ---- the first line ---- */

bool function_name_ok(struct slice name)
{
    for (size_t i = 0; i < name.len; i++)
        if (!isalnum((unsigned char)name.ptr[i]) && name.ptr[i] != '_')
            return false;
    return name.len > 0;
}

static bool header_words(const struct request *words, struct buf *name, struct buf *err)
{
    static const char bad_name[] =
        "Library names can only contain letters, numbers, or underscores(_) and must be at least one character long";
    struct slice engine = SLICE(words->argv[0].ptr + 2, words->argv[0].len - 2);
    bool named = false;

    for (int i = 1; i < words->argc; i++) {
        struct slice word = words->argv[i];
        if (word.len < 5 || strncasecmp(word.ptr, "name=", 5) != 0) {
            buf_printf(err, "Invalid metadata value given: %.*s", SLICE_FMT(word));
            return false;
        }
        if (named) {
            buf_printf(err, "Invalid metadata value, name argument was given multiple times");
            return false;
        }
        named = true;
        buf_append(name, word.ptr + 5, word.len - 5);
    }
    if (!named)
        buf_printf(err, "Library name was not given");
    else if (!function_name_ok(buf_slice(name)))
        buf_printf(err, "%s", bad_name);
    else if (!slice_is(engine, "lua"))
        buf_printf(err, "Engine '%.*s' not found", SLICE_FMT(engine));
    return err->len == 0;
}

bool function_header(struct slice source, struct buf *name, size_t *skip, struct buf *err)
{
    struct request words;

    if (source.len < 2 || memcmp(source.ptr, "#!", 2) != 0) {
        buf_printf(err, "Missing library metadata");
        return false;
    }
    const char *end = memchr(source.ptr, '\n', source.len);
    *skip = end ? (size_t)(end - source.ptr) : 0;
    if (!end || memchr(source.ptr, '\0', *skip)) {
        buf_printf(err, "Invalid library metadata");
        return false;
    }
    request_init(&words);
    bool ok = resp_split_line(SLICE(source.ptr, *skip), &words) && words.argc > 0 && words.argv[0].len >= 2;
    if (ok)
        ok = header_words(&words, name, err);
    else
        buf_printf(err, "Invalid library metadata");
    request_deinit(&words);
    return ok;
}

/* ---- libraries ---- */

static char *copy_text(struct slice s)
{
    char *text = mem_alloc(MEM_OTHER, s.len + 1);

    if (s.len)
        memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    return text;
}

struct function_lib *function_lib_create(struct slice name, struct slice source, size_t skip)
{
    struct function_lib *lib = mem_calloc(MEM_OTHER, sizeof(*lib));

    lib->refs = 1;
    lib->name = copy_text(name);
    lib->source = SLICE(copy_text(source), source.len);
    lib->skip = skip;
    lib->bytes = sizeof(*lib) + name.len + source.len;
    return lib;
}

void function_lib_add(struct function_lib *lib, struct slice name, struct slice description, unsigned flags)
{
    if (lib->n == lib->cap) {
        lib->cap = lib->cap ? lib->cap * 2 : 4;
        lib->fn = mem_realloc(MEM_OTHER, lib->fn, (size_t)lib->cap * sizeof(*lib->fn));
    }
    struct function *fn = &lib->fn[lib->n++];
    *fn = (struct function){copy_text(name), SLICE_NONE, flags};
    if (description.ptr)
        fn->description = SLICE(copy_text(description), description.len);
    lib->bytes += sizeof(*fn) + name.len + description.len;
}

void function_lib_unref(struct function_lib *lib)
{
    if (!lib || atomic_fetch_sub(&lib->refs, 1) != 1)
        return;
    for (int i = 0; i < lib->n; i++) {
        mem_free(MEM_OTHER, lib->fn[i].name);
        mem_free(MEM_OTHER, (char *)lib->fn[i].description.ptr);
    }
    mem_free(MEM_OTHER, lib->fn);
    mem_free(MEM_OTHER, (char *)lib->source.ptr);
    mem_free(MEM_OTHER, lib->name);
    mem_free(MEM_OTHER, lib);
}

/* ---- snapshots ---- */

struct function_set *function_set_create(void)
{
    struct function_set *set = mem_calloc(MEM_OTHER, sizeof(*set));

    set->refs = 1;
    return set;
}

void function_set_unref(struct function_set *set)
{
    if (!set || atomic_fetch_sub(&set->refs, 1) != 1)
        return;
    for (int i = 0; i < set->nlibs; i++)
        function_lib_unref(set->lib[i]);
    mem_free(MEM_OTHER, set->lib);
    mem_free(MEM_OTHER, set->at);
    mem_free(MEM_OTHER, set);
}

static int name_compare(struct slice a, const char *b)
{
    size_t n = strlen(b);
    int order = memcmp(a.ptr, b, a.len < n ? a.len : n);

    return order ? order : (a.len > n) - (a.len < n);
}

int function_set_lib(const struct function_set *set, struct slice name)
{
    int from = 0, to = set->nlibs;

    while (from < to) {
        int mid = (from + to) / 2;
        int order = name_compare(name, set->lib[mid]->name);
        if (order == 0)
            return mid;
        if (order < 0)
            to = mid;
        else
            from = mid + 1;
    }
    return -1;
}

static const struct function *function_at(const struct function_set *set, int i)
{
    return &set->lib[set->at[i].lib]->fn[set->at[i].fn];
}

const struct function *function_set_find(const struct function_set *set, struct slice name, int *lib)
{
    int from = 0, to = set->n;

    while (from < to) { /* the first that is not before it */
        int mid = (from + to) / 2;
        const char *other = function_at(set, mid)->name;
        size_t n = strlen(other);
        int order = strncasecmp(other, name.ptr, n < name.len ? n : name.len);
        if (order < 0 || (order == 0 && n < name.len))
            from = mid + 1;
        else
            to = mid;
    }
    if (from == set->n || !slice_is(name, function_at(set, from)->name))
        return NULL;
    *lib = set->at[from].lib;
    return function_at(set, from);
}

static int lib_order(const void *a, const void *b)
{
    return strcmp((*(struct function_lib *const *)a)->name, (*(struct function_lib *const *)b)->name);
}

static int at_order(const void *a, const void *b, void *arg)
{
    const struct function_set *set = arg;
    const struct function_at *x = a, *y = b;
    int order = strcasecmp(set->lib[x->lib]->fn[x->fn].name, set->lib[y->lib]->fn[y->fn].name);

    if (order == 0)
        order = (x->lib > y->lib) - (x->lib < y->lib);
    return order ? order : (x->fn > y->fn) - (x->fn < y->fn);
}

/* From its libraries, which it has already. */
static void set_index(struct function_set *set)
{
    qsort(set->lib, (size_t)set->nlibs, sizeof(struct function_lib *), lib_order);
    for (int i = 0; i < set->nlibs; i++) {
        set->n += set->lib[i]->n;
        set->bytes += set->lib[i]->bytes;
    }
    set->at = mem_alloc(MEM_OTHER, (size_t)(set->n + 1) * sizeof(*set->at));
    int n = 0;
    for (int i = 0; i < set->nlibs; i++)
        for (int k = 0; k < set->lib[i]->n; k++)
            set->at[n++] = (struct function_at){i, k};
    qsort_r(set->at, (size_t)n, sizeof(*set->at), at_order, set);
}

static void set_take(struct function_set *set, struct function_lib *lib)
{
    atomic_fetch_add(&lib->refs, 1);
    set->lib[set->nlibs++] = lib;
}

static bool among(const struct function_lib *lib, struct function_lib *const *libs, int n)
{
    for (int i = 0; i < n; i++)
        if (libs[i] == lib)
            return true;
    return false;
}

/* No two libraries, and no functions of two libraries, may have one name. */
static bool set_check(const struct function_set *set, struct function_lib *const *added, int nadded, struct buf *err)
{
    for (int i = 1; i < set->nlibs; i++) {
        if (strcmp(set->lib[i - 1]->name, set->lib[i]->name) == 0) {
            buf_printf(err, "Library %s already exists", set->lib[i]->name);
            return false;
        }
    }
    for (int i = 1; i < set->n; i++) {
        struct function_at x = set->at[i - 1], y = set->at[i];
        if (x.lib == y.lib || strcasecmp(function_at(set, i - 1)->name, function_at(set, i)->name) != 0)
            continue;
        int is_new = among(set->lib[y.lib], added, nadded) ? i : i - 1;
        buf_printf(err, "Function %s already exists", function_at(set, is_new)->name);
        return false;
    }
    if (set->nlibs > LIBRARIES_MAX)
        buf_printf(err, "there would be more than %d libraries", LIBRARIES_MAX);
    else if (set->bytes > LIBRARIES_BYTES_MAX)
        buf_printf(err, "the libraries would be larger than %zu bytes together", LIBRARIES_BYTES_MAX);
    return err->len == 0;
}

/* ---- the process's ---- */

struct functions *functions_create(void)
{
    struct functions *fs = mem_calloc(MEM_OTHER, sizeof(*fs));

    CHECK(pthread_mutex_init(&fs->change, NULL) == 0);
    CHECK(pthread_mutex_init(&fs->lock, NULL) == 0);
    list_init(&fs->running);
    fs->set = function_set_create();
    return fs;
}

void functions_destroy(struct functions *fs)
{
    function_set_unref(fs->set);
    mem_free(MEM_OTHER, fs->path);
    pthread_mutex_destroy(&fs->lock);
    pthread_mutex_destroy(&fs->change);
    mem_free(MEM_OTHER, fs);
}

void functions_keep(struct functions *fs, const char *path)
{
    pthread_mutex_lock(&fs->change);
    mem_free(MEM_OTHER, fs->path);
    fs->path = copy_text(slice_str(path));
    pthread_mutex_unlock(&fs->change);
}

uint64_t functions_generation(struct functions *fs)
{
    return atomic_load_explicit(&fs->generation, memory_order_acquire);
}

struct function_set *functions_get(struct functions *fs, uint64_t *generation)
{
    pthread_mutex_lock(&fs->lock);
    struct function_set *set = fs->set;
    atomic_fetch_add(&set->refs, 1);
    if (generation)
        *generation = atomic_load(&fs->generation);
    pthread_mutex_unlock(&fs->lock);
    return set;
}

void functions_figures(struct functions *fs, struct script_figures *f)
{
    pthread_mutex_lock(&fs->lock);
    f->libraries = fs->set->nlibs;
    f->functions = fs->set->n;
    f->function_bytes = (int64_t)fs->set->bytes;
    pthread_mutex_unlock(&fs->lock);
}

/* Under `change`. Takes the reference. */
static bool publish(struct functions *fs, struct function_set *next, struct buf *err)
{
    if (fs->path && !function_file_write(fs->path, next, err)) {
        function_set_unref(next);
        return false;
    }
    pthread_mutex_lock(&fs->lock);
    struct function_set *old = fs->set;
    fs->set = next;
    atomic_fetch_add(&fs->generation, 1);
    pthread_mutex_unlock(&fs->lock);
    function_set_unref(old);
    return true;
}

static bool is_replaced(const struct function_lib *old, struct function_lib *const *libs, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(old->name, libs[i]->name) == 0)
            return true;
    return false;
}

bool functions_change(struct functions *fs, struct function_lib *const *libs, int n, enum function_policy policy,
                      struct buf *err)
{
    struct function_set *next = function_set_create();

    pthread_mutex_lock(&fs->change);
    const struct function_set *now = fs->set; /* only those who hold `change` replace it */
    next->lib = mem_alloc(MEM_OTHER, (size_t)(now->nlibs + n + 1) * sizeof(struct function_lib *));
    for (int i = 0; i < now->nlibs && policy != FUNCTION_FLUSH; i++)
        if (policy != FUNCTION_REPLACE || !is_replaced(now->lib[i], libs, n))
            set_take(next, now->lib[i]);
    for (int i = 0; i < n; i++)
        set_take(next, libs[i]);
    set_index(next);
    bool ok = set_check(next, libs, n, err);
    if (ok)
        ok = publish(fs, next, err);
    else
        function_set_unref(next);
    pthread_mutex_unlock(&fs->change);
    return ok;
}

bool functions_delete(struct functions *fs, struct slice name, struct buf *err)
{
    struct function_set *next = function_set_create();

    pthread_mutex_lock(&fs->change);
    int which = function_set_lib(fs->set, name);
    next->lib = mem_alloc(MEM_OTHER, (size_t)(fs->set->nlibs + 1) * sizeof(struct function_lib *));
    for (int i = 0; i < fs->set->nlibs && which >= 0; i++)
        if (i != which)
            set_take(next, fs->set->lib[i]);
    set_index(next);
    bool ok = which >= 0 && publish(fs, next, err);
    if (which < 0) {
        buf_printf(err, "Library not found");
        function_set_unref(next);
    }
    pthread_mutex_unlock(&fs->change);
    return ok;
}

/* ---- what runs ---- */

void function_running_note(struct worker *w, const char *name, const struct call *c, int64_t begin_us,
                           struct function_running **out)
{
    struct functions *fs = w->cmd->functions;
    struct function_running *r = mem_calloc(MEM_OTHER, sizeof(*r));

    r->name = copy_text(slice_str(name));
    r->argc = c->argc;
    r->argv = mem_alloc(MEM_OTHER, (size_t)c->argc * sizeof(*r->argv));
    for (int i = 0; i < c->argc; i++)
        r->argv[i] = SLICE(copy_text(c->argv[i]), c->argv[i].len);
    r->begin_us = begin_us;
    pthread_mutex_lock(&fs->lock);
    list_push_back(&fs->running, &r->link);
    pthread_mutex_unlock(&fs->lock);
    *out = r;
}

void function_running_end(struct worker *w, struct function_running **running)
{
    struct functions *fs = w->cmd->functions;
    struct function_running *r = *running;

    *running = NULL;
    if (!r)
        return;
    pthread_mutex_lock(&fs->lock);
    list_remove(&r->link);
    pthread_mutex_unlock(&fs->lock);
    for (int i = 0; i < r->argc; i++)
        mem_free(MEM_OTHER, (char *)r->argv[i].ptr);
    mem_free(MEM_OTHER, r->argv);
    mem_free(MEM_OTHER, r->name);
    mem_free(MEM_OTHER, r);
}

void functions_running(struct functions *fs, void (*fn)(void *arg, const struct function_running *running), void *arg)
{
    pthread_mutex_lock(&fs->lock);
    fn(arg, list_empty(&fs->running) ? NULL : LIST_ENTRY(fs->running.next, struct function_running, link));
    pthread_mutex_unlock(&fs->lock);
}
