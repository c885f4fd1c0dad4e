/*
 * The user's terminal while a guest has it: raw mode, the escape key, and the
 * way back, which is taken however lodge ends (but by SIGKILL). One at a time.
 */
#ifndef LODGE_CLI_TERMINAL_H
#define LODGE_CLI_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define TERMINAL_ESCAPE_HELP "Ctrl-] then . leaves the guest"

/* True when input and output are a terminal. */
bool terminal_is_there(void);
int terminal_raw(struct error *err);
/* Also without terminal_raw before it. */
void terminal_restore(void);
void terminal_size(uint16_t *rows, uint16_t *columns);

struct terminal_escape {
    bool armed; /* Ctrl-] was the last byte */
};
/* Takes escape sequences out of input: returns the bytes left, sets *leave on Ctrl-] and a dot.
 * Ctrl-] twice is one Ctrl-] for the guest. */
size_t terminal_filter(struct terminal_escape *escape, uint8_t *bytes, size_t length, bool *leave);

#endif
