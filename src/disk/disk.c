/* Opening, closing, the index for its callers, control and statistics. */
#include "disk_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SHARD_BITS_MAX 24

/* ---- index ---- */

uint64_t disk_hash_bits(const struct disk *d, uint64_t hash)
{
    return hash >> (64 - d->hash_bits) << (64 - d->hash_bits);
}

static bool slot_find(const struct disk *d, uint64_t hash, uint32_t *place, uint64_t *id, bool *committed)
{
    if (!index_find(&d->index[disk_shard_of(d, hash)], disk_tag_of(d, hash), place))
        return false;
    *id = block_id_of_number(d, *place & (PLACE_EXPIRE - 1));
    *committed = *id <= atomic_load_explicit(&d->committed_head, memory_order_acquire);
    return true;
}

bool disk_find_locked(const struct disk *d, uint64_t hash, uint32_t *block, bool *has_expire)
{
    uint32_t place;
    uint64_t id;
    bool committed;
    if (!slot_find(d, hash, &place, &id, &committed) || !committed)
        return false;
    if (block != NULL)
        *block = (uint32_t)id;
    if (has_expire != NULL)
        *has_expire = (place & PLACE_EXPIRE) != 0;
    return true;
}

uint32_t disk_pending_locked(const struct disk *d, uint64_t hash)
{
    uint32_t place;
    uint64_t id;
    bool committed;
    return slot_find(d, hash, &place, &id, &committed) && !committed ? (uint32_t)id : 0;
}

size_t disk_scan_locked(const struct disk *d, unsigned shard, uint64_t lo, uint64_t hi, struct disk_slot *out,
                        size_t max, uint64_t *next)
{
    *next = hi + 1;
    if (shard >= d->shards)
        return 0;
    const struct index_shard *s = &d->index[shard];
    uint64_t base = d->opt.shard_bits ? (uint64_t)shard << (64 - d->opt.shard_bits) : 0;
    uint64_t from = disk_hash_bits(d, lo) > base ? disk_hash_bits(d, lo) : base;
    if (from > hi || disk_shard_of(d, from) != shard)
        return 0;
    size_t n = 0, pos = index_lower_bound(s, disk_tag_of(d, from));
    uint64_t tag;
    uint32_t place;
    while (index_next(s, &pos, &tag, &place)) {
        uint64_t hash = base | tag << (64 - d->hash_bits);
        if (hash > hi)
            break;
        if (n == max) {
            *next = hash;
            break;
        }
        out[n++] = (struct disk_slot){.hash = hash,
                                      .block = (uint32_t)block_id_of_number(d, place & (PLACE_EXPIRE - 1)),
                                      .has_expire = (place & PLACE_EXPIRE) != 0};
    }
    return n;
}

/* ---- open and close ---- */

enum disk_fs disk_fs_of(const char *dir)
{
    struct statfs fs;
    if (statfs(dir, &fs) != 0)
        return DISK_FS_UNKNOWN;
    switch ((uint32_t)fs.f_type) {
    case 0x6969u:     /* NFS */
    case 0x517Bu:     /* SMB */
    case 0xFF534D42u: /* CIFS */
    case 0xFE534D42u: /* SMB 2 */
    case 0x5346414Fu: /* AFS */
    case 0x00C36400u: /* Ceph */ return DISK_FS_NETWORK;
    case 0x01021997u: /* a share of the host, or a container's own */ return DISK_FS_9P;
    case 0x01021994u: /* tmpfs */
    case 0x858458F6u: /* ramfs */ return DISK_FS_MEMORY;
    case 0x794C7630u: return DISK_FS_OVERLAY;
    default: return DISK_FS_LOCAL;
    }
}

static enum status check_file_system(struct disk *d, char err[256])
{
    switch (disk_fs_of(d->opt.dir)) {
    case DISK_FS_UNKNOWN: snprintf(err, 256, "%.150s: %s", d->opt.dir, strerror(errno)); return ST_IO;
    case DISK_FS_NETWORK:
        snprintf(err, 256, "%.120s is on a network file system, whose memory maps and locks cannot be trusted",
                 d->opt.dir);
        return ST_BAD;
    case DISK_FS_9P:
        writer_notice(d, true, "%.120s is on a 9p file system: good for tests, not for a network share", d->opt.dir);
        return ST_OK;
    default: return ST_OK;
    }
}

static char *path_in(const char *dir, const char *name)
{
    size_t len = strlen(dir) + strlen(name) + 2;
    char *path = mem_alloc(MEM_OTHER, len);
    snprintf(path, len, "%s/%s", dir, name);
    return path;
}

static enum status take_lock(struct disk *d, char err[256])
{
    if (mkdir(d->opt.dir, 0700) != 0 && errno != EEXIST) {
        snprintf(err, 256, "cannot make %.150s: %s", d->opt.dir, strerror(errno));
        return ST_IO;
    }
    char *path = path_in(d->opt.dir, "tiercel.lock");
    enum status st = ST_OK;
    d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->lock_fd < 0) {
        snprintf(err, 256, "cannot open %.150s: %s", path, strerror(errno));
        st = ST_IO;
    } else if (flock(d->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        st = errno == EWOULDBLOCK ? ST_BUSY : ST_IO;
        if (st == ST_BUSY)
            snprintf(err, 256, "%.150s is in use by another process", d->opt.dir);
        else
            snprintf(err, 256, "cannot lock %.150s: %s", path, strerror(errno));
    }
    mem_free(MEM_OTHER, path);
    return st;
}

static void set_limits(struct disk *d)
{
    struct disk_options *o = &d->opt;
    if (o->max_bytes > QUOTA_MAX) {
        writer_notice(d, true, "the disk quota is limited to %llu bytes", (unsigned long long)QUOTA_MAX);
        o->max_bytes = QUOTA_MAX;
    }
    if (o->max_bytes < QUOTA_MIN)
        o->max_bytes = QUOTA_MIN;
    if (o->readers == 0)
        o->readers = 1;
    if (o->databases == 0)
        o->databases = 1;
    if (o->commit_bytes > o->max_bytes / 8)
        o->commit_bytes = (size_t)(o->max_bytes / 8);
    if (o->commit_bytes < BLOCK_BYTES)
        o->commit_bytes = BLOCK_BYTES;
    if (o->queue_max_bytes < o->commit_bytes)
        o->queue_max_bytes = o->commit_bytes;
}

static struct disk *disk_new(const struct disk_options *opt)
{
    struct disk *d = mem_calloc(MEM_OTHER, sizeof(*d));
    d->opt = *opt;
    set_limits(d);
    d->opt.dir = mem_strdup(MEM_OTHER, opt->dir);
    d->path = path_in(opt->dir, "tiercel.mdb");
    d->lmdb_lock_path = path_in(opt->dir, "tiercel.mdb-lock");
    d->lock_fd = -1;
    d->hash_bits = opt->shard_bits + DISK_TAG_BITS;
    d->shards = (size_t)1 << opt->shard_bits;
    d->index = mem_calloc(MEM_DATA, d->shards * sizeof(*d->index));
    d->incarnation = mem_calloc(MEM_OTHER, d->opt.databases * sizeof(*d->incarnation));
    d->meta_incarnation = mem_calloc(MEM_OTHER, d->opt.databases * sizeof(*d->meta_incarnation));
    d->loaded_keys = mem_calloc(MEM_OTHER, d->opt.databases * sizeof(int64_t));
    d->loaded_expires = mem_calloc(MEM_OTHER, d->opt.databases * sizeof(int64_t));
    d->readers = mem_calloc(MEM_OTHER, (d->opt.readers + 1) * sizeof(*d->readers));
    atomic_store(&d->healthy, true);
    atomic_store(&d->retain, opt->retain);
    atomic_store(&d->thorough, opt->thorough);
    d->retain_max = RETAIN_MAX;
    d->retry_us = RETRY_US;
    atomic_store(&d->max_bytes, d->opt.max_bytes);
    queue_init(d);
    reclaim_init(d);
    list_init(&d->reads);
    list_init(&d->large_reads);
    pthread_cond_init(&d->large_wake, NULL);
    pthread_mutex_init(&d->read_mu, NULL);
    pthread_cond_init(&d->read_wake, NULL);
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    /* Else readers that never pause could keep the writer from remapping for ever. */
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&d->map_lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    return d;
}

static void disk_free(struct disk *d)
{
    env_close(d);
    if (d->lock_fd >= 0)
        close(d->lock_fd); /* lets go of the lock */
    for (size_t i = 0; i < d->shards; i++)
        index_clear(&d->index[i]);
    block_free_all(d);
    queue_deinit(d);
    reclaim_deinit(d);
    pthread_rwlock_destroy(&d->map_lock);
    pthread_mutex_destroy(&d->read_mu);
    pthread_cond_destroy(&d->read_wake);
    pthread_cond_destroy(&d->large_wake);
    mem_free(MEM_DATA, d->index);
    void *other[] = {d->path,
                     d->lmdb_lock_path,
                     (void *)(uintptr_t)d->opt.dir,
                     d->incarnation,
                     d->meta_incarnation,
                     d->loaded_keys,
                     d->loaded_expires,
                     d->readers,
                     d->retained,
                     d->doomed,
                     d->gone,
                     d->done};
    for (size_t i = 0; i < sizeof(other) / sizeof(*other); i++)
        mem_free(MEM_OTHER, other[i]);
    mem_free(MEM_OTHER, d);
}

static enum status start_threads(struct disk *d, char err[256])
{
    int rc = reader_start(d);
    if (rc == 0)
        rc = pthread_create(&d->writer, NULL, writer_main, d);
    d->writer_started = rc == 0;
    if (rc == 0)
        return ST_OK;
    snprintf(err, 256, "cannot start a thread: %s", strerror(rc));
    return ST_IO;
}

static void stop_threads(struct disk *d)
{
    if (d->writer_started) {
        pthread_mutex_lock(&d->mu);
        d->closing = true;
        pthread_cond_signal(&d->wake);
        pthread_mutex_unlock(&d->mu);
        pthread_join(d->writer, NULL);
    }
    reader_stop(d);
}

enum status disk_open(const struct disk_options *opt, struct disk **out, char err[256])
{
    err[0] = '\0';
    if (opt->shard_bits > SHARD_BITS_MAX || opt->databases > 65000) {
        snprintf(err, 256, "too many shards or databases");
        return ST_BAD;
    }
    struct disk *d = disk_new(opt);
    enum status st = take_lock(d, err);
    if (st == ST_OK)
        st = check_file_system(d, err);
    if (st == ST_OK)
        st = env_open(d, err);
    if (st == ST_OK) {
        atomic_store(&d->used_bytes, d->data_bytes + d->keys_bytes + 4 * d->page);
        atomic_store(&d->n.block_bytes, d->data_bytes);
        *out = d; /* a callback may come before we return */
        if (d->opt.owner.committed != NULL)
            st = start_threads(d, err);
    }
    if (st != ST_OK) {
        *out = NULL;
        stop_threads(d);
        disk_free(d);
    }
    return st;
}

enum status disk_start(struct disk *d, const struct disk_owner *owner, char err[256])
{
    d->opt.owner = *owner;
    return start_threads(d, err);
}

/* The disk did not take what ends older values: better no file than one with stale values,
 * where it is a cache. Where it is to keep what it has, an older state is what a crash gives, too. */
static void give_up_file(struct disk *d)
{
    if (PEEK(d->retain) != DISK_RETAIN_HOT || PEEK(d->thorough) || PEEK(d->healthy) ||
        (d->retained_n == 0 && !PEEK(d->any_dirty) && !d->drop_pending))
        return;
    if (unlink(d->path) == 0)
        writer_notice(d, false, "disk file removed: it could not be written, and holds values that have changed");
}

void disk_close(struct disk *d)
{
    stop_threads(d);
    give_up_file(d);
    disk_free(d);
}

uint64_t disk_hash_seed(const struct disk *d)
{
    return d->seed;
}

uint32_t disk_incarnation(const struct disk *d, unsigned db)
{
    return db < d->opt.databases ? PEEK(d->incarnation[db]) : 0;
}

void disk_loaded_keys(const struct disk *d, unsigned db, int64_t *keys, int64_t *expires)
{
    *keys = db < d->opt.databases ? d->loaded_keys[db] : 0;
    *expires = db < d->opt.databases ? d->loaded_expires[db] : 0;
}

/* ---- control ---- */

static uint64_t commit_now_locked(struct disk *d)
{
    d->sync_events = PEEK(d->events);
    pthread_cond_signal(&d->wake);
    return d->sync_events;
}

void disk_ask_owner(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    d->ask_owner = true;
    pthread_cond_signal(&d->wake);
    pthread_mutex_unlock(&d->mu);
}

void disk_hurry(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    commit_now_locked(d);
    pthread_mutex_unlock(&d->mu);
}

enum status disk_sync(struct disk *d, int64_t timeout_ms)
{
    int64_t until = clock_mono_us() + timeout_ms * 1000;
    struct timespec ts = {.tv_sec = until / 1000000, .tv_nsec = until % 1000000 * 1000};
    enum status st = ST_OK;
    pthread_mutex_lock(&d->mu);
    uint64_t want = commit_now_locked(d), failures = d->failures;
    while (st == ST_OK && PEEK(d->settled_events) < want)
        if (pthread_cond_timedwait(&d->settled, &d->mu, &ts) == ETIMEDOUT && PEEK(d->settled_events) < want)
            st = ST_TIMEOUT;
    if (st == ST_OK && (d->failures != failures || !PEEK(d->healthy)))
        st = ST_IO;
    pthread_mutex_unlock(&d->mu);
    return st;
}

static void wake_writer(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    d->work_soon = true;
    d->house_at_us = 0;
    pthread_cond_signal(&d->wake);
    pthread_mutex_unlock(&d->mu);
}

void disk_set_max_bytes(struct disk *d, uint64_t max_bytes)
{
    uint64_t max = max_bytes > QUOTA_MAX ? QUOTA_MAX : max_bytes < QUOTA_MIN ? QUOTA_MIN : max_bytes;
    atomic_store(&d->max_bytes, max);
    wake_writer(d);
}

void disk_set_retain(struct disk *d, enum disk_retain retain, bool thorough)
{
    atomic_store(&d->retain, retain);
    atomic_store(&d->thorough, thorough);
    wake_writer(d);
}

void disk_set_names(struct disk *d, bool wanted)
{
    atomic_store(&d->names, wanted);
}

bool disk_healthy(const struct disk *d)
{
    return PEEK(d->healthy);
}

bool disk_quota_full(const struct disk *d)
{
    return PEEK(d->quota_full);
}

void disk_problem(const struct disk *d, char text[256])
{
    struct disk *own = (struct disk *)(uintptr_t)d; /* for its mutex */
    pthread_mutex_lock(&own->mu);
    memcpy(text, d->problem, sizeof(d->problem));
    pthread_mutex_unlock(&own->mu);
}

size_t disk_queue_bytes(const struct disk *d)
{
    return PEEK(d->queue_bytes) + PEEK(d->clean_debt);
}

void disk_get_stats(const struct disk *d, struct disk_stats *out)
{
    *out = (struct disk_stats){
        .file_bytes = PEEK(d->n.file_bytes),
        .block_bytes = PEEK(d->n.block_bytes),
        .appends = PEEK(d->n.appends),
        .appended_bytes = PEEK(d->n.appended_bytes),
        .tombstones = PEEK(d->n.tombstones),
        .commits = PEEK(d->n.commits),
        .commit_us = PEEK(d->n.commit_us),
        .written_bytes = PEEK(d->n.written_bytes),
        .reads = PEEK(d->n.reads),
        .inline_reads = PEEK(d->n.inline_reads),
        .read_misses = PEEK(d->n.read_misses),
        .corrupt = PEEK(d->n.corrupt),
        .io_errors = PEEK(d->n.io_errors),
        .dropped_keys = PEEK(d->n.dropped_keys),
        .expired_keys = PEEK(d->n.expired_keys),
        .carried_keys = PEEK(d->n.carried_keys),
        .carried_bytes = PEEK(d->n.carried_bytes),
        .queue_bytes = PEEK(d->queue_bytes),
        .live_bytes = PEEK(d->n.live_bytes),
        .last_commit_ms = PEEK(d->n.last_commit_ms),
    };
    for (size_t i = 0; i < d->shards; i++) {
        size_t len = PEEK(d->index[i].len);
        out->keys += PEEK(d->index[i].count);
        out->index_bytes += len == 0 ? 0 : (len + 1) * INDEX_SLOT_BYTES;
    }
    out->index_bytes += d->shards * sizeof(*d->index);
}
