/* Filters from the table of calls, by libseccomp. */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "isolation/private.h"

static int add_call(scmp_filter_ctx context, const struct call *call) {
    struct scmp_arg_cmp compare[CALL_CONDITIONS];
    unsigned count = 0;
    for (unsigned i = 0; i < CALL_CONDITIONS; i++) {
        const struct call_condition *when = &call->when[i];
        if (when->mask != 0)
            compare[count++] =
                SCMP_CMP64(when->argument, SCMP_CMP_MASKED_EQ, when->mask, when->value);
    }
    return seccomp_rule_add_array(context, SCMP_ACT_ALLOW, call->number, count, compare);
}

/* What the table cannot say. */
static int add_special(scmp_filter_ctx context, unsigned who) {
    /* Threads are woken by signals: those of this process. */
    int result = seccomp_rule_add(context, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
                                  SCMP_A0_32(SCMP_CMP_EQ, (uint32_t)getpid()));
    /* The loop's signals, and a profile's; who tells of refused calls stays. */
    if (result == 0 && who & (ANY | VCPU))
        result = seccomp_rule_add(context, SCMP_ACT_ALLOW, SCMP_SYS(rt_sigaction), 1,
                                  SCMP_A0_32(SCMP_CMP_NE, SIGSYS));
    /* Its flags are in memory, where a filter cannot look: the C library takes clone then. */
    if (result == 0)
        result = seccomp_rule_add(context, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return result;
}

static int add_all(scmp_filter_ctx context, unsigned who) {
    int result = seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a binary tree */
    if (result == 0)
        result = seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    for (size_t i = 0; i < call_count && result == 0; i++)
        if (calls[i].who & who)
            result = add_call(context, &calls[i]);
    return result == 0 ? add_special(context, who) : result;
}

/* libseccomp writes it into a file. */
static int take_out(scmp_filter_ctx context, struct filter *filter) {
    struct stat status = {0};
    int fd = memfd_create("filter", MFD_CLOEXEC);
    int result = fd < 0 ? -errno : seccomp_export_bpf(context, fd);
    if (result == 0 && fstat(fd, &status) < 0)
        result = -errno;
    void *bytes = result == 0 ? malloc((size_t)status.st_size) : NULL;
    if (result == 0 && bytes == NULL)
        result = -ENOMEM;
    if (result == 0 && pread(fd, bytes, (size_t)status.st_size, 0) != status.st_size)
        result = -EIO;
    if (result == 0)
        *filter = (struct filter){
            bytes, (unsigned short)((size_t)status.st_size / sizeof(struct sock_filter))};
    else
        free(bytes);
    if (fd >= 0)
        close(fd);
    return result;
}

int filter_build(unsigned who, struct filter *filter, struct error *err) {
    scmp_filter_ctx context = seccomp_init(SCMP_ACT_TRAP);
    int result = context != NULL ? add_all(context, who) : -ENOMEM;
    if (result == 0)
        result = take_out(context, filter);
    if (context != NULL)
        seccomp_release(context);
    return result == 0 ? 0 : error_set_errno(err, result, "cannot make a filter of system calls");
}

/*
 * SPEC_ALLOW: on kernels before 5.16 a filter else switches a speculation off that all of the
 * guest's code would pay for. A process that runs a guest's code has it share an address space
 * with the monitor anyway (docs/security.md).
 */
int filter_install(const struct filter *filter) {
    struct sock_fprog program = {filter->length, filter->instructions};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                   &program) == 0
               ? 0
               : -errno;
}
