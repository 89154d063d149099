#ifndef TIERCEL_DISK_WORLD_H
#define TIERCEL_DISK_WORLD_H

/* What the memory tier is to the disk tier, as a plain model: for each key, the version
 * that must be on disk. For test_disk.c and test_disk_fault.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk/disk_priv.h"

#define SHARD_BITS 4
#define SHARDS (1u << SHARD_BITS)
#define KEYS_MAX 65536u
#define MB (1u << 20)

/* ---- the owner: what the memory tier would be ---- */

struct entry {
    uint32_t version; /* newest one made up so far */
    uint32_t pending; /* appended, and no commit was reported yet; 0 = none */
    uint32_t on_disk; /* committed; 0 = none, or there is a newer one pending */
    uint32_t carried; /* the block that it was carried from; once is enough */
    uint64_t ticket;
};

/* What a slot must stand for. */
static inline uint32_t entry_newest(const struct entry *e)
{
    return e->pending ? e->pending : e->on_disk;
}

struct world {
    struct disk *disk;
    struct disk_options opt;
    char dir[64];
    pthread_mutex_t lock[SHARDS];
    struct entry *keys;
    uint32_t nkeys;
    uint64_t *hashes; /* by key */
    uint32_t *by_hash;
    _Atomic uint64_t published, failed, dropped, rooms, notices, unhealthy, settled, settled_bad;
    bool loose;       /* the model may not know what is on disk */
    int64_t retry_us; /* 0: as in earnest */
    /* Of a test that wants to see more than the model does, or to say what stays. */
    void (*dropped_first)(struct world *w, const struct disk_gone *items, size_t n);
    bool (*keep_locked)(void *arg, const struct disk_gone *rec);
    pthread_mutex_t notice_mu;
    char last_notice[256];
};

static inline uint32_t world_inc(const struct world *w)
{
    return disk_incarnation(w->disk, 0);
}

static inline struct key world_key(const struct world *w, uint32_t k, char name[32])
{
    int len = snprintf(name, 32, "key:%u", k);
    uint32_t inc = world_inc(w);
    return (struct key){.ptr = name,
                        .len = (uint32_t)len,
                        .inc = (uint16_t)inc,
                        .hash = hash_key(disk_hash_seed(w->disk), inc, SLICE(name, (size_t)len))};
}

static inline uint32_t find_by_hash(const struct world *w, uint64_t hash)
{
    uint32_t mask = KEYS_MAX * 2 - 1;
    for (uint32_t i = (uint32_t)hash & mask; w->by_hash[i] != UINT32_MAX; i = (i + 1) & mask)
        if (w->hashes[w->by_hash[i]] == hash)
            return w->by_hash[i];
    return UINT32_MAX;
}

static inline pthread_mutex_t *world_lock(struct world *w, uint64_t hash)
{
    pthread_mutex_t *m = &w->lock[hash >> (64 - SHARD_BITS)];
    pthread_mutex_lock(m);
    return m;
}

static inline void on_committed(void *arg, const struct disk_done *items, size_t n, enum status st)
{
    struct world *w = arg;
    for (size_t i = 0; i < n; i++) {
        pthread_mutex_t *m = world_lock(w, items[i].hash);
        uint32_t k = find_by_hash(w, items[i].hash);
        struct entry *e = k == UINT32_MAX ? NULL : &w->keys[k];
        bool newest = e != NULL && e->pending != 0 && e->ticket == items[i].ticket;
        CHECK(items[i].note == (uint32_t)items[i].ticket);
        if (st == ST_OK) {
            uint32_t block;
            CHECK(!newest || (disk_find_locked(w->disk, items[i].hash, &block, NULL) && block == items[i].block));
            atomic_fetch_add(&w->published, 1);
        } else {
            CHECK(!disk_find_locked(w->disk, items[i].hash, NULL, NULL));
            /* An older record of the key in the same block gives the slot up, too. */
            bool was = disk_drop_locked(w->disk, items[i].hash, items[i].block);
            CHECK(was || !newest);
            newest = was;
            atomic_fetch_add(&w->failed, 1);
        }
        if (newest && e != NULL) {
            e->on_disk = st == ST_OK ? e->pending : 0;
            e->pending = 0;
        }
        pthread_mutex_unlock(m);
    }
}

static inline void on_dropped(void *arg, const struct disk_gone *items, size_t n)
{
    struct world *w = arg;
    if (w->dropped_first != NULL)
        w->dropped_first(w, items, n);
    for (size_t i = 0; i < n; i++) {
        pthread_mutex_t *m = world_lock(w, items[i].hash);
        uint32_t k = find_by_hash(w, items[i].hash);
        if (disk_drop_locked(w->disk, items[i].hash, items[i].block) && k != UINT32_MAX) {
            CHECK(w->loose || w->keys[k].on_disk != 0);
            w->keys[k].on_disk = 0;
            atomic_fetch_add(&w->dropped, 1);
        }
        pthread_mutex_unlock(m);
    }
}

static inline void on_settled(void *arg, uint64_t event, bool ok)
{
    struct world *w = arg;
    CHECK(event > atomic_load(&w->settled) && event <= disk_last_event(w->disk));
    CHECK(disk_settled_event(w->disk) >= event);
    atomic_store(&w->settled, event);
    if (!ok)
        atomic_store(&w->settled_bad, event);
}

static inline void on_lock(void *arg, uint64_t hash)
{
    world_lock(arg, hash);
}

static inline void on_unlock(void *arg, uint64_t hash)
{
    struct world *w = arg;
    pthread_mutex_unlock(&w->lock[hash >> (64 - SHARD_BITS)]);
}

static inline void on_room(void *arg)
{
    struct world *w = arg;
    atomic_fetch_add(&w->rooms, 1);
}

static inline void on_notice(void *arg, bool healthy, const char *text)
{
    struct world *w = arg;
    atomic_fetch_add(&w->notices, 1);
    if (!healthy)
        atomic_fetch_add(&w->unhealthy, 1);
    pthread_mutex_lock(&w->notice_mu);
    snprintf(w->last_notice, sizeof(w->last_notice), "%s", text);
    pthread_mutex_unlock(&w->notice_mu);
}

static inline bool noticed(struct world *w, const char *text)
{
    pthread_mutex_lock(&w->notice_mu);
    bool is = strstr(w->last_notice, text) != NULL;
    pthread_mutex_unlock(&w->notice_mu);
    return is;
}

static inline struct world *world_new(uint32_t nkeys)
{
    struct world *w = calloc(1, sizeof(*w));
    CHECK(w != NULL && nkeys <= KEYS_MAX);
    snprintf(w->dir, sizeof(w->dir), "/tmp/tiercel-disk-XXXXXX");
    CHECK(mkdtemp(w->dir) != NULL);
    w->nkeys = nkeys;
    w->keys = calloc(nkeys, sizeof(*w->keys));
    w->hashes = calloc(nkeys, sizeof(*w->hashes));
    w->by_hash = malloc(KEYS_MAX * 2 * sizeof(*w->by_hash));
    memset(w->by_hash, 0xff, KEYS_MAX * 2 * sizeof(*w->by_hash));
    pthread_mutex_init(&w->notice_mu, NULL);
    for (unsigned i = 0; i < SHARDS; i++)
        pthread_mutex_init(&w->lock[i], NULL);
    w->opt = (struct disk_options){.dir = w->dir,
                                   .max_bytes = 256 * MB,
                                   .retain = DISK_RETAIN_HOT,
                                   .shard_bits = SHARD_BITS,
                                   .databases = 4,
                                   .readers = 2,
                                   .commit_ms = 20,
                                   .commit_bytes = MB,
                                   .queue_max_bytes = 64 * MB,
                                   .fresh_seed = 42,
                                   .owner = {.arg = w, .notice = on_notice}};
    return w;
}

static inline void world_open(struct world *w)
{
    char err[256];
    enum status st = disk_open(&w->opt, &w->disk, err);
    if (st != ST_OK)
        print_message("disk_open: %s: %s\n", status_text(st), err);
    CHECK(st == ST_OK);
    memset(w->by_hash, 0xff, KEYS_MAX * 2 * sizeof(*w->by_hash));
    for (uint32_t k = 0; k < w->nkeys; k++) {
        char name[32];
        w->hashes[k] = world_key(w, k, name).hash;
        uint32_t i = (uint32_t)w->hashes[k] & (KEYS_MAX * 2 - 1);
        while (w->by_hash[i] != UINT32_MAX)
            i = (i + 1) & (KEYS_MAX * 2 - 1);
        w->by_hash[i] = k;
    }
    if (w->retry_us != 0)
        w->disk->retry_us = w->retry_us;
    atomic_store(&w->settled, 0);
    struct disk_owner owner = {.arg = w,
                               .committed = on_committed,
                               .settled = on_settled,
                               .dropped = on_dropped,
                               .lock = on_lock,
                               .unlock = on_unlock,
                               .keep_locked = w->keep_locked,
                               .room = on_room,
                               .notice = on_notice};
    CHECK(disk_start(w->disk, &owner, err) == ST_OK);
}

static inline int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static inline void world_free(struct world *w)
{
    if (w->disk != NULL)
        disk_close(w->disk);
    nftw(w->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(w->keys);
    free(w->hashes);
    free(w->by_hash);
    free(w);
}

static inline void world_reopen(struct world *w)
{
    disk_close(w->disk);
    world_open(w);
}

/* A world, not opened, with the file as it is now, which is what a crash leaves; the model is copied, too. */
static inline struct world *world_image(struct world *w)
{
    struct world *v = world_new(w->nkeys);
    char cmd[300];
    snprintf(cmd, sizeof(cmd), "cp %s/tiercel.mdb %s/", w->dir, v->dir);
    CHECK(system(cmd) == 0);
    for (unsigned i = 0; i < SHARDS; i++)
        pthread_mutex_lock(&w->lock[i]);
    memcpy(v->keys, w->keys, w->nkeys * sizeof(*v->keys));
    for (unsigned i = 0; i < SHARDS; i++)
        pthread_mutex_unlock(&w->lock[i]);
    return v;
}

/* ---- values that tell what they are ---- */

static inline void value_make(struct buf *b, uint32_t k, uint32_t version, size_t len)
{
    uint32_t head[3] = {k, version, (uint32_t)len};
    uint64_t seed = (uint64_t)k << 32 | version;
    buf_append(b, head, sizeof(head));
    while (b->len < len) {
        uint64_t r = rng_next(&seed);
        buf_append(b, &r, len - b->len < 8 ? len - b->len : 8);
    }
}

/* The version, or 0 where it is not a value of that key. */
static inline uint32_t value_version(struct slice s, uint32_t k)
{
    uint32_t head[3];
    struct buf b;
    if (s.len < sizeof(head))
        return 0;
    memcpy(head, s.ptr, sizeof(head));
    if (head[0] != k || head[2] != s.len)
        return 0;
    buf_init(&b, MEM_OTHER);
    value_make(&b, k, head[1], s.len);
    bool same = slice_eq(buf_slice(&b), s);
    buf_deinit(&b);
    return same ? head[1] : 0;
}

/* Appends the next version, `len` bytes of payload (at least 12), ref_from on as an rcbuf. */
static inline enum status put_record(struct world *w, uint32_t k, size_t len, size_t ref_from, int64_t expire_ms,
                                     bool must)
{
    char name[32];
    struct buf b;
    struct key key = world_key(w, k, name);
    buf_init(&b, MEM_OTHER);
    pthread_mutex_t *m = world_lock(w, key.hash);
    struct entry *e = &w->keys[k];
    value_make(&b, k, ++e->version, len < 12 ? 12 : len);
    size_t prefix = ref_from && ref_from < b.len ? ref_from : b.len;
    struct rcbuf *ref = prefix < b.len ? rcbuf_copy(SLICE(b.ptr + prefix, b.len - prefix)) : NULL;
    struct disk_record rec = {.key = key,
                              .incarnation = world_inc(w),
                              .type = OBJ_STRING,
                              .expire_ms = expire_ms,
                              .origin = e->version % 3 ? 0 : k + 1,
                              .payload = SLICE(b.ptr, prefix),
                              .payload_ref = ref,
                              .ticket = (uint64_t)k << 32 | e->version,
                              .note = e->version,
                              .must = must};
    enum status st = disk_append_locked(w->disk, &rec);
    if (st == ST_OK) {
        CHECK(disk_pending_locked(w->disk, key.hash) != 0 || disk_find_locked(w->disk, key.hash, NULL, NULL));
        e->pending = e->version;
        e->ticket = rec.ticket;
    } else { /* the older value is not the key's any more */
        bool had = disk_forget_locked(w->disk, key.hash, NULL);
        CHECK(had == (entry_newest(e) != 0));
        e->pending = 0;
    }
    e->on_disk = 0;
    pthread_mutex_unlock(m);
    rcbuf_unref(ref);
    buf_deinit(&b);
    return st;
}

static inline enum status put_value(struct world *w, uint32_t k, size_t len, size_t ref_from, int64_t expire_ms)
{
    return put_record(w, k, len, ref_from, expire_ms, false);
}

static inline void forget_key(struct world *w, uint32_t k)
{
    uint64_t hash = w->hashes[k];
    pthread_mutex_t *m = world_lock(w, hash);
    struct entry *e = &w->keys[k];
    bool had = disk_forget_locked(w->disk, hash, NULL);
    CHECK(had == (entry_newest(e) != 0));
    e->on_disk = e->pending = 0;
    pthread_mutex_unlock(m);
}

/* Where the model does not know what is on disk. */
static inline void forget_quietly(struct world *w, uint32_t k)
{
    pthread_mutex_t *m = world_lock(w, w->hashes[k]);
    disk_forget_locked(w->disk, w->hashes[k], NULL);
    w->keys[k].on_disk = w->keys[k].pending = 0;
    pthread_mutex_unlock(m);
}

struct get {
    struct disk_read rd;
    struct world *w;
    char name[32];
    uint32_t k, version;
    enum status st;
    int64_t expire_ms;
    uint64_t origin;
    uint32_t block, written_s;
    _Atomic bool ended;
};

static inline void get_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct get *g = (struct get *)rd;
    g->st = st;
    g->version = 0;
    if (st == ST_OK) {
        g->version = value_version(rec->payload, g->k);
        g->expire_ms = rec->expire_ms;
        g->origin = rec->origin;
        g->block = rec->block;
        g->written_s = rec->written_s;
        CHECK(g->version != 0 && rec->type == OBJ_STRING);
    }
    atomic_store(&g->ended, true);
}

static inline bool find_block(struct world *w, uint64_t hash, uint32_t *block)
{
    pthread_mutex_t *m = world_lock(w, hash);
    bool found = disk_find_locked(w->disk, hash, block, NULL);
    pthread_mutex_unlock(m);
    return found;
}

/* What cleaning does with a live record. */
static inline bool carry_key(struct world *w, uint32_t k)
{
    struct disk *d = w->disk;
    struct entry *e = &w->keys[k];
    uint64_t hash = w->hashes[k];
    uint32_t block = 0;
    bool carried = false;
    MDB_txn *txn;
    pthread_mutex_t *m = world_lock(w, hash);
    if (disk_find_locked(d, hash, &block, NULL) && e->carried != block) {
        uint64_t id = block_id_of_api(d, block);
        MDB_val key = {sizeof(id), &id}, val;
        struct block_head bh;
        struct rec_head h;
        struct disk_record rec;
        pthread_rwlock_rdlock(&d->map_lock);
        if (d->env != NULL && mdb_txn_begin(d->env, NULL, MDB_RDONLY, &txn) == 0) {
            CHECK(mdb_get(txn, d->dbi_data, &key, &val) == 0 && block_parse(SLICE(val.mv_data, val.mv_size), &bh));
            uint32_t i = bh.count;
            do { /* the newest one */
                CHECK(i-- > 0 && record_parse(val.mv_data, bh.dir, block_offset(val.mv_data, &bh, i), &h, &rec));
            } while (h.hash != hash);
            const char *raw = (const char *)val.mv_data + block_offset(val.mv_data, &bh, i);
            size_t len = (size_t)(rec.payload.ptr + rec.payload.len - raw);
            CHECK(record_intact(raw, &h, NULL));
            carried = queue_carry_locked(d, hash, id, raw, len, h.incarnation, rec.expire_ms);
            mdb_txn_abort(txn);
        }
        pthread_rwlock_unlock(&d->map_lock);
        if (carried)
            e->carried = block;
    }
    pthread_mutex_unlock(m);
    return carried;
}

/* The version on disk; 0 = none. Through the readers or on this thread. Again: the record may
 * have been carried to another block meanwhile. */
static inline uint32_t read_version(struct world *w, uint32_t k, bool now, bool again, struct get *g)
{
    uint32_t before = again ? g->rd.block : 0;
    *g = (struct get){.w = w, .k = k};
    g->rd.key = world_key(w, k, g->name);
    g->rd.incarnation = world_inc(w);
    g->rd.done = get_done;
    if (!find_block(w, g->rd.key.hash, &g->rd.block))
        return 0;
    if (again && g->rd.block == before)
        return 0;
    if (now) {
        disk_read_now(w->disk, &g->rd);
    } else {
        struct list reads;
        list_init(&reads);
        list_push_back(&reads, &g->rd.link);
        disk_read_submit(w->disk, &reads);
        while (!atomic_load(&g->ended))
            usleep(20);
    }
    return g->st == ST_NOT_FOUND ? read_version(w, k, now, true, g) : g->version;
}

static inline uint32_t get_version(struct world *w, uint32_t k, bool now, struct get *g)
{
    return read_version(w, k, now, false, g);
}

static inline uint32_t on_disk_now(struct world *w, uint32_t k)
{
    pthread_mutex_t *m = world_lock(w, w->hashes[k]);
    uint32_t version = w->keys[k].on_disk;
    pthread_mutex_unlock(m);
    return version;
}

/* One that expires may be swept meanwhile. */
static inline void check_all(struct world *w)
{
    struct get g;
    for (uint32_t k = 0; k < w->nkeys; k++) {
        uint32_t before = on_disk_now(w, k), version = get_version(w, k, k % 8 != 0, &g);
        CHECK(version == before || version == on_disk_now(w, k));
    }
}

static inline void sync_ok(struct world *w)
{
    CHECK(disk_sync(w->disk, 20000) == ST_OK);
}

/* The block that the key's slot names, pending or committed; 0 = none. */
static inline uint32_t key_block(struct world *w, uint32_t k, bool *pending)
{
    uint32_t block = 0;
    pthread_mutex_t *m = world_lock(w, w->hashes[k]);
    bool found = disk_find_locked(w->disk, w->hashes[k], &block, NULL);
    *pending = !found && (block = disk_pending_locked(w->disk, w->hashes[k])) != 0;
    pthread_mutex_unlock(m);
    return block;
}

static inline uint64_t commits(const struct world *w)
{
    struct disk_stats st;
    disk_get_stats(w->disk, &st);
    return st.commits;
}

static inline void wait_healthy(struct world *w, bool healthy)
{
    for (int i = 0; i < 10000 && disk_healthy(w->disk) != healthy; i++)
        usleep(1000);
    CHECK(disk_healthy(w->disk) == healthy);
}

static inline void wait_settled(struct world *w, uint64_t event)
{
    while (atomic_load(&w->settled) < event)
        usleep(100);
    CHECK(atomic_load(&w->settled) == event);
}

static inline uint64_t file_size(const struct world *w)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

#endif
