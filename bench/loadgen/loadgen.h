#ifndef LOADGEN_H
#define LOADGEN_H

/* tiercel-bench: options, what a test sends, the threads that send it, the report. */
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <uv.h>

#include "hist.h"
#include "keys.h"
#include "tiercel/slice.h"
#include "trace.h"
#include "value.h"

#define NAME "tiercel-bench"
#define THREADS_MAX 256
#define CONNECTIONS_MAX 65536
#define PIPELINE_MAX 4096
#define KEY_SIZE_MAX 4096
#define REQUEST_KEYS_MAX 1024 /* keys in one request */
#define COMMANDS_MAX 16       /* commands mixed in one test */
#define TESTS_MAX 32
#define ERROR_MAX 512

struct options {
    const char *host, *socket, *password, *user;
    unsigned port, db;
    unsigned connections, threads, pipeline;
    uint64_t requests; /* 0: not limited */
    double seconds, warmup, timeout;
    double rate; /* requests a second of all threads; 0: closed loop */
    bool poisson, spin;
    enum key_order order;
    double zipf;
    uint64_t keys, first_key; /* their numbers begin with first_key */
    const char *key_prefix;
    unsigned key_size;
    struct value_sizes sizes;
    enum value_kind kind;
    double ttl_min, ttl_max; /* seconds; 0: none */
    unsigned mget_keys;
    const char *trace;
    bool fill, verify, set_on_miss, quiet;
    int progress; /* -1: if standard error is a terminal */
    uint64_t seed;
    const char *json;
    const char *tests; /* NULL: the default */
    char **argv;       /* a command of the user's */
    int argc;
};

/* Exits with a message when something is wrong, and after --help and --version. */
void options_parse(struct options *o, int argc, char **argv);
__attribute__((noreturn, format(printf, 1, 2))) void options_fail(const char *fmt, ...);

/* ---- what is sent ---- */

/* A command as a list of pieces; only those that are not TEXT differ from request to request. */
enum piece_kind {
    PIECE_TEXT,
    PIECE_KEY,    /* a key, key_size bytes, without the "$n" before it */
    PIECE_NUMBER, /* a key's number as 12 digits */
    PIECE_VALUE,  /* a whole argument: a value for the key before it */
    PIECE_TTL     /* a whole argument: milliseconds */
};

struct piece {
    enum piece_kind kind;
    size_t at, len; /* of a TEXT, in the command's text */
};

struct command {
    struct piece *piece;
    unsigned pieces, keys; /* keys: how many numbers a request needs */
    char *text;            /* of all pieces */
    unsigned stats;        /* index of the figures it counts in */
    bool reads;            /* its bulks are values of its keys, in order, and nils are misses */
};

struct mix_entry {
    unsigned command; /* index */
    uint64_t upto;    /* running sum of the weights */
};

struct test {
    char name[128];
    struct command command[COMMANDS_MAX];
    unsigned commands, entries;
    struct mix_entry entry[COMMANDS_MAX];
    char stats_name[COMMANDS_MAX][32];
    unsigned stats;
    int set, set_ttl;  /* commands that store a value for a miss or for a line of the trace, or -1 */
    int get;           /* command for a line of the trace, or -1 */
    bool is_fill;      /* every key once, whatever the options say */
    bool from_trace;   /* the trace says which commands */
    unsigned keys_max; /* most keys of one request */
    size_t request_max;
};

/* Takes the list of -t, or argv, apart; "fill" first if that is asked for. Exits on what it does not know.
 * value_max: the largest value that will be asked for. */
unsigned tests_parse(const struct options *o, uint64_t value_max, struct test *tests);
void tests_free(struct test *tests, unsigned n);

/* What all threads of a test share. */
struct plan {
    const struct options *opt;
    const struct test *test;
    const struct value_source *values;
    const struct trace *trace; /* NULL: none */
    unsigned pipeline;
    bool one_pass; /* the test ends with the last key or the end of the trace */
    struct sockaddr_storage addr;
    char target[300]; /* for messages */
    _Atomic uint64_t trace_next;
    _Atomic bool stop;      /* send nothing more */
    uv_barrier_t connected; /* threads and main; passed twice */
    uint64_t start_ns;      /* set by main between the two */
    _Atomic bool failed;
    uv_mutex_t lock; /* error, first_error, first_wrong */
    char error[ERROR_MAX];
    char first_error[ERROR_MAX]; /* error reply */
    char first_wrong[ERROR_MAX];
    _Atomic unsigned running; /* threads */
    uv_async_t *done;         /* main's loop: a thread has ended */
};

/* The first one is kept. */
void plan_fail(struct plan *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct request {
    uint64_t begin_ns; /* when it was sent, or, at a fixed rate, was to be sent */
    uint64_t *key;     /* numbers of its keys */
    uint32_t size;     /* of the value, from the trace; 0: as the options say */
    uint32_t ttl_s;    /* the same */
    uint16_t command;
    bool counts; /* it is not of the warm-up */
};

/* Writes a request; `out` has room for test->request_max bytes. Returns the bytes written. */
size_t request_write(const struct plan *p, const struct request *req, uint64_t *rng, char *out);
/* key_size bytes. */
void key_write(const struct options *o, uint64_t number, char *out);

/* ---- who sends it ---- */

struct command_stats {
    struct hist latency;
    uint64_t hits, misses, errors, wrong; /* hits and misses count keys */
};

/* Written by its thread, read by all. */
struct thread_stats {
    struct command_stats command[COMMANDS_MAX];
    struct hist send_delay; /* at a fixed rate: how late requests were sent */
    uint64_t bytes_out, bytes_in;
    uint64_t replies;  /* all of them, also during the warm-up */
    uint64_t inflight; /* requests without a reply */
    uint64_t unsent;   /* at a fixed rate: what was due and could not be sent before the end */
    uint64_t end_ns;   /* of the last reply that counts */
};

struct client; /* a thread with its connections */
struct client *client_create(struct plan *p, unsigned index);
/* Both on the main thread. Waits for the end of the thread; its figures live on until it is destroyed. */
void client_join(struct client *c);
void client_destroy(struct client *c);
/* Any thread: looks at plan->stop and plan->failed now. */
void client_wake(struct client *c);
const struct thread_stats *client_stats(const struct client *c);

/* ---- timers with the precision of the clock ---- */

struct pace {
    uv_poll_t poll;
    uv_timer_t timer; /* where there is no timerfd */
    int fd;
    void (*fn)(void *arg);
    void *arg;
};

static inline uint64_t now_ns(void)
{
    return uv_hrtime();
}

void pace_init(struct pace *p, uv_loop_t *loop, void (*fn)(void *arg), void *arg);
void pace_at(struct pace *p, uint64_t ns); /* calls fn once, then; replaces what was set before */
void pace_close(struct pace *p);

/* ---- what came of it ---- */

struct result {
    struct thread_stats total;
    double seconds;                   /* from the end of the warm-up to the last reply */
    double wall_seconds, cpu_seconds; /* of all, and what this program used of them */
    uint64_t requests, wrong;
    bool interrupted;
    char first_error[ERROR_MAX], first_wrong[ERROR_MAX];
};

struct progress {
    bool tty;
    uint64_t replies;
    struct hist now, before, since;
};

/* A line about the last `interval` seconds. */
void report_progress(struct progress *pr, const struct plan *p, struct client *const *clients, double interval);
void report_text(const struct options *o, const struct test *t, const struct result *r, FILE *out);

struct json_report;
struct json_report *json_open(const char *path, const struct options *o, const char *target);
void json_test(struct json_report *j, const struct options *o, const struct test *t, const struct result *r);
bool json_close(struct json_report *j); /* false: could not be written; errno says why */

#endif
