#!/bin/sh
# VMs that move while they run, between two users' stores on one host.
. "$(dirname "$0")/migrate_lib.sh"

runs_only() { # SIDE OTHER WHAT
    expect_exit 0 "$3: it runs $1" on "$1" exec box sh -c 'a=$(cat /tmp/count); until [ "$(cat /tmp/count)" -gt $((a + 3)) ]; do sleep 0.01; done'
    expect_same "$(ls -A "$work/$2/lodge/vms" 2>/dev/null)" "" "$3: nothing is $2"
}
refused() { # WHAT TEXT ARGUMENTS...: the VM stays here
    label=$1 text=$2
    shift 2
    expect_exit 1 "$label" on here migrate "$@"
    expect_one_line_error "$label"
    expect_text "$work/err" "$text" "$label, its text"
    runs_only here there "$label"
}
stage() { # TEXT: the move ($moving) has got there, or is over
    until on here migrate --status -o json box | grep -q "$1"; do
        kill -0 "$moving" 2>/dev/null || return 0
        sleep 0.02
    done
}

"$LODGE" disk create "$work/disk.lodge" 64M >/dev/null
truncate -s 16M "$work/second.raw"
printf 'C1 1\nC2 20\nC6 300\n' >"$work/table" # a host's idle states; each move is to a host with others
on here create --name box --engine "$ENGINE" --cpu x86-64-v2 --memory 256M --cpus 2 --disk "$work/disk.lodge" \
    --disk "$work/second.raw,device=nvme" --idle-states "$work/table" >/dev/null
expect_exit 0 "it starts" on here start box
on here exec box sh -c '
    setsid sh -c "n=0; while sleep 0.01; do n=\$((n + 1)); echo \$n >/tmp/count.new; mv /tmp/count.new /tmp/count; done" \
        >/dev/null 2>&1 </dev/null &
    mkfifo /tmp/lines
    setsid nc -l -p 9000 -e cat >/dev/null 2>&1 </dev/null &
    until grep -q ":2328 0*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.01; done # it listens
    setsid sh -c "nc 127.0.0.1 9000 </tmp/lines >/tmp/answers" >/dev/null 2>&1 &
    setsid sh -c "exec 3>/tmp/lines; i=0; while sleep 0.02; do i=\$((i + 1)); echo line \$i >&3; done" >/dev/null 2>&1 </dev/null &
    dd if=/dev/zero of=/tmp/shadow bs=1M count=16 2>/dev/null # what is to be on the second disk
    setsid sh -c "n=0; until [ -e /tmp/enough ]; do n=\$((n + 1)); for to in shadow ../dev/nvme0n1; do
        echo write \$n | dd of=/tmp/\$to bs=4096 seek=\$((n * 7 % 4096)) conv=notrunc,fsync; done; echo \$n >/tmp/written; done
        mv /tmp/written /tmp/ended" >/dev/null 2>&1 </dev/null &
    until [ -s /tmp/count ] && [ -s /tmp/answers ] && [ -s /tmp/written ]; do sleep 0.01; done
    printf before | dd of=/dev/vda conv=notrunc 2>/dev/null'

# ---- What does not come about leaves it where it is ----

expect_exit 2 "no address" on here migrate box
expect_exit 0 "its help" on here migrate --help
refused "nobody listens" "No such file" box "unix:$work/socket"
refused "TCP without certificates" "give --ca, --cert and --key" box localhost:1
listen there "unix:$work/older" --cpu x86-64-v1
refused "a processor of less" "may be using: sse3, ssse3, sse4_1, sse4_2;" box "unix:$work/older"
kill "$listener"
expect_same "$(on here exec box grep -cwE "avx|avx2|fma|aes|sha_ni" /proc/cpuinfo)" 0 "its processor's baseline"
listen there "unix:$work/socket" --cpu x86-64-v2
on there create --name box --engine "$ENGINE" --memory 128M >/dev/null
expect_exit 1 "a VM of that name there" on here migrate box "unix:$work/socket"
expect_text "$work/err" "there is a VM named 'box' already" "a VM of that name there, its text"
on there rm box
(
    expect_exit 1 "cancelled" on here migrate --bandwidth 1M box "unix:$work/socket"
    expect_text "$work/err" "has been cancelled" "cancelled, its text"
    [ "$failures" = 0 ]
) &
moving=$!
stage copying
expect_exit 0 "it is cancelled" on here migrate --cancel box
wait "$moving" || fail "a cancelled move"
runs_only here there "cancelled"
(
    expect_exit 1 "the target is killed" on here migrate --bandwidth 1M box "unix:$work/socket"
    expect_text "$work/err" "the connection broke" "the target is killed, its text"
    [ "$failures" = 0 ]
) &
moving=$!
stage copying
kill -9 $(pgrep -f "receive .*unix:$work/socket" | grep -vx "$listener")
wait "$moving" || fail "a move to a target that is killed"
expect_exit 0 "it runs on" on here exec box true

# ---- Moves ----

move() { # FROM TO WHAT ARGUMENTS...
    from=$1 to=$2 what=$3
    shift 3
    expect_exit 0 "$what" on "$from" migrate "$@"
    cat "$work/out"
    ready "$to"
    runs_only "$to" "$from" "$what"
}
printf 'C1 3\n' >"$work/table"
move here there "a move" box "unix:$work/socket"
expect_exit 0 "it idles by the table of its new host" on there exec box sh -c 'cd /sys/devices/system/cpu
    until [ -e cpu1/cpuidle/state1 ] && [ ! -e cpu1/cpuidle/state2 ]; do sleep 0.02; done
    a=$(cat cpu0/cpuidle/state1/usage); until [ "$(cat cpu0/cpuidle/state1/usage)" -gt $((a + 3)) ]; do sleep 0.02; done'
expect_same "$(on there exec box sh -c 'until grep -q . /run/lodge-agent/events; do sleep 0.02; done; cat /run/lodge-agent/events' |
    grep -c '"event":"move","number":1,')" 1 "it was told of the move"
expect_same "$(on there exec box sh -c 'dd if=/dev/vda bs=6 count=1 2>/dev/null')" before "its disk has come"

# Back over TCP: both sides show certificates that one authority has signed.
authority() { # NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
        -keyout "$work/$1.key" -out "$work/$1.pem" 2>/dev/null
}
certify() { # NAME AUTHORITY
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
        -keyout "$work/$1.key" -out "$work/$1.csr" 2>/dev/null
    echo "subjectAltName=DNS:localhost" >"$work/names"
    openssl x509 -req -in "$work/$1.csr" -CA "$work/$2.pem" -CAkey "$work/$2.key" -CAcreateserial -days 2 \
        -extfile "$work/names" -out "$work/$1.pem" 2>/dev/null
}
over_tcp() { # CODE WHAT TEXT CERTIFICATE AUTHORITY ADDRESS: what it says
    expect_exit "$1" "$2" on there migrate --ca "$work/$5.pem" --cert "$work/$4.pem" --key "$work/$4.key" --bandwidth 64M --copy-disks box "$6"
    cat "$work/out" "$work/err" >"$work/both"
    expect_text "$work/both" "$3" "$2, its text"
}
authority ours
authority theirs
certify a ours
certify b ours
certify stranger theirs
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
listen here "127.0.0.1:$port" --ca "$work/ours.pem" --cert "$work/b.pem" --key "$work/b.key"
over_tcp 1 "a source with another authority's certificate" "does it trust this host's certificate" stranger ours "localhost:$port"
over_tcp 1 "a target with another authority's certificate" "certificate is refused" a theirs "localhost:$port"
over_tcp 1 "a target with another name" "certificate is refused: IP address mismatch" a ours "127.0.0.1:$port"
runs_only there here "not to be trusted"
over_tcp 0 "back over TCP, packed, at 64 MiB a second, with its disks" "disk1 was copied; $work/second.raw stays here" a ours "localhost:$port"
ready here
runs_only here there "back over TCP"
expect_same "$(cd "$work/here/lodge/vms/box" && ls disk*)" "disk0.lodge
disk1.raw" "its disks are in its directory"
expect_exit 0 "the disk has what was written to it before, during and after" on here exec box sh -c '
    n=$(cat /tmp/written); until [ "$(cat /tmp/written)" -gt "$n" ]; do sleep 0.01; done
    touch /tmp/enough; until [ -s /tmp/ended ]; do sleep 0.01; done
    sync; echo 3 >/proc/sys/vm/drop_caches; cmp /tmp/shadow /dev/nvme0n1'
expect_same "$(on here exec box sh -c 'grep -vc "^line [0-9]*$" /tmp/answers;
    awk "{ if (\$2 != NR) bad++ } END { print bad + 0 }" /tmp/answers')" "0
0" "a connection within the guest has lost nothing"
expect_same "$(on here exec box sh -c 'dmesg | grep -ciE "oops|bug:|stall|lockup"')" 0 "its kernel has nothing to complain of"

# ---- Memory that comes after the VM ----

proxy() { # MODE SIDE'S-SOCKET: a way there that gets into trouble, at $work/way
    rm -f "$work/way"
    : >"$work/way.log"
    python3 "$SOURCE/tests/linux/migrate_proxy.py" "$work/way" "$2" "$1" >"$work/way.log" 2>&1 &
    children="$children $!"
    until grep -q listening "$work/way.log"; do sleep 0.02; done
}
listen here "unix:$work/back"
proxy once "$work/socket"
move here there "post-copy, over a connection that breaks once" --post-copy always --bandwidth 64M box "unix:$work/way"

proxy gone "$work/back"
expect_exit 1 "post-copy, over one that breaks for good" on there migrate --post-copy always --bandwidth 64M box "unix:$work/way"
expect_one_line_error "a break in post-copy"
expect_text "$work/err" "of its memory are still here" "a break in post-copy, its text"
expect_exit 0 "its stage" on there migrate --status box
expect_same "$(cat "$work/out")" interrupted "its stage is told"
expect_same "$(on here migrate --status box)" arriving-interrupted "its stage at the target"
expect_exit 1 "the source does not run it" on there resume box
expect_text "$work/err" "of its memory are still here" "the source does not run it, its text"
expect_exit 1 "nobody holds a guest that waits for memory" on here pause box
expect_text "$work/err" "are still where it came from" "nobody holds it, its text"
expect_exit 1 "nobody listens" on there migrate --resume box
expect_exit 0 "it goes on" on there migrate --resume box "unix:$work/back"
cat "$work/out"
ready here
runs_only here there "it went on"
expect_same "$(on here exec box sh -c 'until [ "$(wc -l </run/lodge-agent/events)" -ge 4 ]; do sleep 0.02; done; cat /run/lodge-agent/events' |
    grep -o '"event":"[a-z]*","number":[0-9]*' | tr '\n' ' ')" \
    '"event":"move","number":1 "event":"move","number":2 "event":"move","number":3 "event":"move","number":4 ' "each move was told once"
expect_exit 1 "resuming what is over" on here migrate --resume box
expect_text "$work/err" "no move of it has been interrupted" "resuming what is over, its text"

# ---- What a target is told that is not so ----

said() { # CASE TEXT
    python3 "$(dirname "$0")/migrate_stream.py" "$work/socket" "$1" \
        "{\"memory\": \"64M\", \"engine\": \"soft\", \"net\": \"none\"}" >"$work/said" 2>&1 || fail "$1: $(cat "$work/said")"
    expect_text "$work/said" "$2" "hostile: $1"
}
said magic "is no lodge"
said format "in format 77"
for case in bit long; do said $case "is damaged"; done
said order "is not as lodge says it"
said cpu "lacks features that the VM may be using: quantum;"
said memory "more than this host has"
said disk "does not reach disk0"
said name "is not as lodge says it"
said option "knows no option 'teleport'"
for case in copy image; do said $case "is not as lodge says it"; done
said beyond "is not as lodge says it"
said layer "no snapshot 'nothing'"
for case in layer-raw layer-disk; do said $case "is not as lodge says it"; done
said layer-size "64 TiB at most"
for case in snapshot-name snapshot-file snapshot-size; do said $case "is not as lodge says it"; done
for case in snapshot-beyond snapshot-other; do said $case "is not as lodge sends it"; done
said snapshot-room "the target has room for"
said snapshot-none "snapshot.json"
said extent "is not as lodge sends it"
for case in pages zstd; do said $case "is not as lodge sends it"; done
said state "it is no saved state"
said missing "is not as lodge says it"
said resume '"runs":false'
said short "the connection broke"
expect_same "$(ls -A "$work/there/lodge/vms")" "" "nothing is left of them"

# ---- A source that is killed ----

(on here migrate --bandwidth 1M box "unix:$work/socket" >/dev/null 2>&1) &
moving=$!
stage copying
kill -9 "$(on here ps -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])')"
wait "$moving" || true
until [ -z "$(ls -A "$work/there/lodge/vms")" ]; do sleep 0.05; done
echo "ok: the source is killed: nothing is left there"
expect_exit 0 "it can be started again" on here start box
expect_same "$(on here exec box sh -c 'dd if=/dev/vda bs=6 count=1 2>/dev/null; grep -c "write [0-9]" /dev/nvme0n1 | sed "s/^[1-9][0-9]*$/ written/"')" "before written" "its disks are whole"

# In post-copy: it is lost, and both sides say where it is.
proxy hold "$work/socket"
(
    expect_exit 1 "the source is killed in post-copy" on here migrate --post-copy always --bandwidth 64M box "unix:$work/way"
    expect_text "$work/err" "the VM at the other side is lost" "the source is killed in post-copy, its text"
    [ "$failures" = 0 ]
) &
moving=$!
stage '"post-copy",'
kill -9 "$(on here ps -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])')"
wait "$moving" || fail "a source that is killed in post-copy"
until [ "$(on there migrate --status box)" = arriving-interrupted ]; do sleep 0.05; done
expect_exit 0 "its remains end" on there stop --force box
expect_same "$(on there ps -a -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["name"])')" box "it is there, to be started"
expect_exit 1 "and nowhere else" on here start box
expect_text "$work/err" "may run there" "and nowhere else, its text"
finish
