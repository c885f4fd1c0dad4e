#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "memory/dma.h"
#include "memory/memory.h"

#define RAM_SIZE MIB(1)
#define HIGH     GIB(4)

struct fixture {
    struct memory *memory;
    int ram_added, changed, code_written, dirty_cleared;
    uint64_t gpa;
    uint64_t size;
    /* the last access of an I/O region */
    int reads, writes;
    uint64_t offset, value;
    unsigned access_size;
};

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){0};
    *state = &f;
    if (memory_create(&f.memory, NULL) < 0)
        return -1;
    if (memory_add_ram(f.memory, "low", 0, RAM_SIZE, NULL) < 0)
        return -1;
    if (memory_add_ram(f.memory, "next", RAM_SIZE, RAM_SIZE, NULL) < 0)
        return -1;
    return memory_add_ram(f.memory, "high", HIGH, RAM_SIZE, NULL);
}

static int teardown(void **state) {
    memory_destroy(((struct fixture *)*state)->memory);
    return 0;
}

static uint64_t io_read(void *context, uint64_t offset, unsigned size) {
    struct fixture *f = context;
    f->reads++;
    f->offset = offset;
    f->access_size = size;
    return UINT64_C(0x8877665544332211) + offset;
}

static void io_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct fixture *f = context;
    f->writes++;
    f->offset = offset;
    f->value = value;
    f->access_size = size;
}

static const struct io_ops io = {io_read, io_write};

static uint64_t other_read(void *context, uint64_t offset, unsigned size) {
    return 0x55;
}

static const struct io_ops other_io = {other_read, io_write};

/* ---- Regions ---- */

static void bad_regions_are_refused(void **state) {
    struct fixture *f = *state;
    struct error err;
    assert_int_equal(memory_add_ram(f->memory, "x", MIB(4), 0, &err), -EINVAL);
    assert_int_equal(memory_add_ram(f->memory, "x", MIB(4) + 1, PAGE_SIZE, &err), -EINVAL);
    assert_int_equal(memory_add_ram(f->memory, "x", MIB(4), PAGE_SIZE + 1, &err), -EINVAL);
    assert_int_equal(memory_add_ram(f->memory, "x", ~UINT64_C(0xfff), MIB(1), &err), -EINVAL);
    assert_int_equal(memory_add_ram(f->memory, "x", MIB(4), UINT64_C(1) << 52, &err), -EINVAL);
    assert_int_equal(memory_add_ram(f->memory, "x", RAM_SIZE, PAGE_SIZE, &err), -EEXIST);
    assert_int_equal(memory_add_ram(f->memory, "x", HIGH - PAGE_SIZE, MIB(8), &err), -EEXIST);
    assert_non_null(strstr(err.text, "high"));
    assert_true(memory_ram_size(f->memory) == 3 * RAM_SIZE);
}

static void rom(void **state) {
    struct fixture *f = *state;
    char text[6];
    size_t length = 4;
    struct mem_page page;
    assert_int_equal(memory_add_rom(f->memory, "rom", MIB(8), PAGE_SIZE, "hello", 6, NULL), 0);
    assert_int_equal(memory_add_rom(f->memory, "rom", MIB(9), PAGE_SIZE, text, 5000, NULL),
                     -EINVAL);
    assert_int_equal(memory_read(f->memory, MIB(8), text, 6), 0);
    assert_string_equal(text, "hello");
    assert_int_equal(memory_write(f->memory, MIB(8), text, 1), -EFAULT);
    assert_null(memory_map(f->memory, MIB(8), &length, false));
    view_page(memory_default_view(f->memory), MIB(8) + 5, &page);
    assert_int_equal(page.rights, MEM_READ | MEM_EXECUTE);
    assert_true(page.rom);
    assert_true(memory_ram_size(f->memory) == 3 * RAM_SIZE);
}

/* ---- The gate ---- */

/* Flash: ROM under a region that takes its writes, or all. */
static void rom_under_a_device(void **state) {
    struct fixture *f = *state;
    struct io_region *region;
    struct mem_page page;
    char text[6];
    assert_int_equal(memory_add_rom(f->memory, "flash", MIB(8), PAGE_SIZE, "hello", 6, NULL), 0);
    assert_int_equal(memory_add_io(f->memory, "flash", MIB(8), PAGE_SIZE, &io, f, &region, NULL),
                     0);
    assert_int_equal(memory_read(f->memory, MIB(8), text, 6), -EFAULT);
    memory_io_writes_only(region, true);
    assert_int_equal(memory_read(f->memory, MIB(8), text, 6), 0);
    assert_string_equal(text, "hello");
    view_page(memory_default_view(f->memory), MIB(8), &page);
    assert_true(page.host != NULL && page.rom);
    memory_io_write(f->memory, MIB(8) + 3, 0x42, 1);
    assert_int_equal(f->writes, 1);
    assert_int_equal(f->offset, 3);
    assert_int_equal(memory_load(f->memory, MIB(8), "J", 1), 0);
    assert_int_equal(memory_read(f->memory, MIB(8), text, 6), 0);
    assert_string_equal(text, "Jello");
    memory_io_writes_only(region, false);
    view_page(memory_default_view(f->memory), MIB(8), &page);
    assert_null(page.host);
}

static void readonly_ram(void **state) {
    struct fixture *f = *state;
    struct mem_page page;
    size_t length = 3 * PAGE_SIZE;
    assert_int_equal(memory_write(f->memory, PAGE_SIZE, "was", 4), 0);
    memory_set_readonly(f->memory, PAGE_SIZE, PAGE_SIZE, true);
    assert_int_equal(memory_write(f->memory, PAGE_SIZE, "new", 4), -EFAULT);
    assert_int_equal(memory_write(f->memory, PAGE_SIZE - 1, "new", 2), -EFAULT);
    assert_non_null(memory_map(f->memory, 0, &length, true));
    assert_int_equal(length, PAGE_SIZE);
    length = 3 * PAGE_SIZE;
    assert_non_null(memory_map(f->memory, 0, &length, false));
    assert_int_equal(length, 3 * PAGE_SIZE);
    view_page(memory_default_view(f->memory), PAGE_SIZE, &page);
    assert_true(page.rom);
    assert_int_equal(page.rights, MEM_READ | MEM_EXECUTE);
    assert_int_equal(memory_load(f->memory, PAGE_SIZE, "new", 4), 0);
    assert_string_equal((char *)page.host, "new");
    memory_set_readonly(f->memory, 0, 2 * RAM_SIZE + PAGE_SIZE, false);
    assert_int_equal(memory_write(f->memory, PAGE_SIZE, "own", 4), 0);
    assert_int_equal(memory_load(f->memory, 2 * RAM_SIZE - 1, "xy", 2), -EFAULT);
}

static void gate_copies_across_regions(void **state) {
    struct fixture *f = *state;
    char out[64], in[64];
    for (int i = 0; i < 64; i++)
        in[i] = (char)i;
    assert_int_equal(memory_write(f->memory, RAM_SIZE - 32, in, 64), 0);
    assert_int_equal(memory_read(f->memory, RAM_SIZE - 32, out, 64), 0);
    assert_memory_equal(in, out, 64);
    for (size_t n = 0; n <= 16; n++) {
        for (uint64_t at = 0; at < 8; at++) {
            assert_int_equal(memory_write(f->memory, 0x100 + at, in + 1, n), 0);
            memset(out, 0, sizeof out);
            assert_int_equal(memory_read(f->memory, 0x100 + at, out, n), 0);
            assert_memory_equal(in + 1, out, n);
        }
    }
}

static void gate_is_all_or_nothing(void **state) {
    struct fixture *f = *state;
    uint8_t bytes[64];
    memset(bytes, 0xcc, sizeof bytes);
    assert_int_equal(memory_write(f->memory, HIGH + RAM_SIZE - 32, bytes, 64), -EFAULT);
    assert_int_equal(memory_read(f->memory, HIGH + RAM_SIZE - 32, bytes, 32), 0);
    for (int i = 0; i < 32; i++)
        assert_int_equal(bytes[i], 0);
    memset(bytes, 0xcc, sizeof bytes);
    assert_int_equal(memory_read(f->memory, HIGH - 32, bytes, 64), -EFAULT);
    assert_int_equal(memory_read(f->memory, HIGH + RAM_SIZE - 1, bytes, 2), -EFAULT);
    assert_int_equal(bytes[0], 0xcc);
    assert_int_equal(memory_read(f->memory, UINT64_MAX, bytes, 64), -EFAULT);
    assert_int_equal(memory_read(f->memory, UINT64_MAX - 31, bytes, 64), -EFAULT);
    assert_int_equal(memory_read(f->memory, 0, bytes, SIZE_MAX), -EFAULT);
    assert_int_equal(memory_read(f->memory, UINT64_MAX, bytes, 0), 0);
}

static void mapping(void **state) {
    struct fixture *f = *state;
    size_t length = 2 * RAM_SIZE;
    uint8_t *p = memory_map(f->memory, RAM_SIZE / 2, &length, true);
    assert_non_null(p);
    assert_int_equal(length, RAM_SIZE / 2);
    p[length - 1] = 7;
    memory_unmap(f->memory, RAM_SIZE / 2, length);
    uint8_t byte;
    memory_read(f->memory, RAM_SIZE - 1, &byte, 1);
    assert_int_equal(byte, 7);
    length = SIZE_MAX;
    assert_non_null(memory_map(f->memory, HIGH + RAM_SIZE - 1, &length, false));
    assert_int_equal(length, 1);
    length = 1;
    assert_null(memory_map(f->memory, HIGH + RAM_SIZE, &length, false));
    length = 0;
    assert_null(memory_map(f->memory, 0, &length, false));
    memory_unmap(f->memory, UINT64_MAX, SIZE_MAX);
    memory_unmap(f->memory, HIGH + RAM_SIZE - 1, SIZE_MAX);
}

/* ---- I/O ---- */

static void io_regions(void **state) {
    struct fixture *f = *state;
    struct io_region *region;
    uint64_t at = GIB(3);
    assert_int_equal(memory_add_io(f->memory, "dev", at, 0x100, &io, f, &region, NULL), 0);
    assert_int_equal(memory_io_read(f->memory, at + 4, 4), 0x44332215);
    assert_int_equal(f->offset, 4);
    assert_int_equal(f->access_size, 4);
    memory_io_write(f->memory, at + 8, UINT64_MAX, 2);
    assert_int_equal(f->value, 0xffff);
    /* Nobody there. */
    assert_true(memory_io_read(f->memory, at + 0x100, 8) == UINT64_MAX);
    assert_int_equal(memory_io_read(f->memory, at - 1, 1), 0xff);
    memory_io_write(f->memory, at + 0x100, 1, 8);
    assert_int_equal(f->writes, 1);
    /* Straddling either end: the region sees only its bytes. */
    assert_int_equal(memory_io_read(f->memory, at + 0xfe, 4), 0xffff100f);
    f->reads = 0;
    assert_int_equal(memory_io_read(f->memory, at - 2, 4), 0x1211ffff);
    assert_int_equal(f->reads, 2);
    memory_move_io(region, at, false);
    assert_int_equal(memory_io_read(f->memory, at, 4), 0xffffffff);
    memory_move_io(region, at + 0x1000, true);
    assert_int_equal(memory_io_read(f->memory, at + 0x1000, 1), 0x11);
    memory_remove_io(region);
    assert_int_equal(memory_io_read(f->memory, at + 0x1000, 1), 0xff);
}

static void the_latest_io_region_wins(void **state) {
    struct fixture *f = *state;
    struct io_region *first, *second;
    memory_add_io(f->memory, "a", GIB(3), 0x1000, &io, f, &first, NULL);
    memory_add_io(f->memory, "b", GIB(3) + 0x10, 0x10, &other_io, f, &second, NULL);
    assert_int_equal(memory_io_read(f->memory, GIB(3) + 0x10, 1), 0x55);
    assert_int_equal(memory_io_read(f->memory, GIB(3) + 0x20, 1), 0x31);
    memory_remove_io(second);
    assert_int_equal(memory_io_read(f->memory, GIB(3) + 0x10, 1), 0x21);
    memory_remove_io(first);
    assert_int_equal(memory_add_io(f->memory, "c", UINT64_MAX, 2, &io, f, &first, NULL), -EINVAL);
    assert_int_equal(memory_add_io(f->memory, "c", 0, 0, &io, f, &first, NULL), -EINVAL);
}

static void io_hides_whole_pages_of_ram(void **state) {
    struct fixture *f = *state;
    struct view *view = memory_default_view(f->memory);
    struct io_region *region;
    struct mem_page page;
    uint32_t word = 1;
    size_t length = PAGE_SIZE * 4;
    /* Half of page 1, all of 2, half of 3. */
    memory_add_io(f->memory, "over", 0x1800, 0x2000, &io, f, &region, NULL);
    view_page(view, 0x1800, &page);
    assert_non_null(page.host);
    view_page(view, 0x2000, &page);
    assert_null(page.host);
    assert_int_equal(page.rights, MEM_ALL);
    view_page(view, 0x3000, &page);
    assert_non_null(page.host);
    assert_int_equal(memory_write(f->memory, 0x2000, &word, 4), -EFAULT);
    assert_int_equal(memory_write(f->memory, 0x1ffe, &word, 4), -EFAULT);
    assert_int_equal(memory_write(f->memory, 0x1ffc, &word, 4), 0);
    assert_non_null(memory_map(f->memory, 0x1000, &length, false));
    assert_int_equal(length, PAGE_SIZE);
    memory_move_io(region, UINT64_MAX - 0xff, true); /* runs past the end of the world */
    assert_int_equal(memory_write(f->memory, 0x2000, &word, 4), 0);
    memory_move_io(region, 0x2000, false);
    assert_int_equal(memory_write(f->memory, 0x2000, &word, 4), 0);
    memory_move_io(region, 0x2000, true);
    assert_int_equal(memory_write(f->memory, 0x3ffc, &word, 4), -EFAULT);
    memory_remove_io(region);
    assert_int_equal(memory_write(f->memory, 0x3ffc, &word, 4), 0);
}

/* ---- Listeners, code, dirty ---- */

static void on_ram(void *context, uint64_t gpa, uint64_t size, void *host, bool readonly) {
    ((struct fixture *)context)->ram_added++;
}

static void on_changed(void *context, const struct view *view, uint64_t gpa, uint64_t size) {
    struct fixture *f = context;
    f->changed++;
    f->gpa = gpa;
    f->size = size;
}

static void on_code(void *context, uint64_t gpa, size_t length) {
    struct fixture *f = context;
    f->code_written++;
    f->gpa = gpa;
    f->size = length;
}

static void on_cleared(void *context) {
    ((struct fixture *)context)->dirty_cleared++;
}

static void listeners_hear(void **state) {
    struct fixture *f = *state;
    const struct memory_listener listener = {on_ram, on_changed, on_code, on_cleared, NULL, f};
    struct io_region *region;
    struct mem_page page;
    uint64_t word = 0;
    assert_int_equal(memory_add_listener(f->memory, &listener), 0);
    assert_int_equal(f->ram_added, 3);
    memory_add_ram(f->memory, "more", MIB(16), MIB(1), NULL);
    assert_int_equal(f->ram_added, 4);
    f->changed = 0;
    memory_add_io(f->memory, "dev", GIB(3), 0x1000, &io, f, &region, NULL);
    assert_int_equal(f->changed, 1);
    memory_move_io(region, GIB(3) + 0x5000, true);
    assert_int_equal(f->changed, 3);
    assert_true(f->gpa == GIB(3) + 0x5000);

    view_page(memory_default_view(f->memory), 0x5000, &page);
    memory_write(f->memory, 0x4ffc, &word, 8);
    assert_int_equal(f->code_written, 0);
    atomic_fetch_or(page.flags, MEM_PAGE_CODE);
    memory_write(f->memory, 0x4ffc, &word, 8);
    assert_int_equal(f->code_written, 1);
    assert_int_equal(f->gpa, 0x5000);
    assert_int_equal(f->size, 4);

    uint64_t bitmap[2];
    assert_int_equal(memory_fetch_dirty(f->memory, 0, 66 * PAGE_SIZE, bitmap), 2);
    assert_int_equal(bitmap[0], 0x30);
    assert_int_equal(bitmap[1], 0);
    assert_int_equal(f->dirty_cleared, 1);
    assert_int_equal(memory_fetch_dirty(f->memory, 0, 66 * PAGE_SIZE, bitmap), 0);
    assert_int_equal(f->dirty_cleared, 1);
    assert_int_equal(memory_fetch_dirty(f->memory, 0, GIB(4), bitmap), -EFAULT);
    assert_int_equal(memory_fetch_dirty(f->memory, 1, PAGE_SIZE, bitmap), -EFAULT);

    memory_remove_listener(f->memory, &listener);
    memory_remove_io(region);
    assert_int_equal(f->changed, 3);
}

/* ---- Views ---- */

static void views(void **state) {
    struct fixture *f = *state;
    struct view *view;
    struct mem_page page, identity;
    assert_int_equal(view_create(f->memory, "guard", &view, NULL), 0);
    assert_string_equal(view_name(view), "guard");
    assert_ptr_equal(view_memory(view), f->memory);
    view_page(view, 0x3123, &page);
    view_page(memory_default_view(f->memory), 0x3000, &identity);
    assert_ptr_equal(page.host, identity.host);
    assert_int_equal(page.rights, MEM_ALL);
    assert_int_equal(page.region_gpa, 0x3000);

    assert_int_equal(view_protect(view, 0x3000, 0x2000, MEM_READ), 0);
    view_page(view, 0x4000, &page);
    assert_int_equal(page.rights, MEM_READ);
    view_page(view, 0x5000, &page);
    assert_int_equal(page.rights, MEM_ALL);
    view_page(memory_default_view(f->memory), 0x4000, &page);
    assert_int_equal(page.rights, MEM_ALL);

    assert_int_equal(view_remap(view, 0x4000, HIGH + 0x1000), 0);
    view_page(view, 0x4fff, &page);
    assert_true(page.region_gpa == HIGH + 0x1000);
    assert_int_equal(page.rights, MEM_READ);
    assert_int_equal(view_protect(view, 0x4000, 0x1000, 0), 0);
    view_page(view, 0x4fff, &page);
    assert_true(page.region_gpa == HIGH + 0x1000);
    assert_int_equal(page.rights, 0);
    view_restore(view, 0x3000, 0x2000);
    view_page(view, 0x4000, &page);
    assert_int_equal(page.region_gpa, 0x4000);
    assert_int_equal(page.rights, MEM_ALL);

    assert_int_equal(view_remap(view, 0x4000, GIB(3)), -EFAULT);
    assert_int_equal(view_remap(view, 0x4001, 0), -EINVAL);
    assert_int_equal(view_protect(view, 0x4000, 1, 0), -EINVAL);
    assert_int_equal(view_protect(view, 0x4000, 0x1000, 8), -EINVAL);
    assert_int_equal(view_protect(view, ~UINT64_C(0xfff), 0x2000, 0), -EINVAL);
    assert_int_equal(view_protect(memory_default_view(f->memory), 0, 0x1000, 0), -EINVAL);
    view_page(view, UINT64_MAX, &page);
    assert_null(page.host);
    view_destroy(view);
}

/* ---- DMA ---- */

/* An IOMMU that swaps neighbouring pages and refuses addresses from 64 KiB on. */
static int swap_pages(void *iommu, uint16_t requester, uint64_t iova, bool write, uint64_t *gpa,
                      size_t *length) {
    if (iova >= 0x10000)
        return -EFAULT;
    *gpa = iova ^ PAGE_SIZE;
    size_t left = PAGE_SIZE - (iova & (PAGE_SIZE - 1));
    if (*length > left)
        *length = left;
    return 0;
}

static void dma(void **state) {
    struct fixture *f = *state;
    struct dma_context plain = {.memory = f->memory};
    struct dma_context swapped = {.memory = f->memory, .translate = swap_pages};
    char text[16];
    size_t length = 2 * PAGE_SIZE;
    assert_int_equal(dma_write(&plain, 0x1ff8, "0123456789abcde", 16), 0);
    assert_int_equal(dma_read(&plain, 0x1ff8, text, 16), 0);
    assert_string_equal(text, "0123456789abcde");
    assert_int_equal(dma_write(&swapped, 0x2ff8, "0123456789abcde", 16), 0);
    assert_int_equal(memory_read(f->memory, 0x3ff8, text, 8), 0);
    assert_memory_equal(text, "01234567", 8);
    assert_int_equal(memory_read(f->memory, 0x2000, text, 8), 0);
    assert_memory_equal(text, "89abcde", 8);
    assert_int_equal(dma_read(&swapped, 0x2ff8, text, 16), 0);
    assert_string_equal(text, "0123456789abcde");
    /* Refused at its second page: nothing is written to the first. */
    assert_int_equal(dma_write(&swapped, 0xfff8, "0123456789abcde", 16), -EFAULT);
    assert_int_equal(memory_read(f->memory, 0xeff8, text, 1), 0);
    assert_int_equal(text[0], 0);
    assert_non_null(dma_map(&swapped, 0x2000, &length, true));
    assert_int_equal(length, PAGE_SIZE);
    uint64_t bitmap[1];
    memory_fetch_dirty(f->memory, 0, 0x10000, bitmap);
    dma_unmap(&swapped, 0x2000, 1);
    assert_int_equal(memory_fetch_dirty(f->memory, 0, 0x10000, bitmap), 1);
    assert_int_equal(bitmap[0], 1 << 3);
}

/* Each log tells what was written since it was opened or asked, whoever took the flags down. */
static void dirty_logs_are_independent(void **state) {
    struct fixture *f = *state;
    struct dirty_log *first, *second;
    uint64_t bitmap[8], a = RAM_SIZE - 1;
    assert_int_equal(memory_write(f->memory, 0, &a, 1), 0);
    assert_int_equal(memory_dirty_log_open(f->memory, &first), 0);
    assert_int_equal(memory_dirty_log_fetch(first, 0, 2 * RAM_SIZE, bitmap), 0);
    assert_int_equal(memory_write(f->memory, a, &a, 2), 0); /* in two regions */
    assert_int_equal(memory_fetch_dirty(f->memory, 0, 2 * RAM_SIZE, bitmap), 2);
    assert_int_equal(memory_dirty_log_open(f->memory, &second), 0);
    assert_int_equal(memory_write(f->memory, 0x3000, &a, 1), 0);
    assert_int_equal(memory_dirty_log_fetch(second, 0x3000, PAGE_SIZE, bitmap), 1);
    assert_int_equal(memory_dirty_log_fetch(second, 0, 2 * RAM_SIZE, bitmap), 0);
    assert_int_equal(memory_dirty_log_fetch(first, 0, 2 * RAM_SIZE, bitmap), 3);
    uint64_t page = a >> PAGE_SHIFT;
    assert_int_equal(bitmap[0] & 0xf, 8);
    assert_true(bitmap[page / 64] >> page % 64 & 1);
    assert_true(bitmap[(page + 1) / 64] >> (page + 1) % 64 & 1);
    assert_int_equal(memory_dirty_log_fetch(first, 0, 2 * RAM_SIZE, bitmap), 0);
    assert_int_equal(memory_dirty_log_fetch(first, 0, UINT64_C(1) << 40, bitmap), -EFAULT);
    memory_dirty_log_close(second);
    assert_int_equal(memory_write(f->memory, 0x5000, &a, 1), 0);
    assert_int_equal(memory_dirty_log_fetch(first, 0x4000, 2 * PAGE_SIZE, bitmap), 1);
    assert_int_equal(bitmap[0], 2);
    memory_dirty_log_close(first);
}

/* ---- What stands behind RAM ---- */

static bool is_zero(struct fixture *f, uint64_t gpa) {
    uint8_t byte = 1;
    assert_int_equal(memory_read(f->memory, gpa, &byte, 1), 0);
    return byte == 0;
}

static void fill(struct fixture *f, uint64_t gpa, uint64_t size) {
    static uint8_t ones[PAGE_SIZE];
    memset(ones, 1, sizeof ones);
    for (uint64_t at = 0; at < size; at += PAGE_SIZE)
        assert_int_equal(memory_write(f->memory, gpa + at, ones, PAGE_SIZE), 0);
}

static void discarded_pages_are_zero(void **state) {
    struct fixture *f = *state;
    uint64_t resident = memory_resident(f->memory), bitmap[8];
    fill(f, 0, 2 * RAM_SIZE);
    assert_true(memory_resident(f->memory) >= resident + 2 * RAM_SIZE);
    memory_fetch_dirty(f->memory, 0, 0x200000, bitmap);
    /* Whole pages within, across two regions; what an end cuts stays. */
    assert_true(memory_discard(f->memory, RAM_SIZE - 0x1800, 0x4000) == 0x3000);
    assert_false(is_zero(f, RAM_SIZE - 0x1001));
    assert_true(is_zero(f, RAM_SIZE - 0x1000) && is_zero(f, RAM_SIZE) &&
                is_zero(f, RAM_SIZE + 0x1fff));
    assert_false(is_zero(f, RAM_SIZE + 0x2000));
    assert_int_equal(memory_fetch_dirty(f->memory, 0, 0x200000, bitmap), 3);
    assert_true(memory_discard(f->memory, 0, UINT64_C(1) << 52) == 3 * RAM_SIZE);
    assert_true(memory_resident(f->memory) < RAM_SIZE);
    fill(f, 0, PAGE_SIZE);
    assert_false(is_zero(f, 0));
}

static void what_is_no_plain_ram_is_not_discarded(void **state) {
    struct fixture *f = *state;
    struct io_region *region;
    assert_int_equal(memory_add_rom(f->memory, "rom", MIB(8), PAGE_SIZE, "hello", 6, NULL), 0);
    fill(f, 0, 0x4000);
    memory_set_readonly(f->memory, 0x1000, 0x1000, true);
    assert_int_equal(memory_add_io(f->memory, "bar", 0x2000, 0x1000, &io, f, &region, NULL), 0);
    assert_true(memory_discard(f->memory, MIB(8), PAGE_SIZE) == 0);
    assert_true(memory_discard(f->memory, 0, 0x4000) == 0x2000);
    memory_remove_io(region);
    assert_true(is_zero(f, 0) && is_zero(f, 0x3000));
    assert_false(is_zero(f, 0x1000) || is_zero(f, 0x2000) || is_zero(f, MIB(8)));
    assert_true(memory_discard(f->memory, MIB(4), MIB(1)) == 0);
    assert_true(memory_discard(f->memory, UINT64_MAX - 1, PAGE_SIZE) == 0);
    assert_true(memory_discard(f->memory, 0x1000, UINT64_MAX) == 0);
    assert_true(memory_discard(f->memory, 0, 0) == 0);
}

static void discarded_code_is_told(void **state) {
    struct fixture *f = *state;
    const struct memory_listener listener = {.code_written = on_code, .context = f};
    fill(f, 0, 0x3000);
    assert_int_equal(memory_add_listener(f->memory, &listener), 0);
    memory_watch(f->memory, 0x1000, 0);
    memory_discard(f->memory, 0, 0x3000);
    assert_int_equal(f->code_written, 1);
    assert_int_equal(f->gpa, 0x1000);
    memory_unwatch(f->memory, 0x1000, 0);
    memory_remove_listener(f->memory, &listener);
}

static void pluggable_memory_comes_and_goes(void **state) {
    struct fixture *f = *state;
    const struct memory_listener listener = {NULL, on_changed, on_code, NULL, NULL, f};
    struct mem_page page;
    size_t length = 8;
    uint64_t base = GIB(8), word = 1, ram = memory_ram_size(f->memory);
    assert_int_equal(memory_add_pluggable(f->memory, "plug", base, MIB(8), NULL), 0);
    assert_true(memory_ram_size(f->memory) == ram);
    assert_int_equal(memory_add_listener(f->memory, &listener), 0);
    assert_int_equal(memory_write(f->memory, base, &word, 8), -EFAULT);
    assert_null(memory_map(f->memory, base, &length, false));
    assert_true(memory_io_read(f->memory, base, 8) == UINT64_MAX);
    view_page(memory_default_view(f->memory), base, &page);
    assert_null(page.host);

    assert_int_equal(memory_plug(f->memory, base, MIB(2), true), 0);
    assert_int_equal(f->changed, 1);
    assert_true(f->gpa == base && f->size == MIB(2));
    assert_true(is_zero(f, base));
    fill(f, base, MIB(2));
    assert_int_equal(memory_write(f->memory, base + MIB(2) - 4, &word, 8), -EFAULT);
    view_page(memory_default_view(f->memory), base, &page);
    page.host[0] = 5; /* an engine that kept the address */
    memory_watch(f->memory, base, 0);
    assert_int_equal(memory_plug(f->memory, base, MIB(2), false), 0);
    assert_int_equal(f->changed, 2);
    assert_int_equal(f->code_written, 1);
    assert_int_equal(memory_read(f->memory, base, &word, 1), -EFAULT);
    page.host[0] = 5; /* and writes late */
    assert_int_equal(memory_plug(f->memory, base, MIB(2), true), 0);
    assert_true(is_zero(f, base) && is_zero(f, base + MIB(2) - 1));

    assert_int_equal(memory_plug(f->memory, base + MIB(6), MIB(4), true), -EFAULT);
    assert_int_equal(memory_plug(f->memory, base + 1, PAGE_SIZE, true), -EFAULT);
    assert_int_equal(memory_plug(f->memory, 0, PAGE_SIZE, false), -EFAULT);
    assert_int_equal(memory_plug(f->memory, base, UINT64_MAX & ~UINT64_C(0xfff), false), -EFAULT);
    memory_remove_listener(f->memory, &listener);
}

/* In which most hosts that run tests have no page: then the error says so. */
static void huge_pages(void **state) {
    struct memory *memory;
    struct error err = {0};
    uint64_t word = 7;
    (void)state;
    assert_int_equal(memory_create(&memory, NULL), 0);
    memory_use_huge_pages(memory);
    assert_int_equal(memory_add_ram(memory, "odd", 0, MIB(3), &err), -EINVAL);
    int result = memory_add_ram(memory, "ram", 0, MIB(4), &err);
    if (result == 0) {
        assert_int_equal(memory_write(memory, 8, &word, 8), 0);
        assert_true(memory_discard(memory, 0, MIB(4)) == 0);
        word = 0;
        assert_int_equal(memory_read(memory, 8, &word, 8), 0);
        assert_int_equal(word, 7);
    } else {
        assert_int_equal(result, -ENOMEM);
        assert_non_null(strstr(err.text, "huge pages"));
    }
    memory_destroy(memory);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(bad_regions_are_refused),
        TEST(rom),
        TEST(rom_under_a_device),
        TEST(readonly_ram),
        TEST(gate_copies_across_regions),
        TEST(gate_is_all_or_nothing),
        TEST(mapping),
        TEST(io_regions),
        TEST(the_latest_io_region_wins),
        TEST(io_hides_whole_pages_of_ram),
        TEST(listeners_hear),
        TEST(views),
        TEST(dma),
        TEST(dirty_logs_are_independent),
        TEST(discarded_pages_are_zero),
        TEST(what_is_no_plain_ram_is_not_discarded),
        TEST(discarded_code_is_told),
        TEST(pluggable_memory_comes_and_goes),
        TEST(huge_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
