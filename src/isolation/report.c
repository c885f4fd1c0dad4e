/*
 * What is said of a call that is not done, and the process's end. The signal
 * comes at the call's instruction, so never inside malloc or stdio's locks
 * unless those make a call that is refused, which they do not.
 */
#include <pthread.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "isolation/private.h"

static void (*ending_hook)(void);

static void say(const char *thread, int call) {
    char line[256];
    char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, call);
    int length = snprintf(line, sizeof line,
                          "lodge: the thread '%s' made the system call %s (%d), which a monitor "
                          "never does: it ends here. An attack by the guest, or a flaw of lodge's "
                          "to report\n",
                          thread, name != NULL ? name : "?", call);
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)length);
    (void)ignored;
}

#ifdef LODGE_DEBUG
_Thread_local volatile int report_refused_here;

/* For takeover.c, which goes on to the next attempt. */
static bool is_counted(void *context) {
    if (report_refused_here == REPORT_ENDS)
        return false;
    report_refused_here = REPORT_REFUSED;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -EPERM;
    return true;
}
#else
static bool is_counted(void *context) {
    (void)context;
    return false;
}
#endif

static void on_refused(int number, siginfo_t *info, void *context) {
    if (is_counted(context))
        return;
    char thread[16] = "?";
    if (ending_hook != NULL)
        ending_hook();
    pthread_getname_np(pthread_self(), thread, sizeof thread);
    say(thread, info->si_syscall);
    _exit(128 + SIGSYS);
}

int report_begin(void (*ending)(void), struct error *err) {
    struct sigaction action = {.sa_sigaction = on_refused, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    ending_hook = ending;
    return sigaction(SIGSYS, &action, NULL) == 0 ? 0 : error_set_errno(err, -errno, "SIGSYS");
}

void report_unblock(void) {
    sigset_t refused;
    sigemptyset(&refused);
    sigaddset(&refused, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &refused, NULL);
}
