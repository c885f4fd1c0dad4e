/*
 * What guests of the soft engine are shown of the host's processor: all that it runs by itself, or
 * no more than every processor of a level of the x86-64 psABI (its chapter 3.1.1) has, so that they
 * can move among hosts that differ. What lodge does without the host's help every guest is shown
 * everywhere. Any thread.
 */
#ifndef LODGE_CPU_BASELINE_H
#define LODGE_CPU_BASELINE_H

#include <stdbool.h>
#include <stdint.h>

enum cpu_baseline { CPU_HOST, CPU_V1, CPU_V2, CPU_V3 };

/* NULL-terminated: "host", "x86-64-v1", … */
extern const char *const cpu_baselines[];

/* Bit n: feature n, of those that differ among hosts. */
uint32_t cpu_baseline_shown(enum cpu_baseline baseline);
/* As /proc/cpuinfo has it; NULL: there is no feature n. */
const char *cpu_feature_name(unsigned n);
/* Of a set: what CPUID tells of it in 1, ECX, and 7, EBX. */
void cpu_feature_words(uint32_t set, uint32_t words[2]);

#endif
