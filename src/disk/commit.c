/* One LMDB transaction: retained tombstones, the batch, deletions. The state in memory
 * changes only after mdb_txn_commit(). */
#include "disk_priv.h"
#include "tiercel/pace.h"

/* Commits, about, until what scattered pages take from the quota is used again: where that costs the
 * cache nothing but its oldest records, rather late than that the file grows. */
#define FRAG_FADE 256
#define FRAG_FADE_PLAIN 2048

/* What a value of that length takes in the file, about. */
size_t commit_cost(const struct disk *d, size_t value_len)
{
    size_t node = value_len + 16;
    if (value_len + 16 > d->node_max)
        node = 32 + (value_len + 16 + d->page - 1) / d->page * d->page;
    return node;
}

static size_t block_data_len(const struct block *b)
{
    return b->nrec == 0 || b->dead ? 0 : b->data_len + (b->ref ? b->ref->len : 0) + (size_t)b->nrec * 8;
}

size_t commit_block_cost(const struct disk *d, const struct block *b)
{
    size_t data = block_data_len(b);
    return (data ? commit_cost(d, data) : 0) + commit_cost(d, keys_bytes(b->npal, b->nops));
}

static MDB_val id_key(const uint64_t *id)
{
    return (MDB_val){.mv_size = sizeof(*id), .mv_data = (void *)(uintptr_t)id};
}

/* Puts the records together with their directory into `out`, and seals them. */
static void block_write(const struct block *b, char *out)
{
    size_t dir = b->data_len;
    struct pace large, *pace = NULL;
    if (b->ref != NULL && b->ref->len != 0) {
        large = (struct pace){.hurry = NULL};
        pace = &large;
        pace_begin(pace);
        pace_copy(pace, out + dir, b->ref->data, b->ref->len);
        dir += b->ref->len;
    }
    struct block_head h = {.magic = BLOCK_MAGIC, .count = b->nrec, .dir = (uint32_t)dir};
    memcpy(out, &h, sizeof(h));
    char *hashes = out + dir, *offs = hashes + (size_t)b->nrec * 4;
    for (uint32_t i = 0, op = 0; i < b->nrec; i++, op++) {
        while (b->ops[op].word & OP_TOMB)
            op++;
        size_t end = i + 1 < b->nrec ? b->offs[i + 1] : dir, copy = end < b->data_len ? end : b->data_len;
        memcpy(out + b->offs[i], b->data + b->offs[i], copy - b->offs[i]); /* sealed while it is in the cache */
        if (!(b->ops[op].word & OP_CARRIED))                               /* these are sealed already */
            record_seal(out + b->offs[i], end - b->offs[i], pace);
        uint32_t hash32 = (uint32_t)(b->ops[op].hash >> 32);
        memcpy(hashes + (size_t)i * 4, &hash32, 4);
        memcpy(offs + (size_t)i * 4, &b->offs[i], 4);
    }
}

static int put_keys(struct disk *d, MDB_txn *txn, uint64_t id, const struct block *b, uint32_t now_s)
{
    MDB_val key = id_key(&id), val = {.mv_size = keys_bytes(b->npal, b->nops)};
    int rc = mdb_put(txn, d->dbi_keys, &key, &val, MDB_APPEND | MDB_RESERVE);
    if (rc == 0)
        keys_write(val.mv_data, b->palette, b->npal, b->ops, b->nops, b->min_expire_s, now_s);
    return rc;
}

/* An overflow page's header is the 16 bytes before its value, and begins with its number. */
uint32_t commit_value_page(const struct disk *d, const MDB_val *val)
{
    uint64_t page = val->mv_size + 16 > d->node_max ? load64((const char *)val->mv_data - 16) : 0;
    return page <= UINT32_MAX ? (uint32_t)page : 0;
}

static int put_block(struct disk *d, MDB_txn *txn, struct block *b, uint32_t now_s, uint64_t *written)
{
    MDB_val key = id_key(&b->id), val = {.mv_size = block_data_len(b)};
    if (val.mv_size != 0) {
        int rc = mdb_put(txn, d->dbi_data, &key, &val, MDB_APPEND | MDB_RESERVE);
        if (rc != 0)
            return rc;
        b->page = commit_value_page(d, &val);
        block_write(b, val.mv_data);
        *written += val.mv_size;
    }
    *written += keys_bytes(b->npal, b->nops);
    return put_keys(d, txn, b->id, b, now_s);
}

/* LMDB frees as many pages as the header of an overflow page says; see that it is right. */
static bool overflow_sane(const struct disk *d, const MDB_val *val)
{
    if (val->mv_size + 16 <= d->node_max)
        return true;
    const char *head = (const char *)val->mv_data - 16;
    if ((uintptr_t)head % d->page != 0)
        return true; /* it is in a node after all */
    return (load32(head + 8) >> 16 & 0x04) != 0 && load32(head + 12) == (val->mv_size + 16 + d->page - 1) / d->page;
}

static int delete_entry(struct disk *d, MDB_txn *txn, MDB_dbi dbi, uint64_t id)
{
    MDB_val key = id_key(&id), val;
    int rc = mdb_get(txn, dbi, &key, &val);
    if (rc == 0 && !overflow_sane(d, &val)) {
        COUNT(d, corrupt, 1); /* its pages are lost until the file is made anew */
        return 0;
    }
    if (rc == 0)
        rc = mdb_del(txn, dbi, &key, NULL);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

/* Deletes `keys` entries from the tail on, up to the first block that has data: tombstones
 * matter as long as there is an older record. */
static int trim_keys(struct disk *d, MDB_txn *txn, uint64_t *new_tail)
{
    uint64_t t = PEEK(d->tail), end = d->committed_head;
    size_t left = TRIM_MAX;
    for (; t <= end && left > 0; t++, left--) {
        struct block_meta *m = block_meta(d, t);
        uint32_t flags = m == NULL ? BLOCK_KEYS : PEEK(m->flags);
        if ((flags & BLOCK_DATA) && !(flags & BLOCK_DELETING))
            break;
        int rc = flags & BLOCK_KEYS ? delete_entry(d, txn, d->dbi_keys, t) : 0;
        if (rc != 0)
            return rc;
    }
    *new_tail = t;
    return 0;
}

/* Moves those to the front that nothing on disk needs any more once all events up to that
 * one are there; returns how many, at most DOOM_MAX. */
static size_t doomed_ready(struct disk *d, uint64_t event)
{
    size_t n = 0;
    for (size_t i = 0; i < d->doomed_n && n < DOOM_MAX; i++) {
        if (d->doomed[i].event > event)
            continue;
        struct doomed ready = d->doomed[i];
        d->doomed[i] = d->doomed[n];
        d->doomed[n++] = ready;
    }
    return n;
}

static int delete_doomed(struct disk *d, MDB_txn *txn, size_t n)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        struct block_meta *m = block_meta(d, d->doomed[i].id);
        if (m != NULL)
            atomic_fetch_or_explicit(&m->flags, BLOCK_DELETING, memory_order_relaxed);
        rc = delete_entry(d, txn, d->dbi_data, d->doomed[i].id);
    }
    return rc;
}

static void undelete_doomed(struct disk *d, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct block_meta *m = block_meta(d, d->doomed[i].id);
        if (m != NULL)
            atomic_fetch_and_explicit(&m->flags, ~BLOCK_DELETING, memory_order_relaxed);
    }
}

static int fill_txn(struct disk *d, MDB_txn *txn, const struct batch *batch, bool clean, uint32_t now_s,
                    uint64_t *written)
{
    int rc = env_put_meta(d, txn, clean);
    if (rc == 0 && d->retained_n != 0) {
        struct block b = {.ops = d->retained, .nops = (uint32_t)d->retained_n};
        rc = put_keys(d, txn, d->retained_id, &b, now_s);
    }
    for (struct list *l = batch->blocks.next; rc == 0 && l != &batch->blocks; l = l->next)
        rc = put_block(d, txn, LIST_ENTRY(l, struct block, link), now_s, written);
    return rc;
}

static uint64_t stat_bytes(const struct disk *d, MDB_txn *txn, MDB_dbi dbi)
{
    MDB_stat st;
    if (mdb_stat(txn, dbi, &st) != 0)
        return 0;
    return (uint64_t)(st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages) * d->page;
}

/* What the two databases really hold. */
void commit_measure(struct disk *d, MDB_txn *txn)
{
    d->data_bytes = stat_bytes(d, txn, d->dbi_data);
    d->keys_bytes = stat_bytes(d, txn, d->dbi_keys);
}

static void commit_note_file(struct disk *d)
{
    MDB_envinfo info;
    if (mdb_env_info(d->env, &info) != 0)
        return;
    uint64_t bytes = ((uint64_t)info.me_last_pgno + 1) * d->page, before = PEEK(d->n.file_bytes);
    atomic_store_explicit(&d->n.file_bytes, bytes, memory_order_relaxed);
    atomic_store_explicit(&d->used_bytes, d->data_bytes + d->keys_bytes + 4 * d->page, memory_order_relaxed);
    atomic_store_explicit(&d->n.block_bytes, d->data_bytes, memory_order_relaxed);
    /* Free pages that lie scattered do not take a block: where the file still grows at its
     * quota, keep more of it free; let that fade when it does not. */
    uint64_t max = PEEK(d->max_bytes), fade = clean_is_plain(d) ? FRAG_FADE_PLAIN : FRAG_FADE;
    if (bytes > before && bytes > max)
        d->frag_reserve += bytes - before;
    else
        d->frag_reserve -= (d->frag_reserve + fade - 1) / fade;
    if (d->frag_reserve > max / 4)
        d->frag_reserve = max / 4;
}

static void commit_note_head(struct disk *d, uint64_t id)
{
    atomic_store_explicit(&d->committed_head, id, memory_order_release);
}

static void commit_note_block(struct disk *d, const struct block *b, uint32_t now_s)
{
    struct block_meta *m = b->meta;
    size_t len = block_data_len(b);
    m->bytes = len ? (uint32_t)commit_cost(d, len) : 0;
    m->min_expire_s = b->min_expire_s;
    m->records = len ? b->nrec : 0;
    atomic_store_explicit(&m->page, b->page, memory_order_relaxed);
    atomic_store_explicit(&m->data_len, (uint32_t)len, memory_order_relaxed);
    atomic_store_explicit(&m->written_s, now_s, memory_order_relaxed);
    atomic_store_explicit(&m->flags, BLOCK_KEYS | (len ? BLOCK_DATA : 0), memory_order_release);
    commit_note_head(d, b->id);
}

static void commit_note(struct disk *d, const struct batch *batch, size_t deleted, uint64_t new_tail, uint32_t now_s)
{
    for (size_t i = 0; i < deleted; i++) {
        struct block_meta *m = block_meta(d, d->doomed[i].id);
        if (m == NULL)
            continue;
        atomic_fetch_and_explicit(&m->flags, ~(BLOCK_DATA | BLOCK_DOOMED | BLOCK_DIRTY | BLOCK_DELETING),
                                  memory_order_acq_rel);
        d->doomed_bytes -= m->bytes;
        m->bytes = 0;
    }
    d->doomed_n -= deleted;
    d->drop_pending = d->drop_pending && d->doomed_n != 0;
    d->doomed_at_us = clock_mono_us();
    if (d->doomed_n != 0)
        memmove(d->doomed, d->doomed + deleted, d->doomed_n * sizeof(*d->doomed));
    if (d->retained_n != 0) {
        atomic_store_explicit(&block_meta(d, d->retained_id)->flags, BLOCK_KEYS, memory_order_release);
        commit_note_head(d, d->retained_id);
        pthread_mutex_lock(&d->mu);
        d->retained_n = 0;
        pthread_mutex_unlock(&d->mu);
    }
    for (struct list *l = batch->blocks.next; l != &batch->blocks; l = l->next)
        commit_note_block(d, LIST_ENTRY(l, struct block, link), now_s);
    uint64_t old_tail = PEEK(d->tail);
    /* A reader may be looking at a block that is gone. */
    bool frees = block_number(old_tail) / META_CHUNK != block_number(new_tail) / META_CHUNK;
    if (frees)
        pthread_rwlock_wrlock(&d->map_lock);
    atomic_store_explicit(&d->tail, new_tail, memory_order_release);
    block_forget_until(d, old_tail, new_tail);
    if (frees)
        pthread_rwlock_unlock(&d->map_lock);
}

int commit_run(struct disk *d, const struct batch *batch, bool clean)
{
    MDB_txn *txn;
    int64_t start = clock_mono_us();
    uint64_t written = 0, new_tail = PEEK(d->tail);
    uint32_t now_s = (uint32_t)(clock_wall_ms() / 1000);
    uint64_t settled = PEEK(d->settled_events);
    size_t deleting = doomed_ready(d, batch->events > settled ? batch->events : settled);
    int rc = mdb_txn_begin(d->env, NULL, 0, &txn);
    if (rc != 0)
        return rc;
    rc = fill_txn(d, txn, batch, clean, now_s, &written);
    if (rc == 0)
        rc = delete_doomed(d, txn, deleting);
    if (rc == 0)
        rc = trim_keys(d, txn, &new_tail);
    if (rc == 0 && guard_torn(d)) /* what was read to make it may have been nothing */
        rc = MDB_CORRUPTED;
    uint64_t data_before = d->data_bytes, keys_before = d->keys_bytes;
    if (rc == 0) {
        commit_measure(d, txn);
        rc = mdb_txn_commit(txn);
    } else {
        mdb_txn_abort(txn);
    }
    if (rc != 0) {
        undelete_doomed(d, deleting);
        d->data_bytes = data_before;
        d->keys_bytes = keys_before;
        return rc;
    }
    commit_note(d, batch, deleting, new_tail, now_s);
    commit_note_file(d);
    COUNT(d, commits, 1);
    COUNT(d, commit_us, clock_mono_us() - start);
    COUNT(d, written_bytes, written);
    atomic_store_explicit(&d->n.last_commit_ms, (uint64_t)clock_wall_ms(), memory_order_relaxed);
    return 0;
}
