#include "tiercel/resp.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>

#include "tiercel/check.h"
#include "tiercel/num.h"

/* Arrays that grew larger than this for one request are given back at the next small one. */
#define ARGS_KEPT 1024
#define ARGS_FIRST 16
#define SHORT_ARG 9999 /* the longest argument that parse_short() takes */

void request_init(struct request *req)
{
    *req = (struct request){0};
    buf_init(&req->inline_text, MEM_CLIENT);
}

void request_deinit(struct request *req)
{
    mem_free(MEM_CLIENT, req->argv);
    buf_deinit(&req->inline_text);
    request_init(req);
}

static void request_reserve(struct request *req, int argc)
{
    if (LIKELY(argc <= req->cap) && LIKELY(req->cap <= ARGS_KEPT || argc > ARGS_KEPT / 2))
        return;
    int cap = argc > req->cap && req->cap <= ARGS_KEPT ? req->cap * 2 : 0;
    if (cap < argc)
        cap = argc < ARGS_FIRST ? ARGS_FIRST : argc;
    mem_free(MEM_CLIENT, req->argv); /* nothing in it is wanted: not a realloc */
    req->argv = mem_alloc(MEM_CLIENT, (size_t)cap * sizeof(*req->argv));
    req->cap = cap;
}

void resp_parser_init(struct resp_parser *p)
{
    *p = (struct resp_parser){.bulk_len = -1};
}

void resp_parser_deinit(struct resp_parser *p)
{
    mem_free(MEM_CLIENT, p->offsets);
    resp_parser_init(p);
}

static void parser_restart(struct resp_parser *p)
{
    p->multibulk = 0;
    p->args_done = 0;
    p->pos = p->scanned = p->need = 0;
    p->bulk_len = -1;
    if (UNLIKELY(p->offsets_cap > ARGS_KEPT)) {
        mem_free(MEM_CLIENT, p->offsets);
        p->offsets = NULL;
        p->offsets_cap = 0;
    }
}

static enum resp_rc bad(struct resp_parser *p, char err[128], const char *text)
{
    parser_restart(p);
    snprintf(err, 128, "ERR Protocol error: %s", text);
    return RESP_BAD;
}

/* Doubles as arguments arrive: an announced count alone makes nobody allocate. */
static void offsets_grow(struct resp_parser *p)
{
    int cap = p->offsets_cap ? p->offsets_cap * 2 : ARGS_FIRST;
    p->offsets = mem_realloc(MEM_CLIENT, p->offsets, (size_t)cap * 2 * sizeof(*p->offsets));
    p->offsets_cap = cap;
}

enum line_rc { LINE_OK, LINE_MORE, LINE_TOO_LONG, LINE_BAD };

/* Reads the header line at p->pos: a mark, a number, CR and a byte that should be LF (as in
 * Redis nobody looks). On LINE_OK moves p->pos behind it. */
static enum line_rc header_read_slow(struct resp_parser *p, struct slice in, const struct resp_limits *lim,
                                     int64_t *value)
{
    size_t from = p->scanned > p->pos ? p->scanned : p->pos;
    const char *cr = from < in.len ? memchr(in.ptr + from, '\r', in.len - from) : NULL;
    size_t len = (cr ? (size_t)(cr - in.ptr) : in.len) - p->pos;
    if (len > (size_t)lim->max_inline)
        return LINE_TOO_LONG;
    p->scanned = p->pos + len;
    if (!cr || p->scanned + 2 > in.len)
        return LINE_MORE;
    if (len == 0 || !num_parse_i64(SLICE(in.ptr + p->pos + 1, len - 1), value))
        return LINE_BAD;
    p->pos += len + 2;
    return LINE_OK;
}

/* Nearly every header is complete and has few digits; whatever else is left to the slow path. */
static inline enum line_rc header_read(struct resp_parser *p, struct slice in, const struct resp_limits *lim,
                                       int64_t *value)
{
    const char *s = in.ptr + p->pos + 1, *end = in.ptr + in.len;
    int64_t v = 0;
    if (LIKELY(end - s >= 12) && *s != '0') {
        for (int i = 0; i < 9; i++, s++) {
            unsigned digit = (unsigned)(unsigned char)*s - '0';
            if (digit > 9)
                break;
            v = v * 10 + digit;
        }
        if (LIKELY(v != 0 && *s == '\r')) {
            *value = v;
            p->pos = (size_t)(s - in.ptr) + 2;
            return LINE_OK;
        }
    }
    return header_read_slow(p, in, lim, value);
}

static enum resp_rc more(struct resp_parser *p, size_t need)
{
    p->need = need;
    return RESP_MORE;
}

/* RESP_OK: the header is read, and p->multibulk is what it announced (may be 0 or less). */
static enum resp_rc multibulk_start(struct resp_parser *p, struct slice in, const struct resp_limits *lim,
                                    char err[128])
{
    int64_t n;
    switch (header_read(p, in, lim, &n)) {
    case LINE_MORE: return more(p, 0);
    case LINE_TOO_LONG: return bad(p, err, "too big mbulk count string");
    case LINE_BAD: return bad(p, err, "invalid multibulk length");
    case LINE_OK: break;
    }
    if (n > lim->max_multibulk || n > INT_MAX) {
        bool unauth = n <= INT_MAX && lim->max_multibulk == RESP_UNAUTH_MULTIBULK;
        return bad(p, err, unauth ? "unauthenticated multibulk length" : "invalid multibulk length");
    }
    p->multibulk = n;
    p->bulk_len = -1;
    p->args_done = 0;
    return RESP_OK;
}

static enum resp_rc bulk_start(struct resp_parser *p, struct slice in, const struct resp_limits *lim, char err[128])
{
    int64_t n = 0;
    if (p->pos >= in.len)
        return more(p, 0);
    char mark = in.ptr[p->pos];
    enum line_rc rc = header_read(p, in, lim, &n);
    if (rc == LINE_MORE)
        return more(p, 0);
    if (rc == LINE_TOO_LONG)
        return bad(p, err, "too big bulk count string");
    if (mark != '$') {
        char shown = mark == '\r' || mark == '\n' || mark == '\0' ? ' ' : mark;
        parser_restart(p);
        snprintf(err, 128, "ERR Protocol error: expected '$', got '%c'", shown);
        return RESP_BAD;
    }
    if (rc == LINE_BAD || n < 0)
        return bad(p, err, "invalid bulk length");
    if (n > lim->max_bulk) {
        bool unauth = lim->max_bulk == RESP_UNAUTH_BULK;
        return bad(p, err, unauth ? "unauthenticated bulk length" : "invalid bulk length");
    }
    p->bulk_len = n;
    return RESP_OK;
}

static enum resp_rc multibulk_finish(struct resp_parser *p, struct slice in, size_t *used, struct request *req)
{
    int argc = p->args_done;
    size_t bytes = 0;
    request_reserve(req, argc);
    for (int i = 0; i < argc; i++) {
        req->argv[i] = SLICE(in.ptr + p->offsets[2 * i], p->offsets[2 * i + 1]);
        bytes += p->offsets[2 * i + 1];
    }
    req->argc = argc;
    req->bytes = bytes;
    *used = p->pos;
    parser_restart(p);
    return RESP_OK;
}

static enum resp_rc parse_multibulk(struct resp_parser *p, struct slice in, const struct resp_limits *lim, size_t *used,
                                    struct request *req, char err[128])
{
    enum resp_rc rc;
    if (p->multibulk == 0) {
        rc = multibulk_start(p, in, lim, err);
        if (rc != RESP_OK)
            return rc;
    }
    while (p->args_done < p->multibulk) {
        if (p->bulk_len < 0) {
            rc = bulk_start(p, in, lim, err);
            if (rc != RESP_OK)
                return rc;
        }
        size_t len = (size_t)p->bulk_len;
        if (in.len - p->pos < len + 2)
            return more(p, p->pos + len + 2);
        if (UNLIKELY(p->args_done == p->offsets_cap))
            offsets_grow(p);
        p->offsets[2 * p->args_done] = p->pos;
        p->offsets[2 * p->args_done + 1] = len;
        p->args_done++;
        p->pos += len + 2; /* as in Redis nobody looks whether they are CR LF */
        p->bulk_len = -1;
    }
    return multibulk_finish(p, in, used, req);
}

static enum resp_rc parse_inline(struct resp_parser *p, struct slice in, const struct resp_limits *lim, size_t *used,
                                 struct request *req, char err[128])
{
    const char *lf = p->scanned < in.len ? memchr(in.ptr + p->scanned, '\n', in.len - p->scanned) : NULL;
    size_t len = lf ? (size_t)(lf - in.ptr) : in.len;
    if (len > (size_t)lim->max_inline)
        return bad(p, err, "too big inline request");
    if (!lf) {
        p->scanned = in.len;
        return more(p, 0);
    }
    struct slice line = SLICE(in.ptr, len - (len > 0 && in.ptr[len - 1] == '\r'));
    if (!resp_split_line(line, req))
        return bad(p, err, "unbalanced quotes in request");
    *used = len + 1;
    parser_restart(p);
    return RESP_OK;
}

/* Nearly every request is whole, of few arguments, and none of them long. false: it is not, or
 * something is wrong with it; nothing was done, and the general parser begins at its start. */
static inline bool parse_short(struct slice in, const struct resp_limits *lim, size_t *used, struct request *req)
{
    const char *s = in.ptr, *end = in.ptr + in.len;
    if (end - s < 4 || s[2] != '\r')
        return false;
    unsigned argc = (unsigned)(unsigned char)s[1] - '0';
    if (argc == 0 || argc > 9 || (int)argc > req->cap)
        return false;
    struct slice *arg = req->argv, *last = arg + argc;
    size_t bytes = 0;
    for (s += 4; arg < last; arg++) {
        if (end - s < 7 || *s++ != '$')
            return false;
        size_t len = (unsigned)(unsigned char)*s++ - '0';
        if (len - 1 > 8) /* a zero, or no digit */
            return false;
        for (unsigned digit; (digit = (unsigned)(unsigned char)*s - '0') <= 9; s++) {
            len = len * 10 + digit;
            if (len > SHORT_ARG)
                return false;
        }
        if (*s != '\r' || (size_t)(end - s) < len + 4)
            return false;
        *arg = SLICE(s + 2, len);
        bytes += len;
        s += len + 4;
    }
    if (UNLIKELY((int64_t)argc > lim->max_multibulk || lim->max_bulk < SHORT_ARG))
        return false;
    req->argc = (int)argc;
    req->bytes = bytes;
    *used = (size_t)(s - in.ptr);
    return true;
}

enum resp_rc resp_parse(struct resp_parser *p, struct slice in, const struct resp_limits *lim, size_t *used,
                        struct request *req, char err[128])
{
    *used = 0;
    req->key_inc = 0;
    if (in.len == 0 || in.len < p->need)
        return RESP_MORE;
    if (LIKELY(in.ptr[0] == '*')) {
        if (LIKELY(p->multibulk == 0 && p->scanned == 0) && LIKELY(req->cap <= ARGS_KEPT) &&
            LIKELY(parse_short(in, lim, used, req)))
            return RESP_OK;
        return parse_multibulk(p, in, lim, used, req, err);
    }
    return parse_inline(p, in, lim, used, req, err);
}

/* ---- lines --------------------------------------------------------------------------- */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One escape of a "..." string, behind its backslash: how many bytes it has, and what it means. */
static size_t escape_read(const char *s, const char *end, char *out)
{
    static const char names[] = "nrtba", bytes[] = "\n\r\t\b\a";
    if (*s == 'x' && end - s >= 3 && hex_value(s[1]) >= 0 && hex_value(s[2]) >= 0) {
        *out = (char)(hex_value(s[1]) * 16 + hex_value(s[2]));
        return 3;
    }
    const char *name = memchr(names, *s, sizeof(names) - 1);
    *out = name ? bytes[name - names] : *s;
    return 1;
}

static bool is_space(char c)
{
    return isspace((unsigned char)c);
}

/* Copies one argument that starts at `s` to *to. Returns where it ends, NULL: unbalanced. */
static const char *word_copy(const char *s, const char *end, char **to)
{
    char quote = 0, *out = *to;
    for (; s < end; s++) {
        if (!quote) {
            if (*s == ' ' || *s == '\n' || *s == '\r' || *s == '\t')
                break;
            if (*s == '"' || *s == '\'')
                quote = *s;
            else
                *out++ = *s;
        } else if (*s == quote) {
            /* Nothing may stick to a closing quote. */
            if (s + 1 < end && !is_space(s[1]))
                return NULL;
            *to = out;
            return s + 1;
        } else if (*s == '\\' && quote == '"' && s + 1 < end) {
            s += escape_read(s + 1, end, out++);
        } else if (*s == '\\' && quote == '\'' && s + 1 < end && s[1] == '\'') {
            *out++ = *++s;
        } else {
            *out++ = *s;
        }
    }
    *to = out;
    return quote ? NULL : s;
}

bool resp_split_line(struct slice line, struct request *req)
{
    /* Redis reads a C string here, so a NUL ends the line. */
    const char *s = line.ptr;
    const char *nul = line.len ? memchr(s, '\0', line.len) : NULL;
    const char *end = nul ? nul : s + line.len;

    req->argc = 0;
    req->bytes = 0;
    /* Unquoting never makes text longer; reserved once, it does not move under the arguments. */
    req->inline_text.len = 0;
    buf_reserve(&req->inline_text, (size_t)(end - s) + 1);
    char *to = req->inline_text.ptr;
    for (;;) {
        while (s < end && is_space(*s))
            s++;
        if (s == end)
            break;
        char *word = to;
        s = word_copy(s, end, &to);
        if (!s)
            return false;
        if (req->argc == req->cap) {
            int cap = req->cap ? req->cap * 2 : ARGS_FIRST;
            req->argv = mem_realloc(MEM_CLIENT, req->argv, (size_t)cap * sizeof(*req->argv));
            req->cap = cap;
        }
        req->argv[req->argc++] = SLICE(word, (size_t)(to - word));
        req->bytes += (size_t)(to - word);
    }
    req->inline_text.len = (size_t)(to - req->inline_text.ptr);
    return true;
}
