/*
 * Where things are in a machine's physical address space and port space.
 * ACPI tables, PCI windows, boot protocols and devices all take their
 * addresses from here.
 *
 *     0                  low RAM, up to LAYOUT_LOW_RAM_END
 *       00500h           what the loader leaves for the kernel (LAYOUT_BOOT_*)
 *       9fc00h - fffffh  reserved in the memory map, as on a PC
 *         e0000h         ACPI tables, the RSDP first
 *         f0000h         SMBIOS tables
 *     b0000000h          ECAM, where firmware for a Q35 puts it
 *     c0000000h          PCI memory window below 4 GiB
 *     fec00000h          I/O APIC, HPET, identity page (device/identity.h), local APIC
 *     100000000h         the rest of the RAM, then from the next GiB what may be plugged in
 *     4000000000h        PCI memory window above 4 GiB
 */
#ifndef LODGE_MACHINE_LAYOUT_H
#define LODGE_MACHINE_LAYOUT_H

#include <stdint.h>

#define LAYOUT_LOW_RAM_END   UINT64_C(0xb0000000)
#define LAYOUT_HIGH_RAM_BASE UINT64_C(0x100000000)

/* Conventional memory; what lies between its end and 1 MiB is reserved. */
#define LAYOUT_CONVENTIONAL_END UINT64_C(0x9fc00)
#define LAYOUT_EXTENDED_BASE    UINT64_C(0x100000)

/* What the loader puts below 1 MiB (machine/boot.h). A kernel may reuse it once it has copied it.
 */
#define LAYOUT_BOOT_GDT UINT64_C(0x500)
#define LAYOUT_BOOT_START_INFO                                                                     \
    UINT64_C(0x6000) /* PVH: struct hvm_start_info and what it points to */
#define LAYOUT_BOOT_PARAMS      UINT64_C(0x7000) /* Linux: the "zero page" */
#define LAYOUT_BOOT_STACK       UINT64_C(0x8ff0)
#define LAYOUT_BOOT_PAGE_TABLES UINT64_C(0x9000) /* PML4, PDPT, four page directories */
#define LAYOUT_BOOT_CMDLINE     UINT64_C(0x20000)
#define LAYOUT_BOOT_CMDLINE_MAX UINT64_C(0x10000)

/* What of firmware is to be found below 1 MiB. */
#define LAYOUT_SHADOW_SIZE UINT64_C(0x20000)

#define LAYOUT_ACPI_BASE UINT64_C(0xe0000)
#define LAYOUT_ACPI_SIZE UINT64_C(0x10000)
#define LAYOUT_RSDP      LAYOUT_ACPI_BASE

/* SMBIOS's entry point, where it is looked for, and its structures. */
#define LAYOUT_SMBIOS_BASE   UINT64_C(0xf0000)
#define LAYOUT_SMBIOS_TABLES UINT64_C(0xf0020)
#define LAYOUT_SMBIOS_END    UINT64_C(0xf1000)

#define LAYOUT_MMIO32_BASE UINT64_C(0xc0000000)
#define LAYOUT_MMIO32_SIZE UINT64_C(0x3ec00000)
#define LAYOUT_ECAM_BASE   UINT64_C(0xb0000000)
#define LAYOUT_ECAM_SIZE   UINT64_C(0x10000000)
#define LAYOUT_MMIO64_BASE UINT64_C(0x4000000000)
#define LAYOUT_MMIO64_SIZE UINT64_C(0x1000000000)
/* OVMF maps all that the processor can address with 2 MiB pages: with 48 bits, half a GiB of
 * tables. Its PCI window above 4 GiB is the upper part of what is there. */
#define LAYOUT_FIRMWARE_ADDRESS_BITS 40
#define LAYOUT_FIRMWARE_MMIO64_BASE  UINT64_C(0x800000000)
/* Memory that may come later leaves the upper half of that to the firmware's PCI window. */
#define LAYOUT_FIRMWARE_MEMORY_END UINT64_C(0x8000000000)
#define LAYOUT_CHIPS_BASE          UINT64_C(0xfec00000) /* up to 4 GiB: nothing else */
#define LAYOUT_HPET_BASE           UINT64_C(0xfed00000)
#define LAYOUT_IDENTITY_BASE       UINT64_C(0xfedb0000)

enum {
    LAYOUT_PCI_IO_BASE = 0xc000,
    LAYOUT_PCI_IO_SIZE = 0x2f00,

    LAYOUT_SERIAL_PORT = 0x3f8,
    LAYOUT_SERIAL_IRQ = 4,
    LAYOUT_RTC_IRQ = 8,
    LAYOUT_PVPANIC_PORT = 0x505,
    LAYOUT_PM1_EVENT_PORT = 0x600,   /* 4 ports */
    LAYOUT_PM1_CONTROL_PORT = 0x604, /* 2 */
    LAYOUT_PM_TIMER_PORT = 0x608,    /* 4 */
    LAYOUT_GPE0_PORT = 0x620,        /* 4 */
    /* 600h to 67Fh are the LPC bridge's (PMBASE): whose ports are not its own keep out. */
    LAYOUT_WATCHDOG_PORT = 0x680, /* 16 */
    LAYOUT_CPU_SLOTS_PORT = 0x690,
    LAYOUT_IDLE_PORT = 0x6a0, /* 23 */
    LAYOUT_CPU_SLOTS_GPE = 1,
    LAYOUT_IDENTITY_GPE = 2,
    LAYOUT_IDLE_GPE = 3,
    LAYOUT_RESET_PORT = 0xcf9,
    LAYOUT_SCI_GSI = 9,
};

#endif
