/* Where a WARM job's names come from: its arguments, a file, or the upstream's SCAN. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiercel/clock.h"
#include "tiercel/num.h"
#include "tiercel/warm.h"

#include "tier_priv.h"

#define FILE_CHUNK 65536  /* read at a time: little enough not to hold up the loop */
#define SCAN_AHEAD 128    /* names waiting, below which the next page is asked for */
#define SCAN_RETRY_MS 100 /* after a page that failed */

struct warm_source {
    struct worker *w;
    enum warm_kind kind;
    void (*wake)(void *arg);
    void *arg;
    struct buf names; /* length and name; those from `at` on wait */
    size_t at;
    uint64_t pending, taken, bad;
    bool exhausted; /* no more will be added */
    char error[WARM_REASON_MAX];

    int fd; /* FILE; -1 = none */
    struct buf line;
    bool line_too_long;
    int64_t file_done, file_size;

    int db; /* MATCH */
    struct buf pattern, cursor;
    int64_t count;
    struct upstream_call call;
    bool calling;
    int64_t failed_ms, retry_ms; /* mono: since when it fails, when to try again; 0 = not */
};

static void names_add(struct warm_source *src, struct slice name)
{
    uint32_t len = (uint32_t)name.len;

    buf_append(&src->names, &len, sizeof(len));
    buf_slice_append(&src->names, name);
    src->pending++;
}

static struct slice names_take(struct warm_source *src)
{
    uint32_t len;

    memcpy(&len, src->names.ptr + src->at, sizeof(len));
    struct slice name = SLICE(src->names.ptr + src->at + sizeof(len), len);
    src->at += sizeof(len) + len;
    src->taken++;
    src->pending--;
    return name;
}

/* ---- a file -------------------------------------------------------------------------- */

static void line_end(struct warm_source *src)
{
    struct slice name = buf_slice(&src->line);

    if (name.len > 0 && name.ptr[name.len - 1] == '\r')
        name.len--;
    if (src->line_too_long)
        src->bad++;
    else if (name.len > 0)
        names_add(src, name);
    src->line.len = 0;
    src->line_too_long = false;
}

static void line_add(struct warm_source *src, const char *ptr, size_t len)
{
    if (src->line_too_long || src->line.len + len > WARM_LINE_MAX) {
        src->line_too_long = true;
        src->line.len = 0;
    } else {
        buf_append(&src->line, ptr, len);
    }
}

static void file_parse(struct warm_source *src, const char *p, size_t n)
{
    const char *end = p + n, *nl;

    while ((nl = memchr(p, '\n', (size_t)(end - p))) != NULL) {
        line_add(src, p, (size_t)(nl - p));
        line_end(src);
        p = nl + 1;
    }
    line_add(src, p, (size_t)(end - p));
}

static void file_next(struct warm_source *src)
{
    char chunk[FILE_CHUNK];
    ssize_t n = read(src->fd, chunk, sizeof(chunk));

    if (n > 0) {
        buf_consume(&src->names, src->at);
        src->at = 0;
        file_parse(src, chunk, (size_t)n);
        src->file_done += n;
    } else if (n == 0) {
        if (src->line.len > 0 || src->line_too_long)
            line_end(src);
        src->exhausted = true;
    } else if (errno != EINTR) {
        snprintf(src->error, sizeof(src->error), "reading the file: %s", strerror(errno));
    }
}

static enum status file_open(struct warm_source *src, struct slice path, char err[WARM_ERROR_MAX])
{
    char name[4096];
    struct stat st;

    if (path.len == 0 || path.len >= sizeof(name) || memchr(path.ptr, '\0', path.len)) {
        snprintf(err, WARM_ERROR_MAX, "not a path");
        return ST_IO;
    }
    memcpy(name, path.ptr, path.len);
    name[path.len] = '\0';
    src->fd = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a pipe must not stop the loop */
    if (src->fd < 0 || fstat(src->fd, &st) != 0) {
        snprintf(err, WARM_ERROR_MAX, "cannot read %.128s: %s", name, strerror(errno));
        return ST_IO;
    }
    if (!S_ISREG(st.st_mode)) {
        snprintf(err, WARM_ERROR_MAX, "cannot read %.128s: not a regular file", name);
        return ST_IO;
    }
    src->file_size = st.st_size;
    return ST_OK;
}

/* ---- the upstream's SCAN ------------------------------------------------------------- */

/* "<kind><number>\r\n" */
static bool reply_number(struct slice *in, char kind, int64_t *out)
{
    const char *nl = in->len ? memchr(in->ptr, '\n', in->len) : NULL;

    if (!nl || nl - in->ptr < 3 || in->ptr[0] != kind ||
        !num_parse_i64(SLICE(in->ptr + 1, (size_t)(nl - in->ptr) - 2), out))
        return false;
    in->len -= (size_t)(nl + 1 - in->ptr);
    in->ptr = nl + 1;
    return true;
}

static bool reply_string(struct slice *in, struct slice *out)
{
    int64_t len;

    if (!reply_number(in, '$', &len) || len < 0 || (uint64_t)len + 2 > in->len)
        return false;
    *out = SLICE(in->ptr, (size_t)len);
    in->ptr += len + 2;
    in->len -= (size_t)len + 2;
    return true;
}

static bool scan_page(struct warm_source *src, struct slice in)
{
    int64_t n;
    struct slice cursor, name;

    if (!reply_number(&in, '*', &n) || n != 2 || !reply_string(&in, &cursor) || !reply_number(&in, '*', &n))
        return false;
    buf_consume(&src->names, src->at);
    src->at = 0;
    for (; n > 0; n--) {
        if (!reply_string(&in, &name))
            return false;
        names_add(src, name);
    }
    src->exhausted = slice_eq(cursor, SLICE_LIT("0"));
    src->cursor.len = 0;
    buf_slice_append(&src->cursor, cursor);
    return true;
}

/* An answer that a little later may be another. */
static bool scan_may_retry(enum status st, struct slice reply, bool is_error)
{
    static const char *const outage[] = {"-LOADING", "-MASTERDOWN", "-CLUSTERDOWN", "-BUSY", "-TRYAGAIN"};

    if (st != ST_OK)
        return st == ST_UNAVAILABLE || st == ST_TIMEOUT;
    for (size_t i = 0; is_error && i < sizeof(outage) / sizeof(*outage); i++)
        if (reply.len > strlen(outage[i]) && memcmp(reply.ptr, outage[i], strlen(outage[i])) == 0)
            return true;
    return false;
}

static void scan_failed(struct warm_source *src, enum status st, struct slice reply, bool is_error)
{
    int64_t now = clock_mono_ms();

    if (src->failed_ms == 0)
        src->failed_ms = now;
    if (scan_may_retry(st, reply, is_error) && now - src->failed_ms < WARM_AWAY_MS)
        src->retry_ms = now + SCAN_RETRY_MS;
    else if (is_error)
        snprintf(src->error, sizeof(src->error), "SCAN: %.*s", (int)strcspn(reply.ptr + 1, "\r\n"), reply.ptr + 1);
    else
        snprintf(src->error, sizeof(src->error), "SCAN: %s", status_text(st));
}

static void scan_done(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct warm_source *src = LIST_ENTRY(call, struct warm_source, call);
    (void)sent;

    src->calling = false;
    if (st != ST_OK || is_error)
        scan_failed(src, st, reply, is_error);
    else if (scan_page(src, reply))
        src->failed_ms = 0;
    else
        snprintf(src->error, sizeof(src->error), "SCAN: not an answer to it");
    src->wake(src->arg);
}

static void scan_next(struct warm_source *src)
{
    char n[NUM_I64_MAX];
    struct slice argv[] = {SLICE_LIT("SCAN"),        buf_slice(&src->cursor), SLICE_LIT("MATCH"),
                           buf_slice(&src->pattern), SLICE_LIT("COUNT"),      SLICE(n, num_format_i64(n, src->count)),
                           SLICE_LIT("TYPE"),        SLICE_LIT("string")}; /* what can be kept */

    if (src->calling || src->retry_ms > clock_mono_ms())
        return;
    src->retry_ms = 0;
    src->calling = true;
    src->call.done = scan_done;
    upstream_call(tier_upstream(src->w), &src->call, UPSTREAM_RESP2, src->db, (int)(sizeof(argv) / sizeof(*argv)),
                  argv);
}

/* ---- a source ------------------------------------------------------------------------ */

static enum status source_open(struct warm_source *src, const struct warm_spec *spec, char err[WARM_ERROR_MAX])
{
    switch (spec->kind) {
    case WARM_FILE: return file_open(src, spec->text, err);
    case WARM_MATCH:
        if (!src->w->tier->has_upstream) {
            snprintf(err, WARM_ERROR_MAX, "WARM MATCH asks an upstream, and none is set");
            return ST_UNAVAILABLE;
        }
        buf_slice_append(&src->pattern, spec->text);
        buf_byte(&src->cursor, '0');
        return ST_OK;
    default:
        for (int i = 0; i < spec->nkeys; i++)
            names_add(src, spec->keys[i]);
        src->exhausted = true;
        return ST_OK;
    }
}

enum status warm_source_create(struct worker *w, int db, const struct warm_spec *spec, void (*wake)(void *arg),
                               void *arg, struct warm_source **out, char err[WARM_ERROR_MAX])
{
    struct warm_source *src = mem_calloc(MEM_OTHER, sizeof(*src));

    src->w = w;
    src->db = db;
    src->kind = spec->kind;
    src->count = spec->count;
    src->wake = wake;
    src->arg = arg;
    src->fd = -1;
    buf_init(&src->names, MEM_OTHER);
    buf_init(&src->line, MEM_OTHER);
    buf_init(&src->pattern, MEM_OTHER);
    buf_init(&src->cursor, MEM_OTHER);
    enum status st = source_open(src, spec, err);
    if (st != ST_OK) {
        warm_source_destroy(src);
        src = NULL;
    }
    *out = src;
    return st;
}

bool warm_source_busy(const struct warm_source *src)
{
    return src->calling;
}

void warm_source_destroy(struct warm_source *src)
{
    if (!src)
        return;
    CHECK(!src->calling);
    if (src->fd >= 0)
        close(src->fd);
    buf_deinit(&src->names);
    buf_deinit(&src->line);
    buf_deinit(&src->pattern);
    buf_deinit(&src->cursor);
    mem_free(MEM_OTHER, src);
}

enum warm_next warm_source_next(struct warm_source *src, struct slice *name, int64_t *retry_ms)
{
    *retry_ms = 0;
    if (src->error[0] != '\0')
        return WARM_NEXT_BROKEN;
    if (src->kind == WARM_MATCH && !src->exhausted && src->pending < SCAN_AHEAD)
        scan_next(src); /* a page comes while the one before is loaded */
    if (src->kind == WARM_FILE && !src->exhausted && src->pending == 0)
        file_next(src);
    if (src->bad > 0) {
        src->bad--;
        return WARM_NEXT_BAD;
    }
    if (src->pending > 0) {
        *name = names_take(src);
        return WARM_NEXT_NAME;
    }
    if (src->exhausted)
        return WARM_NEXT_NONE;
    if (src->kind == WARM_MATCH && !src->calling && src->retry_ms > 0) {
        int64_t ms = src->retry_ms - clock_mono_ms();
        *retry_ms = ms > 0 ? ms : 1;
    } else if (!src->calling) {
        *retry_ms = 1;
    }
    return WARM_NEXT_LATER;
}

const char *warm_source_error(const struct warm_source *src)
{
    return src->error;
}

void warm_source_progress(const struct warm_source *src, int64_t *done, int64_t *total)
{
    if (src->kind == WARM_FILE) {
        *done = src->file_done;
        *total = src->file_size;
    } else {
        *done = (int64_t)src->taken;
        *total = src->exhausted ? (int64_t)(src->taken + src->pending) : 0;
    }
}
