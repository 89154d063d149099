/* SAVE, BGSAVE, BGREWRITEAOF, LASTSAVE. The disk tier has one way of saving: what only memory
 * has is written behind what is on disk already. So a rewrite is a save by another name, kept
 * apart because clients ask after either; one of them runs at a time. */
#include "tiercel/clock.h"
#include "tiercel/disk.h"
#include "tiercel/tier.h"

#include "cmd/cmd_priv.h"

#define SAVE_AGAIN_MS 20 /* how often SAVE looks whether the tier layer's own save has ended */

struct persist {
    struct cmd *cmd;
    pthread_mutex_t lock; /* not held while the tier layer starts a save, which may wait for save_done() */
    enum persist_job running;
    bool save_scheduled, rewrite_scheduled;
    struct list next, current; /* struct save_call: of the scheduled save, of the running one */
    struct mbox_msg msg;       /* to worker 0: start what is scheduled */
    bool posted;
    int64_t started_mono_ms, rewrites, rewrite_failures, last_rewrite_s;
    bool rewrite_ok;
};

/* A client that waits in SAVE. */
struct save_call {
    struct mbox_msg msg;
    struct list link;
    struct persist *p;
    struct worker *w;
    struct parked *parked;    /* NULL: the client went */
    struct mbox_timer *timer; /* it asks again */
    bool linked;              /* in a list, under the lock; else the message is on its way, or the timer runs */
    enum status st;
};

struct persist *persist_create(struct cmd *cmd)
{
    struct persist *p = mem_calloc(MEM_OTHER, sizeof(*p));

    p->cmd = cmd;
    p->last_rewrite_s = -1;
    p->rewrite_ok = true;
    list_init(&p->next);
    list_init(&p->current);
    CHECK(pthread_mutex_init(&p->lock, NULL) == 0);
    return p;
}

void persist_destroy(struct persist *p)
{
    pthread_mutex_destroy(&p->lock);
    mem_free(MEM_OTHER, p);
}

void persist_get_figures(struct persist *p, struct persist_figures *out)
{
    pthread_mutex_lock(&p->lock);
    *out = (struct persist_figures){
        .running = p->running,
        .rewrite_scheduled = p->rewrite_scheduled,
        .rewrite_ok = p->rewrite_ok,
        .rewrites = p->rewrites,
        .rewrite_failures = p->rewrite_failures,
        .last_rewrite_s = p->last_rewrite_s,
        .current_s = p->running == PERSIST_NONE ? -1 : (clock_mono_ms() - p->started_mono_ms) / 1000,
    };
    pthread_mutex_unlock(&p->lock);
}

/* ---- one after another ---- */

static void start_run(struct mbox_msg *msg, void *owner);

static void post_start_locked(struct persist *p)
{
    if (p->posted)
        return;
    p->posted = true;
    p->msg.run = start_run;
    mbox_post(p->cmd->workers[0]->mbox, &p->msg);
}

static void save_call_run(struct mbox_msg *msg, void *owner);

static void job_ended(struct persist *p, enum status st)
{
    struct list *l;

    pthread_mutex_lock(&p->lock);
    if (p->running == PERSIST_REWRITE && st != ST_BUSY) {
        p->rewrites += st == ST_OK;
        p->rewrite_failures = st == ST_OK ? 0 : p->rewrite_failures + 1;
        p->rewrite_ok = st == ST_OK;
        p->last_rewrite_s = (clock_mono_ms() - p->started_mono_ms) / 1000;
    }
    p->running = PERSIST_NONE;
    while ((l = list_pop_front(&p->current)) != NULL) {
        struct save_call *sc = LIST_ENTRY(l, struct save_call, link);
        sc->linked = false;
        sc->st = st;
        sc->msg.run = save_call_run;
        mbox_post(sc->w->mbox, &sc->msg);
    }
    if (p->save_scheduled || p->rewrite_scheduled)
        post_start_locked(p);
    pthread_mutex_unlock(&p->lock);
}

/* On the tier layer's thread. */
static void save_done(void *arg, bool ok)
{
    job_ended(arg, ok ? ST_OK : ST_IO);
}

/* Starts what is scheduled, unless something runs already: then save_done() sees to it. No
 * shard lock is held. ST_BUSY: the tier layer saves of its own accord, as it does after
 * appendonly was switched on. That is as good as a scheduled save: what is written from now on is
 * on disk without one. */
static enum status start_scheduled(struct persist *p)
{
    enum persist_job job = PERSIST_NONE;

    pthread_mutex_lock(&p->lock);
    if (p->running == PERSIST_NONE && p->save_scheduled) {
        job = PERSIST_SAVE;
        p->save_scheduled = false;
        list_splice(&p->current, &p->next);
    } else if (p->running == PERSIST_NONE && p->rewrite_scheduled) {
        job = PERSIST_REWRITE;
        p->rewrite_scheduled = false;
    }
    if (job != PERSIST_NONE) {
        p->running = job;
        p->started_mono_ms = clock_mono_ms();
    }
    pthread_mutex_unlock(&p->lock);
    if (job == PERSIST_NONE)
        return ST_OK;
    enum status st = tier_save_start(p->cmd->tier, save_done, p);
    if (st != ST_OK)
        job_ended(p, st);
    return st;
}

static void start_run(struct mbox_msg *msg, void *owner)
{
    struct persist *p = LIST_ENTRY(msg, struct persist, msg);
    (void)owner;

    pthread_mutex_lock(&p->lock);
    p->posted = false;
    pthread_mutex_unlock(&p->lock);
    start_scheduled(p);
}

/* ---- replies ---- */

/* Without a disk tier there is nothing to save to. false: the error was replied. */
static bool has_disk(struct call *c)
{
    if (c->w->tier->disk)
        return true;
    call_error(c, "ERR there is no disk tier to save to: the server runs with disk no");
    return false;
}

static void reply_failed(struct call *c)
{
    struct disk *d = c->w->tier->disk;
    char problem[256];

    disk_problem(d, problem);
    if (problem[0])
        call_errorf(c, "ERR saving failed: %s", problem);
    else if (disk_quota_full(d))
        call_error(c, "ERR saving failed: the disk tier is full, see disk-max-size");
    else
        call_error(c, "ERR saving failed, the log says why");
}

static const char in_progress[] = "ERR Background save already in progress";
static const char another[] =
    "ERR Another child process is active (AOF?): can't BGSAVE right now. Use BGSAVE SCHEDULE in order to schedule a "
    "BGSAVE whenever possible.";
static const char rewriting[] = "ERR Background append only file rewriting already in progress";

/* ---- SAVE: waits, and holds up nobody else ---- */

static void save_finish(struct call *c, void *arg)
{
    const struct save_call *sc = arg;

    if (sc->st == ST_OK)
        reply_simple(&c->r, "OK");
    else
        reply_failed(c);
}

/* false: a save that was asked for runs already. */
static bool save_enqueue(struct save_call *sc)
{
    struct persist *p = sc->p;

    pthread_mutex_lock(&p->lock);
    bool free = p->running != PERSIST_SAVE;
    if (free) {
        sc->linked = true;
        list_push_back(&p->next, &sc->link);
        p->save_scheduled = true;
    }
    pthread_mutex_unlock(&p->lock);
    return free;
}

static void save_again(void *arg)
{
    struct save_call *sc = arg;
    struct persist *p = sc->p;

    sc->timer = NULL;
    if (save_enqueue(sc))
        start_scheduled(p);
    else
        sc->timer = mbox_timer_start(sc->w->mbox, SAVE_AGAIN_MS, save_again, sc);
}

static void save_call_run(struct mbox_msg *msg, void *owner)
{
    struct save_call *sc = LIST_ENTRY(msg, struct save_call, msg);
    (void)owner;

    if (sc->parked && sc->st == ST_BUSY) {
        sc->timer = mbox_timer_start(sc->w->mbox, SAVE_AGAIN_MS, save_again, sc);
        return;
    }
    if (sc->parked)
        call_complete(sc->parked, save_finish, sc);
    mem_free(MEM_CLIENT, sc);
}

/* The client went; its save goes on. */
static void save_cancel(void *arg)
{
    struct save_call *sc = arg;
    struct persist *p = sc->p;

    pthread_mutex_lock(&p->lock);
    bool mine = sc->linked || sc->timer; /* else a message refers to it */
    if (sc->linked)
        list_remove(&sc->link);
    sc->parked = NULL;
    pthread_mutex_unlock(&p->lock);
    if (sc->timer)
        mbox_timer_cancel(sc->timer);
    if (mine)
        mem_free(MEM_CLIENT, sc);
}

static const struct suspend_ops save_ops = {save_cancel};

void cmd_save(struct call *c)
{
    struct persist *p = c->w->cmd->persist;

    if (!has_disk(c))
        return;
    struct save_call *sc = mem_calloc(MEM_CLIENT, sizeof(*sc));
    sc->p = p;
    sc->w = c->w;
    if (!save_enqueue(sc)) {
        mem_free(MEM_CLIENT, sc);
        call_error(c, in_progress);
        return;
    }
    /* Its message comes by this worker's mailbox, so not before this has returned. */
    sc->parked = call_suspend(c, &save_ops, sc);
    start_scheduled(p);
}

/* ---- BGSAVE, BGREWRITEAOF, LASTSAVE ---- */

void cmd_bgsave(struct call *c)
{
    struct persist *p = c->w->cmd->persist;
    bool schedule = c->argc == 2 && call_arg_is(c, 1, "schedule");

    if (c->argc > 1 && !schedule) {
        call_syntax(c);
        return;
    }
    if (!has_disk(c))
        return;
    pthread_mutex_lock(&p->lock);
    bool later = p->running != PERSIST_NONE || c->in_exec; /* within EXEC shards are locked */
    const char *refusal = p->running == PERSIST_SAVE ? in_progress : later && !schedule && !c->in_exec ? another : NULL;
    if (!refusal)
        p->save_scheduled = true;
    if (!refusal && c->in_exec)
        post_start_locked(p);
    pthread_mutex_unlock(&p->lock);
    enum status st = refusal || later ? ST_OK : start_scheduled(p);
    if (st == ST_BUSY && !schedule)
        refusal = another;
    if (refusal)
        call_error(c, refusal);
    else if (later || st == ST_BUSY)
        reply_simple(&c->r, "Background saving scheduled");
    else if (st == ST_OK)
        reply_simple(&c->r, "Background saving started");
    else
        reply_failed(c);
}

void cmd_bgrewriteaof(struct call *c)
{
    struct persist *p = c->w->cmd->persist;

    if (!has_disk(c))
        return;
    pthread_mutex_lock(&p->lock);
    bool later = p->running != PERSIST_NONE || c->in_exec;
    const char *refusal = p->running == PERSIST_REWRITE ? rewriting : NULL;
    if (!refusal)
        p->rewrite_scheduled = true;
    if (!refusal && c->in_exec)
        post_start_locked(p);
    pthread_mutex_unlock(&p->lock);
    enum status st = refusal || later ? ST_OK : start_scheduled(p);
    if (st == ST_BUSY)
        refusal = rewriting;
    if (refusal)
        call_error(c, refusal);
    else if (later)
        reply_simple(&c->r, "Background append only file rewriting scheduled");
    else if (st == ST_OK)
        reply_simple(&c->r, "Background append only file rewriting started");
    else
        reply_failed(c);
}

void cmd_lastsave(struct call *c)
{
    struct tier_save_figures f;

    tier_get_save_figures(c->w->tier, &f);
    reply_int(&c->r, f.last_save_s);
}
