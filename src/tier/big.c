/* Demotion of large values of many elements. To serialise a million of them takes longer than anybody may hold a
 * shard's lock, so a thread of its own does it in parts, with rests (pace.h), which it leaves out while writers wait for
 * the memory. Whoever reads or changes the object meanwhile clears
 * OBJ_F_LEAVING, and it stays. Whoever has it, or another one at its address, leave anew says so (big_stale): what was
 * serialised is not worth anything then. */
#include "tiercel/pace.h"
#include "tier_priv.h"

#define BIG_BYTES (256 * 1024) /* of the serial form; smaller ones are serialised at once */
#define BIG_STEP (4 * 1024)    /* of it, under one hold of the lock */
#define BIG_STEP_UNITS 30000   /* what that takes, for pace_spend() */

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
    return o->type != OBJ_STRING && t->big && object_stored_len(o) >= BIG_BYTES &&
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

/* The serial form as it grows, in the buffer that the disk's queue will hold. */
struct growing {
    struct tier *t;
    struct rcbuf *whole; /* NULL: nothing yet */
    size_t len;
};

/* It is freed, or queued, soon: no reason to evict others for it. */
static void growing_size(struct growing *g, size_t size)
{
    size_t before = g->whole ? g->whole->len : 0;

    atomic_fetch_add_explicit(&g->t->demoting_bytes, (int64_t)size - (int64_t)before, memory_order_relaxed);
    g->whole = g->whole ? rcbuf_resize(g->whole, size) : rcbuf_create(size);
}

static void growing_add(struct growing *g, struct slice part)
{
    if (g->len + part.len > g->whole->len)
        growing_size(g, g->len + part.len + g->len / 4);
    memcpy(g->whole->data + g->len, part.ptr, part.len);
    g->len += part.len;
}

static void growing_end(struct growing *g)
{
    if (g->whole)
        atomic_fetch_sub_explicit(&g->t->demoting_bytes, (int64_t)g->whole->len, memory_order_relaxed);
    rcbuf_unref(g->whole);
}

static bool big_hurry(void *arg)
{
    struct tier *t = arg;

    return atomic_load_explicit(&t->room_waiting, memory_order_relaxed) > 0 || atomic_load(&t->big->stop);
}

/* A step of a job, under the lock: its next part, or with `last` its end. NULL: it is not to leave any more. */
static struct object *job_step(struct tier *t, const struct big *job, struct object_parts *parts, struct buf *part,
                               struct growing *g, bool *last)
{
    struct mem_shard *shard = tier_shard_of(t, job->hash);
    size_t about = 0;

    part->len = 0;
    mem_lock(shard);
    struct object *o = job_object_locked(t, shard, job);
    bool end = *last;
    if (o && end) {
        job_append_locked(t, o, g->whole);
    } else if (o) {
        about = object_stored_len(o);
        *last = object_serialise_part(o, parts, BIG_STEP, part);
    }
    mem_unlock(shard);
    if (!o || end)
        return o;
    if (!g->whole)
        growing_size(g, about + about / 8);
    growing_add(g, buf_slice(part));
    if (*last)
        growing_size(g, g->len);
    return o;
}

static void job_run(struct tier *t, const struct big *job, struct buf *part)
{
    struct pace pace = {.hurry = big_hurry, .arg = t};
    struct object_parts parts = {.at = 0};
    struct growing g = {.t = t};
    bool last = false, end;

    atomic_store(&t->big->stale, false);
    atomic_store(&t->big->current, job->obj);
    pace_begin(&pace);
    do {
        end = last;
        if (!job_step(t, job, &parts, part, &g, &last))
            break;
        pace_spend(&pace, BIG_STEP_UNITS);
    } while (!end && !atomic_load(&t->big->stop));
    atomic_store(&t->big->current, NULL);
    growing_end(&g);
}

static void *big_main(void *arg)
{
    struct tier *t = arg;
    struct tier_big *b = t->big;
    struct list *l;
    struct buf part;

    pthread_setname_np(pthread_self(), "demote-big");
    pace_thread_init();
    buf_init(&part, MEM_OTHER);
    pthread_mutex_lock(&b->mu);
    while (!atomic_load(&b->stop)) {
        l = list_pop_front(&b->queue);
        if (!l) {
            buf_deinit(&part);
            buf_init(&part, MEM_OTHER);
            pthread_cond_wait(&b->wake, &b->mu);
            continue;
        }
        pthread_mutex_unlock(&b->mu);
        struct big *job = LIST_ENTRY(l, struct big, link);
        job_run(t, job, &part);
        atomic_fetch_sub_explicit(&t->demoting_bytes, job->bytes, memory_order_relaxed);
        mem_free(MEM_OTHER, job);
        tier_wake_room(t);
        pthread_mutex_lock(&b->mu);
    }
    pthread_mutex_unlock(&b->mu);
    buf_deinit(&part);
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
