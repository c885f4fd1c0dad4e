#!/bin/sh
# A host without space under running guests: they are paused, told of, and lose nothing when they go on; or get the
# architected error. Errors from below. Limits of a disk.
if [ -z "${LODGE_TEST_UNSHARED:-}" ]; then # a file system of our own, which nobody else sees
    [ "$(id -u)" = 0 ] && map= || map=-r
    unshare -m $map true 2>/dev/null || { echo "skip: no mount namespaces here"; exit 77; }
    LODGE_TEST_UNSHARED=1 exec unshare -m $map "$0" "$@"
fi
. "$(dirname "$0")/lib.sh"

"$LODGE" image path >"$work/out" # is there when the first guest counts
mkdir "$work/small"
mount -t tmpfs -o size=48M none "$work/small"
trap 'umount -l "$work/small"; cleanup' EXIT
export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$work/run"

# until_status NAME STATUS: waits for it.
until_status() {
    until "$LODGE" ps -o json >"$work/ps" 2>&1 && grep -qF "\"status\": \"$2\"" "$work/ps"; do
        kill -0 "$guest" 2>/dev/null || { fail "$1 ended before it was $2"; return; }
        sleep 0.1
    done
    echo "ok: $1 is $2"
}

# ---- Paused, told, gone on ----
truncate -s 64M "$work/small/a"
"$LODGE" disk create "$work/small/b.lodge" 64M
dd if=/dev/zero of="$work/small/filler" bs=1M count=20 2>/dev/null
mkfifo "$work/until"
lodge_run --name fills --disk "$work/small/a" --disk "$work/small/b.lodge,device=nvme" -- sh -c '
    head -c 16000000 /dev/urandom >/tmp/data
    for d in vda nvme0n1; do dd if=/tmp/data of=/dev/$d bs=64k conv=fsync 2>/dev/null || echo failed; done
    echo 3 >/proc/sys/vm/drop_caches
    for d in vda nvme0n1; do head -c 16000000 /dev/$d | cmp - /tmp/data && echo "$d has all"; done
    dmesg | grep -ci "i/o error"; cat' <"$work/until" >"$work/guest" 2>"$work/told" &
guest=$!
children="$children $guest"
exec 5>"$work/until"
until_status fills paused
expect_text "$work/ps" "no space left on the host for $work/small/b.lodge" "ps tells why"
expect_exit 0 "resumed without space" "$LODGE" resume fills
until_status fills paused
rm "$work/small/filler"
expect_exit 0 "resumed with space" "$LODGE" resume fills
until [ "$(wc -l <"$work/guest")" -ge 3 ] || ! kill -0 $guest 2>/dev/null; do sleep 0.1; done
exec 5>&-
wait $guest || fail "the guest's exit"
expect_same "$(tr '\n' ' ' <"$work/guest")" "vda has all nvme0n1 has all 0 " "nothing is lost, and the guest saw no error"
expect_text "$work/told" "disk1: no space left on the host" "lodge said so"
expect_exit 0 "the disk is in order" "$LODGE" disk check "$work/small/b.lodge"

# ---- A disk that another process serves: its VM is paused, the process says why ----
dd if=/dev/zero of="$work/small/filler" bs=1M count=8 2>/dev/null
truncate -s 64M "$work/small/c"
device() {
    "$LODGE" device nvme --socket "$work/s" --disk "$work/small/c" 2>>"$work/served" 5>&- &
    server=$!
    children="$children $server"
    until [ -S "$work/s" ] || ! kill -0 $server 2>/dev/null; do sleep 0.05; done
}
device
rm "$work/until"
mkfifo "$work/until"
lodge_run --name served --user-device "$work/s" -- sh -c '
    head -c 12000000 /dev/urandom >/tmp/data
    dd if=/tmp/data of=/dev/nvme0n1 bs=64k conv=fsync 2>/dev/null || echo failed
    echo 3 >/proc/sys/vm/drop_caches
    head -c 12000000 /dev/nvme0n1 | cmp - /tmp/data && echo "nvme0n1 has all"
    dmesg | grep -ci "i/o error\|nvme.*timeout"; cat' <"$work/until" >"$work/guest" 2>"$work/told" &
guest=$!
children="$children $guest"
exec 5>"$work/until"
until_status served paused
expect_text "$work/ps" "no space left on the host for the device at $work/s" "ps tells why"
expect_text "$work/served" "no space left on the host for $work/small/c" "so does the process"
expect_exit 0 "resumed without space" "$LODGE" resume served
until_status served paused
kill -9 $server
wait $server || true
device
expect_exit 0 "resumed without space, with another process" "$LODGE" resume served
until_status served paused
rm "$work/small/filler"
expect_exit 0 "resumed with space" "$LODGE" resume served
until [ "$(wc -l <"$work/guest")" -ge 2 ] || ! kill -0 $guest 2>/dev/null; do sleep 0.1; done
exec 5>&-
wait $guest || fail "the guest's exit"
expect_same "$(tr '\n' ' ' <"$work/guest")" "nvme0n1 has all 0 " "nothing is lost, and the guest saw no error"
until grep -qF "$work/small/c goes on" "$work/served" || ! kill -0 $server 2>/dev/null; do sleep 0.1; done
expect_text "$work/served" "$work/small/c goes on" "the process says so"
kill $server
wait $server || fail "the process's end"
rm "$work/small/c"

# ---- Reset and ended while paused ----
dd if=/dev/zero of="$work/small/filler" bs=1M 2>/dev/null || true
export XDG_DATA_HOME="$work/data"
fill() { "$LODGE" exec kept sh -c 'dd if=/dev/urandom of=/dev/vda bs=64k seek=512 >/dev/null 2>&1 </dev/null &'; }
"$LODGE" create --engine "$ENGINE" --memory 256M --name kept --disk "$work/small/a" >/dev/null
expect_exit 0 "a VM that stays" "$LODGE" start kept
guest=$$
expect_exit 0 "fills the host" fill
until_status kept paused
expect_exit 0 "reset" "$LODGE" reset kept
expect_exit 0 "goes on after the reset" "$LODGE" resume kept
expect_exit 0 "with a new guest" sh -c "for i in \$(seq 300); do $LODGE exec kept true && exit; sleep 0.2; done 2>/dev/null; exit 1"
expect_exit 0 "which fills the host" fill
until_status kept paused
expect_exit 0 "ended" "$LODGE" stop -f kept

# ---- The architected error instead ----
expect_exit 0 "on-full=error" lodge_run --disk "$work/small/a,on-full=error" \
    --disk "$work/small/b.lodge,device=nvme,on-full=error" -- sh -c '
    for d in vda nvme0n1; do ! dd if=/dev/urandom of=/dev/$d bs=64k seek=512 count=64 conv=fsync 2>/dev/null || exit 3; done
    dmesg | grep -o "I/O error, dev vda\|critical space allocation error, dev nvme0n1" | sort -u'
expect_text "$work/out" "I/O error, dev vda" "virtio-blk"
expect_text "$work/out" "critical space allocation error, dev nvme0n1" "NVMe: capacity exceeded"
expect_exit 0 "the disk is in order" "$LODGE" disk check "$work/small/b.lodge"

# ---- Files that cannot be written ----
mkdir "$work/readonly"
mount --bind "$work/small" "$work/readonly"
mount -o remount,bind,ro "$work/readonly"
for d in a b.lodge; do
    expect_exit 125 "read-only: $d" lodge_run --disk "$work/readonly/$d" -- true
    expect_one_line_error "read-only: $d"
    expect_text "$work/err" "cannot open disk $work/readonly/$d for writing" "and why"
done
expect_exit 0 "reading them is possible" "$LODGE" disk diff "$work/readonly/b.lodge" "$work/readonly/b.lodge"
umount "$work/readonly"

# ---- Errors from below ----
nbdkit -U "$work/socket" -f --filter=error memory 64M error=EIO error-file="$work/broken" error-rate=100% &
children="$children $!"
until [ -S "$work/socket" ]; do kill -0 $! || break; done
mkfifo "$work/asks"
lodge_run --name broken --disk "nbd+unix:///?socket=$work/socket" \
    --disk "nbd+unix:///?socket=$work/socket,device=nvme,readonly" -- sh -c '
    head -c 1000000 /dev/urandom >/tmp/data
    dd if=/tmp/data of=/dev/vda bs=4k conv=fsync 2>/dev/null && echo written
    read -r word
    ! dd if=/tmp/data of=/dev/vda bs=4k seek=1000 conv=fsync 2>/dev/null && echo refused
    echo 3 >/proc/sys/vm/drop_caches
    for d in vda nvme0n1; do ! head -c 4096 /dev/$d 2>/dev/null >/tmp/none && echo "not read"; done
    read -r word
    for d in vda nvme0n1; do head -c 1000000 /dev/$d | cmp - /tmp/data && echo "back again"; done' <"$work/asks" >"$work/guest" 2>"$work/told" &
guest=$!
children="$children $guest"
exec 5>"$work/asks"
heard() { until [ "$(grep -c "$1" "$work/guest")" = $2 ] || ! kill -0 $guest 2>/dev/null; do sleep 0.1; done; }
heard written 1
touch "$work/broken"
echo >&5
heard "not read" 2
rm "$work/broken"
echo >&5
exec 5>&-
wait $guest || fail "the guest's exit"
expect_same "$(tr '\n' ' ' <"$work/guest")" "written refused not read not read back again back again " "the guest sees I/O errors while there are any"
finish
