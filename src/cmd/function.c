/* FUNCTION: libraries of functions that FCALL calls (script_library.c). */
#include <limits.h>
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/glob.h"

#include "cmd/function_priv.h"
#include "cmd/script_priv.h"

static void reply_reason(struct call *c, const struct buf *err)
{
    call_errorf(c, "ERR %.*s", (int)err->len, err->ptr);
}

/* ---- changes ---- */

static bool is_there(struct functions *fs, struct slice name)
{
    struct function_set *set = functions_get(fs, NULL);
    bool there = function_set_lib(set, name) >= 0;

    function_set_unref(set);
    return there;
}

/* Before it is compiled, which may take its time. */
static bool may_load(struct functions *fs, struct slice source, bool replace, struct buf *err)
{
    struct buf name;
    size_t skip;

    buf_init(&name, MEM_OTHER);
    bool ok = function_header(source, &name, &skip, err);
    if (ok && !replace && is_there(fs, buf_slice(&name))) {
        buf_printf(err, "Library '%.*s' already exists", (int)name.len, name.ptr);
        ok = false;
    }
    buf_deinit(&name);
    return ok;
}

/* The library, with a reference; NULL: *err says why. */
static struct function_lib *load_one(struct worker *w, struct slice source, bool replace, int64_t until_us,
                                     struct buf *err)
{
    struct functions *fs = w->cmd->functions;
    struct function_lib *lib = NULL;
    int ref;

    if (may_load(fs, source, replace, err))
        lib = library_new(w, source, until_us, &ref, err);
    if (!lib)
        return NULL;
    if (functions_change(fs, &lib, 1, replace ? FUNCTION_REPLACE : FUNCTION_APPEND, err)) {
        library_keep(w, lib, ref);
        return lib;
    }
    library_drop(w, ref);
    function_lib_unref(lib);
    return NULL;
}

void cmd_function_load(struct call *c)
{
    bool replace = false;
    struct buf err;

    for (int i = 2; i < c->argc - 1; i++) {
        if (!call_arg_is(c, i, "replace")) {
            call_errorf(c, "ERR Unknown option given: %.*s", SLICE_FMT(c->argv[i]));
            return;
        }
        replace = true;
    }
    buf_init(&err, MEM_OTHER);
    struct function_lib *lib = load_one(c->w, c->argv[c->argc - 1], replace, clock_mono_us() + LIBRARY_LOAD_US, &err);
    if (lib)
        reply_bulk_str(&c->r, lib->name);
    else
        reply_reason(c, &err);
    function_lib_unref(lib);
    buf_deinit(&err);
}

void cmd_function_delete(struct call *c)
{
    struct buf err;

    buf_init(&err, MEM_OTHER);
    if (functions_delete(c->w->cmd->functions, c->argv[2], &err))
        reply_simple(&c->r, "OK");
    else
        reply_reason(c, &err);
    buf_deinit(&err);
}

void cmd_function_flush(struct call *c)
{
    struct buf err;

    if (c->argc > 3) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 3 && !call_arg_is(c, 2, "sync") && !call_arg_is(c, 2, "async")) {
        call_error(c, "ERR FUNCTION FLUSH only supports SYNC|ASYNC option");
        return;
    }
    buf_init(&err, MEM_OTHER);
    if (functions_change(c->w->cmd->functions, NULL, 0, FUNCTION_FLUSH, &err))
        reply_simple(&c->r, "OK");
    else
        reply_reason(c, &err);
    buf_deinit(&err);
}

/* ---- DUMP, RESTORE, and the file ---- */

struct restoring {
    struct worker *w;
    int64_t until_us;
    struct buf *err;
    struct function_lib **lib;
    int *ref;
    int n, cap;
};

static bool restore_one(void *arg, struct slice source)
{
    struct restoring *r = arg;
    int ref;
    struct function_lib *lib = r->n < LIBRARIES_MAX ? library_new(r->w, source, r->until_us, &ref, r->err) : NULL;

    for (int i = 0; lib && i < r->n; i++)
        if (strcmp(r->lib[i]->name, lib->name) == 0)
            buf_printf(r->err, "Library '%s' already exists", lib->name);
    if (lib && r->err->len > 0) {
        library_drop(r->w, ref);
        function_lib_unref(lib);
        return false;
    }
    if (!lib && r->n == LIBRARIES_MAX)
        buf_printf(r->err, "there would be more than %d libraries", LIBRARIES_MAX);
    if (!lib)
        return false;
    if (r->n == r->cap) {
        r->cap = r->cap ? r->cap * 2 : 8;
        r->lib = mem_realloc(MEM_OTHER, r->lib, (size_t)r->cap * sizeof(struct function_lib *));
        r->ref = mem_realloc(MEM_OTHER, r->ref, (size_t)r->cap * sizeof(int));
    }
    r->lib[r->n] = lib;
    r->ref[r->n++] = ref;
    return true;
}

static bool restore_all(struct worker *w, struct slice payload, enum function_policy policy, int64_t until_us,
                        struct buf *err)
{
    struct restoring r = {.w = w, .until_us = until_us, .err = err};
    bool ok =
        function_undump(payload, restore_one, &r, err) && functions_change(w->cmd->functions, r.lib, r.n, policy, err);

    for (int i = 0; i < r.n; i++) {
        if (ok)
            library_keep(w, r.lib[i], r.ref[i]);
        else
            library_drop(w, r.ref[i]);
        function_lib_unref(r.lib[i]);
    }
    mem_free(MEM_OTHER, r.lib);
    mem_free(MEM_OTHER, r.ref);
    return ok;
}

void cmd_function_restore(struct call *c)
{
    enum function_policy policy = FUNCTION_APPEND;
    struct buf err;

    if (c->argc > 4) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 4) {
        if (call_arg_is(c, 3, "flush")) {
            policy = FUNCTION_FLUSH;
        } else if (call_arg_is(c, 3, "replace")) {
            policy = FUNCTION_REPLACE;
        } else if (!call_arg_is(c, 3, "append")) {
            call_error(c, "ERR Wrong restore policy given, value should be either FLUSH, APPEND or REPLACE.");
            return;
        }
    }
    buf_init(&err, MEM_OTHER);
    if (restore_all(c->w, c->argv[2], policy, clock_mono_us() + LIBRARY_LOAD_US, &err))
        reply_simple(&c->r, "OK");
    else
        reply_reason(c, &err);
    buf_deinit(&err);
}

void cmd_function_dump(struct call *c)
{
    struct function_set *set = functions_get(c->w->cmd->functions, NULL);
    struct buf payload;

    buf_init(&payload, MEM_CLIENT);
    function_dump(set, &payload);
    reply_bulk(&c->r, buf_slice(&payload));
    buf_deinit(&payload);
    function_set_unref(set);
}

enum status cmd_functions_open(struct worker *w, const char *dir, char err[256])
{
    char path[PATH_MAX];
    struct buf payload, why;

    buf_init(&payload, MEM_OTHER);
    buf_init(&why, MEM_OTHER);
    snprintf(path, sizeof(path), "%s/functions.rdb", dir);
    enum status st = function_file_read(path, &payload, &why);
    if (st == ST_OK && !restore_all(w, buf_slice(&payload), FUNCTION_FLUSH, 0, &why))
        st = ST_CORRUPT;
    if (st == ST_OK || st == ST_NOT_FOUND)
        functions_keep(w->cmd->functions, path);
    else
        snprintf(err, 256, "%.100s: %.*s", path, why.len < 150 ? (int)why.len : 150, why.ptr);
    buf_deinit(&payload);
    buf_deinit(&why);
    return st;
}

bool cmd_functions_add(struct worker *w, struct slice source, char err[256])
{
    struct buf why;

    buf_init(&why, MEM_OTHER);
    struct function_lib *lib = load_one(w, source, false, 0, &why);
    if (!lib)
        snprintf(err, 256, "%.*s", why.len < 200 ? (int)why.len : 200, why.ptr);
    function_lib_unref(lib);
    buf_deinit(&why);
    return lib != NULL;
}

/* ---- LIST, STATS ---- */

static void reply_text(struct reply *r, struct slice text)
{
    if (text.ptr)
        reply_bulk(r, text);
    else
        reply_null(r);
}

static void reply_function(struct reply *r, const struct function *fn)
{
    int n = 0;

    reply_map(r, 3);
    reply_bulk_str(r, "name");
    reply_bulk_str(r, fn->name);
    reply_bulk_str(r, "description");
    reply_text(r, fn->description);
    reply_bulk_str(r, "flags");
    for (const struct script_flag *f = script_flags; f->name; f++)
        n += (fn->flags & f->flag) != 0;
    reply_set(r, n);
    for (const struct script_flag *f = script_flags; f->name; f++)
        if (fn->flags & f->flag)
            reply_simple(r, f->name);
}

static void reply_library(struct reply *r, const struct function_lib *lib, bool with_code)
{
    reply_map(r, with_code ? 4 : 3);
    reply_bulk_str(r, "library_name");
    reply_bulk_str(r, lib->name);
    reply_bulk_str(r, "engine");
    reply_bulk_str(r, "LUA");
    reply_bulk_str(r, "functions");
    reply_array(r, lib->n);
    for (int i = 0; i < lib->n; i++)
        reply_function(r, &lib->fn[i]);
    if (with_code) {
        reply_bulk_str(r, "library_code");
        reply_bulk(r, lib->source);
    }
}

void cmd_function_list(struct call *c)
{
    struct slice pattern = SLICE_NONE;
    bool with_code = false;
    int n = 0;

    for (int i = 2; i < c->argc; i++) {
        if (!with_code && call_arg_is(c, i, "withcode")) {
            with_code = true;
        } else if (!pattern.ptr && call_arg_is(c, i, "libraryname")) {
            if (i + 1 == c->argc) {
                call_error(c, "ERR library name argument was not given");
                return;
            }
            pattern = c->argv[++i];
        } else {
            call_errorf(c, "ERR Unknown argument %.*s", SLICE_FMT(c->argv[i]));
            return;
        }
    }
    struct function_set *set = functions_get(c->w->cmd->functions, NULL);
    for (int i = 0; i < set->nlibs; i++)
        n += !pattern.ptr || glob_match(pattern, slice_str(set->lib[i]->name), true);
    reply_array(&c->r, n);
    for (int i = 0; i < set->nlibs; i++)
        if (!pattern.ptr || glob_match(pattern, slice_str(set->lib[i]->name), true))
            reply_library(&c->r, set->lib[i], with_code);
    function_set_unref(set);
}

static void reply_running(void *arg, const struct function_running *running)
{
    struct reply *r = arg;

    if (!running) {
        reply_null(r);
        return;
    }
    reply_map(r, 3);
    reply_bulk_str(r, "name");
    reply_bulk_str(r, running->name);
    reply_bulk_str(r, "command");
    reply_array(r, running->argc);
    for (int i = 0; i < running->argc; i++)
        reply_bulk(r, running->argv[i]);
    reply_bulk_str(r, "duration_ms");
    reply_int(r, (clock_mono_us() - running->begin_us) / 1000);
}

void cmd_function_stats(struct call *c)
{
    const struct cmd *cmd = c->w->cmd;
    struct script_figures f = {0};

    if (atomic_load(&cmd->slow_scripts) > 0 && atomic_load(&cmd->slow_functions) == 0) {
        call_error(c, script_busy(cmd));
        return;
    }
    functions_figures(cmd->functions, &f);
    reply_map(&c->r, 2);
    reply_bulk_str(&c->r, "running_script");
    functions_running(cmd->functions, reply_running, &c->r);
    reply_bulk_str(&c->r, "engines");
    reply_map(&c->r, 1);
    reply_bulk_str(&c->r, "LUA");
    reply_map(&c->r, 2);
    reply_bulk_str(&c->r, "libraries_count");
    reply_int(&c->r, f.libraries);
    reply_bulk_str(&c->r, "functions_count");
    reply_int(&c->r, f.functions);
}

void cmd_function_kill(struct call *c)
{
    script_kill(c, true);
}

void cmd_function_help(struct call *c)
{
    cmd_container_help(c);
}
