/* Reading. The place of most blocks in the file is known, so that a read is of a block's directory
 * and of the record, by preadv2(): on a loop thread it takes what is in the page cache or nothing,
 * and it reports an error where touching the map would end the process. What it brings may by then
 * belong to another block, but a record tells what it is. Where it is not what was wanted, for
 * large records and for blocks that lie within LMDB's own pages, LMDB is asked.
 *
 * Reader threads share one queue; each takes a share of it. What needs LMDB is served in one short
 * read transaction: its snapshot keeps freed pages from being used again.
 *
 * Large records have a thread of their own. It reads one piece after another, with rests, and holds map_lock for one
 * piece only; then what it hands over is its own copy, and may be used with rests, too. Those who wait for small records
 * do not wait for a large one to become an object. */
#include "disk_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "tiercel/log.h"
#include "tiercel/pace.h"

#define READ_LARGE (256u * 1024) /* of a block's value */
#define PIECE_BYTES 65536u       /* of such a one, read at once */
#define PREAD_MAX 40960u         /* bytes of a directory, or of a record */
#define INLINE_COLD_MAX 6        /* after that many cold pages in a row one in 2^6 reads is tried inline */

/* Where a read puts things together. */
struct read_buf {
    char bytes[sizeof(struct block_head) + PREAD_MAX + 8];
};

/* ---- reading from the file; under map_lock ---- */

/* Reads all of it: 0, or why not. */
static int file_read(struct disk *d, void *to, size_t len, uint64_t at, int flags)
{
    int fd;
    if (mdb_env_get_fd(d->env, &fd) != 0)
        return EBADF;
    while (len > 0) {
        struct iovec io = {to, len};
        ssize_t n = preadv2(fd, &io, 1, (off_t)at, flags);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : ENODATA;
        if (flags & RWF_NOWAIT && (size_t)n < len)
            return EAGAIN;
        to = (char *)to + n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

/* Reads the record between two offsets, as a block of its own. 0: it is the one. ENOENT: it is not. */
static int record_pread(struct disk *d, uint64_t at, uint32_t off, uint32_t end, const struct disk_read *rd, int flags,
                        struct read_buf *buf, struct disk_record *rec)
{
    uint32_t number, len = end - off, entry[2] = {(uint32_t)(rd->key.hash >> 32), sizeof(struct block_head)};
    struct block_head head = {.magic = BLOCK_MAGIC, .count = 1, .dir = (uint32_t)sizeof(head) + len};
    if (off >= end || len > PREAD_MAX)
        return ENOENT;
    memcpy(buf->bytes, &head, sizeof(head));
    memcpy(buf->bytes + head.dir, entry, sizeof(entry));
    int rc = file_read(d, buf->bytes + sizeof(head), len, at + off, flags);
    if (rc != 0)
        return rc;
    return block_find(d, SLICE(buf->bytes, head.dir + sizeof(entry)), rd, rec, &number) == ST_OK ? 0 : ENOENT;
}

/* 0: found. ENOENT: LMDB has to be asked. Else the file could not be read. */
static int block_pread(struct disk *d, uint64_t id, struct block_meta *m, const struct disk_read *rd, int flags,
                       struct read_buf *buf, struct disk_record *rec, uint32_t *number)
{
    uint32_t page = PEEK(m->page), len = PEEK(m->data_len), count = m->records;
    uint32_t want = (uint32_t)(rd->key.hash >> 32);
    if (page == 0 || count == 0 || count > PREAD_MAX / 8 || len < sizeof(struct block_head) + count * 8 ||
        len / count > PREAD_MAX)
        return ENOENT;
    uint64_t at = (uint64_t)page * d->page + 16;
    uint32_t dir = len - count * 8, off = 0, end = dir;
    if (dirs_find(d, m, id, want, number, &off, &end)) {
        int rc = record_pread(d, at, off, end, rd, flags, buf, rec);
        if (rc != ENOENT)
            return rc;
    }
    const char *hashes = buf->bytes, *offs = hashes + (size_t)count * 4;
    int rc = file_read(d, buf->bytes, (size_t)count * 8, at + dir, flags);
    if (rc != 0)
        return rc;
    uint32_t i = count;
    while (i > 0 && load32(hashes + (size_t)(i - 1) * 4) != want)
        i--;
    if (i == 0)
        return ENOENT;
    *number = i - 1;
    off = load32(offs + (size_t)(i - 1) * 4);
    end = i < count ? load32(offs + (size_t)i * 4) : dir;
    if (end > dir)
        return ENOENT;
    dirs_note(d, m, id, hashes, offs, len);
    return record_pread(d, at, off, end, rd, flags, buf, rec);
}

/* NULL: the block is gone. */
static struct block_meta *read_meta(const struct disk *d, const struct disk_read *rd, uint64_t *id)
{
    *id = block_id_of_api(d, rd->block);
    return *id != 0 && block_has(d, *id, BLOCK_DATA) ? block_meta(d, *id) : NULL;
}

/* ---- answering ---- */

static void read_note(const struct disk_read *rd, struct block_meta *m, uint32_t number, struct disk_record *rec)
{
    uint64_t bit = 1ULL << ((uint64_t)number * 64 / m->records & 63);
    if (!rd->header_only && !rd->quiet && !(PEEK(m->read) & bit)) /* mostly it is set: the line stays shared */
        atomic_fetch_or_explicit(&m->read, bit, memory_order_relaxed);
    rec->written_s = PEEK(m->written_s);
}

static void read_hand_over(struct disk *d, struct disk_read *rd, struct disk_record *rec)
{
    COUNT(d, reads, 1);
    rec->key.db = rd->key.db;
    rec->block = rd->block;
    rd->done(rd, ST_OK, rec);
}

static void read_found(struct disk *d, struct disk_read *rd, struct block_meta *m, uint32_t number,
                       struct disk_record *rec)
{
    read_note(rd, m, number, rec);
    read_hand_over(d, rd, rec);
}

static void read_failed(struct disk *d, struct disk_read *rd, enum status st)
{
    COUNT(d, reads, 1);
    if (st == ST_NOT_FOUND)
        COUNT(d, read_misses, 1);
    else if (st == ST_CORRUPT)
        COUNT(d, corrupt, 1);
    else
        COUNT(d, io_errors, 1);
    rd->done(rd, st, NULL);
}

/* Without LMDB; false: it has to be asked. May wait for the disk. */
static bool read_from_file(struct disk *d, struct disk_read *rd, struct read_buf *buf)
{
    struct disk_record rec;
    uint64_t id;
    uint32_t number;
    struct block_meta *m = read_meta(d, rd, &id);
    int rc = m != NULL && d->env != NULL ? block_pread(d, id, m, rd, 0, buf, &rec, &number) : ENOENT;
    if (rc == ENOENT)
        return false;
    if (rc == 0) {
        read_found(d, rd, m, number, &rec);
    } else {
        log_warning("disk", "block %llu cannot be read: %s", (unsigned long long)id, strerror(rc));
        read_failed(d, rd, ST_IO);
    }
    return true;
}

static enum status map_find(struct disk *d, uint64_t id, struct block_meta *m, const MDB_val *val,
                            const struct disk_read *rd, struct read_buf *buf, struct disk_record *rec, uint32_t *number)
{
    uint32_t page = PEEK(m->page) == 0 ? commit_value_page(d, val) : 0;
    if (page != 0) {
        atomic_store_explicit(&m->page, page, memory_order_relaxed);
        if (block_pread(d, id, m, rd, 0, buf, rec, number) == 0)
            return ST_OK;
    }
    /* One read of the disk, not one a page. */
    uintptr_t from = (uintptr_t)val->mv_data / d->page * d->page;
    if (val->mv_size > PREAD_MAX && !rd->header_only)
        madvise((void *)from, (uintptr_t)val->mv_data + val->mv_size - from, MADV_WILLNEED);
    return block_find(d, SLICE(val->mv_data, val->mv_size), rd, rec, number);
}

static void read_from_map(struct disk *d, MDB_txn *txn, struct disk_read *rd, struct read_buf *buf)
{
    struct disk_record rec;
    uint64_t id;
    uint32_t number = 0;
    enum status st = ST_NOT_FOUND;
    struct block_meta *m = read_meta(d, rd, &id);
    if (m != NULL) {
        MDB_val key = {sizeof(id), &id}, val;
        int rc = mdb_get(txn, d->dbi_data, &key, &val);
        if (rc == 0)
            st = map_find(d, id, m, &val, rd, buf, &rec, &number);
        else if (rc != MDB_NOTFOUND) {
            log_warning("disk", "block %llu cannot be read: %s", (unsigned long long)id, mdb_strerror(rc));
            st = ST_IO;
        }
    }
    if (st == ST_OK)
        read_found(d, rd, m, number, &rec);
    else
        read_failed(d, rd, st);
}

/* ---- on loop threads ---- */

static void inline_refuse(struct disk *d, int why)
{
    if (!atomic_exchange(&d->inline_off, true))
        log_debug("disk", "all reads are handed to reader threads: %s", strerror(why));
}

/* Noting the time of access would wait for the file system's journal. Under map_lock. */
static void inline_prepare(struct disk *d)
{
    int fd, flags;
    if (PEEK(d->inline_off) || d->env == NULL || PEEK(d->inline_env) == d->env || mdb_env_get_fd(d->env, &fd) != 0)
        return;
    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NOATIME) != 0) {
        inline_refuse(d, errno);
        return;
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    atomic_store_explicit(&d->inline_env, d->env, memory_order_relaxed);
}

/* A read that finds a page missing has begun to fetch it, which is work, and waits when the
 * disk's own queue is full. So where pages are cold, few are tried. */
static bool inline_rests(struct disk *d)
{
    uint32_t skip = PEEK(d->inline_skip);
    if (LIKELY(skip == 0))
        return false;
    atomic_store_explicit(&d->inline_skip, skip - 1, memory_order_relaxed);
    return true;
}

static void inline_note(struct disk *d, bool cold)
{
    uint32_t row = PEEK(d->inline_cold);
    if (cold) {
        row += row < INLINE_COLD_MAX;
        atomic_store_explicit(&d->inline_skip, (1u << row) - 2, memory_order_relaxed);
    }
    if (cold || row != 0)
        atomic_store_explicit(&d->inline_cold, cold ? row : 0, memory_order_relaxed);
}

bool disk_read_inline(struct disk *d, struct disk_read *rd)
{
    struct read_buf buf;
    struct disk_record rec;
    uint64_t id;
    uint32_t number;
    int rc = ENOENT;
    if (PEEK(d->inline_off) || inline_rests(d) || pthread_rwlock_tryrdlock(&d->map_lock) != 0)
        return false;
    struct block_meta *m = read_meta(d, rd, &id);
    if (m != NULL && d->env != NULL && PEEK(d->inline_env) == d->env)
        rc = block_pread(d, id, m, rd, RWF_NOWAIT, &buf, &rec, &number);
    if (rc == 0) {
        COUNT(d, inline_reads, 1);
        read_found(d, rd, m, number, &rec);
    }
    pthread_rwlock_unlock(&d->map_lock);
    if (rc == 0 || rc == EAGAIN)
        inline_note(d, rc != 0);
    else if (rc == EOPNOTSUPP || rc == EINVAL || rc == ENOSYS)
        inline_refuse(d, rc);
    return rc == 0;
}

/* ---- reader threads ---- */

static int reader_txn(struct reader *r)
{
    int rc = r->disk->env == NULL ? MDB_PANIC : 0;
    if (rc == 0 && r->txn != NULL)
        rc = mdb_txn_renew(r->txn);
    else if (rc == 0 && (rc = mdb_txn_begin(r->disk->env, NULL, MDB_RDONLY, &r->txn)) != 0)
        r->txn = NULL;
    if (rc != 0)
        log_warning("disk", "no read transaction: %s", mdb_strerror(rc));
    return rc;
}

/* Those of large records go on to their own thread. Under map_lock. */
static bool read_is_large(const struct disk *d, const struct disk_read *rd)
{
    uint64_t id;
    const struct block_meta *m = rd->header_only ? NULL : read_meta(d, rd, &id);
    return m != NULL && PEEK(m->data_len) > READ_LARGE;
}

static void large_submit(struct disk *d, struct list *l)
{
    pthread_mutex_lock(&d->read_mu);
    list_push_back(&d->large_reads, l);
    pthread_cond_signal(&d->large_wake);
    pthread_mutex_unlock(&d->read_mu);
}

static void reader_batch(struct reader *r, struct list *reads)
{
    struct disk *d = r->disk;
    struct read_buf buf;
    struct list rest, *l;
    list_init(&rest);
    pthread_rwlock_rdlock(&d->map_lock);
    inline_prepare(d);
    while ((l = list_pop_front(reads)) != NULL) {
        struct disk_read *rd = LIST_ENTRY(l, struct disk_read, link);
        if (read_is_large(d, rd))
            large_submit(d, l);
        else if (!read_from_file(d, rd, &buf))
            list_push_back(&rest, l);
    }
    if (!list_empty(&rest) && reader_txn(r) == 0) {
        while ((l = list_pop_front(&rest)) != NULL)
            read_from_map(d, r->txn, LIST_ENTRY(l, struct disk_read, link), &buf);
        mdb_txn_reset(r->txn);
    }
    pthread_rwlock_unlock(&d->map_lock);
    while ((l = list_pop_front(&rest)) != NULL)
        read_failed(d, LIST_ENTRY(l, struct disk_read, link), ST_IO);
}

/* A share for each reader, so that slow pages are waited for side by side. */
static void reader_take_locked(struct disk *d, struct list *reads)
{
    size_t n = 0, share;
    for (struct list *l = d->reads.next; l != &d->reads && n < READ_BATCH * d->opt.readers; l = l->next)
        n++;
    share = n <= 4 ? n : (n + d->opt.readers - 1) / d->opt.readers;
    if (share > READ_BATCH)
        share = READ_BATCH;
    for (; share > 0; share--)
        list_push_back(reads, list_pop_front(&d->reads));
    if (!list_empty(&d->reads))
        pthread_cond_signal(&d->read_wake);
}

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    struct disk *d = r->disk;
    struct list reads;
    pthread_setname_np(pthread_self(), "disk-reader");
    list_init(&reads);
    pthread_mutex_lock(&d->read_mu);
    for (;;) {
        while (list_empty(&d->reads) && !d->read_stop)
            pthread_cond_wait(&d->read_wake, &d->read_mu);
        if (list_empty(&d->reads))
            break;
        reader_take_locked(d, &reads);
        pthread_mutex_unlock(&d->read_mu);
        reader_batch(r, &reads);
        pthread_mutex_lock(&d->read_mu);
    }
    pthread_mutex_unlock(&d->read_mu);
    return NULL;
}

/* ---- the thread for large records ---- */

/* Where the block's value is in the file. Under map_lock. false: LMDB has to be asked. */
static bool large_place(struct disk *d, const struct disk_read *rd, uint64_t *at, size_t *len)
{
    uint64_t id;
    struct block_meta *m = read_meta(d, rd, &id);
    if (m == NULL || d->env == NULL)
        return false;
    uint32_t page = PEEK(m->page);
    MDB_val key = {sizeof(id), &id}, val;
    MDB_txn *txn;
    if (page == 0 && mdb_txn_begin(d->env, NULL, MDB_RDONLY, &txn) == 0) {
        if (mdb_get(txn, d->dbi_data, &key, &val) == 0)
            page = commit_value_page(d, &val);
        mdb_txn_abort(txn);
        atomic_store_explicit(&m->page, page, memory_order_relaxed);
    }
    *at = (uint64_t)page * d->page + 16;
    *len = PEEK(m->data_len);
    return page != 0;
}

/* All of the block, or NULL. It may have gone while it was read: its record tells. */
static char *large_read(struct disk *d, const struct disk_read *rd, struct pace *pace, size_t *len)
{
    char *block = NULL;
    uint64_t at;
    size_t got = 0;
    int fd;
    bool ok;
    do {
        pthread_rwlock_rdlock(&d->map_lock);
        ok = block != NULL ? d->env != NULL : large_place(d, rd, &at, len);
        if (ok && block == NULL) {
            block = mem_alloc(MEM_OTHER, *len);
            if (mdb_env_get_fd(d->env, &fd) == 0)
                posix_fadvise(fd, (off_t)at, (off_t)*len, POSIX_FADV_WILLNEED);
        }
        size_t n = ok && *len - got < PIECE_BYTES ? *len - got : PIECE_BYTES;
        ok = ok && file_read(d, block + got, n, at + got, 0) == 0;
        pthread_rwlock_unlock(&d->map_lock);
        got += n;
        pace_spend(pace, n / 2);
    } while (ok && got < *len);
    if (ok)
        return block;
    mem_free(MEM_OTHER, block);
    return NULL;
}

/* As it lies in the map, at once. */
static void large_from_map(struct reader *r, struct disk_read *rd)
{
    struct disk *d = r->disk;
    struct read_buf buf;
    pthread_rwlock_rdlock(&d->map_lock);
    bool open = reader_txn(r) == 0;
    if (open) {
        read_from_map(d, r->txn, rd, &buf);
        mdb_txn_reset(r->txn);
    }
    pthread_rwlock_unlock(&d->map_lock);
    if (!open)
        read_failed(d, rd, ST_IO);
}

static void large_serve(struct reader *r, struct disk_read *rd, struct pace *pace)
{
    struct disk *d = r->disk;
    struct disk_record rec;
    uint64_t id;
    uint32_t number;
    size_t len;
    pace_begin(pace);
    char *block = large_read(d, rd, pace, &len);
    rd->pace = pace;
    if (block == NULL || block_find(d, SLICE(block, len), rd, &rec, &number) != ST_OK) {
        mem_free(MEM_OTHER, block);
        rd->pace = NULL;
        large_from_map(r, rd);
        return;
    }
    pthread_rwlock_rdlock(&d->map_lock);
    struct block_meta *m = read_meta(d, rd, &id);
    if (m != NULL)
        read_note(rd, m, number, &rec);
    pthread_rwlock_unlock(&d->map_lock);
    read_hand_over(d, rd, &rec);
    mem_free(MEM_OTHER, block);
}

static bool large_hurry(void *arg)
{
    return PEEK(((struct disk *)arg)->large_stop);
}

static void *large_main(void *arg)
{
    struct reader *r = arg;
    struct disk *d = r->disk;
    struct pace pace = {.hurry = large_hurry, .arg = d};
    struct list *l;
    pthread_setname_np(pthread_self(), "disk-large");
    pace_thread_init();
    pthread_mutex_lock(&d->read_mu);
    for (;;) {
        while ((l = list_pop_front(&d->large_reads)) == NULL && !PEEK(d->large_stop))
            pthread_cond_wait(&d->large_wake, &d->read_mu);
        if (l == NULL)
            break;
        pthread_mutex_unlock(&d->read_mu);
        large_serve(r, LIST_ENTRY(l, struct disk_read, link), &pace);
        pthread_mutex_lock(&d->read_mu);
    }
    pthread_mutex_unlock(&d->read_mu);
    return NULL;
}

/* map_lock is taken, so no reader is in a transaction. */
void reader_abort_txns(struct disk *d)
{
    for (unsigned i = 0; i <= d->opt.readers; i++) {
        if (d->readers[i].txn != NULL)
            mdb_txn_abort(d->readers[i].txn);
        d->readers[i].txn = NULL;
    }
    atomic_store_explicit(&d->inline_env, NULL, memory_order_relaxed);
}

int reader_start(struct disk *d)
{
    int dead = 0;
    /* Of a process that ended while it read: they would keep pages from being used again. */
    if (d->env != NULL && mdb_reader_check(d->env, &dead) == 0 && dead > 0)
        log_verbose("disk", "%d stale readers removed", dead);
    inline_prepare(d);
    for (unsigned i = 0; i <= d->opt.readers; i++) { /* the last one is for large records */
        d->readers[i].disk = d;
        int rc =
            pthread_create(&d->readers[i].thread, NULL, i < d->opt.readers ? reader_main : large_main, &d->readers[i]);
        if (rc != 0)
            return rc;
        d->readers[i].started = true;
    }
    return 0;
}

/* Serves what is queued, then ends the threads. */
void reader_stop(struct disk *d)
{
    pthread_mutex_lock(&d->read_mu);
    d->read_stop = true;
    pthread_cond_broadcast(&d->read_wake);
    pthread_mutex_unlock(&d->read_mu);
    for (unsigned i = 0; i < d->opt.readers; i++)
        if (d->readers[i].started)
            pthread_join(d->readers[i].thread, NULL);
    pthread_mutex_lock(&d->read_mu); /* nobody hands over any more */
    atomic_store_explicit(&d->large_stop, true, memory_order_relaxed);
    pthread_cond_broadcast(&d->large_wake);
    pthread_mutex_unlock(&d->read_mu);
    if (d->readers[d->opt.readers].started)
        pthread_join(d->readers[d->opt.readers].thread, NULL);
    reader_abort_txns(d);
    dirs_free(d);
}

void disk_read_submit(struct disk *d, struct list *reads)
{
    if (list_empty(reads))
        return;
    pthread_mutex_lock(&d->read_mu);
    list_splice(&d->reads, reads);
    pthread_cond_signal(&d->read_wake);
    pthread_mutex_unlock(&d->read_mu);
}

void disk_read_now(struct disk *d, struct disk_read *rd)
{
    struct read_buf buf;
    MDB_txn *txn;
    int rc = 0;
    pthread_rwlock_rdlock(&d->map_lock);
    if (!read_from_file(d, rd, &buf)) {
        rc = d->env == NULL ? MDB_PANIC : mdb_txn_begin(d->env, NULL, MDB_RDONLY, &txn);
        if (rc == 0) {
            read_from_map(d, txn, rd, &buf);
            mdb_txn_abort(txn);
        }
    }
    pthread_rwlock_unlock(&d->map_lock);
    if (rc != 0)
        read_failed(d, rd, ST_IO);
}
