/* PFADD, PFCOUNT, PFMERGE; PFDEBUG and PFSELFTEST. */
#include "tiercel/hll.h"

#include "cmd/cmd_priv.h"

static void reply_corrupted(struct call *c)
{
    call_error(c, "INVALIDOBJ Corrupted HLL object detected");
}

/* Its bytes; of no key: none. false: it is no HyperLogLog, replied. */
static bool hll_of(struct call *c, struct object *o, char scratch[OBJ_SCRATCH], struct slice *s)
{
    *s = SLICE_NONE;
    if (!o)
        return true;
    if (!ks_string(c, o, scratch, s))
        return false;
    if (hll_valid(*s))
        return true;
    call_error(c, "WRONGTYPE Key is not a valid HyperLogLog string value.");
    return false;
}

static void store_as_it_is(struct call *c, const struct buf *hll)
{
    struct object *old = ks_peek(c, 0);

    struct object *o = object_new_string(&c->keys[0].key, buf_slice(hll), old ? object_expire(old) : 0, 0);
    o->flags |= OBJ_F_MODIFIED;
    ks_put(c, 0, o);
}

static void store(struct call *c, struct buf *hll)
{
    hll_forget_cached(hll->ptr);
    store_as_it_is(c, hll);
}

/* Dense ones are changed in place, if there is a change. */
static int add_dense(struct call *c, struct slice s)
{
    struct ks_edit e;
    unsigned reg, value;
    bool raises = false;

    for (int i = 2; i < c->argc && !raises; i++) {
        hll_place(c->argv[i], &reg, &value);
        raises = hll_dense_get(s.ptr, reg) < value;
    }
    if (!raises)
        return 0;
    char *bytes = ks_edit(c, 0, s.len, &e);
    if (!bytes)
        return -1;
    for (int i = 2; i < c->argc; i++) {
        hll_place(c->argv[i], &reg, &value);
        hll_dense_raise(bytes, reg, value);
    }
    hll_forget_cached(bytes);
    ks_edited(c, 0, &e);
    return 1;
}

static int add_sparse(struct call *c, struct slice s)
{
    size_t max = (size_t)c->w->conf->hll_sparse_max_bytes;
    struct buf hll;
    unsigned reg, value;
    int changed = !s.ptr;

    buf_init(&hll, MEM_OTHER);
    if (s.ptr)
        buf_slice_append(&hll, s);
    else
        hll_new(&hll);
    for (int i = 2; i < c->argc && changed >= 0; i++) {
        hll_place(c->argv[i], &reg, &value);
        int one = hll_raise(&hll, reg, value, max);
        changed = one < 0 ? -1 : changed | one;
    }
    if (changed > 0)
        store(c, &hll);
    else if (changed < 0)
        reply_corrupted(c);
    buf_deinit(&hll);
    return changed;
}

void cmd_pfadd(struct call *c)
{
    char scratch[OBJ_SCRATCH];
    struct slice s;

    if (!hll_of(c, ks_peek(c, 0), scratch, &s))
        return;
    int changed = s.ptr && hll_is_dense(s) ? add_dense(c, s) : add_sparse(c, s);
    if (changed < 0)
        return;
    if (changed)
        ks_notify(c, 0, NOTIFY_STRING, "pfadd");
    reply_int(&c->r, changed);
}

/* Raises max[] to the registers of all keys. false: replied. */
static bool merge_all(struct call *c, uint8_t max[HLL_REGISTERS], bool *dense)
{
    char scratch[OBJ_SCRATCH];
    struct slice s;

    memset(max, 0, HLL_REGISTERS);
    for (int i = 0; i < c->nkeys; i++) {
        if (!hll_of(c, ks_read(c, i), scratch, &s))
            return false;
        if (!s.ptr)
            continue;
        *dense |= hll_is_dense(s);
        if (!hll_merge(s, max)) {
            reply_corrupted(c);
            return false;
        }
    }
    return true;
}

/* The estimate of a single one is noted in it. */
static void count_one(struct call *c, uint8_t max[HLL_REGISTERS])
{
    char scratch[OBJ_SCRATCH];
    struct slice s;
    struct ks_edit e;
    uint64_t n;

    if (!hll_of(c, ks_read(c, 0), scratch, &s))
        return;
    if (!s.ptr) {
        reply_int(&c->r, 0);
        return;
    }
    if (!hll_cached(s, &n)) {
        memset(max, 0, HLL_REGISTERS);
        if (!hll_merge(s, max)) {
            reply_corrupted(c);
            return;
        }
        n = hll_estimate(max);
        char *bytes = ks_edit(c, 0, s.len, &e);
        if (!bytes)
            return;
        hll_set_cached(bytes, n);
        ks_edited(c, 0, &e);
    }
    reply_int(&c->r, (int64_t)n);
}

void cmd_pfcount(struct call *c)
{
    static _Thread_local uint8_t max[HLL_REGISTERS];
    bool dense = false;

    if (c->nkeys == 1)
        count_one(c, max);
    else if (merge_all(c, max, &dense))
        reply_int(&c->r, (int64_t)hll_estimate(max));
}

void cmd_pfmerge(struct call *c)
{
    static _Thread_local uint8_t max[HLL_REGISTERS];
    char scratch[OBJ_SCRATCH];
    bool dense = false;
    struct slice s;
    struct buf hll;

    if (!merge_all(c, max, &dense) || !hll_of(c, ks_peek(c, 0), scratch, &s))
        return;
    buf_init(&hll, MEM_OTHER);
    if (s.ptr)
        buf_slice_append(&hll, s);
    else
        hll_new(&hll);
    if (dense)
        hll_to_dense(&hll);
    for (unsigned reg = 0; reg < HLL_REGISTERS; reg++)
        if (max[reg])
            hll_raise(&hll, reg, max[reg], (size_t)c->w->conf->hll_sparse_max_bytes);
    store(c, &hll);
    buf_deinit(&hll);
    ks_notify(c, 0, NOTIFY_STRING, "pfadd");
    reply_simple(&c->r, "OK");
}

/* ---- looking inside ---- */

/* As a dense one, which is stored if it was none. false: replied. */
static bool make_dense(struct call *c, struct slice s, bool *changed)
{
    static _Thread_local uint8_t whole[HLL_REGISTERS];
    struct buf hll;

    *changed = !hll_is_dense(s);
    if (!*changed)
        return true;
    if (!hll_merge(s, whole)) {
        reply_corrupted(c);
        return false;
    }
    buf_init(&hll, MEM_OTHER);
    buf_slice_append(&hll, s);
    hll_to_dense(&hll);
    store_as_it_is(c, &hll);
    buf_deinit(&hll);
    return true;
}

static void reply_registers(struct call *c, struct slice s)
{
    static _Thread_local uint8_t reg[HLL_REGISTERS];

    memset(reg, 0, sizeof(reg));
    hll_merge(s, reg); /* it is dense */
    reply_array(&c->r, HLL_REGISTERS);
    for (unsigned i = 0; i < HLL_REGISTERS; i++)
        reply_int(&c->r, reg[i]);
}

static void reply_runs(struct call *c, struct slice s)
{
    struct buf text;

    if (hll_is_dense(s)) {
        call_error(c, "ERR HLL encoding is not sparse");
        return;
    }
    buf_init(&text, MEM_CLIENT);
    hll_sparse_text(s, &text);
    reply_bulk(&c->r, buf_slice(&text));
    buf_deinit(&text);
}

void cmd_pfdebug(struct call *c)
{
    char scratch[OBJ_SCRATCH];
    struct object *o = ks_peek(c, 0);
    struct slice s;
    bool changed;

    if (!o) {
        call_error(c, "ERR The specified key does not exist");
        return;
    }
    if (!hll_of(c, o, scratch, &s))
        return;
    if (call_arg_is(c, 1, "getreg")) {
        if (make_dense(c, s, &changed) && hll_of(c, ks_peek(c, 0), scratch, &s))
            reply_registers(c, s);
    } else if (call_arg_is(c, 1, "decode")) {
        reply_runs(c, s);
    } else if (call_arg_is(c, 1, "encoding")) {
        reply_simple(&c->r, hll_is_dense(s) ? "dense" : "sparse");
    } else if (call_arg_is(c, 1, "todense")) {
        if (make_dense(c, s, &changed))
            reply_int(&c->r, changed);
    } else {
        call_errorf(c, "ERR Unknown PFDEBUG subcommand '%.*s'", SLICE_FMT(c->argv[1]));
    }
}

#define SELFTEST_ELEMENTS 20000

/* Both encodings must come to the same registers, and those to about the number of elements. */
void cmd_pfselftest(struct call *c)
{
    static _Thread_local uint8_t want[HLL_REGISTERS], got[HLL_REGISTERS];
    struct buf sparse, dense;
    unsigned reg, value;
    bool good = true;

    memset(want, 0, sizeof(want));
    buf_init(&sparse, MEM_OTHER);
    buf_init(&dense, MEM_OTHER);
    hll_new(&sparse);
    hll_new(&dense);
    hll_to_dense(&dense);
    for (int64_t i = 1; i <= SELFTEST_ELEMENTS && good; i++) {
        hll_place(SLICE((const char *)&i, sizeof(i)), &reg, &value);
        if (want[reg] < value)
            want[reg] = (uint8_t)value;
        good = hll_raise(&sparse, reg, value, 3000) >= 0 && hll_raise(&dense, reg, value, 0) >= 0;
        if (i != 100 && i != 1000 && i != SELFTEST_ELEMENTS)
            continue;
        const struct buf *both[] = {&sparse, &dense};
        for (int k = 0; k < 2; k++) {
            memset(got, 0, sizeof(got));
            good &= hll_merge(buf_slice(both[k]), got) && memcmp(got, want, sizeof(got)) == 0;
        }
        double off = (double)hll_estimate(want) / (double)i - 1;
        good &= off < 0.05 && off > -0.05;
    }
    buf_deinit(&sparse);
    buf_deinit(&dense);
    if (good)
        reply_simple(&c->r, "OK");
    else
        call_error(c, "TESTFAILED the registers are not what was put there");
}
