/* An upstream behind this server: which commands it must answer, and their way there and back.
 *
 *   LOCAL       about this server or connection
 *   NEAR        reads of strings: answered from a kept copy, fetched on a miss (tier layer)
 *   PART        reads that whole copies can answer; else passed through as WRITE_LINK (near.c)
 *   WRITE_LINK  the rest, on the worker's shared connection, in order
 *   PIN         what ties a client to a connection: transactions, blocking commands, pub/sub
 *
 * A write drops the local copies of its keys when it is sent and again at its reply; one that
 * cannot be sent leaves them, to bridge the outage. Where the table does not know a command's
 * keys, every argument is taken for one: dropping too much costs a fetch, dropping too little a
 * stale read.
 *
 * What a script or an unknown command has changed nobody tells us but the invalidations, and those may come later than
 * its reply: so that waits until all that were sent before it have arrived (tier_fence()). */
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/num.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"
#include "tiercel/upstream.h"

#include "cmd/acl_priv.h"

#define FORGET_ARGS_MAX 4096 /* arguments of an unknown command that are taken for keys */
#define NAMES_MAX (1 << 20)  /* bytes of a transaction's keys remembered; past it EXEC drops all copies */

enum pin_mode { PIN_MULTI, PIN_BLOCKING, PIN_PUBSUB };

/* A client's own upstream connection. */
struct forward_pin {
    struct session *s;
    struct upstream_pin *pin;
    enum pin_mode mode;
    int db;          /* selected there, as far as was sent */
    int outstanding; /* calls without an answer */
    struct upstream_call ask_id;
    int64_t id; /* of a blocking one, as the upstream counts clients; 0 = not known */
    enum { UNBLOCK_NONE, UNBLOCK_TIMEOUT, UNBLOCK_ERROR } unblock; /* wanted before the id was known */
    bool lost;
    bool multi;    /* MULTI was sent ... */
    bool in_multi; /* ... and answered */
    bool watching; /* WATCH was answered, and nothing has ended it */
    bool ending;   /* EXEC or DISCARD was sent: what follows must wait for its answer */
    bool fence;    /* it has a script or an unknown command */
    bool aborted;  /* one of its commands was refused here, or may not be run any more: EXEC is sent as DISCARD */
    struct acl_user *user; /* whose rights were looked at since MULTI */
    bool forget_all;       /* the transaction has a FLUSHALL, FLUSHDB or SWAPDB */
    struct buf names;      /* length-prefixed keys of the transaction's writes, dropped again at EXEC */
};

/* One forwarded request. Outlives its parked request when the client goes. */
struct forward {
    struct upstream_call call;
    struct parked *p; /* NULL: the client went */
    struct forward_pin *fp;
    struct worker *w;
    const struct command *cmd;
    int db;
    bool writes;
    bool in_transaction; /* or watching keys for one */
    bool blocking;
    bool fence;          /* its answer waits for the invalidations of whatever it did */
    const char *aborted; /* why, where DISCARD was sent for EXEC */
    struct buf copy;     /* of the reply, where it outlives done() */
    struct slice reply;  /* from done() on */
    enum status st;
    bool sent;
    int64_t since_us; /* when it was passed on; 0: on a pin, whose commands may wait as long as they like */
};

/* ---- routes ---- */

static bool is_pubsub(const struct command *cmd)
{
    return cmd && cmd->group == GROUP_PUBSUB && cmd->id != CMDID_publish && cmd->id != CMDID_spublish &&
           cmd->container < 0;
}

static bool opens_pin(const struct command *cmd)
{
    return cmd && (cmd->id == CMDID_multi || cmd->id == CMDID_watch || is_pubsub(cmd));
}

static bool is_one_of(struct slice name, const char *const *names)
{
    for (; *names; names++)
        if (slice_is(name, *names))
            return true;
    return false;
}

static bool blocks_by_name(struct slice name)
{
    static const char *const names[] = {"blmove", "brpoplpush", "blmpop", "bzpopmin", "bzpopmax", "bzmpop", NULL};
    return is_one_of(name, names);
}

/* They change what a connection is or stop its answers, and clients share ours. */
static bool takes_connection(struct slice name)
{
    static const char *const names[] = {"monitor",    "sync",         "psync",   "replconf",
                                        "ssubscribe", "sunsubscribe", "waitaof", NULL};
    return is_one_of(name, names);
}

/* XREAD and XREADGROUP block only when told to. */
static bool blocks_by_option(int argc, const struct slice *argv)
{
    if (!slice_is(argv[0], "xread") && !slice_is(argv[0], "xreadgroup"))
        return false;
    for (int i = 1; i < argc; i++)
        if (slice_is(argv[i], "block"))
            return true;
    return false;
}

static bool blocks(const struct command *cmd, int argc, const struct slice *argv)
{
    if (cmd && (cmd->id == CMDID_xread || cmd->id == CMDID_xreadgroup))
        return blocks_by_option(argc, argv);
    return cmd ? cmd->flags & CMD_BLOCKING : blocks_by_name(argv[0]) || blocks_by_option(argc, argv);
}

/* How long a command that blocks asks to wait: upstream_pin_call(). What cannot be read the upstream refuses at once. */
static int64_t wait_ms_of(int argc, const struct slice *argv)
{
    int arg = slice_is(argv[0], "blmpop") || slice_is(argv[0], "bzmpop") ? 1 : argc - 1;
    int64_t unit = 1000;
    long double n;

    for (int i = 1; blocks_by_option(argc, argv) && i + 1 < argc; i++) {
        if (slice_is(argv[i], "block")) {
            arg = i + 1;
            unit = 1;
            break;
        }
    }
    if (!num_parse_f64(argv[arg], &n) || n <= 0 || n * (long double)unit >= 0x1p62L)
        return UPSTREAM_WAIT_EVER;
    return (int64_t)(n * (long double)unit) + 1;
}

/* The database that a SELECT names; -1: none of ours. */
static int selected_db(const struct session *s, int argc, const struct slice *argv)
{
    int64_t db;
    return argc == 2 && num_parse_i64(argv[1], &db) && db >= 0 && db < s->w->conf->databases ? (int)db : -1;
}

/* While keys are watched, and MULTI was not sent: what is about this server or connection stays here. */
static bool is_ours_while_watching(const struct session *s, const struct command *cmd, int argc,
                                   const struct slice *argv)
{
    if (!cmd)
        return takes_connection(argv[0]);
    if (cmd->id == CMDID_select)
        return selected_db(s, argc, argv) < 0;
    return cmd->flags & CMD_SERVER || cmd->id == CMDID_wait;
}

enum forward_route forward_route(const struct session *s, const struct command *cmd, int argc, const struct slice *argv)
{
    const struct forward_pin *fp = s->pin;

    if (fp && fp->mode == PIN_MULTI) {
        if (cmd && (cmd->id == CMDID_quit || cmd->id == CMDID_reset))
            return ROUTE_LOCAL;
        return !fp->multi && is_ours_while_watching(s, cmd, argc, argv) ? ROUTE_LOCAL : ROUTE_PIN;
    }
    /* WAIT: about replicas of this server; on the shared connection it would hold up everybody. */
    if (cmd ? cmd->flags & CMD_SERVER || cmd->id == CMDID_wait : takes_connection(argv[0]))
        return ROUTE_LOCAL;
    if (opens_pin(cmd) || blocks(cmd, argc, argv))
        return ROUTE_PIN;
    if (cmd && (cmd->id == CMDID_unwatch || cmd->id == CMDID_exec || cmd->id == CMDID_discard))
        return ROUTE_LOCAL; /* no transaction is open: the error, or OK, is ours */
    if (cmd && cmd->flags & CMD_NEAR)
        return ROUTE_NEAR;
    if (cmd && cmd->flags & CMD_NEAR_PART)
        return ROUTE_PART;
    return ROUTE_WRITE_LINK;
}

/* ---- own writes ---- */

static bool writes(const struct command *cmd)
{
    return !cmd || cmd->flags & (CMD_WRITE | CMD_MAY_REPLICATE) || !(cmd->flags & CMD_READONLY);
}

/* May it change keys that it does not name? */
static bool writes_unknown_keys(const struct command *cmd)
{
    return !cmd || (cmd->flags & CMD_SCRIPT && !(cmd->flags & CMD_READONLY));
}

static bool changes_all(const struct command *cmd)
{
    return cmd && (cmd->id == CMDID_flushall || cmd->id == CMDID_flushdb || cmd->id == CMDID_swapdb);
}

/* Calls fn for each key that the write may change. */
static void each_written(struct worker *w, const struct command *cmd, int db, int argc, const struct slice *argv,
                         void (*fn)(void *arg, unsigned db, struct slice name), void *arg)
{
    if (!cmd || (cmd->first == 0 && !cmd->find_keys)) {
        for (int i = 1; i < argc && i < FORGET_ARGS_MAX; i++)
            fn(arg, (unsigned)db, argv[i]);
        return;
    }
    int max = dispatch_key_count(cmd, argc);
    struct call_key *keys = mem_alloc(MEM_CLIENT, (size_t)(max + 1) * sizeof(*keys));
    int n = dispatch_keys(w, cmd, argc, argv, db, keys, max);
    if (n == 0 && cmd->id == CMDID_move && argc > 1) /* to a database that there is none of here */
        fn(arg, (unsigned)db, argv[1]);
    for (int i = 0; i < n; i++)
        fn(arg, keys[i].key.db, key_slice(&keys[i].key));
    mem_free(MEM_CLIENT, keys);
}

static void forget_key(void *arg, unsigned db, struct slice name)
{
    tier_forget_upstream(arg, db, name);
}

static void forget_keys(struct worker *w, const struct command *cmd, int db, int argc, const struct slice *argv)
{
    if (changes_all(cmd))
        tier_forget_all_upstream(w);
    else
        each_written(w, cmd, db, argc, argv, forget_key, w);
}

/* ---- answers ---- */

/* Waits at the upstream, or does not any more: as CLIENT LIST and INFO tell of those that wait here. */
static void set_blocked(struct session *s, bool blocked)
{
    if (blocked == ((s->flags & SESSION_BLOCKED) != 0))
        return;
    s->flags ^= (uint32_t)SESSION_BLOCKED;
    stats_add(s->w->stats, STAT_blocked_clients, blocked ? 1 : (uint64_t)-1);
}

static void pin_close(struct session *s)
{
    struct forward_pin *fp = s->pin;

    s->pin = NULL;
    set_blocked(s, false);
    upstream_pin_destroy(fp->pin);
    buf_deinit(&fp->names);
    acl_user_unref(fp->user);
    mem_free(MEM_CLIENT, fp);
}

static void forward_reply(struct call *c, void *arg)
{
    struct forward *f = arg;

    if (f->st == ST_OK && f->aborted && slice_eq(f->reply, SLICE_LIT("+OK\r\n"))) {
        call_error(c, f->aborted);
        return;
    }
    if (f->st == ST_OK) {
        reply_raw(&c->r, f->reply);
        return;
    }
    stats_inc(c->w->stats, STAT_tier_upstream_errors);
    /* What is left of a transaction must not run outside of it: the client has to begin anew, on a new connection. */
    c->parked->last = f->in_transaction;
    if (f->sent) /* its outcome is unknown, and it is never sent again */
        call_error(c, "UPSTREAMTIMEOUT the upstream did not answer; the command may or may not have been executed");
    else
        call_error(c, "UPSTREAMDOWN the upstream is not reachable");
}

static void forward_cancel(void *arg)
{
    struct forward *f = arg;
    f->p = NULL;
}

static const struct suspend_ops forward_ops = {forward_cancel};

static bool ends_with(struct slice s, const char *tail)
{
    size_t n = strlen(tail);
    return s.len >= n && memcmp(s.ptr + s.len - n, tail, n) == 0;
}

/* The answer ends the transaction, be it run or not. */
static void transaction_ended(struct forward_pin *fp, bool ran)
{
    fp->multi = fp->in_multi = fp->watching = fp->aborted = false;
    if (ran)
        fp->s->db = fp->db; /* a SELECT within it took effect */
    else
        fp->db = fp->s->db;
}

/* true: the pin has served: nothing is watched, open or on its way. */
static bool transaction_answered(struct forward_pin *fp, enum command_id id, struct slice reply, bool is_error)
{
    switch (id) {
    case CMDID_watch: fp->watching |= !is_error; break;
    case CMDID_unwatch: fp->watching &= fp->in_multi; break;
    case CMDID_multi:
        fp->in_multi |= !is_error;
        fp->multi = fp->in_multi;
        break;
    case CMDID_select:
        if (!fp->in_multi && !is_error)
            fp->s->db = fp->db;
        else if (!fp->in_multi)
            fp->db = fp->s->db;
        break;
    case CMDID_exec:
    case CMDID_discard: /* without MULTI they are errors that change nothing */
        fp->ending = false;
        if (fp->in_multi && !(id == CMDID_discard && is_error))
            transaction_ended(fp, id == CMDID_exec && !is_error && !slice_eq(reply, SLICE_LIT("*-1\r\n")));
        break;
    default: break;
    }
    return !fp->watching && !fp->multi && fp->outstanding == 0;
}

/* What an answer on a pin means for the pin. true: it has served. */
static bool pin_answered(struct forward_pin *fp, const struct forward *f, struct slice reply, bool is_error)
{
    enum command_id id = f->cmd ? (enum command_id)f->cmd->id : CMDID_COUNT;

    switch (fp->mode) {
    case PIN_BLOCKING: return true;
    case PIN_PUBSUB: return f->st != ST_OK || is_error || ends_with(reply, "\r\n:0\r\n");
    case PIN_MULTI: return f->st != ST_OK || transaction_answered(fp, id, reply, is_error);
    }
    return true;
}

static void forget_transaction(struct forward_pin *fp)
{
    size_t at = 0;

    while (at + sizeof(uint32_t) * 2 <= fp->names.len) {
        uint32_t head[2];
        memcpy(head, fp->names.ptr + at, sizeof(head));
        at += sizeof(head);
        tier_forget_upstream(fp->s->w, head[0], SLICE(fp->names.ptr + at, head[1]));
        at += head[1];
    }
    fp->names.len = 0;
    if (fp->forget_all)
        tier_forget_all_upstream(fp->s->w);
    fp->forget_all = false;
}

/* The answer goes to the client. */
static void forward_finish(struct forward *f)
{
    if (f->p)
        call_complete(f->p, forward_reply, f);
    buf_deinit(&f->copy);
    mem_free(MEM_CLIENT, f);
}

static void fence_passed(void *arg)
{
    forward_finish(arg);
}

/* Keeps the answer beyond the call that brought it. */
static void keep_reply(struct forward *f)
{
    buf_init(&f->copy, MEM_CLIENT);
    buf_slice_append(&f->copy, f->reply);
    f->reply = buf_slice(&f->copy);
}

static void forward_done(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct forward *f = LIST_ENTRY(call, struct forward, call);
    struct parked *p = f->p;
    struct forward_pin *fp = f->fp;

    f->st = st;
    f->reply = reply;
    f->sent = sent;
    if (f->since_us != 0) {
        stats_add(f->w->stats, STAT_upstream_calls_waiting, (uint64_t)-1);
        if (st != ST_UNAVAILABLE && st != ST_CANCELLED)
            stats_time(f->w->stats, HIST_upstream_calls, clock_mono_us() - f->since_us);
    }
    if (!p) {
        forward_finish(f);
        return;
    }
    if (st == ST_UNAVAILABLE && !fp && near_retry(p, f->cmd)) {
        f->p = NULL;
        forward_finish(f);
        return;
    }
    bool fence = st == ST_OK && f->fence && !slice_eq(reply, SLICE_LIT("+QUEUED\r\n"));
    if (f->blocking)
        set_blocked(p->s, false);
    if (f->writes && (st == ST_OK || sent)) /* else the copies are as good as before */
        forget_keys(f->w, f->cmd, f->db, p->argc, p->argv);
    if (f->cmd && st == ST_OK && !is_error && !f->in_transaction)
        local_answered(p->s, f->cmd, f->db, p->argc, p->argv);
    if (fp) {
        fp->outstanding--;
        if (f->cmd && f->cmd->id == CMDID_exec)
            forget_transaction(fp);
        if (pin_answered(fp, f, reply, is_error) && p->s->pin == fp) {
            keep_reply(f); /* before the connection, and what it holds, goes */
            pin_close(p->s);
        }
    }
    if (!fence) {
        forward_finish(f);
        return;
    }
    if (f->copy.len == 0)
        keep_reply(f);
    tier_fence(f->w, fence_passed, f);
}

/* ---- pins ---- */

static void pin_push(void *arg, struct slice reply)
{
    struct forward_pin *fp = arg;
    struct session *s = fp->s;
    struct reply r = {&s->out, s->proto};

    reply_raw(&r, reply);
    s->ops->wake(s);
}

static void pin_lost(void *arg)
{
    struct forward_pin *fp = arg;

    fp->lost = true;
    /* Subscriptions are gone, and with them messages: the client must know, and reconnects. */
    if (fp->mode == PIN_PUBSUB) {
        fp->s->close_asap = true;
        fp->s->ops->wake(fp->s);
    }
}

static enum pin_mode pin_mode_of(const struct command *cmd)
{
    if (cmd && (cmd->id == CMDID_multi || cmd->id == CMDID_watch))
        return PIN_MULTI;
    return is_pubsub(cmd) ? PIN_PUBSUB : PIN_BLOCKING;
}

static struct forward_pin *pin_of(struct call *c, enum pin_mode mode)
{
    struct session *s = c->s;
    struct forward_pin *fp = s->pin;

    if (fp && fp->lost) { /* WATCH or MULTI state went with it */
        pin_close(s);
        return NULL;
    }
    if (fp)
        return fp;
    fp = mem_calloc(MEM_CLIENT, sizeof(*fp));
    fp->s = s;
    fp->mode = mode;
    fp->db = s->db;
    buf_init(&fp->names, MEM_CLIENT);
    struct upstream_pin_events ev = {fp, pin_push, pin_lost};
    fp->pin = upstream_pin_create(tier_upstream(c->w), fp->mode == PIN_PUBSUB ? UPSTREAM_PIN_PUBSUB : UPSTREAM_PIN_WORK,
                                  s->proto, s->db, &ev, NULL);
    if (!fp->pin) {
        mem_free(MEM_CLIENT, fp);
        return NULL;
    }
    s->pin = fp;
    return fp;
}

/* The keys of a queued write are dropped again when EXEC answers. */
static void remember_key(void *arg, unsigned db, struct slice name)
{
    struct forward_pin *fp = arg;
    uint32_t head[2] = {db, (uint32_t)name.len};

    if (fp->names.len + sizeof(head) + name.len > NAMES_MAX) {
        fp->forget_all = true;
        return;
    }
    buf_append(&fp->names, head, sizeof(head));
    buf_slice_append(&fp->names, name);
}

static void remember_keys(struct forward_pin *fp, const struct command *cmd, int argc, const struct slice *argv)
{
    if (changes_all(cmd))
        fp->forget_all = true;
    else
        each_written(fp->s->w, cmd, fp->db, argc, argv, remember_key, fp);
}

/* ---- CLIENT UNBLOCK ----
 * It is the upstream that unblocks, so that no element is on its way to a client that is told otherwise. */

static void unblock_done(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    (void)st; /* its client gets its own answer */
    (void)reply;
    (void)is_error;
    (void)sent;
    mem_free(MEM_CLIENT, call);
}

static void send_unblock(struct forward_pin *fp, bool error)
{
    char id[24];
    int len = snprintf(id, sizeof(id), "%lld", (long long)fp->id);
    struct slice argv[] = {SLICE_LIT("CLIENT"), SLICE_LIT("UNBLOCK"), SLICE(id, (size_t)len),
                           error ? SLICE_LIT("ERROR") : SLICE_LIT("TIMEOUT")};
    struct upstream_call *call = mem_calloc(MEM_CLIENT, sizeof(*call));

    call->done = unblock_done;
    upstream_call(tier_upstream(fp->s->w), call, UPSTREAM_RESP2, fp->s->db, 4, argv);
}

static void id_known(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct forward_pin *fp = LIST_ENTRY(call, struct forward_pin, ask_id);
    (void)sent;

    if (st == ST_OK && !is_error && reply.len > 3 && reply.ptr[0] == ':')
        (void)num_parse_i64(SLICE(reply.ptr + 1, reply.len - 3), &fp->id);
    if (st == ST_OK && fp->outstanding > 0) /* what came with the question has been executed there, and waits */
        set_blocked(fp->s, true);
    if (fp->unblock != UNBLOCK_NONE && fp->id != 0)
        send_unblock(fp, fp->unblock == UNBLOCK_ERROR);
    fp->unblock = UNBLOCK_NONE;
}

/* In front of what blocks. */
static void ask_id(struct forward_pin *fp)
{
    static const struct slice argv[] = {{"CLIENT", 6}, {"ID", 2}};

    fp->ask_id.done = id_known;
    upstream_pin_call(fp->pin, &fp->ask_id, 0, 2, argv);
}

bool forward_unblock(struct session *s, bool error)
{
    struct forward_pin *fp = s->pin;

    if (!fp || fp->mode != PIN_BLOCKING || fp->outstanding == 0)
        return false;
    if (fp->id != 0)
        send_unblock(fp, error);
    else
        fp->unblock = error ? UNBLOCK_ERROR : UNBLOCK_TIMEOUT; /* its id is on its way */
    return true;
}

/* ---- transactions that must not be run any more ---- */

void forward_abort(struct session *s)
{
    if (UNLIKELY(s->pin != NULL) && s->pin->mode == PIN_MULTI && s->pin->multi)
        s->pin->aborted = true;
}

static void transaction_begins(struct forward_pin *fp)
{
    fp->multi = true;
    acl_user_unref(fp->user);
    fp->user = acl_user_ref(fp->s->user);
}

/* Why EXEC is not sent; NULL: it is. Its commands were looked at when they came, by the rights of then. */
static const char *why_aborted(const struct forward_pin *fp)
{
    const struct session *s = fp->s;

    if (!fp->multi)
        return NULL;
    if (fp->aborted)
        return "EXECABORT Transaction discarded because of previous errors.";
    if (fp->user != s->user && s->flags & SESSION_LIMITED)
        return "EXECABORT Transaction discarded because of: ACL rules changed between the moment the transaction was "
               "accumulated and the EXEC call";
    return NULL;
}

/* ---- a transaction that was opened here, before its first command said whose it is ---- */

struct opening {
    struct upstream_call call;
    struct parked *p; /* NULL: the client went */
    struct forward_pin *fp;
    enum status st;
    bool sent;
    struct buf error;
};

static void opening_free(struct opening *o)
{
    buf_deinit(&o->error);
    mem_free(MEM_CLIENT, o);
}

static void opening_cancel(void *arg)
{
    struct opening *o = arg;
    o->p = NULL;
}

static const struct suspend_ops opening_ops = {opening_cancel};

/* The client believes that it is in a transaction, and must not go on outside of one. */
static void opening_failed(struct call *c, void *arg)
{
    struct forward f = {.st = ((struct opening *)arg)->st,
                        .sent = ((struct opening *)arg)->sent,
                        .reply = buf_slice(&((struct opening *)arg)->error),
                        .in_transaction = true};

    forward_reply(c, &f);
    c->parked->last = true;
}

static void opening_done(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct opening *o = LIST_ENTRY(call, struct opening, call);
    struct parked *p = o->p;

    if (p && st == ST_OK && !is_error) {
        o->fp->outstanding--;
        o->fp->in_multi = true;
        p->state = PARKED_NEW;
        session_run(p->s);
    } else if (p) {
        o->st = st;
        o->sent = sent;
        buf_slice_append(&o->error, reply);
        pin_close(p->s);
        call_complete(p, opening_failed, o);
    }
    opening_free(o);
}

/* No upstream connection. */
static enum dispatch_rc no_pin(struct call *c, bool had_pin, enum pin_mode mode)
{
    call_error(c, had_pin ? "UPSTREAMDOWN the upstream connection of this transaction was lost"
                  : mode == PIN_PUBSUB
                      ? "UPSTREAMBUSY no upstream connection is free: upstream-subscriptions-max is reached"
                      : "UPSTREAMBUSY no upstream connection is free: upstream-pins-max is reached");
    c->s->close_after_reply |= had_pin || mode == PIN_MULTI; /* see forward_reply() */
    return DISPATCH_DONE;
}

enum dispatch_rc forward_multi(struct call *c)
{
    struct session *s = c->s;
    static const struct slice argv[] = {{"MULTI", 5}};
    bool aborted = s->flags & SESSION_DIRTY_EXEC;

    multi_discard(s);
    struct forward_pin *fp = pin_of(c, PIN_MULTI);
    if (!fp)
        return no_pin(c, false, PIN_MULTI);
    struct opening *o = mem_calloc(MEM_CLIENT, sizeof(*o));
    buf_init(&o->error, MEM_CLIENT);
    o->fp = fp;
    o->call.done = opening_done;
    o->p = call_suspend(c, &opening_ops, o);
    transaction_begins(fp);
    fp->aborted = aborted;
    fp->outstanding++;
    upstream_pin_call(fp->pin, &o->call, 0, 1, argv);
    return DISPATCH_LATER;
}

enum dispatch_rc forward_send(struct call *c, enum forward_route route)
{
    static const struct slice discard[] = {{"DISCARD", 7}};
    struct session *s = c->s;
    struct forward_pin *fp = NULL;
    bool had_pin = s->pin != NULL;

    if (UNLIKELY(s->flags & SESSION_TRACKING) && tracking_forward(c))
        return DISPATCH_LATER;
    if (c->cmd)
        monitor_note(c);

    if (route == ROUTE_PIN && !(fp = pin_of(c, pin_mode_of(c->cmd))))
        return no_pin(c, had_pin, pin_mode_of(c->cmd));
    if (fp && fp->mode == PIN_PUBSUB && !is_pubsub(c->cmd)) {
        call_error(c, "ERR a subscribed connection cannot block or open a transaction at the upstream");
        return DISPATCH_DONE;
    }
    struct forward *f = mem_calloc(MEM_CLIENT, sizeof(*f));
    f->w = c->w;
    f->cmd = c->cmd;
    f->fp = fp;
    f->in_transaction = fp && fp->mode == PIN_MULTI;
    f->db = fp ? fp->db : s->db;
    f->writes = writes(c->cmd);
    f->fence = writes_unknown_keys(c->cmd);
    f->call.done = forward_done;
    if (f->writes && upstream_state(tier_upstream(c->w)) == UPSTREAM_UP)
        forward_forget(c->w, c->cmd, f->db, c->argc, c->argv, true);
    f->p = call_suspend(c, &forward_ops, f);
    f->p->state = PARKED_SENT;
    f->p->asks_upstream = !blocks(c->cmd, c->argc, c->argv);
    stats_inc(c->w->stats, STAT_tier_upstream_requests);
    if (!fp) {
        f->since_us = clock_mono_us();
        stats_inc(c->w->stats, STAT_upstream_calls_waiting);
        upstream_call(tier_upstream(c->w), &f->call, s->proto == 3 ? UPSTREAM_RESP3 : UPSTREAM_RESP2, s->db, c->argc,
                      c->argv);
        return DISPATCH_LATER;
    }
    fp->outstanding++;
    f->blocking = fp->mode == PIN_BLOCKING || (!fp->multi && blocks(c->cmd, c->argc, c->argv));
    if (fp->mode == PIN_MULTI) {
        if (c->cmd && c->cmd->id == CMDID_multi && !fp->multi)
            transaction_begins(fp);
        if (c->cmd && c->cmd->id == CMDID_exec && (f->aborted = why_aborted(fp)))
            f->cmd = &command_table[CMDID_discard];
        else if (c->cmd && c->cmd->id == CMDID_exec)
            f->fence = fp->fence;
        else
            fp->fence |= f->fence;
        fp->ending |= c->cmd && (c->cmd->id == CMDID_exec || c->cmd->id == CMDID_discard);
        int db = c->cmd && c->cmd->id == CMDID_select ? selected_db(s, c->argc, c->argv) : -1;
        if (db >= 0)
            fp->db = db;
        else if (f->writes)
            remember_keys(fp, c->cmd, c->argc, c->argv);
    }
    if (fp->mode != PIN_MULTI || f->blocking)
        f->p->state = PARKED_LATER; /* those behind it wait for its answer */
    if (fp->mode == PIN_BLOCKING)
        ask_id(fp);
    else if (f->blocking)
        set_blocked(s, true);
    upstream_pin_call(fp->pin, &f->call, f->blocking ? wait_ms_of(c->argc, c->argv) : 0, f->aborted ? 1 : f->p->argc,
                      f->aborted ? discard : f->p->argv);
    return DISPATCH_LATER;
}

void forward_drop(struct session *s)
{
    if (s->pin)
        pin_close(s);
}

bool forward_writes(const struct command *cmd)
{
    return writes(cmd);
}

bool forward_blocks(const struct command *cmd, int argc, const struct slice *argv)
{
    return blocks(cmd, argc, argv);
}

int64_t forward_wait_ms(const struct command *cmd, int argc, const struct slice *argv)
{
    return blocks(cmd, argc, argv) ? wait_ms_of(argc, argv) : 0;
}

bool forward_changes_all(const struct command *cmd)
{
    return changes_all(cmd);
}

void forward_each_written(struct worker *w, const struct command *cmd, int db, int argc, const struct slice *argv,
                          void (*fn)(void *arg, unsigned db, struct slice name), void *arg)
{
    each_written(w, cmd, db, argc, argv, fn, arg);
}

void forward_forget(struct worker *w, const struct command *cmd, int db, int argc, const struct slice *argv,
                    bool before)
{
    tracking_quiet(w, before);
    forget_keys(w, cmd, db, argc, argv);
    tracking_quiet(w, false);
}

bool forward_in_multi(const struct session *s)
{
    return s->pin && s->pin->mode == PIN_MULTI && s->pin->multi;
}

bool forward_subscribed(const struct session *s)
{
    return s->pin && s->pin->mode == PIN_PUBSUB;
}

bool forward_allows(const struct session *s, const struct command *cmd)
{
    if (LIKELY(!forward_subscribed(s)) || s->proto == 3)
        return true;
    return is_pubsub(cmd) || (cmd && (cmd->id == CMDID_ping || cmd->id == CMDID_quit || cmd->id == CMDID_reset));
}

bool forward_pin_takes_more(const struct session *s)
{
    return s->pin && s->pin->mode == PIN_MULTI && !s->pin->ending && !s->pin->lost;
}
