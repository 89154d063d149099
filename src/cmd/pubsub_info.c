/* PUBSUB, and what a RESP2 client that subscribed may still do. */
#include "cmd/cmd_priv.h"
#include "tiercel/cmd.h"
#include "tiercel/glob.h"
#include "tiercel/keyspace.h"
#include "tiercel/pubsub.h"
#include "tiercel/resp.h"

bool pubsub_allows(const struct session *s, const struct command *cmd)
{
    static const char *const allowed[] = {"subscribe",    "unsubscribe", "psubscribe", "punsubscribe", "ssubscribe",
                                          "sunsubscribe", "ping",        "quit",       "reset"};
    if (s->proto != 2 || !pubsub_active(s))
        return true;
    for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
        if (strcmp(cmd->full, allowed[i]) == 0)
            return true;
    return false;
}

void pubsub_refuse(struct call *c)
{
    call_errorf(c,
                "ERR Can't execute '%s': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in "
                "this context",
                c->cmd->full);
}

static struct pubsub *pubsub_of(const struct call *c)
{
    return c->w->cmd->pubsub;
}

struct listing {
    const struct slice *pattern; /* NULL: all */
    struct reply names;
    int64_t n;
};

static void listing_add(void *arg, struct slice channel)
{
    struct listing *l = arg;
    if (l->pattern && !glob_match(*l->pattern, channel, false))
        return;
    reply_bulk(&l->names, channel);
    l->n++;
}

static void list_channels(struct call *c, bool sharded)
{
    if (c->argc > 3) {
        call_errorf(c, "ERR unknown subcommand or wrong number of arguments for '%.*s'. Try PUBSUB HELP.",
                    (int)(c->argv[1].len < 128 ? c->argv[1].len : 128), c->argv[1].ptr);
        return;
    }
    /* The number of names comes before them. */
    struct chain text;
    chain_init(&text);
    struct listing l = {.pattern = c->argc == 3 ? &c->argv[2] : NULL, .names = {.out = &text, .proto = c->r.proto}};
    pubsub_channels_each(pubsub_of(c), sharded, listing_add, &l);
    reply_array(&c->r, l.n);
    chain_move(c->r.out, &text);
}

void cmd_pubsub_channels(struct call *c)
{
    list_channels(c, false);
}

void cmd_pubsub_shardchannels(struct call *c)
{
    list_channels(c, true);
}

static void count_subscribers(struct call *c, bool sharded)
{
    reply_array(&c->r, (int64_t)(c->argc - 2) * 2);
    for (int i = 2; i < c->argc; i++) {
        reply_bulk(&c->r, c->argv[i]);
        reply_int(&c->r, (int64_t)pubsub_subscribers(pubsub_of(c), sharded, c->argv[i]));
    }
}

void cmd_pubsub_numsub(struct call *c)
{
    count_subscribers(c, false);
}

void cmd_pubsub_shardnumsub(struct call *c)
{
    count_subscribers(c, true);
}

void cmd_pubsub_numpat(struct call *c)
{
    reply_int(&c->r, (int64_t)pubsub_patterns(pubsub_of(c)));
}

void cmd_pubsub_help(struct call *c)
{
    static const char *const lines[] = {
        "PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "CHANNELS [<pattern>]",
        "    Return the currently active channels matching a <pattern> (default: '*').",
        "NUMPAT",
        "    Return number of subscriptions to patterns.",
        "NUMSUB [<channel> ...]",
        "    Return the number of subscribers for the specified channels, excluding",
        "    pattern subscriptions(default: no channels).",
        "SHARDCHANNELS [<pattern>]",
        "    Return the currently active shard level channels matching a <pattern> (default: '*').",
        "SHARDNUMSUB [<shardchannel> ...]",
        "    Return the number of subscribers for the specified shard level channel(s)",
        "HELP",
        "    Prints this help.",
    };
    size_t n = sizeof(lines) / sizeof(lines[0]);
    reply_array(&c->r, (int64_t)n);
    for (size_t i = 0; i < n; i++)
        reply_simple(&c->r, lines[i]);
}
