"""A whole Debian from the start of the monitor's process to `systemctl is-system-running`."""
import json
import os
import statistics
import subprocess
import tempfile
import time

import machines

# Said by login before the shell is there, which then finds the command typed already.
GREETING = "permitted by applicable law."
QUESTION = b"systemctl is-system-running --wait\n"
ANSWERS = ("running", "degraded")
MACHINES = ("lodge2", "tcg2")
PATIENCE = 90


def find_image(lodge):
    """Its disk, kernel, initramfs, and root's UUID; made when it is not there."""
    subprocess.run([lodge, "image", "build", "debian"], check=True, stdout=subprocess.DEVNULL)
    images = json.loads(subprocess.run([lodge, "image", "ls", "-o", "json"], check=True,
                                       stdout=subprocess.PIPE).stdout)
    disk = next(i["disk"] for i in images if i["name"] == "debian")
    where = os.path.dirname(disk)
    with open(os.path.join(where, "image.json"), encoding="utf-8") as note:
        root = json.load(note)["root"]
    return disk, os.path.join(where, "vmlinuz"), os.path.join(where, "initrd"), root


def command(machine, lodge, image, overlay):
    """Two processors, the same kernel, command line and disk, a network card behind the user."""
    disk, kernel, initrd, root = image
    base = machines.guest_command(machine, lodge, kernel, initrd, "1G",
                                  "root=UUID=%s ro" % root)
    if machines.one_of(machine) == "tcg":
        return base + ["-drive", "if=virtio,format=raw,snapshot=on,"
                       "file.locking=off,file.filename=" + disk,
                       "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
    subprocess.run([lodge, "disk", "create", "--backing", disk + ",format=raw", overlay],
                   check=True, stdout=subprocess.DEVNULL)
    return base + ["--net", "user", "--disk", overlay]


def boot_once(machine, lodge, image):
    with tempfile.TemporaryDirectory() as work:
        argv = command(machine, lodge, image, os.path.join(work, "overlay.lodge"))
        start = time.monotonic()
        with machines.Lines(argv, PATIENCE, env=machines.environment(machine),
                            stdin=subprocess.PIPE) as lines:
            for arrived, line in lines:
                if line.endswith(GREETING):
                    lines.process.stdin.write(QUESTION)
                    lines.process.stdin.flush()
                elif line.split("\x1b[?2004l")[-1].strip() in ANSWERS:
                    if "degraded" in line:
                        raise machines.Failure("some unit of the guest's failed")
                    return arrived - start
    return None


def boot(machine, lodge, image):
    """TCG's second processor does not always come up where the host is busy."""
    for _ in range(machines.BOOT_ATTEMPTS):
        seconds = boot_once(machine, lodge, image)
        if seconds is not None:
            return seconds
    raise machines.Failure("did not boot in %d attempts" % machines.BOOT_ATTEMPTS)


def measure(lodge, runs, progress):
    """{machine: [seconds]} and {machine: {"debian": why}}."""
    image = find_image(lodge)
    found, failures = {m: [] for m in MACHINES}, {}
    for _ in range(runs):
        for machine in MACHINES:
            if machine in failures:
                continue
            try:
                found[machine].append(boot(machine, lodge, image))
                progress(machine, "%8.3f s" % found[machine][-1])
            except machines.Failure as failure:
                failures[machine] = {"debian": str(failure)}
                progress(machine, str(failure))
    return found, failures


def table(found):
    seconds = {m: statistics.median(v) if v else None for m, v in found.items()}
    ours, theirs = (seconds.get(m) for m in MACHINES)
    ratio = "%.2f" % (theirs / ours) if ours and theirs else ""
    return "\n".join([
        "| Debian on a disk, two processors, to `systemctl is-system-running` | lodge, soft engine "
        "| TCG | TCG/lodge |",
        "|---|---:|---:|---:|",
        "| seconds, kernel booted directly | %s | %s | %s |" % (
            *("%.2f" % s if s else "failed" for s in (ours, theirs)), ratio)])
