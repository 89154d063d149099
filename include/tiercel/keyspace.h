#ifndef TIERCEL_KEYSPACE_H
#define TIERCEL_KEYSPACE_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/command.h"
#include "tiercel/object.h"
#include "tiercel/resp.h"
#include "tiercel/worker.h"

/* What a command handler sees: the request, its keys (resident, their shards locked by
 * dispatch), and a reply writer; never a socket, a thread, a lock or a tier. A handler writes exactly
 * one reply (or suspends the call: session.h), does not block and does not lock. */

struct session;

struct call_key {
    struct key key;
    enum key_access access;
    int arg;            /* position among the arguments */
    struct object *obj; /* resident and not expired; NULL: none, or only on disk */
    uint32_t block;     /* where the disk has it, if only the disk does and its value is needed; 0 = not known */
    bool on_disk;       /* with obj == NULL and KEY_PRESENCE/KEY_REPLACE: the key exists on disk */
    bool kept;          /* obj is in the table (false: a copy for this request alone) */
};

struct call {
    struct worker *w;
    struct session *s;
    const struct command *cmd; /* of a subcommand: its row */
    int argc;
    const struct slice *argv;
    struct call_key *keys;
    int nkeys;
    struct reply r;
    int64_t now_ms;
    struct parked *parked; /* its place in the session's queue, or NULL while it runs at once */
    bool in_exec;          /* within EXEC: must not suspend */
    bool failed;           /* an error was replied; set by call_error() */
    bool suspended;        /* set by call_suspend(): the reply comes later */
    struct rcbuf *packed;  /* the value argument compressed before the locks were taken, or NULL */
    int packed_arg;
    bool in_script;       /* called by one */
    bool local;           /* with an upstream: its keys are not that one's */
    bool oom, unwritable; /* to scripts: memory was full when it came, the disk could not be written */
    bool may_rerun;       /* it may wait for keys that it asks for, and run again (rerun_key()) */
    int wanted;           /* keys that it asked for */
};

/* ---- replies that are errors (counted in errorstats) ---- */
void call_error(struct call *c, const char *text); /* "ERR syntax error": with the code, without '-' */
void call_errorf(struct call *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void call_syntax(struct call *c);    /* ERR syntax error */
void call_wrongtype(struct call *c); /* WRONGTYPE ... */
void call_not_int(struct call *c);   /* ERR value is not an integer or out of range */

/* ---- arguments ---- */
/* false: the error was replied (err NULL: call_not_int's). */
bool call_arg_i64(struct call *c, int arg, int64_t *out, const char *err);
static inline bool call_arg_is(const struct call *c, int arg, const char *word)
{
    return slice_is(c->argv[arg], word);
}

/* ---- keys: i is the index among c->keys ---- */

/* The object, counted as a hit or a miss (which is an event, too) and as an access. */
struct object *ks_read(struct call *c, int i);
/* The same, without counting (OBJECT, writes that look first). */
struct object *ks_peek(struct call *c, int i);
/* For KEY_PRESENCE too: in memory or on disk, not expired. */
bool ks_exists(const struct call *c, int i);
/* The same, counted as a hit or a miss, but not as an access (EXISTS, TTL, TYPE). */
bool ks_lookup(struct call *c, int i);
/* Makes `o` (taken; its key is keys[i].key) the key's value, whatever was there. Publishes the event
 * "new"; all others, except those of misses and emptied lists, are the handlers' (ks_notify()). */
void ks_put(struct call *c, int i, struct object *o);
/* true: it existed. */
bool ks_delete(struct call *c, int i);
/* After a change inside keys[i].obj (a list, a hash, ...): tells all who must know. An empty one, but a stream, is
 * deleted by it, with its event: keys[i].obj is NULL then. */
void ks_changed(struct call *c, int i);
/* The same for what WATCH and those who wait for the key do not take for a change: consumer groups of a stream. */
void ks_changed_quietly(struct call *c, int i);
/* Absolute wall time, 0 = no expiry. The key must be resident. A time in the past deletes. */
void ks_expire(struct call *c, int i, int64_t expire_ms);

/* true: o is NULL or of that type; else the error (WRONGTYPE) was replied. */
bool ks_is(struct call *c, const struct object *o, enum obj_type type);
/* The encodings' limits, as the settings are now. */
struct obj_limits ks_limits(const struct call *c);

/* Reads a string value: *out is valid until the next use of the scratch or the codec, or a change of
 * the object. false: the error (WRONGTYPE, a damaged value) was replied. */
bool ks_string(struct call *c, struct object *o, char scratch[OBJ_SCRATCH], struct slice *out);
/* Replies a string object as a bulk: large values by reference, packed ones unpacked later. */
void ks_reply_string(struct call *c, struct object *o);
/* ks_put() of a string from argument `arg`: an integer where it is one, packed when dispatch packed it,
 * in place where the key's object is as a new one would be. */
void ks_store_arg(struct call *c, int i, int arg, int64_t expire_ms);
/* The same of a number. */
void ks_store_int(struct call *c, int i, int64_t value, int64_t expire_ms);
/* From bytes, never int-encoded: */
struct object *ks_string_from(struct call *c, int i, struct slice value, int64_t expire_ms);
/* The bytes of keys[i]'s string, to be changed in place: at least `len`, zeros behind what there was; a new one where the
 * key has none. NULL: the error (WRONGTYPE, a damaged value) was replied. After the change ks_edited(). */
struct ks_edit {
    struct object *old; /* NULL: it is new */
    struct object *obj;
};
char *ks_edit(struct call *c, int i, size_t len, struct ks_edit *e);
/* In between, once its bytes are as they are to be: compresses it, if that is worth it. */
void ks_edit_pack(struct call *c, int i, struct ks_edit *e);
void ks_edited(struct call *c, int i, const struct ks_edit *e);

#endif
