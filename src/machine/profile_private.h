/* A profile in the making: profile.c gathers, profile_report.c tells. */
#ifndef LODGE_MACHINE_PROFILE_PRIVATE_H
#define LODGE_MACHINE_PROFILE_PRIVATE_H

#include "cpu/profile.h"
#include "machine/host_symbols.h"
#include "machine/private.h"
#include "machine/profile.h"

enum {
    SPOTS = 1 << 16, /* different places, at most */
    SPOT_PROBES = 64,
    PROCESSES = 1024,
    PROCESS_NAME = 16,
    NAMELESS = 1 << 8, /* code without symbols is told in pieces of so many bytes */
};
#define HOST_UNKNOWN UINT32_MAX

/* Samples with all of this in common. */
struct spot {
    uint64_t guest;   /* named: an index of symbols; else an address */
    uint64_t ns;      /* CPU time */
    uint32_t host;    /* an index of host.functions, or HOST_UNKNOWN */
    uint32_t samples; /* 0: free */
    uint16_t insn;    /* that is called out; SAMPLE_NO_INSN */
    uint16_t process; /* an index of processes; 0: not known */
    uint8_t kind;     /* enum time_kind */
    bool named, user;
};

struct thread_times {
    uint64_t cpu_ns;     /* that vCPUs' threads have run */
    uint64_t waiting_ns; /* that they could have, but the host ran others */
};

struct profile {
    struct machine *machine;
    struct guest_symbols *symbols; /* or NULL */
    struct host_symbols host;
    struct loop_timer *timer;
    unsigned interval_us;
    int result; /* of starting */
    struct error error;
    /* Which process runs. */
    uint64_t direct_map, name_offset;
    char processes[PROCESSES][PROCESS_NAME];
    unsigned process_count;
    /* Before the start; at the end, the differences. */
    json_t *counters;
    uint64_t began_ns, took_ns, process_ns;
    struct thread_times times;
    /* What was seen. */
    uint64_t samples, lost, uncounted_ns;
    uint64_t kind_ns[TIME_KINDS]; /* of what has no spot */
    struct spot spots[SPOTS];
};

json_t *profile_report(struct profile *profile, unsigned top);

#endif
