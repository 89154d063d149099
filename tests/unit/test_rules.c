/* Rules: their text, which one decides; and what the tier layer makes of a copy's ttl. */
#include "tier_world.h"

#include "tiercel/rules.h"

/* ---- text ------------------------------------------------------------------------------------ */

static char err[RULE_ERROR_MAX];

#define WORDS_MAX 12

/* "pattern k=v k=v": blanks separate. */
static enum status add(struct rules **set, const char *text)
{
    char copy[256], *at = copy, *word;
    struct slice words[WORDS_MAX];
    struct rules *next;
    int n = 0;

    snprintf(copy, sizeof(copy), "%s", text);
    while ((word = strsep(&at, " ")) != NULL && n < WORDS_MAX)
        words[n++] = slice_str(word);
    enum status st = rules_with(*set, n, words, &next, err);
    if (st == ST_OK) {
        rules_unref(*set);
        *set = next;
    }
    return st;
}

static const char *winner(const struct rules *set, const char *key)
{
    const struct rule *rule = rules_match(set, slice_str(key));
    return rule ? rule->pattern : "";
}

static void test_values(void **state)
{
    (void)state;
    struct rules *set = NULL;
    struct buf text;

    assert_int_equal(add(&set, "k* write=around ttl=90s ttl-jitter=10% negative-ttl=0 stale-while-revalidate=1500ms "
                               "stale-if-error=2h refresh-ahead=20 compress=no max-object=64kb"),
                     ST_OK);
    const struct rule *rule = rules_match(set, SLICE_LIT("key"));
    assert_non_null(rule);
    assert_int_equal(rule->value[RULE_WRITE], WRITE_AROUND);
    assert_int_equal(rule->value[RULE_TTL], 90000);
    assert_int_equal(rule->value[RULE_TTL_JITTER], 10);
    assert_true(rule->given[RULE_NEGATIVE_TTL]);
    assert_int_equal(rule->value[RULE_STALE_REFRESH], 1500);
    assert_int_equal(rule->value[RULE_STALE_ERROR], 7200000);
    assert_int_equal(rule->value[RULE_COMPRESS], COMPRESS_NO);
    assert_int_equal(rule->value[RULE_MAX_OBJECT], 65536);
    buf_init(&text, MEM_OTHER);
    rule_format(rule, &text);
    buf_byte(&text, '\0');
    assert_string_equal(text.ptr, "write=around ttl=90s ttl-jitter=10 negative-ttl=0 stale-while-revalidate=1500ms "
                                  "stale-if-error=2h refresh-ahead=20 compress=no max-object=64kb");
    buf_deinit(&text);
    rules_unref(set);
}

static void test_bad(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "k*",
        " ttl=5s",
        "k* ttl",
        "k* ttl=",
        "k* ttl=5",
        "k* ttl=-5s",
        "k* ttl=1.5s",
        "k* ttl=8d",
        "k* ttl=99999999999999999999s",
        "k* ttl=5s ttl=6s",
        "k* TTTL=5s",
        "k* =5s",
        "k* write=behind",
        "k* compress=zstd",
        "k* ttl-jitter=101 ttl=5s",
        "k* ttl-jitter=5",
        "k* refresh-ahead=5 ttl=0",
        "k* stale-while-revalidate=5s",
        "k* max-object=lots",
    };
    struct rules *set = NULL;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        err[0] = '\0';
        if (add(&set, bad[i]) != ST_BAD)
            fail_msg("taken: %s", bad[i]);
        assert_true(err[0] != '\0' && !strchr(err, '\n'));
    }
    assert_null(set);
    char text[64];
    for (int i = 0; i < RULES_MAX; i++) {
        snprintf(text, sizeof(text), "k%d ttl=5s", i);
        assert_int_equal(add(&set, text), ST_OK);
    }
    assert_int_equal(add(&set, "one-more ttl=5s"), ST_BAD);
    assert_int_equal(add(&set, "k7 ttl=6s"), ST_OK); /* takes the place of another */
    assert_int_equal(rules_count(set), RULES_MAX);
    rules_unref(set);
}

static void test_specificity(void **state)
{
    (void)state;
    struct rules *set = NULL, *less;

    add(&set, "* ttl=1s");
    add(&set, "user:* ttl=2s");
    add(&set, "*:name ttl=3s");
    add(&set, "user:?? ttl=4s");
    add(&set, "user:[abcdefgh]* ttl=5s");
    add(&set, "user:\\*\\* ttl=6s");
    assert_string_equal(winner(set, "x"), "*");
    assert_string_equal(winner(set, "user:"), "user:*");
    assert_string_equal(winner(set, "user:12"), "user:??");         /* as many literals, and longer */
    assert_string_equal(winner(set, "user:a"), "user:[abcdefgh]*"); /* a class is no literal */
    assert_string_equal(winner(set, "user:**"), "user:\\*\\*");     /* what is escaped is one */
    assert_string_equal(winner(set, "user:1:name"), "*:name");      /* as many, as long: set later */
    add(&set, "user:* ttl=7s");
    assert_string_equal(winner(set, "user:1:name"), "user:*");
    assert_int_equal(rules_match(set, SLICE_LIT("user:1:name"))->value[RULE_TTL], 7000);
    assert_int_equal(rules_count(set), 6);
    assert_int_equal(rules_without(set, SLICE_LIT("nothing"), &less), ST_NOT_FOUND);
    assert_int_equal(rules_without(set, SLICE_LIT("user:*"), &less), ST_OK);
    assert_string_equal(winner(set, "user:1:name"), "user:*"); /* what others hold stays as it is */
    assert_string_equal(winner(less, "user:1:name"), "*:name");
    rules_unref(set);
    rules_unref(less);
    assert_null(rules_match(NULL, SLICE_LIT("x")));
}

/* ---- what becomes of copies ------------------------------------------------------------------- */

static struct world *wd;
static struct worker *w, *other;
static int64_t data_before;

static struct upstream *up_of(int worker)
{
    return tier_upstream(world_worker(wd, worker));
}

static void set_rule(const char *text)
{
    for (int i = 0; i < wd->n; i++) {
        struct worker *to = world_worker(wd, i);
        char copy[256], *at = copy, *word;
        struct slice words[WORDS_MAX];
        struct conf *next;
        int n = 0;
        snprintf(copy, sizeof(copy), "%s", text);
        while ((word = strsep(&at, " ")) != NULL && n < WORDS_MAX)
            words[n++] = slice_str(word);
        assert_int_equal(conf_rule_set(to->conf, n, words, &next, err), ST_OK);
        conf_unref(to->conf);
        to->conf = next;
    }
}

static int make(void **state)
{
    (void)state;
    data_before = mem_class_bytes(MEM_DATA);
    wd = world_create(2, false, true);
    w = world_worker(wd, 0);
    other = world_worker(wd, 1);
    fake_up_connect(up_of(0));
    fake_up_connect(up_of(1));
    atomic_store(&wd->tier->limit.stale_if_error_ms, 0);
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    world_destroy(wd);
    assert_int_equal(mem_class_bytes(MEM_DATA), data_before);
    return 0;
}

/* The time that the workers see, from now. */
static void at(int64_t ms)
{
    w->now_ms = other->now_ms = clock_wall_ms() + ms;
}

static struct tier_found found;
static char value[64];

static enum status look_as(struct worker *as, const char *name, const struct tier_wait *wait)
{
    char scratch[OBJ_SCRATCH];
    struct slice s = SLICE_NONE;
    struct key k;

    mem_key_init(wd->mem, 0, slice_str(name), &k);
    struct mem_shard *shard = mem_shard_of(wd->mem, k.hash);
    mem_lock(shard);
    enum status st = tier_resolve_locked(as, shard, &k, TIER_VALUE, wait, &found);
    if (st == ST_OK && found.obj)
        assert_int_equal(object_string(found.obj, as->codec, scratch, &s), ST_OK);
    snprintf(value, sizeof(value), "%.*s", SLICE_FMT(s));
    mem_unlock(shard);
    world_turn(wd);
    return st;
}

static enum status look(const char *name)
{
    return look_as(w, name, NULL);
}

#define HAS(name, v)                         \
    do {                                     \
        assert_int_equal(look(name), ST_OK); \
        assert_non_null(found.obj);          \
        assert_string_equal(value, v);       \
    } while (0)

struct req {
    struct tier_request treq;
    struct tier_wait wait;
    int ready;
};

static void req_ready(struct tier_request *treq)
{
    LIST_ENTRY(treq, struct req, treq)->ready++;
}

static enum status fault(struct req *r, const char *name)
{
    memset(r, 0, sizeof(*r));
    list_init(&r->treq.admission);
    r->treq.ready = req_ready;
    r->treq.nwaits = 1;
    r->treq.waits = &r->wait;
    mem_key_init(wd->mem, 0, slice_str(name), &r->wait.key);
    r->wait.need = TIER_VALUE;
    return tier_fault(w, &r->treq, true);
}

static void fetch(const char *name, const char *v)
{
    struct req r;
    at(0);
    assert_int_equal(fault(&r, name), ST_PENDING);
    assert_true(fake_up_answer(up_of(0), ST_OK, v, -1));
    world_turn(wd);
    tier_release(w, &r.treq);
    HAS(name, v);
}

static void answer(enum status st, const char *v)
{
    assert_true(fake_up_answer(up_of(0), st, v, -1));
    world_turn(wd);
}

static size_t fetches(void)
{
    return up_of(0)->nfetches + up_of(1)->nfetches;
}

static int64_t keys(void)
{
    return atomic_load(&wd->mem->db[0].keys);
}

static void test_fresh_aging_stale_old(void **state)
{
    (void)state;
    struct req r;
    set_rule("a* ttl=10s refresh-ahead=20 stale-while-revalidate=5s");
    fetch("a", "1");
    at(7900);
    HAS("a", "1");
    assert_int_equal(fetches(), 1);
    at(8100); /* the last fifth of its ttl: one refresh, whoever hits */
    HAS("a", "1");
    HAS("a", "1");
    assert_int_equal(look_as(other, "a", NULL), ST_OK);
    assert_int_equal(fetches(), 2);
    answer(ST_OK, "2");
    at(7900); /* counted from when the refresh was sent */
    HAS("a", "2");
    assert_int_equal(fetches(), 2);
    at(14000);
    HAS("a", "2");
    assert_int_equal(fetches(), 3);
    answer(ST_OK, "3");
    HAS("a", "3");
    assert_int_equal(keys(), 1);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 1);
    answer(ST_OK, "4"); /* at(14000) still: the hit before has begun another */
    at(15100);
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer(ST_OK, "5");
    assert_int_equal(r.ready, 1);
    assert_int_equal(look_as(w, "a", &r.wait), ST_OK);
    assert_string_equal(value, "5");
    tier_release(w, &r.treq);
    at(RULE_MS_MAX); /* far later it is not taken for a fresh one */
    assert_int_equal(look("a"), ST_PENDING);
}

static void test_long_ttl(void **state)
{
    (void)state;
    set_rule("a* ttl=7d stale-while-revalidate=7d");
    fetch("a", "1");
    at(RULE_MS_MAX - 1000);
    HAS("a", "1");
    assert_int_equal(fetches(), 1);
    at(RULE_MS_MAX * 2 - 1000LL);
    HAS("a", "1");
    assert_int_equal(fetches(), 2);
    answer(ST_OK, "1");
    at(RULE_MS_MAX * 2 + 1000LL);
    assert_int_equal(look("a"), ST_PENDING);
}

/* Other keys have no ttl; and a rule that lost its own has none either. */
static void test_no_ttl(void **state)
{
    (void)state;
    set_rule("a* ttl=1s");
    fetch("a", "1");
    fetch("b", "1");
    at(86400000);
    HAS("b", "1");
    assert_int_equal(look("a"), ST_PENDING);
    set_rule("a* compress=no");
    HAS("a", "1");
}

static void test_refresh_fails(void **state)
{
    (void)state;
    struct req r;
    set_rule("a* ttl=1s stale-while-revalidate=10s stale-if-error=5s");
    fetch("a", "1");
    at(2000);
    HAS("a", "1");
    assert_int_equal(fetches(), 2);
    answer(ST_BAD, "LOADING");
    for (int i = 0; i < 10; i++)
        HAS("a", "1");
    assert_int_equal(fetches(), 2);
    at(3100); /* not again for a second */
    HAS("a", "1");
    assert_int_equal(fetches(), 3);
    /* It comes too late: who needs it now waits for the same. */
    at(11100);
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    assert_int_equal(fetches(), 3);
    answer(ST_TIMEOUT, NULL);
    assert_int_equal(r.ready, 1);
    assert_int_equal(look_as(w, "a", &r.wait), ST_OK); /* stale-if-error */
    assert_string_equal(value, "1");
    tier_release(w, &r.treq);
    at(16200);
    assert_int_equal(fault(&r, "a"), ST_PENDING);
    answer(ST_TIMEOUT, NULL);
    assert_int_equal(look_as(w, "a", &r.wait), ST_TIMEOUT);
    tier_release(w, &r.treq);
    assert_int_equal(keys(), 1);
}

static void test_refresh_not_kept(void **state)
{
    (void)state;
    static const enum status rows[] = {ST_OK, ST_NOT_FOUND, ST_WRONGTYPE, ST_TIMEOUT};
    set_rule("a* ttl=1s stale-while-revalidate=10s");
    char name[8];
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(name, sizeof(name), "a%zu", i); /* one that failed would not be refreshed at once */
        fetch(name, "1");
        at(2000);
        HAS(name, "1");
        up_of(1)->ev.invalidate(up_of(1)->ev.arg, slice_str(name));
        assert_int_equal(keys(), 0);
        assert_int_equal(look(name), ST_PENDING); /* not the refresh's to wait for */
        answer(rows[i], "2");
        assert_int_equal(look(name), ST_PENDING);
        assert_int_equal(keys(), 0);
    }
    fetch("a", "1");
    at(2000);
    HAS("a", "1");
    answer(ST_NOT_FOUND, NULL);
    assert_int_equal(look("a"), ST_OK);
    assert_null(found.obj);
    assert_int_equal(keys(), 0);
    fetch("ab", "1");
    at(2000);
    HAS("ab", "1");
    answer(ST_WRONGTYPE, NULL);
    assert_int_equal(look("ab"), ST_PENDING);
    assert_int_equal(keys(), 0);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
}

static void test_refresh_and_pins(void **state)
{
    (void)state;
    struct req r, s;
    set_rule("a* ttl=1s stale-while-revalidate=10s");
    fetch("a", "1");
    at(2000);
    assert_int_equal(fault(&r, "a"), ST_OK); /* pinned, before */
    HAS("a", "1");
    assert_int_equal(fault(&s, "a"), ST_OK); /* and while it is refreshed */
    assert_int_equal(fetches(), 2);
    answer(ST_OK, "2");
    assert_int_equal(look_as(w, "a", &r.wait), ST_OK);
    assert_string_equal(value, "2");
    tier_release(w, &r.treq);
    tier_release(w, &s.treq);
    HAS("a", "2"); /* at(2000): another refresh */
    assert_int_equal(fault(&r, "a"), ST_OK);
    tier_forget_upstream(w, 0, SLICE_LIT("a"));
    answer(ST_OK, "3");
    tier_release(w, &r.treq);
    assert_int_equal(keys(), 0);
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(atomic_load(&wd->tier->tracked_keys), 0);
}

static void test_refresh_and_lost_link(void **state)
{
    (void)state;
    set_rule("a* ttl=1s stale-while-revalidate=10s stale-if-error=1m");
    fetch("a", "1");
    at(2000);
    HAS("a", "1");
    fake_up_lose(up_of(0));
    world_turn(wd);
    HAS("a", "1"); /* a suspect, and the upstream is away */
    fake_up_connect(up_of(0));
    assert_int_equal(look("a"), ST_PENDING);
    assert_int_equal(keys(), 1);
}

static void test_refreshes_are_bounded(void **state)
{
    (void)state;
    char name[16];
    set_rule("a* ttl=1s stale-while-revalidate=10s");
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "a%d", i);
        fetch(name, "1");
    }
    at(2000);
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "a%d", i);
        HAS(name, "1");
    }
    assert_int_equal(fetches(), 300 + 256);
    while (fake_up_answer(up_of(0), ST_OK, "2", -1))
        ;
    world_turn(wd);
    assert_int_equal(keys(), 300);
}

static void test_max_object_and_negative_ttl(void **state)
{
    (void)state;
    struct req r;
    set_rule("a* max-object=4 negative-ttl=1h");
    set_rule("an* negative-ttl=0");
    fetch("a", "1234");
    assert_int_equal(fault(&r, "a2"), ST_PENDING);
    answer(ST_OK, "12345");
    assert_int_equal(look_as(w, "a2", &r.wait), ST_OK);
    assert_string_equal(value, "12345");
    tier_release(w, &r.treq);
    assert_int_equal(look("a2"), ST_PENDING);
    assert_int_equal(keys(), 1);
    assert_int_equal(fault(&r, "a3"), ST_PENDING);
    answer(ST_NOT_FOUND, NULL);
    tier_release(w, &r.treq);
    at(3500000);
    assert_int_equal(look("a3"), ST_OK);
    assert_null(found.obj);
    at(0);
    assert_int_equal(fault(&r, "an"), ST_PENDING);
    answer(ST_NOT_FOUND, NULL);
    tier_release(w, &r.treq);
    assert_int_equal(look("an"), ST_PENDING);
}

int main(void)
{
#define ROW(name) cmocka_unit_test_setup_teardown(name, make, unmake)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_specificity),
        ROW(test_fresh_aging_stale_old),
        ROW(test_long_ttl),
        ROW(test_no_ttl),
        ROW(test_refresh_fails),
        ROW(test_refresh_not_kept),
        ROW(test_refresh_and_pins),
        ROW(test_refresh_and_lost_link),
        ROW(test_refreshes_are_bounded),
        ROW(test_max_object_and_negative_ttl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
