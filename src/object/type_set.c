#include "tiercel/type_set.h"

#include "object_priv.h"
#include "tiercel/hash.h"
#include "tiercel/rdb.h"

/* ---- integers ----
 *
 *   | bytes of each 4 | how many 4 | integer ... |
 *
 * Sorted, little endian, all as wide as the widest needs: 2, 4 or 8 bytes. */
#define INTSET_HEAD 8
#define INTSET_MAX (1u << 30) /* whatever the limit is, Redis has no longer ones */

static uint32_t u32_at(const char *at)
{
    uint32_t v;

    memcpy(&v, at, sizeof(v));
    return v;
}

static void u32_put(char *at, uint32_t v)
{
    memcpy(at, &v, sizeof(v));
}

static size_t intset_width(const char *is)
{
    return u32_at(is);
}

static size_t intset_len(const char *is)
{
    return u32_at(is + 4);
}

static size_t intset_bytes(const char *is)
{
    return INTSET_HEAD + intset_len(is) * intset_width(is);
}

static int64_t int_at(const char *is, size_t width, size_t i)
{
    const char *at = is + INTSET_HEAD + i * width;
    int16_t v16;
    int32_t v32;
    int64_t v;

    switch (width) {
    case 2: memcpy(&v16, at, sizeof(v16)); return v16;
    case 4: memcpy(&v32, at, sizeof(v32)); return v32;
    default: memcpy(&v, at, sizeof(v)); return v;
    }
}

static void int_put(char *is, size_t width, size_t i, int64_t v)
{
    memcpy(is + INTSET_HEAD + i * width, &v, width); /* its low bytes */
}

static size_t width_of(int64_t v)
{
    return v >= INT16_MIN && v <= INT16_MAX ? 2 : v >= INT32_MIN && v <= INT32_MAX ? 4 : 8;
}

static int64_t intset_at(const char *is, size_t i)
{
    return int_at(is, intset_width(is), i);
}

static char *intset_new(void)
{
    char *is = mem_alloc(MEM_DATA, INTSET_HEAD);

    u32_put(is, 2);
    u32_put(is + 4, 0);
    return is;
}

/* *at: where it is, or belongs. */
static bool intset_find(const char *is, int64_t v, size_t *at)
{
    size_t width = intset_width(is), low = 0, high = intset_len(is);

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (int_at(is, width, mid) < v)
            low = mid + 1;
        else
            high = mid;
    }
    *at = low;
    return low < intset_len(is) && int_at(is, width, low) == v;
}

/* One that is wider than those that are there is the first or the last. */
static char *intset_add_wider(char *is, int64_t v, size_t width)
{
    size_t n = intset_len(is), old = intset_width(is), shift = v < 0;

    is = mem_realloc(MEM_DATA, is, INTSET_HEAD + (n + 1) * width);
    for (size_t i = n; i-- > 0;)
        int_put(is, width, i + shift, int_at(is, old, i));
    int_put(is, width, shift ? 0 : n, v);
    u32_put(is, (uint32_t)width);
    u32_put(is + 4, (uint32_t)n + 1);
    return is;
}

static char *intset_insert(char *is, int64_t v, size_t at)
{
    size_t n = intset_len(is), width = intset_width(is);

    if (width_of(v) > width)
        return intset_add_wider(is, v, width_of(v));
    is = mem_realloc(MEM_DATA, is, INTSET_HEAD + (n + 1) * width);
    char *place = is + INTSET_HEAD + at * width;
    memmove(place + width, place, (n - at) * width);
    int_put(is, width, at, v);
    u32_put(is + 4, (uint32_t)n + 1);
    return is;
}

static char *intset_remove(char *is, size_t at)
{
    size_t n = intset_len(is), width = intset_width(is);
    char *place = is + INTSET_HEAD + at * width;

    memmove(place, place + width, (n - at - 1) * width);
    u32_put(is + 4, (uint32_t)n - 1);
    return mem_realloc(MEM_DATA, is, INTSET_HEAD + (n - 1) * width);
}

static bool intset_valid(struct slice s)
{
    if (s.len < INTSET_HEAD)
        return false;
    size_t width = intset_width(s.ptr), n = intset_len(s.ptr);
    if ((width != 2 && width != 4 && width != 8) || n == 0 || s.len != intset_bytes(s.ptr))
        return false;
    for (size_t i = 1; i < n; i++)
        if (int_at(s.ptr, width, i - 1) >= int_at(s.ptr, width, i))
            return false;
    return true;
}

/* ---- any members ---- */

struct set {
    struct dict members;
    size_t bytes; /* of all members' allocations */
    size_t text;  /* of their own bytes */
};

/* One allocation: its length, then its bytes. */
struct member {
    struct dict_entry link;
    char rest[];
};

static size_t member_bytes(size_t len)
{
    return sizeof(struct member) + entry_len_bytes(len) + len;
}

static struct slice member_text(const struct dict_entry *e)
{
    size_t len;
    const char *text = entry_len_get(((const struct member *)e)->rest, &len);

    return SLICE(text, len);
}

static struct set *big_new(void)
{
    struct set *s = mem_alloc(MEM_DATA, sizeof(*s));

    dict_init(&s->members, member_text);
    s->bytes = s->text = 0;
    return s;
}

static bool big_add(struct set *s, struct slice text)
{
    if (dict_find(&s->members, text))
        return false;
    size_t bytes = member_bytes(text.len);
    struct member *m = mem_alloc(MEM_DATA, bytes);
    char *at = entry_len_put(m->rest, text.len);
    if (text.len)
        memcpy(at, text.ptr, text.len);
    dict_add(&s->members, &m->link);
    s->bytes += mem_usable_sized(m, bytes);
    s->text += text.len;
    return true;
}

static bool big_remove(struct set *s, struct slice text)
{
    struct dict_entry *e = dict_remove(&s->members, text);

    if (!e)
        return false;
    size_t len = member_text(e).len, bytes = member_bytes(len);
    s->bytes -= mem_usable_sized(e, bytes);
    s->text -= len;
    mem_free_sized(MEM_DATA, e, bytes);
    return true;
}

static void member_free(void *arg, struct dict_entry *e)
{
    (void)arg;
    mem_free_sized(MEM_DATA, e, member_bytes(member_text(e).len));
}

static void big_free(struct set *s)
{
    dict_clear(&s->members, member_free, NULL);
    mem_free(MEM_DATA, s);
}

static struct set *big_from_intset(const char *is)
{
    struct set *s = big_new();
    char text[NUM_I64_MAX];

    dict_reserve(&s->members, intset_len(is) + 1);
    for (size_t i = 0; i < intset_len(is); i++)
        big_add(s, SLICE(text, num_format_i64(text, intset_at(is, i))));
    return s;
}

/* ---- sets ---- */

static bool is_int(struct slice member, int64_t *v)
{
    return member.len < NUM_I64_MAX && num_parse_i64(member, v);
}

struct object *set_new(const struct key *key, struct slice first)
{
    int64_t v;

    if (is_int(first, &v))
        return object_new_ptr(key, OBJ_SET, ENC_INTSET, intset_new(), 0, 0);
    return object_new_ptr(key, OBJ_SET, ENC_BIG, big_new(), 0, 0);
}

static struct set *grow(enum obj_enc *enc, void **value)
{
    struct set *s = big_from_intset(*value);

    mem_free(MEM_DATA, *value);
    *enc = ENC_BIG;
    *value = s;
    return s;
}

static bool value_add(enum obj_enc *enc, void **value, struct slice member, size_t max_intset)
{
    int64_t v;
    size_t at;

    if (*enc == ENC_BIG)
        return big_add(*value, member);
    if (!is_int(member, &v))
        return big_add(grow(enc, value), member);
    if (intset_find(*value, v, &at))
        return false;
    *value = intset_insert(*value, v, at);
    if (intset_len(*value) > (max_intset < INTSET_MAX ? max_intset : INTSET_MAX))
        grow(enc, value);
    return true;
}

bool set_add(struct object *o, struct slice member, size_t max_intset)
{
    enum obj_enc enc = o->enc;
    void *value = object_ptr(o);

    if (!value_add(&enc, &value, member, max_intset))
        return false;
    object_set_ptr(o, enc, value);
    return true;
}

bool set_remove(struct object *o, struct slice member)
{
    int64_t v;
    size_t at;

    if (o->enc == ENC_BIG)
        return big_remove(object_ptr(o), member);
    if (!is_int(member, &v) || !intset_find(object_ptr(o), v, &at))
        return false;
    object_set_ptr(o, ENC_INTSET, intset_remove(object_ptr(o), at));
    return true;
}

bool set_has(const struct object *o, struct slice member)
{
    int64_t v;
    size_t at;

    if (o->enc == ENC_BIG)
        return dict_find(&((struct set *)object_ptr(o))->members, member) != NULL;
    return is_int(member, &v) && intset_find(object_ptr(o), v, &at);
}

/* ---- walking ---- */

struct set_iter set_iter(const struct object *o)
{
    struct set_iter it = {.o = o};

    if (o->enc == ENC_BIG)
        it.big = dict_iter(&((struct set *)object_ptr(o))->members);
    return it;
}

bool set_next(struct set_iter *it, struct slice *member)
{
    if (it->o->enc == ENC_BIG) {
        const struct dict_entry *e = dict_next(&it->big);
        if (e)
            *member = member_text(e);
        return e != NULL;
    }
    const char *is = object_ptr(it->o);
    if (it->at == intset_len(is))
        return false;
    *member = SLICE(it->text, num_format_i64(it->text, intset_at(is, it->at++)));
    return true;
}

void set_each(const struct object *o, void (*fn)(void *arg, struct slice member), void *arg)
{
    struct set_iter it = set_iter(o);
    struct slice member;

    while (set_next(&it, &member))
        fn(arg, member);
}

struct step {
    void (*fn)(void *arg, struct slice member);
    void *arg;
};

static void step_member(void *arg, struct dict_entry *e)
{
    const struct step *step = arg;

    step->fn(step->arg, member_text(e));
}

uint64_t set_scan(const struct object *o, uint64_t cursor, void (*fn)(void *arg, struct slice member), void *arg)
{
    struct step step = {fn, arg};

    if (o->enc == ENC_BIG)
        return dict_scan(&((struct set *)object_ptr(o))->members, cursor, step_member, &step);
    set_each(o, fn, arg);
    return 0;
}

/* ---- chance ---- */

struct slice set_random(const struct object *o, uint64_t *rng, char text[NUM_I64_MAX])
{
    if (o->enc == ENC_BIG)
        return member_text(dict_random(&((struct set *)object_ptr(o))->members, rng));
    const char *is = object_ptr(o);
    size_t len = intset_len(is);
    return SLICE(text, num_format_i64(text, intset_at(is, (size_t)(rng_next(rng) % len))));
}

/* Passes n of the integers to fn, and keeps those that are left. */
static char *intset_draw(char *is, size_t n, uint64_t *rng, bool keep, const struct step *step)
{
    size_t len = intset_len(is), width = intset_width(is), left = 0;
    char text[NUM_I64_MAX];

    for (size_t i = 0; i < len; i++) {
        int64_t v = int_at(is, width, i);
        if (rng_next(rng) % (len - i) < n) { /* of those from i on, n are still to be taken */
            n--;
            step->fn(step->arg, SLICE(text, num_format_i64(text, v)));
        } else if (!keep) {
            int_put(is, width, left++, v);
        }
    }
    if (keep)
        return is;
    u32_put(is + 4, (uint32_t)left);
    return mem_realloc(MEM_DATA, is, INTSET_HEAD + left * width);
}

static void big_draw(struct set *s, size_t n, uint64_t *rng, bool keep, const struct step *step)
{
    struct dict_entry **some = dict_sample(&s->members, n, rng);

    for (size_t i = 0; i < n; i++) {
        struct slice text = member_text(some[i]);
        step->fn(step->arg, text);
        if (!keep)
            big_remove(s, text);
    }
    mem_free(MEM_OTHER, some);
}

void set_sample(const struct object *o, size_t n, uint64_t *rng, void (*fn)(void *arg, struct slice member), void *arg)
{
    struct step step = {fn, arg};

    CHECK(n <= object_len(o));
    if (o->enc == ENC_BIG)
        big_draw(object_ptr(o), n, rng, true, &step);
    else
        intset_draw(object_ptr(o), n, rng, true, &step);
}

/* Makes it an intset, if a new set with these members were one. */
static void set_shrink(struct object *o, size_t max_intset)
{
    struct set *s = object_ptr(o);
    struct dict_iter it = dict_iter(&s->members);
    enum obj_enc enc = ENC_INTSET;
    void *is = intset_new();

    for (const struct dict_entry *e; enc == ENC_INTSET && (e = dict_next(&it));)
        value_add(&enc, &is, member_text(e), max_intset);
    if (enc == ENC_BIG) {
        big_free(is);
    } else {
        big_free(s);
        object_set_ptr(o, enc, is);
    }
}

#define POP_FEW 5 /* times as many that go as stay: few are left */

void set_pop(struct object *o, size_t n, size_t max_intset, uint64_t *rng, void (*fn)(void *arg, struct slice member),
             void *arg)
{
    struct step step = {fn, arg};
    size_t left = object_len(o) - n;

    CHECK(n <= object_len(o));
    if (o->enc == ENC_INTSET) {
        object_set_ptr(o, ENC_INTSET, intset_draw(object_ptr(o), n, rng, false, &step));
        return;
    }
    big_draw(object_ptr(o), n, rng, false, &step);
    if (left > 0 && n > 1 && left <= n / POP_FEW)
        set_shrink(o, max_intset);
}

/* ---- as a type of object ---- */

static const char *set_encoding(enum obj_enc enc)
{
    return enc == ENC_INTSET ? "intset" : "hashtable";
}

static void set_destroy(enum obj_enc enc, void *value)
{
    if (enc == ENC_INTSET)
        mem_free(MEM_DATA, value);
    else
        big_free(value);
}

static bool copy_member(void *arg, struct dict_entry *e)
{
    big_add(arg, member_text(e));
    return true;
}

static void *set_copy(enum obj_enc enc, const void *value)
{
    if (enc == ENC_INTSET) {
        void *is = mem_alloc(MEM_DATA, intset_bytes(value));
        memcpy(is, value, intset_bytes(value));
        return is;
    }
    const struct set *from = value;
    struct set *s = big_new();
    dict_reserve(&s->members, from->members.count);
    dict_each(&from->members, copy_member, s);
    return s;
}

static size_t set_bytes(enum obj_enc enc, const void *value)
{
    const struct set *s = value;

    return mem_usable(value) + (enc == ENC_INTSET ? 0 : s->bytes + dict_bytes(&s->members));
}

static size_t set_len(enum obj_enc enc, const void *value)
{
    return enc == ENC_INTSET ? intset_len(value) : ((const struct set *)value)->members.count;
}

static size_t set_stored(enum obj_enc enc, const void *value)
{
    const struct set *s = value;

    return enc == ENC_INTSET ? intset_bytes(value) : s->text + s->members.count;
}

static void save_member(void *arg, struct dict_entry *e)
{
    rdb_put_string(arg, member_text(e));
}

static bool set_save_part(enum obj_enc enc, const void *value, uint64_t *at, size_t bytes, struct buf *out)
{
    const struct set *s = value;

    if (enc == ENC_INTSET) {
        buf_byte(out, RDB_SET_INTSET);
        rdb_put_raw(out, SLICE(value, intset_bytes(value)));
        return true;
    }
    if (*at == 0) {
        buf_byte(out, RDB_SET);
        rdb_put_len(out, s->members.count);
    }
    return dict_save_part(&s->members, at, bytes, save_member, out);
}

static bool load_intset(struct rdb_reader *in, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    struct slice s;

    if (!rdb_get_string(in, &s) || !intset_valid(s))
        return false;
    if (lim && intset_len(s.ptr) > lim->set_intset) {
        *value = big_from_intset(s.ptr);
        return true;
    }
    *enc = ENC_INTSET;
    *value = mem_alloc(MEM_DATA, s.len);
    memcpy(*value, s.ptr, s.len);
    return true;
}

static bool set_load(struct rdb_reader *in, int rdb_type, const struct obj_limits *lim, enum obj_enc *enc, void **value)
{
    struct slice member;
    uint64_t n;

    *enc = ENC_BIG;
    if (rdb_type == RDB_SET_INTSET)
        return load_intset(in, lim, enc, value);
    if (!rdb_get_len(in, &n) || n == 0)
        return false;
    if (lim && n <= lim->set_intset && n <= INTSET_MAX) {
        *enc = ENC_INTSET;
        *value = intset_new();
    } else {
        *value = big_new();
        if (n <= rdb_left(in) / 2) /* else it claims more than there is, or nearly */
            dict_reserve(&((struct set *)*value)->members, (size_t)n);
    }
    bool ok = true;
    while (ok && n-- > 0)
        ok = rdb_get_string(in, &member) && value_add(enc, value, member, SIZE_MAX);
    if (!ok)
        set_destroy(*enc, *value);
    return ok;
}

const struct object_ops set_ops = {
    .name = "set",
    .encoding = set_encoding,
    .destroy = set_destroy,
    .copy = set_copy,
    .bytes = set_bytes,
    .len = set_len,
    .stored = set_stored,
    .save_part = set_save_part,
    .load = set_load,
};
