/* tiercel --check: are the settings good, and what should the host change? Nothing is opened, made or bound. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "main/main_priv.h"
#include "tiercel/acl.h"
#include "tiercel/disk.h"
#include "tiercel/net.h"
#include "tiercel/num.h"

#define MB(bytes) ((int64_t)(bytes) >> 20)

__attribute__((format(printf, 3, 4))) static void item(const char *kind, const char *name, const char *fmt, ...)
{
    va_list ap;

    printf("%s %s: ", kind, name);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

/* The first line of a small file; "" when it cannot be read. */
static const char *read_line(const char *path, char *buf, size_t cap)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, cap - 1);

    if (fd >= 0)
        close(fd);
    buf[n > 0 ? n : 0] = '\0';
    buf[strcspn(buf, "\n")] = '\0';
    return buf;
}

static bool read_number(const char *path, int64_t *out)
{
    char buf[64];

    return num_parse_i64(slice_str(read_line(path, buf, sizeof(buf))), out);
}

/* ---- the kernel ---- */

static void check_thp(void)
{
    char buf[128];
    const char *modes = read_line("/sys/kernel/mm/transparent_hugepage/enabled", buf, sizeof(buf));

    if (strstr(modes, "[always]"))
        item(
            "advice", "transparent-hugepage",
            "is 'always': small changes then take memory 2 MB at a time, and the kernel stops the process to tidy it up; "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    else
        item("ok", "transparent-hugepage", "%s", modes[0] ? modes : "not there");
}

static void check_overcommit(void)
{
    int64_t mode;

    if (!read_number("/proc/sys/vm/overcommit_memory", &mode))
        item("ok", "overcommit-memory", "not known");
    else if (mode == 2)
        item("advice", "overcommit-memory",
             "is 2: the disk tier's file is mapped whole, and the limit may refuse memory that is there; "
             "sysctl vm.overcommit_memory=0");
    else
        item("ok", "overcommit-memory", "%" PRId64 " (no fork copies the data here, so 1 is not needed)", mode);
}

static void check_backlog(const struct conf *c)
{
    int64_t most;

    if (read_number("/proc/sys/net/core/somaxconn", &most) && most < c->tcp_backlog)
        item("advice", "somaxconn",
             "is %" PRId64 ", and tcp-backlog asks for %" PRId64
             ": when many clients connect at once some are refused; sysctl net.core.somaxconn=%" PRId64,
             most, c->tcp_backlog, c->tcp_backlog);
    else
        item("ok", "somaxconn", "tcp-backlog is %" PRId64, c->tcp_backlog);
}

static void check_swappiness(void)
{
    int64_t v, swap_kb = 0;
    char buf[256];
    FILE *f = fopen("/proc/swaps", "re");
    int lines = 0;

    while (f && fgets(buf, sizeof(buf), f))
        lines++;
    if (f)
        fclose(f);
    swap_kb = lines > 1;
    if (!swap_kb)
        item("ok", "swappiness", "there is no swap");
    else if (read_number("/proc/sys/vm/swappiness", &v) && v > 10)
        item("advice", "swappiness",
             "is %" PRId64
             " and there is swap: keys in memory may become slower than the disk tier; sysctl vm.swappiness=1",
             v);
    else
        item("ok", "swappiness", "low");
}

static void check_map_count(void)
{
    int64_t v;

    if (read_number("/proc/sys/vm/max_map_count", &v) && v < 65530)
        item("advice", "max-map-count",
             "is %" PRId64 ", less than the kernel's default: the allocator may run out of maps; "
             "sysctl vm.max_map_count=65530",
             v);
    else
        item("ok", "max-map-count", "the kernel's default, or more");
}

/* ---- limits ---- */

static void check_files(const struct conf *c)
{
    struct rlimit rl;
    int64_t want = c->maxclients + 64;

    if (getrlimit(RLIMIT_NOFILE, &rl) != 0 || rl.rlim_max == RLIM_INFINITY || rl.rlim_max >= (rlim_t)want ||
        geteuid() == 0)
        item("ok", "open-files", "enough for maxclients %" PRId64, c->maxclients);
    else
        item("advice", "open-files",
             "at most %llu: maxclients will be %lld instead of %" PRId64
             "; LimitNOFILE= of the unit, or ulimit -n %" PRId64,
             (unsigned long long)rl.rlim_max, (long long)rl.rlim_max > 64 ? (long long)rl.rlim_max - 64 : 1,
             c->maxclients, want);
}

static void check_memory(const struct conf *c, const struct machine *m)
{
    int64_t usable = settings_usable_memory(m->memory_bytes), derived = usable / 100 * MAXMEMORY_SHARE;

    if (c->maxmemory == 0)
        item("ok", "maxmemory", "will be %" PRId64 " MB, from %s of %" PRId64 " MB", MB(derived), m->memory_source,
             MB(m->memory_bytes));
    else if (c->maxmemory > usable)
        item("advice", "maxmemory",
             "is %" PRId64 " MB, and %s is %" PRId64
             " MB: clients, the allocator and the page cache need room too, or the "
             "process is killed; at most %" PRId64 " MB",
             MB(c->maxmemory), m->memory_source, MB(m->memory_bytes), MB(derived));
    else
        item("ok", "maxmemory", "%" PRId64 " MB of %" PRId64 " MB", MB(c->maxmemory), MB(m->memory_bytes));
}

static void check_threads(const struct conf *c, const struct machine *m)
{
    if (c->threads == 0)
        item("ok", "threads", "will be %d, from %s", m->cpus, m->cpus_source);
    else if (c->threads > m->cpus)
        item("advice", "threads",
             "is %" PRId64
             ", and %s are %d: threads would wait for one another, and for the end of the quota's period; "
             "threads 0 takes what there is",
             c->threads, m->cpus_source, m->cpus);
    else
        item("ok", "threads", "%" PRId64 " of %d", c->threads, m->cpus);
}

/* ---- the disk ---- */

static void check_file_system(const char *at)
{
    switch (disk_fs_of(at)) {
    case DISK_FS_MEMORY:
        item("advice", "file-system",
             "dir is on a tmpfs: what is moved there stays in memory and is gone after a restart");
        break;
    case DISK_FS_OVERLAY:
        item("advice", "file-system",
             "dir is on an overlay, a container's own layer: slow, and gone with the container; mount a volume there");
        break;
    case DISK_FS_9P:
        item("advice", "file-system", "dir is on a 9p file system: good for tests, not for a network share");
        break;
    case DISK_FS_NETWORK: /* an error of the settings */
    case DISK_FS_UNKNOWN:
    case DISK_FS_LOCAL: item("ok", "file-system", "local"); break;
    }
}

/* The file itself counts as free: it is the quota's already. */
static void check_space(const struct conf *c, const char *at)
{
    struct statvfs fs;
    char path[4096];

    snprintf(path, sizeof(path), "%s/tiercel.mdb", c->dir);
    int64_t file = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd >= 0) {
        file = (int64_t)lseek(fd, 0, SEEK_END);
        close(fd);
    }
    if (statvfs(at, &fs) != 0) {
        item("advice", "disk-space", "%s: %s", at, strerror(errno));
        return;
    }
    int64_t room = (int64_t)fs.f_bavail * (int64_t)fs.f_frsize + (file > 0 ? file : 0);
    if (room < c->disk_max_size)
        item("advice", "disk-space",
             "%" PRId64 " MB can be used, and disk-max-size is %" PRId64
             " MB: when the medium is full keys are dropped instead of moved; a smaller disk-max-size drops the oldest",
             MB(room), MB(c->disk_max_size));
    else
        item("ok", "disk-space", "%" PRId64 " MB for a disk-max-size of %" PRId64 " MB", MB(room),
             MB(c->disk_max_size));
}

/* ---- all of it ---- */

static bool check_users(const struct conf *c, char err[256])
{
    struct acl *acl = acl_create(c);
    bool ok = acl_load_start(acl, c, err);

    acl_destroy(acl);
    return ok;
}

int check_print(const struct conf *c, struct slice warnings)
{
    char err[256] = "", parent[PATH_MAX];
    struct machine m;
    bool bad = false;

    machine_get("", &m);
    for (const char *at = warnings.ptr, *end = at + warnings.len; at < end;) {
        size_t len = strcspn(at, "\n");
        if (len > 0)
            item("advice", "settings", "%.*s", (int)len, at);
        at += len + 1;
    }
    if (!settings_check(c, err) || !check_users(c, err)) {
        item("error", "settings", "%s", err);
        bad = true;
    } else {
        item("ok", "settings", "%s", conf_file(c)[0] ? conf_file(c) : "without a file");
    }
    check_memory(c, &m);
    check_threads(c, &m);
    check_files(c);
    if (c->disk) {
        settings_parent(c->dir, parent);
        const char *at = access(c->dir, F_OK) == 0 ? c->dir : parent;
        check_file_system(at);
        check_space(c, at);
    }
    check_thp();
    check_overcommit();
    check_backlog(c);
    check_swappiness();
    check_map_count();
    fflush(stdout);
    return bad;
}
