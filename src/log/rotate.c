/* Rotation: a full log is renamed to FILE.0, and then packed as FILE.1.zst by this file's thread. FILE.0 is there
 * until its successor is, so a crash anywhere leaves all lines: the next start packs what it finds. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log/log_priv.h"

#define NAME_MAX_BYTES (PATH_MAX + 32)
#define PACK_TRIES 3 /* lines that were on their way may still come to a renamed file */

static struct {
    _Atomic int64_t bytes, max; /* of the file, about; max 0: never */
    _Atomic int files;
    _Atomic bool running, stop;
    sem_t wake;
    pthread_t thread;
    log_pack_fn pack;
} rot;

void log_rotate_opened(int fd, bool is_file)
{
    struct stat st;
    bool counts = is_file && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    /* Shared by all who write to it: who wants to rotate asks for it alone. */
    if (counts)
        (void)flock(fd, LOCK_SH | LOCK_NB);
    atomic_store(&rot.bytes, counts ? st.st_size : INT64_MIN / 2);
    if (counts && atomic_load(&rot.running))
        sem_post(&rot.wake);
}

void log_rotate_wrote(size_t bytes)
{
    int64_t before = atomic_fetch_add_explicit(&rot.bytes, (int64_t)bytes, memory_order_relaxed);
    int64_t max = atomic_load_explicit(&rot.max, memory_order_relaxed);
    if (max > 0 && before < max && before + (int64_t)bytes >= max && atomic_load(&rot.running))
        sem_post(&rot.wake);
}

void log_rotate_set(int64_t max_bytes, int max_files)
{
    atomic_store(&rot.files, max_files);
    atomic_store(&rot.max, max_bytes);
    if (atomic_load(&rot.running))
        sem_post(&rot.wake);
}

/* ---- the kept files ---- */

static void name_of(char out[NAME_MAX_BYTES], const char *path, int i, const char *suffix)
{
    snprintf(out, NAME_MAX_BYTES, "%s.%d%s", path, i, suffix);
}

static bool exists(const char *path, int i)
{
    char plain[NAME_MAX_BYTES], packed[NAME_MAX_BYTES];
    name_of(plain, path, i, "");
    name_of(packed, path, i, ".zst");
    return access(plain, F_OK) == 0 || access(packed, F_OK) == 0;
}

static void drop(const char *path, int i)
{
    char name[NAME_MAX_BYTES];
    name_of(name, path, i, "");
    unlink(name);
    name_of(name, path, i, ".zst");
    unlink(name);
}

static void move_up(const char *path, int i, const char *suffix)
{
    char from[NAME_MAX_BYTES], to[NAME_MAX_BYTES];
    name_of(from, path, i, suffix);
    name_of(to, path, i + 1, suffix);
    if (rename(from, to) != 0 && errno != ENOENT)
        log_warning("main", "log %s: cannot be renamed: %s", from, strerror(errno));
}

/* Makes place 1 free: those up to the first free place move, and what is too many goes. */
static void make_place(const char *path, int files)
{
    int hole = 1;
    for (int i = files + 1; exists(path, i); i++)
        drop(path, i);
    while (hole < files && exists(path, hole))
        hole++;
    drop(path, hole);
    for (int i = hole - 1; i >= 1; i--) {
        move_up(path, i, "");
        move_up(path, i, ".zst");
    }
}

static int64_t size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_size : -1;
}

static bool pack(const char *full, const char *part)
{
    for (int i = 0; i < PACK_TRIES; i++) {
        int64_t size = size_of(full);
        if (!rot.pack(full, part)) {
            int why = errno;
            unlink(part);
            log_warning("main", "log %s: cannot be compressed, and is kept plain: %s", full, strerror(why));
            return false;
        }
        if (size_of(full) == size)
            return true;
    }
    unlink(part);
    return false;
}

/* FILE.0 becomes FILE.1.zst. */
static void store(const char *path)
{
    char full[NAME_MAX_BYTES], part[NAME_MAX_BYTES], to[NAME_MAX_BYTES];
    int files = atomic_load(&rot.files);

    name_of(full, path, 0, "");
    name_of(part, path, 0, ".zst.part");
    bool packed = pack(full, part);
    make_place(path, files);
    name_of(to, path, 1, packed ? ".zst" : "");
    if (rename(packed ? part : full, to) != 0)
        log_warning("main", "log %s: %s", to, strerror(errno));
    else if (packed)
        unlink(full);
}

/* ---- the full one ---- */

static bool same_file(const struct stat *a, const char *path)
{
    struct stat b;
    return stat(path, &b) == 0 && a->st_dev == b.st_dev && a->st_ino == b.st_ino;
}

static const char *try_rotate(const char *path)
{
    char full[NAME_MAX_BYTES];
    struct stat st;
    int64_t max = atomic_load(&rot.max);

    name_of(full, path, 0, "");
    if (access(full, F_OK) == 0) /* a crash came between, or there was no room */
        store(path);
    if (max <= 0 || atomic_load(&rot.bytes) < max || fstat(log_fd(), &st) != 0)
        return NULL;
    atomic_store(&rot.bytes, st.st_size);
    if (!S_ISREG(st.st_mode) || st.st_size < max) /* somebody has cut it short */
        return NULL;
    if (!same_file(&st, path)) /* somebody has rotated it, and will send SIGHUP */
        return log_reopen() ? NULL : strerror(errno);
    if (flock(log_fd(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return "another process writes to it";
    if (access(full, F_OK) == 0)
        return "the one before it is still there";
    if (rename(path, full) != 0)
        return strerror(errno);
    if (!log_reopen()) {
        int why = errno;
        (void)rename(full, path);
        return strerror(why);
    }
    store(path);
    return NULL;
}

static void *rotate_main(void *arg)
{
    char path[PATH_MAX];
    (void)arg;

    while (!atomic_load(&rot.stop)) {
        const char *why = log_path(path, sizeof(path)) ? try_rotate(path) : NULL;
        if (why) {
            atomic_store(&rot.bytes, 0); /* again after as much */
            log_warning("main", "log %s is not rotated: %s", path, why);
        }
        while (sem_wait(&rot.wake) != 0 && errno == EINTR) {
        }
    }
    return NULL;
}

bool log_rotate_start(log_pack_fn fn)
{
    rot.pack = fn;
    atomic_store(&rot.stop, false);
    if (sem_init(&rot.wake, 0, 0) != 0)
        return false;
    if (pthread_create(&rot.thread, NULL, rotate_main, NULL) != 0)
        return false;
    pthread_setname_np(rot.thread, "log");
    atomic_store(&rot.running, true);
    sem_post(&rot.wake); /* what was to be said before it ran */
    return true;
}

void log_rotate_stop(void)
{
    if (!atomic_exchange(&rot.running, false))
        return;
    atomic_store(&rot.stop, true);
    sem_post(&rot.wake);
    pthread_join(rot.thread, NULL);
}
