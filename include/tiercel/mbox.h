#ifndef TIERCEL_MBOX_H
#define TIERCEL_MBOX_H

#include <pthread.h>
#include <stdint.h>

#include "tiercel/list.h"

/* How threads talk to a loop: a list behind a mutex and one uv_async_t. Wake-ups
 * coalesce, so a delivery drains the whole list. A message is a struct that embeds
 * struct mbox_msg; whoever posts it gives it away, and its run() frees or keeps it.
 * The list is bounded by what its producers bound (parked requests, connections). */
struct uv_loop_s;

struct mbox_msg {
    struct list link;
    void (*run)(struct mbox_msg *msg, void *owner); /* on the loop's thread */
};

struct mbox;

/* `owner` is handed to every run(). The loop's thread. */
struct mbox *mbox_create(struct uv_loop_s *loop, void *owner);

/* Runs what is left and closes the handle; the loop must turn once more to free it. */
void mbox_destroy(struct mbox *mb);

/* Any thread, also under a shard lock; never blocks for long and never runs the message. */
void mbox_post(struct mbox *mb, struct mbox_msg *msg);

/* Runs what is queued now (the loop's thread). */
void mbox_drain(struct mbox *mb);

/* One-shot timers of the same loop: the loop's thread. fn runs once, ms milliseconds later or a little more but never
 * earlier, unless cancelled; the handle is gone after either. */
struct mbox_timer;
struct mbox_timer *mbox_timer_start(struct mbox *mb, int64_t ms, void (*fn)(void *arg), void *arg);
void mbox_timer_cancel(struct mbox_timer *timer);

#endif
