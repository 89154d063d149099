#ifndef TIERCEL_DIGEST_H
#define TIERCEL_DIGEST_H

#include "tiercel/slice.h"

/* Digests in lower-case hexadecimal, and a NUL. Any thread. */
void sha1_hex(struct slice text, char out[41]);   /* names of scripts, and redis.sha1hex() */
void sha256_hex(struct slice text, char out[65]); /* passwords */

#endif
