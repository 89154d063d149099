#ifndef TIERCEL_TRACKING_H
#define TIERCEL_TRACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiercel/conf.h"
#include "tiercel/session.h"
#include "tiercel/slice.h"
#include "tiercel/worker.h"

/* CLIENT TRACKING: which clients may have copies of which keys, and telling them when a key changes.
 *
 * Shared: for each key that was read, by its name alone as in Redis, the clients that read it; all
 * clients with what they asked for; the prefixes of clients in broadcasting mode, with how many
 * each worker has. A key's readers are noted while the command that reads holds the key's shard, and a
 * change takes them out while it holds it: so no change falls in between. What they are to be
 * told goes to their workers' inboxes (cmd/inbox.c). A client's messages about its own command are
 * kept until the command, transaction or script has replied.
 *
 * Locks: one of a shard of names, of clients, or the prefixes', then an inbox's; shard locks of the
 * memory tier may be held before them. */

struct tracking;
struct tracking_worker;

/* The main thread, before the loops run and after they ended. */
struct tracking *tracking_create(struct tier *tier);
void tracking_destroy(struct tracking *t);
/* After the inbox's init, before its deinit; no session is left then. */
void tracking_worker_init(struct tracking *t, struct worker *w);
void tracking_worker_deinit(struct worker *w);

/* ---- a session; its worker's thread ---- */
void tracking_session_created(struct session *s);
void tracking_session_gone(struct session *s);
void tracking_off(struct session *s);
/* Around a request of a session with SESSION_TRACKING (or that had it when it began). */
void tracking_begin(struct session *s);
void tracking_end(struct session *s);
/* It was answered: what CLIENT CACHING said is over, unless this was a CLIENT command or MULTI goes on. */
void tracking_answered(struct session *s, const struct command *cmd);
/* The command has read its keys; their shards are locked. */
void tracking_read(const struct call *c);
/* With an upstream (tracking_upstream.c), for a session with SESSION_TRACKING: before a command is passed through, its
 * keys have to be registered there. true: the call is suspended, and will run again. */
bool tracking_forward(struct call *c);
/* The command must not be sent before those ahead of it are answered. */
bool tracking_holds(const struct session *s, const struct command *cmd);
/* Around dropping copies because of a write that was not answered yet: nobody is told. */
void tracking_quiet(struct worker *w, bool on);
/* CLIENT LIST's flags of it, up to 3 characters, and its redir. */
const char *tracking_flags(const struct session *s);
int64_t tracking_redirect(const struct session *s);

/* ---- any thread ---- */

/* The key's shard is locked. w: the worker whose thread this is, or NULL. */
/* upstream: it is a copy of an upstream's key, or such a key changed there. */
void tracking_key_changed(struct tracking *t, struct worker *w, struct slice name, enum tier_change why, bool upstream);
/* FLUSHALL or FLUSHDB, or nothing vouches for the upstream's keys any more; all shards are locked. */
void tracking_flushed(struct worker *w);
/* tier.foreign, arg = struct cmd *. */
void tracking_foreign(void *arg, struct worker *w, const struct slice *name);
/* conf_lock held, or before the loops run. */
void tracking_conf_changed(struct tracking *t, const struct conf *conf);
/* Periodic, one thread. */
void tracking_tick(struct tracking *t);

struct tracking_figures {
    int64_t clients, keys, items, prefixes;
};
void tracking_get_figures(const struct tracking *t, struct tracking_figures *f);

#endif
