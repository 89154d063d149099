/* Settings, before they have any effect. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "main/main_priv.h"
#include "tiercel/disk.h"
#include "tiercel/net.h"
#include "tiercel/upstream.h"

#define MEMORY_RESERVED ((int64_t)16 << 20)

int64_t settings_usable_memory(int64_t bytes)
{
    return bytes > 2 * MEMORY_RESERVED ? bytes - MEMORY_RESERVED : bytes / 2;
}

static bool check_upstream(const struct conf *c, char err[256])
{
    struct upstream_options opt = {0};
    char why[256];

    if (!c->upstream[0]) {
        if (c->client_auth == CLIENT_AUTH_UPSTREAM)
            snprintf(err, 256, "client-auth upstream: there is no upstream");
        return c->client_auth != CLIENT_AUTH_UPSTREAM;
    }
    if (upstream_parse_url(c->upstream, &opt, why) != ST_OK) {
        snprintf(err, 256, "upstream: %.200s", why);
        return false;
    }
    if (upstream_check_prefixes(c->coherence_prefixes, why) != ST_OK) {
        snprintf(err, 256, "coherence-prefixes: %.200s", why);
        return false;
    }
    if (strlen(c->upstream_auth_file) >= sizeof(opt.auth_file)) {
        snprintf(err, 256, "upstream-auth-file: too long a path");
        return false;
    }
    if (c->upstream_auth_file[0] && access(c->upstream_auth_file, R_OK) != 0) {
        snprintf(err, 256, "upstream-auth-file %.150s cannot be read: %s", c->upstream_auth_file, strerror(errno));
        return false;
    }
    return true;
}

void settings_parent(const char *dir, char out[PATH_MAX])
{
    size_t len = strlen(dir);

    while (len > 1 && dir[len - 1] == '/')
        len--;
    while (len > 0 && dir[len - 1] != '/')
        len--;
    snprintf(out, PATH_MAX, "%.*s", len ? (int)len : 1, len ? dir : ".");
}

/* The directory itself, or where it would be made. */
static bool check_dir(const struct conf *c, char err[256])
{
    char parent[PATH_MAX];
    struct stat st;

    if (strlen(c->dir) >= sizeof(parent)) {
        snprintf(err, 256, "dir: too long a path");
        return false;
    }
    if (stat(c->dir, &st) == 0) {
        if (!S_ISDIR(st.st_mode))
            snprintf(err, 256, "dir %.180s is not a directory", c->dir);
        else if (access(c->dir, R_OK | W_OK | X_OK) != 0)
            snprintf(err, 256, "dir %.180s is not writable: %s", c->dir, strerror(errno));
        else if (disk_fs_of(c->dir) == DISK_FS_NETWORK)
            snprintf(err, 256, "dir %.120s is on a network file system, whose memory maps and locks cannot be trusted",
                     c->dir);
        else
            return true;
        return false;
    }
    if (errno != ENOENT) {
        snprintf(err, 256, "dir %.180s: %s", c->dir, strerror(errno));
        return false;
    }
    settings_parent(c->dir, parent);
    if (access(parent, W_OK | X_OK) == 0)
        return true;
    snprintf(err, 256, "dir %.180s cannot be made: %s", c->dir, strerror(errno));
    return false;
}

bool settings_check(const struct conf *c, char err[256])
{
    if (c->port != 0 && c->port == c->tls_port) {
        snprintf(err, 256, "port and tls-port are both %d", (int)c->port);
        return false;
    }
    if (!check_upstream(c, err))
        return false;
    if (net_check_tls(c, err) != ST_OK)
        return false;
    return !c->disk || check_dir(c, err);
}
