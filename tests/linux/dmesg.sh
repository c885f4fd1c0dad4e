#!/bin/sh
# Linux finds the platform without a complaint.
. "$(dirname "$0")/lib.sh"

expect_exit 0 "dmesg" lodge_run --append "loglevel=7" -- dmesg
for complaint in 'ACPI Error' 'ACPI BIOS Error' 'ACPI BIOS Warning' 'ACPI Warning' 'BUG:' 'WARNING:' 'Oops' 'soft lockup' \
    'spurious' 'nobody cared' 'Firmware Bug' 'unchecked MSR access' 'stalled' 'APIC error' 'Call Trace' \
    'bogus alignment' "can't claim"; do
    if grep -F -- "$complaint" "$work/out" >"$work/found"; then
        fail "dmesg has '$complaint':"
        cat "$work/found"
    fi
done
for wanted in 'ACPI: PM-Timer' 'hpet0' 'TSC' 'rtc'; do
    grep -qi -- "$wanted" "$work/out" || fail "dmesg does not mention $wanted"
done
expect_exit 0 "interrupts" lodge_run -- cat /proc/interrupts
expect_text "$work/out" "MSI" "virtio interrupts by MSI-X"
finish
