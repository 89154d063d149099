#ifndef TIERCEL_DIGEST_H
#define TIERCEL_DIGEST_H

#include "tiercel/slice.h"

#define SHA1_BYTES 20
void sha1_raw(struct slice bytes, unsigned char out[SHA1_BYTES]); /* which may be a part of `bytes`. Any thread. */
/* Digests in lower-case hexadecimal, and a NUL. Any thread. */
void sha1_hex(struct slice text, char out[41]);   /* names of scripts, and redis.sha1hex() */
void sha256_hex(struct slice text, char out[65]); /* passwords */

#endif
