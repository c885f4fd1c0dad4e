/*
 * A small emitter of ACPI Machine Language (ACPI 6.4, chapter 20) and of
 * resource descriptors (chapter 6.4). Objects that contain others are opened
 * and closed; a buffer that overflows stays so and is told at the end.
 */
#ifndef LODGE_MACHINE_AML_H
#define LODGE_MACHINE_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
    uint8_t *bytes;
    size_t size;
    size_t length;
    bool overflow;
};

void aml_bytes(struct aml *aml, const void *bytes, size_t length);
void aml_byte(struct aml *aml, uint8_t value);
void aml_word(struct aml *aml, uint16_t value);
void aml_dword(struct aml *aml, uint32_t value);
void aml_qword(struct aml *aml, uint64_t value);

/* A name path: "\\_SB", "PCI0", "\\_SB.PCI0". Segments are four characters. */
void aml_path(struct aml *aml, const char *path);

/* Each answers a mark for aml_close. */
size_t aml_scope(struct aml *aml, const char *path);
size_t aml_device(struct aml *aml, const char *name);
size_t aml_package(struct aml *aml, uint8_t elements);
/* Its number of elements, an expression, follows. */
size_t aml_variable_package(struct aml *aml);
size_t aml_method(struct aml *aml, const char *name, unsigned flags); /* arguments; 8: serialized */
size_t aml_if(struct aml *aml);
size_t aml_field(struct aml *aml, const char *region, uint8_t flags); /* names and bits follow */
size_t aml_else(struct aml *aml);
size_t aml_while(struct aml *aml); /* the predicate follows */
/* A buffer object of resource descriptors: `Name (_CRS, ResourceTemplate () {` ... */
size_t aml_resources(struct aml *aml, const char *name);
void aml_close(struct aml *aml, size_t mark);
void aml_close_resources(struct aml *aml, size_t mark);

void aml_name(struct aml *aml, const char *name); /* the object follows */
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
void aml_eisa_id(struct aml *aml, const char *id);                   /* "PNP0A03" */
void aml_buffer(struct aml *aml, const void *bytes, uint8_t length); /* up to 255 bytes */

void aml_name_integer(struct aml *aml, const char *name, uint64_t value);
void aml_name_string(struct aml *aml, const char *name, const char *text);
void aml_name_eisa_id(struct aml *aml, const char *name, const char *id);

/* Resource descriptors. Ranges must not be empty. */
void aml_io(struct aml *aml, uint16_t base, uint8_t length);
void aml_irq(struct aml *aml, unsigned irq); /* edge, active high, exclusive */
void aml_memory32(struct aml *aml, uint32_t base, uint32_t length);
/* What a bridge hands on. */
void aml_window_bus(struct aml *aml, uint16_t first, uint16_t last);
void aml_window_io(struct aml *aml, uint16_t first, uint16_t last);
void aml_window_memory32(struct aml *aml, uint32_t first, uint32_t last);
void aml_window_memory64(struct aml *aml, uint64_t first, uint64_t last);

#endif
