/* The identity page and its events; UUIDs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/identity.h"
#include "platform_rig.h"

enum { PAGE = 0x200000 };

static const char *const text = "00112233-4455-6677-8899-aabbccddeeff",
                         *const host_text = "f0e1d2c3-b4a5-4687-8978-695a4b3c2d1e";
static struct device *device;

static int setup(void **state) {
    struct identity_config config = {.base = PAGE};
    rig_start();
    assert_true(uuid_parse(text, config.generation));
    assert_true(uuid_parse(host_text, config.host));
    device = rig_device(&identity_class, &config);
    return 0;
}

static int teardown(void **state) {
    device_destroy(device);
    rig_stop();
    return 0;
}

static uint64_t look(uint64_t offset, unsigned size) {
    return memory_io_read(rig.platform.memory, PAGE + offset, size);
}

static void uuids(void **state) {
    static const char *const none[] = {"",
                                       "00112233-4455-6677-8899-aabbccddeef",
                                       "00112233-4455-6677-8899-aabbccddeeff0",
                                       "00112233-4455-6677-8899-aabbccddeefg",
                                       "0011223344556677-8899-aabb-ccddeeff--",
                                       "{0112233-4455-6677-8899-aabbccddeeff"};
    uint8_t id[UUID_SIZE] = {1}, other[UUID_SIZE];
    char out[UUID_TEXT];
    for (size_t i = 0; i < ARRAY_SIZE(none); i++)
        assert_false(uuid_parse(none[i], id));
    assert_int_equal(id[0], 1);
    assert_true(uuid_parse("00112233-4455-6677-8899-AABBCCDDEEFF", id));
    uuid_format(id, out);
    assert_string_equal(out, text);
    assert_int_equal(uuid_make(id, NULL), 0);
    assert_int_equal(uuid_make(other, NULL), 0);
    assert_memory_not_equal(id, other, UUID_SIZE);
    assert_int_equal(id[6] >> 4, 4);
    assert_int_equal(id[8] >> 6, 2);
}

/* As GUIDs, in whatever pieces, and nothing that a guest could write. */
static void the_page(void **state) {
    assert_int_equal(look(0, 4), 0x00112233);
    assert_int_equal(look(4, 2), 0x4455);
    assert_int_equal(look(6, 2), 0x6677);
    assert_int_equal(look(8, 8), UINT64_C(0xffeeddccbbaa9988));
    assert_int_equal(look(IDENTITY_HOST_AT, 4), 0xf0e1d2c3);
    assert_int_equal(look(32, 8), 0);
    assert_int_equal(look(36, 8), 0); /* beyond what there is */
    assert_int_equal(look(4088, 8), 0);
    memory_io_write(rig.platform.memory, PAGE, 1, 8);
    device_reset(device);
    assert_int_equal(look(0, 4), 0x00112233);
}

static void add(uint64_t n) {
    struct identity_event event = {.wall_seconds = n, .kind = IDENTITY_MOVED};
    event.generation[0] = (uint8_t)n;
    event.host[15] = (uint8_t)n;
    identity_add_event(device, &event);
}

static void events(void **state) {
    struct identity_event event;
    struct identity now;
    assert_false(identity_get_event(device, 0, &event));
    assert_false(identity_get_event(device, 1, &event));
    for (uint64_t n = 1; n <= 20; n++)
        add(n);
    identity_get(device, &now);
    assert_int_equal(now.events, 20);
    assert_int_equal(now.generation[0], 20);
    assert_int_equal(now.host[15], 20);
    assert_int_equal(look(32, 8), 20);
    for (uint64_t n = 0; n < 40; n++) {
        bool kept = n > 4 && n <= 20;
        assert_int_equal(identity_get_event(device, n, &event), kept);
        if (kept)
            assert_int_equal(event.wall_seconds, n);
    }
}

/* They are a part of the state, and outlive a reset. A count that cannot be is refused. */
static void state_of_it(void **state) {
    const struct state_table *table = identity_class.state;
    struct state_buffer out = {0};
    struct identity now;
    size_t used;
    add(1);
    assert_int_equal(state_save(table, device, &out, NULL), 0);
    add(2);
    device_reset(device);
    identity_get(device, &now);
    assert_int_equal(now.events, 2);
    assert_int_equal(state_load(table, device, out.data, out.length, &used, NULL), 0);
    identity_get(device, &now);
    assert_int_equal(now.events, 1);
    assert_int_equal(now.generation[0], 1);
    uint8_t *at = memmem(out.data, out.length, "events", 6);
    assert_non_null(at);
    for (size_t i = 0; i < 32; i++) {
        uint8_t kept = at[i];
        at[i] = 0xff;
        if (state_load(table, device, out.data, out.length, &used, NULL) == 0) {
            identity_get(device, &now);
            assert_true(now.events <= INT64_MAX);
        }
        at[i] = kept;
    }
    state_buffer_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uuids),
        cmocka_unit_test_setup_teardown(the_page, setup, teardown),
        cmocka_unit_test_setup_teardown(events, setup, teardown),
        cmocka_unit_test_setup_teardown(state_of_it, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
