/* Users in files: the aclfile, and the lines of the configuration. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "tiercel/log.h"

#include "cmd/acl_priv.h"

#define FILE_MAX_BYTES (64u << 20)

struct loading {
    struct acl_names users;
    bool all_channels;
};

/* The words between blanks; freed with mem_free(MEM_OTHER). */
static struct slice *split(struct slice text, int *n)
{
    struct slice *words = mem_alloc(MEM_OTHER, (text.len / 2 + 2) * sizeof(*words));
    size_t at = 0;

    *n = 0;
    while (at < text.len) {
        size_t end = at;
        while (end < text.len && text.ptr[end] != ' ')
            end++;
        struct slice word = SLICE(text.ptr + at, end - at);
        while (word.len && strchr("\t\r\n", word.ptr[word.len - 1]))
            word.len--;
        if (word.len)
            words[(*n)++] = word;
        at = end + 1;
    }
    return words;
}

static struct slice trim(struct slice s)
{
    while (s.len && isspace((unsigned char)s.ptr[0]))
        s = SLICE(s.ptr + 1, s.len - 1);
    while (s.len && isspace((unsigned char)s.ptr[s.len - 1]))
        s.len--;
    return s;
}

static bool bad_name(struct slice name)
{
    for (size_t i = 0; i < name.len; i++)
        if (isspace((unsigned char)name.ptr[i]) || name.ptr[i] == '\0')
            return true;
    return false;
}

/* ---- the aclfile ---- */

/* Tells of each unknown command, and of the first other fault, behind which the rest may mean nothing. */
static void file_rules(struct loading *l, struct acl_user *u, const struct acl_words *w, const char *path, int line,
                       struct buf *err)
{
    bool told = false;

    for (int i = 0; i < w->n; i++) {
        const char *why = acl_user_rule(u, w->word[i], l->all_channels);
        if (why == acl_no_such_command)
            buf_printf(err, "%s:%d: Error in applying operation '%.*s': %s. ", path, line, SLICE_FMT(w->word[i]), why);
        else if (why && !told)
            buf_printf(err, "%s:%d: %s. ", path, line, why);
        told |= why && why != acl_no_such_command;
    }
}

static void file_line(struct loading *l, struct slice text, const char *path, int line, struct buf *err)
{
    struct acl_words w;
    int n, at;
    struct slice *words = split(text, &n);

    if (n < 2 || !slice_eq(words[0], SLICE_LIT("user"))) {
        buf_printf(err, "%s:%d should start with user keyword followed by the username. ", path, line);
    } else if (bad_name(words[1])) {
        buf_printf(err, "'%s:%d: username '%.*s' contains invalid characters. ", path, line, SLICE_FMT(words[1]));
    } else if (acl_names_find(&l->users, words[1])) {
        buf_printf(err, "WARNING: Duplicate user '%.*s' found on line %d. ", SLICE_FMT(words[1]), line);
    } else if (!acl_words_init(&w, n - 2, words + 2, &at)) {
        buf_printf(err, "%s:%d: Unmatched parenthesis in selector definition.", path, line);
    } else {
        struct acl_user *u = acl_user_create(words[1], l->all_channels);
        acl_names_add(&l->users, u);
        file_rules(l, u, &w, path, line, err);
        acl_words_deinit(&w);
    }
    mem_free(MEM_OTHER, words);
}

/* One that is no whole path is in `dir`, where a Redis works. */
static void make_path(const struct conf *conf, struct buf *path)
{
    buf_init(path, MEM_OTHER);
    if (conf->aclfile[0] != '/')
        buf_printf(path, "%s/", conf->dir);
    buf_printf(path, "%s", conf->aclfile);
    buf_byte(path, '\0');
}

bool acl_file_load(struct acl *a, const struct conf *conf, struct buf *err)
{
    struct loading l = {.all_channels = conf->acl_pubsub_default == 0};
    struct buf text, why, path;

    buf_init(&text, MEM_OTHER);
    buf_init(&why, MEM_OTHER);
    make_path(conf, &path);
    bool ok = conf_file_read(path.ptr, FILE_MAX_BYTES, &text, &why);
    if (!ok)
        buf_printf(err, "Error loading ACLs, opening file '%s': %s", path.ptr, strerror(errno));
    struct slice rest = buf_slice(&text);
    for (int line = 1; rest.len > 0; line++) {
        const char *end = memchr(rest.ptr, '\n', rest.len);
        size_t n = end ? (size_t)(end - rest.ptr) : rest.len;
        struct slice one = trim(SLICE(rest.ptr, n));
        if (one.len)
            file_line(&l, one, path.ptr, line, err);
        n += end != NULL;
        rest = SLICE(rest.ptr + n, rest.len - n);
    }
    if (ok && err->len) {
        buf_printf(err, "WARNING: ACL errors detected, no change to the previously active ACL rules was performed");
        ok = false;
    }
    if (ok) {
        if (!acl_names_find(&l.users, SLICE_LIT("default"))) /* as it is by itself */
            acl_names_add(&l.users, acl_default_user());
        acl_replace(a, &l.users);
    }
    acl_names_deinit(&l.users);
    if (text.len)
        explicit_bzero(text.ptr, text.len);
    buf_deinit(&text);
    buf_deinit(&why);
    buf_deinit(&path);
    return ok;
}

static void user_line(const struct acl_user *u, struct buf *out)
{
    buf_printf(out, "user ");
    buf_slice_append(out, u->name);
    buf_byte(out, ' ');
    acl_describe(u, out);
    buf_byte(out, '\n');
}

bool acl_file_save(struct acl *a, const struct conf *conf)
{
    struct buf text, path;
    struct acl_names users;

    acl_all(a, &users);
    buf_init(&text, MEM_OTHER);
    for (int i = 0; i < users.n; i++)
        user_line(users.user[i], &text);
    acl_names_deinit(&users);
    make_path(conf, &path);
    bool ok = conf_file_replace(path.ptr, buf_slice(&text)) == ST_OK;
    int error = errno;
    buf_deinit(&text);
    buf_deinit(&path);
    errno = error;
    return ok;
}

/* ---- the configuration's lines ---- */

static bool equal_rules(const struct acl_user *x, const struct acl_user *y)
{
    struct buf a, b;

    buf_init(&a, MEM_OTHER);
    buf_init(&b, MEM_OTHER);
    acl_describe(x, &a);
    acl_describe(y, &b);
    bool same = slice_eq(buf_slice(&a), buf_slice(&b));
    buf_deinit(&a);
    buf_deinit(&b);
    return same;
}

/* The default user as requirepass alone makes it has no line: the password may be in a file that is to stay its only
 * place. */
void acl_config_lines(struct acl *a, const struct conf *conf, struct buf *out)
{
    if (conf->aclfile[0])
        return;
    struct acl *plain = acl_create(conf);
    struct acl_user *by_itself = acl_get(plain, SLICE_LIT("default"));
    struct acl_names users;

    acl_all(a, &users);
    for (int i = 0; i < users.n; i++)
        if (!slice_eq(users.user[i]->name, by_itself->name) || !equal_rules(users.user[i], by_itself))
            user_line(users.user[i], out);
    acl_names_deinit(&users);
    acl_user_unref(by_itself);
    acl_destroy(plain);
}

struct conf_lines {
    struct loading l;
    char *err;
};

static bool conf_line(void *arg, const char *where, struct slice text)
{
    struct conf_lines *cl = arg;
    struct acl_words w = {.n = 0};
    int n, at = 0;
    struct slice *words = split(text, &n);
    const char *why = NULL;

    if (n == 0 || bad_name(words[0]) || words[0].ptr != text.ptr)
        why = "Spaces not allowed in ACL usernames";
    else if (acl_names_find(&cl->l.users, words[0]))
        why = acl_duplicate_user;
    else if (!acl_words_init(&w, n - 1, words + 1, &at))
        why = "Unmatched parenthesis";
    if (!why) {
        struct acl_user *u = acl_user_create(words[0], cl->l.all_channels);
        if (slice_eq(words[0], SLICE_LIT("default"))) /* it has all channels unless its line says otherwise */
            CHECK(!acl_user_rule(u, SLICE_LIT("reset"), cl->l.all_channels));
        acl_names_add(&cl->l.users, u);
        why = acl_user_rules(u, &w, cl->l.all_channels, &at);
        if (!why && !u->on)
            log_warning("acl",
                        "The user '%.*s' is disabled (there is no 'on' modifier in the user description). Make sure "
                        "this is not a configuration error.",
                        SLICE_FMT(u->name));
        acl_words_deinit(&w);
    }
    if (why)
        snprintf(cl->err, 256, "%.100s: Error in user declaration '%.*s': %s", where,
                 (int)(n && words[0].len < 40 ? words[0].len : 0), n ? words[0].ptr : "", why);
    mem_free(MEM_OTHER, words);
    return !why;
}

bool acl_load_start(struct acl *a, const struct conf *conf, char err[256])
{
    struct conf_lines cl = {.l = {.all_channels = conf->acl_pubsub_default == 0}, .err = err};
    struct buf why;

    if (conf->aclfile[0]) {
        buf_init(&why, MEM_OTHER);
        bool ok = acl_file_load(a, conf, &why);
        if (!ok)
            snprintf(err, 256, "%.*s", (int)(why.len < 255 ? why.len : 255), why.ptr);
        buf_deinit(&why);
        return ok;
    }
    bool ok = conf_users_each(conf, conf_line, &cl);
    for (int i = 0; i < cl.l.users.n && ok; i++)
        acl_put(a, acl_user_ref(cl.l.users.user[i]));
    acl_names_deinit(&cl.l.users);
    return ok;
}
