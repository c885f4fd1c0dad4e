/* Local APICs: registers, priorities, messages, the timer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <pthread.h>
#include <semaphore.h>

#include <cmocka.h>

#include "platform_rig.h"

enum { CPUS = 4 };
enum {
    ID = 0x20,
    TPR = 0x80,
    PPR = 0xa0,
    EOI = 0xb0,
    LDR = 0xd0,
    DFR = 0xe0,
    SVR = 0xf0,
    ISR = 0x100,
    IRR = 0x200,
    ESR = 0x280,
    ICR = 0x300,
    ICR2 = 0x310,
    LVT_TIMER = 0x320,
    LVT_LINT0 = 0x350,
    LVT_ERROR = 0x370,
    INITIAL = 0x380,
    CURRENT = 0x390,
    DIVIDE = 0x3e0,
};
enum { PERIODIC = 1 << 17, TSC_DEADLINE = 2 << 17, MASKED = 1 << 16, X2APIC = 0xc00 };

static struct lapic *cpus[CPUS];
static unsigned wakes[CPUS];

static void wake(void *context) {
    ++*(unsigned *)context;
}

static int setup(void **state) {
    (void)state;
    rig_start();
    irqchip_set_delivery(rig.platform.irqchip, NULL);
    for (unsigned i = 0; i < CPUS; i++) {
        wakes[i] = 0;
        assert_int_equal(lapic_create(rig.platform.irqchip, i, wake, &wakes[i], &cpus[i], NULL), 0);
        lapic_mmio_write(cpus[i], SVR, 0x1ff);
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (unsigned i = 0; i < CPUS; i++)
        lapic_destroy(cpus[i]);
    rig_stop();
    return 0;
}

static void msi(unsigned cpu, uint8_t vector) {
    msi_send(rig.platform.irqchip,
             (struct msi_message){.address = APIC_DEFAULT_BASE | cpu << 12, .data = vector});
}

static void put(unsigned cpu, unsigned reg, uint32_t value) {
    lapic_mmio_write(cpus[cpu], reg, value);
}

static uint32_t get(unsigned cpu, unsigned reg) {
    return lapic_mmio_read(cpus[cpu], reg);
}

static void takes_the_highest_vector(void **state) {
    (void)state;
    assert_false(lapic_attention(cpus[1]));
    msi(1, 0x41);
    msi(1, 0x92);
    assert_int_equal(wakes[1], 1);
    assert_true(lapic_attention(cpus[1]) && lapic_pending(cpus[1]));
    assert_int_equal(lapic_ack(cpus[1]), 0x92);
    assert_int_equal(get(1, PPR), 0x90);
    assert_int_equal(get(1, ISR + 0x40), 1 << 18);
    assert_false(lapic_pending(cpus[1]));
    assert_int_equal(lapic_ack(cpus[1]), -1);
    put(1, EOI, 0);
    assert_int_equal(lapic_ack(cpus[1]), 0x41);
}

static void task_priority_holds_back(void **state) {
    (void)state;
    lapic_set_cr8(cpus[0], 5);
    assert_int_equal(get(0, TPR), 0x50);
    msi(0, 0x5f);
    assert_false(lapic_pending(cpus[0]));
    msi(0, 0x60);
    assert_true(lapic_pending(cpus[0]));
    assert_int_equal(lapic_ack(cpus[0]), 0x60);
    put(0, EOI, 0);
    put(0, TPR, 0x4f);
    assert_int_equal(lapic_cr8(cpus[0]), 4);
    assert_int_equal(lapic_ack(cpus[0]), 0x5f);
}

static void disabled_drops(void **state) {
    (void)state;
    put(2, SVR, 0xff);
    msi(2, 0x50);
    put(2, SVR, 0x1ff);
    assert_int_equal(lapic_ack(cpus[2]), -1);
    assert_true(get(2, LVT_TIMER) & MASKED);
}

static void shorthands_and_destinations(void **state) {
    (void)state;
    put(0, ICR, 3 << 18 | 0x60); /* all but self */
    assert_int_equal(lapic_ack(cpus[0]), -1);
    for (unsigned i = 1; i < CPUS; i++)
        assert_int_equal(lapic_ack(cpus[i]), 0x60);
    put(0, ICR, 2 << 18 | 0x70); /* all */
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(lapic_ack(cpus[i]), 0x70);
    put(3, ICR, 1 << 18 | 0x80); /* self */
    assert_int_equal(lapic_ack(cpus[3]), 0x80);
    put(0, ICR2, 2 << 24);
    put(0, ICR, 0x90);
    assert_int_equal(lapic_ack(cpus[2]), 0x90);
    assert_int_equal(lapic_ack(cpus[1]), -1);
}

static void logical_flat_and_cluster(void **state) {
    (void)state;
    for (unsigned i = 0; i < CPUS; i++)
        put(i, LDR, 1u << (24 + i));
    put(0, ICR2, 0x0au << 24);
    put(0, ICR, 1 << 11 | 0x61);
    assert_int_equal(lapic_ack(cpus[0]), -1);
    assert_int_equal(lapic_ack(cpus[1]), 0x61);
    assert_int_equal(lapic_ack(cpus[2]), -1);
    assert_int_equal(lapic_ack(cpus[3]), 0x61);
    for (unsigned i = 0; i < CPUS; i++) {
        put(i, DFR, 0x0fffffff);
        put(i, LDR, (i / 2) << 28 | 1u << (24 + i % 2));
    }
    put(0, ICR2, 0x12u << 24);
    put(0, ICR, 1 << 11 | 0x81);
    assert_int_equal(lapic_ack(cpus[1]), -1);
    assert_int_equal(lapic_ack(cpus[2]), -1);
    assert_int_equal(lapic_ack(cpus[3]), 0x81);
}

static void lowest_priority_goes_to_the_idlest(void **state) {
    (void)state;
    for (unsigned i = 0; i < CPUS; i++) {
        put(i, LDR, 1u << (24 + i));
        put(i, TPR, 0x40 - 0x10 * i);
    }
    put(0, ICR2, 0x07u << 24);
    put(0, ICR, 1 << 11 | 1 << 8 | 0x99);
    assert_int_equal(lapic_ack(cpus[2]), 0x99);
    assert_int_equal(lapic_ack(cpus[0]), -1);
    assert_int_equal(lapic_ack(cpus[3]), -1);
}

static void events_come_in_order(void **state) {
    (void)state;
    uint8_t vector = 0;
    put(0, ICR2, 1 << 24);
    put(0, ICR, 0x4000 | 4 << 8); /* NMI */
    put(0, ICR, 0xc000 | 5 << 8); /* INIT */
    put(0, ICR, 0x8000 | 5 << 8); /* INIT de-assert: nothing */
    put(0, ICR, 0x4000 | 6 << 8 | 0x9a);
    assert_true(lapic_attention(cpus[1]));
    assert_false(lapic_pending(cpus[1]));
    assert_int_equal(lapic_take_event(cpus[1], &vector), LAPIC_INIT);
    lapic_reset(cpus[1], true);
    assert_int_equal(lapic_take_event(cpus[1], &vector), LAPIC_SIPI);
    assert_int_equal(vector, 0x9a);
    assert_int_equal(lapic_take_event(cpus[1], &vector), LAPIC_NMI);
    assert_int_equal(lapic_take_event(cpus[1], &vector), LAPIC_NO_EVENT);
    assert_false(lapic_attention(cpus[1]));
}

static void illegal_vectors_are_errors(void **state) {
    (void)state;
    put(0, LVT_ERROR, 0xfe);
    put(0, ICR, 1 << 18 | 0x0f);
    assert_int_equal(lapic_ack(cpus[0]), 0xfe);
    assert_int_equal(get(0, ESR), 0);
    put(0, ESR, 0);
    assert_int_equal(get(0, ESR), 1 << 5);
    msi(0, 0x05);
    put(0, ESR, 0);
    assert_int_equal(get(0, ESR), 1 << 6);
}

static void an_error_vector_that_is_illegal_is_harmless(void **state) {
    (void)state;
    put(0, LVT_ERROR, 0x03);
    put(0, ICR, 1 << 18 | 0x0f);
    assert_int_equal(lapic_ack(cpus[0]), -1);
}

static void level_interrupts_reach_back(void **state) {
    (void)state;
    rig_route(16, RIG_LEVEL);
    irq_set(rig.platform.irqchip, 16, true);
    assert_int_equal(lapic_ack(cpus[0]), RIG_VECTOR + 16);
    assert_false(lapic_pending(cpus[0]));
    put(0, EOI, 0);
    assert_int_equal(lapic_ack(cpus[0]), RIG_VECTOR + 16);
    irq_set(rig.platform.irqchip, 16, false);
    put(0, EOI, 0);
    assert_int_equal(lapic_ack(cpus[0]), -1);
}

static void broadcasts_can_be_suppressed(void **state) {
    (void)state;
    put(0, SVR, 0x11ff);
    rig_route(16, RIG_LEVEL);
    irq_set(rig.platform.irqchip, 16, true);
    assert_int_equal(lapic_ack(cpus[0]), RIG_VECTOR + 16);
    put(0, EOI, 0);
    assert_int_equal(lapic_ack(cpus[0]), -1);
    mmio_write(IOAPIC_BASE + 0x40, RIG_VECTOR + 16, 4);
    assert_int_equal(lapic_ack(cpus[0]), RIG_VECTOR + 16);
}

static void virtual_wire(void **state) {
    (void)state;
    lapic_reset(cpus[0], false);
    outb(0x20, 0x11);
    outb(0x21, 0x30);
    outb(0x21, 0x04);
    outb(0x21, 0x01);
    irq_set(rig.platform.irqchip, 4, true);
    assert_true(lapic_pending(cpus[0]));
    assert_false(lapic_pending(cpus[1]));
    assert_int_equal(lapic_ack(cpus[0]), 0x34);
    assert_false(lapic_pending(cpus[0]));
    outb(0x20, 0x20);
    put(0, SVR, 0x1ff);
    put(0, LVT_LINT0, MASKED | 7 << 8);
    irq_set(rig.platform.irqchip, 4, false);
    irq_set(rig.platform.irqchip, 4, true);
    assert_false(lapic_pending(cpus[0]));
    put(0, LVT_LINT0, 7 << 8);
    assert_true(lapic_pending(cpus[0]));
}

static void expire(unsigned cpu, uint64_t ns) {
    rig_advance(ns);
    lapic_timer_expire(cpus[cpu], rig_now());
}

static void one_shot_timer(void **state) {
    (void)state;
    put(0, LVT_TIMER, 0xec);
    put(0, DIVIDE, 3); /* by 16 */
    put(0, INITIAL, 1000);
    assert_int_equal(lapic_timer_deadline(cpus[0]), rig_now() + 16000);
    expire(0, 8000);
    assert_int_equal(get(0, CURRENT), 500);
    assert_int_equal(lapic_ack(cpus[0]), -1);
    expire(0, 8000);
    assert_int_equal(lapic_ack(cpus[0]), 0xec);
    assert_int_equal(get(0, CURRENT), 0);
    assert_true(lapic_timer_deadline(cpus[0]) == UINT64_MAX);
}

static void periodic_timer_coalesces(void **state) {
    (void)state;
    put(0, LVT_TIMER, 0xec | PERIODIC);
    put(0, DIVIDE, 0xb); /* by 1 */
    uint64_t start = rig_now();
    put(0, INITIAL, 1000);
    expire(0, 7300);
    assert_int_equal(lapic_ack(cpus[0]), 0xec);
    put(0, EOI, 0);
    assert_int_equal(lapic_ack(cpus[0]), -1);
    assert_int_equal(lapic_timer_deadline(cpus[0]), start + 8000);
    assert_int_equal(get(0, CURRENT), 700);
    put(0, INITIAL, 0);
    assert_true(lapic_timer_deadline(cpus[0]) == UINT64_MAX);
}

static void deadline_timer(void **state) {
    (void)state;
    lapic_set_tsc_deadline(cpus[0], 100);
    assert_int_equal(lapic_tsc_deadline(cpus[0]), 0); /* not in that mode */
    put(0, LVT_TIMER, 0xec | TSC_DEADLINE);
    uint64_t tsc = vm_clock_tsc(rig.platform.clock) + 5000;
    lapic_set_tsc_deadline(cpus[0], tsc);
    assert_int_equal(lapic_tsc_deadline(cpus[0]), tsc);
    assert_int_equal(lapic_timer_deadline(cpus[0]), rig_now() + 2500);
    expire(0, 2500);
    assert_int_equal(lapic_ack(cpus[0]), 0xec);
    assert_int_equal(lapic_tsc_deadline(cpus[0]), 0);
    lapic_set_tsc_deadline(cpus[0], tsc);
    put(0, LVT_TIMER, 0xec);
    assert_true(lapic_timer_deadline(cpus[0]) == UINT64_MAX);
}

static void x2apic_mode(void **state) {
    (void)state;
    uint64_t value;
    uint64_t base = lapic_base(cpus[3]);
    assert_false(lapic_msr_read(cpus[3], 0x802, &value));
    assert_false(lapic_set_base(cpus[3], (base & ~UINT64_C(0xc00)) | 0x400));
    assert_true(lapic_set_base(cpus[3], base | X2APIC));
    assert_false(lapic_set_base(cpus[3], base)); /* only through off */
    assert_int_equal(get(3, ID), UINT32_MAX);
    assert_true(lapic_msr_read(cpus[3], 0x802, &value));
    assert_int_equal(value, 3);
    assert_true(lapic_msr_read(cpus[3], 0x80d, &value));
    assert_int_equal(value, 8);
    assert_false(lapic_msr_write(cpus[3], 0x802, 1));
    assert_false(lapic_msr_write(cpus[3], 0x80b, 1));
    assert_false(lapic_msr_read(cpus[3], 0x80e, &value));
    assert_false(lapic_msr_read(cpus[3], 0x831, &value));
    assert_true(lapic_msr_write(cpus[3], 0x83f, 0x55));
    assert_int_equal(lapic_ack(cpus[3]), 0x55);
    assert_true(lapic_msr_write(cpus[3], 0x80b, 0));
    assert_true(lapic_msr_write(cpus[3], 0x830, UINT64_C(1) << 32 | 0x66));
    assert_int_equal(lapic_ack(cpus[1]), 0x66);
    msi(3, 0x77);
    assert_int_equal(lapic_ack(cpus[3]), 0x77);
    assert_true(lapic_set_base(cpus[3], base & ~(uint64_t)X2APIC));
    assert_true(lapic_set_base(cpus[3], base));
    assert_int_equal(get(3, ID), 3 << 24);
}

static void state_survives(void **state) {
    (void)state;
    struct state_buffer buffer = {0};
    size_t used;
    msi(1, 0x41);
    put(1, TPR, 0x20);
    assert_int_equal(state_save(lapic_state(), cpus[1], &buffer, NULL), 0);
    lapic_reset(cpus[1], false);
    assert_false(lapic_pending(cpus[1]));
    assert_int_equal(state_load(lapic_state(), cpus[1], buffer.data, buffer.length, &used, NULL),
                     0);
    assert_int_equal(lapic_ack(cpus[1]), 0x41);
    state_buffer_free(&buffer);
}

/* ---- Senders on other threads ---- */

enum { SENDERS = 4, SENDINGS = 2000, FIRST_VECTOR = 0x40, VECTOR_STEP = 0x13 };

/* A sender sends its vector again only once it has been taken, as devices do that wait for their
 * driver: an interrupt or a wake-up that is lost stops it. */
struct sender {
    pthread_t thread;
    uint8_t vector;
    sem_t taken;
};

static struct {
    struct sender senders[SENDERS];
    sem_t woken;
    struct lapic *lapic;
} threads;

static void post_woken(void *context) {
    (void)context;
    sem_post(&threads.woken);
}

static bool wait_a_minute(sem_t *semaphore) {
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 60;
    return sem_timedwait(semaphore, &limit) == 0;
}

static void *send_often(void *context) {
    struct sender *sender = context;
    for (unsigned i = 0; i < SENDINGS; i++) {
        msi(CPUS, sender->vector);
        if (!wait_a_minute(&sender->taken))
            return sender;
    }
    return NULL;
}

static void nothing_is_lost_between_threads(void **state) {
    (void)state;
    unsigned received = 0;
    sem_init(&threads.woken, 0, 0);
    assert_int_equal(
        lapic_create(rig.platform.irqchip, CPUS, post_woken, NULL, &threads.lapic, NULL), 0);
    lapic_mmio_write(threads.lapic, SVR, 0x1ff);
    for (unsigned i = 0; i < SENDERS; i++) {
        struct sender *sender = &threads.senders[i];
        sender->vector = (uint8_t)(FIRST_VECTOR + i * VECTOR_STEP);
        sem_init(&sender->taken, 0, 0);
        assert_int_equal(pthread_create(&sender->thread, NULL, send_often, sender), 0);
    }
    while (received < SENDERS * SENDINGS) {
        if (!lapic_attention(threads.lapic)) {
            assert_true(wait_a_minute(&threads.woken));
            continue;
        }
        int vector = lapic_ack(threads.lapic);
        assert_in_range(vector, FIRST_VECTOR, 255);
        lapic_mmio_write(threads.lapic, EOI, 0);
        sem_post(&threads.senders[(vector - FIRST_VECTOR) / VECTOR_STEP].taken);
        received++;
    }
    for (unsigned i = 0; i < SENDERS; i++) {
        void *failed;
        pthread_join(threads.senders[i].thread, &failed);
        assert_null(failed);
    }
    lapic_destroy(threads.lapic);
}

static void garbage_is_survived(void **state) {
    (void)state;
    uint64_t seed = 7, value;
    for (unsigned i = 0; i < 200000; i++) {
        unsigned cpu = rig_random(&seed) % CPUS;
        uint64_t r = rig_random(&seed);
        unsigned reg = (unsigned)(r >> 8) & 0xff;
        switch (r & 7) {
        case 0: lapic_mmio_read(cpus[cpu], (unsigned)(r >> 8) & 0xfff); break;
        case 1: lapic_msr_read(cpus[cpu], 0x800 + reg, &value); break;
        case 2: lapic_msr_write(cpus[cpu], 0x800 + reg, rig_random(&seed) >> (r >> 58)); break;
        case 3:
            if (r % 64 == 3)
                lapic_set_base(cpus[cpu], 0xfee00000 | (r >> 16 & 0xf00));
            break;
        case 4: lapic_ack(cpus[cpu]); break;
        case 5: expire(cpu, r >> 40 & 0xffff); break;
        case 6:
            msi_send(rig.platform.irqchip, (struct msi_message){0xfee00000 | (r >> 20 & 0xfffff),
                                                                (uint32_t)rig_random(&seed)});
            break;
        default:
            lapic_mmio_write(cpus[cpu], (unsigned)(r >> 8) & 0xff0, (uint32_t)rig_random(&seed));
            break;
        }
        uint8_t vector;
        lapic_take_event(cpus[cpu], &vector);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(takes_the_highest_vector, setup, teardown),
        cmocka_unit_test_setup_teardown(task_priority_holds_back, setup, teardown),
        cmocka_unit_test_setup_teardown(disabled_drops, setup, teardown),
        cmocka_unit_test_setup_teardown(shorthands_and_destinations, setup, teardown),
        cmocka_unit_test_setup_teardown(logical_flat_and_cluster, setup, teardown),
        cmocka_unit_test_setup_teardown(lowest_priority_goes_to_the_idlest, setup, teardown),
        cmocka_unit_test_setup_teardown(events_come_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(illegal_vectors_are_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(an_error_vector_that_is_illegal_is_harmless, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(level_interrupts_reach_back, setup, teardown),
        cmocka_unit_test_setup_teardown(broadcasts_can_be_suppressed, setup, teardown),
        cmocka_unit_test_setup_teardown(virtual_wire, setup, teardown),
        cmocka_unit_test_setup_teardown(one_shot_timer, setup, teardown),
        cmocka_unit_test_setup_teardown(periodic_timer_coalesces, setup, teardown),
        cmocka_unit_test_setup_teardown(deadline_timer, setup, teardown),
        cmocka_unit_test_setup_teardown(x2apic_mode, setup, teardown),
        cmocka_unit_test_setup_teardown(state_survives, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_lost_between_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(garbage_is_survived, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
