/*
 * Runs a harness without libFuzzer: all files of a folder as they are, and each with changes that
 * are the same every time. usage: replay FOLDER CHANGES
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INPUT_MAX = 4096, CHANGES_MAX = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t seed = 1;

static uint64_t next_random(void) { /* splitmix64 */
    uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static size_t pick(size_t below) {
    return (size_t)(next_random() % below);
}

/* A byte changed, a piece gone, a piece once more, or the end gone. */
static size_t change(uint8_t *bytes, size_t length) {
    size_t at = pick(length), piece = 1 + pick(length - at), room = INPUT_MAX - length;
    switch (pick(4)) {
    case 0: bytes[at] = (uint8_t)next_random(); return length;
    case 1: memmove(bytes + at, bytes + at + piece, length - at - piece); return length - piece;
    case 2:
        piece = piece < room ? piece : room;
        memmove(bytes + at + piece, bytes + at, length - at);
        return length + piece;
    default: return at;
    }
}

/* A copy of its own length, so that sanitizers see what is behind it. */
static void run(const uint8_t *bytes, size_t length) {
    uint8_t *copy = malloc(length + (length == 0));
    if (copy == NULL)
        abort();
    memcpy(copy, bytes, length);
    LLVMFuzzerTestOneInput(copy, length);
    free(copy);
}

static void run_file(const char *folder, const char *name, unsigned changes) {
    static uint8_t whole[INPUT_MAX], bytes[INPUT_MAX];
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return;
    size_t length = fread(whole, 1, sizeof whole, file);
    fclose(file);
    run(whole, length);
    for (unsigned i = 0; i < changes; i++) {
        size_t now = length;
        memcpy(bytes, whole, length);
        for (size_t n = 1 + pick(CHANGES_MAX); n > 0 && now > 0; n--)
            now = change(bytes, now);
        run(bytes, now);
    }
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

int main(int argc, char **argv) {
    struct dirent **entries;
    int count = argc == 3 ? scandir(argv[1], &entries, is_visible, alphasort) : -1;
    if (count <= 0) {
        fprintf(stderr, "usage: replay FOLDER CHANGES\n");
        return 2;
    }
    for (int i = 0; i < count; i++) {
        run_file(argv[1], entries[i]->d_name, (unsigned)strtoul(argv[2], NULL, 10));
        free(entries[i]);
    }
    free(entries);
    return 0;
}
