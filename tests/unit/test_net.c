/* The net layer over real sockets; the server below it is in net_server.h. */
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cmocka.h>

#include "net_server.h"
#include "tiercel/buf.h"
#include "tiercel/hash.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW 8 /* sanitizers: less of everything */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLOW 8
#endif
#endif
#ifndef SLOW
#define SLOW 1
#endif

#define WAIT_MS 20000

/* ---- a client ----------------------------------------------------------------------------- */

static int dial_to(const char *ip, int port)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(inet_pton(AF_INET, ip, &sa.sin_addr), 1);
    if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int dial(const struct test_server *srv)
{
    int fd = dial_to("127.0.0.1", net_port(srv->net));
    assert_true(fd >= 0);
    return fd;
}

static int dial_unix(const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    return fd;
}

static void send_all(int fd, const void *ptr, size_t len)
{
    const char *p = ptr;
    while (len) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n <= 0)
            fail_msg("send: %s", strerror(errno));
        p += n;
        len -= (size_t)n;
    }
}

static void send_str(int fd, const char *str)
{
    send_all(fd, str, strlen(str));
}

static bool readable(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ms) > 0;
}

/* -1: closed or reset. */
static ssize_t recv_some(int fd, void *ptr, size_t len)
{
    if (!readable(fd, WAIT_MS))
        fail_msg("no answer");
    ssize_t n = recv(fd, ptr, len, 0);
    return n > 0 ? n : -1;
}

static void expect_bytes(int fd, const void *want, size_t len)
{
    const char *w = want;
    char got[65536];
    while (len) {
        ssize_t n = recv_some(fd, got, len < sizeof(got) ? len : sizeof(got));
        if (n < 0)
            fail_msg("closed with %zu bytes missing", len);
        if (memcmp(got, w, (size_t)n) != 0)
            fail_msg("other bytes than expected: '%.*s' for '%.*s'", (int)(n < 200 ? n : 200), got,
                     (int)(n < 200 ? n : 200), w);
        w += n;
        len -= (size_t)n;
    }
}

static void expect(int fd, const char *want)
{
    expect_bytes(fd, want, strlen(want));
}

/* Reads until the end; returns how many bytes came. */
static size_t expect_closed(int fd)
{
    char buf[65536];
    size_t sum = 0;
    ssize_t n;
    while ((n = recv_some(fd, buf, sizeof(buf))) > 0)
        sum += (size_t)n;
    close(fd);
    return sum;
}

static void skip_bytes(int fd, size_t len)
{
    static char buf[1 << 18];
    while (len) {
        ssize_t n = recv_some(fd, buf, len < sizeof(buf) ? len : sizeof(buf));
        assert_true(n > 0);
        len -= (size_t)n;
    }
}

static void wait_for(bool (*cond)(void *arg), void *arg)
{
    for (int i = 0; i < WAIT_MS && !cond(arg); i++)
        poll(NULL, 0, 1);
    assert_true(cond(arg));
}

static bool sessions_are(void *arg)
{
    return atomic_load(&test_sessions) == *(int *)arg;
}

static void wait_sessions(int n)
{
    wait_for(sessions_are, &n);
}

/* ---- requests ------------------------------------------------------------------------------- */

static void add_request(struct buf *b, const char *cmd, struct slice arg)
{
    buf_printf(b, "*2\r\n$%zu\r\n%s\r\n$%zu\r\n", strlen(cmd), cmd, arg.len);
    buf_slice_append(b, arg);
    buf_append(b, "\r\n", 2);
}

static void add_bulk(struct buf *b, struct slice s)
{
    buf_printf(b, "$%zu\r\n", s.len);
    buf_slice_append(b, s);
    buf_append(b, "\r\n", 2);
}

/* A pipeline and what must come back; some requests wait, some are inline. */
static void make_pipeline(struct buf *req, struct buf *rep, int n, size_t longest, bool later, uint64_t *rng)
{
    static char text[1 << 20];
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)('a' + i * 7 % 26);
    for (int i = 0; i < n; i++) {
        uint64_t r = rng_next(rng);
        size_t len = r % 100 == 0 ? r / 128 % longest : r / 128 % 40;
        struct slice s = SLICE(text + r % 1000, len);
        if (r % 7 == 0) {
            buf_printf(req, "PING\r\n%s", r % 14 == 0 ? "\r\n" : "");
            buf_append(rep, "+PONG\r\n", 7);
        } else {
            add_request(req, later && r % 11 == 0 ? "LATER" : "ECHO", s);
            add_bulk(rep, s);
        }
    }
}

/* Sends in pieces of any size while it reads what comes: both at their own pace. */
static void exchange(int fd, const struct buf *req, const struct buf *rep, size_t piece, uint64_t *rng)
{
    size_t sent = 0, got = 0;
    char buf[32768];
    while (got < rep->len) {
        struct pollfd p = {.fd = fd, .events = (short)(POLLIN | (sent < req->len ? POLLOUT : 0))};
        if (poll(&p, 1, WAIT_MS) <= 0)
            fail_msg("stuck: %zu of %zu sent, %zu of %zu received", sent, req->len, got, rep->len);
        if (p.revents & POLLOUT) {
            size_t n = 1 + rng_next(rng) % piece;
            ssize_t w =
                send(fd, req->ptr + sent, n < req->len - sent ? n : req->len - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            sent += w > 0 ? (size_t)w : 0;
        }
        if (p.revents & POLLIN) {
            ssize_t n = recv(fd, buf, 1 + rng_next(rng) % sizeof(buf), MSG_DONTWAIT);
            assert_true(n > 0);
            assert_true(got + (size_t)n <= rep->len);
            assert_memory_equal(buf, rep->ptr + got, (size_t)n);
            got += (size_t)n;
        }
    }
}

/* ---- tests: bytes ------------------------------------------------------------------------------ */

static void test_pipelines(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 2);
    uint64_t rng = 42;
    static const size_t pieces[] = {1, 7, 100, 5000, 200000};
    for (int later = 0; later < 2; later++) {
        for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
            struct buf req, rep;
            buf_init(&req, MEM_OTHER);
            buf_init(&rep, MEM_OTHER);
            int n = pieces[i] < 100 ? 300 : 6000 / SLOW;
            make_pipeline(&req, &rep, n, pieces[i] < 100 ? 1000 : 300000, later, &rng);
            int fd = dial(srv);
            exchange(fd, &req, &rep, pieces[i], &rng);
            assert_false(readable(fd, 5));
            close(fd);
            buf_deinit(&req);
            buf_deinit(&rep);
        }
    }
    test_server_stop(srv);
}

/* Sends a whole pipeline before it reads, as many clients do. */
static void test_deep_pipeline(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 1);
    struct buf req, rep;
    buf_init(&req, MEM_OTHER);
    buf_init(&rep, MEM_OTHER);
    int n = 300000 / SLOW;
    for (int i = 0; i < n; i++)
        buf_printf(&req, "*2\r\n$3\r\nBIG\r\n$3\r\n300\r\n*2\r\n$4\r\nECHO\r\n$6\r\n%06d\r\n", i);
    atomic_store(&test_max_out, 0);
    int fd = dial(srv), other = dial(srv);
    send_all(fd, req.ptr, req.len);
    send_str(other, "PING\r\n"); /* the other is served meanwhile */
    expect(other, "+PONG\r\n");
    assert_true(atomic_load(&test_max_out) < 3 << 20);
    char big[300];
    memset(big, 'b', sizeof(big));
    for (int i = 0; i < n; i++) {
        char num[16];
        snprintf(num, sizeof(num), "%06d", i);
        add_bulk(&rep, SLICE(big, 300));
        add_bulk(&rep, SLICE(num, 6));
    }
    expect_bytes(fd, rep.ptr, rep.len);
    close(fd);
    close(other);
    buf_deinit(&req);
    buf_deinit(&rep);
    test_server_stop(srv);
}

static void test_half_requests(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 2);
    enum { N = 100 };
    int fd[N];
    static const char text[] = "*2\r\n$4\r\nECHO\r\n$11\r\nhello world\r\n";
    for (int i = 0; i < N; i++) {
        fd[i] = dial(srv);
        send_all(fd[i], text, (size_t)i % (sizeof(text) - 1));
    }
    int whole = dial(srv);
    send_str(whole, "PING\r\n");
    expect(whole, "+PONG\r\n");
    close(whole);
    for (int i = 0; i < N; i++) {
        assert_false(readable(fd[i], 0));
        send_str(fd[i], text + (size_t)i % (sizeof(text) - 1));
        expect(fd[i], "$11\r\nhello world\r\n");
        close(fd[i]);
    }
    test_server_stop(srv);
}

static void test_huge_bulk(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 1);
    size_t len = ((size_t)100 << 20) / SLOW;
    char *value = malloc(len), head[64], want[64];
    memset(value, 'x', len);
    int n = snprintf(head, sizeof(head), "*2\r\n$3\r\nLEN\r\n$%zu\r\n", len);
    snprintf(want, sizeof(want), "*2\r\n:%zu\r\n:%zu\r\n", len, len * 'x');
    int64_t before = mem_class_bytes(MEM_CLIENT);
    int fd = dial(srv);
    for (int i = 0; i < 3; i++) {
        send_all(fd, head, (size_t)n);
        send_all(fd, value, len);
        send_str(fd, "\r\nPING\r\n");
        expect(fd, want);
        expect(fd, "+PONG\r\n");
    }
    assert_true(mem_class_bytes(MEM_CLIENT) - before < 100000);

    /* Announced is not received: nobody gets half a gigabyte for a line of text. */
    send_str(fd, "*2\r\n$3\r\nLEN\r\n$536870912\r\n");
    send_all(fd, value, 100000);
    poll(NULL, 0, 100);
    assert_true(mem_class_bytes(MEM_CLIENT) - before < 4 << 20);
    close(fd);
    free(value);
    test_server_stop(srv);
}

/* Many small arguments in one request that is larger than the shared buffer. */
static void test_many_arguments(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 1);
    struct buf req;
    buf_init(&req, MEM_OTHER);
    buf_printf(&req, "*%d\r\n$4\r\nECHO\r\n", 200001);
    for (int i = 0; i < 200000; i++)
        buf_printf(&req, "$6\r\n%06d\r\n", i);
    int fd = dial(srv);
    for (int i = 0; i < 2; i++) {
        send_all(fd, req.ptr, req.len);
        send_str(fd, "PING\r\n");
        expect(fd, "$6\r\n000000\r\n+PONG\r\n");
    }
    close(fd);
    buf_deinit(&req);
    test_server_stop(srv);
}

static void test_ends(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 1);
    int fd = dial(srv);
    send_str(fd, "LATER a\r\nPING\r\n*1\r\n$-5\r\nPING\r\n"); /* the error comes in its turn, too */
    expect(fd, "$1\r\na\r\n+PONG\r\n-ERR Protocol error: invalid bulk length\r\n");
    assert_int_equal(expect_closed(fd), 0);

    fd = dial(srv);
    send_str(fd, "PING\r\nQUIT\r\nPING\r\n");
    expect(fd, "+PONG\r\n+OK\r\n");
    assert_int_equal(expect_closed(fd), 0);

    /* Half-closed behind a pipeline: all replies, then the end. */
    fd = dial(srv);
    send_str(fd, "ECHO 1\r\nLATER 2\r\nLATER 3\r\nBIG 5000000\r\nECHO 4\r\nhalf a requ");
    shutdown(fd, SHUT_WR);
    expect(fd, "$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n");
    assert_int_equal(expect_closed(fd), strlen("+PONG\r\n$1\r\n4\r\n"));
    fd = dial(srv);
    send_str(fd, "BIG 5000000\r\n");
    shutdown(fd, SHUT_WR);
    assert_int_equal(expect_closed(fd), strlen("$5000000\r\n\r\n") + 5000000);

    /* Who blocks and hangs up is forgotten at once, even where nobody reads any more. */
    for (int depth = 0; depth < 2; depth++) {
        fd = dial(srv);
        send_str(fd, "BLOCK\r\n");
        for (int i = 0; i < depth * 2 * TEST_QUEUE_MAX; i++)
            send_str(fd, "PING\r\n");
        wait_sessions(1);
        poll(NULL, 0, 50);
        close(fd);
        wait_sessions(0);
    }
    test_server_stop(srv);
}

/* ---- tests: bounds ------------------------------------------------------------------------------- */

static void test_slow_reader(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 1);
    struct buf req;
    buf_init(&req, MEM_OTHER);
    enum { N = 400, EACH = 100000 };
    for (int i = 0; i < N; i++)
        buf_printf(&req, "BIG %d\r\n", EACH);
    atomic_store(&test_max_out, 0);
    int fd = dial(srv), other = dial(srv);
    send_all(fd, req.ptr, req.len);
    for (int i = 0; i < 50; i++) {
        send_str(other, "PING\r\n");
        expect(other, "+PONG\r\n");
    }
    assert_true(atomic_load(&test_max_out) < 2 << 20);
    skip_bytes(fd, (size_t)N * (EACH + strlen("$100000\r\n\r\n")));
    assert_false(readable(fd, 10));
    close(fd);
    close(other);
    buf_deinit(&req);
    test_server_stop(srv);
}

static void test_output_limits(void **state)
{
    (void)state;
    struct conf *conf = test_conf();
    conf->obuf[OBUF_NORMAL] = (struct conf_obuf_limit){20 << 20, 0, 0};
    conf->obuf[OBUF_PUBSUB] = (struct conf_obuf_limit){64 << 20, 1 << 20, 1};
    struct test_server *srv = test_server_start(conf, 1);
    uint64_t before = stats_sum(STAT_client_output_buffer_limit_disconnections);
    int hard = dial(srv), soft = dial(srv), fine = dial(srv);
    send_str(hard, "BIG 21000000\r\n");
    assert_true(expect_closed(hard) < 21000000);
    send_str(soft, "CLASS\r\nBIG 21000000\r\n");
    send_str(fine, "CLASS\r\nBIG 21000000\r\n");
    expect(soft, "+OK\r\n");
    expect(fine, "+OK\r\n");
    skip_bytes(fine, 21000000 + strlen("$21000000\r\n\r\n"));
    poll(NULL, 0, 2500);
    send_str(fine, "PING\r\n");
    expect(fine, "+PONG\r\n");
    close(fine);
    assert_true(expect_closed(soft) < 21000000);
    assert_int_equal(stats_sum(STAT_client_output_buffer_limit_disconnections) - before, 2);
    test_server_stop(srv);
}

static void test_query_limit(void **state)
{
    (void)state;
    struct conf *conf = test_conf();
    conf->client_query_buffer_limit = 1 << 20;
    struct test_server *srv = test_server_start(conf, 1);
    char *piece = calloc(1, 1 << 20);
    int fd = dial(srv);
    send_str(fd, "*2\r\n$4\r\nECHO\r\n$30000000\r\n"); /* more than comes: it cannot be answered */
    for (int i = 0; i < 3; i++)
        if (send(fd, piece, 1 << 20, MSG_NOSIGNAL) < 0)
            break;
    assert_int_equal(expect_closed(fd), 0);
    assert_int_equal(stats_sum(STAT_client_query_buffer_limit_disconnections), 1);
    free(piece);
    test_server_stop(srv);
}

static bool rejected_are(void *arg)
{
    return stats_sum(STAT_rejected_connections) == *(uint64_t *)arg;
}

static void test_max_clients(void **state)
{
    (void)state;
    struct conf *conf = test_conf();
    conf->maxclients = 5;
    struct test_server *srv = test_server_start(conf, 2);
    assert_int_equal(srv->maxclients, 5);
    uint64_t before = stats_sum(STAT_rejected_connections);
    int fd[5];
    for (int i = 0; i < 5; i++) {
        fd[i] = dial(srv);
        send_str(fd[i], "PING\r\n");
        expect(fd[i], "+PONG\r\n");
    }
    int more = dial(srv);
    expect(more, "-ERR max number of clients reached\r\n");
    expect_closed(more);
    before++;
    wait_for(rejected_are, &before); /* counted after the socket was closed */
    assert_int_equal(stats_sum(STAT_connected_clients), 5);
    close(fd[0]);
    wait_sessions(4);
    poll(NULL, 0, 50); /* the place is free a moment after the session is gone */
    more = dial(srv);
    send_str(more, "PING\r\n");
    expect(more, "+PONG\r\n");
    close(more);
    for (int i = 1; i < 5; i++)
        close(fd[i]);
    wait_sessions(0);
    assert_int_equal(stats_sum(STAT_connected_clients), 0);
    test_server_stop(srv);
}

static void test_idle_timeout(void **state)
{
    (void)state;
    struct conf *conf = test_conf();
    conf->timeout = 1;
    struct test_server *srv = test_server_start(conf, 1);
    int idle = dial(srv), blocked = dial(srv), pubsub = dial(srv);
    send_str(blocked, "BLOCK\r\n");
    send_str(pubsub, "CLASS\r\n");
    expect(pubsub, "+OK\r\n");
    assert_int_equal(expect_closed(idle), 0);
    poll(NULL, 0, 1500);
    assert_false(readable(blocked, 0));
    assert_false(readable(pubsub, 0));
    close(blocked);
    close(pubsub);
    test_server_stop(srv);
}

static void test_client_memory(void **state)
{
    (void)state;
    struct conf *conf = test_conf();
    conf->maxmemory_clients = 3 << 20;
    struct test_server *srv = test_server_start(conf, 2);
    char *piece = calloc(1, 1 << 20);
    int small = dial(srv), keep = dial(srv), large = dial(srv);
    send_str(keep, "KEEP\r\n*2\r\n$4\r\nECHO\r\n$3000000\r\n");
    expect(keep, "+OK\r\n");
    send_all(keep, piece, 1 << 20);
    send_str(large, "*2\r\n$4\r\nECHO\r\n$9000000\r\n");
    for (int i = 0; i < 8; i++)
        if (send(large, piece, 1 << 20, MSG_NOSIGNAL) < 0)
            break;
    assert_int_equal(expect_closed(large), 0);
    assert_int_equal(stats_sum(STAT_evicted_clients), 1);
    send_str(small, "PING\r\n");
    expect(small, "+PONG\r\n");
    assert_false(readable(keep, 0));
    close(small);
    close(keep);
    free(piece);
    test_server_stop(srv);
}

static void test_unauthenticated(void **state)
{
    (void)state;
    struct conf *conf = test_conf();
    conf->requirepass = "secret";
    struct test_server *srv = test_server_start(conf, 1);
    int fd = dial(srv);
    send_str(fd, "*11\r\n");
    expect(fd, "-ERR Protocol error: unauthenticated multibulk length\r\n");
    expect_closed(fd);
    fd = dial(srv);
    send_str(fd, "*2\r\n$4\r\nECHO\r\n$16385\r\n");
    expect(fd, "-ERR Protocol error: unauthenticated bulk length\r\n");
    expect_closed(fd);
    fd = dial(srv);
    send_str(fd, "AUTH secret\r\n*2\r\n$3\r\nLEN\r\n$16385\r\n"); /* in one piece */
    char text[16387];
    memset(text, 1, 16385);
    memcpy(text + 16385, "\r\n", 2);
    send_all(fd, text, sizeof(text));
    expect(fd, "+OK\r\n*2\r\n:16385\r\n:16385\r\n");
    close(fd);
    test_server_stop(srv);
}

/* ---- tests: listening ------------------------------------------------------------------------------ */

static bool other_address(char out[INET_ADDRSTRLEN])
{
    struct ifaddrs *all;
    bool found = false;
    if (getifaddrs(&all) != 0)
        return false;
    for (struct ifaddrs *i = all; i && !found; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET)
            continue;
        struct in_addr ip = ((struct sockaddr_in *)i->ifa_addr)->sin_addr;
        found = ntohl(ip.s_addr) >> 24 != 127;
        inet_ntop(AF_INET, &ip, out, INET_ADDRSTRLEN);
    }
    freeifaddrs(all);
    return found;
}

static void test_protected_mode(void **state)
{
    (void)state;
    char ip[INET_ADDRSTRLEN], head[64] = "";
    if (!other_address(ip))
        skip();
    struct conf *conf = test_conf();
    conf->bind = "*";
    struct test_server *srv = test_server_start(conf, 1);
    int fd = dial(srv);
    send_str(fd, "PING\r\n");
    expect(fd, "+PONG\r\n");
    close(fd);
    fd = dial_to(ip, net_port(srv->net));
    assert_true(fd >= 0);
    assert_true(recv(fd, head, 47, MSG_WAITALL) == 47);
    assert_string_equal(head, "-DENIED Redis is running in protected mode beca");
    assert_int_equal(expect_closed(fd), 1067 - 47);
    conf->requirepass = "secret";
    fd = dial_to(ip, net_port(srv->net));
    send_str(fd, "PING\r\n");
    expect(fd, "+PONG\r\n");
    close(fd);
    test_server_stop(srv);
}

static void test_addresses(void **state)
{
    (void)state;
    char err[256];
    int64_t maxclients;
    struct net *net;
    struct conf *conf = test_conf();
    conf->bind = "127.0.0.1 127.0.0.2 127.0.0.1 -192.0.2.77";
    struct test_server *srv = test_server_start(conf, 2);
    int fd = dial_to("127.0.0.2", net_port(srv->net));
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(dial_to("127.0.0.3", net_port(srv->net)), -1);

    /* A port in use is an error, although sockets could share it. */
    struct conf *second = test_conf();
    second->port = conf->port;
    assert_int_equal(net_listen(second, 2, &net, &maxclients, err), ST_IO);
    assert_non_null(strstr(err, "cannot listen on 127.0.0.1 port "));
    second->bind = "192.0.2.77";
    assert_int_equal(net_listen(second, 2, &net, &maxclients, err), ST_IO);
    second->bind = "";
    assert_int_equal(net_listen(second, 2, &net, &maxclients, err), ST_BAD);
    free(second);
    test_server_stop(srv);
}

static void test_unix_socket(void **state)
{
    (void)state;
    char path[64], err[256];
    struct net *net;
    int64_t maxclients;
    snprintf(path, sizeof(path), "/tmp/tiercel-net-%d.sock", (int)getpid());
    struct conf *conf = test_conf();
    conf->port = 0;
    conf->unixsocket = path;
    conf->unixsocketperm = "700";
    /* A file is not removed; a dead socket is. */
    FILE *f = fopen(path, "w");
    fclose(f);
    assert_int_equal(net_listen(conf, 1, &net, &maxclients, err), ST_IO);
    assert_int_equal(unlink(path), 0);
    int dead = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    assert_int_equal(bind(dead, (struct sockaddr *)&sa, sizeof(sa)), 0);
    close(dead);

    struct test_server *srv = test_server_start(conf, 3);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(net_port(srv->net), 0);
    assert_int_equal(net_listen(conf, 1, &net, &maxclients, err), ST_IO); /* alive: not ours to remove */
    int fd[9], seen[3] = {0};
    for (int i = 0; i < 9; i++) {
        char line[8] = "";
        fd[i] = dial_unix(path);
        send_str(fd[i], "WHERE\r\n");
        assert_int_equal(recv(fd[i], line, 4, MSG_WAITALL), 4);
        seen[line[1] - '0']++;
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(seen[i], 3);
    for (int i = 0; i < 9; i++)
        close(fd[i]);
    for (int i = 0; i < 20; i++) /* some are on their way to a worker that stops */
        fd[i % 9] = dial_unix(path);
    test_server_stop(srv);
    for (int i = 0; i < 9; i++)
        close(fd[i]);
    assert_int_equal(stat(path, &st), -1);
}

static void test_out_of_fds(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 1);
    int fd = dial(srv), late[4];
    send_str(fd, "PING\r\n");
    expect(fd, "+PONG\r\n");
    for (int i = 0; i < 4; i++)
        late[i] = socket(AF_INET, SOCK_STREAM, 0);
    struct rlimit rl, low;
    getrlimit(RLIMIT_NOFILE, &rl);
    low = rl;
    low.rlim_cur = (rlim_t)late[3] + 1; /* lower numbers are all taken */
    for (int i = 3; i < late[3]; i++)
        (void)fcntl(i, F_GETFD);
    int holes[64], n = 0;
    while (n < 64 && (holes[n] = open("/dev/null", O_RDONLY)) >= 0 && holes[n] < late[3])
        n++;
    if (n < 64 && holes[n] >= 0)
        close(holes[n]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((uint16_t)net_port(srv->net))};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(connect(late[i], (struct sockaddr *)&sa, sizeof(sa)), 0);
    send_str(late[0], "PING\r\n");
    uint64_t turns = atomic_load(&test_loop_turns);
    assert_false(readable(late[0], 500));
    assert_true(atomic_load(&test_loop_turns) - turns < 1000); /* two timers, and no spinning */
    send_str(fd, "PING\r\n");
    expect(fd, "+PONG\r\n");
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &rl), 0);
    expect(late[0], "+PONG\r\n");
    for (int i = 0; i < 4; i++)
        close(late[i]);
    while (n > 0)
        close(holes[--n]);
    close(fd);
    test_server_stop(srv);
}

/* ---- tests: many, and any moment ---------------------------------------------------------------------- */

static void test_many_connections(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 4);
    enum { N = 1000 };
    int *fd = malloc(N * sizeof(*fd));
    for (int i = 0; i < N; i++)
        fd[i] = dial(srv);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < N; i++)
            send_str(fd[i], "LATER x\r\nPING\r\nECHO abc\r\n");
        for (int i = 0; i < N; i++)
            expect(fd[i], "$1\r\nx\r\n+PONG\r\n$3\r\nabc\r\n");
    }
    for (int i = 0; i < N; i++)
        close(fd[i]);
    wait_sessions(0);
    free(fd);
    test_server_stop(srv);
}

/* Clients that vanish in the middle of anything, by FIN and by RST. */
static void test_close_any_moment(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 2);
    uint64_t rng = 7;
    enum { N = 40 };
    int fd[N];
    struct buf req, rep;
    buf_init(&req, MEM_OTHER);
    buf_init(&rep, MEM_OTHER);
    make_pipeline(&req, &rep, 500, 100000, true, &rng);
    buf_printf(&req, "BIG 3000000\r\nLATER 1\r\nBIG 3000000\r\n");
    for (int i = 0; i < N; i++)
        fd[i] = dial(srv);
    for (int i = 0; i < 1500 / SLOW; i++) {
        int at = (int)(rng_next(&rng) % N);
        switch (rng_next(&rng) % 4) {
        case 0:
            if (rng_next(&rng) % 2) {
                struct linger reset = {.l_onoff = 1};
                setsockopt(fd[at], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
            }
            close(fd[at]);
            fd[at] = dial(srv);
            break;
        case 1: {
            char buf[20000];
            (void)!recv(fd[at], buf, sizeof(buf), MSG_DONTWAIT);
            break;
        }
        default: {
            size_t from = rng_next(&rng) % req.len, len = rng_next(&rng) % (req.len - from);
            (void)!send(fd[at], req.ptr + from, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        }
    }
    test_server_stop(srv); /* with all of them open, and replies on their way */
    for (int i = 0; i < N; i++)
        close(fd[i]);
    buf_deinit(&req);
    buf_deinit(&rep);
}

static void test_drain(void **state)
{
    (void)state;
    struct test_server *srv = test_server_start(test_conf(), 2);
    int idle = dial(srv), slow = dial(srv), never = dial(srv), blocked = dial(srv);
    send_str(idle, "PING\r\n");
    expect(idle, "+PONG\r\n");
    send_str(blocked, "BLOCK\r\n");
    send_str(slow, "LATER 1\r\nLATER 2\r\nBIG 10000000\r\nECHO end\r\n");
    send_str(never, "BIG 30000000\r\n");
    expect(slow, "$1\r\n1\r\n");
    int64_t t0 = clock_mono_ms();
    test_server_ask_stop(srv, 1500);
    assert_int_equal(expect_closed(idle), 0);
    assert_int_equal(expect_closed(blocked), 0);
    assert_true(clock_mono_ms() - t0 < 1000);
    poll(NULL, 0, 100);
    expect(slow, "$1\r\n2\r\n+PONG\r\n$3\r\nend\r\n");
    assert_int_equal(expect_closed(slow), 0);
    test_server_join(srv);
    assert_true(clock_mono_ms() - t0 >= 1400 && clock_mono_ms() - t0 < 10000);
    close(never);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pipelines),        cmocka_unit_test(test_deep_pipeline),
        cmocka_unit_test(test_half_requests),    cmocka_unit_test(test_huge_bulk),
        cmocka_unit_test(test_many_arguments),   cmocka_unit_test(test_ends),
        cmocka_unit_test(test_slow_reader),      cmocka_unit_test(test_output_limits),
        cmocka_unit_test(test_query_limit),      cmocka_unit_test(test_max_clients),
        cmocka_unit_test(test_idle_timeout),     cmocka_unit_test(test_client_memory),
        cmocka_unit_test(test_unauthenticated),  cmocka_unit_test(test_protected_mode),
        cmocka_unit_test(test_addresses),        cmocka_unit_test(test_unix_socket),
        cmocka_unit_test(test_out_of_fds),       cmocka_unit_test(test_many_connections),
        cmocka_unit_test(test_close_any_moment), cmocka_unit_test(test_drain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
