#!/bin/sh
# Packed rings, with Linux's own drivers: every virtio device at work, bytes compared.
. "$(dirname "$0")/lib.sh"

head -c 33554432 /dev/urandom >"$work/disk"
sum=$(sha256sum <"$work/disk" | cut -d' ' -f1)
packed() { lodge_run --rings packed --disk "$work/disk" "$@"; }

expect_exit 0 "read through packed rings" packed -- sh -c '
    for f in /sys/bus/virtio/devices/*/features; do cut -c35 $f; done | sort -u
    dd if=/dev/vda bs=256k 2>/dev/null | sha256sum'
expect_same "$(head -n 1 "$work/out")" 1 "every driver took them"
expect_same "$(tail -n 1 "$work/out" | cut -d' ' -f1)" "$sum" "32 MB read unchanged"

expect_exit 0 "write through packed rings" packed -- sh -c '
    dd if=/dev/hwrng of=/tmp/data bs=4096 count=64 2>/dev/null
    for i in 1 2 3 4 5 6 7 8; do cat /tmp/data /tmp/data /tmp/data /tmp/data; done >/tmp/all
    dd if=/tmp/all of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null && sha256sum </tmp/all'
length=$((8 * 4 * 64 * 4096))
expect_same "$(dd if="$work/disk" bs=64k skip=16 count=$((length / 65536)) 2>/dev/null | sha256sum)" \
    "$(cat "$work/out")" "8 MB written unchanged"

# Standard output and input go through the socket device.
head -c 3000000 /dev/urandom >"$work/in"
expect_exit 0 "3 MB out and in through the socket device" sh -c '
    timeout 240 "$0" run --engine "$1" --rings packed -- cat <"$2"' "$LODGE" "$ENGINE" "$work/in"
expect_same "$(sha256sum <"$work/out")" "$(sha256sum <"$work/in")" "unchanged"

expect_exit 0 "an address by DHCP" lodge_run --rings packed -- ip -4 addr show dev eth0
expect_text "$work/out" "inet 10.0.2." "through packed rings"
finish
