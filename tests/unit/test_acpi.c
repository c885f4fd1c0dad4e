/* ACPI tables: structure and checksums here; contents by iasl, when it is installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "machine/acpi.h"

enum { GPA = 0xe0000, SIZE = 0x20000, TABLES = 8 };

static uint8_t tables[SIZE];
static size_t length;

struct table {
    char name[5];
    const uint8_t *bytes;
    uint32_t length;
};

static uint8_t sum(const uint8_t *bytes, size_t n) {
    uint8_t total = 0;
    while (n--)
        total += *bytes++;
    return total;
}

static const struct acpi_config made = {.vcpus = 3,
                                        .vcpus_max = 5,
                                        .idle_states = true,
                                        .ram_below_4g = MIB(512),
                                        .plug_base = GIB(4),
                                        .plug_size = GIB(2)};

static int setup(void **state) {
    (void)state;
    struct acpi_config config = made;
    uint64_t rsdp;
    length = acpi_build(&config, tables, sizeof tables, GPA, &rsdp);
    assert_int_equal(rsdp, GPA);
    assert_true(length > 0 && length <= sizeof tables);
    return 0;
}

static struct table table_at(uint64_t gpa) {
    struct table table = {.bytes = tables + (gpa - GPA)};
    assert_in_range(gpa, GPA, GPA + length - 36);
    memcpy(table.name, table.bytes, 4);
    table.length = load_le32(table.bytes + 4);
    assert_true(range_within(gpa - GPA, table.length, length));
    return table;
}

/* XSDT, its entries, and the DSDT. */
static unsigned list(struct table found[TABLES]) {
    unsigned count = 0;
    found[count++] = table_at(load_le64(tables + 24));
    for (uint32_t at = 36; at < found[0].length; at += 8)
        found[count++] = table_at(load_le64(found[0].bytes + at));
    found[count++] = table_at(load_le64(found[1].bytes + 140));
    return count;
}

static void tables_are_linked_and_sum_up(void **state) {
    (void)state;
    static const char *const names[] = {"XSDT", "FACP", "APIC", "MCFG",
                                        "HPET", "WDAT", "SRAT", "DSDT"};
    struct table found[TABLES];
    assert_memory_equal(tables, "RSD PTR ", 8);
    assert_int_equal(sum(tables, 20), 0);
    assert_int_equal(sum(tables, 36), 0);
    assert_int_equal(list(found), ARRAY_SIZE(names));
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        assert_string_equal(found[i].name, names[i]);
        assert_int_equal(sum(found[i].bytes, found[i].length), 0);
    }
    assert_int_equal(found[1].length, 276);
    assert_memory_equal(tables + (load_le32(found[1].bytes + 36) - GPA), "FACS", 4);
}

/* Firmware that does what the links say gets the same tables. */
static void links_make_the_same_tables(void **state) {
    (void)state;
    static uint8_t linked[SIZE];
    struct acpi_config config = made;
    struct acpi_links links;
    uint8_t rsdp[ACPI_RSDP_SIZE] = {0};
    assert_int_equal(acpi_build_linked(&config, linked, sizeof linked, rsdp, &links), length);
    for (unsigned i = 0; i < links.pointer_count; i++) {
        uint8_t *at = linked + links.pointers[i].at;
        store_le(at, load_le(at, links.pointers[i].size) + GPA, links.pointers[i].size);
    }
    for (unsigned i = 0; i < links.sum_count; i++) {
        const struct acpi_sum *s = &links.sums[i];
        assert_int_equal(linked[s->at], 0);
        linked[s->at] = (uint8_t)-sum(linked + s->start, s->length);
    }
    assert_memory_equal(linked + 64, tables + 64, length - 64);
    store_le64(rsdp + ACPI_RSDP_XSDT, load_le64(rsdp + ACPI_RSDP_XSDT) + GPA);
    rsdp[8] = (uint8_t)-sum(rsdp, 20);
    rsdp[32] = (uint8_t)-sum(rsdp, sizeof rsdp);
    assert_memory_equal(rsdp, tables, sizeof rsdp);
}

static void processors_are_listed(void **state) {
    (void)state;
    struct table found[TABLES];
    unsigned enabled = 0, may_come = 0;
    list(found);
    for (uint32_t at = 44; at < found[2].length; at += found[2].bytes[at + 1]) {
        enabled += found[2].bytes[at] == 0 && load_le32(found[2].bytes + at + 4) == 1;
        may_come += found[2].bytes[at] == 0 && load_le32(found[2].bytes + at + 4) == 2;
    }
    assert_int_equal(enabled, 3);
    assert_int_equal(may_come, 2);
}

/* 5.2.16: the RAM, and where there may be more. */
static void pluggable_memory_is_told(void **state) {
    (void)state;
    struct table found[TABLES];
    unsigned processors = 0, ram = 0, pluggable = 0;
    list(found);
    for (uint32_t at = 48; at < found[6].length; at += found[6].bytes[at + 1]) {
        const uint8_t *entry = found[6].bytes + at;
        processors += entry[0] == 0 && load_le32(entry + 4) == 1;
        ram += entry[0] == 1 && load_le64(entry + 8) == 0 && load_le64(entry + 16) == MIB(512) &&
               load_le32(entry + 28) == 1;
        pluggable += entry[0] == 1 && load_le64(entry + 8) == GIB(4) &&
                     load_le64(entry + 16) == GIB(2) && load_le32(entry + 28) == 3;
    }
    assert_int_equal(processors, 5);
    assert_int_equal(ram, 1);
    assert_int_equal(pluggable, 1);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    static uint8_t small[512];
    uint64_t rsdp;
    struct acpi_config config = {.vcpus = 1};
    assert_int_equal(acpi_build(&config, small, sizeof small, GPA, &rsdp), 0);
    assert_int_equal(acpi_build(&config, tables, sizeof tables, GPA + 1, &rsdp), 0);
    config.vcpus = 256;
    assert_int_equal(acpi_build(&config, tables, sizeof tables, GPA, &rsdp), 0);
    config.vcpus = 1;
    config.vcpus_max = 256;
    assert_int_equal(acpi_build(&config, tables, sizeof tables, GPA, &rsdp), 0);
    config.vcpus_max = 255;
    assert_true(acpi_build(&config, tables, sizeof tables, GPA, &rsdp) > 0);
}

/* Disassembles and recompiles a table in the directory; iasl's exit status tells errors. */
static void check_by_iasl(const char *directory, const struct table *table) {
    char command[512];
    snprintf(command, sizeof command, "%.40s/%.4s.dat", directory, table->name);
    FILE *file = fopen(command, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(table->bytes, 1, table->length, file), table->length);
    fclose(file);
    snprintf(command, sizeof command,
             "cd %.40s && iasl -d %.4s.dat >%.4s.log 2>&1 && iasl -we %.4s.dsl >>%.4s.log 2>&1 || "
             "{ cat %.4s.log; false; }",
             directory, table->name, table->name, table->name, table->name, table->name);
    assert_int_equal(system(command), 0);
}

static void iasl_agrees(void **state) {
    (void)state;
    char directory[] = "/tmp/lodge-acpi-XXXXXX", command[64];
    struct table found[TABLES];
    if (system("command -v iasl >/dev/null 2>&1") != 0) {
        print_message("skipped: iasl (package acpica-tools) is not installed\n");
        skip();
    }
    assert_non_null(mkdtemp(directory));
    unsigned count = list(found);
    for (unsigned i = 0; i < count; i++)
        check_by_iasl(directory, &found[i]);
    snprintf(command, sizeof command, "rm -r %s", directory);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(tables_are_linked_and_sum_up, setup),
        cmocka_unit_test_setup(links_make_the_same_tables, setup),
        cmocka_unit_test_setup(processors_are_listed, setup),
        cmocka_unit_test_setup(what_does_not_fit_is_refused, setup),
        cmocka_unit_test_setup(pluggable_memory_is_told, setup),
        cmocka_unit_test_setup(iasl_agrees, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
