#ifndef TIERCEL_VERSION_H
#define TIERCEL_VERSION_H

#define TIERCEL_VERSION "0.1.0"

/* The Redis release whose replies and error texts are the contract. */
#define TIERCEL_REDIS_VERSION "7.0.15"

#endif
