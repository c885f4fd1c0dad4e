#!/bin/sh
# stress-ng with verification: every stressor of the processor, vector, cache and memory classes that can run in
# the guest, each for a number of operations (tests/linux/stressors).
#
# usage: tests/linux/stress.sh BUILD [full]
. "$(dirname "$0")/lib.sh"

image=$("$SOURCE/tests/linux/tools-image" "$BUILD") || { fail "tools image"; finish; }
column=2
LIMIT=900
[ "${2:-}" != full ] || column=3 LIMIT=7200
awk -v column="$column" '!/^#/ && $column != "-" { print $1, $column }' "$SOURCE/tests/linux/stressors" \
    >"$work/list"

# The time-out of a stressor is there for a hang only: one that runs into it has not done its operations.
expect_exit 0 "stress-ng --verify" lodge_run --memory 1G --disk "$image,readonly" -- sh -c '
    mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t sysfs s /t/sys &&
    mount -t devtmpfs d /t/dev && mkdir -p /t/dev/shm && mount -t tmpfs s /t/dev/shm &&
    mount -t tmpfs t /t/tmp || exit 99
    failed=0
    while read name ops; do
        chroot /t /usr/bin/stress-ng --temp-path /tmp --verify --no-rand-seed --vm-bytes 16M \
            --"$name" 1 --"$name"-ops "$ops" --timeout 300 >/tmp/out 2>&1 </dev/null
        code=$?
        if [ $code = 0 ] && ! grep -q fail: /tmp/out; then
            echo "passed: $name"
        else
            echo "failed: $name with exit $code"
            cat /tmp/out
            failed=1
        fi
    done
    dmesg | grep -E "BUG:|WARNING:|Oops|general protection|self-detected stall|blocked for more" && failed=1
    exit $failed' <"$work/list"
grep -A 12 '^failed:' "$work/out" || true
expect_same "$(grep -c '^passed: ' "$work/out")" "$(wc -l <"$work/list" | tr -d ' ')" "every stressor passed"
finish
