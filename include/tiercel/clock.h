#ifndef TIERCEL_CLOCK_H
#define TIERCEL_CLOCK_H

#include <stdint.h>

/* Any thread. Wall time for expiry and for what clients see; monotonic for durations. */
int64_t clock_wall_ms(void);
int64_t clock_wall_us(void);
int64_t clock_mono_us(void);
int64_t clock_mono_ms(void);

#endif
