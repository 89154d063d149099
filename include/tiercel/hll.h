#ifndef TIERCEL_HLL_H
#define TIERCEL_HLL_H

#include <stdint.h>

#include "tiercel/buf.h"
#include "tiercel/slice.h"

/* HyperLogLog (Flajolet and others, 2007), estimated as Ertl does (https://arxiv.org/abs/1702.01284), in the form that
 * Redis keeps in a string, to the byte:
 *
 *   | "HYLL" | dense or sparse 1 | 0 3 | last estimate 8, its highest bit set: none | registers |
 *
 * Dense registers are 6 bits each. Sparse ones are runs: 00nnnnnn n + 1 zeros, 01nnnnnn nnnnnnnn n + 1 zeros, 1vvvvvnn
 * n + 1 registers of v + 1. No locks. */
#define HLL_REGISTERS 16384
#define HLL_HEAD 16
#define HLL_DENSE_LEN (HLL_HEAD + HLL_REGISTERS * 6 / 8)

void hll_new(struct buf *out); /* an empty one */
/* Does it begin as one? Its registers may still turn out to be none. */
bool hll_valid(struct slice s);
bool hll_is_dense(struct slice s);

/* A register of an element and the value that this one may have in it. */
void hll_place(struct slice elem, unsigned *reg, unsigned *value);
/* Raises a register; 1: it was lower, 0: it was not, -1: the registers are damaged. A sparse one may
 * become dense, at the latest when it is longer than sparse_max. */
int hll_raise(struct buf *hll, unsigned reg, unsigned value, size_t sparse_max);
void hll_to_dense(struct buf *hll); /* of one whose registers are whole */
/* Of a dense one, where it is. */
bool hll_dense_raise(char *hll, unsigned reg, unsigned value);
unsigned hll_dense_get(const char *hll, unsigned reg);
/* The runs of a sparse one for people, whether or not they make up the registers. */
void hll_sparse_text(struct slice s, struct buf *out);
/* Raises max[] to its registers. false: they are damaged. */
bool hll_merge(struct slice s, uint8_t max[HLL_REGISTERS]);

uint64_t hll_estimate(const uint8_t reg[HLL_REGISTERS]);
bool hll_cached(struct slice s, uint64_t *estimate);
void hll_set_cached(char *hll, uint64_t estimate);
void hll_forget_cached(char *hll);

#endif
