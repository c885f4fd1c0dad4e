#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/host_clock.h"
#include "base/log.h"
#include "base/uuid.h"
#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/from.h"
#include "cli/limits.h"
#include "cli/run.h"
#include "cli/volume.h"
#include "image/store.h"
#include "machine/control_names.h"
#include "machine/firmware.h"
#include "machine/machine.h"
#include "machine/vm_store.h"

enum {
    OPT_ENGINE,
    OPT_MEMORY,
    OPT_HUGE_PAGES,
    OPT_CPUS,
    OPT_KERNEL,
    OPT_INITRD,
    OPT_APPEND,
    OPT_DISK,
    OPT_USER_DEVICE,
    OPT_IMAGE,
    OPT_FROM,
    OPT_CLOUD_INIT,
    OPT_CDROM,
    OPT_VOLUME,
    OPT_FIRMWARE,
    OPT_FIRMWARE_VARS,
    OPT_NET,
    OPT_MAC,
    OPT_PUBLISH,
    OPT_CONSOLE,
    OPT_ON_REBOOT,
    OPT_ON_PANIC,
    OPT_ON_WATCHDOG,
    OPT_TIME_SCALE,
    OPT_TIME_OFFSET,
    OPT_NO_CATCH_UP,
    OPT_GENERATION_ID,
    OPT_IDLE_STATES,
    OPT_CPU,
    OPT_NAME,
    OPT_PERF_MAP,
    OPT_SANDBOX,
    OPT_VERBOSE,
    OPT_HELP,
    OPT_BOOT,
    OPT_RINGS,
    OPT_VERIFY,
};

const struct option_spec run_options[] = {
    [OPT_ENGINE] = {"engine", 0, "auto|soft|kvm", "what runs the guest's code (auto: the faster)"},
    [OPT_MEMORY] = {"memory", 'm', "SIZE[,max=SIZE]",
                    "the guest's memory (512M), and how much there may be (lodge memory)"},
    [OPT_HUGE_PAGES] = {"hugepages", 0, NULL,
                        "memory from the host's pool of huge pages, all reserved"},
    [OPT_CPUS] = {"cpus", 'c', "N[,max=M]",
                  "the guest's processors (1), and how many there may be (lodge cpus)"},
    [OPT_KERNEL] = {"kernel", 'k', "FILE", "a bzImage or ELF kernel instead of the default guest's",
                    .path = OPTION_PATH},
    [OPT_INITRD] = {"initrd", 'i', "FILE", "an initramfs instead of the default guest's",
                    .path = OPTION_PATH},
    [OPT_APPEND] = {"append", 'a', "TEXT", "more for the kernel's command line"},
    [OPT_DISK] = {"disk", 'd', "FILE[,WORD...]", "a disk: raw, lodge, qcow2 or NBD; repeatable",
                  .path = OPTION_PATH},
    [OPT_USER_DEVICE] = {"user-device", 0, "SOCKET",
                         "a device that another process serves (vfio-user); repeatable",
                         .path = OPTION_NEW_PATH},
    [OPT_IMAGE] = {"image", 0, "NAME", "an image of 'lodge image build'; as the operand IMAGE"},
    [OPT_FROM] = {"from", 0, "VM@SNAPSHOT", "go on from a kept VM's snapshot, as a VM of its own"},
    [OPT_CLOUD_INIT] = {"cloud-init", 0, "FILE", "user-data for cloud-init in the guest",
                        .path = OPTION_PATH},
    [OPT_CDROM] = {"cdrom", 0, "FILE", "a CD-ROM drive with an ISO 9660 image in it",
                   .path = OPTION_PATH},
    [OPT_VOLUME] = {"volume", 0, "HOST:GUEST[:ro]",
                    "a directory of the host that the guest shares; repeatable",
                    .path = OPTION_VOLUME},
    [OPT_FIRMWARE] = {"firmware", 0, "auto|none|ovmf|seabios|FILE",
                      "what boots the disks (auto: as the first disk's boot loader wants)",
                      .path = OPTION_PATH},
    [OPT_FIRMWARE_VARS] = {"firmware-vars", 0, "FILE", "where UEFI variables are kept",
                           .path = OPTION_NEW_PATH},
    [OPT_NET] = {"net", 0, "user|none|tap=NAME",
                 "the network: as this user, none, or a tap of the host's"},
    [OPT_MAC] = {"mac", 0, "ADDRESS", "the network device's address (02:6c:6f:64:67:65)"},
    [OPT_PUBLISH] = {"publish", 'p', "HOST:GUEST",
                     "a TCP port of the host that leads to the guest's"},
    [OPT_CONSOLE] = {"console", 0, "agent|serial",
                     "serial: the first serial port on standard input and output, no agent"},
    [OPT_ON_REBOOT] = {"on-reboot", 0, "restart|stop", "what a reboot of the guest does"},
    [OPT_ON_PANIC] = {"on-panic", 0, "stop|hold", "what a crash of the guest's kernel does"},
    [OPT_ON_WATCHDOG] = {"on-watchdog", 0, "reset|poweroff|pause|none",
                         "what is done when the guest neglects its watchdog"},
    [OPT_TIME_SCALE] = {"time-scale", 0, "X", "guest seconds in a second (1), 0.01 to 100"},
    [OPT_TIME_OFFSET] = {"time-offset", 0, "SECONDS",
                         "how far the guest's wall clock is ahead (0)"},
    [OPT_NO_CATCH_UP] = {"no-catch-up", 0, NULL, "time lost in a pause stays lost"},
    [OPT_GENERATION_ID] = {"generation-id", 0, "auto|UUID",
                           "the VM generation id that the guest sees (auto: made up)"},
    [OPT_IDLE_STATES] = {"idle-states", 0, "none|host|FILE",
                         "the processors' idle states that the guest is shown (none)",
                         .path = OPTION_PATH},
    [OPT_CPU] = {"cpu", 0, "host|x86-64-v1|x86-64-v2|x86-64-v3",
                 "what the guest is shown of the host's processor (host)"},
    [OPT_NAME] = {"name", 'n', "NAME", "what 'lodge ps' and 'lodge profile' call the VM"},
    [OPT_PERF_MAP] = {"perf-map", 0, NULL,
                      "name translated code for perf(1), in /tmp/perf-PID.map"},
    [OPT_SANDBOX] = {"sandbox", 0, "off|on",
                     "whether the VM's process gives up what it does not need of the host (off)"},
    [OPT_VERBOSE] = {"verbose", 'v', NULL, "say what runs and how long it took; twice: more"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    [OPT_BOOT] = {"boot", 0, "auto|bzimage|elf|pvh", NULL},
    [OPT_RINGS] = {"rings", 0, "split|packed", NULL},
    [OPT_VERIFY] = {"verify", 0, NULL,
                    "run soft's interpreter and translator in lock-step, stop where they differ"},
    {NULL, 0, NULL, NULL},
};

static const char *const engines[] = {"auto", "soft", "kvm", NULL};
static const char *const nets[] = {"none", "user", NULL};
static const char tap_word[] = "tap=";
static const char *const consoles[] = {"agent", "serial", NULL};
static const char *const reboots[] = {"restart", "stop", NULL};
static const char *const panics[] = {"stop", "hold", NULL};
static const char *const watchdogs[] = {"reset", "poweroff", "pause", "none", NULL};
static const char *const boots[] = {"auto", "bzimage", "elf", "pvh", NULL};
static const char *const sandboxes[] = {"off", "on", NULL};
static const char *const rings[] = {"split", "packed", NULL};
static const char *const disk_devices[] = {"virtio", "nvme", NULL};

/* A choice into an enumeration whose values are the list's indices. */
#define CHOOSE(field, option, list)                                                                \
    do {                                                                                           \
        int choice_ = parse_choice((option), value, (list), err);                                  \
        if (choice_ < 0)                                                                           \
            return choice_;                                                                        \
        (field) = choice_;                                                                         \
    } while (0)

/* N, or N,max=M. */
static int parse_cpus(struct machine_config *machine, const char *value, struct error *err) {
    char *end;
    unsigned long count = strtoul(value, &end, 10), most = 0;
    bool good = *value >= '0' && *value <= '9' && count >= 1 && count <= MACHINE_VCPUS_MAX;
    if (good && strncmp(end, ",max=", 5) == 0 && end[5] >= '0' && end[5] <= '9') {
        most = strtoul(end + 5, &end, 10);
        good = most >= count && most <= MACHINE_VCPUS_MAX;
    }
    if (!good || *end != 0)
        return error_set(err, -EINVAL,
                         "--cpus: '%.40s' is no number from 1 to %d, nor one with ',max=' and "
                         "another, not smaller",
                         value, MACHINE_VCPUS_MAX);
    machine->vcpus = (unsigned)count;
    machine->vcpus_max = (unsigned)most;
    return 0;
}

static int parse_net(struct machine_config *machine, const char *value, struct error *err) {
    const char *tap = value + strlen(tap_word);
    if (strncmp(value, tap_word, strlen(tap_word)) == 0 && tap[0] != 0) {
        machine->net = NET_TAP;
        machine->tap = tap;
        return 0;
    }
    int chosen = parse_choice("net", value, nets, NULL);
    if (chosen < 0)
        return error_set(err, -EINVAL, "--net is 'user', 'none' or 'tap=NAME', not '%.40s'", value);
    machine->net = (enum net_kind)chosen;
    return 0;
}

static int parse_mac(uint8_t mac[6], const char *value, struct error *err) {
    unsigned byte[6];
    int used = 0;
    bool good = strlen(value) == 17 &&
                sscanf(value, "%2x:%2x:%2x:%2x:%2x:%2x%n", &byte[0], &byte[1], &byte[2], &byte[3],
                       &byte[4], &byte[5], &used) == 6 &&
                used == 17 && (byte[0] & 1) == 0;
    if (!good)
        return error_set(err, -EINVAL,
                         "--mac: '%.40s' is no address of one device, like "
                         "02:6c:6f:64:67:65",
                         value);
    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)byte[i];
    return 0;
}

static int parse_publish(struct machine_config *machine, const char *value, struct error *err) {
    if (machine->publish_count == MACHINE_PUBLISH_MAX)
        return error_set(err, -EINVAL, "more than %d ports to publish", MACHINE_PUBLISH_MAX);
    int result = net_parse_publish(value, &machine->publish[machine->publish_count], err);
    if (result < 0)
        return result;
    machine->publish_count++;
    return 0;
}

static int add_user_device(struct machine_config *machine, const char *socket, struct error *err) {
    if (machine->user_device_count == MACHINE_USER_DEVICES_MAX)
        return error_set(err, -EINVAL, "more than %d user devices", MACHINE_USER_DEVICES_MAX);
    machine->user_devices[machine->user_device_count++] = socket;
    return 0;
}

/* One word after the path: "device=nvme", "controller=NAME", or one of the block layer's. */
static int parse_disk_word(struct disk_config *disk, const char *word, struct error *err) {
    if (strncmp(word, "controller=", 11) == 0) {
        disk->controller = word + 11;
        return 0;
    }
    if (strcmp(word, "temporary") == 0) {
        disk->temporary = true;
        return 0;
    }
    if (strncmp(word, "class=", 6) == 0) {
        int class = parse_choice("disk class", word + 6, qos_class_names, err);
        disk->qos.class = (enum qos_class) class;
        return class < 0 ? class : 0;
    }
    if (strncmp(word, "device=", 7) != 0) {
        int result = parse_limit(&disk->qos.limits, word, NULL, err);
        if (result == -ENOENT)
            result = parse_on_full(&disk->errors_when_full, word, err);
        if (result == -ENOENT)
            result = block_option_parse(&disk->options, word, err);
        if (result == -ENOENT)
            return error_set(
                err, -EINVAL,
                "--disk: unknown word '%.40s'; there are readonly, temporary, format=, "
                "cache=, snapshot=, class=, iops=, bps= (also read- and write-), burst=, "
                "on-full=, device= and controller=",
                word);
        return result == 0 ? 0 : error_prefix(err, "--disk");
    }
    int device = parse_choice("disk device", word + 7, disk_devices, err);
    disk->device = (enum disk_device)device;
    return device < 0 ? device : 0;
}

/* Cuts value at its commas: the path stays in place. */
static int parse_disk(struct machine_config *machine, char *value, struct error *err) {
    struct disk_config disk = {.device = DISK_VIRTIO, .qos.class = QOS_MEDIUM};
    char *save = NULL;
    int result = 0;
    if (machine->disk_count == MACHINE_DISKS_MAX)
        return error_set(err, -EINVAL, "more than %d disks", MACHINE_DISKS_MAX);
    disk.path = strtok_r(value, ",", &save);
    if (disk.path == NULL)
        return error_set(err, -EINVAL, "--disk needs a file");
    for (char *word = strtok_r(NULL, ",", &save); word != NULL && result == 0;
         word = strtok_r(NULL, ",", &save))
        result = parse_disk_word(&disk, word, err);
    if (result == 0 && disk.controller != NULL && disk.device != DISK_NVME)
        return error_set(err, -EINVAL, "--disk: controller= is for device=nvme");
    if (result == 0 && disk.temporary && disk.options.readonly)
        return error_set(err, -EINVAL, "--disk: either readonly or temporary");
    if (result == 0)
        machine->disks[machine->disk_count++] = disk;
    return result;
}

static int parse_scale(double *scale, const char *text, struct error *err) {
    char *end;
    *scale = strtod(text, &end);
    if (end == text || *end != 0 || !(*scale >= CLOCK_SCALE_MIN && *scale <= CLOCK_SCALE_MAX))
        return error_set(err, -EINVAL, "--time-scale %.40s: a number from %g to %g", text,
                         CLOCK_SCALE_MIN, CLOCK_SCALE_MAX);
    return 0;
}

/* Half a century each way: within what an RTC can show. */
static int parse_offset(int64_t *offset, const char *text, struct error *err) {
    const long long most = 50LL * 365 * 86400;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != 0 || errno != 0 || value > most || value < -most)
        return error_set(err, -EINVAL, "--time-offset %.40s: whole seconds, half a century at most",
                         text);
    *offset = value;
    return 0;
}

static int parse_generation(struct machine_config *machine, const char *value, struct error *err) {
    uint8_t id[UUID_SIZE];
    bool made_up = strcmp(value, "auto") == 0;
    if (!made_up && !uuid_parse(value, id))
        return error_set(err, -EINVAL, "--generation-id %.40s: auto or a UUID", value);
    machine->generation_id = made_up ? NULL : value;
    return 0;
}

/* Whole MiB, where it is one. */
static int parse_amount(const char *text, uint64_t *size, struct error *err) {
    int result = parse_size(text, size, err);
    if (result < 0)
        return error_prefix(err, "--memory");
    if (*size >= MIB(1))
        *size = round_down(*size, MIB(1));
    return machine_check_memory(*size, err);
}

/* SIZE, or SIZE,max=SIZE. */
static int parse_memory(struct machine_config *machine, const char *value, struct error *err) {
    char size[32];
    const char *comma = strchr(value, ',');
    machine->memory_max = 0;
    if (comma == NULL)
        return parse_amount(value, &machine->memory, err);
    if (strncmp(comma, ",max=", 5) != 0 || comma - value >= (ptrdiff_t)sizeof size)
        return error_set(err, -EINVAL, "--memory '%.40s': a size, or two like 1G,max=4G", value);
    snprintf(size, sizeof size, "%.*s", (int)(comma - value), value);
    int result = parse_amount(size, &machine->memory, err);
    if (result == 0)
        result = parse_amount(comma + 5, &machine->memory_max, err);
    if (result == 0 && machine->memory_max < machine->memory)
        return error_set(err, -EINVAL, "--memory '%.40s': at most less than at first", value);
    return result;
}

/* A word of the list, or else a file. */
static void parse_firmware(struct run_config *config, const char *value) {
    static const char *const words[] = {"none", "ovmf", "seabios", NULL};
    config->firmware_chosen = strcmp(value, "auto") != 0;
    config->machine.firmware = config->firmware_chosen ? FIRMWARE_FILE : FIRMWARE_NONE;
    config->machine.firmware_file = value;
    for (int i = 0; words[i] != NULL; i++)
        if (strcmp(value, words[i]) == 0)
            config->machine.firmware = (enum firmware_kind)i;
}

/* What the first disk's boot loader is for, or else the CD's. */
static enum firmware_kind find_loader(const struct machine_config *machine) {
    enum firmware_kind kind = FIRMWARE_NONE;
    if (machine->disk_count > 0)
        kind = firmware_detect(machine->disks[0].path, &machine->disks[0].options);
    if (kind == FIRMWARE_NONE && machine->cdrom != NULL)
        kind = firmware_detect(machine->cdrom, &(struct block_options){.format = BLOCK_FORMAT_RAW});
    return kind;
}

/*
 * An image has an agent, however it is booted. A disk or CD with a boot loader is booted when
 * nothing was said of a kernel or a command for the default guest. There is no agent to expect
 * there, unless a command is to be run by it.
 */
static void choose_firmware(struct run_config *config) {
    struct machine_config *machine = &config->machine;
    if (config->image != NULL) {
        /* For one run its kernel is known; a VM that lasts may have put another on its disk. */
        if (!config->firmware_chosen && config->lasts && machine->kernel == NULL)
            machine->firmware = FIRMWARE_OVMF;
        return;
    }
    if (!config->firmware_chosen && machine->kernel == NULL && machine->initrd == NULL &&
        config->append == NULL && config->command == NULL &&
        !(config->console_chosen && config->console == CONSOLE_AGENT))
        machine->firmware = find_loader(machine);
    if (machine->firmware != FIRMWARE_NONE && !config->console_chosen && config->command == NULL)
        config->console = CONSOLE_SERIAL;
}

int run_take_option(struct run_config *config, int option, char *value, struct error *err) {
    struct machine_config *machine = &config->machine;
    switch (option) {
    case OPT_ENGINE: CHOOSE(machine->engine, "engine", engines); break;
    case OPT_MEMORY: return parse_memory(machine, value, err);
    case OPT_HUGE_PAGES: machine->huge_pages = true; break;
    case OPT_CPUS: return parse_cpus(machine, value, err);
    case OPT_KERNEL: machine->kernel = value; break;
    case OPT_INITRD: machine->initrd = value; break;
    case OPT_APPEND: config->append = value; break;
    case OPT_DISK: return parse_disk(machine, value, err);
    case OPT_USER_DEVICE: return add_user_device(machine, value, err);
    case OPT_IMAGE: config->image = value; return image_name_check(value, err);
    case OPT_FROM: config->from = value; break;
    case OPT_CLOUD_INIT: config->cloud_init = value; break;
    case OPT_CDROM: machine->cdrom = value; break;
    case OPT_VOLUME: return volume_add(machine, value, err);
    case OPT_FIRMWARE: parse_firmware(config, value); break;
    case OPT_FIRMWARE_VARS: machine->firmware_variables = value; break;
    case OPT_NET: return parse_net(machine, value, err);
    case OPT_MAC: return parse_mac(machine->mac, value, err);
    case OPT_PUBLISH: return parse_publish(machine, value, err);
    case OPT_CONSOLE:
        CHOOSE(config->console, "console", consoles);
        config->console_chosen = true;
        break;
    case OPT_ON_REBOOT: CHOOSE(machine->on_reboot, "on-reboot", reboots); break;
    case OPT_ON_PANIC: CHOOSE(machine->on_panic, "on-panic", panics); break;
    case OPT_ON_WATCHDOG: CHOOSE(machine->on_watchdog, "on-watchdog", watchdogs); break;
    case OPT_TIME_SCALE: return parse_scale(&machine->time_scale, value, err);
    case OPT_TIME_OFFSET: return parse_offset(&machine->time_offset, value, err);
    case OPT_NO_CATCH_UP: machine->no_catch_up = true; break;
    case OPT_GENERATION_ID: return parse_generation(machine, value, err);
    case OPT_IDLE_STATES: machine->idle_states = strcmp(value, "none") != 0 ? value : NULL; break;
    case OPT_CPU: CHOOSE(machine->cpu, "cpu", cpu_baselines); break;
    case OPT_NAME: config->name = value; return vm_name_check(value, err);
    case OPT_PERF_MAP: config->perf_map = true; break;
    case OPT_SANDBOX: CHOOSE(config->sandbox, "sandbox", sandboxes); break;
    case OPT_VERBOSE: config->verbose++; break;
    case OPT_BOOT: CHOOSE(machine->boot, "boot", boots); break;
    case OPT_RINGS: CHOOSE(machine->packed_rings, "rings", rings); break;
    case OPT_VERIFY: machine->verify = true; break;
    case OPT_HELP: break;
    }
    return 0;
}

static int help(void) {
    puts("usage: lodge run [OPTIONS] [IMAGE] [-- CMD [ARGS]]\n\n"
         "Boots a guest and runs CMD in it, whose exit code becomes lodge's; without CMD a\n"
         "shell. IMAGE is one of 'lodge image ls': 'debian' is made on first use; what the guest\n"
         "writes to its disk ends with the run. Without IMAGE, --kernel and --initrd the guest\n"
         "is a small one, put together from Debian's packages on first use. A disk that has a\n"
         "boot loader is booted by firmware when there is no CMD. Options:");
    option_help(run_options);
    puts("\nlodge-run(1) explains them, and the exit codes.");
    return EXIT_OK;
}

/* What does not go together. */
int run_check(struct run_config *config, struct error *err) {
    struct machine_config *machine = &config->machine;
    choose_firmware(config);
    if (machine->huge_pages && machine->user_device_count > 0)
        return error_set(err, -EINVAL,
                         "--hugepages are not shared with other processes; leave out "
                         "--user-device");
    if (machine->verify && machine->user_device_count > 0)
        return error_set(err, -EINVAL,
                         "--verify cannot keep another process from writing to the guest's memory; "
                         "leave out --user-device");
    if (config->console == CONSOLE_SERIAL && config->command != NULL)
        return error_set(err, -EINVAL,
                         "--console serial has no agent that could run a command; "
                         "leave out one of the two");
    if (machine->verify && machine->engine == ENGINE_KVM)
        return error_set(err, -EINVAL, "--verify is about the soft engine; leave out --engine kvm");
    if (machine->firmware != FIRMWARE_NONE &&
        (machine->kernel != NULL || machine->initrd != NULL || config->append != NULL))
        return error_set(err, -EINVAL,
                         "--firmware takes the kernel from a disk; leave out --kernel, --initrd "
                         "and --append, or use --firmware none");
    if (config->image != NULL && (machine->kernel != NULL || machine->initrd != NULL))
        return error_set(err, -EINVAL,
                         "the image has a kernel of its own; leave out --kernel and --initrd");
    if (machine->disk_count + (config->image != NULL) + (config->cloud_init != NULL) >
        MACHINE_DISKS_MAX)
        return error_set(err, -EINVAL,
                         "more than %d disks, with those for the image and cloud-init",
                         MACHINE_DISKS_MAX);
    if (machine->firmware == FIRMWARE_NONE && machine->firmware_variables != NULL)
        return error_set(err, -EINVAL, "--firmware-vars needs a firmware: --firmware ovmf");
    if (machine->verify && (machine->vcpus > 1 || machine->vcpus_max > 1))
        return error_set(err, -EINVAL, "--verify compares one vCPU with itself; leave out --cpus");
    if (machine->time_scale != 0 && machine->time_scale != 1 && machine->engine == ENGINE_KVM)
        return error_set(err, -EINVAL, "--time-scale is the soft engine's; leave out --engine kvm");
    if (machine->net != NET_USER && machine->publish_count > 0)
        return error_set(err, -EINVAL, "--publish is the user network's; leave out --net");
    if (machine->idle_states != NULL && machine->engine == ENGINE_KVM)
        return error_set(err, -EINVAL,
                         "--idle-states is the soft engine's; leave out --engine kvm");
    if (machine->cpu != CPU_HOST && machine->engine == ENGINE_KVM)
        return error_set(err, -EINVAL, "--cpu is the soft engine's; leave out --engine kvm");
    if (machine->verify || machine->idle_states != NULL || machine->cpu != CPU_HOST ||
        (machine->time_scale != 0 && machine->time_scale != 1))
        machine->engine = ENGINE_SOFT;
    return 0;
}

/* What is no option: an image's name, before or between them. */
static int take_image(struct run_config *config, const char *word, struct error *err) {
    if (config->image != NULL)
        return error_set(err, -EINVAL,
                         "'%.40s' is no option, and there is an image; commands come after --",
                         word);
    config->image = word;
    if (image_name_check(word, NULL) == 0)
        return 0;
    return error_set(err, -EINVAL,
                     "'%.40s' is no option; commands come after --: lodge run -- %.40s", word,
                     word);
}

/* What a VM that goes on from a snapshot can be told; all else is as the snapshot has it. */
static bool goes_with_from(int option) {
    return option == OPT_FROM || option == OPT_NAME || option == OPT_PUBLISH ||
           option == OPT_VERBOSE || option == OPT_PERF_MAP || option == OPT_SANDBOX;
}

static int check_from(const struct run_config *config, const char *other, struct error *err) {
    if (config->from == NULL || other == NULL)
        return 0;
    return error_set(err, -EINVAL, "--from: the VM is as its snapshot has it; leave out %s%s",
                     config->image == other ? "" : "--", other);
}

/* All of the command line. 1: help is wanted. */
static int parse(struct run_config *config, struct option_parser *parser, struct error *err) {
    const char *other = NULL;
    int result = 0;
    while (result == 0 && (parser->at < parser->argc || parser->letters != NULL)) {
        int option = option_next(parser, err);
        if (option == OPT_HELP)
            return 1;
        if (option == OPTION_ERROR && config->image != NULL) {
            struct error why = *err; /* perhaps the operand is no image, but a command */
            return error_set(err, -EINVAL, "%.400s; commands come after --", why.text);
        }
        if (option == OPTION_ERROR)
            return -EINVAL;
        if (option >= 0 && !goes_with_from(option))
            other = run_options[option].name;
        if (option >= 0)
            result = run_take_option(config, option, (char *)parser->value, err);
        else if (strcmp(parser->argv[parser->at - 1], "--") == 0)
            break;
        else
            result = take_image(config, parser->argv[parser->at++], err);
    }
    if (result == 0)
        result = check_from(config, config->image != NULL ? config->image : other, err);
    if (result < 0 || strcmp(parser->argv[parser->at - 1], "--") != 0)
        return result;
    if (parser->at >= parser->argc)
        return error_set(err, -EINVAL, "a command is missing after --");
    config->command = (const char *const *)(parser->argv + parser->at);
    return 0;
}

int cmd_run(int argc, char **argv) {
    struct option_parser parser = {.specs = run_options, .argc = argc, .argv = argv, .at = 1};
    struct run_config config = RUN_DEFAULTS;
    struct error err;
    config.begun_ns = host_clock_ns();
    int result = parse(&config, &parser, &err);
    if (result > 0)
        return help();
    if (result < 0 || run_check(&config, &err) < 0)
        return cli_error(EXIT_NOT_STARTED, err.text);
    if (config.name != NULL && vm_store_has(config.name)) {
        error_set(&err, -EEXIST, "'%s' is a VM that is kept: 'lodge start %s' starts it",
                  config.name, config.name);
        return cli_error(EXIT_NOT_STARTED, err.text);
    }
    if (config.verbose > 0)
        log_set_level(config.verbose > 1 ? LOG_DEBUG : LOG_INFO);
    return config.from != NULL ? from_run(&config, config.from) : run_guest(&config);
}
