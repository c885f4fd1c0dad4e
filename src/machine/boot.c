/* Opens what is to be booted, chooses how, and lays it out in guest memory. */
#include "machine/boot.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/layout.h"
#include "memory/ahead.h"

struct boot {
    char *kernel_path, *initrd_path, *cmdline;
    int kernel_fd, initrd_fd;
    enum boot_protocol protocol;
    char description[160];
};

/* What one load puts together. */
struct load {
    struct memory *memory;
    enum boot_protocol protocol;
    struct boot_bytes kernel;
    uint8_t *head; /* owned: of what is being unpacked, until there is enough to tell what it is */
    size_t head_length;
    uint64_t unpacked; /* bytes that went into memory */
    bool is_bzimage;
    struct bzimage bzimage;
    struct elf_image elf;
    const char *packing;       /* NULL: the file was not packed */
    uint64_t entry, low, high; /* physical, what the kernel occupies until it has set itself up */
    uint64_t initrd_limit;     /* its last byte lies below */
    size_t cmdline_max;
    struct boot_info info;
};

/* ---- Files ---- */

static int open_file(const char *path, int *fd, struct error *err) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    struct stat status;
    if (fstat(*fd, &status) < 0)
        return error_set_errno(err, -errno, "%s", path);
    if (!S_ISREG(status.st_mode))
        return error_set(err, -ENOEXEC, "%s: not a regular file", path);
    return 0;
}

static int file_size(int fd, const char *path, uint64_t *size, struct error *err) {
    struct stat status;
    if (fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "%s", path);
    *size = (uint64_t)status.st_size;
    return 0;
}

/* Reads exactly length bytes: a file that shrank meanwhile is an error. */
static int read_exactly(int fd, const char *path, void *to, size_t length, uint64_t offset,
                        struct error *err) {
    uint8_t *p = to;
    while (length > 0) {
        ssize_t got = pread(fd, p, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set_errno(err, -errno, "%s", path);
        if (got == 0)
            return error_set(err, -ENOEXEC, "%s: it became shorter while it was read", path);
        p += got;
        offset += (uint64_t)got;
        length -= (size_t)got;
    }
    return 0;
}

static int read_kernel(const struct boot *boot, uint8_t **data, size_t *length, struct error *err) {
    uint64_t size = 0;
    int result = file_size(boot->kernel_fd, boot->kernel_path, &size, err);
    if (result < 0)
        return result;
    if (size == 0)
        return error_set(err, -ENOEXEC, "%s: the file is empty", boot->kernel_path);
    if (size > BOOT_FILE_MAX)
        return error_set(err, -E2BIG, "%s: %llu MiB is too large for a kernel", boot->kernel_path,
                         (unsigned long long)(size >> 20));
    *data = malloc(size);
    if (*data == NULL)
        return error_set(err, -ENOMEM, "%s: out of memory", boot->kernel_path);
    *length = size;
    result = read_exactly(boot->kernel_fd, boot->kernel_path, *data, size, 0, err);
    if (result < 0) {
        free(*data);
        *data = NULL;
    }
    return result;
}

int boot_open(const char *kernel, const char *initrd, const char *cmdline,
              enum boot_protocol protocol, struct boot **boot, struct error *err) {
    struct boot *b = calloc(1, sizeof *b);
    if (b == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    b->kernel_fd = b->initrd_fd = -1;
    b->protocol = protocol;
    b->kernel_path = strdup(kernel);
    b->initrd_path = initrd != NULL ? strdup(initrd) : NULL;
    b->cmdline = strdup(cmdline != NULL ? cmdline : "");
    int result = 0;
    if (b->kernel_path == NULL || b->cmdline == NULL || (initrd != NULL && b->initrd_path == NULL))
        result = error_set(err, -ENOMEM, "out of memory");
    if (result == 0 && (result = open_file(kernel, &b->kernel_fd, err)) < 0)
        error_prefix(err, "kernel");
    if (result == 0 && initrd != NULL && (result = open_file(initrd, &b->initrd_fd, err)) < 0)
        error_prefix(err, "initrd");
    if (result < 0) {
        boot_close(b);
        return result;
    }
    *boot = b;
    return 0;
}

void boot_close(struct boot *boot) {
    if (boot == NULL)
        return;
    if (boot->kernel_fd >= 0)
        close(boot->kernel_fd);
    if (boot->initrd_fd >= 0)
        close(boot->initrd_fd);
    free(boot->kernel_path);
    free(boot->initrd_path);
    free(boot->cmdline);
    free(boot);
}

const char *boot_describe(const struct boot *boot) {
    return boot->description;
}

/* ---- The machine's memory ---- */

static uint64_t low_ram_end(const struct memory *memory) {
    uint64_t size = memory_ram_size(memory);
    return size < LAYOUT_LOW_RAM_END ? size : LAYOUT_LOW_RAM_END;
}

unsigned boot_memory_map(const struct memory *memory, struct boot_range map[BOOT_MAP_MAX]) {
    uint64_t size = memory_ram_size(memory), low = low_ram_end(memory);
    unsigned n = 0;
    map[n++] = (struct boot_range){0, LAYOUT_CONVENTIONAL_END, BOOT_RAM};
    map[n++] = (struct boot_range){LAYOUT_CONVENTIONAL_END,
                                   LAYOUT_EXTENDED_BASE - LAYOUT_CONVENTIONAL_END, BOOT_RESERVED};
    map[n++] = (struct boot_range){LAYOUT_EXTENDED_BASE, low - LAYOUT_EXTENDED_BASE, BOOT_RAM};
    map[n++] = (struct boot_range){LAYOUT_ECAM_BASE, LAYOUT_ECAM_SIZE, BOOT_RESERVED};
    map[n++] = (struct boot_range){LAYOUT_CHIPS_BASE, LAYOUT_HIGH_RAM_BASE - LAYOUT_CHIPS_BASE,
                                   BOOT_RESERVED};
    if (size > low)
        map[n++] = (struct boot_range){LAYOUT_HIGH_RAM_BASE, size - low, BOOT_RAM};
    return n;
}

/* ---- Kernels ---- */

/* Names the memory that is missing, so that the user need not guess. */
static int check_fits(const struct load *load, struct error *err) {
    uint64_t end = low_ram_end(load->memory);
    if (load->low < LAYOUT_EXTENDED_BASE)
        return error_set(err, -ENOEXEC, "it wants to be loaded at %#llx, below 1 MiB",
                         (unsigned long long)load->low);
    if (load->high <= end)
        return 0;
    if (load->high > LAYOUT_LOW_RAM_END)
        return error_set(err, -ENOEXEC, "it wants to be loaded up to %#llx, above what is RAM",
                         (unsigned long long)load->high);
    return error_set(
        err, -E2BIG,
        "it needs memory up to %llu MiB and the machine has %llu MiB; use --memory %lluM or more",
        (unsigned long long)((load->high + MIB(1) - 1) >> 20), (unsigned long long)(end >> 20),
        (unsigned long long)((load->high + MIB(16)) >> 20));
}

static int load_bzimage(struct load *load, struct error *err) {
    enum { ENTRY_64 = 0x200 };
    const struct bzimage *image = &load->bzimage;
    if (!image->entry_64)
        return error_set(err, -ENOEXEC, "it has no 64-bit entry point (a 32-bit kernel?)");
    load->low = image->preferred;
    load->high = load->low + image->init_size;
    if (image->preferred > LAYOUT_LOW_RAM_END)
        return error_set(err, -ENOEXEC, "its header prefers an address above what is RAM");
    uint64_t kernel_size = image->file.length - image->setup_size;
    if (load->high < load->low + kernel_size)
        load->high = load->low + kernel_size;
    int result = check_fits(load, err);
    if (result < 0)
        return result;
    load->entry = load->low + ENTRY_64;
    if (memory_write(load->memory, load->low, image->file.data + image->setup_size, kernel_size))
        return error_set(err, -E2BIG, "it does not fit in the machine's memory");
    return 0;
}

static int find_entry(struct load *load, struct error *err) {
    const struct elf_image *elf = &load->elf;
    bool pvh = load->protocol == BOOT_PVH;
    if (pvh && !elf->has_pvh)
        return error_set(err, -ENOEXEC, "it has no PVH entry point");
    if (!pvh && !elf->is_64)
        return error_set(err, -ENOEXEC, "a 32-bit ELF file without PVH entry point");
    load->entry = pvh ? elf->pvh_entry : elf->entry;
    if (load->entry < load->low || load->entry >= load->high)
        return error_set(err, -ENOEXEC, "its entry point is outside of what it loads");
    return 0;
}

/* With the ELF file's headers known and nothing written. */
static int begin_elf(struct load *load, struct error *err) {
    load->low = load->elf.low;
    load->high = load->elf.high;
    int result = load->elf.notes.size == 0 ? find_entry(load, err) : 0;
    if (result == 0)
        result = check_fits(load, err);
    return result < 0 ? result : elf_clear(&load->elf, load->memory, err);
}

/* With all of it in memory. */
static int finish_elf(struct load *load, uint64_t size, struct error *err) {
    int result = elf_finish(&load->elf, size, load->memory, err);
    return result < 0 ? result : find_entry(load, err);
}

static int load_elf(struct load *load, struct error *err) {
    int result = elf_parse(load->kernel, load->kernel.length, &load->elf, err);
    if (result == 0 && load->protocol == BOOT_AUTO)
        load->protocol = load->elf.has_pvh ? BOOT_PVH : BOOT_ELF;
    if (result == 0)
        result = begin_elf(load, err);
    if (result == 0)
        result = elf_write(&load->elf, 0, load->kernel, load->memory, err);
    return result < 0 ? result : finish_elf(load, load->kernel.length, err);
}

/* While it is being unpacked, the memory where it will be gets ready, and that at the end of RAM
 * where it begins by describing each page: Linux's struct page has 64 bytes. */
static void expect_kernel(const struct load *load) {
    enum { PAGE_DESCRIBED_BY = 64 };
    const struct bzimage *image = &load->bzimage;
    uint64_t size = memory_ram_size(load->memory), low = low_ram_end(load->memory);
    uint64_t end = size > low ? LAYOUT_HIGH_RAM_BASE + (size - low) : low;
    uint64_t pages = size / (PAGE_SIZE / PAGE_DESCRIBED_BY);
    if (image->preferred < low && image->init_size < low - image->preferred)
        memory_ahead_expect(load->memory, image->preferred, image->init_size);
    if (pages <= AHEAD_EXPECTED_MOST / 2)
        memory_ahead_expect(load->memory, end - pages, pages);
}

/* Its headers lie in there: Linux's are at the file's very begin. */
enum { HEAD_SIZE = 64 << 10 };

static int take_head(struct load *load, struct error *err) {
    struct boot_bytes head = {load->head, load->head_length};
    if (!elf_recognise(head))
        return error_set(err, -ENOEXEC, "what it has packed is no ELF file");
    int result = elf_parse(head, BOOT_UNPACKED_MAX, &load->elf, err);
    if (result == 0)
        result = begin_elf(load, err);
    if (result == 0)
        result = elf_write(&load->elf, 0, head, load->memory, err);
    load->unpacked = head.length;
    return result;
}

/* Straight into guest memory, except for the headers: they say where it goes. */
static int take_unpacked(void *context, const uint8_t *data, size_t length, struct error *err) {
    struct load *load = context;
    if (load->unpacked == 0) {
        size_t room = HEAD_SIZE - load->head_length, used = length < room ? length : room;
        memcpy(load->head + load->head_length, data, used);
        load->head_length += used;
        data += used;
        length -= used;
        int result = load->head_length == HEAD_SIZE ? take_head(load, err) : 0;
        if (result < 0)
            return result;
    }
    struct boot_bytes bytes = {data, length};
    int result = length > 0 ? elf_write(&load->elf, load->unpacked, bytes, load->memory, err) : 0;
    load->unpacked += length;
    return result;
}

static int unpack_elf(struct load *load, struct error *err) {
    enum boot_protocol asked = load->protocol;
    load->head = malloc(HEAD_SIZE);
    if (load->head == NULL)
        return error_set(err, -ENOMEM, "out of memory while unpacking the kernel");
    if (asked == BOOT_AUTO)
        load->protocol = BOOT_ELF;
    expect_kernel(load);
    int result = payload_unpack(load->bzimage.payload, take_unpacked, load, &load->packing, err);
    if (result == -ENOTSUP && asked == BOOT_AUTO) {
        load->protocol = BOOT_BZIMAGE;
        return load_bzimage(load, err);
    }
    if (result == 0 && load->unpacked == 0)
        result = take_head(load, err);
    return result < 0 ? result : finish_elf(load, load->unpacked, err);
}

static int load_kernel(struct load *load, struct error *err) {
    load->initrd_limit = INT32_MAX;
    load->cmdline_max = LAYOUT_BOOT_CMDLINE_MAX - 1;
    if (bzimage_recognise(load->kernel)) {
        int result = bzimage_parse(load->kernel, &load->bzimage, err);
        if (result < 0)
            return result;
        load->is_bzimage = true;
        load->initrd_limit = (uint64_t)load->bzimage.initrd_max + 1;
        load->cmdline_max = load->bzimage.cmdline_max;
        /* Unless it is to unpack itself. */
        return load->protocol == BOOT_BZIMAGE ? load_bzimage(load, err) : unpack_elf(load, err);
    }
    if (!elf_recognise(load->kernel))
        return error_set(err, -ENOEXEC, "neither a Linux bzImage nor an ELF file");
    if (load->protocol == BOOT_BZIMAGE)
        return error_set(err, -ENOEXEC, "an ELF file, not a bzImage");
    return load_elf(load, err);
}

/* ---- Command line and initrd ---- */

static int load_cmdline(struct load *load, const char *cmdline, struct error *err) {
    size_t length = strlen(cmdline);
    size_t most = load->cmdline_max < LAYOUT_BOOT_CMDLINE_MAX ? load->cmdline_max
                                                              : LAYOUT_BOOT_CMDLINE_MAX - 1;
    if (length > most)
        return error_set(
            err, -E2BIG,
            "the command line has %zu characters, this kernel takes %zu; shorten --append", length,
            most);
    load->info.cmdline_size = length;
    if (memory_write(load->memory, LAYOUT_BOOT_CMDLINE, cmdline, length + 1) < 0)
        return error_set(err, -E2BIG, "the command line does not fit in the machine's memory");
    return 0;
}

/* As high as it may be, so that it is out of the way of an unpacking kernel. */
static int place_initrd(struct load *load, uint64_t size, struct error *err) {
    uint64_t end = low_ram_end(load->memory);
    if (end > load->initrd_limit)
        end = load->initrd_limit;
    uint64_t first = round_up(load->high, PAGE_SIZE);
    if (first > end || size > end - first || round_down(end - size, PAGE_SIZE) < first)
        return error_set(
            err, -E2BIG,
            "initrd: it has %llu KiB, and %llu KiB are free in memory above the kernel; "
            "use a larger --memory",
            (unsigned long long)((size + 1023) >> 10),
            (unsigned long long)(first > end ? 0 : (end - first) >> 10));
    load->info.initrd = round_down(end - size, PAGE_SIZE);
    load->info.initrd_size = size;
    return 0;
}

static int read_initrd(const struct boot *boot, const struct load *load, struct error *err) {
    uint64_t done = 0;
    while (done < load->info.initrd_size) {
        size_t length = load->info.initrd_size - done;
        void *to = memory_map(load->memory, load->info.initrd + done, &length, true);
        if (to == NULL)
            return error_set(err, -E2BIG, "initrd: it does not fit in the machine's memory");
        int result = read_exactly(boot->initrd_fd, boot->initrd_path, to, length, done, err);
        memory_unmap(load->memory, load->info.initrd + done, length);
        if (result < 0)
            return result;
        done += length;
    }
    return 0;
}

static int load_initrd(const struct boot *boot, struct load *load, struct error *err) {
    if (boot->initrd_fd < 0)
        return 0;
    uint64_t size = 0;
    int result = file_size(boot->initrd_fd, boot->initrd_path, &size, err);
    if (result == 0 && size == 0)
        result = error_set(err, -ENOEXEC, "%s: the file is empty", boot->initrd_path);
    if (result == 0)
        result = place_initrd(load, size, err);
    return result < 0 ? result : read_initrd(boot, load, err);
}

/* ---- Together ---- */

/* As firmware leaves them: everything write-back. */
static void set_memory_types(struct x86_state *state) {
    enum { WRITE_BACK = 6, ENABLED = 0xc00 };
    state->mtrr_def_type = ENABLED | WRITE_BACK;
    for (size_t i = 0; i < ARRAY_SIZE(state->mtrr_fixed); i++)
        state->mtrr_fixed[i] = UINT64_C(0x0101010101010101) * WRITE_BACK;
}

static int prepare(struct load *load, struct x86_state *state, struct error *err) {
    set_memory_types(state);
    if (load->protocol == BOOT_PVH)
        return pvh_prepare(load->memory, &load->info, load->entry, state, err);
    return linux_prepare(load->memory, load->is_bzimage ? &load->bzimage : NULL, &load->info,
                         load->entry, state, err);
}

static void describe(struct boot *boot, const struct load *load) {
    static const char *const entries[] = {[BOOT_BZIMAGE] = "bzImage, 64-bit entry",
                                          [BOOT_ELF] = "ELF, 64-bit entry",
                                          [BOOT_PVH] = "ELF, PVH entry"};
    int used = snprintf(boot->description, sizeof boot->description, "%s at %#llx",
                        entries[load->protocol], (unsigned long long)load->entry);
    if (load->packing != NULL)
        snprintf(boot->description + used, sizeof boot->description - (size_t)used,
                 ", unpacked (%s) by lodge", load->packing);
}

int boot_load(struct boot *boot, struct memory *memory, uint64_t rsdp, struct x86_state *state,
              struct error *err) {
    struct load load = {.memory = memory, .protocol = boot->protocol, .info.rsdp = rsdp};
    uint8_t *data = NULL;
    int result = read_kernel(boot, &data, &load.kernel.length, err);
    load.kernel.data = data;
    if (result < 0)
        return error_prefix(err, "kernel");
    if ((result = load_kernel(&load, err)) < 0)
        error_prefix(err, "kernel: %s", boot->kernel_path);
    else if ((result = load_cmdline(&load, boot->cmdline, err)) == 0 &&
             (result = load_initrd(boot, &load, err)) == 0)
        result = prepare(&load, state, err);
    if (result == 0)
        describe(boot, &load);
    free(load.head);
    free(data);
    return result;
}

int boot_load_bytes(struct boot_bytes kernel, enum boot_protocol protocol, struct memory *memory,
                    struct x86_state *state, struct error *err) {
    struct load load = {.memory = memory, .protocol = protocol, .kernel = kernel};
    int result = load_kernel(&load, err);
    if (result == 0)
        result = load_cmdline(&load, "", err);
    if (result == 0)
        result = prepare(&load, state, err);
    free(load.head);
    return result;
}
