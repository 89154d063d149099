/* Publish and subscribe over several loops, without the rest of the command layer. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <uv.h>

#include <cmocka.h>

#include "cmd/cmd_priv.h"
#include "tiercel/check.h"
#include "tiercel/cmd.h"
#include "tiercel/hash.h"
#include "tiercel/inbox.h"
#include "tiercel/keyspace.h"
#include "tiercel/mbox.h"
#include "tiercel/pubsub.h"
#include "tiercel/resp.h"

/* ---- what pubsub needs of the others ------------------------------------------------------ */

void call_errorf(struct call *c, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    reply_error(&c->r, text);
}

struct test_loop {
    struct worker w;
    struct cmd_worker cw;
    struct cmd *cmd;
    struct conf conf;
    uv_loop_t loop;
    pthread_t thread;
    uint64_t rng, sent; /* sent: receivers that PUBLISH reported, all together */
    pthread_barrier_t *barrier;
};

static unsigned wakes;

static void count_wake(struct session *s)
{
    (void)s;
    __atomic_fetch_add(&wakes, 1, __ATOMIC_RELAXED);
}

static const struct session_ops ops = {.wake = count_wake};

static void loop_init(struct test_loop *t, struct cmd *cmd, int id)
{
    *t = (struct test_loop){.cmd = cmd, .rng = (uint64_t)id + 1};
    CHECK(uv_loop_init(&t->loop) == 0);
    t->w.id = id;
    t->w.loop = &t->loop;
    t->w.mbox = mbox_create(&t->loop, &t->w);
    t->w.conf = &t->conf;
    t->w.cmd = cmd;
    t->w.cmd_worker = &t->cw;
    t->cw.cmd = cmd;
    inbox_worker_init(&t->w);
    pubsub_worker_init(cmd->pubsub, &t->w);
}

static void loop_deinit(struct test_loop *t)
{
    inbox_worker_deinit(&t->w);
    pubsub_worker_deinit(&t->w);
    mbox_destroy(t->w.mbox);
    uv_run(&t->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&t->loop) == 0);
}

static struct session *session_new(struct test_loop *t, int proto)
{
    struct session *s = calloc(1, sizeof(*s));
    s->w = &t->w;
    s->ops = &ops;
    s->proto = proto;
    chain_init(&s->out);
    return s;
}

static void session_free(struct session *s)
{
    pubsub_session_gone(s);
    inbox_session_gone(s);
    chain_deinit(&s->out);
    free(s);
}

/* ---- running commands ------------------------------------------------------------------------ */

static const struct {
    const char *name;
    void (*run)(struct call *c);
} handlers[] = {
    {"SUBSCRIBE", cmd_subscribe},       {"UNSUBSCRIBE", cmd_unsubscribe}, {"PSUBSCRIBE", cmd_psubscribe},
    {"PUNSUBSCRIBE", cmd_punsubscribe}, {"PUBLISH", cmd_publish},         {"CHANNELS", cmd_pubsub_channels},
    {"NUMSUB", cmd_pubsub_numsub},      {"NUMPAT", cmd_pubsub_numpat},    {"HELP", cmd_pubsub_help},
};

static void run_in(struct session *s, const char *line, bool in_exec)
{
    struct request req;
    request_init(&req);
    assert_true(resp_split_line(slice_str(line), &req));
    struct call c = {.w = s->w, .s = s, .argc = req.argc, .argv = req.argv, .in_exec = in_exec};
    c.r = (struct reply){.out = &s->out, .proto = s->proto};
    struct slice name = req.argv[slice_is(req.argv[0], "PUBSUB") ? 1 : 0];
    for (size_t i = 0; i < sizeof(handlers) / sizeof(handlers[0]); i++)
        if (slice_is(name, handlers[i].name))
            handlers[i].run(&c);
    request_deinit(&req);
}

static void run(struct session *s, const char *line)
{
    run_in(s, line, false);
}

/* All output so far, in `to`. */
static void take(struct session *s, struct buf *to)
{
    struct iovec iov[64];
    while (!chain_empty(&s->out)) {
        size_t sum = 0;
        int n = chain_iov(&s->out, iov, 64);
        for (int i = 0; i < n; i++) {
            buf_append(to, iov[i].iov_base, iov[i].iov_len);
            sum += iov[i].iov_len;
        }
        chain_consume(&s->out, sum);
    }
}

static void expect(struct session *s, const char *want)
{
    struct buf got;
    buf_init(&got, MEM_OTHER);
    take(s, &got);
    buf_byte(&got, '\0');
    assert_string_equal(got.ptr, want);
    buf_deinit(&got);
}

/* ---- replies, as redis-server 7.0.15 gives them -------------------------------------------------- */

static void test_replies(void **state)
{
    (void)state;
    struct cmd cmd = {.pubsub = pubsub_create()};
    struct test_loop t;
    loop_init(&t, &cmd, 0);
    struct session *s = session_new(&t, 2), *p = session_new(&t, 2);
    run(s, "UNSUBSCRIBE");
    expect(s, "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
    run(s, "PUNSUBSCRIBE");
    expect(s, "*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n");
    run(s, "UNSUBSCRIBE a b");
    expect(s, "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n");
    assert_false(pubsub_active(s));
    run(s, "SUBSCRIBE a a b");
    expect(s, "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\n"
              "subscribe\r\n$1\r\nb\r\n:2\r\n");
    run(s, "PSUBSCRIBE a* b*");
    expect(s, "*3\r\n$10\r\npsubscribe\r\n$2\r\na*\r\n:3\r\n*3\r\n$10\r\npsubscribe\r\n$2\r\nb*\r\n:4\r\n");
    assert_true(pubsub_active(s));
    run(p, "PUBLISH a hello");
    expect(p, ":2\r\n");
    expect(s, "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n"
              "*4\r\n$8\r\npmessage\r\n$2\r\na*\r\n$1\r\na\r\n$5\r\nhello\r\n");
    run(p, "PUBSUB NUMSUB a b c");
    expect(p, "*6\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n:1\r\n$1\r\nc\r\n:0\r\n");
    run(p, "PUBSUB NUMPAT");
    expect(p, ":2\r\n");
    run(p, "PUBSUB CHANNELS [b]");
    expect(p, "*1\r\n$1\r\nb\r\n");
    run(p, "PUBSUB channels a b");
    expect(p, "-ERR unknown subcommand or wrong number of arguments for 'channels'. Try PUBSUB HELP.\r\n");
    assert_int_equal(pubsub_channels(cmd.pubsub), 2);
    run(s, "UNSUBSCRIBE");
    expect(s, "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:3\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:2\r\n");
    run(s, "PUNSUBSCRIBE a* nn");
    expect(s, "*3\r\n$12\r\npunsubscribe\r\n$2\r\na*\r\n:1\r\n*3\r\n$12\r\npunsubscribe\r\n$2\r\nnn\r\n:1\r\n");
    run(s, "PUNSUBSCRIBE");
    expect(s, "*3\r\n$12\r\npunsubscribe\r\n$2\r\nb*\r\n:0\r\n");
    assert_false(pubsub_active(s));
    run(p, "PUBSUB CHANNELS");
    expect(p, "*0\r\n");
    run(p, "PUBLISH a again");
    expect(p, ":0\r\n");
    expect(s, "");

    s->proto = 3;
    run(s, "SUBSCRIBE a");
    expect(s, ">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    run(s, "PUBLISH a self"); /* one's own message comes before the reply, as in Redis */
    expect(s, ">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\nself\r\n:1\r\n");
    run(s, "UNSUBSCRIBE");
    run(s, "UNSUBSCRIBE");
    expect(s, ">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n>3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n");
    session_free(s);
    session_free(p);
    loop_deinit(&t);
    pubsub_destroy(cmd.pubsub);
}

static void test_modes(void **state)
{
    (void)state;
    struct cmd cmd = {.pubsub = pubsub_create()};
    struct test_loop t;
    loop_init(&t, &cmd, 0);
    struct session *s = session_new(&t, 2), *p = session_new(&t, 2);
    static const struct command get = {.full = "get"}, ping = {.full = "ping"}, help = {.full = "pubsub|help"};
    assert_true(pubsub_allows(s, &get));
    run(s, "SUBSCRIBE a");
    assert_false(pubsub_allows(s, &get));
    assert_false(pubsub_allows(s, &help));
    struct call c = {.s = s, .cmd = &help, .r = {.out = &s->out, .proto = 2}};
    pubsub_refuse(&c);
    assert_true(pubsub_allows(s, &ping));
    s->proto = 3;
    assert_true(pubsub_allows(s, &get));
    s->proto = 2;
    expect(s, "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
              "-ERR Can't execute 'pubsub|help': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are "
              "allowed in this context\r\n");

    /* Within EXEC nothing comes between the replies; afterwards it does, and in order. */
    run_in(s, "PUBLISH a 1", true);
    run_in(s, "SUBSCRIBE b", true);
    run_in(s, "PUBLISH b 2", true);
    run_in(s, "UNSUBSCRIBE a b", true);
    expect(s, ":1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n"
              "*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n");
    mbox_drain(t.w.mbox);
    expect(s, "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\n1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$1\r\n2\r\n");

    /* CLIENT REPLY OFF withholds neither messages nor confirmations. */
    s->flags |= SESSION_REPLY_OFF;
    run(s, "SUBSCRIBE z");
    expect(s, "*3\r\n$9\r\nsubscribe\r\n$1\r\nz\r\n:1\r\n");

    /* Gone before the message is delivered. */
    run_in(p, "PUBLISH z late", true);
    expect(p, ":1\r\n");
    session_free(s);
    mbox_drain(t.w.mbox);
    run(p, "PUBLISH z later");
    expect(p, ":0\r\n");

    /* RESET, and a wake-up that outlives the worker's part. */
    run(p, "SUBSCRIBE a b");
    run(p, "PSUBSCRIBE *");
    run_in(p, "PUBLISH a x", true);
    pubsub_unsubscribe_all(p);
    assert_int_equal(pubsub_channels(cmd.pubsub), 0);
    assert_int_equal(pubsub_patterns(cmd.pubsub), 0);
    session_free(p);
    loop_deinit(&t);
    pubsub_destroy(cmd.pubsub);
}

static void test_large_payload(void **state)
{
    (void)state;
    struct cmd cmd = {.pubsub = pubsub_create()};
    struct test_loop t;
    loop_init(&t, &cmd, 0);
    struct session *s[3];
    for (int i = 0; i < 3; i++) {
        struct buf drop;
        buf_init(&drop, MEM_OTHER);
        s[i] = session_new(&t, 2);
        run(s[i], i < 2 ? "SUBSCRIBE big" : "PSUBSCRIBE b?g");
        take(s[i], &drop);
        buf_deinit(&drop);
    }
    t.conf.obuf[OBUF_PUBSUB].hard = 3 << 20;
    char *payload = malloc(1 << 20);
    memset(payload, 'p', 1 << 20);
    for (int i = 0; i < 20; i++)
        assert_int_equal(pubsub_publish(cmd.pubsub, SLICE_LIT("big"), SLICE(payload, 1 << 20)), 3);
    mbox_drain(t.w.mbox);
    /* Over the limit nothing is added; the net layer closes such a client at its flush. */
    for (int i = 0; i < 3; i++)
        assert_true(s[i]->out.bytes > 3 << 20 && s[i]->out.bytes < 5 << 20);
    struct buf got;
    buf_init(&got, MEM_OTHER);
    take(s[2], &got);
    const char head[] = "*4\r\n$8\r\npmessage\r\n$3\r\nb?g\r\n$3\r\nbig\r\n$1048576\r\n";
    assert_memory_equal(got.ptr, head, sizeof(head) - 1);
    assert_memory_equal(got.ptr + sizeof(head) - 1, payload, 1 << 20);
    assert_memory_equal(got.ptr + sizeof(head) - 1 + (1 << 20), "\r\n*4", 4);
    buf_deinit(&got);
    free(payload);
    for (int i = 0; i < 3; i++)
        session_free(s[i]);
    loop_deinit(&t);
    pubsub_destroy(cmd.pubsub);
}

/* ---- threads ------------------------------------------------------------------------------------- */

#define LOOPS 3
#define SESSIONS 6
#define ROUNDS 4000
#define WATCHED "order"

/* What one loop does: its sessions come and go as subscribers while it publishes. One session
 * stays subscribed to WATCHED and does nothing else. */
struct result {
    struct test_loop t;
    uint64_t delivered;
    struct buf order; /* what the lasting subscriber saw */
};

static uint64_t count_messages(struct buf *out)
{
    uint64_t n = 0;
    for (size_t i = 0; i + 12 < out->len; i++)
        n += memcmp(out->ptr + i, "\r\nmessage\r\n", 11) == 0 || memcmp(out->ptr + i, "\r\npmessage\r\n", 12) == 0;
    return n;
}

static int64_t published(struct session *s, const char *channel, const char *payload)
{
    return (int64_t)pubsub_publish(s->w->cmd->pubsub, slice_str(channel), slice_str(payload));
}

static void random_act(struct result *r, struct session **s, struct session *publisher, struct buf *seen, int round)
{
    static const char *const verbs[] = {"SUBSCRIBE ",     "UNSUBSCRIBE ", "PSUBSCRIBE *",
                                        "PUNSUBSCRIBE *", "UNSUBSCRIBE ", "PUNSUBSCRIBE "};
    char line[64];
    uint64_t rnd = rng_next(&r->t.rng);
    struct session *at = s[rnd % SESSIONS];
    char name = (char)('a' + rnd / 64 % 4);
    unsigned pick = (unsigned)(rnd / 4096 % 12);
    if (pick < 6) {
        snprintf(line, sizeof(line), "%s%c", verbs[pick], pick >= 4 ? ' ' : name);
        run(at, line);
        return;
    }
    if (pick == 6) {
        snprintf(line, sizeof(line), "%d-%d", r->t.w.id, round);
        r->t.sent += (uint64_t)published(publisher, WATCHED, line);
        return;
    }
    if (pick == 7) {
        mbox_drain(r->t.w.mbox);
        take(at, seen);
        return;
    }
    line[0] = name;
    line[1] = '\0';
    r->t.sent += (uint64_t)published(publisher, line, "text");
}

static void *loop_main(void *arg)
{
    struct result *r = arg;
    struct session *s[SESSIONS], *publisher = session_new(&r->t, 2), *lasting = session_new(&r->t, 2);
    struct buf seen;
    buf_init(&seen, MEM_OTHER);
    buf_init(&r->order, MEM_OTHER);
    run(lasting, "SUBSCRIBE " WATCHED);
    for (int i = 0; i < SESSIONS; i++)
        s[i] = session_new(&r->t, i % 2 ? 3 : 2);
    pthread_barrier_wait(r->t.barrier);
    for (int i = 0; i < ROUNDS; i++) {
        random_act(r, s, publisher, &seen, i);
        uv_run(&r->t.loop, UV_RUN_NOWAIT);
    }
    pthread_barrier_wait(r->t.barrier); /* nobody publishes any more */
    mbox_drain(r->t.w.mbox);
    for (int i = 0; i < SESSIONS; i++) {
        take(s[i], &seen);
        session_free(s[i]);
    }
    take(lasting, &r->order);
    r->delivered = count_messages(&seen) + count_messages(&r->order);
    session_free(lasting);
    session_free(publisher);
    buf_deinit(&seen);
    pthread_barrier_wait(r->t.barrier);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct cmd cmd = {.pubsub = pubsub_create()};
    struct result *r = calloc(LOOPS, sizeof(*r));
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, LOOPS);
    for (int i = 0; i < LOOPS; i++) {
        loop_init(&r[i].t, &cmd, i);
        r[i].t.barrier = &barrier;
    }
    for (int i = 0; i < LOOPS; i++)
        assert_int_equal(pthread_create(&r[i].t.thread, NULL, loop_main, &r[i]), 0);
    uint64_t sent = 0, delivered = 0;
    for (int i = 0; i < LOOPS; i++) {
        pthread_join(r[i].t.thread, NULL);
        sent += r[i].t.sent;
        delivered += r[i].delivered;
    }
    /* A subscriber got exactly the messages that counted it... */
    assert_true(sent > 1000);
    assert_int_equal(delivered, sent);
    /* ... and all saw a channel's messages in one order. */
    for (int i = 1; i < LOOPS; i++) {
        assert_int_equal(r[i].order.len, r[0].order.len);
        assert_memory_equal(r[i].order.ptr, r[0].order.ptr, r[0].order.len);
    }
    assert_int_equal(pubsub_channels(cmd.pubsub), 0);
    for (int i = 0; i < LOOPS; i++) {
        buf_deinit(&r[i].order);
        loop_deinit(&r[i].t);
    }
    pthread_barrier_destroy(&barrier);
    free(r);
    pubsub_destroy(cmd.pubsub);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_large_payload),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
