#include <stdio.h>

#include "tiercel/acl.h"
#include "tiercel/pubsub.h"
#include "tiercel/tracking.h"
#include "tiercel/version.h"

#include "cmd/cmd_priv.h"

/* AUTH, HELLO, PING, ECHO, SELECT, RESET, QUIT: what concerns one connection. */

/* ---- authentication ---- */

static bool authenticate(struct call *c, struct slice user, struct slice password)
{
    if (acl_authenticate(c, user, password))
        return true;
    call_error(c, "WRONGPASS invalid username-password pair or user is disabled.");
    return false;
}

void cmd_auth(struct call *c)
{
    if (c->s->auth) {
        auth_upstream_auth(c);
        return;
    }
    if (c->argc > 3) {
        call_syntax(c);
        return;
    }
    if (c->argc == 2 && acl_default_nopass(c->w->cmd->acl)) {
        call_error(c, "ERR AUTH <password> called without any password configured for the default user. "
                      "Are you sure your configuration is correct?");
        return;
    }
    struct slice user = c->argc == 3 ? c->argv[1] : SLICE_LIT("default");
    if (authenticate(c, user, c->argv[c->argc - 1]))
        reply_simple(&c->r, "OK");
}

/* ---- HELLO ---- */

bool client_set_name(struct call *c, struct slice name)
{
    for (size_t i = 0; i < name.len; i++) {
        if (name.ptr[i] < '!' || name.ptr[i] > '~') {
            call_error(c, "ERR Client names cannot contain spaces, newlines or special characters.");
            return false;
        }
    }
    c->s->name.len = 0;
    buf_slice_append(&c->s->name, name);
    return true;
}

/* false: an error was replied. */
static bool hello_options(struct call *c)
{
    for (int i = 2; i < c->argc; i++) {
        int more = c->argc - 1 - i;
        if (call_arg_is(c, i, "auth") && more >= 2) {
            if (!c->s->auth && !authenticate(c, c->argv[i + 1], c->argv[i + 2]))
                return false;
            i += 2;
        } else if (call_arg_is(c, i, "setname") && more >= 1) {
            if (!client_set_name(c, c->argv[i + 1]))
                return false;
            i++;
        } else {
            call_errorf(c, "ERR Syntax error in HELLO option '%.*s'", SLICE_FMT(c->argv[i]));
            return false;
        }
    }
    return true;
}

static void reply_hello(struct call *c)
{
    struct reply *r = &c->r;
    reply_map(r, 7);
    reply_bulk_str(r, "server");
    reply_bulk_str(r, "redis");
    reply_bulk_str(r, "version");
    reply_bulk_str(r, TIERCEL_REDIS_VERSION);
    reply_bulk_str(r, "proto");
    reply_int(r, c->s->proto);
    reply_bulk_str(r, "id");
    reply_int(r, (int64_t)c->s->id);
    reply_bulk_str(r, "mode");
    reply_bulk_str(r, "standalone");
    reply_bulk_str(r, "role");
    reply_bulk_str(r, "master");
    reply_bulk_str(r, "modules");
    reply_array(r, 0);
}

void cmd_hello(struct call *c)
{
    int64_t proto = 0;
    if (c->argc > 1) {
        if (!call_arg_i64(c, 1, &proto, "ERR Protocol version is not an integer or out of range"))
            return;
        if (proto != 2 && proto != 3) {
            call_error(c, "NOPROTO unsupported protocol version");
            return;
        }
    }
    if (c->s->auth && auth_upstream_hello(c, (int)proto))
        return;
    hello_finish(c, (int)proto);
}

void hello_finish(struct call *c, int proto)
{
    if (!hello_options(c))
        return;
    if (!(c->s->flags & SESSION_AUTHENTICATED)) {
        call_error(c, "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO "
                      "AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol "
                      "version at the same time");
        return;
    }
    if (proto && proto != c->s->proto && c->s->pin) { /* which goes on in the protocol that it began with */
        call_error(c,
                   "ERR the protocol cannot be changed while keys are watched or channels subscribed at the upstream");
        return;
    }
    if (proto)
        c->s->proto = c->r.proto = proto;
    reply_hello(c);
}

/* ---- the small ones ---- */

void cmd_ping(struct call *c)
{
    if (c->argc > 2) {
        cmd_reply_bad_arity(c);
    } else if (c->s->proto == 2 && session_subscribed(c->s)) {
        reply_array(&c->r, 2);
        reply_bulk_str(&c->r, "pong");
        reply_bulk(&c->r, c->argc == 2 ? c->argv[1] : SLICE_LIT(""));
    } else if (c->argc == 2) {
        reply_bulk(&c->r, c->argv[1]);
    } else {
        reply_simple(&c->r, "PONG");
    }
}

void cmd_echo(struct call *c)
{
    reply_bulk(&c->r, c->argv[1]);
}

void cmd_select(struct call *c)
{
    int64_t db;
    if (!cmd_arg_between(c, 1, INT32_MIN, INT32_MAX, &db, NULL))
        return;
    if (db < 0 || db >= c->w->conf->databases) {
        call_error(c, "ERR DB index is out of range");
        return;
    }
    c->s->db = (int)db;
    reply_simple(&c->r, "OK");
}

void cmd_reset(struct call *c)
{
    struct session *s = c->s;
    multi_discard(s);
    monitor_leave(s);
    tracking_off(s);
    pubsub_unsubscribe_all(s);
    forward_drop(s);
    s->flags &=
        ~(uint32_t)(SESSION_REPLY_OFF | SESSION_REPLY_SKIP | SESSION_SKIP_NEXT | SESSION_READONLY | SESSION_NO_EVICT);
    s->db = 0;
    s->proto = c->r.proto = 2;
    acl_session_start(s);
    auth_upstream_start(s);
    s->name.len = 0;
    reply_simple(&c->r, "RESET");
}

void cmd_quit(struct call *c)
{
    c->s->close_after_reply = true;
    reply_simple(&c->r, "OK");
}
