#ifndef TIERCEL_TYPE_LIST_H
#define TIERCEL_TYPE_LIST_H

#include "tiercel/num.h"
#include "tiercel/object.h"

/* Lists: nodes of listpacks in an array, or while one node does, that listpack itself behind the object. `size` is
 * list-max-listpack-size: what a node may hold (n > 0: elements, within 8 KB; -1 to -5: 4 KB to 64 KB). An element that
 * is larger has a node of its own, as plain bytes. Adding and removing at the ends costs what moving bytes within a
 * node does; an index is found by walking nodes, from the nearer end.
 *
 * No locks. What changes a list may change its object's encoding, and ends all positions in it. */

/* An empty list, which grows by qlist_push(). */
struct object *qlist_create(const struct key *key);
static inline size_t qlist_len(const struct object *o)
{
    return object_len(o);
}

void qlist_push(struct object *o, bool left, struct slice elem, int size);
/* Removes so many elements at the ends; there are as many. */
void qlist_trim(struct object *o, size_t left, size_t right);
/* Replaces the element at `index`, which exists. */
void qlist_set(struct object *o, size_t index, struct slice elem, int size);
/* Removes the first `max` elements that are `elem`, or the last ones; returns how many there were. */
size_t qlist_remove(struct object *o, struct slice elem, size_t max, bool from_right);

/* ---- positions ---- */
struct qlist;
struct qlist_pos {
    struct object *o;
    struct qlist *q; /* NULL: one listpack */
    size_t node;
    unsigned char *p; /* in its listpack; NULL: the node is plain */
};

/* index < qlist_len(). */
void qlist_seek(struct object *o, size_t index, struct qlist_pos *at);
/* To the next element, or the one before; false: there is none. */
bool qlist_step(struct qlist_pos *at, bool back);
/* A number is written to `scratch`. */
struct slice qlist_get(const struct qlist_pos *at, char scratch[NUM_I64_MAX]);
/* Adds an element next to it. */
void qlist_insert(const struct qlist_pos *at, bool after, struct slice elem, int size);

/* What elements are compared with: a number is parsed once. */
struct qlist_wanted {
    struct slice text;
    int64_t num;
    bool is_num;
};
struct qlist_wanted qlist_want(struct slice elem);
bool qlist_is(const struct qlist_pos *at, const struct qlist_wanted *want);

#endif
