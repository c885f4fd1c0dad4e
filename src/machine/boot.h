/*
 * Boot protocols: puts a kernel, its command line and its initial RAM disk
 * into a machine's memory and says in which state the first processor starts,
 * as a boot loader would.
 *
 * Accepted are bzImage files of the Linux/x86 boot protocol 2.12 or later
 * (Documentation/arch/x86/boot.rst) and ELF files that either are a Linux
 * vmlinux (64-bit entry point) or carry a PVH note (Xen's docs/misc/pvh.pandoc
 * and public/arch-x86/hvm/start_info.h). What a bzImage has packed is unpacked
 * here rather than by the guest, which is much faster on an interpreter.
 *
 * Files are not trusted: every offset and length is checked, and nothing is
 * allocated beyond BOOT_FILE_MAX and BOOT_UNPACKED_MAX. Errors:
 * -ENOENT and other errno values of opening and reading, -ENOEXEC for what is
 * no kernel or a damaged one, -E2BIG for what does not fit in the machine.
 *
 * The machine's control thread, with no vCPU running.
 */
#ifndef LODGE_MACHINE_BOOT_H
#define LODGE_MACHINE_BOOT_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "cpu/x86.h"
#include "machine/config.h"
#include "memory/memory.h"

#define BOOT_FILE_MAX     MIB(512)
#define BOOT_UNPACKED_MAX MIB(512)

struct boot;

/*
 * Opens the kernel and the initrd (may be NULL). The files stay open, so that
 * a reboot loads the same ones whatever becomes of their names.
 */
int boot_open(const char *kernel, const char *initrd, const char *cmdline,
              enum boot_protocol protocol, struct boot **boot, struct error *err);
void boot_close(struct boot *boot);

/*
 * Loads everything; rsdp is where the ACPI tables begin (0: none). state is
 * the processor's after reset and becomes the one to start with. May be
 * called again after a machine reset.
 */
int boot_load(struct boot *boot, struct memory *memory, uint64_t rsdp, struct x86_state *state,
              struct error *err);

/* For -v: what was chosen by the last boot_load, "bzImage unpacked by lodge (lz4), ...". */
const char *boot_describe(const struct boot *boot);

/* ---- Within the boot files, and for their tests ---- */

/* A file's bytes, or a part of one. */
struct boot_bytes {
    const uint8_t *data;
    size_t length;
};

/* The setup header of a bzImage, checked. */
struct bzimage {
    struct boot_bytes file;
    uint32_t setup_size; /* what comes before the protected-mode kernel */
    uint32_t header_end; /* of the setup header, from the file's begin */
    uint16_t version;
    bool relocatable, entry_64;
    uint32_t alignment;
    uint32_t init_size;
    uint64_t preferred;
    uint32_t initrd_max, cmdline_max;
    struct boot_bytes payload;
};

bool bzimage_recognise(struct boot_bytes file);
int bzimage_parse(struct boot_bytes file, struct bzimage *image, struct error *err);

/* Told of what is unpacked, in order; an error ends it. */
typedef int payload_taker(void *context, const uint8_t *data, size_t length, struct error *err);

/*
 * Unpacks a bzImage's payload piece after piece. *format names the compression. -ENOTSUP, with
 * nothing taken: a compression that lodge does not know; -ENOEXEC: damaged.
 */
int payload_unpack(struct boot_bytes payload, payload_taker *take, void *context,
                   const char **format, struct error *err);

enum { ELF_SEGMENTS_MAX = 16, ELF_NOTES_MAX = 64 << 10 };

struct elf_segment {
    uint64_t offset, file_size;    /* in the file, checked */
    uint64_t address, memory_size; /* physical */
    uint64_t virtual_address;
};

struct elf_notes {
    uint64_t offset, size, align; /* in the file */
};

/* An ELF executable for x86, checked: segments lie in the file and their addresses do not wrap. */
struct elf_image {
    bool is_64;
    struct elf_segment segments[ELF_SEGMENTS_MAX];
    unsigned count;
    uint64_t low, high;     /* physical addresses that the segments span */
    uint64_t entry;         /* physical */
    struct elf_notes notes; /* still to be read, if any */
    bool has_pvh;
    uint64_t pvh_entry;
};

bool elf_recognise(struct boot_bytes file);
/* From the first part of a file, of which the segments may have so many bytes. */
int elf_parse(struct boot_bytes head, uint64_t size, struct elf_image *image, struct error *err);
/* Clears what the segments have beyond their contents, in guest memory; before elf_write. */
int elf_clear(const struct elf_image *image, struct memory *memory, struct error *err);
/* Copies what these bytes, from `offset` in the file, hold of the segments. */
int elf_write(const struct elf_image *image, uint64_t offset, struct boot_bytes bytes,
              struct memory *memory, struct error *err);
/* With all segments in place: looks for the PVH entry, and checks that the file had all of them. */
int elf_finish(struct elf_image *image, uint64_t size, struct memory *memory, struct error *err);

/* The map of the machine's memory, as E820 has it. */
enum { BOOT_RAM = 1, BOOT_RESERVED = 2, BOOT_MAP_MAX = 8 };
struct boot_range {
    uint64_t address, size;
    uint32_t type;
};
unsigned boot_memory_map(const struct memory *memory, struct boot_range map[BOOT_MAP_MAX]);

/* What a kernel is told, by either protocol. */
struct boot_info {
    uint64_t rsdp;
    uint64_t initrd, initrd_size;
    size_t cmdline_size; /* at LAYOUT_BOOT_CMDLINE, without its final zero */
};

/* Linux, 64-bit entry. image (may be NULL) gives the setup header. */
int linux_prepare(struct memory *memory, const struct bzimage *image, const struct boot_info *info,
                  uint64_t entry, struct x86_state *state, struct error *err);
/* PVH, 32-bit entry. */
int pvh_prepare(struct memory *memory, const struct boot_info *info, uint64_t entry,
                struct x86_state *state, struct error *err);

/* Loads a kernel from bytes: boot_load without files. Used by the fuzzer. */
int boot_load_bytes(struct boot_bytes kernel, enum boot_protocol protocol, struct memory *memory,
                    struct x86_state *state, struct error *err);

#endif
