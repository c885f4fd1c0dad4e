/* UUIDs (RFC 4122): 16 bytes in the order of their text. */
#ifndef LODGE_BASE_UUID_H
#define LODGE_BASE_UUID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum { UUID_SIZE = 16, UUID_TEXT = 37 };

/* A new one, by chance (version 4). -errno of getrandom. */
int uuid_make(uint8_t uuid[UUID_SIZE], struct error *err);
/* Makes 16 bytes one of that version (RFC 9562: 4 by chance, 8 made as its maker likes). */
void uuid_mark(uint8_t uuid[UUID_SIZE], unsigned version);
void uuid_format(const uint8_t uuid[UUID_SIZE], char text[UUID_TEXT]);
/* False: not 8-4-4-4-12 hexadecimal digits, and nothing else. */
bool uuid_parse(const char *text, uint8_t uuid[UUID_SIZE]);

#endif
