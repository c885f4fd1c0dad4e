#!/bin/sh
# The user network: DHCP, downloads and uploads with checksums, a published port, none at all.
. "$(dirname "$0")/lib.sh"

head -c 8000000 /dev/urandom >"$work/blob"
sum=$(sha256sum <"$work/blob" | cut -d' ' -f1)

serve_http "$work"

expect_exit 0 "an address by DHCP" lodge_run -- ip -4 addr show dev eth0
expect_text "$work/out" "inet 10.0.2." "in the user network"

expect_exit 0 "download" lodge_run -- sh -c "wget -q -O - http://10.0.2.2:$port/blob | sha256sum"
expect_same "$(cut -d' ' -f1 "$work/out")" "$sum" "8 MB arrived unchanged"

# busybox has no PUT: a request by hand through nc.
expect_exit 0 "upload" lodge_run -- sh -c "head -c 8000000 /dev/urandom >/tmp/b; sha256sum </tmp/b
    { printf 'PUT /up HTTP/1.0\r\nContent-Length: 8000000\r\n\r\n'; cat /tmp/b; } | nc 10.0.2.2 $port >/tmp/answer; grep -q 201 /tmp/answer"
expect_same "$(sha256sum <"$work/up" | cut -d' ' -f1)" "$(cut -d' ' -f1 "$work/out")" "8 MB left unchanged"

# A server in the guest, published on a free port of the host's loopback.
free=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$LODGE" run --engine "$ENGINE" --publish "127.0.0.1:$free:8080" -- sh -c '
    mkdir -p /www; echo published >/www/page; echo up; exec httpd -f -p 8080 -h /www' >"$work/guest" 2>&1 &
guest=$!
children="$children $guest"
tries=0
until grep -q '^up' "$work/guest"; do
    tries=$((tries + 1))
    [ "$tries" -lt 1800 ] && kill -0 "$guest" 2>/dev/null || break
    sleep 0.1
done
expect_exit 0 "published port" python3 -c "
import sys, time, urllib.request
for attempt in range(100):
    try:
        sys.stdout.write(urllib.request.urlopen('http://127.0.0.1:$free/page', timeout=30).read().decode()); break
    except OSError:
        time.sleep(0.1)
"
expect_same "$(cat "$work/out")" published "the guest's page reached the host"
kill -TERM "$guest" 2>/dev/null || true
wait "$guest" 2>/dev/null || true

expect_exit 0 "--net none" lodge_run --net none -- sh -c 'ls /sys/class/net'
expect_same "$(cat "$work/out")" lo "no network card"
finish
