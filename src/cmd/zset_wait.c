/* Commands on sorted sets that wait for a member: BZPOPMIN BZPOPMAX BZMPOP. */
#include "cmd/cmd_priv.h"

enum { NONE = -1, REFUSED = -2 };

/* Which of the keys has a sorted set that may be taken from. */
static int first_zset(struct call *c)
{
    for (int i = 0; i < c->nkeys; i++) {
        struct object *o = ks_peek(c, i);
        if (!o || !block_may_take(c, i))
            continue;
        if (o->type == OBJ_ZSET)
            return i;
        if (!block_again(c)) {
            call_wrongtype(c);
            return REFUSED;
        }
    }
    return NONE;
}

/* count 0: one member, not in an array of its own. false: the error was replied. */
static bool pop_args(struct call *c, bool *max, int64_t *count)
{
    *count = 0;
    *max = c->cmd->id == CMDID_bzpopmax;
    return c->cmd->id != CMDID_bzmpop || zset_args_mpop(c, 2, max, count);
}

static void serve_pop(struct call *c, void *data)
{
    int64_t count;
    bool max;
    (void)data;

    CHECK(pop_args(c, &max, &count));
    zset_pop_named(c, 0, max, count);
}

static void pop_or_wait(struct call *c, int timeout_arg)
{
    static const struct block_kind kind = {.type = OBJ_ZSET, .serve = serve_pop};
    int64_t timeout_ms, count;
    bool max;

    if (!pop_args(c, &max, &count) || !block_arg_timeout(c, timeout_arg, &timeout_ms))
        return;
    int i = first_zset(c);
    if (i >= 0)
        zset_pop_named(c, i, max, count);
    else if (i == NONE && c->in_exec)
        reply_null_array(&c->r);
    else if (i == NONE)
        block_wait(c, &kind, c->nkeys, timeout_ms, NULL);
}

void cmd_bzpopmin(struct call *c)
{
    pop_or_wait(c, c->argc - 1);
}

void cmd_bzpopmax(struct call *c)
{
    pop_or_wait(c, c->argc - 1);
}

void cmd_bzmpop(struct call *c)
{
    pop_or_wait(c, 1);
}
