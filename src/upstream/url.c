#include <stdio.h>

#include "tiercel/num.h"
#include "tiercel/upstream.h"

static enum status url_bad(char err[256], const char *what)
{
    snprintf(err, 256, "%s; expected redis://[user:password@]host[:port][/db]", what);
    return ST_BAD;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Copies with %XX decoded. false: a bad escape, a NUL, or no room. */
static bool url_decode(struct slice in, char *out, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < in.len; i++) {
        int c = (unsigned char)in.ptr[i];
        if (c == '%') {
            int hi = i + 1 < in.len ? hex_value(in.ptr[i + 1]) : -1;
            int lo = i + 2 < in.len ? hex_value(in.ptr[i + 2]) : -1;
            if (hi < 0 || lo < 0)
                return false;
            c = hi * 16 + lo;
            i += 2;
        }
        if (c == 0 || n + 1 >= cap)
            return false;
        out[n++] = (char)c;
    }
    out[n] = 0;
    return true;
}

static bool parse_number(struct slice s, int64_t min, int64_t max, int *out)
{
    int64_t v;
    if (!num_parse_i64(s, &v) || v < min || v > max)
        return false;
    *out = (int)v;
    return true;
}

static enum status parse_userinfo(struct slice info, struct upstream_options *opt, char err[256])
{
    const char *colon = memchr(info.ptr, ':', info.len);
    /* Without a colon it is the password, as redis-cli reads it. */
    struct slice user = colon ? SLICE(info.ptr, (size_t)(colon - info.ptr)) : SLICE_LIT("");
    struct slice pass = colon ? SLICE(colon + 1, info.len - user.len - 1) : info;
    if (!url_decode(user, opt->user, sizeof(opt->user)))
        return url_bad(err, "bad user name");
    if (!url_decode(pass, opt->password, sizeof(opt->password)))
        return url_bad(err, "bad password");
    return ST_OK;
}

static enum status parse_host(struct slice s, struct upstream_options *opt, char err[256])
{
    struct slice host = s, port = SLICE_NONE;
    if (s.len && s.ptr[0] == '[') {
        const char *end = memchr(s.ptr, ']', s.len);
        if (!end)
            return url_bad(err, "missing ]");
        host = SLICE(s.ptr + 1, (size_t)(end - s.ptr) - 1);
        struct slice rest = SLICE(end + 1, s.len - host.len - 2);
        if (rest.len && rest.ptr[0] != ':')
            return url_bad(err, "bad characters after ]");
        if (rest.len)
            port = SLICE(rest.ptr + 1, rest.len - 1);
    } else {
        const char *colon = memchr(s.ptr, ':', s.len);
        if (colon) {
            host = SLICE(s.ptr, (size_t)(colon - s.ptr));
            port = SLICE(colon + 1, s.len - host.len - 1);
        }
    }
    if (host.len == 0 || host.len >= sizeof(opt->host) || memchr(host.ptr, 0, host.len))
        return url_bad(err, "bad host");
    opt->port = 6379;
    if (port.ptr && !parse_number(port, 1, 65535, &opt->port))
        return url_bad(err, "bad port (1 to 65535)");
    memcpy(opt->host, host.ptr, host.len);
    opt->host[host.len] = 0;
    return ST_OK;
}

enum status upstream_parse_url(const char *url, struct upstream_options *opt, char err[256])
{
    struct slice s = slice_str(url);
    const struct slice schemes[] = {SLICE_LIT("redis://"), SLICE_LIT("valkey://")};
    size_t skip = 0;
    for (size_t i = 0; i < 2; i++)
        if (s.len >= schemes[i].len && strncasecmp(s.ptr, schemes[i].ptr, schemes[i].len) == 0)
            skip = schemes[i].len;
    if (!skip)
        return url_bad(err, strncasecmp(url, "rediss://", 9) == 0 ? "TLS is not supported here" : "unknown scheme");
    s = SLICE(s.ptr + skip, s.len - skip);
    if (memchr(s.ptr, '?', s.len) || memchr(s.ptr, '#', s.len))
        return url_bad(err, "? and # must be written %3F and %23, and parameters are not known");

    opt->user[0] = opt->password[0] = 0;
    opt->db = 0;
    const char *slash = memchr(s.ptr, '/', s.len);
    const char *at = memrchr(s.ptr, '@', slash ? (size_t)(slash - s.ptr) : s.len);
    if (slash) {
        struct slice db = SLICE(slash + 1, s.len - (size_t)(slash - s.ptr) - 1);
        if (db.len && !parse_number(db, 0, INT32_MAX, &opt->db))
            return url_bad(err, "bad database number (/ in a password must be written %2F)");
        s.len = (size_t)(slash - s.ptr);
    }
    if (at) {
        enum status st = parse_userinfo(SLICE(s.ptr, (size_t)(at - s.ptr)), opt, err);
        if (st != ST_OK)
            return st;
        s = SLICE(at + 1, s.len - (size_t)(at - s.ptr) - 1);
    }
    return parse_host(s, opt, err);
}
