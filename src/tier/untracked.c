/* Reading a key for the requests that wait for it and not for keeping: GET and PTTL on the connection that the upstream
 * does not track. It answers as upstream_fetch() does, with generation 0. */
#include "tiercel/clock.h"
#include "tiercel/num.h"
#include "tier_priv.h"

struct untracked {
    struct upstream_call get, pttl;
    struct upstream_fetch *uf;
    int outstanding; /* one can be refused while the other is on its way */
    int64_t pttl_ms;
    enum status st, pttl_st;
    struct buf value; /* or the error text */
};

/* A bulk string's or an error's text; ST_NOT_FOUND: nil. */
static enum status read_value(struct slice reply, bool is_error, struct buf *out)
{
    const char *end = reply.len ? memchr(reply.ptr, '\n', reply.len) : NULL;

    if (!end || reply.len < 4)
        return ST_BAD;
    size_t head = (size_t)(end - reply.ptr) + 1;
    if (is_error) {
        struct slice text = SLICE(reply.ptr + 1, head - 3);
        buf_slice_append(out, text);
        return text.len >= 9 && memcmp(text.ptr, "WRONGTYPE", 9) == 0 ? ST_WRONGTYPE : ST_BAD;
    }
    if (reply.ptr[0] != '$')
        return ST_BAD;
    if (reply.ptr[1] == '-')
        return ST_NOT_FOUND;
    if (reply.len < head + 2)
        return ST_BAD;
    buf_append(out, reply.ptr + head, reply.len - head - 2);
    return ST_OK;
}

static void settle(struct untracked *u)
{
    if (--u->outstanding > 0)
        return;
    if (u->st == ST_OK)
        u->st = u->pttl_st == ST_OK && u->pttl_ms == -2 ? ST_NOT_FOUND : u->pttl_st; /* -2: it expired in between */
    bool text = u->st == ST_OK || u->st == ST_BAD;
    u->uf->done(u->uf, u->st, text ? buf_slice(&u->value) : SLICE_NONE, u->pttl_ms, 0);
    buf_deinit(&u->value);
    mem_free(MEM_CLIENT, u);
}

static void get_done(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct untracked *u = LIST_ENTRY(c, struct untracked, get);
    (void)sent;

    u->st = st == ST_OK ? read_value(reply, is_error, &u->value) : st;
    settle(u);
}

static void pttl_done(struct upstream_call *c, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct untracked *u = LIST_ENTRY(c, struct untracked, pttl);
    (void)sent;

    u->pttl_st = st;
    if (st == ST_OK &&
        (is_error || reply.len < 4 || !num_parse_i64(SLICE(reply.ptr + 1, reply.len - 3), &u->pttl_ms))) {
        u->pttl_st = ST_BAD;
        if (u->st == ST_OK) /* GET's answer came before, and this error is the one to tell */
            u->value.len = 0;
        if (u->st == ST_OK && is_error && reply.len > 3)
            buf_append(&u->value, reply.ptr + 1, reply.len - 3);
    }
    settle(u);
}

void tier_fetch_untracked(struct upstream *up, struct upstream_fetch *uf)
{
    struct untracked *u = mem_calloc(MEM_CLIENT, sizeof(*u));
    struct slice get[2] = {SLICE_LIT("GET"), uf->key}, pttl[2] = {SLICE_LIT("PTTL"), uf->key};

    u->uf = uf;
    u->outstanding = 2;
    u->pttl_ms = -1;
    buf_init(&u->value, MEM_CLIENT);
    u->get.done = get_done;
    u->pttl.done = pttl_done;
    uf->sent_ms = clock_wall_ms();
    upstream_call(up, &u->get, UPSTREAM_RESP2, uf->db, 2, get);
    upstream_call(up, &u->pttl, UPSTREAM_RESP2, uf->db, 2, pttl);
}
