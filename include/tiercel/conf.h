#ifndef TIERCEL_CONF_H
#define TIERCEL_CONF_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/log.h"
#include "tiercel/slice.h"
#include "tiercel/status.h"

/* Settings. One row of tbl/conf.def makes the field, the parser, CONFIG GET/SET/REWRITE,
 * the sample file and the README table. A `struct conf` is an immutable snapshot; CONFIG SET
 * makes a new one and the workers take it over at their next turn.
 *
 *   BOOL   yes|no          -> bool
 *   INT    plain integer   -> int64_t
 *   BYTES  64mb, 1gb       -> int64_t
 *   ENUM   names in order  -> int (the enums below)
 *   STRING text            -> const char * (never NULL; lives as long as the snapshot)
 *   KEPT   accepted, checked for syntax, reported back, without effect here (README) -> const char *
 *   OBUF   client-output-buffer-limit -> the array `obuf`
 *   ALIAS  a second name of another row: no field
 */
/* In the order of the names in conf.def, which is that of Redis's error texts. */
enum conf_maxmemory_policy {
    POLICY_VOLATILE_LRU,
    POLICY_VOLATILE_LFU,
    POLICY_VOLATILE_RANDOM,
    POLICY_VOLATILE_TTL,
    POLICY_ALLKEYS_LRU,
    POLICY_ALLKEYS_LFU,
    POLICY_ALLKEYS_RANDOM,
    POLICY_NOEVICTION,
    POLICY_ADAPTIVE
};
enum conf_appendfsync { FSYNC_EVERYSEC, FSYNC_ALWAYS, FSYNC_NO };
enum conf_client_auth { CLIENT_AUTH_LOCAL, CLIENT_AUTH_UPSTREAM };
enum conf_compression { COMPRESSION_ZSTD, COMPRESSION_NO };

/* notify-keyspace-events: classes of events, and where they go. 'A' stands for all before 'n'. */
enum conf_notify {
    NOTIFY_GENERIC = 1 << 0,   /* g */
    NOTIFY_STRING = 1 << 1,    /* $ */
    NOTIFY_LIST = 1 << 2,      /* l */
    NOTIFY_SET = 1 << 3,       /* s */
    NOTIFY_HASH = 1 << 4,      /* h */
    NOTIFY_ZSET = 1 << 5,      /* z */
    NOTIFY_EXPIRED = 1 << 6,   /* x */
    NOTIFY_EVICTED = 1 << 7,   /* e */
    NOTIFY_STREAM = 1 << 8,    /* t */
    NOTIFY_MODULE = 1 << 9,    /* d */
    NOTIFY_NEW = 1 << 10,      /* n */
    NOTIFY_KEYSPACE = 1 << 11, /* K: channels by key */
    NOTIFY_KEYEVENT = 1 << 12, /* E: channels by event */
    NOTIFY_MISS = 1 << 13      /* m */
};

/* client-output-buffer-limit: classes normal, replica (also "slave"), pubsub. */
struct conf_obuf_limit {
    int64_t hard, soft, soft_s;
};
enum { OBUF_NORMAL, OBUF_REPLICA, OBUF_PUBSUB, OBUF_CLASSES };

struct conf {
    _Atomic int refs;
    struct conf_obuf_limit obuf[OBUF_CLASSES];
    struct rules *rules; /* rules.h; NULL = none */
    bool rules_local;    /* one of them is write=local */
#define CONF_BOOL(name, field, def, flags, help) bool field;
#define CONF_INT(name, field, def, min, max, flags, help) int64_t field;
#define CONF_BYTES(name, field, def, min, max, flags, help) int64_t field;
#define CONF_ENUM(name, field, def, names, flags, help) int field;
#define CONF_STRING(name, field, def, flags, help) const char *field;
#define CONF_KEPT(name, field, def, flags, help) const char *field;
#include "conf.def"
    struct conf_priv *priv;
};

#define CONF_START 1u    /* cannot be changed at run time */
#define CONF_SECRET 2u   /* not logged; may come from a file named by <name>-file / TIERCEL_<NAME>_FILE */
#define CONF_HIDDEN 4u   /* not in CONFIG GET * */
#define CONF_MULTI 8u    /* takes several values, kept as one text separated by spaces (bind, save) */
#define CONF_ADDS 16u    /* and when given again in the same source, values add up (save) */
#define CONF_PERCENT 32u /* BYTES: "10%" is accepted as well, and is -10 in the field */

/* File (argv[1] when it is not an option), then TIERCEL_* environment, then --name value;
 * later wins. An unknown name or a bad value: ST_BAD, and *err is one line naming the
 * source, the line, and the valid range. On ST_OK *err holds warnings for the log, a line
 * each (unknown TIERCEL_* names: other programs put theirs into the environment too).
 * `-` as argv[1] reads standard input. `--help`, `--version`, `--sample-config`, `--man-page` and
 * `--settings-table` print and set *exit_now; *out is then NULL. At start, one thread. */
enum status conf_load(int argc, char **argv, char **envp, struct conf **out, bool *exit_now, struct buf *err);

struct conf *conf_ref(struct conf *c);
void conf_unref(struct conf *c);

/* CONFIG SET: all pairs or none. On ST_BAD err is Redis's text without "-ERR ", naming the
 * argument. *out is a new snapshot with one reference. Any thread; serialise calls. */
enum status conf_set(const struct conf *cur, int npairs, const struct slice *pairs, struct conf **out, struct buf *err);

/* CONFIG GET: calls fn for each visible setting whose name matches a glob (case-insensitive). */
void conf_each(const struct conf *c, struct slice pattern, void (*fn)(void *arg, const char *name, struct slice value),
               void *arg);
/* One setting by its exact name; false: unknown. */
bool conf_get(const struct conf *c, const char *name, struct buf *value);

/* The letters of notify-keyspace-events as bits of enum conf_notify; false: there are others. */
bool conf_notify_parse(const char *text, unsigned *classes);

/* Is it a setting that no log and no answer may repeat? */
bool conf_is_secret(struct slice name);
/* The snapshot with this secret as its file (<name>-file) has it now. ST_NOT_FOUND: it came from no file; ST_BAD: *err is
 * one line. *out has one reference. Any thread; serialise calls, with those of conf_set() too. */
enum status conf_reload_secret(const struct conf *cur, const char *name, struct conf **out, struct buf *err);
#define HTTP_TOKEN_MAX 1024 /* bytes of http-token */

/* maxmemory-clients in bytes: a share is taken of `maxmemory`, what main resolved it to. */
int64_t conf_maxmemory_clients(const struct conf *c, int64_t maxmemory);

/* The lines `user NAME RULE...` of the sources, in the snapshot that conf_load() made: fn gets "file:3" and
 * "NAME RULE...". Goes on until fn says false, and returns what it said. */
bool conf_users_each(const struct conf *c, bool (*fn)(void *arg, const char *where, struct slice text), void *arg);

/* Reads a file of at most `max` bytes. false: *err is one line, and errno says why. */
bool conf_file_read(const char *path, size_t max, struct buf *out, struct buf *err);
/* The new file replaces the old one whole or not at all, with the old one's mode. ST_IO: errno. */
enum status conf_file_replace(const char *path, struct slice text);

/* CONFIG REWRITE: keeps comments and order of the file; writes a new file and renames it.
 * ST_NOT_FOUND: started without a file. ST_IO: errno. */
/* users: lines `user ...` that take the place of the file's. */
enum status conf_rewrite(const struct conf *c, struct slice users);
const char *conf_file(const struct conf *c); /* "" = none */

/* The sample configuration (conf/tiercel.conf), the README's table (markdown) and what
 * --help prints, from the rows. */
void conf_write_sample(struct buf *out);
void conf_write_table(struct buf *out);
/* The manual page tiercel.conf(5). */
void conf_write_man(struct buf *out);
void conf_write_help(struct buf *out);

#endif
