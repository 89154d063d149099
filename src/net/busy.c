/* While a script of this worker takes too long, its loop does not turn. From within the script's hook, new clients are let
 * in, and those that wait for nothing are told so, or may end the script (session_feed_busy()). Only sockets are touched
 * here: what needs the loop, locks or other requests comes when the script has ended. */
#include "net_priv.h"

#include <limits.h>
#include <sys/uio.h>

#define PEEK_BYTES 4096 /* longer requests wait */

static bool waits_for_company(const struct net_worker *nw, const struct conn *c)
{
    for (int i = 0; i < nw->nsmall; i++)
        if (nw->small[i].c == c)
            return true;
    return false;
}

static void send_out(struct conn *c)
{
    struct chain *out = &c->s->out;
    struct iovec iov[NET_IOVECS];

    if (chain_empty(out) || out->npacked || c->writing || c->s->unsynced || c->s->holding)
        return;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)chain_iov(out, iov, NET_IOVECS)};
    size_t offered;
    ssize_t n = c->tls ? tls_write(c->tls, iov, (int)msg.msg_iovlen, &offered)
                       : sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
        chain_consume(out, (size_t)n);
        c->s->total_out += (uint64_t)n;
    }
    conn_schedule(c); /* the rest, and closing it */
}

/* One request that is whole. */
static void serve(struct net_worker *nw, struct conn *c)
{
    struct resp_limits lim = {PEEK_BYTES, PEEK_BYTES, PEEK_BYTES};
    struct resp_parser parser;
    struct request req;
    char text[PEEK_BYTES], err[128];
    size_t used;

    if (!c->s || c->s->running || c->s->close_asap || c->s->close_after_reply || c->bad || c->eof ||
        waits_for_company(nw, c))
        return;
    send_out(c);
    if (!conn_is_idle(c) || conn_unparsed(c) > 0)
        return;
    ssize_t n =
        c->tls ? tls_peek(c->tls, text, sizeof(text)) : recv(c->fd, text, sizeof(text), MSG_PEEK | MSG_DONTWAIT);
    if (n <= 0)
        return;
    if (c->tls)
        conn_schedule(c); /* what stays is decrypted already: no poll will tell of it */
    resp_parser_init(&parser);
    request_init(&req);
    if (resp_parse(&parser, SLICE(text, (size_t)n), &lim, &used, &req, err) == RESP_OK &&
        session_feed_busy(c->s, &req)) {
        char taken[PEEK_BYTES];
        if (c->tls)
            tls_take(c->tls, taken, used);
        else
            (void)!recv(c->fd, taken, used, MSG_DONTWAIT);
        c->s->total_in += used;
        send_out(c);
    }
    request_deinit(&req);
    resp_parser_deinit(&parser);
}

void net_serve_while_busy(struct worker *w)
{
    struct net_worker *nw = w->net_worker;

    if (!nw || nw->stopping)
        return;
    for (int i = 0; i < nw->nsmall; i++) { /* read together with the script's request */
        struct conn *c = nw->small[i].c;
        if (c && c->s && session_feed_busy(c->s, &nw->small_req[i])) {
            nw->small[i].c = NULL;
            send_out(c);
        }
    }
    net_accept_now(nw);
    for (struct list *l = nw->conns.next; l != &nw->conns; l = l->next)
        serve(nw, LIST_ENTRY(l, struct conn, link));
}
