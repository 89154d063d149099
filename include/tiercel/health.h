#ifndef TIERCEL_HEALTH_H
#define TIERCEL_HEALTH_H

#include <stdbool.h>

/* `tiercel --health [settings]` and `tiercel --ready [settings]`: a container's health check without curl or a shell. They ask a server
 * on this machine for /healthz or /readyz, at the address that the same settings (file, environment, options) give the server. */

/* Whether the command line asks for that. */
bool health_is_asked(int argc, char *const *argv);

/* Asks once, within three seconds. 0: the server answered that it is well. 1: it did not, and standard error has one line
 * that says why (for --ready what /readyz says). With no settings on the command line those of process 1 are taken, if that
 * is this program: in a container it is the server. Without an HTTP port --health sends a PING instead, for which any
 * reply will do. Before there are threads; the process is to end then. */
int health_run(int argc, char **argv, char **envp);

#endif
