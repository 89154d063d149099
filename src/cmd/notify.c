/* Key-space notifications: what Redis publishes about keys, under Redis's names and in its order.
 * Handlers say what they did while they hold the lock of the key's shard, the tier layer what
 * expired or was evicted, on whatever thread; it is published at once, so the events of a key are in
 * the order in which things happened to it. Keys that a command finds expired are removed before
 * it runs, so with several keys their events come first, where Redis has them in between. */
#include "tiercel/pubsub.h"

#include "cmd/cmd_priv.h"

void notify_publish(struct cmd *cmd, const struct key *key, const char *event)
{
    unsigned classes = atomic_load_explicit(&cmd->notify, memory_order_relaxed);
    struct buf channel;

    buf_init(&channel, MEM_OTHER);
    if (classes & NOTIFY_KEYSPACE) {
        buf_printf(&channel, "__keyspace@%u__:", key->db);
        buf_slice_append(&channel, key_slice(key));
        pubsub_publish(cmd->pubsub, buf_slice(&channel), slice_str(event));
    }
    if (classes & NOTIFY_KEYEVENT) {
        channel.len = 0;
        buf_printf(&channel, "__keyevent@%u__:%s", key->db, event);
        pubsub_publish(cmd->pubsub, buf_slice(&channel), key_slice(key));
    }
    buf_deinit(&channel);
}

void notify_change(struct cmd *cmd, const struct key *key, enum tier_change why)
{
    if (why == TIER_EXPIRED && notify_wants(cmd, NOTIFY_EXPIRED))
        notify_publish(cmd, key, "expired");
    else if (why == TIER_EVICTED && notify_wants(cmd, NOTIFY_EVICTED))
        notify_publish(cmd, key, "evicted");
    else if (why == TIER_FIELDS && notify_wants(cmd, NOTIFY_HASH))
        notify_publish(cmd, key, "hexpired");
    else if (why == TIER_EMPTIED && notify_wants(cmd, NOTIFY_GENERIC))
        notify_publish(cmd, key, "del");
}

void notify_conf_changed(struct cmd *cmd, const struct conf *conf)
{
    unsigned classes;

    CHECK(conf_notify_parse(conf->notify_keyspace_events, &classes));
    /* With an upstream, subscribers are its clients, and what happens to copies here is no event. */
    if (cmd->tier->has_upstream || !(classes & (NOTIFY_KEYSPACE | NOTIFY_KEYEVENT)))
        classes = 0;
    atomic_store_explicit(&cmd->notify, classes, memory_order_relaxed);
    tier_set_events(cmd->tier, TIER_EVENT_GONE, classes & (NOTIFY_EXPIRED | NOTIFY_EVICTED));
    tier_set_events(cmd->tier, TIER_EVENT_FIELDS, classes & (NOTIFY_HASH | NOTIFY_GENERIC));
}
