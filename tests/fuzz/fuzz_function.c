/* What FUNCTION RESTORE is given: garbage must be refused, and each source that it holds is looked at as one that is
 * loaded is, before Lua sees it. */
#include <stdint.h>
#include <stdlib.h>

#include "cmd/function_priv.h"
#include "cmd/script_priv.h"
#include "tiercel/rdb.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool use(void *arg, struct slice source)
{
    struct buf name, err;
    size_t skip;
    int *n = arg;

    buf_init(&name, MEM_OTHER);
    buf_init(&err, MEM_OTHER);
    if (function_header(source, &name, &skip, &err))
        CHECK(skip < source.len && function_name_ok(buf_slice(&name)));
    else
        CHECK(err.len > 0);
    (void)library_is_declared(source);
    buf_deinit(&name);
    buf_deinit(&err);
    return ++*n < 100;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf payload, err;
    int n = 0;

    buf_init(&payload, MEM_OTHER);
    buf_init(&err, MEM_OTHER);
    buf_append(&payload, data, size);
    (void)use(&n, SLICE((const char *)data, size));
    rdb_put_foot(&payload, 0);         /* or nothing would get past the checksum */
    char *exact = malloc(payload.len); /* so that reading on is seen */
    memcpy(exact, payload.ptr, payload.len);
    (void)function_undump(SLICE(exact, payload.len), use, &n, &err);
    free(exact);
    buf_deinit(&payload);
    buf_deinit(&err);
    return 0;
}
