/* CACHE: where keys are. */
#include "tiercel/inspect.h"
#include "tiercel/clock.h"

#include "cmd/cmd_priv.h"

/* One CACHE INSPECT. The key's name follows: the arguments go with the client, a read does not. */
struct inspect_call {
    struct inspection in;
    struct parked *parked; /* NULL: not suspended, or the client went */
};

static void field(struct reply *r, const char *name)
{
    reply_bulk_str(r, name);
}

static void field_str(struct reply *r, const char *name, const char *value)
{
    field(r, name);
    if (value)
        reply_bulk_str(r, value);
    else
        reply_null(r);
}

static void field_int(struct reply *r, const char *name, bool known, int64_t value)
{
    field(r, name);
    if (known)
        reply_int(r, value);
    else
        reply_null(r);
}

static const char *codec_name(const struct inspect_copy *copy)
{
    return !copy->present ? NULL : copy->packed ? "zstd" : "none";
}

static const char *state_name(const struct inspection *in)
{
    switch (in->state) {
    case INSPECT_NEGATIVE: return "negative";
    case INSPECT_FETCHING: return "fetching";
    case INSPECT_SUSPECT: return "suspect";
    case INSPECT_STALE: return "stale";
    case INSPECT_RESIDENT: return "resident";
    case INSPECT_DEMOTING: return "demoting";
    case INSPECT_ABSENT: break;
    }
    return in->disk_st == ST_CORRUPT ? "damaged" : in->disk_suspect ? "suspect" : "on-disk";
}

static const char *tier_name(bool in_memory, bool on_disk)
{
    return in_memory ? (on_disk ? "memory+disk" : "memory") : on_disk ? "disk" : "none";
}

static void reply_found(struct reply *r, const struct inspection *in)
{
    const struct inspect_copy *mem = &in->memory, *disk = &in->disk, *any = mem->present ? mem : disk;
    bool on_disk = disk->present || (in->committed && in->disk_st != ST_NOT_FOUND && in->disk_st != ST_OK);

    reply_map(r, 19);
    field_str(r, "tier", tier_name(mem->present, on_disk));
    field_str(r, "state", state_name(in));
    field_str(r, "origin", any->present ? (any->upstream ? "upstream" : "local") : NULL);
    field_str(r, "type", any->present ? object_type_name(any->type) : NULL);
    field_str(r, "encoding", any->present ? any->encoding : NULL);
    field_int(r, "size", any->present, any->plain_len);
    field_int(r, "expires_at_ms", any->present, any->expire_ms ? any->expire_ms : -1);
    field_int(r, "dirty", true, in->dirty);
    field_int(r, "pending_write", true, in->block != 0 && !in->committed);
    field_int(r, "pinned", true, in->pinned);
    field_int(r, "memory_bytes", mem->present, in->memory_bytes);
    field_int(r, "memory_stored_size", mem->present, mem->stored_len);
    field_str(r, "memory_codec", codec_name(mem));
    field_int(r, "idle_ms", in->idle_ms >= 0, in->idle_ms);
    field_int(r, "freq", in->freq >= 0, in->freq);
    field_int(r, "disk_version", in->block != 0, in->block);
    field_int(r, "disk_stored_size", disk->present, disk->stored_len);
    field_str(r, "disk_codec", codec_name(disk));
    int64_t age_s = clock_wall_ms() / 1000 - (int64_t)in->disk_written_s;
    field_int(r, "disk_age_s", disk->present, age_s > 0 ? age_s : 0);
}

static void inspect_reply(struct call *c, void *arg)
{
    const struct inspection *in = arg;
    bool in_memory = in->state != INSPECT_ABSENT;

    if (!in_memory && in->disk_st == ST_IO)
        call_error(c, "IOERR the disk tier could not be read");
    else if (!in_memory && !in->disk.present && in->disk_st != ST_CORRUPT)
        reply_null(&c->r);
    else
        reply_found(&c->r, in);
}

static void inspect_done(struct inspection *in)
{
    struct inspect_call *ic = LIST_ENTRY(in, struct inspect_call, in);

    if (ic->parked)
        call_complete(ic->parked, inspect_reply, in);
    mem_free(MEM_CLIENT, ic);
}

/* The client went: the read comes back all the same. */
static void inspect_cancel(void *arg)
{
    struct inspect_call *ic = arg;
    ic->parked = NULL;
}

static const struct suspend_ops inspect_ops = {inspect_cancel};

void cmd_cache_inspect(struct call *c)
{
    struct slice name = c->argv[2];
    struct inspect_call *ic = mem_calloc(MEM_CLIENT, sizeof(*ic) + name.len);
    char *copy = (char *)(ic + 1);

    if (name.len)
        memcpy(copy, name.ptr, name.len);
    ic->in.db = (unsigned)c->s->db;
    ic->in.name = SLICE(copy, name.len);
    ic->in.done = inspect_done;
    if (tier_inspect(c->w, &ic->in) == ST_PENDING) {
        ic->parked = call_suspend(c, &inspect_ops, ic);
        return;
    }
    inspect_reply(c, &ic->in);
    mem_free(MEM_CLIENT, ic);
}

void cmd_cache_flush(struct call *c)
{
    unsigned databases = c->w->tier->mem->databases;
    int64_t db = -1;

    if (!c->w->tier->has_upstream) {
        call_error(c, "ERR there is no upstream whose copies could be dropped: FLUSHDB and FLUSHALL delete keys");
        return;
    }
    bool local = c->argc > 2 && call_arg_is(c, 2, "local");
    if (c->argc > 3 + local) {
        cmd_reply_bad_subcommand(c);
        return;
    }
    if (c->argc == 3 + local &&
        !cmd_arg_between(c, 2 + local, 0, (int64_t)databases - 1, &db, "ERR DB index is out of range"))
        return;
    if (local)
        local_flush_locked(c->w, (int)db);
    for (unsigned i = 0; i < databases && !local; i++)
        if (db < 0 || i == (unsigned)db)
            tier_flush_db_locked(c->w, i);
    reply_simple(&c->r, "OK");
}

void cmd_cache_help(struct call *c)
{
    static const char *const lines[] = {
        "FLUSH [LOCAL] [<db>]",
        "    Drops the copies of the upstream's keys here, in all databases or in that one; LOCAL:",
        "    deletes the keys of write=local rules instead.",
        "INSPECT <key>",
        "    Tells where the key is and how it is kept there, without using it; null when it is",
        "    nowhere. state: resident, demoting, on-disk, damaged; of a copy of an upstream key",
        "    also fetching, suspect, negative, stale. dirty: only memory has this value. pending_write:",
        "    its record waits for a commit. disk_version: the block of its newest record; it",
        "    ascends.",
        "RULE SET <pattern> <key>=<value> [<key>=<value> ...] | DEL <pattern> | LIST | TEST <key>",
        "    How copies of upstream keys are kept, by key pattern; the most specific one decides. Keys:",
        "    write (through, around, local), ttl, ttl-jitter, negative-ttl, stale-while-revalidate,",
        "    stale-if-error, refresh-ahead, compress, max-object. LIST: most specific first. TEST: the",
        "    rule that decides for a key, and what holds for it.",
        NULL,
    };
    cmd_reply_help(c, lines);
}
