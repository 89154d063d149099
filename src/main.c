/* Starting, running and stopping: settings, tiers from the bottom up, loops; signals. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "main/main_priv.h"
#include "tiercel/acl.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/cmd.h"
#include "tiercel/codec.h"
#include "tiercel/conf.h"
#include "tiercel/disk.h"
#include "tiercel/figures.h"
#include "tiercel/hash.h"
#include "tiercel/health.h"
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
#define DRAIN_MS 500 /* clients' time to take their last replies at a stop */
/* In so little memory clients get bounds, too: an eighth of it. */
#define MEMORY_SMALL ((int64_t)1 << 30)
#define CLIENTS_SHARE 8
#define MEMORY_TIGHT 70                  /* percent of it */
#define MEMORY_TINY ((int64_t)256 << 20) /* so little that the allocator may keep nothing for later */
#define GIVE_BACK_MS 50
#define FETCH_DRAIN_MS 5000
#define EXIT_FORCED 2 /* a second signal cut the stop short; 1: it could not start */

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
    int64_t memory_bytes; /* of the machine or the cgroup */
    bool has_upstream, running;
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

static void derive_memory(struct server *sv, const struct machine *m)
{
    long long all = m->memory_bytes, data = settings_usable_memory(all) / 100 * MAXMEMORY_SHARE;

    if (sv->conf->maxmemory_clients == 0 && all <= MEMORY_SMALL &&
        conf_assign(sv, "maxmemory-clients", all / CLIENTS_SHARE))
        log_notice("main", "maxmemory-clients: %lld MB, an eighth of %s", all / CLIENTS_SHARE >> 20, m->memory_source);
    if (sv->conf->maxmemory == 0) {
        if (conf_assign(sv, "maxmemory", data))
            log_notice("main", "maxmemory: %lld MB, %d %% of %s (%lld MB) less %lld MB", data >> 20, MAXMEMORY_SHARE,
                       m->memory_source, all >> 20, (all - settings_usable_memory(all)) >> 20);
    } else if (sv->conf->maxmemory > settings_usable_memory(all)) {
        log_warning("main", "maxmemory is %lld MB, and %s is %lld MB: at most %lld MB leave room for all else",
                    (long long)sv->conf->maxmemory >> 20, m->memory_source, all >> 20, data >> 20);
    }
}

static int derive_settings(struct server *sv)
{
    int threads = (int)sv->conf->threads;
    struct machine m;

    machine_get("", &m);
    sv->memory_bytes = m.memory_bytes;
    if (m.memory_bytes <= MEMORY_TINY)
        mem_keep_no_pages();
    derive_memory(sv, &m);
    if (threads == 0) {
        threads = m.cpus;
        log_notice("main", "threads: %d, from %s", threads, m.cpus_source);
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
    bool made = mkdir(c->dir, 0700) == 0;
    if (!made && errno != EEXIST) {
        snprintf(err, 256, "dir %.180s cannot be made: %s", c->dir, strerror(errno));
        return false;
    }
    if (disk_open(&opt, &sv->disk, err) == ST_OK)
        return true;
    if (made)
        rmdir(c->dir); /* if nothing came into it */
    return false;
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
        if (upstream_parse_url(c->upstream, &sv->upstream, err) != ST_OK)
            return false;
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
        snprintf(sv->upstream.prefixes, sizeof(sv->upstream.prefixes), "%s", c->coherence_prefixes);
        snprintf(sv->upstream.auth_file, sizeof(sv->upstream.auth_file), "%s", c->upstream_auth_file);
        /* Copies on disk carry the generation of the run that fetched them, and must not look current in this one. */
        random_bytes(&sv->upstream.first_generation, sizeof(sv->upstream.first_generation));
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
    signal(SIGCHLD, SIG_IGN); /* as process 1 of a container it gets the orphans of others; so the kernel buries them */
}

static void on_second_signal(int sig)
{
    (void)sig;
    _exit(EXIT_FORCED);
}

static void set_http_access(void *arg, const struct conf *conf)
{
    struct server *sv = arg;
    struct http_access access = {conf->http_token, conf->protected_mode};

    http_set_access(sv->http, &access);
}

/* conf_lock held. */
static void reload_token(struct server *sv)
{
    struct conf *next;
    struct buf err;

    buf_init(&err, MEM_OTHER);
    enum status st = conf_reload_secret(sv->cmd->conf, "http-token", &next, &err);
    if (st == ST_OK) {
        set_http_access(sv, next);
        cmd_replace_conf(sv->cmd, next);
    } else if (st == ST_BAD) {
        log_warning("main", "http-token is not loaded again: %.*s", (int)err.len, err.ptr);
    }
    buf_deinit(&err);
}

/* SIGHUP: files that others may have replaced. */
static void reload(struct server *sv)
{
    char err[256];

    if (!log_reopen())
        log_warning("main", "the log file cannot be reopened: %s", strerror(errno));
    pthread_mutex_lock(&sv->cmd->conf_lock);
    enum status st = net_tls_reload(sv->net, sv->cmd->conf, err);
    reload_token(sv);
    pthread_mutex_unlock(&sv->cmd->conf_lock);
    if (st != ST_OK)
        log_warning("main", "certificates are not loaded again: %s", err);
}

/* In little memory the allocator's free pages are missed: they go back in time, and at once when it gets tight. */
static void give_back(const struct server *sv)
{
    struct machine_rss rss;

    machine_get_rss(&rss);
    if (rss.anon > sv->memory_bytes / 100 * MEMORY_TIGHT)
        mem_purge();
    else
        mem_decay();
}

static void wait_for_stop(struct server *sv, const sigset_t *set)
{
    const struct timespec step = {.tv_nsec = GIVE_BACK_MS * 1000000L};

    for (;;) {
        int sig = sv->memory_bytes <= MEMORY_SMALL ? sigtimedwait(set, NULL, &step) : sigwaitinfo(set, NULL);
        if (sig < 0) {
            if (errno == EAGAIN)
                give_back(sv);
            continue;
        }
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

    notify_send("STOPPING=1\nSTATUS=Stopping: what is only in memory is written out");
    http_drain(sv->http);
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
    http_stop(sv->http);
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
    log_rotate_stop();
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
    warm_expect(sv->cmd->warm, false);
}

static bool start_http(struct server *sv, char err[256])
{
    struct http_options opt = {.bind = sv->conf->http_bind,
                               .port = (int)sv->conf->http_port,
                               .metrics = figures_metrics,
                               .ready = figures_ready};

    if (sv->conf->http_port == 0)
        return true;
    if (http_start(&opt, &sv->http, err) != ST_OK)
        return false;
    set_http_access(sv, sv->conf);
    if (!http_is_local(sv->http) && !sv->conf->http_token[0])
        log_warning("main",
                    sv->conf->protected_mode
                        ? "http-bind %s: other hosts get no /metrics until http-token is set, or protected-mode is no"
                        : "http-bind %s: everybody gets /metrics, for there is no http-token",
                    sv->conf->http_bind);
    return true;
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
    if (!start_http(sv, err)) /* early: it answers while the tiers are loaded */
        return false;
    notify_send("STATUS=Starting: the disk tier's index is read");
    if (!make_tiers(sv, threads, err))
        return false;
    struct cmd_server_ops ops = {.shutdown = on_shutdown_command,
                                 .arg = sv,
                                 .serve_while_busy = net_serve_while_busy,
                                 .reload_tls = reload_tls,
                                 .conf_changed = set_http_access};
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
    warm_expect(sv->cmd->warm, sv->conf->warm_on_start[0] != '\0');
    http_serve(sv->http, sv->cmd); /* whose PING is answered finds it ready */
    sv->running = true;
    if (loops_start(sv->loops) != ST_OK) {
        snprintf(err, 256, "a worker could not listen");
        return false;
    }
    if (sv->conf->warm_on_start[0])
        loops_run(sv->loops, warm_at_start, sv);
    return true;
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
    if (health_is_asked(argc, argv))
        return health_run(argc, argv, envp);
    buf_init(&text, MEM_OTHER);
    bool check = argc > 1 && strcmp(argv[1], "--check") == 0;
    argc -= check;
    argv += check;
    if (conf_load(argc, argv, envp, &sv.conf, &exit_now, &text) != ST_OK) {
        if (check)
            printf("error settings: %.*s\n", (int)text.len, text.ptr);
        else
            fprintf(stderr, "tiercel: %.*s\n", (int)text.len, text.ptr);
        buf_deinit(&text);
        return 1;
    }
    if (exit_now)
        return 0;
    if (check)
        return check_print(sv.conf, buf_slice(&text));
    if (!settings_check(sv.conf, err)) { /* before there is a log file, or anything else */
        fprintf(stderr, "tiercel: %s\n", err);
        return 1;
    }
    if (sv.conf->daemonize && !daemon_begin()) { /* before there are threads */
        fprintf(stderr, "tiercel: daemonize: %s\n", strerror(errno));
        return 1;
    }
    if (!log_setup(sv.conf->logfile, (enum log_level)sv.conf->loglevel, (enum log_format)sv.conf->log_format)) {
        fprintf(stderr, "tiercel: logfile %s: %s\n", sv.conf->logfile, strerror(errno));
        return 1;
    }
    log_set_modules(sv.conf->log_level_modules, &(const char *){NULL}); /* checked when they were read */
    check_set_hook(log_failed_check);
    log_lines(&text);
    buf_deinit(&text);
    block_signals(&signals); /* before there are threads */
    log_rotate_set(sv.conf->log_max_size, (int)sv.conf->log_max_files);
    if (!log_rotate_start(codec_pack_file))
        return fail("no thread can be started");
    if (readlink("/proc/self/exe", executable, sizeof(executable) - 1) < 0)
        executable[0] = '\0';
    if (!start(&sv, executable, err)) {
        if (!sv.running) /* the UNIX socket goes; loops under way end with the process */
            net_close(sv.net);
        return fail(err);
    }
    write_pidfile(sv.conf->pidfile);
    log_notice("main", "tiercel %s ready: port %d, %s, disk %s, upstream %s", TIERCEL_VERSION, net_port(sv.net),
               sv.conf->dir, sv.disk ? "on" : "off", sv.has_upstream ? "on" : "none");
    char state[128];
    snprintf(state, sizeof(state), "READY=1\nSTATUS=Serving on port %d", net_port(sv.net));
    notify_send(state);
    daemon_ready();
    wait_for_stop(&sv, &signals);
    stop(&sv);
    return 0;
}
