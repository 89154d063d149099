/* DUMP and RESTORE: values as Redis has them in its own files (rdb.h), in both directions. */
#include "tiercel/rdb.h"

#include "cmd/cmd_priv.h"

void cmd_dump(struct call *c)
{
    struct object *o = ks_read(c, 0);
    struct buf payload;

    if (!o) {
        reply_null(&c->r);
        return;
    }
    buf_init(&payload, MEM_CLIENT);
    if (rdb_dump(o, c->w->codec, &payload))
        reply_bulk(&c->r, buf_slice(&payload));
    else
        call_error(c, "ERR the stored value is damaged");
    buf_deinit(&payload);
}

struct restore {
    bool replace, absttl;
    int64_t idle_s, freq; /* -1: not given */
};

static bool restore_options(struct call *c, struct restore *r)
{
    *r = (struct restore){.idle_s = -1, .freq = -1};
    for (int i = 4; i < c->argc; i++) {
        bool has_value = i + 1 < c->argc;
        if (call_arg_is(c, i, "replace")) {
            r->replace = true;
        } else if (call_arg_is(c, i, "absttl")) {
            r->absttl = true;
        } else if (call_arg_is(c, i, "idletime") && has_value && r->freq < 0) {
            if (!call_arg_i64(c, ++i, &r->idle_s, NULL))
                return false;
            if (r->idle_s < 0) {
                call_error(c, "ERR Invalid IDLETIME value, must be >= 0");
                return false;
            }
        } else if (call_arg_is(c, i, "freq") && has_value && r->idle_s < 0) {
            if (!call_arg_i64(c, ++i, &r->freq, NULL))
                return false;
            if (r->freq < 0 || r->freq > 255) {
                call_error(c, "ERR Invalid FREQ value, must be >= 0 and <= 255");
                return false;
            }
        } else {
            call_syntax(c);
            return false;
        }
    }
    return true;
}

/* A value whose time has come is not stored. */
static void restore_expired(struct call *c)
{
    if (ks_exists(c, 0)) {
        ks_delete(c, 0);
        ks_notify(c, 0, NOTIFY_GENERIC, "del");
    }
    reply_simple(&c->r, "OK");
}

void cmd_restore(struct call *c)
{
    struct obj_limits lim = ks_limits(c);
    struct restore r;
    struct slice value;
    int64_t ttl;

    if (!restore_options(c, &r))
        return;
    if (!r.replace && ks_exists(c, 0)) {
        call_error(c, "BUSYKEY Target key name already exists.");
        return;
    }
    if (!call_arg_i64(c, 2, &ttl, NULL))
        return;
    if (ttl < 0) {
        call_error(c, "ERR Invalid TTL value, must be >= 0");
        return;
    }
    if (!rdb_undump(c->argv[3], &value)) {
        call_error(c, "ERR DUMP payload version or checksum are wrong");
        return;
    }
    struct object *o = rdb_parse(value, &lim, &c->keys[0].key, 0, 0);
    if (!o) {
        call_error(c, "ERR Bad data format");
        return;
    }
    if (ttl != 0 && !r.absttl)
        ttl = ttl > INT64_MAX - c->now_ms ? INT64_MAX : ttl + c->now_ms;
    if (ttl != 0 && ttl <= c->now_ms) {
        object_free(o);
        restore_expired(c);
        return;
    }
    if (ks_exists(c, 0))
        ks_delete(c, 0); /* what comes is a new key, for those who are told */
    ks_put(c, 0, object_set_expire(o, ttl));
    tier_set_access_locked(c->w, c->keys[0].obj, r.idle_s, (int)r.freq);
    ks_notify(c, 0, NOTIFY_GENERIC, "restore");
    reply_simple(&c->r, "OK");
}
