/* A function: configuration space, BARs, INTx, bus mastering. */
#include <stdlib.h>

#include "pci/private.h"

enum { BAR_IO = 1, BAR_MEM64 = 4, BAR_FLAGS_IO = 3, BAR_FLAGS_MEM = 15 };
#define PHYSICAL_LIMIT (UINT64_C(1) << 52)

/* ---- BARs ---- */

static uint64_t bar_address(const struct pci_function *function, unsigned index) {
    const uint8_t *bar = function->space + CONFIG_BARS + 4 * index;
    switch (function->config.bars[index].kind) {
    case PCI_BAR_IO: return load_le32(bar) & ~(uint32_t)BAR_FLAGS_IO;
    case PCI_BAR_MEM32: return load_le32(bar) & ~(uint32_t)BAR_FLAGS_MEM;
    case PCI_BAR_MEM64: return load_le64(bar) & ~(uint64_t)BAR_FLAGS_MEM;
    default: return 0;
    }
}

/* An address of zero, or one that still is all ones from sizing, is not yet an address. */
static bool bar_decodes(const struct pci_function *function, unsigned index, uint64_t address) {
    const struct pci_bar *bar = &function->config.bars[index];
    uint16_t command = function_command(function);
    uint64_t limit = PHYSICAL_LIMIT;

    if (bar->kind == PCI_BAR_IO)
        limit = 0x10000;
    else if (bar->kind == PCI_BAR_MEM32)
        limit = UINT32_MAX;
    if (!(command & (bar->kind == PCI_BAR_IO ? COMMAND_IO : COMMAND_MEMORY)))
        return false;
    return address != 0 && range_within(address, bar->size, limit);
}

static void update_window(struct pci_function *function, unsigned index) {
    struct pci_window *window = &function->windows[index];
    uint64_t address = bar_address(function, index);
    bool enabled = bar_decodes(function, index, address);

    if (enabled == window->enabled && (!enabled || address == window->address))
        return;
    window->enabled = enabled;
    window->address = address;
    if (window->region)
        memory_move_io(window->region, enabled ? address : 0, enabled);
    else if (window->range)
        ports_move(window->range, enabled ? (uint16_t)address : 0, enabled);
}

static void update_intx(struct pci_function *function) {
    uint16_t status = load_le16(function->space + CONFIG_STATUS) & ~STATUS_INTERRUPT;
    if (function->intx)
        status |= STATUS_INTERRUPT;
    store_le16(function->space + CONFIG_STATUS, status);
    bus_set_intx(function->bus, function->slot,
                 function->intx && !(function_command(function) & COMMAND_INTX_DISABLE));
}

void function_update(struct pci_function *function) {
    for (unsigned i = 0; i < PCI_BARS; i++)
        if (function->config.bars[i].kind != PCI_BAR_NONE)
            update_window(function, i);
    atomic_store(&function->master, (function_command(function) & COMMAND_MASTER) != 0);
    update_intx(function);
}

void pci_intx_set(struct pci_function *function, bool level) {
    lock_take(&function->bus->lock);
    if (function->intx != level && function->config.interrupt_pin) {
        function->intx = level;
        update_intx(function);
    }
    lock_release(&function->bus->lock);
}

/* ---- Configuration accesses ---- */

static bool overlaps(unsigned offset, unsigned size, unsigned start, unsigned end) {
    return offset < end && offset + size > start;
}

uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size) {
    if (offset >= CONFIG_HEADER_END && function->config.config_reading)
        function->config.config_reading(function->config.context, (uint16_t)offset, size);
    lock_take(&function->bus->lock);
    uint32_t value = (uint32_t)load_le(function->space + offset, size);
    lock_release(&function->bus->lock);
    return value;
}

static void write_space(struct pci_function *function, unsigned offset, uint32_t value,
                        unsigned size) {
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = function->writable[offset + i];
        uint8_t byte = (uint8_t)(value >> (8 * i));
        uint8_t *at = &function->space[offset + i];
        *at = (*at & ~mask) | (byte & mask);
    }
}

static void tell_all_vectors(const struct pci_function *function) {
    if (function->config.msix_changed)
        for (unsigned vector = 0; vector < function->config.msix_vectors; vector++)
            function->config.msix_changed(function->config.context, (uint16_t)vector);
}

void pci_config_write(struct pci_function *function, unsigned offset, uint32_t value,
                      unsigned size) {
    lock_take(&function->bus->lock);
    uint16_t control = msix_control(function);
    write_space(function, offset, value, size);
    if (overlaps(offset, size, CONFIG_COMMAND, CONFIG_COMMAND + 2) ||
        overlaps(offset, size, CONFIG_BARS, CONFIG_BARS_END))
        function_update(function);
    bool commanded = overlaps(offset, size, CONFIG_COMMAND, CONFIG_COMMAND + 2);
    uint16_t command = function_command(function);
    bool msix_changed = msix_control(function) != control;
    if (msix_changed)
        msix_deliver_pending(function);
    lock_release(&function->bus->lock);

    if (msix_changed)
        tell_all_vectors(function);
    if (commanded && function->config.command_written)
        function->config.command_written(function->config.context, command);
    if (offset >= CONFIG_HEADER_END && function->config.config_written)
        function->config.config_written(function->config.context, (uint16_t)offset, size);
}

uint8_t *pci_config_bytes(struct pci_function *function) {
    return function->space;
}

void pci_config_writable(struct pci_function *function, uint16_t offset, uint8_t mask) {
    function->writable[offset] = mask;
}

uint8_t pci_function_slot(const struct pci_function *function) {
    return function->slot;
}

int pci_add_capability(struct pci_function *function, uint8_t id, const void *body,
                       const void *writable, unsigned length) {
    unsigned offset = function->next_capability;
    if (length < 2 || !range_within(offset, length, CONFIG_LEGACY_SIZE) || offset == 0)
        return -ENOSPC;
    uint8_t *at = function->space + offset;
    at[0] = id;
    at[1] = 0;
    memcpy(at + 2, body, length - 2);
    if (writable)
        memcpy(function->writable + offset + 2, writable, length - 2);

    function->space[function->last_capability ? function->last_capability + 1u
                                              : (unsigned)CONFIG_CAPABILITIES] = (uint8_t)offset;
    function->space[CONFIG_STATUS] |= STATUS_CAPABILITIES;
    function->last_capability = (uint8_t)offset;
    /* 0 once the space is full: offsets are a byte. */
    function->next_capability = (uint8_t)round_up(offset + length, 4);
    return (int)offset;
}

/* ---- DMA ---- */

/* The identity while the function may master the bus. */
static int translate(void *context, uint16_t requester, uint64_t iova, bool write, uint64_t *gpa,
                     size_t *length) {
    const struct pci_function *function = context;
    (void)requester, (void)write, (void)length;
    if (!atomic_load_explicit(&function->master, memory_order_relaxed))
        return -EFAULT;
    *gpa = iova;
    return 0;
}

const struct dma_context *pci_dma(const struct pci_function *function) {
    return &function->dma;
}

/* ---- Serving ---- */

void pci_serve(struct pci_function *function, const struct pci_served *served) {
    function->served = served;
    function->dma.far = served->far;
}

static void *bar_context(struct pci_function *function, unsigned index) {
    return function->config.bars[index].ops == &msix_ops ? function : function->config.context;
}

const struct pci_bar *pci_function_bar(const struct pci_function *function, unsigned index) {
    return &function->config.bars[index];
}

uint64_t pci_bar_read(struct pci_function *function, unsigned index, uint64_t offset,
                      unsigned size) {
    return function->config.bars[index].ops->read(bar_context(function, index), offset, size) &
           bytes_mask(size);
}

void pci_bar_write(struct pci_function *function, unsigned index, uint64_t offset, uint64_t value,
                   unsigned size) {
    function->config.bars[index].ops->write(bar_context(function, index), offset, value, size);
}

bool pci_is_master(const struct pci_function *function) {
    return atomic_load(&function->master);
}

unsigned pci_msix_vectors(const struct pci_function *function) {
    return function->config.msix_vectors;
}

/* ---- Life ---- */

static int check_bar(const struct pci_function_config *config, unsigned index, struct error *err) {
    const struct pci_bar *bar = &config->bars[index];
    uint64_t least = bar->kind == PCI_BAR_IO ? 4 : 16;
    bool last = bar->kind == PCI_BAR_MEM64 &&
                (index + 1 >= PCI_BARS || config->bars[index + 1].kind != PCI_BAR_NONE);
    bool narrow = bar->kind != PCI_BAR_MEM64;

    if (bar->kind == PCI_BAR_NONE)
        return 0;
    if (!is_power_of_two(bar->size) || bar->size < least || last ||
        (narrow && bar->size > UINT32_MAX / 2))
        return error_set(err, -EINVAL, "PCI BAR %u of %#llx bytes cannot be", index,
                         (unsigned long long)bar->size);
    return 0;
}

static int add_window(struct pci_function *function, unsigned index, struct error *err) {
    const struct pci_bar *bar = &function->config.bars[index];
    struct pci_window *window = &function->windows[index];
    struct platform *platform = function->bus->platform;
    void *context = bar_context(function, index);
    uint8_t *at = function->space + CONFIG_BARS + 4 * index;
    uint8_t *mask = function->writable + CONFIG_BARS + 4 * index;
    int rc;

    if (bar->kind == PCI_BAR_NONE)
        return 0;
    if (bar->kind == PCI_BAR_IO) {
        store_le32(at, BAR_IO);
        store_le32(mask, (uint32_t) ~(bar->size - 1) & 0xfffc);
        rc = ports_add(platform->ports, "PCI BAR", 0, (unsigned)bar->size, bar->ops, context,
                       &window->range, err);
        if (rc == 0)
            ports_move(window->range, 0, false);
        return rc;
    }
    if (bar->kind == PCI_BAR_MEM64) {
        store_le32(at, BAR_MEM64);
        store_le64(mask, ~(bar->size - 1));
    } else {
        store_le32(mask, (uint32_t) ~(bar->size - 1));
    }
    rc = memory_add_io(platform->memory, "PCI BAR", PHYSICAL_LIMIT - bar->size, bar->size, bar->ops,
                       context, &window->region, err);
    if (rc == 0)
        memory_move_io(window->region, 0, false);
    return rc;
}

static void fill_header(struct pci_function *function) {
    const struct pci_function_config *config = &function->config;
    uint8_t *space = function->space;

    store_le16(space + CONFIG_VENDOR, config->vendor);
    store_le16(space + CONFIG_DEVICE, config->device);
    space[CONFIG_REVISION] = config->revision;
    space[CONFIG_CLASS] = (uint8_t)config->class_code;
    store_le16(space + CONFIG_CLASS + 1, (uint16_t)(config->class_code >> 8));
    store_le16(space + CONFIG_SUBSYSTEM_VENDOR, config->subsystem_vendor);
    store_le16(space + CONFIG_SUBSYSTEM, config->subsystem);
    space[CONFIG_INTERRUPT_PIN] = config->interrupt_pin;
    store_le16(function->writable + CONFIG_COMMAND, COMMAND_WRITABLE);
    function->writable[CONFIG_CACHE_LINE] = 0xff;
    function->writable[CONFIG_INTERRUPT_LINE] = 0xff;
    function->next_capability = CONFIG_HEADER_END;
}

static int take_slot(struct pci_bus *bus, struct pci_function *function, struct error *err) {
    int slot = function->config.slot;
    if (slot < 0)
        for (slot = 1; slot < PCI_SLOTS && bus->slots[slot]; slot++)
            ;
    if (slot >= PCI_SLOTS || bus->slots[slot])
        return error_set(err, -ENOSPC, "PCI slot %d is taken or there is none left", slot);
    function->slot = (uint8_t)slot;
    function->dma = (struct dma_context){.memory = bus->platform->memory,
                                         .requester = (uint16_t)(slot << 3),
                                         .translate = translate,
                                         .iommu = function};
    return 0;
}

static int set_up_msix(struct pci_function *function, struct error *err) {
    struct pci_function_config *config = &function->config;
    if (config->msix_vectors == 0)
        return 0;
    if (config->msix_vectors > PCI_MSIX_MAX || config->msix_bar >= PCI_BARS)
        return error_set(err, -EINVAL, "%u MSI-X vectors in BAR %u cannot be", config->msix_vectors,
                         config->msix_bar);
    struct pci_bar *bar = &config->bars[config->msix_bar];
    if (bar->kind != PCI_BAR_MEM64)
        bar->kind = PCI_BAR_MEM32;
    bar->size = msix_bar_size(config->msix_vectors);
    bar->ops = &msix_ops;
    int offset = msix_add_capability(function);
    msix_reset(function);
    return offset < 0 ? error_set(err, offset, "no room for the MSI-X capability") : 0;
}

static int set_up(struct pci_function *function, struct error *err) {
    fill_header(function);
    int rc = set_up_msix(function, err);
    for (unsigned i = 0; rc == 0 && i < PCI_BARS; i++) {
        rc = check_bar(&function->config, i, err);
        if (rc == 0)
            rc = add_window(function, i, err);
    }
    return rc;
}

int pci_function_create(struct pci_bus *bus, const struct pci_function_config *config,
                        struct pci_function **function_out, struct error *err) {
    struct pci_function *function = calloc(1, sizeof *function);
    if (!function)
        return error_set(err, -ENOMEM, "no memory for a PCI function");
    function->bus = bus;
    function->config = *config;
    int rc = take_slot(bus, function, err);
    if (rc == 0)
        rc = set_up(function, err);
    if (rc < 0) {
        pci_function_destroy(function);
        return rc;
    }
    lock_take(&bus->lock);
    bus->slots[function->slot] = function;
    lock_release(&bus->lock);
    *function_out = function;
    return 0;
}

void pci_function_destroy(struct pci_function *function) {
    if (!function)
        return;
    lock_take(&function->bus->lock);
    if (function->bus->slots[function->slot] == function) {
        bus_set_intx(function->bus, function->slot, false);
        function->bus->slots[function->slot] = NULL;
    }
    lock_release(&function->bus->lock);
    for (unsigned i = 0; i < PCI_BARS; i++) {
        if (function->windows[i].region)
            memory_remove_io(function->windows[i].region);
        if (function->windows[i].range)
            ports_remove(function->windows[i].range);
    }
    free(function);
}

void pci_function_reset(struct pci_function *function) {
    lock_take(&function->bus->lock);
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
        function->space[i] &= ~function->writable[i];
    function->intx = false;
    msix_reset(function);
    function_update(function);
    lock_release(&function->bus->lock);
    if (function->config.config_replaced)
        function->config.config_replaced(function->config.context);
}

/* The windows follow from the registers. The caller holds no lock: no vCPU runs. */
static int after_load(void *object, struct error *err) {
    struct pci_function *function = object;
    (void)err;
    function_update(function);
    if (function->config.config_replaced)
        function->config.config_replaced(function->config.context);
    return 0;
}

static const struct state_field function_fields[] = {
    STATE_ARRAY(struct pci_function, space, 1, .keep = true),
    STATE_ARRAY(struct pci_function, msix_table, 1, .keep = true),
    STATE_ARRAY(struct pci_function, msix_pending, 1, .keep = true),
    STATE_FIELD(struct pci_function, intx, 1),
};
static const struct state_table function_state =
    STATE_TABLE("pci function", 1, struct pci_function, function_fields, .after_load = after_load);

const struct state_table *pci_function_state(void) {
    return &function_state;
}
