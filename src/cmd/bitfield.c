/* BITFIELD: integers of any width up to 64 bits within a string, the highest bit first. */
#include "tiercel/num.h"

#include "cmd/cmd_priv.h"

enum overflow { OVERFLOW_WRAP, OVERFLOW_SAT, OVERFLOW_FAIL };
enum field_kind { FIELD_GET, FIELD_SET, FIELD_INCR };

struct field_op {
    enum field_kind kind;
    enum overflow overflow;
    bool is_signed;
    unsigned bits;
    uint64_t offset;
    int64_t value;
};

/* ---- arguments ---- */

/* i1 to i64, u1 to u63. */
static bool arg_type(struct call *c, int arg, struct field_op *op)
{
    struct slice s = c->argv[arg];
    int64_t bits;

    op->is_signed = s.len > 0 && s.ptr[0] == 'i';
    if (s.len > 1 && (s.ptr[0] == 'i' || s.ptr[0] == 'u') && num_parse_i64(SLICE(s.ptr + 1, s.len - 1), &bits) &&
        bits >= 1 && bits <= (op->is_signed ? 64 : 63)) {
        op->bits = (unsigned)bits;
        return true;
    }
    call_error(c, "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.");
    return false;
}

static bool arg_overflow(struct call *c, int arg, enum overflow *overflow)
{
    static const char *const names[] = {"wrap", "sat", "fail"};

    for (int i = 0; i < 3; i++)
        if (call_arg_is(c, arg, names[i])) {
            *overflow = (enum overflow)i;
            return true;
        }
    call_error(c, "ERR Invalid OVERFLOW type specified");
    return false;
}

/* Appends the operations to `ops`; *writes: one of them is not GET; *end: bytes that those which write need. */
static bool parse_ops(struct call *c, bool read_only, struct buf *ops, bool *writes, uint64_t *end)
{
    struct field_op op = {.overflow = OVERFLOW_WRAP};

    *writes = false;
    *end = 0;
    for (int i = 2; i < c->argc; i++) {
        int more = c->argc - i - 1;
        if (call_arg_is(c, i, "overflow") && more >= 1) {
            if (!arg_overflow(c, ++i, &op.overflow))
                return false;
            continue;
        }
        if (call_arg_is(c, i, "get") && more >= 2) {
            op.kind = FIELD_GET;
        } else if (call_arg_is(c, i, "set") && more >= 3) {
            op.kind = FIELD_SET;
        } else if (call_arg_is(c, i, "incrby") && more >= 3) {
            op.kind = FIELD_INCR;
        } else {
            call_syntax(c);
            return false;
        }
        if (!arg_type(c, i + 1, &op) || !cmd_arg_bit_offset(c, i + 2, true, op.bits, &op.offset))
            return false;
        i += 2;
        if (op.kind != FIELD_GET) {
            uint64_t last = op.offset + op.bits - 1;
            if (!call_arg_i64(c, ++i, &op.value, NULL))
                return false;
            *writes = true;
            *end = (last >> 3) + 1 > *end ? (last >> 3) + 1 : *end;
        }
        buf_append(ops, &op, sizeof(op));
    }
    if (read_only && *writes) {
        call_error(c, "ERR BITFIELD_RO only supports the GET subcommand");
        return false;
    }
    return true;
}

/* ---- fields ---- */

static uint64_t field_read(struct slice bytes, uint64_t offset, unsigned bits)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bits; i++, offset++) {
        size_t at = (size_t)(offset >> 3);
        unsigned byte = at < bytes.len ? (unsigned char)bytes.ptr[at] : 0;
        v = v << 1 | (byte >> (7 - (offset & 7)) & 1);
    }
    return v;
}

static void field_write(char *bytes, uint64_t offset, unsigned bits, uint64_t v)
{
    for (unsigned i = 0; i < bits; i++, offset++) {
        unsigned char *byte = (unsigned char *)bytes + (offset >> 3);
        unsigned shift = 7 - (offset & 7);
        *byte = (unsigned char)((*byte & ~(1u << shift)) | (unsigned)(v >> (bits - 1 - i) & 1) << shift);
    }
}

static int64_t as_number(const struct field_op *op, uint64_t raw)
{
    unsigned unused = 64 - op->bits;

    return op->is_signed ? (int64_t)(raw << unused) >> unused : (int64_t)raw;
}

static uint64_t cut(const struct field_op *op, uint64_t v)
{
    return op->bits == 64 ? v : v & ((1ULL << op->bits) - 1);
}

/* `value` + `by` in the field's range, as OVERFLOW says. false: FAIL. */
static bool field_add(const struct field_op *op, int64_t value, int64_t by, uint64_t *out)
{
    __int128 sum = (__int128)value + by;
    __int128 max = op->is_signed ? ((__int128)1 << (op->bits - 1)) - 1 : ((__int128)1 << op->bits) - 1;
    __int128 min = op->is_signed ? -max - 1 : 0;

    if (sum > max || sum < min) {
        if (op->overflow == OVERFLOW_FAIL)
            return false;
        if (op->overflow == OVERFLOW_SAT)
            sum = sum > max ? max : min;
    }
    *out = cut(op, (uint64_t)sum);
    return true;
}

/* A value to SET: of an unsigned field negative ones are the largest there are. */
static bool field_set(const struct field_op *op, uint64_t *out)
{
    struct field_op o = *op;

    if (!op->is_signed && op->value < 0) {
        if (op->overflow == OVERFLOW_FAIL)
            return false;
        *out = cut(op, op->overflow == OVERFLOW_SAT ? UINT64_MAX : (uint64_t)op->value);
        return true;
    }
    return field_add(&o, op->value, 0, out);
}

/* ---- the commands ---- */

/* grown: the string is longer than it was. *changes: of its bytes, and successful writes if it has grown. */
static void run_ops(struct call *c, const struct buf *ops, struct slice bytes, char *writable, bool grown,
                    size_t *changes)
{
    size_t n = ops->len / sizeof(struct field_op);

    reply_array(&c->r, (int64_t)n);
    for (size_t i = 0; i < n; i++) {
        struct field_op op;
        memcpy(&op, ops->ptr + i * sizeof(op), sizeof(op));
        uint64_t now = field_read(bytes, op.offset, op.bits), next;
        int64_t number = as_number(&op, now);
        if (op.kind == FIELD_GET) {
            reply_int(&c->r, number);
            continue;
        }
        bool ok = op.kind == FIELD_SET ? field_set(&op, &next) : field_add(&op, number, op.value, &next);
        if (!ok) {
            reply_null(&c->r);
            continue;
        }
        field_write(writable, op.offset, op.bits, next);
        reply_int(&c->r, op.kind == FIELD_SET ? number : as_number(&op, next));
        *changes += grown || next != now;
    }
}

static void bitfield(struct call *c, bool read_only)
{
    char scratch[OBJ_SCRATCH];
    struct slice bytes = SLICE_LIT("");
    struct ks_edit e;
    struct buf ops;
    size_t changes = 0;
    uint64_t end;
    bool writes;

    buf_init(&ops, MEM_OTHER);
    if (!parse_ops(c, read_only, &ops, &writes, &end))
        goto out;
    if (!writes) {
        struct object *o = ks_read(c, 0);
        if (!o || ks_string(c, o, scratch, &bytes))
            run_ops(c, &ops, bytes, NULL, false, &changes);
        goto out;
    }
    size_t before = c->keys[0].obj && c->keys[0].obj->type == OBJ_STRING ? object_string_len(c->keys[0].obj) : 0;
    size_t len = before > end ? before : (size_t)end;
    char *writable = ks_edit(c, 0, len, &e);
    if (!writable)
        goto out;
    run_ops(c, &ops, SLICE(writable, len), writable, len > before, &changes);
    ks_edited(c, 0, &e);
    if (changes)
        ks_notify(c, 0, NOTIFY_STRING, "setbit");
out:
    buf_deinit(&ops);
}

void cmd_bitfield(struct call *c)
{
    bitfield(c, false);
}

void cmd_bitfield_ro(struct call *c)
{
    bitfield(c, true);
}
