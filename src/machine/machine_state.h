/*
 * All of a machine's state but its RAM and its disks, as bytes: docs/snapshots.md. What there is to
 * save follows from what the machine is made of: its clock, vCPUs, interrupt controllers, PCI
 * functions and devices, each by its state table (base/state.h).
 *
 * Control thread, no vCPU runs, devices are quiet (machine_freeze).
 */
#ifndef LODGE_MACHINE_MACHINE_STATE_H
#define LODGE_MACHINE_MACHINE_STATE_H

#include "base/state.h"
#include "machine/machine.h"

enum { MACHINE_STATE_FORMAT = 1, MACHINE_STATE_MAX = 64 << 20 };

/* Appends it to the buffer. -ENOMEM. */
int machine_save_state(struct machine *machine, struct state_buffer *out, struct error *err);

/*
 * Into a machine that has not run, made of the same parts. The bytes may be hostile: -EINVAL
 * (damaged, or of another machine), -ENOTSUP (of a newer lodge, or of a host whose processor can
 * more). The machine is of no use then. Its clock goes on from where it was.
 */
int machine_load_state(struct machine *machine, const uint8_t *data, size_t length,
                       struct error *err);

/*
 * The same from a snapshot's directory (ram_image.h); RAM is mapped from its files, so they stay as
 * they are as long as the machine lives (they may be removed).
 */
int machine_restore(struct machine *machine, const char *directory, struct error *err);
/*
 * Whether what it needs is there, undamaged, and enough for that many bytes of memory: before
 * something is given up for it. Without `sums` memory's are left out, which takes a walk through
 * all of it. Any thread. -EINVAL, -ENOTSUP, -errno.
 */
int machine_check_saved(const char *directory, uint64_t memory, bool sums, struct error *err);
/* The flash's contents that are saved there (UEFI variables), into as many bytes as it has: 1; 0:
 * the machine had none. Any thread. -errno. */
int machine_read_saved_flash(const char *directory, uint8_t *contents, size_t size,
                             struct error *err);

#endif
