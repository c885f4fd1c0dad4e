/* The virtio PCI transport, driven as a guest would, on the simplest devices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device_rig.h"
#include "virtio/console.h"
#include "virtio/rng.h"

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    char output[64];
    size_t output_length, output_room;
    unsigned input_ready;
};

static struct fixture fixture;

static size_t take_output(void *context, const void *bytes, size_t length) {
    struct fixture *f = context;
    size_t room = f->output_room - f->output_length;
    size_t taken = length < room ? length : room;
    memcpy(f->output + f->output_length, bytes, taken);
    f->output_length += taken;
    return taken;
}

static void note_input_ready(void *context) {
    ((struct fixture *)context)->input_ready++;
}

static int setup_rng(void **state) {
    struct fixture *f = *state = &fixture;
    struct virtio_rng_config config = {.options.packed = true};
    *f = (struct fixture){0};
    rig_start(&f->rig);
    assert_int_equal(
        device_create(&virtio_rng_class, "rng0", &f->rig.platform, &config, &f->device, NULL), 0);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_ENTROPY);
    return 0;
}

static int setup_console(void **state) {
    struct fixture *f = *state = &fixture;
    struct virtio_console_config config = {.columns = 80,
                                           .rows = 25,
                                           .output = take_output,
                                           .input_ready = note_input_ready,
                                           .context = f};
    *f = (struct fixture){.output_room = sizeof f->output};
    rig_start(&f->rig);
    assert_int_equal(device_create(&virtio_console_class, "console0", &f->rig.platform, &config,
                                   &f->device, NULL),
                     0);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_CONSOLE);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    rig_stop(&f->rig);
    return 0;
}

/* ---- Capabilities ---- */

/* The offset of the virtio capability of a kind; 0: none. */
static unsigned find_capability(struct fixture *f, unsigned kind) {
    uint64_t config = f->driver.config;
    unsigned at = (unsigned)rig_read(&f->rig, config + 0x34, 1);
    for (unsigned guard = 0; at != 0 && guard < 48; guard++) {
        if (rig_read(&f->rig, config + at, 1) == 9 && rig_read(&f->rig, config + at + 3, 1) == kind)
            return at;
        at = (unsigned)rig_read(&f->rig, config + at + 1, 1);
    }
    return 0;
}

static void test_capabilities(void **state) {
    struct fixture *f = *state;
    static const uint32_t offsets[] = {0, VIRTIO_PCI_COMMON, VIRTIO_PCI_NOTIFY, VIRTIO_PCI_ISR,
                                       VIRTIO_PCI_DEVICE};
    for (unsigned kind = 1; kind <= 4; kind++) {
        unsigned at = find_capability(f, kind);
        assert_int_not_equal(at, 0);
        assert_int_equal(rig_read(&f->rig, f->driver.config + at + 4, 1), 0);
        assert_int_equal(rig_read(&f->rig, f->driver.config + at + 8, 4), offsets[kind]);
    }
    unsigned notify = find_capability(f, 2);
    assert_int_equal(rig_read(&f->rig, f->driver.config + notify + 16, 4), VIRTIO_PCI_NOTIFY_STEP);
}

static void test_window(void **state) {
    struct fixture *f = *state;
    unsigned window = find_capability(f, 5);
    assert_int_not_equal(window, 0);
    uint64_t at = f->driver.config + window;
    rig_write(&f->rig, at + 4, 0, 1);
    rig_write(&f->rig, at + 8, VIRTIO_PCI_DEVICE, 4);
    rig_write(&f->rig, at + 12, 2, 4);
    assert_int_equal(rig_read(&f->rig, at + 16, 2), 80);
    rig_write(&f->rig, at + 8, VIRTIO_COMMON_STATUS, 4);
    rig_write(&f->rig, at + 12, 1, 4);
    rig_write(&f->rig, at + 16, VIRTIO_ACKNOWLEDGE, 1);
    assert_int_equal(driver_status(&f->driver), VIRTIO_ACKNOWLEDGE);
    assert_int_equal(rig_read(&f->rig, at + 16, 1), VIRTIO_ACKNOWLEDGE);
    /* Nonsense is ignored: another BAR, a bad length, past the end. */
    static const uint32_t bad[][3] = {
        {1, 0, 4},         {0, 0, 3}, {0, 0, 0}, {0, 2, 4}, {0, VIRTIO_PCI_BAR_SIZE, 4},
        {0, 0xfffffffc, 4}};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        rig_write(&f->rig, at + 4, bad[i][0], 1);
        rig_write(&f->rig, at + 8, bad[i][1], 4);
        rig_write(&f->rig, at + 12, bad[i][2], 4);
        rig_write(&f->rig, at + 16, 0, 4);
        rig_read(&f->rig, at + 16, 4);
        assert_int_equal(driver_status(&f->driver), VIRTIO_ACKNOWLEDGE);
    }
}

/* ---- Negotiation ---- */

static void test_negotiation(void **state) {
    struct fixture *f = *state;
    uint64_t version = VIRTIO_FEATURE(VIRTIO_F_VERSION_1);
    uint64_t offered = driver_offered(&f->driver);
    assert_true(offered & version);
    assert_true(offered & VIRTIO_FEATURE(VIRTIO_F_RING_PACKED));
    assert_true(offered & VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX));
    assert_true(offered & VIRTIO_FEATURE(VIRTIO_F_INDIRECT_DESC));
    assert_true(driver_negotiate(&f->driver, version));
    assert_false(driver_negotiate(&f->driver, 0));
    assert_false(driver_negotiate(&f->driver, version | VIRTIO_FEATURE(50)));
    assert_false(driver_negotiate(&f->driver, offered | 1));
    /* Without FEATURES_OK there is no DRIVER_OK. */
    driver_write(&f->driver, VIRTIO_COMMON_STATUS, 0xf, 1);
    assert_false(driver_status(&f->driver) & VIRTIO_DRIVER_OK);
    driver_write(&f->driver, VIRTIO_COMMON_FEATURE_SELECT, 2, 4);
    assert_int_equal(driver_read(&f->driver, VIRTIO_COMMON_FEATURE, 4), 0);
}

static void test_register_access(void **state) {
    struct fixture *f = *state;
    struct rig_driver *d = &f->driver;
    assert_int_equal(driver_read(d, VIRTIO_COMMON_QUEUES, 2), 1);
    driver_write(d, VIRTIO_COMMON_QUEUE_SELECT, 7, 2);
    assert_int_equal(driver_read(d, VIRTIO_COMMON_QUEUE_SIZE, 2), 0);
    driver_write(d, VIRTIO_COMMON_QUEUE_ENABLE, 1, 2);
    driver_write(d, VIRTIO_COMMON_QUEUE_SELECT, 0, 2);
    assert_int_equal(driver_read(d, VIRTIO_COMMON_QUEUE_SIZE, 2), 64);
    driver_write(d, VIRTIO_COMMON_QUEUE_VECTOR, 500, 2);
    assert_int_equal(driver_read(d, VIRTIO_COMMON_QUEUE_VECTOR, 2), 0xffff);
    driver_write(d, VIRTIO_COMMON_QUEUE_DESCRIPTORS, UINT64_C(0x123456789000), 8);
    assert_int_equal(driver_read(d, VIRTIO_COMMON_QUEUE_DESCRIPTORS, 8), UINT64_C(0x123456789000));
    driver_address(d, VIRTIO_COMMON_QUEUE_DESCRIPTORS, UINT64_C(0xabc00001000));
    assert_int_equal(driver_read(d, VIRTIO_COMMON_QUEUE_DESCRIPTORS, 8), UINT64_C(0xabc00001000));
    driver_write(d, VIRTIO_COMMON_CONFIG_VECTOR, 1, 2);
    driver_write(d, VIRTIO_COMMON_STATUS, 0, 1);
    assert_int_equal(driver_read(d, VIRTIO_COMMON_QUEUE_DESCRIPTORS, 8), 0);
    assert_int_equal(driver_read(d, VIRTIO_COMMON_CONFIG_VECTOR, 2), 0xffff);
}

/* Every register, every size, every value that hurts: nothing but register contents may change. */
static void test_garbage(void **state) {
    struct fixture *f = *state;
    uint32_t seed = 7;
    for (unsigned i = 0; i < 200000; i++) {
        seed = seed * 1664525u + 1013904223u;
        unsigned size = 1u << (seed >> 30), offset = (seed >> 8) & (VIRTIO_PCI_BAR_SIZE - 1);
        if ((seed >> 24 & 3) != 0)
            offset &= 0x3f;
        offset &= ~(size - 1);
        if (seed & 0x80)
            driver_read(&f->driver, offset, size);
        else
            driver_write(&f->driver, offset, (uint64_t)seed << (seed & 31), size);
        if (i % 1000 == 0)
            rig_pump(&f->rig);
    }
    assert_true(driver_negotiate(&f->driver, VIRTIO_FEATURE(VIRTIO_F_VERSION_1)));
}

/* ---- Queues at work ---- */

static void test_entropy(void **state) {
    struct fixture *f = *state;
    for (unsigned packed = 0; packed < 2; packed++) {
        uint8_t zero[64] = {0}, bytes[64];
        uint16_t id;
        uint32_t length;
        rig_put(&f->rig, RIG_DATA, zero, sizeof zero);
        driver_start(&f->driver, packed ? VIRTIO_FEATURE(VIRTIO_F_RING_PACKED) : 0, 1, 16);
        const struct driver_buffer buffer = {RIG_DATA, sizeof bytes};
        ring_add(&f->driver.rings[0], &buffer, 0, 1);
        driver_notify(&f->driver, 0);
        assert_true(ring_used(&f->driver.rings[0], &id, &length));
        assert_int_equal(length, sizeof bytes);
        rig_get(&f->rig, RIG_DATA, bytes, sizeof bytes);
        assert_memory_not_equal(bytes, zero, sizeof bytes);
        /* Without MSI-X: INTA# and the ISR, which reading clears. */
        assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_ISR, 1), 1);
        assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_ISR, 1), 0);
    }
}

static void test_more_than_a_turn(void **state) {
    struct fixture *f = *state;
    uint16_t id;
    uint32_t length;
    unsigned used = 0;
    driver_start(&f->driver, 0, 1, 64);
    for (unsigned i = 0; i < 64; i++) {
        const struct driver_buffer buffer = {RIG_DATA + 8 * i, 8};
        ring_add(&f->driver.rings[0], &buffer, 0, 1);
    }
    driver_notify(&f->driver, 0);
    while (ring_used(&f->driver.rings[0], &id, &length))
        used++;
    assert_true(used < 64);
    for (unsigned i = 0; i < 64; i++)
        rig_pump(&f->rig);
    while (ring_used(&f->driver.rings[0], &id, &length))
        used++;
    assert_int_equal(used, 64);
}

/* MSI-X on, with vector n sending data 0x40 + n to the first local APIC. */
static void enable_msix(struct fixture *f) {
    uint64_t config = f->driver.config;
    unsigned at = (unsigned)rig_read(&f->rig, config + 0x34, 1);
    while (rig_read(&f->rig, config + at, 1) != 0x11)
        at = (unsigned)rig_read(&f->rig, config + at + 1, 1);
    uint64_t table = rig_read(&f->rig, config + 0x18, 4) & ~15u;
    for (unsigned vector = 0; vector < 3; vector++) {
        rig_write(&f->rig, table + 16 * vector, 0xfee00000, 4);
        rig_write(&f->rig, table + 16 * vector + 4, 0, 4);
        rig_write(&f->rig, table + 16 * vector + 8, 0x40 + vector, 4);
        rig_write(&f->rig, table + 16 * vector + 12, 0, 4);
    }
    rig_write(&f->rig, config + at + 2, 0x8000, 2);
}

static void test_msix(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {RIG_DATA, 8};
    enable_msix(f);
    driver_start(&f->driver, 0, 1, 16);
    ring_add(&f->driver.rings[0], &buffer, 0, 1);
    driver_notify(&f->driver, 0);
    assert_int_equal(f->rig.messages, 1);
    assert_int_equal(f->rig.last_message, 0x40);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_ISR, 1), 0);
}

static void test_needs_reset(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {RIG_DATA, 8};
    enable_msix(f);
    driver_start(&f->driver, 0, 1, 16);
    driver_write(&f->driver, VIRTIO_COMMON_CONFIG_VECTOR, 1, 2);
    ring_offer(&f->driver.rings[0], 99);
    driver_notify(&f->driver, 0);
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
    assert_int_equal(f->rig.messages, 1);
    assert_int_equal(f->rig.last_message, 0x41);
    driver_notify(&f->driver, 0);
    assert_int_equal(f->rig.messages, 1);
    driver_start(&f->driver, 0, 1, 16);
    ring_add(&f->driver.rings[0], &buffer, 0, 1);
    driver_notify(&f->driver, 0);
    uint16_t id;
    uint32_t length;
    assert_true(ring_used(&f->driver.rings[0], &id, &length));
}

static void test_no_bus_master(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {RIG_DATA, 8};
    driver_start(&f->driver, 0, 1, 16);
    rig_write(&f->rig, f->driver.config + 4, 2, 2);
    ring_add(&f->driver.rings[0], &buffer, 0, 1);
    driver_notify(&f->driver, 0);
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
}

static void test_notify_address(void **state) {
    struct fixture *f = *state;
    struct virtio_device *device = container_of(f->device, struct virtio_device, device);
    uint64_t gpa;
    assert_true(virtio_pci_notify_address(device, 0, &gpa));
    assert_int_equal(gpa, f->driver.bar + VIRTIO_PCI_NOTIFY);
    rig_write(&f->rig, f->driver.config + 4, 0, 2);
    assert_false(virtio_pci_notify_address(device, 0, &gpa));
    virtio_pci_notify(device, 77);
}

static void test_machine_reset(void **state) {
    struct fixture *f = *state;
    driver_start(&f->driver, 0, 1, 16);
    device_reset(f->device);
    assert_int_equal(driver_status(&f->driver), 0);
    assert_int_equal(driver_read(&f->driver, VIRTIO_COMMON_QUEUE_SIZE, 2), 64);
}

static void test_state(void **state) {
    struct fixture *f = *state;
    struct state_buffer saved = {0};
    const struct driver_buffer buffer = {RIG_DATA, 8};
    size_t used;
    uint16_t id;
    uint32_t length;
    const struct state_table *table = virtio_rng_class.state;
    driver_start(&f->driver, VIRTIO_FEATURE(VIRTIO_F_RING_PACKED), 1, 16);
    ring_add(&f->driver.rings[0], &buffer, 0, 1);
    driver_notify(&f->driver, 0);
    assert_int_equal(state_save(table, f->device, &saved, NULL), 0);
    device_reset(f->device);
    assert_int_equal(state_load(table, f->device, saved.data, saved.length, &used, NULL), 0);
    ring_add(&f->driver.rings[0], &buffer, 0, 1);
    driver_notify(&f->driver, 0);
    assert_true(ring_used(&f->driver.rings[0], &id, &length));
    assert_true(ring_used(&f->driver.rings[0], &id, &length));
    state_buffer_free(&saved);
}

/* ---- The console ---- */

static void console_write(struct fixture *f, const char *text) {
    const struct driver_buffer buffer = {RIG_DATA, (uint32_t)strlen(text)};
    rig_put(&f->rig, RIG_DATA, text, strlen(text));
    ring_add(&f->driver.rings[1], &buffer, 1, 1);
    driver_notify(&f->driver, 1);
}

static void test_console_output(void **state) {
    struct fixture *f = *state;
    uint16_t id;
    uint32_t length;
    driver_start(&f->driver, 0, 2, 16);
    console_write(f, "hello ");
    assert_true(ring_used(&f->driver.rings[1], &id, &length));
    /* The back end takes seven bytes more, then none for a while. */
    f->output_room = 13;
    console_write(f, "wide world");
    assert_false(ring_used(&f->driver.rings[1], &id, &length));
    f->output_room = sizeof f->output;
    virtio_console_resume(f->device);
    assert_true(ring_used(&f->driver.rings[1], &id, &length));
    assert_int_equal(f->output_length, 16);
    assert_memory_equal(f->output, "hello wide world", 16);
}

static void test_console_input(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {RIG_DATA, 4};
    char text[4];
    uint16_t id;
    uint32_t length;
    assert_int_equal(virtio_console_input(f->device, "abc", 3), 0);
    driver_start(&f->driver, 0, 2, 16);
    assert_int_equal(f->input_ready, 1);
    assert_int_equal(virtio_console_input(f->device, "abcdef", 6), 0);
    ring_add(&f->driver.rings[0], &buffer, 0, 1);
    driver_notify(&f->driver, 0);
    assert_int_equal(f->input_ready, 2);
    assert_int_equal(virtio_console_input(f->device, "abcdef", 6), 4);
    assert_true(ring_used(&f->driver.rings[0], &id, &length));
    assert_int_equal(length, 4);
    rig_get(&f->rig, RIG_DATA, text, 4);
    assert_memory_equal(text, "abcd", 4);
}

static void test_console_config(void **state) {
    struct fixture *f = *state;
    driver_start(&f->driver, 0, 2, 16);
    uint64_t generation = driver_read(&f->driver, VIRTIO_COMMON_GENERATION, 1);
    virtio_console_resize(f->device, 132, 50);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE, 2), 132);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 2, 2), 50);
    assert_int_not_equal(driver_read(&f->driver, VIRTIO_COMMON_GENERATION, 1), generation);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_ISR, 1), 2);
    driver_write(&f->driver, VIRTIO_PCI_DEVICE + 8, 'E', 4);
    assert_int_equal(f->output[0], 'E');
    /* Past the end of the configuration. */
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 12, 8), 0);
    driver_write(&f->driver, VIRTIO_PCI_DEVICE + 12, 1, 4);
}

int main(void) {
#define RNG(name)     cmocka_unit_test_setup_teardown(name, setup_rng, teardown)
#define CONSOLE(name) cmocka_unit_test_setup_teardown(name, setup_console, teardown)
    const struct CMUnitTest tests[] = {
        CONSOLE(test_capabilities),
        CONSOLE(test_window),
        RNG(test_negotiation),
        RNG(test_register_access),
        RNG(test_garbage),
        CONSOLE(test_garbage),
        RNG(test_entropy),
        RNG(test_more_than_a_turn),
        RNG(test_msix),
        RNG(test_needs_reset),
        RNG(test_no_bus_master),
        RNG(test_notify_address),
        RNG(test_machine_reset),
        RNG(test_state),
        CONSOLE(test_console_output),
        CONSOLE(test_console_input),
        CONSOLE(test_console_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
