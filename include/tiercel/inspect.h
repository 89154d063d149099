#ifndef TIERCEL_INSPECT_H
#define TIERCEL_INSPECT_H

#include <stdbool.h>
#include <stdint.h>

#include "tiercel/disk.h"
#include "tiercel/mbox.h"
#include "tiercel/object.h"
#include "tiercel/worker.h"

/* Where a key is, and how it is kept there. To look is not to use: nothing is promoted, touched
 * or counted as a hit, and the disk's second chance is not given for it. */

/* The states of tier.h, seen from memory; with INSPECT_ABSENT the key may be on disk. */
enum inspect_state {
    INSPECT_ABSENT,
    INSPECT_NEGATIVE,
    INSPECT_FETCHING,
    INSPECT_SUSPECT,
    INSPECT_STALE, /* a copy past the ttl of its rule */
    INSPECT_RESIDENT,
    INSPECT_DEMOTING
};

/* A copy of the value in one tier. */
struct inspect_copy {
    bool present;
    bool upstream; /* of an upstream's key */
    bool packed;
    enum obj_type type;
    const char *encoding; /* static; as OBJECT ENCODING says */
    int64_t plain_len, stored_len;
    int64_t expire_ms; /* 0 = none */
};

struct inspection {
    /* The caller's; `name` must live until done(). done() runs on the worker's thread. */
    unsigned db;
    struct slice name;
    void (*done)(struct inspection *in);
    /* What was found. */
    enum inspect_state state;
    struct inspect_copy memory, disk;
    int64_t memory_bytes, idle_ms;
    int freq;            /* idle_ms and freq: that one which the eviction policy knows; else -1 */
    bool dirty, pinned;  /* dirty: only memory has this value */
    uint32_t block;      /* of the newest record, committed or pending; 0 = none */
    bool committed;      /* ... and it is on disk */
    enum status disk_st; /* of reading it: ST_OK, ST_CORRUPT, ST_IO; ST_NOT_FOUND: it went meanwhile */
    bool disk_suspect;   /* it is a copy that nobody vouches for */
    uint32_t disk_written_s;
    /* Its own. */
    struct mbox_msg msg;
    struct disk_read rd;
    struct worker *w;
    struct key key;
    int tries;
};

/* The worker's thread, no lock held. ST_OK: all is known; ST_PENDING: a record is being read,
 * and done() will be called, exactly once, whatever became of the client meanwhile. */
enum status tier_inspect(struct worker *w, struct inspection *in);

#endif
