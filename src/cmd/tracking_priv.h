#ifndef TIERCEL_CMD_TRACKING_PRIV_H
#define TIERCEL_CMD_TRACKING_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "tiercel/buf.h"
#include "tiercel/cmd.h"
#include "tiercel/inbox.h"
#include "tiercel/list.h"
#include "tiercel/table.h"
#include "tiercel/tracking.h"

/* What the files of client tracking share. */

#define TRACKING_SHARDS 256
#define TRACKING_WORKERS 128 /* at most (conf.def: threads) */

enum tracking_mode {
    TRACKING_ON = 1 << 0,
    TRACKING_BCAST = 1 << 1,
    TRACKING_OPTIN = 1 << 2,
    TRACKING_OPTOUT = 1 << 3,
    TRACKING_NOLOOP = 1 << 4,
    TRACKING_BROKEN = 1 << 5 /* whom it redirects to is gone; set by any thread */
};

/* A session, with or without tracking. Others find it by its ID, under its shard's lock. */
struct tracker {
    struct node node;
    uint64_t id;
    struct session *s;     /* for its worker's thread */
    struct worker *w;      /* which never changes */
    _Atomic unsigned mode; /* TRACKING_*; 0: off */
    uint64_t redirect;     /* 0: none; changed under the lock */
    struct list prefixes;  /* its worker's: struct prefix_sub */
    /* With an upstream (tracking_upstream.c). */
    struct passing *passing; /* a read of it is passed through; changed by its worker, under the lock */
    struct buf queued;       /* its worker's: what its transaction reads */
    bool queued_all;         /* that was too much to remember */
};

struct tracking_shard {
    _Alignas(64) pthread_mutex_t lock;
    struct table keys; /* struct readers */
    size_t items;      /* readers of those, all together */
    pthread_mutex_t client_lock;
    struct table clients; /* struct tracker */
};

/* How many there are of each length; few as a rule. */
struct lengths {
    struct {
        size_t len, n;
    } * of;
    size_t n;
};
void lengths_add(struct lengths *l, size_t len);
void lengths_remove(struct lengths *l, size_t len);

/* Names to be freed bit by bit. */
struct doomed {
    struct list link;
    struct table keys;
    size_t next; /* bucket */
};

struct tracking {
    struct tracking_shard *shard; /* TRACKING_SHARDS */
    void *shard_memory;
    struct tier *tier;
    uint64_t seed;
    _Atomic size_t nclients, nkeys, nitems, max_keys; /* max_keys 0: no limit */
    pthread_mutex_t events_lock;                      /* turning the tier's events on and off */
    bool listening;                                   /* under it */
    int idle_ticks;                                   /* tracking_tick()'s */
    pthread_mutex_t doomed_lock;
    struct list doomed;
    _Atomic uint64_t rng;

    pthread_rwlock_t prefix_lock; /* who changes something reads */
    struct table prefixes;        /* struct prefix */
    struct lengths lengths;
    _Atomic size_t nprefixes;
};

struct tracking_worker {
    struct worker *w;
    struct tracking *t;
    struct session *current; /* it runs a request, and tracks */
    struct buf own;          /* what it is to be told of itself, once it has its reply */
    bool quiet;              /* copies are dropped, but nothing has changed */
    struct table prefixes;   /* struct local_prefix */
    struct lengths lengths;
    struct buf touched; /* struct local_prefix *: with keys to tell of */
    struct buf changes; /* struct change *: of this batch */
};

/* ---- what is sent ---- */

struct target {
    uint64_t id;
    struct worker *w;
    bool redirected;
};

enum push_kind { PUSH_KEYS, PUSH_FLUSHED, PUSH_BROKEN };
struct push {
    struct inbox_msg in;
    enum push_kind kind;
    uint64_t lost; /* PUSH_BROKEN: the ID that is gone */
    size_t ntargets, len;
    struct target *target;
    char *value; /* PUSH_KEYS: an array of names, in RESP */
};

/* The session whose client is to be told, as it is now; fills in who gets it. false: nobody. Sends the other message when
 * its redirection is broken. */
bool tracking_route(struct tracking *t, uint64_t id, struct target *out);
/* Sends the value (copied) to those targets. */
void tracking_send(enum push_kind kind, uint64_t lost, const struct target *target, size_t n, struct slice value);
/* To one session of this worker's thread. */
void tracking_push(struct session *s, bool redirected, enum push_kind kind, uint64_t lost, struct slice value,
                   const struct session *within);

static inline uint64_t tracking_client_hash(uint64_t id)
{
    return (id + 1) * 0x9e3779b97f4a7c15ULL;
}
static inline struct tracking_shard *tracking_shard_of(struct tracking *t, uint64_t hash)
{
    return &t->shard[hash >> 56];
}
static inline struct tracking *tracking_of(const struct worker *w)
{
    return w->cmd_worker->tracking->t;
}

/* ---- broadcasting (tracking_prefix.c) ---- */

void prefixes_changed(struct tracking *t, uint64_t writer, struct slice name); /* any thread; the key's shard locked */
/* false: the client has it already. */
bool prefix_add(struct tracker *tr, struct slice prefix);
void prefixes_clear(struct tracker *tr);
struct slice prefix_name(const struct list *in_client);
size_t prefix_count(const struct tracker *tr);
void prefixes_deliver(struct worker *w, const struct session *within);

/* ---- modes ---- */
void tracking_set(struct session *s, unsigned mode, uint64_t redirect);
bool tracking_client_exists(struct tracking *t, uint64_t id);
/* Is what the session reads now to be noted? Not in broadcasting mode, nor where OPTIN or OPTOUT say no. */
bool tracking_wanted(const struct session *s);

/* ---- with an upstream (tracking_upstream.c) ---- */
void tracking_note(struct worker *w, struct slice name, uint64_t id); /* a client has read it, or is about to */
void tracking_encode(struct buf *out, struct slice name);             /* a message's array of one name */
bool tracking_upstream_allows(struct call *c, unsigned mode);         /* false: the error was replied */
/* The client is told of `name` (NULL: of all) now; its lock is held. */
void passing_told_locked(const struct tracker *tr, const struct slice *name);
void passing_answered(struct session *s); /* there is one; the request that it belongs to is answered */
void passing_session_gone(struct session *s);

#endif
