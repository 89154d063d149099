/* What leaves the disk. A block is doomed when nothing refers to it any more: its records
 * were reported through dropped(), or all of them were replaced or removed. The next
 * transaction deletes it. All of this runs on the writer thread, in bounded slices. */
#include "disk_priv.h"

#include <sys/mman.h>

#define GONE_FLUSH 4096
#define SCAN_BLOCKS 65536u /* entries of the block table looked at in a slice */
#define SLICE_BLOCKS 32    /* blocks or keys entries read in a slice */
#define DEAD_EVERY_US 200000
#define DOOMED_WAIT_US 1000000
#define DOOMED_MANY 256

void reclaim_init(struct disk *d)
{
    buf_init(&d->gone_names, MEM_OTHER);
    buf_init(&d->clean.block, MEM_OTHER);
    buf_init(&d->clean.verdicts, MEM_OTHER);
    d->clean.hand = 1; /* behind the end of a round */
}

void reclaim_deinit(struct disk *d)
{
    buf_deinit(&d->gone_names);
    buf_deinit(&d->clean.block);
    buf_deinit(&d->clean.verdicts);
}

bool reclaim_scan_begin(struct disk *d)
{
    return d->scan_txn != NULL && mdb_txn_renew(d->scan_txn) == 0;
}

void reclaim_scan_end(struct disk *d)
{
    mdb_txn_reset(d->scan_txn);
}

bool reclaim_scan_get(struct disk *d, MDB_dbi dbi, uint64_t id, struct slice *out)
{
    MDB_val key = {sizeof(id), &id}, val;
    if (mdb_get(d->scan_txn, dbi, &key, &val) != 0)
        return false;
    *out = SLICE(val.mv_data, val.mv_size);
    return true;
}

bool reclaim_scan_block(struct disk *d, uint64_t id, struct slice *out)
{
    if (!reclaim_scan_get(d, d->dbi_data, id, out))
        return false;
    /* One read of the disk, not one a page. */
    uintptr_t from = (uintptr_t)out->ptr / d->page * d->page;
    if (out->len > d->page)
        madvise((void *)from, (uintptr_t)out->ptr + out->len - from, MADV_WILLNEED);
    return true;
}

/* The names may move while they are collected: until the report only their lengths count. */
void reclaim_gone(struct disk *d, const struct disk_gone *rec)
{
    if (d->gone_n == d->gone_cap) {
        d->gone_cap = d->gone_cap ? d->gone_cap * 2 : GONE_FLUSH;
        d->gone = mem_realloc(MEM_OTHER, d->gone, d->gone_cap * sizeof(*d->gone));
    }
    d->gone[d->gone_n++] = *rec;
    buf_slice_append(&d->gone_names, rec->name);
}

void reclaim_report(struct disk *d)
{
    const char *name = d->gone_names.ptr != NULL ? d->gone_names.ptr : "";
    for (size_t i = 0; i < d->gone_n; i++)
        if (d->gone[i].name.ptr != NULL) {
            d->gone[i].name.ptr = name;
            name += d->gone[i].name.len;
        }
    for (size_t i = 0, n; i < d->gone_n && d->opt.owner.dropped != NULL; i += n) {
        bool expired = d->gone[i].expired;
        for (n = 1; i + n < d->gone_n && d->gone[i + n].expired == expired;)
            n++;
        atomic_store(&d->sweeping, expired);
        d->opt.owner.dropped(d->opt.owner.arg, d->gone + i, n);
    }
    atomic_store(&d->sweeping, false);
    d->gone_n = 0;
    d->gone_names.len = 0;
}

/* event: all up to that one must be on disk before it is deleted, for they made it dead; 0: it
 * was dropped, or emptied, which needs none. */
void reclaim_doom(struct disk *d, uint64_t id, struct block_meta *m, uint64_t event)
{
    if (d->doomed_n == d->doomed_cap) {
        d->doomed_cap = d->doomed_cap ? d->doomed_cap * 2 : 256;
        d->doomed = mem_realloc(MEM_OTHER, d->doomed, d->doomed_cap * sizeof(*d->doomed));
    }
    if (d->doomed_n == 0)
        d->doomed_at_us = clock_mono_us();
    d->doomed[d->doomed_n++] = (struct doomed){.id = id, .event = event};
    d->doomed_bytes += m->bytes;
    atomic_fetch_or_explicit(&m->flags, BLOCK_DOOMED, memory_order_relaxed);
}

bool reclaim_alive(const struct disk *d, uint32_t incarnation)
{
    for (unsigned db = 0; db < d->opt.databases; db++)
        if (PEEK(d->incarnation[db]) == incarnation)
            return true;
    return false;
}

bool reclaim_replaced(const struct disk *d, const char *block, const struct block_head *bh, uint32_t i, uint64_t hash)
{
    const char *hashes = block + bh->dir;
    uint32_t want = (uint32_t)(hash >> 32), alike = 0;
    struct rec_head h;
    struct disk_record rec;
    for (uint32_t j = i + 1; j < bh->count; j++)
        alike += load32(hashes + (size_t)j * 4) == want;
    for (uint32_t j = i + 1; alike != 0 && j < bh->count; j++)
        if (block_record_hash32(block, bh, j) == want &&
            record_parse(block, bh->dir, block_offset(block, bh, j), &h, &rec) &&
            disk_hash_bits(d, h.hash) == disk_hash_bits(d, hash))
            return true;
    return false;
}

/* Lists the records of a block from its keys entry. Newest first: where a key has two in one
 * block, the slot is the newest's, and the older one finds nothing. only_dead: those of dead
 * incarnations; these change under all shard locks, so under any one SWAPDB is not half done. */
static void gone_by_keys(struct disk *d, uint64_t id, bool only_dead)
{
    struct slice value;
    struct keys_view k;
    bool take[PALETTE_MAX] = {false}, any = false;
    if (!reclaim_scan_get(d, d->dbi_keys, id, &value) || !keys_parse(value, &k))
        return;
    if (only_dead)
        d->opt.owner.lock(d->opt.owner.arg, 0);
    for (uint32_t i = 0; i < k.head.npal; i++) {
        take[i] = !only_dead || !reclaim_alive(d, load32(k.palette + (size_t)i * 4));
        any |= take[i];
    }
    if (only_dead)
        d->opt.owner.unlock(d->opt.owner.arg, 0);
    for (uint32_t i = any ? k.head.nops : 0; i-- > 0;) {
        struct disk_op op;
        memcpy(&op, k.ops + (size_t)i * sizeof(op), sizeof(op));
        uint32_t pal = OP_PALETTE(op.word);
        if (!(op.word & OP_TOMB) && pal < k.head.npal && take[pal])
            reclaim_gone(d, &(struct disk_gone){.hash = op.hash,
                                                .block = (uint32_t)id,
                                                .incarnation = load32(k.palette + (size_t)pal * 4),
                                                .has_expire = (op.word & OP_EXPIRE) != 0});
    }
}

/* The same from its data, with names: all, or of what has expired. false: it is damaged. */
static bool gone_by_data(struct disk *d, uint64_t id, int64_t now_ms)
{
    struct slice block;
    struct block_head bh;
    bool all = PEEK(d->names), whole = true;
    if (!reclaim_scan_block(d, id, &block) || !block_parse(block, &bh))
        return false;
    for (uint32_t i = bh.count; i-- > 0;) {
        struct rec_head h;
        struct disk_record rec;
        if (!record_parse(block.ptr, bh.dir, block_offset(block.ptr, &bh, i), &h, &rec)) {
            whole = false;
            continue;
        }
        bool expired = rec.expire_ms != 0 && rec.expire_ms <= now_ms;
        reclaim_gone(d, &(struct disk_gone){.hash = h.hash,
                                            .block = (uint32_t)id,
                                            .incarnation = h.incarnation,
                                            .has_expire = rec.expire_ms != 0,
                                            .expired = expired,
                                            .name = all || expired ? key_slice(&rec.key) : SLICE_NONE});
    }
    return whole;
}

/* Its data is read only where names are wanted: of what has expired, or of all. */
static void gone_by_block(struct disk *d, uint64_t id, const struct block_meta *m)
{
    int64_t now_ms = clock_wall_ms();
    bool named = PEEK(d->names) || (m->min_expire_s != 0 && m->min_expire_s <= now_ms / 1000);
    if (!named || !gone_by_data(d, id, now_ms))
        gone_by_keys(d, id, false);
}

bool reclaim_drop(struct disk *d, const uint64_t *ids, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t from = i;
        if (!reclaim_scan_begin(d))
            return false;
        for (; i < n && i - from < SLICE_BLOCKS * 4 && d->gone_n < GONE_FLUSH; i++) {
            const struct block_meta *m = block_meta(d, ids[i]);
            if (m != NULL && PEEK(m->live) != 0)
                gone_by_block(d, ids[i], m);
        }
        reclaim_scan_end(d);
        d->drop_pending = true;
        reclaim_report(d);
        for (size_t j = from; j < i; j++)
            reclaim_doom(d, ids[j], block_meta(d, ids[j]), 0);
    }
    return true;
}

/* The quota, or less: where the file system has less room, or had; and free pages that lie
 * scattered take a part of it, see commit.c. */
uint64_t reclaim_limit(struct disk *d)
{
    uint64_t max = PEEK(d->max_bytes);
    if (d->room_max < max)
        max = d->room_max;
    if (d->soft_max != 0 && clock_mono_us() > d->soft_until_us)
        d->soft_max = 0;
    if (d->soft_max != 0 && d->soft_max < max)
        max = d->soft_max;
    return max - (d->frag_reserve < max / 2 ? d->frag_reserve : max / 2);
}

/* The last resort of a plain cache, where cleaning is behind: dooms the oldest blocks, until
 * `incoming` bytes fit into the quota, and at least `extra`. */
void reclaim_for(struct disk *d, size_t incoming, size_t extra)
{
    if (!clean_is_plain(d))
        return;
    uint64_t max = reclaim_limit(d), used = PEEK(d->used_bytes) + incoming, freed = 0;
    uint64_t soon = d->doomed_bytes + clean_soon(d);
    used -= soon < used ? soon : used;
    uint64_t need = used > max && used - max > extra ? used - max : extra;
    uint64_t head = PEEK(d->head), ids[256];
    uint64_t least = head > WINDOW_MAX - META_CHUNK * 16 ? head - (WINDOW_MAX - META_CHUNK * 16) : 0;
    size_t n = 0, left = DOOM_MAX > d->doomed_n ? DOOM_MAX - d->doomed_n : 0;
    for (uint64_t t = PEEK(d->tail); t <= d->committed_head && (freed < need || t < least) && left > 0; t++) {
        const struct block_meta *m = block_meta(d, t);
        if (m == NULL || (PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED | BLOCK_CLEANING)) != BLOCK_DATA)
            continue;
        ids[n++] = t;
        left--;
        freed += m->bytes;
        if (n == sizeof(ids) / sizeof(*ids)) {
            reclaim_drop(d, ids, n);
            n = 0;
        }
    }
    reclaim_drop(d, ids, n);
}

/* Blocks whose tombstones were lost while the disk could not be written. false: they could not be
 * read now, and wait. */
bool reclaim_dirty(struct disk *d)
{
    bool done = true;
    if (!atomic_exchange(&d->any_dirty, false))
        return true;
    for (uint64_t t = PEEK(d->tail); t <= d->committed_head; t++) {
        const struct block_meta *m = block_meta(d, t);
        if (m != NULL && (PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED | BLOCK_DIRTY)) == (BLOCK_DATA | BLOCK_DIRTY))
            done = done && reclaim_drop(d, &t, 1);
    }
    if (!done)
        atomic_store_explicit(&d->any_dirty, true, memory_order_release);
    return done;
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
        if (m != NULL && (PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED | BLOCK_CLEANING)) == BLOCK_DATA &&
            atomic_load_explicit(&m->live, memory_order_acquire) == 0)
            reclaim_doom(d, d->dead_cursor, m, disk_last_event(d));
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
    if (!reclaim_scan_begin(d))
        return false;
    uint32_t left = SCAN_BLOCKS, reads = SLICE_BLOCKS;
    for (; d->reclaim_cursor <= d->reclaim_end && left > 0 && reads > 0; d->reclaim_cursor++, left--) {
        const struct block_meta *m = block_meta(d, d->reclaim_cursor);
        if (m == NULL || !(PEEK(m->flags) & BLOCK_DATA) || PEEK(m->live) == 0)
            continue;
        gone_by_keys(d, d->reclaim_cursor, true);
        reads--;
    }
    reclaim_scan_end(d);
    reclaim_report(d);
    d->reclaiming = d->reclaim_cursor <= d->reclaim_end;
    return d->reclaiming;
}

/* Lists the expired records of one block, and notes when to look again. */
static void expire_block(struct disk *d, uint64_t id, struct block_meta *m, int64_t now_ms)
{
    struct slice block;
    struct block_head bh;
    int64_t least = 0;
    m->min_expire_s = 0;
    if (!reclaim_scan_block(d, id, &block) || !block_parse(block, &bh))
        return;
    for (uint32_t i = bh.count; i-- > 0;) {
        struct rec_head h;
        struct disk_record rec;
        if (!record_parse(block.ptr, bh.dir, block_offset(block.ptr, &bh, i), &h, &rec) || rec.expire_ms == 0)
            continue;
        if (rec.expire_ms > now_ms)
            least = least == 0 || rec.expire_ms < least ? rec.expire_ms : least;
        else if (!reclaim_replaced(d, block.ptr, &bh, i, h.hash))
            reclaim_gone(d, &(struct disk_gone){.hash = h.hash,
                                                .block = (uint32_t)id,
                                                .incarnation = h.incarnation,
                                                .has_expire = true,
                                                .expired = true,
                                                .name = key_slice(&rec.key)});
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
    if (PEEK(d->queue_bytes) > d->opt.queue_max_bytes / 2 || !reclaim_scan_begin(d))
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
    reclaim_scan_end(d);
    d->expire_cursor = t <= d->committed_head ? t : 0;
    reclaim_report(d);
    return d->expire_cursor != 0;
}

/* One old block that lives keeps the tail where it is, and many small commits may come after it: what is known of
 * blocks that are gone is not to fill memory. */
static void chunk_slice(struct disk *d)
{
    uint64_t tail = PEEK(d->tail);
    if (d->chunk_cursor < tail || d->chunk_cursor > d->committed_head)
        d->chunk_cursor = tail;
    d->chunk_cursor = block_forget_chunk(d, d->chunk_cursor, d->committed_head);
}

bool reclaim_slice(struct disk *d)
{
    if (d->env == NULL || !PEEK(d->healthy))
        return false;
    int64_t now_us = clock_mono_us();
    bool more = incarnation_slice(d, now_us);
    more |= dead_slice(d, now_us);
    more |= expire_slice(d);
    more |= clean_slice(d);
    chunk_slice(d);
    return more || d->doomed_n >= DOOM_MAX;
}

/* Deletions ride on the next commit; where none comes they get one of their own. A dropped record
 * has no tombstone: until its block is gone a crash would bring it back, as it would one whose
 * tombstone waits for its commit. */
int64_t reclaim_commit_at(const struct disk *d)
{
    if (!PEEK(d->healthy) || d->doomed_n == 0)
        return INT64_MAX;
    if (d->doomed_n >= DOOMED_MANY || PEEK(d->clean_debt) != 0)
        return 0;
    return d->doomed_at_us + (d->drop_pending ? (int64_t)d->opt.commit_ms * 1000 : DOOMED_WAIT_US);
}
