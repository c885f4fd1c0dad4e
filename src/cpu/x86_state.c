/* struct x86_state as a table: what snapshots save of a vCPU, besides its local APIC. */
#include "cpu/x86.h"

#include "base/state.h"

static const struct state_field segment_fields[] = {
    STATE_FIELD(struct x86_segment, base, 1),
    STATE_FIELD(struct x86_segment, limit, 1),
    STATE_FIELD(struct x86_segment, selector, 1),
    STATE_FIELD(struct x86_segment, attributes, 1),
};
static const struct state_table segment_state =
    STATE_TABLE("segment", 1, struct x86_segment, segment_fields);

static const struct state_field descriptors_fields[] = {
    STATE_FIELD(struct x86_table, base, 1),
    STATE_FIELD(struct x86_table, limit, 1),
};
static const struct state_table descriptors_state =
    STATE_TABLE("descriptor table", 1, struct x86_table, descriptors_fields);

static const struct state_field x87_fields[] = {
    STATE_FIELD(struct x86_x87, significand, 1),
    STATE_FIELD(struct x86_x87, sign_exponent, 1),
};
static const struct state_table x87_state = STATE_TABLE("x87", 1, struct x86_x87, x87_fields);

static const struct state_field fields[] = {
    STATE_ARRAY(struct x86_state, gpr, 1),
    STATE_FIELD(struct x86_state, rip, 1),
    STATE_FIELD(struct x86_state, rflags, 1),
    STATE_NESTED_ARRAY(struct x86_state, segment, &segment_state, 1),
    STATE_NESTED(struct x86_state, ldtr, &segment_state, 1),
    STATE_NESTED(struct x86_state, tr, &segment_state, 1),
    STATE_NESTED(struct x86_state, gdtr, &descriptors_state, 1),
    STATE_NESTED(struct x86_state, idtr, &descriptors_state, 1),
    STATE_FIELD(struct x86_state, cr0, 1),
    STATE_FIELD(struct x86_state, cr2, 1),
    STATE_FIELD(struct x86_state, cr3, 1),
    STATE_FIELD(struct x86_state, cr4, 1),
    STATE_FIELD(struct x86_state, cr8, 1),
    STATE_ARRAY(struct x86_state, dr, 1),
    STATE_FIELD(struct x86_state, xcr0, 1),
    STATE_FIELD(struct x86_state, efer, 1),
    STATE_FIELD(struct x86_state, star, 1),
    STATE_FIELD(struct x86_state, lstar, 1),
    STATE_FIELD(struct x86_state, cstar, 1),
    STATE_FIELD(struct x86_state, sfmask, 1),
    STATE_FIELD(struct x86_state, kernel_gs_base, 1),
    STATE_FIELD(struct x86_state, tsc_aux, 1),
    STATE_FIELD(struct x86_state, sysenter_cs, 1),
    STATE_FIELD(struct x86_state, sysenter_esp, 1),
    STATE_FIELD(struct x86_state, sysenter_eip, 1),
    STATE_FIELD(struct x86_state, pat, 1),
    STATE_FIELD(struct x86_state, mtrr_def_type, 1),
    STATE_ARRAY(struct x86_state, mtrr_fixed, 1),
    STATE_ARRAY(struct x86_state, mtrr_base, 1),
    STATE_ARRAY(struct x86_state, mtrr_mask, 1),
    STATE_FIELD(struct x86_state, tsc_offset, 1),
    STATE_FIELD(struct x86_state, kvm_wall_clock, 1),
    STATE_FIELD(struct x86_state, kvm_system_time, 1),
    STATE_FIELD(struct x86_state, apic_base, 1),
    STATE_NESTED_ARRAY(struct x86_state, x87, &x87_state, 1),
    STATE_FIELD(struct x86_state, fcw, 1),
    STATE_FIELD(struct x86_state, fsw, 1),
    STATE_FIELD(struct x86_state, ftw, 1),
    STATE_FIELD(struct x86_state, fop, 1),
    STATE_FIELD(struct x86_state, fip, 1),
    STATE_FIELD(struct x86_state, fdp, 1),
    STATE_FIELD(struct x86_state, fcs, 1),
    STATE_FIELD(struct x86_state, fds, 1),
    STATE_FIELD(struct x86_state, mxcsr, 1),
    STATE_ARRAY(struct x86_state, vector, 1),
    STATE_FIELD(struct x86_state, halted, 1),
    STATE_FIELD(struct x86_state, interrupt_shadow, 1),
    STATE_FIELD(struct x86_state, nmi_blocked, 1),
    STATE_FIELD(struct x86_state, nmi_pending, 1),
    STATE_FIELD(struct x86_state, waiting_for_sipi, 1),
};
const struct state_table x86_state_table = STATE_TABLE("vcpu", 1, struct x86_state, fields);
