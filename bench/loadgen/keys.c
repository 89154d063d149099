#include "keys.h"

#include <math.h>
#include <string.h>

#include "tiercel/hash.h"

/* ---- Zipf; names as in the paper ---- */

/* log1p(x) / x and expm1(x) / x, right at 0 too */
static double log1p_over(double x)
{
    return fabs(x) > 1e-8 ? log1p(x) / x : 1 - x * (0.5 - x * (1.0 / 3 - 0.25 * x));
}

static double expm1_over(double x)
{
    return fabs(x) > 1e-8 ? expm1(x) / x : 1 + x * 0.5 * (1 + x * (1.0 / 3) * (1 + 0.25 * x));
}

static double h(const struct zipf *z, double x)
{
    return exp(-z->exponent * log(x));
}

static double h_integral(const struct zipf *z, double x)
{
    double log_x = log(x);
    return expm1_over((1 - z->exponent) * log_x) * log_x;
}

static double h_integral_inverse(const struct zipf *z, double x)
{
    double t = x * (1 - z->exponent);
    if (t < -1)
        t = -1; /* rounding */
    return exp(log1p_over(t) * x);
}

static void zipf_init(struct zipf *z, double exponent, uint64_t count)
{
    z->exponent = exponent;
    z->h_first = h_integral(z, 1.5) - 1;
    z->h_last = h_integral(z, (double)count + 0.5);
    z->s = 2 - h_integral_inverse(z, h_integral(z, 2.5) - h(z, 2));
}

uint64_t zipf_rank(const struct zipf *z, uint64_t count, uint64_t *rng)
{
    for (;;) {
        double u = z->h_last + (double)(rng_next(rng) >> 11) * 0x1p-53 * (z->h_first - z->h_last);
        double x = h_integral_inverse(z, u);
        double k = floor(x + 0.5);
        if (k < 1)
            k = 1;
        else if (k > (double)count)
            k = (double)count;
        if (k - x <= z->s || u >= h_integral(z, k + 0.5) - h(z, k))
            return (uint64_t)k - 1;
    }
}

/* ---- all orders ---- */

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

void keys_init(struct key_source *k, enum key_order order, uint64_t count, double exponent, uint64_t seed,
               unsigned part, unsigned parts)
{
    memset(k, 0, sizeof(*k));
    k->order = order;
    k->count = count;
    k->first = k->next = count / parts * part + (part < count % parts ? part : count % parts);
    k->end = k->first + count / parts + (part < count % parts);
    if (k->first == k->end) {
        k->first = k->next = 0;
        k->end = count;
        k->again = true;
    }
    k->rng = seed ^ (part + 1) * 0x9e3779b97f4a7c15ULL;
    rng_next(&k->rng);
    /* Coprime to the count, so that ranks and keys correspond one to one. */
    for (k->factor = (uint64_t)((double)count * 0.6180339887498949) | 1; gcd(k->factor, count) != 1;)
        k->factor++;
    if (order == KEYS_ZIPF)
        zipf_init(&k->zipf, exponent, count);
}

uint64_t keys_next(struct key_source *k)
{
    switch (k->order) {
    case KEYS_SEQUENTIAL:
        if (k->next == k->end) {
            k->next = k->first;
            k->again = true;
        }
        return k->next++;
    case KEYS_ZIPF: return (uint64_t)((unsigned __int128)zipf_rank(&k->zipf, k->count, &k->rng) * k->factor % k->count);
    default: return (uint64_t)((unsigned __int128)rng_next(&k->rng) * k->count >> 64);
    }
}
