#ifndef TIERCEL_CMD_HANDLERS_H
#define TIERCEL_CMD_HANDLERS_H

/* The index of each row of tbl/cmd.def in command_table. */
enum command_id {
#define CMD(id, ...) CMDID_##id,
#define CMDX(id, ...) CMDID_##id,
#define CONT(id, ...) CMDID_##id,
#define SUB(container, id, ...) CMDID_##id,
#include "cmd.def"
#undef CMD
#undef CMDX
#undef CONT
#undef SUB
    CMDID_COUNT
};

/* Prototypes of all command handlers, one per row (containers have none). */
struct call;

#define CMD(id, ...) void cmd_##id(struct call *c);
#define CMDX(id, ...) void cmd_##id(struct call *c);
#define CONT(id, ...)
#define SUB(container, id, ...) void cmd_##id(struct call *c);
#include "cmd.def"
#undef CMD
#undef CMDX
#undef CONT
#undef SUB

#endif
