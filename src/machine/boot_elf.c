#include <elf.h>
#include <stdio.h>
#include <stdlib.h>

#include "machine/boot.h"

enum { NOTE_PHYS32_ENTRY = 18 }; /* XEN_ELFNOTE_PHYS32_ENTRY, public/elfnote.h */

bool elf_recognise(struct boot_bytes file) {
    return file.length >= EI_NIDENT && memcmp(file.data, ELFMAG, SELFMAG) == 0;
}

/* A program header of either class, widened. */
struct program_header {
    uint32_t type;
    uint64_t offset, file_size, memory_size, address, virtual_address, align;
};

static struct program_header read_program_header(const struct elf_image *image, const uint8_t *p) {
    if (image->is_64) {
        Elf64_Phdr h;
        memcpy(&h, p, sizeof h);
        return (struct program_header){h.p_type,  h.p_offset, h.p_filesz, h.p_memsz,
                                       h.p_paddr, h.p_vaddr,  h.p_align};
    }
    Elf32_Phdr h;
    memcpy(&h, p, sizeof h);
    return (struct program_header){h.p_type,  h.p_offset, h.p_filesz, h.p_memsz,
                                   h.p_paddr, h.p_vaddr,  h.p_align};
}

static int truncated(struct error *err) {
    return error_set(err, -ENOEXEC, "the file is truncated: a segment ends after the file");
}

static int add_segment(struct elf_image *image, uint64_t size, const struct program_header *h,
                       struct error *err) {
    if (h->memory_size == 0)
        return 0;
    if (image->count == ELF_SEGMENTS_MAX)
        return error_set(err, -ENOEXEC, "it has more than %d segments", ELF_SEGMENTS_MAX);
    if (!range_within(h->offset, h->file_size, size))
        return truncated(err);
    if (h->file_size > h->memory_size || h->memory_size > UINT64_MAX - h->address)
        return error_set(err, -ENOEXEC, "one of its segments has sizes that cannot be");
    image->segments[image->count++] = (struct elf_segment){h->offset, h->file_size, h->address,
                                                           h->memory_size, h->virtual_address};
    if (h->address < image->low)
        image->low = h->address;
    if (h->address + h->memory_size > image->high)
        image->high = h->address + h->memory_size;
    return 0;
}

static void read_note(struct elf_image *image, uint32_t type, struct boot_bytes name,
                      struct boot_bytes value) {
    if (type != NOTE_PHYS32_ENTRY || name.length != 4 || memcmp(name.data, "Xen", 4) != 0)
        return;
    if (value.length != 4 && value.length != 8)
        return;
    image->has_pvh = true;
    image->pvh_entry = load_le(value.data, (unsigned)value.length);
}

static void read_notes(struct elf_image *image, struct boot_bytes notes, uint64_t align) {
    const uint8_t *p = notes.data;
    uint64_t left = notes.length;
    while (left >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        memcpy(&note, p, sizeof note);
        uint64_t name = round_up(note.n_namesz, align), value = round_up(note.n_descsz, align);
        uint64_t body = left - sizeof note;
        if (name > body || note.n_descsz > body - name)
            return;
        p += sizeof note;
        read_note(image, note.n_type, (struct boot_bytes){p, note.n_namesz},
                  (struct boot_bytes){p + name, note.n_descsz});
        uint64_t used = value > body - name ? body : name + value;
        p += used;
        left = body - used;
    }
}

/* Those that are not in the first part of the file are read when they are in memory. */
static void find_notes(struct elf_image *image, struct boot_bytes head,
                       const struct program_header *h) {
    struct elf_notes notes = {h->offset, h->file_size, h->align == 8 ? 8 : 4};
    if (range_within(notes.offset, notes.size, head.length))
        read_notes(image, (struct boot_bytes){head.data + notes.offset, notes.size}, notes.align);
    else if (notes.size <= ELF_NOTES_MAX)
        image->notes = notes;
}

static void read_loaded_notes(struct elf_image *image, struct memory *memory) {
    const struct elf_notes *notes = &image->notes;
    uint8_t *bytes = notes->size > 0 ? malloc(notes->size) : NULL;
    for (unsigned i = 0; bytes != NULL && i < image->count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        uint64_t within = notes->offset - segment->offset;
        if (notes->offset >= segment->offset &&
            range_within(within, notes->size, segment->file_size) &&
            memory_read(memory, segment->address + within, bytes, notes->size) == 0)
            read_notes(image, (struct boot_bytes){bytes, notes->size}, notes->align);
    }
    free(bytes);
}

/* Where the program headers are, and the entry point. */
struct elf_table {
    uint64_t offset, entry;
    unsigned count, entry_size;
};

static int read_header(struct boot_bytes head, struct elf_image *image, struct elf_table *table,
                       struct error *err) {
    const uint8_t *p = head.data;
    bool little = p[EI_DATA] == ELFDATA2LSB;
    unsigned type = 0, machine = 0;
    image->is_64 = p[EI_CLASS] == ELFCLASS64;
    if (head.length < (image->is_64 ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr)))
        return error_set(err, -ENOEXEC, "the file ends in the middle of its ELF header");
    if (image->is_64) {
        Elf64_Ehdr h;
        memcpy(&h, p, sizeof h);
        type = h.e_type, machine = h.e_machine;
        *table = (struct elf_table){h.e_phoff, h.e_entry, h.e_phnum, h.e_phentsize};
    } else {
        Elf32_Ehdr h;
        memcpy(&h, p, sizeof h);
        type = h.e_type, machine = h.e_machine;
        *table = (struct elf_table){h.e_phoff, h.e_entry, h.e_phnum, h.e_phentsize};
    }
    if (!little || (machine != EM_X86_64 && machine != EM_386))
        return error_set(err, -ENOEXEC, "an ELF file for another kind of processor");
    if (type != ET_EXEC && type != ET_DYN)
        return error_set(err, -ENOEXEC, "an ELF file, but no executable");
    if (table->entry_size != (image->is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) ||
        !range_within(table->offset, (uint64_t)table->count * table->entry_size, head.length))
        return error_set(err, -ENOEXEC, "the file is truncated: its program headers are not in it");
    return 0;
}

/* Linux gives the physical entry point, others the virtual one: both end in a segment. */
static void place_entry(struct elf_image *image, uint64_t entry) {
    image->entry = entry;
    for (unsigned i = 0; i < image->count; i++)
        if (entry - image->segments[i].address < image->segments[i].memory_size)
            return;
    for (unsigned i = 0; i < image->count; i++) {
        uint64_t offset = entry - image->segments[i].virtual_address;
        if (offset < image->segments[i].memory_size) {
            image->entry = image->segments[i].address + offset;
            return;
        }
    }
}

int elf_parse(struct boot_bytes head, uint64_t size, struct elf_image *image, struct error *err) {
    *image = (struct elf_image){.low = UINT64_MAX};
    struct elf_table table = {0};
    int result = read_header(head, image, &table, err);
    for (unsigned i = 0; result == 0 && i < table.count; i++) {
        struct program_header h =
            read_program_header(image, head.data + table.offset + (uint64_t)i * table.entry_size);
        if (h.type == PT_LOAD)
            result = add_segment(image, size, &h, err);
        else if (h.type == PT_NOTE)
            find_notes(image, head, &h);
    }
    if (result < 0)
        return result;
    if (image->count == 0)
        return error_set(err, -ENOEXEC, "an ELF file with nothing to load");
    place_entry(image, table.entry);
    return 0;
}

static int does_not_fit(const struct elf_image *image, struct error *err) {
    return error_set(err, -E2BIG,
                     "it needs memory up to %llu MiB, more than the machine has there; "
                     "use a larger --memory",
                     (unsigned long long)((image->high >> 20) + 1));
}

static int clear_tail(const struct elf_segment *segment, struct memory *memory) {
    uint64_t at = segment->address + segment->file_size;
    uint64_t left = segment->memory_size - segment->file_size;
    while (left > 0) {
        size_t length = left;
        void *to = memory_map(memory, at, &length, true);
        if (to == NULL)
            return -EFAULT;
        memset(to, 0, length);
        memory_unmap(memory, at, length);
        at += length;
        left -= length;
    }
    return 0;
}

int elf_clear(const struct elf_image *image, struct memory *memory, struct error *err) {
    for (unsigned i = 0; i < image->count; i++)
        if (clear_tail(&image->segments[i], memory) < 0)
            return does_not_fit(image, err);
    return 0;
}

int elf_write(const struct elf_image *image, uint64_t offset, struct boot_bytes bytes,
              struct memory *memory, struct error *err) {
    for (unsigned i = 0; i < image->count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        uint64_t first = offset > segment->offset ? offset : segment->offset;
        uint64_t end = segment->offset + segment->file_size;
        if (end > offset + bytes.length)
            end = offset + bytes.length;
        if (first < end && memory_write(memory, segment->address + (first - segment->offset),
                                        bytes.data + (first - offset), end - first) < 0)
            return does_not_fit(image, err);
    }
    return 0;
}

int elf_finish(struct elf_image *image, uint64_t size, struct memory *memory, struct error *err) {
    for (unsigned i = 0; i < image->count; i++)
        if (!range_within(image->segments[i].offset, image->segments[i].file_size, size))
            return truncated(err);
    read_loaded_notes(image, memory);
    return 0;
}
