#ifndef TIERCEL_WORKER_H
#define TIERCEL_WORKER_H

#include <stdint.h>

/* One of `threads` equals: a libuv loop on a thread of its own. What it owns is touched
 * only by its thread, unless the owner's header says otherwise; other threads talk to it
 * through `mbox`. Layers hang their own per-worker part here and never look into another's. */
struct worker {
    int id;
    struct uv_loop_s *loop;
    struct mbox *mbox; /* owner = this worker */
    struct stats_block *stats;
    struct codec *codec;
    struct conf *conf; /* snapshot in force on this loop */
    int64_t now_ms;    /* wall time, taken once per loop iteration and before each batch of requests */
    int64_t mono_us;   /* within a batch of requests: when the last one ended; else 0 */
    uint64_t rng;      /* rng_next() */
    struct tier *tier;
    struct cmd *cmd;
    struct tier_worker *tier_worker;
    struct cmd_worker *cmd_worker;
    struct net_worker *net_worker;
};

#endif
