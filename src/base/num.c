#include "tiercel/num.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static bool parse_digits(const char *ptr, size_t len, uint64_t *out)
{
    if (len == 0 || len > 20)
        return false;
    if (ptr[0] == '0' && len > 1)
        return false;
    uint64_t v = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned digit = (unsigned)(unsigned char)ptr[i] - '0';
        if (digit > 9)
            return false;
        /* Only the 20th digit can overflow. */
        if (i == 19 && (v > UINT64_MAX / 10 || v * 10 > UINT64_MAX - digit))
            return false;
        v = v * 10 + digit;
    }
    *out = v;
    return true;
}

bool num_parse_u64(struct slice s, uint64_t *out)
{
    return parse_digits(s.ptr, s.len, out);
}

bool num_parse_i64(struct slice s, int64_t *out)
{
    uint64_t v;
    if (s.len && s.ptr[0] == '-') {
        if (!parse_digits(s.ptr + 1, s.len - 1, &v) || v == 0 || v > (uint64_t)INT64_MAX + 1)
            return false;
        *out = (int64_t)(0 - v);
        return true;
    }
    if (!parse_digits(s.ptr, s.len, &v) || v > INT64_MAX)
        return false;
    *out = (int64_t)v;
    return true;
}

bool num_parse_f64(struct slice s, long double *out)
{
    char text[NUM_F64_MAX];
    if (s.len == 0 || s.len >= sizeof(text))
        return false;
    memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    if (isspace((unsigned char)text[0]))
        return false;
    char *end;
    errno = 0;
    long double v = strtold(text, &end);
    if ((size_t)(end - text) != s.len || isnan(v))
        return false;
    /* Denormal results set ERANGE too, and are as good as others. */
    if (errno == ERANGE && (isinf(v) || v == 0))
        return false;
    *out = v;
    return true;
}

bool num_parse_double(struct slice s, double *out)
{
    char text[NUM_F64_MAX];
    int64_t whole;
    if (s.len < 16 && num_parse_i64(s, &whole)) { /* few digits are exact */
        *out = (double)whole;
        return true;
    }
    if (s.len == 0 || s.len >= sizeof(text) || isspace((unsigned char)s.ptr[0]))
        return false;
    memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if ((size_t)(end - text) != s.len || isnan(v) || (errno == ERANGE && (isinf(v) || v == 0)))
        return false;
    *out = v;
    return true;
}

static const char digit_pairs[201] = "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
                                     "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
                                     "8081828384858687888990919293949596979899";

static size_t count_digits(uint64_t v)
{
    size_t n = 1;
    for (;;) {
        if (v < 10)
            return n;
        if (v < 100)
            return n + 1;
        if (v < 1000)
            return n + 2;
        if (v < 10000)
            return n + 3;
        v /= 10000;
        n += 4;
    }
}

static size_t format_digits(char *out, uint64_t v)
{
    size_t len = count_digits(v);
    char *p = out + len;
    while (v >= 100) {
        p -= 2;
        memcpy(p, digit_pairs + v % 100 * 2, 2);
        v /= 100;
    }
    if (v >= 10)
        memcpy(p - 2, digit_pairs + v * 2, 2);
    else
        p[-1] = (char)('0' + v);
    return len;
}

size_t num_format_u64(char out[NUM_I64_MAX], uint64_t v)
{
    return format_digits(out, v);
}

size_t num_format_i64(char out[NUM_I64_MAX], int64_t v)
{
    if (v >= 0)
        return format_digits(out, (uint64_t)v);
    out[0] = '-';
    return format_digits(out + 1, 0 - (uint64_t)v) + 1;
}

size_t num_format_f64(char out[NUM_F64_SHORT], double v)
{
    /* Integers of up to 17 digits are what %.17g makes of them, but for the sign of 0. */
    if (fabs(v) < 1e17 && (double)(int64_t)v == v && !(v == 0 && signbit(v)))
        return num_format_i64(out, (int64_t)v);
    return (size_t)snprintf(out, NUM_F64_SHORT, "%.17g", v);
}

size_t num_format_f64_human(char out[NUM_F64_MAX], long double v)
{
    if (isinf(v)) {
        memcpy(out, v > 0 ? "inf" : "-inf", v > 0 ? 3 : 4);
        return v > 0 ? 3 : 4;
    }
    /* The largest long double has 4933 digits before the point: with 17 behind it still fits. */
    size_t len = (size_t)snprintf(out, NUM_F64_MAX, "%.17Lf", v);
    if (memchr(out, '.', len)) {
        while (out[len - 1] == '0')
            len--;
        if (out[len - 1] == '.')
            len--;
    }
    if (len == 2 && out[0] == '-' && out[1] == '0') {
        out[0] = '0';
        len = 1;
    }
    return len;
}

bool num_parse_bytes(struct slice s, uint64_t *out)
{
    static const struct {
        const char *suffix;
        uint64_t factor;
    } units[] = {
        {"", 1},        {"b", 1},           {"k", 1000},       {"kb", 1ull << 10},
        {"m", 1000000}, {"mb", 1ull << 20}, {"g", 1000000000}, {"gb", 1ull << 30},
    };
    size_t digits = 0;
    uint64_t v = 0;
    while (digits < s.len && s.ptr[digits] >= '0' && s.ptr[digits] <= '9') {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(s.ptr[digits] - '0'), &v))
            return false;
        digits++;
    }
    if (digits == 0)
        return false;
    struct slice suffix = SLICE(s.ptr + digits, s.len - digits);
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (slice_is(suffix, units[i].suffix))
            return !__builtin_mul_overflow(v, units[i].factor, out);
    }
    return false;
}
