/* fetch and inval: what vouches for copies. How a generation begins, in which mode; how it is watched,
 * doubted and ended. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "upstream_priv.h"

#define INVALIDATE_CHANNEL "__redis__:invalidate"
#define PROBE_MS 60000 /* where the wanted mode was refused, it is asked for again so often */

/* ---- generations -------------------------------------------------------------------------- */

static const char *const mode_names[] = {
    [UPSTREAM_TRACKING] = "tracking",
    [UPSTREAM_BROADCAST] = "broadcast",
    [UPSTREAM_TTL] = "ttl",
    [UPSTREAM_NONE] = "none",
};

const char *upstream_mode_name(enum upstream_mode mode)
{
    return mode_names[mode];
}

/* The text that tells the mode in force and why. Others read mode and reason: see upstream_get_coherence(). */
void pair_coherence_set(struct upstream *up)
{
    enum upstream_mode mode = up->generation ? up->mode : UPSTREAM_NONE;
    const char *why = up->doubted       ? "the upstream does not answer in time"
                      : up->refusal[0]  ? up->refusal
                      : !up->generation ? "not connected"
                                        : "";
    pthread_mutex_lock(&up->text_mu);
    atomic_store_explicit(&up->mode_now, mode, memory_order_relaxed);
    snprintf(up->reason, sizeof(up->reason), "%s", why);
    snprintf(up->coherence, sizeof(up->coherence), why[0] ? "%s: %s" : "%s", mode_names[mode], why);
    pthread_mutex_unlock(&up->text_mu);
}

static void generation_end(struct upstream *up)
{
    bool told = up->doubted != 0;
    up->doubted = 0;
    if (!up->generation && !told)
        return;
    up->generation = 0;
    pair_coherence_set(up);
    if (!told && up->ev.generation)
        up->ev.generation(up->ev.arg, 0);
}

static void generation_begin(struct upstream *up)
{
    up->generation = up->generation_next++;
    if (!up->generation_next)
        up->generation_next = 1;
    up->doubted = 0;
    up->rotate_ms = up->mode == UPSTREAM_TTL ? clock_mono_ms() + up->opt.ttl_ms : DUE_NEVER;
    upstream_wake(up, earlier(up->watchdog_ms, up->rotate_ms));
    pair_coherence_set(up);
    if (up->ev.generation)
        up->ev.generation(up->ev.arg, up->generation);
}

/* ---- opening, in the best mode that is to be had ------------------------------------------- */

/* inval first: fetch needs its id, and with both in a row there is one order of events. */
void pair_open(struct upstream *up)
{
    up->refusal[0] = 0;
    tracked_reset(up);
    up->pair_retry_ms = up->probe_ms = up->rotate_ms = DUE_NEVER;
    up->probing = false;
    up->trying = up->opt.coherence;
    pair_coherence_set(up);
    link_open(up->trying == UPSTREAM_TTL ? &up->fetch : &up->inval);
}

static void refuse(struct upstream *up, const char *what, const char *text)
{
    if (!up->refusal[0])
        snprintf(up->refusal, sizeof(up->refusal), "%s: %s", what, text);
    up->trying = UPSTREAM_TTL;
}

static const char *error_text(const redisReply *r)
{
    return r->type == REDIS_REPLY_ERROR ? r->str : "a strange reply";
}

static void inval_greet(struct link *ln)
{
    struct slice id[] = {SLICE_LIT("CLIENT"), SLICE_LIT("ID")};
    struct slice subscribe[] = {SLICE_LIT("SUBSCRIBE"), SLICE_LIT(INVALIDATE_CHANNEL)};
    if (!upstream_greet_auth(ln, NULL))
        return;
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
        refuse(ln->up, "CLIENT ID", error_text(r));
    if (step == GREET_SUBSCRIBE && r->type != REDIS_REPLY_ARRAY)
        refuse(ln->up, "SUBSCRIBE", error_text(r));
    return true;
}

/* CLIENT TRACKING in the mode being tried. Never NOLOOP: after an own write a foreign one would send nothing. */
static void fetch_track(struct link *ln)
{
    struct upstream *up = ln->up;
    struct slice argv[6 + 2 * UPSTREAM_PREFIXES_MAX];
    char id[32];
    int n = 0;
    snprintf(id, sizeof(id), "%lld", up->inval_id);
    argv[n++] = SLICE_LIT("CLIENT");
    argv[n++] = SLICE_LIT("TRACKING");
    argv[n++] = SLICE_LIT("ON");
    argv[n++] = SLICE_LIT("REDIRECT");
    argv[n++] = slice_str(id);
    if (up->trying == UPSTREAM_BROADCAST) {
        argv[n++] = SLICE_LIT("BCAST");
        for (unsigned i = 0; i < up->nprefixes; i++) {
            argv[n++] = SLICE_LIT("PREFIX");
            argv[n++] = up->prefix[i];
        }
    }
    link_greet(ln, GREET_TRACK, n, argv);
}

static void fetch_greet(struct link *ln)
{
    if (!upstream_greet_auth(ln, NULL))
        return;
    upstream_greet_select(ln);
    upstream_greet_name(ln);
    if (ln->up->inval.state == LINK_READY)
        fetch_track(ln);
}

static void probe_later(struct upstream *up)
{
    up->probing = false;
    up->probe_ms = clock_mono_ms() + PROBE_MS + (int64_t)(rng_next(&up->rng) % (PROBE_MS / 4));
    upstream_wake(up, up->probe_ms);
}

/* What the upstream allows is known. */
static void pair_settle(struct upstream *up)
{
    up->probing = false;
    if (up->trying != UPSTREAM_TTL) {
        up->probe_ms = DUE_NEVER;
        if (up->trying == up->opt.coherence)
            up->refusal[0] = 0;
        else
            probe_later(up);
    } else {
        link_cancel(&up->inval);
        if (up->opt.coherence != UPSTREAM_TTL)
            probe_later(up);
    }
    up->mode = up->trying == UPSTREAM_TTL && up->opt.ttl_ms <= 0 ? UPSTREAM_NONE : up->trying;
    up->watchdog_ms = clock_mono_ms() + up->opt.watchdog_ms;
    if (up->mode == UPSTREAM_NONE)
        pair_coherence_set(up);
    else
        generation_begin(up);
}

/* The better mode was asked for while the lesser one is in force. */
static void pair_probed(struct upstream *up)
{
    if (up->trying != UPSTREAM_TTL) {
        pair_settle(up);
        if (!up->destroyed)
            upstream_note(up, "upstream %s: coherence %s", up->name, up->coherence);
        return;
    }
    if (up->mode == UPSTREAM_BROADCAST) { /* it tells of nothing any more: begin anew */
        link_fail(&up->fetch, "CLIENT TRACKING was taken back");
        return;
    }
    link_cancel(&up->inval);
    probe_later(up);
}

static bool fetch_greeted(struct link *ln, enum greeting_step step, const redisReply *r)
{
    struct upstream *up = ln->up;
    if (!upstream_greeted_basic(ln, step, r))
        return false;
    if (step == GREET_TRACK && r->type == REDIS_REPLY_ERROR) {
        if (strstr(r->str, "does not exist")) { /* inval was lost a moment ago: not a refusal */
            link_fail(ln, r->str);
            return false;
        }
        bool fall_back = up->trying == UPSTREAM_TRACKING && up->nprefixes;
        refuse(up, "CLIENT TRACKING", r->str);
        if (fall_back) {
            up->trying = UPSTREAM_BROADCAST;
            fetch_track(ln);
        }
    } else if (step == GREET_TRACK) {
        struct slice argv[] = {SLICE_LIT("CLIENT"), SLICE_LIT("GETREDIR")};
        link_greet(ln, GREET_REDIR, 2, argv); /* who says OK and does nothing is found out */
    } else if (step == GREET_REDIR && r->type == REDIS_REPLY_INTEGER && r->integer != up->inval_id) {
        refuse(up, "CLIENT TRACKING", "accepted, but CLIENT GETREDIR denies it");
    }
    if (ln->state == LINK_READY && !ln->greetings)
        pair_probed(up);
    return !up->destroyed && ln->state >= LINK_GREETING;
}

static void inval_ready(struct link *ln)
{
    struct upstream *up = ln->up;
    if (up->trying == UPSTREAM_TTL)
        link_cancel(ln);
    if (!up->probing)
        link_open(&up->fetch);
    else if (up->trying == UPSTREAM_TTL)
        probe_later(up);
    else
        fetch_track(&up->fetch);
}

static void fetch_ready(struct link *ln)
{
    struct upstream *up = ln->up;
    up->pair_failures = 0;
    breaker_close(up);
    upstream_retry_now(up, &up->write_retry_ms);
    pair_settle(up);
    if (!up->destroyed)
        upstream_state_set(up);
}

/* ---- tracking in place of broadcast ------------------------------------------------------------
 *
 * A connection cannot try the one while it has the other, and must not be without. So another one tries, `write`: it is
 * told to track and at once not to, with nothing in between. Only where that works fetch changes over. */

static void change_over(struct upstream *up)
{
    struct slice off[] = {SLICE_LIT("CLIENT"), SLICE_LIT("TRACKING"), SLICE_LIT("OFF")};
    up->trying = UPSTREAM_TRACKING;
    link_greet(&up->fetch, GREET_UNTRACK, 3, off);
    fetch_track(&up->fetch);
}

static void asked(struct upstream *up, bool yes)
{
    up->ask_denied |= !yes;
    if (--up->asking > 0 || up->destroyed)
        return;
    bool broadcasts = up->generation && up->mode == UPSTREAM_BROADCAST && up->fetch.state == LINK_READY;
    if (broadcasts && !up->ask_denied && !up->fetch.greetings)
        change_over(up);
    else if (broadcasts)
        probe_later(up); /* else opening the pair asks */
}

static void track_asked(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent)
{
    (void)reply;
    (void)sent;
    asked(LIST_ENTRY(c, struct upstream, ask_track), st == ST_OK && !is_error);
}

static void redir_asked(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct upstream *up = LIST_ENTRY(c, struct upstream, ask_redir);
    char want[32];
    (void)sent;
    snprintf(want, sizeof(want), ":%lld\r\n", up->inval_id);
    asked(up, st == ST_OK && !is_error && slice_eq(reply, slice_str(want)));
}

static void off_asked(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent)
{
    (void)reply;
    (void)sent;
    asked(LIST_ENTRY(c, struct upstream, ask_off), st == ST_OK && !is_error);
}

static void ask_for_tracking(struct upstream *up)
{
    char id[32];
    snprintf(id, sizeof(id), "%lld", up->inval_id);
    struct slice on[] = {SLICE_LIT("CLIENT"), SLICE_LIT("TRACKING"), SLICE_LIT("ON"), SLICE_LIT("REDIRECT"),
                         slice_str(id)};
    struct slice redir[] = {SLICE_LIT("CLIENT"), SLICE_LIT("GETREDIR")};
    struct slice off[] = {SLICE_LIT("CLIENT"), SLICE_LIT("TRACKING"), SLICE_LIT("OFF")};
    if (up->asking)
        return;
    up->asking = 3;
    up->ask_denied = up->write.state != LINK_READY;
    up->ask_track.done = track_asked;
    up->ask_redir.done = redir_asked;
    up->ask_off.done = off_asked;
    upstream_call(up, &up->ask_track, UPSTREAM_RESP2, up->opt.db, 5, on);
    upstream_call(up, &up->ask_redir, UPSTREAM_RESP2, up->opt.db, 2, redir);
    upstream_call(up, &up->ask_off, UPSTREAM_RESP2, up->opt.db, 3, off);
}

/* ---- losing them ------------------------------------------------------------------------------ */

static void pair_down(struct link *ln, const char *why)
{
    struct upstream *up = ln->up;
    if (up->pair_closing)
        return;
    if (up->probing && ln == &up->inval && !up->fetch.greetings) { /* fetch gets on without, as before */
        probe_later(up);
        return;
    }
    up->pair_closing = true;
    up->probing = false;
    up->probe_ms = up->rotate_ms = DUE_NEVER;
    up->pair_failures++;
    up->pair_retry_ms = clock_mono_ms() + upstream_backoff(up, up->pair_failures);
    upstream_wake(up, up->pair_retry_ms);
    upstream_down_set(up, ln, why);
    generation_end(up);
    upstream_down_note(up, ln, why);
}

static void pair_lost(struct link *ln, const char *why)
{
    struct upstream *up = ln->up;
    struct link *other = ln == &up->fetch ? &up->inval : &up->fetch;
    if (!up->pair_closing)
        return;
    if (!other->down && (other->state != LINK_CLOSED || other->queued))
        link_fail(other, why);
    up->pair_closing = false;
}

/* ---- invalidations ------------------------------------------------------------------------------ */

static void invalidate_keys(struct upstream *up, const redisReply *keys)
{
    for (size_t i = 0; i < keys->elements && !up->destroyed; i++) {
        const redisReply *key = keys->element[i];
        UP_COUNT(up, invalidations, 1);
        if (key->type == REDIS_REPLY_STRING)
            tracked_remove(up, SLICE(key->str, key->len));
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
        tracked_reset(up);
        if (up->ev.invalidate_all)
            up->ev.invalidate_all(up->ev.arg);
    }
    if (r)
        freeReplyObject(r);
    return true;
}

bool upstream_covers(const struct upstream *up, struct slice key)
{
    if (!up->generation || up->mode == UPSTREAM_TTL)
        return false;
    if (up->mode == UPSTREAM_TRACKING || !up->nprefixes)
        return true;
    for (unsigned i = 0; i < up->nprefixes; i++) {
        struct slice p = up->prefix[i];
        if (key.len >= p.len && memcmp(key.ptr, p.ptr, p.len) == 0)
            return true;
    }
    return false;
}

uint32_t pair_vouches(const struct upstream *up, uint32_t when_sent, struct slice key)
{
    if (!when_sent || when_sent != up->generation)
        return 0;
    return up->mode == UPSTREAM_TTL || upstream_covers(up, key) ? when_sent : 0;
}

/* ---- the watchdog ---------------------------------------------------------------------------------
 *
 * PING on both, one at a time. Without the answer in time the generation is *doubted*: it has ended,
 * for the layer above, but the links stay, for they may only be slow, and what is under way on them
 * may still be answered. When a later PING is answered in time, all invalidations that were sent have
 * arrived, none was lost, and the generation goes on. That an idle fetch connection is asked, too, is
 * because the upstream may have forgotten it (it rebooted, a firewall cut in): nothing else would tell. */

static void ping(struct link *ln)
{
    struct slice argv[] = {SLICE_LIT("PING")};
    link_submit(ln, slot_new(SLOT_PING, -1), link_command(ln, 1, argv));
}

static bool pair_tracks(const struct upstream *up)
{
    return up->mode == UPSTREAM_TRACKING || up->mode == UPSTREAM_BROADCAST;
}

/* On inval a late answer means late invalidations. fetch may be busy with a large reply: it lives. */
static int64_t ping_due(const struct link *ln)
{
    const struct upstream *up = ln->up;
    if (!ln->ping_ms)
        return DUE_NEVER;
    int64_t since = ln == &up->fetch && ln->heard_ms > ln->ping_ms ? ln->heard_ms : ln->ping_ms;
    return since + up->opt.watchdog_timeout_ms;
}

static int64_t pair_ping_due(const struct upstream *up)
{
    return pair_tracks(up) ? earlier(ping_due(&up->inval), ping_due(&up->fetch)) : DUE_NEVER;
}

static void doubt(struct upstream *up)
{
    up->doubted = up->generation;
    up->generation = 0;
    up->doom_ms = DUE_NEVER;
    pair_coherence_set(up);
    if (up->ev.generation)
        up->ev.generation(up->ev.arg, 0);
    if (up->destroyed)
        return;
    upstream_note(up, "upstream %s: no answer to the watchdog in %lld ms: copies are suspects", up->name,
                  (long long)up->opt.watchdog_timeout_ms);
    if (!up->destroyed)
        breaker_probe(up); /* does it answer others? */
}

void pair_ponged(struct link *ln)
{
    struct upstream *up = ln->up;
    int64_t now_ms = clock_mono_ms();
    bool in_time = now_ms - ln->ping_ms <= up->opt.watchdog_timeout_ms;
    ln->ping_ms = 0;
    if (!up->doubted)
        return;
    if (ping_due(ln == &up->inval ? &up->fetch : &up->inval) > now_ms)
        up->doom_ms = DUE_NEVER;
    if (!in_time) { /* a late answer says nothing about the time since: ask again */
        up->watchdog_ms = now_ms;
        upstream_wake(up, now_ms);
        return;
    }
    if (ln != &up->inval || ping_due(&up->fetch) <= now_ms)
        return;
    up->generation = up->doubted;
    up->doubted = 0;
    pair_coherence_set(up);
    if (up->ev.generation)
        up->ev.generation(up->ev.arg, up->generation);
    if (!up->destroyed)
        upstream_note(up, "upstream %s: answers again: its copies are current", up->name);
}

void pair_others_answer(struct upstream *up)
{
    if (!up->doubted || up->doom_ms != DUE_NEVER)
        return;
    up->doom_ms = clock_mono_ms() + up->opt.watchdog_timeout_ms;
    upstream_wake(up, up->doom_ms);
}

static void pair_watch(struct upstream *up, int64_t now_ms)
{
    if (up->generation && pair_ping_due(up) <= now_ms) {
        link_catch_up(&up->inval); /* if this thread was late, the answers may be in the sockets already */
        if (!up->destroyed)
            link_catch_up(&up->fetch);
        if (!up->destroyed && up->generation && pair_ping_due(up) <= now_ms)
            doubt(up);
    }
    if (!up->destroyed && up->doubted && up->doom_ms <= now_ms) {
        struct link *silent = ping_due(&up->inval) <= now_ms ? &up->inval : &up->fetch;
        up->doom_ms = ping_due(silent);
        if (up->doom_ms <= now_ms) {
            link_fail(silent, "no answer to the watchdog, while other connections get theirs");
            return;
        }
    }
    if (up->destroyed || (!up->generation && !up->doubted) || up->watchdog_ms > now_ms)
        return;
    up->watchdog_ms = now_ms + up->opt.watchdog_ms;
    if (up->doubted && up->doom_ms == DUE_NEVER)
        breaker_probe(up);
    if (pair_tracks(up) && !up->inval.ping_ms)
        ping(&up->inval);
    if (!up->fetch.ping_ms)
        ping(&up->fetch);
}

void pair_tick(struct upstream *up, int64_t now_ms)
{
    if (up->pair_retry_ms <= now_ms) {
        UP_COUNT(up, reconnects, 1);
        pair_open(up);
    }
    if (up->probe_ms <= now_ms) {
        up->probe_ms = DUE_NEVER;
        if (up->mode == UPSTREAM_BROADCAST) {
            ask_for_tracking(up);
        } else {
            up->probing = true;
            up->trying = up->opt.coherence;
            link_open(&up->inval);
        }
    }
    if (up->rotate_ms <= now_ms && up->generation)
        generation_begin(up); /* the age of copies is bounded by that of the generation which vouches for them */
    if (!up->destroyed)
        pair_watch(up, now_ms);
}

int64_t pair_next_due(const struct upstream *up)
{
    int64_t next = earlier(up->pair_retry_ms, up->probe_ms);
    if (up->generation)
        next = earlier(next, earlier(up->rotate_ms, pair_ping_due(up)));
    if (up->doubted)
        next = earlier(next, up->doom_ms);
    if (up->generation || up->doubted)
        next = earlier(next, up->watchdog_ms);
    return next;
}

const struct link_ops fetch_ops = {
    .name = "fetch",
    .greet = fetch_greet,
    .greeted = fetch_greeted,
    .ready = fetch_ready,
    .down = pair_down,
    .lost = pair_lost,
};
const struct link_ops inval_ops = {
    .name = "inval",
    .greet = inval_greet,
    .greeted = inval_greeted,
    .ready = inval_ready,
    .down = pair_down,
    .lost = pair_lost,
    .push = inval_push,
};
