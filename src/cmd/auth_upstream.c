/* client-auth upstream: who a client is, the upstream says.
 *
 * AUTH and HELLO AUTH are verified on a connection of the client's own, which shows its credentials
 * there; the answer is the upstream's. A client that turns out to be the user that this server itself
 * is there shares our connections and copies ("shared"). Every other is "private": all its commands go on its
 * own connection, where the upstream applies its rights, and it gets nothing out of our copies. Who has not authenticated is
 * the upstream's default user: shared where that is also what we are, else private, on a connection that shows
 * no credentials, so that NOAUTH comes from the upstream too.
 *
 * Local users and their rules mean nothing here. Commands about this server are the shared user's; a private client has
 * those that concern its connection, at the upstream (own_connection()). */
#include <stdio.h>

#include "tiercel/acl.h"
#include "tiercel/num.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"
#include "tiercel/upstream.h"

#include "cmd/cmd_priv.h"

#define NAMES_MAX (1 << 20) /* bytes of a transaction's keys remembered; past it EXEC drops all copies */

/* A connection of one client. */
struct client_pin {
    struct session *s;
    struct upstream_pin *pin;
    bool lost;
};

/* What a transaction writes, to be dropped when EXEC answers. */
struct written {
    struct buf names; /* database, length, name */
    bool all;
};

struct client_auth {
    bool private;
    struct upstream_auth as; /* as far as was verified; kept for a private client's next connection */
    struct client_pin *cp;   /* NULL: none yet */
    bool multi, watching;    /* MULTI was sent; WATCH was answered */
    int db;                  /* selected there, as far as was sent */
    bool subscribed;         /* has been, on this connection */
    unsigned outstanding;    /* commands without an answer */
    int multi_db;            /* a SELECT in the transaction; -1: none */
    struct written written;
};

static bool ties_connection(const struct client_auth *a)
{
    return a->multi || a->watching || a->subscribed;
}

/* ---- connections ---- */

static void on_push(void *arg, struct slice reply)
{
    const struct client_pin *cp = arg;
    struct session *s = cp->s;
    struct reply r = {&s->out, s->proto};

    if (s->auth->cp != cp)
        return;
    if (s->proto == 3 && reply.len && reply.ptr[0] == '*') {
        reply_raw(&r, SLICE_LIT(">"));
        reply = SLICE(reply.ptr + 1, reply.len - 1);
    }
    reply_raw(&r, reply);
    s->ops->wake(s);
}

static void on_lost(void *arg)
{
    struct client_pin *cp = arg;
    struct session *s = cp->s;

    cp->lost = true;
    /* Subscriptions are gone, and with them messages: the client must know, and reconnects. */
    if (s->auth->cp == cp && s->auth->subscribed) {
        s->close_asap = true;
        s->ops->wake(s);
    }
}

static struct client_pin *pin_open(struct session *s, const struct upstream_auth *as, int proto)
{
    struct client_pin *cp = mem_calloc(MEM_CLIENT, sizeof(*cp));
    struct upstream_pin_events ev = {cp, on_push, on_lost};

    cp->s = s;
    cp->pin = upstream_pin_create(tier_upstream(s->w), UPSTREAM_PIN_WORK, proto, s->db, &ev, as);
    if (cp->pin)
        return cp;
    mem_free(MEM_CLIENT, cp);
    return NULL;
}

static void pin_shut(struct client_pin *cp)
{
    upstream_pin_destroy(cp->pin);
    mem_free(MEM_CLIENT, cp);
}

static void connection_drop(struct client_auth *a)
{
    struct client_pin *cp = a->cp;

    a->cp = NULL;
    a->multi = a->watching = a->subscribed = false;
    a->multi_db = -1;
    a->written.names.len = 0;
    a->written.all = false;
    if (cp)
        pin_shut(cp);
}

/* ---- sessions ---- */

static const char *user_of(const struct upstream_auth *as)
{
    return as->user[0] ? as->user : "default";
}

static void become(struct session *s, const struct upstream_auth *as, bool private)
{
    struct client_auth *a = s->auth;

    connection_drop(a);
    if (as != &a->as)
        a->as = *as;
    a->private = private;
    if (!private)
        explicit_bzero(a->as.password, sizeof(a->as.password));
}

void auth_upstream_start(struct session *s)
{
    static const struct upstream_auth nobody;
    bool logs_in;

    if (s->w->conf->client_auth != CLIENT_AUTH_UPSTREAM)
        return;
    if (!s->auth) {
        s->auth = mem_calloc(MEM_CLIENT, sizeof(*s->auth));
        buf_init(&s->auth->written.names, MEM_CLIENT);
    }
    const char *own = upstream_user(tier_upstream(s->w), &logs_in);
    become(s, &nobody, logs_in || strcmp(own, user_of(&nobody)) != 0);
    s->flags &= ~(uint32_t)SESSION_AUTHENTICATED;
    if (!s->auth->private)
        s->flags |= SESSION_AUTHENTICATED;
}

void auth_upstream_end(struct session *s)
{
    struct client_auth *a = s->auth;

    if (!a)
        return;
    connection_drop(a);
    s->auth = NULL;
    buf_deinit(&a->written.names);
    explicit_bzero(&a->as, sizeof(a->as));
    mem_free(MEM_CLIENT, a);
}

struct slice auth_upstream_user(const struct session *s)
{
    return slice_str(user_of(&s->auth->as));
}

bool auth_upstream_private(const struct session *s)
{
    return s->auth->private;
}

bool auth_upstream_subscribed(const struct session *s)
{
    return s->auth && s->auth->subscribed;
}

/* ---- AUTH and HELLO ---- */

struct login {
    struct upstream_call call;
    struct parked *p; /* NULL: the client went */
    struct client_pin *cp;
    struct upstream_auth as;
    int proto;
    enum status st;
    struct slice reply; /* during login_done() */
    bool is_error, sent;
};

static void login_free(struct login *l)
{
    explicit_bzero(l, sizeof(*l));
    mem_free(MEM_CLIENT, l);
}

static void login_cancel(void *arg)
{
    struct login *l = arg;

    l->p = NULL;
    pin_shut(l->cp); /* login_done() comes within */
}

static const struct suspend_ops login_ops = {login_cancel};

static void wipe_arguments(const struct parked *p)
{
    for (int i = 0; i < p->argc; i++)
        if (command_arg_is_secret(p->argv, i))
            explicit_bzero((void *)(uintptr_t)p->argv[i].ptr, p->argv[i].len); /* the request's own copy */
}

static void taken(struct call *c, struct login *l)
{
    struct session *s = c->s;
    bool logs_in;
    bool private = strcmp(user_of(&l->as), upstream_user(tier_upstream(c->w), &logs_in)) != 0 ||
                   (l->as.password[0] == '\0' && s->auth->private); /* HELLO without AUTH changes nobody */

    become(s, &l->as, private);
    if (private) {
        tracking_off(s); /* it was for what comes over our connections */
        s->auth->cp = l->cp;
        s->auth->db = s->db;
        l->cp = NULL;
    }
    s->flags |= SESSION_AUTHENTICATED;
    if (c->cmd->id == CMDID_auth)
        reply_simple(&c->r, "OK");
    else
        hello_finish(c, l->proto);
}

static bool says_noauth(struct slice reply)
{
    static const char text[] = "-NOAUTH";
    return reply.len >= sizeof(text) - 1 && memcmp(reply.ptr, text, sizeof(text) - 1) == 0;
}

static void login_reply(struct call *c, void *arg)
{
    struct login *l = arg;

    if (l->st != ST_OK)
        call_error(c, "UPSTREAMDOWN the upstream is not reachable, and nobody else can say who you are");
    else if (l->is_error && (!l->sent || says_noauth(l->reply)))
        reply_raw(&c->r, l->reply);
    else
        taken(c, l);
}

/* The answer to PING: whatever it is, it comes from one who was let in, if it was sent at all. */
static void login_done(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct login *l = LIST_ENTRY(call, struct login, call);
    struct parked *p = l->p;

    if (!p) {
        login_free(l);
        return;
    }
    l->st = st;
    l->reply = reply;
    l->is_error = is_error;
    l->sent = sent;
    wipe_arguments(p);
    struct buf copy; /* the answer outlives the connection that it came on */
    buf_init(&copy, MEM_CLIENT);
    buf_slice_append(&copy, reply);
    l->reply = buf_slice(&copy);
    call_complete(p, login_reply, l);
    buf_deinit(&copy);
    if (l->cp)
        pin_shut(l->cp);
    login_free(l);
}

/* Verifies, and replies later. */
static void login(struct call *c, const struct upstream_auth *as, int proto)
{
    struct slice ping = SLICE_LIT("PING");

    if (c->s->pin || ties_connection(c->s->auth)) {
        call_error(c, "ERR AUTH and HELLO are another connection at the upstream: not while subscribed or within a "
                      "transaction");
        return;
    }
    struct client_pin *cp = pin_open(c->s, as, proto);
    if (!cp) {
        call_error(c, "UPSTREAMBUSY no upstream connection is free: upstream-pins-max is reached");
        return;
    }
    struct login *l = mem_calloc(MEM_CLIENT, sizeof(*l));
    l->call.done = login_done;
    l->cp = cp;
    l->as = *as;
    l->proto = proto;
    l->p = call_suspend(c, &login_ops, l);
    upstream_pin_call(cp->pin, &l->call, 0, 1, &ping);
}

static bool copy_text(char *to, size_t size, struct slice from)
{
    if (from.len >= size || memchr(from.ptr, '\0', from.len))
        return false;
    memcpy(to, from.ptr, from.len);
    to[from.len] = '\0';
    return true;
}

/* user NULL: the password alone. false: the error was replied. */
static bool credentials(struct call *c, const struct slice *user, struct slice password, struct upstream_auth *as)
{
    memset(as, 0, sizeof(*as));
    /* Nobody has an empty name or password at a Redis; and here they would say that none is shown. */
    if ((user && (user->len == 0 || !copy_text(as->user, sizeof(as->user), *user))) || password.len == 0 ||
        !copy_text(as->password, sizeof(as->password), password)) {
        call_error(c, "WRONGPASS invalid username-password pair or user is disabled.");
        return false;
    }
    return true;
}

void auth_upstream_auth(struct call *c)
{
    struct upstream_auth as;

    if (c->argc > 3)
        call_syntax(c);
    else if (credentials(c, c->argc == 3 ? &c->argv[1] : NULL, c->argv[c->argc - 1], &as))
        login(c, &as, c->s->proto);
    explicit_bzero(&as, sizeof(as));
}

bool auth_upstream_hello(struct call *c, int proto)
{
    struct upstream_auth as = c->s->auth->as;
    bool shows = false;

    for (int i = 2; i < c->argc && !shows; i++) {
        if (call_arg_is(c, i, "auth") && i + 2 < c->argc) {
            if (!credentials(c, &c->argv[i + 1], c->argv[i + 2], &as))
                return true;
            shows = true;
        } else if (call_arg_is(c, i, "setname")) {
            i++;
        }
    }
    bool takes = shows || c->s->auth->private;
    if (takes)
        login(c, &as, proto ? proto : c->s->proto);
    explicit_bzero(&as, sizeof(as));
    return takes;
}

/* ---- a private client's commands ---- */

struct own_call {
    struct upstream_call call;
    struct parked *p; /* NULL: the client went */
    struct worker *w;
    const struct command *cmd;
    int db;
    bool writes, blocking;
    bool in_multi;
    bool tied; /* what it was part of is lost with the connection */
    struct written written;
    enum status st;
    struct slice reply; /* during own_done() */
    bool sent;
};

static bool stays_here(const struct command *cmd)
{
    return cmd && (cmd->id == CMDID_auth || cmd->id == CMDID_hello || cmd->id == CMDID_quit || cmd->id == CMDID_reset);
}

/* Of those that are about the server or connection: what the upstream may answer on the client's connection. */
static bool own_connection(const struct command *cmd)
{
    switch (cmd->id) {
    case CMDID_ping:
    case CMDID_echo:
    case CMDID_select:
    case CMDID_time:
    case CMDID_command:
    case CMDID_acl_whoami:
    case CMDID_client_id:
    case CMDID_client_getname:
    case CMDID_client_setname: return true;
    default: return cmd->container == CMDID_command;
    }
}

static bool refused_by_name(struct slice name)
{
    return slice_is(name, "monitor") || slice_is(name, "sync") || slice_is(name, "psync") || slice_is(name, "replconf");
}

static bool subscribes(const struct command *cmd, struct slice name)
{
    return (cmd && (cmd->id == CMDID_subscribe || cmd->id == CMDID_psubscribe || cmd->id == CMDID_ssubscribe)) ||
           slice_is(name, "ssubscribe");
}

static bool is_pubsub(const struct command *cmd, struct slice name)
{
    return subscribes(cmd, name) || slice_is(name, "sunsubscribe") ||
           (cmd && (cmd->id == CMDID_unsubscribe || cmd->id == CMDID_punsubscribe));
}

bool auth_upstream_ahead(const struct session *s, const struct command *cmd)
{
    return s->auth->cp && !s->auth->cp->lost && !stays_here(cmd);
}

static void remember(void *arg, unsigned db, struct slice name)
{
    struct written *wr = arg;
    uint32_t head[2] = {db, (uint32_t)name.len};

    if (wr->names.len + sizeof(head) + name.len > NAMES_MAX) {
        wr->all = true;
        return;
    }
    buf_append(&wr->names, head, sizeof(head));
    buf_slice_append(&wr->names, name);
}

static void forget_written(struct worker *w, struct written *wr)
{
    for (size_t at = 0; at < wr->names.len;) {
        uint32_t head[2];
        memcpy(head, wr->names.ptr + at, sizeof(head));
        at += sizeof(head);
        tier_forget_upstream(w, head[0], SLICE(wr->names.ptr + at, head[1]));
        at += head[1];
    }
    if (wr->all)
        tier_forget_all_upstream(w);
}

static void own_free(struct own_call *f)
{
    buf_deinit(&f->written.names);
    mem_free(MEM_CLIENT, f);
}

static void own_reply(struct call *c, void *arg)
{
    const struct own_call *f = arg;

    if (f->st == ST_OK) {
        if (c->r.proto == 3 && (slice_eq(f->reply, SLICE_LIT("$-1\r\n")) || slice_eq(f->reply, SLICE_LIT("*-1\r\n"))))
            reply_null(&c->r);
        else
            reply_raw(&c->r, f->reply);
        return;
    }
    stats_inc(c->w->stats, STAT_tier_upstream_errors);
    c->parked->last = f->tied; /* what is left of a transaction must not run outside of it */
    if (f->sent)
        call_error(c, "UPSTREAMTIMEOUT the upstream did not answer; the command may or may not have been executed");
    else
        call_error(c, "UPSTREAMDOWN the upstream is not reachable");
}

/* What an answer means for the connection. */
static void own_answered(struct session *s, const struct own_call *f, bool is_error)
{
    struct client_auth *a = s->auth;
    const struct parked *p = f->p;
    int64_t db;

    if (subscribes(f->cmd, p->argv[0]))
        a->subscribed |= !is_error;
    if (!f->cmd)
        return;
    switch (f->cmd->id) {
    case CMDID_watch: a->watching |= !is_error; break;
    case CMDID_unwatch: a->watching &= a->multi; break;
    case CMDID_multi: a->multi &= !is_error || f->in_multi; break;
    case CMDID_discard: a->watching = false; break;
    case CMDID_exec:
        a->watching = false;
        if (!is_error && f->reply.len && f->reply.ptr[0] == '*' && f->reply.ptr[1] != '-' && f->db >= 0)
            s->db = a->db = f->db;
        break;
    case CMDID_select:
        if (slice_eq(f->reply, SLICE_LIT("+OK\r\n")) && num_parse_i64(p->argv[1], &db))
            s->db = (int)db;
        else if (is_error && !f->in_multi)
            a->db = s->db;
        break;
    default: break;
    }
}

static void own_done(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct own_call *f = LIST_ENTRY(call, struct own_call, call);
    struct parked *p = f->p;

    f->st = st;
    f->reply = reply;
    f->sent = sent;
    if (st == ST_OK || sent)
        forget_written(f->w, &f->written);
    if (p) {
        if (f->blocking)
            p->s->flags &= ~(uint32_t)SESSION_BLOCKED;
        if (f->writes && (st == ST_OK || sent))
            forward_forget(f->w, f->cmd, f->db, p->argc, p->argv, false);
        if (st == ST_OK)
            own_answered(p->s, f, is_error);
        struct session *s = p->s;
        bool stranger = is_error && !(s->flags & SESSION_AUTHENTICATED) && says_noauth(reply);
        s->auth->outstanding--;
        call_complete(p, own_reply, f);
        /* Who is nobody must not hold what others need. */
        if (stranger && s->auth->outstanding == 0 && !(s->flags & SESSION_AUTHENTICATED))
            connection_drop(s->auth);
    }
    own_free(f);
}

static void own_cancel(void *arg)
{
    struct own_call *f = arg;
    f->p = NULL;
}

static const struct suspend_ops own_ops = {own_cancel};

/* SELECT of a database that we have none of: keys of it could not be dropped here. */
static bool selects_none_of_ours(const struct call *c)
{
    int64_t db;

    return c->cmd && c->cmd->id == CMDID_select && c->argc == 2 && num_parse_i64(c->argv[1], &db) &&
           (db < 0 || db >= c->w->conf->databases);
}

/* false: the error was replied. */
static bool connected(struct call *c)
{
    struct session *s = c->s;
    struct client_auth *a = s->auth;

    if (a->cp && a->cp->lost) {
        bool tied = ties_connection(a);
        connection_drop(a);
        if (tied) {
            call_error(c, "UPSTREAMDOWN the upstream connection of this client was lost");
            s->close_after_reply = true;
            return false;
        }
    }
    if (!a->cp) {
        a->cp = pin_open(s, &a->as, s->proto);
        a->db = s->db;
    }
    if (a->cp)
        return true;
    call_error(c, "UPSTREAMBUSY no upstream connection is free: upstream-pins-max is reached");
    return false;
}

/* What is sent now belongs to a transaction, begins or ends one. */
static void own_transaction(struct client_auth *a, struct own_call *f, const struct call *c)
{
    enum command_id id = c->cmd ? (enum command_id)c->cmd->id : CMDID_COUNT;
    int64_t db;

    f->in_multi = a->multi;
    f->tied = a->multi || a->watching;
    if (id == CMDID_multi && !a->multi) {
        a->multi = true;
        a->multi_db = -1;
    } else if (id == CMDID_exec || id == CMDID_discard) {
        if (id == CMDID_exec) { /* theirs are those of the next from here on */
            struct buf names = f->written.names;
            f->written = a->written;
            f->db = a->multi_db;
            a->written = (struct written){.names = names};
        }
        a->written.names.len = 0;
        a->written.all = a->multi = false;
    } else if (id == CMDID_select && c->argc == 2 && num_parse_i64(c->argv[1], &db)) {
        *(a->multi ? &a->multi_db : &a->db) = (int)db;
    } else if (a->multi && f->writes) {
        if (forward_changes_all(c->cmd))
            a->written.all = true;
        else
            forward_each_written(c->w, c->cmd, a->multi_db >= 0 ? a->multi_db : a->db, c->argc, c->argv, remember,
                                 &a->written);
    }
}

static enum dispatch_rc own_send(struct call *c)
{
    struct session *s = c->s;
    struct client_auth *a = s->auth;

    if (!connected(c))
        return DISPATCH_DONE;
    if (c->cmd)
        monitor_note(c);
    struct own_call *f = mem_calloc(MEM_CLIENT, sizeof(*f));
    buf_init(&f->written.names, MEM_CLIENT);
    f->w = c->w;
    f->cmd = c->cmd;
    f->db = a->db;
    f->writes = forward_writes(c->cmd);
    f->call.done = own_done;
    own_transaction(a, f, c);
    if (c->cmd && (c->cmd->id == CMDID_exec || c->cmd->id == CMDID_select))
        f->writes = false; /* they name no keys */
    if (f->writes && upstream_state(tier_upstream(c->w)) == UPSTREAM_UP)
        forward_forget(c->w, c->cmd, f->db, c->argc, c->argv, true);
    f->blocking = !a->multi && forward_blocks(c->cmd, c->argc, c->argv);
    f->p = call_suspend(c, &own_ops, f);
    f->p->asks_upstream = !f->blocking;
    f->p->state = f->blocking || is_pubsub(c->cmd, c->argv[0]) ? PARKED_LATER : PARKED_SENT;
    if (f->blocking)
        s->flags |= SESSION_BLOCKED;
    stats_inc(c->w->stats, STAT_tier_upstream_requests);
    a->outstanding++;
    upstream_pin_call(a->cp->pin, &f->call, f->blocking ? forward_wait_ms(c->cmd, c->argc, c->argv) : 0, f->p->argc,
                      f->p->argv);
    return DISPATCH_LATER;
}

bool auth_upstream_takes(struct call *c, enum dispatch_rc *rc)
{
    const struct command *cmd = c->cmd;

    if (!c->s->auth->private || stays_here(cmd))
        return false;
    *rc = DISPATCH_DONE;
    bool refused = cmd ? cmd->flags & CMD_SERVER && !own_connection(cmd) : refused_by_name(c->argv[0]);
    if (refused && !(c->s->flags & SESSION_AUTHENTICATED))
        call_error(c, "NOAUTH Authentication required.");
    else if (refused)
        call_errorf(c, "NOPERM '%.*s' is about this server: only clients that are the user '%s' of the upstream may",
                    (int)(c->argv[0].len < 64 ? c->argv[0].len : 64), c->argv[0].ptr,
                    upstream_user(tier_upstream(c->w), &(bool){false}));
    else if (selects_none_of_ours(c))
        call_error(c, "ERR DB index is out of range");
    else
        *rc = own_send(c);
    if (*rc == DISPATCH_DONE)
        dispatch_rejected(c);
    return true;
}
