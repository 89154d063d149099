#ifndef TIERCEL_TYPE_SET_H
#define TIERCEL_TYPE_SET_H

#include "tiercel/object.h"

void set_each(const struct object *o, void (*fn)(void *arg, struct slice member), void *arg);
bool set_has(const struct object *o, struct slice member);

#endif
