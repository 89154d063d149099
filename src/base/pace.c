#include "tiercel/pace.h"

#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "tiercel/clock.h"

#define BACKGROUND_NICE 5
#define COPY_BYTES 32768 /* at a time; each counts as much as that many units */

void pace_thread_init(void)
{
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + BACKGROUND_NICE); /* Linux: of this thread only */
}

/* How often another thread ran on this thread's core in its stead. */
static int64_t switches(void)
{
    struct rusage ru;

    getrusage(RUSAGE_THREAD, &ru);
    return ru.ru_nvcsw + ru.ru_nivcsw;
}

static void begin_slice(struct pace *p)
{
    p->switches = switches();
    p->until_us = clock_mono_us() + PACE_SLICE_US;
    p->left = PACE_LOOK;
}

void pace_begin(struct pace *p)
{
    p->rests = 0;
    begin_slice(p);
}

void pace_look(struct pace *p)
{
    struct timespec rest = {.tv_nsec = PACE_REST_US * 1000};

    p->left = PACE_LOOK;
    if (clock_mono_us() < p->until_us)
        return;
    sched_yield(); /* who was not let in while we ran is now */
    if (switches() != p->switches && !(p->hurry && p->hurry(p->arg))) {
        p->rests++;
        nanosleep(&rest, NULL);
    }
    begin_slice(p);
}

void pace_copy(struct pace *p, void *to, const void *from, size_t len)
{
    for (size_t at = 0, n; at < len; at += n) {
        n = len - at < COPY_BYTES ? len - at : COPY_BYTES;
        memcpy((char *)to + at, (const char *)from + at, n);
        pace_spend(p, n);
    }
}
