#ifndef TIERCEL_RESP_H
#define TIERCEL_RESP_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/chain.h"
#include "tiercel/slice.h"

/* The Redis protocol, both versions (https://redis.io/docs/reference/protocol-spec/).
 * Pure: knows no socket and no command. One owner, no locks. */

/* ---- requests ---------------------------------------------------------------------- */

struct request {
    int argc;
    int cap;
    struct slice *argv; /* into the input given to resp_parse(), or into own memory (inline commands with quotes) */
    size_t bytes;       /* sum of the arguments' lengths */
    struct buf inline_text;
    /* Noted by session_look_ahead(): the hash of argv[1] as a key of the incarnation; 0 = not noted. */
    uint32_t key_inc;
    uint64_t key_hash;
};

void request_init(struct request *req);
void request_deinit(struct request *req);

#define RESP_UNAUTH_MULTIBULK 10 /* limits before authentication; they have error texts of their own */
#define RESP_UNAUTH_BULK 16384

struct resp_limits {
    int64_t max_bulk;      /* proto-max-bulk-len; RESP_UNAUTH_BULK before authentication */
    int64_t max_multibulk; /* INT_MAX as Redis 7.0; RESP_UNAUTH_MULTIBULK before authentication */
    int64_t max_inline;    /* 64 KB, as Redis */
};

/* Remembers how far a request that has not arrived whole was read, so that nothing is
 * scanned twice. Zero-initialise. The input must start at the same byte until the request
 * was consumed; it may move in memory. */
struct resp_parser {
    int64_t multibulk; /* arguments announced; 0 = at a request's start */
    int args_done;
    size_t pos;
    size_t scanned;   /* no line end before this offset; at most pos means nothing known */
    int64_t bulk_len; /* of the argument being read; -1 = its header is not read yet */
    size_t *offsets;  /* pairs (start, len) of arguments read so far */
    int offsets_cap;
    size_t need; /* after RESP_MORE: input length at which trying again makes sense (0 = any) */
};

void resp_parser_init(struct resp_parser *p);
void resp_parser_deinit(struct resp_parser *p);

enum resp_rc {
    RESP_OK,   /* *used bytes are one request; argc may be 0 (an empty line): ignore it */
    RESP_MORE, /* nothing consumed */
    RESP_BAD   /* *err is Redis's error text without the leading '-': answer it and close */
};

/* Consumes at most one request from `in`: multibulk or inline. */
enum resp_rc resp_parse(struct resp_parser *p, struct slice in, const struct resp_limits *lim, size_t *used,
                        struct request *req, char err[128]);

/* Splits a line as redis-cli's and Redis's inline commands do: quotes and \xHH escapes
 * (also used for config files). false: unbalanced quotes. Results live in req. */
bool resp_split_line(struct slice line, struct request *req);

/* ---- replies ------------------------------------------------------------------------
 * `proto` is 2 or 3. Aggregates announce their length first; the caller then writes that
 * many elements (maps: pairs). In RESP2 a map is an array of twice the length, a set an
 * array, a double a bulk string, a boolean an integer, null a nil bulk. */
struct reply {
    struct chain *out;
    int proto;
};

void reply_simple(struct reply *r, const char *text); /* +text */
void reply_error(struct reply *r, const char *text);  /* -text; CR and LF become spaces */
void reply_errorf(struct reply *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void reply_int(struct reply *r, int64_t v);
void reply_bulk(struct reply *r, struct slice s);
void reply_bulk_str(struct reply *r, const char *str);
void reply_bulk_ref(struct reply *r, struct rcbuf *b); /* takes the reference; b->raw_len != 0: inflated later */
void reply_null(struct reply *r);                      /* $-1 or _ */
void reply_null_array(struct reply *r);                /* *-1 or _ */
void reply_array(struct reply *r, int64_t n);
void reply_map(struct reply *r, int64_t n);
void reply_set(struct reply *r, int64_t n);
void reply_push(struct reply *r, int64_t n); /* > in RESP3, * in RESP2 */
void reply_attribute(struct reply *r, int64_t n);
void reply_bool(struct reply *r, bool v);
void reply_double(struct reply *r, double v);                           /* as Redis prints scores: %.17g */
void reply_long_double(struct reply *r, long double v);                 /* bulk in RESP2, ',' in RESP3 */
void reply_verbatim(struct reply *r, struct slice s, const char *ext3); /* =..txt:... or a bulk */
void reply_raw(struct reply *r, struct slice bytes);                    /* bytes that are a whole reply already */

/* ---- requests we send (to an upstream, into a file) --------------------------------- */
void resp_write_command(struct buf *out, int argc, const struct slice *argv);

#endif
