/* NVMe I/O commands: data by PRPs and SGLs, good and bad; each command; several namespaces. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "nvme_rig.h"

enum { PAGE = 4096 };

static struct nvme_rig fixture;

static int setup(void **state) {
    *state = &fixture;
    nvme_rig_start(&fixture, true);
    return 0;
}

static int teardown(void **state) {
    nvme_rig_stop(*state);
    return 0;
}

static void expect_sectors(struct nvme_rig *n, uint64_t sector, unsigned count, int value) {
    assert_int_equal(run_transfer(n, NVME_IO_READ, sector, count, DATA, DATA + PAGE), NVME_OK);
    for (unsigned i = 0; i < count; i++)
        expect_data(n, DATA + 512 * i, value >= 0 ? (uint8_t)value : (uint8_t)(sector + i), 512);
}

static void test_read_write(void **state) {
    struct nvme_rig *n = *state;
    expect_sectors(n, 0, 8, -1);
    expect_sectors(n, DISK_SECTORS - 16, 16, -1);
    fill_data(n, DATA, 0xee, 5 * 512);
    assert_int_equal(run_transfer(n, NVME_IO_WRITE, 100, 5, DATA, 0), NVME_OK);
    assert_int_equal(run_command(n, 1, &(struct command){.opcode = NVME_IO_FLUSH, .nsid = 1}),
                     NVME_OK);
    expect_sectors(n, 100, 5, 0xee);
    expect_sectors(n, 99, 1, -1);
    expect_sectors(n, 105, 1, -1);
    struct command fua = transfer(NVME_IO_WRITE, 1, 7, 1, DATA, 0);
    fua.dword[12] |= 1u << 30;
    fill_data(n, DATA, 0x77, 512);
    assert_int_equal(run_command(n, 1, &fua), NVME_OK);
    expect_sectors(n, 7, 1, 0x77);
}

static void put_list(struct nvme_rig *n, uint64_t at, const uint64_t *entries, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        uint8_t bytes[8];
        store_le64(bytes, entries[i]);
        rig_put(&n->rig, at + 8 * i, bytes, sizeof bytes);
    }
}

/* The first page from its middle, the others in reverse order, by a list that crosses a page. */
static void test_prp_list(void **state) {
    struct nvme_rig *n = *state;
    uint64_t pages[64];
    for (unsigned i = 0; i < 64; i++)
        pages[i] = DATA + (uint64_t)(64 - i) * PAGE;
    /* 60 entries would fit behind the list's start; two do: the second is a link. */
    put_list(n, LISTS + PAGE - 16, (uint64_t[]){pages[0], LISTS + 0x10000}, 2);
    put_list(n, LISTS + 0x10000, pages + 1, 63);
    unsigned sectors = (2048 + 32 * PAGE) / 512;
    assert_int_equal(run_transfer(n, NVME_IO_READ, 8, sectors, DATA + 0x100800, LISTS + PAGE - 16),
                     NVME_OK);
    for (unsigned i = 0; i < 4; i++)
        expect_data(n, DATA + 0x100800 + 512 * i, (uint8_t)(8 + i), 512);
    for (unsigned i = 4; i < sectors; i++)
        expect_data(n, pages[(i - 4) / 8] + 512 * ((i - 4) % 8), (uint8_t)(8 + i), 512);
}

static void test_largest(void **state) {
    struct nvme_rig *n = *state;
    uint64_t pages[256];
    for (unsigned i = 0; i < 256; i++)
        pages[i] = DATA + PAGE * (1 + (uint64_t)i * 2);
    put_list(n, LISTS, pages, 255);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 2048, DATA, LISTS), NVME_OK);
    expect_data(n, pages[254] + 3584, (uint8_t)2047, 512);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 2049, DATA, LISTS), NVME_INVALID_FIELD);
    assert_int_equal(run_transfer(n, NVME_IO_WRITE, 0, 4096, DATA, LISTS), NVME_INVALID_FIELD);
}

/* All pages the same, a page that the list lies in, the queue's own: each command ends, with one
 * of the contents that any order of writing gives; the controller goes on. */
static void test_overlapping_prps(void **state) {
    struct nvme_rig *n = *state;
    uint64_t pages[16];
    uint8_t byte;
    for (unsigned i = 0; i < 16; i++)
        pages[i] = DATA;
    put_list(n, LISTS, pages, 16);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 16 * 8, DATA, LISTS), NVME_OK);
    rig_get(&n->rig, DATA, &byte, 1);
    assert_int_equal(byte % 8, 0);
    expect_data(n, DATA + 512, (uint8_t)(byte + 1), 512);
    /* The list was read before the data came. */
    for (unsigned i = 0; i < 3; i++)
        pages[i] = i == 1 ? LISTS : DATA + i * PAGE;
    put_list(n, LISTS, pages, 3);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 4 * 8, DATA + 8 * PAGE, LISTS), NVME_OK);
    expect_data(n, LISTS, 16, 512);
    expect_data(n, DATA + 2 * PAGE, 24, 512);
    /* Onto entries that were fetched, and those behind them. */
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 8, IO_SQ + QUEUE_STEP, 0), NVME_OK);
    expect_sectors(n, 0, 8, -1);
}

static void test_bad_prps(void **state) {
    struct nvme_rig *n = *state;
    /* Offsets. */
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 1, DATA + 1, 0), NVME_PRP_OFFSET);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 16, DATA, DATA + 512), NVME_PRP_OFFSET);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 24, DATA, LISTS + 4), NVME_PRP_OFFSET);
    put_list(n, LISTS, (uint64_t[]){DATA + PAGE, DATA + 2 * PAGE + 8}, 2);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 24, DATA, LISTS), NVME_PRP_OFFSET);
    /* No memory there: nowhere, across the end of it, beyond the end of addresses. */
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 1, 0x80000000, 0), NVME_DATA_TRANSFER);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 1, RIG_RAM - 256, RIG_RAM),
                     NVME_DATA_TRANSFER);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 8, UINT64_MAX - 4095, 0), NVME_DATA_TRANSFER);
    assert_int_equal(run_transfer(n, NVME_IO_WRITE, 0, 8, UINT64_MAX - 2047, UINT64_MAX - 4095),
                     NVME_DATA_TRANSFER);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 24, DATA, 0x80000000), NVME_DATA_TRANSFER);
    /* A list whose link leads to itself ends with the command's length all the same. */
    put_list(n, LISTS + PAGE - 8, (uint64_t[]){LISTS}, 1);
    uint64_t loop[512];
    for (unsigned i = 0; i < 512; i++)
        loop[i] = LISTS;
    put_list(n, LISTS, loop, 512);
    assert_int_equal(run_transfer(n, NVME_IO_WRITE, 0, 2048, LISTS, LISTS + PAGE - 8), NVME_OK);
    /* And what was refused has written nothing. */
    assert_int_equal(run_transfer(n, NVME_IO_READ, 2500, 1, DATA, 0), NVME_OK);
    expect_data(n, DATA, (uint8_t)2500, 512);
}

/* ---- SGLs ---- */

enum { SGL_DATA = 0x00, SGL_BIT_BUCKET = 0x10, SGL_SEGMENT = 0x20, SGL_LAST = 0x30 };

struct sgl {
    uint64_t address;
    uint32_t length;
    uint8_t kind;
};

static void put_sgls(struct nvme_rig *n, uint64_t at, const struct sgl *sgls, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        uint8_t bytes[16] = {0};
        store_le64(bytes, sgls[i].address);
        store_le32(bytes + 8, sgls[i].length);
        bytes[15] = sgls[i].kind;
        rig_put(&n->rig, at + 16 * i, bytes, sizeof bytes);
    }
}

/* A read of two sectors from sector 40 with this descriptor in the command. */
static uint16_t read_sgl(struct nvme_rig *n, uint64_t address, uint32_t length, uint8_t kind) {
    struct command c = transfer(NVME_IO_READ, 1, 40, 2, address, 0);
    c.flags = 1 << 6;
    c.prp2 = length | (uint64_t)kind << 56;
    return run_command(n, 1, &c);
}

static void test_sgl(void **state) {
    struct nvme_rig *n = *state;
    assert_int_equal(read_sgl(n, DATA + 3, 1024, SGL_DATA), NVME_OK);
    expect_data(n, DATA + 3, 40, 512);
    expect_data(n, DATA + 515, 41, 512);
    /* Two segments, odd lengths, an empty block. */
    put_sgls(n, LISTS,
             (struct sgl[]){{DATA + 0x1001, 511, SGL_DATA},
                            {DATA, 0, SGL_DATA},
                            {LISTS + 0x1000, 32, SGL_LAST}},
             3);
    put_sgls(n, LISTS + 0x1000,
             (struct sgl[]){{DATA + 0x2000, 500, SGL_DATA}, {DATA + 0x3000, 13, SGL_DATA}}, 2);
    assert_int_equal(read_sgl(n, LISTS, 48, SGL_SEGMENT), NVME_OK);
    expect_data(n, DATA + 0x1001, 40, 511);
    expect_data(n, DATA + 0x2001, 41, 499);
    expect_data(n, DATA + 0x3000, 41, 13);
}

static void test_bad_sgl(void **state) {
    struct nvme_rig *n = *state;
    assert_int_equal(read_sgl(n, DATA, 1023, SGL_DATA), NVME_SGL_LENGTH);
    assert_int_equal(read_sgl(n, DATA, 1025, SGL_DATA), NVME_SGL_LENGTH);
    assert_int_equal(read_sgl(n, DATA, UINT32_MAX, SGL_DATA), NVME_SGL_LENGTH);
    assert_int_equal(read_sgl(n, DATA, 1024, SGL_BIT_BUCKET), NVME_SGL_TYPE);
    assert_int_equal(read_sgl(n, DATA, 1024, 0x40), NVME_SGL_TYPE);
    assert_int_equal(read_sgl(n, DATA, 1024, SGL_DATA | 1), NVME_SGL_TYPE);
    assert_int_equal(read_sgl(n, LISTS, 0, SGL_LAST), NVME_SGL_SEGMENT);
    assert_int_equal(read_sgl(n, LISTS, 17, SGL_LAST), NVME_SGL_SEGMENT);
    assert_int_equal(read_sgl(n, LISTS, 0xfffffff0, SGL_LAST), NVME_SGL_COUNT);
    assert_int_equal(read_sgl(n, 0x80000000, 32, SGL_LAST), NVME_DATA_TRANSFER);
    assert_int_equal(read_sgl(n, UINT64_MAX - 8, 1024, SGL_DATA), NVME_DATA_TRANSFER);
    /* A segment that leads to itself. */
    put_sgls(n, LISTS, (struct sgl[]){{DATA, 1, SGL_DATA}, {LISTS, 32, SGL_SEGMENT}}, 2);
    assert_int_equal(read_sgl(n, LISTS, 32, SGL_SEGMENT), NVME_SGL_COUNT);
    put_sgls(n, LISTS, (struct sgl[]){{DATA, 0, SGL_DATA}, {LISTS, 32, SGL_SEGMENT}}, 2);
    assert_int_equal(read_sgl(n, LISTS, 32, SGL_SEGMENT), NVME_SGL_COUNT);
    /* Links where none may be, none where one must be. */
    assert_int_equal(read_sgl(n, LISTS, 32, SGL_LAST), NVME_SGL_SEGMENT);
    put_sgls(n, LISTS, (struct sgl[]){{DATA, 512, SGL_DATA}, {DATA, 512, SGL_DATA}}, 2);
    assert_int_equal(read_sgl(n, LISTS, 32, SGL_SEGMENT), NVME_SGL_SEGMENT);
    /* More pieces than a command may have. */
    for (unsigned i = 0; i < 1024; i++)
        put_sgls(n, LISTS + 16 * i, (struct sgl[]){{DATA + 2 * i, 1, SGL_DATA}}, 1);
    assert_int_equal(read_sgl(n, LISTS, 1024 * 16, SGL_LAST), NVME_SGL_COUNT);
    struct command reserved = transfer(NVME_IO_READ, 1, 40, 2, DATA, 0);
    reserved.flags = 3 << 6;
    assert_int_equal(run_command(n, 1, &reserved), NVME_INVALID_FIELD);
    assert_int_equal(read_sgl(n, DATA, 1024, SGL_DATA), NVME_OK);
}

/* ---- The other commands ---- */

static void test_bad_commands(void **state) {
    static const uint8_t unknown[] = {0x03, 0x04, 0x0d, 0x0e, 0x11, 0x15, 0x80, 0xff};
    struct nvme_rig *n = *state;
    assert_int_equal(run_transfer(n, NVME_IO_READ, DISK_SECTORS, 1, DATA, 0), NVME_LBA_RANGE);
    assert_int_equal(run_transfer(n, NVME_IO_READ, DISK_SECTORS - 1, 2, DATA, 0), NVME_LBA_RANGE);
    assert_int_equal(run_transfer(n, NVME_IO_WRITE, UINT64_MAX, 2, DATA, 0), NVME_LBA_RANGE);
    assert_int_equal(run_transfer(n, NVME_IO_VERIFY, UINT64_MAX / 512, 1, DATA, 0), NVME_LBA_RANGE);
    for (unsigned i = 0; i < sizeof unknown; i++)
        assert_int_equal(run_transfer(n, unknown[i], 0, 1, DATA, 0), NVME_INVALID_OPCODE);
    for (uint32_t nsid = 0; nsid < 3; nsid++) {
        struct command c = transfer(NVME_IO_READ,
                                    nsid == 0   ? 0
                                    : nsid == 1 ? 3
                                                : UINT32_MAX,
                                    0, 1, DATA, 0);
        assert_int_equal(run_command(n, 1, &c), NVME_INVALID_NAMESPACE);
    }
    struct command fused = transfer(NVME_IO_READ, 1, 0, 1, DATA, 0);
    fused.flags = 1;
    assert_int_equal(run_command(n, 1, &fused), NVME_INVALID_FIELD);
}

static void test_compare_verify(void **state) {
    struct nvme_rig *n = *state;
    uint64_t pages[64];
    for (unsigned i = 0; i < 64; i++)
        pages[i] = DATA + (uint64_t)(i + 1) * PAGE;
    put_list(n, LISTS, pages, 64);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 16, 512, DATA, LISTS), NVME_OK);
    assert_int_equal(run_transfer(n, NVME_IO_COMPARE, 16, 512, DATA, LISTS), NVME_OK);
    /* A byte of the last sector, then of the first. */
    fill_data(n, DATA + 512 * 512 - 1, 0x5a, 1);
    assert_int_equal(run_transfer(n, NVME_IO_COMPARE, 16, 512, DATA, LISTS), NVME_COMPARE_FAILURE);
    assert_int_equal(run_transfer(n, NVME_IO_COMPARE, 16, 511, DATA, LISTS), NVME_OK);
    fill_data(n, DATA, 0x5a, 1);
    assert_int_equal(run_transfer(n, NVME_IO_COMPARE, 16, 1, DATA, 0), NVME_COMPARE_FAILURE);
    assert_int_equal(run_transfer(n, NVME_IO_COMPARE, 16, 1, 0x80000000, 0), NVME_DATA_TRANSFER);
    assert_int_equal(run_transfer(n, NVME_IO_VERIFY, 0, DISK_SECTORS, 0, 0), NVME_OK);
}

static void test_zeroes(void **state) {
    struct nvme_rig *n = *state;
    struct command c = transfer(NVME_IO_WRITE_ZEROES, 1, 10, 300, 0, 0);
    assert_int_equal(run_command(n, 1, &c), NVME_OK);
    c = transfer(NVME_IO_WRITE_ZEROES, 1, 1000, 8, 0, 0);
    c.dword[12] |= 1u << 25 | 1u << 30; /* may deallocate; on stable storage */
    assert_int_equal(run_command(n, 1, &c), NVME_OK);
    expect_sectors(n, 9, 1, -1);
    expect_sectors(n, 10, 8, 0);
    expect_sectors(n, 302, 8, 0);
    expect_sectors(n, 310, 1, -1);
    expect_sectors(n, 1000, 8, 0);
    expect_sectors(n, 1008, 1, -1);
    c = transfer(NVME_IO_WRITE_ZEROES, 1, DISK_SECTORS - 1, 2, 0, 0);
    assert_int_equal(run_command(n, 1, &c), NVME_LBA_RANGE);
}

static uint16_t deallocate(struct nvme_rig *n, uint32_t count, const uint64_t (*ranges)[2]) {
    for (unsigned i = 0; i < count && ranges != NULL; i++) {
        uint8_t bytes[16] = {0};
        store_le32(bytes + 4, (uint32_t)ranges[i][1]);
        store_le64(bytes + 8, ranges[i][0]);
        rig_put(&n->rig, DATA + 16 * i, bytes, sizeof bytes);
    }
    return run_command(n, 1,
                       &(struct command){.opcode = NVME_IO_DATASET,
                                         .nsid = 1,
                                         .prp1 = DATA,
                                         .dword = {[10] = count - 1, [11] = 4}});
}

static void test_deallocate(void **state) {
    struct nvme_rig *n = *state;
    const uint64_t two[][2] = {{64, 8}, {1024, 16}}, bad[][2] = {{0, 8}, {DISK_SECTORS - 7, 8}},
                   huge[][2] = {{UINT64_MAX - 1, UINT32_MAX}}, empty[][2] = {{DISK_SECTORS, 0}};
    assert_int_equal(deallocate(n, 2, two), NVME_OK);
    expect_sectors(n, 63, 1, -1);
    expect_sectors(n, 64, 8, 0);
    expect_sectors(n, 72, 1, -1);
    expect_sectors(n, 1024, 16, 0);
    assert_int_equal(deallocate(n, 2, bad), NVME_LBA_RANGE);
    expect_sectors(n, 1, 7, -1);
    assert_int_equal(deallocate(n, 1, huge), NVME_LBA_RANGE);
    assert_int_equal(deallocate(n, 1, empty), NVME_OK);
    uint64_t many[256][2];
    for (unsigned i = 0; i < 256; i++)
        many[i][0] = 8 * i, many[i][1] = 8;
    assert_int_equal(deallocate(n, 256, (const uint64_t(*)[2])many), NVME_OK);
    expect_sectors(n, 2040, 8, 0);
}

static void test_readonly(void **state) {
    struct nvme_rig *n = *state;
    static const uint8_t writing[] = {NVME_IO_WRITE, NVME_IO_WRITE_ZEROES};
    struct command c;
    for (unsigned i = 0; i < sizeof writing; i++) {
        c = transfer(writing[i], 2, 0, 1, DATA, 0);
        assert_int_equal(run_command(n, 1, &c), NVME_WRITE_PROTECTED);
    }
    c = transfer(NVME_IO_READ, 2, 5, 1, DATA, 0);
    assert_int_equal(run_command(n, 1, &c), NVME_OK);
    expect_data(n, DATA, 6, 512);
    c = (struct command){.opcode = NVME_IO_FLUSH, .nsid = 2};
    assert_int_equal(run_command(n, 1, &c), NVME_OK);
    c.nsid = UINT32_MAX;
    assert_int_equal(run_command(n, 1, &c), NVME_OK);
}

static void test_format(void **state) {
    struct nvme_rig *n = *state;
    struct command c = {.opcode = NVME_ADMIN_FORMAT, .nsid = 1, .dword = {[10] = 1 << 9}};
    assert_int_equal(run_command(n, 0, &c), NVME_OK);
    expect_sectors(n, 0, 16, 0);
    expect_sectors(n, DISK_SECTORS - 16, 16, 0);
    c.dword[10] = 1;
    assert_int_equal(run_command(n, 0, &c), NVME_INVALID_FORMAT);
    c.dword[10] = 2 << 9;
    assert_int_equal(run_command(n, 0, &c), NVME_INVALID_FIELD);
    c = (struct command){.opcode = NVME_ADMIN_FORMAT, .nsid = 2};
    assert_int_equal(run_command(n, 0, &c), NVME_WRITE_PROTECTED);
    c.nsid = UINT32_MAX;
    assert_int_equal(run_command(n, 0, &c), NVME_WRITE_PROTECTED);
    c.nsid = 0;
    assert_int_equal(run_command(n, 0, &c), NVME_INVALID_NAMESPACE);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_read_write),       TEST(test_prp_list),     TEST(test_largest),
        TEST(test_overlapping_prps), TEST(test_bad_prps),     TEST(test_sgl),
        TEST(test_bad_sgl),          TEST(test_bad_commands), TEST(test_zeroes),
        TEST(test_compare_verify),   TEST(test_deallocate),   TEST(test_readonly),
        TEST(test_format),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
