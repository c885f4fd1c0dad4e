#include "image/libarchive.h"

#include "base/bytes.h"

struct libarchive la;

int libarchive_load(struct error *err) {
    static const char *const names[] = {LIBARCHIVE_FUNCTIONS(LIBRARY_NAME)};
    return library_load("libarchive.so.13", names, ARRAY_SIZE(names), &la, err);
}
