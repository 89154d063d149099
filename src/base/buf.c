#include "tiercel/buf.h"

#include <stdio.h>

#include "tiercel/check.h"

#define BUF_MIN_CAP 64

void buf_init(struct buf *b, enum mem_class cls)
{
    *b = (struct buf){.cls = cls};
}

void buf_deinit(struct buf *b)
{
    mem_free(b->cls, b->ptr);
    b->ptr = NULL;
    b->len = b->cap = 0;
}

void buf_reserve(struct buf *b, size_t extra)
{
    if (b->cap - b->len >= extra)
        return;
    CHECK(extra < SIZE_MAX / 4 - b->len);
    size_t want = b->len + extra;
    size_t cap = b->cap ? b->cap * 2 : BUF_MIN_CAP;
    if (cap < want)
        cap = want;
    b->ptr = mem_realloc(b->cls, b->ptr, cap);
    b->cap = cap;
}

void buf_append(struct buf *b, const void *ptr, size_t len)
{
    if (len == 0)
        return;
    buf_reserve(b, len);
    memcpy(b->ptr + b->len, ptr, len);
    b->len += len;
}

void buf_vprintf(struct buf *b, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    buf_reserve(b, 64);
    int n = vsnprintf(b->ptr + b->len, b->cap - b->len, fmt, ap);
    CHECK(n >= 0);
    if ((size_t)n >= b->cap - b->len) {
        buf_reserve(b, (size_t)n + 1);
        vsnprintf(b->ptr + b->len, b->cap - b->len, fmt, again);
    }
    b->len += (size_t)n;
    va_end(again);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    buf_vprintf(b, fmt, ap);
    va_end(ap);
}

void buf_consume(struct buf *b, size_t n)
{
    CHECK(n <= b->len);
    b->len -= n;
    if (b->len && n)
        memmove(b->ptr, b->ptr + n, b->len);
}
