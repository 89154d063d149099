#include "cmd/cmd_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- IDs ---- */

#define ID_TEXT 128

/* Where it is no plain number, what strtoull() takes for one. */
static bool parse_u64(const char *text, uint64_t *v)
{
    int64_t number;
    char *end;

    if (num_parse_i64(slice_str(text), &number)) {
        *v = (uint64_t)number;
        return number >= 0;
    }
    errno = 0;
    *v = strtoull(text, &end, 10);
    return errno == 0 && *text != '\0' && *end == '\0';
}

bool stream_parse_id(struct slice s, uint64_t missing_seq, bool strict, struct stream_id *id, bool *auto_seq)
{
    char text[ID_TEXT];

    if (auto_seq)
        *auto_seq = false;
    if (s.len >= sizeof(text))
        return false;
    if (s.len)
        memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    if (strcmp(text, "-") == 0 || strcmp(text, "+") == 0) {
        *id = text[0] == '-' ? STREAM_ID_MIN : STREAM_ID_MAX;
        return !strict;
    }
    char *dash = strchr(text, '-');
    if (dash)
        *dash = '\0';
    if (!parse_u64(text, &id->ms))
        return false;
    id->seq = missing_seq;
    if (!dash)
        return true;
    if (auto_seq && strcmp(dash + 1, "*") == 0) {
        id->seq = 0;
        *auto_seq = true;
        return true;
    }
    return parse_u64(dash + 1, &id->seq);
}

static bool invalid_id(struct call *c)
{
    call_error(c, "ERR Invalid stream ID specified as stream command argument");
    return false;
}

bool stream_arg_id(struct call *c, int arg, struct stream_id *id)
{
    return stream_parse_id(c->argv[arg], 0, true, id, NULL) || invalid_id(c);
}

bool stream_arg_loose_id(struct call *c, int arg, struct stream_id *id)
{
    return stream_parse_id(c->argv[arg], 0, false, id, NULL) || invalid_id(c);
}

/* One end of an interval; with "(" it does not belong to it. */
static bool arg_bound(struct call *c, int arg, uint64_t missing_seq, struct stream_id *id, bool *exclusive)
{
    struct slice s = c->argv[arg];

    *exclusive = s.len > 1 && s.ptr[0] == '(';
    if (*exclusive)
        s = SLICE(s.ptr + 1, s.len - 1);
    return stream_parse_id(s, missing_seq, *exclusive, id, NULL) || invalid_id(c);
}

bool stream_arg_start(struct call *c, int arg, struct stream_id *id)
{
    bool exclusive;

    if (!arg_bound(c, arg, 0, id, &exclusive))
        return false;
    if (exclusive && !stream_id_next(id)) {
        call_error(c, "ERR invalid start ID for the interval");
        return false;
    }
    return true;
}

bool stream_arg_interval(struct call *c, int start, int end, struct stream_id *from, struct stream_id *to)
{
    bool exclusive;

    if (!stream_arg_start(c, start, from) || !arg_bound(c, end, UINT64_MAX, to, &exclusive))
        return false;
    if (exclusive && !stream_id_prev(to)) {
        call_error(c, "ERR invalid end ID for the interval");
        return false;
    }
    return true;
}

struct stream_group *stream_arg_group(struct call *c, struct object *o, int arg)
{
    if (!ks_is(c, o, OBJ_STREAM))
        return NULL;
    struct stream_group *g = o ? stream_group_find(stream_of(o), c->argv[arg]) : NULL;
    if (!g)
        call_errorf(c, "NOGROUP No such key '%.*s' or consumer group '%.*s'", SLICE_FMT(c->argv[1]),
                    SLICE_FMT(c->argv[arg]));
    return g;
}

struct stream_consumer *stream_consumer_get(struct call *c, int key, struct stream_group *g, struct slice name)
{
    struct stream_consumer *consumer = stream_consumer_find(g, name);

    if (consumer) {
        consumer->seen_ms = c->now_ms;
        return consumer;
    }
    consumer = stream_consumer_create(stream_of(ks_peek(c, key)), g, name, c->now_ms);
    ks_notify(c, key, NOTIFY_STREAM, "xgroup-createconsumer");
    return consumer;
}

/* ---- replies ---- */

void stream_items_start(struct stream_items *items, const struct reply *r)
{
    chain_init(&items->chain);
    items->r = (struct reply){&items->chain, r->proto};
    items->n = 0;
}

void stream_items_end(struct stream_items *items, struct reply *r)
{
    reply_array(r, items->n);
    chain_move(r->out, &items->chain);
    chain_deinit(&items->chain);
}

void stream_reply_id(struct reply *r, struct stream_id id)
{
    char text[2 * NUM_I64_MAX + 1];
    size_t len = num_format_u64(text, id.ms);

    text[len++] = '-';
    len += num_format_u64(text + len, id.seq);
    reply_bulk(r, SLICE(text, len));
}

void stream_reply_entry(struct reply *r, struct stream_walk *w)
{
    char fscratch[NUM_I64_MAX], vscratch[NUM_I64_MAX];
    struct slice field, value;

    reply_array(r, 2);
    stream_reply_id(r, w->id);
    reply_array(r, 2 * w->nfields);
    for (int64_t i = 0; i < w->nfields; i++) {
        stream_walk_field(w, &field, &value, fscratch, vscratch);
        reply_bulk(r, field);
        reply_bulk(r, value);
    }
}

bool stream_reply_one(struct reply *r, const struct stream *s, struct stream_id id)
{
    struct stream_walk w;

    stream_walk_start(&w, s, id, id, false);
    if (!stream_walk_next(&w))
        return false;
    stream_reply_entry(r, &w);
    return true;
}

void stream_reply_range(struct reply *r, const struct stream *s, struct stream_id from, struct stream_id to,
                        uint64_t count, bool reverse)
{
    struct stream_items items;
    struct stream_walk w;

    stream_items_start(&items, r);
    stream_walk_start(&w, s, from, to, reverse);
    while ((count == 0 || (uint64_t)items.n < count) && stream_walk_next(&w)) {
        stream_reply_entry(&items.r, &w);
        items.n++;
    }
    stream_items_end(&items, r);
}
