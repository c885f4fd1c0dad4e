"""docs/performance.md: what was measured, as text between its markers, and the chart beside it."""
import os
import re
import statistics
import subprocess
import time

import chart
import costs
import debian
import machines
import report
import workloads

MARK = ("<!-- bench: begin -->", "<!-- bench: end -->")


def first_line(*command):
    return subprocess.run(command, check=True, text=True,
                          stdout=subprocess.PIPE).stdout.splitlines()[0]


def describe_machine():
    with open("/proc/cpuinfo", encoding="ascii") as info:
        text = info.read()
    cpu = re.search(r"model name\s*: (.*)", text)
    return {"date": time.strftime("%Y-%m-%d"), "cpu": cpu.group(1) if cpu else "?",
            "processors": os.cpu_count(), "kernel": os.uname().release.split("-")[0],
            "virtual": "hypervisor" in text, "qemu": first_line(machines.QEMU, "--version")}


def machine_line(measured):
    return "%s, %s%d processors of \"%s\", Linux %s; %s; medians of %d alternating runs." % (
        measured["date"], "a virtual machine of " if measured["virtual"] else "",
        measured["processors"], measured["cpu"], measured["kernel"], measured["qemu"],
        measured["runs"])


def text(measured):
    times = report.medians(measured["rounds"])
    boots = {m: statistics.median(v) if v else None
             for m, v in measured["boots"].items()}
    return "\n\n".join([
        machine_line(measured), "![Time as a multiple of native](performance.svg)",
        report.workload_table(times, measured["failures"]),
        report.boot_table(boots, statistics.median(measured["uname"])),
        debian.table(measured["debian"]),
        costs.table(measured["costs"], measured["idle"])])


def svg(measured):
    times = report.medians(measured["rounds"])
    rows = [(w.title, {m: report.ratio(times, w.name, m, "native") for m in ("lodge", "tcg")})
            for w in workloads.WORKLOADS]
    rows.append(("geometric mean", {m: report.means(times, m, "native") for m in ("lodge", "tcg")}))
    return chart.Chart(rows, "%s, %d processors of %s; %s; medians of %d runs" % (
        measured["date"], measured["processors"], measured["cpu"],
        re.sub(r" \(.*", "", measured["qemu"]), measured["runs"])).draw()


def write(path, measured):
    with open(path, encoding="utf-8") as source:
        before, rest = source.read().split(MARK[0], 1)
    after = rest.split(MARK[1], 1)[1]
    with open(path, "w", encoding="utf-8") as out:
        out.write(before + MARK[0] + "\n" + text(measured) + "\n" + MARK[1] + after)
    with open(os.path.splitext(path)[0] + ".svg", "w", encoding="utf-8") as out:
        out.write(svg(measured))
