/* Disks in lodge's format on a real file, with threads: many requests at once, from under a lock.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "block/disk/disk.h"
#include "block/open.h"
#include "block/raw.h"
#include "block/sync.h"

enum { SIZE = 8 << 20, PART = 512, REQUESTS = 4000, AT_ONCE = 64, LENGTH_MAX = 24 };

struct client {
    pthread_mutex_t mutex; /* held while submitting, as devices do; completions take it */
    pthread_cond_t cond;
    unsigned outstanding;
    int result;
};

struct work {
    struct block_request request;
    struct iovec vector;
    struct client *client;
    uint8_t bytes[LENGTH_MAX * PART];
};

static void worked(struct work *work) {
    struct client *client = work->client;
    client->outstanding--;
    if (work->request.result != 0)
        client->result = work->request.result;
    pthread_cond_signal(&client->cond);
    free(work);
}

static void done(struct block_request *request) {
    struct work *work = container_of(request, struct work, request);
    struct client *client = work->client;
    pthread_mutex_lock(&client->mutex);
    worked(work);
    pthread_mutex_unlock(&client->mutex);
}

static char directory[] = "/tmp/lodge-test-disk-XXXXXX";
static char path[64];

static int make(void **state) {
    struct raw_config raw = {.growable = true};
    struct disk_create create = {.size = SIZE, .journal_blocks = DISK_JOURNAL_MIN};
    struct block *file;
    struct error err;
    strcpy(directory + strlen(directory) - 6, "XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/d.lodge", directory);
    FILE *made = fopen(path, "w");
    assert_non_null(made);
    fclose(made);
    assert_int_equal(block_open_file(path, &raw, &file, &err), 0);
    assert_int_equal(disk_format(file, &create, &err), 0);
    block_close(file);
    return 0;
}

static int take_away(void **state) {
    unlink(path);
    rmdir(directory);
    return 0;
}

static struct block *open_it(const char *snapshot) {
    struct block_options options = {.snapshot = snapshot};
    struct block *block;
    struct error err;
    if (block_open(path, &options, &block, &err) != 0)
        fail_msg("%s", err.text);
    return block;
}

/* Neighbours share blocks; the same sectors are only written again when all is through. */
static void submit_one(struct client *client, struct block *disk, uint64_t sector, uint8_t value) {
    struct work *work = calloc(1, sizeof *work);
    assert_non_null(work);
    size_t length = (1 + (value + sector) % 3) * (size_t)PART;
    memset(work->bytes, value, length);
    work->client = client;
    work->vector = (struct iovec){work->bytes, length};
    work->request = (struct block_request){.operation = BLOCK_WRITE,
                                           .offset = sector * PART,
                                           .length = length,
                                           .vectors = &work->vector,
                                           .vector_count = 1,
                                           .durable = value % 16 == 0,
                                           .done = done};
    client->outstanding++;
    if (block_submit(disk, &work->request) == 1)
        worked(work);
    while (client->outstanding >= AT_ONCE)
        pthread_cond_wait(&client->cond, &client->mutex);
}

static void many_at_once(void **state) {
    struct client client = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    static uint8_t expected[SIZE], found[SIZE];
    struct block *disk = open_it(NULL);
    struct error err;
    uint64_t sector = 0;
    memset(expected, 0, sizeof expected);
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint8_t value = (uint8_t)(i % 255 + 1);
        pthread_mutex_lock(&client.mutex);
        submit_one(&client, disk, sector, value);
        pthread_mutex_unlock(&client.mutex);
        memset(expected + sector * PART, value, (1 + (value + sector) % 3) * PART);
        sector += 3; /* the most that one writes */
        if (i == REQUESTS / 2) {
            block_drain(disk);
            assert_int_equal(disk_snapshot_create(disk, "half", &err), 0);
            sector = 7;
        }
    }
    pthread_mutex_lock(&client.mutex);
    while (client.outstanding > 0)
        pthread_cond_wait(&client.cond, &client.mutex);
    pthread_mutex_unlock(&client.mutex);
    assert_int_equal(client.result, 0);
    assert_int_equal(block_read(disk, 0, found, sizeof found), 0);
    assert_memory_equal(found, expected, sizeof found);
    block_close(disk);
    disk = open_it(NULL);
    assert_int_equal(block_read(disk, 0, found, sizeof found), 0);
    assert_memory_equal(found, expected, sizeof found);
    block_close(disk);
    block_close(open_it("half"));
}

struct snapshots {
    struct block *disk;
    unsigned taken, wrong;
};

/* Beside the writer: takes, reads and removes snapshots, each whole in itself. */
static void *take_snapshots(void *argument) {
    struct snapshots *s = argument;
    static uint8_t once[SIZE], twice[SIZE];
    for (; s->taken < 20; s->taken++) {
        char name[16];
        struct error err;
        snprintf(name, sizeof name, "s%u", s->taken);
        s->wrong += disk_snapshot_create(s->disk, name, &err) != 0;
        struct block *reader = open_it(name);
        s->wrong += block_read(reader, 0, once, sizeof once) != 0;
        s->wrong += disk_snapshot_remove(s->disk, name, NULL, &err) != -EBUSY;
        s->wrong += block_read(reader, 0, twice, sizeof twice) != 0;
        s->wrong += memcmp(once, twice, sizeof once) != 0;
        block_close(reader);
        if (s->taken % 2 == 0)
            s->wrong += disk_snapshot_remove(s->disk, name, NULL, &err) != 0;
    }
    return NULL;
}

static void beside_a_writer(void **state) {
    struct client client = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    struct snapshots snapshots = {.disk = open_it(NULL)};
    struct disk_check check = {0};
    struct raw_config raw = {.readonly = true};
    struct block *file;
    struct error err;
    pthread_t thread;
    uint64_t sector = 0;
    assert_int_equal(pthread_create(&thread, NULL, take_snapshots, &snapshots), 0);
    for (unsigned i = 0; i < 10 * REQUESTS; i++) {
        pthread_mutex_lock(&client.mutex);
        submit_one(&client, snapshots.disk, sector, (uint8_t)(i % 255 + 1));
        pthread_mutex_unlock(&client.mutex);
        sector = (sector + 3 * 71) % (SIZE / PART - 3);
    }
    pthread_join(thread, NULL);
    block_drain(snapshots.disk);
    assert_int_equal(snapshots.wrong, 0);
    assert_int_equal(client.result, 0);
    block_close(snapshots.disk);
    assert_int_equal(block_open_file(path, &raw, &file, &err), 0);
    assert_int_equal(disk_check(file, &check, &err), 0);
    assert_int_equal(check.errors, 0);
    block_close(file);
}

/* The file cannot take any more: the guest's write fails, nothing else does, and it goes on. */
static void full_host(void **state) {
    static uint8_t bytes[1 << 20];
    struct disk_options config = {.file_limit = MIB(2)};
    struct raw_config raw = {.growable = true};
    struct block *file, *disk;
    struct error err;
    unsigned i = 0;
    assert_int_equal(block_open_file(path, &raw, &file, &err), 0);
    assert_int_equal(disk_open(file, NULL, &config, &disk, &err), 0);
    memset(bytes, 0x77, sizeof bytes);
    while (i < 100 && block_write(disk, i * 65536UL, bytes, 65536) == 0)
        i++;
    assert_in_range(i, 8, 64);
    assert_int_equal(block_write(disk, i * 65536UL, bytes, 65536), -ENOSPC);
    assert_int_equal(block_discard(disk, 0, 65536), 0);
    assert_int_equal(block_flush(disk), 0);
    assert_int_equal(block_write(disk, i * 65536UL, bytes, 4096), 0);
    assert_int_equal(block_read(disk, 65536, bytes, sizeof bytes / 4), 0);
    assert_int_equal(bytes[0], 0x77);
    assert_int_equal(block_flush(disk), 0);
    block_close(disk);
}

static void odd_zeroes(void **state) {
    static uint8_t bytes[8 * PART * 3], zero[sizeof bytes];
    struct block *disk = open_it(NULL);
    memset(bytes, 0x33, sizeof bytes);
    assert_int_equal(block_write(disk, 0, bytes, sizeof bytes), 0);
    assert_int_equal(block_write_zeroes(disk, 3 * PART, 14 * PART, true), 0);
    memset(bytes + 3 * PART, 0, 14 * PART);
    assert_int_equal(block_read(disk, 0, zero, sizeof zero), 0);
    assert_memory_equal(zero, bytes, sizeof bytes);
    block_close(disk);
}

/* ---- Upkeep ---- */

struct way {
    struct block block;
    struct block *file;
    atomic_uint count[BLOCK_WRITE_ZEROES + 1];
};

static int way_submit(struct block *block, struct block_request *request) {
    struct way *way = container_of(block, struct way, block);
    atomic_fetch_add(&way->count[request->operation], 1);
    return block_submit(way->file, request);
}

/* Removing a snapshot, the commits that it needs with it, goes by the other way; flushes do not. */
static void upkeep(void **state) {
    static const struct block_class by_way = {.name = "way", .submit = way_submit};
    static uint8_t bytes[1 << 20];
    struct disk_options config = {0};
    struct raw_config raw = {.growable = true};
    struct way way = {.block = {.class = &by_way}};
    struct block *disk;
    struct error err;
    assert_int_equal(block_open_file(path, &raw, &way.file, &err), 0);
    assert_int_equal(disk_open(way.file, NULL, &config, &disk, &err), 0);
    assert_ptr_equal(disk_file(disk), way.file);
    way.block.info = way.file->info;
    disk_set_upkeep(disk, &way.block);
    assert_int_equal(block_write(disk, 0, bytes, sizeof bytes), 0);
    assert_int_equal(disk_snapshot_create(disk, "s", &err), 0);
    assert_int_equal(block_write(disk, 0, bytes, sizeof bytes), 0);
    assert_int_equal(disk_snapshot_remove(disk, "s", NULL, &err), 0);
    assert_in_range(atomic_load(&way.count[BLOCK_READ]), 1, 100);
    assert_in_range(atomic_load(&way.count[BLOCK_WRITE]), 1, 100);
    assert_in_range(atomic_load(&way.count[BLOCK_DISCARD]), 1, 100);
    assert_int_equal(atomic_load(&way.count[BLOCK_FLUSH]), 0);
    block_close(disk);
    struct disk_check check = {0};
    raw.readonly = true;
    assert_int_equal(block_open_file(path, &raw, &way.file, &err), 0);
    assert_int_equal(disk_check(way.file, &check, &err), 0);
    assert_int_equal(check.errors, 0);
    block_close(way.file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(many_at_once, make, take_away),
        cmocka_unit_test_setup_teardown(beside_a_writer, make, take_away),
        cmocka_unit_test_setup_teardown(full_host, make, take_away),
        cmocka_unit_test_setup_teardown(odd_zeroes, make, take_away),
        cmocka_unit_test_setup_teardown(upkeep, make, take_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
