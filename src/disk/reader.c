/* Reader threads. They share one queue; each takes a share of it, serves it in one short
 * read transaction, and lets go of the snapshot, which would otherwise keep freed pages
 * from being used again. */
#include "disk_priv.h"

#include "tiercel/log.h"

static void read_serve(struct disk *d, MDB_txn *txn, struct disk_read *rd)
{
    struct disk_record rec;
    uint64_t id = block_id_of_api(d, rd->block);
    enum status st = ST_NOT_FOUND;
    if (id != 0 && block_has(d, id, BLOCK_DATA)) {
        MDB_val key = {sizeof(id), &id}, val;
        int rc = mdb_get(txn, d->dbi_data, &key, &val);
        if (rc == 0)
            st = block_find(d, SLICE(val.mv_data, val.mv_size), rd, &rec);
        else if (rc != MDB_NOTFOUND) {
            log_warning("disk", "block %llu cannot be read: %s", (unsigned long long)id, mdb_strerror(rc));
            st = ST_IO;
        }
    }
    COUNT(d, reads, 1);
    if (st == ST_NOT_FOUND)
        COUNT(d, read_misses, 1);
    else if (st == ST_CORRUPT)
        COUNT(d, corrupt, 1);
    else if (st == ST_IO)
        COUNT(d, io_errors, 1);
    else
        rec.key.db = rd->key.db;
    rd->done(rd, st, st == ST_OK ? &rec : NULL);
}

static void read_fail(struct disk *d, struct list *reads)
{
    struct list *l;
    while ((l = list_pop_front(reads)) != NULL) {
        struct disk_read *rd = LIST_ENTRY(l, struct disk_read, link);
        COUNT(d, io_errors, 1);
        rd->done(rd, ST_IO, NULL);
    }
}

static void reader_batch(struct reader *r, struct list *reads)
{
    struct disk *d = r->disk;
    struct list *l;
    pthread_rwlock_rdlock(&d->map_lock);
    int rc = d->env == NULL ? MDB_PANIC : 0;
    if (rc == 0 && r->txn != NULL)
        rc = mdb_txn_renew(r->txn);
    else if (rc == 0 && (rc = mdb_txn_begin(d->env, NULL, MDB_RDONLY, &r->txn)) != 0)
        r->txn = NULL;
    if (rc == 0) {
        while ((l = list_pop_front(reads)) != NULL)
            read_serve(d, r->txn, LIST_ENTRY(l, struct disk_read, link));
        mdb_txn_reset(r->txn);
    }
    pthread_rwlock_unlock(&d->map_lock);
    if (rc != 0)
        log_warning("disk", "no read transaction: %s", mdb_strerror(rc));
    read_fail(d, reads);
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

/* map_lock is taken, so no reader is in a transaction. */
void reader_abort_txns(struct disk *d)
{
    for (unsigned i = 0; i < d->opt.readers; i++) {
        if (d->readers[i].txn != NULL)
            mdb_txn_abort(d->readers[i].txn);
        d->readers[i].txn = NULL;
    }
}

int reader_start(struct disk *d)
{
    for (unsigned i = 0; i < d->opt.readers; i++) {
        d->readers[i].disk = d;
        int rc = pthread_create(&d->readers[i].thread, NULL, reader_main, &d->readers[i]);
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
    reader_abort_txns(d);
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
    MDB_txn *txn;
    pthread_rwlock_rdlock(&d->map_lock);
    int rc = d->env == NULL ? MDB_PANIC : mdb_txn_begin(d->env, NULL, MDB_RDONLY, &txn);
    if (rc == 0) {
        read_serve(d, txn, rd);
        mdb_txn_abort(txn);
    }
    pthread_rwlock_unlock(&d->map_lock);
    if (rc != 0) {
        COUNT(d, io_errors, 1);
        rd->done(rd, ST_IO, NULL);
    }
}
