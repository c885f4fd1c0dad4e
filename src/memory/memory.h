/*
 * Guest-physical memory of one VM: RAM, ROM and I/O regions, the one gate
 * through which everything outside the engines touches guest memory, page
 * flags (dirty log, code watch), and views.
 *
 * The gate: every access names address *and* length; both are checked by
 * subtracting before comparing; only RAM (and ROM for reads) is reached.
 * Callers copy in once and then check the copy, because a guest may change
 * its memory at any moment. Devices do not call the gate directly but
 * through their requester's DMA context (memory/dma.h).
 *
 * Second-stage translation is an object, a *view*: guest-physical page to
 * region page with permissions. A VM has one view to begin with (the default
 * view: everything where it is, all rights); engines run a vCPU in a view.
 *
 * RAM regions are added while the machine is assembled and stay. I/O regions
 * come and go (PCI BARs). Unless a call says otherwise: any thread.
 */
#ifndef LODGE_MEMORY_MEMORY_H
#define LODGE_MEMORY_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { PAGE_SHIFT = 12, PAGE_SIZE = 1 << PAGE_SHIFT };

struct memory;
struct view;
struct io_region;

int memory_create(struct memory **memory, struct error *err);
void memory_destroy(struct memory *memory); /* no vCPU or device uses it any more */

/* ---- Regions ---- */

/*
 * Adds zeroed RAM. gpa and size are multiples of PAGE_SIZE. Host memory is
 * reserved, not touched. Assembly only. -EEXIST on overlap, -ENOMEM, -EINVAL.
 */
int memory_add_ram(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                   struct error *err);

/*
 * RAM that is added from now on can be mapped by other processes too: device
 * servers (vfio_user/client.h). Assembly only.
 */
void memory_share(struct memory *memory);

/* A region of such RAM: its bytes from the beginning of `fd`, which cannot shrink; its pages' flag
 * bytes (MEM_PAGE_*) from the beginning of `flags_fd`. */
struct memory_shared {
    uint64_t gpa, size;
    int fd, flags_fd; /* the memory's */
};
/* The nth such region; false: there are no more. */
bool memory_shared_region(const struct memory *memory, unsigned n, struct memory_shared *region);

/* Adds read-only memory with the given contents (copied, zero-padded to size). Guest writes go to
 * the I/O region there that memory_io_writes_only has made (flash), or nowhere. Assembly only. */
int memory_add_rom(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                   const void *contents, size_t length, struct error *err);

/*
 * What the host puts there: as memory_write, but ROM and read-only RAM take it as well (firmware's
 * shadow, flash contents).
 */
int memory_load(struct memory *memory, uint64_t gpa, const void *from, size_t length);

/* Whole pages of RAM that guests and devices may not write (a chipset's shadow RAM), or again may.
 * Guest writes are ignored as ROM's. Engines are told. Pages that are not RAM are left out. */
void memory_set_readonly(struct memory *memory, uint64_t gpa, uint64_t size, bool readonly);

/*
 * RAM that comes and goes (virtio-mem): at first nothing is there, as at an
 * address that nobody has. Assembly only; errors as memory_add_ram.
 */
int memory_add_pluggable(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                         struct error *err);

/*
 * Makes pages of a pluggable region come, zeroed, or go; engines are told, and host memory that
 * was behind them is given back. -EFAULT: not all of it in one such region, -ENOMEM: the host's
 * pool of huge pages is empty. Then nothing has changed.
 */
int memory_plug(struct memory *memory, uint64_t gpa, uint64_t size, bool plugged);

/* RAM added from now on takes 2 MiB pages of the host's pool, all reserved at once (-ENOMEM there
 * when it has too few). Without it the host is asked to use such pages where it has some. */
void memory_use_huge_pages(struct memory *memory);

/*
 * The guest needs these bytes no longer: pages of RAM that lie wholly in [gpa, gpa+size) read as
 * zero until they are written again, and take no host memory meanwhile. Counts as a write to them.
 * Left alone: what is no RAM, is read-only, or came from the host's pool of huge pages, which are
 * the VM's for good. Returns the bytes given back.
 */
uint64_t memory_discard(struct memory *memory, uint64_t gpa, uint64_t size);

/* Bytes of host memory behind RAM at the moment, as far as the host tells. Slow: a walk. */
uint64_t memory_resident(const struct memory *memory);

/* Total RAM in bytes, without pluggable regions. */
uint64_t memory_ram_size(const struct memory *memory);

/*
 * What answers an I/O region or a port range. offset is relative to the
 * region; size is 1, 2, 4 or 8 and the access lies inside the region (the
 * caller splits what straddles an end). Called on the accessing vCPU's
 * thread with no lock held; the device takes its own. Reads answer
 * zero-extended.
 */
struct io_ops {
    uint64_t (*read)(void *context, uint64_t offset, unsigned size);
    void (*write)(void *context, uint64_t offset, uint64_t value, unsigned size);
};

/*
 * Adds an I/O region of any address and size. Later regions win over earlier
 * ones and over RAM where they overlap only if they cover whole pages;
 * among I/O regions any overlap is allowed and the latest wins (PCI BARs
 * programmed on top of each other). The region stays owned by the memory
 * until memory_remove_io. Devices outlive their regions' last access:
 * they are freed only when no vCPU runs.
 */
int memory_add_io(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                  const struct io_ops *ops, void *context, struct io_region **region,
                  struct error *err);
void memory_remove_io(struct io_region *region);

/* Moves the region and makes it answer or not: a BAR being programmed. Engines are told. */
void memory_move_io(struct io_region *region, uint64_t gpa, bool enabled);

/* A region over ROM that takes its writes alone: reads and fetches see the ROM (flash that shows
 * its array), or takes all. Engines are told. */
void memory_io_writes_only(struct io_region *region, bool writes_only);

/* An access by a vCPU to what is no RAM, or a write to ROM. Nobody there: reads answer all-ones,
 * writes go nowhere. */
uint64_t memory_io_read(struct memory *memory, uint64_t gpa, unsigned size);
void memory_io_write(struct memory *memory, uint64_t gpa, uint64_t value, unsigned size);

/* ---- The gate (default view) ---- */

/* Copies length bytes. All of it or nothing: -EFAULT when any byte is not RAM (reads: or ROM).
 * A length of 0 succeeds. Writes mark pages dirty and tell engines about changed code. */
int memory_read(struct memory *memory, uint64_t gpa, void *to, size_t length);
int memory_write(struct memory *memory, uint64_t gpa, const void *from, size_t length);

/*
 * A host pointer to guest RAM for bulk data (disk, network). Maps up to
 * *length bytes and lowers *length to what is contiguous; NULL when gpa is
 * not RAM. The bytes may change under the caller at any time. With `write`,
 * the caller calls memory_unmap with what it wrote; without, it need not.
 * The pointer stays valid until memory_destroy.
 */
void *memory_map(struct memory *memory, uint64_t gpa, size_t *length, bool write);
void memory_unmap(struct memory *memory, uint64_t gpa, size_t written);

/*
 * Freezing: an engine that tries guest code out and takes its writes back
 * keeps devices from reading or writing meanwhile. freeze: false when one is
 * at it; never waits. While frozen the gate's calls wait; the one who froze
 * makes none. Whoever writes through mapped memory while others run holds it,
 * from before the first byte until after the last (hold waits while frozen).
 */
bool memory_freeze(struct memory *memory);
void memory_thaw(struct memory *memory);
void memory_hold(struct memory *memory);
void memory_unhold(struct memory *memory);

/* ---- For engines ---- */

enum {
    MEM_READ = 1,
    MEM_WRITE = 2,
    MEM_EXECUTE = 4,
    MEM_ALL = 7,
};

/* Bits of a page's flag byte. */
enum {
    MEM_PAGE_DIRTY = 1, /* written since the dirty log was last fetched */
    MEM_PAGE_CODE = 2,  /* an engine holds decoded or translated code of this page */
    /* An engine's vCPU may have kept the page's address for writing, to use it without a look at
     * these flags, since the page was last asked to be watched. */
    MEM_PAGE_WRITTEN = 4,
};

/* The others are the room's own; these say what a device that reaches memory without the gate
 * (vfio_user/lent.h) leaves alone: anything, and writes. */
enum { MEM_PAGE_NO_ACCESS = 0xa0, MEM_PAGE_NO_WRITE = 0xe0 };

/* A page as a view shows it. host is NULL when no memory is there (I/O or nothing). */
struct mem_page {
    uint8_t *host;           /* the page's first byte */
    _Atomic(uint8_t) *flags; /* its flag byte */
    uint8_t rights;          /* MEM_* that the view and the region allow */
    bool fresh;              /* being touched for the first time: see memory_ahead_touched */
    bool rom;                /* writes go to memory_io_write rather than being refused */
    uint64_t region_gpa;     /* where the page lives in the default view: its identity */
};

/*
 * Finds the 4 KiB page of a guest-physical address in a view. Wait-free.
 * An engine that is going to write through `host` sets MEM_PAGE_DIRTY first
 * (and MEM_PAGE_WRITTEN before it keeps `host`), and calls memory_code_written
 * after it wrote to a page with MEM_PAGE_CODE.
 */
void view_page(const struct view *view, uint64_t gpa, struct mem_page *page);

/*
 * Who holds code of a page: `watcher` (a vCPU's number) is about to read the
 * first of it, or has dropped the last. MEM_PAGE_CODE is set as long as there
 * are any. memory_watch clears MEM_PAGE_WRITTEN and returns the flags as they
 * were; a full barrier.
 */
enum { MEM_WATCHERS_MAX = 64 };
uint8_t memory_watch(struct memory *memory, uint64_t gpa, unsigned watcher);
void memory_unwatch(struct memory *memory, uint64_t gpa, unsigned watcher);
bool memory_is_watched_by(const struct memory *memory, uint64_t gpa, unsigned watcher);

/* The address of the page whose flag byte this is. */
uint64_t memory_gpa_of_flags(const struct memory *memory, const _Atomic(uint8_t) *flags);

/* Any vCPU wrote to [gpa, gpa+length) of a page marked MEM_PAGE_CODE: listeners are told (on this
 * thread) after the bytes changed. */
void memory_code_written(struct memory *memory, uint64_t gpa, size_t length);

/*
 * What engines are told. Called on the thread that made the change, with the
 * memory lock not held.
 */
struct memory_listener {
    /* RAM was added (also called for what is there when the listener is added). host NULL: a
     * pluggable region, none of which is there yet. */
    void (*ram_added)(void *context, uint64_t gpa, uint64_t size, void *host, bool readonly);
    /* What view_page answers for this range changed: forget cached translations. */
    void (*changed)(void *context, const struct view *view, uint64_t gpa, uint64_t size);
    /* Bytes of a page with MEM_PAGE_CODE changed, by a device or a vCPU. */
    void (*code_written)(void *context, uint64_t gpa, size_t length);
    /* Pages' dirty flags were cleared: writes must set them anew. */
    void (*dirty_cleared)(void *context);
    /* The dirty flags of [gpa, gpa+size) are about to be fetched: an engine whose writes do not set
     * them as they happen sets them now. */
    void (*dirty_wanted)(void *context, uint64_t gpa, uint64_t size);
    void *context;
};
int memory_add_listener(struct memory *memory, const struct memory_listener *listener);
void memory_remove_listener(struct memory *memory, const struct memory_listener *listener);

/* ---- Views ---- */

/* The view that exists from the start. It stays the identity: the calls below refuse it. */
struct view *memory_default_view(struct memory *memory);

/* A further view; starts as the identity too. -ENOMEM. */
int view_create(struct memory *memory, const char *name, struct view **view, struct error *err);
void view_destroy(struct view *view); /* no vCPU runs in it; not the default view */
struct memory *view_memory(const struct view *view);
const char *view_name(const struct view *view);

/* Sets the rights of whole pages (multiples of PAGE_SIZE, at most 1 TiB a call). -EINVAL on bad
 * ranges, -ENOMEM; then nothing has changed. */
int view_protect(struct view *view, uint64_t gpa, uint64_t size, unsigned rights);

/* Shows the RAM page at target in place of the page at gpa. -EFAULT when target is no RAM. */
int view_remap(struct view *view, uint64_t gpa, uint64_t target);

/* Undoes view_protect and view_remap. */
void view_restore(struct view *view, uint64_t gpa, uint64_t size);

/* ---- For who carries all of RAM elsewhere ---- */

/* The nth region of RAM, pluggable or not; false: there are no more. */
struct memory_ram {
    uint64_t gpa, size;
    uint8_t *host;
    bool pluggable;
};
bool memory_ram_region(const struct memory *memory, unsigned n, struct memory_ram *region);
/* Which pages of [gpa, gpa+size), all in one region, may hold anything but zeros: bit n is page n.
 * Touches none of them. */
void memory_find_touched(const struct memory *memory, uint64_t gpa, uint64_t size,
                         uint64_t *bitmap);

/* ---- Images: RAM in files ---- */

/* Bytes of a file with all of RAM, pluggable regions included, ROM not. Page n of the image is what
 * is at n * PAGE_SIZE of the file: the regions one behind the other, by address. */
uint64_t memory_image_size(const struct memory *memory);

/* What an image's file holds. */
struct memory_pages {
    uint64_t count; /* the image's */
    uint64_t *own;  /* bit n: page n is in the file */
    uint32_t *sums; /* of each such page its CRC-32C */
};
int memory_pages_init(struct memory_pages *pages, uint64_t count); /* none yet; -ENOMEM */
void memory_pages_free(struct memory_pages *pages);

/*
 * Writes pages into a file (empty, or written by this before): those of `wanted`, NULL: all. Pages
 * of zeros become holes. What is written while others change it is to be written again: the dirty
 * log tells. progress (may be NULL) hears how many bytes of the image are dealt with; false: that
 * is enough, -ECANCELED. *written grows by what was written, also on failure (-ENOSPC and so on).
 */
typedef bool memory_image_progress(void *context, uint64_t done);
int memory_save_pages(const struct memory *memory, int fd, const uint64_t *wanted,
                      struct memory_pages *pages, memory_image_progress *progress, void *context,
                      uint64_t *written);

/* One of the files that make an image: its pages count where no layer before has any. */
struct memory_layer {
    int fd;
    const uint64_t *own; /* bit n: it has page n; the last layer has all, and needs none */
};
/*
 * RAM becomes what the files hold, read as it is touched and copied as it is written to: they stay
 * the caller's, and nobody may change them as long as the memory lives. No vCPU or device has used
 * memory. These pages count as not written (dirty log). -EINVAL: a file has another size;
 * -ENOTSUP: memory that is shared, or huge pages.
 */
int memory_map_image(struct memory *memory, const struct memory_layer *layers, unsigned count,
                     struct error *err);

/* ---- Dirty log ---- */

/*
 * Fetches and clears dirty flags: bit n of bitmap is page n of [gpa,
 * gpa+size). The flags are always kept; the first fetch tells all pages ever
 * written. A page that a vCPU could write without a look at its flag when
 * the flags were cleared may be told once more by the next fetch. Returns the
 * number of dirty pages, or -EFAULT when not all RAM.
 *
 * A fetch that is to miss nothing of what was written until now comes when no vCPU runs, devices
 * are quiet, and each vCPU's state has been got (vcpu_get_state) since it stopped.
 */
int64_t memory_fetch_dirty(struct memory *memory, uint64_t gpa, uint64_t size, uint64_t *bitmap);

/*
 * Several may want to know at once (a snapshot since the last one, a migration): each has a log of
 * its own, which also hears of what others fetch. It begins empty: a fetch tells what was written
 * since it was opened, or fetched last. One thread a log. -ENOMEM.
 */
struct dirty_log;
int memory_dirty_log_open(struct memory *memory, struct dirty_log **log);
void memory_dirty_log_close(struct dirty_log *log);
int64_t memory_dirty_log_fetch(struct dirty_log *log, uint64_t gpa, uint64_t size,
                               uint64_t *bitmap);
/* The same of all pages of an image; -ENOMEM. */
int64_t memory_image_fetch_dirty(const struct memory *memory, struct dirty_log *log,
                                 uint64_t *bitmap);

#endif
