/* One setting's value: from text, to text, and what is valid. */
#include <inttypes.h>

#include "conf/conf_priv.h"
#include "tiercel/check.h"
#include "tiercel/num.h"

const char *const conf_obuf_names[OBUF_CLASSES] = {"normal", "slave", "pubsub"}; /* as CONFIG GET of Redis 7.0 */

static enum conf_fault fault(struct buf *err, enum conf_fault kind, const char *why)
{
    err->len = 0;
    buf_printf(err, "%s", why);
    return kind;
}

static void *field_of(const struct conf *c, enum conf_id id)
{
    return (char *)(uintptr_t)c + conf_rows[id].offset;
}

static enum conf_fault parse_bool(bool *field, struct slice text, struct buf *err)
{
    if (!slice_is(text, "yes") && !slice_is(text, "no"))
        return fault(err, FAULT_SYNTAX, "argument must be 'yes' or 'no'");
    *field = slice_is(text, "yes");
    return FAULT_NONE;
}

static enum conf_fault set_number(const struct conf_row *row, int64_t *field, int64_t v, struct buf *err)
{
    if (v < row->min || v > row->max) {
        err->len = 0;
        buf_printf(err, "argument must be between %" PRId64 " and %" PRId64 " inclusive", row->min, row->max);
        return FAULT_SYNTAX;
    }
    *field = v;
    return FAULT_NONE;
}

static enum conf_fault parse_int(const struct conf_row *row, int64_t *field, struct slice text, struct buf *err)
{
    int64_t v;
    if (!num_parse_i64(text, &v))
        return fault(err, FAULT_SYNTAX, "argument couldn't be parsed into an integer");
    return set_number(row, field, v, err);
}

static enum conf_fault parse_bytes(const struct conf_row *row, int64_t *field, struct slice text, struct buf *err)
{
    uint64_t v;
    int64_t percent;
    bool may_percent = (row->flags & CONF_PERCENT) != 0;
    if (may_percent && text.len > 0 && text.ptr[text.len - 1] == '%') {
        if (!num_parse_i64(SLICE(text.ptr, text.len - 1), &percent) || percent < 0)
            return fault(err, FAULT_SYNTAX, "argument must be a memory or percent value");
        if (percent > 100)
            return fault(err, FAULT_SYNTAX, "percentage argument must be less or equal to 100");
        *field = -percent;
        return FAULT_NONE;
    }
    if (!num_parse_bytes(text, &v))
        return fault(err, FAULT_SYNTAX,
                     may_percent ? "argument must be a memory or percent value" : "argument must be a memory value");
    return set_number(row, field, v > INT64_MAX ? INT64_MAX : (int64_t)v, err);
}

/* The i-th of the names, an empty slice after the last. */
static struct slice enum_name(const char *names, int i)
{
    while (i-- > 0) {
        names += strcspn(names, " ");
        names += strspn(names, " ");
    }
    return SLICE(names, strcspn(names, " "));
}

static void print_names(struct buf *out, const char *names)
{
    for (int i = 0; enum_name(names, i).len != 0; i++)
        buf_printf(out, "%s%.*s", i != 0 ? ", " : "", SLICE_FMT(enum_name(names, i)));
}

static enum conf_fault parse_enum(const struct conf_row *row, int *field, struct slice text, struct buf *err)
{
    struct slice name;
    for (int i = 0; (name = enum_name(row->text, i)).len != 0; i++) {
        if (name.len == text.len && strncasecmp(name.ptr, text.ptr, text.len) == 0) {
            *field = i;
            return FAULT_NONE;
        }
    }
    err->len = 0;
    buf_printf(err, "argument(s) must be one of the following: ");
    print_names(err, row->text);
    return FAULT_SYNTAX;
}

static bool parse_limit(const struct slice words[3], struct conf_obuf_limit *limit)
{
    uint64_t hard, soft;
    int64_t seconds;
    if (!num_parse_bytes(words[0], &hard) || !num_parse_bytes(words[1], &soft) || hard > INT64_MAX || soft > INT64_MAX)
        return false;
    if (!num_parse_i64(words[2], &seconds) || seconds < 0)
        return false;
    *limit = (struct conf_obuf_limit){(int64_t)hard, (int64_t)soft, seconds};
    return true;
}

/* Any number of "class hard soft seconds"; classes that are not named stay. */
static enum conf_fault parse_obuf(struct conf_obuf_limit *field, struct slice text, struct buf *err)
{
    struct conf_obuf_limit limits[OBUF_CLASSES];
    struct line line;
    const char *why = NULL;
    memcpy(limits, field, sizeof(limits));
    if (!line_split(text, &line))
        return fault(err, FAULT_REASON, "Wrong number of arguments in buffer limit configuration.");
    if (line.nwords % 4 != 0)
        why = "Wrong number of arguments in buffer limit configuration.";
    for (int i = 0; why == NULL && i < line.nwords; i += 4) {
        struct slice name = line.words[i];
        int cls = 0;
        while (cls < OBUF_CLASSES && !slice_is(name, conf_obuf_names[cls]))
            cls++;
        if (slice_is(name, "replica"))
            cls = OBUF_REPLICA;
        if (cls == OBUF_CLASSES)
            why = "Invalid client class specified in buffer limit configuration.";
        else if (!parse_limit(&line.words[i + 1], &limits[cls]))
            why = "Error in hard, soft or soft_seconds setting in buffer limit configuration.";
    }
    line_free(&line);
    if (why != NULL)
        return fault(err, FAULT_REASON, why);
    memcpy(field, limits, sizeof(limits));
    return FAULT_NONE;
}

/* What a row demands beyond its kind; may also adjust the value. NULL: fine. */
typedef const char *(*check_fn)(struct conf *c);

static const char *check_hz(struct conf *c)
{
    c->hz = c->hz < 1 ? 1 : c->hz > 500 ? 500 : c->hz;
    return NULL;
}

static const char *check_save(struct conf *c)
{
    struct line line;
    if (!line_split(slice_str(c->save), &line))
        return "Invalid save parameters";
    bool ok = line.nwords % 2 == 0;
    for (int i = 0; ok && i < line.nwords; i++) {
        int64_t v;
        ok = num_parse_i64(line.words[i], &v) && v >= (i % 2 == 0 ? 1 : 0) && v <= INT32_MAX;
    }
    line_free(&line);
    return ok ? NULL : "Invalid save parameters";
}

/* With up to six decimals, as Redis has them. */
static void append_percentile(struct buf *out, double v)
{
    if (out->len)
        buf_byte(out, ' ');
    buf_printf(out, "%.6f", v);
    while (out->ptr[out->len - 1] == '0')
        out->len--;
    out->len -= out->ptr[out->len - 1] == '.';
}

static const char *check_percentiles(struct conf *c)
{
    const char *why = NULL;
    struct line line;
    struct buf out;
    if (!line_split(slice_str(c->latency_tracking_info_percentiles), &line))
        return "Invalid latency-tracking-info-percentiles parameters";
    buf_init(&out, MEM_OTHER);
    for (int i = 0; !why && i < line.nwords; i++) {
        long double v;
        if (!num_parse_f64(line.words[i], &v))
            why = "Invalid latency-tracking-info-percentiles parameters";
        else if (!(v >= 0 && v <= 100))
            why = "latency-tracking-info-percentiles parameters should sit between [0.0,100.0]";
        else
            append_percentile(&out, (double)v);
    }
    if (!why)
        conf_string_set(&c->latency_tracking_info_percentiles, out.ptr, out.len);
    buf_deinit(&out);
    line_free(&line);
    return why;
}

static const char *check_unixsocketperm(struct conf *c)
{
    const char *p = c->unixsocketperm;
    size_t digits = strspn(p, "01234567");
    if (digits == 0 || p[digits] != '\0')
        return "argument couldn't be parsed as an octal number";
    p += strspn(p, "0");
    return strlen(p) > 3 ? "argument must be between 0 and 777 inclusive" : NULL;
}

static const char *check_log_level_modules(struct conf *c)
{
    const char *why = NULL;
    return log_check_modules(c->log_level_modules, &why) ? NULL : why;
}

static const check_fn checks[CONF_COUNT] = {
    [CONF_ID_hz] = check_hz,
    [CONF_ID_log_level_modules] = check_log_level_modules,
    [CONF_ID_latency_tracking_info_percentiles] = check_percentiles,
    [CONF_ID_notify_keyspace_events] = conf_check_notify,
    [CONF_ID_save] = check_save,
    [CONF_ID_unixsocketperm] = check_unixsocketperm,
};

static enum conf_fault parse_kind(struct conf *c, enum conf_id id, struct slice text, struct buf *err)
{
    const struct conf_row *row = &conf_rows[id];
    void *field = field_of(c, id);
    if (text.len != 0 && memchr(text.ptr, '\0', text.len) != NULL)
        return fault(err, FAULT_REASON, "argument must not contain a NUL byte");
    switch (row->kind) {
    case KIND_BOOL: return parse_bool(field, text, err);
    case KIND_INT: return parse_int(row, field, text, err);
    case KIND_BYTES: return parse_bytes(row, field, text, err);
    case KIND_ENUM: return parse_enum(row, field, text, err);
    case KIND_OBUF: return parse_obuf(field, text, err);
    case KIND_STRING: conf_string_set(field, text.ptr, text.len); return FAULT_NONE;
    case KIND_ALIAS: break;
    }
    CHECK(!"an alias has no value of its own");
    return FAULT_NONE;
}

enum conf_fault conf_value_parse(struct conf *c, enum conf_id id, struct slice text, struct buf *err)
{
    if (checks[id] == NULL)
        return parse_kind(c, id, text, err);
    struct buf before, ignored;
    buf_init(&before, MEM_OTHER);
    buf_init(&ignored, MEM_OTHER);
    conf_value_format(c, id, &before);
    enum conf_fault rc = parse_kind(c, id, text, err);
    const char *why = rc == FAULT_NONE ? checks[id](c) : NULL;
    if (why != NULL) {
        rc = fault(err, FAULT_REASON, why);
        parse_kind(c, id, buf_slice(&before), &ignored);
    }
    buf_deinit(&before);
    buf_deinit(&ignored);
    return rc;
}

void conf_value_format(const struct conf *c, enum conf_id id, struct buf *out)
{
    const struct conf_row *row = &conf_rows[id];
    const void *field = field_of(c, id);
    switch (row->kind) {
    case KIND_BOOL: buf_printf(out, "%s", *(const bool *)field ? "yes" : "no"); break;
    case KIND_BYTES:
        if ((row->flags & CONF_PERCENT) && *(const int64_t *)field < 0) {
            buf_printf(out, "%" PRId64 "%%", -*(const int64_t *)field);
            break;
        }
        /* fall through */
    case KIND_INT: buf_printf(out, "%" PRId64, *(const int64_t *)field); break;
    case KIND_ENUM: buf_slice_append(out, enum_name(row->text, *(const int *)field)); break;
    case KIND_STRING: buf_slice_append(out, slice_str(*(const char *const *)field)); break;
    case KIND_OBUF:
        for (int i = 0; i < OBUF_CLASSES; i++)
            buf_printf(out, "%s%s %" PRId64 " %" PRId64 " %" PRId64, i != 0 ? " " : "", conf_obuf_names[i],
                       c->obuf[i].hard, c->obuf[i].soft, c->obuf[i].soft_s);
        break;
    case KIND_ALIAS: CHECK(!"an alias has no value of its own");
    }
}

const char *conf_conflict(const struct conf *c, enum conf_id *id)
{
    if (c->aclfile[0] && c->priv->nusers > 0) {
        *id = CONF_ID_aclfile;
        return "users are given as lines and by an aclfile at once: define them in one place";
    }
    const char *token = conf_token_fault(c->http_token);
    if (token != NULL) {
        *id = CONF_ID_http_token;
        return token;
    }
    if (c->disk && c->disk_min_value > c->disk_max_value) {
        *id = CONF_ID_disk_min_value;
        return "disk-min-value is over disk-max-value: no value could be moved to disk";
    }
    *id = CONF_ID_appendonly;
    return c->appendonly && !c->disk ? "appendonly yes needs the disk tier, and disk is no" : NULL;
}

bool conf_value_equal(const struct conf *a, const struct conf *b, enum conf_id id)
{
    struct buf ta, tb;
    buf_init(&ta, MEM_OTHER);
    buf_init(&tb, MEM_OTHER);
    conf_value_format(a, id, &ta);
    conf_value_format(b, id, &tb);
    bool equal = ta.len == tb.len && (ta.len == 0 || memcmp(ta.ptr, tb.ptr, ta.len) == 0);
    buf_deinit(&ta);
    buf_deinit(&tb);
    return equal;
}

void conf_bytes_format(struct buf *out, int64_t bytes)
{
    static const char *const units[] = {"", "kb", "mb", "gb"};
    int unit = 0;
    while (unit < 3 && bytes != 0 && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    buf_printf(out, "%" PRId64 "%s", bytes, units[unit]);
}

void conf_value_valid(enum conf_id id, struct buf *out)
{
    const struct conf_row *row = &conf_rows[conf_target(id)];
    switch (row->kind) {
    case KIND_BOOL: buf_printf(out, "yes or no"); break;
    case KIND_INT:
        buf_printf(out, "an integer from %" PRId64, row->min);
        if (row->max != INT64_MAX)
            buf_printf(out, " to %" PRId64, row->max);
        break;
    case KIND_BYTES:
        buf_printf(out, "a size from ");
        conf_bytes_format(out, row->min);
        if (row->max != INT64_MAX) {
            buf_printf(out, " to ");
            conf_bytes_format(out, row->max);
        }
        if (row->flags & CONF_PERCENT)
            buf_printf(out, ", or 0%% to 100%%");
        break;
    case KIND_ENUM:
        buf_printf(out, "one of ");
        print_names(out, row->text);
        break;
    case KIND_OBUF: buf_printf(out, "class hard soft seconds; classes normal, replica, pubsub"); break;
    case KIND_STRING: buf_printf(out, "%s", row->flags & CONF_MULTI ? "words" : "text"); break;
    case KIND_ALIAS: break;
    }
}

/* A text goes unquoted when splitting and joining it gives it back. */
static void append_text(struct buf *out, struct slice text, bool multi)
{
    struct line line;
    struct buf joined;
    bool same = false;
    buf_init(&joined, MEM_OTHER);
    if (line_split(text, &line)) {
        line_join(&joined, line.nwords, line.words);
        same = (line.nwords == 1 || (multi && line.nwords > 1)) && slice_eq(buf_slice(&joined), text);
        line_free(&line);
    }
    if (same)
        buf_slice_append(out, text);
    else
        line_quote(out, text);
    buf_deinit(&joined);
}

static void text_lines(const struct conf *c, enum conf_id id, struct buf *line)
{
    const struct conf_row *row = &conf_rows[id];
    int64_t n = row->kind == KIND_BYTES ? *(const int64_t *)field_of(c, id) : -1;
    if (c->priv->secret_file[id] != NULL) {
        buf_printf(line, "%s-file ", row->name);
        line_quote(line, slice_str(c->priv->secret_file[id]));
        return;
    }
    buf_printf(line, "%s ", row->name);
    if (row->kind == KIND_STRING)
        append_text(line, slice_str(*(const char *const *)field_of(c, id)), (row->flags & CONF_MULTI) != 0);
    else if (n >= 0)
        conf_bytes_format(line, n);
    else
        conf_value_format(c, id, line);
}

/* "save 3600 1 300 100" as one line per pair, as Redis writes it. */
static void save_lines(const struct conf *c, void (*fn)(void *arg, struct slice line), void *arg)
{
    struct line words;
    struct buf line;
    buf_init(&line, MEM_OTHER);
    bool ok = line_split(slice_str(c->save), &words);
    for (int i = 0; ok && i + 1 < words.nwords; i += 2) {
        line.len = 0;
        buf_printf(&line, "save %.*s %.*s", SLICE_FMT(words.words[i]), SLICE_FMT(words.words[i + 1]));
        fn(arg, buf_slice(&line));
    }
    if (!ok || words.nwords == 0)
        fn(arg, SLICE_LIT("save \"\""));
    if (ok)
        line_free(&words);
    buf_deinit(&line);
}

void conf_value_lines(const struct conf *c, enum conf_id id, void (*fn)(void *arg, struct slice line), void *arg)
{
    struct buf line;
    if (id == CONF_ID_save) {
        save_lines(c, fn, arg);
        return;
    }
    buf_init(&line, MEM_OTHER);
    for (int i = 0; i < (conf_rows[id].kind == KIND_OBUF ? OBUF_CLASSES : 1); i++) {
        line.len = 0;
        if (conf_rows[id].kind == KIND_OBUF) {
            buf_printf(&line, "%s %s ", conf_rows[id].name, i == OBUF_REPLICA ? "replica" : conf_obuf_names[i]);
            conf_bytes_format(&line, c->obuf[i].hard);
            buf_byte(&line, ' ');
            conf_bytes_format(&line, c->obuf[i].soft);
            buf_printf(&line, " %" PRId64, c->obuf[i].soft_s);
        } else {
            text_lines(c, id, &line);
        }
        fn(arg, buf_slice(&line));
    }
    buf_deinit(&line);
}
