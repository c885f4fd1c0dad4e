/*
 * The contract of cpu/profile.h: samples, counters and names, on the engine under test.
 */
#include <pthread.h>
#include <unistd.h>

#include "contract_rig.h"
#include "cpu/profile.h"

/* ---- Profiles ---- */

enum { TABLES = 0x50000 };

/* 64-bit mode, the first GiB mapped as it is, spinning at CODE: what gets translated. */
static void load_long_spin(struct rig *rig) {
    enum { PRESENT_WRITABLE = 3, LARGE = 0x80 };
    static const uint8_t code[] = {SPIN};
    static const uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    struct x86_state state;
    uint64_t top = (TABLES + PAGE_SIZE) | PRESENT_WRITABLE;
    uint64_t next = (TABLES + 2 * PAGE_SIZE) | PRESENT_WRITABLE;
    flat_state(rig, &state);
    rig_poke(&rig->on, GDT_AT, gdt, sizeof gdt);
    rig_poke(&rig->on, TABLES, &top, sizeof top);
    rig_poke(&rig->on, TABLES + PAGE_SIZE, &next, sizeof next);
    for (uint64_t i = 0; i < 512; i++) {
        uint64_t entry = i << 21 | LARGE | PRESENT_WRITABLE;
        rig_poke(&rig->on, TABLES + 2 * PAGE_SIZE + 8 * i, &entry, sizeof entry);
    }
    state.segment[SEG_CS].attributes = SEG_G | SEG_L | SEG_P | SEG_S | 11;
    state.cr3 = TABLES;
    state.cr4 = CR4_PAE;
    state.efer = EFER_LME | EFER_LMA;
    state.cr0 |= CR0_PG;
    rig_poke(&rig->on, CODE, code, sizeof code);
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
}

struct sampled {
    struct rig *rig;
    unsigned wanted, wanted_translated, samples, translated, wrong;
    bool until_lost;
    uint64_t watched;
};

/* Takes samples until it has what it wants, or for a minute. */
static void *take_samples(void *argument) {
    struct sampled *s = argument;
    for (unsigned i = 0; i < 60000; i++) {
        struct vcpu_sample samples[16];
        size_t got = s->until_lost ? 0 : vcpu_profile_take(s->rig->on.vcpu, samples, 16);
        for (size_t n = 0; n < got; n++) {
            s->samples++;
            s->translated += samples[n].place == SAMPLE_TRANSLATED;
            s->wrong += samples[n].guest_rip != CODE || samples[n].cpl != 0 ||
                        samples[n].watched != s->watched;
        }
        bool enough = s->samples >= s->wanted && s->translated >= s->wanted_translated;
        if (s->until_lost ? vcpu_profile_lost(s->rig->on.vcpu) > 0 : enough)
            break;
        usleep(1000);
    }
    vcpu_kick(s->rig->on.vcpu);
    return NULL;
}

static void run_sampled(struct rig *rig, struct sampled *s) {
    pthread_t thread;
    s->rig = rig;
    assert_int_equal(pthread_create(&thread, NULL, take_samples, s), 0);
    run(rig, VCPU_KICKED);
    pthread_join(thread, NULL);
}

static void count_code(void *context, uintptr_t code, size_t size, uint64_t rip, unsigned cpl) {
    unsigned *blocks = context;
    assert_true(code != 0 && size != 0 && cpl == 0);
    *blocks += rip == CODE;
}

static void ignore_drop(void *context) {
}

void profiles(void **context) {
    struct rig *rig = *context;
    static const uint64_t word = 0x1234567887654321;
    struct vcpu_profile_config config = {.interval_us = PROFILE_INTERVAL_MIN, .watch = &word};
    struct sampled some = {.wanted = 100, .watched = word}, lost = {.until_lost = true};
    struct vcpu_sample rest[16];
    unsigned blocks = 0;
    const struct code_listener listener = {count_code, ignore_drop, &blocks};
    load_long_spin(rig);
    if (contract_kind == ENGINE_KVM) {
        assert_int_equal(vcpu_profile_start(rig->on.vcpu, &config, NULL), -ENOTSUP);
        return;
    }
    assert_int_equal(vcpu_profile_take(rig->on.vcpu, rest, 16), 0);
    config.interval_us = PROFILE_INTERVAL_MIN - 1;
    assert_int_equal(vcpu_profile_start(rig->on.vcpu, &config, NULL), -EINVAL);
    config.interval_us = PROFILE_INTERVAL_MIN;
    if (vcpu_listen_code(rig->on.vcpu, &listener, NULL) == 0)
        some.wanted_translated = 10;
    assert_int_equal(vcpu_profile_start(rig->on.vcpu, &config, NULL), 0);
    run_sampled(rig, &some);
    assert_true(some.samples >= some.wanted && some.translated >= some.wanted_translated);
    assert_true(some.wanted_translated == 0 || blocks > 0);
    assert_int_equal(some.wrong, 0);
    /* Nobody takes any: the store is bounded, what is in it stays good. */
    run_sampled(rig, &lost);
    assert_true(vcpu_profile_lost(rig->on.vcpu) > 0);
    assert_int_equal(vcpu_profile_take(rig->on.vcpu, rest, 16), 16);
    vcpu_profile_stop(rig->on.vcpu);
    while (vcpu_profile_take(rig->on.vcpu, rest, 16) > 0)
        ;
    vcpu_listen_code(rig->on.vcpu, NULL, NULL);
    vcpu_kick(rig->on.vcpu);
    run(rig, VCPU_KICKED); /* without its timer */
    assert_int_equal(vcpu_profile_take(rig->on.vcpu, rest, 16), 0);
}

static void count_names(void *context, const char *name, uint64_t value) {
    unsigned *known = context;
    *known += strcmp(name, "exits") == 0 || strcmp(name, "interrupts") == 0;
    assert_true(name[0] != 0);
}

void counters_by_name(void **context) {
    struct rig *rig = *context;
    unsigned known = 0;
    vcpu_each_counter(rig->on.vcpu, count_names, &known);
    assert_int_equal(known, 2);
}

static void find_decoded(void *context, const char *name, uint64_t value) {
    if (strcmp(name, "blocks-decoded") == 0)
        *(uint64_t *)context = value;
}

static uint64_t blocks_decoded(struct rig *rig) {
    uint64_t decoded = 0;
    vcpu_each_counter(rig->on.vcpu, find_decoded, &decoded);
    return decoded;
}

/* Where little is translated, there is room for the instructions of many blocks, which stay. */
void decoded_blocks_stay(void **context) {
    static const uint8_t block[] = {0x90, 0x90, 0x90, 0xeb, 0}; /* nop three times, jmp .+2 */
    static const uint8_t end[] = {OUT_END, 0xe9, 0, 0, 0, 0};   /* jmp to the first */
    enum { BLOCKS = 20000, AT = 0x100000, LENGTH = BLOCKS * sizeof block };
    struct rig *rig = *context;
    struct x86_state state;
    unsigned blocks = 0;
    const struct code_listener listener = {count_code, ignore_drop, &blocks};
    if (contract_kind == ENGINE_KVM || vcpu_listen_code(rig->on.vcpu, &listener, NULL) < 0)
        return; /* without a translator decoded blocks have the least room */
    for (unsigned i = 0; i < BLOCKS; i++)
        rig_poke(&rig->on, AT + i * sizeof block, block, sizeof block);
    rig_poke(&rig->on, AT + LENGTH, end, sizeof end);
    const uint32_t back = -(uint32_t)(LENGTH + sizeof end);
    rig_poke(&rig->on, AT + LENGTH + sizeof end - sizeof back, &back, sizeof back);
    flat_state(rig, &state);
    state.rip = AT;
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
    run(rig, VCPU_KICKED);
    uint64_t first = blocks_decoded(rig);
    assert_true(first >= BLOCKS);
    run(rig, VCPU_KICKED);
    assert_true(blocks_decoded(rig) < first + BLOCKS / 100);
    vcpu_listen_code(rig->on.vcpu, NULL, NULL);
}

static void count_line(void *context, const char *text) {
    unsigned *lines = context;
    assert_true(strlen(text) < 160);
    ++*lines;
}

void dump_and_counters(void **context) {
    struct rig *rig = *context;
    struct vcpu_counters counters;
    unsigned lines = 0;
    LOAD(rig, OUT_END, SPIN);
    run(rig, VCPU_KICKED);
    vcpu_get_counters(rig->on.vcpu, &counters);
    assert_true(counters.exits > 0);
    vcpu_dump(rig->on.vcpu, count_line, &lines);
    assert_true(lines > 5);
}
