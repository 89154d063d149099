#ifndef TIERCEL_DICT_H
#define TIERCEL_DICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiercel/slice.h"

/* A hash table within one value: fields of a hash, members of a set. It links entries that its user allocates, each
 * beginning with a struct dict_entry. Buckets are in the order of the hashes, at any size, so a cursor is a
 * prefix of a hash, and a walk by cursors meets every entry that is there from its start to its end, however the table
 * grows or shrinks meanwhile. Growing and shrinking move a few buckets with each change: no operation is longer
 * than that, but dict_each() and dict_clear(). No locks. */
struct dict_entry {
    struct dict_entry *next;
};

struct dict_table {
    struct dict_entry **bucket;
    unsigned bits; /* 1 << bits buckets */
};

struct dict {
    struct slice (*key)(const struct dict_entry *e);
    size_t count;
    struct dict_table now, next; /* next.bucket: what it is being moved to */
    size_t moved;                /* buckets of `now`, from the first on */
};

void dict_init(struct dict *d, struct slice (*key)(const struct dict_entry *e));
/* Frees all entries with `free_entry` (NULL: they are somebody else's), and the table. */
void dict_clear(struct dict *d, void (*free_entry)(void *arg, struct dict_entry *e), void *arg);
/* Room for so many at once, before they come. Of an empty one. */
void dict_reserve(struct dict *d, size_t count);
size_t dict_bytes(const struct dict *d); /* of the table, without entries */

struct dict_entry *dict_find(const struct dict *d, struct slice key);
/* Where the pointer to it is: an entry that moved is put back there. NULL: none. Ends with the next change. */
struct dict_entry **dict_place(struct dict *d, struct slice key);
/* Its key is not in there. */
void dict_add(struct dict *d, struct dict_entry *e);
/* Takes it out; the caller frees it. NULL: none. */
struct dict_entry *dict_remove(struct dict *d, struct slice key);

/* One step of a walk that others may interrupt: fn for all entries of one bucket; returns the next cursor, 0: done. fn
 * must not change the dict. Cursors have 48 bits. */
uint64_t dict_scan(const struct dict *d, uint64_t cursor, void (*fn)(void *arg, struct dict_entry *e), void *arg);
/* All of them, until fn returns false; fn must not change the dict. */
void dict_each(const struct dict *d, bool (*fn)(void *arg, struct dict_entry *e), void *arg);

/* All of them in a loop; nothing may change meanwhile. */
struct dict_iter {
    const struct dict *d;
    uint64_t cursor;
    struct dict_entry *e;
    bool started;
};
static inline struct dict_iter dict_iter(const struct dict *d)
{
    return (struct dict_iter){.d = d};
}
struct dict_entry *dict_next(struct dict_iter *it); /* NULL: that was all */

/* Any of them, about as likely as any other; rng: state of rng_next(). NULL: it is empty. */
struct dict_entry *dict_random(const struct dict *d, uint64_t *rng);
/* n different ones (at most all), any n about as likely as any others, in no particular order. The caller frees it,
 * MEM_OTHER. */
struct dict_entry **dict_sample(const struct dict *d, size_t n, uint64_t *rng);

#endif
