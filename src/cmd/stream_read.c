/* XREAD and XREADGROUP. */
#include "cmd/cmd_priv.h"

struct read_args {
    bool group_read, noack;
    int64_t block_ms; /* -1: no BLOCK; 0: for ever */
    uint64_t count;   /* 0: all */
    int streams, n;   /* the first key's argument; keys */
    int group;        /* its argument, that of the consumer follows; 0: none */
};

/* Walks over the options up to STREAMS without judging them; -1: there is none. */
static int find_streams(int argc, const struct slice *argv)
{
    for (int i = 1; i < argc; i++) {
        if (slice_is(argv[i], "streams"))
            return i + 1 < argc ? i + 1 : -1;
        if (slice_is(argv[i], "block") || slice_is(argv[i], "count"))
            i++;
        else if (slice_is(argv[i], "group"))
            i += 2;
    }
    return -1;
}

int cmd_xread_keys(int argc, const struct slice *argv, int *pos, int max)
{
    int first = find_streams(argc, argv), n = 0;

    if (first < 0)
        return -1;
    while (n < (argc - first) / 2 && n < max) {
        pos[n] = first + n;
        n++;
    }
    return n;
}

static bool arg_block(struct call *c, int arg, int64_t *ms)
{
    if (c->in_script) {
        call_errorf(c, "ERR %s command is not allowed with BLOCK option from scripts", c->cmd->full);
        return false;
    }
    if (!call_arg_i64(c, arg, ms, "ERR timeout is not an integer or out of range"))
        return false;
    if (*ms < 0)
        call_error(c, "ERR timeout is negative");
    return *ms >= 0;
}

static bool parse_group(struct call *c, int *i, struct read_args *a)
{
    if (!a->group_read) {
        call_error(c, "ERR The GROUP option is only supported by XREADGROUP. You called XREAD instead.");
        return false;
    }
    a->group = *i + 1;
    *i += 2;
    return true;
}

static bool parse_noack(struct call *c, struct read_args *a)
{
    a->noack = true;
    if (!a->group_read)
        call_error(c, "ERR The NOACK option is only supported by XREADGROUP. You called XREAD instead.");
    return a->group_read;
}

static bool parse_read(struct call *c, struct read_args *a)
{
    for (int i = 1; i < c->argc && a->streams == 0; i++) {
        int more = c->argc - i - 1;
        int64_t count;
        if (more && call_arg_is(c, i, "block")) {
            if (!arg_block(c, ++i, &a->block_ms))
                return false;
        } else if (more && call_arg_is(c, i, "count")) {
            if (!call_arg_i64(c, ++i, &count, NULL))
                return false;
            a->count = count < 0 ? 0 : (uint64_t)count;
        } else if (more && call_arg_is(c, i, "streams")) {
            a->streams = i + 1;
            a->n = more / 2;
            if (more % 2 != 0) {
                call_error(c,
                           "ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified.");
                return false;
            }
        } else if (more >= 2 && call_arg_is(c, i, "group")) {
            if (!parse_group(c, &i, a))
                return false;
        } else if (call_arg_is(c, i, "noack")) {
            if (!parse_noack(c, a))
                return false;
        } else {
            call_syntax(c);
            return false;
        }
    }
    if (a->streams == 0) {
        call_syntax(c);
        return false;
    }
    if (a->group_read && a->group == 0) {
        call_error(c, "ERR Missing GROUP option for XREADGROUP");
        return false;
    }
    return true;
}

/* From where on one of the streams is read. */
struct source {
    struct stream_id after;
    struct stream_group *group;
    bool news; /* ">": what the group has not delivered yet */
};

static bool parse_source(struct call *c, const struct read_args *a, int i, struct source *src)
{
    int arg = a->streams + a->n + i;
    struct object *o = ks_read(c, i);

    *src = (struct source){.after = STREAM_ID_MIN};
    if (!ks_is(c, o, OBJ_STREAM))
        return false;
    if (a->group_read) {
        src->group = o ? stream_group_find(stream_of(o), c->argv[a->group]) : NULL;
        if (!src->group) {
            call_errorf(c, "NOGROUP No such key '%.*s' or consumer group '%.*s' in XREADGROUP with GROUP option",
                        SLICE_FMT(c->argv[a->streams + i]), SLICE_FMT(c->argv[a->group]));
            return false;
        }
    }
    if (call_arg_is(c, arg, "$")) {
        if (a->group_read) {
            call_error(c,
                       "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the history of "
                       "this consumer by specifying a proper ID, or use the > ID to get new messages. The $ ID would "
                       "just return an empty result set.");
            return false;
        }
        if (o)
            src->after = stream_of(o)->last_id;
        return true;
    }
    if (call_arg_is(c, arg, ">")) {
        if (!a->group_read)
            call_error(c,
                       "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> <consumer> "
                       "option.");
        src->news = true;
        return a->group_read;
    }
    if (!stream_arg_id(c, arg, &src->after))
        return false;
    src->news = a->group_read && stream_id_cmp(src->after, STREAM_ID_MAX) == 0;
    return true;
}

/* ---- serving ---- */

/* What the consumer was given and did not acknowledge. An entry that is gone since has no fields. */
static void reply_history(struct call *c, struct reply *r, const struct stream *s, struct stream_consumer *consumer,
                          struct stream_id from, uint64_t count)
{
    struct stream_items items;
    struct stream_nack *n;

    stream_items_start(&items, r);
    while ((count == 0 || (uint64_t)items.n < count) &&
           (n = stream_pel_from(&consumer->pel, STREAM_OF_CONSUMER, from)) != NULL) {
        items.n++;
        if (stream_reply_one(&items.r, s, n->id)) {
            n->delivered_ms = c->now_ms;
            n->deliveries++;
        } else {
            reply_array(&items.r, 2);
            stream_reply_id(&items.r, n->id);
            reply_null_array(&items.r);
        }
        from = n->id;
        if (!stream_id_next(&from))
            break;
    }
    stream_items_end(&items, r);
}

/* An entry that is pending with somebody, because XGROUP SETID went back, changes hands. */
static void deliver(struct call *c, struct stream *s, struct stream_group *g, struct stream_consumer *consumer,
                    struct stream_id id)
{
    struct stream_nack *n = stream_pel_find(g, id);

    if (!n) {
        stream_pel_add(s, g, consumer, id, c->now_ms);
        return;
    }
    stream_pel_give(n, consumer);
    n->delivered_ms = c->now_ms;
    n->deliveries = 1;
}

static void reply_news(struct call *c, struct reply *r, struct stream *s, struct stream_group *g,
                       struct stream_consumer *consumer, const struct read_args *a)
{
    struct stream_id from = g->last_id;
    struct stream_items items;
    struct stream_walk w;

    stream_items_start(&items, r);
    stream_id_next(&from);
    stream_walk_start(&w, s, from, STREAM_ID_MAX, false);
    while ((a->count == 0 || (uint64_t)items.n < a->count) && stream_walk_next(&w)) {
        stream_group_advance(s, g, w.id);
        stream_reply_entry(&items.r, &w);
        if (!a->noack)
            deliver(c, s, g, consumer, w.id);
        items.n++;
    }
    stream_items_end(&items, r);
}

static void reply_name(struct call *c, struct reply *r, const struct read_args *a, int i)
{
    if (r->proto == 2)
        reply_array(r, 2);
    reply_bulk(r, c->argv[a->streams + i]);
}

/* Is there an entry behind that one? */
static bool has_after(const struct stream *s, struct stream_id id)
{
    return s->length != 0 && stream_id_cmp(stream_last_entry(s), id) > 0;
}

/* Source i, which is key `key` of the call. */
static void serve_plain(struct call *c, struct reply *r, const struct read_args *a, int i, int key,
                        const struct source *src)
{
    struct stream_id from = src->after;

    stream_id_next(&from);
    reply_name(c, r, a, i);
    stream_reply_range(r, stream_of(ks_peek(c, key)), from, STREAM_ID_MAX, a->count, false);
}

static void serve_group(struct call *c, struct reply *r, const struct read_args *a, int i, int key,
                        const struct source *src)
{
    struct stream *s = stream_of(ks_peek(c, key));
    struct stream_id from = src->after;
    struct stream_consumer *consumer = stream_consumer_get(c, key, src->group, c->argv[a->group + 1]);

    reply_name(c, r, a, i);
    if (src->news) {
        reply_news(c, r, s, src->group, consumer, a);
    } else {
        stream_id_next(&from);
        reply_history(c, r, s, consumer, from, a->count);
    }
    ks_changed_quietly(c, key);
}

/* false: there is nothing for the client. */
static bool serve(struct call *c, struct reply *r, const struct read_args *a, int i, const struct source *src)
{
    const struct stream *s = stream_of(ks_peek(c, i));

    if (a->group_read) {
        if (src->news && !has_after(s, src->group->last_id))
            return false;
        serve_group(c, r, a, i, i, src);
        return true;
    }
    if (!has_after(s, src->after))
        return false;
    serve_plain(c, r, a, i, i, src);
    return true;
}

/* ---- waiting ---- */

/* Where the client reads on: "$" is what the last ID was when it began to wait. */
struct waiting {
    struct read_args args;
    struct source src[];
};

static int source_of(const struct call *c, const struct waiting *w)
{
    return c->keys[0].arg - w->args.streams;
}

static bool wait_ready(struct call *c, void *data)
{
    struct waiting *w = data;
    struct source *src = &w->src[source_of(c, w)];
    struct stream *s = stream_of(ks_peek(c, 0));

    if (!w->args.group_read)
        return stream_id_cmp(s->last_id, src->after) > 0; /* as Redis judges it, even if that entry is gone already */
    src->group = stream_group_find(s, c->argv[w->args.group]);
    return !src->group || stream_id_cmp(s->last_id, src->group->last_id) > 0;
}

static void wait_serve(struct call *c, void *data)
{
    struct waiting *w = data;
    int i = source_of(c, w);

    if (w->args.group_read && !w->src[i].group) {
        call_error(c, "NOGROUP the consumer group this client was blocked on no longer exists");
        return;
    }
    if (c->r.proto == 2)
        reply_array(&c->r, 1);
    else
        reply_map(&c->r, 1);
    (w->args.group_read ? serve_group : serve_plain)(c, &c->r, &w->args, i, 0, &w->src[i]);
}

static void wait_gone(struct call *c, void *data)
{
    (void)data;
    call_error(c, "UNBLOCKED the stream key no longer exists");
}

static void xread_wait(struct call *c, const struct read_args *a, const struct source *src)
{
    static const struct block_kind plain = {.type = OBJ_STREAM, .ready = wait_ready, .serve = wait_serve};
    static const struct block_kind group = {
        .type = OBJ_STREAM, .ready = wait_ready, .serve = wait_serve, .gone = wait_gone};

    if (a->block_ms < 0 || c->in_exec) {
        reply_null_array(&c->r);
        return;
    }
    size_t bytes = (size_t)a->n * sizeof(*src);
    struct waiting *w = mem_alloc(MEM_CLIENT, sizeof(*w) + bytes);
    w->args = *a;
    memcpy(w->src, src, bytes);
    block_wait(c, a->group_read ? &group : &plain, a->n, a->block_ms, w);
}

static void read_streams(struct call *c, const struct read_args *a, struct source *src)
{
    struct stream_items items;

    stream_items_start(&items, &c->r);
    for (int i = 0; i < a->n; i++)
        items.n += ks_read(c, i) && serve(c, &items.r, a, i, &src[i]);
    if (items.n == 0) {
        chain_deinit(&items.chain);
        xread_wait(c, a, src);
    } else if (c->r.proto == 2) {
        stream_items_end(&items, &c->r);
    } else {
        reply_map(&c->r, items.n);
        chain_move(c->r.out, &items.chain);
        chain_deinit(&items.chain);
    }
}

static void read_command(struct call *c, bool group_read)
{
    struct read_args a = {.group_read = group_read, .block_ms = -1};
    bool ok = true;

    if (!parse_read(c, &a))
        return;
    if (a.n > c->nkeys) { /* more keys than a command may have */
        call_syntax(c);
        return;
    }
    struct source *src = mem_alloc(MEM_OTHER, (size_t)a.n * sizeof(*src));
    for (int i = 0; ok && i < a.n; i++)
        ok = parse_source(c, &a, i, &src[i]);
    if (ok)
        read_streams(c, &a, src);
    mem_free(MEM_OTHER, src);
}

void cmd_xread(struct call *c)
{
    read_command(c, false);
}

void cmd_xreadgroup(struct call *c)
{
    read_command(c, true);
}
