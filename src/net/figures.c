/* What /metrics and /readyz say, gathered from all layers. The HTTP thread. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include "tiercel/clock.h"
#include "tiercel/disk.h"
#include "tiercel/http.h"
#include "tiercel/machine.h"
#include "tiercel/stats.h"
#include "tiercel/tier.h"
#include "tiercel/upstream.h"
#include "tiercel/warm.h"

#include "tiercel/cmd.h"
#include "tiercel/figures.h"

static double seconds(struct timeval tv)
{
    return (double)tv.tv_sec + (double)tv.tv_usec / 1e6;
}

static size_t list_dbs(struct cmd *cmd, struct metrics_db *out)
{
    struct mem *m = cmd->tier->mem;
    size_t n = 0;

    for (unsigned i = 0; i < m->databases; i++) {
        int64_t keys = 0, expires = 0;
        for (unsigned k = i; k < m->spaces; k += m->databases) { /* copies of an upstream's keys, and local ones */
            keys += atomic_load(&m->db[k].keys);
            expires += atomic_load(&m->db[k].expires);
        }
        if (keys > 0)
            out[n++] = (struct metrics_db){(int)i, (uint64_t)keys, expires > 0 ? (uint64_t)expires : 0};
    }
    return n;
}

static size_t list_commands(struct cmd *cmd, struct metrics_command *out)
{
    size_t n = 0;

    for (int id = 0; id < command_count; id++) {
        struct metrics_command *mc = &out[n];
        *mc = (struct metrics_command){.name = command_table[id].full};
        for (int i = 0; i < cmd->nworkers; i++) {
            const struct cmd_stat *st = &cmd->workers[i]->cmd_worker->stat[id];
            mc->calls += atomic_load_explicit(&st->calls, memory_order_relaxed);
            mc->failed_calls += atomic_load_explicit(&st->failed, memory_order_relaxed);
            mc->rejected_calls += atomic_load_explicit(&st->rejected, memory_order_relaxed);
            mc->duration_us += atomic_load_explicit(&st->usec, memory_order_relaxed);
        }
        n += mc->calls || mc->rejected_calls;
    }
    return n;
}

static void sum_upstream(struct cmd *cmd, struct upstream_stats *sum, int *up)
{
    *sum = (struct upstream_stats){0};
    *up = 0;
    for (int i = 0; i < cmd->nworkers; i++) {
        struct upstream_stats s;
        struct upstream *u = tier_upstream(cmd->workers[i]);
        if (!u)
            continue;
        upstream_get_stats(u, &s);
        sum->fetches += s.fetches;
        sum->fetch_hits += s.fetch_hits;
        sum->fetch_misses += s.fetch_misses;
        sum->calls += s.calls;
        sum->errors += s.errors;
        sum->timeouts += s.timeouts;
        sum->reconnects += s.reconnects;
        sum->invalidations += s.invalidations;
        sum->bytes_in += s.bytes_in;
        sum->bytes_out += s.bytes_out;
        sum->pins += s.pins;
        sum->subscriptions += s.subscriptions;
        sum->breaker_opens += s.breaker_opens;
        sum->breaker_refused += s.breaker_refused;
        sum->breaker = s.breaker > sum->breaker ? s.breaker : sum->breaker;
        *up += atomic_load(&cmd->tier->generation[i]) != 0;
    }
}

static struct metrics_persistence persistence(struct tier *t)
{
    struct tier_save_figures f;

    tier_get_save_figures(t, &f);
    return (struct metrics_persistence){
        .changes = f.changes,
        .last_save_s = f.last_save_s,
        .last_duration_s = f.last_duration_s,
        .saves = f.saves,
        .saving = f.running,
        .save_ok = f.last_ok,
        .journal = f.journal,
        .journal_ok = !f.journal || f.journal_ok,
    };
}

void figures_metrics(void *arg, struct buf *out)
{
    struct cmd *cmd = arg;
    struct tier *t = cmd->tier;
    struct tier_figures tf;
    struct upstream_stats us;
    struct disk_stats ds;
    struct utsname un;
    struct rusage ru;
    char os[256] = "";
    struct metrics_source src = {.run_id = cmd->run_id, .tcp_port = cmd->tcp_port, .threads = cmd->nworkers};

    tier_get_figures(t, &tf);
    if (uname(&un) == 0)
        snprintf(os, sizeof(os), "%.80s %.80s %.80s", un.sysname, un.release, un.machine);
    getrusage(RUSAGE_SELF, &ru);
    pthread_mutex_lock(&cmd->conf_lock);
    struct conf *conf = conf_ref(cmd->conf);
    pthread_mutex_unlock(&cmd->conf_lock);
    src.os = os;
    struct buf policy;
    buf_init(&policy, MEM_OTHER);
    conf_get(conf, "maxmemory-policy", &policy);
    buf_byte(&policy, '\0');
    src.maxmemory_policy = policy.ptr;
    src.start_time_s = cmd->started_ms / 1000;
    src.uptime_s = (clock_mono_ms() - cmd->started_mono_ms) / 1000;
    src.cpu_sys_s = seconds(ru.ru_stime);
    src.cpu_user_s = seconds(ru.ru_utime);
    src.maxclients = conf->maxclients;
    src.loading = !warm_start_done(cmd->warm);
    src.memory_used = mem_used_bytes();
    src.memory_rss = machine_rss_bytes();
    src.memory_peak = mem_peak_bytes();
    src.memory_max = conf->maxmemory;
    src.memory_data = mem_class_bytes(MEM_DATA);
    src.memory_clients = mem_class_bytes(MEM_CLIENT);
    src.memory_other = mem_class_bytes(MEM_OTHER);
    src.memory_keys = (uint64_t)tf.memory_keys;
    src.persistence = persistence(t);
    if (t->disk) {
        disk_get_stats(t->disk, &ds);
        src.disk = &ds;
        src.disk_writable = tf.disk_healthy;
        src.disk_max_bytes = (uint64_t)conf->disk_max_size;
    }
    if (t->has_upstream) {
        sum_upstream(cmd, &us, &src.upstream_workers_up);
        src.upstream = &us;
        src.coherence_mode = tf.coherence_mode;
        src.coherence_reason = tf.coherence_reason;
        src.coherence_bound_ms = tf.coherence_bound_ms;
        src.tracked_keys = tf.upstream_copies;
    }
    struct metrics_db *dbs = mem_alloc(MEM_OTHER, t->mem->databases * sizeof(*dbs));
    struct metrics_command *commands = mem_alloc(MEM_OTHER, (size_t)command_count * sizeof(*commands));
    src.dbs = dbs;
    src.ndbs = list_dbs(cmd, dbs);
    src.commands = commands;
    src.ncommands = list_commands(cmd, commands);
    metrics_write(out, &src);
    buf_deinit(&policy);
    mem_free(MEM_OTHER, dbs);
    mem_free(MEM_OTHER, commands);
    conf_unref(conf);
}

static void write_json_text(struct buf *out, const char *text)
{
    buf_byte(out, '"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            buf_printf(out, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            buf_printf(out, "\\u%04x", *text);
        else
            buf_byte(out, *text);
    }
    buf_byte(out, '"');
}

static const char *json_bool(bool v)
{
    return v ? "true" : "false";
}

bool figures_ready(void *arg, struct buf *json)
{
    struct cmd *cmd = arg;
    struct tier *t = cmd->tier;
    struct tier_figures tf;
    char problem[256] = "";

    tier_get_figures(t, &tf);
    if (t->disk)
        disk_problem(t->disk, problem);
    bool warming = !warm_start_done(cmd->warm);
    /* A tier that is away is told, but does not take the server out of service: it goes on without. */
    buf_printf(json, "{\"ready\":%s,\"warming\":%s,\"memory\":{\"keys\":%lld,\"bytes\":%lld},", json_bool(!warming),
               json_bool(warming), (long long)tf.memory_keys, (long long)tf.memory_bytes);
    buf_printf(json, "\"disk\":{\"on\":%s,\"healthy\":%s,\"problem\":", json_bool(tf.disk_on),
               json_bool(tf.disk_healthy));
    write_json_text(json, problem);
    buf_printf(json, ",\"keys\":%lld},\"upstream\":{\"state\":\"%s\",\"coherence\":\"%s\"}}\n", (long long)tf.disk_keys,
               tf.upstream_state, tf.coherence_mode);
    return !warming;
}
