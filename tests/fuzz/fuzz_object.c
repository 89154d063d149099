/* The serial form: garbage must be refused, and what is accepted must be usable and say the
 * same when it is serialised again. The first byte chooses the type. */
#include <stdint.h>
#include <stdlib.h>

#include "tiercel/object.h"
#include "tiercel/type_list.h"
#include "tiercel/type_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void touch(void *arg, struct slice elem)
{
    size_t *sum = arg;
    *sum += elem.len + (elem.len ? (size_t)(unsigned char)elem.ptr[elem.len - 1] : 0);
}

static void use_list(struct object *o)
{
    struct plist *l = object_ptr(o);
    struct buf out;
    size_t sum = 0, len = plist_len(l);
    CHECK(len > 0 && plist_bytes(l) > 0);
    plist_range(l, 0, len - 1, touch, &sum);
    plist_range(l, len / 2, len - 1, touch, &sum);
    buf_init(&out, MEM_OTHER);
    while (len) {
        CHECK(plist_pop(l, len & 1, &out));
        CHECK(plist_len(l) == --len);
    }
    CHECK(!plist_pop(l, true, &out));
    buf_deinit(&out);
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
    if (type == OBJ_STRING) /* Redis's form can say the same in several ways */
        CHECK(slice_eq(buf_slice(&serial), in));
    buf_deinit(&serial);
    struct object *copy = object_copy(o, &key, 5, 0);
    if (type == OBJ_LIST)
        use_list(copy);
    else if (type == OBJ_STREAM)
        use_stream(copy);
    else
        use_string(copy, codec);
    object_free(copy);
    object_free(o);
    return 0;
}
