/* What firmware reads from the fw_cfg device, and the script by which it places the ACPI tables. */
#include <stdlib.h>

#include "device/fw_cfg.h"
#include "machine/acpi.h"
#include "machine/firmware.h"
#include "machine/layout.h"
#include "machine/smbios.h"

/* ---- The loader's script: entries of 128 bytes ("bios-linker-loader" in QEMU's sources) ---- */

enum { COMMAND_SIZE = 128, COMMANDS_MAX = 2 + 2 * ACPI_LINKS_MAX + 3 };
enum { COMMAND_ALLOCATE = 1, COMMAND_ADD_POINTER, COMMAND_ADD_CHECKSUM };
enum { ZONE_HIGH = 1, ZONE_LOW = 2, TABLES_ALIGN = 64, RSDP_ALIGN = 16 };

#define FILE_TABLES "etc/acpi/tables"
#define FILE_RSDP   "etc/acpi/rsdp"
#define FILE_SCRIPT "etc/table-loader"

struct script {
    uint8_t bytes[COMMANDS_MAX * COMMAND_SIZE];
    size_t length;
};

/* A new command and the names that it begins with; answers where its numbers go. */
static uint8_t *command(struct script *script, uint32_t type, const char *file, const char *other) {
    uint8_t *at = script->bytes + script->length;
    script->length += COMMAND_SIZE;
    store_le32(at, type);
    memcpy(at + 4, file, strlen(file));
    at += 4 + FW_CFG_NAME_SIZE;
    if (other == NULL)
        return at;
    memcpy(at, other, strlen(other));
    return at + FW_CFG_NAME_SIZE;
}

static void allocate(struct script *script, const char *file, uint32_t align, uint8_t zone) {
    uint8_t *at = command(script, COMMAND_ALLOCATE, file, NULL);
    store_le32(at, align);
    at[4] = zone;
}

/* Adds the tables' address to the pointer in file. */
static void add_pointer(struct script *script, const char *file, struct acpi_pointer pointer) {
    uint8_t *at = command(script, COMMAND_ADD_POINTER, file, FILE_TABLES);
    store_le32(at, pointer.at);
    at[4] = pointer.size;
}

static void add_checksum(struct script *script, const char *file, struct acpi_sum sum) {
    uint8_t *at = command(script, COMMAND_ADD_CHECKSUM, file, NULL);
    store_le32(at, sum.at);
    store_le32(at + 4, sum.start);
    store_le32(at + 8, sum.length);
}

static void fill_script(struct script *script, const struct acpi_links *links) {
    allocate(script, FILE_RSDP, RSDP_ALIGN, ZONE_LOW);
    allocate(script, FILE_TABLES, TABLES_ALIGN, ZONE_HIGH);
    for (unsigned i = 0; i < links->pointer_count; i++)
        add_pointer(script, FILE_TABLES, links->pointers[i]);
    for (unsigned i = 0; i < links->sum_count; i++)
        add_checksum(script, FILE_TABLES, links->sums[i]);
    add_pointer(script, FILE_RSDP, (struct acpi_pointer){ACPI_RSDP_XSDT, 8});
    add_checksum(script, FILE_RSDP, (struct acpi_sum){0, 20, 8});
    add_checksum(script, FILE_RSDP, (struct acpi_sum){0, ACPI_RSDP_SIZE, 32});
}

struct acpi_files {
    struct script script;
    uint8_t rsdp[ACPI_RSDP_SIZE];
    uint8_t tables[LAYOUT_ACPI_SIZE];
};

/* What lies above is the firmware's to give to BARs. */
static uint64_t memory_end(const struct firmware_machine *machine) {
    return machine->plug_size > 0 ? machine->plug_base + machine->plug_size
                                  : LAYOUT_HIGH_RAM_BASE + machine->ram_above_4g;
}

static int add_acpi(const struct firmware_machine *machine, struct error *err) {
    struct acpi_config config = {.vcpus = machine->vcpus,
                                 .vcpus_max = machine->vcpus_max,
                                 .idle_states = machine->idle_states,
                                 .firmware = true,
                                 .ram_below_4g = machine->ram_below_4g,
                                 .ram_above_4g = machine->ram_above_4g,
                                 .plug_base = machine->plug_base,
                                 .plug_size = machine->plug_size,
                                 .memory_end = memory_end(machine)};
    struct acpi_files *files = calloc(1, sizeof *files);
    struct acpi_links links;
    if (files == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    size_t length =
        acpi_build_linked(&config, files->tables, sizeof files->tables, files->rsdp, &links);
    int result = length > 0 ? 0 : error_set(err, -ENOSPC, "the ACPI tables do not fit");
    if (result == 0) {
        fill_script(&files->script, &links);
        result = fw_cfg_add_file(machine->fw_cfg, FILE_TABLES, files->tables, length, err);
    }
    if (result == 0)
        result = fw_cfg_add_file(machine->fw_cfg, FILE_RSDP, files->rsdp, sizeof files->rsdp, err);
    if (result == 0)
        result = fw_cfg_add_file(machine->fw_cfg, FILE_SCRIPT, files->script.bytes,
                                 files->script.length, err);
    free(files);
    return result;
}

/* Firmware puts the structures where it likes, and their address into the anchor. */
static int add_smbios(const struct firmware_machine *machine, struct error *err) {
    uint8_t tables[LAYOUT_SMBIOS_END - LAYOUT_SMBIOS_TABLES], anchor[SMBIOS_ANCHOR_SIZE];
    struct smbios_config config = {machine->vcpus, machine->vcpus_max, machine->ram_below_4g,
                                   machine->ram_above_4g};
    size_t length = smbios_build(&config, tables, sizeof tables);
    smbios_anchor(0, length, anchor);
    int result = length > 0 ? 0 : error_set(err, -ENOSPC, "the SMBIOS tables do not fit");
    if (result == 0)
        result = fw_cfg_add_file(machine->fw_cfg, "etc/smbios/smbios-tables", tables, length, err);
    return result == 0 ? fw_cfg_add_file(machine->fw_cfg, "etc/smbios/smbios-anchor", anchor,
                                         sizeof anchor, err)
                       : result;
}

/* ---- Memory and the rest ---- */

enum { E820_RAM = 1, E820_SIZE = 20 };

static int add_memory(const struct firmware_machine *machine, struct error *err) {
    uint8_t map[2 * E820_SIZE] = {0};
    store_le64(map + 8, machine->ram_below_4g);
    store_le32(map + 16, E820_RAM);
    store_le64(map + E820_SIZE, LAYOUT_HIGH_RAM_BASE);
    store_le64(map + E820_SIZE + 8, machine->ram_above_4g);
    store_le32(map + E820_SIZE + 16, E820_RAM);
    int result =
        fw_cfg_add_integer(machine->fw_cfg, FW_CFG_RAM_SIZE,
                           machine->ram_below_4g + machine->ram_above_4g, sizeof(uint64_t), err);
    if (result == 0)
        result = fw_cfg_add_file(machine->fw_cfg, "etc/e820", map,
                                 machine->ram_above_4g ? sizeof map : E820_SIZE, err);
    uint8_t end[8];
    store_le64(end, memory_end(machine));
    return result == 0 && machine->plug_size > 0
               ? fw_cfg_add_file(machine->fw_cfg, "etc/reserved-memory-end", end, sizeof end, err)
               : result;
}

/*
 * Nobody waits for a key: OVMF takes its time-out from boot-menu-wait once
 * the menu is on, SeaBIOS has a switch of its own. SeaBIOS's screen is the
 * serial port, since there is no other, and it stays at its last message when
 * nothing can be booted.
 */
static int add_settings(const struct firmware_machine *machine, struct error *err) {
    static const struct {
        const char *file; /* NULL: an item */
        uint16_t key;
        uint64_t value;
        unsigned size;
    } settings[] = {
        {NULL, FW_CFG_NO_GRAPHIC, 1, 2},          {NULL, FW_CFG_BOOT_MENU, 1, 2},
        {"etc/boot-menu-wait", 0, 0, 2},          {"etc/show-boot-menu", 0, 0, 8},
        {"etc/boot-fail-wait", 0, UINT32_MAX, 4}, {"etc/sercon-port", 0, LAYOUT_SERIAL_PORT, 8},
    };
    int result = fw_cfg_add_integer(machine->fw_cfg, FW_CFG_CPUS, machine->vcpus, 2, err);
    if (result == 0)
        result = fw_cfg_add_integer(machine->fw_cfg, FW_CFG_CPUS_MAX, machine->vcpus_max, 2, err);
    for (size_t i = 0; i < ARRAY_SIZE(settings) && result == 0; i++) {
        uint8_t bytes[8];
        store_le64(bytes, settings[i].value);
        result =
            settings[i].file == NULL
                ? fw_cfg_add(machine->fw_cfg, settings[i].key, bytes, settings[i].size, err)
                : fw_cfg_add_file(machine->fw_cfg, settings[i].file, bytes, settings[i].size, err);
    }
    return result;
}

int firmware_configure(const struct firmware_machine *machine, struct error *err) {
    fw_cfg_forget(machine->fw_cfg);
    int result = add_memory(machine, err);
    if (result == 0)
        result = add_settings(machine, err);
    if (result == 0)
        result = add_acpi(machine, err);
    if (result == 0)
        result = add_smbios(machine, err);
    /* With the terminating 0, as the firmware expects. */
    return result == 0 && machine->boot_order != NULL
               ? fw_cfg_add_file(machine->fw_cfg, "bootorder", machine->boot_order,
                                 strlen(machine->boot_order) + 1, err)
               : result;
}
