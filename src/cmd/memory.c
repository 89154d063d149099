#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "tiercel/alloc.h"
#include "tiercel/mem.h"
#include "tiercel/num.h"
#include "tiercel/tier.h"

#include "cmd/cmd_priv.h"

/* MEMORY. All figures come from our own accounting (alloc.h). */

void cmd_memory_usage(struct call *c)
{
    for (int i = 3; i < c->argc; i += 2) {
        int64_t samples;
        if (!call_arg_is(c, i, "samples") || i + 1 == c->argc) {
            call_syntax(c);
            return;
        }
        if (!call_arg_i64(c, i + 1, &samples, NULL))
            return;
        if (samples < 0) {
            call_syntax(c);
            return;
        }
    }
    struct object *o = ks_peek(c, 0);
    if (o)
        reply_int(&c->r, (int64_t)object_bytes(o));
    else
        reply_null(&c->r);
}

/* ---- STATS ---- */

static void field_int(struct reply *r, const char *name, int64_t v)
{
    reply_bulk_str(r, name);
    reply_int(r, v);
}

static void field_double(struct reply *r, const char *name, double v)
{
    reply_bulk_str(r, name);
    reply_double(r, v);
}

/* Resident pages of the process; 0 where the system does not tell. */
static int64_t rss_bytes(void)
{
    char text[128];
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f)
        return 0;
    bool got = fgets(text, sizeof(text), f) != NULL;
    fclose(f);
    const char *space = got ? strchr(text, ' ') : NULL;
    int64_t pages = 0;
    if (space)
        num_parse_i64(SLICE(space + 1, strcspn(space + 1, " ")), &pages);
    return pages * sysconf(_SC_PAGESIZE);
}

void memory_figures(const struct cmd *cmd, struct memory_figures *f)
{
    f->used = mem_used_bytes();
    f->peak = mem_peak_bytes();
    f->data = mem_class_bytes(MEM_DATA);
    f->clients = mem_class_bytes(MEM_CLIENT);
    f->rss = rss_bytes();
    f->keys = 0;
    for (unsigned db = 0; db < cmd->tier->mem->spaces; db++)
        f->keys += atomic_load_explicit(&cmd->tier->mem->db[db].keys, memory_order_relaxed);
    f->peak = f->peak > f->used ? f->peak : f->used;
    f->overhead = f->used - f->data;
}

double memory_share(int64_t part, int64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

void cmd_memory_stats(struct call *c)
{
    struct memory_figures f;
    struct mem *m = c->w->tier->mem;
    struct reply *r = &c->r;
    int dbs = 0;
    memory_figures(c->w->cmd, &f);
    for (unsigned db = 0; db < m->databases; db++)
        dbs += atomic_load(&m->db[db].keys) > 0;
    reply_map(r, 27 + dbs);
    field_int(r, "peak.allocated", f.peak);
    field_int(r, "total.allocated", f.used);
    field_int(r, "startup.allocated", 0);
    field_int(r, "replication.backlog", 0);
    field_int(r, "clients.slaves", 0);
    field_int(r, "clients.normal", f.clients);
    field_int(r, "cluster.links", 0);
    field_int(r, "aof.buffer", 0);
    field_int(r, "lua.caches", 0);
    field_int(r, "functions.caches", 0);
    for (unsigned db = 0; dbs > 0 && db < m->databases; db++) {
        char name[32];
        if (atomic_load(&m->db[db].keys) <= 0)
            continue;
        dbs--;
        snprintf(name, sizeof(name), "db.%u", db);
        reply_bulk_str(r, name);
        reply_map(r, 3);
        field_int(r, "overhead.hashtable.main", 0);
        field_int(r, "overhead.hashtable.expires", 0);
        field_int(r, "overhead.hashtable.slot-to-keys", 0);
    }
    field_int(r, "overhead.total", f.overhead);
    field_int(r, "keys.count", f.keys);
    field_int(r, "keys.bytes-per-key", f.keys ? f.data / f.keys : 0);
    field_int(r, "dataset.bytes", f.data);
    field_double(r, "dataset.percentage", memory_share(f.data, f.used) * 100);
    field_double(r, "peak.percentage", memory_share(f.used, f.peak) * 100);
    field_int(r, "allocator.allocated", f.used);
    field_int(r, "allocator.active", f.used);
    field_int(r, "allocator.resident", f.rss);
    field_double(r, "allocator-fragmentation.ratio", 1);
    field_int(r, "allocator-fragmentation.bytes", 0);
    field_double(r, "allocator-rss.ratio", memory_share(f.rss, f.used));
    field_int(r, "allocator-rss.bytes", f.rss - f.used);
    field_double(r, "rss-overhead.ratio", 1);
    field_int(r, "rss-overhead.bytes", 0);
    field_double(r, "fragmentation", memory_share(f.rss, f.used));
    field_int(r, "fragmentation.bytes", f.rss - f.used);
}

/* ---- DOCTOR, MALLOC-STATS, PURGE ---- */

static void doctor_report(struct call *c, struct buf *b)
{
    struct memory_figures f;
    struct tier_figures tiers;
    int64_t limit = atomic_load_explicit(&c->w->tier->limit.maxmemory, memory_order_relaxed);
    memory_figures(c->w->cmd, &f);
    tier_get_figures(c->w->tier, &tiers);
    if (f.rss > 2 * f.used && f.rss - f.used > (64 << 20))
        buf_printf(b, "* The process holds %.2f times the memory in use: MEMORY PURGE gives free pages back.\n",
                   memory_share(f.rss, f.used));
    if (limit > 0 && f.clients > limit / 4)
        buf_printf(b,
                   "* Buffers of clients hold %" PRId64 " bytes: look at CLIENT LIST for large omem and qbuf, and set "
                   "maxmemory-clients.\n",
                   f.clients);
    if (limit > 0 && f.data > limit)
        buf_printf(b, "* Data in memory is over maxmemory by %" PRId64 " bytes.\n", f.data - limit);
    if (tiers.disk_on && !tiers.disk_healthy)
        buf_printf(b, "* The disk tier cannot be written: keys that leave memory are lost. The log says why.\n");
    if (b->len == 0)
        buf_printf(b, "No problem found: %" PRId64 " bytes in use, %" PRId64 " of them data.\n", f.used, f.data);
}

void cmd_memory_doctor(struct call *c)
{
    struct buf b;
    buf_init(&b, MEM_OTHER);
    doctor_report(c, &b);
    reply_verbatim(&c->r, buf_slice(&b), "txt");
    buf_deinit(&b);
}

void cmd_memory_malloc_stats(struct call *c)
{
    struct memory_figures f;
    struct buf b;
    memory_figures(c->w->cmd, &f);
    buf_init(&b, MEM_OTHER);
    buf_printf(&b,
               "allocator: %s\nin use: %" PRId64 "\npeak: %" PRId64 "\ndata: %" PRId64 "\nclients: %" PRId64
               "\nother: %" PRId64 "\nresident: %" PRId64 "\n",
               mem_allocator_name(), f.used, f.peak, f.data, f.clients, f.used - f.data - f.clients, f.rss);
    reply_verbatim(&c->r, buf_slice(&b), "txt");
    buf_deinit(&b);
}

void cmd_memory_purge(struct call *c)
{
    mem_purge();
    reply_simple(&c->r, "OK");
}
