/* Which keys were asked for lately: a small table of fingerprints. It may forget, and so take a second touch for a
 * first one; one key in 2^32 may be taken for another. Both cost a fetch more or less, and nothing else. */
#include "tiercel/hash.h"
#include "tier_priv.h"

#define SETS 1024 /* per worker, of ... */
#define WAYS 4    /* so that two keys that come by turns do not drive each other out for ever */

bool tier_touch_twice(struct worker *w, const struct key *key)
{
    struct tier_worker *tw = w->tier_worker;

    if (!tw->touched)
        tw->touched = mem_calloc(MEM_OTHER, SETS * WAYS * sizeof(*tw->touched));
    uint32_t print = (uint32_t)key->hash | 1, *set = &tw->touched[(key->hash >> 32) % SETS * WAYS];
    uint64_t way = rng_next(&w->rng) % WAYS;
    for (uint64_t i = 0; i < WAYS; i++) {
        if (set[i] == print)
            return true;
        if (set[i] == 0)
            way = i;
    }
    set[way] = print;
    return false;
}
