/* What leaves the disk. A block is doomed when nothing refers to it any more: its records
 * were reported through dropped(), or all of them were replaced or removed. The next
 * transaction deletes it. All of this runs on the writer thread, in bounded slices. */
#include "disk_priv.h"

#define GONE_FLUSH 4096
#define SCAN_BLOCKS 65536u /* entries of the block table looked at in a slice */
#define SLICE_BLOCKS 32    /* blocks or keys entries read in a slice */
#define DEAD_EVERY_US 200000
#define DOOMED_WAIT_US 1000000
#define KEYS_SPARE (64u << 20)

static bool scan_begin(struct disk *d)
{
    return d->scan_txn != NULL && mdb_txn_renew(d->scan_txn) == 0;
}

static bool scan_get(struct disk *d, MDB_dbi dbi, uint64_t id, struct slice *out)
{
    MDB_val key = {sizeof(id), &id}, val;
    if (mdb_get(d->scan_txn, dbi, &key, &val) != 0)
        return false;
    *out = SLICE(val.mv_data, val.mv_size);
    return true;
}

static void gone_add(struct disk *d, uint64_t hash, uint64_t id, uint32_t incarnation, bool has_expire)
{
    if (d->gone_n == d->gone_cap) {
        d->gone_cap = d->gone_cap ? d->gone_cap * 2 : GONE_FLUSH;
        d->gone = mem_realloc(MEM_OTHER, d->gone, d->gone_cap * sizeof(*d->gone));
    }
    d->gone[d->gone_n++] =
        (struct disk_gone){.hash = hash, .block = (uint32_t)id, .incarnation = incarnation, .has_expire = has_expire};
}

/* No transaction is open here: the owner takes its time. */
static void gone_flush(struct disk *d)
{
    if (d->gone_n != 0 && d->opt.owner.dropped != NULL)
        d->opt.owner.dropped(d->opt.owner.arg, d->gone, d->gone_n);
    d->gone_n = 0;
}

static void doom(struct disk *d, uint64_t id, struct block_meta *m)
{
    if (d->doomed_n == d->doomed_cap) {
        d->doomed_cap = d->doomed_cap ? d->doomed_cap * 2 : 256;
        d->doomed = mem_realloc(MEM_OTHER, d->doomed, d->doomed_cap * sizeof(*d->doomed));
    }
    if (d->doomed_n == 0)
        d->doomed_at_us = clock_mono_us();
    d->doomed[d->doomed_n++] = id;
    d->doomed_bytes += m->bytes;
    atomic_fetch_or_explicit(&m->flags, BLOCK_DOOMED, memory_order_relaxed);
}

static bool incarnation_alive(const struct disk *d, uint32_t incarnation)
{
    for (unsigned db = 0; db < d->opt.databases; db++)
        if (PEEK(d->incarnation[db]) == incarnation)
            return true;
    return false;
}

/* Lists the records of a block. Newest first: where a key has two in one block, the slot is
 * the newest's, and the older one finds nothing. only_dead: those of dead incarnations. */
static void gone_add_block(struct disk *d, uint64_t id, bool only_dead)
{
    struct slice value;
    struct keys_view k;
    bool take[PALETTE_MAX] = {false}, any = false;
    if (!scan_get(d, d->dbi_keys, id, &value) || !keys_parse(value, &k))
        return;
    for (uint32_t i = 0; i < k.head.npal; i++) {
        take[i] = !only_dead || !incarnation_alive(d, load32(k.palette + (size_t)i * 4));
        any |= take[i];
    }
    for (uint32_t i = any ? k.head.nops : 0; i-- > 0;) {
        struct disk_op op;
        memcpy(&op, k.ops + (size_t)i * sizeof(op), sizeof(op));
        uint32_t pal = OP_PALETTE(op.word);
        if (!(op.word & OP_TOMB) && pal < k.head.npal && take[pal])
            gone_add(d, op.hash, id, load32(k.palette + (size_t)pal * 4), (op.word & OP_EXPIRE) != 0);
    }
}

/* Reports and dooms the blocks listed. */
static void drop_blocks(struct disk *d, const uint64_t *ids, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t from = i;
        if (!scan_begin(d))
            return;
        for (; i < n && i - from < SLICE_BLOCKS * 4 && d->gone_n < GONE_FLUSH; i++) {
            const struct block_meta *m = block_meta(d, ids[i]);
            if (m != NULL && PEEK(m->live) != 0)
                gone_add_block(d, ids[i], false);
        }
        mdb_txn_reset(d->scan_txn);
        d->drop_pending = true;
        gone_flush(d);
        for (size_t j = from; j < i; j++)
            doom(d, ids[j], block_meta(d, ids[j]));
    }
}

static uint64_t bytes_to_free(struct disk *d, size_t incoming, size_t extra)
{
    uint64_t max = PEEK(d->max_bytes), used = PEEK(d->used_bytes) + incoming;
    if (d->soft_max != 0 && clock_mono_us() > d->soft_until_us)
        d->soft_max = 0;
    if (d->soft_max != 0 && d->soft_max < max)
        max = d->soft_max;
    max -= d->frag_reserve < max / 2 ? d->frag_reserve : max / 2;
    used -= d->doomed_bytes < used ? d->doomed_bytes : used;
    uint64_t need = used > max ? used - max : 0;
    /* The log of a few old blocks and many dead ones: keys entries are kept for nothing much. */
    if (need == 0 && d->keys_bytes > d->data_bytes / 2 + KEYS_SPARE)
        need = 1;
    return need > extra ? need : extra;
}

/* Dooms the oldest blocks, until `incoming` bytes fit into the quota, and at least `extra`. */
void reclaim_for(struct disk *d, size_t incoming, size_t extra)
{
    uint64_t need = PEEK(d->drop_oldest) ? bytes_to_free(d, incoming, extra) : 0, freed = 0;
    uint64_t t = PEEK(d->tail), head = PEEK(d->head), ids[256];
    uint64_t least = head > WINDOW_MAX - META_CHUNK * 16 ? head - (WINDOW_MAX - META_CHUNK * 16) : 0;
    size_t n = 0, left = DOOM_MAX > d->doomed_n ? DOOM_MAX - d->doomed_n : 0;
    for (; t <= d->committed_head && (freed < need || t < least) && left > 0; t++) {
        struct block_meta *m = block_meta(d, t);
        if (m == NULL || (PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED)) != BLOCK_DATA)
            continue;
        ids[n++] = t;
        left--;
        freed += m->bytes;
        if (n == sizeof(ids) / sizeof(*ids)) {
            drop_blocks(d, ids, n);
            n = 0;
        }
    }
    drop_blocks(d, ids, n);
}

/* Blocks whose tombstones were lost while the disk could not be written. */
void reclaim_dirty(struct disk *d)
{
    if (!atomic_exchange(&d->any_dirty, false))
        return;
    for (uint64_t t = PEEK(d->tail); t <= d->committed_head; t++) {
        const struct block_meta *m = block_meta(d, t);
        if (m != NULL && (PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED | BLOCK_DIRTY)) == (BLOCK_DATA | BLOCK_DIRTY))
            drop_blocks(d, &t, 1);
    }
}

/* Blocks that no slot names. */
static bool dead_slice(struct disk *d, int64_t now_us)
{
    if (!d->dead_scan) {
        uint32_t hint = PEEK(d->dead_hint);
        if (hint == 0 || (hint < 256 && now_us - d->dead_at_us < DEAD_EVERY_US))
            return false;
        atomic_exchange(&d->dead_hint, 0);
        d->dead_at_us = now_us;
        d->dead_cursor = PEEK(d->tail);
        d->dead_end = d->committed_head;
        d->dead_scan = true;
    }
    if (d->dead_cursor < PEEK(d->tail))
        d->dead_cursor = PEEK(d->tail);
    uint32_t left = SCAN_BLOCKS;
    for (; d->dead_cursor <= d->dead_end && left > 0 && d->doomed_n < DOOM_MAX; d->dead_cursor++, left--) {
        struct block_meta *m = block_meta(d, d->dead_cursor);
        if (m != NULL && (PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED)) == BLOCK_DATA &&
            atomic_load_explicit(&m->live, memory_order_acquire) == 0)
            doom(d, d->dead_cursor, m);
    }
    d->dead_scan = d->dead_cursor <= d->dead_end;
    return d->dead_scan;
}

/* Records of incarnations that no database has any more. */
static bool incarnation_slice(struct disk *d, int64_t now_us)
{
    if (!d->reclaiming) {
        pthread_mutex_lock(&d->mu);
        bool due = d->reclaim_at_us != 0 && now_us >= d->reclaim_at_us && d->settled_events >= d->reclaim_events;
        if (due)
            d->reclaim_at_us = 0;
        pthread_mutex_unlock(&d->mu);
        if (!due)
            return false;
        d->reclaim_cursor = PEEK(d->tail);
        d->reclaim_end = d->committed_head;
        d->reclaiming = true;
    }
    if (d->reclaim_cursor < PEEK(d->tail))
        d->reclaim_cursor = PEEK(d->tail);
    if (!scan_begin(d))
        return false;
    uint32_t left = SCAN_BLOCKS, reads = SLICE_BLOCKS;
    for (; d->reclaim_cursor <= d->reclaim_end && left > 0 && reads > 0; d->reclaim_cursor++, left--) {
        const struct block_meta *m = block_meta(d, d->reclaim_cursor);
        if (m == NULL || !(PEEK(m->flags) & BLOCK_DATA) || PEEK(m->live) == 0)
            continue;
        gone_add_block(d, d->reclaim_cursor, true);
        reads--;
    }
    mdb_txn_reset(d->scan_txn);
    gone_flush(d);
    d->reclaiming = d->reclaim_cursor <= d->reclaim_end;
    return d->reclaiming;
}

static bool newer_in_block(const char *block, const struct block_head *bh, uint32_t i, uint64_t hash)
{
    for (uint32_t j = i + 1; j < bh->count; j++)
        if (block_record_hash32(block, bh, j) == (uint32_t)(hash >> 32))
            return true;
    return false;
}

/* Lists the expired records of one block, and notes when to look again. */
static void expire_block(struct disk *d, uint64_t id, struct block_meta *m, int64_t now_ms)
{
    struct slice block;
    struct block_head bh;
    int64_t least = 0;
    m->min_expire_s = 0;
    if (!scan_get(d, d->dbi_data, id, &block) || !block_parse(block, &bh))
        return;
    for (uint32_t i = bh.count; i-- > 0;) {
        struct rec_head h;
        struct disk_record rec;
        if (!record_parse(block.ptr, bh.dir, block_offset(block.ptr, &bh, i), &h, &rec) || rec.expire_ms == 0)
            continue;
        if (rec.expire_ms > now_ms)
            least = least == 0 || rec.expire_ms < least ? rec.expire_ms : least;
        else if (!newer_in_block(block.ptr, &bh, i, h.hash))
            gone_add(d, h.hash, id, h.incarnation, true);
    }
    if (least == 0)
        return;
    int64_t soonest = now_ms / 1000 + EXPIRE_AGAIN_S;
    m->min_expire_s = (uint32_t)(least / 1000 + 1 > soonest ? least / 1000 + 1 : soonest);
    if (least / 1000 >= UINT32_MAX)
        m->min_expire_s = UINT32_MAX;
}

static bool expire_slice(struct disk *d)
{
    if (PEEK(d->queue_bytes) > d->opt.queue_max_bytes / 2 || !scan_begin(d))
        return false;
    int64_t now_ms = clock_wall_ms();
    uint32_t now_s = (uint32_t)(now_ms / 1000), left = SCAN_BLOCKS, reads = SLICE_BLOCKS;
    uint64_t t = d->expire_cursor < PEEK(d->tail) ? PEEK(d->tail) : d->expire_cursor;
    for (; t <= d->committed_head && left > 0 && reads > 0; t++, left--) {
        struct block_meta *m = block_meta(d, t);
        if (m == NULL || m->min_expire_s == 0 || m->min_expire_s > now_s)
            continue;
        if ((PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED)) != BLOCK_DATA || PEEK(m->live) == 0)
            continue;
        expire_block(d, t, m, now_ms);
        reads--;
    }
    mdb_txn_reset(d->scan_txn);
    d->expire_cursor = t <= d->committed_head ? t : 0;
    atomic_store(&d->sweeping, true);
    gone_flush(d);
    atomic_store(&d->sweeping, false);
    return d->expire_cursor != 0;
}

bool reclaim_slice(struct disk *d)
{
    if (d->env == NULL || !PEEK(d->healthy))
        return false;
    int64_t now_us = clock_mono_us();
    bool more = incarnation_slice(d, now_us);
    more |= dead_slice(d, now_us);
    more |= expire_slice(d);
    reclaim_for(d, 0, 0);
    return more || d->doomed_n >= DOOM_MAX;
}

/* Deletions ride on the next commit; where none comes they get one of their own. A dropped
 * record has no tombstone, so until its block is gone a crash would bring it back. */
bool reclaim_commit_due(const struct disk *d, int64_t now_us)
{
    return d->drop_pending || d->doomed_n >= 256 || (d->doomed_n != 0 && now_us - d->doomed_at_us >= DOOMED_WAIT_US);
}
