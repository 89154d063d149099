#ifndef TIERCEL_STREAM_ARGS_H
#define TIERCEL_STREAM_ARGS_H

#include "cmd/cmd_priv.h"
#include "tiercel/type_stream.h"

/* What the files of stream commands share: IDs among arguments, entries in replies. */

static inline struct stream *stream_of(const struct object *o)
{
    return object_ptr(o);
}

/* "ms-seq", or "ms" alone with missing_seq. strict: not "-" and "+". auto_seq: may be "ms-*", and whether it was; NULL: it
 * may not. */
bool stream_parse_id(struct slice s, uint64_t missing_seq, bool strict, struct stream_id *id, bool *auto_seq);
/* The others reply the error and return false. */
bool stream_arg_id(struct call *c, int arg, struct stream_id *id); /* strict, seq 0 where it has none */
bool stream_arg_loose_id(struct call *c, int arg, struct stream_id *id);
bool stream_arg_start(struct call *c, int arg, struct stream_id *id); /* with "(": the one after it */
bool stream_arg_interval(struct call *c, int start, int end, struct stream_id *from, struct stream_id *to);

/* A group of keys[0]; NULL: the error (NOGROUP, WRONGTYPE) was replied. */
struct stream_group *stream_arg_group(struct call *c, struct object *o, int arg);

/* A reply whose length is known at its end. */
struct stream_items {
    struct chain chain;
    struct reply r;
    int64_t n;
};
void stream_items_start(struct stream_items *items, const struct reply *r);
void stream_items_end(struct stream_items *items, struct reply *r); /* as an array */

void stream_reply_id(struct reply *r, struct stream_id id);
/* The entry at which a walk is. */
void stream_reply_entry(struct reply *r, struct stream_walk *w);
/* The entry with that ID. false: there is none, and nothing was replied. */
bool stream_reply_one(struct reply *r, const struct stream *s, struct stream_id id);
/* At most count entries as an array; 0: all. */
void stream_reply_range(struct reply *r, const struct stream *s, struct stream_id from, struct stream_id to,
                        uint64_t count, bool reverse);

/* The consumer, which is made if there is none, marked as just seen. Tells of a new one by its event. */
struct stream_consumer *stream_consumer_get(struct call *c, int key, struct stream_group *g, struct slice name);

#endif
