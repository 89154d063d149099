/* Worker threads: one libuv loop each, its periodic work, and its end in stages. */
#include "tiercel/loop.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <time.h>
#include <uv.h>

#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/codec.h"
#include "tiercel/hash.h"
#include "tiercel/stats.h"
#include "tiercel/warm.h"

/* Requests wait so long for periodic work: a slice at a tick; and while a slice finds more than it can do, such
 * as what a flush left, another one in each round of the loop. */
#define SWEEP_TICK_US 100
#define SWEEP_MORE_US 50

struct loop {
    struct worker w;
    uv_loop_t uv;
    uv_timer_t tick;
    uv_idle_t sweep; /* runs while there is more */
    pthread_t thread;
    struct loops *all;
    struct mbox_msg msg;
    enum status started;
};

struct loops {
    int n;
    struct cmd *cmd;
    struct tier *tier;
    struct net *net;
    const struct upstream_options *upstream;
    int64_t drain_ms;
    sem_t step; /* posted by each loop when it has done what it was told */
    struct loop loop[];
};

static struct loop *loop_of(struct worker *w)
{
    return LIST_ENTRY(w, struct loop, w);
}

struct loops *loops_create(int n, struct conf *conf)
{
    struct loops *l = mem_calloc(MEM_OTHER, sizeof(*l) + (size_t)n * sizeof(l->loop[0]));

    l->n = n;
    CHECK(sem_init(&l->step, 0, 0) == 0);
    for (int i = 0; i < n; i++) {
        struct loop *loop = &l->loop[i];
        struct worker *w = &loop->w;
        loop->all = l;
        CHECK(uv_loop_init(&loop->uv) == 0);
        w->id = i;
        w->loop = &loop->uv;
        w->mbox = mbox_create(&loop->uv, w);
        w->stats = stats_block_create();
        w->codec = codec_create();
        w->conf = conf_ref(conf);
        w->now_ms = clock_wall_ms();
        random_bytes(&w->rng, sizeof(w->rng));
    }
    return l;
}

static void wait_for_all(struct loops *l)
{
    for (int i = 0; i < l->n; i++)
        while (sem_wait(&l->step) != 0)
            ;
}

static bool sweep(struct worker *w, int64_t slice_us)
{
    const struct cmd *cmd = loop_of(w)->all->cmd;

    return tier_worker_sweep(w, atomic_load_explicit(&cmd->active_expire, memory_order_relaxed), slice_us);
}

static void on_sweep(uv_idle_t *handle)
{
    struct loop *loop = handle->data;

    loop->w.now_ms = clock_wall_ms();
    if (!sweep(&loop->w, SWEEP_MORE_US))
        uv_idle_stop(handle);
}

static void on_tick(uv_timer_t *timer)
{
    struct loop *loop = timer->data;
    struct worker *w = &loop->w;

    w->now_ms = clock_wall_ms();
    tier_worker_tick(w);
    cmd_worker_tick(w);
    if (sweep(w, SWEEP_TICK_US))
        uv_idle_start(&loop->sweep, on_sweep);
    net_worker_tick(w);
    if (w->id == 0)
        mem_peak_bytes();
    uint64_t period = 1000 / (uint64_t)w->conf->hz;
    uv_timer_start(timer, on_tick, period ? period : 1, 0);
}

static void *loop_main(void *arg)
{
    struct loop *loop = arg;
    struct worker *w = &loop->w;
    char name[16];

    snprintf(name, sizeof(name), "worker-%d", w->id);
    pthread_setname_np(pthread_self(), name);
    CHECK(uv_timer_init(&loop->uv, &loop->tick) == 0);
    CHECK(uv_idle_init(&loop->uv, &loop->sweep) == 0);
    loop->tick.data = loop->sweep.data = loop;
    CHECK(uv_timer_start(&loop->tick, on_tick, 100, 0) == 0);
    loop->started = net_worker_start(loop->all->net, w);
    sem_post(&loop->all->step);
    uv_run(&loop->uv, UV_RUN_DEFAULT);
    return NULL;
}

struct worker *loops_prepare(struct loops *l, struct cmd *cmd, struct tier *tier, struct net *net,
                             const struct upstream_options *upstream)
{
    l->cmd = cmd;
    l->tier = tier;
    l->net = net;
    l->upstream = upstream;
    for (int i = 0; i < l->n; i++) { /* every worker is known to all before any loop turns */
        tier_worker_init(tier, &l->loop[i].w, upstream);
        cmd_worker_init(cmd, &l->loop[i].w);
    }
    return &l->loop[0].w;
}

enum status loops_start(struct loops *l)
{
    enum status st = ST_OK;

    for (int i = 0; i < l->n; i++)
        CHECK(pthread_create(&l->loop[i].thread, NULL, loop_main, &l->loop[i]) == 0);
    wait_for_all(l);
    for (int i = 0; i < l->n; i++)
        if (l->loop[i].started != ST_OK)
            st = l->loop[i].started;
    return st;
}

static void tell_all(struct loops *l, void (*run)(struct mbox_msg *msg, void *owner))
{
    for (int i = 0; i < l->n; i++) {
        l->loop[i].msg.run = run;
        mbox_post(l->loop[i].w.mbox, &l->loop[i].msg);
    }
    wait_for_all(l);
}

static void net_closed(struct worker *w)
{
    sem_post(&loop_of(w)->all->step);
}

static void quiesce_run(struct mbox_msg *msg, void *owner)
{
    struct worker *w = owner;
    struct loop *loop = loop_of(w);
    (void)msg;

    uv_close((uv_handle_t *)&loop->tick, NULL);
    uv_close((uv_handle_t *)&loop->sweep, NULL);
    warm_worker_stop(w->cmd->warm, w); /* its jobs read from the disk, which is closed before the loops end */
    net_worker_stop(w, loop->all->drain_ms, net_closed);
}

void loops_quiesce(struct loops *l, int64_t drain_ms)
{
    l->drain_ms = drain_ms;
    tell_all(l, quiesce_run);
}

static void end_run(struct mbox_msg *msg, void *owner)
{
    struct worker *w = owner;
    (void)msg;

    tier_worker_stop(w);
    sem_post(&loop_of(w)->all->step);
}

static void pass_run(struct mbox_msg *msg, void *owner)
{
    (void)msg;
    sem_post(&loop_of(owner)->all->step);
}

bool loops_settle(struct loops *l, int64_t timeout_ms)
{
    int64_t end = clock_mono_ms() + timeout_ms;

    tell_all(l, end_run);
    while (atomic_load(&l->tier->fetches) > 0 && clock_mono_ms() < end)
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    /* What the last of them sent around is seen to when every mailbox was emptied twice. */
    tell_all(l, pass_run);
    tell_all(l, pass_run);
    return atomic_load(&l->tier->fetches) == 0;
}

static void close_run(struct mbox_msg *msg, void *owner)
{
    struct worker *w = owner;
    (void)msg;

    mbox_destroy(w->mbox); /* the last handle: the loop ends when it is closed */
    sem_post(&loop_of(w)->all->step);
}

void loops_end(struct loops *l)
{
    tell_all(l, close_run);
    for (int i = 0; i < l->n; i++)
        pthread_join(l->loop[i].thread, NULL);
}

void loops_destroy(struct loops *l)
{
    for (int i = 0; i < l->n; i++) {
        struct worker *w = &l->loop[i].w;
        if (w->cmd_worker)
            cmd_worker_deinit(w);
        if (w->tier_worker)
            tier_worker_deinit(w);
        codec_destroy(w->codec);
        conf_unref(w->conf);
        CHECK(uv_loop_close(&l->loop[i].uv) == 0);
    }
    sem_destroy(&l->step);
    mem_free(MEM_OTHER, l);
}

struct run_once {
    struct mbox_msg msg;
    void (*fn)(struct worker *w, void *arg);
    void *arg;
};

static void run_once(struct mbox_msg *msg, void *owner)
{
    struct run_once *r = LIST_ENTRY(msg, struct run_once, msg);

    r->fn(owner, r->arg);
    mem_free(MEM_OTHER, r);
}

void loops_run(struct loops *l, void (*fn)(struct worker *w, void *arg), void *arg)
{
    struct run_once *r = mem_calloc(MEM_OTHER, sizeof(*r));

    r->fn = fn;
    r->arg = arg;
    r->msg.run = run_once;
    mbox_post(l->loop[0].w.mbox, &r->msg);
}
