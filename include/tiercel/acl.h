#ifndef TIERCEL_ACL_H
#define TIERCEL_ACL_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/conf.h"
#include "tiercel/slice.h"

/* Users and what they may do (https://redis.io/docs/management/security/acl).
 *
 * A user is an immutable, counted snapshot. The table of names is behind one mutex, which is held for
 * moments and under which nothing else is locked; a change puts a new snapshot there and raises
 * `generation`. A session holds the snapshot that it saw last, and looks again when the generation is
 * another: so a client who may do everything costs a load and a test of a flag. */

struct acl;
struct acl_user;
struct session;
struct call;
struct command;

/* At start, one thread. The default user is as requirepass says; then come the users of the configuration's
 * lines, or of the aclfile. false: err says why not. */
struct acl *acl_create(const struct conf *conf);
bool acl_load_start(struct acl *a, const struct conf *conf, char err[256]);
/* It counts there from now on, where dispatch looks. */
void acl_share_generation(struct acl *a, _Atomic uint64_t *generation);
void acl_destroy(struct acl *a);

/* ---- any thread ---- */

/* Is the default user without a password? And may a client that shows none be that user? */
bool acl_default_nopass(const struct acl *a);
bool acl_default_open(const struct acl *a);

/* CONFIG SET requirepass: "" = none. */
void acl_set_requirepass(struct acl *a, struct slice password);
/* For CONFIG REWRITE: a line "user ..." for each, sorted by name. Nothing where an aclfile has them. */
void acl_config_lines(struct acl *a, const struct conf *conf, struct buf *out);

/* ---- a session; its worker's thread ---- */

void acl_session_start(struct session *s); /* a new client, or RESET: the default user's */
void acl_session_end(struct session *s);
struct slice acl_session_user(const struct session *s);

#endif
