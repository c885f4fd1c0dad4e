#include "machine/acpi.h"

#include "base/bytes.h"
#include "device/acpi_pm.h"
#include "device/watchdog.h"
#include "interrupt/interrupt.h"
#include "machine/acpi_dsdt.h"
#include "machine/aml.h"
#include "machine/layout.h"

enum { HEADER_SIZE = 36, LENGTH_AT = 4, CHECKSUM_AT = 9, TABLE_ALIGN = 64 };
enum {
    RSDP_SIZE = ACPI_RSDP_SIZE,
    RSDP_CHECKSUM_1_SIZE = 20,
    RSDP_XSDT_AT = ACPI_RSDP_XSDT,
    FACS_SIZE = 64,
    FADT_SIZE = 276
};
enum { SPACE_MEMORY, SPACE_IO };
enum { VCPUS_MAX = 255, HPET_ID = (int)0x8086a201, RESET_VALUE = 6 };

/* The tables grow in one buffer, which lies at gpa. */
struct tables {
    struct aml out;
    uint64_t gpa;
    struct acpi_links *links; /* NULL: nobody asks for them */
};

/* Appends a pointer of 4 or 8 bytes to another table: the only way that one gets in. */
static void put_pointer(struct tables *tables, size_t target, unsigned size) {
    struct acpi_links *links = tables->links;
    if (links != NULL && links->pointer_count < ACPI_LINKS_MAX)
        links->pointers[links->pointer_count++] =
            (struct acpi_pointer){(uint32_t)tables->out.length, (uint8_t)size};
    if (size == 4)
        aml_dword(&tables->out, (uint32_t)(tables->gpa + target));
    else
        aml_qword(&tables->out, tables->gpa + target);
}

static uint8_t checksum(const uint8_t *bytes, size_t length) {
    uint8_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum += bytes[i];
    return (uint8_t)-sum;
}

static void pad(struct aml *out, size_t to) {
    while (!out->overflow && out->length < to)
        aml_byte(out, 0);
}

/* Starts a table at the next boundary; answers where. */
static size_t open_table(struct tables *tables, const char *signature, uint8_t revision) {
    struct aml *out = &tables->out;
    pad(out, round_up(out->length, TABLE_ALIGN));
    size_t start = out->length;
    aml_bytes(out, signature, 4);
    aml_dword(out, 0); /* length and checksum: close_table */
    aml_byte(out, revision);
    aml_byte(out, 0);
    aml_bytes(out, "LODGE ", 6);
    aml_bytes(out, "LODGEVM ", 8);
    aml_dword(out, 1);
    aml_bytes(out, "LODG", 4);
    aml_dword(out, 1);
    return start;
}

static void close_table(struct tables *tables, size_t start) {
    struct aml *out = &tables->out;
    if (out->overflow)
        return;
    uint8_t *table = out->bytes + start;
    size_t length = out->length - start;
    store_le32(table + LENGTH_AT, (uint32_t)length);
    if (tables->links == NULL)
        table[CHECKSUM_AT] = checksum(table, length);
    else if (tables->links->sum_count < ACPI_LINKS_MAX)
        tables->links->sums[tables->links->sum_count++] =
            (struct acpi_sum){(uint32_t)start, (uint32_t)length, (uint32_t)start + CHECKSUM_AT};
}

/* Generic address structure (5.2.3.2); an empty one for width 0. */
static void put_address(struct aml *out, uint8_t space, uint8_t width, uint64_t address) {
    uint8_t access = width == 8 ? 1 : width == 16 ? 2 : width == 32 ? 3 : 0;
    aml_byte(out, width ? space : 0);
    aml_byte(out, width);
    aml_byte(out, 0);
    aml_byte(out, access);
    aml_qword(out, width ? address : 0);
}

/* ---- Tables ---- */

static size_t build_facs(struct tables *tables) {
    struct aml *out = &tables->out;
    pad(out, round_up(out->length, TABLE_ALIGN));
    size_t start = out->length;
    aml_bytes(out, "FACS", 4);
    aml_dword(out, FACS_SIZE);
    pad(out, start + 32);
    aml_byte(out, 2); /* version */
    pad(out, start + FACS_SIZE);
    return start;
}

static size_t build_dsdt(struct tables *tables, const struct acpi_config *config) {
    size_t start = open_table(tables, "DSDT", 2);
    acpi_dsdt(&tables->out, config);
    close_table(tables, start);
    return start;
}

enum {
    FADT_WBINVD = 1 << 0,
    FADT_C1 = 1 << 2,
    FADT_NO_SLEEP_BUTTON = 1 << 5,
    FADT_NO_FIXED_RTC = 1 << 6,
    FADT_TIMER_32 = 1 << 8,
    FADT_RESET = 1 << 10,
    FADT_HEADLESS = 1 << 12,
};
enum { BOOT_LEGACY_DEVICES = 1 << 0, BOOT_NO_VGA = 1 << 2, BOOT_NO_ASPM = 1 << 4 };

/* Bytes 44 to 111 (5.2.9). */
static void fadt_legacy_blocks(struct aml *out) {
    aml_byte(out, 0);
    aml_byte(out, 0); /* power profile: unspecified */
    aml_word(out, LAYOUT_SCI_GSI);
    aml_dword(out, 0); /* no SMI command port: ACPI mode from the start */
    aml_dword(out, 0);
    aml_dword(out, LAYOUT_PM1_EVENT_PORT);
    aml_dword(out, 0);
    aml_dword(out, LAYOUT_PM1_CONTROL_PORT);
    aml_dword(out, 0);
    aml_dword(out, 0);
    aml_dword(out, LAYOUT_PM_TIMER_PORT);
    aml_dword(out, LAYOUT_GPE0_PORT);
    aml_dword(out, 0);
    aml_bytes(out, "\4\2\0\4\4\0\0", 7); /* lengths of the blocks; GPE1's base */
    aml_byte(out, 0);
    aml_word(out, 0xfff); /* C2 and C3: not there */
    aml_word(out, 0xfff);
    aml_dword(out, 0);   /* cache flushing, by WBINVD */
    aml_dword(out, 0);   /* duty cycle, RTC alarm's day and month: not there */
    aml_byte(out, 0x32); /* CMOS byte of the century */
    aml_word(out, BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_ASPM);
    aml_byte(out, 0);
}

/* Bytes 148 to 275. */
static void fadt_extended_blocks(struct aml *out) {
    put_address(out, SPACE_IO, 32, LAYOUT_PM1_EVENT_PORT);
    put_address(out, SPACE_IO, 0, 0);
    put_address(out, SPACE_IO, 16, LAYOUT_PM1_CONTROL_PORT);
    put_address(out, SPACE_IO, 0, 0);
    put_address(out, SPACE_IO, 0, 0);
    put_address(out, SPACE_IO, 32, LAYOUT_PM_TIMER_PORT);
    put_address(out, SPACE_IO, 32, LAYOUT_GPE0_PORT);
    for (unsigned i = 0; i < 3; i++) /* GPE1, sleep control and status */
        put_address(out, SPACE_IO, 0, 0);
    aml_bytes(out, "LODGE\0\0", 8); /* hypervisor vendor */
}

static size_t build_fadt(struct tables *tables, size_t facs, size_t dsdt) {
    struct aml *out = &tables->out;
    size_t start = open_table(tables, "FACP", 6);
    put_pointer(tables, facs, 4);
    put_pointer(tables, dsdt, 4);
    fadt_legacy_blocks(out);
    aml_dword(out, FADT_WBINVD | FADT_C1 | FADT_NO_SLEEP_BUTTON | FADT_NO_FIXED_RTC |
                       FADT_TIMER_32 | FADT_RESET | FADT_HEADLESS);
    put_address(out, SPACE_IO, 8, LAYOUT_RESET_PORT);
    aml_byte(out, RESET_VALUE);
    aml_word(out, 0);
    aml_byte(out, 4); /* minor version */
    aml_qword(out, 0);
    put_pointer(tables, dsdt, 8);
    fadt_extended_blocks(out);
    close_table(tables, start);
    return start;
}

enum { MADT_LAPIC, MADT_IOAPIC, MADT_OVERRIDE, MADT_LAPIC_NMI = 4 };
enum { MADT_ENABLED = 1, MADT_ONLINE_CAPABLE = 2 };
enum { POLARITY_HIGH = 1, TRIGGER_LEVEL = 3 << 2 };

static void madt_override(struct aml *out, uint8_t irq, uint32_t gsi, uint16_t flags) {
    aml_byte(out, MADT_OVERRIDE);
    aml_byte(out, 10);
    aml_byte(out, 0);
    aml_byte(out, irq);
    aml_dword(out, gsi);
    aml_word(out, flags);
}

static size_t build_madt(struct tables *tables, const struct acpi_config *config) {
    struct aml *out = &tables->out;
    size_t start = open_table(tables, "APIC", 5);
    aml_dword(out, APIC_DEFAULT_BASE);
    aml_dword(out, 1); /* there are 8259s, too */
    for (unsigned id = 0; id < config->vcpus || id < config->vcpus_max; id++) {
        aml_byte(out, MADT_LAPIC);
        aml_byte(out, 8);
        aml_byte(out, (uint8_t)id);
        aml_byte(out, (uint8_t)id);
        aml_dword(out, id < config->vcpus ? MADT_ENABLED : MADT_ONLINE_CAPABLE);
    }
    aml_byte(out, MADT_IOAPIC);
    aml_byte(out, 12);
    aml_word(out, 0);
    aml_dword(out, IOAPIC_BASE);
    aml_dword(out, 0);
    madt_override(out, 0, 2, 0);
    madt_override(out, LAYOUT_SCI_GSI, LAYOUT_SCI_GSI, POLARITY_HIGH | TRIGGER_LEVEL);
    aml_byte(out, MADT_LAPIC_NMI);
    aml_byte(out, 6);
    aml_byte(out, 0xff); /* all processors */
    aml_word(out, 0);
    aml_byte(out, 1); /* LINT1 */
    close_table(tables, start);
    return start;
}

static size_t build_mcfg(struct tables *tables) {
    struct aml *out = &tables->out;
    size_t start = open_table(tables, "MCFG", 1);
    aml_qword(out, 0);
    aml_qword(out, LAYOUT_ECAM_BASE);
    aml_word(out, 0); /* segment; first and last bus; reserved */
    aml_word(out, 0);
    aml_dword(out, 0);
    close_table(tables, start);
    return start;
}

static size_t build_hpet(struct tables *tables) {
    struct aml *out = &tables->out;
    size_t start = open_table(tables, "HPET", 1);
    aml_dword(out, (uint32_t)HPET_ID);
    put_address(out, SPACE_MEMORY, 64, LAYOUT_HPET_BASE);
    aml_byte(out, 0);
    aml_word(out, 100); /* the shortest period, in ticks, that loses no interrupts */
    aml_byte(out, 0);
    close_table(tables, start);
    return start;
}

/* One thing that can be done with the watchdog: how, at which register, with which bits. */
static void wdat_entry(struct aml *out, uint8_t action, uint8_t instruction, unsigned offset,
                       uint32_t value, uint32_t mask) {
    aml_byte(out, action);
    aml_byte(out, instruction);
    aml_word(out, 0);
    put_address(out, SPACE_IO, 32, LAYOUT_WATCHDOG_PORT + offset);
    aml_dword(out, value);
    aml_dword(out, mask);
}

/* The watchdog's table (device/watchdog.h): actions and instructions by their numbers there. */
static size_t build_wdat(struct tables *tables) {
    enum { READ, READ_COUNT, WRITE, WRITE_COUNT };
    enum { HEADER = 32, ENTRIES = 8, ENABLED = 1 };
    struct aml *out = &tables->out;
    size_t start = open_table(tables, "WDAT", 1);
    aml_dword(out, HEADER);
    aml_word(out, 0xff); /* no PCI device: segment, bus, device, function */
    aml_bytes(out, "\xff\xff\xff\0\0", 6);
    aml_dword(out, WATCHDOG_TICK_MS);
    aml_dword(out, WATCHDOG_COUNT_MAX);
    aml_dword(out, 1); /* the least count */
    aml_dword(out, ENABLED);
    aml_dword(out, ENTRIES);
    wdat_entry(out, 1, WRITE, WATCHDOG_RESET, 1, 1);
    wdat_entry(out, 4, READ_COUNT, WATCHDOG_COUNT, 0, WATCHDOG_COUNT_MAX);
    wdat_entry(out, 6, WRITE_COUNT, WATCHDOG_COUNT, 0, WATCHDOG_COUNT_MAX);
    wdat_entry(out, 8, READ, WATCHDOG_CONTROL, 1, 1);
    wdat_entry(out, 9, WRITE, WATCHDOG_CONTROL, 1, 1);
    wdat_entry(out, 11, WRITE, WATCHDOG_CONTROL, 0, 1);
    wdat_entry(out, 32, READ, WATCHDOG_STATUS, 1, 1);
    wdat_entry(out, 33, WRITE, WATCHDOG_STATUS, 1, 1);
    close_table(tables, start);
    return start;
}

enum { SRAT_LAPIC, SRAT_MEMORY, SRAT_ENABLED = 1, SRAT_HOT_PLUGGABLE = 2 };

static void srat_processor(struct aml *out, uint8_t id) {
    aml_byte(out, SRAT_LAPIC);
    aml_byte(out, 16);
    aml_byte(out, 0); /* proximity domain, its first byte */
    aml_byte(out, id);
    aml_dword(out, SRAT_ENABLED);
    aml_qword(out, 0); /* SAPIC, the rest of the domain, clock domain */
}

static void srat_memory(struct aml *out, uint64_t base, uint64_t size, uint32_t flags) {
    if (size == 0)
        return;
    aml_byte(out, SRAT_MEMORY);
    aml_byte(out, 40);
    aml_dword(out, 0); /* proximity domain */
    aml_word(out, 0);
    aml_qword(out, base);
    aml_qword(out, size);
    aml_dword(out, 0);
    aml_dword(out, SRAT_ENABLED | flags);
    aml_qword(out, 0);
}

/* Up to where there may be memory one day: kernels lay their own structures out by it. */
static size_t build_srat(struct tables *tables, const struct acpi_config *config) {
    struct aml *out = &tables->out;
    size_t start = open_table(tables, "SRAT", 3);
    aml_dword(out, 1);
    aml_qword(out, 0);
    for (unsigned id = 0; id < config->vcpus || id < config->vcpus_max; id++)
        srat_processor(out, (uint8_t)id);
    srat_memory(out, 0, config->ram_below_4g, 0);
    srat_memory(out, LAYOUT_HIGH_RAM_BASE, config->ram_above_4g, 0);
    srat_memory(out, config->plug_base, config->plug_size, SRAT_HOT_PLUGGABLE);
    close_table(tables, start);
    return start;
}

static size_t build_xsdt(struct tables *tables, const size_t *entries, size_t count) {
    size_t start = open_table(tables, "XSDT", 1);
    for (size_t i = 0; i < count; i++)
        put_pointer(tables, entries[i], 8);
    close_table(tables, start);
    return start;
}

/* Without checksums: those of linked tables come with the links. */
static void fill_rsdp(uint8_t *rsdp, uint64_t xsdt) {
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "LODGE ", 6);
    rsdp[15] = 2; /* revision */
    store_le32(rsdp + 20, RSDP_SIZE);
    store_le64(rsdp + RSDP_XSDT_AT, xsdt);
}

/* Everything behind the RSDP. The XSDT's offset; 0: no room. */
static size_t build(struct tables *tables, const struct acpi_config *config) {
    pad(&tables->out, RSDP_SIZE);
    size_t facs = build_facs(tables);
    size_t dsdt = build_dsdt(tables, config);
    bool plugs = config->plug_size > 0;
    size_t entries[] = {build_fadt(tables, facs, dsdt),
                        build_madt(tables, config),
                        build_mcfg(tables),
                        build_hpet(tables),
                        build_wdat(tables),
                        plugs ? build_srat(tables, config) : 0};
    size_t xsdt = build_xsdt(tables, entries, ARRAY_SIZE(entries) - !plugs);
    return tables->out.overflow ? 0 : xsdt;
}

static bool is_possible(const struct acpi_config *config) {
    return config->vcpus >= 1 && config->vcpus <= VCPUS_MAX && config->vcpus_max <= VCPUS_MAX;
}

size_t acpi_build(const struct acpi_config *config, uint8_t *out, size_t size, uint64_t gpa,
                  uint64_t *rsdp) {
    struct tables tables = {.out = {.bytes = out, .size = size}, .gpa = gpa};
    if (!is_possible(config) || gpa % TABLE_ALIGN || !range_within(gpa, size, UINT32_MAX))
        return 0;
    size_t xsdt = build(&tables, config);
    if (xsdt == 0)
        return 0;
    fill_rsdp(out, gpa + xsdt);
    out[8] = checksum(out, RSDP_CHECKSUM_1_SIZE);
    out[32] = checksum(out, RSDP_SIZE);
    *rsdp = gpa;
    return tables.out.length;
}

size_t acpi_build_linked(const struct acpi_config *config, uint8_t *out, size_t size,
                         uint8_t rsdp[ACPI_RSDP_SIZE], struct acpi_links *links) {
    struct tables tables = {.out = {.bytes = out, .size = size}, .links = links};
    *links = (struct acpi_links){0};
    size_t xsdt = is_possible(config) ? build(&tables, config) : 0;
    if (xsdt == 0 || links->pointer_count == ACPI_LINKS_MAX || links->sum_count == ACPI_LINKS_MAX)
        return 0;
    fill_rsdp(rsdp, xsdt);
    return tables.out.length;
}
