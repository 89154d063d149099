#ifndef TIERCEL_CHAIN_H
#define TIERCEL_CHAIN_H

#include "tiercel/check.h"
#include "tiercel/rcbuf.h"
#include "tiercel/slice.h"

/* Reply bytes on their way to a socket: a queue of segments. Small pieces are copied into
 * blocks; a large value is a reference to its rcbuf and is never copied. A segment can be
 * *packed*: its rcbuf is compressed and becomes plain in chain_unpack(), after the shard
 * locks were let go. One owner, no locks. Counted as MEM_CLIENT (references by their
 * length too, in `bytes`). */
struct chain_seg {
    struct chain_seg *next;
    struct rcbuf *ref; /* NULL: the bytes are in `block` */
    bool packed;
    uint32_t start, len, cap; /* of block */
    size_t ref_start;         /* bytes of ref already written */
    char block[];
};

/* First blocks of chains that were written, for those to come: the allocator keeps fewer of a size
 * at hand than there are clients that are answered together. One thread's. */
#define CHAIN_POOL_MAX 64
struct chain_pool {
    struct chain_seg *head;
    unsigned n;
};
void chain_pool_deinit(struct chain_pool *pool);

struct chain {
    struct chain_pool *pool; /* NULL: none. Set after chain_init(), kept by chain_deinit() */
    struct chain_seg *head, *tail;
    size_t bytes;     /* not yet consumed; a packed segment counts its raw length */
    unsigned npacked; /* packed segments not yet unpacked */
};

void chain_init(struct chain *c);
void chain_deinit(struct chain *c);
void chain_append(struct chain *c, const void *ptr, size_t len);
void chain_append_ref(struct chain *c, struct rcbuf *ref, bool packed); /* takes the reference */
void chain_move(struct chain *to, struct chain *from);                  /* appends all of from */

/* Replaces every packed segment by what `inflate` makes of it. `inflate` returns a new
 * reference, or NULL when the bytes are damaged: then false, and the chain must be dropped. */
bool chain_unpack(struct chain *c, struct rcbuf *(*inflate)(void *arg, const struct rcbuf *packed), void *arg);

/* The first pieces as iovecs (struct iovec *), at most max; then consume what was written. */
struct iovec;
int chain_iov(const struct chain *c, struct iovec *iov, int max);
void chain_consume(struct chain *c, size_t n);

/* Contiguous room in the tail block, or in a new one; commit with chain_commit(). */
char *chain_reserve_block(struct chain *c, size_t len);
static inline char *chain_reserve(struct chain *c, size_t len)
{
    struct chain_seg *s = c->tail;
    if (UNLIKELY(!s || s->ref || s->cap - s->len < len))
        return chain_reserve_block(c, len);
    return s->block + s->len;
}

static inline void chain_commit(struct chain *c, size_t len)
{
    struct chain_seg *s = c->tail;
    if (len == 0)
        return;
    CHECK(s && !s->ref && len <= s->cap - s->len);
    s->len += (uint32_t)len;
    c->bytes += len;
}

static inline bool chain_empty(const struct chain *c)
{
    return c->bytes == 0;
}

#endif
