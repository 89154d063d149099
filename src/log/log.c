/* The log: one line, one write(). */
#include "tiercel/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "log/log_priv.h"
#include "tiercel/clock.h"

#define TEXT_MAX 4096                 /* longer texts are cut, and say so */
#define LINE_MAX_BYTES (8 * TEXT_MAX) /* a byte of text takes at most six in JSON */
#define WINDOW_MS 1000

static const char *const level_names[LOG_LEVELS] = {"debug", "verbose", "notice", "warning"};
static const char *const module_names[LOG_MODULES] = {
#define LOG_NAME(name) #name,
    LOG_MODULE_LIST(LOG_NAME)
#undef LOG_NAME
};

_Atomic int log_level_of[LOG_MODULES + 1] = {[0 ... LOG_MODULES] = LOG_NOTICE};

/* The process has one log. Its descriptor number never changes once it is set: another
 * file is put under it with dup3(), so that a line being written needs no lock. */
static struct {
    _Atomic int format, fd;
    pthread_mutex_t lock; /* setup: path, levels; sites: their windows */
    char path[4096];
    int level;               /* the general one */
    int8_t own[LOG_MODULES]; /* a module's, + 1; 0: it has the general one */
} state = {.level = LOG_NOTICE, .format = LOG_PLAIN, .fd = STDOUT_FILENO, .lock = PTHREAD_MUTEX_INITIALIZER};

static bool open_locked(const char *file)
{
    int fd = file[0] != '\0' ? open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640)
                             : fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return false;
    log_rotate_opened(fd, file[0] != '\0');
    int old = atomic_load(&state.fd);
    if (old == STDOUT_FILENO) {
        atomic_store(&state.fd, fd);
        return true;
    }
    bool ok = dup3(fd, old, O_CLOEXEC) >= 0;
    int saved = errno;
    close(fd);
    errno = saved;
    return ok;
}

/* ---- levels ---- */

static void levels_apply_locked(void)
{
    for (int i = 0; i < LOG_MODULES; i++)
        atomic_store_explicit(&log_level_of[i], state.own[i] ? state.own[i] - 1 : state.level, memory_order_relaxed);
    atomic_store_explicit(&log_level_of[LOG_MODULES], state.level, memory_order_relaxed);
}

static int name_find(const char *const *names, int n, const char *word, size_t len)
{
    for (int i = 0; i < n; i++)
        if (strlen(names[i]) == len && strncasecmp(names[i], word, len) == 0)
            return i;
    return -1;
}

#define LOG_LISTED(name) " " #name
static const char unknown_module[] = "must be words MODULE=LEVEL; modules are" LOG_MODULE_LIST(LOG_LISTED);
static const char unknown_level[] = "must be words MODULE=LEVEL; levels are debug verbose notice warning";

static bool modules_parse(const char *words, int8_t own[LOG_MODULES], const char **why)
{
    memset(own, 0, LOG_MODULES);
    for (const char *p = words + strspn(words, " \t"); *p != '\0'; p += strspn(p, " \t")) {
        size_t len = strcspn(p, " \t"), name = strcspn(p, "= \t");
        int module = name < len ? name_find(module_names, LOG_MODULES, p, name) : -1;
        int level = module >= 0 ? name_find(level_names, LOG_LEVELS, p + name + 1, len - name - 1) : -1;
        if (level < 0) {
            *why = module < 0 ? unknown_module : unknown_level;
            return false;
        }
        own[module] = (int8_t)(level + 1);
        p += len;
    }
    return true;
}

bool log_check_modules(const char *words, const char **why)
{
    int8_t own[LOG_MODULES];
    return modules_parse(words, own, why);
}

bool log_set_modules(const char *words, const char **why)
{
    int8_t own[LOG_MODULES];
    if (!modules_parse(words, own, why))
        return false;
    pthread_mutex_lock(&state.lock);
    memcpy(state.own, own, sizeof(own));
    levels_apply_locked();
    pthread_mutex_unlock(&state.lock);
    return true;
}

void log_set_level(enum log_level level)
{
    pthread_mutex_lock(&state.lock);
    state.level = level;
    levels_apply_locked();
    pthread_mutex_unlock(&state.lock);
}

/* ---- the file ---- */

bool log_setup(const char *file, enum log_level level, enum log_format format)
{
    bool ok = true;
    size_t len = strlen(file);
    pthread_mutex_lock(&state.lock);
    if (len >= sizeof(state.path)) {
        errno = ENAMETOOLONG;
        ok = false;
    } else if (len != 0 || atomic_load(&state.fd) != STDOUT_FILENO) {
        ok = open_locked(file);
    }
    if (ok) {
        memcpy(state.path, file, len + 1);
        state.level = level;
        levels_apply_locked();
        atomic_store(&state.format, format);
    }
    pthread_mutex_unlock(&state.lock);
    return ok;
}

bool log_reopen(void)
{
    pthread_mutex_lock(&state.lock);
    bool ok = state.path[0] == '\0' || open_locked(state.path);
    pthread_mutex_unlock(&state.lock);
    return ok;
}

bool log_path(char *to, size_t size)
{
    pthread_mutex_lock(&state.lock);
    size_t len = strlen(state.path);
    bool ok = len != 0 && len < size;
    if (ok)
        memcpy(to, state.path, len + 1);
    pthread_mutex_unlock(&state.lock);
    return ok;
}

int log_fd(void)
{
    return atomic_load_explicit(&state.fd, memory_order_relaxed);
}

/* True: the line may go out; *left_out lines of this site did not since the last that did. */
static bool site_admit(struct log_site *site, uint32_t *left_out)
{
    int64_t now = clock_mono_ms();
    *left_out = 0;
    pthread_mutex_lock(&state.lock);
    if (site->count == 0 || now - site->window_ms >= WINDOW_MS) {
        if (site->count > LOG_BURST)
            *left_out = site->count - LOG_BURST;
        site->window_ms = now;
        site->count = 0;
    }
    bool admit = site->count < LOG_BURST;
    if (site->count < UINT32_MAX)
        site->count++;
    pthread_mutex_unlock(&state.lock);
    return admit;
}

/* Length of the well-formed UTF-8 sequence at p, 0 = none. */
static size_t utf8_len(const unsigned char *p, size_t left)
{
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : p[0] - 0xf0u < 5 ? 4 : 0;
    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    /* overlong forms, surrogates, beyond U+10FFFF */
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

/* Copies text so that it stays one line: control characters are escaped, and in JSON
 * quotes and what is no UTF-8 too. `out` has room for six bytes of each of `text`. */
static size_t escape(char *out, const char *text, size_t len, bool json)
{
    static const char short_forms[] = "\b\f\n\r\t", letters[] = "bfnrt";
    size_t o = 0;
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)text[i];
        const char *at = c != 0 ? strchr(short_forms, c) : NULL;
        size_t n = json ? utf8_len((const unsigned char *)text + i, len - i) : 1;
        if (at != NULL || (json && (c == '"' || c == '\\'))) {
            out[o++] = '\\';
            out[o++] = at != NULL ? letters[at - short_forms] : (char)c;
            i++;
        } else if (c < 0x20 || c == 0x7f) {
            o += (size_t)snprintf(out + o, 7, json ? "\\u%04x" : "\\x%02x", c);
            i++;
        } else if (n == 0) {
            memcpy(out + o, "\\ufffd", 6);
            o += 6;
            i++;
        } else {
            memcpy(out + o, text + i, n);
            o += n;
            i += n;
        }
    }
    return o;
}

static size_t format_time(char *out, size_t size)
{
    int64_t ms = clock_wall_ms();
    time_t s = (time_t)(ms / 1000);
    struct tm tm;
    gmtime_r(&s, &tm);
    size_t n = strftime(out, size, "%Y-%m-%dT%H:%M:%S", &tm);
    return n + (size_t)snprintf(out + n, size - n, ".%03dZ", (int)(ms % 1000));
}

static size_t format_line(char *out, enum log_level level, const char *module, const char *text, size_t len)
{
    bool json = atomic_load_explicit(&state.format, memory_order_relaxed) == LOG_JSON;
    char ts[64];
    format_time(ts, sizeof(ts));
    size_t n =
        (size_t)(json ? snprintf(out, TEXT_MAX,
                                 "{\"ts\":\"%s\",\"level\":\"%s\",\"module\":\"%.32s\",\"pid\":%d,"
                                 "\"msg\":\"",
                                 ts, level_names[level], module, (int)getpid())
                      : snprintf(out, TEXT_MAX, "%d %s %s %.32s: ", (int)getpid(), ts, level_names[level], module));
    n += escape(out + n, text, len, json);
    if (json) {
        out[n++] = '"';
        out[n++] = '}';
    }
    out[n++] = '\n';
    return n;
}

/* A log that cannot be written (full disk, closed pipe) must not stop the server. */
static void write_line(const char *line, size_t len)
{
    int fd = log_fd();
    while (len > 0) {
        ssize_t n = write(fd, line, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        log_rotate_wrote((size_t)n);
        line += n;
        len -= (size_t)n;
    }
}

void log_write(struct log_site *site, enum log_level level, const char *module, const char *fmt, ...)
{
    int saved = errno; /* callers log on their error paths and look at errno afterwards */
    uint32_t left_out;
    if (!site_admit(site, &left_out)) {
        errno = saved;
        return;
    }
    char text[TEXT_MAX + 64], line[LINE_MAX_BYTES];
    va_list ap;
    errno = saved; /* for %m */
    va_start(ap, fmt);
    int want = vsnprintf(text, TEXT_MAX, fmt, ap);
    va_end(ap);
    size_t len = want < 0 ? 0 : (size_t)want < TEXT_MAX ? (size_t)want : TEXT_MAX - 1;
    if (want >= TEXT_MAX)
        len += (size_t)snprintf(text + len, 16, "... (cut)");
    if (left_out != 0)
        len += (size_t)snprintf(text + len, sizeof(text) - len, " (%u like this left out)", left_out);
    write_line(line, format_line(line, level, module, text, len));
    errno = saved;
}
