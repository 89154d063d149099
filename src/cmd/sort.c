/* SORT, SORT_RO. What BY and GET name are keys that are found out here, element by element: they are asked for by
 * rerun_key(), all before any of them is used. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "tiercel/stats.h"
#include "tiercel/type_hash.h"
#include "tiercel/type_list.h"
#include "tiercel/type_set.h"

#include "cmd/cmd_priv.h"

/* What an element leads to: "w_*", "h_*->field". */
struct pattern {
    enum { PATTERN_NOTHING, PATTERN_ELEMENT, PATTERN_STRING, PATTERN_FIELD } kind;
    struct slice head, tail, field;
};

struct args {
    bool desc, alpha;
    bool nosort; /* BY a pattern without '*' */
    int64_t offset, count;
    bool limit;
    bool by;
    struct pattern weight;
    int store;       /* argument; 0 = none */
    struct buf gets; /* struct pattern */
};

struct item {
    size_t at, len; /* its text */
    union {
        double score;
        struct {
            size_t at, len;
        } word; /* what it is compared by, with ALPHA */
    };
    bool weighed; /* it has a word */
    bool missing; /* there is no key for BY */
};

struct sorting {
    struct call *c;
    struct args a;
    struct buf text;  /* of elements and words */
    struct buf items; /* struct item */
    struct buf name;  /* of a key */
    size_t first, n;  /* of the items: the result */
    size_t found;     /* keys for BY */
    bool bad;         /* a weight is no number */
    enum status st;   /* of keys that were asked for: not ST_OK, and this run ends */
};

static int ngets(const struct args *a)
{
    return (int)(a->gets.len / sizeof(struct pattern));
}

static const struct pattern *get_at(const struct args *a, int i)
{
    return (const struct pattern *)a->gets.ptr + i;
}

static size_t nitems(const struct sorting *s)
{
    return s->items.len / sizeof(struct item);
}

static struct item *item_at(const struct sorting *s, size_t i)
{
    return (struct item *)s->items.ptr + i;
}

static struct slice item_text(const struct sorting *s, const struct item *it)
{
    return SLICE(s->text.ptr + it->at, it->len);
}

/* ---- arguments ---- */

/* Redis reads patterns as C strings. */
static struct pattern pattern_of(struct slice s)
{
    size_t len = s.len ? strnlen(s.ptr, s.len) : 0;
    const char *star = len ? memchr(s.ptr, '*', len) : NULL;
    struct pattern p = {.kind = PATTERN_STRING};

    if (len == 1 && *s.ptr == '#')
        return (struct pattern){.kind = PATTERN_ELEMENT};
    if (!star)
        return (struct pattern){.kind = PATTERN_NOTHING};
    p.head = SLICE(s.ptr, (size_t)(star - s.ptr));
    p.tail = SLICE(star + 1, s.len - p.head.len - 1);
    const char *arrow = memmem(star + 1, len - p.head.len - 1, "->", 2);
    if (arrow && arrow + 2 < s.ptr + len) {
        p.kind = PATTERN_FIELD;
        p.field = SLICE(arrow + 2, s.len - (size_t)(arrow + 2 - s.ptr));
        p.tail.len = (size_t)(arrow - p.tail.ptr);
    }
    return p;
}

/* The option at `i` and the arguments behind it; 0: there is none of that name, with enough behind it. */
enum option { OPTION_NONE, OPTION_ASC, OPTION_DESC, OPTION_ALPHA, OPTION_LIMIT, OPTION_STORE, OPTION_BY, OPTION_GET };

static enum option option_at(int argc, const struct slice *argv, int i, bool may_store, int *behind)
{
    static const struct {
        const char *name;
        enum option option;
        int behind;
    } options[] = {{"asc", OPTION_ASC, 0},     {"desc", OPTION_DESC, 0}, {"alpha", OPTION_ALPHA, 0},
                   {"limit", OPTION_LIMIT, 2}, {"by", OPTION_BY, 1},     {"get", OPTION_GET, 1},
                   {"store", OPTION_STORE, 1}};

    for (size_t k = 0; k < sizeof(options) / sizeof(options[0]); k++) {
        if (!slice_is(argv[i], options[k].name) || options[k].behind >= argc - i)
            continue;
        if (options[k].option == OPTION_STORE && !may_store)
            continue;
        *behind = options[k].behind;
        return options[k].option;
    }
    *behind = 0;
    return OPTION_NONE;
}

/* Which keys a pattern names is not known before it runs: only who may read all of them may use one. */
static bool may_read(struct call *c, const char *option)
{
    if (acl_may_read_all_keys(c))
        return true;
    call_errorf(c, "ERR %s option of SORT denied due to insufficient ACL permissions.", option);
    return false;
}

static bool parse(struct call *c, struct args *a)
{
    bool may_store = c->cmd->id == CMDID_sort;
    struct pattern p;
    int behind;

    for (int i = 2; i < c->argc; i += 1 + behind) {
        switch (option_at(c->argc, c->argv, i, may_store, &behind)) {
        case OPTION_ASC: a->desc = false; break;
        case OPTION_DESC: a->desc = true; break;
        case OPTION_ALPHA: a->alpha = true; break;
        case OPTION_LIMIT:
            if (!call_arg_i64(c, i + 1, &a->offset, NULL) || !call_arg_i64(c, i + 2, &a->count, NULL))
                return false;
            a->limit = true;
            break;
        case OPTION_STORE: a->store = i + 1; break;
        case OPTION_BY:
            a->weight = pattern_of(c->argv[i + 1]);
            a->by = true;
            if (a->weight.kind == PATTERN_NOTHING || a->weight.kind == PATTERN_ELEMENT)
                a->nosort = true;
            else if (!may_read(c, "BY"))
                return false;
            break;
        case OPTION_GET:
            if (!may_read(c, "GET"))
                return false;
            p = pattern_of(c->argv[i + 1]);
            buf_append(&a->gets, &p, sizeof(p));
            break;
        default: call_syntax(c); return false;
        }
    }
    return true;
}

bool sort_uses_patterns(int argc, const struct slice *argv)
{
    int behind;

    for (int i = 2; i < argc; i += 1 + behind) {
        enum option option = option_at(argc, argv, i, true, &behind);
        if ((option == OPTION_BY || option == OPTION_GET) && pattern_of(argv[i + 1]).kind >= PATTERN_STRING)
            return true;
    }
    return false;
}

/* The last STORE counts. */
int cmd_sort_keys(int argc, const struct slice *argv, int *pos, int max)
{
    int n = 0, store = 0, behind;

    if (argc > 1 && max > 0)
        pos[n++] = 1;
    for (int i = 2; i < argc; i += 1 + behind)
        if (option_at(argc, argv, i, true, &behind) == OPTION_STORE)
            store = i + 1;
    if (store && n < max)
        pos[n++] = store;
    return n;
}

enum key_access cmd_sort_access(int argc, const struct slice *argv)
{
    int pos[2];

    return cmd_sort_keys(argc, argv, pos, 2) > 1 ? KEY_UPDATE : KEY_READ;
}

/* ---- elements ---- */

static void add(struct sorting *s, struct slice elem)
{
    struct item it = {.at = s->text.len, .len = elem.len};

    buf_slice_append(&s->text, elem);
    buf_append(&s->items, &it, sizeof(it));
}

static void add_list(struct sorting *s, struct object *o, size_t first, size_t n, bool back)
{
    struct qlist_pos at;
    char scratch[NUM_I64_MAX];

    if (n == 0)
        return;
    qlist_seek(o, back ? qlist_len(o) - 1 - first : first, &at);
    do
        add(s, qlist_get(&at, scratch));
    while (--n > 0 && qlist_step(&at, back));
}

static void add_zset(struct sorting *s, const struct object *o, size_t first, size_t n, bool back)
{
    struct zset_iter it;

    for (zset_seek(o, back ? object_len(o) - 1 - first : first, back, &it); n > 0 && zset_next(&it); n--)
        add(s, it.name);
}

static void add_set(struct sorting *s, const struct object *o)
{
    struct set_iter it = set_iter(o);
    struct slice member;

    while (set_next(&it, &member))
        add(s, member);
}

/* The elements, and which part of them is wanted once they are in order. */
static void load(struct sorting *s, struct object *o)
{
    const struct args *a = &s->a;
    size_t len = o ? object_len(o) : 0, first = 0, n = len;

    if (a->limit) {
        first = a->offset < 0 ? 0 : (uint64_t)a->offset > len ? len : (size_t)a->offset;
        n = a->count < 0 || (uint64_t)a->count > len - first ? len - first : (size_t)a->count;
    }
    s->first = first;
    s->n = n;
    if (!o)
        return;
    if (a->nosort && o->type != OBJ_SET) { /* they have an order, which DESC turns round */
        s->first = 0;
        if (o->type == OBJ_LIST)
            add_list(s, o, first, n, a->desc);
        else
            add_zset(s, o, first, n, a->desc);
        return;
    }
    switch (o->type) {
    case OBJ_LIST: add_list(s, o, 0, len, false); break;
    case OBJ_ZSET: add_zset(s, o, 0, len, false); break;
    default: add_set(s, o);
    }
}

/* ---- other keys ---- */

static void key_of(struct sorting *s, const struct pattern *p, struct slice elem, struct call_key *k)
{
    s->name.len = 0;
    buf_slice_append(&s->name, p->head);
    buf_slice_append(&s->name, elem);
    buf_slice_append(&s->name, p->tail);
    *k = (struct call_key){.access = KEY_READ};
    mem_key_init(s->c->w->tier->mem, s->c->keys[0].key.db, buf_slice(&s->name), &k->key);
}

/* Asks for the keys that some of the elements lead to. */
static void ask(struct sorting *s, const struct pattern *p, size_t first, size_t n)
{
    if (!s->c->may_rerun || p->kind < PATTERN_STRING)
        return;
    for (size_t i = first; i < first + n && s->st != ST_FULL && s->st != ST_IO; i++) {
        struct call_key k;
        key_of(s, p, item_text(s, item_at(s, i)), &k);
        enum status st = rerun_key(s->c, &k);
        if (UNLIKELY(st != ST_OK))
            s->st = st;
    }
}

static void ask_for_gets(struct sorting *s, size_t first, size_t n)
{
    for (int g = 0; g < ngets(&s->a); g++)
        ask(s, get_at(&s->a, g), first, n);
}

/* What an element leads to, uncounted. false: nothing. `look` is a call on that key, in which *o is. */
static bool peek(struct sorting *s, const struct pattern *p, struct slice elem, struct call *look, struct call_key *k,
                 struct object **o)
{
    *o = NULL;
    key_of(s, p, elem, k);
    enum status st = rerun_key(s->c, k);
    if (UNLIKELY(st != ST_OK)) {
        s->st = st;
        return false;
    }
    look->keys = k;
    look->nkeys = 1;
    hash_expire(look, 0);
    *o = ks_peek(look, 0);
    return *o && (*o)->type == (p->kind == PATTERN_FIELD ? OBJ_HASH : OBJ_STRING);
}

static bool look_up(struct sorting *s, const struct pattern *p, struct slice elem, struct call *look,
                    struct call_key *k, struct object **o)
{
    bool found = p->kind >= PATTERN_STRING && peek(s, p, elem, look, k, o);

    if (p->kind >= PATTERN_STRING && s->st == ST_OK)
        ks_read(look, 0);
    return found;
}

#define SCRATCH (OBJ_SCRATCH > NUM_I64_MAX ? OBJ_SCRATCH : NUM_I64_MAX)

/* As long as nothing is changed. */
static bool bytes_of(struct sorting *s, const struct pattern *p, const struct object *o, char scratch[SCRATCH],
                     struct slice *out)
{
    if (p->kind == PATTERN_FIELD)
        return hash_get(o, p->field, scratch, out);
    return object_string(o, s->c->w->codec, scratch, out) == ST_OK;
}

/* ---- order ---- */

/* As C's own numbers, with all that strtod() takes. */
static bool score_of(struct sorting *s, struct slice text, double *score)
{
    int64_t n;
    char *end;

    if (num_parse_i64(text, &n)) {
        *score = (double)n;
        return true;
    }
    s->name.len = 0;
    buf_slice_append(&s->name, text);
    buf_byte(&s->name, '\0');
    errno = 0;
    *score = strtod(s->name.ptr, &end);
    return *end == '\0' && errno != ERANGE && !isnan(*score);
}

/* false: it has none. */
static bool weight_of(struct sorting *s, struct item *it, char scratch[SCRATCH], struct slice *text)
{
    struct call look = *s->c;
    struct call_key k;
    struct object *o;
    bool found = peek(s, &s->a.weight, *text, &look, &k, &o);

    it->missing = !o;
    if (!o)
        return false;
    s->found++;
    tier_touch_locked(look.w, o);
    return found && bytes_of(s, &s->a.weight, o, scratch, text);
}

static int compare_places(const void *x, const void *y)
{
    const struct item *const *a = x, *const *b = y;

    return ((*a)->at > (*b)->at) - ((*a)->at < (*b)->at);
}

/* The keys for BY, once it is sure that this run is the last. */
static void count_weights(struct sorting *s)
{
    struct worker *w = s->c->w;
    size_t n = nitems(s), missing = 0;
    struct item **all;

    if (!s->a.by || s->a.nosort)
        return;
    stats_add(w->stats, STAT_keyspace_hits, (int64_t)s->found);
    stats_add(w->stats, STAT_keyspace_misses, (int64_t)(n - s->found));
    if (s->found == n || !notify_wants(w->cmd, NOTIFY_MISS))
        return;
    all = mem_alloc(MEM_OTHER, n * sizeof(struct item *));
    for (size_t i = 0; i < n; i++)
        if (item_at(s, i)->missing)
            all[missing++] = item_at(s, i);
    qsort(all, missing, sizeof(struct item *), compare_places);
    for (size_t i = 0; i < missing; i++) {
        struct call_key k;
        key_of(s, &s->a.weight, item_text(s, all[i]), &k);
        notify_publish(w->cmd, &k.key, "keymiss");
    }
    mem_free(MEM_OTHER, all);
}

static void weigh(struct sorting *s, struct item *it)
{
    char scratch[SCRATCH];
    struct slice text = item_text(s, it);

    if (s->a.by && !weight_of(s, it, scratch, &text))
        return;
    if (!s->a.alpha) {
        s->bad |= !score_of(s, text, &it->score);
        return;
    }
    it->weighed = true;
    it->word.at = s->a.by ? s->text.len : it->at;
    it->word.len = text.len;
    if (s->a.by)
        buf_slice_append(&s->text, text);
}

static int compare_bytes(struct slice a, struct slice b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int by = n ? memcmp(a.ptr, b.ptr, n) : 0;

    return by ? by : (a.len > b.len) - (a.len < b.len);
}

/* Without STORE as strcoll() in the C locale: up to a NUL. */
static int compare_words(const struct sorting *s, const struct item *a, const struct item *b)
{
    if (!a->weighed || !b->weighed)
        return a->weighed - b->weighed;
    struct slice x = SLICE(s->text.ptr + a->word.at, a->word.len), y = SLICE(s->text.ptr + b->word.at, b->word.len);
    if (!s->a.store) {
        x.len = x.len ? strnlen(x.ptr, x.len) : 0;
        y.len = y.len ? strnlen(y.ptr, y.len) : 0;
    }
    return compare_bytes(x, y);
}

static int compare(const void *x, const void *y, void *arg)
{
    const struct sorting *s = arg;
    const struct item *a = x, *b = y;
    int by;

    if (s->a.alpha) {
        by = compare_words(s, a, b);
    } else {
        by = (a->score > b->score) - (a->score < b->score);
        if (by == 0)
            by = compare_bytes(item_text(s, a), item_text(s, b));
    }
    if (by == 0) /* as they came */
        return (a->at > b->at) - (a->at < b->at);
    return s->a.desc ? -by : by;
}

/* Before anything is counted, as far as it is known which keys are wanted. false: this run ends. */
static bool ask_ahead(struct sorting *s)
{
    if (s->a.by && !s->a.nosort)
        ask(s, &s->a.weight, 0, nitems(s));
    if (s->a.nosort || !s->a.limit)
        ask_for_gets(s, s->first, s->n);
    return s->st == ST_OK;
}

/* false: this run ends. */
static bool order(struct sorting *s)
{
    size_t n = nitems(s);

    if (s->a.nosort)
        return true;
    for (size_t i = 0; i < n && s->st == ST_OK; i++)
        weigh(s, item_at(s, i));
    if (s->st != ST_OK)
        return false;
    if (s->bad) {
        count_weights(s);
        call_error(s->c, "ERR One or more scores can't be converted into double");
        return false;
    }
    if (n > 1)
        qsort_r(s->items.ptr, n, sizeof(struct item), compare, s);
    return true;
}

/* ---- the result ---- */

static void reply_one(struct sorting *s, const struct pattern *p, struct slice elem, struct reply *r)
{
    struct call look = *s->c;
    struct call_key k;
    struct object *o;
    char scratch[SCRATCH];
    struct slice value;

    look.r = *r;
    if (p->kind == PATTERN_ELEMENT)
        reply_bulk(r, elem);
    else if (!look_up(s, p, elem, &look, &k, &o))
        reply_null(r);
    else if (p->kind == PATTERN_STRING)
        ks_reply_string(&look, o);
    else if (hash_get(o, p->field, scratch, &value))
        reply_bulk(r, value);
    else
        reply_null(r);
}

/* A key that cannot be had shows only while the reply is made. */
static void reply_result(struct sorting *s)
{
    static const struct pattern self = {.kind = PATTERN_ELEMENT};
    int gets = ngets(&s->a);
    struct chain out;
    struct reply r = {&out, s->c->r.proto};

    chain_init(&out);
    reply_array(&r, (int64_t)s->n * (gets ? gets : 1));
    for (size_t i = s->first; i < s->first + s->n && s->st == ST_OK; i++) {
        struct slice elem = item_text(s, item_at(s, i));
        if (gets == 0)
            reply_one(s, &self, elem, &r);
        for (int g = 0; g < gets; g++)
            reply_one(s, get_at(&s->a, g), elem, &r);
    }
    if (s->st == ST_OK)
        chain_move(s->c->r.out, &out);
    chain_deinit(&out);
}

static void push_one(struct sorting *s, const struct pattern *p, struct slice elem, struct object *list, int size)
{
    struct call look = *s->c;
    struct call_key k;
    struct object *o;
    char scratch[SCRATCH];
    struct slice value = elem;

    if (p && p->kind != PATTERN_ELEMENT && (!look_up(s, p, elem, &look, &k, &o) || !bytes_of(s, p, o, scratch, &value)))
        value = SLICE_LIT("");
    qlist_push(list, false, value, size);
}

static void store_result(struct sorting *s)
{
    struct call *c = s->c;
    int gets = ngets(&s->a), to = c->nkeys - 1, size = ks_limits(c).list_size;
    struct object *list = qlist_create(&c->keys[to].key);
    int64_t n = 0;

    for (size_t i = s->first; i < s->first + s->n && s->st == ST_OK; i++) {
        struct slice elem = item_text(s, item_at(s, i));
        for (int g = 0; g < (gets ? gets : 1); g++, n++) {
            push_one(s, gets ? get_at(&s->a, g) : NULL, elem, list, size);
        }
    }
    if (s->st != ST_OK || n == 0)
        object_free(list);
    if (s->st != ST_OK)
        return;
    if (n > 0) {
        ks_put(c, to, list);
        ks_notify(c, to, NOTIFY_LIST, "sortstore");
    } else if (ks_exists(c, to)) {
        ks_delete(c, to);
        ks_notify(c, to, NOTIFY_GENERIC, "del");
    }
    reply_int(&c->r, n);
}

static void sort(struct sorting *s)
{
    struct call *c = s->c;
    struct object *o;

    if (!parse(c, &s->a))
        return;
    o = ks_peek(c, 0);
    bool sortable = !o || o->type == OBJ_LIST || o->type == OBJ_SET || o->type == OBJ_ZSET;
    if (s->a.nosort && o && o->type == OBJ_SET && (s->a.store || c->in_script)) { /* what has no order is given one */
        s->a.nosort = s->a.by = false;
        s->a.alpha = true;
    }
    if (sortable) {
        load(s, o);
        if (!ask_ahead(s))
            return;
    }
    ks_read(c, 0);
    if (!sortable) {
        call_wrongtype(c);
        return;
    }
    if (!order(s))
        return;
    ask_for_gets(s, s->first, s->n);
    if (s->st != ST_OK)
        return;
    count_weights(s);
    if (s->a.store)
        store_result(s);
    else
        reply_result(s);
}

void cmd_sort(struct call *c)
{
    struct sorting s = {.c = c, .a = {.count = -1}, .st = ST_OK};

    buf_init(&s.a.gets, MEM_OTHER);
    buf_init(&s.text, MEM_OTHER);
    buf_init(&s.items, MEM_OTHER);
    buf_init(&s.name, MEM_OTHER);
    sort(&s);
    if (UNLIKELY(s.st == ST_IO))
        dispatch_fault_error(c, ST_IO);
    buf_deinit(&s.a.gets);
    buf_deinit(&s.text);
    buf_deinit(&s.items);
    buf_deinit(&s.name);
}

void cmd_sort_ro(struct call *c)
{
    cmd_sort(c);
}
