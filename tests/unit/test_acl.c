/* Rules of users: what they become, and what they allow. The expected texts are redis-server 7.0.15's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/hash.h"

#include "cmd/acl_priv.h"

#define WORDS_MAX 16

static uint64_t seed = 5;

static int split(const char *text, struct slice *words)
{
    int n = 0;

    while (*text) {
        size_t len = strcspn(text, " ");
        words[n++] = SLICE(text, len);
        text += len + (text[len] == ' ');
    }
    assert_true(n <= WORDS_MAX);
    return n;
}

static const char *apply(struct acl_user *u, const char *rules)
{
    struct slice words[WORDS_MAX];
    struct acl_words w;
    int at, n = split(rules, words);

    if (!acl_words_init(&w, n, words, &at))
        return "unmatched";
    const char *why = acl_user_rules(u, &w, false, &at);
    acl_words_deinit(&w);
    acl_user_ready(u);
    return why;
}

static void described(const char *rules, const char *want)
{
    struct acl_user *u = acl_user_create(SLICE_LIT("u"), false);
    struct buf b;

    buf_init(&b, MEM_OTHER);
    const char *why = apply(u, rules);
    if (why)
        buf_printf(&b, "! %s", why);
    else
        acl_describe(u, &b);
    buf_append(&b, "", 1);
    assert_string_equal(b.ptr, want);
    buf_deinit(&b);
    acl_user_unref(u);
}

#define HASH_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HASH_PW2 "93915a0a4bf8f634cb1856494dd4304472ad46b9827f541f76b6761c49cc55b0"
#define UNKNOWN "! Unknown command or category name in ACL"
#define SYNTAX "! Syntax error"
#define BAD_HASH "! The password hash must be exactly 64 characters and contain only lowercase hexadecimal characters"

static void test_descriptions(void **state)
{
    (void)state;
    described("", "off resetchannels -@all");
    described("on nopass +@all", "on nopass resetchannels +@all");
    described("on nopass allkeys allchannels allcommands", "on nopass ~* &* +@all");
    described("reset", "off sanitize-payload resetchannels -@all");
    described("skip-sanitize-payload", "off skip-sanitize-payload resetchannels -@all");
    described("+@read", "off resetchannels -@all +@read");
    described("+@READ -get", "off resetchannels -@all +@read -get");
    described("+@read +@write", "off resetchannels -@all +@write +@read");
    described("+@all -@dangerous", "off resetchannels +@all -@dangerous");
    described("+@all -@read -@write", "off resetchannels +@all -@write -@read");
    described("+@all -@all", "off resetchannels -@all");
    described("+@slow", "off resetchannels -@all +@slow");
    described("+@fast -@slow", "off resetchannels -@all +@fast");
    described("+config -config|get", "off resetchannels -@all +config -config|get");
    described("+@all -config +config|get", "off resetchannels +@all -config +config|get");
    described("+client -client|kill +client|kill", "off resetchannels -@all +client");
    described("+SELECT|AbC", "off resetchannels -@all +select|AbC");
    described("+select +select|1", "off resetchannels -@all +select");
    described("+select|1 -select", "off resetchannels -@all");
    described("+@all -select +select|0", "off resetchannels +@all -select +select|0");
    described("~a ~b ~a %R~x %W~x %RW~y %r~z %wr~q", "off ~a ~b ~x ~y %R~z ~q resetchannels -@all");
    described("%RW~*", "off ~* resetchannels -@all");
    described("%R~* ~x", "off %R~* ~x resetchannels -@all");
    described("%R", "off %R~ resetchannels -@all");
    described("~a ~*", "off ~* resetchannels -@all");
    described("~a allkeys resetkeys ~b", "off ~b resetchannels -@all");
    described("&a &b", "off resetchannels &a &b -@all");
    described("&a &*", "off &* -@all");
    described("(~a +get)", "off resetchannels -@all (~a resetchannels -@all +get)");
    described("(~a +get) (%R~x +@read &c)",
              "off resetchannels -@all (~a resetchannels -@all +get) (%R~x resetchannels &c -@all +@read)");
    described("( ~a +get ) clearselectors", "off resetchannels -@all");
    described("()", "off resetchannels -@all (resetchannels -@all)");
    described(">pw >pw2 <pw", "off #" HASH_PW2 " resetchannels -@all");
    described("nopass #" HASH_A " #" HASH_A, "off #" HASH_A " resetchannels -@all");
    described("#" HASH_A " !" HASH_A, "off resetchannels -@all");
    described(">x nopass", "off nopass resetchannels -@all");
    described("on >x +@all ~* &* (~a) reset", "off sanitize-payload resetchannels -@all");
}

static void test_errors(void **state)
{
    (void)state;
    described("+nosuch", UNKNOWN);
    described("-@nosuch", UNKNOWN);
    described("-select|1", UNKNOWN);
    described("+select|1|2", UNKNOWN);
    described("+config|nosuch", UNKNOWN);
    described("(~a +nosuch)", UNKNOWN);
    described("+", UNKNOWN);
    described("+|x", UNKNOWN);
    described("+select|", SYNTAX);
    described("+config|", SYNTAX);
    described("+config|get|x", "! Allowing first-arg of a subcommand is not supported");
    described("xyz", SYNTAX);
    described("%", SYNTAX);
    described("%~z", SYNTAX);
    described("%RR~z", SYNTAX);
    described("%R%~z", SYNTAX);
    described(")", SYNTAX);
    described("(on)", SYNTAX);
    described("((~a))", SYNTAX);
    described("(~a", "! unmatched");
    described("(~a)x", "! unmatched");
    described("#abc", BAD_HASH);
    described("!abc", BAD_HASH);
    described("<pw", "! The password you are trying to remove from the user does not exist");
    described("~* %R~x",
              "! Adding a pattern after the * pattern (or the 'allkeys' flag) is not valid and does not have any "
              "effect. Try 'resetkeys' to start with an empty list of patterns");
    described("allchannels &a",
              "! Adding a pattern after the * pattern (or the 'allchannels' flag) is not valid and does "
              "not have any effect. Try 'resetchannels' to start with an empty list of channels");
}

static int check(const char *rules, const char *line, int *at)
{
    struct acl_user *u = acl_user_create(SLICE_LIT("u"), false);
    struct slice argv[WORDS_MAX];
    int argc = split(line, argv);

    assert_null(apply(u, rules));
    const struct command *cmd = command_find(argv[0]);
    if (cmd && cmd->flags & CMD_CONTAINER && argc > 1)
        cmd = command_find_sub(cmd, argv[1]);
    int v = acl_check(u, cmd, argc, argv, at);
    acl_user_unref(u);
    return v;
}

static void verdict(const char *rules, const char *line, enum acl_verdict want, int want_at)
{
    int at;
    int v = check(rules, line, &at);

    if (v != (int)want || (v != ACL_OK && at != want_at))
        fail_msg("%s: %s: %d at %d", rules, line, v, at);
}

static void test_checks(void **state)
{
    static const char rules[] = "+@all %R~r* %W~w* ~b* &c*";

    (void)state;
    verdict(rules, "get r1", ACL_OK, 0);
    verdict(rules, "get w1", ACL_KEY, 1);
    verdict(rules, "set w1 x", ACL_OK, 0);
    verdict(rules, "set w1 x get", ACL_KEY, 1);
    verdict(rules, "set b1 x get", ACL_OK, 0);
    verdict(rules, "mget r1 b1 x", ACL_KEY, 3);
    verdict(rules, "copy r1 w1", ACL_OK, 0);
    verdict(rules, "copy w1 r1", ACL_KEY, 1);
    verdict(rules, "lmove b1 w1 left left", ACL_OK, 0);
    verdict(rules, "zunionstore w1 2 r1 r2", ACL_OK, 0);
    verdict(rules, "zunionstore w1 2 r1 w2", ACL_KEY, 4);
    verdict(rules, "bitop and w1 r1 w2", ACL_KEY, 4);
    verdict(rules, "bitfield r1 get u8 0", ACL_OK, 0);
    verdict(rules, "bitfield r1 set u8 0 1", ACL_KEY, 1);
    verdict(rules, "georadius r1 0 0 1 m store w1", ACL_OK, 0);
    verdict(rules, "georadius r1 0 0 1 m store r1", ACL_KEY, 7);
    verdict(rules, "eval s 1 r1", ACL_KEY, 3);
    verdict(rules, "eval_ro s 1 r1", ACL_OK, 0);
    verdict(rules, "eval s x", ACL_OK, 0);
    verdict(rules, "exists w1", ACL_OK, 0); /* of what is in it nothing is told */
    verdict(rules, "exists x", ACL_KEY, 1);
    verdict(rules, "publish c1 x", ACL_OK, 0);
    verdict(rules, "publish d1 x", ACL_CHANNEL, 1);
    verdict(rules, "subscribe c1 d1", ACL_CHANNEL, 2);
    verdict(rules, "psubscribe c*", ACL_OK, 0);
    verdict(rules, "psubscribe cc*", ACL_CHANNEL, 1);
    verdict(rules, "ssubscribe d1", ACL_CHANNEL, 1);
    verdict(rules, "unsubscribe d1", ACL_OK, 0);
    verdict(rules, "nosuch r1", ACL_COMMAND, 0);
    verdict("+@all ~*", "nosuch r1", ACL_OK, 0);
    verdict("+@all -get ~*", "nosuch r1", ACL_COMMAND, 0);
    verdict("+select|0", "select 0", ACL_OK, 0);
    verdict("+select|0", "select 1", ACL_COMMAND, 0);
    verdict("+config|get", "config set a b", ACL_COMMAND, 0);
    verdict("", "auth x", ACL_OK, 0);
    verdict("", "ping", ACL_COMMAND, 0);
    verdict("+get ~a* (+set ~b*)", "set b x", ACL_OK, 0);
    verdict("+get ~a* (+set ~b*)", "get b", ACL_KEY, 1);
    verdict("+get ~a* (+set ~b*)", "del b", ACL_COMMAND, 0);
    verdict("+mget ~a (+mget ~b)", "mget a b", ACL_KEY, 2); /* one selector has to allow all of it */
}

static void reads_all(const char *rules, bool want)
{
    struct acl_user *u = acl_user_create(SLICE_LIT("u"), false);
    struct slice argv[] = {SLICE_LIT("get"), SLICE_LIT("k")};

    assert_null(apply(u, rules));
    assert_int_equal(acl_check_reads_all(u, command_find(argv[0]), 2, argv), want);
    acl_user_unref(u);
}

static void test_reading_all_keys(void **state)
{
    (void)state;
    reads_all("+@all ~* &*", true);
    reads_all("+get ~*", true);
    reads_all("+get %R~*", true);
    reads_all("+get ~k %W~*", false);
    reads_all("+get ~k*", false);
    reads_all("~* (+get ~k)", false);
    reads_all("(+get %R~*)", true);
}

/* What a user is described as makes the same user. */
static void test_descriptions_are_rules(void **state)
{
    static const char *const some[] = {"on",    "nopass", ">x",    "~a*",       "%R~b",      "%W~b",           "&c",
                                       "reset", "+@all",  "-@all", "+select|0", "(~q +get)", "clearselectors", "&*"};

    (void)state;
    for (int round = 0; round < 3000; round++) {
        struct acl_user *u = acl_user_create(SLICE_LIT("u"), false), *v = acl_user_create(SLICE_LIT("u"), false);
        struct buf a, b;
        for (int i = 0; i < 10; i++) {
            char rule[80];
            uint64_t r = rng_next(&seed);
            if (r % 3 == 0)
                snprintf(rule, sizeof(rule), "%s", some[r / 3 % (sizeof(some) / sizeof(some[0]))]);
            else if (r % 3 == 1)
                snprintf(rule, sizeof(rule), "%c@%s", r & 64 ? '+' : '-', acl_category_names[r / 128 % CAT_COUNT]);
            else
                snprintf(rule, sizeof(rule), "%c%s", r & 64 ? '+' : '-',
                         command_table[r / 128 % (unsigned)command_count].full);
            apply(u, rule); /* some are refused */
        }
        buf_init(&a, MEM_OTHER);
        buf_init(&b, MEM_OTHER);
        acl_describe(u, &a);
        struct slice *words = mem_alloc(MEM_OTHER, (a.len + 1) * sizeof(*words));
        struct acl_words w;
        int n = 0, at;
        for (size_t from = 0; from <= a.len;) {
            const char *end = memchr(a.ptr + from, ' ', a.len - from);
            size_t len = end ? (size_t)(end - a.ptr) - from : a.len - from;
            words[n++] = SLICE(a.ptr + from, len);
            from += len + 1;
        }
        assert_true(acl_words_init(&w, n, words, &at));
        assert_null(acl_user_rules(v, &w, false, &at));
        acl_describe(v, &b);
        assert_true(slice_eq(buf_slice(&a), buf_slice(&b)));
        assert_int_equal(u->nselectors, v->nselectors);
        for (int i = 0; i < command_count; i++)
            assert_int_equal(acl_commands_has(&u->selectors[0]->allowed, i),
                             acl_commands_has(&v->selectors[0]->allowed, i));
        acl_words_deinit(&w);
        mem_free(MEM_OTHER, words);
        buf_deinit(&a);
        buf_deinit(&b);
        struct acl_user *copy = acl_user_copy(u);
        assert_int_equal(copy->nselectors, u->nselectors);
        acl_user_unref(copy);
        acl_user_unref(u);
        acl_user_unref(v);
    }
}

static void test_passwords(void **state)
{
    struct acl_user *u = acl_user_create(SLICE_LIT("u"), false);

    (void)state;
    assert_false(acl_user_has_password(u, SLICE_LIT("")));
    assert_null(apply(u, ">one >two"));
    assert_true(acl_user_has_password(u, SLICE_LIT("one")));
    assert_true(acl_user_has_password(u, SLICE_LIT("two")));
    assert_false(acl_user_has_password(u, SLICE_LIT("three")));
    assert_null(apply(u, "<one"));
    assert_false(acl_user_has_password(u, SLICE_LIT("one")));
    acl_user_unref(u);
}

static void channels(const char *was, const char *is, bool shrank)
{
    struct acl_user *a = acl_user_create(SLICE_LIT("u"), false), *b = acl_user_create(SLICE_LIT("u"), false);

    assert_null(apply(a, was));
    assert_null(apply(b, is));
    assert_int_equal(acl_channels_shrank(a, b), shrank);
    acl_user_unref(a);
    acl_user_unref(b);
}

static void test_channels_shrink(void **state)
{
    (void)state;
    channels("&a", "&a &b", false);
    channels("&a &b", "&a", true);
    channels("&*", "&a", true);
    channels("&a", "&*", false);
    channels("&a", "(&a)", false);
    channels("(&*)", "", true);
    channels("", "", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_descriptions),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_checks),
        cmocka_unit_test(test_passwords),
        cmocka_unit_test(test_descriptions_are_rules),
        cmocka_unit_test(test_channels_shrink),
        cmocka_unit_test(test_reading_all_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
