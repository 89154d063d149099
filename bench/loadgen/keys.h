#ifndef LOADGEN_KEYS_H
#define LOADGEN_KEYS_H

#include <stdbool.h>
#include <stdint.h>

/* Which key is asked for next. Keys are numbers from 0 to count - 1. */
enum key_order { KEYS_SEQUENTIAL, KEYS_UNIFORM, KEYS_ZIPF };

/* Zipf's law by rejection-inversion (Hoermann and Derflinger 1996): any exponent above 0, no table.
 * https://doi.org/10.1145/235025.235029 */
struct zipf {
    double exponent, h_first, h_last, s;
};

struct key_source {
    enum key_order order;
    uint64_t count;
    uint64_t first, end, next; /* sequential: this thread's share */
    bool again;                /* it has begun anew, or has no share of its own and takes any */
    uint64_t rng;
    uint64_t factor; /* Zipf: spreads the ranks over the keys */
    struct zipf zipf;
};

/* Thread `part` of `parts`. `exponent` is for KEYS_ZIPF. */
void keys_init(struct key_source *k, enum key_order order, uint64_t count, double exponent, uint64_t seed,
               unsigned part, unsigned parts);
uint64_t keys_next(struct key_source *k);
/* Sequential: every key of the share was given out (it would begin again). */
static inline bool keys_exhausted(const struct key_source *k)
{
    return k->next == k->end || k->again;
}

/* The most likely rank is 0. */
uint64_t zipf_rank(const struct zipf *z, uint64_t count, uint64_t *rng);

#endif
