/* The text of /metrics (https://prometheus.io/docs/instrumenting/exposition_formats/). Names
 * known from redis_exporter keep them, so that its dashboards and alerts work. */
#include <inttypes.h>
#include <string.h>

#include "tiercel/http.h"
#include "tiercel/stats.h"
#include "tiercel/version.h"

#define COUNTER "counter"
#define GAUGE "gauge"

#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

static void write_head(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP %s ", name);
    for (; *help != '\0'; help++) {
        if (*help == '\\')
            buf_byte(out, '\\');
        buf_byte(out, *help);
    }
    buf_printf(out, ".\n# TYPE %s %s\n", name, type);
}

static void write_u64(struct buf *out, const char *name, const char *type, const char *help, uint64_t v)
{
    write_head(out, name, type, help);
    buf_printf(out, "%s %" PRIu64 "\n", name, v);
}

static void write_i64(struct buf *out, const char *name, const char *type, const char *help, int64_t v)
{
    write_u64(out, name, type, help, v < 0 ? 0 : (uint64_t)v);
}

static void write_seconds(struct buf *out, const char *name, const char *type, const char *help, double s)
{
    write_head(out, name, type, help);
    buf_printf(out, "%s %.6f\n", name, s);
}

static void write_ratio(struct buf *out, const char *name, const char *help, double v)
{
    write_head(out, name, GAUGE, help);
    buf_printf(out, "%s %.3f\n", name, v);
}

static void write_label(struct buf *out, const char *label, const char *value)
{
    buf_printf(out, "%s=\"", label);
    for (; value != NULL && *value != '\0'; value++) {
        if (*value == '\\' || *value == '"')
            buf_printf(out, "\\%c", *value);
        else if (*value == '\n')
            buf_printf(out, "\\n");
        else
            buf_byte(out, *value);
    }
    buf_byte(out, '"');
}

static void write_instance(struct buf *out, const struct metrics_source *src)
{
    write_u64(out, "redis_up", GAUGE, "1 while the server answers", 1);
    write_head(out, "redis_instance_info", GAUGE, "What this server is");
    buf_printf(out, "redis_instance_info{");
    write_label(out, "redis_version", TIERCEL_REDIS_VERSION);
    buf_printf(out, ",redis_mode=\"standalone\",role=\"master\",");
    write_label(out, "maxmemory_policy", src->maxmemory_policy);
    buf_byte(out, ',');
    write_label(out, "os", src->os);
    buf_byte(out, ',');
    write_label(out, "run_id", src->run_id);
    buf_printf(out, ",tcp_port=\"%d\",tiercel_version=\"" TIERCEL_VERSION "\"} 1\n", src->tcp_port);
    write_i64(out, "redis_uptime_in_seconds", GAUGE, "Seconds since the start", src->uptime_s);
    write_i64(out, "redis_start_time_seconds", GAUGE, "Time of the start, seconds since 1970", src->start_time_s);
    write_seconds(out, "redis_cpu_sys_seconds_total", COUNTER, "CPU time in the kernel", src->cpu_sys_s);
    write_seconds(out, "redis_cpu_user_seconds_total", COUNTER, "CPU time in the program", src->cpu_user_s);
    write_i64(out, "redis_config_maxclients", GAUGE, "Client connections at most", src->maxclients);
    /* While its tiers are loaded the server answers no scrape. */
    write_u64(out, "redis_loading_dump_file", GAUGE, "1 while the server is loaded", 0);
    write_u64(out, "redis_cluster_enabled", GAUGE, "Always 0", 0);
    write_u64(out, "redis_connected_slaves", GAUGE, "Always 0", 0);
    write_i64(out, "redis_slowlog_length", GAUGE, "Entries of the slow log", src->slowlog_length);
    write_i64(out, "redis_slowlog_last_id", GAUGE, "Number of its newest entry", src->slowlog_last_id);
    write_i64(out, "redis_tracking_clients", GAUGE, "Clients that use CLIENT TRACKING", src->tracking_clients);
    write_i64(out, "redis_pubsub_channels", GAUGE, "Channels with subscribers", src->pubsub_channels);
    write_i64(out, "redis_pubsub_patterns", GAUGE, "Patterns with subscribers", src->pubsub_patterns);
    write_i64(out, "redis_lazyfree_pending_objects", GAUGE, "Large values that wait to be freed",
              src->lazyfree_pending);
    write_head(out, "tiercel_build_info", GAUGE, "What was built");
    buf_printf(out, "tiercel_build_info{version=\"" TIERCEL_VERSION "\",redis_version=\"" TIERCEL_REDIS_VERSION
                    "\",compiler=\"" COMPILER "\"} 1\n");
    write_i64(out, "tiercel_threads", GAUGE, "Worker threads", src->threads);
    write_u64(out, "tiercel_warming", GAUGE, "1 while warm-on-start runs, and /readyz says no", src->warming);
}

static void write_memory(struct buf *out, const struct metrics_source *src)
{
    write_i64(out, "redis_memory_used_bytes", GAUGE, "Bytes held from the allocator", src->memory_used);
    write_i64(out, "redis_memory_used_rss_bytes", GAUGE, "Resident size of the process", src->memory_rss);
    write_i64(out, "redis_memory_used_peak_bytes", GAUGE, "Most bytes ever held", src->memory_peak);
    write_i64(out, "redis_memory_max_bytes", GAUGE, "Limit of the data in memory", src->memory_max);
    write_i64(out, "redis_memory_used_dataset_bytes", GAUGE, "Bytes of data, its tables and the disk index",
              src->memory_data);
    write_i64(out, "redis_memory_used_overhead_bytes", GAUGE, "Bytes of everything else",
              src->memory_clients + src->memory_other);
    write_i64(out, "redis_total_system_memory_bytes", GAUGE, "Memory of the machine", src->memory_system);
    write_ratio(out, "redis_mem_fragmentation_ratio", "Resident size to bytes held from the allocator",
                src->memory_used > 0 ? (double)src->memory_rss / (double)src->memory_used : 0);
    write_i64(out, "tiercel_inflight_bytes", GAUGE, "Estimated bytes of keys being fetched or pinned for requests",
              src->inflight_bytes);
    write_i64(out, "tiercel_inflight_max_bytes", GAUGE, "Their limit", src->inflight_max);
    write_i64(out, "tiercel_demoting_bytes", GAUGE, "Bytes of objects that leave memory with the next commit",
              src->demoting_bytes);
    write_i64(out, "tiercel_admission_waiting", GAUGE, "Requests that wait because of inflight-max-bytes",
              src->admission_waiting);
    write_i64(out, "tiercel_room_waiting", GAUGE, "Writes that wait for room in the disk's queue", src->room_waiting);
    write_u64(out, "tiercel_memory_keys", GAUGE, "Keys resident in memory", src->memory_keys);
    write_i64(out, "tiercel_memory_data_bytes", GAUGE, "Bytes of data, its tables and the disk index",
              src->memory_data);
    write_i64(out, "tiercel_memory_clients_bytes", GAUGE, "Bytes of clients' buffers", src->memory_clients);
    write_i64(out, "tiercel_memory_other_bytes", GAUGE, "Bytes of everything else", src->memory_other);
}

static void write_disk(struct buf *out, const struct metrics_source *src)
{
    const struct disk_stats *d = src->disk;
    write_u64(out, "tiercel_disk_writable", GAUGE, "0 after an I/O error or on a full disk", src->disk_writable);
    write_u64(out, "tiercel_disk_keys", GAUGE, "Keys with a copy on disk", d->keys);
    write_u64(out, "tiercel_disk_max_bytes", GAUGE, "Quota of the file", src->disk_max_bytes);
    write_u64(out, "tiercel_disk_file_bytes", GAUGE, "Size of the file", d->file_bytes);
    write_u64(out, "tiercel_disk_block_bytes", GAUGE, "Bytes of blocks in the file", d->block_bytes);
    write_u64(out, "tiercel_disk_live_bytes", GAUGE, "Of these, bytes of records that are current, estimated",
              d->live_bytes);
    write_u64(out, "tiercel_disk_index_bytes", GAUGE, "Bytes of the index in memory", d->index_bytes);
    write_u64(out, "tiercel_disk_queue_bytes", GAUGE, "Bytes waiting for a commit", d->queue_bytes);
    write_u64(out, "tiercel_disk_appends_total", COUNTER, "Records appended", d->appends);
    write_u64(out, "tiercel_disk_appended_bytes_total", COUNTER, "Bytes of records appended", d->appended_bytes);
    write_u64(out, "tiercel_disk_written_bytes_total", COUNTER, "Bytes written to the file", d->written_bytes);
    write_u64(out, "tiercel_disk_tombstones_total", COUNTER, "Tombstones written", d->tombstones);
    write_u64(out, "tiercel_disk_commits_total", COUNTER, "Commits", d->commits);
    write_seconds(out, "tiercel_disk_commit_seconds_total", COUNTER, "Time spent in commits",
                  (double)d->commit_us / 1e6);
    write_seconds(out, "tiercel_disk_last_commit_timestamp_seconds", GAUGE, "Time of the last commit",
                  (double)d->last_commit_ms / 1e3);
    write_u64(out, "tiercel_disk_reads_total", COUNTER, "Records read", d->reads);
    write_u64(out, "tiercel_disk_inline_reads_total", COUNTER, "Of these, served from the page cache without a thread",
              d->inline_reads);
    write_u64(out, "tiercel_disk_read_misses_total", COUNTER, "Reads that found no such record", d->read_misses);
    write_u64(out, "tiercel_disk_corrupt_records_total", COUNTER, "Records dropped over their checksum", d->corrupt);
    write_u64(out, "tiercel_disk_io_errors_total", COUNTER, "Input/output errors", d->io_errors);
    write_u64(out, "tiercel_disk_carried_keys_total", COUNTER, "Keys copied out of blocks that were reclaimed",
              d->carried_keys);
    write_u64(out, "tiercel_disk_carried_bytes_total", COUNTER, "Bytes of their records", d->carried_bytes);
    write_u64(out, "tiercel_disk_dropped_keys_total", COUNTER, "Keys dropped with the oldest blocks", d->dropped_keys);
    write_u64(out, "tiercel_disk_expired_keys_total", COUNTER, "Keys that expired on disk", d->expired_keys);
}

/* Under redis_exporter's names. */
static void write_persistence(struct buf *out, const struct metrics_source *src)
{
    const struct metrics_persistence *p = &src->persistence;
    write_i64(out, "redis_rdb_changes_since_last_save", GAUGE, "Writes of keys since the last save began", p->changes);
    write_u64(out, "redis_rdb_bgsave_in_progress", GAUGE, "1 while a save runs", p->saving);
    write_i64(out, "redis_rdb_last_save_timestamp_seconds", GAUGE, "Time of the last save", p->last_save_s);
    write_i64(out, "tiercel_last_save_duration_seconds", GAUGE, "How long it took", p->last_duration_s);
    write_i64(out, "redis_rdb_saves_total", COUNTER, "Saves that succeeded", p->saves);
    write_u64(out, "redis_rdb_last_bgsave_status", GAUGE, "0 when the last save failed", p->save_ok);
    write_u64(out, "redis_aof_enabled", GAUGE, "1 with appendonly", p->journal);
    write_u64(out, "redis_aof_last_write_status", GAUGE, "0 while the log cannot be written", p->journal_ok);
}

static void write_upstream(struct buf *out, const struct metrics_source *src)
{
    const struct upstream_stats *u = src->upstream;
    write_u64(out, "tiercel_upstream_up", GAUGE, "1 while any worker is connected", src->upstream_workers_up > 0);
    write_i64(out, "tiercel_upstream_workers_up", GAUGE, "Workers that are connected", src->upstream_workers_up);
    write_head(out, "tiercel_coherence_info", GAUGE, "How copies are kept coherent");
    buf_printf(out, "tiercel_coherence_info{");
    write_label(out, "mode", src->coherence_mode);
    if (src->coherence_reason && src->coherence_reason[0]) {
        buf_printf(out, ",");
        write_label(out, "reason", src->coherence_reason);
    }
    buf_printf(out, "} 1\n");
    write_u64(out, "tiercel_coherence_fallback", GAUGE,
              "1 while copies are kept coherent in another way than `coherence` asks for", src->coherence_fallback);
    write_seconds(out, "tiercel_coherence_bound_seconds", GAUGE, "Oldest that a copy may be",
                  (double)src->coherence_bound_ms / 1e3);
    write_i64(out, "tiercel_upstream_tracked_keys", GAUGE, "Copies of upstream keys held", src->tracked_keys);
    write_i64(out, "tiercel_upstream_tracked_keys_max", GAUGE, "Their limit", src->tracked_keys_max);
    write_u64(out, "tiercel_upstream_fetches_total", COUNTER, "Fetches sent", u->fetches);
    write_u64(out, "tiercel_upstream_calls_total", COUNTER, "Commands passed on", u->calls);
    write_u64(out, "tiercel_upstream_timeouts_total", COUNTER, "Requests whose deadline passed", u->timeouts);
    write_u64(out, "tiercel_upstream_reconnects_total", COUNTER, "Connections made anew", u->reconnects);
    write_u64(out, "tiercel_upstream_received_bytes_total", COUNTER, "Bytes read from the upstream", u->bytes_in);
    write_u64(out, "tiercel_upstream_sent_bytes_total", COUNTER, "Bytes written to the upstream", u->bytes_out);
    write_u64(out, "tiercel_upstream_pins", GAUGE, "Connections pinned to one client, but for pub/sub", u->pins);
    write_u64(out, "tiercel_upstream_subscriptions", GAUGE, "Connections of one client for pub/sub", u->subscriptions);
    write_u64(out, "tiercel_upstream_breaker_state", GAUGE,
              "Circuit breaker of the worker that is worst off: 0 closed, 1 half-open, 2 open", u->breaker);
    write_u64(out, "tiercel_upstream_breaker_opens_total", COUNTER, "How often it opened", u->breaker_opens);
    write_u64(out, "tiercel_upstream_breaker_refused_total", COUNTER, "Requests that were not sent because of it",
              u->breaker_refused);
}

static void write_databases(struct buf *out, const struct metrics_source *src)
{
    if (src->ndbs == 0)
        return;
    write_head(out, "redis_db_keys", GAUGE, "Keys of a database, in all tiers");
    for (size_t i = 0; i < src->ndbs; i++)
        buf_printf(out, "redis_db_keys{db=\"db%d\"} %" PRIu64 "\n", src->dbs[i].index, src->dbs[i].keys);
    write_head(out, "redis_db_keys_expiring", GAUGE, "Keys of a database that have an expiry");
    for (size_t i = 0; i < src->ndbs; i++)
        buf_printf(out, "redis_db_keys_expiring{db=\"db%d\"} %" PRIu64 "\n", src->dbs[i].index, src->dbs[i].expiring);
}

static void write_command(struct buf *out, const char *metric, const char *name)
{
    buf_printf(out, "%s{", metric);
    write_label(out, "cmd", name);
    buf_printf(out, "} ");
}

static void write_command_counts(struct buf *out, const struct metrics_source *src, const char *metric,
                                 const char *help, size_t field)
{
    write_head(out, metric, COUNTER, help);
    for (size_t i = 0; i < src->ncommands; i++) {
        const char *cmd = (const char *)&src->commands[i];
        write_command(out, metric, src->commands[i].name);
        buf_printf(out, "%" PRIu64 "\n", *(const uint64_t *)(const void *)(cmd + field));
    }
}

static void write_commands(struct buf *out, const struct metrics_source *src)
{
    static const char duration[] = "redis_commands_duration_seconds_total";
    if (src->ncommands == 0)
        return;
    write_command_counts(out, src, "redis_commands_total", "Calls of a command",
                         offsetof(struct metrics_command, calls));
    write_command_counts(out, src, "redis_commands_failed_calls_total", "Calls that answered with an error",
                         offsetof(struct metrics_command, failed_calls));
    write_command_counts(out, src, "redis_commands_rejected_calls_total", "Calls refused before they ran",
                         offsetof(struct metrics_command, rejected_calls));
    write_head(out, duration, COUNTER, "Time spent in a command");
    for (size_t i = 0; i < src->ncommands; i++) {
        write_command(out, duration, src->commands[i].name);
        buf_printf(out, "%.6f\n", (double)src->commands[i].duration_us / 1e6);
    }
}

static void write_parts(struct buf *out, const char *name, const char *type, const char *help,
                        const struct metrics_part *parts, size_t n)
{
    if (n == 0)
        return;
    write_head(out, name, type, help);
    for (size_t i = 0; i < n; i++)
        buf_printf(out, "%s{%s} %" PRIu64 "\n", name, parts[i].labels, parts[i].value);
}

static void write_errors(struct buf *out, const struct metrics_source *src)
{
    if (src->nerrors == 0)
        return;
    write_head(out, "redis_errors_total", COUNTER, "Error replies by their code");
    for (size_t i = 0; i < src->nerrors; i++) {
        buf_printf(out, "redis_errors_total{");
        write_label(out, "err", src->errors[i].code);
        buf_printf(out, "} %" PRIu64 "\n", src->errors[i].count);
    }
}

/* ---- durations ---- */

#define LE_LAST 25 /* 2^25 us, half a minute: what is longer is in +Inf only */

static void write_histogram(struct buf *out, const char *name, const char *label, const struct stats_hist_sum *h)
{
    const char *comma = label[0] ? "," : "";
    uint64_t sum = 0;
    for (int i = 0; i < STATS_HIST_BUCKETS; i++) {
        sum += h->bucket[i];
        if (i <= LE_LAST)
            buf_printf(out, "%s_bucket{%s%sle=\"%.6f\"} %" PRIu64 "\n", name, label, comma, (double)(1u << i) / 1e6,
                       sum);
    }
    const char *open = label[0] ? "{" : "", *close = label[0] ? "}" : "";
    buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", name, label, comma, sum);
    buf_printf(out, "%s_sum%s%s%s %.6f\n", name, open, label, close, (double)h->us / 1e6);
    buf_printf(out, "%s_count%s%s%s %" PRIu64 "\n", name, open, label, close, sum);
}

static bool is_there(const struct metrics_source *src, enum stats_hist_id h)
{
    return h == HIST_disk ? src->disk != NULL : src->upstream != NULL;
}

static void write_latencies(struct buf *out, const struct metrics_source *src)
{
    const char *metric = "";
    for (int h = 0; h < HIST_COUNT; h++) {
        const struct stats_hist_row *row = stats_hist_row((enum stats_hist_id)h);
        struct stats_hist_sum sum;
        if (strcmp(row->metric, metric) != 0 && (h == HIST_disk || is_there(src, (enum stats_hist_id)h)))
            write_head(out, row->metric, "histogram", row->help);
        metric = row->metric;
        if (h == HIST_disk && src->memory_latency != NULL) /* the same family */
            write_histogram(out, metric, "tier=\"memory\"", src->memory_latency);
        if (!is_there(src, (enum stats_hist_id)h))
            continue;
        stats_hist_sum((enum stats_hist_id)h, &sum);
        write_histogram(out, metric, row->label, &sum);
    }
}

void metrics_write(struct buf *out, const struct metrics_source *src)
{
    write_instance(out, src);
    write_memory(out, src);
    for (int s = 0; s < STAT_COUNT; s++) {
        const char *name = stats_metric((enum stats_id)s);
        if (name[0] != '\0')
            write_u64(out, name, stats_is_gauge((enum stats_id)s) ? GAUGE : COUNTER, stats_help((enum stats_id)s),
                      stats_sum((enum stats_id)s));
    }
    write_errors(out, src);
    write_latencies(out, src);
    write_parts(out, "tiercel_evictions_total", COUNTER,
                "Keys that left a tier for want of room, or were not worth a place in the next", src->evictions,
                src->nevictions);
    write_parts(out, "tiercel_warm_jobs", GAUGE, "WARM jobs that are listed, by state", src->warm_jobs,
                src->nwarm_jobs);
    write_parts(out, "tiercel_warm_keys_total", COUNTER, "Keys of WARM jobs, by what became of them", src->warm_keys,
                src->nwarm_keys);
    write_persistence(out, src);
    if (src->disk != NULL)
        write_disk(out, src);
    if (src->upstream != NULL)
        write_upstream(out, src);
    write_databases(out, src);
    write_commands(out, src);
}
