#include <limits.h>
#include <math.h>

#include "cmd_priv.h"
#include "tiercel/glob.h"
#include "tiercel/keyspace.h"
#include "tiercel/num.h"
#include "tiercel/type_hash.h"

/* Commands on hashes. Those about the expiry of fields are in hash_expire.c. */

/* Fields whose time has come go before anybody looks. In a command that only reads, too: who reads the value from disk
 * comes to the same, so nothing has to be written. */
void hash_expire(struct call *c, int i)
{
    struct call_key *k = &c->keys[i];

    if (!k->obj || k->obj->type != OBJ_HASH)
        return;
    size_t n = hash_expire_fields(k->obj, c->now_ms, SIZE_MAX);
    if (n == 0)
        return;
    bool none = object_len(k->obj) == 0;
    if (!k->kept && !none) /* a copy for this request alone: the value stays on disk as it is */
        return;
    tier_fields_expired_locked(c->w, mem_shard_of(c->w->tier->mem, k->key.hash), &k->key, n);
    if (none) {
        ks_delete(c, i);
        ks_notify(c, i, NOTIFY_GENERIC, "del");
    }
}

bool hash_read(struct call *c, struct object **o)
{
    hash_expire(c, 0);
    *o = ks_read(c, 0);
    return ks_is(c, *o, OBJ_HASH);
}

bool hash_find(struct call *c, struct hash_target *t)
{
    hash_expire(c, 0);
    *t = (struct hash_target){.o = ks_peek(c, 0), .limits = ks_limits(c)};
    return ks_is(c, t->o, OBJ_HASH);
}

bool hash_find_or_make(struct call *c, struct hash_target *t)
{
    if (!hash_find(c, t))
        return false;
    t->is_new = !t->o;
    if (t->is_new)
        t->o = hash_new(&c->keys[0].key);
    return true;
}

void hash_stored(struct call *c, struct hash_target *t)
{
    if (t->is_new)
        ks_put(c, 0, t->o);
    t->stored = t->is_new;
}

void hash_changed(struct call *c, const struct hash_target *t)
{
    if (!t->stored || object_len(t->o) == 0)
        ks_changed(c, 0);
}

static void changed(struct call *c, struct hash_target *t, const char *event)
{
    hash_stored(c, t);
    ks_notify(c, 0, NOTIFY_HASH, event);
    hash_changed(c, t);
}

/* ---- setting ------------------------------------------------------------------------- */

/* false: the error was replied. */
static bool set_fields(struct call *c, int64_t *created)
{
    struct hash_target t;

    *created = 0;
    if (c->argc % 2 != 0) {
        cmd_reply_bad_arity(c);
        return false;
    }
    if (!hash_find_or_make(c, &t))
        return false;
    for (int i = 2; i < c->argc; i += 2)
        *created += hash_set(t.o, c->argv[i], c->argv[i + 1], &t.limits);
    changed(c, &t, "hset");
    return true;
}

void cmd_hset(struct call *c)
{
    int64_t created;

    if (set_fields(c, &created))
        reply_int(&c->r, created);
}

void cmd_hmset(struct call *c)
{
    int64_t created;

    if (set_fields(c, &created))
        reply_simple(&c->r, "OK");
}

void cmd_hsetnx(struct call *c)
{
    struct hash_target t;

    if (!hash_find_or_make(c, &t))
        return;
    bool set = !hash_has(t.o, c->argv[2]);
    if (set) {
        hash_set(t.o, c->argv[2], c->argv[3], &t.limits);
        changed(c, &t, "hset");
    }
    reply_int(&c->r, set);
}

static void store_number(struct call *c, struct hash_target *t, struct slice text, const char *event)
{
    hash_update(t->o, c->argv[2], text, &t->limits);
    changed(c, t, event);
}

/* The value of the field that is added to, "0" where there is none. */
static struct slice old_number(const struct call *c, const struct hash_target *t, char scratch[NUM_I64_MAX])
{
    struct slice value;

    return hash_get(t->o, c->argv[2], scratch, &value) ? value : SLICE_LIT("0");
}

/* With an error: what was made for nothing goes. */
static void target_drop(struct call *c, struct hash_target *t, const char *err)
{
    if (t->is_new)
        object_free(t->o);
    call_error(c, err);
}

void cmd_hincrby(struct call *c)
{
    char scratch[NUM_I64_MAX];
    struct hash_target t;
    int64_t by, value;

    if (!call_arg_i64(c, 3, &by, NULL) || !hash_find_or_make(c, &t))
        return;
    if (!num_parse_i64(old_number(c, &t, scratch), &value)) {
        target_drop(c, &t, "ERR hash value is not an integer");
    } else if (__builtin_add_overflow(value, by, &value)) {
        target_drop(c, &t, "ERR increment or decrement would overflow");
    } else {
        store_number(c, &t, SLICE(scratch, num_format_i64(scratch, value)), "hincrby");
        reply_int(&c->r, value);
    }
}

void cmd_hincrbyfloat(struct call *c)
{
    char scratch[NUM_I64_MAX], text[NUM_F64_MAX];
    struct hash_target t;
    long double by, value;

    if (!num_parse_f64(c->argv[3], &by)) {
        call_error(c, "ERR value is not a valid float");
        return;
    }
    if (isinf(by)) {
        call_error(c, "ERR value is NaN or Infinity");
        return;
    }
    if (!hash_find_or_make(c, &t))
        return;
    bool number = num_parse_f64(old_number(c, &t, scratch), &value);
    value += by;
    if (!number) {
        target_drop(c, &t, "ERR hash value is not a float");
    } else if (isnan(value) || isinf(value)) {
        target_drop(c, &t, "ERR increment would produce NaN or Infinity");
    } else {
        struct slice sum = SLICE(text, num_format_f64_human(text, value));
        store_number(c, &t, sum, "hincrbyfloat");
        reply_bulk(&c->r, sum);
    }
}

void cmd_hdel(struct call *c)
{
    struct hash_target t;
    int64_t deleted = 0;

    if (!hash_find(c, &t))
        return;
    for (int i = 2; t.o && i < c->argc; i++)
        deleted += hash_delete(t.o, c->argv[i]);
    if (deleted)
        changed(c, &t, "hdel");
    reply_int(&c->r, deleted);
}

/* ---- reading ------------------------------------------------------------------------- */

static void reply_value(struct call *c, const struct object *o, struct slice field)
{
    char scratch[NUM_I64_MAX];
    struct slice value;

    if (o && hash_get(o, field, scratch, &value))
        reply_bulk(&c->r, value);
    else
        reply_null(&c->r);
}

void cmd_hget(struct call *c)
{
    struct object *o;

    if (hash_read(c, &o))
        reply_value(c, o, c->argv[2]);
}

void cmd_hmget(struct call *c)
{
    struct object *o;

    if (!hash_read(c, &o))
        return;
    reply_array(&c->r, c->argc - 2);
    for (int i = 2; i < c->argc; i++)
        reply_value(c, o, c->argv[i]);
}

void cmd_hlen(struct call *c)
{
    struct object *o;

    if (hash_read(c, &o))
        reply_int(&c->r, o ? (int64_t)object_len(o) : 0);
}

void cmd_hstrlen(struct call *c)
{
    char scratch[NUM_I64_MAX];
    struct slice value;
    struct object *o;

    if (hash_read(c, &o))
        reply_int(&c->r, o && hash_get(o, c->argv[2], scratch, &value) ? (int64_t)value.len : 0);
}

void cmd_hexists(struct call *c)
{
    struct object *o;

    if (hash_read(c, &o))
        reply_int(&c->r, o && hash_has(o, c->argv[2]));
}

enum { FIELDS = 1, VALUES = 2 };

static void reply_all(struct call *c, unsigned what)
{
    struct slice field, value;
    struct object *o;

    if (!hash_read(c, &o))
        return;
    int64_t n = o ? (int64_t)object_len(o) : 0;
    if (what == (FIELDS | VALUES))
        reply_map(&c->r, n);
    else
        reply_array(&c->r, n);
    if (!o)
        return;
    struct hash_iter it = hash_iter(o);
    while (hash_next(&it, &field, &value)) {
        if (what & FIELDS)
            reply_bulk(&c->r, field);
        if (what & VALUES)
            reply_bulk(&c->r, value);
    }
}

void cmd_hgetall(struct call *c)
{
    reply_all(c, FIELDS | VALUES);
}

void cmd_hkeys(struct call *c)
{
    reply_all(c, FIELDS);
}

void cmd_hvals(struct call *c)
{
    reply_all(c, VALUES);
}

/* ---- HSCAN --------------------------------------------------------------------------- */

struct scan {
    const struct scan_args *a;
    struct chain items;
    int64_t n;     /* items */
    uint64_t seen; /* fields, those that do not match included */
};

static void scan_field(void *arg, struct slice field, struct slice value)
{
    struct scan *s = arg;
    struct reply r = {&s->items, 2}; /* a bulk string is the same in both protocols */

    s->seen++;
    if (s->a->match && !glob_match(s->a->pattern, field, false))
        return;
    reply_bulk(&r, field);
    reply_bulk(&r, value);
    s->n += 2;
}

void cmd_hscan(struct call *c)
{
    struct scan_args a;
    struct scan s = {.a = &a};
    struct object *o;
    uint64_t steps = 0;

    if (!cmd_scan_cursor(c, 2, &a) || !hash_read(c, &o) || (o && !cmd_scan_options(c, 3, false, &a)))
        return;
    chain_init(&s.items);
    if (!o)
        a.cursor = 0;
    else
        do
            a.cursor = hash_scan(o, a.cursor, scan_field, &s);
        while (a.cursor != 0 && s.seen < a.count && ++steps / 10 < a.count);
    cmd_scan_reply(c, a.cursor, s.n, &s.items);
    chain_deinit(&s.items);
}

/* ---- HRANDFIELD ---------------------------------------------------------------------- */

struct drawn {
    struct reply r;
    bool values;
    uint64_t n;
};

static void draw_field(void *arg, struct slice field, struct slice value)
{
    struct drawn *d = arg;

    if (d->values && d->r.proto > 2)
        reply_array(&d->r, 2);
    reply_bulk(&d->r, field);
    if (d->values)
        reply_bulk(&d->r, value);
    d->n++;
}

static bool draw_again(void *arg, struct slice field, struct slice value)
{
    struct drawn *d = arg;

    draw_field(d, field, value);
    return d->r.out->bytes <= CMD_DRAW_BYTES;
}

static void reply_drawn_head(struct call *c, uint64_t n, bool values)
{
    reply_array(&c->r, (int64_t)(values && c->r.proto == 2 ? 2 * n : n));
}

/* Fields that may be the same: as many as the client says, so they are limited. */
static void reply_repeated(struct call *c, const struct object *o, uint64_t n, bool values)
{
    struct chain items;

    chain_init(&items);
    struct drawn d = {.r = {&items, c->r.proto}, .values = values};
    if (n <= CMD_DRAW_MAX)
        hash_draw(o, (size_t)n, &c->w->rng, draw_again, &d);
    if (d.n < n) {
        call_error(c, "ERR value is out of range");
    } else {
        reply_drawn_head(c, n, values);
        chain_move(c->r.out, &items);
    }
    chain_deinit(&items);
}

static void random_fields(struct call *c, int64_t count, bool values)
{
    struct object *o;

    if (!hash_read(c, &o))
        return;
    uint64_t n = count < 0 ? (uint64_t)-count : (uint64_t)count;
    if (!o) {
        reply_array(&c->r, 0);
    } else if (count < 0) {
        reply_repeated(c, o, n, values);
    } else {
        struct drawn d = {.r = c->r, .values = values};
        if (n > object_len(o))
            n = object_len(o);
        reply_drawn_head(c, n, values);
        hash_sample(o, (size_t)n, &c->w->rng, draw_field, &d);
    }
}

static void random_field(struct call *c)
{
    struct object *o;

    if (!hash_read(c, &o))
        return;
    struct drawn d = {.r = c->r};
    if (o)
        hash_sample(o, 1, &c->w->rng, draw_field, &d);
    else
        reply_null(&c->r);
}

void cmd_hrandfield(struct call *c)
{
    bool values = c->argc == 4;
    int64_t count;

    if (c->argc == 2) {
        random_field(c);
        return;
    }
    if (!cmd_arg_between(c, 2, -INT64_MAX, INT64_MAX, &count, NULL))
        return;
    if (c->argc > 4 || (values && !call_arg_is(c, 3, "withvalues")))
        call_syntax(c);
    else if (values && (count < -(INT64_MAX / 2) || count > INT64_MAX / 2))
        call_error(c, "ERR value is out of range");
    else
        random_fields(c, count, values);
}
