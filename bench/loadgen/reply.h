#ifndef LOADGEN_REPLY_H
#define LOADGEN_REPLY_H

#include <stdint.h>

#include "tiercel/slice.h"

/* Replies of a server, taken apart as their bytes come; nothing is kept but a line that is cut in two. */
#define REPLY_LINE_MAX 256 /* of a longer line (an error's text) the rest is skipped */

enum reply_kind { REPLY_STATUS, REPLY_ERROR, REPLY_INTEGER, REPLY_BULK, REPLY_NIL, REPLY_ARRAY };

struct reply_event {
    enum reply_kind kind;
    struct slice data; /* a line's text, or the part of a bulk that is here */
    bool last;         /* the value is complete: false for a bulk of which more follows */
    bool end;          /* and so is the reply */
};

struct reply_parser {
    uint64_t items;      /* values of the reply under way that are still to come */
    uint64_t bulk_bytes; /* of the bulk under way, still to come */
    bool in_bulk;
    unsigned crlf; /* bytes of the line end behind a bulk that are still to come */
    unsigned line_len;
    char line[REPLY_LINE_MAX];
};

enum reply_rc { REPLY_OK, REPLY_MORE, REPLY_BAD };

/* Takes the next event off `in`. `ev` refers to `in` or to the parser, until the next call.
 * MORE: all of `in` was taken and there is no event. BAD: this is no RESP. */
enum reply_rc reply_parse(struct reply_parser *p, struct slice *in, struct reply_event *ev);

#endif
