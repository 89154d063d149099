#ifndef TIERCEL_NUM_H
#define TIERCEL_NUM_H

#include <stdint.h>

#include "tiercel/slice.h"

#define NUM_I64_MAX 21   /* longest text of an int64, without a NUL */
#define NUM_F64_MAX 5120 /* longest text num_format_f64_human() writes */
#define NUM_F64_SHORT 32 /* longest text num_format_f64() writes */

/* Strict, as Redis reads numbers of clients: no spaces, no '+', no leading zeros. */
bool num_parse_i64(struct slice s, int64_t *out);
bool num_parse_u64(struct slice s, uint64_t *out);

/* A finite or infinite long double, whole input, no spaces, no NaN (INCRBYFLOAT). */
bool num_parse_f64(struct slice s, long double *out);
/* The same of a double (scores). */
bool num_parse_double(struct slice s, double *out);

/* Return the length written; no NUL is added. */
size_t num_format_i64(char out[NUM_I64_MAX], int64_t v);
size_t num_format_u64(char out[NUM_I64_MAX], uint64_t v);

/* 17 significant digits: %.17g, as scores are written. */
size_t num_format_f64(char out[NUM_F64_SHORT], double v);
/* 17 digits after the point with trailing zeros removed, as INCRBYFLOAT stores. */
size_t num_format_f64_human(char out[NUM_F64_MAX], long double v);

/* "64mb", "1gb", "1k" (1000) and "1kb" (1024) as redis.conf knows them, optional '%' not. */
bool num_parse_bytes(struct slice s, uint64_t *out);

#endif
