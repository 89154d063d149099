#ifndef TIERCEL_CMD_PRIV_H
#define TIERCEL_CMD_PRIV_H

#include "tiercel/cmd.h"
#include "tiercel/keyspace.h"
#include "tiercel/session.h"

#include "cmd/cmd_handlers.h"

/* What the files of the command layer share among themselves. */

/* ---- the command table (command.c) ---- */

/* ACL categories, in the order in which COMMAND lists them. */
enum command_category {
    CAT_KEYSPACE = 1 << 0,
    CAT_READ = 1 << 1,
    CAT_WRITE = 1 << 2,
    CAT_LIST = 1 << 3,
    CAT_STRING = 1 << 4,
    CAT_PUBSUB = 1 << 5,
    CAT_ADMIN = 1 << 6,
    CAT_FAST = 1 << 7,
    CAT_SLOW = 1 << 8,
    CAT_BLOCKING = 1 << 9,
    CAT_DANGEROUS = 1 << 10,
    CAT_CONNECTION = 1 << 11,
    CAT_TRANSACTION = 1 << 12,
    CAT_COUNT = 13
};
/* Those of its row and those that follow from its flags. Any thread. */
uint32_t command_categories(const struct command *cmd);

/* Where first, last and access of a row cannot say it. */
int cmd_debug_keys(int argc, const struct slice *argv, int *pos, int max);
enum key_access cmd_set_access(int argc, const struct slice *argv); /* string.c */

/* By COMMAND's names: "get", "client", "client|list". NULL: unknown. */
const struct command *command_find_full(struct slice name);

/* A container's handler: answers that it has no such subcommand (argv[1]). */
void cmd_container(struct call *c);
/* What every *_help handler of a container's subcommand calls: HELP made from the rows. */
void cmd_container_help(struct call *c);
/* The same frame around lines of one's own, ended by NULL, for commands without subcommand rows. */
void cmd_reply_help(struct call *c, const char *const *lines);

/* ---- what commands on keys share (string.c, generic.c, list.c) ---- */

/* ERR wrong number of arguments for '...' command: for what an arity cannot say. */
void cmd_reply_bad_arity(struct call *c);
/* ERR invalid expire time in '...' command. */
void cmd_reply_bad_expiry(struct call *c);
/* Sets the expiry of key i, which is resident, or deletes it when that time has come (0 and
 * below included). */
void cmd_expire_at(struct call *c, int i, int64_t expire_ms);
/* An argument between min and max. err NULL: the texts that Redis has for both failures. false:
 * the error was replied. */
bool cmd_arg_between(struct call *c, int arg, int64_t min, int64_t max, int64_t *out, const char *err);

/* The database of the second key: for COPY the one behind DB, else cur_db; for MOVE, whose only
 * key argument counts twice, its second argument. -1: no number or bad syntax. It may be one
 * that does not exist: the caller knows how many there are, and in both cases resolves no keys and
 * lets the handler reply the error. Any thread. */
int cmd_copy_db(int argc, const struct slice *argv, int cur_db);
int cmd_move_db(int argc, const struct slice *argv, int cur_db);

/* Appends the first (left) or last element of list i to `out` and removes it. false: there is
 * no list, or it has another type; nothing is replied. For blocking pops. */
bool list_pop_one(struct call *c, int i, bool left, struct buf *out);

#endif
