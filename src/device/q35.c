#include "device/q35.h"

#include "base/bytes.h"
#include "device/acpi_pm.h"
#include "pci/pci.h"

enum { INTEL = 0x8086, MCH_DEVICE = 0x29c0, LPC_DEVICE = 0x2918 };
enum { CLASS_HOST_BRIDGE = 0x060000, CLASS_ISA_BRIDGE = 0x060100 };

/* The memory controller hub. */
enum { PCIEXBAR = 0x60, PCIEXBAR_ENABLE = 1, PAM0 = 0x90, PAMS = 7 };
enum { PAM_WRITE = 2, PAM_BOTH = 3, PAM_SEGMENT = 16 << 10, PAM_BASE = 0xc0000 };
enum { PAM0_BASE = 0xf0000, PAM0_SIZE = 64 << 10 };
#define PCIEXBAR_BASE UINT64_C(0xff0000000) /* bits 35:28 */

/* The LPC bridge. */
enum {
    PMBASE = 0x40,
    PMBASE_IO = 1,
    PMBASE_MASK = 0xff80,
    ACPI_CONTROL = 0x44,
    ACPI_ENABLE = 0x80
};
enum { PIRQ_A = 0x60, PIRQ_E = 0x68, PIRQ_WRITABLE = 0x8f, PIRQ_OFF = 0x80, RCBA = 0xf0 };
enum { ISA_IRQS_ALLOWED = 0xdef8 }; /* 3 to 7, 9 to 12, 14, 15 */

struct q35 {
    struct device device;
    struct device *acpi_pm;
    struct pci_function *mch, *lpc;
};

/* ---- What the registers say ---- */

static void place_ecam(const struct q35 *q35) {
    uint64_t value = load_le64(pci_config_bytes(q35->mch) + PCIEXBAR);
    pci_bus_place_ecam(q35->device.platform->pci, value & PCIEXBAR_BASE, value & PCIEXBAR_ENABLE);
}

static void protect(const struct q35 *q35, uint64_t gpa, uint64_t size, unsigned attributes) {
    memory_set_readonly(q35->device.platform->memory, gpa, size, !(attributes & PAM_WRITE));
}

/* PAM0's upper half is F0000h to FFFFFh; the others' halves are 16 KiB each, the lower one first.
 */
static void shadow(const struct q35 *q35) {
    const uint8_t *pam = pci_config_bytes(q35->mch) + PAM0;
    protect(q35, PAM0_BASE, PAM0_SIZE, pam[0] >> 4);
    for (unsigned half = 0; half < 2 * (PAMS - 1); half++)
        protect(q35, PAM_BASE + half * PAM_SEGMENT, PAM_SEGMENT,
                half & 1 ? pam[1 + half / 2] >> 4 : pam[1 + half / 2]);
}

static void place_pm(const struct q35 *q35) {
    const uint8_t *config = pci_config_bytes(q35->lpc);
    uint16_t base = load_le16(config + PMBASE) & PMBASE_MASK;
    acpi_pm_place(q35->acpi_pm, base, base != 0 && (config[ACPI_CONTROL] & ACPI_ENABLE));
}

static unsigned pirq_offset(unsigned pirq) {
    return pirq < 4 ? PIRQ_A + pirq : PIRQ_E + pirq - 4;
}

static void route(const struct q35 *q35) {
    for (unsigned pirq = 0; pirq < PCI_PIRQS; pirq++) {
        uint8_t value = pci_config_bytes(q35->lpc)[pirq_offset(pirq)];
        bool led = !(value & PIRQ_OFF) && (ISA_IRQS_ALLOWED >> (value & 15) & 1);
        pci_bus_route(q35->device.platform->pci, pirq, led ? value & 15 : 0);
    }
}

static bool touches(uint16_t offset, unsigned size, unsigned start, unsigned length) {
    return offset < start + length && offset + size > start;
}

static void mch_written(void *context, uint16_t offset, unsigned size) {
    if (touches(offset, size, PCIEXBAR, 8))
        place_ecam(context);
    if (touches(offset, size, PAM0, PAMS))
        shadow(context);
}

static void lpc_written(void *context, uint16_t offset, unsigned size) {
    if (touches(offset, size, PMBASE, ACPI_CONTROL + 1 - PMBASE))
        place_pm(context);
    if (touches(offset, size, PIRQ_A, PIRQ_E + 4 - PIRQ_A))
        route(context);
}

static void mch_replaced(void *context) {
    place_ecam(context);
    shadow(context);
}

static void lpc_replaced(void *context) {
    place_pm(context);
    route(context);
}

/* ---- As firmware leaves it ---- */

uint8_t q35_pirq_irq(unsigned pirq) {
    return (pirq & 3) < 2 ? 10 : 11;
}

void q35_set_up(struct device *device, uint64_t ecam_base, uint16_t pm_base) {
    struct q35 *q35 = (struct q35 *)device;
    uint8_t *mch = pci_config_bytes(q35->mch), *lpc = pci_config_bytes(q35->lpc);
    store_le64(mch + PCIEXBAR, ecam_base | PCIEXBAR_ENABLE);
    for (unsigned i = 0; i < PAMS; i++)
        mch[PAM0 + i] = i == 0 ? PAM_BOTH << 4 : PAM_BOTH << 4 | PAM_BOTH;
    mch_replaced(q35);
    store_le16(lpc + PMBASE, pm_base | PMBASE_IO);
    lpc[ACPI_CONTROL] = ACPI_ENABLE;
    for (unsigned pirq = 0; pirq < PCI_PIRQS; pirq++)
        lpc[pirq_offset(pirq)] = q35_pirq_irq(pirq);
    lpc_replaced(q35);
}

/* ---- Life ---- */

static void writable(struct pci_function *function, uint16_t offset, uint64_t mask, unsigned size) {
    for (unsigned i = 0; i < size; i++)
        pci_config_writable(function, (uint16_t)(offset + i), (uint8_t)(mask >> (8 * i)));
}

static int create_mch(struct q35 *q35, struct error *err) {
    const struct pci_function_config config = {.vendor = INTEL,
                                               .device = MCH_DEVICE,
                                               .class_code = CLASS_HOST_BRIDGE,
                                               .slot = 0,
                                               .context = q35,
                                               .config_written = mch_written,
                                               .config_replaced = mch_replaced};
    int rc = pci_function_create(q35->device.platform->pci, &config, &q35->mch, err);
    if (rc < 0)
        return rc;
    writable(q35->mch, PCIEXBAR, PCIEXBAR_BASE | PCIEXBAR_ENABLE, 8);
    writable(q35->mch, PAM0, UINT64_C(0x33333333333330), PAMS);
    mch_replaced(q35);
    return 0;
}

static int create_lpc(struct q35 *q35, struct error *err) {
    const struct pci_function_config config = {.vendor = INTEL,
                                               .device = LPC_DEVICE,
                                               .class_code = CLASS_ISA_BRIDGE,
                                               .revision = 2,
                                               .slot = Q35_LPC_SLOT,
                                               .context = q35,
                                               .config_written = lpc_written,
                                               .config_replaced = lpc_replaced};
    int rc = pci_function_create(q35->device.platform->pci, &config, &q35->lpc, err);
    if (rc < 0)
        return rc;
    pci_config_bytes(q35->lpc)[PMBASE] = PMBASE_IO;
    writable(q35->lpc, PMBASE, PMBASE_MASK, 2);
    writable(q35->lpc, ACPI_CONTROL, ACPI_ENABLE, 1);
    for (unsigned pirq = 0; pirq < PCI_PIRQS; pirq++)
        writable(q35->lpc, (uint16_t)pirq_offset(pirq), PIRQ_WRITABLE, 1);
    writable(q35->lpc, RCBA, 0xffffc001, 4);
    lpc_replaced(q35);
    return 0;
}

static int q35_init(struct device *device, const void *config, struct error *err) {
    struct q35 *q35 = (struct q35 *)device;
    q35->acpi_pm = ((const struct q35_config *)config)->acpi_pm;
    int rc = create_mch(q35, err);
    if (rc == 0 && (rc = create_lpc(q35, err)) < 0)
        pci_function_destroy(q35->mch);
    return rc;
}

static void q35_destroy(struct device *device) {
    struct q35 *q35 = (struct q35 *)device;
    pci_function_destroy(q35->lpc);
    pci_function_destroy(q35->mch);
}

/* All state is in the two functions' configuration space. */
const struct device_class q35_class = {
    .name = "q35",
    .size = sizeof(struct q35),
    .init = q35_init,
    .destroy = q35_destroy,
};
