#include "machine/aml.h"

#include <string.h>

enum {
    OP_ZERO = 0x00,
    OP_ONE = 0x01,
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_VARIABLE_PACKAGE = 0x13,
    OP_METHOD = 0x14,
    OP_DUAL_NAME = 0x2e,
    OP_MULTI_NAME = 0x2f,
    OP_EXTENDED = 0x5b,
    OP_EXTENDED_FIELD = 0x81,
    OP_EXTENDED_DEVICE = 0x82,
    OP_IF = 0xa0,
    OP_ELSE = 0xa1,
    OP_WHILE = 0xa2,
};
enum { SEGMENT = 4, LENGTH_BYTES = 3, LENGTH_MAX = 1 << 20 };
enum { RESOURCE_MEMORY, RESOURCE_IO, RESOURCE_BUS };
enum { RESOURCE_FIXED = 0x0c, RESOURCE_IO_ALL = 3, RESOURCE_WRITABLE = 1 };

void aml_bytes(struct aml *aml, const void *bytes, size_t length) {
    if (aml->overflow || length > aml->size - aml->length) {
        aml->overflow = true;
        return;
    }
    memcpy(aml->bytes + aml->length, bytes, length);
    aml->length += length;
}

void aml_byte(struct aml *aml, uint8_t value) {
    aml_bytes(aml, &value, 1);
}

static void little_endian(struct aml *aml, uint64_t value, unsigned size) {
    for (unsigned i = 0; i < size; i++)
        aml_byte(aml, (uint8_t)(value >> (8 * i)));
}

void aml_word(struct aml *aml, uint16_t value) {
    little_endian(aml, value, 2);
}

void aml_dword(struct aml *aml, uint32_t value) {
    little_endian(aml, value, 4);
}

void aml_qword(struct aml *aml, uint64_t value) {
    little_endian(aml, value, 8);
}

void aml_path(struct aml *aml, const char *path) {
    if (*path == '\\')
        aml_byte(aml, (uint8_t)*path++);
    size_t segments = (strlen(path) + 1) / (SEGMENT + 1);
    if (segments == 2) {
        aml_byte(aml, OP_DUAL_NAME);
    } else if (segments > 2) {
        aml_byte(aml, OP_MULTI_NAME);
        aml_byte(aml, (uint8_t)segments);
    }
    for (size_t i = 0; i < segments; i++)
        aml_bytes(aml, path + i * (SEGMENT + 1), SEGMENT);
}

/* ---- Objects that contain others ---- */

/* Leaves room for the length, which is always written in three bytes (20.2.4). */
static size_t open_length(struct aml *aml) {
    size_t mark = aml->length;
    aml_bytes(aml, "\0\0\0", LENGTH_BYTES);
    return mark;
}

void aml_close(struct aml *aml, size_t mark) {
    size_t length = aml->length - mark;
    if (aml->overflow || length >= LENGTH_MAX) {
        aml->overflow = true;
        return;
    }
    aml->bytes[mark] = (LENGTH_BYTES - 1) << 6 | (length & 15);
    aml->bytes[mark + 1] = (uint8_t)(length >> 4);
    aml->bytes[mark + 2] = (uint8_t)(length >> 12);
}

static size_t open_block(struct aml *aml, uint8_t op) {
    aml_byte(aml, op);
    return open_length(aml);
}

size_t aml_scope(struct aml *aml, const char *path) {
    size_t mark = open_block(aml, OP_SCOPE);
    aml_path(aml, path);
    return mark;
}

size_t aml_device(struct aml *aml, const char *name) {
    aml_byte(aml, OP_EXTENDED);
    size_t mark = open_block(aml, OP_EXTENDED_DEVICE);
    aml_path(aml, name);
    return mark;
}

size_t aml_package(struct aml *aml, uint8_t elements) {
    size_t mark = open_block(aml, OP_PACKAGE);
    aml_byte(aml, elements);
    return mark;
}

size_t aml_variable_package(struct aml *aml) {
    return open_block(aml, OP_VARIABLE_PACKAGE);
}

size_t aml_method(struct aml *aml, const char *name, unsigned flags) {
    size_t mark = open_block(aml, OP_METHOD);
    aml_path(aml, name);
    aml_byte(aml, (uint8_t)flags);
    return mark;
}

size_t aml_field(struct aml *aml, const char *region, uint8_t flags) {
    aml_byte(aml, OP_EXTENDED);
    size_t mark = open_block(aml, OP_EXTENDED_FIELD);
    aml_path(aml, region);
    aml_byte(aml, flags);
    return mark;
}

size_t aml_if(struct aml *aml) {
    return open_block(aml, OP_IF);
}

size_t aml_else(struct aml *aml) {
    return open_block(aml, OP_ELSE);
}

size_t aml_while(struct aml *aml) {
    return open_block(aml, OP_WHILE);
}

/* The buffer's size is a word constant right behind the length, filled in on closing. */
size_t aml_resources(struct aml *aml, const char *name) {
    aml_name(aml, name);
    size_t mark = open_block(aml, OP_BUFFER);
    aml_byte(aml, OP_WORD);
    aml_word(aml, 0);
    return mark;
}

void aml_close_resources(struct aml *aml, size_t mark) {
    size_t size_at = mark + LENGTH_BYTES + 1;
    aml_byte(aml, 0x79); /* end tag; a checksum of 0 means none */
    aml_byte(aml, 0);
    if (aml->overflow)
        return;
    size_t size = aml->length - size_at - 2;
    aml->bytes[size_at] = (uint8_t)size;
    aml->bytes[size_at + 1] = (uint8_t)(size >> 8);
    aml_close(aml, mark);
}

/* ---- Data ---- */

void aml_name(struct aml *aml, const char *name) {
    aml_byte(aml, OP_NAME);
    aml_path(aml, name);
}

void aml_integer(struct aml *aml, uint64_t value) {
    if (value <= 1) {
        aml_byte(aml, value ? OP_ONE : OP_ZERO);
    } else if (value <= UINT8_MAX) {
        aml_byte(aml, OP_BYTE);
        aml_byte(aml, (uint8_t)value);
    } else if (value <= UINT16_MAX) {
        aml_byte(aml, OP_WORD);
        aml_word(aml, (uint16_t)value);
    } else if (value <= UINT32_MAX) {
        aml_byte(aml, OP_DWORD);
        aml_dword(aml, (uint32_t)value);
    } else {
        aml_byte(aml, OP_QWORD);
        aml_qword(aml, value);
    }
}

void aml_string(struct aml *aml, const char *text) {
    aml_byte(aml, OP_STRING);
    aml_bytes(aml, text, strlen(text) + 1);
}

static unsigned hex_digit(char c) {
    return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Three letters of five bits and four hexadecimal digits, big-endian (ACPI 19.3.4). */
void aml_eisa_id(struct aml *aml, const char *id) {
    unsigned letters = (id[0] & 31u) << 10 | (id[1] & 31u) << 5 | (id[2] & 31u);
    aml_byte(aml, OP_DWORD);
    aml_byte(aml, (uint8_t)(letters >> 8));
    aml_byte(aml, (uint8_t)letters);
    aml_byte(aml, (uint8_t)(hex_digit(id[3]) << 4 | hex_digit(id[4])));
    aml_byte(aml, (uint8_t)(hex_digit(id[5]) << 4 | hex_digit(id[6])));
}

void aml_buffer(struct aml *aml, const void *bytes, uint8_t length) {
    size_t mark = open_block(aml, OP_BUFFER);
    aml_byte(aml, OP_BYTE);
    aml_byte(aml, length);
    aml_bytes(aml, bytes, length);
    aml_close(aml, mark);
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value) {
    aml_name(aml, name);
    aml_integer(aml, value);
}

void aml_name_string(struct aml *aml, const char *name, const char *text) {
    aml_name(aml, name);
    aml_string(aml, text);
}

void aml_name_eisa_id(struct aml *aml, const char *name, const char *id) {
    aml_name(aml, name);
    aml_eisa_id(aml, id);
}

/* ---- Resource descriptors (ACPI 6.4.2, 6.4.3) ---- */

void aml_io(struct aml *aml, uint16_t base, uint8_t length) {
    aml_byte(aml, 0x47);
    aml_byte(aml, 1); /* decodes 16 bits */
    aml_word(aml, base);
    aml_word(aml, base);
    aml_byte(aml, 1);
    aml_byte(aml, length);
}

void aml_irq(struct aml *aml, unsigned irq) {
    aml_byte(aml, 0x22);
    aml_word(aml, (uint16_t)(1u << irq));
}

void aml_memory32(struct aml *aml, uint32_t base, uint32_t length) {
    aml_byte(aml, 0x86);
    aml_word(aml, 9);
    aml_byte(aml, 1); /* read and write */
    aml_dword(aml, base);
    aml_dword(aml, length);
}

/* An address space descriptor of `size`-byte numbers. */
static void window(struct aml *aml, uint8_t tag, unsigned size, uint8_t type, uint8_t flags,
                   uint64_t first, uint64_t last) {
    const uint64_t numbers[] = {0 /* granularity */, first, last, 0 /* offset */, last - first + 1};
    aml_byte(aml, tag);
    aml_word(aml, (uint16_t)(3 + 5 * size));
    aml_byte(aml, type);
    aml_byte(aml, RESOURCE_FIXED);
    aml_byte(aml, flags);
    for (unsigned i = 0; i < 5; i++)
        little_endian(aml, numbers[i], size);
}

void aml_window_bus(struct aml *aml, uint16_t first, uint16_t last) {
    window(aml, 0x88, 2, RESOURCE_BUS, 0, first, last);
}

void aml_window_io(struct aml *aml, uint16_t first, uint16_t last) {
    window(aml, 0x88, 2, RESOURCE_IO, RESOURCE_IO_ALL, first, last);
}

void aml_window_memory32(struct aml *aml, uint32_t first, uint32_t last) {
    window(aml, 0x87, 4, RESOURCE_MEMORY, RESOURCE_WRITABLE, first, last);
}

void aml_window_memory64(struct aml *aml, uint64_t first, uint64_t last) {
    window(aml, 0x8a, 8, RESOURCE_MEMORY, RESOURCE_WRITABLE, first, last);
}
