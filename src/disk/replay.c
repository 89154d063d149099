/* The index from `keys`, at the start: events are applied in order, then live records are
 * counted by walking the index once. The data is not read. */
#include "disk_priv.h"

#define REPLAY_AHEAD 24
#define DB_MIXED 0xffffu
#define DB_NONE 0xfffeu

struct replay {
    struct disk *d;
    MDB_txn *txn;
    MDB_cursor *keys, *data;
    bool data_more;
    uint64_t data_id, data_len; /* where the data cursor is */
    uint64_t first, last;
    uint16_t *block_db; /* by id - first: the database of its records */
    bool reset;         /* a keys entry was unreadable: what came before it is not used */
};

/* The database of an incarnation, or DB_NONE. */
static uint32_t replay_db(const struct disk *d, uint32_t incarnation)
{
    for (unsigned db = 0; db < d->opt.databases; db++)
        if (PEEK(d->incarnation[db]) == incarnation)
            return db;
    return DB_NONE;
}

static int data_next(struct replay *r, MDB_cursor_op op)
{
    MDB_val key, val;
    int rc = mdb_cursor_get(r->data, &key, &val, op);
    r->data_more = rc == 0;
    if (rc == MDB_NOTFOUND)
        return 0;
    if (rc == 0) {
        r->data_id = load64(key.mv_data);
        r->data_len = val.mv_size;
    }
    return rc;
}

static int cursor_edge(MDB_cursor *c, MDB_cursor_op op, uint64_t *id)
{
    MDB_val key, val;
    int rc = mdb_cursor_get(c, &key, &val, op);
    if (rc == 0)
        *id = load64(key.mv_data);
    return rc;
}

/* Oldest and newest id of both databases. MDB_NOTFOUND: both are empty. */
static int replay_range(struct replay *r)
{
    MDB_cursor *c[2] = {r->keys, r->data};
    int found = MDB_NOTFOUND;
    r->first = UINT64_MAX;
    for (int i = 0; i < 2; i++) {
        uint64_t lo, hi;
        int rc = cursor_edge(c[i], MDB_FIRST, &lo);
        if (rc == MDB_NOTFOUND)
            continue;
        if (rc == 0)
            rc = cursor_edge(c[i], MDB_LAST, &hi);
        if (rc != 0)
            return rc;
        found = 0;
        r->first = lo < r->first ? lo : r->first;
        r->last = hi > r->last ? hi : r->last;
    }
    if (found == 0 && (r->first == 0 || r->last > UINT64_MAX / 2 || r->last - r->first >= WINDOW_MAX))
        return MDB_CORRUPTED;
    return found;
}

/* Which events of the entry count, and which database the block belongs to. */
static uint32_t replay_palette(const struct disk *d, const struct keys_view *k, bool alive[PALETTE_MAX])
{
    uint32_t block_db = DB_NONE;
    for (uint32_t i = 0; i < k->head.npal; i++) {
        uint32_t db = replay_db(d, load32(k->palette + (size_t)i * 4));
        alive[i] = db != DB_NONE;
        if (!alive[i])
            continue;
        block_db = block_db == DB_NONE ? db : DB_MIXED;
    }
    return block_db;
}

static inline void op_at(const struct keys_view *k, uint32_t i, struct disk_op *op)
{
    memcpy(op, k->ops + (size_t)i * sizeof(*op), sizeof(*op));
}

/* Returns how many records the block has. */
static uint32_t replay_ops(struct disk *d, const struct keys_view *k, uint64_t id, bool has_data,
                           const bool alive[PALETTE_MAX])
{
    uint32_t number = block_number(id), n = k->head.nops, records = 0, old;
    struct disk_op op;
    for (uint32_t i = 0; i < n; i++) {
        if (i + REPLAY_AHEAD < n) {
            uint64_t hash = load64(k->ops + (size_t)(i + REPLAY_AHEAD) * sizeof(op));
            index_prefetch(&d->index[disk_shard_of(d, hash)], disk_tag_of(d, hash));
        }
        op_at(k, i, &op);
        struct index_shard *s = &d->index[disk_shard_of(d, op.hash)];
        uint64_t tag = disk_tag_of(d, op.hash);
        /* A record whose block is gone was newer than any older one: it ends them. */
        records += !(op.word & OP_TOMB) && has_data;
        if ((op.word & OP_TOMB) || !has_data)
            index_remove(s, tag, &old);
        else if (OP_PALETTE(op.word) < k->head.npal && alive[OP_PALETTE(op.word)])
            index_put(s, tag, number | (op.word & OP_EXPIRE ? PLACE_EXPIRE : 0), &old);
    }
    return records;
}

static struct block_meta *replay_data(const struct replay *r, uint64_t id)
{
    struct block_meta *m = block_meta_make(r->d, id);
    m->bytes = (uint32_t)commit_cost(r->d, r->data_len);
    atomic_store_explicit(&m->data_len, (uint32_t)r->data_len, memory_order_relaxed);
    return m;
}

/* Data without a keys entry: nothing leads to it, it is deleted later as dead. */
static int replay_data_until(struct replay *r, uint64_t id)
{
    int rc = 0;
    while (rc == 0 && r->data_more && r->data_id < id) {
        atomic_store_explicit(&replay_data(r, r->data_id)->flags, BLOCK_DATA, memory_order_relaxed);
        rc = data_next(r, MDB_NEXT);
    }
    return rc;
}

static int replay_entry(struct replay *r, uint64_t id, const MDB_val *val)
{
    struct disk *d = r->d;
    struct keys_view k;
    bool alive[PALETTE_MAX] = {false};
    int rc = replay_data_until(r, id);
    if (rc != 0)
        return rc;
    struct block_meta *m = block_meta_make(d, id);
    bool has_data = r->data_more && r->data_id == id;
    if (has_data) {
        replay_data(r, id);
        rc = data_next(r, MDB_NEXT);
    }
    atomic_store_explicit(&m->flags, BLOCK_KEYS | (has_data ? BLOCK_DATA : 0), memory_order_relaxed);
    if (!keys_parse(SLICE(val->mv_data, val->mv_size), &k)) {
        /* Its tombstones are unknown, so nothing older can be trusted. */
        for (size_t i = 0; i < d->shards; i++)
            index_clear(&d->index[i]);
        r->reset = true;
        return rc;
    }
    m->min_expire_s = k.head.min_expire_s;
    atomic_store_explicit(&m->written_s, k.head.written_s, memory_order_relaxed);
    r->block_db[id - r->first] = (uint16_t)replay_palette(d, &k, alive);
    m->records = replay_ops(d, &k, id, has_data, alive);
    return rc;
}

static int replay_log(struct replay *r)
{
    MDB_val key, val;
    int rc = data_next(r, MDB_FIRST);
    MDB_cursor_op op = MDB_FIRST;
    while (rc == 0) {
        rc = mdb_cursor_get(r->keys, &key, &val, op);
        op = MDB_NEXT;
        if (rc == 0)
            rc = replay_entry(r, load64(key.mv_data), &val);
    }
    return rc == MDB_NOTFOUND ? replay_data_until(r, UINT64_MAX) : rc;
}

/* Counts the records of a block that holds several databases. */
static int count_mixed(struct replay *r, uint64_t id)
{
    struct disk *d = r->d;
    MDB_val key = {sizeof(id), &id}, val;
    struct keys_view k;
    int rc = mdb_get(r->txn, d->dbi_keys, &key, &val);
    if (rc != 0 || !keys_parse(SLICE(val.mv_data, val.mv_size), &k))
        return rc;
    /* The last record of a key is the one that counts: go backwards, note what was counted. */
    struct index_shard counted = {0};
    uint32_t place, old;
    for (uint32_t i = k.head.nops; i-- > 0;) {
        struct disk_op op;
        op_at(&k, i, &op);
        if ((op.word & OP_TOMB) || OP_PALETTE(op.word) >= k.head.npal)
            continue;
        if (!index_find(&d->index[disk_shard_of(d, op.hash)], disk_tag_of(d, op.hash), &place) ||
            (place & (PLACE_EXPIRE - 1)) != block_number(id))
            continue;
        uint64_t bits = disk_hash_bits(d, op.hash);
        if (index_put(&counted, hash_bytes(0, &bits, sizeof(bits)) >> (64 - DISK_TAG_BITS), 1, &old))
            continue;
        uint32_t db = replay_db(d, load32(k.palette + (size_t)OP_PALETTE(op.word) * 4));
        if (db == DB_NONE)
            continue;
        d->loaded_keys[db]++;
        d->loaded_expires[db] += (place & PLACE_EXPIRE) != 0;
    }
    index_clear(&counted);
    return 0;
}

static int replay_count(struct replay *r)
{
    struct disk *d = r->d;
    bool mixed = false;
    for (size_t i = 0; i < d->shards; i++) {
        size_t pos = 0;
        uint64_t tag;
        uint32_t place;
        while (index_next(&d->index[i], &pos, &tag, &place)) {
            uint64_t id = block_id_of_number(d, place & (PLACE_EXPIRE - 1));
            uint32_t db = r->block_db[id - r->first];
            atomic_fetch_add_explicit(&block_meta(d, id)->live, 1, memory_order_relaxed);
            if (db < d->opt.databases) {
                d->loaded_keys[db]++;
                d->loaded_expires[db] += (place & PLACE_EXPIRE) != 0;
            } else {
                mixed = true;
            }
        }
    }
    int rc = 0;
    for (uint64_t id = r->first; mixed && rc == 0 && id <= r->last; id++)
        if (r->block_db[id - r->first] == DB_MIXED)
            rc = count_mixed(r, id);
    return rc;
}

static int replay_blocks(struct replay *r)
{
    struct disk *d = r->d;
    atomic_store(&d->tail, r->first);
    atomic_store(&d->head, r->last);
    d->committed_head = r->last;
    size_t n = (size_t)(r->last - r->first) + 1;
    r->block_db = mem_alloc(MEM_OTHER, n * sizeof(*r->block_db));
    for (size_t i = 0; i < n; i++)
        r->block_db[i] = DB_NONE;
    int rc = replay_log(r);
    if (rc == 0)
        rc = replay_count(r);
    for (uint64_t id = r->first; rc == 0 && id < r->last;)
        id = block_forget_chunk(d, id, r->last);
    mem_free(MEM_OTHER, r->block_db);
    return rc;
}

int replay_run(struct disk *d)
{
    struct replay r = {.d = d};
    memset(d->loaded_keys, 0, d->opt.databases * sizeof(*d->loaded_keys));
    memset(d->loaded_expires, 0, d->opt.databases * sizeof(*d->loaded_expires));
    atomic_store(&d->tail, 1);
    atomic_store(&d->head, 0);
    d->committed_head = 0;
    int rc = mdb_txn_begin(d->env, NULL, MDB_RDONLY, &r.txn);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_open(r.txn, d->dbi_keys, &r.keys);
    if (rc == 0)
        rc = mdb_cursor_open(r.txn, d->dbi_data, &r.data);
    if (rc == 0)
        rc = replay_range(&r);
    if (rc == 0)
        rc = replay_blocks(&r);
    if (r.data != NULL)
        mdb_cursor_close(r.data);
    if (r.keys != NULL)
        mdb_cursor_close(r.keys);
    mdb_txn_abort(r.txn);
    if (rc == 0)
        atomic_store(&d->dead_hint, 1); /* see what is dead already */
    if (rc == 0 && r.reset)
        writer_notice(d, true, "a damaged entry of the disk log: what was older is not used");
    return rc == MDB_NOTFOUND ? 0 : rc;
}
