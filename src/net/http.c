/* The HTTP port, served by libmicrohttpd: a thread that accepts, and one for each of the few connections, so that a probe does
 * not wait for a scrape that something holds up. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <microhttpd.h>

#include "tiercel/http.h"
#include "tiercel/log.h"

#include "net/net_priv.h"

/* Bounds, not settings: scrapers and probes are few, and what exceeds these is neither. */
#define CONNECTIONS_MAX 64
#define CONNECTIONS_PER_HOST 48 /* one host alone cannot keep the others out */
#define STACK_BYTES (512 << 10)
#define CONNECTION_BYTES 16384
#define IDLE_SECONDS 10
#define BACKLOG 64

enum phase { LOADING, SERVING, STOPPING };

struct http {
    struct http_options opt; /* bind is not used after the start */
    struct MHD_Daemon *daemon;
    int port;
    bool local;
    pthread_mutex_t lock; /* held while a callback runs; nothing but the callbacks' own locks is taken under it */
    enum phase phase;
    void *arg;
    struct http_gate *gate;
};

static enum MHD_Result reply(struct MHD_Connection *conn, unsigned status, const char *type, struct slice body)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(body.len, (void *)(uintptr_t)body.ptr, MHD_RESPMEM_MUST_COPY);
    if (r == NULL)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    if (status == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(r, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer realm=\"tiercel\"");
    enum MHD_Result rc = MHD_queue_response(conn, status, r);
    MHD_destroy_response(r);
    return rc;
}

static enum MHD_Result reply_text(struct MHD_Connection *conn, unsigned status, const char *text)
{
    return reply(conn, status, "text/plain; charset=utf-8", slice_str(text));
}

static enum MHD_Result serve_metrics(struct http *h, struct MHD_Connection *conn)
{
    struct buf out;
    unsigned refused = http_gate_check(h->gate, conn);
    if (refused == MHD_HTTP_UNAUTHORIZED)
        return reply_text(conn, refused, "the token is missing or wrong: Authorization: Bearer <http-token>\n");
    if (refused != 0)
        return reply_text(conn, refused,
                          "protected mode: without an http-token, other hosts get no metrics; set http-token, "
                          "or protected-mode no\n");
    buf_init(&out, MEM_OTHER);
    pthread_mutex_lock(&h->lock);
    enum phase phase = h->phase;
    if (phase == SERVING) {
        buf_reserve(&out, 65536);
        h->opt.metrics(h->arg, &out);
    }
    pthread_mutex_unlock(&h->lock);
    enum MHD_Result rc =
        phase == SERVING
            ? reply(conn, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", buf_slice(&out))
            : reply_text(conn, MHD_HTTP_SERVICE_UNAVAILABLE, phase == LOADING ? "loading\n" : "stopping\n");
    buf_deinit(&out);
    return rc;
}

static enum MHD_Result serve_ready(struct http *h, struct MHD_Connection *conn)
{
    struct buf json;
    bool ready = false, detail = http_gate_check_quietly(h->gate, conn);
    buf_init(&json, MEM_OTHER);
    pthread_mutex_lock(&h->lock);
    if (h->phase == SERVING)
        ready = h->opt.ready(h->arg, detail, &json);
    else
        buf_printf(&json, "{\"ready\":false,\"state\":\"%s\"}", h->phase == LOADING ? "loading" : "stopping");
    pthread_mutex_unlock(&h->lock);
    buf_byte(&json, '\n');
    enum MHD_Result rc =
        reply(conn, ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, "application/json", buf_slice(&json));
    buf_deinit(&json);
    return rc;
}

static enum MHD_Result serve(void *arg, struct MHD_Connection *conn, const char *url, const char *method,
                             const char *version, const char *upload, size_t *upload_size, void **state)
{
    static char headers_seen;
    struct http *h = arg;
    (void)version;
    (void)upload;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return reply_text(conn, MHD_HTTP_METHOD_NOT_ALLOWED, "method not allowed\n");
    if (*state == NULL) { /* the library calls once for the headers, then for the body or its end */
        *state = &headers_seen;
        return MHD_YES;
    }
    if (*upload_size != 0)
        return MHD_NO; /* a GET with a body: the connection is closed */
    if (strcmp(url, "/metrics") == 0)
        return serve_metrics(h, conn);
    if (strcmp(url, "/healthz") == 0)
        return reply_text(conn, MHD_HTTP_OK, "ok\n");
    if (strcmp(url, "/readyz") == 0)
        return serve_ready(h, conn);
    return reply_text(conn, MHD_HTTP_NOT_FOUND, "not found; there are /metrics, /healthz and /readyz\n");
}

__attribute__((format(printf, 2, 0))) static void log_library(void *arg, const char *fmt, va_list ap)
{
    char text[256];
    (void)arg;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    log_verbose("http", "%s", text);
}

static int listen_address(const struct addrinfo *a, bool all)
{
    int on = 1, v6only = !all;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof(v6only));
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static int bound_port(int fd)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);
    if (getsockname(fd, (struct sockaddr *)&addr, &len) != 0)
        return 0;
    return ntohs(addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
                                            : ((struct sockaddr_in *)&addr)->sin_port);
}

/* A listening socket of our own making: the library's own would say only that it failed.
 * "*" is one socket for both families where there is IPv6, else one for IPv4. */
static int listen_on(const struct http_options *opt, char err[256])
{
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char service[16];
    bool all = strcmp(opt->bind, "*") == 0 || opt->bind[0] == '\0';
    snprintf(service, sizeof(service), "%d", opt->port);
    int rc = getaddrinfo(all ? NULL : opt->bind, service, &hints, &list);
    if (rc != 0) {
        snprintf(err, 256, "http-bind: cannot use the address '%.128s': %s", opt->bind, gai_strerror(rc));
        return -1;
    }
    int fd = -1, saved = EAFNOSUPPORT;
    const int families[] = {AF_INET6, AF_INET};
    for (int pass = 0; fd < 0 && pass < 2 && saved != EADDRINUSE; pass++) {
        for (struct addrinfo *a = list; fd < 0 && a != NULL; a = a->ai_next) {
            if (all && a->ai_family != families[pass])
                continue;
            fd = listen_address(a, all);
            if (fd < 0)
                saved = errno;
        }
        if (!all)
            break;
    }
    freeaddrinfo(list);
    if (fd < 0)
        snprintf(err, 256, "http-port: cannot listen on %.128s port %d: %s", all ? "*" : opt->bind, opt->port,
                 strerror(saved));
    return fd;
}

static struct MHD_Daemon *start_daemon(struct http *h, int fd)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_AUTO | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_ERROR_LOG, 0, NULL,
        NULL, serve, h, MHD_OPTION_EXTERNAL_LOGGER, log_library, NULL, /* first: the others may complain through it */
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)CONNECTIONS_PER_HOST, MHD_OPTION_THREAD_STACK_SIZE,
        (size_t)STACK_BYTES, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS, MHD_OPTION_END);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return d;
}

static void http_free(struct http *h)
{
    http_gate_destroy(h->gate);
    pthread_mutex_destroy(&h->lock);
    mem_free(MEM_OTHER, h);
}

enum status http_start(const struct http_options *opt, struct http **out, char err[256])
{
    *out = NULL;
    int fd = listen_on(opt, err);
    if (fd < 0)
        return ST_BAD;
    struct http *h = mem_calloc(MEM_OTHER, sizeof(*h));
    h->opt = *opt;
    h->opt.bind = NULL;
    h->port = bound_port(fd);
    h->local = http_gate_is_local(fd);
    h->gate = http_gate_create();
    pthread_mutex_init(&h->lock, NULL);
    h->daemon = start_daemon(h, fd);
    if (h->daemon == NULL) {
        snprintf(err, 256, "http-port: the HTTP server cannot be started on port %d", h->port);
        close(fd);
        http_free(h);
        return ST_BAD;
    }
    *out = h;
    return ST_OK;
}

static void set_phase(struct http *h, enum phase phase, void *arg)
{
    if (h == NULL)
        return;
    pthread_mutex_lock(&h->lock);
    if (h->phase != STOPPING) {
        h->phase = phase;
        h->arg = arg;
    }
    pthread_mutex_unlock(&h->lock);
}

void http_serve(struct http *h, void *arg)
{
    set_phase(h, SERVING, arg);
}

void http_drain(struct http *h)
{
    set_phase(h, STOPPING, NULL);
}

void http_set_access(struct http *h, const struct http_access *access)
{
    if (h != NULL)
        http_gate_set(h->gate, access);
}

bool http_is_local(const struct http *h)
{
    return h->local;
}

void http_stop(struct http *h)
{
    if (h == NULL)
        return;
    MHD_stop_daemon(h->daemon); /* closes the socket and joins the thread */
    http_free(h);
}

int http_port(const struct http *h)
{
    return h->port;
}
