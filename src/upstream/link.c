#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/socket.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/resp.h"
#include "upstream_priv.h"

#define READ_CHUNK (16 * 1024) /* room made for a read */
#define READ_MAX (256 * 1024)  /* per event: then other connections have their turn */
#define BUF_KEEP (64 * 1024)   /* a larger buffer is given back after use */
#define WHY_TEXT 200

static void link_pump(struct link *ln);
static void link_try_address(struct link *ln);
static void link_read(struct link *ln);

void link_init(struct link *ln, struct upstream *up, const struct link_ops *ops)
{
    memset(ln, 0, sizeof(*ln));
    ln->up = up;
    ln->ops = ops;
    ln->proto = 2;
    list_init(&ln->dirty);
    list_init(&ln->waiting);
    list_init(&ln->sent);
    list_init(&ln->due);
    list_init(&ln->doomed);
    buf_init(&ln->in, MEM_CLIENT);
    list_init(&ln->all);
    list_push_back(&up->links, &ln->all);
}

void link_deinit(struct link *ln)
{
    buf_deinit(&ln->in);
}

void link_enter(struct link *ln)
{
    ln->depth++;
}

void link_leave(struct link *ln)
{
    if (--ln->depth == 0 && ln->orphan)
        pin_free_orphan(ln);
}

bool link_full(const struct link *ln)
{
    return ln->queued >= ln->up->opt.queue_max;
}

/* ---- the end of a connection --------------------------------------------------------- */

static void link_shut(struct link *ln)
{
    ln->state = LINK_CLOSED;
    if (ln->poll) {
        attach_poll_close(ln->poll); /* before the descriptor is closed, as libuv demands */
        ln->poll = NULL;
    }
    if (ln->ctx) {
        redisFree(ln->ctx);
        ln->ctx = NULL;
    }
    list_remove(&ln->dirty);
    ln->selecting = false;
    ln->greetings = 0;
    ln->ping_ms = 0;
}

static void link_answer_all(struct link *ln, enum status st)
{
    list_splice(&ln->doomed, &ln->sent);
    list_splice(&ln->doomed, &ln->waiting);
    ln->queued = 0;
    struct list *l;
    while ((l = list_pop_front(&ln->doomed))) {
        struct slot *s = LIST_ENTRY(l, struct slot, queue);
        slot_fail(ln, s, st);
        slot_free(s);
    }
}

void link_fail(struct link *ln, const char *why)
{
    if (ln->down || ln->up->destroyed)
        return;
    char text[sizeof(ln->why)];
    snprintf(text, sizeof(text), "%s", why); /* `why` may lie in what is freed now */
    link_enter(ln);
    ln->down = true;
    link_shut(ln);
    if (ln->ops->down) {
        breaker_failed(ln->up);
        ln->ops->down(ln, text);
    }
    link_answer_all(ln, ST_UNAVAILABLE);
    ln->down = false;
    if (!ln->up->destroyed && !ln->orphan)
        ln->ops->lost(ln, text);
    link_leave(ln);
}

void link_cancel(struct link *ln)
{
    link_enter(ln);
    link_shut(ln);
    link_answer_all(ln, ST_CANCELLED);
    link_leave(ln);
}

/* For failures inside a call of the layer above: told from the timer. */
static void link_fail_later(struct link *ln, const char *why)
{
    link_shut(ln);
    snprintf(ln->why, sizeof(ln->why), "%s", why);
    ln->state = LINK_FAILED;
    upstream_wake(ln->up, 0);
}

/* ---- sending ------------------------------------------------------------------------- */

struct slice link_command(struct link *ln, int argc, const struct slice *argv)
{
    struct buf *b = &ln->up->scratch;
    if (b->cap > BUF_KEEP) {
        buf_deinit(b);
        buf_init(b, MEM_CLIENT);
    }
    b->len = 0;
    resp_write_command(b, argc, argv);
    return buf_slice(b);
}

static void link_append(struct link *ln, struct slice bytes)
{
    CHECK(redisAppendFormattedCommand(ln->ctx, bytes.ptr, bytes.len) == REDIS_OK);
    UP_COUNT(ln->up, bytes_out, bytes.len);
    if (list_empty(&ln->dirty))
        list_push_back(&ln->up->dirty, &ln->dirty);
}

static void link_append_select(struct link *ln, int db)
{
    char number[16], cmd[64];
    int n = snprintf(number, sizeof(number), "%d", db);
    int len = snprintf(cmd, sizeof(cmd), "*2\r\n$6\r\nSELECT\r\n$%d\r\n%s\r\n", n, number);
    link_append(ln, SLICE(cmd, (size_t)len));
}

static void link_expect(struct link *ln, struct slot *s)
{
    s->sent = true;
    if (list_empty(&ln->sent))
        ln->heard_ms = clock_mono_ms();
    list_push_back(&ln->sent, &s->queue);
}

static void link_arm(struct link *ln, struct slot *s)
{
    if (s->kind == SLOT_PING) {
        ln->ping_ms = clock_mono_ms();
        return;
    }
    if (s->wait_ms < 0)
        return;
    s->deadline_ms = clock_mono_ms() + ln->up->opt.timeout_ms;
    if (__builtin_add_overflow(s->deadline_ms, s->wait_ms, &s->deadline_ms))
        return;
    struct list *after = ln->due.prev; /* most have equal lengths and come in order */
    while (after != &ln->due && LIST_ENTRY(after, struct slot, due)->deadline_ms > s->deadline_ms)
        after = after->prev;
    list_push_front(after, &s->due);
    upstream_wake(ln->up, s->deadline_ms);
}

void link_know_db(struct link *ln, int db)
{
    ln->db = db;
    if (db < LINK_DBS_KNOWN)
        ln->db_known[db / 64] |= 1ULL << (db % 64);
}

/* A command behind a SELECT that fails would run in another database. So the first SELECT of
 * a database waits for its answer; later ones are pipelined. */
static bool link_must_ask_db(const struct link *ln, int db)
{
    if (db < 0 || db == ln->db)
        return false;
    return db >= LINK_DBS_KNOWN || !(ln->db_known[db / 64] >> (db % 64) & 1);
}

static void link_send(struct link *ln, struct slot *s, struct slice cmd)
{
    if (s->db >= 0 && s->db != ln->db) {
        link_append_select(ln, s->db);
        s->select_first = true;
        ln->db = s->db;
    }
    if (s->breaks_db)
        ln->db = -1;
    if (s->kind == SLOT_FETCH)
        s->u.fetch->sent_ms = clock_wall_ms();
    s->generation = ln->up->generation;
    link_append(ln, cmd);
    link_expect(ln, s);
}

void link_submit(struct link *ln, struct slot *s, struct slice cmd)
{
    ln->queued++;
    link_arm(ln, s);
    if (ln->state == LINK_READY && !ln->selecting && list_empty(&ln->waiting) && !link_must_ask_db(ln, s->db)) {
        link_send(ln, s, cmd);
        return;
    }
    buf_slice_append(&s->cmd, cmd);
    list_push_back(&ln->waiting, &s->queue);
    link_pump(ln);
}

static void link_pump(struct link *ln)
{
    while (ln->state == LINK_READY && !ln->selecting && !list_empty(&ln->waiting)) {
        struct slot *s = LIST_ENTRY(ln->waiting.next, struct slot, queue);
        if (link_must_ask_db(ln, s->db)) {
            struct slot *ask = slot_new(SLOT_SELECT, s->db);
            ln->selecting = true;
            ln->queued++;
            link_append_select(ln, s->db);
            link_arm(ln, ask);
            link_expect(ln, ask);
            return;
        }
        list_remove(&s->queue);
        link_send(ln, s, buf_slice(&s->cmd));
        buf_deinit(&s->cmd);
        buf_init(&s->cmd, MEM_CLIENT);
    }
}

void link_greet(struct link *ln, enum greeting_step step, int argc, const struct slice *argv)
{
    struct slot *s = slot_new(SLOT_GREETING, -1);
    s->step = step;
    ln->queued++;
    ln->greetings++;
    link_append(ln, link_command(ln, argc, argv));
    link_arm(ln, s);
    link_expect(ln, s);
}

static void link_write(struct link *ln)
{
    int done = 1;
    if (redisBufferWrite(ln->ctx, &done) != REDIS_OK) {
        char why[128];
        snprintf(why, sizeof(why), "%s", ln->ctx->errstr);
        ln->ctx->err = 0;
        link_read(ln); /* its last words may say more, "max number of clients reached" */
        if (ln->ctx)
            link_fail(ln, why);
        return;
    }
    attach_poll_set(ln->poll, done ? ATTACH_READ : ATTACH_READ | ATTACH_WRITE);
}

void link_flush(struct link *ln)
{
    link_enter(ln);
    if (ln->state >= LINK_GREETING)
        link_write(ln);
    link_leave(ln);
}

/* ---- receiving ----------------------------------------------------------------------- */

void link_refuse(struct link *ln, int db, struct slice raw)
{
    for (struct list *l = ln->waiting.next, *next; l != &ln->waiting; l = next) {
        next = l->next;
        if (db >= 0 && LIST_ENTRY(l, struct slot, queue)->db != db)
            continue;
        list_remove(l);
        list_push_back(&ln->doomed, l);
        ln->queued--;
    }
    struct list *l;
    while ((l = list_pop_front(&ln->doomed))) {
        struct slot *refused = LIST_ENTRY(l, struct slot, queue);
        slot_refuse(ln, refused, raw);
        slot_free(refused);
    }
}

static void link_take_select(struct link *ln, struct slot *s, struct slice raw)
{
    ln->selecting = false;
    if (raw.ptr[0] != '-')
        link_know_db(ln, s->db);
    else
        link_refuse(ln, s->db, raw);
    link_pump(ln);
}

static void link_take_greeting(struct link *ln, enum greeting_step step, struct slice raw)
{
    redisReply map = {
        .type = REDIS_REPLY_NIL}; /* HELLO's, which old versions of hiredis cannot parse: it came, that is all */
    redisReply *r = step == GREET_HELLO && raw.ptr[0] == '%' ? &map : reply_parse(raw);
    ln->greetings--;
    if (!r)
        link_fail(ln, "a strange reply to the greeting");
    bool go_on = r && ln->ops->greeted(ln, step, r) && !ln->greetings && ln->state == LINK_GREETING;
    if (r && r != &map)
        freeReplyObject(r);
    if (!go_on)
        return;
    ln->state = LINK_READY;
    if (ln->ops->ready)
        ln->ops->ready(ln);
    link_pump(ln);
}

/* `what`, and an error reply's text. */
static void link_fail_reply(struct link *ln, const char *what, struct slice raw)
{
    char why[WHY_TEXT];
    if (raw.ptr[0] == '-')
        snprintf(why, sizeof(why), "%s%.*s", what, (int)(raw.len > 150 ? 150 : raw.len - 3), raw.ptr + 1);
    else
        snprintf(why, sizeof(why), "a reply that nobody asked for");
    link_fail(ln, why);
}

/* In broadcast mode messages leave at the end of the upstream's turn, behind the answer to a PING of that
 * turn: a second one, sent once the first is answered, comes after them. */
static void link_take_fence(struct link *ln, struct slot *s)
{
    struct slice argv[] = {SLICE_LIT("PING")};
    if (ln->up->mode != UPSTREAM_BROADCAST || s->again || s->answered) {
        slot_fail(ln, s, ST_OK);
        return;
    }
    struct slot *second = slot_new(SLOT_FENCE, -1);
    second->u.fence = s->u.fence;
    second->again = true;
    s->answered = true; /* the second one tells */
    link_submit(ln, second, link_command(ln, 1, argv));
}

static void link_take(struct link *ln, struct slice raw)
{
    if (ln->ops->push && ln->ops->push(ln, raw))
        return;
    if (list_empty(&ln->sent)) {
        link_fail_reply(ln, "", raw);
        return;
    }
    struct slot *s = LIST_ENTRY(ln->sent.next, struct slot, queue);
    if (s->select_first) {
        s->select_first = false;
        if (raw.ptr[0] == '-') /* it was accepted before: what follows runs elsewhere */
            link_fail_reply(ln, "SELECT: ", raw);
        return;
    }
    list_remove(&s->queue);
    list_remove(&s->due);
    ln->queued--;
    switch (s->kind) {
    case SLOT_GREETING: link_take_greeting(ln, s->step, raw); break;
    case SLOT_SELECT: link_take_select(ln, s, raw); break;
    case SLOT_PING: pair_ponged(ln); break;
    case SLOT_PROBE:
        if (!s->answered)
            breaker_probed(ln, true);
        break;
    case SLOT_FENCE: link_take_fence(ln, s); break;
    case SLOT_FETCH:
    case SLOT_CALL: slot_take(ln, s, raw); break;
    }
    slot_free(s);
}

/* GET and PTTL answer a fetch; they are handed over together. */
static int link_replies_next(const struct link *ln)
{
    if (list_empty(&ln->sent))
        return 1;
    const struct slot *s = LIST_ENTRY(ln->sent.next, struct slot, queue);
    return s->kind == SLOT_FETCH && !s->select_first ? 2 : 1;
}

/* link->in stays where it is while callbacks look into it, though they may end the link. */
static void link_take_all(struct link *ln)
{
    size_t used = 0, len;
    while (ln->ctx && used < ln->in.len) {
        struct slice rest = SLICE(ln->in.ptr + used, ln->in.len - used);
        enum status st = reply_scan(&ln->scan, rest, link_replies_next(ln), &len);
        if (st == ST_BAD)
            link_fail(ln, "protocol error: what came is no RESP");
        if (st != ST_OK)
            break;
        used += len;
        link_take(ln, SLICE(rest.ptr, len));
    }
    buf_consume(&ln->in, ln->ctx ? used : ln->in.len);
    if (!ln->in.len && ln->in.cap > BUF_KEEP) {
        buf_deinit(&ln->in);
        buf_init(&ln->in, MEM_CLIENT);
    }
}

/* Reads until the kernel has no more, or enough. false: the connection ended; *error is errno,
 * or 0 when the peer closed it. */
static bool link_receive(struct link *ln, size_t *got, int *error)
{
    while (*got < READ_MAX) {
        buf_reserve(&ln->in, READ_CHUNK);
        size_t room = ln->in.cap - ln->in.len;
        ssize_t n = recv(ln->ctx->fd, ln->in.ptr + ln->in.len, room < READ_MAX ? room : READ_MAX, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return true;
        if (n <= 0) {
            *error = n < 0 ? errno : 0;
            return false;
        }
        ln->in.len += (size_t)n;
        *got += (size_t)n;
        if ((size_t)n < room)
            return true;
    }
    return true;
}

static void link_read(struct link *ln)
{
    redisContext *ctx = ln->ctx;
    size_t got = 0;
    int error = 0;
    bool open = link_receive(ln, &got, &error);
    if (got) {
        UP_COUNT(ln->up, bytes_in, got);
        ln->heard_ms = clock_mono_ms();
        link_take_all(ln);
    }
    if (!open && ln->ctx == ctx)
        link_fail(ln, error ? strerror(error) : "closed by the upstream");
}

void link_catch_up(struct link *ln)
{
    link_enter(ln);
    if (ln->state >= LINK_GREETING)
        link_read(ln);
    link_leave(ln);
}

/* ---- opening --------------------------------------------------------------------------- */

static void link_connect_failed(struct link *ln, const char *why)
{
    char text[sizeof(ln->why)];
    snprintf(text, sizeof(text), "%s: %s", ln->up->addrs.text[ln->addr_at], why);
    link_shut(ln);
    ln->addr_tried++;
    if (ln->addr_tried < ln->up->addrs.n) {
        link_try_address(ln);
        return;
    }
    ln->up->addrs_ms = 0; /* ask the resolver again */
    link_fail(ln, text);
}

static void link_connected(struct link *ln)
{
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(ln->ctx->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
        error = errno;
    if (error) {
        link_connect_failed(ln, strerror(error));
        return;
    }
    ln->up->addr_good = ln->addr_at;
    ln->state = LINK_GREETING;
    ln->in.len = 0;
    ln->scan = (struct reply_scan){.resp3 = ln->proto == 3};
    ln->db = 0;
    memset(ln->db_known, 0, sizeof(ln->db_known));
    link_know_db(ln, 0);
    attach_poll_set(ln->poll, ATTACH_READ);
    ln->ops->greet(ln);
    link_flush(ln);
}

static void link_on_poll(void *arg, int events, bool failed)
{
    struct link *ln = arg;
    link_enter(ln);
    if (ln->state == LINK_CONNECTING) {
        link_connected(ln);
    } else {
        if (failed || (events & ATTACH_READ))
            link_read(ln);
        if (failed && ln->ctx)
            link_fail(ln, "the socket failed");
        if ((events & ATTACH_WRITE) && ln->ctx)
            link_flush(ln);
    }
    link_leave(ln);
}

/* Begins to connect to the current address; takes the next one where that fails at once. */
static void link_try_address(struct link *ln)
{
    struct upstream *up = ln->up;
    char why[160] = "no address";
    for (; ln->addr_tried < up->addrs.n; ln->addr_tried++) {
        ln->addr_at = (up->addr_good + ln->addr_tried) % up->addrs.n;
        redisContext *ctx = redisConnectNonBlock(up->addrs.text[ln->addr_at], up->opt.port);
        CHECK(ctx != NULL);
        if (!ctx->err) {
            ln->poll = attach_poll_open(up->loop, ctx->fd, link_on_poll, ln, upstream_handle_closed, up);
            if (ln->poll) {
                up->handles++;
                ln->ctx = ctx;
                redisEnableKeepAlive(ctx);
                ctx->err = 0; /* keep-alive is a wish */
                ln->state = LINK_CONNECTING;
                ln->connect_due_ms = clock_mono_ms() + up->opt.timeout_ms;
                upstream_wake(up, ln->connect_due_ms);
                attach_poll_set(ln->poll, ATTACH_WRITE);
                return;
            }
        }
        snprintf(why, sizeof(why), "%s: %s", up->addrs.text[ln->addr_at], ctx->err ? ctx->errstr : "cannot be polled");
        redisFree(ctx);
    }
    up->addrs_ms = 0;
    link_fail_later(ln, why);
}

void link_open(struct link *ln)
{
    CHECK(ln->state == LINK_CLOSED);
    ln->addr_tried = 0;
    ln->state = LINK_RESOLVING;
    ln->connect_due_ms = clock_mono_ms() + ln->up->opt.timeout_ms;
    upstream_wake(ln->up, ln->connect_due_ms);
    upstream_resolve(ln->up, ln);
}

void link_addresses_here(struct link *ln, const char *error)
{
    if (error)
        link_fail_later(ln, error);
    else
        link_try_address(ln);
}

/* ---- time -------------------------------------------------------------------------------- */

static bool link_owes(const struct link *ln)
{
    return !list_empty(&ln->sent) && LIST_ENTRY(ln->sent.next, struct slot, queue)->wait_ms == 0;
}

int64_t link_next_due(const struct link *ln)
{
    int64_t next = DUE_NEVER;
    if (ln->state == LINK_FAILED)
        return 0;
    if (ln->state == LINK_RESOLVING || ln->state == LINK_CONNECTING)
        next = ln->connect_due_ms;
    if (!list_empty(&ln->due)) {
        int64_t at = LIST_ENTRY(ln->due.next, struct slot, due)->deadline_ms;
        next = at < next ? at : next;
    }
    if (link_owes(ln)) {
        int64_t at = ln->heard_ms + 2 * ln->up->opt.timeout_ms;
        next = at < next ? at : next;
    }
    return next;
}

static void link_slot_overdue(struct link *ln, struct slot *s)
{
    static const char *const silent[] = {
        [SLOT_GREETING] = "no answer to the greeting in time",
        [SLOT_SELECT] = "no answer to SELECT in time",
        [SLOT_FENCE] = "no answer to a fence in time", /* who waits for it must not go on with this generation */
    };
    if (s->kind <= SLOT_SELECT || s->kind == SLOT_FENCE) {
        link_fail(ln, silent[s->kind]);
        return;
    }
    if (s->sent) { /* stays in its place, to swallow the late answer */
        slot_fail(ln, s, ST_TIMEOUT);
        return;
    }
    list_remove(&s->queue);
    ln->queued--;
    slot_fail(ln, s, ST_TIMEOUT);
    slot_free(s);
}

static bool link_overdue(const struct link *ln, int64_t now_ms)
{
    return !list_empty(&ln->due) && LIST_ENTRY(ln->due.next, struct slot, due)->deadline_ms <= now_ms;
}

void link_tick(struct link *ln, int64_t now_ms)
{
    link_enter(ln);
    if (ln->state == LINK_FAILED) {
        link_fail(ln, ln->why);
    } else if (ln->state == LINK_RESOLVING && ln->connect_due_ms <= now_ms) {
        link_fail(ln, "the host's address did not come in time");
    } else if (ln->state == LINK_CONNECTING && ln->connect_due_ms <= now_ms) {
        link_connect_failed(ln, "no connection in time");
    }
    bool stalled = link_owes(ln) && ln->heard_ms + 2 * ln->up->opt.timeout_ms <= now_ms;
    if (ln->state >= LINK_GREETING && (stalled || link_overdue(ln, now_ms))) {
        /* If this thread was late, the answers may be in the socket already. */
        link_read(ln);
        stalled = ln->ctx && link_owes(ln) && ln->heard_ms + 2 * ln->up->opt.timeout_ms <= now_ms;
    }
    while (link_overdue(ln, now_ms))
        link_slot_overdue(ln, LIST_ENTRY(ln->due.next, struct slot, due));
    if (stalled && ln->ctx)
        link_fail(ln, "silent for twice the timeout");
    link_leave(ln);
}
