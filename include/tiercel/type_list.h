#ifndef TIERCEL_TYPE_LIST_H
#define TIERCEL_TYPE_LIST_H

#include "tiercel/buf.h"
#include "tiercel/slice.h"

/* Plain lists: a contiguous deque, O(1) at both ends, O(n) inside. */
struct plist;
struct plist *plist_create(void);
struct plist *plist_copy(const struct plist *l);
void plist_destroy(struct plist *l);
size_t plist_len(const struct plist *l);
size_t plist_bytes(const struct plist *l);
size_t plist_plain_len(const struct plist *l);  /* bytes of all elements */
size_t plist_stored_len(const struct plist *l); /* with their lengths */
void plist_push(struct plist *l, bool left, struct slice elem);
bool plist_pop(struct plist *l, bool left, struct buf *out); /* appends the element to out; false: empty */
/* Iterates elements first..last (0-based, inclusive, within bounds), in order. */
void plist_range(const struct plist *l, size_t first, size_t last, void (*fn)(void *arg, struct slice elem), void *arg);

#endif
