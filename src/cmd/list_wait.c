/* Commands on lists that wait for an element: BLPOP BRPOP BLMPOP BLMOVE BRPOPLPUSH. */
#include "cmd/cmd_priv.h"

enum { NONE = -1, REFUSED = -2 };

/* Which of the first n keys has a list that may be taken from. */
static int first_list(struct call *c, int n)
{
    for (int i = 0; i < n; i++) {
        struct object *o = ks_peek(c, i);
        if (!o || !block_may_take(c, i))
            continue;
        if (o->type == OBJ_LIST)
            return i;
        if (!block_again(c)) {
            call_wrongtype(c);
            return REFUSED;
        }
    }
    return NONE;
}

/* ---- BLPOP, BRPOP, BLMPOP ---- */

/* count 0: one element, not in an array of its own. false: the error was replied. */
static bool pop_args(struct call *c, bool *left, int64_t *count)
{
    *count = 0;
    *left = c->cmd->id == CMDID_blpop;
    return c->cmd->id != CMDID_blmpop || list_args_mpop(c, 2, left, count);
}

static void serve_pop(struct call *c, void *data)
{
    int64_t count;
    bool left;
    (void)data;

    CHECK(pop_args(c, &left, &count));
    list_pop_named(c, 0, left, count);
}

static void pop_or_wait(struct call *c, int timeout_arg)
{
    static const struct block_kind kind = {.type = OBJ_LIST, .serve = serve_pop};
    int64_t timeout_ms, count;
    bool left;

    if (!pop_args(c, &left, &count) || !block_arg_timeout(c, timeout_arg, &timeout_ms))
        return;
    int i = first_list(c, c->nkeys);
    if (i >= 0)
        list_pop_named(c, i, left, count);
    else if (i == NONE && c->in_exec)
        reply_null_array(&c->r);
    else if (i == NONE)
        block_wait(c, &kind, c->nkeys, timeout_ms, NULL);
}

void cmd_blpop(struct call *c)
{
    pop_or_wait(c, c->argc - 1);
}

void cmd_brpop(struct call *c)
{
    pop_or_wait(c, c->argc - 1);
}

void cmd_blmpop(struct call *c)
{
    pop_or_wait(c, 1);
}

/* ---- BLMOVE, BRPOPLPUSH ---- */

static bool move_args(struct call *c, bool *from_left, bool *to_left)
{
    *from_left = false;
    *to_left = true;
    return c->cmd->id == CMDID_brpoplpush || (list_arg_end(c, 3, from_left) && list_arg_end(c, 4, to_left));
}

static void serve_move(struct call *c, void *data)
{
    bool from_left, to_left;
    (void)data;

    CHECK(move_args(c, &from_left, &to_left));
    list_move(c, from_left, to_left);
}

static void move_or_wait(struct call *c)
{
    static const struct block_kind kind = {.type = OBJ_LIST, .dest = 2, .serve = serve_move};
    bool from_left, to_left;
    int64_t timeout_ms;

    if (!move_args(c, &from_left, &to_left) || !block_arg_timeout(c, c->argc - 1, &timeout_ms))
        return;
    int i = first_list(c, 1);
    if (i >= 0)
        list_move(c, from_left, to_left);
    else if (i == NONE && c->in_exec)
        reply_null(&c->r);
    else if (i == NONE)
        block_wait(c, &kind, 1, timeout_ms, NULL);
}

void cmd_blmove(struct call *c)
{
    move_or_wait(c);
}

void cmd_brpoplpush(struct call *c)
{
    move_or_wait(c);
}
