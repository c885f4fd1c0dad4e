#!/bin/sh
# Monitors and commands that are killed at each of their renames, syncs and removals while snapshots are made,
# removed and gone back to: afterwards the list is right, disks have what the list says, and the VM starts; disks
# and UEFI variables have either what they had before or what the snapshot has, all of them.
. "$(dirname "$0")/lib.sh"
step=${KILL_STEP:-11} # of their calls only each so manyth: KILL_STEP=1 for all, some minutes
preload=$BUILD/tests/linux/kill_at.so
[ -e "$preload" ] || skip "no $preload: not with sanitizers"
export KILL_AT="$work/kill"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"

lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
trap '"$LODGE" rm -f box fw >/dev/null 2>&1 || true; cleanup' EXIT
"$LODGE" image path >/dev/null 2>&1

# Names as the list, the disk and the store have them; all three agree once a VM was started.
names() { lodge snapshot ls -o json box | python3 -c 'import json, sys; print(*sorted(s["name"] for s in json.load(sys.stdin)))'; }
disk_names() {
    lodge disk snapshot ls -o json "$@" | python3 -c '
import json, sys
print(*sorted(s["name"][3:] for s in json.load(sys.stdin) if s["name"].startswith("vm:")))'
}
whole() { # LABEL
    for name in $(names); do
        expect_exit 0 "$1: $name is whole" lodge snapshot check box "$name"
    done
    "$LODGE" disk check "$work/disk.lodge" >"$work/out" 2>&1 || fail "$1: the disk: $(cat "$work/out")"
}
ended() { # waits until no process has the VM
    until lodge ps -a -o json | grep -q '"status": "stopped"'; do sleep 0.05; done
}
# Those that are counted: monitors that a command starts inherit it.
counted() { LD_PRELOAD="$preload" timeout --foreground -k 10 240 "$LODGE" "$@"; }

"$LODGE" disk create "$work/disk.lodge" 16M >/dev/null
lodge create --name box --engine "$ENGINE" --memory 128M --net none --disk "$work/disk.lodge" >/dev/null ||
    fail "create"
lodge start box >/dev/null || fail "start"
lodge snapshot create box first >/dev/null || fail "the first snapshot"
lodge stop -t 0 box >/dev/null

# While one is made: the monitor.
n=1 finished=no
while [ $finished = no ] && [ $n -lt ${KILLS:-40} ]; do
    counted snapshot restore box first >/dev/null || fail "restore before kill $n"
    echo $n >"$KILL_AT"
    lodge snapshot create box "made$n" >/dev/null 2>&1 && finished=yes || true
    rm "$KILL_AT"
    if [ $finished = no ]; then
        ended
        lodge start box >/dev/null 2>"$work/err" || fail "start after kill $n: $(cat "$work/err")"
    fi
    lodge stop -t 0 box >/dev/null
    expect_same "$(names)" "$(disk_names "$work/disk.lodge")" "made, kill $n: list and disk agree"
    whole "made, kill $n"
    lodge snapshot rm box "made$n" >/dev/null 2>&1 || true
    n=$((n + step))
done
echo "ok: a monitor was killed at some of its $((n - 2 * step)) to $((n - step - 1)) calls while it made a snapshot"
[ $finished = yes ] || fail "making one never came to its end"

# While one is removed, and gone back to: the command.
for verb in rm restore; do
    n=1 finished=no
    while [ $finished = no ] && [ $n -lt ${KILLS:-60} ]; do
        if ! names | grep -q third; then
            lodge snapshot restore box first >/dev/null || fail "restore before $verb $n"
            lodge snapshot create box second >/dev/null || fail "second before $verb $n"
            lodge snapshot create box third >/dev/null || fail "third before $verb $n"
            lodge stop -t 0 box >/dev/null
        fi
        echo $n >"$KILL_AT"
        counted snapshot $verb box second >/dev/null 2>&1 && finished=yes || true
        rm "$KILL_AT"
        lodge stop -t 0 box >/dev/null 2>&1 || true
        if [ $verb = rm ]; then # as any command that touches snapshots does
            expect_exit 1 "the next rm after kill $n" lodge snapshot rm box nobody
        else
            lodge start box >/dev/null 2>"$work/err" || fail "start after $verb $n: $(cat "$work/err")"
            lodge stop -t 0 box >/dev/null
        fi
        expect_same "$(names)" "$(disk_names "$work/disk.lodge")" "$verb, kill $n: list and disk agree"
        expect_same "$(names | tr ' ' '\n' | grep -c third)" 1 "$verb, kill $n: the one behind stays"
        whole "$verb, kill $n"
        names | grep -q second || lodge snapshot rm box third >/dev/null || true
        n=$((n + step))
    done
    echo "ok: lodge snapshot $verb was killed at some of its $((n - 2 * step)) to $((n - step - 1)) calls"
    [ $finished = yes ] || fail "$verb never came to its end"
done
# ---- What disks and UEFI variables have after going back was killed ----

home=$XDG_DATA_HOME/lodge/vms/fw
fill() { # what the disk has from now on
    expect_exit 0 "a guest writes" lodge_run --net none --disk "$work/fw.lodge" -- sh -c 'head -c 3000000 /dev/urandom >/dev/vda && sync'
}
"$LODGE" disk create "$work/fw.lodge" 16M >/dev/null
fill
lodge create --name fw --engine "$ENGINE" --memory 256M --net none --firmware ovmf --disk "$work/fw.lodge" >/dev/null || fail "create"
lodge start fw >/dev/null || fail "start"
until lodge logs fw | grep -q "Shell>"; do sleep 0.1; done # the firmware writes no variables any more
lodge snapshot create fw kept >/dev/null || fail "a snapshot with firmware"
lodge stop -t 0 fw >/dev/null
fill
lodge disk snapshot create "$work/fw.lodge" changed >/dev/null
printf 'changed' | dd of="$home/uefi-variables" bs=1 seek=200000 conv=notrunc 2>/dev/null
cp "$home/uefi-variables" "$work/variables"
disk_has() { "$LODGE" disk diff "$work/fw.lodge" "$work/fw.lodge,snapshot=$1" >/dev/null 2>&1; }
what_disk() { if disk_has changed; then echo before; elif disk_has vm:kept; then echo kept; else echo neither; fi; }
what_variables() { # they are in the state of the snapshot as they were
    python3 - "$home/uefi-variables" "$work/variables" "$home/snapshots/kept/state" <<'END'
import sys
now, changed, kept = (open(name, "rb").read() for name in sys.argv[1:])
print("before" if now == changed else "kept" if now in kept else "neither")
END
}
n=1 finished=no seen=
while [ $finished = no ] && [ $n -lt 100 ]; do
    lodge disk snapshot apply "$work/fw.lodge" changed >/dev/null 2>"$work/err" || fail "apply: $(cat "$work/err")"
    cp "$work/variables" "$home/uefi-variables"
    expect_same "$(what_disk) $(what_variables)" "before before" "before kill $n"
    echo $n >"$KILL_AT"
    counted snapshot restore fw kept >/dev/null 2>&1 && finished=yes || true
    rm "$KILL_AT"
    lodge stop -t 0 fw >/dev/null 2>&1 || true
    expect_exit 1 "the next rm after kill $n" lodge snapshot rm fw nobody
    has=$(what_disk)
    expect_same "$(what_variables)" "$has" "kill $n: variables and disk are of one time ($has)"
    [ "$has" != neither ] || fail "kill $n: the disk is neither as before nor as in the snapshot"
    ! grep -q "going back to 'kept' was broken off" "$work/err" || expect_same "$has" kept "kill $n: it is as it is said"
    seen="$seen $has$(grep -c 'was broken off' "$work/err" || true)"
    n=$((n + ${KILL_STEP:-2}))
done
echo "ok: going back was killed at some of its calls, up to the last one:$seen"
for kind in before0 kept1 kept0; do expect_same "$(echo "$seen" | grep -cw $kind)" 1 "some were $kind"; done
[ $finished = yes ] || fail "going back never came to its end"
expect_same "$has" kept "it has gone back"
expect_exit 0 "rm of the VM with firmware" lodge rm fw
expect_exit 0 "rm of the VM" lodge rm box
expect_same "$(disk_names "$work/disk.lodge")" "" "the disk has none of its snapshots any more"
finish
