/* The 64-bit entry of Linux: boot_params, page tables and descriptors as boot.rst asks for. */
#include <stdlib.h>

#include "machine/boot.h"
#include "machine/layout.h"

/* Offsets in struct boot_params (the "zero page", zero-page.rst). */
enum {
    ACPI_RSDP_ADDR = 0x070,
    EXT_RAMDISK_IMAGE = 0x0c0,
    EXT_RAMDISK_SIZE = 0x0c4,
    E820_ENTRIES = 0x1e8,
    SETUP_HEADER = 0x1f1,
    BOOT_FLAG = 0x1fe,
    HEADER_MAGIC = 0x202,
    PROTOCOL_VERSION = 0x206,
    TYPE_OF_LOADER = 0x210,
    LOADFLAGS = 0x211,
    RAMDISK_IMAGE = 0x218,
    RAMDISK_SIZE = 0x21c,
    CMD_LINE_PTR = 0x228,
    INITRD_ADDR_MAX = 0x22c,
    CMDLINE_SIZE = 0x238,
    E820_TABLE = 0x2d0,
    E820_ENTRY_SIZE = 20,
    PARAMS_SIZE = 4096,
};

enum { LOADER_UNDEFINED = 0xff, LOADED_HIGH = 1 };

static void fill_header(uint8_t *params, const struct bzimage *image) {
    if (image != NULL) {
        memcpy(params + SETUP_HEADER, image->file.data + SETUP_HEADER,
               image->header_end - SETUP_HEADER);
    } else {
        store_le16(params + BOOT_FLAG, 0xaa55);
        memcpy(params + HEADER_MAGIC, "HdrS", 4);
        store_le16(params + PROTOCOL_VERSION, 0x20c);
        store_le32(params + INITRD_ADDR_MAX, INT32_MAX);
        store_le32(params + CMDLINE_SIZE, LAYOUT_BOOT_CMDLINE_MAX - 1);
    }
    params[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    params[LOADFLAGS] |= LOADED_HIGH;
}

static void fill_map(uint8_t *params, const struct memory *memory) {
    struct boot_range map[BOOT_MAP_MAX];
    unsigned count = boot_memory_map(memory, map);
    params[E820_ENTRIES] = (uint8_t)count;
    for (unsigned i = 0; i < count; i++) {
        uint8_t *entry = params + E820_TABLE + i * E820_ENTRY_SIZE;
        store_le64(entry, map[i].address);
        store_le64(entry + 8, map[i].size);
        store_le32(entry + 16, map[i].type);
    }
}

static int write_params(struct memory *memory, const struct bzimage *image,
                        const struct boot_info *info) {
    uint8_t params[PARAMS_SIZE] = {0};
    fill_header(params, image);
    fill_map(params, memory);
    store_le64(params + ACPI_RSDP_ADDR, info->rsdp);
    store_le32(params + RAMDISK_IMAGE, (uint32_t)info->initrd);
    store_le32(params + RAMDISK_SIZE, (uint32_t)info->initrd_size);
    store_le32(params + EXT_RAMDISK_IMAGE, (uint32_t)(info->initrd >> 32));
    store_le32(params + EXT_RAMDISK_SIZE, (uint32_t)(info->initrd_size >> 32));
    store_le32(params + CMD_LINE_PTR, (uint32_t)LAYOUT_BOOT_CMDLINE);
    return memory_write(memory, LAYOUT_BOOT_PARAMS, params, sizeof params);
}

/* The first 4 GiB mapped one to one by 2 MiB pages. */
static int write_page_tables(struct memory *memory) {
    enum { ENTRIES = 512, DIRECTORIES = 4, TABLE_FLAGS = 0x3, PAGE_FLAGS = 0x83 };
    uint64_t table[ENTRIES] = {0};
    uint64_t at = LAYOUT_BOOT_PAGE_TABLES, directory = at + 2 * PAGE_SIZE;
    table[0] = (at + PAGE_SIZE) | TABLE_FLAGS;
    int result = memory_write(memory, at, table, sizeof table);
    for (unsigned i = 0; i < DIRECTORIES; i++)
        table[i] = (directory + i * PAGE_SIZE) | TABLE_FLAGS;
    if (result == 0)
        result = memory_write(memory, at + PAGE_SIZE, table, sizeof table);
    for (unsigned i = 0; i < DIRECTORIES && result == 0; i++) {
        for (unsigned j = 0; j < ENTRIES; j++)
            table[j] = GIB(i) + j * MIB(2) + PAGE_FLAGS;
        result = memory_write(memory, directory + i * PAGE_SIZE, table, sizeof table);
    }
    return result;
}

/* Selectors 10h and 18h as the boot protocol wants them; 20h a busy TSS. */
static int write_gdt(struct memory *memory) {
    static const uint64_t gdt[] = {0,
                                   0,
                                   UINT64_C(0x00af9b000000ffff),
                                   UINT64_C(0x00cf93000000ffff),
                                   UINT64_C(0x00008b0000000067),
                                   0};
    return memory_write(memory, LAYOUT_BOOT_GDT, gdt, sizeof gdt);
}

static void set_state(uint64_t entry, struct x86_state *state) {
    static const struct x86_segment code = {
        .limit = UINT32_MAX, .selector = 0x10, .attributes = SEG_G | SEG_L | SEG_P | SEG_S | 0xb};
    static const struct x86_segment data = {
        .limit = UINT32_MAX, .selector = 0x18, .attributes = SEG_G | SEG_DB | SEG_P | SEG_S | 0x3};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] = i == SEG_CS ? code : data;
    state->tr = (struct x86_segment){.limit = 0x67, .selector = 0x20, .attributes = SEG_P | 0xb};
    state->ldtr = (struct x86_segment){.attributes = SEG_P | 0x2, .limit = 0xffff};
    state->gdtr = (struct x86_table){.base = LAYOUT_BOOT_GDT, .limit = 6 * 8 - 1};
    memset(state->gpr, 0, sizeof state->gpr);
    state->gpr[RSI] = LAYOUT_BOOT_PARAMS;
    state->gpr[RSP] = LAYOUT_BOOT_STACK;
    state->rip = entry;
    state->rflags = FLAGS_FIXED;
    state->cr0 = CR0_PG | CR0_PE | CR0_ET | CR0_NE | CR0_WP;
    state->cr3 = LAYOUT_BOOT_PAGE_TABLES;
    state->cr4 = CR4_PAE;
    state->efer = EFER_LME | EFER_LMA;
}

int linux_prepare(struct memory *memory, const struct bzimage *image, const struct boot_info *info,
                  uint64_t entry, struct x86_state *state, struct error *err) {
    if (write_params(memory, image, info) < 0 || write_page_tables(memory) < 0 ||
        write_gdt(memory) < 0)
        return error_set(err, -E2BIG, "the machine has too little memory to boot from");
    set_state(entry, state);
    return 0;
}
