/* Waiting for the disk's queue to have room. */
#include "tier_priv.h"

static void room_run(struct mbox_msg *msg, void *owner)
{
    struct tier_worker *tw = LIST_ENTRY(msg, struct tier_worker, room_msg);
    (void)owner;

    atomic_store(&tw->room_posted, false);
    tier_drop_room_waits(tw);
}

void tier_drop_room_waits(struct tier_worker *tw)
{
    struct list now, *l;

    list_init(&now);
    list_splice(&now, &tw->room_waiters);
    while ((l = list_pop_front(&now))) {
        struct tier_room_wait *rw = LIST_ENTRY(l, struct tier_room_wait, link);
        atomic_fetch_sub(&tw->w->tier->room_waiting, 1);
        rw->ready(rw);
    }
}

void tier_wake_room(struct tier *t)
{
    if (LIKELY(atomic_load(&t->room_waiting) == 0))
        return;
    for (int i = 0; i < t->nworkers; i++) {
        struct tier_worker *tw = t->workers[i] ? t->workers[i]->tier_worker : NULL;
        if (tw && !atomic_exchange(&tw->room_posted, true)) {
            tw->room_msg.run = room_run;
            mbox_post(t->workers[i]->mbox, &tw->room_msg);
        }
    }
}

void tier_room(void *arg)
{
    struct tier *t = arg;

    atomic_store(&t->disk_full_since_ms, 0);
    tier_wake_room(t);
}

void tier_wait_room(struct worker *w, struct tier_room_wait *rw)
{
    rw->tier = w->tier;
    atomic_fetch_add(&w->tier->room_waiting, 1);
    list_push_back(&w->tier_worker->room_waiters, &rw->link);
}

void tier_cancel_room(struct tier_room_wait *rw)
{
    atomic_fetch_sub(&rw->tier->room_waiting, 1);
    list_remove(&rw->link);
}
