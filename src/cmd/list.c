#include "tiercel/type_list.h"

#include "cmd/cmd_priv.h"

/* Commands on lists that do not wait, and what those that do share with them (list_wait.c). */

static int node_size(const struct call *c)
{
    return (int)c->w->conf->list_max_listpack_size;
}

/* ---- adding -------------------------------------------------------------------------- */

static void pushed(struct call *c, int i, bool left)
{
    ks_notify(c, i, NOTIFY_LIST, left ? "lpush" : "rpush");
}

static void push_command(struct call *c, bool left, bool only_existing)
{
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    if (!o && only_existing) {
        reply_int(&c->r, 0);
        return;
    }
    struct object *fresh = o ? NULL : qlist_create(&c->keys[0].key);
    if (fresh)
        o = fresh;
    for (int i = 2; i < c->argc; i++)
        qlist_push(o, left, c->argv[i], node_size(c));
    size_t len = qlist_len(o);
    if (fresh)
        ks_put(c, 0, fresh);
    else
        ks_changed(c, 0);
    pushed(c, 0, left);
    reply_int(&c->r, (int64_t)len);
}

void cmd_lpush(struct call *c)
{
    push_command(c, true, false);
}

void cmd_rpush(struct call *c)
{
    push_command(c, false, false);
}

void cmd_lpushx(struct call *c)
{
    push_command(c, true, true);
}

void cmd_rpushx(struct call *c)
{
    push_command(c, false, true);
}

/* An index of a command among `len` elements; false: it is out of them. */
static bool place_of(int64_t index, size_t len, size_t *at)
{
    if (index < 0)
        index += (int64_t)len;
    *at = (size_t)index;
    return index >= 0 && *at < len;
}

static bool find_first(struct object *o, struct slice elem, struct qlist_pos *at)
{
    struct qlist_wanted want = qlist_want(elem);
    qlist_seek(o, 0, at);
    do {
        if (qlist_is(at, &want))
            return true;
    } while (qlist_step(at, false));
    return false;
}

void cmd_linsert(struct call *c)
{
    struct qlist_pos at;
    bool after = call_arg_is(c, 2, "after");
    if (!after && !call_arg_is(c, 2, "before")) {
        call_syntax(c);
        return;
    }
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    if (!o || !find_first(o, c->argv[3], &at)) {
        reply_int(&c->r, o ? -1 : 0);
        return;
    }
    qlist_insert(&at, after, c->argv[4], node_size(c));
    reply_int(&c->r, (int64_t)qlist_len(o));
    ks_notify(c, 0, NOTIFY_LIST, "linsert");
    ks_changed(c, 0);
}

void cmd_lset(struct call *c)
{
    struct object *o = ks_peek(c, 0);
    int64_t index;
    size_t at;
    if (!o) {
        call_error(c, "ERR no such key");
        return;
    }
    if (!ks_is(c, o, OBJ_LIST) || !call_arg_i64(c, 2, &index, NULL))
        return;
    if (!place_of(index, qlist_len(o), &at)) {
        call_error(c, "ERR index out of range");
        return;
    }
    qlist_set(o, at, c->argv[3], node_size(c));
    reply_simple(&c->r, "OK");
    ks_notify(c, 0, NOTIFY_LIST, "lset");
    ks_changed(c, 0);
}

/* ---- removing ------------------------------------------------------------------------ */

static void popped(struct call *c, int i, bool left)
{
    ks_notify(c, i, NOTIFY_LIST, left ? "lpop" : "rpop");
    ks_changed(c, i);
}

static struct slice end_of(struct object *o, bool left, char scratch[NUM_I64_MAX])
{
    struct qlist_pos at;
    qlist_seek(o, left ? 0 : qlist_len(o) - 1, &at);
    return qlist_get(&at, scratch);
}

void list_pop_one(struct call *c, int i, bool left)
{
    struct object *o = ks_peek(c, i);
    char scratch[NUM_I64_MAX];
    reply_bulk(&c->r, end_of(o, left, scratch));
    qlist_trim(o, left, !left);
    popped(c, i, left);
}

void list_pop_many(struct call *c, int i, bool left, uint64_t max)
{
    struct object *o = ks_peek(c, i);
    size_t len = qlist_len(o), n = max < len ? (size_t)max : len;
    char scratch[NUM_I64_MAX];
    struct qlist_pos at;
    reply_array(&c->r, (int64_t)n);
    if (n == 0)
        return;
    qlist_seek(o, left ? 0 : len - 1, &at);
    for (size_t k = 0; k < n; k++) {
        reply_bulk(&c->r, qlist_get(&at, scratch));
        qlist_step(&at, !left);
    }
    qlist_trim(o, left ? n : 0, left ? 0 : n);
    popped(c, i, left);
}

static void pop_command(struct call *c, bool left)
{
    int64_t count = 0;
    if (c->argc > 3) {
        cmd_reply_bad_arity(c);
        return;
    }
    bool counted = c->argc == 3;
    if (counted && !cmd_arg_between(c, 2, 0, INT64_MAX, &count, "ERR value is out of range, must be positive"))
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    if (!o && counted)
        reply_null_array(&c->r);
    else if (!o)
        reply_null(&c->r);
    else if (counted)
        list_pop_many(c, 0, left, (uint64_t)count);
    else
        list_pop_one(c, 0, left);
}

void cmd_lpop(struct call *c)
{
    pop_command(c, true);
}

void cmd_rpop(struct call *c)
{
    pop_command(c, false);
}

void cmd_lrem(struct call *c)
{
    int64_t count;
    if (!call_arg_i64(c, 2, &count, NULL))
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    size_t max = count == 0 ? SIZE_MAX : count > 0 ? (size_t)count : (size_t)0 - (size_t)count;
    size_t n = o ? qlist_remove(o, c->argv[3], max, count < 0) : 0;
    reply_int(&c->r, (int64_t)n);
    if (n == 0)
        return;
    ks_notify(c, 0, NOTIFY_LIST, "lrem");
    ks_changed(c, 0);
}

/* The elements that a range of a command means; false: none. */
static bool range_of(int64_t start, int64_t end, size_t len, size_t *first, size_t *last)
{
    int64_t n = (int64_t)len;
    if (start < 0)
        start = start + n < 0 ? 0 : start + n;
    if (end < 0)
        end += n;
    if (end >= n)
        end = n - 1;
    *first = (size_t)start;
    *last = (size_t)end;
    return start <= end;
}

void cmd_ltrim(struct call *c)
{
    int64_t start, end;
    size_t first, last;
    if (!call_arg_i64(c, 2, &start, NULL) || !call_arg_i64(c, 3, &end, NULL))
        return;
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    reply_simple(&c->r, "OK");
    if (!o)
        return;
    if (range_of(start, end, qlist_len(o), &first, &last))
        qlist_trim(o, first, qlist_len(o) - 1 - last);
    else
        qlist_trim(o, qlist_len(o), 0);
    ks_notify(c, 0, NOTIFY_LIST, "ltrim");
    ks_changed(c, 0);
}

/* ---- moving -------------------------------------------------------------------------- */

bool list_arg_end(struct call *c, int arg, bool *left)
{
    *left = call_arg_is(c, arg, "left");
    if (*left || call_arg_is(c, arg, "right"))
        return true;
    call_syntax(c);
    return false;
}

/* Within one list; keys[1] is the same key as keys[0]. */
static void list_rotate(struct call *c, struct object *o, bool from_left, bool to_left)
{
    char scratch[NUM_I64_MAX];
    struct buf elem;
    buf_init(&elem, MEM_OTHER);
    buf_slice_append(&elem, end_of(o, from_left, scratch));
    qlist_trim(o, from_left, !from_left);
    qlist_push(o, to_left, buf_slice(&elem), node_size(c));
    reply_bulk(&c->r, buf_slice(&elem));
    buf_deinit(&elem);
    pushed(c, 0, to_left);
    popped(c, 0, from_left);
}

void list_move(struct call *c, bool from_left, bool to_left)
{
    struct object *from = ks_peek(c, 0), *to = ks_peek(c, 1);
    char scratch[NUM_I64_MAX];
    if (!ks_is(c, to, OBJ_LIST))
        return;
    if (from == to) {
        list_rotate(c, from, from_left, to_left);
        return;
    }
    struct slice elem = end_of(from, from_left, scratch);
    reply_bulk(&c->r, elem);
    if (to) {
        qlist_push(to, to_left, elem, node_size(c));
        ks_changed(c, 1);
    } else {
        to = qlist_create(&c->keys[1].key);
        qlist_push(to, to_left, elem, node_size(c));
        ks_put(c, 1, to);
    }
    pushed(c, 1, to_left);
    qlist_trim(from, from_left, !from_left);
    popped(c, 0, from_left);
}

static void move_command(struct call *c, bool from_left, bool to_left)
{
    struct object *o = ks_peek(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    if (o)
        list_move(c, from_left, to_left);
    else
        reply_null(&c->r);
}

void cmd_lmove(struct call *c)
{
    bool from_left, to_left;
    if (list_arg_end(c, 3, &from_left) && list_arg_end(c, 4, &to_left))
        move_command(c, from_left, to_left);
}

void cmd_rpoplpush(struct call *c)
{
    move_command(c, false, true);
}

/* ---- from the first of several lists ------------------------------------------------- */

bool list_args_mpop(struct call *c, int numkeys, bool *left, int64_t *count)
{
    int64_t n;
    *count = 1;
    if (!cmd_arg_between(c, numkeys, 1, INT64_MAX, &n, "ERR numkeys should be greater than 0"))
        return false;
    if (n >= c->argc - numkeys - 1) {
        call_syntax(c);
        return false;
    }
    int where = numkeys + 1 + (int)n;
    if (!list_arg_end(c, where, left))
        return false;
    bool counted = false;
    for (int i = where + 1; i < c->argc; i++) {
        if (counted || i + 1 == c->argc || !call_arg_is(c, i, "count")) {
            call_syntax(c);
            return false;
        }
        if (!cmd_arg_between(c, ++i, 1, INT64_MAX, count, "ERR count should be greater than 0"))
            return false;
        counted = true;
    }
    return true;
}

void list_pop_named(struct call *c, int i, bool left, int64_t count)
{
    reply_array(&c->r, 2);
    reply_bulk(&c->r, key_slice(&c->keys[i].key));
    if (count)
        list_pop_many(c, i, left, (uint64_t)count);
    else
        list_pop_one(c, i, left);
}

void cmd_lmpop(struct call *c)
{
    int64_t count;
    bool left;
    if (!list_args_mpop(c, 1, &left, &count))
        return;
    for (int i = 0; i < c->nkeys; i++) {
        struct object *o = ks_peek(c, i);
        if (!ks_is(c, o, OBJ_LIST))
            return;
        if (o) {
            list_pop_named(c, i, left, count);
            return;
        }
    }
    reply_null_array(&c->r);
}

/* ---- reading ------------------------------------------------------------------------- */

void cmd_llen(struct call *c)
{
    struct object *o = ks_read(c, 0);
    if (ks_is(c, o, OBJ_LIST))
        reply_int(&c->r, o ? (int64_t)qlist_len(o) : 0);
}

void cmd_lindex(struct call *c)
{
    struct object *o = ks_read(c, 0);
    char scratch[NUM_I64_MAX];
    struct qlist_pos at;
    int64_t index;
    size_t place;
    if (!o) {
        reply_null(&c->r);
        return;
    }
    if (!ks_is(c, o, OBJ_LIST) || !call_arg_i64(c, 2, &index, NULL))
        return;
    if (!place_of(index, qlist_len(o), &place)) {
        reply_null(&c->r);
        return;
    }
    qlist_seek(o, place, &at);
    reply_bulk(&c->r, qlist_get(&at, scratch));
}

void cmd_lrange(struct call *c)
{
    int64_t start, end;
    size_t first, last;
    char scratch[NUM_I64_MAX];
    struct qlist_pos at;
    if (!call_arg_i64(c, 2, &start, NULL) || !call_arg_i64(c, 3, &end, NULL))
        return;
    struct object *o = ks_read(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    if (!o || !range_of(start, end, qlist_len(o), &first, &last)) {
        reply_array(&c->r, 0);
        return;
    }
    reply_array(&c->r, (int64_t)(last - first + 1));
    qlist_seek(o, first, &at);
    for (size_t i = first; i <= last; i++) {
        reply_bulk(&c->r, qlist_get(&at, scratch));
        qlist_step(&at, false);
    }
}

struct pos_args {
    bool counted, back;
    int64_t skip, count, maxlen; /* matches to pass over; 0 = all */
};

static bool pos_options(struct call *c, struct pos_args *a)
{
    int64_t rank;
    for (int i = 3; i < c->argc; i += 2) {
        bool more = i + 1 < c->argc;
        if (more && call_arg_is(c, i, "rank")) {
            if (!call_arg_i64(c, i + 1, &rank, NULL))
                return false;
            if (rank == 0) {
                call_error(c, "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ... or "
                              "use negative to start from the end of the list");
                return false;
            }
            a->back = rank < 0;
            /* of the lowest number there is no opposite: Redis 7.0 passes over nothing then */
            a->skip = rank == INT64_MIN ? 0 : rank < 0 ? -rank - 1 : rank - 1;
        } else if (more && call_arg_is(c, i, "count")) {
            if (!cmd_arg_between(c, i + 1, 0, INT64_MAX, &a->count, "ERR COUNT can't be negative"))
                return false;
            a->counted = true;
        } else if (more && call_arg_is(c, i, "maxlen")) {
            if (!cmd_arg_between(c, i + 1, 0, INT64_MAX, &a->maxlen, "ERR MAXLEN can't be negative"))
                return false;
        } else {
            call_syntax(c);
            return false;
        }
    }
    return true;
}

/* The places of matches, in the order of the search; returns how many. `out` NULL: counts up to the first. */
static int64_t pos_search(struct call *c, struct object *o, const struct pos_args *a, struct reply *out, int64_t *first)
{
    struct qlist_wanted want = qlist_want(c->argv[2]);
    int64_t len = (int64_t)qlist_len(o), skip = a->skip, found = 0;
    struct qlist_pos at;
    qlist_seek(o, a->back ? (size_t)len - 1 : 0, &at);
    for (int64_t i = 0; i < len && (a->maxlen == 0 || i < a->maxlen); i++, qlist_step(&at, a->back)) {
        if (!qlist_is(&at, &want) || skip-- > 0)
            continue;
        int64_t place = a->back ? len - 1 - i : i;
        if (found++ == 0)
            *first = place;
        if (!out)
            return found;
        reply_int(out, place);
        if (found == a->count)
            break;
    }
    return found;
}

void cmd_lpos(struct call *c)
{
    struct pos_args a = {.skip = 0};
    struct chain items;
    int64_t first;
    if (!pos_options(c, &a))
        return;
    struct object *o = ks_read(c, 0);
    if (!ks_is(c, o, OBJ_LIST))
        return;
    if (!a.counted) {
        if (o && pos_search(c, o, &a, NULL, &first))
            reply_int(&c->r, first);
        else
            reply_null(&c->r);
        return;
    }
    if (!o) {
        reply_array(&c->r, 0);
        return;
    }
    chain_init(&items);
    struct reply out = {&items, c->r.proto};
    reply_array(&c->r, pos_search(c, o, &a, &out, &first));
    chain_move(c->r.out, &items);
    chain_deinit(&items);
}
