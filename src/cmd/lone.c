/* What belongs to replication, clusters and modules: a lone node has none, and says so in Redis's words. */
#include "cmd/cmd_priv.h"

/* ---- clusters ---- */

static void no_cluster(struct call *c)
{
    call_error(c, "ERR This instance has cluster support disabled");
}

#define NO_CLUSTER(id)            \
    void cmd_##id(struct call *c) \
    {                             \
        no_cluster(c);            \
    }

NO_CLUSTER(asking)
NO_CLUSTER(readonly)
NO_CLUSTER(readwrite)
NO_CLUSTER(cluster_addslots)
NO_CLUSTER(cluster_addslotsrange)
NO_CLUSTER(cluster_bumpepoch)
NO_CLUSTER(cluster_count_failure_reports)
NO_CLUSTER(cluster_countkeysinslot)
NO_CLUSTER(cluster_delslots)
NO_CLUSTER(cluster_delslotsrange)
NO_CLUSTER(cluster_failover)
NO_CLUSTER(cluster_flushslots)
NO_CLUSTER(cluster_forget)
NO_CLUSTER(cluster_getkeysinslot)
NO_CLUSTER(cluster_help)
NO_CLUSTER(cluster_info)
NO_CLUSTER(cluster_keyslot)
NO_CLUSTER(cluster_links)
NO_CLUSTER(cluster_meet)
NO_CLUSTER(cluster_myid)
NO_CLUSTER(cluster_nodes)
NO_CLUSTER(cluster_replicas)
NO_CLUSTER(cluster_replicate)
NO_CLUSTER(cluster_reset)
NO_CLUSTER(cluster_saveconfig)
NO_CLUSTER(cluster_set_config_epoch)
NO_CLUSTER(cluster_setslot)
NO_CLUSTER(cluster_shards)
NO_CLUSTER(cluster_slaves)
NO_CLUSTER(cluster_slots)

void cmd_restore_asking(struct call *c)
{
    cmd_restore(c);
}

/* ---- replication ---- */

void cmd_role(struct call *c)
{
    reply_array(&c->r, 3);
    reply_bulk_str(&c->r, "master");
    reply_int(&c->r, 0);
    reply_array(&c->r, 0);
}

void cmd_replicaof(struct call *c)
{
    int64_t port;

    if (call_arg_is(c, 1, "no") && call_arg_is(c, 2, "one"))
        reply_simple(&c->r, "OK");
    else if (!num_parse_i64(c->argv[2], &port) || port < 0 || port > 65535)
        call_error(c, "ERR Invalid master port");
    else
        call_error(c, "ERR this server does not replicate others");
}

void cmd_slaveof(struct call *c)
{
    cmd_replicaof(c);
}

void cmd_failover(struct call *c)
{
    int64_t timeout = 0, port;
    bool has_timeout = false, has_target = false, forced = false;

    if (c->argc == 2 && call_arg_is(c, 1, "abort")) {
        call_error(c, "ERR No failover in progress.");
        return;
    }
    for (int i = 1; i < c->argc; i++) {
        if (call_arg_is(c, i, "timeout") && i + 1 < c->argc && !has_timeout) {
            if (!call_arg_i64(c, ++i, &timeout, NULL))
                return;
            if (timeout <= 0) {
                call_error(c, "ERR FAILOVER timeout must be greater than 0");
                return;
            }
            has_timeout = true;
        } else if (call_arg_is(c, i, "to") && i + 2 < c->argc && !has_target) {
            if (!call_arg_i64(c, i + 2, &port, NULL))
                return;
            i += 2;
            has_target = true;
        } else if (call_arg_is(c, i, "force") && !forced) {
            forced = true;
        } else {
            call_syntax(c);
            return;
        }
    }
    call_error(c, "ERR FAILOVER requires connected replicas.");
}

/* ---- modules ---- */

void cmd_module_list(struct call *c)
{
    reply_array(&c->r, 0);
}

void cmd_module_load(struct call *c)
{
    call_error(c,
               "ERR MODULE command not allowed. If the enable-module-command option is set to \"local\", you can run "
               "it from a local connection, otherwise you need to set this option in the configuration file, and then "
               "restart the server.");
}

void cmd_module_loadex(struct call *c)
{
    cmd_module_load(c);
}

void cmd_module_unload(struct call *c)
{
    cmd_module_load(c);
}

void cmd_module_help(struct call *c)
{
    cmd_container_help(c);
}
