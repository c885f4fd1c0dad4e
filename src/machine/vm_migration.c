/*
 * The side that a VM leaves: the loop's part. It begins and ends moves and
 * answers for them; each has a thread of its own (migration_source.c).
 */
#include "machine/vm_migration.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "machine/clone.h"
#include "machine/migration.h"
#include "machine/migration_source.h"
#include "machine/private.h"
#include "machine/snapshot_store.h"
#include "machine/vm_snapshot.h"

enum { DOWN_MS = 300, DOWN_MS_MAX = 60000 };

/* ---- The loop: ends ---- */

static json_t *report(const struct move *move) {
    struct page_counts counts = {0};
    json_t *all = move_describe(move);
    if (move->sender != NULL)
        memory_sender_count(move->sender, &counts);
    json_object_set_new(
        all, "seconds",
        json_real((double)(host_clock_ns() - move->begun_ns) / (double)NS_PER_SECOND));
    json_object_set_new(all, "pages",
                        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "sent",
                                  (json_int_t)counts.pages, "zeros", (json_int_t)counts.zeros,
                                  "deltas", (json_int_t)counts.deltas, "unchanged",
                                  (json_int_t)counts.unchanged, "bytes", (json_int_t)counts.bytes,
                                  "packed", (json_int_t)counts.packed));
    if (move->disks != NULL)
        json_object_set_new(all, "disks",
                            json_pack("{s:I, s:o}", "bytes",
                                      (json_int_t)disk_sender_sent(move->disks), "left-behind",
                                      disk_sender_left_behind(move->disks)));
    return all;
}

/* Of a thread that has ended. */
static void clear(struct move *move) {
    stream_close(&move->stream);
    memory_sender_destroy(move->sender);
    move->sender = NULL;
    disk_sender_destroy(move->disks);
    move->disks = NULL;
    state_buffer_free(&move->state);
    if (move->snapshots >= 0)
        close(move->snapshots);
    move->snapshots = -1;
}

static void join(struct move *move) {
    if (move->started)
        pthread_join(move->thread, NULL);
    move->started = false;
}

static void finish(struct vm_migration *migration) {
    struct move *move = migration->move;
    enum stage stage = atomic_load(&move->stage);
    struct control_call *call = move->call;
    bool taking_back = move->taking_back;
    move->call = NULL;
    move->taking_back = false;
    if (taking_back && stage == MOVED)
        control_fail(call, "Moved", "it has moved, and runs there");
    else if (taking_back && stage == FAILED)
        control_return(call, NULL);
    else if (stage == MOVED)
        control_return(call, report(move));
    else
        control_fail(call,
                     stage == DOUBTFUL            ? "Doubtful"
                     : stage == INTERRUPTED       ? "Interrupted"
                     : stage == LOST              ? "Lost"
                     : move->result == -ECANCELED ? "Cancelled"
                     : move->err.code == -ENOTSUP ? "NotSupported"
                                                  : "GenericError",
                     move->err.text);
    if (stage != INTERRUPTED && stage != DOUBTFUL) /* these may be resumed */
        clear(move);
}

static int check_clones(const char *name, struct error *err) {
    return clone_check_users(name, NULL, err);
}

/* What is left of it here goes, unless clones have come to stand on it meanwhile; its lock is this
 * process's. */
static void forget(const struct vm_migration *migration) {
    struct vm_directory directory = {.lock = -1};
    struct error err = {0};
    snprintf(directory.path, sizeof directory.path, "%s", migration->config.directory);
    if (vm_store_remove(migration->config.name, &directory, check_clones, &err) < 0)
        log_warning("%s", err.text);
}

static void on_done(void *context) {
    struct vm_migration *migration = context;
    struct move *move = migration->move;
    enum stage stage = atomic_load(&move->stage);
    bool moved = stage == MOVED || stage == LOST;
    join(move);
    migration->config.tell(migration->config.context, "MIGRATION_PROGRESS", move_describe(move));
    if (stage == FAILED && move->taking_back)
        migration->config.tell(migration->config.context, "RESUME", NULL);
    if (moved)
        forget(migration);
    finish(migration);
    if (moved)
        migration->config.gone(migration->config.context);
}

/* ---- The loop: beginnings ---- */

static void free_move(struct move *move) {
    if (move == NULL)
        return;
    clear(move);
    for (size_t i = 0; i < ARRAY_SIZE(move->keys); i++)
        free(move->keys[i]);
    free(move->to);
    pthread_cond_destroy(&move->changed);
    pthread_mutex_destroy(&move->lock);
    free(move);
}

static void make_id(char id[MOVE_ID_MAX]) {
    uint8_t bytes[16] = {0};
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        store_le64(bytes, host_clock_ns());
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(id + 2 * i, MOVE_ID_MAX - 2 * i, "%02x", bytes[i]);
}

static int check_numbers(const json_t *arguments, struct move *move, struct error *err) {
    const json_t *limit = json_object_get(arguments, "bandwidth");
    const json_t *down = json_object_get(arguments, "down-time");
    json_int_t ms = down != NULL ? json_integer_value(down) : DOWN_MS;
    if (limit != NULL && json_integer_value(limit) < 64 << 10)
        return error_set(err, -EINVAL, "a bandwidth is 64 KiB a second or more");
    if (ms < 1 || ms > DOWN_MS_MAX)
        return error_set(err, -EINVAL, "a down-time is from 1 to %d milliseconds", DOWN_MS_MAX);
    move->limit = (uint64_t)json_integer_value(limit);
    move->down_ns = (uint64_t)ms * 1000000;
    return 0;
}

static int replace_text(char **text, const char *with, struct error *err) {
    char *copy = with != NULL ? strdup(with) : NULL;
    if (with == NULL)
        return 0;
    if (copy == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    free(*text);
    *text = copy;
    return 0;
}

/* What of it is given; the rest stays as it was. */
static int fill_address(const json_t *arguments, struct move *move, struct error *err) {
    static const char *const keys[] = {"ca", "cert", "key"};
    const char *to = json_string_value(json_object_get(arguments, "to"));
    if ((to == NULL && move->to == NULL) ||
        (to != NULL && (to[0] == 0 || strlen(to) >= TUNNEL_ADDRESS_MAX)))
        return error_set(err, -EINVAL, "where to? HOST[:PORT] or unix:PATH");
    int result = replace_text(&move->to, to, err);
    for (size_t i = 0; i < ARRAY_SIZE(keys) && result == 0; i++)
        result = replace_text(&move->keys[i],
                              json_string_value(json_object_get(arguments, keys[i])), err);
    return result;
}

static int fill_post_copy(const json_t *arguments, struct move *move, struct error *err) {
    static const char *const words[] = {
        [POST_COPY_AUTO] = "auto", [POST_COPY_ALWAYS] = "always", [POST_COPY_NEVER] = "never"};
    const char *word = json_string_value(json_object_get(arguments, "post-copy"));
    if (word == NULL)
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        if (strcmp(word, words[i]) == 0) {
            move->when = (enum post_copy)i;
            return 0;
        }
    return error_set(err, -EINVAL, "'post-copy' is auto, always or never");
}

static int fill(const json_t *arguments, struct move *move, struct error *err) {
    const json_t *compress = json_object_get(arguments, "compress");
    int result = check_numbers(arguments, move, err);
    if (result == 0)
        result = fill_address(arguments, move, err);
    if (result == 0)
        result = fill_post_copy(arguments, move, err);
    if (result < 0)
        return result;
    /* Without a limit a Unix socket is quicker than any compression. */
    move->compress = compress != NULL ? json_is_true(compress)
                                      : move->limit > 0 || strncmp(move->to, "unix:", 5) != 0;
    move->copy_disks = json_is_true(json_object_get(arguments, "copy-disks"));
    make_id(move->id);
    return 0;
}

static int make_move(struct vm_migration *migration, const json_t *arguments, struct move **move,
                     struct error *err) {
    struct move *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->migration = migration;
    made->done = on_done;
    made->begun_ns = host_clock_ns();
    made->snapshots = -1;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->changed, NULL);
    int result = fill(arguments, made, err);
    if (result < 0)
        free_move(made);
    else
        *move = made;
    return result;
}

/* Nobody makes or removes any from here on. The lock, or -1: there are none. */
static int lock_snapshots(const char *directory, int *lock, struct error *err) {
    json_t *snapshots = NULL;
    int result = snapshot_list(directory, &snapshots, err);
    bool any = json_array_size(snapshots) > 0;
    json_decref(snapshots);
    if (result == 0 && any)
        result = *lock = snapshot_lock(directory, err);
    return result < 0 ? result : 0;
}

static int begin(struct vm_migration *migration, const struct agent *agent, const json_t *arguments,
                 struct move **move, struct error *err) {
    int result = vm_check_saveable(migration->config.machine, agent, err);
    if (result == 0 && strcmp(engine_name(migration->config.machine->engine), "soft") != 0)
        result = error_set(err, -ENOTSUP,
                           "this VM cannot be moved: its engine is KVM; use --engine soft");
    if (result == 0)
        result = check_clones(migration->config.name, err);
    if (result == 0)
        result = make_move(migration, arguments, move, err);
    if (result < 0)
        return result;
    result = lock_snapshots(migration->config.directory, &(*move)->snapshots, err);
    if (result < 0)
        free_move(*move);
    return result;
}

/* The thread of a move that is begun, or goes on. */
static void run(struct vm_migration *migration, struct control_call *call, void *(*what)(void *)) {
    struct move *move = migration->move;
    enum stage before = atomic_load(&move->stage);
    move->call = call;
    move->client = control_client(call);
    int result = -pthread_create(&move->thread, NULL, what, move);
    move->started = result == 0;
    if (result == 0)
        return;
    error_set(&move->err, move->result = result, "the host has no room for another thread");
    atomic_store(&move->stage, before == CONNECTING ? FAILED : before);
    finish(migration);
}

void vm_migration_start(struct vm_migration *migration, const struct agent *agent,
                        struct control_call *call, const json_t *arguments) {
    struct error err = {0};
    struct move *move = NULL;
    char why[ERROR_TEXT_MAX];
    if (vm_migration_is_busy(migration) || vm_migration_is_away(migration, why, sizeof why)) {
        control_fail(call, "Busy", "it is being moved already");
        return;
    }
    int result = begin(migration, agent, arguments, &move, &err);
    if (result < 0 || move == NULL) {
        control_fail(call,
                     result == -ENOTSUP ? "NotSupported"
                     : result == -EBUSY ? "Busy"
                                        : "BadArgument",
                     err.text);
        return;
    }
    free_move(migration->move);
    migration->move = move;
    run(migration, call, move_run);
}

/* One that may run there, and has memory here. */
static bool can_resume(const struct move *move) {
    enum stage stage = move == NULL ? FAILED : atomic_load(&move->stage);
    return !move->started && (stage == INTERRUPTED || (stage == DOUBTFUL && move->post_copy));
}

void vm_migration_resume(struct vm_migration *migration, struct control_call *call,
                         const json_t *arguments) {
    struct error err = {0};
    if (migration == NULL || migration->move == NULL || !can_resume(migration->move))
        control_fail(call, "NotActive", "no move of it has been interrupted in post-copy");
    else if (fill_address(arguments, migration->move, &err) < 0)
        control_fail(call, "BadArgument", err.text);
    else
        run(migration, call, move_resume);
}

/* ---- The loop: questions ---- */

static bool is_arriving(const struct vm_migration *migration) {
    char why[ERROR_TEXT_MAX];
    uint64_t left;
    return migration_is_arriving(migration->config.coming, &left, why, sizeof why);
}

/* From here to elsewhere. */
static bool is_moving(const struct vm_migration *migration) {
    return migration != NULL && migration->move != NULL && migration->move->started;
}

bool vm_migration_is_busy(const struct vm_migration *migration) {
    return is_moving(migration) || (migration != NULL && is_arriving(migration));
}

bool vm_migration_is_away(const struct vm_migration *migration, char *why, size_t size) {
    const struct move *move = migration != NULL ? migration->move : NULL;
    enum stage stage = move != NULL ? atomic_load(&move->stage) : CONNECTING;
    if (stage == POST_COPY)
        snprintf(why, size, "it runs at %s, and some of its memory is still on its way there",
                 move->to);
    else if (stage == DOUBTFUL || stage == INTERRUPTED)
        snprintf(why, size, "%s", move->err.text);
    return stage == POST_COPY || stage == DOUBTFUL || stage == INTERRUPTED;
}

bool vm_migration_is_doubtful(const struct vm_migration *migration) {
    return migration != NULL && migration->move != NULL &&
           atomic_load(&migration->move->stage) == DOUBTFUL;
}

void vm_migration_why(const struct vm_migration *migration, char *why, size_t size) {
    uint64_t left;
    if (migration != NULL)
        migration_is_arriving(migration->config.coming, &left, why, size);
}

void vm_migration_take_back(struct vm_migration *migration, struct control_call *call, bool force) {
    if (is_moving(migration)) {
        control_fail(call, "Busy", "it is being moved already");
        return;
    }
    migration->move->taking_back = true;
    migration->move->forced = force;
    run(migration, call, move_take_back);
}

/* True: it was in time. */
static bool cancel(struct move *move) {
    pthread_mutex_lock(&move->lock);
    bool in_time = !move->committed;
    if (in_time)
        move->cancelled = true;
    if (in_time && move->tunnel != NULL)
        tunnel_break(move->tunnel);
    pthread_mutex_unlock(&move->lock);
    return in_time;
}

void vm_migration_cancel(struct vm_migration *migration, struct control_call *call) {
    if (!is_moving(migration))
        control_fail(call, "NotActive", "it is not being moved");
    else if (!cancel(migration->move))
        control_fail(call, "Busy", "it is too late: it has been handed over");
    else
        control_return(call, NULL);
}

void vm_migration_client_gone(struct vm_migration *migration, unsigned long client) {
    if (is_moving(migration) && migration->move->client == client)
        cancel(migration->move);
}

void vm_migration_query(struct vm_migration *migration, struct control_call *call) {
    uint64_t left = 0;
    char why[ERROR_TEXT_MAX];
    if (migration != NULL &&
        migration_is_arriving(migration->config.coming, &left, why, sizeof why))
        control_return(call, json_pack("{s:s, s:I, s:s}", "stage",
                                       why[0] != 0 ? "arriving-interrupted" : "arriving", "left",
                                       (json_int_t)left, "why", why));
    else if (migration == NULL || migration->move == NULL)
        control_return(call, json_pack("{s:s}", "stage", "none"));
    else
        control_return(call, move_describe(migration->move));
}

/* ---- Life ---- */

int vm_migration_create(const struct vm_migration_config *config, struct vm_migration **migration,
                        struct error *err) {
    struct vm_migration *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->config = *config;
    *migration = made;
    return 0;
}

void vm_migration_destroy(struct vm_migration *migration) {
    if (migration == NULL)
        return;
    struct move *move = migration->move;
    if (move != NULL && move->started) {
        pthread_mutex_lock(&move->lock);
        move->ending = true;
        if (move->tunnel != NULL && !move->committed)
            tunnel_break(move->tunnel);
        pthread_cond_broadcast(&move->changed);
        pthread_mutex_unlock(&move->lock);
        join(move);
        enum stage stage = atomic_load(&move->stage);
        if (stage == MOVED || stage == LOST)
            forget(migration);
        finish(migration);
    }
    free_move(move);
    free(migration);
}
