#ifndef TIERCEL_DISK_PRIV_H
#define TIERCEL_DISK_PRIV_H

#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>

#include "tiercel/alloc.h"
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
 *   reclaim.c what leaves the disk: quota, dead incarnations, dead blocks, expiry
 *   reader.c  the reader threads
 *   replay.c  index from `keys` at the start
 *   env.c     opening, checking and setting aside the file
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
#define RETRY_US 1000000
#define EXPIRE_AGAIN_S 60u /* a swept block is not swept again sooner */

/* ---- bytes on disk (little endian; see record.c) ---- */

#define FORMAT_VERSION 1u
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
    uint32_t word; /* tombstone 1 | expire 1 | 6 zero | palette 8 | record number 16 */
} __attribute__((packed));

#define OP_TOMB 0x80000000u
#define OP_EXPIRE 0x40000000u
#define OP_PALETTE(word) (((word) >> 16) & 0xff)

struct keys_head {
    uint64_t checksum; /* of all that follows */
    uint32_t magic, nops, npal, min_expire_s;
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
_Static_assert(sizeof(struct keys_head) == 24, "on-disk layout");
_Static_assert(sizeof(struct meta_value) == 40, "on-disk layout");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is written as the machine has it");

/* ---- index ---- */

/* A slot: tag 39 | has_expire 1 | block number 24. The low 25 bits are its `place`. */
#define PLACE_BITS 25
#define PLACE_MASK ((1u << PLACE_BITS) - 1)
#define PLACE_EXPIRE (1u << 24)

struct index_shard {
    uint64_t *slots; /* len + 1, the last one stays 0; sorted by tag; NULL while empty */
    size_t cap;      /* home = tag * cap >> DISK_TAG_BITS */
    _Atomic size_t len, count;
};

bool index_find(const struct index_shard *s, uint64_t tag, uint32_t *place);
/* Returns whether there was one, then *old is its place. */
bool index_put(struct index_shard *s, uint64_t tag, uint32_t place, uint32_t *old);
bool index_remove(struct index_shard *s, uint64_t tag, uint32_t *old);
/* Removes only if it names that block number. */
bool index_remove_block(struct index_shard *s, uint64_t tag, uint32_t number);
/* First slot at or after `pos` in the array, or NULL; *pos goes behind it. */
const uint64_t *index_next(const struct index_shard *s, size_t *pos);
size_t index_lower_bound(const struct index_shard *s, uint64_t tag);
void index_reserve(struct index_shard *s, size_t keys);
void index_clear(struct index_shard *s);
void index_prefetch(const struct index_shard *s, uint64_t tag);

/* ---- blocks ---- */

#define BLOCK_DATA 1u      /* has an entry in `data` */
#define BLOCK_KEYS 2u      /* has an entry in `keys` */
#define BLOCK_DOOMED 4u    /* nothing refers to it; to be deleted */
#define BLOCK_DELETING 16u /* in the transaction that is being made */
#define BLOCK_DIRTY 8u     /* tombstones of its records were lost: must go before the disk counts as healthy */

struct block_meta {
    _Atomic uint32_t live;  /* index slots that name it */
    _Atomic uint32_t flags; /* set by the writer, except DIRTY */
    uint32_t bytes;         /* writer only */
    uint32_t min_expire_s;  /* writer only; 0 = none */
};

struct block_chunk {
    struct block_meta meta[META_CHUNK];
};

/* A block on its way to the disk. */
struct block {
    struct list link;
    uint64_t id, last_event;
    char *data; /* NULL: tombstones only (so far) */
    size_t data_len, data_cap;
    struct rcbuf *ref; /* the rest of a large record's payload */
    size_t queue_bytes;
    struct disk_op *ops;
    uint32_t nops, ops_cap;
    struct disk_done *done; /* one per record */
    uint32_t *offs;
    uint32_t nrec, rec_cap;
    uint32_t npal;
    uint32_t min_expire_s;
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
    _Atomic uint64_t appends, appended_bytes, tombstones, commits, commit_us, written_bytes;
    _Atomic uint64_t reads, read_misses, corrupt, io_errors, dropped_keys, expired_keys;
    _Atomic uint64_t file_bytes, block_bytes, last_commit_ms;
};

struct reader {
    struct disk *disk;
    pthread_t thread;
    bool started;
    MDB_txn *txn; /* reset between batches; touched under map_lock */
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

    unsigned hash_bits; /* indexed: shard bits + tag bits */
    size_t shards;
    struct index_shard *index;

    _Atomic(struct block_chunk *) chunks[META_CHUNKS];
    _Atomic uint64_t head; /* newest id given out */
    _Atomic uint64_t tail; /* oldest id that may have an entry */
    _Atomic uint32_t dead_hint;
    _Atomic bool any_dirty, sweeping; /* sweeping: what is dropped now has expired */

    _Atomic bool healthy, drop_oldest;
    _Atomic uint64_t max_bytes;
    _Atomic uint64_t used_bytes;
    _Atomic size_t queue_bytes;
    _Atomic uint32_t *incarnation; /* per database; written under mu */

    /* queue, under mu */
    pthread_mutex_t mu;
    pthread_cond_t wake, settled;
    struct block *open;
    struct list sealed, pool;
    size_t pool_n, waiting_bytes;
    uint64_t events, settled_events, sync_events, failures;
    uint64_t reclaim_events;
    int64_t first_event_us, reclaim_at_us;
    size_t retained_n, waiting_tombs;
    bool want_room, closing, meta_dirty, work_soon;
    bool writer_started;

    /* writer thread only */
    pthread_t writer;
    MDB_txn *scan_txn;
    uint64_t committed_head;
    struct disk_op *retained;
    size_t retained_cap;
    uint64_t retained_id;
    uint64_t *doomed;
    size_t doomed_n, doomed_cap;
    uint64_t doomed_bytes, data_bytes, keys_bytes;
    uint64_t frag_reserve, soft_max;
    int64_t soft_until_us, retry_at_us, doomed_at_us;
    uint64_t reclaim_cursor, reclaim_end, dead_cursor, dead_end, expire_cursor;
    bool reclaiming, dead_scan, env_broken;
    bool drop_pending; /* records were dropped without tombstones: their blocks must go soon */
    int64_t house_at_us, dead_at_us;
    struct disk_gone *gone;
    size_t gone_n, gone_cap;
    struct disk_done *done;
    size_t done_cap;

    /* readers */
    pthread_mutex_t read_mu;
    pthread_cond_t read_wake;
    struct list reads;
    bool read_stop;
    struct reader *readers;

    struct counters n;
};

#define COUNT(d, field, by) atomic_fetch_add_explicit(&(d)->n.field, (uint64_t)(by), memory_order_relaxed)
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
void block_free_all(struct disk *d);

/* record.c */
size_t record_head_bytes(const struct disk_record *rec); /* all but key and payload */
char *record_write_head(char *p, const struct disk_record *rec, size_t payload_len);
void record_seal(char *p, size_t len);
/* Parses the record at `off`; false: out of bounds or not of this version. */
bool record_parse(const char *block, size_t dir, size_t off, struct rec_head *head, struct disk_record *rec);
bool record_intact(const char *p, const struct rec_head *head);
bool block_parse(struct slice block, struct block_head *head);
size_t block_offset(const char *block, const struct block_head *head, uint32_t i);
uint64_t block_record_hash32(const char *block, const struct block_head *head, uint32_t i);
enum status block_find(const struct disk *d, struct slice block, const struct disk_read *rd, struct disk_record *rec);
size_t keys_bytes(uint32_t npal, size_t nops);
void keys_write(char *p, const uint32_t *palette, uint32_t npal, const struct disk_op *ops, size_t nops,
                uint32_t min_expire_s);
bool keys_parse(struct slice value, struct keys_view *out);

/* queue.c */
void queue_init(struct disk *d);
void queue_deinit(struct disk *d);
void queue_recycle(struct disk *d, struct block *b);
/* Takes what a commit may hold. */
void queue_take_locked(struct disk *d, struct batch *batch, size_t limit);

/* commit.c */
size_t commit_cost(const struct disk *d, size_t value_len);
size_t commit_block_cost(const struct disk *d, const struct block *b);
/* 0 or an LMDB/errno code, then nothing has changed. */
int commit_run(struct disk *d, const struct batch *batch, bool clean);
void commit_measure(struct disk *d, MDB_txn *txn);

/* writer.c */
void *writer_main(void *arg);
void writer_notice(struct disk *d, bool healthy, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* reclaim.c; writer thread */
void reclaim_for(struct disk *d, size_t incoming, size_t extra);
void reclaim_dirty(struct disk *d);
bool reclaim_slice(struct disk *d); /* housekeeping; true: there is more to do at once */
bool reclaim_commit_due(const struct disk *d, int64_t now_us);

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

/* verify.c: NULL, or what is wrong with the file. A missing or empty file is fine. */
const char *verify_file(const char *path);

#endif
