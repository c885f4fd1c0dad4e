/*
 * A VM that leaves, by the control socket (docs/control.md): `migrate`,
 * `migrate-cancel`, `query-migrate` and the event `MIGRATION_PROGRESS`. The
 * loop's thread; the work is a thread's of its own, which may wait.
 */
#ifndef LODGE_MACHINE_VM_MIGRATION_H
#define LODGE_MACHINE_VM_MIGRATION_H

#include "machine/agent.h"
#include "machine/control.h"

struct machine;
struct migration_target;
struct vm_migration;

struct vm_migration_config {
    struct machine *machine;
    const char *name, *directory; /* of a VM that lasts (vm_store.h); borrowed */
    /* Sends an event, whose data becomes its own. */
    void (*tell)(void *context, const char *event, json_t *data);
    /* It runs elsewhere now: this monitor is to end. */
    void (*gone)(void *context);
    void *context;
    /* It has come itself, and some of its memory may still; NULL: it has not. Borrowed. */
    const struct migration_target *coming;
};
int vm_migration_create(const struct vm_migration_config *config, struct vm_migration **migration,
                        struct error *err);
/* Ends what is under way: the VM is not moved. The loop has stopped. NULL is fine. */
void vm_migration_destroy(struct vm_migration *migration);

/* Answers when the VM runs elsewhere, or does not. agent: NULL when none has answered. */
void vm_migration_start(struct vm_migration *migration, const struct agent *agent,
                        struct control_call *call, const json_t *arguments);
/* Goes on with one that was interrupted in post-copy; answers as vm_migration_start. arguments:
 * what of the address has changed. */
void vm_migration_resume(struct vm_migration *migration, struct control_call *call,
                         const json_t *arguments);
void vm_migration_cancel(struct vm_migration *migration, struct control_call *call);
void vm_migration_query(struct vm_migration *migration, struct control_call *call);
/* A client has gone; its move is cancelled. */
void vm_migration_client_gone(struct vm_migration *migration, unsigned long client);

/* Some things cannot be done meanwhile: it moves, or its memory is still coming. NULL: no. */
bool vm_migration_is_busy(const struct vm_migration *migration);
/* It runs elsewhere, or may: the machine stays frozen. `why` says so. */
bool vm_migration_is_away(const struct vm_migration *migration, char *why, size_t size);
/*
 * It may run elsewhere, nobody could tell. take_back: the other side is asked once more; where it
 * says that it does not, it runs here again. force: where nobody answers, too: the user says that
 * it does not run there. Otherwise, and when its disks are in use, the call's answer says so.
 */
bool vm_migration_is_doubtful(const struct vm_migration *migration);
void vm_migration_take_back(struct vm_migration *migration, struct control_call *call, bool force);
/* Memory that it waits for does not come at the moment; empty: all is well. */
void vm_migration_why(const struct vm_migration *migration, char *why, size_t size);

#endif
