#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tiercel/clock.h"
#include "tiercel/stats.h"

#include "cmd/cmd_priv.h"

/* LATENCY: the delays of named events, and histograms per command. Events are shared by all
 * workers behind a mutex; histograms are read from the workers' own counters. */

#define EVENTS_MAX 16 /* their names are ours: command, fast-command, ... */
#define SAMPLES 160   /* kept per event, as Redis does */

struct sample {
    int64_t time_s, ms;
};

struct event {
    char name[32];
    unsigned next; /* where the next sample goes */
    int64_t max_ms;
    struct sample sample[SAMPLES];
};

#define RATE_SAMPLES 16

struct latency {
    pthread_mutex_t lock;
    int n;
    struct event event[EVENTS_MAX];
    struct rate_sample {
        int64_t mono_ms;
        uint64_t commands, input, output;
    } rate[RATE_SAMPLES]; /* taken when INFO is asked for; `rate_next` is the oldest */
    unsigned rate_next;
};

struct latency *latency_create(void)
{
    struct latency *l = mem_calloc(MEM_OTHER, sizeof(*l));
    pthread_mutex_init(&l->lock, NULL);
    l->rate[l->rate_next++].mono_ms = clock_mono_ms();
    return l;
}

void latency_destroy(struct latency *l)
{
    pthread_mutex_destroy(&l->lock);
    mem_free(MEM_OTHER, l);
}

static struct event *find_locked(struct latency *l, struct slice name)
{
    for (int i = 0; i < l->n; i++) {
        if (slice_eq(slice_str(l->event[i].name), name))
            return &l->event[i];
    }
    return NULL;
}

static struct sample *newest(struct event *e)
{
    return &e->sample[(e->next + SAMPLES - 1) % SAMPLES];
}

/* Samples of one second become one, with the highest of their delays. */
static void event_add(struct event *e, int64_t time_s, int64_t ms)
{
    if (ms > e->max_ms)
        e->max_ms = ms;
    struct sample *last = newest(e);
    if (last->time_s == time_s) {
        if (ms > last->ms)
            last->ms = ms;
        return;
    }
    e->sample[e->next] = (struct sample){time_s, ms};
    e->next = (e->next + 1) % SAMPLES;
}

void latency_add(struct cmd *cmd, const char *name, int64_t ms)
{
    struct latency *l = cmd->latency;
    pthread_mutex_lock(&l->lock);
    struct event *e = find_locked(l, slice_str(name));
    if (!e && l->n < EVENTS_MAX) {
        e = &l->event[l->n++];
        *e = (struct event){0};
        snprintf(e->name, sizeof(e->name), "%s", name);
    }
    if (e)
        event_add(e, clock_wall_ms() / 1000, ms);
    pthread_mutex_unlock(&l->lock);
}

/* The samples of an event from the oldest on; returns how many. */
static int event_samples(const struct event *e, struct sample *out)
{
    int n = 0;
    for (unsigned i = 0; i < SAMPLES; i++) {
        const struct sample *s = &e->sample[(e->next + i) % SAMPLES];
        if (s->time_s)
            out[n++] = *s;
    }
    return n;
}

/* A copy to work on without the lock; false: no such event. */
static bool event_copy(struct latency *l, struct slice name, struct event *out)
{
    pthread_mutex_lock(&l->lock);
    struct event *e = find_locked(l, name);
    if (e)
        *out = *e;
    pthread_mutex_unlock(&l->lock);
    return e != NULL;
}

/* ---- LATEST, HISTORY, RESET ---- */

void cmd_latency_latest(struct call *c)
{
    struct latency *l = c->w->cmd->latency;
    pthread_mutex_lock(&l->lock);
    reply_array(&c->r, l->n);
    for (int i = 0; i < l->n; i++) {
        struct event *e = &l->event[i];
        reply_array(&c->r, 4);
        reply_bulk_str(&c->r, e->name);
        reply_int(&c->r, newest(e)->time_s);
        reply_int(&c->r, newest(e)->ms);
        reply_int(&c->r, e->max_ms);
    }
    pthread_mutex_unlock(&l->lock);
}

void cmd_latency_history(struct call *c)
{
    struct event e;
    struct sample s[SAMPLES];
    int n = event_copy(c->w->cmd->latency, c->argv[2], &e) ? event_samples(&e, s) : 0;
    reply_array(&c->r, n);
    for (int i = 0; i < n; i++) {
        reply_array(&c->r, 2);
        reply_int(&c->r, s[i].time_s);
        reply_int(&c->r, s[i].ms);
    }
}

void cmd_latency_reset(struct call *c)
{
    struct latency *l = c->w->cmd->latency;
    int dropped = 0;
    pthread_mutex_lock(&l->lock);
    if (c->argc == 2) {
        dropped = l->n;
        l->n = 0;
    }
    for (int i = 2; i < c->argc; i++) {
        struct event *e = find_locked(l, c->argv[i]);
        if (e) {
            *e = l->event[--l->n];
            dropped++;
        }
    }
    pthread_mutex_unlock(&l->lock);
    reply_int(&c->r, dropped);
}

/* ---- GRAPH ---- */

#define GRAPH_ROWS 4
#define GRAPH_WIDTH 80
#define AGE_MAX 12 /* characters of "123456789d" */

static int age_text(char out[AGE_MAX], int64_t seconds)
{
    static const struct {
        int64_t span;
        char unit;
    } units[] = {{86400, 'd'}, {3600, 'h'}, {60, 'm'}, {1, 's'}};
    int i = 0;
    while (i < 3 && seconds < units[i].span)
        i++;
    return snprintf(out, AGE_MAX, "%" PRId64 "%c", seconds / units[i].span % 1000000, units[i].unit);
}

/* Each row of text stands for three steps of height. */
static char graph_cell(int level, int row)
{
    int within = level - 3 * row;
    return within < 0 ? ' ' : within < 3 ? "_o#"[within] : '|';
}

static void graph_draw(struct buf *b, const struct sample *s, int n, int64_t low, int64_t high, int64_t now_s)
{
    char age[GRAPH_WIDTH][AGE_MAX];
    int deepest = 0;
    for (int row = GRAPH_ROWS - 1; row >= 0; row--) {
        for (int i = 0; i < n; i++) {
            double share = high > low ? (double)(s[i].ms - low) / (double)(high - low) : 0;
            buf_byte(b, graph_cell((int)(share * (3 * GRAPH_ROWS - 1) + 0.5), row));
        }
        buf_byte(b, '\n');
    }
    for (int i = 0; i < n; i++) {
        int len = age_text(age[i], now_s - s[i].time_s);
        deepest = len > deepest ? len : deepest;
    }
    buf_byte(b, '\n');
    for (int row = 0; row < deepest; row++) {
        for (int i = 0; i < n; i++)
            buf_byte(b, row < (int)strlen(age[i]) ? age[i][row] : ' ');
        buf_byte(b, '\n');
    }
}

void cmd_latency_graph(struct call *c)
{
    struct event e;
    struct sample s[SAMPLES];
    struct buf b;
    if (!event_copy(c->w->cmd->latency, c->argv[2], &e)) {
        call_errorf(c, "ERR No samples available for event '%.*s'", SLICE_FMT(c->argv[2]));
        return;
    }
    int n = event_samples(&e, s);
    int skip = n > GRAPH_WIDTH ? n - GRAPH_WIDTH : 0;
    int64_t low = INT64_MAX, high = 0;
    for (int i = skip; i < n; i++) {
        low = s[i].ms < low ? s[i].ms : low;
        high = s[i].ms > high ? s[i].ms : high;
    }
    buf_init(&b, MEM_OTHER);
    buf_printf(&b, "%s - high %" PRId64 " ms, low %" PRId64 " ms (all time high %" PRId64 " ms)\n", e.name, high, low,
               e.max_ms);
    for (int i = 0; i < GRAPH_WIDTH; i++)
        buf_byte(&b, '-');
    buf_byte(&b, '\n');
    graph_draw(&b, s + skip, n - skip, low, high, c->now_ms / 1000);
    reply_verbatim(&c->r, buf_slice(&b), "txt");
    buf_deinit(&b);
}

/* ---- DOCTOR ---- */

static void doctor_event(struct buf *b, int number, const struct event *e)
{
    struct sample s[SAMPLES];
    int n = event_samples(e, s);
    int64_t sum = 0, deviation = 0;
    for (int i = 0; i < n; i++)
        sum += s[i].ms;
    int64_t mean = n ? sum / n : 0;
    for (int i = 0; i < n; i++)
        deviation += llabs(s[i].ms - mean);
    double period = n > 1 ? (double)(s[n - 1].time_s - s[0].time_s) / (n - 1) : 0;
    buf_printf(b,
               "%d. %s: %d latency spikes (average %" PRId64 "ms, mean deviation %" PRId64
               "ms, period %.2f sec). Worst all time event %" PRId64 "ms.\n",
               number, e->name, n, mean, n ? deviation / n : 0, period, e->max_ms);
}

static void doctor_report(struct call *c, struct buf *b)
{
    struct latency *l = c->w->cmd->latency;
    const struct conf *conf = c->w->conf;
    if (conf->latency_monitor_threshold == 0) {
        buf_printf(b, "Latency monitoring is off. CONFIG SET latency-monitor-threshold <milliseconds> turns it on.\n");
        return;
    }
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < l->n; i++)
        doctor_event(b, i + 1, &l->event[i]);
    int n = l->n;
    pthread_mutex_unlock(&l->lock);
    if (n == 0) {
        buf_printf(b, "No command took longer than %" PRId64 " ms since latency was last reset.\n",
                   conf->latency_monitor_threshold);
        return;
    }
    if (conf->slowlog_log_slower_than < 0 || conf->slowlog_log_slower_than > conf->latency_monitor_threshold * 1000)
        buf_printf(b,
                   "\nThe slow log leaves out some of these: CONFIG SET slowlog-log-slower-than %" PRId64
                   " lets it show the commands.\n",
                   conf->latency_monitor_threshold * 1000);
    else
        buf_printf(b, "\nSLOWLOG GET shows which commands these were.\n");
}

void cmd_latency_doctor(struct call *c)
{
    struct buf b;
    buf_init(&b, MEM_OTHER);
    doctor_report(c, &b);
    reply_verbatim(&c->r, buf_slice(&b), "txt");
    buf_deinit(&b);
}

/* ---- HISTOGRAM ---- */

void cmd_stat_sum(const struct cmd *cmd, int id, struct cmd_stat_sum *out)
{
    *out = (struct cmd_stat_sum){0};
    for (int i = 0; i < cmd->nworkers; i++) {
        struct cmd_stat *st = &cmd->workers[i]->cmd_worker->stat[id];
        out->calls += atomic_load_explicit(&st->calls, memory_order_relaxed);
        out->usec += atomic_load_explicit(&st->usec, memory_order_relaxed);
        out->rejected += atomic_load_explicit(&st->rejected, memory_order_relaxed);
        out->failed += atomic_load_explicit(&st->failed, memory_order_relaxed);
        for (int k = 0; k < CMD_HIST_BUCKETS; k++)
            out->hist[k] += atomic_load_explicit(&st->hist[k], memory_order_relaxed);
    }
    for (int k = 0; k < CMD_HIST_BUCKETS; k++)
        out->samples += out->hist[k];
}

void cmd_memory_latency(const struct cmd *cmd, struct stats_hist_sum *out)
{
    *out = (struct stats_hist_sum){0};
    for (int id = 0; id < command_count; id++) {
        struct cmd_stat_sum sum;
        if (command_table[id].access == KEY_NONE || command_table[id].flags & (CMD_BLOCKING | CMD_SCRIPT))
            continue;
        cmd_stat_sum(cmd, id, &sum);
        for (int k = 0; k < CMD_HIST_BUCKETS; k++)
            out->bucket[k] += sum.hist[k];
        out->us += sum.usec;
    }
}

static void reply_histogram(struct reply *r, const struct command *cmd, const struct cmd_stat_sum *sum)
{
    uint64_t so_far = 0;
    int filled = 0;
    reply_bulk_str(r, cmd->full);
    reply_map(r, 2);
    reply_bulk_str(r, "calls");
    reply_int(r, (int64_t)sum->samples);
    reply_bulk_str(r, "histogram_usec");
    for (int k = 0; k < CMD_HIST_BUCKETS; k++)
        filled += sum->hist[k] != 0;
    reply_map(r, filled);
    for (int k = 0; k < CMD_HIST_BUCKETS; k++) {
        so_far += sum->hist[k];
        if (sum->hist[k]) {
            reply_int(r, INT64_C(1) << k);
            reply_int(r, (int64_t)so_far);
        }
    }
}

/* Is the command asked for: by no name at all, its own, or its container's? */
static bool is_wanted(const struct call *c, const struct command *cmd)
{
    if (c->argc == 2)
        return true;
    for (int i = 2; i < c->argc; i++) {
        const struct command *named = command_find_full(c->argv[i]);
        if (named && (named == cmd || named->id == cmd->container))
            return true;
    }
    return false;
}

void cmd_latency_histogram(struct call *c)
{
    struct chain found;
    struct reply r = {&found, c->r.proto};
    int n = 0;
    chain_init(&found);
    for (int id = 0; id < command_count; id++) {
        struct cmd_stat_sum sum;
        if (!is_wanted(c, &command_table[id]))
            continue;
        cmd_stat_sum(c->w->cmd, id, &sum);
        if (sum.samples == 0)
            continue;
        reply_histogram(&r, &command_table[id], &sum);
        n++;
    }
    reply_map(&c->r, n);
    chain_move(c->r.out, &found);
    chain_deinit(&found);
}

/* ---- rates, for INFO ---- */

#define RATE_STEP_MS 100
#define RATE_SPAN_MS 1000

static struct rate_sample *rate_at(struct latency *l, unsigned back)
{
    return &l->rate[(l->rate_next + RATE_SAMPLES - back) % RATE_SAMPLES];
}

/* Where the rate is measured from: the newest sample that is a second old, else the oldest. */
static struct rate_sample rate_base_locked(struct latency *l, int64_t now_ms)
{
    struct rate_sample base = {0};
    for (unsigned back = 1; back <= RATE_SAMPLES && rate_at(l, back)->mono_ms; back++) {
        base = *rate_at(l, back);
        if (now_ms - base.mono_ms >= RATE_SPAN_MS)
            break;
    }
    return base;
}

void rates_get(struct cmd *cmd, struct rates *out)
{
    struct latency *l = cmd->latency;
    struct rate_sample now = {clock_mono_ms(), stats_sum(STAT_total_commands_processed),
                              stats_sum(STAT_total_net_input_bytes), stats_sum(STAT_total_net_output_bytes)};
    *out = (struct rates){0};
    pthread_mutex_lock(&l->lock);
    struct rate_sample last = *rate_at(l, 1);
    if (now.commands < last.commands) /* CONFIG RESETSTAT */
        memset(l->rate, 0, sizeof(l->rate));
    struct rate_sample base = rate_base_locked(l, now.mono_ms);
    if (now.mono_ms - last.mono_ms >= RATE_STEP_MS) {
        l->rate[l->rate_next] = now;
        l->rate_next = (l->rate_next + 1) % RATE_SAMPLES;
    }
    pthread_mutex_unlock(&l->lock);
    int64_t ms = now.mono_ms - base.mono_ms;
    if (base.mono_ms == 0 || ms < RATE_STEP_MS)
        return;
    out->commands = (int64_t)(now.commands - base.commands) * 1000 / ms;
    out->input_kb = (double)(now.input - base.input) * 1000 / 1024 / (double)ms;
    out->output_kb = (double)(now.output - base.output) * 1000 / 1024 / (double)ms;
}
