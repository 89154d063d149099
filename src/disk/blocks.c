/* What is known in memory about each block: two levels, by block number, so that a slot
 * leads to its block's entry without a lock. A chunk is freed when no block of it has data any
 * more, at the latest when the tail has passed it: by then dropped() was called for every record
 * in it, so no slot names it. Of blocks without an entry `keys` may still have one. */
#include "disk_priv.h"

uint64_t block_id_of_number(const struct disk *d, uint32_t number)
{
    uint64_t head = atomic_load_explicit(&d->head, memory_order_acquire);
    uint32_t at = (uint32_t)(head % BLOCK_MODULUS), want = number - 1;
    uint32_t behind = at >= want ? at - want : at + BLOCK_MODULUS - want;
    return head > behind ? head - behind : 0;
}

uint64_t block_id_of_api(const struct disk *d, uint32_t block)
{
    uint64_t head = atomic_load_explicit(&d->head, memory_order_acquire);
    uint32_t behind = (uint32_t)head - block;
    return behind < BLOCK_MODULUS && head > behind ? head - behind : 0;
}

static struct block_meta *meta_at(const struct disk *d, uint32_t number)
{
    struct block_chunk *c = atomic_load_explicit(&d->chunks[number / META_CHUNK], memory_order_acquire);
    return c == NULL ? NULL : &c->meta[number % META_CHUNK];
}

struct block_meta *block_meta(const struct disk *d, uint64_t id)
{
    return meta_at(d, block_number(id));
}

struct block_meta *block_meta_make(struct disk *d, uint64_t id)
{
    uint32_t number = block_number(id);
    if (meta_at(d, number) == NULL) {
        struct block_chunk *c = mem_calloc(MEM_DATA, sizeof(*c));
        atomic_store_explicit(&d->chunks[number / META_CHUNK], c, memory_order_release);
    }
    return meta_at(d, number);
}

bool block_has(const struct disk *d, uint64_t id, uint32_t flag)
{
    const struct block_meta *m = block_meta(d, id);
    return m != NULL && (atomic_load_explicit(&m->flags, memory_order_acquire) & flag) != 0;
}

void block_unlive(struct disk *d, uint32_t number)
{
    struct block_meta *m = meta_at(d, number);
    if (m == NULL)
        return;
    uint32_t before = atomic_fetch_sub_explicit(&m->live, 1, memory_order_acq_rel);
    CHECK(before != 0);
    if (before == 1)
        atomic_fetch_add_explicit(&d->dead_hint, 1, memory_order_relaxed);
}

void block_forget_until(struct disk *d, uint64_t from, uint64_t to)
{
    for (uint64_t id = from; id < to; id++) {
        uint32_t number = block_number(id), next = block_number(id + 1);
        struct block_meta *m = meta_at(d, number);
        if (m != NULL)
            atomic_store_explicit(&m->flags, 0, memory_order_release);
        if (number / META_CHUNK != next / META_CHUNK)
            mem_free(MEM_DATA, atomic_exchange_explicit(&d->chunks[number / META_CHUNK], NULL, memory_order_acq_rel));
    }
}

static bool block_is_gone(const struct block_meta *m)
{
    uint32_t flags = atomic_load_explicit(&m->flags, memory_order_acquire);
    return !(flags & (BLOCK_DATA | BLOCK_DOOMED | BLOCK_CLEANING | BLOCK_DELETING)) &&
           atomic_load_explicit(&m->live, memory_order_acquire) == 0;
}

uint64_t block_forget_chunk(struct disk *d, uint64_t id, uint64_t end)
{
    uint32_t number = block_number(id);
    uint64_t next = id - number % META_CHUNK + META_CHUNK;
    const struct block_chunk *c = atomic_load_explicit(&d->chunks[number / META_CHUNK], memory_order_acquire);
    if (c == NULL || number % META_CHUNK != 0 || next > end || block_number(next - 1) != number + META_CHUNK - 1)
        return next;
    for (size_t i = 0; i < META_CHUNK; i++)
        if (!block_is_gone(&c->meta[i]))
            return next;
    pthread_rwlock_wrlock(&d->map_lock); /* a reader may be looking at it */
    mem_free(MEM_DATA, atomic_exchange_explicit(&d->chunks[number / META_CHUNK], NULL, memory_order_acq_rel));
    pthread_rwlock_unlock(&d->map_lock);
    return next;
}

void block_free_all(struct disk *d)
{
    for (size_t i = 0; i < META_CHUNKS; i++)
        mem_free(MEM_DATA, atomic_exchange_explicit(&d->chunks[i], NULL, memory_order_acq_rel));
}
