#include <stdlib.h>

#include "cmd_priv.h"
#include "tiercel/keyspace.h"
#include "tiercel/type_set.h"

/* Intersections, unions and differences. What is stored is put together before the destination is touched, which may be
 * one of the sources. */

struct sources {
    const struct object **set; /* those that are there */
    int n;
    int missing;
};

/* The sets of keys `from` and on; others are empty. false: the error was replied. */
static bool sources_read(struct call *c, int from, struct sources *s)
{
    *s = (struct sources){.set = mem_alloc(MEM_OTHER, sizeof(*s->set) * (size_t)(c->nkeys - from + 1))};
    for (int i = from; i < c->nkeys; i++) {
        struct object *o = ks_read(c, i);
        if (!ks_is(c, o, OBJ_SET)) {
            mem_free(MEM_OTHER, s->set);
            return false;
        }
        if (o)
            s->set[s->n++] = o;
        else
            s->missing++;
    }
    return true;
}

static void sources_free(struct sources *s)
{
    mem_free(MEM_OTHER, s->set);
}

/* ---- where a result goes ------------------------------------------------------------- */

struct sink {
    bool (*add)(struct sink *k, struct slice member); /* false: that is enough */
    struct call *c;
    struct object *o; /* a set; NULL: still empty */
    struct chain items;
    uint64_t n, limit;
    size_t max_intset;
};

static bool add_to_set(struct sink *k, struct slice member)
{
    if (!k->o)
        k->o = set_new(&k->c->keys[0].key, SLICE_LIT("0")); /* integers, for as long as all are */
    set_add(k->o, member, k->max_intset);
    return true;
}

static bool add_to_reply(struct sink *k, struct slice member)
{
    struct reply r = {&k->items, k->c->r.proto};

    reply_bulk(&r, member);
    k->n++;
    return true;
}

static bool add_to_count(struct sink *k, struct slice member)
{
    (void)member;
    return ++k->n != k->limit;
}

static void sink_init(struct sink *k, struct call *c, bool (*add)(struct sink *k, struct slice member))
{
    *k = (struct sink){.add = add, .c = c, .max_intset = ks_limits(c).set_intset};
    chain_init(&k->items);
}

static void sink_reply(struct sink *k)
{
    reply_set(&k->c->r, (int64_t)k->n);
    chain_move(k->c->r.out, &k->items);
    chain_deinit(&k->items);
}

static void sink_store(struct sink *k, const char *event)
{
    struct call *c = k->c;
    size_t n = k->o ? object_len(k->o) : 0;

    if (n > 0) {
        ks_put(c, 0, k->o);
        ks_notify(c, 0, NOTIFY_SET, event);
    } else if (ks_delete(c, 0)) {
        ks_notify(c, 0, NOTIFY_GENERIC, "del");
    }
    reply_int(&c->r, (int64_t)n);
}

/* ---- the operations ------------------------------------------------------------------ */

static int by_length(const void *a, const void *b)
{
    size_t x = object_len(*(const struct object *const *)a), y = object_len(*(const struct object *const *)b);

    return (x > y) - (x < y);
}

static int by_length_down(const void *a, const void *b)
{
    return by_length(b, a);
}

/* Is it a member of all those sets (in), or of none (not in)? */
static bool agree(const struct object **sets, int n, struct slice member, bool in)
{
    for (int i = 0; i < n; i++)
        if (set_has(sets[i], member) != in)
            return false;
    return true;
}

/* Members of the smallest set that all others have: what a smaller set lacks is asked of no larger one. */
static void intersect(struct sources *s, struct sink *k)
{
    struct slice member;

    if (s->missing || s->n == 0)
        return;
    qsort(s->set, (size_t)s->n, sizeof(*s->set), by_length);
    struct set_iter it = set_iter(s->set[0]);
    while (set_next(&it, &member))
        if (agree(s->set + 1, s->n - 1, member, true) && !k->add(k, member))
            return;
}

static void unite(const struct sources *s, struct sink *k)
{
    struct slice member;

    for (int i = 0; i < s->n; i++) {
        struct set_iter it = set_iter(s->set[i]);
        while (set_next(&it, &member))
            k->add(k, member);
    }
}

/* What the first set has and the others have not. Asks the others for each of its members, the largest first, for that
 * has most of what is to be found; or, when the first is so large that it is less work, takes away what the others have. */
static void subtract(struct sources *s, struct sink *k)
{
    const struct object *first = s->set[0];
    size_t others = 0;
    struct slice member;

    for (int i = 1; i < s->n; i++)
        others += object_len(s->set[i]);
    if (object_len(first) / 2 * (size_t)(s->n - 1) <= object_len(first) + others) {
        qsort(s->set + 1, (size_t)s->n - 1, sizeof(*s->set), by_length_down);
        struct set_iter it = set_iter(first);
        while (set_next(&it, &member))
            if (agree(s->set + 1, s->n - 1, member, false))
                k->add(k, member);
        return;
    }
    struct sink left;
    sink_init(&left, k->c, add_to_set);
    unite(&(struct sources){.set = s->set, .n = 1}, &left);
    for (int i = 1; i < s->n; i++) {
        struct set_iter it = set_iter(s->set[i]);
        while (set_next(&it, &member))
            set_remove(left.o, member);
    }
    if (k->add == add_to_set) {
        k->o = left.o;
        return;
    }
    unite(&(struct sources){.set = (const struct object *[]){left.o}, .n = 1}, k);
    object_free(left.o);
}

/* ---- the commands -------------------------------------------------------------------- */

void cmd_sinter(struct call *c)
{
    struct sources s;
    struct sink k;

    if (!sources_read(c, 0, &s))
        return;
    sink_init(&k, c, add_to_reply);
    intersect(&s, &k);
    sink_reply(&k);
    sources_free(&s);
}

void cmd_sunion(struct call *c)
{
    struct sources s;
    struct sink all, k;

    if (!sources_read(c, 0, &s))
        return;
    sink_init(&all, c, add_to_set);
    sink_init(&k, c, add_to_reply);
    if (s.n == 1) {
        unite(&s, &k);
    } else if (s.n > 1) {
        unite(&s, &all);
        unite(&(struct sources){.set = (const struct object *[]){all.o}, .n = 1}, &k);
    }
    sink_reply(&k);
    object_free(all.o);
    sources_free(&s);
}

/* The first source may be the one that is missing, and then there is nothing to subtract from. */
static void difference(struct call *c, int from, struct sources *s, struct sink *k)
{
    if (ks_peek(c, from))
        subtract(s, k);
}

void cmd_sdiff(struct call *c)
{
    struct sources s;
    struct sink k;

    if (!sources_read(c, 0, &s))
        return;
    sink_init(&k, c, add_to_reply);
    difference(c, 0, &s, &k);
    sink_reply(&k);
    sources_free(&s);
}

void cmd_sinterstore(struct call *c)
{
    struct sources s;
    struct sink k;

    if (!sources_read(c, 1, &s))
        return;
    sink_init(&k, c, add_to_set);
    intersect(&s, &k);
    sources_free(&s);
    sink_store(&k, "sinterstore");
}

void cmd_sunionstore(struct call *c)
{
    struct sources s;
    struct sink k;

    if (!sources_read(c, 1, &s))
        return;
    sink_init(&k, c, add_to_set);
    unite(&s, &k);
    sources_free(&s);
    sink_store(&k, "sunionstore");
}

void cmd_sdiffstore(struct call *c)
{
    struct sources s;
    struct sink k;

    if (!sources_read(c, 1, &s))
        return;
    sink_init(&k, c, add_to_set);
    difference(c, 1, &s, &k);
    sources_free(&s);
    sink_store(&k, "sdiffstore");
}

/* SINTERCARD numkeys key [key ...] [LIMIT limit] */
void cmd_sintercard(struct call *c)
{
    int64_t numkeys, limit = 0;
    struct sources s;
    struct sink k;

    if (!cmd_arg_between(c, 1, 1, INT64_MAX, &numkeys, "ERR numkeys should be greater than 0"))
        return;
    if (numkeys > c->argc - 2) {
        call_error(c, "ERR Number of keys can't be greater than number of args");
        return;
    }
    for (int arg = (int)numkeys + 2; arg < c->argc; arg += 2) {
        if (!call_arg_is(c, arg, "limit") || arg + 1 == c->argc) {
            call_syntax(c);
            return;
        }
        if (!cmd_arg_between(c, arg + 1, 0, INT64_MAX, &limit, "ERR LIMIT can't be negative"))
            return;
    }
    if (!sources_read(c, 0, &s))
        return;
    sink_init(&k, c, add_to_count);
    k.limit = (uint64_t)limit; /* 0: no limit, for no count gets there */
    intersect(&s, &k);
    sources_free(&s);
    reply_int(&c->r, (int64_t)k.n);
}
