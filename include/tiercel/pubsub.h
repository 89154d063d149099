#ifndef TIERCEL_PUBSUB_H
#define TIERCEL_PUBSUB_H

#include <stdbool.h>
#include <stddef.h>

#include "tiercel/command.h"
#include "tiercel/session.h"
#include "tiercel/slice.h"
#include "tiercel/worker.h"

/* Publish and subscribe over all workers.
 *
 * Shared: for each channel and pattern, which workers have subscribers and how many. Each
 * worker's own: which of its sessions those are. PUBLISH appends one reference-counted message
 * per interested worker to that worker's inbox (cmd/inbox.c) while it holds the channel's lock, so all
 * subscribers see the messages of a channel in one order; a mailbox message wakes the worker.
 * Who subscribes or unsubscribes takes the inbox's contents under the same lock: a client gets
 * exactly the messages that counted it as a receiver.
 *
 * Locks: a channel shard's, then the patterns', then an inbox's, then the mailbox's; shard locks of the
 * memory tier may be held before them. */

struct pubsub;
struct pubsub_worker;

/* The main thread, before the loops run and after they ended. */
struct pubsub *pubsub_create(void);
void pubsub_destroy(struct pubsub *ps);

/* Makes w->cmd_worker->pubsub. Before deinit all sessions are gone; a wake-up that is
 * still in the mailbox then does nothing. */
void pubsub_worker_init(struct pubsub *ps, struct worker *w);
void pubsub_worker_deinit(struct worker *w);

/* ---- a session; its worker's thread ---- */

/* From session_destroy(). Late messages do not reach it any more. */
void pubsub_session_gone(struct session *s);
/* RESET: as UNSUBSCRIBE and PUNSUBSCRIBE of everything, without replies. */
void pubsub_unsubscribe_all(struct session *s);
/* Subscribed to something: PING answers in its other form in RESP2, and output has pub/sub's limits. */
bool pubsub_active(const struct session *s);
/* May the command run now? In RESP2 a subscriber may only do what concerns subscriptions. */
bool pubsub_allows(const struct session *s, const struct command *cmd);
/* Replies what a command gets that may not. */
void pubsub_refuse(struct call *c);
/* Whatever it has subscribed to. */
void pubsub_session_each(const struct session *s, void (*fn)(void *arg, struct slice name, bool is_pattern), void *arg);
/* CLIENT LIST's sub and psub. */
size_t pubsub_session_channels(const struct session *s);
size_t pubsub_session_patterns(const struct session *s);
size_t pubsub_session_shard_channels(const struct session *s);
size_t pubsub_session_bytes(const struct session *s); /* of its subscriptions */

/* ---- any thread ---- */

/* PUBLISH for events of our own (key-space notifications). Returns the number of receivers. */
size_t pubsub_publish(struct pubsub *ps, struct slice channel, struct slice payload);
/* Patterns not counted. sharded: of shard channels (SSUBSCRIBE), which are names of their own. */
size_t pubsub_subscribers(struct pubsub *ps, bool sharded, struct slice channel);
/* Each channel with subscribers; fn runs under a lock. */
void pubsub_channels_each(struct pubsub *ps, bool sharded, void (*fn)(void *arg, struct slice channel), void *arg);
size_t pubsub_channels(struct pubsub *ps); /* channels with subscribers, for INFO */
size_t pubsub_patterns(struct pubsub *ps); /* different patterns */

#endif
