#include "cli/batch.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

static void close_end(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

int batch_open(struct batch *batch, struct error *err) {
    *batch = (struct batch){{-1, -1}, {-1, -1}};
    if (pipe2(batch->go, O_CLOEXEC) == 0 && pipe2(batch->done, O_CLOEXEC) == 0)
        return 0;
    int result = error_set_errno(err, -errno, "pipe");
    batch_close(batch);
    return result;
}

void batch_close(struct batch *batch) {
    for (unsigned i = 0; i < 2; i++) {
        close_end(&batch->go[i]);
        close_end(&batch->done[i]);
    }
}

void batch_join(struct batch *batch) {
    close_end(&batch->go[1]);
    close_end(&batch->done[0]);
}

int batch_commit(struct batch *batch, unsigned count, struct error *err) {
    char byte = 1;
    ssize_t got = 1;
    close_end(&batch->done[1]);
    while (write(batch->go[1], &byte, 1) < 0)
        if (errno != EINTR)
            return error_set_errno(err, -errno, "pipe");
    while (count > 0 && got != 0) {
        got = read(batch->done[0], &byte, 1);
        if (got < 0 && errno != EINTR)
            return error_set_errno(err, -errno, "pipe");
        count -= got > 0;
    }
    return count == 0 ? 0 : error_set(err, -EPIPE, "%u of them ended too early", count);
}

/* ---- In a monitor ---- */

struct batch_watch {
    int go, done;
    struct loop_fd *watch;
    batch_handler *decided;
    void *context;
};

static void on_decided(void *context, unsigned events) {
    struct batch_watch *watch = context;
    struct pollfd go = {.fd = watch->go, .events = POLLIN};
    if (poll(&go, 1, 0) <= 0)
        return;
    loop_fd_set(watch->watch, 0);
    watch->decided(watch->context, (go.revents & POLLIN) != 0);
}

int batch_watch(const struct batch *batch, struct loop *loop, batch_handler *decided, void *context,
                struct batch_watch **watch, struct error *err) {
    struct batch_watch *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    *made = (struct batch_watch){batch->go[0], batch->done[1], NULL, decided, context};
    int result = loop_fd_add(loop, made->go, LOOP_READ, on_decided, made, &made->watch, err);
    if (result < 0)
        free(made);
    else
        *watch = made;
    return result;
}

void batch_done(struct batch_watch *watch) {
    char byte = 1;
    while (write(watch->done, &byte, 1) < 0 && errno == EINTR)
        ;
}

void batch_unwatch(struct batch_watch *watch) {
    if (watch == NULL)
        return;
    loop_fd_remove(watch->watch);
    close(watch->go);
    close(watch->done);
    free(watch);
}
