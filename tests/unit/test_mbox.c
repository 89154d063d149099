#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <uv.h>

#include "tiercel/alloc.h"
#include "tiercel/mbox.h"

#define POSTERS 4
#define EACH 5000

struct note {
    struct mbox_msg msg;
    int poster, number;
};

struct owner {
    struct mbox *mb;
    int last[POSTERS];
    int seen;
    bool again; /* the next message posts one more */
};

static void note_run(struct mbox_msg *msg, void *arg)
{
    struct note *n = (struct note *)msg;
    struct owner *o = arg;
    assert_int_equal(n->number, o->last[n->poster] + 1); /* in order, none lost */
    o->last[n->poster]++;
    o->seen++;
    if (o->again) {
        o->again = false;
        n->number++;
        mbox_post(o->mb, &n->msg);
        return;
    }
    mem_free(MEM_OTHER, n);
    if (o->seen == POSTERS * EACH) {
        mbox_destroy(o->mb);
        o->mb = NULL;
    }
}

static void note_post(struct mbox *mb, int poster, int number)
{
    struct note *n = mem_alloc(MEM_OTHER, sizeof(*n));
    *n = (struct note){.msg.run = note_run, .poster = poster, .number = number};
    mbox_post(mb, &n->msg);
}

struct poster {
    pthread_t thread;
    struct mbox *mb;
    int id;
};

static void *poster_run(void *arg)
{
    struct poster *p = arg;
    for (int i = 1; i <= EACH; i++)
        note_post(p->mb, p->id, i);
    return NULL;
}

static void test_many_threads_post(void **state)
{
    (void)state;
    int64_t before = mem_class_bytes(MEM_OTHER);
    uv_loop_t loop;
    struct owner o = {0};
    struct poster posters[POSTERS];
    uv_loop_init(&loop);
    o.mb = mbox_create(&loop, &o);
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){.mb = o.mb, .id = i};
        assert_int_equal(pthread_create(&posters[i].thread, NULL, poster_run, &posters[i]), 0);
    }
    uv_run(&loop, UV_RUN_DEFAULT); /* ends when the last message destroys the box */
    for (int i = 0; i < POSTERS; i++)
        pthread_join(posters[i].thread, NULL);
    assert_int_equal(o.seen, POSTERS * EACH);
    assert_null(o.mb);
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_int_equal(mem_class_bytes(MEM_OTHER), before);
}

static void test_destroy_runs_what_is_left(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct owner o = {.again = true};
    uv_loop_init(&loop);
    o.mb = mbox_create(&loop, &o);
    for (int i = 0; i < POSTERS; i++)
        note_post(o.mb, i, 1);
    mbox_destroy(o.mb);
    assert_int_equal(o.seen, POSTERS + 1); /* with the one that a message posted */
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void test_post_from_message_wakes_again(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct owner o = {.again = true};
    uv_loop_init(&loop);
    o.mb = mbox_create(&loop, &o);
    note_post(o.mb, 0, 1);
    for (int i = 0; i < 10 && o.seen < 2; i++)
        uv_run(&loop, UV_RUN_ONCE);
    assert_int_equal(o.seen, 2);
    note_post(o.mb, 1, 1);
    mbox_drain(o.mb);
    assert_int_equal(o.seen, 3);
    mbox_destroy(o.mb);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_threads_post),
        cmocka_unit_test(test_destroy_runs_what_is_left),
        cmocka_unit_test(test_post_from_message_wakes_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
