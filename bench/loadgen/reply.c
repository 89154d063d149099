#include "reply.h"

#include "tiercel/num.h"

static void consume(struct slice *in, size_t n)
{
    in->ptr += n;
    in->len -= n;
}

static enum reply_rc value_done(struct reply_parser *p, struct reply_event *ev, enum reply_kind kind)
{
    ev->kind = kind;
    ev->last = true;
    ev->end = --p->items == 0;
    return REPLY_OK;
}

/* The part of a bulk that is here, or its end. */
static enum reply_rc parse_bulk(struct reply_parser *p, struct slice *in, struct reply_event *ev)
{
    size_t n = in->len < p->bulk_bytes ? in->len : (size_t)p->bulk_bytes;

    ev->kind = REPLY_BULK;
    ev->data = SLICE(in->ptr, n);
    ev->last = ev->end = false;
    consume(in, n);
    p->bulk_bytes -= n;
    if (p->bulk_bytes == 0) {
        while (p->crlf && in->len) {
            if (in->ptr[0] != (p->crlf == 2 ? '\r' : '\n'))
                return REPLY_BAD;
            consume(in, 1);
            p->crlf--;
        }
        if (p->crlf == 0) {
            p->in_bulk = false;
            return value_done(p, ev, REPLY_BULK);
        }
    }
    return n ? REPLY_OK : REPLY_MORE;
}

/* A whole line without its end; false: it is not all here. */
static bool take_line(struct reply_parser *p, struct slice *in, struct slice *line)
{
    const char *end = memchr(in->ptr, '\n', in->len);
    size_t n = end ? (size_t)(end - in->ptr) + 1 : in->len;

    if (end && p->line_len == 0) {
        *line = SLICE(in->ptr, n - 1);
    } else {
        size_t room = REPLY_LINE_MAX - p->line_len, kept = n < room ? n : room;
        memcpy(p->line + p->line_len, in->ptr, kept);
        p->line_len += (unsigned)kept;
        *line = SLICE(p->line, p->line_len - (end && p->line[p->line_len - 1] == '\n' ? 1 : 0));
    }
    consume(in, n);
    if (!end)
        return false;
    if (line->len && line->ptr[line->len - 1] == '\r')
        line->len--;
    p->line_len = 0;
    return true;
}

static enum reply_rc parse_line(struct reply_parser *p, struct slice line, struct reply_event *ev)
{
    int64_t n;

    if (line.len == 0)
        return REPLY_BAD;
    if (p->items == 0)
        p->items = 1;
    ev->data = SLICE(line.ptr + 1, line.len - 1);
    switch (line.ptr[0]) {
    case '$':
        if (!num_parse_i64(ev->data, &n) || n < -1)
            return REPLY_BAD;
        if (n == -1)
            break;
        p->in_bulk = true;
        p->bulk_bytes = (uint64_t)n;
        p->crlf = 2;
        return REPLY_MORE;
    case '*':
        if (!num_parse_i64(ev->data, &n) || n < -1)
            return REPLY_BAD;
        if (n == -1)
            break;
        p->items += (uint64_t)n;
        return value_done(p, ev, REPLY_ARRAY);
    case '+': return value_done(p, ev, REPLY_STATUS);
    case '-': return value_done(p, ev, REPLY_ERROR);
    case ':': return value_done(p, ev, REPLY_INTEGER);
    default: return REPLY_BAD;
    }
    return value_done(p, ev, REPLY_NIL);
}

enum reply_rc reply_parse(struct reply_parser *p, struct slice *in, struct reply_event *ev)
{
    while (in->len) {
        struct slice line;
        enum reply_rc rc;
        if (p->in_bulk)
            rc = parse_bulk(p, in, ev);
        else if (take_line(p, in, &line))
            rc = parse_line(p, line, ev);
        else
            return REPLY_MORE;
        if (rc != REPLY_MORE)
            return rc;
    }
    return REPLY_MORE;
}
