#include "machine/vm_disk.h"

#include <stdio.h>
#include <string.h>

#include "block/block.h"
#include "machine/private.h"

/* "disk0" and so on, as everywhere. */
static struct block *find(struct machine *machine, const char *name) {
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        char this_name[16];
        snprintf(this_name, sizeof this_name, "disk%u", i);
        if (strcmp(this_name, name) == 0)
            return machine->blocks[i];
    }
    return NULL;
}

void vm_disk_resize(struct machine *machine, struct control_call *call, const json_t *arguments) {
    const char *name = json_string_value(json_object_get(arguments, "disk"));
    json_int_t size = json_integer_value(json_object_get(arguments, "size"));
    struct block *block = name != NULL ? find(machine, name) : NULL;
    struct error err = {0};
    if (block == NULL) {
        error_set(&err, -ENOENT, "there is no disk '%.32s'", name != NULL ? name : "");
        control_fail(call, "BadArgument", err.text);
        return;
    }
    uint64_t wanted = size > 0 ? (uint64_t)size : 0;
    if (json_is_true(json_object_get(arguments, "more")) &&
        __builtin_add_overflow(wanted, block->info.size, &wanted))
        wanted = UINT64_MAX;
    if (block_resize(block, wanted, &err) < 0)
        control_fail(call, "GenericError", err.text);
    else
        control_return(call, json_pack("{s:I}", "size", (json_int_t)block->info.size));
}
