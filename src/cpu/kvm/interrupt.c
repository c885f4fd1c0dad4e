/*
 * The split irqchip. Callbacks from the irqchip room may come with its lock
 * held, so they only pass messages on or leave a mark; what needs to ask the
 * irqchip back is done before the next KVM_RUN.
 */
#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cpu/kvm/kvm.h"

static void deliver_message(void *context, struct msi_message message) {
    struct kvm_engine *engine = context;
    struct kvm_msi msi = {
        .address_lo = (uint32_t)message.address,
        .address_hi = (uint32_t)(message.address >> 32),
        .data = message.data,
    };
    int code = kvm_ioctl(engine->vm_fd, KVM_SIGNAL_MSI, &msi);
    if (code < 0)
        log_guest("KVM refused an interrupt message: address %#lx, data %#x (error %d)",
                  message.address, message.data, -code);
}

/* The 8259's output is wired to the bootstrap processor's LINT0. */
static void external_changed(void *context, bool level) {
    struct kvm_engine *engine = context;
    lock_take(&engine->vcpu_lock);
    struct kvm_vcpu *vcpu = engine->vcpu[0];
    lock_release(&engine->vcpu_lock);
    if (level && vcpu != NULL)
        kvm_vcpu_request(vcpu, KVM_REQUEST_EXTERNAL);
}

static void routes_changed(void *context) {
    struct kvm_engine *engine = context;
    atomic_store(&engine->routes_stale, true);
}

/*
 * The kernel learns from the routes of pins 0 to 23 which vectors are level-
 * triggered and need an exit at their end. A pin that was masked keeps its
 * last route: its interrupt may still be in service.
 */
static void update_routes(struct kvm_engine *engine) {
    lock_take(&engine->route_lock);
    struct kvm_irq_routing *routes = engine->routes;
    for (unsigned pin = 0; pin < IRQ_LINES; pin++) {
        struct msi_message message;
        if (!irqchip_pin_message(engine->engine.config.irqchip, pin, &message))
            continue;
        routes->entries[pin].u.msi.address_lo = (uint32_t)message.address;
        routes->entries[pin].u.msi.address_hi = (uint32_t)(message.address >> 32);
        routes->entries[pin].u.msi.data = message.data;
    }
    int code = kvm_ioctl(engine->vm_fd, KVM_SET_GSI_ROUTING, routes);
    lock_release(&engine->route_lock);
    if (code < 0)
        log_guest("KVM refused the I/O APIC's routes (error %d)", -code);
}

/* Takes the 8259's vector when the guest can take it, else asks to be told when it can. */
static void inject_external(struct kvm_vcpu *vcpu) {
    struct kvm_run *run = vcpu->run;
    if (run->ready_for_interrupt_injection) {
        vcpu->external_waits = false;
        int vector = irqchip_pic_ack(vcpu->vcpu.engine->config.irqchip);
        if (vector >= 0) {
            struct kvm_interrupt interrupt = {.irq = (uint32_t)vector};
            kvm_ioctl(vcpu->fd, KVM_INTERRUPT, &interrupt);
            vcpu->counters.interrupts++;
            run->ready_for_interrupt_injection = 0;
            /* Another may be behind it: the callback tells changes only, and the output may have
             * stayed high through the acknowledgement. */
            vcpu->external_waits = true;
        }
    }
    run->request_interrupt_window = vcpu->external_waits;
}

void kvm_interrupt_prepare(struct kvm_vcpu *vcpu) {
    struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    if (atomic_load_explicit(&engine->routes_stale, memory_order_relaxed) &&
        atomic_exchange(&engine->routes_stale, false))
        update_routes(engine);
    /* A request made on this very thread (a device's port) need not wait for the kernel. */
    if (vcpu->vcpu.id == 0 && atomic_load(&vcpu->request) & KVM_REQUEST_EXTERNAL) {
        atomic_fetch_and(&vcpu->request, ~(unsigned)KVM_REQUEST_EXTERNAL);
        vcpu->external_waits = true;
    }
    if (vcpu->external_waits)
        inject_external(vcpu);
    else
        vcpu->run->request_interrupt_window = 0;
}

int kvm_interrupt_init(struct kvm_engine *engine, struct error *err) {
    lock_init(&engine->route_lock, LOCK_BACKEND, "kvm routes");
    engine->routes =
        calloc(1, sizeof *engine->routes + IRQ_LINES * sizeof(struct kvm_irq_routing_entry));
    if (engine->routes == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    engine->routes->nr = IRQ_LINES;
    for (unsigned pin = 0; pin < IRQ_LINES; pin++) {
        engine->routes->entries[pin].gsi = pin;
        engine->routes->entries[pin].type = KVM_IRQ_ROUTING_MSI;
        engine->routes->entries[pin].u.msi.address_lo = APIC_DEFAULT_BASE;
    }
    struct irq_delivery delivery = {
        .message = deliver_message,
        .external = external_changed,
        .routes_changed = routes_changed,
        .context = engine,
    };
    irqchip_set_delivery(engine->engine.config.irqchip, &delivery);
    atomic_store(&engine->routes_stale, true);
    return 0;
}

void kvm_interrupt_destroy(struct kvm_engine *engine) {
    if (engine->routes != NULL)
        irqchip_set_delivery(engine->engine.config.irqchip, NULL);
    free(engine->routes);
}
