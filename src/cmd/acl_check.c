/* May a user run a command, on these keys, on these channels? */
#include "tiercel/glob.h"

#include "cmd/acl_priv.h"

#define KEYS_INLINE 32

static bool mentions(struct slice flags, const char *word)
{
    return memmem(flags.ptr, flags.len, word, strlen(word)) != NULL;
}

/* Rights on key i of a command line that it needs; -1: it is none. */
static int rights_needed(const struct command *cmd, int i, int argc, const struct slice *argv)
{
    struct slice flags = command_key_flags(cmd, i, argc, argv);
    int rights = mentions(flags, "access") ? ACL_READ : 0;

    if (mentions(flags, "not_key"))
        return -1;
    if (mentions(flags, "update") || mentions(flags, "insert") || mentions(flags, "delete"))
        rights |= ACL_WRITE;
    return rights;
}

static bool key_allowed(const struct acl_selector *s, struct slice key, unsigned rights)
{
    for (int i = 0; i < s->nkeys; i++)
        if ((s->keys[i].rights & rights) == rights && glob_match(s->keys[i].text, key, false))
            return true;
    return s->all_keys;
}

static bool channel_in(const struct acl_selector *s, struct slice channel, bool is_pattern)
{
    for (int i = 0; i < s->nchannels; i++)
        if (is_pattern ? slice_eq(s->channels[i], channel) : glob_match(s->channels[i], channel, false))
            return true;
    return s->all_channels;
}

bool acl_channel_allowed(const struct acl_user *u, struct slice channel, bool is_pattern)
{
    for (int i = 0; i < u->nselectors; i++)
        if (channel_in(u->selectors[i], channel, is_pattern))
            return true;
    return false;
}

bool acl_channels_shrank(const struct acl_user *was, const struct acl_user *is)
{
    for (int i = 0; i < is->nselectors; i++)
        if (is->selectors[i]->all_channels)
            return false;
    for (int i = 0; i < was->nselectors; i++) {
        const struct acl_selector *s = was->selectors[i];
        if (s->all_channels)
            return true;
        for (int j = 0; j < s->nchannels; j++)
            if (!acl_channel_allowed(is, s->channels[j], true))
                return true;
    }
    return false;
}

/* Does it allow to read whatever the key is called? */
static bool reads_all_keys(const struct acl_selector *s)
{
    for (int i = 0; i < s->nkeys; i++)
        if (s->keys[i].rights & ACL_READ && slice_eq(s->keys[i].text, SLICE_LIT("*")))
            return true;
    return s->all_keys;
}

/* The keys of a command line, found once for all selectors. */
struct line_keys {
    int n; /* -1: it says wrongly where they are */
    int *pos, *rights;
    int inline_pos[KEYS_INLINE], inline_rights[KEYS_INLINE];
};

static void keys_find(struct line_keys *k, const struct command *cmd, int argc, const struct slice *argv)
{
    int specs = command_key_specs(cmd);

    k->pos = k->inline_pos;
    k->rights = k->inline_rights;
    k->n = 0;
    if (specs == 0)
        return;
    if (argc > KEYS_INLINE) {
        k->pos = mem_alloc(MEM_OTHER, 2 * (size_t)argc * sizeof(int));
        k->rights = k->pos + argc;
    }
    k->n = command_keys(cmd, argc, argv, k->pos, argc);
    for (int i = 0; i < k->n; i++)
        k->rights[i] = i < specs ? rights_needed(cmd, i, argc, argv) : k->rights[i - 1];
}

static void keys_free(struct line_keys *k)
{
    if (k->pos != k->inline_pos)
        mem_free(MEM_OTHER, k->pos);
}

static bool command_allowed(const struct acl_selector *s, const struct command *cmd, int argc, const struct slice *argv)
{
    if (s->all_commands || cmd->flags & CMD_NO_AUTH || acl_commands_has(&s->allowed, cmd->id))
        return true;
    for (int i = 0; i < s->nfirst && argc > 1; i++)
        if (s->first[i].id == cmd->id && s->first[i].text.len == argv[1].len &&
            strncasecmp(s->first[i].text.ptr, argv[1].ptr, argv[1].len) == 0)
            return true;
    return false;
}

/* The first channel of the command, and the last; 0: it names none that must be allowed. */
static int channels_of(const struct command *cmd, int argc, int *last)
{
    switch (cmd->id) {
    case CMDID_publish:
    case CMDID_spublish: *last = 1; return 1;
    case CMDID_subscribe:
    case CMDID_psubscribe:
    case CMDID_ssubscribe: *last = argc - 1; return 1;
    default: return 0;
    }
}

static enum acl_verdict selector_check(const struct acl_selector *s, const struct command *cmd, int argc,
                                       const struct slice *argv, const struct line_keys *keys, int *at)
{
    int last = 0, first = channels_of(cmd, argc, &last);

    *at = 0;
    if (!command_allowed(s, cmd, argc, argv))
        return ACL_COMMAND;
    for (int i = 0; i < keys->n && !s->all_keys; i++) {
        if (keys->rights[i] < 0 || key_allowed(s, argv[keys->pos[i]], (unsigned)keys->rights[i]))
            continue;
        *at = keys->pos[i];
        return ACL_KEY;
    }
    for (int i = first; first > 0 && i <= last && i < argc; i++) {
        if (channel_in(s, argv[i], cmd->id == CMDID_psubscribe))
            continue;
        *at = i;
        return ACL_CHANNEL;
    }
    return ACL_OK;
}

enum acl_verdict acl_check(const struct acl_user *u, const struct command *cmd, int argc, const struct slice *argv,
                           int *at)
{
    enum acl_verdict worst = ACL_COMMAND;
    struct line_keys keys;

    *at = 0;
    if (u->everything)
        return ACL_OK;
    if (!cmd) { /* what it does nobody knows here */
        for (int i = 0; i < u->nselectors; i++)
            if (u->selectors[i]->all_commands && u->selectors[i]->all_keys)
                return ACL_OK;
        return ACL_COMMAND;
    }
    keys_find(&keys, cmd, argc, argv);
    for (int i = 0; i < u->nselectors; i++) {
        int where;
        enum acl_verdict v = selector_check(u->selectors[i], cmd, argc, argv, &keys, &where);
        if (v == ACL_OK) {
            worst = ACL_OK;
            break;
        }
        if (v > worst || (v == worst && where > *at)) { /* what was nearest to being allowed */
            worst = v;
            *at = where;
        }
    }
    keys_free(&keys);
    return worst;
}

bool acl_check_reads_all(const struct acl_user *u, const struct command *cmd, int argc, const struct slice *argv)
{
    struct line_keys keys;
    bool allowed = u->everything;
    int at;

    keys_find(&keys, cmd, argc, argv);
    for (int i = 0; i < u->nselectors && !allowed; i++)
        allowed =
            selector_check(u->selectors[i], cmd, argc, argv, &keys, &at) == ACL_OK && reads_all_keys(u->selectors[i]);
    keys_free(&keys);
    return allowed;
}
