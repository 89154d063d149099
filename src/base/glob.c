#include "tiercel/glob.h"

#include <ctype.h>

/* Bytes above 127 are negative and have no case, as in Redis. */
static int fold(signed char c, bool nocase)
{
    return nocase && c > 0 ? tolower(c) : c;
}

/* Does `c` belong to the class that starts behind a '['? Moves *pat behind its ']', or to
 * the pattern's end if there is none. As Redis does: a range may be reversed and compares
 * signed chars, an escaped character is never folded. */
static bool class_match(const char **pat, const char *end, char c, bool nocase)
{
    const char *p = *pat;
    bool negated = p < end && *p == '^';
    bool found = false;
    p += negated;
    for (; p < end && *p != ']'; p++) {
        if (*p == '\\' && end - p >= 2) {
            found |= *++p == c;
        } else if (end - p >= 3 && p[1] == '-') {
            signed char a = p[0], b = p[2];
            int low = fold(a < b ? a : b, nocase);
            int high = fold(a < b ? b : a, nocase);
            found |= fold(c, nocase) >= low && fold(c, nocase) <= high;
            p += 2;
        } else {
            found |= fold(*p, nocase) == fold(c, nocase);
        }
    }
    *pat = p < end ? p + 1 : end;
    return found != negated;
}

/* Matches one pattern element other than '*' against `c`, and moves *pat behind it. */
static bool element_match(const char **pat, const char *end, char c, bool nocase)
{
    const char *p = *pat;
    switch (*p) {
    case '?': *pat = p + 1; return true;
    case '[': *pat = p + 1; return class_match(pat, end, c, nocase);
    case '\\':
        if (end - p >= 2)
            p++;
        break;
    default: break;
    }
    *pat = p + 1;
    return fold(*p, nocase) == fold(c, nocase);
}

bool glob_match(struct slice pattern, struct slice text, bool nocase)
{
    if (pattern.len == 0 || text.len == 0)
        return pattern.len == text.len; /* in Redis not even "*" matches an empty text */
    const char *p = pattern.ptr, *pend = p + pattern.len;
    const char *t = text.ptr, *tend = t + text.len;
    const char *star = NULL, *star_text = NULL;

    /* When an element fails, only the last '*' has to take one more character: a longer match
     * of an earlier one would leave less text for the same rest. So pattern * text at most. */
    while (t < tend) {
        if (p < pend && *p == '*') {
            while (p < pend && *p == '*')
                p++;
            if (p == pend)
                return true;
            star = p;
            star_text = t;
            continue;
        }
        if (p < pend && element_match(&p, pend, *t, nocase)) {
            t++;
            continue;
        }
        if (!star)
            return false;
        p = star;
        t = ++star_text;
    }
    while (p < pend && *p == '*')
        p++;
    return p == pend;
}
