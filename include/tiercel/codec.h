#ifndef TIERCEL_CODEC_H
#define TIERCEL_CODEC_H

#include "tiercel/rcbuf.h"
#include "tiercel/slice.h"
#include "tiercel/status.h"

/* zstd for large values. Contexts are costly to make, so each thread makes one codec and
 * keeps it. A packed value is one zstd frame; rcbuf.raw_len holds its plain length. */
struct codec;

struct codec *codec_create(void);
void codec_destroy(struct codec *c);

struct codec_options {
    bool enabled;
    size_t threshold; /* shorter values are never tried */
    int level;
};

/* A packed copy when that saves at least an eighth; NULL when it does not, when the value
 * is under the threshold, or when a sample of it (start, middle, end) says that it will not.
 * The codec's own thread. */
struct rcbuf *codec_pack(struct codec *c, const struct codec_options *opt, struct slice plain);

/* The plain bytes of a frame of `raw_len` bytes: a new rcbuf, or NULL when it is damaged. */
struct rcbuf *codec_unpack(struct codec *c, struct slice packed, size_t raw_len);

/* As codec_unpack, into the codec's own scratch memory, valid until its next call. */
enum status codec_unpack_scratch(struct codec *c, struct slice packed, size_t raw_len, struct slice *plain);

/* Packs a file into one zstd frame with a checksum, in a file of the same mode, which is on the medium when it says
 * true. Any thread; takes 1 MB or so. false: errno, and `to` may be there in part. */
bool codec_pack_file(const char *from, const char *to);

#endif
