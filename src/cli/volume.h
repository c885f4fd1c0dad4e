/* --volume HOST:GUEST[:ro]: a directory of the host that the guest has at a path of its own. */
#ifndef LODGE_CLI_VOLUME_H
#define LODGE_CLI_VOLUME_H

#include "machine/config.h"

/* How many bytes of the value are the host's path; 0: there is none. */
size_t volume_host_length(const char *value);

/* Adds one to the machine. value must last and is cut up. The directory must be there, and apart
 * from the volumes before it in the guest. */
int volume_add(struct machine_config *machine, char *value, struct error *err);

#endif
