/* Users: who may do what, where commands are about to run; and the ACL commands. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "tiercel/hash.h"

#include "cmd/acl_priv.h"

#define NO_ACLFILE                                                                                                     \
    "ERR This Redis instance is not configured to use an ACL file. You may want to specify users via the ACL SETUSER " \
    "command and then issue a CONFIG REWRITE (assuming you have a Redis configuration file set) in order to store "    \
    "users in the Redis configuration."

/* ---- before a command runs ---- */

static struct slice object_of(const struct call *c, enum acl_verdict why, int at)
{
    return why == ACL_COMMAND && c->cmd ? slice_str(c->cmd->full) : c->argv[at];
}

static void log_denied(struct call *c, enum acl_verdict why, enum acl_context where, int at)
{
    acl_log_add(c, why, where, object_of(c, why, at), acl_session_user(c->s));
}

/* An upstream runs scripts on its own: what they do there nobody here can check. */
static enum acl_verdict check(const struct call *c, int *at)
{
    const struct command *cmd = c->cmd;

    if (c->w->tier->has_upstream && cmd && (cmd->flags & CMD_SCRIPT || (cmd->flags & CMD_CONTAINER && c->argc > 1)))
        cmd = NULL;
    return acl_check(c->s->user, cmd, c->argc, c->argv, at);
}

bool acl_admit(struct call *c)
{
    struct session *s = c->s;
    int at;

    if (s->auth) /* the upstream's rules count */
        return true;
    if (c->parked && c->parked->block) /* it was let in when it came, and has waited since */
        return true;
    if (!acl_session_refresh(s)) {
        s->close_asap = true;
        return false;
    }
    enum acl_verdict why = check(c, &at);
    if (why == ACL_OK)
        return true;
    s->last_cmd = c->cmd;
    log_denied(c, why, s->flags & SESSION_MULTI ? ACL_MULTI : ACL_TOPLEVEL, at);
    struct slice name = object_of(c, ACL_COMMAND, 0);
    char text[192];
    if (why == ACL_COMMAND)
        snprintf(text, sizeof(text), "NOPERM this user has no permissions to run the '%.*s' command",
                 (int)(name.len < 128 ? name.len : 128), name.ptr);
    else
        snprintf(text, sizeof(text), "NOPERM this user has no permissions to access one of the %s used as arguments",
                 why == ACL_KEY ? "keys" : "channels");
    dispatch_refuse(c, text);
    return false;
}

bool acl_admit_queued(struct call *c)
{
    int at;

    if (LIKELY(c->s->acl_seen == atomic_load_explicit(&c->w->cmd->acl_generation, memory_order_relaxed) &&
               !(c->s->flags & SESSION_LIMITED)))
        return true;
    acl_session_refresh(c->s); /* one that is no user any more goes after the transaction */
    enum acl_verdict why = check(c, &at);
    if (why == ACL_OK)
        return true;
    log_denied(c, why, ACL_MULTI, at);
    dispatch_rejected(c);
    call_errorf(c,
                "NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. This "
                "command is no longer allowed for the following reason: %s",
                why == ACL_COMMAND ? "no permission to execute the command or subcommand"
                : why == ACL_KEY   ? "no permission to touch the specified keys"
                                   : "no permission to access one of the channels used as arguments");
    return false;
}

bool acl_may_read_all_keys(const struct call *c)
{
    return !(c->s->flags & SESSION_LIMITED) || acl_check_reads_all(c->s->user, c->cmd, c->argc, c->argv);
}

const char *acl_script_refusal(struct call *c, bool log)
{
    int at;

    if (LIKELY(c->s->acl_seen == atomic_load_explicit(&c->w->cmd->acl_generation, memory_order_relaxed) &&
               !(c->s->flags & SESSION_LIMITED)))
        return NULL;
    acl_session_refresh(c->s);
    enum acl_verdict why = acl_check(c->s->user, c->cmd, c->argc, c->argv, &at);
    if (why != ACL_OK && log)
        log_denied(c, why, ACL_LUA, at);
    switch (why) {
    case ACL_OK: return NULL;
    case ACL_KEY:
        return "ERR The user executing the script can't access at least one of the keys mentioned in the command "
               "arguments";
    case ACL_CHANNEL: return "ERR The user executing the script can't publish to the channel mentioned in the command";
    default: return "ERR The user executing the script can't run this command or subcommand";
    }
}

bool acl_authenticate(struct call *c, struct slice user, struct slice password)
{
    if (acl_session_authenticate(c->s, user, password))
        return true;
    acl_log_add(c, ACL_AUTH, c->s->flags & SESSION_MULTI ? ACL_MULTI : ACL_TOPLEVEL, c->argv[0], user);
    return false;
}

/* ---- clients whose user went, or lost channels that they listen to ---- */

struct kick {
    uint64_t self;
    bool in_exec;
    int64_t reply; /* a number, or -1: OK */
};

static void kick_each(struct worker *w, void *arg)
{
    const struct kick *k = arg;
    struct list *all = worker_sessions(w);

    for (struct list *l = all->next, *next; l != all; l = next) {
        struct session *s = LIST_ENTRY(l, struct session, link);
        next = l->next;
        if (s->id == k->self || s->close_asap || acl_session_refresh(s))
            continue;
        s->close_asap = true;
        s->ops->wake(s);
    }
}

static void kick_reply(struct call *c, void *arg)
{
    const struct kick *k = arg;

    if (k->reply < 0)
        reply_simple(&c->r, "OK");
    else
        reply_int(&c->r, k->reply);
    if (!acl_session_refresh(c->s)) /* it gets its answer first */
        c->s->close_after_reply = true;
}

struct kick_job {
    struct mbox_msg msg;
    struct kick kick;
};

static void kick_job_run(struct mbox_msg *msg, void *owner)
{
    struct kick_job *job = LIST_ENTRY(msg, struct kick_job, msg);

    kick_each(owner, &job->kick);
    mem_free(MEM_OTHER, job);
}

/* Replies when all of them are closed; within EXEC, which must not wait, when they are about to be. */
static void kick(struct call *c, int64_t reply)
{
    struct cmd *cmd = c->w->cmd;
    struct kick k = {.self = c->s->id, .reply = reply};

    if (!c->in_exec) {
        struct kick *arg = mem_alloc(MEM_OTHER, sizeof(*arg));
        *arg = k;
        call_broadcast(c, kick_each, kick_reply, arg);
        return;
    }
    for (int i = 0; i < cmd->nworkers; i++) {
        struct kick_job *job = mem_calloc(MEM_OTHER, sizeof(*job));
        job->msg.run = kick_job_run;
        job->kick = k;
        mbox_post(cmd->workers[i]->mbox, &job->msg);
    }
    kick_reply(c, &k);
}

/* ---- ACL SETUSER, DELUSER ---- */

static bool all_channels(const struct call *c)
{
    return c->w->conf->acl_pubsub_default == 0;
}

/* As far as C's strings go, which Redis's text has it by. */
static int shown(struct slice s)
{
    return (int)strnlen(s.ptr, s.len < 1024 ? s.len : 1024);
}

void cmd_acl_setuser(struct call *c)
{
    struct acl *a = c->w->cmd->acl;
    struct slice name = c->argv[2];
    struct acl_words w;
    int at;

    for (size_t i = 0; i < name.len; i++) {
        if (isspace((unsigned char)name.ptr[i]) || name.ptr[i] == '\0') {
            call_error(c, "ERR Usernames can't contain spaces or null characters");
            return;
        }
    }
    if (!acl_words_init(&w, c->argc - 3, c->argv + 3, &at)) {
        call_errorf(c, "ERR Unmatched parenthesis in acl selector starting at '%.*s'.", shown(c->argv[3 + at]),
                    c->argv[3 + at].ptr);
        return;
    }
    struct acl_user *u = acl_edit(a, name, all_channels(c));
    const char *why = acl_user_rules(u, &w, all_channels(c), &at);
    if (why) {
        call_errorf(c, "ERR Error in ACL SETUSER modifier '%.*s': %s", shown(w.word[at]), w.word[at].ptr, why);
        acl_user_unref(u);
    } else {
        acl_put(a, u);
        kick(c, -1); /* also waits until no loop runs what was allowed before */
    }
    acl_words_deinit(&w);
}

void cmd_acl_deluser(struct call *c)
{
    struct acl *a = c->w->cmd->acl;
    int64_t n = 0;

    for (int i = 2; i < c->argc; i++) {
        if (slice_eq(c->argv[i], SLICE_LIT("default"))) {
            call_error(c, "ERR The 'default' user cannot be removed");
            return;
        }
    }
    for (int i = 2; i < c->argc; i++)
        n += acl_delete(a, c->argv[i]);
    if (n)
        kick(c, n);
    else
        reply_int(&c->r, 0);
}

/* ---- ACL GETUSER, LIST, USERS, WHOAMI ---- */

static void reply_text(struct call *c, void (*describe)(const struct acl_selector *s, struct buf *out),
                       const struct acl_selector *s)
{
    struct buf b;

    buf_init(&b, MEM_OTHER);
    describe(s, &b);
    reply_bulk(&c->r, buf_slice(&b));
    buf_deinit(&b);
}

static void reply_selector(struct call *c, const struct acl_selector *s)
{
    reply_bulk_str(&c->r, "commands");
    reply_text(c, acl_describe_commands, s);
    reply_bulk_str(&c->r, "keys");
    reply_text(c, acl_describe_keys, s);
    reply_bulk_str(&c->r, "channels");
    reply_text(c, acl_describe_channels, s);
}

static void reply_user(struct call *c, const struct acl_user *u)
{
    struct reply *r = &c->r;

    reply_map(r, 6);
    reply_bulk_str(r, "flags");
    reply_set(r, 1 + u->nopass + u->skip_sanitize + u->sanitize);
    reply_bulk_str(r, u->on ? "on" : "off");
    if (u->nopass)
        reply_bulk_str(r, "nopass");
    if (u->skip_sanitize)
        reply_bulk_str(r, "skip-sanitize-payload");
    if (u->sanitize)
        reply_bulk_str(r, "sanitize-payload");
    reply_bulk_str(r, "passwords");
    reply_array(r, u->npasswords);
    for (int i = 0; i < u->npasswords; i++)
        reply_bulk_str(r, u->passwords[i].hash);
    reply_selector(c, u->selectors[0]);
    reply_bulk_str(r, "selectors");
    reply_array(r, u->nselectors - 1);
    for (int i = 1; i < u->nselectors; i++) {
        reply_map(r, 3);
        reply_selector(c, u->selectors[i]);
    }
}

void cmd_acl_getuser(struct call *c)
{
    struct acl_user *u = acl_get(c->w->cmd->acl, c->argv[2]);

    if (u)
        reply_user(c, u);
    else
        reply_null(&c->r);
    acl_user_unref(u);
}

void cmd_acl_list(struct call *c)
{
    struct buf b;
    struct acl_names users;

    acl_all(c->w->cmd->acl, &users);
    buf_init(&b, MEM_OTHER);
    reply_array(&c->r, users.n);
    for (int i = 0; i < users.n; i++) {
        b.len = 0;
        buf_printf(&b, "user ");
        buf_slice_append(&b, users.user[i]->name);
        buf_byte(&b, ' ');
        acl_describe(users.user[i], &b);
        reply_bulk(&c->r, buf_slice(&b));
    }
    buf_deinit(&b);
    acl_names_deinit(&users);
}

void cmd_acl_users(struct call *c)
{
    struct acl_names users;

    acl_all(c->w->cmd->acl, &users);
    reply_array(&c->r, users.n);
    for (int i = 0; i < users.n; i++)
        reply_bulk(&c->r, users.user[i]->name);
    acl_names_deinit(&users);
}

void cmd_acl_whoami(struct call *c)
{
    reply_bulk(&c->r, acl_session_user(c->s));
}

/* ---- ACL LOAD, SAVE ---- */

void cmd_acl_load(struct call *c)
{
    struct buf err;

    if (!c->w->conf->aclfile[0]) {
        call_error(c, NO_ACLFILE);
        return;
    }
    buf_init(&err, MEM_OTHER);
    if (acl_file_load(c->w->cmd->acl, c->w->conf, &err))
        kick(c, -1);
    else
        call_errorf(c, "ERR %.*s", SLICE_FMT(buf_slice(&err)));
    buf_deinit(&err);
}

void cmd_acl_save(struct call *c)
{
    if (!c->w->conf->aclfile[0])
        call_error(c, NO_ACLFILE);
    else if (acl_file_save(c->w->cmd->acl, c->w->conf))
        reply_simple(&c->r, "OK");
    else
        call_error(c, "ERR There was an error trying to save the ACLs. Please check the server logs for more "
                      "information");
}

/* ---- ACL CAT, GENPASS, DRYRUN, HELP ---- */

static bool is_listed(const struct command *cmd, uint32_t category)
{
    return command_categories(cmd) & category && !(cmd->flags & (CMD_CONTAINER | CMD_DEBUG_ONLY));
}

void cmd_acl_cat(struct call *c)
{
    uint32_t category = 0;
    int n = 0;

    if (c->argc > 3) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 2) {
        reply_array(&c->r, CAT_COUNT);
        for (int i = 0; i < CAT_COUNT; i++)
            reply_bulk_str(&c->r, acl_category_names[i]);
        return;
    }
    for (int i = 0; i < CAT_COUNT; i++)
        category |= slice_is(c->argv[2], acl_category_names[i]) ? 1u << i : 0;
    if (!category) {
        call_errorf(c, "ERR Unknown category '%.*s'", shown(c->argv[2]), c->argv[2].ptr);
        return;
    }
    for (int i = 0; i < command_count; i++)
        n += is_listed(&command_table[i], category);
    reply_array(&c->r, n);
    for (int i = 0; i < command_count; i++)
        if (is_listed(&command_table[i], category))
            reply_bulk_str(&c->r, command_table[i].full);
}

void cmd_acl_genpass(struct call *c)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char raw[512];
    char text[2 * sizeof(raw)];
    int64_t bits = 256;

    if (c->argc > 3) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 3 && !call_arg_i64(c, 2, &bits, NULL))
        return;
    if (bits <= 0 || bits > 4096) {
        call_error(c, "ERR ACL GENPASS argument must be the number of bits for the output password, a positive number "
                      "up to 4096");
        return;
    }
    size_t n = (size_t)(bits + 3) / 4;
    random_bytes(raw, sizeof(raw));
    for (size_t i = 0; i < n; i++)
        text[i] = digits[raw[i / 2] >> (i % 2 * 4) & 15];
    reply_bulk(&c->r, SLICE(text, n));
}

static void dryrun(struct call *c, const struct acl_user *u)
{
    int argc = c->argc - 3, at;
    const struct slice *argv = c->argv + 3;
    const struct command *cmd = dispatch_find(argc, argv);
    struct buf b;

    if (!cmd || (cmd->flags & CMD_CONTAINER && argc > 1)) {
        call_errorf(c, "ERR Command '%.*s' not found", shown(argv[0]), argv[0].ptr);
        return;
    }
    if (!command_arity_fits(cmd, argc)) {
        call_errorf(c, "ERR wrong number of arguments for '%s' command", cmd->full);
        return;
    }
    buf_init(&b, MEM_OTHER);
    switch (acl_check(u, cmd, argc, argv, &at)) {
    case ACL_OK: break;
    case ACL_COMMAND: buf_printf(&b, "This user has no permissions to run the '%s' command", cmd->full); break;
    case ACL_KEY:
        buf_printf(&b, "This user has no permissions to access the '%.*s' key", shown(argv[at]), argv[at].ptr);
        break;
    default: buf_printf(&b, "This user has no permissions to access the '%.*s' channel", shown(argv[at]), argv[at].ptr);
    }
    if (b.len)
        reply_bulk(&c->r, buf_slice(&b));
    else
        reply_simple(&c->r, "OK");
    buf_deinit(&b);
}

void cmd_acl_dryrun(struct call *c)
{
    struct acl_user *u = acl_get(c->w->cmd->acl, c->argv[2]);

    if (u)
        dryrun(c, u);
    else
        call_errorf(c, "ERR User '%.*s' not found", shown(c->argv[2]), c->argv[2].ptr);
    acl_user_unref(u);
}

void cmd_acl_help(struct call *c)
{
    cmd_container_help(c);
}
