/* The tier layer as a worker calls it, in one thread and without a network: resolve; on a hit touch;
 * on a miss make room and put. */
#include "hit_ratio.h"

#include <string.h>
#include <time.h>
#include <uv.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/codec.h"
#include "tiercel/conf.h"
#include "tiercel/mbox.h"
#include "tiercel/mem.h"
#include "tiercel/object.h"
#include "tiercel/stats.h"
#include "tiercel/tier.h"

#define SHARD_BITS 10 /* as the server's */
#define START_MS 1700000000000

struct cache {
    struct worker w;
    uv_loop_t loop;
    struct mem *mem;
    struct tier *tier;
    int64_t object_bytes;
};

static struct conf *default_conf(void)
{
    char name[] = "tiercel";
    char *argv[] = {name, NULL}, *envp[] = {NULL};
    struct conf *c = NULL;
    struct buf err;
    bool exit_now;

    buf_init(&err, MEM_OTHER);
    CHECK(conf_load(1, argv, envp, &c, &exit_now, &err) == ST_OK && c);
    buf_deinit(&err);
    return c;
}

static void cache_open(struct cache *cache, const struct replay *r)
{
    struct worker *w = &cache->w;

    memset(cache, 0, sizeof(*cache));
    w->conf = default_conf();
    w->conf->maxmemory = 0;
    w->conf->maxmemory_policy = r->policy;
    w->conf->maxmemory_samples = r->samples;
    w->conf->lfu_decay_time = 0; /* the reference has none */
    cache->mem = mem_create(SHARD_BITS, 1, 42, NULL);
    struct tier_options opt = {.mem = cache->mem, .nworkers = 1};
    cache->tier = tier_create(&opt, w->conf);
    CHECK(uv_loop_init(&cache->loop) == 0);
    w->loop = &cache->loop;
    w->mbox = mbox_create(&cache->loop, w);
    w->stats = stats_block_create();
    w->codec = codec_create();
    w->now_ms = START_MS;
    w->rng = 1;
    tier_worker_init(cache->tier, w, NULL);
}

static void cache_close(struct cache *cache)
{
    struct worker *w = &cache->w;

    tier_worker_stop(w);
    mbox_destroy(w->mbox);
    uv_run(&cache->loop, UV_RUN_DEFAULT);
    tier_worker_deinit(w);
    codec_destroy(w->codec);
    CHECK(uv_loop_close(&cache->loop) == 0);
    tier_destroy(cache->tier);
    mem_destroy(cache->mem);
    conf_unref(w->conf);
}

static int64_t cache_count(const struct cache *cache)
{
    return atomic_load_explicit(&cache->mem->db[0].keys, memory_order_relaxed);
}

/* Room for `capacity` objects, the new one among them: maxmemory is what the table takes now, and
 * that many objects at their real cost. So a table that grew takes no object's place, and shares mean
 * what they mean in the reference. */
static void make_room(struct cache *cache, uint64_t capacity)
{
    int64_t count = cache_count(cache);

    if (count < (int64_t)capacity)
        return;
    int64_t tables = mem_class_bytes(MEM_DATA) - count * cache->object_bytes;
    atomic_store(&cache->tier->limit.maxmemory, tables + ((int64_t)capacity - 1) * cache->object_bytes);
    do
        CHECK(tier_make_room(&cache->w) == ST_OK);
    while (cache_count(cache) >= (int64_t)capacity);
}

/* true: a hit. */
static bool cache_access(struct cache *cache, uint32_t number, uint64_t capacity)
{
    struct worker *w = &cache->w;
    char name[8] = "key:";
    struct tier_found found;
    struct key key;

    memcpy(name + 4, &number, sizeof(number));
    mem_key_init(cache->mem, 0, SLICE(name, sizeof(name)), &key);
    struct mem_shard *shard = mem_shard_of(cache->mem, key.hash);
    mem_lock(shard);
    CHECK(tier_resolve_locked(w, shard, &key, TIER_VALUE, NULL, &found) == ST_OK);
    if (found.obj)
        tier_touch_locked(w, found.obj);
    mem_unlock(shard);
    if (found.obj)
        return true;
    make_room(cache, capacity);
    struct object *o = object_new_string(&key, SLICE("value of", 8), 0, 0);
    cache->object_bytes = (int64_t)object_bytes(o);
    mem_lock(shard);
    tier_put_locked(w, shard, &key, o);
    mem_unlock(shard);
    return false;
}

static double cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

void replay_trace(const struct replay *r, struct replay_result *out)
{
    struct cache cache;
    double start;

    memset(out, 0, sizeof(*out));
    cache_open(&cache, r);
    start = cpu_ns();
    for (size_t i = 0; i < r->trace->len; i++) {
        cache.w.now_ms = START_MS + (int64_t)(i * 1000 / r->rate);
        if (!cache_access(&cache, r->trace->access[i].key, r->capacity))
            out->misses++;
        CHECK(cache_count(&cache) <= (int64_t)r->capacity);
    }
    out->ns = (cpu_ns() - start) / (double)r->trace->len;
    cache_close(&cache);
}
