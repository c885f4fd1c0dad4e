/* Perf maps: a line "START SIZE NAME" in hexadecimal for each piece of translated code. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cpu/profile.h"
#include "machine/private.h"
#include "machine/profile.h"

struct perf_map {
    struct machine *machine;
    struct guest_symbols *symbols; /* or NULL */
    struct code_listener listener;
    FILE *file;
    struct error error;
    int result;
};

static void print_name(FILE *file, const struct guest_symbols *symbols, uint64_t rip,
                       unsigned cpl) {
    const struct guest_symbol *s = NULL;
    if (symbols != NULL && cpl != 3)
        s = guest_symbols_find(symbols, rip);
    if (s != NULL)
        fprintf(file, "guest:%s+0x%" PRIx64 "%s%s\n", guest_symbol_name(symbols, s),
                rip - s->address, s->module != 0 ? " " : "", guest_symbol_module(symbols, s));
    else
        fprintf(file, "guest:%s:0x%" PRIx64 "\n", cpl == 3 ? "user" : "kernel", rip);
}

/* The vCPU's thread, or any while none runs: one vCPU's code at a time in the file's lock. */
static void on_made(void *context, uintptr_t code, size_t size, uint64_t rip, unsigned cpl) {
    struct perf_map *map = context;
    flockfile(map->file);
    fprintf(map->file, "%" PRIxPTR " %zx ", code, size);
    print_name(map->file, map->symbols, rip, cpl);
    funlockfile(map->file);
}

/* perf knows no time: what is gone would only hide what is there now. */
static void on_dropped(void *context) {
    struct perf_map *map = context;
    if (map->machine->config.vcpus != 1)
        return;
    fflush(map->file);
    if (ftruncate(fileno(map->file), 0) == 0)
        rewind(map->file);
}

/* From the beginning: the listener is told of everything that is there. */
static void listen_parked(void *context) {
    struct perf_map *map = context;
    on_dropped(map);
    for (unsigned i = 0; i < map->machine->config.vcpus && map->result == 0; i++)
        map->result = vcpu_listen_code(map->machine->vcpus[i].vcpu, &map->listener, &map->error);
}

static void ignore_parked(void *context) {
    struct perf_map *map = context;
    for (unsigned i = 0; i < map->machine->config.vcpus; i++)
        vcpu_listen_code(map->machine->vcpus[i].vcpu, NULL, NULL);
}

/* Never one that somebody else has laid there. */
static FILE *create_file(struct error *err) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (file == NULL) {
        error_set_errno(err, -errno, "cannot make %s", path);
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    /* Whole lines: perf may read at any time. */
    setvbuf(file, NULL, _IOLBF, 4096);
    return file;
}

int perf_map_start(struct machine *machine, struct perf_map **map, struct error *err) {
    struct perf_map *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->machine = machine;
    made->listener =
        (struct code_listener){.made = on_made, .dropped = on_dropped, .context = made};
    made->file = create_file(err);
    if (made->file == NULL) {
        free(made);
        return -EACCES;
    }
    machine_with_vcpus_parked(machine, listen_parked, made);
    if (made->result < 0) {
        int result = made->result;
        if (err != NULL)
            *err = made->error;
        perf_map_stop(made);
        return result;
    }
    *map = made;
    return 0;
}

void perf_map_name(struct perf_map *map, struct guest_symbols *symbols) {
    guest_symbols_free(map->symbols);
    map->symbols = symbols;
    machine_with_vcpus_parked(map->machine, listen_parked, map);
}

void perf_map_stop(struct perf_map *map) {
    if (map == NULL)
        return;
    machine_with_vcpus_parked(map->machine, ignore_parked, map);
    fclose(map->file);
    guest_symbols_free(map->symbols);
    free(map);
}
