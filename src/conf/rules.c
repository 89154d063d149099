/* Rules by key pattern: their text, their order, and which one decides (rules.h). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "conf/conf_priv.h"
#include "tiercel/check.h"
#include "tiercel/glob.h"
#include "tiercel/num.h"
#include "tiercel/rules.h"

struct rules {
    _Atomic int refs;
    uint64_t next_order;
    unsigned n;
    struct rule rule[]; /* most specific first */
};

enum value_kind { VALUE_WRITE, VALUE_MS, VALUE_PERCENT, VALUE_COMPRESS, VALUE_BYTES };

static const struct {
    const char *name;
    enum value_kind kind;
    const char *setting;
} keys[RULE_KEYS] = {
    [RULE_WRITE] = {"write", VALUE_WRITE, NULL},
    [RULE_TTL] = {"ttl", VALUE_MS, NULL},
    [RULE_TTL_JITTER] = {"ttl-jitter", VALUE_PERCENT, NULL},
    [RULE_NEGATIVE_TTL] = {"negative-ttl", VALUE_MS, "negative-ttl-ms"},
    [RULE_STALE_REFRESH] = {"stale-while-revalidate", VALUE_MS, NULL},
    [RULE_STALE_ERROR] = {"stale-if-error", VALUE_MS, "stale-if-error-ms"},
    [RULE_REFRESH_AHEAD] = {"refresh-ahead", VALUE_PERCENT, NULL},
    [RULE_COMPRESS] = {"compress", VALUE_COMPRESS, "compression"},
    [RULE_MAX_OBJECT] = {"max-object", VALUE_BYTES, NULL},
};

static const char *const write_names[] = {"through", "around", "local", NULL};
static const char *const compress_names[] = {"default", "yes", "no", NULL};

static const struct {
    const char *suffix;
    int64_t ms;
} units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}};
#define UNITS ((int)(sizeof(units) / sizeof(units[0])))

const char *rule_key_name(enum rule_key k)
{
    return keys[k].name;
}

const char *rule_setting_name(enum rule_key k)
{
    return keys[k].setting ? keys[k].setting : "default";
}

/* ---- values ---- */

static bool parse_name(const char *const *names, struct slice text, int64_t *out)
{
    for (int i = 0; names[i]; i++) {
        if (slice_is(text, names[i])) {
            *out = i;
            return true;
        }
    }
    return false;
}

static bool parse_ms(struct slice text, int64_t *out)
{
    size_t digits = 0;
    int64_t n;

    while (digits < text.len && text.ptr[digits] >= '0' && text.ptr[digits] <= '9')
        digits++;
    if (!num_parse_i64(SLICE(text.ptr, digits), &n))
        return false;
    if (n == 0 && digits == text.len) { /* none of it needs no unit */
        *out = 0;
        return true;
    }
    for (int i = 0; i < UNITS; i++) {
        if (slice_is(SLICE(text.ptr + digits, text.len - digits), units[i].suffix)) {
            if (n > RULE_MS_MAX / units[i].ms)
                return false;
            *out = n * units[i].ms;
            return true;
        }
    }
    return false;
}

static bool parse_percent(struct slice text, int64_t *out)
{
    if (text.len > 0 && text.ptr[text.len - 1] == '%')
        text.len--;
    return num_parse_i64(text, out) && *out >= 0 && *out <= 100;
}

static bool parse_bytes(struct slice text, int64_t *out)
{
    uint64_t bytes;

    if (!num_parse_bytes(text, &bytes) || bytes > 1099511627776u)
        return false;
    *out = (int64_t)bytes;
    return true;
}

static bool parse_value(enum value_kind kind, struct slice text, int64_t *out)
{
    switch (kind) {
    case VALUE_WRITE: return parse_name(write_names, text, out);
    case VALUE_COMPRESS: return parse_name(compress_names, text, out);
    case VALUE_MS: return parse_ms(text, out);
    case VALUE_PERCENT: return parse_percent(text, out);
    case VALUE_BYTES: return parse_bytes(text, out);
    }
    return false;
}

static const char *valid_value(enum value_kind kind)
{
    switch (kind) {
    case VALUE_WRITE: return "through, around or local";
    case VALUE_COMPRESS: return "yes, no or default";
    case VALUE_MS: return "a time with its unit, such as 500ms, 5s, 10m or 1h, up to 7d; or 0";
    case VALUE_PERCENT: return "a percentage from 0 to 100";
    case VALUE_BYTES: return "a size such as 64kb, up to 1tb; 0 no limit";
    }
    return "";
}

void rule_value_format(enum rule_key k, int64_t value, struct buf *out)
{
    switch (keys[k].kind) {
    case VALUE_WRITE: buf_printf(out, "%s", write_names[value]); break;
    case VALUE_COMPRESS: buf_printf(out, "%s", compress_names[value]); break;
    case VALUE_PERCENT: buf_printf(out, "%" PRId64, value); break;
    case VALUE_BYTES: conf_bytes_format(out, value); break;
    case VALUE_MS: {
        int unit = UNITS - 1;
        while (unit > 0 && (value == 0 || value % units[unit].ms != 0))
            unit--;
        buf_printf(out, "%" PRId64 "%s", value / units[unit].ms, value == 0 ? "" : units[unit].suffix);
        break;
    }
    }
}

void rule_format(const struct rule *rule, struct buf *out)
{
    bool first = true;

    for (int k = 0; k < RULE_KEYS; k++) {
        if (!rule->given[k])
            continue;
        buf_printf(out, "%s%s=", first ? "" : " ", keys[k].name);
        rule_value_format((enum rule_key)k, rule->value[k], out);
        first = false;
    }
}

/* ---- a rule's text ---- */

/* Where the class that begins at `i` ends, as the glob reads it: one that is not closed takes the rest. */
static size_t class_end(struct slice p, size_t i)
{
    for (i++; i < p.len && p.ptr[i] != ']'; i++)
        if (p.ptr[i] == '\\' && i + 1 < p.len)
            i++;
    return i;
}

static unsigned literal_bytes(struct slice p)
{
    unsigned n = 0;

    for (size_t i = 0; i < p.len; i++) {
        switch (p.ptr[i]) {
        case '*':
        case '?': break;
        case '[': i = class_end(p, i); break;
        case '\\':
            if (i + 1 < p.len)
                i++;
            n++;
            break;
        default: n++; break;
        }
    }
    return n;
}

/* What a client sent, in a message of one line. */
static void say(char err[RULE_ERROR_MAX], const char *before, struct slice text, const char *after)
{
    struct buf line;

    buf_init(&line, MEM_OTHER);
    buf_printf(&line, "%s'", before);
    conf_print_clean(&line, text);
    buf_printf(&line, "'%s", after);
    snprintf(err, RULE_ERROR_MAX, "%.*s", (int)(line.len < RULE_ERROR_MAX - 1 ? line.len : RULE_ERROR_MAX - 1),
             line.ptr);
    buf_deinit(&line);
}

static bool parse_word(struct rule *rule, struct slice word, char err[RULE_ERROR_MAX])
{
    const char *eq = word.len ? memchr(word.ptr, '=', word.len) : NULL;
    char after[160];

    if (!eq) {
        say(err, "expected key=value, got ", word, "");
        return false;
    }
    struct slice name = SLICE(word.ptr, (size_t)(eq - word.ptr)), text = SLICE(eq + 1, word.len - name.len - 1);
    for (int k = 0; k < RULE_KEYS; k++) {
        if (!slice_is(name, keys[k].name))
            continue;
        if (rule->given[k]) {
            say(err, "", name, " is given twice");
            return false;
        }
        rule->given[k] = true;
        if (parse_value(keys[k].kind, text, &rule->value[k]))
            return true;
        snprintf(after, sizeof(after), " is not valid, must be %s", valid_value(keys[k].kind));
        say(err, "", word, after);
        return false;
    }
    say(err, "unknown key ", name,
        ": there are write, ttl, ttl-jitter, negative-ttl, stale-while-revalidate, stale-if-error, refresh-ahead, "
        "compress and max-object");
    return false;
}

/* All but the copy of the pattern. */
static bool parse_rule(int nwords, const struct slice *words, struct rule *rule, char err[RULE_ERROR_MAX])
{
    *rule = (struct rule){.pattern = NULL};
    if (nwords < 2) {
        snprintf(err, RULE_ERROR_MAX, "a rule needs a pattern and at least one key=value");
        return false;
    }
    if (words[0].len == 0 || words[0].len > RULE_PATTERN_MAX || memchr(words[0].ptr, '\0', words[0].len) ||
        memchr(words[0].ptr, '\n', words[0].len)) {
        snprintf(err, RULE_ERROR_MAX, "the pattern must be 1 to %d bytes long, without NUL and newline",
                 RULE_PATTERN_MAX);
        return false;
    }
    for (int i = 1; i < nwords; i++)
        if (!parse_word(rule, words[i], err))
            return false;
    for (int k = 0; k < RULE_KEYS; k++) {
        bool needs = k == RULE_TTL_JITTER || k == RULE_STALE_REFRESH || k == RULE_REFRESH_AHEAD;
        if (needs && rule->value[k] > 0 && rule->value[RULE_TTL] == 0) {
            snprintf(err, RULE_ERROR_MAX, "%s needs a ttl", keys[k].name);
            return false;
        }
    }
    for (int k = 0; k < RULE_KEYS && rule->value[RULE_WRITE] == WRITE_LOCAL; k++) {
        if (rule->given[k] && k != RULE_WRITE) {
            snprintf(err, RULE_ERROR_MAX, "%s is about copies of upstream keys: write=local keeps none", keys[k].name);
            return false;
        }
    }
    rule->len = words[0].len;
    rule->literal = literal_bytes(words[0]);
    return true;
}

/* ---- sets ---- */

static int by_precedence(const void *a, const void *b)
{
    const struct rule *x = a, *y = b;

    if (x->literal != y->literal)
        return x->literal > y->literal ? -1 : 1;
    if (x->len != y->len)
        return x->len > y->len ? -1 : 1;
    return x->order > y->order ? -1 : x->order < y->order;
}

static char *copy_pattern(const char *ptr, size_t len)
{
    char *copy = mem_alloc(MEM_OTHER, len + 1);

    memcpy(copy, ptr, len);
    copy[len] = '\0';
    return copy;
}

static bool has_pattern(const struct rule *rule, struct slice pattern)
{
    return slice_eq(SLICE(rule->pattern, rule->len), pattern);
}

/* Copies of all but the pattern's, and room for one more. */
static struct rules *others(const struct rules *old, struct slice pattern)
{
    struct rules *r = mem_calloc(MEM_OTHER, sizeof(*r) + (rules_count(old) + 1) * sizeof(r->rule[0]));

    atomic_init(&r->refs, 1);
    r->next_order = old ? old->next_order : 1;
    for (unsigned i = 0; i < rules_count(old); i++) {
        if (has_pattern(&old->rule[i], pattern))
            continue;
        r->rule[r->n] = old->rule[i];
        r->rule[r->n++].pattern = copy_pattern(old->rule[i].pattern, old->rule[i].len);
    }
    return r;
}

struct rules *rules_ref(struct rules *r)
{
    if (r)
        atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    return r;
}

void rules_unref(struct rules *r)
{
    if (!r || atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
        return;
    for (unsigned i = 0; i < r->n; i++)
        mem_free(MEM_OTHER, r->rule[i].pattern);
    mem_free(MEM_OTHER, r);
}

enum status rules_with(const struct rules *old, int nwords, const struct slice *words, struct rules **out,
                       char err[RULE_ERROR_MAX])
{
    struct rule rule;

    if (!parse_rule(nwords, words, &rule, err))
        return ST_BAD;
    struct rules *r = others(old, words[0]);
    if (r->n == RULES_MAX) {
        rules_unref(r);
        snprintf(err, RULE_ERROR_MAX, "there are %d rules already", RULES_MAX);
        return ST_BAD;
    }
    rule.pattern = copy_pattern(words[0].ptr, words[0].len);
    rule.order = r->next_order++;
    r->rule[r->n++] = rule;
    qsort(r->rule, r->n, sizeof(r->rule[0]), by_precedence);
    *out = r;
    return ST_OK;
}

enum status rules_without(const struct rules *old, struct slice pattern, struct rules **out)
{
    struct rules *r = others(old, pattern);

    if (r->n == rules_count(old)) {
        rules_unref(r);
        return ST_NOT_FOUND;
    }
    *out = r;
    return ST_OK;
}

bool rules_have_local(const struct rules *r)
{
    for (unsigned i = 0; i < rules_count(r); i++)
        if (r->rule[i].value[RULE_WRITE] == WRITE_LOCAL)
            return true;
    return false;
}

unsigned rules_count(const struct rules *r)
{
    return r ? r->n : 0;
}

const struct rule *rules_at(const struct rules *r, unsigned i)
{
    CHECK(r && i < r->n);
    return &r->rule[i];
}

bool rule_matches(const struct rule *rule, struct slice key)
{
    if (UNLIKELY(key.len == 0)) /* a * matches nothing, too; Redis's globs know no empty string */
        return strspn(rule->pattern, "*") == rule->len;
    return glob_match(SLICE(rule->pattern, rule->len), key, false);
}

const struct rule *rules_match(const struct rules *r, struct slice key)
{
    for (unsigned i = 0; i < rules_count(r); i++)
        if (rule_matches(&r->rule[i], key))
            return &r->rule[i];
    return NULL;
}

void rules_values(const struct conf *c, struct slice key, struct rule_values *out)
{
    *out = (struct rule_values){.rule = rules_match(c->rules, key)};
    out->value[RULE_NEGATIVE_TTL] = c->negative_ttl_ms;
    out->value[RULE_STALE_ERROR] = c->stale_if_error_ms;
    for (int k = 0; out->rule && k < RULE_KEYS; k++)
        if (out->rule->given[k])
            out->value[k] = out->rule->value[k];
}

/* ---- in a snapshot ---- */

static struct conf *conf_with(const struct conf *cur, struct rules *r)
{
    struct conf *c = conf_copy(cur);

    rules_unref(c->rules);
    c->rules = r;
    c->rules_local = rules_have_local(r);
    return c;
}

enum status conf_rule_set(const struct conf *cur, int nwords, const struct slice *words, struct conf **out,
                          char err[RULE_ERROR_MAX])
{
    struct rules *r;
    enum status st = rules_with(cur->rules, nwords, words, &r, err);

    if (st == ST_OK)
        *out = conf_with(cur, r);
    return st;
}

enum status conf_rule_del(const struct conf *cur, struct slice pattern, struct conf **out)
{
    struct rules *r;
    enum status st = rules_without(cur->rules, pattern, &r);

    if (st == ST_OK)
        *out = conf_with(cur, r);
    return st;
}

/* One line each for a file, in the order they were set: of two alike, the later one decides again. */
void conf_rule_lines(const struct conf *c, struct buf *out)
{
    struct buf text;
    uint64_t done = 0;

    buf_init(&text, MEM_OTHER);
    for (unsigned i = 0; i < rules_count(c->rules); i++) {
        const struct rule *next = NULL;
        for (unsigned k = 0; k < c->rules->n; k++) {
            const struct rule *rule = &c->rules->rule[k];
            if (rule->order > done && (!next || rule->order < next->order))
                next = rule;
        }
        done = next->order;
        struct slice pattern = SLICE(next->pattern, next->len);
        text.len = 0;
        rule_format(next, &text);
        buf_printf(out, "rule ");
        line_join(out, 1, &pattern);
        buf_printf(out, " %.*s\n", SLICE_FMT(buf_slice(&text)));
    }
    buf_deinit(&text);
}
