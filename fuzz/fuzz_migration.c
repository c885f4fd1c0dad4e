/*
 * What comes to a target when a VM moves (docs/migration.md): the first byte chooses between the
 * input as it is and a script of good and bad frames (frames.h), whose numbers and sums are right,
 * so that what is behind them is reached. With post-copy a second connection may bring the rest of
 * memory. However it goes, the VM is in the store if and only if it has been taken over, nothing
 * else is left there, and the machine, a new one each time, can still be saved, and run if none of
 * its memory is missing.
 */
#include <fcntl.h>
#include <stdio.h>

#include "base/log.h"
#include "feed.h"
#include "frames.h"
#include "machine/machine_state.h"
#include "machine/migration.h"
#include "machine/migration_arrival.h"
#include "machine/migration_pages.h"
#include "machine/migration_stream.h"
#include "machine/private.h"
#include "memory/missing.h"

enum {
    DISK_BYTES = 1 << 20,
    FIRMWARE_BYTES = 128 << 10,
    CHANGE = 4,
    STATE_HEADER = 16,
    STATE_FIXED = 12
};

static struct machine *machine;
static struct machine_incoming incoming;
static struct state_buffer good;
static struct tunnel_listener *listener;
static struct page_packer *packers[2];
static char home[] = "/dev/shm/lodge-fuzz-XXXXXX", disk[64], firmware[64];

/* The disk is one that the machine has, as is the firmware: FIRMWARE_BYTES of zeroes. */
static const char hello[] =
    "{\"lodge\":\"1\",\"name\":\"fuzz\",\"id\":\"0123456789abcdef\",\"options\":{\"memory\":\"4M\"}"
    ","
    "\"vcpus\":1,\"features\":[],\"firmware\":{\"bytes\":131072,\"sum\":1569161551},\"disks\":[{"
    "\"size\":1048576,\"logical-block\":512,"
    "\"physical-block\":4096,\"readonly\":true,\"discard\":false}]}";
static const char handover[] = "{\"stood-ns\":1000000,\"paused\":false}";
static const char later[] = "{\"stood-ns\":1000000,\"paused\":false,\"post-copy\":true}";
static const char query[] = "{\"name\":\"fuzz\",\"id\":\"0123456789abcdef\"}";

static void must(bool good_so_far) {
    if (!good_so_far)
        __builtin_trap();
}

/* ---- A target ---- */

static void end(void) {
    char command[sizeof home + 16];
    tunnel_listener_close(listener);
    page_packer_destroy(packers[0]);
    page_packer_destroy(packers[1]);
    state_buffer_free(&good);
    snprintf(command, sizeof command, "rm -rf %s", home);
    must(system(command) == 0);
}

static void make_file(char path[64], const char *name, off_t size) {
    snprintf(path, 64, "%s/%s", home, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, size) == 0);
    close(fd);
}

static void make_home(void) {
    const struct tunnel_keys none = {0};
    char address[sizeof home + 16];
    must(mkdtemp(home) != NULL && setenv("XDG_DATA_HOME", home, 1) == 0);
    make_file(disk, "disk", DISK_BYTES);
    make_file(firmware, "firmware", FIRMWARE_BYTES);
    snprintf(address, sizeof address, "unix:%s/socket", home);
    must(tunnel_listen(address, &none, &listener, NULL) == 0);
}

static void make_machine(void) {
    struct machine_config config = {
        .engine = ENGINE_SOFT,
        .memory = MIB(4),
        .memory_max = MIB(64),
        .vcpus = 1,
        .firmware = FIRMWARE_FILE,
        .firmware_file = firmware,
        .disks = {{.path = disk, .options = {.format = BLOCK_FORMAT_RAW, .readonly = true}}},
        .disk_count = 1,
        .vsock = true,
        .incoming = &incoming};
    incoming.disks[0] = (struct block_info){.size = DISK_BYTES,
                                            .logical_block = 512,
                                            .physical_block = 4096,
                                            .readonly = true,
                                            .name = "disk"};
    must(loop_create(&config.loop, NULL) == 0);
    must(machine_create(&config, NULL, &machine, NULL) == 0);
    vm_clock_pause(machine_clock(machine));
}

static void end_machine(void) {
    struct loop *loop = machine->config.loop;
    machine_destroy(machine);
    loop_destroy(loop);
}

/* What all inputs share. */
static void begin(void) {
    make_home();
    must(page_packer_create(false, &packers[0], NULL) == 0);
    must(page_packer_create(true, &packers[1], NULL) == 0);
    make_machine();
    must(machine_save_state(machine, &good, NULL) == 0);
    end_machine();
    must(atexit(end) == 0);
    log_set_level(LOG_ERROR);
}

/* ---- Scripts ---- */

/* Only contents are changed, of a state whose sums are right again: what leads to them stays. */
static void change_state(uint8_t *bytes, struct script *script) {
    uint8_t count = script_byte(script);
    for (uint8_t i = 0; i < count && script->left > 0; i++) {
        size_t where = (script_word(script) | (size_t)script_byte(script) << 16) % good.length;
        bytes[where] = script_byte(script);
    }
    for (size_t at = STATE_HEADER; at < good.length;) {
        const uint8_t *old = good.data + at + 1 + good.data[at];
        size_t begin = (size_t)(old - good.data), body = (size_t)load_le64(old);
        memcpy(bytes + at, good.data + at, begin - at + STATE_FIXED);
        store_le32(bytes + begin + 8, crc32c(0, bytes + begin + STATE_FIXED, body));
        at = begin + STATE_FIXED + body;
    }
}

static void add_state(struct frames *frames, bool changed) {
    uint8_t *bytes = malloc(good.length);
    must(bytes != NULL);
    memcpy(bytes, good.data, good.length);
    if (changed)
        change_state(bytes, frames->script);
    for (size_t at = 0; at < good.length; at += MIGRATION_STATE_PIECE) {
        size_t left = good.length - at;
        frames_add(frames, STREAM_STATE, bytes + at,
                   left < MIGRATION_STATE_PIECE ? left : MIGRATION_STATE_PIECE);
    }
    free(bytes);
}

static void add_pages(struct frames *frames, bool compress) {
    uint8_t page[PAGE_SIZE], count = script_byte(frames->script) % PAGES_MAX;
    for (unsigned i = 0; i < count; i++) {
        uint64_t gpa = (uint64_t)script_word(frames->script) << PAGE_SHIFT;
        memset(page, 0, sizeof page);
        store_le32(page + script_word(frames->script) % (PAGE_SIZE - 4),
                   script_byte(frames->script));
        page_packer_add(packers[compress], gpa, page, true);
    }
    size_t length;
    const uint8_t *body = page_packer_take(packers[compress], &length);
    frames_add(frames, STREAM_PAGES, body, length);
}

/* Nothing of it is in the place where it belongs but its length. */
static void add_bytes(struct frames *frames, uint32_t type) {
    size_t length;
    const uint8_t *bytes = script_bytes(frames->script, &length);
    frames_add(frames, type, bytes, length);
}

/* Pages from an address on, a bit each. */
static void add_missing(struct frames *frames) {
    uint8_t body[8 + UINT8_MAX];
    size_t length;
    store_le64(body, (uint64_t)script_word(frames->script) << PAGE_SHIFT);
    const uint8_t *bits = script_bytes(frames->script, &length);
    if (length > 0)
        memcpy(body + 8, bits, length);
    frames_add(frames, STREAM_MISSING, body, 8 + length);
}

/* Where the second connection begins; 0: there is none. */
static size_t second;

static void add_connection(struct frames *frames) {
    if (second != 0)
        return;
    second = frames->length;
    frames->number = 0;
}

static void add_step(struct frames *frames) {
    struct script *script = frames->script;
    frames->how = script_byte(script);
    switch (frames->how & STEP_KIND) {
    case 0: frames_add(frames, STREAM_HELLO, hello, strlen(hello)); break;
    case 1: frames_text(frames, STREAM_HELLO, hello); break;
    case 2: add_pages(frames, false); break;
    case 3: add_pages(frames, true); break;
    case 4: add_bytes(frames, STREAM_PAGES); break;
    case 5: frames_add(frames, STREAM_ROUND, NULL, 0); break;
    case 6: add_state(frames, false); break;
    case 7: add_state(frames, true); break;
    case 8: add_bytes(frames, STREAM_STATE); break;
    case 9: frames_add(frames, STREAM_HANDOVER, handover, strlen(handover)); break;
    case 10: frames_text(frames, STREAM_HANDOVER, handover); break;
    case 11: frames_add(frames, STREAM_GO, NULL, 0); break;
    case 12: frames_add(frames, STREAM_QUERY, query, strlen(query)); break;
    case 13: frames_text(frames, STREAM_QUERY, query); break;
    case 14: frames_add(frames, STREAM_HANDOVER, later, strlen(later)); break;
    case 15: add_missing(frames); break;
    case 16: add_connection(frames); break;
    case 17: frames_add(frames, STREAM_RESUME, query, strlen(query)); break;
    default: add_bytes(frames, script_byte(script)); break;
    }
}

static void play(struct frames *frames) {
    frames_preamble(frames);
    while (frames->script->left > 0)
        add_step(frames);
}

/* ---- A move ---- */

/* As a receiver's monitor does it. True: the VM is here. */
static bool take_in(struct migration_target *target, struct error *err) {
    if (migration_offer(target)->disks != 1) {
        migration_refuse(target, "its disks are not those of its options");
        error_set(err, -EINVAL, "its disks are not those of its options");
        return false;
    }
    int result = migration_receive(target, machine, err);
    if (result == 0)
        result = migration_take_over(target, machine, err);
    if (result < 0)
        migration_refuse(target, err->text);
    else
        migration_runs(target);
    return result == 0;
}

static void forget(const char *name) {
    struct vm_directory directory;
    must(vm_store_lock(name, &directory, NULL) == 0);
    must(vm_store_remove(name, &directory, NULL, NULL) == 0);
}

static void send_all(struct feed *feed, int fd, const uint8_t *bytes, size_t length) {
    *feed = (struct feed){.fd = fd, .bytes = bytes, .length = length};
    must(pthread_create(&feed->thread, NULL, feed_run, feed) == 0);
}

/* Until all memory is here, or nothing comes any more: the connection, if there was one, is at its
 * end. */
static void settle(const struct migration_target *target) {
    uint64_t left;
    char why[ERROR_TEXT_MAX];
    while (migration_is_arriving(target, &left, why, sizeof why) && why[0] == 0)
        usleep(100);
}

/* The first connection has been sent. */
static void wait_for_memory(struct migration_target *target, const struct frames *frames) {
    struct feed feed;
    int fd;
    settle(target);
    if (second == 0 || arrival_connect(migration_directory(target), &fd, NULL) < 0)
        return; /* whole already, too */
    send_all(&feed, fd, frames->bytes + second, frames->length - second);
    pthread_join(feed.thread, NULL);
    settle(target);
}

/* False: some of its memory never came. */
static bool stop(struct migration_target *target) {
    struct missing_counters before, after;
    memory_missing_count(machine->platform.memory, &before);
    migration_stop(target);
    memory_missing_count(machine->platform.memory, &after);
    must(after.away == 0);
    return before.away == 0;
}

/* As stop(). */
static bool receive(int fd, struct feed *feed, const struct frames *frames) {
    struct tunnel *tunnel;
    struct migration_target *target = NULL;
    struct error err = {0};
    char name[64] = "";
    must(tunnel_open(listener, fd, &tunnel, NULL) == 0);
    int result = migration_accept(tunnel, CPU_HOST, &target, &err);
    bool here = result == 0 && take_in(target, &err);
    must(here || result == 1 || (err.code < 0 && err.text[0] != 0));
    if (here) {
        snprintf(name, sizeof name, "%s", migration_offer(target)->name);
        must(vm_store_is_busy(name));
        wait_for_memory(target, frames);
    }
    bool whole = stop(target);
    migration_target_free(target);
    pthread_join(feed->thread, NULL);
    if (here)
        forget(name);
    return whole;
}

/* A step of the guest's, and its state again. */
static void go_on(bool whole) {
    struct state_buffer again = {0};
    struct vcpu_exit exit;
    vcpu_kick(machine->vcpus[0].vcpu);
    if (whole)
        vcpu_run(machine->vcpus[0].vcpu, &exit);
    must(machine_save_state(machine, &again, NULL) == 0);
    state_buffer_free(&again);
}

/* Nothing but the store itself. */
static void check_store(void) {
    char **names;
    size_t count;
    must(vm_store_list(&names, &count, NULL) == 0 && count == 0);
    free(names);
    char path[128];
    snprintf(path, sizeof path, "%s/lodge/vms/.coming-fuzz", home);
    must(access(path, F_OK) < 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int pair[2];
    struct feed feed;
    if (listener == NULL)
        begin();
    if (size == 0)
        return 0;
    struct script script = {data + 1, size - 1};
    struct frames frames = {.script = &script};
    make_machine();
    second = 0;
    must((frames.bytes = malloc(FRAMES_MAX)) != NULL);
    if (data[0] & 1)
        play(&frames);
    else
        frames_raw(&frames, data + 1, size - 1);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    send_all(&feed, pair[0], frames.bytes, second != 0 ? second : frames.length);
    go_on(receive(pair[1], &feed, &frames));
    free(frames.bytes);
    check_store();
    end_machine();
    return 0;
}
