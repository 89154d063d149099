#include "hist.h"

#include <math.h>
#include <string.h>

/* The largest value that counts in bucket i. */
static uint64_t bucket_top(unsigned i)
{
    unsigned shift = i >> HIST_SUB_BITS;
    if (shift > 0)
        shift--; /* the first two groups are both of width 1 */
    return (((uint64_t)i - ((uint64_t)shift << HIST_SUB_BITS) + 1) << shift) - 1;
}

void hist_add(struct hist *to, const struct hist *from)
{
    uint64_t count = __atomic_load_n(&from->count, __ATOMIC_RELAXED);
    uint64_t min = __atomic_load_n(&from->min, __ATOMIC_RELAXED);
    uint64_t max = __atomic_load_n(&from->max, __ATOMIC_RELAXED);

    if (count == 0)
        return;
    if (to->count == 0 || min < to->min)
        to->min = min;
    if (max > to->max)
        to->max = max;
    to->count += count;
    to->sum += __atomic_load_n(&from->sum, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < HIST_BUCKETS; i++)
        to->bucket[i] += __atomic_load_n(&from->bucket[i], __ATOMIC_RELAXED);
}

void hist_since(struct hist *out, const struct hist *now, const struct hist *before)
{
    memset(out, 0, sizeof(*out));
    out->sum = now->sum - before->sum;
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        out->bucket[i] = now->bucket[i] - before->bucket[i];
        if (out->bucket[i] == 0)
            continue;
        if (out->count == 0)
            out->min = i ? bucket_top(i - 1) + 1 : 0;
        out->count += out->bucket[i];
        out->max = bucket_top(i);
    }
}

uint64_t hist_percentile(const struct hist *h, double share)
{
    uint64_t want = (uint64_t)ceil(share * (double)h->count), seen = 0;

    if (want == 0)
        return h->min;
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= want)
            return bucket_top(i) < h->max ? bucket_top(i) : h->max;
    }
    return h->max;
}

double hist_mean(const struct hist *h)
{
    return h->count ? (double)h->sum / (double)h->count : 0;
}
