#!/bin/sh
# virtio-blk: write, flush, read back, discard, write-zeroes, read-only, serial number.
. "$(dirname "$0")/lib.sh"

truncate -s 64M "$work/disk"
expect_exit 0 "write in the guest" lodge_run --disk "$work/disk" -- sh -c '
    dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null &&
    dd if=/tmp/data of=/dev/vda bs=1M seek=8 conv=fsync 2>/dev/null &&
    sha256sum </tmp/data'
sum=$(cut -d' ' -f1 "$work/out")
expect_same "$(dd if="$work/disk" bs=1M skip=8 count=24 2>/dev/null | sha256sum | cut -d' ' -f1)" "$sum" \
    "the host's file has what the guest wrote"

expect_exit 0 "read back in a second guest" lodge_run --disk "$work/disk,readonly" -- sh -c '
    dd if=/dev/vda bs=1M skip=8 count=24 2>/dev/null | sha256sum; cat /sys/block/vda/ro /sys/block/vda/size'
expect_same "$(head -n 1 "$work/out" | cut -d' ' -f1)" "$sum" "same bytes"
expect_same "$(tail -n +2 "$work/out" | tr '\n' ' ')" "1 131072 " "read-only, and its size"

before=$(sha256sum <"$work/disk")
expect_exit 0 "writes to a read-only disk fail" lodge_run --disk "$work/disk,readonly" -- sh -c '
    ! dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync 2>/dev/null'
expect_same "$(sha256sum <"$work/disk")" "$before" "and leave the file alone"

# A filesystem's worth of metadata traffic, then discard.
expect_exit 0 "ext4 or vfat on the disk, discard" lodge_run --disk "$work/disk" -- sh -c '
    { mkfs.vfat /dev/vda || mke2fs -q /dev/vda; } >/dev/null 2>&1 || exit 3
    cat /sys/block/vda/queue/discard_max_bytes /sys/block/vda/queue/write_zeroes_max_bytes
    blkdiscard -o 0 -l 33554432 /dev/vda'
expect_same "$(awk '$1 > 0' "$work/out" | wc -l)" 2 "discard and write-zeroes are offered"
expect_same "$(head -c 33554432 "$work/disk" | tr -d '\0' | wc -c)" 0 "discarded blocks read as zeroes"

two() { lodge_run --disk "$work/disk" --disk "$work/second,readonly" -- sh -c 'cat /sys/block/vd?/size; for s in /sys/block/vd?/serial; do cat $s; echo; done'; }
truncate -s 1M "$work/second"
expect_exit 0 "two disks" two
expect_same "$(head -n 2 "$work/out" | tr '\n' ' ')" "131072 2048 " "in order"
expect_same "$(tail -n +3 "$work/out" | sort -u | wc -l)" 2 "with serial numbers of their own"
finish
