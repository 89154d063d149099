#include "tiercel/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void (*check_hook)(const char *message);

void check_set_hook(void (*hook)(const char *message))
{
    check_hook = hook;
}

void check_failed(const char *expr, const char *file, int line, const char *func)
{
    /* No allocation and no stdio locks: the heap may be what is broken. */
    char message[512];
    int n = snprintf(message, sizeof(message), "CHECK(%s) failed at %s:%d in %s()", expr, file, line, func);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof(message) ? (size_t)n : sizeof(message) - 1;

    void (*hook)(const char *) = check_hook;
    check_hook = NULL; /* a check that fails inside the hook must not call it again */
    if (write(STDERR_FILENO, message, len) < 0 || write(STDERR_FILENO, "\n", 1) < 0)
        len = 0; /* nowhere to say it; the abort remains */
    if (hook)
        hook(message);
    abort();
}
