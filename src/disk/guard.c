/* A page of the map that cannot be read (the medium, or a file that somebody made shorter) ends
 * a process by SIGBUS. Here it reads as zeros instead, which LMDB and we take for damage, and the
 * map counts as torn: nothing is committed through it any more, and the writer opens the file anew. */
#include "disk_priv.h"

#include <signal.h>
#include <sys/mman.h>

#define GUARDED_MAX 8 /* maps at a time */

static struct guarded {
    _Atomic uintptr_t from, to; /* 0, 0: free */
    _Atomic bool torn;
    size_t page;
} guarded[GUARDED_MAX];

static pthread_once_t installed = PTHREAD_ONCE_INIT;

/* Only what a signal handler may call. */
static void on_bus_error(int sig, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    (void)context;
    for (int i = 0; i < GUARDED_MAX; i++) {
        struct guarded *g = &guarded[i];
        if (at < atomic_load(&g->from) || at >= atomic_load(&g->to))
            continue;
        void *page = (void *)(at / g->page * g->page); /* NOLINT(performance-no-int-to-ptr) */
        if (mmap(page, g->page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        atomic_store(&g->torn, true);
        return;
    }
    signal(sig, SIG_DFL); /* not ours: it happens again, and ends the process */
}

static void install(void)
{
    struct sigaction sa = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGBUS, &sa, NULL);
}

/* Where LMDB has mapped the file: each of its pages begins with its own number. */
static uintptr_t map_base(struct disk *d, MDB_txn *txn)
{
    MDB_cursor *c;
    MDB_val key, val;
    uintptr_t base = 0;
    if (mdb_cursor_open(txn, d->dbi_meta, &c) != 0)
        return 0;
    if (mdb_cursor_get(c, &key, &val, MDB_FIRST) == 0) {
        uintptr_t page = (uintptr_t)key.mv_data / d->page * d->page;
        base = page - (uintptr_t)load64((const void *)page) * d->page; /* NOLINT(performance-no-int-to-ptr) */
    }
    mdb_cursor_close(c);
    return base;
}

void guard_map(struct disk *d, MDB_txn *txn)
{
    uintptr_t base = map_base(d, txn), none = 0;
    pthread_once(&installed, install);
    guard_unmap(d);
    for (int i = 0; i < GUARDED_MAX && base != 0; i++) {
        struct guarded *g = &guarded[i];
        if (!atomic_compare_exchange_strong(&g->from, &none, base)) {
            none = 0;
            continue;
        }
        g->page = d->page;
        atomic_store(&g->torn, false);
        atomic_store(&g->to, base + d->map_bytes);
        d->guarded = g;
        return;
    }
}

void guard_unmap(struct disk *d)
{
    struct guarded *g = d->guarded;
    if (g == NULL)
        return;
    atomic_store(&g->to, 0);
    atomic_store(&g->from, 0);
    d->guarded = NULL;
}

bool guard_torn(const struct disk *d)
{
    return d->guarded != NULL && atomic_load(&d->guarded->torn);
}
