/* Images on their way: which one it is, and what is known of that from before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/file.h"
#include "image/transfer.h"

static char home[] = "/tmp/lodge-test-XXXXXX";
static struct disk_image image;

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

/* As if nobody had written to it. */
static void change_unseen(const char *path, const char *text) {
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    write_file(path, text);
    const struct timespec times[] = {status.st_atim, status.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static int set_up(void **state) {
    if (mkdtemp(home) == NULL)
        return -1;
    setenv("LODGE_CACHE", home, 1);
    snprintf(image.disk, sizeof image.disk, "%s/disk.raw", home);
    snprintf(image.kernel, sizeof image.kernel, "%s/vmlinuz", home);
    snprintf(image.initrd, sizeof image.initrd, "%s/initrd", home);
    write_file(image.disk, "disk");
    write_file(image.kernel, "kernel");
    write_file(image.initrd, "initrd");
    return 0;
}

static int tear_down(void **state) {
    remove_tree(home);
    return 0;
}

static void hash(char text[IMAGE_HASH_TEXT]) {
    struct error err = {0};
    assert_int_equal(image_hash(&image, text, &err), 0);
    assert_int_equal(strlen(text), IMAGE_HASH_TEXT - 1);
}

static void files_that_have_not_changed_are_not_read_again(void **state) {
    char first[IMAGE_HASH_TEXT], again[IMAGE_HASH_TEXT];
    hash(first);
    change_unseen(image.disk, "DISK");
    hash(again);
    assert_string_equal(again, first);
}

static void a_file_that_has_changed_is(void **state) {
    char first[IMAGE_HASH_TEXT], again[IMAGE_HASH_TEXT];
    const struct timespec times[] = {{.tv_sec = 1}, {.tv_sec = 1}};
    hash(first);
    write_file(image.kernel, "KERNEL");
    assert_int_equal(utimensat(AT_FDCWD, image.kernel, times, 0), 0);
    hash(again);
    assert_string_not_equal(again, first);
    write_file(image.initrd, "a longer initrd");
    hash(first);
    assert_string_not_equal(again, first);
}

static void what_is_known_may_be_damaged(void **state) {
    char first[IMAGE_HASH_TEXT], again[IMAGE_HASH_TEXT], path[PATH_MAX];
    hash(first);
    snprintf(path, sizeof path, "%s/images/.hashes.json", home);
    assert_int_equal(access(path, F_OK), 0);
    write_file(path, "{\"x\": 1, ");
    hash(again);
    assert_string_equal(again, first);
}

/* More than are remembered. */
static void what_is_known_does_not_grow(void **state) {
    char text[IMAGE_HASH_TEXT], path[PATH_MAX];
    struct stat status;
    for (long i = 0; i < 100; i++) {
        const struct timespec times[] = {{.tv_sec = i + 2}, {.tv_sec = i + 2}};
        assert_int_equal(utimensat(AT_FDCWD, image.disk, times, 0), 0);
        hash(text);
    }
    snprintf(path, sizeof path, "%s/images/.hashes.json", home);
    assert_int_equal(stat(path, &status), 0);
    assert_true(status.st_size < 8192);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_that_have_not_changed_are_not_read_again),
        cmocka_unit_test(a_file_that_has_changed_is),
        cmocka_unit_test(what_is_known_may_be_damaged),
        cmocka_unit_test(what_is_known_does_not_grow),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
