/*
 * One line about this host that takes long to find out, kept in a file until
 * the host boots again: "BOOT-ID TEXT". Any process may write it; the file is
 * whole or not there, and without it the next process finds out again.
 */
#ifndef LODGE_BASE_HOST_NOTE_H
#define LODGE_BASE_HOST_NOTE_H

#include <stdbool.h>
#include <stddef.h>

enum { HOST_NOTE_MAX = 128 };

/* False when there is none, or it is of an earlier boot. */
bool host_note_read(const char *path, char *text, size_t size);
void host_note_write(const char *path, const char *text);

#endif
