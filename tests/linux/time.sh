#!/bin/sh
# Time is an object: scaled, paused and caught up, all of the guest's clocks agree and none goes back.
. "$(dirname "$0")/lib.sh"
command -v cc >/dev/null || skip "no C compiler"
[ "$ENGINE" = soft ] || skip "only the soft engine scales time"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
cc -O2 -Wall -Werror -static -o "$work/clocks" "$SOURCE/tests/linux/programs/clocks.c"
lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
trap '"$LODGE" rm -f vm >/dev/null 2>&1 || true; cleanup' EXIT
member() { # NAME: of the VM's time
    lodge time -o json vm | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}
near() { # A B WHAT: within one per cent
    if python3 -c 'import sys; a, b = map(float, sys.argv[1:]); sys.exit(abs(a - b) > 0.01 * abs(b))' "$1" "$2"; then
        echo "ok: $3 ($1, $2)"
    else
        fail "$3: $1 is not near $2"
    fi
}

expect_exit 125 "a scale that is none" lodge_run --time-scale fast -- true
expect_one_line_error "a scale that is none"
expect_exit 125 "a scale that is too large" lodge_run --time-scale 1000 -- true
expect_exit 125 "a scale with KVM" lodge run --engine kvm --time-scale 2 -- true
expect_one_line_error "a scale with KVM"

lodge create --memory 256M --name vm --time-scale 60 --time-offset 86400 >/dev/null
lodge start vm
lodge cp "$work/clocks" vm:/bin/clocks
now=$(date +%s)
near "$(($(lodge exec vm date +%s) / 100))" "$(((now + 86400) / 100))" "the guest's date is a day ahead"
hz=$(member tsc-hz)

# The host's clock against the guest's, at both ends of what the guest measures of its own clocks against its TSC.
table() { # SCALE SECONDS CHECKS: of the guest, a quarter of a second here; how many clocks are compared
    scale=$1 checks=$3
    expect_exit 0 "scale $scale" lodge time --scale "$scale" vm
    lodge time -o json vm >"$work/before"
    lodge exec vm clocks "$2" "$hz" >"$work/table" || fail "scale $scale: clocks"
    lodge time -o json vm >"$work/after"
    sed "s/^/scale $scale: /" "$work/table"
    expect_same "$(grep -c '^ok' "$work/table"),$(grep -c -v '^ok' "$work/table")" "$checks,0" "scale $scale: all agree with the TSC"
    near "$(python3 -c '
import json, sys
before, after = (json.load(open(name)) for name in sys.argv[1:])
print((after["guest-seconds"] - before["guest-seconds"]) / (after["host-seconds"] - before["host-seconds"]))' \
        "$work/before" "$work/after")" "$scale" "scale $scale: guest time in the host's"
}
table 60 15 12
table 10 2.5 12
table 1 0.25 12
table 0.1 0.025 11

# A pause, with somebody reading all clocks: they stand, go on where they were, and come back to where they would be.
expect_exit 0 "scale 1" lodge time --scale 1 vm
lodge time -o json vm >"$work/before"
lodge exec vm clocks watch /tmp/end >"$work/watch" &
watcher=$!
lodge exec vm sh -c 'while ! grep -q watch /proc/[0-9]*/cmdline; do sleep 0.1; done'
lodge pause vm
stood=$(member guest-seconds)
sleep 2
expect_same "$(member guest-seconds)" "$stood" "paused, the guest's time stands"
lodge resume vm
python3 -c 'import sys; sys.exit(float(sys.argv[1]) < 1)' "$(member behind-seconds)" || fail "it is not behind"
for _ in $(seq 300); do
    [ "$(member behind-seconds)" != 0.0 ] || break
    sleep 0.2
done
expect_same "$(member behind-seconds)" 0.0 "it has caught up"
lodge exec vm touch /tmp/end
wait "$watcher" || true
expect_text "$work/watch" "ok no clock went back" "$(cat "$work/watch")"
lodge time -o json vm >"$work/after"
near "$(python3 -c '
import json, sys
before, after = (json.load(open(name)) for name in sys.argv[1:])
print((after["guest-seconds"] - before["guest-seconds"]) / (after["host-seconds"] - before["host-seconds"]))' \
    "$work/before" "$work/after")" 1 "no time is missing"
expect_exit 1 "a wrong scale" lodge time --scale 0 vm
expect_one_line_error "a wrong scale"
lodge rm -f vm

# Without catching up.
lodge create --engine soft --memory 256M --name vm --no-catch-up >/dev/null
lodge start vm
lodge pause vm
stood=$(member guest-seconds)
sleep 1
lodge resume vm
expect_same "$(member behind-seconds)" 0.0 "with --no-catch-up nothing is to be made up for"
lodge rm -f vm
finish
