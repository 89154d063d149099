/* MONITOR: clients that are told of every command, on whatever worker it ran. The line is made once, and goes to the
 * workers that have such clients by mailbox; so a monitor sees one worker's commands in their order, and those of several
 * about as they came. */
#include <ctype.h>
#include <stdio.h>

#include "tiercel/clock.h"

#include "cmd/cmd_priv.h"

struct line_msg {
    struct mbox_msg msg;
    size_t len;
    char text[];
};

/* A string as redis-cli would have it typed. */
static void quote(struct buf *b, struct slice s)
{
    static const char escaped[] = "\n\r\t\a\b\"\\", letters[] = "nrtab\"\\";

    buf_byte(b, '"');
    for (size_t i = 0; i < s.len; i++) {
        const char *at = s.ptr[i] ? strchr(escaped, s.ptr[i]) : NULL;
        if (at)
            buf_printf(b, "\\%c", letters[at - escaped]);
        else if (isprint((unsigned char)s.ptr[i]))
            buf_byte(b, s.ptr[i]);
        else
            buf_printf(b, "\\x%02x", (unsigned char)s.ptr[i]);
    }
    buf_byte(b, '"');
}

static void line_write(struct buf *b, const struct call *c)
{
    int64_t us = clock_wall_us();

    buf_printf(b, "+%lld.%06lld [%d %s]", (long long)(us / 1000000), (long long)(us % 1000000), c->s->db,
               c->in_script ? "lua" : c->s->addr);
    for (int i = 0; i < c->argc; i++) {
        buf_byte(b, ' ');
        quote(b, command_arg_is_secret(c->argv, i) ? SLICE_LIT("(redacted)") : c->argv[i]);
    }
    buf_append(b, "\r\n", 2);
}

static void deliver(struct mbox_msg *msg, void *owner)
{
    struct line_msg *m = LIST_ENTRY(msg, struct line_msg, msg);
    struct worker *w = owner;
    int64_t hard = w->conf->obuf[OBUF_NORMAL].hard;

    for (struct list *l = w->cmd_worker->sessions.next; l != &w->cmd_worker->sessions; l = l->next) {
        struct session *s = LIST_ENTRY(l, struct session, link);
        if (!(s->flags & SESSION_MONITOR) || s->close_asap || s->close_after_reply)
            continue;
        s->ops->wake(s);
        if (hard == 0 || s->out.bytes <= (uint64_t)hard) /* over it, it is closed at the next flush */
            chain_append(&s->out, m->text, m->len);
    }
    mem_free(MEM_OTHER, m);
}

static void feed(const struct call *c)
{
    struct cmd *cmd = c->w->cmd;
    struct buf line;

    buf_init(&line, MEM_OTHER);
    line_write(&line, c);
    for (int i = 0; i < cmd->nworkers; i++) {
        struct worker *w = cmd->workers[i];
        if (atomic_load_explicit(&w->cmd_worker->monitors, memory_order_relaxed) == 0)
            continue;
        struct line_msg *m = mem_alloc(MEM_OTHER, sizeof(*m) + line.len);
        m->msg.run = deliver;
        m->len = line.len;
        memcpy(m->text, line.ptr, line.len);
        mbox_post(w->mbox, &m->msg);
    }
    buf_deinit(&line);
}

void monitor_feed(const struct call *c)
{
    if (!(c->cmd->flags & (CMD_SKIP_MONITOR | CMD_ADMIN)))
        feed(c);
}

void monitor_script(const struct call *c)
{
    if (atomic_load_explicit(&c->w->cmd->monitors, memory_order_relaxed) > 0)
        feed(c);
}

void monitor_leave(struct session *s)
{
    if (!(s->flags & SESSION_MONITOR))
        return;
    s->flags &= ~(uint32_t)SESSION_MONITOR;
    atomic_fetch_sub(&s->w->cmd_worker->monitors, 1);
    atomic_fetch_sub(&s->w->cmd->monitors, 1);
}

void cmd_monitor(struct call *c)
{
    if (c->in_exec) {
        call_error(c, "ERR MONITOR isn't allowed for DENY BLOCKING client");
        return;
    }
    if (!(c->s->flags & SESSION_MONITOR)) {
        c->s->flags |= SESSION_MONITOR;
        atomic_fetch_add(&c->w->cmd_worker->monitors, 1);
        atomic_fetch_add(&c->w->cmd->monitors, 1);
    }
    reply_simple(&c->r, "OK");
}
