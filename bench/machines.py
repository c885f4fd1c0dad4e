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
# The guests' clock and ours may differ by so much of a workload's time, and by so many seconds.
CLOCK_SHARE, CLOCK_SECONDS = 0.05, 0.25
BOOT_PATIENCE, BOOT_ATTEMPTS = 30, 3


class Failure(Exception):
    """A machine or a workload that did not do what it should; the text says which."""


def guest_command(machine, lodge, kernel, initrd, memory, append):
    """The command that runs a guest with its first serial port on standard input and output.
    initrd may be None."""
    append = APPEND + append
    if machine in ("lodge", "interpreter"):
        return [lodge, "run", "--engine", "soft", "--console", "serial", "--net", "none",
                "--memory", memory, "--on-reboot", "stop", "--kernel", kernel,
                *(["--initrd", initrd] if initrd else []), "--append", append]
    command = [QEMU, "-accel", "tcg", "-cpu", "max", "-m", memory, "-nodefaults",
               "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
               "-kernel", kernel, *(["-initrd", initrd] if initrd else []), "-append", append]
    if machine == "microvm":
        return command + ["-M", "microvm,acpi=on,rtc=on,pit=on,isa-serial=on"]
    return command + ["-M", "q35"]


def environment(machine):
    result = dict(os.environ)
    result.pop("LODGE_TRANSLATE", None)
    if machine == "interpreter":
        result["LODGE_TRANSLATE"] = "off"
    return result


class Lines:
    """A process's lines as they come, with the time of each; ended when it says nothing for long."""

    def __init__(self, command, patience, **options):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
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


def one_result(line, began, arrived):
    """What the line that ends a workload says: (name, seconds, checksum), or Failure."""
    name, seconds, checksum, status = line.split()[1:5]
    seconds, took = float(seconds), arrived - began
    if status != "0":
        raise Failure("failed with status %#x" % (int(status) & 0xffff))
    if abs(took - seconds) > CLOCK_SECONDS + CLOCK_SHARE * took:
        raise Failure("took %.2f seconds by its own clock, %.2f by ours" % (seconds, took))
    return name, seconds, checksum


def read_results(lines, results, failures, progress):
    """Reads what bench/guest/timer.c says into results {name: (seconds, checksum)} and failures
    {name: why}. True when it came to the end."""
    running, began, failed = None, None, None
    for arrived, line in lines:
        if line.startswith("< "):
            running, began = line[2:], arrived
        elif running and re.match(r"> \S+ [\d.]+ [0-9a-f]{16} -?\d+$", line):
            try:
                name, seconds, checksum = one_result(line, began, arrived)
                results[name] = (seconds, checksum)
                progress("%8.3f s" % seconds, name)
            except Failure as failure:
                failures[running] = str(failure)
                progress(str(failure), running)
            failed, running = running if running in failures else None, None
        elif line.startswith("! ") and failed:
            failures[failed] += "; " + line[2:]
        elif line == "done":
            return True
    if running is None:
        raise Failure("%s:\n%s" % (lines.end(), "\n".join(lines.last)))
    failures[running] = "%s: %s" % (lines.end(), lines.last[-1])
    progress(failures[running], running)
    return False


class Machines:
    """Runs workloads on each machine."""

    def __init__(self, lodge, kernel, tree, archive, patience):
        self.lodge, self.kernel, self.tree, self.archive = lodge, kernel, tree, archive
        self.patience = patience

    def native_command(self, program):
        """In a copy of the tree in memory, as the guests have it, on one processor."""
        script = ("set -e; mount -t tmpfs -o size=2G,mode=755 bench /mnt; cp -a \"$1/.\" /mnt; "
                  "mkdir -p /mnt/dev /mnt/proc; mount --rbind /dev /mnt/dev; "
                  "mount --rbind /proc /mnt/proc; shift; exec chroot /mnt \"$@\"")
        unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
        return ["taskset", "-c", str(max(os.sched_getaffinity(0))), *unshare, "sh", "-c", script,
                "sh", self.tree, *program]

    def start(self, machine, names):
        if machine == "native":
            return Lines(self.native_command(["/bench/timer", "/bench/list", *names]),
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
                    failures.update((name, str(failure)) for name in left
                                    if name not in results and name not in failures)
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
