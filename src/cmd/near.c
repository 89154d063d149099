/* Reads of parts of an upstream's keys: HGET, LRANGE, ZSCORE, EXISTS, TTL, ... They run here where all their keys are held
 * whole, or known to be absent. Else they are passed through as they are, at once, and their keys are noted: what is
 * read again is fetched in the background (tier_want()). */
#include "tiercel/upstream.h"

#include "cmd/cmd_priv.h"

enum dispatch_rc near_missed(struct call *c)
{
    struct worker *w = c->w;

    /* The upstream did not answer: a copy that nobody vouches for will have to do, if there is one. */
    if (c->parked && c->parked->unanswered)
        return DISPATCH_FAULT;
    int n = dispatch_key_count(c->cmd, c->argc);
    struct call_key *keys = dispatch_scratch_keys(w, n);
    n = dispatch_keys(w, c->cmd, c->argc, c->argv, c->s->db, keys, n);
    for (int i = 0; i < n; i++)
        tier_want(w, &keys[i].key);
    return forward_send(c, ROUTE_WRITE_LINK);
}

bool near_retry(struct parked *p, const struct command *cmd)
{
    if (!cmd || !(cmd->flags & CMD_NEAR_PART) || p->unanswered)
        return false;
    p->unanswered = true;
    p->through = false;
    p->state = PARKED_NEW;
    session_run(p->s);
    return true;
}
