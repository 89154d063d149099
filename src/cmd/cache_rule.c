/* CACHE RULE: how copies of upstream keys are kept, by key pattern (rules.h). */
#include "tiercel/rules.h"

#include "cmd/cmd_priv.h"

static void bulk_buf(struct call *c, const struct buf *text)
{
    reply_bulk(&c->r, text->len ? buf_slice(text) : SLICE_LIT(""));
}

static struct slice pattern_of(const struct rule *rule)
{
    return SLICE(rule->pattern, rule->len);
}

/* ---- SET, DEL ---- */

static void take_over_locked(struct cmd *cmd, struct conf *next)
{
    struct conf *old = cmd->conf;

    cmd->conf = next;
    conf_unref(old);
}

static void rule_set(struct call *c)
{
    struct cmd *cmd = c->w->cmd;
    char err[RULE_ERROR_MAX];
    struct conf *next;

    pthread_mutex_lock(&cmd->conf_lock);
    enum status st = conf_rule_set(cmd->conf, c->argc - 3, c->argv + 3, &next, err);
    if (st == ST_OK)
        take_over_locked(cmd, next);
    pthread_mutex_unlock(&cmd->conf_lock);
    if (st == ST_OK)
        config_publish(c);
    else
        call_errorf(c, "ERR rule: %s", err);
}

static void rule_del(struct call *c)
{
    struct cmd *cmd = c->w->cmd;
    struct conf *next;

    pthread_mutex_lock(&cmd->conf_lock);
    enum status st = conf_rule_del(cmd->conf, c->argv[3], &next);
    if (st == ST_OK)
        take_over_locked(cmd, next);
    pthread_mutex_unlock(&cmd->conf_lock);
    if (st == ST_OK)
        config_publish(c);
    else
        call_error(c, "ERR no rule has this pattern");
}

/* ---- LIST, TEST ---- */

static void rule_list(struct call *c)
{
    const struct rules *rules = c->w->conf->rules;
    struct buf text;

    buf_init(&text, MEM_CLIENT);
    reply_array(&c->r, rules_count(rules));
    for (unsigned i = 0; i < rules_count(rules); i++) {
        text.len = 0;
        buf_slice_append(&text, pattern_of(rules_at(rules, i)));
        buf_byte(&text, ' ');
        rule_format(rules_at(rules, i), &text);
        bulk_buf(c, &text);
    }
    buf_deinit(&text);
}

/* Those that match, too, and are less specific. */
static void reply_others(struct call *c, struct slice key, const struct rule *winner)
{
    const struct rules *rules = c->w->conf->rules;
    unsigned n = 0;

    for (unsigned i = 0; i < rules_count(rules); i++)
        n += rules_at(rules, i) != winner && rule_matches(rules_at(rules, i), key);
    reply_array(&c->r, n);
    for (unsigned i = 0; i < rules_count(rules); i++)
        if (rules_at(rules, i) != winner && rule_matches(rules_at(rules, i), key))
            reply_bulk(&c->r, pattern_of(rules_at(rules, i)));
}

static void rule_test(struct call *c)
{
    struct slice key = c->argv[3];
    struct rule_values v;
    struct buf text;

    rules_values(c->w->conf, key, &v);
    buf_init(&text, MEM_CLIENT);
    reply_map(&c->r, 4);
    reply_bulk_str(&c->r, "rule");
    if (v.rule)
        reply_bulk(&c->r, pattern_of(v.rule));
    else
        reply_null(&c->r);
    reply_bulk_str(&c->r, "literal_bytes");
    reply_int(&c->r, v.rule ? v.rule->literal : 0);
    reply_bulk_str(&c->r, "also_matched");
    reply_others(c, key, v.rule);
    reply_bulk_str(&c->r, "values");
    reply_map(&c->r, RULE_KEYS);
    for (int k = 0; k < RULE_KEYS; k++) {
        reply_bulk_str(&c->r, rule_key_name((enum rule_key)k));
        reply_array(&c->r, 2);
        text.len = 0;
        rule_value_format((enum rule_key)k, v.value[k], &text);
        bulk_buf(c, &text);
        reply_bulk_str(&c->r, v.rule && v.rule->given[k] ? "rule" : rule_setting_name((enum rule_key)k));
    }
    buf_deinit(&text);
}

void cmd_cache_rule(struct call *c)
{
    struct slice what = c->argv[2];

    if (slice_is(what, "set") && c->argc >= 5)
        rule_set(c);
    else if (slice_is(what, "del") && c->argc == 4)
        rule_del(c);
    else if (slice_is(what, "list") && c->argc == 3)
        rule_list(c);
    else if (slice_is(what, "test") && c->argc == 4)
        rule_test(c);
    else
        call_error(c, "ERR expected CACHE RULE SET pattern key=value [key=value ...], DEL pattern, LIST or TEST key");
}
