#include <string.h>

#include "base/bytes.h"
#include "cpu/engine.h"

/* APM vol. 2, table 14-1: processor state after reset and INIT. */
enum {
    RESET_RIP = 0xfff0,
    RESET_CS_SELECTOR = 0xf000,
    RESET_DATA = SEG_P | SEG_S | 3,  /* read/write, accessed */
    RESET_CODE = SEG_P | SEG_S | 11, /* execute/read, accessed */
    RESET_LDT = SEG_P | 2,
    RESET_TSS = SEG_P | 11, /* 32-bit, busy: virtualization needs one that is */
    RESET_FCW = 0x40,
    RESET_FTW_INIT = 0xff, /* all registers hold zero */
    RESET_MXCSR = 0x1f80,
    APIC_BASE_BSP = 1 << 8,
    APIC_BASE_ENABLE = 1 << 11,
    /* Family 19h, what EDX holds after a reset; CPUID tells more. */
    RESET_EDX = 0x00a00f11,
};
#define RESET_CS_BASE UINT64_C(0xffff0000)
#define RESET_DR6     UINT64_C(0xffff0ff0)
#define RESET_DR7     UINT64_C(0x400)
#define RESET_PAT     UINT64_C(0x0007040600070406)

/* What only a power-on touches: floating point, MSRs, the APIC's base. */
static void power_on(struct x86_state *state, unsigned id) {
    memset(state, 0, sizeof *state);
    state->fcw = RESET_FCW;
    state->ftw = RESET_FTW_INIT;
    state->mxcsr = RESET_MXCSR;
    state->xcr0 = 1;
    state->pat = RESET_PAT;
    state->apic_base =
        APIC_DEFAULT_BASE | APIC_BASE_ENABLE | (id == 0 ? (uint64_t)APIC_BASE_BSP : 0);
    state->cr0 = CR0_CD | CR0_NW | CR0_ET;
}

void x86_reset_state(struct x86_state *state, unsigned id, bool init) {
    if (!init)
        power_on(state, id);
    memset(state->gpr, 0, sizeof state->gpr);
    state->gpr[RDX] = RESET_EDX;
    state->rip = RESET_RIP;
    state->rflags = FLAGS_FIXED;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] = (struct x86_segment){0, 0xffff, 0, RESET_DATA};
    state->segment[SEG_CS] =
        (struct x86_segment){RESET_CS_BASE, 0xffff, RESET_CS_SELECTOR, RESET_CODE};
    state->ldtr = (struct x86_segment){0, 0xffff, 0, RESET_LDT};
    state->tr = (struct x86_segment){0, 0xffff, 0, RESET_TSS};
    state->gdtr = state->idtr = (struct x86_table){0, 0xffff};
    state->cr0 = (state->cr0 & (CR0_CD | CR0_NW)) | CR0_ET;
    state->cr2 = state->cr3 = state->cr4 = state->cr8 = 0;
    state->efer = 0;
    memset(state->dr, 0, sizeof state->dr);
    state->dr[6] = RESET_DR6;
    state->dr[7] = RESET_DR7;
    state->halted = state->interrupt_shadow = false;
    state->nmi_blocked = state->nmi_pending = false;
    state->waiting_for_sipi = id != 0;
}
