/* A worker's part: its listeners, who is let in, and its orderly end. */
#include "net_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <unistd.h>

#include "tiercel/acl.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/cmd.h"
#include "tiercel/log.h"
#include "tiercel/mbox.h"

#define ACCEPTS_PER_TURN 64
#define ACCEPT_PAUSE_MS 100 /* without a free descriptor, the backlog waits this long */

/* ---- who is let in ----------------------------------------------------------------------- */

static const char max_clients_text[] = "-ERR max number of clients reached\r\n";

static const char protected_text[] =
    "-DENIED Redis is running in protected mode because protected mode is enabled and no password is set for the "
    "default user. In this mode connections are only accepted from the loopback interface. If you want to connect "
    "from external computers to Redis you may adopt one of the following solutions: 1) Just disable protected mode "
    "sending the command 'CONFIG SET protected-mode no' from the loopback interface by connecting to Redis from the "
    "same host the server is running, however MAKE SURE Redis is not publicly accessible from internet if you do so. "
    "Use CONFIG REWRITE to make this change permanent. 2) Alternatively you can just disable the protected mode by "
    "editing the Redis configuration file, and setting the protected mode option to 'no', and then restarting the "
    "server. 3) If you started the server manually just for testing, restart it with the '--protected-mode no' "
    "option. 4) Setup a an authentication password for the default user. NOTE: You only need to do one of the above "
    "things in order for the server to start accepting connections from the outside.\r\n";

static bool peer_is_loopback(int fd)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);
    if (getpeername(fd, (struct sockaddr *)&sa, &len) != 0)
        return false;
    if (sa.ss_family == AF_INET)
        return ntohl(((struct sockaddr_in *)&sa)->sin_addr.s_addr) >> 24 == 127;
    return sa.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *)&sa)->sin6_addr);
}

static void fd_refuse(struct net_worker *nw, int fd, bool tls, const char *text, size_t len)
{
    /* The socket is new and its buffer empty: the text fits, or the client never learns why. Before a handshake nothing
     * could be said. */
    if (!tls)
        (void)!send(fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    close(fd);
    stats_inc(nw->w->stats, STAT_rejected_connections);
}

/* Counts the newcomer in, or says no and closes it. */
static bool fd_admit(struct net_worker *nw, int fd, bool is_unix, bool tls)
{
    const struct conf *conf = nw->w->conf;
    int64_t most = atomic_load_explicit(&nw->net->fd_clients, memory_order_relaxed);
    if (most > conf->maxclients)
        most = conf->maxclients;
    if (atomic_fetch_add_explicit(&nw->net->clients, 1, memory_order_relaxed) >= most) {
        atomic_fetch_sub_explicit(&nw->net->clients, 1, memory_order_relaxed);
        fd_refuse(nw, fd, tls, max_clients_text, sizeof(max_clients_text) - 1);
        return false;
    }
    if (!is_unix && conf->protected_mode && acl_default_nopass(nw->w->cmd->acl) && !peer_is_loopback(fd)) {
        atomic_fetch_sub_explicit(&nw->net->clients, 1, memory_order_relaxed);
        fd_refuse(nw, fd, tls, protected_text, sizeof(protected_text) - 1);
        return false;
    }
    stats_inc(nw->w->stats, STAT_total_connections_received);
    return true;
}

/* ---- the UNIX socket's connections go round ------------------------------------------------ */

struct handover {
    struct mbox_msg msg;
    struct net *net;
    int fd;
};

static void on_handover(struct mbox_msg *msg, void *owner)
{
    struct handover *h = (struct handover *)msg;
    struct net_worker *nw = ((struct worker *)owner)->net_worker;
    if (nw && !nw->stopping) {
        conn_open(nw, h->fd, true, false);
    } else {
        atomic_fetch_sub_explicit(&h->net->clients, 1, memory_order_relaxed);
        close(h->fd);
    }
    mem_free(MEM_OTHER, h);
}

static void fd_hand_over(struct net_worker *nw, int fd)
{
    struct net *net = nw->net;
    bool posted = false;
    pthread_mutex_lock(&net->lock);
    struct net_worker *to = net->worker[net->next_unix++ % (unsigned)net->nworkers];
    if (to && to != nw) {
        struct handover *h = mem_calloc(MEM_OTHER, sizeof(*h));
        h->msg.run = on_handover;
        h->net = net;
        h->fd = fd;
        /* Under the lock: a worker that stopped is not in worker[] and its mailbox may be gone. */
        mbox_post(to->w->mbox, &h->msg);
        posted = true;
    }
    pthread_mutex_unlock(&net->lock);
    if (!posted)
        conn_open(nw, fd, true, false);
}

/* ---- accepting ----------------------------------------------------------------------------- */

static void on_connection(uv_poll_t *poll, int status, int events);

static void listeners_start(struct net_worker *nw)
{
    for (int i = 0; i < nw->nlisteners; i++)
        CHECK(uv_poll_start(&nw->listeners[i].poll, UV_READABLE, on_connection) == 0);
}

static void on_pause_over(uv_timer_t *timer)
{
    struct net_worker *nw = timer->data;
    if (!nw->stopping)
        listeners_start(nw);
}

/* Out of descriptors or memory: a readable listener would spin the loop. */
static void accept_pause(struct net_worker *nw, int err)
{
    log_warning("net", "accepting connections pauses: %s", strerror(err));
    for (int i = 0; i < nw->nlisteners; i++)
        uv_poll_stop(&nw->listeners[i].poll);
    uv_timer_start(&nw->timer, on_pause_over, ACCEPT_PAUSE_MS, 0);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
    struct net_listener *l = poll->data;
    (void)status; /* an error of the socket comes back from accept() */
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK)
                return;
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                accept_pause(l->nw, errno);
                return;
            }
            continue; /* ECONNABORTED and the network errors Linux passes on: that client's */
        }
        if (!fd_admit(l->nw, fd, l->is_unix, l->tls))
            continue;
        if (l->is_unix)
            fd_hand_over(l->nw, fd);
        else
            conn_open(l->nw, fd, false, l->tls);
    }
}

void net_accept_now(struct net_worker *nw)
{
    for (int i = 0; i < nw->nlisteners; i++)
        on_connection(&nw->listeners[i].poll, 0, 0);
}

/* ---- start --------------------------------------------------------------------------------- */

static void turn_begin(struct net_worker *nw)
{
    nw->w->now_ms = clock_wall_ms();
    conn_run_ready(nw);
}

/* Before the loop sleeps: what timers and closing handles woke. */
static void on_prepare(uv_prepare_t *handle)
{
    turn_begin(handle->data);
}

/* After sockets and mailboxes were served: what they woke. */
static void on_check(uv_check_t *handle)
{
    struct net_worker *nw = handle->data;
    conn_run_small(nw);
    turn_begin(nw);
    limits_memory(nw);
}

static void on_idle(uv_idle_t *handle)
{
    (void)handle; /* its being active is what keeps the loop from sleeping */
}

static void listener_start(struct net_worker *nw, int fd, bool is_unix, bool tls)
{
    struct net_listener *l = &nw->listeners[nw->nlisteners++];
    *l = (struct net_listener){.nw = nw, .fd = fd, .is_unix = is_unix, .tls = tls};
    CHECK(uv_poll_init(nw->w->loop, &l->poll, fd) == 0);
    l->poll.data = l;
    nw->handles++;
}

enum status net_worker_start(struct net *net, struct worker *w)
{
    CHECK(w->id >= 0 && w->id < net->nworkers && !net->all[w->id]);
    struct net_worker *nw = mem_calloc(MEM_OTHER, sizeof(*nw));
    *nw = (struct net_worker){.net = net, .w = w};
    list_init(&nw->conns);
    list_init(&nw->ready);
    for (int i = 0; i < NET_BATCH; i++) {
        request_init(&nw->batch[i]);
        request_init(&nw->small_req[i]);
    }
    uv_prepare_init(w->loop, &nw->prepare);
    uv_check_init(w->loop, &nw->check);
    uv_idle_init(w->loop, &nw->idle);
    uv_timer_init(w->loop, &nw->timer);
    nw->prepare.data = nw->check.data = nw->idle.data = nw->timer.data = nw;
    nw->handles = 4;
    uv_prepare_start(&nw->prepare, on_prepare);
    uv_check_start(&nw->check, on_check);

    nw->listeners = mem_calloc(MEM_OTHER, (size_t)(net->naddrs + 1) * sizeof(*nw->listeners));
    for (int i = 0; i < net->naddrs; i++)
        listener_start(nw, net->addrs[i].fds[w->id], false, net->addrs[i].tls);
    if (net->unix_fd >= 0 && w->id == 0)
        listener_start(nw, net->unix_fd, true, false);
    listeners_start(nw);

    w->net_worker = net->all[w->id] = nw;
    pthread_mutex_lock(&net->lock);
    net->worker[w->id] = nw;
    pthread_mutex_unlock(&net->lock);
    return ST_OK;
}

void net_start_idle(struct net_worker *nw)
{
    if (!nw->stopping || nw->nconns)
        uv_idle_start(&nw->idle, on_idle);
}

/* ---- stop ------------------------------------------------------------------------------------ */

void net_handle_closed(struct net_worker *nw)
{
    CHECK(nw->handles > 0);
    if (--nw->handles > 0)
        return;
    for (int i = 0; i < NET_BATCH; i++) {
        request_deinit(&nw->batch[i]);
        request_deinit(&nw->small_req[i]);
    }
    mem_free(MEM_OTHER, nw->listeners);
    nw->listeners = NULL;
    nw->w->net_worker = NULL; /* the memory stays until net_close() */
    nw->closed(nw->w);
}

static void on_own_handle_closed(uv_handle_t *handle)
{
    net_handle_closed(handle->data);
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct net_listener *l = handle->data;
    net_handle_closed(l->nw);
}

/* The last connection is gone: so may the handles that served them. */
static void handles_close(struct net_worker *nw)
{
    uv_close((uv_handle_t *)&nw->prepare, on_own_handle_closed);
    uv_close((uv_handle_t *)&nw->check, on_own_handle_closed);
    uv_close((uv_handle_t *)&nw->idle, on_own_handle_closed);
    uv_close((uv_handle_t *)&nw->timer, on_own_handle_closed);
}

void net_conn_gone(struct net_worker *nw)
{
    atomic_fetch_sub_explicit(&nw->net->clients, 1, memory_order_relaxed);
    nw->nconns--;
    if (nw->stopping && nw->nconns == 0)
        handles_close(nw);
}

static void conns_close(struct net_worker *nw, bool idle_only)
{
    for (struct list *l = nw->conns.next, *next; l != &nw->conns; l = next) {
        struct conn *c = LIST_ENTRY(l, struct conn, link);
        next = l->next;
        if (!idle_only || conn_is_idle(c) || (c->s->flags & SESSION_BLOCKED))
            conn_close(c);
        else
            conn_schedule(c); /* which stops its reading */
    }
}

static void on_drain_over(uv_timer_t *timer)
{
    conns_close(timer->data, false);
}

void net_worker_stop(struct worker *w, int64_t drain_ms, void (*closed)(struct worker *w))
{
    struct net_worker *nw = w->net_worker;
    struct net *net = nw->net;
    if (nw->stopping)
        return;
    pthread_mutex_lock(&net->lock);
    net->worker[w->id] = NULL;
    pthread_mutex_unlock(&net->lock);

    nw->closed = closed;
    nw->stopping = true;
    uv_timer_stop(&nw->timer);
    for (int i = 0; i < nw->nlisteners; i++) {
        struct net_listener *l = &nw->listeners[i];
        uv_close((uv_handle_t *)&l->poll, on_listener_closed);
        if (l->is_unix)
            continue; /* net_close() unlinks and closes it */
        close(l->fd);
        net->addrs[i].fds[w->id] = -1;
    }
    if (nw->nconns == 0) {
        handles_close(nw);
        return;
    }
    uv_timer_start(&nw->timer, on_drain_over, drain_ms > 0 ? (uint64_t)drain_ms : 0, 0);
    conns_close(nw, true);
}
