/*
 * A guest that writes and runs garbage. The monitor must live; what the guest
 * comes to is its own affair. Fixed seeds.
 */
#include "apic.h"

static uint64_t seed;
static uint64_t random(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* ---- At CPL 3: each try ends by a trap, the timer's at the latest ---- */

static void user_bytes(void) {
    uint8_t code[64];
    apic_enable();
    apic_write(APIC_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, 0x70);
    for (unsigned i = 0; i < 400; i++) {
        for (unsigned n = 0; n < sizeof code; n++)
            code[n] = (uint8_t)random();
        memcpy(user_code, code, sizeof code);
        struct iret_frame frame = {i & 1 ? USER_CODE_VA : USER_CODE32_VA,
                                   i & 1 ? USER_CS : USER_CS32, 0x202,
                                   (i & 1 ? USER_CODE_VA : USER_CODE32_VA) + 0x4000, USER_DS};
        apic_write(APIC_INITIAL, 300000);
        try_iret(&frame, random());
        apic_write(APIC_INITIAL, 0);
        apic_write(APIC_EOI, 0);
        asm volatile("cld" ::: "cc");
        set_handler(0x70, NULL);
    }
    check("still here", 1, 1);
}

/* ---- At CPL 0 and to devices: whatever happens ---- */

static void write_garbage(void) {
    static const uint64_t pages[] = {0xfec00000, 0xfee00000, TEST_MMIO,  0xd1000000,
                                     0xfed00000, 0xe0000000, 0xc0000000, TEST_ROM};
    for (unsigned i = 0; i < 1500; i++) {
        uint64_t a = random(), value = random();
        uint16_t port = (uint16_t)(a >> 16);
        volatile uint32_t *mmio = (volatile uint32_t *)(pages[a & 7] + (a >> 8 & 0xffc));
        switch (a >> 60) {
        case 0:
        case 1:
        case 2: (void)*mmio; break;
        case 3:
        case 4:
        case 5: *mmio = (uint32_t)value; break;
        case 6: *(volatile uint8_t *)mmio = (uint8_t)value; break;
        case 7: *(volatile uint64_t *)(pages[a & 7] + (a >> 8 & 0xff8)) = value; break;
        case 8: inb(port); break;
        case 9: inl(port); break;
        default:
            if (port >= PORT_EXIT && port < PORT_EXIT + 8)
                break;
            if (a >> 60 < 12)
                outb(port, (uint8_t)value);
            else
                outl(port, (uint32_t)value);
        }
    }
}

static void kernel_bytes(void) {
    uint8_t *code = test_page[8];
    for (unsigned i = 0; i < 3 * 4096; i++)
        code[i] = (uint8_t)random();
    set_handler(0x70, NULL);
    for (unsigned i = 0; i < 4000; i++)
        try_call((void (*)(uint64_t))(uintptr_t)(code + random() % 8192), random());
}

enum { ROUNDS = 24 };

void program(void) {
    if (!has_harness())
        return;
    uint32_t round = request(REQUEST_ROUND, 0, 0, 0);
    seed = 0x9e3779b97f4a7c15ul * (round + 1);
    if (round == 0)
        TEST(user_bytes);
    if (round < ROUNDS) {
        request(REQUEST_EXPECT_ANYTHING, ROUNDS, 300, 0);
        if (round % 3 != 1)
            write_garbage();
        if (round % 3 != 0)
            kernel_bytes();
        for (;;)
            asm volatile("cli; hlt");
    }
    print("ok lived\n");
}
