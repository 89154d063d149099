/* All users, and the sessions that are theirs. */
#include "tiercel/pubsub.h"

#include "cmd/acl_priv.h"

#define DEFAULT_NAME SLICE_LIT("default")

/* ---- by name ---- */

static int compare(struct slice a, struct slice b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int d = n ? memcmp(a.ptr, b.ptr, n) : 0;

    return d ? d : (a.len > b.len) - (a.len < b.len);
}

/* Where it is, or would be. */
static int find_locked(const struct acl *a, struct slice name, bool *found)
{
    int lo = 0, hi = a->n;

    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (compare(a->users[mid]->name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *found = lo < a->n && slice_eq(a->users[lo]->name, name);
    return lo;
}

static void changed_locked(struct acl *a)
{
    bool found;
    int i = find_locked(a, DEFAULT_NAME, &found);

    CHECK(found);
    atomic_store_explicit(&a->default_nopass, a->users[i]->nopass, memory_order_relaxed);
    atomic_store_explicit(&a->default_on, a->users[i]->on, memory_order_relaxed);
    atomic_fetch_add_explicit(a->generation, 1, memory_order_release);
}

static void insert_locked(struct acl *a, int i, struct acl_user *u)
{
    if (a->n == a->cap) {
        a->cap = a->cap ? a->cap * 2 : 8;
        a->users = mem_realloc(MEM_OTHER, a->users, (size_t)a->cap * sizeof(*a->users));
    }
    memmove(a->users + i + 1, a->users + i, (size_t)(a->n - i) * sizeof(*a->users));
    a->users[i] = u;
    a->n++;
}

struct acl_user *acl_get(struct acl *a, struct slice name)
{
    bool found;

    pthread_mutex_lock(&a->lock);
    int i = find_locked(a, name, &found);
    struct acl_user *u = found ? acl_user_ref(a->users[i]) : NULL;
    pthread_mutex_unlock(&a->lock);
    return u;
}

bool acl_put(struct acl *a, struct acl_user *u)
{
    bool found, shrank = false;
    struct acl_user *old = NULL;

    acl_user_ready(u);
    pthread_mutex_lock(&a->lock);
    int i = find_locked(a, u->name, &found);
    if (found) {
        old = a->users[i];
        u->id = old->id;
        shrank = acl_channels_shrank(old, u);
        a->users[i] = u;
    } else {
        u->id = ++a->next_id;
        insert_locked(a, i, u);
    }
    changed_locked(a);
    pthread_mutex_unlock(&a->lock);
    acl_user_unref(old);
    return shrank;
}

struct acl_user *acl_edit(struct acl *a, struct slice name, bool all_channels)
{
    struct acl_user *old = acl_get(a, name);
    struct acl_user *u = old ? acl_user_copy(old) : acl_user_create(name, all_channels);

    acl_user_unref(old);
    return u;
}

bool acl_delete(struct acl *a, struct slice name)
{
    struct acl_user *gone = NULL;
    bool found;

    pthread_mutex_lock(&a->lock);
    int i = find_locked(a, name, &found);
    if (found) {
        gone = a->users[i];
        a->n--;
        memmove(a->users + i, a->users + i + 1, (size_t)(a->n - i) * sizeof(*a->users));
        changed_locked(a);
    }
    pthread_mutex_unlock(&a->lock);
    acl_user_unref(gone);
    return found;
}

/* Whoever was a user before is none now, but for the default one. */
void acl_replace(struct acl *a, struct acl_user **users, int n)
{
    struct acl old = {.n = 0};
    bool found;

    pthread_mutex_lock(&a->lock);
    uint64_t default_id = a->n ? a->users[find_locked(a, DEFAULT_NAME, &found)]->id : 0;
    old.users = a->users;
    old.n = a->n;
    a->users = NULL;
    a->n = a->cap = 0;
    for (int i = 0; i < n; i++) {
        int at = find_locked(a, users[i]->name, &found);
        CHECK(!found);
        acl_user_ready(users[i]);
        users[i]->id = slice_eq(users[i]->name, DEFAULT_NAME) && default_id ? default_id : ++a->next_id;
        insert_locked(a, at, users[i]);
    }
    changed_locked(a);
    pthread_mutex_unlock(&a->lock);
    acl_all_free(old.users, old.n);
    mem_free(MEM_OTHER, users);
}

struct acl_user **acl_all(struct acl *a, int *n)
{
    pthread_mutex_lock(&a->lock);
    struct acl_user **users = mem_alloc(MEM_OTHER, (size_t)(a->n + 1) * sizeof(*users));
    for (int i = 0; i < a->n; i++)
        users[i] = acl_user_ref(a->users[i]);
    *n = a->n;
    pthread_mutex_unlock(&a->lock);
    return users;
}

void acl_all_free(struct acl_user **users, int n)
{
    for (int i = 0; i < n; i++)
        acl_user_unref(users[i]);
    mem_free(MEM_OTHER, users);
}

/* ---- the default user ---- */

struct acl_user *acl_default_user(void)
{
    struct acl_user *u = acl_user_create(DEFAULT_NAME, true);

    CHECK(!acl_user_rule(u, SLICE_LIT("on"), true) && !acl_user_rule(u, SLICE_LIT("nopass"), true));
    CHECK(!acl_user_rule(u, SLICE_LIT("allkeys"), true) && !acl_user_rule(u, SLICE_LIT("allcommands"), true));
    return u;
}

bool acl_default_nopass(const struct acl *a)
{
    return atomic_load_explicit(&a->default_nopass, memory_order_relaxed);
}

bool acl_default_open(const struct acl *a)
{
    return acl_default_nopass(a) && atomic_load_explicit(&a->default_on, memory_order_relaxed);
}

static uint64_t acl_generation(const struct acl *a)
{
    return atomic_load_explicit(a->generation, memory_order_relaxed);
}

static void set_password(struct acl_user *u, struct slice password)
{
    struct buf rule;

    buf_init(&rule, MEM_OTHER);
    if (password.len) {
        buf_byte(&rule, '>');
        buf_slice_append(&rule, password);
        CHECK(!acl_user_rule(u, SLICE_LIT("resetpass"), true));
    } else {
        buf_printf(&rule, "nopass");
    }
    CHECK(!acl_user_rule(u, buf_slice(&rule), true));
    explicit_bzero(rule.ptr, rule.len);
    buf_deinit(&rule);
}

void acl_set_requirepass(struct acl *a, struct slice password)
{
    struct acl_user *u = acl_edit(a, DEFAULT_NAME, true);

    set_password(u, password);
    acl_put(a, u);
}

struct acl *acl_create(const struct conf *conf)
{
    struct acl *a = mem_calloc(MEM_OTHER, sizeof(*a));
    struct acl_user *u = acl_default_user();

    pthread_mutex_init(&a->lock, NULL);
    a->generation = &a->first_generation;
    a->log = acl_log_create();
    set_password(u, slice_str(conf->requirepass));
    acl_put(a, u);
    return a;
}

void acl_share_generation(struct acl *a, _Atomic uint64_t *generation)
{
    atomic_store(generation, acl_generation(a));
    a->generation = generation;
}

void acl_destroy(struct acl *a)
{
    if (!a)
        return;
    acl_all_free(a->users, a->n);
    acl_log_destroy(a->log);
    pthread_mutex_destroy(&a->lock);
    mem_free(MEM_OTHER, a);
}

/* ---- sessions ---- */

static void session_take(struct session *s, struct acl_user *u)
{
    acl_user_unref(s->user);
    s->user = u;
    if (u->everything)
        s->flags &= ~(uint32_t)SESSION_LIMITED;
    else
        s->flags |= SESSION_LIMITED;
}

void acl_session_start(struct session *s)
{
    struct acl *a = s->w->cmd->acl;

    s->acl_seen = acl_generation(a); /* before: a change meanwhile makes it look again */
    session_take(s, acl_get(a, DEFAULT_NAME));
    s->flags &= ~(uint32_t)SESSION_AUTHENTICATED;
    if (s->user->on && s->user->nopass)
        s->flags |= SESSION_AUTHENTICATED;
}

void acl_session_end(struct session *s)
{
    acl_user_unref(s->user);
    s->user = NULL;
}

struct slice acl_session_user(const struct session *s)
{
    return s->user->name;
}

bool acl_session_authenticate(struct session *s, struct slice name, struct slice password)
{
    struct acl *a = s->w->cmd->acl;
    uint64_t seen = acl_generation(a);
    struct acl_user *u = acl_get(a, name);

    if (!u || !u->on || !(u->nopass || acl_user_has_password(u, password))) {
        acl_user_unref(u);
        return false;
    }
    s->acl_seen = seen;
    session_take(s, u);
    s->flags |= SESSION_AUTHENTICATED;
    return true;
}

struct listening {
    const struct acl_user *user;
    bool refused;
};

static void check_subscription(void *arg, struct slice name, bool is_pattern)
{
    struct listening *l = arg;

    l->refused |= !acl_channel_allowed(l->user, name, is_pattern);
}

/* What it listens to through the upstream is not known here. */
static bool may_listen(const struct session *s, const struct acl_user *u)
{
    struct listening l = {.user = u};

    if (!session_subscribed(s))
        return true;
    if (forward_subscribed(s))
        return false;
    pubsub_session_each(s, check_subscription, &l);
    return !l.refused;
}

bool acl_session_refresh(struct session *s)
{
    struct acl *a = s->w->cmd->acl;
    uint64_t seen = atomic_load_explicit(a->generation, memory_order_acquire);

    if (s->acl_seen == seen)
        return true;
    struct acl_user *u = acl_get(a, s->user->name);
    if (!u || u->id != s->user->id) {
        acl_user_unref(u);
        return false;
    }
    if (acl_channels_shrank(s->user, u) && !may_listen(s, u)) {
        acl_user_unref(u);
        return false;
    }
    s->acl_seen = seen;
    session_take(s, u);
    return true;
}
