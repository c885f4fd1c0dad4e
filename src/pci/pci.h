/*
 * The PCI bus: configuration mechanism #1 (ports CF8h and CFCh) and ECAM,
 * functions with their configuration space, BARs, MSI and MSI-X, INTx. The
 * chipset's own functions are a device (device/q35.h).
 *
 * Source: PCI Local Bus 3.0 and PCI Express Base 3.0, chapter 7; PCI Firmware
 * Specification 3.0 for ECAM.
 *
 * Configuration and BAR changes come on vCPU threads; pci_msix_notify and
 * pci_intx_set from any thread.
 */
#ifndef LODGE_PCI_PCI_H
#define LODGE_PCI_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/state.h"
#include "device/device.h"
#include "memory/dma.h"

enum { PCI_BARS = 6, PCI_CONFIG_SIZE = 4096, PCI_SLOTS = 32, PCI_MSIX_MAX = 256 };
enum { PCI_PIRQS = 8, PCI_ECAM_SIZE = 256 << 20 };

struct pci_bus;
struct pci_function;

/* Where BARs are placed by lodge itself for direct kernel boot. */
struct pci_bus_config {
    uint64_t mmio32_base, mmio32_size;
    uint64_t mmio64_base, mmio64_size;
    uint16_t io_base, io_size;
};

int pci_bus_create(struct platform *platform, const struct pci_bus_config *config,
                   struct pci_bus **bus, struct error *err);
void pci_bus_destroy(struct pci_bus *bus); /* after its functions */
void pci_bus_reset(struct pci_bus *bus);   /* its functions, too */
/* Where ECAM is and whether it answers (not after creation): 1 MiB a bus, functions on bus 0. */
void pci_bus_place_ecam(struct pci_bus *bus, uint64_t base, bool enabled);
/* Leads PIRQ n (0 to PCI_PIRQS - 1) to an interrupt of the 8259s as well, 0: to none (so after
 * creation). The I/O APIC's pin pci_slot_gsi gets it in any case. */
void pci_bus_route(struct pci_bus *bus, unsigned pirq, uint8_t irq);
/* The bus's own registers. Functions: walk them with pci_bus_next (NULL: the first), and use
 * pci_function_state on each. */
const struct state_table *pci_bus_state(void);
struct pci_function *pci_bus_next(struct pci_bus *bus, const struct pci_function *function);
/* Gives every BAR an address and turns decoding on, as firmware would. After all functions are
 * there, and after each reset. -ENOSPC. */
int pci_bus_assign(struct pci_bus *bus, struct error *err);

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_bar {
    enum pci_bar_kind kind;
    uint64_t size;            /* a power of two; at least 16 (memory) or 4 (I/O) */
    const struct io_ops *ops; /* context is pci_function_config.context */
};

struct pci_function_config {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code; /* base << 16 | sub << 8 | interface */
    uint8_t revision;
    bool interrupt_pin; /* INTA# wired */
    struct pci_bar bars[PCI_BARS];
    uint16_t msix_vectors; /* 0: no MSI-X capability */
    uint8_t msix_bar;      /* a BAR of its own (kind MEM32 or MEM64, size and ops filled here) */
    int slot;              /* -1: the next free one */
    void *context;         /* for the BARs' ops and the calls below */
    /* Optional: bytes of config space above the header that were written. Called on the vCPU's
     * thread with no lock held, as are the three below. */
    void (*config_written)(void *context, uint16_t offset, unsigned size);
    /* Optional: bytes above the header that are about to be read; may refresh them through
     * pci_config_bytes (virtio's window to its BAR, virtio 1.2 section 4.1.4.9). */
    void (*config_reading)(void *context, uint16_t offset, unsigned size);
    /* Optional: the command register was written. */
    void (*command_written)(void *context, uint16_t command);
    /* Optional: all of config space has changed, by a reset or a loaded state. No vCPU runs. */
    void (*config_replaced)(void *context);
    /* Optional: MSI-X vector masked or unmasked (routes of irqfds). */
    void (*msix_changed)(void *context, uint16_t vector);
};

int pci_function_create(struct pci_bus *bus, const struct pci_function_config *config,
                        struct pci_function **function, struct error *err);
void pci_function_destroy(struct pci_function *function);
void pci_function_reset(struct pci_function *function);
/* Configuration space, BAR addresses, MSI-X table. Saved by walking the bus. */
const struct state_table *pci_function_state(void);

uint8_t pci_function_slot(const struct pci_function *function);

/*
 * Adds a capability of `length` bytes (id and next pointer included, body
 * after them from `body`); writable: mask of body bits the guest may write,
 * or NULL for none. A reset clears the writable bits. Returns its offset, or
 * -ENOSPC.
 */
int pci_add_capability(struct pci_function *function, uint8_t id, const void *body,
                       const void *writable, unsigned length);
uint8_t *pci_config_bytes(struct pci_function *function); /* the 4096 bytes, for config_written */
/* Bits of a byte above the header that the guest may write; a reset clears them. At creation. */
void pci_config_writable(struct pci_function *function, uint16_t offset, uint8_t mask);

/* The function's DMA context. Valid while the function is; refuses (-EFAULT) while bus mastering is
 * off. */
const struct dma_context *pci_dma(const struct pci_function *function);

/* Signals MSI-X vector n if MSI-X is on (pending bit if it is masked). False: MSI-X is off, use
 * INTx. */
bool pci_msix_notify(struct pci_function *function, uint16_t vector);
bool pci_msix_enabled(const struct pci_function *function);
/* Vector n's message; false while masked or off. */
bool pci_msix_message(const struct pci_function *function, uint16_t vector,
                      struct msi_message *message);

void pci_intx_set(struct pci_function *function, bool level);

/*
 * Serving a function to another process's VM (vfio_user/server.h): its bus has no vCPUs, and these
 * take the place of what they would do. Any thread.
 */
struct pci_served {
    const struct dma_far *far; /* the guest's memory */
    /* In place of pci_msix_enabled and pci_msix_notify. There is no INTx. */
    bool (*enabled)(void *context);
    void (*notify)(void *context, uint16_t vector);
    void *context;
};
/* Before the function is used; `served` outlives it. */
void pci_serve(struct pci_function *function, const struct pci_served *served);
/* Accesses to configuration space: within it, of 1, 2 or 4 bytes. */
uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size);
void pci_config_write(struct pci_function *function, unsigned offset, uint32_t value,
                      unsigned size);
/* BAR 0 to PCI_BARS - 1 (size 0: none), and accesses as struct io_ops says, within it. */
const struct pci_bar *pci_function_bar(const struct pci_function *function, unsigned index);
uint64_t pci_bar_read(struct pci_function *function, unsigned index, uint64_t offset,
                      unsigned size);
void pci_bar_write(struct pci_function *function, unsigned index, uint64_t offset, uint64_t value,
                   unsigned size);
/* It may reach memory. */
bool pci_is_master(const struct pci_function *function);
unsigned pci_msix_vectors(const struct pci_function *function);

/* INTA# of slot s is wired to this PIRQ, and that to global system interrupt 16 + PIRQ: for the
 * ACPI _PRT. Firmware's idea of a Q35 agrees, modulo 4. */
static inline unsigned pci_slot_pirq(unsigned slot) {
    return slot <= 24 ? slot % PCI_PIRQS : 0;
}
static inline unsigned pci_slot_gsi(unsigned slot) {
    return 16 + pci_slot_pirq(slot);
}

#endif
