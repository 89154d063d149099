/* Sessions: requests in order, those that must wait in a queue, fetches ahead of their turn. */
#include "tiercel/acl.h"
#include "tiercel/clock.h"
#include "tiercel/inbox.h"
#include "tiercel/pubsub.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"

#include "cmd/cmd_priv.h"

#define REFAULT_MAX 64             /* times a request may lose its keys again before it is refused */
#define QUEUE_BYTES_MAX (64 << 20) /* of one client's waiting requests */

struct session *session_create(struct worker *w, const struct session_ops *ops, void *conn)
{
    struct session *s = mem_calloc(MEM_CLIENT, sizeof(*s));

    s->w = w;
    s->ops = ops;
    s->conn = conn;
    s->id = atomic_fetch_add(&w->cmd->next_client_id, 1) + 1;
    s->proto = 2;
    s->fd = -1;
    s->created_ms = s->last_ms = w->now_ms;
    acl_session_start(s);
    chain_init(&s->out);
    s->out.pool = &s->w->cmd_worker->replies;
    buf_init(&s->name, MEM_CLIENT);
    list_init(&s->queue);
    list_push_back(&w->cmd_worker->sessions, &s->link);
    tracking_session_created(s);
    auth_upstream_start(s);
    return s;
}

/* ---- parked requests ---- */

static void parked_free(struct parked *p)
{
    chain_deinit(&p->reply);
    rerun_forget(p);
    mem_free(MEM_CLIENT, p->waits);
    mem_free(MEM_CLIENT, p);
}

static void request_ready(struct tier_request *treq);

struct parked *session_park(struct session *s, int argc, const struct slice *argv)
{
    size_t bytes = 0;

    for (int i = 0; i < argc; i++)
        bytes += argv[i].len;
    struct parked *p = mem_calloc(MEM_CLIENT, sizeof(*p) + (size_t)argc * sizeof(*p->argv) + bytes);
    p->s = s;
    p->argc = argc;
    p->argv = (struct slice *)(p + 1);
    p->bytes = bytes;
    p->treq.ready = request_ready;
    list_init(&p->treq.admission);
    chain_init(&p->reply);
    char *to = (char *)(p->argv + argc);
    for (int i = 0; i < argc; i++) {
        if (argv[i].len)
            memcpy(to, argv[i].ptr, argv[i].len);
        p->argv[i] = SLICE(to, argv[i].len);
        to += argv[i].len;
    }
    p->barrier = !dispatch_prefetchable(s, argc, p->argv);
    list_push_back(&s->queue, &p->link);
    s->queued++;
    s->barriers += p->barrier;
    s->queued_bytes += bytes + sizeof(*p);
    return p;
}

static void parked_remove(struct parked *p)
{
    struct session *s = p->s;

    list_remove(&p->link);
    s->queued--;
    s->barriers -= p->barrier;
    s->queued_bytes -= p->bytes + sizeof(*p);
}

/* Brings the keys in; PARKED_READY when they are there already. */
static void parked_fault(struct parked *p, bool urgent)
{
    /* Once more: the keys anew, for a flush or a swap changes what a name stands for. */
    mem_free(MEM_CLIENT, p->waits);
    dispatch_prepare(p);
    p->since_us = clock_mono_us();
    switch (tier_fault(p->s->w, &p->treq, urgent)) {
    case ST_OK: p->state = PARKED_READY; break;
    case ST_PENDING: p->state = PARKED_FAULTING; break;
    default: /* look-ahead has no room: its turn will come */ p->state = PARKED_NEW;
    }
}

static void request_ready(struct tier_request *treq)
{
    struct parked *p = LIST_ENTRY(treq, struct parked, treq);

    if (treq->cancelled) {
        parked_free(p);
        return;
    }
    p->state = PARKED_READY;
    slow_waited_keys(p);
    if (p->s->queue.next == &p->link)
        session_run(p->s);
}

/* The client is gone: whatever the request waits for is told, or frees it later. */
static void parked_abandon(struct parked *p)
{
    bool mine = true;

    switch (p->state) {
    case PARKED_FAULTING: mine = tier_cancel(p->s->w, &p->treq); break;
    case PARKED_READY: tier_release(p->s->w, &p->treq); break;
    case PARKED_LATER:
    case PARKED_SENT: p->ops->cancel(p->ops_arg); break;
    default: break;
    }
    if (UNLIKELY(p->block != NULL))
        block_end(p);
    parked_remove(p);
    if (mine)
        parked_free(p);
}

/* ---- the queue ---- */

static void parked_done(struct parked *p)
{
    if (UNLIKELY(p->block != NULL))
        block_end(p);
    parked_remove(p);
    parked_free(p);
}

/* true: the head is done and gone. */
static bool run_head(struct parked *p)
{
    struct session *s = p->s;

    if (p->state == PARKED_DONE) {
        chain_move(&s->out, &p->reply);
        s->close_after_reply |= p->last;
        parked_done(p);
        return true;
    }
    if (p->state != PARKED_NEW && p->state != PARKED_READY)
        return false;
    bool pinned = p->state == PARKED_READY;
    if (UNLIKELY(p->block != NULL) && block_is_over(p)) {
        if (pinned)
            tier_release(s->w, &p->treq);
        return true;
    }
    enum dispatch_rc rc = dispatch_run(s, p->argc, p->argv, p);
    if (pinned)
        tier_release(s->w, &p->treq);
    switch (rc) {
    case DISPATCH_DONE: parked_done(p); return true;
    case DISPATCH_FAULT:
        if (p->faults++ < REFAULT_MAX) {
            parked_fault(p, true);
        } else {
            struct reply r = {&p->reply, s->proto};
            if (dispatch_find(p->argc, p->argv)->id == CMDID_exec)
                multi_discard(s);
            reply_error(&r, "ERR the keys of this command could not be kept in memory together");
            p->state = PARKED_DONE;
        }
        return p->state == PARKED_READY || p->state == PARKED_DONE;
    case DISPATCH_LATER: break;
    }
    return p->state == PARKED_DONE || p->state == PARKED_NEW;
}

/* Requests behind forwarded ones may be sent too: their connection keeps the order. */
static void send_ahead(struct session *s)
{
    bool through = false; /* something that may write is on its way */

    for (struct list *l = s->queue.next; l != &s->queue; l = l->next) {
        struct parked *p = LIST_ENTRY(l, struct parked, link);
        if (p->state == PARKED_SENT || p->state == PARKED_DONE) {
            through |= p->state == PARKED_SENT && !dispatch_only_reads(p->argc, p->argv);
            continue;
        }
        if (p->state != PARKED_NEW || !dispatch_forwardable(s, p->argc, p->argv))
            return;
        p->through = through;
        if (dispatch_run(s, p->argc, p->argv, p) == DISPATCH_DONE)
            p->state = PARKED_DONE;                             /* refused at once: the answer waits for its turn */
        if (p->state != PARKED_SENT && p->state != PARKED_DONE) /* CLIENT PAUSE holds it back, and those behind it */
            return;
        through |= p->state == PARKED_SENT && !dispatch_only_reads(p->argc, p->argv);
    }
}

/* What is still queued behind a QUIT, say, does not run. */
static bool session_closing(const struct session *s)
{
    return s->close_asap || s->close_after_reply;
}

static void queue_run(struct session *s)
{
    if (s->running)
        return;
    s->running = true;
    while (!list_empty(&s->queue) && !session_closing(s) && s->out.bytes <= SESSION_OUT_MAX)
        if (!run_head(LIST_ENTRY(s->queue.next, struct parked, link)))
            break;
    if (!list_empty(&s->queue) && s->w->tier->has_upstream && !session_closing(s))
        send_ahead(s);
    s->running = false;
}

void session_resume(struct session *s)
{
    if (UNLIKELY(!list_empty(&s->queue)))
        queue_run(s);
}

void session_run(struct session *s)
{
    if (s->running)
        return;
    queue_run(s);
    s->ops->wake(s);
}

/* The first argument is taken for the key: mostly it is, and where not, nothing is lost. */
void session_note_keys(struct session *s, struct request *reqs, int n)
{
    const struct mem *m = s->w->tier->mem;

    for (int i = 0; i < n; i++) {
        struct key key;
        if (UNLIKELY(reqs[i].argc < 2))
            continue;
        unsigned db = tier_space(s->w, (unsigned)s->db, reqs[i].argv[1]);
        mem_key_init(m, db, reqs[i].argv[1], &key);
        mem_prefetch(m, key.hash);
        reqs[i].key_inc = atomic_load_explicit(&m->db[db].incarnation, memory_order_relaxed);
        reqs[i].key_hash = key.hash;
    }
}

/* Each step waits for nothing but what the one before has asked for. */
void session_prefetch(struct worker *w, const struct request *reqs, int n)
{
    const struct mem *m = w->tier->mem;

    for (int i = 0; i < n; i++)
        if (LIKELY(reqs[i].key_inc != 0))
            mem_prefetch_bucket(m, reqs[i].key_hash);
    for (int i = 0; i < n; i++)
        if (LIKELY(reqs[i].key_inc != 0))
            mem_prefetch_object(m, reqs[i].key_hash);
}

void session_feed(struct session *s, const struct request *req)
{
    s->last_ms = s->w->now_ms;
    if (session_closing(s))
        return;
    if (LIKELY(list_empty(&s->queue))) {
        s->running = true;
        s->w->cmd_worker->ahead = req;
        enum dispatch_rc rc = dispatch_run(s, req->argc, req->argv, NULL);
        s->w->cmd_worker->ahead = NULL;
        s->running = false;
        if (LIKELY(rc == DISPATCH_DONE))
            return;
        if (rc == DISPATCH_FAULT) {
            struct parked *p = session_park(s, req->argc, req->argv);
            parked_fault(p, true);
        }
        queue_run(s); /* it may have completed at once */
        return;
    }
    bool clear = s->barriers == 0;
    struct parked *p = session_park(s, req->argc, req->argv);
    if (clear && !p->barrier)
        parked_fault(p, false);
    else if (s->w->tier->has_upstream && !s->running)
        queue_run(s);
}

/* ---- replies that wait for the disk ---- */

static void sync_done(struct tier_sync_wait *sw, bool ok)
{
    struct session *s = LIST_ENTRY(sw, struct session, sync);

    s->holding = false;
    if (!ok) /* what was done may be lost: better no answer than a wrong one */
        s->close_asap = true;
    s->ops->wake(s);
}

bool session_hold(struct session *s)
{
    if (s->holding || !s->unsynced)
        return s->holding;
    s->unsynced = false;
    if (!tier_sync_needed(s->w, &s->sync))
        return false;
    s->sync.done = sync_done;
    s->holding = true;
    tier_wait_sync(s->w, &s->sync);
    return true;
}

bool session_full(const struct session *s)
{
    return s->holding || s->queued >= (unsigned)s->w->conf->pipeline_lookahead || s->queued_bytes >= QUEUE_BYTES_MAX ||
           (UNLIKELY(s->queued > 0) && session_clients_tight(s->w));
}

size_t session_bytes(const struct session *s)
{
    return sizeof(*s) + s->query_bytes + s->query_free + s->queued_bytes + s->out.bytes + s->name.cap + multi_bytes(s) +
           pubsub_session_bytes(s);
}

bool session_subscribed(const struct session *s)
{
    return pubsub_active(s) || forward_subscribed(s) || auth_upstream_subscribed(s);
}

int session_obuf_class(const struct session *s)
{
    return session_subscribed(s) ? OBUF_PUBSUB : OBUF_NORMAL;
}

void session_destroy(struct session *s)
{
    s->running = true; /* nothing runs any more */
    s->close_asap = true;
    while (!list_empty(&s->queue))
        parked_abandon(LIST_ENTRY(s->queue.next, struct parked, link));
    if (s->holding)
        tier_cancel_sync(s->w, &s->sync);
    multi_destroy(s);
    monitor_leave(s);
    pubsub_session_gone(s);
    tracking_session_gone(s);
    inbox_session_gone(s);
    forward_drop(s);
    auth_upstream_end(s);
    acl_session_end(s);
    list_remove(&s->link);
    chain_deinit(&s->out);
    buf_deinit(&s->name);
    mem_free(MEM_CLIENT, s);
}

/* ---- suspended calls ---- */

struct parked *call_suspend(struct call *c, const struct suspend_ops *ops, void *arg)
{
    struct parked *p = c->parked;

    CHECK(!c->in_exec);
    if (!p)
        p = c->parked = session_park(c->s, c->argc, c->argv);
    p->state = PARKED_LATER;
    p->since_us = clock_mono_us();
    p->asks_upstream = false;
    p->ops = ops;
    p->ops_arg = arg;
    c->suspended = true;
    return p;
}

void call_complete(struct parked *p, void (*finish)(struct call *c, void *arg), void *arg)
{
    struct session *s = p->s;
    struct call c = {.w = s->w, .s = s, .argc = p->argc, .argv = p->argv, .parked = p};

    CHECK(p->state == PARKED_LATER || p->state == PARKED_SENT);
    c.cmd = dispatch_find(p->argc, p->argv);
    c.r = (struct reply){&p->reply, s->proto};
    c.now_ms = s->w->now_ms;
    bool closing = s->close_after_reply;
    if (p->asks_upstream)
        slow_waited_upstream(p);
    finish(&c, arg);
    dispatch_completed(&c);
    tracking_answered(s, c.cmd);
    if (s->close_after_reply && !closing) { /* after this reply, which has to get its turn first */
        s->close_after_reply = false;
        p->last = true;
    }
    if (s->flags & (SESSION_REPLY_OFF | SESSION_REPLY_SKIP)) {
        chain_deinit(&p->reply);
        chain_init(&p->reply);
        s->flags &= ~(uint32_t)SESSION_REPLY_SKIP;
    }
    p->state = PARKED_DONE;
    session_run(s);
}

/* ---- all loops ---- */

struct broadcast {
    struct mbox_msg msg;
    struct cmd *cmd;
    struct worker *home;
    struct parked *p; /* NULL: the client went */
    int next;
    void (*each)(struct worker *w, void *arg);
    void (*finish)(struct call *c, void *arg);
    void *arg;
};

static void broadcast_cancel(void *arg)
{
    struct broadcast *b = arg;
    b->p = NULL;
}

static const struct suspend_ops broadcast_ops = {broadcast_cancel};

static void broadcast_home(struct mbox_msg *msg, void *owner)
{
    struct broadcast *b = LIST_ENTRY(msg, struct broadcast, msg);
    (void)owner;

    if (b->p)
        call_complete(b->p, b->finish, b->arg);
    mem_free(MEM_OTHER, b->arg);
    mem_free(MEM_OTHER, b);
}

static void broadcast_visit(struct mbox_msg *msg, void *owner)
{
    struct broadcast *b = LIST_ENTRY(msg, struct broadcast, msg);

    b->each(owner, b->arg);
    if (++b->next < b->cmd->nworkers) {
        mbox_post(b->cmd->workers[b->next]->mbox, &b->msg);
        return;
    }
    b->msg.run = broadcast_home;
    mbox_post(b->home->mbox, &b->msg);
}

void call_broadcast(struct call *c, void (*each)(struct worker *w, void *arg),
                    void (*finish)(struct call *c, void *arg), void *arg)
{
    struct broadcast *b = mem_calloc(MEM_OTHER, sizeof(*b));

    *b = (struct broadcast){.cmd = c->w->cmd, .home = c->w, .each = each, .finish = finish, .arg = arg};
    b->p = call_suspend(c, &broadcast_ops, b);
    b->msg.run = broadcast_visit;
    mbox_post(b->cmd->workers[0]->mbox, &b->msg);
}

struct list *worker_sessions(struct worker *w)
{
    return &w->cmd_worker->sessions;
}
