/* Which waiting requests may be begun before their turn: fetched for, or sent to the upstream. */
#include "tiercel/tracking.h"

#include "cmd/cmd_priv.h"

bool dispatch_prefetchable(const struct session *s, int argc, const struct slice *argv)
{
    const struct command *cmd = dispatch_find(argc, argv);

    if (!cmd || !command_arity_fits(cmd, argc) ||
        cmd->flags & (CMD_SERVER | CMD_CONTAINER | CMD_BLOCKING | CMD_ALL_SHARDS) || s->flags & SESSION_MULTI || s->pin)
        return false;
    if (cmd->group == GROUP_TRANSACTIONS || cmd->group == GROUP_PUBSUB || dispatch_key_count(cmd, argc) == 0)
        return false;
    return !s->w->tier->has_upstream ||
           (forward_route(s, cmd, argc, argv) == ROUTE_NEAR && !(s->auth && auth_upstream_private(s)));
}

bool dispatch_forwardable(const struct session *s, int argc, const struct slice *argv)
{
    const struct command *cmd = dispatch_find(argc, argv);

    if (!cmd || s->flags & SESSION_MULTI)
        return false;
    if (UNLIKELY(s->auth != NULL) && auth_upstream_private(s))
        return auth_upstream_ahead(s, cmd);
    if (UNLIKELY(s->flags & SESSION_TRACKING) && tracking_holds(s, cmd))
        return false;
    if (UNLIKELY(s->w->conf->rules_local) && local_names(s, cmd, argc, argv))
        return false;
    enum forward_route route = forward_route(s, cmd, argc, argv);
    return s->pin ? route == ROUTE_PIN && forward_pin_takes_more(s) : route == ROUTE_WRITE_LINK || route == ROUTE_PART;
}

bool dispatch_only_reads(int argc, const struct slice *argv)
{
    const struct command *cmd = dispatch_find(argc, argv);
    return cmd && cmd->flags & CMD_READONLY && cmd->access != KEY_UPDATE && !(cmd->flags & CMD_MAY_REPLICATE);
}
