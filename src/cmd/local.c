/* With an upstream: which commands run here for all that, because their keys live only here (write=local, see
 * tier_space()). Keys decide, so a command or a transaction that names local keys and upstream ones is refused, and MULTI
 * stays here until the first command behind it says where it belongs. */
#include "tiercel/tracking.h"
#include "tiercel/upstream.h"

#include "cmd/cmd_priv.h"
#include "cmd/script_priv.h"

#define FEW_KEYS 16 /* places that need no allocation */

static const char mixed[] = "ERR keys of write=local rules and keys of the upstream cannot be used together";

enum kind { KIND_NONE, KIND_UPSTREAM, KIND_LOCAL, KIND_MIXED };

static enum kind kind_of(const struct worker *w, const struct command *cmd, int argc, const struct slice *argv)
{
    int few[FEW_KEYS], *pos = few, local = 0;

    if (!cmd || cmd->access == KEY_NONE || cmd->flags & CMD_SERVER)
        return KIND_NONE;
    int max = dispatch_key_count(cmd, argc);
    if (max > FEW_KEYS)
        pos = mem_alloc(MEM_CLIENT, (size_t)max * sizeof(*pos));
    int n = command_keys(cmd, argc, argv, pos, max);
    for (int i = 0; i < n; i++)
        local += tier_name_is_local(w, argv[pos[i]]);
    if (pos != few)
        mem_free(MEM_CLIENT, pos);
    if (n <= 0)
        return KIND_NONE;
    return local == 0 ? KIND_UPSTREAM : local == n ? KIND_LOCAL : KIND_MIXED;
}

bool local_names(const struct session *s, const struct command *cmd, int argc, const struct slice *argv)
{
    return kind_of(s->w, cmd, argc, argv) >= KIND_LOCAL;
}

/* A read of one key: where that lives, the lookup finds out by itself. */
static bool lookup_tells(const struct call *c)
{
    const struct command *cmd = c->cmd;

    return cmd && cmd->flags & (CMD_NEAR | CMD_NEAR_PART) && cmd->first == cmd->last && !cmd->find_keys && !c->parked &&
           !c->s->pin && !(c->s->flags & SESSION_MULTI);
}

static bool in_local_multi(const struct session *s)
{
    return s->flags & SESSION_MULTI;
}

static enum local_route refuse(struct call *c, const char *text)
{
    call_error(c, text);
    return LOCAL_DONE;
}

/* It names no key, and is not the upstream's for all that: about this server or connection, or in error. */
static bool is_keyless_here(const struct command *cmd)
{
    return !cmd || cmd->flags & (CMD_SERVER | CMD_CONTAINER) || cmd->access != KEY_NONE;
}

static bool queued_is_local(void *arg, const struct command *cmd, int argc, const struct slice *argv)
{
    enum kind kind = kind_of(arg, cmd, argc, argv);
    return kind == KIND_LOCAL || (kind == KIND_NONE && (is_keyless_here(cmd) || cmd->id == CMDID_unwatch));
}

/* Rules may have changed since its commands were queued. */
static enum local_route local_exec(struct call *c)
{
    struct session *s = c->s;

    if (multi_each(s, queued_is_local, s->w))
        return LOCAL_HERE;
    call_error(c, "EXECABORT Transaction discarded because of: a rule changed, and keys are the upstream's now");
    multi_discard(s);
    return LOCAL_DONE;
}

static enum local_route route_transaction(struct call *c)
{
    struct session *s = c->s;

    switch (c->cmd->id) {
    case CMDID_multi: return s->pin && !in_local_multi(s) ? LOCAL_NO : LOCAL_HERE;
    case CMDID_exec: return in_local_multi(s) ? local_exec(c) : LOCAL_NO;
    case CMDID_discard: return in_local_multi(s) ? LOCAL_HERE : LOCAL_NO;
    default: /* UNWATCH */
        if (in_local_multi(s) && multi_length(s) == 0 && !multi_watches(s))
            return LOCAL_LEAVE;
        return in_local_multi(s) || multi_watches(s) ? LOCAL_HERE : LOCAL_NO;
    }
}

static bool is_function(const struct command *cmd)
{
    return cmd->id == CMDID_fcall || cmd->id == CMDID_fcall_ro;
}

static enum local_route route_local_keys(struct call *c)
{
    struct session *s = c->s;

    if (forward_in_multi(s) || (c->cmd->id == CMDID_watch && s->pin))
        return refuse(c, mixed);
    if (is_function(c->cmd))
        return refuse(c, "ERR functions are the upstream's, and cannot use keys of write=local rules");
    return LOCAL_HERE;
}

/* No local key in sight, and a transaction is open here. */
static enum local_route route_in_multi(struct call *c, enum kind kind)
{
    struct session *s = c->s;

    if (multi_length(s) == 0 && !multi_watches(s))
        return LOCAL_LEAVE;
    if (kind == KIND_NONE && is_keyless_here(c->cmd) && !(c->cmd && is_function(c->cmd)))
        return LOCAL_HERE;
    return refuse(c, kind == KIND_UPSTREAM ? mixed
                                           : "ERR this transaction is about keys of write=local rules, and the command "
                                             "is the upstream's");
}

enum local_route local_route(struct call *c)
{
    struct session *s = c->s;
    const struct command *cmd = c->cmd;

    if (s->auth && auth_upstream_private(s))
        return kind_of(c->w, cmd, c->argc, c->argv) < KIND_LOCAL
                   ? LOCAL_NO
                   : refuse(c, "NOPERM keys of write=local rules are only for clients that are this server's own user "
                               "at the upstream");
    if (lookup_tells(c))
        return LOCAL_NO;
    if (cmd && (cmd->id == CMDID_quit || cmd->id == CMDID_reset))
        return LOCAL_NO;
    if (cmd && (cmd->id == CMDID_exec || cmd->id == CMDID_discard || cmd->id == CMDID_unwatch ||
                (cmd->id == CMDID_multi && c->w->conf->rules_local)))
        return route_transaction(c);
    enum kind kind = kind_of(c->w, cmd, c->argc, c->argv);
    if (kind == KIND_MIXED)
        return refuse(c, mixed);
    if (kind == KIND_LOCAL)
        return route_local_keys(c);
    if (in_local_multi(s))
        return route_in_multi(c, kind);
    if (cmd && cmd->id == CMDID_watch && multi_watches(s))
        return refuse(c, mixed);
    return LOCAL_NO;
}

const char *local_script_refusal(const struct call *c)
{
    enum kind kind = kind_of(c->w, c->cmd, c->argc, c->argv);

    if (kind == KIND_LOCAL || (kind == KIND_NONE && is_keyless_here(c->cmd)))
        return NULL;
    return kind == KIND_NONE ? "ERR a script on keys of write=local rules cannot run what is the upstream's" : mixed;
}

/* ---- what the upstream was told, and concerns local keys too ---- */

/* EVALSHA of it may come to run here. Whether it is one the upstream has said. */
static void keep_script(struct worker *w, struct session *s, struct slice body)
{
    struct script_worker *sw = script_worker(w);
    struct call c = {.w = w, .s = s};
    struct chain reply;

    chain_init(&reply);
    c.r = (struct reply){&reply, 2};
    struct compiled *k = script_of_body(sw, &c, body);
    if (k)
        scripts_add(w->cmd->scripts, k->script);
    chain_deinit(&reply);
}

void local_flush_locked(struct worker *w, int db)
{
    const struct mem *m = w->tier->mem;

    for (unsigned i = 0; i < m->databases; i++)
        if (db < 0 || i == (unsigned)db)
            watch_touch_db(w, (int)(m->databases + i), false);
    tier_flush_local_locked(w, db);
    tracking_flushed(w);
}

static void flush(struct worker *w, int db)
{
    mem_lock_all(w->tier->mem);
    local_flush_locked(w, db);
    watch_rehash(w);
    block_rehash(w);
    mem_unlock_all(w->tier->mem);
}

void local_answered(struct session *s, const struct command *cmd, int db, int argc, const struct slice *argv)
{
    struct worker *w = s->w;

    switch (cmd->id) {
    case CMDID_flushall: flush(w, -1); break;
    case CMDID_flushdb: flush(w, db); break;
    case CMDID_script_load:
        if (w->conf->rules_local && argc == 3)
            keep_script(w, s, argv[2]);
        break;
    default: break;
    }
}
