/* Makes system calls on files below FAILWRITES_DIR fail, as long as the file FAILWRITES_RULES
 * exists and says so. Its lines:
 *
 *   write EIO       writing fails (EIO, ENOSPC, EROFS, EDQUOT; SHORT: half of it is written)
 *   sync EIO        fsync and fdatasync fail
 *   open EROFS      opening for writing fails
 *   statfs NFS      the file system of any file says that it is a network file system
 *
 * A number behind it is the share of the calls that fail, in percent. */
#include "watch.h"

#include <errno.h>
#include <sys/statfs.h>
#include <sys/vfs.h>

#define NFS_SUPER_MAGIC 0x6969
#define SHORT (-1)
#define NFS (-2)

static int code_of(const char *name)
{
    static const struct {
        const char *name;
        int code;
    } codes[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EROFS", EROFS},
                 {"EDQUOT", EDQUOT}, {"SHORT", SHORT},   {"NFS", NFS}};
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
        if (strcmp(name, codes[i].name) == 0)
            return codes[i].code;
    watch_die(name);
    return 0;
}

/* What is to happen to this call: 0, an errno code, SHORT or NFS. */
static int rule_for(const char *call)
{
    const char *path = getenv("FAILWRITES_RULES");
    char text[512], *line, *save = NULL;
    int before = errno, fd = path == NULL ? -1 : NEXT(open)(path, O_RDONLY | O_CLOEXEC);
    errno = before;
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    NEXT(close)(fd);
    text[n > 0 ? n : 0] = '\0';
    for (line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char what[16], code[16];
        int percent = 100;
        if (sscanf(line, "%15s %15s %d", what, code, &percent) < 2 || strcmp(what, call) != 0)
            continue;
        static _Atomic unsigned calls;
        if ((int)(atomic_fetch_add(&calls, 1) * 61 % 100) < percent)
            return code_of(code);
    }
    return 0;
}

static int shim_open(int at, const char *path, int flags, mode_t mode)
{
    int fd = NEXT(openat)(at, path, flags, mode), err = errno;
    bool writing = (flags & O_ACCMODE) != O_RDONLY;
    watch_set(fd, 0);
    if (writing && watch_wants(fd, "FAILWRITES_DIR")) {
        int rule = rule_for("open");
        if (rule > 0) {
            NEXT(close)(fd);
            errno = rule;
            return -1;
        }
        watch_set(fd, 1);
    }
    errno = err;
    return fd;
}

static ssize_t shim_write(int fd, const struct iovec *iov, int n, off_t off)
{
    int rule = rule_for("write");
    if (rule > 0) {
        errno = rule;
        return -1;
    }
    if (rule != SHORT)
        return next_write(fd, iov, n, off);
    struct iovec half = {iov[0].iov_base, (iov[0].iov_len + 1) / 2};
    return next_write(fd, &half, 1, off);
}

static int shim_sync(int fd, bool data_only)
{
    int rule = rule_for("sync");
    if (rule > 0) {
        errno = rule;
        return -1;
    }
    return data_only ? NEXT(fdatasync)(fd) : NEXT(fsync)(fd);
}

int ftruncate(int fd, off_t size)
{
    int rule = watch_of(fd) ? rule_for("write") : 0;
    if (rule > 0) {
        errno = rule;
        return -1;
    }
    return NEXT(ftruncate)(fd, size);
}

#define SHIM_STATFS(name, type, param)            \
    int name(param what, struct type *st)         \
    {                                             \
        int rc = NEXT(name)(what, st);            \
        if (rc == 0 && rule_for("statfs") == NFS) \
            st->f_type = NFS_SUPER_MAGIC;         \
        return rc;                                \
    }

SHIM_STATFS(statfs, statfs, const char *)
SHIM_STATFS(statfs64, statfs64, const char *)
SHIM_STATFS(fstatfs, statfs, int)
SHIM_STATFS(fstatfs64, statfs64, int)
