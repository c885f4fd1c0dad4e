/*
 * String instructions that fault on the way: the registers tell how far they
 * came, and going on finishes the job (APM vol. 3, REP).
 */
#include "runtime.h"

#define ALL (PTE_P | PTE_W | PTE_U)

struct job {
    uint64_t rcx, rsi, rdi, rax;
};
static struct job result;

/* Runs one string instruction with the job's registers; result is what they are after it. */
#define STRING(name, instruction)                                                                  \
    static void name(uint64_t a) {                                                                 \
        struct job job = *(const struct job *)a;                                                   \
        asm volatile(instruction                                                                   \
                     : "+c"(job.rcx), "+S"(job.rsi), "+D"(job.rdi), "+a"(job.rax)::"memory",       \
                       "cc");                                                                      \
        result = job;                                                                              \
    }
STRING(movsb, "rep movsb")
STRING(movsq, "rep movsq")
STRING(movsl_down, "std; rep movsl; cld")
STRING(stosb, "rep stosb")
STRING(stosq, "rep stosq")
STRING(lodsb, "rep lodsb")
STRING(scasb, "repne scasb")
STRING(cmpsb, "repe cmpsb")
STRING(movsb_a32, "addr32 rep movsb")

/* Pages 1 and 2 of the test region; page 3 is not there. */
static void set_up(void) {
    map(1, PHYSICAL(test_page[1]) | ALL);
    map(2, PHYSICAL(test_page[2]) | ALL);
    map(3, 0);
    for (unsigned i = 0; i < 4096; i++)
        test_page[1][i] = (uint8_t)(i * 7 + 1);
    memset(test_page[2], 0, 4096);
}

static void expect_stop(const char *what, void (*function)(uint64_t), struct job job, uint64_t cr2,
                        struct job at) {
    check(what, try_call(function, PHYSICAL(&job)), PF);
    check(what, trap.cr2, cr2);
    check(what, trap.frame.rcx, at.rcx);
    check(what, trap.frame.rsi, at.rsi);
    check(what, trap.frame.rdi, at.rdi);
}

static void expect_end(const char *what, void (*function)(uint64_t), struct job job,
                       struct job at) {
    check(what, try_call(function, PHYSICAL(&job)), NO_TRAP);
    check(what, result.rcx, at.rcx);
    check(what, result.rsi, at.rsi);
    check(what, result.rdi, at.rdi);
}

#define PAGE(n) (TEST_VA + 0x1000 * (n))

static void destination_ends(void) {
    set_up();
    expect_stop("MOVSB", movsb, (struct job){100, PAGE(1), PAGE(3) - 40}, PAGE(3),
                (struct job){60, PAGE(1) + 40, PAGE(3)});
    check("last byte", test_page[2][4095], (uint8_t)(39 * 7 + 1));
    expect_stop("MOVSQ", movsq, (struct job){10, PAGE(1), PAGE(3) - 32}, PAGE(3),
                (struct job){6, PAGE(1) + 32, PAGE(3)});
    expect_stop("MOVSQ in two pages", movsq, (struct job){10, PAGE(1), PAGE(3) - 36}, PAGE(3),
                (struct job){6, PAGE(1) + 32, PAGE(3) - 4});
    expect_stop("STOSB", stosb, (struct job){100, 0, PAGE(3) - 7, 0x55}, PAGE(3),
                (struct job){93, 0, PAGE(3)});
    check("error code", trap.frame.error, 2);
    check("stored", test_page[2][4090], 0x55);
}

static void source_ends(void) {
    set_up();
    expect_stop("MOVSB", movsb, (struct job){100, PAGE(3) - 10, PAGE(1)}, PAGE(3),
                (struct job){90, PAGE(3), PAGE(1) + 10});
    check("error code", trap.frame.error, 0);
    expect_stop("LODSB", lodsb, (struct job){100, PAGE(3) - 10, 1}, PAGE(3),
                (struct job){90, PAGE(3), 1});
    memset(test_page[2], 0x11, 4096);
    expect_stop("SCASB", scasb, (struct job){100, 2, PAGE(3) - 12, 0x22}, PAGE(3),
                (struct job){88, 2, PAGE(3)});
    memset(test_page[1], 0x11, 4096);
    expect_stop("CMPSB", cmpsb, (struct job){100, PAGE(1), PAGE(3) - 5}, PAGE(3),
                (struct job){95, PAGE(1) + 5, PAGE(3)});
}

static void downwards(void) {
    set_up();
    map(0, 0);
    expect_stop("MOVSD", movsl_down, (struct job){100, PAGE(2) + 0x100, PAGE(1) + 8}, PAGE(1) - 4,
                (struct job){97, PAGE(2) + 0x100 - 12, PAGE(1) - 4});
    check("DF in the frame", trap.frame.rflags >> 10 & 1, 1);
}

static void completes(void) {
    set_up();
    expect_end("MOVSB", movsb, (struct job){4096, PAGE(1), PAGE(2)},
               (struct job){0, PAGE(2), PAGE(3)});
    for (unsigned i = 0; i < 4096; i += 97)
        check("copied", test_page[2][i], (uint8_t)(i * 7 + 1));
    expect_end("STOSQ", stosq, (struct job){512, 9, PAGE(2), 0x0123456789abcdef},
               (struct job){0, 9, PAGE(3)});
    check("stored", *(volatile uint64_t *)&test_page[2][4088], 0x0123456789abcdef);
    test_page[2][1000] = 0x99;
    expect_end("SCASB", scasb, (struct job){4096, 9, PAGE(2), 0x99},
               (struct job){4096 - 1001, 9, PAGE(2) + 1001});
    expect_end("count of 0", movsb, (struct job){0, PAGE(9), PAGE(9)},
               (struct job){0, PAGE(9), PAGE(9)});
}

/* Overlap upwards repeats the first bytes: a copy is byte by byte. */
static void overlap(void) {
    set_up();
    test_page[1][0] = 0xaa;
    test_page[1][1] = 0xbb;
    expect_end("MOVSB", movsb, (struct job){100, PAGE(1), PAGE(1) + 2},
               (struct job){0, PAGE(1) + 100, PAGE(1) + 102});
    check("even", test_page[1][100], 0xaa);
    check("odd", test_page[1][101], 0xbb);
}

static void address_size(void) {
    uint8_t *from = test_page[4], *to = test_page[5];
    from[0] = 0x77;
    struct job job = {0xffffffff00000001, PHYSICAL(from) | 0x500000000, PHYSICAL(to) | 0x900000000};
    check("vector", try_call(movsb_a32, PHYSICAL(&job)), NO_TRAP);
    check("copied", to[0], 0x77);
    check("RSI is cut", result.rsi, PHYSICAL(from) + 1);
    check("RDI is cut", result.rdi, PHYSICAL(to) + 1);
    check("RCX is cut", result.rcx, 0);
}

/* The handler brings the page; the instruction goes on where it stood. */
static unsigned brought;
static void bring(struct frame *frame) {
    unsigned page = (unsigned)(read_cr2() - TEST_VA) >> 12;
    brought++;
    map(page, PHYSICAL(test_page[page]) | ALL);
}

static void resumed(void) {
    set_up();
    map(2, 0);
    brought = 0;
    set_handler(PF, bring);
    expect_end("STOSB", stosb, (struct job){0x2100, 3, PAGE(1) + 0xf80, 0x66},
               (struct job){0, 3, PAGE(1) + 0xf80 + 0x2100});
    set_handler(PF, NULL);
    check("pages", brought, 3);
    check("first", test_page[1][0xf80], 0x66);
    check("middle", test_page[3][5], 0x66);
    check("last", test_page[4][0x7f], 0x66);
    map(3, 0);
    map(4, 0);
}

void program(void) {
    TEST(destination_ends);
    TEST(source_ends);
    TEST(downwards);
    TEST(completes);
    TEST(overlap);
    TEST(address_size);
    TEST(resumed);
}
