#include <inttypes.h>
#include <stdlib.h>

#include "loadgen.h"
#include "tiercel/check.h"
#include "tiercel/version.h"

#define US(ns) ((double)(ns) / 1000)

static const struct {
    const char *title, *json;
    double share;
} shares[] = {
    {"p50", "p50", 0.5},       {"p90", "p90", 0.9},          {"p99", "p99", 0.99},
    {"p99.9", "p99_9", 0.999}, {"p99.99", "p99_99", 0.9999},
};
#define SHARES (sizeof(shares) / sizeof(shares[0]))

static const char *with_commas(uint64_t v, char out[32])
{
    char digits[32];
    int n = snprintf(digits, sizeof(digits), "%" PRIu64, v), to = 0;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0)
            out[to++] = ',';
        out[to++] = digits[i];
    }
    out[to] = '\0';
    return out;
}

static void add_up(struct hist *all, uint64_t sum[4], const struct test *t, const struct thread_stats *s)
{
    for (unsigned i = 0; i < t->stats; i++) {
        const struct command_stats *c = &s->command[i];
        hist_add(all, &c->latency);
        sum[0] += __atomic_load_n(&c->hits, __ATOMIC_RELAXED);
        sum[1] += __atomic_load_n(&c->misses, __ATOMIC_RELAXED);
        sum[2] += __atomic_load_n(&c->errors, __ATOMIC_RELAXED);
        sum[3] += __atomic_load_n(&c->wrong, __ATOMIC_RELAXED);
    }
}

/* ---- while it runs ---- */

void report_progress(struct progress *pr, const struct plan *p, struct client *const *clients, double interval)
{
    uint64_t sum[4] = {0}, replies = 0;
    char count[32], extra[160];
    int n = 0;

    memset(&pr->now, 0, sizeof(pr->now));
    for (unsigned i = 0; i < p->opt->threads; i++) {
        const struct thread_stats *s = client_stats(clients[i]);
        add_up(&pr->now, sum, p->test, s);
        replies += __atomic_load_n(&s->replies, __ATOMIC_RELAXED);
    }
    hist_since(&pr->since, &pr->now, &pr->before);
    extra[0] = '\0';
    static const char *const names[] = {"misses", "errors", "wrong"};
    for (int i = 0; i < 3; i++)
        if (sum[i + 1] && n < (int)sizeof(extra))
            n += snprintf(extra + n, sizeof(extra) - (size_t)n, "  %s %" PRIu64, names[i], sum[i + 1]);
    fprintf(stderr, "%s%.40s: %.0f s%s  %s requests/s  p50 %.0f us  p99 %.0f us  max %.0f us%s%s", pr->tty ? "\r" : "",
            p->test->name, (double)(now_ns() - p->start_ns) / 1e9, pr->now.count ? "" : " (warming up)",
            with_commas((uint64_t)((double)(replies - pr->replies) / interval), count),
            US(hist_percentile(&pr->since, 0.5)), US(hist_percentile(&pr->since, 0.99)), US(pr->since.max), extra,
            pr->tty ? "\033[K" : "\n");
    fflush(stderr);
    pr->before = pr->now;
    pr->replies = replies;
}

/* ---- text ---- */

static void text_latency(FILE *out, const char *name, uint64_t count, const struct hist *h)
{
    char n[32];
    fprintf(out, "  %-14.14s %13s %9.1f %9.1f", name, with_commas(count, n), US(h->min), US(hist_mean(h)));
    for (unsigned i = 0; i < SHARES; i++)
        fprintf(out, " %9.1f", US(hist_percentile(h, shares[i].share)));
    fprintf(out, " %9.1f\n", US(h->max));
}

static void text_head(FILE *out)
{
    fprintf(out, "  %-14s %13s %9s %9s", "latency, us", "requests", "min", "mean");
    for (unsigned i = 0; i < SHARES; i++)
        fprintf(out, " %9s", shares[i].title);
    fprintf(out, " %9s\n", "max");
}

static void text_counts(FILE *out, const struct options *o, const struct result *r, const uint64_t sum[4])
{
    char n[4][32];

    if (sum[0] || sum[1])
        fprintf(out, "  keys found %s, missed %s (hit ratio %.4f)\n", with_commas(sum[0], n[0]),
                with_commas(sum[1], n[1]), (double)sum[0] / (double)(sum[0] + sum[1]));
    if (o->verify)
        fprintf(out, "  wrong values %s%s%s\n", with_commas(sum[3], n[0]), sum[3] ? "; the first: " : "",
                r->first_wrong);
    if (sum[2] || r->first_error[0])
        fprintf(out, "  error replies %s; the first: %s\n", with_commas(sum[2], n[0]), r->first_error);
    if (r->total.unsent)
        fprintf(out, "  not sent: %s requests that were due before the end\n", with_commas(r->total.unsent, n[0]));
}

static double generator_share(const struct options *o, const struct result *r)
{
    return r->wall_seconds > 0 ? r->cpu_seconds / r->wall_seconds / o->threads : 0;
}

static double per_second(const struct result *r)
{
    return r->seconds > 0 ? (double)r->requests / r->seconds : 0;
}

void report_text(const struct options *o, const struct test *t, const struct result *r, FILE *out)
{
    uint64_t sum[4] = {0};
    struct hist *all = calloc(1, sizeof(*all));
    char n[2][32];

    CHECK(all);
    add_up(all, sum, t, &r->total);
    if (o->quiet) {
        fprintf(out,
                "%s: %.0f requests/s, p50 %.1f us, p99 %.1f us, p99.9 %.1f us, misses %" PRIu64 ", errors %" PRIu64,
                t->name, per_second(r), US(hist_percentile(all, 0.5)), US(hist_percentile(all, 0.99)),
                US(hist_percentile(all, 0.999)), sum[1], sum[2]);
        if (o->verify)
            fprintf(out, ", wrong %" PRIu64, sum[3]);
        fputc('\n', out);
        free(all);
        return;
    }
    fprintf(out, "%s: %s requests in %.2f s, %s requests/s%s\n", t->name, with_commas(r->requests, n[0]), r->seconds,
            with_commas((uint64_t)(per_second(r) + 0.5), n[1]), r->interrupted ? " (interrupted)" : "");
    text_counts(out, o, r, sum);
    text_head(out);
    for (unsigned i = 0; i < t->stats; i++)
        if (r->total.command[i].latency.count)
            text_latency(out, t->stats_name[i], r->total.command[i].latency.count, &r->total.command[i].latency);
    if (t->stats > 1)
        text_latency(out, "all", r->requests, all);
    if (r->total.send_delay.count)
        text_latency(out, "(sent late by)", r->total.send_delay.count, &r->total.send_delay);
    if (generator_share(o, r) > 0.97 && !o->spin)
        fprintf(out, "  this program used %.0f %% of a core per thread: it may have been the limit\n",
                generator_share(o, r) * 100);
    fputc('\n', out);
    free(all);
}

/* ---- JSON ---- */

struct json_report {
    FILE *file;
    unsigned tests;
};

static void json_string(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < 32 || c > 126)
            fprintf(f, "\\u%04x", c); /* bytes as Latin-1: always valid */
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void json_latency(FILE *f, const char *name, const struct hist *h)
{
    fprintf(f, "\"%s\": {\"min\": %.3f, \"mean\": %.3f", name, US(h->min), US(hist_mean(h)));
    for (unsigned i = 0; i < SHARES; i++)
        fprintf(f, ", \"%s\": %.3f", shares[i].json, US(hist_percentile(h, shares[i].share)));
    fprintf(f, ", \"max\": %.3f}", US(h->max));
}

static void json_counts(FILE *f, const uint64_t sum[4])
{
    fprintf(f, "\"hits\": %" PRIu64 ", \"misses\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"wrong\": %" PRIu64 ", ",
            sum[0], sum[1], sum[2], sum[3]);
}

struct json_report *json_open(const char *path, const struct options *o, const char *target)
{
    static const char *const orders[] = {[KEYS_SEQUENTIAL] = "seq", [KEYS_UNIFORM] = "uniform", [KEYS_ZIPF] = "zipf"};
    struct json_report *j = calloc(1, sizeof(*j));

    CHECK(j);
    j->file = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (!j->file) {
        free(j);
        return NULL;
    }
    fprintf(j->file, "{\n \"program\": \"" NAME "\",\n \"version\": \"" TIERCEL_VERSION "\",\n \"server\": ");
    json_string(j->file, target);
    fprintf(j->file,
            ",\n \"options\": {\"connections\": %u, \"threads\": %u, \"pipeline\": %u, \"requests\": %" PRIu64
            ", \"seconds\": %g, \"warmup\": %g, \"rate\": %g, \"keys\": %" PRIu64 ", \"order\": \"%s\", \"zipf\": %g"
            ", \"trace\": ",
            o->connections, o->threads, o->pipeline, o->requests, o->seconds, o->warmup, o->rate, o->keys,
            o->trace ? "trace" : orders[o->order], o->order == KEYS_ZIPF ? o->zipf : 0);
    json_string(j->file, o->trace ? o->trace : "");
    fprintf(j->file,
            ", \"key_size\": %u, \"value_size_min\": %" PRIu64 ", \"value_size_max\": %" PRIu64
            ", \"values\": \"%s\"},\n"
            " \"tests\": [",
            o->key_size, o->sizes.min, o->sizes.max, o->kind == VALUE_JSON ? "json" : "random");
    return j;
}

void json_test(struct json_report *j, const struct options *o, const struct test *t, const struct result *r)
{
    FILE *f = j->file;
    uint64_t sum[4] = {0};
    struct hist *all = calloc(1, sizeof(*all));

    CHECK(all);
    add_up(all, sum, t, &r->total);
    fprintf(f, "%s\n  {\"name\": ", j->tests++ ? "," : "");
    json_string(f, t->name);
    fprintf(f,
            ", \"open_loop\": %s, \"interrupted\": %s, \"requests\": %" PRIu64 ", \"seconds\": %.6f"
            ", \"requests_per_second\": %.1f, ",
            o->rate > 0 && !t->is_fill ? "true" : "false", r->interrupted ? "true" : "false", r->requests, r->seconds,
            per_second(r));
    json_counts(f, sum);
    fprintf(f, "\"unsent\": %" PRIu64 ", \"bytes_sent\": %" PRIu64 ", \"bytes_received\": %" PRIu64 ", ",
            r->total.unsent, r->total.bytes_out, r->total.bytes_in);
    fprintf(f, "\"generator_cpu\": %.3f,\n   \"first_error\": ", generator_share(o, r));
    json_string(f, r->first_error);
    fprintf(f, ", \"first_wrong\": ");
    json_string(f, r->first_wrong);
    fprintf(f, ",\n   ");
    json_latency(f, "latency_us", all);
    if (r->total.send_delay.count) {
        fprintf(f, ",\n   ");
        json_latency(f, "send_delay_us", &r->total.send_delay);
    }
    fprintf(f, ",\n   \"commands\": {");
    for (unsigned i = 0; i < t->stats; i++) {
        const struct command_stats *c = &r->total.command[i];
        uint64_t own[4] = {c->hits, c->misses, c->errors, c->wrong};
        fprintf(f, "%s\n    ", i ? "," : "");
        json_string(f, t->stats_name[i]);
        fprintf(f, ": {\"requests\": %" PRIu64 ", ", c->latency.count);
        json_counts(f, own);
        json_latency(f, "latency_us", &c->latency);
        fputc('}', f);
    }
    fprintf(f, "}}");
    free(all);
}

bool json_close(struct json_report *j)
{
    fprintf(j->file, "\n ]\n}\n");
    bool ok = fflush(j->file) == 0 && !ferror(j->file);
    if (j->file != stdout)
        ok = fclose(j->file) == 0 && ok;
    free(j);
    return ok;
}
