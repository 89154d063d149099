/* The upstream against a redis-server that does its work. */
#include "upstream_world.h"

#include "upstream/upstream_priv.h"

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

/* Every way of cutting the input gives the same replies. */
static void test_scan(void **state)
{
    (void)state;
    static const char text[] = "+OK\r\n*3\r\n$3\r\na\r\n\r\n*-1\r\n*2\r\n$-1\r\n:-7\r\n*0\r\n-ERR x y\r\n$0\r\n\r\n";
    static const size_t ends[] = {5, 37, 41, 51, 57};
    for (size_t step = 1; step < sizeof(text); step++) {
        struct reply_scan sc = {0};
        size_t start = 0, len, n = 0;
        for (size_t have = 0; have < sizeof(text) - 1;) {
            have = have + step < sizeof(text) - 1 ? have + step : sizeof(text) - 1;
            while (start < have && reply_scan(&sc, SLICE(text + start, have - start), 1, &len) == ST_OK) {
                start += len;
                assert_int_equal(start, ends[n++]);
            }
        }
        assert_int_equal(n, 5);
    }
    static const char *const bad[] = {"?\r\n",
                                      "\r\n",
                                      "\n",
                                      "+OK\n",
                                      "$x\r\n",
                                      "$-2\r\n",
                                      "*-2\r\n",
                                      "$1\r\nabc",
                                      "*1\r\n!\r\n",
                                      ":1x\r\n",
                                      "$\r\n",
                                      "$99999999999999999999\r\n",
                                      "*1\r\n*9999999999999999\r\n"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct reply_scan sc = {0};
        size_t len;
        if (reply_scan(&sc, slice_str(bad[i]), 1, &len) != ST_BAD)
            fail_msg("accepted: %s", bad[i]);
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
    w.opt.first_generation = 41;
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
    upstream_call(w.up, &c.c, UPSTREAM_RESP2, 0, 3, set);
    WAIT_FOR(&w, 5000, c.done);
    assert_string_equal(c.reply, "+OK\r\n");
    free(big);
    struct fetched f;
    fetch_start(&w, &f, 0, "big");
    WAIT_FOR(&w, 5000, f.done);
    assert_int_equal(f.len, len);
    assert_int_equal(f.generation, 41);
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
    expect_call(&w, 0, "EVAL return{{{{{{{{{{{{{}}}}}}}}}}}}} 0", /* deeper than hiredis 0.14 can */
                "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*0\r\n");
    assert_int_equal(call(&w, 0, "COMMAND DOCS").st, ST_OK);
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
    /* Subscribed, then clean again. */
    pin_open(&w, &p, 2);
    expect_pin(&p, "SUBSCRIBE a", "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    expect_pin(&p, "UNSUBSCRIBE a", "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n");
    pin_close(&p);
    pin_open(&w, &p, 2);
    pin_start(&p, &c, false, "CLIENT ID");
    WAIT_FOR(&w, 1000, c.done);
    assert_int_equal(strtoll(c.reply + 1, NULL, 10), id);
    expect_pin(&p, "GET a", "$1\r\n2\r\n");
    pin_close(&p);
    /* SUBSCRIBE inside MULTI: messages are told from answers all the same. */
    pin_open(&w, &p, 2);
    expect_pin(&p, "MULTI", "+OK\r\n");
    expect_pin(&p, "SUBSCRIBE ch", "+QUEUED\r\n");
    expect_pin(&p, "EXEC", "*1\r\n*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n");
    foreign(&server, "PUBLISH ch hello");
    expect_pin(&p, "PING", "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    assert_int_equal(p.pushes, 1);
    pin_close(&p);
    /* The limit, and a database that does not exist. */
    struct pinned many[8], refused;
    for (int i = 0; i < 8; i++)
        pin_open(&w, &many[i], 0);
    struct upstream_pin_events none = {0};
    assert_null(upstream_pin_create(w.up, UPSTREAM_PIN_WORK, 2, 0, &none, NULL));
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

/* Credentials of a client's own: the upstream's rights and words, and no connection is shared. */
static void test_pin_auth(void **state)
{
    (void)state;
    struct world w;
    struct pinned p;
    struct called r, r2;
    struct upstream_auth alice = {"alice", "pw"}, wrong = {"alice", "no"}, nobody = {"", ""};
    foreign(&server, "ACL SETUSER alice reset on >pw ~a* +get +set +ping +select");
    world_open(&w, server.port);
    WAIT_UP(&w);
    pin_open_as(&w, &p, 2, 0, &alice);
    expect_pin(&p, "SET a1 x", "+OK\r\n");
    pin_start(&p, &r, false, "GET b");
    WAIT_FOR(&w, 1000, r.done);
    assert_true(r.is_error);
    assert_non_null(strstr(r.reply, "NOPERM"));
    pin_close(&p);
    turn_ms(&w, 20);
    assert_int_equal(clients_named(&server, "tiercel-pin"), 0);

    pin_open_as(&w, &p, 2, 0, &wrong);
    pin_start(&p, &r, false, "PING");
    pin_start(&p, &r2, false, "GET a1");
    WAIT_FOR(&w, 1000, p.lost);
    assert_true(r.done == 1 && r.st == ST_OK && r.is_error && !r.sent && r2.done == 1);
    assert_string_equal(r.reply, "-WRONGPASS invalid username-password pair or user is disabled.\r\n");
    assert_string_equal(r2.reply, r.reply);
    pin_close(&p);

    foreign(&server, "CONFIG SET requirepass secret");
    pin_open_as(&w, &p, 2, 0, &nobody);
    pin_start(&p, &r, false, "GET a1");
    WAIT_FOR(&w, 1000, r.done);
    assert_non_null(strstr(r.reply, "-NOAUTH"));
    assert_int_equal(p.lost, 0);
    pin_close(&p);
    redisContext *c = dial(&server);
    freeReplyObject(redisCommand(c, "AUTH secret"));
    freeReplyObject(redisCommand(c, "CONFIG SET requirepass %s", ""));
    freeReplyObject(redisCommand(c, "ACL DELUSER alice"));
    redisFree(c);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_url),
        cmocka_unit_test(test_scan),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_databases),
        cmocka_unit_test(test_invalidation),
        cmocka_unit_test(test_fence),
        cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_host_names),
        cmocka_unit_test(test_pin_transaction),
        cmocka_unit_test(test_pin_auth),
        cmocka_unit_test(test_pin_blocking),
        cmocka_unit_test(test_pin_pubsub),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
