#!/bin/sh
# What the monitor takes beside guest RAM: translated code and all that is kept about it, at most
# 64 MiB; everything else, at most 24 MiB. For an idle guest, and behind programs that translate a
# lot. And what of guest RAM is made ready ahead: some of it is met, and the rest is no more than it
# may be.
. "$(dirname "$0")/lib.sh"
[ "$ENGINE" = soft ] || skip "what KVM takes is the kernel's"
! nm "$LODGE" | grep -q __asan_init || skip "sanitizers keep memory of their own"

export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$XDG_RUNTIME_DIR"
image=$("$SOURCE/tests/linux/tools-image" "$BUILD") || { fail "tools image"; finish; }

# limits WHAT: of the VM "memory" now
limits() {
    if python3 - "$XDG_RUNTIME_DIR/lodge/memory.sock" "$monitor" "$1" <<'EOF'
import json, re, socket, sys

path, pid, what = sys.argv[1:]
MIB, RAM, TRANSLATION, REST, AHEAD = 1 << 20, 512 << 20, 64 << 20, 24 << 20, 16

connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
stream = connection.makefile("rw")
stream.readline()
stream.write('{"execute": "query-counters"}\n')
stream.flush()
counters = json.loads(stream.readline())["return"]["counters"]

# Code is mapped twice, guest RAM is the mapping of its size.
resident, code, ram = 0, 0, None
with open(f"/proc/{pid}/smaps", encoding="ascii") as smaps:
    for line in smaps:
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ", line)
        if head:
            size, rights = int(head[2], 16) - int(head[1], 16), head[3]
        elif line.startswith("Rss:"):
            bytes_here = int(line.split()[1]) << 10
            if size == RAM and rights == "rw-p":
                ram = bytes_here
            elif rights == "r-xs":
                code += bytes_here
            else:
                resident += bytes_here
translation = counters["memory.code"] + counters["memory.metadata"]
rest = resident - translation
print(f"{what}: code {code / MIB:.1f}, code and metadata {translation / MIB:.1f}, "
      f"the rest {rest / MIB:.1f} MiB; {counters['translations']} translations, "
      f"{counters['flushes']} flushes")
if ram is None:
    sys.exit("guest RAM was not found")
# A page counts as there once it has run: one with nothing but the rare ends of blocks may not have.
if code < counters["memory.code"] * 15 // 16:
    sys.exit(f"{counters['memory.code']} bytes of code are told of, and there are {code}")
print(f"{what}: " + ", ".join(f"{name} {value}" for name, value in counters.items()
                            if name.startswith("ahead.")))
if counters["ahead.ready"] > AHEAD or counters["ahead.met"] + counters["ahead.ready"] > counters["ahead.made"]:
    sys.exit("more memory is ready than may be")
if what == "gdb" and counters["ahead.met"] == 0 and counters["ahead.made"] > 8:
    sys.exit("what was made ready was not what the guest needed")
if translation > TRANSLATION or rest > REST:
    sys.exit("too much")
EOF
    then
        echo "ok: $1"
    else
        fail "$1"
    fi
}

# Each step waits for a line on standard input, and says when it is done.
mkfifo "$work/go"
"$LODGE" run --engine "$ENGINE" --name memory -m 512M --disk "$image,readonly" -- sh -c '
    mkdir /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t tmpfs t /t/tmp
    echo step idle; read x
    chroot /t /tests/many && echo step many; read x
    chroot /t /usr/bin/gdb -nx -batch -ex "break step" -ex run -ex bt /tests/debuggee && echo step gdb; read x' \
    <"$work/go" >"$work/out" 2>"$work/err" &
monitor=$!
children="$children $monitor"
exec 3>"$work/go"
for step in idle many gdb; do
    tries=0
    until grep -q "step $step" "$work/out"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1200 ] || ! kill -0 "$monitor"; then
            fail "the guest does not come to $step"
            tail -n 15 "$work/out" "$work/err"
            finish
        fi
        sleep 0.2
    done
    limits "$step"
    echo >&3
done
exec 3>&-
wait "$monitor" || fail "the guest ended badly"
finish
