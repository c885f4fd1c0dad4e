#include "block/nbd.h"

#include <libnbd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/library.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"

#define LIBNBD_FUNCTIONS(F)                                                                        \
    F(nbd_aio_flush)                                                                               \
    F(nbd_aio_get_direction)                                                                       \
    F(nbd_aio_get_fd)                                                                              \
    F(nbd_aio_is_closed)                                                                           \
    F(nbd_aio_is_dead)                                                                             \
    F(nbd_aio_notify_read)                                                                         \
    F(nbd_aio_notify_write)                                                                        \
    F(nbd_aio_pread)                                                                               \
    F(nbd_aio_pwrite)                                                                              \
    F(nbd_aio_trim)                                                                                \
    F(nbd_aio_zero)                                                                                \
    F(nbd_can_flush)                                                                               \
    F(nbd_can_fua)                                                                                 \
    F(nbd_can_trim)                                                                                \
    F(nbd_close)                                                                                   \
    F(nbd_connect_uri)                                                                             \
    F(nbd_create)                                                                                  \
    F(nbd_get_block_size)                                                                          \
    F(nbd_get_errno)                                                                               \
    F(nbd_get_error)                                                                               \
    F(nbd_get_size)                                                                                \
    F(nbd_is_read_only)                                                                            \
    F(nbd_set_uri_allow_local_file)                                                                \
    F(nbd_shutdown)

/* Few disks are on NBD servers, and TLS and XML come with it. */
static struct { LIBNBD_FUNCTIONS(LIBRARY_POINTER) } lib;
static const char *const names[] = {LIBNBD_FUNCTIONS(LIBRARY_NAME)};

/* The longest transfer that every server takes. */
enum { PART_MAX = 32 << 20 };

struct nbd {
    struct block block;
    struct nbd_handle *handle;
    char *uri;
    int wake; /* an eventfd: what to wait for has changed */
    pthread_t thread;
    struct lock lock;
    pthread_cond_t idle;
    struct command *completed; /* to be told */
    unsigned outstanding;
    bool stopping;
    atomic_uint complained;
};

/* One request at the server; transfers that are scattered in memory go through a buffer. */
struct command {
    struct nbd *nbd;
    struct block_request *request;
    struct command *next;
    uint8_t *bounce;
    int result;
    bool then_flush; /* durable, and the server cannot do both in one */
};

static struct nbd *nbd_of(struct block *block) {
    return container_of(block, struct nbd, block);
}

static void wake(const struct nbd *nbd) {
    uint64_t one = 1;
    while (write(nbd->wake, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

/* Called with libnbd's lock held: the thread does the rest. */
static int note_completed(void *context, int *error) {
    struct command *command = context;
    struct nbd *nbd = command->nbd;
    command->result = *error == 0 ? 0 : *error == ENOSPC ? -ENOSPC : -EIO;
    lock_take(&nbd->lock);
    command->next = nbd->completed;
    nbd->completed = command;
    lock_release(&nbd->lock);
    return 1; /* libnbd forgets it */
}

static void gather(const struct block_request *request, uint8_t *bytes) {
    for (unsigned i = 0; i < request->vector_count; i++) {
        memcpy(bytes, request->vectors[i].iov_base, request->vectors[i].iov_len);
        bytes += request->vectors[i].iov_len;
    }
}

static void scatter(const struct block_request *request, const uint8_t *bytes) {
    for (unsigned i = 0; i < request->vector_count; i++) {
        memcpy(request->vectors[i].iov_base, bytes, request->vectors[i].iov_len);
        bytes += request->vectors[i].iov_len;
    }
}

/* A second step at the server: the same command comes back. */
static bool flush_too(struct command *command) {
    nbd_completion_callback done = {.callback = note_completed, .user_data = command};
    if (!command->then_flush || command->result != 0)
        return false;
    command->then_flush = false;
    if (lib.nbd_aio_flush(command->nbd->handle, done, 0) >= 0)
        return true;
    command->result = -EIO;
    return false;
}

static void finish(struct command *command) {
    struct nbd *nbd = command->nbd;
    struct block_request *request = command->request;
    if (flush_too(command))
        return;
    request->result = command->result;
    if (command->bounce != NULL && request->operation == BLOCK_READ && command->result == 0)
        scatter(request, command->bounce);
    if (command->result != 0 && atomic_fetch_add(&nbd->complained, 1) < LOG_LIMIT_BURST)
        log_warning("disk %s: a request failed: %s; the guest gets an I/O error", nbd->uri,
                    strerror(-command->result));
    request->done(request);
    free(command->bounce);
    free(command);
    lock_take(&nbd->lock);
    if (--nbd->outstanding == 0)
        pthread_cond_broadcast(&nbd->idle);
    lock_release(&nbd->lock);
}

/* ---- The thread that speaks with the server ---- */

static void tell_completed(struct nbd *nbd) {
    lock_take(&nbd->lock);
    struct command *command = nbd->completed;
    nbd->completed = NULL;
    lock_release(&nbd->lock);
    while (command != NULL) {
        struct command *next = command->next;
        finish(command);
        command = next;
    }
}

static void wait_and_move(struct nbd *nbd) {
    unsigned direction = lib.nbd_aio_get_direction(nbd->handle);
    struct pollfd fds[2] = {{.fd = nbd->wake, .events = POLLIN},
                            {.fd = lib.nbd_aio_get_fd(nbd->handle)}};
    uint64_t count;
    if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0)
        fds[1].events |= POLLIN;
    if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0)
        fds[1].events |= POLLOUT;
    bool dead = lib.nbd_aio_is_dead(nbd->handle) > 0 || lib.nbd_aio_is_closed(nbd->handle) > 0;
    if (poll(fds, dead ? 1 : 2, -1) < 0)
        return;
    if (fds[0].revents != 0 && read(nbd->wake, &count, sizeof count) < 0)
        return;
    if ((fds[1].revents & (POLLIN | POLLHUP | POLLERR)) != 0 && !dead &&
        (direction & LIBNBD_AIO_DIRECTION_READ) != 0)
        lib.nbd_aio_notify_read(nbd->handle);
    else if ((fds[1].revents & POLLOUT) != 0 && !dead)
        lib.nbd_aio_notify_write(nbd->handle);
}

static void *run(void *argument) {
    struct nbd *nbd = argument;
    thread_begins(THREAD_OTHER, "nbd");
    lock_take(&nbd->lock);
    while (!nbd->stopping) {
        lock_release(&nbd->lock);
        wait_and_move(nbd);
        tell_completed(nbd);
        lock_take(&nbd->lock);
    }
    lock_release(&nbd->lock);
    return NULL;
}

/* ---- Requests ---- */

static int64_t start(struct nbd *nbd, struct command *command) {
    const struct block_request *r = command->request;
    struct nbd_handle *h = nbd->handle;
    nbd_completion_callback done = {.callback = note_completed, .user_data = command};
    void *bytes = command->bounce;
    if (bytes == NULL && r->vector_count > 0)
        bytes = r->vectors[0].iov_base;
    uint32_t fua = r->durable && lib.nbd_can_fua(h) > 0 ? LIBNBD_CMD_FLAG_FUA : 0;
    uint32_t keep = r->may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
    switch (r->operation) {
    case BLOCK_READ: return lib.nbd_aio_pread(h, bytes, r->length, r->offset, done, 0);
    case BLOCK_WRITE: return lib.nbd_aio_pwrite(h, bytes, r->length, r->offset, done, fua);
    case BLOCK_FLUSH: return lib.nbd_aio_flush(h, done, 0);
    case BLOCK_DISCARD: return lib.nbd_aio_trim(h, r->length, r->offset, done, 0);
    case BLOCK_WRITE_ZEROES: break;
    }
    return lib.nbd_aio_zero(h, r->length, r->offset, done, fua | keep);
}

static bool transfers(const struct block_request *request) {
    return request->operation == BLOCK_READ || request->operation == BLOCK_WRITE;
}

/* What the server does not offer and need not: no flush without a cache, no trim. 0: goes on. */
static int without_server(struct nbd *nbd, struct block_request *request) {
    request->result = 0;
    if (request->operation == BLOCK_FLUSH)
        return lib.nbd_can_flush(nbd->handle) <= 0;
    if (request->operation == BLOCK_DISCARD)
        return lib.nbd_can_trim(nbd->handle) <= 0;
    request->result = -EIO;
    return transfers(request) && request->length > PART_MAX;
}

static int nbd_submit(struct block *block, struct block_request *request) {
    struct nbd *nbd = nbd_of(block);
    if (without_server(nbd, request))
        return 1;
    request->result = -ENOMEM;
    struct command *command = calloc(1, sizeof *command);
    if (command == NULL)
        return 1;
    *command = (struct command){.nbd = nbd, .request = request};
    command->then_flush = request->durable && request->operation != BLOCK_READ &&
                          lib.nbd_can_fua(nbd->handle) <= 0 && lib.nbd_can_flush(nbd->handle) > 0;
    if (transfers(request) && request->vector_count > 1) {
        command->bounce = malloc(request->length);
        if (command->bounce == NULL) {
            free(command);
            return 1;
        }
        if (request->operation == BLOCK_WRITE)
            gather(request, command->bounce);
    }
    lock_take(&nbd->lock);
    nbd->outstanding++;
    lock_release(&nbd->lock);
    if (start(nbd, command) < 0) {
        /* The connection is gone; the thread tells. */
        int error = EIO;
        note_completed(command, &error);
    }
    wake(nbd);
    return 0;
}

static void nbd_drain(struct block *block) {
    struct nbd *nbd = nbd_of(block);
    lock_take(&nbd->lock);
    while (nbd->outstanding > 0)
        pthread_cond_wait(&nbd->idle, &nbd->lock.mutex);
    lock_release(&nbd->lock);
}

static void nbd_free(struct nbd *nbd) {
    if (nbd->handle != NULL)
        lib.nbd_close(nbd->handle);
    if (nbd->wake >= 0)
        close(nbd->wake);
    pthread_cond_destroy(&nbd->idle);
    lock_destroy(&nbd->lock);
    free(nbd->uri);
    free(nbd);
}

static void nbd_block_close(struct block *block) {
    struct nbd *nbd = nbd_of(block);
    nbd_drain(block);
    lock_take(&nbd->lock);
    nbd->stopping = true;
    lock_release(&nbd->lock);
    wake(nbd);
    pthread_join(nbd->thread, NULL);
    lib.nbd_shutdown(nbd->handle, 0);
    nbd_free(nbd);
}

static const struct block_class nbd_class = {
    .name = "nbd", .submit = nbd_submit, .drain = nbd_drain, .close = nbd_block_close};

/* ---- Connecting ---- */

static int connect_error(const struct nbd *nbd, struct error *err) {
    int code = lib.nbd_get_errno();
    return error_set(err, code > 0 ? -code : -EIO, "cannot connect to %s: %s", nbd->uri,
                     lib.nbd_get_error());
}

static int learn(struct nbd *nbd, bool readonly, struct error *err) {
    int64_t size = lib.nbd_get_size(nbd->handle);
    bool export_readonly = lib.nbd_is_read_only(nbd->handle) > 0;
    int64_t minimum = lib.nbd_get_block_size(nbd->handle, LIBNBD_SIZE_MINIMUM);
    if (size <= 0)
        return error_set(err, -EINVAL, "%s has no size", nbd->uri);
    if (export_readonly && !readonly)
        return error_set(err, -EROFS, "%s is read-only; attach it readonly", nbd->uri);
    nbd->block.info = (struct block_info){
        .size = round_down((uint64_t)size, BLOCK_SECTOR),
        .logical_block = minimum > BLOCK_SECTOR ? (uint32_t)minimum : BLOCK_SECTOR,
        .physical_block = 4096,
        .readonly = readonly,
        .discard = !readonly && lib.nbd_can_trim(nbd->handle) > 0,
        .name = nbd->uri,
    };
    if (nbd->block.info.size == 0)
        return error_set(err, -EINVAL, "%s is smaller than a sector", nbd->uri);
    return 0;
}

static int connect_and_run(struct nbd *nbd, bool readonly, struct error *err) {
    nbd->handle = lib.nbd_create();
    if (nbd->handle == NULL || nbd->uri == NULL || nbd->wake < 0)
        return error_set(err, -ENOMEM, "no memory for an NBD client");
    if (lib.nbd_set_uri_allow_local_file(nbd->handle, false) < 0 ||
        lib.nbd_connect_uri(nbd->handle, nbd->uri) < 0)
        return connect_error(nbd, err);
    int result = learn(nbd, readonly, err);
    if (result != 0)
        return result;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    result = -pthread_create(&nbd->thread, NULL, run, nbd);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return result == 0 ? 0 : error_set_errno(err, result, "cannot start an NBD client's thread");
}

int nbd_open(const char *uri, bool readonly, struct block **block, struct error *err) {
    int result = library_load("libnbd.so.0", names, ARRAY_SIZE(names), &lib, err);
    if (result < 0)
        return error_prefix(err, "disk %s", uri);
    struct nbd *nbd = calloc(1, sizeof *nbd);
    if (nbd == NULL)
        return error_set(err, -ENOMEM, "no memory for disk %s", uri);
    lock_init(&nbd->lock, LOCK_BACKEND, "nbd");
    pthread_cond_init(&nbd->idle, NULL);
    nbd->block.class = &nbd_class;
    nbd->uri = strdup(uri);
    nbd->wake = eventfd(0, EFD_CLOEXEC);
    result = connect_and_run(nbd, readonly, err);
    if (result != 0) {
        nbd_free(nbd);
        return result;
    }
    *block = &nbd->block;
    return 0;
}
