#include "memory/missing.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/thread.h"
#include "memory/ahead.h"
#include "memory/private.h"

/* Not in every C library's headers. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* A touch of memory that was never used is answered with so many pages of zeros, as far as they are
 * untouched too. */
enum { ZERO_RUN = 16 };

/* Until a source that could not bring pages is asked again. */
enum { AGAIN_MS = 1000 };

/* A page's state. */
enum {
    HERE,   /* or untouched, or given back: zeros */
    AWAY,   /* the source has it */
    ASKED,  /* in `asked`; the source does not know yet */
    WANTED, /* the source has been asked */
    FAILED, /* and could not; is asked again */
};

/* `lock` guards changes of all but the flags; states and counts are read without it. */
struct missing {
    struct memory *memory;
    struct missing_source source;
    struct lock lock;
    int fd, wake; /* userfaultfd; eventfd that wakes the thread */
    pthread_t thread;
    atomic_bool active, quit;
    _Atomic(uint8_t) *states[MEMORY_RAM_REGIONS]; /* by region, a byte a page; NULL: cannot go */
    _Atomic(uint64_t) away;                       /* pages not HERE */
    _Atomic(uint64_t) faults, ahead, supplied;
    bool failed;     /* some may be FAILED */
    uint64_t *asked; /* pages, the oldest at asked_first */
    size_t asked_first, asked_end, asked_room;
    struct memory_wait *waits;
    unsigned depth;       /* memory_prefetch */
    unsigned wanted;      /* pages WANTED */
    unsigned next_region; /* where that looks next */
    uint64_t next_page;
};

static struct missing *missing_of(const struct memory *memory) {
    return atomic_load_explicit(&memory->missing, memory_order_acquire);
}

/* NULL: no RAM, or such as cannot be away. */
static _Atomic(uint8_t) *state_of(const struct missing *missing, uint64_t gpa) {
    const struct ram_region *region = memory_region(missing->memory, gpa);
    _Atomic(uint8_t) *states =
        region == NULL ? NULL : missing->states[region - missing->memory->ram];
    return states == NULL ? NULL : &states[(gpa - region->gpa) >> PAGE_SHIFT];
}

static uint8_t *host_of(const struct missing *missing, uint64_t gpa) {
    const struct ram_region *region = memory_region(missing->memory, gpa);
    return region->host + (gpa - region->gpa);
}

static void wake_thread(const struct missing *missing) {
    uint64_t one = 1;
    (void)!write(missing->wake, &one, sizeof one);
}

/* ---- The kernel's side ---- */

static int open_fd(bool kernel) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0 || errno != EPERM)
        return fd >= 0 ? fd : -errno;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
    }
    if (fd < 0 && !kernel)
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    return fd >= 0 ? fd : -EPERM;
}

static void wake_touchers(const struct missing *missing, uint8_t *host, uint64_t size) {
    struct uffdio_range range = {.start = (uintptr_t)host, .len = size};
    ioctl(missing->fd, UFFDIO_WAKE, &range);
}

/* Puts one page there; who stands still at it goes on. A page that is there already stays. False:
 * the host has no memory now; who stood still touches again, and asks again. */
static bool put(const struct missing *missing, uint8_t *host, const void *bytes) {
    struct uffdio_copy copy = {.dst = (uintptr_t)host, .src = (uintptr_t)bytes, .len = PAGE_SIZE};
    struct uffdio_zeropage zero = {.range = {.start = (uintptr_t)host, .len = PAGE_SIZE}};
    int result;
    do { /* EAGAIN: somebody is changing mappings */
        result = bytes != NULL ? ioctl(missing->fd, UFFDIO_COPY, &copy)
                               : ioctl(missing->fd, UFFDIO_ZEROPAGE, &zero);
    } while (result < 0 && errno == EAGAIN);
    int error = result < 0 ? errno : 0;
    if (error != 0)
        wake_touchers(missing, host, PAGE_SIZE);
    return error != ENOMEM;
}

/* ---- Coming: lock held ---- */

static void tell(struct missing *missing, uint64_t gpa, bool all) {
    for (struct memory_wait **at = &missing->waits; *at != NULL;) {
        struct memory_wait *wait = *at;
        if (!all && wait->page != gpa) {
            at = &wait->next;
            continue;
        }
        *at = wait->next;
        wait->armed = false;
        wait->here(wait->context);
    }
}

static void set_here(struct missing *missing, uint64_t gpa, _Atomic(uint8_t) *state) {
    if (atomic_load_explicit(state, memory_order_relaxed) == WANTED)
        missing->wanted--;
    atomic_store_explicit(state, HERE, memory_order_release);
    atomic_fetch_sub(&missing->away, 1);
    tell(missing, gpa, false);
}

/* The page's contents; true: it was away. */
static bool supply_page(struct missing *missing, uint64_t gpa, const void *bytes) {
    _Atomic(uint8_t) *state = state_of(missing, gpa);
    if (state == NULL || atomic_load_explicit(state, memory_order_relaxed) == HERE)
        return false;
    if (!put(missing, host_of(missing, gpa), bytes)) {
        if (atomic_exchange_explicit(state, AWAY, memory_order_relaxed) == WANTED)
            missing->wanted--;
        return false;
    }
    set_here(missing, gpa, state);
    return true;
}

uint64_t memory_supply(struct memory *memory, uint64_t gpa, const void *bytes, uint64_t size) {
    struct missing *missing = missing_of(memory);
    const uint8_t *from = bytes;
    uint64_t came = 0;
    if (missing == NULL)
        return 0;
    lock_take(&missing->lock);
    for (uint64_t at = 0; at + PAGE_SIZE <= size; at += PAGE_SIZE)
        came += supply_page(missing, gpa + at, from == NULL ? NULL : from + at);
    atomic_fetch_add(&missing->supplied, came);
    bool more = missing->depth > 0;
    lock_release(&missing->lock);
    if (more)
        wake_thread(missing);
    return came * PAGE_SIZE;
}

/* ---- The thread ---- */

/* Never used, or given back: untouched neighbours get zeros with it. */
static void give_zeros(const struct missing *missing, uint64_t gpa) {
    const struct ram_region *region = memory_region(missing->memory, gpa);
    uint8_t *host = host_of(missing, gpa);
    uint64_t run = PAGE_SIZE;
    while (run < ZERO_RUN * PAGE_SIZE && gpa - region->gpa + run < region->size &&
           atomic_load(state_of(missing, gpa + run)) == HERE)
        run += PAGE_SIZE;
    struct uffdio_zeropage zero = {.range = {.start = (uintptr_t)host, .len = run}};
    if (ioctl(missing->fd, UFFDIO_ZEROPAGE, &zero) < 0)
        put(missing, host, NULL);
}

static uint64_t gpa_of_host(const struct missing *missing, uint64_t host) {
    const struct memory *memory = missing->memory;
    for (unsigned i = 0; i < memory->ram_count; i++) {
        uint64_t offset = host - (uintptr_t)memory->ram[i].host;
        if (missing->states[i] != NULL && offset < memory->ram[i].size)
            return memory->ram[i].gpa + round_down(offset, PAGE_SIZE);
    }
    return UINT64_MAX;
}

static void want(struct missing *missing, uint64_t gpa, bool waits) {
    missing->source.want(missing->source.context, gpa, waits);
}

static void touched(struct missing *missing, uint64_t host) {
    uint64_t gpa = gpa_of_host(missing, host);
    if (gpa == UINT64_MAX)
        return;
    atomic_fetch_add(&missing->faults, 1);
    lock_take(&missing->lock);
    _Atomic(uint8_t) *state = state_of(missing, gpa);
    uint8_t was = atomic_load(state);
    if (was == HERE) {
        give_zeros(missing, gpa);
    } else if (was != WANTED) {
        atomic_store(state, WANTED);
        missing->wanted++;
    }
    lock_release(&missing->lock);
    if (was != HERE)
        want(missing, gpa, true);
}

static bool serve_touches(struct missing *missing) {
    struct uffd_msg messages[16];
    ssize_t length = read(missing->fd, messages, sizeof messages);
    for (ssize_t i = 0; length > 0 && i < length / (ssize_t)sizeof messages[0]; i++)
        if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            touched(missing, messages[i].arg.pagefault.address);
    return length > 0;
}

/* Lock held. The oldest page that was asked for and is still away; UINT64_MAX: none. */
static uint64_t next_asked(struct missing *missing) {
    while (missing->asked_first < missing->asked_end) {
        uint64_t gpa = missing->asked[missing->asked_first++];
        if (atomic_load(state_of(missing, gpa)) == ASKED)
            return gpa;
    }
    missing->asked_first = missing->asked_end = 0;
    return UINT64_MAX;
}

/* Lock held. The next page that is away in a region, from next_page on; UINT64_MAX: none. */
static uint64_t ahead_in(struct missing *missing, unsigned i) {
    const struct ram_region *region = &missing->memory->ram[i];
    uint64_t pages = missing->states[i] == NULL ? 0 : region->size >> PAGE_SHIFT;
    for (; missing->next_page < pages; missing->next_page++)
        if (atomic_load_explicit(&missing->states[i][missing->next_page], memory_order_relaxed) ==
            AWAY)
            return region->gpa + missing->next_page * PAGE_SIZE;
    return UINT64_MAX;
}

/* Lock held. The next page that is away, once round; UINT64_MAX: none, or enough are under way. */
static uint64_t next_ahead(struct missing *missing) {
    unsigned regions = missing->memory->ram_count;
    if (missing->wanted >= missing->depth || atomic_load(&missing->away) == 0)
        return UINT64_MAX;
    for (unsigned tried = 0; tried <= regions; tried++) {
        uint64_t gpa = ahead_in(missing, missing->next_region);
        if (gpa != UINT64_MAX)
            return gpa;
        missing->next_region = (missing->next_region + 1) % regions;
        missing->next_page = 0;
    }
    return UINT64_MAX;
}

/* Hands the source one page that nobody waits for yet; false: there is none. */
static bool serve_ahead(struct missing *missing) {
    lock_take(&missing->lock);
    uint64_t gpa = next_asked(missing);
    if (gpa == UINT64_MAX)
        gpa = next_ahead(missing);
    if (gpa != UINT64_MAX) {
        atomic_store(state_of(missing, gpa), WANTED);
        missing->wanted++;
    }
    lock_release(&missing->lock);
    if (gpa == UINT64_MAX)
        return false;
    atomic_fetch_add(&missing->ahead, 1);
    want(missing, gpa, false);
    return true;
}

void memory_supply_later(struct memory *memory, uint64_t gpa) {
    struct missing *missing = missing_of(memory);
    _Atomic(uint8_t) *state = missing == NULL ? NULL : state_of(missing, gpa);
    uint8_t was = WANTED;
    if (state == NULL)
        return;
    lock_take(&missing->lock);
    if (atomic_compare_exchange_strong(state, &was, FAILED)) {
        missing->wanted--;
        missing->failed = true;
    }
    lock_release(&missing->lock);
    wake_thread(missing);
}

static bool ask_page(struct missing *missing, uint64_t gpa, uint8_t from);

/* What failed is asked for anew. */
static void ask_again(struct missing *missing) {
    const struct memory *memory = missing->memory;
    lock_take(&missing->lock);
    missing->failed = false;
    for (unsigned i = 0; i < memory->ram_count; i++)
        for (uint64_t n = 0; missing->states[i] != NULL && n < memory->ram[i].size >> PAGE_SHIFT;
             n++)
            missing->failed |= !ask_page(missing, memory->ram[i].gpa + n * PAGE_SIZE, FAILED);
    lock_release(&missing->lock);
}

static bool has_failed(struct missing *missing) {
    lock_take(&missing->lock);
    bool failed = missing->failed;
    lock_release(&missing->lock);
    return failed;
}

static void *missing_main(void *argument) {
    struct missing *missing = argument;
    thread_begins(THREAD_OTHER, "missing");
    thread_is_brief();
    while (!atomic_load(&missing->quit)) {
        struct pollfd polls[] = {{missing->fd, POLLIN, 0}, {missing->wake, POLLIN, 0}};
        uint64_t count;
        if (serve_touches(missing) || serve_ahead(missing))
            continue;
        if (poll(polls, 2, has_failed(missing) ? AGAIN_MS : -1) == 0)
            ask_again(missing);
        if (polls[1].revents != 0)
            (void)!read(missing->wake, &count, sizeof count);
    }
    return NULL;
}

static int start_thread(struct missing *missing) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int result = -pthread_create(&missing->thread, NULL, missing_main, missing);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return result;
}

/* ---- Beginning and ending ---- */

static bool can_be_away(const struct ram_region *region) {
    return !region->shared && !region->huge_pages && !region->from_image;
}

static int register_region(struct missing *missing, unsigned i) {
    const struct ram_region *region = &missing->memory->ram[i];
    if (region->rom)
        return 0;
    if (!can_be_away(region))
        return -ENOTSUP;
    if (missing->states[i] == NULL)
        missing->states[i] = calloc(region->size >> PAGE_SHIFT, 1);
    struct uffdio_register wish = {
        .range = {.start = (uintptr_t)region->host, .len = region->size},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    if (missing->states[i] == NULL)
        return -ENOMEM;
    return ioctl(missing->fd, UFFDIO_REGISTER, &wish) < 0 ? -errno : 0;
}

static void close_fds(struct missing *missing) {
    if (missing->fd >= 0)
        close(missing->fd); /* and so unregisters all */
    if (missing->wake >= 0)
        close(missing->wake);
    missing->fd = missing->wake = -1;
}

static int start(struct missing *missing, bool kernel) {
    struct uffdio_api api = {.api = UFFD_API};
    missing->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int result = missing->wake < 0 ? -errno : 0;
    if (result == 0)
        result = missing->fd = open_fd(kernel);
    if (result >= 0)
        result = ioctl(missing->fd, UFFDIO_API, &api) < 0 ? -errno : 0;
    for (unsigned i = 0; i < missing->memory->ram_count && result == 0; i++)
        result = register_region(missing, i);
    atomic_store(&missing->quit, false);
    if (result == 0)
        result = start_thread(missing);
    if (result < 0)
        close_fds(missing);
    return result;
}

static struct missing *create(struct memory *memory) {
    struct missing *made = calloc(1, sizeof *made);
    if (made == NULL)
        return NULL;
    made->memory = memory;
    made->fd = made->wake = -1;
    lock_init(&made->lock, LOCK_MISSING, "missing memory");
    atomic_store_explicit(&memory->missing, made, memory_order_release);
    return made;
}

static int cannot(int result, struct error *err) {
    if (result == -ENOTSUP)
        return error_set(err, result,
                         "its memory cannot be away: it is shared with device servers, a "
                         "snapshot's, or in huge pages of the host's pool");
    if (result == -EPERM)
        return error_set(err, result,
                         "this user may not wait for the kernel's touches of memory: allow it by "
                         "access to /dev/userfaultfd");
    return error_set_errno(err, result, "userfaultfd");
}

int memory_missing_begin(struct memory *memory, const struct missing_source *source, bool kernel,
                         struct error *err) {
    struct missing *missing = missing_of(memory);
    if (missing == NULL && (missing = create(memory)) == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    if (atomic_load(&missing->active) || atomic_load(&memory->lost))
        return error_set(err, -EBUSY, "pages of its memory are away already");
    memory_ahead_stop(memory); /* it would have them come */
    missing->source = *source;
    int result = start(missing, kernel);
    atomic_store(&missing->active, result == 0);
    return result < 0 ? cannot(result, err) : 0;
}

int memory_missing_check(const struct memory *memory, bool kernel, struct error *err) {
    for (unsigned i = 0; i < memory->ram_count; i++)
        if (!memory->ram[i].rom && !can_be_away(&memory->ram[i]))
            return cannot(-ENOTSUP, err);
    int fd = open_fd(kernel);
    if (fd < 0)
        return cannot(fd, err);
    close(fd);
    return 0;
}

static void stop(struct missing *missing) {
    if (!atomic_exchange(&missing->active, false))
        return;
    atomic_store(&missing->quit, true);
    wake_thread(missing);
    pthread_join(missing->thread, NULL);
    close_fds(missing);
}

int memory_missing_end(struct memory *memory) {
    struct missing *missing = missing_of(memory);
    if (missing == NULL)
        return 0;
    /* Who was let go on by a page's coming may be here before that is noted. */
    lock_take(&missing->lock);
    bool busy = atomic_load(&missing->away) > 0;
    lock_release(&missing->lock);
    if (busy)
        return -EBUSY;
    stop(missing);
    return 0;
}

void memory_missing_lose(struct memory *memory) {
    struct missing *missing = missing_of(memory);
    if (missing == NULL || atomic_load(&missing->away) == 0)
        return;
    atomic_store(&memory->lost, true);
    lock_take(&missing->lock);
    for (unsigned i = 0; i < memory->ram_count; i++)
        for (uint64_t n = 0; missing->states[i] != NULL && n < memory->ram[i].size >> PAGE_SHIFT;
             n++)
            atomic_store_explicit(&missing->states[i][n], HERE, memory_order_relaxed);
    atomic_store(&missing->away, 0);
    missing->wanted = missing->depth = 0;
    tell(missing, 0, true);
    lock_release(&missing->lock);
    for (unsigned i = 0; i < memory->ram_count; i++) {
        struct uffdio_range range = {(uintptr_t)memory->ram[i].host, memory->ram[i].size};
        if (missing->states[i] != NULL)
            ioctl(missing->fd, UFFDIO_UNREGISTER, &range);
    }
}

void missing_destroy(struct memory *memory) {
    struct missing *missing = missing_of(memory);
    if (missing == NULL)
        return;
    stop(missing);
    for (unsigned i = 0; i < memory->ram_count; i++)
        free((void *)missing->states[i]);
    free(missing->asked);
    lock_destroy(&missing->lock);
    free(missing);
}

/* ---- Going ---- */

static int take_page(struct missing *missing, uint64_t gpa) {
    _Atomic(uint8_t) *state = state_of(missing, gpa);
    if (state == NULL)
        return -EFAULT;
    if (atomic_load(state) != HERE)
        return 0;
    atomic_fetch_add(&missing->away, 1);
    atomic_store(state, AWAY);
    return 0;
}

int memory_take(struct memory *memory, uint64_t gpa, uint64_t size) {
    struct missing *missing = missing_of(memory);
    int result = missing == NULL || !atomic_load(&missing->active) ? -EFAULT : 0;
    while (size > 0 && result == 0) {
        const struct ram_region *region = memory_region(memory, gpa);
        if (region == NULL || (gpa | size) & (PAGE_SIZE - 1))
            return -EFAULT;
        uint64_t left = region->size - (gpa - region->gpa), run = left < size ? left : size;
        lock_take(&missing->lock);
        for (uint64_t at = 0; at < run && result == 0; at += PAGE_SIZE)
            result = take_page(missing, gpa + at);
        if (result == 0 && madvise(host_of(missing, gpa), run, MADV_DONTNEED) < 0)
            result = -errno;
        lock_release(&missing->lock);
        gpa += run;
        size -= run;
    }
    return result;
}

void missing_lock(struct memory *memory) {
    struct missing *missing = missing_of(memory);
    if (missing != NULL)
        lock_take(&missing->lock);
}

void missing_unlock(struct memory *memory) {
    struct missing *missing = missing_of(memory);
    if (missing != NULL)
        lock_release(&missing->lock);
}

void missing_forget(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                    uint64_t size) {
    struct missing *missing = missing_of(memory);
    if (missing == NULL || missing->states[region - memory->ram] == NULL)
        return;
    for (uint64_t page = gpa; page < gpa + size; page += PAGE_SIZE) {
        _Atomic(uint8_t) *state = state_of(missing, page);
        if (atomic_load(state) != HERE)
            set_here(missing, page, state);
    }
    /* Whoever stands still there touches again, and gets zeros. */
    if (atomic_load(&missing->active))
        wake_touchers(missing, host_of(missing, gpa), size);
}

void memory_prefetch(struct memory *memory, unsigned depth) {
    struct missing *missing = missing_of(memory);
    if (missing == NULL || !atomic_load(&missing->active))
        return;
    lock_take(&missing->lock);
    missing->depth = depth;
    lock_release(&missing->lock);
    wake_thread(missing);
}

/* ---- Looking and asking ---- */

void memory_missing_count(const struct memory *memory, struct missing_counters *counters) {
    struct missing *missing = missing_of(memory);
    *counters = (struct missing_counters){0};
    if (missing == NULL)
        return;
    lock_take(&missing->lock);
    counters->away = atomic_load(&missing->away) * PAGE_SIZE;
    counters->faults = atomic_load(&missing->faults);
    counters->ahead = atomic_load(&missing->ahead);
    counters->supplied = atomic_load(&missing->supplied);
    lock_release(&missing->lock);
}

bool memory_any_away(const struct memory *memory) {
    const struct missing *missing = missing_of(memory);
    return missing != NULL && atomic_load_explicit(&missing->away, memory_order_acquire) > 0;
}

static bool is_away(const struct missing *missing, uint64_t gpa) {
    const _Atomic(uint8_t) *state = state_of(missing, gpa);
    return state != NULL && atomic_load_explicit(state, memory_order_acquire) != HERE;
}

/* The page of a range's first byte, and how many pages it touches; bounded by what RAM there is. */
static uint64_t pages_of(uint64_t *gpa, uint64_t length) {
    uint64_t first = round_down(*gpa, PAGE_SIZE), last = *gpa + (length - 1);
    *gpa = first;
    return length == 0 || last < first ? 0 : ((last - first) >> PAGE_SHIFT) + 1;
}

bool memory_is_here(const struct memory *memory, uint64_t gpa, uint64_t length) {
    const struct missing *missing = missing_of(memory);
    if (!memory_any_away(memory))
        return true;
    for (uint64_t pages = pages_of(&gpa, length); pages > 0; pages--, gpa += PAGE_SIZE)
        if (is_away(missing, gpa))
            return false;
    return true;
}

/* Lock held. Asks for a page that is in this state. False: no memory to note it. */
static bool ask_page(struct missing *missing, uint64_t gpa, uint8_t from) {
    _Atomic(uint8_t) *state = state_of(missing, gpa);
    if (state == NULL || atomic_load(state) != from)
        return true;
    if (missing->asked_end == missing->asked_room) {
        size_t room = missing->asked_room == 0 ? 1024 : 2 * missing->asked_room;
        uint64_t *grown = realloc(missing->asked, room * sizeof *grown);
        if (grown == NULL)
            return false;
        missing->asked = grown;
        missing->asked_room = room;
    }
    missing->asked[missing->asked_end++] = gpa;
    atomic_store(state, ASKED);
    return true;
}

/* Lock held. Asks for what is away; the first such page, UINT64_MAX: none. */
static uint64_t ask(struct missing *missing, uint64_t gpa, uint64_t length) {
    uint64_t first = UINT64_MAX;
    for (uint64_t pages = pages_of(&gpa, length); pages > 0; pages--, gpa += PAGE_SIZE)
        if (ask_page(missing, gpa, AWAY) && first == UINT64_MAX && is_away(missing, gpa))
            first = gpa;
    return first;
}

void memory_ask(struct memory *memory, uint64_t gpa, uint64_t length) {
    struct missing *missing = missing_of(memory);
    if (memory_is_here(memory, gpa, length))
        return;
    lock_take(&missing->lock);
    ask(missing, gpa, length);
    lock_release(&missing->lock);
    wake_thread(missing);
}

static void disarm(struct missing *missing, struct memory_wait *wait) {
    struct memory_wait **at = &missing->waits;
    while (*at != wait)
        at = &(*at)->next;
    *at = wait->next;
    wait->armed = false;
}

bool memory_await(struct memory *memory, uint64_t gpa, uint64_t length, struct memory_wait *wait) {
    struct missing *missing = missing_of(memory);
    if (memory_is_here(memory, gpa, length))
        return false;
    lock_take(&missing->lock);
    if (wait->armed)
        disarm(missing, wait);
    wait->page = ask(missing, gpa, length);
    wait->armed = wait->page != UINT64_MAX;
    if (wait->armed) {
        wait->next = missing->waits;
        missing->waits = wait;
    }
    bool armed = wait->armed;
    lock_release(&missing->lock);
    wake_thread(missing);
    return armed;
}

void memory_await_cancel(struct memory *memory, struct memory_wait *wait) {
    struct missing *missing = missing_of(memory);
    if (missing == NULL)
        return;
    lock_take(&missing->lock);
    if (wait->armed)
        disarm(missing, wait);
    lock_release(&missing->lock);
}
