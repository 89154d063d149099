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

#define ADDRS_KEEP_MS 5000   /* pins that connect one after another ask the resolver once */
#define RESP3_RETRY_MS 60000 /* an upstream that refused HELLO 3 is asked again so often */

/* ---- small things ------------------------------------------------------------------- */

void upstream_note(struct upstream *up, const char *fmt, ...)
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

int64_t upstream_backoff(struct upstream *up, unsigned failures)
{
    int64_t delay = up->opt.backoff_min_ms;
    for (unsigned i = 1; i < failures && delay < up->opt.backoff_max_ms; i++)
        delay *= 2;
    if (delay > up->opt.backoff_max_ms)
        delay = up->opt.backoff_max_ms;
    return delay / 2 + (int64_t)(rng_next(&up->rng) % (uint64_t)(delay / 2 + 1));
}

void upstream_state_set(struct upstream *up)
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
    upstream_note(up, "upstream %s: up, coherence %s", up->name, up->coherence);
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

void upstream_greet_name(struct link *ln)
{
    char name[32];
    snprintf(name, sizeof(name), "tiercel-%s", ln->ops->name);
    struct slice argv[] = {SLICE_LIT("CLIENT"), SLICE_LIT("SETNAME"), slice_str(name)};
    link_greet(ln, GREET_NAME, 3, argv);
}

void upstream_greet_hello(struct link *ln)
{
    struct slice argv[] = {SLICE_LIT("HELLO"), SLICE_LIT("3")};
    if (ln->proto == 3)
        link_greet(ln, GREET_HELLO, 2, argv);
}

void upstream_greet_select(struct link *ln)
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
        [GREET_HELLO] = "HELLO",
        [GREET_SELECT] = "SELECT",
        [GREET_NAME] = "CLIENT SETNAME",
        [GREET_ID] = "CLIENT ID",
        [GREET_SUBSCRIBE] = "SUBSCRIBE",
        [GREET_TRACK] = "CLIENT TRACKING",
        [GREET_REDIR] = "CLIENT GETREDIR",
        [GREET_UNTRACK] = "CLIENT TRACKING",
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

/* ---- state ------------------------------------------------------------------------------- */

/* The state goes first: an event that sends something must not find the old one. */
void upstream_down_set(struct upstream *up, struct link *ln, const char *why)
{
    snprintf(up->last_error, sizeof(up->last_error), "%s: %s", ln->ops->name, why);
    up->state = UPSTREAM_DOWN; /* also when it was never up */
}

/* Retries that fail in the same way are told once. */
void upstream_down_note(struct upstream *up, struct link *ln, const char *why)
{
    if (up->destroyed || strcmp(ln->told, why) == 0)
        return;
    snprintf(ln->told, sizeof(ln->told), "%s", why);
    upstream_note(up, "upstream %s: down: %s: %s", up->name, ln->ops->name, why);
}

void upstream_retry_now(struct upstream *up, int64_t *retry_ms)
{
    if (*retry_ms == DUE_NEVER)
        return;
    *retry_ms = clock_mono_ms();
    upstream_wake(up, *retry_ms);
}

/* ---- write ---------------------------------------------------------------------------- */

static void write_greet(struct link *ln)
{
    if (!upstream_greet_auth(ln, NULL))
        return;
    upstream_greet_hello(ln);
    upstream_greet_select(ln);
    upstream_greet_name(ln);
}

static void write_ready(struct link *ln)
{
    ln->up->write_failures = 0;
    breaker_close(ln->up);
    upstream_retry_now(ln->up, &ln->up->pair_retry_ms);
    upstream_state_set(ln->up);
}

static void write_down(struct link *ln, const char *why)
{
    struct upstream *up = ln->up;
    up->write_failures++;
    up->write_retry_ms = clock_mono_ms() + upstream_backoff(up, up->write_failures);
    upstream_wake(up, up->write_retry_ms);
    upstream_down_set(up, ln, why);
    upstream_down_note(up, ln, why);
}

static void write_lost(struct link *ln, const char *why)
{
    (void)ln;
    (void)why;
}

/* ---- write3 ----------------------------------------------------------------------------- */

static void resp3_refused(const struct upstream *up, struct buf *out)
{
    buf_printf(out, "-ERR the upstream does not speak RESP3: %s\r\n", up->resp3_refusal);
}

static bool write3_greeted(struct link *ln, enum greeting_step step, const redisReply *r)
{
    struct upstream *up = ln->up;
    if (step != GREET_HELLO || r->type != REDIS_REPLY_ERROR || starts_with(r->str, "NOAUTH"))
        return upstream_greeted_basic(ln, step, r);
    struct buf raw;
    snprintf(up->resp3_refusal, sizeof(up->resp3_refusal), "%s", r->str);
    up->resp3_refused_ms = clock_mono_ms();
    buf_init(&raw, MEM_CLIENT);
    resp3_refused(up, &raw);
    link_refuse(ln, -1, buf_slice(&raw));
    buf_deinit(&raw);
    link_fail(ln, r->str);
    return false;
}

static void write3_ready(struct link *ln)
{
    ln->up->write3_failures = 0;
    ln->told[0] = 0;
}

/* Says nothing about the upstream's state, and is opened again when it is needed. */
static void write3_down(struct link *ln, const char *why)
{
    struct upstream *up = ln->up;
    up->write3_failures++;
    up->write3_retry_ms = clock_mono_ms() + upstream_backoff(up, up->write3_failures);
    upstream_down_note(up, ln, why);
}

static bool write3_push(struct link *ln, struct slice raw)
{
    (void)ln;
    return raw.ptr[0] == '>'; /* nobody subscribes here */
}

static const struct link_ops write3_ops = {
    .name = "write3",
    .greet = write_greet,
    .greeted = write3_greeted,
    .ready = write3_ready,
    .down = write3_down,
    .lost = write_lost,
    .push = write3_push,
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

static void reconnect(struct upstream *up, int64_t now_ms)
{
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
    pair_tick(up, now_ms);
    if (!up->destroyed)
        breaker_tick(up, now_ms);
    if (up->destroyed)
        return;
    int64_t next = earlier(earlier(pair_next_due(up), up->write_retry_ms), pins_next_due(up));
    next = earlier(next, breaker_next_due(up));
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

static void split_prefixes(const char *text, struct slice out[UPSTREAM_PREFIXES_MAX], unsigned *n)
{
    *n = 0;
    while (*(text += strspn(text, " ")) && *n < UPSTREAM_PREFIXES_MAX) {
        size_t len = strcspn(text, " ");
        out[(*n)++] = SLICE(text, len);
        text += len;
    }
}

enum status upstream_check_prefixes(const char *prefixes, char err[256])
{
    struct slice p[UPSTREAM_PREFIXES_MAX];
    unsigned n;
    split_prefixes(prefixes, p, &n);
    size_t words = 0;
    for (const char *t = prefixes; *(t += strspn(t, " ")); t += strcspn(t, " "))
        words++;
    if (words > UPSTREAM_PREFIXES_MAX || strlen(prefixes) >= sizeof(((struct upstream_options *)0)->prefixes)) {
        snprintf(err, 256, "at most %d prefixes, together at most 1023 bytes", UPSTREAM_PREFIXES_MAX);
        return ST_BAD;
    }
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < n; k++) {
            if (i == k || p[k].len < p[i].len || memcmp(p[i].ptr, p[k].ptr, p[i].len) != 0)
                continue;
            snprintf(err, 256, "%.*s overlaps with %.*s, which a Redis refuses", (int)(p[i].len > 80 ? 80 : p[i].len),
                     p[i].ptr, (int)(p[k].len > 80 ? 80 : p[k].len), p[k].ptr);
            return ST_BAD;
        }
    }
    return ST_OK;
}

static void options_default(struct upstream_options *opt)
{
    if (opt->timeout_ms <= 0)
        opt->timeout_ms = 1000;
    if (opt->watchdog_ms <= 0 || opt->watchdog_ms > 1000)
        opt->watchdog_ms = 1000;
    if (opt->watchdog_timeout_ms <= 0)
        opt->watchdog_timeout_ms = 500;
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
    split_prefixes(up->opt.prefixes, up->prefix, &up->nprefixes);
    pthread_mutex_init(&up->text_mu, NULL);
    up->generation_next = up->opt.first_generation;
    snprintf(up->name, sizeof(up->name), strchr(opt->host, ':') ? "[%s]:%d" : "%s:%d", opt->host, opt->port);
    random_bytes(&up->rng, sizeof(up->rng));
    list_init(&up->links);
    list_init(&up->ticking);
    list_init(&up->dirty);
    list_init(&up->idle_pins);
    buf_init(&up->scratch, MEM_CLIENT);
    up->timer_at_ms = up->pair_retry_ms = up->write_retry_ms = up->probe_ms = up->rotate_ms = DUE_NEVER;
    up->timer = attach_timer_open(loop, timer_fired, up, upstream_handle_closed);
    up->idle = attach_idle_open(loop, idle_fired, up, upstream_handle_closed);
    up->handles = 2;
    link_init(&up->fetch, up, &fetch_ops);
    link_init(&up->inval, up, &inval_ops);
    link_init(&up->write, up, &write_ops);
    link_init(&up->write3, up, &write3_ops);
    up->write3.proto = 3;
    pair_open(up);
    link_open(&up->write);
    return up;
}

void upstream_release(struct upstream *up)
{
    if (!up->destroyed || up->handles || up->npins[0] || up->npins[1])
        return;
    explicit_bzero(&up->opt.password, sizeof(up->opt.password));
    pthread_mutex_destroy(&up->text_mu);
    buf_deinit(&up->scratch);
    tracked_reset(up);
    link_deinit(&up->fetch);
    link_deinit(&up->inval);
    link_deinit(&up->write);
    link_deinit(&up->write3);
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
    up->generation = up->doubted = 0;
    if (up->lookup)
        attach_lookup_cancel(up->lookup);
    list_splice(&up->links, &up->ticking);
    link_cancel(&up->fetch);
    link_cancel(&up->inval);
    link_cancel(&up->write);
    link_cancel(&up->write3);
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
    *logs_in = up->own_logs_in || up->opt.password[0] || up->opt.auth_file[0];
    const char *user = up->own_user[0] ? up->own_user : up->opt.user;
    return user[0] ? user : "default";
}

enum upstream_mode upstream_get_coherence(struct upstream *up, char reason[240])
{
    pthread_mutex_lock(&up->text_mu);
    enum upstream_mode mode = atomic_load_explicit(&up->mode_now, memory_order_relaxed);
    memcpy(reason, up->reason, sizeof(up->reason));
    pthread_mutex_unlock(&up->text_mu);
    return mode;
}

const char *upstream_last_error(const struct upstream *up)
{
    return up->last_error;
}

/* ST_OK: may be submitted, now or to wait for the first connection. */
static enum status link_admit(struct link *ln)
{
    struct upstream *up = ln->up;
    if (up->destroyed)
        return ST_CANCELLED;
    if ((ln->state != LINK_READY && up->state != UPSTREAM_CONNECTING) || link_full(ln))
        return ST_UNAVAILABLE;
    return breaker_refuses(up) ? ST_UNAVAILABLE : ST_OK;
}

/* The same for write3, which is opened here, and waited for. */
static enum status write3_admit(struct upstream *up)
{
    struct link *ln = &up->write3;
    if (up->destroyed)
        return ST_CANCELLED;
    if ((up->write.state != LINK_READY && up->state != UPSTREAM_CONNECTING) || link_full(ln) || breaker_refuses(up))
        return ST_UNAVAILABLE;
    if (ln->state != LINK_CLOSED)
        return ST_OK;
    if (ln->down || up->write3_retry_ms > clock_mono_ms())
        return ST_UNAVAILABLE;
    link_open(ln);
    return ST_OK;
}

static bool resp3_is_refused(struct upstream *up)
{
    if (up->resp3_refusal[0] && clock_mono_ms() - up->resp3_refused_ms >= RESP3_RETRY_MS)
        up->resp3_refusal[0] = 0;
    return up->resp3_refusal[0];
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
    tracked_add(up, f->key);
    link_submit(&up->fetch, s, buf_slice(&up->scratch));
}

void upstream_fence(struct upstream *up, struct upstream_fence *f)
{
    bool told = up->generation && up->mode != UPSTREAM_TTL; /* of invalidations at all */
    enum status st = up->destroyed ? ST_CANCELLED : !told || link_full(&up->inval) ? ST_UNAVAILABLE : ST_OK;
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
    struct link *ln = via == UPSTREAM_TRACKED ? &up->fetch : via == UPSTREAM_RESP3 ? &up->write3 : &up->write;
    CHECK(argc > 0 && db >= 0);
    UP_COUNT(up, calls, 1);
    struct slot *s = slot_new(SLOT_CALL, db);
    s->u.call = c;
    s->breaks_db = slice_is(argv[0], "select");
    s->tracked = via == UPSTREAM_TRACKED;
    if (via == UPSTREAM_RESP3 && !up->destroyed && resp3_is_refused(up)) {
        struct buf raw;
        buf_init(&raw, MEM_CLIENT);
        resp3_refused(up, &raw);
        slot_refuse(ln, s, buf_slice(&raw));
        buf_deinit(&raw);
        slot_free(s);
        return;
    }
    enum status st = via == UPSTREAM_RESP3 ? write3_admit(up) : link_admit(ln);
    if (st == ST_OK && s->tracked && (!up->generation || up->mode == UPSTREAM_TTL))
        st = ST_UNAVAILABLE;
    if (st != ST_OK) {
        slot_fail(ln, s, st);
        slot_free(s);
        return;
    }
    for (int i = 1; s->tracked && i < argc; i++)
        tracked_add(up, argv[i]);
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
        .breaker_opens = LOAD(breaker_opens),
        .breaker_refused = LOAD(breaker_refused),
        .pins = LOAD(pins[UPSTREAM_PIN_WORK]),
        .subscriptions = LOAD(pins[UPSTREAM_PIN_PUBSUB]),
        .breaker = atomic_load_explicit(&up->breaker, memory_order_relaxed),
    };
#undef LOAD
}
