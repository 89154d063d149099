/* All libraries as one payload, which is Redis's: of each a byte that says so and its source, then what DUMP's values
 * end with. The file holds nothing else. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiercel/rdb.h"

#include "cmd/function_priv.h"

#define OP_FUNCTION 245
#define OP_FUNCTION_EARLY 246 /* of release candidates of Redis 7.0 */

void function_dump(const struct function_set *set, struct buf *out)
{
    size_t start = out->len;

    for (int i = 0; i < set->nlibs; i++) {
        buf_byte(out, (char)OP_FUNCTION);
        rdb_put_string(out, set->lib[i]->source);
    }
    rdb_put_foot(out, start);
}

bool function_undump(struct slice payload, bool (*fn)(void *arg, struct slice source), void *arg, struct buf *err)
{
    struct slice body, source;
    struct buf text;
    bool ok = true;

    if (!rdb_undump(payload, &body)) {
        buf_printf(err, "DUMP payload version or checksum are wrong");
        return false;
    }
    buf_init(&text, MEM_OTHER);
    struct rdb_reader in = {body.ptr, body.ptr + body.len, &text};
    while (ok && rdb_left(&in) > 0) {
        int op = (unsigned char)*in.ptr++;
        if (op == OP_FUNCTION && rdb_get_string(&in, &source)) {
            ok = fn(arg, source);
            continue;
        }
        buf_printf(err, "%s",
                   op == OP_FUNCTION         ? "Failed loading library payload"
                   : op == OP_FUNCTION_EARLY ? "Pre-GA function format not supported"
                                             : "given type is not a function");
        ok = false;
    }
    buf_deinit(&text);
    return ok;
}

/* ---- the file ---- */

static bool write_all(int fd, struct slice s)
{
    while (s.len > 0) {
        ssize_t n = write(fd, s.ptr, s.len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        s = SLICE(s.ptr + n, s.len - (size_t)n);
    }
    return true;
}

static bool sync_folder(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');

    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    return ok;
}

bool function_file_write(const char *path, const struct function_set *set, struct buf *err)
{
    char temp[PATH_MAX];
    struct buf payload;
    bool ok = false;

    buf_init(&payload, MEM_OTHER);
    function_dump(set, &payload);
    snprintf(temp, sizeof(temp), "%.*s.tmp", PATH_MAX - 8, path);
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd >= 0) {
        ok = write_all(fd, buf_slice(&payload)) && fsync(fd) == 0;
        ok = close(fd) == 0 && ok;
        ok = ok && rename(temp, path) == 0 && sync_folder(path);
    }
    if (!ok) {
        buf_printf(err, "the functions cannot be written to their file: %s", strerror(errno));
        unlink(temp);
    }
    buf_deinit(&payload);
    return ok;
}

enum status function_file_read(const char *path, struct buf *out, struct buf *err)
{
    struct stat sb;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 && errno == ENOENT)
        return ST_NOT_FOUND;
    bool ok = fd >= 0 && fstat(fd, &sb) == 0;
    while (ok && out->len < (size_t)sb.st_size) {
        buf_reserve(out, (size_t)sb.st_size - out->len);
        ssize_t n = read(fd, out->ptr + out->len, (size_t)sb.st_size - out->len);
        if (n == 0)
            break;
        ok = n > 0 || errno == EINTR;
        out->len += n > 0 ? (size_t)n : 0;
    }
    if (!ok)
        buf_printf(err, "it cannot be read: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    return ok ? ST_OK : ST_IO;
}
