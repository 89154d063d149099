#include "tiercel/machine.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include "tiercel/num.h"

static struct slice read_small(const char *path, char *buf, size_t cap)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, cap);

    if (fd >= 0)
        close(fd);
    return SLICE(buf, n > 0 ? (size_t)n : 0);
}

/* The next run of digits; "max" and the like are none. */
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

static bool read_number(const char *path, int64_t *out)
{
    char buf[64];
    struct slice s = read_small(path, buf, sizeof(buf));

    return take_number(&s, out);
}

int64_t machine_memory_bytes(const char **source)
{
    int64_t total = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), limit;
    const char *from = "the machine's memory";

    if ((read_number("/sys/fs/cgroup/memory.max", &limit) ||
         read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", &limit)) &&
        limit > 0 && limit < total) {
        from = "the cgroup's memory limit";
        total = limit;
    }
    if (source)
        *source = from;
    return total;
}

static bool cpu_quota(int64_t *quota, int64_t *period)
{
    char buf[64];
    struct slice s = read_small("/sys/fs/cgroup/cpu.max", buf, sizeof(buf));

    if (take_number(&s, quota) && take_number(&s, period))
        return true;
    return read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota) &&
           read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period);
}

int machine_cpus(const char **source)
{
    cpu_set_t set;
    int64_t quota, period;
    int cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    const char *from = "the cores";

    if (cpu_quota(&quota, &period) && quota > 0 && period > 0 && (quota + period - 1) / period < cpus) {
        from = "the cgroup's CPU quota";
        cpus = (int)((quota + period - 1) / period);
    }
    if (source)
        *source = from;
    return cpus < 1 ? 1 : cpus;
}

int64_t machine_rss_bytes(void)
{
    char buf[128];
    struct slice s = read_small("/proc/self/statm", buf, sizeof(buf));
    int64_t total, resident;

    return take_number(&s, &total) && take_number(&s, &resident) ? resident * sysconf(_SC_PAGESIZE) : 0;
}
