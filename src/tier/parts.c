/* The serial form of a large value, made in parts: a part under the shard's lock, the rest without it. */
#include "tiercel/pace.h"
#include "tier_priv.h"

#define PART_BYTES (2 * 1024) /* under one hold of the lock */
#define PART_UNITS 20000      /* what that takes, for pace_spend() */

void tier_parts_init(struct tier_parts *p, struct tier *t)
{
    *p = (struct tier_parts){.t = t};
    buf_init(&p->part, MEM_OTHER);
}

void tier_parts_next_locked(struct tier_parts *p, const struct object *o)
{
    p->part.len = 0;
    p->about = object_stored_len(o);
    p->last = object_serialise_part(o, &p->at, PART_BYTES, &p->part);
}

/* It is freed, or queued, soon: no reason to evict others for it. */
static void resize(struct tier_parts *p, size_t size)
{
    size_t before = p->whole ? p->whole->len : 0;

    atomic_fetch_add_explicit(&p->t->demoting_bytes, (int64_t)size - (int64_t)before, memory_order_relaxed);
    p->whole = p->whole ? rcbuf_resize(p->whole, size) : rcbuf_create(size);
}

void tier_parts_take(struct tier_parts *p, struct pace *pace)
{
    if (!p->whole)
        resize(p, p->about + p->about / 8); /* `about` may be a little wrong */
    if (p->len + p->part.len > p->whole->len)
        resize(p, p->len + p->part.len + p->len / 4);
    memcpy(p->whole->data + p->len, p->part.ptr, p->part.len);
    p->len += p->part.len;
    if (p->last)
        resize(p, p->len);
    pace_spend(pace, PART_UNITS + p->part.len);
}

void tier_parts_deinit(struct tier_parts *p)
{
    if (p->whole)
        atomic_fetch_sub_explicit(&p->t->demoting_bytes, (int64_t)p->whole->len, memory_order_relaxed);
    rcbuf_unref(p->whole);
    buf_deinit(&p->part);
}
