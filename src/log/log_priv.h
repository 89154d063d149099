#ifndef TIERCEL_LOG_PRIV_H
#define TIERCEL_LOG_PRIV_H

#include <stddef.h>

#include "tiercel/log.h"

/* log.c: the descriptor that lines go to, whatever file is under it; the path of that file, false: standard output. */
int log_fd(void);
bool log_path(char *to, size_t size);

/* rotate.c: a descriptor that is about to become the log's; bytes went to the log. */
void log_rotate_opened(int fd, bool is_file);
void log_rotate_wrote(size_t bytes);

#endif
