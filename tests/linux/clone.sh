#!/bin/sh
# Clones: VMs that go on from another VM's snapshot as VMs of their own.
. "$(dirname "$0")/lib.sh"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
vms=$XDG_DATA_HOME/lodge/vms

lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
trap '"$LODGE" rm -f third box-2 box-1 half half-1 half-2 half-3 half-4 half-5 half-6 box >/dev/null 2>&1 || true; cleanup' EXIT

"$LODGE" image path >/dev/null 2>&1 # its assembly says a line, which no error is to be mixed with

refused() { # CODE WHAT TEXT ARGUMENTS...
    code_wanted=$1 label=$2 text=$3
    shift 3
    expect_exit "$code_wanted" "$label" lodge "$@"
    expect_one_line_error "$label"
    expect_text "$work/err" "$text" "$label, its text"
}

"$LODGE" disk create "$work/disk.lodge" 64M >/dev/null
lodge create --name box --engine "$ENGINE" --memory 256M --disk "$work/disk.lodge" >/dev/null
refused 125 "from a VM that is not there" "no VM named 'nobody'" run --from nobody@one -- true
refused 125 "from no snapshot" "VM@SNAPSHOT" run --from box -- true
refused 125 "from a snapshot that is not there" "lodge snapshot create box one" run --from box@one -- true
expect_exit 0 "it starts" lodge start box
lodge exec box sh -c '
    printf before | dd of=/dev/vda conv=notrunc 2>/dev/null
    echo kept >/tmp/kept; echo box >/etc/hostname; date -s 2001-01-01 >/dev/null' || fail "setting up"
expect_exit 0 "a snapshot" lodge snapshot create box one
lodge exec box sh -c 'printf behind | dd of=/dev/vda conv=notrunc 2>/dev/null; sync'

# ---- A command in a VM of its own ----

look='hostname; cat /etc/machine-id /sys/class/net/eth0/address; head -c 16 /dev/urandom | sha256sum
    cat /etc/hostname /tmp/kept; head -c 6 /dev/vda; echo; date +%s
    grep generation-id /run/lodge-agent/identity; cat /run/lodge-agent/events'
printf 'hello' >"$work/in"
expect_exit 0 "a command in a clone" lodge run --from box@one -- sh -c "$look"
cp "$work/out" "$work/first"
expect_exit 0 "another" lodge run --from box@one --name other -- sh -c "$look"
cp "$work/out" "$work/second"
cat "$work/first" "$work/second"
python3 - "$work/first" "$work/second" "$(date +%s)" >"$work/out" 2>&1 <<'PYTHON' || fail "identities: $(cat "$work/out")"
import json, re, sys
one, two = (open(f).read().split('\n') for f in sys.argv[1:3])
assert re.fullmatch('box-[0-9a-f]{6}', one[0]) and two[0] == 'other', 'host names'
for n, form in (1, '[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}'), (2, '02(:[0-9a-f]{2}){5}'), (3, '.*'):
    assert one[n] != two[n] and all(re.fullmatch(form, w[n]) for w in (one, two)), n
for words in one, two:
    assert words[4] == words[0] and words[5:7] == ['kept', 'before'], words
    assert 0 <= int(sys.argv[3]) - int(words[7]) < 300, 'the clock'
    event = json.loads(words[9])
    assert (event['event'], event['number']) == ('clone', 1) and words[10:] == [''], words
    assert words[8] == 'generation-id=' + event['generation-id'], words
assert one[8] != two[8], 'generation ids'
PYTHON
expect_exit 7 "its exit code" lodge run --from box@one -- sh -c 'exit 7'
expect_exit 0 "its standard input, network and disk" lodge run --from box@one -- sh -c '
    [ "$(cat)" = hello ] && ping -c 1 -W 20 10.0.2.2 >/dev/null &&
    dd if=/dev/zero of=/dev/vda bs=1M count=2 conv=fsync 2>/dev/null' <"$work/in"
expect_same "$(lodge exec box head -c 6 /dev/vda)" behind "the source runs on, its disk is its own"
expect_same "$(lodge exec box cat /tmp/kept; lodge exec box hostname)" "kept
lodge" "and so is its name"
expect_same "$(cd "$vms" && echo *)" box "nothing is kept"
expect_same "$(lodge ps -o json | grep -c '"name"')" 1 "nothing runs on"

refused 125 "an option that says what the VM is" "leave out --memory" run --from box@one -m 1G -- true
refused 125 "an image" "leave out debian" run --from box@one debian -- true
refused 125 "the name of a kept VM" "is a VM that is kept" run --from box@one --name box -- true
refused 2 "create" "lodge clone" create --from box@one --name new
refused 125 "an address of many" "no address of one device" run --mac 03:00:00:00:00:01 -- true

# ---- Its end in the middle ----

mkfifo "$work/hold"
"$LODGE" run --from box@one -- sh -c 'echo up; cat' <"$work/hold" >"$work/up" 2>"$work/err" &
run=$!
exec 9>"$work/hold"
until [ -s "$work/up" ]; do kill -0 "$run" 2>/dev/null || break; sleep 0.05; done
refused 1 "the snapshot's removal while a clone runs" "is being read" snapshot rm box one
kill -9 "$run"
wait "$run" || true
exec 9>&-
expect_exit 0 "the snapshot outlives a clone that is killed" lodge run --from box@one -- true

# ---- Clones that last ----

expect_exit 0 "two clones" lodge clone -n 2 box@one
expect_same "$(cat "$work/out")" "box-1
box-2" "their names"
lodge exec box-1 sh -c "$look" >"$work/first"
lodge exec box-2 sh -c "$look" >"$work/second"
python3 - "$work/first" "$work/second" >"$work/out" 2>&1 <<'PYTHON' || fail "identities of clones: $(cat "$work/out")"
import sys
one, two = (open(f).read().split('\n') for f in sys.argv[1:3])
assert (one[0], two[0]) == ('box-1', 'box-2') and one[5:7] == two[5:7] == ['kept', 'before'], (one, two)
assert all(one[n] != two[n] for n in (1, 2, 3)), (one, two)
PYTHON
mac=$(sed -n 3p "$work/first")
lodge exec box-1 sh -c 'printf mine | dd of=/dev/vda conv=notrunc 2>/dev/null; sync'
expect_same "$(lodge exec box-2 head -c 6 /dev/vda)" before "what one writes the other does not see"
expect_exit 0 "a clone of a clone as it is now" lodge clone --name third box-1
expect_same "$(lodge exec third sh -c 'head -c 6 /dev/vda; hostname')" "minerethird" "has its disk and another name"
refused 1 "the name of a VM" "is there already" clone --name box-1 box@one
refused 1 "the removal of a VM that clones stand on" "disks of 2 clones stand on" rm -f box
expect_exit 0 "for which it was not ended" lodge exec box true
refused 1 "the removal of a snapshot that clones stand on" "lodge rm box-1" snapshot rm box one
refused 1 "a clone of no VM" "no VM named" clone nobody
refused 2 "no number" "1 to 1000" clone -n 0 box
refused 2 "ports that there are not" "no 2 ports from 65535 on" clone -n 2 --publish 65535:80 box@one
refused 2 "no port" "HOST:GUEST" clone --publish 80 box@one
lodge exec box-1 sh -c 'mkdir -p /etc/ssh; echo old >/etc/ssh/ssh_host_ed25519_key'
expect_exit 125 "keys that cannot be made" lodge clone --name half box-1
expect_one_line_error "keys that cannot be made"
expect_text "$work/err" "SSH host keys" "keys that cannot be made, its text"
expect_exit 0 "keys that are kept" lodge clone --ssh-keys keep --name half box-1
lodge rm -f half >/dev/null
code=0
(ulimit -v 300000 && exec "$LODGE" clone --name half box@one) >"$work/out" 2>"$work/err" || code=$?
expect_same "$code" 125 "a host that has no memory"
expect_one_line_error "a host that has no memory"
mkdir "$XDG_RUNTIME_DIR/lodge/half-3.sock" # where the third's socket would be
expect_exit 125 "one of three that cannot be made" lodge clone -n 3 --name half box@one
expect_text "$work/err" "'half-3' could not be made, so none of the 3 clones is there" "which one, and that there is none"
expect_text "$work/err" "half-3.sock" "and why"
expect_same "$(cat "$work/out")" "" "no names"
rmdir "$XDG_RUNTIME_DIR/lodge/half-3.sock"
expect_same "$(ls "$vms" | tr '\n' ' ')" "box box-1 box-2 third " "nothing is left of those that failed"

# Killed half way, with one of them ready: all are there and run, or none is.
halves() { lodge ps -a | grep -c '^half-' || true; }
"$LODGE" clone -n 6 --name half box@one >/dev/null 2>&1 &
clone=$!
until [ -e "$vms/half-1" ]; do kill -0 "$clone" 2>/dev/null || break; done
kill -STOP "$clone" # so that it begins no further one
until lodge exec half-1 true 2>/dev/null; do [ -e "$vms/half-1" ] || break; done
kill -9 "$clone"
wait "$clone" 2>/dev/null || true
n=0 count=$(halves)
until [ "$count" = 0 ] || [ "$count" = 6 ] || [ $n = 600 ]; do # its monitors come up, or end
    sleep 0.1
    n=$((n + 1)) count=$(halves)
done
case $count in
0) echo "ok: none of six clones whose maker is killed is there" ;;
6) echo "ok: all of six clones whose maker is killed are there" && lodge rm -f half-1 half-2 half-3 half-4 half-5 half-6 >/dev/null ;;
*) fail "$count of six clones whose maker was killed are there" ;;
esac
lodge rm -f third >/dev/null # any change of the store clears away
expect_same "$(ls "$vms" | tr '\n' ' ')" "box box-1 box-2 " "nothing is left of those that are not there"

lodge rm -f box-2 >/dev/null
lodge stop -t 0 box-1 >/dev/null
expect_exit 0 "a clone boots later on" lodge start box-1
expect_same "$(lodge exec box-1 sh -c 'head -c 4 /dev/vda; cat /sys/class/net/eth0/address')" "mine$mac" "with its disk and address"
lodge rm -f box-1 >/dev/null
lodge stop -t 0 box >/dev/null
refused 1 "a clone of a stopped VM" "does not run" clone box
expect_exit 0 "a stopped VM's snapshot has clones, too" lodge run --from box@one -- grep -q kept /tmp/kept
expect_exit 0 "the snapshot is removed" lodge snapshot rm box one
lodge rm -f box >/dev/null
finish
