/* Secrets: their files, and which settings they are. */
#include <string.h>

#include "tiercel/alloc.h"
#include "tiercel/conf.h"

#include "conf/conf_priv.h"

#define SECRET_MAX_BYTES 65536u

bool conf_is_secret(struct slice name)
{
    int id = conf_find(name);
    return id >= 0 && (conf_rows[conf_target((enum conf_id)id)].flags & CONF_SECRET) != 0;
}

bool conf_secret_read(const char *path, struct buf *out, struct buf *err)
{
    if (!conf_file_read(path, SECRET_MAX_BYTES, out, err))
        return false;
    while (out->len > 0 && (out->ptr[out->len - 1] == '\n' || out->ptr[out->len - 1] == '\r'))
        out->len--;
    return true;
}

enum status conf_reload_secret(const struct conf *cur, const char *name, struct conf **out, struct buf *err)
{
    int id = conf_find(slice_str(name));
    const char *path = id < 0 ? NULL : cur->priv->secret_file[id];
    struct buf text;
    if (path == NULL)
        return ST_NOT_FOUND;
    buf_init(&text, MEM_OTHER);
    err->len = 0;
    enum status st = ST_BAD;
    if (conf_secret_read(path, &text, err)) {
        struct slice pair[2] = {slice_str(name), buf_slice(&text)};
        st = conf_set(cur, 1, pair, out, err);
    }
    if (st == ST_OK) /* conf_set() took it for a value of its own */
        (*out)->priv->secret_file[id] = mem_strdup(MEM_OTHER, path);
    if (text.ptr != NULL)
        explicit_bzero(text.ptr, text.len);
    buf_deinit(&text);
    return st;
}

const char *conf_token_fault(const char *token)
{
    size_t len = strlen(token);
    if (len > HTTP_TOKEN_MAX)
        return "http-token is longer than 1024 bytes";
    for (size_t i = 0; i < len; i++)
        if (token[i] <= ' ' || token[i] > '~')
            return "http-token may have visible ASCII characters only, and no spaces";
    return NULL;
}
