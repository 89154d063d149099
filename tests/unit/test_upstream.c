/* Needs redis-server; starts it on a free loopback port and ends only what it started. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "tiercel/alloc.h"
#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "tiercel/resp.h"
#include "tiercel/upstream.h"

#define TIMEOUT_MS 500
#define WATCHDOG_MS 100

/* ---- a real redis-server ------------------------------------------------------------- */

struct server {
    pid_t pid;
    int port;
    char dir[64];
};

static struct server server; /* shared by the tests that do not stop it */

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    return ntohs(a.sin_port);
}

static redisContext *dial(const struct server *s)
{
    return redisConnectWithTimeout("127.0.0.1", s->port, (struct timeval){2, 0});
}

static void server_run(struct server *s)
{
    char port[16];
    snprintf(port, sizeof(port), "%d", s->port);
    s->pid = fork();
    assert_true(s->pid >= 0);
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        dup2(null, 2);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly",
               "no", "--dir", s->dir, "--daemonize", "no", (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 500; i++) {
        redisContext *c = dial(s);
        redisReply *r = c && !c->err ? redisCommand(c, "PING") : NULL;
        bool ok = r && r->type == REDIS_REPLY_STATUS;
        if (r)
            freeReplyObject(r);
        redisFree(c);
        if (ok)
            return;
        struct timespec t = {0, 10 * 1000000};
        nanosleep(&t, NULL);
    }
    fail_msg("redis-server did not start");
}

static void server_start(struct server *s)
{
    snprintf(s->dir, sizeof(s->dir), "/tmp/test-upstream-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    s->port = free_port();
    server_run(s);
}

static void server_kill(struct server *s)
{
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

static void server_stop(struct server *s)
{
    if (s->pid)
        server_kill(s);
    rmdir(s->dir);
}

/* A command of somebody else, on a connection of its own. Returns an integer reply or 0. */
static long long foreign(const struct server *s, const char *fmt, ...)
{
    redisContext *c = dial(s);
    assert_int_equal(c->err, 0);
    va_list ap;
    va_start(ap, fmt);
    redisReply *r = redisvCommand(c, fmt, ap);
    va_end(ap);
    assert_non_null(r);
    if (r->type == REDIS_REPLY_ERROR)
        fail_msg("%s: %s", fmt, r->str);
    long long n = r->integer;
    freeReplyObject(r);
    redisFree(c);
    return n;
}

static int kill_clients_named(const struct server *s, const char *name)
{
    redisContext *c = dial(s);
    redisReply *r = redisCommand(c, "CLIENT LIST");
    char want[64];
    int n = 0;
    snprintf(want, sizeof(want), " name=%s ", name);
    for (char *save, *line = strtok_r(r->str, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (!strstr(line, want))
            continue;
        redisReply *k = redisCommand(c, "CLIENT KILL ID %lld", strtoll(line + 3, NULL, 10));
        n += k->type == REDIS_REPLY_INTEGER && k->integer == 1;
        freeReplyObject(k);
    }
    freeReplyObject(r);
    redisFree(c);
    return n;
}

static int clients_named(const struct server *s, const char *name)
{
    redisContext *c = dial(s);
    redisReply *r = redisCommand(c, "CLIENT LIST");
    char want[64];
    int n = 0;
    snprintf(want, sizeof(want), " name=%s ", name);
    for (char *p = r->str; (p = strstr(p, want)); p++)
        n++;
    freeReplyObject(r);
    redisFree(c);
    return n;
}

/* ---- a loop with an upstream, and what it said ----------------------------------------- */

struct world {
    uv_loop_t loop;
    uv_timer_t tick;
    struct upstream_options opt;
    struct upstream *up;
    uint32_t generation;
    int ended, began, invalidated, flushed, notices;
    char last_key[64];
    char notice[512];
};

static void on_invalidate(void *arg, struct slice key)
{
    struct world *w = arg;
    w->invalidated++;
    snprintf(w->last_key, sizeof(w->last_key), "%.*s", SLICE_FMT(key));
}

static void on_invalidate_all(void *arg)
{
    ((struct world *)arg)->flushed++;
}

static void on_generation(void *arg, uint32_t generation)
{
    struct world *w = arg;
    if (generation) {
        assert_true(generation > w->generation);
        w->generation = generation;
        w->began++;
    } else {
        w->ended++;
    }
}

static void on_notice(void *arg, const char *text)
{
    struct world *w = arg;
    w->notices++;
    snprintf(w->notice, sizeof(w->notice), "%s", text);
}

static void on_tick(uv_timer_t *t)
{
    (void)t;
}

static void world_init(struct world *w, int port)
{
    memset(w, 0, sizeof(*w));
    assert_int_equal(uv_loop_init(&w->loop), 0);
    uv_timer_init(&w->loop, &w->tick);
    uv_timer_start(&w->tick, on_tick, 2, 2);
    w->opt = (struct upstream_options){
        .host = "127.0.0.1",
        .port = port,
        .timeout_ms = TIMEOUT_MS,
        .watchdog_ms = WATCHDOG_MS,
        .backoff_min_ms = 10,
        .backoff_max_ms = 80,
        .queue_max = 20000,
        .pins_max = 8,
    };
}

static void world_create(struct world *w)
{
    struct upstream_events ev = {w, on_invalidate, on_invalidate_all, on_generation, on_notice};
    w->up = upstream_create(&w->loop, &w->opt, &ev);
}

static void world_open(struct world *w, int port)
{
    world_init(w, port);
    world_create(w);
}

static void world_close(struct world *w)
{
    if (w->up)
        upstream_destroy(w->up);
    uv_close((uv_handle_t *)&w->tick, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&w->loop), 0);
}

#define WAIT_FOR(w, ms, cond)                                                                  \
    do {                                                                                       \
        int64_t until_ = clock_mono_ms() + (ms);                                               \
        while (!(cond) && clock_mono_ms() < until_)                                            \
            uv_run(&(w)->loop, UV_RUN_ONCE);                                                   \
        if (!(cond))                                                                           \
            fail_msg("not within %d ms: %s (last notice: %s)", (int)(ms), #cond, (w)->notice); \
    } while (0)

static void turn_ms(struct world *w, int64_t ms)
{
    int64_t until = clock_mono_ms() + ms;
    while (clock_mono_ms() < until)
        uv_run(&w->loop, UV_RUN_ONCE);
}

#define WAIT_UP(w) WAIT_FOR(w, 5000, upstream_state((w)->up) == UPSTREAM_UP)

struct fetched {
    struct upstream_fetch f;
    int done;
    enum status st;
    char value[256];
    size_t len;
    int64_t pttl_ms;
    uint32_t generation;
};

static void on_fetched(struct upstream_fetch *f, enum status st, struct slice value, int64_t pttl_ms,
                       uint32_t generation)
{
    struct fetched *r = LIST_ENTRY(f, struct fetched, f);
    r->done++;
    r->st = st;
    r->len = value.len;
    if (value.len)
        memcpy(r->value, value.ptr, value.len < 255 ? value.len : 255);
    r->pttl_ms = pttl_ms;
    r->generation = generation;
}

static void fetch_start(struct world *w, struct fetched *r, int db, const char *key)
{
    memset(r, 0, sizeof(*r));
    r->f.key = slice_str(key);
    r->f.db = db;
    r->f.done = on_fetched;
    upstream_fetch(w->up, &r->f);
}

static struct fetched fetch(struct world *w, int db, const char *key)
{
    struct fetched r;
    fetch_start(w, &r, db, key);
    WAIT_FOR(w, 4000, r.done);
    assert_int_equal(r.done, 1);
    return r;
}

struct called {
    struct upstream_call c;
    int done;
    enum status st;
    char reply[512];
    bool is_error, sent;
};

static void on_called(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct called *r = LIST_ENTRY(c, struct called, c);
    r->done++;
    r->st = st;
    if (reply.len)
        memcpy(r->reply, reply.ptr, reply.len < 511 ? reply.len : 511);
    r->is_error = is_error;
    r->sent = sent;
}

static void text_set(char *to, size_t cap, const char *text)
{
    snprintf(to, cap, "%s", text);
}

/* Words apart by one space. */
static int split(const char *text, struct slice argv[16])
{
    for (int argc = 0;; text++) {
        size_t n = strcspn(text, " ");
        assert_true(argc < 16);
        argv[argc++] = SLICE(text, n);
        text += n;
        if (!*text)
            return argc;
    }
}

static void call_start(struct world *w, struct called *r, int db, const char *command)
{
    struct slice argv[16];
    memset(r, 0, sizeof(*r));
    r->c.done = on_called;
    upstream_call(w->up, &r->c, db, split(command, argv), argv);
}

static struct called call(struct world *w, int db, const char *command)
{
    struct called r;
    call_start(w, &r, db, command);
    WAIT_FOR(w, 4000, r.done);
    assert_int_equal(r.done, 1);
    return r;
}

static void expect_call(struct world *w, int db, const char *command, const char *reply)
{
    struct called r = call(w, db, command);
    assert_int_equal(r.st, ST_OK);
    assert_string_equal(r.reply, reply);
    assert_int_equal(r.is_error, reply[0] == '-');
    assert_true(r.sent);
}

struct pinned {
    struct upstream_pin *pin;
    struct world *w;
    int lost, pushes;
    char pushed[2048];
    bool destroy_when_lost;
};

static void on_push(void *arg, struct slice reply)
{
    struct pinned *p = arg;
    size_t have = strlen(p->pushed);
    p->pushes++;
    snprintf(p->pushed + have, sizeof(p->pushed) - have, "%.*s", SLICE_FMT(reply));
}

static void on_lost(void *arg)
{
    struct pinned *p = arg;
    p->lost++;
    if (p->destroy_when_lost) {
        upstream_pin_destroy(p->pin);
        p->pin = NULL;
    }
}

static void pin_open(struct world *w, struct pinned *p, int db)
{
    memset(p, 0, sizeof(*p));
    p->w = w;
    struct upstream_pin_events ev = {p, on_push, on_lost};
    p->pin = upstream_pin_create(w->up, db, &ev);
    assert_non_null(p->pin);
}

static void pin_start(struct pinned *p, struct called *r, bool blocking, const char *command)
{
    struct slice argv[16];
    memset(r, 0, sizeof(*r));
    r->c.done = on_called;
    upstream_pin_call(p->pin, &r->c, blocking, split(command, argv), argv);
}

static void expect_pin(struct pinned *p, const char *command, const char *reply)
{
    struct called r;
    pin_start(p, &r, false, command);
    WAIT_FOR(p->w, 4000, r.done);
    assert_int_equal(r.st, ST_OK);
    assert_string_equal(r.reply, reply);
}

static void pin_close(struct pinned *p)
{
    upstream_pin_destroy(p->pin);
    p->pin = NULL;
}

/* ---- a server that misbehaves, on the same loop ------------------------------------------- */

enum mischief {
    POLITE,    /* answers, but knows no CLIENT and no SUBSCRIBE */
    SILENT,    /* accepts and says nothing */
    CLOSING,   /* accepts and closes */
    GARBAGE,   /* answers what is no RESP */
    TALKATIVE, /* one reply more than was asked for */
    FULL,      /* an error at once, then closes */
    HALF,      /* half a reply, then silence */
};

struct rogue {
    uv_tcp_t tcp;
    int port;
    enum mischief mischief;
    int connections;
    int late_ms; /* POLITE: the answer to SLOW, and all after it, comes so late */
};

struct rogue_conn {
    uv_tcp_t tcp;
    uv_timer_t timer;
    struct rogue *rogue;
    struct buf in, out;
    struct resp_parser parser;
    bool held;
    int handles;
};

static void rogue_gone(uv_handle_t *h)
{
    struct rogue_conn *c = h->data;
    if (--c->handles)
        return;
    buf_deinit(&c->in);
    buf_deinit(&c->out);
    resp_parser_deinit(&c->parser);
    free(c);
}

static void rogue_hang_up(struct rogue_conn *c)
{
    if (uv_is_closing((uv_handle_t *)&c->tcp))
        return;
    uv_close((uv_handle_t *)&c->tcp, rogue_gone);
    uv_close((uv_handle_t *)&c->timer, rogue_gone);
}

static void rogue_flush(struct rogue_conn *c)
{
    if (c->held || !c->out.len)
        return;
    uv_buf_t b = uv_buf_init(c->out.ptr, (unsigned)c->out.len);
    uv_try_write((uv_stream_t *)&c->tcp, &b, 1);
    c->out.len = 0;
}

static void rogue_release(uv_timer_t *t)
{
    struct rogue_conn *c = t->data;
    c->held = false;
    rogue_flush(c);
}

static void rogue_say(struct rogue_conn *c, const char *text)
{
    buf_append(&c->out, text, strlen(text));
}

static void rogue_answer(struct rogue_conn *c, const struct request *req)
{
    struct slice name = req->argv[0];
    switch (c->rogue->mischief) {
    case GARBAGE: rogue_say(c, "@what?\r\n"); return;
    case HALF: rogue_say(c, "*3\r\n$5\r\nhal"); return;
    case TALKATIVE: rogue_say(c, "+OK\r\n:1\r\n"); return;
    case SILENT:
    case CLOSING:
    case FULL: return;
    case POLITE: break;
    }
    if (slice_is(name, "client") || slice_is(name, "subscribe")) {
        rogue_say(c, "-ERR unknown command\r\n");
    } else if (slice_is(name, "get")) {
        buf_printf(&c->out, "$%zu\r\n%.*s\r\n", req->argv[1].len, SLICE_FMT(req->argv[1]));
    } else if (slice_is(name, "pttl")) {
        rogue_say(c, ":-1\r\n");
    } else if (slice_is(name, "slow")) {
        rogue_say(c, "+SLOW\r\n");
        c->held = true;
        uv_timer_start(&c->timer, rogue_release, (uint64_t)c->rogue->late_ms, 0);
    } else if (slice_is(name, "echo")) {
        buf_printf(&c->out, "+%.*s\r\n", SLICE_FMT(req->argv[1]));
    } else {
        rogue_say(c, "+OK\r\n");
    }
}

static void rogue_alloc(uv_handle_t *h, size_t hint, uv_buf_t *b)
{
    (void)h;
    *b = uv_buf_init(malloc(hint), (unsigned)hint);
}

static void rogue_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    struct rogue_conn *c = s->data;
    if (n > 0)
        buf_append(&c->in, b->base, (size_t)n);
    free(b->base);
    if (n < 0) {
        rogue_hang_up(c);
        return;
    }
    struct resp_limits lim = {1 << 20, 1 << 20, 65536};
    struct request req;
    char err[128];
    size_t used;
    request_init(&req);
    while (c->in.len && resp_parse(&c->parser, buf_slice(&c->in), &lim, &used, &req, err) == RESP_OK) {
        if (req.argc)
            rogue_answer(c, &req);
        buf_consume(&c->in, used);
    }
    request_deinit(&req);
    rogue_flush(c);
}

static void rogue_accept(uv_stream_t *s, int status)
{
    struct rogue *r = s->data;
    struct rogue_conn *c = calloc(1, sizeof(*c));
    assert_int_equal(status, 0);
    r->connections++;
    c->rogue = r;
    c->handles = 2;
    c->tcp.data = c->timer.data = c;
    buf_init(&c->in, MEM_OTHER);
    buf_init(&c->out, MEM_OTHER);
    resp_parser_init(&c->parser);
    uv_tcp_init(s->loop, &c->tcp);
    uv_timer_init(s->loop, &c->timer);
    assert_int_equal(uv_accept(s, (uv_stream_t *)&c->tcp), 0);
    if (r->mischief == FULL) {
        rogue_say(c, "-ERR max number of clients reached\r\n");
        rogue_flush(c);
    }
    if (r->mischief == CLOSING || r->mischief == FULL)
        rogue_hang_up(c);
    else
        uv_read_start((uv_stream_t *)&c->tcp, rogue_alloc, rogue_read);
}

static void rogue_start(struct world *w, struct rogue *r, enum mischief mischief)
{
    struct sockaddr_in a;
    memset(r, 0, sizeof(*r));
    r->mischief = mischief;
    world_init(w, free_port());
    uv_ip4_addr("127.0.0.1", w->opt.port, &a);
    uv_tcp_init(&w->loop, &r->tcp);
    r->tcp.data = r;
    assert_int_equal(uv_tcp_bind(&r->tcp, (const struct sockaddr *)&a, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&r->tcp, 64, rogue_accept), 0);
    world_create(w);
}

static void rogue_stop(struct world *w, struct rogue *r)
{
    uv_close((uv_handle_t *)&r->tcp, NULL);
    world_close(w);
}

/* ---- tests ---------------------------------------------------------------------------------- */

static void test_url(void **state)
{
    (void)state;
    struct upstream_options o;
    char err[256];
    memset(&o, 0, sizeof(o));
    assert_int_equal(upstream_parse_url("redis://cache.example", &o, err), ST_OK);
    assert_string_equal(o.host, "cache.example");
    assert_int_equal(o.port, 6379);
    assert_int_equal(upstream_parse_url("redis://bob:p%40s%3As:x@10.0.0.1:7000/3", &o, err), ST_OK);
    assert_string_equal(o.user, "bob");
    assert_string_equal(o.password, "p@s:s:x");
    assert_string_equal(o.host, "10.0.0.1");
    assert_int_equal(o.port, 7000);
    assert_int_equal(o.db, 3);
    assert_int_equal(upstream_parse_url("redis://:secret@[fe80::1]:1/", &o, err), ST_OK);
    assert_string_equal(o.user, "");
    assert_string_equal(o.password, "secret");
    assert_string_equal(o.host, "fe80::1");
    assert_int_equal(o.port, 1);
    assert_int_equal(o.db, 0);
    assert_int_equal(upstream_parse_url("VALKEY://secret@[::1]", &o, err), ST_OK);
    assert_string_equal(o.password, "secret");
    assert_string_equal(o.host, "::1");
    static const char *const bad[] = {
        "",
        "http://x",
        "redis://",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:x",
        "redis://h:",
        "redis://h/x",
        "redis://h/-1",
        "redis://[::1",
        "redis://[::1]x",
        "redis://a%4@h",
        "rediss://h",
        "redis://a%00@h",
        "redis://h?db=1",
        "redis://a%zz@h",
        "redis://@",
        "redis://u:p@",
        "redis://h/99999999999",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (upstream_parse_url(bad[i], &o, err) != ST_BAD)
            fail_msg("accepted: %s", bad[i]);
        assert_true(strlen(err) > 10);
    }
}

static void test_fetch(void **state)
{
    (void)state;
    struct world w;
    foreign(&server, "FLUSHALL");
    foreign(&server, "MSET a 1 empty %b", "", (size_t)0);
    foreign(&server, "SET ttl x PX 60000");
    foreign(&server, "SET bin %b", "a\0\r\nb", (size_t)5);
    foreign(&server, "LPUSH list 1");
    world_open(&w, server.port);
    struct fetched early;
    fetch_start(&w, &early, 0, "a"); /* not connected yet: waits */
    assert_int_equal(early.done, 0);
    WAIT_UP(&w);
    WAIT_FOR(&w, 1000, early.done);
    assert_int_equal(early.st, ST_OK);
    assert_string_equal(early.value, "1");
    assert_int_equal(early.pttl_ms, -1);
    assert_int_equal(early.generation, 1);
    assert_true(llabs(early.f.sent_ms - clock_wall_ms()) < 3000);
    assert_string_equal(upstream_coherence(w.up), "tracking");

    struct fetched r = fetch(&w, 0, "nothing");
    assert_int_equal(r.st, ST_NOT_FOUND);
    assert_int_equal(r.generation, 1);
    r = fetch(&w, 0, "empty");
    assert_int_equal(r.st, ST_OK);
    assert_int_equal(r.len, 0);
    r = fetch(&w, 0, "ttl");
    assert_true(r.pttl_ms > 50000 && r.pttl_ms <= 60000);
    r = fetch(&w, 0, "bin");
    assert_int_equal(r.len, 5);
    assert_memory_equal(r.value, "a\0\r\nb", 5);
    assert_int_equal(fetch(&w, 0, "list").st, ST_WRONGTYPE);

    struct upstream_stats st;
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.fetches, 6);
    assert_int_equal(st.fetch_hits, 4);
    assert_int_equal(st.fetch_misses, 1);
    assert_int_equal(st.errors, 0);
    assert_true(st.bytes_in > 50 && st.bytes_out > 100);
    world_close(&w);
}

static void test_databases(void **state)
{
    (void)state;
    struct world w;
    foreign(&server, "FLUSHALL");
    world_open(&w, server.port);
    WAIT_UP(&w);
    expect_call(&w, 3, "SET k three", "+OK\r\n");
    expect_call(&w, 0, "SET k zero", "+OK\r\n");
    assert_string_equal(fetch(&w, 3, "k").value, "three");
    assert_string_equal(fetch(&w, 0, "k").value, "zero");
    /* Refused databases: answered with the reason, executed nowhere. */
    struct called bad, good, bad2;
    call_start(&w, &bad, 99, "SET k lost");
    call_start(&w, &good, 3, "GET k");
    call_start(&w, &bad2, 99, "SET k lost");
    WAIT_FOR(&w, 2000, bad2.done && good.done);
    assert_int_equal(bad.st, ST_OK);
    assert_string_equal(bad.reply, "-ERR DB index is out of range\r\n");
    assert_true(bad.is_error);
    assert_false(bad.sent);
    assert_true(bad2.is_error);
    assert_string_equal(good.reply, "$5\r\nthree\r\n");
    struct fetched f = fetch(&w, 99, "k");
    assert_int_equal(f.st, ST_BAD);
    assert_non_null(strstr(f.value, "out of range"));
    expect_call(&w, 0, "GET k", "$4\r\nzero\r\n");
    /* A SELECT that slips through does no harm. */
    expect_call(&w, 0, "SELECT 7", "+OK\r\n");
    expect_call(&w, 0, "GET k", "$4\r\nzero\r\n");
    /* Known databases are pipelined with their SELECT. */
    struct called many[60];
    for (int i = 0; i < 60; i++)
        call_start(&w, &many[i], i % 2 * 3, "GET k");
    WAIT_FOR(&w, 2000, many[59].done);
    for (int i = 0; i < 60; i++)
        assert_string_equal(many[i].reply, i % 2 ? "$5\r\nthree\r\n" : "$4\r\nzero\r\n");
    world_close(&w);

    world_init(&w, server.port);
    w.opt.db = 99;
    world_create(&w);
    WAIT_FOR(&w, 2000, upstream_state(w.up) == UPSTREAM_DOWN);
    assert_non_null(strstr(upstream_last_error(w.up), "SELECT: ERR DB index"));
    world_close(&w);
}

static void test_invalidation(void **state)
{
    (void)state;
    struct world w;
    foreign(&server, "FLUSHALL");
    foreign(&server, "SET k v1");
    world_open(&w, server.port);
    WAIT_UP(&w);
    fetch(&w, 0, "k");
    fetch(&w, 0, "absent");
    foreign(&server, "SET k v2");
    WAIT_FOR(&w, 1000, w.invalidated == 1);
    assert_string_equal(w.last_key, "k");
    foreign(&server, "SET absent now");
    WAIT_FOR(&w, 1000, w.invalidated == 2);
    assert_string_equal(w.last_key, "absent");
    /* Not tracked any more, and what goes over `write` never is. */
    foreign(&server, "SET k v3");
    expect_call(&w, 0, "GET k", "$2\r\nv3\r\n");
    foreign(&server, "SET k v4");
    turn_ms(&w, 50);
    assert_int_equal(w.invalidated, 2);
    /* Own writes are told, too; the fence comes behind the message. */
    fetch(&w, 0, "k");
    expect_call(&w, 0, "SET k v5", "+OK\r\n");
    WAIT_FOR(&w, 1000, w.invalidated == 3);
    foreign(&server, "FLUSHALL");
    WAIT_FOR(&w, 1000, w.flushed == 1);
    assert_int_equal(w.ended, 0);
    world_close(&w);
}

struct fenced {
    struct upstream_fence f;
    struct world *w;
    int done, seen;
    enum status st;
};

static void on_fence(struct upstream_fence *f, enum status st)
{
    struct fenced *r = LIST_ENTRY(f, struct fenced, f);
    r->done++;
    r->st = st;
    r->seen = r->w->invalidated;
}

static void test_fence(void **state)
{
    (void)state;
    struct world w;
    foreign(&server, "FLUSHALL");
    world_open(&w, server.port);
    struct fenced early = {{on_fence}, &w, 0, 0, ST_OK};
    upstream_fence(w.up, &early.f);
    assert_int_equal(early.done, 1);
    assert_int_equal(early.st, ST_UNAVAILABLE);
    WAIT_UP(&w);
    for (int i = 1; i <= 50; i++) {
        struct fenced r = {{on_fence}, &w, 0, 0, ST_OK};
        fetch(&w, 0, "k");
        assert_int_equal(call(&w, 0, "INCR k").st, ST_OK);
        upstream_fence(w.up, &r.f);
        WAIT_FOR(&w, 1000, r.done);
        assert_int_equal(r.st, ST_OK);
        assert_int_equal(r.seen, i);
    }
    world_close(&w);
}

static void check_generation_renewed(struct world *w, const char *victim)
{
    int ended = w->ended, began = w->began;
    WAIT_FOR(w, 1000, clients_named(&server, victim) == 1);
    assert_int_equal(kill_clients_named(&server, victim), 1);
    WAIT_FOR(w, WATCHDOG_MS + TIMEOUT_MS, w->ended == ended + 1);
    assert_int_equal(upstream_generation(w->up), 0);
    WAIT_FOR(w, 2000, w->began == began + 1);
    WAIT_UP(w);
    assert_int_equal(upstream_generation(w->up), w->generation);
    fetch(w, 0, "k");
    int seen = w->invalidated;
    foreign(&server, "SET k again");
    WAIT_FOR(w, 1000, w->invalidated == seen + 1);
    assert_int_equal(clients_named(&server, "tiercel-inval"), 1);
    assert_int_equal(clients_named(&server, "tiercel-fetch"), 1);
}

static void test_lost_connections(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, server.port);
    WAIT_UP(&w);
    check_generation_renewed(&w, "tiercel-inval");
    check_generation_renewed(&w, "tiercel-fetch");
    check_generation_renewed(&w, "tiercel-inval");
    int began = w.began;
    assert_int_equal(kill_clients_named(&server, "tiercel-write"), 1);
    WAIT_FOR(&w, 1000, upstream_state(w.up) == UPSTREAM_DOWN);
    assert_int_equal(call(&w, 0, "PING").st, ST_UNAVAILABLE);
    assert_int_equal(fetch(&w, 0, "k").st, ST_OK); /* the pair is not concerned */
    WAIT_UP(&w);
    expect_call(&w, 0, "PING", "+PONG\r\n");
    assert_int_equal(w.began, began);
    /* What was sent on a connection that is lost is not sent again. */
    struct called r;
    call_start(&w, &r, 0, "BLPOP never 0");
    turn_ms(&w, 30);
    kill_clients_named(&server, "tiercel-write");
    WAIT_FOR(&w, 400, r.done);
    assert_int_equal(r.st, ST_UNAVAILABLE);
    assert_true(r.sent);
    world_close(&w);
}

static void test_server_frozen(void **state)
{
    (void)state;
    struct world w;
    struct server s = {0};
    server_start(&s);
    world_open(&w, s.port);
    WAIT_UP(&w);
    kill(s.pid, SIGSTOP);
    struct fetched f;
    struct called c;
    int64_t start = clock_mono_ms();
    fetch_start(&w, &f, 0, "k");
    call_start(&w, &c, 0, "INCR n");
    WAIT_FOR(&w, TIMEOUT_MS + 300, c.done && f.done);
    assert_true(clock_mono_ms() - start >= TIMEOUT_MS - 5);
    assert_int_equal(c.st, ST_TIMEOUT);
    assert_true(c.sent);
    assert_true(f.st == ST_TIMEOUT || f.st == ST_UNAVAILABLE); /* the watchdog may be first */
    WAIT_FOR(&w, WATCHDOG_MS + 300, w.ended == 1);
    WAIT_FOR(&w, 2 * TIMEOUT_MS + 300,
             strstr(upstream_last_error(w.up), "silent for twice") != NULL ||
                 strstr(upstream_last_error(w.up), "in time") != NULL);
    assert_int_equal(fetch(&w, 0, "k").st, ST_UNAVAILABLE);
    kill(s.pid, SIGCONT);
    WAIT_UP(&w);
    assert_int_equal(w.began, 2);
    expect_call(&w, 0, "GET n", "$1\r\n1\r\n"); /* executed late, once */
    world_close(&w);
    server_stop(&s);
}

static void test_server_restarted(void **state)
{
    (void)state;
    struct world w;
    struct server s = {0};
    server_start(&s);
    world_open(&w, s.port);
    WAIT_UP(&w);
    server_kill(&s);
    WAIT_FOR(&w, 1000, upstream_state(w.up) == UPSTREAM_DOWN && w.ended == 1);
    assert_int_equal(call(&w, 0, "PING").st, ST_UNAVAILABLE);
    int notices = w.notices;
    struct upstream_stats before, after;
    upstream_get_stats(w.up, &before);
    turn_ms(&w, 400);
    upstream_get_stats(w.up, &after);
    assert_non_null(strstr(upstream_last_error(w.up), "onnection refused"));
    assert_in_range(after.reconnects - before.reconnects, 6, 30); /* two groups, 40 to 80 ms apart at last */
    assert_in_range(w.notices - notices, 0, 8);                   /* retries that fail alike are told once */
    server_run(&s);
    WAIT_UP(&w);
    assert_int_equal(w.began, 2);
    assert_int_equal(fetch(&w, 0, "k").generation, 2);
    world_close(&w);
    server_stop(&s);
}

static void test_pipeline(void **state)
{
    (void)state;
    enum { N = 10000 };
    struct world w;
    struct called *r = calloc(N, sizeof(*r));
    foreign(&server, "DEL counter");
    world_init(&w, server.port);
    w.opt.queue_max = N;
    w.opt.timeout_ms = 5000;
    world_create(&w);
    for (int i = 0; i < N; i++)
        call_start(&w, &r[i], 0, "INCR counter");
    struct called over;
    call_start(&w, &over, 0, "INCR counter");
    assert_int_equal(over.st, ST_UNAVAILABLE);
    assert_false(over.sent);
    WAIT_FOR(&w, 5000, r[N - 1].done);
    for (int i = 0; i < N; i++) {
        char want[32];
        snprintf(want, sizeof(want), ":%d\r\n", i + 1);
        assert_string_equal(r[i].reply, want);
        assert_int_equal(r[i].done, 1);
    }
    free(r);
    /* A value larger than any buffer on the way. */
    size_t len = 9 * 1024 * 1024;
    char *big = malloc(len);
    memset(big, 'x', len);
    struct slice set[] = {SLICE_LIT("SET"), SLICE_LIT("big"), {big, len}};
    struct called c = {.c.done = on_called};
    upstream_call(w.up, &c.c, 0, 3, set);
    WAIT_FOR(&w, 5000, c.done);
    assert_string_equal(c.reply, "+OK\r\n");
    free(big);
    struct fetched f;
    fetch_start(&w, &f, 0, "big");
    WAIT_FOR(&w, 5000, f.done);
    assert_int_equal(f.len, len);
    foreign(&server, "DEL big");
    world_close(&w);
}

static void test_replies(void **state)
{
    (void)state;
    struct world w;
    foreign(&server, "FLUSHALL");
    world_open(&w, server.port);
    WAIT_UP(&w);
    expect_call(&w, 0, "GET nothing", "$-1\r\n");
    expect_call(&w, 0, "BLPOP nothing 0.01", "*-1\r\n");
    expect_call(&w, 0, "MGET a b", "*2\r\n$-1\r\n$-1\r\n");
    expect_call(&w, 0, "LRANGE nothing 0 -1", "*0\r\n");
    expect_call(&w, 0, "RPUSH l x yy", ":2\r\n");
    expect_call(&w, 0, "LRANGE l 0 -1", "*2\r\n$1\r\nx\r\n$2\r\nyy\r\n");
    expect_call(&w, 0, "NOSUCH", "-ERR unknown command 'NOSUCH', with args beginning with: \r\n");
    expect_call(&w, 0, "EVAL return{1,{2,{3,'s'}},{ok='fine'},{err='bad'}} 0",
                "*4\r\n:1\r\n*2\r\n:2\r\n*2\r\n:3\r\n$1\r\ns\r\n+fine\r\n-bad\r\n");
    expect_call(&w, 0, "EVAL return{false,{false}} 0", "*2\r\n$-1\r\n*1\r\n$-1\r\n");
    expect_call(&w, 0, "SET e ", "+OK\r\n");
    expect_call(&w, 0, "GET e", "$0\r\n\r\n");
    world_close(&w);
}

static void test_refused(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, server.port);
    text_set(w.opt.password, sizeof(w.opt.password), "wrong");
    text_set(w.opt.user, sizeof(w.opt.user), "nobody");
    world_create(&w);
    struct called c;
    call_start(&w, &c, 0, "PING");
    WAIT_FOR(&w, 2000, upstream_state(w.up) == UPSTREAM_DOWN && c.done);
    assert_non_null(strstr(upstream_last_error(w.up), "AUTH: WRONGPASS"));
    assert_non_null(strstr(w.notice, "WRONGPASS"));
    assert_int_equal(c.st, ST_UNAVAILABLE);
    assert_false(c.sent);
    world_close(&w);

    /* May read and write, but not track. */
    foreign(&server, "SET k v");
    foreign(&server, "ACL SETUSER plain on >secret ~* &* +@all -client|tracking");
    world_init(&w, server.port);
    text_set(w.opt.password, sizeof(w.opt.password), "secret");
    text_set(w.opt.user, sizeof(w.opt.user), "plain");
    world_create(&w);
    WAIT_UP(&w);
    assert_non_null(strstr(upstream_coherence(w.up), "none: CLIENT TRACKING: NOPERM"));
    struct fetched f = fetch(&w, 0, "k");
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.generation, 0);
    assert_int_equal(w.began, 0);
    assert_int_equal(clients_named(&server, "tiercel-inval"), 0);
    world_close(&w);

    /* May not subscribe. */
    foreign(&server, "ACL SETUSER plain resetchannels +client|tracking");
    world_init(&w, server.port);
    text_set(w.opt.password, sizeof(w.opt.password), "secret");
    text_set(w.opt.user, sizeof(w.opt.user), "plain");
    world_create(&w);
    WAIT_UP(&w);
    assert_non_null(strstr(upstream_coherence(w.up), "none: SUBSCRIBE: NOPERM"));
    assert_int_equal(fetch(&w, 0, "k").st, ST_OK);
    world_close(&w);
    foreign(&server, "ACL DELUSER plain");
}

static void test_host_names(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, server.port);
    text_set(w.opt.host, sizeof(w.opt.host), "localhost"); /* may have ::1 too, where nobody listens */
    world_create(&w);
    WAIT_UP(&w);
    expect_call(&w, 0, "PING", "+PONG\r\n");
    world_close(&w);
    world_init(&w, server.port);
    text_set(w.opt.host, sizeof(w.opt.host), "no such host");
    world_create(&w);
    WAIT_FOR(&w, 4000, upstream_state(w.up) == UPSTREAM_DOWN);
    assert_true(strlen(upstream_last_error(w.up)) > 10);
    world_close(&w);
}

static void test_pin_transaction(void **state)
{
    (void)state;
    struct world w;
    struct pinned p;
    foreign(&server, "FLUSHALL");
    world_open(&w, server.port);
    pin_open(&w, &p, 2);
    expect_pin(&p, "WATCH a", "+OK\r\n");
    expect_pin(&p, "MULTI", "+OK\r\n");
    expect_pin(&p, "SET a 1", "+QUEUED\r\n");
    expect_pin(&p, "GET a", "+QUEUED\r\n");
    expect_pin(&p, "EXEC", "*2\r\n+OK\r\n$1\r\n1\r\n");
    expect_pin(&p, "WATCH a", "+OK\r\n");
    expect_call(&w, 2, "SET a 2", "+OK\r\n");
    expect_pin(&p, "MULTI", "+OK\r\n");
    expect_pin(&p, "EXEC", "*-1\r\n");
    assert_string_equal(fetch(&w, 2, "a").value, "2");
    /* A clean connection serves the next pin; its transaction does not. */
    long long id;
    struct called c;
    pin_start(&p, &c, false, "CLIENT ID");
    WAIT_FOR(&w, 1000, c.done);
    id = strtoll(c.reply + 1, NULL, 10);
    expect_pin(&p, "MULTI", "+OK\r\n");
    pin_close(&p);
    pin_open(&w, &p, 0);
    pin_start(&p, &c, false, "CLIENT ID");
    WAIT_FOR(&w, 1000, c.done);
    assert_int_equal(strtoll(c.reply + 1, NULL, 10), id);
    expect_pin(&p, "GET a", "$-1\r\n");
    pin_close(&p);
    /* The limit, and a database that does not exist. */
    struct pinned many[8], refused;
    for (int i = 0; i < 8; i++)
        pin_open(&w, &many[i], 0);
    struct upstream_pin_events none = {0};
    assert_null(upstream_pin_create(w.up, 0, &none));
    for (int i = 0; i < 8; i++)
        pin_close(&many[i]);
    pin_open(&w, &refused, 99);
    expect_pin(&refused, "SET a 1", "-ERR DB index is out of range\r\n");
    pin_close(&refused);
    struct upstream_stats st;
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.pins, 0);
    world_close(&w);
}

static void test_pin_blocking(void **state)
{
    (void)state;
    struct world w;
    struct pinned p, q;
    struct called r, r2;
    foreign(&server, "FLUSHALL");
    world_open(&w, server.port);
    WAIT_UP(&w);
    pin_open(&w, &p, 1);
    pin_start(&p, &r, true, "BLPOP jobs 0");
    turn_ms(&w, 2 * TIMEOUT_MS + 300); /* no deadline, no stall */
    assert_int_equal(r.done, 0);
    expect_call(&w, 1, "RPUSH jobs one", ":1\r\n");
    WAIT_FOR(&w, 1000, r.done);
    assert_string_equal(r.reply, "*2\r\n$4\r\njobs\r\n$3\r\none\r\n");
    /* Destroyed while blocked: the upstream forgets that client. */
    pin_open(&w, &q, 1);
    pin_start(&p, &r, true, "BLPOP jobs 0");
    pin_start(&q, &r2, true, "BLPOP jobs 0");
    WAIT_FOR(&w, 1000,
             foreign(&server, "EVAL %s 0",
                     "return tonumber(string.match(redis.call('INFO','clients'), "
                     "'blocked_clients:(%d+)'))") == 2);
    pin_close(&q);
    assert_int_equal(r2.done, 1);
    assert_int_equal(r2.st, ST_CANCELLED);
    WAIT_FOR(&w, 1000,
             foreign(&server, "EVAL %s 0",
                     "return tonumber(string.match(redis.call('INFO','clients'), "
                     "'blocked_clients:(%d+)'))") == 1);
    expect_call(&w, 1, "RPUSH jobs two", ":1\r\n");
    WAIT_FOR(&w, 1000, r.done);
    assert_string_equal(r.reply, "*2\r\n$4\r\njobs\r\n$3\r\ntwo\r\n");
    /* The connection ends: the call is answered, then lost(). */
    p.destroy_when_lost = true;
    pin_start(&p, &r, true, "BLPOP jobs 0");
    turn_ms(&w, 30);
    assert_int_equal(kill_clients_named(&server, "tiercel-pin"), 1);
    WAIT_FOR(&w, 1000, p.lost);
    assert_int_equal(r.st, ST_UNAVAILABLE);
    assert_true(r.sent);
    assert_null(p.pin);
    world_close(&w);
}

static void test_pin_pubsub(void **state)
{
    (void)state;
    struct world w;
    struct pinned p;
    world_open(&w, server.port);
    WAIT_UP(&w);
    pin_open(&w, &p, 0);
    expect_pin(&p, "SUBSCRIBE a b", "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    WAIT_FOR(&w, 1000, p.pushes == 1);
    assert_string_equal(p.pushed, "*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n");
    expect_pin(&p, "PSUBSCRIBE x*", "*3\r\n$10\r\npsubscribe\r\n$2\r\nx*\r\n:3\r\n");
    p.pushed[0] = 0;
    assert_int_equal(foreign(&server, "PUBLISH b hello"), 1);
    WAIT_FOR(&w, 1000, p.pushes == 2);
    assert_string_equal(p.pushed, "*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$5\r\nhello\r\n");
    p.pushed[0] = 0;
    foreign(&server, "PUBLISH xy z");
    WAIT_FOR(&w, 1000, p.pushes == 3);
    assert_string_equal(p.pushed, "*4\r\n$8\r\npmessage\r\n$2\r\nx*\r\n$2\r\nxy\r\n$1\r\nz\r\n");
    expect_pin(&p, "PING", "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    /* Without names: as many confirmations as there are channels; then the next answer. */
    struct called un, pun, un2, ping;
    p.pushed[0] = 0;
    pin_start(&p, &un, false, "UNSUBSCRIBE");
    pin_start(&p, &pun, false, "PUNSUBSCRIBE");
    pin_start(&p, &un2, false, "UNSUBSCRIBE");
    pin_start(&p, &ping, false, "PING");
    WAIT_FOR(&w, 1000, ping.done);
    assert_int_equal(p.pushes, 4);
    assert_int_equal(strncmp(p.pushed, "*3\r\n$11\r\nunsubscribe\r\n$1\r\n", 24), 0);
    assert_string_equal(pun.reply, "*3\r\n$12\r\npunsubscribe\r\n$2\r\nx*\r\n:0\r\n");
    assert_string_equal(un2.reply, "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
    assert_string_equal(ping.reply, "+PONG\r\n");
    /* A list that looks like a message is an answer when nothing is subscribed. */
    foreign(&server, "DEL l");
    foreign(&server, "RPUSH l message a b");
    expect_pin(&p, "LRANGE l 0 -1", "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n");
    /* MONITOR talks unasked; such a connection is not for the next pin. */
    expect_pin(&p, "MONITOR", "+OK\r\n");
    p.pushes = 0;
    foreign(&server, "ECHO monitored");
    WAIT_FOR(&w, 1000, strstr(p.pushed, "monitored") != NULL);
    pin_close(&p);
    WAIT_FOR(&w, 1000, clients_named(&server, "tiercel-pin") == 0);
    /* Cannot connect: the call fails first, then lost(). */
    w.opt.port = free_port();
    struct upstream *old = w.up;
    world_create(&w);
    struct called c;
    pin_open(&w, &p, 0);
    pin_start(&p, &c, true, "BLPOP x 0");
    assert_int_equal(c.done + p.lost, 0);
    WAIT_FOR(&w, 1000, p.lost);
    assert_int_equal(c.st, ST_UNAVAILABLE);
    assert_false(c.sent);
    pin_close(&p);
    upstream_destroy(old);
    world_close(&w);
}

static void test_rogues(void **state)
{
    (void)state;
    static const struct {
        enum mischief mischief;
        const char *error;
    } cases[] = {
        {SILENT, "no answer to the greeting"}, {CLOSING, "closed"},
        {GARBAGE, "Protocol error"},           {FULL, "max number of clients"},
        {HALF, "no answer to the greeting"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct world w;
        struct rogue r;
        rogue_start(&w, &r, cases[i].mischief);
        struct called c;
        call_start(&w, &c, 0, "PING");
        WAIT_FOR(&w, 3 * TIMEOUT_MS, c.done && upstream_state(w.up) == UPSTREAM_DOWN);
        assert_true(c.st == ST_UNAVAILABLE || c.st == ST_TIMEOUT);
        assert_false(c.sent);
        if (!strstr(upstream_last_error(w.up), cases[i].error) && !strstr(upstream_last_error(w.up), "reset"))
            fail_msg("%s, not %s", upstream_last_error(w.up), cases[i].error);
        turn_ms(&w, 100);
        assert_true(r.connections > 2);
        rogue_stop(&w, &r);
    }
    struct world w;
    struct rogue r;
    rogue_start(&w, &r, TALKATIVE); /* never mistaken for an answer for long */
    turn_ms(&w, 100);
    assert_int_not_equal(upstream_state(w.up), UPSTREAM_UP);
    rogue_stop(&w, &r);
}

static void test_no_tracking_and_late_answers(void **state)
{
    (void)state;
    struct world w;
    struct rogue r;
    rogue_start(&w, &r, POLITE);
    WAIT_UP(&w);
    assert_string_equal(upstream_coherence(w.up), "none: CLIENT ID: ERR unknown command");
    struct fetched f = fetch(&w, 0, "key");
    assert_string_equal(f.value, "key");
    assert_int_equal(f.generation, 0);
    /* Late, but not silent for ever: the place in the queue is kept, the connection too. */
    struct called slow, other, next;
    int connections = r.connections;
    r.late_ms = TIMEOUT_MS * 3 / 2;
    call_start(&w, &slow, 0, "SLOW");
    call_start(&w, &other, 0, "ECHO other");
    WAIT_FOR(&w, TIMEOUT_MS + 300, slow.done && other.done);
    assert_int_equal(slow.st, ST_TIMEOUT);
    assert_true(slow.sent);
    assert_int_equal(other.st, ST_TIMEOUT);
    turn_ms(&w, TIMEOUT_MS / 4);
    call_start(&w, &next, 0, "ECHO next");
    WAIT_FOR(&w, TIMEOUT_MS, next.done);
    assert_string_equal(next.reply, "+next\r\n");
    assert_int_equal(slow.done + other.done, 2);
    assert_int_equal(r.connections, connections);
    /* Silent for twice the timeout: a new connection. */
    r.late_ms = 100 * TIMEOUT_MS;
    call_start(&w, &slow, 0, "SLOW");
    WAIT_FOR(&w, 2 * TIMEOUT_MS + 300, upstream_state(w.up) == UPSTREAM_DOWN);
    assert_non_null(strstr(upstream_last_error(w.up), "silent for twice"));
    WAIT_UP(&w);
    assert_int_equal(r.connections, connections + 1);
    expect_call(&w, 0, "ECHO back", "+back\r\n");
    struct upstream_stats st;
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.timeouts, 3);
    rogue_stop(&w, &r);
}

struct suicide {
    struct upstream_call c;
    struct world *w;
};

static void on_called_destroy(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct suicide *s = LIST_ENTRY(c, struct suicide, c);
    (void)st, (void)reply, (void)is_error, (void)sent;
    if (s->w->up) {
        struct upstream *up = s->w->up;
        s->w->up = NULL;
        upstream_destroy(up);
    }
}

static void test_destroy_in_callbacks(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct world w;
        struct called before, after;
        struct fetched f;
        struct pinned p;
        struct slice argv[] = {SLICE_LIT("PING")};
        world_open(&w, server.port);
        if (i % 2)
            WAIT_UP(&w);
        struct suicide s = {{.done = on_called_destroy}, &w};
        pin_open(&w, &p, 0);
        p.destroy_when_lost = true;
        call_start(&w, &before, 0, "PING");
        if (i % 4 < 2)
            upstream_call(w.up, &s.c, 0, 1, argv);
        else
            upstream_pin_call(p.pin, &s.c, false, 1, argv);
        call_start(&w, &after, 0, "PING");
        fetch_start(&w, &f, 0, "k");
        WAIT_FOR(&w, 2000, !w.up);
        WAIT_FOR(&w, 2000, p.lost);
        assert_int_equal(before.done + after.done + f.done, 3);
        world_close(&w);
    }
}

static void test_destroy_at_any_moment(void **state)
{
    (void)state;
    uint64_t rng = 42;
    for (int i = 0; i < 200; i++) {
        struct world w;
        struct rogue r;
        struct fetched f[4];
        struct called c[8];
        struct pinned p[3];
        bool rogue = i % 5 == 0;
        if (rogue) {
            rogue_start(&w, &r, (enum mischief)(i / 5 % (HALF + 1)));
        } else {
            world_init(&w, server.port);
            if (i % 7 == 0)
                text_set(w.opt.host, sizeof(w.opt.host), "localhost");
            world_create(&w);
        }
        turn_ms(&w, (int64_t)(rng_next(&rng) % 8));
        for (int k = 0; k < 4; k++)
            fetch_start(&w, &f[k], k, "k");
        for (int k = 0; k < 3; k++) {
            pin_open(&w, &p[k], 0);
            p[k].destroy_when_lost = true;
            pin_start(&p[k], &c[k], k == 0, k == 0 ? "BLPOP never 0" : k == 1 ? "SUBSCRIBE a b c" : "PING");
        }
        for (int k = 3; k < 8; k++)
            call_start(&w, &c[k], k % 3, "INCR n");
        if (i % 11 == 0)
            kill_clients_named(&server, "tiercel-write");
        for (uint64_t turns = rng_next(&rng) % 12; turns; turns--)
            uv_run(&w.loop, UV_RUN_ONCE);
        if (i % 3 == 0 && p[2].pin)
            pin_close(&p[2]);
        upstream_destroy(w.up);
        w.up = NULL;
        for (int k = 0; k < 4; k++)
            assert_int_equal(f[k].done, 1);
        for (int k = 0; k < 8; k++)
            assert_int_equal(c[k].done, 1);
        for (int k = 0; k < 3; k++)
            assert_null(p[k].pin);
        if (rogue)
            rogue_stop(&w, &r);
        else
            world_close(&w);
    }
    for (int i = 0; i < 200 && clients_named(&server, "tiercel-pin"); i++)
        nanosleep(&(struct timespec){0, 5 * 1000000}, NULL);
    assert_int_equal(clients_named(&server, "tiercel-fetch"), 0);
}

static int group_start(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    server_start(&server);
    return 0;
}

static int group_stop(void **state)
{
    (void)state;
    server_stop(&server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_url),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_databases),
        cmocka_unit_test(test_invalidation),
        cmocka_unit_test(test_fence),
        cmocka_unit_test(test_lost_connections),
        cmocka_unit_test(test_server_frozen),
        cmocka_unit_test(test_server_restarted),
        cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_host_names),
        cmocka_unit_test(test_pin_transaction),
        cmocka_unit_test(test_pin_blocking),
        cmocka_unit_test(test_pin_pubsub),
        cmocka_unit_test(test_rogues),
        cmocka_unit_test(test_no_tracking_and_late_answers),
        cmocka_unit_test(test_destroy_in_callbacks),
        cmocka_unit_test(test_destroy_at_any_moment),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
