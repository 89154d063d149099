#include <arpa/inet.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "tiercel/resp.h"
#include "upstream_priv.h"

#define ADDRS_KEEP_MS 5000 /* pins that connect one after another ask the resolver once */
#define INVALIDATE_CHANNEL "__redis__:invalidate"

/* ---- small things ------------------------------------------------------------------- */

static __attribute__((format(printf, 2, 3))) void note(struct upstream *up, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (up->ev.notice)
        up->ev.notice(up->ev.arg, text);
}

void upstream_wake(struct upstream *up, int64_t at_ms)
{
    if (up->destroyed || at_ms >= up->timer_at_ms)
        return;
    up->timer_at_ms = at_ms;
    attach_timer_set(up->timer, at_ms - clock_mono_ms());
}

static int64_t backoff(struct upstream *up, unsigned failures)
{
    int64_t delay = up->opt.backoff_min_ms;
    for (unsigned i = 1; i < failures && delay < up->opt.backoff_max_ms; i++)
        delay *= 2;
    if (delay > up->opt.backoff_max_ms)
        delay = up->opt.backoff_max_ms;
    return delay / 2 + (int64_t)(rng_next(&up->rng) % (uint64_t)(delay / 2 + 1));
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void coherence_set(struct upstream *up)
{
    if (up->generation)
        snprintf(up->coherence, sizeof(up->coherence), "tracking");
    else
        snprintf(up->coherence, sizeof(up->coherence), "none: %s", up->refusal[0] ? up->refusal : "not connected");
}

static void state_set(struct upstream *up)
{
    enum upstream_state was = up->state;
    bool is_up = up->fetch.state == LINK_READY && up->write.state == LINK_READY;
    if (is_up)
        up->state = UPSTREAM_UP;
    else if (was == UPSTREAM_UP)
        up->state = UPSTREAM_DOWN;
    if (up->state != UPSTREAM_UP || was == UPSTREAM_UP)
        return;
    up->fetch.told[0] = up->inval.told[0] = up->write.told[0] = 0;
    note(up, "upstream %s: up, coherence %s", up->name, up->coherence);
}

/* ---- addresses -------------------------------------------------------------------------- */

static void addresses_here(void *arg, const struct attach_addrs *addrs, const char *error)
{
    struct upstream *up = arg;
    char text[160] = "";
    up->lookup = NULL;
    if (error) {
        snprintf(text, sizeof(text), "%.80s: %s", up->opt.host, error);
    } else {
        up->addrs = *addrs;
        up->addrs_ms = clock_mono_ms();
        up->addr_good = 0;
    }
    for (struct list *l = up->links.next; l != &up->links; l = l->next) {
        struct link *ln = LIST_ENTRY(l, struct link, all);
        if (ln->state == LINK_RESOLVING)
            link_addresses_here(ln, error ? text : NULL);
    }
}

/* redisConnect*() would look the name up itself, and block the loop meanwhile. */
void upstream_resolve(struct upstream *up, struct link *ln)
{
    struct in_addr v4;
    struct in6_addr v6;
    bool numeric = inet_pton(AF_INET, up->opt.host, &v4) == 1 || inet_pton(AF_INET6, up->opt.host, &v6) == 1;
    if (numeric) {
        up->addrs.n = 1;
        snprintf(up->addrs.text[0], sizeof(up->addrs.text[0]), "%.60s", up->opt.host);
        link_addresses_here(ln, NULL);
    } else if (up->addrs_ms && clock_mono_ms() - up->addrs_ms < ADDRS_KEEP_MS) {
        link_addresses_here(ln, NULL);
    } else if (!up->lookup) {
        up->lookup = attach_lookup_start(up->loop, up->opt.host, addresses_here, up);
        if (!up->lookup)
            link_addresses_here(ln, "the look-up of the host's address could not start");
    }
}

/* ---- greeting ---------------------------------------------------------------------------- */

void upstream_greet_auth(struct link *ln, const struct upstream_auth *auth)
{
    const struct upstream_options *opt = &ln->up->opt;
    const char *user = auth ? auth->user : opt->user, *password = auth ? auth->password : opt->password;
    struct buf *scratch = &ln->up->scratch;
    if (user[0]) {
        struct slice argv[] = {SLICE_LIT("AUTH"), slice_str(user), slice_str(password)};
        link_greet(ln, GREET_AUTH, 3, argv);
    } else if (password[0]) {
        struct slice argv[] = {SLICE_LIT("AUTH"), slice_str(password)};
        link_greet(ln, GREET_AUTH, 2, argv);
    }
    if (auth && scratch->len)
        explicit_bzero(scratch->ptr, scratch->len); /* a client's secret */
}

void upstream_greet_name(struct link *ln)
{
    char name[32];
    snprintf(name, sizeof(name), "tiercel-%s", ln->ops->name);
    struct slice argv[] = {SLICE_LIT("CLIENT"), SLICE_LIT("SETNAME"), slice_str(name)};
    link_greet(ln, GREET_NAME, 3, argv);
}

static void greet_select(struct link *ln)
{
    if (!ln->up->opt.db)
        return;
    char db[16];
    snprintf(db, sizeof(db), "%d", ln->up->opt.db);
    struct slice argv[] = {SLICE_LIT("SELECT"), slice_str(db)};
    link_greet(ln, GREET_SELECT, 2, argv);
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool upstream_greeted_basic(struct link *ln, enum greeting_step step, const redisReply *r)
{
    static const char *const names[] = {
        [GREET_AUTH] = "AUTH",
        [GREET_RESET] = "RESET",
        [GREET_SELECT] = "SELECT",
        [GREET_NAME] = "CLIENT SETNAME",
        [GREET_ID] = "CLIENT ID",
        [GREET_SUBSCRIBE] = "SUBSCRIBE",
        [GREET_TRACK] = "CLIENT TRACKING",
    };
    if (r->type != REDIS_REPLY_ERROR) {
        if (step == GREET_SELECT)
            link_know_db(ln, ln->up->opt.db);
        return true;
    }
    bool useless = step == GREET_AUTH || step == GREET_RESET || step == GREET_SELECT || starts_with(r->str, "NOAUTH") ||
                   starts_with(r->str, "ERR max number of clients");
    if (!useless)
        return true; /* CLIENT SETNAME may well be forbidden */
    char why[256];
    snprintf(why, sizeof(why), "%s: %s", names[step], r->str);
    link_fail(ln, why);
    return false;
}

/* ---- fetch and inval: the pair -------------------------------------------------------- */

static void generation_end(struct upstream *up)
{
    if (!up->generation)
        return;
    up->generation = 0;
    coherence_set(up);
    if (up->ev.generation)
        up->ev.generation(up->ev.arg, 0);
}

static void generation_begin(struct upstream *up)
{
    up->generation = up->generation_next++;
    if (!up->generation_next)
        up->generation_next = 1;
    up->watchdog_ms = clock_mono_ms() + up->opt.watchdog_ms;
    upstream_wake(up, up->watchdog_ms);
    coherence_set(up);
    if (up->ev.generation)
        up->ev.generation(up->ev.arg, up->generation);
}

/* inval first: fetch needs its id, and with both in a row there is one order of events. */
static void pair_open(struct upstream *up)
{
    up->refusal[0] = 0;
    up->pair_retry_ms = DUE_NEVER;
    coherence_set(up);
    link_open(&up->inval);
}

/* The state goes first: an event that sends something must not find the old one. */
static void down_set(struct upstream *up, struct link *ln, const char *why)
{
    snprintf(up->last_error, sizeof(up->last_error), "%s: %s", ln->ops->name, why);
    up->state = UPSTREAM_DOWN; /* also when it was never up */
}

/* Retries that fail in the same way are told once. */
static void down_note(struct upstream *up, struct link *ln, const char *why)
{
    if (up->destroyed || strcmp(ln->told, why) == 0)
        return;
    snprintf(ln->told, sizeof(ln->told), "%s", why);
    note(up, "upstream %s: down: %s: %s", up->name, ln->ops->name, why);
}

static void pair_down(struct link *ln, const char *why)
{
    struct upstream *up = ln->up;
    if (up->pair_closing)
        return;
    up->pair_closing = true;
    up->pair_failures++;
    up->pair_retry_ms = clock_mono_ms() + backoff(up, up->pair_failures);
    upstream_wake(up, up->pair_retry_ms);
    down_set(up, ln, why);
    generation_end(up);
    down_note(up, ln, why);
}

static void pair_lost(struct link *ln, const char *why)
{
    struct upstream *up = ln->up;
    struct link *other = ln == &up->fetch ? &up->inval : &up->fetch;
    if (!other->down && (other->state != LINK_CLOSED || other->queued))
        link_fail(other, why);
    up->pair_closing = false;
}

static void refuse_tracking(struct upstream *up, const char *what, const char *text)
{
    if (!up->refusal[0])
        snprintf(up->refusal, sizeof(up->refusal), "%s: %s", what, text);
}

static void inval_greet(struct link *ln)
{
    struct slice id[] = {SLICE_LIT("CLIENT"), SLICE_LIT("ID")};
    struct slice subscribe[] = {SLICE_LIT("SUBSCRIBE"), SLICE_LIT(INVALIDATE_CHANNEL)};
    upstream_greet_auth(ln, NULL);
    upstream_greet_name(ln);
    link_greet(ln, GREET_ID, 2, id);
    link_greet(ln, GREET_SUBSCRIBE, 2, subscribe);
}

static bool inval_greeted(struct link *ln, enum greeting_step step, const redisReply *r)
{
    if (!upstream_greeted_basic(ln, step, r))
        return false;
    if (step == GREET_ID && r->type == REDIS_REPLY_INTEGER)
        ln->up->inval_id = r->integer;
    else if (step == GREET_ID)
        refuse_tracking(ln->up, "CLIENT ID", r->type == REDIS_REPLY_ERROR ? r->str : "a strange reply");
    if (step == GREET_SUBSCRIBE && r->type != REDIS_REPLY_ARRAY)
        refuse_tracking(ln->up, "SUBSCRIBE", r->type == REDIS_REPLY_ERROR ? r->str : "a strange reply");
    return true;
}

static void inval_ready(struct link *ln)
{
    struct upstream *up = ln->up;
    if (up->refusal[0])
        link_cancel(ln);
    link_open(&up->fetch);
}

static void invalidate_keys(struct upstream *up, const redisReply *keys)
{
    for (size_t i = 0; i < keys->elements && !up->destroyed; i++) {
        const redisReply *key = keys->element[i];
        UP_COUNT(up, invalidations, 1);
        if (key->type == REDIS_REPLY_STRING && up->ev.invalidate)
            up->ev.invalidate(up->ev.arg, SLICE(key->str, key->len));
    }
}

static bool inval_push(struct link *ln, struct slice raw)
{
    static const char head[] = "*3\r\n$7\r\nmessage\r\n";
    struct upstream *up = ln->up;
    if (raw.len < sizeof(head) || memcmp(raw.ptr, head, sizeof(head) - 1) != 0)
        return false;
    redisReply *r = reply_parse(raw);
    const redisReply *keys = r ? r->element[2] : NULL;
    if (keys && keys->type == REDIS_REPLY_ARRAY) {
        invalidate_keys(up, keys);
    } else { /* nil: a flush. What is not understood counts as one */
        UP_COUNT(up, invalidations, 1);
        if (up->ev.invalidate_all)
            up->ev.invalidate_all(up->ev.arg);
    }
    if (r)
        freeReplyObject(r);
    return true;
}

static void fetch_greet(struct link *ln)
{
    struct upstream *up = ln->up;
    upstream_greet_auth(ln, NULL);
    greet_select(ln);
    upstream_greet_name(ln);
    if (up->inval.state != LINK_READY)
        return;
    char id[32];
    snprintf(id, sizeof(id), "%lld", up->inval_id);
    struct slice track[] = {SLICE_LIT("CLIENT"), SLICE_LIT("TRACKING"), SLICE_LIT("ON"), SLICE_LIT("REDIRECT"),
                            slice_str(id)};
    link_greet(ln, GREET_TRACK, 5, track);
}

static bool fetch_greeted(struct link *ln, enum greeting_step step, const redisReply *r)
{
    if (!upstream_greeted_basic(ln, step, r))
        return false;
    if (step != GREET_TRACK || r->type != REDIS_REPLY_ERROR)
        return true;
    if (strstr(r->str, "does not exist")) { /* inval was lost a moment ago: not a refusal */
        link_fail(ln, r->str);
        return false;
    }
    refuse_tracking(ln->up, "CLIENT TRACKING", r->str);
    return true;
}

/* What one connection found out holds for the others: they need not sit out their back-off. */
static void retry_now(struct upstream *up, int64_t *retry_ms)
{
    if (*retry_ms == DUE_NEVER)
        return;
    *retry_ms = clock_mono_ms();
    upstream_wake(up, *retry_ms);
}

static void fetch_ready(struct link *ln)
{
    struct upstream *up = ln->up;
    up->pair_failures = 0;
    retry_now(up, &up->write_retry_ms);
    if (up->refusal[0]) {
        link_cancel(&up->inval);
        coherence_set(up);
    } else {
        generation_begin(up);
    }
    if (!up->destroyed)
        state_set(up);
}

/* ---- write ---------------------------------------------------------------------------- */

static void write_greet(struct link *ln)
{
    upstream_greet_auth(ln, NULL);
    greet_select(ln);
    upstream_greet_name(ln);
}

static void write_ready(struct link *ln)
{
    ln->up->write_failures = 0;
    retry_now(ln->up, &ln->up->pair_retry_ms);
    state_set(ln->up);
}

static void write_down(struct link *ln, const char *why)
{
    struct upstream *up = ln->up;
    up->write_failures++;
    up->write_retry_ms = clock_mono_ms() + backoff(up, up->write_failures);
    upstream_wake(up, up->write_retry_ms);
    down_set(up, ln, why);
    down_note(up, ln, why);
}

static void write_lost(struct link *ln, const char *why)
{
    (void)ln;
    (void)why;
}

static const struct link_ops fetch_ops = {
    .name = "fetch",
    .greet = fetch_greet,
    .greeted = fetch_greeted,
    .ready = fetch_ready,
    .down = pair_down,
    .lost = pair_lost,
};
static const struct link_ops inval_ops = {
    .name = "inval",
    .greet = inval_greet,
    .greeted = inval_greeted,
    .ready = inval_ready,
    .down = pair_down,
    .lost = pair_lost,
    .push = inval_push,
};
static const struct link_ops write_ops = {
    .name = "write",
    .greet = write_greet,
    .greeted = upstream_greeted_basic,
    .ready = write_ready,
    .down = write_down,
    .lost = write_lost,
};

/* ---- time ------------------------------------------------------------------------------ */

static void ping(struct link *ln)
{
    struct slice argv[] = {SLICE_LIT("PING")};
    link_submit(ln, slot_new(SLOT_PING, -1), link_command(ln, 1, argv));
}

/* PING on both. An idle fetch connection that the upstream has forgotten (it rebooted, a
 * firewall cut in) would be invalidated no more, and nothing else would tell. */
static void watchdog(struct upstream *up, int64_t now_ms)
{
    if (!up->generation || up->watchdog_ms > now_ms)
        return;
    up->watchdog_ms = now_ms + up->opt.watchdog_ms;
    ping(&up->inval);
    ping(&up->fetch);
}

static void reconnect(struct upstream *up, int64_t now_ms)
{
    if (up->pair_retry_ms <= now_ms) {
        UP_COUNT(up, reconnects, 1);
        pair_open(up);
    }
    if (up->write_retry_ms <= now_ms) {
        UP_COUNT(up, reconnects, 1);
        up->write_retry_ms = DUE_NEVER;
        link_open(&up->write);
    }
}

static void timer_fired(void *arg)
{
    struct upstream *up = arg;
    int64_t now_ms = clock_mono_ms();
    struct list *l;
    up->timer_at_ms = DUE_NEVER;
    list_splice(&up->ticking, &up->links);
    while ((l = list_pop_front(&up->ticking))) {
        list_push_back(&up->links, l);
        link_tick(LIST_ENTRY(l, struct link, all), now_ms);
    }
    if (up->destroyed)
        return;
    pins_tick(up, now_ms);
    reconnect(up, now_ms);
    watchdog(up, now_ms);
    int64_t next = earlier(earlier(up->pair_retry_ms, up->write_retry_ms), pins_next_due(up));
    if (up->generation)
        next = earlier(next, up->watchdog_ms);
    for (l = up->links.next; l != &up->links; l = l->next)
        next = earlier(next, link_next_due(LIST_ENTRY(l, struct link, all)));
    if (next != DUE_NEVER)
        upstream_wake(up, next);
}

static void idle_fired(void *arg)
{
    struct upstream *up = arg;
    struct list *l;
    while ((l = list_pop_front(&up->dirty)))
        link_flush(LIST_ENTRY(l, struct link, dirty));
}

/* ---- life ------------------------------------------------------------------------------ */

static void options_default(struct upstream_options *opt)
{
    if (opt->timeout_ms <= 0)
        opt->timeout_ms = 1000;
    if (opt->watchdog_ms <= 0 || opt->watchdog_ms > 1000)
        opt->watchdog_ms = 1000;
    if (opt->backoff_min_ms <= 0)
        opt->backoff_min_ms = 50;
    if (opt->backoff_max_ms < opt->backoff_min_ms)
        opt->backoff_max_ms = opt->backoff_min_ms;
    if (!opt->queue_max)
        opt->queue_max = 1;
    if (!opt->first_generation)
        opt->first_generation = 1;
}

struct upstream *upstream_create(struct uv_loop_s *loop, const struct upstream_options *opt,
                                 const struct upstream_events *ev)
{
    struct upstream *up = mem_calloc(MEM_OTHER, sizeof(*up));
    up->loop = loop;
    up->opt = *opt;
    up->ev = *ev;
    options_default(&up->opt);
    up->generation_next = up->opt.first_generation;
    snprintf(up->name, sizeof(up->name), strchr(opt->host, ':') ? "[%s]:%d" : "%s:%d", opt->host, opt->port);
    random_bytes(&up->rng, sizeof(up->rng));
    list_init(&up->links);
    list_init(&up->ticking);
    list_init(&up->dirty);
    list_init(&up->idle_pins);
    buf_init(&up->scratch, MEM_CLIENT);
    up->timer_at_ms = up->pair_retry_ms = up->write_retry_ms = DUE_NEVER;
    up->timer = attach_timer_open(loop, timer_fired, up, upstream_handle_closed);
    up->idle = attach_idle_open(loop, idle_fired, up, upstream_handle_closed);
    up->handles = 2;
    link_init(&up->fetch, up, &fetch_ops);
    link_init(&up->inval, up, &inval_ops);
    link_init(&up->write, up, &write_ops);
    pair_open(up);
    link_open(&up->write);
    return up;
}

void upstream_release(struct upstream *up)
{
    if (!up->destroyed || up->handles || up->npins)
        return;
    buf_deinit(&up->scratch);
    link_deinit(&up->fetch);
    link_deinit(&up->inval);
    link_deinit(&up->write);
    mem_free(MEM_OTHER, up);
}

void upstream_handle_closed(void *arg)
{
    struct upstream *up = arg;
    up->handles--;
    upstream_release(up);
}

void upstream_destroy(struct upstream *up)
{
    CHECK(!up->destroyed);
    up->destroyed = true;
    up->generation = 0;
    if (up->lookup)
        attach_lookup_cancel(up->lookup);
    list_splice(&up->links, &up->ticking);
    link_cancel(&up->fetch);
    link_cancel(&up->inval);
    link_cancel(&up->write);
    pins_cancel_all(up);
    attach_timer_close(up->timer);
    attach_idle_close(up->idle);
}

/* ---- what the layer above asks ------------------------------------------------------------ */

enum upstream_state upstream_state(const struct upstream *up)
{
    return atomic_load_explicit(&up->state, memory_order_relaxed);
}

uint32_t upstream_generation(const struct upstream *up)
{
    return up->generation;
}

const char *upstream_coherence(const struct upstream *up)
{
    return up->coherence;
}

const char *upstream_user(const struct upstream *up, bool *logs_in)
{
    *logs_in = up->opt.password[0] != '\0';
    return up->opt.user[0] ? up->opt.user : "default";
}

const char *upstream_last_error(const struct upstream *up)
{
    return up->last_error;
}

/* ST_OK: may be submitted, now or to wait for the first connection. */
static enum status link_admit(const struct link *ln)
{
    const struct upstream *up = ln->up;
    if (up->destroyed)
        return ST_CANCELLED;
    if ((ln->state != LINK_READY && up->state != UPSTREAM_CONNECTING) || link_full(ln))
        return ST_UNAVAILABLE;
    return ST_OK;
}

void upstream_fetch(struct upstream *up, struct upstream_fetch *f)
{
    UP_COUNT(up, fetches, 1);
    f->sent_ms = clock_wall_ms();
    struct slot *s = slot_new(SLOT_FETCH, f->db);
    s->u.fetch = f;
    enum status st = link_admit(&up->fetch);
    if (st != ST_OK) {
        slot_fail(&up->fetch, s, st);
        slot_free(s);
        return;
    }
    struct slice get[] = {f->as == UPSTREAM_DUMP ? SLICE_LIT("DUMP") : SLICE_LIT("GET"), f->key},
                 pttl[] = {SLICE_LIT("PTTL"), f->key};
    link_command(&up->fetch, 2, get);
    resp_write_command(&up->scratch, 2, pttl);
    link_submit(&up->fetch, s, buf_slice(&up->scratch));
}

void upstream_fence(struct upstream *up, struct upstream_fence *f)
{
    enum status st = up->destroyed ? ST_CANCELLED : !up->generation ? ST_UNAVAILABLE : link_admit(&up->inval);
    if (st != ST_OK) {
        f->done(f, st);
        return;
    }
    struct slot *s = slot_new(SLOT_FENCE, -1);
    struct slice argv[] = {SLICE_LIT("PING")};
    s->u.fence = f;
    link_submit(&up->inval, s, link_command(&up->inval, 1, argv));
}

void upstream_call(struct upstream *up, struct upstream_call *c, enum upstream_via via, int db, int argc,
                   const struct slice *argv)
{
    struct link *ln = via == UPSTREAM_TRACKED ? &up->fetch : &up->write;
    CHECK(argc > 0 && db >= 0);
    UP_COUNT(up, calls, 1);
    struct slot *s = slot_new(SLOT_CALL, db);
    s->u.call = c;
    s->breaks_db = slice_is(argv[0], "select");
    enum status st = link_admit(ln);
    if (st != ST_OK) {
        slot_fail(ln, s, st);
        slot_free(s);
        return;
    }
    link_submit(ln, s, link_command(ln, argc, argv));
}

void upstream_get_stats(const struct upstream *up, struct upstream_stats *out)
{
#define LOAD(field) atomic_load_explicit(&up->st_##field, memory_order_relaxed)
    *out = (struct upstream_stats){
        .fetches = LOAD(fetches),
        .fetch_hits = LOAD(hits),
        .fetch_misses = LOAD(misses),
        .calls = LOAD(calls),
        .errors = LOAD(errors),
        .timeouts = LOAD(timeouts),
        .reconnects = LOAD(reconnects),
        .invalidations = LOAD(invalidations),
        .bytes_in = LOAD(bytes_in),
        .bytes_out = LOAD(bytes_out),
        .pins = LOAD(pins),
    };
#undef LOAD
}
