/* The upstream against what goes wrong: lost connections, servers that stop, lie or say nothing,
 * and being destroyed at any moment. */
#include "upstream_world.h"

/* ---- a server that misbehaves, on the same loop ------------------------------------------- */

enum mischief {
    POLITE,    /* answers, but knows no CLIENT and no SUBSCRIBE */
    SILENT,    /* accepts and says nothing */
    CLOSING,   /* accepts and closes */
    GARBAGE,   /* answers what is no RESP */
    TALKATIVE, /* one reply more than was asked for */
    FULL,      /* an error at once, then closes */
    HALF,      /* half a reply, then silence */
    LIAR,      /* accepts CLIENT TRACKING, and does not track */
    PICKY,     /* tracks by prefix only */
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

static bool rogue_tracks(struct rogue_conn *c, const struct request *req)
{
    if (slice_is(req->argv[0], "subscribe")) {
        rogue_say(c, "*3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:1\r\n");
    } else if (!slice_is(req->argv[0], "client")) {
        return false;
    } else if (slice_is(req->argv[1], "tracking")) {
        bool by_prefix = req->argc == 8 && slice_is(req->argv[5], "bcast") && slice_is(req->argv[7], "ke");
        rogue_say(c, c->rogue->mischief == LIAR || by_prefix ? "+OK\r\n" : "-ERR by prefix only\r\n");
    } else {
        bool lie = slice_is(req->argv[1], "getredir") && c->rogue->mischief == LIAR;
        rogue_say(c, slice_is(req->argv[1], "setname") ? "+OK\r\n" : lie ? ":-1\r\n" : ":7\r\n");
    }
    return true;
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
    case LIAR:
    case PICKY:
        if (rogue_tracks(c, req))
            return;
        break;
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
    if (mischief >= LIAR) {
        w->opt.ttl_ms = 60000;
        text_set(w->opt.prefixes, sizeof(w->opt.prefixes), mischief == PICKY ? "ke" : "");
    }
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

/* ---- tests ---- */

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

static void test_rogues(void **state)
{
    (void)state;
    static const struct {
        enum mischief mischief;
        const char *error;
    } cases[] = {
        {SILENT, "no answer to the greeting"}, {CLOSING, "closed"},
        {GARBAGE, "protocol error"},           {FULL, "max number of clients"},
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

static void test_fall_back(void **state)
{
    (void)state;
    struct world w;
    struct rogue r;
    rogue_start(&w, &r, LIAR);
    WAIT_UP(&w);
    assert_string_equal(upstream_coherence(w.up), "ttl: CLIENT TRACKING: accepted, but CLIENT GETREDIR denies it");
    assert_int_equal(fetch(&w, 0, "key").generation, 1);
    rogue_stop(&w, &r);
    rogue_start(&w, &r, PICKY);
    WAIT_UP(&w);
    assert_string_equal(upstream_coherence(w.up), "broadcast: CLIENT TRACKING: ERR by prefix only");
    assert_int_equal(fetch(&w, 0, "key").generation, 1);
    assert_int_equal(fetch(&w, 0, "other").generation, 0);
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
            upstream_call(w.up, &s.c, UPSTREAM_RESP2, 0, 1, argv);
        else
            upstream_pin_call(p.pin, &s.c, 0, 1, argv);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lost_connections),
        cmocka_unit_test(test_server_frozen),
        cmocka_unit_test(test_server_restarted),
        cmocka_unit_test(test_rogues),
        cmocka_unit_test(test_no_tracking_and_late_answers),
        cmocka_unit_test(test_fall_back),
        cmocka_unit_test(test_destroy_in_callbacks),
        cmocka_unit_test(test_destroy_at_any_moment),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
