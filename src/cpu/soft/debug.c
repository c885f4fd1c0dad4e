#include "cpu/soft/debug.h"

static enum debug_kind kind_of(const struct soft_cpu *cpu, unsigned n) {
    return cpu->dr[7] >> (16 + 4 * n) & 3;
}

static uint64_t length_of(const struct soft_cpu *cpu, unsigned n) {
    static const uint8_t lengths[] = {1, 2, 8, 4};
    return lengths[cpu->dr[7] >> (18 + 4 * n) & 3];
}

static bool enabled(const struct soft_cpu *cpu, unsigned n) {
    return cpu->dr[7] >> (2 * n) & 3;
}

/* Breakpoints cover their length, aligned down to it. */
static bool overlaps(const struct soft_cpu *cpu, unsigned n, uint64_t first, uint64_t size) {
    uint64_t length = length_of(cpu, n), start = cpu->dr[n] & ~(length - 1);
    return start - first < size || first - start < length;
}

uint64_t debug_match_execute(const struct soft_cpu *cpu, uint64_t linear) {
    uint64_t bits = 0;
    for (unsigned n = 0; n < 4; n++)
        if (enabled(cpu, n) && kind_of(cpu, n) == DEBUG_EXECUTE && cpu->dr[n] == linear)
            bits |= UINT64_C(1) << n;
    return bits;
}

void debug_note_access(struct soft_cpu *cpu, uint64_t linear, unsigned size, bool write) {
    for (unsigned n = 0; n < 4; n++) {
        enum debug_kind kind = kind_of(cpu, n);
        bool match = kind == DEBUG_ACCESS || (kind == DEBUG_WRITE && write);
        if (match && enabled(cpu, n) && overlaps(cpu, n, linear, size))
            cpu->debug_hits |= UINT64_C(1) << n;
    }
}

void debug_note_port(struct soft_cpu *cpu, uint16_t port, unsigned size) {
    if (!(cpu->cr4 & CR4_DE))
        return;
    for (unsigned n = 0; n < 4; n++)
        if (enabled(cpu, n) && kind_of(cpu, n) == DEBUG_IO && overlaps(cpu, n, port, size))
            cpu->debug_hits |= UINT64_C(1) << n;
}

bool debug_watches_page(const struct soft_cpu *cpu, uint64_t page) {
    for (unsigned n = 0; n < 4; n++) {
        enum debug_kind kind = kind_of(cpu, n);
        if ((kind == DEBUG_WRITE || kind == DEBUG_ACCESS) && enabled(cpu, n) &&
            overlaps(cpu, n, page, PAGE_SIZE))
            return true;
    }
    return false;
}

void debug_enter(struct soft_cpu *cpu, uint64_t bits) {
    enum { TOLD = DR6_BD | DR6_BS | DR6_BT | 15 };
    cpu->dr[6] = (cpu->dr[6] & ~(uint64_t)15) | (bits & TOLD) | DR6_FIXED;
    cpu->dr[7] &= ~(uint64_t)DR7_GD;
}
