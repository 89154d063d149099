/* Which keys were asked for lately: a small table of fingerprints. It may forget, and so take a second touch for a
 * first one; one key in 2^32 may be taken for another. Both cost a fetch more or less, and nothing else. */
#include "tier_priv.h"

#define TOUCHES 4096 /* per worker */

bool tier_touch_twice(struct worker *w, const struct key *key)
{
    struct tier_worker *tw = w->tier_worker;

    if (!tw->touched)
        tw->touched = mem_calloc(MEM_OTHER, TOUCHES * sizeof(*tw->touched));
    uint32_t print = (uint32_t)key->hash | 1, *slot = &tw->touched[(key->hash >> 32) % TOUCHES];
    if (*slot == print)
        return true;
    *slot = print;
    return false;
}
