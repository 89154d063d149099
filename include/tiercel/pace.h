#ifndef TIERCEL_PACE_H
#define TIERCEL_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Long work in the background, in slices with rests, so that the loops get the core that they share with it. The work
 * calls pace_spend() every few microseconds. A slice lasts PACE_SLICE_US; if the kernel let another thread run on this
 * core meanwhile, or has one that waits for it, a rest follows, so that others have the core for PACE_REST_US. Where a
 * core is free the work goes on at full speed, and where none is, it takes a quarter of one. Where others keep the core
 * for much longer than the rest, the next slice is longer, up to PACE_SLICE_MAX_US: loops have to wait for those, too, and
 * the work would come to a standstill.
 *
 * One thread owns a pace. pace_spend() may sleep: no lock that a loop could wait for may be held. NULL for a pace is
 * work that does not rest. */
#define PACE_SLICE_US 100
#define PACE_REST_US 300
#define PACE_SLICE_MAX_US 1000

struct pace {
    /* Is somebody waiting for the end of this? Then there are no rests. NULL: never. The owning thread. */
    bool (*hurry)(void *arg);
    void *arg;
    int64_t until_us, switches; /* the end of the slice; how often this thread had left its core at its start */
    int64_t left;               /* to spend until the clock is looked at */
    uint64_t rests;             /* ever; for tests */
};

/* Of the calling thread, once: lower priority than the loops, and where the kernel knows such a thing (Linux 6.12) a short
 * time slice, for what cannot be paced: large writes, memory that is given back. Never undone. */
void pace_thread_init(void);
/* A slice begins. hurry, arg: set by the caller, or 0. */
void pace_begin(struct pace *p);
/* The slice is looked at every so many units; one is about a nanosecond's work. */
#define PACE_LOOK 10000
void pace_look(struct pace *p);
static inline void pace_spend(struct pace *p, size_t units)
{
    if (p && (p->left -= (int64_t)units) <= 0)
        pace_look(p);
}
/* memcpy() of much. Paced. */
void pace_copy(struct pace *p, void *to, const void *from, size_t len);

#endif
