/*
 * The run loop and its interruption.
 *
 * A request sets a bit, then run->immediate_exit, then sends a signal to the
 * thread. The loop looks at the bits only after KVM_RUN answered EINTR, and
 * clears immediate_exit before it does. So a request that comes before the
 * kernel has entered the guest is caught by immediate_exit, one that comes
 * after by the signal, and none is lost; a surplus EINTR does no harm. KVM_RUN
 * finishes a port or memory-mapped access that was reported before it looks at
 * immediate_exit: when vcpu_run returns, the state is that between two
 * instructions.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cpu/kvm/kvm.h"

/* ---- Interruption ---- */

void kvm_vcpu_request(struct kvm_vcpu *vcpu, unsigned request) {
    atomic_fetch_or(&vcpu->request, request);
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    lock_take(&vcpu->lock);
    if (vcpu->running && !pthread_equal(vcpu->thread, pthread_self()))
        pthread_kill(vcpu->thread, KVM_KICK_SIGNAL);
    lock_release(&vcpu->lock);
}

void kvm_vcpu_kick(struct vcpu *vcpu) {
    kvm_vcpu_request(kvm_vcpu_of(vcpu), KVM_REQUEST_KICK);
}

static void set_running(struct kvm_vcpu *vcpu, bool running) {
    lock_take(&vcpu->lock);
    vcpu->thread = pthread_self();
    vcpu->running = running;
    lock_release(&vcpu->lock);
}

static void unblock_kicks(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, KVM_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* ---- Holding all vCPUs out of the guest ---- */

static void wait_until_out(struct kvm_engine *engine, struct kvm_vcpu *vcpu) {
    while (atomic_load(&vcpu->in_guest))
        pthread_cond_wait(&engine->hold_changed, &engine->hold_mutex);
}

void kvm_hold(struct kvm_engine *engine) {
    pthread_mutex_lock(&engine->hold_mutex);
    while (atomic_load(&engine->hold))
        pthread_cond_wait(&engine->hold_changed, &engine->hold_mutex);
    atomic_store(&engine->hold, true);
    for (unsigned i = 0; i < KVM_VCPUS_MAX; i++) {
        lock_take(&engine->vcpu_lock);
        struct kvm_vcpu *vcpu = engine->vcpu[i];
        lock_release(&engine->vcpu_lock);
        if (vcpu == NULL)
            continue;
        kvm_vcpu_request(vcpu, 0);
        wait_until_out(engine, vcpu);
    }
    pthread_mutex_unlock(&engine->hold_mutex);
}

void kvm_release(struct kvm_engine *engine) {
    pthread_mutex_lock(&engine->hold_mutex);
    atomic_store(&engine->hold, false);
    pthread_cond_broadcast(&engine->hold_changed);
    pthread_mutex_unlock(&engine->hold_mutex);
}

static void enter_guest(struct kvm_engine *engine, struct kvm_vcpu *vcpu) {
    atomic_store(&vcpu->in_guest, true);
    if (!atomic_load(&engine->hold))
        return;
    pthread_mutex_lock(&engine->hold_mutex);
    while (atomic_load(&engine->hold)) {
        atomic_store(&vcpu->in_guest, false);
        pthread_cond_broadcast(&engine->hold_changed);
        pthread_cond_wait(&engine->hold_changed, &engine->hold_mutex);
    }
    atomic_store(&vcpu->in_guest, true);
    pthread_mutex_unlock(&engine->hold_mutex);
}

static void leave_guest(struct kvm_engine *engine, struct kvm_vcpu *vcpu) {
    atomic_store(&vcpu->in_guest, false);
    if (!atomic_load(&engine->hold))
        return;
    pthread_mutex_lock(&engine->hold_mutex);
    pthread_cond_broadcast(&engine->hold_changed);
    pthread_mutex_unlock(&engine->hold_mutex);
}

/* ---- Exits ---- */

static void port_exit(struct kvm_vcpu *vcpu) {
    struct ports *ports = vcpu->vcpu.engine->config.ports;
    struct kvm_run *run = vcpu->run;
    uint16_t port = run->io.port;
    unsigned size = run->io.size;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        if (run->io.direction == KVM_EXIT_IO_OUT)
            port_write(ports, port, (uint32_t)load_le(data, size), size);
        else
            store_le(data, port_read(ports, port, size), size);
    }
}

/* An access that crosses a page arrives in pieces of any length: split into what devices take. */
static void mmio_exit(struct kvm_vcpu *vcpu) {
    struct memory *memory = vcpu->vcpu.engine->config.memory;
    struct kvm_run *run = vcpu->run;
    unsigned length = run->mmio.len <= 8 ? run->mmio.len : 8;
    for (unsigned at = 0; at < length;) {
        unsigned size = 8;
        while (size > length - at)
            size /= 2;
        uint64_t gpa = run->mmio.phys_addr + at;
        if (run->mmio.is_write)
            memory_io_write(memory, gpa, load_le(run->mmio.data + at, size), size);
        else
            store_le(run->mmio.data + at, memory_io_read(memory, gpa, size), size);
        at += size;
    }
}

static bool failed(struct vcpu_exit *exit, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static bool failed(struct vcpu_exit *exit, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    exit->stop = VCPU_FAILED;
    vsnprintf(exit->text, sizeof exit->text, format, arguments);
    va_end(arguments);
    return false;
}

static bool internal_error(const struct kvm_run *run, struct vcpu_exit *exit) {
    unsigned suberror = run->internal.suberror;
    if (suberror != KVM_INTERNAL_ERROR_EMULATION)
        return failed(exit, "KVM internal error %u (%s)", suberror,
                      suberror == KVM_INTERNAL_ERROR_DELIVERY_EV ? "while delivering an event"
                      : suberror == KVM_INTERNAL_ERROR_SIMUL_EX  ? "simultaneous exceptions"
                      : suberror == KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON ? "unexpected exit"
                                                                              : "unknown");
    const char *text = "KVM cannot emulate the instruction";
    if (run->emulation_failure.ndata < 3 ||
        !(run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
        return failed(exit, "%s at RIP", text);
    char bytes[3 * 15 + 1] = "";
    unsigned count = run->emulation_failure.insn_size;
    for (unsigned i = 0; i < count && i < 15; i++)
        snprintf(bytes + 3 * i, 4, " %02x", run->emulation_failure.insn_bytes[i]);
    return failed(exit, "%s at RIP:%s", text, bytes);
}

static bool entry_failed(const struct kvm_run *run, struct vcpu_exit *exit) {
    return failed(exit, "the processor refused the guest's state (hardware reason %#llx)",
                  (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
}

/* True: go on. */
static bool serve_exit(struct kvm_vcpu *vcpu, struct vcpu_exit *exit) {
    struct kvm_run *run = vcpu->run;
    switch (run->exit_reason) {
    case KVM_EXIT_IO: port_exit(vcpu); return true;
    case KVM_EXIT_MMIO: mmio_exit(vcpu); return true;
    case KVM_EXIT_IRQ_WINDOW_OPEN: return true;
    case KVM_EXIT_IOAPIC_EOI:
        irqchip_eoi(vcpu->vcpu.engine->config.irqchip, run->eoi.vector);
        return true;
    case KVM_EXIT_DEBUG:
        if (!kvm_debug_exit(vcpu))
            return true;
        exit->stop = VCPU_BREAKPOINT;
        return false;
    case KVM_EXIT_SHUTDOWN:
        exit->stop = VCPU_SHUTDOWN;
        snprintf(exit->text, sizeof exit->text, "triple fault");
        return false;
    case KVM_EXIT_INTERNAL_ERROR: return internal_error(run, exit);
    case KVM_EXIT_FAIL_ENTRY: return entry_failed(run, exit);
    default: return failed(exit, "KVM left the guest for an unknown reason (%u)", run->exit_reason);
    }
}

/* KVM_RUN answered EINTR. True: go on. */
static bool serve_requests(struct kvm_vcpu *vcpu, struct vcpu_exit *exit) {
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    unsigned request = atomic_exchange(&vcpu->request, 0);
    if (request & KVM_REQUEST_EXTERNAL)
        vcpu->external_waits = true;
    if (!(request & KVM_REQUEST_KICK))
        return true;
    exit->stop = VCPU_KICKED;
    return false;
}

static bool run_once(struct kvm_vcpu *vcpu, struct vcpu_exit *exit) {
    struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    kvm_interrupt_prepare(vcpu);
    enter_guest(engine, vcpu);
    int code = kvm_ioctl(vcpu->fd, KVM_RUN, NULL);
    leave_guest(engine, vcpu);
    vcpu->counters.exits++;
    switch (code) {
    case 0: return serve_exit(vcpu, exit);
    case -EINTR: return serve_requests(vcpu, exit);
    case -EAGAIN: return true; /* INIT or SIPI has changed what the vCPU waits for */
    case -EFAULT: return failed(exit, "KVM_RUN: the host has no memory for a guest page");
    default: return failed(exit, "KVM_RUN: %s", strerror(-code));
    }
}

/* The VM's clock stands still in a pause; the host's TSC does not. */
static void follow_clock(struct kvm_vcpu *vcpu) {
    int64_t lead, slack = (int64_t)(vm_clock_tsc_hz(vcpu->vcpu.engine->config.clock) / 100);
    if (!vcpu->tsc_known || !kvm_tsc_lead(vcpu, &lead))
        return;
    int64_t ahead = lead - vcpu->tsc_lead;
    if (ahead > slack || ahead < -slack)
        kvm_set_tsc_lead(vcpu, vcpu->tsc_lead);
}

void kvm_vcpu_run(struct vcpu *base, struct vcpu_exit *exit) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    memset(exit, 0, sizeof *exit);
    unblock_kicks();
    set_running(vcpu, true);
    follow_clock(vcpu);
    kvm_debug_resume(vcpu);
    while (run_once(vcpu, exit))
        ;
    vcpu->tsc_known = kvm_tsc_lead(vcpu, &vcpu->tsc_lead);
    set_running(vcpu, false);
}

/* ---- Creation ---- */

static int open_vcpu(struct kvm_vcpu *vcpu, struct error *err) {
    struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    vcpu->fd = ioctl(engine->vm_fd, KVM_CREATE_VCPU, (long)vcpu->vcpu.id);
    if (vcpu->fd < 0)
        return error_set_errno(err, -errno, "making vCPU %u in KVM", vcpu->vcpu.id);
    void *run = mmap(NULL, engine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED)
        return error_set_errno(err, -errno, "mapping vCPU %u", vcpu->vcpu.id);
    vcpu->run = run;
    return 0;
}

/* One frequency for all of the guest's clocks, where the processor can scale its TSC. */
static void set_tsc_frequency(struct kvm_vcpu *vcpu) {
    uint64_t khz = vm_clock_tsc_hz(vcpu->vcpu.engine->config.clock) / 1000;
    int now = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0L);
    int64_t difference = (int64_t)khz - now;
    if (now <= 0 || (difference < now / 1000 && difference > -now / 1000))
        return;
    if (ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (long)khz) < 0)
        log_warning("the guest's TSC runs at %d kHz, its clock says %lu", now, khz);
}

void kvm_vcpu_destroy(struct vcpu *base) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    lock_take(&engine->vcpu_lock);
    if (engine->vcpu[vcpu->vcpu.id] == vcpu)
        engine->vcpu[vcpu->vcpu.id] = NULL;
    lock_release(&engine->vcpu_lock);
    if (vcpu->run != NULL)
        munmap(vcpu->run, engine->run_size);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
    lock_destroy(&vcpu->lock);
    free(vcpu->saved);
    free(vcpu);
}

int kvm_vcpu_create(struct engine *base, unsigned id, struct vcpu **out, struct error *err) {
    struct kvm_engine *engine = kvm_engine_of(base);
    if (id >= base->config.vcpus)
        return error_set(err, -EINVAL, "vCPU %u of %u", id, base->config.vcpus);
    struct kvm_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (vcpu == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    vcpu->vcpu.engine = base;
    vcpu->vcpu.id = id;
    vcpu->fd = -1;
    lock_init(&vcpu->lock, LOCK_VCPU, "kvm vcpu");
    int code = open_vcpu(vcpu, err);
    if (code == 0)
        code = kvm_cpuid_set(vcpu, err);
    if (code == 0)
        code = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, &vcpu->reset_lapic);
    if (code < 0) {
        kvm_vcpu_destroy(&vcpu->vcpu);
        return code;
    }
    set_tsc_frequency(vcpu);
    kvm_reset(&vcpu->vcpu, false);
    lock_take(&engine->vcpu_lock);
    engine->vcpu[id] = vcpu;
    lock_release(&engine->vcpu_lock);
    *out = &vcpu->vcpu;
    return 0;
}
