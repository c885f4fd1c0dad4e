#!/bin/sh
# A VM moves back and forth under load: stress-ng writes memory, fio writes its disk and verifies what it reads, one TCP
# stream goes through the guest's loopback and one comes from outside of it. Nothing is to be lost. Prints how long
# the guest stood. Two network namespaces, each with a tap in a bridge, are the two hosts; a third one, where the stream
# comes from, is the network between them. Moves go over a Unix socket and over TCP with TLS in turns, each third one
# by post-copy.
#
# usage: tests/linux/migrate_campaign.sh BUILD [MOVES]
# LODGE_MIGRATE_OPTIONS: more options for each move (--bandwidth 125000000; --copy-disks: all disks go along).
# LODGE_DATA_OPTIONS: more words for the disk that is written to (,device=nvme).
. "$(dirname "$0")/lib.sh"

moves=${2:-1000}
. "$(dirname "$0")/two_hosts.sh"
tools=$("$SOURCE/tests/linux/tools-image" "$BUILD") || { fail "tools image"; finish; }
storage=$("$SOURCE/tests/linux/storage-image") || { fail "storage image"; finish; }
"$LODGE" image path >/dev/null 2>&1

certify a b
for side in a b; do
    for where in "unix:$work/$side.socket" "tcp:$(address $side):49320"; do
        listen $side "$where" --ca "$work/ca.pem" --cert "$work/$side.pem" --key "$work/$side.key"
    done
done
"$LODGE" disk create "$work/data.lodge" 256M >/dev/null
on a create --name box --engine "$ENGINE" --memory 512M --cpus 2 --net tap=lodge0 \
    --append "lodge.net=$guest_address/24,10.9.9.1,10.9.9.1" --disk "$tools,readonly" --disk "$storage,readonly" \
    --disk "$work/data.lodge${LODGE_DATA_OPTIONS:-}" >/dev/null
expect_exit 0 "it starts" on a start box
expect_exit 0 "the load" on a exec box sh -c '
    for d in a b; do
        mkdir -p /$d && mount -t ext4 -o ro /dev/vd$d /$d && mount -t proc p /$d/proc && mount -t sysfs s /$d/sys &&
        mount -t devtmpfs d /$d/dev && mkdir -p /$d/dev/shm && mount -t tmpfs s /$d/dev/shm && mount -t tmpfs t /$d/tmp || exit 1
    done
    setsid chroot /a /usr/bin/stress-ng --temp-path /tmp --vm 1 --vm-bytes 64M --verify --timeout 0 >/tmp/stress 2>&1 </dev/null &
    setsid chroot /b /usr/bin/fio --name=data --filename="$(ls /dev/vdc /dev/nvme0n1 2>/dev/null)" --size=200M --rw=randrw --bs=16k --iodepth=8 \
        --ioengine=libaio --direct=1 --verify=crc32c --verify_backlog=512 --verify_fatal=1 --time_based --runtime=10d \
        --rate_iops=200 >/tmp/fio 2>&1 </dev/null &
    cat >/tmp/reader <<"END"
#!/bin/sh
awk "{ if (\$1 != NR) { print NR, \$0; exit } if (NR % 1000 == 0) { print NR >\"/tmp/received\"; close(\"/tmp/received\") } }" >/tmp/wrong
echo ended >>/tmp/wrong
END
    chmod +x /tmp/reader
    setsid nc -l -p 9000 -e /tmp/reader >/dev/null 2>&1 </dev/null &
    until grep -q ":2328 0*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.05; done # it listens
    setsid sh -c "i=0; while :; do i=\$((i + 1)); echo \$i; [ \$((i % 100)) != 0 ] || sleep 0.02; done | nc 127.0.0.1 9000" >/dev/null 2>&1 </dev/null &
    setsid nc -l -p 9001 -e cat >/dev/null 2>&1 </dev/null &
    until grep -q ":2329 0*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.05; done
    until [ -s /tmp/received ]; do sleep 0.05; done'
ip netns exec "$tag-m" python3 "$(dirname "$0")/echo_stream.py" "$guest_address" 9001 "$work/echoed" 2>"$work/echo.err" &
children="$children $!"
for _ in $(seq 600); do [ -s "$work/echoed" ] && break; sleep 0.1; done
[ -s "$work/echoed" ] || { fail "no stream from outside: $(cat "$work/echo.err")"; finish; }

echoes() { # more of the stream from outside have come back
    n=$(cat "$work/echoed") || return 1
    for _ in $(seq 1200); do
        now=$(cat "$work/echoed")
        case $now in
        wrong*) echo "the stream from outside: $now"; return 1 ;;
        "$n") sleep 0.05 ;;
        *) return 0 ;;
        esac
    done
    echo "the stream from outside stands at $now"
    return 1
}
ready() { # SIDE: its agent answers
    until on "$1" exec box true >/dev/null 2>&1; do sleep 0.05; done
}
right() { # SIDE: nothing is lost so far
    echoes || return 1
    on "$1" exec box sh -c '
        [ ! -s /tmp/wrong ] || { echo "TCP stream:"; cat /tmp/wrong; exit 1; }
        n=$(cat /tmp/received); until [ "$(cat /tmp/received)" -gt "$n" ]; do sleep 0.05; done
        pidof fio >/dev/null || { cat /tmp/fio; exit 1; }
        pidof stress-ng >/dev/null || { cat /tmp/stress; exit 1; }
        ! grep -E "bad header|bad magic|verify failed|error=" /tmp/fio || exit 1
        ! dmesg | grep -E "BUG:|Oops|I/O error|blocked for more" || exit 1'
}
from=a to=b
way() { # MOVE TO: its options and address
    [ $(($1 % 3)) != 0 ] || echo "--post-copy always"
    if [ $(($1 % 4)) -lt 2 ]; then
        echo "box unix:$work/$2.socket"
    else
        echo "--ca $work/ca.pem --cert $work/$from.pem --key $work/$from.key box $(address "$2"):49320"
    fi
}
: >"$work/stood"
for i in $(seq "$moves"); do
    # shellcheck disable=SC2086 # a list of words
    on "$from" migrate ${LODGE_MIGRATE_OPTIONS:-} -o json $(way "$i" "$to") >"$work/moved" 2>"$work/err" ||
        { fail "move $i: $(cat "$work/err")"; break; }
    python3 -c 'import json, sys; m = json.load(sys.stdin); print(m["stood-seconds"], m["seconds"], m["round"], m["throttle"])' \
        <"$work/moved" >>"$work/stood"
    ready "$to"
    if [ $((i % 20)) = 0 ] || [ "$i" = "$moves" ]; then
        right "$to" >"$work/out" 2>&1 || { fail "after move $i: $(cat "$work/out")"; break; }
        echo "ok: $i moves"
    fi
    x=$from from=$to to=$x
done
[ "$failures" = 0 ] || finish
on "$from" exec box sh -c 'killall -INT fio stress-ng; while pidof fio >/dev/null || pidof stress-ng >/dev/null; do sleep 0.1; done; cat /tmp/fio /tmp/stress' >"$work/end" 2>&1 || true
grep -q 'err= *0' "$work/end" || { fail "fio at the end:"; cat "$work/end"; }
sort -n "$work/stood" | awk '{ s[NR] = $1 } END { printf "%d moves: stood %.3f s in the middle, %.3f s at the 99th per cent, %.3f s at most\n", NR, s[int((NR + 1) / 2)], s[int((NR * 99 + 99) / 100)], s[NR] }'
finish
