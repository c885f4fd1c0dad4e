#include "machine/vm_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/file.h"
#include "machine/control_names.h"

/* What a directory is called while it is made or removed. */
static const char unfinished[] = ".unfinished";
/* A file in that of a VM that is still to start for the first time. */
static const char unstarted[] = "unstarted";

/* ---- Places ---- */

static int store_path(char path[PATH_MAX], struct error *err) {
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    int length;
    if (data != NULL && data[0] == '/')
        length = snprintf(path, PATH_MAX, "%s/lodge/vms", data);
    else if (geteuid() == 0)
        length = snprintf(path, PATH_MAX, "/var/lib/lodge/vms");
    else if (home != NULL && home[0] == '/')
        length = snprintf(path, PATH_MAX, "%s/.local/share/lodge/vms", home);
    else
        return error_set(err, -ENOENT, "no place for VMs: set HOME or XDG_DATA_HOME");
    return length < PATH_MAX ? 0 : error_set(err, -ENAMETOOLONG, "the path of VMs is too long");
}

static int vm_path(const char *name, char path[PATH_MAX], struct error *err) {
    char store[PATH_MAX];
    int result = vm_name_check(name, err);
    if (result == 0)
        result = store_path(store, err);
    return result == 0 ? path_join(path, store, name, err) : result;
}

int vm_store_path(const char *name, const char *file, char path[PATH_MAX], struct error *err) {
    char directory[PATH_MAX];
    int result = vm_path(name, directory, err);
    return result == 0 ? path_join(path, directory, file, err) : result;
}

static bool is_directory(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

bool vm_store_has(const char *name) {
    char path[PATH_MAX];
    return vm_path(name, path, NULL) == 0 && is_directory(path);
}

/* ---- Changing the store: one process at a time ---- */

static void clear_unstarted(const char *store, const char *work);

/* Locks the store and clears away what a killed process has left. The lock, or -errno. */
static int begin_change(char store[PATH_MAX], char work[PATH_MAX], struct error *err) {
    int result = store_path(store, err);
    if (result == 0)
        result = make_directories(store, err);
    if (result == 0)
        result = path_join(work, store, unfinished, err);
    if (result < 0)
        return result;
    int lock = open(store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0)
        return error_set_errno(err, -errno, "%s", store);
    while (flock(lock, LOCK_EX) < 0)
        if (errno != EINTR) {
            result = error_set_errno(err, -errno, "%s", store);
            close(lock);
            return result;
        }
    remove_tree(work);
    clear_unstarted(store, work);
    return lock;
}

int vm_store_hold(struct error *err) {
    char store[PATH_MAX], work[PATH_MAX];
    return begin_change(store, work, err);
}

/* ---- config.json ---- */

static int write_config(const char *directory, const char *name, json_t *options,
                        struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, "config.json", err);
    if (result < 0)
        return result;
    json_t *config =
        json_pack("{s:i, s:s, s:O}", "format", VM_STORE_FORMAT, "name", name, "options", options);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || config == NULL || json_dumpfd(config, fd, JSON_INDENT(2)) < 0 || fsync(fd) < 0)
        result = error_set_errno(err, errno != 0 ? -errno : -ENOMEM, "%s", path);
    json_decref(config);
    if (fd >= 0)
        close(fd);
    return result;
}

int vm_store_load(const char *name, json_t **options, struct error *err) {
    char path[PATH_MAX];
    json_error_t where;
    int result = vm_store_path(name, "config.json", path, err);
    if (result < 0)
        return result;
    if (!vm_store_has(name))
        return error_set(err, -ENOENT, "no VM named '%s'; 'lodge ps -a' lists them", name);
    json_t *config = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    if (config == NULL)
        return error_set(err, -EPROTO, "%s, line %d: %s; mend it or 'lodge rm %s'", path,
                         where.line, where.text, name);
    json_int_t format = json_integer_value(json_object_get(config, "format"));
    *options = json_incref(json_object_get(config, "options"));
    json_decref(config);
    if (format == VM_STORE_FORMAT && json_is_object(*options))
        return 0;
    json_decref(*options);
    *options = NULL;
    if (format > VM_STORE_FORMAT)
        return error_set(err, -EPROTO, "'%s' was made by a newer lodge (format %lld, not %d)", name,
                         (long long)format, VM_STORE_FORMAT);
    return error_set(err, -EPROTO, "%s is not as lodge writes it; mend it or 'lodge rm %s'", path,
                     name);
}

/* ---- Locks ---- */

/* The lock file's, open; -ENOENT. */
static int open_lock(const char *path, const char *name, struct error *err) {
    char lock[PATH_MAX];
    int result = path_join(lock, path, "lock", err);
    int fd = result == 0 ? open(lock, O_RDWR | O_CLOEXEC | O_NOFOLLOW) : result;
    if (fd < 0 && result == 0)
        return errno == ENOENT
                   ? error_set(err, -ENOENT, "no VM named '%s'; 'lodge ps -a' lists them", name)
                   : error_set_errno(err, -errno, "%s", lock);
    return fd;
}

/* An open file description's lock goes with the last process that has the file open, and can be
 * asked about without taking it. */
static bool take(int fd) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &whole) == 0;
}

static bool is_taken(int fd) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
}

/* The file that was locked is still the one at its place: nobody removed the VM meanwhile. */
static bool is_still_there(const char *path, int lock) {
    char file[PATH_MAX];
    struct stat ours, there;
    return path_join(file, path, "lock", NULL) == 0 && fstat(lock, &ours) == 0 &&
           lstat(file, &there) == 0 && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
}

/* ---- Making ---- */

/* All but the right name. */
static int make(const char *work, const char *name, json_t *options, struct error *err) {
    char lock[PATH_MAX];
    if (mkdir(work, 0700) < 0)
        return error_set_errno(err, -errno, "%s", work);
    int result = path_join(lock, work, "lock", err);
    int fd = result == 0 ? open(lock, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    if (result == 0 && fd < 0)
        result = error_set_errno(err, -errno, "%s", lock);
    if (fd >= 0)
        close(fd);
    return result == 0 ? write_config(work, name, options, err) : result;
}

/* Behind its back nobody takes it for one that was left behind. */
static int make_starting(const char *work, const char *name, struct vm_directory *directory,
                         struct error *err) {
    char mark[PATH_MAX];
    int result = path_join(mark, work, unstarted, err);
    int fd = result == 0 ? open(mark, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : result;
    if (fd < 0)
        return result < 0 ? result : error_set_errno(err, -errno, "%s", mark);
    close(fd);
    directory->lock = open_lock(work, name, err);
    if (directory->lock >= 0)
        take(directory->lock);
    return directory->lock < 0 ? directory->lock : 0;
}

static int create(const char *name, json_t *options, vm_store_filler *fill, void *context,
                  struct vm_directory *starting, struct error *err) {
    char store[PATH_MAX], work[PATH_MAX], path[PATH_MAX];
    int result = vm_path(name, path, err);
    int lock = result < 0 ? result : begin_change(store, work, err);
    if (lock < 0)
        return lock;
    if (is_directory(path))
        result = error_set(err, -EEXIST, "a VM named '%s' is there already; 'lodge rm %s' first",
                           name, name);
    else
        result = make(work, name, options, err);
    if (result == 0 && starting != NULL)
        result = make_starting(work, name, starting, err);
    if (result == 0 && fill != NULL)
        result = fill(context, work, err);
    if (result == 0 && (rename(work, path) < 0 || fsync(lock) < 0))
        result = error_set_errno(err, -errno, "%s", path);
    remove_tree(work);
    close(lock);
    return result;
}

int vm_store_create(const char *name, json_t *options, vm_store_filler *fill, void *context,
                    struct error *err) {
    return create(name, options, fill, context, NULL, err);
}

int vm_store_create_starting(const char *name, json_t *options, vm_store_filler *fill,
                             void *context, struct vm_directory *directory, struct error *err) {
    directory->lock = -1;
    int result = vm_path(name, directory->path, err);
    if (result == 0)
        result = create(name, options, fill, context, directory, err);
    if (result < 0)
        vm_store_unlock(directory);
    return result;
}

/* Of a file that may not be there. */
static int drop(const char *directory, const char *name, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, name, err);
    if (result == 0 && unlink(path) < 0 && errno != ENOENT)
        result = error_set_errno(err, -errno, "%s", path);
    return result;
}

int vm_store_started(const char *directory, struct error *err) {
    return drop(directory, unstarted, err);
}

/* ---- Locking ---- */

int vm_store_lock(const char *name, struct vm_directory *directory, struct error *err) {
    int result = vm_path(name, directory->path, err);
    if (result < 0)
        return result;
    int fd = open_lock(directory->path, name, err);
    if (fd < 0)
        return fd;
    if (!take(fd))
        result = error_set(err, -EBUSY, "'%s' is running", name);
    else if (!is_still_there(directory->path, fd))
        result = error_set(err, -ENOENT, "no VM named '%s'; 'lodge ps -a' lists them", name);
    if (result < 0)
        close(fd);
    else
        directory->lock = fd;
    return result;
}

void vm_store_unlock(struct vm_directory *directory) {
    if (directory->lock >= 0)
        close(directory->lock);
    directory->lock = -1;
}

bool vm_store_is_busy(const char *name) {
    char path[PATH_MAX];
    int fd = vm_path(name, path, NULL) == 0 ? open_lock(path, name, NULL) : -1;
    bool busy = fd >= 0 && is_taken(fd);
    if (fd >= 0)
        close(fd);
    return busy;
}

/* ---- Removing ---- */

int vm_store_remove(const char *name, struct vm_directory *directory, vm_store_checker *check,
                    struct error *err) {
    char store[PATH_MAX], work[PATH_MAX];
    int lock = begin_change(store, work, err), result = lock < 0 ? lock : 0;
    if (result == 0 && check != NULL)
        result = check(name, err);
    if (result == 0 && rename(directory->path, work) < 0)
        result = error_set_errno(err, -errno, "cannot remove %s", directory->path);
    if (result == 0)
        remove_tree(work);
    if (result == 0 && is_directory(work))
        result = error_set(err, -EACCES, "some of '%s' cannot be removed: see %s", name, work);
    if (lock >= 0)
        close(lock);
    vm_store_unlock(directory);
    return result;
}

/* ---- Moving ---- */

static const char coming[] = ".coming-%s", move_file[] = "moved-in", left_file[] = "moved-out.json";

static int coming_path(const char *store, const char *name, char path[PATH_MAX],
                       struct error *err) {
    char file[128];
    snprintf(file, sizeof file, coming, name);
    return path_join(path, store, file, err);
}

/* What a killed process has left goes; what one is at work on is busy. */
static int clear_coming(const char *path, const char *name, struct error *err) {
    int lock = open_lock(path, name, NULL);
    bool busy = lock >= 0 && is_taken(lock);
    if (lock >= 0)
        close(lock);
    if (busy)
        return error_set(err, -EBUSY, "a VM named '%s' is just being moved there", name);
    remove_tree(path);
    return 0;
}

/* Durable together with the directory. */
static int write_text(const char *directory, const char *name, const char *text,
                      struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, name, err);
    if (result < 0)
        return result;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int parent = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    size_t length = strlen(text);
    if (fd < 0 || parent < 0 || write(fd, text, length) != (ssize_t)length || fsync(fd) < 0 ||
        fsync(parent) < 0)
        result = error_set_errno(err, errno != 0 ? -errno : -EIO, "%s", path);
    if (fd >= 0)
        close(fd);
    if (parent >= 0)
        close(parent);
    return result;
}

int vm_store_expect(const char *name, json_t *options, const char *id,
                    struct vm_directory *directory, struct error *err) {
    char store[PATH_MAX], work[PATH_MAX], path[PATH_MAX];
    int result = vm_path(name, path, err);
    int lock = result < 0 ? result : begin_change(store, work, err);
    if (lock < 0)
        return lock;
    *directory = (struct vm_directory){.lock = -1};
    if (is_directory(path))
        result = error_set(err, -EEXIST, "there is a VM named '%s' already", name);
    if (result == 0)
        result = coming_path(store, name, directory->path, err);
    if (result == 0)
        result = clear_coming(directory->path, name, err);
    if (result == 0)
        result = make(directory->path, name, options, err);
    if (result == 0)
        result = write_text(directory->path, move_file, id, err);
    if (result == 0 &&
        ((directory->lock = open_lock(directory->path, name, err)) < 0 || !take(directory->lock)))
        result = -EBUSY;
    if (result < 0 && result != -EBUSY && result != -EEXIST)
        remove_tree(directory->path);
    close(lock);
    return result;
}

int vm_store_arrive(const char *name, struct vm_directory *directory, struct error *err) {
    char store[PATH_MAX], work[PATH_MAX], path[PATH_MAX];
    int result = vm_path(name, path, err);
    int lock = result < 0 ? result : begin_change(store, work, err);
    if (lock < 0)
        return lock;
    if (rename(directory->path, path) < 0)
        result = error_set_errno(err, -errno, "%s", path);
    else
        memcpy(directory->path, path, sizeof path);
    close(lock);
    return result;
}

void vm_store_sync(void) {
    char store[PATH_MAX];
    int fd = store_path(store, NULL) == 0 ? open(store, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

void vm_store_turn_away(struct vm_directory *directory) {
    remove_tree(directory->path);
    vm_store_unlock(directory);
}

static bool came_by(const char *directory, const char *id) {
    char path[PATH_MAX], text[MOVE_ID_MAX] = "";
    int fd = path_join(path, directory, move_file, NULL) == 0
                 ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
                 : -1;
    ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    return got > 0 && strcmp(text, id) == 0;
}

int vm_store_settle(const char *name, const char *id, struct error *err) {
    char store[PATH_MAX], work[PATH_MAX], path[PATH_MAX], there[PATH_MAX];
    int result = vm_path(name, there, err);
    int lock = result < 0 ? result : begin_change(store, work, err);
    if (lock < 0)
        return lock;
    bool came = came_by(there, id);
    result = came ? 0 : coming_path(store, name, path, err);
    if (result == 0 && !came && came_by(path, id)) {
        if (rename(path, work) < 0)
            result = error_set_errno(err, -errno, "%s", path);
        remove_tree(work);
    }
    close(lock);
    return result < 0 ? result : came;
}

int vm_store_mark_left(const char *directory, const char *to, const char *id, struct error *err) {
    json_t *mark = json_pack("{s:s, s:s}", "to", to, "id", id);
    char *text = mark != NULL ? json_dumps(mark, 0) : NULL;
    json_decref(mark);
    int result = text != NULL ? write_text(directory, left_file, text, err)
                              : error_set(err, -ENOMEM, "out of memory");
    free(text);
    return result;
}

int vm_store_unmark_left(const char *directory, struct error *err) {
    return drop(directory, left_file, err);
}

json_t *vm_store_left(const char *name) {
    char path[PATH_MAX];
    json_t *mark = vm_store_path(name, left_file, path, NULL) == 0
                       ? json_load_file(path, JSON_REJECT_DUPLICATES, NULL)
                       : NULL;
    if (json_is_string(json_object_get(mark, "to")) && json_is_string(json_object_get(mark, "id")))
        return mark;
    json_decref(mark);
    return NULL;
}

/* ---- Listing ---- */

static int is_vm(const struct dirent *entry) {
    return vm_name_check(entry->d_name, NULL) == 0;
}

static bool has_started(const char *store, const char *name) {
    char path[PATH_MAX], mark[PATH_MAX];
    return path_join(path, store, name, NULL) < 0 || path_join(mark, path, unstarted, NULL) < 0 ||
           access(mark, F_OK) < 0;
}

static void clear_unstarted(const char *store, const char *work) {
    struct dirent **entries = NULL;
    int found = scandir(store, &entries, is_vm, NULL);
    for (int i = 0; i < found; i++) {
        const char *name = entries[i]->d_name;
        char path[PATH_MAX];
        if (!has_started(store, name) && !vm_store_is_busy(name) &&
            path_join(path, store, name, NULL) == 0 && rename(path, work) == 0)
            remove_tree(work);
        free(entries[i]);
    }
    free(entries);
}

int vm_store_list(char ***names, size_t *count, struct error *err) {
    char store[PATH_MAX];
    struct dirent **entries = NULL;
    int result = store_path(store, err);
    if (result < 0)
        return result;
    int found = scandir(store, &entries, is_vm, alphasort);
    if (found < 0 && errno != ENOENT)
        return error_set_errno(err, -errno, "cannot read %s", store);
    *names = calloc((size_t)(found > 0 ? found : 0) + 1, sizeof **names);
    *count = 0;
    for (int i = 0; i < found; i++) {
        bool listed = *names != NULL && has_started(store, entries[i]->d_name);
        char *name = listed ? strdup(entries[i]->d_name) : NULL;
        if (name != NULL)
            (*names)[(*count)++] = name;
        free(entries[i]);
    }
    free(entries);
    return *names != NULL ? 0 : error_set(err, -ENOMEM, "out of memory");
}
