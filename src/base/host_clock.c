#include "base/host_clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/clock.h"
#include "base/clock_line.h"
#include "base/host_note.h"

#define TSC_HZ_DEFAULT UINT64_C(2000000000) /* for hosts without a TSC */

static uint64_t clock_read(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

uint64_t host_clock_ns(void) {
    return clock_read(CLOCK_MONOTONIC);
}

#if defined(__x86_64__)
/* ---- Frequency ---- */

/* CPUID 15h: crystal frequency times ratio; only some Intel processors tell all three numbers. */
static uint64_t hz_from_cpuid(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(0x15, 0, &eax, &ebx, &ecx, &edx) || eax == 0 || ebx == 0 || ecx == 0)
        return 0;
    return (uint64_t)((unsigned __int128)ecx * ebx / eax);
}

/* The tightest of a few pairs of readings: being interrupted between the two would spoil one. */
static struct host_sample sample_tsc(clockid_t id, unsigned tries) {
    struct host_sample best = {.width = UINT64_MAX};
    for (unsigned i = 0; i < tries; i++) {
        uint64_t before = clock_line_host_tsc();
        uint64_t ns = clock_read(id);
        uint64_t after = clock_line_host_tsc();
        if (after - before < best.width)
            best = (struct host_sample){
                .count = before + (after - before) / 2, .ns = ns, .width = after - before};
    }
    return best;
}

static uint64_t hz_measured(void) {
    enum { TRIES = 16 };
    const struct timespec wait = {.tv_nsec = 10 * 1000 * 1000};
    struct host_sample first = sample_tsc(CLOCK_MONOTONIC_RAW, TRIES);
    nanosleep(&wait, NULL);
    struct host_sample second = sample_tsc(CLOCK_MONOTONIC_RAW, TRIES);
    uint64_t ns = second.ns - first.ns;
    if (ns == 0 || second.count <= first.count)
        return 0;
    uint64_t hz = (uint64_t)((unsigned __int128)(second.count - first.count) * NS_PER_SECOND / ns);
    return (hz + 500) / 1000 * 1000;
}

/* ---- The counter ---- */

static bool tsc_is_invariant(void) {
    enum { INVARIANT = 1 << 8 };
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(UINT32_C(0x80000007), &eax, &ebx, &ecx, &edx) && edx & INVARIANT;
}

static bool kernel_uses_tsc(void) {
    char text[32] = "";
    FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
    if (file == NULL)
        return false;
    bool read = fgets(text, sizeof text, file) != NULL;
    fclose(file);
    return read && strcmp(text, "tsc\n") == 0;
}

/* Once a process: an answer that changed would make clocks jump. */
bool host_counts_tsc(void) {
    enum { UNKNOWN, NO, YES };
    static atomic_int known = UNKNOWN;
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (answer != UNKNOWN)
        return answer == YES;
    int none = UNKNOWN;
    answer = tsc_is_invariant() && kernel_uses_tsc() ? YES : NO;
    return (atomic_compare_exchange_strong(&known, &none, answer) ? answer : none) == YES;
}

uint64_t host_count(void) {
    return host_counts_tsc() ? clock_line_host_tsc() : host_clock_ns();
}

/* A few tries are enough, mostly one: it is called while others wait. */
struct host_sample host_sample(void) {
    enum { TRIES = 8, NARROW = 1000 };
    struct host_sample best = {.width = UINT64_MAX};
    if (!host_counts_tsc()) {
        uint64_t ns = host_clock_ns();
        return (struct host_sample){.count = ns, .ns = ns};
    }
    for (unsigned i = 0; i < TRIES && best.width > NARROW; i++) {
        struct host_sample sample = sample_tsc(CLOCK_MONOTONIC, 1);
        if (sample.width < best.width)
            best = sample;
    }
    return best;
}
#else
static uint64_t hz_from_cpuid(void) {
    return 0;
}

static uint64_t hz_measured(void) {
    return 0;
}

bool host_counts_tsc(void) {
    return false;
}

uint64_t host_count(void) {
    return host_clock_ns();
}

struct host_sample host_sample(void) {
    uint64_t ns = host_clock_ns();
    return (struct host_sample){.count = ns, .ns = ns};
}
#endif

uint64_t host_count_hz(void) {
    return host_counts_tsc() ? host_tsc_hz() : NS_PER_SECOND;
}

/* ---- Kept in a file (base/host_note.h) ---- */

static char kept_path[256];
static _Atomic(uint64_t) known_hz;

static bool is_possible(uint64_t hz) {
    return hz >= 1000 * 1000 && hz <= 100 * NS_PER_SECOND;
}

void host_tsc_hz_keep(const char *path) {
    char text[HOST_NOTE_MAX];
    unsigned long long hz;
    if ((size_t)snprintf(kept_path, sizeof kept_path, "%s", path) >= sizeof kept_path)
        kept_path[0] = 0;
    if (host_note_read(path, text, sizeof text) && sscanf(text, "%llu", &hz) == 1 &&
        is_possible(hz))
        atomic_store(&known_hz, hz);
}

static void keep(uint64_t hz) {
    char text[HOST_NOTE_MAX];
    snprintf(text, sizeof text, "%llu", (unsigned long long)hz);
    if (kept_path[0] != 0)
        host_note_write(kept_path, text);
}

/* All VMs of a process agree, and only the first waits. */
uint64_t host_tsc_hz(void) {
    uint64_t hz = atomic_load(&known_hz);
    if (hz != 0)
        return hz;
    hz = hz_from_cpuid();
    bool measured = hz == 0;
    if (hz == 0)
        hz = hz_measured();
    if (!is_possible(hz))
        hz = TSC_HZ_DEFAULT;
    else if (measured)
        keep(hz);
    uint64_t none = 0;
    return atomic_compare_exchange_strong(&known_hz, &none, hz) ? hz : none;
}
