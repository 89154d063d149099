#include <math.h>

#include "cmd_priv.h"
#include "tiercel/keyspace.h"
#include "tiercel/num.h"

/* Commands on strings. LCS is in string_lcs.c. */

/* ---- options of SET and GETEX -------------------------------------------------------- */

enum {
    OPT_NX = 1 << 0,
    OPT_XX = 1 << 1,
    OPT_GET = 1 << 2,
    OPT_KEEPTTL = 1 << 3,
    OPT_PERSIST = 1 << 4,
    OPT_EX = 1 << 5,
    OPT_PX = 1 << 6,
    OPT_EXAT = 1 << 7,
    OPT_PXAT = 1 << 8
};
#define OPT_TIMES (OPT_EX | OPT_PX | OPT_EXAT | OPT_PXAT)
#define OPT_OF_SET (OPT_NX | OPT_XX | OPT_GET | OPT_KEEPTTL | OPT_TIMES)
#define OPT_OF_GETEX (OPT_PERSIST | OPT_TIMES)

/* An option may come twice, the last value counts; only others can exclude it. */
static const struct string_option {
    const char *word;
    uint32_t flag, excluded_by;
} string_options[] = {
    {"ex", OPT_EX, OPT_KEEPTTL | OPT_PERSIST | (OPT_TIMES & ~OPT_EX)},
    {"px", OPT_PX, OPT_KEEPTTL | OPT_PERSIST | (OPT_TIMES & ~OPT_PX)},
    {"nx", OPT_NX, OPT_XX},
    {"xx", OPT_XX, OPT_NX},
    {"get", OPT_GET, 0},
    {"exat", OPT_EXAT, OPT_KEEPTTL | OPT_PERSIST | (OPT_TIMES & ~OPT_EXAT)},
    {"pxat", OPT_PXAT, OPT_KEEPTTL | OPT_PERSIST | (OPT_TIMES & ~OPT_PXAT)},
    {"keepttl", OPT_KEEPTTL, OPT_PERSIST | OPT_TIMES},
    {"persist", OPT_PERSIST, OPT_KEEPTTL | OPT_TIMES},
};

static const struct string_option *option_find(struct slice word)
{
    for (size_t i = 0; i < sizeof(string_options) / sizeof(string_options[0]); i++) {
        if (slice_is(word, string_options[i].word))
            return &string_options[i];
    }
    return NULL;
}

/* Reads options from argument `arg` on. *time_arg is the position of the expiry, if there is
 * one. false: bad syntax. */
static bool options_parse(int argc, const struct slice *argv, int arg, uint32_t allowed, uint32_t *flags, int *time_arg)
{
    *flags = 0;
    for (; arg < argc; arg++) {
        const struct string_option *opt = option_find(argv[arg]);
        if (!opt || !(opt->flag & allowed) || (*flags & opt->excluded_by))
            return false;
        if (opt->flag & OPT_TIMES) {
            if (++arg == argc)
                return false;
            *time_arg = arg;
        }
        *flags |= opt->flag;
    }
    return true;
}

enum key_access cmd_set_access(int argc, const struct slice *argv)
{
    uint32_t flags;
    int time_arg;
    if (LIKELY(argc == 3))
        return KEY_REPLACE;
    if (argc < 3 || !options_parse(argc, argv, 3, OPT_OF_SET, &flags, &time_arg))
        return KEY_UPDATE;
    return flags & ~(uint32_t)OPT_TIMES ? KEY_UPDATE : KEY_REPLACE;
}

/* The absolute time that argument `arg` means, by the option that named it. false: the error was replied. */
static bool expiry_parse(struct call *c, int arg, uint32_t flags, int64_t *expire_ms)
{
    int64_t v;
    if (!call_arg_i64(c, arg, &v, NULL))
        return false;
    bool seconds = flags & (OPT_EX | OPT_EXAT);
    bool bad = v <= 0 || (seconds && __builtin_mul_overflow(v, 1000, &v));
    if (!bad && flags & (OPT_EX | OPT_PX))
        bad = __builtin_add_overflow(v, c->now_ms, &v);
    if (bad) {
        cmd_reply_bad_expiry(c);
        return false;
    }
    *expire_ms = v;
    return true;
}

/* ---- reading ------------------------------------------------------------------------- */

/* Replies the value or a null. false: it was not a string, and the error was replied. */
static inline bool string_reply(struct call *c, struct object *o)
{
    if (!o) {
        reply_null(&c->r);
    } else if (UNLIKELY(o->type != OBJ_STRING)) {
        call_wrongtype(c);
        return false;
    } else {
        ks_reply_string(c, o);
    }
    return true;
}

void cmd_get(struct call *c)
{
    string_reply(c, ks_read(c, 0));
}

void cmd_mget(struct call *c)
{
    reply_array(&c->r, c->nkeys);
    for (int i = 0; i < c->nkeys; i++) {
        struct object *o = ks_read(c, i);
        if (o && o->type == OBJ_STRING)
            ks_reply_string(c, o);
        else
            reply_null(&c->r);
    }
}

void cmd_strlen(struct call *c)
{
    struct object *o = ks_read(c, 0);
    if (o && o->type != OBJ_STRING)
        call_wrongtype(c);
    else
        reply_int(&c->r, o ? (int64_t)object_string_len(o) : 0);
}

/* Which bytes of `len` the inclusive indexes name, negative ones counted from the end. */
static struct slice range_of(struct slice value, int64_t start, int64_t end)
{
    int64_t len = (int64_t)value.len;
    if (start < 0 && end < 0 && start > end)
        return SLICE_NONE;
    if (start < 0)
        start = start + len < 0 ? 0 : start + len;
    if (end < 0)
        end = end + len < 0 ? 0 : end + len;
    if (end >= len)
        end = len - 1;
    return start > end ? SLICE_NONE : SLICE(value.ptr + start, (size_t)(end - start + 1));
}

void cmd_getrange(struct call *c)
{
    int64_t start, end;
    if (!call_arg_i64(c, 2, &start, NULL) || !call_arg_i64(c, 3, &end, NULL))
        return;
    struct object *o = ks_read(c, 0);
    struct slice value = SLICE_NONE;
    char scratch[OBJ_SCRATCH];
    if (o && !ks_string(c, o, scratch, &value))
        return;
    reply_bulk(&c->r, range_of(value, start, end));
}

void cmd_substr(struct call *c)
{
    cmd_getrange(c);
}

/* ---- replacing ----------------------------------------------------------------------- */

/* Makes argument `arg` the value of key i. */
static inline void string_store(struct call *c, int i, int arg, int64_t expire_ms)
{
    ks_store_arg(c, i, arg, expire_ms);
    ks_notify(c, i, NOTIFY_STRING, "set");
}

/* The same, with an expiry that the command sets. */
static void string_store_until(struct call *c, int i, int arg, int64_t expire_ms)
{
    bool over = expire_ms <= c->now_ms; /* a deletion, but the events are those of a key that was there shortly */
    if (LIKELY(!over)) {
        ks_store_arg(c, i, arg, expire_ms);
    } else {
        if (!ks_exists(c, i))
            ks_notify(c, i, NOTIFY_NEW, "new");
        ks_delete(c, i);
    }
    ks_notify(c, i, NOTIFY_STRING, "set");
    ks_notify(c, i, NOTIFY_GENERIC, "expire");
    if (UNLIKELY(over))
        ks_notify(c, i, NOTIFY_EXPIRED, "expired");
}

void cmd_set(struct call *c)
{
    uint32_t flags = 0;
    int time_arg = 0;
    int64_t expire_ms = 0;
    if (c->argc > 3 && !options_parse(c->argc, c->argv, 3, OPT_OF_SET, &flags, &time_arg)) {
        call_syntax(c);
        return;
    }
    if (flags & OPT_TIMES && !expiry_parse(c, time_arg, flags, &expire_ms))
        return;
    if (flags & OPT_GET && !string_reply(c, ks_read(c, 0)))
        return;
    if (flags & (OPT_NX | OPT_XX) && ks_exists(c, 0) == !!(flags & OPT_NX)) {
        if (!(flags & OPT_GET))
            reply_null(&c->r);
        return;
    }
    struct object *old = flags & OPT_KEEPTTL ? ks_peek(c, 0) : NULL;
    if (flags & OPT_TIMES)
        string_store_until(c, 0, 2, expire_ms);
    else
        string_store(c, 0, 2, old ? object_expire(old) : 0);
    if (!(flags & OPT_GET))
        reply_simple(&c->r, "OK");
}

void cmd_setnx(struct call *c)
{
    bool absent = !ks_exists(c, 0);
    if (absent)
        string_store(c, 0, 2, 0);
    reply_int(&c->r, absent);
}

static void set_with_expiry(struct call *c, uint32_t unit)
{
    int64_t expire_ms;
    if (!expiry_parse(c, 2, unit, &expire_ms))
        return;
    string_store_until(c, 0, 3, expire_ms);
    reply_simple(&c->r, "OK");
}

void cmd_setex(struct call *c)
{
    set_with_expiry(c, OPT_EX);
}

void cmd_psetex(struct call *c)
{
    set_with_expiry(c, OPT_PX);
}

void cmd_getset(struct call *c)
{
    if (string_reply(c, ks_read(c, 0)))
        string_store(c, 0, 2, 0);
}

void cmd_getdel(struct call *c)
{
    struct object *o = ks_read(c, 0);
    if (!string_reply(c, o) || !o)
        return;
    ks_delete(c, 0);
    ks_notify(c, 0, NOTIFY_GENERIC, "del");
}

void cmd_getex(struct call *c)
{
    uint32_t flags;
    int time_arg = 0;
    int64_t expire_ms = 0;
    if (!options_parse(c->argc, c->argv, 2, OPT_OF_GETEX, &flags, &time_arg)) {
        call_syntax(c);
        return;
    }
    struct object *o = ks_read(c, 0);
    /* A bad time is only looked at when there is a string that it could apply to. */
    if (o && o->type == OBJ_STRING && flags & OPT_TIMES && !expiry_parse(c, time_arg, flags, &expire_ms))
        return;
    if (!string_reply(c, o) || !o)
        return;
    if (flags & OPT_TIMES)
        cmd_expire_at(c, 0, expire_ms);
    else if (flags & OPT_PERSIST)
        cmd_persist_key(c, 0);
}

/* Values follow their keys: an odd number of arguments with the command's name. */
static bool pairs_complete(struct call *c)
{
    if (c->argc % 2)
        return true;
    cmd_reply_bad_arity(c);
    return false;
}

static void store_pairs(struct call *c)
{
    for (int i = 0; i < c->nkeys; i++)
        string_store(c, i, c->keys[i].arg + 1, 0);
}

void cmd_mset(struct call *c)
{
    if (!pairs_complete(c))
        return;
    store_pairs(c);
    reply_simple(&c->r, "OK");
}

void cmd_msetnx(struct call *c)
{
    if (!pairs_complete(c))
        return;
    for (int i = 0; i < c->nkeys; i++) {
        if (ks_exists(c, i)) {
            reply_int(&c->r, 0);
            return;
        }
    }
    store_pairs(c);
    reply_int(&c->r, 1);
}

/* ---- changing ------------------------------------------------------------------------ */

/* The key's value for a change of it: *value is empty and *o NULL when there is none. false: not a string. */
static bool string_for_update(struct call *c, char scratch[OBJ_SCRATCH], struct object **o, struct slice *value)
{
    *value = SLICE_NONE;
    *o = ks_peek(c, 0);
    return !*o || ks_string(c, *o, scratch, value);
}

/* Would `len` bytes and `more` behind them be too long for a string? Replies the error if so. */
static bool too_long(struct call *c, uint64_t len, uint64_t more)
{
    uint64_t total;
    if (!__builtin_add_overflow(len, more, &total) && total <= (uint64_t)c->w->conf->proto_max_bulk_len)
        return false;
    call_error(c, "ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    return true;
}

#define REPACK_MAX (16 * 1024)

/* Is a value of that length worth compressing anew with every change? Longer ones are changed in place, and stay plain. */
static bool worth_packing(const struct call *c, size_t len)
{
    return len >= (size_t)c->w->conf->compression_threshold && len <= REPACK_MAX;
}

/* Writes `patch` at `offset` over a value of `len` bytes (zeros in between), and replies its length. */
static void string_patch(struct call *c, size_t len, size_t offset, struct slice patch, const char *event)
{
    struct ks_edit e;
    if (offset + patch.len > len)
        len = offset + patch.len;
    char *bytes = ks_edit(c, 0, len, &e);
    if (!bytes)
        return;
    if (patch.len)
        memcpy(bytes + offset, patch.ptr, patch.len);
    if (worth_packing(c, len))
        ks_edit_pack(c, 0, &e);
    ks_edited(c, 0, &e);
    ks_notify(c, 0, NOTIFY_STRING, event);
    reply_int(&c->r, (int64_t)len);
}

void cmd_append(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    if (!o) {
        ks_store_arg(c, 0, 2, 0);
        ks_notify(c, 0, NOTIFY_STRING, "append");
        reply_int(&c->r, (int64_t)c->argv[2].len);
        return;
    }
    if (!ks_is(c, o, OBJ_STRING))
        return;
    size_t len = object_string_len(o);
    if (!too_long(c, len, c->argv[2].len))
        string_patch(c, len, len, c->argv[2], "append");
}

void cmd_setrange(struct call *c)
{
    int64_t offset;
    if (!call_arg_i64(c, 2, &offset, NULL))
        return;
    if (offset < 0) {
        call_error(c, "ERR offset is out of range");
        return;
    }
    struct object *o = ks_peek(c, 0);
    struct slice patch = c->argv[3];
    if (!ks_is(c, o, OBJ_STRING))
        return;
    size_t len = o ? object_string_len(o) : 0;
    if (patch.len == 0)
        reply_int(&c->r, (int64_t)len);
    else if (!too_long(c, (uint64_t)offset, patch.len))
        string_patch(c, len, (size_t)offset, patch, "setrange");
}

/* ---- numbers ------------------------------------------------------------------------- */

static void string_add(struct call *c, int64_t by)
{
    struct object *o = ks_peek(c, 0);
    int64_t value = 0, expire_ms = 0;
    if (o) {
        expire_ms = object_expire(o);
        if (LIKELY(o->enc == ENC_INT)) {
            value = object_int(o);
        } else {
            char scratch[OBJ_SCRATCH];
            struct slice text;
            if (!ks_string(c, o, scratch, &text))
                return;
            if (!num_parse_i64(text, &value)) {
                call_not_int(c);
                return;
            }
        }
    }
    if (__builtin_add_overflow(value, by, &value)) {
        call_error(c, "ERR increment or decrement would overflow");
        return;
    }
    ks_store_int(c, 0, value, expire_ms);
    ks_notify(c, 0, NOTIFY_STRING, "incrby");
    reply_int(&c->r, value);
}

void cmd_incr(struct call *c)
{
    string_add(c, 1);
}

void cmd_decr(struct call *c)
{
    string_add(c, -1);
}

void cmd_incrby(struct call *c)
{
    int64_t by;
    if (call_arg_i64(c, 2, &by, NULL))
        string_add(c, by);
}

void cmd_decrby(struct call *c)
{
    int64_t by;
    if (!call_arg_i64(c, 2, &by, NULL))
        return;
    if (by == INT64_MIN)
        call_error(c, "ERR decrement would overflow");
    else
        string_add(c, -by);
}

void cmd_incrbyfloat(struct call *c)
{
    char scratch[OBJ_SCRATCH];
    struct object *o;
    struct slice text;
    if (!string_for_update(c, scratch, &o, &text))
        return;
    long double value = 0, by;
    if ((o && !num_parse_f64(text, &value)) || !num_parse_f64(c->argv[2], &by)) {
        call_error(c, "ERR value is not a valid float");
        return;
    }
    value += by;
    if (isnan(value) || isinf(value)) {
        call_error(c, "ERR increment would produce NaN or Infinity");
        return;
    }
    char out[NUM_F64_MAX];
    struct slice result = SLICE(out, num_format_f64_human(out, value));
    ks_put(c, 0, ks_string_from(c, 0, result, o ? object_expire(o) : 0));
    ks_notify(c, 0, NOTIFY_STRING, "incrbyfloat");
    reply_bulk(&c->r, result);
}
