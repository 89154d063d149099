/* Commands on streams as such: adding, removing, ranges. What has to do with consumer groups is in stream_group.c,
 * XREAD and XREADGROUP in stream_read.c, XINFO in stream_info.c. */
#include "cmd/cmd_priv.h"

/* ---- XADD and XTRIM ---- */

struct add_args {
    bool trims, nomkstream, has_id, auto_seq;
    struct stream_id id;
    struct stream_trim trim;
};

#define LIMIT_DEFAULT 10000
#define LIMIT_MOST 1000000

/* How much an approximate trim does at once when nothing else was said: a hundred nodes. */
static int64_t default_limit(struct call *c)
{
    size_t entries = ks_limits(c).stream_entries;

    return entries == 0 ? LIMIT_DEFAULT : entries > LIMIT_MOST / 100 ? LIMIT_MOST : (int64_t)(100 * entries);
}

/* MAXLEN and MINID at argument *i, with their mark and threshold. */
static bool parse_threshold(struct call *c, int *i, struct add_args *a)
{
    int64_t maxlen;

    if (a->trims) {
        call_error(c, "ERR syntax error, MAXLEN and MINID options at the same time are not compatible");
        return false;
    }
    a->trims = true;
    a->trim.by_id = call_arg_is(c, *i, "minid");
    ++*i;
    if (*i + 1 < c->argc && (call_arg_is(c, *i, "~") || call_arg_is(c, *i, "=")))
        a->trim.approx = call_arg_is(c, (*i)++, "~");
    if (a->trim.by_id)
        return stream_arg_id(c, *i, &a->trim.minid);
    if (!call_arg_i64(c, *i, &maxlen, NULL))
        return false;
    if (maxlen < 0) {
        call_error(c, "ERR The MAXLEN argument must be >= 0.");
        return false;
    }
    a->trim.maxlen = (uint64_t)maxlen;
    return true;
}

static bool check_limit(struct call *c, bool add, bool given, struct add_args *a)
{
    const char *error = NULL;

    if (a->trim.limit && !a->trims)
        error = "ERR syntax error, LIMIT cannot be used without specifying a trimming strategy";
    else if (!add && !a->trims)
        error = "ERR syntax error, XTRIM must be called with a trimming strategy";
    else if (given && !a->trim.approx)
        error = "ERR syntax error, LIMIT cannot be used without the special ~ option";
    if (error)
        call_error(c, error);
    else if (!given && a->trim.approx)
        a->trim.limit = default_limit(c);
    return error == NULL;
}

/* Returns where the ID is (argc for XTRIM), or -1: the error was replied. */
static int parse_options(struct call *c, bool add, struct add_args *a)
{
    bool limit_given = false;
    int i = 2;

    *a = (struct add_args){0};
    for (; i < c->argc; i++) {
        bool more = i + 1 < c->argc;
        if (add && call_arg_is(c, i, "*"))
            break;
        if (more && (call_arg_is(c, i, "maxlen") || call_arg_is(c, i, "minid"))) {
            if (!parse_threshold(c, &i, a))
                return -1;
        } else if (more && call_arg_is(c, i, "limit")) {
            if (!call_arg_i64(c, ++i, &a->trim.limit, NULL))
                return -1;
            if (a->trim.limit < 0) {
                call_error(c, "ERR The LIMIT argument must be >= 0.");
                return -1;
            }
            limit_given = true;
        } else if (add && call_arg_is(c, i, "nomkstream")) {
            a->nomkstream = true;
        } else if (add) {
            if (!stream_parse_id(c->argv[i], 0, true, &a->id, &a->auto_seq)) {
                call_error(c, "ERR Invalid stream ID specified as stream command argument");
                return -1;
            }
            a->has_id = true;
            break;
        } else {
            call_syntax(c);
            return -1;
        }
    }
    return check_limit(c, add, limit_given, a) ? i : -1;
}

static const char id_too_small[] = "ERR The ID specified in XADD is equal or smaller than the target stream top item";
static const char too_large[] = "ERR Elements are too large to be stored";

/* The ID of the new entry, greater than the last one. NULL, or the error. */
static const char *choose_id(const struct call *c, const struct stream *s, const struct add_args *a,
                             struct stream_id *id)
{
    *id = a->id;
    if (!a->has_id) {
        *id = (struct stream_id){(uint64_t)c->now_ms, 0};
        if (id->ms <= s->last_id.ms) {
            *id = s->last_id;
            stream_id_next(id);
        }
    } else if (a->auto_seq && a->id.ms == s->last_id.ms) {
        if (s->last_id.seq == UINT64_MAX)
            return too_large; /* that is what Redis says to it */
        id->seq = s->last_id.seq + 1;
    }
    return stream_id_cmp(*id, s->last_id) > 0 ? NULL : id_too_small;
}

void cmd_xadd(struct call *c)
{
    struct obj_limits lim = ks_limits(c);
    struct add_args a;
    struct stream_id id;
    int at = parse_options(c, true, &a), nfields = (c->argc - at - 1) / 2;

    if (at < 0)
        return;
    if (nfields < 1 || (c->argc - at - 1) % 2 != 0) {
        cmd_reply_bad_arity(c);
        return;
    }
    if (a.has_id && !a.auto_seq && stream_id_cmp(a.id, STREAM_ID_MIN) == 0) {
        call_error(c, "ERR The ID specified in XADD must be greater than 0-0");
        return;
    }
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_STREAM))
        return;
    if (!o && a.nomkstream) {
        reply_null(&c->r);
        return;
    }
    struct stream *s = o ? stream_of(o) : stream_create();
    const char *error = stream_id_cmp(s->last_id, STREAM_ID_MAX) == 0
                            ? "ERR The stream has exhausted the last possible ID, unable to add more items"
                            : choose_id(c, s, &a, &id);
    if (!error && !stream_append(s, &lim, id, c->argv + at + 1, (size_t)nfields))
        error = too_large;
    if (error) {
        if (!o)
            stream_destroy(s);
        call_error(c, error);
        return;
    }
    int64_t trimmed = a.trims ? stream_trim(s, &a.trim) : 0;
    stream_reply_id(&c->r, id);
    if (!o)
        ks_put(c, 0, object_new_ptr(&c->keys[0].key, OBJ_STREAM, ENC_BIG, s, 0, 0));
    ks_notify(c, 0, NOTIFY_STREAM, "xadd");
    if (trimmed)
        ks_notify(c, 0, NOTIFY_STREAM, "xtrim");
    if (o)
        ks_changed(c, 0);
}

void cmd_xtrim(struct call *c)
{
    struct add_args a;

    if (parse_options(c, false, &a) < 0)
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_STREAM))
        return;
    int64_t deleted = o ? stream_trim(stream_of(o), &a.trim) : 0;
    if (deleted) {
        ks_notify(c, 0, NOTIFY_STREAM, "xtrim");
        ks_changed(c, 0);
    }
    reply_int(&c->r, deleted);
}

/* ---- XDEL ---- */

void cmd_xdel(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    struct stream_id id;
    int64_t deleted = 0;
    bool first = false;

    if (!ks_is(c, o, OBJ_STREAM))
        return;
    for (int i = 2; o && i < c->argc; i++)
        if (!stream_arg_id(c, i, &id))
            return;
    struct stream *s = o ? stream_of(o) : NULL;
    for (int i = 2; o && i < c->argc; i++) {
        stream_parse_id(c->argv[i], 0, true, &id, NULL);
        if (!stream_delete(s, id))
            continue;
        first |= stream_id_cmp(id, s->first_id) == 0;
        if (stream_id_cmp(id, s->max_deleted) > 0)
            s->max_deleted = id;
        deleted++;
    }
    if (deleted) {
        if (first || s->length == 0)
            stream_find_first(s);
        ks_notify(c, 0, NOTIFY_STREAM, "xdel");
        ks_changed(c, 0);
    }
    reply_int(&c->r, deleted);
}

/* ---- XSETID ---- */

struct setid_args {
    struct stream_id id, max_deleted;
    int64_t added; /* -1: not given */
};

static bool setid_options(struct call *c, struct setid_args *a)
{
    *a = (struct setid_args){.added = -1};
    if (!stream_arg_id(c, 2, &a->id))
        return false;
    for (int i = 3; i < c->argc; i += 2) {
        bool more = i + 1 < c->argc;
        if (more && call_arg_is(c, i, "entriesadded")) {
            if (!call_arg_i64(c, i + 1, &a->added, NULL))
                return false;
            if (a->added < 0) {
                call_error(c, "ERR entries_added must be positive");
                return false;
            }
        } else if (more && call_arg_is(c, i, "maxdeletedid")) {
            if (!stream_arg_id(c, i + 1, &a->max_deleted))
                return false;
            if (stream_id_cmp(a->id, a->max_deleted) < 0) {
                call_error(c, "ERR The ID specified in XSETID is smaller than the provided max_deleted_entry_id");
                return false;
            }
        } else {
            call_syntax(c);
            return false;
        }
    }
    return true;
}

void cmd_xsetid(struct call *c)
{
    struct setid_args a;
    const char *error = NULL;

    if (!setid_options(c, &a))
        return;
    struct object *o = ks_peek(c, 0);
    if (!o) {
        call_error(c, "ERR no such key");
        return;
    }
    if (!ks_is(c, o, OBJ_STREAM))
        return;
    struct stream *s = stream_of(o);
    if (s->length && stream_id_cmp(a.id, stream_last_entry(s)) < 0)
        error = "ERR The ID specified in XSETID is smaller than the target stream top item";
    else if (s->length && a.added >= 0 && s->length > (uint64_t)a.added)
        error = "ERR The entries_added specified in XSETID is smaller than the target stream length";
    if (error) {
        call_error(c, error);
        return;
    }
    s->last_id = a.id;
    if (a.added >= 0)
        s->entries_added = (uint64_t)a.added;
    if (stream_id_cmp(a.max_deleted, STREAM_ID_MIN) != 0)
        s->max_deleted = a.max_deleted;
    ks_notify(c, 0, NOTIFY_STREAM, "xsetid");
    ks_changed_quietly(c, 0);
    reply_simple(&c->r, "OK");
}

/* ---- reading ---- */

void cmd_xlen(struct call *c)
{
    struct object *o = ks_read(c, 0);

    if (ks_is(c, o, OBJ_STREAM))
        reply_int(&c->r, o ? (int64_t)stream_of(o)->length : 0);
}

static void range(struct call *c, bool reverse)
{
    struct stream_id from, to;
    int64_t count = -1; /* all */

    if (!stream_arg_interval(c, reverse ? 3 : 2, reverse ? 2 : 3, &from, &to))
        return;
    for (int i = 4; i < c->argc; i += 2) {
        if (!call_arg_is(c, i, "count") || i + 1 == c->argc) {
            call_syntax(c);
            return;
        }
        if (!call_arg_i64(c, i + 1, &count, NULL))
            return;
        if (count < 0)
            count = 0;
    }
    struct object *o = ks_read(c, 0);
    if (!ks_is(c, o, OBJ_STREAM))
        return;
    if (!o)
        reply_array(&c->r, 0);
    else if (count == 0)
        reply_null_array(&c->r);
    else
        stream_reply_range(&c->r, stream_of(o), from, to, count < 0 ? 0 : (uint64_t)count, reverse);
}

void cmd_xrange(struct call *c)
{
    range(c, false);
}

void cmd_xrevrange(struct call *c)
{
    range(c, true);
}
