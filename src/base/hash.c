#include "tiercel/hash.h"

#include <errno.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tiercel/check.h"

_Static_assert(sizeof(XXH3_state_t) <= sizeof(struct hash_stream), "hash_stream holds an XXH3 state");
_Static_assert(_Alignof(XXH3_state_t) <= _Alignof(struct hash_stream), "hash_stream is aligned as an XXH3 state");

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

void hash_stream_start(struct hash_stream *hs)
{
    XXH3_64bits_reset((XXH3_state_t *)(void *)hs->state);
}

void hash_stream_update(struct hash_stream *hs, const void *ptr, size_t len)
{
    if (len)
        XXH3_64bits_update((XXH3_state_t *)(void *)hs->state, ptr, len);
}

uint64_t hash_stream_end(struct hash_stream *hs)
{
    return XXH3_64bits_digest((const XXH3_state_t *)(const void *)hs->state);
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
