#include "cpu/soft/jit/x87_live.h"

#include "cpu/soft/x87.h"

void jit_x87_load(struct soft_cpu *cpu) {
    struct x87_image image;
    x87_put_image(cpu, &image);
    __asm__ volatile("frstor %0" ::"m"(image));
    cpu->jit.x87_live = true;
}

bool jit_x87_store(struct soft_cpu *cpu) {
    struct x87_image image;
    if (!cpu->jit.x87_live)
        return false;
    __asm__ volatile("fnsave %0" : "=m"(image));
    x87_get_image(cpu, &image);
    cpu->fcw = (uint16_t)image.control;
    cpu->jit.x87_live = false;
    return true;
}
