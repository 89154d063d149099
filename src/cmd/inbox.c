#include "tiercel/inbox.h"

#include <pthread.h>

#include "tiercel/check.h"
#include "tiercel/cmd.h"
#include "tiercel/keyspace.h"
#include "tiercel/mbox.h"

/* Of its own, because it may be in the mailbox when the worker's part is gone. */
struct wake {
    struct mbox_msg msg;
    struct inbox *inbox; /* NULL: gone */
};

struct inbox {
    struct worker *w;
    void (*after)(struct worker *w, const struct session *within);
    struct list held; /* struct held */
    pthread_mutex_t lock;
    struct list queue;   /* struct delivery; under `lock` */
    _Atomic bool posted; /* `wake` is on its way; changed under `lock` */
    struct wake *wake;
};

struct delivery {
    struct list link;
    struct inbox_msg *m;
};

/* What came for a session while it was within a reply. */
struct held {
    struct list link;
    struct session *s;
    struct chain out;
};

static struct inbox *inbox_of(const struct worker *w)
{
    return w->cmd_worker->inbox;
}

void inbox_unref(struct inbox_msg *m)
{
    if (atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) == 1)
        m->free(m);
}

static void wake_locked(struct inbox *in)
{
    if (in->posted)
        return;
    in->posted = true;
    mbox_post(in->w->mbox, &in->wake->msg);
}

void inbox_append(struct worker *w, struct inbox_msg *m)
{
    struct inbox *in = inbox_of(w);
    struct delivery *d = mem_alloc(MEM_OTHER, sizeof(*d));

    d->m = m;
    pthread_mutex_lock(&in->lock);
    list_push_back(&in->queue, &d->link);
    wake_locked(in);
    pthread_mutex_unlock(&in->lock);
}

void inbox_take(struct worker *w, struct list *to)
{
    struct inbox *in = inbox_of(w);

    pthread_mutex_lock(&in->lock);
    list_splice(to, &in->queue);
    pthread_mutex_unlock(&in->lock);
}

/* Before anything newer: what had to wait for the end of a reply. */
static void release_held(struct inbox *in, const struct session *within)
{
    for (struct list *l = in->held.next, *next; l != &in->held; l = next) {
        struct held *held = LIST_ENTRY(l, struct held, link);
        struct session *s = held->s;
        next = l->next;
        if (s == within)
            continue;
        chain_move(&s->out, &held->out);
        inbox_session_gone(s);
        s->ops->wake(s);
    }
}

void inbox_deliver(struct worker *w, struct list *batch, const struct session *within)
{
    struct inbox *in = inbox_of(w);

    release_held(in, within);
    for (struct list *l; (l = list_pop_front(batch)) != NULL;) {
        struct delivery *d = LIST_ENTRY(l, struct delivery, link);
        d->m->deliver(w, d->m, within);
        inbox_unref(d->m);
        mem_free(MEM_OTHER, d);
    }
    if (in->after)
        in->after(w, within);
}

void inbox_drain(struct worker *w, const struct session *within)
{
    struct list batch;

    list_init(&batch);
    inbox_take(w, &batch);
    inbox_deliver(w, &batch, within);
}

void session_catch_up(struct worker *w)
{
    const struct inbox *in = inbox_of(w);

    if (UNLIKELY(atomic_load_explicit(&in->posted, memory_order_acquire)))
        inbox_drain(w, NULL);
}

static void on_wake(struct mbox_msg *msg, void *owner)
{
    struct wake *wake = LIST_ENTRY(msg, struct wake, msg);
    struct inbox *in = wake->inbox;
    (void)owner;

    if (!in) {
        mem_free(MEM_OTHER, wake);
        return;
    }
    pthread_mutex_lock(&in->lock);
    in->posted = false;
    pthread_mutex_unlock(&in->lock);
    inbox_drain(in->w, NULL);
}

const struct session *inbox_within(const struct call *c)
{
    return c->in_exec || c->r.out != &c->s->out ? c->s : NULL;
}

struct chain *inbox_out(struct session *s, int obuf_class, const struct session *within)
{
    struct inbox *in = inbox_of(s->w);
    int64_t hard = s->w->conf->obuf[obuf_class].hard;

    if (s->close_asap || s->close_after_reply)
        return NULL;
    s->ops->wake(s);
    /* Over its limit it is closed at the next flush: what comes in the same turn is not added. */
    if (hard != 0 && s->out.bytes > (uint64_t)hard)
        return NULL;
    if (s != within)
        return &s->out;
    if (!s->held) {
        s->held = mem_calloc(MEM_CLIENT, sizeof(*s->held));
        s->held->s = s;
        chain_init(&s->held->out);
        list_push_back(&in->held, &s->held->link);
        pthread_mutex_lock(&in->lock);
        wake_locked(in);
        pthread_mutex_unlock(&in->lock);
    }
    return &s->held->out;
}

void inbox_session_gone(struct session *s)
{
    struct held *held = s->held;

    if (!held)
        return;
    list_remove(&held->link);
    chain_deinit(&held->out);
    mem_free(MEM_CLIENT, held);
    s->held = NULL;
}

void inbox_set_after(struct worker *w, void (*after)(struct worker *w, const struct session *within))
{
    inbox_of(w)->after = after;
}

void inbox_worker_init(struct worker *w)
{
    struct inbox *in = mem_calloc(MEM_OTHER, sizeof(*in));

    in->w = w;
    in->wake = mem_calloc(MEM_OTHER, sizeof(*in->wake));
    in->wake->inbox = in;
    in->wake->msg.run = on_wake;
    list_init(&in->held);
    list_init(&in->queue);
    CHECK(pthread_mutex_init(&in->lock, NULL) == 0);
    w->cmd_worker->inbox = in;
}

void inbox_worker_deinit(struct worker *w)
{
    struct inbox *in = inbox_of(w);

    inbox_drain(w, NULL); /* to nobody */
    if (in->posted)
        in->wake->inbox = NULL;
    else
        mem_free(MEM_OTHER, in->wake);
    pthread_mutex_destroy(&in->lock);
    mem_free(MEM_OTHER, in);
    w->cmd_worker->inbox = NULL;
}
