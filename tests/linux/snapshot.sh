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
"$LODGE" disk create "$work/nvme.lodge" 64M >/dev/null
lodge create --name box --engine "$ENGINE" --memory 256M --cpus 2 --disk "$work/disk.lodge" \
    --disk "$work/nvme.lodge,device=nvme" >/dev/null
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
    mkfifo /tmp/ask /tmp/lines
    setsid nc -l -p 9000 -e cat >/dev/null 2>&1 </dev/null &
    until grep -q ":2328 0*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.01; done # it listens
    setsid sh -c "nc 127.0.0.1 9000 </tmp/ask >/tmp/answers" >/dev/null 2>&1 &
    setsid sh -c "exec 3>/tmp/ask; while read line </tmp/lines; do echo \$line >&3; done" >/dev/null 2>&1 </dev/null &
    echo kept >/tmp/kept
    printf before | dd of=/dev/vda conv=notrunc 2>/dev/null
    printf nvme-before | dd of=/dev/nvme0n1 conv=notrunc,fsync 2>/dev/null
    setsid sh -c "while :; do dd if=/bin/busybox of=/dev/nvme0n1 bs=64k seek=16 conv=notrunc,fsync && echo >>/tmp/rounds; done" \
        >/dev/null 2>&1 </dev/null &
    until [ -s /tmp/count0 ] && [ -s /tmp/count1 ]; do sleep 0.01; done
' || fail "programs in the guest"
# A program that hears of clones, restores and moves.
guest '
    mkdir -p /etc/lodge-agent/hooks.d
    printf "#!/bin/sh\necho \$1 \$LODGE_NUMBER \$LODGE_GENERATION_ID >>/tmp/told\n" >/etc/lodge-agent/hooks.d/test
    chmod +x /etc/lodge-agent/hooks.d/test' || fail "a hook"
generation() { lodge ps -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["generation-id"])'; }
ids() { guest 'cat /run/lodge-agent/identity'; }
first=$(generation)
ids >"$work/ids"
expect_text "$work/ids" "generation-id=$first" "the guest knows its generation id"
expect_text "$work/ids" "events=0" "and of no event"
expect_same "$(cat "$XDG_DATA_HOME/lodge/vms/box/generation-id")" "$first" "which is kept"
lodge pause box >/dev/null
lodge resume box >/dev/null
expect_same "$(guest 'cat /run/lodge-agent/events 2>/dev/null | wc -l')" 0 "a pause is no event"
look='cat /tmp/count0 /tmp/count1; cut -d" " -f1 /proc/uptime; date +%s'
guest "$look" >"$work/before"

expect_exit 0 "a snapshot" lodge snapshot create -d "as it was" box one
cat "$work/out"
expect_text "$work/out" "the VM stood for" "it says for how long the VM stood"
refused "a second one of that name" "already" snapshot create box one
guest 'printf nvme-behind | dd of=/dev/nvme0n1 conv=notrunc,fsync 2>/dev/null
    printf behind | dd of=/dev/vda conv=notrunc 2>/dev/null; rm /tmp/kept; sync; echo >/tmp/later'
guest 'a=$(cat /tmp/count0); until [ "$(cat /tmp/count0)" -gt $((a + 20)) ]; do sleep 0.01; done'
expect_exit 0 "a second snapshot" lodge snapshot create -o json box two

# A further one keeps what has changed; another reader sees the same as in one that keeps all.
ram() { python3 "$(dirname "$0")/snapshot_ram.py" "$@" 2>&1; }
lodge pause box >/dev/null
n=0 own=
until [ "$own" = 0 ]; do # what devices had under way is in memory now
    n=$((n + 1))
    expect_exit 0 "a snapshot of a paused VM" lodge snapshot create box "part$n"
    expect_text "$work/out" "of changed memory" "it keeps what has changed"
    ram "$snapshots/part$n" >"$work/ram" || fail "$(cat "$work/ram")"
    read -r own pages base <"$work/ram"
    [ "$own" -lt $((pages / 4)) ] || fail "part$n keeps $own pages of $pages"
done
expect_exit 0 "all of the same moment" lodge snapshot create --full box all
lodge resume box >/dev/null
same() { # as in the one with all of memory
    ram "$snapshots/part$n" "$snapshots/all" >"$work/ram" && echo "ok: $1" || fail "$1: $(cat "$work/ram")"
}
same "what it keeps and what the others have is all of memory"
expect_same "$(ram "$snapshots/part1" | cut -d' ' -f3)" two "it builds upon the one before"
expect_same "$(ram "$snapshots/all" | cut -d' ' -f3)" - "one with all of memory builds upon none"
expect_exit 0 "its sums" lodge snapshot check box "part$n"

# What removes a base leaves its pages to those that build upon it.
expect_exit 0 "rm of a base" lodge snapshot rm box two
expect_same "$(ram "$snapshots/part1" | cut -d' ' -f3)" one "its child builds upon its base"
same "and nothing is lost"
expect_exit 0 "the child's sums" lodge snapshot check box "part$n"
expect_exit 0 "rm of all" lodge snapshot rm box all
expect_exit 0 "a second snapshot again, compressed" lodge snapshot create --compress box two
expect_text "$work/out" "compressed to" "it says to what"
[ -s "$snapshots/two/ram.zst" ] && [ ! -e "$snapshots/two/ram" ] || fail "it is compressed"
expect_exit 0 "its sums" lodge snapshot check box two
while [ $n -gt 0 ]; do
    expect_exit 0 "rm of part$n" lodge snapshot rm box "part$n"
    n=$((n - 1))
done

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

expect_same "$(lodge snapshot ls box | cut -d' ' -f1-6 | sed 's/ *$//')" "NAME
one
\`- two
   \`- (now)" "the tree as it is drawn"

# ---- Back to the first ----

back() { # NAME
    expect_exit 0 "back to $1" lodge snapshot restore box "$1"
    cat "$work/out" "$work/err"
}
host=$(date +%s)
back one
guest "$look" >"$work/after"
second=$(generation)
[ "$second" != "$first" ] || fail "the generation id is that of before"
ids >"$work/ids"
expect_text "$work/ids" "generation-id=$second" "the restored guest knows its new generation id"
expect_same "$(guest 'cat /run/lodge-agent/events' | grep -c '"event":"restore","number":1,"generation-id":"'"$second")" 1 \
    "it has heard of the restore"
expect_exit 0 "its hook has, too" guest "until [ -s /tmp/told ]; do sleep 0.01; done; grep -x 'restore 1 $second' /tmp/told"
expect_same "$(guest 'cat /run/lodge-agent/events /tmp/told | wc -l')" 2 "once each"
random() { guest 'od -An -tx1 -N32 /dev/urandom'; }
one=$(random)
python3 - "$work/before" "$work/after" >"$work/out" 2>&1 <<'PYTHON' || fail "counters and clocks went back: $(cat "$work/out")"
import sys
before, after = ([float(w) for w in open(f).read().split()] for f in sys.argv[1:])
assert len(before) == 4 and all(a >= b for a, b in zip(after, before)), (before, after)
PYTHON
expect_same "$(guest 'dd if=/dev/vda bs=6 count=1 2>/dev/null; cat /tmp/kept; ls /tmp/later 2>/dev/null')" \
    "beforekept" "disk and files are as they were"
expect_same "$(guest 'dd if=/dev/nvme0n1 bs=11 count=1 2>/dev/null')" nvme-before "and the NVMe disk"
expect_exit 0 "which is written to as before" guest '
    a=$(wc -l </tmp/rounds); until [ "$(wc -l </tmp/rounds)" -gt $((a + 3)) ]; do sleep 0.01; done
    ! dmesg | grep -iE "nvme.*(timeout|abort|reset|error)"'
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
guest 'echo compressed >/tmp/compressed'
expect_exit 0 "a compressed one" lodge snapshot create --compress --full box four
back four
expect_same "$(guest 'cat /tmp/compressed')" compressed "back to it"
expect_same "$(ls -A "$snapshots/four" | tr '\n' ' ')" "ram.map ram.zst snapshot.json state " "nothing is left of what was unpacked"
away() { lodge memory -o json box | python3 -c 'import json, sys; print(json.load(sys.stdin)["away"])'; }
[ "$(away)" -gt 0 ] && echo "ok: its pages come when they are touched" || fail "all of it was unpacked before the guest ran"
expect_exit 0 "all of its memory is kept again, for which it comes" lodge snapshot create --full box five
expect_same "$(away)" 0 "all of it is there"
expect_exit 0 "the sums" lodge snapshot check box five
expect_exit 0 "and back to that" lodge snapshot restore box five
expect_same "$(guest 'cat /tmp/compressed; dd if=/dev/vda bs=6 count=1 2>/dev/null')" "compressed
behind" "which is the same guest"
expect_exit 0 "it is removed" lodge snapshot rm box five
back four
refused "paging out what still comes from a snapshot" "lodge memory --page-in" memory --page-out box
expect_exit 0 "it is brought" lodge memory --page-in box
expect_same "$(away)" 0 "all of it"
expect_exit 0 "and can be paged out" lodge memory --page-out box
expect_same "$(guest 'cat /tmp/compressed')" compressed "the guest goes on"
back four
cp "$snapshots/four/ram.zst" "$work/ram.zst"
python3 - "$snapshots/four/ram.zst" <<'PYTHON'
import os, sys
size = os.path.getsize(sys.argv[1])
with open(sys.argv[1], 'r+b') as file: # its frames, not what says where they are
    file.seek(size // 4)
    file.write(bytes(size - size // 4))
PYTHON
expect_exit 1 "pages that cannot be had any more end the VM" lodge snapshot create --full box five
expect_text "$XDG_DATA_HOME/lodge/vms/box/monitor.log" "four cannot be read any more" "it says why"
cp "$work/ram.zst" "$snapshots/four/ram.zst"
printf x | dd of="$snapshots/four/ram.zst" bs=1 seek=9000 conv=notrunc 2>/dev/null
expect_exit 1 "check of a damaged one" lodge snapshot check box four
expect_text "$work/err" "ram.zst: it is damaged" "check of a damaged one, its text"
expect_exit 0 "it is removed" lodge snapshot rm box four
back three

# ---- Damage, for which the VM is not stopped ----

flip() { # in the first page that is no hole
    python3 -c '
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
at = os.lseek(fd, 0, os.SEEK_DATA) + 100
os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]), at)' "$1"
}
flip "$snapshots/three/ram"
expect_exit 1 "check of memory with a wrong bit" lodge snapshot check box three
expect_text "$work/err" "is damaged: its page" "check of memory with a wrong bit, its text"
expect_exit 1 "restore --check of it" lodge snapshot restore --check box three
expect_exit 0 "the VM runs" guest true
flip "$snapshots/three/ram"
expect_exit 0 "without it all is well" lodge snapshot check box three
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
[ "$(random)" != "$one" ] || fail "two restores give the same random numbers"
third=$(generation)
[ "$third" != "$second" ] || fail "two restores give the same generation id"

# ---- Branches ----

tree() { lodge snapshot ls box | tail -n +2 | cut -c1-32 | sed 's/ *$//'; }
guest 'echo left >/tmp/branch; printf left__ | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null'
expect_exit 0 "one branch" lodge snapshot create box left
back one
guest 'printf right_ | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; dd if=/dev/zero of=/tmp/zeros bs=1M count=64 2>/dev/null'
expect_exit 0 "another" lodge snapshot create box right
expect_same "$(tree)" "one
|- left
\`- right
   \`- (now)" "both are below the one that they went on from"
zeros=$(($(stat -c %b "$snapshots/right/ram") / 2048)) # MiB
[ "$zeros" -lt 48 ] && echo "ok: pages of zeros take no room" || fail "64 MiB of zeros take $zeros MiB"
expect_exit 0 "rm of the one in the middle" lodge snapshot rm box one
expect_same "$(tree)" "left
right
\`- (now)" "both are there without it"
expect_exit 0 "the sums of one branch" lodge snapshot check box left
expect_exit 0 "and of the other" lodge snapshot check box right
back left
expect_same "$(guest 'cat /tmp/branch /tmp/kept; dd if=/dev/vda bs=6 count=1 2>/dev/null')" "left
kept
left__" "it has what it took over, and its disk"
back right
expect_same "$(guest 'cat /tmp/branch 2>/dev/null; cat /tmp/kept; dd if=/dev/vda bs=6 count=1 2>/dev/null')" "kept
right_" "and so has the other"
python3 - "$snapshots" <<'PYTHON' # a deep tree, only to be looked at
import json, os, shutil, sys
about = json.load(open(sys.argv[1] + '/left/snapshot.json'))
parent = 'left'
for n in range(100):
    about.update(name=f'deep{n}', parent=parent)
    parent = about['name']
    os.mkdir(f'{sys.argv[1]}/{parent}')
    json.dump(about, open(f'{sys.argv[1]}/{parent}/snapshot.json', 'w'))
PYTHON
expect_same "$(lodge snapshot ls box | grep -c deep)" 100 "a deep tree is shown as a whole"
rm -r "$snapshots"/deep*
lodge rm -f box >/dev/null

# ---- What has none ----

truncate -s 1M "$work/raw"
lodge create --name box --engine "$ENGINE" --memory 256M --net none --disk "$work/raw" >/dev/null
lodge start box
refused "a raw disk" "is no lodge disk" snapshot create box one
expect_exit 0 "it runs on all the same" guest true
lodge rm -f box >/dev/null
finish
