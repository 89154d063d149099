/* What /metrics and /readyz say, gathered from all layers. The HTTP thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "tiercel/clock.h"
#include "tiercel/disk.h"
#include "tiercel/http.h"
#include "tiercel/machine.h"
#include "tiercel/object.h"
#include "tiercel/pubsub.h"
#include "tiercel/stats.h"
#include "tiercel/tier.h"
#include "tiercel/tracking.h"
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

/* ---- families by label ---- */

#define EVICTIONS 9
#define WARM_STATES (WARM_STOPPED + 1)
#define WARM_LABEL 32

static size_t list_evictions(const struct disk_stats *disk, bool upstream, struct metrics_part *out)
{
    static const struct {
        const char *labels;
        enum stats_id counter;
    } rows[] = {
        {"tier=\"memory\",reason=\"demoted\"", STAT_tier_demotions},
        {"tier=\"memory\",reason=\"on_disk\"", STAT_tier_clean_drops},
        {"tier=\"memory\",reason=\"disk_busy\"", STAT_tier_dirty_drops},
        {"tier=\"memory\",reason=\"expiring\"", STAT_tier_admission_expiring},
        {"tier=\"memory\",reason=\"size\"", STAT_tier_admission_size},
        {"tier=\"memory\",reason=\"unread\"", STAT_tier_admission_unread},
        {"tier=\"memory\",reason=\"no_disk\"", STAT_tier_lone_drops},
    };
    size_t n = 0;

    for (; n < sizeof(rows) / sizeof(rows[0]); n++)
        out[n] = (struct metrics_part){rows[n].labels, stats_sum(rows[n].counter)};
    if (disk)
        out[n++] = (struct metrics_part){"tier=\"disk\",reason=\"quota\"", disk->dropped_keys};
    if (upstream)
        out[n++] =
            (struct metrics_part){"tier=\"disk\",reason=\"tracked_keys_max\"", stats_sum(STAT_tier_copies_dropped)};
    return n;
}

static size_t list_warm_jobs(struct cmd *cmd, struct metrics_part *out, char (*labels)[WARM_LABEL])
{
    static const size_t max = WARM_JOBS_MAX + WARM_FINISHED_MAX;
    struct warm_status *jobs = mem_alloc(MEM_OTHER, max * sizeof(*jobs));
    size_t n = warm_list(cmd->warm, jobs, max);

    for (int s = 0; s < WARM_STATES; s++) {
        snprintf(labels[s], WARM_LABEL, "state=\"%s\"", warm_state_name((enum warm_state)s));
        out[s] = (struct metrics_part){labels[s], 0};
    }
    for (size_t i = 0; i < n; i++)
        out[jobs[i].state].value++;
    mem_free(MEM_OTHER, jobs);
    return WARM_STATES;
}

static size_t list_errors(struct cmd *cmd, struct errstat_code **codes, struct metrics_error **out)
{
    int n = errstat_sum(cmd, codes);
    struct metrics_error *list = mem_alloc(MEM_OTHER, (size_t)(n + 1) * sizeof(*list));

    for (int i = 0; i < n; i++)
        list[i] = (struct metrics_error){(*codes)[i].name, (*codes)[i].count};
    *out = list;
    return (size_t)n;
}

static void command_layer(struct cmd *cmd, struct metrics_source *src)
{
    struct tracking_figures tracking;
    struct object_lazy lazy;

    tracking_get_figures(cmd->tracking, &tracking);
    object_lazy_figures(&lazy);
    slowlog_get_figures(cmd->slowlog, &src->slowlog_length, &src->slowlog_last_id);
    src->tracking_clients = tracking.clients;
    src->pubsub_channels = (int64_t)pubsub_channels(cmd->pubsub);
    src->pubsub_patterns = (int64_t)pubsub_patterns(cmd->pubsub);
    src->lazyfree_pending = lazy.pending;
}

static bool fell_back(const struct conf *conf, const char *mode)
{
    return strcmp(mode, "none") != 0 && strcmp(mode, upstream_mode_name((enum upstream_mode)conf->coherence)) != 0;
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
    src.warming = !warm_start_done(cmd->warm);
    command_layer(cmd, &src);
    src.memory_used = mem_used_bytes();
    src.memory_rss = machine_rss_bytes();
    src.memory_peak = mem_peak_bytes();
    src.memory_max = conf->maxmemory;
    src.memory_data = mem_class_bytes(MEM_DATA);
    src.memory_clients = mem_class_bytes(MEM_CLIENT);
    src.memory_other = mem_class_bytes(MEM_OTHER);
    src.memory_keys = (uint64_t)tf.memory_keys;
    src.memory_system = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    src.inflight_bytes = tf.inflight_bytes;
    src.inflight_max = atomic_load_explicit(&t->limit.inflight_max, memory_order_relaxed);
    src.demoting_bytes = tf.demoting_bytes;
    src.admission_waiting = atomic_load_explicit(&t->admission_waiters, memory_order_relaxed);
    src.room_waiting = atomic_load_explicit(&t->room_waiting, memory_order_relaxed);
    struct stats_hist_sum memory_latency;
    cmd_memory_latency(cmd, &memory_latency);
    if (conf->latency_tracking)
        src.memory_latency = &memory_latency;
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
        src.coherence_fallback = fell_back(conf, tf.coherence_mode);
        src.coherence_bound_ms = tf.coherence_bound_ms;
        src.tracked_keys = tf.upstream_copies;
        src.tracked_keys_max = conf->tracked_keys_max;
    }
    struct metrics_part evictions[EVICTIONS], warm_jobs[WARM_STATES];
    const struct metrics_part warm_keys[] = {{"result=\"loaded\"", stats_sum(STAT_warm_loaded)},
                                             {"result=\"skipped\"", stats_sum(STAT_warm_skipped)},
                                             {"result=\"failed\"", stats_sum(STAT_warm_failed)}};
    char warm_labels[WARM_STATES][WARM_LABEL];
    struct errstat_code *codes;
    struct metrics_error *errors;
    src.evictions = evictions;
    src.nevictions = list_evictions(src.disk, src.upstream != NULL, evictions);
    src.warm_jobs = warm_jobs;
    src.nwarm_jobs = list_warm_jobs(cmd, warm_jobs, warm_labels);
    src.warm_keys = warm_keys;
    src.nwarm_keys = sizeof(warm_keys) / sizeof(warm_keys[0]);
    src.nerrors = list_errors(cmd, &codes, &errors);
    src.errors = errors;
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
    mem_free(MEM_OTHER, errors);
    mem_free(MEM_OTHER, codes);
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

static void write_disk_state(struct buf *json, const struct tier *t, const struct tier_figures *tf)
{
    char problem[256] = "";
    const char *state = "off", *reason = problem;

    if (t->disk) {
        disk_problem(t->disk, problem);
        state = !tf->disk_healthy ? "failed" : disk_quota_full(t->disk) ? "full" : "ok";
    }
    if (tf->disk_healthy && state[0] == 'f') /* what is full is not unwell */
        reason = "disk-max-size is reached, and nothing may be dropped";
    buf_printf(json, ",\"disk\":{\"state\":\"%s\",\"reason\":", state);
    write_json_text(json, reason);
    buf_printf(json, ",\"on\":%s,\"healthy\":%s,\"problem\":", json_bool(tf->disk_on), json_bool(tf->disk_healthy));
    write_json_text(json, problem);
    buf_printf(json, ",\"keys\":%lld,\"bytes\":%lld}", (long long)tf->disk_keys, (long long)tf->disk_bytes);
}

static void write_upstream_state(struct buf *json, const struct tier_figures *tf)
{
    buf_printf(json, ",\"upstream\":{\"state\":\"%s\",\"breaker\":\"%s\",\"coherence\":\"%s\",\"reason\":",
               tf->upstream_state, tf->breaker, tf->coherence_mode);
    write_json_text(json, tf->coherence_reason);
    buf_printf(json, "}");
}

bool figures_ready(void *arg, bool detail, struct buf *json)
{
    struct cmd *cmd = arg;
    struct tier *t = cmd->tier;
    struct tier_figures tf;
    bool warming = !warm_start_done(cmd->warm);

    /* A tier that is away is told, but does not take the server out of service: it goes on without. */
    buf_printf(json, "{\"ready\":%s,\"state\":\"%s\"", json_bool(!warming), warming ? "warming" : "serving");
    if (detail) {
        tier_get_figures(t, &tf);
        buf_printf(json, ",\"warming\":%s,\"memory\":{\"state\":\"%s\",\"reason\":\"%s\",\"keys\":%lld,\"bytes\":%lld}",
                   json_bool(warming), warming ? "warming" : "ok", warming ? "warm-on-start runs" : "",
                   (long long)tf.memory_keys, (long long)tf.memory_bytes);
        write_disk_state(json, t, &tf);
        write_upstream_state(json, &tf);
    }
    buf_printf(json, "}");
    return !warming;
}
