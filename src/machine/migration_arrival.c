#include "machine/migration_arrival.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/thread.h"
#include "machine/migration_memory.h"
#include "machine/page_set.h"
#include "machine/vm_store.h"
#include "memory/missing.h"

/* Wishes that have not been sent; more come with the rest. */
enum { WISHES = 4096 };

/* A thread that is just taking a frame in is given so long before its connection is cut. */
enum { STOP_SECONDS = 2 };

struct arrival {
    struct memory *memory;
    struct loop *loop;
    struct page_set *owed; /* the thread's, once that runs */
    struct stream stream;  /* tunnel NULL: the connection is broken */
    struct page_unpacker *unpacker;
    int directory, listener, wake;
    pthread_t thread;
    bool started, begun, told;
    _Atomic(uint64_t) left; /* bytes */
    atomic_bool whole;

    pthread_mutex_t lock; /* below this */
    pthread_cond_t changed;
    bool here, runs, ending;
    struct page_set *asked; /* wishes that have not come true */
    uint64_t wishes[WISHES];
    unsigned first, count;
    char why[ERROR_TEXT_MAX];
};

/* ---- The thread of missing memory: wishes ---- */

static void wake_thread(const struct arrival *arrival) {
    uint64_t one = 1;
    (void)!write(arrival->wake, &one, sizeof one);
}

static void want(void *context, uint64_t gpa, bool waits) {
    struct arrival *arrival = context;
    (void)waits;
    pthread_mutex_lock(&arrival->lock);
    bool new = page_set_add(arrival->asked, gpa) && arrival->count < WISHES;
    if (new)
        arrival->wishes[(arrival->first + arrival->count++) % WISHES] = gpa;
    pthread_mutex_unlock(&arrival->lock);
    if (new)
        wake_thread(arrival);
}

/* The next frame's; how many. */
static unsigned take_wishes(struct arrival *arrival, uint8_t body[WANT_MAX * 8]) {
    unsigned taken = 0;
    pthread_mutex_lock(&arrival->lock);
    for (; arrival->count > 0 && taken < WANT_MAX; taken++, arrival->count--) {
        store_le64(body + (size_t)taken * 8, arrival->wishes[arrival->first]);
        arrival->first = (arrival->first + 1) % WISHES;
    }
    pthread_mutex_unlock(&arrival->lock);
    return taken;
}

/* After a new connection: all that have not come true. */
static void wish_again(struct arrival *arrival) {
    struct page_cursor at = {0};
    uint64_t gpa;
    pthread_mutex_lock(&arrival->lock);
    arrival->count = 0;
    for (; arrival->count < WISHES && page_set_next(arrival->asked, &at, &gpa); at.page++)
        arrival->wishes[(arrival->first + arrival->count++) % WISHES] = gpa;
    pthread_mutex_unlock(&arrival->lock);
}

/* ---- Before the VM is here ---- */

int arrival_create(struct memory *memory, struct loop *loop, struct arrival **arrival,
                   struct error *err) {
    struct arrival *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->memory = memory;
    made->loop = loop;
    made->directory = made->listener = -1;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->changed, NULL);
    made->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int result = made->wake < 0 ? -errno : page_set_create(memory, &made->owed);
    if (result == 0)
        result = page_set_create(memory, &made->asked);
    if (result < 0) {
        arrival_destroy(made);
        return error_set_errno(err, result, "memory that comes later");
    }
    *arrival = made;
    return 0;
}

int arrival_hear(struct arrival *arrival, const uint8_t *body, size_t length, struct error *err) {
    return page_set_receive(arrival->owed, body, length, err);
}

static int take_all(const struct arrival *arrival) {
    struct page_cursor at = {0};
    uint64_t gpa;
    int result = 0;
    while (result == 0 && page_set_next(arrival->owed, &at, &gpa)) {
        uint64_t size = PAGE_SIZE;
        while (page_set_has(arrival->owed, gpa + size))
            size += PAGE_SIZE;
        result = memory_take(arrival->memory, gpa, size);
        page_set_find(arrival->owed, gpa + size - PAGE_SIZE, &at);
        at.page++;
    }
    return result;
}

/* ---- The socket in the VM's directory ---- */

static const char socket_name[] = "arriving";

/* By its directory's descriptor: the path itself may be longer than a socket's may. */
static struct sockaddr_un address_in(int directory) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "/proc/self/fd/%d/%s", directory, socket_name);
    return name;
}

static int listen_in(struct arrival *arrival, const char *path) {
    arrival->directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    arrival->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (arrival->directory < 0 || arrival->listener < 0)
        return -errno;
    struct sockaddr_un name = address_in(arrival->directory);
    mode_t old = umask(0177);
    bool good = bind(arrival->listener, (const struct sockaddr *)&name, sizeof name) == 0 &&
                listen(arrival->listener, 4) == 0;
    int result = good ? 0 : -errno;
    umask(old);
    return result;
}

static void stop_listening(struct arrival *arrival) {
    if (arrival->listener >= 0)
        close(arrival->listener);
    if (arrival->directory >= 0) {
        unlinkat(arrival->directory, socket_name, 0);
        close(arrival->directory);
    }
    arrival->listener = arrival->directory = -1;
}

int arrival_connect(const char *directory, int *fd, struct error *err) {
    int at = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC), result = 0;
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un name = address_in(at);
    if (at < 0 || *fd < 0 || connect(*fd, (const struct sockaddr *)&name, sizeof name) < 0)
        result = error_set_errno(err, -errno, "%s/%s", directory, socket_name);
    if (result < 0 && *fd >= 0)
        close(*fd);
    if (at >= 0)
        close(at);
    return result;
}

/* ---- The connection ---- */

/* Who ends it may just be breaking it. */
static void replace(struct arrival *arrival, struct stream stream) {
    pthread_mutex_lock(&arrival->lock);
    stream_close(&arrival->stream);
    arrival->stream = stream;
    pthread_mutex_unlock(&arrival->lock);
}

static void set_why(struct arrival *arrival, const char *why) {
    pthread_mutex_lock(&arrival->lock);
    snprintf(arrival->why, sizeof arrival->why, "%s", why);
    pthread_mutex_unlock(&arrival->lock);
}

/* Everything stays as it is until the source comes again. */
static void cut(struct arrival *arrival, const char *because) {
    struct error why;
    replace(arrival, (struct stream){0});
    error_set(&why, -ECONNRESET,
              "%llu KiB of its memory are still where it came from (%.120s); 'lodge migrate "
              "--resume' there goes on, and if its monitor there is gone the VM cannot",
              (unsigned long long)atomic_load(&arrival->left) >> 10, because);
    set_why(arrival, why.text);
    log_warning("%s", why.text);
}

/* The source comes again: over a connection that the receiver hands on. */
static void adopt(struct arrival *arrival) {
    struct error err;
    struct tunnel *tunnel;
    struct stream stream;
    int fd = accept4(arrival->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 || tunnel_adopt(fd, &tunnel, &err) < 0 || stream_create(tunnel, &stream, &err) < 0)
        return;
    replace(arrival, stream);
    arrival->told = true; /* it asks since it knows */
    int result = page_set_send(arrival->owed, &arrival->stream, &err);
    if (result == 0)
        result = stream_send(&arrival->stream, STREAM_ROUND, NULL, 0, &err);
    if (result < 0) {
        cut(arrival, err.text);
        return;
    }
    wish_again(arrival);
    set_why(arrival, "");
    log_info("memory goes on coming");
}

/* ---- The thread: pages ---- */

static bool take_page(void *context, uint64_t gpa, enum page_kind kind, const uint8_t *bytes) {
    struct arrival *arrival = context;
    if (kind == PAGE_DELTA || !page_set_take(arrival->owed, gpa))
        return false;
    if (memory_supply(arrival->memory, gpa, bytes, PAGE_SIZE) == 0 &&
        !memory_is_here(arrival->memory, gpa, PAGE_SIZE)) {
        page_set_add(arrival->owed, gpa); /* the host has no memory; the source keeps it */
        return false;
    }
    pthread_mutex_lock(&arrival->lock);
    page_set_take(arrival->asked, gpa);
    pthread_mutex_unlock(&arrival->lock);
    return true;
}

static int take_frame(struct arrival *arrival, struct error *err) {
    struct stream *stream = &arrival->stream;
    enum stream_type type;
    int result = stream_receive(stream, &type, err);
    if (result == 0 && type != STREAM_PAGES)
        result = error_set(err, -EPROTO, "the other side does not keep to the order");
    if (result == 0)
        result =
            page_unpack(arrival->unpacker, stream->body, stream->length, take_page, arrival, err);
    atomic_store(&arrival->left, page_set_count(arrival->owed) << PAGE_SHIFT);
    return result;
}

/* Whoever wants something runs. */
static int tell(struct arrival *arrival, struct error *err) {
    uint8_t body[WANT_MAX * 8];
    unsigned count = take_wishes(arrival, body);
    pthread_mutex_lock(&arrival->lock);
    bool runs = arrival->runs || count > 0;
    pthread_mutex_unlock(&arrival->lock);
    int result = 0;
    if (runs && !arrival->told)
        result = stream_send(&arrival->stream, STREAM_RUNNING, NULL, 0, err);
    arrival->told |= runs;
    return result == 0 && count > 0
               ? stream_send(&arrival->stream, STREAM_WANT, body, (size_t)count * 8, err)
               : result;
}

static void drain(const struct arrival *arrival) {
    uint64_t count;
    (void)!read(arrival->wake, &count, sizeof count);
}

/* One look at everything, which waits for something to do. */
static void turn(struct arrival *arrival) {
    struct tunnel *tunnel = arrival->stream.tunnel;
    struct pollfd polls[] = {{arrival->wake, POLLIN, 0},
                             {arrival->listener, POLLIN, 0},
                             {tunnel != NULL ? tunnel_fd(tunnel) : -1, POLLIN, 0}};
    struct error err = {0};
    int result = 0;
    int wait = tunnel == NULL ? -1 : tunnel_wait(tunnel, 0) ? 0 : TUNNEL_SILENCE_SECONDS * 1000;
    if (poll(polls, 3, wait) == 0 && wait > 0)
        result = error_set(&err, -ETIMEDOUT, "nothing has come for %d s", TUNNEL_SILENCE_SECONDS);
    if (polls[0].revents != 0)
        drain(arrival);
    if (polls[1].revents != 0) {
        adopt(arrival);
        return;
    }
    if (tunnel == NULL)
        return;
    if (result == 0)
        result = tell(arrival, &err);
    if (result == 0 && tunnel_wait(tunnel, 0))
        result = take_frame(arrival, &err);
    if (result < 0)
        cut(arrival, err.text);
}

static bool is_ending(struct arrival *arrival) {
    pthread_mutex_lock(&arrival->lock);
    bool ending = arrival->ending;
    pthread_mutex_unlock(&arrival->lock);
    return ending;
}

static void on_whole(void *context);

/* False: it does not come. */
static bool wait_for_vm(struct arrival *arrival) {
    pthread_mutex_lock(&arrival->lock);
    while (!arrival->here && !arrival->ending)
        pthread_cond_wait(&arrival->changed, &arrival->lock);
    bool here = arrival->here;
    pthread_mutex_unlock(&arrival->lock);
    return here;
}

static void *arrival_main(void *context) {
    struct arrival *arrival = context;
    bool ending = false;
    thread_begins(THREAD_OTHER, "arrival");
    thread_is_brief(); /* vCPUs stand still for what it brings */
    if (!wait_for_vm(arrival))
        return NULL;
    while ((page_set_count(arrival->owed) > 0 || !arrival->told) && !(ending = is_ending(arrival)))
        turn(arrival);
    /* If that does not arrive the source comes again, and nobody listens any more. */
    vm_store_sync();
    stop_listening(arrival);
    if (arrival->stream.tunnel != NULL)
        stream_send_json(&arrival->stream, STREAM_WHOLE, json_pack("{s:b}", "ended", ending), NULL);
    replace(arrival, (struct stream){0});
    atomic_store(&arrival->whole, true);
    if (!ending)
        loop_post(arrival->loop, on_whole, arrival);
    return NULL;
}

/* ---- The loop's thread ---- */

static void join(struct arrival *arrival) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += STOP_SECONDS;
    if (!arrival->started)
        return;
    if (pthread_timedjoin_np(arrival->thread, NULL, &end) != 0) {
        pthread_mutex_lock(&arrival->lock);
        if (arrival->stream.tunnel != NULL)
            tunnel_break(arrival->stream.tunnel);
        pthread_mutex_unlock(&arrival->lock);
        pthread_join(arrival->thread, NULL);
    }
    arrival->started = false;
}

static void on_whole(void *context) {
    struct arrival *arrival = context;
    join(arrival);
    if (arrival->begun)
        memory_missing_end(arrival->memory);
    arrival->begun = false;
}

int arrival_prepare(struct arrival *arrival, const char *directory, struct error *err) {
    const struct missing_source source = {want, arrival};
    int result = memory_missing_begin(arrival->memory, &source, false, err);
    arrival->begun = result == 0;
    if (result < 0)
        return result;
    atomic_store(&arrival->left, page_set_count(arrival->owed) << PAGE_SHIFT);
    result = take_all(arrival);
    if (result == 0)
        result = listen_in(arrival, directory);
    if (result == 0)
        result = -pthread_create(&arrival->thread, NULL, arrival_main, arrival);
    arrival->started = result == 0;
    return result < 0 ? error_set_errno(err, result, "memory that comes later") : 0;
}

void arrival_start(struct arrival *arrival, struct stream *stream, struct page_unpacker *unpacker) {
    arrival->unpacker = unpacker;
    replace(arrival, *stream);
    *stream = (struct stream){0};
    pthread_mutex_lock(&arrival->lock);
    arrival->here = true;
    pthread_cond_broadcast(&arrival->changed);
    pthread_mutex_unlock(&arrival->lock);
}

void arrival_runs(struct arrival *arrival) {
    pthread_mutex_lock(&arrival->lock);
    arrival->runs = true;
    pthread_mutex_unlock(&arrival->lock);
    wake_thread(arrival);
}

void arrival_stop(struct arrival *arrival) {
    if (arrival == NULL)
        return;
    pthread_mutex_lock(&arrival->lock);
    arrival->ending = true;
    pthread_cond_broadcast(&arrival->changed);
    pthread_mutex_unlock(&arrival->lock);
    wake_thread(arrival);
    join(arrival);
    if (arrival->begun) {
        memory_missing_lose(arrival->memory);
        memory_missing_end(arrival->memory);
    }
    arrival->begun = false;
}

void arrival_destroy(struct arrival *arrival) {
    if (arrival == NULL)
        return;
    stop_listening(arrival);
    stream_close(&arrival->stream);
    page_unpacker_destroy(arrival->unpacker);
    page_set_destroy(arrival->owed);
    page_set_destroy(arrival->asked);
    if (arrival->wake >= 0)
        close(arrival->wake);
    pthread_cond_destroy(&arrival->changed);
    pthread_mutex_destroy(&arrival->lock);
    free(arrival);
}

void arrival_report(struct arrival *arrival, struct arrival_report *report) {
    pthread_mutex_lock(&arrival->lock);
    *report = (struct arrival_report){.left = atomic_load(&arrival->left),
                                      .whole = atomic_load(&arrival->whole)};
    memcpy(report->why, arrival->why, sizeof report->why);
    pthread_mutex_unlock(&arrival->lock);
}
