/* Keys that live only here, though there is an upstream: those whose rule says write=local. They have a key space of
 * their own beside each database, so what drops copies (invalidations, flushes there, CACHE FLUSH) never meets them, and a
 * name that a changed rule makes the upstream's, or makes local, cannot answer with the other's value. */
#include "tiercel/rules.h"
#include "tier_priv.h"

bool tier_name_is_local(const struct worker *w, struct slice name)
{
    const struct mem *m = w->tier->mem;

    if (!w->conf->rules_local || m->spaces == m->databases)
        return false;
    const struct rule *rule = rules_match(w->conf->rules, name);
    return rule && rule->value[RULE_WRITE] == WRITE_LOCAL;
}

unsigned tier_space_of(const struct worker *w, unsigned db, struct slice name)
{
    return tier_name_is_local(w, name) ? db + w->tier->mem->databases : db;
}

int64_t tier_local_keys(const struct tier *t)
{
    int64_t n = 0;

    for (unsigned i = t->mem->databases; i < t->mem->spaces; i++)
        n += atomic_load_explicit(&t->mem->db[i].keys, memory_order_relaxed);
    return n;
}

void tier_flush_local_locked(struct worker *w, int db)
{
    const struct mem *m = w->tier->mem;

    for (unsigned i = m->databases; i < m->spaces; i++)
        if (db < 0 || i == m->databases + (unsigned)db)
            tier_flush_db_locked(w, i);
}
