#!/bin/sh
# stress-ng with verification: processor, vector and memory stressors for a minute.
. "$(dirname "$0")/lib.sh"

image=$("$SOURCE/tests/linux/tools-image" "$BUILD") || { fail "tools image"; finish; }
LIMIT=900
expect_exit 0 "stress-ng --verify" lodge_run --disk "$image,readonly" -- sh -c '
    mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t sysfs s /t/sys &&
    mount -t devtmpfs d /t/dev && mount -t tmpfs t /t/tmp || exit 99
    for stressor in cpu vecmath vecwide vecfp matrix memcpy vm; do
        chroot /t /usr/bin/stress-ng --temp-path /tmp --verify --timeout 9 --$stressor 1 --vm-bytes 32M 2>&1 || exit
    done'
expect_same "$(grep -c 'fail:' "$work/out")" 0 "no verification failed"
grep -c 'successful run completed' "$work/out"
finish
