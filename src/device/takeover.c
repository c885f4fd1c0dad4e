#include "device/takeover.h"

#include "base/pool.h"
#include "isolation/takeover.h"

#ifdef LODGE_DEBUG

struct takeover {
    struct device device;
    struct port_range *ports;
    struct pool *pools[2];
    struct pool_job jobs[2];
};

static void work(void *context, struct pool_job *job) {
    struct takeover *takeover = context;
    takeover_try_all(job == &takeover->jobs[0] ? "io" : "other");
}

static uint64_t takeover_read(void *context, uint64_t offset, unsigned size) {
    (void)context, (void)offset, (void)size;
    return 0xff;
}

/* What other threads do is waited for, so that the guest may be gone afterwards. */
static void takeover_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct takeover *takeover = context;
    unsigned pool = value == TAKEOVER_IO ? 0 : 1;
    (void)offset, (void)size;
    if (value == TAKEOVER_VCPU)
        takeover_try_all("vcpu");
    else if (value == TAKEOVER_EXECUTE)
        takeover_execute();
    else if ((value == TAKEOVER_IO || value == TAKEOVER_OTHER) &&
             pool_submit(takeover->pools[pool], &takeover->jobs[pool]) == 0)
        pool_drain(takeover->pools[pool]);
}

static const struct io_ops takeover_ops = {takeover_read, takeover_write};

static int takeover_init(struct device *device, const void *config, struct error *err) {
    struct takeover *takeover = (struct takeover *)device;
    (void)config;
    int result = pool_create(THREAD_IO, 1, work, takeover, &takeover->pools[0], err);
    if (result == 0)
        result = pool_create(THREAD_OTHER, 1, work, takeover, &takeover->pools[1], err);
    return result == 0 ? ports_add(device->platform->ports, device->name, TAKEOVER_PORT, 1,
                                   &takeover_ops, takeover, &takeover->ports, err)
                       : result;
}

static void takeover_destroy(struct device *device) {
    struct takeover *takeover = (struct takeover *)device;
    ports_remove(takeover->ports);
    for (unsigned i = 0; i < ARRAY_SIZE(takeover->pools); i++)
        if (takeover->pools[i] != NULL)
            pool_destroy(takeover->pools[i]);
}

const struct device_class takeover_class = {
    .name = "takeover",
    .size = sizeof(struct takeover),
    .init = takeover_init,
    .destroy = takeover_destroy,
};

#endif
