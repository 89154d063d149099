/* One shard's index: linear probing in hash order. Slots are sorted by tag all over the
 * array, and a slot is never before its home, so that a lookup starts at the home and
 * stops at the first empty or larger slot, and a scan is a walk of the array.
 *
 * A tag has 47 bits. 39 are in the slot; the other 8 lie in an array of bytes beside it, which is
 * read only where the 39 agree: one more cache line for what is there, none for what is not. */
#include "disk_priv.h"

#define INDEX_MIN_CAP 16

#define HIGH_BITS (DISK_TAG_BITS - INDEX_LOW_BITS)

static inline size_t high_home(uint64_t high, size_t cap)
{
    return (size_t)(((unsigned __int128)high * cap) >> HIGH_BITS);
}

static inline uint64_t slot_high(uint64_t slot)
{
    return slot >> PLACE_BITS;
}

static inline uint8_t tag_low(uint64_t tag)
{
    return (uint8_t)tag;
}

/* First position at or after the home that is empty or has a tag >= tag. The empty slot at
 * the end of the array stops it. */
static inline size_t index_seek(const struct index_shard *s, uint64_t tag)
{
    uint64_t high = tag >> INDEX_LOW_BITS, least = high << PLACE_BITS;
    size_t p = high_home(high, s->cap);
    while (s->slots[p] != 0 && s->slots[p] < least)
        p++;
    while (s->slots[p] != 0 && slot_high(s->slots[p]) == high && s->low[p] < tag_low(tag))
        p++;
    return p;
}

static inline bool index_at(const struct index_shard *s, size_t p, uint64_t tag)
{
    return s->slots[p] != 0 && slot_high(s->slots[p]) == tag >> INDEX_LOW_BITS && s->low[p] == tag_low(tag);
}

/* Room behind the last home, for the slots that are shifted there. */
static size_t index_slack(size_t cap)
{
    return cap < 1024 ? cap / 8 + 8 : 128 + cap / 64;
}

static bool index_fill(const struct index_shard *to, size_t to_len, const struct index_shard *from)
{
    size_t next = 0, len = PEEK(from->len);
    for (size_t i = 0; i < len; i++) {
        uint64_t slot = from->slots[i];
        if (slot == 0)
            continue;
        size_t p = high_home(slot_high(slot), to->cap);
        if (p < next)
            p = next;
        if (p >= to_len)
            return false;
        to->slots[p] = slot;
        to->low[p] = from->low[i];
        next = p + 1;
    }
    return true;
}

/* Rebuilds the array with about `cap` homes. */
static void index_resize(struct index_shard *s, size_t cap)
{
    for (;; cap += cap / 4 + 1) {
        size_t len = cap + index_slack(cap);
        struct index_shard to = {.slots = mem_calloc(MEM_DATA, (len + 1) * INDEX_SLOT_BYTES), .cap = cap};
        to.low = (uint8_t *)(to.slots + len + 1);
        if (!index_fill(&to, len, s)) {
            mem_free(MEM_DATA, to.slots);
            continue;
        }
        mem_free(MEM_DATA, s->slots);
        s->slots = to.slots;
        s->low = to.low;
        s->cap = cap;
        atomic_store_explicit(&s->len, len, memory_order_relaxed);
        return;
    }
}

static inline void index_count(struct index_shard *s, size_t count)
{
    atomic_store_explicit(&s->count, count, memory_order_relaxed);
}

bool index_find(const struct index_shard *s, uint64_t tag, uint32_t *place)
{
    if (PEEK(s->count) == 0)
        return false;
    size_t p = index_seek(s, tag);
    if (!index_at(s, p, tag))
        return false;
    *place = (uint32_t)s->slots[p] & PLACE_MASK;
    return true;
}

bool index_put(struct index_shard *s, uint64_t tag, uint32_t place, uint32_t *old)
{
    if (s->slots == NULL)
        index_resize(s, INDEX_MIN_CAP);
    uint64_t slot = tag >> INDEX_LOW_BITS << PLACE_BITS | place;
    size_t p = index_seek(s, tag), count = PEEK(s->count);
    if (index_at(s, p, tag)) {
        *old = (uint32_t)s->slots[p] & PLACE_MASK;
        s->slots[p] = slot;
        return true;
    }
    /* load <= 0.85; the numbers are small enough not to overflow */
    if ((count + 1) * 20 > s->cap * 17) {
        index_resize(s, s->cap + s->cap / 4 + 8);
        p = index_seek(s, tag);
    }
    size_t end = p;
    while (s->slots[end] != 0)
        end++;
    if (end == PEEK(s->len)) { /* the slack is used up */
        index_resize(s, s->cap + s->cap / 8 + 8);
        return index_put(s, tag, place, old);
    }
    memmove(s->slots + p + 1, s->slots + p, (end - p) * sizeof(*s->slots));
    memmove(s->low + p + 1, s->low + p, end - p);
    s->slots[p] = slot;
    s->low[p] = tag_low(tag);
    index_count(s, count + 1);
    return false;
}

static void index_erase(struct index_shard *s, size_t p)
{
    size_t end = p + 1;
    while (s->slots[end] != 0 && high_home(slot_high(s->slots[end]), s->cap) < end)
        end++;
    memmove(s->slots + p, s->slots + p + 1, (end - p - 1) * sizeof(*s->slots));
    memmove(s->low + p, s->low + p + 1, end - p - 1);
    s->slots[end - 1] = 0;
    size_t count = PEEK(s->count) - 1;
    index_count(s, count);
    if (count == 0)
        index_clear(s);
    else if (s->cap > 64 && count * 3 < s->cap)
        index_resize(s, count + count / 2 + INDEX_MIN_CAP);
}

bool index_remove(struct index_shard *s, uint64_t tag, uint32_t *old)
{
    if (PEEK(s->count) == 0)
        return false;
    size_t p = index_seek(s, tag);
    if (!index_at(s, p, tag))
        return false;
    *old = (uint32_t)s->slots[p] & PLACE_MASK;
    index_erase(s, p);
    return true;
}

bool index_remove_block(struct index_shard *s, uint64_t tag, uint32_t number)
{
    if (PEEK(s->count) == 0)
        return false;
    size_t p = index_seek(s, tag);
    if (!index_at(s, p, tag) || ((uint32_t)s->slots[p] & (PLACE_EXPIRE - 1)) != number)
        return false;
    index_erase(s, p);
    return true;
}

bool index_next(const struct index_shard *s, size_t *pos, uint64_t *tag, uint32_t *place)
{
    size_t len = PEEK(s->len);
    if (s->slots == NULL)
        return false;
    while (*pos < len && s->slots[*pos] == 0)
        ++*pos;
    if (*pos == len)
        return false;
    *tag = slot_high(s->slots[*pos]) << INDEX_LOW_BITS | s->low[*pos];
    *place = (uint32_t)s->slots[*pos] & PLACE_MASK;
    ++*pos;
    return true;
}

size_t index_lower_bound(const struct index_shard *s, uint64_t tag)
{
    return s->slots == NULL ? 0 : index_seek(s, tag);
}

void index_reserve(struct index_shard *s, size_t keys)
{
    size_t cap = keys + keys / 5 + INDEX_MIN_CAP;
    if (keys != 0 && cap > s->cap)
        index_resize(s, cap);
}

void index_clear(struct index_shard *s)
{
    mem_free(MEM_DATA, s->slots);
    s->slots = NULL;
    s->low = NULL;
    s->cap = 0;
    atomic_store_explicit(&s->len, 0, memory_order_relaxed);
    index_count(s, 0);
}

void index_prefetch(const struct index_shard *s, uint64_t tag)
{
    if (s->slots != NULL)
        __builtin_prefetch(&s->slots[high_home(tag >> INDEX_LOW_BITS, s->cap)], 1);
}
