/* The file: opening, checking, setting aside, remapping. Everything that LMDB needs is set
 * up here. */
#include "disk_priv.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#define META_CHECKSUM_SEED 0x6d657461ULL
#define MAP_SMALL (256ULL << 20)
#define MAP_LARGE (64ULL << 30)
#define MAP_HUGE (16ULL << 40)
#define MAP_SANITIZED (8ULL << 30)

static const char meta_name[] = "tiercel";

/* A sparse map costs address space only; being generous saves remapping. */
size_t env_map_wanted(uint64_t max_bytes)
{
    uint64_t want = max_bytes * 4 > MAP_LARGE ? max_bytes * 4 : MAP_LARGE;
    if (SANITIZED)
        want = MAP_SANITIZED + max_bytes * 2;
    return (size_t)(want > MAP_HUGE ? MAP_HUGE : want);
}

static uint64_t env_map_least(uint64_t max_bytes)
{
    return max_bytes + max_bytes / 4 + MAP_SMALL;
}

static int env_create(struct disk *d, size_t map)
{
    int rc = mdb_env_create(&d->env);
    if (rc != 0)
        return rc;
    size_t unit = 1 << 16;
    map = (map + unit - 1) / unit * unit;
    rc = mdb_env_set_maxdbs(d->env, 4);
    if (rc == 0)
        rc = mdb_env_set_maxreaders(d->env, d->opt.readers + 512);
    if (rc == 0)
        rc = mdb_env_set_mapsize(d->env, map);
    if (rc == 0)
        rc = mdb_env_open(d->env, d->path, MDB_NOSUBDIR | MDB_NOTLS | MDB_NOMEMINIT | MDB_NORDAHEAD, 0600);
    if (rc != 0) {
        mdb_env_close(d->env);
        d->env = NULL;
        return rc;
    }
    d->map_bytes = map;
    return 0;
}

/* Where address space is limited, a smaller map must do. */
static int env_map(struct disk *d)
{
    uint64_t max = PEEK(d->max_bytes), least = env_map_least(max);
    uint64_t map = env_map_wanted(max);
    int rc;
    /* We hold tiercel.lock: readers and mutexes in LMDB's lock file are of a process that is gone. */
    unlink(d->lmdb_lock_path);
    while ((rc = env_create(d, map)) == ENOMEM && map > least)
        map = map / 2 > least ? map / 2 : least;
    return rc;
}

/* LMDB reads the map as far as its meta page says; the file must be that long. */
static int env_check_length(struct disk *d)
{
    MDB_envinfo info;
    MDB_stat st;
    struct stat fs;
    int fd;
    if (mdb_env_info(d->env, &info) != 0 || mdb_env_stat(d->env, &st) != 0 || mdb_env_get_fd(d->env, &fd) != 0 ||
        fstat(fd, &fs) != 0)
        return MDB_CORRUPTED;
    d->page = st.ms_psize;
    d->node_max = (((d->page - 16) / 2) & ~(size_t)1) - 2; /* LMDB's me_nodemax: two nodes to a page */
    uint64_t bytes = ((uint64_t)info.me_last_pgno + 1) * d->page;
    atomic_store_explicit(&d->n.file_bytes, bytes, memory_order_relaxed);
    return info.me_last_pgno > 1 && (uint64_t)fs.st_size < bytes ? MDB_CORRUPTED : 0;
}

static uint64_t meta_sum(const struct meta_value *m, const char *incarnations)
{
    size_t from = offsetof(struct meta_value, seed);
    uint64_t sum = hash_bytes(META_CHECKSUM_SEED, (const char *)m + from, sizeof(*m) - from);
    return hash_bytes(sum, incarnations, (size_t)m->databases * 4);
}

int env_put_meta(struct disk *d, MDB_txn *txn, bool clean)
{
    size_t len = sizeof(struct meta_value) + (size_t)d->opt.databases * 4;
    MDB_val key = {sizeof(meta_name) - 1, (void *)(uintptr_t)meta_name}, val = {.mv_size = len};
    struct meta_value m = {
        .magic = META_MAGIC, .format = FORMAT_VERSION, .seed = d->seed, .clean = clean, .databases = d->opt.databases};
    for (size_t i = 0; clean && i < d->shards; i++)
        m.keys_hint += PEEK(d->index[i].count);
    int rc = mdb_put(txn, d->dbi_meta, &key, &val, MDB_RESERVE);
    if (rc != 0)
        return rc;
    char *inc = (char *)val.mv_data + sizeof(m);
    for (unsigned db = 0; db < d->opt.databases; db++)
        memcpy(inc + (size_t)db * 4, &d->meta_incarnation[db], 4);
    m.checksum = meta_sum(&m, inc);
    memcpy(val.mv_data, &m, sizeof(m));
    return 0;
}

static int env_parse_meta(struct disk *d, const MDB_val *val)
{
    struct meta_value m;
    if (val->mv_size < 8 || load32(val->mv_data) != META_MAGIC)
        return MDB_INVALID;
    if (load32((const char *)val->mv_data + 4) != FORMAT_VERSION)
        return MDB_VERSION_MISMATCH;
    if (val->mv_size < sizeof(m))
        return MDB_CORRUPTED;
    memcpy(&m, val->mv_data, sizeof(m));
    const char *inc = (const char *)val->mv_data + sizeof(m);
    if (val->mv_size != sizeof(m) + (uint64_t)m.databases * 4 || meta_sum(&m, inc) != m.checksum)
        return MDB_CORRUPTED;
    d->seed = m.seed;
    uint32_t last = 0;
    for (unsigned db = 0; db < m.databases; db++) {
        uint32_t v = load32(inc + (size_t)db * 4);
        last = v > last ? v : last;
        if (db < d->opt.databases)
            atomic_store_explicit(&d->incarnation[db], v, memory_order_relaxed);
    }
    for (unsigned db = m.databases; db < d->opt.databases; db++)
        atomic_store_explicit(&d->incarnation[db], ++last, memory_order_relaxed);
    size_t hint = (size_t)(m.keys_hint / d->shards);
    for (size_t i = 0; hint < (1u << 30) && i < d->shards; i++)
        index_reserve(&d->index[i], hint);
    return 0;
}

/* Looks at a file that may be anybody's, without changing it. MDB_NOTFOUND: it is empty. */
static int env_read_meta(struct disk *d)
{
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_stat st;
    MDB_val key = {sizeof(meta_name) - 1, (void *)(uintptr_t)meta_name}, val;
    int rc = mdb_txn_begin(d->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0)
        return rc;
    rc = mdb_dbi_open(txn, "meta", 0, &dbi);
    if (rc == 0) {
        rc = mdb_get(txn, dbi, &key, &val);
        rc = rc == 0 ? env_parse_meta(d, &val) : MDB_INVALID;
    } else if (mdb_env_stat(d->env, &st) != 0 || st.ms_entries != 0) {
        rc = MDB_INVALID;
    } else {
        rc = MDB_NOTFOUND;
    }
    mdb_txn_abort(txn);
    return rc;
}

/* After a commit whose outcome was unclear: what came later than we know of is not ours. */
static int delete_newer(MDB_txn *txn, MDB_dbi dbi, uint64_t id)
{
    MDB_cursor *c;
    MDB_val key, val;
    int rc = mdb_cursor_open(txn, dbi, &c);
    if (rc != 0)
        return rc;
    while ((rc = mdb_cursor_get(c, &key, &val, MDB_LAST)) == 0 && load64(key.mv_data) > id && rc == 0)
        rc = mdb_cursor_del(c, 0);
    mdb_cursor_close(c);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int env_open_dbis(struct disk *d, uint64_t newest)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(d->env, NULL, 0, &txn);
    if (rc != 0)
        return rc;
    rc = mdb_dbi_open(txn, "data", MDB_CREATE | MDB_INTEGERKEY, &d->dbi_data);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "keys", MDB_CREATE | MDB_INTEGERKEY, &d->dbi_keys);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "meta", MDB_CREATE, &d->dbi_meta);
    if (rc == 0)
        rc = delete_newer(txn, d->dbi_data, newest);
    if (rc == 0)
        rc = delete_newer(txn, d->dbi_keys, newest);
    if (rc == 0)
        rc = env_put_meta(d, txn, false);
    if (rc == 0)
        commit_measure(d, txn);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc;
    }
    return mdb_txn_commit(txn);
}

/* The writer's own read transaction, reset. */
static int env_open_scan(struct disk *d)
{
    int rc = mdb_txn_begin(d->env, NULL, MDB_RDONLY, &d->scan_txn);
    if (rc == 0) {
        guard_map(d, d->scan_txn);
        mdb_txn_reset(d->scan_txn);
    } else {
        d->scan_txn = NULL;
    }
    return rc;
}

void env_close(struct disk *d)
{
    if (d->scan_txn != NULL)
        mdb_txn_abort(d->scan_txn);
    d->scan_txn = NULL;
    guard_unmap(d);
    if (d->env != NULL)
        mdb_env_close(d->env);
    d->env = NULL;
}

/* Of the files that were set aside only the newest is kept: each may be as large as the quota. */
static void remove_older_bad(struct disk *d, const char *keep)
{
    static const char prefix[] = "tiercel.mdb.bad-";
    const struct dirent *e;
    char path[4096];
    DIR *dir = opendir(d->opt.dir);
    while (dir != NULL && (e = readdir(dir)) != NULL) {
        int n = snprintf(path, sizeof(path), "%s/%s", d->opt.dir, e->d_name);
        if (strncmp(e->d_name, prefix, sizeof(prefix) - 1) != 0 || n < 0 || (size_t)n >= sizeof(path) ||
            strcmp(path, keep) == 0)
            continue;
        if (unlink(path) == 0)
            writer_notice(d, true, "removed %.200s, which was set aside earlier", path);
    }
    if (dir != NULL)
        closedir(dir);
}

bool env_set_aside(struct disk *d, const char *why, char err[256])
{
    char to[4096];
    env_close(d);
    int n = snprintf(to, sizeof(to), "%s.bad-%lld", d->path, (long long)clock_wall_ms());
    if (n < 0 || (size_t)n >= sizeof(to) || rename(d->path, to) != 0) {
        snprintf(err, 256, "cannot set the unusable file %.150s aside: %s", d->path, strerror(errno));
        return false;
    }
    remove_older_bad(d, to);
    writer_notice(d, true, "disk file set aside as %.150s: %s", to, why);
    return true;
}

static const char *env_unusable(int rc)
{
    switch (rc) {
    case MDB_VERSION_MISMATCH: return "made by another version";
    case MDB_INVALID:
    case MDB_INCOMPATIBLE: return "not a file of ours";
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_BAD_TXN:
    case MDB_BAD_VALSIZE:
    case MDB_CURSOR_FULL:
    case MDB_PANIC: return "damaged";
    default: return NULL;
    }
}

static int env_try(struct disk *d)
{
    int rc = env_map(d);
    if (rc == 0)
        rc = env_check_length(d);
    if (rc == 0)
        rc = env_read_meta(d);
    if (rc == MDB_NOTFOUND) {
        d->seed = d->opt.fresh_seed;
        for (unsigned db = 0; db < d->opt.databases; db++)
            atomic_store_explicit(&d->incarnation[db], db + 1, memory_order_relaxed);
        rc = 0;
    }
    for (unsigned db = 0; db < d->opt.databases; db++)
        d->meta_incarnation[db] = PEEK(d->incarnation[db]);
    if (rc == 0)
        rc = env_open_dbis(d, UINT64_MAX);
    if (rc == 0)
        rc = env_open_scan(d);
    return rc == 0 ? replay_run(d) : rc;
}

enum status env_open(struct disk *d, char err[256])
{
    for (int attempt = 0;; attempt++) {
        const char *why = verify_file(d->path);
        int rc = why == NULL ? env_try(d) : MDB_CORRUPTED;
        if (rc == 0)
            return ST_OK;
        if (why == NULL)
            why = env_unusable(rc);
        for (size_t i = 0; i < d->shards; i++)
            index_clear(&d->index[i]);
        block_free_all(d);
        if (why == NULL || attempt > 0) {
            snprintf(err, 256, "cannot open %.150s: %s", d->path, mdb_strerror(rc));
            env_close(d);
            return ST_IO;
        }
        if (!env_set_aside(d, why, err))
            return ST_IO;
    }
}

/* After LMDB gave up on its environment. map_lock is taken: no reader is in a transaction. */
int env_reopen(struct disk *d)
{
    pthread_rwlock_wrlock(&d->map_lock);
    reader_abort_txns(d);
    env_close(d);
    int rc = verify_file(d->path) == NULL ? env_map(d) : MDB_CORRUPTED;
    if (rc == 0)
        rc = env_check_length(d);
    if (rc == 0)
        rc = env_open_dbis(d, d->committed_head);
    if (rc == 0)
        rc = env_open_scan(d);
    if (rc != 0)
        env_close(d);
    pthread_rwlock_unlock(&d->map_lock);
    return rc;
}

int env_grow_map(struct disk *d)
{
    size_t want = env_map_wanted(PEEK(d->max_bytes));
    if (d->map_bytes >= env_map_least(PEEK(d->max_bytes)))
        return 0;
    pthread_rwlock_wrlock(&d->map_lock);
    reader_abort_txns(d);
    if (d->scan_txn != NULL)
        mdb_txn_abort(d->scan_txn);
    d->scan_txn = NULL;
    guard_unmap(d);
    int rc = mdb_env_set_mapsize(d->env, want);
    if (rc == 0) {
        d->map_bytes = want;
        rc = env_open_scan(d);
    }
    if (rc != 0)
        env_close(d); /* the old map is gone; recovery opens anew, with less if need be */
    pthread_rwlock_unlock(&d->map_lock);
    return rc;
}
