#include <stdlib.h>
#include <string.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "upstream_priv.h"

#define PIN_IDLE_MAX 16   /* clean connections kept per upstream: a new one for each MULTI costs the upstream */
#define PIN_IDLE_MS 10000 /* and for how long */

struct upstream_pin {
    struct link ln;
    struct upstream_pin_events ev;
    struct list idle; /* upstream->idle_pins */
    int64_t idle_until_ms;
    int db;
    enum upstream_pin_kind kind;
    bool is_idle; /* belongs to nobody */
    bool lost;
    bool tainted; /* may speak unasked without our count of subscriptions: not for the next client */
    long long subscribed, subscribed_shards; /* as the upstream counts them */
    int channels, patterns;
    int confirmations;          /* of a subscribe that was answered already */
    struct upstream_auth *auth; /* a client's own, wiped once it was used; NULL: the upstream's */
};

static const struct link_ops pin_ops;

static struct upstream_pin *pin_of(struct link *ln)
{
    return LIST_ENTRY(ln, struct upstream_pin, ln);
}

/* ---- subscriptions -------------------------------------------------------------------- */

enum confirmation { CONF_NONE, CONF_SUB, CONF_UNSUB, CONF_PSUB, CONF_PUNSUB, CONF_SSUB, CONF_SUNSUB, CONF_KINDS };

static const char *const confirmation_names[CONF_KINDS] = {
    "", "subscribe", "unsubscribe", "psubscribe", "punsubscribe", "ssubscribe", "sunsubscribe",
};

static enum confirmation confirmation_named(struct slice name)
{
    for (int i = 1; i < CONF_KINDS; i++)
        if (slice_is(name, confirmation_names[i]))
            return (enum confirmation)i;
    return CONF_NONE;
}

/* What may be a message or a confirmation: an array, or in RESP3 a push. */
struct notice {
    bool push; /* nobody's answer */
    int elements;
    struct slice name;
    int64_t total; /* of a confirmation */
};

static bool notice_view(struct slice raw, struct notice *out)
{
    struct reply_view v;
    if (!reply_view(&raw, &v) || (v.type != '*' && v.type != '>'))
        return false;
    *out = (struct notice){.push = v.type == '>', .elements = (int)v.integer};
    if ((v.integer != 3 && v.integer != 4) || !reply_view(&raw, &v) || v.type != '$')
        return out->push;
    out->name = v.text;
    struct reply_view last;
    if (reply_view(&raw, &v) && (v.type == '$' || v.type == '_') && reply_view(&raw, &last) && last.type == ':')
        out->total = last.integer;
    else
        out->total = -1;
    return true;
}

static enum confirmation confirmation_kind(const struct notice *n)
{
    return n->elements == 3 && n->name.len && n->total >= 0 ? confirmation_named(n->name) : CONF_NONE;
}

static bool is_message(const struct notice *n)
{
    if (n->push)
        return true;
    if (n->elements == 3)
        return slice_is(n->name, "message") || slice_is(n->name, "smessage");
    return n->elements == 4 && slice_is(n->name, "pmessage");
}

/* How many confirmations a command brings: one for each name; without names one for each
 * subscription of its kind, but at least one. */
static int confirmations_expected(const struct upstream_pin *pin, const struct slot *s, enum confirmation kind)
{
    if (s->subscribes > 0)
        return s->subscribes;
    int have = kind == CONF_UNSUB ? pin->channels : kind == CONF_PUNSUB ? pin->patterns : (int)pin->subscribed_shards;
    return have > 1 ? have : 1;
}

static void subscriptions_count(struct upstream_pin *pin, enum confirmation kind, long long total)
{
    int step = total > pin->subscribed ? 1 : total < pin->subscribed ? -1 : 0;
    switch (kind) {
    case CONF_SUB:
    case CONF_UNSUB: pin->channels += step; break;
    case CONF_PSUB:
    case CONF_PUNSUB: pin->patterns += step; break;
    case CONF_SSUB:
    case CONF_SUNSUB: pin->subscribed_shards = total; return;
    case CONF_NONE:
    case CONF_KINDS: return;
    }
    pin->subscribed = total;
}

static bool pin_deliver(struct upstream_pin *pin, struct slice raw)
{
    if (pin->ev.push)
        pin->ev.push(pin->ev.arg, raw);
    return true;
}

/* `r`: the reply when it may be a notice, or NULL. */
static bool pin_sort(struct upstream_pin *pin, struct slot *s, const struct notice *r, struct slice raw)
{
    enum confirmation kind = r ? confirmation_kind(r) : CONF_NONE;
    if (kind && pin->confirmations) {
        pin->confirmations--;
        subscriptions_count(pin, kind, r->total);
        return pin_deliver(pin, raw);
    }
    if (r && !kind && (r->push || pin->subscribed || pin->subscribed_shards || pin->tainted) && is_message(r))
        return pin_deliver(pin, raw);
    if (!s) {
        pin->tainted = true;
        if (kind)
            subscriptions_count(pin, kind, r->total);
        return pin_deliver(pin, raw);
    }
    if (s->select_first)
        return false;
    if (s->subscribes && kind) {
        pin->confirmations = confirmations_expected(pin, s, kind) - 1;
        subscriptions_count(pin, kind, r->total);
    } else if (s->subscribes && raw.ptr[0] == '+') {
        pin->tainted = true; /* QUEUED: EXEC subscribes it, and its reply is not looked into */
    }
    return false;
}

static bool pin_push(struct link *ln, struct slice raw)
{
    struct upstream_pin *pin = pin_of(ln);
    struct slot *s = list_empty(&ln->sent) ? NULL : LIST_ENTRY(ln->sent.next, struct slot, queue);
    struct notice n;
    if (raw.ptr[0] == '>')
        return pin_sort(pin, s, notice_view(raw, &n) ? &n : NULL, raw);
    if (s && !s->subscribes && !pin->subscribed && !pin->subscribed_shards && !pin->confirmations && !pin->tainted)
        return false; /* an answer, whatever it looks like */
    return pin_sort(pin, s, notice_view(raw, &n) ? &n : NULL, raw);
}

/* ---- the connection --------------------------------------------------------------------- */

static void pin_greet(struct link *ln)
{
    struct upstream_auth *auth = pin_of(ln)->auth;
    if (!upstream_greet_auth(ln, auth))
        return;
    upstream_greet_hello(ln);
    upstream_greet_name(ln);
    if (auth)
        explicit_bzero(auth, sizeof(*auth)); /* a pin connects once */
}

/* What the upstream says is the answer to all that waits, and the connection of no use. */
static bool pin_refused(struct link *ln, const char *what, const redisReply *r)
{
    struct buf raw;
    buf_init(&raw, MEM_CLIENT);
    buf_printf(&raw, "-%s%s\r\n", what, r->str);
    link_refuse(ln, -1, buf_slice(&raw));
    buf_deinit(&raw);
    link_fail(ln, r->str); /* the callbacks may have ended it */
    return false;
}

static bool pin_greeted(struct link *ln, enum greeting_step step, const redisReply *r)
{
    if (step == GREET_HELLO && r->type == REDIS_REPLY_ERROR && strncmp(r->str, "NOAUTH", 6) != 0)
        return pin_refused(ln, "ERR the upstream does not speak RESP3: ", r);
    /* A client's own connection: what its user may not do is the client's to hear, not ours. */
    if (pin_of(ln)->auth && r->type == REDIS_REPLY_ERROR && (step == GREET_AUTH || step == GREET_HELLO))
        return pin_refused(ln, "", r);
    if (pin_of(ln)->auth)
        return true;
    return upstream_greeted_basic(ln, step, r);
}

void pin_free_orphan(struct link *ln)
{
    struct upstream_pin *pin = pin_of(ln);
    link_deinit(ln);
    if (pin->auth)
        explicit_bzero(pin->auth, sizeof(*pin->auth));
    mem_free(MEM_OTHER, pin->auth);
    mem_free(MEM_OTHER, pin);
}

/* Out of all lists; the memory goes when the link is no longer on the stack. */
static void pin_drop(struct upstream_pin *pin)
{
    struct link *ln = &pin->ln;
    if (pin->is_idle)
        ln->up->nidle_pins--;
    list_remove(&pin->idle);
    list_remove(&ln->all);
    ln->orphan = true;
    link_enter(ln);
    link_leave(ln);
}

static void pin_lost(struct link *ln, const char *why)
{
    struct upstream_pin *pin = pin_of(ln);
    (void)why;
    pin->lost = true;
    if (pin->is_idle)
        pin_drop(pin);
    else if (pin->ev.lost)
        pin->ev.lost(pin->ev.arg);
}

static const struct link_ops pin_ops = {
    .name = "pin",
    .greet = pin_greet,
    .greeted = pin_greeted,
    .lost = pin_lost,
    .push = pin_push,
};

/* ---- idle pins -------------------------------------------------------------------------- */

static bool pin_can_rest(const struct upstream_pin *pin)
{
    const struct link *ln = &pin->ln;
    const struct upstream *up = ln->up;
    return !up->destroyed && !pin->auth && ln->state == LINK_READY && !ln->queued && !pin->lost && !pin->tainted &&
           !pin->subscribed && !pin->subscribed_shards && !pin->confirmations && up->nidle_pins < PIN_IDLE_MAX &&
           up->npins[UPSTREAM_PIN_WORK] + up->nidle_pins < up->opt.pins_max;
}

/* RESET ends transactions, watches and names, and forgets who we are. */
static void pin_rest(struct upstream_pin *pin)
{
    struct upstream *up = pin->ln.up;
    struct slice argv[] = {SLICE_LIT("RESET")};
    pin->is_idle = true;
    pin->idle_until_ms = clock_mono_ms() + PIN_IDLE_MS;
    list_push_front(&up->idle_pins, &pin->idle);
    up->nidle_pins++;
    upstream_wake(up, pin->idle_until_ms);
    pin->ln.state = LINK_GREETING;
    pin->ln.db = 0;
    link_enter(&pin->ln);
    link_greet(&pin->ln, GREET_RESET, 1, argv);
    pin_greet(&pin->ln); /* back to its protocol */
    link_leave(&pin->ln);
}

static void pin_close(struct upstream_pin *pin)
{
    link_cancel(&pin->ln);
    pin_drop(pin);
}

static struct upstream_pin *pin_oldest_idle(const struct upstream *up)
{
    return list_empty(&up->idle_pins) ? NULL : LIST_ENTRY(up->idle_pins.prev, struct upstream_pin, idle);
}

void pins_tick(struct upstream *up, int64_t now_ms)
{
    struct upstream_pin *pin;
    while ((pin = pin_oldest_idle(up)) && pin->idle_until_ms <= now_ms)
        pin_close(pin);
}

int64_t pins_next_due(const struct upstream *up)
{
    const struct upstream_pin *pin = pin_oldest_idle(up);
    return pin ? pin->idle_until_ms : DUE_NEVER;
}

void pins_cancel_all(struct upstream *up)
{
    struct upstream_pin *idle;
    while ((idle = pin_oldest_idle(up)))
        pin_close(idle);
    /* Callbacks may destroy any pin: take one at a time, through a list that pins leave too. */
    list_splice(&up->ticking, &up->links);
    struct list *l;
    while ((l = list_pop_front(&up->ticking))) {
        struct link *ln = LIST_ENTRY(l, struct link, all);
        list_push_back(&up->links, l);
        if (ln->ops != &pin_ops)
            continue;
        link_enter(ln);
        link_cancel(ln);
        if (!ln->orphan && !pin_of(ln)->lost)
            pin_lost(ln, "");
        link_leave(ln);
    }
}

/* ---- what the layer above asks -------------------------------------------------------------- */

static struct upstream_pin *pin_take_idle(struct upstream *up, int proto)
{
    for (struct list *l = up->idle_pins.next; l != &up->idle_pins; l = l->next) {
        struct upstream_pin *pin = LIST_ENTRY(l, struct upstream_pin, idle);
        if (pin->ln.proto != proto)
            continue;
        list_remove(&pin->idle);
        up->nidle_pins--;
        pin->is_idle = false;
        return pin;
    }
    return NULL;
}

static void pin_count(struct upstream *up, enum upstream_pin_kind kind, int n)
{
    up->npins[kind] += (unsigned)n;
    atomic_store_explicit(&up->st_pins[kind], up->npins[kind], memory_order_relaxed);
}

struct upstream_pin *upstream_pin_create(struct upstream *up, enum upstream_pin_kind kind, int proto, int db,
                                         const struct upstream_pin_events *ev, const struct upstream_auth *auth)
{
    unsigned max = kind == UPSTREAM_PIN_PUBSUB ? up->opt.subscriptions_max : up->opt.pins_max;
    CHECK(proto == 2 || proto == 3);
    if (up->destroyed || up->npins[kind] >= max)
        return NULL;
    struct upstream_pin *pin = auth ? NULL : pin_take_idle(up, proto);
    if (!pin) {
        pin = mem_calloc(MEM_OTHER, sizeof(*pin));
        list_init(&pin->idle);
        link_init(&pin->ln, up, &pin_ops);
        pin->ln.proto = proto;
    }
    pin->kind = kind;
    if (auth) {
        pin->auth = mem_alloc(MEM_OTHER, sizeof(*auth));
        *pin->auth = *auth;
    }
    pin->ev = *ev;
    pin->db = db;
    pin_count(up, kind, 1);
    return pin;
}

void upstream_pin_call(struct upstream_pin *pin, struct upstream_call *c, int64_t wait_ms, int argc,
                       const struct slice *argv)
{
    struct link *ln = &pin->ln;
    struct upstream *up = ln->up;
    CHECK(argc > 0);
    UP_COUNT(up, calls, 1);
    enum confirmation kind = confirmation_named(argv[0]);
    /* Once its database is selected the connection's is the client's own affair. */
    struct slot *s = slot_new(SLOT_CALL, pin->db);
    s->u.call = c;
    s->wait_ms = wait_ms;
    if (kind)
        s->subscribes = argc > 1 ? argc - 1 : -1;
    if (up->destroyed || pin->lost || link_full(ln) || breaker_refuses(up)) {
        slot_fail(ln, s, up->destroyed ? ST_CANCELLED : ST_UNAVAILABLE);
        slot_free(s);
        return;
    }
    if (ln->state == LINK_CLOSED)
        link_open(ln);
    link_submit(ln, s, link_command(ln, argc, argv));
}

void upstream_pin_destroy(struct upstream_pin *pin)
{
    struct link *ln = &pin->ln;
    struct upstream *up = ln->up;
    pin->ev = (struct upstream_pin_events){0};
    pin_count(up, pin->kind, -1);
    if (pin_can_rest(pin)) {
        pin_rest(pin);
        return;
    }
    pin->lost = true;
    link_cancel(ln);
    pin_drop(pin);
    upstream_release(up);
}
