"""Ratios, the table and the bar chart."""
import math
import statistics

import workloads


def medians(rounds):
    """[{machine: {name: seconds}}] to {machine: {name: seconds}}."""
    result = {}
    for machine in {m for r in rounds for m in r}:
        names = {n for r in rounds for n in r.get(machine, {})}
        result[machine] = {n: statistics.median(r[machine][n] for r in rounds if n in r.get(machine, {}))
                           for n in names}
    return result


def mean(values):
    """The geometric mean."""
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else None


# What is divided by what: heading, dividend, divisor.
RATIOS = (("lodge / native", "lodge", "native"), ("TCG / native", "tcg", "native"),
          ("TCG / lodge", "tcg", "lodge"))


def ratio(times, name, over, under):
    if name in times.get(over, {}) and name in times.get(under, {}):
        return times[over][name] / times[under][name]
    return None


def means(times, over, under):
    return mean([v for v in (ratio(times, w.name, over, under) for w in workloads.WORKLOADS) if v])


def number(value, digits=2):
    return "" if value is None else "%.*f" % (digits, value)


def ratio_text(value):
    """Two digits that mean something."""
    return "" if value is None else "%.*f" % (0 if value >= 99.5 else 1 if value >= 9.95 else 2, value)


def workload_table(times, failures):
    lines = ["| workload | native, s | lodge, s | TCG, s | %s |" % " | ".join(r[0] for r in RATIOS),
             "|---|---:|---:|---:|---:|---:|---:|"]
    for w in workloads.WORKLOADS:
        cells = ["failed" if w.name in failures.get(m, {}) else
                 number(times.get(m, {}).get(w.name), 3) for m in ("native", "lodge", "tcg")]
        cells += [ratio_text(ratio(times, w.name, over, under)) for _, over, under in RATIOS]
        lines.append("| %s | %s |" % (w.title, " | ".join(cells)))
    cells = [ratio_text(means(times, over, under)) for _, over, under in RATIOS]
    lines.append("| **geometric mean** | | | | %s |" % " | ".join("**%s**" % c for c in cells))
    return "\n".join(lines)


def boot_table(boots, uname):
    machines = ("lodge", "interpreter", "microvm", "tcg")
    return "\n".join([
        "| | lodge, soft engine | its interpreter alone | TCG, microvm | TCG, q35 |",
        "|---|---:|---:|---:|---:|",
        "| boot to the first line from init, seconds | %s |" % " | ".join(
            number(boots[m]) or "failed" for m in machines),
        "| … as a multiple of lodge's | %s |" % " | ".join(
            ratio_text(boots[m] / boots["lodge"]) if boots[m] and boots["lodge"] else ""
            for m in machines),
        "| `lodge run -- uname -r`, seconds | %s | | | |" % number(uname)])


def plain_table(times, machines, names):
    """For a terminal: seconds and ratios to native, a line a workload."""
    others = [m for m in machines if m != "native"]
    lines = ["%-9s" % "" + "".join("%10s" % m for m in machines) +
             "".join("%12s" % (m + "/nat") for m in others if "native" in machines) +
             ("%12s" % "tcg/lodge" if {"tcg", "lodge"} <= set(machines) else "")]

    def row(label, seconds, ratios):
        lines.append("%-9s" % label + "".join("%10s" % number(s, 3) for s in seconds) +
                     "".join("%12s" % number(r) for r in ratios))

    pairs = [(m, "native") for m in others if "native" in machines]
    pairs += [("tcg", "lodge")] if {"tcg", "lodge"} <= set(machines) else []
    for name in names:
        row(name, [times[m].get(name) for m in machines],
            [ratio(times, name, over, under) for over, under in pairs])
    if len(names) > 1:
        row("mean", [None for _ in machines], [means(times, over, under) for over, under in pairs])
    return "\n".join(lines)
