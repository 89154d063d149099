#include <limits.h>

#include "cmd_priv.h"
#include "tiercel/keyspace.h"
#include "tiercel/num.h"
#include "tiercel/tier.h"

/* Commands on keys of any type. Those that walk the key space are in scan.c. */

/* ---- shared with other files --------------------------------------------------------- */

void cmd_reply_bad_arity(struct call *c)
{
    call_errorf(c, "ERR wrong number of arguments for '%s' command", c->cmd->full);
}

void cmd_reply_bad_expiry(struct call *c)
{
    call_errorf(c, "ERR invalid expire time in '%s' command", c->cmd->full);
}

void cmd_expire_at(struct call *c, int i, int64_t expire_ms)
{
    if (expire_ms <= c->now_ms) {
        ks_delete(c, i);
        ks_notify(c, i, NOTIFY_GENERIC, "del");
    } else {
        ks_expire(c, i, expire_ms);
        ks_notify(c, i, NOTIFY_GENERIC, "expire");
    }
}

bool cmd_persist_key(struct call *c, int i)
{
    if (!object_expire(ks_peek(c, i)))
        return false;
    ks_expire(c, i, 0);
    ks_notify(c, i, NOTIFY_GENERIC, "persist");
    return true;
}

bool cmd_arg_between(struct call *c, int arg, int64_t min, int64_t max, int64_t *out, const char *err)
{
    if (!call_arg_i64(c, arg, out, err))
        return false;
    if (*out >= min && *out <= max)
        return true;
    if (err)
        call_error(c, err);
    else
        call_errorf(c, "ERR value is out of range, value must between %lld and %lld", (long long)min, (long long)max);
    return false;
}

/* ---- presence ------------------------------------------------------------------------ */

void cmd_del(struct call *c)
{
    int64_t deleted = 0;
    for (int i = 0; i < c->nkeys; i++) {
        if (!ks_delete(c, i))
            continue;
        ks_notify(c, i, NOTIFY_GENERIC, "del");
        deleted++;
    }
    reply_int(&c->r, deleted);
}

void cmd_unlink(struct call *c)
{
    cmd_del(c);
}

void cmd_exists(struct call *c)
{
    int64_t n = 0;
    for (int i = 0; i < c->nkeys; i++)
        n += ks_lookup(c, i);
    reply_int(&c->r, n);
}

void cmd_touch(struct call *c)
{
    int64_t n = 0;
    for (int i = 0; i < c->nkeys; i++) {
        ks_read(c, i);
        n += ks_exists(c, i);
    }
    reply_int(&c->r, n);
}

void cmd_type(struct call *c)
{
    struct object *o = ks_lookup(c, 0) ? ks_peek(c, 0) : NULL;
    reply_simple(&c->r, object_type_name(o ? o->type : OBJ_NONE));
}

/* ---- expiry -------------------------------------------------------------------------- */

enum {
    IF_NONE = 1 << 0,  /* NX */
    IF_SOME = 1 << 1,  /* XX */
    IF_LATER = 1 << 2, /* GT */
    IF_SOONER = 1 << 3 /* LT */
};

/* The word as it appears in an error: up to a NUL, without line ends behind it. */
static struct slice printable(struct slice word)
{
    word.len = strnlen(word.ptr, word.len);
    while (word.len && (word.ptr[word.len - 1] == '\r' || word.ptr[word.len - 1] == '\n'))
        word.len--;
    return word;
}

static bool conditions_parse(struct call *c, unsigned *conditions)
{
    static const char *const words[] = {"nx", "xx", "gt", "lt"};
    *conditions = 0;
    for (int arg = 3; arg < c->argc; arg++) {
        unsigned i = 0;
        while (i < 4 && !call_arg_is(c, arg, words[i]))
            i++;
        if (i == 4) {
            call_errorf(c, "ERR Unsupported option %.*s", SLICE_FMT(printable(c->argv[arg])));
            return false;
        }
        *conditions |= 1u << i;
    }
    if (*conditions & IF_NONE && *conditions != IF_NONE) {
        call_error(c, "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if (*conditions & IF_LATER && *conditions & IF_SOONER) {
        call_error(c, "ERR GT and LT options at the same time are not compatible");
        return false;
    }
    return true;
}

/* No expiry is later than any. */
static bool conditions_hold(unsigned conditions, int64_t current_ms, int64_t when_ms)
{
    if (conditions & IF_NONE && current_ms)
        return false;
    if (conditions & IF_SOME && !current_ms)
        return false;
    if (conditions & IF_LATER && (!current_ms || when_ms <= current_ms))
        return false;
    return !(conditions & IF_SOONER && current_ms && when_ms >= current_ms);
}

/* EXPIRE and its kin: argument 2 counts units of unit_ms from base_ms on. */
static void expire_command(struct call *c, int64_t base_ms, int64_t unit_ms)
{
    unsigned conditions;
    int64_t when;
    if (!conditions_parse(c, &conditions) || !call_arg_i64(c, 2, &when, NULL))
        return;
    if (__builtin_mul_overflow(when, unit_ms, &when) || __builtin_add_overflow(when, base_ms, &when)) {
        cmd_reply_bad_expiry(c);
        return;
    }
    struct object *o = ks_peek(c, 0);
    if (!o || !conditions_hold(conditions, object_expire(o), when)) {
        reply_int(&c->r, 0);
        return;
    }
    cmd_expire_at(c, 0, when);
    reply_int(&c->r, 1);
}

void cmd_expire(struct call *c)
{
    expire_command(c, c->now_ms, 1000);
}

void cmd_pexpire(struct call *c)
{
    expire_command(c, c->now_ms, 1);
}

void cmd_expireat(struct call *c)
{
    expire_command(c, 0, 1000);
}

void cmd_pexpireat(struct call *c)
{
    expire_command(c, 0, 1);
}

/* TTL and its kin: the expiry as a time since base_ms, in units of unit_ms, rounded. */
static void ttl_command(struct call *c, int64_t base_ms, int64_t unit_ms)
{
    struct object *o = ks_lookup(c, 0) ? ks_peek(c, 0) : NULL;
    int64_t expire_ms = o ? object_expire(o) : 0;
    if (!o) {
        reply_int(&c->r, -2);
    } else if (!expire_ms) {
        reply_int(&c->r, -1);
    } else {
        int64_t left = expire_ms > base_ms ? expire_ms - base_ms : 0;
        reply_int(&c->r, left / unit_ms + (left % unit_ms * 2 >= unit_ms && unit_ms > 1));
    }
}

void cmd_ttl(struct call *c)
{
    ttl_command(c, c->now_ms, 1000);
}

void cmd_pttl(struct call *c)
{
    ttl_command(c, c->now_ms, 1);
}

void cmd_expiretime(struct call *c)
{
    ttl_command(c, 0, 1000);
}

void cmd_pexpiretime(struct call *c)
{
    ttl_command(c, 0, 1);
}

void cmd_persist(struct call *c)
{
    reply_int(&c->r, ks_peek(c, 0) && cmd_persist_key(c, 0));
}

/* ---- other names and databases ------------------------------------------------------- */

/* Gives key 1 the value and expiry of key 0. */
static void copy_value(struct call *c, const struct object *from)
{
    if (ks_exists(c, 1)) /* what it replaces counts as deleted before, without an event of its own */
        ks_notify(c, 1, NOTIFY_NEW, "new");
    ks_put(c, 1, object_copy(from, &c->keys[1].key, object_expire(from), 0));
}

/* RENAME and RENAMENX. false: the reply is an error, or that the new name was taken. */
static bool rename_command(struct call *c, bool only_new)
{
    struct object *o = ks_peek(c, 0);
    if (!o) {
        call_error(c, "ERR no such key");
        return false;
    }
    bool same = slice_eq(c->argv[1], c->argv[2]);
    if (only_new && (same || ks_exists(c, 1))) {
        reply_int(&c->r, 0);
        return false;
    }
    if (!same) {
        copy_value(c, o);
        ks_delete(c, 0);
        ks_notify(c, 0, NOTIFY_GENERIC, "rename_from");
        ks_notify(c, 1, NOTIFY_GENERIC, "rename_to");
    }
    return true;
}

void cmd_rename(struct call *c)
{
    if (rename_command(c, false))
        reply_simple(&c->r, "OK");
}

void cmd_renamenx(struct call *c)
{
    if (rename_command(c, true))
        reply_int(&c->r, 1);
}

/* The number of an existing database. false: the error was replied. */
static bool arg_db(struct call *c, int arg, int *db)
{
    int64_t v;
    if (!cmd_arg_between(c, arg, INT_MIN, INT_MAX, &v, NULL))
        return false;
    if (v < 0 || v >= c->w->conf->databases) {
        call_error(c, "ERR DB index is out of range");
        return false;
    }
    *db = (int)v;
    return true;
}

static void reply_same_object(struct call *c)
{
    call_error(c, "ERR source and destination objects are the same");
}

static int db_of(struct slice arg)
{
    int64_t v;
    return num_parse_i64(arg, &v) && v >= 0 && v <= INT_MAX ? (int)v : -1;
}

int cmd_copy_db(int argc, const struct slice *argv, int cur_db)
{
    int db = cur_db;
    for (int arg = 3; arg < argc && db >= 0; arg++) {
        if (slice_is(argv[arg], "db") && arg + 1 < argc)
            db = db_of(argv[++arg]);
        else if (!slice_is(argv[arg], "replace"))
            db = -1;
    }
    return db;
}

int cmd_move_db(int argc, const struct slice *argv, int cur_db)
{
    (void)cur_db;
    return argc == 3 ? db_of(argv[2]) : -1;
}

void cmd_copy(struct call *c)
{
    int db = c->s->db;
    bool replace = false;
    for (int arg = 3; arg < c->argc; arg++) {
        if (call_arg_is(c, arg, "replace")) {
            replace = true;
        } else if (call_arg_is(c, arg, "db") && arg + 1 < c->argc) {
            if (!arg_db(c, ++arg, &db))
                return;
        } else {
            call_syntax(c);
            return;
        }
    }
    if (db == c->s->db && slice_eq(c->argv[1], c->argv[2])) {
        reply_same_object(c);
        return;
    }
    CHECK(c->nkeys == 2);
    struct object *o = ks_read(c, 0);
    bool copied = o && (replace || !ks_exists(c, 1));
    if (copied) {
        copy_value(c, o);
        ks_notify(c, 1, NOTIFY_GENERIC, "copy_to");
    }
    reply_int(&c->r, copied);
}

void cmd_move(struct call *c)
{
    int db;
    if (!arg_db(c, 2, &db))
        return;
    if (db == c->s->db) {
        reply_same_object(c);
        return;
    }
    CHECK(c->nkeys == 2);
    struct object *o = ks_peek(c, 0);
    bool moved = o && !ks_exists(c, 1);
    if (moved) {
        copy_value(c, o);
        ks_delete(c, 0);
        ks_notify(c, 0, NOTIFY_GENERIC, "move_from");
        ks_notify(c, 1, NOTIFY_GENERIC, "move_to");
    }
    reply_int(&c->r, moved);
}

/* ---- OBJECT -------------------------------------------------------------------------- */

#define POLICY_NOTE \
    " Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust."

/* The object that the subcommand is about; NULL: there is none, and a null was replied. */
static struct object *object_asked(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    if (!o)
        reply_null(&c->r);
    return o;
}

static bool policy_is_lfu(const struct call *c)
{
    int policy = c->w->conf->maxmemory_policy;
    return policy == POLICY_ALLKEYS_LFU || policy == POLICY_VOLATILE_LFU;
}

void cmd_object_encoding(struct call *c)
{
    struct object *o = object_asked(c);
    if (o)
        reply_bulk_str(&c->r, object_encoding_name(o));
}

void cmd_object_freq(struct call *c)
{
    struct object *o = object_asked(c);
    if (!o)
        return;
    if (policy_is_lfu(c))
        reply_int(&c->r, tier_object_freq(c->w, o));
    else
        call_error(c, "ERR An LFU maxmemory policy is not selected, access frequency not tracked." POLICY_NOTE);
}

void cmd_object_idletime(struct call *c)
{
    struct object *o = object_asked(c);
    if (!o)
        return;
    if (policy_is_lfu(c))
        call_error(c, "ERR An LFU maxmemory policy is selected, idle time not tracked." POLICY_NOTE);
    else
        reply_int(&c->r, tier_object_idle_ms(c->w, o) / 1000);
}

/* Numbers are not shared here, as in a Redis with a memory limit. */
void cmd_object_refcount(struct call *c)
{
    if (object_asked(c))
        reply_int(&c->r, 1);
}

void cmd_object_help(struct call *c)
{
    static const char *const lines[] = {
        "ENCODING <key>",
        "    Return the kind of internal representation used in order to store the value",
        "    associated with a <key>.",
        "FREQ <key>",
        "    Return the access frequency index of the <key>. The returned integer is",
        "    proportional to the logarithm of the recent access frequency of the key.",
        "IDLETIME <key>",
        "    Return the idle time of the <key>, that is the approximated number of",
        "    seconds elapsed since the last access to the key.",
        "REFCOUNT <key>",
        "    Return the number of references of the value associated with the specified",
        "    <key>.",
        NULL,
    };
    cmd_reply_help(c, lines);
}
