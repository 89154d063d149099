#include "tiercel/digest.h"

#include <openssl/sha.h>

static void hex(const unsigned char *raw, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[raw[i] >> 4];
        out[2 * i + 1] = digits[raw[i] & 15];
    }
    out[2 * n] = '\0';
}

void sha1_raw(struct slice bytes, unsigned char out[SHA1_BYTES])
{
    SHA1((const unsigned char *)bytes.ptr, bytes.len, out);
}

void sha1_hex(struct slice text, char out[41])
{
    unsigned char raw[SHA_DIGEST_LENGTH];

    SHA1((const unsigned char *)text.ptr, text.len, raw);
    hex(raw, sizeof(raw), out);
}

void sha256_hex(struct slice text, char out[65])
{
    unsigned char raw[SHA256_DIGEST_LENGTH];

    SHA256((const unsigned char *)text.ptr, text.len, raw);
    hex(raw, sizeof(raw), out);
}
