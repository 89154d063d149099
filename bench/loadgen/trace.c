#include "trace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "tiercel/check.h"
#include "tiercel/hash.h"
#include "tiercel/num.h"

#define CHUNK 65536
#define LINE_MAX_BYTES 4096
#define COLUMNS_MAX 32
#define TRACE_MAX 4000000000u /* keys and accesses are numbered with 32 bits */

/* ---- numbers for keys: open addressing by a 64-bit hash ---- */

struct names {
    uint64_t *hash; /* 0 = free */
    uint32_t *number;
    size_t slots, used; /* slots is a power of two */
};

static void names_insert(struct names *n, uint64_t hash, uint32_t number)
{
    size_t i = hash & (n->slots - 1);
    while (n->hash[i])
        i = (i + 1) & (n->slots - 1);
    n->hash[i] = hash;
    n->number[i] = number;
}

static void names_grow(struct names *n)
{
    struct names old = *n;
    n->slots = old.slots ? old.slots * 2 : 4096;
    n->hash = calloc(n->slots, sizeof(*n->hash));
    n->number = malloc(n->slots * sizeof(*n->number));
    CHECK(n->hash && n->number);
    for (size_t i = 0; i < old.slots; i++)
        if (old.hash[i])
            names_insert(n, old.hash[i], old.number[i]);
    free(old.hash);
    free(old.number);
}

static uint32_t names_number(struct names *n, struct slice key)
{
    uint64_t hash = hash_bytes(0, key.ptr, key.len) | 1;

    if (n->used * 2 >= n->slots)
        names_grow(n);
    for (size_t i = hash & (n->slots - 1); n->hash[i]; i = (i + 1) & (n->slots - 1))
        if (n->hash[i] == hash)
            return n->number[i];
    names_insert(n, hash, (uint32_t)n->used);
    return (uint32_t)n->used++;
}

/* ---- bytes of the file, decompressed if need be ---- */

struct input {
    FILE *file;
    ZSTD_DStream *zstd; /* NULL: the file is plain */
    ZSTD_inBuffer in;
    bool cut;  /* it ends within a compressed frame */
    bool full; /* the decoder may hold more than it could give */
    const char *problem;
    char raw[CHUNK];
};

static bool input_open(struct input *s, const char *path)
{
    static const unsigned char magic[4] = {0x28, 0xb5, 0x2f, 0xfd};

    memset(s, 0, sizeof(*s));
    s->file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!s->file)
        return false;
    s->in.src = s->raw;
    s->in.size = fread(s->raw, 1, CHUNK, s->file);
    if (s->in.size >= sizeof(magic) && memcmp(s->raw, magic, sizeof(magic)) == 0) {
        s->zstd = ZSTD_createDStream();
        CHECK(s->zstd);
    }
    return true;
}

static void input_close(struct input *s)
{
    ZSTD_freeDStream(s->zstd);
    if (s->file != stdin)
        fclose(s->file);
}

/* 0: the end, or a problem. */
static size_t input_read(struct input *s, char *out, size_t room)
{
    ZSTD_outBuffer to = {out, room, 0};

    while (to.pos == 0 && !s->problem) {
        if (s->in.pos == s->in.size && !s->full) {
            s->in.pos = 0;
            s->in.size = fread(s->raw, 1, CHUNK, s->file);
            if (s->in.size == 0) {
                s->problem = ferror(s->file) ? strerror(errno) : s->cut ? "the compressed data is cut short" : NULL;
                return 0;
            }
        }
        if (!s->zstd) {
            size_t n = s->in.size - s->in.pos < room ? s->in.size - s->in.pos : room;
            memcpy(out, s->raw + s->in.pos, n);
            s->in.pos += n;
            return n;
        }
        size_t rc = ZSTD_decompressStream(s->zstd, &to, &s->in);
        if (ZSTD_isError(rc))
            s->problem = ZSTD_getErrorName(rc);
        s->cut = rc != 0;
        s->full = to.pos == room;
    }
    return s->problem ? 0 : to.pos;
}

/* ---- lines ---- */

struct columns {
    int key, op, size, ttl;
};

struct loader {
    struct trace *trace;
    struct names names;
    struct columns col;
    size_t line, capacity;
    char *err;
};

static unsigned split(struct slice line, struct slice cell[COLUMNS_MAX])
{
    unsigned n = 0;
    while (n < COLUMNS_MAX) {
        const char *comma = memchr(line.ptr, ',', line.len);
        size_t len = comma ? (size_t)(comma - line.ptr) : line.len;
        cell[n++] = SLICE(line.ptr, len);
        if (!comma)
            break;
        line = SLICE(comma + 1, line.len - len - 1);
    }
    return n;
}

static bool read_head(struct loader *l, struct slice line)
{
    struct slice cell[COLUMNS_MAX];
    unsigned n = split(line, cell);

    l->col = (struct columns){-1, -1, -1, -1};
    for (unsigned i = 0; i < n; i++) {
        if (slice_is(cell[i], "key"))
            l->col.key = (int)i;
        else if (slice_is(cell[i], "op"))
            l->col.op = (int)i;
        else if (slice_is(cell[i], "value_size"))
            l->col.size = (int)i;
        else if (slice_is(cell[i], "ttl_s"))
            l->col.ttl = (int)i;
    }
    if (l->col.key < 0)
        snprintf(l->err, 256, "the first line names no column `key`");
    return l->col.key >= 0;
}

static bool read_number(struct slice cell, uint32_t *out)
{
    uint64_t v;
    if (!num_parse_u64(cell, &v) || v > UINT32_MAX)
        return false;
    *out = (uint32_t)v;
    return true;
}

static bool read_access(struct loader *l, struct slice line)
{
    struct slice cell[COLUMNS_MAX];
    struct trace *t = l->trace;
    const struct columns *c = &l->col;
    int n = (int)split(line, cell);
    struct trace_access a = {0};

    bool ok = n > c->key && n > c->op && n > c->size && n > c->ttl && cell[c->key].len > 0;
    if (ok && c->op >= 0) {
        a.set = slice_is(cell[c->op], "set");
        ok = a.set || slice_is(cell[c->op], "get");
    }
    if (ok && c->size >= 0)
        ok = read_number(cell[c->size], &a.size) && a.size <= 512u << 20;
    if (ok && c->ttl >= 0)
        ok = read_number(cell[c->ttl], &a.ttl_s);
    if (!ok || t->len == TRACE_MAX) {
        snprintf(l->err, 256, "line %zu: %s", l->line,
                 ok ? "too many accesses" : "wants a key, get or set, a size up to 512 MB and a TTL in seconds");
        return false;
    }
    a.key = names_number(&l->names, cell[c->key]);
    if (t->len == l->capacity) {
        l->capacity = l->capacity ? l->capacity * 2 : 65536;
        t->access = realloc(t->access, l->capacity * sizeof(*t->access));
        CHECK(t->access);
    }
    t->access[t->len++] = a;
    return true;
}

static bool read_line(struct loader *l, struct slice line)
{
    l->line++;
    if (line.len && line.ptr[line.len - 1] == '\r')
        line.len--;
    if (l->line == 1)
        return read_head(l, line);
    return line.len == 0 || read_access(l, line);
}

static bool read_all(struct loader *l, struct input *in)
{
    char text[CHUNK];
    size_t len = 0, n;

    while ((n = input_read(in, text + len, sizeof(text) - len)) > 0) {
        struct slice rest = SLICE(text, len + n);
        const char *end;
        while ((end = memchr(rest.ptr, '\n', rest.len))) {
            size_t line = (size_t)(end - rest.ptr);
            if (!read_line(l, SLICE(rest.ptr, line)))
                return false;
            rest = SLICE(end + 1, rest.len - line - 1);
        }
        if (rest.len > LINE_MAX_BYTES) {
            snprintf(l->err, 256, "line %zu is longer than %d bytes", l->line + 1, LINE_MAX_BYTES);
            return false;
        }
        memmove(text, rest.ptr, rest.len);
        len = rest.len;
    }
    if (in->problem) {
        snprintf(l->err, 256, "%s", in->problem);
        return false;
    }
    if (len && !read_line(l, SLICE(text, len)))
        return false;
    if (l->trace->len == 0)
        snprintf(l->err, 256, "no accesses in it");
    return l->trace->len > 0;
}

bool trace_load(const char *path, struct trace *out, char err[256])
{
    struct input *in = malloc(sizeof(*in));
    struct loader l = {.trace = out, .err = err};

    CHECK(in);
    memset(out, 0, sizeof(*out));
    if (!input_open(in, path)) {
        snprintf(err, 256, "%s", strerror(errno));
        free(in);
        return false;
    }
    bool ok = read_all(&l, in);
    input_close(in);
    free(in);
    out->keys = l.names.used;
    free(l.names.hash);
    free(l.names.number);
    if (!ok)
        trace_unload(out);
    return ok;
}

void trace_unload(struct trace *t)
{
    free(t->access);
    memset(t, 0, sizeof(*t));
}
