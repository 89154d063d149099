/* Binding: addresses of the port, one socket per worker and address, and the UNIX socket. */
#include "net_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tiercel/check.h"
#include "tiercel/log.h"

#define ADDRESSES_MAX 64
#define ERR_MAX 256

/* ---- the fd limit ---------------------------------------------------------------------- */

int64_t net_raise_fd_limit(int64_t clients)
{
    struct rlimit rl;
    if (getrlimit(RLIMIT_NOFILE, &rl) != 0)
        return clients;
    rlim_t want = (rlim_t)clients + NET_FDS_RESERVED;
    if (rl.rlim_cur < want) {
        struct rlimit up = {.rlim_cur = want, .rlim_max = rl.rlim_max < want ? want : rl.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &up) != 0 && rl.rlim_cur < rl.rlim_max) {
            /* Only the superuser raises the hard limit; everybody may go up to it. */
            up.rlim_cur = up.rlim_max = rl.rlim_max;
            (void)setrlimit(RLIMIT_NOFILE, &up);
        }
        if (getrlimit(RLIMIT_NOFILE, &rl) != 0)
            return clients;
    }
    if (rl.rlim_cur >= want)
        return clients;
    return rl.rlim_cur > NET_FDS_RESERVED ? (int64_t)rl.rlim_cur - NET_FDS_RESERVED : 1;
}

/* ---- addresses ------------------------------------------------------------------------- */

static enum status address_add(struct net *net, const struct addrinfo *ai, bool tls)
{
    for (int i = 0; i < net->naddrs; i++) /* "127.0.0.1 localhost" is one address */
        if (net->addrs[i].len == ai->ai_addrlen && memcmp(&net->addrs[i].sa, ai->ai_addr, ai->ai_addrlen) == 0)
            return ST_OK;
    if (net->naddrs == ADDRESSES_MAX)
        return ST_FULL;
    struct net_address *a = &net->addrs[net->naddrs++];
    *a = (struct net_address){.len = ai->ai_addrlen, .tls = tls};
    memcpy(&a->sa, ai->ai_addr, ai->ai_addrlen);
    a->fds = mem_alloc(MEM_OTHER, (size_t)net->nworkers * sizeof(*a->fds));
    for (int i = 0; i < net->nworkers; i++)
        a->fds[i] = -1;
    return ST_OK;
}

/* What a host without IPv6 answers: as in Redis no reason to give up. */
static bool family_missing(int err)
{
    return err == ENOPROTOOPT || err == EPROTONOSUPPORT || err == ESOCKTNOSUPPORT || err == EPFNOSUPPORT ||
           err == EAFNOSUPPORT;
}

static int socket_open(const struct net_address *a)
{
    int one = 1, fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (a->sa.ss_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    return fd;
}

static int fd_close_keeping_errno(int fd)
{
    int err = errno;
    close(fd);
    errno = err;
    return -1;
}

/* A socket that shares its port would also share it with another server of the same user, in
 * silence. One that does not share fails then: this asks. */
static bool address_free(const struct net_address *a)
{
    int fd = socket_open(a);
    if (fd < 0)
        return false;
    bool ok = bind(fd, (const struct sockaddr *)&a->sa, a->len) == 0;
    fd_close_keeping_errno(fd);
    return ok;
}

static int socket_listen(const struct net_address *a, bool shared, int backlog)
{
    int one = 1, fd = socket_open(a);
    if (fd < 0)
        return -1;
    if (shared && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0)
        return fd_close_keeping_errno(fd);
    if (bind(fd, (const struct sockaddr *)&a->sa, a->len) != 0 || listen(fd, backlog) != 0)
        return fd_close_keeping_errno(fd);
    return fd;
}

static bool address_listen(struct net *net, struct net_address *a, int backlog)
{
    if (!address_free(a))
        return false;
    for (int i = 0; i < net->nworkers; i++) {
        a->fds[i] = socket_listen(a, net->nworkers > 1, backlog);
        if (a->fds[i] < 0)
            return false;
    }
    return true;
}

static void address_close(struct net *net, struct net_address *a)
{
    for (int i = 0; i < net->nworkers; i++)
        if (a->fds[i] >= 0)
            close(a->fds[i]);
    mem_free(MEM_OTHER, a->fds);
}

/* One word of `bind`: every address it stands for, each listened on by every worker. */
static enum status host_listen(struct net *net, const char *host, bool optional, bool tls, int backlog,
                               char err[ERR_MAX])
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    int port = tls ? net->tls_port : net->port;
    char service[16];
    snprintf(service, sizeof(service), "%d", port);
    if (strcmp(host, "0.0.0.0") == 0)
        hints.ai_family = AF_INET;
    else if (strchr(host, ':'))
        hints.ai_family = AF_INET6;
    int rc = getaddrinfo(strcmp(host, "::*") == 0 ? "::" : host, service, &hints, &list);
    if (rc != 0) {
        if (optional)
            return ST_OK;
        snprintf(err, ERR_MAX, "bind %s: %s", host, gai_strerror(rc));
        return ST_BAD;
    }
    enum status st = ST_OK;
    for (const struct addrinfo *ai = list; ai && st == ST_OK; ai = ai->ai_next) {
        int before = net->naddrs;
        st = address_add(net, ai, tls);
        if (st != ST_OK)
            snprintf(err, ERR_MAX, "bind: more than %d addresses", ADDRESSES_MAX);
        if (net->naddrs == before || address_listen(net, &net->addrs[before], backlog))
            continue;
        int why = errno;
        address_close(net, &net->addrs[--net->naddrs]);
        if ((optional && why == EADDRNOTAVAIL) || family_missing(why)) {
            log_verbose("net", "not listening on %s port %d: %s", host, port, strerror(why));
            continue;
        }
        snprintf(err, ERR_MAX, "cannot listen on %s port %d: %s", host, port, strerror(why));
        st = ST_IO;
    }
    freeaddrinfo(list);
    return st;
}

static enum status tcp_listen(struct net *net, const struct conf *conf, bool tls, char err[ERR_MAX])
{
    const char *p = conf->bind;
    int backlog = (int)conf->tcp_backlog;
    enum status st = ST_OK;
    while (st == ST_OK) {
        char host[256];
        p += strspn(p, " \t");
        size_t len = strcspn(p, " \t");
        if (len == 0)
            break;
        bool optional = *p == '-';
        if (len - optional >= sizeof(host)) {
            snprintf(err, ERR_MAX, "bind: an address is too long");
            return ST_BAD;
        }
        memcpy(host, p + optional, len - optional);
        host[len - optional] = '\0';
        p += len;
        if (strcmp(host, "*") != 0) {
            st = host_listen(net, host, optional, tls, backlog, err);
            continue;
        }
        st = host_listen(net, "0.0.0.0", optional, tls, backlog, err);
        if (st == ST_OK)
            st = host_listen(net, "::", true, tls, backlog, err);
    }
    return st;
}

/* ---- the UNIX socket --------------------------------------------------------------------- */

/* true: nothing is at the path now. A file that is no socket, or a socket that somebody
 * listens on, is not ours to remove. */
static bool unix_path_clear(const struct sockaddr_un *sa, char err[ERR_MAX])
{
    struct stat st;
    if (lstat(sa->sun_path, &st) != 0)
        return true;
    if (!S_ISSOCK(st.st_mode)) {
        snprintf(err, ERR_MAX, "unixsocket %.100s: the path exists and is not a socket", sa->sun_path);
        return false;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool dead = fd >= 0 && connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) != 0 && errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    if (!dead) {
        snprintf(err, ERR_MAX, "unixsocket %.100s: another server listens on it", sa->sun_path);
        return false;
    }
    if (unlink(sa->sun_path) != 0) {
        snprintf(err, ERR_MAX, "unixsocket %.100s: %s", sa->sun_path, strerror(errno));
        return false;
    }
    return true;
}

static enum status unix_listen(struct net *net, const struct conf *conf, char err[ERR_MAX])
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    size_t len = strlen(conf->unixsocket);
    char *end;
    unsigned long mode = strtoul(conf->unixsocketperm, &end, 8);
    if (*end != '\0' || mode > 0777) {
        snprintf(err, ERR_MAX, "unixsocketperm %.100s: not octal permissions up to 777", conf->unixsocketperm);
        return ST_BAD;
    }
    if (len >= sizeof(sa.sun_path)) {
        snprintf(err, ERR_MAX, "unixsocket: the path is longer than %zu bytes", sizeof(sa.sun_path) - 1);
        return ST_BAD;
    }
    memcpy(sa.sun_path, conf->unixsocket, len + 1);
    if (!unix_path_clear(&sa, err))
        return ST_IO;

    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct stat st;
    /* Permissions before listen(): nobody can connect in between. */
    if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0 ||
        (mode != 0 && chmod(sa.sun_path, (mode_t)mode) != 0) || stat(sa.sun_path, &st) != 0 ||
        listen(fd, (int)conf->tcp_backlog) != 0) {
        snprintf(err, ERR_MAX, "unixsocket %.100s: %s", sa.sun_path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return ST_IO;
    }
    net->unix_fd = fd;
    net->unix_path = mem_strdup(MEM_OTHER, conf->unixsocket);
    net->unix_dev = st.st_dev;
    net->unix_ino = st.st_ino;
    return ST_OK;
}

static void unix_unlink(const struct net *net)
{
    struct stat st;
    if (net->unix_path && lstat(net->unix_path, &st) == 0 && st.st_dev == net->unix_dev && st.st_ino == net->unix_ino)
        unlink(net->unix_path);
}

/* ---- all of it ----------------------------------------------------------------------------- */

enum status net_listen(const struct conf *conf, int nworkers, struct net **out, int64_t *maxclients, char err[ERR_MAX])
{
    struct net *net = mem_calloc(MEM_OTHER, sizeof(*net));
    net->nworkers = nworkers;
    net->port = (int)conf->port;
    net->tls_port = (int)conf->tls_port;
    net->addrs = mem_calloc(MEM_OTHER, ADDRESSES_MAX * sizeof(*net->addrs));
    net->unix_fd = -1;
    net->worker = mem_calloc(MEM_OTHER, (size_t)nworkers * sizeof(*net->worker));
    net->all = mem_calloc(MEM_OTHER, (size_t)nworkers * sizeof(*net->all));
    CHECK(pthread_mutex_init(&net->lock, NULL) == 0);
    *out = NULL;
    err[0] = '\0';

    enum status st = net->port ? tcp_listen(net, conf, false, err) : ST_OK;
    if (st == ST_OK && net->tls_port)
        st = tls_context_create(conf, &net->tls, err);
    if (st == ST_OK && net->tls_port)
        st = tcp_listen(net, conf, true, err);
    if (st == ST_OK && conf->unixsocket[0])
        st = unix_listen(net, conf, err);
    if (st == ST_OK && net->naddrs == 0 && net->unix_fd < 0) {
        snprintf(err, ERR_MAX, "nothing to listen on: see port, tls-port, bind and unixsocket");
        st = ST_BAD;
    }
    if (st != ST_OK) {
        net_close(net);
        return st;
    }

    int64_t room = net_raise_fd_limit(conf->maxclients);
    if (room < conf->maxclients)
        log_warning("net", "maxclients is %lld instead of %lld: the limit of open files allows no more",
                    (long long)room, (long long)conf->maxclients);
    atomic_store(&net->fd_clients, room);
    *maxclients = room;
    *out = net;
    return ST_OK;
}

void net_close(struct net *net)
{
    if (!net)
        return;
    for (int i = 0; i < net->naddrs; i++)
        address_close(net, &net->addrs[i]);
    mem_free(MEM_OTHER, net->addrs);
    tls_context_free(net->tls);
    unix_unlink(net);
    if (net->unix_fd >= 0)
        close(net->unix_fd);
    mem_free(MEM_OTHER, net->unix_path);
    for (int i = 0; i < net->nworkers; i++)
        mem_free(MEM_OTHER, net->all[i]);
    mem_free(MEM_OTHER, net->all);
    mem_free(MEM_OTHER, net->worker);
    pthread_mutex_destroy(&net->lock);
    mem_free(MEM_OTHER, net);
}

enum status net_check_tls(const struct conf *conf, char err[ERR_MAX])
{
    struct ssl_ctx_st *ctx = NULL;
    enum status st = conf->tls_port ? tls_context_create(conf, &ctx, err) : ST_OK;
    tls_context_free(ctx);
    return st;
}

int net_port(const struct net *net)
{
    return net->naddrs ? (net->port ? net->port : net->tls_port) : 0;
}
