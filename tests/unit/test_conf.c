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

#include "conf/conf_priv.h"

static char dir[64], file[96], extra[96];
static struct buf err, text;
static const char *no_env[] = {NULL};

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/test_conf.XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    snprintf(file, sizeof(file), "%s/a.conf", dir);
    snprintf(extra, sizeof(extra), "%s/b.conf", dir);
    buf_init(&err, MEM_OTHER);
    buf_init(&text, MEM_OTHER);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    buf_deinit(&err);
    buf_deinit(&text);
    unlink(file);
    unlink(extra);
    return rmdir(dir);
}

static void write_file(const char *path, const char *content, size_t len)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(content, 1, len, f), len);
    fclose(f);
}

static const char *c_str(struct buf *b)
{
    buf_byte(b, '\0');
    b->len--;
    return b->ptr;
}

static const char *read_file(const char *path)
{
    struct buf ignored;
    buf_init(&ignored, MEM_OTHER);
    text.len = 0;
    assert_true(conf_file_read(path, 1 << 20, &text, &ignored));
    buf_deinit(&ignored);
    return c_str(&text);
}

static enum status load(const char **argv, const char **envp, struct conf **c)
{
    int argc = 0;
    bool exit_now;
    while (argv[argc] != NULL)
        argc++;
    enum status st = conf_load(argc, (char **)(uintptr_t)argv, (char **)(uintptr_t)envp, c, &exit_now, &err);
    assert_false(exit_now);
    c_str(&err);
    return st;
}

#define ARGV(...) ((const char *[]){"tiercel", __VA_ARGS__, NULL})

static struct conf *load_ok(const char **argv, const char **envp)
{
    struct conf *c = NULL;
    if (load(argv, envp, &c) != ST_OK)
        fail_msg("%s", err.ptr);
    return c;
}

static struct conf *load_text(const char *content)
{
    write_file(file, content, strlen(content));
    return load_ok(ARGV(file), no_env);
}

static void assert_load_fails(const char **argv, const char **envp, const char *message)
{
    struct conf *c;
    assert_int_equal(load(argv, envp, &c), ST_BAD);
    assert_null(c);
    if (strstr(err.ptr, message) == NULL)
        fail_msg("'%s' is not in '%s'", message, err.ptr);
    assert_null(strchr(err.ptr, '\n'));
}

static void assert_text_fails(const char *content, const char *message)
{
    write_file(file, content, strlen(content));
    assert_load_fails(ARGV(file), no_env, message);
}

static const char *get(const struct conf *c, const char *name)
{
    text.len = 0;
    assert_true(conf_get(c, name, &text));
    return c_str(&text);
}

static void test_defaults(void **state)
{
    (void)state;
    struct conf *c = load_ok(ARGV(NULL), no_env);
    assert_int_equal(c->port, 6379);
    assert_true(c->disk);
    assert_false(c->appendonly);
    assert_string_equal(c->bind, "127.0.0.1 -::1");
    assert_int_equal(c->disk_max_size, 10737418240);
    assert_int_equal(c->maxmemory_policy, POLICY_ALLKEYS_LRU);
    assert_int_equal(c->appendfsync, FSYNC_EVERYSEC);
    assert_int_equal(c->loglevel, LOG_NOTICE);
    assert_string_equal(conf_file(c), "");
    assert_int_equal(conf_rewrite(c, SLICE_NONE), ST_NOT_FOUND);
    assert_string_equal(get(c, "client-output-buffer-limit"),
                        "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60");
    conf_unref(c);
}

/* Every row's names, formats and defaults hold together. */
static void test_rows(void **state)
{
    (void)state;
    struct conf *c = conf_create();
    for (int id = 0; id < CONF_COUNT; id++) {
        const struct conf_row *row = &conf_rows[id];
        for (int other = 0; other < id; other++)
            assert_string_not_equal(row->name, conf_rows[other].name);
        if (row->kind == KIND_ALIAS) {
            assert_int_not_equal(conf_rows[row->target].kind, KIND_ALIAS);
            continue;
        }
        text.len = 0;
        conf_value_format(c, (enum conf_id)id, &text);
        if (conf_value_parse(c, (enum conf_id)id, buf_slice(&text), &err) != FAULT_NONE)
            fail_msg("the default of %s is not valid: %.*s", row->name, SLICE_FMT(buf_slice(&err)));
        assert_true(row->kind == KIND_ENUM || row->kind == KIND_BOOL || row->def >= row->min);
    }
    conf_unref(c);
    c = conf_create();
    c->maxmemory_policy = POLICY_NOEVICTION;
    c->appendfsync = FSYNC_NO;
    c->compression = COMPRESSION_NO;
    assert_string_equal(get(c, "maxmemory-policy"), "noeviction");
    assert_string_equal(get(c, "appendfsync"), "no");
    assert_string_equal(get(c, "compression"), "no");
    c->maxmemory_policy = POLICY_ALLKEYS_LFU;
    assert_string_equal(get(c, "maxmemory-policy"), "allkeys-lfu");
    conf_unref(c);
}

static void test_file(void **state)
{
    (void)state;
    struct conf *c = load_text("\xef\xbb\xbf# a comment\r\n\r\n  port 7000\r\nMAXMEMORY 64mb\n"
                               "requirepass \"a b\\x41\\n\"\nbind 127.0.0.1 ::1\nsave 10 2\nsave 20 3\n"
                               "logfile 'it\\'s'\ntimeout 1\ntimeout 2\n"
                               "client-output-buffer-limit replica 1mb 2mb 3\nmaxmemory-clients 10%");
    assert_int_equal(c->port, 7000);
    assert_int_equal(c->maxmemory, 64 << 20);
    assert_string_equal(c->requirepass, "a bA\n");
    assert_string_equal(c->bind, "127.0.0.1 ::1");
    assert_string_equal(c->save, "10 2 20 3");
    assert_string_equal(c->logfile, "it's");
    assert_int_equal(c->timeout, 2);
    assert_int_equal(c->obuf[OBUF_REPLICA].soft, 2 << 20);
    assert_string_equal(get(c, "maxmemory-clients"), "10%");
    assert_int_equal(conf_maxmemory_clients(c, 1000), 100);
    assert_string_equal(conf_file(c), file);
    conf_unref(c);
    c = load_text("save 10 2\nsave \"\"\n");
    assert_string_equal(c->save, "");
    conf_unref(c);
}

static void test_later_sources_win(void **state)
{
    (void)state;
    const char *env[] = {"TIERCEL_PORT=2",
                         "TIERCEL_TIMEOUT=5",
                         "TIERCEL_MAXMEMORY=",
                         "OTHER=1",
                         "TIERCEL_SAVE=7 7",
                         "TIERCEL_BIND=10.0.0.1 ::1",
                         NULL};
    write_file(file, "port 1\ntimeout 4\nhz 20\nsave 1 1\n", 32);
    struct conf *c = load_ok(ARGV(file, "--port", "3", "--warm-on-start", "MATCH", "price *", "--HZ=30",
                                  "--requirepass=", "--slowlog-log-slower-than", "-1"),
                             env);
    assert_int_equal(c->port, 3);
    assert_int_equal(c->timeout, 5);
    assert_int_equal(c->hz, 30);
    assert_string_equal(c->save, "7 7");
    assert_string_equal(c->bind, "10.0.0.1 ::1");
    assert_string_equal(c->warm_on_start, "MATCH \"price *\"");
    assert_int_equal(c->slowlog_log_slower_than, -1);
    assert_int_equal(err.len, 0);
    conf_unref(c);
}

static void test_environment(void **state)
{
    (void)state;
    const char *links[] = {"TIERCEL_PORT=tcp://10.0.0.1:6379", "TIERCEL_SERVICE_HOST=10.0.0.1",
                           "TIERCEL_PORT_6379_TCP_PORT=6379", "TIERCEL_MAXMEMRY=1", NULL};
    struct conf *c = load_ok(ARGV(NULL), links);
    assert_int_equal(c->port, 6379);
    assert_string_equal(
        err.ptr, "environment TIERCEL_MAXMEMRY ignored: unknown setting 'maxmemry', did you mean 'maxmemory'?\n");
    conf_unref(c);
    assert_load_fails(ARGV(NULL), (const char *[]){"TIERCEL_MAX_THREADS=2", "TIERCEL_THREADS=many", NULL},
                      "environment TIERCEL_THREADS: threads many: not valid, must be an integer from 0 to 128");
}

static void test_secrets(void **state)
{
    (void)state;
    char env[128], option[128];
    write_file(extra, "s3cret\r\n", 8);
    snprintf(env, sizeof(env), "TIERCEL_REQUIREPASS_FILE=%s", extra);
    struct conf *c = load_ok(ARGV(NULL), (const char *[]){env, NULL});
    assert_string_equal(c->requirepass, "s3cret");
    assert_string_equal(get(c, "requirepass"), "s3cret");
    conf_unref(c);
    assert_load_fails(ARGV(NULL), (const char *[]){env, "TIERCEL_REQUIREPASS=other", NULL}, "given twice");
    snprintf(option, sizeof(option), "--upstream-file=%s", extra);
    write_file(extra, "redis://me:pa:ss@host:1/2", 25);
    c = load_ok(ARGV(option), no_env);
    assert_string_equal(c->upstream, "redis://me:pa:ss@host:1/2");
    assert_string_equal(get(c, "upstream"), "redis://me:***@host:1/2");
    conf_unref(c);
    c = load_ok(ARGV("--upstream", "pw@host"), no_env);
    assert_string_equal(get(c, "upstream"), "***@host");
    conf_unref(c);
    c = load_ok(ARGV("--upstream", "redis://host:6380"), no_env);
    assert_string_equal(get(c, "upstream"), "redis://host:6380");
    conf_unref(c);
    /* What is wrong with a secret is said without it. */
    assert_text_fails("requirepass hush hush\n", ":1: requirepass takes one value");
    assert_null(strstr(err.ptr, "hush"));
    assert_text_fails("requirepass \"hush\n", ":1: requirepass: unbalanced quotes");
    assert_null(strstr(err.ptr, "hush"));
    assert_text_fails("requirepas hush\n", ":1: unknown setting 'requirepas', did you mean 'requirepass'?");
    assert_null(strstr(err.ptr, "hush"));
    assert_text_fails("requirepass-file /nonexistent\n", ":1: cannot read '/nonexistent': No such file");
    assert_text_fails("port-file /nonexistent\n", ":1: unknown setting 'port-file'");
}

static void test_include(void **state)
{
    (void)state;
    char content[512];
    write_file(extra, "timeout 7\nport 5\n", 17);
    snprintf(content, sizeof(content), "timeout 1\ninclude %s/b*.conf\ninclude %s/none*.conf\nport 6\n", dir, dir);
    struct conf *c = load_text(content);
    assert_int_equal(c->timeout, 7);
    assert_int_equal(c->port, 6);
    conf_unref(c);
    snprintf(content, sizeof(content), "# loop\ninclude %s\n", file);
    assert_text_fails(content, "nested deeper than 16 files");
    assert_text_fails("include /nonexistent/x.conf\n", ":1: cannot read '/nonexistent/x.conf': No such file");
    assert_text_fails("include\n", "include needs a value");
    write_file(extra, "\n\nport x\n", 9);
    snprintf(content, sizeof(content), "include %s\n", extra);
    assert_text_fails(content, "b.conf:3: port x: not valid, must be an integer from 0 to 65535");
}

static void test_bad_files(void **state)
{
    (void)state;
    assert_load_fails(ARGV("/nonexistent"), no_env, "cannot read '/nonexistent': No such file or directory");
    assert_load_fails(ARGV(dir), no_env, "Is a directory");
    assert_load_fails(ARGV(""), no_env, "empty file name");
    assert_load_fails(ARGV("/dev/zero"), no_env, "larger than 16777216 bytes");
    if (geteuid() != 0) {
        write_file(extra, "port 1\n", 7);
        chmod(extra, 0);
        assert_load_fails(ARGV(extra), no_env, "Permission denied");
        chmod(extra, 0600);
    }
    write_file(file, "port 1\0 2\n", 10);
    assert_load_fails(ARGV(file), no_env, ":1: contains a NUL byte");
    assert_text_fails("\x01\x02\xff\xfe garbage\n", ":1: unknown setting '\\x01\\x02\\xff\\xfe'");
    assert_text_fails("\"\"\n", ":1: unknown setting ''");
    char *big = malloc(70001);
    memset(big, 'x', 70000);
    big[70000] = '\0';
    assert_text_fails(big, ":1: longer than 65536 bytes");
    assert_true(err.len < 200);
    big[60000] = '\0';
    assert_text_fails(big, ":1: unknown setting 'xxx");
    assert_true(err.len < 300);
    free(big);
    /* Nothing that a random generator says makes it crash. */
    unsigned seed = 1;
    for (int round = 0; round < 300; round++) {
        char noise[400];
        struct conf *c;
        for (size_t i = 0; i < sizeof(noise); i++) {
            seed = seed * 1103515245u + 12345u;
            noise[i] = (char)(round % 2 ? " \"'\\x#\nsave1"[seed >> 16 & 15 & 11] : (int)(seed >> 16));
        }
        write_file(file, noise, sizeof(noise));
        if (load(ARGV(file), no_env, &c) == ST_OK)
            conf_unref(c);
    }
}

static void test_bad_values(void **state)
{
    (void)state;
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"port 70000", "port 70000: not valid, must be an integer from 0 to 65535"},
        {"port", "port needs a value"},
        {"port 1 2", "port takes one value, got 2"},
        {"port \"\"", "port \"\": not valid"},
        {"threads 1.5", "threads 1.5: not valid"},
        {"disk maybe", "disk maybe: not valid, must be yes or no"},
        {"disk-max-size 1mb", "disk-max-size 1mb: not valid, must be a size from 16mb to 1024gb"},
        {"maxmemory -1", "maxmemory -1: not valid, must be a size from 0"},
        {"maxmemory 99999999999999999999", "maxmemory 99999999999999999999: not valid"},
        {"maxmemory-clients 101%", "maxmemory-clients 101%: not valid"},
        {"maxmemory-policy lru", "must be one of volatile-lru, volatile-lfu,"},
        {"appendonly maybe", "appendonly maybe: not valid, must be yes or no"},
        {"save 1", "save 1: Invalid save parameters"},
        {"save 0 1", "save 0 1: Invalid save parameters"},
        {"unixsocketperm 888", "octal"},
        {"unixsocketperm 1777", "between 0 and 777"},
        {"client-output-buffer-limit normal 1 2", "Wrong number of arguments"},
        {"client-output-buffer-limit master 1 2 3", "Invalid client class"},
        {"client-output-buffer-limit slave x 2 3", "Error in hard, soft or soft_seconds"},
        {"port \"1\"2", "port: unbalanced quotes"},
        {"port '1", "port: unbalanced quotes"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_text_fails(cases[i].line, cases[i].message);
    assert_load_fails(ARGV("--disk", "no", "--appendonly", "yes"), no_env,
                      "appendonly yes needs the disk tier, and disk is no");
    assert_load_fails(ARGV("--appendonly", "yes", "--disk", "no"), no_env, "appendonly yes needs the disk tier");
    assert_load_fails(ARGV("--port"), no_env, "command line: port needs a value");
    assert_load_fails(ARGV("--port", "1", "2"), no_env, "command line: expected --name value, got '2'");
    assert_load_fails(ARGV("--"), no_env, "expected --name value, got '--'");
    assert_load_fails(ARGV("-x"), no_env, "expected --name value, got '-x'");
    assert_load_fails(ARGV("--zzzzzz", "1"), no_env, "unknown setting 'zzzzzz'");
    assert_null(strstr(err.ptr, "did you mean"));
}

static enum status set(const struct conf *cur, struct conf **out, int npairs, ...)
{
    struct slice pairs[16];
    va_list ap;
    va_start(ap, npairs);
    for (int i = 0; i < 2 * npairs; i++)
        pairs[i] = slice_str(va_arg(ap, const char *));
    va_end(ap);
    enum status st = conf_set(cur, npairs, pairs, out, &err);
    c_str(&err);
    return st;
}

static void test_set(void **state)
{
    (void)state;
    struct conf *c = load_ok(ARGV(NULL), no_env), *d = NULL;
    assert_int_equal(set(c, &d, 3, "TIMEOUT", "5", "maxmemory", "1gb", "requirepass", "x"), ST_OK);
    assert_int_equal(d->timeout, 5);
    assert_int_equal(d->maxmemory, 1 << 30);
    assert_string_equal(get(d, "maxmemory"), "1073741824");
    assert_int_equal(c->timeout, 0);
    assert_string_equal(c->requirepass, "");
    conf_unref(c);
    assert_string_equal(d->requirepass, "x");
    assert_int_equal(set(d, &c, 1, "hz", "1000"), ST_OK);
    assert_int_equal(c->hz, 500);
    conf_unref(c);
    assert_int_equal(set(d, &c, 1, "hash-max-ziplist-entries", "99"), ST_OK);
    assert_string_equal(get(c, "hash-max-listpack-entries"), "99");
    assert_string_equal(get(c, "hash-max-ziplist-entries"), "99");
    conf_unref(c);
    assert_int_equal(set(d, &c, 1, "client-output-buffer-limit", "slave 1mb 2mb 60 normal 5 6 7"), ST_OK);
    assert_string_equal(get(c, "client-output-buffer-limit"),
                        "normal 5 6 7 slave 1048576 2097152 60 pubsub 33554432 8388608 60");
    conf_unref(c);
    conf_unref(d);
}

/* The texts of redis-server 7.0.15. */
static void test_set_errors(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value, *message;
    } cases[] = {
        {"maxmemory", "abc", "argument must be a memory value"},
        {"MAXMEMORY", "1.5gb", "argument must be a memory value"},
        {"maxmemory", "10%", "argument must be a memory value"},
        {"maxmemory-clients", "200%", "percentage argument must be less or equal to 100"},
        {"maxmemory-clients", "x", "argument must be a memory or percent value"},
        {"timeout", "99999999999", "argument must be between 0 and 2147483647 inclusive"},
        {"timeout", "", "argument couldn't be parsed into an integer"},
        {"timeout", "007", "argument couldn't be parsed into an integer"},
        {"timeout", " 5", "argument couldn't be parsed into an integer"},
        {"maxclients", "0", "argument must be between 1 and 4294967295 inclusive"},
        {"slowlog-log-slower-than", "-2", "argument must be between -1 and 9223372036854775807 inclusive"},
        {"maxmemory-policy", "foo",
         "argument(s) must be one of the following: volatile-lru, volatile-lfu, volatile-random, volatile-ttl, "
         "allkeys-lru, allkeys-lfu, allkeys-random, noeviction, adaptive"},
        {"appendfsync", "x", "argument(s) must be one of the following: everysec, always, no"},
        {"loglevel", "foo", "argument(s) must be one of the following: debug, verbose, notice, warning"},
        {"protected-mode", "maybe", "argument must be 'yes' or 'no'"},
        {"appendonly", "maybe", "argument must be 'yes' or 'no'"},
        {"databases", "1", "can't set immutable config"},
        {"tcp-backlog", "5", "can't set immutable config"},
        {"save", "1 2 3", "Invalid save parameters"},
        {"save", "1 -5", "Invalid save parameters"},
        {"hash-max-ziplist-entries", "abc", "argument couldn't be parsed into an integer"},
        {"hash-max-ziplist-value", "xx", "argument must be a memory value"},
        {"list-max-ziplist-size", "99999999999", "argument must be between -2147483648 and 2147483647 inclusive"},
        {"list-compress-depth", "-1", "argument must be between 0 and 2147483647 inclusive"},
        {"client-output-buffer-limit", "foo 0 0 0", "Invalid client class specified in buffer limit configuration."},
        {"client-output-buffer-limit", "normal 0 0", "Wrong number of arguments in buffer limit configuration."},
        {"client-output-buffer-limit", "normal a 0 0",
         "Error in hard, soft or soft_seconds setting in buffer limit configuration."},
    };
    struct conf *c = load_ok(ARGV("--timeout", "3"), no_env), *d = NULL;
    char want[512];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char lower[64];
        snprintf(lower, sizeof(lower), "%s", conf_rows[conf_find(slice_str(cases[i].name))].name);
        snprintf(want, sizeof(want), "CONFIG SET failed (possibly related to argument '%s') - %s", lower,
                 cases[i].message);
        assert_int_equal(set(c, &d, 1, cases[i].name, cases[i].value), ST_BAD);
        assert_string_equal(err.ptr, want);
    }
    assert_int_equal(set(c, &d, 2, "timeout", "5", "Foo\r\nx", "1"), ST_BAD);
    assert_string_equal(err.ptr, "Unknown option or number of arguments for CONFIG SET - 'Foo  x'");
    assert_int_equal(set(c, &d, 2, "timeout", "x", "timeout", "2"), ST_BAD);
    assert_string_equal(err.ptr, "CONFIG SET failed (possibly related to argument 'timeout') - duplicate parameter");
    assert_int_equal(set(c, &d, 2, "appendfsync", "always", "appendonly", "yes"), ST_OK);
    assert_true(d->appendonly && d->appendfsync == FSYNC_ALWAYS);
    conf_unref(d);
    struct conf *diskless = load_ok(ARGV("--disk", "no"), no_env);
    assert_int_equal(set(diskless, &d, 1, "appendonly", "yes"), ST_BAD);
    assert_string_equal(err.ptr, "CONFIG SET failed (possibly related to argument 'appendonly') - "
                                 "appendonly yes needs the disk tier, and disk is no");
    conf_unref(diskless);
    d = NULL;
    /* All or none. */
    assert_int_equal(set(c, &d, 2, "timeout", "5", "maxmemory", "x"), ST_BAD);
    assert_null(d);
    assert_int_equal(c->timeout, 3);
    struct slice nul[] = {SLICE_LIT("requirepass"), SLICE_LIT("a\0b")};
    assert_int_equal(conf_set(c, 1, nul, &d, &err), ST_BAD);
    conf_unref(c);
}

static void collect(void *arg, const char *name, struct slice value)
{
    buf_printf(arg, "%s=%.*s;", name, SLICE_FMT(value));
}

static void test_each(void **state)
{
    (void)state;
    struct conf *c = load_ok(ARGV("--upstream", "redis://:pw@h", "--maxmemory", "1k"), no_env);
    struct buf out;
    buf_init(&out, MEM_OTHER);
    conf_each(c, SLICE_LIT("MAXMEMOR?"), collect, &out);
    assert_string_equal(c_str(&out), "maxmemory=1000;");
    out.len = 0;
    conf_each(c, SLICE_LIT("no-such"), collect, &out);
    assert_int_equal(out.len, 0);
    conf_each(c, SLICE_LIT("*"), collect, &out);
    assert_non_null(strstr(c_str(&out), "upstream=redis://:***@h;"));
    assert_null(strstr(out.ptr, "pw"));
    assert_non_null(strstr(out.ptr, "hash-max-ziplist-entries=128;"));
    out.len = 0;
    assert_false(conf_get(c, "nope", &out));
    buf_deinit(&out);
    conf_unref(c);
}

static void test_rewrite(void **state)
{
    (void)state;
    struct conf *c = load_text("# comment one\nport 7544\n\ntimeout   5 \n# save lines\nsave 10 2\nsave 20 3\n\n"
                               "MAXMEMORY 10240kb\nhash-max-ziplist-entries 77\ntimeout 9\ninclude /nonexist*.conf\n"
                               "# end");
    chmod(file, 0640);
    struct conf *d = NULL;
    assert_int_equal(set(c, &d, 5, "slowlog-max-len", "5", "save", "10 2 30 4 50 6", "requirepass", "a \"b", "loglevel",
                         "notice", "hash-max-listpack-entries", "78"),
                     ST_OK);
    conf_unref(c);
    assert_int_equal(conf_rewrite(d, SLICE_NONE), ST_OK);
    static const char want[] = "# comment one\nport 7544\n\ntimeout 9\n# save lines\nsave 10 2\nsave 30 4\n\n"
                               "MAXMEMORY 10240kb\nhash-max-listpack-entries 78\ninclude /nonexist*.conf\n# end\n\n"
                               "# Generated by CONFIG REWRITE\nrequirepass \"a \\\"b\"\nslowlog-max-len 5\nsave 50 6\n";
    assert_string_equal(read_file(file), want);
    struct stat st;
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    /* Loading it gives the same settings, writing it again the same file. */
    c = load_ok(ARGV(file), no_env);
    for (int id = 0; id < CONF_COUNT; id++)
        if (conf_rows[id].kind != KIND_ALIAS)
            assert_true(conf_value_equal(c, d, (enum conf_id)id));
    conf_unref(d);
    assert_int_equal(conf_rewrite(c, SLICE_NONE), ST_OK);
    assert_string_equal(read_file(file), want);
    assert_int_equal(set(c, &d, 1, "maxmemory", "20mb"), ST_OK);
    assert_int_equal(conf_rewrite(d, SLICE_NONE), ST_OK);
    assert_non_null(strstr(read_file(file), "\nmaxmemory 20mb\n"));
    conf_unref(c);
    conf_unref(d);
}

static void test_http_token(void **state)
{
    (void)state;
    char content[160], longest[HTTP_TOKEN_MAX + 16];
    struct conf *c, *next;
    struct buf why;
    memset(longest, 't', sizeof(longest));
    memcpy(longest, "http-token ", 11);
    longest[11 + HTTP_TOKEN_MAX + 1] = '\0';
    assert_text_fails(longest, "http-token is longer than 1024 bytes");
    assert_text_fails("http-token 'a b'\n", "visible ASCII");
    assert_true(conf_is_secret(SLICE_LIT("HTTP-Token")) && conf_is_secret(SLICE_LIT("requirepass")));
    assert_true(!conf_is_secret(SLICE_LIT("port")) && !conf_is_secret(SLICE_LIT("nonsense")));
    buf_init(&why, MEM_OTHER);
    c = load_text("http-token plain\n");
    assert_int_equal(conf_reload_secret(c, "http-token", &next, &why), ST_NOT_FOUND);
    conf_unref(c);
    write_file(extra, "one\n", 4);
    snprintf(content, sizeof(content), "http-token-file %s\n", extra);
    c = load_text(content);
    assert_string_equal(c->http_token, "one");
    for (int i = 0; i < 2; i++) { /* the new snapshot knows its file, too */
        write_file(extra, i ? "three\n" : "two\n", i ? 6 : 4);
        assert_int_equal(conf_reload_secret(c, "http-token", &next, &why), ST_OK);
        assert_string_equal(next->http_token, i ? "three" : "two");
        conf_unref(c);
        c = next;
    }
    write_file(extra, "t w o\n", 6);
    assert_int_equal(conf_reload_secret(c, "http-token", &next, &why), ST_BAD);
    unlink(extra);
    assert_int_equal(conf_reload_secret(c, "http-token", &next, &why), ST_BAD);
    c_str(&why);
    assert_non_null(strstr(why.ptr, "cannot read"));
    assert_string_equal(c->http_token, "three");
    conf_unref(c);
    buf_deinit(&why);
}

static void test_rewrite_secret_files(void **state)
{
    (void)state;
    char content[256];
    write_file(extra, "pw\n", 3);
    snprintf(content, sizeof(content), "requirepass-file %s\n", extra);
    struct conf *c = load_text(content), *d = NULL;
    assert_string_equal(c->requirepass, "pw");
    assert_int_equal(conf_rewrite(c, SLICE_NONE), ST_OK);
    assert_string_equal(read_file(file), content);
    assert_int_equal(set(c, &d, 1, "requirepass", "new"), ST_OK);
    assert_int_equal(conf_rewrite(d, SLICE_NONE), ST_OK);
    assert_string_equal(read_file(file), "requirepass new\n");
    /* A file that is gone is written anew; a directory that is gone is an error. */
    unlink(file);
    assert_int_equal(conf_rewrite(d, SLICE_NONE), ST_OK);
    assert_string_equal(read_file(file), "# Generated by CONFIG REWRITE\nrequirepass new\n");
    mem_free(MEM_OTHER, d->priv->file);
    d->priv->file = mem_strdup(MEM_OTHER, "/nonexistent/x.conf");
    assert_int_equal(conf_rewrite(d, SLICE_NONE), ST_IO);
    conf_unref(c);
    conf_unref(d);
}

static void test_sample_is_the_defaults(void **state)
{
    (void)state;
    struct buf sample;
    buf_init(&sample, MEM_OTHER);
    conf_write_sample(&sample);
    if (access("conf/tiercel.conf", R_OK) == 0) { /* run from the top of the tree: the copy there is current */
        read_file("conf/tiercel.conf");
        assert_int_equal(text.len, sample.len);
        assert_memory_equal(text.ptr, sample.ptr, sample.len);
    }
    write_file(file, sample.ptr, sample.len);
    struct conf *c = load_ok(ARGV(file), no_env), *d = conf_create();
    for (int id = 0; id < CONF_COUNT; id++)
        if (conf_rows[id].kind != KIND_ALIAS)
            assert_true(conf_value_equal(c, d, (enum conf_id)id));
    assert_int_equal(conf_rewrite(c, SLICE_NONE), ST_OK);
    read_file(file);
    assert_int_equal(text.len, sample.len);
    assert_memory_equal(text.ptr, sample.ptr, sample.len);
    conf_unref(c);
    conf_unref(d);
    sample.len = 0;
    conf_write_table(&sample);
    conf_write_help(&sample);
    for (int id = 0; id < CONF_COUNT; id++)
        assert_non_null(strstr(c_str(&sample), conf_rows[id].name));
    buf_deinit(&sample);
}

static void test_split(void **state)
{
    (void)state;
    struct line l;
    assert_true(line_split(SLICE_LIT("  a  \"b \\x41\\n\\\"\" 'c\\'d\\n' \"\" e\"f\" "), &l));
    assert_int_equal(l.nwords, 5);
    assert_string_equal(l.words[0].ptr, "a");
    assert_string_equal(l.words[1].ptr, "b A\n\"");
    assert_string_equal(l.words[2].ptr, "c'd\\n");
    assert_string_equal(l.words[3].ptr, "");
    assert_string_equal(l.words[4].ptr, "ef");
    struct buf joined;
    buf_init(&joined, MEM_OTHER);
    line_join(&joined, l.nwords, l.words);
    assert_string_equal(c_str(&joined), "a \"b A\\n\\\"\" \"c'd\\\\n\" \"\" ef");
    buf_deinit(&joined);
    line_free(&l);
    assert_true(line_split(SLICE_LIT(""), &l));
    assert_int_equal(l.nwords, 0);
    line_free(&l);
    assert_false(line_split(SLICE_LIT("a \"b"), &l));
    assert_false(line_split(SLICE_LIT("\"a\"b"), &l));
    assert_false(line_split(SLICE_LIT("'a'b"), &l));
    assert_false(line_split(SLICE_LIT("\"a\\"), &l));
}

static void test_refs(void **state)
{
    (void)state;
    struct conf *c = load_ok(ARGV(NULL), no_env);
    assert_ptr_equal(conf_ref(c), c);
    conf_unref(c);
    assert_int_equal(c->port, 6379);
    conf_unref(c);
    conf_unref(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_later_sources_win),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_secrets),
        cmocka_unit_test(test_http_token),
        cmocka_unit_test(test_include),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_set_errors),
        cmocka_unit_test(test_each),
        cmocka_unit_test(test_rewrite),
        cmocka_unit_test(test_rewrite_secret_files),
        cmocka_unit_test(test_sample_is_the_defaults),
        cmocka_unit_test(test_refs),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
