/* Kernel files: the first byte chooses the protocol, the rest is the file. */
#include <stdlib.h>

#include "machine/boot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct memory *memory;
    if (memory == NULL &&
        (memory_create(&memory, NULL) < 0 || memory_add_ram(memory, "ram", 0, MIB(32), NULL) < 0))
        abort();
    if (size == 0)
        return 0;
    struct x86_state state = {0};
    struct error err = {0};
    boot_load_bytes((struct boot_bytes){data + 1, size - 1}, (enum boot_protocol)(data[0] % 4),
                    memory, &state, &err);
    return 0;
}
