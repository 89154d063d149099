#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tiercel/command.h"

/* The command table (src/cmd/command.c): names are found in any case, others are not. */

static const struct command *find(const struct command *container, struct slice name)
{
    return container ? command_find_sub(container, name) : command_find(name);
}

static const struct command *container_of(const struct command *cmd)
{
    return cmd->container < 0 ? NULL : &command_table[cmd->container];
}

static void test_every_row_in_any_case(void **state)
{
    (void)state;
    for (int i = 0; i < command_count; i++) {
        const struct command *cmd = &command_table[i];
        size_t n = strlen(cmd->name);
        assert_int_equal(cmd->id, i);
        for (unsigned pattern = 0; pattern < 8; pattern++) {
            char name[32];
            for (size_t k = 0; k < n; k++)
                name[k] = pattern >> (k % 3) & 1 ? (char)toupper((unsigned char)cmd->name[k]) : cmd->name[k];
            assert_ptr_equal(find(container_of(cmd), SLICE(name, n)), cmd);
        }
    }
}

/* Changing, adding or taking one byte names no command (or one of that very name). */
static void test_near_misses(void **state)
{
    (void)state;
    for (int i = 0; i < command_count; i++) {
        const struct command *cmd = &command_table[i];
        size_t n = strlen(cmd->name);
        for (size_t k = 0; k <= n; k++) {
            for (int byte = 0; byte < 256; byte++) {
                char name[32] = {0};
                memcpy(name, cmd->name, n);
                name[k] = (char)byte;
                size_t len = k == n ? n + 1 : n;
                const struct command *got = find(container_of(cmd), SLICE(name, len));
                if (got)
                    assert_true(slice_is(SLICE(name, len), got->name));
            }
        }
        const struct command *shorter = find(container_of(cmd), SLICE(cmd->name, n - 1));
        if (shorter)
            assert_true(slice_is(SLICE(cmd->name, n - 1), shorter->name));
    }
}

static void test_what_is_no_name(void **state)
{
    (void)state;
    static const char *const names[] = {"",     "nosuch",          "client|list",
                                        "list", "getkeysandflags", "averyverylongcommandname"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        assert_null(command_find(slice_str(names[i])));
    const struct command *client = command_find(SLICE_LIT("client"));
    assert_non_null(client);
    assert_null(command_find_sub(client, SLICE_LIT("get")));
    assert_null(command_find_sub(client, SLICE_LIT("client")));
    assert_string_equal(command_find_sub(client, SLICE_LIT("LIST"))->full, "client|list");
}

/* `line` is split at spaces; `want` is the positions as text, "bad" for an error. */
static void check_keys(const char *line, const char *want)
{
    struct slice argv[16];
    int argc = 0, pos[16];
    for (const char *p = line; *p; p += strspn(p, " ")) {
        size_t n = strcspn(p, " ");
        argv[argc++] = SLICE(p, n);
        p += n;
    }
    const struct command *cmd = command_find(argv[0]);
    assert_non_null(cmd);
    if (cmd->flags & CMD_CONTAINER && argc > 1)
        cmd = command_find_sub(cmd, argv[1]);
    assert_non_null(cmd);
    char got[64] = "";
    int n = command_keys(cmd, argc, argv, pos, 16);
    if (n < 0)
        snprintf(got, sizeof(got), "bad");
    for (int i = 0, at = 0; i < n; i++)
        at += snprintf(got + at, sizeof(got) - (size_t)at, "%s%d", i ? " " : "", pos[i]);
    if (strcmp(got, want) != 0)
        fail_msg("%s: keys at '%s', not at '%s'", line, got, want);
}

static void test_key_positions(void **state)
{
    (void)state;
    check_keys("get k", "1");
    check_keys("ping", "");
    check_keys("mget a b c", "1 2 3");
    check_keys("mset a 1 b 2", "1 3");
    check_keys("lcs a b idx", "1 2");
    check_keys("rename a b", "1 2");
    check_keys("rename a", "bad");
    check_keys("get", "bad");
    check_keys("blpop a b 0", "1 2");
    check_keys("blpop 0", "bad");
    check_keys("object freq k", "2");
    check_keys("object help", "");
    check_keys("memory usage k samples 1", "2");
    check_keys("debug object k", "2");
    check_keys("debug sleep k", "");
    check_keys("lmpop 2 a b left", "2 3");
    check_keys("lmpop 0 a left", "bad");
    check_keys("lmpop 4 a b left", "bad");
    check_keys("lmpop x a b left", "bad");
    check_keys("blmpop 0 2 a b left count 3", "3 4");
    check_keys("zunion 2 a b withscores", "2 3");
    check_keys("zunion 0 a", "bad");
    check_keys("zunion 2 a", "bad");
    check_keys("zmpop -1 a min", "bad");
    check_keys("zunionstore d 2 a b weights 1 2", "1 3 4");
    check_keys("zunionstore d x a", "bad");
    check_keys("georadius k 1 2 3 m", "1");
    check_keys("georadius k 1 2 3 m store d withdist storedist e", "1 7 10");
    check_keys("georadiusbymember_ro k m 3 m store d", "1");
    check_keys("eval x 2 a b c", "3 4");
    check_keys("eval_ro x 0 a", "");
    check_keys("evalsha x 3 a b", "bad");
    check_keys("eval x y a b", "bad");
}

static void test_at_most_max_keys(void **state)
{
    (void)state;
    struct slice argv[] = {SLICE_LIT("mget"), SLICE_LIT("a"), SLICE_LIT("b"), SLICE_LIT("c")};
    int pos[2] = {0, 77};
    assert_int_equal(command_keys(command_find(argv[0]), 4, argv, pos, 1), 1);
    assert_int_equal(pos[0], 1);
    assert_int_equal(pos[1], 77);
}

/* What other layers rely on. */
static void test_rows_are_consistent(void **state)
{
    (void)state;
    for (int i = 0; i < command_count; i++) {
        const struct command *cmd = &command_table[i];
        bool has_keys = cmd->first > 0 || cmd->find_keys;
        assert_non_null(cmd->run);
        assert_true(cmd->access == KEY_NONE || has_keys);
        /* One that sees to its keys itself cannot run where dispatch holds locks. */
        if (has_keys && cmd->access == KEY_NONE && strcmp(cmd->key_flags, "not_key") != 0)
            assert_true(cmd->flags & CMD_NO_MULTI && cmd->flags & CMD_SERVER);
        assert_true(cmd->first == 0 || cmd->key_flags[0] != '\0');
        assert_true(has_keys || cmd->key_flags[0] == '\0');
        assert_true(cmd->first == 0 || cmd->step > 0);
        assert_false((cmd->flags & CMD_NEAR) && !(cmd->flags & CMD_READONLY));
        assert_false((cmd->flags & CMD_READONLY) && (cmd->flags & CMD_WRITE));
        if (cmd->container >= 0)
            assert_true(command_table[cmd->container].flags & CMD_CONTAINER);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_in_any_case), cmocka_unit_test(test_near_misses),
        cmocka_unit_test(test_what_is_no_name),       cmocka_unit_test(test_key_positions),
        cmocka_unit_test(test_at_most_max_keys),      cmocka_unit_test(test_rows_are_consistent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
