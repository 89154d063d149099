#ifndef TIERCEL_RULES_H
#define TIERCEL_RULES_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/slice.h"
#include "tiercel/status.h"

/* Rules: how copies of upstream keys are kept, by key pattern. `rule PATTERN KEY=VALUE...` in the configuration, or
 * CACHE RULE SET. A `struct rules` is an immutable set, part of a `struct conf` snapshot (conf->rules), counted by
 * references; any thread may read it while it holds the snapshot. Times in ms, sizes in bytes.
 *
 * The most specific pattern that matches a key decides alone; what its rule leaves out is the setting's, not that of
 * another rule. More specific is: more literal bytes (all but * ? and [...]; \x is one); of as many, the longer
 * pattern; of as long ones, the one that was set later. */

#define RULES_MAX 256         /* rules of a set; matching walks them */
#define RULE_PATTERN_MAX 512  /* bytes */
#define RULE_MS_MAX 604800000 /* of every time: 7 days */
#define RULE_ERROR_MAX 256

enum rule_key {
    RULE_WRITE,         /* enum rule_write */
    RULE_TTL,           /* ms that a copy is fresh; 0: as long as it is coherent */
    RULE_TTL_JITTER,    /* percent of ttl by which it is shorter at most; each key has its own share */
    RULE_NEGATIVE_TTL,  /* ms */
    RULE_STALE_REFRESH, /* stale-while-revalidate: ms past ttl that a copy is served while it is refreshed */
    RULE_STALE_ERROR,   /* ms */
    RULE_REFRESH_AHEAD, /* percent of ttl left at which a hit refreshes */
    RULE_COMPRESS,      /* enum rule_compress */
    RULE_MAX_OBJECT,    /* bytes; where none is given: upstream-max-object */
    RULE_KEYS
};
enum rule_write {
    WRITE_THROUGH, /* a write drops the copy, the next read fetches it */
    WRITE_AROUND,  /* the same, and only the second read of a key keeps a copy */
    WRITE_LOCAL    /* its keys live only here, and are none of the upstream's */
};
enum rule_compress { COMPRESS_DEFAULT, COMPRESS_YES, COMPRESS_NO };

struct rule {
    char *pattern; /* NUL follows */
    size_t len;
    unsigned literal; /* bytes of the pattern that stand for themselves */
    uint64_t order;   /* ascends with the time it was set */
    bool given[RULE_KEYS];
    int64_t value[RULE_KEYS]; /* 0 where not given */
};

struct rules;
struct rules *rules_ref(struct rules *r); /* NULL is the empty set, here and below */
void rules_unref(struct rules *r);

/* A new set with one reference: `old` with the rule added, in place of one of the same pattern. words: the pattern and
 * its KEY=VALUEs. ST_BAD: err says why, one line; *out is not set. */
enum status rules_with(const struct rules *old, int nwords, const struct slice *words, struct rules **out,
                       char err[RULE_ERROR_MAX]);
/* ST_NOT_FOUND: there is no such pattern. */
enum status rules_without(const struct rules *old, struct slice pattern, struct rules **out);

/* The most specific one, or NULL. */
const struct rule *rules_match(const struct rules *r, struct slice key);
bool rules_have_local(const struct rules *r); /* is there one with write=local? */
unsigned rules_count(const struct rules *r);
const struct rule *rules_at(const struct rules *r, unsigned i); /* most specific first */
bool rule_matches(const struct rule *rule, struct slice key);

const char *rule_key_name(enum rule_key k);
/* "through", "5s", "10", "64kb": as it is given. */
void rule_value_format(enum rule_key k, int64_t value, struct buf *out);
/* KEY=VALUE of all that is given, separated by spaces. */
void rule_format(const struct rule *rule, struct buf *out);

struct conf;
/* What holds for a key: the rule's value or the setting's. *rule: NULL where none matches. */
struct rule_values {
    const struct rule *rule;
    int64_t value[RULE_KEYS];
};
void rules_values(const struct conf *c, struct slice key, struct rule_values *out);
/* The setting that a value comes from when no rule gives it, or "default". */
const char *rule_setting_name(enum rule_key k);

/* CACHE RULE SET and DEL: a new snapshot with one reference. Serialise calls, as of conf_set(). */
enum status conf_rule_set(const struct conf *cur, int nwords, const struct slice *words, struct conf **out,
                          char err[RULE_ERROR_MAX]);
enum status conf_rule_del(const struct conf *cur, struct slice pattern, struct conf **out);

#endif
