/* A process's way in: what can only be given up once, in the order in which it can. */
#include "isolation/isolation.h"

#include <linux/capability.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/thread.h"
#include "isolation/private.h"

/* Of threads that are still to begin. */
static struct filter of_vcpus, of_io;

/* ---- Capabilities ---- */

/* Those that a monitor of root's may keep; other users' have none. */
static uint64_t capabilities(const struct isolation_grants *grants) {
    uint64_t kept = 0;
    if (grants->raw_files)
        kept |= 1ull << CAP_DAC_OVERRIDE | 1ull << CAP_DAC_READ_SEARCH | 1ull << CAP_FOWNER;
    if (grants->owners)
        kept |= 1ull << CAP_CHOWN | 1ull << CAP_FSETID | 1ull << CAP_MKNOD | 1ull << CAP_SETFCAP;
    if (grants->low_ports)
        kept |= 1ull << CAP_NET_BIND_SERVICE;
    if (grants->vcpu_net)
        kept |= 1ull << CAP_NET_RAW; /* a guest's ping, where the host grants it to no group */
    if (grants->tap)
        kept |= 1ull << CAP_NET_ADMIN;
    return kept;
}

static int drop_capabilities(uint64_t kept, struct error *err) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    if (syscall(SYS_capget, &header, data) != 0)
        return error_set_errno(err, -errno, "cannot read this process's capabilities");
    for (unsigned i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(kept >> 32 * i);
        data[i].effective &= (uint32_t)(kept >> 32 * i);
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data) != 0)
        return error_set_errno(err, -errno, "cannot give up capabilities");
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return 0;
}

/* ---- All of it ---- */

static void on_thread(enum thread_kind kind) {
    const struct filter *filter = kind == THREAD_VCPU ? &of_vcpus
                                  : kind == THREAD_IO ? &of_io
                                                      : NULL;
    report_unblock();
    /* Out of memory: it goes on with the process's filter, which holds anyway. */
    if (filter != NULL)
        filter_install(filter);
}

static int build(const struct isolation_grants *grants, struct filter *all, struct error *err) {
    unsigned more = grants->network ? NETWORK : 0;
#ifdef LODGE_SANITIZE
    more |= SANITIZED;
#endif
    int result = filter_build(ANY | more, all, err);
    if (result == 0)
        result = filter_build(grants->vcpu_net ? VCPU | VCPU_NET : VCPU, &of_vcpus, err);
    return result == 0 ? filter_build(DISK_IO, &of_io, err) : result;
}

int isolation_enter(const struct isolation_grants *grants, struct error *err) {
    const struct rlimit none = {0};
    struct filter all = {0};
    int result = build(grants, &all, err);
    if (result < 0)
        return result;
    tzset(); /* a guest's clock is told on a vCPU's thread, which opens no file */
    setrlimit(RLIMIT_CORE, &none); /* a guest's memory is not left in files */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        result = error_set_errno(err, -errno, "cannot give up new privileges");
    if (result == 0)
        result = drop_capabilities(capabilities(grants), err);
    if (result == 0)
        result = report_begin(grants->ending, err);
    if (result == 0 && (result = filter_install(&all)) < 0)
        error_set_errno(err, result,
                        "the host takes no filter of system calls; --sandbox off does without");
    free(all.instructions);
    thread_on_begin(on_thread);
    if (result == 0 && (result = thread_maker_start()) < 0)
        error_set_errno(err, result, "the host has no room for another thread");
    return result;
}
