#!/usr/bin/env python3
"""
Moves that are broken at every stage: the connection is cut, or a process is killed, as a certain frame is about to be
passed on or just has been. Afterwards the VM runs on one side, or has ended there with its disk as it was; nothing is
left at the other side; no tick of the guest's was heard from two monitors; and the command says how it ended.

usage: migrate_breaks.py BUILD [all | CASE...]
Without a word a few of the cases. The VM stays where a case leaves it, so moves go both ways.
"""
import json, os, re, shutil, signal, subprocess, sys, tempfile, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from migrate_frames import Proxy

lodge = os.path.join(os.path.abspath(sys.argv[1]), "lodge")
engine = os.environ.get("LODGE_TEST_ENGINE", "soft")
work = tempfile.mkdtemp()
PATIENCE = 120  # seconds until something is taken for hanging


def wait(what, condition):
    end = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Exception("never happened: " + what)
        time.sleep(0.02)


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


class Side:
    """A user's store with a receiver, and the proxy by which others reach it."""

    def __init__(self, name):
        self.name = name
        self.data, self.run = os.path.join(work, name), os.path.join(work, name + ".run")
        self.socket, self.door = self.data + ".socket", self.data + ".door"
        self.vm = os.path.join(self.data, "lodge/vms/box")
        os.mkdir(self.data)
        os.mkdir(self.run)
        self.environment = dict(os.environ, XDG_DATA_HOME=self.data, XDG_RUNTIME_DIR=self.run)
        self.receiver = None
        self.listen()
        self.proxy = Proxy(self.door, self.socket)

    def listen(self):
        log = open(self.data + ".log", "w")
        self.receiver = subprocess.Popen([lodge, "receive", "unix:" + self.socket], env=self.environment,
                                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        wait("the receiver listens", lambda: b"listening" in read(self.data + ".log"))

    def popen(self, *arguments):
        return subprocess.Popen([lodge, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ask(self, *arguments):
        """Its exit code and what it has said."""
        process = self.popen(*arguments)
        said, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, said

    def must(self, *arguments):
        code, said = self.ask(*arguments)
        if code != 0:
            raise Exception("%s: lodge %s: exit %d: %s" % (self.name, " ".join(arguments), code, said))
        return said

    def status(self):
        """Of the VM; None: there is none."""
        vms = json.loads(self.must("ps", "-a", "-o", "json"))
        return vms[0] if vms else None

    def monitor(self):
        """The process that has the VM here."""
        return self.status()["pid"]

    def served(self, direct):
        """Processes that take a VM in: the receiver's child, or the monitor that this has made."""
        wanted = b"\0".join([b"receive", b"unix:" + self.socket.encode()])
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if wanted not in read("/proc/%s/cmdline" % pid) or int(pid) == self.receiver.pid:
                continue
            parent = read("/proc/%s/stat" % pid).rpartition(b")")[2].split()[1:2]
            if parent and (int(parent[0]) == self.receiver.pid) == direct:
                return int(pid)
        return None

    def empty(self):
        return not os.path.isdir(os.path.dirname(self.vm)) or not os.listdir(os.path.dirname(self.vm))


def kill(pid):
    """Until it has ended; who has to hear of that may not have done so yet."""
    os.kill(pid, signal.SIGKILL)
    wait("process %d ends" % pid, lambda: read("/proc/%d/stat" % pid).rpartition(b")")[2].split()[:1] in ([], [b"Z"]))


# ---- The guest ----

LOAD = """
setsid sh -c 'n=0; while :; do n=$((n + 1)); echo "tick $n" >/dev/console; sleep 0.03; done' >/dev/null 2>&1 </dev/null &
setsid sh -c 'while :; do dd if=/dev/urandom of=/tmp/dirt bs=64k count=8 conv=notrunc; done' >/dev/null 2>&1 </dev/null &
"""
written = 0


def ticks(log):
    """Those that have come whole."""
    return [int(n) for n in re.findall(rb"^tick (\d+)\r?\n", log, re.M)]


def boot(side):
    if os.path.exists(side.vm + "/moved-out.json"):
        check_marked(side)
        side.must("start", "--force", "box")
    else:
        wait("it starts", lambda: "running already" not in side.ask("start", "box")[1])
    side.must("exec", "box", "sh", "-c", LOAD)


def check_marked(side):
    """It says where else it may run, and does not start before it is told that it does not."""
    answers = []
    wait("its lock is free", lambda: answers.append(side.ask("start", "box")) or "running already" not in answers[-1][1])
    code, said = answers[-1]
    if code != 1 or "may run there" not in said:
        raise Exception("start of a VM that was handed over: exit %d: %s" % (code, said))
    listed = side.must("ps", "-a")
    if "stopped" not in listed or "may run there" not in listed:
        raise Exception("ps -a of a VM that was handed over: %s" % listed)


def note(side):
    """Something new on the disk, which must not get lost."""
    global written
    written += 1
    side.must("exec", "box", "sh", "-c", "printf %%08d %d | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null" % written)


def check_disk(side):
    wait("the agent answers", lambda: side.ask("exec", "box", "true")[0] == 0)
    kept = side.must("exec", "box", "sh", "-c", "dd if=/dev/vda bs=8 count=1 2>/dev/null")
    if kept != "%08d" % written:
        raise Exception("the disk has %r, not %08d" % (kept, written))


# ---- Cases ----

# Who is hit, as a frame passes. "link": this connection; "net": it, and nobody is reached any more for a while.
VICTIMS = ["link", "source", "target", "command", "receiver", "net"]

# name: (frame, which of that name, "at" or "after"). Stages in their order.
STAGES = {
    "hello": ("> HELLO", 1, "at"),
    "welcome": ("< WELCOME", 1, "at"),
    "first-pass": ("> PAGES", 2, "at"),
    "first-round": ("< ROUND_DONE", 1, "at"),
    "later-pass": ("> ROUND", 2, "at"),
    "state": ("> STATE", 1, "at"),
    "handover": ("> HANDOVER", 1, "at"),
    "taken": ("> HANDOVER", 1, "after"),
    "ready": ("< READY", 1, "at"),
    "go": ("> GO", 1, "at"),
    "gone": ("> GO", 1, "after"),
    "running": ("< RUNNING", 1, "at"),
    "told": ("< RUNNING", 1, "after"),
    # Post-copy: memory comes after the VM.
    "missing": ("> MISSING", 1, "at"),
    "late-pass": ("> PAGES late", 2, "at"),
    "wanted": ("< WANT late", 1, "at"),
    "whole": ("< WHOLE late", 1, "at"),
    # With its disk copied.
    "disk": ("> DISK", 1, "at"),
    "disk-round": ("< ROUND_DONE", 1, "at"),
    "disk-ready": ("< READY", 1, "at"),
    "disk-go": ("> GO", 1, "at"),
}
SWITCH = ["ready", "go", "gone", "running", "told"]
STAGES.update({"post-" + stage: STAGES[stage] for stage in SWITCH})  # with post-copy
POST_COPY = {"missing", "late-pass", "wanted", "whole"} | {"post-" + stage for stage in SWITCH}
LATE = {"go", "gone", "running", "told", "late-pass", "wanted", "whole"}  # the source says or has said that it may go
COPIED = {"disk", "disk-round", "disk-ready", "disk-go"}  # for those that leave it where it is: its disk does not move
LOST_GO = {"go", "disk-go"}
MARKED = LOST_GO | {"state", "handover", "missing", "taken", "ready", "disk-ready"}  # moved-out.json is there, the VM not
MEMORY_COMES = {"late-pass", "wanted", "whole"}
NET_STAGES = {"go", "gone", "post-gone", "late-pass", "wanted"}
QUICK = ["link-go", "link-running", "target-taken", "link-wanted", "source-gone", "link-post-gone", "net-wanted", "net-gone"]


def loses_memory(victim, stage):
    """It has gone, and with the victim some of its memory."""
    return victim in ("source", "target") and (stage in MEMORY_COMES or stage in ("post-running", "post-told") or
                                               (victim, stage) == ("source", "post-gone"))


def expect(victim, stage):
    """Where it is afterwards, whether it runs, and a piece of what the command says (None: it is killed)."""
    if loses_memory(victim, stage):  # the last of it may just have been there
        return "target", False, None if stage == "whole" else "ended"
    stage = stage.removeprefix("post-")
    if victim in ("link", "receiver"):
        if victim == "receiver" or stage in ("running", "told") or stage in MEMORY_COMES:
            return "target", True, "box runs at"
        if stage == "gone":  # it hears GO, or notices first that the connection is cut
            return None, True, None
        return "source", True, "the target ended before" if stage in LOST_GO else "the connection broke"
    if victim == "source":
        if stage in ("gone", "running", "told"):
            return "target", True, "handed over"
        return "source", False, "handed over" if stage in MARKED else "it runs nowhere"
    if victim == "target":
        if stage in ("running", "told"):
            return "target", False, "box runs at"
        if stage == "gone":
            return None, None, None
        return "source", True, "the target ended before" if stage in LOST_GO else "the connection broke"
    return ("target" if stage in LATE else None), True, None  # it is called off, if that is in time


class Case:
    def __init__(self, victim, stage, source, target):
        self.victim, self.stage, self.source, self.target = victim, stage, source, target
        self.frame, self.nth, self.when = STAGES[stage]
        self.hit = False
        self.command = None
        self.pid = source.monitor()

    def strike(self, name, nth):
        if (name, nth) != (self.frame, self.nth) or self.hit:
            return None
        self.hit = True
        if self.victim in ("link", "net"):
            self.target.proxy.open = self.victim == "link"
            return "cut"
        if self.victim == "source":
            kill(self.pid)
        elif self.victim == "target":
            kill(self.target.served(False) or self.target.served(True))
        elif self.victim == "receiver":
            if self.stage == "hello":  # the first thing there is: it may not have been taken yet
                wait("the connection is taken", lambda: self.target.served(True))
            kill(self.target.receiver.pid)
            self.target.receiver.wait()
        else:
            kill(self.command.pid)
        return "cut" if self.when == "at" and self.victim in ("source", "target") else None  # not sent after all

    def run(self):
        source, target, proxy = self.source, self.target, self.target.proxy
        log = open(source.vm + "/console.log", "rb")
        log.seek(0, os.SEEK_END)
        proxy.begin()
        proxy.at = self.strike if self.when == "at" else lambda name, nth: None
        proxy.after = self.strike if self.when == "after" else lambda name, nth: None
        begun = time.monotonic()
        when = "always" if self.stage in POST_COPY else "never"
        self.command = source.popen("migrate", "--post-copy", when, "--down-time", "1", "--bandwidth", "64M",
                                    *(["--copy-disks"] if self.stage in COPIED else []), "box", "unix:" + target.door)
        said, _ = self.command.communicate(timeout=PATIENCE)
        self.took = time.monotonic() - begun
        proxy.begin()
        if not self.hit:
            raise Exception("it never came to that: " + said)
        here = self.reconnect(said) if self.victim == "net" else self.settle(said)
        self.check_ticks(ticks(log.read()), here)
        return here

    def settle(self, said):
        """Checks what is where; the side that has the VM."""
        source, target = self.source, self.target
        where, runs, words = expect(self.victim, self.stage)
        if words is not None and words not in said:
            raise Exception("the command says %r, not %r" % (said, words))
        if said.count("\n") > 1:
            raise Exception("the command says more than a line: %r" % said)
        if self.victim == "receiver":
            target.listen()
        if where is None:  # nobody says when it is over
            wait("one side has it", lambda: source.empty() or (target.empty() and not self.is_moving()))
        here = target if where == "target" or (where is None and source.empty()) else source
        other = source if here is target else target
        if self.victim == "source" and here is target:
            check_marked(source)
            source.must("rm", "box")
        if self.victim == "source" and loses_memory("source", self.stage):
            target.must("stop", "--force", "box")  # it stands where it needs what was lost
        wait("%s has nothing" % other.name, other.empty)
        wait("no receiver is busy", lambda: target.served(True) is None)
        status = here.status()
        if runs is None:
            runs = here is source
        if runs != (status["status"] == "running"):
            raise Exception("at %s it is %r" % (here.name, status))
        if runs and here is source and status["pid"] != self.pid:
            raise Exception("another monitor has it")
        return here

    def reconnect(self, said):
        """The source holds it as long as it hears nothing, and learns then where it runs."""
        source, target = self.source, self.target
        if self.stage in MEMORY_COMES:
            self.must_say(said, "--resume")
            self.must_say(source.ask("resume", "box")[1], "runs at")
            target.proxy.open = True
            self.must_say(source.must("migrate", "--resume", "box"), "box runs at")
        else:
            self.doubt(said)
        if self.stage in ("gone", "post-gone"):
            self.must_say(source.ask("resume", "--force", "box")[1], "its disks are not to be had")
            target.proxy.open = True
        if self.stage == "gone":
            self.must_say(source.ask("resume", "box")[1], "it has moved")
        elif self.stage == "post-gone":
            self.must_say(source.must("migrate", "--resume", "box"), "box runs at")
        elif self.stage == "go":
            wait("the target has nothing", target.empty)
            source.must("resume", "--force", "box")
            target.proxy.open = True
        here, other = (source, target) if self.stage == "go" else (target, source)
        wait("%s has nothing" % other.name, other.empty)
        return here

    def doubt(self, said):
        """Both sides say what they know, and the source does not run it before somebody has decided."""
        source, target = self.source, self.target
        self.must_say(said, "it is held here: 'lodge resume' asks again, and 'lodge resume --force'")
        for _ in range(2):  # asking again changes nothing
            self.must_say(str(source.status()), "'status': 'paused'")
            self.must_say(source.must("ps"), "does not say whether it runs there")
            self.must_say(source.must("migrate", "--status", "box"), "doubtful")
            self.must_say(source.ask("resume", "box")[1], "does not say whether it runs there")
        self.must_say(source.ask("start", "box")[1], "already")
        self.must_say(source.ask("snapshot", "create", "box", "now")[1], "does not say whether it runs there")
        if self.stage == "go":
            wait("the target has nothing", target.empty)
            return
        wait("it is there", lambda: target.status() is not None)
        if self.stage == "gone":  # in post-copy it may stand, for memory that the source has
            last = max(ticks(read(target.vm + "/console.log")), default=0)
            wait("it runs there", lambda: max(ticks(read(target.vm + "/console.log")), default=0) > last)
            self.must_say(str(target.status()), "'status': 'running'")

    @staticmethod
    def must_say(said, words):
        if words not in said:
            raise Exception("it says %r, not %r" % (said, words))

    def is_moving(self):
        return self.source.ask("migrate", "--status", "box")[1].strip() in ("connecting", "copying", "switching", "asking", "post-copy")

    def check_ticks(self, before, here):
        """Each was heard from one monitor; where it runs it goes on."""
        log = here.vm + "/console.log"
        if here is self.target:
            twice = set(before) & set(ticks(read(log)))
            if twice:
                raise Exception("ticks of two monitors: %s" % sorted(twice))
        if here.status()["status"] != "running":
            return
        last = max(ticks(read(log)), default=0)
        wait("it goes on", lambda: max(ticks(read(log)), default=0) > max(last, max(before, default=0)))


def main():
    wanted = sys.argv[2:] or QUICK
    names = ["%s-%s" % (victim, stage) for victim in VICTIMS for stage in STAGES
             if (victim != "net" or stage in NET_STAGES) and (victim in ("link", "source", "target") or stage not in COPIED)]
    if wanted == ["all"]:
        wanted = names
    subprocess.run([lodge, "image", "path"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    source, target = Side("a"), Side("b")
    failures = 0
    try:
        disk = os.path.join(work, "disk.raw")
        with open(disk, "wb") as file:
            file.truncate(1 << 20)
        source.must("create", "--name", "box", "--engine", engine, "--memory", "128M", "--net", "none", "--disk", disk)
        boot(source)
        for name in wanted:
            victim, _, stage = name.partition("-")
            begun = time.monotonic()
            try:
                note(source)
                case = Case(victim, stage, source, target)
                here = case.run()
                if here.status()["status"] != "running":
                    boot(here)
                check_disk(here)
            except Exception as error:
                print("FAIL: %s: %s" % (name, error), flush=True)
                failures += 1
                break
            if here is target:
                source, target = target, source
            print("ok: %s: it is at %s (%.1f s, the command %.1f s)" % (name, here.name, time.monotonic() - begun, case.took),
                  flush=True)
    finally:
        for side in source, target:
            side.ask("rm", "-f", "box")
            side.receiver.kill()
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if failures else 0)


main()
