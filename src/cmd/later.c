/* Requests that wait for memory, or for the end of CLIENT PAUSE, and then run again. */
#include "tiercel/session.h"
#include "tiercel/stats.h"

#include "cmd/cmd_priv.h"

struct later {
    struct tier_room_wait room;
    struct mbox_timer *timer;
    struct parked *p;
};

static void later_ends(struct later *l)
{
    struct session *s = l->p->s;

    if (l->timer) {
        s->flags &= ~(uint32_t)SESSION_BLOCKED;
        stats_add(s->w->stats, STAT_blocked_clients, (uint64_t)-1);
    }
    mem_free(MEM_CLIENT, l);
}

static void later_cancel(void *arg)
{
    struct later *l = arg;

    if (l->timer)
        mbox_timer_cancel(l->timer);
    else
        tier_cancel_room(&l->room);
    later_ends(l);
}

static const struct suspend_ops later_ops = {later_cancel};

static void later_again(struct later *l)
{
    struct parked *p = l->p;

    if (!l->timer)
        slow_waited_disk(p);
    later_ends(l);
    p->state = PARKED_NEW;
    session_run(p->s);
}

static void room_ready(struct tier_room_wait *rw)
{
    later_again(LIST_ENTRY(rw, struct later, room));
}

static void pause_over(void *arg)
{
    later_again(arg);
}

enum dispatch_rc dispatch_wait_again(struct call *c, int64_t pause_ms)
{
    struct later *l = mem_calloc(MEM_CLIENT, sizeof(*l));

    l->p = call_suspend(c, &later_ops, l);
    if (pause_ms > 0) {
        c->s->flags |= SESSION_BLOCKED; /* who hangs up meanwhile is not kept, and its request does not run */
        stats_inc(c->w->stats, STAT_blocked_clients);
        l->timer = mbox_timer_start(c->w->mbox, pause_ms, pause_over, l);
    } else {
        l->room.ready = room_ready;
        tier_wait_room(c->w, &l->room);
    }
    return DISPATCH_LATER;
}
