#ifndef TIERCEL_DISK_SHIM_H
#define TIERCEL_DISK_SHIM_H

/* What LMDB asks of the system, with failures and delays. The test program's own functions of
 * these names come before libc's, for shared libraries, too. One test program includes this. */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SHIM_WRITE 1 /* writing pages */
#define SHIM_META 2  /* writing the meta page: LMDB gives its environment up */
#define SHIM_SYNC 4

static struct {
    _Atomic int fail;     /* SHIM_*: what fails */
    _Atomic int err;      /* with what; 0: EIO */
    _Atomic int delay_us; /* before each sync */
    _Atomic bool gate;    /* a sync waits while it is closed ... */
    _Atomic int passes;   /* ... and lets so many through nevertheless */
    _Atomic bool at_gate; /* one does */
    _Atomic long fs_type; /* statfs() answers that; 0: the truth */
} shim;

static bool shim_fails(int what)
{
    if (!(atomic_load(&shim.fail) & what))
        return false;
    errno = atomic_load(&shim.err) ? atomic_load(&shim.err) : EIO;
    return true;
}

/* LMDB is built with the one or the other name, and our own headers may rename what we call. */

static ssize_t shim_pwrite(int fd, const void *buf, size_t len, off_t at)
{
    if (shim_fails(len < 4096 ? SHIM_META : SHIM_WRITE))
        return -1;
    return syscall(SYS_pwrite64, fd, buf, len, at);
}

ssize_t shim_pwrite_1(int fd, const void *buf, size_t len, off_t at) __asm__("pwrite");
ssize_t shim_pwrite_1(int fd, const void *buf, size_t len, off_t at)
{
    return shim_pwrite(fd, buf, len, at);
}

ssize_t shim_pwrite_2(int fd, const void *buf, size_t len, off_t at) __asm__("pwrite64");
ssize_t shim_pwrite_2(int fd, const void *buf, size_t len, off_t at)
{
    return shim_pwrite(fd, buf, len, at);
}

ssize_t writev(int fd, const struct iovec *iov, int n)
{
    return shim_fails(SHIM_WRITE) ? -1 : syscall(SYS_writev, fd, iov, n);
}

static ssize_t shim_pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
    return shim_fails(SHIM_WRITE) ? -1 : syscall(SYS_pwritev, fd, iov, n, at, 0L);
}

ssize_t shim_pwritev_1(int fd, const struct iovec *iov, int n, off_t at) __asm__("pwritev");
ssize_t shim_pwritev_1(int fd, const struct iovec *iov, int n, off_t at)
{
    return shim_pwritev(fd, iov, n, at);
}

ssize_t shim_pwritev_2(int fd, const struct iovec *iov, int n, off_t at) __asm__("pwritev64");
ssize_t shim_pwritev_2(int fd, const struct iovec *iov, int n, off_t at)
{
    return shim_pwritev(fd, iov, n, at);
}

int fdatasync(int fd)
{
    int us = atomic_load(&shim.delay_us);
    if (us != 0)
        usleep((useconds_t)us);
    while (atomic_load(&shim.gate) && atomic_load(&shim.passes) == 0) {
        atomic_store(&shim.at_gate, true);
        usleep(100);
    }
    atomic_store(&shim.at_gate, false);
    if (atomic_load(&shim.passes) != 0)
        atomic_fetch_sub(&shim.passes, 1);
    return shim_fails(SHIM_SYNC) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

static int shim_statfs(const char *path, struct statfs *out)
{
    int rc = (int)syscall(SYS_statfs, path, out);
    if (rc == 0 && atomic_load(&shim.fs_type) != 0)
        out->f_type = atomic_load(&shim.fs_type);
    return rc;
}

int shim_statfs_1(const char *path, struct statfs *out) __asm__("statfs");
int shim_statfs_1(const char *path, struct statfs *out)
{
    return shim_statfs(path, out);
}

int shim_statfs_2(const char *path, struct statfs *out) __asm__("statfs64");
int shim_statfs_2(const char *path, struct statfs *out)
{
    return shim_statfs(path, out);
}

/* The next commit stops in its sync, until shim_open_gate(). */
static inline void shim_close_gate(void)
{
    atomic_store(&shim.at_gate, false);
    atomic_store(&shim.gate, true);
}

static inline void shim_wait_gate(void)
{
    while (!atomic_load(&shim.at_gate))
        usleep(100);
}

/* That one goes on; the next one stops. */
static inline void shim_step(void)
{
    atomic_fetch_add(&shim.passes, 1);
    while (atomic_load(&shim.passes) != 0)
        usleep(100);
}

static inline void shim_open_gate(void)
{
    atomic_store(&shim.gate, false);
}

#endif
