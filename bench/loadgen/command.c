/* What is sent: commands as templates, tests as mixes of them. */
#include <stdlib.h>

#include "loadgen.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"
#include "tiercel/num.h"

#define NUMBER_DIGITS 12 /* as redis-benchmark fills in __rand_int__ */
#define LENGTH_MAX 32    /* "$", a length, "\r\n" */

/* ---- templates ---- */

struct template
{
    struct command *cmd;
    size_t len, cap; /* of cmd->text */
    size_t begin;    /* of the piece of text under way */
};

static void add_text(struct template *t, const char *ptr, size_t len)
{
    if (t->len + len > t->cap) {
        t->cap = (t->len + len) * 2;
        t->cmd->text = realloc(t->cmd->text, t->cap);
        CHECK(t->cmd->text);
    }
    memcpy(t->cmd->text + t->len, ptr, len);
    t->len += len;
}

static void add_piece(struct template *t, enum piece_kind kind)
{
    struct command *c = t->cmd;

    c->piece = realloc(c->piece, (c->pieces + 2) * sizeof(*c->piece));
    CHECK(c->piece);
    if (t->len > t->begin)
        c->piece[c->pieces++] = (struct piece){PIECE_TEXT, t->begin, t->len - t->begin};
    if (kind != PIECE_TEXT)
        c->piece[c->pieces++] = (struct piece){kind, 0, 0};
    t->begin = t->len;
}

static void add_length(struct template *t, char mark, size_t n)
{
    char text[LENGTH_MAX];
    int len = snprintf(text, sizeof(text), "%c%zu\r\n", mark, n);
    add_text(t, text, (size_t)len);
}

static const struct {
    const char *word;
    enum piece_kind kind;
} placeholders[] = {
    {"__key__", PIECE_KEY},    {"__rand_int__", PIECE_NUMBER}, {"__value__", PIECE_VALUE},
    {"__data__", PIECE_VALUE}, {"__ttl__", PIECE_TTL},
};
#define PLACEHOLDERS (sizeof(placeholders) / sizeof(placeholders[0]))

/* The first placeholder at or behind `at`: its index, or -1. */
static int find_placeholder(const char *at, const char **found)
{
    int best = -1;
    for (unsigned i = 0; i < PLACEHOLDERS; i++) {
        const char *p = strstr(at, placeholders[i].word);
        if (p && (best < 0 || p < *found)) {
            best = (int)i;
            *found = p;
        }
    }
    return best;
}

static void add_argument(const struct options *o, struct template *t, const char *arg)
{
    const char *at = arg, *found = NULL;
    size_t len = strlen(arg);
    int i;

    for (; (i = find_placeholder(at, &found)) >= 0; at = found + strlen(placeholders[i].word)) {
        enum piece_kind kind = placeholders[i].kind;
        size_t word = strlen(placeholders[i].word);
        if (kind == PIECE_VALUE || kind == PIECE_TTL) {
            if (strlen(arg) != word)
                options_fail("%s must be an argument of its own, not part of '%s'", placeholders[i].word, arg);
            add_piece(t, kind);
            return;
        }
        len = len - word + (kind == PIECE_KEY ? o->key_size : NUMBER_DIGITS);
    }
    add_length(t, '$', len);
    for (at = arg; (i = find_placeholder(at, &found)) >= 0; at = found + strlen(placeholders[i].word)) {
        add_text(t, at, (size_t)(found - at));
        add_piece(t, placeholders[i].kind);
        t->cmd->keys++;
    }
    add_text(t, at, strlen(at));
    add_text(t, "\r\n", 2);
}

static bool is_read(int argc, char *const *argv)
{
    if (argc < 2 || (strcasecmp(argv[0], "get") != 0 && strcasecmp(argv[0], "mget") != 0))
        return false;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "__key__") != 0)
            return false;
    return true;
}

static void compile(const struct options *o, struct command *c, int argc, char *const *argv)
{
    struct template t = {.cmd = c};

    memset(c, 0, sizeof(*c));
    add_length(&t, '*', (size_t)argc);
    for (int i = 0; i < argc; i++)
        add_argument(o, &t, argv[i]);
    add_piece(&t, PIECE_TEXT);
    c->reads = is_read(argc, argv);
    if (c->keys > REQUEST_KEYS_MAX)
        options_fail("a request of more than %d keys", REQUEST_KEYS_MAX);
}

/* ---- tests ---- */

static const struct {
    const char *name;
    const char *argv[4];
} known[] = {
    {"get", {"GET", "__key__"}},
    {"set", {"SET", "__key__", "__value__"}},
    {"incr", {"INCR", "counter:__rand_int__"}},
    {"mget", {"MGET"}},
    {"mset", {"MSET"}},
    {"del", {"DEL", "__key__"}},
    {"exists", {"EXISTS", "__key__"}},
    {"ping", {"PING"}},
};
#define KNOWN (sizeof(known) / sizeof(known[0]))

static int add_command(const struct options *o, struct test *t, const char *name, int argc, char *const *argv)
{
    unsigned i;
    struct command *c = &t->command[t->commands];

    if (t->commands == COMMANDS_MAX)
        options_fail("more than %d commands in a test", COMMANDS_MAX);
    compile(o, c, argc, argv);
    for (i = 0; i < t->stats && strcmp(t->stats_name[i], name) != 0;)
        i++;
    if (i == t->stats)
        snprintf(t->stats_name[t->stats++], sizeof(t->stats_name[0]), "%.31s", name);
    c->stats = i;
    if (c->keys > t->keys_max)
        t->keys_max = c->keys;
    return (int)t->commands++;
}

/* `ttl`: for a SET. */
static int add_known(const struct options *o, struct test *t, const char *name, bool ttl)
{
    static char key[] = "__key__", value[] = "__value__", px[] = "PX", ms[] = "__ttl__";
    char *argv[2 * REQUEST_KEYS_MAX + 4];
    int argc = 0;
    unsigned i;

    for (i = 0; i < KNOWN && strcmp(known[i].name, name) != 0;)
        i++;
    if (i == KNOWN)
        options_fail("-t: no test '%s'; there are get, set, incr, mget, mset, del, exists, ping", name);
    while (argc < 4 && known[i].argv[argc]) {
        argv[argc] = (char *)known[i].argv[argc];
        argc++;
    }
    if (strcmp(name, "set") == 0 && ttl) {
        argv[argc++] = px;
        argv[argc++] = ms;
    }
    for (unsigned k = 0; name[0] == 'm' && k < o->mget_keys; k++) {
        argv[argc++] = key;
        if (strcmp(name, "mset") == 0)
            argv[argc++] = value;
    }
    return add_command(o, t, name, argc, argv);
}

static void add_entry(struct test *t, int command, uint64_t weight)
{
    uint64_t before = t->entries ? t->entry[t->entries - 1].upto : 0;
    t->entry[t->entries++] = (struct mix_entry){(unsigned)command, before + weight};
}

/* "get:9+set:1" */
static void parse_mix(const struct options *o, struct test *t, struct slice text)
{
    snprintf(t->name, sizeof(t->name), "%.*s", SLICE_FMT(text));
    while (text.len) {
        const char *plus = memchr(text.ptr, '+', text.len);
        struct slice item = SLICE(text.ptr, plus ? (size_t)(plus - text.ptr) : text.len);
        const char *colon = memchr(item.ptr, ':', item.len);
        uint64_t weight = 1;
        char name[32];
        if (colon) {
            struct slice number = SLICE(colon + 1, item.len - (size_t)(colon + 1 - item.ptr));
            if (!num_parse_u64(number, &weight) || weight == 0 || weight > 1000000)
                options_fail("-t: '%.*s': a weight is a number from 1 to 1000000", SLICE_FMT(item));
            item.len = (size_t)(colon - item.ptr);
        }
        snprintf(name, sizeof(name), "%.*s", item.len < 31 ? (int)item.len : 31, item.ptr);
        add_entry(t, add_known(o, t, name, o->ttl_max > 0), weight);
        text = plus ? SLICE(plus + 1, (size_t)(text.ptr + text.len - plus - 1)) : SLICE_NONE;
        if (plus && text.len == 0)
            options_fail("-t: '%s' ends with a '+'", t->name);
    }
}

static struct test *new_test(struct test *tests, unsigned *n)
{
    if (*n == TESTS_MAX)
        options_fail("-t: more than %d tests", TESTS_MAX);
    struct test *t = &tests[(*n)++];
    memset(t, 0, sizeof(*t));
    t->get = t->set = t->set_ttl = -1;
    return t;
}

static void make_fill(const struct options *o, struct test *t)
{
    snprintf(t->name, sizeof(t->name), "fill");
    t->is_fill = true;
    add_entry(t, add_known(o, t, "set", o->ttl_max > 0), 1);
}

static void make_trace(const struct options *o, struct test *t)
{
    snprintf(t->name, sizeof(t->name), "trace");
    t->from_trace = true;
    t->get = add_known(o, t, "get", false);
    t->set = add_known(o, t, "set", o->ttl_max > 0);
    t->set_ttl = add_known(o, t, "set", true);
}

static void make_user_command(const struct options *o, struct test *t)
{
    size_t len = 0;
    for (int i = 0; i < o->argc && len < sizeof(t->name); i++)
        len += (size_t)snprintf(t->name + len, sizeof(t->name) - len, "%s%s", i ? " " : "", o->argv[i]);
    add_entry(t, add_command(o, t, o->argv[0], o->argc, o->argv), 1);
}

static void finish(const struct options *o, struct test *t, uint64_t value_max)
{
    if (o->set_on_miss && t->set < 0 && !t->is_fill)
        t->set = add_known(o, t, "set", o->ttl_max > 0);
    for (unsigned i = 0; i < t->commands; i++) {
        size_t bytes = 0;
        for (unsigned k = 0; k < t->command[i].pieces; k++) {
            const struct piece *p = &t->command[i].piece[k];
            bytes += p->kind == PIECE_TEXT    ? p->len
                     : p->kind == PIECE_KEY   ? o->key_size
                     : p->kind == PIECE_VALUE ? value_max + 2 + LENGTH_MAX
                                              : 2 * LENGTH_MAX;
        }
        if (bytes > t->request_max)
            t->request_max = bytes;
    }
}

unsigned tests_parse(const struct options *o, uint64_t value_max, struct test *tests)
{
    unsigned n = 0;

    if (o->fill)
        make_fill(o, new_test(tests, &n));
    if (o->argc) {
        make_user_command(o, new_test(tests, &n));
    } else if (o->trace && !o->tests) {
        make_trace(o, new_test(tests, &n));
    } else {
        const char *list = o->tests ? o->tests : o->fill ? "get" : "set,get";
        for (;;) {
            size_t len = strcspn(list, ",");
            if (len == 0)
                options_fail("-t: an empty name in '%s'", o->tests);
            parse_mix(o, new_test(tests, &n), SLICE(list, len));
            if (list[len] == '\0')
                break;
            list += len + 1;
        }
    }
    for (unsigned i = 0; i < n; i++)
        finish(o, &tests[i], value_max);
    return n;
}

void tests_free(struct test *tests, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < tests[i].commands; k++) {
            free(tests[i].command[k].piece);
            free(tests[i].command[k].text);
        }
    }
}

/* ---- a request ---- */

static void write_digits(char *out, unsigned width, uint64_t v)
{
    for (unsigned i = width; i > 0; v /= 10)
        out[--i] = (char)('0' + v % 10);
}

void key_write(const struct options *o, uint64_t number, char *out)
{
    size_t prefix = strlen(o->key_prefix);
    memcpy(out, o->key_prefix, prefix);
    write_digits(out + prefix, o->key_size - (unsigned)prefix, number);
}

static char *write_argument_length(char *out, uint64_t n)
{
    *out++ = '$';
    out += num_format_u64(out, n);
    *out++ = '\r';
    *out++ = '\n';
    return out;
}

static char *write_value(const struct plan *p, const struct request *req, struct slice key, uint64_t *rng, char *out)
{
    uint64_t size = req->size ? req->size : value_size(&p->opt->sizes, value_key_hash(key));

    out = write_argument_length(out, size);
    value_write(p->values, out, size, key, (uint32_t)rng_next(rng));
    memcpy(out + size, "\r\n", 2);
    return out + size + 2;
}

static char *write_ttl(const struct plan *p, const struct request *req, uint64_t *rng, char *out)
{
    const struct options *o = p->opt;
    char text[NUM_I64_MAX];
    uint64_t min = (uint64_t)(o->ttl_min * 1000), max = (uint64_t)(o->ttl_max * 1000);
    uint64_t ms = req->ttl_s ? (uint64_t)req->ttl_s * 1000 : min + (max > min ? rng_next(rng) % (max - min + 1) : 0);
    size_t len = num_format_u64(text, ms ? ms : 1);

    out = write_argument_length(out, len);
    memcpy(out, text, len);
    memcpy(out + len, "\r\n", 2);
    return out + len + 2;
}

size_t request_write(const struct plan *p, const struct request *req, uint64_t *rng, char *out)
{
    const struct command *c = &p->test->command[req->command];
    const uint64_t *number = req->key;
    struct slice key = SLICE_NONE;
    char *begin = out;

    for (unsigned i = 0; i < c->pieces; i++) {
        const struct piece *piece = &c->piece[i];
        switch (piece->kind) {
        case PIECE_TEXT:
            memcpy(out, c->text + piece->at, piece->len);
            out += piece->len;
            break;
        case PIECE_KEY:
            key_write(p->opt, *number++, out);
            key = SLICE(out, p->opt->key_size);
            out += p->opt->key_size;
            break;
        case PIECE_NUMBER:
            write_digits(out, NUMBER_DIGITS, *number++);
            out += NUMBER_DIGITS;
            break;
        case PIECE_VALUE: out = write_value(p, req, key, rng, out); break;
        case PIECE_TTL: out = write_ttl(p, req, rng, out); break;
        }
    }
    return (size_t)(out - begin);
}
