#!/bin/sh
# A VM's snapshots move with it: by disks that both sides reach, and with disks that are copied.
. "$(dirname "$0")/migrate_lib.sh"

store() { # SIDE: of the VM
    echo "$work/$1/lodge/vms/box"
}
names() { # SIDE: of snapshots, the one that the VM goes on from with a star
    on "$1" snapshot ls -o json box | python3 -c '
import json, sys
print(*(s["name"] + ("*" if s["current"] else "") for s in json.load(sys.stdin)))'
}
# What the guest has of a moment: a word in memory, and on the disk 2 MiB whose sum is in memory, too.
write() { # SIDE WORD AT
    on "$1" exec box sh -c 'echo '"$2"' >/tmp/word; head -c 2097152 /dev/urandom | dd of=/dev/vda bs=1M seek='"$3"' conv=notrunc,fsync 2>/dev/null
        md5sum </dev/vda >/tmp/sum' || fail "$2 cannot be written"
}
has() { # SIDE WORD WHAT
    ready "$1"
    expect_same "$(on "$1" exec box sh -c 'echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vda | cmp - /tmp/sum && cat /tmp/word')" "$2" "$3"
}
back() { # SIDE SNAPSHOT WHAT
    expect_exit 0 "$3: back to $2" on "$1" snapshot restore --check box "$2"
    has "$1" "$2" "$3: what $2 had"
}

"$LODGE" disk create "$work/disk.lodge" 12M >/dev/null
head -c 3000000 /dev/urandom >"$work/more.raw"
truncate -s 4M "$work/more.raw"
"$LODGE" disk convert -q "$work/more.raw" "$work/more.qcow2"
printf '#!/bin/sh\n' >"$work/user-data"
on here create --name box --engine "$ENGINE" --memory 128M --net none --disk "$work/disk.lodge" \
    --disk "$work/more.qcow2,readonly" --disk "$work/more.raw,readonly" --cloud-init "$work/user-data" >/dev/null
expect_exit 0 "it starts" on here start box
write here first 0
on here snapshot create box first >/dev/null
write here second 1
on here disk snapshot create -q box disk0 mine >/dev/null
on here snapshot create --compress box second >/dev/null
on here exec box sh -c 'dd if=/dev/zero of=/dev/vda bs=1M count=1 seek=1 conv=notrunc,fsync 2>/dev/null'
write here third 4
on here snapshot create box third >/dev/null
back here first "before"
write here now 8

# ---- By a disk that both sides reach ----

listen there "unix:$work/there.socket"
listen here "unix:$work/here.socket"
expect_exit 0 "a clone of a snapshot" on here clone --name other box@first
expect_exit 1 "with a clone on it" on here migrate box "unix:$work/there.socket"
expect_text "$work/err" "'lodge rm other' first" "with a clone on it, its text"
on here rm -f other >/dev/null
seed=$(on here exec box md5sum /dev/vdd)
rm "$work/user-data" # another host has no such file
(
    expect_exit 1 "cancelled while its snapshots go" on here migrate --bandwidth 64K box "unix:$work/there.socket"
    expect_text "$work/err" "has been cancelled" "cancelled, its text"
    [ "$failures" = 0 ]
) &
moving=$!
until [ -e "$work/there/lodge/vms/.coming-box/snapshots/first/ram" ] || ! kill -0 "$moving" 2>/dev/null; do sleep 0.02; done
expect_exit 0 "it is cancelled" on here migrate --cancel box
wait "$moving" || fail "a cancelled move"
until [ -z "$(ls -A "$work/there/lodge/vms")" ]; do sleep 0.05; done
expect_exit 0 "snapshots can be made again" on here snapshot create box again
expect_exit 0 "and removed" on here snapshot rm box again
expect_exit 0 "it moves with its snapshots" on here migrate box "unix:$work/there.socket"
has there now "it goes on"
expect_same "$(ls -A "$work/here/lodge/vms")" "" "nothing is here"
expect_same "$(on there exec box sh -c 'echo 3 >/proc/sys/vm/drop_caches; md5sum /dev/vdd')" "$seed" "cloud-init's disk is there, as it was"
expect_same "$(names there)" "first* second third" "its snapshots are there"
for name in first second third; do back there $name "by the same disk"; done
write there fourth 6
expect_exit 0 "one that is made there" on there snapshot create box fourth

# ---- Disks that are copied ----

write there now 10
expect_exit 0 "it moves with copies of its disks" on there migrate --copy-disks box "unix:$work/here.socket"
cat "$work/out"
expect_text "$work/out" "disk1 was copied; $work/more.qcow2 stays here as it was" "they are told"
has here now "it goes on"
expect_same "$(names here)" "first second third fourth*" "its snapshots are here"
expect_same "$(cd "$(store here)" && ls disk*)" "disk0.lodge
disk1.lodge
disk2.raw" "its disks are in its directory"
for disk in vdb vdc; do
    expect_same "$(on here exec box sh -c "md5sum </dev/$disk; blockdev --getro /dev/$disk")" "$(md5sum <"$work/more.raw")
1" "a copy that is only read: $disk"
done
own=$(store here)/disk0.lodge
for name in vm:first mine vm:second vm:third vm:fourth; do
    expect_exit 0 "the copy has $name as it was" "$LODGE" disk diff "$work/disk.lodge,snapshot=$name" "$own,snapshot=$name"
done
[ "$(($(stat -c %b "$own") / 2048))" -le "$(($(stat -c %b "$work/disk.lodge") / 2048 + 2))" ] ||
    fail "the copy shares less: $(stat -c '%b %n' "$own" "$work/disk.lodge")"
for name in first fourth second third; do back here $name "by the copy"; done
expect_exit 0 "one of them is removed" on here snapshot rm box second
back here fourth "without one"
on here stop -t 0 box >/dev/null
expect_exit 0 "it is booted, where it was not made" on here start box
expect_same "$(on here exec box md5sum /dev/vdd)" "$seed" "cloud-init's disk is what it was"
expect_exit 0 "a clone" on here clone --name other box
on here stop -t 0 other box >/dev/null
expect_exit 0 "which is booted" on here start other
expect_same "$(on here exec other md5sum /dev/vdd)" "$seed" "cloud-init's disk is in the clone, too"
on here rm -f other >/dev/null
expect_exit 0 "the copy is whole" "$LODGE" disk check "$own"

# ---- A source that has ended, or is in doubt, keeps its hands off what is the target's now ----

on here rm box
expect_exit 0 "create by the old disk" on here create --name box --engine "$ENGINE" --memory 128M --net none --disk "$work/disk.lodge"
expect_exit 0 "start" on here start box
write here fifth 2
on here snapshot create box fifth >/dev/null
cp -r "$(store here)" "$work/left"
expect_exit 0 "it moves" on here migrate box "unix:$work/there.socket"
# As it is when the source's monitor was killed after it has handed it over.
mv "$work/left" "$(store here)"
echo '{"to": "there", "id": "0"}' >"$(store here)/moved-out.json"
for verb in "restore box fifth" "rm box fifth"; do
    expect_exit 1 "snapshot $verb of what may run elsewhere" on here snapshot $verb
    expect_one_line_error "snapshot $verb"
    expect_text "$work/err" "may run there" "snapshot $verb, its text"
done
on there stop -t 0 box >/dev/null
expect_exit 0 "it is removed" on here rm box
on there start box >/dev/null
back there fifth "it has left the disk alone"
finish
