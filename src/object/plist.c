#include "object_priv.h"

/* Elements lie end to end in buf[start, end), each as | length 4 | bytes | length 4 |, so
 * that it can be walked from both ends. Free room is kept at both ends. */
struct plist {
    char *buf;
    size_t cap, start, end;
    size_t count;
};

#define LENGTHS 8 /* bytes of both length fields of an element */
#define CAP_MIN 64

static uint32_t u32_get(const char *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof(v));
    return v;
}

static void u32_put(char *at, uint32_t v)
{
    memcpy(at, &v, sizeof(v));
}

struct plist *plist_create(void)
{
    return mem_calloc(MEM_DATA, sizeof(struct plist));
}

void plist_destroy(struct plist *l)
{
    if (!l)
        return;
    mem_free(MEM_DATA, l->buf);
    mem_free(MEM_DATA, l);
}

struct plist *plist_copy(const struct plist *l)
{
    struct plist *n = plist_create();
    size_t used = l->end - l->start;
    n->count = l->count;
    if (used) {
        n->buf = mem_alloc(MEM_DATA, used);
        memcpy(n->buf, l->buf + l->start, used);
        n->cap = n->end = used;
    }
    return n;
}

size_t plist_len(const struct plist *l)
{
    return l->count;
}

size_t plist_bytes(const struct plist *l)
{
    return mem_usable(l) + (l->buf ? mem_usable(l->buf) : 0);
}

size_t plist_plain_len(const struct plist *l)
{
    return plist_stored_len(l) - l->count * LENGTHS;
}

size_t plist_stored_len(const struct plist *l)
{
    return l->end - l->start;
}

/* Moves the elements so that they start at `start`, into `cap` bytes of room. */
static void plist_move(struct plist *l, size_t cap, size_t start)
{
    size_t used = l->end - l->start;
    if (cap == l->cap) {
        memmove(l->buf + start, l->buf + l->start, used);
    } else {
        char *buf = mem_alloc(MEM_DATA, cap);
        if (used)
            memcpy(buf + start, l->buf + l->start, used);
        mem_free(MEM_DATA, l->buf);
        l->buf = buf;
        l->cap = cap;
    }
    l->start = start;
    l->end = start + used;
}

/* Room for `need` more bytes at one end. Three quarters of what is free go to the end that
 * is pushed to, the rest to the other: whichever way pushes alternate, a move comes once in
 * a constant fraction of the list's size. */
static void plist_make_room(struct plist *l, bool left, size_t need)
{
    size_t used = l->end - l->start;
    size_t cap = l->cap;
    if (used == 0 && cap < need)
        cap = need < CAP_MIN ? CAP_MIN : need;
    else if (cap - used < need + used / 2)
        cap = used + need + (used + need) / 2;
    size_t spare = cap - used - need;
    size_t before = left ? need + spare - spare / 4 : spare / 4;
    plist_move(l, cap, used ? before : left ? cap : 0);
}

void plist_push(struct plist *l, bool left, struct slice elem)
{
    CHECK(elem.len <= UINT32_MAX);
    size_t need = elem.len + LENGTHS;
    if ((left ? l->start : l->cap - l->end) < need)
        plist_make_room(l, left, need);
    if (left)
        l->start -= need;
    char *at = l->buf + (left ? l->start : l->end);
    if (!left)
        l->end += need;
    u32_put(at, (uint32_t)elem.len);
    if (elem.len)
        memcpy(at + 4, elem.ptr, elem.len);
    u32_put(at + 4 + elem.len, (uint32_t)elem.len);
    l->count++;
}

bool plist_pop(struct plist *l, bool left, struct buf *out)
{
    if (l->count == 0)
        return false;
    size_t len = u32_get(left ? l->buf + l->start : l->buf + l->end - 4);
    buf_append(out, left ? l->buf + l->start + 4 : l->buf + l->end - 4 - len, len);
    if (left)
        l->start += len + LENGTHS;
    else
        l->end -= len + LENGTHS;
    l->count--;

    size_t used = l->end - l->start;
    if (l->cap > 4 * CAP_MIN && used < l->cap / 4)
        plist_move(l, used * 2 + CAP_MIN, used / 2 + CAP_MIN / 2);
    return true;
}

/* Where element `index` starts: walked from the nearer end. */
static size_t plist_seek(const struct plist *l, size_t index)
{
    size_t pos;
    if (index < l->count / 2) {
        pos = l->start;
        while (index--)
            pos += u32_get(l->buf + pos) + LENGTHS;
    } else {
        pos = l->end;
        for (size_t i = l->count; i > index; i--)
            pos -= u32_get(l->buf + pos - 4) + LENGTHS;
    }
    return pos;
}

void plist_range(const struct plist *l, size_t first, size_t last, void (*fn)(void *arg, struct slice elem), void *arg)
{
    CHECK(first <= last && last < l->count);
    size_t pos = plist_seek(l, first);
    for (size_t i = first; i <= last; i++) {
        size_t len = u32_get(l->buf + pos);
        fn(arg, SLICE(l->buf + pos + 4, len));
        pos += len + LENGTHS;
    }
}

void plist_serialise(const struct plist *l, struct buf *out)
{
    buf_reserve(out, l->end - l->start);
    for (size_t pos = l->start; pos < l->end;) {
        size_t len = u32_get(l->buf + pos);
        buf_append(out, l->buf + pos, 4 + len);
        pos += len + LENGTHS;
    }
}

struct plist *plist_parse(struct slice in)
{
    /* Counted before anything is allocated: lengths may be garbage. */
    size_t count = 0;
    for (size_t pos = 0; pos < in.len; count++) {
        if (in.len - pos < 4 || in.len - pos - 4 < u32_get(in.ptr + pos))
            return NULL;
        pos += 4 + (size_t)u32_get(in.ptr + pos);
    }
    if (count == 0)
        return NULL; /* an empty list is no list: its key would not exist */

    struct plist *l = plist_create();
    plist_move(l, in.len + 4 * count, 0);
    for (size_t pos = 0; pos < in.len;) {
        size_t len = u32_get(in.ptr + pos);
        plist_push(l, false, SLICE(in.ptr + pos + 4, len));
        pos += 4 + len;
    }
    return l;
}
