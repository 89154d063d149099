#ifndef TIERCEL_TYPE_HASH_H
#define TIERCEL_TYPE_HASH_H

#include "tiercel/dict.h"
#include "tiercel/num.h"
#include "tiercel/object.h"

/* Hashes: fields with a value each. Few and short ones are a listpack of fields and values in turn, in the order in
 * which they came (ENC_LISTPACK); others, and those of which a field ever expires, are in a hash table with an
 * allocation for each field and its value (ENC_BIG), and never back.
 *
 * Fields that expire are removed when a command comes across the hash, and by the tier layer's sweep: both call
 * hash_expire_fields(), and all other functions know no time. No walk is needed for it, as those that expire are in a heap.
 *
 * All functions are for objects of type OBJ_HASH; object_len() tells how many fields. Fields and values
 * that are handed out are valid until the next call with the same iterator or scratch, or the next change. No locks. */

struct object *hash_new(const struct key *key); /* empty */
/* false: there is no such field. */
bool hash_get(const struct object *o, struct slice field, char scratch[NUM_I64_MAX], struct slice *value);
bool hash_has(const struct object *o, struct slice field);
/* true: the field is new. It does not expire, whatever it did before. */
bool hash_set(struct object *o, struct slice field, struct slice value, const struct obj_limits *lim);
/* The same, but it expires when it did. */
bool hash_update(struct object *o, struct slice field, struct slice value, const struct obj_limits *lim);
bool hash_delete(struct object *o, struct slice field); /* true: it was there */

#define HASH_EXPIRY_MAX ((1LL << 48) - 1) /* latest time at which a field expires */

/* false: there is no such field. *at_ms: absolute wall time, 0 = never. */
bool hash_field_expiry(const struct object *o, struct slice field, int64_t *at_ms);
void hash_set_field_expiry(struct object *o, struct slice field, int64_t at_ms); /* of a field that is there */
/* When the first one expires; 0: none does. */
int64_t hash_first_expiry(const struct object *o);
/* Removes those whose time has come, the first ones first, `max` at most. Returns how many. */
size_t hash_expire_fields(struct object *o, int64_t now_ms, size_t max);

typedef void hash_field_fn(void *arg, struct slice field, struct slice value);

/* All fields in a loop; nothing may change meanwhile. */
struct hash_iter {
    const struct object *o;
    const unsigned char *small;
    struct dict_iter big;
    char scratch[2][NUM_I64_MAX];
};
struct hash_iter hash_iter(const struct object *o);
bool hash_next(struct hash_iter *it, struct slice *field, struct slice *value); /* false: that was all */

/* One step of HSCAN: a bucket, or all of a small hash. Returns the next cursor; 0: done. */
uint64_t hash_scan(const struct object *o, uint64_t cursor, hash_field_fn *fn, void *arg);

/* n times any field of a hash that is not empty, until fn returns false; rng: state of rng_next(). */
void hash_draw(const struct object *o, size_t n, uint64_t *rng,
               bool (*fn)(void *arg, struct slice field, struct slice value), void *arg);
/* n different ones, n <= object_len(). */
void hash_sample(const struct object *o, size_t n, uint64_t *rng, hash_field_fn *fn, void *arg);

#endif
