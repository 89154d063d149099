/* Runs the tests one after another: makes the threads, starts them together, watches them, adds up. */
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "loadgen.h"
#include "tiercel/check.h"

#define FILL_PIPELINE 16
#define SPARE_FILES 64

struct watch {
    struct plan *plan;
    struct client **clients;
    uv_loop_t loop;
    uv_async_t done;
    uv_timer_t timer;
    uv_signal_t interrupt, terminate;
    struct progress *progress; /* NULL: not wanted */
    uint64_t last_ns, last_replies, answered_ns;
    bool interrupted;
};

__attribute__((noreturn)) static void fail(const char *what, const char *why)
{
    fprintf(stderr, NAME ": %s: %s\n", what, why);
    exit(1);
}

/* ---- while a test runs ---- */

static void wake_all(struct watch *w)
{
    for (unsigned i = 0; i < w->plan->opt->threads; i++)
        client_wake(w->clients[i]);
}

static void on_done(uv_async_t *async)
{
    struct watch *w = async->data;

    if (w->plan->failed)
        wake_all(w);
    if (w->plan->running == 0)
        uv_stop(&w->loop);
}

static void on_signal(uv_signal_t *handle, int signo)
{
    struct watch *w = handle->data;
    (void)signo;
    if (w->interrupted)
        _exit(130); /* asked twice */
    w->interrupted = true;
    w->plan->stop = true;
    wake_all(w);
}

static void on_second(uv_timer_t *timer)
{
    struct watch *w = timer->data;
    struct plan *p = w->plan;
    uint64_t now = now_ns(), replies = 0, inflight = 0;

    for (unsigned i = 0; i < p->opt->threads; i++) {
        const struct thread_stats *s = client_stats(w->clients[i]);
        replies += __atomic_load_n(&s->replies, __ATOMIC_RELAXED);
        inflight += __atomic_load_n(&s->inflight, __ATOMIC_RELAXED);
    }
    if (replies != w->last_replies || inflight == 0)
        w->answered_ns = now;
    w->last_replies = replies;
    if ((double)(now - w->answered_ns) > p->opt->timeout * 1e9) {
        plan_fail(p, "%s has not answered for %g s; %llu requests are under way", p->target, p->opt->timeout,
                  (unsigned long long)inflight);
        wake_all(w);
    } else if (w->progress) {
        report_progress(w->progress, p, w->clients, (double)(now - w->last_ns) / 1e9);
    }
    w->last_ns = now;
}

static void watch_start(struct watch *w)
{
    uv_signal_init(&w->loop, &w->interrupt);
    uv_signal_init(&w->loop, &w->terminate);
    uv_timer_init(&w->loop, &w->timer);
    w->interrupt.data = w->terminate.data = w->timer.data = w->done.data = w;
    uv_signal_start(&w->interrupt, on_signal, SIGINT);
    uv_signal_start(&w->terminate, on_signal, SIGTERM);
    uv_timer_start(&w->timer, on_second, 1000, 1000);
    w->last_ns = w->answered_ns = w->plan->start_ns;
}

static void watch_end(struct watch *w)
{
    if (w->progress && w->progress->tty)
        fputs("\r\033[K", stderr);
    uv_close((uv_handle_t *)&w->interrupt, NULL);
    uv_close((uv_handle_t *)&w->terminate, NULL);
    uv_close((uv_handle_t *)&w->timer, NULL);
    uv_close((uv_handle_t *)&w->done, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&w->loop) == 0);
}

/* ---- a test ---- */

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void add_stats(struct result *r, const struct thread_stats *s, unsigned commands)
{
    for (unsigned i = 0; i < commands; i++) {
        struct command_stats *to = &r->total.command[i];
        const struct command_stats *from = &s->command[i];
        hist_add(&to->latency, &from->latency);
        to->hits += from->hits;
        to->misses += from->misses;
        to->errors += from->errors;
        to->wrong += from->wrong;
        r->wrong += from->wrong;
        r->requests += from->latency.count;
    }
    hist_add(&r->total.send_delay, &s->send_delay);
    r->total.bytes_out += s->bytes_out;
    r->total.bytes_in += s->bytes_in;
    r->total.unsent += s->unsent;
    if (s->end_ns > r->total.end_ns)
        r->total.end_ns = s->end_ns;
}

/* false: plan->error says why. */
static bool run_test(struct plan *p, bool progress, struct result *r)
{
    const struct options *o = p->opt;
    struct client **clients = calloc(o->threads, sizeof(struct client *));
    struct watch w = {.plan = p, .clients = clients};
    uint64_t warmup = p->test->is_fill ? 0 : (uint64_t)(o->warmup * 1e9);

    CHECK(clients && uv_loop_init(&w.loop) == 0 && uv_async_init(&w.loop, &w.done, on_done) == 0);
    p->done = &w.done;
    p->running = o->threads;
    CHECK(uv_mutex_init(&p->lock) == 0 && uv_barrier_init(&p->connected, o->threads + 1) == 0);
    for (unsigned i = 0; i < o->threads; i++)
        clients[i] = client_create(p, i);
    uv_barrier_wait(&p->connected);
    double cpu = cpu_seconds();
    p->start_ns = now_ns();
    watch_start(&w);
    uv_barrier_wait(&p->connected);
    if (progress) {
        w.progress = calloc(1, sizeof(*w.progress));
        CHECK(w.progress);
        w.progress->tty = isatty(STDERR_FILENO);
    }
    uv_run(&w.loop, UV_RUN_DEFAULT);
    for (unsigned i = 0; i < o->threads; i++)
        client_join(clients[i]);
    r->cpu_seconds = cpu_seconds() - cpu;
    r->wall_seconds = (double)(now_ns() - p->start_ns) / 1e9;
    r->interrupted = w.interrupted;
    for (unsigned i = 0; i < o->threads; i++) {
        add_stats(r, client_stats(clients[i]), p->test->stats);
        client_destroy(clients[i]);
    }
    if (r->total.end_ns > p->start_ns + warmup)
        r->seconds = (double)(r->total.end_ns - p->start_ns - warmup) / 1e9;
    snprintf(r->first_error, sizeof(r->first_error), "%s", p->first_error);
    snprintf(r->first_wrong, sizeof(r->first_wrong), "%s", p->first_wrong);
    watch_end(&w);
    uv_barrier_destroy(&p->connected);
    uv_mutex_destroy(&p->lock);
    free(w.progress);
    free(clients);
    return !p->failed;
}

/* ---- the server's address, the trace ---- */

static void resolve(const struct options *o, struct plan *p)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char port[16];

    if (o->socket) {
        snprintf(p->target, sizeof(p->target), "%.255s", o->socket);
        return;
    }
    snprintf(port, sizeof(port), "%u", o->port);
    snprintf(p->target, sizeof(p->target), strchr(o->host, ':') ? "[%.255s]:%s" : "%.255s:%s", o->host, port);
    int rc = getaddrinfo(o->host, port, &hints, &found);
    if (rc != 0)
        fail(o->host, gai_strerror(rc));
    memcpy(&p->addr, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
}

/* The largest value that will be set. */
static uint64_t load_trace(struct options *o, struct trace *trace)
{
    uint64_t largest = o->sizes.max;
    char err[256];

    if (!o->trace)
        return largest;
    if (!trace_load(o->trace, trace, err))
        fail(o->trace, err);
    o->keys = trace->keys;
    for (size_t i = 0; i < trace->len; i++)
        if (trace->access[i].size > largest)
            largest = trace->access[i].size;
    return largest;
}

static void check_key_size(const struct options *o)
{
    unsigned digits = (unsigned)snprintf(NULL, 0, "%llu", (unsigned long long)(o->first_key + o->keys - 1));
    if (strlen(o->key_prefix) + digits > o->key_size)
        options_fail("--key-size %u: prefix '%s' and %u digits do not fit", o->key_size, o->key_prefix, digits);
    if (o->kind == VALUE_JSON && strpbrk(o->key_prefix, "\"\\"))
        options_fail("--key-prefix: no quotes or backslashes with --values json");
}

static void raise_file_limit(const struct options *o)
{
    struct rlimit lim;
    if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < o->connections + SPARE_FILES) {
        lim.rlim_cur = lim.rlim_max < o->connections + SPARE_FILES ? lim.rlim_max : o->connections + SPARE_FILES;
        setrlimit(RLIMIT_NOFILE, &lim);
    }
}

static void report(const struct options *o, const struct plan *p, const struct result *r, struct json_report *json)
{
    report_text(o, p->test, r, json && strcmp(o->json, "-") == 0 ? stderr : stdout);
    fflush(stdout);
    if (json)
        json_test(json, o, p->test, r);
}

int main(int argc, char **argv)
{
    struct options o;
    struct plan base = {.opt = &o};
    struct trace trace = {0};
    struct json_report *json = NULL;
    int rc = 0;

    options_parse(&o, argc, argv);
    signal(SIGPIPE, SIG_IGN);
    uint64_t largest = load_trace(&o, &trace);
    check_key_size(&o);
    struct test *tests = calloc(TESTS_MAX, sizeof(*tests));
    struct result *r = malloc(sizeof(*r));
    CHECK(tests && r);
    unsigned n = tests_parse(&o, largest, tests);
    resolve(&o, &base);
    raise_file_limit(&o);
    if (o.json && !(json = json_open(o.json, &o, base.target)))
        fail(o.json, strerror(errno));
    struct value_source *values = value_source_create(o.kind);
    for (unsigned i = 0; i < n && rc == 0; i++) {
        struct plan p = base;
        p.test = &tests[i];
        p.values = values;
        p.trace = o.trace ? &trace : NULL;
        p.pipeline = tests[i].is_fill && o.pipeline < FILL_PIPELINE ? FILL_PIPELINE : o.pipeline;
        p.one_pass = tests[i].is_fill || (!o.requests && o.seconds == 0);
        memset(r, 0, sizeof(*r));
        if (!run_test(&p, o.progress > 0 || (o.progress < 0 && !o.quiet && isatty(STDERR_FILENO)), r)) {
            fflush(stdout);
            fprintf(stderr, NAME ": %s\n", p.error);
            rc = 1;
        }
        if (rc == 0 || r->requests)
            report(&o, &p, r, json);
        if (rc == 0)
            rc = r->interrupted ? 130 : r->wrong ? 1 : 0;
    }
    if (json && !json_close(json))
        fail(o.json, strerror(errno));
    value_source_destroy(values);
    tests_free(tests, n);
    trace_unload(&trace);
    free(tests);
    free(r);
    return rc;
}
