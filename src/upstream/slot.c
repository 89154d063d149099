#include <stdlib.h>

#include "tiercel/alloc.h"
#include "upstream_priv.h"

struct slot *slot_new(enum slot_kind kind, int db)
{
    struct slot *s = mem_calloc(MEM_OTHER, sizeof(*s));
    list_init(&s->queue);
    list_init(&s->due);
    buf_init(&s->cmd, MEM_CLIENT);
    s->kind = kind;
    s->db = db;
    return s;
}

void slot_free(struct slot *s)
{
    list_remove(&s->queue);
    list_remove(&s->due);
    buf_deinit(&s->cmd);
    mem_free(MEM_OTHER, s);
}

/* From here on the owner is told; what follows runs its code. */
static bool slot_claim(struct slot *s)
{
    if (s->answered)
        return false;
    s->answered = true;
    list_remove(&s->due);
    return true;
}

void slot_fail(struct link *ln, struct slot *s, enum status st)
{
    if (!slot_claim(s))
        return;
    if (s->kind == SLOT_FETCH || s->kind == SLOT_CALL) {
        if (st == ST_TIMEOUT) {
            UP_COUNT(ln->up, timeouts, 1);
            breaker_failed(ln->up);
        } else if (st == ST_UNAVAILABLE) {
            UP_COUNT(ln->up, errors, 1);
        }
    }
    switch (s->kind) {
    case SLOT_FETCH: s->u.fetch->done(s->u.fetch, st, SLICE_NONE, -1, 0); return;
    case SLOT_CALL: s->u.call->done(s->u.call, st, SLICE_NONE, false, s->sent); return;
    case SLOT_FENCE: s->u.fence->done(s->u.fence, st); return;
    case SLOT_PROBE: breaker_probed(ln, false); return;
    case SLOT_GREETING:
    case SLOT_SELECT:
    case SLOT_PING: return;
    }
}

static void call_answer(struct link *ln, struct slot *s, struct slice raw)
{
    struct slice body = raw;
    struct reply_view v;
    while (body.len && body.ptr[0] == '|') { /* attributes come before what they belong to */
        struct reply_scan sc = {.resp3 = true};
        size_t len;
        if (!reply_view(&body, &v) || (v.integer && reply_scan(&sc, body, (int)(2 * v.integer), &len) != ST_OK))
            break;
        if (v.integer)
            body = SLICE(body.ptr + len, body.len - len);
    }
    bool is_error = body.len && (body.ptr[0] == '-' || body.ptr[0] == '!');
    if (is_error)
        UP_COUNT(ln->up, errors, 1);
    if (s->tracked && s->sent && (!s->generation || s->generation != ln->up->generation)) {
        s->u.call->done(s->u.call, ST_UNAVAILABLE, SLICE_NONE, false, s->sent);
        return;
    }
    s->u.call->done(s->u.call, ST_OK, raw, is_error, s->sent);
}

static void fetch_answer_error(struct link *ln, struct upstream_fetch *f, struct slice text)
{
    static const char wrongtype[] = "WRONGTYPE";
    size_t len = sizeof(wrongtype) - 1;
    bool other_type = text.len >= len && memcmp(text.ptr, wrongtype, len) == 0;
    if (!other_type)
        UP_COUNT(ln->up, errors, 1);
    f->done(f, other_type ? ST_WRONGTYPE : ST_BAD, text, -1, 0);
}

static void fetch_answer(struct link *ln, struct slot *s, struct slice raw)
{
    struct upstream *up = ln->up;
    struct upstream_fetch *f = s->u.fetch;
    struct reply_view get, pttl;
    bool whole = reply_view(&raw, &get) && reply_view(&raw, &pttl);
    if (whole && (get.type == '-' || pttl.type == '-')) {
        fetch_answer_error(ln, f, get.type == '-' ? get.text : pttl.text);
    } else if (!whole || get.type != '$' || pttl.type != ':') {
        fetch_answer_error(ln, f, SLICE_LIT("ERR the upstream's replies to GET and PTTL make no sense"));
    } else if (get.integer < 0 || pttl.integer < -1) { /* -2: it expired between the two commands */
        UP_COUNT(up, misses, 1);
        f->done(f, ST_NOT_FOUND, SLICE_NONE, -1, pair_vouches(up, s->generation, f->key));
    } else {
        UP_COUNT(up, hits, 1);
        f->done(f, ST_OK, get.text, pttl.integer, pair_vouches(up, s->generation, f->key));
    }
}

void slot_take(struct link *ln, struct slot *s, struct slice raw)
{
    breaker_answered(ln->up);
    if (!slot_claim(s))
        return;
    if (s->kind == SLOT_FETCH)
        fetch_answer(ln, s, raw);
    else
        call_answer(ln, s, raw);
}

void slot_refuse(struct link *ln, struct slot *s, struct slice raw)
{
    if (!slot_claim(s))
        return;
    if (s->kind == SLOT_FETCH)
        fetch_answer_error(ln, s->u.fetch, SLICE(raw.ptr + 1, raw.len - 3));
    else
        call_answer(ln, s, raw);
}
