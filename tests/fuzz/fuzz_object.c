/* The serial form: garbage must be refused, and what is accepted must be usable and say the
 * same when it is serialised again. The first byte chooses the type. */
#include <stdint.h>
#include <stdlib.h>

#include "tiercel/object.h"
#include "tiercel/type_hash.h"
#include "tiercel/type_list.h"
#include "tiercel/type_set.h"
#include "tiercel/type_zset.h"
#include "tiercel/type_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use_list(struct object *o)
{
    size_t sum = 0, len = qlist_len(o), n = 0;
    char number[NUM_I64_MAX];
    struct qlist_pos at;

    CHECK(len > 0);
    qlist_seek(o, 0, &at);
    do {
        struct slice elem = qlist_get(&at, number);
        sum += elem.len + (elem.len ? (size_t)(unsigned char)elem.ptr[elem.len - 1] : 0);
    } while (++n <= len && qlist_step(&at, false));
    CHECK(n == len);
    qlist_seek(o, len / 2, &at);
    qlist_insert(&at, sum & 1, SLICE_LIT("fuzz"), -1);
    qlist_set(o, len / 2, SLICE_LIT("12"), 3);
    CHECK(qlist_len(o) == len + 1 && object_bytes(o) > 0);
    len -= qlist_remove(o, SLICE_LIT("12"), SIZE_MAX, sum & 2);
    CHECK(qlist_len(o) == len + 1);
    qlist_trim(o, len / 2, len - len / 2);
    CHECK(qlist_len(o) == 1);
}

static void touch(size_t *sum, struct slice s)
{
    *sum += s.len + (s.len ? (size_t)(unsigned char)s.ptr[s.len - 1] : 0);
}

/* Walks over all of it, changes it, and says the same again. */
static void use_stream(struct object *o)
{
    struct stream *s = object_ptr(o);
    struct slice pair[2] = {SLICE_LIT("field"), SLICE_LIT("7")}, field, value;
    struct obj_limits lim = {.stream_bytes = 4096, .stream_entries = 100};
    char fscratch[NUM_I64_MAX], vscratch[NUM_I64_MAX];
    struct stream_walk w;
    size_t sum = 0, n = 0;
    stream_walk_start(&w, s, STREAM_ID_MIN, STREAM_ID_MAX, true);
    for (; stream_walk_next(&w); n++)
        CHECK(stream_has(s, w.id));
    CHECK(n == s->length);
    stream_walk_start(&w, s, STREAM_ID_MIN, STREAM_ID_MAX, false);
    while (stream_walk_next(&w))
        for (int64_t i = 0; i < w.nfields; i++) {
            stream_walk_field(&w, &field, &value, fscratch, vscratch);
            touch(&sum, field);
            touch(&sum, value);
        }
    struct stream_id id = s->last_id;
    if (stream_id_next(&id))
        CHECK(stream_append(s, &lim, id, pair, 1) && stream_has(s, id));
    struct stream_trim half = {.maxlen = s->length / 2}, all = {.by_id = true, .minid = STREAM_ID_MAX};
    stream_trim(s, &half);
    CHECK(s->length == half.maxlen);
    while (s->ngroups)
        CHECK(stream_group_destroy(s, SLICE(s->group[0]->name, s->group[0]->len)));
    CHECK(s->npending == 0);
    stream_trim(s, &all);
}

static void use_string(struct object *o, struct codec *codec)
{
    char scratch[OBJ_SCRATCH];
    struct slice plain;
    if (object_string(o, codec, scratch, &plain) == ST_OK)
        CHECK(plain.len == object_string_len(o));
    CHECK(object_encoding_name(o) != NULL);
}

static void remember(void *arg, struct slice elem)
{
    buf_byte(arg, (char)elem.len);
    buf_slice_append(arg, elem);
}

/* Takes out what it has, one by one. */
static void use_set(struct object *o)
{
    uint64_t rng = 1;
    struct buf out;
    size_t n = object_len(o);
    CHECK(n > 0);
    buf_init(&out, MEM_OTHER);
    set_each(o, remember, &out);
    CHECK(out.len >= n);
    while (n > 0) {
        set_pop(o, 1, 512, &rng, remember, &out);
        CHECK(object_len(o) == --n);
    }
    buf_deinit(&out);
}

static void use_hash(struct object *o)
{
    char scratch[NUM_I64_MAX];
    struct slice field, value, got;
    size_t n = 0;
    struct hash_iter it = hash_iter(o);
    for (; hash_next(&it, &field, &value); n++)
        CHECK(hash_get(o, field, scratch, &got) && slice_eq(got, value));
    CHECK(n > 0 && n == object_len(o));
}

/* In order, and found one by one until none is left. */
static void use_zset(struct object *o)
{
    struct zset_iter it;
    double last = 0, score;
    size_t n = 0, rank;
    zset_seek(o, 0, false, &it);
    for (; zset_next(&it); n++) {
        CHECK(n == 0 || it.score >= last);
        CHECK(o->enc == ENC_LISTPACK || (zset_rank(o, it.name, &rank) && rank == n));
        CHECK(zset_score(o, it.name, &score));
        last = it.score;
    }
    CHECK(n > 0 && n == object_len(o));
    for (; n > 0; n--)
        zset_remove_ranks(o, n / 2, 1);
    CHECK(object_len(o) == 0);
}

/* Hash tables have no order: as much of it again, if not in the same bytes. */
static void parse_again(const struct object *o, const struct key *key, struct slice serial)
{
    struct object *again;
    CHECK(object_parse(o->type, key, serial, 0, 0, &again) == ST_OK);
    CHECK(object_len(again) == object_len(o));
    object_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct codec *codec;
    struct key key = {.ptr = "key", .len = 3};
    struct object *o;
    struct buf serial;
    if (!codec)
        codec = codec_create();
    if (size == 0)
        return 0;
    enum obj_type type = data[0] & 15;
    struct slice in = SLICE((const char *)data + 1, size - 1);
    if (object_parse(type, &key, in, data[0] >> 7, (data[0] >> 6) & 1, &o) != ST_OK) {
        CHECK(o == NULL);
        return 0;
    }
    CHECK(object_bytes(o) > 0 && object_key_is(o, &key));
    buf_init(&serial, MEM_OTHER);
    object_serialise(o, &serial);
    if (type == OBJ_STRING)
        CHECK(slice_eq(buf_slice(&serial), in));
    else
        parse_again(o, &key, buf_slice(&serial));
    buf_deinit(&serial);
    struct object *copy = object_copy(o, &key, 5, 0);
    if (type == OBJ_LIST)
        use_list(copy);
    else if (type == OBJ_SET)
        use_set(copy);
    else if (type == OBJ_HASH)
        use_hash(copy);
    else if (type == OBJ_ZSET)
        use_zset(copy);
    else if (type == OBJ_STREAM)
        use_stream(copy);
    else
        use_string(copy, codec);
    object_free(copy);
    object_free(o);
    return 0;
}
