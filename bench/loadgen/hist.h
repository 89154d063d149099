#ifndef LOADGEN_HIST_H
#define LOADGEN_HIST_H

#include <stdint.h>

/* Counts of durations in nanoseconds in buckets whose width is at most 1/128 of their value (a
 * log-linear histogram, as HdrHistogram is), so that a percentile is right to 0.8 %. One thread
 * records; others may read meanwhile and see each count as it was a moment ago. */
#define HIST_SUB_BITS 7
#define HIST_SUB (1u << HIST_SUB_BITS)
#define HIST_TOP_BITS 41 /* 36 minutes; what is longer counts as that */
#define HIST_BUCKETS ((HIST_TOP_BITS - HIST_SUB_BITS + 1) * HIST_SUB)

struct hist {
    uint64_t count, sum, min, max; /* exact; min is 0 while there is nothing */
    uint64_t bucket[HIST_BUCKETS];
};

/* Buckets are as wide as 1 up to 2 * HIST_SUB, and twice as wide with every power of two above. */
static inline unsigned hist_index(uint64_t value)
{
    if (value >= (uint64_t)1 << HIST_TOP_BITS)
        value = ((uint64_t)1 << HIST_TOP_BITS) - 1;
    unsigned top = 63 - (unsigned)__builtin_clzll(value | 1);
    unsigned shift = top > HIST_SUB_BITS ? top - HIST_SUB_BITS : 0;
    return (shift << HIST_SUB_BITS) + (unsigned)(value >> shift);
}

static inline void hist_bump(uint64_t *counter, uint64_t by)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + by, __ATOMIC_RELAXED);
}

static inline void hist_record(struct hist *h, uint64_t value)
{
    if (value > h->max)
        __atomic_store_n(&h->max, value, __ATOMIC_RELAXED);
    if (value < h->min || h->count == 0)
        __atomic_store_n(&h->min, value, __ATOMIC_RELAXED);
    hist_bump(&h->count, 1);
    hist_bump(&h->sum, value);
    hist_bump(&h->bucket[hist_index(value)], 1);
}

/* `from` may be in use by the thread that records into it. */
void hist_add(struct hist *to, const struct hist *from);
/* What `now` counted since it was `before`; min and max then are those of the buckets. */
void hist_since(struct hist *out, const struct hist *now, const struct hist *before);
/* The least value that `share` of all values (0 to 1) are not above, to a bucket's precision. */
uint64_t hist_percentile(const struct hist *h, double share);
double hist_mean(const struct hist *h);

#endif
