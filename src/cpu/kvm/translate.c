/*
 * Guest-virtual to guest-physical, by walking the guest's tables (APM vol. 2,
 * 5.2 and 5.3). KVM_TRANSLATE would set accessed bits.
 */
#include "base/bytes.h"
#include "cpu/kvm/kvm.h"

enum { PTE_PRESENT = 1, PTE_LARGE = 0x80 };

/* One way of paging: how many levels, what an entry is like. */
struct paging {
    unsigned levels;
    unsigned index_bits;
    unsigned entry_size;
    bool top_is_pointers; /* PAE: the top level has 4 entries, which are never large */
};

static struct paging paging_of(const struct kvm_sregs *sregs) {
    if (sregs->efer & EFER_LMA)
        return (struct paging){4, 9, 8, false};
    if (sregs->cr4 & CR4_PAE)
        return (struct paging){3, 9, 8, true};
    return (struct paging){2, 10, 4, false};
}

static bool may_be_large(const struct kvm_sregs *sregs, const struct paging *paging,
                         unsigned level) {
    if (level == 0 || level == 3 || (paging->top_is_pointers && level == 2))
        return false;
    return paging->entry_size == 8 || sregs->cr4 & CR4_PSE;
}

/* A 4 MiB page of 32-bit paging has its address bits 32 to 39 in bits 13 to 20. */
static uint64_t frame_of(uint64_t entry, const struct paging *paging, uint64_t page_size) {
    if (paging->entry_size == 4 && page_size > PAGE_SIZE)
        return (entry & 0xffc00000) | (entry >> 13 & 0xff) << 32;
    return entry & UINT64_C(0x000ffffffffff000) & ~(page_size - 1);
}

static int walk(const struct kvm_vcpu *vcpu, const struct kvm_sregs *sregs, uint64_t gva,
                uint64_t *gpa) {
    struct memory *memory = vcpu->vcpu.engine->config.memory;
    struct paging paging = paging_of(sregs);
    uint64_t table =
        sregs->cr3 & (paging.top_is_pointers ? UINT64_C(0xffffffe0) : UINT64_C(0x000ffffffffff000));
    for (unsigned level = paging.levels; level-- > 0;) {
        unsigned shift = PAGE_SHIFT + level * paging.index_bits;
        uint64_t index = gva >> shift & ((1u << paging.index_bits) - 1), entry = 0;
        if (memory_read(memory, table + index * paging.entry_size, &entry, paging.entry_size) < 0 ||
            !(entry & PTE_PRESENT))
            return -EFAULT;
        uint64_t page_size = UINT64_C(1) << shift;
        if (level == 0 || (entry & PTE_LARGE && may_be_large(sregs, &paging, level))) {
            *gpa = frame_of(entry, &paging, page_size) + (gva & (page_size - 1));
            return 0;
        }
        table = frame_of(entry, &paging, PAGE_SIZE);
    }
    return -EFAULT;
}

int kvm_translate(struct vcpu *base, uint64_t gva, uint64_t *gpa) {
    const struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    struct kvm_sregs sregs;
    if (kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
        return -EFAULT;
    if (!(sregs.efer & EFER_LMA))
        gva = (uint32_t)gva;
    else if ((int64_t)(gva << 16) >> 16 != (int64_t)gva)
        return -EFAULT;
    if (sregs.cr0 & CR0_PG)
        return walk(vcpu, &sregs, gva, gpa);
    *gpa = gva;
    return 0;
}
