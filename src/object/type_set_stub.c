#include "tiercel/type_set.h"

/* Until sets are there, nothing is one. */

void set_each(const struct object *o, void (*fn)(void *arg, struct slice member), void *arg)
{
    (void)o;
    (void)fn;
    (void)arg;
}

bool set_has(const struct object *o, struct slice member)
{
    (void)o;
    (void)member;
    return false;
}
