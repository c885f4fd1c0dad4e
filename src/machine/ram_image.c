#include "machine/ram_image.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "image/file.h"
#include "machine/control_names.h"
#include "machine/ram_packed.h"

/* ram.map: a header, a bit for each page of the image, a sum for each page that is its own. */
static const uint8_t magic[8] = "LODGERAM";
enum {
    AT_FORMAT = 8,
    AT_SUM = 12, /* of all that follows */
    AT_PAGES = 16,
    AT_ID = 24,
    AT_BASE_ID = 40,
    AT_BASE = 56,
    HEADER = AT_BASE + RAM_BASE_NAME_MAX,
};

enum { COPY_PAGES = 64 };
#define PACKED "ram.zst"

/* ---- The map ---- */

static bool owns(const struct memory_pages *pages, uint64_t n) {
    return pages->own[n / 64] >> n % 64 & 1;
}

static uint64_t count_own(const struct memory_pages *pages) {
    uint64_t own = 0;
    for (uint64_t word = 0; word < (pages->count + 63) / 64; word++)
        own += (uint64_t)__builtin_popcountll(pages->own[word]);
    return own;
}

int ram_map_init(struct ram_map *map, uint64_t pages, const char *base,
                 const struct ram_map *base_map) {
    *map = (struct ram_map){0};
    if (getrandom(map->id, sizeof map->id, 0) != sizeof map->id)
        return -EIO;
    if (base != NULL) {
        memcpy(map->base_id, base_map->id, sizeof map->base_id);
        snprintf(map->base, sizeof map->base, "%s", base);
    }
    return memory_pages_init(&map->pages, pages);
}

void ram_map_free(struct ram_map *map) {
    memory_pages_free(&map->pages);
}

static int check_base(const struct ram_map *map, struct error *err) {
    static const uint8_t none[RAM_ID_BYTES];
    bool has_id = memcmp(map->base_id, none, sizeof none) != 0;
    if (memchr(map->base, 0, sizeof map->base) == NULL || has_id != (map->base[0] != 0) ||
        (has_id && vm_name_check(map->base, NULL) < 0))
        return error_set(err, -EINVAL, "it names its base in a way that cannot be");
    if (!has_id && count_own(&map->pages) != map->pages.count)
        return error_set(err, -EINVAL, "it lacks pages, and has no base to have them from");
    return 0;
}

static int parse_pages(const uint8_t *data, size_t length, struct memory_pages *pages,
                       struct error *err) {
    uint64_t words = (pages->count + 63) / 64;
    for (uint64_t word = 0; word < words; word++)
        pages->own[word] = load_le64(data + HEADER + word * 8);
    if (pages->count % 64 != 0 && pages->own[words - 1] >> pages->count % 64 != 0)
        return error_set(err, -EINVAL, "it has pages behind the last");
    const uint8_t *sum = data + HEADER + words * 8;
    if ((length - HEADER - words * 8) / 4 != count_own(pages) || length % 4 != 0)
        return error_set(err, -EINVAL, "its length is not what its pages need");
    for (uint64_t n = 0; n < pages->count; n++)
        if (owns(pages, n)) {
            pages->sums[n] = load_le32(sum);
            sum += 4;
        }
    return 0;
}

/* A length that can be, so that what is allocated is of the size of what there is. */
static int check_header(const uint8_t *data, size_t length, struct error *err) {
    if (length < HEADER || memcmp(data, magic, sizeof magic) != 0)
        return error_set(err, -EINVAL, "it is no map of lodge's");
    if (load_le32(data + AT_FORMAT) != RAM_MAP_FORMAT)
        return error_set(err, -ENOTSUP, "it has format %u; this lodge knows %d",
                         load_le32(data + AT_FORMAT), RAM_MAP_FORMAT);
    if (crc32c(0, data + AT_PAGES, length - AT_PAGES) != load_le32(data + AT_SUM))
        return error_set(err, -EINVAL, "it is damaged");
    uint64_t pages = load_le64(data + AT_PAGES);
    if (pages == 0 || pages > (length - HEADER) * 8 || (pages + 63) / 64 * 8 > length - HEADER)
        return error_set(err, -EINVAL, "it ends early");
    return 0;
}

int ram_map_parse(const uint8_t *data, size_t length, struct ram_map *map, struct error *err) {
    *map = (struct ram_map){0};
    int result = check_header(data, length, err);
    if (result < 0)
        return result;
    if (memory_pages_init(&map->pages, load_le64(data + AT_PAGES)) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    memcpy(map->id, data + AT_ID, sizeof map->id);
    memcpy(map->base_id, data + AT_BASE_ID, sizeof map->base_id);
    memcpy(map->base, data + AT_BASE, sizeof map->base);
    result = parse_pages(data, length, &map->pages, err);
    if (result == 0)
        result = check_base(map, err);
    if (result < 0)
        ram_map_free(map);
    return result;
}

int ram_map_load(const char *directory, struct ram_map *map, struct error *err) {
    char path[PATH_MAX];
    struct file_bytes bytes = {0};
    *map = (struct ram_map){0};
    int result = path_join(path, directory, "ram.map", err);
    if (result == 0)
        result = file_read(path, &bytes, err);
    if (result != 0)
        return result;
    result = ram_map_parse(bytes.data, bytes.length, map, err);
    file_free(&bytes);
    return result < 0 ? error_prefix(err, "%s", path) : 0;
}

static uint8_t *to_bytes(const struct ram_map *map, size_t *length) {
    uint64_t words = (map->pages.count + 63) / 64;
    *length = HEADER + words * 8 + count_own(&map->pages) * 4;
    uint8_t *data = calloc(1, *length);
    if (data == NULL)
        return NULL;
    memcpy(data, magic, sizeof magic);
    store_le32(data + AT_FORMAT, RAM_MAP_FORMAT);
    store_le64(data + AT_PAGES, map->pages.count);
    memcpy(data + AT_ID, map->id, sizeof map->id);
    memcpy(data + AT_BASE_ID, map->base_id, sizeof map->base_id);
    memcpy(data + AT_BASE, map->base, sizeof map->base);
    for (uint64_t word = 0; word < words; word++)
        store_le64(data + HEADER + word * 8, map->pages.own[word]);
    uint8_t *sum = data + HEADER + words * 8;
    for (uint64_t n = 0; n < map->pages.count; n++)
        if (owns(&map->pages, n)) {
            store_le32(sum, map->pages.sums[n]);
            sum += 4;
        }
    store_le32(data + AT_SUM, crc32c(0, data + AT_PAGES, *length - AT_PAGES));
    return data;
}

int ram_map_store(const char *directory, const struct ram_map *map, struct error *err) {
    size_t length;
    uint8_t *data = to_bytes(map, &length);
    if (data == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int result = file_replace(directory, "ram.map", data, length, err);
    free(data);
    return result;
}

/* ---- Chains ---- */

static int open_ram(const char *directory, int flags, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, "ram", err);
    if (result < 0)
        return result;
    int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW);
    return fd >= 0 ? fd : error_set_errno(err, -errno, "%s", path);
}

/* -ENOENT: it is not packed. */
static int open_packed(const char *directory) {
    char path[PATH_MAX];
    int result = path_join(path, directory, PACKED, NULL);
    int fd = result == 0 ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    return result == 0 && fd < 0 ? -errno : fd;
}

static int check_size(const struct ram_layer *layer, struct error *err) {
    struct stat status;
    uint64_t size = layer->map.pages.count << PAGE_SHIFT;
    if (fstat(layer->fd, &status) < 0)
        return error_set_errno(err, -errno, "%s/ram", layer->path);
    if ((uint64_t)status.st_size != size)
        return error_set(err, -EINVAL, "%s/ram has %lld bytes of memory, not %llu", layer->path,
                         (long long)status.st_size, (unsigned long long)size);
    return 0;
}

static int open_layer(const char *directory, uint64_t pages, struct ram_layer *layer,
                      struct error *err) {
    snprintf(layer->path, sizeof layer->path, "%s", directory);
    layer->fd = -1;
    int result = ram_map_load(directory, &layer->map, err);
    if (result != 0)
        return result;
    if (pages != 0 && layer->map.pages.count != pages)
        return error_set(err, -EINVAL, "%s is of a VM with other memory", directory);
    layer->fd = result = open_ram(directory, O_RDONLY, err);
    if (result == -ENOENT && (result = open_packed(directory)) >= 0) {
        layer->fd = result;
        layer->packed = true;
        return 0;
    }
    return result < 0 ? result : check_size(layer, err);
}

static int unpack_into(const struct ram_layer *layer, int fd, struct error *err) {
    struct error why = {0};
    int result = ram_unpack(layer->fd, &layer->map.pages, fd, &why);
    return result < 0 ? error_set(err, result, "%s/" PACKED ": %s", layer->path, why.text) : 0;
}

/* What is packed becomes a file without a name, beside it. */
static int unpack_layer(struct ram_layer *layer, struct error *err) {
    char path[PATH_MAX];
    int result = layer->packed ? path_join(path, layer->path, ".unpacked-XXXXXX", err) : 0;
    if (!layer->packed || result < 0)
        return result;
    int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s cannot be unpacked", layer->path);
    unlink(path);
    result = unpack_into(layer, fd, err);
    if (result < 0) {
        close(fd);
        return result;
    }
    close(layer->fd);
    layer->fd = fd;
    layer->packed = false;
    return 0;
}

/* For good: `ram` is there whole, and durable, before what it was made of goes. */
static int unpack_for_good(const struct ram_layer *layer, struct error *err) {
    char path[PATH_MAX], made[PATH_MAX], packed[PATH_MAX];
    int result = path_join(made, layer->path, ".unpacked", err);
    if (result == 0)
        result = path_join(path, layer->path, "ram", err);
    if (result == 0)
        result = path_join(packed, layer->path, PACKED, err);
    if (result < 0)
        return result;
    int fd = open(made, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", made);
    result = unpack_into(layer, fd, err);
    if (result == 0 && (fsync(fd) < 0 || rename(made, path) < 0))
        result = error_set_errno(err, -errno, "%s", path);
    close(fd);
    if (result < 0)
        unlink(made);
    else
        unlink(packed);
    return result;
}

/* Snapshots are in one directory. */
static int beside(const char *directory, const char *name, char path[PATH_MAX], struct error *err) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", directory);
    char *slash = strrchr(parent, '/');
    if (slash == NULL)
        return error_set(err, -EINVAL, "%s is no place for a snapshot", directory);
    *slash = 0;
    return path_join(path, parent, name, err);
}

int ram_chain_open(const char *directory, uint64_t pages, struct ram_chain *chain,
                   struct error *err) {
    char path[PATH_MAX];
    *chain = (struct ram_chain){.layer = calloc(RAM_CHAIN_MAX, sizeof *chain->layer)};
    if (chain->layer == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    snprintf(path, sizeof path, "%s", directory);
    for (;;) {
        struct ram_layer *layer = &chain->layer[chain->count], *above = layer - 1;
        if (chain->count == RAM_CHAIN_MAX)
            return error_set(err, -EINVAL, "%s builds upon more than %d others", directory,
                             RAM_CHAIN_MAX - 1);
        int result = open_layer(path, pages, layer, err);
        chain->count++;
        if (result < 0)
            return result;
        if (chain->count > 1 && memcmp(layer->map.id, above->map.base_id, RAM_ID_BYTES) != 0)
            return error_set(err, -EINVAL, "%s builds upon another snapshot than %s", above->path,
                             path);
        if (layer->map.base[0] == 0)
            return 0;
        pages = layer->map.pages.count;
        result = beside(layer->path, layer->map.base, path, err);
        if (result < 0)
            return result;
    }
}

void ram_chain_close(struct ram_chain *chain) {
    for (unsigned i = 0; i < chain->count; i++) {
        if (chain->layer[i].fd >= 0)
            close(chain->layer[i].fd);
        ram_map_free(&chain->layer[i].map);
    }
    free(chain->layer);
    *chain = (struct ram_chain){0};
}

/*
 * A page that the file has no more, or the host cannot read: there is nothing to go on with, so the
 * VM ends as by a power failure, and says why. One message for the process: it maps one chain.
 */
static char why_ended[PATH_MAX + 128];
static struct sigaction before;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    if (info->si_code > 0 && write(STDERR_FILENO, why_ended, strlen(why_ended)) < 0)
        number = SIGBUS;              /* there is nobody to tell */
    sigaction(number, &before, NULL); /* the access is tried again, and ends the process */
}

/* On a stack of its own where the thread has one: translated code uses RSP for the guest. */
static void tell_bus_errors(const struct ram_chain *chain) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    snprintf(
        why_ended, sizeof why_ended,
        "lodge: memory of the snapshot %s cannot be read any more (was a file cut short?): the VM "
        "has ended\n",
        chain->layer[0].path);
    sigaction(SIGBUS, &action, &before);
}

int ram_chain_map(struct ram_chain *chain, struct memory *memory, struct error *err) {
    struct memory_layer layers[RAM_CHAIN_MAX];
    int result = 0;
    for (unsigned i = 0; i < chain->count && result == 0; i++)
        result = unpack_layer(&chain->layer[i], err);
    if (result < 0)
        return result;
    for (unsigned i = 0; i < chain->count; i++)
        layers[i] = (struct memory_layer){chain->layer[i].fd, chain->layer[i].map.pages.own};
    tell_bus_errors(chain);
    return memory_map_image(memory, layers, chain->count, err);
}

/* ---- Checking ---- */

/* Whole pages of `ram`, which has its size. */
static int read_pages(int fd, uint64_t first, uint64_t count, uint8_t *to) {
    size_t length = count << PAGE_SHIFT, done = 0;
    while (done < length) {
        ssize_t got = pread(fd, to + done, length - done, (off_t)((first << PAGE_SHIFT) + done));
        if (got == 0 || (got < 0 && errno != EINTR))
            return got == 0 ? -EIO : -errno;
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

/* How many pages from n on a layer owns, `most` or less. */
static uint64_t own_run(const struct memory_pages *pages, uint64_t n, uint64_t most) {
    uint64_t run = 0;
    while (run < most && n + run < pages->count && owns(pages, n + run))
        run++;
    return run;
}

static int check_layer(const struct ram_layer *layer, struct error *err) {
    static const uint64_t one = 1;
    const struct memory_pages *pages = &layer->map.pages;
    uint8_t *buffer = malloc(COPY_PAGES * (size_t)PAGE_SIZE);
    int result = buffer == NULL ? error_set(err, -ENOMEM, "out of memory") : 0;
    for (uint64_t n = 0, run; n < pages->count && result == 0; n += run > 0 ? run : one) {
        run = own_run(pages, n, COPY_PAGES);
        result = read_pages(layer->fd, n, run, buffer);
        if (result < 0)
            result = error_set_errno(err, result, "%s/ram cannot be read", layer->path);
        for (uint64_t i = 0; i < run && result == 0; i++)
            if (crc32c(0, buffer + (i << PAGE_SHIFT), PAGE_SIZE) != pages->sums[n + i])
                result = error_set(err, -EINVAL, "%s/ram is damaged: its page %llu (at %#llx)",
                                   layer->path, (unsigned long long)(n + i),
                                   (unsigned long long)(n + i) << PAGE_SHIFT);
    }
    free(buffer);
    return result;
}

int ram_chain_check(const struct ram_chain *chain, struct error *err) {
    int result = 0;
    for (unsigned i = 0; i < chain->count && result == 0; i++)
        result = chain->layer[i].packed ? unpack_into(&chain->layer[i], -1, err)
                                        : check_layer(&chain->layer[i], err);
    return result;
}

/* ---- Merging ---- */

static int write_pages(int fd, uint64_t first, uint64_t count, const uint8_t *from) {
    size_t length = count << PAGE_SHIFT, done = 0;
    while (done < length) {
        ssize_t put = pwrite(fd, from + done, length - done, (off_t)((first << PAGE_SHIFT) + done));
        if (put < 0 && errno != EINTR)
            return -errno;
        done += put > 0 ? (size_t)put : 0;
    }
    return 0;
}

/* The first page at or behind n that is no hole. */
static uint64_t next_data(int fd, uint64_t n, uint64_t count) {
    off_t at = lseek(fd, (off_t)(n << PAGE_SHIFT), SEEK_DATA);
    if (at < 0)
        return errno == ENXIO ? count : n;
    return (uint64_t)at >> PAGE_SHIFT;
}

/* What of the run from n on the child lacks and the base has. */
static uint64_t wanted_run(const struct ram_layer *child, const struct ram_layer *base,
                           uint64_t n) {
    const struct memory_pages *has = &child->map.pages, *gives = &base->map.pages;
    uint64_t run = 0;
    while (run < COPY_PAGES && n + run < has->count && !owns(has, n + run) && owns(gives, n + run))
        run++;
    return run;
}

/* Where the child owns nothing nobody looks, until its map says that it does. */
static int take_over(const struct ram_layer *child, const struct ram_layer *base) {
    uint64_t count = child->map.pages.count;
    uint8_t *buffer = malloc(COPY_PAGES * (size_t)PAGE_SIZE);
    int result = buffer == NULL ? -ENOMEM : 0;
    for (uint64_t n = next_data(base->fd, 0, count); n < count && result == 0;) {
        uint64_t run = wanted_run(child, base, n);
        if (run > 0)
            result = read_pages(base->fd, n, run, buffer);
        if (run > 0 && result == 0)
            result = write_pages(child->fd, n, run, buffer);
        n = next_data(base->fd, n + (run > 0 ? run : 1), count);
    }
    free(buffer);
    return result == 0 && fsync(child->fd) < 0 ? -errno : result;
}

static void take_over_map(struct ram_map *child, const struct ram_map *base) {
    for (uint64_t n = 0; n < child->pages.count; n++)
        if (!owns(&child->pages, n) && owns(&base->pages, n)) {
            child->pages.own[n / 64] |= UINT64_C(1) << n % 64;
            child->pages.sums[n] = base->pages.sums[n];
        }
    memcpy(child->base_id, base->base_id, sizeof child->base_id);
    memcpy(child->base, base->base, sizeof child->base);
}

static int merge(struct ram_layer *child, const struct ram_layer *base, struct error *err) {
    if (memcmp(child->map.base_id, base->map.id, RAM_ID_BYTES) != 0)
        return 0; /* it never built upon this one, whatever its name */
    int result = take_over(child, base);
    if (result < 0)
        return error_set_errno(err, result, "%s/ram cannot take over the pages of %s", child->path,
                               base->path);
    take_over_map(&child->map, &base->map);
    return ram_map_store(child->path, &child->map, err);
}

int ram_merge(const char *directory, const char *base, struct error *err) {
    struct ram_layer layers[2] = {{.fd = -1}, {.fd = -1}};
    char path[PATH_MAX];
    int result = open_layer(directory, 0, &layers[0], err);
    if (result < 0 || strcmp(layers[0].map.base, base) != 0)
        goto done;
    if (layers[0].packed && (result = unpack_for_good(&layers[0], err)) < 0)
        goto done;
    close(layers[0].fd);
    layers[0].fd = result = open_ram(directory, O_RDWR, err);
    if (result >= 0)
        result = beside(directory, base, path, err);
    if (result == 0)
        result = open_layer(path, layers[0].map.pages.count, &layers[1], err);
    if (result == 0)
        result = unpack_layer(&layers[1], err);
    if (result == 0)
        result = merge(&layers[0], &layers[1], err);
done:
    for (unsigned i = 0; i < 2; i++) {
        if (layers[i].fd >= 0)
            close(layers[i].fd);
        ram_map_free(&layers[i].map);
    }
    return result < 0 ? result : 0;
}
