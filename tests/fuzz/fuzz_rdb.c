/* What RESTORE is given: garbage must be refused, and what is accepted must say the same when it is written, read and
 * written again, in the encodings that it stands there with and in those of the limits. */
#include <stdint.h>
#include <stdlib.h>

#include "tiercel/rdb.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(struct object *o, const struct key *key)
{
    struct buf first, again, parts;
    struct object *back;
    struct object_parts at = {.at = 0};

    CHECK(object_bytes(o) > 0 && object_stored_len(o) + 1 > 0 && object_encoding_name(o) != NULL);
    CHECK(object_len(o) > 0 || o->type == OBJ_STREAM);
    buf_init(&first, MEM_OTHER);
    buf_init(&again, MEM_OTHER);
    buf_init(&parts, MEM_OTHER);
    object_serialise(o, &first);
    CHECK(object_parse(o->type, key, buf_slice(&first), 0, 0, &back) == ST_OK);
    CHECK(object_len(back) == object_len(o) && back->enc == o->enc);
    object_serialise(back, &again);
    CHECK(first.len == again.len);
    if (object_is_parted(o)) {
        while (!object_serialise_part(o, &at, 50, &parts))
            ;
        CHECK(slice_eq(buf_slice(&first), buf_slice(&parts)));
    }
    struct object *copy = object_copy(o, key, 0, 0);
    CHECK(object_len(copy) == object_len(o));
    object_free(copy);
    object_free(back);
    buf_deinit(&first);
    buf_deinit(&again);
    buf_deinit(&parts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct obj_limits lim = {.hash_entries = 4,
                                          .hash_value = 16,
                                          .set_intset = 4,
                                          .zset_entries = 4,
                                          .zset_value = 16,
                                          .list_size = 4,
                                          .stream_bytes = 200,
                                          .stream_entries = 4};
    struct key key = {.ptr = "key", .len = 3};
    char *exact = malloc(size ? size : 1); /* so that reading on is seen */

    memcpy(exact, data, size);
    for (int limited = 0; limited < 2; limited++) {
        struct object *o = rdb_parse(SLICE(exact, size), limited ? &lim : NULL, &key, 0, 0);
        if (o)
            use(o, &key);
        object_free(o);
    }
    free(exact);
    return 0;
}
