#include "tiercel/rcbuf.h"

struct rcbuf *rcbuf_create(size_t len)
{
    struct rcbuf *b = mem_alloc(MEM_DATA, sizeof(*b) + len);
    atomic_init(&b->refs, 1);
    b->pad = 0;
    b->raw_len = 0;
    b->len = len;
    return b;
}

struct rcbuf *rcbuf_copy(struct slice from)
{
    struct rcbuf *b = rcbuf_create(from.len);
    if (from.len)
        memcpy(b->data, from.ptr, from.len);
    return b;
}

void rcbuf_unref(struct rcbuf *b)
{
    if (!b)
        return;
    /* Release: our reads end before another thread frees. Acquire: theirs ended before we do. */
    if (atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1)
        mem_free(MEM_DATA, b);
}

struct rcbuf *rcbuf_resize(struct rcbuf *b, size_t len)
{
    b = mem_realloc(MEM_DATA, b, sizeof(*b) + len);
    b->len = len;
    return b;
}
