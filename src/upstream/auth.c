/* Who we are at the upstream: from the URL, or from a file that is read at every connect, so that a secret
 * may be changed without a restart. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiercel/resp.h"
#include "upstream_priv.h"

#define FILE_MAX 1024 /* bytes */

static enum status file_bad(char err[256], const char *path, const char *what)
{
    snprintf(err, 256, "%.150s: %s", path, what);
    return ST_BAD;
}

/* Takes a line off `text`, without its end. */
static struct slice take_line(struct slice *text)
{
    const char *lf = text->len ? memchr(text->ptr, '\n', text->len) : NULL;
    size_t n = lf ? (size_t)(lf - text->ptr) : text->len;
    struct slice line = SLICE(text->ptr, n);
    *text = SLICE(text->ptr + n + (lf != NULL), text->len - n - (lf != NULL));
    if (line.len && line.ptr[line.len - 1] == '\r')
        line.len--;
    return line;
}

static bool set_text(char *out, size_t cap, struct slice s)
{
    if (s.len >= cap || memchr(s.ptr, 0, s.len))
        return false;
    memcpy(out, s.ptr, s.len);
    out[s.len] = 0;
    return true;
}

static enum status file_parse(struct slice text, const char *path, struct upstream_auth *auth, char err[256])
{
    struct slice first = take_line(&text);
    bool two = text.len > 0;
    struct slice second = two ? take_line(&text) : SLICE_NONE;
    if (!first.len || text.len || (two && !second.len))
        return file_bad(err, path, "expected one line, the password, or two, the user and the password");
    if (two && !set_text(auth->user, sizeof(auth->user), first))
        return file_bad(err, path, "bad user name");
    if (!set_text(auth->password, sizeof(auth->password), two ? second : first))
        return file_bad(err, path, "bad password");
    return ST_OK;
}

enum status upstream_read_auth(const char *path, struct upstream_auth *auth, char err[256])
{
    char text[FILE_MAX + 1];
    struct stat sb;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a fifo must not hold up the loop */
    if (fd < 0)
        return file_bad(err, path, strerror(errno));
    ssize_t n = -1;
    if (fstat(fd, &sb) == 0 && S_ISREG(sb.st_mode))
        n = read(fd, text, sizeof(text));
    close(fd);
    enum status st = n < 0          ? file_bad(err, path, "cannot be read")
                     : n > FILE_MAX ? file_bad(err, path, "too long")
                                    : file_parse(SLICE(text, (size_t)n), path, auth, err);
    explicit_bzero(text, sizeof(text));
    return st;
}

static void greet(struct link *ln, const struct upstream_auth *auth)
{
    struct buf *scratch = &ln->up->scratch;
    if (auth->user[0]) {
        struct slice argv[] = {SLICE_LIT("AUTH"), slice_str(auth->user), slice_str(auth->password)};
        link_greet(ln, GREET_AUTH, 3, argv);
    } else if (auth->password[0]) {
        struct slice argv[] = {SLICE_LIT("AUTH"), slice_str(auth->password)};
        link_greet(ln, GREET_AUTH, 2, argv);
    } else {
        return;
    }
    explicit_bzero(scratch->ptr, scratch->len);
}

bool upstream_greet_auth(struct link *ln, const struct upstream_auth *auth)
{
    const struct upstream_options *opt = &ln->up->opt;
    struct upstream_auth own;
    char err[256];
    if (auth) {
        greet(ln, auth);
        return true;
    }
    memcpy(own.user, opt->user, sizeof(own.user));
    memcpy(own.password, opt->password, sizeof(own.password));
    enum status st = opt->auth_file[0] ? upstream_read_auth(opt->auth_file, &own, err) : ST_OK;
    if (st == ST_OK) {
        memcpy(ln->up->own_user, own.user, sizeof(own.user));
        ln->up->own_logs_in = own.password[0] != '\0';
        greet(ln, &own);
    }
    if (st != ST_OK)
        link_fail(ln, err);
    explicit_bzero(&own, sizeof(own));
    return st == ST_OK;
}
