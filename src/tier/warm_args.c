/* The arguments of WARM: warm_parse() and warm_start_line(). */
#include <stdio.h>

#include "tiercel/num.h"
#include "tiercel/resp.h"
#include "tiercel/warm.h"

#define COUNT_DEFAULT 500

static enum status bad(char err[WARM_ERROR_MAX], const char *text)
{
    snprintf(err, WARM_ERROR_MAX, "%s", text);
    return ST_BAD;
}

static enum status parse_number(struct slice arg, const char *name, int64_t max, int64_t *out, char err[WARM_ERROR_MAX])
{
    if (num_parse_i64(arg, out) && *out >= 1 && *out <= max)
        return ST_OK;
    snprintf(err, WARM_ERROR_MAX, "%s is not a number from 1 to %lld", name, (long long)max);
    return ST_BAD;
}

/* RATE, WAIT and COUNT are looked for from the end, because a key may have any name; the first
 * `least` arguments are never options. Returns how many arguments are left, -1: *err says why. */
static int parse_tail(int argc, const struct slice *argv, int least, struct warm_spec *out, char err[WARM_ERROR_MAX])
{
    bool rate = false, count = false;

    while (argc > least) {
        struct slice value = argv[argc - 1];
        if (slice_is(value, "wait") && !out->wait) {
            out->wait = true;
            argc--;
        } else if (argc - 1 > least && slice_is(argv[argc - 2], "rate") && !rate) {
            rate = true;
            if (parse_number(value, "RATE", WARM_RATE_MAX, &out->rate, err) != ST_OK)
                return -1;
            argc -= 2;
        } else if (out->kind == WARM_MATCH && argc - 1 > least && slice_is(argv[argc - 2], "count") && !count) {
            count = true;
            if (parse_number(value, "COUNT", WARM_COUNT_MAX, &out->count, err) != ST_OK)
                return -1;
            argc -= 2;
        } else {
            break;
        }
    }
    return argc;
}

enum status warm_parse(int argc, const struct slice *argv, struct warm_spec *out, char err[WARM_ERROR_MAX])
{
    *out = (struct warm_spec){.count = COUNT_DEFAULT};
    if (argc < 2)
        return bad(err, "syntax error");
    if (slice_is(argv[0], "keys"))
        out->kind = WARM_KEYS;
    else if (slice_is(argv[0], "match"))
        out->kind = WARM_MATCH;
    else if (slice_is(argv[0], "file"))
        out->kind = WARM_FILE;
    else
        return bad(err, "syntax error");
    int left = parse_tail(argc, argv, 2, out, err);
    if (left < 0)
        return ST_BAD;
    if (out->kind == WARM_KEYS) {
        out->keys = argv + 1;
        out->nkeys = left - 1;
        return ST_OK;
    }
    out->text = argv[1];
    return left == 2 ? ST_OK : bad(err, "syntax error");
}

enum status warm_start_line(struct warm *wm, struct worker *w, int db, const char *line, uint64_t *id,
                            char err[WARM_ERROR_MAX])
{
    struct request req;
    struct warm_spec spec;
    enum status st = ST_BAD;

    request_init(&req);
    if (!resp_split_line(slice_str(line), &req)) {
        bad(err, "unbalanced quotes");
    } else {
        int skip = req.argc > 0 && slice_is(req.argv[0], "warm");
        st = warm_parse(req.argc - skip, req.argv + skip, &spec, err);
    }
    if (st == ST_OK) {
        spec.at_start = true;
        st = warm_start(wm, w, db, &spec, NULL, id, err);
    }
    request_deinit(&req);
    return st;
}
