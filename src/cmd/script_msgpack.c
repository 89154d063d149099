/* The library `cmsgpack`: MessagePack (https://msgpack.org), as far as Lua's types go. */
#include "cmd/script_priv.h"

#define NESTING_MAX 16 /* what is deeper becomes nil */

/* ---- packing ---- */

static void put(struct buf *b, uint8_t mark, uint64_t v, unsigned bytes)
{
    buf_byte(b, (char)mark);
    while (bytes-- > 0)
        buf_byte(b, (char)(v >> (8 * bytes)));
}

static void put_string(struct buf *b, const char *text, size_t len)
{
    if (len < 32)
        buf_byte(b, (char)(0xa0 | len));
    else if (len <= 0xff)
        put(b, 0xd9, len, 1);
    else if (len <= 0xffff)
        put(b, 0xda, len, 2);
    else
        put(b, 0xdb, len, 4);
    buf_append(b, text, len);
}

static void put_integer(struct buf *b, int64_t v)
{
    if (v >= 0) {
        if (v <= 127)
            buf_byte(b, (char)v);
        else if (v <= 0xff)
            put(b, 0xcc, (uint64_t)v, 1);
        else if (v <= 0xffff)
            put(b, 0xcd, (uint64_t)v, 2);
        else if (v <= 0xffffffffLL)
            put(b, 0xce, (uint64_t)v, 4);
        else
            put(b, 0xcf, (uint64_t)v, 8);
    } else {
        if (v >= -32)
            buf_byte(b, (char)v);
        else if (v >= INT8_MIN)
            put(b, 0xd0, (uint64_t)v, 1);
        else if (v >= INT16_MIN)
            put(b, 0xd1, (uint64_t)v, 2);
        else if (v >= INT32_MIN)
            put(b, 0xd2, (uint64_t)v, 4);
        else
            put(b, 0xd3, (uint64_t)v, 8);
    }
}

static void put_number(struct buf *b, double v)
{
    float single = (float)v;
    uint32_t bits32;
    uint64_t bits64;

    if (v >= -9223372036854775808.0 && v < 9223372036854775808.0 && (double)(int64_t)v == v) {
        put_integer(b, (int64_t)v);
    } else if (v == (double)single) {
        memcpy(&bits32, &single, sizeof(bits32));
        put(b, 0xca, bits32, 4);
    } else {
        memcpy(&bits64, &v, sizeof(bits64));
        put(b, 0xcb, bits64, 8);
    }
}

static void put_count(struct buf *b, uint8_t small, uint8_t large, uint64_t n)
{
    if (n <= 15)
        buf_byte(b, (char)(small | n));
    else if (n <= 0xffff)
        put(b, large, n, 2);
    else
        put(b, (uint8_t)(large + 1), n, 4);
}

/* The table on top: are its keys 1 to n? *n: how many there are. */
static bool is_array(lua_State *L, size_t *n)
{
    size_t count = 0, max = 0;
    bool good = true;

    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        lua_Number k = lua_type(L, -2) == LUA_TNUMBER ? lua_tonumber(L, -2) : 0;
        if (!(k > 0) || k > 4294967295.0 || (lua_Number)(uint64_t)k != k)
            good = false;
        else if ((size_t)k > max)
            max = (size_t)k;
        count++;
    }
    *n = count;
    return good && max == count;
}

static void put_value(lua_State *L, struct buf *b, int depth);

static void put_table(lua_State *L, struct buf *b, int depth)
{
    size_t n;

    if (is_array(L, &n)) {
        put_count(b, 0x90, 0xdc, n);
        for (size_t i = 1; i <= n; i++) {
            lua_rawgeti(L, -1, (int)i);
            put_value(L, b, depth + 1);
        }
        return;
    }
    put_count(b, 0x80, 0xde, n);
    for (lua_pushnil(L); lua_next(L, -2);) {
        lua_pushvalue(L, -2);
        put_value(L, b, depth + 1);
        put_value(L, b, depth + 1);
    }
}

/* The value on top, which is taken. */
static void put_value(lua_State *L, struct buf *b, int depth)
{
    size_t len;
    const char *text;
    int type = lua_type(L, -1);

    luaL_checkstack(L, 4, "in function mp_encode_lua_type");
    if (b->len > script_of(L)->limit)
        luaL_error(L, "not enough memory");
    if (type == LUA_TTABLE && depth == NESTING_MAX)
        type = LUA_TNIL;
    switch (type) {
    case LUA_TSTRING:
        text = lua_tolstring(L, -1, &len);
        put_string(b, text, len);
        break;
    case LUA_TBOOLEAN: buf_byte(b, (char)(lua_toboolean(L, -1) ? 0xc3 : 0xc2)); break;
    case LUA_TNUMBER: put_number(b, lua_tonumber(L, -1)); break;
    case LUA_TTABLE: put_table(L, b, depth); break;
    default: buf_byte(b, (char)0xc0);
    }
    lua_pop(L, 1);
}

static int msgpack_pack(lua_State *L)
{
    struct script_worker *sw = script_of(L);
    int n = lua_gettop(L);

    if (n == 0)
        return luaL_argerror(L, 0, "MessagePack pack needs input.");
    sw->packed.len = 0; /* the worker's: an error of Lua's leaves nothing behind */
    for (int i = 1; i <= n; i++) {
        lua_pushvalue(L, i);
        put_value(L, &sw->packed, 0);
    }
    lua_pushlstring(L, sw->packed.ptr, sw->packed.len);
    return 1;
}

/* ---- unpacking ---- */

struct cursor {
    const uint8_t *p;
    size_t left;
};

static const uint8_t *take(lua_State *L, struct cursor *c, size_t n)
{
    const uint8_t *p = c->p;

    if (n > c->left)
        luaL_error(L, "Missing bytes in input.");
    c->p += n;
    c->left -= n;
    return p;
}

static uint64_t take_uint(lua_State *L, struct cursor *c, unsigned bytes)
{
    const uint8_t *p = take(L, c, bytes);
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | p[i];
    return v;
}

static void take_string(lua_State *L, struct cursor *c, size_t len)
{
    const uint8_t *p = take(L, c, len);
    lua_pushlstring(L, (const char *)p, len);
}

static void take_value(lua_State *L, struct cursor *c);

static void take_array(lua_State *L, struct cursor *c, uint64_t n)
{
    lua_newtable(L);
    luaL_checkstack(L, 3, "in function mp_decode_to_lua_array");
    for (uint64_t i = 1; i <= n; i++) {
        take_value(L, c);
        lua_rawseti(L, -2, (int)i);
    }
}

static void take_map(lua_State *L, struct cursor *c, uint64_t n)
{
    lua_newtable(L);
    luaL_checkstack(L, 3, "in function mp_decode_to_lua_hash");
    while (n-- > 0) {
        take_value(L, c);
        take_value(L, c);
        lua_settable(L, -3);
    }
}

static void take_value(lua_State *L, struct cursor *c)
{
    uint8_t mark = *take(L, c, 1);

    luaL_checkstack(L, 3, "too many return values at once; use unpack_one or unpack_limit instead.");
    if (mark <= 0x7f) {
        lua_pushnumber(L, mark);
        return;
    }
    if (mark >= 0xe0) {
        lua_pushnumber(L, (int8_t)mark);
        return;
    }
    if (mark <= 0x8f) {
        take_map(L, c, mark & 15);
        return;
    }
    if (mark <= 0x9f) {
        take_array(L, c, mark & 15);
        return;
    }
    if (mark <= 0xbf) {
        take_string(L, c, mark & 31);
        return;
    }
    switch (mark) {
    case 0xc0: lua_pushnil(L); break;
    case 0xc2: lua_pushboolean(L, 0); break;
    case 0xc3: lua_pushboolean(L, 1); break;
    case 0xc4:
    case 0xd9: take_string(L, c, take_uint(L, c, 1)); break;
    case 0xc5:
    case 0xda: take_string(L, c, take_uint(L, c, 2)); break;
    case 0xc6:
    case 0xdb: take_string(L, c, take_uint(L, c, 4)); break;
    case 0xca: {
        uint32_t bits = (uint32_t)take_uint(L, c, 4);
        float v;
        memcpy(&v, &bits, sizeof(v));
        lua_pushnumber(L, v);
        break;
    }
    case 0xcb: {
        uint64_t bits = take_uint(L, c, 8);
        double v;
        memcpy(&v, &bits, sizeof(v));
        lua_pushnumber(L, v);
        break;
    }
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf: lua_pushnumber(L, (lua_Number)take_uint(L, c, 1u << (mark - 0xcc))); break;
    case 0xd0: lua_pushnumber(L, (int8_t)take_uint(L, c, 1)); break;
    case 0xd1: lua_pushnumber(L, (int16_t)take_uint(L, c, 2)); break;
    case 0xd2: lua_pushnumber(L, (int32_t)take_uint(L, c, 4)); break;
    case 0xd3: lua_pushnumber(L, (lua_Number)(int64_t)take_uint(L, c, 8)); break;
    case 0xdc: take_array(L, c, take_uint(L, c, 2)); break;
    case 0xdd: take_array(L, c, take_uint(L, c, 4)); break;
    case 0xde: take_map(L, c, take_uint(L, c, 2)); break;
    case 0xdf: take_map(L, c, take_uint(L, c, 4)); break;
    default: luaL_error(L, "Bad data format in input.");
    }
}

/* limit 0: all there is, and no offset is returned. */
static int unpack_from(lua_State *L, lua_Number limit, lua_Number offset, bool whole)
{
    size_t len;
    const char *text = luaL_checklstring(L, 1, &len);
    int n = 0;

    if (offset < 0 || limit < 0)
        return luaL_error(L, "Invalid request to unpack with offset of %d and limit of %d.", (int)offset, (int)len);
    if (offset > (lua_Number)len)
        return luaL_error(L, "Start offset %d greater than input length %d.", (int)offset, (int)len);
    struct cursor c = {(const uint8_t *)text + (size_t)offset, len - (size_t)offset};
    if (!whole)
        lua_pushnil(L); /* the offset's place */
    int at = lua_gettop(L);
    for (; c.left > 0 && (whole || (lua_Number)n < limit); n++)
        take_value(L, &c);
    if (whole)
        return n;
    lua_pushnumber(L, c.left == 0 ? -1 : (lua_Number)(len - c.left));
    lua_replace(L, at);
    return n + 1;
}

static int msgpack_unpack(lua_State *L)
{
    return unpack_from(L, 0, 0, true);
}

static int msgpack_unpack_one(lua_State *L)
{
    return unpack_from(L, 1, luaL_optinteger(L, 2, 0), false);
}

static int msgpack_unpack_limit(lua_State *L)
{
    return unpack_from(L, luaL_checkinteger(L, 2), luaL_optinteger(L, 3, 0), false);
}

int script_open_msgpack(lua_State *L)
{
    static const luaL_Reg functions[] = {{"pack", msgpack_pack},
                                         {"unpack", msgpack_unpack},
                                         {"unpack_one", msgpack_unpack_one},
                                         {"unpack_limit", msgpack_unpack_limit},
                                         {NULL, NULL}};
    static const char *const texts[][2] = {{"_NAME", "cmsgpack"},
                                           {"_VERSION", "lua-cmsgpack 0.4.0"},
                                           {"_COPYRIGHT", "Copyright (C) 2012, Salvatore Sanfilippo"},
                                           {"_DESCRIPTION", "MessagePack C implementation for Lua"}};

    lua_newtable(L);
    luaL_register(L, NULL, functions);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        lua_pushstring(L, texts[i][1]);
        lua_setfield(L, -2, texts[i][0]);
    }
    return 1;
}
