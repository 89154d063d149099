/* Which keys of the upstream are worth having whole: those of which parts were read here twice (HGET, LRANGE, ...). They
 * are fetched in the background, if they are not too large; nobody waits for it. */
#include "tiercel/hash.h"
#include "tiercel/num.h"
#include "tier_priv.h"

#define TOUCH_SETS 1024 /* of TOUCH_WAYS keys, which each worker remembers */
#define TOUCH_WAYS 4
#define TOUCH_FETCH 2     /* reads until the value is asked for */
#define TOUCH_AGAIN 64    /* more reads until it is asked for again, where that brought nothing */
#define TOUCH_BYTES 16384 /* one more read for so many bytes, where the copy was dropped by a write */
#define WANTS_MAX 16      /* fetches of a worker under way */
#define UNREADABLE_S 60   /* how long what cannot be read is left alone */

struct touch {
    uint32_t tag;
    uint32_t quiet_until_s; /* wall clock; 0 = not */
    uint16_t left;          /* reads until it is asked for */
};

/* The size of a key is being asked for. */
struct want {
    struct upstream_call call;
    struct worker *w;
    struct key key; /* ptr: name */
    char name[];
};

/* NULL: it is not remembered. */
static struct touch *touch_find(struct tier_worker *tw, uint64_t hash)
{
    if (UNLIKELY(!tw->touches))
        tw->touches = mem_calloc(MEM_OTHER, TOUCH_SETS * TOUCH_WAYS * sizeof(*tw->touches));
    struct touch *set = &tw->touches[(hash >> 32) % TOUCH_SETS * TOUCH_WAYS];
    for (int i = 0; i < TOUCH_WAYS; i++)
        if (set[i].tag == (uint32_t)hash && set[i].left != 0)
            return &set[i];
    return NULL;
}

/* In the place of any of its set: two keys that are read by turns must not drive each other out for ever. */
static struct touch *touch_add(struct worker *w, uint64_t hash)
{
    struct touch *t = touch_find(w->tier_worker, hash);

    if (!t)
        t = &w->tier_worker->touches[(hash >> 32) % TOUCH_SETS * TOUCH_WAYS + rng_next(&w->rng) % TOUCH_WAYS];
    *t = (struct touch){.tag = (uint32_t)hash, .left = TOUCH_FETCH};
    return t;
}

/* true: it is time to fetch it. */
static bool touched(struct worker *w, uint64_t hash)
{
    struct touch *t = touch_find(w->tier_worker, hash);

    if (!t)
        t = touch_add(w, hash);
    if (t->quiet_until_s > w->now_ms / 1000)
        return false;
    if (--t->left > 0)
        return false;
    t->left = TOUCH_AGAIN;
    return true;
}

void tier_want_unreadable(struct worker *w, uint64_t hash)
{
    stats_inc(w->stats, STAT_tier_upstream_unreadable);
    touch_add(w, hash)->quiet_until_s = (uint32_t)(w->now_ms / 1000) + UNREADABLE_S;
}

void tier_want_fetched(struct worker *w, uint64_t hash, size_t bytes)
{
    struct touch *t = touch_find(w->tier_worker, hash);
    size_t left = TOUCH_FETCH + bytes / TOUCH_BYTES;

    if (t)
        t->left = (uint16_t)(left < TOUCH_AGAIN ? left : TOUCH_AGAIN);
}

void tier_want_over(struct worker *w)
{
    w->tier_worker->wants--;
}

/* Its turn was in vain: at the next read. */
static void postpone(struct worker *w, uint64_t hash)
{
    struct touch *t = touch_find(w->tier_worker, hash);

    if (t)
        t->left = 1;
}

static void size_known(struct upstream_call *call, enum status st, struct slice reply, bool is_error, bool sent)
{
    struct want *want = LIST_ENTRY(call, struct want, call);
    struct worker *w = want->w;
    int64_t size = 0;
    (void)sent;

    /* An upstream that does not tell (a proxy, a user without the permission) is asked for the value itself. */
    if (st == ST_OK && !is_error && reply.len > 3 && reply.ptr[0] == ':')
        (void)num_parse_i64(SLICE(reply.ptr + 1, reply.len - 3), &size);
    struct rule_values rule;
    tier_rules(w, key_slice(&want->key), &rule);
    if (st != ST_OK || size > rule.value[RULE_MAX_OBJECT] || !tier_fetch_whole(w, &want->key))
        tier_want_over(w);
    atomic_fetch_sub(&w->tier->fetches, 1);
    mem_free(MEM_CLIENT, want);
}

static void ask_size(struct worker *w, const struct key *key)
{
    struct want *want = mem_calloc(MEM_CLIENT, sizeof(*want) + key->len);
    struct slice argv[] = {SLICE_LIT("MEMORY"), SLICE_LIT("USAGE"), SLICE(want->name, key->len)};

    want->w = w;
    want->key = *key;
    want->key.ptr = want->name;
    memcpy(want->name, key->ptr, key->len);
    want->call.done = size_known;
    atomic_fetch_add(&w->tier->fetches, 1);
    stats_inc(w->stats, STAT_tier_upstream_requests);
    upstream_call(w->tier_worker->up, &want->call, UPSTREAM_RESP2, key->db, 3, argv);
}

enum held { HELD_NOTHING, HELD_OLD, HELD };

/* What is here of it: nothing, what may be old, or all that is needed (or on its way). */
static enum held what_is_held(struct worker *w, const struct key *key)
{
    struct tier *t = w->tier;
    struct mem_shard *shard = tier_shard_of(t, key->hash);
    enum held held = HELD_NOTHING;
    uint32_t block;
    bool has_expire;

    mem_lock(shard);
    mem_slot *slot = mem_find_locked(t->mem, shard, key);
    struct object *o = slot ? mem_object(*slot) : NULL;
    struct residency *r = o && o->type == OBJ_RESIDENCY ? residency_of(o) : NULL;
    if (r)
        o = r->value;
    if (r && r->fetching) {
        held = HELD;
    } else if (o) {
        switch (tier_liveness(w, o)) {
        case LIVE:
        case AGING:
        case STALE:
        case NEGATIVE_LIVE: held = HELD; break;
        case OLD:
        case SUSPECT: held = HELD_OLD; break;
        case GONE: break;
        }
    } else if (t->disk && disk_find_locked(t->disk, key->hash, &block, &has_expire)) {
        held = HELD_OLD;
    }
    mem_unlock(shard);
    return held;
}

void tier_want(struct worker *w, const struct key *key)
{
    struct tier_worker *tw = w->tier_worker;

    if (!tw->up || upstream_generation(tw->up) == 0)
        return;
    enum held held = what_is_held(w, key);
    if (held == HELD || !(touched(w, key->hash) || held == HELD_OLD))
        return;
    if (tw->wants == WANTS_MAX) {
        postpone(w, key->hash);
        return;
    }
    tw->wants++;
    if (held == HELD_NOTHING)
        ask_size(w, key);
    else if (!tier_fetch_whole(w, key)) /* it was worth it before, and not too large */
        tier_want_over(w);
}
