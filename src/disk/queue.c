/* Appends and tombstones, in the order in which they are called, packed into blocks. One
 * mutex; what is done under it is a copy of the record and a few words.
 *
 * An append enters its slot after the mutex was let go, and the shard's lock is held until
 * then: whoever wants the slot (the owner's callbacks do, too) waits for it. What must be
 * right when the writer takes the block is its count of live records. */
#include "disk_priv.h"

#define AHEAD_BYTES 1024 /* of the buffer, fetched into the cache for the next record */

void queue_init(struct disk *d)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->mu, NULL);
    pthread_cond_init(&d->wake, &attr);
    pthread_cond_init(&d->settled, &attr);
    pthread_cond_init(&d->group, &attr);
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
    mem_free(MEM_OTHER, b->carried);
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
    pthread_cond_destroy(&d->group);
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
    bool keep = d->pool_n < 2 * d->opt.commit_bytes / BLOCK_BYTES;
    if (keep) {
        list_push_front(&d->pool, &b->link);
        d->pool_n++;
    }
    pthread_mutex_unlock(&d->mu);
    if (!keep)
        block_free(b);
}

/* While nothing is written, buffers are given back bit by bit. */
void queue_shrink_pool(struct disk *d)
{
    struct list some;
    list_init(&some);
    pthread_mutex_lock(&d->mu);
    for (size_t n = PEEK(d->settled_events) == PEEK(d->events) ? (d->pool_n + 7) / 8 : 0; n > 0; n--, d->pool_n--)
        list_push_back(&some, list_pop_front(&d->pool));
    pthread_mutex_unlock(&d->mu);
    while (!list_empty(&some))
        block_free(LIST_ENTRY(list_pop_front(&some), struct block, link));
}

uint64_t queue_next_id_locked(struct disk *d)
{
    uint64_t id = PEEK(d->head) + 1;
    id += (uint32_t)id == 0; /* callers know blocks by 32 bits, of which 0 is none */
    block_meta_make(d, id);
    atomic_store_explicit(&d->head, id, memory_order_release);
    return id;
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
    b->id = queue_next_id_locked(d);
    b->meta = block_meta(d, b->id);
    b->data_len = sizeof(struct block_head);
    b->queue_bytes = 0;
    b->nops = b->nrec = b->ndone = b->ncarried = b->npal = b->min_expire_s = b->page = 0;
    b->joined = b->dead = false;
    return b;
}

static void queue_seal_locked(struct disk *d)
{
    if (d->open == NULL)
        return;
    d->open->joined = d->groups != 0;
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
static void block_push_record(struct block *b, uint64_t hash, uint32_t incarnation, int64_t expire_ms, uint32_t flags)
{
    if (b->nrec == b->rec_cap) {
        b->rec_cap = b->rec_cap ? b->rec_cap * 2 : 128;
        b->done = mem_realloc(MEM_OTHER, b->done, b->rec_cap * sizeof(*b->done));
        b->offs = mem_realloc(MEM_OTHER, b->offs, b->rec_cap * sizeof(*b->offs));
    }
    b->offs[b->nrec] = (uint32_t)b->data_len;
    block_push_op(b, hash, flags | b->nrec | block_palette(b, incarnation) << 16 | (expire_ms ? OP_EXPIRE : 0));
    b->nrec++;
    if (expire_ms != 0) {
        int64_t s = expire_ms / 1000 + 1;
        uint32_t s32 = s < 1 ? 1 : s > UINT32_MAX ? UINT32_MAX : (uint32_t)s;
        if (b->min_expire_s == 0 || s32 < b->min_expire_s)
            b->min_expire_s = s32;
    }
}

/* An event was queued. soon: its commit is due in commit_ms, else in DEMOTED_MS. */
static void queue_event_locked(struct disk *d, size_t bytes, bool soon)
{
    uint64_t event = PEEK(d->events) + 1;
    atomic_store_explicit(&d->events, event, memory_order_release);
    if (d->open != NULL)
        d->open->last_event = event;
    bool wake = false;
    if (d->commit_at_us == 0 || (soon && !d->commit_soon)) {
        d->commit_at_us = clock_mono_us() + (int64_t)(soon ? d->opt.commit_ms : DEMOTED_MS) * 1000;
        d->commit_soon = soon;
        wake = true;
    }
    size_t before = d->waiting_bytes;
    d->waiting_bytes += bytes;
    if (before < d->opt.commit_bytes && d->waiting_bytes >= d->opt.commit_bytes)
        wake = true;
    if (wake)
        pthread_cond_signal(&d->wake);
}

/* The oldest block may be so old that numbers would repeat; or, where not everything may be
 * dropped, the quota may be reached. */
static bool queue_is_full_locked(struct disk *d, const struct disk_record *rec, size_t bytes)
{
    size_t queued = PEEK(d->queue_bytes);
    uint64_t window = PEEK(d->head) + 1 - PEEK(d->tail); /* an empty log: head 0, tail 1 */
    if (rec->must)
        return window >= WINDOW_MAX + META_CHUNK;
    if (window >= WINDOW_MAX || (queued != 0 && queued + bytes > d->opt.queue_max_bytes))
        return true;
    if (!clean_is_over(d, bytes))
        return false;
    if (PEEK(d->refused) == 0) { /* the cleaner is to see to it */
        d->work_soon = true;
        d->house_at_us = 0;
        pthread_cond_signal(&d->wake);
    }
    if (bytes > PEEK(d->refused))
        atomic_store_explicit(&d->refused, bytes, memory_order_relaxed);
    return true;
}

/* An open block whose buffer takes exactly one record. */
static struct block *queue_open_large_locked(struct disk *d, char *data, size_t cap)
{
    queue_seal_locked(d); /* its place in the order of events */
    struct block *b = queue_open_locked(d);
    mem_free(MEM_DATA, b->data);
    b->data = data;
    b->data_cap = cap == BLOCK_BYTES ? 0 : cap; /* only pooled buffers have that size */
    return b;
}

/* An open block with room for `bytes`. */
static struct block *queue_open_small_locked(struct disk *d, size_t bytes)
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
    return b;
}

static bool record_is_large(size_t payload, size_t bytes)
{
    return payload > LARGE_PAYLOAD || sizeof(struct block_head) + bytes + 8 > BLOCK_BYTES;
}

static void record_write(char *to, const struct disk_record *rec, size_t payload, bool with_ref)
{
    char *p = record_write_head(to, rec, payload);
    if (rec->payload.len != 0)
        memcpy(p, rec->payload.ptr, rec->payload.len);
    if (with_ref && rec->payload_ref != NULL && rec->payload_ref->len != 0)
        memcpy(p + rec->payload.len, rec->payload_ref->data, rec->payload_ref->len);
}

static struct index_shard *index_of(const struct disk *d, uint64_t hash)
{
    return &d->index[disk_shard_of(d, hash)];
}

/* Returns the id of its block. */
static uint64_t append_record_locked(struct disk *d, const struct disk_record *rec, size_t payload, size_t bytes)
{
    size_t copied = bytes;
    struct block *b;
    if (record_is_large(payload, bytes)) {
        pthread_mutex_unlock(&d->mu); /* it may be much to copy */
        copied -= rec->payload_ref == NULL ? 0 : rec->payload_ref->len;
        size_t cap = sizeof(struct block_head) + copied;
        char *own = mem_alloc(MEM_DATA, cap);
        record_write(own + sizeof(struct block_head), rec, payload, false);
        pthread_mutex_lock(&d->mu);
        b = queue_open_large_locked(d, own, cap);
        b->ref = rec->payload_ref == NULL ? NULL : rcbuf_ref(rec->payload_ref);
    } else {
        b = queue_open_small_locked(d, bytes);
        record_write(b->data + b->data_len, rec, payload, true);
        for (size_t at = b->data_len + bytes; at < b->data_len + bytes + AHEAD_BYTES && at < BLOCK_BYTES; at += 64)
            __builtin_prefetch(b->data + at, 1);
    }
    uint32_t place,
        flags = index_find(index_of(d, rec->key.hash), disk_tag_of(d, rec->key.hash), &place) ? OP_REPLACES : 0;
    block_push_record(b, rec->key.hash, rec->incarnation, rec->expire_ms, flags);
    b->done[b->ndone++] =
        (struct disk_done){.hash = rec->key.hash, .ticket = rec->ticket, .block = (uint32_t)b->id, .note = rec->note};
    b->data_len += copied;
    atomic_fetch_add_explicit(&b->meta->live, 1, memory_order_relaxed);
    return b->id;
}

/* After a record of that size was put into the open block. */
static void queue_record_locked(struct disk *d, size_t bytes, bool soon)
{
    d->open->queue_bytes += bytes;
    BUMP(d->queue_bytes, bytes);
    queue_event_locked(d, bytes, soon);
    if (bytes > BLOCK_BYTES / 2)
        queue_seal_locked(d);
}

enum status disk_append_locked(struct disk *d, const struct disk_record *rec)
{
    size_t payload = rec->payload.len + (rec->payload_ref ? rec->payload_ref->len : 0);
    size_t bytes = record_head_bytes(rec) + rec->key.len + payload;
    if (payload > RECORD_MAX || bytes > RECORD_MAX || bytes > PEEK(d->max_bytes) / 2)
        return ST_TOO_LARGE;
    if (!PEEK(d->healthy))
        return ST_IO;
    struct index_shard *s = index_of(d, rec->key.hash);
    uint64_t tag = disk_tag_of(d, rec->key.hash);
    uint32_t old;
    index_prefetch(s, tag); /* wanted when the record was copied */
    pthread_mutex_lock(&d->mu);
    if (queue_is_full_locked(d, rec, bytes)) {
        d->want_room = true;
        pthread_mutex_unlock(&d->mu);
        return ST_FULL;
    }
    uint32_t number = block_number(append_record_locked(d, rec, payload, bytes));
    queue_record_locked(d, bytes, rec->must);
    BUMP(d->n.appends, 1);
    BUMP(d->n.appended_bytes, bytes);
    pthread_mutex_unlock(&d->mu);
    if (index_put(s, tag, number | (rec->expire_ms ? PLACE_EXPIRE : 0), &old))
        block_unlive(d, old & (PLACE_EXPIRE - 1));
    return ST_OK;
}

bool queue_slot_names(const struct disk *d, uint64_t hash, uint64_t id)
{
    uint32_t place;
    return index_find(&d->index[disk_shard_of(d, hash)], disk_tag_of(d, hash), &place) &&
           (place & (PLACE_EXPIRE - 1)) == block_number(id);
}

bool queue_carry_locked(struct disk *d, uint64_t hash, uint64_t from_id, const char *raw, size_t len,
                        uint32_t incarnation, int64_t expire_ms)
{
    if (!PEEK(d->healthy) || !queue_slot_names(d, hash, from_id))
        return false;
    size_t cap = sizeof(struct block_head) + len;
    char *own = record_is_large(0, len) ? mem_alloc(MEM_DATA, cap) : NULL;
    if (own != NULL)
        memcpy(own + sizeof(struct block_head), raw, len);
    struct block_meta *from = block_meta(d, from_id);
    CHECK(from != NULL); /* a slot names it */
    atomic_fetch_or_explicit(&from->flags, BLOCK_CARRIED, memory_order_relaxed);
    pthread_mutex_lock(&d->mu);
    struct block *b = own != NULL ? queue_open_large_locked(d, own, cap) : queue_open_small_locked(d, len);
    block_push_record(b, hash, incarnation, expire_ms, OP_CARRIED);
    if (b->ncarried == b->carried_cap) {
        b->carried_cap = b->carried_cap ? b->carried_cap * 2 : 64;
        b->carried = mem_realloc(MEM_OTHER, b->carried, b->carried_cap * sizeof(*b->carried));
    }
    b->carried[b->ncarried++] = (struct carried){.hash = hash, .from = from_id};
    if (own == NULL)
        memcpy(b->data + b->data_len, raw, len);
    b->data_len += len;
    queue_record_locked(d, len, false);
    pthread_mutex_unlock(&d->mu);
    COUNT(d, carried_keys, 1);
    COUNT(d, carried_bytes, len);
    return true;
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

static void tombstone(struct disk *d, uint64_t hash, uint32_t number)
{
    pthread_mutex_lock(&d->mu);
    bool crowded = !PEEK(d->healthy) && d->retained_n + d->waiting_tombs >= d->retain_max;
    if (!crowded || !forget_by_block(d, number)) {
        block_push_op(queue_open_locked(d), hash, OP_TOMB);
        d->waiting_tombs++;
        queue_event_locked(d, sizeof(struct disk_op), true);
    }
    BUMP(d->n.tombstones, 1);
    pthread_mutex_unlock(&d->mu);
}

bool disk_forget_locked(struct disk *d, uint64_t hash, bool *had_expire)
{
    uint32_t place = 0;
    bool had = index_remove(&d->index[disk_shard_of(d, hash)], disk_tag_of(d, hash), &place);
    if (had_expire != NULL)
        *had_expire = had && (place & PLACE_EXPIRE) != 0;
    if (!had)
        return false;
    uint32_t number = place & (PLACE_EXPIRE - 1);
    tombstone(d, hash, number);
    /* After the tombstone is queued: a block without live records may be deleted. */
    block_unlive(d, number);
    return true;
}

bool disk_drop_locked(struct disk *d, uint64_t hash, uint32_t block)
{
    uint64_t id = block_id_of_api(d, block);
    if (id == 0)
        return false;
    uint32_t number = block_number(id);
    if (!index_remove_block(&d->index[disk_shard_of(d, hash)], disk_tag_of(d, hash), number))
        return false;
    /* A copy may be in the queue, and must not come to life. */
    if (block_has(d, id, BLOCK_CARRIED))
        tombstone(d, hash, number);
    if (block_has(d, id, BLOCK_DATA)) {
        if (PEEK(d->sweeping))
            COUNT(d, expired_keys, 1);
        else
            COUNT(d, dropped_keys, 1);
    }
    block_unlive(d, number);
    return true;
}

/* After the commit of `b`, before the owner is told of it. */
void queue_carry_end_locked(struct disk *d, const struct block *b, const struct carried *c)
{
    struct index_shard *s = &d->index[disk_shard_of(d, c->hash)];
    uint64_t tag = disk_tag_of(d, c->hash);
    uint32_t place, old;
    if (!index_find(s, tag, &place) || (place & (PLACE_EXPIRE - 1)) != block_number(c->from))
        return;
    atomic_fetch_add_explicit(&b->meta->live, 1, memory_order_relaxed);
    index_put(s, tag, block_number(b->id) | (place & PLACE_EXPIRE), &old);
    block_unlive(d, block_number(c->from));
}

uint64_t disk_last_event(const struct disk *d)
{
    return atomic_load_explicit(&d->events, memory_order_acquire);
}

uint64_t disk_settled_event(const struct disk *d)
{
    return atomic_load_explicit(&d->settled_events, memory_order_acquire);
}

void disk_group_begin(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    while (d->taking)
        pthread_cond_wait(&d->group, &d->mu);
    d->groups++;
    pthread_mutex_unlock(&d->mu);
}

bool disk_group_try(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    bool may = !d->taking;
    d->groups += may;
    pthread_mutex_unlock(&d->mu);
    return may;
}

void disk_group_end(struct disk *d)
{
    pthread_mutex_lock(&d->mu);
    CHECK(d->groups != 0);
    if (--d->groups == 0 && d->taking)
        pthread_cond_broadcast(&d->group);
    pthread_mutex_unlock(&d->mu);
}

void disk_set_incarnation(struct disk *d, unsigned db, uint32_t incarnation)
{
    if (db >= d->opt.databases)
        return;
    pthread_mutex_lock(&d->mu);
    atomic_store_explicit(&d->incarnation[db], incarnation, memory_order_relaxed);
    queue_event_locked(d, 0, true);
    d->meta_event = PEEK(d->events);
    /* Not at once: the other half of a SWAPDB may follow, and what was queued must be written. */
    d->reclaim_events = d->meta_event;
    d->reclaim_at_us = clock_mono_us() + (int64_t)d->opt.commit_ms * 1000;
    pthread_mutex_unlock(&d->mu);
}

void queue_take_locked(struct disk *d, struct batch *batch, size_t limit)
{
    bool joined = true; /* to the one before */
    for (unsigned db = 0; db < d->opt.databases; db++)
        d->meta_incarnation[db] = PEEK(d->incarnation[db]);
    queue_seal_locked(d);
    while (!list_empty(&d->sealed)) {
        struct block *b = LIST_ENTRY(d->sealed.next, struct block, link);
        size_t cost = commit_block_cost(d, b);
        if (!joined && batch->cost + cost > limit)
            break;
        joined = b->joined || b->last_event < d->meta_event;
        list_push_back(&batch->blocks, list_pop_front(&d->sealed));
        batch->bytes += b->queue_bytes;
        batch->cost += cost;
        d->waiting_bytes -= b->queue_bytes + (b->nops - b->nrec) * sizeof(struct disk_op);
        d->waiting_tombs -= b->nops - b->nrec;
        batch->events = b->last_event;
    }
    if (!list_empty(&d->sealed))
        return;
    batch->events = PEEK(d->events);
    d->commit_at_us = 0;
    d->commit_soon = false;
    /* All events are in this batch, those too that replaced records of it. */
    for (struct list *l = batch->blocks.next; l != &batch->blocks; l = l->next) {
        struct block *b = LIST_ENTRY(l, struct block, link);
        uint32_t live = atomic_load_explicit(&b->meta->live, memory_order_acquire);
        b->dead = b->nrec != 0 && b->ncarried == 0 && live == 0;
    }
}
