#include <stdlib.h>

#include "tiercel/num.h"
#include "upstream_priv.h"

#define LINE_MAX_BYTES (1024 * 1024) /* of a status, an error, a number or a length */
#define COUNT_MAX (INT64_C(1) << 40) /* elements or bytes that one reply may announce */

/* The line at `pos`, without its type and CRLF. MORE: not here yet. */
static enum status line_at(struct slice in, size_t pos, struct slice *line, size_t *next)
{
    const char *start = in.ptr + pos;
    const char *lf = memchr(start, '\n', in.len - pos);
    if (!lf)
        return in.len - pos > LINE_MAX_BYTES ? ST_BAD : ST_MORE;
    if (lf - start < 2 || lf[-1] != '\r')
        return ST_BAD;
    *line = SLICE(start + 1, (size_t)(lf - start) - 2);
    *next = pos + (size_t)(lf - start) + 1;
    return ST_OK;
}

enum shape { SHAPE_BAD, SHAPE_LINE, SHAPE_BULK, SHAPE_LIST, SHAPE_MAP, SHAPE_ATTRIBUTE };

static enum shape shape_of(char type, bool resp3)
{
    switch (type) {
    case '+':
    case '-':
    case ':': return SHAPE_LINE;
    case '$': return SHAPE_BULK;
    case '*': return SHAPE_LIST;
    default: break;
    }
    if (!resp3)
        return SHAPE_BAD;
    switch (type) {
    case '_':
    case '#':
    case ',':
    case '(': return SHAPE_LINE;
    case '=':
    case '!': return SHAPE_BULK;
    case '~':
    case '>': return SHAPE_LIST;
    case '%': return SHAPE_MAP;
    case '|': return SHAPE_ATTRIBUTE;
    default: return SHAPE_BAD; /* streamed forms among them, which Redis does not send */
    }
}

static enum status scan_item(struct reply_scan *sc, struct slice in)
{
    struct slice line;
    size_t next;
    int64_t n;
    enum status st = line_at(in, sc->pos, &line, &next);
    if (st != ST_OK)
        return st;
    char type = in.ptr[sc->pos];
    enum shape shape = shape_of(type, sc->resp3);
    if (shape >= SHAPE_BULK) {
        if (!num_parse_i64(line, &n) || n > COUNT_MAX || n < (type == '$' || type == '*' ? -1 : 0))
            return ST_BAD;
        if (shape != SHAPE_BULK && n > 0) {
            if (sc->remaining > COUNT_MAX)
                return ST_BAD;
            sc->remaining += shape == SHAPE_LIST ? n : 2 * n;
        } else if (shape == SHAPE_BULK && n >= 0) {
            if (in.len - next < (size_t)n + 2)
                return ST_MORE;
            next += (size_t)n + 2;
            if (in.ptr[next - 2] != '\r' || in.ptr[next - 1] != '\n')
                return ST_BAD;
        }
    } else if (shape == SHAPE_BAD || (type == ':' && !num_parse_i64(line, &n))) {
        return ST_BAD;
    }
    if (shape != SHAPE_ATTRIBUTE) /* what it belongs to is still to come */
        sc->remaining--;
    sc->pos = next;
    return ST_OK;
}

enum status reply_scan(struct reply_scan *sc, struct slice in, int replies, size_t *len)
{
    if (!sc->remaining) {
        sc->remaining = replies;
        sc->pos = 0;
    }
    while (sc->remaining) {
        enum status st = sc->pos < in.len ? scan_item(sc, in) : ST_MORE;
        if (st != ST_OK)
            return st;
    }
    *len = sc->pos;
    return ST_OK;
}

bool reply_view(struct slice *in, struct reply_view *v)
{
    struct slice line;
    size_t next;
    if (!in->len || line_at(*in, 0, &line, &next) != ST_OK)
        return false;
    *v = (struct reply_view){.type = in->ptr[0], .text = line};
    enum shape shape = shape_of(v->type, true);
    if (v->type == ':' || shape >= SHAPE_BULK) {
        if (!num_parse_i64(line, &v->integer))
            return false;
        v->text = SLICE_NONE;
    }
    if (v->type == '_')
        v->integer = -1;
    if (shape == SHAPE_BULK && v->integer >= 0) {
        if (in->len - next < (size_t)v->integer + 2)
            return false;
        v->text = SLICE(in->ptr + next, (size_t)v->integer);
        next += (size_t)v->integer + 2;
    }
    *in = SLICE(in->ptr + next, in->len - next);
    return true;
}

redisReply *reply_parse(struct slice raw)
{
    redisReader *reader = redisReaderCreate();
    void *reply = NULL;
    if (redisReaderFeed(reader, raw.ptr, raw.len) != REDIS_OK || redisReaderGetReply(reader, &reply) != REDIS_OK)
        reply = NULL;
    redisReaderFree(reader);
    return reply;
}
