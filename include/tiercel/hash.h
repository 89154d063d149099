#ifndef TIERCEL_HASH_H
#define TIERCEL_HASH_H

#include <stdint.h>

#include "tiercel/slice.h"

/* XXH3, 64 bits (https://xxhash.com). The seed makes the order of keys unpredictable to
 * clients; `incarnation` puts equal names of different databases at different places. */
uint64_t hash_key(uint64_t seed, uint32_t incarnation, struct slice key);
uint64_t hash_bytes(uint64_t seed, const void *ptr, size_t len);
/* The same of much, in slices (pace.h). */
struct pace;
uint64_t hash_bytes_paced(uint64_t seed, const void *ptr, size_t len, struct pace *pace);

/* A small generator (splitmix64) for sampling and jitter; not for secrets. */
static inline uint64_t rng_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* Fills `ptr` from the system's source of secrets (getrandom); aborts if there is none. */
void random_bytes(void *ptr, size_t len);

#endif
