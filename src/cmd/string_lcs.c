#include "cmd_priv.h"
#include "tiercel/keyspace.h"

/* LCS: the longest common subsequence of two strings, or its ranges in both.
 *
 * The usual table of lengths is walked backwards at the end, and all that the walk asks it is
 * which neighbour is longer where the bytes differ. So only that bit is kept of each cell, and
 * two rows of lengths while they are computed: a thirty-second of the memory. */

struct lcs_options {
    bool len, idx, with_match_len;
    int64_t min_match_len;
};

struct lcs {
    struct slice a, b;
    uint32_t length;
    uint8_t *up; /* bit i * b.len + j: the table is longer above cell (i, j) than to its left */
};

/* A run of bytes common to both, positions inclusive. */
struct lcs_range {
    uint32_t a_start, a_end, b_start, b_end;
};

static bool lcs_parse(struct call *c, struct lcs_options *opt)
{
    *opt = (struct lcs_options){0};
    for (int i = 3; i < c->argc; i++) {
        if (call_arg_is(c, i, "idx")) {
            opt->idx = true;
        } else if (call_arg_is(c, i, "len")) {
            opt->len = true;
        } else if (call_arg_is(c, i, "withmatchlen")) {
            opt->with_match_len = true;
        } else if (call_arg_is(c, i, "minmatchlen") && i + 1 < c->argc) {
            if (!call_arg_i64(c, ++i, &opt->min_match_len, NULL))
                return false;
        } else {
            call_syntax(c);
            return false;
        }
    }
    if (opt->idx && opt->len) {
        call_error(c, "ERR If you want both the length and indexes, please just use IDX.");
        return false;
    }
    return true;
}

/* Refuses what Redis refuses, by the memory that it would take there. */
static bool lcs_too_large(struct call *c, struct slice a, struct slice b)
{
    if (a.len >= UINT32_MAX - 1 || b.len >= UINT32_MAX - 1) {
        call_error(c, "ERR String too long for LCS");
        return true;
    }
    uint64_t table;
    if (!__builtin_mul_overflow((a.len + 1) * sizeof(uint32_t), b.len + 1, &table) &&
        table <= (uint64_t)c->w->conf->proto_max_bulk_len)
        return false;
    call_error(c, "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len");
    return true;
}

static inline bool lcs_goes_up(const struct lcs *l, size_t i, size_t j)
{
    size_t bit = i * l->b.len + j;
    return l->up[bit / 8] >> (bit % 8) & 1;
}

/* Computes the length, and (walk) the bits that lcs_walk() needs. */
static void lcs_compute(struct lcs *l, bool walk)
{
    size_t alen = l->a.len, blen = l->b.len;
    if (walk)
        l->up = mem_calloc(MEM_OTHER, alen * blen / 8 + 1);
    uint32_t *row = mem_calloc(MEM_OTHER, (blen + 1) * sizeof(*row)); /* row[j]: of b's first j bytes */
    for (size_t i = 0; i < alen; i++) {
        uint32_t diagonal = 0; /* row[j] before this row wrote it */
        for (size_t j = 0; j < blen; j++) {
            uint32_t above = row[j + 1];
            if (l->a.ptr[i] == l->b.ptr[j]) {
                row[j + 1] = diagonal + 1;
            } else if (above > row[j]) {
                if (walk)
                    l->up[(i * blen + j) / 8] |= (uint8_t)(1u << ((i * blen + j) % 8));
            } else {
                row[j + 1] = row[j];
            }
            diagonal = above;
        }
    }
    l->length = row[blen];
    mem_free(MEM_OTHER, row);
}

/* Walks from the ends. Common bytes go to text[length], the ranges, last first, to `ranges`;
 * either may be NULL. */
static void lcs_walk(const struct lcs *l, char *text, struct buf *ranges)
{
    struct lcs_range run;
    bool open = false;
    uint32_t left = l->length;
    size_t i = l->a.len, j = l->b.len;
    while (i > 0 && j > 0) {
        bool same = l->a.ptr[i - 1] == l->b.ptr[j - 1];
        if (open && !same) {
            if (ranges)
                buf_append(ranges, &run, sizeof(run));
            open = false;
        }
        if (!same) {
            if (lcs_goes_up(l, i - 1, j - 1))
                i--;
            else
                j--;
            continue;
        }
        i--;
        j--;
        if (text)
            text[--left] = l->a.ptr[i];
        if (!open)
            run.a_end = (uint32_t)i, run.b_end = (uint32_t)j;
        run.a_start = (uint32_t)i, run.b_start = (uint32_t)j;
        open = true;
    }
    if (open && ranges)
        buf_append(ranges, &run, sizeof(run));
}

static void lcs_reply_range(struct call *c, const struct lcs_range *run, bool with_len)
{
    reply_array(&c->r, with_len ? 3 : 2);
    reply_array(&c->r, 2);
    reply_int(&c->r, run->a_start);
    reply_int(&c->r, run->a_end);
    reply_array(&c->r, 2);
    reply_int(&c->r, run->b_start);
    reply_int(&c->r, run->b_end);
    if (with_len)
        reply_int(&c->r, (int64_t)run->a_end - run->a_start + 1);
}

static void lcs_reply_idx(struct call *c, const struct lcs *l, const struct lcs_options *opt)
{
    struct buf found;
    buf_init(&found, MEM_OTHER);
    lcs_walk(l, NULL, &found);
    const struct lcs_range *run = (const void *)found.ptr;
    size_t n = found.len / sizeof(*run), shown = 0;
    for (size_t i = 0; i < n; i++)
        shown += (int64_t)run[i].a_end - run[i].a_start + 1 >= opt->min_match_len;

    reply_map(&c->r, 2);
    reply_bulk_str(&c->r, "matches");
    reply_array(&c->r, (int64_t)shown);
    for (size_t i = 0; i < n; i++) {
        if ((int64_t)run[i].a_end - run[i].a_start + 1 >= opt->min_match_len)
            lcs_reply_range(c, &run[i], opt->with_match_len);
    }
    reply_bulk_str(&c->r, "len");
    reply_int(&c->r, l->length);
    buf_deinit(&found);
}

static void lcs_run(struct call *c, struct slice a, struct slice b, const struct lcs_options *opt)
{
    struct lcs l = {.a = a, .b = b};
    lcs_compute(&l, !opt->len);
    if (opt->len) {
        reply_int(&c->r, l.length);
    } else if (opt->idx) {
        lcs_reply_idx(c, &l, opt);
    } else {
        char *text = mem_alloc(MEM_OTHER, l.length + 1);
        lcs_walk(&l, text, NULL);
        reply_bulk(&c->r, SLICE(text, l.length));
        mem_free(MEM_OTHER, text);
    }
    mem_free(MEM_OTHER, l.up);
}

void cmd_lcs(struct call *c)
{
    struct object *first = ks_read(c, 0), *second = ks_read(c, 1);
    if ((first && first->type != OBJ_STRING) || (second && second->type != OBJ_STRING)) {
        call_error(c, "ERR The specified keys must contain string values");
        return;
    }
    struct lcs_options opt;
    if (!lcs_parse(c, &opt))
        return;
    char scratch[2][OBJ_SCRATCH];
    struct slice a = SLICE_NONE, b = SLICE_NONE;
    if (first && !ks_string(c, first, scratch[0], &a))
        return;
    struct buf copy; /* a packed value lives in scratch memory that the second would overwrite */
    buf_init(&copy, MEM_OTHER);
    if (first && first->flags & OBJ_F_PACKED) {
        buf_slice_append(&copy, a);
        a = buf_slice(&copy);
    }
    if ((!second || ks_string(c, second, scratch[1], &b)) && !lcs_too_large(c, a, b))
        lcs_run(c, a, b, &opt);
    buf_deinit(&copy);
}
