#include "cmd/acl_priv.h"

#include <stdio.h>

#include "tiercel/check.h"
#include "tiercel/glob.h"
#include "tiercel/num.h"

/* COMMAND and its subcommands (DOCS is in docs.c): the command table, told in Redis's reply forms. */

/* ---- lookups ---- */

const struct command *command_find_full(struct slice name)
{
    const char *bar = memchr(name.ptr, '|', name.len);
    if (!bar)
        return command_find(name);
    size_t n = (size_t)(bar - name.ptr);
    const struct command *container = command_find(SLICE(name.ptr, n));
    if (!container || !(container->flags & CMD_CONTAINER))
        return NULL;
    return command_find_sub(container, SLICE(bar + 1, name.len - n - 1));
}

/* A command line: the command, or the subcommand that its first argument names. */
static const struct command *find_line(int argc, const struct slice *argv)
{
    const struct command *cmd = command_find(argv[0]);
    if (!cmd || !(cmd->flags & CMD_CONTAINER) || argc < 2)
        return cmd;
    return command_find_sub(cmd, argv[1]);
}

static bool is_listed(const struct command *cmd, int container)
{
    return cmd->container == container && !(cmd->flags & CMD_DEBUG_ONLY);
}

static int count_listed(int container)
{
    int n = 0;
    for (int i = 0; i < command_count; i++)
        n += is_listed(&command_table[i], container);
    return n;
}

/* The subcommands' `container` for a row, or a value that matches none. */
static int subs_of(const struct command *cmd)
{
    return cmd->flags & CMD_CONTAINER ? cmd->id : -2;
}

/* ---- words ---- */

/* Takes the next word off `text`; false: none is left. */
static bool next_word(const char **text, char sep, struct slice *word)
{
    while (**text == sep)
        ++*text;
    if (**text == '\0')
        return false;
    const char *end = strchrnul(*text, sep);
    *word = SLICE(*text, (size_t)(end - *text));
    *text = end;
    return true;
}

static bool next_word_in(struct slice *text, struct slice *word)
{
    while (text->len && *text->ptr == ' ')
        *text = SLICE(text->ptr + 1, text->len - 1);
    if (text->len == 0)
        return false;
    const char *end = memchr(text->ptr, ' ', text->len);
    *word = SLICE(text->ptr, end ? (size_t)(end - text->ptr) : text->len);
    *text = SLICE(text->ptr + word->len, text->len - word->len);
    return true;
}

static int count_words_in(struct slice text)
{
    int n = 0;
    struct slice word;
    while (next_word_in(&text, &word))
        n++;
    return n;
}

static void reply_simple_slice(struct reply *r, struct slice s)
{
    char text[64];
    snprintf(text, sizeof(text), "%.*s", SLICE_FMT(s));
    reply_simple(r, text);
}

static void reply_words(struct reply *r, struct slice words)
{
    struct slice word;
    reply_set(r, count_words_in(words));
    while (next_word_in(&words, &word))
        reply_simple_slice(r, word);
}

/* ---- COMMAND INFO ---- */

static const struct {
    uint32_t flag;
    const char *name;
} flag_names[] = {
    {CMD_WRITE, "write"},
    {CMD_READONLY, "readonly"},
    {CMD_DENYOOM, "denyoom"},
    {CMD_ADMIN, "admin"},
    {CMD_PUBSUB, "pubsub"},
    {CMD_NOSCRIPT, "noscript"},
    {CMD_BLOCKING, "blocking"},
    {CMD_LOADING, "loading"},
    {CMD_STALE, "stale"},
    {CMD_SKIP_MONITOR, "skip_monitor"},
    {CMD_SKIP_SLOWLOG, "skip_slowlog"},
    {CMD_ASKING, "asking"},
    {CMD_FAST, "fast"},
    {CMD_NO_AUTH, "no_auth"},
    {CMD_MAY_REPLICATE, "may_replicate"},
    {CMD_NO_MANDATORY_KEYS, "no_mandatory_keys"},
    {CMD_MOVABLEKEYS, "movablekeys"},
    {CMD_ALLOW_BUSY, "allow_busy"},
    {CMD_NO_ASYNC_LOADING, "no_async_loading"},
    {CMD_NO_MULTI, "no_multi"},
};
#define NFLAGS (sizeof(flag_names) / sizeof(flag_names[0]))

const char *const acl_category_names[CAT_COUNT] = {
    "keyspace", "read",   "write",       "set",       "sortedset",  "list",        "hash",
    "string",   "bitmap", "hyperloglog", "geo",       "stream",     "pubsub",      "admin",
    "fast",     "slow",   "blocking",    "dangerous", "connection", "transaction", "scripting",
};

static void reply_flags(struct reply *r, uint32_t flags)
{
    int n = 0;
    for (size_t i = 0; i < NFLAGS; i++)
        n += (flags & flag_names[i].flag) != 0;
    reply_set(r, n);
    for (size_t i = 0; i < NFLAGS; i++) {
        if (flags & flag_names[i].flag)
            reply_simple(r, flag_names[i].name);
    }
}

static void reply_categories(struct reply *r, uint32_t categories)
{
    reply_set(r, __builtin_popcount(categories));
    for (int i = 0; i < CAT_COUNT; i++) {
        char text[32];
        if (!(categories & 1u << i))
            continue;
        snprintf(text, sizeof(text), "@%s", acl_category_names[i]);
        reply_simple(r, text);
    }
}

static void reply_tips(struct reply *r, const char *tips)
{
    struct slice word;
    const char *p = tips;
    int n = count_words_in(slice_str(tips));
    reply_set(r, n);
    while (next_word(&p, ' ', &word))
        reply_bulk(r, word);
}

int command_key_specs(const struct command *cmd)
{
    int n = 0;
    struct slice spec;
    for (const char *p = cmd->key_flags; next_word(&p, '|', &spec);)
        n++;
    return n;
}

struct key_spec {
    struct slice flags, note;
    struct slice keyword; /* where it stands behind a word (cmd.def) */
    int64_t at;           /* of the number of keys, or where the search for the word begins; 0 = neither */
    bool unknown;         /* cannot be said so */
};

static struct key_spec key_spec(const struct command *cmd, int i)
{
    struct key_spec spec = {.at = 0};
    struct slice text = SLICE_NONE, where;
    const char *p = cmd->key_flags;
    for (int at = 0; at <= i; at++)
        next_word(&p, '|', &text);
    const char *semi = memchr(text.ptr, ';', text.len), *space = memchr(text.ptr, ' ', text.len);
    if (semi) {
        size_t n = (size_t)(semi - text.ptr);
        spec.note = SLICE(semi + 2, text.len - n - 2);
        text.len = n;
    }
    if (*text.ptr == '?') {
        spec.unknown = true;
        text = SLICE(space + 1, text.len - (size_t)(space + 1 - text.ptr));
    } else if (*text.ptr == '@' || *text.ptr == '=') {
        const char *from = *text.ptr == '@' ? text.ptr : memchr(text.ptr, ':', text.len);
        where = SLICE(from + 1, (size_t)(space - from - 1));
        CHECK(num_parse_i64(where, &spec.at));
        if (*text.ptr == '=')
            spec.keyword = SLICE(text.ptr + 1, (size_t)(from - text.ptr - 1));
        text = SLICE(space + 1, text.len - (size_t)(space + 1 - text.ptr));
    }
    spec.flags = text;
    return spec;
}

static void reply_named_map(struct reply *r, const char *name, const char *type, int npairs)
{
    reply_bulk_str(r, name);
    reply_map(r, 2);
    reply_bulk_str(r, "type");
    reply_bulk_str(r, type);
    reply_bulk_str(r, "spec");
    reply_map(r, npairs);
}

static void reply_named_int(struct reply *r, const char *name, int64_t v)
{
    reply_bulk_str(r, name);
    reply_int(r, v);
}

static void reply_range(struct reply *r, int last, int step, int limit)
{
    reply_named_map(r, "find_keys", "range", 3);
    reply_named_int(r, "lastkey", last);
    reply_named_int(r, "keystep", step);
    reply_named_int(r, "limit", limit);
}

static void reply_key_spec(struct reply *r, const struct command *cmd, const struct key_spec *spec, int i, bool last)
{
    int span = cmd->last < 0 ? cmd->last : cmd->last - cmd->first - i;
    if (spec->unknown) {
        reply_named_map(r, "begin_search", "unknown", 0);
        reply_named_map(r, "find_keys", "unknown", 0);
        return;
    }
    if (spec->keyword.ptr) {
        reply_named_map(r, "begin_search", "keyword", 2);
        reply_bulk_str(r, "keyword");
        reply_bulk(r, spec->keyword);
        reply_named_int(r, "startfrom", spec->at);
        bool rest = cmd->first == 0; /* XREAD: half of all that follows */
        reply_range(r, rest ? -1 : 0, 1, rest ? 2 : 0);
        return;
    }
    reply_named_map(r, "begin_search", "index", 1);
    reply_named_int(r, "index", spec->at ? spec->at : cmd->first + i);
    if (!spec->at) {
        reply_range(r, last ? span : 0, cmd->step, 0);
        return;
    }
    reply_named_map(r, "find_keys", "keynum", 3);
    reply_named_int(r, "keynumidx", 0);
    reply_named_int(r, "firstkey", 1);
    reply_named_int(r, "keystep", 1);
}

/* Where a row has several specs, each stands for one key, and the last for the rest of them. */
static void reply_key_specs(struct reply *r, const struct command *cmd)
{
    int n = command_key_specs(cmd);
    reply_set(r, n);
    for (int i = 0; i < n; i++) {
        struct key_spec spec = key_spec(cmd, i);
        reply_map(r, spec.note.len ? 4 : 3);
        if (spec.note.len) {
            reply_bulk_str(r, "notes");
            reply_bulk(r, spec.note);
        }
        reply_bulk_str(r, "flags");
        reply_words(r, spec.flags);
        reply_key_spec(r, cmd, &spec, i, i + 1 == n);
    }
}

static void reply_info(struct reply *r, const struct command *cmd)
{
    reply_array(r, 10);
    reply_bulk_str(r, cmd->full);
    reply_int(r, cmd->arity);
    reply_flags(r, cmd->flags);
    reply_int(r, cmd->first);
    reply_int(r, cmd->last);
    reply_int(r, cmd->step);
    reply_categories(r, command_categories(cmd));
    reply_tips(r, cmd->tips);
    reply_key_specs(r, cmd);
    int subs = subs_of(cmd);
    int n = count_listed(subs);
    if (n == 0)
        reply_set(r, 0);
    else
        reply_array(r, n);
    for (int i = 0; n > 0 && i < command_count; i++) {
        if (is_listed(&command_table[i], subs))
            reply_info(r, &command_table[i]);
    }
}

static void reply_all_info(struct call *c)
{
    reply_array(&c->r, count_listed(-1));
    for (int i = 0; i < command_count; i++) {
        if (is_listed(&command_table[i], -1))
            reply_info(&c->r, &command_table[i]);
    }
}

void cmd_command(struct call *c)
{
    if (c->argc > 1)
        cmd_container(c);
    else
        reply_all_info(c);
}

void cmd_command_info(struct call *c)
{
    if (c->argc == 2) {
        reply_all_info(c);
        return;
    }
    reply_array(&c->r, c->argc - 2);
    for (int i = 2; i < c->argc; i++) {
        const struct command *cmd = command_find_full(c->argv[i]);
        if (cmd)
            reply_info(&c->r, cmd);
        else
            reply_null(&c->r);
    }
}

void cmd_command_count(struct call *c)
{
    reply_int(&c->r, count_listed(-1));
}

/* ---- COMMAND LIST ---- */

struct list_filter {
    enum { FILTER_NONE, FILTER_MODULE, FILTER_ACLCAT, FILTER_PATTERN } kind;
    uint32_t category;
    struct slice pattern;
};

static bool list_filter_parse(struct call *c, struct list_filter *f)
{
    f->kind = FILTER_NONE;
    if (c->argc == 2)
        return true;
    if (c->argc != 5 || !call_arg_is(c, 2, "filterby"))
        return false;
    f->pattern = c->argv[4];
    if (call_arg_is(c, 3, "module")) {
        f->kind = FILTER_MODULE;
    } else if (call_arg_is(c, 3, "pattern")) {
        f->kind = FILTER_PATTERN;
    } else if (call_arg_is(c, 3, "aclcat")) {
        f->kind = FILTER_ACLCAT;
        f->category = 0;
        for (int i = 0; i < CAT_COUNT; i++)
            f->category |= slice_is(c->argv[4], acl_category_names[i]) ? 1u << i : 0;
    } else {
        return false;
    }
    return true;
}

static bool list_filter_match(const struct list_filter *f, const struct command *cmd)
{
    if (cmd->flags & CMD_DEBUG_ONLY)
        return false;
    switch (f->kind) {
    case FILTER_NONE: return true;
    case FILTER_MODULE: return false;
    case FILTER_ACLCAT: return (command_categories(cmd) & f->category) != 0;
    case FILTER_PATTERN: return glob_match(f->pattern, slice_str(cmd->full), true);
    }
    return false;
}

void cmd_command_list(struct call *c)
{
    struct list_filter f = {0};
    int n = 0;
    if (!list_filter_parse(c, &f)) {
        call_syntax(c);
        return;
    }
    for (int i = 0; i < command_count; i++)
        n += list_filter_match(&f, &command_table[i]);
    /* Redis answers a set here where nothing is filtered. */
    if (f.kind == FILTER_NONE)
        reply_set(&c->r, n);
    else
        reply_array(&c->r, n);
    for (int i = 0; i < command_count; i++) {
        if (list_filter_match(&f, &command_table[i]))
            reply_bulk_str(&c->r, command_table[i].full);
    }
}

/* ---- COMMAND GETKEYS, GETKEYSANDFLAGS ---- */

/* BITFIELD with nothing but GET, and what of it can be understood, only reads. */
static bool bitfield_writes(int argc, const struct slice *argv)
{
    for (int i = 2; i < argc; i++) {
        if (slice_is(argv[i], "get") && i + 2 < argc)
            i += 2;
        else if (slice_is(argv[i], "overflow") && i + 1 < argc)
            i++;
        else
            return true;
    }
    return false;
}

struct slice command_key_flags(const struct command *cmd, int i, int argc, const struct slice *argv)
{
    int n = command_key_specs(cmd);
    struct slice flags = key_spec(cmd, i < n ? i : n - 1).flags;
    if (!memmem(flags.ptr, flags.len, "variable_flags", 14))
        return flags;
    if (cmd->id == CMDID_bitfield)
        return bitfield_writes(argc, argv) ? SLICE_LIT("RW access update") : SLICE_LIT("RO access");
    for (int a = 3; a < argc; a++) { /* SET reads the old value only when it is told to */
        if (slice_is(argv[a], "get"))
            return SLICE_LIT("RW access update");
    }
    return SLICE_LIT("OW update");
}

static void getkeys(struct call *c, bool with_flags)
{
    int argc = c->argc - 2;
    const struct slice *argv = c->argv + 2;
    const struct command *cmd = find_line(argc, argv);
    if (!cmd) {
        call_error(c, "ERR Invalid command specified");
        return;
    }
    if (command_key_specs(cmd) == 0) {
        call_error(c, "ERR The command has no key arguments");
        return;
    }
    if ((cmd->arity > 0 && cmd->arity != argc) || argc < -cmd->arity) {
        call_error(c, "ERR Invalid number of arguments specified for command");
        return;
    }
    int *pos = mem_alloc(MEM_OTHER, sizeof(int) * (size_t)argc);
    int n = command_keys(cmd, argc, argv, pos, argc);
    if (n < 0 && cmd->flags & CMD_NO_MANDATORY_KEYS)
        reply_array(&c->r, 0);
    else if (n < 0)
        call_error(c, "ERR Invalid arguments specified for command");
    else
        reply_array(&c->r, n);
    for (int i = 0; i < n; i++) {
        if (with_flags)
            reply_array(&c->r, 2);
        reply_bulk(&c->r, argv[pos[i]]);
        if (with_flags)
            reply_words(&c->r, command_key_flags(cmd, i, argc, argv));
    }
    mem_free(MEM_OTHER, pos);
}

void cmd_command_getkeys(struct call *c)
{
    getkeys(c, false);
}

void cmd_command_getkeysandflags(struct call *c)
{
    getkeys(c, true);
}
