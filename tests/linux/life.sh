#!/bin/sh
# The life cycle, as Debian's drivers see it: power button, reboot in place, watchdog, sleep states that are not there,
# and the control socket's events about it.
. "$(dirname "$0")/lib.sh"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"

# control VM COMMAND [ARGUMENTS]: one command on the control socket, its answer on standard output
cat >"$work/control" <<'EOF'
import json, os, socket, sys
vm, command = sys.argv[1:3]
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["XDG_RUNTIME_DIR"] + "/lodge/" + vm + ".sock")
f = s.makefile("rw")
f.readline()
if command == "events":  # until the VM ends
    print("watching", flush=True)
    for line in f:
        message = json.loads(line)
        print(message["event"], json.dumps(message.get("data", {}), sort_keys=True), flush=True)
    sys.exit()
f.write(json.dumps({"execute": command, "arguments": json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}"), "id": 1}) + "\n")
f.flush()
for line in f:
    if "id" in json.loads(line):
        print(line, end="")
        break
EOF
control() { python3 "$work/control" "$@"; }
watch() { # VM: events into $work/events, from now on
    : >"$work/events"
    python3 "$work/control" "$1" events >"$work/events" 2>/dev/null &
    watcher=$!
    children="$children $watcher"
    wait_for "$work/events" watching
}
wait_for() { # FILE TEXT
    for _ in $(seq 600); do
        grep -q "$2" "$1" && return 0
        sleep 0.1
    done
    fail "no '$2' in $1:"
    cat "$1"
}
lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
end_all() {
    for name in vm; do "$LODGE" rm -f "$name" >/dev/null 2>&1 || true; done
}
trap 'end_all; cleanup' EXIT

# ---- The power button, with nothing but ACPI ----

lodge create --engine "$ENGINE" --memory 256M --name vm --console serial --on-watchdog pause >/dev/null
lodge start vm
watch vm
wait_for "$XDG_DATA_HOME/lodge/vms/vm/console.log" '# '
expect_exit 0 "stop of a guest without agent" lodge stop -t 120 vm
wait "$watcher" || true
expect_same "$(grep -v ^MEMORY_CHANGE "$work/events" | tail -n 2 | tr '\n' ' ')" 'POWERDOWN {} SHUTDOWN {"reason": "guest-shutdown"} ' \
    "the ACPI power button was pressed, and the guest shut down"
lodge rm vm

# ---- With the agent: reboot in place, sleep, watchdog ----

expect_exit 2 "a generation id that is none" lodge create --name vm --generation-id 1234
expect_one_line_error "a generation id that is none"
id=b1946ac9-2492-4d23-9f1c-5c6f8a3de0b7
expect_exit 125 "a host's id that is none" env LODGE_HOST_ID=here "$LODGE" run --net none -- true
expect_one_line_error "a host's id that is none"
lodge create --engine "$ENGINE" --memory 256M --name vm --on-watchdog pause --generation-id $id >/dev/null
lodge start vm
lodge exec vm cat /run/lodge-agent/identity >"$work/ids"
expect_text "$work/ids" "generation-id=$id" "the guest has the generation id that was asked for"
pid=$(lodge ps -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])')
watch vm
expect_same "$(lodge exec vm cat /sys/power/mem_sleep)" "[s2idle]" "S3 is not offered"
# Written all the same: the guest wakes at once.
lodge exec vm sh -c 'dd if=/dev/port bs=1 skip=1540 count=2 of=/tmp/control 2>/dev/null
printf "\001\044" | dd of=/dev/port bs=2 seek=770 count=1 2>/dev/null; echo awake' >"$work/out"
expect_text "$work/out" awake "S3 by the register is refused, and the guest goes on"
lodge exec vm sh -c 'echo before >/tmp/mark; reboot -f' || true
wait_for "$work/events" RESET
for _ in $(seq 300); do
    lodge exec vm test ! -e /tmp/mark 2>/dev/null && break
    sleep 0.1
done
expect_exit 0 "after its reboot the guest is a new one" lodge exec vm test ! -e /tmp/mark
expect_same "$(lodge ps -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])')" "$pid" \
    "in the same process"
lodge exec vm sh -c 'cat /run/lodge-agent/identity; ls /run/lodge-agent' >"$work/out"
expect_same "$(cat "$work/out")" "$(cat "$work/ids"; echo identity)" "as the same one, and has heard of no event"

lodge exec vm sh -c 'modprobe wdat_wdt; cat /sys/class/watchdog/watchdog0/identity; cat /sys/class/watchdog/watchdog0/bootstatus' >"$work/out"
expect_text "$work/out" wdat_wdt "Linux has the watchdog"
expect_text "$work/out" 0 "which has not fired"
# Reset in time for twice its time, it stays quiet; closed with the magic letter, it stops.
lodge exec vm sh -c 'busybox watchdog -F -T 2 -t 1 /dev/watchdog & sleep 5; kill $!; wait; cat /sys/class/watchdog/watchdog0/state' >"$work/out"
expect_text "$work/out" inactive "a watchdog that is closed in order stops"
expect_same "$(grep -c WATCHDOG "$work/events")" 0 "and has not fired before"
lodge exec vm sh -c 'busybox watchdog -F -T 2 -t 1000 /dev/watchdog' >/dev/null 2>&1 &
neglecting=$!
wait_for "$work/events" WATCHDOG
expect_text "$work/events" 'WATCHDOG {"action": "pause"}' "a neglected watchdog tells"
expect_text "$work/events" 'STOP {}' "and pauses the VM"
expect_text /dev/stdin '"status": "paused"' "which is so" <<EOF
$(lodge ps -o json)
EOF
expect_exit 0 "it can be resumed" lodge resume vm
expect_exit 0 "and lives on" lodge exec vm true
expect_same "$(control vm system_powerdown '{"way": "acpi"}')" '{"return":{"way":"acpi"},"id":1}' "the power button once more"
wait "$watcher" || true
wait "$neglecting" || true
expect_text "$work/events" 'SHUTDOWN {"reason": "guest-shutdown"}' "ends it, agent or not"
expect_exit 0 "rm, while its monitor ends" lodge rm vm

# ---- The other things that a watchdog does ----

neglect='modprobe wdat_wdt; busybox watchdog -F -T 1 -t 1000 /dev/watchdog'
expect_exit 116 "--on-watchdog poweroff" lodge_run --on-watchdog poweroff -- sh -c "$neglect"
expect_text "$work/err" "watchdog" "said in a line: $(tail -n 1 "$work/err")"
expect_exit 116 "reset would run the command again" lodge_run -- sh -c "$neglect"
expect_exit 9 "--on-watchdog none" lodge_run --on-watchdog none -- sh -c "($neglect) & sleep 3; exit 9"
expect_text "$work/err" "watchdog" "but it is said"
lodge create --engine "$ENGINE" --memory 256M --name vm >/dev/null
lodge start vm
watch vm
lodge exec vm sh -c "$neglect" >/dev/null 2>&1 || true
wait_for "$work/events" RESET
for _ in $(seq 300); do
    lodge exec vm true 2>/dev/null && break
    sleep 0.1
done
expect_exit 0 "after a reset by the watchdog" lodge exec vm sh -c 'modprobe wdat_wdt; cat /sys/class/watchdog/watchdog0/bootstatus'
expect_same "$(cat "$work/out")" 32 "the guest can tell (WDIOF_CARDRESET)"
# A client that knows the protocol only by its document, and bad requests.
expect_text /dev/stdin '"way":"agent"' "system_powerdown takes the agent when it can" <<EOF
$(control vm system_powerdown)
EOF
wait "$watcher" || true
expect_exit 0 "rm, while its monitor ends" lodge rm vm
finish
