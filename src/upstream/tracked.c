/* How much of the upstream's tracking table is ours. A Redis forgets a key there when the key changes, or is pushed out of
 * a full table, and at no other time: not when tracking is turned off, nor when the connection closes (measured with
 * 7.0.15). So what has been read on `fetch`, less what invalidations named, is there yet.
 *
 * A name sets a bit, and an invalidation clears it; from how many bits are set follows about how many names there are
 * (linear counting). Names that share a bit make the figure a little too small. */
#include <math.h>

#include "tiercel/hash.h"
#include "upstream_priv.h"

#define BITS_MIN (1u << 16)
#define BITS_MAX (1u << 26)
#define BITS_EACH 8 /* of a name, at tracked_max */

static uint64_t bit_of(const struct upstream *up, struct slice name)
{
    return hash_bytes(0, name.ptr, name.len) & (up->tracked_size - 1);
}

static void set_count(struct upstream *up, unsigned set)
{
    double m = up->tracked_size, empty = set < up->tracked_size ? m - set : 1;

    up->tracked_set = set;
    atomic_store_explicit(&up->tracked, set ? (int64_t)(m * log(m / empty) + 0.5) : 0, memory_order_relaxed);
}

void tracked_add(struct upstream *up, struct slice name)
{
    if (up->trying != UPSTREAM_TRACKING)
        return;
    if (!up->tracked_bits) {
        up->tracked_size = BITS_MIN;
        while (up->tracked_size < BITS_MAX && up->tracked_size / BITS_EACH < up->opt.tracked_max)
            up->tracked_size *= 2;
        up->tracked_bits = mem_calloc(MEM_OTHER, up->tracked_size / 8);
    }
    uint64_t bit = bit_of(up, name);
    if (up->tracked_bits[bit / 8] & 1 << bit % 8)
        return;
    up->tracked_bits[bit / 8] |= (uint8_t)(1 << bit % 8);
    set_count(up, up->tracked_set + 1);
}

void tracked_remove(struct upstream *up, struct slice name)
{
    uint64_t bit = up->tracked_bits ? bit_of(up, name) : 0;

    if (!up->tracked_bits || !(up->tracked_bits[bit / 8] & 1 << bit % 8))
        return;
    up->tracked_bits[bit / 8] &= (uint8_t) ~(1 << bit % 8);
    set_count(up, up->tracked_set - 1);
}

void tracked_reset(struct upstream *up)
{
    mem_free(MEM_OTHER, up->tracked_bits);
    up->tracked_bits = NULL;
    up->tracked_set = 0;
    atomic_store_explicit(&up->tracked, 0, memory_order_relaxed);
}

int64_t upstream_tracked(const struct upstream *up)
{
    return atomic_load_explicit(&up->tracked, memory_order_relaxed);
}
