#include <inttypes.h>
#include <stdio.h>

#include "tiercel/clock.h"

#include "cmd/cmd_priv.h"

/* SLOWLOG: the last commands that took long, shared by all workers behind one mutex (a slow
 * command is rare by definition). Arguments are cut as Redis cuts them. */

#define SLOWLOG_ARGS_MAX 32
#define SLOWLOG_STRING_MAX 128

struct slow_entry {
    struct list link;
    int64_t id, time_s, us;
    int argc;
    char addr[64];
    struct buf name;
    struct buf arg[]; /* [argc] */
};

struct slowlog {
    pthread_mutex_t lock;
    struct list entries; /* newest first */
    int64_t len, next_id;
};

struct slowlog *slowlog_create(void)
{
    struct slowlog *log = mem_calloc(MEM_OTHER, sizeof(*log));
    pthread_mutex_init(&log->lock, NULL);
    list_init(&log->entries);
    return log;
}

static void entry_free(struct slow_entry *e)
{
    for (int i = 0; i < e->argc; i++)
        buf_deinit(&e->arg[i]);
    buf_deinit(&e->name);
    mem_free(MEM_OTHER, e);
}

static void trim_locked(struct slowlog *log, int64_t keep)
{
    while (log->len > keep) {
        struct slow_entry *e = LIST_ENTRY(log->entries.prev, struct slow_entry, link);
        list_remove(&e->link);
        entry_free(e);
        log->len--;
    }
}

void slowlog_destroy(struct slowlog *log)
{
    trim_locked(log, 0);
    pthread_mutex_destroy(&log->lock);
    mem_free(MEM_OTHER, log);
}

/* ---- adding ---- */

bool command_arg_is_secret(const struct slice *argv, int i)
{
    if (i == 0)
        return false;
    if (slice_is(argv[0], "auth"))
        return true;
    if (slice_is(argv[0], "hello"))
        return (i >= 2 && slice_is(argv[i - 1], "auth")) || (i >= 3 && slice_is(argv[i - 2], "auth"));
    if (slice_is(argv[0], "config") && slice_is(argv[1], "set"))
        return i >= 3 && conf_is_secret(argv[i - 1]);
    if (slice_is(argv[0], "acl") && slice_is(argv[1], "setuser"))
        return i >= 2;
    return false;
}

static void copy_arg(struct buf *to, int argc, const struct slice *argv, int i)
{
    struct slice s = argv[i];
    buf_init(to, MEM_OTHER);
    if (argc > SLOWLOG_ARGS_MAX && i == SLOWLOG_ARGS_MAX - 1) {
        buf_printf(to, "... (%d more arguments)", argc - SLOWLOG_ARGS_MAX + 1);
    } else if (command_arg_is_secret(argv, i)) {
        buf_printf(to, "(redacted)");
    } else if (s.len > SLOWLOG_STRING_MAX) {
        buf_append(to, s.ptr, SLOWLOG_STRING_MAX);
        buf_printf(to, "... (%zu more bytes)", s.len - SLOWLOG_STRING_MAX);
    } else {
        buf_slice_append(to, s);
    }
}

void slowlog_push(struct cmd *cmd, struct session *s, int argc, const struct slice *argv, int64_t us)
{
    struct slowlog *log = cmd->slowlog;
    int kept = argc > SLOWLOG_ARGS_MAX ? SLOWLOG_ARGS_MAX : argc;
    struct slow_entry *e = mem_calloc(MEM_OTHER, sizeof(*e) + (size_t)kept * sizeof(e->arg[0]));
    e->time_s = clock_wall_ms() / 1000;
    e->us = us;
    e->argc = kept;
    snprintf(e->addr, sizeof(e->addr), "%s", s->addr);
    buf_init(&e->name, MEM_OTHER);
    buf_slice_append(&e->name, buf_slice(&s->name));
    for (int i = 0; i < kept; i++)
        copy_arg(&e->arg[i], argc, argv, i);
    pthread_mutex_lock(&log->lock);
    e->id = log->next_id++;
    list_push_front(&log->entries, &e->link);
    log->len++;
    trim_locked(log, s->w->conf->slowlog_max_len);
    pthread_mutex_unlock(&log->lock);
}

/* ---- the commands ---- */

static void reply_entry(struct reply *r, const struct slow_entry *e)
{
    reply_array(r, 6);
    reply_int(r, e->id);
    reply_int(r, e->time_s);
    reply_int(r, e->us);
    reply_array(r, e->argc);
    for (int i = 0; i < e->argc; i++)
        reply_bulk(r, buf_slice(&e->arg[i]));
    reply_bulk_str(r, e->addr);
    reply_bulk(r, buf_slice(&e->name));
}

void cmd_slowlog_get(struct call *c)
{
    struct slowlog *log = c->w->cmd->slowlog;
    int64_t count = 10;
    if (c->argc > 3) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 3 &&
        !cmd_arg_between(c, 2, -1, INT64_MAX, &count, "ERR count should be greater than or equal to -1"))
        return;
    pthread_mutex_lock(&log->lock);
    if (count < 0 || count > log->len)
        count = log->len;
    reply_array(&c->r, count);
    for (struct list *l = log->entries.next; count > 0; l = l->next, count--)
        reply_entry(&c->r, LIST_ENTRY(l, struct slow_entry, link));
    pthread_mutex_unlock(&log->lock);
}

void slowlog_get_figures(struct slowlog *log, int64_t *length, int64_t *last_id)
{
    pthread_mutex_lock(&log->lock);
    *length = log->len;
    *last_id = log->next_id > 0 ? log->next_id - 1 : 0;
    pthread_mutex_unlock(&log->lock);
}

void cmd_slowlog_len(struct call *c)
{
    struct slowlog *log = c->w->cmd->slowlog;
    pthread_mutex_lock(&log->lock);
    int64_t len = log->len;
    pthread_mutex_unlock(&log->lock);
    reply_int(&c->r, len);
}

void cmd_slowlog_reset(struct call *c)
{
    struct slowlog *log = c->w->cmd->slowlog;
    pthread_mutex_lock(&log->lock);
    trim_locked(log, 0);
    pthread_mutex_unlock(&log->lock);
    reply_simple(&c->r, "OK");
}
