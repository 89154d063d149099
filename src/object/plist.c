#include "object_priv.h"
#include "tiercel/rdb.h"
#include "tiercel/type_list.h"

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

/* ---- as a type of object ---- */

static const char *list_encoding(enum obj_enc enc)
{
    (void)enc;
    return "quicklist";
}

static void list_destroy(enum obj_enc enc, void *value)
{
    (void)enc;
    plist_destroy(value);
}

static void *list_copy(enum obj_enc enc, const void *value)
{
    (void)enc;
    return plist_copy(value);
}

static size_t list_bytes(enum obj_enc enc, const void *value)
{
    (void)enc;
    return plist_bytes(value);
}

static size_t list_len(enum obj_enc enc, const void *value)
{
    (void)enc;
    return plist_len(value);
}

static size_t list_stored(enum obj_enc enc, const void *value)
{
    (void)enc;
    return plist_stored_len(value);
}

static void save_elem(void *arg, struct slice elem)
{
    rdb_put_string(arg, elem);
}

static void list_save(enum obj_enc enc, const void *value, struct buf *out)
{
    const struct plist *l = value;
    (void)enc;

    buf_byte(out, RDB_LIST);
    rdb_put_len(out, l->count);
    plist_range(l, 0, l->count - 1, save_elem, out);
}

static bool list_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc,
                      void **value)
{
    struct plist *l = plist_create();
    struct slice elem;
    uint64_t n;
    (void)lim;

    bool ok = rdb_type == RDB_LIST && rdb_get_len(in, &n) && n > 0;
    while (ok && n-- > 0) {
        ok = rdb_get_string(in, &elem);
        if (ok)
            plist_push(l, false, elem);
    }
    if (!ok)
        plist_destroy(l);
    *enc = ENC_BIG;
    *value = l;
    return ok;
}

const struct object_ops list_ops = {
    .name = "list",
    .encoding = list_encoding,
    .destroy = list_destroy,
    .copy = list_copy,
    .bytes = list_bytes,
    .len = list_len,
    .stored = list_stored,
    .save = list_save,
    .load = list_load,
};
