#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "tiercel/conf.h"
#include "tiercel/http.h"
#include "tiercel/stats.h"

static _Atomic bool is_ready;
static struct stats_block *block;
static struct http *http;
static char answer[1 << 20], err[256];

static void write_metrics(void *arg, struct buf *out)
{
    static const struct metrics_db dbs[] = {{0, 10, 3}, {7, 1, 0}};
    static const struct metrics_command commands[] = {{"get", 100, 1, 2, 1500000}, {"odd\"\\\n", 1, 0, 0, 7}};
    const struct disk_stats disk = {.keys = 5, .file_bytes = 4096, .commit_us = 2500000, .last_commit_ms = 1500};
    static const struct metrics_part evictions[] = {{"tier=\"disk\",reason=\"quota\"", 4}};
    static const struct metrics_error errors[] = {{"WRONGTYPE", 3}};
    static const struct stats_hist_sum memory = {.bucket = {[2] = 5, [STATS_HIST_BUCKETS - 1] = 1}, .us = 70000000};
    const struct upstream_stats upstream = {.fetches = 9, .bytes_in = 1234, .pins = 2};
    const struct metrics_source src = {
        .run_id = "abc",
        .os = "Linux \"x\"",
        .maxmemory_policy = "allkeys-lru",
        .tcp_port = 6379,
        .uptime_s = 12,
        .memory_used = 1000,
        .memory_max = 1 << 20,
        .disk = &disk,
        .disk_writable = true,
        .upstream = &upstream,
        .upstream_workers_up = 2,
        .coherence_mode = "tracking",
        .coherence_bound_ms = 1000,
        .dbs = dbs,
        .ndbs = 2,
        .commands = commands,
        .ncommands = 2,
        .cpu_sys_s = 0.5,
        .memory_latency = &memory,
        .evictions = evictions,
        .nevictions = 1,
        .errors = errors,
        .nerrors = 1,
    };
    assert_ptr_equal(arg, &is_ready);
    metrics_write(out, &src);
}

static bool write_ready(void *arg, bool detail, struct buf *json)
{
    (void)arg;
    buf_printf(json, "{\"ready\":%s%s}", is_ready ? "true" : "false", detail ? ",\"more\":1" : "");
    return is_ready;
}

static struct http_options options(const char *bind_to, int port)
{
    return (struct http_options){.bind = bind_to, .port = port, .metrics = write_metrics, .ready = write_ready};
}

static int setup(void **state)
{
    (void)state;
    block = stats_block_create();
    struct http_options opt = options("127.0.0.1", 0);
    if (http_start(&opt, &http, err) != ST_OK)
        return -1;
    http_serve(http, &is_ready);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    http_stop(http);
    http_stop(NULL);
    return 0;
}

static int connect_to(int port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct timeval limit = {.tv_sec = 20};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

static void send_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the server may close on nonsense before it took all of it */
        data += n;
        len -= (size_t)n;
    }
}

/* Everything until the server closes. */
static const char *receive_all(int fd)
{
    size_t len = 0;
    ssize_t n;
    while (len < sizeof(answer) - 1 && (n = recv(fd, answer + len, sizeof(answer) - 1 - len, 0)) > 0)
        len += (size_t)n;
    answer[len] = '\0';
    close(fd);
    return answer;
}

static const char *ask_with(int port, const char *method, const char *path, const char *header)
{
    char request[2048];
    int fd = connect_to(port);
    int n = snprintf(request, sizeof(request), "%s %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\n\r\n", method, path,
                     header);
    send_all(fd, request, (size_t)n);
    return receive_all(fd);
}

static const char *ask_port(int port, const char *method, const char *path)
{
    return ask_with(port, method, path, "");
}

static const char *ask(const char *method, const char *path)
{
    return ask_port(http_port(http), method, path);
}

static void assert_starts(const char *text, const char *start)
{
    if (strncmp(text, start, strlen(start)) != 0)
        fail_msg("'%.80s' does not start with '%s'", text, start);
}

static const char *body(const char *text)
{
    const char *end = strstr(text, "\r\n\r\n");
    assert_non_null(end);
    return end + 4;
}

static void test_probes(void **state)
{
    (void)state;
    is_ready = false;
    assert_starts(ask("GET", "/healthz"), "HTTP/1.1 200 ");
    assert_string_equal(body(answer), "ok\n");
    assert_starts(ask("GET", "/readyz"), "HTTP/1.1 503 ");
    assert_string_equal(body(answer), "{\"ready\":false,\"more\":1}\n");
    assert_non_null(strcasestr(answer, "content-type: application/json\r\n"));
    is_ready = true;
    assert_starts(ask("GET", "/readyz?verbose"), "HTTP/1.1 200 ");
    assert_string_equal(body(answer), "{\"ready\":true,\"more\":1}\n");
    assert_starts(ask("HEAD", "/readyz"), "HTTP/1.1 200 ");
    assert_string_equal(body(answer), "");
    assert_non_null(strcasestr(answer, "content-length: 24\r\n"));
}

/* Before the tiers are there and after they went nobody is asked about them. */
static void test_phases(void **state)
{
    (void)state;
    struct http *h = NULL;
    struct http_options opt = options("127.0.0.1", 0);
    assert_int_equal(http_start(&opt, &h, err), ST_OK);
    for (int stopping = 0; stopping < 2; stopping++) {
        assert_starts(ask_port(http_port(h), "GET", "/healthz"), "HTTP/1.1 200 ");
        assert_starts(ask_port(http_port(h), "GET", "/readyz"), "HTTP/1.1 503 ");
        assert_string_equal(body(answer), stopping ? "{\"ready\":false,\"state\":\"stopping\"}\n"
                                                   : "{\"ready\":false,\"state\":\"loading\"}\n");
        assert_starts(ask_port(http_port(h), "GET", "/metrics"), "HTTP/1.1 503 ");
        http_serve(h, &is_ready);
        assert_starts(ask_port(http_port(h), "GET", "/metrics"), stopping ? "HTTP/1.1 503 " : "HTTP/1.1 200 ");
        http_drain(h);
    }
    http_stop(h);
    http_serve(NULL, NULL);
    http_drain(NULL);
}

static void assert_access(const char *header, bool allowed)
{
    is_ready = true;
    assert_starts(ask_with(http_port(http), "GET", "/metrics", header), allowed ? "HTTP/1.1 200 " : "HTTP/1.1 401 ");
    if (!allowed) {
        assert_non_null(strcasestr(answer, "www-authenticate: bearer"));
        assert_null(strstr(answer, "redis_up"));
    }
    assert_starts(ask_with(http_port(http), "GET", "/healthz", header), "HTTP/1.1 200 ");
    assert_starts(ask_with(http_port(http), "GET", "/readyz", header), "HTTP/1.1 200 ");
    assert_string_equal(body(answer), allowed ? "{\"ready\":true,\"more\":1}\n" : "{\"ready\":true}\n");
}

static void test_token(void **state)
{
    (void)state;
    char longest[HTTP_TOKEN_MAX + 1], header[HTTP_TOKEN_MAX + 64];
    uint64_t refused = stats_sum(STAT_http_refused);
    memset(longest, 't', HTTP_TOKEN_MAX);
    longest[HTTP_TOKEN_MAX] = '\0';
    assert_true(http_is_local(http));
    http_set_access(http, &(struct http_access){"s3cret", true});
    assert_access("", false);
    assert_access("Authorization: s3cret\r\n", false);
    assert_access("Authorization: Basic s3cret\r\n", false);
    assert_access("Authorization: Bearer s3cre\r\n", false);
    assert_access("Authorization: Bearer s3cretx\r\n", false);
    assert_access("Authorization: Bearer \r\n", false);
    assert_int_equal(stats_sum(STAT_http_refused) - refused, 6);
    assert_access("Authorization: Bearer s3cret\r\n", true);
    assert_access("authorization: bearer   s3cret  \r\n", true);
    http_set_access(http, &(struct http_access){longest, false});
    assert_access("Authorization: Bearer s3cret\r\n", false);
    snprintf(header, sizeof(header), "Authorization: Bearer %s\r\n", longest);
    assert_access(header, true);
    http_set_access(http, &(struct http_access){"", true});
    assert_access("", true); /* it comes from this host */
    assert_access("Authorization: Bearer whatever\r\n", true);
    http_set_access(NULL, &(struct http_access){"", true});
}

static void test_other_paths_and_methods(void **state)
{
    (void)state;
    assert_starts(ask("GET", "/"), "HTTP/1.1 404 ");
    assert_starts(ask("GET", "/metricsx"), "HTTP/1.1 404 ");
    assert_starts(ask("GET", "/../../etc/passwd"), "HTTP/1.1 404 ");
    assert_starts(ask("POST", "/metrics"), "HTTP/1.1 405 ");
    assert_non_null(strcasestr(answer, "allow: GET, HEAD\r\n"));
    assert_starts(ask("DELETE", "/healthz"), "HTTP/1.1 405 ");
    assert_starts(ask("NONSENSE", "/healthz"), "HTTP/1.1 405 ");
}

static void test_keep_alive(void **state)
{
    (void)state;
    static const char two[] = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
                              "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    int fd = connect_to(http_port(http));
    send_all(fd, two, sizeof(two) - 1);
    const char *text = receive_all(fd);
    assert_starts(text, "HTTP/1.1 200 ");
    assert_non_null(strstr(text, "\r\n\r\nok\nHTTP/1.1 200 "));
}

static void test_nonsense(void **state)
{
    (void)state;
    unsigned seed = 7;
    for (int round = 0; round < 40; round++) {
        char noise[2000];
        for (size_t i = 0; i < sizeof(noise); i++) {
            seed = seed * 1103515245u + 12345u;
            noise[i] = (char)(round % 2 ? " GET/:\r\n"[seed >> 16 & 7] : (int)(seed >> 16));
        }
        int fd = connect_to(http_port(http));
        send_all(fd, noise, sizeof(noise));
        shutdown(fd, SHUT_WR);
        receive_all(fd);
    }
    /* A header longer than a connection's memory, and a body nobody asked for. */
    char *big = malloc(1 << 20);
    memset(big, 'x', 1 << 20);
    memcpy(big, "GET /healthz HTTP/1.1\r\nHost: ", 29);
    int fd = connect_to(http_port(http));
    send_all(fd, big, 1 << 20);
    shutdown(fd, SHUT_WR);
    assert_null(strstr(receive_all(fd), "HTTP/1.1 200"));
    memset(big, 'x', 1 << 20);
    memcpy(big, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", 58);
    fd = connect_to(http_port(http));
    send_all(fd, big, 1 << 20);
    shutdown(fd, SHUT_WR);
    receive_all(fd);
    free(big);
    assert_starts(ask("GET", "/healthz"), "HTTP/1.1 200 ");
}

/* Connections that say nothing do not keep a probe out for ever, nor grow without bound. */
static void test_idle_connections(void **state)
{
    (void)state;
    int fds[40];
    for (int i = 0; i < 40; i++)
        fds[i] = connect_to(http_port(http));
    assert_starts(ask("GET", "/healthz"), "HTTP/1.1 200 ");
    for (int i = 0; i < 40; i++)
        close(fds[i]);
}

static const char *find_value(const char *text, const char *series)
{
    size_t len = strlen(series);
    for (const char *line = text; line != NULL && *line != '\0'; line = strchr(line, '\n') + 1)
        if (strncmp(line, series, len) == 0 && line[len] == ' ')
            return line + len + 1;
    fail_msg("no series %s", series);
    return NULL;
}

static bool is_name(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!(isalpha((unsigned char)text[i]) || text[i] == '_' || (i > 0 && isdigit((unsigned char)text[i]))))
            return false;
    return len > 0;
}

/* name{label="value",...} number */
static void check_sample(const char *line, char *name, size_t size)
{
    size_t len = strcspn(line, "{ ");
    assert_true(is_name(line, len) && len < size);
    memcpy(name, line, len);
    name[len] = '\0';
    const char *p = line + len;
    if (*p == '{') {
        do {
            size_t label = strcspn(++p, "=");
            assert_true(is_name(p, label));
            p += label + 1;
            assert_int_equal(*p++, '"');
            for (; *p != '"'; p++) {
                assert_true(*p != '\0');
                if (*p == '\\') {
                    p++;
                    assert_non_null(strchr("\\\"n", *p));
                }
            }
            p++;
        } while (*p == ',');
        assert_int_equal(*p++, '}');
    }
    char *end;
    assert_int_equal(*p++, ' ');
    strtod(p, &end);
    assert_true(end != p && *end == '\0');
}

static void test_metrics_are_valid(void **state)
{
    (void)state;
    static char seen[600][80];
    int nseen = 0, samples = 0;
    bool helped = false;
    char current[80] = "", type[16] = "", *save = NULL;
    stats_add(block, STAT_keyspace_hits, 42);
    assert_starts(ask("GET", "/metrics"), "HTTP/1.1 200 ");
    assert_non_null(strcasestr(answer, "content-type: text/plain; version=0.0.4"));
    char *text = strdup(body(answer));
    assert_int_equal(text[strlen(text) - 1], '\n');
    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char name[80];
        if (strncmp(line, "# HELP ", 7) == 0) {
            assert_int_equal(sscanf(line + 7, "%79s", current), 1);
            assert_true(strlen(line) > 8 + strlen(current));
            for (int i = 0; i < nseen; i++)
                assert_string_not_equal(seen[i], current);
            snprintf(seen[nseen++], sizeof(seen[0]), "%s", current);
            helped = true;
        } else if (strncmp(line, "# TYPE ", 7) == 0) {
            assert_true(helped);
            assert_int_equal(sscanf(line + 7, "%79s %15s", name, type), 2);
            assert_string_equal(name, current);
            assert_true(strcmp(type, "counter") == 0 || strcmp(type, "gauge") == 0 || strcmp(type, "histogram") == 0);
            size_t len = strlen(name);
            bool total = len > 6 && strcmp(name + len - 6, "_total") == 0;
            assert_int_equal(total, strcmp(type, "counter") == 0);
        } else {
            check_sample(line, name, sizeof(name));
            size_t len = strlen(current);
            if (strcmp(type, "histogram") == 0 && strncmp(name, current, len) == 0) {
                assert_true(!strcmp(name + len, "_bucket") || !strcmp(name + len, "_sum") ||
                            !strcmp(name + len, "_count"));
                name[len] = '\0';
            }
            assert_string_equal(name, current);
            samples++;
        }
    }
    free(text);
    assert_true(samples > STAT_COUNT);
}

static void test_metrics_values(void **state)
{
    (void)state;
    static const struct {
        const char *series, *value;
    } cases[] = {
        {"redis_up", "1\n"},
        {"redis_uptime_in_seconds", "12\n"},
        {"redis_memory_max_bytes", "1048576\n"},
        {"redis_cpu_sys_seconds_total", "0.500000\n"},
        {"redis_db_keys{db=\"db7\"}", "1\n"},
        {"redis_db_keys_expiring{db=\"db0\"}", "3\n"},
        {"redis_commands_total{cmd=\"get\"}", "100\n"},
        {"redis_commands_duration_seconds_total{cmd=\"get\"}", "1.500000\n"},
        {"redis_commands_total{cmd=\"odd\\\"\\\\\\n\"}", "1\n"},
        {"tiercel_disk_keys", "5\n"},
        {"tiercel_disk_commit_seconds_total", "2.500000\n"},
        {"tiercel_upstream_up", "1\n"},
        {"tiercel_upstream_pins", "2\n"},
        {"tiercel_coherence_info{mode=\"tracking\"}", "1\n"},
        {"tiercel_coherence_bound_seconds", "1.000000\n"},
        {"tiercel_evictions_total{tier=\"disk\",reason=\"quota\"}", "4\n"},
        {"redis_errors_total{err=\"WRONGTYPE\"}", "3\n"},
        {"tiercel_tier_latency_seconds_bucket{tier=\"memory\",le=\"0.000001\"}", "0\n"},
        {"tiercel_tier_latency_seconds_bucket{tier=\"memory\",le=\"0.000004\"}", "5\n"},
        {"tiercel_tier_latency_seconds_bucket{tier=\"memory\",le=\"33.554432\"}", "5\n"},
        {"tiercel_tier_latency_seconds_bucket{tier=\"memory\",le=\"+Inf\"}", "6\n"},
        {"tiercel_tier_latency_seconds_count{tier=\"memory\"}", "6\n"},
        {"tiercel_tier_latency_seconds_sum{tier=\"memory\"}", "70.000000\n"},
        {"tiercel_tier_latency_seconds_bucket{tier=\"disk\",le=\"0.000128\"}", "1\n"},
        {"tiercel_tier_latency_seconds_bucket{tier=\"disk\",le=\"0.000256\"}", "2\n"},
        {"tiercel_tier_latency_seconds_sum{tier=\"disk\"}", "0.000300\n"},
        {"tiercel_tier_latency_seconds_count{tier=\"upstream\"}", "0\n"},
        {"tiercel_upstream_call_latency_seconds_bucket{le=\"+Inf\"}", "0\n"},
        {"tiercel_upstream_call_latency_seconds_sum", "0.000000\n"},
    };
    stats_time(block, HIST_disk, 100);
    stats_time(block, HIST_disk, 200);
    ask("GET", "/metrics");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_starts(find_value(body(answer), cases[i].series), cases[i].value);
    /* What common dashboards call for by name. */
    static const char *const names[] = {"redis_connected_clients",          "redis_blocked_clients",
                                        "redis_memory_used_bytes",          "redis_memory_used_rss_bytes",
                                        "redis_keyspace_hits_total",        "redis_keyspace_misses_total",
                                        "redis_evicted_keys_total",         "redis_expired_keys_total",
                                        "redis_commands_processed_total",   "redis_connections_received_total",
                                        "redis_rejected_connections_total", "redis_net_input_bytes_total",
                                        "redis_net_output_bytes_total",     "redis_cpu_user_seconds_total",
                                        "redis_rdb_bgsave_in_progress",     "redis_rdb_last_save_timestamp_seconds",
                                        "redis_rdb_last_bgsave_status",     "redis_aof_last_write_status"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        find_value(body(answer), names[i]);
    assert_non_null(strstr(answer, "\nredis_instance_info{redis_version=\"7.0.15\","));
    /* Without these tiers there are no figures of them. */
    struct buf out;
    buf_init(&out, MEM_OTHER);
    metrics_write(&out, &(struct metrics_source){.os = "x"});
    buf_byte(&out, '\0');
    assert_null(strstr(out.ptr, "tiercel_disk_keys"));
    assert_null(strstr(out.ptr, "tiercel_upstream_up"));
    assert_null(strstr(out.ptr, "redis_db_keys"));
    assert_null(strstr(out.ptr, "tier=\"disk\""));
    buf_deinit(&out);
}

static void test_start_errors(void **state)
{
    (void)state;
    struct http *second = NULL;
    char want[128];
    struct http_options opt = options("127.0.0.1", http_port(http));
    assert_int_equal(http_start(&opt, &second, err), ST_BAD);
    snprintf(want, sizeof(want), "http-port: cannot listen on 127.0.0.1 port %d: Address already in use",
             http_port(http));
    assert_string_equal(err, want);
    assert_null(second);
    opt = options("192.0.2.1", 0);
    assert_int_equal(http_start(&opt, &second, err), ST_BAD);
    assert_starts(err, "http-port: cannot listen on 192.0.2.1 port 0: ");
    opt = options("300.1.1.1.", 0);
    assert_int_equal(http_start(&opt, &second, err), ST_BAD);
    assert_starts(err, "http-bind: cannot use the address '300.1.1.1.': ");
}

static void test_all_addresses(void **state)
{
    (void)state;
    struct http *all = NULL;
    struct http_options opt = options("*", 0);
    assert_int_equal(http_start(&opt, &all, err), ST_OK);
    assert_false(http_is_local(all));
    http_serve(all, &is_ready);
    assert_starts(ask_port(http_port(all), "GET", "/healthz"), "HTTP/1.1 200 ");
    assert_starts(ask_port(http_port(all), "GET", "/metrics"), "HTTP/1.1 200 ");
    http_stop(all);
}

static void test_notify(void **state)
{
    (void)state;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char dir[] = "/tmp/test_http.XXXXXX", path[64], got[64];
    unsetenv("NOTIFY_SOCKET");
    notify_send("READY=1"); /* nobody to tell */
    assert_non_null(mkdtemp(dir));
    for (int abstract = 0; abstract < 2; abstract++) {
        int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
        snprintf(path, sizeof(path), "%s%s/notify", abstract ? "@" : "", dir);
        memcpy(addr.sun_path, path, strlen(path));
        if (abstract)
            addr.sun_path[0] = '\0';
        socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
        assert_int_equal(bind(fd, (struct sockaddr *)&addr, len), 0);
        setenv("NOTIFY_SOCKET", path, 1);
        notify_send("READY=1\nSTATUS=up");
        assert_int_equal(recv(fd, got, sizeof(got), MSG_DONTWAIT), 17);
        assert_memory_equal(got, "READY=1\nSTATUS=up", 17);
        close(fd);
        if (!abstract)
            unlink(path);
    }
    notify_send("READY=1"); /* nobody listens any more */
    setenv("NOTIFY_SOCKET", "nonsense", 1);
    notify_send("READY=1");
    unsetenv("NOTIFY_SOCKET");
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probes),
        cmocka_unit_test(test_phases),
        cmocka_unit_test(test_token),
        cmocka_unit_test(test_other_paths_and_methods),
        cmocka_unit_test(test_keep_alive),
        cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_idle_connections),
        cmocka_unit_test(test_metrics_are_valid),
        cmocka_unit_test(test_metrics_values),
        cmocka_unit_test(test_start_errors),
        cmocka_unit_test(test_all_addresses),
        cmocka_unit_test(test_notify),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
