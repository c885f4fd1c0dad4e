/*
 * A profile of a running machine: samples of its vCPUs (cpu/profile.h),
 * gathered while it runs, and a report that says what the time went into:
 * kinds of work, functions of the guest's kernel, its programs, instructions
 * that C runs, functions of lodge itself. And perf maps, which name translated
 * code for perf(1).
 *
 * Memory is bounded: samples are counted by place as they come. The loop's
 * thread.
 */
#ifndef LODGE_MACHINE_PROFILE_H
#define LODGE_MACHINE_PROFILE_H

#include <jansson.h>
#include <stdbool.h>

#include "machine/guest_symbols.h"
#include "machine/machine.h"

struct profile;

/*
 * Starts sampling. symbols: of the guest's kernel, the profile's from now on;
 * NULL: functions are told by address. -ENOTSUP: the engine cannot.
 */
int profile_start(struct machine *machine, unsigned interval_us, struct guest_symbols *symbols,
                  struct profile **profile, struct error *err);

/* Stops, and frees the profile. *report: an object as docs/control.md describes it, lists of at
 * most `top` entries; may be NULL. */
void profile_stop(struct profile *profile, unsigned top, json_t **report);

/* ---- Perf maps ---- */

struct perf_map;

/* Writes /tmp/perf-PID.map from now on. The file stays: perf reads it when the VM has ended. */
int perf_map_start(struct machine *machine, struct perf_map **map, struct error *err);
/* Writes it anew with functions' names, which are the map's from now on. */
void perf_map_name(struct perf_map *map, struct guest_symbols *symbols);
void perf_map_stop(struct perf_map *map);

#endif
