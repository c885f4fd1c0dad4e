/*
 * The contract of cpu.h, on the engine named by the first argument: what the
 * machine and the debugger rely on.
 */
#include <pthread.h>
#include <unistd.h>

#include "contract_rig.h"

enum engine_kind contract_kind;

/* ---- State ---- */

static void power_on_state(void **context) {
    struct rig *rig = *context;
    struct x86_state state;
    vcpu_get_state(rig->on.vcpu, &state);
    assert_int_equal(state.rip, 0xfff0);
    assert_int_equal(state.segment[SEG_CS].base, 0xffff0000);
    assert_int_equal(state.segment[SEG_CS].selector, 0xf000);
    assert_int_equal(state.rflags, 2);
    assert_int_equal(state.cr0 & ~(uint64_t)(CR0_CD | CR0_NW), CR0_ET);
    assert_int_equal(state.cr4, 0);
    assert_int_equal(state.efer, 0);
    assert_int_equal(state.mxcsr, 0x1f80);
    assert_int_equal(state.apic_base & 0xfffff900, 0xfee00900);
    assert_false(state.waiting_for_sipi);
}

static void fill(struct x86_state *state) {
    for (unsigned i = 0; i < 16; i++) {
        state->gpr[i] = UINT64_C(0x1111111111111111) * i + 5;
        for (unsigned n = 0; n < 16; n++)
            state->vector[i].b[n] = (uint8_t)(i * 16 + n);
    }
    for (unsigned i = 0; i < 8; i++)
        state->x87[i] = (struct x86_x87){0x8000000000000000 + i, (uint16_t)(0x3fff + i), {0}};
    state->fcw = 0x27f;
    state->fsw = 3 << 11; /* TOP is 3 */
    state->ftw = 0xa5;
    state->mxcsr = 0x1fa0;
    state->star = 0x0023001000000000;
    state->lstar = 0xffffffff81000000;
    state->cstar = 0xffffffff82000000;
    state->sfmask = 0x47700;
    state->kernel_gs_base = 0xffff888000000000;
    state->sysenter_cs = 0x10;
    /* 32 bits: AMD's processors keep no more. */
    state->sysenter_esp = 0x83000000;
    state->sysenter_eip = 0x84000000;
    state->cr2 = 0x123456789000;
    state->dr[0] = 0x1000;
    state->dr[3] = 0x3000;
    state->dr[7] = 0x400;
    state->rflags = FLAGS_FIXED | FLAG_CF | FLAG_ZF | FLAG_DF | FLAG_ID;
}

static void state_round_trip(void **context) {
    struct rig *rig = *context;
    struct x86_state set, got;
    flat_state(rig, &set);
    fill(&set);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &set, NULL), 0);
    vcpu_get_state(rig->on.vcpu, &got);
    assert_memory_equal(set.gpr, got.gpr, sizeof set.gpr);
    assert_int_equal(set.rip, got.rip);
    assert_int_equal(set.rflags, got.rflags);
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        assert_int_equal(set.segment[i].base, got.segment[i].base);
        assert_int_equal(set.segment[i].limit, got.segment[i].limit);
        assert_int_equal(set.segment[i].selector, got.segment[i].selector);
        assert_int_equal(set.segment[i].attributes, got.segment[i].attributes);
    }
    assert_int_equal(set.gdtr.base, got.gdtr.base);
    assert_int_equal(set.cr0, got.cr0);
    assert_int_equal(set.cr2, got.cr2);
    assert_int_equal(set.dr[0], got.dr[0]);
    assert_int_equal(set.dr[3], got.dr[3]);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(set.x87[i].significand, got.x87[i].significand);
        assert_int_equal(set.x87[i].sign_exponent, got.x87[i].sign_exponent);
    }
    assert_int_equal(set.fcw, got.fcw);
    assert_int_equal(set.fsw, got.fsw);
    assert_int_equal(set.ftw, got.ftw);
    assert_int_equal(set.mxcsr, got.mxcsr);
    for (unsigned i = 0; i < 16; i++)
        assert_memory_equal(set.vector[i].b, got.vector[i].b, 16);
    assert_int_equal(set.star, got.star);
    assert_int_equal(set.lstar, got.lstar);
    assert_int_equal(set.sfmask, got.sfmask);
    assert_int_equal(set.kernel_gs_base, got.kernel_gs_base);
    assert_int_equal(set.sysenter_eip, got.sysenter_eip);
}

static void reset_and_init(void **context) {
    struct rig *rig = *context;
    struct x86_state state;
    flat_state(rig, &state);
    fill(&state);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
    vcpu_reset(rig->on.vcpu, true);
    vcpu_get_state(rig->on.vcpu, &state);
    assert_int_equal(state.rip, 0xfff0);
    assert_int_equal(state.gpr[RBX], 0);
    assert_int_equal(state.cr2, 0);
    assert_int_equal(state.lstar, 0xffffffff81000000); /* INIT keeps MSRs and floating point */
    assert_int_equal(state.mxcsr, 0x1fa0);
    vcpu_reset(rig->on.vcpu, false);
    vcpu_get_state(rig->on.vcpu, &state);
    assert_int_equal(state.lstar, 0);
    assert_int_equal(state.mxcsr, 0x1f80);
}

/* What KVM has beyond that, as bytes; the vCPU is reset meanwhile. */
static void save_and_load_own(struct rig *rig) {
    struct state_buffer bytes = {0};
    struct x86_state state;
    void *object;
    size_t used;
    vcpu_get_state(rig->on.vcpu, &state);
    const struct state_table *table = vcpu_own_state(rig->on.vcpu, &object, NULL);
    assert_non_null(table);
    assert_int_equal(state_save(table, object, &bytes, NULL), 0);
    vcpu_reset(rig->on.vcpu, false);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
    assert_ptr_equal(vcpu_own_state(rig->on.vcpu, &object, NULL), table);
    assert_int_equal(state_load(table, object, bytes.data, bytes.length, &used, NULL), 0);
    assert_int_equal(vcpu_set_own_state(rig->on.vcpu, NULL), 0);
    state_buffer_free(&bytes);
}

/* A local APIC's register that the guest wrote, an exception that it was about to take. */
static void own_state(void **context) {
    enum { LVT_ERROR = 0xfee00370, VALUE = 0x10031 };
    struct rig *rig = *context;
    struct error err;
    void *object;
    if (contract_kind == ENGINE_SOFT) {
        assert_null(vcpu_own_state(rig->on.vcpu, &object, &err));
        assert_non_null(strstr(err.text, "soft"));
        return;
    }
    LOAD(rig, 0xc7, 0x05, BYTES4(LVT_ERROR), BYTES4(VALUE), /* movl $VALUE, LVT_ERROR */
         OUT_END, 0x31, 0xc0,                               /* xor %eax, %eax */
         0xa1, BYTES4(LVT_ERROR), OUT_END, SPIN);           /* movl LVT_ERROR, %eax */
    run(rig, VCPU_KICKED);
    save_and_load_own(rig);
    run(rig, VCPU_KICKED);
    assert_int_equal(rig->written, VALUE);
    vcpu_inject(rig->on.vcpu, EXC_UD, false, 0);
    save_and_load_own(rig);
    run(rig, VCPU_SHUTDOWN); /* there is no IDT */
}

/* ---- Kicks ---- */

static void kick_before_run(void **context) {
    struct rig *rig = *context;
    LOAD(rig, SPIN);
    vcpu_kick(rig->on.vcpu);
    run(rig, VCPU_KICKED);
    assert_int_equal(rip_of(rig), CODE);
}

static void *kick_soon(void *context) {
    struct rig *rig = context;
    vcpu_kick(rig->on.vcpu);
    return NULL;
}

static void *kick_later(void *context) {
    usleep(2000);
    return kick_soon(context);
}

/* Kicks from another thread, before, while and after the guest is entered: each ends one run. */
static void kicks_while_running(void **context) {
    struct rig *rig = *context;
    LOAD(rig, SPIN);
    for (unsigned i = 0; i < 60; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, i % 3 == 0 ? kick_later : kick_soon, rig),
                         0);
        run(rig, VCPU_KICKED);
        pthread_join(thread, NULL);
    }
    assert_int_equal(rip_of(rig), CODE);
}

static void kicks_while_halted(void **context) {
    struct rig *rig = *context;
    struct x86_state state;
    LOAD(rig, 0xfa, 0xf4, SPIN); /* cli; hlt */
    for (unsigned i = 0; i < 20; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, kick_later, rig), 0);
        run(rig, VCPU_KICKED);
        pthread_join(thread, NULL);
    }
    vcpu_get_state(rig->on.vcpu, &state);
    assert_int_equal(state.rip, CODE + 2);
    assert_true(state.halted);
}

/* A kick by the device that serves an access: the instruction is over when vcpu_run returns. */
static void kick_by_device(void **context) {
    struct rig *rig = *context;
    struct x86_state state;
    rig->kick_on_read = true;
    LOAD(rig, 0xba, BYTES4(IN_PORT), 0xed, 0x40,
         SPIN); /* mov $port, %edx; in %dx, %eax; inc %eax */
    run(rig, VCPU_KICKED);
    vcpu_get_state(rig->on.vcpu, &state);
    assert_true(state.rip == CODE + 6 || state.rip == CODE + 7);
    assert_int_equal(state.gpr[RAX], state.rip == CODE + 6 ? 0x44332211 : 0x44332212);
    LOAD(rig, 0xa1, BYTES4(DEVICE), 0x90, SPIN); /* mov DEVICE, %eax; nop */
    run(rig, VCPU_KICKED);
    vcpu_get_state(rig->on.vcpu, &state);
    assert_true(state.rip == CODE + 5 || state.rip == CODE + 6);
    assert_int_equal(state.gpr[RAX], 0x44332211);
}

/* One instruction of four thousand million accesses: a kick in the middle does not wait for its
 * end, and it goes on where it was. */
static void kick_in_string(void **context) {
    enum { REP = CODE + 10, PATIENCE = 100000 };
    struct rig *rig = *context;
    struct x86_state state;
    rig->kick_on_read = true;
    LOAD(rig, 0xbe, BYTES4(DEVICE), 0xb9, BYTES4(UINT32_MAX), 0xf3, 0xac, SPIN); /* rep lodsb */
    for (unsigned i = 0; i < 3; i++) {
        run(rig, VCPU_KICKED);
        vcpu_get_state(rig->on.vcpu, &state);
        assert_int_equal(state.rip, REP);
        assert_in_range(UINT32_MAX - state.gpr[RCX], 1, PATIENCE);
        assert_int_equal(state.gpr[RSI] - DEVICE, UINT32_MAX - state.gpr[RCX]);
        state.gpr[RSI] = DEVICE; /* where reads kick */
        state.gpr[RCX] = UINT32_MAX;
        assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
    }
}

/* ---- Stops ---- */

static void shutdown(void **context) {
    struct rig *rig = *context;
    struct vcpu_exit exit;
    LOAD(rig, 0x0f, 0x0b); /* ud2, with an empty IDT */
    vcpu_run(rig->on.vcpu, &exit);
    assert_int_equal(exit.stop, VCPU_SHUTDOWN);
    assert_string_not_equal(exit.text, "");
}

static void breakpoints(void **context) {
    struct rig *rig = *context;
    struct error err;
    LOAD(rig, 0x31, 0xc0, 0x40, 0x40, 0x40, OUT_END, SPIN); /* xor; inc; inc; inc; out */
    assert_int_equal(vcpu_set_breakpoint(rig->on.vcpu, CODE + 3, true, &err), 0);
    struct vcpu_exit exit;
    vcpu_run(rig->on.vcpu, &exit);
    if (exit.stop == VCPU_KICKED)
        skip_on_odd_kvm("does not stop at breakpoints");
    assert_int_equal(exit.stop, VCPU_BREAKPOINT);
    struct x86_state state;
    vcpu_get_state(rig->on.vcpu, &state);
    assert_int_equal(state.rip, CODE + 3);
    assert_int_equal(state.gpr[RAX], 1);
    vcpu_run(rig->on.vcpu, &exit);
    if (exit.stop == VCPU_BREAKPOINT)
        skip_on_odd_kvm("does not heed RFLAGS.RF");
    assert_int_equal(exit.stop, VCPU_KICKED);
    assert_int_equal(rig->written, 3);
    assert_int_equal(vcpu_set_breakpoint(rig->on.vcpu, CODE + 3, false, &err), 0);
    LOAD(rig, 0x31, 0xc0, 0x40, 0x40, OUT_END, SPIN);
    run(rig, VCPU_KICKED);
    assert_int_equal(rig->written, 2);
}

static void too_many_breakpoints(void **context) {
    struct rig *rig = *context;
    struct error err;
    int code = 0;
    for (unsigned i = 0; i < 5; i++)
        code = vcpu_set_breakpoint(rig->on.vcpu, CODE + i, true, &err);
    if (contract_kind == ENGINE_SOFT) {
        assert_int_equal(code, 0);
    } else {
        assert_int_equal(code, -ENOTSUP);
        assert_non_null(strstr(err.text, "soft"));
    }
}

/* ---- Translation, views ---- */

static void translation(void **context) {
    struct rig *rig = *context;
    struct x86_state state;
    uint64_t gpa = 0;
    flat_state(rig, &state);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
    assert_int_equal(vcpu_translate(rig->on.vcpu, 0x12345, &gpa), 0);
    assert_int_equal(gpa, 0x12345);
    uint64_t pml4 = 0x51003, pdpt = 0x52003, pd[2] = {0x200083, 0};
    rig_poke(&rig->on, 0x50000, &pml4, 8);
    rig_poke(&rig->on, 0x51000, &pdpt, 8);
    rig_poke(&rig->on, 0x52000, pd, 16);
    state.segment[SEG_CS].attributes = SEG_G | SEG_L | SEG_P | SEG_S | 11;
    state.cr0 |= CR0_PG;
    state.cr3 = 0x50000;
    state.cr4 = CR4_PAE;
    state.efer = EFER_LME | EFER_LMA;
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
    assert_int_equal(vcpu_translate(rig->on.vcpu, 0x12345, &gpa), 0);
    assert_int_equal(gpa, 0x212345);
    assert_int_equal(vcpu_translate(rig->on.vcpu, 0x200000, &gpa), -EFAULT);
    assert_int_equal(peek32(rig, 0x52000), 0x200083); /* no accessed bit */
}

static void views(void **context) {
    struct rig *rig = *context;
    struct view *view;
    struct error err;
    assert_int_equal(vcpu_set_view(rig->on.vcpu, memory_default_view(rig->on.memory), &err), 0);
    assert_int_equal(view_create(rig->on.memory, "other", &view, &err), 0);
    int code = vcpu_set_view(rig->on.vcpu, view, &err);
    assert_int_equal(code, contract_kind == ENGINE_SOFT ? 0 : -ENOTSUP);
    if (code < 0)
        assert_non_null(strstr(err.text, "soft"));
    assert_int_equal(vcpu_set_view(rig->on.vcpu, memory_default_view(rig->on.memory), &err), 0);
    view_destroy(view);
}

/* ---- Injection ---- */

/* A gate for the vector, to code that ends with the pushed error code (or return address). */
static void set_gate(struct rig *rig, unsigned vector, uint32_t handler) {
    static const uint8_t code[] = {0x58, OUT_END, SPIN}; /* pop %eax; out */
    uint64_t gate =
        (handler & 0xffff) | 0x8e00ul << 32 | 0x8ul << 16 | (uint64_t)(handler >> 16) << 48;
    rig_poke(&rig->on, IDT_AT + 8 * vector, &gate, 8);
    rig_poke(&rig->on, handler, code, sizeof code);
}

static void injected(struct rig *rig, enum exception vector, bool has_error, uint32_t expected) {
    static const uint8_t spin[] = {SPIN};
    struct x86_state state;
    flat_state(rig, &state);
    state.idtr = (struct x86_table){IDT_AT, 0xff};
    set_gate(rig, vector, CODE + 0x100);
    rig_poke(&rig->on, CODE, spin, sizeof spin);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
    vcpu_inject(rig->on.vcpu, vector, has_error, 0x1230);
    run(rig, VCPU_KICKED);
    assert_int_equal(rig->written, expected);
}

static void inject(void **context) {
    injected(*context, EXC_GP, true, 0x1230);
    injected(*context, EXC_UD, false, CODE);
}

static void inject_nmi(void **context) {
    injected(*context, EXC_NMI, false, CODE);
}

/* ---- Memory ---- */

/* mov $value, %eax; mov %eax, address; out */
static void store(struct rig *rig, uint32_t address) {
    const uint8_t code[] = {0xb8, BYTES4(0x55), 0xa3, BYTES4(address), OUT_END, SPIN};
    load(rig, code, sizeof code);
    run(rig, VCPU_KICKED);
}

static bool is_dirty(const uint64_t *bitmap, uint64_t gpa) {
    return bitmap[gpa / PAGE_SIZE / 64] >> (gpa / PAGE_SIZE % 64) & 1;
}

static void dirty_log(void **context) {
    struct rig *rig = *context;
    static uint64_t bitmap[RAM / PAGE_SIZE / 64];
    store(rig, DATA);
    assert_true(memory_fetch_dirty(rig->on.memory, 0, RAM, bitmap) >= 2);
    assert_true(is_dirty(bitmap, DATA));
    assert_true(is_dirty(bitmap, CODE));
    assert_false(is_dirty(bitmap, RAM - PAGE_SIZE));
    /* An engine may report once more what it could write when the flags were cleared. */
    for (unsigned turn = 0; turn < 2; turn++) {
        store(rig, DATA + 5 * PAGE_SIZE);
        memory_fetch_dirty(rig->on.memory, 0, RAM, bitmap);
        assert_true(is_dirty(bitmap, DATA + 5 * PAGE_SIZE));
    }
    assert_false(is_dirty(bitmap, DATA));
    assert_false(is_dirty(bitmap, DATA + 4 * PAGE_SIZE));
    assert_int_equal(memory_fetch_dirty(rig->on.memory, 0, RAM, bitmap), 0);
}

/* A device on top of RAM, then away: by the vCPU's own thread, in the middle of a program. */
static void device_over_memory(void **context) {
    struct rig *rig = *context;
    uint32_t value = 0xabcdef01;
    rig_poke(&rig->on, DATA, &value, 4);
    LOAD(rig, 0xb8, BYTES4(DATA), 0xba, BYTES4(MOVE_PORT), 0xef, /* move it there */
         0xa1, BYTES4(DATA), 0x89, 0xc3, /* mov DATA, %eax; mov %eax, %ebx */
         0x31, 0xc0, 0xef,               /* and away */
         0xa1, BYTES4(DATA), 0x89, 0xc1, OUT_END, SPIN);
    run(rig, VCPU_KICKED);
    struct x86_state state;
    vcpu_get_state(rig->on.vcpu, &state);
    assert_int_equal(state.gpr[RBX], 0x44332211);
    assert_int_equal(state.gpr[RCX], 0xabcdef01);
    memory_move_io(rig->device, DATA + PAGE_SIZE, true); /* by another thread's account */
    LOAD(rig, 0xa1, BYTES4(DATA + PAGE_SIZE), OUT_END, SPIN);
    run(rig, VCPU_KICKED);
    assert_int_equal(rig->written, 0x44332211);
    memory_move_io(rig->device, DEVICE, true);
    LOAD(rig, 0xa1, BYTES4(DATA + PAGE_SIZE), OUT_END, SPIN);
    run(rig, VCPU_KICKED);
    assert_int_equal(rig->written, 0);
}

static void memory_comes_and_goes(void **context) {
    struct rig *rig = *context;
    struct x86_state state;
    struct port_range *range;
    assert_int_equal(memory_add_pluggable(rig->on.memory, "plug", PLUGGED, 2 * PLUGGED_SIZE, NULL),
                     0);
    assert_int_equal(ports_add(rig->on.ports, "plug", PLUG_PORT, 4, &plug_ops, rig, &range, NULL),
                     0);
    LOAD(rig, 0xba, BYTES4(PLUG_PORT), 0x8b, 0x2d, BYTES4(PLUGGED), /* mov PLUGGED, %ebp */
         0xb8, BYTES4(1), 0xef,                                     /* plug */
         0xa3, BYTES4(PLUGGED), 0x8b, 0x1d, BYTES4(PLUGGED),        /* write, %ebx */
         0x31, 0xc0, 0xef, 0x8b, 0x0d, BYTES4(PLUGGED),             /* unplug, %ecx */
         0xa3, BYTES4(PLUGGED), 0xb8, BYTES4(1), 0xef,              /* write; plug */
         0x8b, 0x35, BYTES4(PLUGGED), 0x8b, 0x3d, BYTES4(PLUGGED + PLUGGED_SIZE), OUT_END, SPIN);
    run(rig, VCPU_KICKED);
    vcpu_get_state(rig->on.vcpu, &state);
    assert_int_equal(state.gpr[RBP], UINT32_MAX);
    assert_int_equal(state.gpr[RBX], 1);
    assert_int_equal(state.gpr[RCX], UINT32_MAX);
    assert_int_equal(state.gpr[RSI], 0);
    assert_int_equal(state.gpr[RDI], UINT32_MAX);
}

/* A page full of `inc %ebx`, and after it has been given back, of `add %al, (%eax)`. */
static void discarded_code(void **context) {
    static const uint8_t end[] = {OUT_END, SPIN};
    struct rig *rig = *context;
    struct x86_state state;
    uint8_t page[PAGE_SIZE];
    memset(page, 0x43, sizeof page);
    rig_poke(&rig->on, DATA, page, sizeof page);
    rig_poke(&rig->on, DATA + PAGE_SIZE, end, sizeof end);
    for (unsigned turn = 0; turn < 4; turn++) {
        if (turn == 2)
            assert_true(memory_discard(rig->on.memory, DATA, PAGE_SIZE) == PAGE_SIZE);
        LOAD(rig, 0x31, 0xdb, 0xb8, BYTES4(DATA + 2 * PAGE_SIZE), /* jmp DATA */
             0xe9, BYTES4(DATA - (CODE + 12)));
        run(rig, VCPU_KICKED);
        vcpu_get_state(rig->on.vcpu, &state);
        assert_int_equal(state.gpr[RBX], turn < 2 ? PAGE_SIZE : 0);
    }
}

/* ---- The rest ---- */

/* The guest's TSC keeps its distance to the VM's clock over a pause (KVM: within 10 ms). */
static void pause_and_tsc(void **context) {
    struct rig *rig = *context;
    struct x86_state before, after;
    LOAD(rig, SPIN);
    vcpu_kick(rig->on.vcpu);
    run(rig, VCPU_KICKED);
    vcpu_get_state(rig->on.vcpu, &before);
    vm_clock_pause(rig->on.clock);
    usleep(100000);
    vm_clock_resume(rig->on.clock);
    vcpu_kick(rig->on.vcpu);
    run(rig, VCPU_KICKED);
    vcpu_get_state(rig->on.vcpu, &after);
    int64_t moved = (int64_t)(after.tsc_offset - before.tsc_offset);
    int64_t limit = (int64_t)(vm_clock_tsc_hz(rig->on.clock) / 20);
    if (moved >= limit || moved <= -limit)
        skip_on_odd_kvm("lets guests read the host's TSC as it is");
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s soft|kvm\n", argv[0]);
        return 2;
    }
    contract_kind = strcmp(argv[1], "kvm") == 0 ? ENGINE_KVM : ENGINE_SOFT;
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(power_on_state),
        TEST(state_round_trip),
        TEST(reset_and_init),
        TEST(own_state),
        TEST(kick_before_run),
        TEST(kicks_while_running),
        TEST(kicks_while_halted),
        TEST(kick_by_device),
        TEST(kick_in_string),
        TEST(shutdown),
        TEST(breakpoints),
        TEST(too_many_breakpoints),
        TEST(translation),
        TEST(views),
        TEST(inject),
        TEST(inject_nmi),
        TEST(dirty_log),
        TEST(device_over_memory),
        TEST(memory_comes_and_goes),
        TEST(discarded_code),
        TEST(pause_and_tsc),
        TEST(profiles),
        TEST(counters_by_name),
        TEST(decoded_blocks_stay),
        TEST(dump_and_counters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
