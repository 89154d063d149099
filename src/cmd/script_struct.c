/* The library `struct`: values packed as C's. Formats: > < big and little endian; ! or !n alignment; x padding; b B h H
 * l L T i I (in, In) integers; f d numbers; s a string that ends with a zero; c or cn bytes, c0 as many as there are (to
 * unpack: as the number before says); spaces are ignored. */
#include <ctype.h>
#include <stddef.h>

#include "cmd/script_priv.h"

#define INT_MAX_SIZE 32
#define NATIVE_ALIGN _Alignof(max_align_t)

struct format {
    const char *p;
    bool little;
    int align;
};

static bool host_is_little(void)
{
    const uint16_t one = 1;
    return *(const uint8_t *)&one == 1;
}

static int get_number(lua_State *L, struct format *f, int absent)
{
    int64_t n = 0;

    if (!isdigit((unsigned char)*f->p))
        return absent;
    for (; isdigit((unsigned char)*f->p); f->p++) {
        n = n * 10 + (*f->p - '0');
        if (n > INT32_MAX)
            luaL_error(L, "integral size overflow");
    }
    return (int)n;
}

/* Size of an option, whose letter is read already. */
static size_t option_size(lua_State *L, struct format *f, char opt)
{
    switch (opt) {
    case 'b':
    case 'B': return 1;
    case 'h':
    case 'H': return sizeof(short);
    case 'l':
    case 'L': return sizeof(long);
    case 'T': return sizeof(size_t);
    case 'f': return sizeof(float);
    case 'd': return sizeof(double);
    case 'x': return 1;
    case 'c': return (size_t)get_number(L, f, 1);
    case 'i':
    case 'I': {
        int n = get_number(L, f, sizeof(int));
        if (n > INT_MAX_SIZE)
            luaL_error(L, "integral size %d is larger than limit of %d", n, INT_MAX_SIZE);
        return (size_t)n;
    }
    default: return 0;
    }
}

/* Bytes that align what comes next. */
static size_t padding(size_t size, const struct format *f, char opt, size_t total)
{
    size_t align = size < (size_t)f->align ? size : (size_t)f->align;

    if (size == 0 || opt == 'c' || align <= 1 || !strchr("hHlLTiIfd", opt))
        return 0;
    return (align - (total & (align - 1))) & (align - 1);
}

/* ' ', '<', '>', '!' change how the rest is read. */
static void control(lua_State *L, struct format *f, char opt)
{
    switch (opt) {
    case ' ': return;
    case '>': f->little = false; return;
    case '<': f->little = true; return;
    case '!': {
        int n = get_number(L, f, NATIVE_ALIGN);
        if (n <= 0 || (n & (n - 1)) != 0)
            luaL_error(L, "alignment %d is not a power of 2", n);
        f->align = n;
        return;
    }
    default: luaL_argerror(L, 1, lua_pushfstring(L, "invalid format option '%c'", opt));
    }
}

static struct format format_of(lua_State *L)
{
    return (struct format){luaL_checkstring(L, 1), host_is_little(), 1};
}

static void put_integer(luaL_Buffer *b, lua_Number n, bool little, size_t size)
{
    uint64_t v = n < 0 ? (uint64_t)(int64_t)n : (uint64_t)n;
    unsigned char text[INT_MAX_SIZE];

    for (size_t i = 0; i < size; i++)
        text[little ? i : size - 1 - i] = i < 8 ? (unsigned char)(v >> (8 * i)) : n < 0 ? 0xff : 0;
    for (size_t i = 8; i < size; i++) /* shifted out: no sign beyond 64 bits */
        text[little ? i : size - 1 - i] = 0;
    luaL_addlstring(b, (const char *)text, size);
}

static lua_Number get_integer(const char *text, bool little, bool is_signed, size_t size)
{
    uint64_t v = 0;

    for (size_t i = 0; i < size; i++) {
        size_t at = little ? size - 1 - i : i;
        v = v << 8 | (unsigned char)text[at];
    }
    if (!is_signed)
        return (lua_Number)v;
    if (size < 8 && size > 0) {
        uint64_t sign = 1ULL << (size * 8 - 1);
        v = (v ^ sign) - sign;
    }
    return (lua_Number)(int64_t)v;
}

static void swap_if(char *text, size_t n, bool little)
{
    if (little == host_is_little())
        return;
    for (size_t i = 0; i < n / 2; i++) {
        char ch = text[i];
        text[i] = text[n - 1 - i];
        text[n - 1 - i] = ch;
    }
}

static int struct_pack(lua_State *L)
{
    struct format f = format_of(L);
    int arg = 2;
    size_t total = 0;
    luaL_Buffer b;

    lua_pushnil(L); /* a mark between arguments and buffer */
    luaL_buffinit(L, &b);
    while (*f.p) {
        char opt = *f.p++;
        size_t size = option_size(L, &f, opt), pad = padding(size, &f, opt, total);
        total += pad;
        while (pad-- > 0)
            luaL_addchar(&b, '\0');
        switch (opt) {
        case 'b':
        case 'B':
        case 'h':
        case 'H':
        case 'l':
        case 'L':
        case 'T':
        case 'i':
        case 'I': put_integer(&b, luaL_checknumber(L, arg++), f.little, size); break;
        case 'x': luaL_addchar(&b, '\0'); break;
        case 'f': {
            float v = (float)luaL_checknumber(L, arg++);
            char text[sizeof(v)];
            memcpy(text, &v, sizeof(v));
            swap_if(text, sizeof(v), f.little);
            luaL_addlstring(&b, text, sizeof(v));
            break;
        }
        case 'd': {
            double v = luaL_checknumber(L, arg++);
            char text[sizeof(v)];
            memcpy(text, &v, sizeof(v));
            swap_if(text, sizeof(v), f.little);
            luaL_addlstring(&b, text, sizeof(v));
            break;
        }
        case 'c':
        case 's': {
            size_t len;
            const char *text = luaL_checklstring(L, arg++, &len);
            if (size == 0)
                size = len;
            luaL_argcheck(L, len >= size, arg, "string too short");
            luaL_addlstring(&b, text, size);
            if (opt == 's') {
                luaL_addchar(&b, '\0');
                size++;
            }
            break;
        }
        default: control(L, &f, opt);
        }
        total += size;
    }
    luaL_pushresult(&b);
    return 1;
}

static int struct_unpack(lua_State *L)
{
    struct format f = format_of(L);
    size_t len;
    const char *data = luaL_checklstring(L, 2, &len);
    lua_Number from = luaL_optnumber(L, 3, 1);
    int n = 0;

    luaL_argcheck(L, from != 0, 3, "offset must be 1 or greater");
    luaL_argcheck(L, from >= 1 && from - 1 <= (lua_Number)len, 2, "data string too short");
    size_t pos = (size_t)from - 1;
    while (*f.p) {
        char opt = *f.p++;
        size_t size = option_size(L, &f, opt);
        pos += padding(size, &f, opt, pos);
        luaL_argcheck(L, pos <= len && size <= len - pos, 2, "data string too short");
        luaL_checkstack(L, 2, "too many results");
        switch (opt) {
        case 'b':
        case 'B':
        case 'h':
        case 'H':
        case 'l':
        case 'L':
        case 'T':
        case 'i':
        case 'I': lua_pushnumber(L, get_integer(data + pos, f.little, islower((unsigned char)opt), size)); break;
        case 'x': n--; break;
        case 'f': {
            float v;
            char text[sizeof(v)];
            memcpy(text, data + pos, sizeof(v));
            swap_if(text, sizeof(v), f.little);
            memcpy(&v, text, sizeof(v));
            lua_pushnumber(L, v);
            break;
        }
        case 'd': {
            double v;
            char text[sizeof(v)];
            memcpy(text, data + pos, sizeof(v));
            swap_if(text, sizeof(v), f.little);
            memcpy(&v, text, sizeof(v));
            lua_pushnumber(L, v);
            break;
        }
        case 'c':
            if (size == 0) {
                if (n == 0 || !lua_isnumber(L, -1))
                    luaL_error(L, "format 'c0' needs a previous size");
                lua_Number want = lua_tonumber(L, -1);
                lua_pop(L, 1);
                n--;
                luaL_argcheck(L, want >= 0 && want <= (lua_Number)(len - pos), 2, "data string too short");
                size = (size_t)want;
            }
            lua_pushlstring(L, data + pos, size);
            break;
        case 's': {
            const char *end = memchr(data + pos, '\0', len - pos);
            if (!end)
                luaL_error(L, "unfinished string in data");
            size = (size_t)(end - (data + pos)) + 1;
            lua_pushlstring(L, data + pos, size - 1);
            break;
        }
        default: control(L, &f, opt); n--;
        }
        n++;
        pos += size;
    }
    lua_pushnumber(L, (lua_Number)pos + 1);
    return n + 1;
}

static int struct_size(lua_State *L)
{
    struct format f = format_of(L);
    size_t pos = 0;

    while (*f.p) {
        char opt = *f.p++;
        size_t size = option_size(L, &f, opt);
        pos += padding(size, &f, opt, pos);
        if (opt == 's')
            luaL_argerror(L, 1, "option 's' has no fixed size");
        else if (opt == 'c' && size == 0)
            luaL_argerror(L, 1, "option 'c0' has no fixed size");
        if (strchr(" <>!", opt))
            control(L, &f, opt);
        pos += size;
    }
    lua_pushnumber(L, (lua_Number)pos);
    return 1;
}

int script_open_struct(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"pack", struct_pack}, {"unpack", struct_unpack}, {"size", struct_size}, {NULL, NULL}};

    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
