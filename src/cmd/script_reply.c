/* Replies of commands as Lua values, and what a script returns as a reply. */
#include <stdlib.h>
#include <sys/uio.h>

#include "tiercel/codec.h"
#include "tiercel/num.h"

#include "cmd/script_priv.h"

/* ---- to Lua ---- */

static struct rcbuf *inflate(void *arg, const struct rcbuf *packed)
{
    return codec_unpack(arg, rcbuf_slice(packed), packed->raw_len);
}

/* The whole reply in one piece. */
static bool chain_text(struct script_worker *sw, struct slice *text)
{
    struct chain *out = &sw->out;
    struct iovec iov[16];

    if (UNLIKELY(out->npacked) && !chain_unpack(out, inflate, sw->w->codec))
        return false;
    int n = chain_iov(out, iov, 2);
    if (LIKELY(n <= 1)) {
        *text = n ? SLICE(iov[0].iov_base, iov[0].iov_len) : SLICE_NONE;
        return true;
    }
    sw->flat.len = 0;
    buf_reserve(&sw->flat, out->bytes);
    while ((n = chain_iov(out, iov, 16)) > 0) {
        size_t sum = 0;
        for (int i = 0; i < n; i++) {
            buf_append(&sw->flat, iov[i].iov_base, iov[i].iov_len);
            sum += iov[i].iov_len;
        }
        chain_consume(out, sum);
    }
    *text = buf_slice(&sw->flat);
    return true;
}

/* Our own replies: they are well-formed. */
struct reader {
    lua_State *L;
    const char *p;
    int proto;
};

static int64_t read_header(struct reader *rd)
{
    const char *p = rd->p + 1;
    bool negative = *p == '-';
    int64_t v = 0;

    for (p += negative; *p != '\r'; p++)
        v = (int64_t)((uint64_t)v * 10 + (uint64_t)(*p - '0'));
    rd->p = p + 2;
    return negative ? (int64_t) - (uint64_t)v : v;
}

static struct slice read_line(struct reader *rd)
{
    const char *start = ++rd->p, *p = start;

    while (*p != '\r')
        p++;
    rd->p = p + 2;
    return SLICE(start, (size_t)(p - start));
}

static void push_value(struct reader *rd);

static void push_null(struct reader *rd)
{
    if (rd->proto >= 3)
        lua_pushnil(rd->L);
    else
        lua_pushboolean(rd->L, 0);
}

static void push_bulk(struct reader *rd)
{
    int64_t n = read_header(rd);

    if (n < 0) {
        push_null(rd);
        return;
    }
    lua_pushlstring(rd->L, rd->p, (size_t)n);
    rd->p += n + 2;
}

static void push_array(struct reader *rd)
{
    int64_t n = read_header(rd);

    if (n < 0) {
        push_null(rd);
        return;
    }
    lua_createtable(rd->L, n < 1 << 20 ? (int)n : 1 << 20, 0);
    for (int64_t i = 1; i <= n; i++) {
        push_value(rd);
        lua_rawseti(rd->L, -2, (int)i);
    }
}

/* {name = {...}}: pairs of a map, members of a set. */
static void push_keyed(struct reader *rd, const char *name, bool pairs)
{
    int64_t n = read_header(rd);

    lua_createtable(rd->L, 0, 1);
    lua_pushstring(rd->L, name);
    lua_createtable(rd->L, 0, n < 1 << 20 ? (int)n : 1 << 20);
    for (int64_t i = 0; i < n; i++) {
        push_value(rd);
        if (pairs)
            push_value(rd);
        else
            lua_pushboolean(rd->L, 1);
        lua_rawset(rd->L, -3);
    }
    lua_rawset(rd->L, -3);
}

static void push_named(struct reader *rd, const char *name, struct slice text)
{
    lua_createtable(rd->L, 0, 1);
    lua_pushstring(rd->L, name);
    lua_pushlstring(rd->L, text.ptr, text.len);
    lua_rawset(rd->L, -3);
}

static void push_double(struct reader *rd)
{
    struct slice s = read_line(rd);
    char text[64];

    size_t n = s.len < sizeof(text) - 1 ? s.len : sizeof(text) - 1;
    memcpy(text, s.ptr, n);
    text[n] = '\0';
    lua_createtable(rd->L, 0, 1);
    lua_pushliteral(rd->L, "double");
    lua_pushnumber(rd->L, strtod(text, NULL));
    lua_rawset(rd->L, -3);
}

static void push_verbatim(struct reader *rd)
{
    int64_t n = read_header(rd);

    lua_createtable(rd->L, 0, 1);
    lua_pushliteral(rd->L, "verbatim_string");
    lua_createtable(rd->L, 0, 2);
    lua_pushliteral(rd->L, "string");
    lua_pushlstring(rd->L, rd->p + 4, (size_t)n - 4);
    lua_rawset(rd->L, -3);
    lua_pushliteral(rd->L, "format");
    lua_pushlstring(rd->L, rd->p, 3);
    lua_rawset(rd->L, -3);
    lua_rawset(rd->L, -3);
    rd->p += n + 2;
}

static void push_error_reply(struct reader *rd)
{
    push_named(rd, "err", read_line(rd));
    lua_pushliteral(rd->L, "ignore_error_stats_update");
    lua_pushboolean(rd->L, 1);
    lua_rawset(rd->L, -3);
}

static void skip_attribute(struct reader *rd)
{
    int64_t n = 2 * read_header(rd);

    while (n-- > 0) {
        push_value(rd);
        lua_pop(rd->L, 1);
    }
    push_value(rd);
}

static void push_value(struct reader *rd)
{
    luaL_checkstack(rd->L, 6, "reply is nested too deeply");
    switch (*rd->p) {
    case '$': push_bulk(rd); break;
    case ':': lua_pushnumber(rd->L, (lua_Number)read_header(rd)); break;
    case '+': push_named(rd, "ok", read_line(rd)); break;
    case '-': push_error_reply(rd); break;
    case '*':
    case '>': push_array(rd); break;
    case '%': push_keyed(rd, "map", true); break;
    case '~': push_keyed(rd, "set", false); break;
    case ',': push_double(rd); break;
    case '(': push_named(rd, "big_number", read_line(rd)); break;
    case '=': push_verbatim(rd); break;
    case '|': skip_attribute(rd); break;
    case '#':
        lua_pushboolean(rd->L, rd->p[1] == 't');
        rd->p += 4;
        break;
    default: /* '_' */ lua_pushnil(rd->L); rd->p += 3;
    }
}

bool script_push_reply(struct script_worker *sw, lua_State *L)
{
    struct slice text;

    if (!chain_text(sw, &text) || text.len == 0)
        return false;
    struct reader rd = {L, text.ptr, sw->run->proto};
    push_value(&rd);
    return true;
}

/* ---- to the client ---- */

/* The field of the table on top, if it has that type: pushed. */
static bool field(lua_State *L, const char *name, int type)
{
    lua_pushstring(L, name);
    lua_rawget(L, -2);
    if (lua_type(L, -1) == type)
        return true;
    lua_pop(L, 1);
    return false;
}

/* Bytes of the string on top, which may hold anything. A line ends at none of them. */
static void reply_line(lua_State *L, struct reply *r, char mark)
{
    size_t len;
    const char *text = lua_tolstring(L, -1, &len);
    char *line = mem_alloc(MEM_OTHER, len + 3);

    line[0] = mark;
    for (size_t i = 0; i < len; i++)
        line[i + 1] = text[i] == '\r' || text[i] == '\n' ? ' ' : text[i];
    memcpy(line + len + 1, "\r\n", 2);
    reply_raw(r, SLICE(line, len + 3));
    mem_free(MEM_OTHER, line);
}

static void reply_string(lua_State *L, struct reply *r)
{
    size_t len;
    const char *text = lua_tolstring(L, -1, &len);

    reply_bulk(r, SLICE(text, len));
}

static int64_t as_integer(lua_Number v)
{
    return v >= -9223372036854775808.0 && v < 9223372036854775808.0 ? (int64_t)v : INT64_MIN;
}

static int64_t pairs_of(lua_State *L)
{
    int64_t n = 0;

    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
        n++;
    return n;
}

/* The map or set on top. */
static void reply_keyed(struct script_worker *sw, lua_State *L, struct reply *r, bool map)
{
    int64_t n = pairs_of(L);

    if (map)
        reply_map(r, n);
    else
        reply_set(r, n);
    for (lua_pushnil(L); lua_next(L, -2);) {
        lua_pushvalue(L, -2);
        script_reply_value(sw, L, r);
        if (map)
            script_reply_value(sw, L, r);
        else
            lua_pop(L, 1);
    }
}

static void reply_list(struct script_worker *sw, lua_State *L, struct reply *r)
{
    int n = 0;

    for (;; n++) {
        lua_rawgeti(L, -1, n + 1);
        bool end = lua_isnil(L, -1);
        lua_pop(L, 1);
        if (end)
            break;
    }
    reply_array(r, n);
    for (int i = 1; i <= n; i++) {
        lua_rawgeti(L, -1, i);
        script_reply_value(sw, L, r);
    }
}

static bool reply_verbatim_field(lua_State *L, struct reply *r)
{
    size_t len, format_len;

    if (!field(L, "verbatim_string", LUA_TTABLE))
        return false;
    if (!field(L, "string", LUA_TSTRING)) {
        lua_pop(L, 1);
        return false;
    }
    const char *text = lua_tolstring(L, -1, &len);
    lua_pop(L, 1); /* the table keeps it */
    if (!field(L, "format", LUA_TSTRING)) {
        lua_pop(L, 1);
        return false;
    }
    const char *format = lua_tolstring(L, -1, &format_len);
    char ext[4] = "   ";
    memcpy(ext, format, format_len < 3 ? format_len : 3);
    reply_verbatim(r, SLICE(text, len), ext);
    lua_pop(L, 2);
    return true;
}

static void reply_big_number(lua_State *L, struct reply *r)
{
    if (r->proto >= 3)
        reply_line(L, r, '(');
    else
        reply_string(L, r);
}

static void reply_table(struct script_worker *sw, lua_State *L, struct reply *r)
{
    if (field(L, "err", LUA_TSTRING)) {
        struct call *c = sw->run->c;
        c->failed = true;
        lua_pushliteral(L, "ignore_error_stats_update");
        lua_rawget(L, -3);
        bool counted = lua_toboolean(L, -1);
        lua_pop(L, 1);
        if (!counted)
            call_count_error(c, lua_tostring(L, -1));
        reply_line(L, r, '-');
    } else if (field(L, "ok", LUA_TSTRING)) {
        reply_line(L, r, '+');
    } else if (field(L, "double", LUA_TNUMBER)) {
        reply_double(r, lua_tonumber(L, -1));
    } else if (field(L, "map", LUA_TTABLE)) {
        reply_keyed(sw, L, r, true);
    } else if (field(L, "set", LUA_TTABLE)) {
        reply_keyed(sw, L, r, false);
    } else if (field(L, "big_number", LUA_TSTRING)) {
        reply_big_number(L, r);
    } else if (reply_verbatim_field(L, r)) {
        return;
    } else {
        reply_list(sw, L, r);
        return;
    }
    lua_pop(L, 1);
}

void script_reply_value(struct script_worker *sw, lua_State *L, struct reply *r)
{
    if (!lua_checkstack(L, 4)) {
        reply_error(r, "ERR reached lua stack limit");
        lua_pop(L, 1);
        return;
    }
    switch (lua_type(L, -1)) {
    case LUA_TSTRING: reply_string(L, r); break;
    case LUA_TNUMBER: reply_int(r, as_integer(lua_tonumber(L, -1))); break;
    case LUA_TBOOLEAN:
        if (sw->run->proto >= 3)
            reply_bool(r, lua_toboolean(L, -1));
        else if (lua_toboolean(L, -1))
            reply_int(r, 1);
        else
            reply_null(r);
        break;
    case LUA_TTABLE: reply_table(sw, L, r); break;
    default: reply_null(r);
    }
    lua_pop(L, 1);
}
