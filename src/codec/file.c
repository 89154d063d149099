/* A file packed into another one, piece by piece. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "tiercel/alloc.h"
#include "tiercel/check.h"
#include "tiercel/codec.h"

#define PIECE ((size_t)64 << 10)
#define LEVEL 1       /* logs shrink to a tenth by it; more costs memory that small machines lack */
#define WINDOW_LOG 18 /* 256 KB */

static bool write_all(int fd, const char *ptr, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, ptr, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        ptr += n;
        len -= (size_t)n;
    }
    return true;
}

static bool pack_fd(ZSTD_CCtx *ctx, int in, int out, char *plain, char *packed)
{
    for (;;) {
        ssize_t n = read(in, plain, PIECE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        ZSTD_inBuffer from = {plain, (size_t)n, 0};
        size_t left;
        do {
            ZSTD_outBuffer to = {packed, PIECE, 0};
            left = ZSTD_compressStream2(ctx, &to, &from, n == 0 ? ZSTD_e_end : ZSTD_e_continue);
            if (ZSTD_isError(left)) {
                errno = EIO;
                return false;
            }
            if (!write_all(out, packed, to.pos))
                return false;
        } while (from.pos < from.size || (n == 0 && left != 0));
        if (n == 0)
            return fsync(out) == 0;
    }
}

bool codec_pack_file(const char *from, const char *to)
{
    struct stat st;
    int in = open(from, O_RDONLY | O_CLOEXEC | O_NOCTTY), out = -1;

    if (in >= 0 && fstat(in, &st) == 0)
        out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, st.st_mode & 0777);
    bool ok = out >= 0;
    if (ok) {
        ZSTD_CCtx *ctx = ZSTD_createCCtx();
        char *plain = mem_alloc(MEM_OTHER, PIECE), *packed = mem_alloc(MEM_OTHER, PIECE);
        CHECK(ctx != NULL);
        ZSTD_CCtx_setParameter(ctx, ZSTD_c_compressionLevel, LEVEL);
        ZSTD_CCtx_setParameter(ctx, ZSTD_c_windowLog, WINDOW_LOG);
        ZSTD_CCtx_setParameter(ctx, ZSTD_c_checksumFlag, 1);
        ok = pack_fd(ctx, in, out, plain, packed);
        mem_free(MEM_OTHER, plain);
        mem_free(MEM_OTHER, packed);
        ZSTD_freeCCtx(ctx);
    }
    int why = errno;
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    errno = why;
    return ok;
}
