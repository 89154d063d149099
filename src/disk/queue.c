/* Appends and tombstones, in the order in which they are called, packed into blocks. One
 * mutex; what is done under it is a copy of the record and a few words. */
#include "disk_priv.h"

#define POOL_SHARE 8 /* empty buffers kept: this fraction of the queue */

void queue_init(struct disk *d)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->mu, NULL);
    pthread_cond_init(&d->wake, &attr);
    pthread_cond_init(&d->settled, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&d->sealed);
    list_init(&d->pool);
}

static void block_free(struct block *b)
{
    rcbuf_unref(b->ref);
    mem_free(MEM_DATA, b->data);
    mem_free(MEM_OTHER, b->ops);
    mem_free(MEM_OTHER, b->done);
    mem_free(MEM_OTHER, b->offs);
    mem_free(MEM_OTHER, b);
}

void queue_deinit(struct disk *d)
{
    struct list *l;
    while ((l = list_pop_front(&d->sealed)) != NULL)
        block_free(LIST_ENTRY(l, struct block, link));
    while ((l = list_pop_front(&d->pool)) != NULL)
        block_free(LIST_ENTRY(l, struct block, link));
    if (d->open != NULL)
        block_free(d->open);
    d->open = NULL;
    pthread_mutex_destroy(&d->mu);
    pthread_cond_destroy(&d->wake);
    pthread_cond_destroy(&d->settled);
}

/* Back to the pool. Takes mu. */
void queue_recycle(struct disk *d, struct block *b)
{
    rcbuf_unref(b->ref);
    b->ref = NULL;
    if (b->data != NULL && b->data_cap != BLOCK_BYTES) {
        mem_free(MEM_DATA, b->data);
        b->data = NULL;
    }
    pthread_mutex_lock(&d->mu);
    bool keep = d->pool_n < d->opt.queue_max_bytes / BLOCK_BYTES / POOL_SHARE;
    if (keep) {
        list_push_front(&d->pool, &b->link);
        d->pool_n++;
    }
    pthread_mutex_unlock(&d->mu);
    if (!keep)
        block_free(b);
}

static struct block *block_new_locked(struct disk *d)
{
    struct list *l = list_pop_front(&d->pool);
    struct block *b;
    if (l != NULL) {
        d->pool_n--;
        b = LIST_ENTRY(l, struct block, link);
    } else {
        b = mem_calloc(MEM_OTHER, sizeof(*b));
        list_init(&b->link);
    }
    b->id = PEEK(d->head) + 1;
    atomic_store_explicit(&d->head, b->id, memory_order_release);
    b->data_len = sizeof(struct block_head);
    b->queue_bytes = 0;
    b->nops = b->nrec = b->npal = b->min_expire_s = 0;
    return b;
}

static void queue_seal_locked(struct disk *d)
{
    if (d->open == NULL)
        return;
    list_push_back(&d->sealed, &d->open->link);
    d->open = NULL;
}

/* The block that the next event goes to. */
static struct block *queue_open_locked(struct disk *d)
{
    if (d->open != NULL && (d->open->nops >= OPS_PER_BLOCK || d->open->npal >= PALETTE_MAX))
        queue_seal_locked(d);
    if (d->open == NULL)
        d->open = block_new_locked(d);
    return d->open;
}

static uint32_t block_palette(struct block *b, uint32_t incarnation)
{
    for (uint32_t i = b->npal; i-- > 0;)
        if (b->palette[i] == incarnation)
            return i;
    b->palette[b->npal] = incarnation;
    return b->npal++;
}

static void block_push_op(struct block *b, uint64_t hash, uint32_t word)
{
    if (b->nops == b->ops_cap) {
        b->ops_cap = b->ops_cap ? b->ops_cap * 2 : 128;
        b->ops = mem_realloc(MEM_OTHER, b->ops, b->ops_cap * sizeof(*b->ops));
    }
    b->ops[b->nops++] = (struct disk_op){.hash = hash, .word = word};
}

/* Notes the record that starts at b->data_len. */
static void block_push_record(struct block *b, const struct disk_record *rec)
{
    if (b->nrec == b->rec_cap) {
        b->rec_cap = b->rec_cap ? b->rec_cap * 2 : 128;
        b->done = mem_realloc(MEM_OTHER, b->done, b->rec_cap * sizeof(*b->done));
        b->offs = mem_realloc(MEM_OTHER, b->offs, b->rec_cap * sizeof(*b->offs));
    }
    b->offs[b->nrec] = (uint32_t)b->data_len;
    b->done[b->nrec] = (struct disk_done){
        .hash = rec->key.hash, .ticket = rec->ticket, .block = (uint32_t)b->id, .has_expire = rec->expire_ms != 0};
    uint32_t word = b->nrec | block_palette(b, rec->incarnation) << 16 | (rec->expire_ms ? OP_EXPIRE : 0);
    block_push_op(b, rec->key.hash, word);
    b->nrec++;
    if (rec->expire_ms != 0) {
        int64_t s = rec->expire_ms / 1000 + 1;
        uint32_t s32 = s < 1 ? 1 : s > UINT32_MAX ? UINT32_MAX : (uint32_t)s;
        if (b->min_expire_s == 0 || s32 < b->min_expire_s)
            b->min_expire_s = s32;
    }
}

/* An event was queued: when is its commit due? */
static void queue_event_locked(struct disk *d, size_t bytes)
{
    d->events++;
    if (d->open != NULL)
        d->open->last_event = d->events;
    bool wake = false;
    if (d->first_event_us == 0) {
        d->first_event_us = clock_mono_us();
        wake = true;
    }
    size_t before = d->waiting_bytes;
    d->waiting_bytes += bytes;
    if (before < d->opt.commit_bytes && d->waiting_bytes >= d->opt.commit_bytes)
        wake = true;
    if (wake)
        pthread_cond_signal(&d->wake);
}

/* The oldest block may be so old that numbers would repeat; or, where nothing may be
 * dropped, the quota may be reached. */
static bool queue_is_full_locked(struct disk *d, size_t bytes)
{
    size_t queued = PEEK(d->queue_bytes);
    if (queued != 0 && queued + bytes > d->opt.queue_max_bytes)
        return true;
    if (PEEK(d->head) + 1 - PEEK(d->tail) >= WINDOW_MAX) /* an empty log: head 0, tail 1 */
        return true;
    return !PEEK(d->drop_oldest) && PEEK(d->used_bytes) + queued + bytes > PEEK(d->max_bytes);
}

static void append_large_locked(struct disk *d, const struct disk_record *rec, size_t payload)
{
    queue_seal_locked(d); /* its place in the order of events */
    struct block *b = queue_open_locked(d);
    size_t cap = sizeof(struct block_head) + record_head_bytes(rec) + rec->key.len + rec->payload.len;
    mem_free(MEM_DATA, b->data);
    b->data = mem_alloc(MEM_DATA, cap);
    b->data_cap = cap == BLOCK_BYTES ? 0 : cap; /* only pooled buffers have that size */
    block_push_record(b, rec);
    char *p = record_write_head(b->data + b->data_len, rec, payload);
    if (rec->payload.len != 0)
        memcpy(p, rec->payload.ptr, rec->payload.len);
    b->data_len = cap;
    if (rec->payload_ref != NULL)
        b->ref = rcbuf_ref(rec->payload_ref);
}

static void append_small_locked(struct disk *d, const struct disk_record *rec, size_t payload, size_t bytes)
{
    struct block *b = queue_open_locked(d);
    if (b->data_len + bytes + ((size_t)b->nrec + 1) * 8 > BLOCK_BYTES) {
        queue_seal_locked(d);
        b = queue_open_locked(d);
    }
    if (b->data == NULL) {
        b->data = mem_alloc(MEM_DATA, BLOCK_BYTES);
        b->data_cap = BLOCK_BYTES;
    }
    block_push_record(b, rec);
    char *p = record_write_head(b->data + b->data_len, rec, payload);
    if (rec->payload.len != 0)
        memcpy(p, rec->payload.ptr, rec->payload.len);
    if (rec->payload_ref != NULL && rec->payload_ref->len != 0)
        memcpy(p + rec->payload.len, rec->payload_ref->data, rec->payload_ref->len);
    b->data_len += bytes;
}

enum status disk_append_locked(struct disk *d, const struct disk_record *rec)
{
    size_t payload = rec->payload.len + (rec->payload_ref ? rec->payload_ref->len : 0);
    size_t bytes = record_head_bytes(rec) + rec->key.len + payload;
    if (payload > RECORD_MAX || bytes > RECORD_MAX || bytes > PEEK(d->max_bytes) / 2)
        return ST_TOO_LARGE;
    if (!PEEK(d->healthy))
        return ST_IO;
    pthread_mutex_lock(&d->mu);
    if (queue_is_full_locked(d, bytes)) {
        d->want_room = true;
        pthread_mutex_unlock(&d->mu);
        return ST_FULL;
    }
    if (payload > LARGE_PAYLOAD || sizeof(struct block_head) + bytes + 8 > BLOCK_BYTES)
        append_large_locked(d, rec, payload);
    else
        append_small_locked(d, rec, payload, bytes);
    d->open->queue_bytes += bytes;
    atomic_fetch_add_explicit(&d->queue_bytes, bytes, memory_order_relaxed);
    queue_event_locked(d, bytes);
    if (bytes > BLOCK_BYTES / 2)
        queue_seal_locked(d);
    pthread_mutex_unlock(&d->mu);
    COUNT(d, appends, 1);
    COUNT(d, appended_bytes, bytes);
    return ST_OK;
}

/* Too many tombstones are waiting for a disk that cannot be written: the block of the
 * record is marked instead, and goes as a whole when the disk is back. */
static bool forget_by_block(struct disk *d, uint32_t number)
{
    struct block_meta *m = block_meta(d, block_id_of_number(d, number));
    if (m == NULL)
        return false;
    atomic_fetch_or_explicit(&m->flags, BLOCK_DIRTY, memory_order_acq_rel);
    atomic_store_explicit(&d->any_dirty, true, memory_order_release);
    return true;
}

bool disk_forget_locked(struct disk *d, uint64_t hash, bool force, bool *had_expire)
{
    uint32_t place = 0;
    bool had = index_remove(&d->index[disk_shard_of(d, hash)], disk_tag_of(d, hash), &place);
    if (had_expire != NULL)
        *had_expire = had && (place & PLACE_EXPIRE) != 0;
    if (!had && !force)
        return false;
    uint32_t number = place & (PLACE_EXPIRE - 1);
    pthread_mutex_lock(&d->mu);
    bool crowded = had && !force && !PEEK(d->healthy) && d->retained_n + d->waiting_tombs >= RETAIN_MAX;
    if (!crowded || !forget_by_block(d, number)) {
        block_push_op(queue_open_locked(d), hash, OP_TOMB);
        d->waiting_tombs++;
        queue_event_locked(d, sizeof(struct disk_op));
    }
    pthread_mutex_unlock(&d->mu);
    /* After the tombstone is queued: a block without live records may be deleted. */
    if (had)
        block_unlive(d, number);
    COUNT(d, tombstones, 1);
    return had;
}

void disk_set_incarnation(struct disk *d, unsigned db, uint32_t incarnation)
{
    if (db >= d->opt.databases)
        return;
    pthread_mutex_lock(&d->mu);
    atomic_store_explicit(&d->incarnation[db], incarnation, memory_order_relaxed);
    d->meta_dirty = true;
    queue_event_locked(d, 0);
    /* Not at once: the other half of a SWAPDB may follow, and what was queued must be written. */
    d->reclaim_events = d->events;
    d->reclaim_at_us = clock_mono_us() + (int64_t)d->opt.commit_ms * 1000;
    pthread_mutex_unlock(&d->mu);
}

void queue_take_locked(struct disk *d, struct batch *batch, size_t limit)
{
    struct list *l;
    if (d->open != NULL)
        queue_seal_locked(d);
    while (!list_empty(&d->sealed)) {
        struct block *b = LIST_ENTRY(d->sealed.next, struct block, link);
        size_t cost = commit_block_cost(d, b);
        if (!list_empty(&batch->blocks) && batch->cost + cost > limit)
            break;
        l = list_pop_front(&d->sealed);
        list_push_back(&batch->blocks, l);
        batch->bytes += b->queue_bytes;
        batch->cost += cost;
        d->waiting_bytes -= b->queue_bytes + (b->nops - b->nrec) * sizeof(struct disk_op);
        d->waiting_tombs -= b->nops - b->nrec;
        batch->events = b->last_event;
    }
    if (list_empty(&d->sealed)) {
        batch->events = d->events;
        d->first_event_us = 0;
    }
}
