/* vCPUs: the threads that run them, parking those, and plugging more in. */
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/thread.h"
#include "device/acpi_pm.h"
#include "device/cpu_slots.h"
#include "machine/layout.h"
#include "machine/private.h"

enum { THROTTLE_PERIOD_NS = 20000000, THROTTLE_STEP_NS = 500000 };

/* ---- Threads ---- */

/* Waits while parking is asked for; false: the thread is to end. */
static bool may_run(struct machine *machine) {
    lock_take(&machine->lock);
    while (machine->park && !machine->quit) {
        machine->parked++;
        pthread_cond_broadcast(&machine->changed);
        pthread_cond_wait(&machine->changed, &machine->lock.mutex);
        machine->parked--;
    }
    bool run = !machine->quit;
    lock_release(&machine->lock);
    return run;
}

/* After something that ends or changes everything: the control thread decides. */
static void wait_for_decision(struct machine *machine) {
    lock_take(&machine->lock);
    machine->park = true;
    lock_release(&machine->lock);
}

/* Whose thread this is; NULL: no vCPU's. */
static _Thread_local struct machine_vcpu *here;

struct vcpu *machine_vcpu_here(struct platform *platform, unsigned *id) {
    if (here == NULL)
        return NULL;
    *id = (unsigned)(here - here->machine->vcpus);
    return here->vcpu;
}

/* While machine_set_throttle wants it held back, in steps that parking can wait for; true: it was.
 */
static bool hold_back(struct machine *machine) {
    const struct timespec step = {.tv_nsec = THROTTLE_STEP_NS};
    if (host_clock_ns() >= atomic_load(&machine->held_until_ns))
        return false;
    nanosleep(&step, NULL);
    return true;
}

static void *vcpu_main(void *argument) {
    struct machine_vcpu *self = argument;
    struct machine *machine = self->machine;
    char name[16];
    snprintf(name, sizeof name, "vcpu %u", (unsigned)(self - machine->vcpus));
    thread_begins(THREAD_VCPU, name);
    thread_computes();
    here = self;
    atomic_store(&self->thread_id, (int)syscall(SYS_gettid));
    while (may_run(machine)) {
        struct vcpu_exit exit = {0};
        if (atomic_load(&machine->pending) != 0) {
            wait_for_decision(machine);
            continue;
        }
        if (hold_back(machine))
            continue;
        if (atomic_load_explicit(&machine->times.first_ns, memory_order_relaxed) == 0)
            atomic_store(&machine->times.first_ns, host_clock_ns());
        vcpu_run(self->vcpu, &exit);
        unsigned what = exit.stop == VCPU_SHUTDOWN     ? PENDING_TRIPLE_FAULT
                        : exit.stop == VCPU_FAILED     ? PENDING_FAILED
                        : exit.stop == VCPU_DIFFERENCE ? PENDING_DIFFERENCE
                                                       : 0;
        if (what == 0)
            continue;
        self->exit = exit;
        wait_for_decision(machine);
        machine_ask(machine, what);
    }
    return NULL;
}

/* Signals are for the control thread: a vCPU's would only be interrupted by them. */
int machine_start_vcpu(struct machine_vcpu *vcpu) {
    sigset_t ours, old;
    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGHUP);
    sigaddset(&ours, SIGWINCH);
    pthread_sigmask(SIG_BLOCK, &ours, &old);
    int result = -pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    vcpu->started = result == 0;
    return result;
}

/* ---- Slowing down ---- */

static void on_throttle(void *context) {
    struct machine *machine = context;
    uint64_t now = host_clock_ns();
    atomic_store(&machine->held_until_ns,
                 now + machine->throttle_percent * (THROTTLE_PERIOD_NS / 100));
    for (unsigned i = 0; i < machine->config.vcpus; i++)
        vcpu_kick(machine->vcpus[i].vcpu);
    loop_timer_arm(machine->throttle, now + THROTTLE_PERIOD_NS);
}

int machine_set_throttle(struct machine *machine, unsigned percent, struct error *err) {
    int result = machine->throttle == NULL ? loop_timer_create(machine->config.loop, on_throttle,
                                                               machine, &machine->throttle, err)
                                           : 0;
    if (result < 0)
        return result;
    machine->throttle_percent = percent;
    atomic_store(&machine->held_until_ns, 0);
    if (percent > 0)
        loop_timer_arm(machine->throttle, host_clock_ns());
    else
        loop_timer_cancel(machine->throttle);
    return 0;
}

/* ---- Parking ---- */

void machine_park(struct machine *machine) {
    lock_take(&machine->lock);
    machine->park = true;
    lock_release(&machine->lock);
    unsigned running = 0;
    for (unsigned i = 0; i < machine->config.vcpus; i++) {
        running += machine->vcpus[i].started;
        vcpu_kick(machine->vcpus[i].vcpu);
    }
    lock_take(&machine->lock);
    while (machine->parked < running)
        pthread_cond_wait(&machine->changed, &machine->lock.mutex);
    lock_release(&machine->lock);
}

void machine_unpark(struct machine *machine, bool quit) {
    lock_take(&machine->lock);
    machine->park = machine->paused && !quit;
    machine->quit = quit;
    pthread_cond_broadcast(&machine->changed);
    lock_release(&machine->lock);
}

void machine_with_vcpus_parked(struct machine *machine, void (*call)(void *context),
                               void *context) {
    lock_take(&machine->lock);
    bool parked = machine->park; /* somebody else's decision is due, or the guest is held */
    lock_release(&machine->lock);
    machine_park(machine);
    call(context);
    if (!parked)
        machine_unpark(machine, false);
}

/* ---- Plugging processors in ---- */

static int plug(struct machine *machine, struct error *err) {
    struct machine_vcpu *made = &machine->vcpus[machine->config.vcpus];
    made->machine = machine;
    int result = vcpu_create(machine->engine, machine->config.vcpus, &made->vcpu, err);
    if (result == 0 && machine->running && machine_start_vcpu(made) < 0) {
        vcpu_destroy(made->vcpu);
        made->vcpu = NULL;
        result = error_set(err, -EAGAIN, "the host has no room for another thread");
    }
    if (result == 0)
        machine->config.vcpus++;
    return result;
}

int machine_set_vcpus(struct machine *machine, unsigned count, struct error *err) {
    const struct machine_config *config = &machine->config;
    if (machine->frozen)
        return error_set(err, -EBUSY, "a snapshot of it is being taken");
    if (count < config->vcpus)
        return error_set(err, -EINVAL,
                         "it has %u processors, which stay; take some offline in the guest",
                         config->vcpus);
    if (count > config->vcpus_max)
        return error_set(err, -EINVAL,
                         "it has room for %u processors; --cpus %u,max=%u would make more",
                         config->vcpus_max, config->vcpus, count);
    /* Firmware starts all processors at once, and knows how many it has. */
    if (count > config->vcpus && machine->firmware != NULL &&
        !acpi_pm_gpe_enabled(machine->acpi_pm, LAYOUT_CPU_SLOTS_GPE))
        return error_set(err, -EAGAIN,
                         "the guest's firmware or boot loader still runs, or a "
                         "system without ACPI; try again when it is up");
    int result = 0;
    while (config->vcpus < count && result == 0)
        result = plug(machine, err);
    if (machine->cpu_slots != NULL) {
        cpu_slots_plug(machine->cpu_slots, (uint8_t)config->vcpus);
        acpi_pm_raise_gpe(machine->acpi_pm, LAYOUT_CPU_SLOTS_GPE);
    }
    return result;
}
