#include <stdlib.h>

#include "tiercel/num.h"
#include "upstream_priv.h"

/* hiredis makes one NIL of "$-1" and "*-1"; the task knows which it was. */
static void *create_nil(const redisReadTask *task)
{
    const struct upstream_reader_fns *fns = task->privdata;
    redisReply *r = fns->create_nil(task);
    if (r)
        r->integer = task->type == REDIS_REPLY_ARRAY;
    return r;
}

void reader_fns_init(struct upstream_reader_fns *fns)
{
    redisReader *reader = redisReaderCreate();
    fns->table = *reader->fn;
    fns->create_nil = reader->fn->createNil;
    fns->table.createNil = create_nil;
    redisReaderFree(reader);
}

void reader_fns_install(struct upstream_reader_fns *fns, redisReader *reader)
{
    reader->fn = &fns->table;
    reader->privdata = fns;
}

static void append_header(struct buf *out, char type, int64_t n)
{
    char text[NUM_I64_MAX + 3];
    text[0] = type;
    size_t len = 1 + num_format_i64(text + 1, n);
    text[len++] = '\r';
    text[len++] = '\n';
    buf_append(out, text, len);
}

static void append_line(struct buf *out, char type, const redisReply *r)
{
    buf_byte(out, type);
    buf_append(out, r->str, r->len);
    buf_append(out, "\r\n", 2);
}

/* Recursion is bounded by the reader's own limit on nesting. */
void reply_to_resp2(struct buf *out, const redisReply *r)
{
    switch (r->type) {
    case REDIS_REPLY_STATUS: append_line(out, '+', r); return;
    case REDIS_REPLY_ERROR: append_line(out, '-', r); return;
    case REDIS_REPLY_INTEGER: append_header(out, ':', r->integer); return;
    case REDIS_REPLY_NIL: append_header(out, r->integer ? '*' : '$', -1); return;
#if HIREDIS_MAJOR >= 1
    case REDIS_REPLY_MAP:
    case REDIS_REPLY_SET:
    case REDIS_REPLY_PUSH:
    case REDIS_REPLY_ATTR:
#endif
    case REDIS_REPLY_ARRAY:
        append_header(out, '*', (int64_t)r->elements);
        for (size_t i = 0; i < r->elements; i++)
            reply_to_resp2(out, r->element[i]);
        return;
#if HIREDIS_MAJOR >= 1
    case REDIS_REPLY_BOOL: append_header(out, ':', r->integer != 0); return;
#endif
    default: /* bulk, and RESP3's texts */
        append_header(out, '$', (int64_t)r->len);
        buf_append(out, r->str, r->len);
        buf_append(out, "\r\n", 2);
        return;
    }
}
