#include "machine/migration.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "image/file.h"
#include "machine/control_names.h"
#include "machine/machine_identity.h"
#include "machine/machine_state.h"
#include "machine/migration_arrival.h"
#include "machine/migration_copies.h"
#include "machine/migration_files.h"
#include "machine/migration_image.h"
#include "machine/migration_pages.h"
#include "machine/migration_snapshots.h"
#include "machine/migration_stream.h"
#include "machine/private.h"
#include "memory/missing.h"
#include "virtio/net.h"

struct migration_target {
    struct stream stream;
    json_t *hello;
    char id[MOVE_ID_MAX];
    struct migration_offer offer;
    struct vm_directory directory;
    struct machine_incoming incoming;
    struct disk_copies *copies;
    struct page_unpacker *unpacker;
    struct state_buffer state;
    struct machine *machine;
    struct arrival *arrival; /* of memory that comes later; NULL: none does */
    bool has_directory, arrived, loaded;
};

/* ---- The first words ---- */

static void send_refusal(struct stream *stream, const char *why) {
    stream_send_json(stream, STREAM_REFUSED, json_pack("{s:s}", "why", why), NULL);
}

void migration_refuse(struct migration_target *target, const char *why) {
    if (!target->arrived)
        send_refusal(&target->stream, why);
}

static int strange(struct error *err) {
    return error_set(err, -EPROTO, "what the other side says of the VM is not as lodge says it");
}

static bool read_id(const json_t *message, char id[MOVE_ID_MAX]) {
    const char *text = json_string_value(json_object_get(message, "id"));
    if (text == NULL || text[0] == 0 || strlen(text) >= MOVE_ID_MAX)
        return false;
    memcpy(id, text, strlen(text) + 1);
    return true;
}

static const char *read_name(const json_t *message) {
    const char *name = json_string_value(json_object_get(message, "name"));
    return name != NULL && vm_name_check(name, NULL) == 0 ? name : NULL;
}

static bool read_disk(const json_t *disk, struct block_info *info) {
    json_int_t size = json_integer_value(json_object_get(disk, "size"));
    json_int_t logical = json_integer_value(json_object_get(disk, "logical-block"));
    json_int_t physical = json_integer_value(json_object_get(disk, "physical-block"));
    *info = (struct block_info){.size = (uint64_t)size,
                                .logical_block = (uint32_t)logical,
                                .physical_block = (uint32_t)physical,
                                .readonly = json_is_true(json_object_get(disk, "readonly")),
                                .discard = json_is_true(json_object_get(disk, "discard")),
                                .name = "disk"};
    return size > 0 && size % BLOCK_SECTOR == 0 && logical >= BLOCK_SECTOR && logical <= 1 << 16 &&
           is_power_of_two((uint64_t)logical) && physical >= logical && physical <= 1 << 24 &&
           is_power_of_two((uint64_t)physical);
}

static int read_offer(struct migration_target *target, struct error *err) {
    json_t *hello = target->hello, *disk;
    const json_t *disks = json_object_get(hello, "disks");
    json_int_t vcpus = json_integer_value(json_object_get(hello, "vcpus"));
    size_t i;
    target->offer = (struct migration_offer){
        .name = read_name(hello),
        .options = json_object_get(hello, "options"),
        .generation_id = json_string_value(json_object_get(hello, "generation-id")),
        .vcpus = (unsigned)vcpus,
        .disks = (unsigned)json_array_size(disks)};
    if (target->offer.name == NULL || !json_is_object(target->offer.options) || vcpus < 1 ||
        vcpus > MACHINE_VCPUS_MAX || !json_is_array(disks) ||
        json_array_size(disks) > MACHINE_DISKS_MAX || !read_id(hello, target->id))
        return strange(err);
    json_array_foreach((json_t *)disks, i, disk) {
        if (!read_disk(disk, &target->incoming.disks[i]))
            return strange(err);
    }
    return 0;
}

static bool is_offered(uint32_t offered, const char *name) {
    for (unsigned i = 0; cpu_feature_name(i) != NULL; i++)
        if ((offered >> i & 1) != 0 && strcmp(cpu_feature_name(i), name) == 0)
            return true;
    return false;
}

/* What the guest has seen of the processor it may go on using. */
static int check_processor(const json_t *hello, enum cpu_baseline most, struct error *err) {
    const json_t *list = json_object_get(hello, "features"), *one;
    uint32_t offered = cpu_baseline_shown(most);
    char missing[200] = "";
    size_t i;
    if (!json_is_array(list))
        return strange(err);
    json_array_foreach(list, i, one) {
        const char *name = json_string_value(one);
        size_t used = strlen(missing);
        if (name == NULL)
            return strange(err);
        if (!is_offered(offered, name))
            snprintf(missing + used, sizeof missing - used, "%s%.20s", used > 0 ? ", " : "", name);
    }
    if (missing[0] == 0)
        return 0;
    return error_set(err, -ENOTSUP,
                     "the target lacks features that the VM may be using: %s; those of 'lodge "
                     "create --cpu BASELINE' use no more than that",
                     missing);
}

/* A reboot needs the same. */
static int check_firmware(const struct migration_target *target, struct error *err) {
    const struct machine *machine = target->machine;
    const json_t *about = json_object_get(target->hello, "firmware");
    uint32_t sum = 0;
    uint64_t bytes = machine->firmware != NULL ? firmware_sum(machine->firmware, &sum) : 0;
    if ((uint64_t)json_integer_value(json_object_get(about, "bytes")) == bytes &&
        (uint32_t)json_integer_value(json_object_get(about, "sum")) == sum)
        return 0;
    return error_set(err, -ENOTSUP,
                     "the target has another version of the firmware that the VM boots by");
}

/* As vm_store_settle of the VM that a question is about, and its name. */
static int settle(struct stream *stream, char about[VM_NAME_MAX + 1], struct error *err) {
    char id[MOVE_ID_MAX];
    json_t *question = NULL;
    int result = stream_json(stream, &question, err);
    if (result < 0)
        return result;
    const char *name = read_name(question);
    result = name != NULL && read_id(question, id) ? vm_store_settle(name, id, err) : strange(err);
    if (result >= 0)
        memcpy(about, name, strlen(name) + 1);
    json_decref(question);
    return result;
}

static int answer_question(struct stream *stream, struct error *err) {
    char name[VM_NAME_MAX + 1];
    int result = settle(stream, name, err);
    if (result < 0)
        return result;
    result = stream_send_json(stream, STREAM_ANSWER, json_pack("{s:b}", "runs", result), err);
    return result < 0 ? result : 1;
}

/* ---- A connection that comes again, after the switch ---- */

/* What one side says the other hears, until one of them ends it. */
static void relay(struct stream *one, struct stream *other) {
    struct stream *const streams[] = {one, other};
    struct pollfd polls[] = {{tunnel_fd(one->tunnel), POLLIN, 0},
                             {tunnel_fd(other->tunnel), POLLIN, 0}};
    int result = 0;
    while (result == 0) {
        bool idle = !tunnel_wait(one->tunnel, 0) && !tunnel_wait(other->tunnel, 0);
        if (idle && poll(polls, 2, TUNNEL_SILENCE_SECONDS * 1000) <= 0)
            return;
        for (size_t i = 0; i < ARRAY_SIZE(streams) && result == 0; i++) {
            struct stream *from = streams[i], *to = streams[!i];
            enum stream_type type = STREAM_TYPES;
            if (!tunnel_wait(from->tunnel, 0))
                continue;
            result = stream_receive(from, &type, NULL);
            if (result == 0)
                result = stream_send(to, type, from->body, from->length, NULL);
        }
    }
}

static int answer_end(struct stream *stream, bool runs, bool ended, struct error *err) {
    return stream_send_json(stream, STREAM_ANSWER,
                            json_pack("{s:b, s:b}", "runs", runs, "ended", ended), err);
}

/* To the monitor of the VM, which wants the rest of its memory. */
static int pass_on(struct stream *stream, const char *name, struct error *err) {
    struct stream there = {0};
    struct tunnel *tunnel = NULL;
    char path[PATH_MAX];
    int fd, result = vm_store_path(name, ".", path, err);
    if (result < 0)
        return result;
    result = arrival_connect(path, &fd, err);
    if (result == -ENOENT || result == -ECONNREFUSED)
        return answer_end(stream, true, result == -ECONNREFUSED, err);
    if (result == 0)
        result = tunnel_adopt(fd, &tunnel, err);
    if (result == 0)
        result = stream_create(tunnel, &there, err);
    if (result < 0)
        return result;
    relay(stream, &there);
    stream_close(&there);
    return 0;
}

static int answer_resume(struct stream *stream, struct error *err) {
    char name[VM_NAME_MAX + 1];
    int result = settle(stream, name, err);
    if (result == 0)
        result = answer_end(stream, false, true, err);
    else if (result > 0)
        result = pass_on(stream, name, err);
    return result < 0 ? result : 1;
}

/* Into its directory; without the image, which may be here. */
static uint64_t bytes_to_come(const struct migration_target *target) {
    return disk_copies_bytes(target->copies) +
           migration_snapshots_bytes(json_object_get(target->hello, "snapshots"));
}

/* 1: a question, or one that comes again. */
static int hear_offer(struct migration_target *target, enum cpu_baseline most, struct error *err) {
    enum stream_type type;
    int result = stream_receive_preamble(&target->stream, err);
    if (result == 0)
        result = stream_receive(&target->stream, &type, err);
    if (result == 0 && type == STREAM_QUERY)
        return answer_question(&target->stream, err);
    if (result == 0 && type == STREAM_RESUME)
        return answer_resume(&target->stream, err);
    if (result == 0 && type != STREAM_HELLO)
        result = strange(err);
    if (result == 0)
        result = stream_json(&target->stream, &target->hello, err);
    if (result == 0)
        result = read_offer(target, err);
    if (result == 0)
        result = check_processor(target->hello, most, err);
    if (result == 0)
        result = disk_copies_create(target->offer.name, json_object_get(target->hello, "disks"),
                                    target->offer.options, &target->copies, err);
    if (result == 0)
        result = vm_store_expect(target->offer.name, target->offer.options, target->id,
                                 &target->directory, err);
    target->has_directory = result == 0;
    if (result == 0)
        result = moved_files_check_room(target->directory.path, bytes_to_come(target), err);
    if (result == 0)
        disk_copies_place(target->copies, target->directory.path);
    return result;
}

int migration_accept(struct tunnel *tunnel, enum cpu_baseline most,
                     struct migration_target **target, struct error *err) {
    struct error why = {0};
    struct migration_target *made = calloc(1, sizeof *made);
    if (made == NULL) {
        tunnel_close(tunnel);
        return error_set(err, -ENOMEM, "out of memory");
    }
    int result = stream_create(tunnel, &made->stream, &why);
    if (result == 0)
        result = page_unpacker_create(&made->unpacker, &why);
    if (result == 0)
        result = hear_offer(made, most, &why);
    if (result < 0 && made->stream.tunnel != NULL)
        send_refusal(&made->stream, why.text);
    if (result == 0)
        *target = made;
    else
        migration_target_free(made);
    return result < 0 ? error_set(err, result, "%s", why.text) : result;
}

const struct migration_offer *migration_offer(const struct migration_target *target) {
    return &target->offer;
}

int migration_fetch_files(struct migration_target *target, struct error *err) {
    const json_t *image = json_object_get(target->hello, "image");
    const json_t *snapshots = json_object_get(target->hello, "snapshots");
    const char *directory = target->directory.path;
    int result = 0;
    if (json_object_get(target->offer.options, "image") != NULL)
        result =
            migration_image_receive(image, bytes_to_come(target), &target->stream, directory, err);
    return result == 0 && snapshots != NULL
               ? migration_snapshots_receive(snapshots, target->copies, &target->stream, directory,
                                             err)
               : result;
}

void migration_apply_disks(const struct migration_target *target, struct machine_config *config) {
    disk_copies_apply(target->copies, config);
}

bool migration_copies_disk(const struct migration_target *target, unsigned disk) {
    return disk_copies_has(target->copies, disk);
}

const char *migration_directory(const struct migration_target *target) {
    return target->directory.path;
}

const struct machine_incoming *migration_incoming(const struct migration_target *target) {
    return &target->incoming;
}

/* ---- Memory ---- */

static uint8_t *find_page(const struct machine *machine, uint64_t gpa) {
    struct memory_ram region;
    for (unsigned i = 0; memory_ram_region(machine->platform.memory, i, &region); i++)
        if (gpa - region.gpa < region.size)
            return region.host + (gpa - region.gpa);
    return NULL;
}

/* No vCPU has run and no device has looked. */
static bool take_page(void *context, uint64_t gpa, enum page_kind kind, const uint8_t *bytes) {
    uint8_t *page = find_page(context, gpa);
    if (page == NULL)
        return false;
    switch (kind) {
    case PAGE_RAW: memcpy(page, bytes, PAGE_SIZE); break;
    case PAGE_DELTA:
        for (size_t i = 0; i < PAGE_SIZE; i++)
            page[i] ^= bytes[i];
        break;
    default:
        if (!bytes_are_zero(page, PAGE_SIZE)) /* what was never touched stays so */
            memset(page, 0, PAGE_SIZE);
    }
    return true;
}

static int take_state(struct migration_target *target, struct error *err) {
    const struct stream *stream = &target->stream;
    if (target->state.length + stream->length > MACHINE_STATE_MAX)
        return error_set(err, -EPROTO, "the VM's state is longer than it may be");
    int result = state_buffer_append(&target->state, stream->body, stream->length);
    return result < 0 ? error_set_errno(err, result, "the VM's state") : 0;
}

static int end_round(struct migration_target *target, struct error *err) {
    int result = disk_copies_flush(target->copies, err);
    return result == 0 ? stream_send(&target->stream, STREAM_ROUND_DONE, NULL, 0, err) : result;
}

/* Takes frames in until one that is neither memory, state nor the end of a round. */
static int take_frames(struct migration_target *target, enum stream_type *type, struct error *err) {
    struct stream *stream = &target->stream;
    for (;;) {
        int result = stream_receive(stream, type, err);
        if (result < 0)
            return result;
        if (*type == STREAM_PAGES)
            result = page_unpack(target->unpacker, stream->body, stream->length, take_page,
                                 target->machine, err);
        else if (*type == STREAM_DISK)
            result = disk_copies_take(target->copies, stream, err);
        else if (*type == STREAM_LAYER)
            result = disk_copies_layer(target->copies, stream, err);
        else if (*type == STREAM_STATE)
            result = take_state(target, err);
        else if (*type == STREAM_MISSING && target->arrival != NULL)
            result = arrival_hear(target->arrival, stream->body, stream->length, err);
        else if (*type == STREAM_ROUND && !target->loaded)
            result = end_round(target, err);
        else
            return 0;
        if (result < 0)
            return result;
    }
}

int migration_receive(struct migration_target *target, struct machine *machine, struct error *err) {
    enum stream_type type;
    target->machine = machine;
    int result = check_firmware(target, err);
    if (result == 0)
        result = disk_copies_begin(target->copies, err);
    if (result == 0)
        result = stream_send_json(
            &target->stream, STREAM_WELCOME,
            json_pack("{s:s, s:b}", "lodge", LODGE_VERSION, "post-copy",
                      memory_missing_check(machine->platform.memory, false, NULL) == 0),
            err);
    if (result == 0)
        result = take_frames(target, &type, err);
    if (result == 0 && type != STREAM_HANDOVER)
        result = strange(err);
    return result == 0 ? disk_copies_end(target->copies, err) : result;
}

/* ---- The rest ---- */

/* The disks are there before what the devices were doing with them is. */
static int load(struct migration_target *target, struct error *err) {
    struct machine *machine = target->machine;
    uint64_t begun = host_clock_ns();
    json_t *handover;
    int result = stream_json(&target->stream, &handover, err);
    if (result < 0)
        return result;
    json_int_t stood = json_integer_value(json_object_get(handover, "stood-ns"));
    bool paused = json_is_true(json_object_get(handover, "paused"));
    bool post_copy = json_is_true(json_object_get(handover, "post-copy"));
    json_decref(handover);
    if (post_copy)
        result =
            arrival_create(machine->platform.memory, machine->config.loop, &target->arrival, err);
    if (result == 0)
        result = machine_take_disks(machine, err);
    if (result == 0)
        result = machine_load_state(machine, target->state.data, target->state.length, err);
    if (result == 0)
        result = machine_new_identity(machine, IDENTITY_MOVED, err);
    if (result < 0)
        return result;
    target->loaded = true;
    if (paused)
        machine_begin_paused(machine);
    else if (stood > 0 && (uint64_t)stood < 3600 * NS_PER_SECOND)
        vm_clock_lose(machine_clock(machine), (uint64_t)stood + (host_clock_ns() - begun));
    return 0;
}

/* Until GO a broken connection means that the VM has stayed where it was. */
int migration_take_over(struct migration_target *target, struct machine *machine,
                        struct error *err) {
    struct stream *stream = &target->stream;
    enum stream_type type;
    int result = load(target, err);
    if (result == 0)
        result = take_frames(target, &type, err);
    if (result == 0 && type != STREAM_ROUND)
        result = strange(err);
    if (result == 0 && target->arrival != NULL)
        result = arrival_prepare(target->arrival, target->directory.path, err);
    if (result == 0)
        result = stream_send(stream, STREAM_READY, NULL, 0, err);
    if (result == 0)
        result = stream_expect(stream, STREAM_GO, err);
    if (result == 0)
        result = vm_store_arrive(target->offer.name, &target->directory, err);
    target->arrived = result == 0;
    if (result == 0)
        disk_copies_place(target->copies, target->directory.path);
    if (result == 0 && target->arrival != NULL) {
        arrival_start(target->arrival, stream, target->unpacker);
        target->unpacker = NULL;
    }
    machine->started_ns = vm_clock_ns(machine_clock(machine));
    return result;
}

void migration_runs(struct migration_target *target) {
    if (target->machine->network != NULL)
        virtio_net_announce(target->machine->network);
    if (target->arrival != NULL) {
        arrival_runs(target->arrival);
        return;
    }
    vm_store_sync();
    stream_send(&target->stream, STREAM_RUNNING, NULL, 0, NULL);
    /* If that does not arrive the source asks; vm_store_settle knows. */
    stream_close(&target->stream);
}

bool migration_is_arriving(const struct migration_target *target, uint64_t *left, char *why,
                           size_t size) {
    struct arrival_report report = {.whole = true};
    if (target != NULL && target->arrival != NULL)
        arrival_report(target->arrival, &report);
    *left = report.left;
    snprintf(why, size, "%s", report.why);
    return !report.whole;
}

void migration_stop(struct migration_target *target) {
    if (target != NULL)
        arrival_stop(target->arrival);
}

void migration_target_free(struct migration_target *target) {
    if (target == NULL)
        return;
    arrival_destroy(target->arrival);
    if (target->arrived)
        vm_store_unlock(&target->directory);
    else if (target->has_directory)
        vm_store_turn_away(&target->directory);
    disk_copies_destroy(target->copies);
    page_unpacker_destroy(target->unpacker);
    state_buffer_free(&target->state);
    json_decref(target->hello);
    stream_close(&target->stream);
    free(target);
}
