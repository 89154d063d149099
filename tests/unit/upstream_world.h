/* What the tests of the upstream share: a real redis-server, on a free loopback port and in a
 * directory of its own, and a loop with an upstream whose events are noted. Each test program
 * includes it once, and ends only what it started. */
#ifndef UPSTREAM_WORLD_H
#define UPSTREAM_WORLD_H

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
    const char *without; /* a command that it does not know */
    bool debug;          /* it knows DEBUG */
};

static struct server server; /* shared by the tests that do not stop it */

static __attribute__((unused)) int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    return ntohs(a.sin_port);
}

static __attribute__((unused)) redisContext *dial(const struct server *s)
{
    return redisConnectWithTimeout("127.0.0.1", s->port, (struct timeval){2, 0});
}

static __attribute__((unused)) void server_run(struct server *s)
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
        const char *argv[24] = {"redis-server", "--port", port,    "--bind", "127.0.0.1",   "--save", "",
                                "--appendonly", "no",     "--dir", s->dir,   "--daemonize", "no"};
        int n = 13;
        if (s->without) {
            argv[n++] = "--rename-command";
            argv[n++] = s->without;
            argv[n++] = "";
        }
        if (s->debug) {
            argv[n++] = "--enable-debug-command";
            argv[n++] = "yes";
        }
        execvp(argv[0], (char *const *)argv);
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

static __attribute__((unused)) void server_start(struct server *s)
{
    snprintf(s->dir, sizeof(s->dir), "/tmp/test-upstream-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    s->port = free_port();
    server_run(s);
}

static __attribute__((unused)) void server_kill(struct server *s)
{
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

static __attribute__((unused)) void server_stop(struct server *s)
{
    if (s->pid)
        server_kill(s);
    rmdir(s->dir);
}

/* A command of somebody else, on a connection of its own. Returns an integer reply or 0. */
static __attribute__((unused)) long long foreign(const struct server *s, const char *fmt, ...)
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

static __attribute__((unused)) int kill_clients_named(const struct server *s, const char *name)
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

static __attribute__((unused)) int clients_named(const struct server *s, const char *name)
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

static __attribute__((unused)) void on_invalidate(void *arg, struct slice key)
{
    struct world *w = arg;
    w->invalidated++;
    snprintf(w->last_key, sizeof(w->last_key), "%.*s", SLICE_FMT(key));
}

static __attribute__((unused)) void on_invalidate_all(void *arg)
{
    ((struct world *)arg)->flushed++;
}

static __attribute__((unused)) void on_generation(void *arg, uint32_t generation)
{
    struct world *w = arg;
    if (generation) {
        assert_true(generation > w->generation || (w->ended && generation == w->generation)); /* it goes on */
        w->generation = generation;
        w->began++;
    } else {
        w->ended++;
    }
}

static __attribute__((unused)) void on_notice(void *arg, const char *text)
{
    struct world *w = arg;
    w->notices++;
    snprintf(w->notice, sizeof(w->notice), "%s", text);
}

static __attribute__((unused)) void on_tick(uv_timer_t *t)
{
    (void)t;
}

static __attribute__((unused)) void world_init(struct world *w, int port)
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
        .subscriptions_max = 8,
    };
}

static __attribute__((unused)) void world_create(struct world *w)
{
    struct upstream_events ev = {w, on_invalidate, on_invalidate_all, on_generation, on_notice};
    w->up = upstream_create(&w->loop, &w->opt, &ev);
}

static __attribute__((unused)) void world_open(struct world *w, int port)
{
    world_init(w, port);
    world_create(w);
}

static __attribute__((unused)) void world_close(struct world *w)
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

static __attribute__((unused)) void turn_ms(struct world *w, int64_t ms)
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

static __attribute__((unused)) void on_fetched(struct upstream_fetch *f, enum status st, struct slice value,
                                               int64_t pttl_ms, uint32_t generation)
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

static __attribute__((unused)) void fetch_start(struct world *w, struct fetched *r, int db, const char *key)
{
    memset(r, 0, sizeof(*r));
    r->f.key = slice_str(key);
    r->f.db = db;
    r->f.done = on_fetched;
    upstream_fetch(w->up, &r->f);
}

static __attribute__((unused)) struct fetched fetch(struct world *w, int db, const char *key)
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

static __attribute__((unused)) void on_called(struct upstream_call *c, enum status st, struct slice reply,
                                              bool is_error, bool sent)
{
    struct called *r = LIST_ENTRY(c, struct called, c);
    r->done++;
    r->st = st;
    if (reply.len)
        memcpy(r->reply, reply.ptr, reply.len < 511 ? reply.len : 511);
    r->is_error = is_error;
    r->sent = sent;
}

static __attribute__((unused)) void text_set(char *to, size_t cap, const char *text)
{
    snprintf(to, cap, "%s", text);
}

/* Words apart by one space. */
static __attribute__((unused)) int split(const char *text, struct slice argv[16])
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

static __attribute__((unused)) void call_start(struct world *w, struct called *r, int db, const char *command)
{
    struct slice argv[16];
    memset(r, 0, sizeof(*r));
    r->c.done = on_called;
    upstream_call(w->up, &r->c, UPSTREAM_RESP2, db, split(command, argv), argv);
}

static __attribute__((unused)) struct called call(struct world *w, int db, const char *command)
{
    struct called r;
    call_start(w, &r, db, command);
    WAIT_FOR(w, 4000, r.done);
    assert_int_equal(r.done, 1);
    return r;
}

static __attribute__((unused)) void expect_call(struct world *w, int db, const char *command, const char *reply)
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

static __attribute__((unused)) void on_push(void *arg, struct slice reply)
{
    struct pinned *p = arg;
    size_t have = strlen(p->pushed);
    p->pushes++;
    snprintf(p->pushed + have, sizeof(p->pushed) - have, "%.*s", SLICE_FMT(reply));
}

static __attribute__((unused)) void on_lost(void *arg)
{
    struct pinned *p = arg;
    p->lost++;
    if (p->destroy_when_lost) {
        upstream_pin_destroy(p->pin);
        p->pin = NULL;
    }
}

static __attribute__((unused)) void pin_open_as(struct world *w, struct pinned *p, int proto, int db,
                                                const struct upstream_auth *auth)
{
    memset(p, 0, sizeof(*p));
    p->w = w;
    struct upstream_pin_events ev = {p, on_push, on_lost};
    p->pin = upstream_pin_create(w->up, UPSTREAM_PIN_WORK, proto, db, &ev, auth);
    assert_non_null(p->pin);
}

static __attribute__((unused)) void pin_open(struct world *w, struct pinned *p, int db)
{
    pin_open_as(w, p, 2, db, NULL);
}

static __attribute__((unused)) void pin_start(struct pinned *p, struct called *r, bool blocking, const char *command)
{
    struct slice argv[16];
    memset(r, 0, sizeof(*r));
    r->c.done = on_called;
    upstream_pin_call(p->pin, &r->c, blocking ? UPSTREAM_WAIT_EVER : 0, split(command, argv), argv);
}

static __attribute__((unused)) void expect_pin(struct pinned *p, const char *command, const char *reply)
{
    struct called r;
    pin_start(p, &r, false, command);
    WAIT_FOR(p->w, 4000, r.done);
    assert_int_equal(r.st, ST_OK);
    assert_string_equal(r.reply, reply);
}

static __attribute__((unused)) void pin_close(struct pinned *p)
{
    upstream_pin_destroy(p->pin);
    p->pin = NULL;
}

static __attribute__((unused)) int group_start(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    server_start(&server);
    return 0;
}

static __attribute__((unused)) int group_stop(void **state)
{
    (void)state;
    server_stop(&server);
    return 0;
}

#endif
