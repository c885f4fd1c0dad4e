/* SMBIOS: every structure is whole, says what it should, and refers to ones that are there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "machine/layout.h"
#include "machine/smbios.h"

enum { ROOM = 4096, TYPES = 128 };

static uint8_t tables[ROOM];
static const uint8_t *first[TYPES]; /* of each type */
static unsigned count[TYPES];

/* Walks as the specification says (6.1.2): formatted part, then strings that end with two zeros. */
static void build(const struct smbios_config *config) {
    size_t length = smbios_build(config, tables, sizeof tables), at = 0;
    memset(first, 0, sizeof first);
    memset(count, 0, sizeof count);
    assert_true(length > 0);
    while (at < length) {
        const uint8_t *structure = tables + at;
        assert_true(length - at >= 6 && structure[1] >= 4 && structure[0] < TYPES);
        if (count[structure[0]]++ == 0)
            first[structure[0]] = structure;
        at += structure[1];
        do
            at++;
        while (at < length && (tables[at - 1] != 0 || tables[at] != 0));
        at++;
    }
    assert_int_equal(at, length);
    assert_ptr_equal(first[127] + 6, tables + length);
}

static const char *string(const uint8_t *structure, unsigned field) {
    const char *text = (const char *)structure + structure[1];
    for (unsigned number = structure[field]; number > 1; number--)
        text += strlen(text) + 1;
    return text;
}

static void small_machine(void **state) {
    (void)state;
    const struct smbios_config config = {.vcpus = 3, .ram_below_4g = MIB(512)};
    build(&config);
    static const uint8_t once[] = {0, 1, 3, 4, 16, 17, 19, 127};
    for (unsigned i = 0; i < ARRAY_SIZE(once); i++)
        assert_int_equal(count[once[i]], 1);
    assert_string_equal(string(first[1], 4), "lodge");
    assert_string_equal(string(first[1], 5), "lodge virtual machine");
    assert_string_equal(string(first[4], 4), "CPU 0");
    assert_int_equal(first[4][0x23], 3); /* cores */
    assert_int_equal(first[4][0x24], 3); /* of which are enabled */
    assert_int_equal(first[4][0x25], 3); /* threads */
    assert_int_equal(load_le64(first[16] + 0x0f), MIB(512));
    assert_int_equal(load_le16(first[17] + 0x0c), 512);
    assert_int_equal(load_le64(first[19] + 0x0f), 0);
    assert_int_equal(load_le64(first[19] + 0x17), MIB(512) - 1);
    /* Lengths of version 3.2. */
    assert_int_equal(first[0][1], 0x1a);
    assert_int_equal(first[1][1], 0x1b);
    assert_int_equal(first[4][1], 0x30);
    assert_int_equal(first[16][1], 0x17);
    assert_int_equal(first[17][1], 0x28);
    assert_int_equal(first[19][1], 0x1f);
    assert_int_equal(load_le16(first[17] + 4), load_le16(first[16] + 2));
    assert_int_equal(load_le16(first[19] + 0x0c), load_le16(first[16] + 2));
}

static void room_for_more_processors(void **state) {
    (void)state;
    const struct smbios_config config = {.vcpus = 2, .vcpus_max = 300, .ram_below_4g = MIB(512)};
    build(&config);
    assert_int_equal(first[4][0x23], 255);
    assert_int_equal(first[4][0x24], 2);
    assert_int_equal(load_le16(first[4] + 0x2a), 300);
    assert_int_equal(load_le16(first[4] + 0x2c), 2);
    assert_int_equal(load_le16(first[4] + 0x2e), 300);
}

static void large_machine(void **state) {
    (void)state;
    const struct smbios_config config = {
        .vcpus = 300, .ram_below_4g = LAYOUT_LOW_RAM_END, .ram_above_4g = GIB(60)};
    build(&config);
    assert_int_equal(count[19], 2);
    assert_int_equal(first[4][0x23], 255);
    assert_int_equal(load_le16(first[4] + 0x2a), 300);
    assert_int_equal(load_le16(first[17] + 0x0c), 0x7fff);
    assert_int_equal(load_le32(first[17] + 0x1c), (LAYOUT_LOW_RAM_END + GIB(60)) >> 20);
}

static void no_room(void **state) {
    (void)state;
    const struct smbios_config config = {.vcpus = 1, .ram_below_4g = MIB(64)};
    size_t length = smbios_build(&config, tables, sizeof tables);
    for (size_t size = 0; size < length; size++)
        assert_int_equal(smbios_build(&config, tables, size), 0);
    assert_int_equal(smbios_build(&config, tables, length), length);
}

static void entry_point(void **state) {
    (void)state;
    uint8_t anchor[SMBIOS_ANCHOR_SIZE], sum = 0;
    smbios_anchor(0xf0020, 321, anchor);
    for (unsigned i = 0; i < sizeof anchor; i++)
        sum += anchor[i];
    assert_int_equal(sum, 0);
    assert_memory_equal(anchor, "_SM3_", 5);
    assert_int_equal(load_le32(anchor + 12), 321);
    assert_int_equal(load_le64(anchor + 16), 0xf0020);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_machine), cmocka_unit_test(room_for_more_processors),
        cmocka_unit_test(large_machine), cmocka_unit_test(no_room),
        cmocka_unit_test(entry_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
