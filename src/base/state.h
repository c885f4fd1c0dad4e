/*
 * State tables: a device's (or vCPU's) state is declared once, as a table of
 * fields. Reset, saving, loading and inspection all derive from that table;
 * nothing is saved by a second list kept by hand.
 *
 *     static const struct state_field serial_fields[] = {
 *         STATE_FIELD(struct serial, ier, 1),
 *         STATE_FIELD(struct serial, lcr, 1, .reset = 0x03),
 *         STATE_ARRAY(struct serial, fifo, 1),
 *     };
 *     static const struct state_table serial_state =
 *         STATE_TABLE("serial", 1, struct serial, serial_fields);
 *
 * Saved form: little-endian, self-describing by name (tag, name, element
 * size, count, data), so that an older file loads into a newer table (fields
 * with a later `since` keep their reset value) and a field that the reader
 * does not know is a clear refusal (-ENOTSUP), never a guess.
 *
 * Pure functions on the caller's object; the caller holds its lock.
 */
#ifndef LODGE_BASE_STATE_H
#define LODGE_BASE_STATE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/bytes.h"
#include "base/error.h"

struct state_table;

struct state_field {
    const char *name;
    uint32_t offset;                  /* in the object */
    uint32_t size;                    /* of one element: 1, 2, 4, 8; or a nested object's size */
    uint32_t count;                   /* elements; 1 for a scalar */
    uint16_t since;                   /* the table version that brought it */
    uint64_t reset;                   /* every element's value after reset (integers only) */
    const struct state_table *nested; /* elements are objects of this table */
    uint8_t keep;                     /* true: reset leaves it alone (contents of flash, say) */
    uint8_t boolean; /* elements are bool: loading refuses other values than 0 and 1 */
    /* The member is a pointer to the elements, and how many there are is a size_t of the object, at
     * count_at: fixed by what it was made with, so that saved ones of another count are refused. */
    uint8_t elsewhere;
    uint32_t count_at;
};

struct state_table {
    const char *name;
    uint16_t version; /* the highest `since` */
    uint32_t count;
    const struct state_field *fields;
    /* Optional: check and rebuild what derives from the loaded fields. -EINVAL refuses the state.
     */
    int (*after_load)(void *object, struct error *err);
    /* Optional: bring the fields up to date (a lazily kept counter) before they are read. */
    void (*before_save)(void *object);
};

#define STATE_IS_BOOL(lvalue) __builtin_types_compatible_p(__typeof__(lvalue), _Bool)
#define STATE_FIELD(type, member, version, ...)                                                    \
    {                                                                                              \
        .name = #member, .offset = offsetof(type, member), .size = sizeof(((type *)0)->member),    \
        .count = 1, .since = (version), .boolean = STATE_IS_BOOL(((type *)0)->member),             \
        ##__VA_ARGS__                                                                              \
    }
#define STATE_ARRAY(type, member, version, ...)                                                    \
    {                                                                                              \
        .name = #member, .offset = offsetof(type, member), .size = sizeof(((type *)0)->member[0]), \
        .count = ARRAY_SIZE(((type *)0)->member), .since = (version),                              \
        .boolean = STATE_IS_BOOL(((type *)0)->member[0]), ##__VA_ARGS__                            \
    }
#define STATE_NESTED(type, member, table, version)                                                 \
    {                                                                                              \
        .name = #member, .offset = offsetof(type, member), .size = sizeof(((type *)0)->member),    \
        .count = 1, .since = (version), .nested = (table)                                          \
    }
#define STATE_NESTED_ARRAY(type, member, table, version)                                           \
    {                                                                                              \
        .name = #member, .offset = offsetof(type, member), .size = sizeof(((type *)0)->member[0]), \
        .count = ARRAY_SIZE(((type *)0)->member), .since = (version), .nested = (table)            \
    }
/* member points to as many bytes as the size_t length_member says; reset leaves them alone. */
#define STATE_BYTES(type, member, length_member, version)                                          \
    {                                                                                              \
        .name = #member, .offset = offsetof(type, member), .size = 1,                              \
        .count_at = offsetof(type, length_member), .since = (version), .keep = true,               \
        .elsewhere = true                                                                          \
    }
#define STATE_TABLE(table_name, table_version, type, table_fields, ...)                            \
    {                                                                                              \
        .name = (table_name), .version = (table_version), .count = ARRAY_SIZE(table_fields),       \
        .fields = (table_fields), ##__VA_ARGS__                                                    \
    }

/* Gives every field its reset value. */
void state_reset(const struct state_table *table, void *object);

/* A growing byte buffer; zero-initialise before use. */
struct state_buffer {
    uint8_t *data;
    size_t length;
    size_t capacity;
};
void state_buffer_free(struct state_buffer *buffer);
/* -ENOMEM: the buffer is as it was. */
int state_buffer_append(struct state_buffer *out, const void *bytes, size_t length);

/* Appends the object's state to the buffer. -ENOMEM. */
int state_save(const struct state_table *table, void *object, struct state_buffer *out,
               struct error *err);

/*
 * Loads what state_save wrote. Bytes may be hostile: every length is checked
 * and nothing is allocated from them. *used says how many bytes were read.
 * On failure the object is reset.
 */
int state_load(const struct state_table *table, void *object, const uint8_t *data, size_t length,
               size_t *used, struct error *err);

/* Writes the state as indented "name = value" lines. */
void state_print(const struct state_table *table, void *object, FILE *out);

#endif
