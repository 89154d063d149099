#ifndef TIERCEL_LOG_H
#define TIERCEL_LOG_H

#include <stdbool.h>
#include <stdint.h>

/* One line per event, plain or JSON, to a file or standard output. Any thread; a line is
 * one write(), so lines never mix. Repeats of one call site are limited to LOG_BURST a
 * second; what was left out is counted in the next line. */
enum log_level { LOG_DEBUG, LOG_VERBOSE, LOG_NOTICE, LOG_WARNING, LOG_LEVELS };
enum log_format { LOG_PLAIN, LOG_JSON };

#define LOG_BURST 20

/* `file` "" = standard output. false: cannot be opened, errno says why; the old one stays. */
bool log_setup(const char *file, enum log_level level, enum log_format format);
bool log_reopen(void); /* SIGHUP */
void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);

struct log_site {
    int64_t window_ms;
    uint32_t count;
};

void log_write(struct log_site *site, enum log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define LOG_AT(level, module, ...)                             \
    do {                                                       \
        if (log_enabled(level)) {                              \
            static struct log_site log_site_;                  \
            log_write(&log_site_, level, module, __VA_ARGS__); \
        }                                                      \
    } while (0)

#define log_debug(module, ...) LOG_AT(LOG_DEBUG, module, __VA_ARGS__)
#define log_verbose(module, ...) LOG_AT(LOG_VERBOSE, module, __VA_ARGS__)
#define log_notice(module, ...) LOG_AT(LOG_NOTICE, module, __VA_ARGS__)
#define log_warning(module, ...) LOG_AT(LOG_WARNING, module, __VA_ARGS__)

#endif
