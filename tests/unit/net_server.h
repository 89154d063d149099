/* A server for the tests of the net layer: real workers and sockets, and below them a session
 * layer that only knows
 *   ECHO x    the argument              LEN x     its length and the sum of its bytes
 *   BIG n     n bytes, by reference     LATER x   the argument, a moment later; what follows waits
 *   BLOCK     never answers             CLASS     pub/sub's output limits from now on
 *   AUTH      authenticates             QUIT      +OK, and closes
 *   KEEP      sets NO_EVICT             WHERE     the worker's number
 * and answers +PONG to everything else. Included by one test only. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

#include "tiercel/acl.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/cmd.h"
#include "tiercel/mbox.h"
#include "tiercel/net.h"
#include "tiercel/num.h"
#include "tiercel/session.h"
#include "tiercel/stats.h"

#define TEST_QUEUE_MAX 64
#define TEST_WORKERS_MAX 8

static _Atomic size_t test_max_out; /* most output of one session when a request ran */
static _Atomic int test_sessions;   /* alive */
static _Atomic uint64_t test_loop_turns;
static _Atomic uint64_t test_requests;

struct test_worker {
    struct worker w;
    struct cmd cmd; /* only its users: those that the settings speak of */
    uv_loop_t loop;
    uv_timer_t pump, tick;
    uv_prepare_t count;
    pthread_t thread;
    struct list sessions;
    int64_t drain_ms;
    struct test_server *srv;
};

struct test_server {
    struct net *net;
    struct conf *conf;
    int nworkers;
    int64_t maxclients;
    struct test_worker *worker;
    pthread_barrier_t started;
    _Atomic int stopped;
};

/* ---- sessions ------------------------------------------------------------------------- */

struct test_parked {
    struct list link;
    bool later, blocks;
    struct buf text;
};

static void test_park(struct session *s, const char *reply, size_t len, bool later, bool blocks)
{
    struct test_parked *p = mem_calloc(MEM_CLIENT, sizeof(*p));
    p->later = later;
    p->blocks = blocks;
    buf_init(&p->text, MEM_CLIENT);
    buf_append(&p->text, reply, len);
    list_push_back(&s->queue, &p->link);
    s->queued++;
    s->queued_bytes += len;
}

struct session *session_create(struct worker *w, const struct session_ops *ops, void *conn)
{
    static _Atomic uint64_t ids;
    struct session *s = mem_calloc(MEM_CLIENT, sizeof(*s));
    struct test_worker *tw = (struct test_worker *)w;
    s->w = w;
    s->id = atomic_fetch_add(&ids, 1) + 1;
    s->proto = 2;
    s->ops = ops;
    s->conn = conn;
    s->created_ms = s->last_ms = w->now_ms;
    chain_init(&s->out);
    list_init(&s->queue);
    list_push_back(&tw->sessions, &s->link);
    atomic_fetch_add(&test_sessions, 1);
    return s;
}

static void test_unpark(struct session *s, struct test_parked *p)
{
    list_remove(&p->link);
    s->queued--;
    s->queued_bytes -= p->text.len;
    buf_deinit(&p->text);
    mem_free(MEM_CLIENT, p);
}

void session_destroy(struct session *s)
{
    while (!list_empty(&s->queue))
        test_unpark(s, LIST_ENTRY(s->queue.next, struct test_parked, link));
    list_remove(&s->link);
    chain_deinit(&s->out);
    s->ops->wake(s); /* as a session that ends waits might: must be harmless */
    mem_free(MEM_CLIENT, s);
    atomic_fetch_sub(&test_sessions, 1);
}

static void test_run(struct session *s, struct slice cmd, struct slice arg)
{
    struct reply r = {.out = &s->out, .proto = 2};
    int64_t n = 0;
    if (slice_is(cmd, "echo") || slice_is(cmd, "later")) {
        reply_bulk(&r, arg);
    } else if (slice_is(cmd, "len")) {
        for (size_t i = 0; i < arg.len; i++)
            n += (unsigned char)arg.ptr[i];
        reply_array(&r, 2);
        reply_int(&r, (int64_t)arg.len);
        reply_int(&r, n);
    } else if (slice_is(cmd, "big") && num_parse_i64(arg, &n)) {
        struct rcbuf *b = rcbuf_create((size_t)n);
        memset(b->data, 'b', (size_t)n);
        reply_bulk_ref(&r, b);
    } else if (slice_is(cmd, "class")) {
        s->proto = 3; /* what the stub of session_obuf_class() looks at */
        reply_simple(&r, "OK");
    } else if (slice_is(cmd, "auth")) {
        s->flags |= SESSION_AUTHENTICATED;
        reply_simple(&r, "OK");
    } else if (slice_is(cmd, "keep")) {
        s->flags |= SESSION_NO_EVICT;
        reply_simple(&r, "OK");
    } else if (slice_is(cmd, "where")) {
        reply_int(&r, s->w->id);
    } else if (slice_is(cmd, "quit")) {
        reply_simple(&r, "OK");
        s->close_after_reply = true;
    } else {
        reply_simple(&r, "PONG");
    }
    size_t max = atomic_load(&test_max_out);
    while (s->out.bytes > max && !atomic_compare_exchange_weak(&test_max_out, &max, s->out.bytes)) {
    }
}

void session_note_keys(struct session *s, struct request *reqs, int n)
{
    (void)s;
    (void)reqs;
    (void)n;
}

void session_prefetch(struct worker *w, const struct request *reqs, int n)
{
    (void)w;
    (void)reqs;
    (void)n;
}

void session_feed(struct session *s, const struct request *req)
{
    struct slice cmd = req->argv[0], arg = req->argc > 1 ? req->argv[1] : SLICE_NONE;
    CHECK(!s->close_after_reply && !s->close_asap);
    atomic_fetch_add(&test_requests, 1);
    if (slice_is(cmd, "block")) {
        s->flags |= SESSION_BLOCKED;
        test_park(s, "", 0, false, true);
    } else if (s->queued || slice_is(cmd, "later")) {
        char head[16];
        int n =
            snprintf(head, sizeof(head), "%.10s ", slice_is(cmd, "echo") || slice_is(cmd, "later") ? "echo" : "ping");
        test_park(s, head, (size_t)n, slice_is(cmd, "later"), false);
        struct test_parked *p = LIST_ENTRY(s->queue.prev, struct test_parked, link);
        buf_slice_append(&p->text, arg);
        s->queued_bytes += arg.len;
    } else {
        test_run(s, cmd, arg);
    }
}

void session_resume(struct session *s)
{
    (void)s;
}

bool session_hold(struct session *s)
{
    (void)s;
    return false;
}

bool session_full(const struct session *s)
{
    return s->queued >= TEST_QUEUE_MAX;
}

void session_catch_up(struct worker *w)
{
    (void)w;
}

bool acl_default_nopass(const struct acl *a)
{
    return ((const struct conf *)(const void *)a)->requirepass[0] == '\0';
}

bool acl_default_open(const struct acl *a)
{
    return acl_default_nopass(a);
}

size_t session_bytes(const struct session *s)
{
    return sizeof(*s) + s->query_bytes + s->query_free + s->queued_bytes + s->out.bytes;
}

int session_obuf_class(const struct session *s)
{
    return s->proto == 3 ? OBUF_PUBSUB : OBUF_NORMAL;
}

/* One LATER of each session is answered, and what stood behind it. */
static void test_pump_session(struct session *s)
{
    bool first = true;
    while (!list_empty(&s->queue)) {
        struct test_parked *p = LIST_ENTRY(s->queue.next, struct test_parked, link);
        if (p->blocks || (p->later && !first))
            break;
        first = false;
        test_run(s, SLICE(p->text.ptr, 4), SLICE(p->text.ptr + 5, p->text.len - 5));
        test_unpark(s, p);
    }
    if (!first)
        s->ops->wake(s);
}

static void test_on_pump(uv_timer_t *timer)
{
    struct test_worker *tw = timer->data;
    for (struct list *l = tw->sessions.next; l != &tw->sessions; l = l->next)
        test_pump_session(LIST_ENTRY(l, struct session, link));
}

/* ---- workers ---------------------------------------------------------------------------- */

static void test_on_tick(uv_timer_t *timer)
{
    struct test_worker *tw = timer->data;
    net_worker_tick(&tw->w);
}

static void test_on_count(uv_prepare_t *prepare)
{
    (void)prepare;
    atomic_fetch_add(&test_loop_turns, 1);
}

static void test_on_closed(struct worker *w)
{
    struct test_worker *tw = (struct test_worker *)w;
    CHECK(list_empty(&tw->sessions));
    uv_close((uv_handle_t *)&tw->pump, NULL);
    uv_close((uv_handle_t *)&tw->tick, NULL);
    uv_close((uv_handle_t *)&tw->count, NULL);
    mbox_destroy(w->mbox);
}

static void *test_worker_main(void *arg)
{
    struct test_worker *tw = arg;
    tw->w.stats = stats_block_create();
    tw->w.now_ms = clock_wall_ms();
    tw->w.mbox = mbox_create(&tw->loop, &tw->w);
    uv_timer_init(&tw->loop, &tw->pump);
    uv_timer_init(&tw->loop, &tw->tick);
    uv_prepare_init(&tw->loop, &tw->count);
    tw->pump.data = tw->tick.data = tw;
    uv_timer_start(&tw->pump, test_on_pump, 3, 3);
    uv_timer_start(&tw->tick, test_on_tick, 20, 20);
    uv_prepare_start(&tw->count, test_on_count);
    CHECK(net_worker_start(tw->srv->net, &tw->w) == ST_OK);
    pthread_barrier_wait(&tw->srv->started);
    uv_run(&tw->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&tw->loop) == 0);
    return NULL;
}

static int test_free_port(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(sa);
    CHECK(bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0);
    close(fd);
    return ntohs(sa.sin_port);
}

static struct conf *test_conf(void)
{
    struct conf *conf = calloc(1, sizeof(*conf));
    conf->port = test_free_port();
    conf->bind = "127.0.0.1 -::1";
    conf->unixsocket = conf->requirepass = "";
    conf->unixsocketperm = "0";
    conf->tcp_backlog = 511;
    conf->tcp_keepalive = 300;
    conf->maxclients = 10000;
    conf->proto_max_bulk_len = 512 << 20;
    conf->client_query_buffer_limit = 1 << 30;
    conf->protected_mode = true;
    conf->hz = 50;
    conf->obuf[OBUF_PUBSUB] = (struct conf_obuf_limit){32 << 20, 8 << 20, 60};
    return conf;
}

static struct test_server *test_server_start(struct conf *conf, int nworkers)
{
    struct test_server *srv = calloc(1, sizeof(*srv));
    char err[256];
    srv->conf = conf;
    srv->nworkers = nworkers;
    if (net_listen(conf, nworkers, &srv->net, &srv->maxclients, err) != ST_OK) {
        fprintf(stderr, "net_listen: %s\n", err);
        abort();
    }
    srv->worker = calloc((size_t)nworkers, sizeof(*srv->worker));
    pthread_barrier_init(&srv->started, NULL, (unsigned)nworkers + 1);
    for (int i = 0; i < nworkers; i++) {
        struct test_worker *tw = &srv->worker[i];
        tw->srv = srv;
        tw->w.id = i;
        tw->w.conf = conf;
        tw->w.cmd = &tw->cmd;
        tw->cmd.acl = (struct acl *)(void *)conf;
        tw->w.loop = &tw->loop;
        list_init(&tw->sessions);
        CHECK(uv_loop_init(&tw->loop) == 0);
        CHECK(pthread_create(&tw->thread, NULL, test_worker_main, tw) == 0);
    }
    pthread_barrier_wait(&srv->started);
    return srv;
}

static void test_on_stop(struct mbox_msg *msg, void *owner)
{
    struct worker *w = owner;
    net_worker_stop(w, ((struct test_worker *)w)->drain_ms, test_on_closed);
    free(msg);
}

static void test_server_ask_stop(struct test_server *srv, int64_t drain_ms)
{
    for (int i = 0; i < srv->nworkers; i++) {
        struct mbox_msg *msg = calloc(1, sizeof(*msg));
        msg->run = test_on_stop;
        srv->worker[i].drain_ms = drain_ms;
        mbox_post(srv->worker[i].w.mbox, msg);
    }
}

static void test_server_join(struct test_server *srv)
{
    for (int i = 0; i < srv->nworkers; i++)
        pthread_join(srv->worker[i].thread, NULL);
    net_close(srv->net);
    pthread_barrier_destroy(&srv->started);
    free(srv->worker);
    free(srv->conf);
    free(srv);
    CHECK(atomic_load(&test_sessions) == 0);
}

static void test_server_stop(struct test_server *srv)
{
    test_server_ask_stop(srv, 0);
    test_server_join(srv);
}
