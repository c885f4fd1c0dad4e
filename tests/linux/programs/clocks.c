/*
 * All the clocks that a guest has, against its TSC. `clocks SECONDS TSC_HZ`: sleeps that long some
 * times and says how the clocks agree about it. `clocks watch FILE`: reads them all the time until
 * FILE is there; fails when one goes backwards.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <linux/rtc.h>

enum { PM_TIMER_PORT = 0x608, SLEEPS_MAX = 30 };

static const double tolerance = 0.01;

static double clock_seconds(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static uint64_t tscp(void) {
    unsigned aux;
    return __rdtscp(&aux);
}

/* ---- Sleeping ---- */

static double seconds_since(uint64_t tsc, double hz) {
    return (double)(__rdtsc() - tsc) / hz;
}

static void by_nanosleep(double seconds) {
    struct timespec wait = {.tv_sec = (time_t)seconds,
                            .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&wait, NULL);
}

static void by_timerfd(double seconds) {
    struct itimerspec wait = {
        .it_value = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)}};
    uint64_t count;
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(fd, 0, &wait, NULL);
    if (read(fd, &count, sizeof count) != sizeof count)
        exit(2);
    close(fd);
}

/* A busy host makes sleeps late, so one of them must be on time; none may be early. */
static void check_sleep(const char *name, void (*sleep_for)(double), double seconds, double hz) {
    double best = 1e9;
    for (int i = 0; i < SLEEPS_MAX && best >= tolerance; i++) {
        uint64_t tsc = __rdtsc();
        sleep_for(seconds);
        double late = seconds_since(tsc, hz) / seconds - 1;
        if (late < 0) {
            printf("FAIL %s woke early: %.3f %%\n", name, 100 * late);
            exit(1);
        }
        best = late < best ? late : best;
    }
    printf("%s %s late by %.3f %%\n", best < tolerance ? "ok" : "FAIL", name, 100 * best);
}

/* ---- Reading ---- */

static void check_span(const char *name, double span, double wanted) {
    double off = span / wanted - 1;
    printf("%s %s off by %.4f %%\n", off < tolerance && off > -tolerance ? "ok" : "FAIL", name,
           100 * off);
}

/*
 * The RTC has whole seconds: from the beginning of one to the beginning of another. A beginning is
 * known as well as the readings on its two sides are close: of some the best, or one that is good.
 */
static double rtc_edge(uint64_t *tsc, double hz) {
    enum { EDGES_MAX = 8 };
    struct rtc_time time, best = {0};
    uint64_t width = UINT64_MAX, before = 0;
    int fd = open("/dev/rtc0", O_RDONLY), last = -1;
    if (fd < 0)
        return -1;
    for (int edges = 0; edges < EDGES_MAX && (double)width > 0.02 * hz;) {
        uint64_t now = __rdtsc();
        ioctl(fd, RTC_RD_TIME, &time);
        uint64_t after = __rdtsc();
        if (last >= 0 && time.tm_sec != last) {
            edges++;
            if (after - before < width) {
                width = after - before;
                *tsc = before + width / 2;
                best = time;
            }
        }
        last = time.tm_sec;
        before = now;
    }
    close(fd);
    struct tm broken_down = {.tm_sec = best.tm_sec,
                             .tm_min = best.tm_min,
                             .tm_hour = best.tm_hour,
                             .tm_mday = best.tm_mday,
                             .tm_mon = best.tm_mon,
                             .tm_year = best.tm_year};
    return (double)timegm(&broken_down);
}

/* A clock and the TSC at one moment: of some readings the one that was least interrupted. */
struct sample {
    double seconds;
    uint64_t tsc;
};

static struct sample take_sample(clockid_t id) {
    struct sample best = {0};
    uint64_t width = UINT64_MAX;
    for (int i = 0; i < 50; i++) {
        uint64_t before = __rdtsc();
        double seconds = clock_seconds(id);
        uint64_t after = __rdtsc();
        if (after - before >= width)
            continue;
        width = after - before;
        best = (struct sample){seconds, before + width / 2};
    }
    return best;
}

static void check_samples(const char *name, struct sample first, struct sample last, double hz) {
    check_span(name, last.seconds - first.seconds, (double)(last.tsc - first.tsc) / hz);
}

static void with_clocksource(const char *name, double seconds, double hz) {
    FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "w");
    char text[80];
    if (file == NULL || fputs(name, file) < 0 || fclose(file) != 0) {
        printf("FAIL no clocksource %s\n", name);
        return;
    }
    struct sample mono = take_sample(CLOCK_MONOTONIC), real = take_sample(CLOCK_REALTIME);
    by_nanosleep(seconds);
    snprintf(text, sizeof text, "CLOCK_MONOTONIC by %s", name);
    check_samples(text, mono, take_sample(CLOCK_MONOTONIC), hz);
    snprintf(text, sizeof text, "CLOCK_REALTIME by %s", name);
    check_samples(text, real, take_sample(CLOCK_REALTIME), hz);
}

static int measure(double seconds, double hz) {
    static const char *const sources[] = {"hpet", "acpi_pm", "kvm-clock", "tsc"};
    uint64_t tsc_first = 0, tsc_last = 0;
    bool slow = seconds < 0.1; /* a second of such a guest is too long to wait for */
    double first = slow ? 0 : rtc_edge(&tsc_first, hz);
    for (unsigned i = 0; i < sizeof sources / sizeof sources[0]; i++)
        with_clocksource(sources[i], seconds, hz);
    check_sleep("nanosleep", by_nanosleep, seconds, hz);
    check_sleep("timerfd", by_timerfd, seconds, hz);
    ioperm(PM_TIMER_PORT, 4, 1);
    uint32_t pm = inl(PM_TIMER_PORT);
    uint64_t tsc = tscp();
    by_nanosleep(seconds);
    check_span("PM timer", (double)(uint32_t)(inl(PM_TIMER_PORT) - pm) / 3579545,
               seconds_since(tsc, hz));
    if (slow)
        return 0;
    double last = rtc_edge(&tsc_last, hz);
    check_span("RTC", last - first, (double)(tsc_last - tsc_first) / hz);
    return 0;
}

/* ---- Never backwards ---- */

static int watch(const char *end) {
    enum { CLOCKS = 5 };
    static const char *const names[CLOCKS] = {"rdtsc", "rdtscp", "CLOCK_MONOTONIC",
                                              "CLOCK_REALTIME", "CLOCK_BOOTTIME"};
    double last[CLOCKS] = {0};
    unsigned long rounds = 0;
    for (; rounds % 1000 != 0 || access(end, F_OK) != 0; rounds++) {
        const double now[CLOCKS] = {(double)__rdtsc(), (double)tscp(),
                                    clock_seconds(CLOCK_MONOTONIC), clock_seconds(CLOCK_REALTIME),
                                    clock_seconds(CLOCK_BOOTTIME)};
        for (int i = 0; i < CLOCKS; i++) {
            if (now[i] < last[i]) {
                printf("FAIL %s went back from %f to %f\n", names[i], last[i], now[i]);
                return 1;
            }
            last[i] = now[i];
        }
    }
    printf("ok no clock went back in %lu rounds\n", rounds);
    return 0;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 3 && strcmp(argv[1], "watch") == 0)
        return watch(argv[2]);
    return argc == 3 ? measure(atof(argv[1]), atof(argv[2])) : 2;
}
