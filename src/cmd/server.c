#include <math.h>
#include <stdio.h>

#include "tiercel/clock.h"
#include "tiercel/log.h"
#include "tiercel/num.h"
#include "tiercel/tier.h"
#include "tiercel/version.h"

#include "cmd/cmd_priv.h"

/* TIME, LOLWUT, WAIT, SHUTDOWN, DEBUG. */

void cmd_time(struct call *c)
{
    char text[NUM_I64_MAX];
    int64_t us = clock_wall_us();
    reply_array(&c->r, 2);
    reply_bulk(&c->r, SLICE(text, num_format_i64(text, us / 1000000)));
    reply_bulk(&c->r, SLICE(text, num_format_i64(text, us % 1000000)));
}

void cmd_lolwut(struct call *c)
{
    int64_t version;
    if (c->argc >= 3 && call_arg_is(c, 1, "version") && !cmd_arg_between(c, 2, INT32_MIN, INT32_MAX, &version, NULL))
        return;
    reply_verbatim(&c->r, SLICE_LIT("Tiercel ver. " TIERCEL_VERSION "\n"), "txt");
}

/* There are no replicas, so none has acknowledged anything, now or later. */
void cmd_wait(struct call *c)
{
    int64_t replicas, timeout_ms;
    if (!call_arg_i64(c, 1, &replicas, NULL) || !client_arg_timeout_ms(c, 2, &timeout_ms))
        return;
    reply_int(&c->r, 0);
}

/* ---- SHUTDOWN ---- */

static void nothing_to_cancel(void *arg)
{
    (void)arg;
}

static const struct suspend_ops shutdown_ops = {nothing_to_cancel};

void cmd_shutdown(struct call *c)
{
    const struct cmd_server_ops *ops = &c->w->cmd->ops;
    bool save = false, nosave = false, now = false, force = false, abort = false;
    for (int i = 1; i < c->argc; i++) {
        if (call_arg_is(c, i, "nosave"))
            nosave = true;
        else if (call_arg_is(c, i, "save"))
            save = true;
        else if (call_arg_is(c, i, "now"))
            now = true;
        else if (call_arg_is(c, i, "force"))
            force = true;
        else if (call_arg_is(c, i, "abort"))
            abort = true;
        else {
            call_syntax(c);
            return;
        }
    }
    if ((abort && (save || nosave || now || force)) || (save && nosave)) {
        call_syntax(c);
    } else if (abort) {
        /* A stop that has begun no longer runs commands, so there is never one to call off. */
        call_error(c, "ERR No shutdown in progress.");
    } else if (!nosave && atomic_load(&c->w->cmd->slow_scripts) != 0) {
        call_error(c, script_busy(c->w->cmd));
    } else {
        if (nosave)
            script_kill_all(c->w->cmd);
        /* The answer is the closed connection. */
        call_suspend(c, &shutdown_ops, NULL);
        ops->shutdown(ops->arg, !nosave, now);
    }
}

/* ---- DEBUG ---- */

/* DEBUG SLEEP keeps only its own client waiting: a loop never sleeps. */
struct nap {
    struct parked *parked;
    struct mbox_timer *timer;
    int64_t begin_us;
};

static void nap_cancel(void *arg)
{
    struct nap *nap = arg;
    mbox_timer_cancel(nap->timer);
    mem_free(MEM_OTHER, nap);
}

static const struct suspend_ops nap_ops = {nap_cancel};

static void nap_finish(struct call *c, void *arg)
{
    struct nap *nap = arg;
    c->parked->us += clock_mono_us() - nap->begin_us;
    mem_free(MEM_OTHER, nap);
    reply_simple(&c->r, "OK");
}

static void nap_over(void *arg)
{
    struct nap *nap = arg;
    call_complete(nap->parked, nap_finish, nap);
}

#define NAP_MAX_S (365.0 * 86400)

static void debug_sleep(struct call *c)
{
    long double seconds;
    if (!num_parse_f64(c->argv[2], &seconds) || !(seconds > 0) || c->in_exec) {
        reply_simple(&c->r, "OK");
        return;
    }
    struct nap *nap = mem_calloc(MEM_OTHER, sizeof(*nap));
    nap->begin_us = clock_mono_us();
    nap->parked = call_suspend(c, &nap_ops, nap);
    nap->timer = mbox_timer_start(c->w->mbox, (int64_t)(fminl(seconds, NAP_MAX_S) * 1000), nap_over, nap);
}

int cmd_debug_keys(int argc, const struct slice *argv, int *pos, int max)
{
    int n = argc == 3 && slice_is(argv[1], "object") ? 1 : argc > 2 && slice_is(argv[1], "digest-value") ? argc - 2 : 0;

    for (int i = 0; i < n && i < max; i++)
        pos[i] = 2 + i;
    return n < max ? n : max;
}

static void debug_object(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    struct buf serial;
    char text[256];
    if (!o) {
        call_error(c, "ERR no such key");
        return;
    }
    buf_init(&serial, MEM_OTHER);
    object_serialise(o, &serial);
    snprintf(text, sizeof(text), "Value at:%p refcount:1 encoding:%s serializedlength:%zu lru:%u lru_seconds_idle:%lld",
             (void *)o, object_encoding_name(o), serial.len, (unsigned)o->access,
             (long long)(tier_object_idle_ms(c->w, o) / 1000));
    buf_deinit(&serial);
    reply_simple(&c->r, text);
}

static void reply_bulk_number(struct reply *r, const char *number)
{
    if (r->proto > 2)
        reply_raw(r, slice_str(number)); /* RESP3 has a type for it, which nothing else here replies with */
    else
        reply_bulk(r, SLICE(number + 1, strlen(number) - 3));
}

static void reply_popular(struct reply *r)
{
    if (r->proto > 2) {
        reply_attribute(r, 1);
        reply_bulk_str(r, "key-popularity");
        reply_array(r, 2);
        reply_bulk_str(r, "key:123");
        reply_int(r, 90);
    }
    reply_bulk_str(r, "Some real reply following the attribute");
}

static void reply_pushed(struct call *c)
{
    if (c->r.proto < 3) {
        call_error(c, "ERR RESP2 is not supported by this command");
        return;
    }
    reply_push(&c->r, 2);
    reply_bulk_str(&c->r, "server-cpu-usage");
    reply_int(&c->r, 42);
    reply_bulk_str(&c->r, "Some real reply following the push reply");
}

/* A reply of each type of the protocol, as Redis has them for tests of clients. */
static void debug_protocol(struct call *c)
{
    struct reply *r = &c->r;

    if (call_arg_is(c, 2, "string")) {
        reply_bulk_str(r, "Hello World");
    } else if (call_arg_is(c, 2, "integer")) {
        reply_int(r, 12345);
    } else if (call_arg_is(c, 2, "double")) {
        reply_double(r, 3.141);
    } else if (call_arg_is(c, 2, "bignum")) {
        reply_bulk_number(r, "(1234567999999999999999999999999999999\r\n");
    } else if (call_arg_is(c, 2, "null")) {
        reply_null(r);
    } else if (call_arg_is(c, 2, "array") || call_arg_is(c, 2, "set")) {
        (call_arg_is(c, 2, "set") ? reply_set : reply_array)(r, 3);
        for (int i = 0; i < 3; i++)
            reply_int(r, i);
    } else if (call_arg_is(c, 2, "map")) {
        reply_map(r, 3);
        for (int i = 0; i < 3; i++) {
            reply_int(r, i);
            reply_bool(r, i == 1);
        }
    } else if (call_arg_is(c, 2, "attrib")) {
        reply_popular(r);
    } else if (call_arg_is(c, 2, "push")) {
        reply_pushed(c);
    } else if (call_arg_is(c, 2, "verbatim")) {
        reply_verbatim(r, SLICE_LIT("This is a verbatim\nstring"), "txt");
    } else if (call_arg_is(c, 2, "true") || call_arg_is(c, 2, "false")) {
        reply_bool(r, call_arg_is(c, 2, "true"));
    } else {
        call_error(c, "ERR Wrong protocol type name. Please use one of the following: "
                      "string|integer|double|bignum|null|array|set|map|attrib|push|verbatim|true|false");
    }
}

static const char *const debug_help[] = {
    "DIGEST-VALUE <key> [<key> ...]",
    "    Replies a digest of each value, which is the same for equal ones.",
    "ERROR <text>",
    "    Replies this error.",
    "LOG <text>",
    "    Writes it to the log.",
    "OBJECT <key>",
    "    Shows how the key's value is kept.",
    "PROTOCOL <type>",
    "    Replies a value of a type of the protocol.",
    "SET-ACTIVE-EXPIRE <0|1>",
    "    Whether expired keys are looked for in the background.",
    "SLEEP <seconds>",
    "    Replies after that time; other clients are served meanwhile.",
    NULL,
};

void cmd_debug(struct call *c)
{
    if (c->argc == 2 && call_arg_is(c, 1, "help")) {
        cmd_reply_help(c, debug_help);
    } else if (c->argc == 3 && call_arg_is(c, 1, "sleep")) {
        debug_sleep(c);
    } else if (c->argc == 3 && call_arg_is(c, 1, "object")) {
        debug_object(c);
    } else if (c->argc >= 3 && call_arg_is(c, 1, "digest-value")) {
        debug_digest_value(c);
    } else if (c->argc == 3 && call_arg_is(c, 1, "error")) {
        call_errorf(c, "%.*s", SLICE_FMT(c->argv[2]));
    } else if (c->argc == 3 && call_arg_is(c, 1, "log")) {
        log_warning("debug", "DEBUG LOG: %.*s", SLICE_FMT(c->argv[2]));
        reply_simple(&c->r, "OK");
    } else if (c->argc == 3 && call_arg_is(c, 1, "protocol")) {
        debug_protocol(c);
    } else if (c->argc == 3 && call_arg_is(c, 1, "set-active-expire")) {
        int64_t on = 0;
        atomic_store(&c->w->cmd->active_expire, num_parse_i64(c->argv[2], &on) && on != 0);
        reply_simple(&c->r, "OK");
    } else {
        cmd_reply_bad_subcommand(c);
    }
}
