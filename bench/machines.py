"""The machines that run the workloads: this one, lodge, its interpreter alone, QEMU's TCG."""
import os
import re

import subprocess
import threading
import time

QEMU = "qemu-system-x86_64"
GUESTS = ("lodge", "interpreter", "tcg", "microvm")
APPEND = "console=ttyS0 quiet reboot=t panic=-1 mitigations=off tsc=reliable random.trust_cpu=on "
# The guests' clock and ours may differ by so much of a workload's time, and by so many seconds.
CLOCK_SHARE, CLOCK_SECONDS = 0.05, 0.25


class Failure(Exception):
    """A machine or a workload that did not do what it should; the text says which."""


def guest_command(machine, lodge, kernel, initrd, memory, append):
    """The command that runs a guest with its first serial port on standard input and output."""
    append = APPEND + append
    if machine in ("lodge", "interpreter"):
        return [lodge, "run", "--engine", "soft", "--console", "serial", "--net", "none",
                "--memory", memory, "--on-reboot", "stop", "--kernel", kernel,
                "--initrd", initrd, "--append", append]
    command = [QEMU, "-accel", "tcg", "-cpu", "max", "-m", memory, "-nodefaults",
               "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
               "-kernel", kernel, "-initrd", initrd, "-append", append]
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

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def read_results(machine, lines, names, progress):
    """What bench/guest/timer.c says, as {name: (seconds, checksum)}; Failure for what it reports."""
    results, began, now = {}, None, None
    for arrived, line in lines:
        words = line.split()
        if line.startswith("< "):
            now, began = words[1], arrived
        elif re.match(r"> \S+ [\d.]+ [0-9a-f]{16} -?\d+$", line):
            name, seconds, checksum, status = words[1], float(words[2]), words[3], int(words[4])
            if status:
                raise Failure("%s: %s failed with status %#x:\n%s" % (
                    machine, name, status & 0xffff, next((text for _, text in lines), "")))
            if abs(arrived - began - seconds) > CLOCK_SECONDS + CLOCK_SHARE * seconds:
                raise Failure("%s: %s took %.2f seconds by its own clock, %.2f by ours" % (
                    machine, name, seconds, arrived - began))
            results[name] = (seconds, checksum)
            progress(machine, name, seconds)
            now = None
        elif line == "done":
            if set(results) != set(names):
                raise Failure("%s: ran %s only" % (machine, " ".join(results)))
            return results
    raise Failure("%s: %s%s:\n%s" % (machine, "silent" if lines.silent else "ended",
                                     " in " + now if now else "", "\n".join(lines.last)))


class Machines:
    """Runs workloads on each machine."""

    def __init__(self, lodge, kernel, tree, archive, patience):
        self.lodge, self.kernel, self.tree, self.archive = lodge, kernel, tree, archive
        self.patience = patience

    def native(self, names, progress):
        """In a copy of the tree in memory, as the guests have it, on one processor."""
        script = ("set -e; mount -t tmpfs -o size=2G,mode=755 bench /mnt; cp -a \"$1/.\" /mnt; "
                  "mkdir -p /mnt/dev /mnt/proc; mount --rbind /dev /mnt/dev; "
                  "mount --rbind /proc /mnt/proc; shift; exec chroot /mnt \"$@\"")
        cpu = max(os.sched_getaffinity(0))
        unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
        command = ["taskset", "-c", str(cpu), *unshare, "sh", "-c", script, "sh",
                   self.tree, "/bench/timer", "/bench/list", *names]
        with Lines(command, self.patience) as lines:
            return read_results("native", lines, names, progress)

    def guest(self, machine, names, progress):
        append = "rdinit=/bench/timer -- /bench/list " + " ".join(names)
        command = guest_command(machine, self.lodge, self.kernel, self.archive, "1G", append)
        with Lines(command, self.patience, env=environment(machine)) as lines:
            return read_results(machine, lines, names, progress)

    def run(self, machine, names, progress):
        if machine == "native":
            return self.native(names, progress)
        return self.guest(machine, names, progress)
