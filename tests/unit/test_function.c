#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cmd/function_priv.h"
#include "cmd/script_priv.h"
#include "tiercel/hash.h"

static uint64_t rng = 7;

/* Libraries of functions: their first lines, their payload, snapshots, and whether their keys are known. */

static void test_headers(void **state)
{
    static const struct {
        const char *source, *name, *error; /* one of the two */
    } cases[] = {
        {"", NULL, "Missing library metadata"},
        {"return 1", NULL, "Missing library metadata"},
        {"#!lua name=a", NULL, "Invalid library metadata"},
        {"#!lua name=\"a\n", NULL, "Invalid library metadata"},
        {"#!\n", NULL, "Library name was not given"},
        {"#!lua\n", NULL, "Library name was not given"},
        {"#!js name=a\n", NULL, "Engine 'js' not found"},
        {"#!js name=a-b\n", NULL,
         "Library names can only contain letters, numbers, or underscores(_) and must be at least one character long"},
        {"#!lua name=a name=b\n", NULL, "Invalid metadata value, name argument was given multiple times"},
        {"#!lua flags=x name=a\n", NULL, "Invalid metadata value given: flags=x"},
        {"#!lua name=my_lib1\nx", "my_lib1", NULL},
        {"#!LUA  NAME='my_lib1'\t\r\n", "my_lib1", NULL},
        {"#!\"lua\" \"name=\\x41b\"\n", "Ab", NULL},
    };
    struct buf name, err;
    (void)state;

    buf_init(&name, MEM_OTHER);
    buf_init(&err, MEM_OTHER);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t skip = 0;
        name.len = err.len = 0;
        bool ok = function_header(slice_str(cases[i].source), &name, &skip, &err);
        assert_int_equal(ok, cases[i].name != NULL);
        assert_true(slice_eq(buf_slice(ok ? &name : &err), slice_str(ok ? cases[i].name : cases[i].error)));
        if (ok)
            assert_int_equal(cases[i].source[skip], '\n');
    }
    buf_deinit(&name);
    buf_deinit(&err);
}

static struct function_lib *library(const char *name, const char *source, const char *const *functions)
{
    struct function_lib *lib = function_lib_create(slice_str(name), slice_str(source), 0);

    for (; *functions; functions++)
        function_lib_add(lib, slice_str(*functions), SLICE_NONE, 0);
    return lib;
}

static bool change(struct functions *fs, struct function_lib *lib, enum function_policy policy, const char *error)
{
    struct buf err;

    buf_init(&err, MEM_OTHER);
    bool ok = functions_change(fs, &lib, lib != NULL, policy, &err);
    assert_int_equal(ok, error == NULL);
    if (error)
        assert_true(slice_eq(buf_slice(&err), slice_str(error)));
    buf_deinit(&err);
    function_lib_unref(lib);
    return ok;
}

static void test_changes(void **state)
{
    static const char *const one[] = {"f", "g", "zeta", NULL}, *const two[] = {"h", NULL},
                             *const clash[] = {"k", "F", NULL};
    struct functions *fs = functions_create();
    int at;
    (void)state;

    change(fs, library("a", "1", one), FUNCTION_APPEND, NULL);
    change(fs, library("a", "2", two), FUNCTION_APPEND, "Library a already exists");
    change(fs, library("b", "3", clash), FUNCTION_REPLACE, "Function F already exists");
    change(fs, library("b", "4", two), FUNCTION_APPEND, NULL);
    struct function_set *set = functions_get(fs, NULL);
    assert_int_equal(set->nlibs, 2);
    assert_int_equal(set->n, 4);
    assert_string_equal(function_set_find(set, SLICE_LIT("ZETA"), &at)->name, "zeta");
    assert_int_equal(at, 0);
    assert_string_equal(function_set_find(set, SLICE_LIT("h"), &at)->name, "h");
    assert_int_equal(at, 1);
    assert_null(function_set_find(set, SLICE_LIT("zet"), &at));
    assert_null(function_set_find(set, SLICE_LIT("zetaa"), &at));
    assert_null(function_set_find(set, SLICE_LIT(""), &at));
    change(fs, library("a", "5", two), FUNCTION_REPLACE, "Function h already exists");
    change(fs, library("a", "6", clash), FUNCTION_REPLACE, NULL);
    assert_int_equal(set->n, 4); /* who has it keeps it */
    function_set_unref(set);
    change(fs, library("c", "7", one), FUNCTION_FLUSH, NULL);
    set = functions_get(fs, NULL);
    assert_int_equal(set->nlibs, 1);
    function_set_unref(set);
    change(fs, NULL, FUNCTION_FLUSH, NULL);
    functions_destroy(fs);
}

struct seen {
    struct function_set *set;
    int n;
};

static bool compare(void *arg, struct slice source)
{
    struct seen *seen = arg;

    assert_true(seen->n < seen->set->nlibs);
    return slice_eq(source, seen->set->lib[seen->n++]->source);
}

static void test_payload(void **state)
{
    static const char *const none[] = {NULL};
    struct functions *fs = functions_create();
    char name[16], *source = malloc(100001);
    struct buf payload, err;
    (void)state;

    buf_init(&payload, MEM_OTHER);
    buf_init(&err, MEM_OTHER);
    for (int i = 0; i < 30; i++) {
        size_t len = (size_t)(i * i * 100);
        for (size_t k = 0; k < len; k++)
            source[k] = (char)('a' + (i % 2 ? k % 5 : rng_next(&rng) % 26));
        source[len] = '\0';
        snprintf(name, sizeof(name), "lib%d", i);
        change(fs, library(name, source, none), FUNCTION_APPEND, NULL);
    }
    struct seen seen = {functions_get(fs, NULL), 0};
    function_dump(seen.set, &payload);
    assert_true(function_undump(buf_slice(&payload), compare, &seen, &err));
    assert_int_equal(seen.n, 30);
    for (int i = 0; i < 300; i++) { /* one bit wrong, or cut short */
        size_t at = rng_next(&rng) % payload.len;
        seen.n = 0;
        err.len = 0;
        payload.ptr[at] = (char)(payload.ptr[at] ^ 4);
        assert_false(function_undump(buf_slice(&payload), compare, &seen, &err));
        payload.ptr[at] = (char)(payload.ptr[at] ^ 4);
        assert_false(function_undump(SLICE(payload.ptr, at), compare, &seen, &err));
    }
    function_set_unref(seen.set);
    functions_destroy(fs);
    buf_deinit(&payload);
    buf_deinit(&err);
    free(source);
}

#define REGISTER "redis.register_function("

static void test_declared(void **state)
{
    static const char *const good[] = {
        REGISTER "'f', function(keys, args) return redis.call('get', keys[1]) end)",
        REGISTER "'f', function() return 1 end) " REGISTER "'g', function(k) return redis.call('del', unpack(k)) end)",
        "local n = 5 local function f(keys, args) if args[1] then for i = 1, n do redis.call('set', keys[i], args[i]) end end "
        "return #keys end " REGISTER "'f', f) " REGISTER "{function_name='g', callback=f, flags={'no-writes'}}",
        "redis.register_function{description='x', callback=function(keys) return redis.call('get', keys[1]) end, "
        "function_name='f'}",
        REGISTER "{function_name='f', callback=function(keys) return redis.call('get', keys[1]) end})",
    };
    static const char *const bad[] = {
        REGISTER "'f', function(keys, args) return redis.call('get', args[1]) end)",
        REGISTER "'f', function(keys, args) return redis.call('get', KEYS[1]) end)",
        REGISTER "'f', function(keys, args) keys[1] = 'x' return redis.call('get', keys[1]) end)",
        REGISTER "'f', function(keys, args) local k = keys return redis.call('get', k[1]) end)",
        REGISTER "'f', function(keys, args) redis.call('keys', '*') end)",
        REGISTER "'f', function(...) return redis.call('get', ...) end)",
        "local function f(keys) return redis.call('get', keys[1]) end " REGISTER
        "'f', function(keys) return f({'x'}) end)",
        "local function f(keys) return redis.call('get', keys[1]) end " REGISTER "'f', f) " REGISTER
        "'g', function(keys, args) return f(args) end)",
        "local t = {callback = function(keys) return redis.call('get', keys[1]) end} " REGISTER
        "'f', function(keys, args) return t.callback(args) end)",
        "local r = redis " REGISTER "'f', function(keys) end)",
        REGISTER "'f', function(keys, keys) return redis.call('get', keys[1]) end)",
        REGISTER "'f', function(keys, args) local call = redis.call return call('get', args[1]) end)",
        REGISTER "'f', function(keys, args) loadstring('redis.call(\"get\", \"x\")')() end)",
        REGISTER "'f', function(keys, args) if x then return redis.call('get', keys[1])",
    };
    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_true(library_is_declared(slice_str(good[i])));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(library_is_declared(slice_str(bad[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_payload),
        cmocka_unit_test(test_declared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
