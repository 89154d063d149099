#ifndef TIERCEL_SLICE_H
#define TIERCEL_SLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <strings.h>

/* Bytes that somebody else owns. Not NUL-terminated; may hold any byte. */
struct slice {
    const char *ptr;
    size_t len;
};

#define SLICE(ptr_, len_) ((struct slice){(ptr_), (len_)})
#define SLICE_LIT(lit) ((struct slice){("" lit), sizeof(lit) - 1})
#define SLICE_NONE ((struct slice){NULL, 0})

/* "%.*s" arguments. */
#define SLICE_FMT(s) (int)(s).len, (s).ptr

static inline struct slice slice_str(const char *str)
{
    return SLICE(str, strlen(str));
}

static inline bool slice_eq(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

/* ASCII case is ignored; `word` is a C string. */
static inline bool slice_is(struct slice s, const char *word)
{
    return strlen(word) == s.len && (s.len == 0 || strncasecmp(s.ptr, word, s.len) == 0);
}

#endif
