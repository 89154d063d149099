#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include <cmocka.h>

#include "tiercel/hash.h"
#include "tiercel/resp.h"

static const struct resp_limits limits = {512 << 20, INT_MAX, 64 * 1024};
static const struct resp_limits unauth = {RESP_UNAUTH_BULK, RESP_UNAUTH_MULTIBULK, 64 * 1024};
static uint64_t seed = 7;

static size_t below(size_t n)
{
    return (size_t)(rng_next(&seed) % n);
}

/* ---- requests ---------------------------------------------------------------------------- */

/* Everything that `in` says, as text: "[a b] [c]", then "!error" or "+n" for n bytes left.
 * Read in pieces that end at the given offset and at every `step` bytes behind it. Each
 * piece lies in memory of its own, so that reading on, or holding old pointers, is seen. */
static void parse_all(struct slice in, const struct resp_limits *lim, size_t first, size_t step, struct buf *out)
{
    struct resp_parser p;
    struct request req;
    char err[128];
    size_t done = 0, have = first;
    bool bad = false;
    resp_parser_init(&p);
    request_init(&req);
    out->len = 0;
    for (;;) {
        char *copy = malloc(have - done + (have == done));
        size_t used = 99;
        assert_non_null(copy);
        memcpy(copy, in.ptr + done, have - done);
        enum resp_rc rc = resp_parse(&p, SLICE(copy, have - done), lim, &used, &req, err);
        if (rc == RESP_OK) {
            size_t bytes = 0;
            assert_true(used > 0 && used <= have - done);
            buf_byte(out, '[');
            for (int i = 0; i < req.argc; i++) {
                buf_printf(out, i ? " " : "");
                buf_slice_append(out, req.argv[i]);
                bytes += req.argv[i].len;
            }
            buf_byte(out, ']');
            assert_int_equal(bytes, req.bytes);
            done += used;
        } else {
            assert_int_equal(used, 0);
        }
        free(copy);
        if (rc == RESP_BAD) {
            buf_printf(out, "!%s", err);
            bad = true;
            break;
        }
        if (rc == RESP_MORE) {
            assert_true(p.need == 0 || p.need > have - done);
            if (have == in.len)
                break;
            have = have + step < in.len ? have + step : in.len;
        }
    }
    if (!bad)
        buf_printf(out, "+%zu", in.len - done);
    request_deinit(&req);
    resp_parser_deinit(&p);
}

static void expect(struct slice in, const struct resp_limits *lim, const char *want)
{
    struct buf out;
    buf_init(&out, MEM_OTHER);
    for (size_t first = 0; first <= in.len; first++) { /* split once, at every place */
        parse_all(in, lim, first, in.len, &out);
        if (!slice_eq(buf_slice(&out), slice_str(want)))
            fail_msg("at %zu: %.*s instead of %s", first, SLICE_FMT(out), want);
    }
    for (size_t step = 1; step < 4; step++) { /* and in drops */
        parse_all(in, lim, 0, step, &out);
        if (!slice_eq(buf_slice(&out), slice_str(want)))
            fail_msg("step %zu: %.*s instead of %s", step, SLICE_FMT(out), want);
    }
    buf_deinit(&out);
}

#define SAYS(in, want) expect(SLICE_LIT(in), &limits, want)
#define PE "!ERR Protocol error: "

static void test_multibulk(void **state)
{
    (void)state;
    SAYS("", "+0");
    SAYS("*1\r\n$4\r\nPING\r\n", "[PING]+0");
    SAYS("*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPI", "[GET a]+10");
    SAYS("*3\r\n$3\r\nSET\r\n$0\r\n\r\n$12\r\na\r\nb*1\r\n$c\r\r\r\n", "[SET  a\r\nb*1\r\n$c\r\r]+0");
    SAYS("*0\r\n*-5\r\n*1\r\n$4\r\nPING\r\n", "[][][PING]+0");
    SAYS("*1\r\n$1234567890123\r\n", PE "invalid bulk length");
    SAYS("*1\rX$4\rYPINGxx", "[PING]+0"); /* as in Redis, only the CR is looked at */
    SAYS("*12\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n"
         "$1\r\na\r\n$1\r\na\r\n$0000\r\n",
         PE "invalid bulk length");
}

static void test_multibulk_errors(void **state)
{
    (void)state;
    SAYS("*abc\r\n", PE "invalid multibulk length");
    SAYS("*\r\n", PE "invalid multibulk length");
    SAYS("*01\r\n", PE "invalid multibulk length");
    SAYS("* 1\r\n", PE "invalid multibulk length");
    SAYS("*2147483648\r\n", PE "invalid multibulk length");
    SAYS("*2147483647\r\n", "+13");
    SAYS("*1\r\nx4\r\nPING\r\n", PE "expected '$', got 'x'");
    SAYS("*1\r\n\r\n", PE "expected '$', got ' '");
    SAYS("*1\r\n\n4\r\nPING\r\n12345678901234", PE "expected '$', got ' '");
    SAYS("*1\r\n*1\r\n$4\r\nPING\r\n1234567890", PE "expected '$', got '*'");
    SAYS("*1\r\n$-1\r\n", PE "invalid bulk length");
    SAYS("*1\r\n$\r\n", PE "invalid bulk length");
    SAYS("*1\r\n$04\r\nPING\r\n1234567890", PE "invalid bulk length");
    SAYS("*1\r\n$+4\r\n", PE "invalid bulk length");
    SAYS("*1\r\n$536870913\r\n", PE "invalid bulk length");
    SAYS("*1\r\n$536870912\r\n", "+16");
    SAYS("*1\r\n$4\r\nPING\r\n*x\r\n", "[PING]" PE "invalid multibulk length");
}

static void test_unauthenticated(void **state)
{
    (void)state;
    expect(SLICE_LIT("*11\r\n"), &unauth, PE "unauthenticated multibulk length");
    expect(SLICE_LIT("*3000000000\r\n"), &unauth, PE "invalid multibulk length");
    expect(SLICE_LIT("*10\r\n$16385\r\n"), &unauth, PE "unauthenticated bulk length");
    expect(SLICE_LIT("*10\r\n$16384\r\n"), &unauth, "+13");
}

static void test_inline(void **state)
{
    (void)state;
    SAYS("PING\r\n", "[PING]+0");
    SAYS("PING\nECHO  a\tb \r\nx", "[PING][ECHO a b]+1");
    SAYS("\r\n  \n\nPING\n", "[][][][PING]+0");
    SAYS("ECHO \"\\n\\q\\x4\\x4A\\\"\" 'a\\'b\\n'\r\n", "[ECHO \nqx4J\" a'b\\n]+0");
    SAYS("ECHO a\"b c\"\r\n", "[ECHO ab c]+0");
    SAYS("ECHO \"\" ''\r\n", "[ECHO  ]+0");
    SAYS("ECHO \x0b"
         "a\x0b"
         "b\r\n",
         "[ECHO a\x0b"
         "b]+0");
    SAYS("PING\0 foo\r\n", "[PING]+0"); /* Redis reads a C string */
    SAYS("\"abc\r\n", PE "unbalanced quotes in request");
    SAYS("\"abc\\\"\r\n", PE "unbalanced quotes in request");
    SAYS("'abc\r\n", PE "unbalanced quotes in request");
    SAYS("\"PING\"x\r\n", PE "unbalanced quotes in request");
    SAYS("'PING'x\r\n", PE "unbalanced quotes in request");
    SAYS("PING\n*1\r\n$4\r\nPING\r\nPING\n", "[PING][PING][PING]+0");
}

static void test_too_long_lines(void **state)
{
    (void)state;
    static const struct {
        const char *start, *want;
    } cases[] = {
        {"A", PE "too big inline request"},
        {"*", PE "too big mbulk count string"},
        {"*1\r\n$", PE "too big bulk count string"},
    };
    static char in[70000];
    struct buf out;
    buf_init(&out, MEM_OTHER);
    for (size_t i = 0; i < 3; i++) {
        memset(in, '1', sizeof(in));
        memcpy(in, cases[i].start, strlen(cases[i].start));
        for (size_t step = 7000; step <= sizeof(in); step *= 10) {
            parse_all(SLICE(in, sizeof(in)), &limits, 0, step, &out);
            assert_true(slice_eq(buf_slice(&out), slice_str(cases[i].want)));
        }
        parse_all(SLICE(in, 65536), &limits, 0, 1000, &out);
        assert_int_equal(out.ptr[0], '+');
    }
    buf_deinit(&out);
}

static void test_need_is_exact(void **state)
{
    (void)state;
    struct resp_parser p = {0}; /* zeroes must do */
    struct request req;
    char err[128];
    size_t used;
    static char in[2000];
    int n = snprintf(in, sizeof(in), "*2\r\n$3\r\nGET\r\n$1000\r\n");
    request_init(&req);
    assert_int_equal(resp_parse(&p, SLICE(in, (size_t)n), &limits, &used, &req, err), RESP_MORE);
    assert_int_equal(p.need, n + 1002);
    assert_int_equal(resp_parse(&p, SLICE(in, (size_t)n + 1001), &limits, &used, &req, err), RESP_MORE);
    assert_int_equal(resp_parse(&p, SLICE(in, (size_t)n + 1002), &limits, &used, &req, err), RESP_OK);
    assert_int_equal(used, n + 1002);
    assert_ptr_equal(req.argv[1].ptr, in + n); /* in place */
    request_deinit(&req);
    resp_parser_deinit(&p);
}

static void command_random(struct buf *in, struct buf *want)
{
    struct slice argv[40];
    static char bytes[3000];
    int argc = 1 + (int)below(below(10) ? 4 : 40);
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = "ab\r\n$*1\0"[below(8)];
    buf_byte(want, '[');
    for (int i = 0; i < argc; i++) {
        argv[i] = SLICE(bytes + below(100), below(20) ? below(12) : below(2900));
        if (i)
            buf_byte(want, ' ');
        buf_slice_append(want, argv[i]);
    }
    buf_byte(want, ']');
    resp_write_command(in, argc, argv);
}

static void test_random_commands_at_every_split(void **state)
{
    (void)state;
    struct buf in, want, out;
    buf_init(&in, MEM_OTHER);
    buf_init(&want, MEM_OTHER);
    buf_init(&out, MEM_OTHER);
    for (int round = 0; round < 40; round++) {
        in.len = want.len = 0;
        for (size_t i = below(5); i < 5; i++)
            command_random(&in, &want);
        buf_printf(&want, "+0");
        size_t stride = in.len / 400 + 1;
        for (size_t first = below(stride); first <= in.len; first += stride) {
            parse_all(buf_slice(&in), &limits, first, 1 + below(in.len + 1), &out);
            assert_true(slice_eq(buf_slice(&out), buf_slice(&want)));
        }
    }
    buf_deinit(&in);
    buf_deinit(&want);
    buf_deinit(&out);
}

static void test_large_arrays_are_given_back(void **state)
{
    (void)state;
    int64_t before = mem_class_bytes(MEM_CLIENT);
    struct resp_parser p;
    struct request req;
    struct buf in;
    struct slice arg = SLICE_LIT("x"), *argv = calloc(50000, sizeof(*argv));
    char err[128];
    size_t used;
    resp_parser_init(&p);
    request_init(&req);
    buf_init(&in, MEM_OTHER);
    for (int i = 0; i < 50000; i++)
        argv[i] = arg;
    resp_write_command(&in, 50000, argv);
    assert_int_equal(resp_parse(&p, buf_slice(&in), &limits, &used, &req, err), RESP_OK);
    assert_int_equal(req.argc, 50000);
    assert_int_equal(req.bytes, 50000);
    in.len = 0;
    resp_write_command(&in, 1, &arg);
    assert_int_equal(resp_parse(&p, buf_slice(&in), &limits, &used, &req, err), RESP_OK);
    assert_true(mem_class_bytes(MEM_CLIENT) - before < 4096);
    request_deinit(&req);
    resp_parser_deinit(&p);
    assert_int_equal(mem_class_bytes(MEM_CLIENT), before);
    buf_deinit(&in);
    free(argv);
}

/* ---- replies ----------------------------------------------------------------------------------- */

static void wrote(struct reply *r, const char *want)
{
    struct buf got;
    struct iovec iov[64];
    buf_init(&got, MEM_OTHER);
    int n = chain_iov(r->out, iov, 64);
    for (int i = 0; i < n; i++)
        buf_append(&got, iov[i].iov_base, iov[i].iov_len);
    assert_int_equal(got.len, r->out->bytes);
    if (!slice_eq(buf_slice(&got), slice_str(want)))
        fail_msg("%.*s instead of %s", SLICE_FMT(got), want);
    chain_consume(r->out, r->out->bytes);
    buf_deinit(&got);
}

/* What `call` writes in RESP2 and in RESP3. */
#define WRITES(call, want2, want3)                        \
    do {                                                  \
        struct chain chain_;                              \
        struct reply reply_ = {&chain_, 2}, *r = &reply_; \
        chain_init(&chain_);                              \
        call;                                             \
        wrote(r, want2);                                  \
        r->proto = 3;                                     \
        call;                                             \
        wrote(r, want3);                                  \
        chain_deinit(&chain_);                            \
    } while (0)

static void test_reply_scalars(void **state)
{
    (void)state;
    WRITES(reply_simple(r, "OK"), "+OK\r\n", "+OK\r\n");
    WRITES(reply_error(r, "ERR a\r\nb"), "-ERR a  b\r\n", "-ERR a  b\r\n");
    WRITES(reply_errorf(r, "ERR %d '%s'", 5, "x\ny"), "-ERR 5 'x y'\r\n", "-ERR 5 'x y'\r\n");
    WRITES(reply_int(r, 0), ":0\r\n", ":0\r\n");
    WRITES(reply_int(r, INT64_MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n");
    WRITES(reply_bulk_str(r, ""), "$0\r\n\r\n", "$0\r\n\r\n");
    WRITES(reply_bulk_str(r, "hello world"), "$11\r\nhello world\r\n", "$11\r\nhello world\r\n");
    WRITES(reply_null(r), "$-1\r\n", "_\r\n");
    WRITES(reply_null_array(r), "*-1\r\n", "_\r\n");
    WRITES(reply_bool(r, true), ":1\r\n", "#t\r\n");
    WRITES(reply_bool(r, false), ":0\r\n", "#f\r\n");
    WRITES(reply_double(r, 0.1), "$19\r\n0.10000000000000001\r\n", ",0.10000000000000001\r\n");
    WRITES(reply_double(r, 3), "$1\r\n3\r\n", ",3\r\n");
    WRITES(reply_double(r, 1e300), "$23\r\n1.0000000000000001e+300\r\n", ",1.0000000000000001e+300\r\n");
    WRITES(reply_double(r, -(double)INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n");
    WRITES(reply_long_double(r, 10.5L), "$4\r\n10.5\r\n", ",10.5\r\n");
    WRITES(reply_verbatim(r, SLICE_LIT("some"), "txt"), "$4\r\nsome\r\n", "=8\r\ntxt:some\r\n");
    WRITES(reply_raw(r, SLICE_LIT("+raw\r\n")), "+raw\r\n", "+raw\r\n");
}

static void test_reply_aggregates(void **state)
{
    (void)state;
    WRITES(reply_array(r, 10), "*10\r\n", "*10\r\n");
    WRITES(reply_map(r, 7), "*14\r\n", "%7\r\n");
    WRITES(reply_set(r, 3), "*3\r\n", "~3\r\n");
    WRITES(reply_push(r, 2), "*2\r\n", ">2\r\n");
    WRITES(
        {
            if (r->proto == 3)
                reply_attribute(r, 1);
        },
        "", "|1\r\n");
}

static void test_reply_bulk_of_every_size(void **state)
{
    (void)state;
    static char bytes[100000], want[100100];
    int64_t client = mem_class_bytes(MEM_CLIENT), data = mem_class_bytes(MEM_DATA);
    memset(bytes, 'v', sizeof(bytes));
    for (size_t len = 0; len < sizeof(bytes); len = len * 5 / 4 + 1) {
        int n = snprintf(want, sizeof(want), "$%zu\r\n%.*s\r\n:7\r\n", len, (int)len, bytes);
        want[n] = '\0';
        WRITES(
            {
                reply_bulk(r, SLICE(bytes, len));
                reply_int(r, 7);
            },
            want, want);
        WRITES(
            {
                reply_bulk_ref(r, rcbuf_copy(SLICE(bytes, len)));
                reply_int(r, 7);
            },
            want, want);
    }
    assert_int_equal(mem_class_bytes(MEM_CLIENT), client);
    assert_int_equal(mem_class_bytes(MEM_DATA), data);
}

static void test_reply_packed_ref_announces_plain_length(void **state)
{
    (void)state;
    struct chain c;
    struct reply r = {&c, 2};
    struct iovec iov[4];
    struct rcbuf *b = rcbuf_copy(SLICE_LIT("tiny"));
    b->raw_len = 5000;
    chain_init(&c);
    reply_bulk_ref(&r, b);
    assert_int_equal(c.bytes, 7 + 5000 + 2);
    assert_int_equal(c.npacked, 1);
    assert_int_equal(chain_iov(&c, iov, 4), 1);
    assert_memory_equal(iov[0].iov_base, "$5000\r\n", 7);
    chain_deinit(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_multibulk),
        cmocka_unit_test(test_multibulk_errors),
        cmocka_unit_test(test_unauthenticated),
        cmocka_unit_test(test_inline),
        cmocka_unit_test(test_too_long_lines),
        cmocka_unit_test(test_need_is_exact),
        cmocka_unit_test(test_random_commands_at_every_split),
        cmocka_unit_test(test_large_arrays_are_given_back),
        cmocka_unit_test(test_reply_scalars),
        cmocka_unit_test(test_reply_aggregates),
        cmocka_unit_test(test_reply_bulk_of_every_size),
        cmocka_unit_test(test_reply_packed_ref_announces_plain_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
