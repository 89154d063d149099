#include <errno.h>
#include <pthread.h>
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

#include "tiercel/log.h"

static char dir[64], path[96], other[96];
static char content[1 << 20];

static const char *read_file(const char *name)
{
    FILE *f = fopen(name, "r");
    assert_non_null(f);
    size_t n = fread(content, 1, sizeof(content) - 1, f);
    fclose(f);
    content[n] = '\0';
    return content;
}

static int count_lines(const char *text)
{
    int n = 0;
    for (; (text = strchr(text, '\n')) != NULL; text++)
        n++;
    return n;
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/test_log.XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/log", dir);
    snprintf(other, sizeof(other), "%s/old", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    log_setup("", LOG_NOTICE, LOG_PLAIN);
    unlink(path);
    unlink(other);
    return rmdir(dir);
}

static void fresh(enum log_level level, enum log_format format)
{
    unlink(path);
    assert_true(log_setup(path, level, format));
}

static void test_plain_line(void **state)
{
    (void)state;
    fresh(LOG_NOTICE, LOG_PLAIN);
    log_notice("conf", "hello %d", 7);
    log_debug("conf", "not this");
    log_verbose("conf", "nor this");
    log_warning("net", "two\nlines\x1b[31m");
    const char *text = read_file(path);
    assert_int_equal(count_lines(text), 2);
    int pid, year, month, day, hour, minute, second, ms, used = 0;
    assert_int_equal(sscanf(text, "%d %4d-%2d-%2dT%2d:%2d:%2d.%3dZ notice conf: hello 7\n%n", &pid, &year, &month, &day,
                            &hour, &minute, &second, &ms, &used),
                     8);
    assert_true(used > 0);
    assert_int_equal(pid, getpid());
    assert_non_null(strstr(text, " warning net: two\\nlines\\x1b[31m\n"));
}

static void test_levels(void **state)
{
    (void)state;
    fresh(LOG_WARNING, LOG_PLAIN);
    assert_false(log_enabled(LOG_NOTICE, "conf"));
    log_set_level(LOG_DEBUG);
    assert_true(log_enabled(LOG_DEBUG, "conf"));
    log_debug("x", "seen");
    assert_non_null(strstr(read_file(path), " debug x: seen\n"));
}

static void test_json_line(void **state)
{
    (void)state;
    fresh(LOG_NOTICE, LOG_JSON);
    log_notice("tier", "say \"hi\" \\ \t\x01\x7f caf\xc3\xa9 \xff\xc0\xaf\xed\xa0\x80 \xf0\x9f\x98\x80 \xe2\x82");
    const char *text = read_file(path);
    assert_int_equal(count_lines(text), 1);
    assert_int_equal(strncmp(text, "{\"ts\":\"20", 9), 0);
    assert_non_null(strstr(text, "\"level\":\"notice\",\"module\":\"tier\",\"pid\":"));
    assert_non_null(strstr(text, "\"msg\":\"say \\\"hi\\\" \\\\ \\t\\u0001\\u007f caf\xc3\xa9 "
                                 "\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd \xf0\x9f\x98\x80 \\ufffd\\ufffd\"}\n"));
}

static void test_long_text_is_cut(void **state)
{
    (void)state;
    for (int format = LOG_PLAIN; format <= LOG_JSON; format++) {
        fresh(LOG_NOTICE, (enum log_format)format);
        char *big = malloc(100001);
        memset(big, 1, 100000); /* the byte that grows most when escaped */
        big[100000] = '\0';
        log_notice("x", "%s", big);
        free(big);
        const char *text = read_file(path);
        assert_int_equal(count_lines(text), 1);
        assert_non_null(strstr(text, "... (cut)"));
    }
}

static void say(int i)
{
    log_notice("x", "line %d", i);
}

static void test_burst_is_limited(void **state)
{
    (void)state;
    fresh(LOG_NOTICE, LOG_PLAIN);
    for (int i = 0; i < LOG_BURST + 15; i++)
        say(i);
    log_notice("x", "another site");
    const char *text = read_file(path);
    assert_int_equal(count_lines(text), LOG_BURST + 1);
    assert_non_null(strstr(text, "another site"));
    usleep(1100000);
    say(99);
    assert_non_null(strstr(read_file(path), "line 99 (15 like this left out)\n"));
}

static void test_reopen(void **state)
{
    (void)state;
    fresh(LOG_NOTICE, LOG_PLAIN);
    log_notice("x", "before");
    assert_int_equal(rename(path, other), 0);
    log_notice("x", "between");
    assert_true(log_reopen());
    log_notice("x", "after");
    assert_non_null(strstr(read_file(other), "between"));
    assert_null(strstr(content, "after"));
    assert_non_null(strstr(read_file(path), "after"));
    assert_int_equal(count_lines(content), 1);
}

static void test_bad_file_keeps_the_old(void **state)
{
    (void)state;
    fresh(LOG_NOTICE, LOG_PLAIN);
    assert_false(log_setup("/nonexistent/dir/log", LOG_NOTICE, LOG_PLAIN));
    assert_int_equal(errno, ENOENT);
    assert_false(log_setup(dir, LOG_NOTICE, LOG_PLAIN));
    assert_int_equal(errno, EISDIR);
    errno = 33;
    log_notice("x", "still here");
    assert_int_equal(errno, 33);
    assert_non_null(strstr(read_file(path), "still here"));
}

static void *talk(void *arg)
{
    for (int i = 0; i < 400; i++) {
        struct log_site site = {0, 0};
        log_write(&site, LOG_NOTICE, "thread", "%s", (const char *)arg);
    }
    return NULL;
}

static void test_threads_do_not_mix_lines(void **state)
{
    (void)state;
    static char texts[4][501];
    fresh(LOG_NOTICE, LOG_PLAIN);
    pthread_t t[4];
    for (int i = 0; i < 4; i++) {
        memset(texts[i], 'a' + i, 500);
        assert_int_equal(pthread_create(&t[i], NULL, talk, texts[i]), 0);
    }
    for (int i = 0; i < 20; i++)
        assert_true(log_reopen());
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    char *text = (char *)(uintptr_t)read_file(path), *save = NULL;
    int lines = 0;
    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save), lines++) {
        const char *msg = strstr(line, "thread: ");
        assert_non_null(msg);
        assert_int_equal(strspn(msg + 8, (char[]){msg[8], '\0'}), 500);
    }
    assert_int_equal(lines, 1600);
}

static void test_modules_have_levels(void **state)
{
    const char *why = NULL;
    (void)state;
    fresh(LOG_NOTICE, LOG_PLAIN);
    assert_true(log_set_modules(" disk=debug\tnet=Warning ", &why));
    log_debug("disk", "one");
    log_notice("net", "not this");
    log_warning("net", "two");
    log_verbose("tier", "nor this");
    log_notice("no such module", "three");
    assert_int_equal(count_lines(read_file(path)), 3);
    log_set_level(LOG_VERBOSE);
    log_verbose("tier", "four");
    log_verbose("net", "nor this");
    assert_int_equal(count_lines(read_file(path)), 4);
    static const char *const bad[] = {"disk",      "disk=",        "=debug",     "disks=debug",
                                      "disk=loud", "disk=debug x", "disk =debug"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        why = NULL;
        assert_false(log_check_modules(bad[i], &why));
        assert_false(log_set_modules(bad[i], &why));
        assert_non_null(why);
    }
    assert_non_null(strstr(why, " disk "));
    assert_true(log_enabled(LOG_DEBUG, "disk"));
    assert_true(log_set_modules("", &why));
    assert_false(log_enabled(LOG_DEBUG, "disk"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modules_have_levels),
        cmocka_unit_test(test_plain_line),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_json_line),
        cmocka_unit_test(test_long_text_is_cut),
        cmocka_unit_test(test_burst_is_limited),
        cmocka_unit_test(test_reopen),
        cmocka_unit_test(test_bad_file_keeps_the_old),
        cmocka_unit_test(test_threads_do_not_mix_lines),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
