#include "machine/acpi_idle.h"

#include <stdio.h>

#include "device/idle_states.h"
#include "machine/layout.h"

enum { OP_ZERO, OP_ONE };
enum { OP_BUFFER = 0x11, OP_LOCAL0 = 0x60, OP_LOCAL1, OP_LOCAL2, OP_LOCAL3, OP_LOCAL4 };
enum { OP_ARG0 = 0x68, OP_STORE = 0x70, OP_ADD = 0x72, OP_INCREMENT = 0x75, OP_NOTIFY = 0x86 };
enum { OP_INDEX = 0x88, OP_LESS = 0x95, OP_RETURN = 0xa4, NO_TARGET = 0 };
enum { OP_EXTENDED = 0x5b, OP_EXTENDED_REGION = 0x80 };
enum { SERIALIZED = 8, SYSTEM_IO = 1, DWORD_ACCESS = 3, BITS = 32 };
enum { C1 = 1, C2 = 2, REGISTER_ADDRESS_AT = 7 };

/* Generic register descriptors (6.4.3.7) with an end tag: HLT, and a port. */
#define REGISTER(space, width, access, port)                                                       \
    { 0x82, 0x0c, 0, space, width, 0, access, (port)&0xff, (port) >> 8, 0, 0, 0, 0, 0, 0, 0x79, 0 }
static const uint8_t by_halt[] = REGISTER(0x7f, 0, 0, 0);
static const uint8_t by_port[] = REGISTER(SYSTEM_IO, 8, 1, LAYOUT_IDLE_PORT + IDLE_STATES_ENTER);
_Static_assert(((LAYOUT_IDLE_PORT + IDLE_STATES_ENTER) & 0xff) + IDLE_STATES_MAX <= 0x100,
               "state n's port differs in its low byte only");

static void registers(struct aml *aml) {
    static const char *const names[] = {"CSEL", "CLAT", "CPOW", "CDON"};
    aml_byte(aml, OP_EXTENDED);
    aml_byte(aml, OP_EXTENDED_REGION);
    aml_path(aml, "CSTR");
    aml_byte(aml, SYSTEM_IO);
    aml_integer(aml, LAYOUT_IDLE_PORT);
    aml_integer(aml, IDLE_STATES_ENTER);
    size_t field = aml_field(aml, "CSTR", DWORD_ACCESS);
    for (unsigned i = 0; i < 4; i++) {
        aml_path(aml, names[i]);
        aml_byte(aml, BITS);
    }
    aml_close(aml, field);
}

static void store(struct aml *aml, uint8_t from, uint8_t to) {
    aml_byte(aml, OP_STORE);
    aml_byte(aml, from);
    aml_byte(aml, to);
}

/* The target of a store: an element of what a local has. */
static void element(struct aml *aml, uint8_t local, unsigned index) {
    aml_byte(aml, OP_INDEX);
    aml_byte(aml, local);
    aml_integer(aml, index);
    aml_byte(aml, NO_TARGET);
}

static void add(struct aml *aml, uint8_t local, unsigned value) {
    aml_byte(aml, OP_ADD);
    aml_byte(aml, local);
    aml_integer(aml, value);
    aml_byte(aml, NO_TARGET);
}

static void store_field(struct aml *aml, const char *field, unsigned index) {
    aml_byte(aml, OP_STORE);
    aml_path(aml, field);
    element(aml, OP_LOCAL4, index);
}

/*
 * Local2 is the state, Local4 becomes what _CST has of it:
 *
 *     CSEL = Local2
 *     Local4 = Package { 0, 1, 0, 0 }
 *     Local3 = the register of HLT
 *     If (Local2) {
 *         Local3 = that of a port
 *         Local3[7] = Local2 + the first port's low byte
 *         Local4[1] = 2
 *     }
 *     Local4[0] = Local3
 *     Local4[2] = CLAT
 *     Local4[3] = CPOW
 */
static void one_state(struct aml *aml) {
    aml_byte(aml, OP_STORE);
    aml_byte(aml, OP_LOCAL2);
    aml_path(aml, "CSEL");

    aml_byte(aml, OP_STORE);
    size_t package = aml_package(aml, 4);
    aml_integer(aml, 0);
    aml_integer(aml, C1);
    aml_integer(aml, 0);
    aml_integer(aml, 0);
    aml_close(aml, package);
    aml_byte(aml, OP_LOCAL4);

    aml_byte(aml, OP_STORE);
    aml_buffer(aml, by_halt, sizeof by_halt);
    aml_byte(aml, OP_LOCAL3);
    size_t branch = aml_if(aml);
    aml_byte(aml, OP_LOCAL2);
    aml_byte(aml, OP_STORE);
    aml_buffer(aml, by_port, sizeof by_port);
    aml_byte(aml, OP_LOCAL3);
    aml_byte(aml, OP_STORE);
    add(aml, OP_LOCAL2, by_port[REGISTER_ADDRESS_AT]);
    element(aml, OP_LOCAL3, REGISTER_ADDRESS_AT);
    aml_byte(aml, OP_STORE);
    aml_integer(aml, C2);
    element(aml, OP_LOCAL4, 1);
    aml_close(aml, branch);

    aml_byte(aml, OP_STORE);
    aml_byte(aml, OP_LOCAL3);
    element(aml, OP_LOCAL4, 0);
    store_field(aml, "CLAT", 2);
    store_field(aml, "CPOW", 3);
}

/*
 *     Local0 = CSEL
 *     Local1 = Package (Local0 + 1) {}
 *     Local1[0] = Local0
 *     Local2 = 0
 *     While (Local2 < Local0) {
 *         one_state
 *         Local1[Local2 + 1] = Local4
 *         Local2++
 *     }
 *     CDON = Arg0
 *     Return (Local1)
 */
void acpi_idle_method(struct aml *aml) {
    registers(aml);
    size_t method = aml_method(aml, "CSTM", 1 | SERIALIZED);
    aml_byte(aml, OP_STORE);
    aml_path(aml, "CSEL");
    aml_byte(aml, OP_LOCAL0);
    aml_byte(aml, OP_STORE);
    size_t package = aml_variable_package(aml);
    add(aml, OP_LOCAL0, 1);
    aml_close(aml, package);
    aml_byte(aml, OP_LOCAL1);
    aml_byte(aml, OP_STORE);
    aml_byte(aml, OP_LOCAL0);
    element(aml, OP_LOCAL1, 0);
    store(aml, OP_ZERO, OP_LOCAL2);

    size_t loop = aml_while(aml);
    aml_byte(aml, OP_LESS);
    aml_byte(aml, OP_LOCAL2);
    aml_byte(aml, OP_LOCAL0);
    one_state(aml);
    aml_byte(aml, OP_STORE);
    aml_byte(aml, OP_LOCAL4);
    aml_byte(aml, OP_INDEX);
    aml_byte(aml, OP_LOCAL1);
    add(aml, OP_LOCAL2, 1);
    aml_byte(aml, NO_TARGET);
    aml_byte(aml, OP_INCREMENT);
    aml_byte(aml, OP_LOCAL2);
    aml_close(aml, loop);

    aml_byte(aml, OP_STORE);
    aml_byte(aml, OP_ARG0);
    aml_path(aml, "CDON");
    aml_byte(aml, OP_RETURN);
    aml_byte(aml, OP_LOCAL1);
    aml_close(aml, method);
}

void acpi_idle_processor(struct aml *aml, unsigned id) {
    size_t method = aml_method(aml, "_CST", 0);
    aml_byte(aml, OP_RETURN);
    aml_path(aml, "\\_SB_.CSTM");
    aml_integer(aml, id);
    aml_close(aml, method);
}

void acpi_idle_event(struct aml *aml, unsigned processors,
                     void (*name)(unsigned id, char name[8])) {
    enum { POWER_STATES_CHANGED = 0x81 };
    _Static_assert(LAYOUT_IDLE_GPE == 3, "the method's name");
    size_t method = aml_method(aml, "_E03", 0);
    for (unsigned id = 0; id < processors; id++) {
        char device[8], path[16];
        name(id, device);
        snprintf(path, sizeof path, "\\_SB_.%.4s", device);
        aml_byte(aml, OP_NOTIFY);
        aml_path(aml, path);
        aml_integer(aml, POWER_STATES_CHANGED);
    }
    aml_close(aml, method);
}
