/*
 * The side that a VM leaves: the thread of a move. It talks to the other side
 * and reads memory while the guest writes it; what is the loop's to do
 * (freezing, saving, thawing) it has the loop do and waits. docs/migration.md
 * has the order and the rules.
 */
#include "machine/migration_source.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/thread.h"
#include "base/uuid.h"
#include "device/identity.h"
#include "image/file.h"
#include "machine/machine_state.h"
#include "machine/migration.h"
#include "machine/migration_image.h"
#include "machine/migration_snapshots.h"
#include "machine/private.h"

enum { FREEZE_TRIES = 200, TURN_MS = 10 };
/* A third of the down-time is for the last pages; the rest is for what no estimate knows: disks
 * that are flushed, closed and opened, the state, and how late a busy host is. */
enum { MEMORY_SHARE = 3 };
/* How long the other side is asked for what has become of a VM, and our own disks are waited for.
 */
enum { SETTLE_SECONDS = 20, DISKS_SECONDS = 10, PROGRESS_MS = 100 };
/* Rounds that get nowhere slow the guest down, a step at a time. */
enum { THROTTLE_FIRST = 20, THROTTLE_STEP = 15, THROTTLE_MAX = 95 };

static const char *const stage_names[] = {"connecting", "copying", "switching",   "asking",
                                          "post-copy",  "moved",   "interrupted", "failed",
                                          "doubtful",   "lost"};

/* ---- The loop does what is its to do ---- */

static void answer(struct move *move, int result) {
    pthread_mutex_lock(&move->lock);
    move->answer = result;
    move->went = true;
    pthread_cond_broadcast(&move->changed);
    pthread_mutex_unlock(&move->lock);
}

/* Posts and waits for the answer. -ECANCELED: the VM ends instead. */
static int have_done(struct move *move, loop_handler *what) {
    move->went = false;
    int result = loop_post(move->migration->config.machine->config.loop, what, move);
    if (result < 0)
        return error_set_errno(&move->err, result, "the loop");
    pthread_mutex_lock(&move->lock);
    while (!move->went && !move->ending)
        pthread_cond_wait(&move->changed, &move->lock);
    result = move->went ? move->answer : -ECANCELED;
    pthread_mutex_unlock(&move->lock);
    return result == -ECANCELED ? error_set(&move->err, result, "the VM has ended") : result;
}

static void on_settled(void *context) {
    struct move *move = context;
    struct machine *machine = move->migration->config.machine;
    if (machine_is_disturbed(machine))
        answer(move, error_set(&move->err, -EIO,
                               "the VM is ending, or one of its disks has no space left"));
    else
        answer(move, machine_save_state(machine, &move->state, &move->err));
}

static void freeze(void *context) {
    struct move *move = context;
    int result = machine_freeze(move->migration->config.machine, on_settled, move, &move->err);
    move->frozen = result == 0;
    if (result == 0)
        move->frozen_ns = host_clock_ns();
    else
        answer(move, result);
}

static void thaw(void *context) {
    struct move *move = context;
    machine_thaw(move->migration->config.machine);
    move->frozen = false;
    answer(move, 0);
}

static void set_throttle(void *context) {
    struct move *move = context;
    answer(move, machine_set_throttle(move->migration->config.machine, move->throttle, &move->err));
}

void move_rest(unsigned ms) {
    struct timespec time = {.tv_nsec = (long)ms * 1000000};
    nanosleep(&time, NULL);
}

/* A guest that is just being reset, say, is through with that soon. */
static int freeze_now(struct move *move) {
    int result = -EBUSY;
    for (int i = 0; i < FREEZE_TRIES && result == -EBUSY; i++) {
        result = have_done(move, freeze);
        if (result == -EBUSY)
            move_rest(TURN_MS);
    }
    return result;
}

/* ---- Progress ---- */

json_t *move_describe(const struct move *move) {
    return json_pack("{s:s, s:s, s:i, s:I, s:I, s:f, s:i, s:f, s:b}", "stage",
                     stage_names[atomic_load(&move->stage)], "to", move->to, "round",
                     (int)atomic_load(&move->round), "sent", (json_int_t)atomic_load(&move->sent),
                     "left", (json_int_t)atomic_load(&move->left), "left-seconds",
                     (double)atomic_load(&move->left_ns) / (double)NS_PER_SECOND, "throttle",
                     (int)move->throttle, "stood-seconds",
                     (double)atomic_load(&move->stood_ns) / (double)NS_PER_SECOND, "post-copy",
                     move->post_copy);
}

static void tell_progress(void *context) {
    struct vm_migration *migration = context;
    struct move *move = migration->move;
    if (move == NULL)
        return;
    atomic_store(&move->posted, false);
    migration->config.tell(migration->config.context, "MIGRATION_PROGRESS", move_describe(move));
}

/* Of memory and disks. */
static uint64_t left_to_send(const struct move *move) {
    return memory_sender_left(move->sender) + disk_sender_left(move->disks);
}

/* Pages a second: the last round's, or what there has been of the first. */
static double present_rate(const struct move *move, uint64_t now) {
    return move->rate > 0 ? move->rate
                          : (double)(move->stream.bytes >> PAGE_SHIFT) * (double)NS_PER_SECOND /
                                (double)(now - move->begun_ns + 1);
}

/* left: of the image, as long as there is no memory sender. */
void move_progress(struct move *move, uint64_t left) {
    uint64_t now = host_clock_ns();
    double rate = present_rate(move, now);
    if (move->sender != NULL)
        left = left_to_send(move);
    atomic_store(&move->sent, move->stream.bytes);
    atomic_store(&move->left, left);
    atomic_store(&move->left_ns,
                 rate > 0 ? (uint64_t)((double)(left >> PAGE_SHIFT) / rate * (double)NS_PER_SECOND)
                          : 0);
    if (now - move->told_ns > PROGRESS_MS * UINT64_C(1000000) &&
        !atomic_exchange(&move->posted, true)) {
        move->told_ns = now;
        loop_post(move->migration->config.machine->config.loop, tell_progress, move->migration);
    }
}

static bool progress(void *context, uint64_t left) {
    move_progress(context, left);
    return true;
}

void move_enter(struct move *move, enum stage stage) {
    atomic_store(&move->stage, stage);
    move->told_ns = 0;
    move_progress(move, atomic_load(&move->left));
}

/* ---- Connecting ---- */

/* Whom to cancel; false: that has happened. */
static bool show_tunnel(struct move *move, struct tunnel *tunnel) {
    pthread_mutex_lock(&move->lock);
    bool go_on = !move->cancelled && !move->ending;
    move->tunnel = go_on ? tunnel : NULL;
    pthread_mutex_unlock(&move->lock);
    return go_on;
}

int move_connect(struct move *move, struct stream *stream, struct error *err) {
    const struct tunnel_keys keys = {move->keys[0], move->keys[1], move->keys[2]};
    struct tunnel *tunnel;
    int result = tunnel_connect(move->to, &keys, &tunnel, err);
    if (result == 0)
        result = stream_create(tunnel, stream, err);
    if (result == 0)
        result = stream_send_preamble(stream, err);
    return result;
}

static json_t *load_options(const struct move *move, struct error *err) {
    char path[PATH_MAX];
    json_t *config = path_join(path, move->migration->config.directory, "config.json", err) == 0
                         ? json_load_file(path, JSON_REJECT_DUPLICATES, NULL)
                         : NULL;
    json_t *options = json_incref(json_object_get(config, "options"));
    json_decref(config);
    if (options == NULL)
        error_set(err, -EIO, "cannot read the VM's options from %s", path);
    return options;
}

static int hear_welcome(struct move *move) {
    json_t *welcome;
    int result = stream_json(&move->stream, &welcome, &move->err);
    if (result < 0)
        return result;
    bool able = json_is_true(json_object_get(welcome, "post-copy"));
    json_decref(welcome);
    if (!able && move->when == POST_COPY_ALWAYS)
        return error_set(&move->err, -ENOTSUP,
                         "%s cannot have a VM's memory come later: --post-copy never", move->to);
    if (!able)
        move->when = POST_COPY_NEVER;
    return 0;
}

static int look_at_disks(struct move *move) {
    const struct disk_sender_config config = {.machine = move->migration->config.machine,
                                              .directory = move->migration->config.directory,
                                              .all = move->copy_disks,
                                              .compress = move->compress};
    return disk_sender_create(&config, &move->disks, &move->err);
}

static json_t *describe_processor(const struct machine *machine) {
    uint32_t shown = cpu_baseline_shown(machine->config.cpu);
    json_t *names = json_array();
    for (unsigned i = 0; cpu_feature_name(i) != NULL; i++)
        if ((shown >> i & 1) != 0)
            json_array_append_new(names, json_string(cpu_feature_name(i)));
    return names;
}

/* Which one it was found to want: there its disks cannot be looked at. */
static void say_firmware(const struct machine *machine, json_t *options) {
    const char *said = json_string_value(json_object_get(options, "firmware"));
    enum firmware_kind kind = machine->config.firmware;
    if ((said == NULL || strcmp(said, "auto") == 0) &&
        (kind == FIRMWARE_OVMF || kind == FIRMWARE_SEABIOS))
        json_object_set_new(options, "firmware",
                            json_string(kind == FIRMWARE_OVMF ? "ovmf" : "seabios"));
}

static json_t *describe_firmware(const struct machine *machine) {
    uint32_t sum;
    if (machine->firmware == NULL)
        return NULL;
    uint64_t bytes = firmware_sum(machine->firmware, &sum);
    return json_pack("{s:I, s:I}", "bytes", (json_int_t)bytes, "sum", (json_int_t)sum);
}

static json_t *describe_generation(const struct machine *machine) {
    struct identity now;
    char text[UUID_TEXT];
    identity_get(machine->identity, &now);
    uuid_format(now.generation, text);
    return json_string(text);
}

static json_t *make_hello(const struct move *move, json_t *options) {
    const struct machine *machine = move->migration->config.machine;
    say_firmware(machine, options);
    return json_pack("{s:s, s:s, s:s, s:O, s:i, s:o, s:o*, s:o, s:o}", "lodge", LODGE_VERSION,
                     "name", move->migration->config.name, "id", move->id, "options", options,
                     "vcpus", (int)machine->config.vcpus, "features", describe_processor(machine),
                     "firmware", describe_firmware(machine), "disks",
                     disk_sender_describe(move->disks), "generation-id",
                     describe_generation(machine));
}

/* What goes along beside memory and disks: "image" and "snapshots" of HELLO. */
static int add_files(const struct move *move, json_t *hello, struct error *err) {
    const char *directory = move->migration->config.directory;
    json_t *image = NULL, *snapshots = NULL;
    int result = json_object_get(json_object_get(hello, "options"), "image") != NULL
                     ? migration_image_describe(directory, &image, err)
                     : 0;
    if (result == 0)
        result = migration_snapshots_describe(directory, &snapshots, err);
    if (image != NULL)
        json_object_set_new(hello, "image", image);
    if (snapshots != NULL)
        json_object_set_new(hello, "snapshots", snapshots);
    return result;
}

static int send_files(struct move *move, const json_t *hello) {
    const char *directory = move->migration->config.directory;
    const json_t *snapshots = json_object_get(hello, "snapshots");
    int result = 0;
    if (json_object_get(hello, "image") != NULL)
        result = migration_image_send(directory, &move->stream, move->compress, progress, move,
                                      &move->err);
    return result == 0 && snapshots != NULL
               ? migration_snapshots_send(directory, snapshots, &move->stream, move->compress,
                                          progress, move, &move->err)
               : result;
}

static int introduce(struct move *move, json_t *options) {
    int result = look_at_disks(move);
    if (result < 0)
        return result;
    json_t *hello = make_hello(move, options);
    result = add_files(move, hello, &move->err);
    if (result == 0)
        result = stream_send_json(&move->stream, STREAM_HELLO, json_incref(hello), &move->err);
    if (result == 0)
        result = send_files(move, hello);
    json_decref(hello);
    return result;
}

static int say_hello(struct move *move) {
    json_t *options = load_options(move, &move->err);
    if (options == NULL)
        return -EIO;
    int result = introduce(move, options);
    json_decref(options);
    if (result == 0)
        result = stream_expect(&move->stream, STREAM_WELCOME, &move->err);
    return result == 0 ? hear_welcome(move) : result;
}

/* ---- Copying while the guest runs ---- */

/* Pages that took the way some time: those of zeros, the most of a first round, do not, and what
 * the guest writes is seldom zeros. */
static uint64_t pages_with_contents(const struct move *move) {
    struct page_counts counts;
    memory_sender_count(move->sender, &counts);
    return counts.pages - counts.zeros - counts.unchanged +
           (disk_sender_sent(move->disks) >> PAGE_SHIFT);
}

static int send_left(struct move *move) {
    int result = memory_sender_send(move->sender, progress, move, &move->err);
    return result == 0 ? disk_sender_send(move->disks, &move->stream, progress, move, &move->err)
                       : result;
}

/* What was written meanwhile is to be sent, too. */
static void look(struct move *move) {
    memory_sender_look(move->sender);
    disk_sender_look(move->disks);
}

static int send_round(struct move *move) {
    uint64_t begun = host_clock_ns(), before = pages_with_contents(move);
    int result = send_left(move);
    if (result == 0)
        result = stream_send(&move->stream, STREAM_ROUND, NULL, 0, &move->err);
    if (result == 0)
        result = stream_expect(&move->stream, STREAM_ROUND_DONE, &move->err);
    uint64_t pages = pages_with_contents(move) - before, took_ns = host_clock_ns() - begun;
    if (result == 0 && (pages > 0 || move->rate == 0))
        move->rate = (double)(pages + 1) * (double)NS_PER_SECOND / (double)(took_ns + 1);
    atomic_fetch_add(&move->round, 1);
    return result;
}

static uint64_t estimate_ns(const struct move *move) {
    double pages = (double)(left_to_send(move) >> PAGE_SHIFT);
    return (uint64_t)(pages / move->rate * (double)NS_PER_SECOND);
}

static int slow_down(struct move *move, unsigned percent) {
    move->throttle = percent;
    return have_done(move, set_throttle);
}

/* Disks do not come after the VM: what is left of them takes no longer than the guest may stand. */
static bool disks_fit(const struct move *move) {
    double pages = (double)(disk_sender_left(move->disks) >> PAGE_SHIFT);
    return pages / move->rate * (double)NS_PER_SECOND <= (double)move->down_ns / MEMORY_SHARE;
}

/* Rounds get nowhere: the guest is slowed down, or the rest comes after it. */
static int press_on(struct move *move) {
    if (move->when == POST_COPY_AUTO && disks_fit(move))
        move->post_copy = true;
    else
        return slow_down(move, move->throttle == 0 ? THROTTLE_FIRST
                               : move->throttle + THROTTLE_STEP < THROTTLE_MAX
                                   ? move->throttle + THROTTLE_STEP
                                   : THROTTLE_MAX);
    return 0;
}

/* Disks first: they take the longest, and are written to more slowly than memory. */
static int begin_copy(struct move *move) {
    int result = disk_sender_left(move->disks) > 0 ? send_round(move) : 0;
    disk_sender_look(move->disks);
    return result == 0 ? memory_sender_begin(move->sender, &move->err) : result;
}

/* Until what is left takes no longer than the guest may stand, or is to come after it. */
static int copy(struct move *move) {
    uint64_t before = UINT64_MAX;
    unsigned in_vain = 0;
    int result = begin_copy(move);
    while (result == 0 && !move->post_copy) {
        result = send_round(move);
        look(move);
        move->post_copy = move->when == POST_COPY_ALWAYS && disks_fit(move);
        uint64_t left = left_to_send(move);
        progress(move, left);
        if (result < 0 || estimate_ns(move) <= move->down_ns / MEMORY_SHARE)
            break;
        in_vain = left > before / 4 * 3 ? in_vain + 1 : 0;
        before = left;
        if (in_vain < 2 || move->throttle >= THROTTLE_MAX)
            continue;
        in_vain = 0;
        result = press_on(move);
    }
    return result;
}

/* ---- Handing over ---- */

static int send_state(struct move *move) {
    int result = 0;
    for (size_t at = 0; at < move->state.length && result == 0; at += MIGRATION_STATE_PIECE) {
        size_t left = move->state.length - at;
        result =
            stream_send(&move->stream, STREAM_STATE, move->state.data + at,
                        left < MIGRATION_STATE_PIECE ? left : MIGRATION_STATE_PIECE, &move->err);
    }
    return result;
}

/* No longer to be cancelled; false: it has been. */
static bool commit(struct move *move) {
    pthread_mutex_lock(&move->lock);
    move->committed = !move->cancelled && !move->ending;
    pthread_mutex_unlock(&move->lock);
    return move->committed;
}

static int release(struct move *move) {
    move->released = true;
    return machine_release_disks(move->migration->config.machine, &move->err);
}

/* What waits for the host's disks, and can be done before, while the guest does not stand for it.
 */
static int prepare(struct move *move) {
    struct vm_migration_config *config = &move->migration->config;
    machine_flush_disks(config->machine);
    move->marked = true;
    int result = vm_store_mark_left(config->directory, move->to, move->id, &move->err);
    machine_flush_disks(config->machine); /* what was written meanwhile; that is less */
    return result;
}

static int hand_over(struct move *move) {
    struct vm_migration_config *config = &move->migration->config;
    int result = prepare(move);
    if (result == 0)
        result = freeze_now(move);
    if (result < 0)
        return result;
    look(move); /* the vCPUs' state has been asked for: nothing is missing */
    result = move->post_copy
                 ? disk_sender_send(move->disks, &move->stream, progress, move, &move->err)
                 : send_left(move);
    if (result == 0)
        result = send_state(move);
    if (result == 0)
        result = release(move);
    if (result == 0)
        result = stream_send_json(&move->stream, STREAM_HANDOVER,
                                  json_pack("{s:I, s:b, s:b}", "stood-ns",
                                            (json_int_t)(host_clock_ns() - move->frozen_ns),
                                            "paused", machine_is_paused(config->machine),
                                            "post-copy", move->post_copy),
                                  &move->err);
    if (result == 0)
        result = move->post_copy ? memory_sender_leave(move->sender, &move->err)
                                 : memory_sender_send_plugged(move->sender, &move->err);
    if (result == 0)
        result = stream_send(&move->stream, STREAM_ROUND, NULL, 0, &move->err);
    return result == 0 ? stream_expect(&move->stream, STREAM_READY, &move->err) : result;
}

/* 1: it runs there, 0: it does not and never will, -errno: nobody can tell. */
static int ask_once(struct move *move, struct error *err) {
    struct stream stream = {0};
    json_t *reply;
    int result = move_connect(move, &stream, err);
    if (result == 0)
        result = stream_send_json(
            &stream, STREAM_QUERY,
            json_pack("{s:s, s:s}", "name", move->migration->config.name, "id", move->id), err);
    if (result == 0)
        result = stream_expect(&stream, STREAM_ANSWER, err);
    if (result == 0)
        result = stream_json(&stream, &reply, err);
    if (result == 0) {
        result = json_is_true(json_object_get(reply, "runs"));
        json_decref(reply);
    }
    stream_close(&stream);
    return result;
}

bool move_is_ending(struct move *move) {
    pthread_mutex_lock(&move->lock);
    bool ending = move->ending;
    pthread_mutex_unlock(&move->lock);
    return ending;
}

/* Of one that has been handed over, when nobody answers. */
static int say_doubt(struct move *move, const struct error *why) {
    return error_set(&move->err, -ECONNRESET,
                     "the connection broke just as the VM was handed over, and %.60s does not say "
                     "whether it runs there (%.100s); it is held here: 'lodge resume' asks again, "
                     "and 'lodge resume --force' lets it go on here, if you know that it does not "
                     "run there",
                     move->to, why->text);
}

static int ask(struct move *move) {
    uint64_t end = host_clock_ns() + SETTLE_SECONDS * NS_PER_SECOND;
    struct error why = {0};
    int result;
    move_enter(move, ASKING);
    while ((result = ask_once(move, &why)) < 0 && host_clock_ns() < end && !move_is_ending(move))
        move_rest(TURN_MS);
    if (result >= 0)
        return result;
    return say_doubt(move, &why);
}

/* After GO: the target's word, or what it says when it is asked. As ask_once. */
static int let_go(struct move *move) {
    struct error ignored;
    int result = stream_send(&move->stream, STREAM_GO, NULL, 0, &ignored);
    if (result == 0)
        result = stream_expect(&move->stream, STREAM_RUNNING, &move->err);
    if (result == 0)
        return 1;
    bool refused = result == -EREMOTEIO; /* what it says; its store decides */
    struct error words = move->err;
    result = ask(move);
    if (result == 1)
        stream_close(&move->stream);
    if (result == 0 && refused)
        move->err = words;
    else if (result == 0)
        error_set(&move->err, -ECONNRESET, "the target ended before the VM ran there");
    return result;
}

/* ---- Taking it back ---- */

/* The target may still be about to close them. */
static int take_disks(struct move *move, struct error *err) {
    uint64_t end = host_clock_ns() + DISKS_SECONDS * NS_PER_SECOND;
    int result;
    while ((result = machine_take_disks(move->migration->config.machine, err)) == -EBUSY &&
           host_clock_ns() < end && !move_is_ending(move))
        move_rest(TURN_MS);
    return result;
}

/* 0: it goes on here. */
static int take_back(struct move *move) {
    struct error why = {0};
    int result = move->released ? take_disks(move, &why) : 0;
    if (result == 0 && move->marked)
        result = vm_store_unmark_left(move->migration->config.directory, &why);
    if (result < 0) {
        char first[ERROR_TEXT_MAX];
        snprintf(first, sizeof first, "%s", move->err.text);
        error_set(&move->err, result,
                  "%.150s; it is held here, since its disks are not to be had again: %.150s; "
                  "'lodge resume' tries again",
                  first, why.text);
        return result;
    }
    move->released = move->marked = false;
    if (move->frozen && have_done(move, thaw) < 0)
        return 0; /* the VM ends */
    if (move->throttle > 0)
        slow_down(move, 0);
    return 0;
}

/* ---- All of it ---- */

static int try_move(struct move *move) {
    int result = move_connect(move, &move->stream, &move->err);
    if (result == 0 && !show_tunnel(move, move->stream.tunnel))
        result = -ECANCELED;
    move->stream.limit = move->limit; /* image and snapshots go before memory */
    if (result == 0)
        result = say_hello(move);
    if (result < 0)
        return result;
    result = memory_sender_create(move->migration->config.machine->platform.memory, &move->stream,
                                  move->compress, &move->sender, &move->err);
    if (result == 0) {
        move_enter(move, COPYING);
        result = copy(move);
    }
    if (result == 0) {
        move_enter(move, SWITCHING);
        result = hand_over(move);
    }
    return result;
}

static bool was_cancelled(struct move *move) {
    pthread_mutex_lock(&move->lock);
    bool cancelled = move->cancelled;
    pthread_mutex_unlock(&move->lock);
    return cancelled;
}

static void note_stood(struct move *move) {
    if (move->frozen_ns != 0)
        atomic_store(&move->stood_ns, host_clock_ns() - move->frozen_ns);
}

/* Handed over; what has become of it. */
static enum stage settle(struct move *move) {
    int runs = let_go(move);
    move->result = runs == 1 ? 0 : -ECONNRESET;
    if (runs != 1)
        return runs == 0 ? FAILED : DOUBTFUL;
    note_stood(move);
    return move->post_copy ? move_push(move, move->stream.tunnel == NULL) : MOVED;
}

static void end(struct move *move, enum stage stage) {
    atomic_store(&move->sent, move->stream.bytes != 0 ? move->stream.bytes : move->sent);
    atomic_store(&move->stage, stage);
    loop_post(move->migration->config.machine->config.loop, move->done, move->migration);
}

void *move_run(void *context) {
    struct move *move = context;
    thread_begins(THREAD_OTHER, "migration");
    thread_computes(); /* it packs */
    move->result = try_move(move);
    enum stage stage = FAILED;
    if (move->result == 0 && !commit(move))
        move->result = -ECANCELED;
    if (move->result == 0)
        stage = settle(move);
    if (stage == FAILED && was_cancelled(move))
        move->result = error_set(&move->err, -ECANCELED, "the move has been cancelled");
    show_tunnel(move, NULL);
    if (stage == FAILED) { /* the target gives up what it has when the connection ends */
        stream_close(&move->stream);
        if (take_back(move) < 0)
            stage = DOUBTFUL;
        note_stood(move);
    }
    end(move, stage);
    return NULL;
}

void *move_take_back(void *context) {
    struct move *move = context;
    struct error why = {0};
    thread_begins(THREAD_OTHER, "migration");
    enum stage stage = DOUBTFUL;
    int runs = ask_once(move, &why);
    if (runs == 1)
        stage = move->post_copy ? move_push(move, true) : MOVED;
    else if (runs < 0 && move->committed && !move->forced)
        move->result = say_doubt(move, &why);
    else if (take_back(move) == 0)
        stage = FAILED;
    end(move, stage);
    return NULL;
}

void *move_resume(void *context) {
    struct move *move = context;
    thread_begins(THREAD_OTHER, "migration");
    thread_computes(); /* it packs */
    end(move, move_push(move, true));
    return NULL;
}
