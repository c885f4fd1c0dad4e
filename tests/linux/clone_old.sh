#!/bin/sh
# Clones of guests whose lodge-agent is older: one that hears who it is only when it has connected (6), and one that
# cannot be told at all (4).
. "$(dirname "$0")/lib.sh"

command -v cpio >/dev/null || skip "cpio is not installed"
export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"

lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
trap '"$LODGE" rm -f lasts box >/dev/null 2>&1 || true; cleanup' EXIT

. "$(dirname "$0")/bootdisk.sh" # sets $kernel and $initrd, has with_files

start_box() { # VERSION
    mkdir -p "$work/root"
    cp "$BUILD/guest/agent/lodge-agent-$1" "$work/root/init"
    with_files "$work/initrd"
    lodge create --name box --engine "$ENGINE" --memory 128M --net none --kernel "$kernel" --initrd "$work/initrd" >/dev/null
    expect_exit 0 "a guest with an agent of version $1" lodge start box
    lodge exec box sh -c 'echo kept >/tmp/kept; date -s 2001-01-01 >/dev/null'
    expect_exit 0 "its snapshot" lodge snapshot create box one
}

start_box 6
look='hostname; cat /tmp/kept; cat /run/lodge-agent/events; [ "$(date +%Y)" -gt 2001 ] || echo late'
expect_exit 0 "a command in a clone" lodge run --from box@one --name other -- sh -c "$look; cat /etc/machine-id"
cp "$work/out" "$work/first"
expect_exit 0 "and in another" lodge run --from box@one --name other -- sh -c "$look; cat /etc/machine-id"
expect_same "$(head -n 2 "$work/out" | paste -sd' ')" "other kept" "it is another machine, of the snapshot"
expect_same "$(sed -n 3p "$work/out" | grep -c '"event":"clone","number":1')" 1 "and heard of that before the command"
expect_same "$(wc -l <"$work/out")" 4 "its clock is right"
[ "$(tail -n 1 "$work/first")" != "$(tail -n 1 "$work/out")" ] && echo "ok: machine ids differ" || fail "two have one machine id"
expect_exit 7 "its exit code" lodge run --from box@one -- sh -c 'exit 7'
echo hello >"$work/in"
expect_exit 0 "its standard input" lodge run --from box@one -- cat <"$work/in"
expect_same "$(cat "$work/out")" hello "which arrives once"
expect_exit 0 "a clone that lasts" lodge clone --name lasts box@one
expect_same "$(lodge exec lasts sh -c "$look" | head -n 2 | paste -sd' ')" "lasts kept" "it is another machine"
lodge rm -f lasts >/dev/null
expect_exit 0 "back to the snapshot" lodge snapshot restore box one
expect_same "$(lodge exec box sh -c 'cat /tmp/kept; grep -c restore /run/lodge-agent/events' | paste -sd' ')" "kept 1" "it heard of that"
lodge rm -f box >/dev/null

start_box 4
for verb in "run --from box@one -- touch /tmp/ran" "clone --name lasts box@one"; do
    expect_exit 125 "lodge $verb" lodge $verb
    expect_one_line_error "lodge $verb"
    expect_text "$work/err" "too old to renew" "lodge $verb, its text"
done
expect_same "$(cd "$XDG_DATA_HOME/lodge/vms" && lodge ps -a | tail -n +2 | cut -d' ' -f1)" box "no clone is there"
expect_exit 0 "back to the snapshot, which needs no more" lodge snapshot restore box one
expect_same "$(lodge exec box cat /tmp/kept)" kept "it goes on from there"
lodge rm -f box >/dev/null
finish
