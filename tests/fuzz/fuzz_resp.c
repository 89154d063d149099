/* The request parser. The first byte chooses the limits and how the rest arrives; whole and
 * in pieces it must mean the same. */
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>

#include "tiercel/check.h"
#include "tiercel/hash.h"
#include "tiercel/resp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Digests everything that was parsed of `in`, fed in pieces of at most `step` bytes. */
static uint64_t parse_all(struct slice in, const struct resp_limits *lim, size_t step)
{
    struct resp_parser p;
    struct request req;
    char err[128];
    size_t done = 0, have = in.len < step ? in.len : step, used;
    uint64_t digest = 1;
    resp_parser_init(&p);
    request_init(&req);
    for (;;) {
        /* In memory of its own and of its own size: nothing may be read behind it or kept of it. */
        char *copy = malloc(have - done + 1);
        CHECK(copy != NULL);
        memcpy(copy, in.ptr + done, have - done);
        enum resp_rc rc = resp_parse(&p, SLICE(copy, have - done), lim, &used, &req, err);
        CHECK(used <= have - done && (used > 0) == (rc == RESP_OK));
        if (rc == RESP_OK) {
            digest = hash_bytes(digest, &req.argc, sizeof(req.argc));
            for (int i = 0; i < req.argc; i++)
                digest = hash_bytes(digest + req.argv[i].len, req.argv[i].ptr, req.argv[i].len);
            done += used;
        }
        free(copy);
        if (rc == RESP_BAD) {
            digest = hash_bytes(digest, err, strlen(err));
            break;
        }
        if (rc == RESP_MORE) {
            CHECK(p.need == 0 || p.need > have - done);
            if (have == in.len)
                break;
            have = in.len - have < step ? in.len : have + step;
        }
    }
    request_deinit(&req);
    resp_parser_deinit(&p);
    return hash_bytes(digest, &done, sizeof(done));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct resp_limits limits[] = {
        {512 << 20, INT_MAX, 64 * 1024},
        {RESP_UNAUTH_BULK, RESP_UNAUTH_MULTIBULK, 64},
    };
    if (size == 0)
        return 0;
    const struct resp_limits *lim = &limits[data[0] & 1];
    size_t step = 1 + (data[0] >> 1);
    struct slice in = SLICE((const char *)data + 1, size - 1);
    if (size / step > 2000) /* pieces times their length: keep a run short */
        step = size / 2000 + 1;
    CHECK(parse_all(in, lim, SIZE_MAX) == parse_all(in, lim, step));
    return 0;
}
