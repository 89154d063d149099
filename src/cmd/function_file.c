/* All libraries as one payload, which is Redis's: of each a byte that says so and its source, then what DUMP's values
 * end with. The file holds nothing else. */
#include <errno.h>

#include "tiercel/conf.h"
#include "tiercel/rdb.h"

#include "cmd/function_priv.h"

#define OP_FUNCTION 245
#define OP_FUNCTION_EARLY 246 /* of release candidates of Redis 7.0 */
#define FILE_BYTES_MAX (2 * LIBRARIES_BYTES_MAX)

void function_dump(const struct function_set *set, struct buf *out)
{
    size_t start = out->len;

    for (int i = 0; i < set->nlibs; i++) {
        buf_byte(out, (char)OP_FUNCTION);
        rdb_put_string(out, set->lib[i]->source);
    }
    rdb_put_foot(out, start);
}

bool function_undump(struct slice payload, bool (*fn)(void *arg, struct slice source), void *arg, struct buf *err)
{
    struct slice body, source;
    struct buf text;
    bool ok = true;

    if (!rdb_undump(payload, &body)) {
        buf_printf(err, "DUMP payload version or checksum are wrong");
        return false;
    }
    buf_init(&text, MEM_OTHER);
    struct rdb_reader in = {body.ptr, body.ptr + body.len, &text, NULL};
    while (ok && rdb_left(&in) > 0) {
        int op = (unsigned char)*in.ptr++;
        if (op == OP_FUNCTION && rdb_get_string(&in, &source)) {
            ok = fn(arg, source);
            continue;
        }
        buf_printf(err, "%s",
                   op == OP_FUNCTION         ? "Failed loading library payload"
                   : op == OP_FUNCTION_EARLY ? "Pre-GA function format not supported"
                                             : "given type is not a function");
        ok = false;
    }
    buf_deinit(&text);
    return ok;
}

/* ---- the file ---- */

bool function_file_write(const char *path, const struct function_set *set, struct buf *err)
{
    struct buf payload;

    buf_init(&payload, MEM_OTHER);
    function_dump(set, &payload);
    bool ok = conf_file_replace(path, buf_slice(&payload)) == ST_OK;
    if (!ok)
        buf_printf(err, "the functions cannot be written to their file: %s", strerror(errno));
    buf_deinit(&payload);
    return ok;
}

enum status function_file_read(const char *path, struct buf *out, struct buf *err)
{
    struct buf why;

    buf_init(&why, MEM_OTHER);
    bool ok = conf_file_read(path, FILE_BYTES_MAX, out, &why);
    int error = errno;
    buf_deinit(&why);
    if (ok)
        return ST_OK;
    if (error == ENOENT)
        return ST_NOT_FOUND;
    buf_printf(err, "it cannot be read: %s", strerror(error));
    return ST_IO;
}
