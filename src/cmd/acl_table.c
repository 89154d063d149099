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
static int place(const struct acl_names *names, struct slice name, bool *found)
{
    int lo = 0, hi = names->n;

    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (compare(names->user[mid]->name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *found = lo < names->n && slice_eq(names->user[lo]->name, name);
    return lo;
}

struct acl_user *acl_names_find(const struct acl_names *names, struct slice name)
{
    bool found;
    int i = place(names, name, &found);

    return found ? names->user[i] : NULL;
}

void acl_names_add(struct acl_names *names, struct acl_user *u)
{
    bool found;
    int i = place(names, u->name, &found);

    CHECK(!found);
    if (names->n == names->cap) {
        names->cap = names->cap ? names->cap * 2 : 8;
        names->user = mem_realloc(MEM_OTHER, names->user, (size_t)names->cap * sizeof(*names->user));
    }
    memmove(names->user + i + 1, names->user + i, (size_t)(names->n - i) * sizeof(*names->user));
    names->user[i] = u;
    names->n++;
}

void acl_names_deinit(struct acl_names *names)
{
    for (int i = 0; i < names->n; i++)
        acl_user_unref(names->user[i]);
    mem_free(MEM_OTHER, names->user);
    *names = (struct acl_names){.n = 0};
}

/* ---- the table ---- */

static void changed_locked(struct acl *a)
{
    const struct acl_user *u = acl_names_find(&a->users, DEFAULT_NAME);

    atomic_store_explicit(&a->default_nopass, u->nopass, memory_order_relaxed);
    atomic_store_explicit(&a->default_on, u->on, memory_order_relaxed);
    atomic_fetch_add_explicit(a->generation, 1, memory_order_release);
}

struct acl_user *acl_get(struct acl *a, struct slice name)
{
    pthread_mutex_lock(&a->lock);
    struct acl_user *u = acl_names_find(&a->users, name);
    if (u)
        acl_user_ref(u);
    pthread_mutex_unlock(&a->lock);
    return u;
}

void acl_put(struct acl *a, struct acl_user *u)
{
    bool found;
    struct acl_user *old = NULL;

    acl_user_ready(u);
    pthread_mutex_lock(&a->lock);
    int i = place(&a->users, u->name, &found);
    if (found) {
        old = a->users.user[i];
        u->id = old->id;
        a->users.user[i] = u;
    } else {
        u->id = ++a->next_id;
        acl_names_add(&a->users, u);
    }
    changed_locked(a);
    pthread_mutex_unlock(&a->lock);
    acl_user_unref(old);
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
    struct acl_names *names = &a->users;
    struct acl_user *gone = NULL;
    bool found;

    pthread_mutex_lock(&a->lock);
    int i = place(names, name, &found);
    if (found) {
        gone = names->user[i];
        names->n--;
        memmove(names->user + i, names->user + i + 1, (size_t)(names->n - i) * sizeof(*names->user));
        changed_locked(a);
    }
    pthread_mutex_unlock(&a->lock);
    acl_user_unref(gone);
    return found;
}

/* Whoever was a user before is none now, but for the default one. */
void acl_replace(struct acl *a, struct acl_names *users)
{
    pthread_mutex_lock(&a->lock);
    struct acl_names old = a->users;
    uint64_t default_id = acl_names_find(&old, DEFAULT_NAME)->id;
    for (int i = 0; i < users->n; i++) {
        acl_user_ready(users->user[i]);
        users->user[i]->id = slice_eq(users->user[i]->name, DEFAULT_NAME) ? default_id : ++a->next_id;
    }
    a->users = *users;
    changed_locked(a);
    pthread_mutex_unlock(&a->lock);
    *users = (struct acl_names){.n = 0};
    acl_names_deinit(&old);
}

void acl_all(struct acl *a, struct acl_names *out)
{
    pthread_mutex_lock(&a->lock);
    *out = (struct acl_names){.n = a->users.n, .cap = a->users.n};
    out->user = mem_alloc(MEM_OTHER, (size_t)(out->n + 1) * sizeof(*out->user));
    for (int i = 0; i < out->n; i++)
        out->user[i] = acl_user_ref(a->users.user[i]);
    pthread_mutex_unlock(&a->lock);
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
    acl_names_deinit(&a->users);
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
    return s->auth ? auth_upstream_user(s) : s->user->name;
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
