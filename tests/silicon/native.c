/*
 * The processor's side, as the harness sees it: batches go to a child process
 * (native_child.c) through shared memory. A child that a case kills is
 * replaced.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "silicon.h"

struct native {
    pid_t pid;
    int memory, to_child, from_child;
    struct batch *batch;
    unsigned processor;
};

/* The child's program lies next to this one. */
static _Noreturn void become_child(const struct native *native, int commands, int answers) {
    char path[4096], text[4][16];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof "-native");
    if (length > 0) {
        memcpy(path + length, "-native", sizeof "-native");
        const int numbers[4] = {native->memory, commands, answers, (int)native->processor};
        for (unsigned i = 0; i < 4; i++)
            snprintf(text[i], sizeof text[i], "%d", numbers[i]);
        execl(path, path, text[0], text[1], text[2], text[3], (char *)NULL);
    }
    _exit(1);
}

static int answer(const struct native *native) {
    char byte;
    return read(native->from_child, &byte, 1) == 1 ? 0 : -EIO;
}

static int spawn(struct native *native, struct error *err) {
    int down[2], up[2];
    if (pipe(down) < 0 || pipe(up) < 0)
        return error_set_errno(err, -errno, "cannot make a pipe");
    native->pid = fork();
    if (native->pid < 0)
        return error_set_errno(err, -errno, "cannot fork");
    if (native->pid == 0) {
        close(down[1]);
        close(up[0]);
        become_child(native, down[0], up[1]);
    }
    close(down[0]);
    close(up[1]);
    native->to_child = down[1];
    native->from_child = up[0];
    if (answer(native) < 0)
        return error_set(err, -EIO, "silicon-native does not start");
    return 0;
}

static void reap(struct native *native, int *status) {
    close(native->to_child);
    close(native->from_child);
    waitpid(native->pid, status, 0);
}

int native_create(struct native **native, struct error *err) {
    struct native *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "native side");
    made->processor = (unsigned)sched_getcpu();
    made->memory = memfd_create("silicon", 0);
    if (made->memory < 0 || ftruncate(made->memory, sizeof *made->batch) < 0)
        return error_set_errno(err, -errno, "native side: shared memory");
    made->batch =
        mmap(NULL, sizeof *made->batch, PROT_READ | PROT_WRITE, MAP_SHARED, made->memory, 0);
    if (made->batch == MAP_FAILED)
        return error_set_errno(err, -errno, "native side: shared memory");
    int rc = spawn(made, err);
    if (rc < 0)
        return rc;
    *native = made;
    return 0;
}

void native_destroy(struct native *native) {
    if (native == NULL)
        return;
    reap(native, NULL);
    munmap(native->batch, sizeof *native->batch);
    close(native->memory);
    free(native);
}

struct batch *native_batch(struct native *native) {
    return native->batch;
}

unsigned native_processor(const struct native *native) {
    return native->processor;
}

static int replace_child(struct native *native, struct error *err) {
    int status = 0;
    reap(native, &status);
    struct batch *b = native->batch;
    if (b->current >= b->count)
        return error_set(err, -EIO, "the native side ended (status %#x)", (unsigned)status);
    b->native[b->current++] = (struct outcome){.vector = VECTOR_LOST, .error = (uint32_t)status};
    return spawn(native, err);
}

int native_run(struct native *native, struct error *err) {
    native->batch->current = 0;
    while (native->batch->current < native->batch->count) {
        char byte = 1;
        if (write(native->to_child, &byte, 1) == 1 && answer(native) == 0)
            continue;
        int rc = replace_child(native, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}
