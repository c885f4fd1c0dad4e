#include "machine/smbios.h"

#include <string.h>

#include "base/bytes.h"
#include "machine/layout.h"

enum {
    TYPE_FIRMWARE = 0,
    TYPE_SYSTEM = 1,
    TYPE_CHASSIS = 3,
    TYPE_PROCESSOR = 4,
    TYPE_MEMORY_ARRAY = 16,
    TYPE_MEMORY_DEVICE = 17,
    TYPE_MEMORY_MAP = 19,
    TYPE_END = 127,
};
/* Handles: the type, and which of them. */
enum {
    HANDLE_CHASSIS = 0x300,
    HANDLE_ARRAY = 0x1000,
    HANDLE_DEVICE = 0x1100,
    HANDLE_NONE = 0xfffe
};
enum { OTHER = 1, UNKNOWN = 2, SAFE = 3, NOT_GIVEN = 0xffff };

/* Structures grow in one buffer: the formatted part, then its strings. */
struct writer {
    uint8_t *bytes;
    size_t length, size;
    size_t start; /* of the present structure */
    const char *strings[4];
    unsigned string_count;
    bool overflow;
};

static void put(struct writer *w, uint64_t value, unsigned size) {
    if (w->overflow || size > w->size - w->length) {
        w->overflow = true;
        return;
    }
    store_le(w->bytes + w->length, value, size);
    w->length += size;
}

static void put8(struct writer *w, unsigned value) {
    put(w, value, 1);
}
static void put16(struct writer *w, unsigned value) {
    put(w, value, 2);
}
static void put32(struct writer *w, uint32_t value) {
    put(w, value, 4);
}
static void put64(struct writer *w, uint64_t value) {
    put(w, value, 8);
}
static void put_zeros(struct writer *w, unsigned count) {
    while (count--)
        put8(w, 0);
}

/* A string's number; its text follows the formatted part. */
static void put_string(struct writer *w, const char *text) {
    w->strings[w->string_count++] = text;
    put8(w, w->string_count);
}

static void begin(struct writer *w, uint8_t type, uint16_t handle) {
    w->start = w->length;
    w->string_count = 0;
    put8(w, type);
    put8(w, 0); /* length: end() */
    put16(w, handle);
}

static void end(struct writer *w) {
    if (!w->overflow)
        w->bytes[w->start + 1] = (uint8_t)(w->length - w->start);
    for (unsigned i = 0; i < w->string_count; i++)
        for (const char *c = w->strings[i];; c++) {
            put8(w, (uint8_t)*c);
            if (*c == 0)
                break;
        }
    put_zeros(w, w->string_count == 0 ? 2 : 1);
}

/* ---- Structures, by their numbers in DSP0134, chapter 7 ---- */

static void firmware(struct writer *w) {
    enum { NOT_SUPPORTED = 1 << 3, VIRTUAL_MACHINE = 1 << 4 };
    begin(w, TYPE_FIRMWARE, 0);
    put_string(w, "lodge");
    put_string(w, LODGE_VERSION);
    put16(w, 0); /* segment: not where a PC's BIOS is */
    put_string(w, "01/01/2026");
    put8(w, 0); /* 64 KiB */
    put64(w, NOT_SUPPORTED);
    put8(w, 0);
    put8(w, VIRTUAL_MACHINE);
    put_zeros(w, 2); /* release */
    put16(w, NOT_GIVEN);
    put16(w, 0);
    end(w);
}

static void system_information(struct writer *w) {
    enum { POWER_SWITCH = 6 };
    begin(w, TYPE_SYSTEM, 0x100);
    put_string(w, "lodge");
    put_string(w, "lodge virtual machine");
    put_string(w, LODGE_VERSION);
    put8(w, 0);       /* serial number */
    put_zeros(w, 16); /* UUID: none */
    put8(w, POWER_SWITCH);
    put_zeros(w, 2);
    end(w);
}

static void chassis(struct writer *w) {
    begin(w, TYPE_CHASSIS, HANDLE_CHASSIS);
    put_string(w, "lodge");
    put8(w, OTHER);
    put_zeros(w, 3); /* version, serial number, asset tag */
    put8(w, SAFE);   /* boot-up state, power supply, thermal state */
    put8(w, SAFE);
    put8(w, SAFE);
    put8(w, UNKNOWN); /* security */
    put32(w, 0);
    put_zeros(w, 5); /* height, power cords, contained elements, SKU */
    end(w);
}

/* One socket, as CPUID says: every vCPU is a core of one thread. */
static void processor(struct writer *w, unsigned enabled, unsigned cores) {
    const unsigned counts[] = {cores, enabled, cores}; /* the third: threads */
    enum { CENTRAL = 3, FAMILY_ZEN = 0x6b, ENABLED = 0x41, UPGRADE_NONE = 6 };
    enum { BITS_64 = 1 << 2, MULTI_CORE = 1 << 3 };
    begin(w, TYPE_PROCESSOR, 0x400);
    put_string(w, "CPU 0");
    put8(w, CENTRAL);
    put8(w, FAMILY_ZEN);
    put_string(w, "lodge");
    put64(w, 0); /* id: CPUID tells */
    put_string(w, "lodge virtual processor");
    put8(w, 0); /* voltage */
    put_zeros(w, 6);
    put8(w, ENABLED);
    put8(w, UPGRADE_NONE);
    for (unsigned level = 1; level <= 3; level++)
        put16(w, NOT_GIVEN); /* caches: CPUID tells */
    put_zeros(w, 3);
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++)
        put8(w, counts[i] < 255 ? counts[i] : 255);
    put16(w, BITS_64 | (cores > 1 ? MULTI_CORE : 0));
    put16(w, FAMILY_ZEN);
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++)
        put16(w, counts[i]);
    end(w);
}

static void memory(struct writer *w, uint64_t bytes) {
    enum { SYSTEM_BOARD = 3, SYSTEM_MEMORY = 3, NO_ECC = 3 };
    enum { DIMM = 9, RAM = 7, IN_MEGABYTES_MOST = 0x7fff, DETAIL_OTHER = 1 << 1 };
    uint64_t megabytes = bytes >> 20;
    begin(w, TYPE_MEMORY_ARRAY, HANDLE_ARRAY);
    put8(w, SYSTEM_BOARD);
    put8(w, SYSTEM_MEMORY);
    put8(w, NO_ECC);
    put32(w, UINT32_C(0x80000000)); /* the capacity is below, in bytes */
    put16(w, HANDLE_NONE);
    put16(w, 1); /* devices */
    put64(w, bytes);
    end(w);

    begin(w, TYPE_MEMORY_DEVICE, HANDLE_DEVICE);
    put16(w, HANDLE_ARRAY);
    put16(w, HANDLE_NONE);
    put16(w, NOT_GIVEN); /* widths */
    put16(w, NOT_GIVEN);
    put16(w, megabytes < IN_MEGABYTES_MOST ? (unsigned)megabytes : IN_MEGABYTES_MOST);
    put8(w, DIMM);
    put8(w, 0); /* of no set */
    put_string(w, "DIMM 0");
    put8(w, 0); /* bank */
    put8(w, RAM);
    put16(w, DETAIL_OTHER);
    put16(w, 0); /* speed */
    put_string(w, "lodge");
    put_zeros(w, 3); /* serial number, asset tag, part number */
    put8(w, 0);      /* rank */
    put32(w, megabytes < IN_MEGABYTES_MOST ? 0 : (uint32_t)megabytes);
    put16(w, 0); /* configured speed and voltages */
    put_zeros(w, 6);
    end(w);
}

static void memory_map(struct writer *w, unsigned number, uint64_t base, uint64_t bytes) {
    if (bytes == 0)
        return;
    begin(w, TYPE_MEMORY_MAP, (uint16_t)(0x1300 + number));
    put32(w, UINT32_MAX); /* the addresses are below, in bytes */
    put32(w, UINT32_MAX);
    put16(w, HANDLE_ARRAY);
    put8(w, 1); /* one device a row */
    put64(w, base);
    put64(w, base + bytes - 1);
    end(w);
}

size_t smbios_build(const struct smbios_config *config, uint8_t *out, size_t size) {
    struct writer w = {.bytes = out, .size = size};
    firmware(&w);
    system_information(&w);
    chassis(&w);
    processor(&w, config->vcpus,
              config->vcpus_max > config->vcpus ? config->vcpus_max : config->vcpus);
    memory(&w, config->ram_below_4g + config->ram_above_4g);
    memory_map(&w, 0, 0, config->ram_below_4g);
    memory_map(&w, 1, LAYOUT_HIGH_RAM_BASE, config->ram_above_4g);
    begin(&w, TYPE_END, 0x7f00);
    end(&w);
    return w.overflow ? 0 : w.length;
}

void smbios_anchor(uint64_t gpa, size_t length, uint8_t anchor[SMBIOS_ANCHOR_SIZE]) {
    memset(anchor, 0, SMBIOS_ANCHOR_SIZE);
    memcpy(anchor, "_SM3_", 5);
    anchor[6] = SMBIOS_ANCHOR_SIZE;
    anchor[7] = 3; /* version 3.2 */
    anchor[8] = 2;
    anchor[10] = 1; /* revision of the entry point */
    store_le32(anchor + 12, (uint32_t)length);
    store_le64(anchor + 16, gpa);
    uint8_t sum = 0;
    for (unsigned i = 0; i < SMBIOS_ANCHOR_SIZE; i++)
        sum += anchor[i];
    anchor[5] = (uint8_t)-sum;
}
