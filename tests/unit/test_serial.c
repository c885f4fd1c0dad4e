/* The 16550A through its ports, and the back end on file descriptors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <unistd.h>

#include "device/serial.h"
#include "platform_rig.h"

enum { PORT = 0x3f8, IER = 1, IIR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCRATCH = 7, PIN = 4 };
enum { OUT2 = 8, LOOPBACK = 16, READY = 1, EMPTY = 0x60 };

struct backend {
    struct chardev chardev;
    char output[4096];
    size_t length, room;
    unsigned resumed;
};

static struct backend backend;
static struct device *serial;

static size_t take_output(struct chardev *chardev, const uint8_t *bytes, size_t length) {
    struct backend *b = (struct backend *)chardev;
    size_t taken = length < b->room - b->length ? length : b->room - b->length;
    memcpy(b->output + b->length, bytes, taken);
    b->length += taken;
    return taken;
}

static void note_resume(struct chardev *chardev) {
    ((struct backend *)chardev)->resumed++;
}

static const struct chardev_ops ops = {take_output, note_resume};

static int setup(void **state) {
    (void)state;
    rig_start();
    backend = (struct backend){.chardev.ops = &ops, .room = sizeof backend.output};
    serial =
        rig_device(&serial_class,
                   &(struct serial_config){.port = PORT, .gsi = PIN, .chardev = &backend.chardev});
    rig_route(PIN, 0);
    outb(PORT + MCR, OUT2 | 3);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    device_destroy(serial);
    rig_stop();
    return 0;
}

static size_t type(const char *text) {
    const struct chardev *chardev = &backend.chardev;
    return chardev->front->receive(chardev->front_context, (const uint8_t *)text, strlen(text));
}

static void say(const char *text) {
    for (; *text; text++)
        outb(PORT, (uint8_t)*text);
}

/* What Linux's probe looks at. */
static void looks_like_a_16550a(void **state) {
    (void)state;
    outb(PORT + IER, 0xff);
    assert_int_equal(inb(PORT + IER), 0x0f);
    outb(PORT + IER, 0);
    outb(PORT + IIR, 1);
    assert_int_equal(inb(PORT + IIR), 0xc1);
    outb(PORT + IIR, 0x21);
    assert_int_equal(inb(PORT + IIR) & 0x20, 0);
    outb(PORT + IIR, 0);
    assert_int_equal(inb(PORT + IIR), 0x01);
    outb(PORT + SCRATCH, 0x5a);
    assert_int_equal(inb(PORT + SCRATCH), 0x5a);
    outb(PORT + LCR, 0x83);
    outb(PORT, 1);
    outb(PORT + IER, 2);
    assert_int_equal(inb(PORT), 1);
    assert_int_equal(inb(PORT + IER), 2);
    outb(PORT + LCR, 3);
    assert_int_equal(inb(PORT + IER), 0);
}

static void sends(void **state) {
    (void)state;
    assert_int_equal(inb(PORT + LSR), EMPTY);
    say("hello");
    assert_int_equal(backend.length, 5);
    assert_memory_equal(backend.output, "hello", 5);
}

static void waits_for_a_slow_back_end(void **state) {
    (void)state;
    backend.room = 3;
    outb(PORT + IIR, 1);
    say("abcdefgh");
    assert_int_equal(backend.length, 3);
    assert_int_equal(inb(PORT + LSR) & EMPTY, 0);
    backend.room = 100;
    backend.chardev.front->writable(backend.chardev.front_context);
    assert_memory_equal(backend.output, "abcdefgh", 8);
    assert_int_equal(inb(PORT + LSR) & EMPTY, EMPTY);
}

static void receives_without_losing(void **state) {
    (void)state;
    outb(PORT + IIR, 1);
    assert_int_equal(type("0123456789abcdefXYZ"), 16);
    assert_int_equal(type("X"), 0);
    for (unsigned i = 0; i < 16; i++) {
        assert_true(inb(PORT + LSR) & READY);
        assert_int_equal(inb(PORT), "0123456789abcdef"[i]);
    }
    assert_false(inb(PORT + LSR) & READY);
    assert_true(backend.resumed > 0);
    assert_int_equal(type("XYZ"), 3);
}

static void input_waits_for_a_driver(void **state) {
    (void)state;
    outb(PORT + MCR, OUT2 | 1);
    assert_int_equal(type("early"), 0);
    unsigned resumed = backend.resumed;
    outb(PORT + IIR, 7); /* as a driver does that opens the port */
    inb(PORT);
    outb(PORT + MCR, OUT2 | 3);
    assert_true(backend.resumed > resumed);
    assert_int_equal(type("early"), 5);
}

static void interrupts(void **state) {
    (void)state;
    outb(PORT + IIR, 0x81); /* FIFOs, trigger at 8 */
    outb(PORT + IER, 1);
    type("a");
    assert_int_equal(rig_interrupts(PIN), 1);
    assert_int_equal(inb(PORT + IIR), 0xcc);
    type("bcdefgh");
    assert_int_equal(inb(PORT + IIR), 0xc4);
    for (unsigned i = 0; i < 8; i++)
        inb(PORT);
    assert_int_equal(inb(PORT + IIR), 0xc1);
    outb(PORT + IER, 2);
    assert_int_equal(rig_interrupts(PIN), 1);
    assert_int_equal(inb(PORT + IIR), 0xc2);
    assert_int_equal(inb(PORT + IIR), 0xc1);
    outb(PORT, 'x');
    assert_int_equal(rig_interrupts(PIN), 1);
    outb(PORT + MCR, 0); /* without OUT2 there is no line */
    outb(PORT + IER, 3);
    type("z");
    assert_int_equal(rig_interrupts(PIN), 0);
}

static void loops_back(void **state) {
    (void)state;
    inb(PORT + MSR);
    outb(PORT + MCR, LOOPBACK | 0x0a);
    assert_int_equal(inb(PORT + MSR) & 0xf0, 0x90);
    outb(PORT, 'q');
    assert_int_equal(backend.length, 0);
    assert_int_equal(type("lost"), 0);
    assert_int_equal(inb(PORT), 'q');
    outb(PORT, '1');
    outb(PORT, '2');
    assert_int_equal(inb(PORT + LSR) & 2, 2); /* overrun without FIFOs */
    assert_int_equal(inb(PORT + LSR) & 2, 0);
    outb(PORT + MCR, 3);
    assert_int_equal(inb(PORT + MSR) & 0xf0, 0xb0);
}

static void without_a_back_end(void **state) {
    (void)state;
    struct device *other =
        rig_device(&serial_class, &(struct serial_config){.port = 0x2f8, .gsi = 3});
    outb(0x2f8, 'x');
    assert_int_equal(inb(0x2f8 + LSR), EMPTY);
    assert_int_equal(inb(0x2f8 + MSR), 0);
    device_destroy(other);
}

/* ---- File descriptors ---- */

static void stop_loop(void *context) {
    loop_stop(context);
}

static void ended(void *context) {
    loop_stop(rig.platform.loop);
    *(bool *)context = true;
}

static void descriptors_carry_both_ways(void **state) {
    (void)state;
    enum { LENGTH = 1000 };
    int in[2], out[2];
    bool over = false;
    char sent[LENGTH], got[LENGTH];
    struct chardev *chardev;
    struct loop_timer *timer;
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    struct chardev_fd_config config = {
        .in = in[0], .out = out[1], .ended = ended, .context = &over};
    assert_int_equal(chardev_fd_create(rig.platform.loop, &config, &chardev, NULL), 0);
    struct device *other = rig_device(
        &serial_class, &(struct serial_config){.port = 0x2f8, .gsi = 3, .chardev = chardev});
    assert_int_equal(
        loop_timer_create(rig.platform.loop, stop_loop, rig.platform.loop, &timer, NULL), 0);
    for (unsigned i = 0; i < LENGTH; i++)
        sent[i] = (char)('a' + i % 26);
    assert_int_equal(write(in[1], sent, LENGTH), LENGTH);
    close(in[1]);

    outb(0x2f8 + IIR, 1);
    outb(0x2f8 + MCR, 3);
    unsigned echoed = 0;
    for (unsigned turn = 0; turn < 10000 && (echoed < LENGTH || !over); turn++) {
        loop_timer_arm(timer, host_clock_ns() + 1000000);
        loop_run(rig.platform.loop);
        while (inb(0x2f8 + LSR) & READY) {
            outb(0x2f8, inb(0x2f8));
            echoed++;
        }
    }
    assert_int_equal(echoed, LENGTH);
    assert_true(over);
    device_destroy(other);
    chardev_fd_destroy(chardev);
    assert_int_equal(read(out[0], got, LENGTH), LENGTH);
    assert_memory_equal(got, sent, LENGTH);
    loop_timer_free(timer);
    close(in[0]);
    close(out[0]);
    close(out[1]);
}

static void dev_null_ends_at_once(void **state) {
    (void)state;
    bool over = false;
    struct chardev *chardev;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct chardev_fd_config config = {.in = null, .out = null, .ended = ended, .context = &over};
    assert_int_equal(chardev_fd_create(rig.platform.loop, &config, &chardev, NULL), 0);
    loop_run(rig.platform.loop);
    assert_true(over);
    assert_int_equal(chardev->ops->write(chardev, (const uint8_t *)"x", 1), 1);
    chardev_fd_destroy(chardev);
    close(null);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(looks_like_a_16550a, setup, teardown),
        cmocka_unit_test_setup_teardown(sends, setup, teardown),
        cmocka_unit_test_setup_teardown(waits_for_a_slow_back_end, setup, teardown),
        cmocka_unit_test_setup_teardown(receives_without_losing, setup, teardown),
        cmocka_unit_test_setup_teardown(input_waits_for_a_driver, setup, teardown),
        cmocka_unit_test_setup_teardown(interrupts, setup, teardown),
        cmocka_unit_test_setup_teardown(loops_back, setup, teardown),
        cmocka_unit_test_setup_teardown(without_a_back_end, setup, teardown),
        cmocka_unit_test_setup_teardown(descriptors_carry_both_ways, setup, teardown),
        cmocka_unit_test_setup_teardown(dev_null_ends_at_once, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
