#include "image/modules.h"

#include <elf.h>
#include <ftw.h>
#include <limits.h>
#include <lzma.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "image/file.h"

/* Loaded at boot when the machine has the device, by the agent. */
static const char *const boot_modules[] = {
    "virtio_pci", "virtio_blk",   "virtio_scsi",
    "sr_mod",     "virtio_net",   "virtio_console",
    "virtio_rng", "pvpanic_mmio", "vmw_vsock_virtio_transport",
    "button",     "evdev",        "virtio_balloon",
    "virtio_mem",
};

/* There for modprobe and for the kernel's own requests. */
static const char *const other_modules[] = {
    "overlay",   "fuse",     "virtiofs", "loop", "isofs",  "squashfs", "vfat",     "nls_ascii",
    "nls_cp437", "efivarfs", "tun",      "veth", "bridge", "nvme",     "wdat_wdt", "af_packet",
};

enum { MODULES_MAX = 128, NAME_MAX_SIZE = 64, INDEX_MAX = 8192 };

struct module {
    char name[NAME_MAX_SIZE];
    char *path; /* below the tree: "kernel/..." */
    struct file_bytes file;
    struct file_bytes info; /* within file */
    bool at_boot;
    char *patterns; /* what makes the agent load it, blank-separated; NULL: nothing yet */
};

struct set {
    const char *tree;
    struct module modules[MODULES_MAX]; /* each after all that it needs */
    unsigned count;
};

/* ---- The index: name to path ---- */

static struct {
    char *paths[INDEX_MAX];
    unsigned count;
} found;

/* The module's name as the kernel knows it: the file's, with underscores. */
static void name_of_path(const char *path, char name[NAME_MAX_SIZE]) {
    const char *base = strrchr(path, '/');
    base = base != NULL ? base + 1 : path;
    size_t length = strcspn(base, ".");
    if (length >= NAME_MAX_SIZE)
        length = NAME_MAX_SIZE - 1;
    for (size_t i = 0; i < length; i++)
        name[i] = base[i] == '-' ? '_' : base[i];
    name[length] = 0;
}

static bool ends_with(const char *path, const char *end) {
    size_t length = strlen(path), end_length = strlen(end);
    return length > end_length && strcmp(path + length - end_length, end) == 0;
}

static int index_one(const char *path, const struct stat *status, int flag, struct FTW *ftw) {
    if (flag == FTW_F && (ends_with(path, ".ko") || ends_with(path, ".ko.xz")) &&
        found.count < INDEX_MAX && (found.paths[found.count] = strdup(path)) != NULL)
        found.count++;
    return 0;
}

static void free_index(void) {
    while (found.count > 0)
        free(found.paths[--found.count]);
}

static const char *find_path(const char *wanted) {
    char name[NAME_MAX_SIZE];
    for (unsigned i = 0; i < found.count; i++) {
        name_of_path(found.paths[i], name);
        if (strcmp(name, wanted) == 0)
            return found.paths[i];
    }
    return NULL;
}

/* ---- .modinfo ---- */

/* Finds a section by name in a relocatable ELF64 file; empty when there is none. */
static struct file_bytes find_section(struct file_bytes file, const char *wanted) {
    struct file_bytes none = {0};
    Elf64_Ehdr header;
    if (file.length < sizeof header || memcmp(file.data, ELFMAG, SELFMAG) != 0)
        return none;
    memcpy(&header, file.data, sizeof header);
    if (header.e_shentsize != sizeof(Elf64_Shdr) || header.e_shstrndx >= header.e_shnum ||
        !range_within(header.e_shoff, (uint64_t)header.e_shnum * sizeof(Elf64_Shdr), file.length))
        return none;
    Elf64_Shdr names, section;
    const uint8_t *table = file.data + header.e_shoff;
    memcpy(&names, table + header.e_shstrndx * sizeof names, sizeof names);
    if (!range_within(names.sh_offset, names.sh_size, file.length))
        return none;
    for (unsigned i = 0; i < header.e_shnum; i++) {
        memcpy(&section, table + i * sizeof section, sizeof section);
        size_t length = strlen(wanted) + 1;
        if (!range_within(section.sh_name, length, names.sh_size) ||
            memcmp(file.data + names.sh_offset + section.sh_name, wanted, length) != 0)
            continue;
        if (section.sh_type == SHT_NOBITS ||
            !range_within(section.sh_offset, section.sh_size, file.length))
            return none;
        return (struct file_bytes){file.data + section.sh_offset, section.sh_size};
    }
    return none;
}

/* The next "key=VALUE" after *at (0 to begin with); NULL at the end. */
static const char *next_value(const struct module *module, const char *key, size_t *at) {
    const char *info = (const char *)module->info.data;
    size_t length = module->info.length, key_length = strlen(key);
    while (*at < length) {
        const char *item = info + *at;
        const char *end = memchr(item, 0, length - *at);
        if (end == NULL)
            return NULL;
        *at = (size_t)(end + 1 - info);
        if ((size_t)(end - item) > key_length && memcmp(item, key, key_length) == 0 &&
            item[key_length] == '=')
            return item + key_length + 1;
    }
    return NULL;
}

/* ---- The set ---- */

static struct module *find_module(struct set *set, const char *name) {
    for (unsigned i = 0; i < set->count; i++)
        if (strcmp(set->modules[i].name, name) == 0)
            return &set->modules[i];
    return NULL;
}

static int add_patterns(struct module *module, const char *patterns, struct error *err) {
    char *all = NULL;
    /* The analyzer does not know that asprintf sets what is freed below. NOLINTNEXTLINE */
    if (asprintf(&all, "%s%s%s", module->patterns != NULL ? module->patterns : "",
                 module->patterns != NULL && patterns[0] != 0 ? " " : "", patterns) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    free(module->patterns);
    module->patterns = all;
    module->at_boot = true;
    return 0;
}

static int add_module(struct set *set, const char *name, const char *patterns, unsigned depth,
                      struct error *err);

/* Everything that "depends=a,b" names; patterns NULL: not at boot. */
static int add_dependencies(struct set *set, const struct module *module, const char *patterns,
                            unsigned depth, struct error *err) {
    size_t at = 0;
    const char *depends = next_value(module, "depends", &at);
    char *list = strdup(depends != NULL ? depends : ""), *save = NULL;
    if (list == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int result = 0;
    for (char *name = strtok_r(list, ",", &save); name != NULL && result == 0;
         name = strtok_r(NULL, ",", &save)) {
        for (char *p = name; *p != 0; p++)
            *p = *p == '-' ? '_' : *p;
        result = add_module(set, name, patterns, depth + 1, err);
    }
    free(list);
    return result;
}

static void free_module(struct module *module) {
    file_free(&module->file);
    free(module->path);
    free(module->patterns);
}

/* ---- Unpacking, as newer kernels' packages want it ---- */

static int unpack(struct file_bytes *file, const char *path, struct error *err) {
    size_t size = 8 * file->length, used = 0, at = 0;
    uint64_t limit = MIB(64);
    uint8_t *data = size <= FILE_BYTES_MAX ? malloc(size) : NULL;
    lzma_ret status = LZMA_BUF_ERROR;
    while (data != NULL &&
           (status = lzma_stream_buffer_decode(&limit, 0, NULL, file->data, &at, file->length, data,
                                               &used, size)) == LZMA_BUF_ERROR) {
        free(data);
        size *= 2;
        used = at = 0;
        data = size <= FILE_BYTES_MAX ? malloc(size) : NULL;
    }
    if (status != LZMA_OK) {
        free(data);
        return error_set(err, -EINVAL, "%s: the module cannot be unpacked", path);
    }
    file_free(file);
    *file = (struct file_bytes){data, used};
    return 0;
}

static int open_module(const struct set *set, const char *name, const char *path,
                       struct module *module, struct error *err) {
    *module = (struct module){0};
    snprintf(module->name, sizeof module->name, "%s", name);
    bool packed = ends_with(path, ".xz");
    int result = file_read(path, &module->file, err);
    if (result == 0 && packed)
        result = unpack(&module->file, path, err);
    if (result < 0) {
        free_module(module);
        return result;
    }
    module->info = find_section(module->file, ".modinfo");
    module->path = strdup(path + strlen(set->tree) + 1);
    if (module->path != NULL) {
        if (packed)
            module->path[strlen(module->path) - 3] = 0;
        return 0;
    }
    free_module(module);
    return error_set(err, -ENOMEM, "out of memory");
}

static int add_module(struct set *set, const char *name, const char *patterns, unsigned depth,
                      struct error *err) {
    enum { DEPTH_MAX = 16 };
    struct module *known = find_module(set, name);
    const char *path = find_path(name);
    if (depth > DEPTH_MAX)
        return error_set(err, -EINVAL, "module %s depends on itself", name);
    int result = 0;
    if (known == NULL && path != NULL) {
        struct module module;
        if ((result = open_module(set, name, path, &module, err)) < 0)
            return result;
        if ((result = add_dependencies(set, &module, patterns, depth, err)) == 0 &&
            set->count == MODULES_MAX)
            result = error_set(err, -E2BIG, "more than %d modules", MODULES_MAX);
        if (result < 0) {
            free_module(&module);
            return result;
        }
        known = &set->modules[set->count++];
        *known = module;
    } else if (known != NULL && patterns != NULL) {
        result = add_dependencies(set, known, patterns, depth, err);
    }
    if (result == 0 && known != NULL && patterns != NULL)
        result = add_patterns(known, patterns, err);
    return result;
}

/* A boot module: its own device aliases say when it is wanted. */
static int add_boot_module(struct set *set, const char *name, struct error *err) {
    struct module module;
    const char *path = find_path(name), *alias;
    if (path == NULL)
        return 0;
    int result = open_module(set, name, path, &module, err);
    if (result < 0)
        return result;
    char patterns[1024] = "";
    size_t at = 0, used = 0;
    while ((alias = next_value(&module, "alias", &at)) != NULL)
        if (strchr(alias, ':') != NULL && used + strlen(alias) + 2 < sizeof patterns)
            used += (size_t)snprintf(patterns + used, sizeof patterns - used, "%s%s",
                                     used > 0 ? " " : "", alias);
    free_module(&module);
    return add_module(set, name, patterns, 0, err);
}

static int collect(struct set *set, struct error *err) {
    int result = 0;
    for (size_t i = 0; i < ARRAY_SIZE(boot_modules) && result == 0; i++)
        result = add_boot_module(set, boot_modules[i], err);
    for (size_t i = 0; i < ARRAY_SIZE(other_modules) && result == 0; i++)
        result = add_module(set, other_modules[i], NULL, 0, err);
    return result;
}

/* ---- What goes into the archive ---- */

/* path: dependencies; modprobe loads the last one first. */
static void write_dependencies(FILE *out, struct set *set, const struct module *module,
                               unsigned depth) {
    size_t at = 0;
    const char *depends = next_value(module, "depends", &at);
    char names[512], *save = NULL;
    snprintf(names, sizeof names, "%s", depends != NULL ? depends : "");
    for (char *name = strtok_r(names, ",", &save); name != NULL && depth < 8;
         name = strtok_r(NULL, ",", &save)) {
        for (char *p = name; *p != 0; p++)
            *p = *p == '-' ? '_' : *p;
        struct module *other = find_module(set, name);
        if (other == NULL)
            continue;
        fprintf(out, " %s", other->path);
        write_dependencies(out, set, other, depth + 1);
    }
}

static void write_dep(FILE *out, struct set *set, const char *release) {
    for (unsigned i = 0; i < set->count; i++) {
        fprintf(out, "%s:", set->modules[i].path);
        write_dependencies(out, set, &set->modules[i], 0);
        fputc('\n', out);
    }
}

static void write_alias(FILE *out, struct set *set, const char *release) {
    for (unsigned i = 0; i < set->count; i++) {
        size_t at = 0;
        const char *alias;
        while ((alias = next_value(&set->modules[i], "alias", &at)) != NULL)
            fprintf(out, "alias %s %s\n", alias, set->modules[i].name);
    }
}

static void write_boot_list(FILE *out, struct set *set, const char *release) {
    for (unsigned i = 0; i < set->count; i++)
        if (set->modules[i].at_boot)
            fprintf(out, "/lib/modules/%s/%s%s%s\n", release, set->modules[i].path,
                    set->modules[i].patterns[0] != 0 ? " " : "", set->modules[i].patterns);
}

static int put_text(struct set *set, const char *release, const char *path,
                    void (*write)(FILE *out, struct set *set, const char *release),
                    struct cpio *cpio, struct error *err) {
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (out == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    write(out, set, release);
    int result = fclose(out) != 0 ? error_set(err, -ENOMEM, "out of memory")
                                  : cpio_data(cpio, path, 0644, text, length, err);
    free(text);
    return result;
}

/* The directories above path, each once: modules of one directory follow each other or not. */
static int put_directories(struct cpio *cpio, const char *path, struct error *err) {
    char part[PATH_MAX];
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        int result = cpio_directory(cpio, part, 0755, err);
        if (result < 0)
            return result;
    }
    return 0;
}

static int put_modules(struct set *set, const char *release, struct cpio *cpio, struct error *err) {
    char path[PATH_MAX];
    int result = 0;
    for (unsigned i = 0; i < set->count && result == 0; i++) {
        const struct module *module = &set->modules[i];
        snprintf(path, sizeof path, "lib/modules/%s/%s", release, module->path);
        if ((result = put_directories(cpio, path, err)) == 0)
            result = cpio_data(cpio, path, 0644, module->file.data, module->file.length, err);
    }
    static const struct {
        const char *name;
        void (*write)(FILE *out, struct set *set, const char *release);
    } texts[] = {{"modules.dep", write_dep}, {"modules.alias", write_alias}};
    for (size_t i = 0; i < ARRAY_SIZE(texts) && result == 0; i++) {
        snprintf(path, sizeof path, "lib/modules/%s/%s", release, texts[i].name);
        result = put_text(set, release, path, texts[i].write, cpio, err);
    }
    return result == 0 ? put_text(set, release, "etc/modules.lodge", write_boot_list, cpio, err)
                       : result;
}

int modules_pack(const char *tree, const char *release, struct cpio *cpio, struct error *err) {
    struct set *set = calloc(1, sizeof *set);
    if (set == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    set->tree = tree;
    nftw(tree, index_one, 16, FTW_PHYS);
    int result = found.count == 0 ? error_set(err, -ENOENT, "%s: no kernel modules in it", tree)
                                  : collect(set, err);
    if (result == 0)
        result = put_modules(set, release, cpio, err);
    for (unsigned i = 0; i < set->count; i++)
        free_module(&set->modules[i]);
    free(set);
    free_index();
    return result;
}
