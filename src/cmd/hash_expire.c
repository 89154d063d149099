#include "cmd_priv.h"
#include "tiercel/keyspace.h"
#include "tiercel/type_hash.h"

/* Expiry of fields, as of Redis 7.4, and the commands of Redis 8 that get or set fields with it. */

/* ---- arguments ----------------------------------------------------------------------- */

/* FIELDS numfields field [field ...], or with `each` 2 field value ..., from argument `arg` to the end. */
struct named {
    int n;
    const struct slice *field;
};

static bool arg_fields(struct call *c, int arg, int each, struct named *f)
{
    int64_t n;

    if (arg + 1 >= c->argc || !call_arg_is(c, arg, "fields")) {
        call_error(c, "ERR Mandatory argument FIELDS is missing or not at the right position");
        return false;
    }
    if (!call_arg_i64(c, arg + 1, &n, NULL))
        return false;
    if (n < 1) {
        call_error(c, "ERR Parameter `numFields` should be greater than 0");
        return false;
    }
    int left = c->argc - arg - 2;
    if (left % each != 0 || n != left / each) {
        call_error(c, "ERR The `numfields` parameter must match the number of arguments");
        return false;
    }
    *f = (struct named){(int)n, &c->argv[arg + 2]};
    return true;
}

/* A time in units of unit_ms since base_ms, as wall time in ms. */
static bool arg_time(struct call *c, int arg, int64_t base_ms, int64_t unit_ms, int64_t *when_ms)
{
    if (!call_arg_i64(c, arg, when_ms, NULL))
        return false;
    if (*when_ms < 0) {
        call_error(c, "ERR invalid expire time, must be >= 0");
        return false;
    }
    if (__builtin_mul_overflow(*when_ms, unit_ms, when_ms) || __builtin_add_overflow(*when_ms, base_ms, when_ms) ||
        *when_ms > HASH_EXPIRY_MAX) {
        cmd_reply_bad_expiry(c);
        return false;
    }
    return true;
}

/* What HGETEX and HSETEX do to the expiry of their fields. */
struct change {
    enum { CHANGE_NONE, CHANGE_SET, CHANGE_PERSIST, CHANGE_KEEP } what;
    int64_t when_ms;
    bool if_none, if_all; /* FNX, FXX */
};

static bool arg_change_time(struct call *c, int arg, struct change *ch)
{
    static const struct {
        const char *word;
        bool absolute;
        int64_t unit_ms;
    } times[] = {{"ex", false, 1000}, {"px", false, 1}, {"exat", true, 1000}, {"pxat", true, 1}};
    int i = 0;

    while (!call_arg_is(c, arg, times[i].word))
        i++;
    ch->what = CHANGE_SET;
    return arg_time(c, arg + 1, times[i].absolute ? 0 : c->now_ms, times[i].unit_ms, &ch->when_ms);
}

/* Options up to FIELDS, at *arg then. `last`: the one of PERSIST and KEEPTTL that this command has. */
static bool arg_change(struct call *c, bool setting, struct change *ch, int *arg)
{
    const char *last = setting ? "keepttl" : "persist";

    *ch = (struct change){.what = CHANGE_NONE};
    for (*arg = 2; *arg < c->argc && !call_arg_is(c, *arg, "fields"); ++*arg) {
        bool timed = *arg + 1 < c->argc && (call_arg_is(c, *arg, "ex") || call_arg_is(c, *arg, "px") ||
                                            call_arg_is(c, *arg, "exat") || call_arg_is(c, *arg, "pxat"));
        bool fnx = setting && call_arg_is(c, *arg, "fnx"), fxx = setting && call_arg_is(c, *arg, "fxx");
        if (!timed && !fnx && !fxx && !call_arg_is(c, *arg, last)) {
            call_errorf(c, "ERR unknown argument: %.*s", SLICE_FMT(c->argv[*arg]));
            return false;
        }
        if ((fnx && ch->if_all) || (fxx && ch->if_none)) {
            call_error(c, "ERR Only one of FXX or FNX arguments can be specified");
            return false;
        }
        ch->if_none |= fnx;
        ch->if_all |= fxx;
        if (fnx || fxx)
            continue;
        if (ch->what != CHANGE_NONE) {
            call_errorf(c, "ERR Only one of EX, PX, EXAT, PXAT or %s arguments can be specified",
                        setting ? "KEEPTTL" : "PERSIST");
            return false;
        }
        ch->what = setting ? CHANGE_KEEP : CHANGE_PERSIST;
        if (timed && !arg_change_time(c, (*arg)++, ch))
            return false;
    }
    return true;
}

/* ---- what was done ------------------------------------------------------------------- */

struct done {
    int set, persisted, deleted;
};

/* The field is there. */
static void field_expire(struct call *c, struct hash_target *t, struct slice field, int64_t when_ms, struct done *d)
{
    if (when_ms <= c->now_ms) {
        hash_delete(t->o, field);
        d->deleted++;
    } else {
        hash_set_field_expiry(t->o, field, when_ms);
        d->set++;
    }
}

static bool field_persist(struct hash_target *t, struct slice field, struct done *d)
{
    int64_t at_ms;

    if (!hash_field_expiry(t->o, field, &at_ms) || !at_ms)
        return false;
    hash_set_field_expiry(t->o, field, 0);
    d->persisted++;
    return true;
}

/* Once the hash is in the table. */
static void timed(struct call *c, const struct done *d)
{
    struct call_key *k = &c->keys[0];

    if (d->set && k->obj)
        tier_fields_timed_locked(c->w, mem_shard_of(c->w->tier->mem, k->key.hash), &k->key, k->obj);
}

static void finish(struct call *c, struct hash_target *t, const struct done *d)
{
    if (d->set)
        ks_notify(c, 0, NOTIFY_HASH, "hexpire");
    if (d->persisted)
        ks_notify(c, 0, NOTIFY_HASH, "hpersist");
    if (d->deleted)
        ks_notify(c, 0, NOTIFY_HASH, "hdel");
    if (d->set || d->persisted || d->deleted)
        hash_changed(c, t);
    timed(c, d);
}

/* ---- HEXPIRE and its kin ------------------------------------------------------------- */

enum condition { IF_ANY, IF_NONE, IF_SOME, IF_LATER, IF_SOONER };

static enum condition condition_of(const struct call *c, int arg)
{
    static const char *const words[] = {"nx", "xx", "gt", "lt"};

    for (int i = 0; i < 4; i++)
        if (call_arg_is(c, arg, words[i]))
            return (enum condition)(IF_NONE + i);
    return IF_ANY;
}

/* No expiry is later than any. */
static bool condition_holds(enum condition cond, int64_t at_ms, int64_t when_ms)
{
    switch (cond) {
    case IF_NONE: return !at_ms;
    case IF_SOME: return at_ms != 0;
    case IF_LATER: return at_ms && when_ms > at_ms;
    case IF_SOONER: return !at_ms || when_ms < at_ms;
    default: return true;
    }
}

static void expire_command(struct call *c, int64_t base_ms, int64_t unit_ms)
{
    enum condition cond = condition_of(c, 3);
    struct done d = {0};
    struct hash_target t;
    struct named f;
    int64_t when_ms, at_ms;

    if (!arg_time(c, 2, base_ms, unit_ms, &when_ms) || !arg_fields(c, cond == IF_ANY ? 3 : 4, 1, &f) ||
        !hash_find(c, &t))
        return;
    reply_array(&c->r, f.n);
    for (int i = 0; i < f.n; i++) {
        int was = d.deleted;
        if (!t.o || !hash_field_expiry(t.o, f.field[i], &at_ms)) {
            reply_int(&c->r, -2);
        } else if (!condition_holds(cond, at_ms, when_ms)) {
            reply_int(&c->r, 0);
        } else {
            field_expire(c, &t, f.field[i], when_ms, &d);
            reply_int(&c->r, d.deleted > was ? 2 : 1);
        }
    }
    finish(c, &t, &d);
}

void cmd_hexpire(struct call *c)
{
    expire_command(c, c->now_ms, 1000);
}

void cmd_hpexpire(struct call *c)
{
    expire_command(c, c->now_ms, 1);
}

void cmd_hexpireat(struct call *c)
{
    expire_command(c, 0, 1000);
}

void cmd_hpexpireat(struct call *c)
{
    expire_command(c, 0, 1);
}

void cmd_hpersist(struct call *c)
{
    struct done d = {0};
    struct hash_target t;
    struct named f;

    if (!arg_fields(c, 2, 1, &f) || !hash_find(c, &t))
        return;
    reply_array(&c->r, f.n);
    for (int i = 0; i < f.n; i++)
        reply_int(&c->r, !t.o || !hash_has(t.o, f.field[i]) ? -2 : field_persist(&t, f.field[i], &d) ? 1 : -1);
    finish(c, &t, &d);
}

/* HTTL and its kin: when, since base_ms, in units of unit_ms, rounded up. */
static void ttl_command(struct call *c, int64_t base_ms, int64_t unit_ms)
{
    struct object *o;
    struct named f;
    int64_t at_ms;

    if (!arg_fields(c, 2, 1, &f) || !hash_read(c, &o))
        return;
    reply_array(&c->r, f.n);
    for (int i = 0; i < f.n; i++) {
        if (!o || !hash_field_expiry(o, f.field[i], &at_ms))
            reply_int(&c->r, -2);
        else
            reply_int(&c->r, at_ms ? (at_ms - base_ms + unit_ms - 1) / unit_ms : -1);
    }
}

void cmd_httl(struct call *c)
{
    ttl_command(c, c->now_ms, 1000);
}

void cmd_hpttl(struct call *c)
{
    ttl_command(c, c->now_ms, 1);
}

void cmd_hexpiretime(struct call *c)
{
    ttl_command(c, 0, 1000);
}

void cmd_hpexpiretime(struct call *c)
{
    ttl_command(c, 0, 1);
}

/* ---- getting and setting with it ----------------------------------------------------- */

/* false: there is no such field. */
static bool reply_field(struct call *c, const struct hash_target *t, struct slice field)
{
    char scratch[NUM_I64_MAX];
    struct slice value;
    bool there = t->o && hash_get(t->o, field, scratch, &value);

    if (there)
        reply_bulk(&c->r, value);
    else
        reply_null(&c->r);
    return there;
}

void cmd_hgetdel(struct call *c)
{
    struct done d = {0};
    struct hash_target t;
    struct named f;

    if (!arg_fields(c, 2, 1, &f) || !hash_find(c, &t))
        return;
    reply_array(&c->r, f.n);
    for (int i = 0; i < f.n; i++)
        if (reply_field(c, &t, f.field[i]))
            d.deleted += hash_delete(t.o, f.field[i]);
    finish(c, &t, &d);
}

void cmd_hgetex(struct call *c)
{
    struct done d = {0};
    struct hash_target t;
    struct change ch;
    struct named f;
    int arg;

    if (!arg_change(c, false, &ch, &arg) || !arg_fields(c, arg, 1, &f) || !hash_find(c, &t))
        return;
    reply_array(&c->r, f.n);
    for (int i = 0; i < f.n; i++) {
        if (!reply_field(c, &t, f.field[i]))
            continue;
        if (ch.what == CHANGE_SET)
            field_expire(c, &t, f.field[i], ch.when_ms, &d);
        else if (ch.what == CHANGE_PERSIST)
            field_persist(&t, f.field[i], &d);
    }
    finish(c, &t, &d);
}

/* FNX and FXX. */
static bool may_set(const struct hash_target *t, const struct change *ch, const struct named *f)
{
    for (int i = 0; (ch->if_none || ch->if_all) && i < f->n; i++)
        if ((t->o && hash_has(t->o, f->field[2 * i])) != ch->if_all)
            return false;
    return true;
}

void cmd_hsetex(struct call *c)
{
    struct done d = {0};
    struct hash_target t;
    struct change ch;
    struct named f;
    int arg;

    if (!arg_change(c, true, &ch, &arg) || !arg_fields(c, arg, 2, &f) || !hash_find(c, &t))
        return;
    if (!may_set(&t, &ch, &f)) {
        reply_int(&c->r, 0);
        return;
    }
    CHECK(hash_find_or_make(c, &t));
    for (int i = 0; i < f.n; i++)
        (ch.what == CHANGE_KEEP ? hash_update : hash_set)(t.o, f.field[2 * i], f.field[2 * i + 1], &t.limits);
    for (int i = 0; ch.what == CHANGE_SET && i < f.n; i++)
        if (hash_has(t.o, f.field[2 * i])) /* one that is named twice may be gone */
            field_expire(c, &t, f.field[2 * i], ch.when_ms, &d);
    hash_stored(c, &t);
    ks_notify(c, 0, NOTIFY_HASH, "hset");
    if (d.set)
        ks_notify(c, 0, NOTIFY_HASH, "hexpire");
    if (d.deleted)
        ks_notify(c, 0, NOTIFY_HASH, "hdel");
    hash_changed(c, &t);
    timed(c, &d);
    reply_int(&c->r, 1);
}
