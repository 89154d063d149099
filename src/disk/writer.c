/* The writer thread: takes batches, commits them, tells the owner; what to do when the
 * disk fails; housekeeping between commits. */
#include "disk_priv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/statvfs.h>

#include "tiercel/pace.h"

#define HOUSE_US 250000
#define SOFT_US 60000000
#define TRIES 3
#define ROOM_MARGIN 64
#define SPARE_BYTES (4u << 20)

void writer_notice(struct disk *d, bool healthy, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    if (d->opt.owner.notice == NULL)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    d->opt.owner.notice(d->opt.owner.arg, healthy, text);
}

/* ---- waiting ---- */

static bool commit_is_due_locked(const struct disk *d, int64_t now_us)
{
    uint64_t settled = PEEK(d->settled_events);
    if (d->ask_owner)
        return true;
    if (settled == PEEK(d->events))
        return false;
    return d->closing || d->sync_events > settled || d->waiting_bytes >= d->opt.commit_bytes ||
           now_us >= d->commit_at_us ||
           now_us >= reclaim_commit_at(d); /* what waits may be what a deletion waits for */
}

static void writer_sleep_locked(struct disk *d, int64_t now_us)
{
    int64_t until = d->house_at_us;
    if (PEEK(d->settled_events) != PEEK(d->events) && d->commit_at_us != 0)
        until = d->commit_at_us < until ? d->commit_at_us : until;
    if (until <= now_us)
        return;
    struct timespec ts = {.tv_sec = until / 1000000, .tv_nsec = until % 1000000 * 1000};
    pthread_cond_timedwait(&d->wake, &d->mu, &ts);
}

static size_t batch_limit(const struct disk *d)
{
    uint64_t limit = d->opt.commit_bytes * 2, quarter = PEEK(d->max_bytes) / 4;
    return (size_t)(limit < quarter ? limit : quarter);
}

/* Groups that are open end first; those that want to begin wait meanwhile. */
static void writer_take_locked(struct disk *d, struct batch *batch, size_t limit)
{
    d->taking = true;
    while (d->groups != 0)
        pthread_cond_wait(&d->group, &d->mu);
    queue_take_locked(d, batch, limit);
    d->taking = false;
    pthread_cond_broadcast(&d->group);
}

/* The owner may hold appends back until now. */
static bool writer_ask_owner(struct disk *d, bool begin)
{
    return d->opt.owner.committing != NULL && d->opt.owner.committing(d->opt.owner.arg, begin);
}

static void writer_wait(struct disk *d, struct batch *batch)
{
    *batch = (struct batch){.bytes = 0};
    list_init(&batch->blocks);
    pthread_mutex_lock(&d->mu);
    for (;;) {
        int64_t now_us = clock_mono_us();
        batch->due = commit_is_due_locked(d, now_us);
        if (batch->due || d->closing || now_us >= d->house_at_us)
            break;
        writer_sleep_locked(d, now_us);
    }
    d->ask_owner = false;
    if (!PEEK(d->healthy)) {
        /* Behind all that failed, before all that comes. */
        writer_take_locked(d, batch, SIZE_MAX);
        d->retained_id = queue_next_id_locked(d);
    } else if (batch->due) {
        pthread_mutex_unlock(&d->mu);
        bool held_back = writer_ask_owner(d, true);
        pthread_mutex_lock(&d->mu);
        d->ask_owner = false; /* nothing is held back since */
        writer_take_locked(d, batch, held_back ? SIZE_MAX : batch_limit(d));
    }
    batch->closing = d->closing && list_empty(&d->sealed) && d->open == NULL;
    pthread_mutex_unlock(&d->mu);
    if (batch->due)
        writer_ask_owner(d, false);
}

/* ---- the end of a batch ---- */

static void batch_report(struct disk *d, const struct batch *batch, enum status st)
{
    size_t n = 0;
    for (struct list *l = batch->blocks.next; l != &batch->blocks; l = l->next) {
        const struct block *b = LIST_ENTRY(l, struct block, link);
        if (n + b->ndone > d->done_cap) {
            d->done_cap = (n + b->ndone) * 2;
            d->done = mem_realloc(MEM_OTHER, d->done, d->done_cap * sizeof(*d->done));
        }
        if (b->ndone != 0)
            memcpy(d->done + n, b->done, b->ndone * sizeof(*d->done));
        n += b->ndone;
    }
    if (n != 0 && d->opt.owner.committed != NULL)
        d->opt.owner.committed(d->opt.owner.arg, d->done, n, st);
}

/* The slots of carried records go over to their new block, unless the key has changed. */
static void batch_carried(struct disk *d, const struct batch *batch)
{
    for (struct list *l = batch->blocks.next; l != &batch->blocks; l = l->next) {
        const struct block *b = LIST_ENTRY(l, struct block, link);
        for (uint32_t i = 0; i < b->ncarried; i++) {
            const struct carried *c = &b->carried[i];
            d->opt.owner.lock(d->opt.owner.arg, c->hash);
            queue_carry_end_locked(d, b, c);
            d->opt.owner.unlock(d->opt.owner.arg, c->hash);
        }
    }
}

/* A block none of whose records is the newest of its key is dead from the start. */
static void batch_note_dead(struct disk *d, const struct batch *batch)
{
    for (struct list *l = batch->blocks.next; l != &batch->blocks; l = l->next) {
        const struct block *b = LIST_ENTRY(l, struct block, link);
        if (b->nrec != 0 && !b->dead && PEEK(b->meta->live) == 0)
            atomic_fetch_add_explicit(&d->dead_hint, 1, memory_order_relaxed);
    }
}

/* What ends older records must not get lost: these may be on disk. So an append that failed
 * and had replaced one leaves a tombstone. */
static void batch_retain(struct disk *d, const struct batch *batch)
{
    for (struct list *l = batch->blocks.next; l != &batch->blocks; l = l->next) {
        const struct block *b = LIST_ENTRY(l, struct block, link);
        size_t want = d->retained_n + b->nops;
        if (want > d->retained_cap) {
            d->retained_cap = want * 2;
            d->retained = mem_realloc(MEM_OTHER, d->retained, d->retained_cap * sizeof(*d->retained));
        }
        size_t n = d->retained_n;
        for (uint32_t i = 0; i < b->nops; i++)
            if (b->ops[i].word & (OP_TOMB | OP_REPLACES))
                d->retained[n++] = (struct disk_op){.hash = b->ops[i].hash, .word = OP_TOMB};
        pthread_mutex_lock(&d->mu);
        d->retained_n = n;
        pthread_mutex_unlock(&d->mu);
    }
}

static void batch_release(struct disk *d, struct batch *batch)
{
    struct list *l;
    while ((l = list_pop_front(&batch->blocks)) != NULL)
        queue_recycle(d, LIST_ENTRY(l, struct block, link));
    pthread_mutex_lock(&d->mu);
    atomic_store_explicit(&d->queue_bytes, PEEK(d->queue_bytes) - batch->bytes, memory_order_relaxed);
    pthread_mutex_unlock(&d->mu);
}

static void batch_settle(struct disk *d, const struct batch *batch, bool failed)
{
    pthread_mutex_lock(&d->mu);
    bool news = batch->events > PEEK(d->settled_events);
    if (news)
        atomic_store_explicit(&d->settled_events, batch->events, memory_order_release);
    if (failed)
        d->failures++;
    pthread_cond_broadcast(&d->settled);
    pthread_mutex_unlock(&d->mu);
    if (news && d->opt.owner.settled != NULL)
        d->opt.owner.settled(d->opt.owner.arg, batch->events, !failed);
}

/* ---- failures ---- */

static bool is_space(const struct disk *d, const struct batch *batch, int rc)
{
    struct statvfs fs;
    if (rc != EIO)
        return rc == MDB_MAP_FULL || rc == ENOSPC || rc == EDQUOT || rc == EFBIG;
    /* That is also what LMDB makes of a short write, which is how a full disk shows first. */
    return statvfs(d->opt.dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < batch->cost + SPARE_BYTES;
}

/* The file may grow by what the file system has. Some of that stays free: to delete takes pages too. */
static void writer_note_room(struct disk *d)
{
    struct statvfs fs;
    d->room_max = UINT64_MAX;
    if (statvfs(d->opt.dir, &fs) != 0 || fs.f_blocks == 0)
        return;
    uint64_t room = PEEK(d->n.file_bytes) + (uint64_t)fs.f_bavail * fs.f_frsize;
    uint64_t spare = SPARE_BYTES + d->opt.commit_bytes * 2;
    d->room_max = room - (spare < room / 8 ? spare : room / 8);
}

/* Commits, and where there is no room makes some and tries again. */
static int writer_commit(struct disk *d, const struct batch *batch)
{
    struct batch none = {.bytes = 0};
    list_init(&none.blocks);
    writer_note_room(d);
    reclaim_for(d, batch->cost, 0);
    int rc = commit_run(d, batch, false);
    if (rc == EIO && is_space(d, batch, rc))
        rc = ENOSPC;
    for (int i = 0; i < TRIES && is_space(d, batch, rc) && clean_is_plain(d); i++) {
        reclaim_for(d, batch->cost, (batch->cost * 2 + (1 << 20)) << i);
        /* Pages freed in one transaction are used in the one after the next. */
        if (commit_run(d, &none, false) != 0 || commit_run(d, &none, false) != 0)
            break;
        rc = commit_run(d, batch, false);
        if (rc == 0) {
            d->soft_max = PEEK(d->used_bytes);
            d->soft_until_us = clock_mono_us() + SOFT_US;
        }
    }
    if (rc == MDB_PANIC || rc == MDB_BAD_RSLOT || guard_torn(d))
        d->env_broken = true;
    return rc;
}

static void writer_fail(struct disk *d, int rc)
{
    const char *why = guard_torn(d) ? "a page of the file cannot be read" : mdb_strerror(rc);
    COUNT(d, io_errors, 1);
    d->retry_at_us = clock_mono_us() + d->retry_us;
    pthread_mutex_lock(&d->mu);
    snprintf(d->problem, sizeof(d->problem), "commit failed: %s", why);
    pthread_mutex_unlock(&d->mu);
    if (!atomic_exchange(&d->healthy, false))
        return;
    writer_notice(d, false, "disk tier is read-only: commit failed: %s", why);
}

static void writer_end_batch(struct disk *d, struct batch *batch, int rc)
{
    if (rc == 0)
        batch_carried(d, batch);
    batch_report(d, batch, rc == 0 ? ST_OK : ST_IO);
    if (rc == 0)
        batch_note_dead(d, batch);
    else
        batch_retain(d, batch);
    batch_release(d, batch);
    batch_settle(d, batch, rc != 0);
}

/* Commits nothing but deletions, until none is left that may be made now. */
static int writer_delete(struct disk *d, const struct batch *none, bool clean)
{
    size_t before;
    int rc;
    do {
        before = d->doomed_n;
        rc = commit_run(d, none, clean);
    } while (rc == 0 && d->doomed_n != 0 && d->doomed_n < before);
    return rc;
}

/* Tries the disk again with what must not get lost. */
static void writer_recover(struct disk *d)
{
    struct batch none = {.bytes = 0};
    list_init(&none.blocks);
    int rc = 0;
    if (d->env == NULL || d->env_broken) {
        rc = env_reopen(d);
        d->env_broken = rc != 0;
    }
    if (rc == 0 && !reclaim_dirty(d))
        rc = MDB_PANIC; /* what keeps a reading transaction from its start */
    if (rc == 0)
        rc = writer_delete(d, &none, false);
    if (rc != 0) {
        d->env_broken |= rc == MDB_PANIC;
        writer_fail(d, rc);
        return;
    }
    pthread_mutex_lock(&d->mu);
    d->problem[0] = '\0';
    d->want_room = true;
    pthread_mutex_unlock(&d->mu);
    atomic_store(&d->healthy, true);
    atomic_fetch_add_explicit(&d->dead_hint, 1, memory_order_relaxed);
    writer_notice(d, true, "disk tier is writable again");
}

/* ---- the loop ---- */

static void writer_room(struct disk *d)
{
    size_t queued = PEEK(d->queue_bytes);
    bool room = PEEK(d->healthy) && queued <= d->opt.queue_max_bytes / 2 &&
                PEEK(d->head) + 1 - PEEK(d->tail) < WINDOW_MAX - META_CHUNK &&
                !clean_is_over(d, PEEK(d->refused) + PEEK(d->max_bytes) / ROOM_MARGIN);
    pthread_mutex_lock(&d->mu);
    room = room && d->want_room;
    if (room) {
        d->want_room = false;
        atomic_store_explicit(&d->refused, 0, memory_order_relaxed);
    }
    pthread_mutex_unlock(&d->mu);
    if (room && d->opt.owner.room != NULL)
        d->opt.owner.room(d->opt.owner.arg);
}

/* Before a batch is taken: what is taken while it is not healthy goes another way. */
static void writer_check(struct disk *d)
{
    if (PEEK(d->healthy) && env_grow_map(d) != 0)
        writer_fail(d, ENOMEM);
    if (PEEK(d->healthy) && guard_torn(d)) {
        d->env_broken = true;
        writer_fail(d, MDB_CORRUPTED);
    }
}

static void writer_round(struct disk *d, struct batch *batch)
{
    int64_t now_us = clock_mono_us();
    if (!PEEK(d->healthy)) {
        writer_end_batch(d, batch, EIO);
        if (now_us >= d->retry_at_us || batch->closing)
            writer_recover(d);
        return;
    }
    if (!batch->due && now_us < reclaim_commit_at(d))
        return;
    int rc = writer_commit(d, batch);
    if (rc != 0)
        writer_fail(d, rc);
    writer_end_batch(d, batch, rc);
}

static void writer_house(struct disk *d)
{
    writer_note_room(d);
    bool more = reclaim_slice(d);
    writer_room(d);
    queue_shrink_pool(d);
    int64_t now_us = clock_mono_us(), commit_at_us = reclaim_commit_at(d);
    pthread_mutex_lock(&d->mu);
    d->house_at_us = more ? now_us : now_us + HOUSE_US < commit_at_us ? now_us + HOUSE_US : commit_at_us;
    if (d->work_soon || (d->reclaim_at_us != 0 && d->reclaim_at_us < d->house_at_us))
        d->house_at_us = d->work_soon || d->reclaim_at_us < now_us ? now_us + 1000 : d->reclaim_at_us;
    d->work_soon = false;
    pthread_mutex_unlock(&d->mu);
}

void *writer_main(void *arg)
{
    struct disk *d = arg;
    struct batch batch;
    pthread_setname_np(pthread_self(), "disk-writer");
    pace_thread_init(); /* a commit is not to delay the loops that share its core */
    do {
        writer_check(d);
        writer_wait(d, &batch);
        writer_round(d, &batch);
        if (!batch.closing)
            writer_house(d);
    } while (!batch.closing);
    int rc = PEEK(d->healthy) ? writer_delete(d, &batch, true) : 0;
    if (rc != 0)
        writer_fail(d, rc);
    return NULL;
}
