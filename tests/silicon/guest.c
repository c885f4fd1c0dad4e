/*
 * The vCPU's side: a VM whose only software is page tables, descriptor tables
 * and 256 exception stubs. Each case starts by setting the vCPU's state to
 * user mode; the exception that ends it goes through the IDT to a stub, whose
 * OUT asks the vCPU to stop. The user state is in registers and in the
 * exception frame. Only cpu.h is used, so any engine can be compared.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "cpu/cpu.h"
#include "cpu/soft/soft.h"
#include "silicon.h"

/* Guest-physical layout of the supervisor's 2 MiB, mapped at SUPERVISOR for supervisors only. */
enum {
    TABLES = 0x1000, /* PML4, then page tables as needed */
    GDT = 0x10000,
    TSS = 0x11000,
    IDT = 0x12000,
    STUBS = 0x14000, /* one every STUB_SIZE bytes */
    STUB_SIZE = 16,
    KERNEL_STACK = 0x20000, /* its top */
    STOP_PORT = 0xf4,
    /* A minute: what ends natively within its limit takes far less, on a starved host, too. */
    WATCH_TICKS = 3000,
};
#define SUPERVISOR UINT64_C(0xffffffffc0000000)

/* Page table entries (APM vol. 2, 5.4). Accessed and dirty are set: their updates are not tested
 * here. */
enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_PS = 0x80 };
#define PTE_NX UINT64_C(0x8000000000000000)

struct guest {
    struct memory *memory;
    struct ports *ports;
    struct irqchip *irqchip;
    struct vm_clock *clock;
    struct engine *engine;
    struct vcpu *vcpu;
    const struct background *background;
    unsigned processor;
    struct x86_state template;
    uint8_t *low, *code;
    struct arena arena;
    uint64_t next_table;
    /* The watchdog: kicks a vCPU that still runs the same case as a while ago. */
    pthread_t watchdog;
    bool watched;
    atomic_bool ending;
    atomic_ulong cases;
};

/* ---- Building it ---- */

static uint64_t *table_at(struct guest *guest, uint64_t gpa) {
    return (uint64_t *)(void *)(guest->low + gpa);
}

static uint64_t *next_level(struct guest *guest, uint64_t *entry) {
    if (*entry == 0) {
        *entry = guest->next_table | PTE_P | PTE_W | PTE_U | PTE_A;
        guest->next_table += PAGE;
    }
    return table_at(guest, *entry & 0xff000);
}

static void map_page(struct guest *guest, uint64_t address, uint64_t gpa, uint64_t bits) {
    uint64_t *table = table_at(guest, TABLES);
    for (int shift = 39; shift > 12; shift -= 9)
        table = next_level(guest, &table[address >> shift & 511]);
    table[address >> 12 & 511] = gpa | bits | PTE_P | PTE_A | PTE_D | PTE_U;
}

/* Physical addresses are those of the first mapping. */
static void map_range(struct guest *guest, uint64_t address, uint64_t size, uint64_t bits) {
    for (uint64_t at = 0; at < size; at += PAGE)
        map_page(guest, address + at, address + at, bits);
}

static void build_page_tables(struct guest *guest) {
    guest->next_table = TABLES + PAGE;
    map_range(guest, CODE_BASE, CODE_SIZE, 0);
    map_range(guest, DATA_BASE, DATA_SIZE, PTE_W | PTE_NX);
    map_range(guest, CONST_BASE, CONST_SIZE, PTE_NX);
    map_range(guest, STACK_BASE, STACK_SIZE, PTE_W | PTE_NX);
    map_range(guest, MIXED_BASE, MIXED_SIZE, PTE_W);
    for (uint32_t at = 0; at < MIXED_SIZE; at += PAGE)
        map_page(guest, MIXED_CODE + at, MIXED_BASE + at, 0);
    for (uint32_t at = 0; at < ARENA_SIZE; at += PAGE)
        map_page(guest, ALIAS_BASE + at, background_address(at), PTE_W | PTE_NX);
    uint64_t *table = table_at(guest, TABLES);
    table = next_level(guest, &table[SUPERVISOR >> 39 & 511]);
    table = next_level(guest, &table[SUPERVISOR >> 30 & 511]);
    table[SUPERVISOR >> 21 & 511] = PTE_P | PTE_W | PTE_A | PTE_D | PTE_PS;
}

/* The descriptors of Linux's GDT up to the TSS, so that LAR, LSL, VERR and far transfers agree. */
static void build_descriptors(struct guest *guest) {
    static const uint64_t gdt[] = {
        0,
        UINT64_C(0x00cf9b000000ffff), /* 08: kernel code, 32 bits */
        UINT64_C(0x00af9b000000ffff), /* 10: kernel code, 64 bits */
        UINT64_C(0x00cf93000000ffff), /* 18: kernel data */
        UINT64_C(0x00cffb000000ffff), /* 23: user code, 32 bits */
        UINT64_C(0x00cff3000000ffff), /* 2b: user data */
        UINT64_C(0x00affb000000ffff), /* 33: user code, 64 bits */
    };
    memcpy(guest->low + GDT, gdt, sizeof gdt);
    /* 7b: the processor's number as the limit of an expand-down segment. */
    store_le64(guest->low + GDT + 15 * 8,
               UINT64_C(0x0040f50000000000) | (uint64_t)guest->processor);
    store_le64(guest->low + TSS + 4, SUPERVISOR + KERNEL_STACK); /* RSP0 */
    store_le16(guest->low + TSS + 102, 104);                     /* no I/O bitmap */
    for (unsigned vector = 0; vector < 256; vector++) {
        uint64_t stub = SUPERVISOR + STUBS + vector * STUB_SIZE;
        bool user = vector == EXC_BP || vector == EXC_OF;
        uint8_t *gate = guest->low + IDT + vector * 16;
        store_le64(gate, (stub & 0xffff) | 0x10 << 16 | (user ? UINT64_C(0xee) : 0x8e) << 40 |
                             (stub >> 16 & 0xffff) << 48);
        store_le64(gate + 8, stub >> 32);
        static const uint8_t code[4] = {0xe6, STOP_PORT, 0xeb, 0xfe}; /* OUT F4h, AL; JMP $ */
        memcpy(guest->low + STUBS + vector * STUB_SIZE, code, sizeof code);
    }
}

static void flat(struct x86_segment *segment, uint16_t selector, uint16_t attributes) {
    *segment =
        (struct x86_segment){.limit = UINT32_MAX, .selector = selector, .attributes = attributes};
}

/* What Linux runs user code with, as far as user code can tell. */
static void build_template(struct guest *guest) {
    struct x86_state *state = &guest->template;
    vcpu_get_state(guest->vcpu, state);
    state->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    state->cr3 = TABLES;
    state->cr4 = CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP |
                 CR4_FSGSBASE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP;
    state->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    state->xcr0 = 7;
    state->gdtr = (struct x86_table){SUPERVISOR + GDT, 127};
    state->idtr = (struct x86_table){SUPERVISOR + IDT, 4095};
    state->tr = (struct x86_segment){
        .base = SUPERVISOR + TSS, .limit = 0x67, .selector = 0x40, .attributes = SEG_P | 0xb};
    state->ldtr = (struct x86_segment){.selector = 0};
    flat(&state->segment[SEG_SS], SEL_DS, SEG_P | SEG_DPL | SEG_S | 3 | SEG_DB | SEG_G);
    flat(&state->segment[SEG_DS], SEL_DS, SEG_P | SEG_DPL | SEG_S | 3 | SEG_DB | SEG_G);
    flat(&state->segment[SEG_ES], SEL_DS, SEG_P | SEG_DPL | SEG_S | 3 | SEG_DB | SEG_G);
    state->segment[SEG_FS] = state->segment[SEG_GS] = (struct x86_segment){0};
}

static void stop_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct guest *guest = context;
    (void)offset, (void)value, (void)size;
    vcpu_kick(guest->vcpu);
}

static uint64_t stop_read(void *context, uint64_t offset, unsigned size) {
    (void)context, (void)offset, (void)size;
    return 0;
}

static uint8_t *add_ram(struct guest *guest, const char *name, uint64_t gpa, size_t size,
                        const void *contents, struct error *err) {
    size_t length = size;
    if (memory_add_ram(guest->memory, name, gpa, size, err) < 0)
        return NULL;
    uint8_t *host = memory_map(guest->memory, gpa, &length, true);
    if (host != NULL && contents != NULL)
        memcpy(host, contents, size);
    return host;
}

/* The engine holds code of the mixed pages, so they are written through the gate. */
static void restore_page(void *context, uint32_t offset, const uint8_t *page) {
    struct guest *guest = context;
    memory_write(guest->memory, background_address(offset), page, PAGE);
}

static int build_memory(struct guest *guest, struct error *err) {
    const struct background *b = guest->background;
    guest->low = add_ram(guest, "supervisor", 0, MIB(2), NULL, err);
    guest->code = add_ram(guest, "code", CODE_BASE, CODE_SIZE, NULL, err);
    struct arena *arena = &guest->arena;
    arena->data = add_ram(guest, "data", DATA_BASE, DATA_SIZE, b->arena, err);
    arena->stack = add_ram(guest, "stack", STACK_BASE, STACK_SIZE, b->arena + DATA_SIZE, err);
    arena->mixed = add_ram(guest, "mixed", MIXED_BASE, MIXED_SIZE, b->arena + ARENA_MIXED, err);
    arena->restore = restore_page;
    arena->context = guest;
    uint8_t *constant = add_ram(guest, "constant", CONST_BASE, CONST_SIZE, b->constant, err);
    if (!guest->low || !guest->code || !arena->data || !arena->stack || !arena->mixed || !constant)
        return -ENOMEM;
    memset(guest->code, 0xcc, CODE_SIZE);
    build_page_tables(guest);
    build_descriptors(guest);
    return 0;
}

static int build_machine(struct guest *guest, enum engine_kind kind, struct error *err) {
    static const struct io_ops stop = {stop_read, stop_write};
    struct engine_config config = {.vcpus = 1};
    int rc = memory_create(&guest->memory, err);
    if (rc == 0)
        rc = ports_create(&guest->ports, err);
    if (rc == 0)
        rc = vm_clock_create(&guest->clock, err);
    if (rc == 0)
        rc = irqchip_create(guest->memory, guest->ports, guest->clock, &guest->irqchip, err);
    if (rc == 0)
        rc = ports_add(guest->ports, "stop", STOP_PORT, 1, &stop, guest, NULL, err);
    if (rc == 0)
        rc = build_memory(guest, err);
    config.memory = guest->memory;
    config.ports = guest->ports;
    config.irqchip = guest->irqchip;
    config.clock = guest->clock;
    if (rc == 0)
        rc = engine_create(kind, &config, &guest->engine, NULL, err);
    if (rc == 0)
        rc = vcpu_create(guest->engine, 0, &guest->vcpu, err);
    return rc;
}

static void *watch(void *context) {
    struct guest *guest = context;
    unsigned long seen = 0;
    for (unsigned ticks = 0; !atomic_load(&guest->ending); ticks++) {
        const struct timespec tick = {.tv_nsec = 20 * 1000 * 1000};
        nanosleep(&tick, NULL);
        if (ticks % WATCH_TICKS != 0)
            continue;
        unsigned long now = atomic_load(&guest->cases);
        if (now == seen && now % 2 != 0)
            vcpu_kick(guest->vcpu);
        seen = now;
    }
    return NULL;
}

int guest_create(const struct background *background, enum engine_kind engine, unsigned processor,
                 struct guest **guest, struct error *err) {
    struct guest *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "guest side");
    made->background = background;
    made->processor = processor;
    int rc = build_machine(made, engine, err);
    if (rc < 0) {
        guest_destroy(made);
        return rc;
    }
    build_template(made);
    made->watched = pthread_create(&made->watchdog, NULL, watch, made) == 0;
    *guest = made;
    return 0;
}

void guest_destroy(struct guest *guest) {
    if (guest == NULL)
        return;
    atomic_store(&guest->ending, true);
    if (guest->watched)
        pthread_join(guest->watchdog, NULL);
    if (guest->vcpu != NULL)
        vcpu_destroy(guest->vcpu);
    if (guest->engine != NULL)
        engine_destroy(guest->engine);
    irqchip_destroy(guest->irqchip);
    vm_clock_destroy(guest->clock);
    ports_destroy(guest->ports);
    memory_destroy(guest->memory);
    free(guest);
}

const uint64_t *guest_features(const struct guest *guest) {
    static const uint64_t all[] = {[0 ...(FEAT_COUNT - 1) / 64] = UINT64_MAX};
    bool soft = strcmp(engine_name(guest->engine), "soft") == 0;
    return soft ? soft_cpu_of(guest->vcpu)->features : all;
}

/* ---- Running a case ---- */

static void load_fp(struct x86_state *state, const struct fp_state *fp) {
    memcpy(state->x87, fp->x87, sizeof state->x87);
    state->fcw = fp->fcw;
    state->fsw = fp->fsw;
    state->ftw = fp->ftw;
    state->fop = fp->fop;
    state->fip = fp->fip;
    state->fdp = fp->fdp;
    state->fcs = state->fds = 0;
    state->mxcsr = fp->mxcsr;
    for (unsigned i = 0; i < 16; i++)
        memcpy(&state->vector[i], fp->ymm[i], 32);
}

static void save_fp(const struct x86_state *state, struct fp_state *fp) {
    for (unsigned i = 0; i < 8; i++) {
        fp->x87[i] = (struct x86_x87){.significand = state->x87[i].significand,
                                      .sign_exponent = state->x87[i].sign_exponent};
    }
    fp->fcw = state->fcw;
    fp->fsw = state->fsw;
    fp->ftw = state->ftw;
    if (state->fsw & 0x80) { /* ES: only then does FXSAVE store the pointers */
        fp->fop = state->fop;
        fp->fip = state->fip;
        fp->fdp = state->fdp;
    }
    fp->mxcsr = state->mxcsr;
    for (unsigned i = 0; i < 16; i++)
        memcpy(fp->ymm[i], &state->vector[i], 32);
}

static uint64_t code_gpa(const struct test_case *test) {
    uint32_t offset = background_code(test->start);
    return offset < ARENA_SIZE ? background_address(offset) : test->start;
}

static void start_case(struct guest *guest, const struct test_case *test, struct x86_state *state) {
    *state = guest->template;
    uint16_t mode = test->mode32 ? SEG_DB : SEG_L;
    flat(&state->segment[SEG_CS], test->mode32 ? SEL_CS32 : SEL_CS64,
         SEG_P | SEG_DPL | SEG_S | 0xb | SEG_G | mode);
    memcpy(state->gpr, test->state.gpr, sizeof state->gpr);
    state->rip = test->start;
    state->rflags = test->state.rflags;
    state->segment[SEG_FS].base = test->state.fs_base;
    state->segment[SEG_GS].base = test->state.gs_base;
    load_fp(state, &test->state.fp);
    /* Through the gate: the engine holds code of these pages. */
    memory_write(guest->memory, code_gpa(test), test->code, test->code_length);
    for (unsigned i = 0; i < test->patch_count; i++)
        memcpy(background_at(&guest->arena, test->patch[i].offset), test->patch[i].bytes,
               PATCH_SIZE);
}

static bool pushes_error(unsigned vector) {
    return vector == EXC_DF || (vector >= EXC_TS && vector <= EXC_PF) || vector == EXC_AC;
}

/* The stub's address tells the vector; the frame below RSP0 holds the rest (APM vol. 2, 8.9). */
static void finish_case(struct guest *guest, const struct x86_state *state,
                        struct outcome *outcome) {
    struct user_state *user = &outcome->state;
    uint64_t stub = state->rip - (SUPERVISOR + STUBS);
    if (stub >= 256 * STUB_SIZE) {
        outcome->vector = VECTOR_TIMEOUT;
        user->rip = state->rip;
        return;
    }
    outcome->vector = (uint8_t)(stub / STUB_SIZE);
    outcome->cr2 = outcome->vector == EXC_PF ? state->cr2 : 0;
    const uint8_t *frame = guest->low + ((state->gpr[RSP] - SUPERVISOR) & (MIB(2) - 8));
    if (pushes_error(outcome->vector)) {
        outcome->error = (uint32_t)load_le64(frame);
        frame += 8;
    }
    memcpy(user->gpr, state->gpr, sizeof user->gpr);
    user->rip = load_le64(frame);
    user->cs = load_le16(frame + 8);
    user->rflags = load_le64(frame + 16);
    user->gpr[RSP] = load_le64(frame + 24);
    user->ss = load_le16(frame + 32);
    user->ds = state->segment[SEG_DS].selector;
    user->es = state->segment[SEG_ES].selector;
    user->fs = state->segment[SEG_FS].selector;
    user->gs = state->segment[SEG_GS].selector;
    user->fs_base = state->segment[SEG_FS].base;
    user->gs_base = state->segment[SEG_GS].base;
    save_fp(state, &user->fp);
}

/* The instruction that ended it, before memory is put back. */
static void keep_last(const struct guest *guest, struct outcome *outcome) {
    uint32_t at = background_code(outcome->state.rip);
    if (at + sizeof outcome->last <= ARENA_SIZE)
        memcpy(outcome->last, background_at(&guest->arena, at), sizeof outcome->last);
}

void guest_run(struct guest *guest, const struct test_case *test, struct outcome *outcome) {
    struct x86_state state;
    struct vcpu_exit stop;
    struct error err;
    static uint8_t int3[CODE_MAX];
    memset(int3, 0xcc, sizeof int3);
    memset(outcome, 0, offsetof(struct outcome, diff));
    start_case(guest, test, &state);
    if (vcpu_set_state(guest->vcpu, &state, &err) < 0) {
        outcome->vector = VECTOR_LOST;
    } else {
        atomic_fetch_add(&guest->cases, 1); /* odd: one runs */
        vcpu_run(guest->vcpu, &stop);
        atomic_fetch_add(&guest->cases, 1);
        vcpu_get_state(guest->vcpu, &state);
        if (stop.stop == VCPU_KICKED)
            finish_case(guest, &state, outcome);
        else
            outcome->vector = VECTOR_LOST;
        keep_last(guest, outcome);
    }
    if (background_code(test->start) == ARENA_SIZE)
        memory_write(guest->memory, test->start, int3, test->code_length);
    background_collect(guest->background, &guest->arena, outcome);
}
