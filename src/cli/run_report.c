/* What a run says about itself: how it went, and how it ended. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/run_private.h"
#include "machine/console.h"

enum { TAIL_LINES = 20 };

void print_tail(struct run *run) {
    char text[8192];
    if (uses_agent(run) && console_tail(run->console, TAIL_LINES, text, sizeof text) > 0)
        fprintf(stderr, "%s%s", text, text[strlen(text) - 1] == '\n' ? "" : "\n");
}

double seconds_since(uint64_t ns) {
    return (double)(host_clock_ns() - ns) / (double)NS_PER_SECOND;
}

void say_what_runs(const struct run *run) {
    char engine[256];
    machine_describe_engine(run->machine, engine, sizeof engine);
    fprintf(stderr, "lodge: engine %s\n", engine);
    fprintf(stderr, "lodge: memory %llu MiB, %u vCPU\n",
            (unsigned long long)(run->config->machine.memory >> 20), run->config->machine.vcpus);
    if (run->config->source != NULL)
        fprintf(stderr, "lodge: goes on from %s\n", run->config->machine.restore);
    else if (run->config->machine.firmware != FIRMWARE_NONE)
        fprintf(stderr, "lodge: firmware %s\n", machine_describe_boot(run->machine));
    else
        fprintf(stderr, "lodge: kernel %s: %s\n", run->config->machine.kernel,
                machine_describe_boot(run->machine));
}

/* Milliseconds since the command was given. */
static double mark(const struct run *run, uint64_t ns) {
    return ns > run->config->begun_ns ? (double)(ns - run->config->begun_ns) / 1e6 : 0;
}

static void say_how_restored(const struct run *run) {
    const struct machine_times *times = machine_times(run->machine);
    fprintf(stderr,
            "lodge: after ms: disks %.2f, machine %.2f, state %.2f, first instruction %.2f, "
            "agent %.2f, renewed %.2f, command's end %.2f, here %.2f\n",
            mark(run, run->marks.disks_ns), mark(run, times->parts_ns), mark(run, times->ready_ns),
            mark(run, times->first_ns), mark(run, run->marks.agent_ns),
            mark(run, run->marks.renewed_ns), mark(run, run->marks.ended_ns),
            mark(run, host_clock_ns()));
}

void say_what_ran(const struct run *run) {
    struct vcpu_counters counters;
    double seconds = seconds_since(run->started_ns);
    if (run->config->source != NULL)
        say_how_restored(run);
    machine_counters(run->machine, &counters);
    fprintf(stderr, "lodge: ran %.2f s", seconds);
    if (counters.instructions > 0)
        fprintf(stderr, ", %.1f million instructions (%.1f million a second)",
                (double)counters.instructions / 1e6, (double)counters.instructions / seconds / 1e6);
    fprintf(stderr, ", %llu exits, %llu interrupts, %llu exceptions\n",
            (unsigned long long)counters.exits, (unsigned long long)counters.interrupts,
            (unsigned long long)counters.exceptions);
}

/* The guest's own end, told in one line where it is not what was asked for. */
static int code_of_end(struct run *run, const struct machine_result *result) {
    static const struct {
        const char *text;
        int code;
    } ends[] = {
        [MACHINE_POWERED_OFF] = {NULL, EXIT_OK},
        [MACHINE_REBOOTED] = {NULL, EXIT_OK},
        [MACHINE_RESET_LOOP] = {"stopped", EXIT_RESET_LOOP},
        [MACHINE_PANICKED] = {"stopped", EXIT_PANIC},
        [MACHINE_TRIPLE_FAULT] = {"stopped", EXIT_TRIPLE_FAULT},
        [MACHINE_FAILED] = {"the engine cannot go on", EXIT_ENGINE},
        [MACHINE_WATCHDOG] = {"stopped", EXIT_WATCHDOG},
        [MACHINE_STOPPED] = {NULL, EXIT_OK},
        [MACHINE_DIFFERENCE] = {"stopped", EXIT_DIFFERENCE},
    };
    bool bad = ends[result->end].text != NULL;
    bool early = uses_agent(run) && !run->was_ready && result->end != MACHINE_STOPPED;
    if (bad || early)
        print_tail(run);
    if (bad)
        fprintf(stderr, "lodge: %s%s%s\n", ends[result->end].text, result->text[0] != 0 ? ": " : "",
                result->text);
    else if (early)
        return cli_error(EXIT_NO_AGENT, "the guest ended before its agent answered");
    return ends[result->end].code;
}

const char *reason_of_end(enum machine_end end) {
    static const char *const reasons[] = {
        [MACHINE_POWERED_OFF] = "guest-shutdown", [MACHINE_REBOOTED] = "guest-reset",
        [MACHINE_RESET_LOOP] = "reset-loop",      [MACHINE_PANICKED] = "guest-panic",
        [MACHINE_TRIPLE_FAULT] = "triple-fault",  [MACHINE_FAILED] = "engine-failure",
        [MACHINE_WATCHDOG] = "watchdog",          [MACHINE_STOPPED] = "stopped",
    };
    return reasons[end];
}

int exit_code(struct run *run, const struct machine_result *result) {
    if (run->code_known)
        return run->code;
    if (run->signal != 0)
        return EXIT_SIGNAL + run->signal;
    return code_of_end(run, result);
}
