#include "machine/clone.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "image/file.h"
#include "machine/snapshot_store.h"
#include "machine/vm_store.h"

/* ---- Where it comes from ---- */

int clone_parse(const char *text, struct clone_source *source, struct error *err) {
    const char *at = strchr(text, '@');
    size_t length = at != NULL ? (size_t)(at - text) : 0;
    if (length == 0 || length > VM_NAME_MAX || at[1] == 0 || strlen(at + 1) > VM_NAME_MAX)
        return error_set(err, -EINVAL,
                         "'%.130s' is no snapshot: VM@SNAPSHOT, as 'lodge snapshot "
                         "ls VM' names them",
                         text);
    *source = (struct clone_source){0};
    memcpy(source->vm, text, length);
    snprintf(source->snapshot, sizeof source->snapshot, "%s", at + 1);
    return vm_name_check(source->vm, err);
}

int clone_open(struct clone_source *source, struct error *err) {
    if (!vm_store_has(source->vm))
        return error_set(err, -ENOENT, "no VM named '%s' is kept; 'lodge ps -a' lists them",
                         source->vm);
    int result = vm_store_path(source->vm, ".", source->directory, err);
    if (result == 0)
        result = vm_store_load(source->vm, &source->options, err);
    if (result == 0)
        result = snapshot_load(source->directory, source->snapshot, &source->about, err);
    if (result == -ENOENT)
        return error_set(err, result,
                         "'%s' has no snapshot '%s'; 'lodge snapshot create %s %s' takes one",
                         source->vm, source->snapshot, source->vm, source->snapshot);
    return result == 0 ? snapshot_path(source->directory, source->snapshot, source->saved, err)
                       : result;
}

void clone_close(struct clone_source *source) {
    json_decref(source->about);
    json_decref(source->options);
    source->about = source->options = NULL;
}

unsigned clone_vcpus(const struct clone_source *source) {
    return (unsigned)json_integer_value(json_object_get(source->about, "vcpus"));
}

const char *clone_disk(const struct clone_source *source, unsigned disk) {
    char name[16];
    json_t *each;
    size_t i;
    snprintf(name, sizeof name, "disk%u", disk);
    json_array_foreach(json_object_get(source->about, "disks"), i, each) {
        const char *is = json_string_value(json_object_get(each, "disk"));
        if (is != NULL && strcmp(is, name) == 0)
            return json_string_value(json_object_get(each, "file"));
    }
    return NULL;
}

/* ---- What stands on it ---- */

int clone_keep(const struct clone_source *source, unsigned disks, const char *directory,
               struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, "clone.json", err);
    json_t *clone = json_pack("{s:s, s:s, s:i}", "vm", source->vm, "snapshot", source->snapshot,
                              "disks", (int)disks);
    if (result == 0 && json_dump_file(clone, path, JSON_INDENT(2)) < 0)
        result = error_set_errno(err, errno != 0 ? -errno : -EIO, "%s", path);
    json_decref(clone);
    return result;
}

static bool is_member(const json_t *object, const char *member, const char *value) {
    const char *is = json_string_value(json_object_get(object, member));
    return is != NULL && strcmp(is, value) == 0;
}

static bool stands_on(const char *name, const char *vm, const char *snapshot) {
    char path[PATH_MAX];
    json_t *clone = vm_store_path(name, "clone.json", path, NULL) == 0
                        ? json_load_file(path, JSON_REJECT_DUPLICATES, NULL)
                        : NULL;
    bool does = json_integer_value(json_object_get(clone, "disks")) > 0 &&
                is_member(clone, "vm", vm) &&
                (snapshot == NULL || is_member(clone, "snapshot", snapshot));
    json_decref(clone);
    return does;
}

int clone_check_users(const char *vm, const char *snapshot, struct error *err) {
    char **names, first[VM_NAME_MAX + 1] = "", snapshots[PATH_MAX];
    size_t count, users = 0;
    if (vm_store_path(vm, "snapshots", snapshots, NULL) == 0 && access(snapshots, F_OK) < 0)
        return 0; /* it never had any: of many clones each may be removed without a look at all
                     others */
    int result = vm_store_list(&names, &count, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count; i++) {
        if (stands_on(names[i], vm, snapshot) && users++ == 0)
            snprintf(first, sizeof first, "%s", names[i]);
        free(names[i]);
    }
    free(names);
    if (users == 0)
        return 0;
    return error_set(err, -EBUSY,
                     "disks of %zu clone%s stand on those of '%s%s%s': 'lodge rm %s'%s "
                     "first",
                     users, users == 1 ? "" : "s", vm, snapshot != NULL ? "@" : "",
                     snapshot != NULL ? snapshot : "", first, users == 1 ? "" : " and the others");
}

/* ---- Who it is ---- */

/* '.' and '_' may be in a VM's name, and not in a host's. */
static void make_host_name(const char *name, const uint8_t random[3], char *host_name) {
    int length = snprintf(host_name, AGENT_HOST_NAME_MAX + 1, "%.50s", name);
    if (random != NULL)
        snprintf(host_name + length, (size_t)(AGENT_HOST_NAME_MAX + 1 - length), "-%02x%02x%02x",
                 random[0], random[1], random[2]);
    for (char *at = host_name; *at != 0; at++)
        if (*at == '.' || *at == '_')
            *at = '-';
}

int clone_identity_make(const char *vm, const char *name, struct clone_identity *identity,
                        struct error *err) {
    uint8_t random[16 + 6 + 3];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return error_set_errno(err, -errno, "getrandom");
    *identity = (struct clone_identity){0};
    memcpy(identity->machine_id, random, 16);
    memcpy(identity->mac, random + 16, 6);
    /* A random UUID (RFC 9562, version 4), as machine-id(5) wants it. */
    identity->machine_id[6] = (uint8_t)(0x40 | (identity->machine_id[6] & 0x0f));
    identity->machine_id[8] = (uint8_t)(0x80 | (identity->machine_id[8] & 0x3f));
    identity->mac[0] = 0x02; /* locally administered */
    make_host_name(name != NULL ? name : vm, name != NULL ? NULL : random + 22,
                   identity->host_name);
    return 0;
}
