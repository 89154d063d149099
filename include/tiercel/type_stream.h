#ifndef TIERCEL_TYPE_STREAM_H
#define TIERCEL_TYPE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiercel/num.h"
#include "tiercel/object.h"
#include "tiercel/slice.h"

/* Streams: entries in ascending order of their IDs, in nodes that are listpacks in Redis's own layout, so that its
 * serial form is a copy. An entry that is deleted leaves a tombstone, which goes with its node. Consumer groups each
 * have the entries that were delivered and not acknowledged (PEL), as a whole and per consumer. No locks. */
struct stream_id {
    uint64_t ms, seq;
};
#define STREAM_ID_MIN ((struct stream_id){0, 0})
#define STREAM_ID_MAX ((struct stream_id){UINT64_MAX, UINT64_MAX})

static inline int stream_id_cmp(struct stream_id a, struct stream_id b)
{
    return a.ms != b.ms ? (a.ms < b.ms ? -1 : 1) : a.seq != b.seq ? (a.seq < b.seq ? -1 : 1) : 0;
}
/* false: there is none beyond; then it is the first or the last. */
static inline bool stream_id_next(struct stream_id *id)
{
    if (++id->seq == 0)
        return ++id->ms != 0;
    return true;
}
static inline bool stream_id_prev(struct stream_id *id)
{
    if (id->seq-- == 0)
        return id->ms-- != 0;
    return true;
}

struct stream_node {
    struct stream_id id; /* of its first entry; those of all others are relative to it */
    unsigned char *lp;
};

struct stream_consumer;

/* An entry that was delivered. In two trees at once: its group's [0] and its consumer's [1]. */
struct stream_nack {
    struct stream_id id;
    int64_t delivered_ms;
    uint64_t deliveries;
    struct stream_consumer *consumer;
    struct stream_nack *left[2], *right[2];
    uint32_t priority; /* heap order of both (treaps) */
};

struct stream_pel {
    struct stream_nack *root;
    size_t count;
};

struct stream_consumer {
    int64_t seen_ms;
    struct stream_pel pel;
    size_t len;
    char name[];
};

#define STREAM_NOT_KNOWN (-1) /* entries_read */

struct stream_group {
    struct stream_id last_id; /* the last one that was delivered */
    int64_t entries_read;
    struct stream_pel pel;
    struct stream_consumer **consumer; /* by name */
    size_t nconsumers;
    uint64_t rng;
    size_t len;
    char name[];
};

struct stream {
    struct stream_node *node; /* node[first .. first + nnodes) are in use */
    size_t first, nnodes, cap;
    struct stream_group **group; /* by name */
    size_t ngroups;
    uint64_t length, entries_added;
    struct stream_id last_id, first_id, max_deleted;
    size_t bytes;  /* of memory, all together */
    size_t packed; /* bytes of the listpacks */
    size_t npending;
};

struct stream *stream_create(void);
void stream_destroy(struct stream *s);

/* ---- entries ---- */

/* Adds one with that ID, which is greater than last_id: fields and values in turn. false: it is too large. */
bool stream_append(struct stream *s, const struct obj_limits *lim, struct stream_id id, const struct slice *pairs,
                   size_t nfields);
bool stream_delete(struct stream *s, struct stream_id id); /* false: not there */
bool stream_has(const struct stream *s, struct stream_id id);
/* After deletions: looks for first_id anew. */
void stream_find_first(struct stream *s);
struct stream_id stream_last_entry(const struct stream *s); /* STREAM_ID_MIN: empty */

/* Removes entries from the front: as long as there are more than maxlen, or (by_id) those before minid. approx: whole nodes
 * only. limit: at most so many, 0 = no limit. Returns how many. */
struct stream_trim {
    bool by_id, approx;
    uint64_t maxlen;
    struct stream_id minid;
    int64_t limit;
};
int64_t stream_trim(struct stream *s, const struct stream_trim *t);

/* A walk over entries from `from` to `to`, both included; nothing may change meanwhile. */
struct stream_walk {
    const struct stream *s;
    struct stream_id from, to;
    bool reverse;
    size_t at;            /* node */
    unsigned char *entry; /* NULL: not begun with this node */
    unsigned char *field, *value;
    unsigned char *master; /* the node's own fields */
    int64_t nmaster;
    bool same; /* it has those */
    /* The entry: */
    struct stream_id id;
    int64_t nfields;
};
void stream_walk_start(struct stream_walk *w, const struct stream *s, struct stream_id from, struct stream_id to,
                       bool reverse);
bool stream_walk_next(struct stream_walk *w);
/* Its fields, one after the other: call it nfields times. Numbers are written to the scratches. */
void stream_walk_field(struct stream_walk *w, struct slice *field, struct slice *value, char fscratch[NUM_I64_MAX],
                       char vscratch[NUM_I64_MAX]);

/* How many nodes Redis's radix tree of the nodes' IDs would have (XINFO STREAM). O(nodes). */
size_t stream_radix_nodes(const struct stream *s);

/* ---- consumer groups ---- */

struct stream_group *stream_group_find(const struct stream *s, struct slice name);
/* NULL: there is one of that name. */
struct stream_group *stream_group_create(struct stream *s, struct slice name, struct stream_id last_id,
                                         int64_t entries_read);
bool stream_group_destroy(struct stream *s, struct slice name);

struct stream_consumer *stream_consumer_find(const struct stream_group *g, struct slice name);
struct stream_consumer *stream_consumer_create(struct stream *s, struct stream_group *g, struct slice name,
                                               int64_t now_ms);
void stream_consumer_destroy(struct stream *s, struct stream_group *g, struct stream_consumer *c);

#define STREAM_OF_GROUP 0
#define STREAM_OF_CONSUMER 1
struct stream_nack *stream_pel_find(const struct stream_group *g, struct stream_id id);
/* The first one from that ID on; NULL: none. tree: which of the two pel is. */
struct stream_nack *stream_pel_from(const struct stream_pel *pel, int tree, struct stream_id id);
struct stream_nack *stream_pel_last(const struct stream_pel *pel, int tree);
/* It is not there yet. c NULL: to be given to a consumer before anything else is done. */
struct stream_nack *stream_pel_add(struct stream *s, struct stream_group *g, struct stream_consumer *c,
                                   struct stream_id id, int64_t now_ms);
void stream_pel_give(struct stream_nack *n, struct stream_consumer *c);
void stream_pel_remove(struct stream *s, struct stream_group *g, struct stream_nack *n);

/* The group delivers this entry: moves its last_id and entries_read. */
void stream_group_advance(const struct stream *s, struct stream_group *g, struct stream_id id);
/* How many entries were ever added up to this ID; STREAM_NOT_KNOWN. */
int64_t stream_count_until(const struct stream *s, struct stream_id id);
/* How many entries are still to be delivered. false: not known. */
bool stream_group_lag(const struct stream *s, const struct stream_group *g, int64_t *lag);

#endif
