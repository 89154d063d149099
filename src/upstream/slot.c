#include <stdlib.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "upstream_priv.h"

#define REPLY_BUF_KEEP (256 * 1024) /* a larger buffer is given back after use */

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
    if (s->first)
        freeReplyObject(s->first);
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
        if (st == ST_TIMEOUT)
            UP_COUNT(ln->up, timeouts, 1);
        else if (st == ST_UNAVAILABLE)
            UP_COUNT(ln->up, errors, 1);
    }
    switch (s->kind) {
    case SLOT_FETCH: s->u.fetch->done(s->u.fetch, st, SLICE_NONE, -1, 0); return;
    case SLOT_CALL: s->u.call->done(s->u.call, st, SLICE_NONE, false, s->sent); return;
    case SLOT_FENCE: s->u.fence->done(s->u.fence, st); return;
    case SLOT_GREETING:
    case SLOT_SELECT:
    case SLOT_PING: return;
    }
}

static void call_answer(struct link *ln, struct slot *s, const redisReply *r)
{
    struct upstream *up = ln->up;
    bool is_error = r->type == REDIS_REPLY_ERROR;
    if (is_error)
        UP_COUNT(up, errors, 1);
    up->reply.len = 0;
    reply_to_resp2(&up->reply, r);
    s->u.call->done(s->u.call, ST_OK, buf_slice(&up->reply), is_error, s->sent);
    if (up->reply.cap > REPLY_BUF_KEEP) {
        buf_deinit(&up->reply);
        buf_init(&up->reply, MEM_CLIENT);
    }
}

void slot_take_call(struct link *ln, struct slot *s, const redisReply *r)
{
    if (slot_claim(s))
        call_answer(ln, s, r);
}

static void fetch_answer_error(struct link *ln, struct upstream_fetch *f, const redisReply *error)
{
    static const char wrongtype[] = "WRONGTYPE";
    bool other_type = strncmp(error->str, wrongtype, sizeof(wrongtype) - 1) == 0;
    if (!other_type)
        UP_COUNT(ln->up, errors, 1);
    f->done(f, other_type ? ST_WRONGTYPE : ST_BAD, SLICE(error->str, error->len), -1, 0);
}

void slot_take_fetch(struct link *ln, struct slot *s, const redisReply *pttl)
{
    if (!slot_claim(s))
        return;
    struct upstream *up = ln->up;
    struct upstream_fetch *f = s->u.fetch;
    const redisReply *get = s->first;
    if (get->type == REDIS_REPLY_ERROR) {
        fetch_answer_error(ln, f, get);
    } else if (pttl->type == REDIS_REPLY_ERROR) {
        fetch_answer_error(ln, f, pttl);
    } else if (get->type == REDIS_REPLY_STRING && pttl->type == REDIS_REPLY_INTEGER && pttl->integer >= -1) {
        UP_COUNT(up, hits, 1);
        f->done(f, ST_OK, SLICE(get->str, get->len), pttl->integer, up->generation);
    } else if (get->type == REDIS_REPLY_NIL || (get->type == REDIS_REPLY_STRING && pttl->type == REDIS_REPLY_INTEGER)) {
        /* -2: it expired between the two commands. */
        UP_COUNT(up, misses, 1);
        f->done(f, ST_NOT_FOUND, SLICE_NONE, -1, up->generation);
    } else {
        UP_COUNT(up, errors, 1);
        f->done(f, ST_BAD, SLICE_LIT("ERR the upstream's replies to GET and PTTL make no sense"), -1, 0);
    }
}

void slot_refuse(struct link *ln, struct slot *s, const redisReply *error)
{
    if (!slot_claim(s))
        return;
    if (s->kind == SLOT_FETCH)
        fetch_answer_error(ln, s->u.fetch, error);
    else if (s->kind == SLOT_CALL)
        call_answer(ln, s, error);
    else
        CHECK(s->kind == SLOT_PING);
}
