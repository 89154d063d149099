#ifndef TIERCEL_STATUS_H
#define TIERCEL_STATUS_H

/* What a function that can fail answers. The rows are in tbl/status.def. */
enum status {
#define STATUS(name, text) ST_##name,
#include "status.def"
#undef STATUS
};

/* A short English text for logs. Any thread; static storage. */
const char *status_text(enum status st);

#endif
