/* What the machine allows, from files of /proc and /sys as kernels write them. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tiercel/machine.h"

static char root[64];

static void make(const char *path, const char *text)
{
    char name[512];
    snprintf(name, sizeof(name), "%s%s", root, path);
    for (char *at = strchr(name + strlen(root) + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(name, 0700);
        *at = '/';
    }
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

#define V2_MOUNT "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
#define MB ((int64_t)1 << 20)

static int setup(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/test_machine.XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static void remove_tree(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        char name[1024];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        snprintf(name, sizeof(name), "%s/%s", dir, e->d_name);
        if (unlink(name) != 0)
            remove_tree(name);
    }
    if (d)
        closedir(d);
    rmdir(dir);
}

static int teardown(void **state)
{
    (void)state;
    remove_tree(root);
    return 0;
}

static struct machine get(void)
{
    struct machine m;
    machine_get(root, &m);
    return m;
}

static void test_no_cgroup_is_the_machine(void **state)
{
    (void)state;
    struct machine m = get();
    assert_string_equal(m.memory_source, "the machine's memory");
    assert_true(m.memory_bytes > 64 * MB);
    assert_true(m.cpus >= 1);
}

static void test_v2_nested(void **state)
{
    (void)state;
    make("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda rw\n" V2_MOUNT);
    make("/proc/self/cgroup", "0::/a.slice/b.service\n");
    make("/sys/fs/cgroup/a.slice/memory.max", "67108864\n");
    make("/sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
    make("/sys/fs/cgroup/a.slice/b.service/cpu.max", "max 100000\n");
    make("/sys/fs/cgroup/a.slice/cpu.max", "50000 100000\n");
    struct machine m = get();
    assert_int_equal(m.memory_bytes, 64 * MB);
    assert_string_equal(m.memory_source, "the cgroup's memory limit");
    assert_int_equal(m.cpus, 1);
    make("/sys/fs/cgroup/a.slice/b.service/memory.high", "33554432\n");
    m = get();
    assert_int_equal(m.memory_bytes, 32 * MB);
    assert_string_equal(m.memory_source, "the cgroup's memory.high");
}

/* As inside a container with a namespace of its own: the files are at the mount itself. */
static void test_v2_in_a_namespace(void **state)
{
    (void)state;
    make("/proc/self/mountinfo", V2_MOUNT);
    make("/proc/self/cgroup", "0::/../../elsewhere\n");
    make("/sys/fs/cgroup/memory.max", "134217728\n");
    assert_int_equal(get().memory_bytes, 128 * MB);
    make("/proc/self/cgroup", "0::/\n");
    assert_int_equal(get().memory_bytes, 128 * MB);
}

static void test_v1(void **state)
{
    (void)state;
    make("/proc/self/mountinfo",
         "31 23 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
         "32 23 0:28 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" V2_MOUNT);
    make("/proc/self/cgroup", "4:memory:/pods/one\n3:cpu,cpuacct:/docker/x/in\n0::/nowhere\n");
    make("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    make("/sys/fs/cgroup/memory/pods/memory.limit_in_bytes", "50331648\n");
    make("/sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes", "100663296\n");
    make("/sys/fs/cgroup/cpu,cpuacct/in/cpu.cfs_quota_us", "-1\n");
    make("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n");
    make("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    struct machine m = get();
    assert_int_equal(m.memory_bytes, 48 * MB);
    assert_int_equal(m.cpus, 1);
}

static void test_nonsense_is_no_limit(void **state)
{
    (void)state;
    make("/proc/self/mountinfo", "x\n- - - -\n" V2_MOUNT);
    make("/proc/self/cgroup", "0\n:::::\n0::\n");
    make("/sys/fs/cgroup/memory.max", "-5 what\n");
    make("/sys/fs/cgroup/cpu.max", "0 0\n");
    assert_string_equal(get().memory_source, "the machine's memory");
}

static void test_rss(void **state)
{
    struct machine_rss rss;
    (void)state;
    machine_get_rss(&rss);
    assert_true(rss.anon > 0 && rss.file > 0 && rss.shmem >= 0);
    assert_true(machine_rss_bytes() > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_cgroup_is_the_machine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_v2_nested, setup, teardown),
        cmocka_unit_test_setup_teardown(test_v2_in_a_namespace, setup, teardown),
        cmocka_unit_test_setup_teardown(test_v1, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nonsense_is_no_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rss, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
