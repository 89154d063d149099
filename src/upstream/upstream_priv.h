#ifndef TIERCEL_UPSTREAM_PRIV_H
#define TIERCEL_UPSTREAM_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include <hiredis/hiredis.h>

#include "tiercel/upstream.h"

/* How the files fit together
 *
 *   url.c         the URL
 *   attach_uv.c   the only file that knows libuv: poll, timer, prepare, address look-up
 *   link.c        one connection: connect, greet, send, receive, deadlines, loss
 *   slot.c        one request on a link: its queue places and the ways in which it ends
 *   upstream.c    the links of a worker together: their life, back-off, what the layer above asks
 *   pair.c        fetch and inval: tracking and its fall-backs, generations, the watchdog
 *   breaker.c     the circuit breaker
 *   auth.c        credentials, and the file they may come from
 *   pin.c         connections that belong to a client
 *   reply.c       where a reply ends, and what is in it
 *
 * hiredis makes the connections, writes, and parses greetings and pub/sub messages. What is
 * only passed on is cut out of the input by reply_scan() and handed over as it came: nothing
 * is parsed or copied, nil arrays stay nil arrays, and hiredis's limit on nesting (COMMAND DOCS
 * is over it) costs nobody a connection. hiredis's asynchronous layer (async.h) is not used: it
 * hands replies out by channel name once a connection subscribed, so that UNSUBSCRIBE or PING
 * on such a connection never gets its answer (0.14), asserts on what a peer may send, and frees
 * contexts inside callbacks. Here a link has one queue of slots, and link_shut() is the only
 * place where a context ends.
 *
 * Callbacks of the layer above run inside link_read(), link_fail(), the timer and
 * upstream_destroy(). Any of them may send, destroy its pin or destroy the upstream: after
 * each, ask again (link->ctx, up->destroyed). Memory outlives them: a pin is freed when
 * no function of its link is on the stack, the upstream when all handles are closed. */

/* ---- attachment to the loop (attach_uv.c) ------------------------------------------- */

enum { ATTACH_READ = 1, ATTACH_WRITE = 2 };

struct attach_poll;
struct attach_timer;
struct attach_idle;
struct attach_lookup;

#define ATTACH_ADDRS_MAX 8
#define ATTACH_ADDR_TEXT 80
struct attach_addrs {
    int n;
    char text[ATTACH_ADDRS_MAX][ATTACH_ADDR_TEXT];
};

/* After *_close() no callback comes; `closed(arg)` is called once the handle is gone. */
typedef void (*attach_closed_fn)(void *arg);

/* `failed`: the kernel reported an error on the descriptor. NULL: the loop cannot watch fd. */
struct attach_poll *attach_poll_open(struct uv_loop_s *loop, int fd, void (*fn)(void *arg, int events, bool failed),
                                     void *arg, attach_closed_fn closed, void *closed_arg);
void attach_poll_set(struct attach_poll *p, int events);
void attach_poll_close(struct attach_poll *p);

struct attach_timer *attach_timer_open(struct uv_loop_s *loop, void (*fn)(void *arg), void *arg,
                                       attach_closed_fn closed);
void attach_timer_set(struct attach_timer *t, int64_t delay_ms);
void attach_timer_close(struct attach_timer *t);

/* Called once per loop iteration, before the loop may sleep. */
struct attach_idle *attach_idle_open(struct uv_loop_s *loop, void (*fn)(void *arg), void *arg, attach_closed_fn closed);
void attach_idle_close(struct attach_idle *t);

/* `error` is NULL or says why. NULL returned: could not start. A cancelled look-up calls
 * nothing; its memory goes when the resolver lets go. */
typedef void (*attach_lookup_fn)(void *arg, const struct attach_addrs *addrs, const char *error);
struct attach_lookup *attach_lookup_start(struct uv_loop_s *loop, const char *host, attach_lookup_fn fn, void *arg);
void attach_lookup_cancel(struct attach_lookup *l);

/* ---- replies (reply.c) ----------------------------------------------------------------- */

/* Zero-initialise. Remembers how far replies that have not arrived whole were looked at. */
struct reply_scan {
    size_t pos;
    int64_t remaining; /* items still to come; 0 = at a start */
    bool resp3;        /* its types, too. An attribute belongs to what follows it; a push is a reply of its own */
};
/* Looks for `replies` whole replies at the start of `in`, which must start at the same byte
 * until they were found. ST_OK: they are *len bytes. ST_MORE. ST_BAD: no RESP. */
enum status reply_scan(struct reply_scan *sc, struct slice in, int replies, size_t *len);

/* The head of a reply: type '+', '-', '$', '!', '=', ',', '(' or '#' with its text, ':' with its number; '$', '*'
 * and RESP3's '%', '~', '>', '|' with their count, -1 = nil; '_' is a nil, too. */
struct reply_view {
    char type;
    struct slice text;
    int64_t integer;
};
/* Takes one reply, or an array's head, off `in`. false: nothing whole is there. */
bool reply_view(struct slice *in, struct reply_view *v);
/* NULL: hiredis cannot (nested too deep). freeReplyObject() it. */
redisReply *reply_parse(struct slice raw);

/* ---- slots (slot.c) ------------------------------------------------------------------ */

enum slot_kind {
    SLOT_GREETING, /* a step before the link is ready */
    SLOT_SELECT,   /* a database that was not used yet on this connection: waits for the answer */
    SLOT_PING,     /* watchdog: pair.c looks after its deadline */
    SLOT_PROBE,    /* does it answer at all? See breaker.c */
    SLOT_FENCE,
    SLOT_FETCH,
    SLOT_CALL
};

enum greeting_step {
    GREET_AUTH,
    GREET_RESET,
    GREET_HELLO,
    GREET_SELECT,
    GREET_NAME,
    GREET_ID,
    GREET_SUBSCRIBE,
    GREET_TRACK,
    GREET_REDIR,
    GREET_UNTRACK
};

struct link;

/* One answer, or a fixed number of them, that a link owes or will owe. */
struct slot {
    struct list queue; /* link->waiting (not sent) or link->sent, in order */
    struct list due;   /* link->due while it has a deadline and was not answered */
    int64_t deadline_ms;
    enum slot_kind kind;
    enum greeting_step step;
    int db; /* -1 = whatever the connection's is */
    bool select_first;
    bool sent;
    bool answered;       /* its deadline passed: what comes is thrown away */
    int64_t wait_ms;     /* see upstream_pin_call() */
    bool breaks_db;      /* the command changes the connection's database */
    bool tracked;        /* a call whose keys the upstream is to watch */
    bool again;          /* a fence in broadcast mode: the first of its PINGs was answered */
    uint32_t generation; /* when it was sent */
    int subscribes; /* pins: confirmations to come for a (P|S)(UN)SUBSCRIBE; -1 = as many as there are, 0 = no such */
    struct buf cmd; /* while waiting */
    union {
        struct upstream_fetch *fetch;
        struct upstream_call *call;
        struct upstream_fence *fence;
    } u;
};

struct slot *slot_new(enum slot_kind kind, int db);
void slot_free(struct slot *s);
/* Tells the owner, unless it was told. Does not free. */
void slot_fail(struct link *ln, struct slot *s, enum status st);
/* As slot_fail() for a request that was refused before it was sent, with the upstream's error reply. */
void slot_refuse(struct link *ln, struct slot *s, struct slice raw);
/* The answer, as it came; to a fetch the two of GET and PTTL. */
void slot_take(struct link *ln, struct slot *s, struct slice raw);

/* ---- links (link.c) -------------------------------------------------------------------- */

enum link_state {
    LINK_CLOSED,
    LINK_FAILED, /* could not be opened; told in the timer, never inside the call that opened it */
    LINK_RESOLVING,
    LINK_CONNECTING,
    LINK_GREETING,
    LINK_READY
};

struct link_ops {
    const char *name;
    /* Connected: queue the steps with link_greet(). */
    void (*greet)(struct link *ln);
    /* An answer to one. false: link_fail() was called. */
    bool (*greeted)(struct link *ln, enum greeting_step step, const redisReply *r);
    void (*ready)(struct link *ln);
    /* Before (`down`) and after (`lost`) what was outstanding is answered. */
    void (*down)(struct link *ln, const char *why);
    void (*lost)(struct link *ln, const char *why);
    /* true: the reply answers no slot and was dealt with. */
    bool (*push)(struct link *ln, struct slice raw);
};

#define LINK_DBS_KNOWN 256

struct link {
    struct list all;   /* upstream->links */
    struct list dirty; /* upstream->dirty: has bytes to write */
    struct upstream *up;
    const struct link_ops *ops;
    int proto; /* RESP 2 or 3 */
    enum link_state state;
    redisContext *ctx;
    struct attach_poll *poll;
    struct buf in; /* received; replies in the hands of callbacks lie in it */
    struct reply_scan scan;
    int addr_tried, addr_at; /* addresses tried in this attempt; index of the current one */
    int64_t connect_due_ms;
    int64_t heard_ms;                       /* since when it owes us something without a byte received */
    int64_t ping_ms;                        /* when the watchdog's PING was queued that is not answered; 0 = none */
    int db;                                 /* of the connection, after all that was sent; -1 = unknown */
    bool selecting;                         /* a SLOT_SELECT is out: nothing else is sent */
    uint64_t db_known[LINK_DBS_KNOWN / 64]; /* databases that SELECT accepted on this connection */
    unsigned greetings;                     /* steps not yet answered */
    unsigned queued;                        /* slots in waiting and sent */
    struct list waiting, sent, due;
    struct list doomed; /* being answered by link_fail() or link_cancel() */
    bool down;          /* link_fail() is at work */
    unsigned depth;     /* functions of this link on the stack that will look at it again */
    bool orphan;        /* free it when depth is 0 (pins) */
    char why[256];      /* LINK_FAILED */
    char told[256];     /* the last reason that went to the log */
};

void link_init(struct link *ln, struct upstream *up, const struct link_ops *ops);
void link_deinit(struct link *ln);
void link_open(struct link *ln); /* calls nothing back before it returns */
/* Ends the connection: outstanding requests get ST_UNAVAILABLE, then ops->lost(). */
void link_fail(struct link *ln, const char *why);
/* Answers all that waits for database `db`, or for any (-1), with an error reply. Others that are sent
 * meanwhile are not among them. */
void link_refuse(struct link *ln, int db, struct slice raw);
/* Ends it and answers everything with ST_CANCELLED; ops are not called. */
void link_cancel(struct link *ln);
void link_greet(struct link *ln, enum greeting_step step, int argc, const struct slice *argv);
/* Owns the slot. `cmd` (whole commands) goes out at the end of this loop iteration, or when
 * the link is ready. The caller looked at queue_max. */
void link_submit(struct link *ln, struct slot *s, struct slice cmd);
bool link_full(const struct link *ln);
void link_addresses_here(struct link *ln, const char *error); /* after LINK_RESOLVING */
void link_tick(struct link *ln, int64_t now_ms);
int64_t link_next_due(const struct link *ln);
void link_flush(struct link *ln);
void link_catch_up(struct link *ln);        /* takes what the socket has already */
void link_know_db(struct link *ln, int db); /* SELECT accepted it, and it is the connection's now */
struct slice link_command(struct link *ln, int argc, const struct slice *argv); /* in up->scratch */
void link_enter(struct link *ln);
void link_leave(struct link *ln);

/* ---- the upstream (upstream.c) --------------------------------------------------------- */

#define DUE_NEVER INT64_MAX

struct upstream {
    struct uv_loop_s *loop;
    struct upstream_options opt;
    char own_user[128]; /* as connections showed it last; the file of credentials may have changed it */
    bool own_logs_in;
    struct upstream_events ev;
    char name[300]; /* host:port */
    struct attach_timer *timer;
    struct attach_idle *idle;
    int64_t timer_at_ms;
    uint64_t rng;
    unsigned handles; /* not yet closed */
    bool destroyed;

    struct list links, ticking; /* all links; those the timer has still to look at */
    struct list dirty;
    struct link fetch, inval, write, write3;

    struct attach_lookup *lookup;
    struct attach_addrs addrs;
    int64_t addrs_ms; /* when they were looked up; 0 = unknown */
    int addr_good;    /* the one that worked last */

    _Atomic(enum upstream_state) state; /* read by other threads */
    uint32_t generation, generation_next;
    long long inval_id;
    char refusal[200]; /* why there is no tracking; "" = there is, or not known yet */
    char coherence[256];
    char last_error[320];
    pthread_mutex_t text_mu; /* for `reason`, which other threads read */
    char reason[240];
    _Atomic(enum upstream_mode) mode_now; /* for them, too */
    enum upstream_mode mode, trying;      /* of the last generation; in the greeting under way */
    struct slice prefix[UPSTREAM_PREFIXES_MAX];
    unsigned nprefixes;
    struct upstream_call ask_track, ask_redir, ask_off; /* is tracking to be had in place of broadcast? */
    int asking;                                         /* how many of them have no answer yet */
    bool ask_denied;
    bool probing;                          /* inval is open to ask for a better mode than the one in force */
    int64_t probe_ms, rotate_ms;           /* when to ask; when a generation of ttl mode ends */
    uint32_t doubted;                      /* the generation that is suspended; 0 = none */
    int64_t doom_ms;                       /* when a doubted pair is given up; DUE_NEVER = not yet */
    bool pair_closing;                     /* fetch and inval are being closed together */
    int64_t pair_retry_ms, write_retry_ms; /* when to open again; DUE_NEVER = not waiting */
    unsigned pair_failures, write_failures;
    int64_t watchdog_ms; /* when to ask next */

    int64_t write3_retry_ms; /* not before */
    unsigned write3_failures;
    char resp3_refusal[200]; /* why the upstream does not speak RESP3; "" = it does, or nobody asked */
    int64_t resp3_refused_ms;

    _Atomic(enum upstream_breaker) breaker;
    unsigned breaker_failures, breaker_rounds;
    int64_t breaker_until_ms, breaker_opened_ms;
    bool breaker_probing, breaker_told;

    unsigned npins[2];     /* given out, by kind */
    struct list idle_pins; /* clean connections kept for the next pin */
    unsigned nidle_pins;

    uint8_t *tracked_bits; /* tracked.c; NULL until used */
    unsigned tracked_size, tracked_set;
    _Atomic int64_t tracked;

    struct buf scratch; /* a command being formatted */

    _Atomic uint64_t st_fetches, st_hits, st_misses, st_calls, st_errors, st_timeouts, st_reconnects, st_invalidations;
    _Atomic uint64_t st_bytes_in, st_bytes_out, st_breaker_opens, st_breaker_refused;
    _Atomic unsigned st_pins[2];
};

/* tracked.c: read on `fetch`; named by an invalidation; the table was emptied, or the connection is another one. */
void tracked_add(struct upstream *up, struct slice name);
void tracked_remove(struct upstream *up, struct slice name);
void tracked_reset(struct upstream *up);

#define UP_COUNT(up, field, n) atomic_fetch_add_explicit(&(up)->st_##field, (n), memory_order_relaxed)

void upstream_wake(struct upstream *up, int64_t at_ms); /* the timer looks no later than that */
void upstream_resolve(struct upstream *up, struct link *ln);
void upstream_handle_closed(void *up);
void upstream_release(struct upstream *up); /* frees it when nothing is left */
void upstream_note(struct upstream *up, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int64_t upstream_backoff(struct upstream *up, unsigned failures);
void upstream_state_set(struct upstream *up);
/* A link of the upstream was lost: its state; the log, where the reason is a new one. */
void upstream_down_set(struct upstream *up, struct link *ln, const char *why);
void upstream_down_note(struct upstream *up, struct link *ln, const char *why);
/* What one connection found out holds for the others: they need not sit out their back-off. */
void upstream_retry_now(struct upstream *up, int64_t *retry_ms);
/* Queues AUTH as `auth` says; NULL: as the options do. false: there are no credentials, and link_fail() was called. */
bool upstream_greet_auth(struct link *ln, const struct upstream_auth *auth);
void upstream_greet_hello(struct link *ln); /* HELLO 3 where the link speaks it */
void upstream_greet_select(struct link *ln);
void upstream_greet_name(struct link *ln);
/* For AUTH, SELECT and NOAUTH: false and link_fail() when the connection is of no use. */
bool upstream_greeted_basic(struct link *ln, enum greeting_step step, const redisReply *r);

static inline int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

extern const struct link_ops fetch_ops, inval_ops;
void pair_open(struct upstream *up);
void pair_coherence_set(struct upstream *up);
void pair_tick(struct upstream *up, int64_t now_ms);
int64_t pair_next_due(const struct upstream *up);
void pair_ponged(struct link *ln);
void pair_others_answer(struct upstream *up); /* a doubted pair that goes on saying nothing is broken, not slow */
/* The generation that vouches for what a read brought: the one under which it was sent, or 0. */
uint32_t pair_vouches(const struct upstream *up, uint32_t when_sent, struct slice key);

void breaker_failed(struct upstream *up);
void breaker_answered(struct upstream *up);
void breaker_close(struct upstream *up);
bool breaker_refuses(struct upstream *up); /* true: the request must not be sent */
bool breaker_probe(struct upstream *up);   /* false: nothing is connected */
void breaker_probed(struct link *ln, bool answered);
void breaker_tick(struct upstream *up, int64_t now_ms);
int64_t breaker_next_due(const struct upstream *up);

void pin_free_orphan(struct link *ln);
void pins_cancel_all(struct upstream *up); /* upstream_destroy() */
void pins_tick(struct upstream *up, int64_t now_ms);
int64_t pins_next_due(const struct upstream *up);

#endif
