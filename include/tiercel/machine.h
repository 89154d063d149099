#ifndef TIERCEL_MACHINE_H
#define TIERCEL_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* What this process may use, and uses: the machine, narrowed by its cgroup and by all that one is in (v2, v1, or both
 * side by side). Any thread; reads files of /proc and /sys/fs/cgroup, so not often. */

struct machine {
    int64_t memory_bytes;      /* the least of all limits; at least 1 */
    const char *memory_source; /* in words, static: where the figure is from */
    int cpus;                  /* at least 1; a quota of one and a half counts as two */
    const char *cpus_source;
};

/* `root` is in front of all paths: "" for the machine itself. */
void machine_get(const char *root, struct machine *out);

/* The same by halves. `source` may be NULL. */
int64_t machine_memory_bytes(const char **source);
int machine_cpus(const char **source);

/* Resident memory of this process, in bytes; 0 when /proc cannot be read. */
int64_t machine_rss_bytes(void);

/* By what it is: memory of its own, which counts against a limit whatever happens; pages of files, of which most can be
 * given up (the disk tier's map, the program); shared memory. Zeros when /proc cannot be read. */
struct machine_rss {
    int64_t anon, file, shmem;
};
void machine_get_rss(struct machine_rss *out);

#endif
