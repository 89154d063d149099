/* Does a script name its keys by KEYS only, and a library's function its keys by its first parameter? Then the shards of these keys are all that has to be locked.
 *
 * A look at the words of its source, which says yes only where it is sure: every redis.call() and redis.pcall() names its
 * command in so many words, and has KEYS[...] or unpack(KEYS) where that command has keys; and `redis`, `KEYS` and
 * `unpack` are used in no other way than that (they have no other names, and are not changed). */
#include <ctype.h>

#include "cmd/script_priv.h"

enum token_kind { TOKEN_END, TOKEN_NAME, TOKEN_STRING, TOKEN_NUMBER, TOKEN_OTHER };

struct token {
    enum token_kind kind;
    struct slice text; /* of a string: what is in it */
    bool plain;        /* a string without escapes */
};

struct tokens {
    struct token *at;
    int n, cap;
    const char *keys, *args; /* what the script calls them */
};

#define TOKENS_MAX 100000

/* ---- words ---- */

/* The end of a long bracket that begins at p, or NULL; *body: what is in it. */
static const char *long_bracket(const char *p, const char *end, struct slice *body)
{
    const char *q = p + 1;
    size_t level = 0;

    while (q < end && *q == '=') {
        level++;
        q++;
    }
    if (q >= end || *q != '[')
        return NULL;
    const char *start = ++q;
    for (; q < end; q++) {
        if (*q != ']')
            continue;
        const char *r = q + 1;
        size_t n = 0;
        while (r < end && *r == '=') {
            n++;
            r++;
        }
        if (n == level && r < end && *r == ']') {
            *body = SLICE(start, (size_t)(q - start));
            return r + 1;
        }
    }
    return end;
}

static const char *skip_comment(const char *p, const char *end)
{
    struct slice body;
    const char *after = p < end && *p == '[' ? long_bracket(p, end, &body) : NULL;

    if (after)
        return after;
    while (p < end && *p != '\n')
        p++;
    return p;
}

static const char *read_string(const char *p, const char *end, struct token *t)
{
    const char *q = p + 1;

    *t = (struct token){TOKEN_STRING, SLICE_NONE, true};
    while (q < end && *q != *p) {
        if (*q == '\\') {
            t->plain = false;
            q++;
        }
        q++;
    }
    if (q > end)
        q = end;
    t->text = SLICE(p + 1, (size_t)(q - p - 1));
    return q < end ? q + 1 : end;
}

static bool name_byte(char ch)
{
    return isalnum((unsigned char)ch) || ch == '_';
}

static const char *read_token(const char *p, const char *end, struct token *t)
{
    const char *start = p;
    struct slice body;

    if (isalpha((unsigned char)*p) || *p == '_') {
        while (p < end && name_byte(*p))
            p++;
        *t = (struct token){TOKEN_NAME, SLICE(start, (size_t)(p - start)), false};
        return p;
    }
    if (isdigit((unsigned char)*p) || (*p == '.' && p + 1 < end && isdigit((unsigned char)p[1]))) {
        while (p < end && (name_byte(*p) || *p == '.' || ((*p == '+' || *p == '-') && strchr("eE", p[-1]))))
            p++;
        *t = (struct token){TOKEN_NUMBER, SLICE(start, (size_t)(p - start)), false};
        return p;
    }
    if (*p == '"' || *p == '\'')
        return read_string(p, end, t);
    const char *after = *p == '[' ? long_bracket(p, end, &body) : NULL;
    if (after) {
        *t = (struct token){TOKEN_STRING, body, false};
        return after;
    }
    static const char *const longer[] = {"...", "..", "==", "~=", "<=", ">=", NULL};
    size_t n = 1;
    for (int i = 0; longer[i]; i++) {
        size_t len = strlen(longer[i]);
        if ((size_t)(end - p) >= len && memcmp(p, longer[i], len) == 0) {
            n = len;
            break;
        }
    }
    *t = (struct token){TOKEN_OTHER, SLICE(p, n), false};
    return p + n;
}

static bool tokens_read(struct tokens *ts, struct slice source)
{
    const char *p = source.ptr, *end = p + source.len;

    while (p < end) {
        if (isspace((unsigned char)*p)) {
            p++;
            continue;
        }
        if (*p == '-' && p + 1 < end && p[1] == '-') {
            p = skip_comment(p + 2, end);
            continue;
        }
        if (ts->n == TOKENS_MAX)
            return false;
        if (ts->n == ts->cap) {
            ts->cap = ts->cap ? ts->cap * 2 : 128;
            ts->at = mem_realloc(MEM_OTHER, ts->at, (size_t)ts->cap * sizeof(*ts->at));
        }
        p = read_token(p, end, &ts->at[ts->n++]);
    }
    return true;
}

/* ---- what they say ---- */

static bool is(const struct tokens *ts, int i, const char *text)
{
    return i >= 0 && i < ts->n && ts->at[i].kind != TOKEN_STRING && slice_eq(ts->at[i].text, slice_str(text));
}

static bool is_one_of(const struct tokens *ts, int i, const char *const *texts)
{
    for (; *texts; texts++)
        if (is(ts, i, *texts))
            return true;
    return false;
}

static bool opens(const struct tokens *ts, int i)
{
    return is(ts, i, "(") || is(ts, i, "[") || is(ts, i, "{");
}

static bool closes(const struct tokens *ts, int i)
{
    return is(ts, i, ")") || is(ts, i, "]") || is(ts, i, "}");
}

/* The bracket that closes the one at i; -1: none. */
static int closing(const struct tokens *ts, int i)
{
    int depth = 0;

    for (; i < ts->n; i++) {
        depth += opens(ts, i);
        depth -= closes(ts, i);
        if (depth == 0)
            return i;
    }
    return -1;
}

/* KEYS [ ... ], and nothing else. */
static bool is_key(const struct tokens *ts, int from, int to)
{
    return is(ts, from, ts->keys) && is(ts, from + 1, "[") && closing(ts, from + 1) == to - 1;
}

static bool is_all_keys(const struct tokens *ts, int from, int to)
{
    return to - from == 4 && is(ts, from, "unpack") && is(ts, from + 1, "(") && is(ts, from + 2, ts->keys) &&
           is(ts, from + 3, ")");
}

/* One value, whatever it is: not a call or "...", which may be several. */
static bool is_one_value(const struct tokens *ts, int from, int to)
{
    if (to - from == 1)
        return !is(ts, from, "...");
    return is_key(ts, from, to) || (is(ts, from, ts->args) && is(ts, from + 1, "[") && closing(ts, from + 1) == to - 1);
}

#define ARGS_MAX 256

/* Where the arguments of a call begin and end: args[k] to args[k + 1] - 1, with a comma between. -1: too many. */
static int arguments(const struct tokens *ts, int open, int close, int args[ARGS_MAX + 1])
{
    int n = 0;

    args[0] = open + 1;
    for (int i = open + 1; i < close; i++) {
        if (opens(ts, i)) {
            i = closing(ts, i);
            if (i < 0)
                return -1;
        } else if (is(ts, i, "function")) {
            return -1;
        } else if (is(ts, i, ",")) {
            if (++n == ARGS_MAX)
                return -1;
            args[n] = i + 1;
        }
    }
    args[++n] = close + 1;
    return n;
}

static bool fixed_keys(const struct command *cmd)
{
    switch (cmd->id) {
    case CMDID_copy:
    case CMDID_move:
    case CMDID_select:
    case CMDID_sort_ro: return false;
    default:
        return !cmd->find_keys && !(cmd->flags & CMD_CONTAINER) && !multi_needs_all_shards(cmd) &&
               (cmd->access != KEY_NONE || cmd->first == 0);
    }
}

/* redis.call( at `open`. */
static bool call_is_declared(const struct tokens *ts, int open)
{
    int close = closing(ts, open), args[ARGS_MAX + 1];
    int n = close < 0 ? -1 : arguments(ts, open, close, args);

    if (n < 1 || args[1] - args[0] != 2 || ts->at[args[0]].kind != TOKEN_STRING || !ts->at[args[0]].plain)
        return false;
    const struct command *cmd = command_find(ts->at[args[0]].text);
    if (!cmd)
        return true; /* it fails */
    if (!fixed_keys(cmd))
        return false;
    if (cmd->first == 0)
        return true;
    int last = cmd->last < 0 ? n + cmd->last : cmd->last;
    for (int i = cmd->first; i <= last && i < n; i += cmd->step) {
        if (i == n - 1 && is_all_keys(ts, args[i], args[i + 1] - 1))
            return true;
        if (!is_key(ts, args[i], args[i + 1] - 1))
            return false;
    }
    /* What stands last may be more values than one, where further keys are. */
    return (cmd->last > 0 && last < n) || is_one_value(ts, args[n - 1], args[n] - 1);
}

static bool redis_is_plain(const struct tokens *ts, int i)
{
    if (is(ts, i - 1, ".") || is(ts, i - 1, ":"))
        return true; /* a field of something else */
    if (!is(ts, i + 1, "."))
        return false;
    if (!is(ts, i + 2, "call") && !is(ts, i + 2, "pcall"))
        return true;
    return is(ts, i + 3, "(") && call_is_declared(ts, i + 3);
}

/* KEYS[...] may only be read. */
static bool keys_is_plain(const struct tokens *ts, int i, int depth)
{
    static const char *const before[] = {"(",      ",",   "=",  "==",  "~=", "<",  ">",      "<=",    ">=",    "..",
                                         "+",      "-",   "*",  "/",   "%",  "^",  "#",      "{",     "[",     ";",
                                         "return", "and", "or", "not", "if", "in", "elseif", "while", "until", NULL};

    if (is(ts, i - 1, ".") || is(ts, i - 1, ":"))
        return true;
    if (is(ts, i - 1, "#") && !is(ts, i + 1, "["))
        return !is(ts, i + 1, ".") && !is(ts, i + 1, ":") && !is(ts, i + 1, "(");
    if (is(ts, i - 1, "(") && is(ts, i - 2, "unpack") && is(ts, i + 1, ")"))
        return true;
    if (!is(ts, i + 1, "[") || is(ts, i - 1, ";") || !is_one_of(ts, i - 1, before))
        return false;
    int close = closing(ts, i + 1);
    return close >= 0 && !is(ts, close + 1, "=") && !(depth == 0 && is(ts, i - 1, ","));
}

static bool unpack_is_plain(const struct tokens *ts, int i)
{
    if (is(ts, i - 1, ".") || is(ts, i - 1, ":"))
        return true;
    return is(ts, i + 1, "(") && !is(ts, i - 1, "function");
}

/* By these a script gets at the tables and functions above under other names, or runs what is not in its source. */
static const char *const ways_around[] = {"_G", "load", "loadstring", "getfenv", "setfenv", NULL};

static bool body_is_declared(const struct tokens *ts)
{
    int depth = 0;
    bool good = true;

    for (int i = 0; i < ts->n && good; i++) {
        depth += is(ts, i, "(") || is(ts, i, "{");
        depth -= is(ts, i, ")") || is(ts, i, "}");
        if (ts->at[i].kind != TOKEN_NAME)
            continue;
        if (is(ts, i, "redis"))
            good = redis_is_plain(ts, i);
        else if (is(ts, i, ts->keys))
            good = keys_is_plain(ts, i, depth);
        else if (is(ts, i, "unpack"))
            good = unpack_is_plain(ts, i);
        else if (is(ts, i, "function"))
            good = depth == 0;
        else
            good = !is_one_of(ts, i, ways_around) || is(ts, i - 1, ".");
    }
    return good;
}

bool script_is_declared(struct slice source)
{
    struct tokens ts = {.keys = "KEYS", .args = "ARGV"};
    bool good = tokens_read(&ts, source) && body_is_declared(&ts);

    mem_free(MEM_OTHER, ts.at);
    return good;
}

/* ---- libraries ----
 *
 * Each function must be one that is registered, and nothing else may call it: then its first parameter is the keys. */

/* The `end` of the function at i; -1: none. */
static int function_end(const struct tokens *ts, int i)
{
    static const char *const begins[] = {"function", "if", "do", "repeat", NULL};
    static const char *const ends[] = {"end", "until", NULL};
    int depth = 0;

    for (; i < ts->n; i++) {
        if (ts->at[i].kind != TOKEN_NAME || is(ts, i - 1, "."))
            continue;
        depth += is_one_of(ts, i, begins);
        depth -= is_one_of(ts, i, ends);
        if (depth == 0)
            return i;
    }
    return -1;
}

/* Is what stands from `first` to `last` given to redis.register_function() as the function? */
static bool is_registered(const struct tokens *ts, int first, int last)
{
    int depth = 0, i = first - 1;

    if (is(ts, i, ","))
        return i >= 5 && ts->at[i - 1].kind == TOKEN_STRING && is(ts, i - 2, "(") &&
               is(ts, i - 3, "register_function") && is(ts, i - 4, ".") && is(ts, i - 5, "redis") &&
               is(ts, last + 1, ")");
    if (!is(ts, i, "=") || !is(ts, i - 1, "callback") || !(is(ts, last + 1, ",") || is(ts, last + 1, "}")))
        return false;
    for (; i >= 0 && depth >= 0; i--)
        depth += closes(ts, i) - opens(ts, i);
    i -= is(ts, i, "("); /* the one before the brace, if any */
    return is(ts, i, "register_function") && is(ts, i - 1, ".") && is(ts, i - 2, "redis");
}

static bool name_is_registered(const struct tokens *ts, int at)
{
    struct slice name = ts->at[at].text;

    for (int i = 0; i < ts->n; i++)
        if (i != at && ts->at[i].kind == TOKEN_NAME && slice_eq(ts->at[i].text, name) && !is(ts, i - 1, ".") &&
            !is_registered(ts, i, i))
            return false;
    return true;
}

#define PARAMETER_MAX 64
#define FUNCTIONS_MAX 500 /* each is looked for in the whole library */

static bool parameter_read(const struct tokens *ts, int i, char out[PARAMETER_MAX])
{
    struct slice name = i < ts->n ? ts->at[i].text : SLICE_NONE;

    if (i >= ts->n || ts->at[i].kind != TOKEN_NAME || name.len >= PARAMETER_MAX || is(ts, i, "redis") ||
        is(ts, i, "unpack"))
        return false;
    memcpy(out, name.ptr, name.len);
    out[name.len] = '\0';
    return true;
}

/* The function at i, which ends at `end`. */
static bool function_is_declared(const struct tokens *ts, int i, int end)
{
    bool named = i + 1 < ts->n && ts->at[i + 1].kind == TOKEN_NAME;
    char keys[PARAMETER_MAX] = "", args[PARAMETER_MAX] = "";
    int at = i + 1 + named;

    if (named ? !is(ts, i - 1, "local") || !name_is_registered(ts, i + 1) : !is_registered(ts, i, end))
        return false;
    if (!is(ts, at++, "("))
        return false;
    if (!is(ts, at, ")") && !parameter_read(ts, at++, keys))
        return false;
    if (is(ts, at, ",") && !parameter_read(ts, at + 1, args))
        return false;
    at += is(ts, at, ",") ? 2 : 0;
    if (!is(ts, at++, ")") || (keys[0] && strcmp(keys, args) == 0))
        return false;
    struct tokens body = {.at = ts->at + at, .n = end - at, .keys = keys, .args = args};
    return body_is_declared(&body);
}

bool library_is_declared(struct slice source)
{
    struct tokens ts = {.keys = "", .args = ""};
    bool good = tokens_read(&ts, source);
    int functions = 0;

    for (int i = 0; i < ts.n && good; i++) {
        if (ts.at[i].kind != TOKEN_NAME || is(&ts, i - 1, "."))
            continue;
        if (is(&ts, i, "function")) {
            int end = function_end(&ts, i);
            good = end > 0 && ++functions <= FUNCTIONS_MAX && function_is_declared(&ts, i, end);
            i = end;
        } else {
            good = is(&ts, i, "redis") ? is(&ts, i + 1, ".") : !is_one_of(&ts, i, ways_around);
        }
    }
    mem_free(MEM_OTHER, ts.at);
    return good;
}
