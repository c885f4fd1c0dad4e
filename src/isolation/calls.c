/*
 * Every system call that a monitor makes once it is set up, and why. ANY is
 * the whole process; VCPU and DISK_IO are the narrow filters of those threads,
 * which are obeyed beside it. VCPU_NET: vCPUs of a VM with the user network.
 * SANITIZED: builds with sanitizers, whose run time does more than lodge. Two
 * more are in filter.c, since what they compare with is no constant or a
 * difference: tgkill and rt_sigaction.
 */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "isolation/private.h"

enum { NARROW = VCPU | DISK_IO, ALL = ANY | NARROW };

#define NO     0xffffffffu /* all bits of an int */
#define IS(v)  NO, (uint32_t)(v)
#define NUM(n) SCMP_SYS(n)

const struct call calls[] = {
    /* ---- Memory: never writable and executable at once ---- */
    {NUM(brk), ALL},     /* malloc */
    {NUM(munmap), ALL},  /* malloc; caches */
    {NUM(mremap), ALL},  /* malloc; the translator's second mapping of its code */
    {NUM(madvise), ALL}, /* what a guest gives up, code that is dropped, malloc's arenas */
    {NUM(mmap), ALL, {{2, PROT_EXEC, 0}}},                      /* malloc; tables; files of pages */
    {NUM(mmap), ANY, {{2, PROT_EXEC | PROT_WRITE, PROT_EXEC}}}, /* libraries of name services */
    {NUM(mprotect), ALL, {{2, PROT_EXEC, 0}}}, /* malloc's heaps; read-only RAM; threads' guards */
    {NUM(mprotect), ANY, {{2, PROT_EXEC | PROT_WRITE, PROT_EXEC}}}, /* the translator's code */
    {NUM(msync), ALL},                                              /* a served device's journal */
    {NUM(mincore), ANY},      /* what of a saved memory is there */
    {NUM(mlock), ANY},        /* libraries that keep keys */
    {NUM(munlock), ANY},      /* likewise */
    {NUM(memfd_create), ANY}, /* memory that a device's process shares; symbols */
    {NUM(membarrier), ALL},   /* other vCPUs' view of code that has changed */
    {NUM(userfaultfd), ANY},  /* memory that is away */
    {NUM(getrandom), ALL},    /* the guest's random numbers; malloc */

    /* ---- Files that are open ---- */
    {NUM(read), ALL},                           /* eventfds, pipes, sockets, files */
    {NUM(write), ALL},                          /* likewise; the console; the log */
    {NUM(readv), ALL},                          /* disks; sockets */
    {NUM(writev), ALL},                         /* likewise */
    {NUM(pread64), ALL},                        /* disks, flash, page files */
    {NUM(pwrite64), ALL},                       /* likewise */
    {NUM(preadv), ALL},                         /* disks */
    {NUM(pwritev), ALL},                        /* disks */
    {NUM(preadv2), ALL},                        /* disks, without waiting */
    {NUM(pwritev2), ALL},                       /* disks, durable at once */
    {NUM(lseek), ALL},                          /* holes of files */
    {NUM(fsync), ALL},                          /* a guest's flush */
    {NUM(fdatasync), ALL},                      /* likewise */
    {NUM(sync_file_range), ALL},                /* writing back ahead of a flush */
    {NUM(fallocate), ALL},                      /* a guest's discard; growing a disk */
    {NUM(ftruncate), ALL},                      /* growing a disk; a perf map that begins anew */
    {NUM(fadvise64), ALL},                      /* what is not read again */
    {NUM(fstat), ALL},                          /* sizes; stdio */
    {NUM(close), ALL},                          /* what is not needed any more */
    {NUM(dup), ANY},                            /* a client's pipes */
    {NUM(dup2), ANY},                           /* the log becomes standard error */
    {NUM(dup3), ANY},                           /* likewise */
    {NUM(fcntl), ALL},                          /* non-blocking, close on exec, pipes' sizes */
    {NUM(flock), ANY},                          /* VMs' directories */
    {NUM(copy_file_range), ALL},                /* copies of disks; volumes */
    {NUM(sendfile), ANY},                       /* libraries */
    {NUM(splice), ANY},                         /* volumes */
    {NUM(ioctl), ALL, {{1, 0xff00, 0xae00}}},   /* KVM */
    {NUM(ioctl), ALL, {{1, 0xff00, 0xaa00}}},   /* userfaultfd */
    {NUM(ioctl), ALL, {{1, 0xff00, 0x1200}}},   /* devices as disks */
    {NUM(ioctl), ALL, {{1, IS(FIONREAD)}}},     /* the user network */
    {NUM(ioctl), ALL, {{1, IS(FIONBIO)}}},      /* likewise */
    {NUM(ioctl), ANY, {{1, 0xff00, 0x9400}}},   /* copies that share their blocks */
    {NUM(ioctl), ANY, {{1, 0xff00, 0x6600}}},   /* flags of files in volumes */
    {NUM(ioctl), ANY, {{1, IS(TUNSETIFF)}}},    /* a tap */
    {NUM(ioctl), ANY, {{1, IS(SIOCGIFINDEX)}}}, /* whether there is that interface */
    {NUM(ioctl), ANY, {{1, IS(SIOCGIFMTU)}}},   /* likewise */
    {NUM(ioctl), ALL, {{1, IS(TCGETS)}}},       /* whether it is a terminal */
    {NUM(ioctl), ANY, {{1, IS(TCSETS)}}},       /* terminals: raw, and as they were */
    {NUM(ioctl), ANY, {{1, IS(TCSETSW)}}},      /* likewise */
    {NUM(ioctl), ANY, {{1, IS(TCSETSF)}}},      /* likewise */
    {NUM(ioctl), ANY, {{1, IS(TIOCGWINSZ)}}}, /* their size. Not TIOCSTI, which types for others */

    /* ---- Files by name: Landlock says which; vCPUs' network reads resolv.conf ---- */
    {NUM(openat), ANY}, /* what a VM keeps: see files.c */
    {NUM(openat), VCPU_NET, {{2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY}}},
    {NUM(open), ANY},       /* as openat: old libraries */
    {NUM(newfstatat), ALL}, /* sizes of what is open; whether a file is there, how large, of whom */
    {NUM(stat), ANY | VCPU_NET},   /* as newfstatat: old libraries */
    {NUM(lstat), ANY},             /* likewise */
    {NUM(statx), ANY},             /* likewise, of volumes */
    {NUM(access), ANY | VCPU_NET}, /* whether a file is there */
    {NUM(faccessat), ANY},         /* likewise */
    {NUM(faccessat2), ANY},        /* likewise, of volumes */
    {NUM(readlink), ANY},          /* volumes; where the program is */
    {NUM(readlinkat), ANY},        /* likewise */
    {NUM(getdents64), ANY},        /* volumes; snapshots; threads */
    {NUM(getcwd), ANY},            /* paths that are relative */
    {NUM(chdir), ANY},             /* sockets in directories with long names */
    {NUM(fchdir), ANY},            /* back again */
    {NUM(statfs), ANY},            /* volumes; room for snapshots */
    {NUM(fstatfs), ANY | DISK_IO}, /* likewise, of what is open */
    {NUM(mkdir), ANY},             /* snapshots */
    {NUM(mkdirat), ANY},           /* volumes */
    {NUM(rmdir), ANY},             /* snapshots */
    {NUM(unlink), ANY},            /* sockets, snapshots, temporary files */
    {NUM(unlinkat), ANY},          /* volumes */
    {NUM(rename), ANY},            /* what is replaced whole */
    {NUM(renameat), ANY},          /* volumes */
    {NUM(renameat2), ANY},         /* likewise */
    {NUM(link), ANY},              /* what is made whole and then named */
    {NUM(linkat), ANY},            /* volumes */
    {NUM(symlink), ANY},           /* an image's files in a VM's directory */
    {NUM(symlinkat), ANY},         /* volumes */
    {NUM(mknodat), ANY},           /* volumes */
    {NUM(truncate), ANY},          /* volumes */
    {NUM(chmod), ANY},             /* sockets */
    {NUM(fchmod), ANY},            /* volumes */
    {NUM(fchmodat), ANY},          /* likewise */
    {NUM(chown), ANY},             /* likewise */
    {NUM(fchown), ANY},            /* likewise */
    {NUM(fchownat), ANY},          /* likewise */
    {NUM(lchown), ANY},            /* likewise */
    {NUM(utimensat), ANY},         /* likewise */
    {NUM(getxattr), ANY},          /* likewise */
    {NUM(setxattr), ANY},          /* likewise */
    {NUM(listxattr), ANY},         /* likewise */
    {NUM(removexattr), ANY},       /* likewise */
    {NUM(lgetxattr), ANY},         /* likewise */
    {NUM(lsetxattr), ANY},         /* likewise */
    {NUM(llistxattr), ANY},        /* likewise */
    {NUM(lremovexattr), ANY},      /* likewise */
    {NUM(fgetxattr), ANY},         /* likewise */
    {NUM(fsetxattr), ANY},         /* likewise */
    {NUM(flistxattr), ANY},        /* likewise */
    {NUM(fremovexattr), ANY},      /* likewise */
    {NUM(umask), ANY},             /* sockets that are the user's alone */
    {NUM(syncfs), ANY},            /* a snapshot's end */

    /* ---- Sockets ---- */
    {NUM(socket), ANY, {{0, IS(AF_UNIX)}}},                /* vsock at paths, user devices, moves */
    {NUM(socket), VCPU, {{0, IS(AF_UNIX)}}},               /* vsock at paths */
    {NUM(socket), NETWORK | VCPU_NET, {{0, IS(AF_INET)}}}, /* the user network, NBD, moves */
    {NUM(socket), NETWORK | VCPU_NET, {{0, IS(AF_INET6)}}}, /* likewise */
    {NUM(socket), NETWORK, {{0, IS(AF_NETLINK)}}}, /* which addresses getaddrinfo sorts by */
    {NUM(socketpair), ANY, {{0, IS(AF_UNIX)}}},    /* a command's streams */
    {NUM(connect), ANY | VCPU},                    /* of the sockets above */
    {NUM(bind), ANY | VCPU_NET},                   /* control sockets, published ports */
    {NUM(listen), ANY | VCPU_NET},      /* likewise; FTP and the like in the user network */
    {NUM(accept), ANY},                 /* likewise */
    {NUM(accept4), ANY},                /* likewise */
    {NUM(getsockname), ANY | VCPU_NET}, /* the user network */
    {NUM(getpeername), ANY | VCPU_NET}, /* likewise */
    {NUM(getsockopt), ANY | VCPU},      /* whether a connection came about */
    {NUM(setsockopt), ANY | VCPU},      /* time-outs, no delay */
    {NUM(sendto), ALL},                 /* the guest's frames and streams; replies */
    {NUM(recvfrom), ALL},               /* likewise */
    {NUM(sendmsg), ALL},                /* likewise, with descriptors */
    {NUM(recvmsg), ALL},                /* likewise */
    {NUM(sendmmsg), ANY | VCPU_NET},    /* names asked for */
    {NUM(shutdown), ANY | VCPU},        /* half-closed streams */

    /* ---- Waiting ---- */
    {NUM(poll), ALL},                       /* the user network, user devices, NBD */
    {NUM(ppoll), ALL},                      /* likewise */
    {NUM(select), ANY},                     /* libraries */
    {NUM(pselect6), ANY},                   /* likewise */
    {NUM(epoll_create1), ANY},              /* the loop */
    {NUM(epoll_ctl), ANY | VCPU | DISK_IO}, /* what the loop waits for changes on any thread */
    {NUM(epoll_wait), ANY},                 /* the loop */
    {NUM(epoll_pwait), ANY},                /* likewise */
    {NUM(eventfd2), ANY | VCPU},            /* wake-ups; interrupts of user devices */
    {NUM(pipe2), ANY},                      /* likewise */
    {NUM(timerfd_create), ANY},             /* the loop's timers */
    {NUM(timerfd_settime), ALL},            /* likewise, armed by devices */
    {NUM(io_uring_setup), ANY},             /* a disk past the page cache */
    {NUM(io_uring_enter), ALL},             /* its requests */
    {NUM(io_uring_register), ANY},          /* what rings may do */

    /* ---- Time ---- */
    {NUM(clock_gettime), ALL},        /* hosts without a vDSO clock; a thread's own time */
    {NUM(clock_getres), ANY},         /* libraries */
    {NUM(gettimeofday), ALL},         /* hosts without a vDSO clock */
    {NUM(time), ALL},                 /* likewise */
    {NUM(clock_nanosleep), ALL},      /* a vCPU that is held back */
    {NUM(nanosleep), ALL},            /* likewise */
    {NUM(timer_create), ANY | VCPU},  /* a profile's samples */
    {NUM(timer_settime), ANY | VCPU}, /* likewise */
    {NUM(timer_delete), ANY | VCPU},  /* likewise */

    /* ---- Threads: no processes ---- */
    {NUM(clone), ANY, {{0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM}}}, /* threads */
    {NUM(futex), ALL},                                                          /* locks */
    {NUM(set_robust_list), ALL},                     /* a thread's beginning */
    {NUM(rseq), ALL},                                /* likewise */
    {NUM(set_tid_address), ANY},                     /* likewise */
    {NUM(exit), ALL},                                /* its end */
    {NUM(exit_group), ALL},                          /* the process's */
    {NUM(restart_syscall), ALL},                     /* the kernel's own, after a signal */
    {NUM(seccomp), ANY},                             /* narrower filters for threads that begin */
    {NUM(sched_yield), ALL},                         /* a lock that is nearly free */
    {NUM(sched_getaffinity), ALL},                   /* how many processors there are */
    {NUM(sched_setaffinity), ANY},                   /* a trial on one processor */
    {NUM(sched_getattr), ALL},                       /* turns: base/thread.h */
    {NUM(sched_setattr), ALL},                       /* likewise */
    {NUM(sched_getparam), ANY},                      /* likewise */
    {NUM(sched_getscheduler), ANY},                  /* likewise */
    {NUM(sched_setscheduler), ANY},                  /* who makes memory ready stands back */
    {NUM(getpriority), ANY},                         /* likewise */
    {NUM(setpriority), ANY},                         /* likewise */
    {NUM(getcpu), ALL},                              /* malloc's arenas */
    {NUM(gettid), ALL},                              /* profiles; locks */
    {NUM(getpid), ALL},                              /* names of files */
    {NUM(getppid), ANY},                             /* libraries */
    {NUM(prctl), ALL, {{0, IS(PR_GET_NAME)}}},       /* who made a refused call */
    {NUM(prctl), ALL, {{0, IS(PR_SET_NAME)}}},       /* threads' names */
    {NUM(prctl), ALL, {{0, IS(PR_SET_TIMERSLACK)}}}, /* how late a resting vCPU may wake */
    {NUM(prctl), ALL, {{0, IS(PR_SET_VMA)}}},        /* malloc names its memory */
    {NUM(prctl), ANY, {{0, IS(PR_CAPBSET_READ)}}},   /* libraries */
    {NUM(arch_prctl), ALL},                          /* the translator's GS */

    /* ---- Signals: within the process ---- */
    {NUM(rt_sigprocmask), ALL},  /* threads' beginnings; longjmp's */
    {NUM(rt_sigreturn), ALL},    /* a handler's end */
    {NUM(sigaltstack), ALL},     /* handlers' stacks beside a guest's RSP */
    {NUM(rt_sigtimedwait), ANY}, /* libraries */

    /* ---- What the process is ---- */
    {NUM(getuid), ANY},    /* whose files they are */
    {NUM(geteuid), ANY},   /* likewise */
    {NUM(getgid), ANY},    /* likewise */
    {NUM(getegid), ANY},   /* likewise */
    {NUM(getgroups), ANY}, /* likewise */
    {NUM(uname), ANY},     /* the kernel's release */
    {NUM(sysinfo), ALL},   /* the host's memory; qsort */
    {NUM(getrusage), ANY}, /* what a run has cost */
    {NUM(times), ANY},     /* likewise */
    {NUM(prlimit64), ANY}, /* how many files there may be */
    {NUM(getrlimit), ANY}, /* likewise */
    {NUM(capget), ANY},    /* what files of volumes may become */

    /* ---- Sanitizers: LeakSanitizer stops the process's threads from one that traces them ---- */
    {NUM(clone), SANITIZED},
    {NUM(ptrace), SANITIZED},
    {NUM(wait4), SANITIZED},
    {NUM(process_vm_readv), SANITIZED},
    {NUM(prctl), SANITIZED},
    {NUM(kill), SANITIZED},
    {NUM(tgkill), SANITIZED},
    {NUM(personality), SANITIZED},
    {NUM(openat), SANITIZED},
    {NUM(readlink), SANITIZED},
    {NUM(newfstatat), SANITIZED},
    {NUM(pipe2), SANITIZED},
    {NUM(mincore), SANITIZED},
    {NUM(getrlimit), SANITIZED},
    {NUM(prlimit64), SANITIZED},
};

const size_t call_count = ARRAY_SIZE(calls);
