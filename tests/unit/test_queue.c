/* The queue walker: honest drivers of every kind, and dishonest ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "driver_ring.h"

enum { RAM = 16 << 20, RING = 0x100000, DATA = 0x800000, OUTSIDE = 0x40000000 };

struct fixture {
    struct memory *memory;
    struct dma_context dma;
    struct virtq_owner owner;
    struct virtq queue;
    struct driver_ring ring;
    unsigned interrupts, breaks;
    const char *why;
};

static void count_interrupt(void *context, struct virtq *queue) {
    (void)queue;
    ((struct fixture *)context)->interrupts++;
}

static void count_break(void *context, struct virtq *queue, const char *why) {
    struct fixture *f = context;
    (void)queue;
    f->breaks++;
    f->why = why;
}

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){0};
    if (memory_create(&f.memory, NULL) != 0 || memory_add_ram(f.memory, "ram", 0, RAM, NULL) != 0)
        return -1;
    f.dma = (struct dma_context){.memory = f.memory};
    f.owner = (struct virtq_owner){&f.dma, count_interrupt, count_break, &f};
    virtq_init(&f.queue, &f.owner, 0, 256);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    memory_destroy(((struct fixture *)*state)->memory);
    return 0;
}

static void start(struct fixture *f, uint16_t size, bool packed, bool event_index) {
    ring_start(&f->ring, f->memory, RING, size, packed);
    virtq_reset(&f->queue);
    ring_attach(&f->ring, &f->queue);
    virtq_enable(&f->queue, (struct virtq_features){packed, event_index, true});
    f->interrupts = f->breaks = 0;
    assert_int_equal(f->queue.ready, 1);
}

static uint32_t seed;
static uint32_t next_random(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

/* ---- Honest drivers ---- */

static void one_chain(struct fixture *f) {
    const struct driver_buffer buffers[] = {
        {DATA, 5}, {DATA + 100, 3}, {DATA + 200, 4}, {DATA + 300, 8}};
    struct virtq_chain chain;
    char text[16];
    uint16_t used_id;
    uint32_t length;
    memory_write(f->memory, DATA, "hello", 5);
    memory_write(f->memory, DATA + 100, "you", 3);
    assert_false(virtq_pop(&f->queue, &chain));
    int id = ring_add(&f->ring, buffers, 2, 4);
    assert_true(virtq_pop(&f->queue, &chain));
    assert_int_equal(chain.readable, 2);
    assert_int_equal(chain.count, 4);
    assert_int_equal(chain.readable_length, 8);
    assert_int_equal(chain.writable_length, 12);
    assert_int_equal(virtq_read(&f->queue, &chain, 0, text, sizeof text), 8);
    assert_memory_equal(text, "helloyou", 8);
    assert_int_equal(virtq_read(&f->queue, &chain, 3, text, 3), 3);
    assert_memory_equal(text, "loy", 3);
    assert_int_equal(virtq_write(&f->queue, &chain, 1, "0123456789abcdef", 16), 11);
    memory_read(f->memory, DATA + 200, text, 4);
    assert_memory_equal(text + 1, "012", 3);
    memory_read(f->memory, DATA + 300, text, 8);
    assert_memory_equal(text, "3456789a", 8);
    assert_false(ring_used(&f->ring, &used_id, &length));
    virtq_push(&f->queue, chain.token, 12);
    virtq_signal(&f->queue);
    assert_true(ring_used(&f->ring, &used_id, &length));
    assert_int_equal(used_id, id);
    assert_int_equal(length, 12);
    assert_int_equal(f->interrupts, 1);
    assert_int_equal(f->breaks, 0);
    assert_int_equal(virtq_in_flight(&f->queue), 0);
}

static void test_one_chain(void **state) {
    for (unsigned kind = 0; kind < 4; kind++) {
        struct fixture *f = *state;
        start(f, 8, kind & 1, false);
        f->ring.indirect = kind & 2;
        one_chain(f);
    }
}

/* Many chains of random shapes, several in flight, completed out of order. */
static void churn(struct fixture *f, uint16_t size, bool packed) {
    enum { FLIGHT = 4, ROUNDS = 3000 };
    struct virtq_token flight[FLIGHT];
    uint32_t lengths[FLIGHT];
    uint32_t given[VIRTQ_SIZE_MAX] = {0};
    unsigned count = 0, done = 0;
    start(f, size, packed, false);
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct driver_buffer buffers[4];
        unsigned n = 1 + next_random() % 4, readable = next_random() % (n + 1);
        uint32_t writable = 0;
        for (unsigned i = 0; i < n; i++) {
            buffers[i] = (struct driver_buffer){DATA + 4096 * i, 1 + next_random() % 2000};
            writable += i >= readable ? buffers[i].length : 0;
        }
        f->ring.indirect = next_random() & 1;
        int id = ring_add(&f->ring, buffers, readable, n);
        if (id >= 0)
            given[id] = writable;
        while (count < FLIGHT) {
            struct virtq_chain chain;
            if (!virtq_pop(&f->queue, &chain))
                break;
            if (next_random() % 8 == 0) {
                virtq_unpop(&f->queue, chain.token);
                break;
            }
            lengths[count] = chain.writable_length;
            flight[count++] = chain.token;
        }
        while (count > 0 && (next_random() & 1 || count == FLIGHT)) {
            unsigned victim = next_random() % count;
            virtq_push(&f->queue, flight[victim], lengths[victim]);
            flight[victim] = flight[--count];
            lengths[victim] = lengths[count];
        }
        uint16_t used;
        uint32_t length;
        while (ring_used(&f->ring, &used, &length)) {
            assert_int_equal(length, given[used]);
            done++;
        }
    }
    assert_int_equal(f->breaks, 0);
    assert_true(done > ROUNDS / 4);
}

static void test_churn(void **state) {
    seed = 1;
    for (unsigned i = 0; i < 3; i++)
        churn(*state, (uint16_t)(8 << i), false);
    churn(*state, 8, true);
    churn(*state, 13, true);
    churn(*state, 64, true);
}

static void test_full_ring(void **state) {
    struct fixture *f = *state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct virtq_chain chain;
        const struct driver_buffer buffer = {DATA, 16};
        start(f, 4, packed, false);
        f->ring.indirect = false;
        for (unsigned i = 0; i < 4; i++)
            assert_true(ring_add(&f->ring, &buffer, 0, 1) >= 0);
        assert_int_equal(ring_add(&f->ring, &buffer, 0, 1), -1);
        for (unsigned i = 0; i < 4; i++)
            assert_true(virtq_pop(&f->queue, &chain));
        assert_false(virtq_pop(&f->queue, &chain));
        assert_int_equal(f->breaks, 0);
    }
}

static void test_map(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffers[] = {{DATA, 5000}, {DATA + 8192, 100}};
    struct virtq_chain chain;
    struct iovec vectors[4];
    start(f, 8, false, false);
    ring_add(&f->ring, buffers, 0, 2);
    assert_true(virtq_pop(&f->queue, &chain));
    int count = virtq_map(&f->queue, &chain, true, 16, 5050, vectors, 4);
    assert_int_equal(count, 2);
    assert_int_equal(vectors[0].iov_len, 4984);
    assert_int_equal(vectors[1].iov_len, 66);
    memset(vectors[1].iov_base, 'x', 66);
    virtq_wrote(&f->queue, &chain, 16, 5050);
    char c;
    memory_read(f->memory, DATA + 8192 + 65, &c, 1);
    assert_int_equal(c, 'x');
    assert_int_equal(virtq_map(&f->queue, &chain, true, 16, 5050, vectors, 1), -E2BIG);
    assert_int_equal(f->breaks, 0);
    assert_int_equal(virtq_map(&f->queue, &chain, true, 16, 6000, vectors, 4), -EFAULT);
    assert_int_equal(f->breaks, 1);
}

/* ---- Events ---- */

static void give_back(struct fixture *f) {
    const struct driver_buffer buffer = {DATA, 16};
    struct virtq_chain chain;
    uint16_t id;
    uint32_t length;
    ring_add(&f->ring, &buffer, 0, 1);
    assert_true(virtq_pop(&f->queue, &chain));
    virtq_push(&f->queue, chain.token, 1);
    virtq_signal(&f->queue);
    assert_true(ring_used(&f->ring, &id, &length));
}

static void test_interrupt_flags(void **state) {
    struct fixture *f = *state;
    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t flags = RING + RING_DRIVER + (packed ? 2 : 0);
        start(f, 8, packed, false);
        give_back(f);
        assert_int_equal(f->interrupts, 1);
        ring_poke16(&f->ring, flags, 1);
        give_back(f);
        assert_int_equal(f->interrupts, 1);
        ring_poke16(&f->ring, flags, 0);
        give_back(f);
        assert_int_equal(f->interrupts, 2);
        virtq_signal(&f->queue);
        assert_int_equal(f->interrupts, 2);
    }
}

static void test_split_event_index(void **state) {
    struct fixture *f = *state;
    uint64_t used_event = RING + RING_DRIVER + 4 + 2 * 8;
    start(f, 8, false, true);
    ring_poke16(&f->ring, used_event, 2);
    for (unsigned i = 0; i < 5; i++) {
        give_back(f);
        assert_int_equal(f->interrupts, i >= 2 ? 1 : 0);
    }
    /* The device asks likewise. */
    assert_false(virtq_listen(&f->queue));
    assert_int_equal(ring_peek16(&f->ring, RING + RING_DEVICE + 4 + 8 * 8), 5);
    const struct driver_buffer buffer = {DATA, 16};
    ring_add(&f->ring, &buffer, 0, 1);
    assert_true(virtq_listen(&f->queue));
}

static void test_packed_event_index(void **state) {
    struct fixture *f = *state;
    start(f, 4, true, true);
    ring_poke16(&f->ring, RING + RING_DRIVER + 2, 2);
    /* Slot 1 of the second round: the sixth entry given back. */
    ring_poke16(&f->ring, RING + RING_DRIVER, 1);
    for (unsigned i = 0; i < 8; i++) {
        give_back(f);
        assert_int_equal(f->interrupts, i >= 5 ? 1 : 0);
    }
    assert_false(virtq_listen(&f->queue));
    assert_int_equal(ring_peek16(&f->ring, RING + RING_DEVICE), 0x8000);
    assert_int_equal(ring_peek16(&f->ring, RING + RING_DEVICE + 2), 2);
    virtq_quiet(&f->queue);
    assert_int_equal(ring_peek16(&f->ring, RING + RING_DEVICE + 2), 1);
}

/* ---- Dishonest drivers ---- */

/* The queue breaks once, says why, and stays quiet. */
static void assert_breaks(struct fixture *f, const char *why) {
    struct virtq_chain chain;
    assert_false(virtq_pop(&f->queue, &chain));
    assert_int_equal(f->breaks, 1);
    assert_string_equal(f->why, why);
    assert_false(virtq_pop(&f->queue, &chain));
    assert_false(virtq_listen(&f->queue));
    virtq_quiet(&f->queue);
    virtq_push(&f->queue, (struct virtq_token){0, 1}, 1);
    virtq_unpop(&f->queue, (struct virtq_token){0, 1});
    virtq_signal(&f->queue);
    assert_int_equal(f->breaks, 1);
    assert_int_equal(f->interrupts, 0);
}

struct raw {
    uint64_t address;
    uint32_t length;
    uint16_t flags, link;
};

/* Starts a split ring of 8 with these raw descriptors and offers descriptor 0. */
static void offer_split(struct fixture *f, const struct raw *raw, unsigned count) {
    start(f, 8, false, false);
    for (unsigned i = 0; i < count; i++)
        ring_descriptor(&f->ring, RING + 16 * i, raw[i].address, raw[i].length, raw[i].flags,
                        raw[i].link);
    ring_offer(&f->ring, 0);
}

static void test_hostile_split(void **state) {
    static const struct {
        const char *why;
        struct raw raw[3];
    } cases[] = {
        {"descriptor outside the ring", {{DATA, 16, RING_NEXT, 8}}},
        {"descriptor outside the ring", {{DATA, 16, RING_NEXT, 0xffff}}},
        {"loop of descriptors", {{DATA, 16, RING_NEXT, 0}}},
        {"loop of descriptors", {{DATA, 16, RING_NEXT, 1}, {DATA, 0, RING_NEXT, 0}}},
        {"readable buffer after a writable one",
         {{DATA, 1, RING_WRITE | RING_NEXT, 1}, {DATA, 1, 0, 0}}},
        {"chain of more than 4 GiB",
         {{0, UINT32_MAX, RING_WRITE | RING_NEXT, 1}, {0, 1, RING_WRITE, 0}}},
        {"buffer wraps around the address space", {{UINT64_MAX - 3, 5, 0, 0}}},
        {"indirect descriptor with a next one", {{DATA, 16, RING_INDIRECT | RING_NEXT, 1}}},
        {"indirect table of a bad length", {{DATA, 0, RING_INDIRECT, 0}}},
        {"indirect table of a bad length", {{DATA, 17, RING_INDIRECT, 0}}},
        {"indirect table of too many entries",
         {{DATA, 16 * (VIRTQ_CHAIN_MAX + 1), RING_INDIRECT, 0}}},
        {"indirect table of too many entries", {{DATA, 0xfffffff0, RING_INDIRECT, 0}}},
        {"indirect table wraps around the address space", {{UINT64_MAX - 7, 16, RING_INDIRECT, 0}}},
        {"ring or descriptor table is not in memory", {{OUTSIDE, 16, RING_INDIRECT, 0}}},
        {"ring or descriptor table is not in memory", {{RAM - 8, 16, RING_INDIRECT, 0}}},
    };
    struct fixture *f = *state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        offer_split(f, cases[i].raw, 3);
        assert_breaks(f, cases[i].why);
    }
}

static void test_hostile_table(void **state) {
    static const struct {
        const char *why;
        struct raw raw[2];
    } cases[] = {
        {"indirect table in an indirect table", {{DATA, 16, RING_INDIRECT, 0}}},
        {"link outside the indirect table", {{DATA, 16, RING_NEXT, 2}}},
        {"loop in an indirect table", {{DATA, 16, RING_NEXT, 1}, {DATA, 16, RING_NEXT, 0}}},
        {"readable buffer after a writable one",
         {{DATA, 1, RING_WRITE | RING_NEXT, 1}, {DATA, 1, 0, 0}}},
    };
    static const struct raw head[] = {{DATA, 32, RING_INDIRECT, 0}};
    struct fixture *f = *state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        offer_split(f, head, 1);
        for (unsigned j = 0; j < 2; j++)
            ring_descriptor(&f->ring, DATA + 16 * j, cases[i].raw[j].address,
                            cases[i].raw[j].length, cases[i].raw[j].flags, cases[i].raw[j].link);
        assert_breaks(f, cases[i].why);
    }
}

static void test_hostile_index(void **state) {
    struct fixture *f = *state;
    struct virtq_chain chain;
    start(f, 8, false, false);
    ring_poke16(&f->ring, RING + RING_DRIVER + 2, 9);
    assert_breaks(f, "available index ran ahead of the ring");
    start(f, 8, false, false);
    ring_offer(&f->ring, 8);
    assert_breaks(f, "descriptor outside the ring");
    /* The same head again and again, never waiting for it to come back. */
    start(f, 8, false, false);
    ring_descriptor(&f->ring, RING, DATA, 16, 0, 0);
    for (unsigned i = 0; i < 8; i++) {
        ring_offer(&f->ring, 0);
        assert_true(virtq_pop(&f->queue, &chain));
    }
    ring_offer(&f->ring, 0);
    assert_breaks(f, "more chains outstanding than the ring holds");
}

static void test_hostile_packed(void **state) {
    struct fixture *f = *state;
    start(f, 4, true, false);
    for (unsigned i = 0; i < 4; i++)
        ring_descriptor(&f->ring, RING + 16 * i, DATA, 16, RING_AVAIL | RING_NEXT, 0);
    assert_breaks(f, "chain longer than the ring");
    start(f, 4, true, false);
    ring_descriptor(&f->ring, RING, DATA, 16, RING_AVAIL | RING_INDIRECT | RING_NEXT, 0);
    assert_breaks(f, "indirect descriptor with a next one");
    start(f, 4, true, false);
    ring_descriptor(&f->ring, RING, DATA, 32, RING_AVAIL | RING_INDIRECT, 0);
    ring_descriptor(&f->ring, DATA, DATA, 16, RING_WRITE, 0);
    ring_descriptor(&f->ring, DATA + 16, DATA, 16, RING_INDIRECT, 0);
    assert_breaks(f, "indirect table in an indirect table");
}

static void test_bad_setup(void **state) {
    static const struct {
        uint16_t size;
        uint64_t descriptors, driver, device;
        bool packed;
    } cases[] = {
        {0, RING, RING, RING, false},     {257, RING, RING, RING, true},
        {12, RING, RING, RING, false},    {8, RING + 8, RING, RING, false},
        {8, RING, RING + 1, RING, false}, {8, RING, RING, RING + 2, false},
        {8, RING, RING + 2, RING, true},
    };
    struct fixture *f = *state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        virtq_reset(&f->queue);
        f->breaks = 0;
        f->queue.size = cases[i].size;
        f->queue.descriptors = cases[i].descriptors;
        f->queue.driver = cases[i].driver;
        f->queue.device = cases[i].device;
        virtq_enable(&f->queue, (struct virtq_features){.packed = cases[i].packed});
        assert_int_equal(f->breaks, 1);
        assert_false(f->queue.ready);
    }
}

static void test_rings_outside_memory(void **state) {
    static const uint64_t bases[] = {OUTSIDE, UINT64_MAX & ~15ull, RAM - 16};
    struct fixture *f = *state;
    for (unsigned i = 0; i < 2 * ARRAY_SIZE(bases); i++) {
        struct virtq_chain chain;
        virtq_reset(&f->queue);
        f->breaks = 0;
        f->queue.size = 8;
        f->queue.descriptors = f->queue.driver = f->queue.device = bases[i / 2];
        virtq_enable(&f->queue, (struct virtq_features){.packed = i & 1, .event_index = true});
        virtq_pop(&f->queue, &chain);
        virtq_listen(&f->queue);
        virtq_quiet(&f->queue);
        assert_true(f->breaks <= 1);
    }
}

static void test_no_indirect_feature(void **state) {
    struct fixture *f = *state;
    ring_start(&f->ring, f->memory, RING, 8, false);
    ring_attach(&f->ring, &f->queue);
    virtq_enable(&f->queue, (struct virtq_features){0});
    ring_descriptor(&f->ring, RING, DATA, 16, RING_INDIRECT, 0);
    ring_offer(&f->ring, 0);
    assert_breaks(f, "indirect descriptor without the feature");
}

/* Direct descriptors followed by an indirect one are legal in a split ring (2.7.5.3.2). */
static void test_mixed_chain(void **state) {
    static const struct raw raw[] = {
        {DATA, 8, RING_NEXT, 3}, {0}, {0}, {DATA + 64, 16, RING_INDIRECT, 0}};
    struct fixture *f = *state;
    struct virtq_chain chain;
    offer_split(f, raw, 4);
    ring_descriptor(&f->ring, DATA + 64, DATA + 128, 32, RING_WRITE, 0);
    assert_true(virtq_pop(&f->queue, &chain));
    assert_int_equal(chain.readable_length, 8);
    assert_int_equal(chain.writable_length, 32);
}

static void test_buffer_outside(void **state) {
    static const struct raw raw[] = {{OUTSIDE, 16, 0, 0}};
    struct fixture *f = *state;
    struct virtq_chain chain;
    char text[16];
    offer_split(f, raw, 1);
    assert_true(virtq_pop(&f->queue, &chain));
    assert_int_equal(virtq_read(&f->queue, &chain, 0, text, 16), -EFAULT);
    assert_int_equal(f->breaks, 1);
}

static void test_state_round_trip(void **state) {
    struct fixture *f = *state;
    struct state_buffer buffer = {0};
    size_t used;
    start(f, 8, true, true);
    give_back(f);
    assert_int_equal(state_save(&virtq_state, &f->queue, &buffer, NULL), 0);
    struct virtq copy;
    virtq_init(&copy, &f->owner, 0, 256);
    assert_int_equal(state_load(&virtq_state, &copy, buffer.data, buffer.length, &used, NULL), 0);
    assert_int_equal(copy.avail, f->queue.avail);
    f->queue = copy;
    give_back(f);
    f->queue.avail = 8;
    buffer.length = 0;
    assert_int_equal(state_save(&virtq_state, &f->queue, &buffer, NULL), 0);
    assert_int_equal(state_load(&virtq_state, &copy, buffer.data, buffer.length, &used, NULL),
                     -EINVAL);
    state_buffer_free(&buffer);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_one_chain),
        TEST(test_churn),
        TEST(test_full_ring),
        TEST(test_map),
        TEST(test_interrupt_flags),
        TEST(test_split_event_index),
        TEST(test_packed_event_index),
        TEST(test_hostile_split),
        TEST(test_hostile_table),
        TEST(test_hostile_index),
        TEST(test_hostile_packed),
        TEST(test_bad_setup),
        TEST(test_rings_outside_memory),
        TEST(test_no_indirect_feature),
        TEST(test_mixed_chain),
        TEST(test_buffer_outside),
        TEST(test_state_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
