/* A VM that goes on from another VM's snapshot (machine/clone.h), as a run_config. */
#ifndef LODGE_CLI_FROM_H
#define LODGE_CLI_FROM_H

#include "cli/run.h"
#include "machine/clone.h"

/*
 * Makes the config that of the source's VM as its snapshot has it, but for what is another VM's
 * own: its name, ports, file of UEFI variables. What the config holds of these stays. The source's
 * options are cut up for it and must outlive it. -ENOTSUP: such a VM has no clones.
 */
int from_configure(struct run_config *config, const struct clone_source *source, struct error *err);

/* Of a VM's kept options, those that are its alone. */
void from_drop_options(json_t *options);

/*
 * For a process that is to be a clone's monitor, before it takes much memory: many of them are to
 * fit. No huge pages, of which one touched byte costs 2 MiB, and what is freed goes back.
 */
void from_be_frugal(void);

/* `lodge run --from`: all of it, in the foreground. Returns the exit code. */
int from_run(struct run_config *config, const char *text);

#endif
