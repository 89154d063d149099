#include "cmd_priv.h"
#include "tiercel/keyspace.h"
#include "tiercel/type_list.h"

/* Commands on lists that do not wait. BLPOP and BRPOP are in block.c. */

static struct plist *list_of(const struct object *o)
{
    return object_ptr(o);
}

/* ---- adding -------------------------------------------------------------------------- */

static void push_elements(struct call *c, struct plist *l, bool left)
{
    for (int i = 2; i < c->argc; i++)
        plist_push(l, left, c->argv[i]);
}

static void push_command(struct call *c, bool left, bool only_existing)
{
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    size_t len = 0;
    if (o) {
        push_elements(c, list_of(o), left);
        len = plist_len(list_of(o));
        ks_changed(c, 0);
    } else if (!only_existing) {
        struct plist *l = plist_create();
        push_elements(c, l, left);
        len = plist_len(l);
        ks_put(c, 0, object_new_ptr(&c->keys[0].key, OBJ_LIST, ENC_BIG, l, 0, 0));
    }
    if (len)
        ks_notify(c, 0, NOTIFY_LIST, left ? "lpush" : "rpush");
    reply_int(&c->r, (int64_t)len);
}

void cmd_lpush(struct call *c)
{
    push_command(c, true, false);
}

void cmd_rpush(struct call *c)
{
    push_command(c, false, false);
}

void cmd_lpushx(struct call *c)
{
    push_command(c, true, true);
}

void cmd_rpushx(struct call *c)
{
    push_command(c, false, true);
}

/* ---- removing ------------------------------------------------------------------------ */

static void popped(struct call *c, int i, bool left)
{
    ks_notify(c, i, NOTIFY_LIST, left ? "lpop" : "rpop");
    ks_changed(c, i);
}

bool list_pop_one(struct call *c, int i, bool left, struct buf *out)
{
    struct object *o = ks_peek(c, i);
    if (!o || o->type != OBJ_LIST || !plist_pop(list_of(o), left, out))
        return false;
    popped(c, i, left);
    return true;
}

static void pop_reply_one(struct call *c, bool left)
{
    struct buf elem;
    buf_init(&elem, MEM_OTHER);
    if (list_pop_one(c, 0, left, &elem))
        reply_bulk(&c->r, buf_slice(&elem));
    else
        reply_null(&c->r);
    buf_deinit(&elem);
}

static void pop_reply_many(struct call *c, struct plist *l, bool left, size_t n)
{
    struct buf elem;
    buf_init(&elem, MEM_OTHER);
    reply_array(&c->r, (int64_t)n);
    for (size_t i = 0; i < n; i++) {
        elem.len = 0;
        CHECK(plist_pop(l, left, &elem));
        reply_bulk(&c->r, buf_slice(&elem));
    }
    buf_deinit(&elem);
    if (n)
        popped(c, 0, left);
}

static void pop_command(struct call *c, bool left)
{
    int64_t count = 0;
    if (c->argc > 3) {
        cmd_reply_bad_arity(c);
        return;
    }
    bool counted = c->argc == 3;
    if (counted && !cmd_arg_between(c, 2, 0, INT64_MAX, &count, "ERR value is out of range, must be positive"))
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    if (!counted) {
        pop_reply_one(c, left);
    } else if (!o) {
        reply_null_array(&c->r);
    } else {
        size_t len = plist_len(list_of(o));
        pop_reply_many(c, list_of(o), left, (uint64_t)count < len ? (size_t)count : len);
    }
}

void cmd_lpop(struct call *c)
{
    pop_command(c, true);
}

void cmd_rpop(struct call *c)
{
    pop_command(c, false);
}

/* ---- reading ------------------------------------------------------------------------- */

void cmd_llen(struct call *c)
{
    struct object *o = ks_read(c, 0);
    if (ks_is(c, o, OBJ_LIST))
        reply_int(&c->r, o ? (int64_t)plist_len(list_of(o)) : 0);
}

static void reply_elem(void *arg, struct slice elem)
{
    reply_bulk(arg, elem);
}

void cmd_lrange(struct call *c)
{
    int64_t start, end;
    if (!call_arg_i64(c, 2, &start, NULL) || !call_arg_i64(c, 3, &end, NULL))
        return;
    struct object *o = ks_read(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    int64_t len = o ? (int64_t)plist_len(list_of(o)) : 0;
    if (start < 0)
        start = start + len < 0 ? 0 : start + len;
    if (end < 0)
        end += len;
    if (end >= len)
        end = len - 1;
    if (start > end) {
        reply_array(&c->r, 0);
        return;
    }
    reply_array(&c->r, end - start + 1);
    plist_range(list_of(o), (size_t)start, (size_t)end, reply_elem, &c->r);
}
