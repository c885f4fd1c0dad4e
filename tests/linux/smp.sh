#!/bin/sh
# Several vCPUs: Linux finds, uses and switches them; nothing that the kernel would complain of under a short load of
# more threads than there are processors.
#
# usage: tests/linux/smp.sh BUILD [SECONDS]
. "$(dirname "$0")/lib.sh"

seconds=${2:-8}
[ "$seconds" -lt 100 ] || LIMIT=$((seconds * 4))
image=$("$SOURCE/tests/linux/tools-image" "$BUILD") || { fail "tools image"; finish; }

expect_exit 0 "two processors" lodge_run --cpus 2 -- sh -c '
    nproc; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online
    taskset -c 1 sh -c "grep Cpus_allowed_list /proc/self/status"'
expect_same "$(tr '\n' ' ' <"$work/out")" "2 2 0-1 Cpus_allowed_list:	1 " "found and chosen"

expect_exit 0 "topology, SMBIOS" lodge_run --cpus 3 -- sh -c '
    cd /sys/devices/system/cpu/cpu2
    cat topology/core_id topology/package_cpus_list topology/thread_siblings_list cache/index3/shared_cpu_list
    cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name'
expect_same "$(tr '\n' ' ' <"$work/out")" "2 0-2 2 0-2 lodge lodge virtual machine " "three cores of one processor"

truncate -s 4M "$work/disk"
expect_exit 0 "a disk's queues" lodge_run --cpus 3 --disk "$work/disk" -- sh -c '
    for c in 0 1 2; do taskset -c $c dd if=/dev/vda of=/dev/null bs=4k count=1 skip=$((c * 256)) 2>/dev/null; done
    awk "/req\\.[0-9]/ { printf \"%s\", substr(\$NF, length(\$NF)); for (c = 0; c < 3; c++) if (\$(c + 2) > 0) printf \" on %d\", c; print \"\" }" /proc/interrupts'
expect_same "$(tr '\n' ' ' <"$work/out")" "0 on 0 1 on 1 2 on 2 " "each processor is interrupted for what it has asked for"

expect_exit 0 "a processor goes and comes back" lodge_run --cpus 3 -- sh -c '
    cd /sys/devices/system/cpu
    for round in 1 2 3; do
        echo 0 >cpu1/online && echo 0 >cpu2/online && nproc || exit 1
        echo 1 >cpu2/online && echo 1 >cpu1/online && nproc || exit 1
    done'
expect_same "$(tr '\n' ' ' <"$work/out")" "1 3 1 3 1 3 " "as many as are on"

expect_exit 0 "eight processors under load" lodge_run --cpus 8 --memory 1G --disk "$image,readonly" -- sh -c '
    mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t sysfs s /t/sys &&
    mount -t devtmpfs d /t/dev && mkdir -p /t/dev/shm && mount -t tmpfs s /t/dev/shm &&
    mount -t tmpfs t /t/tmp || exit 99
    stress() { chroot /t /usr/bin/stress-ng --temp-path /tmp --verify --vm-bytes 16M "$@" >/tmp/out 2>&1 || cat /tmp/out; }
    stress --cpu 8 --vm 4 --switch 4 --timeout '"$seconds"'
    stress --futex 4 --sem 4 --membarrier 4 --mutex 4 --timeout '"$((seconds / 2))"'
    dmesg | grep -E "BUG:|WARNING:|Oops|general protection|self-detected stall|soft lockup|blocked for more|unstable"
    true'
expect_same "$(cat "$work/out")" "" "without complaint"

# ---- Plugged in while it runs ----

export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$work/run"
lodge_run --name hot --cpus 2,max=4 -- sh -c '
    nproc
    until [ -e /sys/devices/system/cpu/cpu3/online ] && [ -e /sys/devices/system/cpu/cpu2/online ]; do usleep 100000; done
    echo 1 >/sys/devices/system/cpu/cpu3/online; echo 1 >/sys/devices/system/cpu/cpu2/online; nproc
    taskset -c 3 sh -c "grep Cpus_allowed_list /proc/self/status"' >"$work/hot" 2>&1 &
children=$!
until grep -q '^2' "$work/hot"; do kill -0 "$children" || break; sleep 0.1; done
expect_exit 0 "two of four" "$LODGE" cpus hot
expect_same "$(cat "$work/out")" "2 of 4" "says lodge cpus"
expect_exit 1 "five do not fit" "$LODGE" cpus hot 5
expect_one_line_error "five do not fit"
expect_exit 1 "they stay" "$LODGE" cpus hot 1
expect_one_line_error "they stay"
expect_exit 2 "no number" "$LODGE" cpus hot more
expect_one_line_error "no number"
expect_exit 0 "two more" "$LODGE" cpus hot 4
wait "$children" || fail "the guest with processors plugged in"
expect_same "$(tr '\n' ' ' <"$work/hot")" "2 4 Cpus_allowed_list:	3 " "found by the guest, and used"
expect_exit 125 "room for less than there are" lodge_run --cpus 4,max=2 -- true
expect_one_line_error "room for less than there are"

for count in 0 65 two 2x 2,max= 2,min=3 -1 ''; do
    expect_exit 125 "--cpus '$count'" lodge_run --cpus "$count" -- true
    expect_one_line_error "--cpus '$count'"
done
expect_exit 125 "lock-step of two" lodge_run --verify --cpus 2 -- true
expect_one_line_error "lock-step of two"
finish
