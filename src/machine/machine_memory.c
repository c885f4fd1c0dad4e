/* How much memory the guest has: less than at its start by the balloon, more by plugging in. */
#include "base/bytes.h"
#include "machine/layout.h"
#include "machine/private.h"
#include "virtio/balloon.h"
#include "virtio/mem.h"

struct machine_range machine_plug_range(const struct machine_config *config) {
    uint64_t high = config->memory > LAYOUT_LOW_RAM_END ? config->memory - LAYOUT_LOW_RAM_END : 0;
    if (config->memory_max <= config->memory)
        return (struct machine_range){0, 0};
    return (struct machine_range){round_up(LAYOUT_HIGH_RAM_BASE + high, GIB(1)),
                                  round_up(config->memory_max - config->memory, GIB(1))};
}

static uint64_t most(const struct machine_config *config) {
    return config->memory_max > config->memory ? config->memory_max : config->memory;
}

static int check_size(const struct machine *machine, uint64_t bytes, struct error *err) {
    const struct machine_config *config = &machine->config;
    if (bytes < MACHINE_MEMORY_MIN)
        return error_set(err, -EINVAL, "a guest needs %llu MiB or more",
                         (unsigned long long)(MACHINE_MEMORY_MIN >> 20));
    if (bytes > most(config))
        return error_set(
            err, -EINVAL, "it has room for %llu MiB; --memory %lluM,max=%lluM would make more",
            (unsigned long long)(most(config) >> 20), (unsigned long long)(config->memory >> 20),
            (unsigned long long)(bytes >> 20));
    return 0;
}

static int check_drivers(const struct machine *machine, uint64_t bytes, struct error *err) {
    struct machine_memory now;
    machine_get_memory(machine, &now);
    if (bytes < machine->config.memory && !now.balloon_driver)
        return error_set(err, -ENODEV,
                         "the guest cannot give memory up: its kernel has not loaded "
                         "virtio_balloon");
    if (bytes > machine->config.memory && !now.mem_driver)
        return error_set(err, -ENODEV,
                         "the guest cannot take more memory: its kernel has not loaded virtio_mem");
    return 0;
}

int machine_set_memory(struct machine *machine, uint64_t *bytes, struct error *err) {
    uint64_t base = machine->config.memory, more = 0, less = 0;
    int result = check_size(machine, *bytes, err);
    if (result == 0)
        result = check_drivers(machine, *bytes, err);
    if (result < 0)
        return result;
    if (*bytes > base)
        more = round_down(*bytes - base, VIRTIO_MEM_BLOCK);
    else
        less = round_up(base - *bytes, PAGE_SIZE);
    virtio_balloon_set_target(machine->balloon, less);
    if (machine->mem != NULL)
        virtio_mem_request(machine->mem, more);
    *bytes = base + more - less;
    return 0;
}

void machine_get_memory(const struct machine *machine, struct machine_memory *memory) {
    struct balloon_report balloon;
    struct mem_report mem = {0};
    uint64_t base = machine->config.memory;
    virtio_balloon_report(machine->balloon, &balloon);
    if (machine->mem != NULL)
        virtio_mem_report(machine->mem, &mem);
    /* A driver may say anything. */
    uint64_t taken = balloon.actual < base ? balloon.actual : base;
    *memory = (struct machine_memory){
        .target = base - balloon.target + mem.requested,
        .size = base - taken + mem.plugged,
        .plugged = mem.plugged,
        .ballooned = taken,
        .balloon_driver = balloon.driver,
        .mem_driver = mem.driver,
    };
}
