#ifndef TIERCEL_SESSION_H
#define TIERCEL_SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiercel/alloc.h"
#include "tiercel/buf.h"
#include "tiercel/chain.h"
#include "tiercel/command.h"
#include "tiercel/conf.h"
#include "tiercel/list.h"
#include "tiercel/mbox.h"
#include "tiercel/resp.h"
#include "tiercel/tier.h"
#include "tiercel/worker.h"

/* A client as the command layer sees it. Owned by one worker and touched by its thread only.
 * The net layer creates one per connection, feeds it requests, and writes `out` to the socket.
 *
 * Requests run strictly in order. One that has to wait (for a fetch, an upstream's answer, a
 * blocking command) is copied and queued; those behind it are queued too, and their fetches
 * started ahead. Nothing is appended to `out` out of turn. */

struct session;
struct call;
struct call_key;
struct parked;

struct session_ops {
    /* There is output to flush, room in the queue, or close_asap was set: the net layer acts
     * at its next turn. Never called from within session_feed(). */
    void (*wake)(struct session *s);
};

enum session_flags {
    SESSION_MULTI = 1 << 0,
    SESSION_DIRTY_EXEC = 1 << 1, /* a command could not be queued: EXEC aborts */
    SESSION_REPLY_OFF = 1 << 2,  /* CLIENT REPLY OFF */
    SESSION_REPLY_SKIP = 1 << 3, /* the reply of the next command is dropped */
    SESSION_NO_EVICT = 1 << 4,
    SESSION_AUTHENTICATED = 1 << 5,
    SESSION_UNIX = 1 << 6,
    SESSION_BLOCKED = 1 << 7,
    SESSION_READONLY = 1 << 8,
    SESSION_SKIP_NEXT = 1 << 9,
    SESSION_MONITOR = 1 << 10,
    SESSION_UNWATCH = 1 << 11,  /* it has let go of its watched keys, but a script has some of their shards */
    SESSION_LIMITED = 1 << 12,  /* its user may not do everything */
    SESSION_TRACKING = 1 << 13, /* CLIENT TRACKING ON */
    SESSION_CACHING = 1 << 14   /* CLIENT CACHING: for the next command or transaction */
};

struct session {
    struct list link; /* in cmd_worker's list of sessions */
    struct worker *w;
    uint64_t id; /* unique in the process, ascending over all workers */
    int db;
    int proto; /* 2 or 3 */
    uint32_t flags;
    struct chain out;       /* replies in order; the net layer consumes it */
    bool close_after_reply; /* flush `out`, then close (QUIT, protocol errors) */
    bool close_asap;        /* close now, drop the rest (CLIENT KILL, limits) */

    /* Filled by the net layer. */
    const struct session_ops *ops;
    void *conn;
    int fd;
    char addr[64], laddr[64];
    size_t query_bytes, query_free; /* unparsed input, and room behind it */
    uint64_t total_in, total_out;

    /* For CLIENT LIST. */
    struct buf name;
    int64_t created_ms, last_ms;
    const struct command *last_cmd;

    /* The queue of waiting requests (session.c). */
    struct list queue;         /* struct parked */
    unsigned queued, barriers; /* barriers: those behind which nothing is fetched ahead */
    size_t queued_bytes;
    bool running; /* the queue is being run: completions only mark */

    /* appendfsync always: writes whose replies wait in `out` for the disk. */
    bool unsynced, holding; /* unsynced: there may be new ones; holding: `sync` waits */
    struct tier_sync_wait sync;

    struct acl_user *user; /* as it was at that generation of the users (acl.h); never NULL */
    uint64_t acl_seen;

    struct multi *multi;          /* queued commands and watched keys (multi.c); NULL until used */
    struct pubsub_client *pubsub; /* subscriptions (pubsub.c); NULL until used */
    struct held *held;            /* messages that came while it was within a reply (inbox.c); mostly NULL */
    struct tracker *tracker;      /* as other threads know it (tracking.c) */
    struct forward_pin *pin;      /* its own upstream connection, if any (forward.c) */
    struct client_auth *auth;     /* client-auth upstream: who it is there (auth_upstream.c); NULL with local */
};

/* The worker's thread, all of them. */
struct session *session_create(struct worker *w, const struct session_ops *ops, void *conn);
void session_destroy(struct session *s); /* cancels what waits; `out` is freed */

/* Requests will be fed next, to one session or to several: notes the hashes of their keys, and brings
 * what they need into the cache. Hints, both. */
void session_note_keys(struct session *s, struct request *reqs, int n);
void session_prefetch(struct worker *w, const struct request *reqs, int n);
/* Before requests that were read run: hands out what other workers had for sessions of this one by then. So who knows that
 * something was done elsewhere, and asks, has the messages about it before the answer. */
void session_catch_up(struct worker *w);
/* Runs the request now, or queues a copy of it. Replies go to s->out. The caller keeps `req`. */
void session_feed(struct session *s, const struct request *req);
/* The net layer's, while a script keeps the worker's loop from turning, for a session for which nothing waits: answers
 * what can be answered then, mostly that the server is busy. false: nothing was done. */
bool session_feed_busy(struct session *s, const struct request *req);
/* The net layer's, after output was written: goes on with requests that waited for room there. */
#define SESSION_OUT_MAX (1 << 20) /* replies not taken: waiting requests do not run beyond it */
void session_resume(struct session *s);
/* Before output is written: must it wait until what was done is on disk? wake() comes then; until
 * it does the session is full. */
bool session_hold(struct session *s);
/* A command of it changed something, or it was given something that left the key space. */
static inline void session_wrote(struct session *s, uint64_t since)
{
    if (LIKELY(!atomic_load_explicit(&s->w->tier->limit.journal_always, memory_order_relaxed)) || s->unsynced)
        return;
    s->unsynced = true;
    if (!s->holding) /* else it waits with the older one */
        s->sync.since = since;
}
/* Receives pub/sub messages, from here or through the upstream. */
bool session_subscribed(const struct session *s);
/* Nothing was read for this client, and the queue is as long as it may get, or its replies are held:
 * stop reading. */
bool session_full(const struct session *s);
/* With maxmemory-clients: all clients together hold over half of it. Then who has requests waiting is not read from, and
 * who does not take its replies gets no more of them. */
static inline bool session_clients_tight(const struct worker *w)
{
    return w->conf->maxmemory_clients != 0 &&
           mem_class_bytes(MEM_CLIENT) > conf_maxmemory_clients(w->conf, w->conf->maxmemory) / 2;
}
/* Memory held for the client: input, queue, output. */
size_t session_bytes(const struct session *s);
/* Its class for client-output-buffer-limit: OBUF_NORMAL or OBUF_PUBSUB. */
int session_obuf_class(const struct session *s);

/* ---- suspending a call: for handlers that wait for something other than their keys ---- */

struct suspend_ops {
    /* The client is gone (or the server stops): forget the wait. After it nobody may call
     * call_complete(). */
    void (*cancel)(void *arg);
};
/* From a handler, as its last act, instead of a reply. The arguments stay valid (they are
 * copied) until completion. Not within EXEC. Several threads may work on the answer meanwhile,
 * but only the session's worker may complete it. */
struct parked *call_suspend(struct call *c, const struct suspend_ops *ops, void *arg);
/* The worker's thread: finish(c, arg) writes the reply, with no shard locked and no keys. */
void call_complete(struct parked *p, void (*finish)(struct call *c, void *arg), void *arg);

/* ---- all loops ---- */

/* Runs each(w, arg) on every worker's thread, one after another, then completes the call with
 * finish(c, arg). `arg` is freed with mem_free(MEM_OTHER) after finish, or when the client is gone. */
void call_broadcast(struct call *c, void (*each)(struct worker *w, void *arg),
                    void (*finish)(struct call *c, void *arg), void *arg);
/* All sessions of a worker, on its thread. */
struct list *worker_sessions(struct worker *w);

#endif
