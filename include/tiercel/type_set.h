#ifndef TIERCEL_TYPE_SET_H
#define TIERCEL_TYPE_SET_H

#include "tiercel/dict.h"
#include "tiercel/num.h"
#include "tiercel/object.h"

/* Sets: different members in no order. While all are integers, and not too many, they are kept sorted in one
 * allocation (ENC_INTSET, in Redis's own form, so that DUMP is a copy); else in a hash table with an allocation for each
 * (ENC_BIG). All functions are for objects of type OBJ_SET; object_len() tells how many. A member that
 * is handed out is valid until the next call with the same object, or the next change. No locks. */

/* Empty, in the encoding that suits its first member. */
struct object *set_new(const struct key *key, struct slice first);
/* true: it was not a member. max_intset: obj_limits.set_intset. */
bool set_add(struct object *o, struct slice member, size_t max_intset);
bool set_remove(struct object *o, struct slice member); /* true: it was one */
bool set_has(const struct object *o, struct slice member);

/* All members; fn must not change the set. */
void set_each(const struct object *o, void (*fn)(void *arg, struct slice member), void *arg);
/* The same in a loop. */
struct set_iter {
    const struct object *o;
    size_t at;
    struct dict_iter big;
    char text[NUM_I64_MAX];
};
struct set_iter set_iter(const struct object *o);
bool set_next(struct set_iter *it, struct slice *member); /* false: that was all */

/* One step of SSCAN: a bucket, or all of a compact set. Returns the next cursor; 0: done. */
uint64_t set_scan(const struct object *o, uint64_t cursor, void (*fn)(void *arg, struct slice member), void *arg);

/* Any member of a set that is not empty; rng: state of rng_next(). */
struct slice set_random(const struct object *o, uint64_t *rng, char text[NUM_I64_MAX]);
/* n different ones, n <= object_len(). */
void set_sample(const struct object *o, size_t n, uint64_t *rng, void (*fn)(void *arg, struct slice member), void *arg);
/* The same, and removes them. When few are left of many, they have the encoding of a new set, as in Redis: the only
 * way back to ENC_INTSET. */
void set_pop(struct object *o, size_t n, size_t max_intset, uint64_t *rng, void (*fn)(void *arg, struct slice member),
             void *arg);

#endif
