# Two network namespaces that stand for two hosts, each with a tap lodge0 in a bridge, and a third one, the network
# between them, for who talks to a guest from outside: 10.9.9.1. The guest is 10.9.9.2, the hosts 10.9.9.11 and .12.
# Sourced after lib.sh by tests of moves; removed at the end, with the VM "box".

[ "$(id -u)" = 0 ] && [ -e /dev/net/tun ] || skip "namespaces and taps are root's, by /dev/net/tun"
tag=lodge$$
guest_address=10.9.9.2
mkdir "$work/a" "$work/b" "$work/a.run" "$work/b.run"

between() { ip netns exec "$tag-m" "$@"; }
on() { # SIDE ARGUMENTS...: lodge there
    side=$1
    shift
    XDG_DATA_HOME="$work/$side" XDG_RUNTIME_DIR="$work/$side.run" \
        timeout --foreground -k 10 "${LIMIT:-300}" ip netns exec "$tag-$side" "$LODGE" "$@"
}
address() { if [ "$1" = a ]; then echo 10.9.9.11; else echo 10.9.9.12; fi; }
clear_up() {
    on a rm -f box >/dev/null 2>&1 || true
    on b rm -f box >/dev/null 2>&1 || true
    cleanup
    for ns in a b m; do ip netns del "$tag-$ns" 2>/dev/null || true; done
}
trap clear_up EXIT

ip netns add "$tag-m" || skip "no network namespaces here"
between ip link add br0 type bridge
between ip addr add 10.9.9.1/24 dev br0
between ip link set br0 up
for side in a b; do
    ip netns add "$tag-$side"
    at() { ip netns exec "$tag-$side" "$@"; }
    between ip link add "to-$side" type veth peer name out netns "$tag-$side"
    between ip link set "to-$side" master br0 up
    at ip link add br0 type bridge
    at ip tuntap add lodge0 mode tap || skip "no taps here"
    at ip link set lodge0 master br0 up
    at ip link set out master br0 up
    at ip link set br0 up
    at ip link set lo up
    at ip addr add "$(address $side)/24" dev br0
done

certify() { # SIDE...: certificates of one authority, ca.pem, each by its side's address
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=ours" \
        -keyout "$work/ca.key" -out "$work/ca.pem" 2>/dev/null
    for side in "$@"; do
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$side" -keyout "$work/$side.key" \
            -out "$work/$side.csr" 2>/dev/null
        echo "subjectAltName=IP:$(address "$side")" >"$work/names"
        openssl x509 -req -in "$work/$side.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days 2 \
            -extfile "$work/names" -out "$work/$side.pem" 2>/dev/null
    done
}
listen() { # SIDE ADDRESS [OPTIONS...]: a receiver, once it listens
    side=$1 where=$2
    shift 2
    : >"$work/$side.log"
    XDG_DATA_HOME="$work/$side" XDG_RUNTIME_DIR="$work/$side.run" ip netns exec "$tag-$side" "$LODGE" receive "$@" \
        "$where" >"$work/$side.out" 2>"$work/$side.log" &
    receiver=$!
    children="$children $receiver"
    until grep -q listening "$work/$side.log"; do
        kill -0 "$receiver" 2>/dev/null || { fail "no receiver: $(cat "$work/$side.log")"; finish; }
        sleep 0.02
    done
}
