/* WARM's jobs: where their names come from, how keys are loaded, when they stop. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiercel/clock.h"
#include "tiercel/log.h"
#include "tiercel/num.h"
#include "tiercel/warm.h"

#include "tier_priv.h"

#define SLICE_US 500       /* of one turn */
#define FILE_CHUNK 65536   /* read per turn */
#define BURST_NS 100000000 /* RATE makes up for this much lost time */
#define BUSY_MS 5          /* the look-ahead budget is taken: look again */
#define BUSY_MAX_MS 100    /* ... and no longer yield to others than this, with nothing under way */
#define AWAY_POLL_MS 50    /* how often to look whether the upstream is back */
#define SCAN_RETRY_MS 100
#define LOAD_TRIES 3 /* of a key that is written while it is fetched */

struct warm {
    struct tier *tier;
    pthread_mutex_t lock;
    struct list jobs; /* struct warm_job, by id */
    uint64_t last_id, start_id;
    unsigned running;
};

struct warm_job {
    struct list link; /* in warm->jobs */
    struct warm *warm;
    struct worker *w;
    uint64_t id;
    int db;
    enum warm_kind kind;
    int64_t count;
    uint64_t key_ns; /* time that a key takes at most RATE; 0 = no limit */
    int64_t started_ms;

    /* Under the list's lock. */
    char reason[96];
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
    struct buf names; /* length and name, from `at` on not loaded yet */
    size_t at;
    uint64_t npending, ntaken;
    bool exhausted; /* the source has no more */
    int fd;         /* FILE; -1 = none */
    struct buf line;
    bool line_too_long;
    struct buf pattern; /* MATCH */
    struct buf cursor;
    struct upstream_call scan;
    bool scanning;
    int64_t scan_failed_ms, scan_after_ms; /* since when it fails, when to try again; mono, 0 = not */
    struct list loads, again;              /* struct warm_load: under way; to be tried again */
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

/* ---- names --------------------------------------------------------------------------- */

static void names_add(struct warm_job *job, struct slice name)
{
    uint32_t len = (uint32_t)name.len;

    buf_append(&job->names, &len, sizeof(len));
    buf_slice_append(&job->names, name);
    job->npending++;
}

/* The next name, copied; NULL: none is waiting. */
static struct warm_load *names_take(struct warm_job *job)
{
    struct list *l = list_pop_front(&job->again);
    uint32_t len;

    if (l)
        return LIST_ENTRY(l, struct warm_load, link);
    if (job->npending == 0)
        return NULL;
    memcpy(&len, job->names.ptr + job->at, sizeof(len));
    struct warm_load *load = mem_calloc(MEM_OTHER, sizeof(*load) + len);
    memcpy(load->name, job->names.ptr + job->at + sizeof(len), len);
    load->len = len;
    load->job = job;
    list_init(&load->link);
    job->at += sizeof(len) + len;
    job->ntaken++;
    if (--job->npending == 0)
        job->names.len = job->at = 0;
    return load;
}

static void job_progress(struct warm_job *job)
{
    if (job->kind == WARM_MATCH) {
        if (job->exhausted)
            atomic_store(&job->total, (int64_t)(job->ntaken + job->npending));
        atomic_store(&job->progress, (int64_t)job->ntaken);
    } else if (job->kind == WARM_KEYS) {
        atomic_store(&job->progress, (int64_t)job->ntaken);
    }
}

/* ---- names from a file --------------------------------------------------------------- */

static void line_end(struct warm_job *job)
{
    struct slice name = buf_slice(&job->line);

    if (name.len > 0 && name.ptr[name.len - 1] == '\r')
        name.len--;
    if (job->line_too_long)
        count(&job->failed, 1);
    else if (name.len > 0)
        names_add(job, name);
    job->line.len = 0;
    job->line_too_long = false;
}

static void line_add(struct warm_job *job, const char *ptr, size_t len)
{
    if (job->line_too_long || job->line.len + len > WARM_LINE_MAX) {
        job->line_too_long = true;
        job->line.len = 0;
    } else {
        buf_append(&job->line, ptr, len);
    }
}

static void file_parse(struct warm_job *job, const char *p, size_t n)
{
    const char *end = p + n, *nl;

    while ((nl = memchr(p, '\n', (size_t)(end - p))) != NULL) {
        line_add(job, p, (size_t)(nl - p));
        line_end(job);
        p = nl + 1;
    }
    line_add(job, p, (size_t)(end - p));
}

static void file_next(struct warm_job *job)
{
    char chunk[FILE_CHUNK], text[96];
    ssize_t n = read(job->fd, chunk, sizeof(chunk));

    if (n > 0) {
        file_parse(job, chunk, (size_t)n);
        atomic_fetch_add(&job->progress, n);
    } else if (n == 0) {
        if (job->line.len > 0 || job->line_too_long)
            line_end(job);
        job->exhausted = true;
    } else if (errno != EINTR) {
        snprintf(text, sizeof(text), "reading the file: %s", strerror(errno));
        job_end(job, WARM_FAILED, text);
    }
}

static enum status file_open(struct warm_job *job, struct slice path, char err[WARM_ERROR_MAX])
{
    char name[4096];
    struct stat st;

    if (path.len == 0 || path.len >= sizeof(name) || memchr(path.ptr, '\0', path.len)) {
        snprintf(err, WARM_ERROR_MAX, "not a path");
        return ST_IO;
    }
    memcpy(name, path.ptr, path.len);
    name[path.len] = '\0';
    job->fd = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a pipe must not stop the loop */
    if (job->fd < 0 || fstat(job->fd, &st) != 0) {
        snprintf(err, WARM_ERROR_MAX, "cannot read %.128s: %s", name, strerror(errno));
        return ST_IO;
    }
    if (!S_ISREG(st.st_mode)) {
        snprintf(err, WARM_ERROR_MAX, "cannot read %.128s: not a regular file", name);
        return ST_IO;
    }
    atomic_store(&job->total, (int64_t)st.st_size);
    return ST_OK;
}

/* ---- names from the upstream's SCAN -------------------------------------------------- */

/* "<kind><number>\r\n" */
static bool reply_number(struct slice *in, char kind, int64_t *out)
{
    const char *nl = in->len ? memchr(in->ptr, '\n', in->len) : NULL;

    if (!nl || nl - in->ptr < 3 || in->ptr[0] != kind ||
        !num_parse_i64(SLICE(in->ptr + 1, (size_t)(nl - in->ptr) - 2), out))
        return false;
    in->len -= (size_t)(nl + 1 - in->ptr);
    in->ptr = nl + 1;
    return true;
}

static bool reply_string(struct slice *in, struct slice *out)
{
    int64_t len;

    if (!reply_number(in, '$', &len) || len < 0 || (uint64_t)len + 2 > in->len)
        return false;
    *out = SLICE(in->ptr, (size_t)len);
    in->ptr += len + 2;
    in->len -= (size_t)len + 2;
    return true;
}

static bool scan_page(struct warm_job *job, struct slice in)
{
    int64_t n;
    struct slice cursor, name;

    if (!reply_number(&in, '*', &n) || n != 2 || !reply_string(&in, &cursor) || !reply_number(&in, '*', &n))
        return false;
    for (; n > 0; n--) {
        if (!reply_string(&in, &name))
            return false;
        names_add(job, name);
    }
    job->exhausted = slice_eq(cursor, SLICE_LIT("0"));
    job->cursor.len = 0;
    buf_slice_append(&job->cursor, cursor);
    return true;
}

/* An answer that a little later may be another. */
static bool scan_may_retry(enum status st, struct slice reply, bool is_error)
{
    static const char *const outage[] = {"-LOADING", "-MASTERDOWN", "-CLUSTERDOWN", "-BUSY", "-TRYAGAIN"};

    if (st != ST_OK)
        return st == ST_UNAVAILABLE || st == ST_TIMEOUT;
    for (size_t i = 0; is_error && i < sizeof(outage) / sizeof(*outage); i++)
        if (reply.len > strlen(outage[i]) && memcmp(reply.ptr, outage[i], strlen(outage[i])) == 0)
            return true;
    return false;
}

static void scan_failed(struct warm_job *job, enum status st, struct slice reply, bool is_error)
{
    int64_t now = clock_mono_ms();
    char text[96];

    if (job->scan_failed_ms == 0)
        job->scan_failed_ms = now;
    if (scan_may_retry(st, reply, is_error) && now - job->scan_failed_ms < WARM_AWAY_MS) {
        job->scan_after_ms = now + SCAN_RETRY_MS;
        return;
    }
    if (is_error)
        snprintf(text, sizeof(text), "SCAN: %.*s", (int)strcspn(reply.ptr + 1, "\r\n"), reply.ptr + 1);
    else
        snprintf(text, sizeof(text), "SCAN: %s", status_text(st));
    job_end(job, WARM_FAILED, text);
}

static void scan_done(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct warm_job *job = LIST_ENTRY(call, struct warm_job, scan);
    (void)sent;

    job->scanning = false;
    if (st == ST_OK && !is_error && job_running(job)) {
        if (scan_page(job, reply))
            job->scan_failed_ms = 0;
        else
            job_end(job, WARM_FAILED, "SCAN: not an answer to it");
    } else {
        scan_failed(job, st, reply, is_error);
    }
    job_kick(job);
}

static void scan_next(struct warm_job *job)
{
    char n[NUM_I64_MAX];
    struct slice argv[] = {SLICE_LIT("SCAN"),        buf_slice(&job->cursor), SLICE_LIT("MATCH"),
                           buf_slice(&job->pattern), SLICE_LIT("COUNT"),      SLICE(n, num_format_i64(n, job->count)),
                           SLICE_LIT("TYPE"),        SLICE_LIT("string")}; /* what can be kept */
    int64_t now = clock_mono_ms();

    if (job->scanning)
        return;
    if (job->scan_after_ms > now) {
        job_later(job, job->scan_after_ms - now);
        return;
    }
    job->scan_after_ms = 0;
    job->scanning = true;
    job->scan.done = scan_done;
    upstream_call(tier_upstream(job->w), &job->scan, job->db, (int)(sizeof(argv) / sizeof(*argv)), argv);
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
        count(&job->bytes, bytes);
    } else if (kept || wait->st == ST_NOT_FOUND) {
        count(&job->skipped, 1);
    } else {
        count(&job->failed, 1);
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
        count(&job->failed, 1);
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
    mem_key_init(job->w->tier->mem, (unsigned)job->db, SLICE(load->name, load->len), &load->wait.key);
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

    if (limit > 0) { /* tier_make_room() keeps below a mark that leaves room for the disk's queue */
        int64_t queue = atomic_load(&t->limit.disk_queue_max), mean = atomic_load(&t->fetched_size);
        int64_t mark = limit - (t->disk ? (queue < limit / 8 ? queue : limit / 8) : 0) - limit / 32;
        int64_t used = mem_class_bytes(MEM_DATA) - atomic_load(&t->demoting_bytes);
        if (used + (int64_t)job->outstanding * mean > mark)
            return "maxmemory";
    }
    if (t->has_upstream && atomic_load(&t->tracked_keys) + job->outstanding >= tracked_max - tracked_max / 64)
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

/* More names, for now or soon. false: there will be none. */
static bool job_produce(struct warm_job *job)
{
    if (job->exhausted)
        return false;
    if (job->kind == WARM_MATCH)
        scan_next(job);
    else
        file_next(job);
    return true;
}

/* One key. false: not now; something will call again. */
static bool job_step(struct warm_job *job)
{
    int64_t ms = wait_for_upstream(job);

    if (ms == 0)
        ms = wait_for_rate(job);
    if (ms > 0) {
        job_later(job, ms);
        return false;
    }
    if (job->outstanding >= WARM_LOADS_MAX)
        return false;
    if (job->kind == WARM_MATCH && job->npending < WARM_LOADS_MAX)
        job_produce(job); /* the next page comes while this one is loaded */
    if (job->npending == 0 && list_empty(&job->again)) {
        if (job_produce(job))
            return !job->scanning && job->scan_after_ms == 0;
        if (job->outstanding == 0)
            job_end(job, WARM_DONE, "");
        return false;
    }
    const char *limit = limit_reached(job);
    if (limit) {
        job_end(job, WARM_STOPPED, limit);
        return false;
    }
    struct warm_load *load = names_take(job);
    if (load->tries == 0)
        job->next_ns += job->key_ns;
    if (!load_start(load)) {
        job_later(job, BUSY_MS);
        return false;
    }
    return true;
}

static void job_free(struct warm_job *job)
{
    if (job->fd >= 0)
        close(job->fd);
    buf_deinit(&job->names);
    buf_deinit(&job->line);
    buf_deinit(&job->pattern);
    buf_deinit(&job->cursor);
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
    if (job->outstanding > 0 || job->scanning)
        return;
    list_init(&waiters);
    pthread_mutex_lock(&wm->lock);
    if (job->final || job->cancel_posted) {
        pthread_mutex_unlock(&wm->lock);
        return;
    }
    job->final = true;
    wm->running--;
    list_splice(&waiters, &job->waiters);
    buf_deinit(&job->names);
    buf_deinit(&job->line);
    job->names.len = job->line.len = 0;
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
    job->kind = spec->kind;
    job->count = spec->count;
    job->key_ns = spec->rate > 0 ? 1000000000 / (uint64_t)spec->rate : 0;
    job->fd = -1;
    job->started_ms = clock_mono_ms();
    job->next_ns = (uint64_t)clock_mono_us() * 1000;
    list_init(&job->link);
    list_init(&job->loads);
    list_init(&job->again);
    list_init(&job->waiters);
    buf_init(&job->names, MEM_OTHER);
    buf_init(&job->line, MEM_OTHER);
    buf_init(&job->pattern, MEM_OTHER);
    buf_init(&job->cursor, MEM_OTHER);
    return job;
}

static enum status job_source(struct warm_job *job, const struct warm_spec *spec, char err[WARM_ERROR_MAX])
{
    switch (spec->kind) {
    case WARM_FILE: return file_open(job, spec->text, err);
    case WARM_MATCH:
        if (!job->w->tier->has_upstream) {
            snprintf(err, WARM_ERROR_MAX, "WARM MATCH asks an upstream, and none is set");
            return ST_UNAVAILABLE;
        }
        buf_slice_append(&job->pattern, spec->text);
        buf_byte(&job->cursor, '0');
        return ST_OK;
    default:
        for (int i = 0; i < spec->nkeys; i++)
            names_add(job, spec->keys[i]);
        atomic_store(&job->total, spec->nkeys);
        job->exhausted = true;
        return ST_OK;
    }
}

enum status warm_start(struct warm *wm, struct worker *w, int db, const struct warm_spec *spec,
                       struct warm_waiter *waiter, uint64_t *id, char err[WARM_ERROR_MAX])
{
    struct warm_job *job = job_create(wm, w, db, spec);
    enum status st = job_source(job, spec, err);

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
    bool done = !job || job->final;
    pthread_mutex_unlock(&wm->lock);
    return done;
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
        count(&job->failed, 1);
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
