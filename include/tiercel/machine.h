#ifndef TIERCEL_MACHINE_H
#define TIERCEL_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* What this process may use, and uses: the machine, narrowed by the cgroup (v2, else v1).
 * Any thread. `source` says in words where the figure is from; NULL is allowed. */
int64_t machine_memory_bytes(const char **source);
int machine_cpus(const char **source);

/* Resident memory of this process, in bytes; 0 when /proc cannot be read. */
int64_t machine_rss_bytes(void);

#endif
