"""What single paths cost, in cycles of the time-stamp counter and, in lodge, in helper calls."""
import json
import os
import re
import socket

import machines

# name: what the table says of it. bench/guest/kernel.c, as a program under Linux:
UNDER_LINUX = {
    "getppid": "system call (getppid)",
    "page-fault": "page fault (a fresh page)",
    "mprotect": "mprotect there and back, write",
    "switch": "context switch (half a round trip through pipes)",
    "signal": "signal to itself, handler",
    "nap": "20 µs sleep: idle, timer, interrupt, wake-up",
    "clock": "clock_gettime",
    "rep-movsb-64": "rep movsb, 64 bytes",
    "rep-movsb-4k": "rep movsb, 4 KiB",
    "rep-stosq-4k": "rep stosq, 4 KiB",
    "lock-add": "lock add",
    "lock-cmpxchg": "lock cmpxchg",
    "rdtsc": "rdtsc",
}
# bench/guest/privileged.c, without an operating system:
BARE = {
    "bare-syscall": "syscall, 2 swapgs, sysret",
    "bare-page-fault": "page fault and iretq",
    "iretq": "iretq to itself",
    "self-interrupt": "interrupt to itself, handler, EOI",
    "timer-running": "timer armed, expires while code runs",
    "timer-halted": "timer armed, expires in HLT",
    "cr3-flushing": "CR3 written, 8 pages touched",
    "cr3-tagged": "… with PCIDs, keeping the TLB",
    "invlpg": "invlpg, page touched",
    "tlb-miss": "load from ever another page",
    "swapgs": "2 swapgs",
    "wrmsr-fs-base": "wrmsr FS_BASE",
    "wrmsr-kernel-gs": "wrmsr KERNEL_GS_BASE",
    "rdmsr-fs-base": "rdmsr FS_BASE",
    "sti-cli": "sti, cli",
    "pushf-popf": "pushf, popf",
    "mov-cr2": "read CR2",
    "bare-rdtsc": "rdtsc",
    "cpuid": "cpuid",
}
MACHINES = ("native", "lodge", "tcg")
PATIENCE, ATTEMPTS = 40, 3


class Counters:
    """What lodge counts, read through the VM's control socket."""

    def __init__(self, name):
        base = os.environ.get("XDG_RUNTIME_DIR")
        if base:
            folder = os.path.join(base, "lodge")
        else:
            folder = "/run/lodge" if os.geteuid() == 0 else "/run/user/%d/lodge" % os.geteuid()
            if os.geteuid() and not os.path.isdir(os.path.dirname(folder)):
                folder = "/tmp/lodge-%d" % os.geteuid()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(os.path.join(folder, name + ".sock"))
        self.lines = self.socket.makefile("rw")
        self.lines.readline()

    def read(self):
        self.lines.write('{"execute": "query-counters"}\n')
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "return" in answer:
                return answer["return"]["counters"]

    def close(self):
        self.lines.close()
        self.socket.close()


def cpu_seconds(pid):
    """What a process has used so far."""
    with open("/proc/%d/stat" % pid, encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def difference(before, after, operations):
    """Per operation, what is worth telling."""
    found = {name: (value - before.get(name, 0)) / operations for name, value in after.items()}
    return {name: value for name, value in found.items() if value >= 0.005}


def read_costs(lines, counters, progress):
    """{name: {"cycles": …, "counted": {counter: per operation}}}, as bench/guest/measure.h tells them,
    and the share of a processor that the idle machine took."""
    costs, before, idle = {}, None, None
    for arrived, line in lines:
        match = re.match(r"([<>=]) (\S+) (\d+) (\d+)$", line)
        if match:
            kind, name, cycles, operations = match[1], match[2], int(match[3]), int(match[4])
            if kind == "=":
                costs.setdefault(name, {})["cycles"] = cycles / operations
                progress("%10.0f cycles" % (cycles / operations), name)
            elif counters and kind == "<":
                before = counters.read()
            elif counters:
                costs.setdefault(name, {})["counted"] = difference(
                    before, counters.read(), operations)
        elif line == "idle":
            idle = (arrived, cpu_seconds(lines.process.pid))
        elif line == "done":
            if idle:
                idle = (cpu_seconds(lines.process.pid) - idle[1]) / (arrived - idle[0])
            return costs, idle
    raise machines.Failure("%s:\n%s" % (lines.end(), "\n".join(lines.last)))


def command(bench, machine, bare):
    """How the machine runs bench/guest/kernel.c or bench/guest/privileged.c."""
    if machine == "native":
        return bench.native_command(machine, ["/bench/kernel"])
    if not bare:
        return machines.guest_command(machine, bench.lodge, bench.kernel, bench.archive, "1G",
                                      "rdinit=/bench/kernel")
    program = os.path.join(os.path.dirname(bench.lodge), "bench", "privileged.elf")
    return machines.guest_command(machine, bench.lodge, program, None, "256M", "")


def measure_one(bench, machine, bare, progress):
    words, counters = command(bench, machine, bare), None
    name = "bench-%d" % os.getpid()
    if machine == "lodge":
        words = words[:2] + ["--name", name] + words[2:]
    with machines.Lines(words, PATIENCE, env=machines.environment(machine)) as lines:
        try:
            for _, line in lines:
                if line == "ready":
                    break
            if machine == "lodge":
                counters = Counters(name)
            return read_costs(lines, counters, progress)
        finally:
            if counters:
                counters.close()


def try_measure(bench, machine, bare, progress):
    """QEMU 7.2 sometimes loses an interrupt that a processor sends itself, and waits for ever."""
    for attempt in range(ATTEMPTS):
        try:
            return measure_one(bench, machine, bare, progress)
        except machines.Failure:
            if attempt == ATTEMPTS - 1:
                raise
    return None


def measure(bench, chosen, progress):
    """{machine: {name: cost}}, {machine: share of a processor when idle}, {machine: {what: why}}."""
    costs, idle, failures = {m: {} for m in MACHINES}, {}, {}
    for bare in (False, True):
        for machine in MACHINES:
            if machine not in chosen or (bare and machine == "native"):
                continue
            try:
                found, share = try_measure(
                    bench, machine, bare, lambda text, name, at=machine: progress(at, name, text))
                costs[machine].update(found)
                if not bare and machine != "native":
                    idle[machine] = share
            except (machines.Failure, OSError, ValueError) as failure:
                what = "costs without an operating system" if bare else "costs under Linux"
                failures.setdefault(machine, {})[what] = str(failure)
                progress(machine, what, str(failure))
    return costs, idle, failures


# ---- As a table ----

def cycles_text(cost):
    if not cost or "cycles" not in cost:
        return ""
    return "%.*f" % (1 if cost["cycles"] < 20 else 0, cost["cycles"])


def counted_text(cost):
    """Call-outs and returns to the run loop, for each operation, and the call-outs' instructions."""
    if not cost or "counted" not in cost:
        return "", "", ""
    counted = cost["counted"]
    by_name = sorted(((value, name.split(".", 1)[1]) for name, value in counted.items()
                      if name.startswith("callouts.") and value >= 0.05), reverse=True)
    names = ", ".join(name if 0.95 < value < 1.05 else "%s %.2g" % (name, value)
                      for value, name in by_name[:5])
    return ("%.1f" % counted.get("callouts", 0), "%.1f" % counted.get("leaves", 0), names)


def rows(costs, titles, natively):
    for name, title in titles.items():
        at = {m: costs.get(m, {}).get(name) for m in MACHINES}
        cells = [cycles_text(at[m]) for m in MACHINES if natively or m != "native"]
        yield "| %s | %s |" % (title, " | ".join([*cells, *counted_text(at["lodge"])]))


def table(costs, idle):
    head = "| %s | %scycles in lodge | cycles in TCG | call-outs | leaves | called out |"
    lines = [head % ("under Linux", "cycles natively | "), "|---|---:|---:|---:|---:|---:|---|"]
    lines += rows(costs, UNDER_LINUX, True)
    lines += ["", head % ("without an operating system", ""), "|---|---:|---:|---:|---:|---|"]
    lines += rows(costs, BARE, False)
    told = ["%s %.1f %%" % (title, 100 * idle[m]) for m, title in (("lodge", "lodge"), ("tcg", "TCG"))
            if idle.get(m) is not None]
    lines += ["", "An idle Linux guest takes of a processor: %s." % ", ".join(told)] if told else []
    return "\n".join(lines)
