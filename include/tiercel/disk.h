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
 * newest record: one slot of 9 bytes a key, in hash order, per shard. Two keys whose hashes
 * agree in all indexed bits (2^-57 a pair) share a slot: the newer wins, the older is lost
 * to the cache. The record's own key decides whether a read was of the right key.
 *
 * A slot is entered when its record is appended, and counts when the commit of its block
 * has happened: until then it is *pending*, and only the owner's memory has the value. So
 * nothing has to be published key by key, and whatever happens to a key in between (a newer
 * append, a tombstone) has replaced the slot before the commit comes.
 *
 * Invariant. Let the events of a key be its appends and its tombstones, in the order in
 * which they were called under the shard's lock. The log holds a prefix-closed history of
 * all events (commits are in order), so after any crash the index shows the newest append
 * that no later committed tombstone follows. An older value can reappear only if its
 * tombstone was called less than commit_ms before the crash. The events between
 * disk_group_begin() and disk_group_end() are in one commit, or in none.
 *
 * A record that is carried forward (cleaning) is appended anew under its shard's lock, if
 * its slot names the old block: to the log it is an event like any other. Its slot goes over
 * to the new block after the commit, if it then still names the old one, which stays so long.
 *
 * Locks: the index of a shard is guarded by that shard's lock, which belongs to the memory
 * tier; functions ending in _locked want it held. The append buffer has a mutex of its own
 * below the shard locks. Callbacks run on the writer thread, with no lock held unless they
 * end in _locked. */

struct disk;

#define DISK_TAG_BITS 47

struct disk_record {
    struct key key;       /* hash set; ptr valid during the call */
    uint32_t incarnation; /* the full number */
    enum obj_type type;
    int64_t expire_ms;         /* 0 = none */
    uint64_t origin;           /* opaque; 0 = none */
    struct slice payload;      /* object_serialise(); with payload_ref: its prefix only */
    struct rcbuf *payload_ref; /* append: the caller keeps its reference; reads: NULL */
    /* Appends only. */
    uint64_t ticket; /* comes back in committed() */
    uint32_t note;   /* so does this */
    bool must;       /* the queue's limit and the quota do not refuse it (they refuse what comes after) */
    /* Reads only. */
    uint32_t block;
    uint32_t written_s; /* wall clock of the commit */
};

struct disk_done {
    uint64_t hash;
    uint64_t ticket;
    uint32_t block;
    uint32_t note;
};

struct disk_gone {
    uint64_t hash;
    uint32_t block;
    uint32_t incarnation;
    bool has_expire;
    bool expired;      /* its time has come; else it is dropped for room */
    struct slice name; /* the key's, where `expired` or disk_set_names() wants it; else none */
};

struct disk_owner {
    void *arg;
    /* A commit is about to be put together: the owner appends what it held back, and holds nothing
     * back until committing() is called with false, so that the commit is a prefix of what was done. Returns
     * whether it held anything back since it was called last: then all that is queued goes into this commit,
     * because what was held back is queued behind what was done later. May be NULL. */
    bool (*committing)(void *arg, bool begin);
    /* The appends of one commit, in order, except those that were carried. st != ST_OK: none
     * of them is on disk; the owner takes each key's shard lock and calls disk_drop_locked(). */
    void (*committed)(void *arg, const struct disk_done *items, size_t n, enum status st);
    /* All events up to this one are on disk (or, !ok, will never be: see disk_last_event()). */
    void (*settled)(void *arg, uint64_t event, bool ok);
    /* Records that leave the disk: their block was the oldest and the quota is reached, they
     * expired, or their incarnation is dead. Called BEFORE the block is deleted. The owner
     * takes each key's shard lock and calls disk_drop_locked(). */
    void (*dropped)(void *arg, const struct disk_gone *items, size_t n);
    /* The lock of the shard that a hash belongs to, for cleaning. */
    void (*lock)(void *arg, uint64_t hash);
    void (*unlock)(void *arg, uint64_t hash);
    /* A live record is in a block that has to go, and the limits say it may be dropped: is it
     * to be carried nevertheless? (Its object is in memory and must not lose its disk copy.) */
    bool (*keep_locked)(void *arg, const struct disk_gone *rec);
    /* The queue has room again after disk_append_locked() said ST_FULL. */
    void (*room)(void *arg);
    /* Something for the log and for INFO: became read-only, recovered, set a file aside. */
    void (*notice)(void *arg, bool healthy, const char *text);
};

/* What may be dropped to make room for new records, when cleaning alone cannot. */
enum disk_retain {
    DISK_RETAIN_HOT,        /* anything but what was read since it was written, and that within bounds */
    DISK_RETAIN_PERSISTENT, /* only records with an expiry; appends are refused when none is left */
    DISK_RETAIN_ALL         /* nothing; appends are refused */
};

struct disk_options {
    const char *dir;    /* holds tiercel.mdb, tiercel.mdb-lock, tiercel.lock */
    uint64_t max_bytes; /* quota of the file */
    enum disk_retain retain;
    bool
        thorough; /* clean blocks while that makes room, even if much has to be copied; else rather drop (see clean.c) */
    unsigned shard_bits; /* the memory tier's */
    unsigned databases;
    unsigned readers;       /* threads */
    unsigned commit_ms;     /* a commit starts at most this long after the first tombstone or append that must
                             * be; other appends may wait for half a second, for company */
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

/* What kind of file system a directory is on. Any thread. */
enum disk_fs { DISK_FS_LOCAL, DISK_FS_NETWORK, DISK_FS_9P, DISK_FS_MEMORY, DISK_FS_OVERLAY, DISK_FS_UNKNOWN };
enum disk_fs disk_fs_of(const char *dir); /* UNKNOWN: errno says why */

enum status disk_start(struct disk *d, const struct disk_owner *owner, char err[256]);

/* Commits what is queued, marks a clean stop, joins the threads, frees. */
void disk_close(struct disk *d);

uint64_t disk_hash_seed(const struct disk *d);
uint32_t disk_incarnation(const struct disk *d, unsigned db);
/* Keys found at the start, per database. */
void disk_loaded_keys(const struct disk *d, unsigned db, int64_t *keys, int64_t *expires);

/* ---- index; any thread, under the shard's lock ---- */

/* The key has a committed record. May be wrong about a key whose hash collides; a read tells. */
bool disk_find_locked(const struct disk *d, uint64_t hash, uint32_t *block, bool *has_expire);
/* Its newest record waits for its commit: the block, or 0. */
uint32_t disk_pending_locked(const struct disk *d, uint64_t hash);
/* The key changed or went: forget its record, committed or pending, and queue a tombstone.
 * Returns whether there was one. Not needed before an append, which replaces the slot. */
bool disk_forget_locked(struct disk *d, uint64_t hash, bool *had_expire);
/* From dropped(), from a failed committed(), and after a read said ST_NOT_FOUND or ST_CORRUPT:
 * removes the slot if it still names that block. No tombstone. Returns whether it did. */
bool disk_drop_locked(struct disk *d, uint64_t hash, uint32_t block);
/* Committed and pending slots of one shard with lo <= hash <= hi (by indexed bits), in hash order; returns how many were
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

/* Copies the record into the open block (payload_ref is referenced, not copied) and enters
 * its slot, in place of an older one. ST_FULL: the queue is at its limit or the quota is
 * reached, room() will be called. ST_IO: the tier is read-only for now. ST_TOO_LARGE: never
 * fits. Where it fails, an older slot stays. */
enum status disk_append_locked(struct disk *d, const struct disk_record *rec);

/* Number of the newest event (append or tombstone), for settled(). Never 0 after the first. */
uint64_t disk_last_event(const struct disk *d);
uint64_t disk_settled_event(const struct disk *d);

/* The events of this thread between the two are atomic. Begin before any shard lock is
 * taken (it may wait, shortly, for a commit to be put together), end after they were let go. */
void disk_group_begin(struct disk *d);
/* The same, if it need not wait for a commit that is being put together; else false. */
bool disk_group_try(struct disk *d);
void disk_group_end(struct disk *d);

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
    bool quiet;       /* the record does not count as read */
    /* Set for done(): the thread's own, where large records are read, else NULL. What done() does with one is to rest as
     * it says (pace.h). */
    struct pace *pace;
    /* On a reader thread, no lock held. `rec` (ST_OK) is valid during the call only.
     * ST_NOT_FOUND: the block is gone, or holds another key. ST_CORRUPT, ST_IO.
     * Short, or with rests if it has a pace: it holds a read transaction. It must not call disk_read_now(). */
    void (*done)(struct disk_read *rd, enum status st, const struct disk_record *rec);
};

/* Any thread, no lock needed; `reads` is emptied: one hand-over for a batch. Never blocks on I/O. */
void disk_read_submit(struct disk *d, struct list *reads);
/* The same on the calling thread; for the rare places that must not park. */
void disk_read_now(struct disk *d, struct disk_read *rd);
/* The same, if it can be served without waiting for the disk: what it needs is in the page
 * cache. done() was called before it returns true; false: nothing happened. For loop threads. */
bool disk_read_inline(struct disk *d, struct disk_read *rd);

/* ---- control; any thread ---- */

/* Waits until all that was queued before is committed: ST_OK, ST_TIMEOUT, ST_IO. */
enum status disk_sync(struct disk *d, int64_t timeout_ms);
/* Somebody waits for what is queued: a commit starts now. Does not wait; shard locks may be held. */
void disk_hurry(struct disk *d);
/* The owner holds something back that is to be written: committing() is called soon, though nothing may be queued. */
void disk_ask_owner(struct disk *d);
void disk_set_max_bytes(struct disk *d, uint64_t max_bytes);
void disk_set_retain(struct disk *d, enum disk_retain retain, bool thorough);
void disk_set_names(struct disk *d, bool wanted);
bool disk_healthy(const struct disk *d);
/* Appends are refused because the quota is reached and nothing may be dropped. */
bool disk_quota_full(const struct disk *d);
/* Why it is not healthy: one line; "" when it is. */
void disk_problem(const struct disk *d, char text[256]);
/* What waits for its commit, and what cleaning has to free before more should come. */
size_t disk_queue_bytes(const struct disk *d);

struct disk_stats {
    uint64_t keys, file_bytes, block_bytes, index_bytes;
    uint64_t appends, appended_bytes, tombstones, commits, commit_us, written_bytes;
    uint64_t reads, inline_reads, read_misses, corrupt, io_errors, dropped_keys, expired_keys;
    uint64_t carried_keys, carried_bytes; /* by cleaning */
    uint64_t queue_bytes, live_bytes;     /* live: of block_bytes, estimated */
    uint64_t last_commit_ms;              /* wall time */
};
void disk_get_stats(const struct disk *d, struct disk_stats *out);

#endif
