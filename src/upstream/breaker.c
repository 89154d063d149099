/* The circuit breaker: an upstream that takes requests and does not answer them gets no more for a while,
 * so that clients hear at once what they would hear after the timeout. A PING then asks whether it is back,
 * never a client's request. Nothing here calls the layer above but breaker_tick(). */
#include "tiercel/clock.h"
#include "upstream_priv.h"

static enum upstream_breaker state_of(const struct upstream *up)
{
    return atomic_load_explicit(&up->breaker, memory_order_relaxed);
}

static void state_change(struct upstream *up, enum upstream_breaker state)
{
    atomic_store_explicit(&up->breaker, state, memory_order_relaxed);
}

static void breaker_open(struct upstream *up)
{
    int64_t now_ms = clock_mono_ms();
    if (state_of(up) == UPSTREAM_BREAKER_CLOSED) {
        UP_COUNT(up, breaker_opens, 1);
        up->breaker_opened_ms = now_ms;
    }
    state_change(up, UPSTREAM_BREAKER_OPEN);
    up->breaker_rounds++;
    up->breaker_until_ms = now_ms + upstream_backoff(up, up->breaker_rounds);
    upstream_wake(up, now_ms);
}

void breaker_close(struct upstream *up)
{
    up->breaker_failures = up->breaker_rounds = 0;
    if (state_of(up) == UPSTREAM_BREAKER_CLOSED)
        return;
    state_change(up, UPSTREAM_BREAKER_CLOSED);
    upstream_wake(up, clock_mono_ms());
}

void breaker_failed(struct upstream *up)
{
    up->breaker_failures++;
    if (state_of(up) == UPSTREAM_BREAKER_CLOSED && up->opt.breaker_failures &&
        up->breaker_failures >= up->opt.breaker_failures)
        breaker_open(up);
}

void breaker_answered(struct upstream *up)
{
    up->breaker_failures = 0; /* once it is open only the probe counts */
}

bool breaker_refuses(struct upstream *up)
{
    if (state_of(up) == UPSTREAM_BREAKER_CLOSED)
        return false;
    UP_COUNT(up, breaker_refused, 1);
    return true;
}

bool breaker_probe(struct upstream *up)
{
    struct link *ln = up->write.state == LINK_READY ? &up->write : &up->fetch;
    struct slice argv[] = {SLICE_LIT("PING")};
    if (up->breaker_probing)
        return true;
    if (ln->state != LINK_READY)
        return false;
    up->breaker_probing = true;
    link_submit(ln, slot_new(SLOT_PROBE, -1), link_command(ln, 1, argv));
    return true;
}

void breaker_probed(struct link *ln, bool answered)
{
    struct upstream *up = ln->up;
    up->breaker_probing = false;
    if (answered)
        breaker_close(up);
    else if (state_of(up) == UPSTREAM_BREAKER_HALF_OPEN)
        breaker_open(up);
    if (answered && ln == &up->write)
        pair_others_answer(up);
}

void breaker_tick(struct upstream *up, int64_t now_ms)
{
    if (state_of(up) == UPSTREAM_BREAKER_OPEN && up->breaker_until_ms <= now_ms) {
        if (breaker_probe(up))
            state_change(up, UPSTREAM_BREAKER_HALF_OPEN);
        else /* connecting: its greeting is the probe */
            up->breaker_until_ms = now_ms + up->opt.backoff_max_ms;
    }
    bool closed = state_of(up) == UPSTREAM_BREAKER_CLOSED;
    if (closed != up->breaker_told)
        return;
    up->breaker_told = !closed;
    if (closed)
        upstream_note(up, "upstream %s: it answers again; requests are sent to it again, after %lld ms", up->name,
                      (long long)(now_ms - up->breaker_opened_ms));
    else
        upstream_note(up, "upstream %s: %u requests or connections failed in a row; none is sent until it answers",
                      up->name, up->breaker_failures);
}

int64_t breaker_next_due(const struct upstream *up)
{
    return state_of(up) == UPSTREAM_BREAKER_OPEN ? up->breaker_until_ms : DUE_NEVER;
}
