/*
 * A machine that loads what the input says: the first byte chooses between
 * the input as it is and a good state with bytes changed (where: 3 bytes, to
 * what: 1), whose sums are made right again, so that contents are reached.
 * Refused or not, the machine can be saved after it, and ended.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "machine/machine_state.h"
#include "machine/private.h"

enum { HEADER = 16, FIXED = 12, FIRMWARE_BYTES = 128 << 10, CHANGE = 4 };

static struct machine *machine;
static struct state_buffer good;

static void must(bool good_so_far) {
    if (!good_so_far)
        __builtin_trap();
}

static void make_machine(void) {
    static uint8_t image[FIRMWARE_BYTES];
    char path[] = "/tmp/lodge-fuzz-XXXXXX";
    struct machine_config config = {.engine = ENGINE_SOFT,
                                    .memory = MIB(16),
                                    .memory_max = MIB(64),
                                    .vcpus = 1,
                                    .firmware = FIRMWARE_FILE,
                                    .firmware_file = path,
                                    .vsock = true,
                                    .packed_rings = true};
    int fd = mkstemp(path);
    must(fd >= 0 && write(fd, image, sizeof image) == (ssize_t)sizeof image);
    close(fd);
    must(loop_create(&config.loop, NULL) == 0);
    must(machine_create(&config, NULL, &machine, NULL) == 0);
    unlink(path);
    vm_clock_pause(machine_clock(machine));
    must(machine_save_state(machine, &good, NULL) == 0);
    log_set_level(LOG_ERROR);
}

static void mend_sums(uint8_t *bytes, size_t length) {
    for (size_t at = HEADER; at < length;) {
        uint8_t *fixed = bytes + at + 1 + bytes[at];
        size_t body = (size_t)load_le64(fixed);
        store_le32(fixed + 8, crc32c(0, fixed + FIXED, body));
        at = (size_t)(fixed - bytes) + FIXED + body;
    }
}

/* Only contents are changed: what leads to them stays. */
static bool is_content(size_t where) {
    for (size_t at = HEADER; at < good.length;) {
        const uint8_t *fixed = good.data + at + 1 + good.data[at];
        size_t begin = (size_t)(fixed - good.data) + FIXED, body = (size_t)load_le64(fixed);
        if (where >= begin && where - begin < body)
            return true;
        at = begin + body;
    }
    return false;
}

static void load_changed(const uint8_t *data, size_t size) {
    uint8_t *bytes = malloc(good.length);
    must(bytes != NULL);
    memcpy(bytes, good.data, good.length);
    for (; size >= CHANGE; data += CHANGE, size -= CHANGE) {
        size_t where = (size_t)load_le(data, 3) % good.length;
        if (is_content(where))
            bytes[where] = data[3];
    }
    mend_sums(bytes, good.length);
    machine_load_state(machine, bytes, good.length, NULL);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct state_buffer again = {0};
    struct vcpu_exit exit;
    if (machine == NULL)
        make_machine();
    if (size == 0)
        return 0;
    must(machine_load_state(machine, good.data, good.length, NULL) == 0);
    if (data[0] & 1)
        load_changed(data + 1, size - 1);
    else
        machine_load_state(machine, data + 1, size - 1, NULL);
    vcpu_kick(machine->vcpus[0].vcpu);
    vcpu_run(machine->vcpus[0].vcpu, &exit);
    must(machine_save_state(machine, &again, NULL) == 0);
    state_buffer_free(&again);
    return 0;
}
