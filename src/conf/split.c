/* Words and quotes of redis.conf lines, by the rules of Redis's sdssplitargs(). */
#include <ctype.h>

#include "conf/conf_priv.h"

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads the escape at p (a backslash within double quotes); returns its length. */
static size_t read_escape(const char *p, size_t left, char *out)
{
    static const char letters[] = "nrtba", bytes[] = "\n\r\t\b\a";
    if (left >= 4 && p[1] == 'x' && hex_digit(p[2]) >= 0 && hex_digit(p[3]) >= 0) {
        *out = (char)(hex_digit(p[2]) << 4 | hex_digit(p[3]));
        return 4;
    }
    const char *at = p[1] != '\0' ? strchr(letters, p[1]) : NULL;
    *out = at != NULL ? bytes[at - letters] : p[1];
    return 2;
}

/* Appends the word at *pos; false: a quote is not closed, or is followed by text. */
static bool read_word(struct slice text, size_t *pos, struct buf *out)
{
    char quote = 0;
    size_t i = *pos;
    while (i < text.len) {
        char c = text.ptr[i];
        if (quote == 0 && isspace((unsigned char)c))
            break;
        if (quote == 0 && (c == '"' || c == '\'')) {
            quote = c;
            i++;
        } else if (quote != 0 && c == quote) {
            if (i + 1 < text.len && !isspace((unsigned char)text.ptr[i + 1]))
                return false;
            quote = 0;
            i++;
            break;
        } else if (quote == '"' && c == '\\' && i + 1 < text.len) {
            char byte;
            i += read_escape(text.ptr + i, text.len - i, &byte);
            buf_byte(out, byte);
        } else if (quote == '\'' && c == '\\' && i + 1 < text.len && text.ptr[i + 1] == '\'') {
            buf_byte(out, '\'');
            i += 2;
        } else {
            buf_byte(out, c);
            i++;
        }
    }
    *pos = i;
    return quote == 0;
}

bool line_split(struct slice text, struct line *out)
{
    int cap = 0;
    size_t pos = 0;
    buf_init(&out->text, MEM_OTHER);
    out->words = NULL;
    out->nwords = 0;
    while (true) {
        while (pos < text.len && isspace((unsigned char)text.ptr[pos]))
            pos++;
        if (pos == text.len)
            break;
        size_t start = out->text.len;
        if (!read_word(text, &pos, &out->text)) {
            line_free(out);
            return false;
        }
        if (out->nwords == cap) {
            cap = cap ? cap * 2 : 8;
            out->words = mem_realloc(MEM_OTHER, out->words, (size_t)cap * sizeof(struct slice));
        }
        out->words[out->nwords++] = SLICE(NULL, out->text.len - start);
        buf_byte(&out->text, '\0');
    }
    const char *p = out->text.ptr; /* the text moves while it grows, so words point into it only now */
    for (int i = 0; i < out->nwords; i++) {
        out->words[i].ptr = p;
        p += out->words[i].len + 1;
    }
    return true;
}

void line_free(struct line *l)
{
    buf_deinit(&l->text);
    mem_free(MEM_OTHER, l->words);
    l->words = NULL;
    l->nwords = 0;
}

void line_quote(struct buf *out, struct slice word)
{
    static const char letters[] = "nrtba", bytes[] = "\n\r\t\b\a";
    buf_byte(out, '"');
    for (size_t i = 0; i < word.len; i++) {
        char c = word.ptr[i];
        const char *at = c != '\0' ? strchr(bytes, c) : NULL;
        if (c == '"' || c == '\\')
            buf_printf(out, "\\%c", c);
        else if (at != NULL)
            buf_printf(out, "\\%c", letters[at - bytes]);
        else if ((unsigned char)c < 0x20 || c == 0x7f)
            buf_printf(out, "\\x%02x", (unsigned char)c);
        else
            buf_byte(out, c);
    }
    buf_byte(out, '"');
}

static bool is_plain(struct slice word)
{
    for (size_t i = 0; i < word.len; i++) {
        unsigned char c = (unsigned char)word.ptr[i];
        if (c <= ' ' || c == 0x7f || c == '"' || c == '\'' || c == '\\')
            return false;
    }
    return word.len > 0;
}

void line_join(struct buf *out, int nwords, const struct slice *words)
{
    for (int i = 0; i < nwords; i++) {
        if (i > 0)
            buf_byte(out, ' ');
        if (is_plain(words[i]))
            buf_slice_append(out, words[i]);
        else
            line_quote(out, words[i]);
    }
}
