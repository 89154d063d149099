#include "tiercel/hash.h"

#include <errno.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tiercel/check.h"
#include "tiercel/pace.h"

uint64_t hash_key(uint64_t seed, uint32_t incarnation, struct slice key)
{
    /* Small incarnations differ in a few bits only; mixed, they make unrelated seeds. */
    uint64_t mix = incarnation;
    return XXH3_64bits_withSeed(key.ptr, key.len, seed ^ rng_next(&mix));
}

uint64_t hash_bytes(uint64_t seed, const void *ptr, size_t len)
{
    return XXH3_64bits_withSeed(ptr, len, seed);
}

#define PART (64 * 1024)

uint64_t hash_bytes_paced(uint64_t seed, const void *ptr, size_t len, struct pace *pace)
{
    XXH3_state_t state;

    if (!pace || len <= PART)
        return hash_bytes(seed, ptr, len);
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset_withSeed(&state, seed);
    for (size_t at = 0, n; at < len; at += n) {
        n = len - at < PART ? len - at : PART;
        XXH3_64bits_update(&state, (const char *)ptr + at, n);
        pace_spend(pace, n / 4);
    }
    return XXH3_64bits_digest(&state);
}

void random_bytes(void *ptr, size_t len)
{
    char *to = ptr;
    while (len) {
        ssize_t n = getrandom(to, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        CHECK(n > 0);
        to += n;
        len -= (size_t)n;
    }
}
