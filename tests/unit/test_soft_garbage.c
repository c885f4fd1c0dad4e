/*
 * Random bytes as programs, in real, protected and long mode, at all privileges, with page tables
 * and descriptor tables that are partly random, too. Nothing is asked of the results but that the
 * engine comes back: a guest cannot end its monitor. Fixed seeds; SOFT_GARBAGE_ROUNDS for more.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine_rig.h"

enum { RAM = 4 << 20, ROUNDS = 150, KICK_NS = 1000 * 1000, TABLES = 0x1000 };

struct rig {
    struct engine_rig on;
    atomic_bool done;
    pthread_t kicker;
};

static uint64_t seed;

static uint64_t random64(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* Programs may loop for ever: each gets about a millisecond. */
static void *kick(void *context) {
    struct rig *rig = context;
    struct timespec pause = {0, KICK_NS};
    while (!atomic_load(&rig->done)) {
        nanosleep(&pause, NULL);
        vcpu_kick(rig->on.vcpu);
    }
    return NULL;
}

static void set_up(struct rig *rig) {
    struct engine_config config = {.vcpus = 1};
    atomic_init(&rig->done, false);
    assert_int_equal(rig_create(&rig->on, ENGINE_SOFT, RAM, config, NULL), 0);
    assert_int_equal(vcpu_create(rig->on.engine, 0, &rig->on.vcpu, NULL), 0);
    assert_int_equal(pthread_create(&rig->kicker, NULL, kick, rig), 0);
}

static void tear_down(struct rig *rig) {
    atomic_store(&rig->done, true);
    pthread_join(rig->kicker, NULL);
    rig_destroy(&rig->on);
}

/* Random bytes; half of the time opcodes of a two-byte map or prefixes come more often. */
static void fill(struct rig *rig) {
    static uint8_t bytes[PAGE_SIZE];
    static const uint8_t spice[] = {0x0f, 0x66, 0xf3, 0xf2, 0x48, 0xc4, 0xc5, 0xf0, 0x65, 0xd9};
    bool spiced = random64() & 1;
    for (uint64_t gpa = 0; gpa < RAM; gpa += sizeof bytes) {
        for (unsigned i = 0; i < sizeof bytes; i += 8) {
            uint64_t value = random64();
            memcpy(bytes + i, &value, 8);
            if (spiced)
                bytes[i + (value & 7)] = spice[(value >> 8) % sizeof spice];
        }
        memory_write(rig->on.memory, gpa, bytes, sizeof bytes);
    }
}

/* 2 MiB identity pages for the first 4 MiB, with random rights now and then; a flat GDT; an IDT
 * whose gates lead to random places of RAM. */
static void build_tables(struct rig *rig) {
    rig_poke64(&rig->on, TABLES, (TABLES + 0x1000) | 7);
    rig_poke64(&rig->on, TABLES + 0x1000, (TABLES + 0x2000) | 7);
    for (unsigned i = 0; i < RAM >> 21; i++)
        rig_poke64(&rig->on, TABLES + 0x2000 + 8 * i,
                   (uint64_t)i << 21 | 0x80 | (random64() % 4 == 0 ? random64() & 0x1ff : 7));
    rig_poke64(&rig->on, TABLES + 0x3000, 0);
    rig_poke64(&rig->on, TABLES + 0x3008, UINT64_C(0x00af9b000000ffff));
    rig_poke64(&rig->on, TABLES + 0x3010, UINT64_C(0x00cf93000000ffff));
    rig_poke64(&rig->on, TABLES + 0x3018, UINT64_C(0x00affb000000ffff));
    rig_poke64(&rig->on, TABLES + 0x3020, UINT64_C(0x00cff3000000ffff));
    rig_poke64(&rig->on, TABLES + 0x3028, UINT64_C(0x00cf9b000000ffff));
    for (unsigned i = 0; i < 256; i++) {
        rig_poke64(&rig->on, TABLES + 0x4000 + 16 * i,
                   (random64() & 0xffff) | 8 << 16 |
                       (uint64_t)(0x8e00 | (random64() & 0x60f0)) << 32);
        rig_poke64(&rig->on, TABLES + 0x4008 + 16 * i, 0);
    }
}

static void protect(struct x86_state *state, bool user, bool wide) {
    unsigned dpl = user ? SEG_DPL : 0;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] = (struct x86_segment){0, UINT32_MAX, user ? 0x23 : 0x10,
                                                 SEG_P | SEG_S | 3 | SEG_G | SEG_DB | dpl};
    state->segment[SEG_CS] = (struct x86_segment){
        0, UINT32_MAX, user ? 0x1b : 8, SEG_P | SEG_S | 11 | SEG_G | dpl | (wide ? SEG_L : SEG_DB)};
    state->gdtr = (struct x86_table){TABLES + 0x3000, 0x2f};
    state->idtr = (struct x86_table){TABLES + 0x4000, 0xfff};
    state->cr0 = CR0_PE | CR0_ET | CR0_NE;
}

static void random_state(struct rig *rig, struct x86_state *state) {
    unsigned kind = random64() % 6;
    vcpu_reset(rig->on.vcpu, false);
    vcpu_get_state(rig->on.vcpu, state);
    for (unsigned i = 0; i < 16; i++)
        state->gpr[i] = random64() % 3 == 0 ? random64() : random64() % RAM;
    for (unsigned i = 0; i < 16; i++)
        state->vector[i].q[0] = random64(), state->vector[i].q[3] = random64();
    state->rip = random64() % 0xf000;
    state->segment[SEG_CS].base = kind == 0 ? random64() % 0x10 * 0x10000 : 0;
    if (kind >= 1)
        protect(state, kind == 3 || kind == 5, kind >= 4);
    if (kind >= 2) {
        state->cr0 |= CR0_PG;
        state->cr3 = TABLES;
        state->cr4 = CR4_PAE | CR4_OSFXSR | (random64() & CR4_OSXSAVE);
    }
    if (kind >= 2)
        state->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    if (state->cr4 & CR4_OSXSAVE)
        state->xcr0 = 7;
    state->rflags = FLAGS_FIXED | (random64() & (FLAGS_STATUS | FLAG_DF | FLAG_IOPL));
    state->rflags |= random64() % 8 == 0 ? FLAG_TF : 0;
    if (random64() % 8 == 0)
        state->dr[7] |= 0xff;
}

static void run_round(struct rig *rig, uint64_t round) {
    struct x86_state state;
    struct vcpu_exit exit;
    struct error err = {0};
    seed = round * UINT64_C(0x9e3779b97f4a7c15) + 1;
    fill(rig);
    build_tables(rig);
    random_state(rig, &state);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, &err), 0);
    for (unsigned i = 0; i < 3; i++) {
        vcpu_run(rig->on.vcpu, &exit);
        if (exit.stop != VCPU_KICKED)
            break;
    }
    assert_in_range(exit.stop, VCPU_KICKED, VCPU_FAILED);
    vcpu_get_state(rig->on.vcpu, &state);
}

static void test_garbage(void **context) {
    const char *more = getenv("SOFT_GARBAGE_ROUNDS"), *first = getenv("SOFT_GARBAGE_FIRST");
    uint64_t rounds = more != NULL ? strtoull(more, NULL, 0) : ROUNDS;
    uint64_t from = first != NULL ? strtoull(first, NULL, 0) : 0;
    struct rig rig;
    set_up(&rig);
    for (uint64_t round = from; round < from + rounds; round++)
        run_round(&rig, round);
    tear_down(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_garbage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
