/* Makes kill -9 tell what a power failure would: a write to a file below LOSTWRITES_DIR counts
 * as kept only when it was synced. Before each such write the bytes that it replaces go to an undo
 * journal, LOSTWRITES_JOURNAL/<inode>, which survives the process in the page cache. A sync
 * empties it. After the kill the harness (crash.py, LostWrites) undoes what the journals still hold.
 *
 * A write by an O_DSYNC descriptor is kept when it returns, and only its own bytes: what was
 * written before by others and not synced is still undone, around it.
 *
 *   LOSTWRITES_SYNC_US   a sync takes a random time up to this (no sync reaches the device: what
 *                        it would show, the journal shows, and the time is as wanted)
 *   LOSTWRITES_BROKEN    syncs do nothing: a checker must notice that */
#include "watch.h"

#include <errno.h>
#include <time.h>

#define CHUNK 262144

/* A record of a journal; `len` bytes follow. The harness knows this layout. */
struct entry {
    uint32_t kind, len;
    uint64_t off, span; /* the range */
    uint64_t size;      /* of the file before */
};

#define UNDO 0x4f444e55u /* the range is about to be written; its `len` old bytes */
#define KEPT 0x5450454bu /* the range was written and is on the device */
#define SYNC 0x434e5953u /* what the journal holds before its byte `off` is on the device */

struct file {
    struct file *next;
    dev_t dev;
    ino_t ino;
    int journal;
    off_t end;      /* of the journal */
    unsigned epoch; /* how often it was emptied */
    pthread_mutex_t mu;
};

static struct file *files; /* never freed */
static pthread_mutex_t files_mu = PTHREAD_MUTEX_INITIALIZER;

#define DURABLE 1u /* in watch_fds, beside the file: an O_DSYNC descriptor */

static struct file *file_of(int fd)
{
    return (struct file *)(watch_of(fd) & ~(uintptr_t)DURABLE); // NOLINT
}

static void journal_add(struct file *f, struct entry e, const void *data)
{
    struct iovec iov[2] = {{&e, sizeof(e)}, {(void *)(uintptr_t)data, e.len}};
    size_t len = sizeof(e) + e.len;
    if (NEXT(pwritev)(f->journal, iov, e.len ? 2 : 1, f->end) != (ssize_t)len)
        watch_die("cannot write the undo journal");
    f->end += (off_t)len;
}

static void journal_empty(struct file *f)
{
    if (NEXT(ftruncate)(f->journal, 0) != 0)
        watch_die("cannot empty the undo journal");
    f->end = 0;
    f->epoch++;
}

static struct file *file_find(int fd)
{
    struct stat st;
    char path[PATH_MAX];
    if (fstat(fd, &st) != 0)
        watch_die("fstat");
    pthread_mutex_lock(&files_mu);
    struct file *f = files;
    while (f != NULL && (f->dev != st.st_dev || f->ino != st.st_ino))
        f = f->next;
    if (f == NULL) {
        f = calloc(1, sizeof(*f));
        if (f == NULL)
            watch_die("calloc");
        f->dev = st.st_dev;
        f->ino = st.st_ino;
        pthread_mutex_init(&f->mu, NULL);
        snprintf(path, sizeof(path), "%s/%llu", getenv("LOSTWRITES_JOURNAL"), (unsigned long long)st.st_ino);
        f->journal = NEXT(open)(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        f->end = f->journal < 0 ? -1 : lseek(f->journal, 0, SEEK_END);
        if (f->end < 0)
            watch_die(path);
        f->next = files;
        files = f;
    }
    pthread_mutex_unlock(&files_mu);
    pthread_mutex_lock(&f->mu);
    if (st.st_size == 0) /* a new file, which may have the inode number of one that is gone */
        journal_empty(f);
    pthread_mutex_unlock(&f->mu);
    return f;
}

static int shim_open(int at, const char *path, int flags, mode_t mode)
{
    int fd = NEXT(openat)(at, path, flags, mode);
    int err = errno;
    watch_set(fd, 0);
    if (fd >= 0 && (flags & O_ACCMODE) != O_RDONLY && watch_wants(fd, "LOSTWRITES_DIR"))
        watch_set(fd, (uintptr_t)file_find(fd) | (flags & O_DSYNC ? DURABLE : 0));
    errno = err;
    return fd;
}

/* The old bytes of [off, off + span) go to the journal. */
static void save_range(struct file *f, int fd, off_t off, off_t span)
{
    static __thread char old[CHUNK];
    struct stat st;
    char path[64];
    if (fstat(fd, &st) != 0)
        watch_die("fstat");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd); /* it may be open for writing only */
    int in = off < st.st_size ? NEXT(open)(path, O_RDONLY | O_CLOEXEC) : -1;
    do {
        off_t n = span < CHUNK ? span : CHUNK;
        ssize_t got = in < 0 ? 0 : pread(in, old, (size_t)n, off);
        if (got < 0 || (in < 0 && off < st.st_size))
            watch_die("cannot read what is replaced");
        struct entry e = {.kind = UNDO,
                          .len = (uint32_t)got,
                          .off = (uint64_t)off,
                          .span = (uint64_t)n,
                          .size = (uint64_t)st.st_size};
        journal_add(f, e, old);
        off += n;
        span -= n;
    } while (span > 0);
    if (in >= 0)
        NEXT(close)(in);
}

static void pass_time(void)
{
    static __thread unsigned seed;
    const char *max = getenv("LOSTWRITES_SYNC_US");
    struct timespec now;
    if (max == NULL)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    seed = seed * 1103515245u + (unsigned)now.tv_nsec;
    usleep((useconds_t)(seed >> 8) % (useconds_t)(atoi(max) + 1));
}

static ssize_t shim_write(int fd, const struct iovec *iov, int n, off_t off)
{
    struct file *f = file_of(fd);
    struct stat st;
    off_t span = 0, at = off;
    for (int i = 0; i < n; i++)
        span += (off_t)iov[i].iov_len;
    pthread_mutex_lock(&f->mu);
    if (at < 0)
        at = fcntl(fd, F_GETFL) & O_APPEND && fstat(fd, &st) == 0 ? st.st_size : lseek(fd, 0, SEEK_CUR);
    if (at < 0)
        watch_die("no position to write at");
    save_range(f, fd, at, span);
    ssize_t rc = next_write(fd, iov, n, off);
    int err = errno;
    if (rc > 0 && watch_of(fd) & DURABLE) {
        pass_time();
        journal_add(f, (struct entry){.kind = KEPT, .off = (uint64_t)at, .span = (uint64_t)rc}, NULL);
    }
    pthread_mutex_unlock(&f->mu);
    errno = err;
    return rc;
}

static int shim_sync(int fd, bool data_only)
{
    struct file *f = file_of(fd);
    (void)data_only;
    if (getenv("LOSTWRITES_BROKEN") != NULL)
        return 0;
    pthread_mutex_lock(&f->mu);
    off_t until = f->end;
    unsigned epoch = f->epoch;
    pthread_mutex_unlock(&f->mu);
    pass_time();
    pthread_mutex_lock(&f->mu);
    if (f->epoch == epoch && f->end == until)
        journal_empty(f);
    else if (f->epoch == epoch)
        journal_add(f, (struct entry){.kind = SYNC, .off = (uint64_t)until}, NULL);
    pthread_mutex_unlock(&f->mu);
    return 0;
}

int ftruncate(int fd, off_t size)
{
    struct file *f = file_of(fd);
    struct stat st;
    if (f == NULL)
        return NEXT(ftruncate)(fd, size);
    pthread_mutex_lock(&f->mu);
    if (fstat(fd, &st) != 0)
        watch_die("fstat");
    save_range(f, fd, size < st.st_size ? size : st.st_size, size < st.st_size ? st.st_size - size : 0);
    int rc = NEXT(ftruncate)(fd, size);
    pthread_mutex_unlock(&f->mu);
    return rc;
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}
