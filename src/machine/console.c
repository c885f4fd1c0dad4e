#include "machine/console.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/lock.h"

enum { TAIL_SIZE = 8192, LINE_SIZE = 256 };

struct console {
    struct chardev chardev;
    struct chardev *next;
    console_panic *panic;
    void *context;
    struct lock lock; /* guards what follows */
    char tail[TAIL_SIZE];
    uint64_t written; /* bytes ever put into tail */
    char line[LINE_SIZE];
    size_t line_length;
};

/* ---- Looking at what passes ---- */

static void look_at_line(struct console *console) {
    console->line[console->line_length] = 0;
    console->line_length = 0;
    if (console->panic == NULL || strstr(console->line, "Kernel panic - not syncing") == NULL)
        return;
    console->panic(console->context, strstr(console->line, "end Kernel panic") != NULL);
}

static void look_at(struct console *console, const uint8_t *bytes, size_t length) {
    lock_take(&console->lock);
    for (size_t i = 0; i < length; i++) {
        console->tail[console->written++ % TAIL_SIZE] = (char)bytes[i];
        if (bytes[i] == '\n')
            look_at_line(console);
        else if (console->line_length < LINE_SIZE - 1)
            console->line[console->line_length++] = (char)bytes[i];
    }
    lock_release(&console->lock);
}

/* ---- The back end that the serial port sees ---- */

static size_t console_write(struct chardev *chardev, const uint8_t *bytes, size_t length) {
    struct console *console = container_of(chardev, struct console, chardev);
    if (console->next != NULL)
        length = console->next->ops->write(console->next, bytes, length);
    look_at(console, bytes, length);
    return length;
}

static void console_resume_input(struct chardev *chardev) {
    struct console *console = container_of(chardev, struct console, chardev);
    if (console->next != NULL)
        console->next->ops->resume_input(console->next);
}

static const struct chardev_ops console_ops = {console_write, console_resume_input};

/* ---- The front end that the next back end sees ---- */

static size_t next_receive(void *context, const uint8_t *bytes, size_t length) {
    struct console *console = context;
    const struct chardev_front *front = console->chardev.front;
    return front != NULL ? front->receive(console->chardev.front_context, bytes, length) : 0;
}

static void next_writable(void *context) {
    struct console *console = context;
    const struct chardev_front *front = console->chardev.front;
    if (front != NULL)
        front->writable(console->chardev.front_context);
}

static const struct chardev_front console_front = {next_receive, next_writable};

/* ---- Life ---- */

int console_create(struct chardev *next, console_panic *panic, void *context,
                   struct console **console, struct error *err) {
    struct console *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->chardev.ops = &console_ops;
    made->next = next;
    made->panic = panic;
    made->context = context;
    lock_init(&made->lock, LOCK_BACKEND, "console");
    if (next != NULL)
        chardev_attach(next, &console_front, made);
    *console = made;
    return 0;
}

void console_destroy(struct console *console) {
    if (console == NULL)
        return;
    if (console->next != NULL)
        chardev_attach(console->next, NULL, NULL);
    lock_destroy(&console->lock);
    free(console);
}

struct chardev *console_chardev(struct console *console) {
    return &console->chardev;
}

/* ---- The last lines ---- */

/* Where the last `lines` lines begin. */
static uint64_t find_lines(const struct console *console, unsigned lines) {
    uint64_t oldest = console->written > TAIL_SIZE ? console->written - TAIL_SIZE : 0;
    uint64_t at = console->written;
    /* A newline at the very end ends the last line and begins no other. */
    while (at > oldest) {
        if (at != console->written && console->tail[(at - 1) % TAIL_SIZE] == '\n' && --lines == 0)
            break;
        at--;
    }
    return at;
}

size_t console_tail(struct console *console, unsigned lines, char *text, size_t size) {
    size_t used = 0;
    lock_take(&console->lock);
    for (uint64_t at = find_lines(console, lines); at < console->written && used + 1 < size; at++) {
        char c = console->tail[at % TAIL_SIZE];
        /* Terminals are not to be driven by a guest's error report. */
        if (c == '\n' || c == '\t' || (c >= ' ' && c != 0x7f))
            text[used++] = c;
    }
    lock_release(&console->lock);
    text[used] = 0;
    return used;
}
