/* Client tracking's tables against a plain model: who has read what, and who is told of a change. */
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
#include "cmd/tracking_priv.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"
#include "tiercel/mbox.h"

#define CLIENTS 24
#define NAMES 300

struct tracking_world {
    struct tier tier;
    struct cmd cmd;
    struct worker w, *workers[1];
    struct cmd_worker cw;
    struct conf conf;
    uv_loop_t loop;
    struct session *s[CLIENTS];
    bool has[CLIENTS][NAMES]; /* the model */
    uint64_t rng;
};

static void no_wake(struct session *s)
{
    (void)s;
}

static const struct session_ops ops = {.wake = no_wake};

static unsigned below(struct tracking_world *wd, unsigned n)
{
    return (unsigned)(rng_next(&wd->rng) % n);
}

static struct session *client(struct tracking_world *wd, unsigned i)
{
    struct session *s = mem_calloc(MEM_CLIENT, sizeof(*s));

    s->w = &wd->w;
    s->id = ++wd->cmd.next_client_id;
    s->proto = 3;
    s->ops = &ops;
    chain_init(&s->out);
    tracking_session_created(s);
    memset(wd->has[i], 0, sizeof(wd->has[i]));
    return s;
}

static void client_gone(struct session *s)
{
    tracking_session_gone(s);
    inbox_session_gone(s);
    chain_deinit(&s->out);
    mem_free(MEM_CLIENT, s);
}

static int setup(void **state)
{
    struct tracking_world *wd = calloc(1, sizeof(*wd));

    wd->rng = 7;
    CHECK(uv_loop_init(&wd->loop) == 0);
    wd->w = (struct worker){.loop = &wd->loop, .conf = &wd->conf, .cmd = &wd->cmd, .cmd_worker = &wd->cw};
    wd->w.mbox = mbox_create(&wd->loop, &wd->w);
    wd->workers[0] = &wd->w;
    wd->tier.nworkers = 1;
    wd->tier.workers = wd->workers;
    wd->cmd.tracking = tracking_create(&wd->tier);
    inbox_worker_init(&wd->w);
    tracking_worker_init(wd->cmd.tracking, &wd->w);
    for (unsigned i = 0; i < CLIENTS; i++)
        wd->s[i] = client(wd, i);
    *state = wd;
    return 0;
}

static int teardown(void **state)
{
    struct tracking_world *wd = *state;

    for (unsigned i = 0; i < CLIENTS; i++)
        client_gone(wd->s[i]);
    inbox_worker_deinit(&wd->w);
    tracking_worker_deinit(&wd->w);
    tracking_destroy(wd->cmd.tracking);
    mbox_destroy(wd->w.mbox);
    uv_run(&wd->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&wd->loop) == 0);
    free(wd);
    return 0;
}

static struct slice name_of(unsigned i, char to[16])
{
    return SLICE(to, (size_t)snprintf(to, 16, "name:%u", i));
}

static void read_name(struct tracking_world *wd, unsigned c, unsigned i)
{
    static const struct command get = {.flags = CMD_READONLY, .container = -1};
    char text[16];
    struct slice name = name_of(i, text);
    struct call_key key = {.key = {.ptr = name.ptr, .len = (uint32_t)name.len}};
    struct call call = {.w = &wd->w, .s = wd->s[c], .cmd = &get, .keys = &key, .nkeys = 1};

    tracking_read(&call);
    wd->has[c][i] = true;
}

static void change_name(struct tracking_world *wd, unsigned i)
{
    char text[16];
    tracking_key_changed(wd->cmd.tracking, NULL, name_of(i, text), TIER_WRITTEN, false);
}

/* What the client was sent since the last time. */
static size_t received(struct session *s, char *to, size_t max)
{
    size_t n = 0;
    while (!chain_empty(&s->out)) {
        struct iovec iov[16];
        int k = chain_iov(&s->out, iov, 16);
        for (int i = 0; i < k; i++) {
            CHECK(n + iov[i].iov_len < max);
            memcpy(to + n, iov[i].iov_base, iov[i].iov_len);
            n += iov[i].iov_len;
        }
        size_t took = 0;
        for (int i = 0; i < k; i++)
            took += iov[i].iov_len;
        chain_consume(&s->out, took);
    }
    to[n] = '\0';
    return n;
}

/* Everybody was told of exactly that name, or of nothing. */
static void expect_told(struct tracking_world *wd, unsigned i)
{
    char text[16], want[128], got[4096];
    struct slice name = name_of(i, text);

    snprintf(want, sizeof(want), ">2\r\n$10\r\ninvalidate\r\n*1\r\n$%zu\r\n%.*s\r\n", name.len, SLICE_FMT(name));
    inbox_drain(&wd->w, NULL);
    for (unsigned c = 0; c < CLIENTS; c++) {
        received(wd->s[c], got, sizeof(got));
        bool told = wd->has[c][i] && wd->s[c]->flags & SESSION_TRACKING;
        assert_string_equal(got, told ? want : "");
        wd->has[c][i] = false;
    }
}

static void test_against_a_model(void **state)
{
    struct tracking_world *wd = *state;

    for (unsigned c = 0; c < CLIENTS; c++)
        tracking_set(wd->s[c], TRACKING_ON, 0);
    assert_int_equal(atomic_load(&wd->tier.events), TIER_EVENT_ALL);
    for (int step = 0; step < 60000; step++) {
        unsigned c = below(wd, CLIENTS), i = below(wd, below(wd, 10) ? NAMES : 8), what = below(wd, 1000);
        if (what < 800) {
            if (wd->s[c]->flags & SESSION_TRACKING)
                read_name(wd, c, i);
        } else if (what < 990) {
            change_name(wd, i);
            expect_told(wd, i);
        } else if (what < 994) { /* one goes, another comes */
            client_gone(wd->s[c]);
            wd->s[c] = client(wd, c);
            tracking_set(wd->s[c], TRACKING_ON, 0);
        } else if (what < 999) {
            if (wd->s[c]->flags & SESSION_TRACKING)
                tracking_off(wd->s[c]);
            else
                tracking_set(wd->s[c], TRACKING_ON, 0);
        } else {
            char got[4096];
            tracking_flushed(&wd->w);
            inbox_drain(&wd->w, NULL);
            for (unsigned k = 0; k < CLIENTS; k++) {
                received(wd->s[k], got, sizeof(got));
                assert_string_equal(got, wd->s[k]->flags & SESSION_TRACKING ? ">2\r\n$10\r\ninvalidate\r\n_\r\n" : "");
            }
            memset(wd->has, 0, sizeof(wd->has));
        }
    }
    struct tracking_figures f;
    for (unsigned i = 0; i < NAMES; i++)
        change_name(wd, i);
    tracking_get_figures(wd->cmd.tracking, &f);
    assert_int_equal(f.keys, 0);
    assert_int_equal(f.items, 0);
}

static void test_limit(void **state)
{
    struct tracking_world *wd = *state;
    struct conf conf = {.tracking_table_max_keys = 50};
    struct tracking_figures f;
    static char got[1 << 16];
    size_t told = 0;

    tracking_conf_changed(wd->cmd.tracking, &conf);
    tracking_set(wd->s[0], TRACKING_ON | TRACKING_NOLOOP, 0);
    for (unsigned i = 0; i < NAMES; i++) {
        read_name(wd, 0, i);
        tracking_get_figures(wd->cmd.tracking, &f);
        assert_in_range(f.keys, 1, 50);
        assert_int_equal(f.items, f.keys);
    }
    inbox_drain(&wd->w, NULL);
    received(wd->s[0], got, sizeof(got));
    for (const char *at = got; (at = strstr(at, "invalidate")) != NULL; at++)
        told++;
    assert_int_equal(told, NAMES - 50);
    conf.tracking_table_max_keys = 3;
    tracking_conf_changed(wd->cmd.tracking, &conf);
    tracking_tick(wd->cmd.tracking);
    tracking_get_figures(wd->cmd.tracking, &f);
    assert_int_equal(f.keys, 3);
}

/* Names of those who left are kept for a while, in case they come back, and then cost nothing any more. */
static void test_nobody_left(void **state)
{
    struct tracking_world *wd = *state;
    struct tracking_figures f;

    tracking_set(wd->s[0], TRACKING_ON, 0);
    read_name(wd, 0, 1);
    read_name(wd, 0, 2);
    tracking_off(wd->s[0]);
    change_name(wd, 2);
    tracking_tick(wd->cmd.tracking);
    tracking_get_figures(wd->cmd.tracking, &f);
    assert_int_equal(f.keys, 1);
    tracking_set(wd->s[0], TRACKING_ON, 0);
    wd->has[0][2] = false;
    change_name(wd, 2);
    expect_told(wd, 2);
    change_name(wd, 1);
    expect_told(wd, 1);
    read_name(wd, 0, 1);
    tracking_off(wd->s[0]);
    for (int i = 0; i < 200; i++)
        tracking_tick(wd->cmd.tracking);
    tracking_get_figures(wd->cmd.tracking, &f);
    assert_int_equal(f.keys, 0);
    assert_int_equal(atomic_load(&wd->tier.events), 0);
}

static void test_prefixes(void **state)
{
    struct tracking_world *wd = *state;
    struct tracking_figures f;
    char got[4096];

    tracking_set(wd->s[0], TRACKING_ON | TRACKING_BCAST, 0);
    assert_true(prefix_add(wd->s[0]->tracker, SLICE_LIT("name:1")));
    assert_false(prefix_add(wd->s[0]->tracker, SLICE_LIT("name:1")));
    assert_true(prefix_add(wd->s[0]->tracker, SLICE_LIT("")));
    tracking_set(wd->s[1], TRACKING_ON | TRACKING_BCAST, 0);
    assert_true(prefix_add(wd->s[1]->tracker, SLICE_LIT("name:1")));
    tracking_get_figures(wd->cmd.tracking, &f);
    assert_int_equal(f.prefixes, 2);
    change_name(wd, 17);
    change_name(wd, 2);
    change_name(wd, 1);
    change_name(wd, 17);
    inbox_drain(&wd->w, NULL);
    received(wd->s[1], got, sizeof(got));
    assert_string_equal(got, ">2\r\n$10\r\ninvalidate\r\n*2\r\n$6\r\nname:1\r\n$7\r\nname:17\r\n");
    received(wd->s[0], got, sizeof(got));
    assert_string_equal(got, ">2\r\n$10\r\ninvalidate\r\n*3\r\n$6\r\nname:1\r\n$7\r\nname:17\r\n$6\r\nname:2\r\n"
                             ">2\r\n$10\r\ninvalidate\r\n*2\r\n$6\r\nname:1\r\n$7\r\nname:17\r\n");
    tracking_off(wd->s[0]);
    change_name(wd, 1);
    tracking_off(wd->s[1]);
    inbox_drain(&wd->w, NULL);
    assert_int_equal(received(wd->s[0], got, sizeof(got)) + received(wd->s[1], got, sizeof(got)), 0);
    tracking_get_figures(wd->cmd.tracking, &f);
    assert_int_equal(f.prefixes, 0);
}

int main(void)
{
#define ROW(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {ROW(test_against_a_model), ROW(test_limit), ROW(test_nobody_left),
                                       ROW(test_prefixes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
