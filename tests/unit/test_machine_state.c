/* All of a machine's state: saved, loaded into another one, and saved again; damaged, and hostile.
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
#include "device/acpi_pm.h"
#include "machine/layout.h"
#include "machine/machine_identity.h"
#include "machine/machine_state.h"
#include "machine/private.h"

enum { FIRMWARE_BYTES = 128 << 10, DISK_BYTES = 1 << 20, ACCESSES = 20000, HEADER = 16 };

static char firmware_file[] = "/tmp/lodge-state-XXXXXX", disk_file[] = "/tmp/lodge-state-XXXXXX";

static uint64_t next_random(uint64_t *seed) { /* splitmix64 */
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

struct fixture {
    struct loop *loop;
    struct machine *machine;
};

static struct machine_config config_of(struct loop *loop, unsigned vcpus) {
    return (struct machine_config){
        .engine = ENGINE_SOFT,
        .memory = MIB(16),
        .memory_max = MIB(64),
        .vcpus = vcpus,
        .vcpus_max = 4,
        .firmware = FIRMWARE_FILE,
        .firmware_file = firmware_file,
        .disks = {{.path = disk_file, .options = {.format = BLOCK_FORMAT_RAW, .readonly = true}},
                  {.path = disk_file,
                   .options = {.format = BLOCK_FORMAT_RAW, .readonly = true},
                   .device = DISK_NVME}},
        .disk_count = 1,
        .cdrom = disk_file,
        .net = NET_USER,
        .vsock = true,
        .loop = loop,
    };
}

static struct fixture make(unsigned vcpus, unsigned disks) {
    struct fixture made;
    struct error err = {0};
    assert_int_equal(loop_create(&made.loop, NULL), 0);
    struct machine_config config = config_of(made.loop, vcpus);
    config.disk_count = disks;
    if (machine_create(&config, NULL, &made.machine, &err) < 0)
        fail_msg("%s", err.text);
    vm_clock_pause(made.machine->platform.clock);
    return made;
}

static void unmake(struct fixture *made) {
    machine_destroy(made->machine);
    loop_destroy(made->loop);
}

static struct state_buffer save(struct fixture *from) {
    struct state_buffer out = {0};
    struct error err = {0};
    if (machine_save_state(from->machine, &out, &err) < 0)
        fail_msg("%s", err.text);
    return out;
}

static int load(struct fixture *to, const struct state_buffer *from, struct error *err) {
    return machine_load_state(to->machine, from->data, from->length, err);
}

/* What a guest might have written, everywhere. */
static void scribble(struct fixture *made, uint64_t seed) {
    struct platform *platform = &made->machine->platform;
    for (unsigned i = 0; i < ACCESSES; i++) {
        uint64_t r = next_random(&seed);
        uint16_t port = (uint16_t)(r >> 16);
        bool resets = port == 0xcf9 || port == 0x92 || port == 0x64;
        bool disk = port >= 0x510 && port < 0x51c; /* fw_cfg's DMA */
        if ((r & 1) && !resets && !disk)
            port_write(platform->ports, port, (uint32_t)next_random(&seed), 1u << (r >> 1 & 1));
        uint64_t gpa = r & 2 ? 0xfed00000 + (r >> 32 & 0x3f8) : 0xfec00000 + (r >> 32 & 0x10);
        memory_io_write(platform->memory, gpa, next_random(&seed), 4);
    }
    for (unsigned i = 0; i < made->machine->config.vcpus; i++) {
        struct x86_state state;
        struct vcpu *vcpu = made->machine->vcpus[i].vcpu;
        vcpu_get_state(vcpu, &state);
        for (unsigned n = 0; n < 16; n++)
            state.gpr[n] = next_random(&seed);
        for (unsigned n = 0; n < sizeof state.vector; n++)
            ((uint8_t *)state.vector)[n] = (uint8_t)next_random(&seed);
        state.tsc_offset = next_random(&seed);
        state.halted = i > 0;
        assert_int_equal(vcpu_set_state(vcpu, &state, NULL), 0);
        struct lapic *lapic = irqchip_lapic(platform->irqchip, i);
        lapic_mmio_write(lapic, 0xf0, 0x1ff);
        lapic_mmio_write(lapic, 0x80, 0x37);
        lapic_mmio_write(lapic, 0x320, 0x20040);
        lapic_mmio_write(lapic, 0x380, 12345678);
    }
}

/* The same bytes again: nothing is lost, nothing is made up. */
static void test_same(void **unused) {
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct fixture a = make(2, 2), b = make(2, 2);
        struct error err = {0};
        scribble(&a, seed);
        struct state_buffer first = save(&a);
        if (load(&b, &first, &err) < 0)
            fail_msg("%s", err.text);
        struct state_buffer second = save(&b);
        assert_int_equal(first.length, second.length);
        assert_memory_equal(first.data, second.data, first.length);
        state_buffer_free(&first);
        state_buffer_free(&second);
        unmake(&a);
        unmake(&b);
    }
}

static void refuse(struct fixture *to, const struct state_buffer *bytes, int code,
                   const char *text) {
    struct error err = {0};
    assert_int_equal(load(to, bytes, &err), code);
    if (strstr(err.text, text) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, text);
}

static void test_other_machines(void **unused) {
    struct fixture a = make(2, 2), fewer = make(1, 2), other = make(2, 1);
    struct state_buffer bytes = save(&a);
    refuse(&fewer, &bytes, -EINVAL, "2 processors, not 1");
    refuse(&other, &bytes, -EINVAL, "made differently");
    bytes.data[8]++;
    refuse(&a, &bytes, -ENOTSUP, "format 2");
    bytes.data[8]--;
    bytes.data[0]++;
    refuse(&a, &bytes, -EINVAL, "no saved state");
    state_buffer_free(&bytes);
    unmake(&a);
    unmake(&fewer);
    unmake(&other);
}

static void test_damaged(void **unused) {
    struct fixture a = make(1, 1);
    struct state_buffer bytes = save(&a), cut = bytes;
    uint64_t seed = 7;
    for (unsigned i = 0; i < 500; i++) {
        size_t at = (size_t)(next_random(&seed) % bytes.length);
        uint8_t bit = (uint8_t)(1u << (next_random(&seed) & 7));
        bytes.data[at] ^= bit;
        assert_true(load(&a, &bytes, NULL) < 0);
        bytes.data[at] ^= bit;
        cut.length = at;
        assert_true(load(&a, &cut, NULL) < 0);
    }
    assert_int_equal(load(&a, &bytes, NULL), 0);
    state_buffer_free(&bytes);
    unmake(&a);
}

/* The nth section's body; false: there are no more. */
static bool find(const struct state_buffer *bytes, unsigned n, uint8_t **fixed, size_t *length) {
    for (size_t at = HEADER; at < bytes->length;) {
        *fixed = bytes->data + at + 1 + bytes->data[at];
        *length = (size_t)load_le64(*fixed);
        if (n-- == 0)
            return true;
        at = (size_t)(*fixed + 12 - bytes->data) + *length;
    }
    return false;
}

/* Right sums over wrong contents: refused or not, the machine can be run, saved and ended. */
static void test_hostile(void **unused) {
    struct fixture a = make(1, 2);
    struct state_buffer good = save(&a);
    uint8_t *fixed;
    size_t length;
    uint64_t seed = 11;
    for (unsigned n = 0; find(&good, n, &fixed, &length); n++) {
        for (unsigned i = 0; i < 100 && length > 0; i++) {
            struct state_buffer bytes = {malloc(good.length), good.length, good.length},
                                again = {0};
            memcpy(bytes.data, good.data, good.length);
            find(&bytes, n, &fixed, &length);
            for (unsigned changes = 1 + (unsigned)(next_random(&seed) & 3); changes > 0; changes--)
                fixed[12 + next_random(&seed) % length] = (uint8_t)next_random(&seed);
            store_le32(fixed + 8, crc32c(0, fixed + 12, length));
            load(&a, &bytes, NULL);
            struct vcpu_exit exit;
            vcpu_kick(a.machine->vcpus[0].vcpu);
            vcpu_run(a.machine->vcpus[0].vcpu, &exit);
            assert_int_equal(machine_save_state(a.machine, &again, NULL), 0);
            state_buffer_free(&bytes);
            state_buffer_free(&again);
        }
        find(&good, n, &fixed, &length);
    }
    state_buffer_free(&good);
    unmake(&a);
}

/* ---- Ids ---- */

static const char *text_of(json_t *identity, const char *member) {
    return json_string_value(json_object_get(identity, member));
}

/* The nth event, the last of those that there are. */
static void check_event(json_t *identity, size_t n, const char *kind) {
    json_t *events = json_object_get(identity, "events"), *event = json_array_get(events, n - 1);
    assert_int_equal(json_array_size(events), n);
    assert_int_equal(json_integer_value(json_object_get(event, "number")), n);
    assert_string_equal(text_of(event, "kind"), kind);
    assert_string_equal(text_of(event, "host-id"), text_of(identity, "host-id"));
    assert_string_equal(text_of(event, "generation-id"), text_of(identity, "generation-id"));
}

/* On another host: the generation id stays with a move, and is another one otherwise. */
static void test_identity(void **unused) {
    static const char here[] = "11111111-1111-4111-8111-111111111111",
                      there[] = "22222222-2222-4222-8222-222222222222";
    setenv("LODGE_HOST_ID", here, 1);
    struct fixture a = make(1, 1);
    json_t *first = machine_identity_json(a.machine);
    assert_string_equal(text_of(first, "host-id"), here);
    struct state_buffer bytes = save(&a);
    setenv("LODGE_HOST_ID", there, 1);
    struct fixture b = make(1, 1);
    assert_int_equal(load(&b, &bytes, NULL), 0);
    acpi_pm_place(b.machine->acpi_pm, LAYOUT_PM1_EVENT_PORT, true); /* else the firmware's to do */
    assert_int_equal(port_read(b.machine->platform.ports, LAYOUT_GPE0_PORT, 2), 0);
    assert_int_equal(machine_new_identity(b.machine, IDENTITY_MOVED, NULL), 0);
    assert_int_equal(port_read(b.machine->platform.ports, LAYOUT_GPE0_PORT, 2),
                     1 << LAYOUT_IDENTITY_GPE);
    json_t *moved = machine_identity_json(b.machine);
    assert_string_equal(text_of(moved, "host-id"), there);
    assert_string_equal(text_of(moved, "generation-id"), text_of(first, "generation-id"));
    check_event(moved, 1, "move");
    assert_int_equal(machine_new_identity(b.machine, IDENTITY_RESTORED, NULL), 0);
    json_t *restored = machine_identity_json(b.machine);
    assert_string_not_equal(text_of(restored, "generation-id"), text_of(first, "generation-id"));
    check_event(restored, 2, "restore");
    unsetenv("LODGE_HOST_ID");
    json_decref(first);
    json_decref(moved);
    json_decref(restored);
    state_buffer_free(&bytes);
    unmake(&a);
    unmake(&b);
}

/* ---- RAM ---- */

static void test_ram(void **unused) {
    struct fixture a = make(1, 1), b = make(1, 1);
    struct memory *from = a.machine->platform.memory, *to = b.machine->platform.memory;
    char path[] = "/tmp/lodge-ram-XXXXXX";
    int fd = mkstemp(path);
    uint64_t written = 0, value = 0x1122334455667788, seen;
    struct memory_pages pages;
    struct memory_layer layer = {.fd = fd};
    unlink(path);
    assert_int_equal(memory_write(from, MIB(5), &value, sizeof value), 0);
    assert_int_equal(memory_write(from, MIB(16) - 8, &value, sizeof value), 0);
    assert_int_equal(memory_pages_init(&pages, memory_image_size(from) / PAGE_SIZE), 0);
    assert_int_equal(memory_save_pages(from, fd, NULL, &pages, NULL, NULL, &written), 0);
    memory_pages_free(&pages);
    assert_true(written >= 2 * PAGE_SIZE && written < MIB(1));
    assert_int_equal(memory_map_image(to, &layer, 1, NULL), 0);
    assert_int_equal(memory_read(to, MIB(5), &seen, sizeof seen), 0);
    assert_int_equal(seen, value);
    /* Written to, it is its own; given up, it is zero and not the file's again. */
    assert_int_equal(memory_write(to, MIB(5), &written, sizeof written), 0);
    assert_int_equal(memory_discard(to, MIB(5), PAGE_SIZE), PAGE_SIZE);
    assert_int_equal(memory_discard(to, MIB(14), MIB(2)), MIB(2));
    assert_int_equal(memory_read(to, MIB(5), &seen, sizeof seen), 0);
    assert_int_equal(seen, 0);
    assert_int_equal(memory_read(to, MIB(16) - 8, &seen, sizeof seen), 0);
    assert_int_equal(seen, 0);
    assert_int_equal(pread(fd, &seen, sizeof seen, MIB(5)), sizeof seen);
    assert_int_equal(seen, value);
    /* From the mapped one again. */
    assert_int_equal(ftruncate(fd, (off_t)memory_image_size(to) - PAGE_SIZE), 0);
    assert_int_equal(memory_map_image(to, &layer, 1, NULL), -EINVAL);
    close(fd);
    unmake(&a);
    unmake(&b);
}

static int make_files(void **unused) {
    static uint8_t image[FIRMWARE_BYTES];
    static const uint8_t start[] = {0xf4, 0xeb, 0xfd}; /* hlt; jmp to it */
    memcpy(image + FIRMWARE_BYTES - 16, start, sizeof start);
    int firmware = mkstemp(firmware_file), disk = mkstemp(disk_file);
    bool good = write(firmware, image, sizeof image) == (ssize_t)sizeof image &&
                ftruncate(disk, DISK_BYTES) == 0;
    close(firmware);
    close(disk);
    log_set_level(LOG_ERROR);
    return good ? 0 : -1;
}

static int remove_files(void **unused) {
    unlink(firmware_file);
    unlink(disk_file);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),     cmocka_unit_test(test_other_machines),
        cmocka_unit_test(test_damaged),  cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_identity), cmocka_unit_test(test_ram),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
