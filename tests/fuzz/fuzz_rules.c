/* `rule` lines and CACHE RULE: each line but the last is a rule to set, the last one a key. What was taken means the same when it
 * is written and read again, and the one that decides is the first that matches. */
#include <stdint.h>
#include <stdlib.h>

#include "conf/conf_priv.h"
#include "tiercel/check.h"
#include "tiercel/rules.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct rule *rule_of(const struct rules *set, struct slice pattern)
{
    for (unsigned i = 0; i < rules_count(set); i++)
        if (slice_eq(SLICE(rules_at(set, i)->pattern, rules_at(set, i)->len), pattern))
            return rules_at(set, i);
    return NULL;
}

/* As CONFIG REWRITE writes it. */
static void check_round_trip(const struct rules *set, struct slice pattern)
{
    const struct rule *rule = rule_of(set, pattern), *again;
    char err[RULE_ERROR_MAX];
    struct rules *other;
    struct line line;
    struct buf text;

    CHECK(rule != NULL);
    buf_init(&text, MEM_OTHER);
    line_join(&text, 1, &pattern);
    buf_byte(&text, ' ');
    rule_format(rule, &text);
    CHECK(line_split(buf_slice(&text), &line));
    CHECK(slice_eq(line.words[0], pattern));
    CHECK(rules_with(NULL, line.nwords, line.words, &other, err) == ST_OK);
    again = rules_at(other, 0);
    CHECK(again->literal == rule->literal);
    for (int k = 0; k < RULE_KEYS; k++)
        CHECK(again->given[k] == rule->given[k] && again->value[k] == rule->value[k]);
    rules_unref(other);
    line_free(&line);
    buf_deinit(&text);
}

static void set_rule(struct rules **set, struct slice text)
{
    char err[RULE_ERROR_MAX] = "";
    struct rules *next;
    struct line line;

    if (!line_split(text, &line))
        return;
    unsigned n = rules_count(*set);
    if (rules_with(*set, line.nwords, line.words, &next, err) == ST_OK) {
        CHECK(rules_count(next) <= RULES_MAX && rules_count(next) - n <= 1);
        check_round_trip(next, line.words[0]);
        rules_unref(*set);
        *set = next;
    } else {
        CHECK(err[0] != '\0' && strlen(err) < sizeof(err) && strchr(err, '\n') == NULL);
    }
    line_free(&line);
}

static void check_order(const struct rules *set)
{
    for (unsigned i = 1; i < rules_count(set); i++) {
        const struct rule *a = rules_at(set, i - 1), *b = rules_at(set, i);
        CHECK(a->literal != b->literal ? a->literal > b->literal
              : a->len != b->len       ? a->len > b->len
                                       : a->order > b->order);
    }
}

static void check_match(const struct rules *set, struct slice key)
{
    const struct rule *found = rules_match(set, key), *first = NULL;

    for (unsigned i = 0; !first && i < rules_count(set); i++)
        if (rule_matches(rules_at(set, i), key))
            first = rules_at(set, i);
    CHECK(found == first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *exact = malloc(size + 1); /* so that reading on is seen */
    struct rules *set = NULL, *less;
    struct slice rest = SLICE(exact, size);
    const char *end;

    CHECK(exact != NULL);
    memcpy(exact, data, size);
    while ((end = rest.len ? memchr(rest.ptr, '\n', rest.len) : NULL) != NULL) {
        set_rule(&set, SLICE(rest.ptr, (size_t)(end - rest.ptr)));
        rest = SLICE(end + 1, rest.len - (size_t)(end - rest.ptr) - 1);
    }
    check_order(set);
    check_match(set, rest);
    while (rules_count(set) > 0) {
        const struct rule *any = rules_at(set, rules_count(set) / 2);
        CHECK(rules_without(set, SLICE(any->pattern, any->len), &less) == ST_OK);
        CHECK(rules_count(less) == rules_count(set) - 1);
        rules_unref(set);
        set = less;
    }
    CHECK(rules_without(set, rest, &less) == ST_NOT_FOUND);
    rules_unref(set);
    free(exact);
    return 0;
}
