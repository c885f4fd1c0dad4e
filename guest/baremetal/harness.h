/*
 * What bare-metal programs and the harness that runs them (tests/guest) agree
 * on: ports, requests, test devices.
 */
#ifndef BAREMETAL_HARNESS_H
#define BAREMETAL_HARNESS_H

#define PORT_CHARACTER 0xe9
#define PORT_EXIT      0xf4
#define PORT_REQUEST   0xf8
#define REQUEST_MAGIC  0x4c444754

/* Harness devices. */
#define TEST_PORTS       0x5000
#define TEST_PORTS_COUNT 32
#define TEST_MMIO        0xd0000000u
#define TEST_MMIO_SIZE   0x2000
#define TEST_ROM         0x2000000u /* 4 KiB */

/* What a test device (or the ROM) reads as at an offset. */
#define TEST_PATTERN(offset) ((uint8_t)((offset)*29 + ((offset) >> 8) + 7))

#ifndef __ASSEMBLER__

#include <stdint.h>

enum request_operation {
    REQUEST_DMA = 1,   /* copies c bytes from b to a through the memory gate */
    REQUEST_LINE = 2,  /* irq_set(a, b) */
    REQUEST_MSI = 3,   /* address a, data b */
    REQUEST_LOG = 4,   /* accesses to test ports and MMIO since the last time, to a; at most b */
    REQUEST_ROUND = 5, /* answers how often the program was started before */
    REQUEST_EXPECT_SHUTDOWN = 6, /* the program is going to shut down; it is started again */
    REQUEST_LINE_LATER = 7,      /* irq_set(a, b) by another thread, soon */
    REQUEST_EXPECT_ANYTHING = 8, /* whatever ends this round is right, or nothing within b ms; the
                                    program is started again until it has been a times */
    REQUEST_PROCESSORS = 9,      /* answers how many there are */
};

struct request {
    uint32_t operation;
    uint32_t answer;
    uint64_t a, b, c;
};

struct logged_access {
    uint64_t address;
    uint64_t value;
    uint32_t size;
    uint32_t write;
};

#endif
#endif
