/* The table of idle states, its gate, and what enters a state. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu/engine.h"
#include "device/idle_states.h"
#include "device_rig.h"
#include "machine/machine_idle.h"

enum { PORT = 0x650 };

static struct rig rig;
static struct device *device;
static unsigned rests, here;
static uint64_t late;

static void on_rest(struct vcpu *vcpu, uint64_t ns) {
    rests++;
    late = ns;
}

static const struct engine_ops ops = {.rest = on_rest};
static struct engine engine = {.ops = &ops};
static struct vcpu vcpu = {.engine = &engine};

static struct vcpu *on_vcpu(struct platform *platform, unsigned *id) {
    *id = here;
    return &vcpu;
}

static const struct idle_table three = {3, {{"C1", 1, 1000}, {"C2", 20, 500}, {"C6", 300, 100}}};
static const struct idle_table two = {2, {{"C1", 2, 0}, {"C1E", 9, 0}}};

static int setup(void **state) {
    struct idle_states_config config = {.port = PORT, .table = three};
    rig_start(&rig);
    rig.platform.vcpu = on_vcpu;
    rests = here = 0;
    assert_int_equal(
        device_create(&idle_states_class, "idle", &rig.platform, &config, &device, NULL), 0);
    return 0;
}

static int teardown(void **state) {
    device_destroy(device);
    rig_stop(&rig);
    return 0;
}

static uint32_t in(unsigned offset, unsigned size) {
    return port_read(rig.platform.ports, (uint16_t)(PORT + offset), size);
}

static void out(unsigned offset, uint32_t value) {
    port_write(rig.platform.ports, (uint16_t)(PORT + offset), value, 4);
}

/* As the guest's _CST does. */
static uint32_t read_table(unsigned cpu) {
    uint32_t count = in(IDLE_STATES_COUNT, 4), sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        out(IDLE_STATES_COUNT, i);
        sum += in(IDLE_STATES_LATENCY, 4) + in(IDLE_STATES_POWER, 4);
    }
    out(IDLE_STATES_DONE, cpu);
    return sum;
}

/* Enters a state: the latency in us that it is given. */
static uint64_t enter(unsigned cpu, unsigned state) {
    unsigned before = rests;
    here = cpu;
    assert_int_equal(in(IDLE_STATES_ENTER + state, 1), 0);
    assert_int_equal(rests, before + 1);
    return late / 1000;
}

static void the_gate(void **state) {
    struct idle_states_report report;
    assert_int_equal(enter(0, 2), 0); /* not read yet */
    assert_int_equal(read_table(0), 1 + 20 + 300 + 1600);
    assert_int_equal(enter(0, 1), 20);
    assert_int_equal(enter(0, 2), 300);
    assert_int_equal(enter(1, 2), 0); /* the other processor */
    assert_false(idle_states_set(device, &three));
    assert_int_equal(enter(0, 2), 300);

    assert_true(idle_states_set(device, &two));
    assert_int_equal(enter(0, 2), 0);
    assert_int_equal(enter(0, 1), 0);
    idle_states_look(device, &report);
    assert_int_equal(report.gated, 4);
    assert_int_equal(report.changes, 1);
    assert_false(report.read[0]);
    read_table(0);
    assert_int_equal(enter(0, 1), 9);
    assert_int_equal(enter(0, 2), 0); /* there is none any more */
    idle_states_look(device, &report);
    assert_int_equal(report.gated, 4);
    assert_true(report.read[0]);
    assert_false(report.read[1]);
}

/* The table changes while it is being read: that does not count. */
static void half_read(void **state) {
    in(IDLE_STATES_COUNT, 4);
    idle_states_set(device, &two);
    out(IDLE_STATES_DONE, 0);
    assert_int_equal(enter(0, 1), 0);
}

/* Another system has not read it, and a restored one has. */
static void life(void **state) {
    struct state_buffer saved = {0};
    struct idle_states_report report;
    size_t used;
    read_table(0);
    assert_int_equal(state_save(idle_states_class.state, device, &saved, NULL), 0);
    device_reset(device);
    assert_int_equal(enter(0, 2), 0);
    idle_states_set(device, &two);
    assert_int_equal(
        state_load(idle_states_class.state, device, saved.data, saved.length, &used, NULL), 0);
    assert_int_equal(enter(0, 2), 300);
    uint8_t *count = memmem(saved.data, saved.length, "count", 5);
    assert_non_null(count);
    for (size_t i = 0; i < 24; i++) {
        uint8_t was = count[i];
        count[i] = 0xff;
        state_load(idle_states_class.state, device, saved.data, saved.length, &used, NULL);
        idle_states_look(device, &report);
        assert_in_range(report.table.count, 1, IDLE_STATES_MAX);
        count[i] = was;
    }
    state_buffer_free(&saved);
}

/* Whatever a guest writes and reads. */
static void garbage(void **state) {
    out(IDLE_STATES_COUNT, UINT32_MAX);
    assert_int_equal(in(IDLE_STATES_LATENCY, 4), 0);
    out(IDLE_STATES_COUNT, 3);
    assert_int_equal(in(IDLE_STATES_POWER, 4), 0);
    out(IDLE_STATES_DONE, UINT32_MAX);
    out(IDLE_STATES_DONE, IDLE_STATES_CPUS);
    out(IDLE_STATES_LATENCY, 1);
    assert_int_equal(in(IDLE_STATES_COUNT, 1), 3);
    assert_int_equal(in(1, 2), 0);
    here = 1000;
    in(IDLE_STATES_ENTER, 1);
    rig.platform.vcpu = NULL;
    in(IDLE_STATES_ENTER + 1, 1);
}

/* ---- Files ---- */

static int load(const char *text, struct idle_table *table) {
    char path[] = "/tmp/lodge-idle-XXXXXX";
    struct error err = {0};
    int fd = mkstemp(path);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    int result = machine_idle_table(path, table, &err);
    unlink(path);
    return result;
}

static void files(void **state) {
    static const char *const bad[] = {
        "",
        "# none\n",
        "C1\n",
        "C1 x\n",
        "C1 1 2 3\n",
        "C1 5\nC2 5\n",
        "C1 -1\n",
        "C1 1 -5\n",
        "C1 1000001\n",
        "C1 1\nC2 99999999999999999999\n",
        "a 1\nb 2\nc 3\nd 4\ne 5\nf 6\ng 7\nh 8\n",
        "an-overlong-name-for-a-state 1\n",
    };
    struct idle_table table;
    assert_int_equal(load("# a host\nC1 1 1000\n\nC2 20  # middle\n C6\t300 7 \n", &table), 0);
    assert_int_equal(table.count, 3);
    assert_string_equal(table.states[1].name, "C2");
    assert_int_equal(table.states[2].latency_us, 300);
    assert_int_equal(table.states[0].power_mw, 1000);
    assert_int_equal(table.states[2].power_mw, 7);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        if (load(bad[i], &table) != -EINVAL)
            fail_msg("'%s' is taken", bad[i]);
    assert_int_equal(machine_idle_table("/nowhere/at/all", &table, NULL), -ENOENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_gate, setup, teardown),
        cmocka_unit_test_setup_teardown(half_read, setup, teardown),
        cmocka_unit_test_setup_teardown(life, setup, teardown),
        cmocka_unit_test_setup_teardown(garbage, setup, teardown),
        cmocka_unit_test(files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
