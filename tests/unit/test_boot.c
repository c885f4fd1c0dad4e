/* Boot-file parsers: what they accept, where they put it, and what they refuse. */
#include <elf.h>
#include <lz4.h>
#include <lzma.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cmocka.h>

#include "machine/boot.h"
#include "machine/layout.h"

enum { FILE_SIZE = 64 << 10, LOAD_ADDRESS = 0x1000000, CODE_SIZE = 100, MEMORY_SIZE = 64 << 20 };

static struct memory *memory;

static int set_up(void **state) {
    assert_int_equal(memory_create(&memory, NULL), 0);
    return memory_add_ram(memory, "ram", 0, MEMORY_SIZE, NULL);
}

static int tear_down(void **state) {
    memory_destroy(memory);
    return 0;
}

/* ---- Files ---- */

/* A vmlinux: one segment with a tail to clear, and a PVH note. */
static size_t make_elf(uint8_t *file) {
    Elf64_Ehdr header = {.e_type = ET_EXEC,
                         .e_machine = EM_X86_64,
                         .e_version = 1,
                         .e_entry = LOAD_ADDRESS,
                         .e_phoff = sizeof header,
                         .e_ehsize = sizeof header,
                         .e_phentsize = sizeof(Elf64_Phdr),
                         .e_phnum = 2};
    memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    Elf64_Phdr segments[2] = {
        {.p_type = PT_LOAD,
         .p_offset = 0x200,
         .p_filesz = CODE_SIZE,
         .p_memsz = 0x3000,
         .p_paddr = LOAD_ADDRESS,
         .p_vaddr = 0xffffffff81000000},
        {.p_type = PT_NOTE, .p_offset = 0x400, .p_filesz = 20, .p_memsz = 20, .p_align = 4}};
    Elf64_Nhdr note = {.n_namesz = 4, .n_descsz = 4, .n_type = 18};
    memset(file, 0, FILE_SIZE);
    memcpy(file, &header, sizeof header);
    memcpy(file + sizeof header, segments, sizeof segments);
    memset(file + 0x200, 0x90, CODE_SIZE);
    memcpy(file + 0x400, &note, sizeof note);
    memcpy(file + 0x400 + sizeof note, "Xen", 4);
    store_le32(file + 0x400 + sizeof note + 4, LOAD_ADDRESS + 0x10);
    return 0x1000;
}

/* A bzImage that carries `payload`. */
static size_t make_bzimage(uint8_t *file, const uint8_t *payload, size_t length) {
    enum { SETUP = 5 * 512, OFFSET = 0x300 };
    memset(file, 0, FILE_SIZE);
    file[0x1f1] = 4;
    store_le16(file + 0x1fe, 0xaa55);
    file[0x201] = 0x66;
    memcpy(file + 0x202, "HdrS", 4);
    store_le16(file + 0x206, 0x20f);
    file[0x211] = 1;
    store_le32(file + 0x22c, 0x7fffffff);
    file[0x234] = 1;
    store_le16(file + 0x236, 1);
    store_le32(file + 0x238, 2047);
    store_le32(file + 0x248, OFFSET);
    store_le32(file + 0x24c, (uint32_t)length);
    store_le64(file + 0x258, LOAD_ADDRESS);
    store_le32(file + 0x260, 0x100000);
    memcpy(file + SETUP + OFFSET, payload, length);
    return SETUP + OFFSET + length;
}

/* What the lz4 tool's legacy format and the kernel's build make of data. */
static size_t pack_lz4(const uint8_t *data, size_t length, uint8_t *packed, size_t size) {
    store_le32(packed, 0x184c2102);
    int block =
        LZ4_compress_default((const char *)data, (char *)packed + 8, (int)length, (int)size - 12);
    assert_true(block > 0);
    store_le32(packed + 4, (uint32_t)block);
    store_le32(packed + 8 + block, (uint32_t)length);
    return 12 + (size_t)block;
}

/* As a kernel's build does, its size appended. */
static size_t pack_gzip(const uint8_t *data, size_t length, uint8_t *packed, size_t size) {
    z_stream stream = {.next_in = (Bytef *)data,
                       .avail_in = (uInt)length,
                       .next_out = packed,
                       .avail_out = (uInt)size};
    assert_int_equal(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY),
                     Z_OK);
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    deflateEnd(&stream);
    return size - stream.avail_out;
}

static size_t pack_xz(const uint8_t *data, size_t length, uint8_t *packed, size_t size) {
    size_t used = 0;
    assert_int_equal(
        lzma_easy_buffer_encode(1, LZMA_CHECK_CRC32, NULL, data, length, packed, &used, size),
        LZMA_OK);
    return used;
}

static size_t pack_zstd(const uint8_t *data, size_t length, uint8_t *packed, size_t size) {
    size_t used = ZSTD_compress(packed, size, data, length, 1);
    assert_false(ZSTD_isError(used));
    return used;
}

static int load(const uint8_t *file, size_t length, enum boot_protocol protocol,
                struct x86_state *state, struct error *err) {
    *state = (struct x86_state){0};
    return boot_load_bytes((struct boot_bytes){file, length}, protocol, memory, state, err);
}

/* ---- Accepted ---- */

static void check_code_loaded(void) {
    uint8_t bytes[0x3000];
    assert_int_equal(memory_read(memory, LOAD_ADDRESS, bytes, sizeof bytes), 0);
    assert_int_equal(bytes[0], 0x90);
    assert_int_equal(bytes[CODE_SIZE - 1], 0x90);
    for (size_t i = CODE_SIZE; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], 0);
}

static void elf_by_64_bit_entry(void **unused) {
    static uint8_t file[FILE_SIZE];
    struct x86_state state;
    uint8_t junk[64];
    memset(junk, 0xee, sizeof junk);
    memory_write(memory, LOAD_ADDRESS + 0x2000, junk, sizeof junk); /* a boot before this one */
    assert_int_equal(load(file, make_elf(file), BOOT_ELF, &state, NULL), 0);
    check_code_loaded();
    assert_int_equal(state.rip, LOAD_ADDRESS);
    assert_int_equal(state.gpr[RSI], LAYOUT_BOOT_PARAMS);
    assert_int_equal(state.efer, EFER_LME | EFER_LMA);
    assert_true(state.cr0 & CR0_PG);
    uint64_t entry;
    memory_read(memory, state.cr3, &entry, sizeof entry);
    assert_int_equal(entry, (LAYOUT_BOOT_PAGE_TABLES + PAGE_SIZE) | 3);
}

static void elf_by_pvh_entry(void **unused) {
    static uint8_t file[FILE_SIZE];
    struct x86_state state;
    assert_int_equal(load(file, make_elf(file), BOOT_AUTO, &state, NULL), 0);
    assert_int_equal(state.rip, LOAD_ADDRESS + 0x10);
    assert_int_equal(state.gpr[RBX], LAYOUT_BOOT_START_INFO);
    assert_false(state.cr0 & CR0_PG);
    uint32_t magic;
    memory_read(memory, LAYOUT_BOOT_START_INFO, &magic, sizeof magic);
    assert_int_equal(magic, 0x336ec578);
}

static void bzimage_is_unpacked(void **unused) {
    static uint8_t elf[FILE_SIZE], packed[FILE_SIZE / 2], file[FILE_SIZE];
    struct x86_state state;
    size_t length = pack_lz4(elf, make_elf(elf), packed, sizeof packed);
    length = make_bzimage(file, packed, length);
    assert_int_equal(load(file, length, BOOT_AUTO, &state, NULL), 0);
    check_code_loaded();
    assert_int_equal(state.rip, LOAD_ADDRESS);
    uint8_t params[PAGE_SIZE];
    memory_read(memory, LAYOUT_BOOT_PARAMS, params, sizeof params);
    assert_memory_equal(params + 0x202, "HdrS", 4);
    assert_int_equal(params[0x1e8], 5); /* E820 entries */
    assert_int_equal(params[0x210], 0xff);
}

enum { LARGE_CODE = 3 << 20, LARGE_SIZE = LARGE_CODE + 0x1000 };

/* Larger than what is unpacked at once, with its note in the segment's last bytes. */
static size_t make_large_elf(uint8_t *file) {
    Elf64_Phdr segments[2];
    size_t note = 0x200 + LARGE_CODE - 20;
    make_elf(file);
    memset(file + FILE_SIZE, 0, LARGE_SIZE - FILE_SIZE);
    memcpy(segments, file + sizeof(Elf64_Ehdr), sizeof segments);
    memmove(file + note, file + 0x400, 20);
    segments[0].p_filesz = LARGE_CODE;
    segments[0].p_memsz = LARGE_CODE + 0x100;
    segments[1].p_offset = note;
    memcpy(file + sizeof(Elf64_Ehdr), segments, sizeof segments);
    for (size_t at = 0x200; at + 4 <= note; at += 4)
        store_le32(file + at, (uint32_t)at * 0x9e3779b1);
    return LARGE_SIZE;
}

static void check_large_loaded(const uint8_t *elf) {
    static uint8_t bytes[LARGE_CODE + 0x100];
    assert_int_equal(memory_read(memory, LOAD_ADDRESS, bytes, sizeof bytes), 0);
    assert_memory_equal(bytes, elf + 0x200, LARGE_CODE);
    for (size_t i = LARGE_CODE; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], 0);
}

static void every_packing_is_unpacked(void **unused) {
    static uint8_t elf[LARGE_SIZE], packed[2 * LARGE_SIZE], file[2 * LARGE_SIZE];
    static const uint8_t junk[0x100] = {[0 ... 0xff] = 0xee};
    size_t (*const packers[])(const uint8_t *, size_t, uint8_t *, size_t) = {pack_lz4, pack_gzip,
                                                                             pack_xz, pack_zstd};
    struct x86_state state;
    for (unsigned i = 0; i < ARRAY_SIZE(packers); i++) {
        size_t size = make_large_elf(elf);
        size_t length = make_bzimage(file, packed, packers[i](elf, size, packed, sizeof packed));
        memory_discard(memory, LOAD_ADDRESS, LARGE_SIZE);
        memory_write(memory, LOAD_ADDRESS + LARGE_CODE, junk, sizeof junk);
        assert_int_equal(load(file, length, BOOT_AUTO, &state, NULL), 0);
        assert_int_equal(state.rip, LOAD_ADDRESS);
        check_large_loaded(elf);
        assert_int_equal(load(file, length, BOOT_PVH, &state, NULL), 0);
        assert_int_equal(state.rip, LOAD_ADDRESS + 0x10);
        check_large_loaded(elf);
    }
}

/* What it has packed ends before the segments do. */
static void a_packed_file_cut_short_is_refused(void **unused) {
    static uint8_t elf[LARGE_SIZE], packed[2 * LARGE_SIZE], file[2 * LARGE_SIZE];
    static const size_t cuts[] = {0x200, 0x1000, 64 << 10, (64 << 10) + 1, 0x200 + LARGE_CODE - 1};
    struct x86_state state;
    for (unsigned i = 0; i < ARRAY_SIZE(cuts); i++) {
        struct error err = {0};
        make_large_elf(elf);
        size_t length = make_bzimage(file, packed, pack_zstd(elf, cuts[i], packed, sizeof packed));
        assert_int_equal(load(file, length, BOOT_AUTO, &state, &err), -ENOEXEC);
        assert_non_null(strstr(err.text, "truncated"));
    }
}

static void bzimage_unpacks_itself(void **unused) {
    static uint8_t file[FILE_SIZE];
    static const uint8_t payload[64] = {1, 2, 3};
    struct x86_state state;
    size_t length = make_bzimage(file, payload, sizeof payload);
    /* Named, or because lodge does not know the format. */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(load(file, length, i == 0 ? BOOT_BZIMAGE : BOOT_AUTO, &state, NULL), 0);
        assert_int_equal(state.rip, LOAD_ADDRESS + 0x200);
    }
}

/* ---- Refused ---- */

static void every_truncation_is_refused(void **unused) {
    static uint8_t elf[FILE_SIZE], packed[FILE_SIZE / 2], file[FILE_SIZE];
    struct x86_state state;
    size_t elf_length = 0x400 + 20; /* to the end of what is used */
    make_elf(elf);
    for (size_t cut = 0; cut < 0x200 + CODE_SIZE; cut++) {
        struct error err = {0};
        assert_true(load(elf, cut, BOOT_AUTO, &state, &err) < 0);
        assert_true(err.text[0] != 0);
    }
    size_t length = make_bzimage(file, packed, pack_lz4(elf, elf_length, packed, sizeof packed));
    for (size_t cut = 0; cut < length; cut++)
        assert_true(load(file, cut, BOOT_AUTO, &state, NULL) < 0);
}

static void any_damaged_byte_is_survived(void **unused) {
    static uint8_t elf[FILE_SIZE], packed[FILE_SIZE / 2], file[FILE_SIZE];
    struct x86_state state;
    size_t length = make_elf(elf);
    for (size_t i = 0; i < 0x420; i++) {
        uint8_t old = elf[i];
        elf[i] = 0xff;
        load(elf, length, BOOT_AUTO, &state, NULL);
        elf[i] = old;
    }
    length = make_bzimage(file, packed, pack_lz4(elf, length, packed, sizeof packed));
    for (size_t i = 0; i < length; i++) {
        file[i] ^= 0xff;
        load(file, length, BOOT_AUTO, &state, NULL);
        file[i] ^= 0xff;
    }
}

static void refuse(const uint8_t *file, size_t length, enum boot_protocol protocol, int code,
                   const char *text) {
    struct x86_state state;
    struct error err = {0};
    assert_int_equal(load(file, length, protocol, &state, &err), code);
    assert_non_null(strstr(err.text, text));
}

static void reasons_are_given(void **unused) {
    static uint8_t file[FILE_SIZE];
    Elf64_Phdr segment;
    size_t length = make_elf(file);
    refuse((const uint8_t *)"#!/bin/sh\n", 10, BOOT_AUTO, -ENOEXEC, "neither");
    refuse(file, length, BOOT_BZIMAGE, -ENOEXEC, "not a bzImage");
    memcpy(&segment, file + sizeof(Elf64_Ehdr), sizeof segment);
    segment.p_memsz = 2 * MEMORY_SIZE;
    memcpy(file + sizeof(Elf64_Ehdr), &segment, sizeof segment);
    refuse(file, length, BOOT_AUTO, -E2BIG, "--memory");
    segment.p_paddr = UINT64_MAX - 0x1000;
    memcpy(file + sizeof(Elf64_Ehdr), &segment, sizeof segment);
    refuse(file, length, BOOT_AUTO, -ENOEXEC, "cannot be");
    segment.p_paddr = 0x1000;
    segment.p_memsz = segment.p_filesz;
    memcpy(file + sizeof(Elf64_Ehdr), &segment, sizeof segment);
    refuse(file, length, BOOT_PVH, -ENOEXEC, "entry point");
}

/* ---- Through files: command line, initrd, errors that name them ---- */

static void write_file(char *path, const uint8_t *data, size_t length) {
    strcpy(path, "/tmp/lodge-test-boot-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, length), (ssize_t)length);
    close(fd);
}

static void initrd_and_cmdline(void **unused) {
    static uint8_t file[FILE_SIZE];
    static const uint8_t initrd[5000] = {'i'};
    char kernel_path[64], initrd_path[64];
    write_file(kernel_path, file, make_elf(file));
    write_file(initrd_path, initrd, sizeof initrd);
    struct boot *boot;
    struct x86_state state = {0};
    assert_int_equal(boot_open(kernel_path, initrd_path, "quiet", BOOT_ELF, &boot, NULL), 0);
    unlink(kernel_path);
    unlink(initrd_path);
    for (int i = 0; i < 2; i++) /* a reboot loads again, from files whose names are gone */
        assert_int_equal(boot_load(boot, memory, 0, &state, NULL), 0);
    uint8_t params[PAGE_SIZE], byte;
    char cmdline[6];
    memory_read(memory, LAYOUT_BOOT_PARAMS, params, sizeof params);
    memory_read(memory, load_le32(params + 0x228), cmdline, sizeof cmdline);
    assert_string_equal(cmdline, "quiet");
    assert_int_equal(load_le32(params + 0x21c), sizeof initrd);
    uint32_t at = load_le32(params + 0x218);
    assert_int_equal(at % PAGE_SIZE, 0);
    assert_true(at + sizeof initrd <= MEMORY_SIZE);
    memory_read(memory, at, &byte, 1);
    assert_int_equal(byte, 'i');
    boot_close(boot);
}

static void initrd_too_large(void **unused) {
    static uint8_t file[FILE_SIZE];
    char kernel_path[64], initrd_path[64];
    write_file(kernel_path, file, make_elf(file));
    write_file(initrd_path, file, 1);
    assert_int_equal(truncate(initrd_path, MEMORY_SIZE), 0);
    struct boot *boot;
    struct x86_state state = {0};
    struct error err = {0};
    assert_int_equal(boot_open(kernel_path, initrd_path, "", BOOT_ELF, &boot, NULL), 0);
    assert_int_equal(boot_load(boot, memory, 0, &state, &err), -E2BIG);
    assert_non_null(strstr(err.text, "--memory"));
    boot_close(boot);
    assert_int_equal(boot_open("/nonexistent", NULL, "", BOOT_AUTO, &boot, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent"));
    assert_int_equal(boot_open("/", NULL, "", BOOT_AUTO, &boot, &err), -ENOEXEC);
    unlink(kernel_path);
    unlink(initrd_path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elf_by_64_bit_entry),
        cmocka_unit_test(elf_by_pvh_entry),
        cmocka_unit_test(bzimage_is_unpacked),
        cmocka_unit_test(every_packing_is_unpacked),
        cmocka_unit_test(a_packed_file_cut_short_is_refused),
        cmocka_unit_test(bzimage_unpacks_itself),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(any_damaged_byte_is_survived),
        cmocka_unit_test(reasons_are_given),
        cmocka_unit_test(initrd_and_cmdline),
        cmocka_unit_test(initrd_too_large),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
