/* Settings: the rows, snapshots, CONFIG GET and SET. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "conf/conf_priv.h"
#include "tiercel/check.h"
#include "tiercel/glob.h"
#include "tiercel/rules.h"

#define AT(field) offsetof(struct conf, field)

const struct conf_row conf_rows[CONF_COUNT] = {
#define CONF_BOOL(name_, field, def_, flags_, help_) \
    {.name = name_, .kind = KIND_BOOL, .flags = flags_, .offset = AT(field), .def = def_, .help = help_},
#define CONF_INT(name_, field, def_, min_, max_, flags_, help_) \
    {.name = name_,                                             \
     .kind = KIND_INT,                                          \
     .flags = flags_,                                           \
     .offset = AT(field),                                       \
     .def = def_,                                               \
     .min = min_,                                               \
     .max = max_,                                               \
     .help = help_},
#define CONF_BYTES(name_, field, def_, min_, max_, flags_, help_) \
    {.name = name_,                                               \
     .kind = KIND_BYTES,                                          \
     .flags = flags_,                                             \
     .offset = AT(field),                                         \
     .def = def_,                                                 \
     .min = min_,                                                 \
     .max = max_,                                                 \
     .help = help_},
#define CONF_ENUM(name_, field, def_, names, flags_, help_) \
    {.name = name_, .kind = KIND_ENUM, .flags = flags_, .offset = AT(field), .def = def_, .text = names, .help = help_},
#define CONF_STRING(name_, field, def_, flags_, help_) \
    {.name = name_, .kind = KIND_STRING, .flags = flags_, .offset = AT(field), .text = def_, .help = help_},
#define CONF_KEPT(name_, field, def_, flags_, help_) CONF_STRING(name_, field, def_, flags_, help_)
#define CONF_OBUF(name_, field, flags_, help_) \
    {.name = name_, .kind = KIND_OBUF, .flags = flags_, .offset = AT(field), .help = help_},
#define CONF_ALIAS(name_, field, target_) \
    {.name = name_, .kind = KIND_ALIAS, .target = CONF_ID_##target_, .help = "The same as " #target_},
#include "conf.def"
};

static const struct conf_obuf_limit obuf_defaults[OBUF_CLASSES] = {
    [OBUF_REPLICA] = {268435456, 67108864, 60},
    [OBUF_PUBSUB] = {33554432, 8388608, 60},
};

enum conf_id conf_target(enum conf_id id)
{
    return conf_rows[id].kind == KIND_ALIAS ? conf_rows[id].target : id;
}

int conf_find(struct slice name)
{
    for (int id = 0; id < CONF_COUNT; id++)
        if (slice_is(name, conf_rows[id].name))
            return id;
    return -1;
}

static const char **string_field(const struct conf *c, enum conf_id id)
{
    return (const char **)(uintptr_t)((const char *)c + conf_rows[id].offset);
}

static char *dup_bytes(const char *ptr, size_t len)
{
    char *copy = mem_alloc(MEM_OTHER, len + 1);
    if (len != 0)
        memcpy(copy, ptr, len);
    copy[len] = '\0';
    return copy;
}

static void free_text(const char *text)
{
    mem_free(MEM_OTHER, (char *)(uintptr_t)text);
}

void conf_string_set(const char **field, const char *ptr, size_t len)
{
    char *copy = dup_bytes(ptr, len);
    free_text(*field);
    *field = copy;
}

static struct conf *new_conf(void)
{
    struct conf *c = mem_calloc(MEM_OTHER, sizeof(*c));
    c->priv = mem_calloc(MEM_OTHER, sizeof(*c->priv));
    atomic_init(&c->refs, 1);
    return c;
}

struct conf *conf_create(void)
{
    struct conf *c = new_conf();
    c->priv->file = mem_strdup(MEM_OTHER, "");
    memcpy(c->obuf, obuf_defaults, sizeof(c->obuf));
    for (int id = 0; id < CONF_COUNT; id++) {
        const struct conf_row *row = &conf_rows[id];
        void *field = (char *)c + row->offset;
        switch (row->kind) {
        case KIND_BOOL: *(bool *)field = row->def != 0; break;
        case KIND_INT:
        case KIND_BYTES: *(int64_t *)field = row->def; break;
        case KIND_ENUM: *(int *)field = (int)row->def; break;
        case KIND_STRING: *(const char **)field = mem_strdup(MEM_OTHER, row->text); break;
        case KIND_OBUF:
        case KIND_ALIAS: break;
        }
    }
    return c;
}

struct conf *conf_copy(const struct conf *old)
{
    struct conf *c = new_conf();
    struct conf_priv *priv = c->priv;
    /* Plain fields by value, everything that is owned anew. refs comes first and is left out. */
    memcpy((char *)c + sizeof(c->refs), (const char *)old + sizeof(c->refs), sizeof(*c) - sizeof(c->refs));
    c->priv = priv;
    rules_ref(c->rules);
    priv->file = mem_strdup(MEM_OTHER, old->priv->file);
    for (int id = 0; id < CONF_COUNT; id++) {
        if (conf_rows[id].kind == KIND_STRING)
            *string_field(c, (enum conf_id)id) = mem_strdup(MEM_OTHER, *string_field(old, (enum conf_id)id));
        if (old->priv->secret_file[id] != NULL)
            priv->secret_file[id] = mem_strdup(MEM_OTHER, old->priv->secret_file[id]);
    }
    return c;
}

struct conf *conf_ref(struct conf *c)
{
    int before = atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    CHECK(before > 0);
    return c;
}

void conf_unref(struct conf *c)
{
    if (c == NULL)
        return;
    int before = atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before != 1)
        return;
    for (int id = 0; id < CONF_COUNT; id++) {
        if (conf_rows[id].kind == KIND_STRING) {
            char *text = (char *)(uintptr_t)*string_field(c, (enum conf_id)id);
            if (conf_rows[id].flags & CONF_SECRET)
                explicit_bzero(text, strlen(text));
            mem_free(MEM_OTHER, text);
        }
        mem_free(MEM_OTHER, c->priv->secret_file[id]);
    }
    for (int i = 0; i < c->priv->nusers; i++) {
        mem_free(MEM_OTHER, c->priv->users[i].where);
        explicit_bzero(c->priv->users[i].text, strlen(c->priv->users[i].text));
        mem_free(MEM_OTHER, c->priv->users[i].text);
    }
    mem_free(MEM_OTHER, c->priv->users);
    rules_unref(c->rules);
    mem_free(MEM_OTHER, c->priv->file);
    mem_free(MEM_OTHER, c->priv);
    mem_free(MEM_OTHER, c);
}

bool conf_users_each(const struct conf *c, bool (*fn)(void *arg, const char *where, struct slice text), void *arg)
{
    for (int i = 0; i < c->priv->nusers; i++)
        if (!fn(arg, c->priv->users[i].where, slice_str(c->priv->users[i].text)))
            return false;
    return true;
}

const char *conf_file(const struct conf *c)
{
    return c->priv->file;
}

int64_t conf_maxmemory_clients(const struct conf *c, int64_t maxmemory)
{
    if (c->maxmemory_clients >= 0)
        return c->maxmemory_clients;
    int64_t percent = -c->maxmemory_clients;
    return maxmemory / 100 * percent + maxmemory % 100 * percent / 100;
}

/* Replaces the password in redis://user:password@host by ***. */
static void mask_url(struct buf *out, struct slice url)
{
    const char *at = url.len != 0 ? memrchr(url.ptr, '@', url.len) : NULL;
    if (at == NULL) {
        buf_slice_append(out, url);
        return;
    }
    const char *scheme = memmem(url.ptr, url.len, "://", 3);
    const char *user = scheme != NULL && scheme < at ? scheme + 3 : url.ptr;
    const char *colon = memchr(user, ':', (size_t)(at - user));
    buf_append(out, url.ptr, (size_t)((colon != NULL ? colon + 1 : user) - url.ptr));
    buf_append(out, "***", 3);
    buf_append(out, at, url.len - (size_t)(at - url.ptr));
}

/* What clients may see: as Redis, which shows requirepass to those allowed to run CONFIG. */
static void format_visible(const struct conf *c, enum conf_id id, struct buf *out)
{
    if (id == CONF_ID_upstream)
        mask_url(out, slice_str(c->upstream));
    else
        conf_value_format(c, id, out);
}

void conf_each(const struct conf *c, struct slice pattern, void (*fn)(void *arg, const char *name, struct slice value),
               void *arg)
{
    struct buf value;
    buf_init(&value, MEM_OTHER);
    for (int id = 0; id < CONF_COUNT; id++) {
        const struct conf_row *row = &conf_rows[id];
        bool exact = slice_is(pattern, row->name);
        if (!exact && ((row->flags & CONF_HIDDEN) || !glob_match(pattern, slice_str(row->name), true)))
            continue;
        value.len = 0;
        format_visible(c, conf_target((enum conf_id)id), &value);
        fn(arg, row->name, buf_slice(&value));
    }
    buf_deinit(&value);
}

bool conf_get(const struct conf *c, const char *name, struct buf *value)
{
    int id = conf_find(slice_str(name));
    if (id < 0)
        return false;
    format_visible(c, conf_target((enum conf_id)id), value);
    return true;
}

static enum status set_failed(struct buf *err, enum conf_id id, struct slice why)
{
    buf_printf(err, "CONFIG SET failed (possibly related to argument '%s') - ", conf_rows[id].name);
    buf_slice_append(err, why);
    return ST_BAD;
}

/* All names first, then all values, in Redis's order of complaints. */
static enum status check_names(int npairs, const struct slice *pairs, struct buf *err)
{
    bool seen[CONF_COUNT] = {false};
    for (int i = 0; i < npairs; i++) {
        int id = conf_find(pairs[2 * i]);
        if (id < 0) {
            buf_printf(err, "Unknown option or number of arguments for CONFIG SET - '");
            for (size_t j = 0; j < pairs[2 * i].len; j++) {
                char byte = pairs[2 * i].ptr[j];
                buf_byte(err, byte == '\r' || byte == '\n' ? ' ' : byte); /* an error reply is one line */
            }
            buf_byte(err, '\'');
            return ST_BAD;
        }
        if (conf_rows[conf_target((enum conf_id)id)].flags & CONF_START)
            return set_failed(err, (enum conf_id)id, SLICE_LIT("can't set immutable config"));
        if (seen[id])
            return set_failed(err, (enum conf_id)id, SLICE_LIT("duplicate parameter"));
        seen[id] = true;
    }
    return ST_OK;
}

enum status conf_set(const struct conf *cur, int npairs, const struct slice *pairs, struct conf **out, struct buf *err)
{
    err->len = 0;
    enum status st = check_names(npairs, pairs, err);
    if (st != ST_OK)
        return st;
    struct conf *c = conf_copy(cur);
    struct buf why;
    buf_init(&why, MEM_OTHER);
    for (int i = 0; i < npairs && st == ST_OK; i++) {
        enum conf_id id = (enum conf_id)conf_find(pairs[2 * i]), target = conf_target(id);
        if (conf_value_parse(c, target, pairs[2 * i + 1], &why) != FAULT_NONE) {
            st = set_failed(err, id, buf_slice(&why));
        } else {
            mem_free(MEM_OTHER, c->priv->secret_file[target]);
            c->priv->secret_file[target] = NULL;
        }
    }
    enum conf_id id;
    const char *conflict = st == ST_OK ? conf_conflict(c, &id) : NULL;
    if (conflict != NULL)
        st = set_failed(err, id, slice_str(conflict));
    buf_deinit(&why);
    if (st != ST_OK) {
        conf_unref(c);
        return st;
    }
    *out = c;
    return ST_OK;
}

bool conf_file_read(const char *path, size_t max, struct buf *out, struct buf *err)
{
    int fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    ssize_t n = fd < 0 ? -1 : 1;
    while (n > 0 && out->len <= max) {
        buf_reserve(out, 65536);
        n = read(fd, out->ptr + out->len, 65536);
        if (n < 0 && errno == EINTR)
            n = 1;
        else if (n > 0)
            out->len += (size_t)n;
    }
    int saved = errno;
    if (fd > STDIN_FILENO)
        close(fd);
    if (n >= 0 && out->len <= max)
        return true;
    buf_printf(err, "cannot read '");
    conf_print_clean(err, slice_str(path));
    if (n < 0)
        buf_printf(err, "': %s", strerror(saved));
    else
        buf_printf(err, "': larger than %zu bytes", max);
    errno = n < 0 ? saved : EFBIG;
    return false;
}

void conf_print_clean(struct buf *out, struct slice text)
{
    enum { SHOWN = 80 };
    for (size_t i = 0; i < text.len && i < SHOWN; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (c < 0x20 || c >= 0x7f)
            buf_printf(out, "\\x%02x", c);
        else
            buf_byte(out, (char)c);
    }
    if (text.len > SHOWN)
        buf_printf(out, "...");
}
