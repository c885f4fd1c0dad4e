#!/bin/sh
# A device process: Linux's own NVMe driver over vfio-user. The process is killed and started again under load, fio
# verifies; several functions in one process; peers that keep to no rule, on both sides; nothing is left behind.
. "$(dirname "$0")/lib.sh"

image=$("$SOURCE/tests/linux/storage-image") || { fail "image with fio and nvme-cli"; finish; }
export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$work/run"
truncate -s 128M "$work/disk" "$work/other"
s=$work/s

# Two controllers in one process, the first with two namespaces; programs run from one of them.
serve() {
    "$LODGE" device nvme -v --socket "$s" --disk "$work/disk" --disk "$image,readonly" \
        --socket "$s.b" --disk "$work/other" 2>>"$work/served" &
    server=$!
    children="$children $server"
    until [ -S "$s.b" ] || ! kill -0 $server 2>/dev/null; do sleep 0.05; done
}
clients() { # that the first controller has had
    grep -c "$s: a client has come" "$work/served" || true
}

cat >"$work/load" <<'SCRIPT'
set -e
n=/dev/nvme0
nvme list | grep -c /dev/nvme
nvme id-ctrl $n | grep -c lodge
for c in "smart-log $n" "id-ns ${n}n2" "ns-descs ${n}n2" "error-log $n"; do nvme $c >/dev/null; done
/sbin/mke2fs -q -t ext4 ${n}n1
mount -t ext4 ${n}n1 m
/sbin/mke2fs -q -t ext4 /dev/nvme1n1
echo loaded >/tmp/loaded
run() { # fio's options: again and again until it is enough
    until [ -e /tmp/enough ]; do
        fio --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --thread --size=24M "$@" || return 1
    done
}
run --name=fs --directory=m --rw=randrw --bsrange=512-128k --iodepth=16 --fsync=64 --randseed=1 >fio.1 2>&1 &
first=$!
run --name=raw --filename=/dev/nvme1n1 --offset=64M --rw=randwrite --bs=4k --iodepth=32 --randseed=2 >fio.2 2>&1 &
wait $! || { cat fio.2; exit 6; }
wait $first || { cat fio.1; exit 5; }
umount m
/sbin/e2fsck -fn ${n}n1 >e2fsck 2>&1 || { cat e2fsck; exit 7; }
! dmesg | grep -i 'nvme.*\(error\|timeout\|abort\|reset\)'
! dmesg | grep -i 'EXT4-fs.*error'
SCRIPT
in_storage() {
    lodge_run --name served --cpus 2 --append init_on_alloc=0 --user-device "$s" --user-device "$s.b" -- sh -c "
        mkdir -p /t && mount -t ext4 -o ro /dev/nvme0n2 /t && mount -t proc p /t/proc && mount -t sysfs s /t/sys &&
        mount -t devtmpfs d /t/dev && mount -t tmpfs t /t/tmp && mkdir /t/tmp/m && cat >/t/tmp/go &&
        exec chroot /t /bin/sh -c 'cd /tmp && . ./go'" <"$work/load" >"$work/guest" 2>&1
}
serve
in_storage &
vm=$!
until "$LODGE" exec served cat /t/tmp/loaded >/dev/null 2>&1 || ! kill -0 $vm 2>/dev/null; do sleep 0.2; done
for signal in KILL KILL KILL KILL TERM; do
    before=$(clients)
    kill -$signal $server
    wait $server || true
    serve
    until [ "$(clients)" -gt "$before" ] || ! kill -0 $vm 2>/dev/null; do sleep 0.05; done
    sleep 0.3 # some load
done
"$LODGE" exec served touch /t/tmp/enough || fail "the guest does not answer"
code=0
wait $vm || code=$?
expect_same "$code" 0 "fio verifies on both controllers, their process killed five times"
[ "$code" = 0 ] || tail -n 30 "$work/guest"
expect_same "$(grep -c "$s: the device's server is there again\$" "$work/guest")" 5 "the client came back each time"
expect_same "$(grep -c "the device was reset" "$work/guest" || true)" 0 "to a device that had kept its state"

# In use, wrong, missing.
expect_exit 1 "a socket that is served" "$LODGE" device nvme --socket "$s" --disk "$image,readonly"
expect_one_line_error "a socket that is served"
expect_exit 1 "a disk that is served" "$LODGE" device nvme --socket "$work/t" --disk "$work/disk"
expect_one_line_error "a disk that is served"
expect_exit 125 "nobody serves" lodge_run --firmware seabios --user-device "$work/nobody" </dev/null
expect_one_line_error "nobody serves"
expect_exit 2 "no disk" "$LODGE" device nvme --socket "$work/t"
expect_one_line_error "no disk"
expect_exit 2 "a disk before its socket" "$LODGE" device nvme --disk "$work/disk" --socket "$work/t"
expect_one_line_error "a disk before its socket"
expect_exit 1 "no socket" "$LODGE" device nvme --socket "$work/load" --disk "$image,readonly"
expect_one_line_error "no socket"
expect_exit 125 "--verify" lodge_run --verify --user-device "$s" -- true
expect_one_line_error "--verify"
[ ! -e "$work/t" ] && [ ! -e "$work/t.state" ] || fail "a server that could not begin left something"

# Peers that keep to no rule.
expect_exit 0 "a hostile client" python3 "$SOURCE/tests/linux/vfio_user.py" client "$s"
expect_text "$work/out" served "is sent away, the next one is served"
kill -0 $server || fail "a hostile client ended the server"
python3 "$SOURCE/tests/linux/vfio_user.py" server "$work/h" &
hostile=$!
children="$children $hostile"
until [ -S "$work/h" ]; do sleep 0.05; done
for i in 1 2 3 4 5 6 7; do
    expect_exit 125 "hostile server $i" lodge_run --firmware seabios --user-device "$work/h" </dev/null
    expect_one_line_error "hostile server $i"
done
wait $hostile || fail "hostile server"

# It ends when it is told to, and leaves nothing.
kill -TERM $server
wait $server || fail "the server's end"
expect_same "$(ls "$s" "$s.b" "$s.state" "$s.b.state" 2>/dev/null | tr '\n' ' ')" "" "no socket is left, no state"
finish
