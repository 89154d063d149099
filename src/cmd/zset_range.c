#include <math.h>
#include <stdlib.h>

#include "cmd_priv.h"
#include "tiercel/keyspace.h"

/* Ranges of a sorted set: by rank, score or name; returned, stored, counted, removed. */

enum by { BY_RANK, BY_SCORE, BY_LEX, BY_ASKED };

struct range_args {
    enum by by;
    bool reverse, with_scores;
    int64_t offset, limit; /* limit < 0: none */
    int64_t start, end;    /* BY_RANK */
    struct zset_range range;
};

/* ---- what is asked for --------------------------------------------------------------- */

/* As lax as Redis is here: leading spaces, nothing at all, and whatever is behind a NUL. */
static bool parse_score(struct slice s, struct zset_bound *b)
{
    char text[NUM_F64_MAX], *end;

    b->open = s.len > 0 && s.ptr[0] == '(';
    if (b->open)
        s = SLICE(s.ptr + 1, s.len - 1);
    if (s.len >= sizeof(text))
        return false;
    if (s.len)
        memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    b->score = strtod(text, &end);
    return *end == '\0' && !isnan(b->score);
}

static bool parse_lex(struct slice s, struct zset_bound *b)
{
    if (s.len > 0 && (s.ptr[0] == '-' || s.ptr[0] == '+') && (s.len == 1 || s.ptr[1] == '\0')) {
        b->inf = s.ptr[0] == '-' ? -1 : 1;
        return true;
    }
    if (s.len == 0 || (s.ptr[0] != '(' && s.ptr[0] != '['))
        return false;
    b->open = s.ptr[0] == '(';
    b->name = SLICE(s.ptr + 1, s.len - 1);
    return true;
}

/* false: the error was replied. */
static bool parse_range(struct call *c, int min, int max, bool lex, struct zset_range *r)
{
    bool (*parse)(struct slice s, struct zset_bound * b) = lex ? parse_lex : parse_score;

    *r = (struct zset_range){.lex = lex};
    if (parse(c->argv[min], &r->min) && parse(c->argv[max], &r->max))
        return true;
    call_error(c, lex ? "ERR min or max not valid string range item" : "ERR min or max is not a float");
    return false;
}

/* The arguments from min on, and what they ask for; `at` is min's place. */
static bool parse_bounds(struct call *c, int at, struct range_args *a)
{
    if (a->by == BY_RANK)
        return call_arg_i64(c, at, &a->start, NULL) && call_arg_i64(c, at + 1, &a->end, NULL);
    return parse_range(c, at + a->reverse, at + 1 - a->reverse, a->by == BY_LEX, &a->range);
}

static bool parse_options(struct call *c, int from, bool store, bool may_reverse, struct range_args *a)
{
    for (int i = from; i < c->argc; i++) {
        if (!store && call_arg_is(c, i, "withscores")) {
            a->with_scores = true;
        } else if (call_arg_is(c, i, "limit") && i + 2 < c->argc) {
            if (!call_arg_i64(c, i + 1, &a->offset, NULL) || !call_arg_i64(c, i + 2, &a->limit, NULL))
                return false;
            i += 2;
        } else if (may_reverse && call_arg_is(c, i, "rev")) {
            a->reverse = true;
            may_reverse = false;
        } else if (a->by == BY_ASKED && (call_arg_is(c, i, "bylex") || call_arg_is(c, i, "byscore"))) {
            a->by = call_arg_is(c, i, "bylex") ? BY_LEX : BY_SCORE;
        } else {
            call_syntax(c);
            return false;
        }
    }
    if (a->by == BY_ASKED)
        a->by = BY_RANK;
    if (a->limit != -1 && a->by == BY_RANK) {
        call_error(c, "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX");
        return false;
    }
    if (a->with_scores && a->by == BY_LEX) {
        call_error(c, "ERR syntax error, WITHSCORES not supported in combination with BYLEX");
        return false;
    }
    return true;
}

/* ---- what is found ------------------------------------------------------------------- */

/* From *start to *end, both of them, negative ones from the end; how many, of len. */
static size_t rank_range(int64_t *start, int64_t end, size_t len)
{
    int64_t n = (int64_t)len;

    if (*start < 0)
        *start = *start + n < 0 ? 0 : *start + n;
    if (end < 0)
        end += n;
    if (*start > end || *start >= n)
        return 0;
    return (size_t)((end < n ? end : n - 1) - *start) + 1;
}

/* How many, and the rank of the first in the direction asked for. */
static size_t find(const struct object *o, const struct range_args *a, size_t *rank)
{
    size_t first, n, len = object_len(o);

    if (a->by == BY_RANK) {
        int64_t start = a->start;
        n = rank_range(&start, a->end, len);
        *rank = a->reverse ? len - 1 - (size_t)start : (size_t)start;
        return n;
    }
    n = zset_find_range(o, &a->range, a->reverse, &first);
    if (a->offset < 0 || (uint64_t)a->offset >= n)
        return 0;
    n -= (size_t)a->offset;
    *rank = a->reverse ? first + n - 1 : first + (size_t)a->offset;
    return a->limit >= 0 && (uint64_t)a->limit < n ? (size_t)a->limit : n;
}

/* Member by member, as Redis does it: with all the scores of a small one -0 becomes 0. */
static void store_range(struct call *c, const struct object *o, size_t rank, size_t n, bool reverse)
{
    struct obj_limits lim = ks_limits(c);
    struct object *to = zset_new(&c->keys[0].key, &lim, 0);
    struct zset_iter it;

    if (n > 0)
        zset_seek(o, rank, reverse, &it);
    while (n-- > 0 && zset_next(&it))
        zset_add(to, it.name, &it.score, 0, &lim);
    zset_store(c, 0, to, "zrangestore");
}

static void reply_members(struct call *c, const struct object *o, size_t rank, size_t n, const struct range_args *a)
{
    struct zset_iter it;

    reply_array(&c->r, (int64_t)(a->with_scores && c->r.proto < 3 ? 2 * n : n));
    if (n > 0)
        zset_seek(o, rank, a->reverse, &it);
    while (n-- > 0 && zset_next(&it))
        zset_reply_member(c, it.name, it.score, a->with_scores);
}

/* key min max option ...; store: a destination comes before, and its key is the first one. */
static void range_command(struct call *c, bool store, enum by by, bool reverse, bool may_reverse)
{
    struct range_args a = {.by = by, .reverse = reverse, .limit = -1};
    int at = store ? 2 : 1;
    size_t rank = 0;

    if (!parse_options(c, at + 3, store, may_reverse, &a) || !parse_bounds(c, at + 1, &a))
        return;
    const struct object *o = ks_read(c, store);
    if (!ks_is(c, o, OBJ_ZSET))
        return;
    size_t n = o ? find(o, &a, &rank) : 0;
    if (store)
        store_range(c, o, rank, n, a.reverse);
    else
        reply_members(c, o, rank, n, &a);
}

void cmd_zrange(struct call *c)
{
    range_command(c, false, BY_ASKED, false, true);
}

void cmd_zrangestore(struct call *c)
{
    range_command(c, true, BY_ASKED, false, true);
}

void cmd_zrevrange(struct call *c)
{
    range_command(c, false, BY_RANK, true, false);
}

void cmd_zrangebyscore(struct call *c)
{
    range_command(c, false, BY_SCORE, false, false);
}

void cmd_zrevrangebyscore(struct call *c)
{
    range_command(c, false, BY_SCORE, true, false);
}

void cmd_zrangebylex(struct call *c)
{
    range_command(c, false, BY_LEX, false, false);
}

void cmd_zrevrangebylex(struct call *c)
{
    range_command(c, false, BY_LEX, true, false);
}

/* ---- counted ------------------------------------------------------------------------- */

static void count_command(struct call *c, bool lex)
{
    struct zset_range r;
    size_t first;

    if (!parse_range(c, 2, 3, lex, &r))
        return;
    const struct object *o = ks_read(c, 0);
    if (ks_is(c, o, OBJ_ZSET))
        reply_int(&c->r, o ? (int64_t)zset_find_range(o, &r, false, &first) : 0);
}

void cmd_zcount(struct call *c)
{
    count_command(c, false);
}

void cmd_zlexcount(struct call *c)
{
    count_command(c, true);
}

/* ---- removed ------------------------------------------------------------------------- */

static void remove_command(struct call *c, enum by by, const char *event)
{
    struct range_args a = {.by = by, .limit = -1};
    size_t rank = 0;

    if (!parse_bounds(c, 2, &a))
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_ZSET))
        return;
    size_t n = o ? find(o, &a, &rank) : 0;
    if (n > 0) {
        zset_remove_ranks(o, rank, n);
        ks_notify(c, 0, NOTIFY_ZSET, event);
        ks_changed(c, 0);
    }
    reply_int(&c->r, (int64_t)n);
}

void cmd_zremrangebyrank(struct call *c)
{
    remove_command(c, BY_RANK, "zremrangebyrank");
}

void cmd_zremrangebyscore(struct call *c)
{
    remove_command(c, BY_SCORE, "zremrangebyscore");
}

void cmd_zremrangebylex(struct call *c)
{
    remove_command(c, BY_LEX, "zremrangebylex");
}
