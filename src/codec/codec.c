#include "tiercel/codec.h"

#include <zstd.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"

/* A value this long is judged by a sample first. */
#define SAMPLE_FROM (16 * 1024)
#define SAMPLE_PART 2048
#define SAMPLE_PARTS 3
#define SAMPLE_LEVEL 1

/* Scratch memory above this is given back after use by a large value. */
#define SCRATCH_KEPT ((size_t)1 << 20)

/* A zstd block is at least 3 bytes and at most 128 KB plain: a frame that promises more than
 * this is damaged, and nobody allocates for it. */
#define RATIO_MAX (128 * 1024 / 3)

struct codec {
    ZSTD_CCtx *cctx;
    ZSTD_DCtx *dctx;
    char *scratch;
    size_t scratch_cap;
    char sample[SAMPLE_PARTS * SAMPLE_PART];
};

struct codec *codec_create(void)
{
    struct codec *c = mem_calloc(MEM_OTHER, sizeof(*c));
    c->cctx = ZSTD_createCCtx();
    c->dctx = ZSTD_createDCtx();
    CHECK(c->cctx && c->dctx);
    return c;
}

void codec_destroy(struct codec *c)
{
    if (!c)
        return;
    ZSTD_freeCCtx(c->cctx);
    ZSTD_freeDCtx(c->dctx);
    mem_free(MEM_OTHER, c->scratch);
    mem_free(MEM_OTHER, c);
}

static char *scratch_get(struct codec *c, size_t len)
{
    bool oversized = c->scratch_cap > SCRATCH_KEPT && len <= SCRATCH_KEPT;
    if (len > c->scratch_cap || oversized) {
        mem_free(MEM_OTHER, c->scratch); /* nothing in it is wanted: not a realloc */
        c->scratch = mem_alloc(MEM_OTHER, len);
        c->scratch_cap = len;
    }
    return c->scratch;
}

/* Does a quick look at the start, the middle and the end promise to save anything? A sample
 * compresses worse than the whole, so a sixteenth is enough. */
static bool sample_compresses(struct codec *c, struct slice plain)
{
    for (size_t i = 0; i < SAMPLE_PARTS; i++) {
        size_t from = (plain.len - SAMPLE_PART) / (SAMPLE_PARTS - 1) * i;
        memcpy(c->sample + i * SAMPLE_PART, plain.ptr + from, SAMPLE_PART);
    }
    size_t bound = sizeof(c->sample) - sizeof(c->sample) / 16;
    char *out = scratch_get(c, bound);
    return !ZSTD_isError(ZSTD_compressCCtx(c->cctx, out, bound, c->sample, sizeof(c->sample), SAMPLE_LEVEL));
}

struct rcbuf *codec_pack(struct codec *c, const struct codec_options *opt, struct slice plain)
{
    if (!opt->enabled || plain.len == 0 || plain.len < opt->threshold)
        return NULL;
    /* What codec_unpack_scratch() returned would be overwritten. */
    CHECK(plain.ptr + plain.len <= c->scratch || plain.ptr >= c->scratch + c->scratch_cap);
    if (plain.len >= SAMPLE_FROM && !sample_compresses(c, plain))
        return NULL;
    /* Room for what is worth keeping only: zstd gives up when it is full. */
    size_t bound = plain.len - (plain.len + 7) / 8;
    char *out = scratch_get(c, bound);
    size_t len = ZSTD_compressCCtx(c->cctx, out, bound, plain.ptr, plain.len, opt->level);
    if (ZSTD_isError(len))
        return NULL;
    struct rcbuf *packed = rcbuf_copy(SLICE(out, len));
    packed->raw_len = plain.len;
    return packed;
}

static bool frame_plausible(struct slice packed, size_t raw_len)
{
    if (raw_len == 0 || raw_len / RATIO_MAX > packed.len)
        return false;
    return ZSTD_getFrameContentSize(packed.ptr, packed.len) == raw_len;
}

static bool unpack_into(struct codec *c, char *out, size_t raw_len, struct slice packed)
{
    return ZSTD_decompressDCtx(c->dctx, out, raw_len, packed.ptr, packed.len) == raw_len;
}

struct rcbuf *codec_unpack(struct codec *c, struct slice packed, size_t raw_len)
{
    if (!frame_plausible(packed, raw_len))
        return NULL;
    struct rcbuf *plain = rcbuf_create(raw_len);
    if (unpack_into(c, plain->data, raw_len, packed))
        return plain;
    rcbuf_unref(plain);
    return NULL;
}

enum status codec_unpack_scratch(struct codec *c, struct slice packed, size_t raw_len, struct slice *plain)
{
    if (!frame_plausible(packed, raw_len))
        return ST_CORRUPT;
    char *out = scratch_get(c, raw_len);
    if (!unpack_into(c, out, raw_len, packed))
        return ST_CORRUPT;
    *plain = SLICE(out, raw_len);
    return ST_OK;
}
