#!/bin/sh
# Snapshots of running VMs: memory, processors, devices and disks of one moment, and back to them.
. "$(dirname "$0")/lib.sh"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
snapshots=$XDG_DATA_HOME/lodge/vms/box/snapshots

lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
guest() { lodge exec box sh -c "$1"; }
trap '"$LODGE" rm -f box >/dev/null 2>&1 || true; cleanup' EXIT

"$LODGE" image path >/dev/null 2>&1 # its assembly says a line, which no error is to be mixed with

refused() { # WHAT TEXT ARGUMENTS...
    label=$1 text=$2
    shift 2
    expect_exit 1 "$label" lodge "$@"
    expect_one_line_error "$label"
    expect_text "$work/err" "$text" "$label, its text"
}
refused "a snapshot of no VM" "no VM named" snapshot create nobody one
expect_exit 2 "no action of that name" lodge snapshot undo box
expect_exit 0 "its help" lodge snapshot --help

"$LODGE" disk create "$work/disk.lodge" 64M >/dev/null
lodge create --name box --engine "$ENGINE" --memory 256M --cpus 2 --disk "$work/disk.lodge" >/dev/null
expect_exit 0 "it starts" lodge start box
refused "a snapshot that is not there" "no snapshot 'one'" snapshot restore box one
refused "a name that cannot be" "no name for a snapshot" snapshot create box ../one
refused "rm of one that is not there" "no snapshot 'one'" snapshot rm box one
expect_same "$(lodge snapshot ls -o json box)" "[]" "there are none yet"
mkdir -p "$snapshots/current" # where a file ought to be
refused "one that cannot be made the current one" "current" snapshot create box one
rmdir "$snapshots/current"
expect_same "$(lodge snapshot ls -o json box)" "[]" "it has left nothing"
expect_exit 0 "and the guest goes on" guest true

# A program that counts on each processor, a connection within the guest, marks on the disk.
guest '
    for cpu in 0 1; do
        taskset -p $((1 << cpu)) $$ >/dev/null 2>&1
        setsid sh -c "n=0; while sleep 0.01; do n=\$((n + 1)); echo \$n >/tmp/count$cpu.new; mv /tmp/count$cpu.new /tmp/count$cpu; done" \
            >/dev/null 2>&1 </dev/null &
    done
    mkfifo /tmp/ask
    setsid nc -l -p 9000 -e cat >/dev/null 2>&1 </dev/null &
    until grep -q ":2328 0*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.01; done # it listens
    setsid sh -c "nc 127.0.0.1 9000 </tmp/ask >/tmp/answers" >/dev/null 2>&1 &
    setsid sh -c "exec 3>/tmp/ask; while read line </tmp/lines; do echo \$line >&3; done" >/dev/null 2>&1 </dev/null &
    mkfifo /tmp/lines
    echo kept >/tmp/kept
    printf before | dd of=/dev/vda conv=notrunc 2>/dev/null
    until [ -s /tmp/count0 ] && [ -s /tmp/count1 ]; do sleep 0.01; done
' || fail "programs in the guest"
look='cat /tmp/count0 /tmp/count1; cut -d" " -f1 /proc/uptime; date +%s'
guest "$look" >"$work/before"

expect_exit 0 "a snapshot" lodge snapshot create -d "as it was" box one
cat "$work/out"
expect_text "$work/out" "the VM stood for" "it says for how long the VM stood"
refused "a second one of that name" "already" snapshot create box one
guest 'printf behind | dd of=/dev/vda conv=notrunc 2>/dev/null; rm /tmp/kept; sync; echo >/tmp/later'
guest 'a=$(cat /tmp/count0); until [ "$(cat /tmp/count0)" -gt $((a + 20)) ]; do sleep 0.01; done'
expect_exit 0 "a second snapshot" lodge snapshot create -o json box two

# A third that does not fit leaves nothing, and the guest goes on.
monitor=$(lodge ps -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])')
prlimit --pid "$monitor" --fsize=50000000:
refused "a snapshot that does not fit" "cannot write the guest's memory" snapshot create box large
prlimit --pid "$monitor" --fsize=unlimited: || prlimit --pid "$monitor" --fsize="$(ulimit -H -f):"
expect_exit 0 "the guest goes on" guest 'a=$(cat /tmp/count1); until [ "$(cat /tmp/count1)" -gt $((a + 5)) ]; do sleep 0.01; done'
expect_same "$(ls -A "$snapshots" | tr '\n' ' ')" "current one two " "nothing is left of it"
expect_same "$(lodge disk snapshot ls -o json box disk0 | grep -c vm:)" 2 "and none of the disk's"

lodge snapshot ls -o json box >"$work/list"
expect_same "$(python3 -c '
import json, sys
print([(s["name"], s["parent"], s["description"], s["current"]) for s in json.load(sys.stdin)])' <"$work/list")" \
    "[('one', None, 'as it was', False), ('two', 'one', '', True)]" "the tree of snapshots"

# ---- Back to the first ----

back() { # NAME
    expect_exit 0 "back to $1" lodge snapshot restore box "$1"
    cat "$work/out" "$work/err"
}
host=$(date +%s)
back one
guest "$look" >"$work/after"
python3 - "$work/before" "$work/after" >"$work/out" 2>&1 <<'PYTHON' || fail "counters and clocks went back: $(cat "$work/out")"
import sys
before, after = ([float(w) for w in open(f).read().split()] for f in sys.argv[1:])
assert len(before) == 4 and all(a >= b for a, b in zip(after, before)), (before, after)
PYTHON
expect_same "$(guest 'dd if=/dev/vda bs=6 count=1 2>/dev/null; cat /tmp/kept; ls /tmp/later 2>/dev/null')" \
    "beforekept" "disk and files are as they were"
expect_exit 0 "both programs go on counting" guest '
    for f in /tmp/count0 /tmp/count1; do
        a=$(cat $f); until [ "$(cat $f)" -gt $((a + 20)) ]; do sleep 0.01; done
    done'
expect_exit 0 "a connection within the guest goes on" guest '
    echo hello >/tmp/lines; until grep -q hello /tmp/answers; do sleep 0.01; done'
expect_exit 0 "time goes on" guest '
    a=$(cut -d" " -f1 /proc/uptime); until [ "$(cut -d" " -f1 /proc/uptime)" != "$a" ]; do :; done'
expect_exit 0 "its RTC has the right time" guest "[ \$(cat /sys/class/rtc/rtc0/since_epoch) -ge $host ]"
expect_exit 0 "both processors work" guest 'nproc | grep -q 2; for i in 1 2; do taskset $i true || exit 1; done'
expect_exit 0 "the disk works" guest 'dd if=/dev/zero of=/dev/vda bs=1M count=8 seek=8 conv=fsync 2>/dev/null'
expect_exit 0 "the network works" guest 'ping -c 1 -W 20 10.0.2.2 >/dev/null'
expect_same "$(guest 'dmesg | grep -ciE "oops|bug:|stall|lockup"')" 0 "its kernel has nothing to complain of"

# ---- On to the second, a third of a machine that came from a file, and removal ----

back two
expect_same "$(guest 'dd if=/dev/vda bs=6 count=1 2>/dev/null; ls /tmp/kept 2>/dev/null')" behind "on to the second"
expect_exit 0 "a snapshot of a restored VM" lodge snapshot create box three
expect_exit 0 "the one it came from is removed while it runs" lodge snapshot rm box two
expect_same "$(lodge snapshot ls -o json box | python3 -c '
import json, sys
print([(s["name"], s["parent"], s["current"]) for s in json.load(sys.stdin)])')" \
    "[('one', None, False), ('three', 'one', True)]" "its child is its parent's"
expect_exit 0 "it runs on" guest 'cat /tmp/count0 >/dev/null'
expect_exit 0 "it stops" lodge stop -t 0 box
back three
expect_exit 0 "a stopped VM goes on from a snapshot" guest 'cat /tmp/count0 >/dev/null'

# ---- Damage, for which the VM is not stopped ----

cp "$snapshots/three/state" "$work/state"
truncate -s 10000 "$snapshots/three/state"
expect_exit 1 "a snapshot that is cut short" lodge snapshot restore box three
expect_text "$work/err" "it ends before" "a snapshot that is cut short, its text"
python3 - "$work/state" "$snapshots/three/state" <<'PYTHON'
import sys
data = bytearray(open(sys.argv[1], 'rb').read())
data[len(data) // 2] ^= 1
open(sys.argv[2], 'wb').write(data)
PYTHON
expect_exit 1 "a snapshot with a wrong bit" lodge snapshot restore box three
expect_text "$work/err" "is damaged" "a snapshot with a wrong bit, its text"
expect_exit 0 "the VM runs all the same" guest true
lodge stop -t 0 box >/dev/null
cp "$work/state" "$snapshots/three/state"
truncate -s 4096 "$snapshots/three/ram"
expect_exit 1 "memory that is cut short" lodge snapshot restore box three
expect_text "$work/err" "bytes of memory" "memory that is cut short, its text"
expect_exit 0 "it can be removed" lodge snapshot rm box three
expect_same "$("$LODGE" disk snapshot ls -o json "$work/disk.lodge" | grep -c vm:)" 1 "and so is the disk's"
back one
expect_exit 0 "the other one is whole" guest 'cat /tmp/kept'
lodge rm -f box >/dev/null

# ---- What has none ----

truncate -s 1M "$work/raw"
lodge create --name box --engine "$ENGINE" --memory 256M --net none --disk "$work/raw" >/dev/null
lodge start box
refused "a raw disk" "is no lodge disk" snapshot create box one
expect_exit 0 "it runs on all the same" guest true
lodge rm -f box >/dev/null
finish
