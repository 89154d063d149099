#include "cmd/cmd_priv.h"

#include <ctype.h>

/* COMMAND DOCS and every container's HELP, from the rows of tbl/cmd.def and tbl/cmd_args.def. */

static const char *const args_text[CMDID_COUNT] = {
#define ARGS(id, text) [CMDID_##id] = text,
#define DEPRECATED(id, since, replaced_by)
#include "cmd_args.def"
#undef ARGS
#undef DEPRECATED
};

static const struct deprecation {
    const char *since, *replaced_by;
} deprecations[CMDID_COUNT] = {
#define ARGS(id, text)
#define DEPRECATED(id, since, replaced_by) [CMDID_##id] = {since, replaced_by},
#include "cmd_args.def"
#undef ARGS
#undef DEPRECATED
};

static const char *const group_names[] = {
    [GROUP_GENERIC] = "generic",
    [GROUP_STRING] = "string",
    [GROUP_LIST] = "list",
    [GROUP_SET] = "set",
    [GROUP_SORTED_SET] = "sorted-set",
    [GROUP_HASH] = "hash",
    [GROUP_BITMAP] = "bitmap",
    [GROUP_HYPERLOGLOG] = "hyperloglog",
    [GROUP_GEO] = "geo",
    [GROUP_STREAM] = "stream",
    [GROUP_PUBSUB] = "pubsub",
    [GROUP_TRANSACTIONS] = "transactions",
    [GROUP_CONNECTION] = "connection",
    [GROUP_SERVER] = "server",
    [GROUP_SCRIPTING] = "scripting",
    [GROUP_CLUSTER] = "cluster",
    [GROUP_CACHE] = "cache",
};

/* ---- reading an argument list (the form is in cmd_args.def) ---- */

struct arg {
    struct slice type, name, key_spec, token, since, deprecated;
    bool optional, multiple, multiple_token;
    const char *inner; /* the list in parentheses, or NULL */
};

static struct slice take_until(const char **p, const char *stops)
{
    size_t n = strcspn(*p, stops);
    struct slice s = SLICE(*p, n);
    *p += n;
    return s;
}

static struct slice take_field(const char **p, char mark)
{
    if (**p != mark)
        return SLICE_NONE;
    const char *start = ++*p;
    *p += mark == '=' && **p; /* a token may be one of the marks: "=", "~", "*" */
    take_until(p, "#=@~?*+() ");
    return SLICE(start, (size_t)(*p - start));
}

static bool take_mark(const char **p, char mark)
{
    if (**p != mark)
        return false;
    ++*p;
    return true;
}

/* false: the list ends here. */
static bool arg_next(const char **p, struct arg *a)
{
    while (**p == ' ')
        ++*p;
    if (**p == '\0' || **p == ')')
        return false;
    a->type = take_until(p, ":");
    ++*p;
    a->name = take_until(p, "#=@~?*+() ");
    a->key_spec = take_field(p, '#');
    a->token = take_field(p, '=');
    a->since = take_field(p, '@');
    a->deprecated = take_field(p, '~');
    a->optional = take_mark(p, '?');
    a->multiple = take_mark(p, '*');
    a->multiple_token = take_mark(p, '+');
    a->inner = NULL;
    if (**p == '(') {
        int depth = 0;
        a->inner = *p + 1;
        do {
            depth += **p == '(';
            depth -= **p == ')';
            ++*p;
        } while (depth > 0);
    }
    return true;
}

static int arg_count(const char *p)
{
    struct arg a;
    int n = 0;
    while (arg_next(&p, &a))
        n++;
    return n;
}

/* ---- COMMAND DOCS ---- */

static void reply_field(struct reply *r, const char *name, struct slice value)
{
    if (value.len) {
        reply_bulk_str(r, name);
        reply_bulk(r, value);
    }
}

static void reply_args(struct reply *r, const char *list)
{
    struct arg a;
    reply_array(r, arg_count(list));
    while (arg_next(&list, &a)) {
        int flags = a.optional + a.multiple + a.multiple_token;
        reply_map(r, 2 + (a.key_spec.len > 0) + (a.token.len > 0) + (a.since.len > 0) + (a.deprecated.len > 0) +
                         (flags > 0) + (a.inner != NULL));
        reply_field(r, "name", a.name);
        reply_field(r, "type", a.type);
        if (a.key_spec.len) {
            reply_bulk_str(r, "key_spec_index");
            reply_int(r, a.key_spec.ptr[0] - '0');
        }
        reply_field(r, "token", a.token);
        reply_field(r, "since", a.since);
        reply_field(r, "deprecated_since", a.deprecated);
        if (flags) {
            reply_bulk_str(r, "flags");
            reply_set(r, flags);
        }
        if (a.optional)
            reply_simple(r, "optional");
        if (a.multiple)
            reply_simple(r, "multiple");
        if (a.multiple_token)
            reply_simple(r, "multiple_token");
        if (a.inner) {
            reply_bulk_str(r, "arguments");
            reply_args(r, a.inner);
        }
    }
}

static int count_subs(const struct command *cmd)
{
    int n = 0;
    for (int i = 0; i < command_count; i++)
        n += command_table[i].container == cmd->id;
    return n;
}

static bool is_internal(const struct command *cmd)
{
    switch (cmd->id) {
    case CMDID_debug:
    case CMDID_pfdebug:
    case CMDID_pfselftest:
    case CMDID_restore_asking: return true;
    default: return false;
    }
}

static void reply_doc(struct reply *r, const struct command *cmd)
{
    const char *args = args_text[cmd->id];
    const struct deprecation *old = &deprecations[cmd->id];
    const char *doc_flag = old->since ? "deprecated" : is_internal(cmd) ? "syscmd" : NULL;
    int subs = count_subs(cmd);
    reply_bulk_str(r, cmd->full);
    reply_map(r, 3 + (cmd->complexity[0] != '\0') + (doc_flag != NULL) + (old->since ? 2 : 0) + (args != NULL) +
                     (subs > 0));
    reply_field(r, "summary", slice_str(cmd->summary));
    reply_field(r, "since", slice_str(cmd->since));
    reply_field(r, "group", slice_str(group_names[cmd->group]));
    reply_field(r, "complexity", slice_str(cmd->complexity));
    if (doc_flag) {
        reply_bulk_str(r, "doc_flags");
        reply_set(r, 1);
        reply_simple(r, doc_flag);
    }
    if (old->since) {
        reply_field(r, "deprecated_since", slice_str(old->since));
        reply_field(r, "replaced_by", slice_str(old->replaced_by));
    }
    if (args) {
        reply_bulk_str(r, "arguments");
        reply_args(r, args);
    }
    if (subs) {
        reply_bulk_str(r, "subcommands");
        reply_map(r, subs);
    }
    for (int i = 0; subs && i < command_count; i++) {
        if (command_table[i].container == cmd->id)
            reply_doc(r, &command_table[i]);
    }
}

static void reply_all_docs(struct reply *r)
{
    int n = 0;
    for (int i = 0; i < command_count; i++)
        n += command_table[i].container < 0 && !(command_table[i].flags & CMD_DEBUG_ONLY);
    reply_map(r, n);
    for (int i = 0; i < command_count; i++) {
        if (command_table[i].container < 0 && !(command_table[i].flags & CMD_DEBUG_ONLY))
            reply_doc(r, &command_table[i]);
    }
}

void cmd_command_docs(struct call *c)
{
    int n = 0;
    if (c->argc == 2) {
        reply_all_docs(&c->r);
        return;
    }
    for (int i = 2; i < c->argc; i++)
        n += command_find_full(c->argv[i]) != NULL;
    reply_map(&c->r, n);
    for (int i = 2; i < c->argc; i++) {
        const struct command *cmd = command_find_full(c->argv[i]);
        if (cmd)
            reply_doc(&c->r, cmd);
    }
}

/* ---- HELP ---- */

static void syntax_list(struct buf *b, const char *list, const char *sep);

static void syntax_arg(struct buf *b, const struct arg *a)
{
    bool token_only = slice_is(a->type, "pure-token");
    buf_slice_append(b, a->token);
    if (token_only)
        return;
    if (a->token.len)
        buf_byte(b, ' ');
    if (a->inner)
        syntax_list(b, a->inner, slice_is(a->type, "oneof") ? "|" : " ");
    else
        buf_printf(b, "<%.*s>", SLICE_FMT(a->name));
}

static void syntax_list(struct buf *b, const char *list, const char *sep)
{
    struct arg a;
    const char *before = "";
    while (arg_next(&list, &a)) {
        buf_append(b, before, strlen(before));
        before = sep;
        if (a.optional)
            buf_byte(b, '[');
        syntax_arg(b, &a);
        if (a.multiple)
            buf_append(b, " ...", 4);
        if (a.optional)
            buf_byte(b, ']');
    }
}

static void reply_line(struct call *c, struct buf *b)
{
    buf_byte(b, '\0');
    reply_simple(&c->r, b->ptr);
    b->len = 0;
}

static void append_upper(struct buf *b, const char *text)
{
    for (; *text; text++)
        buf_byte(b, (char)toupper((unsigned char)*text));
}

static void help_head(struct call *c, struct buf *b, const char *name, int lines)
{
    reply_array(&c->r, lines + 3);
    append_upper(b, name);
    buf_printf(b, " <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
    reply_line(c, b);
}

static void help_tail(struct call *c)
{
    reply_simple(&c->r, "HELP");
    reply_simple(&c->r, "    Prints this help.");
}

void cmd_reply_help(struct call *c, const char *const *lines)
{
    struct buf b;
    int n = 0;
    buf_init(&b, MEM_OTHER);
    while (lines[n])
        n++;
    help_head(c, &b, c->cmd->container >= 0 ? command_table[c->cmd->container].name : c->cmd->name, n);
    for (int i = 0; i < n; i++)
        reply_simple(&c->r, lines[i]);
    help_tail(c);
    buf_deinit(&b);
}

void cmd_container_help(struct call *c)
{
    const struct command *container = &command_table[c->cmd->container];
    struct buf b;
    buf_init(&b, MEM_OTHER);
    help_head(c, &b, container->name, 2 * (count_subs(container) - 1));
    for (int i = 0; i < command_count; i++) {
        const struct command *sub = &command_table[i];
        if (sub->container != container->id || sub == c->cmd)
            continue;
        append_upper(&b, sub->name);
        if (args_text[i]) {
            buf_byte(&b, ' ');
            syntax_list(&b, args_text[i], " ");
        }
        reply_line(c, &b);
        buf_printf(&b, "    %s.", sub->summary);
        reply_line(c, &b);
    }
    help_tail(c);
    buf_deinit(&b);
}

void cmd_container(struct call *c)
{
    struct buf b;
    buf_init(&b, MEM_OTHER);
    append_upper(&b, c->cmd->name);
    call_errorf(c, "ERR unknown subcommand '%.*s'. Try %.*s HELP.", (int)(c->argv[1].len < 128 ? c->argv[1].len : 128),
                c->argv[1].ptr, (int)b.len, b.ptr);
    buf_deinit(&b);
}

void cmd_reply_bad_subcommand(struct call *c)
{
    const struct command *cmd = c->cmd->container >= 0 ? &command_table[c->cmd->container] : c->cmd;
    struct slice sub = SLICE(c->argv[1].ptr, c->argv[1].len < 128 ? c->argv[1].len : 128);
    struct buf b;
    buf_init(&b, MEM_OTHER);
    append_upper(&b, cmd->name);
    call_errorf(c, "ERR unknown subcommand or wrong number of arguments for '%.*s'. Try %.*s HELP.", SLICE_FMT(sub),
                (int)b.len, b.ptr);
    buf_deinit(&b);
}

/* The HELP of the containers whose files have none of their own. */
void cmd_command_help(struct call *c)
{
    cmd_container_help(c);
}

void cmd_client_help(struct call *c)
{
    cmd_container_help(c);
}

void cmd_config_help(struct call *c)
{
    cmd_container_help(c);
}

void cmd_memory_help(struct call *c)
{
    cmd_container_help(c);
}

void cmd_slowlog_help(struct call *c)
{
    cmd_container_help(c);
}

void cmd_latency_help(struct call *c)
{
    cmd_container_help(c);
}
