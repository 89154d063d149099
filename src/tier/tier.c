/* The tier layer's life: creation, its part of each worker, settings, figures. */
#include "tiercel/clock.h"
#include "tiercel/log.h"
#include "tier_priv.h"

#define TIMER_SLACK_MS 100

/* What is pinned cannot be evicted: it must not be all there is. */
static int64_t inflight_max(const struct conf *c)
{
    int64_t share = c->maxmemory / 4;
    return c->maxmemory > 0 && share < c->inflight_max_bytes ? share : c->inflight_max_bytes;
}

void tier_conf_changed(struct tier *t, const struct conf *c)
{
    atomic_store(&t->limit.maxmemory, c->maxmemory);
    atomic_store(&t->limit.inflight_max, inflight_max(c));
    atomic_store(&t->limit.disk_queue_max, (int64_t)TIER_DISK_QUEUE(c->maxmemory / 8));
    atomic_store(&t->limit.negative_ttl_ms, c->negative_ttl_ms);
    atomic_store(&t->limit.stale_if_error_ms, c->stale_if_error_ms);
    atomic_store(&t->limit.tracked_keys_max, c->tracked_keys_max);
    atomic_store(&t->limit.upstream_max_object, c->upstream_max_object);
    atomic_store(&t->limit.policy, c->maxmemory_policy);
    atomic_store(&t->limit.samples, (int)c->maxmemory_samples);
    atomic_store(&t->limit.lfu_log_factor, (int)c->lfu_log_factor);
    atomic_store(&t->limit.lfu_decay_time, (int)c->lfu_decay_time);
    atomic_store(&t->limit.disk_stall_ms, (int)c->disk_stall_ms);
    atomic_store(&t->limit.disk_min_value, c->disk_min_value);
    atomic_store(&t->limit.disk_max_value, c->disk_max_value);
    atomic_store(&t->limit.journal_always, c->appendonly && c->appendfsync == FSYNC_ALWAYS);
    bool was = atomic_exchange(&t->limit.journal, c->appendonly);
    if (!t->disk)
        return;
    disk_set_max_bytes(t->disk, (uint64_t)c->disk_max_size);
    disk_set_retain(t->disk, tier_retain(c), tier_thorough(c));
    if (c->appendonly && !was) { /* what was written before has to follow */
        atomic_store(&t->journal_debt, true);
        tier_pay_debt(t);
    }
}

/* What the policy says about records on disk. */
enum disk_retain tier_retain(const struct conf *c)
{
    switch (c->maxmemory_policy) {
    case POLICY_NOEVICTION: return DISK_RETAIN_ALL;
    case POLICY_VOLATILE_LRU:
    case POLICY_VOLATILE_LFU:
    case POLICY_VOLATILE_RANDOM:
    case POLICY_VOLATILE_TTL: return DISK_RETAIN_PERSISTENT;
    default: return DISK_RETAIN_HOT;
    }
}

bool tier_thorough(const struct conf *c)
{
    return c->appendonly || tier_retain(c) != DISK_RETAIN_HOT;
}

struct tier *tier_create(const struct tier_options *opt, const struct conf *conf)
{
    struct tier *t = mem_calloc(MEM_OTHER, sizeof(*t));
    size_t n = (size_t)opt->nworkers;

    t->mem = opt->mem;
    t->has_upstream = opt->upstream;
    t->nworkers = opt->nworkers;
    t->shard = mem_calloc(MEM_OTHER, t->mem->shards * sizeof(*t->shard));
    t->workers = mem_calloc(MEM_OTHER, n * sizeof(*t->workers));
    t->generation = mem_calloc(MEM_OTHER, n * sizeof(*t->generation));
    t->tracking = mem_calloc(MEM_OTHER, n * sizeof(*t->tracking));
    t->lost_ms = mem_calloc(MEM_OTHER, n * sizeof(*t->lost_ms));
    t->disk_stats = stats_block_create();
    t->policy = tier_policy_create();
    buf_init(&t->paying_serial, MEM_OTHER);
    tier_save_init(t);
    tier_conf_changed(t, conf);
    return t;
}

void tier_set_disk(struct tier *t, struct disk *disk)
{
    t->disk = disk;
    if (disk && !tier_big_start(t))
        log_warning("tier", "no thread can be started: large values are demoted by the loops");
    if (disk)
        disk_set_names(disk, atomic_load(&t->events) != 0);
    for (unsigned db = 0; disk && db < t->mem->spaces; db++) {
        int64_t keys, expires;
        disk_loaded_keys(disk, db, &keys, &expires);
        mem_db_count(t->mem, db, (int)keys, (int)expires);
        /* A new file learns the numbers that the tables were made with. */
        uint32_t inc = atomic_load(&t->mem->db[db].incarnation);
        if (disk_incarnation(disk, db) != inc)
            disk_set_incarnation(disk, db, inc);
    }
}

static void disk_notice(void *arg, bool healthy, const char *text)
{
    (void)arg;
    if (healthy)
        log_notice("disk", "%s", text);
    else
        log_warning("disk", "%s", text);
}

static void disk_lock(void *arg, uint64_t hash)
{
    mem_lock(tier_shard_of((struct tier *)arg, hash));
}

static void disk_unlock(void *arg, uint64_t hash)
{
    mem_unlock(tier_shard_of((struct tier *)arg, hash));
}

void tier_disk_owner(struct tier *t, struct disk_owner *out)
{
    *out = (struct disk_owner){.arg = t,
                               .committing = tier_committing,
                               .committed = tier_committed,
                               .settled = tier_settled,
                               .dropped = tier_dropped,
                               .lock = disk_lock,
                               .unlock = disk_unlock,
                               .keep_locked = tier_keep_locked,
                               .room = tier_room,
                               .notice = disk_notice};
}

void tier_destroy(struct tier *t)
{
    mem_free(MEM_OTHER, t->shard);
    mem_free(MEM_OTHER, t->workers);
    mem_free(MEM_OTHER, (void *)t->generation);
    mem_free(MEM_OTHER, (void *)t->tracking);
    mem_free(MEM_OTHER, (void *)t->lost_ms);
    tier_big_stop(t);
    mem_free(MEM_OTHER, t->saver);
    tier_policy_destroy(t->policy);
    buf_deinit(&t->paying_serial);
    mem_free(MEM_OTHER, t);
}

/* ---- what the upstream reports, on the worker's thread ---- */

static void upstream_invalidate(void *arg, struct slice name)
{
    struct tier_worker *tw = arg;

    stats_inc(tw->w->stats, STAT_tier_invalidations);
    /* The message carries no database, so the key goes in all of them. */
    for (unsigned db = 0; db < tw->w->tier->mem->databases; db++)
        tier_forget_upstream(tw->w, db, name);
}

static void upstream_invalidate_all(void *arg)
{
    struct tier_worker *tw = arg;

    stats_inc(tw->w->stats, STAT_tier_invalidations);
    tier_forget_all_upstream(tw->w);
}

static void upstream_generation_changed(void *arg, uint32_t generation)
{
    struct tier_worker *tw = arg;
    struct tier *t = tw->w->tier;

    if (generation == 0)
        atomic_store(&t->lost_ms[tw->w->id], clock_wall_ms());
    uint32_t was = atomic_exchange(&t->generation[tw->w->id], generation);
    if (was != 0 && was != generation)
        stats_inc(tw->w->stats, STAT_tier_link_losses);
    if (was != 0 && was != generation && atomic_load(&t->events) & TIER_EVENT_ALL) {
        mem_lock_all(t->mem); /* who found it current under a shard's lock has been noted by then */
        tier_foreign_all_locked(tw->w);
        mem_unlock_all(t->mem);
    }
}

static void upstream_notice(void *arg, const char *text)
{
    (void)arg;
    log_notice("upstream", "%s", text);
}

/* ---- workers ---- */

void tier_worker_init(struct tier *t, struct worker *w, const struct upstream_options *opt)
{
    struct tier_worker *tw = mem_calloc(MEM_OTHER, sizeof(*tw));

    tw->w = w;
    tier_fault_init(tw);
    tier_fence_init(tw);
    tier_journal_init(tw);
    buf_init(&tw->serial, MEM_OTHER);
    w->tier = t;
    w->tier_worker = tw;
    t->workers[w->id] = w;
    if (opt) {
        t->coherence_bound_ms = opt->watchdog_ms + opt->watchdog_timeout_ms + TIMER_SLACK_MS;
        t->coherence_ttl_ms = opt->ttl_ms + TIMER_SLACK_MS;
        struct upstream_events ev = {tw, upstream_invalidate, upstream_invalidate_all, upstream_generation_changed,
                                     upstream_notice};
        atomic_store(&t->lost_ms[w->id], clock_wall_ms()); /* disk copies of an earlier run may bridge an outage */
        tw->up = upstream_create(w->loop, opt, &ev);
    }
}

void tier_worker_stop(struct worker *w)
{
    if (w->tier_worker->up)
        upstream_destroy(w->tier_worker->up);
    w->tier_worker->up = NULL;
}

void tier_worker_deinit(struct worker *w)
{
    buf_deinit(&w->tier_worker->serial);
    tier_journal_deinit(w->tier_worker);
    mem_free(MEM_OTHER, w->tier_worker->touches);
    mem_free(MEM_OTHER, w->tier_worker->touched);
    mem_free(MEM_OTHER, w->tier_worker);
    w->tier_worker = NULL;
}

struct upstream *tier_upstream(struct worker *w)
{
    return w->tier_worker->up;
}

/* ---- figures ---- */

/* The mode is that of the worker that is worst off; its reason with it. */
static void upstream_figures(struct tier *t, struct tier_figures *out)
{
    static const char *const breakers[] = {"closed", "half-open", "open"};
    enum upstream_mode worst = UPSTREAM_TRACKING;
    enum upstream_breaker breaker = UPSTREAM_BREAKER_CLOSED;
    int up = 0;

    for (int i = 0; i < t->nworkers; i++) {
        char reason[sizeof(out->coherence_reason)];
        struct upstream *link = t->workers[i]->tier_worker->up;
        up += link && upstream_state(link) == UPSTREAM_UP;
        if (!link)
            continue;
        struct upstream_stats st;
        upstream_get_stats(link, &st);
        breaker = st.breaker > breaker ? st.breaker : breaker;
        out->breaker_opens += (int64_t)st.breaker_opens;
        out->breaker_refused += (int64_t)st.breaker_refused;
        out->pins += st.pins;
        out->subscriptions += st.subscriptions;
        enum upstream_mode mode = upstream_get_coherence(link, reason);
        if (i > 0 && mode <= worst)
            continue;
        worst = mode;
        memcpy(out->coherence_reason, reason, sizeof(reason));
    }
    out->upstream_state = up == t->nworkers ? "up" : up > 0 ? "degraded" : "down";
    out->breaker = breakers[breaker];
    out->coherence_mode = upstream_mode_name(worst);
    out->coherence_bound_ms = worst == UPSTREAM_TTL ? t->coherence_ttl_ms : t->coherence_bound_ms;
}

void tier_get_figures(struct tier *t, struct tier_figures *out)
{
    *out = (struct tier_figures){.upstream_state = "none", .coherence_mode = "none", .breaker = "closed"};
    /* No locks: within EXEC the caller may hold some. */
    for (unsigned i = 0; i < t->mem->shards; i++)
        out->memory_keys += (int64_t)atomic_load_explicit(&t->mem->shard[i].count, memory_order_relaxed);
    out->memory_bytes = mem_class_bytes(MEM_DATA);
    out->demoting_bytes = atomic_load(&t->demoting_bytes);
    out->inflight_bytes = atomic_load(&t->inflight_urgent) + atomic_load(&t->inflight_ahead);
    if (t->disk) {
        struct disk_stats ds;
        disk_get_stats(t->disk, &ds);
        out->disk_on = true;
        out->disk_healthy = disk_healthy(t->disk);
        out->disk_keys = (int64_t)ds.keys;
        out->disk_bytes = (int64_t)ds.file_bytes;
        out->disk_queue_bytes = (int64_t)ds.queue_bytes;
        out->disk_commits = (int64_t)ds.commits;
        out->disk_index_bytes = (int64_t)ds.index_bytes;
        out->disk_corrupt = (int64_t)ds.corrupt;
        out->disk_io_errors = (int64_t)ds.io_errors;
        out->disk_written_bytes = (int64_t)ds.written_bytes;
    }
    if (t->has_upstream) {
        upstream_figures(t, out);
        out->upstream_copies = tier_copies(t);
        out->tracking_table = tier_tracking(t);
        out->local_keys = tier_local_keys(t);
    }
}
