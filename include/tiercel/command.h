#ifndef TIERCEL_COMMAND_H
#define TIERCEL_COMMAND_H

#include <stdint.h>

#include "tiercel/slice.h"

/* The command table: one row of tbl/cmd.def per command and subcommand. */

struct call;

/* What COMMAND reports, by Redis's names. */
enum command_flags {
    CMD_WRITE = 1 << 0,
    CMD_READONLY = 1 << 1,
    CMD_DENYOOM = 1 << 2,
    CMD_ADMIN = 1 << 3,
    CMD_PUBSUB = 1 << 4,
    CMD_NOSCRIPT = 1 << 5,
    CMD_BLOCKING = 1 << 6,
    CMD_LOADING = 1 << 7,
    CMD_STALE = 1 << 8,
    CMD_SKIP_MONITOR = 1 << 9,
    CMD_SKIP_SLOWLOG = 1 << 10,
    CMD_ASKING = 1 << 11,
    CMD_FAST = 1 << 12,
    CMD_NO_AUTH = 1 << 13,
    CMD_MAY_REPLICATE = 1 << 14,
    CMD_SENTINEL = 1 << 15,
    CMD_NO_MULTI = 1 << 16,
    CMD_MOVABLEKEYS = 1 << 17,
    CMD_ALLOW_BUSY = 1 << 18,
    CMD_NO_ASYNC_LOADING = 1 << 19,
    CMD_NO_MANDATORY_KEYS = 1 << 20,
    /* Ours, not reported: */
    CMD_NEAR_PART = 1 << 23,  /* a read that whole copies of upstream keys can answer; passed through on a miss */
    CMD_ALL_SHARDS = 1 << 24, /* runs with every shard locked: FLUSHALL, SWAPDB */
    CMD_SERVER = 1 << 25,     /* about this server or connection: never passed to an upstream */
    CMD_NEAR = 1 << 26,       /* a read of strings that a kept copy of an upstream key can answer */
    CMD_CONTAINER = 1 << 27,  /* has subcommands */
    CMD_DEBUG_ONLY = 1 << 28, /* not in COMMAND's list */
    CMD_SCRIPT = 1 << 29,     /* runs a script */
    CMD_UNDECLARED = 1 << 30  /* may use keys that are not among its arguments */
};

enum command_group {
    GROUP_GENERIC,
    GROUP_STRING,
    GROUP_LIST,
    GROUP_SET,
    GROUP_SORTED_SET,
    GROUP_HASH,
    GROUP_BITMAP,
    GROUP_HYPERLOGLOG,
    GROUP_GEO,
    GROUP_STREAM,
    GROUP_PUBSUB,
    GROUP_TRANSACTIONS,
    GROUP_CONNECTION,
    GROUP_SERVER,
    GROUP_SCRIPTING,
    GROUP_CLUSTER,
    GROUP_CACHE /* Tiercel's own: CACHE, WARM */
};

/* How a command uses its keys: what must be known before it runs. */
enum key_access {
    KEY_NONE,     /* there are none, or it sees to them itself */
    KEY_READ,     /* the value */
    KEY_UPDATE,   /* the value, which it may change */
    KEY_REPLACE,  /* nothing: it replaces whatever is there */
    KEY_PRESENCE, /* only whether the key exists (and may then delete it) */
    KEY_WATCH     /* nothing: it only names the key */
};

struct command {
    const char *name; /* lower case; of a subcommand: without its container */
    const char *full; /* "client|list" */
    void (*run)(struct call *c);
    /* Finds the keys where first/last/step cannot: fills positions, returns how many, -1 on bad syntax. */
    int (*find_keys)(int argc, const struct slice *argv, int *pos, int max);
    /* Overrides `access` from the arguments (SET with options). */
    enum key_access (*find_access)(int argc, const struct slice *argv);
    int arity;
    uint32_t flags;
    int first, last, step;
    enum key_access access;
    enum command_group group;
    uint32_t acl;          /* CATEGORY_* of extra categories, command.c derives the implied ones */
    const char *key_flags; /* COMMAND's key-spec flags: "RO access", "RW access update", ... */
    const char *tips;      /* separated by spaces */
    const char *since;
    const char *complexity;
    const char *summary;
    int container; /* index of its container, -1 = none */
    int id;        /* index in the table */
};

extern const struct command command_table[];
extern const int command_count;

/* Any thread, no lock. NULL: unknown. For a container, *sub is set when argv[1] names one of
 * its subcommands, else NULL. */
const struct command *command_find(struct slice name);
const struct command *command_find_sub(const struct command *container, struct slice name);

/* May it have so many arguments, its own name among them? */
static inline bool command_arity_fits(const struct command *cmd, int argc)
{
    return cmd->arity >= 0 ? argc == cmd->arity : argc >= -cmd->arity;
}

/* Positions of the keys among the arguments; -1: bad syntax. At most max. */
int command_keys(const struct command *cmd, int argc, const struct slice *argv, int *pos, int max);

#endif
