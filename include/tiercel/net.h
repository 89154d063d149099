#ifndef TIERCEL_NET_H
#define TIERCEL_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/conf.h"
#include "tiercel/status.h"
#include "tiercel/worker.h"

/* Sockets. Each worker listens on the port by itself (SO_REUSEPORT, so the kernel spreads
 * connections) and hands connections of the UNIX socket round by mailbox. Bytes become
 * requests (resp.h), requests go to the session (session.h), and what the session appends to
 * `out` is written with one gathering write per batch. Bounds: maxclients, timeout,
 * tcp-keepalive, client-query-buffer-limit, client-output-buffer-limit, maxmemory-clients,
 * and reading stops while a client's queue is full or its output is not taken. */

struct net;

/* Binds everything (so that a port in use is one clear line in err) before any loop runs.
 * The main thread. Raises the fd limit to maxclients + 64 or lowers *maxclients with a warning. */
enum status net_listen(const struct conf *conf, int nworkers, struct net **out, int64_t *maxclients, char err[256]);
/* Starts accepting on this worker's loop, on its thread. */
enum status net_worker_start(struct net *net, struct worker *w);
/* Stops accepting and reading on this worker; connections with unflushed replies get
 * `drain_ms` to take them, then all are closed. The worker's thread; closed() when no handle is left. */
void net_worker_stop(struct worker *w, int64_t drain_ms, void (*closed)(struct worker *w));
/* Closes the sockets and unlinks the UNIX socket. After the loops ended. */
void net_close(struct net *net);
int net_port(const struct net *net); /* the port really bound; without a plain one that of TLS */
/* Connections from now on get certificates and settings of TLS as they are now. ST_BAD: err says what is wrong with them, and
 * nothing changed. Any thread. */
enum status net_tls_reload(struct net *net, const struct conf *conf, char err[256]);
/* Can the settings of TLS be used, if there is a tls-port? ST_BAD: err. Nothing stays open. Any thread. */
enum status net_check_tls(const struct conf *conf, char err[256]);
/* A script keeps the worker's loop from turning: what can be done meanwhile. The worker's thread, from within that. */
void net_serve_while_busy(struct worker *w);
/* A worker's periodic work (timeouts, maxmemory-clients), `hz` times a second. */
void net_worker_tick(struct worker *w);

#endif
