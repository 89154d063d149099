#ifndef TIERCEL_WARM_H
#define TIERCEL_WARM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiercel/list.h"
#include "tiercel/slice.h"
#include "tiercel/status.h"
#include "tiercel/worker.h"

/* Warming: jobs that load keys before the traffic asks for them. A job runs on the loop of the
 * worker that started it, in small slices behind the clients' work, and loads each key as a
 * request would, through tier_fault(); its names come from an argument list, a file, or the
 * upstream's SCAN. It stops by itself before it would push other keys out. Knows no sessions. */

struct tier;
struct warm;

#define WARM_ERROR_MAX 256
#define WARM_REASON_MAX 96
#define WARM_LOADS_MAX 128      /* of one job, outstanding */
#define WARM_JOBS_MAX 64        /* running at a time */
#define WARM_FINISHED_MAX 16    /* ended jobs that stay listed */
#define WARM_LINE_MAX (1 << 20) /* of a key in a file; a longer line counts as failed */
#define WARM_COUNT_MAX 10000    /* COUNT of the upstream's SCAN */
#define WARM_RATE_MAX 1000000000
#define WARM_AWAY_MS 10000 /* without an upstream for so long: the job fails */

enum warm_kind { WARM_KEYS, WARM_MATCH, WARM_FILE };

/* What to load. The slices are the caller's, and are copied by warm_start(). */
struct warm_spec {
    enum warm_kind kind;
    int nkeys;
    const struct slice *keys;
    struct slice text; /* the pattern, the path */
    int64_t count;     /* of SCAN */
    int64_t rate;      /* keys per second; 0 = no limit */
    bool wait;         /* the caller wants the reply at the end */
    bool at_start;     /* warm_start_done() speaks of it */
};

enum warm_state {
    WARM_RUNNING,
    WARM_DONE,
    WARM_CANCELLED,
    WARM_FAILED, /* the source of names failed, or the upstream stayed away */
    WARM_STOPPED /* maxmemory or tracked-keys-max */
};
const char *warm_state_name(enum warm_state state);

/* seen = loaded + skipped + failed, always. */
struct warm_status {
    uint64_t id;
    enum warm_state state;
    char reason[WARM_REASON_MAX]; /* of WARM_FAILED and WARM_STOPPED, else "" */
    uint64_t seen;
    uint64_t loaded;
    uint64_t skipped; /* resident and current already, or nowhere */
    uint64_t failed;
    uint64_t bytes; /* of memory that the loaded objects take */
    int64_t elapsed_ms;
    int64_t eta_ms; /* -1 = unknown, 0 = ended */
};

/* Before the loops run; after they ended. */
struct warm *warm_create(struct tier *t);
void warm_destroy(struct warm *wm);
/* The worker's thread, before its upstream and its mailbox go: ends its jobs. */
void warm_worker_stop(struct warm *wm, struct worker *w);

/* The arguments behind WARM: KEYS key [key ...] | MATCH pattern [COUNT n] | FILE path, each with
 * [RATE n] [WAIT] at the end. ST_BAD: *err says why. Any thread. */
enum status warm_parse(int argc, const struct slice *argv, struct warm_spec *out, char err[WARM_ERROR_MAX]);

/* Somebody on the job's worker who waits for its end: done() comes once, on that thread, unless
 * forgotten. */
struct warm_waiter {
    struct list link;
    void (*done)(struct warm_waiter *waiter, const struct warm_status *status);
};
void warm_forget(struct warm_waiter *waiter);

/* The worker's thread; never runs the job before it returns. `waiter` may be NULL.
 * ST_UNAVAILABLE: MATCH without an upstream. ST_IO: the file. ST_FULL: WARM_JOBS_MAX. */
enum status warm_start(struct warm *wm, struct worker *w, int db, const struct warm_spec *spec,
                       struct warm_waiter *waiter, uint64_t *id, char err[WARM_ERROR_MAX]);

/* `warm-on-start`: the arguments of a WARM command as one line. The worker's thread.
 * warm_start_done(): no such job runs (any more); any thread. */
enum status warm_start_line(struct warm *wm, struct worker *w, int db, const char *line, uint64_t *id,
                            char err[WARM_ERROR_MAX]);
bool warm_start_done(struct warm *wm);
/* It will run, or did: in between warm_start_done() says no. Any thread. */
void warm_expect(struct warm *wm, bool expected);

/* Any thread. */
bool warm_get(struct warm *wm, uint64_t id, struct warm_status *out);   /* id 0: the newest */
size_t warm_list(struct warm *wm, struct warm_status *out, size_t max); /* oldest first */
enum status warm_cancel(struct warm *wm, uint64_t id); /* ST_NOT_FOUND; ST_BUSY: it has ended already */

#endif
