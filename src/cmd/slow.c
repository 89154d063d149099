/* Slow commands: the slow log's entry, and a log line that tells what the time went to. */
#include <inttypes.h>

#include "tiercel/clock.h"
#include "tiercel/log.h"

#include "cmd/cmd_priv.h"

/* A line is read by people: less of a command than the slow log has. */
#define LINE_ARGS_MAX 16
#define LINE_ARG_BYTES 64

static void print_arg(struct buf *out, struct slice arg)
{
    buf_byte(out, '"');
    for (size_t i = 0; i < arg.len && i < LINE_ARG_BYTES; i++) {
        unsigned char b = (unsigned char)arg.ptr[i];
        if (b == '"' || b == '\\')
            buf_printf(out, "\\%c", b);
        else if (b < 0x20 || b >= 0x7f)
            buf_printf(out, "\\x%02x", b);
        else
            buf_byte(out, (char)b);
    }
    buf_byte(out, '"');
    if (arg.len > LINE_ARG_BYTES)
        buf_printf(out, "... (%zu more bytes)", arg.len - LINE_ARG_BYTES);
}

static void log_line(const struct call *c, int64_t us)
{
    const struct parked *p = c->parked;
    int64_t disk = p ? p->disk_us : 0, upstream = p ? p->upstream_us : 0;
    struct buf command;

    buf_init(&command, MEM_OTHER);
    for (int i = 0; i < c->argc && i < LINE_ARGS_MAX; i++) {
        buf_byte(&command, ' ');
        if (command_arg_is_secret(c->argv, i))
            buf_printf(&command, "(redacted)");
        else
            print_arg(&command, c->argv[i]);
    }
    if (c->argc > LINE_ARGS_MAX)
        buf_printf(&command, " ... (%d more arguments)", c->argc - LINE_ARGS_MAX);
    log_notice("slow",
               "total_us=%" PRId64 " exec_us=%" PRId64 " disk_us=%" PRId64 " upstream_us=%" PRId64
               " keys=%d client=%" PRIu64 " addr=%s name=%.*s command:%.*s",
               us + disk + upstream, us, disk, upstream, dispatch_key_count(c->cmd, c->argc), c->s->id, c->s->addr,
               (int)(c->s->name.len < LINE_ARG_BYTES ? c->s->name.len : LINE_ARG_BYTES),
               c->s->name.len ? c->s->name.ptr : "", (int)command.len, command.ptr);
    buf_deinit(&command);
}

void slow_command(const struct call *c, int64_t us)
{
    const struct conf *conf = c->w->conf;
    const struct parked *p = c->parked;
    int64_t slow = conf->slowlog_log_slower_than;

    if (c->cmd->flags & CMD_SKIP_SLOWLOG)
        return;
    if (us >= slow)
        slowlog_push(c->w->cmd, c->s, c->argc, c->argv, us);
    if (conf->slow_command_log && us + (p ? p->disk_us + p->upstream_us : 0) >= slow && log_enabled(LOG_NOTICE, "slow"))
        log_line(c, us);
}

/* ---- waits ---- */

void slow_waited_keys(struct parked *p)
{
    int64_t now = clock_mono_us(), all = now - p->since_us;
    int64_t asked = atomic_load_explicit(&p->treq.upstream_us, memory_order_relaxed);
    int64_t upstream = asked == 0 ? 0 : now - asked;

    if (upstream > all) /* the fetch was there before this request joined it */
        upstream = all;
    p->upstream_us += upstream;
    p->disk_us += all - upstream;
}

void slow_waited_disk(struct parked *p)
{
    p->disk_us += clock_mono_us() - p->since_us;
}

void slow_waited_upstream(struct parked *p)
{
    p->upstream_us += clock_mono_us() - p->since_us;
}
