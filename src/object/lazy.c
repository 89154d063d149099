/* Values of many elements are freed by a thread of their own: a million of them takes a tenth of a second, in which a
 * loop would serve nobody. */
#include <pthread.h>
#include <stdatomic.h>

#include "object_priv.h"
#include "tiercel/list.h"

#define LAZY_MIN 512 /* elements */

struct lazy {
    struct list link;
    const struct object_ops *ops;
    enum obj_enc enc;
    void *value;
    size_t bytes;
};

static struct {
    pthread_mutex_t mu;
    pthread_cond_t wake;
    pthread_t thread;
    struct list queue;
    bool stopping;
    _Atomic bool running;
    _Atomic int64_t pending, pending_bytes, freed;
} lazy = {.mu = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void lazy_run_one(struct lazy *l)
{
    l->ops->destroy(l->enc, l->value);
    atomic_fetch_sub(&lazy.pending_bytes, (int64_t)l->bytes);
    atomic_fetch_sub(&lazy.pending, 1);
    atomic_fetch_add(&lazy.freed, 1);
    mem_free(MEM_OTHER, l);
}

static void *lazy_main(void *arg)
{
    struct list *l;
    (void)arg;

    pthread_setname_np(pthread_self(), "lazy-free");
    pthread_mutex_lock(&lazy.mu);
    for (;;) {
        while ((l = list_pop_front(&lazy.queue))) {
            pthread_mutex_unlock(&lazy.mu);
            lazy_run_one(LIST_ENTRY(l, struct lazy, link));
            pthread_mutex_lock(&lazy.mu);
        }
        if (lazy.stopping)
            break;
        pthread_cond_wait(&lazy.wake, &lazy.mu);
    }
    pthread_mutex_unlock(&lazy.mu);
    return NULL;
}

bool object_lazy_start(void)
{
    list_init(&lazy.queue);
    lazy.stopping = false;
    if (pthread_create(&lazy.thread, NULL, lazy_main, NULL) != 0)
        return false;
    atomic_store(&lazy.running, true);
    return true;
}

void object_lazy_stop(void)
{
    if (!atomic_exchange(&lazy.running, false))
        return;
    pthread_mutex_lock(&lazy.mu);
    lazy.stopping = true;
    pthread_cond_signal(&lazy.wake);
    pthread_mutex_unlock(&lazy.mu);
    pthread_join(lazy.thread, NULL);
}

void object_lazy_figures(struct object_lazy *out)
{
    *out = (struct object_lazy){atomic_load(&lazy.pending), atomic_load(&lazy.pending_bytes), atomic_load(&lazy.freed)};
}

int64_t object_lazy_bytes(void)
{
    return atomic_load_explicit(&lazy.pending_bytes, memory_order_relaxed);
}

void value_destroy(const struct object_ops *ops, enum obj_enc enc, void *value)
{
    if (LIKELY(ops->len(enc, value) < LAZY_MIN) || !atomic_load_explicit(&lazy.running, memory_order_relaxed)) {
        ops->destroy(enc, value);
        return;
    }
    struct lazy *l = mem_alloc(MEM_OTHER, sizeof(*l));
    *l = (struct lazy){.ops = ops, .enc = enc, .value = value, .bytes = ops->bytes(enc, value)};
    atomic_fetch_add(&lazy.pending, 1);
    atomic_fetch_add(&lazy.pending_bytes, (int64_t)l->bytes);
    pthread_mutex_lock(&lazy.mu);
    list_push_back(&lazy.queue, &l->link);
    pthread_cond_signal(&lazy.wake);
    pthread_mutex_unlock(&lazy.mu);
}
