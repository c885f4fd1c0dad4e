#!/bin/sh
# A tap of the host's as network: both ways, and what is none. In a network namespace of its own.
. "$(dirname "$0")/lib.sh"

[ "$(id -u)" = 0 ] && [ -e /dev/net/tun ] || skip "namespaces and taps are root's, by /dev/net/tun"
space=lodge-tap$$
ip netns add "$space" 2>/dev/null || skip "no network namespaces here"
within() { ip netns exec "$space" "$@"; }
trap 'cleanup; ip netns del "$space"' EXIT
within ip link set lo up
within ip tuntap add lodge0 mode tap || skip "no taps here"
within ip addr add 10.9.9.1/24 dev lodge0
within ip link set lodge0 mtu 1400 up
run() {
    within timeout --foreground -k 10 240 "$LODGE" run --engine "$ENGINE" --append lodge.net=10.9.9.2/24,10.9.9.1,10.9.9.1 "$@"
}

within python3 -c '
import socket
listener = socket.create_server(("10.9.9.1", 9000))
connection, _ = listener.accept()
while piece := connection.recv(65536):
    connection.sendall(piece)
' &
children="$children $!"
seq 100000 >"$work/sent"
run --net tap=lodge0 -- sh -c 'cat /sys/class/net/eth0/mtu; cat >/tmp/sent
    until nc 10.9.9.1 9000 </tmp/sent >/tmp/echoed; do sleep 0.1; done; cat /tmp/echoed' <"$work/sent" >"$work/out" 2>"$work/err" ||
    fail "a run on a tap: $(cat "$work/err")"
expect_same "$(head -n 1 "$work/out")" 1400 "the tap's MTU"
expect_same "$(sed 1d "$work/out" | cksum)" "$(cksum <"$work/sent")" "all that was sent came back"
expect_exit 125 "a network that there is not" run --net tape -- true
expect_exit 125 "published ports on a tap" run --net tap=lodge0 -p 8080:80 -- true
refused() { # WHAT TEXT TAP
    code=0
    run --net "tap=$3" -- true >"$work/out" 2>"$work/err" || code=$?
    [ "$code" != 0 ] || fail "$1: it runs"
    expect_one_line_error "$1"
    expect_text "$work/err" "$2" "$1, its text"
}
refused "no such interface" "there is no network interface 'lodge1'" lodge1
refused "no tap" "is no tap" lo
mkfifo "$work/hold"
run --net tap=lodge0 -- sh -c 'echo up; cat' <"$work/hold" >"$work/up" 2>&1 &
holder=$!
exec 3>"$work/hold"
until grep -q up "$work/up"; do
    kill -0 "$holder" 2>/dev/null || { fail "a guest that holds it: $(cat "$work/up")"; finish; }
    sleep 0.05
done
refused "a tap in use" "in use by another program" lodge0
exec 3>&-
wait "$holder" || fail "the guest that held it"
finish
