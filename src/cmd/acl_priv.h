#ifndef TIERCEL_CMD_ACL_PRIV_H
#define TIERCEL_CMD_ACL_PRIV_H

#include "tiercel/acl.h"

#include "cmd/cmd_priv.h"

/* What the files about users share: acl_user.c (a user and its rules), acl_describe.c (the rules back again),
 * acl_check.c (may it?), acl_table.c (all users, sessions), acl_file.c, acl_log.c, acl.c (the commands). */

#define ACL_WORDS ((CMDID_COUNT + 63) / 64)

struct acl_commands {
    uint64_t word[ACL_WORDS]; /* a bit per row of the command table */
};

enum acl_right { ACL_READ = 1, ACL_WRITE = 2 };

struct acl_pattern {
    struct slice text; /* owned */
    unsigned rights;
};

/* "+select|0": the command is allowed with that first argument only. */
struct acl_first_arg {
    int id;
    struct slice text; /* owned */
};

struct acl_selector {
    bool all_commands; /* nothing was taken away since +@all */
    bool future;       /* +@all, less some: the rules are told by what is taken away */
    bool all_keys, all_channels;
    struct acl_commands allowed;
    struct acl_first_arg *first;
    int nfirst;
    struct acl_pattern *keys;
    int nkeys;
    struct slice *channels; /* owned */
    int nchannels;
};

struct acl_password {
    char hash[65];
};

struct acl_user {
    _Atomic int refs;
    uint64_t id;       /* stays through changes; one that is deleted and created again has another */
    struct slice name; /* owned */
    bool on, nopass;
    bool sanitize, skip_sanitize; /* kept and reported: RESTORE checks everything anyway */
    bool everything;              /* all commands, keys and channels; set by acl_user_ready() */
    struct acl_password *passwords;
    int npasswords;
    struct acl_selector **selectors; /* [0]: the root, which the user's plain rules are about */
    int nselectors;
};

/* ---- a user (acl_user.c): one thread until it is published ---- */

/* all_channels: what acl-pubsub-default says of new ones. */
struct acl_user *acl_user_create(struct slice name, bool all_channels);
struct acl_user *acl_user_copy(const struct acl_user *u);
struct acl_user *acl_user_ref(struct acl_user *u);
void acl_user_unref(struct acl_user *u);
/* One rule, as of ACL SETUSER; a selector is one word. NULL, or Redis's text of what is wrong. */
const char *acl_user_rule(struct acl_user *u, struct slice rule, bool all_channels);
extern const char acl_no_such_command[], acl_duplicate_user[];
/* Before it is published. */
void acl_user_ready(struct acl_user *u);
bool acl_user_has_password(const struct acl_user *u, struct slice password);

/* Words with those put together that are one selector: "(~a" "+get)". */
struct acl_words {
    int n;
    struct slice *word;
    struct buf text;
};
/* false: *at is where one begins that does not end. */
bool acl_words_init(struct acl_words *w, int n, const struct slice *words, int *at);
void acl_words_deinit(struct acl_words *w);
/* All of them; NULL, or what is wrong with word *at. */
const char *acl_user_rules(struct acl_user *u, const struct acl_words *w, bool all_channels, int *at);

static inline bool acl_commands_has(const struct acl_commands *c, int id)
{
    return c->word[id / 64] >> (id % 64) & 1;
}
/* The command with its subcommands. */
void acl_commands_of(const struct command *cmd, struct acl_commands *out);
/* Those of a category, and those that a rule about it changes: a container takes its subcommands along. */
void acl_commands_in(uint32_t category, bool with_subcommands, struct acl_commands *out);
void acl_selector_set(struct acl_selector *s, const struct acl_commands *which, bool allow);

extern const char *const acl_category_names[CAT_COUNT]; /* introspect.c */

/* ---- the rules of a user, as text (acl_describe.c) ---- */
void acl_describe(const struct acl_user *u, struct buf *out); /* "on nopass ~* &* +@all" */
void acl_describe_commands(const struct acl_selector *s, struct buf *out);
void acl_describe_keys(const struct acl_selector *s, struct buf *out);
void acl_describe_channels(const struct acl_selector *s, struct buf *out);

/* ---- may it? (acl_check.c) ---- */
enum acl_verdict { ACL_OK, ACL_COMMAND, ACL_KEY, ACL_AUTH, ACL_CHANNEL };
/* cmd NULL: one that only an upstream knows. *at: the argument at fault. */
enum acl_verdict acl_check(const struct acl_user *u, const struct command *cmd, int argc, const struct slice *argv,
                           int *at);
bool acl_check_reads_all(const struct acl_user *u, const struct command *cmd, int argc, const struct slice *argv);
bool acl_channel_allowed(const struct acl_user *u, struct slice channel, bool is_pattern);
/* May somebody who could listen to something as `was` not do so as `is`? */
bool acl_channels_shrank(const struct acl_user *was, const struct acl_user *is);

/* ---- all users (acl_table.c) ---- */
struct acl_log;

/* Sorted by name; each with a reference. */
struct acl_names {
    struct acl_user **user;
    int n, cap;
};
struct acl_user *acl_names_find(const struct acl_names *names, struct slice name); /* NULL: none */
void acl_names_add(struct acl_names *names, struct acl_user *u);                   /* none has its name */
void acl_names_deinit(struct acl_names *names);

struct acl {
    pthread_mutex_t lock; /* guards what follows, but the atomics */
    struct acl_names users;
    uint64_t next_id;
    _Atomic uint64_t *generation; /* cmd.acl_generation, once there is one */
    _Atomic uint64_t first_generation;
    _Atomic bool default_nopass, default_on;
    struct acl_log *log;
};

struct acl_user *acl_get(struct acl *a, struct slice name); /* with a reference; NULL: none */
/* Takes the reference. The user is new, or takes the place of the one of that name. */
void acl_put(struct acl *a, struct acl_user *u);
/* SETUSER, and the line of a file: with that user's rules, or a new one. */
struct acl_user *acl_edit(struct acl *a, struct slice name, bool all_channels);
bool acl_delete(struct acl *a, struct slice name);
/* All users are replaced by these, which are taken. One of them is the default user. */
void acl_replace(struct acl *a, struct acl_names *users);
/* All of them, as they are now. */
void acl_all(struct acl *a, struct acl_names *out);
/* AUTH: the session is that user's now. */
bool acl_session_authenticate(struct session *s, struct slice name, struct slice password);
/* The newest rules of its user. false: there is no such user any more, or it listens to what it may not: the client has to
 * go. */
bool acl_session_refresh(struct session *s);
struct acl_user *acl_default_user(void); /* as a server has it that was told nothing */

/* ---- files (acl_file.c) ---- */
/* All or nothing. *err: Redis's text. */
bool acl_file_load(struct acl *a, const struct conf *conf, struct buf *err);
bool acl_file_save(struct acl *a, const struct conf *conf); /* errno */

/* ---- ACL LOG (acl_log.c) ---- */
enum acl_context { ACL_TOPLEVEL, ACL_MULTI, ACL_LUA };
struct acl_log *acl_log_create(void);
void acl_log_destroy(struct acl_log *log);
void acl_log_add(struct call *c, enum acl_verdict why, enum acl_context where, struct slice object,
                 struct slice username);

#endif
