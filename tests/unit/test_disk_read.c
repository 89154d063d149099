/* Reading blocks from the file: on the calling thread where that cannot wait, else on a reader. */
#include <sys/syscall.h>
#include <sys/uio.h>

#include "disk_world.h"

/* Ours comes before libc's: counts, and failures. */
static struct {
    _Atomic int err;   /* 0: none */
    _Atomic int flags; /* those of RWF_* that fail; 0: all */
    _Atomic long calls;
} shim;

ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t at, int flags)
{
    int only = atomic_load(&shim.flags);
    atomic_fetch_add(&shim.calls, 1);
    if (atomic_load(&shim.err) != 0 && (only == 0 || flags & only)) {
        errno = atomic_load(&shim.err);
        return -1;
    }
    return syscall(SYS_preadv2, fd, iov, n, at, 0L, flags);
}

static void fail_reads(int err, int flags)
{
    atomic_store(&shim.flags, flags);
    atomic_store(&shim.err, err);
}

static struct disk_stats stats_now(const struct world *w)
{
    struct disk_stats st;
    disk_get_stats(w->disk, &st);
    return st;
}

static struct block_meta *meta_of(const struct world *w, uint32_t block)
{
    return block_meta(w->disk, block_id_of_api(w->disk, block));
}

static bool prepare(struct world *w, uint32_t k, struct get *g)
{
    *g = (struct get){.w = w, .k = k};
    g->rd.key = world_key(w, k, g->name);
    g->rd.incarnation = world_inc(w);
    g->rd.done = get_done;
    return find_block(w, g->rd.key.hash, &g->rd.block);
}

static bool inline_version(struct world *w, uint32_t k, struct get *g)
{
    assert_true(prepare(w, k, g));
    bool served = disk_read_inline(w->disk, &g->rd);
    assert_true(served == atomic_load(&g->ended));
    return served;
}

/* Values of `len` bytes, in one commit. */
static struct world *world_of(uint32_t nkeys, size_t len)
{
    struct world *w = world_new(nkeys);
    w->opt.commit_ms = 10000000;
    w->opt.commit_bytes = 16 * MB;
    world_open(w);
    for (uint32_t k = 0; k < nkeys; k++)
        put_value(w, k, len, 0, 0);
    sync_ok(w);
    return w;
}

static void test_inline(void **state)
{
    static const size_t lens[] = {12, 100, 1000, 4096, 32000};
    (void)state;
    for (size_t i = 0; i < sizeof(lens) / sizeof(*lens); i++) {
        struct world *w = world_of(200, lens[i]);
        struct get g;
        for (uint32_t k = 0; k < w->nkeys; k++) {
            assert_true(inline_version(w, k, &g));
            assert_int_equal(g.version, 1);
            assert_true(g.block == g.rd.block && g.written_s != 0);
        }
        assert_true(stats_now(w).inline_reads == 200 && stats_now(w).reads == 200);
        world_free(w);
    }
}

/* What is tiny lies in LMDB's own pages, what is large takes time: others read that. */
static void test_not_inline(void **state)
{
    static const size_t lens[] = {12, 50000, 1000000};
    (void)state;
    for (size_t i = 0; i < sizeof(lens) / sizeof(*lens); i++) {
        struct world *w = world_of(1, lens[i]);
        struct get g;
        assert_false(inline_version(w, 0, &g));
        assert_int_equal(get_version(w, 0, false, &g), 1);
        assert_false(inline_version(w, 0, &g));
        assert_true(stats_now(w).inline_reads == 0 && stats_now(w).reads == 1);
        world_free(w);
    }
}

/* A thread of its own reads what is large, and the one who gets it may take its time. */
static void test_large(void **state)
{
    static const size_t lens[] = {50000, 300000, 5000000};
    (void)state;
    for (size_t i = 0; i < sizeof(lens) / sizeof(*lens); i++) {
        struct world *w = world_of(3, lens[i]);
        struct get g;
        bool large = lens[i] > 256 * 1024;
        for (int reopened = 0; reopened < 2; reopened++) {
            assert_int_equal(get_version(w, 1, false, &g), 1);
            assert_true((g.rd.pace != NULL) == large && g.written_s != 0);
            assert_int_equal(PEEK(meta_of(w, g.rd.block)->read), 1);
            assert_int_equal(get_version(w, 1, true, &g), 1);
            assert_null(g.rd.pace);
            world_reopen(w); /* where blocks are in the file is not known then */
        }
        fail_reads(EIO, 0); /* then as it lies in the map */
        assert_int_equal(get_version(w, 2, false, &g), 1);
        assert_null(g.rd.pace);
        fail_reads(0, 0);
        assert_true(put_value(w, 1, lens[i], 10, 0) == ST_OK && carry_key(w, 2));
        sync_ok(w);
        assert_int_equal(get_version(w, 1, false, &g), 2);
        assert_int_equal(get_version(w, 2, false, &g), 1);
        world_free(w);
    }
}

/* The cleaner is told which records were read. */
static void test_marks(void **state)
{
    (void)state;
    struct world *w = world_of(50, 1000);
    struct get g;
    assert_true(inline_version(w, 7, &g));
    const struct block_meta *m = meta_of(w, g.rd.block);
    assert_int_equal(m->records, 50);
    assert_int_equal(PEEK(m->read), 1ULL << (7 * 64 / 50));
    get_version(w, 49, false, &g);
    assert_int_equal(PEEK(m->read), 1ULL << (7 * 64 / 50) | 1ULL << (49 * 64 / 50));
    world_free(w);
}

static void name_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct get *g = (struct get *)rd;
    g->st = st;
    CHECK(st == ST_OK && rec->key.len < sizeof(g->name) && rec->payload.len == 0);
    memcpy(g->name, rec->key.ptr, rec->key.len);
    g->name[rec->key.len] = '\0';
}

/* Asking for a name is no use of the record. */
static void test_names(void **state)
{
    (void)state;
    struct world *w = world_of(100, 500);
    struct get g = {.rd = {.header_only = true, .done = name_done}};
    for (uint32_t k = 0; k < w->nkeys; k++) {
        char name[32];
        world_key(w, k, name);
        g.rd.key = (struct key){.hash = disk_hash_bits(w->disk, w->hashes[k])};
        assert_true(find_block(w, g.rd.key.hash, &g.rd.block));
        assert_true(disk_read_inline(w->disk, &g.rd));
        assert_string_equal(g.name, name);
        assert_int_equal(PEEK(meta_of(w, g.rd.block)->read), 0);
    }
    world_free(w);
}

/* Not served, and nobody is told: an ordinary read says what is the matter. */
static void test_other_key(void **state)
{
    (void)state;
    struct world *w = world_of(100, 1000);
    struct get g, other;
    assert_true(prepare(w, 1, &g) && prepare(w, 99, &other));
    uint32_t block = g.rd.block;
    assert_true(other.rd.block != block);
    g.rd.block = other.rd.block;
    assert_false(disk_read_inline(w->disk, &g.rd));
    g.rd.block = block;
    g.rd.incarnation++;
    assert_false(disk_read_inline(w->disk, &g.rd));
    g.rd.incarnation--;
    g.rd.block = block + 1000;
    assert_false(disk_read_inline(w->disk, &g.rd));
    assert_false(atomic_load(&g.ended));
    assert_int_equal(stats_now(w).reads, 0);
    world_free(w);
}

static int open_file(const struct world *w)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/tiercel.mdb", w->dir);
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    return fd;
}

/* Where the block that has the key begins, and where its directory's offsets do. */
static off_t block_at(struct world *w, uint32_t k, off_t *offs)
{
    struct get g;
    assert_true(prepare(w, k, &g));
    const struct block_meta *m = meta_of(w, g.rd.block);
    off_t at = (off_t)m->page * (off_t)w->disk->page + 16;
    *offs = at + m->data_len - (off_t)m->records * 4;
    return at;
}

static void test_corrupt(void **state)
{
    (void)state;
    struct world *w = world_of(150, 1000);
    struct get g;
    uint32_t off;
    off_t offs, at = block_at(w, 3, &offs);
    int fd = open_file(w);
    for (int known = 0; known < 2; known++) { /* its directory */
        assert_int_equal(pread(fd, &off, 4, offs + (3 + known) * 4), 4);
        assert_int_equal(pwrite(fd, "!", 1, at + off + 500), 1);
        assert_false(inline_version(w, (uint32_t)(3 + known), &g));
        assert_int_equal(stats_now(w).corrupt, known);
        assert_int_equal(get_version(w, (uint32_t)(3 + known), false, &g), 0);
        assert_int_equal(g.st, ST_CORRUPT);
        assert_int_equal(stats_now(w).corrupt, known + 1);
        assert_true(inline_version(w, 5, &g));
    }
    /* a directory that leads elsewhere */
    uint32_t last = w->nkeys - 1, records = 0;
    assert_true(prepare(w, last, &g));
    records = meta_of(w, g.rd.block)->records;
    block_at(w, last, &offs);
    off = 1u << 30;
    assert_int_equal(pwrite(fd, &off, 4, offs + (off_t)(records - 1) * 4), 4);
    assert_false(inline_version(w, last, &g));
    assert_int_equal(get_version(w, last, false, &g), 0);
    assert_int_equal(g.st, ST_CORRUPT);
    close(fd);
    world_free(w);
}

/* A known directory spares one of two reads. Of more blocks than are remembered, the last are. */
static void test_directories(void **state)
{
    (void)state;
    struct world *w = world_new(3000);
    struct get g;
    w->opt.commit_ms = 10000000;
    w->opt.queue_max_bytes = 8 * MB;
    w->opt.commit_bytes = 8 * MB;
    world_open(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        put_value(w, k, 100 + k % 2000, 0, 0);
    sync_ok(w);
    for (int round = 0; round < 2; round++) {
        long before = atomic_load(&shim.calls), blocks = 0;
        uint32_t last = 0;
        for (uint32_t k = 0; k < w->nkeys; k++) {
            assert_true(inline_version(w, k, &g));
            assert_int_equal(g.version, 1);
            blocks += g.rd.block != last;
            last = g.rd.block;
        }
        assert_true(blocks > 40);
        assert_in_range(atomic_load(&shim.calls) - before, 3000, round == 0 ? 3000 + blocks * 2 : 3010);
    }
    /* room for a few blocks only */
    w->disk->dirs.size = 200;
    for (int round = 0; round < 3; round++)
        for (uint32_t k = 0; k < w->nkeys; k += 7)
            assert_true(inline_version(w, k, &g) && g.version == 1);
    world_free(w);
}

/* ---- what is in the page cache ---- */

/* Empties the page cache: a key each of blocks of which no page stayed there, for free(). */
static uint32_t *drop_cache(struct world *w, size_t *n)
{
    size_t len = file_size(w), page = w->disk->page;
    int fd = open_file(w);
    unsigned char *in = calloc(len / page + 17, 1);
    uint32_t *keys = calloc(w->nkeys, sizeof(*keys)), last = 0;
    fdatasync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    void *map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED && mincore(map, len, in) == 0);
    munmap(map, len);
    close(fd);
    *n = 0;
    for (uint32_t k = 0; k < w->nkeys; k++) {
        struct get g;
        CHECK(prepare(w, k, &g));
        const struct block_meta *m = meta_of(w, g.rd.block);
        if (g.rd.block != last && m->page != 0 && memchr(in + m->page, 1, 16) == NULL)
            keys[(*n)++] = k;
        last = g.rd.block;
    }
    free(in);
    return keys;
}

static void test_cold(void **state)
{
    (void)state;
    struct world *w = world_of(6000, 1000); /* about 100 blocks */
    struct get g;
    size_t n;
    uint32_t *keys = drop_cache(w, &n), tries = 0;
    if (n < 20) {
        print_message("the page cache could not be emptied\n");
        free(keys);
        world_free(w);
        skip();
    }
    (void)inline_version(w, keys[0], &g); /* cold, unless it came while it was looked for */
    do                                    /* now it is warm, unless the machine is short of memory */
        assert_int_equal(get_version(w, keys[0], false, &g), 1);
    while (!inline_version(w, keys[0], &g) && ++tries < 1000);
    assert_true(tries < 1000);
    tries = 0;
    /* A page that is fetched for a read may come before it gives up. */
    size_t cold = 0, skipped = 0;
    for (size_t i = 1; i < n; i++) {
        cold += !inline_version(w, keys[i], &g);
        skipped += PEEK(w->disk->inline_skip) > 0; /* few are tried, until one is warm */
    }
    assert_true(cold < n / 2 || skipped > 0); /* how many are depends on how fast the disk is */
    check_all(w);
    while (!inline_version(w, tries, &g))
        assert_true(++tries < 64);
    for (uint32_t k = 0; k < w->nkeys; k++)
        assert_true(inline_version(w, k, &g));
    free(keys);
    world_free(w);
}

/* A start does not know where blocks lie; the first read of each finds out. */
static void test_reopened(void **state)
{
    (void)state;
    struct world *w = world_of(200, 1000);
    struct get g;
    world_reopen(w);
    assert_false(inline_version(w, 0, &g));
    check_all(w);
    for (uint32_t k = 0; k < w->nkeys; k++)
        assert_true(inline_version(w, k, &g));
    world_free(w);
}

static void test_refused(void **state)
{
    (void)state;
    struct world *w = world_of(100, 1000);
    struct get g;
    fail_reads(EOPNOTSUPP, RWF_NOWAIT);
    assert_false(inline_version(w, 0, &g));
    fail_reads(0, 0);
    assert_false(inline_version(w, 0, &g)); /* for good */
    check_all(w);
    assert_int_equal(stats_now(w).inline_reads, 0);
    world_free(w);
}

static void test_errors(void **state)
{
    (void)state;
    struct world *w = world_of(100, 1000);
    struct get g;
    fail_reads(EIO, 0);
    assert_false(inline_version(w, 0, &g));
    for (int now = 0; now < 2; now++) {
        assert_int_equal(get_version(w, 0, now, &g), 0);
        assert_int_equal(g.st, ST_IO);
    }
    assert_int_equal(stats_now(w).io_errors, 2);
    fail_reads(0, 0);
    assert_true(inline_version(w, 0, &g));
    /* a file that was cut off */
    int fd = open_file(w);
    off_t len = (off_t)file_size(w), at = (off_t)meta_of(w, g.rd.block)->page * (off_t)w->disk->page;
    assert_int_equal(ftruncate(fd, at), 0);
    assert_false(inline_version(w, 0, &g));
    assert_int_equal(get_version(w, 0, false, &g), 0);
    assert_int_equal(g.st, ST_IO);
    assert_int_equal(ftruncate(fd, len), 0);
    close(fd);
    world_free(w);
}

/* ---- while blocks go and their pages are used again ---- */

struct race {
    struct world *w;
    pthread_t thread;
    uint64_t seed, served, moved;
    _Atomic bool *stop;
};

static void *race_writer(void *arg)
{
    struct race *r = arg;
    while (!atomic_load(r->stop)) {
        uint64_t x = rng_next(&r->seed);
        uint32_t k = (uint32_t)(x % r->w->nkeys);
        if (x >> 60 == 0)
            forget_key(r->w, k);
        else if (put_value(r->w, k, 100 + (x >> 32) % 2000, 0, 0) == ST_FULL)
            usleep(1000);
    }
    return NULL;
}

static void *race_reader(void *arg)
{
    struct race *r = arg;
    struct world *w = r->w;
    struct get g;
    while (!atomic_load(r->stop)) {
        uint32_t k = (uint32_t)(rng_next(&r->seed) % w->nkeys), now;
        if (!prepare(w, k, &g))
            continue;
        if (rng_next(&r->seed) % 8 == 0)
            sched_yield();
        if (!disk_read_inline(w->disk, &g.rd)) {
            get_version(w, k, true, &g); /* so that it becomes known where it lies, and warm */
            continue;
        }
        pthread_mutex_t *m = world_lock(w, g.rd.key.hash);
        if (disk_find_locked(w->disk, g.rd.key.hash, &now, NULL) && now == g.rd.block) {
            CHECK(g.version == entry_newest(&w->keys[k]));
            r->served++;
        } else {
            r->moved++;
        }
        pthread_mutex_unlock(m);
    }
    return NULL;
}

static void test_reuse(void **state)
{
    (void)state;
    struct world *w = world_new(3000);
    struct race r[4];
    _Atomic bool stop = false;
    w->opt.max_bytes = 4 * MB;
    w->opt.commit_bytes = 128 * 1024;
    w->opt.commit_ms = 2;
    w->opt.queue_max_bytes = 512 * 1024;
    world_open(w);
    for (uint32_t i = 0; i < 4; i++) {
        r[i] = (struct race){.w = w, .seed = i + 1, .stop = &stop};
        pthread_create(&r[i].thread, NULL, i < 2 ? race_writer : race_reader, &r[i]);
    }
    usleep(2000000);
    atomic_store(&stop, true);
    for (uint32_t i = 0; i < 4; i++)
        pthread_join(r[i].thread, NULL);
    sync_ok(w);
    assert_true(r[2].served > 100 && r[3].served > 100);
    assert_true(stats_now(w).dropped_keys > 0);
    check_all(w);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inline),      cmocka_unit_test(test_not_inline), cmocka_unit_test(test_marks),
        cmocka_unit_test(test_names),       cmocka_unit_test(test_other_key),  cmocka_unit_test(test_corrupt),
        cmocka_unit_test(test_directories), cmocka_unit_test(test_cold),       cmocka_unit_test(test_reopened),
        cmocka_unit_test(test_refused),     cmocka_unit_test(test_errors),     cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_large),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
