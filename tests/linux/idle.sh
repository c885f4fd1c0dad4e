#!/bin/sh
# Idle states by ACPI: Linux's own driver takes the table up, enters its states, and reads it anew when it is another one.
. "$(dirname "$0")/lib.sh"

[ "$ENGINE" = soft ] || skip "idle states are the soft engine's"
export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
guest() { lodge exec box sh -c "$1"; }
trap '"$LODGE" rm -f box >/dev/null 2>&1 || true; cleanup' EXIT
"$LODGE" image path >/dev/null 2>&1

control() { # COMMAND ARGUMENTS: the answer
    python3 - "$XDG_RUNTIME_DIR/lodge/box.sock" "$@" <<'PYTHON'
import json, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
f = s.makefile('rw')
f.readline()
f.write(json.dumps({'execute': sys.argv[2], 'arguments': json.loads(sys.argv[3]), 'id': 1}) + '\n'); f.flush()
for line in f:
    answer = json.loads(line)
    if answer.get('id') == 1:
        print(json.dumps(answer.get('return', answer.get('error'))))
        break
PYTHON
}

expect_exit 125 "no such file" lodge run --idle-states "$work/none" -- true
expect_one_line_error "no such file"
printf 'C1 5\nC2 1\n' >"$work/table"
expect_exit 125 "a table that falls" lodge run --idle-states "$work/table" -- true
expect_one_line_error "a table that falls"
expect_exit 125 "KVM" lodge run --engine kvm --idle-states "$work/table" -- true

printf 'C1 1 1000\nC2 20 500\nC6 300 100\n' >"$work/table"
lodge create --name box --memory 256M --cpus 2 --net none --idle-states "$work/table" >/dev/null
expect_exit 0 "it starts" lodge start box
expect_same "$(guest 'cat /sys/devices/system/cpu/cpuidle/current_driver')" acpi_idle "Linux's driver for ACPI has taken it"
states='cd /sys/devices/system/cpu; for cpu in 0 1; do for s in cpu$cpu/cpuidle/state*; do echo $(cat $s/name $s/latency); done; done'
expect_same "$(guest "$states" | tr '\n' ' ')" "POLL 0 C1 1 C2 20 C3 300 POLL 0 C1 1 C2 20 C3 300 " "and shows it on both processors"
expect_exit 0 "its deepest state is entered, on both" guest '
    for cpu in 0 1; do until [ $(cat /sys/devices/system/cpu/cpu$cpu/cpuidle/state3/usage) -gt 5 ]; do sleep 0.02; done; done'
control query-idle-states '{}' >"$work/out"
python3 -c '
import json, sys
r = json.load(sys.stdin)
assert [(s["name"], s["latency-us"], s["power-mw"]) for s in r["states"]] == [("C1", 1, 1000), ("C2", 20, 500), ("C6", 300, 100)], r
assert r["states"][2]["entries"] > 5 and r["read"] == [True, True] and r["changes"] == 0 and r["gated"] == 0, r
' <"$work/out" || { fail "the monitor's words"; cat "$work/out"; }

# ---- Another table, while it runs ----

expect_same "$(control set-idle-states '{"table": "C1 9\nC2 9\n"}' | grep -c BadArgument)" 1 "a table that is none"
expect_same "$(control set-idle-states '{"table": "C1 2\nC1E 40\n"}')" '{}' "another table"
# Linux's cpuidle shows a state's first latency for ever (exit_latency_ns), so that the states tell, and who has read the table.
names='cd /sys/devices/system/cpu; for cpu in 0 1; do cat cpu$cpu/cpuidle/state*/name; done'
expect_exit 0 "the guest has it" guest 'until [ -e /sys/devices/system/cpu/cpu1/cpuidle/state2 ] &&
    [ ! -e /sys/devices/system/cpu/cpu1/cpuidle/state3 ]; do sleep 0.02; done'
expect_same "$(guest "$names" | tr '\n' ' ')" "POLL C1 C2 POLL C1 C2 " "on both processors"
control query-idle-states '{}' >"$work/out"
expect_text "$work/out" '"changes": 1, "read": [true, true]' "which have read it"
entered() { control query-idle-states '{}' | python3 -c 'import json, sys; print(json.load(sys.stdin)["states"][1]["entries"])'; }
before=$(entered)
expect_exit 0 "and idles on with it" guest 'a=$(cat /sys/devices/system/cpu/cpu0/cpuidle/state2/usage)
    until [ $(cat /sys/devices/system/cpu/cpu0/cpuidle/state2/usage) -gt $((a + 3)) ]; do sleep 0.02; done'
[ "$(entered)" -gt "$before" ] || fail "no entries are counted"

# ---- A host with another table: a snapshot that goes on there ----

expect_exit 0 "a snapshot" lodge snapshot create box one
printf 'C1 3\n' >"$work/table"
expect_exit 0 "goes on with the file's" lodge snapshot restore box one
expect_exit 0 "the guest reads that" guest 'until [ -e /sys/devices/system/cpu/cpu1/cpuidle/state1 ] &&
    [ ! -e /sys/devices/system/cpu/cpu1/cpuidle/state2 ]; do sleep 0.02; done'
control query-idle-states '{}' >"$work/out"
expect_text "$work/out" '"changes": 2, "read": [true, true]' "and knows it to be another one"
expect_same "$(guest 'dmesg | grep -ciE "oops|bug:|stall|lockup|acpi (error|exception|warning)"')" 0 "its kernel has nothing to complain of"
finish
