/* Commands that find out only while they run which keys they need: scripts, and SORT with BY or GET. One that meets a
 * key which is not in memory is stopped before it has changed anything; its request then waits for the key without locks,
 * together with those of earlier runs, and runs again from its start. */
#include "tiercel/clock.h"
#include "tiercel/tracking.h"

#include "cmd/cmd_priv.h"

#define NOTED_MAX 65536 /* keys that one run may ask for */
#define INLINE_MAX 16   /* more than that are not tried without waiting */

struct noted { /* of a key that is waited for; its name follows */
    uint32_t len;
    uint16_t db;
};

void rerun_note(struct worker *w, struct slice name, int db)
{
    struct buf *missing = &w->cmd_worker->missing;
    struct noted note = {(uint32_t)name.len, (uint16_t)db};

    buf_append(missing, &note, sizeof(note));
    buf_slice_append(missing, name);
}

void rerun_note_only(struct worker *w, struct slice name, int db)
{
    w->cmd_worker->missing.len = 0;
    rerun_note(w, name, db);
}

static int count_noted(const struct buf *b)
{
    int n = 0;

    for (size_t at = 0; b && at < b->len; n++) {
        struct noted note;
        memcpy(&note, b->ptr + at, sizeof(note));
        at += sizeof(note) + note.len;
    }
    return n;
}

void rerun_prepare(struct parked *p)
{
    struct worker *w = p->s->w;
    struct buf *missing = &w->cmd_worker->missing;
    const struct command *cmd = dispatch_find(p->argc, p->argv);
    int n = dispatch_key_count(cmd, p->argc), more;

    if (missing->len > 0) {
        if (!p->more) {
            p->more = mem_calloc(MEM_CLIENT, sizeof(*p->more));
            buf_init(p->more, MEM_CLIENT);
        }
        buf_slice_append(p->more, buf_slice(missing));
        missing->len = 0;
    }
    struct call_key *keys = dispatch_scratch_keys(w, n);
    n = dispatch_keys(w, cmd, p->argc, p->argv, p->s->db, keys, n);
    more = count_noted(p->more);
    p->waits = mem_calloc(MEM_CLIENT, (size_t)(n + more + 1) * sizeof(*p->waits));
    p->treq.waits = p->waits;
    p->treq.nwaits = n + more;
    for (int i = 0; i < n; i++)
        p->waits[i].key = keys[i].key;
    size_t at = 0;
    for (int i = n; i < n + more; i++) {
        struct noted note;
        memcpy(&note, p->more->ptr + at, sizeof(note));
        at += sizeof(note);
        mem_key_init(w->tier->mem, note.db, SLICE(p->more->ptr + at, note.len), &p->waits[i].key);
        at += note.len;
    }
    for (int i = 0; i < n + more; i++)
        p->waits[i].need = TIER_VALUE;
}

void rerun_forget(struct parked *p)
{
    if (!p->more)
        return;
    buf_deinit(p->more);
    mem_free(MEM_CLIENT, p->more);
}

enum status rerun_waits_status(const struct parked *p, int nkeys)
{
    for (int i = nkeys; p && p->waits && i < p->treq.nwaits; i++)
        if (p->waits[i].st != ST_OK && p->waits[i].st != ST_NOT_FOUND)
            return p->waits[i].st;
    return ST_OK;
}

/* ---- commands that are no scripts ---- */

bool rerun_wants_all(const struct command *cmd, int argc, const struct slice *argv)
{
    return cmd->flags & CMD_UNDECLARED && sort_uses_patterns(argc, argv);
}

enum status rerun_key(struct call *c, struct call_key *k)
{
    struct mem_shard *shard = mem_shard_of(c->w->tier->mem, k->key.hash);
    enum status st = dispatch_resolve(c->w, k, 1, NULL);

    if (LIKELY(st == ST_OK))
        return ST_OK;
    if (st == ST_PENDING && c->may_rerun) {
        rerun_note(c->w, key_slice(&k->key), k->key.db);
        return ++c->wanted < NOTED_MAX ? ST_PENDING : ST_FULL;
    }
    if (st != ST_PENDING || !tier_fault_now_locked(c->w, shard, &k->key))
        return ST_IO;
    return dispatch_resolve(c->w, k, 1, NULL) == ST_OK ? ST_OK : ST_IO;
}

/* All that was noted, brought in without waiting. false: it is not worth trying, or did not work. */
static bool fault_inline(struct call *c)
{
    struct buf *missing = &c->w->cmd_worker->missing;

    if (c->wanted > INLINE_MAX)
        return false;
    for (size_t at = 0; at < missing->len;) {
        struct noted note;
        struct key key;
        memcpy(&note, missing->ptr + at, sizeof(note));
        at += sizeof(note);
        mem_key_init(c->w->tier->mem, note.db, SLICE(missing->ptr + at, note.len), &key);
        at += note.len;
        if (!tier_fault_inline(c->w, &key, TIER_VALUE))
            return false;
    }
    return true;
}

/* Runs it once, with all shards locked. ST_CANCELLED: it is to be tried again. */
static enum status run_once(struct call *c, int *reruns)
{
    struct worker *w = c->w;
    struct lockset set;
    int n = dispatch_key_count(c->cmd, c->argc);

    c->nkeys = dispatch_keys(w, c->cmd, c->argc, c->argv, c->s->db, c->keys, n);
    if (UNLIKELY(!dispatch_lock(w, &set, c->keys, c->nkeys, true)))
        return ST_BUSY;
    enum status st = dispatch_resolve(w, c->keys, c->nkeys, c->parked ? c->parked->waits : NULL);
    if (LIKELY(st == ST_OK))
        st = rerun_waits_status(c->parked, c->nkeys);
    if (UNLIKELY(st != ST_OK)) {
        dispatch_unlock(w, &set);
        return st;
    }
    c->may_rerun = *reruns < RERUNS_MAX;
    c->wanted = 0;
    w->cmd_worker->missing.len = 0;
    c->cmd->run(c);
    if (LIKELY(c->wanted == 0)) {
        if (UNLIKELY(c->s->flags & SESSION_TRACKING))
            tracking_read(c);
        block_serve(c, &set);
    }
    dispatch_unlock(w, &set);
    if (LIKELY(c->wanted == 0))
        return ST_OK;
    ++*reruns;
    return fault_inline(c) ? ST_CANCELLED : ST_PENDING;
}

enum dispatch_rc rerun_run(struct call *c)
{
    struct worker *w = c->w;
    int64_t start = LIKELY(w->mono_us != 0) ? w->mono_us : clock_mono_us();
    int reruns = c->parked ? c->parked->faults : 0;
    bool writes = c->cmd->flags & CMD_WRITE;
    enum status st;

    c->keys = dispatch_scratch_keys(w, dispatch_key_count(c->cmd, c->argc));
    if (writes || block_groups(w))
        tier_group_begin(w);
    do
        st = run_once(c, &reruns);
    while (st == ST_CANCELLED);
    tier_group_end(w);
    if (st == ST_PENDING)
        return DISPATCH_FAULT;
    if (UNLIKELY(st != ST_OK))
        dispatch_fault_error(c, st);
    c->s->last_cmd = c->cmd;
    dispatch_ran(c, start);
    monitor_note(c);
    if (writes)
        session_wrote(c->s, tier_sync_since(w));
    return DISPATCH_DONE;
}
