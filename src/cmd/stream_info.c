/* XINFO. */
#include "cmd/cmd_priv.h"

/* NULL: the error was replied. */
static struct stream *info_stream(struct call *c)
{
    struct object *o = ks_read(c, 0);

    if (!o)
        call_error(c, "ERR no such key");
    else if (ks_is(c, o, OBJ_STREAM))
        return stream_of(o);
    return NULL;
}

static void put_int(struct reply *r, const char *name, int64_t v)
{
    reply_bulk_str(r, name);
    reply_int(r, v);
}

static void put_id(struct reply *r, const char *name, struct stream_id id)
{
    reply_bulk_str(r, name);
    stream_reply_id(r, id);
}

static void put_name(struct reply *r, const char *name, size_t len)
{
    reply_bulk_str(r, "name");
    reply_bulk(r, SLICE(name, len));
}

static void put_progress(struct reply *r, const struct stream *s, const struct stream_group *g)
{
    int64_t lag;

    put_id(r, "last-delivered-id", g->last_id);
    reply_bulk_str(r, "entries-read");
    if (g->entries_read != STREAM_NOT_KNOWN)
        reply_int(r, g->entries_read);
    else
        reply_null(r);
    reply_bulk_str(r, "lag");
    if (stream_group_lag(s, g, &lag))
        reply_int(r, lag);
    else
        reply_null(r);
}

/* ---- XINFO STREAM ---- */

/* At most count entries of either tree; 0: all. Those of a consumer do not tell whose they are. */
static void put_pending(struct reply *r, const struct stream_pel *pel, int tree, uint64_t count)
{
    struct stream_id from = STREAM_ID_MIN;
    struct stream_items items;
    struct stream_nack *n;
    bool more = true;

    put_int(r, "pel-count", (int64_t)pel->count);
    reply_bulk_str(r, "pending");
    stream_items_start(&items, r);
    while (more && (count == 0 || (uint64_t)items.n < count) && (n = stream_pel_from(pel, tree, from))) {
        reply_array(&items.r, tree == STREAM_OF_GROUP ? 4 : 3);
        stream_reply_id(&items.r, n->id);
        if (tree == STREAM_OF_GROUP)
            reply_bulk(&items.r, SLICE(n->consumer->name, n->consumer->len));
        reply_int(&items.r, n->delivered_ms);
        reply_int(&items.r, (int64_t)n->deliveries);
        items.n++;
        from = n->id;
        more = stream_id_next(&from);
    }
    stream_items_end(&items, r);
}

static void put_group(struct reply *r, const struct stream *s, const struct stream_group *g, uint64_t count)
{
    reply_map(r, 7);
    put_name(r, g->name, g->len);
    put_progress(r, s, g);
    put_pending(r, &g->pel, STREAM_OF_GROUP, count);
    reply_bulk_str(r, "consumers");
    reply_array(r, (int64_t)g->nconsumers);
    for (size_t i = 0; i < g->nconsumers; i++) {
        const struct stream_consumer *consumer = g->consumer[i];
        reply_map(r, 4);
        put_name(r, consumer->name, consumer->len);
        put_int(r, "seen-time", consumer->seen_ms);
        put_pending(r, &consumer->pel, STREAM_OF_CONSUMER, count);
    }
}

static void put_edge(struct reply *r, const struct stream *s, const char *name, bool last)
{
    struct stream_walk w;

    reply_bulk_str(r, name);
    stream_walk_start(&w, s, STREAM_ID_MIN, STREAM_ID_MAX, last);
    if (stream_walk_next(&w))
        stream_reply_entry(r, &w);
    else
        reply_null(r);
}

static bool stream_options(struct call *c, bool *full, uint64_t *count)
{
    int64_t v;

    *full = c->argc > 3;
    *count = 10;
    if (*full && ((c->argc != 4 && c->argc != 6) || !call_arg_is(c, 3, "full") ||
                  (c->argc == 6 && !call_arg_is(c, 4, "count")))) {
        cmd_reply_bad_subcommand(c);
        return false;
    }
    if (c->argc == 6) {
        if (!call_arg_i64(c, 5, &v, NULL))
            return false;
        *count = v < 0 ? 10 : (uint64_t)v;
    }
    return true;
}

void cmd_xinfo_stream(struct call *c)
{
    struct stream *s = info_stream(c);
    struct reply *r = &c->r;
    uint64_t count;
    bool full;

    if (!s || !stream_options(c, &full, &count))
        return;
    reply_map(r, full ? 9 : 10);
    put_int(r, "length", (int64_t)s->length);
    put_int(r, "radix-tree-keys", (int64_t)s->nnodes);
    put_int(r, "radix-tree-nodes", (int64_t)stream_radix_nodes(s));
    put_id(r, "last-generated-id", s->last_id);
    put_id(r, "max-deleted-entry-id", s->max_deleted);
    put_int(r, "entries-added", (int64_t)s->entries_added);
    put_id(r, "recorded-first-entry-id", s->first_id);
    if (!full) {
        put_int(r, "groups", (int64_t)s->ngroups);
        put_edge(r, s, "first-entry", false);
        put_edge(r, s, "last-entry", true);
        return;
    }
    reply_bulk_str(r, "entries");
    stream_reply_range(r, s, STREAM_ID_MIN, STREAM_ID_MAX, count, false);
    reply_bulk_str(r, "groups");
    reply_array(r, (int64_t)s->ngroups);
    for (size_t i = 0; i < s->ngroups; i++)
        put_group(r, s, s->group[i], count);
}

/* ---- the others ---- */

void cmd_xinfo_groups(struct call *c)
{
    struct stream *s = info_stream(c);

    if (!s)
        return;
    reply_array(&c->r, (int64_t)s->ngroups);
    for (size_t i = 0; i < s->ngroups; i++) {
        const struct stream_group *g = s->group[i];
        reply_map(&c->r, 6);
        put_name(&c->r, g->name, g->len);
        put_int(&c->r, "consumers", (int64_t)g->nconsumers);
        put_int(&c->r, "pending", (int64_t)g->pel.count);
        put_progress(&c->r, s, g);
    }
}

void cmd_xinfo_consumers(struct call *c)
{
    struct stream *s = info_stream(c);
    struct stream_group *g;

    if (!s)
        return;
    if (!(g = stream_group_find(s, c->argv[3]))) {
        call_errorf(c, "NOGROUP No such consumer group '%.*s' for key name '%.*s'", SLICE_FMT(c->argv[3]),
                    SLICE_FMT(c->argv[2]));
        return;
    }
    reply_array(&c->r, (int64_t)g->nconsumers);
    for (size_t i = 0; i < g->nconsumers; i++) {
        const struct stream_consumer *consumer = g->consumer[i];
        int64_t idle = c->now_ms - consumer->seen_ms;
        reply_map(&c->r, 3);
        put_name(&c->r, consumer->name, consumer->len);
        put_int(&c->r, "pending", (int64_t)consumer->pel.count);
        put_int(&c->r, "idle", idle < 0 ? 0 : idle);
    }
}

void cmd_xinfo_help(struct call *c)
{
    cmd_container_help(c);
}
