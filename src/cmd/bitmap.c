/* Strings as bitmaps. A bit's place is counted from the highest bit of the first byte. */
#include "tiercel/num.h"

#include "cmd/cmd_priv.h"

/* ---- arguments ---- */

/* "#5" is five times the width. The last bit must be within a string of the greatest length. */
bool cmd_arg_bit_offset(struct call *c, int arg, bool hash, unsigned width, uint64_t *out)
{
    struct slice s = c->argv[arg];
    bool times = hash && s.len > 0 && s.ptr[0] == '#';
    int64_t v;

    if (times)
        s = SLICE(s.ptr + 1, s.len - 1);
    if (!num_parse_i64(s, &v) || v < 0 || (times && __builtin_mul_overflow(v, (int64_t)width, &v)) ||
        v >> 3 >= c->w->conf->proto_max_bulk_len) {
        call_error(c, "ERR bit offset is not an integer or out of range");
        return false;
    }
    *out = (uint64_t)v;
    return true;
}

static bool bytes_of(struct call *c, struct object *o, char scratch[OBJ_SCRATCH], struct slice *bytes)
{
    *bytes = SLICE_LIT("");
    return !o || ks_string(c, o, scratch, bytes);
}

static unsigned bit_at(struct slice bytes, uint64_t offset)
{
    size_t i = (size_t)(offset >> 3);
    return i < bytes.len ? (unsigned char)bytes.ptr[i] >> (7 - (offset & 7)) & 1 : 0;
}

/* ---- single bits ---- */

void cmd_getbit(struct call *c)
{
    char scratch[OBJ_SCRATCH];
    struct slice bytes;
    uint64_t offset;

    if (!cmd_arg_bit_offset(c, 2, false, 0, &offset) || !bytes_of(c, ks_read(c, 0), scratch, &bytes))
        return;
    reply_int(&c->r, bit_at(bytes, offset));
}

void cmd_setbit(struct call *c)
{
    char scratch[OBJ_SCRATCH];
    struct slice now;
    struct ks_edit e;
    uint64_t offset;
    int64_t on;

    if (!cmd_arg_bit_offset(c, 2, false, 0, &offset))
        return;
    if (!num_parse_i64(c->argv[3], &on) || on < 0 || on > 1) {
        call_error(c, "ERR bit is not an integer or out of range");
        return;
    }
    if (!bytes_of(c, ks_peek(c, 0), scratch, &now))
        return;
    unsigned shift = 7 - (offset & 7), was = bit_at(now, offset);
    bool changes = was != (unsigned)on || offset >> 3 >= now.len;
    if (changes || strcmp(object_encoding_name(ks_peek(c, 0)), "raw") != 0) { /* as which Redis keeps it from now on */
        char *bytes = ks_edit(c, 0, (size_t)(offset >> 3) + 1, &e);
        if (!bytes)
            return;
        unsigned char *byte = (unsigned char *)bytes + (offset >> 3);
        *byte = (unsigned char)((*byte & ~(1u << shift)) | (unsigned)on << shift);
        ks_edited(c, 0, &e);
    }
    if (changes)
        ks_notify(c, 0, NOTIFY_STRING, "setbit");
    reply_int(&c->r, was);
}

/* ---- ranges ---- */

/* Bits [first, last], of a string that has some; first > last: none. */
struct bit_range {
    int64_t first, last;
};

static bool arg_unit(struct call *c, int arg, bool *bits)
{
    *bits = call_arg_is(c, arg, "bit");
    if (*bits || call_arg_is(c, arg, "byte"))
        return true;
    call_syntax(c);
    return false;
}

/* Negative ends count from the end. */
static struct bit_range range_within(size_t len, int64_t start, int64_t end, bool bits)
{
    int64_t total = (int64_t)len * (bits ? 8 : 1);

    start = start < 0 ? start + total : start;
    end = end < 0 ? end + total : end;
    start = start < 0 ? 0 : start;
    end = end < 0 ? 0 : end;
    end = end >= total ? total - 1 : end;
    if (start > end)
        return (struct bit_range){1, 0};
    return bits ? (struct bit_range){start, end} : (struct bit_range){start * 8, end * 8 + 7};
}

static int64_t count_bits(const unsigned char *p, size_t len)
{
    int64_t n = 0;
    uint64_t word;

    for (; len >= sizeof(word); p += sizeof(word), len -= sizeof(word)) {
        memcpy(&word, p, sizeof(word));
        n += __builtin_popcountll(word);
    }
    for (; len > 0; p++, len--)
        n += __builtin_popcount(*p);
    return n;
}

static int64_t count_range(struct slice bytes, struct bit_range r)
{
    const unsigned char *p = (const unsigned char *)bytes.ptr;

    if (r.first > r.last)
        return 0;
    size_t from = (size_t)r.first >> 3, to = (size_t)r.last >> 3;
    int64_t n = count_bits(p + from, to - from + 1);
    /* Less what is outside of the range in its first and last byte. */
    n -= __builtin_popcount(p[from] & ~(0xffu >> (r.first & 7)) & 0xff);
    return n - __builtin_popcount(p[to] & (0x7fu >> (r.last & 7)));
}

void cmd_bitcount(struct call *c)
{
    char scratch[OBJ_SCRATCH];
    struct slice bytes;
    int64_t start = 0, end = -1;
    bool bits = false;

    struct object *o = ks_read(c, 0);
    if (!o) { /* whatever the range is */
        reply_int(&c->r, 0);
        return;
    }
    if (!bytes_of(c, o, scratch, &bytes))
        return;
    if (c->argc == 3 || c->argc > 5) {
        call_syntax(c);
        return;
    }
    if (c->argc > 3 && (!call_arg_i64(c, 2, &start, NULL) || !call_arg_i64(c, 3, &end, NULL)))
        return;
    if (start < 0 && end < 0 && start > end) { /* whatever the unit is */
        reply_int(&c->r, 0);
        return;
    }
    if (c->argc > 4 && !arg_unit(c, 4, &bits))
        return;
    reply_int(&c->r, bytes.len ? count_range(bytes, range_within(bytes.len, start, end, bits)) : 0);
}

/* The first bit of the range that is `on`; -1: none. */
static int64_t find_bit(struct slice bytes, struct bit_range r, unsigned on)
{
    unsigned char all = on ? 0 : 0xff;

    for (int64_t at = r.first; at <= r.last; at++) {
        while ((at & 7) == 0 && at + 7 <= r.last && (unsigned char)bytes.ptr[at >> 3] == all)
            at += 8;
        if (at <= r.last && bit_at(bytes, (uint64_t)at) == on)
            return at;
    }
    return -1;
}

void cmd_bitpos(struct call *c)
{
    char scratch[OBJ_SCRATCH];
    struct slice bytes;
    int64_t on, start = 0, end = -1;
    bool bits = false, has_end = c->argc > 4;

    if (!call_arg_i64(c, 2, &on, NULL))
        return;
    if (on != 0 && on != 1) {
        call_error(c, "ERR The bit argument must be 1 or 0.");
        return;
    }
    struct object *o = ks_read(c, 0);
    if (!o) {
        reply_int(&c->r, on ? -1 : 0);
        return;
    }
    if (!bytes_of(c, o, scratch, &bytes))
        return;
    if (c->argc > 6) {
        call_syntax(c);
        return;
    }
    if ((c->argc > 3 && !call_arg_i64(c, 3, &start, NULL)) || (c->argc > 5 && !arg_unit(c, 5, &bits)) ||
        (c->argc > 4 && !call_arg_i64(c, 4, &end, NULL)))
        return;
    struct bit_range r = range_within(bytes.len, start, end, bits);
    int64_t found = r.first > r.last ? -1 : find_bit(bytes, r, (unsigned)on);
    /* Behind a string of ones there are zeros, unless the range says where it ends. */
    if (found < 0 && on == 0 && !has_end && r.first <= r.last)
        found = (int64_t)bytes.len * 8;
    reply_int(&c->r, found);
}

/* ---- BITOP ---- */

enum bit_op { OP_AND, OP_OR, OP_XOR, OP_NOT };

int cmd_bitop_keys(int argc, const struct slice *argv, int *pos, int max)
{
    int n = 0;
    (void)argv;

    for (int i = 2; i < argc && n < max; i++)
        pos[n++] = i;
    return n;
}

static bool parse_op(struct call *c, enum bit_op *op)
{
    static const char *const names[] = {"and", "or", "xor", "not"};

    for (int i = 0; i < 4; i++)
        if (call_arg_is(c, 1, names[i])) {
            *op = (enum bit_op)i;
            return true;
        }
    call_syntax(c);
    return false;
}

/* A source behind the first: what it does not have is zero. */
static void combine(char *out, size_t len, struct slice with, enum bit_op op)
{
    size_t n = with.len < len ? with.len : len;

    for (size_t i = 0; i < n; i++) {
        switch (op) {
        case OP_AND: out[i] &= with.ptr[i]; break;
        case OP_OR: out[i] |= with.ptr[i]; break;
        case OP_XOR: out[i] ^= with.ptr[i]; break;
        case OP_NOT: break;
        }
    }
    if (op == OP_AND && len > n)
        memset(out + n, 0, len - n);
}

/* false: a source is no string, or is damaged; replied. */
static bool bitop_run(struct call *c, enum bit_op op, struct buf *out)
{
    char scratch[OBJ_SCRATCH];
    struct slice bytes;
    size_t len = 0;

    for (int i = 1; i < c->nkeys; i++) {
        struct object *o = ks_read(c, i);
        if (!ks_is(c, o, OBJ_STRING))
            return false;
        size_t n = o ? object_string_len(o) : 0;
        len = n > len ? n : len;
    }
    if (len == 0)
        return true;
    buf_reserve(out, len);
    for (int i = 1; i < c->nkeys; i++) {
        if (!bytes_of(c, ks_peek(c, i), scratch, &bytes))
            return false;
        if (i == 1) {
            buf_slice_append(out, bytes);
            memset(out->ptr + bytes.len, 0, len - bytes.len);
            out->len = len;
        } else {
            combine(out->ptr, len, bytes, op);
        }
    }
    for (size_t i = 0; op == OP_NOT && i < len; i++)
        out->ptr[i] = (char)~out->ptr[i];
    return true;
}

void cmd_bitop(struct call *c)
{
    enum bit_op op;
    struct buf out;

    if (!parse_op(c, &op))
        return;
    if (op == OP_NOT && c->argc != 4) {
        call_error(c, "ERR BITOP NOT must be called with a single source key.");
        return;
    }
    buf_init(&out, MEM_OTHER);
    if (bitop_run(c, op, &out)) {
        if (out.len) {
            struct object *o = ks_string_from(c, 0, buf_slice(&out), 0);
            o->flags |= OBJ_F_MODIFIED;
            ks_put(c, 0, o);
            ks_notify(c, 0, NOTIFY_STRING, "set");
        } else if (ks_delete(c, 0)) {
            ks_notify(c, 0, NOTIFY_GENERIC, "del");
        }
        reply_int(&c->r, (int64_t)out.len);
    }
    buf_deinit(&out);
}
