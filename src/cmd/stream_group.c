/* Consumer groups: XGROUP, XACK, XPENDING, XCLAIM, XAUTOCLAIM. Of these changes WATCH knows nothing, as in Redis. */
#include "cmd/cmd_priv.h"

/* ---- XGROUP ---- */

static const char no_such_key[] =
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want "
    "to use the MKSTREAM option to create an empty stream automatically.";

static bool group_options(struct call *c, bool create, bool *mkstream, int64_t *entries_read)
{
    *mkstream = false;
    *entries_read = STREAM_NOT_KNOWN;
    for (int i = 5; i < c->argc; i++) {
        if (create && call_arg_is(c, i, "mkstream")) {
            *mkstream = true;
        } else if (i + 1 < c->argc && call_arg_is(c, i, "entriesread")) {
            if (!call_arg_i64(c, ++i, entries_read, NULL))
                return false;
            if (*entries_read < 0 && *entries_read != STREAM_NOT_KNOWN) {
                call_error(c, "ERR value for ENTRIESREAD must be positive or -1");
                return false;
            }
        } else {
            cmd_reply_bad_subcommand(c);
            return false;
        }
    }
    return true;
}

/* The key's stream, where a subcommand has to have one. NULL: the error was replied. */
static struct stream *group_stream(struct call *c)
{
    struct object *o = ks_peek(c, 0);

    if (!ks_is(c, o, OBJ_STREAM))
        return NULL;
    if (!o)
        call_error(c, no_such_key);
    return o ? stream_of(o) : NULL;
}

static struct stream_group *group_named(struct call *c, struct stream *s)
{
    struct stream_group *g = stream_group_find(s, c->argv[3]);

    if (!g)
        call_errorf(c, "NOGROUP No such consumer group '%.*s' for key name '%.*s'", SLICE_FMT(c->argv[3]),
                    SLICE_FMT(c->argv[2]));
    return g;
}

void cmd_xgroup_create(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    struct stream_id id = STREAM_ID_MIN;
    int64_t entries_read;
    bool mkstream;

    if (!group_options(c, true, &mkstream, &entries_read) || !ks_is(c, o, OBJ_STREAM))
        return;
    if (!o && !mkstream) {
        call_error(c, no_such_key);
        return;
    }
    if (c->argc > 8) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (!call_arg_is(c, 4, "$")) {
        if (!stream_arg_id(c, 4, &id))
            return;
    } else if (o) {
        id = stream_of(o)->last_id;
    }
    struct stream *s = o ? stream_of(o) : stream_create();
    if (!stream_group_create(s, c->argv[3], id, entries_read)) {
        call_error(c, "BUSYGROUP Consumer Group name already exists");
        return;
    }
    if (o)
        ks_changed_quietly(c, 0);
    else
        ks_put(c, 0, object_new_ptr(&c->keys[0].key, OBJ_STREAM, ENC_BIG, s, 0, 0));
    ks_notify(c, 0, NOTIFY_STREAM, "xgroup-create");
    reply_simple(&c->r, "OK");
}

void cmd_xgroup_setid(struct call *c)
{
    struct stream_id id;
    struct stream_group *g;
    struct stream *s;
    int64_t entries_read;
    bool mkstream;

    if (!group_options(c, false, &mkstream, &entries_read) || !(s = group_stream(c)) || !(g = group_named(c, s)))
        return;
    if (c->argc != 5 && c->argc != 7) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (call_arg_is(c, 4, "$"))
        id = s->last_id;
    else if (!stream_arg_loose_id(c, 4, &id))
        return;
    g->last_id = id;
    g->entries_read = entries_read;
    ks_notify(c, 0, NOTIFY_STREAM, "xgroup-setid");
    ks_changed_quietly(c, 0);
    reply_simple(&c->r, "OK");
}

void cmd_xgroup_destroy(struct call *c)
{
    struct stream *s = group_stream(c);

    if (!s)
        return;
    bool was = stream_group_destroy(s, c->argv[3]);
    if (was) {
        ks_notify(c, 0, NOTIFY_STREAM, "xgroup-destroy");
        ks_changed_quietly(c, 0);
        block_signal(c, &c->keys[0]); /* who waits for it has to be told */
    }
    reply_int(&c->r, was);
}

void cmd_xgroup_createconsumer(struct call *c)
{
    struct stream *s = group_stream(c);
    struct stream_group *g = s ? group_named(c, s) : NULL;

    if (!g)
        return;
    bool created = stream_consumer_create(s, g, c->argv[4], c->now_ms) != NULL;
    if (created) {
        ks_notify(c, 0, NOTIFY_STREAM, "xgroup-createconsumer");
        ks_changed_quietly(c, 0);
    }
    reply_int(&c->r, created);
}

void cmd_xgroup_delconsumer(struct call *c)
{
    struct stream *s = group_stream(c);
    struct stream_group *g = s ? group_named(c, s) : NULL;

    if (!g)
        return;
    struct stream_consumer *consumer = stream_consumer_find(g, c->argv[4]);
    size_t pending = consumer ? consumer->pel.count : 0;
    if (consumer) {
        stream_consumer_destroy(s, g, consumer);
        ks_notify(c, 0, NOTIFY_STREAM, "xgroup-delconsumer");
        ks_changed_quietly(c, 0);
    }
    reply_int(&c->r, (int64_t)pending);
}

void cmd_xgroup_help(struct call *c)
{
    cmd_container_help(c);
}

/* ---- XACK ---- */

void cmd_xack(struct call *c)
{
    struct object *o = ks_read(c, 0);
    struct stream_id id;
    int64_t acknowledged = 0;

    if (!ks_is(c, o, OBJ_STREAM))
        return;
    struct stream_group *g = o ? stream_group_find(stream_of(o), c->argv[2]) : NULL;
    for (int i = 3; g && i < c->argc; i++)
        if (!stream_arg_id(c, i, &id))
            return;
    for (int i = 3; g && i < c->argc; i++) {
        stream_parse_id(c->argv[i], 0, true, &id, NULL);
        struct stream_nack *n = stream_pel_find(g, id);
        if (n) {
            stream_pel_remove(stream_of(o), g, n);
            acknowledged++;
        }
    }
    if (acknowledged)
        ks_changed_quietly(c, 0);
    reply_int(&c->r, acknowledged);
}

/* ---- XPENDING ---- */

static void reply_pending_summary(struct call *c, const struct stream_group *g)
{
    struct stream_items items;

    reply_array(&c->r, 4);
    reply_int(&c->r, (int64_t)g->pel.count);
    if (g->pel.count == 0) {
        reply_null(&c->r);
        reply_null(&c->r);
        reply_null_array(&c->r);
        return;
    }
    stream_reply_id(&c->r, stream_pel_from(&g->pel, STREAM_OF_GROUP, STREAM_ID_MIN)->id);
    stream_reply_id(&c->r, stream_pel_last(&g->pel, STREAM_OF_GROUP)->id);
    stream_items_start(&items, &c->r);
    for (size_t i = 0; i < g->nconsumers; i++) {
        char text[NUM_I64_MAX];
        const struct stream_consumer *consumer = g->consumer[i];
        if (consumer->pel.count == 0)
            continue;
        reply_array(&items.r, 2);
        reply_bulk(&items.r, SLICE(consumer->name, consumer->len));
        reply_bulk(&items.r, SLICE(text, num_format_u64(text, consumer->pel.count)));
        items.n++;
    }
    stream_items_end(&items, &c->r);
}

struct pending_args {
    struct stream_id from, to;
    int64_t idle_ms, count;
    int consumer; /* its argument; 0: none */
};

static bool pending_options(struct call *c, struct pending_args *a)
{
    int at = 3;

    *a = (struct pending_args){0};
    if (call_arg_is(c, 3, "idle")) {
        if (!call_arg_i64(c, 4, &a->idle_ms, NULL))
            return false;
        if (c->argc < 8) {
            call_syntax(c);
            return false;
        }
        at = 5;
    }
    if (!call_arg_i64(c, at + 2, &a->count, NULL) || !stream_arg_interval(c, at, at + 1, &a->from, &a->to))
        return false;
    a->consumer = at + 3 < c->argc ? at + 3 : 0;
    return true;
}

static int64_t idle_of(const struct call *c, int64_t since_ms)
{
    int64_t idle = c->now_ms - since_ms;

    return idle < 0 ? 0 : idle;
}

static void reply_pending(struct call *c, const struct stream_group *g, const struct pending_args *a)
{
    const struct stream_consumer *only = a->consumer ? stream_consumer_find(g, c->argv[a->consumer]) : NULL;
    const struct stream_pel *pel = only ? &only->pel : &g->pel;
    int tree = only ? STREAM_OF_CONSUMER : STREAM_OF_GROUP;
    struct stream_id from = a->from;
    struct stream_items items;
    struct stream_nack *n;
    bool more = !a->consumer || only;

    stream_items_start(&items, &c->r);
    while (more && items.n < a->count && (n = stream_pel_from(pel, tree, from)) && stream_id_cmp(n->id, a->to) <= 0) {
        from = n->id;
        more = stream_id_next(&from);
        if (a->idle_ms && c->now_ms - n->delivered_ms < a->idle_ms)
            continue;
        reply_array(&items.r, 4);
        stream_reply_id(&items.r, n->id);
        reply_bulk(&items.r, SLICE(n->consumer->name, n->consumer->len));
        reply_int(&items.r, idle_of(c, n->delivered_ms));
        reply_int(&items.r, (int64_t)n->deliveries);
        items.n++;
    }
    stream_items_end(&items, &c->r);
}

void cmd_xpending(struct call *c)
{
    struct pending_args a;

    if (c->argc != 3 && (c->argc < 6 || c->argc > 9)) {
        call_syntax(c);
        return;
    }
    if (c->argc != 3 && !pending_options(c, &a))
        return;
    struct stream_group *g = stream_arg_group(c, ks_read(c, 0), 2);
    if (g && c->argc == 3)
        reply_pending_summary(c, g);
    else if (g)
        reply_pending(c, g, &a);
}

/* ---- XCLAIM ---- */

struct claim_args {
    int64_t idle_ms, delivered_ms, retries; /* retries -1: not given */
    bool force, justid;
    struct stream_id last_id;
    int end; /* of the IDs */
};

static bool claim_options(struct call *c, struct claim_args *a)
{
    int64_t since = -1;

    for (int i = a->end; i < c->argc; i++) {
        bool more = i + 1 < c->argc;
        if (call_arg_is(c, i, "force")) {
            a->force = true;
        } else if (call_arg_is(c, i, "justid")) {
            a->justid = true;
        } else if (more && call_arg_is(c, i, "idle")) {
            if (!call_arg_i64(c, ++i, &since, "ERR Invalid IDLE option argument for XCLAIM"))
                return false;
            since = (int64_t)((uint64_t)c->now_ms - (uint64_t)since);
        } else if (more && call_arg_is(c, i, "time")) {
            if (!call_arg_i64(c, ++i, &since, "ERR Invalid TIME option argument for XCLAIM"))
                return false;
        } else if (more && call_arg_is(c, i, "retrycount")) {
            if (!call_arg_i64(c, ++i, &a->retries, "ERR Invalid RETRYCOUNT option argument for XCLAIM"))
                return false;
        } else if (more && call_arg_is(c, i, "lastid")) {
            if (!stream_arg_id(c, ++i, &a->last_id))
                return false;
        } else {
            call_errorf(c, "ERR Unrecognized XCLAIM option '%.*s'", SLICE_FMT(c->argv[i]));
            return false;
        }
    }
    a->delivered_ms = since < 0 || since > c->now_ms ? c->now_ms : since; /* nonsense counts as now */
    return true;
}

static bool claim_parse(struct call *c, struct claim_args *a)
{
    struct stream_id id;

    *a = (struct claim_args){.retries = -1, .end = 5};
    if (!call_arg_i64(c, 4, &a->idle_ms, "ERR Invalid min-idle-time argument for XCLAIM"))
        return false;
    if (a->idle_ms < 0)
        a->idle_ms = 0;
    while (a->end < c->argc && stream_parse_id(c->argv[a->end], 0, true, &id, NULL))
        a->end++;
    return claim_options(c, a);
}

/* Who has an entry given to it: it is made for the first one, not before. */
static struct stream_consumer *claimer(struct call *c, struct stream_group *g)
{
    return stream_consumer_get(c, 0, g, c->argv[3]);
}

/* true: the entry is the consumer's now. */
static bool claim_one(struct call *c, struct stream *s, struct stream_group *g, const struct claim_args *a,
                      struct stream_id id)
{
    struct stream_nack *n = stream_pel_find(g, id);

    if (!stream_has(s, id)) { /* it is pending no longer */
        if (n)
            stream_pel_remove(s, g, n);
        return false;
    }
    if (!n && !a->force)
        return false;
    if (n && a->idle_ms && c->now_ms - n->delivered_ms < a->idle_ms)
        return false;
    if (!n)
        n = stream_pel_add(s, g, NULL, id, c->now_ms);
    n->delivered_ms = a->delivered_ms;
    if (a->retries >= 0)
        n->deliveries = (uint64_t)a->retries;
    else if (!a->justid)
        n->deliveries++;
    stream_pel_give(n, claimer(c, g));
    return true;
}

static void reply_claimed(struct reply *r, const struct stream *s, struct stream_id id, bool justid)
{
    if (justid)
        stream_reply_id(r, id);
    else
        stream_reply_one(r, s, id);
}

void cmd_xclaim(struct call *c)
{
    struct object *o = ks_read(c, 0);
    struct stream_group *g = stream_arg_group(c, o, 2);
    struct stream_items items;
    struct claim_args a;
    struct stream_id id;

    if (!g || !claim_parse(c, &a))
        return;
    struct stream *s = stream_of(o);
    if (stream_id_cmp(a.last_id, g->last_id) > 0)
        g->last_id = a.last_id;
    stream_items_start(&items, &c->r);
    for (int i = 5; i < a.end; i++) {
        stream_parse_id(c->argv[i], 0, true, &id, NULL);
        if (!claim_one(c, s, g, &a, id))
            continue;
        reply_claimed(&items.r, s, id, a.justid);
        items.n++;
    }
    stream_items_end(&items, &c->r);
    ks_changed_quietly(c, 0);
}

/* ---- XAUTOCLAIM ---- */

#define AUTOCLAIM_COUNT 100
#define AUTOCLAIM_LOOKS 10         /* entries looked at for each that may be claimed */
#define AUTOCLAIM_MOST (1LL << 42) /* beyond it Redis does not get the memory for its answer */

struct autoclaim_args {
    int64_t idle_ms, count;
    struct stream_id from;
    bool justid;
};

static bool autoclaim_parse(struct call *c, struct autoclaim_args *a)
{
    *a = (struct autoclaim_args){.count = AUTOCLAIM_COUNT};
    if (!call_arg_i64(c, 4, &a->idle_ms, "ERR Invalid min-idle-time argument for XAUTOCLAIM"))
        return false;
    if (!stream_arg_start(c, 5, &a->from))
        return false;
    for (int i = 6; i < c->argc; i++) {
        if (i + 1 < c->argc && call_arg_is(c, i, "count")) {
            if (!cmd_arg_between(c, ++i, 1, INT64_MAX / (int64_t)sizeof(struct stream_id), &a->count,
                                 "ERR COUNT must be > 0"))
                return false;
        } else if (call_arg_is(c, i, "justid")) {
            a->justid = true;
        } else {
            call_syntax(c);
            return false;
        }
    }
    return true;
}

static void autoclaim(struct call *c, struct stream *s, struct stream_group *g, const struct autoclaim_args *a)
{
    struct stream_items claimed, gone;
    struct stream_id next = a->from;
    struct stream_nack *n = NULL;
    int64_t looks = a->count * AUTOCLAIM_LOOKS;
    bool more = true;

    stream_items_start(&claimed, &c->r);
    stream_items_start(&gone, &c->r);
    while (looks-- > 0 && claimed.n + gone.n < a->count && more &&
           (n = stream_pel_from(&g->pel, STREAM_OF_GROUP, next)) != NULL) {
        struct stream_id id = next = n->id;
        more = stream_id_next(&next);
        if (!stream_has(s, id)) {
            stream_pel_remove(s, g, n);
            stream_reply_id(&gone.r, id);
            gone.n++;
            continue;
        }
        if (a->idle_ms > 0 && c->now_ms - n->delivered_ms < a->idle_ms)
            continue;
        n->delivered_ms = c->now_ms;
        n->deliveries += !a->justid;
        stream_pel_give(n, claimer(c, g));
        reply_claimed(&claimed.r, s, id, a->justid);
        claimed.n++;
    }
    n = more ? stream_pel_from(&g->pel, STREAM_OF_GROUP, next) : NULL;
    reply_array(&c->r, 3);
    stream_reply_id(&c->r, n ? n->id : STREAM_ID_MIN);
    stream_items_end(&claimed, &c->r);
    stream_items_end(&gone, &c->r);
}

void cmd_xautoclaim(struct call *c)
{
    struct object *o = ks_read(c, 0);
    struct autoclaim_args a;
    struct stream_group *g;

    if (!autoclaim_parse(c, &a) || !(g = stream_arg_group(c, o, 2)))
        return;
    if (a.count > AUTOCLAIM_MOST) {
        call_error(c, "ERR Insufficient memory, failed allocating transient memory, COUNT too high.");
        return;
    }
    autoclaim(c, stream_of(o), g, &a);
    ks_changed_quietly(c, 0);
}
