/* The command layer's life, shared and per worker. */
#include <stdio.h>

#include "tiercel/acl.h"
#include "tiercel/clock.h"
#include "tiercel/hash.h"
#include "tiercel/inbox.h"
#include "tiercel/pubsub.h"
#include "tiercel/stats.h"
#include "tiercel/tracking.h"
#include "tiercel/warm.h"

#include "cmd/cmd_priv.h"

static void make_run_id(char out[41])
{
    unsigned char raw[20];

    random_bytes(raw, sizeof(raw));
    for (int i = 0; i < 20; i++)
        snprintf(out + 2 * i, 3, "%02x", raw[i]);
}

struct cmd *cmd_create(struct tier *tier, struct conf *conf, struct acl *acl, const struct cmd_server_ops *ops)
{
    struct cmd *cmd = mem_calloc(MEM_OTHER, sizeof(*cmd));
    unsigned shards = tier->mem->shards;

    cmd->tier = tier;
    tier->change = cmd_key_changed;
    tier->change_arg = cmd;
    tier->foreign = tracking_foreign;
    cmd->ops = *ops;
    cmd->conf = conf_ref(conf);
    cmd->nworkers = tier->nworkers;
    cmd->workers = mem_calloc(MEM_OTHER, (size_t)cmd->nworkers * sizeof(*cmd->workers));
    cmd->started_ms = clock_wall_ms();
    cmd->started_mono_ms = clock_mono_ms();
    cmd->active_expire = true;
    make_run_id(cmd->run_id);
    pthread_mutex_init(&cmd->conf_lock, NULL);
    cmd->registry = mem_calloc(MEM_OTHER, shards * sizeof(*cmd->registry));
    for (unsigned i = 0; i < shards; i++) {
        list_init(&cmd->registry[i].watches);
        list_init(&cmd->registry[i].blocked);
    }
    cmd->acl = acl;
    acl_share_generation(acl, &cmd->acl_generation);
    cmd->slowlog = slowlog_create();
    cmd->latency = latency_create();
    cmd->pubsub = pubsub_create();
    cmd->tracking = tracking_create(tier);
    cmd->warm = warm_create(tier);
    cmd->persist = persist_create(cmd);
    cmd->scripts = scripts_create();
    cmd->functions = functions_create();
    notify_conf_changed(cmd, conf);
    tracking_conf_changed(cmd->tracking, conf);
    return cmd;
}

void cmd_destroy(struct cmd *cmd)
{
    functions_destroy(cmd->functions);
    scripts_destroy(cmd->scripts);
    persist_destroy(cmd->persist);
    warm_destroy(cmd->warm);
    tracking_destroy(cmd->tracking);
    pubsub_destroy(cmd->pubsub);
    latency_destroy(cmd->latency);
    slowlog_destroy(cmd->slowlog);
    acl_destroy(cmd->acl);
    mem_free(MEM_OTHER, cmd->registry);
    mem_free(MEM_OTHER, cmd->workers);
    conf_unref(cmd->conf);
    pthread_mutex_destroy(&cmd->conf_lock);
    mem_free(MEM_OTHER, cmd);
}

void cmd_worker_init(struct cmd *cmd, struct worker *w)
{
    struct cmd_worker *cw = mem_calloc(MEM_OTHER, sizeof(*cw));

    cw->cmd = cmd;
    list_init(&cw->sessions);
    cw->stat = mem_calloc(MEM_OTHER, (size_t)command_count * sizeof(*cw->stat));
    cw->errors = errstat_create();
    buf_init(&cw->ready, MEM_OTHER);
    buf_init(&cw->ready_name, MEM_OTHER);
    buf_init(&cw->locked, MEM_OTHER);
    buf_init(&cw->missing, MEM_OTHER);
    w->cmd = cmd;
    w->cmd_worker = cw;
    cmd->workers[w->id] = w;
    inbox_worker_init(w);
    pubsub_worker_init(cmd->pubsub, w);
    tracking_worker_init(cmd->tracking, w);
}

void cmd_worker_tick(struct worker *w)
{
    if (w->id == 0)
        tracking_tick(w->cmd->tracking);
}

void cmd_worker_deinit(struct worker *w)
{
    struct cmd_worker *cw = w->cmd_worker;

    inbox_worker_deinit(w);
    tracking_worker_deinit(w);
    pubsub_worker_deinit(w);
    script_worker_deinit(w);
    dispatch_deinit(w);
    errstat_destroy(cw->errors);
    buf_deinit(&cw->ready);
    buf_deinit(&cw->ready_name);
    buf_deinit(&cw->locked);
    buf_deinit(&cw->missing);
    chain_pool_deinit(&cw->replies);
    mem_free(MEM_OTHER, cw->stat);
    mem_free(MEM_OTHER, cw);
}
