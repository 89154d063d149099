#include "tiercel/resp.h"

#include <stdarg.h>

#include "tiercel/check.h"
#include "tiercel/num.h"

/* A mark, a number, CR LF; twice, and then some. */
#define HEADER_MAX 32
/* Up to here a bulk is reserved in one piece; longer ones fill blocks as they come. */
#define BULK_CONTIGUOUS 2048
/* Shorter references are copied: an iovec and a count cost more. */
#define REF_MIN 1024

static inline char *header_put(char *to, char mark, int64_t n)
{
    *to++ = mark;
    if (LIKELY(n >= 0 && n < 10))
        *to++ = (char)('0' + n);
    else
        to += num_format_i64(to, n);
    *to++ = '\r';
    *to++ = '\n';
    return to;
}

static void header_write(struct reply *r, char mark, int64_t n)
{
    char *start = chain_reserve(r->out, HEADER_MAX);
    chain_commit(r->out, (size_t)(header_put(start, mark, n) - start));
}

void reply_raw(struct reply *r, struct slice bytes)
{
    chain_append(r->out, bytes.ptr, bytes.len);
}

void reply_simple(struct reply *r, const char *text)
{
    size_t len = strlen(text);
    char *to = chain_reserve(r->out, len + 3);
    *to = '+';
    memcpy(to + 1, text, len);
    memcpy(to + 1 + len, "\r\n", 2);
    chain_commit(r->out, len + 3);
}

static void error_write(struct reply *r, const char *text, size_t len)
{
    char *to = chain_reserve(r->out, len + 3);
    to[0] = '-';
    for (size_t i = 0; i < len; i++)
        to[1 + i] = text[i] == '\r' || text[i] == '\n' ? ' ' : text[i];
    memcpy(to + 1 + len, "\r\n", 2);
    chain_commit(r->out, len + 3);
}

void reply_error(struct reply *r, const char *text)
{
    error_write(r, text, strlen(text));
}

void reply_errorf(struct reply *r, const char *fmt, ...)
{
    struct buf text;
    va_list ap;
    buf_init(&text, MEM_CLIENT);
    va_start(ap, fmt);
    buf_vprintf(&text, fmt, ap);
    va_end(ap);
    error_write(r, text.ptr, text.len);
    buf_deinit(&text);
}

void reply_int(struct reply *r, int64_t v)
{
    header_write(r, ':', v);
}

void reply_bulk(struct reply *r, struct slice s)
{
    if (LIKELY(s.len <= BULK_CONTIGUOUS)) {
        char *start = chain_reserve(r->out, s.len + HEADER_MAX);
        char *to = header_put(start, '$', (int64_t)s.len);
        if (s.len)
            memcpy(to, s.ptr, s.len);
        memcpy(to + s.len, "\r\n", 2);
        chain_commit(r->out, (size_t)(to - start) + s.len + 2);
        return;
    }
    header_write(r, '$', (int64_t)s.len);
    chain_append(r->out, s.ptr, s.len);
    chain_append(r->out, "\r\n", 2);
}

void reply_bulk_str(struct reply *r, const char *str)
{
    reply_bulk(r, slice_str(str));
}

void reply_bulk_ref(struct reply *r, struct rcbuf *b)
{
    bool packed = b->raw_len != 0;
    if (!packed && b->len < REF_MIN) {
        reply_bulk(r, rcbuf_slice(b));
        rcbuf_unref(b);
        return;
    }
    header_write(r, '$', (int64_t)(packed ? b->raw_len : b->len));
    chain_append_ref(r->out, b, packed);
    chain_append(r->out, "\r\n", 2);
}

void reply_null(struct reply *r)
{
    reply_raw(r, r->proto >= 3 ? SLICE_LIT("_\r\n") : SLICE_LIT("$-1\r\n"));
}

void reply_null_array(struct reply *r)
{
    reply_raw(r, r->proto >= 3 ? SLICE_LIT("_\r\n") : SLICE_LIT("*-1\r\n"));
}

void reply_array(struct reply *r, int64_t n)
{
    header_write(r, '*', n);
}

void reply_map(struct reply *r, int64_t n)
{
    if (r->proto >= 3)
        header_write(r, '%', n);
    else
        header_write(r, '*', 2 * n);
}

void reply_set(struct reply *r, int64_t n)
{
    header_write(r, r->proto >= 3 ? '~' : '*', n);
}

void reply_push(struct reply *r, int64_t n)
{
    header_write(r, r->proto >= 3 ? '>' : '*', n);
}

void reply_attribute(struct reply *r, int64_t n)
{
    CHECK(r->proto >= 3); /* a RESP2 client would take it for the reply */
    header_write(r, '|', n);
}

void reply_bool(struct reply *r, bool v)
{
    if (r->proto >= 3)
        reply_raw(r, v ? SLICE_LIT("#t\r\n") : SLICE_LIT("#f\r\n"));
    else
        reply_int(r, v);
}

/* The text of a number: a bulk in RESP2, behind a comma in RESP3. */
static void number_write(struct reply *r, struct slice text)
{
    if (r->proto < 3) {
        reply_bulk(r, text);
        return;
    }
    char *to = chain_reserve(r->out, text.len + 3);
    *to = ',';
    memcpy(to + 1, text.ptr, text.len);
    memcpy(to + 1 + text.len, "\r\n", 2);
    chain_commit(r->out, text.len + 3);
}

void reply_double(struct reply *r, double v)
{
    char text[NUM_F64_SHORT];
    number_write(r, SLICE(text, num_format_f64(text, v)));
}

void reply_long_double(struct reply *r, long double v)
{
    char text[NUM_F64_MAX];
    number_write(r, SLICE(text, num_format_f64_human(text, v)));
}

void reply_verbatim(struct reply *r, struct slice s, const char *ext3)
{
    if (r->proto < 3) {
        reply_bulk(r, s);
        return;
    }
    CHECK(strlen(ext3) == 3);
    header_write(r, '=', (int64_t)s.len + 4);
    chain_append(r->out, ext3, 3);
    chain_append(r->out, ":", 1);
    chain_append(r->out, s.ptr, s.len);
    chain_append(r->out, "\r\n", 2);
}

void resp_write_command(struct buf *out, int argc, const struct slice *argv)
{
    size_t room = HEADER_MAX;
    for (int i = 0; i < argc; i++)
        room += HEADER_MAX + argv[i].len;
    buf_reserve(out, room);
    char *to = header_put(out->ptr + out->len, '*', argc);
    for (int i = 0; i < argc; i++) {
        to = header_put(to, '$', (int64_t)argv[i].len);
        if (argv[i].len)
            memcpy(to, argv[i].ptr, argv[i].len);
        to += argv[i].len;
        *to++ = '\r';
        *to++ = '\n';
    }
    out->len = (size_t)(to - out->ptr);
}
