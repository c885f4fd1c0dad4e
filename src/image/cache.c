#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image/file.h"
#include "image/guest.h"
#include "image/image.h"

int program_directory(char path[PATH_MAX], struct error *err) {
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (length < 0)
        return error_set_errno(err, -errno, "/proc/self/exe");
    path[length] = 0;
    *strrchr(path, '/') = 0;
    return 0;
}

static bool exists_in(const char *directory, const char *name) {
    char path[PATH_MAX];
    return path_join(path, directory, name, NULL) == 0 && access(path, R_OK) == 0;
}

int image_cache_path(char path[PATH_MAX], struct error *err) {
    const char *own = getenv("LODGE_CACHE"), *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    char program[PATH_MAX];
    int length;
    if (own != NULL && own[0] == '/')
        length = snprintf(path, PATH_MAX, "%s", own);
    else if (program_directory(program, NULL) == 0 && exists_in(program, "build.ninja"))
        length = snprintf(path, PATH_MAX, "%.*s/.cache/lodge",
                          (int)(strrchr(program, '/') - program), program);
    else if (xdg != NULL && xdg[0] == '/')
        length = snprintf(path, PATH_MAX, "%s/lodge", xdg);
    else if (home != NULL && home[0] == '/')
        length = snprintf(path, PATH_MAX, "%s/.cache/lodge", home);
    else
        return error_set(err, -ENOENT,
                         "no place for the default guest: set LODGE_CACHE to a directory");
    if (length < 0 || length >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the cache directory's name is too long");
    return 0;
}

int agent_path(char path[PATH_MAX], struct error *err) {
    char program[PATH_MAX];
    int result = program_directory(program, err);
    if (result < 0)
        return result;
    static const char *const places[] = {"guest/agent/lodge-agent", "../libexec/lodge/lodge-agent"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++)
        if (exists_in(program, places[i]))
            return path_join(path, program, places[i], err);
    return error_set(err, -ENOENT,
                     "lodge-agent is neither in %s/%s nor in %s/%s; install lodge again", program,
                     places[0], program, places[1]);
}
