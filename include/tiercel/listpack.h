#ifndef TIERCEL_LISTPACK_H
#define TIERCEL_LISTPACK_H

#include <stdint.h>

#include "tiercel/num.h"
#include "tiercel/slice.h"

/* Small strings and integers end to end in one allocation, walked from both ends: Redis's own
 * format (https://github.com/antirez/listpack/blob/master/listpack.md), so that DUMP and the disk
 * need no conversion. A string that is an int64 in its canonical form is kept as one.
 *
 *   | bytes 4 | elements 2 (65535: count them) | element ... | 255 |
 *
 * No locks. An `lp` is MEM_DATA, and whatever changes it may move it: the functions return the new
 * one. Positions (`p`) are into it and end with the next change; NULL is behind the last. What
 * comes from outside goes through listpack_valid() before anything else. */
#define LISTPACK_SAFE_BYTES (1u << 30) /* none gets longer: callers split or convert before */

struct listpack_value {
    struct slice str; /* ptr NULL: it is the number */
    int64_t num;
};

unsigned char *listpack_new(size_t room); /* empty; `room` bytes for what is to come, 0 = none */
void listpack_free(unsigned char *lp);
unsigned char *listpack_copy(const unsigned char *lp);
/* From bytes that listpack_valid() took. */
unsigned char *listpack_from(struct slice bytes);
/* Is this one listpack, and every element of it whole? O(n). */
bool listpack_valid(struct slice bytes);

size_t listpack_bytes(const unsigned char *lp);       /* its length */
size_t listpack_usable(const unsigned char *lp);      /* of memory */
size_t listpack_len(const unsigned char *lp);         /* elements; O(1) below 65535 */
struct slice listpack_slice(const unsigned char *lp); /* all of it */

unsigned char *listpack_first(const unsigned char *lp);
unsigned char *listpack_last(const unsigned char *lp);
unsigned char *listpack_next(const unsigned char *lp, const unsigned char *p);
unsigned char *listpack_prev(const unsigned char *lp, const unsigned char *p);
unsigned char *listpack_at(const unsigned char *lp, long index); /* negative: from the end; NULL: out of it */

void listpack_get(const unsigned char *p, struct listpack_value *v);
/* As a string; a number is written to `scratch`. */
struct slice listpack_str(const unsigned char *p, char scratch[NUM_I64_MAX]);
bool listpack_is(const unsigned char *p, struct slice elem);
/* The first one that is `elem`, from p on, looking at every (skip + 1)th; NULL: none. */
unsigned char *listpack_find(const unsigned char *lp, unsigned char *p, struct slice elem, unsigned skip);

/* Bytes that it takes to add an element. */
size_t listpack_cost(struct slice elem);

/* *at (may be NULL) becomes the position of the new element. p NULL: at the end. */
unsigned char *listpack_insert(unsigned char *lp, unsigned char *p, struct slice elem, unsigned char **at);
unsigned char *listpack_replace(unsigned char *lp, unsigned char *p, struct slice elem, unsigned char **at);
unsigned char *listpack_append(unsigned char *lp, struct slice elem);
unsigned char *listpack_prepend(unsigned char *lp, struct slice elem);
/* The same, for what will be pushed to again: now and then memory for a few more is got at once. */
unsigned char *listpack_push(unsigned char *lp, bool left, struct slice elem);
unsigned char *listpack_append_int(unsigned char *lp, int64_t num);
unsigned char *listpack_replace_int(unsigned char *lp, unsigned char *p, int64_t num, unsigned char **at);
/* Removes n elements from p on (fewer if there are not so many); *at: what follows them. */
unsigned char *listpack_remove(unsigned char *lp, unsigned char *p, size_t n, unsigned char **at);
/* Adds all elements of `more` at the end. */
unsigned char *listpack_join(unsigned char *lp, const unsigned char *more);

#endif
