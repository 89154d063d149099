/* notify-keyspace-events: letters, and the classes of events that they stand for. */
#include "conf/conf_priv.h"

static const char letters[] = "g$lshzxetdnKEm"; /* in the order of enum conf_notify */

#define CLASSES (sizeof(letters) - 1)
#define ALL (NOTIFY_NEW - 1u) /* what 'A' stands for: those before it */

bool conf_notify_parse(const char *text, unsigned *classes)
{
    *classes = 0;
    for (; *text; text++) {
        const char *at = strchr(letters, *text);
        if (*text == 'A')
            *classes |= ALL;
        else if (at)
            *classes |= 1u << (at - letters);
        else
            return false;
    }
    return true;
}

const char *conf_check_notify(struct conf *c)
{
    char text[CLASSES + 1];
    unsigned classes;
    size_t n = 0;

    if (!conf_notify_parse(c->notify_keyspace_events, &classes))
        return "Invalid event class character. Use 'Ag$lshzxeKEtmdn'.";
    if ((classes & ALL) == ALL) {
        text[n++] = 'A';
        classes &= ~ALL;
    }
    for (size_t i = 0; i < CLASSES; i++)
        if (classes & 1u << i)
            text[n++] = letters[i];
    conf_string_set(&c->notify_keyspace_events, text, n);
    return NULL;
}
