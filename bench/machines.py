"""The machines that run the workloads: this one, lodge, its interpreter alone, QEMU's TCG."""
import os
import re

import subprocess
import threading
import time

QEMU = "qemu-system-x86_64"
GUESTS = ("lodge", "interpreter", "tcg", "microvm")
APPEND = ("console=ttyS0 quiet reboot=t panic=-1 mitigations=off tsc=reliable no_timer_check "
          "random.trust_cpu=on ")
# The guests' clock and ours may differ by so much of the time, and by so many seconds.
CLOCK_SHARE, CLOCK_SECONDS = 0.02, 1
BOOT_PATIENCE, BOOT_ATTEMPTS = 30, 3


class Failure(Exception):
    """A machine or a workload that did not do what it should; the text says which."""


def one_of(machine):
    """The machine of which this one is the form with two processors, or itself."""
    return machine[:-1] if machine.endswith("2") else machine


def guest_command(machine, lodge, kernel, initrd, memory, append):
    """The command that runs a guest with its first serial port on standard input and output.
    initrd may be None."""
    append = APPEND + append
    processors = "2" if machine.endswith("2") else "1"
    machine = one_of(machine)
    if machine in ("lodge", "interpreter"):
        return [lodge, "run", "--engine", "soft", "--console", "serial", "--net", "none",
                "--memory", memory, "--cpus", processors, "--on-reboot", "stop", "--kernel", kernel,
                *(["--initrd", initrd] if initrd else []), "--append", append]
    command = [QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", processors,
               "-m", memory, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
               "-kernel", kernel, *(["-initrd", initrd] if initrd else []), "-append", append]
    if machine == "microvm":
        return command + ["-M", "microvm,acpi=on,rtc=on,pit=on,isa-serial=on"]
    return command + ["-M", "q35"]


def environment(machine):
    result = dict(os.environ)
    result.pop("LODGE_TRANSLATE", None)
    if one_of(machine) == "interpreter":
        result["LODGE_TRANSLATE"] = "off"
    return result


def above_others():
    """Under a real-time policy (chrt) we must not wait for the machines that we watch. Answers what
    starts those at the priority that we had."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    if policy not in (os.SCHED_FIFO, os.SCHED_RR):
        return []
    os.sched_setscheduler(0, policy, os.sched_param(min(priority + 1, 99)))
    return ["chrt", "--fifo" if policy == os.SCHED_FIFO else "--rr", str(priority)]


class Lines:
    """A process's lines as they come, with the time of each; ended when it says nothing for long."""

    prefix = above_others()

    def __init__(self, command, patience, **options):
        self.started = time.monotonic()
        options.setdefault("stdin", subprocess.DEVNULL)
        self.process = subprocess.Popen(self.prefix + command, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, **options)
        self.patience = patience
        self.silent = False
        self.last = []

    def _give_up(self):
        self.silent = True
        self.process.kill()

    def __iter__(self):
        while True:
            alarm = threading.Timer(self.patience, self._give_up)
            alarm.start()
            line = self.process.stdout.readline()
            alarm.cancel()
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.last = self.last[-9:] + [text]
            yield time.monotonic(), text

    def end(self):
        """Why there are no more lines."""
        if self.silent:
            return "silent for %.0f seconds" % self.patience
        return "ended with code %d" % self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def one_result(line):
    """What the line that ends a workload says: (name, seconds, checksum), or Failure."""
    name, seconds, checksum, status = line.split()[1:5]
    if status != "0":
        raise Failure("failed with status %#x" % (int(status) & 0xffff))
    return name, float(seconds), checksum


def check_clock(own, since_ready, since_start):
    """The machine's clock may not differ from ours. Its first line may have come late: a busy
    monitor has other things to do; its last one comes when it has nothing to do any more."""
    def more(longer, shorter):
        return longer > shorter * (1 + CLOCK_SHARE) + CLOCK_SECONDS

    if more(since_ready, own) or more(own, since_start):
        raise Failure("%.2f seconds passed by its own clock, %.2f by ours" % (own, since_ready))


def read_results(lines, results, failures, progress):
    """Reads what bench/guest/timer.c says into results {name: (seconds, checksum)} and failures
    {name: why}; Failure when no workload is to blame."""
    running, failed, ready = None, None, None
    for arrived, line in lines:
        if line == "ready":
            ready = arrived
        elif line.startswith("< "):
            running = line[2:]
        elif running and re.match(r"> \S+ [\d.]+ [0-9a-f]{16} -?\d+$", line):
            try:
                name, seconds, checksum = one_result(line)
                results[name] = (seconds, checksum)
                progress("%8.3f s" % seconds, name)
            except Failure as failure:
                failures[running] = str(failure)
                progress(str(failure), running)
            failed, running = running if running in failures else None, None
        elif line.startswith("! ") and failed:
            failures[failed] += "; " + line[2:]
        elif ready and re.match(r"done [\d.]+$", line):
            check_clock(float(line[5:]), arrived - ready, arrived - lines.started)
            return
    if running is None:
        raise Failure("%s:\n%s" % (lines.end(), "\n".join(lines.last)))
    failures[running] = "%s: %s" % (lines.end(), lines.last[-1])
    progress(failures[running], running)


class Machines:
    """Runs workloads on each machine."""

    def __init__(self, lodge, kernel, tree, archive, patience):
        self.lodge, self.kernel, self.tree, self.archive = lodge, kernel, tree, archive
        self.patience = patience

    def native_command(self, machine, program):
        """In a copy of the tree in memory, as the guests have it, on one processor or two."""
        script = ("set -e; mount -t tmpfs -o size=2G,mode=755 bench /mnt; cp -a \"$1/.\" /mnt; "
                  "mkdir -p /mnt/dev /mnt/proc; mount --rbind /dev /mnt/dev; "
                  "mount --rbind /proc /mnt/proc; shift; exec chroot /mnt \"$@\"")
        unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
        processors = sorted(os.sched_getaffinity(0))[-2 if machine == "native2" else -1:]
        return ["taskset", "-c", ",".join(map(str, processors)), *unshare, "sh", "-c", script,
                "sh", self.tree, *program]

    def start(self, machine, names):
        if one_of(machine) == "native":
            return Lines(self.native_command(machine, ["/bench/timer", "/bench/list", *names]),
                         self.patience)
        append = "rdinit=/bench/timer -- /bench/list " + " ".join(names)
        command = guest_command(machine, self.lodge, self.kernel, self.archive, "1G", append)
        return Lines(command, self.patience, env=environment(machine))

    def run(self, machine, names, progress):
        """({name: (seconds, checksum)}, {name: why it failed}). A machine that hangs or ends in a
        workload is started again for those behind it."""
        results, failures, left = {}, {}, list(names)
        while left:
            with self.start(machine, left) as lines:
                try:
                    read_results(lines, results, failures, progress)
                except Failure as failure:
                    progress(str(failure), "")
                    failures.update((name, str(failure)) for name in left if name not in failures)
                    for name in left:
                        results.pop(name, None)
            left = [n for n in left if n not in results and n not in failures]
        return results, failures

    def boot_once(self, machine, initrd):
        append = "rdinit=/bin/busybox -- sh -c \"echo booted; /bin/busybox reboot -f\""
        command = guest_command(machine, self.lodge, self.kernel, initrd, "512M", append)
        start = time.monotonic()
        with Lines(command, BOOT_PATIENCE, env=environment(machine)) as lines:
            for arrived, line in lines:
                if line.startswith("booted"):
                    return arrived - start
        return None

    def boot(self, machine, initrd):
        """Seconds from the start of the monitor's process to the first line from init. TCG's
        microvm has only the 8254 to calibrate its TSC with, which fails when the host is busy; the
        kernel then waits for ever."""
        for _ in range(BOOT_ATTEMPTS):
            seconds = self.boot_once(machine, initrd)
            if seconds is not None:
                return seconds
        raise Failure("did not boot in %d attempts" % BOOT_ATTEMPTS)

    def uname(self):
        """lodge run -- uname -r, as a user types it."""
        start = time.monotonic()
        subprocess.run([self.lodge, "run", "--engine", "soft", "--", "uname", "-r"], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=self.patience)
        return time.monotonic() - start
