#include <errno.h>
#include <string.h>

#include "tiercel/acl.h"
#include "tiercel/glob.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"
#include "tiercel/tier.h"

#include "cmd/cmd_priv.h"

/* CONFIG. Settings are immutable snapshots: SET makes a new one, and each worker takes the newest
 * over on its own thread. */

/* ---- GET ---- */

struct config_get {
    struct buf seen; /* names already replied, each with its NUL */
    struct reply r;
    int n;
};

static bool was_seen(const struct buf *seen, const char *name)
{
    size_t len = strlen(name) + 1;
    for (size_t at = 0; at < seen->len; at += strlen(seen->ptr + at) + 1) {
        if (at + len <= seen->len && memcmp(seen->ptr + at, name, len) == 0)
            return true;
    }
    return false;
}

static void get_one(void *arg, const char *name, struct slice value)
{
    struct config_get *g = arg;
    if (was_seen(&g->seen, name))
        return;
    buf_append(&g->seen, name, strlen(name) + 1);
    reply_bulk_str(&g->r, name);
    reply_bulk(&g->r, value);
    g->n++;
}

void cmd_config_get(struct call *c)
{
    struct config_get g = {.n = 0};
    struct chain found;
    chain_init(&found);
    g.r = (struct reply){&found, c->r.proto};
    buf_init(&g.seen, MEM_OTHER);
    for (int i = 2; i < c->argc; i++)
        conf_each(c->w->conf, c->argv[i], get_one, &g);
    reply_map(&c->r, g.n);
    chain_move(c->r.out, &found);
    chain_deinit(&found);
    buf_deinit(&g.seen);
}

/* ---- all workers ---- */

struct config_job {
    struct mbox_msg msg;
    void (*each)(struct worker *w, void *arg);
};

static void job_run(struct mbox_msg *msg, void *owner)
{
    struct config_job *job = LIST_ENTRY(msg, struct config_job, msg);
    job->each(owner, NULL);
    mem_free(MEM_OTHER, job);
}

static void reply_ok(struct call *c, void *arg)
{
    (void)arg;
    reply_simple(&c->r, "OK");
}

static void post_to(struct worker *w, void (*each)(struct worker *w, void *arg))
{
    struct config_job *job = mem_calloc(MEM_OTHER, sizeof(*job));
    job->msg.run = job_run;
    job->each = each;
    mbox_post(w->mbox, &job->msg);
}

/* The reply waits until all workers did it; within EXEC, which must not suspend, only this one. */
static void on_all_workers(struct call *c, void (*each)(struct worker *w, void *arg))
{
    if (!c->in_exec) {
        call_broadcast(c, each, reply_ok, NULL);
        return;
    }
    each(c->w, NULL);
    for (int i = 0; i < c->w->cmd->nworkers; i++) {
        if (i != c->w->id)
            post_to(c->w->cmd->workers[i], each);
    }
    reply_ok(c, NULL);
}

/* ---- SET ---- */

/* Takes what is newest now, so that two SETs at once cannot leave a worker with the older. */
static void take_newest(struct worker *w, void *arg)
{
    struct conf *old = w->conf;
    (void)arg;
    pthread_mutex_lock(&w->cmd->conf_lock);
    w->conf = conf_ref(w->cmd->conf);
    pthread_mutex_unlock(&w->cmd->conf_lock);
    conf_unref(old);
}

void cmd_replace_conf(struct cmd *cmd, struct conf *next)
{
    conf_unref(cmd->conf);
    cmd->conf = next;
    for (int i = 0; i < cmd->nworkers; i++)
        post_to(cmd->workers[i], take_newest);
}

static bool names_tls(int npairs, const struct slice *pairs)
{
    for (int i = 0; i < npairs; i++)
        if (glob_match(SLICE_LIT("tls-*"), pairs[2 * i], true))
            return true;
    return false;
}

void config_publish(struct call *c)
{
    on_all_workers(c, take_newest);
}

static bool set_locked(struct cmd *cmd, int npairs, const struct slice *pairs, struct buf *err)
{
    struct conf *next;
    if (conf_set(cmd->conf, npairs, pairs, &next, err) != ST_OK)
        return false;
    struct conf *old = cmd->conf;
    char why[256];
    /* Also with the paths as they were: then the files may be new. */
    if (cmd->ops.reload_tls && names_tls(npairs, pairs) && !cmd->ops.reload_tls(cmd->ops.arg, next, why)) {
        buf_printf(err, "CONFIG SET failed - %s", why);
        conf_unref(next);
        return false;
    }
    cmd->conf = next;
    if (strcmp(old->requirepass, next->requirepass) != 0)
        acl_set_requirepass(cmd->acl, slice_str(next->requirepass));
    conf_unref(old);
    tier_conf_changed(cmd->tier, next);
    notify_conf_changed(cmd, next);
    tracking_conf_changed(cmd->tracking, next);
    log_set_level((enum log_level)next->loglevel);
    log_set_modules(next->log_level_modules, &(const char *){NULL}); /* checked when they were set */
    log_rotate_set(next->log_max_size, (int)next->log_max_files);
    if (cmd->ops.conf_changed)
        cmd->ops.conf_changed(cmd->ops.arg, next);
    return true;
}

void cmd_config_set(struct call *c)
{
    struct cmd *cmd = c->w->cmd;
    struct buf err;
    if (c->argc % 2) {
        call_syntax(c);
        return;
    }
    buf_init(&err, MEM_OTHER);
    pthread_mutex_lock(&cmd->conf_lock);
    bool ok = set_locked(cmd, (c->argc - 2) / 2, c->argv + 2, &err);
    pthread_mutex_unlock(&cmd->conf_lock);
    if (ok)
        on_all_workers(c, take_newest);
    else
        call_errorf(c, "ERR %.*s", (int)err.len, err.len ? err.ptr : "");
    buf_deinit(&err);
}

/* ---- REWRITE, RESETSTAT ---- */

void cmd_config_rewrite(struct call *c)
{
    struct cmd *cmd = c->w->cmd;
    struct buf users;
    buf_init(&users, MEM_OTHER);
    pthread_mutex_lock(&cmd->conf_lock);
    acl_config_lines(cmd->acl, cmd->conf, &users);
    enum status st = conf_rewrite(cmd->conf, buf_slice(&users));
    int error = errno;
    pthread_mutex_unlock(&cmd->conf_lock);
    buf_deinit(&users);
    if (st == ST_OK)
        reply_simple(&c->r, "OK");
    else if (st == ST_NOT_FOUND)
        call_error(c, "ERR The server is running without a config file");
    else
        call_errorf(c, "ERR Rewriting config file: %s", strerror(error));
}

static void reset_worker(struct worker *w, void *arg)
{
    (void)arg;
    for (int i = 0; i < command_count; i++) {
        struct cmd_stat *st = &w->cmd_worker->stat[i];
        atomic_store_explicit(&st->calls, 0, memory_order_relaxed);
        atomic_store_explicit(&st->usec, 0, memory_order_relaxed);
        atomic_store_explicit(&st->rejected, 0, memory_order_relaxed);
        atomic_store_explicit(&st->failed, 0, memory_order_relaxed);
        for (int k = 0; k < CMD_HIST_BUCKETS; k++)
            atomic_store_explicit(&st->hist[k], 0, memory_order_relaxed);
    }
    errstat_reset(w->cmd_worker->errors);
}

void cmd_config_resetstat(struct call *c)
{
    stats_reset();
    on_all_workers(c, reset_worker);
}
