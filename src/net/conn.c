/* A connection: bytes are read and parsed where they are, requests go to the session one by
 * one, and what it answered is written once per batch, together with the replies of a few other
 * connections that were readable at the same time: their client, often one and the same, is woken
 * once for all of them.
 *
 * Input is read into the worker's buffer, which all its connections share; only half a
 * request is copied aside. A large argument gets a buffer of its own, into which the socket is
 * read directly. So an idle connection holds no buffer, and no byte is moved twice. */
#include "net_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <unistd.h>

#include "tiercel/acl.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/cmd.h"
#include "tiercel/codec.h"
#include "tiercel/log.h"

/* An own buffer grows to what the request announced, but not beyond this multiple of what
 * really came (or INPUT_STEP): announcing 512 MB costs nobody 512 MB. */
#define INPUT_GROWTH 4
#define INPUT_STEP ((size_t)1 << 20)
#define INPUT_KEEP ((size_t)4 << 10) /* an empty buffer of at most this is kept until the next tick */
#define INLINE_MAX ((int64_t)64 << 10)

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* SIGPIPE is ignored */
#endif

static void settle(struct conn *c);
static void on_poll(uv_poll_t *poll, int status, int events);

/* ---- open ----------------------------------------------------------------------------------- */

static void address_format(char out[64], const struct sockaddr_storage *sa)
{
    char ip[INET6_ADDRSTRLEN];
    if (sa->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
        inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof(ip));
        snprintf(out, 64, "[%s]:%d", ip, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
        inet_ntop(AF_INET, &in->sin_addr, ip, sizeof(ip));
        snprintf(out, 64, "%s:%d", ip, ntohs(in->sin_port));
    }
}

static void session_set_addresses(struct session *s, const struct net *net, int fd, bool is_unix)
{
    struct sockaddr_storage sa = {0};
    socklen_t len = sizeof(sa);
    s->fd = fd;
    if (is_unix) {
        s->flags |= SESSION_UNIX;
        snprintf(s->addr, sizeof(s->addr), "%.60s:0", net->unix_path);
        memcpy(s->laddr, s->addr, sizeof(s->laddr));
        return;
    }
    if (getpeername(fd, (struct sockaddr *)&sa, &len) == 0)
        address_format(s->addr, &sa);
    len = sizeof(sa);
    if (getsockname(fd, (struct sockaddr *)&sa, &len) == 0)
        address_format(s->laddr, &sa);
}

/* Nothing of it is worth refusing a client for. */
static void socket_tune(int fd, int64_t keepalive_s)
{
    int one = 1, idle = (int)keepalive_s, interval = idle / 3 > 0 ? idle / 3 : 1, probes = 3;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (keepalive_s <= 0)
        return;
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

static void session_wake(struct session *s)
{
    conn_schedule(s->conn);
}

static const struct session_ops session_ops = {.wake = session_wake};

void conn_open(struct net_worker *nw, int fd, bool is_unix, bool tls)
{
    struct worker *w = nw->w;
    struct ssl_st *ssl = tls ? tls_open(nw->net, fd) : NULL;
    if (tls && !ssl) {
        atomic_fetch_sub_explicit(&nw->net->clients, 1, memory_order_relaxed);
        close(fd);
        return;
    }
    struct conn *c = mem_calloc(MEM_CLIENT, sizeof(*c));
    c->nw = nw;
    buf_init(&c->in, MEM_CLIENT);
    resp_parser_init(&c->parser);
    list_init(&c->ready);
    int rc = uv_poll_init(w->loop, &c->poll, fd);
    if (rc != 0) {
        log_warning("net", "a connection cannot be watched: %s", uv_strerror(rc));
        if (ssl)
            tls_close(ssl);
        close(fd);
        buf_deinit(&c->in);
        resp_parser_deinit(&c->parser);
        mem_free(MEM_CLIENT, c);
        return;
    }
    c->fd = fd;
    c->tls = ssl;
    c->poll.data = c;
    list_push_back(&nw->conns, &c->link);
    nw->nconns++;
    nw->handles++;
    stats_inc(w->stats, STAT_connected_clients);
    if (!is_unix)
        socket_tune(fd, w->conf->tcp_keepalive);
    w->now_ms = clock_wall_ms();
    c->s = session_create(w, &session_ops, c);
    session_set_addresses(c->s, nw->net, fd, is_unix);
    settle(c);
}

/* ---- close ----------------------------------------------------------------------------------- */

static void on_closed(uv_handle_t *handle)
{
    struct conn *c = handle->data;
    struct net_worker *nw = c->nw;
    mem_free(MEM_CLIENT, c);
    net_handle_closed(nw);
}

void conn_close(struct conn *c)
{
    if (!c->s)
        return;
    struct net_worker *nw = c->nw;
    struct session *s = c->s;
    list_remove(&c->link);
    c->s = NULL;
    uv_close((uv_handle_t *)&c->poll, on_closed); /* the loop lets go of the socket here */
    if (UNLIKELY(c->tls != NULL))
        tls_close(c->tls);
    close(c->fd);
    session_destroy(s);
    list_remove(&c->ready); /* the session may have asked for a turn while it went */
    buf_deinit(&c->in);
    resp_parser_deinit(&c->parser);
    mem_free(MEM_CLIENT, c->bad);
    c->bad = NULL;
    stats_add(nw->w->stats, STAT_connected_clients, (uint64_t)-1);
    net_conn_gone(nw);
}

/* ---- turns ----------------------------------------------------------------------------------- */

void conn_schedule(struct conn *c)
{
    if (c->s && list_empty(&c->ready)) {
        list_push_back(&c->nw->ready, &c->ready);
        c->nw->nready++;
    }
}

void conn_run_ready(struct net_worker *nw)
{
    struct list batch;
    if (list_empty(&nw->ready))
        return;
    list_init(&batch);
    list_splice(&batch, &nw->ready);
    nw->nready = 0;
    for (struct list *l; (l = list_pop_front(&batch)) != NULL;)
        conn_turn(LIST_ENTRY(l, struct conn, ready));
    if (list_empty(&nw->ready))
        uv_idle_stop(&nw->idle);
    else
        net_start_idle(nw);
}

bool conn_is_idle(const struct conn *c)
{
    const struct session *s = c->s;
    return s->queued == 0 && list_empty(&s->queue) && !(s->flags & SESSION_BLOCKED) && chain_empty(&s->out);
}

/* ---- own input buffer -------------------------------------------------------------------------- */

static void input_account(struct conn *c)
{
    c->s->query_bytes = conn_unparsed(c);
    c->s->query_free = c->in.cap - c->in.len;
}

static void input_resize(struct conn *c, size_t cap)
{
    c->in.ptr = mem_realloc(MEM_CLIENT, c->in.ptr, cap);
    c->in.cap = cap;
}

void conn_free_input(struct conn *c)
{
    if (conn_unparsed(c) != 0)
        return;
    buf_deinit(&c->in);
    c->in_pos = 0;
    input_account(c);
}

static void input_compact(struct conn *c)
{
    buf_consume(&c->in, c->in_pos);
    c->in_pos = 0;
}

/* How much to read next: the rest of a large argument at once, as far as it is credible. */
static size_t input_wanted(const struct conn *c)
{
    size_t have = conn_unparsed(c), most = have * INPUT_GROWTH, want = NET_READ_LEAST;
    if (most < INPUT_STEP)
        most = INPUT_STEP;
    if (c->parser.need > have + want)
        want = c->parser.need - have;
    else if (c->more && have > want) /* a stalled pipeline: grow in proportion */
        want = have;
    return want < most ? want : most;
}

static void input_reserve(struct conn *c)
{
    size_t want = input_wanted(c);
    if (c->in.cap - c->in.len >= NET_READ_LEAST && c->in.cap - c->in.len >= want / 2)
        return;
    /* What is moved is not more than what was consumed since the last time. */
    if (c->in_pos >= conn_unparsed(c))
        input_compact(c);
    if (c->in.cap - c->in.len < want)
        input_resize(c, c->in.len + want);
}

/* After a turn: memory goes back when what is left does not need it. */
static void input_trim(struct conn *c)
{
    size_t left = conn_unparsed(c);
    if (left == 0) {
        c->in.len = c->in_pos = 0;
        if (c->in.cap > INPUT_KEEP)
            buf_deinit(&c->in);
    } else if (c->in.cap > 4 * NET_READ_HEAD && left < c->in.cap / 8 && c->parser.need < c->in.cap / 8) {
        input_compact(c);
        input_resize(c, left);
    }
}

/* ---- requests ------------------------------------------------------------------------------------ */

static void flush(struct conn *c);
static void flush_and_resume(struct conn *c);

static bool must_authenticate(const struct conn *c)
{
    return UNLIKELY(!(c->s->flags & SESSION_AUTHENTICATED)) && (c->s->auth || !acl_default_open(c->nw->w->cmd->acl));
}

static void limits_of(const struct conn *c, struct resp_limits *lim)
{
    bool unknown = must_authenticate(c);
    lim->max_bulk = unknown ? RESP_UNAUTH_BULK : c->nw->w->conf->proto_max_bulk_len;
    lim->max_multibulk = unknown ? RESP_UNAUTH_MULTIBULK : INT_MAX;
    lim->max_inline = INLINE_MAX;
}

/* May its next request run now? Tries to make room in the output first. */
static bool can_run(struct conn *c)
{
    const struct session *s = c->s;
    if (UNLIKELY(s->out.bytes > NET_OUTPUT_TIGHT) && limits_output_stops(c)) {
        flush(c);
        if (!c->s || limits_output_stops(c))
            return false;
    }
    return !session_full(s);
}

/* Requests that were parsed together. */
struct batch {
    struct request *reqs;
    int max, n;
    size_t end[NET_BATCH]; /* of each request in the input */
    enum resp_rc rc;       /* what the parser said behind the last one */
    char err[128];
};

static void parse_batch(struct conn *c, struct slice in, size_t pos, struct batch *b)
{
    struct resp_limits lim;
    /* One that may be AUTH changes the limits of those behind it. */
    int max = must_authenticate(c) ? 1 : b->max;
    size_t used, stop = pos + NET_TURN_BYTES;
    limits_of(c, &lim);
    b->n = 0;
    do {
        b->rc = resp_parse(&c->parser, SLICE(in.ptr + pos, in.len - pos), &lim, &used, &b->reqs[b->n], b->err);
        if (b->rc != RESP_OK)
            return;
        pos += used;
        b->end[b->n++] = pos;
    } while (b->n < max && pos < in.len && pos < stop);
}

enum feed_rc { FEED_OK, FEED_STALLED, FEED_ENDED };

/* Feeds the batch, whose first request may run, and moves *pos behind what was fed. */
static enum feed_rc feed_batch(struct conn *c, const struct batch *b, size_t *pos)
{
    struct session *s = c->s;
    enum feed_rc rc = FEED_OK;
    for (int i = 0; i < b->n; i++) {
        if (i > 0 && UNLIKELY(s->close_after_reply || s->close_asap)) {
            rc = FEED_ENDED;
            break;
        }
        if (i > 0 && UNLIKELY(!can_run(c))) {
            rc = FEED_STALLED;
            break;
        }
        if (LIKELY(b->reqs[i].argc > 0))
            session_feed(s, &b->reqs[i]);
        *pos = b->end[i];
    }
    return rc;
}

/* Feeds whole requests to the session. Returns how many bytes they had. Sets c->more when it
 * stopped before the input did. first: what it begins with was parsed already. */
static size_t run_requests(struct conn *c, struct slice in, const struct batch *first)
{
    struct session *s = c->s;
    struct worker *w = c->nw->w;
    struct batch own;
    const struct batch *b = first;
    size_t pos = 0;
    own.reqs = c->nw->batch;
    own.max = NET_BATCH;
    c->more = false;
    while (pos < in.len) {
        if (UNLIKELY(c->bad || s->close_after_reply || s->close_asap))
            return in.len; /* nobody will answer the rest */
        if (UNLIKELY(pos >= NET_TURN_BYTES) || UNLIKELY(!can_run(c))) {
            c->more = true;
            return pos;
        }
        if (b == NULL) {
            parse_batch(c, in, pos, &own);
            if (own.n > 1) {
                session_note_keys(s, own.reqs, own.n);
                session_prefetch(w, own.reqs, own.n);
            }
            w->mono_us = clock_mono_us();
            b = &own;
        }
        enum feed_rc rc = feed_batch(c, b, &pos);
        if (b == &own)
            w->mono_us = 0;
        switch (rc) {
        case FEED_ENDED: return in.len;
        case FEED_STALLED:
            resp_parser_deinit(&c->parser); /* what it knows is of a request behind those not fed */
            c->more = true;
            return pos;
        case FEED_OK: break;
        }
        if (b->rc == RESP_MORE)
            break;
        if (UNLIKELY(b->rc == RESP_BAD)) {
            log_verbose("net", "client %llu at %s: %s", (unsigned long long)s->id, s->addr, b->err);
            c->bad = mem_strdup(MEM_CLIENT, b->err);
            return in.len;
        }
        b = NULL;
    }
    return pos;
}

/* Requests in the connection's own buffer. */
static void run_own(struct conn *c)
{
    size_t left = conn_unparsed(c);
    if (left == 0) {
        c->more = false;
        return;
    }
    size_t used = run_requests(c, SLICE(c->in.ptr + c->in_pos, left), NULL);
    if (!c->s)
        return;
    c->in_pos += used;
    input_trim(c);
}

/* ---- reading --------------------------------------------------------------------------------------- */

/* Is the next read to go behind what the worker's buffer gets copied from `in`? */
static bool reads_shared(const struct conn *c)
{
    size_t have = conn_unparsed(c);
    return have <= NET_READ_HEAD && c->parser.need <= NET_READ_HEAD + NET_READ_BYTES / 2;
}

/* Where the next read goes, and how much. */
static char *read_room(struct conn *c, size_t *room)
{
    struct net_worker *nw = c->nw;
    if (LIKELY(reads_shared(c))) {
        size_t have = conn_unparsed(c);
        char *to = nw->read_buf + nw->small_bytes;
        if (have)
            memcpy(to, c->in.ptr + c->in_pos, have);
        *room = NET_READ_BYTES;
        return to + have;
    }
    input_reserve(c);
    input_account(c);
    *room = c->in.cap - c->in.len;
    return c->in.ptr + c->in.len;
}

/* The whole input, in the worker's buffer, first what was left in `in`. */
static void run_shared(struct conn *c, struct slice in, const struct batch *first)
{
    size_t used = run_requests(c, in, first);
    if (!c->s)
        return;
    c->in.len = c->in_pos = 0;
    if (UNLIKELY(used < in.len))
        buf_append(&c->in, in.ptr + used, in.len - used);
    else if (c->in.cap > INPUT_KEEP)
        buf_deinit(&c->in);
}

/* After its requests ran: when are the replies written? */
static void reply_later(struct conn *c)
{
    if (!c->s)
        return;
    if (LIKELY(c->s->out.bytes <= NET_REPLY_LATER)) {
        conn_schedule(c);
        return;
    }
    struct worker *w = c->nw->w;
    bool in_batch = w->mono_us != 0;
    w->mono_us = 0;
    flush_and_resume(c);
    settle(c);
    if (in_batch) /* the write is not the time of the command that follows */
        w->mono_us = clock_mono_us();
}

/* Is it one request, which can wait for those of other connections? Else it was parsed at least. */
static bool wait_for_company(struct conn *c, struct slice in, struct batch *first)
{
    struct net_worker *nw = c->nw;
    first->reqs = &nw->small_req[nw->nsmall];
    first->max = 1;
    parse_batch(c, in, 0, first);
    if (first->n == 0 || UNLIKELY(first->end[0] < in.len))
        return false;
    session_note_keys(c->s, first->reqs, 1);
    nw->small[nw->nsmall++] = (struct net_small){c, in};
    nw->small_bytes += in.len;
    return true;
}

void conn_run_small(struct net_worker *nw)
{
    struct worker *w = nw->w;
    struct batch one;
    if (nw->nsmall == 0)
        return;
    w->now_ms = clock_wall_ms();
    session_catch_up(w);
    session_prefetch(w, nw->small_req, nw->nsmall);
    w->mono_us = clock_mono_us();
    for (int i = 0; i < nw->nsmall; i++) {
        struct conn *c = nw->small[i].c;
        nw->small[i].c = NULL;
        if (!c || !c->s) /* closed by one before it, or answered while that ran */
            continue;
        one.reqs = &nw->small_req[i];
        one.n = 1;
        one.end[0] = nw->small[i].in.len;
        one.rc = RESP_OK;
        run_shared(c, nw->small[i].in, &one);
        reply_later(c);
        if (UNLIKELY(nw->nready >= NET_READY_MAX)) {
            w->mono_us = 0; /* writing is not the time of the command that follows */
            conn_run_ready(nw);
            w->mono_us = clock_mono_us();
        }
    }
    w->mono_us = 0;
    nw->nsmall = 0;
    nw->small_bytes = 0;
}

static void read_ended(struct conn *c, int err)
{
    if (err != 0) {
        log_debug("net", "client %llu at %s: read: %s", (unsigned long long)c->s->id, c->s->addr, strerror(err));
        conn_close(c);
        return;
    }
    c->eof = true;
    conn_turn(c);
}

/* One read a turn: the other connections come first. */
static void read_once(struct conn *c)
{
    struct net_worker *nw = c->nw;
    size_t room;
    char *to = read_room(c, &room);
    if (UNLIKELY(to == c->in.ptr + c->in.len)) {
        limits_grown(c);
        if (!c->s)
            return;
    }
    ssize_t got = LIKELY(!c->tls) ? recv(c->fd, to, room, MSG_DONTWAIT) : tls_read(c->tls, to, room);
    if (UNLIKELY(got <= 0)) {
        if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            read_ended(c, got == 0 ? 0 : errno);
        else if (c->tls) /* the handshake got on, or not: it may want to write, and then we may */
            conn_turn(c);
        return;
    }
    c->s->total_in += (size_t)got;
    stats_add(nw->w->stats, STAT_total_net_input_bytes, (uint64_t)got);
    stats_inc(nw->w->stats, STAT_total_reads_processed);

    struct batch first;
    if (UNLIKELY(to < nw->read_buf || to >= nw->read_buf + sizeof(nw->read_buf))) {
        c->s->last_ms = nw->w->now_ms = clock_wall_ms();
        session_catch_up(nw->w);
        c->in.len += (size_t)got;
        run_own(c);
    } else {
        size_t have = conn_unparsed(c);
        struct slice in = SLICE(to - have, have + (size_t)got);
        bool small = have == 0 && in.len <= NET_SMALL_READ;
        if (small && LIKELY(wait_for_company(c, in, &first))) {
            if (UNLIKELY(nw->nsmall == NET_BATCH))
                conn_run_small(nw);
            return;
        }
        c->s->last_ms = nw->w->now_ms = clock_wall_ms();
        session_catch_up(nw->w);
        run_shared(c, in, small ? &first : NULL);
    }
    reply_later(c);
    if (UNLIKELY(nw->nready >= NET_READY_MAX))
        conn_run_ready(nw);
}

/* ---- writing --------------------------------------------------------------------------------------- */

static struct rcbuf *inflate(void *arg, const struct rcbuf *packed)
{
    return codec_unpack(arg, rcbuf_slice(packed), packed->raw_len);
}

static void output_consumed(struct conn *c, size_t n)
{
    struct worker *w = c->nw->w;
    chain_consume(&c->s->out, n);
    c->s->total_out += n;
    c->s->last_ms = w->now_ms;
    stats_add(w->stats, STAT_total_net_output_bytes, n);
    stats_inc(w->stats, STAT_total_writes_processed);
}

/* What the socket takes of `out`; -1: errno says why not. */
static ssize_t write_some(const struct conn *c, size_t *offered)
{
    struct iovec iov[NET_IOVECS];
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)chain_iov(&c->s->out, iov, NET_IOVECS)};
    if (UNLIKELY(c->tls != NULL))
        return tls_write(c->tls, iov, (int)msg.msg_iovlen, offered);
    *offered = 0;
    for (size_t i = 0; i < msg.msg_iovlen; i++)
        *offered += iov[i].iov_len;
    return msg.msg_iovlen == 1 ? send(c->fd, iov[0].iov_base, iov[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
                               : sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Writes what the socket takes. May close the connection. */
static void flush(struct conn *c)
{
    struct chain *out = &c->s->out;
    if (chain_empty(out))
        return;
    if (UNLIKELY(limits_output_hard(c))) {
        conn_close(c);
        return;
    }
    if (UNLIKELY(c->tls && !tls_established(c->tls)))
        return;
    if (c->writing || UNLIKELY((c->s->unsynced || c->s->holding) && session_hold(c->s)))
        return;
    if (UNLIKELY(out->npacked) && !chain_unpack(out, inflate, c->nw->w->codec)) {
        log_warning("net", "client %llu at %s is closed: a compressed value is damaged", (unsigned long long)c->s->id,
                    c->s->addr);
        conn_close(c);
        return;
    }
    while (!chain_empty(out)) {
        size_t offered;
        ssize_t rc = write_some(c, &offered);
        if (UNLIKELY(rc < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR && errno != ENOBUFS)) {
            log_debug("net", "client %llu at %s: write: %s", (unsigned long long)c->s->id, c->s->addr, strerror(errno));
            conn_close(c);
            return;
        }
        if (rc > 0)
            output_consumed(c, (size_t)rc);
        if (UNLIKELY(rc < 0 || (size_t)rc < offered)) {
            c->writing = true;
            return;
        }
    }
}

/* Writes, and goes on with requests that waited for room in the output. */
static void flush_and_resume(struct conn *c)
{
    flush(c);
    while (UNLIKELY(c->s && c->s->queued && chain_empty(&c->s->out) && !c->writing)) {
        session_resume(c->s);
        if (chain_empty(&c->s->out))
            return; /* the head of the queue waits for something else */
        flush(c);
    }
}

/* ---- what comes next --------------------------------------------------------------------------------- */

static bool may_read(const struct conn *c)
{
    const struct session *s = c->s;
    if (c->eof || c->bad || s->close_after_reply || c->nw->stopping || session_full(s))
        return false;
    if (UNLIKELY(s->out.bytes > NET_OUTPUT_TIGHT) && limits_output_stops(c))
        return limits_input_while_stalled(c);
    return !c->more;
}

/* A protocol error is answered when everything before it is. */
static void answer_bad(struct conn *c)
{
    struct session *s = c->s;
    if (s->queued || !list_empty(&s->queue) || s->close_after_reply)
        return;
    struct reply r = {.out = &s->out, .proto = s->proto};
    reply_error(&r, c->bad);
    stats_inc(c->nw->w->stats, STAT_total_error_replies);
    s->close_after_reply = true;
    flush(c);
}

static bool is_done(const struct conn *c)
{
    const struct session *s = c->s;
    if (s->close_asap)
        return true;
    if ((c->eof || c->nw->stopping) && (s->flags & SESSION_BLOCKED))
        return true; /* nobody is there to take what it waits for */
    if (s->close_after_reply)
        return chain_empty(&s->out);
    return (c->eof || c->nw->stopping) && !c->more && conn_is_idle(c);
}

static void settle(struct conn *c)
{
    if (!c->s)
        return;
    if (UNLIKELY(c->bad)) {
        answer_bad(c);
        if (!c->s)
            return;
    }
    input_account(c);
    if (UNLIKELY(c->s->out.bytes > NET_OUTPUT_TIGHT)) {
        limits_grown(c);
        if (!c->s)
            return;
    }
    if (UNLIKELY(is_done(c)) || UNLIKELY(limits_output_soft(c)) || UNLIKELY(limits_input(c))) {
        conn_close(c);
        return;
    }
    bool writable = c->writing || UNLIKELY(c->tls && !tls_established(c->tls) && tls_wants_write(c->tls));
    int want = (may_read(c) ? UV_READABLE : 0) | (writable ? UV_WRITABLE : 0);
    if (UNLIKELY(want != c->watched)) {
        CHECK(uv_poll_start(&c->poll, want, on_poll) == 0);
        c->watched = want;
    }
    /* Leftovers that only waited for the other connections. */
    if (UNLIKELY(c->s && c->more) && !limits_output_stops(c) && !session_full(c->s))
        conn_schedule(c);
    if (UNLIKELY(c->tls && want & UV_READABLE && tls_has_input(c->tls)))
        conn_schedule(c);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct conn *c = poll->data;
    if (UNLIKELY(status < 0)) { /* libuv watches it no more; what there is to know a read or write tells */
        c->watched = 0;
        events = UV_READABLE | UV_WRITABLE;
    }
    if (UNLIKELY(events & UV_WRITABLE) && c->writing) {
        c->writing = false;
        conn_turn(c);
    } else if (UNLIKELY(events & UV_WRITABLE) && c->tls) {
        events |= UV_READABLE; /* its handshake goes on with a read */
    }
    /* That turn may have found that it must not read now. */
    if (LIKELY(events & UV_READABLE) && c->s && LIKELY(!c->eof && (status < 0 || c->watched & UV_READABLE)))
        read_once(c);
    if (UNLIKELY(status < 0))
        settle(c);
}

void conn_turn(struct conn *c)
{
    if (!c->s)
        return;
    if (UNLIKELY(c->tls && !c->eof && c->watched & UV_READABLE && tls_has_input(c->tls))) {
        if (c->nw->nsmall > 0) /* they run first: this may be called by one of them */
            conn_schedule(c);
        else
            read_once(c);
        if (!c->s)
            return;
    }
    if (c->more && !c->s->close_asap) {
        run_own(c);
        if (!c->s)
            return;
    }
    if (!c->s->close_asap)
        flush_and_resume(c);
    settle(c);
}
