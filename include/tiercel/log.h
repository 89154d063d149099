#ifndef TIERCEL_LOG_H
#define TIERCEL_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* One line per event, plain or JSON, to a file or standard output. Any thread; a line is
 * one write(), so lines never mix. Repeats of one call site are limited to LOG_BURST a
 * second; what was left out is counted in the next line. */
enum log_level { LOG_DEBUG, LOG_VERBOSE, LOG_NOTICE, LOG_WARNING, LOG_LEVELS };
enum log_format { LOG_PLAIN, LOG_JSON };

#define LOG_BURST 20

/* What lines are about, and may have a level of its own. A name that is not here has the general level. */
#define LOG_MODULE_LIST(X) \
    X(acl) X(check) X(conf) X(debug) X(disk) X(http) X(main) X(net) X(script) X(slow) X(tier) X(upstream) X(warm)
enum log_module {
#define LOG_ENUM(name) LOG_MODULE_##name,
    LOG_MODULE_LIST(LOG_ENUM)
#undef LOG_ENUM
        LOG_MODULES
};

/* `file` "" = standard output. false: cannot be opened, errno says why; the old one stays. */
bool log_setup(const char *file, enum log_level level, enum log_format format);
bool log_reopen(void); /* SIGHUP */

/* The general level, and those of modules: words "module=level", apart by blanks. false: `why` (static) says what is
 * wrong, and nothing has changed. log_check_modules() only looks. */
void log_set_level(enum log_level level);
bool log_set_modules(const char *words, const char **why);
bool log_check_modules(const char *words, const char **why);

/* ---- rotation: rotate.c ---- */

/* A log file of max_bytes becomes FILE.1.zst, that one FILE.2.zst and so on; at most max_files are kept. All of it is
 * done by a thread of its own. pack() compresses a file into a new one; where it says false (no room), the file is kept
 * plain, as FILE.1. A log that another process writes to, too, is left alone.
 *
 * log_rotate_start(): once, when signals are blocked; false: no thread could be made. log_rotate_set(): any thread;
 * max_bytes 0 never rotates. log_rotate_stop(): finishes what is under way; the main thread. */
typedef bool (*log_pack_fn)(const char *from, const char *to);
bool log_rotate_start(log_pack_fn pack);
void log_rotate_set(int64_t max_bytes, int max_files);
void log_rotate_stop(void);

/* ---- writing ---- */

extern _Atomic int log_level_of[LOG_MODULES + 1]; /* the last: of names that are not in the list */

/* With a literal the compiler leaves only the number. */
static inline int log_module_id(const char *name)
{
#define LOG_IS(m)                        \
    if (__builtin_strcmp(name, #m) == 0) \
        return LOG_MODULE_##m;
    LOG_MODULE_LIST(LOG_IS)
#undef LOG_IS
    return LOG_MODULES;
}

static inline bool log_enabled(enum log_level level, const char *module)
{
    return (int)level >= atomic_load_explicit(&log_level_of[log_module_id(module)], memory_order_relaxed);
}

struct log_site {
    int64_t window_ms;
    uint32_t count;
};

void log_write(struct log_site *site, enum log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define LOG_AT(level, module, ...)                             \
    do {                                                       \
        if (log_enabled(level, module)) {                      \
            static struct log_site log_site_;                  \
            log_write(&log_site_, level, module, __VA_ARGS__); \
        }                                                      \
    } while (0)

#define log_debug(module, ...) LOG_AT(LOG_DEBUG, module, __VA_ARGS__)
#define log_verbose(module, ...) LOG_AT(LOG_VERBOSE, module, __VA_ARGS__)
#define log_notice(module, ...) LOG_AT(LOG_NOTICE, module, __VA_ARGS__)
#define log_warning(module, ...) LOG_AT(LOG_WARNING, module, __VA_ARGS__)

#endif
