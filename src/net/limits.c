/* Bounds on what clients hold, and the periodic work that enforces them. */
#include "net_priv.h"

#include <poll.h>

#include "tiercel/log.h"

/* A worker closes at most this many clients at once over maxmemory-clients, so that the others
 * can do their share; smaller ones than this are not worth closing. */
#define EVICT_AT_ONCE 16
#define EVICT_LEAST ((size_t)4 << 10)
/* A client that is to be closed once it has its replies gets this long to take some of them. */
#define LAST_REPLIES_MS 30000

static void client_log(const struct conn *c, const char *why)
{
    const struct session *s = c->s;
    log_warning("net", "client %llu at %s is closed: %s (input %zu, output %zu, all %zu bytes)",
                (unsigned long long)s->id, s->addr, why, s->query_bytes, s->out.bytes, session_bytes(s));
}

/* ---- output --------------------------------------------------------------------------------- */

static const struct conf_obuf_limit *output_limit(const struct conn *c)
{
    return &c->nw->w->conf->obuf[session_obuf_class(c->s)];
}

static bool output_over(struct conn *c, const char *why)
{
    client_log(c, why);
    stats_inc(c->nw->w->stats, STAT_client_output_buffer_limit_disconnections);
    return true;
}

bool limits_output_hard(struct conn *c)
{
    int64_t hard = output_limit(c)->hard;
    if (hard == 0 || c->s->out.bytes <= (uint64_t)hard)
        return false;
    return output_over(c, "over the hard client-output-buffer-limit");
}

bool limits_output_soft(struct conn *c)
{
    const struct conf_obuf_limit *lim = output_limit(c);
    if (lim->soft == 0 || c->s->out.bytes <= (uint64_t)lim->soft) {
        c->soft_since_ms = 0;
        return false;
    }
    int64_t now = (int64_t)uv_now(c->nw->w->loop) + 1; /* never 0 */
    if (c->soft_since_ms == 0)
        c->soft_since_ms = now;
    if (now - c->soft_since_ms <= lim->soft_s * 1000)
        return false;
    return output_over(c, "over the soft client-output-buffer-limit for too long");
}

bool limits_output_stops(const struct conn *c)
{
    size_t bytes = c->s->out.bytes;
    return bytes > NET_OUTPUT_TIGHT && (bytes > NET_OUTPUT_SOFT || session_clients_tight(c->nw->w));
}

/* ---- input ---------------------------------------------------------------------------------- */

bool limits_input(struct conn *c)
{
    size_t limit = (size_t)c->nw->w->conf->client_query_buffer_limit;
    /* What waits for the output to be taken is whole requests: there reading stops instead. */
    if (conn_unparsed(c) <= limit || c->more)
        return false;
    client_log(c, "over client-query-buffer-limit");
    stats_inc(c->nw->w->stats, STAT_client_query_buffer_limit_disconnections);
    return true;
}

bool limits_input_while_stalled(const struct conn *c)
{
    size_t held = conn_unparsed(c);
    if (held >= (size_t)c->nw->w->conf->client_query_buffer_limit)
        return false;
    int64_t all = conf_maxmemory_clients(c->nw->w->conf, c->nw->w->conf->maxmemory);
    if (all == 0 || all > NET_STALLED_INPUT_ALL)
        all = NET_STALLED_INPUT_ALL;
    return held < NET_STALLED_INPUT || mem_class_bytes(MEM_CLIENT) < all;
}

/* ---- maxmemory-clients ------------------------------------------------------------------------ */

static struct conn *largest_conn(struct net_worker *nw)
{
    struct conn *largest = NULL;
    size_t most = EVICT_LEAST;
    for (struct list *l = nw->conns.next; l != &nw->conns; l = l->next) {
        struct conn *c = LIST_ENTRY(l, struct conn, link);
        size_t bytes = session_bytes(c->s);
        if (bytes > most && !(c->s->flags & SESSION_NO_EVICT)) {
            most = bytes;
            largest = c;
        }
    }
    return largest;
}

void limits_memory(struct net_worker *nw)
{
    int64_t limit = conf_maxmemory_clients(nw->w->conf, nw->w->conf->maxmemory);
    if (limit == 0)
        return;
    for (int i = 0; i < EVICT_AT_ONCE && mem_class_bytes(MEM_CLIENT) > limit; i++) {
        struct conn *c = largest_conn(nw);
        if (!c)
            return;
        client_log(c, "the largest while clients are over maxmemory-clients");
        stats_inc(nw->w->stats, STAT_evicted_clients);
        conn_close(c);
    }
}

/* ---- periodic ------------------------------------------------------------------------------------ */

/* With reading stopped nobody would notice that the client of a blocked command hung up, and
 * what it waits for would go to it. */
static bool peer_is_gone(const struct conn *c)
{
    struct pollfd p = {.fd = c->s->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

static bool is_timed_out(const struct conn *c)
{
    const struct session *s = c->s;
    int64_t timeout_s = c->nw->w->conf->timeout, idle_ms = c->nw->w->now_ms - s->last_ms;
    if (c->tls && !tls_established(c->tls))
        return idle_ms > NET_HANDSHAKE_MS;
    if (c->writing && (c->eof || s->close_after_reply) && idle_ms > LAST_REPLIES_MS)
        return true;
    if (timeout_s == 0 || s->queued || (s->flags & SESSION_BLOCKED) || session_obuf_class(s) == OBUF_PUBSUB)
        return false;
    return idle_ms > timeout_s * 1000;
}

static void conn_check(struct conn *c)
{
    if (is_timed_out(c)) {
        log_verbose("net", "client %llu at %s is closed: idle", (unsigned long long)c->s->id, c->s->addr);
        conn_close(c);
        return;
    }
    if (!(c->watched & UV_READABLE) && (c->s->flags & SESSION_BLOCKED) && peer_is_gone(c)) {
        conn_close(c);
        return;
    }
    if (conn_unparsed(c) == 0 && c->in.cap)
        conn_free_input(c);
    if (c->soft_since_ms || c->s->out.bytes)
        conn_turn(c); /* a soft limit's time may be over */
}

/* Each connection is looked at about once a second. */
void net_worker_tick(struct worker *w)
{
    struct net_worker *nw = w->net_worker;
    if (!nw)
        return;
    struct net *net = nw->net;
    if (w->id == 0 && w->conf->maxclients > atomic_load_explicit(&net->fd_clients, memory_order_relaxed) &&
        nw->tick % 64 == 0) {
        int64_t room = net_raise_fd_limit(w->conf->maxclients);
        atomic_store_explicit(&net->fd_clients, room, memory_order_relaxed);
    }
    nw->tick++;
    unsigned hz = w->conf->hz > 0 ? (unsigned)w->conf->hz : 1;
    unsigned n = nw->nconns / hz + 1;
    for (unsigned i = 0; i < n; i++) {
        struct list *l = list_pop_front(&nw->conns);
        if (!l)
            break;
        list_push_back(&nw->conns, l); /* the next tick goes on with the others */
        conn_check(LIST_ENTRY(l, struct conn, link));
    }
    limits_memory(nw);
}
