#ifndef TIERCEL_BUF_H
#define TIERCEL_BUF_H

#include <stdarg.h>
#include <stdint.h>

#include "tiercel/alloc.h"
#include "tiercel/slice.h"

/* A growing byte buffer: [0, len) is filled, cap is what is allocated. The owner frees it
 * with buf_deinit(). No locks. */
struct buf {
    char *ptr;
    size_t len, cap;
    enum mem_class cls;
};

void buf_init(struct buf *b, enum mem_class cls);
void buf_deinit(struct buf *b);
void buf_reserve(struct buf *b, size_t extra); /* room for `extra` bytes after len */
void buf_append(struct buf *b, const void *ptr, size_t len);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(struct buf *b, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
void buf_consume(struct buf *b, size_t n); /* drops the first n bytes */

static inline void buf_slice_append(struct buf *b, struct slice s)
{
    buf_append(b, s.ptr, s.len);
}

static inline void buf_byte(struct buf *b, char c)
{
    if (b->len == b->cap)
        buf_reserve(b, 1);
    b->ptr[b->len++] = c;
}

static inline struct slice buf_slice(const struct buf *b)
{
    return SLICE(b->ptr, b->len);
}

#endif
