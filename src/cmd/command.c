#include "tiercel/command.h"

#include "tiercel/check.h"
#include "tiercel/num.h"

#include "cmd/cmd_priv.h"

/* The command table and the way from a name to its row. */

#define ROW(id_, name_, full_, container_, run_, find_keys_, find_access_, arity_, flags_, first_, last_, step_, \
            access_, group_, acl_, key_flags_, tips_, since_, complexity_, summary_)                             \
    {.name = name_,                                                                                              \
     .full = full_,                                                                                              \
     .run = run_,                                                                                                \
     .find_keys = find_keys_,                                                                                    \
     .find_access = find_access_,                                                                                \
     .arity = arity_,                                                                                            \
     .flags = flags_,                                                                                            \
     .first = first_,                                                                                            \
     .last = last_,                                                                                              \
     .step = step_,                                                                                              \
     .access = access_,                                                                                          \
     .group = group_,                                                                                            \
     .acl = acl_,                                                                                                \
     .key_flags = key_flags_,                                                                                    \
     .tips = tips_,                                                                                              \
     .since = since_,                                                                                            \
     .complexity = complexity_,                                                                                  \
     .summary = summary_,                                                                                        \
     .container = container_,                                                                                    \
     .id = id_},

#define CMDX(id, name, arity, flags, first, last, step, access, group, acl, key_flags, tips, since, complexity, \
             summary, find_keys, find_access)                                                                   \
    ROW(CMDID_##id, name, name, -1, cmd_##id, find_keys, find_access, arity, flags, first, last, step, access,  \
        GROUP_##group, acl, key_flags, tips, since, complexity, summary)
#define CMD(id, name, arity, flags, first, last, step, access, group, acl, key_flags, tips, since, complexity,         \
            summary)                                                                                                   \
    ROW(CMDID_##id, name, name, -1, cmd_##id, NULL, NULL, arity, flags, first, last, step, access, GROUP_##group, acl, \
        key_flags, tips, since, complexity, summary)
#define CONT(id, name, arity, flags, group, acl, tips, since, complexity, summary)                                  \
    ROW(CMDID_##id, name, name, -1, cmd_container, NULL, NULL, arity, flags, 0, 0, 0, KEY_NONE, GROUP_##group, acl, \
        "", tips, since, complexity, summary)
#define SUB(container, id, name, arity, flags, first, last, step, access, group, acl, key_flags, tips, since,      \
            complexity, summary)                                                                                   \
    ROW(CMDID_##id, name, #container "|" name, CMDID_##container, cmd_##id, NULL, NULL, arity, flags, first, last, \
        step, access, GROUP_##group, acl, key_flags, tips, since, complexity, summary)

const struct command command_table[] = {
#include "cmd.def"
};
const int command_count = CMDID_COUNT;

/* ---- lookup ----
 * A name of up to 16 bytes is two words: the first eight bytes and the last eight, which may
 * overlap; with its length they tell names apart. So folding the case, hashing and comparing
 * are a few operations on words. Of a longer one the bytes between are compared, too. */

#define NAME_WORDS_LEN 16
#define NAME_MAX_LEN 32
#define FIND_SLOTS 1024 /* a power of two; the table stays nearly free of collisions */

struct name_key {
    uint64_t head, tail;
    uint32_t len;
    int32_t container;
};

struct find_slot {
    struct name_key key;
    const struct command *cmd;
};

/* Filled once before main() and only read from then on. */
static struct find_slot find_table[FIND_SLOTS];

static inline uint64_t load64(const char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline uint32_t load32(const char *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* Lower case of eight ASCII bytes; others stay. */
static inline uint64_t fold64(uint64_t v)
{
    const uint64_t ones = 0x0101010101010101ULL;
    uint64_t low = v & (ones * 0x7f);
    uint64_t from_a = low + ones * (0x80 - 'A');
    uint64_t past_z = low + ones * (0x7f - 'Z');
    uint64_t upper = ~v & (from_a ^ past_z) & (ones * 0x80);
    return v | upper >> 2;
}

/* As it was written. */
static inline bool name_key_read(struct slice name, int container, struct name_key *k)
{
    size_t n = name.len;
    uint64_t head, tail = 0;
    if (n == 0 || n > NAME_MAX_LEN)
        return false;
    if (n >= 8) {
        head = load64(name.ptr);
        tail = load64(name.ptr + n - 8);
    } else if (n >= 4) {
        head = load32(name.ptr) | (uint64_t)load32(name.ptr + n - 4) << 32;
    } else {
        head =
            (uint8_t)name.ptr[0] | (uint64_t)(uint8_t)name.ptr[n / 2] << 8 | (uint64_t)(uint8_t)name.ptr[n - 1] << 16;
    }
    *k = (struct name_key){head, tail, (uint32_t)n, container};
    return true;
}

static inline void name_key_fold(struct name_key *k)
{
    k->head = fold64(k->head);
    k->tail = fold64(k->tail);
}

static inline bool name_key_eq(const struct name_key *a, const struct name_key *b)
{
    return a->head == b->head && a->tail == b->tail && a->len == b->len && a->container == b->container;
}

static inline unsigned name_key_slot(const struct name_key *k)
{
    uint64_t h = (k->head ^ (uint64_t)(uint32_t)k->container << 32) * 0x9e3779b97f4a7c15ULL;
    h = (h ^ h >> 32 ^ k->tail ^ k->len) * 0xbf58476d1ce4e5b9ULL;
    return (unsigned)(h >> 40) & (FIND_SLOTS - 1);
}

/* name: what the key was made from. */
static const struct command *find(struct name_key *k, struct slice name)
{
    name_key_fold(k);
    for (unsigned i = name_key_slot(k);; i = (i + 1) & (FIND_SLOTS - 1)) {
        const struct find_slot *slot = &find_table[i];
        if (!slot->cmd)
            return NULL;
        if (name_key_eq(&slot->key, k) && (LIKELY(k->len <= NAME_WORDS_LEN) || slice_is(name, slot->cmd->name)))
            return slot->cmd;
    }
}

__attribute__((constructor)) static void find_table_fill(void)
{
    _Static_assert(CMDID_COUNT * 2 < FIND_SLOTS, "the lookup table wants to be sparse");
    for (int i = 0; i < command_count; i++) {
        const struct command *cmd = &command_table[i];
        struct name_key k;
        CHECK(name_key_read(slice_str(cmd->name), cmd->container, &k));
        name_key_fold(&k);
        unsigned at = name_key_slot(&k);
        while (find_table[at].cmd)
            at = (at + 1) & (FIND_SLOTS - 1);
        find_table[at] = (struct find_slot){k, cmd};
    }
}

const struct command *command_find(struct slice name)
{
    static _Thread_local struct find_slot last; /* requests come in runs of one command */
    struct name_key k;

    if (UNLIKELY(!name_key_read(name, -1, &k)))
        return NULL;
    if (LIKELY(name_key_eq(&k, &last.key)))
        return last.cmd;
    struct name_key as_written = k;
    const struct command *cmd = find(&k, name);
    if (LIKELY(cmd != NULL && k.len <= NAME_WORDS_LEN))
        last = (struct find_slot){as_written, cmd};
    return cmd;
}

const struct command *command_find_sub(const struct command *container, struct slice name)
{
    struct name_key k;
    return name_key_read(name, container->id, &k) ? find(&k, name) : NULL;
}

/* ---- what follows from a row ---- */

bool command_may_replicate(const struct command *cmd)
{
    return cmd->flags & (CMD_WRITE | CMD_MAY_REPLICATE) || cmd->id == CMDID_publish || cmd->id == CMDID_spublish ||
           cmd->id == CMDID_pfcount;
}

static int keys_behind(int argc, const struct slice *argv, int at, int *pos, int max)
{
    int64_t n;

    if (at >= argc || !num_parse_i64(argv[at], &n) || n < 1 || n >= argc - at)
        return -1;
    int found = n < max ? (int)n : max;
    for (int i = 0; i < found; i++)
        pos[i] = at + 1 + i;
    return found;
}

int cmd_keys_behind_1(int argc, const struct slice *argv, int *pos, int max)
{
    return keys_behind(argc, argv, 1, pos, max);
}

int cmd_keys_behind_2(int argc, const struct slice *argv, int *pos, int max)
{
    return keys_behind(argc, argv, 2, pos, max);
}

int cmd_keys_stored_2(int argc, const struct slice *argv, int *pos, int max)
{
    int n = max < 1 ? -1 : keys_behind(argc, argv, 2, pos + 1, max - 1);

    if (n < 0)
        return n;
    pos[0] = 1;
    return n + 1;
}

int command_keys(const struct command *cmd, int argc, const struct slice *argv, int *pos, int max)
{
    int n = 0;
    if (cmd->find_keys)
        return cmd->find_keys(argc, argv, pos, max);
    if (cmd->first == 0)
        return 0;
    int last = cmd->last < 0 ? argc + cmd->last : cmd->last;
    if (last >= argc || last < cmd->first)
        return -1;
    for (int i = cmd->first; i <= last && n < max; i += cmd->step)
        pos[n++] = i;
    return n;
}

uint32_t command_categories(const struct command *cmd)
{
    uint32_t cat = cmd->acl;
    if (cmd->flags & CMD_WRITE)
        cat |= CAT_WRITE;
    if (cmd->flags & CMD_READONLY && !(cat & CAT_SCRIPTING))
        cat |= CAT_READ;
    if (cmd->flags & CMD_ADMIN)
        cat |= CAT_ADMIN | CAT_DANGEROUS;
    if (cmd->flags & CMD_PUBSUB)
        cat |= CAT_PUBSUB;
    if (cmd->flags & CMD_BLOCKING)
        cat |= CAT_BLOCKING;
    return cat | (cmd->flags & CMD_FAST ? CAT_FAST : CAT_SLOW);
}
