#ifndef CMD_FUNCTION_PRIV_H
#define CMD_FUNCTION_PRIV_H

#include "cmd/cmd_priv.h"

/* Functions: libraries of them that the process shares, as snapshots that do not change. A change makes a new snapshot,
 * writes it to the file that keeps it, and publishes it; workers see by the generation that there is a new one.
 *
 *   function_set.c    libraries, snapshots, changes
 *   function_file.c   FUNCTION DUMP's payload, and the file
 *   function.c        FUNCTION
 *   script_library.c  what is Lua's of it, and FCALL */

#define LIBRARIES_MAX 10000
#define LIBRARIES_BYTES_MAX ((size_t)64 << 20) /* sources and names */
#define LIBRARY_LOAD_US 500000                 /* to register functions */

struct function {
    char *name;
    struct slice description; /* ptr NULL: none */
    unsigned flags;           /* enum script_flags */
};

/* Does not change once it is published; counted. */
struct function_lib {
    _Atomic int refs;
    char *name;
    struct slice source;
    size_t skip; /* of its first line, which is not Lua's */
    bool world;  /* its functions may name keys that are not given to them: all shards are locked */
    size_t bytes;
    int n, cap;
    struct function *fn;
};

struct function_set {
    _Atomic int refs;
    int nlibs, n;
    size_t bytes;
    struct function_lib **lib; /* by name */
    struct function_at {
        int lib, fn;
    } * at; /* by name, without regard to case */
};

enum function_policy { FUNCTION_APPEND, FUNCTION_REPLACE, FUNCTION_FLUSH };

/* ---- function_set.c ---- */
/* The first line: "#!lua name=mylib". false: *err. */
bool function_header(struct slice source, struct buf *name, size_t *skip, struct buf *err);
bool function_name_ok(struct slice name);

struct function_lib *function_lib_create(struct slice name, struct slice source, size_t skip);
void function_lib_add(struct function_lib *lib, struct slice name, struct slice description, unsigned flags);
void function_lib_unref(struct function_lib *lib);

struct function_set *function_set_create(void);
void function_set_unref(struct function_set *set);
int function_set_lib(const struct function_set *set, struct slice name); /* -1: there is none */
const struct function *function_set_find(const struct function_set *set, struct slice name, int *lib); /* or NULL */

uint64_t functions_generation(struct functions *fs);
struct function_set *functions_get(struct functions *fs, uint64_t *generation); /* with a reference */
/* Any thread; waits for the file. Takes no references. false: nothing has changed, and *err says why. */
bool functions_change(struct functions *fs, struct function_lib *const *libs, int n, enum function_policy policy,
                      struct buf *err);
bool functions_delete(struct functions *fs, struct slice name, struct buf *err);
void functions_keep(struct functions *fs, const char *path); /* in that file, from the next change on */

/* A function that takes long, for FUNCTION STATS. */
struct function_running {
    struct list link;
    char *name;
    int argc;
    struct slice *argv;
    int64_t begin_us;
};
void function_running_note(struct worker *w, const char *name, const struct call *c, int64_t begin_us,
                           struct function_running **out);
void function_running_end(struct worker *w, struct function_running **running);
/* Calls fn with one of them, or with NULL. */
void functions_running(struct functions *fs, void (*fn)(void *arg, const struct function_running *running), void *arg);

/* ---- script_library.c ---- */
/* Loads a library here, to see what it registers; by until_us, or 0. Its code stays, at *ref, until library_keep() or
 * library_drop(). NULL: *err says why. */
struct function_lib *library_new(struct worker *w, struct slice source, int64_t until_us, int *ref, struct buf *err);
void library_keep(struct worker *w, const struct function_lib *lib, int ref); /* it is published */
void library_drop(struct worker *w, int ref);

/* ---- function_file.c ---- */
void function_dump(const struct function_set *set, struct buf *out);
/* Calls fn for each library's source, until that says no. false: it said so, or the payload is not one: then *err. */
bool function_undump(struct slice payload, bool (*fn)(void *arg, struct slice source), void *arg, struct buf *err);
bool function_file_write(const char *path, const struct function_set *set, struct buf *err);
/* ST_NOT_FOUND: there is none. Else *err. */
enum status function_file_read(const char *path, struct buf *out, struct buf *err);

#endif
