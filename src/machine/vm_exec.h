/*
 * Programs that clients of the control socket run in the guest: `exec` and
 * what goes with it (docs/control.md). A program ends with the connection
 * that began it.
 *
 * The loop's thread.
 */
#ifndef LODGE_MACHINE_VM_EXEC_H
#define LODGE_MACHINE_VM_EXEC_H

#include "machine/agent.h"
#include "machine/control.h"

enum { VM_EXEC_MAX = 32 }; /* programs at a time: as many as the agent takes */

struct vm_exec;

/* tell: makes an event of a program's end; data becomes its own. */
int vm_exec_create(void (*tell)(void *context, const char *event, json_t *data), void *context,
                   struct vm_exec **exec, struct error *err);
void vm_exec_destroy(struct vm_exec *exec); /* before the agent */

/* The commands. agent: NULL, or one that is not ready, makes them fail. Each answers the call. */
void vm_exec_start(struct vm_exec *exec, struct agent *agent, struct control_call *call,
                   const json_t *arguments);
void vm_exec_resize(struct vm_exec *exec, struct control_call *call, const json_t *arguments);
void vm_exec_signal(struct vm_exec *exec, struct control_call *call, const json_t *arguments);

/* A client went away: its programs are ended. */
void vm_exec_gone(struct vm_exec *exec, unsigned long client);

#endif
