#include "device/flash.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"

enum {
    READ_ARRAY = 0xff,
    READ_STATUS = 0x70,
    CLEAR_STATUS = 0x50,
    READ_IDENTIFIERS = 0x90,
    PROGRAM = 0x10,
    PROGRAM_OTHER = 0x40,
    PROGRAM_BUFFER = 0xe8,
    ERASE = 0x20,
    CONFIRM = 0xd0,
};
enum { STATUS_READY = 0x80, STATUS_ERASE_ERROR = 0x20, STATUS_PROGRAM_ERROR = 0x10 };
enum { MANUFACTURER_INTEL = 0x89, DEVICE_CODE = 0x18 };

/* What the next write means. */
enum { EXPECT_COMMAND, EXPECT_BYTE, EXPECT_COUNT, EXPECT_DATA, EXPECT_CONFIRM, EXPECT_ERASE };

struct flash {
    struct device device;
    struct io_region *region;
    struct loop_timer *sync_timer;
    uint64_t gpa;
    size_t size;
    int fd;
    uint8_t *contents; /* what the array holds; memory shows the same whenever it shows the array */
    size_t changed_first, changed_end; /* what memory and file do not have yet */
    bool failed;                       /* the file could not be written: said once */
    uint8_t mode;                      /* what reads answer: READ_ARRAY, READ_STATUS, ... */
    uint8_t expects, status;
    uint16_t buffer_count, buffer_filled;
    uint32_t buffer_at;
    uint8_t buffer[FLASH_BUFFER];
};

/* ---- The array: lock held ---- */

static void note_change(struct flash *flash, size_t at, size_t length) {
    if (flash->changed_first == flash->changed_end) {
        flash->changed_first = at;
        flash->changed_end = at + length;
        return;
    }
    if (at < flash->changed_first)
        flash->changed_first = at;
    if (at + length > flash->changed_end)
        flash->changed_end = at + length;
}

static void write_file(struct flash *flash, size_t at, size_t length) {
    if (flash->fd < 0)
        return;
    bool good = pwrite(flash->fd, flash->contents + at, length, (off_t)at) == (ssize_t)length;
    if (!good && !flash->failed)
        log_error("firmware variables cannot be written: %s", strerror(errno));
    flash->failed = !good;
    loop_timer_arm(flash->sync_timer,
                   host_clock_ns() + FLASH_SYNC_MS * (NS_PER_SECOND / UINT64_C(1000)));
}

static void show_array(struct flash *flash) {
    size_t at = flash->changed_first, length = flash->changed_end - at;
    flash->expects = EXPECT_COMMAND;
    if (flash->mode == READ_ARRAY)
        return;
    flash->mode = READ_ARRAY;
    if (length > 0) {
        memory_load(flash->device.platform->memory, flash->gpa + at, flash->contents + at, length);
        write_file(flash, at, length);
    }
    flash->changed_first = flash->changed_end = 0;
    memory_io_writes_only(flash->region, true);
}

static void show_registers(struct flash *flash, uint8_t mode) {
    if (flash->mode == READ_ARRAY)
        memory_io_writes_only(flash->region, false);
    flash->mode = mode;
}

static void sync_due(void *context) {
    struct flash *flash = context;
    fdatasync(flash->fd);
}

/* Bits can only be cleared. */
static void program(struct flash *flash, size_t at, const uint8_t *bytes, size_t length) {
    for (size_t i = 0; i < length; i++)
        flash->contents[at + i] &= bytes[i];
    note_change(flash, at, length);
    flash->status |= STATUS_READY;
}

static void erase(struct flash *flash, size_t at) {
    at = round_down(at, FLASH_BLOCK);
    memset(flash->contents + at, 0xff, FLASH_BLOCK);
    note_change(flash, at, FLASH_BLOCK);
    flash->status |= STATUS_READY;
}

/* ---- Commands: lock held ---- */

static void expect(struct flash *flash, uint8_t what) {
    flash->expects = what;
    show_registers(flash, READ_STATUS);
}

static void command(struct flash *flash, uint8_t value) {
    switch (value) {
    case READ_STATUS: expect(flash, EXPECT_COMMAND); break;
    case READ_IDENTIFIERS: show_registers(flash, READ_IDENTIFIERS); break;
    case PROGRAM:
    case PROGRAM_OTHER: expect(flash, EXPECT_BYTE); break;
    case PROGRAM_BUFFER:
        flash->status |= STATUS_READY;
        expect(flash, EXPECT_COUNT);
        break;
    case ERASE: expect(flash, EXPECT_ERASE); break;
    case CLEAR_STATUS:
        flash->status = 0;
        show_array(flash);
        break;
    default: show_array(flash); break;
    }
}

static void fail(struct flash *flash, uint8_t bits) {
    flash->status |= STATUS_READY | bits;
    flash->expects = EXPECT_COMMAND;
}

static void take_count(struct flash *flash, uint64_t value) {
    flash->buffer_count = (uint16_t)((value & 0xff) + 1);
    flash->buffer_filled = 0;
    flash->expects = EXPECT_DATA;
}

/* The first byte says where; the others must follow it. */
static void take_data(struct flash *flash, size_t at, uint64_t value, unsigned size) {
    if (flash->buffer_filled == 0)
        flash->buffer_at = (uint32_t)at;
    if (at != flash->buffer_at + flash->buffer_filled ||
        !range_within(flash->buffer_filled, size, flash->buffer_count) ||
        !range_within(at, size, flash->size)) {
        fail(flash, STATUS_PROGRAM_ERROR | STATUS_ERASE_ERROR);
        return;
    }
    store_le(flash->buffer + flash->buffer_filled, value, size);
    flash->buffer_filled += (uint16_t)size;
    if (flash->buffer_filled == flash->buffer_count)
        flash->expects = EXPECT_CONFIRM;
}

static void take(struct flash *flash, size_t at, uint64_t value, unsigned size) {
    uint8_t bytes[8];
    switch (flash->expects) {
    case EXPECT_BYTE:
        store_le64(bytes, value);
        program(flash, at, bytes, size);
        flash->expects = EXPECT_COMMAND;
        break;
    case EXPECT_COUNT: take_count(flash, value); break;
    case EXPECT_DATA: take_data(flash, at, value, size); break;
    case EXPECT_CONFIRM:
        if ((uint8_t)value == CONFIRM)
            program(flash, flash->buffer_at, flash->buffer, flash->buffer_count);
        else
            fail(flash, STATUS_PROGRAM_ERROR | STATUS_ERASE_ERROR);
        flash->expects = EXPECT_COMMAND;
        break;
    case EXPECT_ERASE:
        if ((uint8_t)value == CONFIRM)
            erase(flash, at);
        else
            fail(flash, STATUS_PROGRAM_ERROR | STATUS_ERASE_ERROR);
        flash->expects = EXPECT_COMMAND;
        break;
    default: command(flash, (uint8_t)value); break;
    }
}

/* ---- Accesses ---- */

static uint64_t flash_read(void *context, uint64_t offset, unsigned size) {
    struct flash *flash = context;
    uint64_t value = 0;
    lock_take(&flash->device.lock);
    if (flash->mode == READ_ARRAY) /* turned while the access was under way */
        value = load_le(flash->contents + offset, size);
    else if (flash->mode == READ_IDENTIFIERS)
        value = offset % FLASH_BLOCK == 0   ? MANUFACTURER_INTEL
                : offset % FLASH_BLOCK == 1 ? DEVICE_CODE
                                            : 0;
    else
        value = flash->status;
    lock_release(&flash->device.lock);
    return value;
}

static void flash_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct flash *flash = context;
    lock_take(&flash->device.lock);
    take(flash, offset, value, size);
    lock_release(&flash->device.lock);
}

static const struct io_ops flash_ops = {flash_read, flash_write};

/* ---- Life ---- */

/* Memory and file get it all, since it is not what they have; a command goes on from there. */
static int after_load(void *object, struct error *err) {
    struct flash *flash = object;
    uint8_t mode = flash->mode, expects = flash->expects;
    if (flash->buffer_count > FLASH_BUFFER || flash->buffer_filled > flash->buffer_count ||
        !range_within(flash->buffer_at, flash->buffer_count, flash->size))
        return error_set(err, -EINVAL, "flash: %u of %u bytes at %u", flash->buffer_filled,
                         flash->buffer_count, flash->buffer_at);
    lock_take(&flash->device.lock);
    flash->mode = READ_STATUS;
    note_change(flash, 0, flash->size);
    show_array(flash);
    if (mode != READ_ARRAY)
        show_registers(flash, mode);
    flash->expects = expects;
    lock_release(&flash->device.lock);
    return 0;
}

/* The contents outlive a reset. */
static const struct state_field flash_fields[] = {
    STATE_BYTES(struct flash, contents, size, 1),
    STATE_FIELD(struct flash, mode, 1, .keep = true),
    STATE_FIELD(struct flash, expects, 1),
    STATE_FIELD(struct flash, status, 1, .reset = STATUS_READY),
    STATE_FIELD(struct flash, buffer_count, 1),
    STATE_FIELD(struct flash, buffer_filled, 1),
    STATE_FIELD(struct flash, buffer_at, 1),
    STATE_ARRAY(struct flash, buffer, 1),
};
static const struct state_table flash_state =
    STATE_TABLE("flash", 1, struct flash, flash_fields, .after_load = after_load);

int flash_read_saved(const uint8_t *state, size_t length, uint8_t *contents, size_t size,
                     struct error *err) {
    static const struct state_table saved = STATE_TABLE("flash", 1, struct flash, flash_fields);
    struct flash flash = {.contents = contents, .size = size};
    size_t used;
    return state_load(&saved, &flash, state, length, &used, err);
}

static void flash_reset(struct device *device) {
    struct flash *flash = (struct flash *)device;
    lock_take(&device->lock);
    show_array(flash);
    lock_release(&device->lock);
}

static void flash_destroy(struct device *device) {
    struct flash *flash = (struct flash *)device;
    flash_reset(device);
    if (flash->fd >= 0)
        fdatasync(flash->fd);
    if (flash->sync_timer != NULL)
        loop_timer_free(flash->sync_timer);
    memory_remove_io(flash->region);
    free(flash->contents);
}

static int map(struct flash *flash, struct error *err) {
    struct platform *platform = flash->device.platform;
    int rc = memory_add_rom(platform->memory, flash->device.name, flash->gpa, flash->size,
                            flash->contents, flash->size, err);
    if (rc == 0)
        rc = memory_add_io(platform->memory, flash->device.name, flash->gpa, flash->size,
                           &flash_ops, flash, &flash->region, err);
    if (rc == 0 && flash->fd >= 0)
        rc = loop_timer_create(platform->loop, sync_due, flash, &flash->sync_timer, err);
    if (rc < 0) {
        memory_remove_io(flash->region);
        return rc;
    }
    flash->mode = READ_ARRAY;
    memory_io_writes_only(flash->region, true);
    return 0;
}

static int flash_init(struct device *device, const void *config_, struct error *err) {
    struct flash *flash = (struct flash *)device;
    const struct flash_config *config = config_;
    flash->gpa = config->gpa;
    flash->size = config->size;
    flash->fd = config->fd;
    flash->contents = malloc(config->size);
    if (flash->contents == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    memcpy(flash->contents, config->contents, config->size);
    int rc = map(flash, err);
    if (rc < 0)
        free(flash->contents);
    return rc;
}

const struct device_class flash_class = {
    .name = "flash",
    .size = sizeof(struct flash),
    .state = &flash_state,
    .init = flash_init,
    .reset = flash_reset,
    .destroy = flash_destroy,
};
