#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "tiercel/clock.h"
#include "tiercel/disk.h"
#include "tiercel/machine.h"
#include "tiercel/mem.h"
#include "tiercel/pubsub.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"
#include "tiercel/tier.h"
#include "tiercel/version.h"

#include "cmd/cmd_priv.h"

/* INFO: Redis's sections with all fields that monitoring reads from them, and "# Tiers". Fields
 * for what this server does not have are there with the value of a server that does not use it. */

struct info {
    const struct call *c;
    struct cmd *cmd;
    struct buf out;
};

__attribute__((format(printf, 2, 3))) static void line(struct info *in, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    buf_vprintf(&in->out, fmt, ap);
    va_end(ap);
    buf_append(&in->out, "\r\n", 2);
}

static void field(struct info *in, const char *name, int64_t v)
{
    line(in, "%s:%" PRId64, name, v);
}

static void stat_field(struct info *in, enum stats_id s)
{
    field(in, stats_name(s), (int64_t)stats_sum(s));
}

/* "1.06M", as Redis writes sizes for people. */
static void human_field(struct info *in, const char *name, int64_t v)
{
    static const char units[] = "BKMGTP";
    double d = (double)v;
    int u = 0;
    while (d >= 1024 && u < 5) {
        d /= 1024;
        u++;
    }
    if (u == 0)
        line(in, "%s:%" PRId64 "B", name, v);
    else
        line(in, "%s:%.2f%c", name, d, units[u]);
}

static void size_field(struct info *in, const char *name, int64_t v)
{
    char human[64];
    field(in, name, v);
    snprintf(human, sizeof(human), "%s_human", name);
    human_field(in, human, v);
}

static void zeros(struct info *in, const char *const *names)
{
    for (; *names; names++)
        field(in, *names, 0);
}

/* ---- the sections ---- */

static void section_server(struct info *in)
{
    const struct conf *conf = in->c->w->conf;
    int64_t up_s = (clock_mono_ms() - in->cmd->started_mono_ms) / 1000;
    struct utsname os;
    uname(&os);
    line(in, "redis_version:" TIERCEL_REDIS_VERSION);
    line(in, "redis_git_sha1:00000000");
    line(in, "redis_git_dirty:0");
    line(in, "redis_build_id:0");
    line(in, "redis_mode:standalone");
    line(in, "tiercel_version:" TIERCEL_VERSION);
    line(in, "os:%s %s %s", os.sysname, os.release, os.machine);
    line(in, "arch_bits:%d", (int)sizeof(void *) * 8);
    line(in, "monotonic_clock:POSIX clock_gettime");
    line(in, "multiplexing_api:libuv");
    line(in, "atomicvar_api:c11-builtin");
#if defined(__clang__)
    line(in, "gcc_version:0.0.0");
#else
    line(in, "gcc_version:%d.%d.%d", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
    line(in, "process_id:%ld", (long)getpid());
    line(in, "process_supervised:no");
    line(in, "run_id:%s", in->cmd->run_id);
    line(in, "tcp_port:%d", in->cmd->tcp_port);
    line(in, "server_time_usec:%" PRId64, clock_wall_us());
    field(in, "uptime_in_seconds", up_s);
    field(in, "uptime_in_days", up_s / 86400);
    field(in, "hz", conf->hz);
    field(in, "configured_hz", conf->hz);
    field(in, "lru_clock", in->c->now_ms / 1000 & 0xffffff);
    line(in, "executable:%s", in->cmd->executable ? in->cmd->executable : "");
    line(in, "config_file:%s", conf_file(conf));
    line(in, "io_threads_active:0");
    field(in, "threads", in->cmd->nworkers);
}

static void section_clients(struct info *in)
{
    static const char *const none[] = {"clients_in_timeout_table", NULL};
    struct tracking_figures tracking;
    tracking_get_figures(in->cmd->tracking, &tracking);
    stat_field(in, STAT_connected_clients);
    line(in, "cluster_connections:0");
    field(in, "maxclients", in->c->w->conf->maxclients);
    line(in, "client_recent_max_input_buffer:0");
    line(in, "client_recent_max_output_buffer:0");
    stat_field(in, STAT_blocked_clients);
    field(in, "tracking_clients", tracking.clients);
    zeros(in, none);
}

static void section_memory(struct info *in)
{
    struct memory_figures f;
    struct script_figures scripts;
    struct object_lazy lazy;
    int64_t total = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    memory_figures(in->cmd, &f);
    script_figures(in->cmd, &scripts);
    object_lazy_figures(&lazy);
    size_field(in, "used_memory", f.used);
    size_field(in, "used_memory_rss", f.rss);
    struct machine_rss rss;
    machine_get_rss(&rss);
    field(in, "used_memory_rss_anon", rss.anon);
    field(in, "used_memory_rss_file", rss.file + rss.shmem);
    size_field(in, "used_memory_peak", f.peak);
    line(in, "used_memory_peak_perc:%.2f%%", memory_share(f.used, f.peak) * 100);
    field(in, "used_memory_overhead", f.overhead);
    field(in, "used_memory_startup", 0);
    field(in, "used_memory_dataset", f.data);
    line(in, "used_memory_dataset_perc:%.2f%%", memory_share(f.data, f.used) * 100);
    field(in, "allocator_allocated", f.used);
    field(in, "allocator_active", f.used);
    field(in, "allocator_resident", f.rss);
    size_field(in, "total_system_memory", total);
    field(in, "used_memory_lua", scripts.vm_bytes);
    field(in, "used_memory_vm_eval", scripts.vm_bytes);
    human_field(in, "used_memory_lua_human", scripts.vm_bytes);
    field(in, "used_memory_scripts_eval", scripts.bytes);
    field(in, "number_of_cached_scripts", scripts.scripts);
    field(in, "number_of_functions", scripts.functions);
    field(in, "number_of_libraries", scripts.libraries);
    field(in, "used_memory_vm_functions", scripts.vm_functions);
    field(in, "used_memory_vm_total", scripts.vm_bytes + scripts.vm_functions);
    human_field(in, "used_memory_vm_total_human", scripts.vm_bytes + scripts.vm_functions);
    field(in, "used_memory_functions", scripts.function_bytes);
    int64_t all = scripts.bytes + scripts.vm_bytes + scripts.function_bytes + scripts.vm_functions;
    field(in, "used_memory_scripts", all);
    human_field(in, "used_memory_scripts_human", all);
    size_field(in, "maxmemory", atomic_load_explicit(&in->c->w->tier->limit.maxmemory, memory_order_relaxed));
    struct buf policy;
    buf_init(&policy, MEM_OTHER);
    conf_get(in->c->w->conf, "maxmemory-policy", &policy);
    line(in, "maxmemory_policy:%.*s", (int)policy.len, policy.ptr);
    buf_deinit(&policy);
    line(in, "allocator_frag_ratio:1.00");
    line(in, "allocator_frag_bytes:0");
    line(in, "allocator_rss_ratio:%.2f", memory_share(f.rss, f.used));
    field(in, "allocator_rss_bytes", f.rss - f.used);
    line(in, "rss_overhead_ratio:1.00");
    line(in, "rss_overhead_bytes:0");
    line(in, "mem_fragmentation_ratio:%.2f", memory_share(f.rss, f.used));
    field(in, "mem_fragmentation_bytes", f.rss - f.used);
    field(in, "mem_not_counted_for_evict", f.overhead);
    line(in, "mem_replication_backlog:0");
    line(in, "mem_total_replication_buffers:0");
    line(in, "mem_clients_slaves:0");
    field(in, "mem_clients_normal", f.clients);
    line(in, "mem_cluster_links:0");
    line(in, "mem_aof_buffer:0");
    line(in, "mem_allocator:%s", mem_allocator_name());
    line(in, "active_defrag_running:0");
    line(in, "lazyfree_pending_objects:%" PRId64, lazy.pending);
    line(in, "lazyfreed_objects:%" PRId64, lazy.freed);
}

static const char *ok_or_err(bool ok)
{
    return ok ? "ok" : "err";
}

static int64_t loaded_keys(const struct tier *t)
{
    int64_t sum = 0, keys, expires;

    for (unsigned db = 0; t->disk && db < t->mem->spaces; db++) {
        disk_loaded_keys(t->disk, db, &keys, &expires);
        sum += keys;
    }
    return sum;
}

/* rdb_*: all saves, rewrites among them. The append only file is the disk tier's log. */
static void section_persistence(struct info *in)
{
    static const char *const none[] = {"async_loading", "current_cow_peak", "current_cow_size", "current_cow_size_age",
                                       NULL};
    struct tier *t = in->c->w->tier;
    struct tier_save_figures f;
    struct persist_figures p;
    tier_get_save_figures(t, &f);
    persist_get_figures(in->cmd->persist, &p);
    /* After appendonly was switched on the tier layer saves of its own accord, where Redis rewrites. */
    bool saving = f.running && p.running == PERSIST_SAVE, rewriting = f.running && !saving;
    int64_t now_s = clock_wall_ms() / 1000, since_s = f.running ? now_s - f.started_ms / 1000 : -1;
    int64_t written = f.running ? f.written : 0, total = f.running ? f.total : 0;
    field(in, "loading", 0); /* clients are let in when the disk index is there */
    zeros(in, none);
    line(in, "current_fork_perc:%.2f", memory_share(written, total) * 100);
    field(in, "current_save_keys_processed", written);
    field(in, "current_save_keys_total", total);
    field(in, "rdb_changes_since_last_save", f.changes);
    field(in, "rdb_bgsave_in_progress", saving);
    field(in, "rdb_last_save_time", f.last_save_s);
    line(in, "rdb_last_bgsave_status:%s", ok_or_err(f.last_ok));
    field(in, "rdb_last_bgsave_time_sec", f.last_duration_s);
    field(in, "rdb_current_bgsave_time_sec", saving ? since_s : -1);
    field(in, "rdb_saves", f.saves);
    line(in, "rdb_last_cow_size:0");
    line(in, "rdb_last_load_keys_expired:0");
    field(in, "rdb_last_load_keys_loaded", loaded_keys(t));
    field(in, "aof_enabled", f.journal);
    field(in, "aof_rewrite_in_progress", rewriting);
    field(in, "aof_rewrite_scheduled", p.rewrite_scheduled);
    field(in, "aof_last_rewrite_time_sec", p.last_rewrite_s);
    field(in, "aof_current_rewrite_time_sec", rewriting ? since_s : -1);
    line(in, "aof_last_bgrewrite_status:%s", ok_or_err(p.rewrite_ok));
    field(in, "aof_rewrites", p.rewrites);
    field(in, "aof_rewrites_consecutive_failures", p.rewrite_failures);
    line(in, "aof_last_write_status:%s", ok_or_err(!f.journal || f.journal_ok));
    line(in, "aof_last_cow_size:0");
    line(in, "module_fork_in_progress:0");
    line(in, "module_fork_last_cow_size:0");
    if (!f.journal)
        return;
    struct disk_stats disk;
    disk_get_stats(t->disk, &disk);
    field(in, "aof_current_size", (int64_t)disk.block_bytes);
    field(in, "aof_base_size", (int64_t)disk.live_bytes);
    field(in, "aof_pending_rewrite", p.rewrite_scheduled);
    field(in, "aof_buffer_length", (int64_t)f.journal_waiting);
    line(in, "aof_pending_bio_fsync:0"); /* a commit writes and syncs in one */
    line(in, "aof_delayed_fsync:0");
}

static void section_stats(struct info *in)
{
    static const char *const none1[] = {"sync_full", "sync_partial_ok", "sync_partial_err", NULL};
    static const char *const none2[] = {"expired_time_cap_reached_count", "expire_cycle_cpu_milliseconds", NULL};
    static const char *const none3[] = {"total_eviction_exceeded_time", "current_eviction_exceeded_time", NULL};
    static const char *const none4[] = {
        "pubsubshard_channels",     "latest_fork_usec",           "total_forks",
        "migrate_cached_sockets",   "slave_expires_tracked_keys", "active_defrag_hits",
        "active_defrag_misses",     "active_defrag_key_hits",     "active_defrag_key_misses",
        "total_active_defrag_time", "current_active_defrag_time", NULL};
    struct tracking_figures tracking;
    struct rates rate;
    rates_get(in->cmd, &rate);
    stat_field(in, STAT_total_connections_received);
    stat_field(in, STAT_total_commands_processed);
    field(in, "instantaneous_ops_per_sec", rate.commands);
    stat_field(in, STAT_total_net_input_bytes);
    stat_field(in, STAT_total_net_output_bytes);
    line(in, "total_net_repl_input_bytes:0");
    line(in, "total_net_repl_output_bytes:0");
    line(in, "instantaneous_input_kbps:%.2f", rate.input_kb);
    line(in, "instantaneous_output_kbps:%.2f", rate.output_kb);
    line(in, "instantaneous_input_repl_kbps:0.00");
    line(in, "instantaneous_output_repl_kbps:0.00");
    stat_field(in, STAT_rejected_connections);
    zeros(in, none1);
    stat_field(in, STAT_expired_subkeys);
    stat_field(in, STAT_expired_keys);
    line(in, "expired_stale_perc:0.00");
    zeros(in, none2);
    stat_field(in, STAT_evicted_keys);
    stat_field(in, STAT_evicted_clients);
    zeros(in, none3);
    stat_field(in, STAT_keyspace_hits);
    stat_field(in, STAT_keyspace_misses);
    field(in, "pubsub_channels", (int64_t)pubsub_channels(in->cmd->pubsub));
    field(in, "pubsub_patterns", (int64_t)pubsub_patterns(in->cmd->pubsub));
    zeros(in, none4);
    tracking_get_figures(in->cmd->tracking, &tracking);
    field(in, "tracking_total_keys", tracking.keys);
    field(in, "tracking_total_items", tracking.items);
    field(in, "tracking_total_prefixes", tracking.prefixes);
    stat_field(in, STAT_unexpected_error_replies);
    stat_field(in, STAT_total_error_replies);
    line(in, "dump_payload_sanitizations:0");
    stat_field(in, STAT_total_reads_processed);
    stat_field(in, STAT_total_writes_processed);
    line(in, "io_threaded_reads_processed:0");
    line(in, "io_threaded_writes_processed:0");
    line(in, "reply_buffer_shrinks:0");
    line(in, "reply_buffer_expands:0");
    stat_field(in, STAT_client_query_buffer_limit_disconnections);
    stat_field(in, STAT_client_output_buffer_limit_disconnections);
    stat_field(in, STAT_acl_access_denied_auth);
    stat_field(in, STAT_acl_access_denied_cmd);
    stat_field(in, STAT_acl_access_denied_key);
    stat_field(in, STAT_acl_access_denied_channel);
}

static void section_replication(struct info *in)
{
    line(in, "role:master");
    line(in, "connected_slaves:0");
    line(in, "master_failover_state:no-failover");
    line(in, "master_replid:%s", in->cmd->run_id);
    line(in, "master_replid2:%040d", 0);
    line(in, "master_repl_offset:0");
    line(in, "second_repl_offset:-1");
    line(in, "repl_backlog_active:0");
    line(in, "repl_backlog_size:1048576");
    line(in, "repl_backlog_first_byte_offset:0");
    line(in, "repl_backlog_histlen:0");
}

static void cpu_fields(struct info *in, int who, const char *suffix)
{
    struct rusage u = {0};
    getrusage(who, &u);
    line(in, "used_cpu_sys%s:%ld.%06ld", suffix, (long)u.ru_stime.tv_sec, (long)u.ru_stime.tv_usec);
    line(in, "used_cpu_user%s:%ld.%06ld", suffix, (long)u.ru_utime.tv_sec, (long)u.ru_utime.tv_usec);
}

static void section_cpu(struct info *in)
{
    cpu_fields(in, RUSAGE_SELF, "");
    cpu_fields(in, RUSAGE_CHILDREN, "_children");
    cpu_fields(in, RUSAGE_THREAD, "_main_thread");
}

static void section_modules(struct info *in)
{
    (void)in;
}

static void section_commandstats(struct info *in)
{
    for (int id = 0; id < command_count; id++) {
        struct cmd_stat_sum s;
        cmd_stat_sum(in->cmd, id, &s);
        if (s.calls == 0 && s.failed == 0 && s.rejected == 0)
            continue;
        line(in,
             "cmdstat_%s:calls=%" PRIu64 ",usec=%" PRIu64 ",usec_per_call=%.2f,rejected_calls=%" PRIu64
             ",failed_calls=%" PRIu64,
             command_table[id].full, s.calls, s.usec, s.calls ? (double)s.usec / (double)s.calls : 0.0, s.rejected,
             s.failed);
    }
}

static void section_errorstats(struct info *in)
{
    struct errstat_code *codes;
    int n = errstat_sum(in->cmd, &codes);
    for (int i = 0; i < n; i++)
        line(in, "errorstat_%s:count=%" PRIu64, codes[i].name, codes[i].count);
    mem_free(MEM_OTHER, codes);
}

/* The upper end of the bucket that holds the percentile. */
static double percentile_us(const struct cmd_stat_sum *s, double percent)
{
    double want = (double)s->samples * percent / 100, sum = 0;
    for (int k = 0; k < CMD_HIST_BUCKETS; k++) {
        sum += (double)s->hist[k];
        if (s->hist[k] && sum >= want)
            return (double)(UINT64_C(1) << k);
    }
    return 0;
}

static void section_latencystats(struct info *in)
{
    const char *percentiles = in->c->w->conf->latency_tracking_info_percentiles;
    for (int id = 0; id < command_count; id++) {
        struct cmd_stat_sum s;
        struct buf text;
        cmd_stat_sum(in->cmd, id, &s);
        if (!s.samples)
            continue;
        buf_init(&text, MEM_OTHER);
        for (const char *p = percentiles, *end; *p; p = end) { /* as conf/value.c writes them */
            double percent = strtod(p, (char **)(uintptr_t)&end);
            p += *p == ' ';
            buf_printf(&text, "%sp%.*s=%.3f", text.len ? "," : "", (int)(end - p), p, percentile_us(&s, percent));
        }
        line(in, "latency_percentiles_usec_%s:%.*s", command_table[id].full, (int)text.len, text.len ? text.ptr : "");
        buf_deinit(&text);
    }
}

static void section_cluster(struct info *in)
{
    line(in, "cluster_enabled:0");
}

/* No line for an empty database: some readers divide by its number of keys. */
static void section_keyspace(struct info *in)
{
    struct mem *m = in->c->w->tier->mem;
    for (unsigned db = 0; db < m->databases; db++) {
        int64_t keys = 0, expires = 0;
        for (unsigned i = db; i < m->spaces; i += m->databases) { /* copies, and local ones */
            keys += atomic_load_explicit(&m->db[i].keys, memory_order_relaxed);
            expires += atomic_load_explicit(&m->db[i].expires, memory_order_relaxed);
        }
        if (keys > 0)
            line(in, "db%u:keys=%" PRId64 ",expires=%" PRId64 ",avg_ttl=0", db, keys, expires);
    }
}

static void stat_fields(struct info *in, const enum stats_id *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        stat_field(in, ids[i]);
}

static void disk_fields(struct info *in, const struct tier_figures *f)
{
    static const enum stats_id counted[] = {STAT_tier_disk_hits,          STAT_tier_disk_hit_bytes,
                                            STAT_tier_disk_misses,        STAT_tier_disk_filter_negatives,
                                            STAT_tier_demotions,          STAT_tier_promotions,
                                            STAT_tier_clean_drops,        STAT_tier_dirty_drops,
                                            STAT_tier_journal_writes,     STAT_tier_admission_size,
                                            STAT_tier_admission_expiring, STAT_tier_admission_unread};
    const struct disk *disk = in->c->w->tier->disk;
    struct disk_stats ds = {0};
    char problem[256] = "";
    if (disk) {
        disk_get_stats(disk, &ds);
        disk_problem(disk, problem);
    }
    field(in, "tier_disk_enabled", f->disk_on);
    field(in, "tier_disk_healthy", f->disk_healthy);
    if (problem[0])
        line(in, "tier_disk_problem:%s", problem);
    field(in, "tier_disk_keys", f->disk_keys);
    field(in, "tier_disk_bytes", f->disk_bytes);
    field(in, "tier_disk_block_bytes", (int64_t)ds.block_bytes);
    field(in, "tier_disk_live_bytes", (int64_t)ds.live_bytes);
    field(in, "tier_disk_queue_bytes", f->disk_queue_bytes);
    field(in, "tier_disk_index_bytes", f->disk_index_bytes);
    field(in, "tier_disk_appended_bytes", (int64_t)ds.appended_bytes);
    field(in, "tier_disk_written_bytes", f->disk_written_bytes);
    field(in, "tier_disk_commits", f->disk_commits);
    field(in, "tier_disk_commit_mean_us", ds.commits ? (int64_t)(ds.commit_us / ds.commits) : 0);
    field(in, "tier_disk_last_commit_ms", (int64_t)ds.last_commit_ms);
    field(in, "tier_disk_reads", (int64_t)ds.reads);
    field(in, "tier_disk_inline_reads", (int64_t)ds.inline_reads);
    field(in, "tier_disk_carried_keys", (int64_t)ds.carried_keys);
    field(in, "tier_disk_carried_bytes", (int64_t)ds.carried_bytes);
    field(in, "tier_disk_dropped_keys", (int64_t)ds.dropped_keys);
    field(in, "tier_disk_expired_keys", (int64_t)ds.expired_keys);
    field(in, "tier_disk_corrupt", f->disk_corrupt);
    field(in, "tier_disk_io_errors", f->disk_io_errors);
    field(in, "tier_demoting_bytes", f->demoting_bytes);
    stat_fields(in, counted, sizeof(counted) / sizeof(counted[0]));
}

static void section_tiers(struct info *in)
{
    static const enum stats_id upstream[] = {
        STAT_tier_upstream_requests, STAT_tier_upstream_hits,       STAT_tier_upstream_misses,
        STAT_tier_upstream_errors,   STAT_tier_upstream_unreadable, STAT_tier_coalesced_misses,
        STAT_tier_negative_hits,     STAT_tier_stale_hits,          STAT_tier_invalidations,
        STAT_tier_stale_served,      STAT_tier_refreshes,           STAT_tier_refresh_failures,
        STAT_tier_suspects,          STAT_tier_link_losses,         STAT_tier_fences,
        STAT_tier_fence_failures};
    static const enum stats_id compression[] = {STAT_compression_values, STAT_compression_bytes_in,
                                                STAT_compression_bytes_out};
    struct tier_figures f;
    tier_get_figures(in->c->w->tier, &f);
    stat_field(in, STAT_tier_memory_hits);
    stat_field(in, STAT_tier_memory_refound);
    stat_field(in, STAT_tier_memory_misses);
    field(in, "tier_memory_keys", f.memory_keys);
    field(in, "tier_memory_bytes", f.memory_bytes);
    field(in, "tier_inflight_bytes", f.inflight_bytes);
    disk_fields(in, &f);
    line(in, "tier_upstream_state:%s", f.upstream_state);
    stat_fields(in, upstream, sizeof(upstream) / sizeof(upstream[0]));
    field(in, "tier_upstream_pins", f.pins);
    field(in, "tier_upstream_subscriptions", f.subscriptions);
    line(in, "tier_upstream_breaker:%s", f.breaker);
    field(in, "tier_upstream_breaker_opens", f.breaker_opens);
    field(in, "tier_upstream_breaker_refused", f.breaker_refused);
    line(in, "coherence_mode:%s", f.coherence_mode);
    line(in, "coherence_reason:%s", f.coherence_reason);
    field(in, "coherence_bound_ms", f.coherence_bound_ms);
    field(in, "tier_upstream_copies", f.upstream_copies);
    field(in, "tier_tracking_table_estimate", f.tracking_table);
    field(in, "tier_local_keys", f.local_keys);
    stat_fields(in, compression, sizeof(compression) / sizeof(compression[0]));
}

/* ---- which sections ---- */

static const struct section {
    const char *name, *title;
    void (*write)(struct info *in);
    bool by_default, in_all;
} sections[] = {
    {"server", "Server", section_server, true, true},
    {"clients", "Clients", section_clients, true, true},
    {"memory", "Memory", section_memory, true, true},
    {"persistence", "Persistence", section_persistence, true, true},
    {"stats", "Stats", section_stats, true, true},
    {"replication", "Replication", section_replication, true, true},
    {"cpu", "CPU", section_cpu, true, true},
    {"modules", "Modules", section_modules, true, true},
    {"commandstats", "Commandstats", section_commandstats, false, true},
    {"errorstats", "Errorstats", section_errorstats, true, true},
    {"latencystats", "Latencystats", section_latencystats, false, true},
    {"cluster", "Cluster", section_cluster, true, true},
    {"tiers", "Tiers", section_tiers, true, true},
    {"keyspace", "Keyspace", section_keyspace, true, true},
};
#define NSECTIONS (sizeof(sections) / sizeof(sections[0]))

static bool is_asked(const struct call *c, const struct section *s)
{
    if (c->argc == 1)
        return s->by_default;
    for (int i = 1; i < c->argc; i++) {
        if (call_arg_is(c, i, s->name) || call_arg_is(c, i, "everything") || (call_arg_is(c, i, "all") && s->in_all) ||
            (call_arg_is(c, i, "default") && s->by_default))
            return true;
    }
    return false;
}

void cmd_info(struct call *c)
{
    struct info in = {.c = c, .cmd = c->w->cmd};
    buf_init(&in.out, MEM_CLIENT);
    for (size_t i = 0; i < NSECTIONS; i++) {
        if (!is_asked(c, &sections[i]))
            continue;
        if (in.out.len)
            buf_append(&in.out, "\r\n", 2);
        line(&in, "# %s", sections[i].title);
        sections[i].write(&in);
    }
    reply_verbatim(&c->r, buf_slice(&in.out), "txt");
    buf_deinit(&in.out);
}
