#include <math.h>
#include <stdlib.h>

#include "cmd_priv.h"
#include "tiercel/keyspace.h"
#include "tiercel/type_set.h"

/* Unions, intersections and differences of sorted sets, and of sets, whose members count as 1. */

enum join { JOIN_UNION, JOIN_INTER, JOIN_DIFF };
enum aggregate { AGGREGATE_SUM, AGGREGATE_MIN, AGGREGATE_MAX };

struct source {
    const struct object *o; /* NULL: no such key */
    double weight;
};

struct join_args {
    enum join join;
    bool store, count_only, with_scores;
    enum aggregate aggregate;
    int64_t limit; /* ZINTERCARD's; 0 = none */
    int n;
    struct source *src;
};

/* ---- members of a source ------------------------------------------------------------- */

struct walk {
    void (*fn)(void *arg, struct slice name, double score);
    void *arg;
};

static void set_member(void *arg, struct slice name)
{
    const struct walk *w = arg;

    w->fn(w->arg, name, 1);
}

static void each_member(const struct object *o, void (*fn)(void *arg, struct slice name, double score), void *arg)
{
    struct walk w = {fn, arg};
    struct zset_iter it;

    if (o->type == OBJ_SET) {
        set_each(o, set_member, &w);
        return;
    }
    zset_seek(o, 0, false, &it);
    while (zset_next(&it))
        fn(arg, it.name, it.score);
}

static bool has_member(const struct object *o, struct slice name, double *score)
{
    if (!o || o->type != OBJ_SET)
        return o && zset_score(o, name, score);
    *score = 1;
    return set_has(o, name);
}

/* NULL: there is no such key. false: the error was replied. */
static bool source_of(struct call *c, int i, const struct object **o)
{
    *o = ks_read(c, i);
    return (*o && (*o)->type == OBJ_SET) || ks_is(c, *o, OBJ_ZSET);
}

static size_t length_of(const struct source *s)
{
    return s->o ? object_len(s->o) : 0;
}

/* ---- arithmetic: infinities that cancel out are 0 ------------------------------------ */

static double weighted(const struct source *s, double score)
{
    double v = s->weight * score;

    return isnan(v) ? 0 : v;
}

static double aggregated(enum aggregate how, double a, double b)
{
    if (how == AGGREGATE_SUM)
        return isnan(a + b) ? 0 : a + b;
    if (how == AGGREGATE_MIN)
        return b < a ? b : a;
    return b > a ? b : a;
}

/* ---- joining ------------------------------------------------------------------------- */

struct joining {
    const struct join_args *a;
    const struct source *from;
    struct zset_draft *d;
    int64_t count; /* count_only: what there is in place of a draft */
};

static void join_union(void *arg, struct slice name, double score)
{
    struct joining *j = arg;
    double v = weighted(j->from, score);
    bool added;
    double *place = zset_draft_place(j->d, name, &added);

    *place = added ? v : aggregated(j->a->aggregate, *place, v);
}

static void join_inter(void *arg, struct slice name, double score)
{
    struct joining *j = arg;
    double v = weighted(j->from, score), other;
    bool added;

    if (j->a->limit && j->count == j->a->limit)
        return;
    for (int i = 1; i < j->a->n; i++) {
        const struct source *s = &j->a->src[i];
        if (!has_member(s->o, name, &other))
            return;
        v = aggregated(j->a->aggregate, v, other * s->weight);
    }
    j->count++;
    if (j->d)
        *zset_draft_place(j->d, name, &added) = v;
}

static void join_diff(void *arg, struct slice name, double score)
{
    struct joining *j = arg;
    double other;
    bool added;

    for (int i = 1; i < j->a->n; i++)
        if (has_member(j->a->src[i].o, name, &other))
            return;
    *zset_draft_place(j->d, name, &added) = score;
}

static int source_compare(const void *a, const void *b)
{
    size_t x = length_of(a), y = length_of(b);

    return x < y ? -1 : x > y;
}

static void join_all(const struct join_args *a, struct joining *j)
{
    int walked = a->join == JOIN_UNION ? a->n : 1;

    /* The smallest first; rounding depends on the order, too. */
    if (a->join != JOIN_DIFF)
        qsort(a->src, (size_t)a->n, sizeof(*a->src), source_compare);
    for (int i = 0; i < walked; i++) {
        j->from = &a->src[i];
        if (j->from->o)
            each_member(j->from->o,
                        a->join == JOIN_UNION   ? join_union
                        : a->join == JOIN_INTER ? join_inter
                                                : join_diff,
                        j);
    }
}

/* ---- commands ------------------------------------------------------------------------ */

void zset_store(struct call *c, int i, struct object *o, const char *event)
{
    size_t n = object_len(o);

    if (n > 0) {
        ks_put(c, i, o);
        ks_notify(c, i, NOTIFY_ZSET, event);
    } else {
        object_free(o);
        if (ks_delete(c, i))
            ks_notify(c, i, NOTIFY_GENERIC, "del");
    }
    reply_int(&c->r, (int64_t)n);
}

static void store_draft(struct call *c, struct zset_draft *d, const char *event)
{
    struct obj_limits lim = ks_limits(c);

    zset_store(c, 0, zset_draft_finish(d, &c->keys[0].key, &lim), event);
}

static void reply_draft(struct call *c, struct zset_draft *d, bool with_scores)
{
    size_t n = zset_draft_len(d);
    struct object *o = zset_draft_finish(d, &c->keys[0].key, NULL);
    struct zset_iter it;

    reply_array(&c->r, (int64_t)(with_scores && c->r.proto < 3 ? 2 * n : n));
    zset_seek(o, 0, false, &it);
    while (zset_next(&it))
        zset_reply_member(c, it.name, it.score, with_scores);
    object_free(o);
}

/* What follows the keys. false: the error was replied. */
static bool parse_options(struct call *c, int from, struct join_args *a)
{
    bool combines = a->join != JOIN_DIFF && !a->count_only;

    for (int i = from; i < c->argc; i++) {
        int left = c->argc - i - 1;
        if (combines && left >= a->n && call_arg_is(c, i, "weights")) {
            for (int k = 0; k < a->n; k++)
                if (!zset_arg_score(c, ++i, &a->src[k].weight, "ERR weight value is not a float"))
                    return false;
        } else if (combines && left >= 1 && call_arg_is(c, i, "aggregate")) {
            i++;
            if (call_arg_is(c, i, "sum")) {
                a->aggregate = AGGREGATE_SUM;
            } else if (call_arg_is(c, i, "min")) {
                a->aggregate = AGGREGATE_MIN;
            } else if (call_arg_is(c, i, "max")) {
                a->aggregate = AGGREGATE_MAX;
            } else {
                call_syntax(c);
                return false;
            }
        } else if (!a->store && !a->count_only && call_arg_is(c, i, "withscores")) {
            a->with_scores = true;
        } else if (a->count_only && left >= 1 && call_arg_is(c, i, "limit")) {
            if (!cmd_arg_between(c, ++i, 0, INT64_MAX, &a->limit, "ERR LIMIT can't be negative"))
                return false;
        } else {
            call_syntax(c);
            return false;
        }
    }
    return true;
}

/* The sources and options behind the number of keys, which is argument `at`. */
static bool parse_all(struct call *c, int at, struct join_args *a)
{
    int first = a->store;

    for (int i = 0; i < a->n; i++) {
        a->src[i].weight = 1;
        if (!source_of(c, first + i, &a->src[i].o))
            return false;
    }
    return parse_options(c, at + 1 + a->n, a);
}

static void join_command(struct call *c, struct join_args a, const char *event)
{
    int at = a.store ? 2 : 1;
    int64_t n;

    if (!call_arg_i64(c, at, &n, NULL))
        return;
    if (n < 1) {
        call_errorf(c, "ERR at least 1 input key is needed for '%s' command", c->cmd->full);
        return;
    }
    if (n > c->argc - at - 1 || n + a.store > c->nkeys) {
        call_syntax(c);
        return;
    }
    a.n = (int)n;
    a.src = mem_alloc(MEM_OTHER, sizeof(*a.src) * (size_t)n);
    if (parse_all(c, at, &a)) {
        struct joining j = {.a = &a, .d = a.count_only ? NULL : zset_draft_create()};
        join_all(&a, &j);
        if (a.store)
            store_draft(c, j.d, event);
        else if (a.count_only)
            reply_int(&c->r, j.count);
        else
            reply_draft(c, j.d, a.with_scores);
    }
    mem_free(MEM_OTHER, a.src);
}

void cmd_zunion(struct call *c)
{
    join_command(c, (struct join_args){.join = JOIN_UNION}, NULL);
}

void cmd_zinter(struct call *c)
{
    join_command(c, (struct join_args){.join = JOIN_INTER}, NULL);
}

void cmd_zdiff(struct call *c)
{
    join_command(c, (struct join_args){.join = JOIN_DIFF}, NULL);
}

void cmd_zintercard(struct call *c)
{
    join_command(c, (struct join_args){.join = JOIN_INTER, .count_only = true}, NULL);
}

void cmd_zunionstore(struct call *c)
{
    join_command(c, (struct join_args){.join = JOIN_UNION, .store = true}, "zunionstore");
}

void cmd_zinterstore(struct call *c)
{
    join_command(c, (struct join_args){.join = JOIN_INTER, .store = true}, "zinterstore");
}

void cmd_zdiffstore(struct call *c)
{
    join_command(c, (struct join_args){.join = JOIN_DIFF, .store = true}, "zdiffstore");
}
