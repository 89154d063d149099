#ifndef TIERCEL_STATS_H
#define TIERCEL_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Counters. Each thread has a block of its own and is its only writer, so counting is a
 * plain add; readers sum the blocks with relaxed loads. The rows are in tbl/stat.def. */
enum stats_id {
#define STAT(name, kind, metric, help) STAT_##name,
#include "stat.def"
#undef STAT
    STAT_COUNT
};

/* Durations, of the rows in tbl/hist.def: bucket i counts those of at most 1 << i us (and more than the one before), the last
 * one whatever is longer. */
#define STATS_HIST_BUCKETS 32
enum stats_hist_id {
#define HIST(name, metric, label, help) HIST_##name,
#include "hist.def"
#undef HIST
    HIST_COUNT
};

struct stats_block {
    _Alignas(64) _Atomic uint64_t v[STAT_COUNT];
    struct {
        _Atomic uint64_t bucket[STATS_HIST_BUCKETS], us;
    } hist[HIST_COUNT];
};

/* Registers a block for the calling thread's use; lives until the process ends. */
struct stats_block *stats_block_create(void);

static inline void stats_add(struct stats_block *b, enum stats_id s, uint64_t n)
{
    atomic_store_explicit(&b->v[s], atomic_load_explicit(&b->v[s], memory_order_relaxed) + n, memory_order_relaxed);
}

static inline void stats_inc(struct stats_block *b, enum stats_id s)
{
    stats_add(b, s, 1);
}

static inline int stats_hist_bucket(int64_t us)
{
    int b = us <= 1 ? 0 : 64 - __builtin_clzll((unsigned long long)us - 1);
    return b < STATS_HIST_BUCKETS ? b : STATS_HIST_BUCKETS - 1;
}

static inline void stats_time(struct stats_block *b, enum stats_hist_id h, int64_t us)
{
    _Atomic uint64_t *n = &b->hist[h].bucket[stats_hist_bucket(us)], *sum = &b->hist[h].us;
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1, memory_order_relaxed);
    atomic_store_explicit(sum, atomic_load_explicit(sum, memory_order_relaxed) + (uint64_t)(us > 0 ? us : 0),
                          memory_order_relaxed);
}

/* Any thread. All blocks together since the last stats_reset(). */
struct stats_hist_sum {
    uint64_t bucket[STATS_HIST_BUCKETS], us;
};
void stats_hist_sum(enum stats_hist_id h, struct stats_hist_sum *out);
struct stats_hist_row {
    const char *metric, *label, *help;
};
const struct stats_hist_row *stats_hist_row(enum stats_hist_id h);

/* Any thread. Sum over all blocks since the last stats_reset() (CONFIG RESETSTAT). Gauges
 * (kind GAUGE: added to and subtracted from) are not reset. */
uint64_t stats_sum(enum stats_id s);
void stats_reset(void);

const char *stats_name(enum stats_id s);   /* INFO field, lower case */
const char *stats_metric(enum stats_id s); /* Prometheus name, "" = not exported */
const char *stats_help(enum stats_id s);
bool stats_is_gauge(enum stats_id s);

#endif
