/* Walks over the key space (SCAN, KEYS, RANDOMKEY), and commands on whole databases. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "tiercel/clock.h"
#include "tiercel/disk.h"
#include "tiercel/glob.h"
#include "tiercel/hash.h"
#include "tiercel/num.h"
#include "tiercel/tier.h"
#include "tiercel/tracking.h"

#include "cmd/cmd_priv.h"

/* A cursor is the top 48 bits of a hash: what RESP clients keep in 64 bits with room to spare, and
 * finer than any bucket of memory, so that a walk can pause inside a bucket that has many
 * keys on disk. */
#define CURSOR_SHIFT 16
#define CURSOR_LOW ((1ULL << CURSOR_SHIFT) - 1)

#define EMPTY_BUCKETS 65536 /* that one SCAN passes over at most */
#define SLICE_US 1000       /* walking before other clients get a turn */
#define SLICE_READS 4096    /* names being read from disk at a time */
#define REREADS 3           /* times a record that moved meanwhile is looked for again */
#define RANDOM_SLOTS 1024   /* looked at under one hold of a shard's lock */
#define RANDOM_SAMPLE 16    /* names read of one bucket's keys on disk */
#define RANDOM_PROBES 32    /* random buckets looked at before all of them */

enum walk_kind { WALK_SCAN, WALK_KEYS, WALK_RANDOM };

struct walk_read {
    struct disk_read rd; /* rd.incarnation: what the database's was when the slot was seen */
    struct walk *walk;
    enum status st;
};

/* A key of the step under way: dropped when the step ends before its hash. Its name follows. */
struct staged {
    uint64_t hash;
    uint32_t len;
};

/* One command's walk. Its worker's, except that disk readers add to `found` and `names`. */
struct walk {
    struct mbox_msg msg;
    struct worker *w;
    struct parked *parked; /* NULL: still within the handler */
    bool cancelled;
    bool locked; /* within EXEC: every shard is locked, and nothing may wait */
    enum walk_kind kind;
    int db;
    int64_t now_ms;

    bool match, typed; /* has a pattern, a type */
    struct buf pattern, type;

    uint64_t cursor;         /* where the next step begins */
    bool finished;           /* the whole space was walked */
    uint64_t stop;           /* of the step under way: where it ends early; 0 = with its bucket */
    size_t budget;           /* disk slots of a slice */
    uint64_t want, seen;     /* SCAN: keys */
    uint64_t buckets, empty; /* SCAN: left to look at: with something in them, whoever's, and without */
    bool touched;            /* the step under way found something */
    unsigned probes;         /* RANDOMKEY: random buckets left */
    bool wrap;               /* ... and it goes on from 0 at the end */
    uint64_t on_disk, from_memory;

    struct buf stage; /* struct staged and names */
    struct walk_read *reads;
    size_t nreads, reads_cap;
    int rereads;
    _Atomic size_t pending;

    pthread_mutex_t lock; /* for the readers */
    struct chain found;   /* names, as bulk strings */
    struct buf names;     /* RANDOMKEY: length and name */
    uint64_t nfound;
};

static void walk_destroy(struct walk *k)
{
    chain_deinit(&k->found);
    buf_deinit(&k->names);
    buf_deinit(&k->stage);
    buf_deinit(&k->pattern);
    buf_deinit(&k->type);
    mem_free(MEM_CLIENT, k->reads);
    pthread_mutex_destroy(&k->lock);
    mem_free(MEM_CLIENT, k);
}

static struct walk *walk_create(struct call *c, enum walk_kind kind)
{
    struct walk *k = mem_calloc(MEM_CLIENT, sizeof(*k));

    k->w = c->w;
    k->kind = kind;
    k->db = c->s->db;
    k->now_ms = c->now_ms;
    k->locked = c->in_exec;
    k->budget = SLICE_READS;
    buf_init(&k->pattern, MEM_CLIENT);
    buf_init(&k->type, MEM_CLIENT);
    buf_init(&k->stage, MEM_CLIENT);
    buf_init(&k->names, MEM_CLIENT);
    chain_init(&k->found);
    CHECK(pthread_mutex_init(&k->lock, NULL) == 0);
    return k;
}

/* "*" is no pattern at all. */
static void walk_set_pattern(struct walk *k, struct slice pattern)
{
    k->match = !slice_eq(pattern, SLICE_LIT("*"));
    k->pattern.len = 0;
    buf_slice_append(&k->pattern, pattern);
}

/* ---- what counts --------------------------------------------------------------------- */

static bool walk_wants(const struct walk *k, struct slice name, enum obj_type type)
{
    return (!k->match || glob_match(buf_slice(&k->pattern), name, false)) &&
           (!k->typed || slice_is(buf_slice(&k->type), object_type_name(type)));
}

static void walk_found(struct walk *k, struct slice name)
{
    k->nfound++;
    if (k->kind == WALK_RANDOM) {
        uint32_t len = (uint32_t)name.len;
        buf_append(&k->names, &len, sizeof(len));
        buf_slice_append(&k->names, name);
    } else {
        struct reply r = {&k->found, 2}; /* a bulk string is the same in both protocols */
        reply_bulk(&r, name);
    }
}

static bool walk_counts(const struct walk *k, const struct object *o)
{
    return mem_db_of(k->w->tier->mem, o->inc) == k->db && !object_expired(o, k->now_ms);
}

/* An object of the bucket, which may lie before the cursor or behind the step's end. */
static void walk_object(void *arg, const struct object *o)
{
    struct walk *k = arg;
    struct slice name = object_key(o);

    k->touched = true;
    if (!walk_counts(k, o))
        return;
    struct staged s = {mem_object_hash(k->w->tier->mem, o), (uint32_t)name.len};
    if (s.hash < k->cursor)
        return;
    k->seen++;
    if (!walk_wants(k, name, o->type))
        return;
    buf_append(&k->stage, &s, sizeof(s));
    buf_slice_append(&k->stage, name);
}

static struct walk_read *walk_add_read(struct walk *k)
{
    if (k->nreads == k->reads_cap) {
        k->reads_cap = k->reads_cap ? k->reads_cap * 2 : 64;
        k->reads = mem_realloc(MEM_CLIENT, k->reads, k->reads_cap * sizeof(*k->reads));
    }
    return &k->reads[k->nreads++];
}

static void walk_read_done(struct disk_read *rd, enum status st, const struct disk_record *rec);

/* The database's number does not change under the shard's lock. */
static void walk_fill_read(struct walk *k, struct walk_read *r, const struct disk_slot *slot)
{
    uint32_t inc = atomic_load_explicit(&k->w->tier->mem->db[k->db].incarnation, memory_order_relaxed);

    *r = (struct walk_read){.walk = k, .st = ST_PENDING};
    r->rd = (struct disk_read){.key = {.hash = slot->hash, .db = (uint16_t)k->db},
                               .incarnation = inc,
                               .block = slot->block,
                               .header_only = true,
                               .done = walk_read_done};
}

/* A key that is only on disk; slots come in the order of their hashes. */
static bool walk_slot(void *arg, const struct disk_slot *slot)
{
    struct walk *k = arg;
    uint64_t at = slot->hash & ~CURSOR_LOW;

    k->touched = true;
    if (k->nreads >= k->budget && at > k->cursor && (k->reads[k->nreads - 1].rd.key.hash & ~CURSOR_LOW) < at) {
        k->stop = at;
        return false;
    }
    k->seen++;
    walk_fill_read(k, walk_add_read(k), slot);
    return true;
}

/* ---- one step ------------------------------------------------------------------------ */

static void walk_unstage(struct walk *k, uint64_t end)
{
    for (size_t at = 0; at < k->stage.len;) {
        struct staged s;
        memcpy(&s, k->stage.ptr + at, sizeof(s));
        if (end == 0 || s.hash < end)
            walk_found(k, SLICE(k->stage.ptr + at + sizeof(s), s.len));
        at += sizeof(s) + s.len;
    }
    k->stage.len = 0;
}

static void walk_step(struct walk *k)
{
    uint64_t next;

    k->stop = 0;
    k->touched = false;
    tier_scan_step(k->w, k->locked, k->cursor, &next, walk_object, walk_slot, k);
    if (k->stop)
        next = k->stop;
    walk_unstage(k, next);
    k->cursor = next;
    k->finished = next == 0 && !k->wrap;
    if (next == 0)
        k->wrap = false;
    if (k->kind == WALK_SCAN)
        --*(k->touched ? &k->buckets : &k->empty);
}

/* ---- names on disk ------------------------------------------------------------------- */

static void walk_resume(struct mbox_msg *msg, void *owner);

static void walk_post(struct walk *k)
{
    k->msg.run = walk_resume;
    mbox_post(k->w->mbox, &k->msg);
}

/* On a reader thread; within EXEC on the worker's own. */
static void walk_read_done(struct disk_read *rd, enum status st, const struct disk_record *rec)
{
    struct walk_read *r = LIST_ENTRY(rd, struct walk_read, rd);
    struct walk *k = r->walk;

    r->st = st;
    if (st == ST_OK && rec->incarnation == rd->incarnation && (rec->expire_ms == 0 || rec->expire_ms > k->now_ms) &&
        walk_wants(k, key_slice(&rec->key), rec->type)) {
        pthread_mutex_lock(&k->lock);
        walk_found(k, key_slice(&rec->key));
        pthread_mutex_unlock(&k->lock);
    }
    if (atomic_fetch_sub_explicit(&k->pending, 1, memory_order_acq_rel) == 1 && !k->locked)
        walk_post(k);
}

static void walk_read(struct walk *k)
{
    struct list reads;

    atomic_store_explicit(&k->pending, k->nreads, memory_order_release);
    if (k->locked) {
        for (size_t i = 0; i < k->nreads; i++)
            disk_read_now(k->w->tier->disk, &k->reads[i].rd);
        return;
    }
    atomic_fetch_add(&k->w->tier->fetches, 1); /* the disk stays open for them */
    list_init(&reads);
    for (size_t i = 0; i < k->nreads; i++)
        list_push_back(&reads, &k->reads[i].rd.link);
    disk_read_submit(k->w->tier->disk, &reads);
}

/* A record that was not where its slot said: its key was promoted, its block carried forward... */
struct search {
    struct walk *walk;
    uint64_t hash; /* indexed bits */
    uint32_t block;
};

static void search_object(void *arg, const struct object *o)
{
    struct search *s = arg;
    struct walk *k = s->walk;
    const struct tier *t = k->w->tier;

    if (disk_hash_bits(t->disk, mem_object_hash(t->mem, o)) == s->hash && walk_counts(k, o) &&
        walk_wants(k, object_key(o), o->type))
        walk_found(k, object_key(o));
}

static bool search_slot(void *arg, const struct disk_slot *slot)
{
    struct search *s = arg;

    if (slot->hash == s->hash && slot->block != s->block)
        walk_fill_read(s->walk, walk_add_read(s->walk), slot);
    return slot->hash <= s->hash;
}

/* All reads of the slice came back. Leaves in `reads` what is to be read again. */
static void walk_settle(struct walk *k)
{
    size_t n = k->nreads;
    uint64_t next;

    /* What is added overwrites only what was looked at: at most one read per failed one. */
    k->nreads = 0;
    for (size_t i = 0; i < n && k->rereads < REREADS; i++) {
        const struct walk_read *r = &k->reads[i];
        if (r->st != ST_NOT_FOUND && r->st != ST_CORRUPT)
            continue;
        struct search s = {k, r->rd.key.hash, r->rd.block};
        tier_scan_step(k->w, k->locked, s.hash, &next, search_object, search_slot, &s);
    }
    k->rereads = k->nreads ? k->rereads + 1 : 0;
}

/* ---- RANDOMKEY ----------------------------------------------------------------------- */

static bool random_slot(void *arg, const struct disk_slot *slot)
{
    struct walk *k = arg;

    k->on_disk++;
    if (k->nreads < RANDOM_SAMPLE) {
        walk_fill_read(k, walk_add_read(k), slot);
        return true;
    }
    uint64_t i = rng_next(&k->w->rng) % k->on_disk;
    if (i < RANDOM_SAMPLE)
        walk_fill_read(k, &k->reads[i], slot);
    return k->on_disk < RANDOM_SLOTS;
}

/* The first hash of the bucket that a random hash falls into. */
static uint64_t random_bucket(struct walk *k)
{
    const struct mem *m = k->w->tier->mem;
    uint64_t hash = rng_next(&k->w->rng);
    struct mem_shard *shard = mem_shard_of(m, hash);

    if (!k->locked)
        mem_lock(shard);
    unsigned position_bits = m->shard_bits + shard->bits;
    if (!k->locked)
        mem_unlock(shard);
    return position_bits ? hash >> (64 - position_bits) << (64 - position_bits) : 0;
}

/* Random buckets, until one has candidates; then it is as if there were only that one. */
static void random_probe(struct walk *k)
{
    uint64_t next;

    while (k->probes > 0 && k->nfound == 0 && k->nreads == 0) {
        k->on_disk = 0;
        k->cursor = random_bucket(k);
        tier_scan_step(k->w, k->locked, k->cursor, &next, walk_object, random_slot, k);
        walk_unstage(k, 0);
        k->from_memory = k->nfound;
        if (--k->probes == 0) { /* from here on all of them, in order */
            k->cursor = random_bucket(k);
            k->wrap = true;
        }
    }
}

static struct slice random_name(const struct walk *k, uint64_t i)
{
    const char *p = k->names.ptr;
    uint32_t len;

    for (;; i--) {
        memcpy(&len, p, sizeof(len));
        p += sizeof(len);
        if (i == 0)
            return SLICE(p, len);
        p += len;
    }
}

/* Names of memory come first. Of those on disk only a sample was read, which stands for all. */
static struct slice random_choice(struct walk *k)
{
    uint64_t sampled = k->nfound - k->from_memory, weight = sampled ? k->on_disk : 0;

    if (weight < sampled)
        weight = sampled;
    uint64_t i = rng_next(&k->w->rng) % (k->from_memory + weight);
    return random_name(k, i < k->from_memory ? i : k->from_memory + i % sampled);
}

/* ---- the walk ------------------------------------------------------------------------ */

static bool walk_is_over(const struct walk *k)
{
    switch (k->kind) {
    case WALK_SCAN: return k->finished || k->seen >= k->want || k->buckets == 0 || k->empty == 0;
    case WALK_KEYS: return k->finished;
    default: return k->finished || k->nfound > 0;
    }
}

/* One slice. true: there is nothing left to do but reply; false: read what is in `reads`, if
 * anything, and come again. */
static bool walk_advance(struct walk *k)
{
    int64_t until = clock_mono_us() + SLICE_US;
    unsigned steps = 0;

    if (k->kind == WALK_RANDOM && k->probes > 0) {
        random_probe(k);
        if (k->nreads > 0)
            return false;
    }
    while (!walk_is_over(k) && k->nreads < k->budget) {
        walk_step(k);
        if (++steps % 8 == 0 && !k->locked && clock_mono_us() >= until)
            break;
    }
    return k->nreads == 0 && walk_is_over(k);
}

static void walk_reply(struct call *c, void *arg)
{
    struct walk *k = arg;

    switch (k->kind) {
    case WALK_RANDOM:
        if (k->nfound == 0)
            reply_null(&c->r);
        else
            reply_bulk(&c->r, random_choice(k));
        return;
    case WALK_SCAN:
        cmd_scan_reply(c, k->finished ? 0 : k->cursor >> CURSOR_SHIFT, (int64_t)k->nfound, &k->found);
        return;
    case WALK_KEYS: reply_array(&c->r, (int64_t)k->nfound); chain_move(c->r.out, &k->found);
    }
}

static void walk_finish(struct walk *k)
{
    if (k->parked)
        call_complete(k->parked, walk_reply, k);
    walk_destroy(k);
}

/* Its next slice, or all reads of the last one are back. */
static void walk_resume(struct mbox_msg *msg, void *owner)
{
    struct walk *k = LIST_ENTRY(msg, struct walk, msg);
    (void)owner;

    if (k->nreads > 0)
        atomic_fetch_sub(&k->w->tier->fetches, 1);
    if (k->cancelled) {
        walk_destroy(k);
        return;
    }
    if (k->nreads > 0)
        walk_settle(k);
    if (k->nreads == 0 && walk_advance(k))
        walk_finish(k);
    else if (k->nreads > 0)
        walk_read(k);
    else
        walk_post(k);
}

/* A message or reads are on their way: it is freed when they arrive. */
static void walk_cancel(void *arg)
{
    struct walk *k = arg;
    k->cancelled = true;
}

static const struct suspend_ops walk_suspend_ops = {walk_cancel};

/* Takes the walk. */
static void walk_run(struct call *c, struct walk *k)
{
    bool over = walk_advance(k);

    while (k->locked && !over) {
        while (k->nreads > 0) {
            walk_read(k);
            walk_settle(k);
        }
        over = walk_advance(k);
    }
    if (over) {
        walk_reply(c, k);
        walk_destroy(k);
        return;
    }
    k->parked = call_suspend(c, &walk_suspend_ops, k);
    if (k->nreads > 0)
        walk_read(k);
    else
        walk_post(k);
}

/* ---- commands that walk -------------------------------------------------------------- */

void cmd_keys(struct call *c)
{
    struct walk *k = walk_create(c, WALK_KEYS);

    walk_set_pattern(k, c->argv[1]);
    walk_run(c, k);
}

void cmd_randomkey(struct call *c)
{
    if (atomic_load_explicit(&c->w->tier->mem->db[c->s->db].keys, memory_order_relaxed) <= 0) {
        reply_null(&c->r);
        return;
    }
    struct walk *k = walk_create(c, WALK_RANDOM);
    k->probes = RANDOM_PROBES;
    walk_run(c, k);
}

/* As strtoul() reads it, which is what Redis does. */
static bool parse_cursor(struct slice arg, uint64_t *out)
{
    struct buf text;
    char *end;

    buf_init(&text, MEM_OTHER);
    buf_slice_append(&text, arg);
    buf_byte(&text, '\0');
    errno = 0;
    *out = strtoul(text.ptr, &end, 10);
    bool ok = !strchr(" \t\n\v\f\r", text.ptr[0]) || text.ptr[0] == '\0';
    ok = ok && *end == '\0' && errno != ERANGE;
    buf_deinit(&text);
    return ok;
}

bool cmd_scan_cursor(struct call *c, int arg, struct scan_args *a)
{
    *a = (struct scan_args){.count = 10};
    if (parse_cursor(c->argv[arg], &a->cursor))
        return true;
    call_error(c, "ERR invalid cursor");
    return false;
}

bool cmd_scan_options(struct call *c, int from, bool typed, struct scan_args *a)
{
    int64_t count;

    for (int i = from; i < c->argc; i += 2) {
        bool has_value = i + 1 < c->argc;
        if (call_arg_is(c, i, "count") && has_value) {
            if (!call_arg_i64(c, i + 1, &count, NULL))
                return false;
            if (count < 1) {
                call_syntax(c);
                return false;
            }
            a->count = (uint64_t)count;
        } else if (call_arg_is(c, i, "match") && has_value) {
            a->pattern = c->argv[i + 1];
            a->match = !slice_eq(a->pattern, SLICE_LIT("*")); /* which is no pattern at all */
        } else if (call_arg_is(c, i, "type") && has_value && typed) {
            a->type = &c->argv[i + 1];
        } else {
            call_syntax(c);
            return false;
        }
    }
    return true;
}

void cmd_scan_reply(struct call *c, uint64_t next, int64_t n, struct chain *items)
{
    char cursor[NUM_I64_MAX];

    reply_array(&c->r, 2);
    reply_bulk(&c->r, SLICE(cursor, num_format_u64(cursor, next)));
    reply_array(&c->r, n);
    chain_move(c->r.out, items);
}

void cmd_scan(struct call *c)
{
    struct scan_args a;

    if (!cmd_scan_cursor(c, 1, &a) || !cmd_scan_options(c, 2, true, &a))
        return;
    struct walk *k = walk_create(c, WALK_SCAN);
    k->cursor = a.cursor << CURSOR_SHIFT; /* bits that we do not have are ignored */
    k->want = a.count;
    if (a.match)
        walk_set_pattern(k, a.pattern);
    if (a.type) {
        k->typed = true;
        buf_slice_append(&k->type, *a.type);
    }
    k->buckets = k->want > UINT64_MAX / 10 ? UINT64_MAX : k->want * 10;
    k->empty = EMPTY_BUCKETS; /* tables do not shrink, and a nearly empty one should take one call */
    if (k->want < SLICE_READS)
        k->budget = (size_t)k->want;
    walk_run(c, k);
}

/* ---- commands on whole databases ----------------------------------------------------- */

void cmd_dbsize(struct call *c)
{
    int64_t n = atomic_load_explicit(&c->w->tier->mem->db[c->s->db].keys, memory_order_relaxed);
    reply_int(&c->r, n > 0 ? n : 0);
}

/* ASYNC and SYNC make no difference: a flush changes a number, and space comes back in slices. */
static bool flush_options(struct call *c)
{
    if (c->argc == 1 || (c->argc == 2 && (call_arg_is(c, 1, "async") || call_arg_is(c, 1, "sync"))))
        return true;
    call_syntax(c);
    return false;
}

/* Whoever called the handler moves the watches to where the new names of their keys are. */
static void flush_db(struct call *c, int db)
{
    watch_touch_db(c->w, db, false);
    tier_flush_db_locked(c->w, (unsigned)db);
}

void cmd_flushdb(struct call *c)
{
    if (!flush_options(c))
        return;
    flush_db(c, c->s->db);
    tracking_flushed(c->w);
    reply_simple(&c->r, "OK");
}

void cmd_flushall(struct call *c)
{
    if (!flush_options(c))
        return;
    for (unsigned db = 0; db < c->w->tier->mem->databases; db++)
        flush_db(c, (int)db);
    tracking_flushed(c->w);
    reply_simple(&c->r, "OK");
}

static bool db_index(struct call *c, int arg, int64_t *out, const char *err)
{
    if (!call_arg_i64(c, arg, out, err))
        return false;
    if (*out >= INT_MIN && *out <= INT_MAX)
        return true;
    call_error(c, err);
    return false;
}

void cmd_swapdb(struct call *c)
{
    int64_t a, b, databases = (int64_t)c->w->tier->mem->databases;

    if (!db_index(c, 1, &a, "ERR invalid first DB index") || !db_index(c, 2, &b, "ERR invalid second DB index"))
        return;
    if (a < 0 || a >= databases || b < 0 || b >= databases) {
        call_error(c, "ERR DB index is out of range");
        return;
    }
    if (a != b) {
        watch_touch_db(c->w, (int)a, false);
        watch_touch_db(c->w, (int)b, false);
        tier_swap_db_locked(c->w, (unsigned)a, (unsigned)b);
        watch_rehash(c->w); /* a key that came with the other database is a change too */
        watch_touch_db(c->w, (int)a, true);
        watch_touch_db(c->w, (int)b, true);
    }
    reply_simple(&c->r, "OK");
}
