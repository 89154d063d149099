/* The rules of a user as text, as ACL LIST and ACL GETUSER tell them. What was typed is not kept: commands are told by
 * the categories that fit best, and then one by one. */
#include "cmd/acl_priv.h"

static int count(const struct acl_commands *c, const struct acl_commands *in, bool set)
{
    int n = 0;

    for (int i = 0; i < ACL_WORDS; i++)
        n += __builtin_popcountll((set ? c->word[i] : ~c->word[i]) & in->word[i]);
    return n;
}

/* The category most of whose commands are still to be told, and that says least that would have to be taken back. */
static int best_category(const struct acl_commands *left, bool adding, uint32_t told,
                         const struct acl_commands *members)
{
    int best = -1, best_wrong = 0, best_right = 0;

    for (int i = 0; i < CAT_COUNT; i++) {
        int right = count(left, &members[i], adding), wrong = count(left, &members[i], !adding);
        if (told & 1u << i || right <= wrong)
            continue;
        if (best < 0 || wrong < best_wrong || (wrong == best_wrong && right > best_right)) {
            best = i;
            best_wrong = wrong;
            best_right = right;
        }
    }
    return best;
}

static void tell_one(const struct acl_selector *s, struct acl_selector *said, const struct command *cmd,
                     struct buf *out)
{
    bool may = acl_commands_has(&s->allowed, cmd->id);

    if (may != acl_commands_has(&said->allowed, cmd->id)) {
        struct acl_commands which;
        acl_commands_of(cmd, &which);
        acl_selector_set(said, &which, may);
        buf_printf(out, " %c%s", may ? '+' : '-', cmd->full);
    }
    for (int i = 0; i < command_count && cmd->flags & CMD_CONTAINER; i++)
        if (command_table[i].container == cmd->id)
            tell_one(s, said, &command_table[i], out);
    for (int i = 0; i < s->nfirst && !may; i++)
        if (s->first[i].id == cmd->id)
            buf_printf(out, " +%s|%.*s", cmd->full, SLICE_FMT(s->first[i].text));
}

void acl_describe_commands(const struct acl_selector *s, struct buf *out)
{
    bool adding = !s->future;
    struct acl_selector said = {.nfirst = 0}; /* what the text says so far */
    struct acl_commands left = s->allowed;    /* less what was told */
    struct acl_commands members[CAT_COUNT];
    uint32_t told = 0;
    int best;

    for (int i = 0; i < CAT_COUNT; i++)
        acl_commands_in(1u << i, false, &members[i]);
    if (!adding)
        memset(&said.allowed, 0xff, sizeof(said.allowed));
    buf_printf(out, adding ? "-@all" : "+@all");
    while ((best = best_category(&left, adding, told, members)) >= 0) {
        struct acl_commands which;
        acl_commands_in(1u << best, true, &which);
        acl_selector_set(&said, &which, adding);
        for (int i = 0; i < ACL_WORDS; i++)
            left.word[i] = adding ? left.word[i] & ~which.word[i] : left.word[i] | which.word[i];
        told |= 1u << best;
        buf_printf(out, " %c@%s", adding ? '+' : '-', acl_category_names[best]);
    }
    for (int i = 0; i < command_count; i++)
        if (command_table[i].container < 0)
            tell_one(s, &said, &command_table[i], out);
}

void acl_describe_keys(const struct acl_selector *s, struct buf *out)
{
    if (s->all_keys)
        buf_printf(out, "~*");
    for (int i = 0; i < s->nkeys; i++) {
        const struct acl_pattern *p = &s->keys[i];
        buf_printf(out, "%s%s", i ? " " : "", p->rights == ACL_READ ? "%R" : p->rights == ACL_WRITE ? "%W" : "");
        buf_byte(out, '~');
        buf_slice_append(out, p->text);
    }
}

void acl_describe_channels(const struct acl_selector *s, struct buf *out)
{
    if (s->all_channels)
        buf_printf(out, "&*");
    for (int i = 0; i < s->nchannels; i++) {
        buf_printf(out, i ? " &" : "&");
        buf_slice_append(out, s->channels[i]);
    }
}

static void describe_selector(const struct acl_selector *s, struct buf *out)
{
    if (s->all_keys || s->nkeys) {
        acl_describe_keys(s, out);
        buf_byte(out, ' ');
    }
    if (!s->all_channels)
        buf_printf(out, s->nchannels ? "resetchannels " : "resetchannels");
    acl_describe_channels(s, out);
    buf_byte(out, ' ');
    acl_describe_commands(s, out);
}

void acl_describe(const struct acl_user *u, struct buf *out)
{
    buf_printf(out, "%s%s%s%s ", u->on ? "on" : "off", u->nopass ? " nopass" : "",
               u->skip_sanitize ? " skip-sanitize-payload" : "", u->sanitize ? " sanitize-payload" : "");
    for (int i = 0; i < u->npasswords; i++)
        buf_printf(out, "#%s ", u->passwords[i].hash);
    describe_selector(u->selectors[0], out);
    for (int i = 1; i < u->nselectors; i++) {
        buf_printf(out, " (");
        describe_selector(u->selectors[i], out);
        buf_byte(out, ')');
    }
}
