#ifndef TIERCEL_NET_PRIV_H
#define TIERCEL_NET_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <uv.h>

#include "tiercel/http.h"
#include "tiercel/buf.h"
#include "tiercel/list.h"
#include "tiercel/net.h"
#include "tiercel/resp.h"
#include "tiercel/session.h"
#include "tiercel/stats.h"

/* What the files of this module share: listen.c binds, accept.c accepts and owns a worker's
 * start and stop, conn.c moves bytes, tls.c those that are encrypted, limits.c closes who takes too much. */

struct ssl_st; /* OpenSSL's: only tls.c includes its headers */
struct ssl_ctx_st;

/* Half a request of at most NET_READ_HEAD bytes is put in front of the shared buffer before
 * the next read; a longer one has grown a buffer of its own. */
#define NET_READ_BYTES ((size_t)80 << 10) /* a value of 64 KB with its command, too */
#define NET_READ_HEAD ((size_t)16 << 10)
#define NET_READ_LEAST ((size_t)16 << 10) /* room for each read: a whole TLS record */
/* A connection's turn: requests of this many bytes, then the others come first. */
#define NET_TURN_BYTES (NET_READ_HEAD + NET_READ_BYTES)
/* Replies above this that the socket does not take stop the connection's requests. */
#define NET_OUTPUT_SOFT ((size_t)1 << 20)
#define NET_OUTPUT_TIGHT ((size_t)64 << 10) /* the same while clients hold much: session_clients_tight() */
/* Such a client may be one that sends a whole long pipeline before it reads: its input is
 * still taken in, up to this much for certain, and beyond while all clients hold little. */
#define NET_STALLED_INPUT ((size_t)1 << 20)
#define NET_STALLED_INPUT_ALL ((int64_t)128 << 20)
#define NET_IOVECS 64 /* of one write */
/* Replies of more bytes are written at once, smaller ones with those of other connections: of a few, so that the
 * client has something to do meanwhile. */
#define NET_REPLY_LATER ((size_t)16 << 10)
#define NET_READY_MAX 8
#define NET_BATCH 16 /* requests parsed before the first of them runs, so that their keys are prefetched */
/* A read of at most so many bytes that is one request runs together with those of other connections, for the
 * same reason: NET_BATCH of them at most. */
#define NET_SMALL_READ ((size_t)2 << 10)
#define NET_HANDSHAKE_MS 10000 /* a TLS client that is not done with its part after so long is closed */
#define NET_FDS_RESERVED 64    /* descriptors that are no clients': files, upstream, pollers */

struct conn {
    uv_poll_t poll;
    int fd;
    struct ssl_st *tls; /* NULL: plain */
    struct net_worker *nw;
    struct session *s; /* NULL once closed */
    struct list link;  /* in nw->conns */
    struct list ready; /* in nw->ready, when it wants a turn */

    struct buf in; /* [in_pos, len) is not parsed yet */
    size_t in_pos;
    struct resp_parser parser;
    int64_t soft_since_ms; /* loop time since which output is over the soft limit; 0 = it is not */

    int watched;  /* what the loop watches the socket for: UV_READABLE, UV_WRITABLE */
    bool writing; /* the socket did not take all: it is watched until it takes more */
    bool eof;     /* the client will send no more */
    bool more;    /* `in` may hold whole requests, for its next turn */
    char *bad;    /* a protocol error's text, until the replies before it are out */
};

struct net_address {
    struct sockaddr_storage sa;
    socklen_t len;
    bool tls;
    int *fds; /* one per worker; -1: closed */
};

struct net {
    int nworkers, naddrs, port, tls_port;
    struct net_address *addrs;
    int unix_fd; /* -1: none */
    char *unix_path;
    uint64_t unix_dev, unix_ino; /* what was bound: nothing else is unlinked at the end */

    _Atomic int64_t clients, fd_clients; /* now; at most, by the fd limit */

    struct ssl_ctx_st *tls;     /* of new connections; NULL: no tls-port */
    pthread_mutex_t lock;       /* guards worker[], a stopped one is sent nothing more, and tls */
    struct net_worker **worker; /* NULL: not started, or stopped */
    struct net_worker **all;    /* freed by net_close() */
    unsigned next_unix;         /* round robin; worker 0 only */
};

struct net_listener {
    uv_poll_t poll;
    struct net_worker *nw;
    int fd;
    bool is_unix, tls;
};

/* A request that was read, is in read_buf, and did not run yet. */
struct net_small {
    struct conn *c; /* its memory stays until the loop's round ends */
    struct slice in;
};

struct net_worker {
    struct net *net;
    struct worker *w;
    struct net_listener *listeners;
    int nlisteners;
    struct list conns, ready;
    unsigned nconns, nready; /* nready: in `ready`, about */
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;   /* runs while `ready` holds leftovers: the loop must not sleep then */
    uv_timer_t timer; /* accepting again after fds ran out; the end of the drain */
    int handles;      /* open ones, connections too */
    bool stopping;
    void (*closed)(struct worker *w);
    struct request batch[NET_BATCH], small_req[NET_BATCH];
    struct net_small small[NET_BATCH];
    int nsmall;
    size_t small_bytes; /* of read_buf */
    uint64_t tick;
    char read_buf[NET_BATCH * NET_SMALL_READ + NET_READ_HEAD + NET_READ_BYTES];
};

/* ---- listen.c ---- */
/* Makes room for that many clients and the server's own descriptors; returns for how many there is. */
int64_t net_raise_fd_limit(int64_t clients);

/* ---- accept.c ---- */
void net_handle_closed(struct net_worker *nw); /* from every uv_close() callback */
void net_conn_gone(struct net_worker *nw);     /* from conn_close(), as its last act but uv_close() */
void net_accept_now(struct net_worker *nw);
void net_start_idle(struct net_worker *nw);

/* ---- conn.c ---- */
/* Takes the descriptor over. */
void conn_open(struct net_worker *nw, int fd, bool is_unix, bool tls);
void conn_close(struct conn *c);
/* Gives it a turn before the loop sleeps again. */
void conn_schedule(struct conn *c);
/* Runs, flushes, and decides what comes next. May close the connection. */
void conn_turn(struct conn *c);
/* Requests that were read and waited for company run. */
void conn_run_small(struct net_worker *nw);
/* Turns for all that were scheduled. */
void conn_run_ready(struct net_worker *nw);
/* Nothing of it is under way: no request waits, no reply is unsent. */
bool conn_is_idle(const struct conn *c);
void conn_free_input(struct conn *c); /* when nothing is in it */

static inline size_t conn_unparsed(const struct conn *c)
{
    return c->in.len - c->in_pos;
}

/* ---- tls.c: reading and writing as recv() and send() do without waiting, with errno ---- */
/* ST_BAD: err names the setting and says what is wrong with it. */
enum status tls_context_create(const struct conf *conf, struct ssl_ctx_st **out, char err[256]);
void tls_context_free(struct ssl_ctx_st *ctx);
struct ssl_st *tls_open(struct net *net, int fd); /* NULL: out of memory. The handshake is part of the first reads */
void tls_close(struct ssl_st *ssl);               /* not the descriptor */
bool tls_established(const struct ssl_st *ssl);   /* before that nothing is to be written */
bool tls_wants_write(const struct ssl_st *ssl);   /* its handshake waits until the socket takes more */
/* room: at least NET_READ_LEAST. All that was decrypted is taken, so whatever is left is in the socket. EPROTO: told in the log. */
ssize_t tls_read(struct ssl_st *ssl, void *to, size_t room);
ssize_t tls_peek(struct ssl_st *ssl, void *to, size_t room);
void tls_take(struct ssl_st *ssl, void *to, size_t len); /* what was peeked at */
/* What no poll tells of: the rest of what was peeked at, or that the client has said that it ends. */
bool tls_has_input(const struct ssl_st *ssl);
ssize_t tls_write(struct ssl_st *ssl, const struct iovec *iov, int n, size_t *offered);

/* ---- limits.c ---- */
/* true: over a limit, said so in the log; the caller closes the connection. */
bool limits_output_hard(struct conn *c);
bool limits_output_soft(struct conn *c);
bool limits_input(struct conn *c);
/* May it read on although its output is not taken? */
bool limits_input_while_stalled(const struct conn *c);
/* Has it so many replies that no more requests are to run? */
bool limits_output_stops(const struct conn *c);
/* maxmemory-clients: closes this worker's largest while there is too much. */
void limits_memory(struct net_worker *nw);
/* The same, where one has just grown; it may be `c` that is closed. Nothing is looked at without maxmemory-clients. */
static inline void limits_grown(struct conn *c)
{
    if (UNLIKELY(c->nw->w->conf->maxmemory_clients != 0))
        limits_memory(c->nw);
}

/* ---- the HTTP port (http_gate.c) ---- */

/* Who gets /metrics; see http_set_access(). Any thread. */
struct MHD_Connection;
struct http_gate;

struct http_gate *http_gate_create(void);
void http_gate_destroy(struct http_gate *g);
void http_gate_set(struct http_gate *g, const struct http_access *access);
/* 0: it may. Else the HTTP status, 401 or 403; counted and logged. */
unsigned http_gate_check(struct http_gate *g, struct MHD_Connection *conn);
bool http_gate_check_quietly(struct http_gate *g, struct MHD_Connection *conn); /* may it? */
bool http_gate_is_local(int fd); /* the socket is bound to a loopback address */

#endif
