/* Commands that find out only while they run which keys they need: scripts, and SORT with BY or GET. One that meets a
 * key which is not in memory is stopped before it has changed anything; its request then waits for the key without locks,
 * together with those of earlier runs, and runs again from its start. */
#include "tiercel/tier.h"

#include "cmd/cmd_priv.h"

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
