#ifndef TIERCEL_DISK_PRIV_H
#define TIERCEL_DISK_PRIV_H

#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>

#include "tiercel/alloc.h"
#include "tiercel/buf.h"
#include "tiercel/check.h"
#include "tiercel/clock.h"
#include "tiercel/disk.h"
#include "tiercel/hash.h"

/* Files of this module:
 *
 *   index.c   one shard's array of slots: find, put, remove, scan
 *   blocks.c  what is known in memory about each block: live records, size, earliest expiry
 *   record.c  the bytes on disk: blocks, records, keys entries
 *   queue.c   appends and tombstones, up to sealed blocks (any thread)
 *   writer.c  the writer thread: batches, failures, recovery
 *   commit.c  one LMDB transaction: puts, deletions, accounting
 *   reclaim.c what leaves the disk: dropped blocks, dead incarnations, dead blocks, expiry
 *   clean.c   room in a log of which a part is dead: which blocks go, what of them is carried
 *   dirs.c    directories of blocks that were read lately
 *   reader.c  the reader threads
 *   replay.c  index from `keys` at the start
 *   env.c     opening, checking and setting aside the file
 *   guard.c   pages of the map that cannot be read
 *   verify.c  is this an LMDB file whose tree pages can be trusted
 *   disk.c    open, close, control, statistics
 *
 * Locks, outermost first: the owner's shard lock; map_lock; mu (queue) or read_mu. */

/* ---- limits ---- */

#define BLOCK_BYTES 65520u   /* 16 pages of 4096 less LMDB's page header */
#define LARGE_PAYLOAD 32768u /* a longer payload gets an entry of its own */
#define RECORD_MAX (1u << 30)
#define BLOCK_MODULUS ((1u << 24) - 1) /* block numbers in a slot: 1 .. 2^24 - 1, 0 = empty slot */
#define META_CHUNK 4096u
#define META_CHUNKS 4096u
#define WINDOW_MAX (BLOCK_MODULUS - 4 * META_CHUNK) /* newest id less oldest id */
#define QUOTA_MAX ((uint64_t)(WINDOW_MAX - (WINDOW_MAX >> 4)) * 65536)
#define QUOTA_MIN (1u << 20)
#define OPS_PER_BLOCK 16384u
#define PALETTE_MAX 255u
#define RETAIN_MAX 1000000u /* tombstones kept while the disk cannot be written */
#define DOOM_MAX 4096u      /* blocks deleted in one transaction */
#define TRIM_MAX 65536u     /* keys entries deleted in one transaction */
#define READ_BATCH 64
#define DEMOTED_MS 500 /* records that nobody would miss after a crash may wait so long for company */
#define RETRY_US 1000000
#define EXPIRE_AGAIN_S 60u /* a swept block is not swept again sooner */

/* ---- bytes on disk (little endian; see record.c) ---- */

#define FORMAT_VERSION 2u
#define META_MAGIC 0x4c435254u  /* TRCL */
#define BLOCK_MAGIC 0x314b4c42u /* BLK1 */
#define KEYS_MAGIC 0x3159454bu  /* KEY1 */

#define REC_EXPIRE 1u
#define REC_ORIGIN 2u

struct rec_head {
    uint64_t checksum; /* of all that follows, to the end of the payload */
    uint64_t hash;
    uint32_t incarnation, klen, plen;
    uint8_t type, flags, version, zero;
};

struct block_head {
    uint32_t magic, count;
    uint32_t dir; /* offset of the directory: count x (hash >> 32), then count x offset */
    uint32_t zero;
};

/* An event of the log, in a keys entry. */
struct disk_op {
    uint64_t hash;
    uint32_t word; /* tombstone 1 | expire 1 | carried 1 | replaces 1 | 4 zero | palette 8 | record number 16 */
} __attribute__((packed));

#define OP_TOMB 0x80000000u
#define OP_EXPIRE 0x40000000u
/* To a start these two are records like any other. */
#define OP_CARRIED 0x20000000u  /* appended by cleaning */
#define OP_REPLACES 0x10000000u /* the key had a slot: if the commit fails, its older record has to be ended */
#define OP_PALETTE(word) (((word) >> 16) & 0xff)

struct keys_head {
    uint64_t checksum; /* of all that follows */
    uint32_t magic, nops, npal, min_expire_s;
    uint32_t written_s; /* wall clock of the commit */
    uint32_t zero;
};

struct keys_view {
    struct keys_head head;
    const char *palette, *ops; /* unaligned */
};

struct meta_value {
    uint32_t magic, format; /* these two stay where they are in every version */
    uint64_t checksum;      /* of all that follows */
    uint64_t seed, keys_hint;
    uint32_t clean, databases;
    /* then uint32_t incarnation[databases] */
};

_Static_assert(sizeof(struct rec_head) == 32, "on-disk layout");
_Static_assert(sizeof(struct block_head) == 16, "on-disk layout");
_Static_assert(sizeof(struct disk_op) == 12, "on-disk layout");
_Static_assert(sizeof(struct keys_head) == 32, "on-disk layout");
_Static_assert(sizeof(struct meta_value) == 40, "on-disk layout");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is written as the machine has it");

/* ---- index ---- */

/* A slot: tag's upper bits 39 | has_expire 1 | block number 24. The low 25 bits are its `place`.
 * The tag's other bits are in `low`. */
#define INDEX_LOW_BITS 8
#define INDEX_SLOT_BYTES (sizeof(uint64_t) + 1)
#define PLACE_BITS 25
#define PLACE_MASK ((1u << PLACE_BITS) - 1)
#define PLACE_EXPIRE (1u << 24)

struct index_shard {
    uint64_t *slots; /* len + 1, the last one stays 0; sorted by tag; NULL while empty */
    uint8_t *low;    /* behind them */
    size_t cap;      /* home = upper bits of tag * cap >> their number */
    _Atomic size_t len, count;
};

bool index_find(const struct index_shard *s, uint64_t tag, uint32_t *place);
/* Returns whether there was one, then *old is its place. */
bool index_put(struct index_shard *s, uint64_t tag, uint32_t place, uint32_t *old);
bool index_remove(struct index_shard *s, uint64_t tag, uint32_t *old);
/* Removes only if it names that block number. */
bool index_remove_block(struct index_shard *s, uint64_t tag, uint32_t number);
/* The first slot at or after `pos` in the array; *pos goes behind it. */
bool index_next(const struct index_shard *s, size_t *pos, uint64_t *tag, uint32_t *place);
size_t index_lower_bound(const struct index_shard *s, uint64_t tag);
void index_reserve(struct index_shard *s, size_t keys);
void index_clear(struct index_shard *s);
void index_prefetch(const struct index_shard *s, uint64_t tag);

/* ---- blocks ---- */

#define BLOCK_DATA 1u      /* committed, and has an entry in `data` */
#define BLOCK_KEYS 2u      /* has an entry in `keys` */
#define BLOCK_DOOMED 4u    /* nothing refers to it; to be deleted */
#define BLOCK_DIRTY 8u     /* tombstones of its records were lost: must go before the disk counts as healthy */
#define BLOCK_DELETING 16u /* in the transaction that is being made */
#define BLOCK_CARRIED 32u  /* records of it were appended anew: to drop one of its slots takes a tombstone */
#define BLOCK_CLEANING 64u /* among the cleaner's victims */

struct block_meta {
    _Atomic uint32_t live;     /* index slots that name it, pending ones included */
    _Atomic uint32_t flags;    /* set by the writer, except DIRTY */
    uint32_t bytes;            /* writer only: in the file */
    uint32_t min_expire_s;     /* writer only; 0 = none */
    _Atomic uint64_t read;     /* bit r * 64 / records: some record there was read since it was written */
    _Atomic uint32_t page;     /* where its overflow pages begin in the file, in pages; 0 = in a node, or unknown */
    _Atomic uint32_t data_len; /* of its entry in `data` */
    uint32_t records;          /* writer only, except before its commit */
    _Atomic uint32_t written_s;
    _Atomic uint64_t dir_at; /* where its directory is in `dirs`; 0 = nowhere */
};

struct block_chunk {
    struct block_meta meta[META_CHUNK];
};

/* A record that cleaning appended anew. After the commit its slot goes over from `from`. */
struct carried {
    uint64_t hash, from;
};

/* A block on its way to the disk. */
struct block {
    struct list link;
    uint64_t id, last_event;
    struct block_meta *meta;
    char *data; /* NULL: tombstones only (so far) */
    size_t data_len, data_cap;
    struct rcbuf *ref; /* the rest of a large record's payload */
    size_t queue_bytes;
    struct disk_op *ops;
    uint32_t nops, ops_cap;
    uint32_t *offs;         /* one per record */
    struct disk_done *done; /* one per record that was not carried */
    uint32_t nrec, rec_cap, ndone;
    struct carried *carried;
    uint32_t ncarried, carried_cap;
    uint32_t npal;
    uint32_t min_expire_s;
    bool joined;   /* a group goes on in the next block: one commit for both */
    bool dead;     /* all of its records were replaced within its batch: its data is not written */
    uint32_t page; /* of its data, see block_meta */
    uint32_t palette[PALETTE_MAX];
};

struct batch {
    struct list blocks;
    size_t bytes;    /* of queue_bytes */
    size_t cost;     /* on disk, about */
    uint64_t events; /* the last one it holds */
    bool closing, due;
};

struct counters {
    _Atomic uint64_t appends, appended_bytes, tombstones; /* under mu */
    _Atomic uint64_t commits, commit_us, written_bytes;
    _Atomic uint64_t reads, inline_reads, read_misses, corrupt, io_errors, dropped_keys, expired_keys;
    _Atomic uint64_t carried_keys, carried_bytes;
    _Atomic uint64_t file_bytes, block_bytes, live_bytes, last_commit_ms;
};

struct reader {
    struct disk *disk;
    pthread_t thread;
    bool started;
    MDB_txn *txn; /* reset between batches; touched under map_lock */
};

/* A block that goes as soon as all events up to that one are on disk: what made it
 * dead must not be lost when it is gone. 0: at once. */
struct doomed {
    uint64_t id, event;
};

/* A block that is being emptied: when all events up to `event` are on disk, the copies of what
 * was carried are, and the block goes with what it still has. */
struct victim {
    uint64_t id, event, failures; /* failures: of commits, before */
    size_t bytes, carried;
};

#define VICTIMS_MAX 1024
#define SHARES 64 /* steps in which the live share of a block is counted */

/* See clean.c; writer thread. */
struct cleaner {
    struct victim victims[VICTIMS_MAX]; /* oldest first */
    size_t victims_n;
    uint64_t bytes, carried;        /* of the victims */
    uint64_t failures;              /* of commits, so far */
    int64_t credit;                 /* bytes that may be carried only for having been read */
    uint64_t credited;              /* appended_bytes then */
    uint64_t hand, hand_end;        /* a round of the hand over the table of blocks */
    uint64_t seen[SHARES + 1];      /* bytes it has passed in this one, by live share */
    uint64_t live_bytes, live_keys; /* the same: what lives, estimated */
    uint64_t keys;                  /* live ones in the last round */
    uint64_t seen_keys, seen_data;  /* blocks with an entry in `keys`, in `data` */
    uint64_t dead_part;             /* of those in `keys`, of 1,024, had none in `data` in the last round */
    uint32_t rounds, dry;           /* so far; since it took a block */
    uint32_t cut;                   /* it takes blocks of which at most this share lives */
    bool poor;                      /* the last round found next to nothing that is worth it */
    uint64_t oldest;                /* where to look for a block to drop from */
    uint64_t passed;                /* blocks that were looked at there since one was taken */
    uint32_t skipped;               /* those of them that had to be read for it */
    bool stuck;                     /* there is nothing to gain */
    int64_t until_us;               /* the end of this slice */
    int64_t again_us;               /* then: when to look for blocks to drop from again */
    struct buf block, verdicts;
};

/* See dirs.c. */
struct dirs {
    _Atomic(_Atomic uint32_t *) words;
    uint32_t size;         /* of words; set before them */
    _Atomic uint64_t head; /* words ever written, so to say */
    atomic_flag busy;      /* somebody writes */
};

struct disk {
    struct disk_options opt;
    char *path, *lmdb_lock_path;
    int lock_fd;
    uint64_t seed;
    int64_t *loaded_keys, *loaded_expires; /* per database */

    /* Readers hold it shared during a batch, the writer alone when it remaps or reopens. */
    pthread_rwlock_t map_lock;
    MDB_env *env;
    MDB_dbi dbi_data, dbi_keys, dbi_meta;
    size_t page, node_max, map_bytes;
    struct guarded *guarded; /* guard.c */

    unsigned hash_bits; /* indexed: shard bits + tag bits */
    size_t shards;
    struct index_shard *index;
    size_t retain_max; /* RETAIN_MAX and RETRY_US, but for tests */
    int64_t retry_us;

    _Atomic(struct block_chunk *) chunks[META_CHUNKS];
    /* Slots that name a newer block are pending. A block of a failed commit gets older than
     * this one only after its slots were dropped. */
    _Atomic uint64_t committed_head;
    _Atomic uint64_t head; /* newest id given out */
    _Atomic uint64_t tail; /* oldest id that may have an entry */
    _Atomic uint32_t dead_hint;
    _Atomic bool any_dirty, sweeping; /* sweeping: what is dropped now has expired */

    _Atomic bool healthy, thorough, names;
    _Atomic int retain;          /* enum disk_retain */
    _Atomic size_t refused;      /* the largest append that the quota refused since room() came; 0 = none */
    _Atomic bool quota_full;     /* clean.c: the quota refuses appends, and there is nothing to gain */
    _Atomic uint64_t clean_debt; /* clean.c: bytes over what appends may take, where there is */
    _Atomic uint64_t max_bytes;
    _Atomic uint64_t used_bytes;
    _Atomic uint32_t *incarnation; /* per database; written under mu */
    uint32_t *meta_incarnation;    /* writer only: as of the end of the newest batch */

    /* queue, under mu */
    pthread_mutex_t mu;
    pthread_cond_t wake, settled, group;
    _Atomic size_t queue_bytes; /* written under mu */
    struct block *open;
    struct list sealed, pool;
    size_t pool_n, waiting_bytes;
    _Atomic uint64_t events, settled_events; /* written under mu */
    uint64_t sync_events, failures;
    unsigned groups; /* open */
    bool taking;     /* the writer wants a batch: no new groups */
    uint64_t reclaim_events;
    int64_t commit_at_us, reclaim_at_us; /* commit_at_us: 0 = nothing waits */
    size_t retained_n, waiting_tombs;
    char problem[256];
    uint64_t meta_event; /* the newest change of an incarnation: what comes before goes with it */
    bool commit_soon;    /* the commit that is due next is one that commit_ms speaks of */
    bool want_room, closing, work_soon, ask_owner;
    bool writer_started;

    /* writer thread only */
    pthread_t writer;
    MDB_txn *scan_txn;
    struct disk_op *retained;
    size_t retained_cap;
    uint64_t retained_id;
    struct doomed *doomed;
    size_t doomed_n, doomed_cap;
    uint64_t doomed_bytes, data_bytes, keys_bytes;
    uint64_t frag_reserve, soft_max, room_max;
    int64_t soft_until_us, retry_at_us, doomed_at_us;
    uint64_t reclaim_cursor, reclaim_end, dead_cursor, dead_end, expire_cursor, chunk_cursor;
    bool reclaiming, dead_scan, env_broken;
    bool drop_pending; /* records were dropped without tombstones: their blocks must go soon */
    int64_t house_at_us, dead_at_us;
    struct disk_gone *gone;
    size_t gone_n, gone_cap;
    struct buf gone_names; /* of those that have one, in order */
    struct cleaner clean;
    struct disk_done *done;
    size_t done_cap;

    /* readers */
    pthread_mutex_t read_mu;
    pthread_cond_t read_wake;
    struct list reads;
    bool read_stop;
    struct reader *readers; /* one more than opt.readers: large records */
    pthread_cond_t large_wake;
    struct list large_reads; /* under read_mu */
    _Atomic bool large_stop;
    _Atomic(MDB_env *) inline_env; /* its file may be read on loop threads */
    _Atomic bool inline_off;       /* no file here may */
    _Atomic uint32_t inline_cold, inline_skip;
    struct dirs dirs;

    struct counters n;
};

#define COUNT(d, field, by) atomic_fetch_add_explicit(&(d)->n.field, (uint64_t)(by), memory_order_relaxed)
/* The same where all who write it hold a lock. */
#define BUMP(x, by) \
    atomic_store_explicit(&(x), atomic_load_explicit(&(x), memory_order_relaxed) + (by), memory_order_relaxed)
#define PEEK(x) atomic_load_explicit(&(x), memory_order_relaxed)

static inline size_t disk_shard_of(const struct disk *d, uint64_t hash)
{
    return d->opt.shard_bits ? (size_t)(hash >> (64 - d->opt.shard_bits)) : 0;
}

static inline uint64_t disk_tag_of(const struct disk *d, uint64_t hash)
{
    return (hash << d->opt.shard_bits) >> (64 - DISK_TAG_BITS);
}

static inline uint32_t block_number(uint64_t id)
{
    return (uint32_t)(id % BLOCK_MODULUS) + 1;
}

static inline uint32_t load32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t load64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

/* blocks.c. An id that a slot or a caller names is at most `head`, and at most WINDOW_MAX older. */
uint64_t block_id_of_number(const struct disk *d, uint32_t number);
uint64_t block_id_of_api(const struct disk *d, uint32_t block);   /* 0: cannot be */
struct block_meta *block_meta(const struct disk *d, uint64_t id); /* NULL: unknown */
struct block_meta *block_meta_make(struct disk *d, uint64_t id);
bool block_has(const struct disk *d, uint64_t id, uint32_t flag);
void block_unlive(struct disk *d, uint32_t number);
void block_forget_until(struct disk *d, uint64_t from, uint64_t to); /* [from, to) */
/* Frees the entries of the chunk that begins at `id`, if it ends before `end` and all of its blocks are gone; returns
 * where the next one begins. The writer. */
uint64_t block_forget_chunk(struct disk *d, uint64_t id, uint64_t end);
void block_free_all(struct disk *d);

/* record.c */
size_t record_head_bytes(const struct disk_record *rec); /* all but key and payload */
char *record_write_head(char *p, const struct disk_record *rec, size_t payload_len);
void record_seal(char *p, size_t len, struct pace *pace);
/* Parses the record at `off`; false: out of bounds or not of this version. */
bool record_parse(const char *block, size_t dir, size_t off, struct rec_head *head, struct disk_record *rec);
bool record_intact(const char *p, const struct rec_head *head, struct pace *pace);
bool block_parse(struct slice block, struct block_head *head);
size_t block_offset(const char *block, const struct block_head *head, uint32_t i);
uint64_t block_record_hash32(const char *block, const struct block_head *head, uint32_t i);
enum status block_find(const struct disk *d, struct slice block, const struct disk_read *rd, struct disk_record *rec,
                       uint32_t *number); /* of the record in the block */
size_t keys_bytes(uint32_t npal, size_t nops);
void keys_write(char *p, const uint32_t *palette, uint32_t npal, const struct disk_op *ops, size_t nops,
                uint32_t min_expire_s, uint32_t written_s);
bool keys_parse(struct slice value, struct keys_view *out);

/* queue.c */
void queue_init(struct disk *d);
void queue_deinit(struct disk *d);
void queue_recycle(struct disk *d, struct block *b);
void queue_shrink_pool(struct disk *d);
uint64_t queue_next_id_locked(struct disk *d); /* of a block; it has its block_meta */
/* Takes what a commit may hold; no group is open. */
void queue_take_locked(struct disk *d, struct batch *batch, size_t limit);
/* The slot of the hash names that block; under the shard's lock. */
bool queue_slot_names(const struct disk *d, uint64_t hash, uint64_t id);
/* For cleaning, under the shard's lock: appends a record anew, as it is (rec_head to the end
 * of the payload, sealed). The slot stays; it goes over after the commit, if it then still names
 * from_id. false: it does not even now, or the disk cannot be written. */
bool queue_carry_locked(struct disk *d, uint64_t hash, uint64_t from_id, const char *raw, size_t len,
                        uint32_t incarnation, int64_t expire_ms);
void queue_carry_end_locked(struct disk *d, const struct block *b, const struct carried *c);

/* commit.c */
size_t commit_cost(const struct disk *d, size_t value_len);
size_t commit_block_cost(const struct disk *d, const struct block *b);
/* 0 or an LMDB/errno code, then nothing has changed. */
int commit_run(struct disk *d, const struct batch *batch, bool clean);
/* The page in the file where a value in overflow pages begins; 0: it is in a node. */
uint32_t commit_value_page(const struct disk *d, const MDB_val *val);
void commit_measure(struct disk *d, MDB_txn *txn);

/* writer.c */
void *writer_main(void *arg);
void writer_notice(struct disk *d, bool healthy, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* reclaim.c; writer thread */
void reclaim_init(struct disk *d);
void reclaim_deinit(struct disk *d);
void reclaim_for(struct disk *d, size_t incoming, size_t extra);
bool reclaim_dirty(struct disk *d);
bool reclaim_slice(struct disk *d);              /* housekeeping; true: there is more to do at once */
int64_t reclaim_commit_at(const struct disk *d); /* mono us */
uint64_t reclaim_limit(struct disk *d);          /* what may be used: the quota, or less */
bool reclaim_alive(const struct disk *d, uint32_t incarnation);
/* Lists a record for dropped(); the name is copied. */
void reclaim_gone(struct disk *d, const struct disk_gone *rec);
void reclaim_report(struct disk *d); /* calls dropped(); no transaction is open */
void reclaim_doom(struct disk *d, uint64_t id, struct block_meta *m, uint64_t event);
bool reclaim_drop(struct disk *d, const uint64_t *ids, size_t n); /* reports and dooms blocks */
/* A snapshot for reading blocks on the writer thread; end it before the owner is called. */
bool reclaim_scan_begin(struct disk *d);
bool reclaim_scan_get(struct disk *d, MDB_dbi dbi, uint64_t id, struct slice *out);
bool reclaim_scan_block(struct disk *d, uint64_t id, struct slice *out); /* its data, which is read at once */
void reclaim_scan_end(struct disk *d);
/* A later record of the block has the same slot. */
bool reclaim_replaced(const struct disk *d, const char *block, const struct block_head *bh, uint32_t i, uint64_t hash);

/* clean.c */
bool clean_is_plain(const struct disk *d); /* records may be dropped, and no pains are taken */
/* Appends of that size are over the quota, as far as it refuses any. Any thread. */
bool clean_is_over(const struct disk *d, size_t bytes);
uint64_t clean_soon(const struct disk *d); /* bytes that the next commits but one will free */
bool clean_slice(struct disk *d);          /* writer thread; true: there is more to do at once */

/* dirs.c; under map_lock. Where the newest record of the key is, of a block whose directory is
 * known; *end holds the end of its records. Another key may have these bits. */
bool dirs_find(const struct disk *d, const struct block_meta *m, uint64_t id, uint32_t hash32, uint32_t *number,
               uint32_t *off, uint32_t *end);
void dirs_note(struct disk *d, struct block_meta *m, uint64_t id, const char *hashes, const char *offs, uint32_t len);
void dirs_free(struct disk *d);

/* reader.c */
int reader_start(struct disk *d);
void reader_stop(struct disk *d);
void reader_abort_txns(struct disk *d);

/* replay.c: 0, or why the file cannot be used */
int replay_run(struct disk *d);

/* env.c */
enum status env_open(struct disk *d, char err[256]);
int env_reopen(struct disk *d);
int env_grow_map(struct disk *d);
void env_close(struct disk *d);
int env_put_meta(struct disk *d, MDB_txn *txn, bool clean);
bool env_set_aside(struct disk *d, const char *why, char err[256]);
size_t env_map_wanted(uint64_t max_bytes);

/* guard.c. After the map was made, and before it goes; the writer thread, or the one that opens. */
void guard_map(struct disk *d, MDB_txn *txn);
void guard_unmap(struct disk *d);
bool guard_torn(const struct disk *d); /* a page of it could not be read */

/* verify.c: NULL, or what is wrong with the file. A missing or empty file is fine. */
const char *verify_file(const char *path);

#endif
