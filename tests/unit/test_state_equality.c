/*
 * Every device that a machine can have: what a guest has done to it is saved, loaded into another
 * machine and saved again (the same bytes), and both machines go on with the same accesses (the
 * same answers, and the same bytes again). The classes are those of the machine's own register, so
 * a new one without a part in this fails.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "device/cpu_slots.h"
#include "device/flash.h"
#include "device/fw_cfg.h"
#include "machine/layout.h"
#include "machine/machine_identity.h"
#include "machine/machine_state.h"
#include "machine/private.h"
#include "nvme/spec.h"
#include "virtio/pci.h"

enum { FIRMWARE_BYTES = 128 << 10, VARIABLES_BYTES = 16 << 10, DISK_BYTES = 1 << 20 };
enum { ACCESSES = 30000, HEADER = 16, FIXED = 12, VIRTIO_VENDOR = 0x1af4, NAME_SIZE = 64 };

static char directory[] = "/tmp/lodge-equal-XXXXXX";
static char code[64], variables[64], disk[64], idle[64];

static uint64_t next_random(uint64_t *seed) { /* splitmix64 */
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* ---- A machine that has everything ---- */

struct fixture {
    struct loop *loop;
    struct machine *machine;
};

static struct machine_config config_of(struct loop *loop) {
    struct disk_config image = {.path = disk,
                                .options = {.format = BLOCK_FORMAT_RAW, .readonly = true}};
    struct machine_config config = {
        .engine = ENGINE_SOFT,
        .memory = MIB(16),
        .memory_max = MIB(64),
        .vcpus = 2,
        .vcpus_max = 4,
        .firmware = FIRMWARE_FILE,
        .firmware_file = code,
        .disks = {image, image},
        .disk_count = 2,
        .cdrom = disk,
        .volumes = {{.host = directory, .guest = "/mnt", .readonly = true}},
        .volume_count = 1,
        .net = NET_USER,
        .vsock = true,
        .idle_states = idle,
        .loop = loop,
    };
    config.disks[1].device = DISK_NVME;
    return config;
}

static struct fixture make(void) {
    struct fixture made;
    struct error err = {0};
    assert_int_equal(loop_create(&made.loop, NULL), 0);
    struct machine_config config = config_of(made.loop);
    if (machine_create(&config, NULL, &made.machine, &err) < 0)
        fail_msg("%s", err.text);
    vm_clock_pause(made.machine->platform.clock);
    return made;
}

static void unmake(struct fixture *made) {
    machine_destroy(made->machine);
    loop_destroy(made->loop);
}

/* ---- What a guest does ---- */

static uint32_t bar_of(struct pci_function *function, unsigned bar) {
    return load_le32(pci_config_bytes(function) + 0x10 + (size_t)bar * 4);
}

static uint64_t memory_bar(struct pci_function *function, unsigned bar) {
    uint64_t low = bar_of(function, bar);
    uint64_t high = (low & 6) == 4 ? (uint64_t)bar_of(function, bar + 1) << 32 : 0;
    return (low & 1) != 0 || low == 0 ? 0 : high | (low & ~UINT64_C(15));
}

/* Where a virtio function's common configuration is (virtio 1.2, 4.1.4). */
static uint64_t common_of(struct pci_function *function) {
    const uint8_t *config = pci_config_bytes(function);
    for (unsigned at = config[0x34]; at != 0; at = config[at + 1])
        if (config[at] == 0x09 && config[at + 3] == 1)
            return memory_bar(function, config[at + 4]) + load_le32(config + at + 8);
    return 0;
}

static void put(struct machine *machine, uint64_t gpa, uint64_t value, unsigned size) {
    memory_io_write(machine->platform.memory, gpa, value, size);
}

/* As a driver does it; its rings, in memory of zeros, ask for nothing. */
static void begin_virtio(struct machine *machine, uint64_t common, unsigned slot) {
    put(machine, common + VIRTIO_COMMON_STATUS, 0, 1);
    put(machine, common + VIRTIO_COMMON_STATUS, 3, 1);
    put(machine, common + VIRTIO_COMMON_DRIVER_FEATURE_SELECT, 1, 4);
    put(machine, common + VIRTIO_COMMON_DRIVER_FEATURE, 1, 4); /* VIRTIO_F_VERSION_1 */
    put(machine, common + VIRTIO_COMMON_STATUS, 0xb, 1);
    put(machine, common + VIRTIO_COMMON_QUEUE_SELECT, 0, 2);
    put(machine, common + VIRTIO_COMMON_QUEUE_SIZE, 16, 2);
    put(machine, common + VIRTIO_COMMON_QUEUE_DESCRIPTORS, MIB(2) + slot * 0x3000u, 8);
    put(machine, common + VIRTIO_COMMON_QUEUE_DRIVER, MIB(2) + slot * 0x3000u + 0x1000, 8);
    put(machine, common + VIRTIO_COMMON_QUEUE_DEVICE, MIB(2) + slot * 0x3000u + 0x2000, 8);
    put(machine, common + VIRTIO_COMMON_QUEUE_ENABLE, 1, 2);
    put(machine, common + VIRTIO_COMMON_STATUS, 0xf, 1);
}

static void begin_nvme(struct machine *machine, uint64_t bar) {
    put(machine, bar + NVME_REG_AQA, 0x000f000f, 4);
    put(machine, bar + NVME_REG_ASQ, MIB(4), 8);
    put(machine, bar + NVME_REG_ACQ, MIB(4) + 0x1000, 8);
    put(machine, bar + NVME_REG_CC, 0x00460001, 4);
}

static void begin_drivers(struct machine *machine) {
    struct pci_function *function = NULL;
    while ((function = pci_bus_next(machine->platform.pci, function)) != NULL) {
        const uint8_t *config = pci_config_bytes(function);
        if (load_le16(config) == VIRTIO_VENDOR)
            begin_virtio(machine, common_of(function), pci_function_slot(function));
        else if (config[0x0b] == 1 && config[0x0a] == 8)
            begin_nvme(machine, memory_bar(function, 0));
    }
}

/* Some bytes into flash, by a command of which one half comes before and one after. */
static const uint64_t flash_at = LAYOUT_HIGH_RAM_BASE - FIRMWARE_BYTES - FLASH_BLOCK;
static void begin_flash(struct machine *machine) {
    static const uint8_t command[] = {0xff, 0xff, 0x50, 0xe8, 3, 0x12, 0x34};
    for (unsigned i = 0; i < sizeof command; i++)
        put(machine, flash_at + (i == 6), command[i], 1);
}

static uint32_t end_flash(struct machine *machine) {
    uint32_t seen = 0;
    put(machine, flash_at + 2, 0x56, 1);
    put(machine, flash_at + 3, 0x78, 1);
    put(machine, flash_at, 0xd0, 1);
    put(machine, flash_at, 0xff, 1);
    assert_int_equal(memory_read(machine->platform.memory, flash_at, &seen, sizeof seen), 0);
    return seen;
}

/* And some of a file, of which the rest is read afterwards. */
static void begin_fw_cfg(struct machine *machine) {
    port_write(machine->platform.ports, FW_CFG_PORT, FW_CFG_SIGNATURE, 2);
    assert_int_equal(port_read(machine->platform.ports, FW_CFG_PORT + 1, 1), 'Q');
}

static uint32_t end_fw_cfg(struct machine *machine) {
    return port_read(machine->platform.ports, FW_CFG_PORT + 1, 1);
}

/* Ports of devices: first, how many. */
static const uint16_t port_ranges[][2] = {
    {0x20, 2},  {0xa0, 2},  {0x40, 4},   {0x60, 2},  {0x64, 1},
    {0x70, 2},  {0x3f8, 8}, {0x402, 1},  {0x505, 1}, {0x510, 2},
    {0x600, 8}, {0x620, 4}, {0x680, 16}, {0x690, 1}, {0x6a0, 23},
};

static uint32_t any_port(struct machine *machine, uint64_t *seed, bool *host_time) {
    uint64_t r = next_random(seed);
    const uint16_t *range = port_ranges[r % ARRAY_SIZE(port_ranges)];
    uint16_t port = (uint16_t)(range[0] + (r >> 8) % range[1]);
    unsigned size = range[0] < 0x510 ? 1 : 1u << (r >> 16 & 0xff) % 3;
    port &= (uint16_t) ~(size - 1);
    *host_time = port == 0x71; /* the RTC's */
    if (r & 1 << 20)
        return port_read(machine->platform.ports, port, size);
    uint32_t value = (uint32_t)next_random(seed);
    port_write(machine->platform.ports, port, range[0] == FW_CFG_PORT ? value & 0x3f : value, size);
    return 0;
}

/* Anything is read of a function's configuration space, and its interrupt line written. */
static uint32_t any_configuration(struct machine *machine, uint64_t *seed) {
    uint64_t r = next_random(seed);
    bool writes = r & 1;
    unsigned slot = (r >> 1) % PCI_SLOTS, at = writes ? 0x3c : r >> 8 & 0xfc;
    port_write(machine->platform.ports, 0xcf8, 1u << 31 | slot << 11 | at, 4);
    if (!writes)
        return port_read(machine->platform.ports, 0xcfc, 4);
    port_write(machine->platform.ports, 0xcfc, r >> 16 & 0xff, 1);
    return 0;
}

static uint64_t any_address(struct machine *machine, uint64_t *seed) {
    struct pci_function *function = NULL;
    uint64_t r = next_random(seed), bar;
    switch (r & 7) {
    case 0: return LAYOUT_HPET_BASE + (r >> 8 & 0x3fc);
    case 1: return LAYOUT_CHIPS_BASE + (r >> 8 & 0x10);
    case 2: return LAYOUT_IDENTITY_BASE + (r >> 8 & 0x3c);
    case 3: return LAYOUT_HIGH_RAM_BASE - FIRMWARE_BYTES - VARIABLES_BYTES + (r >> 8 & 0x3ffc);
    default: break;
    }
    for (unsigned n = (unsigned)(r >> 40) % PCI_SLOTS + 1; n > 0; n--)
        function = pci_bus_next(machine->platform.pci, function);
    bar = function != NULL ? memory_bar(function, (unsigned)(r >> 3 & 3)) : 0;
    /* Mostly where registers are. */
    return bar != 0 ? bar + (r >> 8 & (r & 1 << 7 ? 0xffc : 0x3c)) : LAYOUT_HPET_BASE;
}

/* Accesses everywhere; returns a sum of all that was read. */
static uint32_t go_on(struct machine *machine, uint64_t seed) {
    uint32_t sum = 0;
    for (unsigned i = 0; i < ACCESSES; i++) {
        bool host_time;
        uint64_t seen = any_port(machine, &seed, &host_time);
        if (!host_time)
            sum = crc32c(sum, &seen, sizeof seen);
        uint64_t gpa = any_address(machine, &seed), r = next_random(&seed);
        if (r & 1)
            put(machine, gpa, r >> 8, 4);
        else
            seen = memory_io_read(machine->platform.memory, gpa, 4);
        sum = crc32c(sum, &seen, sizeof seen);
        seen = any_configuration(machine, &seed);
        sum = crc32c(sum, &seen, sizeof seen);
    }
    return sum;
}

static void use_processors(struct machine *machine, uint64_t seed) {
    for (unsigned i = 0; i < machine->config.vcpus; i++) {
        struct x86_state state;
        struct vcpu *vcpu = machine->vcpus[i].vcpu;
        vcpu_get_state(vcpu, &state);
        for (unsigned n = 0; n < 16; n++)
            state.gpr[n] = next_random(&seed);
        assert_int_equal(vcpu_set_state(vcpu, &state, NULL), 0);
        struct lapic *lapic = irqchip_lapic(machine->platform.irqchip, i);
        lapic_mmio_write(lapic, 0xf0, 0x1ff);
        lapic_mmio_write(lapic, 0x320, 0x20040);
        lapic_mmio_write(lapic, 0x380, 12345678);
    }
}

static void use_all(struct machine *machine, uint64_t seed) {
    assert_int_equal(pci_bus_assign(machine->platform.pci, NULL), 0);
    go_on(machine, seed);
    begin_drivers(machine);
    begin_flash(machine);
    begin_fw_cfg(machine);
    use_processors(machine, seed);
    cpu_slots_plug(machine->cpu_slots, 3);
    assert_int_equal(machine_new_identity(machine, IDENTITY_RESTORED, NULL), 0);
}

/* ---- Saved states ---- */

static struct state_buffer save(struct fixture *from) {
    struct state_buffer out = {0};
    struct error err = {0};
    if (machine_save_state(from->machine, &out, &err) < 0)
        fail_msg("%s", err.text);
    return out;
}

static void load(struct fixture *to, const struct state_buffer *from) {
    struct error err = {0};
    if (machine_load_state(to->machine, from->data, from->length, &err) < 0)
        fail_msg("%s", err.text);
}

struct section {
    char name[NAME_SIZE];
    size_t at, end; /* of all of it */
    const uint8_t *body;
    size_t length;
};

static bool next_section(const struct state_buffer *bytes, struct section *section) {
    size_t at = section->end == 0 ? HEADER : section->end;
    if (at >= bytes->length)
        return false;
    const uint8_t *fixed = bytes->data + at + 1 + bytes->data[at];
    snprintf(section->name, sizeof section->name, "%.*s", bytes->data[at],
             (const char *)bytes->data + at + 1);
    section->at = at;
    section->body = fixed + FIXED;
    section->length = (size_t)load_le64(fixed);
    section->end = (size_t)(section->body - bytes->data) + section->length;
    return true;
}

static bool find_section(const struct state_buffer *bytes, const char *name,
                         struct section *section) {
    *section = (struct section){0};
    while (next_section(bytes, section))
        if (strcmp(section->name, name) == 0)
            return true;
    return false;
}

static bool same_section(const struct section *a, const struct section *b) {
    return a->length == b->length && memcmp(a->body, b->body, a->length) == 0;
}

/* Where two differ, by the name of the part. */
static void assert_same(const struct state_buffer *a, const struct state_buffer *b) {
    struct section left = {0}, right;
    while (next_section(a, &left))
        if (!find_section(b, left.name, &right) || !same_section(&left, &right))
            fail_msg("the part '%s' is not the same", left.name);
    assert_int_equal(a->length, b->length);
    assert_memory_equal(a->data, b->data, a->length);
}

static void copy_memory(struct machine *to, struct machine *from) {
    struct memory_ram a, b;
    for (unsigned n = 0; memory_ram_region(from->platform.memory, n, &a); n++) {
        assert_true(memory_ram_region(to->platform.memory, n, &b));
        if (!a.pluggable)
            memcpy(b.host, a.host, a.size);
    }
}

/* The RTC has the host's time, of which a second may have passed between the two. */
static void same_wall(struct fixture *to, struct fixture *from) {
    struct vm_clock *a = from->machine->platform.clock, *b = to->machine->platform.clock;
    vm_clock_move_wall(b, vm_clock_wall_seconds(a, vm_clock_ns(a)) -
                              vm_clock_wall_seconds(b, vm_clock_ns(b)));
}

/* ---- Tests ---- */

static void test_equality(void **unused) {
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct fixture a = make(), b = make();
        use_all(a.machine, seed);
        struct state_buffer first = save(&a);
        load(&b, &first);
        copy_memory(b.machine, a.machine);
        same_wall(&b, &a);
        struct state_buffer second = save(&b);
        assert_same(&first, &second);
        assert_int_equal(end_flash(a.machine), 0x78563412);
        assert_int_equal(end_flash(b.machine), 0x78563412);
        assert_int_equal(end_fw_cfg(a.machine), 'E');
        assert_int_equal(end_fw_cfg(b.machine), 'E');
        assert_int_equal(go_on(a.machine, seed + 100), go_on(b.machine, seed + 100));
        state_buffer_free(&first);
        state_buffer_free(&second);
        first = save(&a);
        second = save(&b);
        assert_same(&first, &second);
        state_buffer_free(&first);
        state_buffer_free(&second);
        unmake(&a);
        unmake(&b);
    }
}

/* Their state is elsewhere (q35's in its functions), there is none, or they are never saved. */
static const char *const stateless[] = {"debugcon", "pvpanic", "q35", "takeover", "vfio-user"};

static bool is_stateless(const char *name) {
    for (size_t i = 0; i < ARRAY_SIZE(stateless); i++)
        if (strcmp(name, stateless[i]) == 0)
            return true;
    return false;
}

static const struct device *device_of(const struct machine *machine,
                                      const struct device_class *class) {
    const struct device *device = machine->devices;
    while (device != NULL && device->class != class)
        device = device->next;
    return device;
}

/* Each class has a device here, and what the guest does changes what is saved of it. */
static void test_coverage(void **unused) {
    struct fixture used = make(), fresh = make();
    use_all(used.machine, 1);
    struct state_buffer after = save(&used), before = save(&fresh);
    const struct device_class *class;
    for (unsigned n = 0; (class = devices_class(n)) != NULL; n++) {
        struct section a, b;
        if ((class->state == NULL) != is_stateless(class->name))
            fail_msg("'%s': is its state saved?", class->name);
        if (class->state == NULL)
            continue;
        const struct device *device = device_of(used.machine, class);
        if (device == NULL)
            fail_msg("no device of class '%s' is in this test", class->name);
        assert_true(find_section(&before, device->name, &a));
        assert_true(find_section(&after, device->name, &b));
        if (same_section(&a, &b))
            fail_msg("nothing that this test does changes '%s'", class->name);
    }
    struct section a = {0}, b; /* all that is no device's, too */
    while (next_section(&before, &a)) {
        bool never = strcmp(a.name, "machine") == 0 || strcmp(a.name, "end") == 0;
        assert_true(find_section(&after, a.name, &b));
        if (!never && same_section(&a, &b))
            fail_msg("nothing that this test does changes the part '%s'", a.name);
    }
    state_buffer_free(&after);
    state_buffer_free(&before);
    unmake(&used);
    unmake(&fresh);
}

/* A file of a lodge that did not have these devices, which are then as in a new machine. */
static void test_older(void **unused) {
    static const char *const later[] = {"identity0", "cpus"};
    struct fixture used = make(), fresh = make();
    struct error err = {0};
    use_all(used.machine, 1);
    struct state_buffer bytes = save(&used), made = save(&fresh);
    for (size_t i = 0; i < ARRAY_SIZE(later); i++) {
        struct section section;
        assert_true(find_section(&bytes, later[i], &section));
        memmove(bytes.data + section.at, bytes.data + section.end, bytes.length - section.end);
        bytes.length -= section.end - section.at;
    }
    load(&fresh, &bytes);
    struct state_buffer again = save(&fresh);
    struct section a, b = {0};
    while (next_section(&again, &b)) {
        bool is_later = strcmp(b.name, later[0]) == 0 || strcmp(b.name, later[1]) == 0;
        assert_true(find_section(is_later ? &made : &bytes, b.name, &a));
        if (!same_section(&a, &b))
            fail_msg("the part '%s' is not as it ought to be", b.name);
    }
    /* One that has always been there may not be missing. */
    assert_true(find_section(&bytes, "rtc0", &a));
    memmove(bytes.data + a.at, bytes.data + a.end, bytes.length - a.end);
    bytes.length -= a.end - a.at;
    assert_int_equal(machine_load_state(fresh.machine, bytes.data, bytes.length, &err), -EINVAL);
    assert_non_null(strstr(err.text, "made differently"));
    state_buffer_free(&bytes);
    state_buffer_free(&made);
    state_buffer_free(&again);
    unmake(&used);
    unmake(&fresh);
}

/* The first version of the first part did not know of firmware: there was none. */
static void test_older_table(void **unused) {
    enum { FIELD = 1 + 1 + 4 + 4, VERSION_AT = 9 };
    enum { NEW_FIELDS = 3 * FIELD + 8 + 8 + 12 + 4 + 3 + 4 };
    struct fixture a = make();
    struct state_buffer bytes = save(&a);
    struct error err = {0};
    struct section section;
    assert_true(find_section(&bytes, "machine", &section));
    uint8_t *body = bytes.data + (section.body - bytes.data), *fixed = body - FIXED;
    assert_memory_equal(body, "T\7machine\3\0\10\0", 13);
    store_le16(body + VERSION_AT, 1);
    store_le16(body + VERSION_AT + 2, 5);
    store_le64(fixed, section.length - NEW_FIELDS);
    store_le32(fixed + 8, crc32c(0, body, section.length - NEW_FIELDS));
    memmove(body + section.length - NEW_FIELDS, bytes.data + section.end,
            bytes.length - section.end);
    bytes.length -= NEW_FIELDS;
    assert_int_equal(machine_load_state(a.machine, bytes.data, bytes.length, &err), -EINVAL);
    assert_non_null(strstr(err.text, "of a machine without firmware"));
    store_le16(body + VERSION_AT, 4); /* and a newer one is told of as such */
    store_le32(fixed + 8, crc32c(0, body, section.length - NEW_FIELDS));
    assert_int_equal(machine_load_state(a.machine, bytes.data, bytes.length, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "version 4; this lodge knows up to 3"));
    state_buffer_free(&bytes);
    unmake(&a);
}

/* ---- Files ---- */

static bool write_file(char path[64], const char *name, const void *bytes, size_t length) {
    snprintf(path, 64, "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    bool good = fd >= 0 && write(fd, bytes, length) == (ssize_t)length;
    close(fd);
    return good;
}

/* A store of no variables (firmware.c: what_is_wrong). */
static void make_store(uint8_t store[VARIABLES_BYTES]) {
    static const uint8_t guid[16] = {0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c,
                                     0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50};
    enum { VOLUME_HEADER = 72, SUM_AT = 50 };
    uint16_t sum = 0;
    memcpy(store + 16, guid, sizeof guid);
    store_le64(store + 32, VARIABLES_BYTES);
    memcpy(store + 40, "_FVH", 4);
    store_le16(store + 48, VOLUME_HEADER);
    for (unsigned i = 0; i < VOLUME_HEADER; i += 2)
        sum += load_le16(store + i);
    store_le16(store + SUM_AT, (uint16_t)-sum);
    memset(store + VARIABLES_BYTES - FLASH_BLOCK, 0xff, FLASH_BLOCK); /* an erased block */
    store[VOLUME_HEADER + 20] = 0x5a;
    store[VOLUME_HEADER + 21] = 0xfe;
}

static int make_files(void **unused) {
    static uint8_t image[FIRMWARE_BYTES], store[VARIABLES_BYTES], zeros[DISK_BYTES];
    static const char states[] = "C1 2 1000\nC2 200 100\n";
    log_set_level(LOG_ERROR);
    make_store(store);
    return mkdtemp(directory) != NULL && write_file(code, "CODE.fd", image, sizeof image) &&
                   write_file(variables, "VARS.fd", store, sizeof store) &&
                   write_file(disk, "disk", zeros, sizeof zeros) &&
                   write_file(idle, "idle", states, sizeof states - 1)
               ? 0
               : -1;
}

static int remove_files(void **unused) {
    unlink(code);
    unlink(variables);
    unlink(disk);
    unlink(idle);
    rmdir(directory);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equality),
        cmocka_unit_test(test_coverage),
        cmocka_unit_test(test_older),
        cmocka_unit_test(test_older_table),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
