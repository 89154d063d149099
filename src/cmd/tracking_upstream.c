/* Client tracking with an upstream: what was read here changes there.
 *
 * A client may only be told too often, never too seldom, so whatever it was given must be known to
 * the upstream's tracking of one of our `fetch` connections. A copy or a negative entry that is
 * current is; everything else that a client of ours reads
 *
 *   - is told again right behind its answer, when nothing vouches for it (tracking_read())
 *   - or, when the command is passed through, has its keys read on `fetch` first (EXISTS), for the
 *     upstream remembers who asks for a key. Then the command goes its way, and until it is
 *     answered the client has a `struct passing`: a message about one of its keys that comes meanwhile may come before
 *     the answer that it is about, and so is sent once more behind it.
 *
 * The reads of a transaction are done when EXEC is, so its keys are remembered, and registered before EXEC is sent. */
#include "cmd/cmd_priv.h"
#include "cmd/tracking_priv.h"
#include "tiercel/upstream.h"

#define PASSING_NAMES_MAX \
    (1 << 20) /* bytes of a request's or a transaction's keys; past it the client is told of all */

struct passing {
    struct upstream_call call;
    struct session *s;
    struct parked *p; /* NULL: the client went */
    struct buf names; /* length-prefixed */
    bool all;         /* there were too many */
    bool ready;       /* they are registered, or could not be */
    bool dirty;       /* something was told of them meanwhile; under the client's lock */
};

/* ---- names ---- */

static bool names_add(struct buf *b, struct slice name)
{
    uint32_t len = (uint32_t)name.len;

    if (b->len + sizeof(len) + name.len > PASSING_NAMES_MAX)
        return false;
    buf_append(b, &len, sizeof(len));
    buf_slice_append(b, name);
    return true;
}

/* false: there is none at *at. */
static bool names_next(const struct buf *b, size_t *at, struct slice *name)
{
    uint32_t len;

    if (*at >= b->len)
        return false;
    memcpy(&len, b->ptr + *at, sizeof(len));
    *name = SLICE(b->ptr + *at + sizeof(len), len);
    *at += sizeof(len) + len;
    return true;
}

/* false: not all of them. */
static bool names_of(struct call *c, struct buf *out)
{
    int max = dispatch_key_count(c->cmd, c->argc);
    struct call_key *keys = mem_alloc(MEM_CLIENT, (size_t)(max + 1) * sizeof(*keys));
    int n = dispatch_keys(c->w, c->cmd, c->argc, c->argv, c->s->db, keys, max);
    bool all = true;

    for (int i = 0; i < n && all; i++)
        all = names_add(out, key_slice(&keys[i].key));
    mem_free(MEM_CLIENT, keys);
    return all;
}

/* ---- a request under way, as other threads see it ---- */

static pthread_mutex_t *client_lock(const struct tracker *tr)
{
    return &tracking_shard_of(tracking_of(tr->w), tr->node.hash)->client_lock;
}

static void passing_set(struct tracker *tr, struct passing *ps)
{
    pthread_mutex_lock(client_lock(tr));
    tr->passing = ps;
    pthread_mutex_unlock(client_lock(tr));
}

static void passing_dirty(struct tracker *tr, struct passing *ps)
{
    pthread_mutex_lock(client_lock(tr));
    ps->dirty = true;
    pthread_mutex_unlock(client_lock(tr));
}

static void passing_free(struct passing *ps)
{
    buf_deinit(&ps->names);
    mem_free(MEM_CLIENT, ps);
}

void passing_told_locked(const struct tracker *tr, const struct slice *name)
{
    struct passing *ps = tr->passing;
    struct slice has;
    size_t at = 0;

    if (LIKELY(!ps) || ps->dirty)
        return;
    if (!name || ps->all)
        ps->dirty = true;
    while (!ps->dirty && names_next(&ps->names, &at, &has))
        ps->dirty = slice_eq(has, *name);
}

/* Through the inbox, even to itself: so it comes behind the answer that is being completed. */
static void passing_tell(const struct session *s, const struct passing *ps)
{
    struct tracking *t = tracking_of(s->w);
    struct buf value;
    struct slice name;
    struct target to;
    size_t at = 0;

    if (!tracking_route(t, s->id, &to))
        return;
    if (ps->all) {
        tracking_send(PUSH_FLUSHED, 0, &to, 1, SLICE_NONE);
        return;
    }
    buf_init(&value, MEM_OTHER);
    while (names_next(&ps->names, &at, &name)) {
        value.len = 0;
        tracking_encode(&value, name);
        tracking_send(PUSH_KEYS, 0, &to, 1, buf_slice(&value));
    }
    buf_deinit(&value);
}

void passing_answered(struct session *s)
{
    struct tracker *tr = s->tracker;
    struct passing *ps = tr->passing;

    if (!ps->ready)
        return;
    passing_set(tr, NULL);
    if (ps->dirty && s->flags & SESSION_TRACKING)
        passing_tell(s, ps);
    passing_free(ps);
}

void passing_session_gone(struct session *s)
{
    struct passing *ps = s->tracker->passing;

    buf_deinit(&s->tracker->queued);
    if (!ps)
        return;
    passing_set(s->tracker, NULL);
    passing_free(ps); /* while it is being registered it has left already: passing_cancel() */
}

/* ---- registering ---- */

static void passing_cancel(void *arg)
{
    struct passing *ps = arg;

    passing_set(ps->s->tracker, NULL);
    ps->p = NULL;
}

static const struct suspend_ops passing_ops = {passing_cancel};

/* In broadcast mode the upstream tells of some keys only. */
static bool covered(const struct passing *ps)
{
    struct slice name;
    size_t at = 0;

    while (names_next(&ps->names, &at, &name))
        if (!upstream_covers(tier_upstream(ps->s->w), name))
            return false;
    return true;
}

static void registered(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct passing *ps = LIST_ENTRY(call, struct passing, call);
    struct parked *p = ps->p;
    (void)reply;
    (void)sent;

    if (!p) {
        passing_free(ps);
        return;
    }
    if (st != ST_OK || is_error || !covered(ps)) /* nobody will tell us: so the client must not keep the answer */
        passing_dirty(ps->s->tracker, ps);
    ps->ready = true;
    p->state = PARKED_NEW;
    session_run(p->s);
}

static void ask(struct passing *ps, int db)
{
    struct slice name, *argv;
    size_t at = 0;
    int argc = 1;

    while (names_next(&ps->names, &at, &name))
        argc++;
    argv = mem_alloc(MEM_CLIENT, (size_t)argc * sizeof(*argv));
    argv[0] = SLICE_LIT("EXISTS");
    at = 0;
    for (int i = 1; i < argc; i++)
        names_next(&ps->names, &at, &argv[i]);
    upstream_call(tier_upstream(ps->s->w), &ps->call, UPSTREAM_TRACKED, db, argc, argv);
    mem_free(MEM_CLIENT, argv);
}

static void register_names(struct call *c, struct passing *ps)
{
    struct session *s = c->s;
    struct slice name;
    size_t at = 0;

    ps->s = s;
    ps->call.done = registered;
    passing_set(s->tracker, ps); /* before anything can be told of them */
    while (names_next(&ps->names, &at, &name))
        tracking_note(s->w, name, s->id);
    ps->p = call_suspend(c, &passing_ops, ps);
    ask(ps, s->db);
}

static bool reads_keys(const struct command *cmd)
{
    return cmd && cmd->flags & (CMD_READONLY | CMD_SCRIPT);
}

static bool is_exec(const struct command *cmd)
{
    return cmd && cmd->id == CMDID_exec;
}

bool tracking_holds(const struct session *s, const struct command *cmd)
{
    return s->tracker->passing || (forward_in_multi(s) ? is_exec(cmd) : reads_keys(cmd));
}

/* What a transaction reads, until EXEC. */
static void queue_names(struct call *c)
{
    struct tracker *tr = c->s->tracker;

    if (reads_keys(c->cmd) && tracking_wanted(c->s))
        tr->queued_all |= !names_of(c, &tr->queued);
}

static void queue_reset(struct tracker *tr)
{
    buf_deinit(&tr->queued);
    buf_init(&tr->queued, MEM_CLIENT);
    tr->queued_all = false;
}

bool tracking_forward(struct call *c)
{
    struct tracker *tr = c->s->tracker;
    bool in_multi = forward_in_multi(c->s);

    if (tr->passing) {
        if (tr->passing->ready && tr->passing->p == c->parked)
            return false;
        passing_answered(c->s);
    }
    if (in_multi && !is_exec(c->cmd)) {
        queue_names(c);
        return false;
    }
    struct passing *ps = mem_calloc(MEM_CLIENT, sizeof(*ps));
    buf_init(&ps->names, MEM_CLIENT);
    if (in_multi) {
        buf_slice_append(&ps->names, buf_slice(&tr->queued));
        ps->all = tr->queued_all;
    } else if (reads_keys(c->cmd) && tracking_wanted(c->s)) {
        ps->all = !names_of(c, &ps->names);
    }
    queue_reset(tr);
    if (ps->names.len == 0 && !ps->all) {
        passing_free(ps);
        return false;
    }
    ps->dirty = ps->all; /* not all are registered */
    register_names(c, ps);
    return true;
}

/* ---- on ---- */

bool tracking_upstream_allows(struct call *c, unsigned mode)
{
    char reason[240];
    enum upstream_mode how = upstream_get_coherence(tier_upstream(c->w), reason);

    if (mode & TRACKING_BCAST)
        call_error(c, "ERR CLIENT TRACKING BCAST is not available on a server with an upstream: the upstream tells it "
                      "only of keys that were read");
    else if (how == UPSTREAM_TTL)
        call_errorf(c, "ERR CLIENT TRACKING needs an upstream that tells of changes; coherence is now by ttl%s%s",
                    reason[0] ? ": " : "", reason);
    else
        return true;
    return false;
}
