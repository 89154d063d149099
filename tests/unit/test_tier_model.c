/* Random walks over the states of tier.h, with real threads and loops, on fakes that delay, refuse,
 * fail, damage and drop at every step, against plain arrays under the same shard locks.
 *
 * usage: test_tier_model [seed [operations]] */
#include "tier_world.h"

#include "tiercel/rules.h"

#include "tiercel/num.h"
#include "tiercel/type_list.h"

#if defined(__SANITIZE_THREAD__)
#define OPS 12000
#elif defined(__SANITIZE_ADDRESS__)
#define OPS 40000
#else
#define OPS 100000
#endif

#define WORKERS 3
#define CLIENTS 6 /* of each worker */
#define KEYS 80
#define OP_KEYS 6
#define FAULTS_MAX 60 /* a request that must be tried more often than that makes no progress */
#define SOON_MS 40    /* short expiries */
#define LATER_MS 1000000
#define VERSION_LEN 16
#define VERSIONS (OPS * OP_KEYS * 2 + 1000000)

enum phase { READY, WAITING, CANCELLING, ROOM, SENT, ANSWERED, SYNC };
enum op { READ, EXISTS, SET, SET_LIST, DEL, PUSH, EXPIRE, FLUSH, SWAP, WALK, WRITE_UP, WRITE_FOREIGN, FLUSH_UP };

struct client {
    struct mbox_msg msg;
    struct worker *w;
    struct tier_request req;
    struct tier_wait waits[OP_KEYS];
    struct tier_room_wait room;
    enum phase phase;
    enum op op;
    bool holding; /* req holds pins */
    bool final;   /* reads every key once, at the end */
    int n, k[OP_KEYS], faults, left, next_key;
    unsigned db;
    uint64_t floor[OP_KEYS], version;
    struct tier_sync_wait sync;
    struct {
        uint64_t hash, version;
    } written[OP_KEYS]; /* by the last operation */
};

struct mkey {
    bool exists, list;
    uint64_t version;
    int64_t expire_ms;
};

static struct world *wd;
static bool with_up;
static char names[KEYS][32];
static struct mkey model[WORLD_DBS][KEYS]; /* under the key's shard lock */
static unsigned slot[WORLD_DBS];           /* which row a database is now; under all locks */
static _Atomic uint64_t last_version;
static _Atomic bool *lost; /* by version: the disk lost its record */
static struct client clients[WORKERS][CLIENTS];
static _Atomic int running;
static _Atomic uint64_t errors, losses, cancels;

/* ---- values --------------------------------------------------------------------------------- */

static uint64_t version_parse(const char *ptr)
{
    char text[VERSION_LEN + 1];
    memcpy(text, ptr, VERSION_LEN);
    text[VERSION_LEN] = '\0';
    return strtoull(text, NULL, 16);
}

static void version_text(uint64_t v, char text[VERSION_LEN + 1])
{
    snprintf(text, VERSION_LEN + 1, "%016llx", (unsigned long long)v);
}

static struct object *string_of(struct worker *w, const struct key *key, uint64_t version, int64_t expire_ms)
{
    static _Thread_local char bytes[8000];
    size_t len = VERSION_LEN + rng_next(&w->rng) % (rng_next(&w->rng) % 20 ? 120 : 6000);
    char text[VERSION_LEN + 1];
    memset(bytes, 'v', len);
    version_text(version, text);
    memcpy(bytes, text, VERSION_LEN);
    return object_new_string(key, SLICE(bytes, len), expire_ms, 0);
}

static uint64_t version_of(struct worker *w, const struct object *o)
{
    char scratch[OBJ_SCRATCH];
    struct slice s;

    if (o->type == OBJ_LIST) {
        struct qlist_pos at;
        char number[NUM_I64_MAX];
        qlist_seek((struct object *)(uintptr_t)o, qlist_len(o) - 1, &at);
        return version_parse(qlist_get(&at, number).ptr);
    }
    CHECK(o->type == OBJ_STRING && object_string(o, w->codec, scratch, &s) == ST_OK && s.len >= VERSION_LEN);
    return version_parse(s.ptr);
}

static uint64_t record_version(const struct disk_record *r)
{
    /* of a list: at the end of the last node, before its length and the end of the listpack */
    return version_parse(r->type == OBJ_LIST ? r->payload.ptr + r->payload.len - 2 - VERSION_LEN : r->payload.ptr + 2);
}

/* Called by the disk before a record goes, or is found damaged. */
static void losing(void *arg, const struct disk_record *r)
{
    (void)arg;
    if (!with_up)
        atomic_store(&lost[record_version(r)], true);
}

static int key_number(const struct key *key)
{
    int64_t k;
    CHECK(key->len == 7 && num_parse_i64(SLICE(key->ptr + 4, 3), &k));
    return (int)k - 100;
}

static struct mkey *model_of(unsigned db, int k)
{
    return &model[slot[db]][k];
}

/* ---- the upstream's data ---------------------------------------------------------------------- */

struct inval {
    struct list link;
    int k; /* -1: all */
    uint64_t version;
};

struct remote_link {
    struct list invals; /* under remote.mu */
    bool tracked[KEYS];
    uint64_t rng;
};

static struct {
    pthread_mutex_t mu;
    uint64_t version[KEYS];
    uint64_t gone[KEYS]; /* the newest version that a read may find absent: a deletion, or about to expire */
    bool exists[KEYS];
    struct remote_link link[WORKERS];
} remote = {.mu = PTHREAD_MUTEX_INITIALIZER};

/* What a read that begins now must not fall behind: the newest own write that was answered, or
 * invalidation that was delivered. */
static _Atomic uint64_t floor_of[KEYS];

static void floor_raise(int k, uint64_t version)
{
    uint64_t was = atomic_load(&floor_of[k]);
    while (was < version && !atomic_compare_exchange_weak(&floor_of[k], &was, version))
        ;
}

static void remote_tell(struct remote_link *l, int k, uint64_t version)
{
    struct inval *inv = malloc(sizeof(*inv));
    inv->k = k;
    inv->version = version;
    list_push_back(&l->invals, &inv->link);
}

static uint64_t remote_write(int k, bool exists)
{
    pthread_mutex_lock(&remote.mu);
    uint64_t v = remote.version[k] = atomic_fetch_add(&last_version, 1) + 1;
    remote.exists[k] = exists;
    if (!exists)
        remote.gone[k] = v;
    for (int i = 0; i < WORKERS; i++) {
        if (remote.link[i].tracked[k])
            remote_tell(&remote.link[i], k, v);
        remote.link[i].tracked[k] = false;
    }
    pthread_mutex_unlock(&remote.mu);
    return v;
}

static void remote_flush(void)
{
    pthread_mutex_lock(&remote.mu);
    uint64_t v = atomic_fetch_add(&last_version, 1) + 1;
    for (int k = 0; k < KEYS; k++) {
        remote.version[k] = remote.gone[k] = v;
        remote.exists[k] = false;
    }
    for (int i = 0; i < WORKERS; i++) {
        remote_tell(&remote.link[i], -1, v);
        memset(remote.link[i].tracked, 0, sizeof(remote.link[i].tracked));
    }
    pthread_mutex_unlock(&remote.mu);
}

static void link_reset(struct remote_link *l)
{
    struct list *i;
    pthread_mutex_lock(&remote.mu);
    while ((i = list_pop_front(&l->invals)))
        free(LIST_ENTRY(i, struct inval, link));
    memset(l->tracked, 0, sizeof(l->tracked));
    pthread_mutex_unlock(&remote.mu);
}

static void up_execute(struct upstream *up, struct remote_link *l)
{
    for (struct list *i = up->fetches.next; i != &up->fetches; i = i->next) {
        struct fake_fetch *ff = LIST_ENTRY(i, struct fake_fetch, link);
        if (ff->executed)
            continue;
        struct key key = {.ptr = ff->f->key.ptr, .len = (uint32_t)ff->f->key.len};
        int k = key_number(&key);
        pthread_mutex_lock(&remote.mu);
        l->tracked[k] = true;
        ff->executed = true;
        ff->st = remote.exists[k] ? ST_OK : ST_NOT_FOUND;
        version_text(remote.version[k], ff->value);
        ff->pttl_ms = remote.version[k] % 4 ? -1 : remote.version[k] % 8 ? SOON_MS : LATER_MS;
        if (ff->pttl_ms == SOON_MS)
            remote.gone[k] = remote.version[k];
        pthread_mutex_unlock(&remote.mu);
        return;
    }
}

static void up_deliver(struct upstream *up)
{
    if (list_empty(&up->fetches))
        return;
    struct fake_fetch *ff = LIST_ENTRY(up->fetches.next, struct fake_fetch, link);
    if (!ff->executed)
        return;
    char value[32];
    memcpy(value, ff->value, sizeof(value));
    fake_up_answer(up, ff->st, ff->st == ST_OK ? value : NULL, ff->pttl_ms);
}

static void up_invalidate(struct upstream *up, struct remote_link *l)
{
    pthread_mutex_lock(&remote.mu);
    struct list *i = list_pop_front(&l->invals);
    pthread_mutex_unlock(&remote.mu);
    if (!i)
        return;
    struct inval *inv = LIST_ENTRY(i, struct inval, link);
    if (inv->k >= 0)
        up->ev.invalidate(up->ev.arg, slice_str(names[inv->k]));
    else
        up->ev.invalidate_all(up->ev.arg);
    for (int k = inv->k < 0 ? 0 : inv->k; k < (inv->k < 0 ? KEYS : inv->k + 1); k++)
        floor_raise(k, inv->version);
    free(inv);
}

/* Something happens on the links of this worker. */
static void up_pump(struct worker *w, bool trouble)
{
    struct upstream *up = tier_upstream(w);
    struct remote_link *l = &remote.link[w->id];

    if (!up)
        return;
    w->now_ms = clock_wall_ms();
    for (int n = (int)(rng_next(&l->rng) % 6); n >= 0; n--) {
        unsigned dice = (unsigned)(rng_next(&l->rng) % 1000);
        if (up->generation == 0) {
            if (dice < 300 || !trouble)
                fake_up_connect(up);
        } else if (dice < 3 && trouble) {
            fake_up_lose(up);
            link_reset(l);
        } else if (dice < 10 && trouble) {
            fake_up_answer(up, dice < 6 ? ST_TIMEOUT : dice < 8 ? ST_WRONGTYPE : ST_BAD, "LOADING", -1);
        } else if (dice < 350) {
            up_execute(up, l);
        } else if (dice < 700) {
            up_deliver(up);
        } else {
            up_invalidate(up, l);
        }
    }
}

/* ---- operations -------------------------------------------------------------------------------- */

static size_t below(struct client *c, size_t n)
{
    return (size_t)(rng_next(&c->w->rng) % n);
}

static void client_step(struct mbox_msg *msg, void *owner);

static void again(struct client *c)
{
    c->msg.run = client_step;
    mbox_post(c->w->mbox, &c->msg);
}

static void op_end(struct client *c)
{
    if (c->holding)
        tier_release(c->w, &c->req);
    c->holding = false;
    c->phase = READY;
    again(c);
}

static void on_ready(struct tier_request *req)
{
    struct client *c = LIST_ENTRY(req, struct client, req);

    CHECK(atomic_load(&req->pending) == 0);
    if (c->phase == CANCELLING) {
        CHECK(req->cancelled);
        op_end(c);
        return;
    }
    CHECK(c->phase == WAITING && !req->cancelled); /* exactly once, and only when promised */
    c->phase = READY;
    c->holding = true;
    again(c);
    c->phase = ANSWERED;
}

static void on_room(struct tier_room_wait *rw)
{
    struct client *c = LIST_ENTRY(rw, struct client, room);
    CHECK(c->phase == ROOM);
    c->phase = ANSWERED;
    again(c);
}

static enum tier_need need_of(enum op op)
{
    switch (op) {
    case READ:
    case PUSH:
    case EXPIRE: return TIER_VALUE;
    case EXISTS: return TIER_PRESENCE;
    default: return TIER_NOTHING;
    }
}

static void op_choose(struct client *c)
{
    static const struct {
        enum op op;
        int weight;
    } alone[] = {{READ, 400}, {EXISTS, 60}, {SET, 250}, {SET_LIST, 60}, {DEL, 60},
                 {PUSH, 100}, {EXPIRE, 60}, {FLUSH, 1}, {SWAP, 2},      {WALK, 7}},
      near[] = {{READ, 800}, {EXISTS, 20}, {WRITE_UP, 80}, {WRITE_FOREIGN, 98}, {FLUSH_UP, 1}, {WALK, 1}};
    int dice = (int)below(c, 1000), i = 0;

    if (with_up) {
        for (; dice >= near[i].weight; i++)
            dice -= near[i].weight;
        c->op = near[i].op;
    } else {
        for (; dice >= alone[i].weight; i++)
            dice -= alone[i].weight;
        c->op = alone[i].op;
    }
    c->db = with_up ? 0 : (unsigned)below(c, WORLD_DBS);
    c->n = below(c, 3) ? 1 : 1 + (int)below(c, OP_KEYS);
    if (c->op == WRITE_UP || c->op == WRITE_FOREIGN)
        c->n = 1;
    for (int i2 = 0; i2 < c->n;) {
        size_t hot = below(c, 2) ? KEYS / 8 : KEYS;
        c->k[i2] = (int)below(c, hot);
        int j = 0;
        while (c->k[j] != c->k[i2])
            j++;
        i2 += j == i2; /* no key twice */
    }
    c->faults = 0;
    for (int i3 = 0; i3 < c->n; i3++)
        c->floor[i3] = atomic_load(&floor_of[c->k[i3]]);
}

static int shard_compare(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* Locks the shards of the keys, in order. false: a database changed under our feet. */
static bool keys_lock(struct client *c, struct key *key, int *shard, int *nshards)
{
    bool current = true;
    int n = 0;

    for (int i = 0; i < c->n; i++) {
        mem_key_init(wd->mem, c->db, slice_str(names[c->k[i]]), &key[i]);
        shard[i] = (int)mem_shard_of(wd->mem, key[i].hash)->index;
    }
    qsort(shard, (size_t)c->n, sizeof(*shard), shard_compare);
    for (int i = 0; i < c->n; i++)
        if (i == 0 || shard[i] != shard[i - 1])
            shard[n++] = shard[i];
    for (int i = 0; i < n; i++)
        mem_lock(&wd->mem->shard[shard[i]]);
    for (int i = 0; i < c->n; i++)
        current &= mem_key_current(wd->mem, &key[i]);
    *nshards = n;
    return current;
}

static void keys_unlock(const int *shard, int n)
{
    while (n > 0)
        mem_unlock(&wd->mem->shard[shard[--n]]);
}

/* What was found, against the model, standalone. */
static void judge(struct client *c, int k, const struct tier_found *f)
{
    struct mkey *m = model_of(c->db, k);

    if (f->obj) {
        CHECK(m->exists); /* else it was resurrected */
        CHECK(version_of(c->w, f->obj) == m->version);
        CHECK(object_expire(f->obj) == m->expire_ms);
        CHECK(m->expire_ms == 0 || m->expire_ms > c->w->now_ms);
        CHECK((f->obj->type == OBJ_LIST) == m->list);
    } else if (f->on_disk) {
        CHECK(m->exists);
        CHECK(need_of(c->op) == TIER_NOTHING || (need_of(c->op) == TIER_PRESENCE && m->expire_ms == 0));
    } else if (m->exists) {
        bool expired = m->expire_ms != 0 && m->expire_ms <= clock_wall_ms();
        CHECK(expired || atomic_load(&lost[m->version]));
        losses += !expired;
        m->exists = false;
    }
}

/* The same beside an upstream: not older than what was known when the request began. */
static void judge_copy(struct client *c, int i, const struct tier_found *f)
{
    int k = c->k[i];

    pthread_mutex_lock(&remote.mu);
    if (f->obj) {
        uint64_t v = version_of(c->w, f->obj);
        CHECK(v >= c->floor[i] && v <= remote.version[k]);
    } else {
        CHECK(!f->on_disk);
        CHECK(remote.gone[k] >= c->floor[i]);
    }
    pthread_mutex_unlock(&remote.mu);
}

static int64_t some_expiry(struct client *c)
{
    size_t dice = below(c, 8);
    return dice == 0 ? c->w->now_ms + 1 + (int64_t)below(c, SOON_MS) : dice == 1 ? c->w->now_ms + LATER_MS : 0;
}

static void key_put(struct client *c, const struct key *key, int k, bool list)
{
    struct mkey *m = model_of(c->db, k);
    char text[VERSION_LEN + 1];

    *m = (struct mkey){true, list, atomic_fetch_add(&last_version, 1) + 1, some_expiry(c)};
    CHECK(m->version < VERSIONS);
    struct object *o;
    if (list) {
        version_text(m->version, text);
        o = object_set_expire(qlist_create(key), m->expire_ms);
        qlist_push(o, false, SLICE(text, VERSION_LEN), 8);
    } else {
        o = string_of(c->w, key, m->version, m->expire_ms);
    }
    tier_put_locked(c->w, mem_shard_of(wd->mem, key->hash), key, o);
}

static void key_push(struct client *c, const struct key *key, int k, struct object *o)
{
    struct mkey *m = model_of(c->db, k);
    char text[VERSION_LEN + 1];

    if (!o || o->type != OBJ_LIST || qlist_len(o) > 20) {
        key_put(c, key, k, true);
        return;
    }
    m->version = atomic_fetch_add(&last_version, 1) + 1;
    version_text(m->version, text);
    qlist_push(o, false, SLICE(text, VERSION_LEN), 8);
    tier_changed_locked(c->w, mem_shard_of(wd->mem, key->hash), key, o, o, object_expire(o) != 0);
}

static void key_expire(struct client *c, const struct key *key, int k, struct object *o)
{
    struct mkey *m = model_of(c->db, k);

    if (!o)
        return;
    bool had = object_expire(o) != 0;
    m->expire_ms = some_expiry(c);
    struct object *now = object_set_expire(o, m->expire_ms);
    tier_changed_locked(c->w, mem_shard_of(wd->mem, key->hash), key, o, now, had);
}

static void key_delete(struct client *c, const struct key *key, int k, const struct tier_found *f)
{
    bool existed = tier_delete_locked(c->w, mem_shard_of(wd->mem, key->hash), key, TIER_DELETED);
    CHECK(existed == (f->obj || f->on_disk));
    model_of(c->db, k)->exists = false;
}

static void execute(struct client *c, const struct key *key, const struct tier_found *f)
{
    for (int i = 0; i < c->n; i++) {
        if (with_up) {
            judge_copy(c, i, &f[i]);
            if (f[i].obj && f[i].kept)
                tier_touch_locked(c->w, f[i].obj);
            continue;
        }
        judge(c, c->k[i], &f[i]);
        c->written[i].hash = key[i].hash;
        if (c->op == SET || c->op == SET_LIST)
            key_put(c, &key[i], c->k[i], c->op == SET_LIST);
        else if (c->op == DEL)
            key_delete(c, &key[i], c->k[i], &f[i]);
        else if (c->op == PUSH)
            key_push(c, &key[i], c->k[i], f[i].obj);
        else if (c->op == EXPIRE)
            key_expire(c, &key[i], c->k[i], f[i].obj);
        else if (f[i].obj)
            tier_touch_locked(c->w, f[i].obj);
        c->written[i].version = model_of(c->db, c->k[i])->version;
    }
}

/* What a start after a crash would find of the client's keys now: this version, or what came after it. */
static void check_durable(struct client *c)
{
    if (c->op != SET && c->op != SET_LIST && c->op != PUSH)
        return;
    for (int i = 0; i < c->n; i++) {
        bool found = false;
        pthread_mutex_lock(&wd->disk->mu);
        for (size_t e = wd->disk->nevents; e-- > 0 && !found;) {
            const struct fake_event *ev = &wd->disk->event[e];
            if (ev->hash != c->written[i].hash)
                continue;
            if (ev->block == 0 || ev->dropped)
                found = true; /* deleted since, or dropped: then the tier knows */
            else if (wd->disk->rec[ev->block - 1].committed)
                found = record_version(&wd->disk->rec[ev->block - 1].r) >= c->written[i].version;
        }
        pthread_mutex_unlock(&wd->disk->mu);
        CHECK(found);
    }
}

static void fault(struct client *c)
{
    CHECK(++c->faults < FAULTS_MAX);
    memset(c->waits, 0, sizeof(c->waits));
    c->req = (struct tier_request){.ready = on_ready, .waits = c->waits, .nwaits = c->n};
    list_init(&c->req.admission);
    for (int i = 0; i < c->n; i++) {
        mem_key_init(wd->mem, c->db, slice_str(names[c->k[i]]), &c->waits[i].key);
        c->waits[i].need = (uint8_t)need_of(c->op);
    }
    c->phase = WAITING;
    switch (tier_fault(c->w, &c->req, c->faults > 1 || below(c, 4))) {
    case ST_OK:
        c->holding = true;
        c->phase = ANSWERED;
        again(c);
        break;
    case ST_PENDING: break;
    case ST_BUSY:
        c->phase = ANSWERED;
        again(c);
        break;
    default: CHECK(!"a status that tier_fault() has not");
    }
}

/* appendfsync always: what was done is acknowledged when it is on disk. */
static void on_sync(struct tier_sync_wait *sw, bool ok)
{
    struct client *c = LIST_ENTRY(sw, struct client, sync);
    CHECK(c->phase == SYNC);
    CHECK(ok || wd->disk->p_commit > 0);
    if (ok)
        check_durable(c);
    op_end(c);
}

static bool await_disk(struct client *c)
{
    if (c->op == READ || c->op == EXISTS || !wd->tier->limit.journal_always)
        return false;
    if (!tier_sync_needed(c->w, &c->sync))
        return false;
    c->sync.done = on_sync;
    c->phase = SYNC;
    tier_wait_sync(c->w, &c->sync);
    return true;
}

static void attempt(struct client *c)
{
    struct key key[OP_KEYS];
    struct tier_found found[OP_KEYS];
    int shard[OP_KEYS], nshards;
    enum status st = ST_OK;

    c->sync.since = atomic_load(&wd->tier->settled_event);
    if (c->n > 1)
        tier_group_begin(c->w);
    while (!keys_lock(c, key, shard, &nshards))
        keys_unlock(shard, nshards);
    for (int i = 0; i < c->n && st == ST_OK; i++)
        st = tier_resolve_locked(c->w, mem_shard_of(wd->mem, key[i].hash), &key[i], need_of(c->op),
                                 c->holding ? &c->waits[i] : NULL, &found[i]);
    if (st == ST_OK)
        execute(c, key, found);
    keys_unlock(shard, nshards);
    tier_group_end(c->w);
    if (st == ST_OK && await_disk(c))
        return;
    if (st == ST_PENDING) {
        if (c->holding)
            tier_release(c->w, &c->req);
        c->holding = false;
        fault(c);
        return;
    }
    if (st != ST_OK) {
        CHECK(with_up || st == ST_IO);
        CHECK(c->holding);
        errors++;
        if (c->final)
            c->next_key--; /* until it is had */
    }
    op_end(c);
}

static void walk_nothing(void *arg, const struct object *o)
{
    (void)arg;
    (void)o;
}

static bool walk_nothing_disk(void *arg, const struct disk_slot *s)
{
    (void)arg;
    (void)s;
    return true;
}

/* What names no key, or waits for no tier. false: it is an operation on keys. */
static bool op_special(struct client *c)
{
    struct worker *w = c->w;
    uint64_t cursor = 0;

    switch (c->op) {
    case FLUSH:
        mem_lock_all(wd->mem);
        tier_flush_db_locked(w, c->db);
        memset(model[slot[c->db]], 0, sizeof(model[0]));
        mem_unlock_all(wd->mem);
        break;
    case SWAP:
        mem_lock_all(wd->mem);
        tier_swap_db_locked(w, 0, 1);
        slot[0] ^= 1;
        slot[1] ^= 1;
        mem_unlock_all(wd->mem);
        break;
    case WALK:
        do
            tier_scan_step(w, false, cursor, &cursor, walk_nothing, walk_nothing_disk, NULL);
        while (cursor != 0);
        break;
    case WRITE_UP:
        if (c->phase == READY) {
            tier_forget_upstream(w, 0, slice_str(names[c->k[0]]));
            c->phase = SENT;
            again(c);
            return true;
        }
        if (c->phase == SENT) {
            c->version = remote_write(c->k[0], below(c, 4) != 0);
            c->phase = ANSWERED;
            again(c);
            return true;
        }
        tier_forget_upstream(w, 0, slice_str(names[c->k[0]]));
        floor_raise(c->k[0], c->version);
        break;
    case WRITE_FOREIGN: remote_write(c->k[0], below(c, 4) != 0); break;
    case FLUSH_UP: remote_flush(); break;
    default: return false;
    }
    op_end(c);
    return true;
}

static void cancel_somebody(struct worker *w)
{
    struct client *c = &clients[w->id][rng_next(&w->rng) % CLIENTS];

    if (c->phase == ROOM && rng_next(&w->rng) % 2) {
        tier_cancel_room(&c->room);
        op_end(c);
    }
    if (c->phase != WAITING || c->final)
        return;
    atomic_fetch_add(&cancels, 1);
    c->phase = CANCELLING;
    if (tier_cancel(w, &c->req)) {
        memset(c->waits, 0xee, sizeof(c->waits));
        op_end(c);
    }
}

static void client_step(struct mbox_msg *msg, void *owner)
{
    struct client *c = LIST_ENTRY(msg, struct client, msg);
    struct worker *w = c->w;
    (void)owner;

    w->now_ms = clock_wall_ms();
    if (with_up)
        up_pump(w, !c->final);
    if (c->phase == READY) {
        if (c->final ? c->next_key == KEYS * (with_up ? 1 : WORLD_DBS) : c->left-- == 0) {
            atomic_fetch_sub(&running, 1);
            return;
        }
        op_choose(c);
        if (c->final) {
            c->op = READ;
            c->n = 1;
            c->k[0] = c->next_key % KEYS;
            c->db = (unsigned)(c->next_key++ / KEYS);
            c->floor[0] = atomic_load(&floor_of[c->k[0]]);
        } else if (rng_next(&w->rng) % 30 == 0) {
            cancel_somebody(w);
        }
    }
    if (op_special(c))
        return;
    bool writes = !with_up && need_of(c->op) == TIER_NOTHING;
    if (c->phase == READY && (writes || c->op == PUSH) && tier_make_room(w) == ST_PENDING && below(c, 2)) {
        c->phase = ROOM;
        c->room.ready = on_room;
        tier_wait_room(w, &c->room);
        return;
    }
    attempt(c);
}

/* The command layer's part: told of each change, under the shard's lock. */
static void on_change(void *arg, struct worker *w, const struct key *key, enum tier_change why)
{
    struct mkey *m = model_of(key->db, key_number(key));
    (void)arg, (void)w;

    CHECK(mem_key_current(wd->mem, key));
    if (with_up)
        return;
    if (why == TIER_EXPIRED) {
        CHECK(m->exists && m->expire_ms != 0 && m->expire_ms <= clock_wall_ms());
        m->exists = false;
    } else if (why == TIER_EVICTED) { /* the disk refused it */
        CHECK(m->exists);
        m->exists = false;
    }
}

/* ---- the run ----------------------------------------------------------------------------------- */

static uv_timer_t ticks[WORKERS];
static pthread_t threads[WORKERS];
static struct mbox_msg stops[WORKERS];

static void on_tick(uv_timer_t *timer)
{
    struct worker *w = timer->data;
    w->now_ms = clock_wall_ms();
    tier_worker_tick(w);
    tier_worker_sweep(w, true, 200);
    up_pump(w, false);
}

static void *loop_main(void *arg)
{
    struct worker *w = arg;
    uv_timer_t *tick = &ticks[w->id];
    uv_timer_init(w->loop, tick);
    tick->data = w;
    uv_timer_start(tick, on_tick, 2, 2);
    uv_run(w->loop, UV_RUN_DEFAULT);
    return NULL;
}

static void stop_run(struct mbox_msg *msg, void *owner)
{
    struct worker *w = owner;
    (void)msg;
    uv_close((uv_handle_t *)&ticks[w->id], NULL);
    uv_stop(w->loop);
}

static void wait_until_rest(void)
{
    int64_t until = clock_mono_ms() + 120000;
    while (atomic_load(&running) > 0 || atomic_load(&wd->tier->fetches) > 0 ||
           atomic_load(&wd->tier->demoting_bytes) != 0) {
        usleep(500);
        if (clock_mono_ms() > until) {
            fprintf(stderr, "stuck: %d clients run, %d fetches, %lld bytes demoting\n", atomic_load(&running),
                    atomic_load(&wd->tier->fetches), (long long)atomic_load(&wd->tier->demoting_bytes));
            abort();
        }
    }
}

struct census {
    int64_t keys[WORLD_DBS], expires[WORLD_DBS], tracked, wrapped;
};

static void census_mem(void *arg, const struct object *o)
{
    struct census *c = arg;
    int db = mem_db_of(wd->mem, o->inc);
    c->tracked += (o->flags & OBJ_F_ORIGIN) != 0;
    if (db < 0)
        return;
    c->keys[db]++;
    c->expires[db] += object_expire(o) != 0;
}

static bool census_disk(void *arg, const struct disk_slot *s)
{
    struct census *c = arg;
    int db = mem_db_of(wd->mem, (uint16_t)wd->disk->rec[s->block - 1].r.incarnation);
    if (db >= 0) {
        c->keys[db]++;
        c->expires[db] += s->has_expire;
    }
    return true;
}

static void census_wrapped(void *arg, struct object *o)
{
    ((struct census *)arg)->wrapped += o->type == OBJ_RESIDENCY;
}

/* At rest: the counters are those of what is there, and of the model. */
static void settle_accounts(void)
{
    struct census c = {.tracked = 0};
    struct worker *w = world_worker(wd, 0);
    uint64_t cursor = 0, next;

    do {
        struct mem_shard *shard = mem_shard_of(wd->mem, cursor);
        mem_lock(shard);
        mem_scan_locked(wd->mem, shard, cursor, &next, census_wrapped, &c);
        mem_unlock(shard);
        tier_scan_step(w, false, cursor, &cursor, census_mem, census_disk, &c);
    } while (cursor != 0);
    CHECK(c.wrapped == 0);
    for (unsigned db = 0; db < WORLD_DBS; db++) {
        int64_t keys = 0, expires = 0;
        for (int k = 0; k < KEYS; k++) {
            keys += model_of(db, k)->exists;
            expires += model_of(db, k)->exists && model_of(db, k)->expire_ms != 0;
        }
        CHECK(atomic_load(&wd->mem->db[db].keys) == c.keys[db]);
        CHECK(atomic_load(&wd->mem->db[db].expires) == c.expires[db]);
        CHECK(with_up || (keys == c.keys[db] && expires == c.expires[db]));
    }
    CHECK(atomic_load(&wd->tier->tracked_keys) == c.tracked);
    CHECK(atomic_load(&wd->tier->inflight_urgent) == 0 && atomic_load(&wd->tier->inflight_ahead) == 0);
}

static bool tier_dirty(const struct disk *d, const struct object *o, uint64_t hash)
{
    uint32_t block;
    bool has_expire;
    return o->flags & OBJ_F_OWED || !disk_find_locked(d, hash, &block, &has_expire);
}

static void durable_object(void *arg, const struct object *o)
{
    (void)arg;
    CHECK(!tier_dirty(wd->disk, o, mem_object_hash(wd->mem, o)));
}

static bool durable_slot(void *arg, const struct disk_slot *s)
{
    (void)arg;
    (void)s;
    return true;
}

/* With a journal and a disk that does not fail, memory has nothing that the disk has not. */
static void check_all_durable(void)
{
    uint64_t cursor = 0;

    CHECK(disk_sync(wd->disk, 60000) == ST_OK);
    do
        tier_scan_step(world_worker(wd, 0), false, cursor, &cursor, durable_object, durable_slot, NULL);
    while (cursor != 0);
}

struct plan {
    const char *name;
    bool disk, up, failures;
    int64_t room, stale_ms;
    int policy;
    bool journal;
};

static void start_all(uint64_t seed, int ops)
{
    atomic_store(&running, WORKERS * CLIENTS);
    for (int i = 0; i < WORKERS; i++) {
        struct worker *w = world_worker(wd, i);
        w->rng = seed * 1000 + (uint64_t)i;
        remote.link[i].rng = w->rng + 500;
        list_init(&remote.link[i].invals);
        memset(remote.link[i].tracked, 0, sizeof(remote.link[i].tracked));
        if (with_up)
            fake_up_connect(tier_upstream(w));
        for (int k = 0; k < CLIENTS; k++) {
            clients[i][k] = (struct client){.w = w, .left = ops / (WORKERS * CLIENTS), .phase = READY};
            again(&clients[i][k]);
        }
    }
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&threads[i], NULL, loop_main, world_worker(wd, i)) == 0);
}

/* Everything is read once more, when nothing fails and short expiries are over. */
static void read_all(void)
{
    if (wd->disk) {
        pthread_mutex_lock(&wd->disk->mu);
        wd->disk->p_full = wd->disk->p_io = wd->disk->p_commit = wd->disk->p_corrupt = wd->disk->p_read_io = 0;
        wd->disk->max_live = 0;
        pthread_mutex_unlock(&wd->disk->mu);
    }
    usleep((SOON_MS + 10) * 1000);
    atomic_store(&running, 1);
    clients[1][0].final = true;
    clients[1][0].next_key = 0;
    clients[1][0].phase = READY;
    again(&clients[1][0]);
    wait_until_rest();
}

/* Copies go stale and are refreshed all the time. */
static void set_rule(struct worker *to)
{
    static const struct slice words[] = {SLICE_LIT("*"), SLICE_LIT("ttl=20ms"), SLICE_LIT("refresh-ahead=100"),
                                         SLICE_LIT("stale-while-revalidate=20ms")};
    char err[RULE_ERROR_MAX];
    struct conf *next;

    CHECK(conf_rule_set(to->conf, 4, words, &next, err) == ST_OK);
    conf_unref(to->conf);
    to->conf = next;
}

static void run(const struct plan *p, uint64_t seed, int ops)
{
    printf("%s, seed %llu, %d operations\n", p->name, (unsigned long long)seed, ops);
    fflush(stdout);
    int64_t before = mem_class_bytes(MEM_DATA);
    with_up = p->up;
    memset(model, 0, sizeof(model));
    memset(remote.version, 0, sizeof(remote.version));
    memset(remote.gone, 0, sizeof(remote.gone));
    memset(remote.exists, 0, sizeof(remote.exists));
    for (int k = 0; k < KEYS; k++)
        atomic_store(&floor_of[k], 0);
    slot[0] = 0;
    slot[1] = 1;
    atomic_store(&last_version, 0);
    memset((void *)lost, 0, VERSIONS * sizeof(*lost));
    errors = losses = cancels = 0;
    wd = world_create(WORKERS, p->disk, p->up);
    wd->tier->change = on_change;
    for (int i = 0; p->up && i < WORKERS; i++)
        set_rule(world_worker(wd, i));
    struct tier_limits *limit = &wd->tier->limit;
    atomic_store(&limit->maxmemory, mem_class_bytes(MEM_DATA) + p->room);
    atomic_store(&limit->inflight_max, 4000);
    atomic_store(&limit->policy, p->policy);
    atomic_store(&limit->stale_if_error_ms, p->stale_ms);
    atomic_store(&limit->negative_ttl_ms, 20);
    atomic_store(&limit->tracked_keys_max, p->up ? 50 : 1000000);
    atomic_store(&limit->disk_stall_ms, 5);
    atomic_store(&limit->journal, p->journal);
    atomic_store(&limit->journal_always, p->journal);
    if (wd->disk) {
        wd->disk->losing = losing;
        wd->disk->rng = seed + 77;
        wd->disk->queue_max = 6000;
        wd->disk->max_delay_us = 300;
        wd->disk->max_live = 300;
        if (p->failures) {
            wd->disk->p_full = 20;
            wd->disk->p_io = 5;
            wd->disk->p_commit = 30;
            wd->disk->p_corrupt = 10;
            wd->disk->p_read_io = 10;
        }
        fake_disk_start(wd->disk);
    }
    start_all(seed, ops);
    wait_until_rest();
    read_all();
    for (int i = 0; i < WORKERS; i++) {
        stops[i].run = stop_run;
        mbox_post(world_worker(wd, i)->mbox, &stops[i]);
    }
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    settle_accounts();
    if (wd->disk) {
        tier_save_stop(wd->tier);
        if (p->journal && !p->failures)
            check_all_durable();
        fake_disk_stop(wd->disk);
        world_check_log(wd);
        printf("  %zu records, %zu tombstones, %zu reads, %llu errors, %llu lost, %llu cancelled\n", wd->disk->nrec,
               wd->disk->tombstones, wd->disk->nreads, (unsigned long long)errors, (unsigned long long)losses,
               (unsigned long long)cancels);
    }
    if (p->up)
        printf("  %llu errors, %llu cancelled, %zu fetches, %llu refreshes\n", (unsigned long long)errors,
               (unsigned long long)cancels, tier_upstream(world_worker(wd, 0))->nfetches,
               (unsigned long long)stats_sum(STAT_tier_refreshes));
    for (int i = 0; i < WORKERS; i++)
        link_reset(&remote.link[i]);
    world_destroy(wd);
    assert_int_equal(mem_class_bytes(MEM_DATA), before);
}

static uint64_t given_seed;
static int given_ops;

static void run_plan(const struct plan *p)
{
    uint64_t from = given_seed ? given_seed : 1, to = given_seed ? given_seed : 3;
    int ops = given_ops ? given_ops : OPS;

    for (uint64_t seed = from; seed <= to; seed++)
        run(p, seed, given_seed ? ops : ops / 3);
}

static void test_memory(void **state)
{
    (void)state;
    run_plan(&(struct plan){"memory", false, false, false, 30000, 0, POLICY_ALLKEYS_LRU, false});
}

static void test_disk(void **state)
{
    (void)state;
    run_plan(&(struct plan){"disk", true, false, false, 20000, 0, POLICY_ALLKEYS_LFU, false});
}

static void test_failing_disk(void **state)
{
    (void)state;
    run_plan(&(struct plan){"failing disk", true, false, true, 20000, 0, POLICY_ALLKEYS_LRU, false});
}

static void test_journal(void **state)
{
    (void)state;
    run_plan(&(struct plan){"journal", true, false, false, 20000, 0, POLICY_ALLKEYS_LRU, true});
}

static void test_journal_failing(void **state)
{
    (void)state;
    run_plan(&(struct plan){"journal, failing disk", true, false, true, 20000, 0, POLICY_ALLKEYS_LRU, true});
}

static void test_upstream(void **state)
{
    (void)state;
    run_plan(&(struct plan){"upstream", false, true, true, 30000, 0, POLICY_ALLKEYS_LRU, false});
}

static void test_upstream_and_disk(void **state)
{
    (void)state;
    run_plan(&(struct plan){"upstream and disk", true, true, true, 4000, LATER_MS, POLICY_ALLKEYS_LRU, false});
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_disk),
        cmocka_unit_test(test_failing_disk),
        cmocka_unit_test(test_journal),
        cmocka_unit_test(test_journal_failing),
        cmocka_unit_test(test_upstream),
        cmocka_unit_test(test_upstream_and_disk),
    };
    given_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    given_ops = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
    lost = calloc(VERSIONS, sizeof(*lost));
    for (int k = 0; k < KEYS; k++)
        snprintf(names[k], sizeof(names[k]), "key:%d", 100 + k);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free((void *)lost);
    return rc;
}
