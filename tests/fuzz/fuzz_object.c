/* The serial form: garbage must be refused, and what is accepted must be usable and say the
 * same when it is serialised again. The first byte chooses the type. */
#include <stdint.h>
#include <stdlib.h>

#include "tiercel/object.h"
#include "tiercel/type_list.h"

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

static void use_string(struct object *o, struct codec *codec)
{
    char scratch[OBJ_SCRATCH];
    struct slice plain;
    if (object_string(o, codec, scratch, &plain) == ST_OK)
        CHECK(plain.len == object_string_len(o));
    CHECK(object_encoding_name(o) != NULL);
}

/* Older forms are read, too; what is written is read and written as it is. */
static void same_again(enum obj_type type, const struct key *key, struct slice serial)
{
    struct object *o;
    struct buf again;

    CHECK(object_parse(type, key, serial, 0, 0, &o) == ST_OK);
    buf_init(&again, MEM_OTHER);
    object_serialise(o, &again);
    CHECK(slice_eq(buf_slice(&again), serial));
    buf_deinit(&again);
    object_free(o);
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
        same_again(type, &key, buf_slice(&serial));
    buf_deinit(&serial);
    struct object *copy = object_copy(o, &key, 5, 0);
    if (type == OBJ_LIST)
        use_list(copy);
    else
        use_string(copy, codec);
    object_free(copy);
    object_free(o);
    return 0;
}
