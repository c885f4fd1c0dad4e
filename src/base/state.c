/*
 * State tables. The saved form, all little-endian:
 *
 *     table:  'T' name version(u16) fields(u16) field*
 *     field:  'F' name size(u32) count(u32) bytes[size * count]
 *          or 'N' name count(u32) table[count]
 *     name:   length(u8) bytes
 *
 * Fields come in the order of their table.
 */
#include "base/state.h"

#include <inttypes.h>
#include <stdlib.h>

enum {
    TAG_TABLE = 'T',
    TAG_FIELD = 'F',
    TAG_NESTED = 'N',
    DEPTH_MAX = 8,    /* of nested tables */
    PRINT_BYTES = 16, /* a line of an array of bytes */
    PRINT_WORDS = 4,  /* and of wider elements */
};

static uint8_t *element(const struct state_field *field, void *object, uint32_t n) {
    uint8_t *first = (uint8_t *)object + field->offset;
    if (field->elsewhere)
        first = *(uint8_t **)(void *)first;
    return first + (size_t)n * field->size;
}

static uint32_t count_of(const struct state_field *field, const void *object) {
    size_t count = field->count;
    if (field->elsewhere)
        memcpy(&count, (const uint8_t *)object + field->count_at, sizeof count);
    return (uint32_t)count;
}

/* ---- Reset ---- */

static void reset_field(const struct state_field *field, void *object) {
    for (uint32_t n = 0; n < field->count; n++) {
        uint8_t *at = element(field, object, n);
        if (field->nested != NULL) {
            state_reset(field->nested, at);
            continue;
        }
        memset(at, 0, field->size);
        store_le(at, field->reset, field->size);
    }
}

void state_reset(const struct state_table *table, void *object) {
    for (uint32_t i = 0; i < table->count; i++) {
        if (!table->fields[i].keep)
            reset_field(&table->fields[i], object);
    }
}

/* ---- Save ---- */

void state_buffer_free(struct state_buffer *buffer) {
    free(buffer->data);
    *buffer = (struct state_buffer){0};
}

int state_buffer_append(struct state_buffer *out, const void *bytes, size_t length) {
    if (length > out->capacity - out->length) {
        size_t capacity = out->capacity == 0 ? 4096 : out->capacity * 2;
        while (capacity - out->length < length)
            capacity *= 2;
        uint8_t *grown = realloc(out->data, capacity);
        if (grown == NULL)
            return -ENOMEM;
        out->data = grown;
        out->capacity = capacity;
    }
    memcpy(out->data + out->length, bytes, length);
    out->length += length;
    return 0;
}

/* The pieces of a header are few and small; whatever fails, the buffer's caller drops it all. */
static int append_header(struct state_buffer *out, uint8_t tag, const char *name) {
    uint8_t header[2 + UINT8_MAX];
    size_t length = strnlen(name, UINT8_MAX);
    header[0] = tag;
    header[1] = (uint8_t)length;
    memcpy(header + 2, name, length);
    return state_buffer_append(out, header, 2 + length);
}

static int append_u16(struct state_buffer *out, uint16_t value) {
    return state_buffer_append(out, &value, sizeof value);
}

static int append_u32(struct state_buffer *out, uint32_t value) {
    return state_buffer_append(out, &value, sizeof value);
}

static int save_table(const struct state_table *table, void *object, struct state_buffer *out);

static int save_nested(const struct state_field *field, void *object, struct state_buffer *out) {
    int rc = append_header(out, TAG_NESTED, field->name);
    if (rc == 0)
        rc = append_u32(out, field->count);
    for (uint32_t n = 0; rc == 0 && n < field->count; n++)
        rc = save_table(field->nested, element(field, object, n), out);
    return rc;
}

static int save_field(const struct state_field *field, void *object, struct state_buffer *out) {
    if (field->nested != NULL)
        return save_nested(field, object, out);
    uint32_t count = count_of(field, object);
    int rc = append_header(out, TAG_FIELD, field->name);
    if (rc == 0)
        rc = append_u32(out, field->size);
    if (rc == 0)
        rc = append_u32(out, count);
    if (rc == 0)
        rc = state_buffer_append(out, element(field, object, 0), (size_t)field->size * count);
    return rc;
}

static int save_table(const struct state_table *table, void *object, struct state_buffer *out) {
    if (table->before_save != NULL)
        table->before_save(object);
    int rc = append_header(out, TAG_TABLE, table->name);
    if (rc == 0)
        rc = append_u16(out, table->version);
    if (rc == 0)
        rc = append_u16(out, (uint16_t)table->count);
    for (uint32_t i = 0; rc == 0 && i < table->count; i++)
        rc = save_field(&table->fields[i], object, out);
    return rc;
}

int state_save(const struct state_table *table, void *object, struct state_buffer *out,
               struct error *err) {
    size_t before = out->length;
    int rc = save_table(table, object, out);
    if (rc < 0) {
        out->length = before;
        return error_set_errno(err, rc, "cannot save the state of %s", table->name);
    }
    return 0;
}

/* ---- Load ---- */

struct reader {
    const uint8_t *data;
    size_t length, used;
    struct error *err;
};

static int truncated(struct reader *in, const char *what) {
    return error_set(in->err, -EINVAL, "saved state ends in the middle of %s", what);
}

/* The next `length` bytes, or NULL when there are not as many. */
static const uint8_t *take(struct reader *in, uint64_t length) {
    if (length > in->length - in->used)
        return NULL;
    const uint8_t *at = in->data + in->used;
    in->used += (size_t)length;
    return at;
}

/* A tag and a name; the name is copied, cut to what fits. */
struct header {
    uint8_t tag;
    size_t length;
    char name[UINT8_MAX + 1];
};

static int read_header(struct reader *in, struct header *header) {
    const uint8_t *at = take(in, 2);
    if (at == NULL)
        return -EINVAL;
    header->tag = at[0];
    header->length = at[1];
    at = take(in, header->length);
    if (at == NULL)
        return -EINVAL;
    memcpy(header->name, at, header->length);
    header->name[header->length] = '\0';
    return 0;
}

static bool named(const struct header *header, const char *name) {
    return strlen(name) == header->length && memcmp(header->name, name, header->length) == 0;
}

static int load_table(const struct state_table *table, void *object, struct reader *in,
                      unsigned depth);

static int load_nested(const struct state_field *field, void *object, struct reader *in,
                       unsigned depth) {
    const uint8_t *count = take(in, 4);
    if (count == NULL)
        return truncated(in, field->name);
    if (load_le32(count) != field->count || depth == DEPTH_MAX)
        return error_set(in->err, -EINVAL, "saved field %s has another shape", field->name);
    for (uint32_t n = 0; n < field->count; n++) {
        int rc = load_table(field->nested, element(field, object, n), in, depth + 1);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static bool good_booleans(const uint8_t *bytes, uint64_t length) {
    for (uint64_t i = 0; i < length; i++) {
        if (bytes[i] > 1)
            return false;
    }
    return true;
}

static int load_plain(const struct state_field *field, void *object, struct reader *in) {
    const uint8_t *shape = take(in, 8);
    if (shape == NULL)
        return truncated(in, field->name);
    uint32_t count = count_of(field, object);
    if (load_le32(shape) != field->size || load_le32(shape + 4) != count)
        return error_set(in->err, -EINVAL, "saved field %s has another shape", field->name);
    uint64_t length = (uint64_t)field->size * count;
    const uint8_t *bytes = take(in, length);
    if (bytes == NULL)
        return truncated(in, field->name);
    if (field->boolean && !good_booleans(bytes, length))
        return error_set(in->err, -EINVAL, "saved field %s is neither true nor false", field->name);
    memcpy(element(field, object, 0), bytes, (size_t)length);
    return 0;
}

/*
 * Loads one saved field. *next is the first table field it may be: fields come
 * in order, and those that the writer's version should have had may not be
 * left out.
 */
static int load_field(const struct state_table *table, void *object, struct reader *in,
                      uint16_t version, uint32_t *next, unsigned depth) {
    struct header header;
    if (read_header(in, &header) < 0)
        return truncated(in, table->name);
    uint32_t i = *next;
    while (i < table->count && !named(&header, table->fields[i].name)) {
        if (table->fields[i].since <= version)
            break;
        i++;
    }
    if (i == table->count || !named(&header, table->fields[i].name))
        return error_set(in->err, -ENOTSUP,
                         "saved state of %s has a field %s that this lodge does not expect there",
                         table->name, header.name);
    const struct state_field *field = &table->fields[i];
    *next = i + 1;
    if (header.tag != (field->nested != NULL ? TAG_NESTED : TAG_FIELD))
        return error_set(in->err, -EINVAL, "saved field %s has another kind", field->name);
    return field->nested != NULL ? load_nested(field, object, in, depth)
                                 : load_plain(field, object, in);
}

static int load_fields(const struct state_table *table, void *object, struct reader *in,
                       uint16_t version, uint16_t fields, unsigned depth) {
    uint32_t next = 0;
    for (uint16_t n = 0; n < fields; n++) {
        int rc = load_field(table, object, in, version, &next, depth);
        if (rc < 0)
            return rc;
    }
    for (; next < table->count; next++) {
        if (table->fields[next].since <= version)
            return error_set(in->err, -EINVAL, "saved state of %s lacks its field %s", table->name,
                             table->fields[next].name);
    }
    return 0;
}

static int load_table(const struct state_table *table, void *object, struct reader *in,
                      unsigned depth) {
    struct header header;
    const uint8_t *numbers;
    if (read_header(in, &header) < 0 || (numbers = take(in, 4)) == NULL)
        return truncated(in, table->name);
    if (header.tag != TAG_TABLE || !named(&header, table->name))
        return error_set(in->err, -EINVAL, "saved state is not that of %s", table->name);
    uint16_t version = load_le16(numbers), fields = load_le16(numbers + 2);
    if (version > table->version)
        return error_set(in->err, -ENOTSUP,
                         "saved state of %s has version %u; this lodge knows up to %u", table->name,
                         version, table->version);
    state_reset(table, object);
    int rc = load_fields(table, object, in, version, fields, depth);
    if (rc == 0 && table->after_load != NULL)
        rc = table->after_load(object, in->err);
    return rc;
}

int state_load(const struct state_table *table, void *object, const uint8_t *data, size_t length,
               size_t *used, struct error *err) {
    struct reader in = {.data = data, .length = length, .err = err};
    int rc = load_table(table, object, &in, 0);
    if (rc < 0)
        state_reset(table, object);
    *used = in.used;
    return rc;
}

/* ---- Print ---- */

static void print_table(const struct state_table *table, void *object, FILE *out, int indent);

static void print_value(const struct state_field *field, const uint8_t *at, FILE *out) {
    if (field->boolean) {
        fprintf(out, "%s", *at ? "true" : "false");
    } else if (field->size <= 8) {
        fprintf(out, "%#" PRIx64, load_le(at, field->size));
    } else {
        for (uint32_t i = 0; i < field->size; i++)
            fprintf(out, "%02x", at[i]);
    }
}

static void print_plain(const struct state_field *field, void *object, FILE *out, int indent) {
    if (field->elsewhere) { /* contents of some size, which nobody reads */
        fprintf(out, "%*s%s: %" PRIu32 " bytes\n", indent, "", field->name,
                count_of(field, object));
        return;
    }
    uint32_t line = field->size == 1 ? PRINT_BYTES : PRINT_WORDS;
    for (uint32_t n = 0; n < field->count; n++) {
        if (n % line == 0 && field->count == 1)
            fprintf(out, "%*s%s =", indent, "", field->name);
        else if (n % line == 0)
            fprintf(out, "%*s%s[%" PRIu32 "] =", indent, "", field->name, n);
        fputc(' ', out);
        print_value(field, element(field, object, n), out);
        if (n % line == line - 1 || n == field->count - 1)
            fputc('\n', out);
    }
}

static void print_nested(const struct state_field *field, void *object, FILE *out, int indent) {
    for (uint32_t n = 0; n < field->count; n++) {
        if (field->count == 1)
            fprintf(out, "%*s%s:\n", indent, "", field->name);
        else
            fprintf(out, "%*s%s[%" PRIu32 "]:\n", indent, "", field->name, n);
        print_table(field->nested, element(field, object, n), out, indent + 2);
    }
}

static void print_table(const struct state_table *table, void *object, FILE *out, int indent) {
    if (table->before_save != NULL)
        table->before_save(object);
    for (uint32_t i = 0; i < table->count; i++) {
        const struct state_field *field = &table->fields[i];
        if (field->nested != NULL)
            print_nested(field, object, out, indent);
        else
            print_plain(field, object, out, indent);
    }
}

void state_print(const struct state_table *table, void *object, FILE *out) {
    fprintf(out, "%s:\n", table->name);
    print_table(table, object, out, 2);
}
