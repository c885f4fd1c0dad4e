#include "machine/machine_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "device/flash.h"
#include "image/file.h"
#include "machine/private.h"
#include "machine/ram_lazy.h"

/* docs/snapshots.md: a header, sections, each a part's table, and an empty section "end". */
static const uint8_t magic[8] = "LODGEVM\n";
enum { HEADER = 16, NAME_MAX_LENGTH = 63 };
enum { SECTION_LENGTH = 0, SECTION_CRC = 8, SECTION_FIXED = 12 }; /* behind the name */

/* One walk over all parts serves saving and loading. */
struct pass {
    struct machine *machine;
    struct state_buffer *out; /* saving; NULL: loading */
    const uint8_t *data;
    size_t length, used;
    struct error *err;
};

/* ---- What the machine is ---- */

struct facts {
    uint64_t memory, memory_max;
    uint32_t vcpus, vcpus_max;
    uint32_t features[2]; /* CPUID 1, ECX and 7, EBX: what hosts differ in, as it was shown */
    uint64_t firmware;    /* bytes of its image, 0: none; it is no state, but what a reboot needs */
    uint32_t firmware_sum;
    uint32_t kvm; /* 1: its engine, which keeps local APICs in a form of its own */
};

static const struct state_field facts_fields[] = {
    STATE_FIELD(struct facts, memory, 1),       STATE_FIELD(struct facts, memory_max, 1),
    STATE_FIELD(struct facts, vcpus, 1),        STATE_FIELD(struct facts, vcpus_max, 1),
    STATE_ARRAY(struct facts, features, 1),     STATE_FIELD(struct facts, firmware, 2),
    STATE_FIELD(struct facts, firmware_sum, 2), STATE_FIELD(struct facts, kvm, 3),
};
static const struct state_table facts_state = STATE_TABLE("machine", 3, struct facts, facts_fields);

static struct facts facts_of(const struct machine *machine) {
    struct facts facts = {.memory = machine->config.memory,
                          .memory_max = machine->config.memory_max,
                          .vcpus = machine->config.vcpus,
                          .vcpus_max = machine->config.vcpus_max,
                          .kvm = strcmp(engine_name(machine->engine), "kvm") == 0};
    cpu_feature_words(cpu_baseline_shown(machine->config.cpu), facts.features);
    if (machine->firmware != NULL)
        facts.firmware = firmware_sum(machine->firmware, &facts.firmware_sum);
    return facts;
}

static int compare_facts(const struct facts *saved, const struct facts *here, struct error *err) {
    if (saved->memory != here->memory || saved->memory_max != here->memory_max)
        return error_set(err, -EINVAL, "it is of a machine with %llu MiB of memory, not %llu",
                         (unsigned long long)(saved->memory >> 20),
                         (unsigned long long)(here->memory >> 20));
    if (saved->vcpus != here->vcpus || saved->vcpus_max != here->vcpus_max)
        return error_set(err, -EINVAL, "it is of a machine with %u processors, not %u",
                         saved->vcpus, here->vcpus);
    if (saved->kvm != here->kvm)
        return error_set(err, -ENOTSUP, "it is of a machine with the %s engine, not the %s one",
                         saved->kvm ? "KVM" : "soft", here->kvm ? "KVM" : "soft");
    uint32_t differ[2]; /* older lodges saved what else the host's CPUID said, too */
    cpu_feature_words(UINT32_MAX, differ);
    if ((saved->features[0] & differ[0] & ~here->features[0]) != 0 ||
        (saved->features[1] & differ[1] & ~here->features[1]) != 0)
        return error_set(err, -ENOTSUP,
                         "this host's processor lacks features that the snapshot's had");
    if ((saved->firmware == 0) != (here->firmware == 0))
        return error_set(err, -EINVAL, "it is of a machine %s firmware",
                         saved->firmware == 0 ? "without" : "with");
    if (saved->firmware != here->firmware || saved->firmware_sum != here->firmware_sum)
        return error_set(err, -ENOTSUP, "it was started by another version of its firmware");
    return 0;
}

/* ---- Sections ---- */

static int save_part(struct pass *pass, const char *name, const struct state_table *table,
                     void *object) {
    struct state_buffer *out = pass->out;
    uint8_t head[1 + NAME_MAX_LENGTH + SECTION_FIXED] = {(uint8_t)strlen(name)};
    size_t head_length = 1 + strlen(name) + SECTION_FIXED, at = out->length;
    memcpy(head + 1, name, strlen(name));
    int result = state_buffer_append(out, head, head_length);
    if (result < 0)
        return error_set_errno(pass->err, result, "cannot save the state of %s", name);
    if (table != NULL)
        result = state_save(table, object, out, pass->err);
    if (result < 0)
        return result;
    uint8_t *fixed = out->data + at + 1 + strlen(name);
    const uint8_t *body = fixed + SECTION_FIXED;
    size_t length = out->length - at - head_length;
    store_le64(fixed + SECTION_LENGTH, length);
    store_le32(fixed + SECTION_CRC, crc32c(0, body, length));
    return 0;
}

/* One part's bytes, where they are in the file. */
struct section {
    const char *name; /* not ended by 0 */
    unsigned name_length;
    const uint8_t *body;
    size_t length;
};

static int ends_early(struct pass *pass, const char *name, unsigned length) {
    return error_set(pass->err, -EINVAL, "it ends before its part '%.*s' does", (int)length, name);
}

/* The next one, whole; `wanted` is what it ought to be, NULL: whatever it is. */
static int take_section(struct pass *pass, const char *wanted, struct section *section) {
    const uint8_t *at = pass->data + pass->used;
    size_t left = pass->length - pass->used;
    if (left < 1 || left - 1 < at[0] || left - 1 - at[0] < SECTION_FIXED)
        return wanted != NULL ? ends_early(pass, wanted, (unsigned)strlen(wanted))
                              : ends_early(pass, "end", 3);
    const uint8_t *fixed = at + 1 + at[0];
    uint64_t length = load_le64(fixed + SECTION_LENGTH);
    *section = (struct section){.name = (const char *)at + 1,
                                .name_length = at[0] < NAME_MAX_LENGTH ? at[0] : NAME_MAX_LENGTH,
                                .body = fixed + SECTION_FIXED,
                                .length = (size_t)length};
    if (wanted != NULL && (strlen(wanted) != at[0] || memcmp(at + 1, wanted, at[0]) != 0))
        return error_set(pass->err, -EINVAL,
                         "it has a part '%.*s' where this machine has '%s': it is of a machine "
                         "that is made differently",
                         (int)section->name_length, section->name, wanted);
    if (length > left - 1 - at[0] - SECTION_FIXED)
        return ends_early(pass, section->name, section->name_length);
    if (crc32c(0, section->body, section->length) != load_le32(fixed + SECTION_CRC))
        return error_set(pass->err, -EINVAL, "its part '%.*s' is damaged",
                         (int)section->name_length, section->name);
    pass->used = (size_t)(section->body - pass->data) + section->length;
    return 0;
}

static int load_part(struct pass *pass, const char *name, const struct state_table *table,
                     void *object) {
    struct section section = {0};
    size_t used = 0;
    int result = take_section(pass, name, &section);
    if (result < 0)
        return result;
    if (table != NULL)
        result = state_load(table, object, section.body, section.length, &used, pass->err);
    if (result == 0 && used != section.length)
        result = error_set(pass->err, -EINVAL, "its part '%s' is longer than it ought to be", name);
    return result < 0 && table != NULL ? error_prefix(pass->err, "%s", name) : result;
}

static int part(struct pass *pass, const char *name, const struct state_table *table,
                void *object) {
    return pass->out != NULL ? save_part(pass, name, table, object)
                             : load_part(pass, name, table, object);
}

/* ---- The walk ---- */

static int walk_facts(struct pass *pass) {
    struct facts here = facts_of(pass->machine), facts = here;
    int result = part(pass, "machine", &facts_state, &facts);
    return result == 0 ? compare_facts(&facts, &here, pass->err) : result;
}

static int walk_clock(struct pass *pass) {
    struct vm_clock *clock = pass->machine->platform.clock;
    struct vm_clock_state state;
    vm_clock_get_state(clock, &state);
    int result = part(pass, "clock", &vm_clock_state_table, &state);
    if (result == 0 && pass->out == NULL)
        result = vm_clock_set_state(clock, &state, pass->err);
    return result;
}

/* Of an engine that has the local APICs. */
static int walk_own(struct pass *pass, struct vcpu *vcpu, unsigned id) {
    void *object;
    char name[32];
    snprintf(name, sizeof name, "own%u", id);
    const struct state_table *table = vcpu_own_state(vcpu, &object, pass->err);
    int result = table != NULL ? part(pass, name, table, object) : -ENOTSUP;
    return result == 0 && pass->out == NULL ? vcpu_set_own_state(vcpu, pass->err) : result;
}

/* The processor first: setting CR8 leaves less of the task priority than the local APIC has. */
static int walk_vcpu(struct pass *pass, unsigned id) {
    struct vcpu *vcpu = pass->machine->vcpus[id].vcpu;
    struct lapic *lapic = irqchip_lapic(pass->machine->platform.irqchip, id);
    struct x86_state state;
    char name[32];
    vcpu_get_state(vcpu, &state);
    snprintf(name, sizeof name, "vcpu%u", id);
    int result = part(pass, name, &x86_state_table, &state);
    if (result == 0 && pass->out == NULL)
        result = vcpu_set_state(vcpu, &state, pass->err);
    if (result == 0 && lapic == NULL)
        return walk_own(pass, vcpu, id);
    snprintf(name, sizeof name, "lapic%u", id);
    return result == 0 ? part(pass, name, lapic_state(), lapic) : result;
}

static int walk_pci(struct pass *pass) {
    struct pci_bus *bus = pass->machine->platform.pci;
    struct pci_function *function = NULL;
    int result = part(pass, "pci", pci_bus_state(), bus);
    while (result == 0 && (function = pci_bus_next(bus, function)) != NULL) {
        const uint8_t *config = pci_config_bytes(function);
        char name[32];
        snprintf(name, sizeof name, "pci %02x %04x:%04x", pci_function_slot(function),
                 load_le16(config), load_le16(config + 2));
        result = part(pass, name, pci_function_state(), function);
    }
    return result;
}

/* Whether the next part is another one: it is of a lodge that did not have this device. */
static bool lacks(const struct pass *pass, const struct device *device) {
    const uint8_t *at = pass->data + pass->used;
    size_t left = pass->length - pass->used, length = strlen(device->name);
    return device->class->later && left >= 1 && left - 1 >= at[0] &&
           (at[0] != length || memcmp(at + 1, device->name, length) != 0);
}

static int walk_devices(struct pass *pass) {
    int result = 0;
    for (struct device *device = pass->machine->devices; device != NULL && result == 0;
         device = device->next) {
        if (device->class->state == NULL)
            continue;
        lock_take(&device->lock);
        if (pass->out != NULL)
            result = part(pass, device->name, device->class->state, device);
        lock_release(&device->lock);
        if (pass->out == NULL &&
            !lacks(pass, device)) /* what follows from a state may take the lock */
            result = part(pass, device->name, device->class->state, device);
    }
    return result;
}

/*
 * In this order since loading a part may raise what an earlier one takes: devices look at the
 * clock, drive wires, and reach local APICs.
 */
static int walk(struct pass *pass) {
    void *chip;
    const struct state_table *chip_state = irqchip_state(pass->machine->platform.irqchip, &chip);
    int result = walk_facts(pass);
    if (result == 0)
        result = walk_clock(pass);
    for (unsigned i = 0; i < pass->machine->config.vcpus && result == 0; i++)
        result = walk_vcpu(pass, i);
    if (result == 0)
        result = part(pass, "interrupts", chip_state, chip);
    if (result == 0)
        result = walk_pci(pass);
    if (result == 0)
        result = walk_devices(pass);
    return result == 0 ? part(pass, "end", NULL, NULL) : result;
}

int machine_save_state(struct machine *machine, struct state_buffer *out, struct error *err) {
    struct pass pass = {.machine = machine, .out = out, .err = err};
    uint8_t header[HEADER] = {0};
    memcpy(header, magic, sizeof magic);
    store_le32(header + sizeof magic, MACHINE_STATE_FORMAT);
    int result = state_buffer_append(out, header, sizeof header);
    if (result < 0)
        return error_set_errno(err, result, "cannot save the machine's state");
    return walk(&pass);
}

static int check_header(const uint8_t *data, size_t length, struct error *err) {
    if (length < HEADER || memcmp(data, magic, sizeof magic) != 0)
        return error_set(err, -EINVAL, "it is no saved state of lodge's");
    uint32_t format = load_le32(data + sizeof magic), rest = load_le32(data + 12);
    if (format != MACHINE_STATE_FORMAT || rest != 0)
        return error_set(err, -ENOTSUP, "it has format %u; this lodge knows %d", format,
                         MACHINE_STATE_FORMAT);
    return 0;
}

int machine_load_state(struct machine *machine, const uint8_t *data, size_t length,
                       struct error *err) {
    struct error why = {0};
    struct pass pass = {
        .machine = machine, .data = data, .length = length, .used = HEADER, .err = &why};
    int result = check_header(data, length, &why);
    if (result == 0)
        result = walk(&pass);
    if (result == 0 && pass.used != length)
        result = error_set(&why, -EINVAL, "there is more behind its end");
    return result < 0 ? error_set(err, result, "saved state: %s", why.text) : 0;
}

static bool is_named(const struct section *section, const char *name) {
    return section->name_length == strlen(name) &&
           memcmp(section->name, name, section->name_length) == 0;
}

/* Whether all sections are whole, and what the first one says. */
static int check_sections(const uint8_t *data, size_t length, struct facts *facts,
                          struct error *err) {
    struct error why = {0};
    struct pass pass = {.data = data, .length = length, .used = HEADER, .err = &why};
    struct section section = {0};
    int result = check_header(data, length, &why);
    if (result == 0)
        result = load_part(&pass, "machine", &facts_state, facts);
    while (result == 0 && !is_named(&section, "end"))
        result = take_section(&pass, NULL, &section);
    if (result == 0 && pass.used != length)
        result = error_set(&why, -EINVAL, "there is more behind its end");
    return result < 0 ? error_set(err, result, "saved state: %s", why.text) : 0;
}

/* ---- From files ---- */

static int read_state(const char *directory, struct file_bytes *bytes, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, "state", err);
    if (result == 0)
        result = file_read(path, bytes, err);
    if (result == 0 && bytes->length > MACHINE_STATE_MAX)
        result = error_set(err, -EINVAL, "%s is too long for a saved state", path);
    return result;
}

static uint64_t image_pages(const struct machine *machine) {
    return memory_image_size(machine->platform.memory) >> PAGE_SHIFT;
}

/* Which image the guest was started by: its state tells, or NULL, of a machine without. */
static int check_firmware(const char *directory, const struct facts *facts, struct error *err) {
    char path[PATH_MAX];
    struct file_bytes bytes = {0};
    if (facts->firmware == 0)
        return 0;
    int result = path_join(path, directory, "firmware", err);
    if (result == 0)
        result = file_read(path, &bytes, err);
    if (result == 0 && (bytes.length != facts->firmware ||
                        crc32c(0, bytes.data, bytes.length) != facts->firmware_sum))
        result = error_set(err, -EINVAL, "%s is damaged", path);
    file_free(&bytes);
    return result;
}

int machine_check_saved(const char *directory, uint64_t memory, bool sums, struct error *err) {
    struct file_bytes bytes = {0};
    struct facts facts = {0};
    struct ram_chain chain = {0};
    int result = read_state(directory, &bytes, err);
    if (result == 0)
        result = check_sections(bytes.data, bytes.length, &facts, err);
    file_free(&bytes);
    if (result == 0)
        result = check_firmware(directory, &facts, err);
    if (result == 0)
        result = ram_chain_open(directory, 0, &chain, err);
    if (result == 0 && chain.layer[0].map.pages.count < memory >> PAGE_SHIFT)
        result = error_set(err, -EINVAL, "%s/ram has less memory than the VM's %llu MiB", directory,
                           (unsigned long long)(memory >> 20));
    if (result == 0 && sums)
        result = ram_chain_check(&chain, err);
    ram_chain_close(&chain);
    return result;
}

int machine_read_saved_flash(const char *directory, uint8_t *contents, size_t size,
                             struct error *err) {
    struct file_bytes bytes = {0};
    struct section section = {0};
    int result = read_state(directory, &bytes, err);
    if (result == 0)
        result = check_header(bytes.data, bytes.length, err);
    struct pass pass = {.data = bytes.data, .length = bytes.length, .used = HEADER, .err = err};
    while (result == 0 && !is_named(&section, "end") && !is_named(&section, FIRMWARE_FLASH))
        result = take_section(&pass, NULL, &section);
    bool found = result == 0 && is_named(&section, FIRMWARE_FLASH);
    if (found)
        result = flash_read_saved(section.body, section.length, contents, size, err);
    file_free(&bytes);
    return result == 0 ? found : result;
}

static int take_firmware(struct machine *machine, const char *directory, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, "firmware", err);
    return result == 0 ? firmware_take(machine->firmware, machine->platform.memory, path, err)
                       : result;
}

/*
 * Of a snapshot that is compressed from the bottom up, pages come when they are touched; where the
 * host does not let this user be told of touches, all are unpacked before. One that only its latest
 * changes are compressed of is mostly a file, which is mapped.
 */
static int go_on_from(struct machine *machine, struct ram_chain *chain, struct error *err) {
    bool kernel = strcmp(engine_name(machine->engine), "soft") != 0;
    int result = -EPERM;
    if (chain->layer[chain->count - 1].packed)
        result = ram_lazy_begin(chain, machine->platform.memory, kernel, &machine->lazy, err);
    return result == -EPERM || result == -ENOSYS
               ? ram_chain_map(chain, machine->platform.memory, err)
               : result;
}

/* Memory comes last: loading devices' state may plug some in, which clears it. */
int machine_restore(struct machine *machine, const char *directory, struct error *err) {
    struct file_bytes bytes = {0};
    struct ram_chain chain = {0};
    int result = machine->firmware != NULL ? take_firmware(machine, directory, err) : 0;
    if (result == 0)
        result = read_state(directory, &bytes, err);
    if (result == 0)
        result = machine_load_state(machine, bytes.data, bytes.length, err);
    file_free(&bytes);
    if (result == 0)
        result = ram_chain_open(directory, image_pages(machine), &chain, err);
    if (result == 0)
        result = go_on_from(machine, &chain, err);
    ram_chain_close(&chain);
    return result;
}
