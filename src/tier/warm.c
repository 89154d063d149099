/* WARM's jobs: how keys are loaded, and when it stops. Their names come from warm_source.c. */
#include <stdio.h>
#include <string.h>

#include "tiercel/clock.h"
#include "tiercel/log.h"
#include "tiercel/warm.h"

#include "tier_priv.h"

#define SLICE_US 500       /* of one turn */
#define BURST_NS 100000000 /* RATE makes up for this much lost time */
#define BUSY_MS 5          /* the look-ahead budget is taken: look again */
#define BUSY_MAX_MS 100    /* ... and no longer yield to others than this, with nothing under way */
#define AWAY_POLL_MS 50    /* how often to look whether the upstream is back */
#define LOAD_TRIES 3       /* of a key that is written while it is fetched */

struct warm {
    struct tier *tier;
    pthread_mutex_t lock;
    struct list jobs; /* struct warm_job, by id */
    uint64_t last_id, start_id;
    unsigned running;
    bool expected; /* the job of warm-on-start will come */
};

struct warm_job {
    struct list link; /* in warm->jobs */
    struct warm *warm;
    struct worker *w;
    uint64_t id;
    int db;
    uint64_t key_ns; /* time that a key takes at most RATE; 0 = no limit */
    int64_t started_ms;

    /* Under the list's lock. */
    char reason[WARM_REASON_MAX];
    bool cancel_posted;
    bool final; /* the worker is done with it */

    /* Written by the worker or under the lock; read by all. */
    _Atomic int state;
    _Atomic int64_t ended_ms;
    _Atomic uint64_t loaded, skipped, failed, bytes;
    _Atomic int64_t progress, total; /* keys or bytes; total 0 = unknown */

    /* The worker's own. */
    struct mbox_msg run_msg, cancel_msg;
    struct mbox_timer *timer;
    bool run_posted;
    struct warm_source *source; /* NULL: the job has ended */
    struct list loads, again;   /* struct warm_load: under way; to be tried again */
    unsigned outstanding;
    uint64_t next_ns; /* when RATE allows the next key */
    int64_t away_ms, busy_ms;
    struct list waiters;
};

struct warm_load {
    struct list link;
    struct tier_request req;
    struct tier_wait wait;
    struct warm_job *job;
    int tries;
    bool joined; /* somebody else was fetching it already */
    uint32_t len;
    char name[];
};

static void job_kick(struct warm_job *job);
static void job_later(struct warm_job *job, int64_t ms);

const char *warm_state_name(enum warm_state state)
{
    static const char *const names[] = {"running", "done", "cancelled", "failed", "stopped"};
    return names[state];
}

/* ---- a job's state ------------------------------------------------------------------- */

static bool job_running(const struct warm_job *job)
{
    return atomic_load_explicit(&job->state, memory_order_relaxed) == WARM_RUNNING;
}

static void job_end_locked(struct warm_job *job, enum warm_state state, const char *reason)
{
    if (!job_running(job))
        return;
    snprintf(job->reason, sizeof(job->reason), "%s", reason);
    atomic_store(&job->ended_ms, clock_mono_ms());
    atomic_store(&job->state, state);
}

/* It starts nothing more; what is under way still counts. */
static void job_end(struct warm_job *job, enum warm_state state, const char *reason)
{
    pthread_mutex_lock(&job->warm->lock);
    job_end_locked(job, state, reason);
    pthread_mutex_unlock(&job->warm->lock);
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static void count_failed(struct warm_job *job)
{
    count(&job->failed, 1);
    stats_inc(job->w->stats, STAT_warm_failed);
}

static int64_t job_eta(const struct warm_job *job, int64_t elapsed_ms)
{
    int64_t done = atomic_load(&job->progress), total = atomic_load(&job->total);

    if (!job_running(job))
        return 0;
    if (done <= 0 || total <= 0 || done > total)
        return -1;
    return (int64_t)((double)elapsed_ms * (double)(total - done) / (double)done);
}

static void job_status_locked(const struct warm_job *job, struct warm_status *out)
{
    int64_t ended = atomic_load(&job->ended_ms);

    *out = (struct warm_status){.id = job->id, .state = (enum warm_state)atomic_load(&job->state)};
    snprintf(out->reason, sizeof(out->reason), "%s", job->reason);
    out->loaded = atomic_load(&job->loaded);
    out->skipped = atomic_load(&job->skipped);
    out->failed = atomic_load(&job->failed);
    out->seen = out->loaded + out->skipped + out->failed;
    out->bytes = atomic_load(&job->bytes);
    out->elapsed_ms = (ended ? ended : clock_mono_ms()) - job->started_ms;
    out->eta_ms = job_eta(job, out->elapsed_ms);
}

/* ---- loading ------------------------------------------------------------------------- */

/* What came of it: counts and frees it, or leaves it in `again`. */
static void load_settle(struct warm_load *load, bool at_once)
{
    struct warm_job *job = load->job;
    struct tier_wait *wait = &load->wait;
    size_t bytes = 0;
    bool kept = false;

    if (wait->st == ST_OK && wait->res) {
        struct mem_shard *shard = tier_shard_of(job->w->tier, wait->key.hash);
        mem_lock(shard);
        kept = wait->res->attached && wait->res->value;
        if (kept)
            bytes = object_bytes(wait->res->value);
        mem_unlock(shard);
    }
    tier_release(job->w, &load->req);
    if (wait->st == ST_OK && !kept && load->tries < LOAD_TRIES && job_running(job)) {
        list_push_back(&job->again, &load->link); /* it was written meanwhile */
        return;
    }
    if (kept && !at_once && !load->joined) {
        count(&job->loaded, 1);
        stats_inc(job->w->stats, STAT_warm_loaded);
        count(&job->bytes, bytes);
    } else if (kept || wait->st == ST_NOT_FOUND) {
        count(&job->skipped, 1);
        stats_inc(job->w->stats, STAT_warm_skipped);
    } else {
        count_failed(job);
    }
    mem_free(MEM_OTHER, load);
}

static void load_ready(struct tier_request *req)
{
    struct warm_load *load = LIST_ENTRY(req, struct warm_load, req);
    struct warm_job *job = load->job;

    list_remove(&load->link);
    job->outstanding--;
    if (req->cancelled) {
        count_failed(job);
        mem_free(MEM_OTHER, load);
    } else {
        load_settle(load, false);
    }
    job_kick(job);
}

static bool being_fetched(const struct warm_load *load)
{
    const struct tier *t = load->job->w->tier;
    struct mem_shard *shard = tier_shard_of(t, load->wait.key.hash);

    mem_lock(shard);
    mem_slot *slot = mem_find_locked(t->mem, shard, &load->wait.key);
    const struct object *o = slot ? mem_object(*slot) : NULL;
    bool yes = o && o->type == OBJ_RESIDENCY && residency_of(o)->fetching;
    mem_unlock(shard);
    return yes;
}

/* false: there is no room for more look-ahead; it is first in `again`. */
static bool load_start(struct warm_load *load)
{
    struct warm_job *job = load->job;
    int64_t now = clock_mono_ms();

    load->req = (struct tier_request){.nwaits = 1, .waits = &load->wait, .ready = load_ready};
    list_init(&load->req.admission);
    load->wait = (struct tier_wait){.need = TIER_VALUE};
    struct slice name = SLICE(load->name, load->len);
    mem_key_init(job->w->tier->mem, tier_space(job->w, (unsigned)job->db, name), name, &load->wait.key);
    load->joined = being_fetched(load);
    bool urgent = job->busy_ms != 0 && job->outstanding == 0 && now - job->busy_ms >= BUSY_MAX_MS;
    switch (tier_fault(job->w, &load->req, urgent)) {
    case ST_BUSY:
        if (job->busy_ms == 0)
            job->busy_ms = now;
        list_push_front(&job->again, &load->link);
        return false;
    case ST_PENDING:
        load->tries++;
        job->outstanding++;
        list_push_back(&job->loads, &load->link);
        break;
    default: load->tries++; load_settle(load, true);
    }
    job->busy_ms = 0;
    return true;
}

/* ---- when to go on ------------------------------------------------------------------- */

/* Why no more may be loaded: what came next would push other keys out. */
static const char *limit_reached(const struct warm_job *job)
{
    struct tier *t = job->w->tier;
    int64_t limit = atomic_load(&t->limit.maxmemory), tracked_max = atomic_load(&t->limit.tracked_keys_max);

    if (limit > 0) {
        int64_t used = mem_class_bytes(MEM_DATA) - atomic_load(&t->demoting_bytes);
        int64_t coming = (int64_t)job->outstanding * atomic_load(&t->fetched_size);
        if (used + coming > tier_mark(t) - limit / 32)
            return "maxmemory";
    }
    if (t->has_upstream && tier_copies(t) + job->outstanding >= tracked_max - tracked_max / 64)
        return "tracked-keys-max";
    return NULL;
}

/* 0: a key may be loaded now; else look again after so many milliseconds. */
static int64_t wait_for_upstream(struct warm_job *job)
{
    const struct tier *t = job->w->tier;
    int64_t now = clock_mono_ms();

    if (!t->has_upstream || atomic_load(&t->generation[job->w->id]) != 0) {
        job->away_ms = 0;
        return 0;
    }
    if (job->away_ms == 0)
        job->away_ms = now;
    if (now - job->away_ms >= WARM_AWAY_MS)
        job_end(job, WARM_FAILED, "the upstream was away for too long");
    return AWAY_POLL_MS;
}

static int64_t wait_for_rate(struct warm_job *job)
{
    uint64_t now = (uint64_t)clock_mono_us() * 1000;

    if (job->key_ns == 0)
        return 0;
    if (job->next_ns + BURST_NS < now)
        job->next_ns = now - BURST_NS;
    return job->next_ns <= now ? 0 : (int64_t)((job->next_ns - now) / 1000000) + 1;
}

/* ---- a turn -------------------------------------------------------------------------- */

static struct warm_load *load_create(struct warm_job *job, struct slice name)
{
    struct warm_load *load = mem_calloc(MEM_OTHER, sizeof(*load) + name.len);

    load->job = job;
    load->len = (uint32_t)name.len;
    memcpy(load->name, name.ptr, name.len);
    list_init(&load->link);
    return load;
}

/* The next key to load; NULL: not now. *more: it makes sense to ask again at once. */
static struct warm_load *job_next(struct warm_job *job, bool *more)
{
    struct list *l = list_pop_front(&job->again);
    struct slice name;
    int64_t retry_ms;

    *more = false;
    if (l)
        return LIST_ENTRY(l, struct warm_load, link);
    switch (warm_source_next(job->source, &name, &retry_ms)) {
    case WARM_NEXT_NAME: job->next_ns += job->key_ns; return load_create(job, name);
    case WARM_NEXT_BAD:
        count_failed(job);
        *more = true;
        break;
    case WARM_NEXT_LATER:
        if (retry_ms > 0)
            job_later(job, retry_ms);
        break;
    case WARM_NEXT_NONE:
        if (job->outstanding == 0)
            job_end(job, WARM_DONE, "");
        break;
    case WARM_NEXT_BROKEN: job_end(job, WARM_FAILED, warm_source_error(job->source)); break;
    }
    return NULL;
}

/* One key. false: not now; something will call again. */
static bool job_step(struct warm_job *job)
{
    int64_t ms = wait_for_upstream(job);
    const char *limit;
    bool more;

    if (ms == 0)
        ms = wait_for_rate(job);
    if (ms > 0) {
        job_later(job, ms);
        return false;
    }
    if (job->outstanding >= WARM_LOADS_MAX)
        return false;
    struct warm_load *load = job_next(job, &more);
    if (!load)
        return more;
    if ((limit = limit_reached(job)) != NULL) {
        mem_free(MEM_OTHER, load);
        job_end(job, WARM_STOPPED, limit);
        return false;
    }
    if (!load_start(load)) {
        job_later(job, BUSY_MS);
        return false;
    }
    return true;
}

static void job_progress(struct warm_job *job)
{
    int64_t done, total;

    warm_source_progress(job->source, &done, &total);
    atomic_store(&job->progress, done);
    atomic_store(&job->total, total);
}

static void job_free(struct warm_job *job)
{
    warm_source_destroy(job->source);
    mem_free(MEM_OTHER, job);
}

/* Forgets those that ended first. */
static void trim_locked(struct warm *wm)
{
    for (;;) {
        struct warm_job *oldest = NULL;
        unsigned ended = 0;
        for (struct list *l = wm->jobs.next; l != &wm->jobs; l = l->next) {
            struct warm_job *job = LIST_ENTRY(l, struct warm_job, link);
            if (!job->final)
                continue;
            ended++;
            if (!oldest || job->ended_ms < oldest->ended_ms)
                oldest = job;
        }
        if (ended <= WARM_FINISHED_MAX)
            return;
        list_remove(&oldest->link);
        job_free(oldest);
    }
}

/* Nothing of it is under way any more: tells those who wait. It may be gone afterwards. */
static void job_settle(struct warm_job *job)
{
    struct warm *wm = job->warm;
    struct warm_status status;
    struct list waiters, *l;

    while ((l = list_pop_front(&job->again)))
        mem_free(MEM_OTHER, LIST_ENTRY(l, struct warm_load, link));
    if (job->run_posted || job->outstanding > 0 || warm_source_busy(job->source))
        return; /* it comes here again */
    if (job->timer)
        mbox_timer_cancel(job->timer);
    job->timer = NULL;
    list_init(&waiters);
    pthread_mutex_lock(&wm->lock);
    if (job->cancel_posted) {
        pthread_mutex_unlock(&wm->lock);
        return;
    }
    job->final = true;
    wm->running--;
    list_splice(&waiters, &job->waiters);
    warm_source_destroy(job->source);
    job->source = NULL;
    job_status_locked(job, &status);
    trim_locked(wm);
    pthread_mutex_unlock(&wm->lock);
    log_notice("warm", "job %llu: %s%s%s, %llu loaded, %llu skipped, %llu failed", (unsigned long long)status.id,
               warm_state_name(status.state), status.reason[0] ? ": " : "", status.reason,
               (unsigned long long)status.loaded, (unsigned long long)status.skipped,
               (unsigned long long)status.failed);
    while ((l = list_pop_front(&waiters))) {
        struct warm_waiter *waiter = LIST_ENTRY(l, struct warm_waiter, link);
        waiter->done(waiter, &status);
    }
}

static void job_run(struct warm_job *job)
{
    int64_t until = clock_mono_us() + SLICE_US;
    bool more = true;

    if (job->timer) {
        mbox_timer_cancel(job->timer);
        job->timer = NULL;
    }
    while (more && job_running(job) && clock_mono_us() < until)
        more = job_step(job);
    if (job_running(job)) {
        job_progress(job);
        if (more)
            job_kick(job); /* clients first */
    } else {
        job_settle(job);
    }
}

static void job_run_msg(struct mbox_msg *msg, void *owner)
{
    struct warm_job *job = LIST_ENTRY(msg, struct warm_job, run_msg);
    (void)owner;

    job->run_posted = false;
    job_run(job);
}

static void job_kick(struct warm_job *job)
{
    if (job->run_posted)
        return;
    job->run_posted = true;
    job->run_msg.run = job_run_msg;
    mbox_post(job->w->mbox, &job->run_msg);
}

static void job_timer(void *arg)
{
    struct warm_job *job = arg;

    job->timer = NULL;
    job_kick(job);
}

static void job_later(struct warm_job *job, int64_t ms)
{
    if (!job->timer && !job->run_posted)
        job->timer = mbox_timer_start(job->w->mbox, ms, job_timer, job);
}

/* ---- the list of jobs ---------------------------------------------------------------- */

struct warm *warm_create(struct tier *t)
{
    struct warm *wm = mem_calloc(MEM_OTHER, sizeof(*wm));

    wm->tier = t;
    list_init(&wm->jobs);
    CHECK(pthread_mutex_init(&wm->lock, NULL) == 0);
    return wm;
}

void warm_destroy(struct warm *wm)
{
    struct list *l;

    while ((l = list_pop_front(&wm->jobs)))
        job_free(LIST_ENTRY(l, struct warm_job, link));
    pthread_mutex_destroy(&wm->lock);
    mem_free(MEM_OTHER, wm);
}

static struct warm_job *job_create(struct warm *wm, struct worker *w, int db, const struct warm_spec *spec)
{
    struct warm_job *job = mem_calloc(MEM_OTHER, sizeof(*job));

    job->warm = wm;
    job->w = w;
    job->db = db;
    job->key_ns = spec->rate > 0 ? 1000000000 / (uint64_t)spec->rate : 0;
    job->started_ms = clock_mono_ms();
    job->next_ns = (uint64_t)clock_mono_us() * 1000;
    list_init(&job->link);
    list_init(&job->loads);
    list_init(&job->again);
    list_init(&job->waiters);
    return job;
}

static void job_wake(void *arg)
{
    job_kick(arg);
}

enum status warm_start(struct warm *wm, struct worker *w, int db, const struct warm_spec *spec,
                       struct warm_waiter *waiter, uint64_t *id, char err[WARM_ERROR_MAX])
{
    struct warm_job *job = job_create(wm, w, db, spec);
    enum status st = warm_source_create(w, db, spec, job_wake, job, &job->source, err);

    pthread_mutex_lock(&wm->lock);
    if (st == ST_OK && wm->running >= WARM_JOBS_MAX) {
        snprintf(err, WARM_ERROR_MAX, "%d WARM jobs are running already", WARM_JOBS_MAX);
        st = ST_FULL;
    }
    if (st == ST_OK) {
        *id = job->id = ++wm->last_id;
        wm->running++;
        if (spec->at_start)
            wm->start_id = job->id;
        list_push_back(&wm->jobs, &job->link);
    }
    pthread_mutex_unlock(&wm->lock);
    if (st != ST_OK) {
        job_free(job);
        return st;
    }
    if (waiter)
        list_push_back(&job->waiters, &waiter->link);
    job_kick(job);
    return ST_OK;
}

void warm_forget(struct warm_waiter *waiter)
{
    list_remove(&waiter->link);
}

/* id 0: the newest. */
static struct warm_job *find_locked(struct warm *wm, uint64_t id)
{
    if (id == 0)
        return list_empty(&wm->jobs) ? NULL : LIST_ENTRY(wm->jobs.prev, struct warm_job, link);
    for (struct list *l = wm->jobs.next; l != &wm->jobs; l = l->next) {
        struct warm_job *job = LIST_ENTRY(l, struct warm_job, link);
        if (job->id == id)
            return job;
    }
    return NULL;
}

bool warm_get(struct warm *wm, uint64_t id, struct warm_status *out)
{
    pthread_mutex_lock(&wm->lock);
    struct warm_job *job = find_locked(wm, id);
    if (job)
        job_status_locked(job, out);
    pthread_mutex_unlock(&wm->lock);
    return job != NULL;
}

size_t warm_list(struct warm *wm, struct warm_status *out, size_t max)
{
    size_t n = 0;

    pthread_mutex_lock(&wm->lock);
    for (struct list *l = wm->jobs.next; l != &wm->jobs && n < max; l = l->next)
        job_status_locked(LIST_ENTRY(l, struct warm_job, link), &out[n++]);
    pthread_mutex_unlock(&wm->lock);
    return n;
}

bool warm_start_done(struct warm *wm)
{
    pthread_mutex_lock(&wm->lock);
    struct warm_job *job = wm->start_id ? find_locked(wm, wm->start_id) : NULL;
    bool done = !wm->expected && (!job || job->final);
    pthread_mutex_unlock(&wm->lock);
    return done;
}

void warm_expect(struct warm *wm, bool expected)
{
    pthread_mutex_lock(&wm->lock);
    wm->expected = expected;
    pthread_mutex_unlock(&wm->lock);
}

/* On the job's worker: drops what waits for a timer, and ends when nothing is under way. */
static void job_cancelled(struct mbox_msg *msg, void *owner)
{
    struct warm_job *job = LIST_ENTRY(msg, struct warm_job, cancel_msg);
    (void)owner;

    pthread_mutex_lock(&job->warm->lock);
    job->cancel_posted = false;
    pthread_mutex_unlock(&job->warm->lock);
    job_kick(job);
}

enum status warm_cancel(struct warm *wm, uint64_t id)
{
    enum status st = ST_OK;

    pthread_mutex_lock(&wm->lock);
    struct warm_job *job = id ? find_locked(wm, id) : NULL;
    if (!job) {
        st = ST_NOT_FOUND;
    } else if (!job_running(job)) {
        st = ST_BUSY;
    } else {
        job_end_locked(job, WARM_CANCELLED, "");
        job->cancel_posted = true;
        job->cancel_msg.run = job_cancelled;
        mbox_post(job->w->mbox, &job->cancel_msg);
    }
    pthread_mutex_unlock(&wm->lock);
    return st;
}

/* Its loads are cancelled too: they may wait for room that nobody gives back any more. */
static void job_abandon(struct warm_job *job)
{
    job_end(job, WARM_CANCELLED, "the server stops");
    if (job->timer)
        mbox_timer_cancel(job->timer);
    job->timer = NULL;
    for (struct list *l = job->loads.next, *next; l != &job->loads; l = next) {
        struct warm_load *load = LIST_ENTRY(l, struct warm_load, link);
        next = l->next;
        if (!tier_cancel(job->w, &load->req))
            continue; /* load_ready() comes */
        list_remove(&load->link);
        job->outstanding--;
        count_failed(job);
        mem_free(MEM_OTHER, load);
    }
    job_kick(job);
}

void warm_worker_stop(struct warm *wm, struct worker *w)
{
    struct warm_job *mine[WARM_JOBS_MAX];
    size_t n = 0;

    pthread_mutex_lock(&wm->lock);
    for (struct list *l = wm->jobs.next; l != &wm->jobs && n < WARM_JOBS_MAX; l = l->next) {
        struct warm_job *job = LIST_ENTRY(l, struct warm_job, link);
        if (job->w == w && !job->final)
            mine[n++] = job;
    }
    pthread_mutex_unlock(&wm->lock);
    for (size_t i = 0; i < n; i++)
        job_abandon(mine[i]);
}
