/* Directories of blocks that were read lately, so that a read need not fetch one first: a ring of
 * words, in which the newest overwrites the oldest. A block knows where its copy begins, counted
 * since the start; it is there as long as the ring has not come round.
 *
 *   | block id 32 | for each record: 16 bits of its hash, its offset 16 | ...
 *
 * Read by any thread without a lock: `head` moves before words are overwritten, so a reader that
 * has seen a new word sees that its own are gone. */
#include "disk_priv.h"

#define DIRS_SHARE 4 /* its size is that part of the queue's */

static inline uint32_t dir_load(const _Atomic uint32_t *word)
{
    return atomic_load_explicit(word, memory_order_acquire); /* before `head` */
}

static inline void dir_store(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_release); /* after `head` */
}

bool dirs_find(const struct disk *d, const struct block_meta *m, uint64_t id, uint32_t hash32, uint32_t *number,
               uint32_t *off, uint32_t *end)
{
    uint64_t at = atomic_load_explicit(&m->dir_at, memory_order_acquire);
    const _Atomic uint32_t *words = atomic_load_explicit(&d->dirs.words, memory_order_acquire);
    uint32_t size = d->dirs.size, i = m->records;
    if (at == 0 || words == NULL)
        return false;
    uint32_t first = (uint32_t)(at % size);
    bool found = dir_load(&words[first]) == (uint32_t)id;
    uint32_t next = *end; /* where the record behind begins */
    for (; found && i > 0; i--) {
        uint32_t p = first + i < size ? first + i : first + i - size, word = dir_load(&words[p]);
        if (word >> 16 == (hash32 & 0xffff)) {
            *off = word & 0xffff;
            break;
        }
        next = word & 0xffff;
    }
    if (!found || i == 0 || atomic_load_explicit(&d->dirs.head, memory_order_relaxed) - at > size)
        return false;
    *end = next;
    *number = i - 1;
    return true;
}

void dirs_note(struct disk *d, struct block_meta *m, uint64_t id, const char *hashes, const char *offs, uint32_t len)
{
    struct dirs *r = &d->dirs;
    uint32_t count = m->records;
    if (len > UINT16_MAX || atomic_flag_test_and_set_explicit(&r->busy, memory_order_acquire))
        return;
    _Atomic uint32_t *words = PEEK(r->words);
    if (words == NULL) {
        r->size = (uint32_t)(d->opt.queue_max_bytes / DIRS_SHARE / sizeof(*words));
        words = mem_calloc(MEM_DATA, (size_t)r->size * sizeof(*words));
        atomic_store_explicit(&r->head, r->size, memory_order_relaxed); /* 0: nowhere */
        atomic_store_explicit(&r->words, words, memory_order_release);
    }
    uint64_t at = PEEK(r->head), was = PEEK(m->dir_at);
    if (count < r->size && (was == 0 || at - was > r->size)) {
        uint32_t p = (uint32_t)(at % r->size);
        atomic_store_explicit(&r->head, at + 1 + count, memory_order_relaxed);
        dir_store(&words[p], (uint32_t)id);
        for (uint32_t i = 0; i < count; i++) {
            p = p + 1 < r->size ? p + 1 : 0;
            dir_store(&words[p], load32(hashes + (size_t)i * 4) << 16 | load32(offs + (size_t)i * 4));
        }
        atomic_store_explicit(&m->dir_at, at, memory_order_release);
    }
    atomic_flag_clear_explicit(&r->busy, memory_order_release);
}

void dirs_free(struct disk *d)
{
    mem_free(MEM_DATA, (void *)PEEK(d->dirs.words));
    atomic_store_explicit(&d->dirs.words, NULL, memory_order_relaxed);
}
