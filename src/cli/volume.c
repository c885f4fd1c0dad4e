#include "cli/volume.h"

#include <stdio.h>
#include <string.h>

#include "fs/fs.h"

/* The colon before the guest's path: the last that a slash follows. */
size_t volume_host_length(const char *value) {
    const char *last = NULL;
    for (const char *at = value; (at = strstr(at, ":/")) != NULL; at++)
        last = at;
    return last != NULL ? (size_t)(last - value) : 0;
}

/* Takes the word behind the guest's path off. False: it is none that there is. */
static bool take_word(char *guest, bool *readonly) {
    char *word = strrchr(guest, ':');
    if (word == NULL)
        return true;
    *readonly = strcmp(word + 1, "ro") == 0;
    if (!*readonly && strcmp(word + 1, "rw") != 0)
        return false;
    *word = 0;
    return true;
}

/* Takes slashes out that mean nothing. False: "." or ".." in it, or the root. */
static bool tidy(char *path) {
    char *to = path;
    for (const char *from = path; *from != 0;) {
        from += strspn(from, "/");
        size_t length = strcspn(from, "/");
        if (length == 0)
            break;
        if ((length == 1 && from[0] == '.') || (length == 2 && from[0] == '.' && from[1] == '.'))
            return false;
        *to++ = '/';
        memmove(to, from, length);
        to += length;
        from += length;
    }
    if (to == path)
        return false;
    *to = 0;
    return true;
}

static bool is_within(const char *path, const char *above) {
    size_t length = strlen(above);
    return strncmp(path, above, length) == 0 && (path[length] == 0 || path[length] == '/');
}

static int check_apart(const struct machine_config *machine, const char *guest, struct error *err) {
    for (unsigned i = 0; i < machine->volume_count; i++) {
        const char *other = machine->volumes[i].guest;
        if (strcmp(guest, other) == 0)
            return error_set(err, -EINVAL, "--volume: two volumes at %.200s", guest);
        if (is_within(guest, other) || is_within(other, guest))
            return error_set(err, -EINVAL,
                             "--volume: %.150s and %.150s overlap; put them side by side", other,
                             guest);
    }
    return 0;
}

int volume_add(struct machine_config *machine, char *value, struct error *err) {
    struct volume_config volume = {.host = value};
    size_t length = volume_host_length(value);
    char *guest = value + length + 1;
    if (machine->volume_count == MACHINE_VOLUMES_MAX)
        return error_set(err, -EINVAL, "more than %d volumes", MACHINE_VOLUMES_MAX);
    if (length == 0 || strlen(guest) > VOLUME_GUEST_MAX || !take_word(guest, &volume.readonly))
        return error_set(err, -EINVAL,
                         "--volume %.200s: give HOST:GUEST or HOST:GUEST:ro, GUEST beginning "
                         "with '/'",
                         value);
    value[length] = 0;
    if (!tidy(guest))
        return error_set(err, -EINVAL,
                         "--volume: '%.200s' is no place for a volume; name a directory by its "
                         "plain path",
                         guest);
    volume.guest = guest;
    int result = check_apart(machine, guest, err);
    if (result == 0)
        result = fs_check(volume.host, err);
    if (result == 0)
        machine->volumes[machine->volume_count++] = volume;
    return result;
}
