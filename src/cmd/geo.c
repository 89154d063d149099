#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cmd_priv.h"
#include "tiercel/geohash.h"
#include "tiercel/keyspace.h"

/* Places: members of sorted sets whose scores are geohashes (geohash.h). */

#define POINTS_ON_STACK 16

/* ---- arguments ----------------------------------------------------------------------- */

static bool arg_point(struct call *c, int arg, struct geo_point *p)
{
    if (!zset_arg_score(c, arg, &p->lon, NULL) || !zset_arg_score(c, arg + 1, &p->lat, NULL))
        return false;
    if (geo_valid(*p))
        return true;
    call_errorf(c, "ERR invalid longitude,latitude pair %f,%f", p->lon, p->lat);
    return false;
}

/* Meters of a unit. */
static bool arg_unit(struct call *c, int arg, double *meters)
{
    static const struct {
        const char *name;
        double meters;
    } units[] = {{"m", 1}, {"km", 1000}, {"ft", 0.3048}, {"mi", 1609.34}};

    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (call_arg_is(c, arg, units[i].name)) {
            *meters = units[i].meters;
            return true;
        }
    call_error(c, "ERR unsupported unit provided. please use M, KM, FT, MI");
    return false;
}

static bool arg_radius(struct call *c, int arg, struct geo_shape *s)
{
    s->box = false;
    if (!zset_arg_score(c, arg, &s->radius, "ERR need numeric radius"))
        return false;
    if (s->radius < 0) {
        call_error(c, "ERR radius cannot be negative");
        return false;
    }
    return arg_unit(c, arg + 1, &s->unit);
}

static bool arg_box(struct call *c, int arg, struct geo_shape *s)
{
    s->box = true;
    if (!zset_arg_score(c, arg, &s->width, "ERR need numeric width") ||
        !zset_arg_score(c, arg + 1, &s->height, "ERR need numeric height"))
        return false;
    if (s->width < 0 || s->height < 0) {
        call_error(c, "ERR height or width cannot be negative");
        return false;
    }
    return arg_unit(c, arg + 2, &s->unit);
}

static bool point_of(const struct object *o, struct slice name, struct geo_point *p)
{
    double score;

    if (!o || !zset_score(o, name, &score))
        return false;
    *p = geo_decode(score);
    return true;
}

static bool arg_member(struct call *c, int arg, const struct object *o, struct geo_point *p)
{
    if (point_of(o, c->argv[arg], p))
        return true;
    call_error(c, "ERR could not decode requested zset member");
    return false;
}

/* Four digits behind the point, rounded as Redis does it, which is not always as printf() does. */
static void reply_distance(struct call *c, double d)
{
    char text[64];
    long long v = llrint(d * 10000);

    reply_bulk(&c->r, SLICE(text, (size_t)snprintf(text, sizeof(text), "%lld.%04lld", v / 10000, v % 10000)));
}

static void reply_point(struct call *c, struct geo_point p)
{
    reply_array(&c->r, 2);
    reply_long_double(&c->r, p.lon);
    reply_long_double(&c->r, p.lat);
}

/* ---- single places ------------------------------------------------------------------- */

void cmd_geoadd(struct call *c)
{
    double few[POINTS_ON_STACK], *scores = few;
    struct zset_adding a = {.step = 3};
    struct geo_point p;
    bool ok = true;
    int arg = 2;

    for (; arg < c->argc; arg++) {
        if (call_arg_is(c, arg, "nx"))
            a.how |= ZSET_NX;
        else if (call_arg_is(c, arg, "xx"))
            a.how |= ZSET_XX;
        else if (call_arg_is(c, arg, "ch"))
            a.count_changed = true;
        else
            break;
    }
    a.n = (c->argc - arg) / 3;
    a.name = arg + 2;
    if (a.n == 0 || (c->argc - arg) % 3 != 0 || (a.how & ZSET_NX && a.how & ZSET_XX)) {
        call_syntax(c);
        return;
    }
    if (a.n > POINTS_ON_STACK)
        scores = mem_alloc(MEM_OTHER, sizeof(double) * (size_t)a.n);
    for (int i = 0; ok && i < a.n; i++) {
        ok = arg_point(c, arg + 3 * i, &p);
        if (ok)
            scores[i] = (double)geo_encode(p);
    }
    a.score = scores;
    if (ok)
        zset_add_members(c, &a);
    if (scores != few)
        mem_free(MEM_OTHER, scores);
}

void cmd_geopos(struct call *c)
{
    const struct object *o = ks_read(c, 0);
    struct geo_point p;

    if (!ks_is(c, o, OBJ_ZSET))
        return;
    reply_array(&c->r, c->argc - 2);
    for (int i = 2; i < c->argc; i++) {
        if (point_of(o, c->argv[i], &p))
            reply_point(c, p);
        else
            reply_null_array(&c->r);
    }
}

void cmd_geohash(struct call *c)
{
    const struct object *o = ks_read(c, 0);
    char text[GEO_HASH_TEXT];
    double score;

    if (!ks_is(c, o, OBJ_ZSET))
        return;
    reply_array(&c->r, c->argc - 2);
    for (int i = 2; i < c->argc; i++) {
        if (o && zset_score(o, c->argv[i], &score)) {
            geo_text(score, text);
            reply_bulk(&c->r, SLICE(text, sizeof(text)));
        } else {
            reply_null(&c->r);
        }
    }
}

void cmd_geodist(struct call *c)
{
    struct geo_point a, b;
    double unit = 1;

    if (c->argc > 5) {
        call_syntax(c);
        return;
    }
    if (c->argc == 5 && !arg_unit(c, 4, &unit))
        return;
    const struct object *o = ks_read(c, 0);
    if (!ks_is(c, o, OBJ_ZSET))
        return;
    if (point_of(o, c->argv[2], &a) && point_of(o, c->argv[3], &b))
        reply_distance(c, geo_distance(a, b) / unit);
    else
        reply_null(&c->r);
}

/* ---- searches ------------------------------------------------------------------------ */

enum search { BY_POINT, BY_MEMBER, BY_ASKED }; /* GEORADIUS, GEORADIUSBYMEMBER, GEOSEARCH */
enum order { ORDER_NONE, ORDER_ASC, ORDER_DESC };

struct search_args {
    enum search by;
    bool may_store; /* takes STORE and STOREDIST */
    bool with_dist, with_hash, with_coord, any;
    enum order order;
    int64_t count;   /* 0 = all */
    int store;       /* the argument that names the key, 0 = none */
    bool store_dist; /* distances as scores */
    bool has_from_member, has_from_point, has_radius, has_box;
    struct geo_shape shape;
};

struct found {
    struct slice name; /* in `names`, once all are found */
    size_t at;
    double score, distance;
    struct geo_point point;
};

struct finding {
    struct buf found, names;
    size_t n;
};

/* What only GEOSEARCH and GEOSEARCHSTORE have. *i: the last argument that was taken. 1: taken, 0: not one of them,
 * -1: the error was replied. */
static int search_option(struct call *c, const struct object *o, struct search_args *a, int *i)
{
    int left = c->argc - *i - 1, arg = *i + 1;

    if (call_arg_is(c, *i, "frommember") && left >= 1 && !a->has_from_point) {
        a->has_from_member = true;
        *i += 1;
        return !o || arg_member(c, arg, o, &a->shape.center) ? 1 : -1;
    }
    if (call_arg_is(c, *i, "fromlonlat") && left >= 2 && !a->has_from_member) {
        a->has_from_point = true;
        *i += 2;
        return arg_point(c, arg, &a->shape.center) ? 1 : -1;
    }
    if (call_arg_is(c, *i, "byradius") && left >= 2 && !a->has_box) {
        a->has_radius = true;
        *i += 2;
        return arg_radius(c, arg, &a->shape) ? 1 : -1;
    }
    if (call_arg_is(c, *i, "bybox") && left >= 3 && !a->has_radius) {
        a->has_box = true;
        *i += 3;
        return arg_box(c, arg, &a->shape) ? 1 : -1;
    }
    if (call_arg_is(c, *i, "storedist") && a->store) {
        a->store_dist = true;
        return 1;
    }
    return 0;
}

static int store_option(struct call *c, struct search_args *a, int *i)
{
    bool dist = call_arg_is(c, *i, "storedist");

    if (*i + 1 >= c->argc || (!dist && !call_arg_is(c, *i, "store")))
        return 0;
    a->store_dist = dist;
    a->store = ++*i;
    return 1;
}

static bool *flag_of(const struct call *c, int arg, struct search_args *a)
{
    return call_arg_is(c, arg, "withdist")    ? &a->with_dist
           : call_arg_is(c, arg, "withhash")  ? &a->with_hash
           : call_arg_is(c, arg, "withcoord") ? &a->with_coord
           : call_arg_is(c, arg, "any")       ? &a->any
                                              : NULL;
}

static bool parse_options(struct call *c, int from, const struct object *o, struct search_args *a)
{
    for (int i = from; i < c->argc; i++) {
        bool *flag = flag_of(c, i, a);
        if (flag) {
            *flag = true;
        } else if (call_arg_is(c, i, "asc")) {
            a->order = ORDER_ASC;
        } else if (call_arg_is(c, i, "desc")) {
            a->order = ORDER_DESC;
        } else if (call_arg_is(c, i, "count") && i + 1 < c->argc) {
            if (!call_arg_i64(c, ++i, &a->count, NULL))
                return false;
            if (a->count <= 0) {
                call_error(c, "ERR COUNT must be > 0");
                return false;
            }
        } else {
            int taken = a->by == BY_ASKED ? search_option(c, o, a, &i) : a->may_store ? store_option(c, a, &i) : 0;
            if (taken == 0)
                call_syntax(c);
            if (taken <= 0)
                return false;
        }
    }
    return true;
}

static bool options_agree(struct call *c, const struct search_args *a)
{
    if (a->store && (a->with_dist || a->with_hash || a->with_coord))
        call_errorf(c, "ERR %s is not compatible with WITHDIST, WITHHASH and WITHCOORD options",
                    a->by == BY_ASKED ? "GEOSEARCHSTORE" : "STORE option in GEORADIUS");
    else if (a->by == BY_ASKED && !a->has_from_member && !a->has_from_point)
        call_errorf(c, "ERR exactly one of FROMMEMBER or FROMLONLAT can be specified for %.*s", SLICE_FMT(c->argv[0]));
    else if (a->by == BY_ASKED && !a->has_radius && !a->has_box)
        call_errorf(c, "ERR exactly one of BYRADIUS and BYBOX can be specified for %.*s", SLICE_FMT(c->argv[0]));
    else if (a->any && !a->count)
        call_error(c, "ERR the ANY argument requires COUNT argument");
    else
        return true;
    return false;
}

/* false: it has enough. */
static bool search_cell(const struct object *o, const struct search_args *a, struct geo_cell cell, struct finding *f)
{
    struct zset_range r = {.min = {.score = (double)cell.min}, .max = {.score = (double)cell.max, .open = true}};
    struct zset_iter it;
    size_t first, n = zset_find_range(o, &r, false, &first);

    for (zset_seek(o, first, false, &it); n > 0 && zset_next(&it); n--) {
        struct found found = {.at = f->names.len, .score = it.score, .point = geo_decode(it.score)};
        if (!geo_within(&a->shape, found.point, &found.distance))
            continue;
        found.name = it.name;
        buf_slice_append(&f->names, it.name);
        buf_append(&f->found, &found, sizeof(found));
        if (++f->n == (uint64_t)a->count && a->any)
            return false;
    }
    return true;
}

static int nearer(const void *a, const void *b)
{
    double x = ((const struct found *)a)->distance, y = ((const struct found *)b)->distance;

    return (x > y) - (x < y);
}

static int farther(const void *a, const void *b)
{
    return nearer(b, a);
}

/* All that are wanted, in the order that is asked for. */
static void search(const struct object *o, const struct search_args *a, struct finding *f)
{
    struct geo_cell cell[GEO_CELLS];
    enum order order = a->order == ORDER_NONE && a->count && !a->any ? ORDER_ASC : a->order; /* the nearest */
    int n = geo_cover(&a->shape, cell);

    for (int i = 0; i < n && search_cell(o, a, cell[i], f); i++)
        continue;
    struct found *all = (struct found *)f->found.ptr;
    for (size_t i = 0; i < f->n; i++)
        all[i].name.ptr = f->names.ptr + all[i].at;
    if (order != ORDER_NONE && f->n > 0)
        qsort(all, f->n, sizeof(*all), order == ORDER_ASC ? nearer : farther);
    if (a->count && (uint64_t)a->count < f->n)
        f->n = (size_t)a->count;
}

static void reply_found(struct call *c, const struct search_args *a, const struct finding *f)
{
    const struct found *all = (const struct found *)f->found.ptr;
    int extra = a->with_dist + a->with_hash + a->with_coord;

    reply_array(&c->r, (int64_t)f->n);
    for (size_t i = 0; i < f->n; i++) {
        if (extra)
            reply_array(&c->r, 1 + extra);
        reply_bulk(&c->r, all[i].name);
        if (a->with_dist)
            reply_distance(c, all[i].distance / a->shape.unit);
        if (a->with_hash)
            reply_int(&c->r, (int64_t)all[i].score);
        if (a->with_coord)
            reply_point(c, all[i].point);
    }
}

static void store_found(struct call *c, const struct search_args *a, const struct finding *f)
{
    const struct found *all = (const struct found *)f->found.ptr;
    struct zset_draft *d = zset_draft_create();
    struct obj_limits lim = ks_limits(c);
    bool added;
    int to = 0;

    for (size_t i = 0; i < f->n; i++)
        *zset_draft_place(d, all[i].name, &added) = a->store_dist ? all[i].distance / a->shape.unit : all[i].score;
    while (c->keys[to].arg != a->store)
        to++;
    zset_store(c, to, zset_draft_finish(d, &c->keys[to].key, &lim),
               a->by == BY_ASKED ? "geosearchstore" : "georadiusstore");
}

/* What comes before the options; *from: where those begin. */
static bool parse_shape(struct call *c, const struct object *o, struct search_args *a, int *from)
{
    switch (a->by) {
    case BY_POINT: *from = 6; return arg_point(c, 2, &a->shape.center) && arg_radius(c, 4, &a->shape);
    case BY_MEMBER: *from = 5; return !o || (arg_member(c, 2, o, &a->shape.center) && arg_radius(c, 3, &a->shape));
    default: *from = a->store ? 3 : 2; return true;
    }
}

static void search_command(struct call *c, struct search_args a)
{
    const struct object *o = ks_read(c, a.store && a.by == BY_ASKED);
    struct finding f = {.n = 0};
    int from;

    if (!ks_is(c, o, OBJ_ZSET) || !parse_shape(c, o, &a, &from) || !parse_options(c, from, o, &a) ||
        !options_agree(c, &a))
        return;
    buf_init(&f.found, MEM_OTHER);
    buf_init(&f.names, MEM_OTHER);
    if (o)
        search(o, &a, &f);
    if (a.store)
        store_found(c, &a, &f);
    else
        reply_found(c, &a, &f);
    buf_deinit(&f.found);
    buf_deinit(&f.names);
}

void cmd_geosearch(struct call *c)
{
    search_command(c, (struct search_args){.by = BY_ASKED});
}

void cmd_geosearchstore(struct call *c)
{
    search_command(c, (struct search_args){.by = BY_ASKED, .store = 1});
}

void cmd_georadius(struct call *c)
{
    search_command(c, (struct search_args){.by = BY_POINT, .may_store = true});
}

void cmd_georadius_ro(struct call *c)
{
    search_command(c, (struct search_args){.by = BY_POINT});
}

void cmd_georadiusbymember(struct call *c)
{
    search_command(c, (struct search_args){.by = BY_MEMBER, .may_store = true});
}

void cmd_georadiusbymember_ro(struct call *c)
{
    search_command(c, (struct search_args){.by = BY_MEMBER});
}

/* All that may be stored to are keys; the last one will be, if any. */
int cmd_georadius_keys(int argc, const struct slice *argv, int *pos, int max)
{
    int n = 0;

    if (argc > 1 && max > 0)
        pos[n++] = 1;
    for (int i = 5; i + 1 < argc && n < max; i++)
        if (slice_is(argv[i], "store") || slice_is(argv[i], "storedist"))
            pos[n++] = ++i;
    return n;
}

enum key_access cmd_georadius_access(int argc, const struct slice *argv)
{
    int pos[2];

    return cmd_georadius_keys(argc, argv, pos, 2) > 1 ? KEY_UPDATE : KEY_READ;
}
