#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cpu/kvm/kvm.h"

/* Three pages and one that Intel processors without unrestricted guests need, out of RAM's way. */
enum { IDENTITY_MAP_ADDRESS = 0xfffbc000, TSS_ADDRESS = 0xfffbd000 };

int kvm_ioctl(int fd, unsigned long request, void *argument) {
    int answer = ioctl(fd, request, argument);
    return answer < 0 ? -errno : answer;
}

int kvm_capability(const struct kvm_engine *engine, int capability) {
    int fd = engine->vm_fd >= 0 ? engine->vm_fd : engine->kvm_fd;
    int answer = ioctl(fd, KVM_CHECK_EXTENSION, (long)capability);
    return answer < 0 ? 0 : answer;
}

static int open_kvm(struct kvm_engine *engine, struct error *err) {
    engine->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (engine->kvm_fd < 0)
        return error_set(err, -ENODEV, "KVM is not usable: /dev/kvm: %s; --engine soft needs none",
                         strerror(errno));
    int version = ioctl(engine->kvm_fd, KVM_GET_API_VERSION, 0L);
    if (version != KVM_API_VERSION)
        return error_set(err, -ENODEV, "KVM is not usable: API version %d, not %d", version,
                         KVM_API_VERSION);
    int size = ioctl(engine->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0L);
    if (size < (int)sizeof(struct kvm_run))
        return error_set(err, -ENODEV, "KVM is not usable: vCPU area of %d bytes", size);
    engine->run_size = (size_t)size;
    return 0;
}

static int create_vm(struct kvm_engine *engine, struct error *err) {
    do
        engine->vm_fd = ioctl(engine->kvm_fd, KVM_CREATE_VM, 0L);
    while (engine->vm_fd < 0 && errno == EINTR);
    if (engine->vm_fd < 0)
        return error_set(err, -ENODEV, "KVM is not usable: creating a VM: %s; --engine soft works",
                         strerror(errno));
    return 0;
}

static int check_capabilities(struct kvm_engine *engine, struct error *err) {
    static const struct {
        int number;
        const char *name;
    } needed[] = {
        {KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"},
        {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
        {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
        {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
        {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
        {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
        {KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(needed); i++) {
        if (kvm_capability(engine, needed[i].number) == 0)
            return error_set(err, -ENODEV, "KVM is not usable: this kernel lacks %s",
                             needed[i].name);
    }
    engine->has_tsc_deadline = kvm_capability(engine, KVM_CAP_TSC_DEADLINE_TIMER) != 0;
    engine->has_xsave = kvm_capability(engine, KVM_CAP_XSAVE) != 0;
    engine->has_xcrs = kvm_capability(engine, KVM_CAP_XCRS) != 0;
    engine->has_debugregs = kvm_capability(engine, KVM_CAP_DEBUGREGS) != 0;
    int most = kvm_capability(engine, KVM_CAP_MAX_VCPUS);
    most = most > KVM_VCPUS_MAX || most == 0 ? KVM_VCPUS_MAX : most;
    if (engine->engine.config.vcpus > (unsigned)most)
        return error_set(err, -EINVAL, "%u vCPUs: KVM takes up to %d", engine->engine.config.vcpus,
                         most);
    return 0;
}

static int set_up_vm(struct kvm_engine *engine, struct error *err) {
    /* Only Intel needs these two; a kernel that refuses them does without. */
    uint64_t identity = IDENTITY_MAP_ADDRESS;
    kvm_ioctl(engine->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    ioctl(engine->vm_fd, KVM_SET_TSS_ADDR, (long)TSS_ADDRESS);

    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {IRQ_LINES}};
    int answer = kvm_ioctl(engine->vm_fd, KVM_ENABLE_CAP, &split);
    if (answer < 0)
        return error_set_errno(err, -ENODEV, "KVM is not usable: split irqchip refused (error %d)",
                               -answer);
    return 0;
}

static void ignore_signal(int signal) {
    (void)signal;
}

static int catch_kicks(struct error *err) {
    struct sigaction action = {.sa_handler = ignore_signal};
    sigemptyset(&action.sa_mask);
    if (sigaction(KVM_KICK_SIGNAL, &action, NULL) < 0)
        return error_set_errno(err, -errno, "signal %d", KVM_KICK_SIGNAL);
    return 0;
}

static void engine_destroy_kvm(struct engine *base) {
    struct kvm_engine *engine = kvm_engine_of(base);
    kvm_interrupt_destroy(engine);
    kvm_memory_destroy(engine);
    if (engine->vm_fd >= 0)
        close(engine->vm_fd);
    if (engine->kvm_fd >= 0)
        close(engine->kvm_fd);
    pthread_cond_destroy(&engine->hold_changed);
    pthread_mutex_destroy(&engine->hold_mutex);
    lock_destroy(&engine->vcpu_lock);
    free(engine->cpuid);
    free(engine);
}

static int engine_create_kvm(const struct engine_config *config, struct engine **out,
                             struct error *err) {
    struct kvm_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    engine->engine.ops = &kvm_engine_ops;
    engine->engine.config = *config;
    engine->kvm_fd = engine->vm_fd = -1;
    lock_init(&engine->vcpu_lock, LOCK_VCPU, "kvm vcpus");
    pthread_mutex_init(&engine->hold_mutex, NULL);
    pthread_cond_init(&engine->hold_changed, NULL);

    int code = open_kvm(engine, err);
    if (code == 0)
        code = create_vm(engine, err);
    if (code == 0)
        code = check_capabilities(engine, err);
    if (code == 0)
        code = set_up_vm(engine, err);
    if (code == 0)
        code = catch_kicks(err);
    if (code == 0)
        code = kvm_cpuid_init(engine, err);
    if (code == 0)
        code = kvm_memory_init(engine, err);
    if (code == 0)
        code = kvm_interrupt_init(engine, err);
    if (code != 0) {
        engine_destroy_kvm(&engine->engine);
        return code;
    }
    *out = &engine->engine;
    return 0;
}

static void get_counters(struct vcpu *vcpu, struct vcpu_counters *counters) {
    *counters = kvm_vcpu_of(vcpu)->counters;
}

const struct engine_ops kvm_engine_ops = {
    .name = "kvm",
    .create = engine_create_kvm,
    .destroy = engine_destroy_kvm,
    .vcpu_create = kvm_vcpu_create,
    .vcpu_destroy = kvm_vcpu_destroy,
    .run = kvm_vcpu_run,
    .kick = kvm_vcpu_kick,
    .get_state = kvm_get_state,
    .set_state = kvm_set_state,
    .own_state = kvm_own_state,
    .set_own_state = kvm_set_own_state,
    .reset = kvm_reset,
    .inject = kvm_inject,
    .translate = kvm_translate,
    .set_breakpoint = kvm_set_breakpoint,
    .set_view = kvm_set_view,
    .get_counters = get_counters,
};
