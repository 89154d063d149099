/* WARM: starting and watching jobs that fill the cache. What they do is in tier/warm.c. */
#include "tiercel/warm.h"

#include "cmd/cmd_priv.h"
#include "tiercel/num.h"

/* A client that waits for its job's end. */
struct warm_call {
    struct warm_waiter waiter;
    struct parked *parked;
    struct warm_status status;
};

static void reply_field(struct reply *r, const char *name, int64_t value)
{
    reply_bulk_str(r, name);
    reply_int(r, value);
}

static void reply_status(struct reply *r, const struct warm_status *s)
{
    reply_map(r, 10);
    reply_field(r, "id", (int64_t)s->id);
    reply_bulk_str(r, "state");
    reply_bulk_str(r, warm_state_name(s->state));
    reply_field(r, "seen", (int64_t)s->seen);
    reply_field(r, "loaded", (int64_t)s->loaded);
    reply_field(r, "skipped", (int64_t)s->skipped);
    reply_field(r, "failed", (int64_t)s->failed);
    reply_field(r, "bytes", (int64_t)s->bytes);
    reply_field(r, "elapsed_ms", s->elapsed_ms);
    reply_field(r, "eta_ms", s->eta_ms);
    reply_bulk_str(r, "reason");
    reply_bulk_str(r, s->reason);
}

/* ---- starting ------------------------------------------------------------------------ */

static void warm_call_finish(struct call *c, void *arg)
{
    const struct warm_call *wc = arg;
    reply_status(&c->r, &wc->status);
}

static void warm_call_done(struct warm_waiter *waiter, const struct warm_status *status)
{
    struct warm_call *wc = LIST_ENTRY(waiter, struct warm_call, waiter);

    wc->status = *status;
    call_complete(wc->parked, warm_call_finish, wc);
    mem_free(MEM_CLIENT, wc);
}

/* The client went; its job goes on. */
static void warm_call_cancel(void *arg)
{
    struct warm_call *wc = arg;

    warm_forget(&wc->waiter);
    mem_free(MEM_CLIENT, wc);
}

static const struct suspend_ops warm_suspend_ops = {warm_call_cancel};

static void start(struct call *c)
{
    struct warm_spec spec;
    struct warm_call *wc = NULL;
    char err[WARM_ERROR_MAX];
    uint64_t id;

    if (warm_parse(c->argc - 1, c->argv + 1, &spec, err) != ST_OK) {
        call_errorf(c, "ERR %s", err);
        return;
    }
    if (spec.wait && c->in_exec) {
        call_error(c, "ERR WARM ... WAIT is not allowed in a transaction");
        return;
    }
    if (spec.wait) {
        wc = mem_calloc(MEM_CLIENT, sizeof(*wc));
        list_init(&wc->waiter.link);
        wc->waiter.done = warm_call_done;
    }
    if (warm_start(c->w->cmd->warm, c->w, c->s->db, &spec, wc ? &wc->waiter : NULL, &id, err) != ST_OK) {
        mem_free(MEM_CLIENT, wc);
        call_errorf(c, "ERR %s", err);
    } else if (wc) {
        wc->parked = call_suspend(c, &warm_suspend_ops, wc);
    } else {
        reply_int(&c->r, (int64_t)id);
    }
}

/* ---- watching ------------------------------------------------------------------------ */

static bool job_id(struct call *c, uint64_t *id)
{
    if (num_parse_u64(c->argv[2], id) && *id > 0)
        return true;
    call_error(c, "ERR the job's id is not a number");
    return false;
}

static void status(struct call *c)
{
    struct warm_status s;
    uint64_t id = 0;

    if (c->argc == 3 && !job_id(c, &id))
        return;
    if (warm_get(c->w->cmd->warm, id, &s))
        reply_status(&c->r, &s);
    else
        call_error(c, "ERR no such WARM job");
}

static void list(struct call *c)
{
    struct warm_status jobs[WARM_JOBS_MAX + WARM_FINISHED_MAX];
    size_t n = warm_list(c->w->cmd->warm, jobs, sizeof(jobs) / sizeof(*jobs));

    reply_array(&c->r, (int64_t)n);
    for (size_t i = 0; i < n; i++)
        reply_status(&c->r, &jobs[i]);
}

static void cancel(struct call *c)
{
    uint64_t id;

    if (!job_id(c, &id))
        return;
    switch (warm_cancel(c->w->cmd->warm, id)) {
    case ST_OK: reply_simple(&c->r, "OK"); break;
    case ST_NOT_FOUND: call_error(c, "ERR no such WARM job"); break;
    default: call_error(c, "ERR the WARM job has ended already");
    }
}

static void help(struct call *c)
{
    static const char *const lines[] = {
        "KEYS <key> [<key> ...] [RATE <keys-per-second>] [WAIT]",
        "    Loads the named keys: from the upstream, or without one from disk.",
        "MATCH <pattern> [COUNT <n>] [RATE <keys-per-second>] [WAIT]",
        "    Loads the string keys of the upstream's database that match.",
        "FILE <path> [RATE <keys-per-second>] [WAIT]",
        "    Loads the keys of a file, one per line.",
        "    Each replies with the id of a job, or with WAIT with its status at the end.",
        "    A job stops before memory or tracked-keys-max is full.",
        "STATUS [<id>]",
        "    Tells how far a job is; without an id, the newest. skipped: the key was loaded",
        "    already, or exists nowhere. bytes: of memory. eta_ms: -1 when unknown.",
        "LIST",
        "    Lists the status of all jobs that run and of the last that have ended.",
        "CANCEL <id>",
        "    Ends a job.",
        NULL,
    };
    cmd_reply_help(c, lines);
}

void cmd_warm(struct call *c)
{
    if (call_arg_is(c, 1, "status") && c->argc <= 3)
        status(c);
    else if (call_arg_is(c, 1, "list") && c->argc == 2)
        list(c);
    else if (call_arg_is(c, 1, "cancel") && c->argc == 3)
        cancel(c);
    else if (call_arg_is(c, 1, "help") && c->argc == 2)
        help(c);
    else
        start(c);
}
