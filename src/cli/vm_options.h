/*
 * The options of a VM that lasts, between command line, config.json
 * (machine/vm_store.h) and struct run_config: {"memory": "1G", "disk": ["a",
 * "b,readonly"], "verify": true}. Names and values are those of `lodge run`.
 */
#ifndef LODGE_CLI_VM_OPTIONS_H
#define LODGE_CLI_VM_OPTIONS_H

#include <jansson.h>

#include "cli/options.h"
#include "cli/run.h"

/* Adds an option as given; a path in it is made absolute and must be there. */
int vm_options_add(json_t *options, const struct option_spec *spec, const char *value,
                   struct error *err);

/* Fills config. The strings are those of the options, which must outlive it and may be cut up. */
int vm_options_apply(json_t *options, struct run_config *config, struct error *err);

#endif
