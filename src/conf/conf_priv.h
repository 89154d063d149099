#ifndef TIERCEL_CONF_PRIV_H
#define TIERCEL_CONF_PRIV_H

#include "tiercel/conf.h"

/* One id per row of conf.def, aliases included. */
enum conf_id {
#define CONF_BOOL(name, field, def, flags, help) CONF_ID_##field,
#define CONF_INT(name, field, def, min, max, flags, help) CONF_ID_##field,
#define CONF_BYTES(name, field, def, min, max, flags, help) CONF_ID_##field,
#define CONF_ENUM(name, field, def, names, flags, help) CONF_ID_##field,
#define CONF_STRING(name, field, def, flags, help) CONF_ID_##field,
#define CONF_KEPT(name, field, def, flags, help) CONF_ID_##field,
#define CONF_OBUF(name, field, flags, help) CONF_ID_##field,
#define CONF_ALIAS(name, field, target) CONF_ID_##field,
#include "conf.def"
    CONF_COUNT
};

enum conf_kind { KIND_BOOL, KIND_INT, KIND_BYTES, KIND_ENUM, KIND_STRING, KIND_OBUF, KIND_ALIAS };

struct conf_row {
    const char *name;
    enum conf_kind kind;
    unsigned flags;
    size_t offset;       /* of the field in struct conf */
    int64_t def;         /* BOOL, INT, BYTES, ENUM */
    int64_t min, max;    /* INT, BYTES */
    const char *text;    /* STRING: the default; ENUM: the names */
    enum conf_id target; /* ALIAS */
    const char *help;
};

extern const struct conf_row conf_rows[CONF_COUNT];

/* A line `user NAME RULE...`. */
struct conf_user {
    char *where; /* "file:3" */
    char *text;  /* "NAME RULE..." */
};

struct conf_priv {
    struct conf_user *users; /* of the first snapshot only */
    int nusers;
    char *file;                    /* absolute path of the configuration file, "" = none */
    char *secret_file[CONF_COUNT]; /* where the value of a CONF_SECRET row was read from, or NULL */
};

/* conf.c */
struct conf *conf_create(void); /* all defaults */
struct conf *conf_copy(const struct conf *c);
int conf_find(struct slice name);          /* id, or -1; ASCII case is ignored */
enum conf_id conf_target(enum conf_id id); /* of an alias the row that it names */
void conf_string_set(const char **field, const char *ptr, size_t len);
void conf_print_clean(struct buf *out, struct slice text); /* for messages: one line, printable, cut */

/* secret.c */
/* A secret's file, without the newline that editors leave at its end. */
bool conf_secret_read(const char *path, struct buf *out, struct buf *err);
const char *conf_token_fault(const char *token); /* why it is no http-token; NULL: it is one, or "" */

/* value.c */
enum conf_fault { FAULT_NONE, FAULT_SYNTAX, FAULT_REASON };

/* Sets a value from its text. On a fault the field is as before and *err is Redis's
 * message; FAULT_SYNTAX says that conf_value_valid() describes what is missing. */
enum conf_fault conf_value_parse(struct conf *c, enum conf_id id, struct slice text, struct buf *err);
void conf_value_format(const struct conf *c, enum conf_id id, struct buf *out); /* as CONFIG GET, secrets too */
bool conf_value_equal(const struct conf *a, const struct conf *b, enum conf_id id);
/* What settings demand of one another, when all are set: NULL, or why they do not go together; *id is one of them. */
const char *conf_conflict(const struct conf *c, enum conf_id *id);
void conf_value_valid(enum conf_id id, struct buf *out); /* "an integer from 1 to 64" */
void conf_bytes_format(struct buf *out, int64_t bytes);  /* "64mb" where that is exact */
extern const char *const conf_obuf_names[OBUF_CLASSES];

/* notify.c: is notify-keyspace-events valid? Puts its letters in Redis's order. */
const char *conf_check_notify(struct conf *c);

/* rules.c: "rule ...\n" for each rule, in the order in which they were set. */
void conf_rule_lines(const struct conf *c, struct buf *out);

/* The lines that set a row's value in a file, without newline: calls fn for each. */
void conf_value_lines(const struct conf *c, enum conf_id id, void (*fn)(void *arg, struct slice line), void *arg);

/* split.c: the words of a line of redis.conf: blanks separate, "..." knows \n \r \t \a \b
 * \xHH \", '...' knows \'. False: unbalanced quotes, or text right after a closing one. */
struct line {
    struct buf text;
    struct slice *words; /* each followed by a NUL */
    int nwords;
};
bool line_split(struct slice text, struct line *out);
void line_free(struct line *l);
void line_quote(struct buf *out, struct slice word);                    /* "..." with escapes */
void line_join(struct buf *out, int nwords, const struct slice *words); /* quotes where needed */

#endif
