#include "tiercel/pace.h"

#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tiercel/clock.h"

#define BACKGROUND_NICE 5
#define COPY_BYTES 32768 /* at a time; each counts as much as that many units */

/* What sched_setattr() takes, as the kernel has it in its first version; not every libc declares it. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

void pace_thread_init(void)
{
    int nice = getpriority(PRIO_PROCESS, 0) + BACKGROUND_NICE; /* Linux: of this thread only */
    struct scheduling s = {
        .size = sizeof(s), .policy = (uint32_t)sched_getscheduler(0), .nice = nice, .runtime_ns = PACE_SLICE_US * 1000};

    if (syscall(SYS_sched_setattr, 0, &s, 0) != 0)
        setpriority(PRIO_PROCESS, 0, nice);
}

/* How often another thread ran on this thread's core in its stead. */
static int64_t switches(void)
{
    struct rusage ru;

    getrusage(RUSAGE_THREAD, &ru);
    return ru.ru_nvcsw + ru.ru_nivcsw;
}

static void begin_slice(struct pace *p, int64_t slice_us)
{
    p->switches = switches();
    p->until_us = clock_mono_us() + slice_us;
    p->left = PACE_LOOK;
}

void pace_begin(struct pace *p)
{
    p->rests = 0;
    begin_slice(p, PACE_SLICE_US);
}

void pace_look(struct pace *p)
{
    int64_t end_us = clock_mono_us(), away_us = 0;

    p->left = PACE_LOOK;
    if (end_us < p->until_us)
        return;
    sched_yield(); /* who was not let in while we ran is now */
    if (switches() != p->switches && !(p->hurry && p->hurry(p->arg))) {
        struct timespec rest = {.tv_nsec = (end_us + PACE_REST_US - clock_mono_us()) * 1000};
        p->rests++;
        if (rest.tv_nsec > 0)
            nanosleep(&rest, NULL);
        away_us = clock_mono_us() - end_us;
    }
    int64_t slice_us = away_us / (PACE_REST_US / PACE_SLICE_US);
    if (slice_us < 2 * PACE_SLICE_US) /* it was about the rest that it was to be */
        slice_us = PACE_SLICE_US;
    begin_slice(p, slice_us < PACE_SLICE_MAX_US ? slice_us : PACE_SLICE_MAX_US);
}

void pace_copy(struct pace *p, void *to, const void *from, size_t len)
{
    for (size_t at = 0, n; at < len; at += n) {
        n = len - at < COPY_BYTES ? len - at : COPY_BYTES;
        memcpy((char *)to + at, (const char *)from + at, n);
        pace_spend(p, n);
    }
}
