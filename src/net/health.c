/* The health check of containers: one question to a server on this machine. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tiercel/clock.h"
#include "tiercel/conf.h"
#include "tiercel/health.h"

#define DEADLINE_MS 3000
#define DEADLINE_S 5          /* for what has no deadline of its own: resolving a name */
#define ANSWER_MAX 4096       /* bytes of an answer that are looked at */
#define ARGUMENTS_BYTES 65536 /* of process 1's command line */
#define ARGUMENTS_MAX 256

struct target {
    char host[256]; /* a path of a Unix socket when port is 0 */
    int port;
    bool http;
};

bool health_is_asked(int argc, char *const *argv)
{
    return argc > 1 && (strcmp(argv[1], "--health") == 0 || strcmp(argv[1], "--ready") == 0);
}

static int fail(const char *what, const char *why)
{
    fprintf(stderr, "tiercel: %s: %s\n", what, why);
    return 1;
}

/* Where to reach what listens on `bind`: the first address of the list, and loopback where it stands for all. */
static void reachable(const char *bind, char host[256])
{
    bind += *bind == '-';
    size_t n = strcspn(bind, " ");
    snprintf(host, 256, "%.*s", (int)(n < 255 ? n : 255), bind);
    if (n == 0 || strcmp(host, "*") == 0 || strcmp(host, "0.0.0.0") == 0)
        snprintf(host, 256, "127.0.0.1");
    else if (strcmp(host, "::") == 0)
        snprintf(host, 256, "::1");
}

/* false: there is nothing that could be asked, as *why says. */
static bool find_target(const struct conf *c, bool ready, struct target *t, const char **why)
{
    t->http = c->http_port != 0;
    t->port = (int)(t->http ? c->http_port : c->port);
    if (!t->http && ready) {
        *why = "needs http-port, which is 0";
        return false;
    }
    if (t->port != 0) {
        reachable(t->http ? c->http_bind : c->bind, t->host);
        return true;
    }
    if (c->unixsocket[0] == '\0' || strlen(c->unixsocket) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        *why = "http-port and port are 0, and there is no unixsocket";
        return false;
    }
    snprintf(t->host, sizeof(t->host), "%s", c->unixsocket);
    return true;
}

/* Waits for the socket until the deadline. */
static bool wait_for(int fd, short events, int64_t deadline_ms)
{
    for (;;) {
        int64_t left = deadline_ms - clock_mono_ms();
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, left > 0 ? (int)left : 0);
        if (n > 0)
            return true;
        if (n == 0) {
            errno = ETIMEDOUT;
            return false;
        }
        if (errno != EINTR)
            return false;
    }
}

static int connect_address(const struct sockaddr *addr, socklen_t len, int64_t deadline_ms)
{
    int failed = 0;
    socklen_t size = sizeof(failed);
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, addr, len) == 0)
        return fd;
    if (errno == EINPROGRESS && wait_for(fd, POLLOUT, deadline_ms)) {
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &size);
        if (failed == 0)
            return fd;
        errno = failed;
    }
    failed = errno;
    close(fd);
    errno = failed;
    return -1;
}

static int connect_target(const struct target *t, int64_t deadline_ms)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char service[16];
    int fd = -1;

    if (t->port == 0) {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        memcpy(un.sun_path, t->host, strlen(t->host) + 1);
        return connect_address((struct sockaddr *)&un, sizeof(un), deadline_ms);
    }
    snprintf(service, sizeof(service), "%d", t->port);
    if (getaddrinfo(t->host, service, &hints, &list) != 0) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    for (struct addrinfo *a = list; fd < 0 && a != NULL; a = a->ai_next)
        fd = connect_address(a->ai_addr, a->ai_addrlen, deadline_ms);
    freeaddrinfo(list);
    return fd;
}

/* Sends the question and reads the answer, up to its end or what is needed of it; its length, or -1: errno. */
static ssize_t ask(int fd, const char *question, bool whole, char answer[ANSWER_MAX + 1], int64_t deadline_ms)
{
    size_t sent = 0, got = 0, len = strlen(question);

    while (sent < len) {
        ssize_t n = wait_for(fd, POLLOUT, deadline_ms) ? send(fd, question + sent, len - sent, MSG_NOSIGNAL) : -1;
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -1;
        sent += n > 0 ? (size_t)n : 0;
    }
    while (got < ANSWER_MAX) {
        ssize_t n = wait_for(fd, POLLIN, deadline_ms) ? recv(fd, answer + got, ANSWER_MAX - got, 0) : -1;
        if (n == 0)
            break;
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -1;
        got += n > 0 ? (size_t)n : 0;
        if (!whole && got > 0)
            break;
    }
    answer[got] = '\0';
    return (ssize_t)got;
}

static int judge_http(char *answer, const char *url)
{
    char *body = strstr(answer, "\r\n\r\n");

    if (strncmp(answer, "HTTP/1.", 7) == 0 && strncmp(answer + 8, " 200", 4) == 0)
        return 0;
    answer[strcspn(answer, "\r\n")] = '\0';
    if (body != NULL)
        body[4 + strcspn(body + 4, "\r\n")] = '\0';
    fprintf(stderr, "tiercel: %s: %s%s%s\n", url, answer[0] ? answer : "no answer", body ? ": " : "",
            body ? body + 4 : "");
    return 1;
}

static int question(const struct target *t, bool ready)
{
    char answer[ANSWER_MAX + 1], where[320], text[512];
    const char *url = ready ? "/readyz" : "/healthz";
    int64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;
    bool v6 = strchr(t->host, ':') != NULL;

    snprintf(where, sizeof(where), t->port ? "%s port %d" : "%s", t->host, t->port);
    int fd = connect_target(t, deadline_ms);
    if (fd < 0)
        return fail(where, strerror(errno));
    if (t->http)
        snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: %s%s%s\r\nConnection: close\r\n\r\n", url, v6 ? "[" : "",
                 t->host, v6 ? "]" : "");
    else
        snprintf(text, sizeof(text), "PING\r\n");
    ssize_t n = ask(fd, text, t->http, answer, deadline_ms);
    close(fd);
    if (n < 0)
        return fail(where, errno == ETIMEDOUT ? "no answer in time" : strerror(errno));
    if (t->http)
        return judge_http(answer, url);
    if (answer[0] == '+' || answer[0] == '-') /* whoever refuses is alive */
        return 0;
    return fail(where, n == 0 ? "no answer" : "this is no Redis protocol");
}

/* The arguments of process 1, if it is a server of this program: their number, argv[0] among them; else 0. */
static int first_process(char *bytes, char *args[ARGUMENTS_MAX + 1])
{
    size_t len = 0;
    ssize_t n;
    int count = 0;
    int fd = getpid() == 1 ? -1 : open("/proc/1/cmdline", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    while (len < ARGUMENTS_BYTES && (n = read(fd, bytes + len, ARGUMENTS_BYTES - len)) > 0)
        len += (size_t)n;
    close(fd);
    if (len >= ARGUMENTS_BYTES) /* there may be more */
        return 0;
    bytes[len] = '\0';
    for (size_t at = 0; at < len && count < ARGUMENTS_MAX; at += strlen(bytes + at) + 1)
        args[count++] = bytes + at;
    args[count] = NULL;
    const char *name = count > 0 ? strrchr(args[0], '/') : NULL;
    name = name ? name + 1 : count > 0 ? args[0] : "";
    return strcmp(name, "tiercel") == 0 ? count : 0;
}

int health_run(int argc, char **argv, char **envp)
{
    static char bytes[ARGUMENTS_BYTES + 1], nothing[] = "/dev/null";
    static char *first[ARGUMENTS_MAX + 1];
    const bool ready = strcmp(argv[1], "--ready") == 0;
    struct target t = {.port = 0};
    struct conf *c = NULL;
    const char *why = NULL;
    bool exit_now;
    struct buf err;

    alarm(DEADLINE_S);
    char **args = argv + 1; /* in the place of argv[0] */
    int n = argc - 1;
    if (n == 1 && (n = first_process(bytes, first)) > 1)
        args = first;
    n = n > 0 ? n : 1;
    if (n > 1 && strcmp(args[1], "-") == 0) /* the server has read its standard input */
        args[1] = nothing;
    buf_init(&err, MEM_OTHER);
    if (conf_load(n, args, envp, &c, &exit_now, &err) != ST_OK) {
        fprintf(stderr, "tiercel: %.*s\n", SLICE_FMT(buf_slice(&err)));
        buf_deinit(&err);
        return 1;
    }
    buf_deinit(&err);
    if (exit_now)
        return 1; /* --health --help: it has been printed */
    int rc = find_target(c, ready, &t, &why) ? question(&t, ready) : fail(argv[1], why);
    conf_unref(c);
    return rc;
}
