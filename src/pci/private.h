/*
 * Inside the room: the bus and a function. The bus's lock guards all of both
 * but what is constant after creation.
 */
#ifndef LODGE_PCI_PRIVATE_H
#define LODGE_PCI_PRIVATE_H

#include <stdatomic.h>

#include "pci/pci.h"

/* The configuration header (PCI 3.0, 6.1). */
enum {
    CONFIG_VENDOR = 0x00,
    CONFIG_DEVICE = 0x02,
    CONFIG_COMMAND = 0x04,
    CONFIG_STATUS = 0x06,
    CONFIG_REVISION = 0x08,
    CONFIG_CLASS = 0x09,
    CONFIG_CACHE_LINE = 0x0c,
    CONFIG_BARS = 0x10,
    CONFIG_BARS_END = 0x28,
    CONFIG_SUBSYSTEM_VENDOR = 0x2c,
    CONFIG_SUBSYSTEM = 0x2e,
    CONFIG_CAPABILITIES = 0x34,
    CONFIG_INTERRUPT_LINE = 0x3c,
    CONFIG_INTERRUPT_PIN = 0x3d,
    CONFIG_HEADER_END = 0x40,
    CONFIG_LEGACY_SIZE = 0x100, /* what mechanism #1 reaches, and where capabilities go */
};
enum {
    COMMAND_IO = 1 << 0,
    COMMAND_MEMORY = 1 << 1,
    COMMAND_MASTER = 1 << 2,
    COMMAND_INTX_DISABLE = 1 << 10,
    COMMAND_WRITABLE = 0x0547,
};
enum { STATUS_INTERRUPT = 1 << 3, STATUS_CAPABILITIES = 1 << 4 };
enum { MSIX_CONTROL = 2, MSIX_MASK_ALL = 1 << 14, MSIX_ENABLE = 1 << 15, MSIX_CAP_SIZE = 12 };
enum { MSIX_ENTRY_SIZE = 16 };

struct pci_window {
    uint64_t address;
    bool enabled;
    struct io_region *region; /* memory BARs */
    struct port_range *range; /* I/O BARs */
};

struct pci_function {
    struct pci_bus *bus;
    struct pci_function_config config;
    uint8_t slot;
    uint8_t space[PCI_CONFIG_SIZE];
    uint8_t writable[PCI_CONFIG_SIZE];
    struct pci_window windows[PCI_BARS];
    uint8_t next_capability; /* where the next one goes */
    uint8_t last_capability; /* whose next pointer it is hooked to, 0: the header's */
    uint8_t msix_capability; /* 0: none */
    uint32_t msix_table[PCI_MSIX_MAX * MSIX_ENTRY_SIZE / 4];
    uint32_t msix_pending[PCI_MSIX_MAX / 32];
    bool intx;
    struct dma_context dma;
    _Atomic(bool) master;
    const struct pci_served *served; /* NULL: to this machine's own guest */
};

struct pci_bus {
    struct platform *platform;
    struct pci_bus_config config;
    struct lock lock;
    struct pci_function *slots[PCI_SLOTS];
    uint32_t pirq_slots[PCI_PIRQS]; /* who raises it: a bit a slot */
    uint8_t pirq_irq[PCI_PIRQS];    /* pci_bus_route */
    uint32_t address;               /* CF8h */
    uint8_t reset_control;          /* CF9h */
    struct port_range *ports;
    struct io_region *ecam;
};

/* function.c. Moves windows, bus mastering and INTx to what configuration space says. Lock held. */
void function_update(struct pci_function *function);

/* bus.c. Drives INTA# of a slot. Lock held. */
void bus_set_intx(struct pci_bus *bus, unsigned slot, bool level);

static inline uint16_t function_command(const struct pci_function *function) {
    return load_le16(function->space + CONFIG_COMMAND);
}

/* msix.c. Lock held, all of these. */
extern const struct io_ops msix_ops;
uint64_t msix_bar_size(unsigned vectors);
void msix_reset(struct pci_function *function);
int msix_add_capability(struct pci_function *function);
/* Sends what was held back while vectors were masked. */
void msix_deliver_pending(struct pci_function *function);
/* The message control word. */
uint16_t msix_control(const struct pci_function *function);

#endif
