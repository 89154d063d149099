#ifndef TIERCEL_CMD_PRIV_H
#define TIERCEL_CMD_PRIV_H

#include "tiercel/cmd.h"
#include "tiercel/keyspace.h"
#include "tiercel/session.h"
#include "tiercel/tier.h"
#include "tiercel/type_zset.h"
#include "tiercel/type_stream.h"

/* What the files of the command layer share among themselves. */

/* The index of each row of tbl/cmd.def in command_table. */
enum command_id {
#define CMD(id, ...) CMDID_##id,
#define CMDX(id, ...) CMDID_##id,
#define CONT(id, ...) CMDID_##id,
#define SUB(container, id, ...) CMDID_##id,
#include "cmd.def"
#undef CMD
#undef CMDX
#undef CONT
#undef SUB
    CMDID_COUNT
};

/* Prototypes of all command handlers, one per row (containers have none). */
#define CMD(id, ...) void cmd_##id(struct call *c);
#define CMDX(id, ...) void cmd_##id(struct call *c);
#define CONT(id, ...)
#define SUB(container, id, ...) void cmd_##id(struct call *c);
#include "cmd.def"
#undef CMD
#undef CMDX
#undef CONT
#undef SUB

/* ---- a request that waits (session.c) ---- */

enum parked_state {
    PARKED_NEW,      /* not begun */
    PARKED_FAULTING, /* its keys are on their way */
    PARKED_READY,    /* its keys are pinned */
    PARKED_LATER,    /* suspended; ops says how to cancel */
    PARKED_SENT,     /* forwarded to the upstream: those behind it may follow */
    PARKED_DONE      /* `reply` holds its answer */
};

struct parked {
    struct list link;
    struct session *s;
    enum parked_state state;
    bool barrier;
    bool last; /* the client is closed after its answer */
    int argc;
    struct slice *argv; /* in its own memory */
    size_t bytes;
    int64_t us;       /* that its handler has worked */
    int64_t since_us; /* when the wait that is under way began */
    int64_t disk_us,
        upstream_us;    /* those that are over, by what they were for; none for what the command itself waits for */
    bool asks_upstream; /* suspended for an answer from there */
    int faults;
    struct tier_request treq;
    struct tier_wait *waits; /* one per key; NULL before the first fault */
    const struct suspend_ops *ops;
    void *ops_arg;
    struct block *block; /* it has waited for a key, and runs again (block.c) */
    struct chain reply;
    bool through;     /* not to be answered from copies: what was sent before it may change them */
    bool unanswered;  /* the upstream could not be asked (near.c) */
    struct buf *more; /* keys that are not among its arguments, as they were found (rerun.c) */
};
struct block;

/* Copies the request behind what the session has queued. */
struct parked *session_park(struct session *s, int argc, const struct slice *argv);
/* The session's worker: goes on with the queue's head, then wakes the net layer. */
void session_run(struct session *s);

/* ---- dispatch (dispatch.c) ---- */

enum dispatch_rc {
    DISPATCH_DONE,  /* the reply is in `out`, or withheld as the client wished */
    DISPATCH_FAULT, /* keys are not resident: park, dispatch_prepare(), tier_fault(), and again */
    DISPATCH_LATER  /* parked: completes by itself */
};
enum dispatch_rc dispatch_run(struct session *s, int argc, const struct slice *argv, struct parked *p);
/* The request runs again once memory has room, or, with pause_ms, after that time (later.c). */
enum dispatch_rc dispatch_wait_again(struct call *c, int64_t pause_ms);
/* Makes p->waits from the request's keys. */
void dispatch_prepare(struct parked *p);
/* May the keys of this request be fetched before its turn? */
bool dispatch_prefetchable(const struct session *s, int argc, const struct slice *argv);
/* Is it sure to change no key? */
bool dispatch_only_reads(int argc, const struct slice *argv);
/* May this request be sent upstream while earlier ones are unanswered? */
bool dispatch_forwardable(const struct session *s, int argc, const struct slice *argv);

/* The keys of one command, resolved in the session's database `db`; returns how many (at most max). */
int dispatch_keys(struct worker *w, const struct command *cmd, int argc, const struct slice *argv, int db,
                  struct call_key *keys, int max);
int dispatch_key_count(const struct command *cmd, int argc); /* an upper bound */
const struct command *dispatch_find(int argc, const struct slice *argv);
enum tier_need dispatch_need(const struct worker *w, enum key_access access);
/* Locks the shards of all keys, in order; `all` locks every shard. false: a script has some of them and takes too
 * long; nothing is locked, and script_busy() is to be replied. */
struct lockset {
    bool all;
    int n;
    uint32_t *shard;
};
bool dispatch_lock(struct worker *w, struct lockset *set, const struct call_key *keys, int nkeys, bool all);
void dispatch_unlock(struct worker *w, struct lockset *set);
/* Under the locks. ST_PENDING, or the failure of a wait. */
enum status dispatch_resolve(struct worker *w, struct call_key *keys, int nkeys, const struct tier_wait *waits);
/* Runs a resolved command with its statistics; its reply goes to c->r. */
void dispatch_call(struct call *c);
/* Its statistics; it began then. */
void dispatch_ran(struct call *c, int64_t start_us);
void dispatch_completed(struct call *c); /* those of a suspended one */
/* Its keys could not be resolved, and nothing is locked: try again? */
bool dispatch_resolve_again(struct call *c, enum status st, bool *tried);
void dispatch_rejected(const struct call *c); /* counts it */
/* An error before it runs. EXEC refused is the end of its transaction. */
void dispatch_refuse(struct call *c, const char *text);
void dispatch_fault_error(struct call *c, enum status st);
void dispatch_deinit(struct worker *w);
void *dispatch_scratch_keys(struct worker *w, int n);

/* ---- transactions (multi.c) ---- */
struct multi;
enum dispatch_rc multi_exec(struct call *c);
void multi_queue(struct call *c);          /* QUEUED */
void multi_abort(struct session *s);       /* a command could not be queued */
int multi_length(const struct session *s); /* -1: not in MULTI */
size_t multi_bytes(const struct session *s);
void multi_discard(struct session *s); /* forgets commands and watches (RESET, a client that went) */
void multi_unwatch(struct session *s); /* what a slow script does not let go of stays, with SESSION_UNWATCH */
void multi_destroy(struct session *s);
bool multi_watches(const struct session *s); /* are there watched keys here? */
/* Does fn say yes to all queued commands? */
bool multi_each(const struct session *s,
                bool (*fn)(void *arg, const struct command *cmd, int argc, const struct slice *argv), void *arg);
int multi_exec_keys(struct session *s, struct call_key *keys, int max, bool *all);
bool multi_needs_all_shards(const struct command *cmd); /* walks or changes the whole key space */
/* All shards locked: before a flush or swap of this database; and after a swap, which may have brought keys. */
void watch_touch_db(struct worker *w, int db, bool swapped);
void watch_rehash(struct worker *w); /* all shards locked: after it */
/* tier.change, arg = struct cmd *. */
void cmd_key_changed(void *arg, struct worker *w, const struct key *key, enum tier_change why);

/* Watched and waited-for keys of one shard, under its lock. */
struct registry {
    struct list watches; /* struct watch */
    struct list blocked; /* struct block_entry */
};

/* ---- key-space notifications (notify.c) ---- */
/* Does notify-keyspace-events ask for events of these classes? */
static inline bool notify_wants(const struct cmd *cmd, unsigned classes)
{
    return UNLIKELY(atomic_load_explicit(&cmd->notify, memory_order_relaxed) & classes);
}
/* The key's shard locked; any thread. */
void notify_publish(struct cmd *cmd, const struct key *key, const char *event);
void notify_change(struct cmd *cmd, const struct key *key, enum tier_change why);
/* conf_lock held, or before the loops run. */
/* config.c: all workers take the newest snapshot; then the reply is OK. */
void config_publish(struct call *c);
void notify_conf_changed(struct cmd *cmd, const struct conf *conf);
/* For handlers: what happened to key i, where Redis says so. */
static inline void ks_notify(struct call *c, int i, enum conf_notify event_class, const char *event)
{
    if (notify_wants(c->w->cmd, event_class))
        notify_publish(c->w->cmd, &c->keys[i].key, event);
}

/* A password: not for the slow log and MONITOR. */
bool command_arg_is_secret(const struct slice *argv, int i);

/* ---- MONITOR (monitor.c) ---- */
void monitor_feed(const struct call *c);   /* a command ran; any worker */
void monitor_script(const struct call *c); /* a script begins: before what it calls */
void monitor_leave(struct session *s);     /* it is no monitor any more, or it goes */
static inline void monitor_note(const struct call *c)
{
    if (UNLIKELY(atomic_load_explicit(&c->w->cmd->monitors, memory_order_relaxed) > 0))
        monitor_feed(c);
}

/* ---- commands that wait for keys (block.c) ----
 *
 * A handler that finds nothing to do calls block_wait(), as its last act; it must have looked at block_may_take() of a
 * key before it takes from it, and treat the key as missing where that says no. Who made a value of the kind's type
 * (ks_put(), ks_changed()) serves those who wait for the key, oldest first, at the end of its command and under its
 * locks. What a client that waits is given is written by the kind's functions:
 *
 *   ready()  may it be served by what the key has now? NULL: a value of that type is enough. Changes nothing.
 *   serve()  does the command's work and writes the reply.
 *   gone()   says that the key is deleted, or has another type. NULL: the client goes on waiting.
 *
 * Both get a call that is the waiting client's command (cmd, argc, argv, r) on the one key that has something (keys[0],
 * with `arg`, its place among the arguments), on whatever worker's thread; there is no session (c->s). `data` is what
 * block_wait() was given.
 *
 * A kind with `dest` needs a second key, which is locked and resident when serve() is called (keys[1]). Where that
 * cannot be had at once, the client's own loop runs the command again, with block_again(); until that has ended
 * nobody behind it in the key's queue is served, and no other command that could wait takes anything from the key.
 * What it finds then may be gone, or of another type: it goes on waiting, in its place and with its timeout. */
struct block_kind {
    enum obj_type type;
    int dest; /* argument that is the second key; 0 = none */
    bool (*ready)(struct call *c, void *data);
    void (*serve)(struct call *c, void *data);
    void (*gone)(struct call *c, void *data);
};
/* Timeouts in seconds, as such commands have them. *ms 0: none. false: the error was replied. */
bool block_arg_timeout(struct call *c, int arg, int64_t *ms);
/* Waits for the first `nkeys` of the call's keys. In EXEC it must not: the handler replies what a timeout does.
 * data: NULL, or MEM_CLIENT memory, which is taken. */
void block_wait(struct call *c, const struct block_kind *kind, int nkeys, int64_t timeout_ms, void *data);
/* false: what key i has is for a client that waited for it before. */
bool block_may_take(struct call *c, int i);
bool block_again(const struct call *c); /* this call has waited already: a wrong type is no error any more */

void block_signal(struct call *c, const struct call_key *k); /* a key may have something for somebody */
void block_ended_locked(struct call *c);
void block_serve_ready(struct worker *w, int64_t now_ms, const struct lockset *locks);
/* At a command's end, its shards still locked. */
static inline void block_serve(struct call *c, const struct lockset *locks)
{
    if (UNLIKELY(c->parked != NULL) && c->parked->block && !c->suspended)
        block_ended_locked(c);
    if (UNLIKELY(c->w->cmd_worker->ready.len != 0))
        block_serve_ready(c->w, c->now_ms, locks);
}
/* Before a command's shards are locked: serving somebody may change a second key, in one piece. */
static inline bool block_groups(struct worker *w)
{
    return UNLIKELY(atomic_load_explicit(&w->cmd->block_moves, memory_order_relaxed) != 0);
}
bool block_unblock(struct session *s, bool error); /* CLIENT UNBLOCK */
void block_rehash(struct worker *w);
/* session.c's, for a request that has waited and runs again: */
bool block_is_over(struct parked *p); /* it was told to end meanwhile: completed */
void block_end(struct parked *p);     /* it has its answer, or its client is gone */

/* ---- commands that find out while they run which keys they need (rerun.c) ---- */
#define RERUNS_MAX 16 /* from then on what is missing is read from disk at once */
/* Before DISPATCH_FAULT: the request is to wait for this key, too; or for this one alone. */
void rerun_note(struct worker *w, struct slice name, int db);
void rerun_note_only(struct worker *w, struct slice name, int db);
void rerun_prepare(struct parked *p); /* dispatch_prepare() of such a request */
void rerun_forget(struct parked *p);
/* What the keys beyond its first `nkeys` came to, for which it has waited. */
enum status rerun_waits_status(const struct parked *p, int nkeys);
/* Does this command use keys that are not among its arguments? Then it runs by rerun_run(), but within EXEC and scripts,
 * and all shards are locked. Its handler asks for such a key (name and access filled in) by rerun_key(). ST_PENDING: it
 * will wait for that one and run again, so it may go on to ask for others, but must reply nothing and change nothing;
 * ST_FULL: the same, and they are enough; ST_IO: it cannot be had. */
bool rerun_wants_all(const struct command *cmd, int argc, const struct slice *argv);
enum status rerun_key(struct call *c, struct call_key *k);
enum dispatch_rc rerun_run(struct call *c);

/* ---- scripts (script.c) ---- */
struct scripts *scripts_create(void);
void scripts_destroy(struct scripts *ss);
void script_worker_deinit(struct worker *w);
/* EVAL and its kin, but within EXEC. */
enum dispatch_rc script_eval(struct call *c);
const struct call *script_caller(const struct worker *w); /* of the script that runs: EVAL itself; NULL: none */
bool script_wants_all(struct worker *w, const struct command *cmd, int argc, const struct slice *argv);
/* SCRIPT KILL and FUNCTION KILL. */
void script_kill(struct call *c, bool functions);
void script_kill_all(const struct cmd *cmd); /* whatever they have done (a SHUTDOWN that does not save) */
const char *script_busy(const struct cmd *cmd);
struct script_figures {
    int64_t scripts, bytes, vm_bytes;
    int64_t libraries, functions, function_bytes, vm_functions;
};
void script_figures(const struct cmd *cmd, struct script_figures *f); /* any thread */
int cmd_eval_keys(int argc, const struct slice *argv, int *pos, int max);

/* ---- functions (function_set.c, script_library.c) ---- */
struct functions *functions_create(void);
void functions_destroy(struct functions *fs);
void functions_figures(struct functions *fs, struct script_figures *f); /* any thread */
void library_worker_deinit(struct worker *w);

/* ---- an upstream behind us (forward.c) ---- */
enum forward_route { ROUTE_LOCAL, ROUTE_NEAR, ROUTE_PART, ROUTE_WRITE_LINK, ROUTE_PIN };
enum forward_route forward_route(const struct session *s, const struct command *cmd, int argc,
                                 const struct slice *argv);
enum dispatch_rc forward_send(struct call *c, enum forward_route route);
void forward_drop(struct session *s); /* the client went, or RESET */
/* A client that blocks at the upstream is let go there; false: it does not. */
bool forward_unblock(struct session *s, bool error);
bool forward_pin_takes_more(const struct session *s); /* a transaction that is not ending */
/* In RESP2 a client in subscribed mode may only do what concerns subscriptions. */
bool forward_allows(const struct session *s, const struct command *cmd);
bool forward_in_multi(const struct session *s);   /* its transaction is open at the upstream */
bool forward_subscribed(const struct session *s); /* its pinned connection is in subscribed mode */

void forward_abort(struct session *s); /* a command of its transaction there was refused here */
/* Opens the transaction at the upstream that the client was told is open; then the call runs again. */
enum dispatch_rc forward_multi(struct call *c);

/* ---- keys that live only here, though there is an upstream (local.c) ---- */
enum local_route {
    LOCAL_NO,    /* it goes the upstream's ways */
    LOCAL_HERE,  /* it runs as without an upstream */
    LOCAL_LEAVE, /* its transaction, in which nothing is queued yet, is the upstream's: forward_multi() */
    LOCAL_DONE   /* refused, with its error */
};
/* With an upstream, while there are rules with write=local, or the session has used MULTI or WATCH here. */
enum local_route local_route(struct call *c);
/* Does it name a key that is local? */
bool local_names(const struct session *s, const struct command *cmd, int argc, const struct slice *argv);
const char *local_script_refusal(const struct call *c); /* of what a script calls that runs here; NULL: it may */
/* All local keys of the database go, or (db -1) of all; all shards locked. The caller moves watches and blocked clients to
 * the new names of their keys. */
void local_flush_locked(struct worker *w, int db);
/* The upstream did what was asked of it. No lock held. */
void local_answered(struct session *s, const struct command *cmd, int db, int argc, const struct slice *argv);

/* A CMD_NEAR_PART whose keys are not all here: passes it through. */
enum dispatch_rc near_missed(struct call *c);
/* It could not be passed through. true: it will run again, on what is here. */
bool near_retry(struct parked *p, const struct command *cmd);
bool forward_writes(const struct command *cmd); /* it may change keys; NULL: unknown */
bool forward_blocks(const struct command *cmd, int argc, const struct slice *argv);
int64_t forward_wait_ms(const struct command *cmd, int argc, const struct slice *argv); /* of upstream_pin_call() */
bool forward_changes_all(const struct command *cmd);
/* fn for each key that the write may change. */
void forward_each_written(struct worker *w, const struct command *cmd, int db, int argc, const struct slice *argv,
                          void (*fn)(void *arg, unsigned db, struct slice name), void *arg);
/* Drops the copies of those keys; `before`: the write was not answered yet. */
void forward_forget(struct worker *w, const struct command *cmd, int db, int argc, const struct slice *argv,
                    bool before);

/* ---- client-auth upstream (auth_upstream.c); s->auth is set, where not said otherwise ---- */
void auth_upstream_start(struct session *s); /* a new client, or RESET: sets s->auth, if the setting says so */
void auth_upstream_end(struct session *s);
void auth_upstream_auth(struct call *c);
bool auth_upstream_hello(struct call *c, int proto); /* false: it changes nobody, go on */
struct slice auth_upstream_user(const struct session *s);
bool auth_upstream_private(const struct session *s);
bool auth_upstream_subscribed(const struct session *s); /* s->auth may be NULL */
/* May it be sent while the answers to those ahead of it are still to come? */
bool auth_upstream_ahead(const struct session *s, const struct command *cmd);
/* true: a private client's command, which is dealt with: *rc. */
bool auth_upstream_takes(struct call *c, enum dispatch_rc *rc);
void hello_finish(struct call *c, int proto); /* its options but AUTH, and the reply */

/* ---- the command table (command.c) ---- */

/* ACL categories, in the order in which COMMAND lists them. */
enum command_category {
    CAT_KEYSPACE = 1 << 0,
    CAT_READ = 1 << 1,
    CAT_WRITE = 1 << 2,
    CAT_SET = 1 << 3,
    CAT_SORTEDSET = 1 << 4,
    CAT_LIST = 1 << 5,
    CAT_HASH = 1 << 6,
    CAT_STRING = 1 << 7,
    CAT_BITMAP = 1 << 8,
    CAT_HYPERLOGLOG = 1 << 9,
    CAT_GEO = 1 << 10,
    CAT_STREAM = 1 << 11,
    CAT_PUBSUB = 1 << 12,
    CAT_ADMIN = 1 << 13,
    CAT_FAST = 1 << 14,
    CAT_SLOW = 1 << 15,
    CAT_BLOCKING = 1 << 16,
    CAT_DANGEROUS = 1 << 17,
    CAT_CONNECTION = 1 << 18,
    CAT_TRANSACTION = 1 << 19,
    CAT_SCRIPTING = 1 << 20,
    CAT_COUNT = 21
};
/* A write, or one that redis-server here takes for one: PUBLISH, and PFCOUNT, which may store what it has counted. */
bool command_may_replicate(const struct command *cmd);
/* Those of its row and those that follow from its flags. Any thread. */
uint32_t command_categories(const struct command *cmd);

/* Where first, last and access of a row cannot say it. */
int cmd_debug_keys(int argc, const struct slice *argv, int *pos, int max);
int cmd_keys_behind_1(int argc, const struct slice *argv, int *pos, int max); /* argv[1] says how many there are */
int cmd_keys_behind_2(int argc, const struct slice *argv, int *pos, int max); /* argv[2] does */
enum key_access cmd_set_access(int argc, const struct slice *argv);           /* string.c */
int cmd_keys_stored_2(int argc, const struct slice *argv, int *pos,
                      int max); /* argv[1] is one, argv[2] says how many others */
/* GEORADIUS with and without STORE (geo.c). */
int cmd_georadius_keys(int argc, const struct slice *argv, int *pos, int max);
enum key_access cmd_georadius_access(int argc, const struct slice *argv);
int cmd_xread_keys(int argc, const struct slice *argv, int *pos, int max);
/* SORT with and without STORE; with BY or GET of other keys (sort.c). */
int cmd_sort_keys(int argc, const struct slice *argv, int *pos, int max);
enum key_access cmd_sort_access(int argc, const struct slice *argv);
bool sort_uses_patterns(int argc, const struct slice *argv);

/* How many key specs a row has; and how key i of a command line is used, in the words of its spec (introspect.c). */
int command_key_specs(const struct command *cmd);
struct slice command_key_flags(const struct command *cmd, int i, int argc, const struct slice *argv);

/* By COMMAND's names: "get", "client", "client|list". NULL: unknown. */
const struct command *command_find_full(struct slice name);

/* A container's handler: answers that it has no such subcommand (argv[1]). */
void cmd_container(struct call *c);
/* What a subcommand answers to a number of arguments that its arity allows and it does not. */
void cmd_reply_bad_subcommand(struct call *c);
/* What every *_help handler of a container's subcommand calls: HELP made from the rows. */
void cmd_container_help(struct call *c);
/* The same frame around lines of one's own, ended by NULL. */
void cmd_reply_help(struct call *c, const char *const *lines);

/* ---- what commands on keys share (string.c, generic.c, list.c) ---- */

/* An error that is replied by other means, in the statistics. */
void call_count_error(struct call *c, const char *text);
/* ERR wrong number of arguments for '...' command: for what an arity cannot say. */
void cmd_reply_bad_arity(struct call *c);
/* ERR invalid expire time in '...' command. */
void cmd_reply_bad_expiry(struct call *c);
/* Sets the expiry of key i, which is resident, or deletes it when that time has come (0 and
 * below included). */
void cmd_expire_at(struct call *c, int i, int64_t expire_ms);
/* Takes the expiry off key i, which is resident. false: it had none. */
bool cmd_persist_key(struct call *c, int i);
/* A bit of a string, from 0; `hash`: "#5" is five times `width`. false: the error was replied. */
bool cmd_arg_bit_offset(struct call *c, int arg, bool hash, unsigned width, uint64_t *out);
int cmd_bitop_keys(int argc, const struct slice *argv, int *pos, int max);
/* An argument between min and max. err NULL: the texts that Redis has for both failures. false:
 * the error was replied. */
bool cmd_arg_between(struct call *c, int arg, int64_t min, int64_t max, int64_t *out, const char *err);

/* The database of the second key: for COPY the one behind DB, else cur_db; for MOVE, whose only
 * key argument counts twice, its second argument. -1: no number or bad syntax. It may be one
 * that does not exist: the caller knows how many there are, and in both cases resolves no keys and
 * lets the handler reply the error. Any thread. */
int cmd_copy_db(int argc, const struct slice *argv, int cur_db);
int cmd_move_db(int argc, const struct slice *argv, int cur_db);

/* SCAN, HSCAN, SSCAN and ZSCAN: the cursor, which Redis reads before it looks at the key, and what follows it.
 * false: the error was replied. */
struct scan_args {
    uint64_t cursor, count;
    bool match; /* has a pattern */
    struct slice pattern;
    const struct slice *type; /* NULL: none */
};
bool cmd_scan_cursor(struct call *c, int arg, struct scan_args *a);
bool cmd_scan_options(struct call *c, int from, bool typed, struct scan_args *a);
/* n items, in RESP, are taken from the chain. */
void cmd_scan_reply(struct call *c, uint64_t next, int64_t n, struct chain *items);

/* Key i, if it is a hash here: fields whose time has come go, and the key with the last of them. */
void hash_expire(struct call *c, int i);

/* digest_value.c: of all keys of the call. */
void debug_digest_value(struct call *c);
/* The hash of key 0, for a command that reads (counted), or that changes it. Fields whose time has come are gone. false:
 * it is no hash, and the error was replied. o NULL: there is none. */
struct hash_target {
    struct object *o;
    bool is_new; /* made by this command */
    bool stored; /* and in the table */
    struct obj_limits limits;
};
bool hash_read(struct call *c, struct object **o);
bool hash_find(struct call *c, struct hash_target *t);
bool hash_find_or_make(struct call *c, struct hash_target *t);
/* After the change: hash_stored(), then the events, then hash_changed(). */
void hash_stored(struct call *c, struct hash_target *t);
void hash_changed(struct call *c, const struct hash_target *t);

/* SRANDMEMBER and HRANDFIELD with a negative count return as many as the client says, whatever the value has. There
 * are limits here: elements, and bytes of the reply. */
#define CMD_DRAW_MAX (1u << 20)
#define CMD_DRAW_BYTES (512u << 20)

/* Lists (list.c), for commands that wait for them. The key has one. They reply, tell of it and remove the list when
 * it is empty. */
void list_pop_one(struct call *c, int i, bool left);
void list_pop_many(struct call *c, int i, bool left, uint64_t max);   /* an array */
void list_pop_named(struct call *c, int i, bool left, int64_t count); /* with the key's name; 0: just one */
void list_move(struct call *c, bool from_left, bool to_left);         /* from keys[0] to keys[1] */
/* LEFT or RIGHT; what follows the keys' number at `numkeys`. false: the error was replied. */
bool list_arg_end(struct call *c, int arg, bool *left);
bool list_args_mpop(struct call *c, int numkeys, bool *left, int64_t *count);

/* ---- sorted sets (zset.c) ---- */

/* ZADD, once its options and scores are read: the members are arguments `name`, `name` + step, ... */
struct zset_adding {
    unsigned how; /* enum zset_how */
    bool count_changed;
    int n, name, step;
    const double *score;
};
void zset_add_members(struct call *c, const struct zset_adding *a);
/* NX with XX and so on; false: the error was replied. */
bool zset_how_agrees(struct call *c, unsigned how, int n);
/* Removes up to n members from an end of sorted set i, which the key has, in their order, and says what each was. Tells
 * of it, and removes the set when it is empty. */
size_t zset_pop(struct call *c, int i, bool max, size_t n, void (*fn)(void *arg, struct slice name, double score),
                void *arg);
/* The same, replied with the key's name: as (B)ZMPOP does; count 0: one member, as BZPOPMIN does. */
void zset_pop_named(struct call *c, int i, bool max, int64_t count);
/* What follows the keys' number, argument `numkeys`, of (B)ZMPOP. false: the error was replied. */
bool zset_args_mpop(struct call *c, int numkeys, bool *max, int64_t *count);
/* What ZUNIONSTORE, ZRANGESTORE and GEOSEARCHSTORE end with: makes `o` (taken; made for that key) the value of key i, or
 * deletes it when there is nothing to store, and replies how many there are. */
void zset_store(struct call *c, int i, struct object *o, const char *event);
void zset_reply_member(struct call *c, struct slice name, double score, bool with_score);
bool zset_arg_score(struct call *c, int arg, double *score, const char *err); /* err NULL: Redis's text */

/* ---- what the files of stream commands share: IDs among arguments, entries in replies (stream_args.c) ---- */

static inline struct stream *stream_of(const struct object *o)
{
    return object_ptr(o);
}

/* "ms-seq", or "ms" alone with missing_seq. strict: not "-" and "+". auto_seq: may be "ms-*", and whether it was; NULL: it
 * may not. */
bool stream_parse_id(struct slice s, uint64_t missing_seq, bool strict, struct stream_id *id, bool *auto_seq);
/* The others reply the error and return false. */
bool stream_arg_id(struct call *c, int arg, struct stream_id *id); /* strict, seq 0 where it has none */
bool stream_arg_loose_id(struct call *c, int arg, struct stream_id *id);
bool stream_arg_start(struct call *c, int arg, struct stream_id *id); /* with "(": the one after it */
bool stream_arg_interval(struct call *c, int start, int end, struct stream_id *from, struct stream_id *to);

/* A group of keys[0]; NULL: the error (NOGROUP, WRONGTYPE) was replied. */
struct stream_group *stream_arg_group(struct call *c, struct object *o, int arg);

/* A reply whose length is known at its end. */
struct stream_items {
    struct chain chain;
    struct reply r;
    int64_t n;
};
void stream_items_start(struct stream_items *items, const struct reply *r);
void stream_items_end(struct stream_items *items, struct reply *r); /* as an array */

void stream_reply_id(struct reply *r, struct stream_id id);
/* The entry at which a walk is. */
void stream_reply_entry(struct reply *r, struct stream_walk *w);
/* The entry with that ID. false: there is none, and nothing was replied. */
bool stream_reply_one(struct reply *r, const struct stream *s, struct stream_id id);
/* At most count entries as an array; 0: all. */
void stream_reply_range(struct reply *r, const struct stream *s, struct stream_id from, struct stream_id to,
                        uint64_t count, bool reverse);

/* The consumer, which is made if there is none, marked as just seen. Tells of a new one by its event. */
struct stream_consumer *stream_consumer_get(struct call *c, int key, struct stream_group *g, struct slice name);

/* ---- what is recorded about commands; any thread ---- */

struct slowlog *slowlog_create(void);
void slowlog_destroy(struct slowlog *log);
/* A command is over, its handler has worked for `us`, and either that is as long as slowlog-log-slower-than or it has
 * waited too. Puts it into the slow log, and into the log with what it waited for. */
void slow_command(const struct call *c, int64_t us);
/* A wait is over: of that parked request for its keys, or until the disk takes what is to leave memory. */
void slow_waited_keys(struct parked *p);
void slow_waited_disk(struct parked *p);
void slow_waited_upstream(struct parked *p);
void slowlog_push(struct cmd *cmd, struct session *s, int argc, const struct slice *argv, int64_t us);

struct latency *latency_create(void);
void latency_destroy(struct latency *l);
/* The caller judged that it is over latency-monitor-threshold. */
void latency_add(struct cmd *cmd, const char *event, int64_t ms);

struct errstat *errstat_create(void); /* one per worker: cmd_worker.errors */
void errstat_destroy(struct errstat *e);
void errstat_add(struct worker *w, const char *text); /* its code is the first word */
void errstat_reset(struct errstat *e);
/* A command's counters, all workers together. */
struct cmd_stat_sum {
    uint64_t calls, usec, rejected, failed, samples;
    uint64_t hist[CMD_HIST_BUCKETS];
};
void cmd_stat_sum(const struct cmd *cmd, int id, struct cmd_stat_sum *out);

/* ---- SAVE and its kin (persist.c); any thread, no shard lock needed ---- */

enum persist_job { PERSIST_NONE, PERSIST_SAVE, PERSIST_REWRITE };
struct persist_figures {
    enum persist_job running; /* of those that clients asked for */
    bool rewrite_scheduled, rewrite_ok;
    int64_t rewrites, rewrite_failures; /* good ones; bad ones since the last good one */
    int64_t last_rewrite_s, current_s;  /* -1 = none */
};
struct persist *persist_create(struct cmd *cmd);
void persist_destroy(struct persist *p);
void persist_get_figures(struct persist *p, struct persist_figures *out);

/* ---- users (acl.c; acl.h says what they are) ---- */

/* The session's user may run the command. false: the error was replied, or the client is closed because there is no such
 * user any more. Call it by acl_allows(). */
bool acl_admit(struct call *c);
static inline bool acl_allows(struct call *c)
{
    const struct session *s = c->s;

    return LIKELY(s->acl_seen == atomic_load_explicit(&c->w->cmd->acl_generation, memory_order_relaxed) &&
                  !(s->flags & SESSION_LIMITED)) ||
           acl_admit(c);
}
/* The same for a queued command when its turn comes in EXEC. */
bool acl_admit_queued(struct call *c);
/* For a command that reads keys which its arguments only describe (SORT BY, GET): may its user read all there are? */
bool acl_may_read_all_keys(const struct call *c);
/* For one that a script calls: NULL, or the error. With no log and no counter: redis.acl_check_cmd(). */
const char *acl_script_refusal(struct call *c, bool log);
/* AUTH and HELLO: the session is that user's from now on. false: no, which is logged. */
bool acl_authenticate(struct call *c, struct slice user, struct slice password);

/* ---- clients (connection.c, client.c) ---- */

void client_describe(const struct session *s, struct buf *b); /* its line of CLIENT LIST */

bool client_set_name(struct call *c, struct slice name); /* false: an error was replied */
/* Timeouts of clients in ms: its texts for what is no number, negative, or too large. false: replied. */
bool client_arg_timeout_ms(struct call *c, int arg, int64_t *out);

/* ---- figures for INFO and MEMORY (memory.c, latency.c); any thread ---- */

struct memory_figures {
    int64_t used, peak, data, clients, overhead, rss, keys;
};
void memory_figures(const struct cmd *cmd, struct memory_figures *f);
double memory_share(int64_t part, int64_t whole); /* 0 when whole is 0 */

/* Per second, since an earlier INFO that is at least a second ago (or since the start). */
struct rates {
    int64_t commands;
    double input_kb, output_kb;
};
void rates_get(struct cmd *cmd, struct rates *out);

#endif
