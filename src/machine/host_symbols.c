#include "machine/host_symbols.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"

const char *const time_kind_names[TIME_KINDS] = {
    "guest-user",  "guest-kernel", "interpreter", "call-outs", "memory", "switch",
    "translation", "events",       "devices",     "other",     "idle",   "waiting",
};

const char *const time_kind_titles[TIME_KINDS] = {
    "guest's programs, translated",
    "guest's kernel, translated",
    "interpreted instructions",
    "instructions called out to C",
    "TLB misses, page walks, slow accesses",
    "in and out of translated code",
    "decoding and translating",
    "interrupts, exceptions, run loop",
    "devices",
    "other",
    "idle",
    "waiting for the host's CPU",
};

/* ---- What functions count as ---- */

struct rule {
    const char *word;
    enum time_kind kind;
};

/* By the beginning of a function's name: what has a file name that says too little comes here. */
static const struct rule name_rules[] = {
    {"jit_translate", TIME_TRANSLATION},
    {"jit_forget", TIME_TRANSLATION},
    {"jit_map", TIME_TRANSLATION},
    {"lower_", TIME_TRANSLATION},
    {"liveness_", TIME_TRANSLATION},
    {"emit_", TIME_TRANSLATION},
    {"recode_", TIME_TRANSLATION},
    {"insn_decode", TIME_TRANSLATION},
    {"block_", TIME_TRANSLATION},
    {"jit_fast_fill", TIME_MEMORY},
    {"jit_fast_string", TIME_CALLOUTS},
    {"jit_", TIME_SWITCH},
    {"flags_pack", TIME_SWITCH},
    {"flags_unpack", TIME_SWITCH},
    {"flags_by_recipe", TIME_SWITCH},
    {"run_handler", TIME_SWITCH},
    {"callout_done", TIME_SWITCH},
    {"set_alarm", TIME_SWITCH},
    {"must_leave", TIME_SWITCH},
    {"mmu_", TIME_MEMORY},
    {"walk_", TIME_MEMORY},
    {"access_", TIME_MEMORY},
    {"level1_", TIME_MEMORY},
    {"view_", TIME_MEMORY},
    {"memory_io", TIME_DEVICES},
    {"memory_", TIME_MEMORY},
    {"event_", TIME_EVENTS},
    {"raise_", TIME_EVENTS},
    {"soft_run", TIME_EVENTS},
    {"soft_request", TIME_EVENTS},
    {"profile_", TIME_OTHER},
    {"lapic_", TIME_DEVICES},
    {"irqchip_", TIME_DEVICES},
    {"port_", TIME_DEVICES},
    {"vm_clock", TIME_DEVICES},
    {NULL, TIME_OTHER},
};

/* By the beginning of the source file's name. */
static const struct rule file_rules[] = {
    {"int_", TIME_CALLOUTS},
    {"vec", TIME_CALLOUTS},
    {"x87", TIME_CALLOUTS},
    {"far.c", TIME_CALLOUTS},
    {"segment.c", TIME_CALLOUTS},
    {"system.c", TIME_CALLOUTS},
    {"msr.c", TIME_CALLOUTS},
    {"cpuid.c", TIME_CALLOUTS},
    {"xsave.c", TIME_CALLOUTS},
    {"syscall.c", TIME_CALLOUTS},
    {"hostfp.c", TIME_CALLOUTS},
    {"fast", TIME_CALLOUTS},
    {"access", TIME_MEMORY},
    {"mmu", TIME_MEMORY},
    {"level1.c", TIME_MEMORY},
    {"walk.c", TIME_MEMORY},
    {"page.c", TIME_MEMORY},
    {"memory.c", TIME_MEMORY},
    {"view.c", TIME_MEMORY},
    {"light", TIME_SWITCH},
    {"translate", TIME_TRANSLATION},
    {"emit.c", TIME_TRANSLATION},
    {"recode.c", TIME_TRANSLATION},
    {"rows.c", TIME_TRANSLATION},
    {"flags.c", TIME_TRANSLATION},
    {"liveness.c", TIME_TRANSLATION},
    {"stubs.c", TIME_TRANSLATION},
    {"groups.c", TIME_TRANSLATION},
    {"native.c", TIME_TRANSLATION},
    {"stack.c", TIME_TRANSLATION},
    {"branch.c", TIME_TRANSLATION},
    {"map.c", TIME_TRANSLATION},
    {"link.c", TIME_SWITCH},
    {"shadow.c", TIME_SWITCH},
    {"decode.c", TIME_TRANSLATION},
    {"block.c", TIME_TRANSLATION},
    {"block_drop.c", TIME_TRANSLATION},
    {"block_place.c", TIME_TRANSLATION},
    {"block_store.c", TIME_TRANSLATION},
    {"event.c", TIME_EVENTS},
    {"raise.c", TIME_EVENTS},
    {"run.c", TIME_EVENTS},
    {"debug.c", TIME_EVENTS},
    {"serial.c", TIME_DEVICES},
    {"rtc.c", TIME_DEVICES},
    {"pit.c", TIME_DEVICES},
    {"hpet.c", TIME_DEVICES},
    {"i8042.c", TIME_DEVICES},
    {"acpi", TIME_DEVICES},
    {"pvpanic.c", TIME_DEVICES},
    {"blk.c", TIME_DEVICES},
    {"console.c", TIME_DEVICES},
    {"net.c", TIME_DEVICES},
    {"rng.c", TIME_DEVICES},
    {"vsock", TIME_DEVICES},
    {"queue.c", TIME_DEVICES},
    {"pci", TIME_DEVICES},
    {"bus.c", TIME_DEVICES},
    {"function.c", TIME_DEVICES},
    {"msix.c", TIME_DEVICES},
    {"ioapic", TIME_DEVICES},
    {"irqchip", TIME_DEVICES},
    {"lapic", TIME_DEVICES},
    {"pic.c", TIME_DEVICES},
    {"raw.c", TIME_DEVICES},
    {"pool.c", TIME_DEVICES},
    {"slirp.c", TIME_DEVICES},
    {"chardev", TIME_DEVICES},
    {"dma.c", TIME_DEVICES},
    {"ports.c", TIME_DEVICES},
    {"clock.c", TIME_DEVICES},
    {"loop.c", TIME_DEVICES},
    {"agent", TIME_DEVICES},
    {NULL, TIME_OTHER},
};

static const struct rule *find_rule(const struct rule *rule, const char *word) {
    for (; rule->word != NULL; rule++)
        if (strncmp(rule->word, word, strlen(rule->word)) == 0)
            return rule;
    return NULL;
}

enum time_kind host_function_kind(const char *name, const char *file) {
    const struct rule *rule = find_rule(name_rules, name);
    if (rule == NULL)
        rule = find_rule(file_rules, file);
    return rule != NULL ? rule->kind : TIME_OTHER;
}

/* ---- The program's symbol table ---- */

struct table {
    const Elf64_Sym *symbols;
    size_t count;
    char *strings; /* ended by a zero */
    size_t strings_size;
};

/* The file is our own, but a truncated one must not crash us either. */
static bool section_bytes(const struct host_symbols *h, const Elf64_Shdr *s) {
    return range_within(s->sh_offset, s->sh_size, h->image_size);
}

static bool find_table(const struct host_symbols *h, struct table *table) {
    const Elf64_Ehdr *header = h->image;
    uint8_t *image = h->image;
    if (h->image_size < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
        header->e_shentsize != sizeof(Elf64_Shdr) || header->e_shoff % 8 != 0 ||
        !range_within(header->e_shoff, (uint64_t)header->e_shnum * sizeof(Elf64_Shdr),
                      h->image_size))
        return false;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(const void *)(image + header->e_shoff);
    for (unsigned i = 0; i < header->e_shnum; i++) {
        const Elf64_Shdr *s = &sections[i];
        if (s->sh_type != SHT_SYMTAB || s->sh_link >= header->e_shnum || s->sh_offset % 8 != 0)
            continue;
        const Elf64_Shdr *strings = &sections[s->sh_link];
        if (!section_bytes(h, s) || !section_bytes(h, strings) || strings->sh_size == 0)
            return false;
        *table = (struct table){
            .symbols = (const Elf64_Sym *)(const void *)(image + s->sh_offset),
            .count = s->sh_size / sizeof(Elf64_Sym),
            .strings = (char *)image + strings->sh_offset,
            .strings_size = strings->sh_size,
        };
        table->strings[strings->sh_size - 1] = 0; /* the mapping is private */
        return true;
    }
    return false;
}

static char *symbol_name(const struct table *table, const Elf64_Sym *symbol) {
    return symbol->st_name < table->strings_size ? table->strings + symbol->st_name : NULL;
}

static int by_start(const void *a, const void *b) {
    const struct host_function *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

static void take_symbols(struct host_symbols *h, const struct table *table, uint64_t bias) {
    const char *file = "";
    for (size_t i = 0; i < table->count; i++) {
        const Elf64_Sym *symbol = &table->symbols[i];
        char *name = symbol_name(table, symbol);
        unsigned type = ELF64_ST_TYPE(symbol->st_info);
        bool local = ELF64_ST_BIND(symbol->st_info) == STB_LOCAL;
        if (type == STT_FILE && name != NULL)
            file = name;
        if (type != STT_FUNC || name == NULL || symbol->st_size == 0 || symbol->st_value == 0)
            continue;
        h->functions[h->count++] = (struct host_function){
            .start = bias + symbol->st_value,
            .end = bias + symbol->st_value + symbol->st_size,
            .name = name,
            .file = local ? file : "",
        };
    }
}

/* ".isra.0", ".cold" and their like. Names may share their tails: cut only once all are read. */
static void cut_names(struct host_symbols *h) {
    for (size_t i = 0; i < h->count; i++) {
        char *dot = strchr((char *)(uintptr_t)h->functions[i].name, '.');
        if (dot != NULL)
            *dot = 0;
    }
}

/* The table tells files of static functions only. Others stand between those of their file: known
 * where both neighbours are of one. */
static void guess_files(struct host_symbols *h) {
    const char *before = "", *after = "";
    for (size_t i = 0, next = 0; i < h->count; i++) {
        struct host_function *f = &h->functions[i];
        if (next <= i) {
            for (next = i + 1; next < h->count && h->functions[next].file[0] == 0; next++)
                ;
            after = next < h->count ? h->functions[next].file : "";
        }
        if (f->file[0] != 0)
            before = f->file;
        else if (strcmp(before, after) == 0)
            f->file = before;
        f->kind = host_function_kind(f->name, f->file);
    }
}

static int first_object(struct dl_phdr_info *info, size_t size, void *bias) {
    *(uint64_t *)bias = info->dlpi_addr; /* the program itself comes first */
    return 1;
}

static void map_program(struct host_symbols *h) {
    struct stat status;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &status) == 0 && status.st_size > 0) {
        void *image =
            mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        h->image = image != MAP_FAILED ? image : NULL;
        h->image_size = image != MAP_FAILED ? (size_t)status.st_size : 0;
    }
    close(fd);
}

int host_symbols_load(struct host_symbols *symbols, struct error *err) {
    struct table table;
    uint64_t bias = 0;
    *symbols = (struct host_symbols){0};
    map_program(symbols);
    if (symbols->image == NULL || !find_table(symbols, &table))
        return 0;
    symbols->functions = calloc(table.count + 1, sizeof *symbols->functions);
    if (symbols->functions == NULL) {
        host_symbols_free(symbols);
        return error_set(err, -ENOMEM, "out of memory");
    }
    dl_iterate_phdr(first_object, &bias);
    take_symbols(symbols, &table, bias);
    qsort(symbols->functions, symbols->count, sizeof *symbols->functions, by_start);
    cut_names(symbols);
    guess_files(symbols);
    return 0;
}

void host_symbols_free(struct host_symbols *symbols) {
    if (symbols->image != NULL)
        munmap(symbols->image, symbols->image_size);
    free(symbols->functions);
    *symbols = (struct host_symbols){0};
}

const struct host_function *host_symbols_find(const struct host_symbols *symbols,
                                              uint64_t address) {
    size_t low = 0, high = symbols->count; /* the last not above address is in [low, high) */
    if (high == 0 || symbols->functions[0].start > address)
        return NULL;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (symbols->functions[middle].start <= address)
            low = middle;
        else
            high = middle;
    }
    return address < symbols->functions[low].end ? &symbols->functions[low] : NULL;
}
