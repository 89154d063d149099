/* The disk tier under failing writes, damaged files, crashes, and many threads. */
#include "disk_shim.h"
#include "disk_world.h"

/* ---- failures ---- */

static void test_write_failure(void **state)
{
    (void)state;
    struct world *w = world_new(2000);
    struct rlimit was, tight;
    signal(SIGXFSZ, SIG_IGN);
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 1000, 0, 0);
    sync_ok(w);
    getrlimit(RLIMIT_FSIZE, &was);
    tight = was;
    tight.rlim_cur = 4096; /* nothing but the first page can be written */
    setrlimit(RLIMIT_FSIZE, &tight);
    for (uint32_t k = 0; k < 1000; k++)
        put_value(w, k, 1000, 0, 0);
    assert_int_equal(disk_sync(w->disk, 10000), ST_IO);
    assert_false(disk_healthy(w->disk));
    assert_true(atomic_load(&w->unhealthy) == 1 && atomic_load(&w->failed) > 0);
    assert_int_equal(put_value(w, 0, 1000, 0, 0), ST_IO);
    forget_key(w, 1500); /* its tombstone waits */
    usleep(1300000);     /* one retry fails */
    assert_false(disk_healthy(w->disk));
    check_all(w); /* reading goes on */
    setrlimit(RLIMIT_FSIZE, &was);
    for (int i = 0; i < 500 && !noticed(w, "writable"); i++)
        usleep(10000);
    assert_true(disk_healthy(w->disk));
    sync_ok(w);
    check_all(w);
    assert_int_equal(put_value(w, 3, 1000, 0, 0), ST_OK);
    assert_int_equal(put_value(w, 1600, 1000, 0, 0), ST_OK); /* room was tried to be made, too */
    sync_ok(w);
    world_reopen(w);
    assert_int_equal(w->keys[0].on_disk, 0);
    assert_int_equal(w->keys[1500].on_disk, 0);
    check_all(w);
    /* a stop while it fails: what was changed must not come back */
    setrlimit(RLIMIT_FSIZE, &tight);
    forget_key(w, 1600);
    assert_int_equal(disk_sync(w->disk, 10000), ST_IO);
    disk_close(w->disk);
    setrlimit(RLIMIT_FSIZE, &was);
    world_open(w);
    struct get g;
    assert_int_equal(get_version(w, 1600, true, &g), 0);
    world_free(w);
}

static struct world *faulty_world(uint32_t nkeys)
{
    struct world *w = world_new(nkeys);
    w->opt.commit_ms = 10000000; /* commits come when they are asked for */
    w->retry_us = 20000;
    world_open(w);
    return w;
}

static void heal(struct world *w)
{
    atomic_store(&shim.fail, 0);
    wait_healthy(w, true);
    char text[256];
    disk_problem(w->disk, text);
    assert_string_equal(text, "");
    sync_ok(w);
}

/* A commit fails while newer events wait behind it: all fail, and nothing of any of them, nor of
 * what they replaced, is to be seen. What was carried stays where it was. */
static void test_failed_commit(void **state)
{
    (void)state;
    static const int kinds[] = {SHIM_WRITE, SHIM_SYNC, SHIM_META, SHIM_SYNC, SHIM_META};
    for (int i = 0; i < 5; i++) {
        struct world *w = faulty_world(100);
        struct get g;
        bool pending;
        char text[256];
        for (uint32_t k = 0; k < 60; k++)
            put_value(w, k, 2000, 0, 0);
        sync_ok(w);
        uint32_t block = key_block(w, 30, &pending);
        disk_group_begin(w->disk);
        for (uint32_t k = 0; k < 20; k++)
            put_value(w, k, 2000, 0, 0);
        forget_key(w, 20);
        put_value(w, 70, 2000, 0, 0);
        disk_group_end(w->disk);
        assert_true(carry_key(w, 30) && carry_key(w, 31));
        uint64_t event = disk_last_event(w->disk);
        shim_close_gate();
        if (i >= 3) { /* it is under way */
            disk_hurry(w->disk);
            shim_wait_gate();
        }
        for (uint32_t k = 0; k < 10; k++)
            put_value(w, k, 2000, 0, 0);
        put_value(w, 71, 50000, 0, 0);
        forget_key(w, 21);
        forget_key(w, 31);
        atomic_store(&shim.fail, kinds[i]);
        shim_open_gate();
        assert_int_equal(disk_sync(w->disk, 10000), ST_IO);
        wait_settled(w, disk_last_event(w->disk));
        assert_true(!disk_healthy(w->disk) && atomic_load(&w->settled_bad) >= event);
        disk_problem(w->disk, text);
        assert_true(strstr(text, "failed") != NULL);
        assert_int_equal(atomic_load(&w->published), 60);
        assert_int_equal(atomic_load(&w->failed), 32);
        assert_true(atomic_load(&w->dropped) == 0);
        assert_int_equal(put_value(w, 72, 100, 0, 0), ST_IO);
        assert_int_equal(key_block(w, 0, &pending), 0);
        assert_int_equal(key_block(w, 30, &pending), block);
        forget_key(w, 22);
        heal(w);
        check_all(w);
        assert_int_equal(w->keys[30].on_disk, 1);
        w->keys[30].carried = 0;
        assert_true(carry_key(w, 30));
        assert_int_equal(put_value(w, 5, 2000, 0, 0), ST_OK);
        sync_ok(w);
        assert_true(key_block(w, 30, &pending) > block);
        check_all(w);
        world_reopen(w);
        check_all(w);
        assert_int_equal(get_version(w, 19, true, &g), 0);
        assert_int_equal(get_version(w, 40, true, &g), 1);
        world_free(w);
    }
}

/* More tombstones than are kept while nothing can be written: blocks go as a whole. */
static void many_tombstones(int fail)
{
    struct world *w = faulty_world(3000);
    w->disk->retain_max = 100;
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 200, 0, 0);
    sync_ok(w);
    atomic_store(&shim.fail, fail);
    forget_key(w, 0);
    assert_int_equal(disk_sync(w->disk, 10000), ST_IO);
    for (uint32_t k = 0; k < 1000; k++)
        forget_key(w, k);
    assert_int_equal(atomic_load(&w->dropped), 0);
    pthread_mutex_lock(&w->disk->mu);
    assert_true(w->disk->retained_n + w->disk->waiting_tombs <= 100);
    pthread_mutex_unlock(&w->disk->mu);
    heal(w);
    assert_true(atomic_load(&w->dropped) > 0 && atomic_load(&w->dropped) < 1500);
    check_all(w);
    world_reopen(w);
    check_all(w);
    assert_int_equal(w->keys[2999].on_disk, 1);
    world_free(w);
}

static void test_many_tombstones(void **state)
{
    (void)state;
    many_tombstones(SHIM_SYNC);
    many_tombstones(SHIM_META); /* blocks cannot be read either, until the file is opened anew */
}

static size_t map_bytes(struct disk *d)
{
    pthread_rwlock_rdlock(&d->map_lock);
    size_t bytes = d->map_bytes;
    pthread_rwlock_unlock(&d->map_lock);
    return bytes;
}

/* A quota beyond the map: LMDB's map is made anew under reads and writes. */
static void test_remap(void **state)
{
    (void)state;
    struct world *w = world_new(2000);
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++) {
        put_value(w, k, 500, 0, 0);
        if (k == 1000) {
            sync_ok(w);
            size_t before = map_bytes(w->disk);
            disk_set_max_bytes(w->disk, before);
            for (int i = 0; i < 5000 && map_bytes(w->disk) == before; i++) {
                struct get g;
                assert_int_equal(get_version(w, (uint32_t)i % 1000, false, &g), 1);
            }
        }
    }
    sync_ok(w);
    assert_true(map_bytes(w->disk) >= PEEK(w->disk->max_bytes));
    check_all(w);
    world_reopen(w);
    check_all(w);
    world_free(w);
}

static void test_network_file_system(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    char err[256];
    atomic_store(&shim.fs_type, 0x6969);
    assert_int_equal(disk_open(&w->opt, &w->disk, err), ST_BAD);
    assert_true(strstr(err, "network") != NULL && w->disk == NULL);
    atomic_store(&shim.fs_type, 0x01021997);
    assert_int_equal(disk_open(&w->opt, &w->disk, err), ST_OK);
    assert_true(noticed(w, "9p"));
    atomic_store(&shim.fs_type, 0);
    world_free(w);
}

static void test_busy(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    char err[256];
    struct disk *second = NULL;
    world_open(w);
    assert_int_equal(disk_open(&w->opt, &second, err), ST_BUSY);
    assert_true(strstr(err, "in use") != NULL);
    world_free(w);
}

static void file_patch(const struct world *w, off_t at, const void *p, size_t len)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    if (p == NULL)
        CHECK(ftruncate(fd, at) == 0);
    else
        CHECK(pwrite(fd, p, len, at) == (ssize_t)len);
    close(fd);
}

static void fill(struct world *w, uint32_t n)
{
    memset(w->keys, 0, w->nkeys * sizeof(*w->keys));
    for (uint32_t k = 0; k < n; k++)
        put_value(w, k, 300, 0, 0);
    sync_ok(w);
    disk_close(w->disk);
    w->disk = NULL;
}

static int files_set_aside(const struct world *w)
{
    const struct dirent *e;
    int n = 0;
    DIR *dir = opendir(w->dir);
    CHECK(dir != NULL);
    while ((e = readdir(dir)) != NULL)
        n += strstr(e->d_name, ".bad-") != NULL;
    closedir(dir);
    return n;
}

static void expect_fresh(struct world *w, const char *why)
{
    uint64_t before = atomic_load(&w->notices);
    struct disk_stats st;
    world_open(w);
    disk_get_stats(w->disk, &st);
    assert_int_equal(st.keys, 0);
    uint64_t now = atomic_load(&w->notices);
    assert_true(now == before + 1 || now == before + 2); /* the file that was set aside earlier is removed */
    assert_int_equal(files_set_aside(w), 1);
    assert_true(noticed(w, why));
    fill(w, 500);
}

static void meta_patch(const struct world *w, uint32_t version)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_val key = {7, (void *)(uintptr_t) "tiercel"}, val;
    char path[128], copy[4096];
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    CHECK(mdb_env_create(&env) == 0 && mdb_env_set_maxdbs(env, 4) == 0 && mdb_env_set_mapsize(env, 256 * MB) == 0);
    CHECK(mdb_env_open(env, path, MDB_NOSUBDIR, 0600) == 0 && mdb_txn_begin(env, NULL, 0, &txn) == 0);
    CHECK(mdb_dbi_open(txn, "meta", MDB_CREATE, &dbi) == 0);
    if (version == 0) {
        CHECK(mdb_drop(txn, dbi, 0) == 0);
    } else {
        CHECK(mdb_get(txn, dbi, &key, &val) == 0 && val.mv_size < sizeof(copy));
        memcpy(copy, val.mv_data, val.mv_size);
        memcpy(copy + 4, &version, 4);
        val.mv_data = copy;
        CHECK(mdb_put(txn, dbi, &key, &val, 0) == 0);
    }
    CHECK(mdb_txn_commit(txn) == 0);
    mdb_env_close(env);
}

static void test_set_aside(void **state)
{
    (void)state;
    struct world *w = world_new(1000);
    static char junk[300000];
    world_open(w);
    fill(w, 500);
    meta_patch(w, FORMAT_VERSION + 1);
    expect_fresh(w, "another version");
    meta_patch(w, 0);
    expect_fresh(w, "not a file of ours");
    file_patch(w, (off_t)file_size(w) / 2 & ~4095, NULL, 0);
    expect_fresh(w, "truncated");
    file_patch(w, 100, NULL, 0);
    expect_fresh(w, "not a file of ours");
    file_patch(w, 4096 + 20, NULL, 0);
    expect_fresh(w, "truncated");
    uint64_t seed = 5;
    for (size_t i = 0; i < sizeof(junk); i++)
        junk[i] = (char)rng_next(&seed);
    file_patch(w, 0, junk, sizeof(junk));
    expect_fresh(w, "not a file of ours");
    /* an empty one is no reason for a notice */
    file_patch(w, 0, NULL, 0);
    world_open(w);
    fill(w, 500);
    world_open(w);
    check_all(w);
    world_free(w);
}

/* Wherever a page is overwritten: no crash, and no value that is not one. */
static void test_garbage(void **state)
{
    (void)state;
    uint64_t seed = 9;
    struct world *w = world_new(3000);
    for (int round = 0; round < 40; round++) {
        world_open(w);
        memset(w->keys, 0, w->nkeys * sizeof(*w->keys));
        for (uint32_t k = 0; k < w->nkeys; k++) { /* the model is not kept here */
            forget_quietly(w, k);
            put_value(w, k, 40 + rng_next(&seed) % 400, 0, 0);
            if (k % 1000 == 0)
                sync_ok(w);
        }
        sync_ok(w);
        disk_close(w->disk);
        uint64_t pages = file_size(w) / 4096;
        for (int i = 0; i < 3; i++) {
            char junk[4096];
            size_t len = round % 2 ? sizeof(junk) : 1 + rng_next(&seed) % 16;
            for (size_t j = 0; j < len; j++)
                junk[j] = round % 5 == 0 ? 0 : (char)rng_next(&seed);
            uint64_t page = round % 4 == 0 ? 2 + rng_next(&seed) % 12 : rng_next(&seed) % pages;
            file_patch(w, (off_t)(page * 4096 + (len < 4096 ? rng_next(&seed) % 4000 : 0)), junk, len);
        }
        world_open(w);
        struct get g;
        for (uint32_t k = 0; k < w->nkeys; k++)
            get_version(w, k, true, &g); /* CHECKs what it gets */
        for (uint32_t k = 0; k < w->nkeys; k++)
            forget_quietly(w, k);
        sync_ok(w);
        disk_close(w->disk);
        w->disk = NULL;
    }
    world_free(w);
}

/* Numbers of blocks begin again after 2^24 - 1 of them: here, after a few. */
static void log_starts_at(const struct world *w, uint64_t id)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    char path[128], none[sizeof(struct keys_head)];
    MDB_val key = {sizeof(id), &id}, val = {sizeof(none), none};
    keys_write(none, NULL, 0, NULL, 0, 0, 1);
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    CHECK(mdb_env_create(&env) == 0 && mdb_env_set_maxdbs(env, 4) == 0 && mdb_env_set_mapsize(env, 256 * MB) == 0);
    CHECK(mdb_env_open(env, path, MDB_NOSUBDIR, 0600) == 0 && mdb_txn_begin(env, NULL, 0, &txn) == 0);
    CHECK(mdb_dbi_open(txn, "keys", 0, &dbi) == 0 && mdb_put(txn, dbi, &key, &val, 0) == 0);
    CHECK(mdb_txn_commit(txn) == 0);
    mdb_env_close(env);
}

static void test_number_wrap(void **state)
{
    (void)state;
    static const uint64_t around[] = {BLOCK_MODULUS, 1ULL << 32, (uint64_t)BLOCK_MODULUS * META_CHUNK};
    for (size_t i = 0; i < sizeof(around) / sizeof(*around); i++) {
        struct world *w = world_new(3000);
        w->opt.max_bytes = 4 * MB;
        world_open(w);
        disk_close(w->disk);
        log_starts_at(w, around[i] - 30);
        world_open(w);
        assert_true(PEEK(w->disk->head) == around[i] - 30);
        for (int round = 0; round < 4; round++) {
            for (uint32_t k = 0; k < w->nkeys; k++)
                while (put_value(w, k, 500, 0, 0) == ST_FULL)
                    usleep(1000);
            for (uint32_t k = 0; k < 100; k++)
                forget_key(w, (uint32_t)round * 100 + k);
            for (uint32_t k = 0; k < 3000; k += 50)
                carry_key(w, k);
            sync_ok(w);
            check_all(w);
            if (round % 2)
                world_reopen(w);
            check_all(w);
        }
        assert_true(PEEK(w->disk->head) > around[i] + 30 && PEEK(w->disk->tail) > around[i] - 30);
        world_free(w);
    }
}

/* ---- crash ---- */

#define CRASH_KEYS 400u

struct crash_log {                       /* shared with the child */
    _Atomic uint32_t issued[CRASH_KEYS]; /* event: version * 2 + (1: tombstone) */
    _Atomic uint32_t synced[CRASH_KEYS];
    _Atomic uint32_t forgets[CRASH_KEYS], forgets_synced[CRASH_KEYS]; /* how many tombstones */
    _Atomic uint32_t rounds;
};

static struct crash_log *crash_map(const char *dir)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/log", dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct crash_log)) == 0);
    struct crash_log *log = mmap(NULL, sizeof(*log), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(log != MAP_FAILED);
    close(fd);
    return log;
}

static int crash_child(const char *dir, uint64_t seed)
{
    struct world *w = world_new(CRASH_KEYS);
    rmdir(w->dir);
    snprintf(w->dir, sizeof(w->dir), "%s", dir);
    w->opt.commit_ms = 2;
    w->opt.commit_bytes = 256 * 1024;
    world_open(w);
    struct crash_log *log = crash_map(dir);
    for (uint32_t k = 0; k < CRASH_KEYS; k++) {
        /* From here on what counts is what survived. */
        struct get g;
        uint32_t version = log->issued[k] / 2, v = get_version(w, k, true, &g);
        w->keys[k] = (struct entry){.version = version, .on_disk = v};
        atomic_store(&log->synced[k], v ? v * 2 : version * 2 + 1);
        atomic_store(&log->issued[k], v ? v * 2 : version * 2 + 1);
        atomic_store(&log->forgets_synced[k], log->forgets[k]);
    }
    for (;;) {
        uint32_t n = 50 + (uint32_t)(rng_next(&seed) % 1000), snap[CRASH_KEYS], forgets[CRASH_KEYS];
        for (uint32_t i = 0; i < n; i++) {
            uint32_t k = (uint32_t)(rng_next(&seed) % CRASH_KEYS);
            if (rng_next(&seed) % 8 == 0) {
                carry_key(w, k);
            } else if (rng_next(&seed) % 4 == 0) {
                atomic_store(&log->issued[k], w->keys[k].version * 2 + 1);
                atomic_fetch_add(&log->forgets[k], 1);
                forget_key(w, k);
            } else {
                atomic_store(&log->issued[k], (w->keys[k].version + 1) * 2);
                put_value(w, k, rng_next(&seed) % 50 ? rng_next(&seed) % 3000 : 70000, 0, 0);
            }
        }
        for (uint32_t k = 0; k < CRASH_KEYS; k++) {
            snap[k] = log->issued[k];
            forgets[k] = log->forgets[k];
        }
        if (disk_sync(w->disk, 10000) != ST_OK)
            _exit(3);
        for (uint32_t k = 0; k < CRASH_KEYS; k++) {
            atomic_store(&log->forgets_synced[k], forgets[k]);
            atomic_store(&log->synced[k], snap[k]);
        }
        atomic_fetch_add(&log->rounds, 1);
        if (rng_next(&seed) % 40 == 0)
            _exit(0); /* an end without close */
    }
}

static void crash_check(struct world *w, const struct crash_log *log)
{
    struct get g;
    for (uint32_t k = 0; k < CRASH_KEYS; k++) {
        uint32_t issued = log->issued[k], synced = log->synced[k], v = get_version(w, k, true, &g);
        if (v != 0)
            CHECK(v * 2 >= synced && v * 2 <= issued); /* never older than what was synced */
        else /* a newer one may have come since, but until it is there, the older one is */
            CHECK(synced == 0 || (synced & 1) || log->forgets[k] != log->forgets_synced[k]);
    }
}

static void test_crash(void **state)
{
    (void)state;
    struct world *w = world_new(CRASH_KEYS);
    struct crash_log *log = crash_map(w->dir);
    uint64_t seed = 11;
    uint32_t rounds = 0;
    for (int i = 0; i < 14; i++) {
        char arg[32];
        snprintf(arg, sizeof(arg), "%llu", (unsigned long long)rng_next(&seed));
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            execl("/proc/self/exe", "test_disk", "--crash-child", w->dir, arg, (char *)NULL);
            _exit(4);
        }
        for (int ms = 0; ms < 5000 && log->rounds == rounds; ms++)
            usleep(1000); /* it is at work */
        usleep((useconds_t)(rng_next(&seed) % 200000));
        int wstatus;
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, &wstatus, 0) == pid);
        CHECK(WIFSIGNALED(wstatus) ? WTERMSIG(wstatus) == SIGKILL : WEXITSTATUS(wstatus) == 0);
        world_open(w);
        crash_check(w, log);
        disk_close(w->disk);
        w->disk = NULL;
        rounds = log->rounds;
    }
    assert_true(rounds >= 14);
    munmap(log, sizeof(*log));
    world_free(w);
}

#define GROUP_KEYS 40u

/* Writes the same version of all keys in a group, again and again. */
static int group_child(const char *dir, uint32_t version)
{
    struct world *w = world_new(GROUP_KEYS);
    rmdir(w->dir);
    snprintf(w->dir, sizeof(w->dir), "%s", dir);
    w->opt.commit_ms = 1;
    w->opt.commit_bytes = 65536; /* less than a group */
    w->loose = true;
    world_open(w);
    for (uint32_t k = 0; k < GROUP_KEYS; k++)
        w->keys[k].version = version;
    for (uint32_t i = 0;; i++) {
        disk_group_begin(w->disk);
        for (uint32_t k = 0; k < GROUP_KEYS; k++)
            CHECK(put_record(w, k, k == 7 ? 50000 : 5000, 0, 0, true) == ST_OK);
        disk_group_end(w->disk);
        if (i == 1) { /* tells that it is at work */
            char path[160];
            snprintf(path, sizeof(path), "%s/log", dir);
            close(open(path, O_RDWR | O_CREAT, 0600));
        }
        if (i % 16 == 0)
            usleep(500);
    }
}

static void test_group_crash(void **state)
{
    (void)state;
    struct world *w = world_new(GROUP_KEYS);
    uint64_t seed = 21;
    uint32_t last = 0, found = 0;
    w->loose = true;
    for (int i = 0; i < 12 || (found <= 3 && i < 60); i++) { /* a busy machine may need more tries */
        char arg[32];
        snprintf(arg, sizeof(arg), "%u", last + 1);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            execl("/proc/self/exe", "test_disk", "--group-child", w->dir, arg, (char *)NULL);
            _exit(4);
        }
        char path[160];
        snprintf(path, sizeof(path), "%s/log", w->dir);
        for (int ms = 0; ms < 5000 && access(path, F_OK) != 0; ms++)
            usleep(1000);
        unlink(path);
        usleep((useconds_t)(rng_next(&seed) % 60000));
        int wstatus;
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, &wstatus, 0) == pid && WIFSIGNALED(wstatus));
        world_open(w);
        struct get g;
        uint32_t v = get_version(w, 0, true, &g);
        assert_true(v >= last);
        for (uint32_t k = 1; k < GROUP_KEYS; k++)
            assert_int_equal(get_version(w, k, true, &g), v);
        found += v > last;
        last = v;
        disk_close(w->disk);
        w->disk = NULL;
    }
    assert_true(found > 3);
    world_free(w);
}

/* ---- all at once ---- */

struct player {
    struct world *w;
    pthread_t thread;
    uint64_t seed;
    unsigned ops;
    bool carries;
};

/* A read may find a newer record of the key in the same block, never another key's, and
 * finds nothing only if the copy was given up meanwhile. */
static void play_read(struct world *w, uint32_t k)
{
    struct get g = {.w = w, .k = k};
    struct list reads;
    g.rd.key = world_key(w, k, g.name);
    g.rd.incarnation = world_inc(w);
    g.rd.done = get_done;
    pthread_mutex_t *m = world_lock(w, g.rd.key.hash);
    bool found = disk_find_locked(w->disk, g.rd.key.hash, &g.rd.block, NULL);
    const struct entry *e = &w->keys[k];
    uint32_t want = entry_newest(e);
    CHECK(found ? want != 0 : e->on_disk == 0);
    pthread_mutex_unlock(m);
    if (!found)
        return;
    list_init(&reads);
    list_push_back(&reads, &g.rd.link);
    disk_read_submit(w->disk, &reads);
    while (!atomic_load(&g.ended))
        usleep(10);
    if (g.st == ST_OK) {
        CHECK(g.version >= want);
        return;
    }
    uint32_t block = 0;
    m = world_lock(w, g.rd.key.hash);
    disk_find_locked(w->disk, g.rd.key.hash, &block, NULL);
    CHECK(g.st == ST_IO || (g.st == ST_NOT_FOUND && (entry_newest(e) != want || block != g.rd.block)));
    pthread_mutex_unlock(m);
}

static void play_group(struct world *w, uint32_t k)
{
    disk_group_begin(w->disk);
    for (uint32_t i = 0; i < 30; i++)
        put_record(w, (k + i) % w->nkeys, 1000 + i * 7, 0, 0, i != 0);
    disk_group_end(w->disk);
}

static void *play(void *arg)
{
    struct player *p = arg;
    for (unsigned i = 0; i < p->ops; i++) {
        uint64_t r = rng_next(&p->seed);
        uint32_t k = (uint32_t)(r >> 32) % p->w->nkeys;
        unsigned what = r % 100;
        if (what < 45)
            put_value(p->w, k, r >> 8 & 0xfff, r & 0x10000 ? 50 : 0, r & 0x20000 ? clock_wall_ms() + 50 : 0);
        else if (what < 47)
            put_value(p->w, k, 40000 + (r >> 8 & 0xfff), 12, 0);
        else if (what < 65)
            forget_key(p->w, k);
        else if (what < 70 && p->carries)
            carry_key(p->w, k);
        else if (what < 72)
            play_group(p->w, k);
        else
            play_read(p->w, k);
        if (what == 99 && i % 16 == 0)
            disk_sync(p->w->disk, 10000);
    }
    return NULL;
}

struct spoiler {
    pthread_t thread;
    struct world *w;
    _Atomic bool stop;
    bool full; /* now and then the file system is full, which makes cleaning run */
};

/* Makes commits slow, and fail, now and then. */
static void *spoil(void *arg)
{
    struct spoiler *s = arg;
    uint64_t seed = 77;
    while (!atomic_load(&s->stop)) {
        uint64_t r = rng_next(&seed);
        atomic_store(&shim.delay_us, (int)(r >> 8 & 0xfff));
        usleep((useconds_t)(r >> 32) % 40000);
        atomic_store(&shim.err, s->full && r & 8 ? ENOSPC : EIO);
        atomic_store(&shim.fail, (int)(r % 8));
        for (int ms = 0; ms < 5000 && atomic_load(&shim.fail) != 0 && atomic_load(&s->w->failed) == 0; ms++)
            usleep(1000); /* the first time until it did */
        usleep((useconds_t)(r >> 40) % 5000);
        atomic_store(&shim.fail, 0);
    }
    atomic_store(&shim.delay_us, 0);
    atomic_store(&shim.err, 0);
    return NULL;
}

/* With room for everything, records are carried at random; else cleaning does it. One of them only
 * may: settle() of clean.c knows no other copies than its own. */
static void play_model(uint64_t max_bytes, bool spoilt)
{
    bool carries = max_bytes > 64 * MB;
    struct world *w = world_new(2000);
    struct player p[4];
    w->opt.max_bytes = max_bytes;
    w->opt.commit_bytes = 256 * 1024;
    w->opt.commit_ms = 3;
    w->opt.queue_max_bytes = MB;
    w->retry_us = 5000;
    world_open(w);
    for (int round = 0; round < 3; round++) {
        struct spoiler spoiler = {.w = w, .full = !carries};
        if (spoilt)
            pthread_create(&spoiler.thread, NULL, spoil, &spoiler);
        for (unsigned i = 0; i < 4; i++) {
            p[i] = (struct player){.w = w, .seed = (uint64_t)round * 100 + i, .ops = 4000, .carries = carries};
            pthread_create(&p[i].thread, NULL, play, &p[i]);
        }
        for (unsigned i = 0; i < 4; i++)
            pthread_join(p[i].thread, NULL);
        atomic_store(&spoiler.stop, true);
        if (spoilt)
            pthread_join(spoiler.thread, NULL);
        wait_healthy(w, true);
        if (disk_sync(w->disk, 20000) != ST_OK) { /* one more was failing already */
            wait_healthy(w, true);
            sync_ok(w);
        }
        disk_close(w->disk); /* first, so that the model stands still */
        struct entry *keys = malloc(w->nkeys * sizeof(*keys));
        memcpy(keys, w->keys, w->nkeys * sizeof(*keys));
        w->loose = true;
        world_open(w);
        struct get g;
        for (uint32_t k = 0; k < w->nkeys; k++) {
            uint32_t v = get_version(w, k, true, &g);
            /* an expired copy may show again: its removal needs no tombstone */
            pthread_mutex_t *m = world_lock(w, w->hashes[k]);
            bool expired = g.expire_ms != 0 && g.expire_ms <= clock_wall_ms();
            CHECK(v == keys[k].on_disk || (keys[k].on_disk == 0 && expired) || (v == 0 && w->keys[k].on_disk == 0));
            disk_forget_locked(w->disk, w->hashes[k], NULL);
            w->keys[k].on_disk = 0;
            pthread_mutex_unlock(m);
        }
        w->loose = false;
        free(keys);
    }
    assert_true(carries || atomic_load(&w->dropped) > 0);
    assert_true(spoilt == (atomic_load(&w->failed) != 0));
    assert_true(disk_healthy(w->disk));
    world_free(w);
}

static void test_model(void **state)
{
    (void)state;
    play_model(2 * MB, false); /* less than what is alive */
    play_model(256 * MB, false);
}

static void test_model_failing(void **state)
{
    (void)state;
    play_model(2 * MB, true);
    play_model(256 * MB, true);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--crash-child") == 0)
        return crash_child(argv[2], strtoull(argv[3], NULL, 10));
    if (argc == 4 && strcmp(argv[1], "--group-child") == 0)
        return group_child(argv[2], (uint32_t)strtoul(argv[3], NULL, 10));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_failure),
        cmocka_unit_test(test_failed_commit),
        cmocka_unit_test(test_many_tombstones),
        cmocka_unit_test(test_remap),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_network_file_system),
        cmocka_unit_test(test_set_aside),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_number_wrap),
        cmocka_unit_test(test_crash),
        cmocka_unit_test(test_group_crash),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_model_failing),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
