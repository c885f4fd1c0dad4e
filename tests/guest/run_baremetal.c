/*
 * Runs a bare-metal test program (guest/baremetal) on one engine and reports
 * its results: exit code 0 passed, 1 failed, 77 skipped.
 *
 *     run_baremetal soft|kvm PROGRAM.elf [VCPUS]
 *
 * It builds just what programs need: memory, ports, interrupt controllers, a
 * clock and vCPUs (one), the first entered as PVH enters a kernel; and the
 * harness' own devices (guest/baremetal/runtime.h).
 */
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../guest/baremetal/harness.h"
#include "base/bytes.h"
#include "base/log.h"
#include "cpu/engine.h"
#include "deviations.h"

enum { EXIT_PASSED = 0, EXIT_FAILED = 1, EXIT_SKIPPED = 77 };
enum {
    RAM_SIZE = TEST_ROM,
    LINE_MAX_LENGTH = 400,
    LOG_MAX = 256,
    TIME_LIMIT_SECONDS = 240,
    VCPUS_MAX = 16
};

struct harness {
    struct memory *memory;
    struct ports *ports;
    struct vm_clock *clock;
    struct irqchip *irqchip;
    struct engine *engine;
    struct vcpu *vcpu; /* the first; others run on threads of their own */
    struct other {
        struct harness *harness;
        struct vcpu *vcpu;
        pthread_t thread;
        struct vcpu_exit exit;
    } others[VCPUS_MAX - 1];
    unsigned vcpus;
    atomic_bool others_end;
    const char *engine_name;
    const char *program;
    uint8_t *image;
    size_t image_size;
    uint32_t entry;

    bool ended;
    uint32_t failures; /* as the program says */
    bool expect_shutdown;
    uint32_t chaos_rounds; /* above 0: REQUEST_EXPECT_ANYTHING */
    atomic_ullong kick_at; /* host nanoseconds */
    uint32_t round;
    unsigned exempt, failed_lines;
    char line[LINE_MAX_LENGTH];
    size_t line_length;

    pthread_mutex_t log_mutex;
    struct logged_access log[LOG_MAX];
    unsigned log_count;
};

_Noreturn static void give_up(int code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
_Noreturn static void give_up(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    _exit(code);
}

/* ---- Character port: lines of results ---- */

static void end_line(struct harness *h) {
    h->line[h->line_length] = '\0';
    h->line_length = 0;
    const char *reason = NULL;
    if (strncmp(h->line, "FAIL ", 5) == 0) {
        reason = deviation_reason(h->engine_name, h->program, h->line + 5);
        *(reason != NULL ? &h->exempt : &h->failed_lines) += 1;
    }
    printf("%s%s%s\n", h->line, reason != NULL ? "\n     exempt: " : "",
           reason != NULL ? reason : "");
    fflush(stdout);
}

static void character_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct harness *h = context;
    char c = (char)value;
    if (c == '\n')
        end_line(h);
    else if (h->line_length < sizeof h->line - 1)
        h->line[h->line_length++] = c;
}

static uint64_t character_read(void *context, uint64_t offset, unsigned size) {
    return 0xe9;
}

/* ---- Exit port ---- */

static void exit_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct harness *h = context;
    h->ended = true;
    h->failures = (uint32_t)value;
    vcpu_kick(h->vcpu);
}

static uint64_t nothing_read(void *context, uint64_t offset, unsigned size) {
    return bytes_mask(size);
}

/* ---- Test ports and MMIO: they log accesses and answer a pattern ---- */

static void log_access(struct harness *h, uint64_t address, uint64_t value, unsigned size,
                       bool write) {
    pthread_mutex_lock(&h->log_mutex);
    if (h->log_count < LOG_MAX)
        h->log[h->log_count++] = (struct logged_access){address, value, size, write};
    pthread_mutex_unlock(&h->log_mutex);
}

static uint64_t pattern(uint64_t offset, unsigned size) {
    uint8_t bytes[8];
    for (unsigned i = 0; i < size; i++)
        bytes[i] = TEST_PATTERN(offset + i);
    return load_le(bytes, size);
}

static uint64_t test_port_read(void *context, uint64_t offset, unsigned size) {
    uint64_t value = pattern(offset, size);
    log_access(context, TEST_PORTS + offset, value, size, false);
    return value;
}

static void test_port_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    log_access(context, TEST_PORTS + offset, value, size, true);
}

static uint64_t test_mmio_read(void *context, uint64_t offset, unsigned size) {
    uint64_t value = pattern(offset, size);
    log_access(context, TEST_MMIO + offset, value, size, false);
    return value;
}

static void test_mmio_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    log_access(context, TEST_MMIO + offset, value, size, true);
}

/* ---- Requests ---- */

struct later {
    struct harness *harness;
    unsigned gsi;
    bool level;
};

static void *set_line_later(void *context) {
    struct later *later = context;
    irq_set(later->harness->irqchip, later->gsi, later->level);
    free(later);
    return NULL;
}

static uint32_t line_later(struct harness *h, const struct request *request) {
    struct later *later = malloc(sizeof *later);
    if (later == NULL)
        give_up(EXIT_FAILED, "out of memory");
    *later = (struct later){h, (unsigned)request->a, request->b != 0};
    pthread_t thread;
    if (pthread_create(&thread, NULL, set_line_later, later) != 0)
        give_up(EXIT_FAILED, "no thread");
    pthread_detach(thread);
    return 0;
}

static uint32_t dma(struct harness *h, const struct request *request) {
    uint8_t buffer[PAGE_SIZE];
    if (request->c > sizeof buffer || memory_read(h->memory, request->b, buffer, request->c) < 0 ||
        memory_write(h->memory, request->a, buffer, request->c) < 0)
        return 1;
    return 0;
}

static uint32_t take_log(struct harness *h, const struct request *request) {
    pthread_mutex_lock(&h->log_mutex);
    uint32_t count = h->log_count;
    uint64_t fit = count < request->b ? count : request->b;
    memory_write(h->memory, request->a, h->log, fit * sizeof h->log[0]);
    h->log_count = 0;
    pthread_mutex_unlock(&h->log_mutex);
    return count;
}

static uint32_t serve(struct harness *h, const struct request *request) {
    switch (request->operation) {
    case REQUEST_DMA: return dma(h, request);
    case REQUEST_LINE: irq_set(h->irqchip, (unsigned)request->a, request->b != 0); return 0;
    case REQUEST_MSI:
        msi_send(h->irqchip, (struct msi_message){request->a, (uint32_t)request->b});
        return 0;
    case REQUEST_LOG: return take_log(h, request);
    case REQUEST_ROUND: return h->round;
    case REQUEST_EXPECT_SHUTDOWN: h->expect_shutdown = true; return 0;
    case REQUEST_EXPECT_ANYTHING:
        h->chaos_rounds = (uint32_t)request->a;
        atomic_store(&h->kick_at, host_clock_ns() + request->b * 1000000);
        return 0;
    case REQUEST_LINE_LATER: return line_later(h, request);
    case REQUEST_PROCESSORS: return h->vcpus;
    default: return UINT32_MAX;
    }
}

static void request_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct harness *h = context;
    struct request request;
    if (memory_read(h->memory, value, &request, sizeof request) < 0)
        return;
    request.answer = serve(h, &request);
    memory_write(h->memory, value + offsetof(struct request, answer), &request.answer,
                 sizeof request.answer);
}

static uint64_t request_read(void *context, uint64_t offset, unsigned size) {
    return REQUEST_MAGIC & bytes_mask(size);
}

/* ---- The VM ---- */

static const struct io_ops character_ops = {character_read, character_write};
static const struct io_ops exit_ops = {nothing_read, exit_write};
static const struct io_ops request_ops = {request_read, request_write};
static const struct io_ops port_ops = {test_port_read, test_port_write};
static const struct io_ops mmio_ops = {test_mmio_read, test_mmio_write};

static void add_port(struct harness *h, uint16_t port, unsigned count, const struct io_ops *ops) {
    struct port_range *range;
    struct error err;
    if (ports_add(h->ports, "test", port, count, ops, h, &range, &err) < 0)
        give_up(EXIT_FAILED, "port %#x: %s", port, err.text);
}

static int build(struct harness *h, struct error *err) {
    static uint8_t rom[PAGE_SIZE];
    struct io_region *region;
    for (unsigned i = 0; i < sizeof rom; i++)
        rom[i] = TEST_PATTERN(i);
    int code = vm_clock_create(&h->clock, err);
    if (code == 0)
        code = memory_create(&h->memory, err);
    if (code == 0)
        code = memory_add_ram(h->memory, "ram", 0, RAM_SIZE, err);
    if (code == 0)
        code = memory_add_rom(h->memory, "rom", TEST_ROM, sizeof rom, rom, sizeof rom, err);
    if (code == 0)
        code =
            memory_add_io(h->memory, "test", TEST_MMIO, TEST_MMIO_SIZE, &mmio_ops, h, &region, err);
    if (code == 0)
        code = ports_create(&h->ports, err);
    if (code == 0)
        code = irqchip_create(h->memory, h->ports, h->clock, &h->irqchip, err);
    add_port(h, PORT_CHARACTER, 1, &character_ops);
    add_port(h, PORT_EXIT, 4, &exit_ops);
    add_port(h, PORT_REQUEST, 4, &request_ops);
    add_port(h, TEST_PORTS, TEST_PORTS_COUNT, &port_ops);
    return code;
}

static void create_vcpu(struct harness *h, enum engine_kind kind) {
    struct error err;
    struct engine_config config = {h->memory, h->ports, h->irqchip, h->clock, h->vcpus};
    int code = engine_create(kind, &config, &h->engine, NULL, &err);
    if (code == -ENODEV)
        give_up(EXIT_SKIPPED, "skipped: %s", err.text);
    if (code == 0)
        code = vcpu_create(h->engine, 0, &h->vcpu, &err);
    for (unsigned i = 0; i < h->vcpus - 1 && code == 0; i++) {
        h->others[i].harness = h;
        code = vcpu_create(h->engine, i + 1, &h->others[i].vcpu, &err);
    }
    if (code < 0)
        give_up(EXIT_FAILED, "engine %s: %s", h->engine_name, err.text);
}

/* ---- Loading ---- */

static void read_image(struct harness *h, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    h->image = size < 0 ? NULL : malloc((size_t)size);
    if (h->image == NULL || pread(fd, h->image, (size_t)size, 0) != size)
        give_up(EXIT_FAILED, "%s: %s", path, strerror(errno));
    h->image_size = (size_t)size;
    close(fd);
}

static void load_segment(struct harness *h, const Elf64_Phdr *segment) {
    static uint8_t zeros[PAGE_SIZE];
    if (!range_within(segment->p_offset, segment->p_filesz, h->image_size) ||
        memory_write(h->memory, segment->p_paddr, h->image + segment->p_offset, segment->p_filesz) <
            0)
        give_up(EXIT_FAILED, "segment does not fit");
    for (uint64_t at = segment->p_filesz; at < segment->p_memsz; at += sizeof zeros) {
        uint64_t length = segment->p_memsz - at;
        memory_write(h->memory, segment->p_paddr + at, zeros,
                     length < sizeof zeros ? length : sizeof zeros);
    }
}

static void load_image(struct harness *h) {
    Elf64_Ehdr head;
    if (h->image_size < sizeof head)
        give_up(EXIT_FAILED, "no ELF file");
    memcpy(&head, h->image, sizeof head);
    if (memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_machine != EM_X86_64 ||
        !range_within(head.e_phoff, head.e_phnum * sizeof(Elf64_Phdr), h->image_size))
        give_up(EXIT_FAILED, "no ELF64 file for x86-64");
    for (unsigned i = 0; i < head.e_phnum; i++) {
        Elf64_Phdr segment;
        memcpy(&segment, h->image + head.e_phoff + i * sizeof segment, sizeof segment);
        if (segment.p_type == PT_LOAD)
            load_segment(h, &segment);
    }
    h->entry = (uint32_t)head.e_entry;
}

/* As PVH has it: 32-bit protected mode, flat, paging off (the entry point is ELF's here). */
static void enter_program(struct harness *h) {
    struct x86_state state;
    struct error err;
    vcpu_get_state(h->vcpu, &state);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state.segment[i] =
            (struct x86_segment){0, UINT32_MAX, 0x10, SEG_G | SEG_DB | SEG_P | SEG_S | 3};
    state.segment[SEG_CS] =
        (struct x86_segment){0, UINT32_MAX, 0x08, SEG_G | SEG_DB | SEG_P | SEG_S | 11};
    state.tr = (struct x86_segment){0, 0x67, 0, SEG_P | 11};
    state.cr0 = CR0_PE | CR0_ET;
    state.rip = h->entry;
    if (vcpu_set_state(h->vcpu, &state, &err) < 0)
        give_up(EXIT_FAILED, "entering the program: %s", err.text);
}

/* ---- Running ---- */

/* Kicks the vCPU when the round's time is over. */
static void *watch(void *context) {
    struct harness *h = context;
    for (;;) {
        usleep(20000);
        if (host_clock_ns() >= atomic_load(&h->kick_at))
            vcpu_kick(h->vcpu);
    }
    return NULL;
}

/* What ends another vCPU ends the program. */
static void *run_other(void *context) {
    struct other *other = context;
    do
        vcpu_run(other->vcpu, &other->exit);
    while (other->exit.stop == VCPU_KICKED && !atomic_load(&other->harness->others_end));
    if (other->exit.stop != VCPU_KICKED) {
        atomic_store(&other->harness->kick_at, 0);
        vcpu_kick(other->harness->vcpu);
    }
    return NULL;
}

static void start_others(struct harness *h) {
    atomic_store(&h->others_end, false);
    for (unsigned i = 0; i < h->vcpus - 1; i++)
        if (pthread_create(&h->others[i].thread, NULL, run_other, &h->others[i]) != 0)
            give_up(EXIT_FAILED, "no thread");
}

static void end_others(struct harness *h) {
    atomic_store(&h->others_end, true);
    for (unsigned i = 0; i < h->vcpus - 1; i++) {
        vcpu_kick(h->others[i].vcpu);
        pthread_join(h->others[i].thread, NULL);
    }
}

static void print_line(void *context, const char *text) {
    (void)context;
    printf("     %s\n", text);
}

static void report_stop(struct harness *h, const struct vcpu_exit *exit) {
    static const char *const stops[] = {"timed out", "shutdown", "breakpoint",
                                        "trap",      "failed",   "difference"};
    if (h->line_length != 0)
        end_line(h);
    for (unsigned i = 0; i < h->vcpus - 1; i++)
        if (exit->stop == VCPU_KICKED && h->others[i].exit.stop != VCPU_KICKED)
            exit = &h->others[i].exit;
    snprintf(h->line, sizeof h->line, "FAIL the program did not end: %s %s", stops[exit->stop],
             exit->text);
    h->line_length = strlen(h->line);
    end_line(h);
    vcpu_dump(h->vcpu, print_line, NULL);
    for (unsigned i = 0; i < h->vcpus - 1; i++) {
        printf("     vCPU %u: %s %s\n", i + 1, stops[h->others[i].exit.stop],
               h->others[i].exit.text);
        vcpu_dump(h->others[i].vcpu, print_line, NULL);
    }
}

static bool start_again(struct harness *h) {
    h->expect_shutdown = h->ended = false;
    h->line_length = 0;
    h->round++;
    irqchip_reset(h->irqchip);
    vcpu_reset(h->vcpu, false);
    for (unsigned i = 0; i < h->vcpus - 1; i++)
        vcpu_reset(h->others[i].vcpu, false);
    return true;
}

/* True when it is to be started again. */
static bool run_round(struct harness *h) {
    struct vcpu_exit exit;
    atomic_store(&h->kick_at, host_clock_ns() + TIME_LIMIT_SECONDS * NS_PER_SECOND);
    load_image(h);
    enter_program(h);
    start_others(h);
    do
        vcpu_run(h->vcpu, &exit);
    while (exit.stop == VCPU_KICKED && !h->ended && host_clock_ns() < atomic_load(&h->kick_at));
    end_others(h);
    if (h->round < h->chaos_rounds)
        return start_again(h);
    if (h->ended)
        return false;
    if (exit.stop == VCPU_SHUTDOWN && h->expect_shutdown)
        return start_again(h);
    report_stop(h, &exit);
    return false;
}

int main(int argc, char **argv) {
    static struct harness h = {.log_mutex = PTHREAD_MUTEX_INITIALIZER};
    h.vcpus = argc == 4 ? (unsigned)atoi(argv[3]) : 1;
    if (argc < 3 || argc > 4 || h.vcpus < 1 || h.vcpus > VCPUS_MAX ||
        (strcmp(argv[1], "soft") != 0 && strcmp(argv[1], "kvm") != 0))
        give_up(2, "usage: %s soft|kvm PROGRAM.elf [VCPUS]", argv[0]);
    h.engine_name = argv[1];
    h.program = strrchr(argv[2], '/') != NULL ? strrchr(argv[2], '/') + 1 : argv[2];
    read_image(&h, argv[2]);
    struct error err;
    if (build(&h, &err) < 0)
        give_up(EXIT_FAILED, "building the VM: %s", err.text);
    create_vcpu(&h, strcmp(argv[1], "kvm") == 0 ? ENGINE_KVM : ENGINE_SOFT);
    pthread_t watcher;
    if (pthread_create(&watcher, NULL, watch, &h) != 0)
        give_up(EXIT_FAILED, "no thread");
    while (run_round(&h))
        ;
    printf("%u failures, %u lines failed, %u exempt\n", h.failures, h.failed_lines, h.exempt);
    bool passed = h.failed_lines == 0 && (h.failures == 0 || h.exempt != 0);
    fflush(stdout);
    _exit(passed ? EXIT_PASSED : EXIT_FAILED); /* the watcher still looks at the VM */
}
