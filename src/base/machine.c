#include "tiercel/machine.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "tiercel/num.h"

#define TEXT_MAX ((size_t)64 << 10) /* of /proc/self/mountinfo: where the cgroups are comes early */

static struct slice read_text(const char *path, char *buf, size_t cap)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t len = 0;
    ssize_t n = 1;

    while (fd >= 0 && len < cap && (n = read(fd, buf + len, cap - len)) > 0)
        len += (size_t)n;
    if (fd >= 0)
        close(fd);
    return SLICE(buf, len);
}

/* The next run of digits; "max", "-1" and the like are none. */
static bool take_number(struct slice *s, int64_t *out)
{
    size_t start = 0, end;

    while (start < s->len && (s->ptr[start] == ' ' || s->ptr[start] == '\t'))
        start++;
    for (end = start; end < s->len && s->ptr[end] >= '0' && s->ptr[end] <= '9';)
        end++;
    bool ok = num_parse_i64(SLICE(s->ptr + start, end - start), out);
    s->ptr += end;
    s->len -= end;
    return ok;
}

/* Up to the next `end`, which is taken too. */
static struct slice take_until(struct slice *s, char end)
{
    const char *at = s->len ? memchr(s->ptr, end, s->len) : NULL;
    struct slice part = SLICE(s->ptr, at ? (size_t)(at - s->ptr) : s->len);

    size_t used = part.len + (at != NULL);
    s->ptr += used;
    s->len -= used;
    return part;
}

static bool has_word(struct slice list, const char *word)
{
    while (list.len > 0)
        if (slice_eq(take_until(&list, ','), slice_str(word)))
            return true;
    return false;
}

/* ---- where the process's cgroups are ---- */

/* One hierarchy: its mount, and the process's place below it. */
struct hierarchy {
    char dir[PATH_MAX]; /* the leaf's */
    size_t top;         /* length of the mount's path in it: nothing above can be seen */
    bool found;
};

static bool is_v2(const char *controller)
{
    return controller == NULL;
}

/* The process's path in the hierarchy of a controller (NULL: of v2), as /proc/self/cgroup tells it. */
static bool own_path(const char *root, const char *controller, char *buf, size_t cap, struct slice *out)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    struct slice text = read_text(path, buf, cap);
    while (text.len > 0) {
        struct slice line = take_until(&text, '\n');
        (void)take_until(&line, ':');
        struct slice controllers = take_until(&line, ':');
        if (is_v2(controller) ? controllers.len == 0 : has_word(controllers, controller)) {
            *out = line;
            return true;
        }
    }
    return false;
}

/* A line of mountinfo: id, parent, device, root, mount point, options, optional fields, "-", type, source, options. */
static bool mount_matches(struct slice line, const char *controller, struct slice *root, struct slice *point)
{
    struct slice word;

    for (int i = 0; i < 3; i++)
        (void)take_until(&line, ' ');
    *root = take_until(&line, ' ');
    *point = take_until(&line, ' ');
    do
        word = take_until(&line, ' ');
    while (word.len > 0 && !slice_eq(word, SLICE_LIT("-")));
    struct slice type = take_until(&line, ' ');
    (void)take_until(&line, ' ');
    if (is_v2(controller))
        return slice_eq(type, SLICE_LIT("cgroup2"));
    return slice_eq(type, SLICE_LIT("cgroup")) && has_word(line, controller);
}

static void set_dir(struct hierarchy *h, const char *root, struct slice point, struct slice below)
{
    if (below.len == 1 && below.ptr[0] == '/')
        below.len = 0;
    int top = snprintf(h->dir, sizeof(h->dir), "%s%.*s", root, SLICE_FMT(point));
    h->top = top > 0 && (size_t)top < sizeof(h->dir) ? (size_t)top : 0;
    if (below.len < sizeof(h->dir) - h->top) {
        memcpy(h->dir + h->top, below.ptr, below.len);
        h->dir[h->top + below.len] = '\0';
    }
    h->found = h->top != 0;
    if (access(h->dir, F_OK) != 0) /* a place that a namespace hides: what is mounted is ours, or above it */
        h->dir[h->top] = '\0';
}

static void find_hierarchy(const char *root, const char *controller, char *buf, struct hierarchy *h)
{
    char path[PATH_MAX], own_buf[8192];
    struct slice own = SLICE_LIT("/"), mount_root, point;

    h->found = false;
    if (!own_path(root, controller, own_buf, sizeof(own_buf), &own))
        own = SLICE_LIT("/");
    snprintf(path, sizeof(path), "%s/proc/self/mountinfo", root);
    struct slice text = read_text(path, buf, TEXT_MAX);
    while (text.len > 0 && !h->found) {
        if (!mount_matches(take_until(&text, '\n'), controller, &mount_root, &point))
            continue;
        /* In a container the mount may begin at the container's own group. */
        bool inside =
            mount_root.len > 1 && own.len >= mount_root.len && memcmp(own.ptr, mount_root.ptr, mount_root.len) == 0;
        if (inside)
            own = SLICE(own.ptr + mount_root.len, own.len - mount_root.len);
        set_dir(h, root, point, own);
    }
}

/* Calls fn for the leaf and all groups above it. */
static void each_group(const struct hierarchy *h, void (*fn)(const char *dir, void *arg), void *arg)
{
    char dir[PATH_MAX];
    size_t len = strlen(h->dir);

    if (!h->found)
        return;
    memcpy(dir, h->dir, len + 1);
    for (;;) {
        fn(dir, arg);
        while (len > h->top && dir[len - 1] != '/')
            len--;
        if (len <= h->top)
            return;
        dir[--len] = '\0';
        if (len < h->top)
            return;
    }
}

static bool read_file(const char *dir, const char *name, char *buf, size_t cap, struct slice *out)
{
    char path[PATH_MAX + 32];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    *out = read_text(path, buf, cap);
    return out->len > 0;
}

/* ---- memory ---- */

static void narrow_memory(struct machine *m, const char *dir, const char *name, const char *source)
{
    char buf[64];
    struct slice text;
    int64_t limit;

    if (read_file(dir, name, buf, sizeof(buf), &text) && take_number(&text, &limit) && limit > 0 &&
        limit < m->memory_bytes) {
        m->memory_bytes = limit;
        m->memory_source = source;
    }
}

static void memory_v1(const char *dir, void *arg)
{
    narrow_memory(arg, dir, "memory.limit_in_bytes", "the cgroup's memory limit");
}

static void memory_v2(const char *dir, void *arg)
{
    narrow_memory(arg, dir, "memory.max", "the cgroup's memory limit");
    narrow_memory(arg, dir, "memory.high", "the cgroup's memory.high"); /* beyond it the kernel slows us down */
}

/* ---- processors ---- */

static void narrow_cpus(struct machine *m, int64_t quota, int64_t period)
{
    if (quota <= 0 || period <= 0 || quota > INT64_MAX - period || (quota + period - 1) / period >= m->cpus)
        return;
    m->cpus = (int)((quota + period - 1) / period);
    m->cpus_source = "the cgroup's CPU quota";
}

static void cpus_v1(const char *dir, void *arg)
{
    char buf[2][64];
    struct slice quota_text, period_text;
    int64_t quota, period;

    if (read_file(dir, "cpu.cfs_quota_us", buf[0], sizeof(buf[0]), &quota_text) && take_number(&quota_text, &quota) &&
        read_file(dir, "cpu.cfs_period_us", buf[1], sizeof(buf[1]), &period_text) && take_number(&period_text, &period))
        narrow_cpus(arg, quota, period);
}

static void cpus_v2(const char *dir, void *arg)
{
    char buf[64];
    struct slice text;
    int64_t quota, period;

    if (read_file(dir, "cpu.max", buf, sizeof(buf), &text) && take_number(&text, &quota) && take_number(&text, &period))
        narrow_cpus(arg, quota, period);
}

void machine_get(const char *root, struct machine *out)
{
    char buf[TEXT_MAX];
    struct hierarchy h;
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    out->memory_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    out->memory_source = "the machine's memory";
    out->cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1; /* cpusets are in it */
    out->cpus_source = out->cpus < online ? "the cores it may run on" : "the cores";
    find_hierarchy(root, NULL, buf, &h);
    each_group(&h, memory_v2, out);
    each_group(&h, cpus_v2, out);
    find_hierarchy(root, "memory", buf, &h);
    each_group(&h, memory_v1, out);
    find_hierarchy(root, "cpu", buf, &h);
    each_group(&h, cpus_v1, out);
    if (out->memory_bytes < 1)
        out->memory_bytes = 1;
    if (out->cpus < 1)
        out->cpus = 1;
}

int64_t machine_memory_bytes(const char **source)
{
    struct machine m;

    machine_get("", &m);
    if (source)
        *source = m.memory_source;
    return m.memory_bytes;
}

int machine_cpus(const char **source)
{
    struct machine m;

    machine_get("", &m);
    if (source)
        *source = m.cpus_source;
    return m.cpus;
}

/* ---- this process ---- */

int64_t machine_rss_bytes(void)
{
    char buf[128];
    struct slice s = read_text("/proc/self/statm", buf, sizeof(buf));
    int64_t total, resident;

    return take_number(&s, &total) && take_number(&s, &resident) ? resident * sysconf(_SC_PAGESIZE) : 0;
}

void machine_get_rss(struct machine_rss *out)
{
    char buf[8192];
    struct slice text = read_text("/proc/self/status", buf, sizeof(buf));
    const struct {
        const char *name;
        int64_t *to;
    } rows[] = {{"RssAnon", &out->anon}, {"RssFile", &out->file}, {"RssShmem", &out->shmem}};

    *out = (struct machine_rss){0};
    while (text.len > 0) {
        struct slice line = take_until(&text, '\n'), name = take_until(&line, ':');
        int64_t kb;
        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
            if (slice_eq(name, slice_str(rows[i].name)) && take_number(&line, &kb))
                *rows[i].to = kb << 10;
    }
}
