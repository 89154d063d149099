#ifndef TIERCEL_ALLOC_H
#define TIERCEL_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* All memory that a limit of ours speaks about comes from here, so that it is counted
 * by what it is for. Sizes are what the allocator really holds (malloc_usable_size), in
 * bytes. Out of memory aborts: a cache with an honest maxmemory does not get there.
 * Any thread; memory may be freed by another thread than the one that got it. */
enum mem_class {
    MEM_DATA,   /* objects, tables, the disk index: what maxmemory bounds */
    MEM_CLIENT, /* query buffers, replies, parked requests: maxmemory-clients */
    MEM_OTHER,  /* the rest */
    MEM_CLASSES
};

void *mem_alloc(enum mem_class cls, size_t bytes);
void *mem_calloc(enum mem_class cls, size_t bytes);
void *mem_realloc(enum mem_class cls, void *ptr, size_t bytes);
void mem_free(enum mem_class cls, void *ptr);
/* The same, for who knows how many bytes were asked for: the allocator need not look for them,
 * which for memory that was not used lately is a cache miss. */
void mem_free_sized(enum mem_class cls, void *ptr, size_t bytes);
char *mem_strdup(enum mem_class cls, const char *str);

/* What the allocator really set aside for `ptr`. */
size_t mem_usable(const void *ptr);
size_t mem_usable_sized(const void *ptr, size_t bytes); /* the same, of as many bytes as were asked for */
/* Is an allocation of `a` bytes as good as one of `b`, to the allocator too? */
bool mem_is_as(size_t a, size_t b);

/* Bytes held in a class now, all threads together; may trail other threads by a little. */
int64_t mem_class_bytes(enum mem_class cls);
int64_t mem_used_bytes(void);
int64_t mem_peak_bytes(void); /* the most that mem_used_bytes() ever answered */

/* Name and version of the allocator, as INFO's mem_allocator. */
const char *mem_allocator_name(void);

/* Returns free pages to the system (MEMORY PURGE); mem_decay(): those that were free for a while, also of threads that
 * have nothing to do, which the allocator would leave until they have. Any thread. */
void mem_purge(void);
void mem_decay(void);
/* From now on free pages go back at once, whatever that costs. At start. */
void mem_keep_no_pages(void);

#endif
