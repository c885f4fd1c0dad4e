/* What verbs that name a VM share. */
#ifndef LODGE_CLI_VM_H
#define LODGE_CLI_VM_H

#include <jansson.h>

#include "cli/cli.h"
#include "cli/client.h"

/* Connects to a running VM. -ENOENT says whether there is none of that name, or it is stopped. */
int vm_connect(const char *name, struct client **client, struct error *err);

/* Ends a running VM: asks the guest, gives it `seconds` (0: does not ask), then ends it in any
 * case, and waits until it is gone. -ENOENT. */
int vm_stop(const char *name, unsigned seconds, struct error *err);

/* Waits, some seconds at most, for a VM that is about to end, as after its guest's own shut-down.
 * False: it runs, or its monitor does not end. */
bool vm_wait_ending(const char *name);

/* Has a running VM keep its state under a name (cmd_snapshot.c), with progress on a terminal;
 * full: without the help of earlier ones. *answer: what it says of it. */
int snapshot_take(const char *vm, const char *name, const char *description, bool full,
                  json_t **answer, struct error *err);

/* The row of -o in a verb's table, and its value. */
#define OUTPUT_OPTION                                                                              \
    { "output", 'o', "text|json", "how to print what there is to say" }
int parse_output(const char *value, bool *json, struct error *err);
/* Prints a value, which becomes its own. */
void print_json(json_t *value);

/*
 * A verb whose operands are names of VMs: does each, goes on after errors. The table has its
 * letters' options; `seconds` (-t), `force` (-f), `attach` (-a) and `json` (-o) are set as given.
 */
struct names_request {
    unsigned seconds;
    bool force, attach, json;
};
struct names_verb {
    const char *usage; /* of the help: all but the options */
    const struct option_spec *options;
    int (*each)(const char *name, struct names_request *request, struct error *err);
    const char *done; /* what -o json calls the state then */
};
int names_verb_run(const struct names_verb *verb, struct names_request *request, int argc,
                   char **argv);

#endif
