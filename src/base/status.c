#include "tiercel/status.h"

const char *status_text(enum status st)
{
    switch (st) {
#define STATUS(name, text) \
    case ST_##name:        \
        return text;
#include "status.def"
#undef STATUS
    }
    return "unknown status";
}
