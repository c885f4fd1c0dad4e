#!/bin/sh
# Foreign programs in the guest: 32-bit code, signals, ptrace, gdb single-stepping.
. "$(dirname "$0")/lib.sh"

image=$("$SOURCE/tests/linux/tools-image" "$BUILD") || { fail "tools image"; finish; }
in_tools() { # COMMAND: in a chroot of the tools disk
    lodge_run --disk "$image,readonly" -- sh -c "
        mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t tmpfs t /t/tmp &&
        exec chroot /t $1"
}
expect_exit 32 "a 32-bit program" in_tools /tests/program32
expect_text "$work/out" "32-bit ok" "its checks passed"
expect_exit 0 "signals and ptrace" in_tools /tests/signals
expect_text "$work/out" "signals ok" "its checks passed"

gdb_script="-ex 'break step' -ex run -ex 'stepi' -ex 'stepi' -ex 'info registers rip' -ex 'delete' \
    -ex 'watch counter if counter == 10' -ex continue -ex 'print counter' -ex 'delete' -ex continue"
expect_exit 0 "gdb" in_tools "/usr/bin/gdb -nx -batch $gdb_script /tests/debuggee"
expect_text "$work/out" "Breakpoint 1, step (by=" "a breakpoint"
expect_text "$work/out" "= 10" "a hardware watchpoint with a condition"
expect_text "$work/out" "sum 55" "and the program ended right"
finish
