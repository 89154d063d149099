#ifndef TIERCEL_TYPE_ZSET_H
#define TIERCEL_TYPE_ZSET_H

#include "tiercel/num.h"
#include "tiercel/object.h"

/* Sorted sets: members with a score each, ordered by score, then by the bytes of the name. A small one is a listpack
 * of members and scores, in that order, as Redis has it (ENC_LISTPACK); a large one a dict and an order-statistics
 * tree over the same entries (ENC_BIG): a member's score is O(1), ranks and the ends of ranges are O(log n). Ranks
 * count from the lowest score, from 0. No locks: the object's shard is locked, or the object is nobody else's. */

/* An empty one: as Redis begins it whose first member is that long. */
struct object *zset_new(const struct key *key, const struct obj_limits *lim, size_t name_len);

bool zset_score(const struct object *o, struct slice name, double *score);
bool zset_rank(const struct object *o, struct slice name, size_t *rank);

/* ---- changing: ks_changed() or ks_put() follows ---- */

enum zset_how { ZSET_NX = 1, ZSET_XX = 2, ZSET_GT = 4, ZSET_LT = 8, ZSET_INCR = 16 }; /* ZADD's options */
enum zset_result { ZSET_NOTHING, ZSET_SAME, ZSET_ADDED, ZSET_UPDATED, ZSET_NAN }; /* NOTHING: the options forbid it */
/* *score: what to set or to add; then, but for NOTHING and NAN, what it is. */
enum zset_result zset_add(struct object *o, struct slice name, double *score, unsigned how,
                          const struct obj_limits *lim);
bool zset_remove(struct object *o, struct slice name);
void zset_remove_ranks(struct object *o, size_t first, size_t n);

/* ---- reading in order ---- */

struct zset_iter {
    /* After zset_next(): the member. Valid until the next call, and the next change of the object. */
    struct slice name;
    double score;
    /* What follows it. */
    bool back;
    const unsigned char *lp, *p;
    const void *leaf;
    unsigned at;
    char scratch[NUM_I64_MAX];
};
/* From that rank on, upwards or (back) downwards; behind the last: nothing. */
void zset_seek(const struct object *o, size_t rank, bool back, struct zset_iter *it);
bool zset_next(struct zset_iter *it);

/* ZRANGEBYSCORE's and ZRANGEBYLEX's. */
struct zset_bound {
    bool open; /* itself not included */
    double score;
    struct slice name;
    int inf; /* lex: -1 or 1 where it is '-' or '+' */
};
struct zset_range {
    bool lex;
    struct zset_bound min, max;
};
/* How many are in it; *first: the rank of the lowest. back matters by lex only, where scores differ, for which nothing
 * is promised, but Redis does the same for its small ones. */
size_t zset_find_range(const struct object *o, const struct zset_range *r, bool back, size_t *first);

/* ZSCAN: all of a small one, some of a large one; scores as Redis prints them there. Returns the next cursor. */
uint64_t zset_scan(const struct object *o, uint64_t cursor,
                   void (*fn)(void *arg, struct slice name, struct slice score), void *arg);

/* ---- making one of members in any order ---- */

struct zset_draft;
struct zset_draft *zset_draft_create(void);
void zset_draft_destroy(struct zset_draft *d);
size_t zset_draft_len(const struct zset_draft *d);
/* Where its score is, which may be changed until the draft is finished; *added: it is 0, for the member is new. */
double *zset_draft_place(struct zset_draft *d, struct slice name, bool *added);
/* Takes the draft. lim NULL: an object for reading only, of any encoding. */
struct object *zset_draft_finish(struct zset_draft *d, const struct key *key, const struct obj_limits *lim);

#endif
