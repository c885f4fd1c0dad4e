#include "isolation/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bytes.h"
#include "isolation/private.h"

#ifdef LODGE_DEBUG

/* Each answers as a system call does: -1 and errno, or what must not be. */

static long read_outside(void) {
    return open("/etc/shadow", O_RDONLY | O_CLOEXEC);
}

static long write_outside(void) {
    static const char path[] = "/tmp/lodge-takeover";
    long fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0)
        unlink(path);
    return fd;
}

static long internet_socket(void) {
    return socket(AF_INET, SOCK_STREAM, 0);
}

static long packet_socket(void) {
    return socket(AF_PACKET, SOCK_RAW, 0);
}

static long new_process(void) {
    long pid = syscall(SYS_fork);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long cloned_process(void) {
    long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0)
        _exit(0);
    return pid;
}

/* It answers only when it was refused; a file that is there, or the kernel would say so first. */
static long program(void) {
    char *const argv[] = {(char *)(uintptr_t) "/bin/true", NULL}, *const environment[] = {NULL};
    return execve(argv[0], argv, environment);
}

static long program_at(void) {
    char *const argv[] = {(char *)(uintptr_t) "/bin/true", NULL}, *const environment[] = {NULL};
    return syscall(SYS_execveat, AT_FDCWD, argv[0], argv, environment, 0);
}

static long trace_parent(void) {
    return ptrace(PTRACE_SEIZE, getppid(), NULL, NULL);
}

static long signal_parent(void) {
    return kill(getppid(), 0);
}

static long signal_thread(void) {
    return syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static long other_memory(void) {
    return syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0);
}

static long writable_code(void) {
    void *at =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? -1 : 0;
}

static long own_code(void) {
    return mprotect((void *)((uintptr_t)&own_code & ~4095ull), 4096,
                    PROT_READ | PROT_WRITE | PROT_EXEC);
}

static long other_handler(void) {
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    return sigaction(SIGSYS, &ignore, NULL);
}

static long mounted(void) {
    return mount("none", "/mnt", "tmpfs", 0, NULL);
}

static long other_namespace(void) {
    return syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */);
}

static long program_of_the_kernel(void) {
    return syscall(SYS_bpf, 0, NULL, 0);
}

static long types_for_others(void) {
    return syscall(SYS_ioctl, STDERR_FILENO, 0x5412 /* TIOCSTI */, "x");
}

static const struct {
    const char *name;
    long (*attempt)(void);
} attempts[] = {
    {"read a file outside", read_outside},
    {"write a file outside", write_outside},
    {"internet socket", internet_socket},
    {"packet socket", packet_socket},
    {"fork", new_process},
    {"clone a process", cloned_process},
    {"execve", program},
    {"execveat", program_at},
    {"ptrace", trace_parent},
    {"kill another process", signal_parent},
    {"signal another's thread", signal_thread},
    {"another's memory", other_memory},
    {"writable code", writable_code},
    {"own code writable", own_code},
    {"another handler of refusals", other_handler},
    {"mount", mounted},
    {"unshare", other_namespace},
    {"bpf", program_of_the_kernel},
    {"TIOCSTI", types_for_others},
};

void takeover_try_all(const char *thread) {
    for (size_t i = 0; i < ARRAY_SIZE(attempts); i++) {
        report_refused_here = REPORT_COUNTS;
        errno = 0;
        long result = attempts[i].attempt();
        int code = errno;
        bool refused = report_refused_here == REPORT_REFUSED;
        report_refused_here = REPORT_ENDS;
        if (refused)
            fprintf(stderr, "takeover: %s: %s: refused\n", thread, attempts[i].name);
        else if (result < 0)
            fprintf(stderr, "takeover: %s: %s: failed: %s\n", thread, attempts[i].name,
                    strerror(code));
        else
            fprintf(stderr, "takeover: %s: %s: DONE\n", thread, attempts[i].name);
    }
    fprintf(stderr, "takeover: %s: end\n", thread);
}

void takeover_execute(void) {
    program();
}

#endif
