#ifndef TIERCEL_SHA1_H
#define TIERCEL_SHA1_H

#include "tiercel/slice.h"

/* SHA-1 (FIPS 180-4), for the names of scripts; not for anything that must be secure. `out`: 40 hexadecimal
 * digits and a NUL. Any thread. */
void sha1_hex(struct slice data, char out[41]);

#endif
