#include "tiercel/alloc.h"

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef TIERCEL_JEMALLOC
#include <jemalloc/jemalloc.h>
#endif

#include "tiercel/check.h"

/* Each thread adds to a block of its own, so counting costs a thread-local add. Blocks are
 * never freed and their list only grows, so a reader sums it without a lock. The block of a
 * thread that ended keeps its counts and is given to the next thread that starts: the sum
 * stays right without folding anything. */
struct alloc_block {
    _Alignas(64) _Atomic int64_t bytes[MEM_CLASSES]; /* written by the owning thread alone */
    struct alloc_block *next;
    bool owned; /* under blocks_lock */
};

static _Atomic(struct alloc_block *) blocks;
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t blocks_key;
static pthread_once_t blocks_once = PTHREAD_ONCE_INIT;
static _Atomic int64_t peak_bytes;
static _Thread_local struct alloc_block *my_block;

static void block_release(void *ptr)
{
    struct alloc_block *b = ptr;
    my_block = NULL; /* another destructor of this thread may still free memory: it registers anew */
    pthread_mutex_lock(&blocks_lock);
    b->owned = false;
    pthread_mutex_unlock(&blocks_lock);
}

static void blocks_setup(void)
{
    CHECK(pthread_key_create(&blocks_key, block_release) == 0);
}

__attribute__((noinline, cold)) static struct alloc_block *block_acquire(void)
{
    pthread_once(&blocks_once, blocks_setup);
    pthread_mutex_lock(&blocks_lock);
    struct alloc_block *b = atomic_load_explicit(&blocks, memory_order_relaxed);
    while (b && b->owned)
        b = b->next;
    if (!b) {
        b = aligned_alloc(_Alignof(struct alloc_block), sizeof(*b));
        CHECK(b != NULL);
        memset(b, 0, sizeof(*b));
        b->next = atomic_load_explicit(&blocks, memory_order_relaxed);
        atomic_store_explicit(&blocks, b, memory_order_release);
    }
    b->owned = true;
    pthread_mutex_unlock(&blocks_lock);
    CHECK(pthread_setspecific(blocks_key, b) == 0);
    my_block = b;
    return b;
}

static inline void count(enum mem_class cls, int64_t delta)
{
    struct alloc_block *b = my_block;
    if (UNLIKELY(!b))
        b = block_acquire();
    int64_t was = atomic_load_explicit(&b->bytes[cls], memory_order_relaxed);
    atomic_store_explicit(&b->bytes[cls], was + delta, memory_order_relaxed);
}

int64_t mem_class_bytes(enum mem_class cls)
{
    int64_t sum = 0;
    for (struct alloc_block *b = atomic_load_explicit(&blocks, memory_order_acquire); b; b = b->next)
        sum += atomic_load_explicit(&b->bytes[cls], memory_order_relaxed);
    return sum > 0 ? sum : 0; /* blocks are not read at one instant: a free may be seen before its allocation */
}

int64_t mem_used_bytes(void)
{
    int64_t sum = 0;
    for (struct alloc_block *b = atomic_load_explicit(&blocks, memory_order_acquire); b; b = b->next) {
        for (int cls = 0; cls < MEM_CLASSES; cls++)
            sum += atomic_load_explicit(&b->bytes[cls], memory_order_relaxed);
    }
    if (sum < 0)
        sum = 0;
    int64_t peak = atomic_load_explicit(&peak_bytes, memory_order_relaxed);
    while (sum > peak && !atomic_compare_exchange_weak_explicit(&peak_bytes, &peak, sum, memory_order_relaxed,
                                                                memory_order_relaxed)) {
    }
    return sum;
}

int64_t mem_peak_bytes(void)
{
    mem_used_bytes();
    return atomic_load_explicit(&peak_bytes, memory_order_relaxed);
}

size_t mem_usable(const void *ptr)
{
    return malloc_usable_size((void *)ptr);
}

char *mem_strdup(enum mem_class cls, const char *str)
{
    size_t len = strlen(str) + 1;
    return memcpy(mem_alloc(cls, len), str, len);
}

#ifdef TIERCEL_JEMALLOC

/* Read by jemalloc before main(). Few arenas, because each keeps free pages of its own; a
 * short decay, because a cache's memory limit is shared with its neighbours. */
const char *malloc_conf = "background_thread:false,narenas:4,dirty_decay_ms:200,muzzy_decay_ms:0";

/* nallocx() and sdallocx() spare the look-up of a block's size that malloc and free repeat. */
void *mem_alloc(enum mem_class cls, size_t bytes)
{
    bytes += bytes == 0;
    void *ptr = malloc(bytes);
    CHECK(ptr != NULL);
    count(cls, (int64_t)nallocx(bytes, 0));
    return ptr;
}

/* Blocks of whole pages start at a random line of a page, if they need not start at a page, and touch one more. */
#define LARGE_BYTES 16384
#define LARGE_ALIGN MALLOCX_ALIGN(4096)

void *mem_calloc(enum mem_class cls, size_t bytes)
{
    bytes += bytes == 0;
    void *ptr = bytes < LARGE_BYTES ? calloc(1, bytes) : mallocx(bytes, MALLOCX_ZERO | LARGE_ALIGN);
    CHECK(ptr != NULL);
    count(cls, (int64_t)nallocx(bytes, 0));
    return ptr;
}

void mem_free(enum mem_class cls, void *ptr)
{
    if (!ptr)
        return;
    size_t usable = sallocx(ptr, 0);
    count(cls, -(int64_t)usable);
    sdallocx(ptr, usable, 0);
}

void mem_free_sized(enum mem_class cls, void *ptr, size_t bytes)
{
    if (!ptr)
        return;
    bytes += bytes == 0;
    count(cls, -(int64_t)nallocx(bytes, 0));
    sdallocx(ptr, bytes, 0);
}

size_t mem_usable_sized(const void *ptr, size_t bytes)
{
    (void)ptr;
    return nallocx(bytes + (bytes == 0), 0);
}

bool mem_is_as(size_t a, size_t b)
{
    return a == b || nallocx(a, 0) == nallocx(b, 0);
}

#define STR_(x) #x
#define STR(x) STR_(x)

const char *mem_allocator_name(void)
{
    return "jemalloc-" STR(JEMALLOC_VERSION_MAJOR) "." STR(JEMALLOC_VERSION_MINOR) "." STR(JEMALLOC_VERSION_BUGFIX);
}

void mem_purge(void)
{
    mallctl("arena." STR(MALLCTL_ARENAS_ALL) ".purge", NULL, NULL, NULL, 0);
}

void mem_decay(void)
{
    mallctl("arena." STR(MALLCTL_ARENAS_ALL) ".decay", NULL, NULL, NULL, 0);
}

void mem_keep_no_pages(void)
{
    ssize_t at_once = 0;
    unsigned arenas = 0;
    size_t len = sizeof(arenas);
    char name[64];

    mallctl("arenas.dirty_decay_ms", NULL, NULL, &at_once, sizeof(at_once));
    if (mallctl("arenas.narenas", &arenas, &len, NULL, 0) != 0)
        return;
    for (unsigned i = 0; i < arenas; i++) { /* one that nobody uses yet says that it is not there */
        snprintf(name, sizeof(name), "arena.%u.dirty_decay_ms", i);
        mallctl(name, NULL, NULL, &at_once, sizeof(at_once));
    }
}

#else

void *mem_alloc(enum mem_class cls, size_t bytes)
{
    void *ptr = malloc(bytes + (bytes == 0));
    CHECK(ptr != NULL);
    count(cls, (int64_t)malloc_usable_size(ptr));
    return ptr;
}

void *mem_calloc(enum mem_class cls, size_t bytes)
{
    void *ptr = calloc(1, bytes + (bytes == 0));
    CHECK(ptr != NULL);
    count(cls, (int64_t)malloc_usable_size(ptr));
    return ptr;
}

void mem_free(enum mem_class cls, void *ptr)
{
    if (!ptr)
        return;
    count(cls, -(int64_t)malloc_usable_size(ptr));
    free(ptr);
}

void mem_free_sized(enum mem_class cls, void *ptr, size_t bytes)
{
    (void)bytes;
    mem_free(cls, ptr);
}

size_t mem_usable_sized(const void *ptr, size_t bytes)
{
    (void)bytes;
    return mem_usable(ptr);
}

bool mem_is_as(size_t a, size_t b)
{
    return a == b;
}

const char *mem_allocator_name(void)
{
    return "libc";
}

void mem_purge(void)
{
    malloc_trim(0);
}

void mem_decay(void)
{
}

void mem_keep_no_pages(void)
{
}

#endif

void *mem_realloc(enum mem_class cls, void *ptr, size_t bytes)
{
    if (!ptr)
        return mem_alloc(cls, bytes);
    int64_t was = (int64_t)malloc_usable_size(ptr);
    ptr = realloc(ptr, bytes + (bytes == 0));
    CHECK(ptr != NULL);
    count(cls, (int64_t)malloc_usable_size(ptr) - was);
    return ptr;
}
