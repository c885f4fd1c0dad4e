#include "cli/device.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "block/disk/disk.h"
#include "block/hold.h"
#include "vfio_user/lent.h"
#include "vfio_user/server.h"

struct function {
    const struct device_function *config;
    struct block *blocks[NVME_NAMESPACES_MAX]; /* made by hold_add, a flow below each */
    bool waits[NVME_NAMESPACES_MAX];           /* for space on the host */
    int full;                                  /* vu_model.full */
    bool write_through;
    char serial[20];
    struct vu_server *server;
};

struct service {
    struct loop *loop;
    struct qos *qos;
    struct loop_signal *signals[3];
    struct loop_timer *retry;
    struct function functions[DEVICE_FUNCTIONS_MAX];
    unsigned count, disks;
};

/* ---- The model ---- */

static int create_nvme(void *context, struct platform *platform, void *state,
                       struct device **device, struct error *err) {
    const struct function *function = context;
    struct nvme_config config = {.count = function->config->disk_count,
                                 .serial = function->serial,
                                 .late = true,
                                 .write_through = function->write_through,
                                 .journal = state};
    memcpy(config.blocks, function->blocks, sizeof config.blocks);
    int rc = device_create(&nvme_class, "nvme", platform, &config, device, err);
    if (rc == 0)
        nvme_pause(*device);
    return rc;
}

/* ---- Disks ---- */

/*
 * A disk of lodge's format keeps what it has not yet committed in memory, which a crash of this
 * process would lose though the guest goes on: there each write is made to last.
 */
static int check_format(struct function *function, const struct device_disk *disk,
                        struct error *err) {
    enum block_format format;
    int rc = block_find_format(disk->path, disk->options.format, &format, err);
    if (rc == 0 && format == BLOCK_FORMAT_LODGE && !disk->options.readonly)
        function->write_through = true;
    return rc;
}

/* ---- A host without space ---- */

static void arm(struct service *service) {
    enum { RETRY_NS = 1000000000 };
    loop_timer_arm(service->retry, host_clock_ns() + RETRY_NS);
}

/* Requests of a disk are kept. */
static void tell_full(struct service *service, struct function *function, unsigned n) {
    uint64_t one = 1;
    if (!function->waits[n])
        log_warning("no space left on the host for %s: it waits, and tries every second; make room",
                    function->config->disks[n].path);
    function->waits[n] = true;
    if (write(function->full, &one, sizeof one) < 0)
        log_error("%s: cannot tell its client", function->config->socket);
    arm(service);
}

static void look(void *context) {
    struct service *service = context;
    for (unsigned i = 0; i < service->count; i++)
        for (unsigned n = 0; n < service->functions[i].config->disk_count; n++) {
            struct hold_failures failures;
            hold_take(service->functions[i].blocks[n], &failures);
            if (failures.kept > 0)
                tell_full(service, &service->functions[i], n);
        }
}

static void on_failed(void *context) {
    struct service *service = context;
    loop_post(service->loop, look, service);
}

static void retry(void *context) {
    struct service *service = context;
    for (unsigned i = 0; i < service->count; i++) {
        struct function *function = &service->functions[i];
        for (unsigned n = 0; n < function->config->disk_count; n++) {
            if (!function->waits[n])
                continue;
            if (hold_kept(function->blocks[n]) == 0) {
                function->waits[n] = false;
                log_warning("%s goes on", function->config->disks[n].path);
                continue;
            }
            hold_retry(function->blocks[n]);
            arm(service);
        }
    }
}

static int open_disk(struct service *service, struct function *function, unsigned n,
                     struct error *err) {
    const struct device_disk *disk = &function->config->disks[n];
    struct hold_config hold = {.loop = service->loop,
                               .keep = !disk->errors_when_full,
                               .told = on_failed,
                               .context = service};
    struct block *block = NULL, *flow;
    char name[16];
    snprintf(name, sizeof name, "disk%u", service->disks++);
    int rc = check_format(function, disk, err);
    if (rc == 0)
        rc = block_open(disk->path, &disk->options, &block, err);
    if (rc < 0)
        return rc;
    rc = qos_add_flow(service->qos, block, name, &disk->qos, &flow, err);
    if (rc == 0 && disk_is(block))
        disk_set_upkeep(block, qos_upkeep(flow, disk_file(block)));
    if (rc == 0)
        block = flow;
    if (rc == 0)
        rc = hold_add(block, &hold, &function->blocks[n], err);
    if (rc < 0)
        block_close(block);
    return rc;
}

static int open_function(struct service *service, const struct device_function *config,
                         struct error *err) {
    struct function *function = &service->functions[service->count];
    int rc = 0;
    function->config = config;
    function->full = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (function->full < 0)
        rc = error_set_errno(err, -errno, "cannot make an eventfd");
    snprintf(function->serial, sizeof function->serial, "lodge-%u", service->count++);
    for (unsigned i = 0; i < config->disk_count && rc == 0; i++)
        rc = open_disk(service, function, i, err);
    struct vu_model model = {
        .name = config->socket,
        .state_size = nvme_journal_size(),
        .create = create_nvme,
        .pause = nvme_pause,
        .resume = nvme_resume,
        .full = function->full,
        .context = function,
    };
    return rc == 0 ? vu_server_create(config->socket, &model, service->loop, &function->server, err)
                   : rc;
}

/* What the disks have had so far: what nothing orders is counted while somebody looks. */
static void on_question(void *context, int signal) {
    struct service *service = context;
    static struct qos_report reports[DEVICE_FUNCTIONS_MAX * NVME_NAMESPACES_MAX];
    (void)signal;
    qos_watch(service->qos);
    unsigned count = qos_report(service->qos, reports, ARRAY_SIZE(reports));
    for (unsigned i = 0; i < count; i++)
        printf("%s class=%s requests=%llu bytes=%llu waiting=%u p99-us=%.0f\n", reports[i].name,
               qos_class_names[reports[i].settings.class], (unsigned long long)reports[i].requests,
               (unsigned long long)reports[i].bytes, reports[i].waiting,
               (double)histogram_quantile_ns(&reports[i].latencies, 990) / 1e3);
    fflush(stdout);
}

/* ---- Life ---- */

static void on_signal(void *context, int signal) {
    struct service *service = context;
    (void)signal;
    loop_stop(service->loop);
}

static int set_up(struct service *service, const struct device_function *functions, unsigned count,
                  struct error *err) {
    int rc = lent_guard(err);
    if (rc == 0)
        rc = loop_create(&service->loop, err);
    if (rc == 0)
        rc = qos_create(service->loop, NULL, &service->qos, err);
    if (rc == 0)
        rc = loop_timer_create(service->loop, retry, service, &service->retry, err);
    if (rc == 0)
        rc = loop_signal_add(service->loop, SIGINT, on_signal, service, &service->signals[0], err);
    if (rc == 0)
        rc = loop_signal_add(service->loop, SIGTERM, on_signal, service, &service->signals[1], err);
    if (rc == 0)
        rc = loop_signal_add(service->loop, SIGUSR1, on_question, service, &service->signals[2],
                             err);
    for (unsigned i = 0; i < count && rc == 0; i++)
        rc = open_function(service, &functions[i], err);
    return rc;
}

static void tear_down(struct service *service) {
    for (unsigned i = 0; i < service->count; i++)
        vu_server_destroy(service->functions[i].server);
    for (unsigned i = 0; i < service->count; i++)
        for (unsigned n = 0; n < NVME_NAMESPACES_MAX; n++)
            block_close(service->functions[i].blocks[n]);
    for (unsigned i = 0; i < service->count; i++)
        if (service->functions[i].full >= 0)
            close(service->functions[i].full);
    qos_destroy(service->qos);
    if (service->retry != NULL)
        loop_timer_free(service->retry);
    if (service->loop != NULL)
        loop_destroy(service->loop);
}

int device_serve_nvme(const struct device_function *functions, unsigned count,
                      const struct block_limits *limits, struct error *err) {
    struct service service = {0};
    int rc = set_up(&service, functions, count, err);
    if (rc == 0) {
        qos_limit(service.qos, limits);
        loop_run(service.loop);
    }
    tear_down(&service);
    return rc;
}
