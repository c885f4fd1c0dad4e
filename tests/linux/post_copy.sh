#!/bin/sh
# Memory that comes after a VM, while a TCP stream and echo requests come to the guest through a tap: frames for buffers
# that are still at the source go by backup buffers, nothing is lost, nothing changes its place. Over a Unix socket because
# the user wants it, over TLS because the guest writes too fast, and not at all when it does not.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/two_hosts.sh"

"$LODGE" image path >/dev/null 2>&1
certify a b
listen b "unix:$work/b.socket"
listen a "tcp:$(address a):49320" --ca "$work/ca.pem" --cert "$work/a.pem" --key "$work/a.key"
on a create --name box --engine "$ENGINE" --memory 192M --net tap=lodge0 \
    --append "lodge.net=$guest_address/24,10.9.9.1,10.9.9.1" >/dev/null
expect_exit 0 "it starts" on a start box
# shellcheck disable=SC2016 # the guest's
expect_exit 0 "it waits for a stream" on a exec box sh -c '
    for one in odd even; do dd if=/dev/urandom of=/tmp/$one bs=1M count=8 2>/dev/null; done
    setsid sh -c "nc -l -p 9000 | sha256sum >/tmp/sum.new; mv /tmp/sum.new /tmp/sum" >/dev/null 2>&1 </dev/null &
    until grep -q ":2328 0*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.05; done'

between sh -c 'echo 0 0 >/proc/sys/net/ipv4/ping_group_range' # of those who may send echo requests
ip netns exec "$tag-m" python3 "$(dirname "$0")/migrate_traffic.py" "$guest_address" 9000 "$work/traffic" 2>"$work/traffic.err" &
traffic=$!
children="$children $traffic"

flows() { # WHEN: the guest takes more of the stream than any buffer on its way holds
    n=$(cat "$work/traffic" 2>/dev/null || echo 0)
    for _ in $(seq 2400); do
        [ "$(cat "$work/traffic" 2>/dev/null || echo 0)" -le $((n + 8000000)) ] || return 0
        sleep 0.05
    done
    fail "$1: the stream stands at $(cat "$work/traffic" "$work/traffic.err")"
    finish
}
moves() { # FROM WHAT WHETHER-BY-POST-COPY OPTIONS...
    from=$1 what=$2 later=$3
    shift 3
    expect_exit 0 "$what" on "$from" migrate -o json "$@"
    cat "$work/out"
    expect_same "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["post-copy"])' <"$work/out")" "$later" "$what: post-copy"
}
expect_backups() { # SIDE
    expect_exit 0 "backup buffers were used, and were enough" python3 - "$work/$1.run/lodge/box.sock" <<'END'
import json, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
stream = connection.makefile("rw")
stream.readline()
stream.write('{"execute": "query-counters"}\n')
stream.flush()
counters = json.loads(stream.readline())["return"]["counters"]
print({name: value for name, value in counters.items() if name.startswith(("net.", "paging."))})
sys.exit(not (counters["net.backup-frames"] > 0 and counters["net.faulty-buffers"] > 0 and
              counters["net.backup-dropped"] == 0 and counters["paging.supplied"] > 0))
END
    cat "$work/out"
}

flows "before any move"
moves a "post-copy over a Unix socket" True --post-copy always --bandwidth 16M box "unix:$work/b.socket"
flows "after the first move"
expect_backups b

# shellcheck disable=SC2016
on b exec box sh -c '
    cp /tmp/odd /tmp/data
    setsid sh -c "until [ -e /tmp/enough ]; do for one in even odd; do
        dd if=/tmp/\$one of=/tmp/data bs=1M conv=notrunc; done; done; touch /tmp/written" >/dev/null 2>&1 </dev/null &'
moves b "post-copy over TLS, since it writes too fast" True --post-copy auto --bandwidth 16M --compress off --down-time 30 \
    --ca "$work/ca.pem" --cert "$work/b.pem" --key "$work/b.key" box "$(address a):49320"
flows "after the second move"
expect_exit 0 "what it wrote is whole" on a exec box sh -c '
    touch /tmp/enough; until [ -e /tmp/written ]; do sleep 0.05; done; cmp /tmp/odd /tmp/data'

: >"$work/traffic.end"
wait "$traffic" || fail "the traffic: $(cat "$work/traffic.err")"
said() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/traffic" "$1"; }
cat "$work/traffic"
echo
expect_same "$(on a exec box sh -c 'until [ -s /tmp/sum ]; do sleep 0.05; done; cat /tmp/sum')" "$(said sha256)  -" "the stream is whole"
expect_same "$(said disorder)" "" "no answers out of order"

# What lodge has taken from the taps the guest has got, but for a frame that waited in the source at each move.
frames() {
    for side in a b; do ip netns exec "$tag-$side" cat /sys/class/net/lodge0/statistics/tx_packets; done |
        awk '{ sum += $1 } END { print sum }'
}
got=0 before=-1 taken=$(frames)
while [ "$taken" != "$before" ]; do # until nothing came meanwhile
    before=$taken
    got=$(on a exec box cat /sys/class/net/eth0/statistics/rx_packets)
    taken=$(frames)
done
if [ "$got" -le "$taken" ] && [ "$((taken - got))" -le 2 ]; then
    echo "ok: the guest has got $got of $taken frames"
else
    fail "the guest has got $got of $taken frames"
fi

moves a "a guest that writes little" False --post-copy auto --down-time 2000 box "unix:$work/b.socket"
expect_exit 0 "it runs" on b exec box true
expect_same "$(on b exec box sh -c 'dmesg | grep -ciE "oops|bug:|stall|lockup"')" 0 "its kernel has nothing to complain of"
finish
