#ifndef TIERCEL_LOOP_H
#define TIERCEL_LOOP_H

#include "tiercel/cmd.h"
#include "tiercel/net.h"
#include "tiercel/tier.h"
#include "tiercel/upstream.h"

/* The worker threads: `n` equal loops. The main thread calls all of this. */
struct loops;

struct loops *loops_create(int n, struct conf *conf);
/* What they will work on; `upstream` NULL: none. Returns a worker, as which the main thread may act until the start. */
struct worker *loops_prepare(struct loops *l, struct cmd *cmd, struct tier *tier, struct net *net,
                             const struct upstream_options *upstream);
/* Starts the threads; returns when every loop runs and accepts. */
enum status loops_start(struct loops *l);
/* Stops accepting, gives clients drain_ms to take their replies, closes them. The loops go
 * on turning, for what the tiers still have under way. */
void loops_quiesce(struct loops *l, int64_t drain_ms);
/* Then: stops warming, closes the upstream, waits for fetches under way. After it no loop
 * touches a tier any more; disk readers and writer may still post to them. false: some
 * fetches did not end in time. */
bool loops_settle(struct loops *l, int64_t timeout_ms);
/* Ends the loops and joins the threads. The disk is closed. */
void loops_end(struct loops *l);
void loops_destroy(struct loops *l);
/* Runs fn on worker 0's thread, soon. */
void loops_run(struct loops *l, void (*fn)(struct worker *w, void *arg), void *arg);

#endif
