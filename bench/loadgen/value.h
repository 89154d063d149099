#ifndef LOADGEN_VALUE_H
#define LOADGEN_VALUE_H

#include <stdint.h>

#include "tiercel/slice.h"

/* Values that tell which key they belong to, so that any later run can check them: a value follows from
 * its key, its size and a version that is written in it. */
enum value_kind {
    VALUE_RANDOM, /* does not compress: 8 bytes of version and check, then noise */
    VALUE_JSON    /* compresses as JSON does: {"key":...,"version":...,"rows":[rows of prices]} */
};

#define VALUE_TAG 8 /* a shorter value carries no version */

/* Sizes of values: one, an even range, or a choice with weights. */
#define VALUE_SIZES_MAX 32
struct value_sizes {
    uint64_t min, max; /* of all */
    unsigned choices;  /* 0: evenly from min to max */
    uint64_t size[VALUE_SIZES_MAX];
    uint64_t upto[VALUE_SIZES_MAX]; /* running sum of the weights */
};

/* "100", "100-2000" or "64:70,1kb:25,64kb:5". */
bool value_sizes_parse(const char *text, struct value_sizes *out);
/* The size of a key's values: the same at every write. */
uint64_t value_size(const struct value_sizes *s, uint64_t key_hash);

struct value_source;
/* Read only once made: all threads share one. */
struct value_source *value_source_create(enum value_kind kind);
void value_source_destroy(struct value_source *v);

uint64_t value_key_hash(struct slice key);
/* Writes `size` bytes. A JSON value too small for its frame is a random one. */
void value_write(const struct value_source *v, char *out, size_t size, struct slice key, uint32_t version);
/* NULL, or what is wrong with the value. `scratch` has room for size bytes. */
const char *value_check(const struct value_source *v, struct slice value, struct slice key, char *scratch);

#endif
