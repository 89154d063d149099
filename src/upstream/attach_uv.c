/* All that this module needs of libuv. A handle's memory belongs to this file and goes in
 * its close callback, so that an owner may forget it at once. */
#include <stdio.h>

#include <netdb.h>
#include <uv.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "upstream_priv.h"

struct attach_poll {
    uv_poll_t handle;
    int events;
    bool closing;
    void (*fn)(void *arg, int events, bool failed);
    void *arg;
    attach_closed_fn closed;
    void *closed_arg;
};

static void poll_closed(uv_handle_t *h)
{
    struct attach_poll *p = h->data;
    if (p->closed)
        p->closed(p->closed_arg);
    mem_free(MEM_OTHER, p);
}

static void poll_ready(uv_poll_t *h, int status, int events)
{
    struct attach_poll *p = h->data;
    if (p->closing)
        return;
    if (status < 0)
        p->events = 0; /* libuv has stopped watching */
    int ready = (events & UV_READABLE ? ATTACH_READ : 0) | (events & UV_WRITABLE ? ATTACH_WRITE : 0);
    p->fn(p->arg, ready, status < 0);
}

struct attach_poll *attach_poll_open(struct uv_loop_s *loop, int fd, void (*fn)(void *arg, int events, bool failed),
                                     void *arg, attach_closed_fn closed, void *closed_arg)
{
    struct attach_poll *p = mem_calloc(MEM_OTHER, sizeof(*p));
    if (uv_poll_init(loop, &p->handle, fd) != 0) {
        mem_free(MEM_OTHER, p);
        return NULL;
    }
    p->handle.data = p;
    p->fn = fn;
    p->arg = arg;
    p->closed = closed;
    p->closed_arg = closed_arg;
    return p;
}

void attach_poll_set(struct attach_poll *p, int events)
{
    if (p->closing || p->events == events)
        return;
    p->events = events;
    if (!events) {
        uv_poll_stop(&p->handle);
        return;
    }
    int want = (events & ATTACH_READ ? UV_READABLE : 0) | (events & ATTACH_WRITE ? UV_WRITABLE : 0);
    CHECK(uv_poll_start(&p->handle, want, poll_ready) == 0);
}

void attach_poll_close(struct attach_poll *p)
{
    p->closing = true;
    uv_close((uv_handle_t *)&p->handle, poll_closed);
}

struct attach_timer {
    uv_timer_t handle;
    void (*fn)(void *arg);
    void *arg;
    attach_closed_fn closed;
};

static void timer_fired(uv_timer_t *h)
{
    struct attach_timer *t = h->data;
    t->fn(t->arg);
}

static void timer_closed(uv_handle_t *h)
{
    struct attach_timer *t = h->data;
    t->closed(t->arg);
    mem_free(MEM_OTHER, t);
}

struct attach_timer *attach_timer_open(struct uv_loop_s *loop, void (*fn)(void *arg), void *arg,
                                       attach_closed_fn closed)
{
    struct attach_timer *t = mem_calloc(MEM_OTHER, sizeof(*t));
    CHECK(uv_timer_init(loop, &t->handle) == 0);
    t->handle.data = t;
    t->fn = fn;
    t->arg = arg;
    t->closed = closed;
    return t;
}

void attach_timer_set(struct attach_timer *t, int64_t delay_ms)
{
    uv_update_time(t->handle.loop); /* or a long callback before this one would make it early */
    CHECK(uv_timer_start(&t->handle, timer_fired, delay_ms > 0 ? (uint64_t)delay_ms : 0, 0) == 0);
}

void attach_timer_close(struct attach_timer *t)
{
    uv_close((uv_handle_t *)&t->handle, timer_closed);
}

struct attach_idle {
    uv_prepare_t handle;
    void (*fn)(void *arg);
    void *arg;
    attach_closed_fn closed;
};

static void idle_fired(uv_prepare_t *h)
{
    struct attach_idle *t = h->data;
    t->fn(t->arg);
}

static void idle_closed(uv_handle_t *h)
{
    struct attach_idle *t = h->data;
    t->closed(t->arg);
    mem_free(MEM_OTHER, t);
}

struct attach_idle *attach_idle_open(struct uv_loop_s *loop, void (*fn)(void *arg), void *arg, attach_closed_fn closed)
{
    struct attach_idle *t = mem_calloc(MEM_OTHER, sizeof(*t));
    CHECK(uv_prepare_init(loop, &t->handle) == 0);
    t->handle.data = t;
    t->fn = fn;
    t->arg = arg;
    t->closed = closed;
    CHECK(uv_prepare_start(&t->handle, idle_fired) == 0);
    return t;
}

void attach_idle_close(struct attach_idle *t)
{
    uv_close((uv_handle_t *)&t->handle, idle_closed);
}

struct attach_lookup {
    uv_getaddrinfo_t req;
    attach_lookup_fn fn; /* NULL: cancelled */
    void *arg;
};

static void lookup_done(uv_getaddrinfo_t *req, int status, struct addrinfo *res)
{
    struct attach_lookup *l = req->data;
    struct attach_addrs addrs = {0};
    for (struct addrinfo *a = res; a && addrs.n < ATTACH_ADDRS_MAX; a = a->ai_next) {
        /* Numeric only: asks no server. Keeps an IPv6 scope, which inet_ntop() would drop. */
        if (getnameinfo(a->ai_addr, a->ai_addrlen, addrs.text[addrs.n], ATTACH_ADDR_TEXT, NULL, 0, NI_NUMERICHOST) == 0)
            addrs.n++;
    }
    if (res)
        uv_freeaddrinfo(res);
    if (l->fn)
        l->fn(l->arg, &addrs, status ? uv_strerror(status) : addrs.n ? NULL : "no address");
    mem_free(MEM_OTHER, l);
}

struct attach_lookup *attach_lookup_start(struct uv_loop_s *loop, const char *host, attach_lookup_fn fn, void *arg)
{
    struct attach_lookup *l = mem_calloc(MEM_OTHER, sizeof(*l));
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    l->req.data = l;
    l->fn = fn;
    l->arg = arg;
    if (uv_getaddrinfo(loop, &l->req, lookup_done, host, NULL, &hints) != 0) {
        mem_free(MEM_OTHER, l);
        return NULL;
    }
    return l;
}

void attach_lookup_cancel(struct attach_lookup *l)
{
    l->fn = NULL;
    uv_cancel((uv_req_t *)&l->req); /* fails when it is already running: then lookup_done() frees it later */
}
