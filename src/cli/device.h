/*
 * Functions of one NVMe device, each a controller at a socket of its own,
 * served over vfio-user. All their disks share by their classes of service.
 */
#ifndef LODGE_CLI_DEVICE_H
#define LODGE_CLI_DEVICE_H

#include "block/open.h"
#include "block/qos.h"
#include "nvme/nvme.h"

enum { DEVICE_FUNCTIONS_MAX = 16 };

struct device_disk {
    const char *path;
    struct block_options options;
    struct qos_settings qos;
    bool errors_when_full; /* instead of waiting for space on the host */
};

struct device_function {
    const char *socket;
    struct device_disk disks[NVME_NAMESPACES_MAX];
    unsigned disk_count;
};

/*
 * Serves until SIGINT or SIGTERM. limits: of all disks together. Commands that the host has no
 * space for wait and are tried again every second; standard error, and a client of lodge's, learn
 * of it.
 */
int device_serve_nvme(const struct device_function *functions, unsigned count,
                      const struct block_limits *limits, struct error *err);

#endif
