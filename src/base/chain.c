#include "tiercel/chain.h"

#include <sys/uio.h>

#include "tiercel/check.h"

/* The replies to a short pipeline fit a first block, and so need one write of one piece; a
 * stream of them deserves a large one; between two references there is only the framing of
 * the protocol. All less the segment's header. */
#define BLOCK_FIRST (4096 - sizeof(struct chain_seg))
#define BLOCK_NEXT (16384 - sizeof(struct chain_seg))
#define BLOCK_AFTER_REF (256 - sizeof(struct chain_seg))
#define BLOCK_MAX ((size_t)1 << 30)

void chain_init(struct chain *c)
{
    *c = (struct chain){0};
}

static void seg_free(struct chain_pool *pool, struct chain_seg *s)
{
    if (s->ref) {
        rcbuf_unref(s->ref);
    } else if (pool && s->cap == BLOCK_FIRST && pool->n < CHAIN_POOL_MAX) {
        s->next = pool->head;
        pool->head = s;
        pool->n++;
        return;
    }
    mem_free_sized(MEM_CLIENT, s, sizeof(*s) + s->cap);
}

static void segs_free(struct chain_pool *pool, struct chain_seg *s)
{
    for (struct chain_seg *next; s; s = next) {
        next = s->next;
        seg_free(pool, s);
    }
}

void chain_pool_deinit(struct chain_pool *pool)
{
    segs_free(NULL, pool->head);
    *pool = (struct chain_pool){0};
}

void chain_deinit(struct chain *c)
{
    segs_free(c->pool, c->head);
    *c = (struct chain){.pool = c->pool};
}

static struct chain_seg *seg_append(struct chain *c, size_t cap)
{
    struct chain_seg *s = cap == BLOCK_FIRST && c->pool ? c->pool->head : NULL;
    if (s) {
        c->pool->head = s->next;
        c->pool->n--;
    } else {
        s = mem_alloc(MEM_CLIENT, sizeof(*s) + cap);
    }
    *s = (struct chain_seg){.cap = (uint32_t)cap};
    if (c->tail)
        c->tail->next = s;
    else
        c->head = s;
    c->tail = s;
    return s;
}

static struct chain_seg *block_append(struct chain *c, size_t len)
{
    size_t cap = !c->tail ? BLOCK_FIRST : c->tail->ref ? BLOCK_AFTER_REF : BLOCK_NEXT;
    return seg_append(c, cap < len ? len : cap);
}

char *chain_reserve_block(struct chain *c, size_t len)
{
    CHECK(len <= BLOCK_MAX);
    return block_append(c, len)->block;
}

void chain_append(struct chain *c, const void *ptr, size_t len)
{
    const char *from = ptr;
    while (len) {
        struct chain_seg *s = c->tail;
        if (!s || s->ref || s->len == s->cap)
            s = block_append(c, len < BLOCK_MAX ? len : BLOCK_MAX);
        size_t n = s->cap - s->len;
        if (n > len)
            n = len;
        memcpy(s->block + s->len, from, n);
        s->len += (uint32_t)n;
        c->bytes += n;
        from += n;
        len -= n;
    }
}

void chain_append_ref(struct chain *c, struct rcbuf *ref, bool packed)
{
    size_t len = packed ? ref->raw_len : ref->len;
    if (len == 0) {
        rcbuf_unref(ref);
        return;
    }
    struct chain_seg *s = seg_append(c, 0);
    s->ref = ref;
    s->packed = packed;
    c->npacked += packed;
    c->bytes += len;
}

void chain_move(struct chain *to, struct chain *from)
{
    if (!from->head)
        return;
    if (to->tail)
        to->tail->next = from->head;
    else
        to->head = from->head;
    to->tail = from->tail;
    to->bytes += from->bytes;
    to->npacked += from->npacked;
    *from = (struct chain){.pool = from->pool};
}

bool chain_unpack(struct chain *c, struct rcbuf *(*inflate)(void *arg, const struct rcbuf *packed), void *arg)
{
    for (struct chain_seg *s = c->head; s && c->npacked; s = s->next) {
        if (!s->packed)
            continue;
        struct rcbuf *plain = inflate(arg, s->ref);
        if (!plain || plain->len != s->ref->raw_len) {
            rcbuf_unref(plain);
            return false;
        }
        rcbuf_unref(s->ref);
        s->ref = plain;
        s->packed = false;
        c->npacked--;
    }
    return true;
}

static size_t seg_pending(const struct chain_seg *s)
{
    return s->ref ? s->ref->len - s->ref_start : s->len - s->start;
}

/* Stops before a packed segment: what lies behind it must wait for chain_unpack(). */
int chain_iov(const struct chain *c, struct iovec *iov, int max)
{
    int n = 0;
    for (struct chain_seg *s = c->head; s && n < max && !s->packed; s = s->next) {
        size_t len = seg_pending(s);
        if (len == 0)
            continue; /* reserved, and nothing committed */
        iov[n].iov_base = s->ref ? s->ref->data + s->ref_start : s->block + s->start;
        iov[n].iov_len = len;
        n++;
    }
    return n;
}

void chain_consume(struct chain *c, size_t n)
{
    CHECK(n <= c->bytes);
    c->bytes -= n;
    for (struct chain_seg *s = c->head; s; s = c->head) {
        CHECK(!s->packed || n == 0);
        size_t len = s->packed ? s->ref->raw_len : seg_pending(s);
        if (n < len) {
            if (s->ref)
                s->ref_start += n;
            else
                s->start += (uint32_t)n;
            return;
        }
        n -= len;
        c->head = s->next;
        seg_free(c->pool, s);
    }
    c->tail = NULL;
}
