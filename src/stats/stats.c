/* The counters' blocks: registered once per thread, summed by whoever asks. */
#include "tiercel/stats.h"

#include <pthread.h>
#include <string.h>

#include "tiercel/alloc.h"

struct stats_node {
    struct stats_block block; /* first, so that the node's alignment is the block's */
    struct stats_node *next;
};

/* Blocks are only ever added, so readers walk the list without a lock. */
static struct stats_node *_Atomic nodes;

/* What stats_reset() found, to be taken off every later sum: the blocks themselves have
 * one writer each, and that is not the thread that resets. */
static _Atomic uint64_t baseline[STAT_COUNT];
static struct {
    _Atomic uint64_t bucket[STATS_HIST_BUCKETS], us;
} hist_baseline[HIST_COUNT];
static pthread_mutex_t reset_lock = PTHREAD_MUTEX_INITIALIZER;

static const struct {
    const char *name, *metric, *help;
    bool gauge;
} rows[STAT_COUNT] = {
#define COUNTER false
#define GAUGE true
#define STAT(name, kind, metric, help) [STAT_##name] = {#name, metric, help, kind},
#include "stat.def"
#undef STAT
#undef COUNTER
#undef GAUGE
};

static const struct stats_hist_row hist_rows[HIST_COUNT] = {
#define HIST(name, metric, label, help) [HIST_##name] = {metric, label, help},
#include "hist.def"
#undef HIST
};

struct stats_block *stats_block_create(void)
{
    const size_t align = _Alignof(struct stats_node);
    char *raw = mem_calloc(MEM_OTHER, sizeof(struct stats_node) + align);
    struct stats_node *node = (struct stats_node *)(raw + (align - (uintptr_t)raw % align) % align);
    struct stats_node *head = atomic_load_explicit(&nodes, memory_order_relaxed);
    do {
        node->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&nodes, &head, node, memory_order_release, memory_order_relaxed));
    return &node->block;
}

static uint64_t sum_blocks(enum stats_id s)
{
    uint64_t sum = 0;
    for (struct stats_node *n = atomic_load_explicit(&nodes, memory_order_acquire); n != NULL; n = n->next)
        sum += atomic_load_explicit(&n->block.v[s], memory_order_relaxed);
    return sum;
}

uint64_t stats_sum(enum stats_id s)
{
    uint64_t base = atomic_load_explicit(&baseline[s], memory_order_relaxed);
    uint64_t sum = sum_blocks(s) - base;
    /* One thread's decrement may be seen before another's increment: that is zero, not 2^64. */
    return (int64_t)sum < 0 ? 0 : sum;
}

static uint64_t peek(const _Atomic uint64_t *v)
{
    return atomic_load_explicit(v, memory_order_relaxed);
}

static void sum_hist_blocks(enum stats_hist_id h, struct stats_hist_sum *out)
{
    *out = (struct stats_hist_sum){0};
    for (struct stats_node *n = atomic_load_explicit(&nodes, memory_order_acquire); n != NULL; n = n->next) {
        for (int i = 0; i < STATS_HIST_BUCKETS; i++)
            out->bucket[i] += peek(&n->block.hist[h].bucket[i]);
        out->us += peek(&n->block.hist[h].us);
    }
}

void stats_hist_sum(enum stats_hist_id h, struct stats_hist_sum *out)
{
    pthread_mutex_lock(&reset_lock); /* all of it from before a reset, or from after it */
    sum_hist_blocks(h, out);
    for (int i = 0; i < STATS_HIST_BUCKETS; i++)
        out->bucket[i] -= peek(&hist_baseline[h].bucket[i]);
    out->us -= peek(&hist_baseline[h].us);
    pthread_mutex_unlock(&reset_lock);
}

const struct stats_hist_row *stats_hist_row(enum stats_hist_id h)
{
    return &hist_rows[h];
}

static void reset_hist(enum stats_hist_id h)
{
    struct stats_hist_sum now;
    sum_hist_blocks(h, &now);
    for (int i = 0; i < STATS_HIST_BUCKETS; i++)
        atomic_store_explicit(&hist_baseline[h].bucket[i], now.bucket[i], memory_order_relaxed);
    atomic_store_explicit(&hist_baseline[h].us, now.us, memory_order_relaxed);
}

void stats_reset(void)
{
    pthread_mutex_lock(&reset_lock);
    for (int h = 0; h < HIST_COUNT; h++)
        reset_hist((enum stats_hist_id)h);
    for (int s = 0; s < STAT_COUNT; s++)
        if (!rows[s].gauge)
            atomic_store_explicit(&baseline[s], sum_blocks((enum stats_id)s), memory_order_relaxed);
    pthread_mutex_unlock(&reset_lock);
}

const char *stats_name(enum stats_id s)
{
    return rows[s].name;
}

const char *stats_metric(enum stats_id s)
{
    return rows[s].metric;
}

const char *stats_help(enum stats_id s)
{
    return rows[s].help;
}

bool stats_is_gauge(enum stats_id s)
{
    return rows[s].gauge;
}
