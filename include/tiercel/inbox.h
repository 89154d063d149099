#ifndef TIERCEL_INBOX_H
#define TIERCEL_INBOX_H

#include <stdatomic.h>

#include "tiercel/list.h"
#include "tiercel/session.h"
#include "tiercel/worker.h"

/* What is sent to sessions unasked: published messages (pubsub.c) and invalidations (tracking.c). Any thread leaves it in
 * the inbox of the worker that has the sessions, and wakes it by one mailbox message however much there is; the worker
 * hands it out, in the order in which it came. An inbox's lock is taken below all others but the mailbox's. */

/* Embedded in what is sent, as its first field. */
struct inbox_msg {
    _Atomic unsigned refs;
    /* The worker's thread; `within`: the session that is in the middle of a reply, or NULL. */
    void (*deliver)(struct worker *w, struct inbox_msg *m, const struct session *within);
    void (*free)(struct inbox_msg *m);
};

struct inbox;
/* Makes w->cmd_worker->inbox. Before deinit all sessions are gone; a wake-up that is still in the mailbox then does
 * nothing. */
void inbox_worker_init(struct worker *w);
void inbox_worker_deinit(struct worker *w);
/* Called whenever a batch was handed out. */
void inbox_set_after(struct worker *w, void (*after)(struct worker *w, const struct session *within));

/* Any thread. Takes a reference. */
void inbox_append(struct worker *w, struct inbox_msg *m);
void inbox_unref(struct inbox_msg *m);

/* ---- the worker's thread ---- */

/* All that has come, to be handed out by inbox_deliver(), under whatever lock its senders take. */
void inbox_take(struct worker *w, struct list *to);
void inbox_deliver(struct worker *w, struct list *batch, const struct session *within);
void inbox_drain(struct worker *w, const struct session *within);
/* The session whose messages have to wait until the handler is done, or NULL. */
const struct session *inbox_within(const struct call *c);
/* Where a message for the session is to be appended, which is woken. NULL: it gets no more (it is about to be closed). */
struct chain *inbox_out(struct session *s, int obuf_class, const struct session *within);
void inbox_session_gone(struct session *s);

#endif
