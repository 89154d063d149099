/* Waiting until the invalidations of all that the upstream has done have arrived, on every worker. Each asks its own
 * invalidation connection; what comes while one asks shares the next question. */
#include "tiercel/clock.h"
#include "tier_priv.h"

struct fence;
struct fence_part {
    struct mbox_msg msg;
    struct list link; /* tier_worker.fence_next, fence_now */
    struct fence *all;
};

struct fence {
    struct mbox_msg msg;
    _Atomic int left; /* parts, and one while they are sent out */
    struct worker *home;
    void (*done)(void *arg);
    void *arg;
    struct fence_part part[];
};

static void fence_home(struct mbox_msg *msg, void *owner)
{
    struct fence *f = LIST_ENTRY(msg, struct fence, msg);
    (void)owner;

    f->done(f->arg);
    mem_free(MEM_CLIENT, f);
}

static void fence_settle(struct fence *f)
{
    if (atomic_fetch_sub_explicit(&f->left, 1, memory_order_acq_rel) == 1) {
        f->msg.run = fence_home;
        mbox_post(f->home->mbox, &f->msg);
    }
}

static void fence_ask(struct tier_worker *tw);

static void fence_answered(struct upstream_fence *uf, enum status st)
{
    struct tier_worker *tw = LIST_ENTRY(uf, struct tier_worker, fence);
    struct list now, *l;

    /* What was done there may have changed copies that go on being vouched for, will be again when a link that is late answers
     * (pair.c), or may be served stale: who waits for the fence must not be served any of them. */
    if (st != ST_OK && tw->up) {
        stats_inc(tw->w->stats, STAT_tier_fence_failures);
        tier_forget_all_upstream(tw->w);
    }
    stats_time(tw->w->stats, HIST_fences, clock_mono_us() - tw->fence_since_us);
    list_init(&now);
    list_splice(&now, &tw->fence_now);
    tw->fencing = false;
    if (!list_empty(&tw->fence_next))
        fence_ask(tw);
    while ((l = list_pop_front(&now)))
        fence_settle(LIST_ENTRY(l, struct fence_part, link)->all);
}

/* No lock held; may be answered at once. */
static void fence_ask(struct tier_worker *tw)
{
    tw->fencing = true;
    tw->fence_since_us = clock_mono_us();
    stats_inc(tw->w->stats, STAT_tier_fences);
    list_splice(&tw->fence_now, &tw->fence_next);
    tw->fence.done = fence_answered;
    if (tw->up)
        upstream_fence(tw->up, &tw->fence);
    else
        fence_answered(&tw->fence, ST_CANCELLED);
}

static void part_run(struct mbox_msg *msg, void *owner)
{
    struct fence_part *part = LIST_ENTRY(msg, struct fence_part, msg);
    struct tier_worker *tw = ((struct worker *)owner)->tier_worker;

    list_push_back(&tw->fence_next, &part->link);
    if (!tw->fencing)
        fence_ask(tw);
}

void tier_fence(struct worker *w, void (*done)(void *arg), void *arg)
{
    struct tier *t = w->tier;
    struct fence *f = mem_calloc(MEM_CLIENT, sizeof(*f) + (size_t)t->nworkers * sizeof(f->part[0]));

    f->home = w;
    f->done = done;
    f->arg = arg;
    atomic_store_explicit(&f->left, 1, memory_order_relaxed);
    for (int i = 0; i < t->nworkers; i++) {
        f->part[i].all = f;
        f->part[i].msg.run = part_run;
        atomic_fetch_add_explicit(&f->left, 1, memory_order_relaxed);
        if (i == w->id)
            part_run(&f->part[i].msg, w);
        else
            mbox_post(t->workers[i]->mbox, &f->part[i].msg);
    }
    fence_settle(f);
}

void tier_fence_init(struct tier_worker *tw)
{
    list_init(&tw->fence_next);
    list_init(&tw->fence_now);
}
