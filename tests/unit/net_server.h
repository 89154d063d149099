#ifndef TIERCEL_TEST_NET_SERVER_H
#define TIERCEL_TEST_NET_SERVER_H

/* A server for the tests of the net layer: real workers and sockets, and below them a session
 * layer that only knows
 *   ECHO x    the argument              LEN x     its length
 *   BIG n     n bytes, by reference     LATER x   the argument, some turns later; what follows waits
 *   BLOCK     never answers             CLASS     pub/sub's output limits from now on
 *   AUTH      authenticates             QUIT      +OK, and closes
 *   KEEP      sets NO_EVICT             WHERE     the worker's number
 * and PING for everything else. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiercel/conf.h"
#include "tiercel/net.h"

#define TEST_QUEUE_MAX 64

struct test_server;

/* What the workers saw, all together. */
extern _Atomic size_t test_max_out;      /* most output of one session when a request ran */
extern _Atomic int test_sessions;        /* alive */
extern _Atomic uint64_t test_cpu_turns;  /* loop turns, roughly */

struct conf *test_conf(void); /* defaults, with a free port on 127.0.0.1; free() it after the server ended */
struct test_server *test_server_start(struct conf *conf, int workers);
void test_server_stop(struct test_server *srv, int64_t drain_ms);
/* Only the stop is asked for; test_server_stop() waits for it. */
void test_server_ask_stop(struct test_server *srv, int64_t drain_ms);

#endif
