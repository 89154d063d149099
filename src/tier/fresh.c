/* Freshness: how long rules let a copy of an upstream key be used, and when it is refreshed. A copy's origin carries
 * the time from which a hit has to look at its rule: the end of its ttl, less the part of refresh-ahead. Before it a
 * hit costs one comparison. The upstream's expiry is another matter, and stays exact. */
#include "tier_priv.h"

#define STAMP_UNIT_BITS 4 /* 16 ms */
#define STAMP_MASK ((1u << ORIGIN_STAMP_BITS) - 1)

#define REFRESH_RETRY_MS 1000 /* after a failed refresh of a key, until the next one */

/* ---- the stamp: units of wall time, modulo 2^30 (199 days; half of it lies ahead, RULE_MS_MAX is less) ---- */

static uint32_t stamp_of(int64_t ms)
{
    uint32_t stamp = (uint32_t)((ms + (1 << STAMP_UNIT_BITS) - 1) >> STAMP_UNIT_BITS) & STAMP_MASK;
    return stamp ? stamp : 1;
}

/* From now until then; negative: it is over. */
static int64_t stamp_ahead_ms(uint64_t origin, int64_t now_ms)
{
    uint32_t now = (uint32_t)(now_ms >> STAMP_UNIT_BITS), diff = ((uint32_t)origin - now) & STAMP_MASK;
    int64_t units = diff > STAMP_MASK / 2 ? (int64_t)diff - STAMP_MASK - 1 : diff;
    return units * (1 << STAMP_UNIT_BITS);
}

bool tier_stamp_reached(uint64_t origin, int64_t now_ms)
{
    return stamp_ahead_ms(origin, now_ms) <= 0;
}

/* ---- what the rules say ---- */

void tier_rules(struct worker *w, struct slice name, struct rule_values *out)
{
    rules_values(w->conf, name, out);
    if (!out->rule || !out->rule->given[RULE_NEGATIVE_TTL])
        out->value[RULE_NEGATIVE_TTL] = atomic_load_explicit(&w->tier->limit.negative_ttl_ms, memory_order_relaxed);
    if (!out->rule || !out->rule->given[RULE_STALE_ERROR])
        out->value[RULE_STALE_ERROR] = atomic_load_explicit(&w->tier->limit.stale_if_error_ms, memory_order_relaxed);
    if (!out->rule || !out->rule->given[RULE_MAX_OBJECT])
        out->value[RULE_MAX_OBJECT] = atomic_load_explicit(&w->tier->limit.upstream_max_object, memory_order_relaxed);
}

/* How long a copy of this key is fresh; 0: as long as it is coherent. Keys that were fetched together do not go stale
 * together: each has its own share of the jitter. */
static int64_t fresh_ms(const struct rule_values *v, uint64_t hash)
{
    int64_t ttl = v->value[RULE_TTL], most = ttl * v->value[RULE_TTL_JITTER] / 100;

    return ttl - most * (int64_t)((hash * 0x9e3779b97f4a7c15u) >> 48) / 65536;
}

static int64_t ahead_ms(const struct rule_values *v, int64_t ttl)
{
    return ttl * v->value[RULE_REFRESH_AHEAD] / 100;
}

uint64_t tier_fresh_origin(struct worker *w, const struct key *key, const struct rule_values *v, uint32_t generation,
                           int64_t since_ms)
{
    int64_t ttl = fresh_ms(v, key->hash);

    return tier_origin(w->id, generation) | (ttl > 0 ? stamp_of(since_ms + ttl - ahead_ms(v, ttl)) : 0);
}

/* The object's rule, and when its ttl ends, from now. false: no ttl holds for it any more. */
static bool look_up(struct worker *w, const struct object *o, struct rule_values *v, int64_t *left_ms)
{
    struct key key;

    mem_object_key(w->tier->mem, o, &key);
    tier_rules(w, key_slice(&key), v);
    int64_t ttl = fresh_ms(v, key.hash);
    if (ttl == 0)
        return false;
    *left_ms = stamp_ahead_ms(object_origin(o), w->now_ms) + ahead_ms(v, ttl);
    return true;
}

enum liveness tier_age(struct worker *w, const struct object *o)
{
    struct rule_values v;
    int64_t left;

    if (!look_up(w, o, &v, &left))
        return LIVE;
    if (left > 0)
        return AGING;
    return -left < v.value[RULE_STALE_REFRESH] ? STALE : OLD;
}

/* May a copy that is no longer good be served because the upstream does not answer? A suspect for a time after its link
 * was lost, and not past a restart; one that is merely too old, for a time after it became so. */
bool tier_stale_allowed(struct worker *w, const struct object *o)
{
    const struct tier *t = w->tier;
    uint64_t origin = object_origin(o);
    uint32_t worker = tier_origin_worker(origin);
    struct rule_values v;
    int64_t left = 0, age;

    if (worker >= (uint32_t)t->nworkers)
        return false;
    if (tier_origin_current(t, origin)) {
        if (!look_up(w, o, &v, &left))
            return true;
        age = -left - v.value[RULE_STALE_REFRESH];
    } else {
        int64_t lost = atomic_load_explicit(&t->lost_ms[worker], memory_order_relaxed);
        if (lost == 0)
            return false;
        tier_rules(w, object_key(o), &v);
        age = w->now_ms - lost; /* now_ms may be older than the loss */
    }
    return v.value[RULE_STALE_ERROR] > 0 && age < v.value[RULE_STALE_ERROR];
}

/* ---- refreshes that failed ---- */

static struct refresh_failure *failure_slot(struct tier_worker *tw, uint64_t hash)
{
    return &tw->refresh_failure[(hash >> 20) % REFRESH_FAILURES];
}

bool tier_refresh_waits(struct worker *w, uint64_t hash)
{
    const struct refresh_failure *f = failure_slot(w->tier_worker, hash);

    return f->hash == hash && w->now_ms < f->until_ms && f->until_ms - w->now_ms <= REFRESH_RETRY_MS;
}

void tier_refresh_failed(struct worker *w, uint64_t hash)
{
    *failure_slot(w->tier_worker, hash) = (struct refresh_failure){hash, w->now_ms + REFRESH_RETRY_MS};
    stats_inc(w->stats, STAT_tier_refresh_failures);
}
