#include "cmd_priv.h"
#include "tiercel/glob.h"
#include "tiercel/keyspace.h"
#include "tiercel/type_set.h"

/* Commands on one set, and SMOVE. Those that combine several are in set_ops.c. */

static bool read_set(struct call *c, struct object **o)
{
    *o = ks_read(c, 0);
    return ks_is(c, *o, OBJ_SET);
}

static void reply_member(void *arg, struct slice member)
{
    reply_bulk(arg, member);
}

/* ---- adding and removing ------------------------------------------------------------- */

void cmd_sadd(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    size_t limit = ks_limits(c).set_intset;
    int64_t added = 0;

    if (!ks_is(c, o, OBJ_SET))
        return;
    bool is_new = !o;
    if (is_new)
        o = set_new(&c->keys[0].key, c->argv[2]);
    for (int i = 2; i < c->argc; i++)
        added += set_add(o, c->argv[i], limit);
    if (is_new)
        ks_put(c, 0, o);
    if (added) {
        ks_notify(c, 0, NOTIFY_SET, "sadd");
        if (!is_new)
            ks_changed(c, 0);
    }
    reply_int(&c->r, added);
}

void cmd_srem(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    int64_t removed = 0;

    if (!ks_is(c, o, OBJ_SET))
        return;
    for (int i = 2; o && i < c->argc; i++)
        removed += set_remove(o, c->argv[i]);
    if (removed) {
        ks_notify(c, 0, NOTIFY_SET, "srem");
        ks_changed(c, 0);
    }
    reply_int(&c->r, removed);
}

/* Adds the member to key 1. */
static void move_in(struct call *c, struct slice member)
{
    struct object *to = ks_peek(c, 1);
    bool is_new = !to;

    if (is_new)
        to = set_new(&c->keys[1].key, member);
    bool added = set_add(to, member, ks_limits(c).set_intset);
    if (is_new)
        ks_put(c, 1, to);
    if (!added)
        return;
    ks_notify(c, 1, NOTIFY_SET, "sadd");
    if (!is_new)
        ks_changed(c, 1);
}

void cmd_smove(struct call *c)
{
    struct object *from = ks_peek(c, 0), *to = ks_peek(c, 1);
    struct slice member = c->argv[3];

    if (!from) {
        reply_int(&c->r, 0);
        return;
    }
    if (!ks_is(c, from, OBJ_SET) || !ks_is(c, to, OBJ_SET))
        return;
    if (from == to) {
        reply_int(&c->r, set_has(from, member));
        return;
    }
    bool moved = set_remove(from, member);
    if (moved) {
        ks_notify(c, 0, NOTIFY_SET, "srem");
        ks_changed(c, 0);
        move_in(c, member);
    }
    reply_int(&c->r, moved);
}

/* ---- reading ------------------------------------------------------------------------- */

void cmd_scard(struct call *c)
{
    struct object *o;

    if (read_set(c, &o))
        reply_int(&c->r, o ? (int64_t)object_len(o) : 0);
}

void cmd_sismember(struct call *c)
{
    struct object *o;

    if (read_set(c, &o))
        reply_int(&c->r, o && set_has(o, c->argv[2]));
}

void cmd_smismember(struct call *c)
{
    struct object *o;

    if (!read_set(c, &o))
        return;
    reply_array(&c->r, c->argc - 2);
    for (int i = 2; i < c->argc; i++)
        reply_int(&c->r, o && set_has(o, c->argv[i]));
}

void cmd_smembers(struct call *c)
{
    struct object *o;

    if (!read_set(c, &o))
        return;
    reply_set(&c->r, o ? (int64_t)object_len(o) : 0);
    if (o)
        set_each(o, reply_member, &c->r);
}

struct scan {
    const struct scan_args *a;
    struct chain items;
    int64_t n;
    uint64_t seen; /* those that do not match included */
};

static void scan_member(void *arg, struct slice member)
{
    struct scan *s = arg;
    struct reply r = {&s->items, 2}; /* a bulk string is the same in both protocols */

    s->seen++;
    if (s->a->match && !glob_match(s->a->pattern, member, false))
        return;
    reply_bulk(&r, member);
    s->n++;
}

void cmd_sscan(struct call *c)
{
    struct scan_args a;
    struct scan s = {.a = &a};
    struct object *o;
    uint64_t steps = 0;

    if (!cmd_scan_cursor(c, 2, &a) || !read_set(c, &o) || (o && !cmd_scan_options(c, 3, false, &a)))
        return;
    chain_init(&s.items);
    if (!o)
        a.cursor = 0;
    else
        do
            a.cursor = set_scan(o, a.cursor, scan_member, &s);
        while (a.cursor != 0 && s.seen < a.count && ++steps / 10 < a.count);
    cmd_scan_reply(c, a.cursor, s.n, &s.items);
    chain_deinit(&s.items);
}

/* ---- by chance ----------------------------------------------------------------------- */

static void pop_one(struct call *c)
{
    struct object *o = ks_peek(c, 0);

    if (!ks_is(c, o, OBJ_SET))
        return;
    if (!o) {
        reply_null(&c->r);
        return;
    }
    set_pop(o, 1, 0, &c->w->rng, reply_member, &c->r);
    ks_notify(c, 0, NOTIFY_SET, "spop");
    ks_changed(c, 0);
}

static void pop_all(struct call *c, const struct object *o)
{
    reply_set(&c->r, (int64_t)object_len(o));
    set_each(o, reply_member, &c->r);
    ks_notify(c, 0, NOTIFY_SET, "spop");
    ks_delete(c, 0);
    ks_notify(c, 0, NOTIFY_GENERIC, "del");
}

void cmd_spop(struct call *c)
{
    int64_t count;

    if (c->argc == 2) {
        pop_one(c);
        return;
    }
    if (c->argc > 3) {
        call_syntax(c);
        return;
    }
    if (!cmd_arg_between(c, 2, 0, INT64_MAX, &count, "ERR value is out of range, must be positive"))
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_SET))
        return;
    if (!o || count == 0) {
        reply_set(&c->r, 0);
    } else if ((uint64_t)count >= object_len(o)) {
        pop_all(c, o);
    } else {
        reply_set(&c->r, count);
        set_pop(o, (size_t)count, ks_limits(c).set_intset, &c->w->rng, reply_member, &c->r);
        ks_notify(c, 0, NOTIFY_SET, "spop");
        ks_changed(c, 0);
    }
}

/* Members that may be the same: as many as the client says, so they are limited. */
static void reply_repeated(struct call *c, const struct object *o, uint64_t n)
{
    char text[NUM_I64_MAX];
    struct chain items;
    uint64_t i = 0;

    chain_init(&items);
    struct reply r = {&items, c->r.proto};
    if (n <= CMD_DRAW_MAX)
        for (; i < n && items.bytes <= CMD_DRAW_BYTES; i++)
            reply_bulk(&r, set_random(o, &c->w->rng, text));
    if (i < n) {
        call_error(c, "ERR value is out of range");
    } else {
        reply_array(&c->r, (int64_t)n);
        chain_move(c->r.out, &items);
    }
    chain_deinit(&items);
}

static void random_members(struct call *c, int64_t count)
{
    struct object *o;

    if (!read_set(c, &o))
        return;
    uint64_t n = count < 0 ? (uint64_t)-count : (uint64_t)count;
    if (!o || n == 0) {
        reply_array(&c->r, 0);
    } else if (count < 0) {
        reply_repeated(c, o, n);
    } else if (n >= object_len(o)) {
        reply_array(&c->r, (int64_t)object_len(o));
        set_each(o, reply_member, &c->r);
    } else {
        reply_array(&c->r, count);
        set_sample(o, (size_t)n, &c->w->rng, reply_member, &c->r);
    }
}

void cmd_srandmember(struct call *c)
{
    char text[NUM_I64_MAX];
    struct object *o;
    int64_t count;

    if (c->argc > 3) {
        call_syntax(c);
    } else if (c->argc == 3) {
        if (cmd_arg_between(c, 2, -INT64_MAX, INT64_MAX, &count, NULL))
            random_members(c, count);
    } else if (read_set(c, &o)) {
        if (o)
            reply_bulk(&c->r, set_random(o, &c->w->rng, text));
        else
            reply_null(&c->r);
    }
}
