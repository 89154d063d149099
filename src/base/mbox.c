#include "tiercel/mbox.h"

#include <uv.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"

struct mbox {
    uv_async_t async;
    pthread_mutex_t lock;
    struct list queue; /* under lock */
    void *owner;
};

struct mbox_timer {
    uv_timer_t handle;
    void (*fn)(void *arg);
    void *arg;
};

static void on_async(uv_async_t *async)
{
    mbox_drain(async->data);
}

struct mbox *mbox_create(struct uv_loop_s *loop, void *owner)
{
    struct mbox *mb = mem_calloc(MEM_OTHER, sizeof(*mb));
    CHECK(uv_async_init(loop, &mb->async, on_async) == 0);
    CHECK(pthread_mutex_init(&mb->lock, NULL) == 0);
    mb->async.data = mb;
    mb->owner = owner;
    list_init(&mb->queue);
    return mb;
}

static void on_close(uv_handle_t *handle)
{
    struct mbox *mb = handle->data;
    pthread_mutex_destroy(&mb->lock);
    mem_free(MEM_OTHER, mb);
}

static bool queue_empty(struct mbox *mb)
{
    pthread_mutex_lock(&mb->lock);
    bool empty = list_empty(&mb->queue);
    pthread_mutex_unlock(&mb->lock);
    return empty;
}

void mbox_destroy(struct mbox *mb)
{
    while (!queue_empty(mb)) /* a message may post another */
        mbox_drain(mb);
    uv_close((uv_handle_t *)&mb->async, on_close);
}

void mbox_post(struct mbox *mb, struct mbox_msg *msg)
{
    pthread_mutex_lock(&mb->lock);
    bool was_empty = list_empty(&mb->queue);
    list_push_back(&mb->queue, &msg->link);
    /* Under the lock: once it is let go the loop may run the message, and with it end the box. */
    if (was_empty)
        uv_async_send(&mb->async);
    pthread_mutex_unlock(&mb->lock);
}

void mbox_drain(struct mbox *mb)
{
    struct list batch;
    void *owner = mb->owner; /* a message may destroy the box */
    list_init(&batch);
    pthread_mutex_lock(&mb->lock);
    list_splice(&batch, &mb->queue);
    pthread_mutex_unlock(&mb->lock);

    for (struct list *l; (l = list_pop_front(&batch)) != NULL;) {
        struct mbox_msg *msg = LIST_ENTRY(l, struct mbox_msg, link);
        msg->run(msg, owner);
    }
}

static void on_timer_close(uv_handle_t *handle)
{
    mem_free(MEM_OTHER, handle->data);
}

void mbox_timer_cancel(struct mbox_timer *timer)
{
    uv_close((uv_handle_t *)&timer->handle, on_timer_close);
}

static void on_timer(uv_timer_t *handle)
{
    struct mbox_timer *timer = handle->data;
    void (*fn)(void *arg) = timer->fn;
    void *arg = timer->arg;

    mbox_timer_cancel(timer);
    fn(arg);
}

struct mbox_timer *mbox_timer_start(struct mbox *mb, int64_t ms, void (*fn)(void *arg), void *arg)
{
    struct mbox_timer *timer = mem_calloc(MEM_OTHER, sizeof(*timer));

    timer->fn = fn;
    timer->arg = arg;
    CHECK(uv_timer_init(mb->async.loop, &timer->handle) == 0);
    timer->handle.data = timer;
    uv_update_time(mb->async.loop); /* the loop's cached time may be old by the length of this turn */
    /* One more: that time is in whole milliseconds, up to one behind the clock. */
    CHECK(uv_timer_start(&timer->handle, on_timer, ms > 0 ? (uint64_t)ms + 1 : 0, 0) == 0);
    return timer;
}
