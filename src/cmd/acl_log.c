/* ACL LOG: what was refused lately, equal entries together. */
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/stats.h"

#include "cmd/acl_priv.h"

#define GROUP_MS 60000
#define GROUP_AMONG 10 /* of the newest entries */

struct log_entry {
    struct list link;
    int64_t count, at_ms;
    enum acl_verdict why;
    enum acl_context where;
    struct buf object, username, client;
};

struct acl_log {
    pthread_mutex_t lock;
    struct list entries; /* newest first */
    int64_t n;
};

struct acl_log *acl_log_create(void)
{
    struct acl_log *log = mem_calloc(MEM_OTHER, sizeof(*log));

    pthread_mutex_init(&log->lock, NULL);
    list_init(&log->entries);
    return log;
}

static void entry_free(struct log_entry *e)
{
    buf_deinit(&e->object);
    buf_deinit(&e->username);
    buf_deinit(&e->client);
    mem_free(MEM_OTHER, e);
}

static void trim_locked(struct acl_log *log, int64_t keep)
{
    while (log->n > keep) {
        struct log_entry *e = LIST_ENTRY(log->entries.prev, struct log_entry, link);
        list_remove(&e->link);
        entry_free(e);
        log->n--;
    }
}

void acl_log_destroy(struct acl_log *log)
{
    trim_locked(log, 0);
    pthread_mutex_destroy(&log->lock);
    mem_free(MEM_OTHER, log);
}

static bool alike(const struct log_entry *a, const struct log_entry *b)
{
    int64_t apart = b->at_ms - a->at_ms;

    return a->why == b->why && a->where == b->where && apart <= GROUP_MS && apart >= -GROUP_MS &&
           slice_eq(buf_slice(&a->object), buf_slice(&b->object)) &&
           slice_eq(buf_slice(&a->username), buf_slice(&b->username));
}

static void add_locked(struct acl_log *log, struct log_entry *e)
{
    struct list *l = log->entries.next;

    for (int i = 0; i < GROUP_AMONG && l != &log->entries; i++, l = l->next) {
        struct log_entry *old = LIST_ENTRY(l, struct log_entry, link);
        if (!alike(old, e))
            continue;
        e->count += old->count;
        list_remove(&old->link);
        entry_free(old);
        log->n--;
        break;
    }
    list_push_front(&log->entries, &e->link);
    log->n++;
}

static void count_denied(struct worker *w, enum acl_verdict why)
{
    switch (why) {
    case ACL_AUTH: stats_inc(w->stats, STAT_acl_access_denied_auth); break;
    case ACL_KEY: stats_inc(w->stats, STAT_acl_access_denied_key); break;
    case ACL_CHANNEL: stats_inc(w->stats, STAT_acl_access_denied_channel); break;
    default: stats_inc(w->stats, STAT_acl_access_denied_cmd); break;
    }
}

void acl_log_add(struct call *c, enum acl_verdict why, enum acl_context where, struct slice object,
                 struct slice username)
{
    struct acl_log *log = c->w->cmd->acl->log;
    struct log_entry *e = mem_calloc(MEM_OTHER, sizeof(*e));

    count_denied(c->w, why);
    e->count = 1;
    e->at_ms = clock_wall_ms();
    e->why = why;
    e->where = where;
    buf_init(&e->object, MEM_OTHER);
    buf_init(&e->username, MEM_OTHER);
    buf_init(&e->client, MEM_OTHER);
    buf_slice_append(&e->object, object);
    buf_slice_append(&e->username, username);
    client_describe(c->s, &e->client);
    e->client.len--; /* the newline */
    pthread_mutex_lock(&log->lock);
    add_locked(log, e);
    trim_locked(log, c->w->conf->acllog_max_len);
    pthread_mutex_unlock(&log->lock);
}

static void reply_entry(struct reply *r, const struct log_entry *e, int64_t now_ms)
{
    static const char *const reasons[] = {
        [ACL_COMMAND] = "command", [ACL_KEY] = "key", [ACL_AUTH] = "auth", [ACL_CHANNEL] = "channel"};
    static const char *const contexts[] = {[ACL_TOPLEVEL] = "toplevel", [ACL_MULTI] = "multi", [ACL_LUA] = "lua"};

    reply_map(r, 7);
    reply_bulk_str(r, "count");
    reply_int(r, e->count);
    reply_bulk_str(r, "reason");
    reply_bulk_str(r, reasons[e->why]);
    reply_bulk_str(r, "context");
    reply_bulk_str(r, contexts[e->where]);
    reply_bulk_str(r, "object");
    reply_bulk(r, buf_slice(&e->object));
    reply_bulk_str(r, "username");
    reply_bulk(r, buf_slice(&e->username));
    reply_bulk_str(r, "age-seconds");
    reply_double(r, (double)(now_ms - e->at_ms) / 1000);
    reply_bulk_str(r, "client-info");
    reply_bulk(r, buf_slice(&e->client));
}

void cmd_acl_log(struct call *c)
{
    struct acl_log *log = c->w->cmd->acl->log;
    bool reset = c->argc == 3 && call_arg_is(c, 2, "reset");
    int64_t n = 10;

    if (c->argc > 3) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 3 && !reset && !call_arg_i64(c, 2, &n, NULL))
        return;
    pthread_mutex_lock(&log->lock);
    if (reset) {
        trim_locked(log, 0);
        reply_simple(&c->r, "OK");
    } else {
        n = n < 0 ? 0 : n > log->n ? log->n : n;
        reply_array(&c->r, n);
        int64_t now_ms = clock_wall_ms();
        for (struct list *l = log->entries.next; n > 0; l = l->next, n--)
            reply_entry(&c->r, LIST_ENTRY(l, struct log_entry, link), now_ms);
    }
    pthread_mutex_unlock(&log->lock);
}
