/* A snapshot of Redis (an RDB file, see rdb.h) as the data of a first start. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiercel/clock.h"
#include "tiercel/log.h"
#include "tiercel/num.h"
#include "tiercel/rdb.h"
#include "tier_priv.h"

#define VERSION_MIN 1
#define HEAD 9 /* "REDIS" and four digits */
#define CHECKSUM_SINCE 5
#define ROOM_WAIT_MS 60000 /* for the disk to take what leaves memory */
#define ROOM_STEP_MS 100
#define PROGRESS_MS 5000

enum rdb_opcode {
    OP_FUNCTION = 245,
    OP_MODULE_AUX = 247,
    OP_IDLE = 248,
    OP_FREQ = 249,
    OP_AUX = 250,
    OP_RESIZEDB = 251,
    OP_EXPIRE_MS = 252,
    OP_EXPIRE_S = 253,
    OP_SELECTDB = 254,
    OP_EOF = 255
};

struct loading {
    struct worker *w;
    const struct obj_limits *lim;
    struct rdb_reader in;
    const char *start;
    struct tier_load *out;
    char *err; /* [256] */
    unsigned db;
    int64_t expire_ms; /* of the key that comes; 0 = none */
    int64_t told_ms;
};

static bool load_failed(struct loading *l, const char *what)
{
    snprintf(l->err, 256, "%s, at byte %lld", what, (long long)(l->in.ptr - l->start));
    return false;
}

/* Memory is full: what was loaded first goes to disk. */
static bool load_wait_for_room(struct loading *l)
{
    int64_t until = clock_mono_ms() + ROOM_WAIT_MS;

    for (;;) {
        enum status st = tier_make_room(l->w);
        if (st == ST_OK)
            return true;
        if (st == ST_FULL || clock_mono_ms() >= until)
            return load_failed(l, st == ST_FULL
                                      ? "it does not fit: maxmemory, disk-max-size or maxmemory-policy is in its way"
                                      : "the disk tier does not take it");
        if (l->w->tier->disk)
            disk_sync(l->w->tier->disk, ROOM_STEP_MS);
        else
            sched_yield(); /* something is being freed */
    }
}

static struct object *load_string(struct loading *l, const struct key *key)
{
    struct slice s;
    int64_t number;

    if (!rdb_get_string(&l->in, &s))
        return NULL;
    if (s.len < NUM_I64_MAX && num_parse_i64(s, &number))
        return object_new_int(key, number, l->expire_ms, 0);
    struct rcbuf *packed = tier_pack(l->w, s);
    return packed ? object_new_rcbuf(key, packed, l->expire_ms, 0) : object_new_string(key, s, l->expire_ms, 0);
}

static bool load_key(struct loading *l, int rdb_type)
{
    struct tier *t = l->w->tier;
    struct slice name;
    struct buf copy;
    struct key key;

    if (!rdb_get_string(&l->in, &name) || name.len > UINT32_MAX)
        return load_failed(l, "a key's name is damaged");
    buf_init(&copy, MEM_OTHER); /* reading the value may use the same buffer */
    buf_slice_append(&copy, name);
    mem_key_init(t->mem, l->db, buf_slice(&copy), &key);
    struct object *o =
        rdb_type == RDB_STRING ? load_string(l, &key) : rdb_read(&l->in, rdb_type, l->lim, &key, l->expire_ms, 0);
    bool ok = o != NULL && load_wait_for_room(l);
    if (!o)
        load_failed(l, "a value is damaged, or of a type that is not known here");
    if (ok && l->expire_ms != 0 && l->expire_ms <= l->w->now_ms) {
        l->out->expired++;
        object_free(o);
    } else if (ok) {
        struct mem_shard *shard = tier_shard_of(t, key.hash);
        mem_lock(shard);
        tier_put_locked(l->w, shard, &key, o);
        mem_unlock(shard);
        l->out->keys++;
    } else {
        object_free(o);
    }
    buf_deinit(&copy);
    l->expire_ms = 0;
    return ok;
}

static bool skip_strings(struct loading *l, int n)
{
    struct slice s;

    while (n-- > 0)
        if (!rdb_get_string(&l->in, &s))
            return load_failed(l, "it is damaged");
    return true;
}

static bool load_library(struct loading *l)
{
    struct slice source;
    char why[256] = "";

    if (!rdb_get_string(&l->in, &source))
        return load_failed(l, "it is damaged");
    if (!l->out->library) {
        log_warning("tier", "a library of functions is left out");
        return true;
    }
    if (!l->out->library(l->out->arg, source, why)) {
        snprintf(l->err, 256, "a library of functions: %.200s", why);
        return false;
    }
    l->out->libraries++;
    return true;
}

static bool skip_lengths(struct loading *l, int n)
{
    uint64_t len;

    while (n-- > 0)
        if (!rdb_get_len(&l->in, &len))
            return load_failed(l, "it is damaged");
    return true;
}

static bool load_expiry(struct loading *l, bool seconds)
{
    uint32_t s;

    if (!seconds)
        return rdb_get_i64(&l->in, &l->expire_ms) || load_failed(l, "it is damaged");
    if (rdb_left(&l->in) < sizeof(s))
        return load_failed(l, "it is damaged");
    memcpy(&s, l->in.ptr, sizeof(s));
    l->in.ptr += sizeof(s);
    l->expire_ms = (int64_t)s * 1000;
    return true;
}

static bool load_select(struct loading *l)
{
    uint64_t db;

    if (!rdb_get_len(&l->in, &db) || db >= l->w->tier->mem->databases)
        return load_failed(l, "it has a database that is not there: see the setting databases");
    l->db = (unsigned)db;
    return true;
}

static void load_tell(struct loading *l)
{
    int64_t now = clock_mono_ms();

    if (l->told_ms == 0)
        l->told_ms = now;
    if (now - l->told_ms < PROGRESS_MS)
        return;
    l->told_ms = now;
    log_notice("tier", "loading: %lld keys, %lld %%", (long long)l->out->keys,
               (long long)(100 * (l->in.ptr - l->start) / (l->in.end - l->start)));
}

static bool load_all(struct loading *l)
{
    while (rdb_left(&l->in) > 0) {
        int op = (unsigned char)*l->in.ptr++;
        bool ok = true;
        switch (op) {
        case OP_EOF: return true;
        case OP_AUX: ok = skip_strings(l, 2); break;
        case OP_RESIZEDB: ok = skip_lengths(l, 2); break;
        case OP_IDLE: ok = skip_lengths(l, 1); break;
        case OP_FREQ: l->in.ptr += rdb_left(&l->in) > 0; break;
        case OP_EXPIRE_MS:
        case OP_EXPIRE_S: ok = load_expiry(l, op == OP_EXPIRE_S); break;
        case OP_SELECTDB: ok = load_select(l); break;
        case OP_FUNCTION: ok = load_library(l); break;
        case OP_MODULE_AUX: return load_failed(l, "it holds data of a module");
        default: ok = load_key(l, op); load_tell(l);
        }
        if (!ok)
            return false;
    }
    return load_failed(l, "it ends before its end");
}

/* The head, and the checksum at the end, which is 0 where Redis was told to write none. */
static bool load_check(struct loading *l, struct slice file)
{
    int64_t version;
    uint64_t sum;

    if (file.len < HEAD || memcmp(file.ptr, "REDIS", 5) != 0 || file.ptr[5] < '0' || file.ptr[5] > '9')
        return load_failed(l, "it is no RDB file");
    version = (file.ptr[5] - '0') * 1000 + (file.ptr[6] - '0') * 100 + (file.ptr[7] - '0') * 10 + (file.ptr[8] - '0');
    if (version < VERSION_MIN || version > RDB_VERSION) {
        snprintf(l->err, 256, "it has version %lld of the format; %d is the newest that is known here",
                 (long long)version, RDB_VERSION);
        return false;
    }
    if (version < CHECKSUM_SINCE)
        return true;
    if (file.len < HEAD + sizeof(sum) + 1)
        return load_failed(l, "it ends before its end");
    memcpy(&sum, file.ptr + file.len - sizeof(sum), sizeof(sum));
    if (sum != 0 && sum != rdb_crc64(0, SLICE(file.ptr, file.len - sizeof(sum))))
        return load_failed(l, "its checksum is wrong: it is damaged or cut short");
    l->in.end -= sizeof(sum);
    return true;
}

enum status tier_load_rdb(struct worker *w, const char *path, const struct obj_limits *lim, struct tier_load *out,
                          char err[256])
{
    struct stat sb;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    out->keys = out->expired = out->libraries = 0;
    if (fd < 0 && errno == ENOENT)
        return ST_NOT_FOUND;
    void *map = fd >= 0 && fstat(fd, &sb) == 0 && sb.st_size > 0
                    ? mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0)
                    : MAP_FAILED;
    if (fd >= 0)
        close(fd);
    if (map == MAP_FAILED) {
        snprintf(err, 256, "it cannot be read: %s", fd >= 0 && sb.st_size == 0 ? "it is empty" : strerror(errno));
        return ST_IO;
    }
    struct buf text;
    struct slice file = SLICE(map, (size_t)sb.st_size);
    buf_init(&text, MEM_OTHER);
    struct loading l = {.w = w, .lim = lim, .start = file.ptr, .out = out, .err = err};
    l.in = (struct rdb_reader){file.ptr + HEAD, file.ptr + file.len, &text, NULL};
    w->now_ms = clock_wall_ms();
    bool ok = load_check(&l, file) && load_all(&l);
    buf_deinit(&text);
    munmap(map, (size_t)sb.st_size);
    return ok ? ST_OK : ST_CORRUPT;
}
