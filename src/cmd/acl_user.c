/* A user and its rules. */
#include <ctype.h>
#include <stdlib.h>

#include "tiercel/digest.h"

#include "cmd/acl_priv.h"

const char acl_no_such_command[] = "Unknown command or category name in ACL";
const char acl_duplicate_user[] = "Duplicate user found. A user can only be defined once in config files";

static const char bad_syntax[] = "Syntax error";
static const char bad_hash[] =
    "The password hash must be exactly 64 characters and contain only lowercase hexadecimal characters";
static const char no_such_password[] = "The password you are trying to remove from the user does not exist";
static const char first_arg_of_sub[] = "Allowing first-arg of a subcommand is not supported";
static const char keys_are_all[] =
    "Adding a pattern after the * pattern (or the 'allkeys' flag) is not valid and does not have any effect. Try "
    "'resetkeys' to start with an empty list of patterns";
static const char channels_are_all[] =
    "Adding a pattern after the * pattern (or the 'allchannels' flag) is not valid and does not have any effect. Try "
    "'resetchannels' to start with an empty list of channels";

static struct slice own(struct slice s)
{
    char *copy = mem_alloc(MEM_OTHER, s.len + 1);

    if (s.len)
        memcpy(copy, s.ptr, s.len);
    copy[s.len] = '\0';
    return SLICE(copy, s.len);
}

static void disown(struct slice s)
{
    mem_free(MEM_OTHER, (char *)(uintptr_t)s.ptr);
}

static struct slice after(struct slice s, size_t n)
{
    return SLICE(s.ptr + n, s.len - n);
}

/* ---- sets of commands ---- */

static void commands_add(struct acl_commands *c, int id)
{
    c->word[id / 64] |= 1ULL << (id % 64);
}

static void commands_add_with_subs(struct acl_commands *c, const struct command *cmd)
{
    commands_add(c, cmd->id);
    for (int i = 0; cmd->flags & CMD_CONTAINER && i < command_count; i++)
        if (command_table[i].container == cmd->id)
            commands_add(c, i);
}

void acl_commands_of(const struct command *cmd, struct acl_commands *out)
{
    *out = (struct acl_commands){{0}};
    commands_add_with_subs(out, cmd);
}

void acl_commands_in(uint32_t category, bool with_subcommands, struct acl_commands *out)
{
    *out = (struct acl_commands){{0}};
    for (int i = 0; i < command_count; i++) {
        if (!(command_categories(&command_table[i]) & category))
            continue;
        if (with_subcommands)
            commands_add_with_subs(out, &command_table[i]);
        else
            commands_add(out, i);
    }
}

/* ---- selectors ---- */

static struct acl_selector *selector_create(bool all_channels)
{
    struct acl_selector *s = mem_calloc(MEM_OTHER, sizeof(*s));

    s->all_channels = all_channels;
    return s;
}

static void first_args_drop(struct acl_selector *s, const struct acl_commands *which)
{
    int kept = 0;

    for (int i = 0; i < s->nfirst; i++) {
        if (!which || acl_commands_has(which, s->first[i].id))
            disown(s->first[i].text);
        else
            s->first[kept++] = s->first[i];
    }
    s->nfirst = kept;
}

static void keys_drop(struct acl_selector *s)
{
    for (int i = 0; i < s->nkeys; i++)
        disown(s->keys[i].text);
    s->nkeys = 0;
    s->all_keys = false;
}

static void channels_drop(struct acl_selector *s)
{
    for (int i = 0; i < s->nchannels; i++)
        disown(s->channels[i]);
    s->nchannels = 0;
    s->all_channels = false;
}

static void selector_free(struct acl_selector *s)
{
    first_args_drop(s, NULL);
    keys_drop(s);
    channels_drop(s);
    mem_free(MEM_OTHER, s->first);
    mem_free(MEM_OTHER, s->keys);
    mem_free(MEM_OTHER, s->channels);
    mem_free(MEM_OTHER, s);
}

static struct acl_selector *selector_copy(const struct acl_selector *old)
{
    struct acl_selector *s = mem_alloc(MEM_OTHER, sizeof(*s));

    *s = *old;
    s->first = mem_alloc(MEM_OTHER, (size_t)(s->nfirst + 1) * sizeof(*s->first));
    for (int i = 0; i < s->nfirst; i++)
        s->first[i] = (struct acl_first_arg){old->first[i].id, own(old->first[i].text)};
    s->keys = mem_alloc(MEM_OTHER, (size_t)(s->nkeys + 1) * sizeof(*s->keys));
    for (int i = 0; i < s->nkeys; i++)
        s->keys[i] = (struct acl_pattern){own(old->keys[i].text), old->keys[i].rights};
    s->channels = mem_alloc(MEM_OTHER, (size_t)(s->nchannels + 1) * sizeof(*s->channels));
    for (int i = 0; i < s->nchannels; i++)
        s->channels[i] = own(old->channels[i]);
    return s;
}

void acl_selector_set(struct acl_selector *s, const struct acl_commands *which, bool allow)
{
    for (int i = 0; i < ACL_WORDS; i++) {
        if (allow)
            s->allowed.word[i] |= which->word[i];
        else
            s->allowed.word[i] &= ~which->word[i];
    }
    if (!allow)
        s->all_commands = false;
    first_args_drop(s, which);
}

static void set_all_commands(struct acl_selector *s, bool allow)
{
    first_args_drop(s, NULL);
    memset(&s->allowed, allow ? 0xff : 0, sizeof(s->allowed));
    s->all_commands = s->future = allow;
}

/* ---- rules of a selector ---- */

static bool has_blanks(struct slice s)
{
    for (size_t i = 0; i < s.len; i++)
        if (isspace((unsigned char)s.ptr[i]) || s.ptr[i] == '\0')
            return true;
    return false;
}

static const char *add_key_pattern(struct acl_selector *s, struct slice rule)
{
    unsigned rights = 0;
    size_t at = 1;

    if (s->all_keys)
        return keys_are_all;
    if (rule.ptr[0] == '~') {
        rights = ACL_READ | ACL_WRITE;
    } else {
        for (; at < rule.len && rule.ptr[at] != '~'; at++) {
            unsigned right = toupper((unsigned char)rule.ptr[at]) == 'R'   ? ACL_READ
                             : toupper((unsigned char)rule.ptr[at]) == 'W' ? ACL_WRITE
                                                                           : 0;
            if (!right || rights & right)
                return bad_syntax;
            rights |= right;
        }
        if (!rights)
            return bad_syntax;
        at += at < rule.len;
    }
    struct slice text = after(rule, at);
    if (has_blanks(text))
        return bad_syntax;
    for (int i = 0; i < s->nkeys; i++) {
        if (slice_eq(s->keys[i].text, text)) {
            s->keys[i].rights |= rights;
            return NULL;
        }
    }
    s->keys = mem_realloc(MEM_OTHER, s->keys, (size_t)(s->nkeys + 1) * sizeof(*s->keys));
    s->keys[s->nkeys++] = (struct acl_pattern){own(text), rights};
    return NULL;
}

static const char *add_channel(struct acl_selector *s, struct slice text)
{
    if (s->all_channels)
        return channels_are_all;
    if (has_blanks(text))
        return bad_syntax;
    for (int i = 0; i < s->nchannels; i++)
        if (slice_eq(s->channels[i], text))
            return NULL;
    s->channels = mem_realloc(MEM_OTHER, s->channels, (size_t)(s->nchannels + 1) * sizeof(*s->channels));
    s->channels[s->nchannels++] = own(text);
    return NULL;
}

static void add_first_arg(struct acl_selector *s, int id, struct slice text)
{
    for (int i = 0; i < s->nfirst; i++)
        if (s->first[i].id == id && slice_eq(s->first[i].text, text))
            return;
    s->first = mem_realloc(MEM_OTHER, s->first, (size_t)(s->nfirst + 1) * sizeof(*s->first));
    s->first[s->nfirst++] = (struct acl_first_arg){id, own(text)};
}

/* "@read" */
static const char *set_category(struct acl_selector *s, struct slice name, bool allow)
{
    struct acl_commands which;

    for (int i = 0; i < CAT_COUNT; i++) {
        if (!slice_is(name, acl_category_names[i]))
            continue;
        acl_commands_in(1u << i, true, &which);
        acl_selector_set(s, &which, allow);
        return NULL;
    }
    return acl_no_such_command;
}

static const char *set_command(struct acl_selector *s, struct slice name, bool allow)
{
    const char *bar = allow ? memrchr(name.ptr, '|', name.len) : NULL;
    const struct command *cmd = command_find_full(bar ? SLICE(name.ptr, (size_t)(bar - name.ptr)) : name);
    struct acl_commands which;

    if (!cmd)
        return acl_no_such_command;
    if (bar) {
        struct slice arg = after(name, (size_t)(bar - name.ptr) + 1);
        if (cmd->container >= 0)
            return first_arg_of_sub;
        if (arg.len == 0)
            return bad_syntax;
        if (!(cmd->flags & CMD_CONTAINER)) {
            add_first_arg(s, cmd->id, arg);
            return NULL;
        }
        cmd = command_find_sub(cmd, arg);
        if (!cmd)
            return acl_no_such_command;
    }
    acl_commands_of(cmd, &which);
    acl_selector_set(s, &which, allow);
    return NULL;
}

static const char *selector_rule(struct acl_selector *s, struct slice rule)
{
    if (slice_is(rule, "allkeys") || slice_is(rule, "~*")) {
        keys_drop(s);
        s->all_keys = true;
    } else if (slice_is(rule, "resetkeys")) {
        keys_drop(s);
    } else if (slice_is(rule, "allchannels") || slice_is(rule, "&*")) {
        channels_drop(s);
        s->all_channels = true;
    } else if (slice_is(rule, "resetchannels")) {
        channels_drop(s);
    } else if (slice_is(rule, "allcommands") || slice_is(rule, "+@all")) {
        set_all_commands(s, true);
    } else if (slice_is(rule, "nocommands") || slice_is(rule, "-@all")) {
        set_all_commands(s, false);
    } else if (rule.len && (rule.ptr[0] == '~' || rule.ptr[0] == '%')) {
        return add_key_pattern(s, rule);
    } else if (rule.len && rule.ptr[0] == '&') {
        return add_channel(s, after(rule, 1));
    } else if (rule.len && (rule.ptr[0] == '+' || rule.ptr[0] == '-')) {
        bool allow = rule.ptr[0] == '+';
        if (rule.len > 1 && rule.ptr[1] == '@')
            return set_category(s, after(rule, 2), allow);
        return set_command(s, after(rule, 1), allow);
    } else {
        return bad_syntax;
    }
    return NULL;
}

/* ---- rules of a user ---- */

static void passwords_drop(struct acl_user *u)
{
    if (u->npasswords)
        explicit_bzero(u->passwords, (size_t)u->npasswords * sizeof(*u->passwords));
    u->npasswords = 0;
}

static bool is_hash(struct slice s)
{
    for (size_t i = 0; i < s.len; i++)
        if (!((s.ptr[i] >= '0' && s.ptr[i] <= '9') || (s.ptr[i] >= 'a' && s.ptr[i] <= 'f')))
            return false;
    return s.len == 64;
}

/* ">password" "<password" "#hash" "!hash" */
static const char *set_password(struct acl_user *u, struct slice rule)
{
    struct slice text = after(rule, 1);
    struct acl_password p;
    int i;

    if (rule.ptr[0] == '>' || rule.ptr[0] == '<') {
        sha256_hex(text, p.hash);
    } else {
        if (!is_hash(text))
            return bad_hash;
        memcpy(p.hash, text.ptr, 64);
        p.hash[64] = '\0';
    }
    for (i = 0; i < u->npasswords && strcmp(u->passwords[i].hash, p.hash) != 0;)
        i++;
    if (rule.ptr[0] == '>' || rule.ptr[0] == '#') {
        if (i == u->npasswords) {
            u->passwords = mem_realloc(MEM_OTHER, u->passwords, (size_t)(i + 1) * sizeof(p));
            u->passwords[u->npasswords++] = p;
        }
        u->nopass = false;
        return NULL;
    }
    if (i == u->npasswords)
        return no_such_password;
    memmove(u->passwords + i, u->passwords + i + 1, (size_t)(u->npasswords - i - 1) * sizeof(p));
    u->npasswords--;
    return NULL;
}

static bool next_word(struct slice *text, struct slice *word)
{
    while (text->len && isspace((unsigned char)*text->ptr))
        *text = after(*text, 1);
    size_t n = 0;
    while (n < text->len && !isspace((unsigned char)text->ptr[n]))
        n++;
    *word = SLICE(text->ptr, n);
    *text = after(*text, n);
    return n > 0;
}

/* "(~a +get)" */
static const char *add_selector(struct acl_user *u, struct slice rule, bool all_channels)
{
    struct acl_selector *s = selector_create(all_channels);
    struct slice rest = SLICE(rule.ptr + 1, rule.len - 2), word;

    while (next_word(&rest, &word)) {
        const char *why = selector_rule(s, word);
        if (why) {
            selector_free(s);
            return why;
        }
    }
    u->selectors = mem_realloc(MEM_OTHER, u->selectors, (size_t)(u->nselectors + 1) * sizeof(*u->selectors));
    u->selectors[u->nselectors++] = s;
    return NULL;
}

static void selectors_drop(struct acl_user *u, int keep)
{
    while (u->nselectors > keep)
        selector_free(u->selectors[--u->nselectors]);
}

static void reset(struct acl_user *u, bool all_channels)
{
    passwords_drop(u);
    selectors_drop(u, 0);
    u->selectors[u->nselectors++] = selector_create(all_channels);
    u->on = u->nopass = u->skip_sanitize = false;
    u->sanitize = true;
}

const char *acl_user_rule(struct acl_user *u, struct slice rule, bool all_channels)
{
    if (rule.len == 0)
        return NULL;
    if (slice_is(rule, "on")) {
        u->on = true;
    } else if (slice_is(rule, "off")) {
        u->on = false;
    } else if (slice_is(rule, "nopass")) {
        passwords_drop(u);
        u->nopass = true;
    } else if (slice_is(rule, "resetpass")) {
        passwords_drop(u);
        u->nopass = false;
    } else if (slice_is(rule, "skip-sanitize-payload") || slice_is(rule, "sanitize-payload")) {
        u->sanitize = slice_is(rule, "sanitize-payload");
        u->skip_sanitize = !u->sanitize;
    } else if (memchr("><#!", rule.ptr[0], 4)) {
        return set_password(u, rule);
    } else if (rule.ptr[0] == '(' && rule.len > 1 && rule.ptr[rule.len - 1] == ')') {
        return add_selector(u, rule, all_channels);
    } else if (slice_is(rule, "clearselectors")) {
        selectors_drop(u, 1);
    } else if (slice_is(rule, "reset")) {
        reset(u, all_channels);
    } else {
        return selector_rule(u->selectors[0], rule);
    }
    return NULL;
}

const char *acl_user_rules(struct acl_user *u, const struct acl_words *w, bool all_channels, int *at)
{
    for (int i = 0; i < w->n; i++) {
        const char *why = acl_user_rule(u, w->word[i], all_channels);
        if (why) {
            *at = i;
            return why;
        }
    }
    return NULL;
}

bool acl_words_init(struct acl_words *w, int n, const struct slice *words, int *at)
{
    int open = -1; /* the selector that has begun */
    size_t from = 0;

    *w = (struct acl_words){.n = 0};
    buf_init(&w->text, MEM_OTHER);
    size_t bytes = 0;
    for (int i = 0; i < n; i++)
        bytes += words[i].len + 1;
    buf_reserve(&w->text, bytes + 1); /* the words stay where they are */
    w->word = mem_alloc(MEM_OTHER, (size_t)(n + 1) * sizeof(*w->word));
    for (int i = 0; i < n; i++) {
        bool opens = open < 0 && words[i].len && words[i].ptr[0] == '(';
        if (open < 0)
            from = w->text.len;
        else
            buf_byte(&w->text, ' ');
        buf_slice_append(&w->text, words[i]);
        if (opens)
            open = i;
        if (open >= 0 && (words[i].len == 0 || words[i].ptr[words[i].len - 1] != ')'))
            continue;
        open = -1;
        w->word[w->n++] = SLICE(w->text.ptr + from, w->text.len - from);
    }
    if (open < 0)
        return true;
    *at = open;
    acl_words_deinit(w);
    return false;
}

void acl_words_deinit(struct acl_words *w)
{
    if (w->text.len)
        explicit_bzero(w->text.ptr, w->text.len);
    buf_deinit(&w->text);
    mem_free(MEM_OTHER, w->word);
    w->word = NULL;
}

/* ---- the user ---- */

struct acl_user *acl_user_create(struct slice name, bool all_channels)
{
    struct acl_user *u = mem_calloc(MEM_OTHER, sizeof(*u));

    atomic_init(&u->refs, 1);
    u->name = own(name);
    u->selectors = mem_alloc(MEM_OTHER, sizeof(*u->selectors));
    u->selectors[u->nselectors++] = selector_create(all_channels);
    return u;
}

struct acl_user *acl_user_copy(const struct acl_user *old)
{
    struct acl_user *u = mem_alloc(MEM_OTHER, sizeof(*u));

    *u = (struct acl_user){.id = old->id,
                           .on = old->on,
                           .nopass = old->nopass,
                           .sanitize = old->sanitize,
                           .skip_sanitize = old->skip_sanitize,
                           .npasswords = old->npasswords,
                           .nselectors = old->nselectors};
    atomic_init(&u->refs, 1);
    u->name = own(old->name);
    u->passwords = mem_alloc(MEM_OTHER, (size_t)(u->npasswords + 1) * sizeof(*u->passwords));
    for (int i = 0; i < u->npasswords; i++)
        u->passwords[i] = old->passwords[i];
    u->selectors = mem_alloc(MEM_OTHER, (size_t)u->nselectors * sizeof(*u->selectors));
    for (int i = 0; i < u->nselectors; i++)
        u->selectors[i] = selector_copy(old->selectors[i]);
    return u;
}

struct acl_user *acl_user_ref(struct acl_user *u)
{
    atomic_fetch_add_explicit(&u->refs, 1, memory_order_relaxed);
    return u;
}

void acl_user_unref(struct acl_user *u)
{
    if (!u || atomic_fetch_sub_explicit(&u->refs, 1, memory_order_acq_rel) != 1)
        return;
    passwords_drop(u);
    selectors_drop(u, 0);
    mem_free(MEM_OTHER, u->passwords);
    mem_free(MEM_OTHER, u->selectors);
    disown(u->name);
    mem_free(MEM_OTHER, u);
}

void acl_user_ready(struct acl_user *u)
{
    u->everything = false;
    for (int i = 0; i < u->nselectors; i++) {
        const struct acl_selector *s = u->selectors[i];
        u->everything |= s->all_commands && s->all_keys && s->all_channels;
    }
}

bool acl_user_has_password(const struct acl_user *u, struct slice password)
{
    char hash[65];
    bool found = false;

    sha256_hex(password, hash);
    for (int i = 0; i < u->npasswords; i++) { /* takes as long for a wrong password as for the right one */
        volatile unsigned char differs = 0;
        for (int j = 0; j < 64; j++)
            differs |= (unsigned char)(hash[j] ^ u->passwords[i].hash[j]);
        found |= !differs;
    }
    explicit_bzero(hash, sizeof(hash));
    return found;
}
