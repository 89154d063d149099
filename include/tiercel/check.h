#ifndef TIERCEL_CHECK_H
#define TIERCEL_CHECK_H

/* CHECK() is for what cannot happen, and stays on in release builds: it prints the
 * expression and its place and aborts. What a client, a disk or a peer can cause is a
 * status (status.h), never a CHECK. */
#define CHECK(cond)                                            \
    do {                                                       \
        if (__builtin_expect(!(cond), 0))                      \
            check_failed(#cond, __FILE__, __LINE__, __func__); \
    } while (0)

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

__attribute__((noreturn, cold)) void check_failed(const char *expr, const char *file, int line, const char *func);

/* Called once with the message of a failed check, before the abort, so that it reaches
 * the log. Set at start, before other threads exist. */
void check_set_hook(void (*hook)(const char *message));

#endif
