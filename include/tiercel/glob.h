#ifndef TIERCEL_GLOB_H
#define TIERCEL_GLOB_H

#include "tiercel/slice.h"

/* Redis's glob (https://redis.io/commands/keys): * ? [abc] [^a] [a-z] \x. Bounded work:
 * no exponential backtracking on many stars. */
bool glob_match(struct slice pattern, struct slice text, bool nocase);

#endif
