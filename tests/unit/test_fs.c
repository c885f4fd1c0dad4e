/*
 * The server of shared directories: what a good client sees, as root, as another user, read-only.
 */
#include <fcntl.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fs_rig.h"

/* ---- What a good client sees ---- */

static void test_files(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    uint64_t handle = 0;
    char bytes[16] = {0};
    assert_int_equal(client_lookup(c, ROOT, "file", &entry), 0);
    assert_int_equal(entry.attr.size, 6);
    assert_int_equal(entry.attr.uid, 0);
    assert_int_equal(entry.attr.gid, 0);
    assert_int_equal(client_open(c, FUSE_OPEN, entry.nodeid, O_RDWR, &handle), 0);
    assert_int_equal(client_read(c, handle, 2, bytes, sizeof bytes), 4);
    assert_string_equal(bytes, "side");
    assert_int_equal(client_write(c, handle, 4, "!!", 2, O_RDWR, 0), 2);
    assert_int_equal(client_read(c, handle, 0, bytes, 6), 6);
    assert_memory_equal(bytes, "insi!!", 6);
    /* Appends go to the end whatever the offset says; pages written back go where they say. */
    assert_int_equal(client_write(c, handle, 0, "ab", 2, O_RDWR | O_APPEND, 0), 2);
    assert_int_equal(client_write(c, handle, 0, "I", 1, O_RDWR | O_APPEND, FUSE_WRITE_CACHE), 1);
    assert_int_equal(client_read(c, handle, 0, bytes, sizeof bytes), 8);
    assert_memory_equal(bytes, "Insi!!ab", 8);
    assert_int_equal(client_release(c, FUSE_RELEASE, handle), 0);
    assert_int_equal(client_release(c, FUSE_RELEASE, handle), -EBADF);
    assert_int_equal(client_read(c, handle, 0, bytes, 1), -EBADF);
    assert_int_equal(client_lookup(c, ROOT, "absent", &entry), -ENOENT);
}

static void test_modes(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    struct stat status;
    uint64_t handle = 0;
    umask(077); /* too late: the server knows the one before */
    assert_int_equal(client_create(c, ROOT, "new", 06666, &entry, &handle), 0);
    assert_int_equal(stat(path_of(f, "new"), &status), 0);
    assert_int_equal(status.st_mode & 06000, 0);
    umask(022);
    struct fuse_setattr_in in = {.valid = FATTR_MODE, .mode = 04755};
    assert_int_equal(client_setattr(c, entry.nodeid, &in), 0);
    assert_int_equal(stat(path_of(f, "new"), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0755);
    assert_int_equal(client_create(c, ROOT, "open", 0666, &entry, &handle), 0);
    assert_int_equal(stat(path_of(f, "open"), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0666);
    in = (struct fuse_setattr_in){.valid = FATTR_UID | FATTR_GID, .uid = 0, .gid = 0};
    assert_int_equal(client_setattr(c, entry.nodeid, &in), 0);
    in.uid = 1000;
    assert_int_equal(client_setattr(c, entry.nodeid, &in), -EPERM);
    in = (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtime = 1000000, .mtimensec = 5};
    assert_int_equal(client_setattr(c, entry.nodeid, &in), 0);
    assert_int_equal(stat(path_of(f, "open"), &status), 0);
    assert_int_equal(status.st_mtim.tv_sec, 1000000);
    in.mtimensec = UTIME_NOW;
    assert_int_equal(client_setattr(c, entry.nodeid, &in), -EINVAL);
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 100};
    assert_int_equal(client_setattr(c, entry.nodeid, &in), 0);
    assert_int_equal(stat(path_of(f, "open"), &status), 0);
    assert_int_equal(status.st_size, 100);
    in.size = UINT64_MAX;
    assert_int_equal(client_setattr(c, entry.nodeid, &in), -EFBIG);
}

static void test_unlinked_while_open(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    uint64_t handle = 0;
    char byte;
    assert_int_equal(client_create(c, ROOT, "gone", 0644, &entry, &handle), 0);
    assert_int_equal(client_write(c, handle, 0, "x", 1, O_RDWR, 0), 1);
    client_start(c, FUSE_UNLINK, ROOT);
    client_add_text(c, "gone");
    assert_int_equal(client_send(c), 0);
    client_forget(c, entry.nodeid, 1);
    assert_int_equal(client_read(c, handle, 0, &byte, 1), 1);
    assert_int_equal(byte, 'x');
    struct fuse_attr attr = {0};
    assert_int_equal(client_getattr(c, entry.nodeid, &attr), -ESTALE);
    assert_int_equal(client_release(c, FUSE_RELEASE, handle), 0);
}

static void test_links(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    uint64_t file = node_of(f, ROOT, "file"), sub = node_of(f, ROOT, "sub");
    const struct fuse_link_in in = {.oldnodeid = file};
    struct stat status;
    client_start(c, FUSE_LINK, sub);
    client_add(c, &in, sizeof in);
    client_add_text(c, "second");
    assert_int_equal(client_send(c), 0);
    assert_int_equal(((struct fuse_entry_out *)client_answer(c))->nodeid, file);
    assert_int_equal(stat(path_of(f, "sub/second"), &status), 0);
    assert_int_equal(status.st_nlink, 2);
}

static void test_rename(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_attr attr = {0};
    uint64_t file = node_of(f, ROOT, "file"), sub = node_of(f, ROOT, "sub");
    assert_int_equal(client_rename(c, ROOT, "file", sub, "deep", RENAME_NOREPLACE), -EEXIST);
    assert_int_equal(client_rename(c, ROOT, "file", sub, "deep", RENAME_EXCHANGE), 0);
    assert_int_equal(client_rename(c, ROOT, "file", sub, "deep", RENAME_WHITEOUT), -EINVAL);
    assert_int_equal(client_getattr(c, file, &attr), 0);
    assert_int_equal(attr.size, 6);
    assert_int_equal(client_rename(c, ROOT, "file", sub, "other", 0), 0);
    assert_int_equal(access(path_of(f, "sub/other"), F_OK), 0);
    assert_int_equal(client_rename(c, ROOT, "sub", sub, "x", 0), -EINVAL);
}

static void test_attributes(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    uint64_t file = node_of(f, ROOT, "file");
    const uint32_t set[] = {5, 0}, get[] = {64, 0};
    if (setxattr(path_of(f, "file"), "user.probe", "x", 1, 0) < 0)
        skip(); /* not on every file system */
    client_start(c, FUSE_SETXATTR, file);
    client_add(c, set, sizeof set);
    client_add_text(c, "user.name");
    client_add(c, "value", 5);
    assert_int_equal(client_send(c), 0);
    client_start(c, FUSE_GETXATTR, file);
    client_add(c, get, sizeof get);
    client_add_text(c, "user.name");
    assert_int_equal(client_send(c), 0);
    assert_int_equal(client_answer_length(c), 5);
    assert_memory_equal(client_answer(c), "value", 5);
    static const char *const others[] = {"security.capability", "trusted.x",
                                         "system.posix_acl_access"};
    for (unsigned i = 0; i < 3; i++) {
        client_start(c, FUSE_SETXATTR, file);
        client_add(c, set, sizeof set);
        client_add_text(c, others[i]);
        client_add(c, "value", 5);
        assert_int_equal(client_send(c), -EOPNOTSUPP);
    }
    const uint32_t too_long[] = {70000, 0};
    client_start(c, FUSE_SETXATTR, file);
    client_add(c, too_long, sizeof too_long);
    client_add_text(c, "user.name");
    assert_int_equal(client_send(c), -EINVAL);
    client_start(c, FUSE_LISTXATTR, file);
    client_add(c, get, sizeof get);
    assert_int_equal(client_send(c), 0);
    assert_int_equal(client_answer_length(c), sizeof "user.probe" + sizeof "user.name");
}

/* Reads a whole directory with answers of `room` bytes; the number of entries. */
static unsigned count_entries(struct fuse_client *c, uint32_t opcode, uint64_t handle,
                              uint32_t room) {
    unsigned count = 0;
    uint64_t offset = 0;
    for (;;) {
        const struct fuse_read_in in = {.fh = handle, .offset = offset, .size = room};
        client_start(c, opcode, ROOT);
        client_add(c, &in, sizeof in);
        assert_int_equal(client_send(c), 0);
        size_t length = client_answer_length(c);
        if (length == 0)
            return count;
        assert_true(length <= room);
        uint8_t *at = client_answer(c);
        for (size_t used = 0; used < length;) {
            if (opcode == FUSE_READDIRPLUS) {
                const struct fuse_entry_out *entry = (struct fuse_entry_out *)(at + used);
                assert_int_equal(entry->nodeid == 0,
                                 ((struct fuse_dirent *)(entry + 1))->name[0] == '.');
                used += sizeof *entry;
            }
            const struct fuse_dirent *entry = (struct fuse_dirent *)(at + used);
            used += FUSE_DIRENT_SIZE(entry);
            offset = entry->off;
            count++;
        }
    }
}

static void test_directories(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    uint64_t handle = 0, sub = node_of(f, ROOT, "sub");
    char name[32];
    for (unsigned i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "sub/file-%u", i);
        make_file(f->share, name, "");
    }
    assert_int_equal(client_open(c, FUSE_OPENDIR, sub, O_RDONLY, &handle), 0);
    assert_int_equal(count_entries(c, FUSE_READDIR, handle, 4096), 303);
    assert_int_equal(count_entries(c, FUSE_READDIRPLUS, handle, 4096), 303);
    assert_int_equal(count_entries(c, FUSE_READDIR, handle, 60000), 303);
    assert_int_equal(count_entries(c, FUSE_READDIR, handle, 48), 303);
    const struct fuse_read_in in = {.fh = handle, .size = 16};
    client_start(c, FUSE_READDIR, sub);
    client_add(c, &in, sizeof in);
    assert_int_equal(client_send(c), -EINVAL);
    char byte;
    assert_int_equal(client_read(c, handle, 0, &byte, 1), -EBADF);
    assert_int_equal(client_release(c, FUSE_RELEASEDIR, handle), 0);
    /* What ".." of the root is on the host stays there. */
    struct stat above;
    assert_int_equal(stat(f->top, &above), 0);
    assert_int_equal(client_open(c, FUSE_OPENDIR, ROOT, O_RDONLY, &handle), 0);
    const struct fuse_read_in all = {.fh = handle, .size = 4096};
    client_start(c, FUSE_READDIR, ROOT);
    client_add(c, &all, sizeof all);
    assert_int_equal(client_send(c), 0);
    for (size_t used = 0; used < client_answer_length(c);) {
        struct fuse_dirent *entry = (struct fuse_dirent *)((uint8_t *)client_answer(c) + used);
        assert_true(entry->ino != above.st_ino);
        used += FUSE_DIRENT_SIZE(entry);
    }
}

/* ---- Another user than root ---- */

/* 0, or which expectation does not hold. */
static int as_another_user(struct fixture *f) {
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    struct fuse_setattr_in mode = {.valid = FATTR_MODE, .mode = 0777};
    struct stat status;
    uint64_t handle = 0;
    fs_close(c->fs);
    if (setgid(1234) < 0 || setuid(1234) < 0 || fs_open(f->share, false, 1, &c->fs, NULL) < 0)
        return 1;
    if (client_init(c) != 0 || client_lookup(c, ROOT, "file", &entry) != 0)
        return 2;
    if (entry.attr.uid != 65534 || entry.attr.gid != 65534)
        return 3;
    if (client_open(c, FUSE_OPEN, entry.nodeid, O_RDWR, &handle) != -EACCES ||
        client_setattr(c, entry.nodeid, &mode) != -EPERM)
        return 4;
    if (client_create(c, ROOT, "mine", 0644, &entry, &handle) != 0 || entry.attr.uid != 0 ||
        entry.attr.gid != 0 || client_setattr(c, entry.nodeid, &mode) != 0)
        return 5;
    return stat(path_of(f, "mine"), &status) == 0 && status.st_uid == 1234 ? 0 : 6;
}

static void test_another_user(void **state) {
    struct fixture *f = *state;
    int status;
    if (geteuid() != 0)
        skip();
    assert_int_equal(chmod(f->top, 0755), 0);
    assert_int_equal(chmod(f->share, 0777), 0);
    assert_int_equal(chmod(path_of(f, "file"), 0600), 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(as_another_user(f));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- Read-only ---- */

static void test_readonly(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    uint64_t handle = 0, file = node_of(f, ROOT, "file"), sub = node_of(f, ROOT, "sub");
    static const uint32_t changing[] = {
        FUSE_SETATTR,  FUSE_SYMLINK, FUSE_MKNOD,     FUSE_MKDIR,       FUSE_UNLINK,
        FUSE_RMDIR,    FUSE_RENAME,  FUSE_RENAME2,   FUSE_LINK,        FUSE_WRITE,
        FUSE_SETXATTR, FUSE_CREATE,  FUSE_FALLOCATE, FUSE_REMOVEXATTR, FUSE_COPY_FILE_RANGE};
    for (unsigned i = 0; i < sizeof changing / sizeof changing[0]; i++) {
        client_start(c, changing[i], file);
        assert_int_equal(client_send(c), -EROFS);
    }
    assert_int_equal(client_mkdir(c, sub, "new", &entry), -EROFS);
    assert_int_equal(client_open(c, FUSE_OPEN, file, O_WRONLY, &handle), -EROFS);
    assert_int_equal(client_open(c, FUSE_OPEN, file, O_RDWR, &handle), -EROFS);
    assert_int_equal(client_open(c, FUSE_OPEN, file, O_RDONLY | O_TRUNC, &handle), -EROFS);
    assert_int_equal(client_open(c, FUSE_OPEN, file, O_RDONLY, &handle), 0);
    char bytes[6];
    assert_int_equal(client_read(c, handle, 0, bytes, 6), 6);
    assert_memory_equal(bytes, "inside", 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_modes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unlinked_while_open, setup, teardown),
        cmocka_unit_test_setup_teardown(test_links, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rename, setup, teardown),
        cmocka_unit_test_setup_teardown(test_attributes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_directories, setup, teardown),
        cmocka_unit_test_setup_teardown(test_another_user, setup, teardown),
        cmocka_unit_test_setup_teardown(test_readonly, setup_readonly, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
