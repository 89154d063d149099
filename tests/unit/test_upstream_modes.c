/* The upstream's protocols, coherence modes, watchdog, breaker, limits and credentials. */
#include <sys/stat.h>

#include "upstream_world.h"
#include "upstream/upstream_priv.h"

static void via_start(struct world *w, struct called *r, enum upstream_via via, int db, const char *command)
{
    struct slice argv[16];
    memset(r, 0, sizeof(*r));
    r->c.done = on_called;
    upstream_call(w->up, &r->c, via, db, split(command, argv), argv);
}

static struct called via_call(struct world *w, enum upstream_via via, int db, const char *command)
{
    struct called r;
    via_start(w, &r, via, db, command);
    WAIT_FOR(w, 4000, r.done);
    assert_int_equal(r.done, 1);
    return r;
}

static void expect_resp3(struct world *w, int db, const char *command, const char *reply)
{
    struct called r = via_call(w, UPSTREAM_RESP3, db, command);
    assert_int_equal(r.st, ST_OK);
    assert_string_equal(r.reply, reply);
    assert_int_equal(r.is_error, reply[0] == '-');
}

/* ---- RESP3 ---- */

static void test_scan_resp3(void **state)
{
    (void)state;
    static const char *const replies[] = {
        "%1\r\n+a\r\n*1\r\n:1\r\n",
        "~2\r\n_\r\n#t\r\n",
        ",-1.5e3\r\n",
        "(123456789012345678901234567890\r\n",
        "=7\r\ntxt:abc\r\n",
        "!5\r\nERR x\r\n",
        "|1\r\n+k\r\n*2\r\n:1\r\n:2\r\n+OK\r\n",
        ">2\r\n+p\r\n*-1\r\n",
        "*2\r\n|1\r\n+a\r\n%0\r\n:1\r\n|0\r\n$-1\r\n",
        "%0\r\n",
        "-ERR\r\n",
    };
    char text[512] = "";
    size_t ends[16], n = sizeof(replies) / sizeof(replies[0]);
    for (size_t i = 0; i < n; i++) {
        strcat(text, replies[i]);
        ends[i] = strlen(text);
    }
    for (size_t step = 1; step <= strlen(text); step++) {
        struct reply_scan sc = {.resp3 = true};
        size_t start = 0, len, found = 0;
        for (size_t have = 0; have < strlen(text);) {
            have = have + step < strlen(text) ? have + step : strlen(text);
            while (start < have && reply_scan(&sc, SLICE(text + start, have - start), 1, &len) == ST_OK) {
                start += len;
                assert_int_equal(start, ends[found++]);
            }
        }
        assert_int_equal(found, n);
    }
    static const char *const bad[] = {"$?\r\n", "*?\r\n",  "%-1\r\n", ".\r\n",
                                      ";4\r\n", "~-1\r\n", "=x\r\n",  "%9999999999999\r\n"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct reply_scan sc = {.resp3 = true};
        size_t len;
        if (reply_scan(&sc, slice_str(bad[i]), 1, &len) != ST_BAD)
            fail_msg("accepted: %s", bad[i]);
    }
    for (size_t i = 0; i < 10; i++) {
        struct reply_scan sc = {0};
        size_t len;
        if (reply_scan(&sc, slice_str(replies[i]), 1, &len) == ST_OK)
            fail_msg("RESP2: %s", replies[i]);
    }
}

static void test_resp3_calls(void **state)
{
    (void)state;
    struct world w;
    struct called early, r;
    foreign(&server, "FLUSHALL");
    foreign(&server, "HSET h f v");
    world_open(&w, server.port);
    via_start(&w, &early, UPSTREAM_RESP3, 0, "HGETALL h");
    assert_int_equal(early.done, 0);
    WAIT_FOR(&w, 2000, early.done);
    assert_string_equal(early.reply, "%1\r\n$1\r\nf\r\n$1\r\nv\r\n");
    expect_call(&w, 0, "HGETALL h", "*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    expect_resp3(&w, 0, "GET nothing", "_\r\n");
    expect_resp3(&w, 3, "SET k 3", "+OK\r\n");
    expect_resp3(&w, 0, "EXISTS k", ":0\r\n");
    expect_resp3(&w, 3, "GET k", "$1\r\n3\r\n");
    expect_resp3(&w, 99, "GET k", "-ERR DB index is out of range\r\n");
    expect_resp3(&w, 0, "ZADD z 1.5 m", ":1\r\n");
    expect_resp3(&w, 0, "ZSCORE z m", ",1.5\r\n");
    expect_resp3(&w, 0, "SMEMBERS nothing", "~0\r\n");
    WAIT_UP(&w);
    assert_int_equal(clients_named(&server, "tiercel-write3"), 1);
    /* Its loss is nobody else's, and it comes back when it is needed. */
    assert_int_equal(kill_clients_named(&server, "tiercel-write3"), 1);
    turn_ms(&w, 50);
    assert_int_equal(upstream_state(w.up), UPSTREAM_UP);
    assert_int_equal(w.ended, 0);
    expect_resp3(&w, 0, "GET nothing", "_\r\n");
    world_close(&w);

    /* One that does not speak it says so, to each call. */
    struct server old = {.without = "HELLO"};
    server_start(&old);
    world_open(&w, old.port);
    WAIT_UP(&w);
    for (int i = 0; i < 2; i++) {
        r = via_call(&w, UPSTREAM_RESP3, 0, "GET k");
        assert_true(r.st == ST_OK && r.is_error && !r.sent);
        assert_non_null(strstr(r.reply, "-ERR the upstream does not speak RESP3: ERR unknown command"));
    }
    assert_int_equal(call(&w, 0, "PING").st, ST_OK);
    struct pinned p;
    pin_open_as(&w, &p, 3, 0, NULL);
    pin_start(&p, &r, false, "GET k");
    WAIT_FOR(&w, 1000, p.lost);
    assert_true(r.done == 1 && r.is_error && strstr(r.reply, "does not speak RESP3"));
    pin_close(&p);
    world_close(&w);
    server_stop(&old);
}

/* Attributes belong to the reply behind them, be it an error; pushes are nobody's reply. */
static void test_resp3_rare(void **state)
{
    (void)state;
    struct world w;
    struct server s = {.debug = true};
    server_start(&s);
    world_open(&w, s.port);
    WAIT_UP(&w);
    struct called r = via_call(&w, UPSTREAM_RESP3, 0, "DEBUG PROTOCOL attrib");
    assert_true(r.st == ST_OK && !r.is_error && r.reply[0] == '|');
    assert_non_null(strstr(r.reply, "$39\r\n"));
    expect_resp3(&w, 0, "DEBUG PROTOCOL bignum", "(1234567999999999999999999999999999999\r\n");
    expect_resp3(&w, 0, "DEBUG PROTOCOL verbatim", "=29\r\ntxt:This is a verbatim\nstring\r\n");
    expect_resp3(&w, 0, "DEBUG PROTOCOL map", "%3\r\n:0\r\n#f\r\n:1\r\n#t\r\n:2\r\n#f\r\n");
    expect_resp3(&w, 0, "DEBUG PROTOCOL null", "_\r\n");
    expect_resp3(&w, 0, "PING", "+PONG\r\n");
    world_close(&w);
    server_stop(&s);
}

static void test_resp3_pins(void **state)
{
    (void)state;
    struct world w;
    struct pinned p, q;
    struct called r;
    char id[sizeof(r.reply)];
    foreign(&server, "FLUSHALL");
    world_open(&w, server.port);
    WAIT_UP(&w);
    pin_open_as(&w, &p, 3, 0, NULL);
    expect_pin(&p, "SUBSCRIBE a b", ">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    WAIT_FOR(&w, 1000, p.pushes == 1);
    assert_string_equal(p.pushed, ">3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n");
    p.pushed[0] = 0;
    foreign(&server, "PUBLISH a hello");
    expect_pin(&p, "PING", "+PONG\r\n"); /* as if there were no subscription */
    expect_pin(&p, "LRANGE nothing 0 -1", "*0\r\n");
    assert_string_equal(p.pushed, ">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n");
    p.pushed[0] = 0;
    pin_start(&p, &r, false, "UNSUBSCRIBE");
    WAIT_FOR(&w, 1000, r.done);
    assert_non_null(strstr(r.reply, "unsubscribe"));
    assert_non_null(strstr(r.reply, ":1\r\n"));
    WAIT_FOR(&w, 1000, p.pushes == 3);
    assert_non_null(strstr(p.pushed, ":0\r\n"));
    expect_pin(&p, "UNSUBSCRIBE", ">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n");
    expect_pin(&p, "MULTI", "+OK\r\n");
    expect_pin(&p, "HGETALL h", "+QUEUED\r\n");
    expect_pin(&p, "GET k", "+QUEUED\r\n");
    expect_pin(&p, "EXEC", "*2\r\n%0\r\n_\r\n");
    pin_start(&p, &r, false, "CLIENT ID");
    WAIT_FOR(&w, 1000, r.done);
    text_set(id, sizeof(id), r.reply);
    /* Kept for the next client of its protocol, which it speaks again after RESET. */
    pin_close(&p);
    turn_ms(&w, 50);
    pin_open(&w, &q, 0);
    pin_start(&q, &r, false, "CLIENT ID");
    WAIT_FOR(&w, 1000, r.done);
    assert_string_not_equal(r.reply, id);
    pin_open_as(&w, &p, 3, 0, NULL);
    expect_pin(&p, "CLIENT ID", id);
    expect_pin(&p, "GET k", "_\r\n");
    pin_close(&p);
    pin_close(&q);
    world_close(&w);
}

/* ---- tracked calls ---- */

static void test_tracked_calls(void **state)
{
    (void)state;
    struct world w;
    foreign(&server, "FLUSHALL");
    foreign(&server, "SET t 1");
    world_open(&w, server.port);
    assert_int_equal(via_call(&w, UPSTREAM_TRACKED, 0, "EXISTS t").st, ST_UNAVAILABLE); /* no generation yet */
    WAIT_UP(&w);
    struct called r = via_call(&w, UPSTREAM_TRACKED, 0, "EXISTS t u");
    assert_int_equal(r.st, ST_OK);
    assert_string_equal(r.reply, ":1\r\n");
    r = via_call(&w, UPSTREAM_TRACKED, 5, "EXISTS t");
    assert_string_equal(r.reply, ":0\r\n");
    foreign(&server, "SET u 1");
    WAIT_FOR(&w, 1000, w.invalidated == 1);
    assert_string_equal(w.last_key, "u");
    assert_true(upstream_covers(w.up, SLICE_LIT("u")));
    /* The answer of a pair that was lost meanwhile vouches for nothing. */
    kill(server.pid, SIGSTOP);
    via_start(&w, &r, UPSTREAM_TRACKED, 0, "EXISTS t");
    WAIT_FOR(&w, 3000, r.done);
    assert_true(r.st == ST_TIMEOUT || r.st == ST_UNAVAILABLE);
    WAIT_FOR(&w, 1000, w.ended);
    assert_int_equal(via_call(&w, UPSTREAM_TRACKED, 0, "EXISTS t").st, ST_UNAVAILABLE);
    kill(server.pid, SIGCONT);
    WAIT_FOR(&w, 4000, upstream_generation(w.up));
    world_close(&w);
}

/* ---- the watchdog ---- */

static void test_slow_upstream(void **state)
{
    (void)state;
    struct world w;
    struct called c, tracked;
    struct fetched f;
    struct upstream_stats st;
    foreign(&server, "FLUSHALL");
    foreign(&server, "SET k 1");
    world_init(&w, server.port);
    w.opt.timeout_ms = 3000;
    w.opt.watchdog_timeout_ms = 100;
    world_create(&w);
    WAIT_UP(&w);
    assert_int_equal(fetch(&w, 0, "k").generation, 1);
    kill(server.pid, SIGSTOP);
    int64_t start = clock_mono_ms();
    fetch_start(&w, &f, 0, "k");
    call_start(&w, &c, 0, "INCR n");
    via_start(&w, &tracked, UPSTREAM_TRACKED, 0, "EXISTS k");
    WAIT_FOR(&w, WATCHDOG_MS + 400, w.ended == 1); /* whatever timeout_ms is */
    assert_true(clock_mono_ms() - start < 1000);
    assert_int_equal(upstream_generation(w.up), 0);
    assert_int_equal(upstream_state(w.up), UPSTREAM_UP);
    assert_non_null(strstr(upstream_coherence(w.up), "none: the upstream does not answer in time"));
    turn_ms(&w, 300);
    assert_int_equal(f.done + c.done + tracked.done, 0);
    kill(server.pid, SIGCONT);
    WAIT_FOR(&w, 1000, f.done && c.done && tracked.done);
    assert_int_equal(c.st, ST_OK); /* within its own deadline */
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.generation, 0);
    assert_int_equal(tracked.st, ST_UNAVAILABLE);
    WAIT_FOR(&w, 1000, w.began == 2);
    assert_int_equal(w.generation, 1); /* it goes on: nothing was lost */
    assert_int_equal(upstream_generation(w.up), 1);
    int seen = w.invalidated;
    foreign(&server, "SET k 2");
    WAIT_FOR(&w, 1000, w.invalidated == seen + 1);
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.reconnects, 0);
    assert_int_equal(st.timeouts, 0);
    world_close(&w);
}

/* ---- modes ---- */

struct fenced {
    struct upstream_fence f;
    int done;
    enum status st;
};

static void on_fenced(struct upstream_fence *f, enum status st)
{
    struct fenced *r = LIST_ENTRY(f, struct fenced, f);
    r->done++;
    r->st = st;
}

static enum status fence(struct world *w)
{
    struct fenced r = {.f.done = on_fenced};
    upstream_fence(w->up, &r.f);
    WAIT_FOR(w, 2000, r.done);
    assert_int_equal(r.done, 1);
    return r.st;
}

static void test_broadcast(void **state)
{
    (void)state;
    struct world w;
    char reason[240];
    foreign(&server, "FLUSHALL");
    foreign(&server, "MSET a:1 x b:1 y c:1 z");
    world_init(&w, server.port);
    w.opt.coherence = UPSTREAM_BROADCAST;
    text_set(w.opt.prefixes, sizeof(w.opt.prefixes), "a: b:");
    world_create(&w);
    WAIT_UP(&w);
    assert_string_equal(upstream_coherence(w.up), "broadcast");
    assert_int_equal(upstream_get_coherence(w.up, reason), UPSTREAM_BROADCAST);
    assert_string_equal(reason, "");
    assert_int_equal(fetch(&w, 0, "a:1").generation, 1);
    assert_int_equal(fetch(&w, 0, "b:none").generation, 1);
    struct fetched f = fetch(&w, 0, "c:1");
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.generation, 0);
    foreign(&server, "SET a:2 x"); /* never read */
    WAIT_FOR(&w, 1000, w.invalidated == 1);
    assert_string_equal(w.last_key, "a:2");
    foreign(&server, "SET c:1 x");
    for (int i = 0; i < 50; i++) {
        char cmd[32];
        snprintf(cmd, sizeof(cmd), "SET b:%d x", i);
        foreign(&server, cmd);
        assert_int_equal(fence(&w), ST_OK);
        assert_int_equal(w.invalidated, i + 2);
    }
    assert_false(upstream_covers(w.up, SLICE_LIT("c:1")));
    world_close(&w);
    char err[256];
    assert_int_equal(upstream_check_prefixes("a: b: c", err), ST_OK);
    assert_int_equal(upstream_check_prefixes("", err), ST_OK);
    assert_int_equal(upstream_check_prefixes("a: b a:x", err), ST_BAD);
    assert_non_null(strstr(err, "overlaps"));
}

static void test_ttl_and_fall_back(void **state)
{
    (void)state;
    struct world w;
    foreign(&server, "FLUSHALL");
    foreign(&server, "SET k 1");
    foreign(&server, "ACL SETUSER plain on >pw ~* &* +@all -client|tracking");
    for (int asked = 0; asked < 2; asked++) {
        world_init(&w, server.port);
        w.opt.coherence = asked ? UPSTREAM_TTL : UPSTREAM_TRACKING;
        w.opt.ttl_ms = 200;
        text_set(w.opt.user, sizeof(w.opt.user), "plain");
        text_set(w.opt.password, sizeof(w.opt.password), "pw");
        world_create(&w);
        WAIT_UP(&w);
        assert_non_null(strstr(upstream_coherence(w.up), asked ? "ttl" : "ttl: CLIENT TRACKING: NOPERM"));
        assert_int_equal(fetch(&w, 0, "k").generation, upstream_generation(w.up));
        assert_int_not_equal(upstream_generation(w.up), 0);
        int began = w.began;
        int64_t start = clock_mono_ms(); /* a copy is current for as long as its generation, 200 ms at most */
        WAIT_FOR(&w, 3000, w.began == began + 3);
        assert_true(clock_mono_ms() - start >= 400);
        assert_int_equal(w.ended, 0);
        assert_int_equal(fence(&w), ST_UNAVAILABLE);
        assert_int_equal(via_call(&w, UPSTREAM_TRACKED, 0, "EXISTS k").st, ST_UNAVAILABLE);
        assert_int_equal(clients_named(&server, "tiercel-inval"), 0);
        world_close(&w);
    }
    foreign(&server, "ACL DELUSER plain");
}

/* While ttl is in force the better mode is asked for, on connections that go on. */
static void test_probe(void **state)
{
    (void)state;
    struct world w;
    struct upstream_stats st;
    foreign(&server, "ACL SETUSER plain on >pw ~* &* +@all -client|tracking");
    world_init(&w, server.port);
    w.opt.ttl_ms = 60000;
    text_set(w.opt.user, sizeof(w.opt.user), "plain");
    text_set(w.opt.password, sizeof(w.opt.password), "pw");
    world_create(&w);
    WAIT_UP(&w);
    for (int allowed = 0; allowed < 2; allowed++) {
        if (allowed)
            foreign(&server, "ACL SETUSER plain +client|tracking");
        assert_int_equal(fetch(&w, 0, "k").generation, 1);
        w.up->probe_ms = clock_mono_ms();
        upstream_wake(w.up, w.up->probe_ms);
        WAIT_FOR(&w, 1000, w.up->probing);
        WAIT_FOR(&w, 1000, !w.up->probing);
        assert_int_equal(w.began, 1 + allowed);
        if (!allowed)
            assert_in_range(w.up->probe_ms - clock_mono_ms(), 50000, 80000);
    }
    assert_string_equal(upstream_coherence(w.up), "tracking");
    assert_int_equal(w.ended, 0);
    assert_int_equal(fetch(&w, 0, "k").generation, 2);
    foreign(&server, "SET k 1");
    WAIT_FOR(&w, 1000, w.invalidated == 1);
    assert_int_equal(fence(&w), ST_OK);
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.reconnects, 0);
    /* Now it is a pair: both go together. */
    kill_clients_named(&server, "tiercel-inval");
    WAIT_FOR(&w, 1000, w.ended == 1);
    WAIT_FOR(&w, 1000, w.began == 3);
    world_close(&w);
    foreign(&server, "ACL DELUSER plain");
}

/* While broadcast is in force in place of tracking that is asked for, too, and what is at the upstream's end changes over
 * without a gap. */
static void test_probe_of_broadcast(void **state)
{
    (void)state;
    struct world w;
    struct upstream_stats st;
    foreign(&server, "ACL SETUSER plain on >pw ~* &* +@all");
    world_init(&w, server.port);
    w.opt.coherence = UPSTREAM_BROADCAST;
    text_set(w.opt.prefixes, sizeof(w.opt.prefixes), "a: b:");
    text_set(w.opt.user, sizeof(w.opt.user), "plain");
    text_set(w.opt.password, sizeof(w.opt.password), "pw");
    world_create(&w);
    WAIT_UP(&w);
    w.up->opt.coherence = UPSTREAM_TRACKING; /* as if it had been refused */
    for (int allowed = 0; allowed < 2; allowed++) {
        foreign(&server, allowed ? "ACL SETUSER plain +client|tracking" : "ACL SETUSER plain -client|tracking");
        w.up->probe_ms = clock_mono_ms();
        upstream_wake(w.up, w.up->probe_ms);
        if (allowed)
            WAIT_FOR(&w, 1000, w.began == 2);
        else
            WAIT_FOR(&w, 1000, w.up->probe_ms != DUE_NEVER && w.up->probe_ms > clock_mono_ms() + 50000);
        assert_int_equal(w.began, 1 + allowed);
        assert_string_equal(upstream_coherence(w.up), allowed ? "tracking" : "broadcast");
    }
    assert_int_equal(w.ended, 0);
    assert_int_equal(fetch(&w, 0, "c:1").generation, 2);
    foreign(&server, "SET c:1 1");
    WAIT_FOR(&w, 1000, w.invalidated == 1);
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.reconnects, 0);
    world_close(&w);
    foreign(&server, "ACL DELUSER plain");
}

/* ---- the breaker ---- */

static void test_breaker(void **state)
{
    (void)state;
    struct world w;
    struct called r[3], late;
    struct upstream_stats st;
    struct pinned p;
    world_init(&w, server.port);
    w.opt.timeout_ms = 300;
    w.opt.breaker_failures = 3;
    world_create(&w);
    WAIT_UP(&w);
    kill(server.pid, SIGSTOP);
    for (int i = 0; i < 3; i++)
        call_start(&w, &r[i], 0, "PING");
    WAIT_FOR(&w, 1000, r[2].done);
    upstream_get_stats(w.up, &st);
    assert_int_not_equal(st.breaker, UPSTREAM_BREAKER_CLOSED);
    assert_int_equal(st.breaker_opens, 1);
    call_start(&w, &late, 0, "SET never 1"); /* at once, and not sent */
    assert_true(late.done == 1 && late.st == ST_UNAVAILABLE && !late.sent);
    pin_open(&w, &p, 0);
    pin_start(&p, &late, false, "SET never 1");
    assert_true(late.done == 1 && late.st == ST_UNAVAILABLE && !late.sent);
    turn_ms(&w, 50);
    assert_non_null(strstr(w.notice, "none is sent until it answers"));
    turn_ms(&w, 1500);
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.breaker_opens, 1);
    assert_int_not_equal(st.breaker, UPSTREAM_BREAKER_CLOSED);
    kill(server.pid, SIGCONT);
    WAIT_FOR(&w, 2000, (upstream_get_stats(w.up, &st), st.breaker == UPSTREAM_BREAKER_CLOSED));
    WAIT_UP(&w);
    expect_call(&w, 0, "EXISTS never", ":0\r\n");
    assert_int_equal(st.breaker_refused, 2);
    pin_close(&p);
    world_close(&w);
}

/* A single probe at a time decides, and an answer to anything in between ends a row of failures. */
static void test_breaker_probe(void **state)
{
    (void)state;
    struct world w;
    struct called r, slow;
    struct upstream_stats st;
    world_init(&w, server.port);
    w.opt.timeout_ms = 400;
    w.opt.watchdog_timeout_ms = 100000;
    w.opt.breaker_failures = 2;
    world_create(&w);
    WAIT_UP(&w);
    for (int i = 0; i < 3; i++) {
        call_start(&w, &slow, 0, "BLPOP nothing 0.5"); /* longer than the timeout, but answered late */
        WAIT_FOR(&w, 1000, slow.done);
        assert_int_equal(slow.st, ST_TIMEOUT);
        turn_ms(&w, 300); /* such a wait may end 100 ms late */
        assert_int_equal(call(&w, 0, "PING").st, ST_OK);
    }
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.breaker_opens, 0);
    call_start(&w, &slow, 0, "BLPOP nothing 0.55");
    call_start(&w, &r, 0, "PING");
    WAIT_FOR(&w, 1000, r.done);
    upstream_get_stats(w.up, &st);
    assert_int_equal(st.breaker_opens, 1);
    WAIT_FOR(&w, 1000, (upstream_get_stats(w.up, &st), st.breaker == UPSTREAM_BREAKER_CLOSED)); /* it lived */
    assert_int_equal(call(&w, 0, "PING").st, ST_OK);
    assert_int_equal(st.reconnects, 0);
    world_close(&w);
}

/* ---- limits and credentials ---- */

static void test_limits(void **state)
{
    (void)state;
    struct world w;
    struct upstream_stats st;
    struct upstream_pin_events none = {0};
    struct upstream_pin *work[2], *sub;
    world_init(&w, server.port);
    w.opt.pins_max = 2;
    w.opt.subscriptions_max = 1;
    world_create(&w);
    for (int i = 0; i < 2; i++)
        assert_non_null(work[i] = upstream_pin_create(w.up, UPSTREAM_PIN_WORK, 2, 0, &none, NULL));
    assert_null(upstream_pin_create(w.up, UPSTREAM_PIN_WORK, 3, 0, &none, NULL));
    assert_non_null(sub = upstream_pin_create(w.up, UPSTREAM_PIN_PUBSUB, 3, 0, &none, NULL));
    assert_null(upstream_pin_create(w.up, UPSTREAM_PIN_PUBSUB, 2, 0, &none, NULL));
    upstream_get_stats(w.up, &st);
    assert_true(st.pins == 2 && st.subscriptions == 1);
    upstream_pin_destroy(work[0]);
    assert_null(upstream_pin_create(w.up, UPSTREAM_PIN_PUBSUB, 2, 0, &none, NULL));
    upstream_pin_destroy(work[1]);
    upstream_pin_destroy(sub);
    upstream_get_stats(w.up, &st);
    assert_true(st.pins == 0 && st.subscriptions == 0);
    world_close(&w);
}

static void file_write(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_auth_file(void **state)
{
    (void)state;
    struct upstream_auth a = {"url", "url"};
    char path[128], err[256];
    snprintf(path, sizeof(path), "%s/secret", server.dir);
    file_write(path, "only\n");
    assert_int_equal(upstream_read_auth(path, &a, err), ST_OK);
    assert_string_equal(a.user, "url");
    assert_string_equal(a.password, "only");
    file_write(path, "ann\r\np w:\r\n");
    assert_int_equal(upstream_read_auth(path, &a, err), ST_OK);
    assert_string_equal(a.user, "ann");
    assert_string_equal(a.password, "p w:");
    static const char *const bad[] = {"", "\n", "a\nb\nc\n", "a\n\n"};
    for (size_t i = 0; i < 4; i++) {
        file_write(path, bad[i]);
        assert_int_equal(upstream_read_auth(path, &a, err), ST_BAD);
        assert_non_null(strstr(err, "expected one line"));
    }
    assert_int_equal(upstream_read_auth(server.dir, &a, err), ST_BAD);
    unlink(path);
    assert_int_equal(upstream_read_auth(path, &a, err), ST_BAD);
    assert_non_null(strstr(err, "No such file"));

    /* Not there, then wrong, then right, then changed: each connection reads it anew. */
    struct world w;
    foreign(&server, "ACL SETUSER ann on >one ~* &* +@all");
    world_init(&w, server.port);
    text_set(w.opt.auth_file, sizeof(w.opt.auth_file), path);
    world_create(&w);
    WAIT_FOR(&w, 2000, strstr(w.notice, "No such file"));
    file_write(path, "ann\ntwo\n");
    WAIT_FOR(&w, 2000, strstr(upstream_last_error(w.up), "WRONGPASS"));
    file_write(path, "ann\none\n");
    WAIT_UP(&w);
    struct pinned p;
    pin_open(&w, &p, 0);
    expect_pin(&p, "ACL WHOAMI", "$3\r\nann\r\n");
    foreign(&server, "ACL SETUSER ann resetpass >two");
    file_write(path, "ann\ntwo\n");
    kill_clients_named(&server, "tiercel-write");
    WAIT_FOR(&w, 1000, upstream_state(w.up) == UPSTREAM_DOWN);
    WAIT_UP(&w);
    expect_call(&w, 0, "ACL WHOAMI", "$3\r\nann\r\n");
    unlink(path);
    pin_close(&p); /* to rest it would have to log in again: it is closed, and nothing else happens */
    turn_ms(&w, 50);
    assert_int_equal(upstream_state(w.up), UPSTREAM_UP);
    assert_int_equal(clients_named(&server, "tiercel-pin"), 0);
    world_close(&w);
    foreign(&server, "ACL DELUSER ann");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scan_resp3),    cmocka_unit_test(test_resp3_calls),
        cmocka_unit_test(test_resp3_rare),    cmocka_unit_test(test_resp3_pins),
        cmocka_unit_test(test_probe),         cmocka_unit_test(test_probe_of_broadcast),
        cmocka_unit_test(test_tracked_calls), cmocka_unit_test(test_slow_upstream),
        cmocka_unit_test(test_broadcast),     cmocka_unit_test(test_ttl_and_fall_back),
        cmocka_unit_test(test_breaker),       cmocka_unit_test(test_breaker_probe),
        cmocka_unit_test(test_limits),        cmocka_unit_test(test_auth_file),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
