/* Settings at start: file, environment, command line. Later sources win. */
#include <ctype.h>
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "conf/conf_priv.h"
#include "tiercel/rules.h"
#include "tiercel/version.h"

#define FILE_MAX_BYTES (16u << 20)
#define LINE_MAX_BYTES 65536u
#define INCLUDE_DEPTH 16
#define ENV_PREFIX "TIERCEL_"

struct loader {
    struct conf *c;
    struct buf *err;
    struct buf warnings;
    int depth;              /* of includes */
    bool given[CONF_COUNT]; /* in this source (file, environment, command line) */
    char where[PATH_MAX + 32];
};

static enum status load_file(struct loader *l, const char *path);

static enum status fail(struct loader *l)
{
    struct buf line;
    buf_init(&line, MEM_OTHER);
    buf_printf(&line, "%s: %.*s", l->where, SLICE_FMT(buf_slice(l->err)));
    l->err->len = 0;
    buf_append(l->err, line.ptr, line.len);
    buf_deinit(&line);
    return ST_BAD;
}

__attribute__((format(printf, 2, 3))) static enum status fail_text(struct loader *l, const char *fmt, ...)
{
    va_list ap;
    l->err->len = 0;
    va_start(ap, fmt);
    buf_vprintf(l->err, fmt, ap);
    va_end(ap);
    return fail(l);
}

/* Levenshtein distance, ASCII case ignored, '_' like '-'; over `cap` is as good as infinite. */
static size_t edit_distance(struct slice a, const char *b, size_t cap)
{
    enum { LONGEST = 64 };
    size_t row[LONGEST + 1], blen = strlen(b);
    if (a.len > LONGEST || blen > LONGEST || (a.len > blen ? a.len - blen : blen - a.len) > cap)
        return cap + 1;
    for (size_t j = 0; j <= blen; j++)
        row[j] = j;
    for (size_t i = 1; i <= a.len; i++) {
        size_t diagonal = row[0];
        char x = (char)tolower((unsigned char)(a.ptr[i - 1] == '_' ? '-' : a.ptr[i - 1]));
        row[0] = i;
        for (size_t j = 1; j <= blen; j++) {
            size_t change = diagonal + (x != b[j - 1]), gap = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < gap ? change : gap;
        }
    }
    return row[blen];
}

static const char *nearest_name(struct slice name)
{
    const char *best = NULL;
    size_t limit = name.len / 3 < 3 ? name.len / 3 : 3;
    for (int id = 0; id < CONF_COUNT; id++) {
        size_t d = edit_distance(name, conf_rows[id].name, limit);
        if (d <= limit && (best == NULL || d < limit)) {
            best = conf_rows[id].name;
            limit = d;
        }
    }
    return best;
}

static void print_unknown(struct buf *out, struct slice name)
{
    const char *near = nearest_name(name);
    buf_printf(out, "unknown setting '");
    conf_print_clean(out, name);
    buf_byte(out, '\'');
    if (near != NULL)
        buf_printf(out, ", did you mean '%s'?", near);
}

/* A value that is wrong. Secrets are not repeated. */
static enum status fail_value(struct loader *l, enum conf_id id, struct slice text, enum conf_fault kind,
                              const struct buf *why)
{
    const struct conf_row *row = &conf_rows[conf_target(id)];
    l->err->len = 0;
    buf_printf(l->err, "%s", conf_rows[id].name);
    if (!(row->flags & CONF_SECRET)) {
        buf_byte(l->err, ' ');
        if (text.len == 0)
            buf_printf(l->err, "\"\"");
        conf_print_clean(l->err, text);
    }
    buf_printf(l->err, ": ");
    if (kind == FAULT_SYNTAX) {
        buf_printf(l->err, "not valid, must be ");
        conf_value_valid(id, l->err);
    } else {
        buf_slice_append(l->err, buf_slice(why));
    }
    return fail(l);
}

static enum status set_value(struct loader *l, enum conf_id id, struct slice text)
{
    enum conf_id target = conf_target(id);
    struct buf why, sum;
    buf_init(&why, MEM_OTHER);
    buf_init(&sum, MEM_OTHER);
    if ((conf_rows[target].flags & CONF_ADDS) && l->given[target] && text.len != 0) {
        conf_value_format(l->c, target, &sum);
        if (sum.len != 0)
            buf_byte(&sum, ' ');
        buf_slice_append(&sum, text);
    }
    enum conf_fault kind = conf_value_parse(l->c, target, sum.len != 0 ? buf_slice(&sum) : text, &why);
    l->given[target] = true;
    mem_free(MEM_OTHER, l->c->priv->secret_file[target]);
    l->c->priv->secret_file[target] = NULL;
    enum status st = kind == FAULT_NONE ? ST_OK : fail_value(l, id, text, kind, &why);
    buf_deinit(&why);
    buf_deinit(&sum);
    return st;
}

static enum status set_secret(struct loader *l, enum conf_id id, const char *path)
{
    struct buf text;
    buf_init(&text, MEM_OTHER);
    l->err->len = 0;
    enum status st;
    if (strcmp(path, "-") == 0 || !conf_secret_read(path, &text, l->err))
        st = l->err->len != 0 ? fail(l) : fail_text(l, "%s-file must be a path", conf_rows[id].name);
    else
        st = set_value(l, id, buf_slice(&text));
    if (st == ST_OK)
        l->c->priv->secret_file[id] = mem_strdup(MEM_OTHER, path);
    if (text.ptr != NULL)
        explicit_bzero(text.ptr, text.len);
    buf_deinit(&text);
    return st;
}

/* "<name>-file" of a secret; -1: no such. */
static int find_secret_file(struct slice name)
{
    if (name.len <= 5 || strncasecmp(name.ptr + name.len - 5, "-file", 5) != 0)
        return -1;
    int id = conf_find(SLICE(name.ptr, name.len - 5));
    return id >= 0 && (conf_rows[id].flags & CONF_SECRET) ? id : -1;
}

static enum status include(struct loader *l, const char *pattern)
{
    glob_t found;
    enum status st = ST_OK;
    bool magic = strpbrk(pattern, "*?[") != NULL;
    if (l->depth >= INCLUDE_DEPTH)
        return fail_text(l, "include nested deeper than %d files, does a file include itself?", INCLUDE_DEPTH);
    if (!magic)
        return load_file(l, pattern);
    if (glob(pattern, 0, NULL, &found) != 0) /* a pattern may match nothing, as in Redis */
        return ST_OK;
    for (size_t i = 0; i < found.gl_pathc && st == ST_OK; i++)
        st = load_file(l, found.gl_pathv[i]);
    globfree(&found);
    return st;
}

static enum status add_user(struct loader *l, int nwords, const struct slice *words)
{
    struct conf_priv *priv = l->c->priv;
    struct buf text;

    if (nwords == 0)
        return fail_text(l, "user needs a name");
    buf_init(&text, MEM_OTHER);
    for (int i = 0; i < nwords; i++) {
        if (i > 0)
            buf_byte(&text, ' ');
        buf_slice_append(&text, words[i]);
    }
    buf_append(&text, "", 1);
    priv->users = mem_realloc(MEM_OTHER, priv->users, (size_t)(priv->nusers + 1) * sizeof(*priv->users));
    priv->users[priv->nusers++] = (struct conf_user){mem_strdup(MEM_OTHER, l->where), mem_strdup(MEM_OTHER, text.ptr)};
    explicit_bzero(text.ptr, text.len);
    buf_deinit(&text);
    return ST_OK;
}

static enum status add_rule(struct loader *l, int nwords, const struct slice *words)
{
    char why[RULE_ERROR_MAX];
    struct rules *next;

    if (rules_with(l->c->rules, nwords, words, &next, why) != ST_OK)
        return fail_text(l, "rule: %s", why);
    rules_unref(l->c->rules);
    l->c->rules = next;
    l->c->rules_local = rules_have_local(next);
    return ST_OK;
}

/* One setting with its values, from a line or the command line. */
static enum status apply(struct loader *l, struct slice name, int nvalues, const struct slice *values)
{
    int id = conf_find(name), secret = id < 0 ? find_secret_file(name) : -1;
    bool is_include = slice_is(name, "include");
    if (slice_is(name, "user"))
        return add_user(l, nvalues, values);
    if (slice_is(name, "rule"))
        return add_rule(l, nvalues, values);
    if (id < 0 && secret < 0 && !is_include) {
        l->err->len = 0;
        print_unknown(l->err, name);
        return fail(l);
    }
    bool multi = id >= 0 && (conf_rows[conf_target((enum conf_id)id)].flags & CONF_MULTI);
    if (nvalues == 0 && id != CONF_ID_save) /* which, alone, says never */
        return fail_text(l, "%.*s needs a value", SLICE_FMT(name));
    if (nvalues > 1 && !multi)
        return fail_text(l, "%.*s takes one value, got %d (quote a value with blanks)", SLICE_FMT(name), nvalues);
    if (is_include || secret >= 0) {
        if (memchr(values[0].ptr, '\0', values[0].len) != NULL || values[0].len == 0)
            return fail_text(l, "%.*s needs a path", SLICE_FMT(name));
        return is_include ? include(l, values[0].ptr) : set_secret(l, (enum conf_id)secret, values[0].ptr);
    }
    if (nvalues == 1)
        return set_value(l, (enum conf_id)id, values[0]);
    struct buf joined;
    buf_init(&joined, MEM_OTHER);
    line_join(&joined, nvalues, values);
    enum status st = set_value(l, (enum conf_id)id, buf_slice(&joined));
    buf_deinit(&joined);
    return st;
}

static enum status load_line(struct loader *l, struct slice text)
{
    struct line line;
    while (text.len > 0 && isspace((unsigned char)text.ptr[0]))
        text = SLICE(text.ptr + 1, text.len - 1);
    if (text.len == 0 || text.ptr[0] == '#')
        return ST_OK;
    if (text.len > LINE_MAX_BYTES)
        return fail_text(l, "longer than %u bytes", LINE_MAX_BYTES);
    if (memchr(text.ptr, '\0', text.len) != NULL)
        return fail_text(l, "contains a NUL byte, this is no text file");
    if (!line_split(text, &line)) {
        struct slice name = SLICE(text.ptr, 0); /* the rest may be a secret */
        while (name.len < text.len && !isspace((unsigned char)text.ptr[name.len]))
            name.len++;
        l->err->len = 0;
        conf_print_clean(l->err, name);
        buf_printf(l->err, ": unbalanced quotes");
        return fail(l);
    }
    enum status st = apply(l, line.words[0], line.nwords - 1, line.words + 1);
    line_free(&line);
    return st;
}

static enum status load_file(struct loader *l, const char *path)
{
    struct buf text;
    enum status st = ST_OK;
    buf_init(&text, MEM_OTHER);
    l->err->len = 0;
    if (!conf_file_read(path, FILE_MAX_BYTES, &text, l->err)) {
        buf_deinit(&text);
        return l->where[0] != '\0' ? fail(l) : ST_BAD;
    }
    char outer[sizeof(l->where)];
    memcpy(outer, l->where, sizeof(outer));
    struct slice rest = buf_slice(&text);
    if (rest.len >= 3 && memcmp(rest.ptr, "\xef\xbb\xbf", 3) == 0) /* a byte order mark */
        rest = SLICE(rest.ptr + 3, rest.len - 3);
    l->depth++;
    for (int number = 1; rest.len > 0 && st == ST_OK; number++) {
        const char *end = memchr(rest.ptr, '\n', rest.len);
        size_t len = end != NULL ? (size_t)(end - rest.ptr) : rest.len;
        snprintf(l->where, sizeof(l->where), "%s:%d", strcmp(path, "-") == 0 ? "standard input" : path, number);
        st = load_line(l, SLICE(rest.ptr, len));
        len += end != NULL;
        rest = SLICE(rest.ptr + len, rest.len - len);
    }
    l->depth--;
    memcpy(l->where, outer, sizeof(outer));
    explicit_bzero(text.ptr, text.len); /* may hold passwords */
    buf_deinit(&text);
    return st;
}

/* Kubernetes describes every service in the environment of every pod: one named "tiercel"
 * gives TIERCEL_PORT=tcp://..., TIERCEL_SERVICE_HOST, TIERCEL_PORT_6379_TCP and so on. */
static bool is_service_link(struct slice name, const char *value)
{
    return strncmp(name.ptr, "SERVICE_", 8) == 0 || strncmp(name.ptr, "PORT_", 5) == 0 ||
           (slice_is(name, "port") && strstr(value, "://") != NULL);
}

static enum status load_env(struct loader *l, char **envp)
{
    const size_t prefix = sizeof(ENV_PREFIX) - 1;
    bool from_env[CONF_COUNT] = {false};
    memset(l->given, 0, sizeof(l->given));
    for (; envp != NULL && *envp != NULL; envp++) {
        const char *eq = strchr(*envp, '=');
        if (strncmp(*envp, ENV_PREFIX, prefix) != 0 || eq == NULL)
            continue;
        struct slice env = SLICE(*envp + prefix, (size_t)(eq - *envp) - prefix);
        char name[128];
        if (is_service_link(env, eq + 1) || env.len == 0 || env.len >= sizeof(name))
            continue;
        for (size_t i = 0; i <= env.len; i++)
            name[i] = (char)(i == env.len ? '\0' : env.ptr[i] == '_' ? '-' : tolower((unsigned char)env.ptr[i]));
        int id = conf_find(slice_str(name)), secret = id < 0 ? find_secret_file(slice_str(name)) : -1;
        snprintf(l->where, sizeof(l->where), "environment %.*s", (int)(eq - *envp), *envp);
        if (id < 0 && secret < 0) {
            buf_printf(&l->warnings, "%s ignored: ", l->where);
            print_unknown(&l->warnings, slice_str(name));
            buf_byte(&l->warnings, '\n');
            continue;
        }
        enum conf_id target = secret >= 0 ? (enum conf_id)secret : conf_target((enum conf_id)id);
        if (eq[1] == '\0' && (secret >= 0 || conf_rows[target].kind != KIND_STRING))
            continue; /* what compose files pass on when it is not set */
        if (from_env[target])
            return fail_text(l, "%s is given twice in the environment", conf_rows[target].name);
        from_env[target] = true;
        enum status st =
            secret >= 0 ? set_secret(l, target, eq + 1) : set_value(l, (enum conf_id)id, slice_str(eq + 1));
        if (st != ST_OK)
            return st;
    }
    return ST_OK;
}

/* --name value, --name=value; settings of several values take all up to the next "--". */
static enum status load_args(struct loader *l, int argc, char **argv)
{
    memset(l->given, 0, sizeof(l->given));
    for (int i = 0; i < argc;) {
        snprintf(l->where, sizeof(l->where), "command line");
        const char *arg = argv[i++];
        if (strncmp(arg, "--", 2) != 0 || arg[2] == '\0') {
            l->err->len = 0;
            buf_printf(l->err, "expected --name value, got '");
            conf_print_clean(l->err, slice_str(arg));
            buf_byte(l->err, '\'');
            return fail(l);
        }
        const char *eq = strchr(arg, '=');
        struct slice name = eq != NULL ? SLICE(arg + 2, (size_t)(eq - arg) - 2) : slice_str(arg + 2);
        int id = conf_find(name), n = 0;
        bool multi = slice_is(name, "user") || slice_is(name, "rule") ||
                     (id >= 0 && (conf_rows[conf_target((enum conf_id)id)].flags & CONF_MULTI));
        struct slice *values = mem_alloc(MEM_OTHER, sizeof(*values) * (size_t)(argc + 1));
        if (eq != NULL)
            values[n++] = slice_str(eq + 1);
        while (i < argc && (multi || n == 0) && strncmp(argv[i], "--", 2) != 0)
            values[n++] = slice_str(argv[i++]);
        enum status st = apply(l, name, n, values);
        mem_free(MEM_OTHER, values);
        if (st != ST_OK)
            return st;
    }
    return ST_OK;
}

static bool print_and_exit(const char *arg)
{
    static const struct {
        const char *name;
        void (*write)(struct buf *out);
    } texts[] = {
        {"--help", conf_write_help},
        {"-h", conf_write_help},
        {"--sample-config", conf_write_sample},
        {"--settings-table", conf_write_table},
        {"--man-page", conf_write_man},
    };
    struct buf out;
    buf_init(&out, MEM_OTHER);
    if (strcmp(arg, "--version") == 0 || strcmp(arg, "-v") == 0)
        buf_printf(&out, "tiercel %s (Redis %s protocol)\n", TIERCEL_VERSION, TIERCEL_REDIS_VERSION);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (strcmp(arg, texts[i].name) == 0)
            texts[i].write(&out);
    bool found = out.len != 0;
    if (found) {
        fwrite(out.ptr, 1, out.len, stdout);
        fflush(stdout);
    }
    buf_deinit(&out);
    return found;
}

static enum status load_all(struct loader *l, int argc, char **argv, char **envp)
{
    int first = 1;
    enum status st = ST_OK;
    if (argc > 1 && (argv[1][0] != '-' || argv[1][1] == '\0')) {
        first = 2;
        st = argv[1][0] != '\0' ? load_file(l, argv[1]) : fail_text(l, "empty file name");
        if (st == ST_OK && strcmp(argv[1], "-") != 0) {
            char *path = realpath(argv[1], NULL); /* CONFIG REWRITE finds it after a chdir */
            mem_free(MEM_OTHER, l->c->priv->file);
            l->c->priv->file = mem_strdup(MEM_OTHER, path != NULL ? path : argv[1]);
            free(path);
        }
    }
    if (st == ST_OK)
        st = load_env(l, envp);
    if (st == ST_OK)
        st = load_args(l, argc - first, argv + first);
    enum conf_id id;
    const char *conflict = st == ST_OK ? conf_conflict(l->c, &id) : NULL;
    if (conflict == NULL)
        return st;
    l->err->len = 0;
    buf_printf(l->err, "%s", conflict);
    return ST_BAD;
}

enum status conf_load(int argc, char **argv, char **envp, struct conf **out, bool *exit_now, struct buf *err)
{
    *out = NULL;
    err->len = 0;
    *exit_now = argc == 2 && print_and_exit(argv[1]);
    if (*exit_now)
        return ST_OK;
    struct loader *l = mem_calloc(MEM_OTHER, sizeof(*l));
    l->c = conf_create();
    l->err = err;
    buf_init(&l->warnings, MEM_OTHER);
    enum status st = load_all(l, argc, argv, envp);
    if (st == ST_OK) {
        *out = l->c;
        err->len = 0;
        buf_slice_append(err, buf_slice(&l->warnings));
    } else {
        conf_unref(l->c);
    }
    buf_deinit(&l->warnings);
    mem_free(MEM_OTHER, l);
    return st;
}
