#ifndef TIERCEL_DISK_H
#define TIERCEL_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/list.h"
#include "tiercel/object.h"
#include "tiercel/rcbuf.h"
#include "tiercel/slice.h"
#include "tiercel/status.h"

/* The disk tier: a log of blocks in one LMDB environment, and an index in memory.
 *
 *   data   block id (ascending) -> up to 64 KB of records, filling LMDB's overflow pages exactly;
 *                                  a record larger than a block has an entry of its own
 *   keys   block id             -> what happened, in order: (hash, place) of each record of that
 *                                  block, and tombstones; a start replays it, without reading data
 *   meta   format version, hash seed, incarnation of each database, clean-stop mark
 *
 * The index maps a key's hash (its top DISK_TAG_BITS + shard bits) to the block of its
 * newest record: one 8-byte slot a key, in hash order, per shard. Two keys whose hashes
 * agree in all indexed bits (2^-50 a pair) share a slot: the newer wins, the older is lost
 * to the cache. The record's own key decides whether a read was of the right key.
 *
 * Invariant. Let the events of a key be its appends and its tombstones, in the order in
 * which they were called under the shard's lock. The log holds a prefix-closed history of
 * all events (commits are in order), so after any crash the index shows the newest append
 * that no later committed tombstone follows. An older value can reappear only if its
 * tombstone was called less than commit_ms before the crash. A location is published
 * (disk_publish_locked) only after the commit that holds it.
 *
 * Locks: the index of a shard is guarded by that shard's lock, which belongs to the memory
 * tier; functions ending in _locked want it held. The append buffer has a mutex of its own
 * below the shard locks. Callbacks run on the writer thread with no lock held. */

struct disk;

#define DISK_TAG_BITS 39

struct disk_record {
    struct key key;       /* hash set; ptr valid during the call */
    uint32_t incarnation; /* the full number */
    enum obj_type type;
    int64_t expire_ms;         /* 0 = none */
    uint64_t origin;           /* opaque; 0 = none */
    struct slice payload;      /* object_serialise(); with payload_ref: its prefix only */
    struct rcbuf *payload_ref; /* append: the caller keeps its reference; reads: NULL */
    uint64_t ticket;           /* append: comes back in committed() */
};

struct disk_done {
    uint64_t hash;
    uint64_t ticket;
    uint32_t block;
    bool has_expire;
};

struct disk_gone {
    uint64_t hash;
    uint32_t block;
    uint32_t incarnation;
    bool has_expire;
};

struct disk_owner {
    void *arg;
    /* The appends of one commit, in order. st != ST_OK: none of them is on disk. The owner
     * takes each key's shard lock and calls disk_publish_locked() where the ticket still fits. */
    void (*committed)(void *arg, const struct disk_done *items, size_t n, enum status st);
    /* Records that leave the disk: their block was the oldest and the quota is reached, they
     * expired, or their incarnation is dead. Called BEFORE the block is deleted. The owner
     * takes each key's shard lock and calls disk_drop_locked(). */
    void (*dropped)(void *arg, const struct disk_gone *items, size_t n);
    /* The queue has room again after disk_append_locked() said ST_FULL. */
    void (*room)(void *arg);
    /* Something for the log and for INFO: became read-only, recovered, set a file aside. */
    void (*notice)(void *arg, bool healthy, const char *text);
};

struct disk_options {
    const char *dir;     /* holds tiercel.mdb, tiercel.mdb-lock, tiercel.lock */
    uint64_t max_bytes;  /* quota of the file */
    bool drop_oldest;    /* false: a full quota refuses appends instead (noeviction) */
    unsigned shard_bits; /* the memory tier's */
    unsigned databases;
    unsigned readers;       /* threads */
    unsigned commit_ms;     /* a commit starts at most this long after the first append or tombstone */
    size_t commit_bytes;    /* ... or when this much is queued */
    size_t queue_max_bytes; /* appends and not yet committed */
    uint64_t fresh_seed;    /* hash seed for a new file */
    struct disk_owner owner;
};

/* Opens or makes the file, replays `keys`, and, when opt->owner.committed is set, starts the
 * writer and the readers; else disk_start() does, for an owner that needs disk_hash_seed() to
 * come to life. A file that
 * cannot be used (truncated, of a newer version) is renamed to tiercel.mdb.bad-<time> and a
 * new one made, with a notice. Before other threads exist. With threads, callbacks may come
 * before this returns; *out is set before.
 * ST_BUSY: another process holds it. ST_IO, ST_BAD: *err says why, one line. */
enum status disk_open(const struct disk_options *opt, struct disk **out, char err[256]);

enum status disk_start(struct disk *d, const struct disk_owner *owner, char err[256]);

/* Commits what is queued, marks a clean stop, joins the threads, frees. */
void disk_close(struct disk *d);

uint64_t disk_hash_seed(const struct disk *d);
uint32_t disk_incarnation(const struct disk *d, unsigned db);
/* Keys found at the start, per database. */
void disk_loaded_keys(const struct disk *d, unsigned db, int64_t *keys, int64_t *expires);

/* ---- index; any thread, under the shard's lock ---- */

/* May be wrong about a key whose hash collides; a read tells. */
bool disk_find_locked(const struct disk *d, uint64_t hash, uint32_t *block, bool *has_expire);
/* The key changed or went: forget the copy, queue a tombstone. Also call it, with
 * force = true, when a record of the key was appended and is not published yet: a tombstone
 * is then queued although the index has nothing. Returns whether the index had it. */
bool disk_forget_locked(struct disk *d, uint64_t hash, bool force, bool *had_expire);
/* From committed(). Replaces an older location. */
void disk_publish_locked(struct disk *d, uint64_t hash, uint32_t block, bool has_expire);
/* From dropped(), and after a read said ST_NOT_FOUND or ST_CORRUPT: removes the slot if it
 * still names that block. No tombstone. Returns whether it did. */
bool disk_drop_locked(struct disk *d, uint64_t hash, uint32_t block);
/* Slots of one shard with lo <= hash <= hi (by indexed bits), in hash order; returns how many were
 * written, at most max; *next is where to go on (hi + 1 when done; the caller treats wrap to 0 as done). */
struct disk_slot {
    uint64_t hash; /* indexed bits, the rest zero */
    uint32_t block;
    bool has_expire;
};
size_t disk_scan_locked(const struct disk *d, unsigned shard, uint64_t lo, uint64_t hi, struct disk_slot *out,
                        size_t max, uint64_t *next);
/* Cuts a hash to the bits the index knows. */
uint64_t disk_hash_bits(const struct disk *d, uint64_t hash);

/* ---- appending; any thread, under the shard's lock ---- */

/* Copies the record into the open block (payload_ref is referenced, not copied).
 * ST_FULL: the queue is at its limit, room() will be called. ST_IO: the tier is read-only
 * for now. ST_TOO_LARGE: never fits. */
enum status disk_append_locked(struct disk *d, const struct disk_record *rec);

/* Records the incarnation of a database; durable with the next commit, in order with
 * appends and tombstones. Space of the dead one is reclaimed in slices. */
void disk_set_incarnation(struct disk *d, unsigned db, uint32_t incarnation);

/* ---- reading ---- */

struct disk_read {
    struct list link;
    struct key key;       /* ptr NULL: any record with this indexed hash (scans) */
    uint32_t incarnation; /* ignored when key.ptr is NULL */
    uint32_t block;
    bool header_only; /* key and expiry only; the checksum is not verified */
    /* On a reader thread, no lock held. `rec` (ST_OK) is valid during the call only.
     * ST_NOT_FOUND: the block is gone, or holds another key. ST_CORRUPT, ST_IO.
     * Short: it holds a read transaction. It must not call disk_read_now(). */
    void (*done)(struct disk_read *rd, enum status st, const struct disk_record *rec);
};

/* Any thread, no lock needed; `reads` is emptied: one hand-over for a batch. Never blocks on I/O. */
void disk_read_submit(struct disk *d, struct list *reads);
/* The same on the calling thread; for the rare places that must not park. */
void disk_read_now(struct disk *d, struct disk_read *rd);

/* ---- control; any thread ---- */

/* Waits until all that was queued before is committed: ST_OK, ST_TIMEOUT, ST_IO. */
enum status disk_sync(struct disk *d, int64_t timeout_ms);
/* Somebody waits for what is queued: a commit starts now. Does not wait; shard locks may be held. */
void disk_hurry(struct disk *d);
void disk_set_max_bytes(struct disk *d, uint64_t max_bytes);
void disk_set_drop_oldest(struct disk *d, bool drop_oldest);
bool disk_healthy(const struct disk *d);
size_t disk_queue_bytes(const struct disk *d);

struct disk_stats {
    uint64_t keys, file_bytes, block_bytes, index_bytes;
    uint64_t appends, appended_bytes, tombstones, commits, commit_us, written_bytes;
    uint64_t reads, read_misses, corrupt, io_errors, dropped_keys, expired_keys;
    uint64_t queue_bytes;
    uint64_t last_commit_ms; /* wall time */
};
void disk_get_stats(const struct disk *d, struct disk_stats *out);

#endif
