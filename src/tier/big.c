/* Demotion of large values of many elements. To serialise a million of them takes longer than anybody may hold a
 * shard's lock, so a thread of its own does it in parts, with rests (pace.h), which it leaves out while writers wait for
 * the memory. Whoever reads or changes the object meanwhile clears OBJ_F_LEAVING, and it stays. Whoever has it, or another
 * one at its address, leave anew says so (tier_big_leaves_locked()): what was serialised is not worth anything then. */
#include "tiercel/pace.h"
#include "tier_priv.h"

struct big {
    struct list link;
    uint64_t hash;
    const struct object *obj; /* only compared, but when it is found in the table */
    int64_t bytes;
};

struct tier_big {
    pthread_mutex_t mu; /* guards `queue`; below the shard locks */
    pthread_cond_t wake;
    struct list queue;
    _Atomic bool stop; /* set under `mu` */
    pthread_t thread;
    _Atomic(const struct object *) current; /* what is being serialised; compared under its shard's lock */
    _Atomic bool stale;
    _Atomic(const struct object *) refused; /* what the disk did not take: the loops see to it, as to what is small */
    struct stats_block *stats;
};

bool tier_is_big(const struct tier *t, const struct object *o)
{
    return o->type != OBJ_STRING && t->big && object_stored_len(o) >= TIER_BIG_BYTES &&
           atomic_load_explicit(&t->big->refused, memory_order_relaxed) != o;
}

void tier_big_leaves_locked(struct tier *t, const struct object *o)
{
    if (UNLIKELY(t->big && atomic_load_explicit(&t->big->current, memory_order_relaxed) == o))
        atomic_store(&t->big->stale, true);
}

void tier_demote_big_locked(struct tier *t, const struct key *key, struct object *o)
{
    struct tier_big *b = t->big;
    struct big *job = mem_alloc(MEM_OTHER, sizeof(*job));

    *job = (struct big){.hash = key->hash, .obj = o, .bytes = (int64_t)object_bytes(o)};
    tier_big_leaves_locked(t, o);
    o->flags |= OBJ_F_LEAVING;
    atomic_fetch_add_explicit(&t->demoting_bytes, job->bytes, memory_order_relaxed);
    pthread_mutex_lock(&b->mu);
    list_push_back(&b->queue, &job->link);
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->mu);
}

/* The object, if it still is to leave. */
static struct object *job_object_locked(struct tier *t, struct mem_shard *shard, const struct big *job)
{
    mem_slot *slot = mem_find_object_locked(t->mem, shard, job->hash, job->obj);
    struct object *o = slot ? mem_object(*slot) : NULL;

    if (!o || o->type == OBJ_RESIDENCY || !(o->flags & OBJ_F_LEAVING) || mem_object_hash(t->mem, o) != job->hash ||
        mem_db_of(t->mem, o->inc) < 0 || !object_is_parted(o) || atomic_load(&t->big->stale))
        return NULL;
    return o;
}

/* Appends it, now that all of it is in `serial`. */
static void job_append_locked(struct tier *t, struct object *o, struct rcbuf *serial)
{
    struct disk_record rec;
    struct key key;

    mem_object_key(t->mem, o, &key);
    tier_fill_head(t, &key, o, &rec);
    rec.payload_ref = serial;
    if (tier_append_leaving_locked(t, t->big->stats, o, &rec) == ST_OK)
        return;
    o->flags &= (uint8_t)~OBJ_F_LEAVING; /* when it is picked again, there is room, or it is dropped */
    atomic_store(&t->big->refused, o);
}

static bool big_hurry(void *arg)
{
    struct tier *t = arg;

    return atomic_load_explicit(&t->room_waiting, memory_order_relaxed) > 0 || atomic_load(&t->big->stop);
}

/* A step of a job: its next part, or after the last one its end. false: the job is over. */
static bool job_step(struct tier *t, const struct big *job, struct tier_parts *parts)
{
    struct mem_shard *shard = tier_shard_of(t, job->hash);

    mem_lock(shard);
    struct object *o = job_object_locked(t, shard, job);
    bool more = o && !parts->last;
    if (more)
        tier_parts_next_locked(parts, o);
    else if (o)
        job_append_locked(t, o, parts->whole);
    mem_unlock(shard);
    return more;
}

static void job_run(struct tier *t, const struct big *job)
{
    struct pace pace = {.hurry = big_hurry, .arg = t};
    struct tier_parts parts;

    tier_parts_init(&parts, t);
    atomic_store(&t->big->stale, false);
    atomic_store(&t->big->current, job->obj);
    pace_begin(&pace);
    while (!atomic_load(&t->big->stop) && job_step(t, job, &parts))
        tier_parts_take(&parts, &pace);
    atomic_store(&t->big->current, NULL);
    tier_parts_deinit(&parts);
}

static void *big_main(void *arg)
{
    struct tier *t = arg;
    struct tier_big *b = t->big;
    struct list *l;

    pthread_setname_np(pthread_self(), "demote-big");
    pace_thread_init();
    pthread_mutex_lock(&b->mu);
    while (!atomic_load(&b->stop)) {
        l = list_pop_front(&b->queue);
        if (!l) {
            pthread_cond_wait(&b->wake, &b->mu);
            continue;
        }
        pthread_mutex_unlock(&b->mu);
        struct big *job = LIST_ENTRY(l, struct big, link);
        job_run(t, job);
        atomic_fetch_sub_explicit(&t->demoting_bytes, job->bytes, memory_order_relaxed);
        mem_free(MEM_OTHER, job);
        tier_wake_room(t);
        pthread_mutex_lock(&b->mu);
    }
    pthread_mutex_unlock(&b->mu);
    return NULL;
}

bool tier_big_start(struct tier *t)
{
    struct tier_big *b = mem_calloc(MEM_OTHER, sizeof(*b));

    pthread_mutex_init(&b->mu, NULL);
    pthread_cond_init(&b->wake, NULL);
    list_init(&b->queue);
    b->stats = stats_block_create();
    t->big = b;
    if (pthread_create(&b->thread, NULL, big_main, t) == 0)
        return true;
    t->big = NULL;
    mem_free(MEM_OTHER, b);
    return false;
}

void tier_big_stop(struct tier *t)
{
    struct tier_big *b = t->big;
    struct list *l;

    if (!b)
        return;
    pthread_mutex_lock(&b->mu);
    atomic_store(&b->stop, true);
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->mu);
    pthread_join(b->thread, NULL);
    while ((l = list_pop_front(&b->queue)))
        mem_free(MEM_OTHER, LIST_ENTRY(l, struct big, link));
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->mu);
    mem_free(MEM_OTHER, b);
    t->big = NULL;
}
