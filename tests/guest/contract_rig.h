/*
 * One vCPU of the engine under test, with memory, some ports and a device. Code is 32-bit, flat,
 * without paging.
 */
#ifndef LODGE_TEST_CONTRACT_RIG_H
#define LODGE_TEST_CONTRACT_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine_rig.h"

enum {
    RAM = 16 << 20,
    CODE = 0x10000,
    STACK = 0x20000,
    IDT_AT = 0x30000,
    GDT_AT = 0x31000,
    DATA = 0x40000,
    END_PORT = 0xf4,
    IN_PORT = 0x5000,
    MOVE_PORT = 0x5010,
    PLUG_PORT = 0x5020,
    PLUGGED = 0x10000000,
    PLUGGED_SIZE = 0x200000,
    DEVICE = 0xd0000000u,
    SKIPPED = 77,
};

extern enum engine_kind contract_kind; /* the one under test */

struct rig {
    struct engine_rig on;
    struct io_region *device;
    uint32_t written;
    bool kick_on_read;
};

/* ---- Devices ---- */

static inline void end_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct rig *rig = context;
    rig->written = (uint32_t)value;
    vcpu_kick(rig->on.vcpu);
}

static inline uint64_t value_read(void *context, uint64_t offset, unsigned size) {
    struct rig *rig = context;
    if (rig->kick_on_read)
        vcpu_kick(rig->on.vcpu);
    return 0x8877665544332211 & bytes_mask(size);
}

static inline void nothing_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
}

/* Moves the device: to where the value says, or away. On the vCPU's own thread. */
static inline void move_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct rig *rig = context;
    memory_move_io(rig->device, value, value != 0);
}

/* Memory comes, or goes. On the vCPU's own thread. */
static inline void plug_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct rig *rig = context;
    assert_int_equal(memory_plug(rig->on.memory, PLUGGED, PLUGGED_SIZE, value != 0), 0);
}

static const struct io_ops plug_ops = {value_read, plug_write};
static const struct io_ops end_ops = {value_read, end_write};
static const struct io_ops value_ops = {value_read, nothing_write};
static const struct io_ops move_ops = {value_read, move_write};

/* ---- The rig ---- */

static inline int setup(void **state) {
    struct rig *rig = calloc(1, sizeof *rig);
    struct port_range *range;
    struct engine_config config = {.vcpus = 1};
    struct error err;
    assert_non_null(rig);
    if (rig_create(&rig->on, contract_kind, RAM, config, &err) < 0) {
        printf("skipped: %s\n", err.text);
        exit(SKIPPED);
    }
    assert_int_equal(ports_add(rig->on.ports, "end", END_PORT, 4, &end_ops, rig, &range, NULL), 0);
    assert_int_equal(ports_add(rig->on.ports, "in", IN_PORT, 4, &value_ops, rig, &range, NULL), 0);
    assert_int_equal(ports_add(rig->on.ports, "move", MOVE_PORT, 4, &move_ops, rig, &range, NULL),
                     0);
    assert_int_equal(memory_add_io(rig->on.memory, "device", DEVICE, PAGE_SIZE, &value_ops, rig,
                                   &rig->device, NULL),
                     0);
    assert_int_equal(vcpu_create(rig->on.engine, 0, &rig->on.vcpu, NULL), 0);
    *state = rig;
    return 0;
}

static inline int teardown(void **state) {
    struct rig *rig = *state;
    rig_destroy(&rig->on);
    free(rig);
    return 0;
}

static inline uint32_t peek32(struct rig *rig, uint64_t gpa) {
    uint32_t value;
    assert_int_equal(memory_read(rig->on.memory, gpa, &value, sizeof value), 0);
    return value;
}

static inline uint64_t rip_of(struct rig *rig) {
    struct x86_state state;
    vcpu_get_state(rig->on.vcpu, &state);
    return state.rip;
}

/* Flat 32-bit protected mode at CODE, with a GDT that agrees. */
static inline void flat_state(struct rig *rig, struct x86_state *state) {
    static const uint64_t gdt[] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    rig_poke(&rig->on, GDT_AT, gdt, sizeof gdt);
    vcpu_get_state(rig->on.vcpu, state);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] =
            (struct x86_segment){0, UINT32_MAX, 0x10, SEG_G | SEG_DB | SEG_P | SEG_S | 3};
    state->segment[SEG_CS] =
        (struct x86_segment){0, UINT32_MAX, 0x08, SEG_G | SEG_DB | SEG_P | SEG_S | 11};
    state->gdtr = (struct x86_table){GDT_AT, sizeof gdt - 1};
    state->idtr = (struct x86_table){0, 0};
    state->cr0 = CR0_PE | CR0_ET | CR0_NE;
    state->rip = CODE;
    state->rflags = FLAGS_FIXED;
    state->gpr[RSP] = STACK;
    state->halted = false;
}

static inline void load(struct rig *rig, const void *code, size_t length) {
    struct x86_state state;
    flat_state(rig, &state);
    rig_poke(&rig->on, CODE, code, length);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
}

#define LOAD(rig, ...)                                                                             \
    do {                                                                                           \
        static const uint8_t code[] = {__VA_ARGS__};                                               \
        load(rig, code, sizeof code);                                                              \
    } while (0)

#define OUT_END   0xe7, END_PORT /* out %eax, $0xf4 */
#define SPIN      0xeb, 0xfe     /* jmp . */
#define BYTES4(v) (uint8_t)(v), (uint8_t)((v) >> 8), (uint8_t)((v) >> 16), (uint8_t)((v) >> 24)

static inline void run(struct rig *rig, enum vcpu_stop expected) {
    struct vcpu_exit exit;
    vcpu_run(rig->on.vcpu, &exit);
    if (exit.stop != expected)
        print_message("stopped: %d %s\n", (int)exit.stop, exit.text);
    assert_int_equal(exit.stop, expected);
}

/*
 * Not all that goes by the name of KVM is: see deviations.c. LODGE_TEST_STRICT
 * names what the kernel's own does, and makes it count.
 */
static inline void skip_on_odd_kvm(const char *what) {
    const char *strict = getenv("LODGE_TEST_STRICT");
    if (contract_kind != ENGINE_KVM || (strict != NULL && strstr(what, strict) != NULL))
        fail_msg("it %s", what);
    print_message("this host's KVM %s\n", what);
    skip();
}

/* The tests of test_profiles.c. */
void profiles(void **context);
void counters_by_name(void **context);
void decoded_blocks_stay(void **context);
void dump_and_counters(void **context);

#endif
