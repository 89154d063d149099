#include <limits.h>
#include <stdlib.h>

#include "cmd_priv.h"
#include "tiercel/glob.h"
#include "tiercel/hash.h"
#include "tiercel/keyspace.h"

/* Commands on members of a sorted set. Ranges are in zset_range.c, unions and the like in zset_join.c. */

#define SCORES_ON_STACK 16
#define RANDOM_MOST (1 << 20) /* members that ZRANDMEMBER repeats in one reply */

/* Its object, counted as read. false: an error was replied, or what stands for no such key. */
static bool read_zset(struct call *c, struct object **o)
{
    *o = ks_read(c, 0);
    return ks_is(c, *o, OBJ_ZSET);
}

bool zset_arg_score(struct call *c, int arg, double *score, const char *err)
{
    if (num_parse_double(c->argv[arg], score))
        return true;
    call_error(c, err ? err : "ERR value is not a valid float");
    return false;
}

/* In RESP3 a member with its score is an array of two. */
void zset_reply_member(struct call *c, struct slice name, double score, bool with_score)
{
    if (with_score && c->r.proto >= 3)
        reply_array(&c->r, 2);
    reply_bulk(&c->r, name);
    if (with_score)
        reply_double(&c->r, score);
}

/* ---- adding -------------------------------------------------------------------------- */

bool zset_how_agrees(struct call *c, unsigned how, int n)
{
    const char *err = NULL;

    if (how & ZSET_NX && how & ZSET_XX)
        err = "ERR XX and NX options at the same time are not compatible";
    else if ((how & ZSET_GT && how & (ZSET_NX | ZSET_LT)) || (how & ZSET_LT && how & ZSET_NX))
        err = "ERR GT, LT, and/or NX options at the same time are not compatible";
    else if (how & ZSET_INCR && n > 1)
        err = "ERR INCR option supports a single increment-element pair";
    if (err)
        call_error(c, err);
    return !err;
}

void zset_add_members(struct call *c, const struct zset_adding *a)
{
    struct object *o = ks_peek(c, 0);
    struct obj_limits lim = ks_limits(c);
    enum zset_result res = ZSET_NOTHING;
    int added = 0, updated = 0, done = 0;
    double score = 0;

    if (!ks_is(c, o, OBJ_ZSET))
        return;
    bool fresh = !o;
    if (fresh && !(a->how & ZSET_XX))
        o = zset_new(&c->keys[0].key, &lim, c->argv[a->name].len);
    for (int i = 0; o && i < a->n && res != ZSET_NAN; i++) {
        score = a->score[i];
        res = zset_add(o, c->argv[a->name + i * a->step], &score, a->how, &lim);
        added += res == ZSET_ADDED;
        updated += res == ZSET_UPDATED;
        done += res != ZSET_NOTHING;
    }
    if (res == ZSET_NAN)
        call_error(c, "ERR resulting score is not a number (NaN)");
    else if (!(a->how & ZSET_INCR))
        reply_int(&c->r, a->count_changed ? added + updated : added);
    else if (done)
        reply_double(&c->r, score);
    else
        reply_null(&c->r);
    if (fresh && o)
        ks_put(c, 0, o);
    if (added || updated) {
        ks_notify(c, 0, NOTIFY_ZSET, a->how & ZSET_INCR ? "zincr" : "zadd");
        if (!fresh)
            ks_changed(c, 0);
    }
}

static unsigned option_of(const struct call *c, int arg, bool *ch)
{
    static const struct {
        const char *word;
        unsigned how;
    } words[] = {{"nx", ZSET_NX}, {"xx", ZSET_XX}, {"gt", ZSET_GT}, {"lt", ZSET_LT}, {"incr", ZSET_INCR}};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (call_arg_is(c, arg, words[i].word))
            return words[i].how;
    *ch = call_arg_is(c, arg, "ch");
    return 0;
}

static void add_command(struct call *c, unsigned how)
{
    double few[SCORES_ON_STACK], *scores = few;
    struct zset_adding a = {.how = how, .step = 2};
    int arg = 2;
    bool ok = true;

    for (; arg < c->argc; arg++) {
        bool ch = false;
        unsigned option = option_of(c, arg, &ch);
        if (!option && !ch)
            break;
        a.how |= option;
        a.count_changed |= ch;
    }
    a.n = (c->argc - arg) / 2;
    a.name = arg + 1;
    if (a.n == 0 || (c->argc - arg) % 2 != 0) {
        call_syntax(c);
        return;
    }
    if (!zset_how_agrees(c, a.how, a.n))
        return;
    if (a.n > SCORES_ON_STACK)
        scores = mem_alloc(MEM_OTHER, sizeof(double) * (size_t)a.n);
    for (int i = 0; ok && i < a.n; i++)
        ok = zset_arg_score(c, arg + 2 * i, &scores[i], NULL);
    a.score = scores;
    if (ok)
        zset_add_members(c, &a);
    if (scores != few)
        mem_free(MEM_OTHER, scores);
}

void cmd_zadd(struct call *c)
{
    add_command(c, 0);
}

void cmd_zincrby(struct call *c)
{
    add_command(c, ZSET_INCR);
}

/* ---- removing ------------------------------------------------------------------------ */

void cmd_zrem(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    int64_t n = 0;

    if (!ks_is(c, o, OBJ_ZSET))
        return;
    for (int i = 2; o && i < c->argc; i++)
        n += zset_remove(o, c->argv[i]);
    if (n) {
        ks_notify(c, 0, NOTIFY_ZSET, "zrem");
        ks_changed(c, 0);
    }
    reply_int(&c->r, n);
}

size_t zset_pop(struct call *c, int i, bool max, size_t n, void (*fn)(void *arg, struct slice name, double score),
                void *arg)
{
    struct object *o = ks_peek(c, i);
    struct zset_iter it;

    size_t len = object_len(o);
    if (n > len)
        n = len;
    if (n == 0)
        return 0;
    zset_seek(o, max ? len - 1 : 0, max, &it);
    for (size_t k = 0; k < n && zset_next(&it); k++)
        fn(arg, it.name, it.score);
    zset_remove_ranks(o, max ? len - n : 0, n);
    ks_notify(c, i, NOTIFY_ZSET, max ? "zpopmax" : "zpopmin");
    ks_changed(c, i);
    return n;
}

struct popped {
    struct call *c;
    bool nested; /* an array each, in either protocol */
};

static void reply_popped(void *arg, struct slice name, double score)
{
    struct popped *p = arg;

    if (p->nested)
        reply_array(&p->c->r, 2);
    reply_bulk(&p->c->r, name);
    reply_double(&p->c->r, score);
}

static size_t at_most(int64_t count, size_t len)
{
    return (uint64_t)count < len ? (size_t)count : len;
}

static void pop_command(struct call *c, bool max)
{
    int64_t count = 1;

    if (c->argc > 3) {
        call_syntax(c);
        return;
    }
    if (c->argc == 3 && !cmd_arg_between(c, 2, 0, INT64_MAX, &count, "ERR value is out of range, must be positive"))
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_ZSET))
        return;
    struct popped p = {c, c->argc == 3 && c->r.proto >= 3};
    size_t n = at_most(count, o ? object_len(o) : 0);
    reply_array(&c->r, (int64_t)(p.nested ? n : 2 * n));
    if (n > 0)
        zset_pop(c, 0, max, n, reply_popped, &p);
}

void cmd_zpopmin(struct call *c)
{
    pop_command(c, false);
}

void cmd_zpopmax(struct call *c)
{
    pop_command(c, true);
}

void zset_pop_named(struct call *c, int i, bool max, int64_t count)
{
    struct popped p = {c, count > 0};
    size_t n = at_most(count > 0 ? count : 1, object_len(ks_peek(c, i)));

    reply_array(&c->r, p.nested ? 2 : 3);
    reply_bulk(&c->r, key_slice(&c->keys[i].key));
    if (p.nested)
        reply_array(&c->r, (int64_t)n);
    zset_pop(c, i, max, n, reply_popped, &p);
}

bool zset_args_mpop(struct call *c, int at, bool *max, int64_t *count)
{
    int64_t n;
    bool counted = false;

    if (!cmd_arg_between(c, at, 1, INT64_MAX, &n, "ERR numkeys should be greater than 0"))
        return false;
    int64_t where = at + 1 + (n < c->argc ? n : c->argc);
    *count = 1;
    bool ok = where < c->argc;
    if (ok) {
        *max = call_arg_is(c, (int)where, "max");
        ok = *max || call_arg_is(c, (int)where, "min");
    }
    for (int i = (int)where + 1; ok && i < c->argc; i += 2) {
        ok = !counted && call_arg_is(c, i, "count") && i + 1 < c->argc;
        counted = true;
        if (ok && !cmd_arg_between(c, i + 1, 1, INT64_MAX, count, "ERR count should be greater than 0"))
            return false;
    }
    if (!ok)
        call_syntax(c);
    return ok;
}

void cmd_zmpop(struct call *c)
{
    int64_t count;
    bool max;

    if (!zset_args_mpop(c, 1, &max, &count))
        return;
    for (int i = 0; i < c->nkeys; i++) {
        struct object *o = ks_peek(c, i);
        if (!ks_is(c, o, OBJ_ZSET))
            return;
        if (o) {
            zset_pop_named(c, i, max, count);
            return;
        }
    }
    reply_null_array(&c->r);
}

/* ---- reading ------------------------------------------------------------------------- */

void cmd_zcard(struct call *c)
{
    struct object *o;

    if (read_zset(c, &o))
        reply_int(&c->r, o ? (int64_t)object_len(o) : 0);
}

static void reply_score(struct call *c, const struct object *o, int arg)
{
    double score;

    if (o && zset_score(o, c->argv[arg], &score))
        reply_double(&c->r, score);
    else
        reply_null(&c->r);
}

void cmd_zscore(struct call *c)
{
    struct object *o;

    if (read_zset(c, &o))
        reply_score(c, o, 2);
}

void cmd_zmscore(struct call *c)
{
    struct object *o;

    if (!read_zset(c, &o))
        return;
    reply_array(&c->r, c->argc - 2);
    for (int i = 2; i < c->argc; i++)
        reply_score(c, o, i);
}

static void rank_command(struct call *c, bool reverse)
{
    struct object *o;
    size_t rank;

    if (!read_zset(c, &o))
        return;
    if (o && zset_rank(o, c->argv[2], &rank))
        reply_int(&c->r, (int64_t)(reverse ? object_len(o) - 1 - rank : rank));
    else
        reply_null(&c->r);
}

void cmd_zrank(struct call *c)
{
    rank_command(c, false);
}

void cmd_zrevrank(struct call *c)
{
    rank_command(c, true);
}

/* ---- any of them --------------------------------------------------------------------- */

static void reply_rank(struct call *c, const struct object *o, size_t rank, bool with_score)
{
    struct zset_iter it;

    zset_seek(o, rank, false, &it);
    CHECK(zset_next(&it));
    zset_reply_member(c, it.name, it.score, with_score);
}

static int size_compare(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;

    return x < y ? -1 : x > y;
}

/* Draws ranks until n of them, which are few among all, are different. */
static void reply_few(struct call *c, const struct object *o, size_t n, bool with_score)
{
    size_t len = object_len(o), *rank = mem_alloc(MEM_OTHER, n * sizeof(*rank)), have = 0;

    while (have < n) {
        for (; have < n; have++)
            rank[have] = (size_t)(rng_next(&c->w->rng) % len);
        qsort(rank, n, sizeof(*rank), size_compare);
        have = 1;
        for (size_t i = 1; i < n; i++)
            if (rank[i] != rank[have - 1])
                rank[have++] = rank[i];
    }
    for (size_t i = 0; i < n; i++)
        reply_rank(c, o, rank[i], with_score);
    mem_free(MEM_OTHER, rank);
}

/* Walks over all of them, the highest first as Redis does, and takes each with the chance that leaves n in the end. */
static void reply_many(struct call *c, const struct object *o, size_t n, bool with_score)
{
    size_t left = object_len(o);
    struct zset_iter it;

    zset_seek(o, left - 1, true, &it);
    for (; n > 0 && zset_next(&it); left--)
        if (rng_next(&c->w->rng) % left < n) {
            zset_reply_member(c, it.name, it.score, with_score);
            n--;
        }
}

static void reply_random(struct call *c, const struct object *o, int64_t count, bool with_score)
{
    size_t len = object_len(o), n = count < 0 ? (size_t)-count : at_most(count, len);

    reply_array(&c->r, (int64_t)(with_score && c->r.proto < 3 ? 2 * n : n));
    if (count >= 0 && n > len / 4) {
        reply_many(c, o, n, with_score);
    } else if (count > 0) {
        reply_few(c, o, n, with_score);
    } else {
        for (size_t i = 0; i < n; i++)
            reply_rank(c, o, (size_t)(rng_next(&c->w->rng) % len), with_score);
    }
}

void cmd_zrandmember(struct call *c)
{
    bool with_score = c->argc == 4;
    struct object *o;
    int64_t count = 1;

    if (c->argc > 2 && !cmd_arg_between(c, 2, -LONG_MAX, LONG_MAX, &count, NULL))
        return;
    if (c->argc > 4 || (with_score && !call_arg_is(c, 3, "withscores"))) {
        call_syntax(c);
        return;
    }
    if (with_score && (count < -LONG_MAX / 2 || count > LONG_MAX / 2)) {
        call_error(c, "ERR value is out of range");
        return;
    }
    if (!read_zset(c, &o))
        return;
    if (o && count < -RANDOM_MOST)
        call_error(c,
                   "ERR value is out of range"); /* Redis would go on until its memory or the client's patience ends */
    else if (!o && c->argc == 2)
        reply_null(&c->r);
    else if (!o || count == 0)
        reply_array(&c->r, 0);
    else if (c->argc == 2)
        reply_rank(c, o, (size_t)(rng_next(&c->w->rng) % object_len(o)), false);
    else
        reply_random(c, o, count, with_score);
}

/* ---- ZSCAN --------------------------------------------------------------------------- */

struct scanned {
    const struct scan_args *args;
    struct chain items;
    struct reply r;
    uint64_t seen;
    int64_t n;
};

static void scan_member(void *arg, struct slice name, struct slice score)
{
    struct scanned *s = arg;

    s->seen++;
    if (s->args->match && !glob_match(s->args->pattern, name, false))
        return;
    reply_bulk(&s->r, name);
    reply_bulk(&s->r, score);
    s->n += 2;
}

void cmd_zscan(struct call *c)
{
    struct scan_args a;
    struct object *o;

    if (!cmd_scan_cursor(c, 2, &a) || !read_zset(c, &o) || (o && !cmd_scan_options(c, 3, false, &a)))
        return;
    struct scanned s = {.args = &a};
    uint64_t cursor = a.cursor;
    chain_init(&s.items);
    s.r = (struct reply){.out = &s.items, .proto = c->r.proto};
    if (o) {
        uint64_t steps = a.count > UINT64_MAX / 10 ? UINT64_MAX : a.count * 10; /* as many empty buckets may be */
        do
            cursor = zset_scan(o, cursor, scan_member, &s);
        while (cursor != 0 && s.seen < a.count && --steps > 0);
    } else {
        cursor = 0;
    }
    cmd_scan_reply(c, cursor, s.n, &s.items);
}
