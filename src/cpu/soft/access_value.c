/* The slow paths of single loads and stores, by value. */
#include "cpu/soft/access.h"

__attribute__((cold, noinline)) uint64_t access_load_slow(struct soft_cpu *cpu, unsigned seg,
                                                          uint64_t offset, unsigned size) {
    uint64_t value = 0;
    access_read_slow(cpu, seg, offset, &value, size);
    return value;
}

__attribute__((cold, noinline)) void access_store_slow(struct soft_cpu *cpu, unsigned seg,
                                                       uint64_t offset, uint64_t value,
                                                       unsigned size) {
    access_write_slow(cpu, seg, offset, &value, size);
}
