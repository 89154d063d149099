#ifndef TIERCEL_MEM_H
#define TIERCEL_MEM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiercel/check.h"
#include "tiercel/object.h"
#include "tiercel/slice.h"

/* The memory tier's table. It knows keys and objects, not tiers: what an object's state
 * means, when one is evicted and what is counted is the tier layer's business.
 *
 * One seeded 64-bit hash orders everything: a shard is its top bits, a bucket within the
 * shard the bits below, at any table size. So walking buckets walks the hash space in
 * order, a SCAN cursor is a hash, and it stays valid while tables grow.
 *
 * A bucket is one cache line of 8 slots; a slot is a pointer with 16 further hash bits and a
 * has-expiry mark, so a lookup touches the line and, almost always, just the object wanted. A full
 * bucket's last slot chains to another line. A table doubles by moving a bounded number of
 * buckets per insertion.
 *
 * Locks: each shard has a mutex; functions ending in _locked want it held by the caller.
 * Several shards are locked in ascending order of index. */

typedef uint64_t mem_slot; /* opaque word; 0 = empty */

struct mem_bucket {
    mem_slot slot[8];
};

struct mem_shard {
    /* What a lookup needs is one cache line. Atomic: mem_prefetch_bucket() reads them unlocked. */
    _Alignas(64) pthread_mutex_t lock;
    struct mem_bucket *_Atomic table; /* 1 << bits buckets */
    _Atomic unsigned bits;
    unsigned index;         /* this shard's number */
    struct mem_bucket *old; /* while growing: 1 << (bits - 1) buckets, those below `moved` are empty */
    uint64_t moved;
    _Atomic uint64_t count; /* objects, of all databases and states; figures read it without the lock */
    uint64_t sweep;         /* bucket where the expiry sweep goes on */
};

/* A database is an incarnation number that is hashed with its keys. Counters are of keys
 * that exist in any tier. */
struct mem_db {
    _Atomic uint32_t incarnation;
    _Atomic int64_t keys, expires;
};

struct mem {
    unsigned shard_bits, shards;
    unsigned databases; /* that clients can name: the first of ... */
    unsigned spaces;    /* ... these, which all are like databases: see tier_space() */
    uint64_t seed;
    struct mem_shard *shard;
    struct mem_db *db;
    _Atomic uint32_t last_incarnation;
    _Atomic uint16_t *db_of_inc; /* low 16 bits of a live incarnation -> db + 1; 0 = dead */
    _Atomic uint32_t *full_inc;  /* low 16 bits -> the newest incarnation with them, live or dead */
    bool *lingering;             /* low 16 bits -> one with them died, and may have objects left; all locks */
};

/* `incarnations`: one per database, 0 = take a fresh one. */
struct mem *mem_create(unsigned shard_bits, unsigned databases, uint64_t seed, const uint32_t *incarnations);
/* The same, with key spaces beyond the databases. */
struct mem *mem_create_spaces(unsigned shard_bits, unsigned databases, unsigned spaces, uint64_t seed,
                              const uint32_t *incarnations);
void mem_destroy(struct mem *m); /* frees all objects with object_free() */

/* ---- keys ---- */
/* Any thread. The name must outlive the key. */
void mem_key_init(const struct mem *m, unsigned db, struct slice name, struct key *out);
/* The same for who has its hash, of that incarnation. */
static inline void mem_key_init_hashed(unsigned db, uint32_t inc, uint64_t hash, struct slice name, struct key *out)
{
    *out = (struct key){
        .ptr = name.ptr, .len = (uint32_t)name.len, .db = (uint16_t)db, .inc = (uint16_t)inc, .hash = hash};
}
/* Does the key still belong to its database's incarnation? Reliable under the shard's lock,
 * because incarnations change only while all shards are locked. */
bool mem_key_current(const struct mem *m, const struct key *key);
static inline struct mem_shard *mem_shard_of(const struct mem *m, uint64_t hash)
{
    return &m->shard[hash >> (64 - m->shard_bits)];
}
/* The object's hash, computed anew from its key. */
uint64_t mem_object_hash(const struct mem *m, const struct object *o);
/* The key of an object that is in the table; ptr is into the object. db: 0 when the incarnation is dead. */
void mem_object_key(const struct mem *m, const struct object *o, struct key *out);
/* The database an object of this incarnation belongs to; -1: the incarnation is dead. */
int mem_db_of(const struct mem *m, uint16_t inc);
/* All shards locked. Gives the database a fresh incarnation; its counters go to 0. Returns the new one. */
uint32_t mem_db_flush_locked(struct mem *m, unsigned db);
/* All shards locked. Would the next flush give out low 16 bits that dead objects may still have? Then
 * all of them have to go before, and mem_swept_locked() is told. */
bool mem_db_flush_collides_locked(const struct mem *m);
void mem_swept_locked(struct mem *m);
void mem_db_swap_locked(struct mem *m, unsigned a, unsigned b);
static inline void mem_db_count(struct mem *m, unsigned db, int keys, int expires)
{
    if (keys)
        atomic_fetch_add_explicit(&m->db[db].keys, keys, memory_order_relaxed);
    if (expires)
        atomic_fetch_add_explicit(&m->db[db].expires, expires, memory_order_relaxed);
}

/* ---- locks ---- */
static inline void mem_lock(struct mem_shard *s)
{
    pthread_mutex_lock(&s->lock);
}
/* The same, but while somebody else has the lock, *give_up is looked at: not 0, and it is false. For those who have
 * a client to tell. */
bool mem_lock_waiting(struct mem_shard *s, const _Atomic int *give_up);
static inline bool mem_lock_unless(struct mem_shard *s, const _Atomic int *give_up)
{
    return LIKELY(pthread_mutex_trylock(&s->lock) == 0) || mem_lock_waiting(s, give_up);
}
static inline bool mem_trylock(struct mem_shard *s)
{
    return pthread_mutex_trylock(&s->lock) == 0;
}
static inline void mem_unlock(struct mem_shard *s)
{
    pthread_mutex_unlock(&s->lock);
}
void mem_lock_all(struct mem *m);
bool mem_lock_all_unless(struct mem *m, const _Atomic int *give_up);
void mem_unlock_all(struct mem *m);

/* ---- table ---- */
/* Brings a key's lines into the cache, in three steps with other keys' between them, each of
 * which needs what the one before it brought: shard, bucket, object. Hints: any thread, no lock
 * held, nothing waits. */
static inline void mem_prefetch(const struct mem *m, uint64_t hash)
{
    const struct mem_shard *s = mem_shard_of(m, hash);
    __builtin_prefetch(s);
}
void mem_prefetch_bucket(const struct mem *m, uint64_t hash);
void mem_prefetch_object(const struct mem *m, uint64_t hash);
/* NULL: not there. The slot is valid until the next insertion or removal in the shard. */
mem_slot *mem_find_locked(const struct mem *m, struct mem_shard *s, const struct key *key);
struct object *mem_object(mem_slot slot);
/* The key must not be there. */
void mem_insert_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, struct object *o);
/* Puts another object of the same key in the slot; the old one is the caller's. Or the same one anew, when fields of it
 * expire that did not before, or it has an expiry now. */
void mem_replace_locked(mem_slot *slot, struct object *o);
/* Removes the slot; its object is the caller's. */
void mem_remove_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, mem_slot *slot);
/* Finds the slot that holds exactly this object. */
mem_slot *mem_find_object_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, const struct object *o);

/* ---- walking ---- */
/* Visits the objects of the one bucket that covers `hash`; *end is the first hash behind it
 * (0: it was the last of the space). fn must not change the table. */
void mem_scan_locked(const struct mem *m, struct mem_shard *s, uint64_t hash, uint64_t *end,
                     void (*fn)(void *arg, struct object *o), void *arg);
/* Up to `max` objects near a random place: a sample for eviction. */
size_t mem_sample_locked(const struct mem_shard *s, uint64_t random, struct object **out, size_t max);
/* Ahead of mem_sample_locked() in the shard that the upper bits of `random` choose. No lock. */
void mem_prefetch_sample(const struct mem *m, uint64_t random);
/* Goes on where the last sweep of this shard stopped, over at most `buckets` buckets, and
 * collects objects with an expiry that are due, hashes with fields that are, and (dead) those of a dead incarnation. Returns
 * how many were written; *seen counts those with an expiry, of fields too; *wrapped when it came round. */
size_t mem_sweep_locked(struct mem *m, struct mem_shard *s, unsigned buckets, int64_t now_ms, struct object **out,
                        size_t max, size_t *seen, bool *wrapped);

#endif
