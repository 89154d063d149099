/* The serial form: garbage must be refused, and what is accepted must be usable and say the
 * same when it is serialised again. The first byte chooses the type. */
#include <stdint.h>
#include <stdlib.h>

#include "tiercel/object.h"
#include "tiercel/type_hash.h"
#include "tiercel/type_list.h"
#include "tiercel/type_set.h"

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
    else
        use_string(copy, codec);
    object_free(copy);
    object_free(o);
    return 0;
}
