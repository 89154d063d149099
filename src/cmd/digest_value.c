/* DEBUG DIGEST-VALUE: what a value is, whatever its encoding and the order of what has none, as 40 hexadecimal digits. Two values
 * that are equal for clients have the same, here and on a Redis, so that tests can compare them. */
#include <arpa/inet.h>
#include <stdio.h>

#include "cmd_priv.h"
#include "tiercel/digest.h"
#include "tiercel/keyspace.h"
#include "tiercel/type_hash.h"
#include "tiercel/type_list.h"
#include "tiercel/type_set.h"
#include "tiercel/type_stream.h"
#include "tiercel/type_zset.h"

/* Numbers that a Redis puts in front of a value, by its types. */
static const uint32_t type_number[] = {
    [OBJ_STRING] = 0, [OBJ_LIST] = 1, [OBJ_SET] = 2, [OBJ_ZSET] = 3, [OBJ_HASH] = 4, [OBJ_STREAM] = 6};

struct sum {
    unsigned char d[SHA1_BYTES];
};

/* In any order. */
static void add_any(struct sum *s, struct slice bytes)
{
    unsigned char one[SHA1_BYTES];

    sha1_raw(bytes, one);
    for (int i = 0; i < SHA1_BYTES; i++)
        s->d[i] ^= one[i];
}

/* In this order. */
static void add_next(struct sum *s, struct slice bytes)
{
    add_any(s, bytes);
    sha1_raw(SLICE((const char *)s->d, SHA1_BYTES), s->d);
}

static void add_sum(struct sum *s, const struct sum *of)
{
    add_any(s, SLICE((const char *)of->d, SHA1_BYTES));
}

static void add_list(struct sum *s, struct object *o)
{
    char scratch[NUM_I64_MAX];
    struct qlist_pos at;

    qlist_seek(o, 0, &at);
    do {
        add_next(s, qlist_get(&at, scratch));
    } while (qlist_step(&at, false));
}

static void add_set(struct sum *s, const struct object *o)
{
    struct set_iter it = set_iter(o);
    struct slice member;

    while (set_next(&it, &member))
        add_any(s, member);
}

static void add_zset(struct sum *s, const struct object *o)
{
    char text[NUM_F64_SHORT];
    struct zset_iter it;

    zset_seek(o, 0, false, &it);
    while (zset_next(&it)) {
        struct sum one = {{0}};
        int len = snprintf(text, sizeof(text), "%.17g", it.score);
        add_next(&one, it.name);
        add_next(&one, SLICE(text, (size_t)len));
        add_sum(s, &one);
    }
}

static void add_hash(struct sum *s, const struct object *o)
{
    struct hash_iter it = hash_iter(o);
    struct slice field, value;

    while (hash_next(&it, &field, &value)) {
        struct sum one = {{0}};
        add_next(&one, field);
        add_next(&one, value);
        add_sum(s, &one);
    }
}

static void add_stream(struct sum *s, const struct object *o)
{
    char text[64], fscratch[NUM_I64_MAX], vscratch[NUM_I64_MAX];
    struct slice field, value;
    struct stream_walk w;

    stream_walk_start(&w, stream_of(o), STREAM_ID_MIN, STREAM_ID_MAX, false);
    while (stream_walk_next(&w)) {
        int len = snprintf(text, sizeof(text), "%llu.%llu", (unsigned long long)w.id.ms, (unsigned long long)w.id.seq);
        add_next(s, SLICE(text, (size_t)len));
        for (int64_t i = 0; i < w.nfields; i++) {
            stream_walk_field(&w, &field, &value, fscratch, vscratch);
            add_next(s, field);
            add_next(s, value);
        }
    }
}

static bool add_string(struct sum *s, const struct call *c, struct object *o)
{
    char scratch[OBJ_SCRATCH];
    struct slice value;

    if (object_string(o, c->w->codec, scratch, &value) != ST_OK)
        return false;
    add_next(s, value);
    return true;
}

/* false: it is damaged. */
static bool add_value(struct sum *s, const struct call *c, struct object *o)
{
    uint32_t type = htonl(type_number[o->type]);

    add_next(s, SLICE((const char *)&type, sizeof(type)));
    switch (o->type) {
    case OBJ_LIST: add_list(s, o); break;
    case OBJ_SET: add_set(s, o); break;
    case OBJ_ZSET: add_zset(s, o); break;
    case OBJ_HASH: add_hash(s, o); break;
    case OBJ_STREAM: add_stream(s, o); break;
    default: return add_string(s, c, o);
    }
    return true;
}

void debug_digest_value(struct call *c)
{
    char text[2 * SHA1_BYTES + 1];

    reply_array(&c->r, c->nkeys);
    for (int i = 0; i < c->nkeys; i++) {
        struct sum s = {{0}};
        hash_expire(c, i);
        struct object *o = ks_peek(c, i);
        if (o && !add_value(&s, c, o))
            add_any(&s, SLICE_LIT("damaged"));
        if (o && object_expire(o) != 0)
            add_any(&s, SLICE_LIT("!!expire!!"));
        for (int k = 0; k < SHA1_BYTES; k++)
            snprintf(text + 2 * k, 3, "%02x", s.d[k]);
        reply_simple(&c->r, text);
    }
}
