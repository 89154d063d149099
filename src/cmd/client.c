#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tiercel/clock.h"
#include "tiercel/pubsub.h"
#include "tiercel/tracking.h"

#include "cmd/acl_priv.h"

/* CLIENT. Sessions belong to their workers, so LIST, KILL and UNBLOCK visit all of them with a
 * message and reply when it came back. */

/* ---- one line of CLIENT LIST ---- */

static void append_flags(struct buf *b, const struct session *s)
{
    size_t before = b->len;
    if (session_subscribed(s))
        buf_byte(b, 'P');
    if (multi_length(s) >= 0)
        buf_byte(b, 'x');
    if (s->flags & SESSION_MONITOR)
        buf_byte(b, 'O');
    if (s->flags & SESSION_BLOCKED)
        buf_byte(b, 'b');
    buf_printf(b, "%s", tracking_flags(s));
    if (s->flags & SESSION_DIRTY_EXEC)
        buf_byte(b, 'd');
    if (s->close_after_reply)
        buf_byte(b, 'c');
    if (s->close_asap)
        buf_byte(b, 'A');
    if (s->flags & SESSION_UNIX)
        buf_byte(b, 'U');
    if (s->flags & SESSION_READONLY)
        buf_byte(b, 'r');
    if (s->flags & SESSION_NO_EVICT)
        buf_byte(b, 'e');
    if (b->len == before)
        buf_byte(b, 'N');
}

void client_describe(const struct session *s, struct buf *b)
{
    int64_t now_ms = clock_wall_ms();
    size_t out = s->out.bytes;
    buf_printf(b, "id=%" PRIu64 " addr=%s laddr=%s fd=%d name=%.*s age=%" PRId64 " idle=%" PRId64 " flags=", s->id,
               s->addr, s->laddr, s->fd, (int)s->name.len, s->name.len ? s->name.ptr : "",
               (now_ms - s->created_ms) / 1000, (now_ms - s->last_ms) / 1000);
    append_flags(b, s);
    buf_printf(b, " db=%d sub=%zu psub=%zu ssub=%zu multi=%d qbuf=%zu qbuf-free=%zu argv-mem=%zu multi-mem=%zu", s->db,
               pubsub_session_channels(s), pubsub_session_patterns(s), pubsub_session_shard_channels(s),
               multi_length(s), s->query_bytes, s->query_free, s->queued_bytes, multi_bytes(s));
    buf_printf(b,
               " rbs=0 rbp=0 obl=0 oll=%d omem=%zu tot-mem=%zu events=%s cmd=%s user=%.*s redir=%" PRId64 " resp=%d\n",
               out > 0, out, session_bytes(s), out ? "rw" : "r", s->last_cmd ? s->last_cmd->full : "NULL",
               SLICE_FMT(acl_session_user(s)), tracking_redirect(s), s->proto);
}

/* ---- which clients ---- */

enum client_type { TYPE_ANY, TYPE_NORMAL, TYPE_REPLICA, TYPE_PUBSUB, TYPE_MASTER };

static bool parse_type(struct call *c, int arg, enum client_type *out)
{
    if (call_arg_is(c, arg, "normal"))
        *out = TYPE_NORMAL;
    else if (call_arg_is(c, arg, "slave") || call_arg_is(c, arg, "replica"))
        *out = TYPE_REPLICA;
    else if (call_arg_is(c, arg, "pubsub"))
        *out = TYPE_PUBSUB;
    else if (call_arg_is(c, arg, "master"))
        *out = TYPE_MASTER;
    else {
        call_errorf(c, "ERR Unknown client type '%.*s'", SLICE_FMT(c->argv[arg]));
        return false;
    }
    return true;
}

struct filter {
    enum client_type type;
    uint64_t *ids; /* in the argument order of LIST, or one of KILL's */
    int nids;
    char addr[64], laddr[64];
    struct acl_user *user; /* NULL: any; a reference */
    uint64_t skip;         /* the caller, under SKIPME */
};

static bool filter_match(const struct filter *f, const struct session *s)
{
    enum client_type type = session_subscribed(s) ? TYPE_PUBSUB : TYPE_NORMAL;
    bool listed = f->nids == 0;
    for (int i = 0; i < f->nids && !listed; i++)
        listed = f->ids[i] == s->id;
    return listed && (f->type == TYPE_ANY || f->type == type) && (!f->addr[0] || strcmp(f->addr, s->addr) == 0) &&
           (!f->laddr[0] || strcmp(f->laddr, s->laddr) == 0) &&
           (!f->user || slice_eq(f->user->name, acl_session_user(s))) && s->id != f->skip;
}

/* ---- a visit of all workers ---- */

/* Goes from worker to worker and comes home. Beside call_broadcast() it exists because what it
 * gathers needs freeing also when the client is gone meanwhile. */
struct visit {
    struct mbox_msg msg;
    struct cmd *cmd;
    struct worker *home;
    struct parked *parked; /* NULL: the client is gone */
    int next;
    void (*each)(struct visit *v, struct worker *w);
    void (*reply)(struct call *c, struct visit *v);
    struct filter filter;
    uint64_t self;
    bool error; /* UNBLOCK ERROR */
    bool one;   /* KILL addr: replies OK or an error */
    bool kill_self;
    int64_t count;
    struct buf text;  /* LIST: lines ... */
    struct buf lines; /* ... and a struct line for each */
};

struct line {
    uint64_t id;
    size_t at, len;
};

static struct visit *visit_new(struct call *c)
{
    struct visit *v = mem_calloc(MEM_OTHER, sizeof(*v));
    v->cmd = c->w->cmd;
    v->home = c->w;
    v->self = c->s->id;
    buf_init(&v->text, MEM_OTHER);
    buf_init(&v->lines, MEM_OTHER);
    return v;
}

static void visit_free(struct visit *v)
{
    mem_free(MEM_OTHER, v->filter.ids);
    acl_user_unref(v->filter.user);
    buf_deinit(&v->text);
    buf_deinit(&v->lines);
    mem_free(MEM_OTHER, v);
}

static void visit_cancel(void *arg)
{
    struct visit *v = arg;
    v->parked = NULL;
}

static const struct suspend_ops visit_ops = {visit_cancel};

static void visit_finish(struct call *c, void *arg)
{
    struct visit *v = arg;
    v->reply(c, v);
}

static void visit_home(struct mbox_msg *msg, void *owner)
{
    struct visit *v = LIST_ENTRY(msg, struct visit, msg);
    (void)owner;
    if (v->parked)
        call_complete(v->parked, visit_finish, v);
    visit_free(v);
}

static void visit_step(struct mbox_msg *msg, void *owner)
{
    struct visit *v = LIST_ENTRY(msg, struct visit, msg);
    v->each(v, owner);
    if (++v->next < v->cmd->nworkers) {
        mbox_post(v->cmd->workers[v->next]->mbox, &v->msg);
        return;
    }
    v->msg.run = visit_home;
    mbox_post(v->home->mbox, &v->msg);
}

/* A transaction must not suspend: it sees and acts on the clients of its own worker only. */
static void visit_start(struct call *c, struct visit *v, void (*each)(struct visit *v, struct worker *w),
                        void (*reply)(struct call *c, struct visit *v))
{
    v->each = each;
    v->reply = reply;
    if (c->in_exec) {
        each(v, c->w);
        reply(c, v);
        visit_free(v);
        return;
    }
    v->parked = call_suspend(c, &visit_ops, v);
    v->msg.run = visit_step;
    mbox_post(v->cmd->workers[0]->mbox, &v->msg);
}

/* ---- LIST, INFO ---- */

static void list_each(struct visit *v, struct worker *w)
{
    struct list *all = worker_sessions(w);
    for (struct list *l = all->next; l != all; l = l->next) {
        struct session *s = LIST_ENTRY(l, struct session, link);
        if (!filter_match(&v->filter, s))
            continue;
        struct line line = {s->id, v->text.len, 0};
        client_describe(s, &v->text);
        line.len = v->text.len - line.at;
        buf_append(&v->lines, &line, sizeof(line));
    }
}

static int line_compare(const void *a, const void *b)
{
    uint64_t x = ((const struct line *)a)->id, y = ((const struct line *)b)->id;
    return x < y ? -1 : x > y;
}

static void list_reply(struct call *c, struct visit *v)
{
    struct line *line = (struct line *)(void *)v->lines.ptr;
    size_t n = v->lines.len / sizeof(*line);
    const struct filter *f = &v->filter;
    struct buf out;
    buf_init(&out, MEM_CLIENT);
    if (n)
        qsort(line, n, sizeof(*line), line_compare);
    if (f->nids == 0) {
        for (size_t i = 0; i < n; i++)
            buf_append(&out, v->text.ptr + line[i].at, line[i].len);
    }
    for (int i = 0; i < f->nids && n; i++) { /* in the order in which they were asked for */
        struct line key = {f->ids[i], 0, 0};
        struct line *hit = bsearch(&key, line, n, sizeof(*line), line_compare);
        if (hit)
            buf_append(&out, v->text.ptr + hit->at, hit->len);
    }
    reply_verbatim(&c->r, buf_slice(&out), "txt");
    buf_deinit(&out);
}

static bool list_parse(struct call *c, struct filter *f)
{
    if (c->argc == 2)
        return true;
    if (c->argc == 4 && call_arg_is(c, 2, "type"))
        return parse_type(c, 3, &f->type);
    if (c->argc < 4 || !call_arg_is(c, 2, "id")) {
        call_syntax(c);
        return false;
    }
    f->ids = mem_alloc(MEM_OTHER, sizeof(*f->ids) * (size_t)c->argc);
    for (int i = 3; i < c->argc; i++) {
        int64_t id;
        if (!call_arg_i64(c, i, &id, "ERR Invalid client ID"))
            return false;
        f->ids[f->nids++] = (uint64_t)id;
    }
    return true;
}

void cmd_client_list(struct call *c)
{
    struct visit *v = visit_new(c);
    if (list_parse(c, &v->filter))
        visit_start(c, v, list_each, list_reply);
    else
        visit_free(v);
}

void cmd_client_info(struct call *c)
{
    struct buf b;
    buf_init(&b, MEM_CLIENT);
    client_describe(c->s, &b);
    reply_verbatim(&c->r, buf_slice(&b), "txt");
    buf_deinit(&b);
}

/* ---- KILL ---- */

static void kill_each(struct visit *v, struct worker *w)
{
    struct list *all = worker_sessions(w);
    if (v->one && v->count)
        return;
    for (struct list *l = all->next, *next; l != all; l = next) {
        struct session *s = LIST_ENTRY(l, struct session, link);
        next = l->next;
        if (s->close_asap || !filter_match(&v->filter, s))
            continue;
        v->count++;
        if (s->id == v->self) {
            v->kill_self = true; /* gets its reply first */
        } else {
            s->close_asap = true;
            s->ops->wake(s);
        }
        if (v->one)
            break;
    }
}

static void kill_reply(struct call *c, struct visit *v)
{
    if (!v->one)
        reply_int(&c->r, v->count);
    else if (v->count)
        reply_simple(&c->r, "OK");
    else
        call_error(c, "ERR No such client");
    if (v->kill_self)
        c->s->close_after_reply = true;
}

static void set_addr(char out[64], struct slice s)
{
    snprintf(out, 64, "%.*s", SLICE_FMT(s));
}

/* One "name value" of KILL's new form. false: an error was replied. */
static bool kill_option(struct call *c, int i, struct filter *f, bool *skip_me)
{
    struct slice value = c->argv[i + 1];
    if (call_arg_is(c, i, "id")) {
        int64_t id;
        if (!cmd_arg_between(c, i + 1, 1, INT64_MAX, &id, "ERR client-id should be greater than 0"))
            return false;
        if (!f->ids)
            f->ids = mem_alloc(MEM_OTHER, sizeof(*f->ids));
        f->ids[0] = (uint64_t)id;
        f->nids = 1;
    } else if (call_arg_is(c, i, "type")) {
        return parse_type(c, i + 1, &f->type);
    } else if (call_arg_is(c, i, "addr")) {
        set_addr(f->addr, value);
    } else if (call_arg_is(c, i, "laddr")) {
        set_addr(f->laddr, value);
    } else if (call_arg_is(c, i, "user")) {
        acl_user_unref(f->user);
        f->user = acl_get(c->w->cmd->acl, value);
        if (!f->user) {
            call_errorf(c, "ERR No such user '%.*s'", SLICE_FMT(value));
            return false;
        }
    } else if (call_arg_is(c, i, "skipme") && (slice_is(value, "yes") || slice_is(value, "no"))) {
        *skip_me = slice_is(value, "yes");
    } else {
        call_syntax(c);
        return false;
    }
    return true;
}

static bool kill_parse(struct call *c, struct visit *v)
{
    bool skip_me = true;
    if (c->argc == 3) {
        v->one = true;
        set_addr(v->filter.addr, c->argv[2]);
        return true;
    }
    for (int i = 2; i < c->argc; i += 2) {
        if (i + 1 == c->argc) {
            call_syntax(c);
            return false;
        }
        if (!kill_option(c, i, &v->filter, &skip_me))
            return false;
    }
    v->filter.skip = skip_me ? v->self : 0;
    return true;
}

void cmd_client_kill(struct call *c)
{
    struct visit *v = visit_new(c);
    if (kill_parse(c, v))
        visit_start(c, v, kill_each, kill_reply);
    else
        visit_free(v);
}

/* ---- UNBLOCK ---- */

static void unblock_each(struct visit *v, struct worker *w)
{
    struct list *all = worker_sessions(w);
    for (struct list *l = all->next; l != all; l = l->next) {
        struct session *s = LIST_ENTRY(l, struct session, link);
        if (s->id == v->filter.ids[0]) {
            v->count = block_unblock(s, v->error) || forward_unblock(s, v->error);
            return;
        }
    }
}

static void unblock_reply(struct call *c, struct visit *v)
{
    reply_int(&c->r, v->count);
}

void cmd_client_unblock(struct call *c)
{
    bool error = false;
    int64_t id;
    if (c->argc > 4) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 4) {
        error = call_arg_is(c, 3, "error");
        if (!error && !call_arg_is(c, 3, "timeout")) {
            call_error(c, "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
            return;
        }
    }
    if (!call_arg_i64(c, 2, &id, NULL))
        return;
    struct visit *v = visit_new(c);
    v->error = error;
    v->filter.ids = mem_alloc(MEM_OTHER, sizeof(*v->filter.ids));
    v->filter.ids[0] = (uint64_t)id;
    v->filter.nids = 1;
    visit_start(c, v, unblock_each, unblock_reply);
}

/* ---- PAUSE, UNPAUSE ---- */

bool client_arg_timeout_ms(struct call *c, int arg, int64_t *out)
{
    if (!call_arg_i64(c, arg, out, "ERR timeout is not an integer or out of range"))
        return false;
    if (*out < 0)
        call_error(c, "ERR timeout is negative");
    else if (*out > INT64_MAX - c->now_ms)
        call_error(c, "ERR timeout is out of range");
    else
        return true;
    return false;
}

void cmd_client_pause(struct call *c)
{
    struct cmd *cmd = c->w->cmd;
    bool all = true;
    int64_t ms;
    if (c->argc > 4) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 4) {
        all = call_arg_is(c, 3, "all");
        if (!all && !call_arg_is(c, 3, "write")) {
            call_error(c, "ERR CLIENT PAUSE mode must be WRITE or ALL");
            return;
        }
    }
    if (!client_arg_timeout_ms(c, 2, &ms))
        return;
    /* A pause that is on only gets stricter and longer. */
    int64_t until = atomic_load(&cmd->pause_until_ms);
    bool on = until > c->now_ms;
    atomic_store(&cmd->pause_all, all || (on && atomic_load(&cmd->pause_all)));
    if (!on || c->now_ms + ms > until)
        atomic_store(&cmd->pause_until_ms, c->now_ms + ms);
    reply_simple(&c->r, "OK");
}

void cmd_client_unpause(struct call *c)
{
    atomic_store(&c->w->cmd->pause_until_ms, 0);
    reply_simple(&c->r, "OK");
}

/* ---- what concerns only this one ---- */

void cmd_client_id(struct call *c)
{
    reply_int(&c->r, (int64_t)c->s->id);
}

void cmd_client_getname(struct call *c)
{
    if (c->s->name.len)
        reply_bulk(&c->r, buf_slice(&c->s->name));
    else
        reply_null(&c->r);
}

void cmd_client_setname(struct call *c)
{
    if (client_set_name(c, c->argv[2]))
        reply_simple(&c->r, "OK");
}

/* OFF and SKIP are silent themselves; dispatch withholds what they ask for. */
void cmd_client_reply(struct call *c)
{
    struct session *s = c->s;
    if (call_arg_is(c, 2, "on")) {
        s->flags &= ~(uint32_t)(SESSION_REPLY_OFF | SESSION_REPLY_SKIP | SESSION_SKIP_NEXT);
        reply_simple(&c->r, "OK");
    } else if (call_arg_is(c, 2, "off")) {
        s->flags |= SESSION_REPLY_OFF;
    } else if (call_arg_is(c, 2, "skip")) {
        if (!(s->flags & SESSION_REPLY_OFF))
            s->flags |= SESSION_SKIP_NEXT;
    } else {
        call_syntax(c);
    }
}

void cmd_client_no_evict(struct call *c)
{
    if (call_arg_is(c, 2, "on")) {
        c->s->flags |= SESSION_NO_EVICT;
    } else if (call_arg_is(c, 2, "off")) {
        c->s->flags &= ~(uint32_t)SESSION_NO_EVICT;
    } else {
        call_syntax(c);
        return;
    }
    reply_simple(&c->r, "OK");
}
