/* A line about the host that is kept until it boots again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/host_note.h"

static char directory[] = "/tmp/lodge-host-note-XXXXXX", path[64];

static int set_up(void **state) {
    (void)state;
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/note", directory);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    unlink(path);
    return rmdir(directory); /* nothing else was left in it */
}

static void write_file(const char *text) {
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void a_note_is_read_back(void **state) {
    (void)state;
    char text[HOST_NOTE_MAX];
    unlink(path);
    assert_false(host_note_read(path, text, sizeof text));
    host_note_write(path, "12.5 of this, 3 of that");
    assert_true(host_note_read(path, text, sizeof text));
    assert_string_equal(text, "12.5 of this, 3 of that");
    host_note_write(path, "newer");
    assert_true(host_note_read(path, text, sizeof text));
    assert_string_equal(text, "newer");
}

static void a_note_of_another_boot_is_none(void **state) {
    (void)state;
    char text[HOST_NOTE_MAX];
    write_file("00000000-0000-0000-0000-000000000000 12\n");
    assert_false(host_note_read(path, text, sizeof text));
}

static void a_damaged_note_is_none(void **state) {
    (void)state;
    char text[HOST_NOTE_MAX], whole[256] = "";
    static const char *const damaged[] = {"", "\n", " ", "12"};
    for (unsigned i = 0; i < sizeof damaged / sizeof damaged[0]; i++) {
        write_file(damaged[i]);
        assert_false(host_note_read(path, text, sizeof text));
    }
    host_note_write(path, "12");
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    assert_non_null(fgets(whole, sizeof whole, file));
    fclose(file);
    *strchr(whole, ' ') = 0; /* the boot alone */
    write_file(whole);
    assert_false(host_note_read(path, text, sizeof text));
}

static void a_note_too_long_for_the_reader_is_none(void **state) {
    (void)state;
    char text[4];
    host_note_write(path, "1234");
    assert_false(host_note_read(path, text, sizeof text));
    host_note_write(path, "123");
    assert_true(host_note_read(path, text, sizeof text));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_note_is_read_back),
        cmocka_unit_test(a_note_of_another_boot_is_none),
        cmocka_unit_test(a_damaged_note_is_none),
        cmocka_unit_test(a_note_too_long_for_the_reader_is_none),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
