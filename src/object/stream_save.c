/* Streams in Redis's serial form: nodes as they are, then what is known about the whole, then the groups. */
#include "object_priv.h"
#include "tiercel/check.h"
#include "tiercel/listpack.h"
#include "tiercel/rdb.h"

/* ---- writing ---- */

static void put_big_endian(struct buf *out, uint64_t v)
{
    for (int i = 8; i-- > 0;)
        buf_byte(out, (char)(v >> (8 * i)));
}

static void put_key(struct buf *out, struct stream_id id)
{
    put_big_endian(out, id.ms);
    put_big_endian(out, id.seq);
}

static void put_id(struct buf *out, struct stream_id id)
{
    rdb_put_len(out, id.ms);
    rdb_put_len(out, id.seq);
}

static void put_pel(struct buf *out, const struct stream_nack *n, int tree)
{
    for (; n; n = n->right[tree]) {
        put_pel(out, n->left[tree], tree);
        put_key(out, n->id);
        if (tree == STREAM_OF_GROUP) {
            rdb_put_i64(out, n->delivered_ms);
            rdb_put_len(out, n->deliveries);
        }
    }
}

static void put_group(struct buf *out, const struct stream_group *g)
{
    rdb_put_string(out, SLICE(g->name, g->len));
    put_id(out, g->last_id);
    rdb_put_len(out, (uint64_t)g->entries_read);
    rdb_put_len(out, g->pel.count);
    put_pel(out, g->pel.root, STREAM_OF_GROUP);
    rdb_put_len(out, g->nconsumers);
    for (size_t i = 0; i < g->nconsumers; i++) {
        const struct stream_consumer *c = g->consumer[i];
        rdb_put_string(out, SLICE(c->name, c->len));
        rdb_put_i64(out, c->seen_ms);
        rdb_put_len(out, c->pel.count);
        put_pel(out, c->pel.root, STREAM_OF_CONSUMER);
    }
}

void stream_save(enum obj_enc enc, const void *value, struct buf *out)
{
    const struct stream *s = value;
    (void)enc;

    buf_byte(out, RDB_STREAM_LISTPACKS_2);
    rdb_put_len(out, s->nnodes);
    for (size_t i = s->first; i < s->first + s->nnodes; i++) {
        rdb_put_len(out, 16);
        put_key(out, s->node[i].id);
        rdb_put_raw(out, listpack_slice(s->node[i].lp));
    }
    rdb_put_len(out, s->length);
    put_id(out, s->last_id);
    put_id(out, s->first_id);
    put_id(out, s->max_deleted);
    rdb_put_len(out, s->entries_added);
    rdb_put_len(out, s->ngroups);
    for (size_t i = 0; i < s->ngroups; i++)
        put_group(out, s->group[i]);
}

/* ---- reading ---- */

static uint64_t big_endian(const char *p)
{
    uint64_t v = 0;

    for (int i = 0; i < 8; i++)
        v = v << 8 | (unsigned char)p[i];
    return v;
}

static struct stream_id key_of(const char *p)
{
    return (struct stream_id){big_endian(p), big_endian(p + 8)};
}

static bool get_key(struct rdb_reader *in, struct stream_id *id)
{
    if (rdb_left(in) < 16)
        return false;
    *id = key_of(in->ptr);
    in->ptr += 16;
    return true;
}

static bool get_id(struct rdb_reader *in, struct stream_id *id)
{
    return rdb_get_len(in, &id->ms) && rdb_get_len(in, &id->seq);
}

/* The number at *p, and on to the next element. */
static bool take_int(const unsigned char *lp, unsigned char **p, int64_t *v)
{
    struct listpack_value value;

    if (!*p)
        return false;
    listpack_get(*p, &value);
    *v = value.num;
    *p = listpack_next(lp, *p);
    return value.str.ptr == NULL;
}

static bool take_any(const unsigned char *lp, unsigned char **p, int64_t n)
{
    for (; n > 0; n--) {
        if (!*p)
            return false;
        *p = listpack_next(lp, *p);
    }
    return true;
}

#define FIELDS_MAX (LISTPACK_SAFE_BYTES / 2)

/* One entry. *live: its ID is after those that are before it, unless it is a tombstone. */
static bool check_entry(const unsigned char *lp, unsigned char **p, struct stream_id base, int64_t nmaster,
                        struct stream_id *live, uint64_t *nlive, int64_t *ndead)
{
    int64_t flags, ms, seq, count, nfields = nmaster;

    if (!take_int(lp, p, &flags) || flags & ~(STREAM_DELETED | STREAM_SAME_FIELDS) || !take_int(lp, p, &ms) ||
        !take_int(lp, p, &seq))
        return false;
    bool same = flags & STREAM_SAME_FIELDS;
    if (!same && (!take_int(lp, p, &nfields) || nfields < 0 || nfields > FIELDS_MAX))
        return false;
    if (!take_any(lp, p, same ? nfields : 2 * nfields) || !take_int(lp, p, &count) ||
        count != (same ? nfields + 3 : 2 * nfields + 4))
        return false;
    if (flags & STREAM_DELETED) {
        ++*ndead;
        return true;
    }
    struct stream_id id = {base.ms + (uint64_t)ms, base.seq + (uint64_t)seq};
    if (stream_id_cmp(id, *live) <= 0 || stream_id_cmp(id, base) < 0)
        return false;
    *live = id;
    ++*nlive;
    return true;
}

static bool check_node(const unsigned char *lp, struct stream_id base, struct stream_id *live, uint64_t *length)
{
    unsigned char *p = listpack_first(lp);
    int64_t entries, deleted, nmaster, zero, ndead = 0;
    uint64_t nlive = 0;

    if (!take_int(lp, &p, &entries) || !take_int(lp, &p, &deleted) || !take_int(lp, &p, &nmaster) || nmaster < 0 ||
        nmaster > FIELDS_MAX || !take_any(lp, &p, nmaster) || !take_int(lp, &p, &zero) || zero != 0)
        return false;
    while (p)
        if (!check_entry(lp, &p, base, nmaster, live, &nlive, &ndead))
            return false;
    *length += nlive;
    return entries >= 0 && (uint64_t)entries == nlive && deleted == ndead;
}

static bool load_nodes(struct rdb_reader *in, struct stream *s, struct stream_id *live, uint64_t *length)
{
    struct stream_id id, last = STREAM_ID_MIN;
    struct slice key, lp;
    uint64_t n;

    if (!rdb_get_len(in, &n))
        return false;
    for (; n > 0; n--) {
        if (!rdb_get_string(in, &key) || key.len != 16)
            return false;
        id = key_of(key.ptr);
        if ((s->nnodes && (stream_id_cmp(id, last) <= 0 || stream_id_cmp(id, *live) <= 0)) ||
            !rdb_get_string(in, &lp) || !listpack_valid(lp))
            return false;
        stream_push_node(s, id, listpack_from(lp));
        last = id;
        if (!check_node(s->node[s->first + s->nnodes - 1].lp, id, live, length))
            return false;
    }
    return true;
}

static bool load_group_pel(struct rdb_reader *in, struct stream *s, struct stream_group *g)
{
    struct stream_id id, last = STREAM_ID_MIN;
    uint64_t n, deliveries;
    int64_t delivered;

    if (!rdb_get_len(in, &n))
        return false;
    for (; n > 0; n--) {
        if (!get_key(in, &id) || !rdb_get_i64(in, &delivered) || !rdb_get_len(in, &deliveries) ||
            (g->pel.count && stream_id_cmp(id, last) <= 0))
            return false;
        stream_pel_add(s, g, NULL, id, delivered)->deliveries = deliveries;
        last = id;
    }
    return true;
}

/* Names come in their order. */
static bool name_follows(struct slice name, const char *before, size_t len)
{
    size_t least = name.len < len ? name.len : len;
    int c = least ? memcmp(before, name.ptr, least) : 0;

    return c < 0 || (c == 0 && len < name.len);
}

static bool load_consumer(struct rdb_reader *in, struct stream *s, struct stream_group *g, size_t *owned)
{
    const struct stream_consumer *before = g->nconsumers ? g->consumer[g->nconsumers - 1] : NULL;
    struct stream_id id;
    struct slice name;
    uint64_t n;

    if (!rdb_get_string(in, &name) || (before && !name_follows(name, before->name, before->len)))
        return false;
    struct stream_consumer *c = stream_consumer_create(s, g, name, 0);
    if (!rdb_get_i64(in, &c->seen_ms) || !rdb_get_len(in, &n))
        return false;
    for (; n > 0; n--) {
        if (!get_key(in, &id))
            return false;
        struct stream_nack *nack = stream_pel_find(g, id);
        if (!nack || nack->consumer)
            return false;
        stream_pel_give(nack, c);
        ++*owned;
    }
    return true;
}

static bool load_group(struct rdb_reader *in, struct stream *s, bool has_count)
{
    const struct stream_group *before = s->ngroups ? s->group[s->ngroups - 1] : NULL;
    struct stream_id last_id;
    struct slice name;
    uint64_t n, read;
    size_t owned = 0;

    if (!rdb_get_string(in, &name) || (before && !name_follows(name, before->name, before->len)))
        return false;
    struct stream_group *g = stream_group_create(s, name, STREAM_ID_MIN, STREAM_NOT_KNOWN);
    if (!get_id(in, &last_id) || (has_count && !rdb_get_len(in, &read)))
        return false;
    g->last_id = last_id;
    g->entries_read = has_count ? (int64_t)read : stream_count_until(s, last_id);
    if (!load_group_pel(in, s, g) || !rdb_get_len(in, &n))
        return false;
    for (; n > 0; n--)
        if (!load_consumer(in, s, g, &owned))
            return false;
    return owned == g->pel.count;
}

static bool load(struct rdb_reader *in, struct stream *s, bool second)
{
    struct stream_id live = STREAM_ID_MIN;
    uint64_t length = 0, ngroups;

    if (!load_nodes(in, s, &live, &length) || !rdb_get_len(in, &s->length) || s->length != length ||
        !get_id(in, &s->last_id) || stream_id_cmp(live, s->last_id) > 0)
        return false;
    if (second) {
        struct stream_id first; /* is found anew */
        if (!get_id(in, &first) || !get_id(in, &s->max_deleted) || !rdb_get_len(in, &s->entries_added))
            return false;
    } else {
        s->entries_added = s->length;
    }
    stream_find_first(s);
    if (!rdb_get_len(in, &ngroups))
        return false;
    for (; ngroups > 0; ngroups--)
        if (!load_group(in, s, second))
            return false;
    return true;
}

bool stream_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    struct stream *s = stream_create();
    (void)lim;

    *enc = ENC_BIG;
    *value = s;
    if (load(in, s, rdb_type == RDB_STREAM_LISTPACKS_2))
        return true;
    stream_destroy(s);
    *value = NULL;
    return false;
}

void *stream_copy(enum obj_enc enc, const void *value)
{
    struct buf serial, text;
    void *copy;

    buf_init(&serial, MEM_OTHER);
    buf_init(&text, MEM_OTHER);
    stream_save(enc, value, &serial);
    struct rdb_reader in = {serial.ptr + 1, serial.ptr + serial.len, &text, NULL};
    CHECK(stream_load(&in, RDB_STREAM_LISTPACKS_2, NULL, &enc, &copy) && rdb_left(&in) == 0);
    buf_deinit(&text);
    buf_deinit(&serial);
    return copy;
}
