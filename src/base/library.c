#include "base/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER; /* no other lock is taken in it */

static int find(void *library, const char *file, const char *name, void *pointer,
                struct error *err) {
    void *function = dlsym(library, name);
    if (function == NULL)
        return error_set(err, -ENOENT, "%s has no %s; another version is needed", file, name);
    memcpy(pointer, &function, sizeof function);
    return 0;
}

/* The last pointer is set last, and none is written again: others may be calling. */
static int load(const char *file, const char *const names[], size_t count, uint8_t *functions,
                struct error *err) {
    void *last;
    memcpy(&last, functions + (count - 1) * sizeof last, sizeof last);
    if (last != NULL)
        return 0;
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return error_set(err, -ENOENT, "a library is missing: %s", dlerror());
    int result = 0;
    for (size_t i = 0; i < count && result == 0; i++)
        result = find(library, file, names[i], functions + i * sizeof library, err);
    return result;
}

int library_load(const char *file, const char *const names[], size_t count, void *functions,
                 struct error *err) {
    pthread_mutex_lock(&loading);
    int result = load(file, names, count, functions, err);
    pthread_mutex_unlock(&loading);
    return result;
}
