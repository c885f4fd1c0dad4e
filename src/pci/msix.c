/* MSI-X: table, pending bits, messages (PCI 3.0, 6.8.2). */
#include "pci/private.h"

enum { ENTRY_CONTROL = 3, VECTOR_MASKED = 1 };

/* The table fills the lower half of the BAR, the pending bits the upper half. */
uint64_t msix_bar_size(unsigned vectors) {
    uint64_t size = 4096;
    while (size / 2 < (uint64_t)vectors * MSIX_ENTRY_SIZE)
        size *= 2;
    return size;
}

static uint64_t pending_offset(const struct pci_function *function) {
    return msix_bar_size(function->config.msix_vectors) / 2;
}

void msix_reset(struct pci_function *function) {
    memset(function->msix_table, 0, sizeof function->msix_table);
    memset(function->msix_pending, 0, sizeof function->msix_pending);
    for (unsigned vector = 0; vector < function->config.msix_vectors; vector++)
        function->msix_table[vector * 4 + ENTRY_CONTROL] = VECTOR_MASKED;
}

int msix_add_capability(struct pci_function *function) {
    uint8_t body[MSIX_CAP_SIZE - 2] = {0};
    uint8_t writable[MSIX_CAP_SIZE - 2] = {0};
    uint8_t bar = function->config.msix_bar;

    store_le16(body, function->config.msix_vectors - 1);
    store_le16(writable, MSIX_ENABLE | MSIX_MASK_ALL);
    store_le32(body + 2, bar);
    store_le32(body + 6, (uint32_t)pending_offset(function) | bar);
    int offset = pci_add_capability(function, 0x11, body, writable, MSIX_CAP_SIZE);
    if (offset > 0)
        function->msix_capability = (uint8_t)offset;
    return offset;
}

uint16_t msix_control(const struct pci_function *function) {
    if (!function->msix_capability)
        return 0;
    return load_le16(function->space + function->msix_capability + MSIX_CONTROL);
}

/* ---- Vectors ---- */

static bool masked(const struct pci_function *function, unsigned vector) {
    return (msix_control(function) & MSIX_MASK_ALL) ||
           (function->msix_table[vector * 4 + ENTRY_CONTROL] & VECTOR_MASKED);
}

static struct msi_message message_of(const struct pci_function *function, unsigned vector) {
    const uint32_t *entry = &function->msix_table[vector * 4];
    return (struct msi_message){.address = entry[0] | (uint64_t)entry[1] << 32, .data = entry[2]};
}

/* A message is a write by the function: without bus mastering it goes nowhere. */
static void send(struct pci_function *function, unsigned vector) {
    if (atomic_load(&function->master))
        msi_send(function->bus->platform->irqchip, message_of(function, vector));
}

static void deliver_one(struct pci_function *function, unsigned vector) {
    uint32_t bit = UINT32_C(1) << (vector % 32);
    if (!(function->msix_pending[vector / 32] & bit) || masked(function, vector))
        return;
    function->msix_pending[vector / 32] &= ~bit;
    send(function, vector);
}

void msix_deliver_pending(struct pci_function *function) {
    if (!(msix_control(function) & MSIX_ENABLE))
        return;
    for (unsigned vector = 0; vector < function->config.msix_vectors; vector++)
        deliver_one(function, vector);
}

bool pci_msix_enabled(const struct pci_function *function) {
    const struct pci_served *served = function->served;
    if (served)
        return served->enabled(served->context);
    struct lock *lock = &function->bus->lock;
    lock_take(lock);
    bool enabled = msix_control(function) & MSIX_ENABLE;
    lock_release(lock);
    return enabled;
}

bool pci_msix_notify(struct pci_function *function, uint16_t vector) {
    const struct pci_served *served = function->served;
    if (served) {
        served->notify(served->context, vector);
        return served->enabled(served->context);
    }
    struct lock *lock = &function->bus->lock;
    lock_take(lock);
    bool enabled = msix_control(function) & MSIX_ENABLE;
    if (enabled && vector < function->config.msix_vectors) {
        if (masked(function, vector))
            function->msix_pending[vector / 32] |= UINT32_C(1) << (vector % 32);
        else
            send(function, vector);
    }
    lock_release(lock);
    return enabled;
}

bool pci_msix_message(const struct pci_function *function, uint16_t vector,
                      struct msi_message *message) {
    struct lock *lock = &function->bus->lock;
    lock_take(lock);
    bool open = vector < function->config.msix_vectors && (msix_control(function) & MSIX_ENABLE) &&
                !masked(function, vector);
    if (open)
        *message = message_of(function, vector);
    lock_release(lock);
    return open;
}

/* ---- The BAR ---- */

static uint64_t msix_read(void *context, uint64_t offset, unsigned size) {
    struct pci_function *function = context;
    uint64_t table_size = (uint64_t)function->config.msix_vectors * MSIX_ENTRY_SIZE;
    uint64_t pending = pending_offset(function);
    uint64_t value = 0;

    lock_take(&function->bus->lock);
    if (range_within(offset, size, table_size))
        value = load_le((uint8_t *)function->msix_table + offset, size);
    else if (offset >= pending &&
             range_within(offset - pending, size, sizeof function->msix_pending))
        value = load_le((uint8_t *)function->msix_pending + (offset - pending), size);
    lock_release(&function->bus->lock);
    return value;
}

static void write_word(struct pci_function *function, unsigned word, uint32_t value) {
    if (word % 4 == ENTRY_CONTROL)
        value &= VECTOR_MASKED;
    if (word % 4 == 0)
        value &= ~UINT32_C(3);
    function->msix_table[word] = value;
}

/* Software writes the table in aligned words of 4 or 8 bytes (6.8.2); anything else is ignored. */
static void msix_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct pci_function *function = context;
    uint64_t table_size = (uint64_t)function->config.msix_vectors * MSIX_ENTRY_SIZE;

    if (size < 4 || offset % size || !range_within(offset, size, table_size))
        return;
    unsigned word = (unsigned)(offset / 4), vector = word / 4;
    lock_take(&function->bus->lock);
    write_word(function, word, (uint32_t)value);
    if (size == 8)
        write_word(function, word + 1, (uint32_t)(value >> 32));
    if (msix_control(function) & MSIX_ENABLE)
        deliver_one(function, vector);
    lock_release(&function->bus->lock);
    if (function->config.msix_changed)
        function->config.msix_changed(function->config.context, (uint16_t)vector);
}

const struct io_ops msix_ops = {msix_read, msix_write};
