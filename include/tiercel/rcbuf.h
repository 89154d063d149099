#ifndef TIERCEL_RCBUF_H
#define TIERCEL_RCBUF_H

#include <stdatomic.h>
#include <stdint.h>

#include "tiercel/alloc.h"
#include "tiercel/slice.h"

/* A reference-counted buffer: large values are kept in one, so that a reply writes it to a socket
 * without a copy and after the shard's lock was let go. Written only while it has one reference, by who
 * holds that. Any thread may ref and unref. Counted as MEM_DATA. */
struct rcbuf {
    _Atomic uint32_t refs;
    uint32_t pad;
    size_t raw_len; /* size before compression; 0 = data is as the client sent it */
    size_t len;
    char data[];
};

struct rcbuf *rcbuf_create(size_t len); /* one reference, the caller's */
struct rcbuf *rcbuf_copy(struct slice from);

static inline struct rcbuf *rcbuf_ref(struct rcbuf *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void rcbuf_unref(struct rcbuf *b); /* NULL is ignored */
/* May it be written, by who holds a reference and lets nobody take another? */
static inline bool rcbuf_is_mine(struct rcbuf *b)
{
    return atomic_load_explicit(&b->refs, memory_order_acquire) == 1;
}
/* Of one that is mine: as long, or as short; what it has more is not set. It may move. */
struct rcbuf *rcbuf_resize(struct rcbuf *b, size_t len);

static inline struct slice rcbuf_slice(const struct rcbuf *b)
{
    return SLICE(b->data, b->len);
}

#endif
