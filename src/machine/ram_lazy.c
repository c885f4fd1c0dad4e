#include "machine/ram_lazy.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "machine/ram_packed.h"
#include "memory/missing.h"

/* Of an uncompressed layer so many pages come together. */
enum { CLUSTER = 16 };

struct ram_lazy {
    struct memory *memory;
    struct ram_chain chain;
    struct ram_unpacker *unpacker[RAM_CHAIN_MAX]; /* NULL: the layer is not compressed */
};

/* ---- Where a page of the image is in memory ---- */

static uint64_t page_of(const struct memory *memory, uint64_t gpa) {
    struct memory_ram region;
    uint64_t first = 0;
    for (unsigned i = 0; memory_ram_region(memory, i, &region); i++) {
        if (gpa - region.gpa < region.size)
            return first + ((gpa - region.gpa) >> PAGE_SHIFT);
        first += region.size >> PAGE_SHIFT;
    }
    return UINT64_MAX;
}

static uint64_t gpa_of(const struct memory *memory, uint64_t page) {
    struct memory_ram region;
    for (unsigned i = 0; memory_ram_region(memory, i, &region); i++) {
        if (page < region.size >> PAGE_SHIFT)
            return region.gpa + (page << PAGE_SHIFT);
        page -= region.size >> PAGE_SHIFT;
    }
    return UINT64_MAX;
}

/* The first layer that has the page; the last has all. */
static unsigned layer_of(const struct ram_chain *chain, uint64_t page) {
    unsigned layer = 0;
    while (layer + 1 < chain->count &&
           !(chain->layer[layer].map.pages.own[page / 64] >> page % 64 & 1))
        layer++;
    return layer;
}

/* ---- The source ---- */

/* There is nothing to go on with. The signal ends the process as it does when a mapped file is cut
 * short; this thread has blocked it. */
__attribute__((noreturn)) static void lose(const struct ram_layer *layer, const char *why) {
    char text[PATH_MAX + ERROR_TEXT_MAX + 64];
    sigset_t bus;
    int length = snprintf(text, sizeof text,
                          "lodge: memory of the snapshot %s cannot be read any more: %s: the VM "
                          "has ended\n",
                          layer->path, why);
    (void)!write(STDERR_FILENO, text, (size_t)length);
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    signal(SIGBUS, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
    raise(SIGBUS);
    abort();
}

/* A page that a layer above has, too, is not this one's to give. Those of zeros take no memory
 * before they are written to. */
static void supply(const struct ram_lazy *lazy, unsigned layer, uint64_t page,
                   const uint8_t *bytes) {
    if (layer_of(&lazy->chain, page) == layer)
        memory_supply(lazy->memory, gpa_of(lazy->memory, page),
                      bytes_are_zero(bytes, PAGE_SIZE) ? NULL : bytes, PAGE_SIZE);
}

static void bring_chunk(const struct ram_lazy *lazy, unsigned n, uint64_t page) {
    struct ram_chunk chunk;
    struct error why;
    if (ram_unpacker_read(lazy->unpacker[n], page, &chunk, &why) < 0)
        lose(&lazy->chain.layer[n], why.text);
    for (unsigned i = 0; i < chunk.count; i++)
        supply(lazy, n, chunk.page[i], chunk.bytes + (size_t)i * PAGE_SIZE);
}

static void bring_cluster(const struct ram_lazy *lazy, unsigned n, uint64_t page) {
    uint8_t bytes[CLUSTER * PAGE_SIZE];
    const struct ram_layer *layer = &lazy->chain.layer[n];
    uint64_t first = page - page % CLUSTER, left = layer->map.pages.count - first;
    size_t length = (size_t)(left < CLUSTER ? left : CLUSTER) * PAGE_SIZE;
    for (size_t done = 0; done < length;) {
        ssize_t got =
            pread(layer->fd, bytes + done, length - done, (off_t)((first << PAGE_SHIFT) + done));
        if (got == 0 || (got < 0 && errno != EINTR))
            lose(layer, got == 0 ? "the file was cut short" : strerror(errno));
        done += got > 0 ? (size_t)got : 0;
    }
    for (size_t i = 0; i < length / PAGE_SIZE; i++)
        supply(lazy, n, first + i, bytes + i * PAGE_SIZE);
}

static void want(void *context, uint64_t gpa, bool waits) {
    const struct ram_lazy *lazy = context;
    uint64_t page = page_of(lazy->memory, gpa);
    unsigned layer = layer_of(&lazy->chain, page);
    if (memory_is_here(lazy->memory, gpa, PAGE_SIZE))
        return; /* it came with another */
    if (lazy->unpacker[layer] != NULL)
        bring_chunk(lazy, layer, page);
    else
        bring_cluster(lazy, layer, page);
}

/* ---- Life ---- */

static int open_layers(struct ram_lazy *lazy, const struct ram_chain *chain, struct error *err) {
    int result = 0;
    for (unsigned i = 0; i < chain->count && result == 0; i++) {
        const struct ram_layer *layer = &chain->layer[i];
        struct error why;
        if (layer->packed && (result = ram_unpacker_open(layer->fd, &layer->map.pages,
                                                         &lazy->unpacker[i], &why)) < 0)
            error_set(err, result, "%s/ram.zst: %s", layer->path, why.text);
    }
    return result;
}

static int take_all(struct memory *memory) {
    struct memory_ram region;
    int result = 0;
    for (unsigned i = 0; memory_ram_region(memory, i, &region) && result == 0; i++)
        result = memory_take(memory, region.gpa, region.size);
    return result;
}

int ram_lazy_begin(struct ram_chain *chain, struct memory *memory, bool kernel,
                   struct ram_lazy **lazy, struct error *err) {
    struct ram_lazy *made = calloc(1, sizeof *made);
    const struct missing_source source = {want, made};
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->memory = memory;
    int result = open_layers(made, chain, err);
    if (result == 0)
        result = memory_missing_begin(memory, &source, kernel, err);
    if (result < 0) {
        ram_lazy_destroy(made);
        return result;
    }
    made->chain = *chain; /* its layers stay where they are */
    *chain = (struct ram_chain){0};
    *lazy = made;
    result = take_all(memory);
    return result < 0 ? error_set_errno(err, result, "saved memory cannot be brought") : 0;
}

void ram_lazy_destroy(struct ram_lazy *lazy) {
    if (lazy == NULL)
        return;
    for (unsigned i = 0; i < RAM_CHAIN_MAX; i++)
        ram_unpacker_close(lazy->unpacker[i]);
    ram_chain_close(&lazy->chain);
    free(lazy);
}
