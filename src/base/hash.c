#include "tiercel/hash.h"

#include <errno.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tiercel/check.h"

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
