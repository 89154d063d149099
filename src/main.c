/* Starting, running and stopping: settings, tiers from the bottom up, loops; signals. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiercel/acl.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/cmd.h"
#include "tiercel/conf.h"
#include "tiercel/disk.h"
#include "tiercel/figures.h"
#include "tiercel/hash.h"
#include "tiercel/http.h"
#include "tiercel/log.h"
#include "tiercel/loop.h"
#include "tiercel/machine.h"
#include "tiercel/mem.h"
#include "tiercel/net.h"
#include "tiercel/num.h"
#include "tiercel/tier.h"
#include "tiercel/upstream.h"
#include "tiercel/version.h"
#include "tiercel/warm.h"

#define SHARD_BITS 10
#define DRAIN_MS 500       /* clients' time to take their last replies at a stop */
#define MAXMEMORY_SHARE 60 /* percent of the machine or cgroup that maxmemory 0 stands for */
#define FETCH_DRAIN_MS 5000

struct server {
    struct conf *conf;
    struct acl *acl; /* the command layer's, once that is there */
    struct mem *mem;
    struct disk *disk;
    struct tier *tier;
    struct cmd *cmd;
    struct net *net;
    struct loops *loops;
    struct http *http;
    struct upstream_options upstream;
    bool has_upstream;
    _Atomic bool save_at_stop;
    _Atomic bool stopping;
};

static int fail(const char *what)
{
    fprintf(stderr, "tiercel: %s\n", what);
    log_warning("main", "%s", what);
    return 1;
}

static void log_failed_check(const char *message)
{
    log_warning("check", "%s", message);
}

/* ---- what the machine allows ---- */

static bool conf_assign(struct server *sv, const char *name, long long value)
{
    char text[32];
    struct slice pair[2] = {slice_str(name), SLICE_NONE};
    struct conf *next;
    struct buf err;

    snprintf(text, sizeof(text), "%lld", value);
    pair[1] = slice_str(text);
    buf_init(&err, MEM_OTHER);
    bool ok = conf_set(sv->conf, 1, pair, &next, &err) == ST_OK;
    buf_deinit(&err);
    if (ok) {
        conf_unref(sv->conf);
        sv->conf = next;
    }
    return ok;
}

static int derive_settings(struct server *sv)
{
    const char *source;
    int threads = (int)sv->conf->threads;

    if (sv->conf->maxmemory == 0) {
        long long bytes = machine_memory_bytes(&source) / 100 * MAXMEMORY_SHARE;
        if (bytes > 0 && conf_assign(sv, "maxmemory", bytes))
            log_notice("main", "maxmemory: %lld MB, %d %% of %s", bytes >> 20, MAXMEMORY_SHARE, source);
    }
    if (threads == 0) {
        threads = machine_cpus(&source);
        log_notice("main", "threads: %d, from %s", threads, source);
    }
    return threads > 128 ? 128 : threads;
}

/* ---- tiers ---- */

static bool open_disk(struct server *sv, char err[256])
{
    const struct conf *c = sv->conf;
    int64_t queue = c->maxmemory / 8;
    struct disk_options opt = {
        .dir = c->dir,
        .max_bytes = (uint64_t)c->disk_max_size,
        .retain = tier_retain(c),
        .thorough = tier_thorough(c),
        .shard_bits = SHARD_BITS,
        .databases = (unsigned)c->databases * (c->upstream[0] ? 2 : 1), /* see make_tiers() */
        .readers = (unsigned)c->disk_readers,
        .commit_ms = (unsigned)c->disk_commit_ms,
        .commit_bytes = (size_t)c->disk_commit_bytes,
        .queue_max_bytes = TIER_DISK_QUEUE(queue),
    };

    if (opt.commit_bytes > opt.queue_max_bytes / 4)
        opt.commit_bytes = opt.queue_max_bytes / 4;
    struct disk_owner owner;
    tier_disk_owner(NULL, &owner);
    opt.owner.notice = owner.notice; /* what it meets while it opens is said; the rest once there are tiers */
    random_bytes(&opt.fresh_seed, sizeof(opt.fresh_seed));
    if (mkdir(c->dir, 0700) != 0 && errno != EEXIST) {
        snprintf(err, 256, "dir %.180s cannot be made: %s", c->dir, strerror(errno));
        return false;
    }
    if (access(c->dir, W_OK | X_OK) != 0) {
        snprintf(err, 256, "dir %.180s is not writable: %s", c->dir, strerror(errno));
        return false;
    }
    return disk_open(&opt, &sv->disk, err) == ST_OK;
}

static bool make_tiers(struct server *sv, int threads, char err[256])
{
    const struct conf *c = sv->conf;
    uint32_t incarnations[2 * 1024] = {0};
    /* With an upstream each database has a second key space, for what lives only here (write=local). */
    unsigned spaces = (unsigned)c->databases * (c->upstream[0] ? 2 : 1);
    uint64_t seed;

    if (c->upstream[0]) {
        sv->has_upstream = true;
        char why[256];
        if (upstream_parse_url(c->upstream, &sv->upstream, why) != ST_OK) {
            snprintf(err, 256, "upstream: %.200s", why);
            return false;
        }
        sv->upstream.timeout_ms = c->upstream_timeout_ms;
        sv->upstream.watchdog_ms = TIER_WATCHDOG_MS;
        sv->upstream.watchdog_timeout_ms = TIER_WATCHDOG_TIMEOUT_MS;
        sv->upstream.backoff_min_ms = 50;
        sv->upstream.backoff_max_ms = 2000;
        sv->upstream.queue_max = (unsigned)c->upstream_queue_max;
        sv->upstream.pins_max = (unsigned)c->upstream_pins_max;
        sv->upstream.subscriptions_max = (unsigned)c->upstream_subscriptions_max;
        sv->upstream.breaker_failures = (unsigned)c->upstream_breaker_failures;
        sv->upstream.coherence = (enum upstream_mode)c->coherence;
        sv->upstream.tracked_max = c->tracked_keys_max;
        sv->upstream.ttl_ms = c->coherence_ttl_ms;
        if (upstream_check_prefixes(c->coherence_prefixes, why) != ST_OK) {
            snprintf(err, 256, "coherence-prefixes: %.200s", why);
            return false;
        }
        snprintf(sv->upstream.prefixes, sizeof(sv->upstream.prefixes), "%s", c->coherence_prefixes);
        if (strlen(c->upstream_auth_file) >= sizeof(sv->upstream.auth_file)) {
            snprintf(err, 256, "upstream-auth-file: too long a path");
            return false;
        }
        snprintf(sv->upstream.auth_file, sizeof(sv->upstream.auth_file), "%s", c->upstream_auth_file);
        /* Copies on disk carry the generation of the run that fetched them, and must not look current in this one. */
        random_bytes(&sv->upstream.first_generation, sizeof(sv->upstream.first_generation));
    }
    if (c->client_auth == CLIENT_AUTH_UPSTREAM && !sv->has_upstream) {
        snprintf(err, 256, "client-auth upstream: there is no upstream");
        return false;
    }
    random_bytes(&seed, sizeof(seed));
    if (c->disk) {
        if (!open_disk(sv, err))
            return false;
        seed = disk_hash_seed(sv->disk);
        for (unsigned db = 0; db < spaces; db++)
            incarnations[db] = disk_incarnation(sv->disk, db);
    }
    sv->mem = mem_create_spaces(SHARD_BITS, (unsigned)c->databases, spaces, seed, incarnations);
    struct tier_options opt = {.mem = sv->mem, .upstream = sv->has_upstream, .nworkers = threads};
    sv->tier = tier_create(&opt, c);
    if (!object_lazy_start()) {
        snprintf(err, 256, "no thread can be started");
        return false;
    }
    return true;
}

/* ---- stopping ---- */

static void on_shutdown_command(void *arg, bool save, bool now)
{
    struct server *sv = arg;
    (void)now;

    if (atomic_exchange(&sv->stopping, true)) /* a second signal would not wait for the first */
        return;
    atomic_store(&sv->save_at_stop, save);
    kill(getpid(), SIGTERM);
}

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void on_second_signal(int sig)
{
    (void)sig;
    _exit(1);
}

/* SIGHUP: files that others may have replaced. */
static void reload(struct server *sv)
{
    char err[256];

    if (!log_reopen())
        log_warning("main", "the log file cannot be reopened: %s", strerror(errno));
    pthread_mutex_lock(&sv->cmd->conf_lock);
    enum status st = net_tls_reload(sv->net, sv->cmd->conf, err);
    pthread_mutex_unlock(&sv->cmd->conf_lock);
    if (st != ST_OK)
        log_warning("main", "certificates are not loaded again: %s", err);
}

static void wait_for_stop(struct server *sv, const sigset_t *set)
{
    for (;;) {
        int sig = 0;
        if (sigwait(set, &sig) != 0)
            continue;
        if (sig == SIGHUP) {
            reload(sv);
            continue;
        }
        atomic_store(&sv->stopping, true);
        log_notice("main", "signal %d: stopping", sig);
        break;
    }
    /* A second one does not wait. */
    struct sigaction sa = {.sa_handler = on_second_signal};
    sigset_t second;
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigemptyset(&second);
    sigaddset(&second, SIGTERM);
    sigaddset(&second, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &second, NULL);
}

static void stop(struct server *sv)
{
    int64_t timeout_ms = sv->conf->shutdown_timeout * 1000;

    notify_send("STOPPING=1");
    http_stop(sv->http);
    loops_quiesce(sv->loops, DRAIN_MS < timeout_ms ? DRAIN_MS : timeout_ms);
    if (!loops_settle(sv->loops, FETCH_DRAIN_MS))
        log_warning("main", "reads from disk are still under way");
    if (sv->disk) {
        if (atomic_load(&sv->save_at_stop)) {
            int64_t lost = tier_write_out(sv->tier, timeout_ms);
            if (lost < 0)
                log_warning("main", "memory was not written out: the disk tier cannot be written");
            else if (lost > 0)
                log_warning(
                    "main",
                    "%lld objects were not written out: the disk tier is full or cannot be written, or shutdown-timeout was over",
                    (long long)lost);
        }
        tier_save_stop(sv->tier);
        disk_close(sv->disk);
    }
    loops_end(sv->loops);
    loops_destroy(sv->loops);
    net_close(sv->net);
    cmd_destroy(sv->cmd);
    tier_destroy(sv->tier);
    mem_destroy(sv->mem);
    object_lazy_stop();
    if (sv->conf->pidfile[0])
        unlink(sv->conf->pidfile);
    log_notice("main", "bye");
    conf_unref(sv->conf);
}

/* ---- starting ---- */

static void write_pidfile(const char *path)
{
    FILE *f = path[0] ? fopen(path, "we") : NULL;

    if (f) {
        fprintf(f, "%d\n", (int)getpid());
        fclose(f);
    } else if (path[0]) {
        log_warning("main", "pidfile %s: %s", path, strerror(errno));
    }
}

static void warm_at_start(struct worker *w, void *arg)
{
    struct server *sv = arg;
    char err[WARM_ERROR_MAX];
    uint64_t id;

    if (warm_start_line(sv->cmd->warm, w, 0, sv->conf->warm_on_start, &id, err) != ST_OK)
        log_warning("warm", "warm-on-start: %s", err);
}

static bool start_http(struct server *sv, char err[256])
{
    struct http_options opt = {.bind = sv->conf->http_bind,
                               .port = (int)sv->conf->http_port,
                               .arg = sv->cmd,
                               .metrics = figures_metrics,
                               .ready = figures_ready};

    return sv->conf->http_port == 0 || http_start(&opt, &sv->http, err) == ST_OK;
}

static bool add_library(void *arg, struct slice source, char err[256])
{
    return cmd_functions_add(arg, source, err);
}

/* What a Redis left in dir, where there is nothing of ours. With an upstream it would not be its data. */
static bool load_dump(struct server *sv, struct worker *w, bool libraries, char err[256])
{
    struct tier_figures f;
    struct tier_load loaded = {.library = libraries ? add_library : NULL, .arg = w};
    char path[PATH_MAX], why[256];

    tier_get_figures(sv->tier, &f);
    if (!sv->conf->dbfilename[0] || sv->has_upstream || f.disk_keys > 0)
        return true;
    snprintf(path, sizeof(path), "%s/%s", sv->conf->dir, sv->conf->dbfilename);
    struct obj_limits lim = cmd_obj_limits(sv->conf);
    switch (tier_load_rdb(w, path, &lim, &loaded, why)) {
    case ST_OK:
        log_notice("main", "%.180s: %lld keys and %lld libraries of functions loaded, %lld keys have expired", path,
                   (long long)loaded.keys, (long long)loaded.libraries, (long long)loaded.expired);
        return true;
    case ST_NOT_FOUND: return true;
    default: snprintf(err, 256, "%.100s: %.150s", path, why); return false;
    }
}

static bool reload_tls(void *arg, const struct conf *next, char err[256])
{
    struct server *sv = arg;

    return net_tls_reload(sv->net, next, err) == ST_OK;
}

static bool start(struct server *sv, const char *executable, char err[256])
{
    sv->acl = acl_create(sv->conf);
    if (!acl_load_start(sv->acl, sv->conf, err))
        return false;
    int threads = derive_settings(sv);
    int64_t maxclients = sv->conf->maxclients;
    if (net_listen(sv->conf, threads, &sv->net, &maxclients, err) != ST_OK)
        return false;
    if (maxclients != sv->conf->maxclients)
        conf_assign(sv, "maxclients", maxclients);
    if (!make_tiers(sv, threads, err))
        return false;
    struct cmd_server_ops ops = {
        .shutdown = on_shutdown_command, .arg = sv, .serve_while_busy = net_serve_while_busy, .reload_tls = reload_tls};
    sv->cmd = cmd_create(sv->tier, sv->conf, sv->acl, &ops);
    sv->cmd->tcp_port = net_port(sv->net);
    sv->cmd->executable = executable;
    sv->loops = loops_create(threads, sv->conf);
    if (sv->disk) {
        struct disk_owner owner;
        tier_set_disk(sv->tier, sv->disk);
        tier_disk_owner(sv->tier, &owner);
        if (disk_start(sv->disk, &owner, err) != ST_OK)
            return false;
    }
    struct worker *w = loops_prepare(sv->loops, sv->cmd, sv->tier, sv->net, sv->has_upstream ? &sv->upstream : NULL);
    /* Functions are the upstream's, where there is one. */
    enum status kept = sv->disk && !sv->has_upstream ? cmd_functions_open(w, sv->conf->dir, err) : ST_NOT_FOUND;
    if ((kept != ST_OK && kept != ST_NOT_FOUND) || !load_dump(sv, w, kept == ST_NOT_FOUND, err))
        return false;
    if (loops_start(sv->loops) != ST_OK) {
        snprintf(err, 256, "a worker could not listen");
        return false;
    }
    if (sv->conf->warm_on_start[0])
        loops_run(sv->loops, warm_at_start, sv);
    return start_http(sv, err);
}

static void log_lines(const struct buf *text)
{
    const char *at = text->ptr, *end = text->ptr + text->len;

    while (at < end) {
        const char *nl = memchr(at, '\n', (size_t)(end - at));
        const char *stop_at = nl ? nl : end;
        if (stop_at > at)
            log_warning("conf", "%.*s", (int)(stop_at - at), at);
        at = stop_at + 1;
    }
}

int main(int argc, char **argv, char **envp)
{
    static struct server sv = {.save_at_stop = true}; /* reachable to the end: a start that fails frees nothing */
    bool exit_now = false;
    char err[256] = "", executable[PATH_MAX] = "";
    struct buf text;
    sigset_t signals;

    umask(0077);
    buf_init(&text, MEM_OTHER);
    if (conf_load(argc, argv, envp, &sv.conf, &exit_now, &text) != ST_OK) {
        fprintf(stderr, "tiercel: %.*s\n", (int)text.len, text.ptr);
        buf_deinit(&text);
        return 1;
    }
    if (exit_now)
        return 0;
    if (sv.conf->daemonize && daemon(1, 0) != 0) { /* before there are threads */
        fprintf(stderr, "tiercel: daemonize: %s\n", strerror(errno));
        return 1;
    }
    if (!log_setup(sv.conf->logfile, (enum log_level)sv.conf->loglevel, (enum log_format)sv.conf->log_format)) {
        fprintf(stderr, "tiercel: logfile %s: %s\n", sv.conf->logfile, strerror(errno));
        return 1;
    }
    check_set_hook(log_failed_check);
    log_lines(&text);
    buf_deinit(&text);
    block_signals(&signals); /* before there are threads */
    if (readlink("/proc/self/exe", executable, sizeof(executable) - 1) < 0)
        executable[0] = '\0';
    if (!start(&sv, executable, err))
        return fail(err);
    write_pidfile(sv.conf->pidfile);
    log_notice("main", "tiercel %s ready: port %d, %s, disk %s, upstream %s", TIERCEL_VERSION, net_port(sv.net),
               sv.conf->dir, sv.disk ? "on" : "off", sv.has_upstream ? "on" : "none");
    notify_send("READY=1");
    wait_for_stop(&sv, &signals);
    stop(&sv);
    return 0;
}
