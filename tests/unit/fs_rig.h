/*
 * A shared directory with a client of its server, and beside it what no guest may reach.
 */
#ifndef LODGE_TEST_FS_RIG_H
#define LODGE_TEST_FS_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "fuse_client.h"

static const uint64_t ROOT = FUSE_ROOT_ID;

struct fixture {
    char top[64], share[96], secret[96];
    struct fuse_client client;
};

static inline void make_file(const char *directory, const char *name, const char *text) {
    char *path;
    assert_true(asprintf(&path, "%s/%s", directory, name) > 0);
    FILE *file = fopen(path, "w");
    free(path);
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static inline const char *path_of(const struct fixture *f, const char *name) {
    static char path[2][512];
    static unsigned turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", f->share, name);
    return path[turn];
}

static inline struct fixture *start(bool readonly) {
    static struct fixture fixture;
    struct fixture *f = &fixture;
    struct error err;
    memset(f, 0, sizeof *f);
    strcpy(f->top, "/tmp/lodge-test-fs-XXXXXX");
    assert_non_null(mkdtemp(f->top));
    snprintf(f->share, sizeof f->share, "%.60s/share", f->top);
    snprintf(f->secret, sizeof f->secret, "%.60s/secret", f->top);
    assert_int_equal(mkdir(f->share, 0755), 0);
    assert_int_equal(mkdir(f->secret, 0755), 0);
    make_file(f->secret, "key", "outside");
    make_file(f->share, "file", "inside");
    assert_int_equal(mkdir(path_of(f, "sub"), 0755), 0);
    make_file(f->share, "sub/deep", "deep");
    assert_int_equal(fs_open(f->share, readonly, 1, &f->client.fs, &err), 0);
    assert_int_equal(client_init(&f->client), 0);
    return f;
}

static inline int setup(void **state) {
    *state = start(false);
    return 0;
}

static inline int setup_readonly(void **state) {
    *state = start(true);
    return 0;
}

static inline int teardown(void **state) {
    struct fixture *f = *state;
    char command[128];
    fs_close(f->client.fs);
    snprintf(command, sizeof command, "rm -rf %s", f->top);
    return system(command);
}

static inline uint64_t node_of(struct fixture *f, uint64_t parent, const char *name) {
    struct fuse_entry_out entry = {0};
    assert_int_equal(client_lookup(&f->client, parent, name, &entry), 0);
    return entry.nodeid;
}

#endif
