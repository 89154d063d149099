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

struct stats_block {
    _Alignas(64) _Atomic uint64_t v[STAT_COUNT];
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

/* Any thread. Sum over all blocks since the last stats_reset() (CONFIG RESETSTAT). Gauges
 * (kind GAUGE: added to and subtracted from) are not reset. */
uint64_t stats_sum(enum stats_id s);
void stats_reset(void);

const char *stats_name(enum stats_id s);   /* INFO field, lower case */
const char *stats_metric(enum stats_id s); /* Prometheus name, "" = not exported */
const char *stats_help(enum stats_id s);
bool stats_is_gauge(enum stats_id s);

#endif
