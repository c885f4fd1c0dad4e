#!/bin/sh
# Linux with one part of the platform after the other taken away uses what is left.
. "$(dirname "$0")/lib.sh"

# boots WHAT TEXT APPEND: TEXT must be among the interrupts and the clock source
boots() {
    expect_exit 0 "$1" lodge_run --append "$3" -- sh -c \
        'cat /proc/interrupts /sys/devices/system/clocksource/clocksource0/current_clocksource'
    expect_text "$work/out" "$2" "$1: $2"
}

boots "INTx without MSI" "-fasteoi   virtio" "pci=nomsi"
boots "8259s without I/O APIC and MSI" "XT-PIC      virtio" "noapic pci=nomsi"
boots "one-shot and periodic local timer" "IO-APIC" "lapic=notscdeadline highres=off nohz=off"
boots "HPET as clock and tick" "hpet" "notsc clocksource=hpet nolapic_timer"
# Linux gives up its PIT when there is a TSC deadline timer, even one that nolapic_timer forbids.
boots "PIT and PM timer without HPET" "acpi_pm" \
    "hpet=disable nolapic_timer lapic=notscdeadline clocksource=acpi_pm"
boots "configuration mechanism 1 without ECAM" "PCI-MSI" "pci=nommconf"

for how in poweroff reboot; do
    expect_exit 0 "$how" lodge_run --console serial --on-reboot stop \
        --append "rdinit=/bin/busybox -- sh -c \"/bin/busybox $how -f\"" </dev/null
done
expect_text "$work/out" "reboot: Restarting system" "the kernel's last words"
finish
