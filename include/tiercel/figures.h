#ifndef TIERCEL_FIGURES_H
#define TIERCEL_FIGURES_H

#include <stdbool.h>

#include "tiercel/buf.h"

/* What /metrics and /readyz say; callbacks for http.h, arg = struct cmd *. Any thread, while the
 * workers exist. */
void figures_metrics(void *arg, struct buf *out);
bool figures_ready(void *arg, bool detail, struct buf *json);

#endif
