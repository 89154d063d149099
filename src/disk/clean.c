/* Cleaning: room in a log in which what lives lies among what is dead. A block is emptied: what
 * lives in it is appended anew (carried), or dropped. When the copies are on disk and the slots
 * have gone over to them, the block goes, by a later commit. Which blocks:
 *
 *   garbage  the emptiest, if enough of them is dead; all that lives is carried.
 *   oldest   else, where records may be dropped: the oldest. What was read since it was written
 *            is carried, within a credit that the appends earn, and so is what has to stay; the
 *            rest is dropped, once the copies are there.
 *   none     else: the quota is full, and appends are refused.
 *
 * A plain cache drops rather than that it copies much: it empties blocks of which a sixth lives
 * at most, so that at most 1.2 bytes are written per byte of room; else up to nine tenths.
 *
 * Work starts some commits before the quota is reached. It is done in slices, by the writer; records are
 * judged and carried one by one, under their shard's lock, from a copy of the block: nobody
 * waits for the disk under a lock. A block that was emptied is full of live records, so this
 * ends when there is nothing to gain. */
#include "disk_priv.h"

#define WORTH_PLAIN 10u    /* of SHARES: blocks of which more lives are not emptied */
#define WORTH_THOROUGH 57u /* the same where nothing may be lost that fits */
#define CUT_PART 32        /* a round of the hand takes the emptiest part of the log */
#define POOR_PART 256      /* a log with less than this part worth emptying has no garbage to speak of */
#define CREDIT_PART 8      /* of the bytes appended: so many are carried for having been read */
#define SLICE_US 10000
#define SLICE_BYTES (2u << 20) /* read at a time */
#define PICK_MAX 64
#define SCAN_BLOCKS 65536u /* entries of the block table looked at in a slice */
#define SCAN_IDLE 8192u
#define SCAN_POOR 64u /* for each block that is dropped */
#define SKIP_MAX 256u /* blocks read in vain before there is nothing to gain */
#define AGAIN_US 1000000
#define KEYS_SPARE (256u << 20)
#define WINDOW_TIGHT (WINDOW_MAX - 256 * META_CHUNK)

enum progress { WORKED, SEARCHING, NOTHING };

struct picked {
    uint64_t ids[PICK_MAX];
    size_t n;
    uint64_t bytes, gain;
};

/* ---- how much room is needed ---- */

bool clean_is_plain(const struct disk *d)
{
    return PEEK(d->retain) == DISK_RETAIN_HOT && !PEEK(d->thorough);
}

/* What happens between two looks at the space: about a commit. */
static uint64_t step_bytes(const struct disk *d)
{
    uint64_t part = PEEK(d->max_bytes) / 32;
    return d->opt.commit_bytes < part ? d->opt.commit_bytes : part;
}

/* By how much such an append would go over what appends may take: the cleaner works in the rest. */
static uint64_t bytes_over(const struct disk *d, size_t bytes)
{
    uint64_t have = PEEK(d->used_bytes) + PEEK(d->queue_bytes) + bytes;
    uint64_t most = PEEK(d->max_bytes) - 2 * step_bytes(d);
    return clean_is_plain(d) || have <= most ? 0 : have - most;
}

bool clean_is_over(const struct disk *d, size_t bytes)
{
    return bytes_over(d, bytes) != 0;
}

uint64_t clean_soon(const struct disk *d)
{
    return d->clean.bytes < step_bytes(d) ? d->clean.bytes : step_bytes(d);
}

/* What has to be freed, beyond that which soon will be. */
static uint64_t bytes_needed(struct disk *d)
{
    uint64_t have = PEEK(d->used_bytes) + PEEK(d->queue_bytes) + PEEK(d->refused);
    uint64_t soon = d->doomed_bytes + d->clean.bytes;
    uint64_t most = reclaim_limit(d), ahead = 3 * step_bytes(d);
    most -= ahead < most ? ahead : most;
    have -= soon < have ? soon : have;
    return have > most ? have - most : 0;
}

/* ---- which blocks ---- */

static bool is_candidate(const struct block_meta *m)
{
    return m != NULL && (PEEK(m->flags) & (BLOCK_DATA | BLOCK_DOOMED | BLOCK_CLEANING)) == BLOCK_DATA;
}

static uint32_t live_share(const struct block_meta *m)
{
    uint32_t live = PEEK(m->live);
    if (live == 0)
        return 0;
    return live >= m->records ? SHARES : (uint32_t)((uint64_t)live * SHARES / m->records);
}

static uint32_t worth(const struct disk *d)
{
    return clean_is_plain(d) ? WORTH_PLAIN : WORTH_THOROUGH;
}

/* What was seen in this round says what the next one takes. */
static void hand_turn(struct disk *d)
{
    struct cleaner *c = &d->clean;
    uint64_t total = 0, sum = 0, worthy = 0;
    for (uint32_t s = 0; s <= SHARES; s++) {
        total += c->seen[s];
        worthy += s <= worth(d) ? c->seen[s] : 0;
    }
    for (c->cut = 0; c->cut < SHARES; c->cut++) {
        sum += c->seen[c->cut];
        if (sum != 0 && sum >= total / CUT_PART)
            break;
    }
    c->poor = worthy == 0 || worthy < total / POOR_PART;
    c->rounds++;
    c->dry++;
    atomic_store_explicit(&d->n.live_bytes, c->live_bytes, memory_order_relaxed);
    c->keys = c->live_keys;
    c->dead_part = c->seen_keys == 0 ? 0 : (c->seen_keys - c->seen_data) * 1024 / c->seen_keys;
    c->seen_keys = c->seen_data = 0;
    memset(c->seen, 0, sizeof(c->seen));
    c->live_bytes = c->live_keys = 0;
    c->hand = PEEK(d->tail);
    c->hand_end = PEEK(d->committed_head);
}

/* Moves the hand over one block, or to the next round: then and where nothing can be emptied, 0. */
static uint64_t hand_move(struct disk *d, uint32_t *share)
{
    struct cleaner *c = &d->clean;
    if (c->hand > c->hand_end) {
        hand_turn(d);
        return 0;
    }
    if (c->hand < PEEK(d->tail))
        c->hand = PEEK(d->tail);
    uint64_t id = c->hand++;
    const struct block_meta *m = block_meta(d, id);
    uint32_t flags = m == NULL ? BLOCK_KEYS : PEEK(m->flags);
    c->seen_keys += (flags & BLOCK_KEYS) != 0;
    if (!(flags & BLOCK_DATA))
        return 0;
    c->seen_data += (flags & BLOCK_KEYS) != 0;
    uint32_t live = PEEK(m->live);
    c->live_keys += live;
    if (m->records != 0)
        c->live_bytes += (uint64_t)m->bytes * (live < m->records ? live : m->records) / m->records;
    if (!is_candidate(m))
        return 0;
    *share = live_share(m);
    c->seen[*share] += m->bytes;
    return id;
}

static bool enough(const struct picked *p, uint64_t need)
{
    return p->n == PICK_MAX || p->bytes >= SLICE_BYTES || p->gain >= need;
}

static void pick(struct disk *d, struct picked *p, uint64_t id, uint32_t share)
{
    uint64_t bytes = block_meta(d, id)->bytes;
    p->ids[p->n++] = id;
    p->bytes += bytes;
    p->gain += bytes * (SHARES - share) / SHARES;
}

static void pick_garbage(struct disk *d, struct picked *p, uint64_t need, uint32_t *budget)
{
    struct cleaner *c = &d->clean;
    bool drops = PEEK(d->retain) != DISK_RETAIN_ALL;
    uint64_t most = SCAN_POOR + need / BLOCK_BYTES * SCAN_POOR;
    uint32_t left = c->poor && drops && !c->stuck && most < *budget ? (uint32_t)most : *budget, share;
    uint32_t rounds = c->rounds;
    *budget -= left;
    for (; left > 0 && !enough(p, need) && c->rounds - rounds < 2 && (drops || c->stuck || c->dry < 2); left--) {
        if (p->n != 0 && c->hand > c->hand_end) /* not the same again */
            break;
        uint64_t id = hand_move(d, &share);
        if (id == 0 || share > worth(d) || (share > c->cut && !c->stuck))
            continue;
        pick(d, p, id, share);
        c->dry = 0;
    }
    *budget += left;
}

/* A plain cache begins at the tail each time. Else blocks may be left there, for too little of them
 * may be dropped, and the search goes round. */
static void pick_oldest(struct disk *d, struct picked *p, uint64_t need, uint32_t *budget)
{
    struct cleaner *c = &d->clean;
    bool plain = clean_is_plain(d), expiring = PEEK(d->retain) == DISK_RETAIN_PERSISTENT;
    uint64_t tail = PEEK(d->tail), end = PEEK(d->committed_head);
    for (; *budget > 0 && !enough(p, need); --*budget) {
        if (c->oldest < tail || (!plain && c->oldest > end))
            c->oldest = tail;
        if (c->oldest > end || (!plain && (c->passed > end - tail || c->skipped >= SKIP_MAX)))
            break;
        uint64_t id = c->oldest++;
        const struct block_meta *m = block_meta(d, id);
        c->passed++;
        if (is_candidate(m) && (!expiring || m->min_expire_s != 0))
            pick(d, p, id, 0);
    }
}

/* ---- emptying a block ---- */

enum verdict { LEAVE, CARRY, CARRY_HOT };

struct subject {
    uint64_t id, read; /* read: see block_meta */
    bool drop;         /* what need not stay is dropped */
    int64_t now_ms, credit;
    struct block_head head;
    const char *data;
};

static enum verdict judge_live_locked(struct disk *d, struct subject *s, uint32_t i, const struct disk_gone *rec,
                                      size_t len)
{
    int retain = PEEK(d->retain);
    if (!s->drop || retain == DISK_RETAIN_ALL || (retain == DISK_RETAIN_PERSISTENT && !rec->has_expire))
        return CARRY;
    if ((s->read >> ((uint64_t)i * 64 / s->head.count) & 1) && s->credit > 0) {
        s->credit -= (int64_t)len;
        return CARRY_HOT;
    }
    const struct disk_owner *o = &d->opt.owner;
    return PEEK(d->thorough) && o->keep_locked != NULL && o->keep_locked(o->arg, rec) ? CARRY : LEAVE;
}

static const char *subject_record(const struct subject *s, uint32_t i, struct rec_head *h, struct disk_record *rec,
                                  size_t *len)
{
    size_t off = block_offset(s->data, &s->head, i);
    if (!record_parse(s->data, s->head.dir, off, h, rec))
        return NULL;
    const char *raw = s->data + off;
    *len = (size_t)(rec->payload.ptr + rec->payload.len - raw);
    return raw;
}

/* What has expired, or belongs to a dead incarnation, is listed for dropped(). */
static enum verdict judge(struct disk *d, struct subject *s, uint32_t i)
{
    const struct disk_owner *o = &d->opt.owner;
    struct rec_head h;
    struct disk_record rec;
    size_t len;
    if (subject_record(s, i, &h, &rec, &len) == NULL)
        return LEAVE;
    struct disk_gone gone = {.hash = h.hash,
                             .block = (uint32_t)s->id,
                             .incarnation = h.incarnation,
                             .has_expire = rec.expire_ms != 0,
                             .expired = rec.expire_ms != 0 && rec.expire_ms <= s->now_ms,
                             .name = key_slice(&rec.key)};
    enum verdict v = LEAVE;
    o->lock(o->arg, h.hash);
    bool live = queue_slot_names(d, h.hash, s->id) && !reclaim_replaced(d, s->data, &s->head, i, h.hash);
    bool dead = gone.expired || !reclaim_alive(d, h.incarnation);
    if (live && !dead)
        v = judge_live_locked(d, s, i, &gone, len);
    o->unlock(o->arg, h.hash);
    if (live && dead)
        reclaim_gone(d, &gone);
    return v;
}

/* What is damaged is left, and goes with the block. */
static size_t carry(struct disk *d, const struct subject *s, uint32_t i)
{
    const struct disk_owner *o = &d->opt.owner;
    struct rec_head h;
    struct disk_record rec;
    size_t len = 0;
    const char *raw = subject_record(s, i, &h, &rec, &len);
    if (!record_intact(raw, &h, NULL)) {
        COUNT(d, corrupt, 1);
        return 0;
    }
    o->lock(o->arg, h.hash);
    bool carried = queue_carry_locked(d, h.hash, s->id, raw, len, h.incarnation, rec.expire_ms);
    o->unlock(o->arg, h.hash);
    return carried ? len : 0;
}

static void add_victim(struct disk *d, uint64_t id, struct block_meta *m, size_t carried)
{
    struct cleaner *c = &d->clean;
    c->victims[c->victims_n++] = (struct victim){
        .id = id, .event = disk_last_event(d), .failures = c->failures, .bytes = m->bytes, .carried = carried};
    c->bytes += m->bytes;
    c->carried += carried;
    atomic_fetch_or_explicit(&m->flags, BLOCK_CLEANING, memory_order_relaxed);
}

/* A copy of the block in d->clean.block. false: it cannot be read now. */
static bool subject_read(struct disk *d, struct subject *s, bool *damaged)
{
    struct buf *copy = &d->clean.block;
    struct slice data;
    if (!reclaim_scan_begin(d))
        return false;
    copy->len = 0;
    *damaged = !reclaim_scan_get(d, d->dbi_data, s->id, &data);
    if (!*damaged)
        buf_slice_append(copy, data);
    reclaim_scan_end(d);
    s->data = copy->ptr;
    *damaged = *damaged || !block_parse(buf_slice(copy), &s->head) || s->head.count == 0;
    return true;
}

/* false: left as it is. */
static bool empty_block(struct disk *d, uint64_t id, bool drop)
{
    struct cleaner *c = &d->clean;
    struct block_meta *m = block_meta(d, id);
    struct subject s = {.id = id, .read = PEEK(m->read), .drop = drop, .now_ms = clock_wall_ms(), .credit = c->credit};
    bool damaged;
    if (PEEK(m->live) == 0) {
        reclaim_doom(d, id, m, disk_last_event(d));
        return true;
    }
    if (!subject_read(d, &s, &damaged))
        return false;
    if (damaged) {
        COUNT(d, corrupt, 1);
        reclaim_drop(d, &id, 1);
        return true;
    }
    uint32_t count = s.head.count, stay = 0;
    c->verdicts.len = 0;
    buf_reserve(&c->verdicts, count);
    for (uint32_t i = 0; i < count; i++) {
        enum verdict v = judge(d, &s, i);
        buf_byte(&c->verdicts, (char)v);
        stay += v == CARRY; /* what is hot costs credit, so that there is an end to it */
    }
    reclaim_report(d);
    if (drop && !clean_is_plain(d) && (uint64_t)stay * SHARES > (uint64_t)count * WORTH_THOROUGH)
        return false;
    size_t carried = 0;
    for (uint32_t i = 0; i < count; i++) {
        enum verdict v = (enum verdict)c->verdicts.ptr[i];
        size_t len = v == LEAVE ? 0 : carry(d, &s, i);
        carried += len;
        if (v == CARRY_HOT || clean_is_plain(d))
            c->credit -= (int64_t)len;
    }
    add_victim(d, id, m, carried);
    return true;
}

/* ---- slices ---- */

/* Where the copies are on disk, their blocks go, with what they still have: what was not to be
 * carried, or could not. After a failed commit they stay, and may be chosen again. */
static void settle(struct disk *d)
{
    struct cleaner *c = &d->clean;
    uint64_t settled = disk_settled_event(d);
    size_t n = 0;
    for (; n < c->victims_n && c->victims[n].event <= settled; n++) {
        const struct victim *v = &c->victims[n];
        struct block_meta *m = block_meta(d, v->id);
        c->bytes -= v->bytes;
        c->carried -= v->carried;
        if (m == NULL)
            continue;
        uint32_t gone = v->failures == c->failures ? BLOCK_CLEANING | BLOCK_CARRIED : BLOCK_CLEANING;
        atomic_fetch_and_explicit(&m->flags, ~gone, memory_order_relaxed);
        if (v->failures != c->failures || !is_candidate(m))
            continue;
        if (PEEK(m->live) == 0)
            reclaim_doom(d, v->id, m, 0);
        else
            reclaim_drop(d, &v->id, 1);
    }
    c->victims_n -= n;
    memmove(c->victims, c->victims + n, c->victims_n * sizeof(*c->victims));
}

static bool may_go_on(const struct disk *d)
{
    const struct cleaner *c = &d->clean;
    return c->victims_n + PICK_MAX <= VICTIMS_MAX && c->carried < d->opt.commit_bytes && d->doomed_n < DOOM_MAX;
}

/* A plain cache drops a block that nobody has read without looking at it. */
static bool drops_unread(const struct disk *d, uint64_t id, bool drop)
{
    return drop && clean_is_plain(d) && (PEEK(block_meta(d, id)->read) == 0 || d->clean.credit <= 0);
}

/* The disk is asked for all of them at once. */
static void read_ahead(struct disk *d, const struct picked *p, bool drop)
{
    struct slice data;
    if (!reclaim_scan_begin(d))
        return;
    for (size_t i = 0; i < p->n; i++)
        if (!drops_unread(d, p->ids[i], drop))
            reclaim_scan_block(d, p->ids[i], &data);
    reclaim_scan_end(d);
}

static enum progress empty_blocks(struct disk *d, const struct picked *p, bool drop)
{
    struct cleaner *c = &d->clean;
    size_t done = 0;
    read_ahead(d, p, drop);
    for (size_t i = 0; i < p->n; i++) {
        if (i != 0 && clock_mono_us() >= c->until_us) {
            c->oldest = drop ? p->ids[i] : c->oldest; /* goes on there */
            break;
        }
        bool unread = drops_unread(d, p->ids[i], drop);
        if (unread)
            reclaim_drop(d, &p->ids[i], 1);
        if (unread || empty_block(d, p->ids[i], drop))
            done++;
        else
            c->skipped += drop;
    }
    if (c->block.cap > SLICE_BYTES)
        buf_deinit(&c->block);
    if (done == 0)
        return drop && !clean_is_plain(d) ? SEARCHING : NOTHING;
    c->passed = c->skipped = 0;
    return WORKED;
}

static enum progress step(struct disk *d, uint32_t *budget)
{
    struct cleaner *c = &d->clean;
    struct picked p = {.n = 0};
    uint64_t need = bytes_needed(d);
    bool drops = PEEK(d->retain) != DISK_RETAIN_ALL;
    pick_garbage(d, &p, need, budget);
    if (p.n != 0)
        return empty_blocks(d, &p, false);
    if (!c->stuck && (drops ? !c->poor : c->dry < 2))
        return SEARCHING;
    if (!drops || (c->stuck && clock_mono_us() < c->again_us))
        return NOTHING;
    pick_oldest(d, &p, need, budget);
    if (p.n != 0)
        return empty_blocks(d, &p, true);
    if (*budget == 0)
        return SEARCHING;
    c->passed = c->skipped = 0;
    c->again_us = clock_mono_us() + AGAIN_US;
    return NOTHING;
}

/* Keys entries are deleted from the tail on, up to the first block that has data. One that lives
 * long must not hold up many that have none: they take room, and a start reads them. Nor must the
 * numbers of blocks run out. */
static bool tail_is_pinned(const struct disk *d, bool need)
{
    const struct cleaner *c = &d->clean;
    uint64_t live = c->keys * sizeof(struct disk_op) * 5 / 4;
    uint64_t spare = need ? PEEK(d->max_bytes) / 16 : live * 3 + KEYS_SPARE;
    if (PEEK(d->head) >= PEEK(d->tail) + WINDOW_TIGHT)
        return true;
    uint64_t dead = d->keys_bytes / 1024 * c->dead_part;
    return c->rounds >= 2 && dead > spare && d->keys_bytes > live + spare;
}

static void unpin_tail(struct disk *d)
{
    uint64_t tail = PEEK(d->tail), end = PEEK(d->committed_head);
    if (d->clean.victims_n != 0 || !tail_is_pinned(d, bytes_needed(d) != 0))
        return;
    if (end > tail + SCAN_BLOCKS)
        end = tail + SCAN_BLOCKS;
    for (size_t n = 0; tail <= end && n < PICK_MAX && may_go_on(d) && clock_mono_us() < d->clean.until_us; tail++)
        if (is_candidate(block_meta(d, tail))) {
            empty_block(d, tail, false);
            n++;
        }
}

static void earn_credit(struct disk *d)
{
    struct cleaner *c = &d->clean;
    uint64_t appended = PEEK(d->n.appended_bytes);
    int64_t most = (int64_t)d->opt.commit_bytes * 2;
    c->credit += (int64_t)((appended - c->credited) / CREDIT_PART);
    c->credited = appended;
    if (c->credit > most)
        c->credit = most;
    if (c->credit < -most)
        c->credit = -most;
}

/* For those who append. */
static void tell(struct disk *d, uint64_t need, enum progress p)
{
    struct cleaner *c = &d->clean;
    size_t refused = PEEK(d->refused); /* one that is very large does not stop all others */
    uint64_t over = bytes_over(d, refused < BLOCK_BYTES ? refused : BLOCK_BYTES);
    bool waits = c->victims_n != 0 || d->doomed_n != 0;
    c->stuck = need != 0 && !waits && (c->stuck || p == NOTHING);
    if (waits)
        c->dry = 0;
    atomic_store_explicit(&d->quota_full, over != 0 && c->stuck, memory_order_relaxed);
    atomic_store_explicit(&d->clean_debt, c->stuck ? 0 : over, memory_order_relaxed);
    if (c->victims_n != 0 && (over != 0 || !may_go_on(d)))
        disk_hurry(d);
}

/* Nothing is needed: how full the blocks are is learned for later. */
static void look_around(struct disk *d)
{
    struct cleaner *c = &d->clean;
    uint32_t share;
    for (uint32_t left = SCAN_IDLE; left > 0; left--)
        if (hand_move(d, &share) == 0 && c->hand > c->hand_end)
            break;
    c->dry = 0;
}

bool clean_slice(struct disk *d)
{
    struct cleaner *c = &d->clean;
    uint32_t budget = SCAN_BLOCKS;
    uint64_t need;
    enum progress p = WORKED;
    pthread_mutex_lock(&d->mu);
    bool closing = d->closing;
    c->failures = d->failures;
    pthread_mutex_unlock(&d->mu);
    settle(d);
    if (closing)
        return false;
    earn_credit(d);
    c->until_us = clock_mono_us() + SLICE_US;
    unpin_tail(d);
    if (clean_is_plain(d))
        c->oldest = 0;
    while ((need = bytes_needed(d)) != 0 && p == WORKED && may_go_on(d)) {
        p = step(d, &budget);
        c->stuck &= p != WORKED;
        if (clock_mono_us() >= c->until_us)
            break;
    }
    if (need == 0)
        look_around(d);
    tell(d, need, p);
    bool settles = c->victims_n != 0 && c->victims[0].event <= disk_settled_event(d);
    return settles || (need != 0 && p != NOTHING && may_go_on(d));
}
