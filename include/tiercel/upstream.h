#ifndef TIERCEL_UPSTREAM_H
#define TIERCEL_UPSTREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/list.h"
#include "tiercel/slice.h"
#include "tiercel/status.h"

/* The upstream tier, one per worker, on the worker's loop: every function is called on that
 * thread, and every callback comes on it. A worker has
 *
 *   fetch   one tracked connection: only reads whose results we keep (DESIGN section 5), or whose keys a client
 *           of ours wants to be told of
 *   inval   the target of its invalidations (RESP2: SUBSCRIBE __redis__:invalidate, CLIENT
 *           TRACKING ON REDIRECT id on fetch). Both are watched by PINGs. Not in ttl mode
 *   write   one untracked, pipelined connection for writes and for what is passed through
 *   write3  the same in RESP3, for clients that speak it; opened when it is first needed
 *   pins    connections that belong to one client: transactions, blocking commands, pub/sub
 *
 * fetch and inval live and die together: when either is lost both are closed and the
 * *generation* ends. A copy is current only while the generation under which it was
 * fetched is. A generation is suspended while the watchdog's PING is not answered in time: for the layer
 * above it has ended, and when the upstream was only slow it begins again, with the same number. Lost connections come back with exponential back-off and jitter. Requests
 * that were sent and not answered when a connection is lost are never sent again. */

struct upstream;
struct uv_loop_s;

/* How copies are kept coherent. Where the upstream refuses what is asked for, the next that it allows
 * is in force: broadcast if prefixes are given, then ttl. What was asked for is tried again with
 * every new connection, and once a minute in ttl mode. */
enum upstream_mode {
    UPSTREAM_TRACKING,  /* the upstream tells of each key that was fetched */
    UPSTREAM_BROADCAST, /* of every change of a key with one of the prefixes; others are not kept */
    UPSTREAM_TTL,       /* of nothing: a copy is current for at most ttl_ms. No fences, no tracked calls */
    UPSTREAM_NONE       /* nothing is kept: not connected, or ttl_ms is 0 */
};
#define UPSTREAM_PREFIXES_MAX 64

struct upstream_options {
    char host[256];
    int port;
    char user[128]; /* "" = none */
    char password[512];
    int db;
    char auth_file[1024];        /* read at every connect: upstream_read_auth(). "" = none */
    int64_t timeout_ms;          /* connect, and any answer */
    int64_t watchdog_ms;         /* between PINGs; <= 1000 */
    int64_t watchdog_timeout_ms; /* of the watchdog's answers, whatever timeout_ms is */
    int64_t backoff_min_ms, backoff_max_ms;
    unsigned queue_max;                   /* requests outstanding on a connection; more: ST_UNAVAILABLE */
    unsigned pins_max, subscriptions_max; /* of UPSTREAM_PIN_WORK; of UPSTREAM_PIN_PUBSUB */
    unsigned breaker_failures;            /* in a row, and the breaker opens; 0 = never */
    enum upstream_mode coherence;         /* asked for */
    char prefixes[1024];                  /* apart by spaces, for broadcast; "" = all keys */
    int64_t ttl_ms;                       /* ttl mode; 0 = nothing is kept */
    int64_t tracked_max;                  /* names that upstream_tracked() should count well */
    uint32_t first_generation;            /* 0 = 1. Whoever replaces an upstream goes on where the old one was */
};

/* "redis://[user:pass@]host[:port][/db]"; %XX in user and pass; [v6]. */
enum status upstream_parse_url(const char *url, struct upstream_options *opt, char err[256]);

/* Prefixes apart by spaces: ST_BAD with the reason where there are too many, or one begins with another. */
enum status upstream_check_prefixes(const char *prefixes, char err[256]);
/* One line: the password; two: user and password. What the file leaves out of *auth stays. */
struct upstream_auth;
enum status upstream_read_auth(const char *path, struct upstream_auth *auth, char err[256]);

enum upstream_state {
    UPSTREAM_CONNECTING, /* never up yet */
    UPSTREAM_UP,
    UPSTREAM_DOWN /* was up, or could not be reached: being retried */
};

struct upstream_events {
    void *arg;
    /* Foreign or own writes changed it in some database. Can trail: it comes over another
     * connection than the reply of the write, or of a fetch (see upstream_fence()). */
    void (*invalidate)(void *arg, struct slice key);
    void (*invalidate_all)(void *arg); /* FLUSHDB or FLUSHALL there */
    /* generation != 0: a new one began, or one that was suspended goes on. 0: the running one ended or is
     * suspended; copies of it are suspects. A new one may begin without a 0 before it. */
    void (*generation)(void *arg, uint32_t generation);
    void (*notice)(void *arg, const char *text); /* for the log: state changes and their reasons */
};

/* Generations ascend from first_generation and are never 0. Starts connecting; calls nothing back
 * before it returns. */
struct upstream *upstream_create(struct uv_loop_s *loop, const struct upstream_options *opt,
                                 const struct upstream_events *ev);
/* Fails what is outstanding with ST_CANCELLED and closes; no event comes after that. Allowed at
 * any moment, in callbacks too. Pins that still exist get lost(). The memory goes when the
 * loop has turned until the handles are gone (uv_run() to its end, or as long as the worker
 * runs) and the last pin was destroyed; a look-up of the host's name under way keeps uv_run()
 * until the resolver gives up. */
void upstream_destroy(struct upstream *up);

enum upstream_state upstream_state(const struct upstream *up); /* any thread */
uint32_t upstream_generation(const struct upstream *up);       /* 0 = none now */
/* The mode's name, and after a colon why it is not the one that was asked for. */
const char *upstream_coherence(const struct upstream *up);
/* The mode in force (UPSTREAM_NONE: no generation), and that reason ("" = it is what was asked for). Any thread. */
enum upstream_mode upstream_get_coherence(struct upstream *up, char reason[240]);
const char *upstream_mode_name(enum upstream_mode mode);
/* Does the upstream tell when this key, once read on `fetch`, changes? */
bool upstream_covers(const struct upstream *up, struct slice key);
/* About how many keys the upstream has in its tracking table for this connection of ours; 0 where it does not track. Any
 * thread. */
int64_t upstream_tracked(const struct upstream *up);
const char *upstream_last_error(const struct upstream *up);
/* Who this server is there, "default" without a name; *logs_in: it shows a password. */
const char *upstream_user(const struct upstream *up, bool *logs_in);

/* ---- reading a key for keeping: its value and PTTL in one go, on `fetch` ---- */
enum upstream_fetch_as {
    UPSTREAM_STRING, /* by GET: the value is the string; ST_WRONGTYPE where it is none */
    UPSTREAM_DUMP    /* by DUMP, any type: the value is its payload */
};
struct upstream_fetch {
    struct list link; /* the caller's: the upstream does not use it */
    struct slice key; /* the caller's memory until done() */
    int db;
    enum upstream_fetch_as as;
    /* Exactly once. ST_OK: value and pttl_ms (-1 = no expiry, measured from sent_ms), and the
     * generation that vouches for it (0: must not be kept). ST_NOT_FOUND, with its generation
     * too. ST_WRONGTYPE: not a string. ST_TIMEOUT, ST_UNAVAILABLE (not connected), ST_CANCELLED.
     * ST_BAD: value is the upstream's error text (LOADING, NOPERM, ...). */
    void (*done)(struct upstream_fetch *f, enum status st, struct slice value, int64_t pttl_ms, uint32_t generation);
    int64_t sent_ms; /* wall time when it left; set here */
};
/* May call done() before it returns (when not connected). Deadline: timeout_ms from now. */
void upstream_fetch(struct upstream *up, struct upstream_fetch *f);

/* ---- waiting for invalidations ----
 * done(ST_OK) comes after the invalidations of all that the upstream had executed when this
 * was called. ST_UNAVAILABLE: no generation, or it ended meanwhile; ST_TIMEOUT, ST_CANCELLED. */
struct upstream_fence {
    void (*done)(struct upstream_fence *f, enum status st);
};
/* May call done() before it returns. */
void upstream_fence(struct upstream *up, struct upstream_fence *f);

/* ---- passing a command through ---- */
struct upstream_call {
    struct list link; /* the caller's: the upstream does not use it */
    /* Exactly once. `reply` is a whole reply in the protocol that was asked for, valid during the call (nil bulk and nil
     * array told apart; in RESP3 with its attributes); is_error: it starts with '-', or with '!'. ST_TIMEOUT, ST_UNAVAILABLE: reply is
     * empty; ST_TIMEOUT and a loss after sending mean that the outcome is unknown. `sent` says
     * whether it had left. */
    void (*done)(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent);
};
enum upstream_via {
    UPSTREAM_RESP2 = 2,  /* `write`: untracked */
    UPSTREAM_RESP3 = 3,  /* `write3`. An upstream that does not speak it: an error reply that says so, not sent */
    UPSTREAM_TRACKED = 4 /* `fetch`, RESP2: the upstream will tell when the keys of this read change (in broadcast
                          * mode those that it covers). ST_UNAVAILABLE where no generation says so at the answer */
};
/* In order on that connection. The arguments are copied. May call done() before it returns. When the
 * upstream refuses `db`, its error is the reply and the command is not sent. Not for commands
 * that change the connection itself: AUTH, HELLO, MULTI, SUBSCRIBE, MONITOR, CLIENT REPLY... */
void upstream_call(struct upstream *up, struct upstream_call *c, enum upstream_via via, int db, int argc,
                   const struct slice *argv);

/* ---- pinned connections ---- */
struct upstream_pin;
struct upstream_pin_events {
    void *arg;
    void (*push)(void *arg, struct slice reply); /* pub/sub messages, subscribe confirmations after the first */
    void (*lost)(void *arg);                     /* the connection is gone; destroy the pin */
};
/* NULL: the limit of its kind is reached. Connects lazily; speaks RESP2, or RESP3 with proto 3; selects `db` before the
 * first command. After lost()
 * calls get ST_UNAVAILABLE. lost() is never called inside upstream_pin_call(). */
enum upstream_pin_kind { UPSTREAM_PIN_WORK, UPSTREAM_PIN_PUBSUB }; /* counted and limited apart */
/* Who a pin is at the upstream. user "": the password alone, the default user's; both "": nobody
 * logs in, and the connection is what the upstream makes of such. */
struct upstream_auth {
    char user[128];
    char password[512];
};
/* `auth` is copied, and wiped once it was sent; NULL: the upstream's own. A pin with one begins with a new
 * connection and is never kept for another. What the upstream answers to AUTH, if it is an error, is
 * the reply (ST_OK, is_error, not sent) of all calls that wait for the connection; then it is lost. */
struct upstream_pin *upstream_pin_create(struct upstream *up, enum upstream_pin_kind kind, int proto, int db,
                                         const struct upstream_pin_events *ev, const struct upstream_auth *auth);
/* wait_ms: how long the upstream may let it wait, as a blocking command asks for, beside the deadline of any answer; 0 = not
 * at all, UPSTREAM_WAIT_EVER = no deadline. (P)SUBSCRIBE and friends: done() gets the first confirmation,
 * push() the rest. A reply that no call waits for (MONITOR) goes to push() too. */
#define UPSTREAM_WAIT_EVER (-1)
void upstream_pin_call(struct upstream_pin *pin, struct upstream_call *c, int64_t wait_ms, int argc,
                       const struct slice *argv);
/* Closes the connection, or RESETs and keeps it for the next pin when nothing is outstanding;
 * outstanding calls get ST_CANCELLED first. No call of this pin's events comes after it. */
void upstream_pin_destroy(struct upstream_pin *pin);

enum upstream_breaker { UPSTREAM_BREAKER_CLOSED, UPSTREAM_BREAKER_HALF_OPEN, UPSTREAM_BREAKER_OPEN };

struct upstream_stats {
    /* errors: answers that were errors, and requests that found no connection or lost it */
    uint64_t fetches, fetch_hits, fetch_misses, calls, errors, timeouts, reconnects, invalidations;
    uint64_t bytes_in, bytes_out;
    uint64_t breaker_opens, breaker_refused; /* how often it opened; requests that were not sent for it */
    unsigned pins, subscriptions;            /* of the two kinds */
    enum upstream_breaker breaker;
};
void upstream_get_stats(const struct upstream *up, struct upstream_stats *out); /* any thread; relaxed counters */

#endif
