/*
 * The server of shared directories with a client that may send anything: confinement, hostile
 * requests, a host that changes the directory meanwhile, descriptors that run out.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

#include "fs_rig.h"

/* ---- Confinement ---- */

static void test_names(void **state) {
    struct fixture *f = *state;
    static const char *const bad[] = {"", ".", "..", "/", "sub/deep", "../secret", "/etc"};
    struct fuse_entry_out entry = {0};
    uint64_t handle = 0;
    char text[300];
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(client_lookup(&f->client, ROOT, bad[i], &entry), -EINVAL);
        assert_int_equal(client_mkdir(&f->client, ROOT, bad[i], &entry), -EINVAL);
        assert_int_equal(client_create(&f->client, ROOT, bad[i], 0644, &entry, &handle), -EINVAL);
        assert_int_equal(client_rename(&f->client, ROOT, "file", ROOT, bad[i], 0), -EINVAL);
        assert_int_equal(client_rename(&f->client, ROOT, bad[i], ROOT, "x", 0), -EINVAL);
    }
    memset(text, 'n', sizeof text);
    text[256] = 0;
    assert_int_equal(client_lookup(&f->client, ROOT, text, &entry), -ENAMETOOLONG);
    client_start(&f->client, FUSE_LOOKUP, ROOT);
    client_add(&f->client, "file", 4); /* no zero at its end */
    assert_int_equal(client_send(&f->client), -EINVAL);
}

static void test_symbolic_links(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    struct stat status;
    uint64_t handle = 0;
    char target[160];
    snprintf(target, sizeof target, "%s/key", f->secret);
    assert_int_equal(symlink(f->secret, path_of(f, "away")), 0);
    assert_int_equal(symlink(target, path_of(f, "key")), 0);
    uint64_t away = node_of(f, ROOT, "away"), key = node_of(f, ROOT, "key");
    assert_int_equal(client_lookup(c, away, "key", &entry), -ENOTDIR);
    assert_int_equal(client_mkdir(c, away, "new", &entry), -ENOTDIR);
    assert_int_equal(client_create(c, away, "new", 0644, &entry, &handle), -ENOTDIR);
    assert_int_equal(client_create(c, ROOT, "key", 0644, &entry, &handle), -ELOOP);
    assert_int_equal(client_open(c, FUSE_OPENDIR, away, O_RDONLY, &handle), -ENOTDIR);
    assert_int_equal(client_open(c, FUSE_OPEN, key, O_RDWR, &handle), -ELOOP);
    assert_int_equal(client_open(c, FUSE_OPEN, key, O_RDWR | O_TRUNC, &handle), -ELOOP);
    struct fuse_setattr_in in = {.valid = FATTR_SIZE};
    assert_int_equal(client_setattr(c, key, &in), -EINVAL);
    in = (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0777};
    assert_int_not_equal(client_setattr(c, key, &in), 0);
    in = (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtime = 77};
    client_setattr(c, key, &in);
    assert_int_equal(stat(target, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0644);
    assert_int_equal(status.st_size, 7);
    assert_true(status.st_mtim.tv_sec != 77);
    /* A link to the link is one more link, not one to the file. */
    const struct fuse_link_in link = {.oldnodeid = key};
    client_start(c, FUSE_LINK, ROOT);
    client_add(c, &link, sizeof link);
    client_add_text(c, "again");
    assert_int_equal(client_send(c), 0);
    assert_int_equal(lstat(path_of(f, "again"), &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    assert_int_equal(stat(target, &status), 0);
    assert_int_equal(status.st_nlink, 1);
    client_start(c, FUSE_READLINK, key);
    assert_int_equal(client_send(c), 0);
    assert_memory_equal(client_answer(c), target, strlen(target));
    client_start(c, FUSE_READLINK, node_of(f, ROOT, "file"));
    assert_int_equal(client_send(c), -EINVAL);
}

static void test_special_files(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    uint64_t handle = 0;
    assert_int_equal(client_mknod(c, ROOT, "null", S_IFCHR | 0666, &entry), -EPERM);
    assert_int_equal(client_mknod(c, ROOT, "disk", S_IFBLK | 0666, &entry), -EPERM);
    assert_int_equal(client_mknod(c, ROOT, "fifo", S_IFIFO | 0644, &entry), 0);
    assert_int_equal(client_open(c, FUSE_OPEN, entry.nodeid, O_RDONLY, &handle), -ENXIO);
    assert_int_equal(client_open(c, FUSE_OPEN, entry.nodeid, O_WRONLY, &handle), -ENXIO);
    assert_int_equal(client_create(c, ROOT, "fifo", 0644, &entry, &handle), -ENXIO);
    assert_int_equal(client_mknod(c, ROOT, "socket", S_IFSOCK | 0644, &entry), 0);
    assert_int_equal(client_open(c, FUSE_OPEN, entry.nodeid, O_RDWR, &handle), -ENXIO);
    assert_int_equal(client_mknod(c, ROOT, "plain", S_IFREG | 0644, &entry), 0);
    assert_int_equal(client_mknod(c, ROOT, "plain", S_IFREG | 0644, &entry), -EEXIST);
    struct fs *fs;
    struct error err;
    assert_int_equal(fs_open("/proc", true, 1, &fs, &err), -EINVAL);
    assert_int_equal(fs_open("/proc/self", true, 1, &fs, &err), -EINVAL);
    assert_int_equal(fs_open("/dev/null", true, 1, &fs, &err), -ENOTDIR);
    /* Nor is it entered by way of the root. */
    assert_int_equal(fs_open("/", true, 1, &fs, &err), 0);
    struct fs *before = c->fs;
    c->fs = fs;
    assert_int_equal(client_init(c), 0);
    assert_int_equal(client_lookup(c, ROOT, "proc", &entry), -EACCES);
    fs_close(fs);
    c->fs = before;
}

static void test_numbers(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    struct fuse_attr attr = {0};
    uint64_t handle = 0, file = node_of(f, ROOT, "file");
    static const uint64_t bad[] = {
        0, 2000, UINT32_MAX, UINT64_MAX, UINT64_C(1) << 32, (UINT64_C(1) << 32) + 1};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char byte;
        assert_int_equal(client_getattr(c, bad[i], &attr), -ESTALE);
        assert_int_equal(client_lookup(c, bad[i], "file", &entry), -ESTALE);
        assert_int_equal(client_open(c, FUSE_OPEN, bad[i], O_RDONLY, &handle), -ESTALE);
        assert_int_equal(client_read(c, bad[i], 0, &byte, 1), -EBADF);
        client_forget(c, bad[i], UINT64_MAX);
    }
    /* More than it was told: forgotten all the same. The root cannot be. */
    client_forget(c, file, UINT64_MAX);
    assert_int_equal(client_getattr(c, file, &attr), -ESTALE);
    client_forget(c, ROOT, UINT64_MAX);
    assert_int_equal(client_getattr(c, ROOT, &attr), 0);
    /* Its number is not given out again. */
    assert_true(node_of(f, ROOT, "file") != file);
}

/* ---- Requests that break the protocol ---- */

static void test_before_init(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    fs_reset(c->fs);
    assert_int_equal(client_lookup(c, ROOT, "file", &entry), -EIO);
    const struct fuse_init_in old = {.major = 7, .minor = 30}, new = {.major = 8};
    client_start(c, FUSE_INIT, 0);
    client_add(c, &old, sizeof old);
    assert_int_equal(client_send(c), -EPROTO);
    client_start(c, FUSE_INIT, 0);
    client_add(c, &new, sizeof new);
    assert_int_equal(client_send(c), 0);
    assert_int_equal(((struct fuse_init_out *)client_answer(c))->major, 7);
    assert_int_equal(client_lookup(c, ROOT, "file", &entry), -EIO);
    assert_int_equal(client_init(c), 0);
    assert_int_equal(client_lookup(c, ROOT, "file", &entry), 0);
}

/* Every operation with arguments of every length, zeroes and ones, and little room to answer. */
static void test_lengths(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    char data[64];
    for (uint32_t opcode = 0; opcode < 64; opcode++)
        for (unsigned length = 0; length < 120; length++)
            for (unsigned fill = 0; fill < 4; fill++) {
                uint8_t bytes[120];
                memset(bytes, fill & 1 ? 0xff : 0, sizeof bytes);
                if (opcode == FUSE_INIT || opcode == FUSE_DESTROY)
                    continue;
                client_start(c, opcode, ROOT);
                client_add(c, bytes, length);
                if (opcode == FUSE_WRITE || opcode == FUSE_READ)
                    c->data = (struct iovec){.iov_base = data, .iov_len = sizeof data};
                if (fill & 2)
                    c->out_room = sizeof(struct fuse_out_header) + length % 24;
                int error = client_send(c);
                assert_true(error <= 0 && error > -512);
            }
    /* Headers that lie about the length, or are none. */
    for (unsigned length = 0; length < 60; length++) {
        client_start(c, FUSE_GETATTR, ROOT);
        client_add(c, "0123456789abcdef0123", 20);
        c->in_length = length;
        client_serve(c);
        assert_int_equal(((struct fuse_out_header *)c->out)->error, -EINVAL);
    }
    struct stat status;
    assert_int_equal(stat(path_of(f, "file"), &status), 0);
    assert_int_equal(status.st_size, 6);
}

static void test_ranges(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    uint64_t handle = 0, file = node_of(f, ROOT, "file");
    char bytes[16];
    assert_int_equal(client_open(c, FUSE_OPEN, file, O_RDWR, &handle), 0);
    assert_int_equal(client_read(c, handle, UINT64_MAX, bytes, 1), -EINVAL);
    assert_int_equal(client_read(c, handle, INT64_MAX, bytes, 1) <= 0, 1);
    assert_int_equal(client_write(c, handle, UINT64_MAX, bytes, 1, O_RDWR, 0), -EINVAL);
    const struct fuse_write_in more = {.fh = handle, .size = 1000};
    client_start(c, FUSE_WRITE, file);
    client_add(c, &more, sizeof more);
    c->data = (struct iovec){.iov_base = bytes, .iov_len = sizeof bytes};
    assert_int_equal(client_send(c), -EINVAL);
    const struct fuse_fallocate_in hole = {
        .fh = handle, .offset = UINT64_MAX, .length = UINT64_MAX};
    client_start(c, FUSE_FALLOCATE, file);
    client_add(c, &hole, sizeof hole);
    assert_int_equal(client_send(c), -EINVAL);
    const struct fuse_fallocate_in good = {.fh = handle, .offset = 0, .length = 8192};
    client_start(c, FUSE_FALLOCATE, file);
    client_add(c, &good, sizeof good);
    assert_int_equal(client_send(c), 0);
    const struct fuse_lseek_in seek = {.fh = handle, .offset = 0, .whence = SEEK_SET};
    client_start(c, FUSE_LSEEK, file);
    client_add(c, &seek, sizeof seek);
    assert_int_equal(client_send(c), -EINVAL);
    const struct fuse_copy_file_range_in copy = {
        .fh_in = handle, .fh_out = handle, .off_in = 0, .off_out = 100, .len = 6};
    client_start(c, FUSE_COPY_FILE_RANGE, file);
    client_add(c, &copy, sizeof copy);
    assert_int_equal(client_send(c), 0);
    assert_int_equal(client_read(c, handle, 100, bytes, 6), 6);
    assert_memory_equal(bytes, "inside", 6);
}

/* ---- Limits ---- */

static unsigned open_descriptors(void) {
    unsigned count = 0;
    DIR *list = opendir("/proc/self/fd");
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

/* The process may have few descriptors: what nodes need is closed and found again. */
static void test_few_descriptors(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    enum { FILES = 300 };
    static uint64_t nodes[FILES], handles[FILES];
    struct rlimit limit;
    struct error err;
    struct fuse_attr attr = {0};
    char name[32];
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    fs_close(c->fs);
    /* One of many volumes, so that its share is the smallest. */
    assert_int_equal(fs_open(f->share, false, (unsigned)(limit.rlim_max / 64), &c->fs, &err), 0);
    assert_int_equal(client_init(c), 0);
    uint64_t sub = node_of(f, ROOT, "sub");
    unsigned at_first = open_descriptors();
    for (unsigned i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "sub/%u", i);
        make_file(f->share, name, name);
        nodes[i] = node_of(f, sub, name + 4);
    }
    assert_true(open_descriptors() < at_first + 64);
    for (unsigned i = 0; i < FILES; i++) {
        assert_int_equal(client_getattr(c, nodes[i], &attr), 0);
        snprintf(name, sizeof name, "sub/%u", i);
        assert_int_equal(attr.size, strlen(name));
    }
    /* The guest's renames are followed, the host's are not: what is there now is another file. */
    assert_int_equal(client_rename(c, ROOT, "sub", ROOT, "moved", 0), 0);
    assert_int_equal(client_rename(c, sub, "7", sub, "seven", 0), 0);
    assert_int_equal(rename(path_of(f, "moved/8"), path_of(f, "moved/eight")), 0);
    make_file(f->share, "moved/8", "another");
    for (unsigned i = 20; i < FILES; i++)
        assert_int_equal(client_getattr(c, nodes[i], &attr), 0);
    assert_int_equal(client_getattr(c, nodes[7], &attr), 0);
    assert_int_equal(client_getattr(c, nodes[8], &attr), -ESTALE);
    assert_int_equal(unlink(path_of(f, "moved/9")), 0);
    assert_int_equal(client_getattr(c, nodes[9], &attr), -ESTALE);
    /* Open files are refused beyond a number, and again possible after a release. */
    unsigned opened = 0;
    int error = 0;
    while (opened < FILES - 20 &&
           (error = client_open(c, FUSE_OPEN, nodes[opened + 20], O_RDONLY, &handles[opened])) == 0)
        opened++;
    assert_int_equal(error, -ENFILE);
    assert_true(opened >= 16);
    assert_int_equal(client_release(c, FUSE_RELEASE, handles[0]), 0);
    assert_int_equal(client_open(c, FUSE_OPEN, nodes[20], O_RDONLY, &handles[0]), 0);
    fs_reset(c->fs);
    assert_true(open_descriptors() <= at_first);
}

/* ---- A host that changes the directory meanwhile ---- */

static atomic_bool stop;

/* "swap" is a directory of the share, then a link to the secret one, and so on. */
static void *swap_all_the_time(void *argument) {
    struct fixture *f = argument;
    char a[512], b[512];
    snprintf(a, sizeof a, "%s/swap", f->share);
    snprintf(b, sizeof b, "%s/link", f->share);
    while (!atomic_load(&stop))
        renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE);
    return NULL;
}

static void test_races(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out directory = {0}, entry = {0};
    pthread_t thread;
    uint64_t handle = 0;
    unsigned reached = 0, refused = 0;
    char name[32], path[512];
    assert_int_equal(mkdir(path_of(f, "swap"), 0755), 0);
    make_file(f->share, "swap/key", "inside too");
    assert_int_equal(symlink(f->secret, path_of(f, "link")), 0);
    atomic_store(&stop, false);
    assert_int_equal(pthread_create(&thread, NULL, swap_all_the_time, f), 0);
    for (unsigned i = 0; i < 20000 && (i < 2000 || reached < 20 || refused < 20); i++) {
        if (client_lookup(c, ROOT, "swap", &directory) != 0)
            continue;
        if (client_lookup(c, directory.nodeid, "key", &entry) == 0) {
            assert_int_equal(entry.attr.size, 10); /* never the one outside */
            reached++;
        } else {
            refused++;
        }
        snprintf(name, sizeof name, "new%u", i % 8);
        if (client_create(c, directory.nodeid, name, 0644, &entry, &handle) == 0)
            client_release(c, FUSE_RELEASE, handle);
        client_forget(c, directory.nodeid, 1);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    assert_true(reached > 0);
    for (unsigned i = 0; i < 8; i++) {
        snprintf(path, sizeof path, "%s/new%u", f->secret, i);
        assert_int_not_equal(access(path, F_OK), 0);
    }
}

static void test_directory_vanishes(void **state) {
    struct fixture *f = *state;
    struct fuse_client *c = &f->client;
    struct fuse_entry_out entry = {0};
    uint64_t handle = 0, sub = node_of(f, ROOT, "sub");
    char command[160];
    snprintf(command, sizeof command, "rm -r %s", f->share);
    assert_int_equal(system(command), 0);
    assert_int_equal(client_lookup(c, ROOT, "file", &entry), -ENOENT);
    assert_int_equal(client_create(c, sub, "new", 0644, &entry, &handle), -ENOENT);
    assert_int_equal(client_mkdir(c, ROOT, "new", &entry), -ENOENT);
}

/* ---- Several at a time ---- */

struct hammer {
    struct fuse_client client;
    unsigned seed;
};

static void *hammer(void *argument) {
    struct hammer *hammer = argument;
    struct fuse_client *c = &hammer->client;
    struct fuse_entry_out entry = {0};
    uint64_t handle = 0;
    char name[8], bytes[64];
    for (unsigned i = 0; i < 4000; i++) {
        hammer->seed = hammer->seed * 1103515245 + 12345;
        unsigned r = hammer->seed >> 16;
        snprintf(name, sizeof name, "h%u", r % 5);
        switch (r / 5 % 6) {
        case 0:
            if (client_create(c, ROOT, name, 0644, &entry, &handle) == 0) {
                client_write(c, handle, 0, bytes, sizeof bytes, O_RDWR, 0);
                client_release(c, FUSE_RELEASE, r & 256 ? handle : handle + 1);
            }
            break;
        case 1:
            if (client_lookup(c, ROOT, name, &entry) == 0)
                client_forget(c, entry.nodeid, 1 + (r & 1));
            break;
        case 2:
            client_start(c, FUSE_UNLINK, ROOT);
            client_add_text(c, name);
            client_send(c);
            break;
        case 3: client_rename(c, ROOT, name, ROOT, "h0", r & 2); break;
        case 4:
            if (client_open(c, FUSE_OPENDIR, ROOT, O_RDONLY, &handle) == 0) {
                const struct fuse_read_in in = {.fh = handle, .size = 4096};
                client_start(c, FUSE_READDIRPLUS, ROOT);
                client_add(c, &in, sizeof in);
                client_send(c);
                client_release(c, FUSE_RELEASEDIR, handle);
            }
            break;
        case 5:
            if (i % 64 == 0)
                client_init(c);
            break;
        }
    }
    return NULL;
}

static void test_together(void **state) {
    struct fixture *f = *state;
    static struct hammer hammers[3];
    pthread_t threads[3];
    unsigned before = open_descriptors();
    for (unsigned i = 0; i < 3; i++) {
        hammers[i].client.fs = f->client.fs;
        hammers[i].seed = i + 1;
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, &hammers[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    fs_reset(f->client.fs);
    assert_true(open_descriptors() <= before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_symbolic_links, setup, teardown),
        cmocka_unit_test_setup_teardown(test_special_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_numbers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_before_init, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lengths, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ranges, setup, teardown),
        cmocka_unit_test_setup_teardown(test_few_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_races, setup, teardown),
        cmocka_unit_test_setup_teardown(test_directory_vanishes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_together, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
