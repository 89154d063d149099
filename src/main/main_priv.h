#ifndef TIERCEL_MAIN_PRIV_H
#define TIERCEL_MAIN_PRIV_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiercel/conf.h"
#include "tiercel/machine.h"

/* ---- settings.c ---- */

/* What can be said of settings before anything is opened, made or bound: do they go together, can the files be read that
 * they name, is `dir` usable. false: err is one line. */
bool settings_check(const struct conf *c, char err[256]);

void settings_parent(const char *dir, char out[PATH_MAX]); /* where dir is, or would be made */

/* What maxmemory 0 stands for: percent of the machine or cgroup, less what the process needs in any case. The rest is for
 * clients, the allocator, and the page cache, through which the disk tier is read and written. */
#define MAXMEMORY_SHARE 60
/* The machine's memory, less that. */
int64_t settings_usable_memory(int64_t bytes);

/* ---- check.c: tiercel --check ---- */

/* Prints a line per item, "ok|advice|error name: text", and says what to exit with: 0, or 1 when it could not start.
 * warnings: of reading the settings, a line each. */
int check_print(const struct conf *c, struct slice warnings);

/* ---- daemon.c ---- */

/* Goes to the background; the parent stays until daemon_ready(), and exits with 0 then, or with what the child exits
 * with. Before there are threads. false: errno. */
bool daemon_begin(void);
/* Lets go of the terminal. Does nothing when it did not begin. */
void daemon_ready(void);

#endif
