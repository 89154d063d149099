#include "loadgen.h"

#ifdef __linux__
#include <sys/timerfd.h>
#include <unistd.h>

#include "tiercel/check.h"

/* libuv's timers and epoll's timeout count milliseconds. Setting the timer anew also takes back that it is readable. */
static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct pace *p = poll->data;
    (void)events;
    if (status == 0)
        p->fn(p->arg);
}

void pace_init(struct pace *p, uv_loop_t *loop, void (*fn)(void *arg), void *arg)
{
    p->fn = fn;
    p->arg = arg;
    p->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    CHECK(p->fd >= 0 && uv_poll_init(loop, &p->poll, p->fd) == 0);
    p->poll.data = p;
    CHECK(uv_poll_start(&p->poll, UV_READABLE, on_poll) == 0);
}

void pace_at(struct pace *p, uint64_t ns)
{
    struct itimerspec when = {.it_value = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)}};
    CHECK(timerfd_settime(p->fd, TFD_TIMER_ABSTIME, &when, NULL) == 0);
}

static void on_close(uv_handle_t *handle)
{
    struct pace *p = handle->data;
    close(p->fd);
}

void pace_close(struct pace *p)
{
    uv_close((uv_handle_t *)&p->poll, on_close);
}

#else

static void on_timer(uv_timer_t *timer)
{
    struct pace *p = timer->data;
    p->fn(p->arg);
}

void pace_init(struct pace *p, uv_loop_t *loop, void (*fn)(void *arg), void *arg)
{
    p->fn = fn;
    p->arg = arg;
    uv_timer_init(loop, &p->timer);
    p->timer.data = p;
}

void pace_at(struct pace *p, uint64_t ns)
{
    uint64_t now = now_ns();
    uv_timer_start(&p->timer, on_timer, ns > now ? (ns - now) / 1000000 : 0, 0);
}

void pace_close(struct pace *p)
{
    uv_close((uv_handle_t *)&p->timer, NULL);
}

#endif
