#ifndef TIERCEL_SHIM_WATCH_H
#define TIERCEL_SHIM_WATCH_H

/* What the shims share: the functions behind those they stand in for, and which descriptors
 * are files of the watched directory. Memory maps and copies of descriptors (dup) are not
 * seen: LMDB writes by neither. */

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS_MAX 65536

/* The next definition of a function: libc's, or a sanitizer's. */
#define NEXT(name)                                              \
    ({                                                          \
        static __typeof__(&name) next_;                         \
        if (next_ == NULL)                                      \
            next_ = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        next_;                                                  \
    })

/* 0: not watched, else what watch_opened() was given. */
static _Atomic(uintptr_t) watch_fds[FDS_MAX];

static uintptr_t watch_of(int fd)
{
    return fd >= 0 && fd < FDS_MAX ? atomic_load_explicit(&watch_fds[fd], memory_order_acquire) : 0;
}

static void watch_set(int fd, uintptr_t what)
{
    if (fd >= 0 && fd < FDS_MAX)
        atomic_store_explicit(&watch_fds[fd], what, memory_order_release);
}

static void watch_die(const char *what)
{
    dprintf(2, "shim: %s: %m\n", what);
    abort();
}

/* Is it a regular file below the directory that `variable` of the environment names? */
static bool watch_wants(int fd, const char *variable)
{
    const char *dir = getenv(variable);
    char link[64], path[PATH_MAX];
    struct stat st;
    if (dir == NULL || fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return false;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    size_t len = strlen(dir);
    return n > (ssize_t)len && memcmp(path, dir, len) == 0 && path[len] == '/';
}

/* The forms of open(2): each shim defines shim_open(). */
static int shim_open(int at, const char *path, int flags, mode_t mode);

static mode_t open_mode(int flags, va_list ap)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
}

#define SHIM_OPEN(name, at_param, at)                   \
    int name(at_param const char *path, int flags, ...) \
    {                                                   \
        va_list ap;                                     \
        va_start(ap, flags);                            \
        mode_t mode = open_mode(flags, ap);             \
        va_end(ap);                                     \
        return shim_open(at, path, flags, mode);        \
    }

#define NOTHING
#define DIRECTORY int dir,
SHIM_OPEN(open, NOTHING, AT_FDCWD)
SHIM_OPEN(open64, NOTHING, AT_FDCWD)
SHIM_OPEN(openat, DIRECTORY, dir)
SHIM_OPEN(openat64, DIRECTORY, dir)

int close(int fd)
{
    watch_set(fd, 0);
    return NEXT(close)(fd);
}

/* The forms of write(2): each shim defines shim_write(). `off` < 0: at the descriptor's position. */
static ssize_t shim_write(int fd, const struct iovec *iov, int n, off_t off);

static ssize_t next_write(int fd, const struct iovec *iov, int n, off_t off)
{
    return off < 0 ? NEXT(writev)(fd, iov, n) : NEXT(pwritev)(fd, iov, n, off);
}

ssize_t write(int fd, const void *data, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)data, len};
    return watch_of(fd) ? shim_write(fd, &iov, 1, -1) : NEXT(write)(fd, data, len);
}

ssize_t writev(int fd, const struct iovec *iov, int n)
{
    return watch_of(fd) ? shim_write(fd, iov, n, -1) : NEXT(writev)(fd, iov, n);
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t off)
{
    struct iovec iov = {(void *)(uintptr_t)data, len};
    return watch_of(fd) ? shim_write(fd, &iov, 1, off) : NEXT(pwrite)(fd, data, len, off);
}

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t off)
{
    return pwrite(fd, data, len, off);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
    return watch_of(fd) ? shim_write(fd, iov, n, off) : NEXT(pwritev)(fd, iov, n, off);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int n, off64_t off)
{
    return pwritev(fd, iov, n, off);
}

/* The forms of sync: each shim defines shim_sync(). */
static int shim_sync(int fd, bool data_only);

int fsync(int fd)
{
    return watch_of(fd) ? shim_sync(fd, false) : NEXT(fsync)(fd);
}

int fdatasync(int fd)
{
    return watch_of(fd) ? shim_sync(fd, true) : NEXT(fdatasync)(fd);
}

#endif
