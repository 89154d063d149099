/* CLIENT TRACKING, CACHING, GETREDIR, TRACKINGINFO. */
#include <stdlib.h>

#include "cmd/cmd_priv.h"
#include "cmd/tracking_priv.h"

#define PREFIXES_MAX 4096 /* of one client: they are compared in pairs */

struct options {
    unsigned mode;
    uint64_t redirect;
    struct slice *prefix; /* among the arguments */
    int nprefixes;
};

static bool fail(struct call *c, const char *text)
{
    call_error(c, text);
    return false;
}

static bool parse_redirect(struct call *c, int arg, struct options *o)
{
    int64_t id;

    if (o->redirect != 0)
        return fail(c, "ERR A client can only redirect to a single other client");
    if (!call_arg_i64(c, arg, &id, NULL))
        return false;
    if (id <= 0 || !tracking_client_exists(tracking_of(c->w), (uint64_t)id))
        return fail(c, "ERR The client ID you want redirect to does not exist");
    o->redirect = (uint64_t)id;
    return true;
}

/* false: the error was replied; so it is with all of these. */
static bool parse_options(struct call *c, struct options *o)
{
    for (int i = 3; i < c->argc; i++) {
        bool more = i + 1 < c->argc;
        if (call_arg_is(c, i, "redirect") && more) {
            if (!parse_redirect(c, ++i, o))
                return false;
        } else if (call_arg_is(c, i, "bcast")) {
            o->mode |= TRACKING_BCAST;
        } else if (call_arg_is(c, i, "optin")) {
            o->mode |= TRACKING_OPTIN;
        } else if (call_arg_is(c, i, "optout")) {
            o->mode |= TRACKING_OPTOUT;
        } else if (call_arg_is(c, i, "noloop")) {
            o->mode |= TRACKING_NOLOOP;
        } else if (call_arg_is(c, i, "prefix") && more) {
            o->prefix[o->nprefixes++] = c->argv[++i];
        } else {
            call_syntax(c);
            return false;
        }
    }
    return true;
}

static bool modes_agree(struct call *c, const struct options *o)
{
    unsigned is = o->mode, was = atomic_load(&c->s->tracker->mode);

    if (!(is & TRACKING_BCAST) && o->nprefixes > 0)
        return fail(c, "ERR PREFIX option requires BCAST mode to be enabled");
    if (was & TRACKING_ON && (was ^ is) & TRACKING_BCAST)
        return fail(c, "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then "
                       "re-enabling it with a different mode.");
    if (is & TRACKING_BCAST && is & (TRACKING_OPTIN | TRACKING_OPTOUT))
        return fail(c, "ERR OPTIN and OPTOUT are not compatible with BCAST");
    if (is & TRACKING_OPTIN && is & TRACKING_OPTOUT)
        return fail(c, "ERR You can't specify both OPTIN mode and OPTOUT mode");
    if ((is & TRACKING_OPTIN && was & TRACKING_OPTOUT) || (is & TRACKING_OPTOUT && was & TRACKING_OPTIN))
        return fail(c, "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then "
                       "re-enabling it with a different mode.");
    return true;
}

static bool overlap(struct slice a, struct slice b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    return n == 0 || memcmp(a.ptr, b.ptr, n) == 0;
}

static int slice_compare(const void *a, const void *b)
{
    const struct slice *x = a, *y = b;
    size_t n = x->len < y->len ? x->len : y->len;
    int by = n ? memcmp(x->ptr, y->ptr, n) : 0;
    return by ? by : x->len < y->len ? -1 : x->len > y->len;
}

/* In their order. Returns how many; *out is freed with mem_free(MEM_OTHER). */
static size_t client_prefixes(const struct tracker *tr, struct slice **out)
{
    size_t n = 0;

    *out = mem_alloc(MEM_OTHER, (prefix_count(tr) + 1) * sizeof(**out));
    for (const struct list *l = tr->prefixes.next; l != &tr->prefixes; l = l->next)
        (*out)[n++] = prefix_name(l);
    qsort(*out, n, sizeof(**out), slice_compare);
    return n;
}

static bool clash(struct call *c, struct slice a, const char *what, struct slice b)
{
    call_errorf(c, "ERR Prefix '%.*s' overlaps with %s prefix '%.*s'. Prefixes for a single client must not overlap.",
                SLICE_FMT(a), what, SLICE_FMT(b));
    return false;
}

static bool prefixes_agree(struct call *c, const struct options *o, const struct slice *has, size_t nhas)
{
    for (int i = 0; i < o->nprefixes; i++) {
        for (size_t j = 0; j < nhas; j++)
            if (overlap(has[j], o->prefix[i]))
                return clash(c, o->prefix[i], "an existing", has[j]);
        for (int j = i + 1; j < o->nprefixes; j++)
            if (overlap(o->prefix[i], o->prefix[j]))
                return clash(c, o->prefix[i], "another provided", o->prefix[j]);
    }
    return true;
}

static bool prefixes_checked(struct call *c, const struct options *o)
{
    struct slice *has;

    if (!(o->mode & TRACKING_BCAST) || o->nprefixes == 0)
        return true;
    size_t n = client_prefixes(c->s->tracker, &has);
    bool ok = (size_t)o->nprefixes + n <= PREFIXES_MAX ? prefixes_agree(c, o, has, n)
                                                       : fail(c, "ERR too many prefixes for a single client");
    mem_free(MEM_OTHER, has);
    return ok;
}

static void turn_on(struct call *c, const struct options *o)
{
    struct tracker *tr = c->s->tracker;

    if (!(atomic_load(&tr->mode) & TRACKING_ON)) /* what is on its way was done before */
        inbox_drain(c->w, inbox_within(c));
    tracking_set(c->s, o->mode | TRACKING_ON, o->redirect);
    tracking_begin(c->s); /* what the rest of its EXEC changes is its own */
    if (o->mode & TRACKING_BCAST && o->nprefixes == 0)
        prefix_add(tr, SLICE_LIT(""));
    for (int i = 0; i < o->nprefixes; i++)
        prefix_add(tr, o->prefix[i]);
}

static void tracking_command(struct call *c, struct options *o)
{
    if (!parse_options(c, o))
        return;
    if (call_arg_is(c, 2, "off")) {
        tracking_off(c->s);
    } else if (call_arg_is(c, 2, "on")) {
        if (!modes_agree(c, o) || !prefixes_checked(c, o))
            return;
        if (c->w->tier->has_upstream && !tracking_upstream_allows(c, o->mode))
            return;
        turn_on(c, o);
    } else {
        call_syntax(c);
        return;
    }
    reply_simple(&c->r, "OK");
}

void cmd_client_tracking(struct call *c)
{
    struct options o = {.prefix = mem_alloc(MEM_OTHER, (size_t)c->argc * sizeof(struct slice))};

    tracking_command(c, &o);
    mem_free(MEM_OTHER, o.prefix);
}

void cmd_client_caching(struct call *c)
{
    struct session *s = c->s;
    unsigned mode = atomic_load(&s->tracker->mode);

    if (!(mode & TRACKING_ON)) {
        call_error(c, "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT "
                      "mode enabled");
        return;
    }
    bool yes = call_arg_is(c, 2, "yes");
    if (!yes && !call_arg_is(c, 2, "no")) {
        call_syntax(c);
    } else if (!(mode & (yes ? TRACKING_OPTIN : TRACKING_OPTOUT))) {
        call_error(c, yes ? "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode."
                          : "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.");
    } else {
        s->flags |= SESSION_CACHING;
        reply_simple(&c->r, "OK");
    }
}

void cmd_client_getredir(struct call *c)
{
    reply_int(&c->r, tracking_redirect(c->s));
}

void cmd_client_trackinginfo(struct call *c)
{
    unsigned mode = atomic_load(&c->s->tracker->mode);
    bool caching = c->s->flags & SESSION_CACHING;
    const char *flags[8];
    struct slice *prefix;
    int n = 0;

    flags[n++] = mode & TRACKING_ON ? "on" : "off";
    if (mode & TRACKING_BCAST)
        flags[n++] = "bcast";
    if (mode & TRACKING_OPTIN) {
        flags[n++] = "optin";
        if (caching)
            flags[n++] = "caching-yes";
    }
    if (mode & TRACKING_OPTOUT) {
        flags[n++] = "optout";
        if (caching)
            flags[n++] = "caching-no";
    }
    if (mode & TRACKING_NOLOOP)
        flags[n++] = "noloop";
    if (mode & TRACKING_BROKEN)
        flags[n++] = "broken_redirect";
    reply_map(&c->r, 3);
    reply_bulk_str(&c->r, "flags");
    reply_set(&c->r, n);
    for (int i = 0; i < n; i++)
        reply_bulk_str(&c->r, flags[i]);
    reply_bulk_str(&c->r, "redirect");
    reply_int(&c->r, tracking_redirect(c->s));
    reply_bulk_str(&c->r, "prefixes");
    size_t count = client_prefixes(c->s->tracker, &prefix);
    reply_array(&c->r, (int64_t)count);
    for (size_t i = 0; i < count; i++)
        reply_bulk(&c->r, prefix[i]);
    mem_free(MEM_OTHER, prefix);
}
